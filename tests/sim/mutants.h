/*
 * mutants - is the simulator any good? Every rule of node/base/mutant.tbl is
 * left out once, and something must show it: random trials, or a test.
 *
 * One thread. The swarm is drawn towards what the mutant breaks. What catches
 * it, a seed or a test, must pass with all rules, or the catch proves nothing.
 */
#ifndef TESTS_SIM_MUTANTS_H
#define TESTS_SIM_MUTANTS_H

#include "tests/sim/farm.h"

/* Prints a line for each: what caught it, and after how many seeds. Counts one
 * for each mutant; one that survives `within` seeds (less for those that have a
 * test) and its test has failed. `only` (may be NULL): this one; else enough
 * must die of random seeds, too. */
void mutants_all(const char *only, uint64_t within, uint64_t *passed,
		 uint64_t *failed);

#endif
