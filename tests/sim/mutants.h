/*
 * mutants - is the simulator any good? Every rule of node/base/mutant.tbl is
 * left out once, and a run must show it.
 *
 * One thread. A mutant is looked for among seeds, mostly, with the swarm drawn
 * towards what it breaks. The build as it is must pass the same seeds, or a
 * catch would prove nothing.
 */
#ifndef TESTS_SIM_MUTANTS_H
#define TESTS_SIM_MUTANTS_H

#include "tests/sim/farm.h"

/* Prints a line for each: what caught it, and after how many seeds. Counts one
 * for each mutant, and one for each way of drawing that the build as it is must
 * pass. `only` (may be NULL): this one. Each is looked for in `within` seeds;
 * in fewer than 500 one that survives is open, and not counted. */
void mutants_all(const char *only, uint64_t within, uint64_t *passed,
		 uint64_t *failed);

#endif
