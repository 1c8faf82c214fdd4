#include "node/base/turn.h"

#include "node/base/check.h"

void turn_init(struct turn *t)
{
	unsigned i;

	for (i = 0; i < ENV_PHASES; i++)
		STAILQ_INIT(&t->phases[i]);
	t->pending = 0;
	t->passed = NULL;
}

void turn_post(struct turn *t, struct env_task *task)
{
	PRE(!task->posted);
	PRE(task->cb != NULL);
	PRE(task->phase < ENV_PHASES);
	task->posted = true;
	STAILQ_INSERT_TAIL(&t->phases[task->phase], task, link);
	t->pending++;
}

static void run_phase(struct turn *t, struct turn_tasks *tasks)
{
	struct env_task *task;

	while ((task = STAILQ_FIRST(tasks)) != NULL) {
		STAILQ_REMOVE_HEAD(tasks, link);
		task->posted = false;
		t->pending--;
		task->cb(task); /* It may be gone: nothing after. */
	}
}

void turn_run(struct turn *t)
{
	unsigned i;

	while (t->pending > 0)
		for (i = 0; i < ENV_PHASES; i++) {
			if (STAILQ_EMPTY(&t->phases[i]))
				continue;
			run_phase(t, &t->phases[i]);
			if (t->passed != NULL)
				t->passed(t, (enum env_phase)i);
		}
}
