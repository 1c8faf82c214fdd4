/*
 * ledger - what all trials of a run did together, and the floors below which
 * nothing was proved.
 */
#ifndef TESTS_SIM_LEDGER_H
#define TESTS_SIM_LEDGER_H

#include "tests/sim/trial.h"

struct ledger {
	uint64_t seeds;
	uint64_t violations;
	uint64_t replayed; /* Seeds that ran twice. */
	struct tally sum;
};

void ledger_add(struct ledger *l, const struct tally *t);
/* Each is a line or more, to stdout. */
void ledger_say(const struct ledger *l);
void ledger_json(const struct ledger *l);
/* What a run of so many seconds must have done; says what it has not. The
 * floors are those of 600 seconds on two cores, and shrink with the time. */
bool ledger_floors(const struct ledger *l, unsigned seconds);

#endif
