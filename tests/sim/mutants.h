#ifndef TESTS_SIM_MUTANTS_H
#define TESTS_SIM_MUTANTS_H
#include "tests/sim/farm.h"
void mutants_all(const char *only, bool quiet, uint64_t *passed,
		 uint64_t *failed);
#endif
