/*
 * sweep - a crash or a failure at every write and every sync of a load.
 *
 * One thread; each point is a trial in a process of its own.
 */
#ifndef TESTS_SIM_SWEEP_H
#define TESTS_SIM_SWEEP_H

#include "tests/sim/farm.h"

/* All of them, or the one named `only`; counts each as ./check does. */
void sweep_all(const char *only, bool quiet, uint64_t *passed,
	       uint64_t *failed);

#endif
