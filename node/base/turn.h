/*
 * turn - the tasks at the end of a loop turn, for those who implement env.
 *
 * Loop thread only. One order of tasks for the real world and the simulated
 * one: the phases one after the other, each until it is empty; when a task has
 * posted one of an earlier phase, the turn goes round again after the last
 * phase. So what the released answers of one turn set off shares the next
 * entry and the next batch too.
 */
#ifndef HOLDFAST_BASE_TURN_H
#define HOLDFAST_BASE_TURN_H

#include <stdbool.h>

#include "node/base/env.h"

STAILQ_HEAD(turn_tasks, env_task);

struct turn {
	struct turn_tasks phases[ENV_PHASES];
	unsigned pending; /* Posted tasks. */
	/* Called after each phase that had tasks, for who measures them; NULL
	 * after turn_init. */
	void (*passed)(struct turn *t, enum env_phase phase);
};

/* Also: forgets what is posted without looking at it. */
void turn_init(struct turn *t);
/* `task` is not posted yet. */
void turn_post(struct turn *t, struct env_task *task);
/* Until nothing is posted. */
void turn_run(struct turn *t);

#endif
