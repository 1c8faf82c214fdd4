/*
 * farm - trials in processes of their own, a few at a time.
 *
 * One thread. A CHECK that aborts, a sanitizer's report, a leak or a run that
 * does not end is an outcome like any other, and no trial inherits anything
 * from the one before. What a child prints is kept for its report.
 */
#ifndef TESTS_SIM_FARM_H
#define TESTS_SIM_FARM_H

#include "tests/sim/trial.h"

struct finding {
	bool broken;
	struct breach breach;
	struct tally tally;
};

struct task {
	uint64_t seed;
	int mutant; /* enum mutant */
	int focus;  /* enum focus */
	/* In the child. It fills `out` in, also when it then aborts: `out` is
	 * shared memory. */
	void (*body)(const struct task *t, struct finding *out);
	void (*done)(struct task *t, const struct finding *out,
		     const char *report);
	void *arg;
};

/* At most so many children at once, each with so much CPU time. */
void farm_init(unsigned children, unsigned seconds_max);
/* Start a child for `t`, which the farm copies; waits for room first, and calls
 * `done` of others meanwhile. */
void farm_start(const struct task *t);
/* Until all are done. */
void farm_wait(void);
/*
 * The same from inside a trial: forks here and now. True in the child, which
 * goes on with what it has, fills in `*out` and ends by farm_leave(); false in
 * the parent, and `t->body` is not called.
 */
bool farm_split(const struct task *t, struct finding **out);
_Noreturn void farm_leave(void);

#endif
