/*
 * ledger - what all trials of a run did together, and the floors below which
 * nothing was proved.
 */
#ifndef TESTS_SIM_LEDGER_H
#define TESTS_SIM_LEDGER_H

#include "tests/sim/trial.h"

#define LEDGER_BROKEN_MAX 64u

struct ledger {
	uint64_t seeds;
	uint64_t violations;
	uint64_t broken[LEDGER_BROKEN_MAX]; /* Seeds, the first of them. */
	uint64_t missed;                    /* Floors. */
	uint64_t replayed;                  /* Seeds that ran twice. */
	struct tally sum;
};

void ledger_add(struct ledger *l, const struct tally *t);
/* A violation of that seed. */
void ledger_broken(struct ledger *l, uint64_t seed);
/* Each is a line or more, to stdout. */
void ledger_say(const struct ledger *l);
void ledger_json(const struct ledger *l);
/* What a run of so many seconds must have done; says what it has not, and
 * counts it. The floors are those of 600 seconds on two cores, and shrink with
 * the time. */
bool ledger_floors(struct ledger *l, unsigned seconds);

#endif
