#ifndef TESTS_SIM_SWEEP_H
#define TESTS_SIM_SWEEP_H
#include "tests/sim/farm.h"
void sweep_all(const char *only, bool quiet, uint64_t *passed,
	       uint64_t *failed);
#endif
