/*
 * One trial for each write and each sync of a mixed load: the node ends there,
 * before or after it, or the operation fails; then it boots again and is judged
 * as always. A sweep ends at the first number that the load does not reach.
 */
#include "tests/sim/sweep.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "node/base/mutant.h"
#include "tests/sim/faults.h"
#include "tests/sim/load.h"

#define SWEEP_SEED  9u
#define SWEEP_MAX   400u
#define SWEEP_MS    300u
#define SWEEP_CALLS 150u

struct sweep {
	const char *name;
	enum crash crash;
	enum world_op op;
	enum world_fault_kind kind;
};

static const struct sweep sweeps[] = {
	{ "kill-before-write", CRASH_KILL, WORLD_WRITE, WORLD_CRASH_BEFORE },
	{ "kill-after-write", CRASH_KILL, WORLD_WRITE, WORLD_CRASH_AFTER },
	{ "kill-before-sync", CRASH_KILL, WORLD_SYNC, WORLD_CRASH_BEFORE },
	{ "kill-after-sync", CRASH_KILL, WORLD_SYNC, WORLD_CRASH_AFTER },
	{ "power-cut-before-write", CRASH_POWER, WORLD_WRITE,
	  WORLD_CRASH_BEFORE },
	{ "power-cut-after-write", CRASH_POWER, WORLD_WRITE,
	  WORLD_CRASH_AFTER },
	{ "power-cut-before-sync", CRASH_POWER, WORLD_SYNC,
	  WORLD_CRASH_BEFORE },
	{ "power-cut-after-sync", CRASH_POWER, WORLD_SYNC, WORLD_CRASH_AFTER },
	{ "failed-write", CRASH_SYNC, WORLD_WRITE, WORLD_EIO },
	{ "short-write", CRASH_SYNC, WORLD_WRITE, WORLD_SHORT },
	{ "no-space", CRASH_KILL, WORLD_WRITE, WORLD_NO_SPACE },
	{ "failed-sync", CRASH_SYNC, WORLD_SYNC, WORLD_EIO },
};

/* Of the sweep that runs. */
static const struct sweep *now;
static uint64_t runs;
static uint64_t broken;
static uint64_t end; /* The first number that was not reached. */

static void body(const struct task *t, struct finding *out)
{
	struct world_fault f = { .kind = now->kind,
				 .op = now->op,
				 .nth = t->seed };
	struct swarm swarm;
	struct trial *r;

	mutant_now = (enum mutant)t->mutant;
	swarm_draw(&swarm, SWEEP_SEED, FOCUS_LONE);
	swarm.calls_max = SWEEP_CALLS;
	swarm.faults = 0;
	r = trial_new(SWEEP_SEED, &swarm);
	r->machines[TRIAL_NODE].ending = now->crash;
	faults_expect(r->faults, TRIAL_NODE);
	world_fault(r->w, TRIAL_NODE, &f);
	load_start(r->load);
	(void)trial_boot(r, TRIAL_NODE);
	(void)trial_for(r, SWEEP_MS);
	/* Told by what is left of the tally: nothing fired, nothing more to
	 * sweep. */
	out->tally.rebuilds = world_faults_fired(r->w, TRIAL_NODE);
	if (!trial_is_broken(r) &&
	    r->machines[TRIAL_NODE].state == MACHINE_UP) {
		trial_crash(r, TRIAL_NODE, now->crash, 1);
		(void)trial_for(r, SWEEP_MS);
	}
	trial_judge(r);
	out->broken = trial_is_broken(r);
	out->breach = r->breach;
	if (out->broken)
		trial_dump(r);
	trial_free(r);
}

static void done(struct task *t, const struct finding *o, const char *report)
{
	runs++;
	if (o->broken) {
		broken++;
		printf("FAIL sweep %s number %" PRIu64 " breaks %s: %s\n%s\n",
		       now->name, t->seed, o->breach.invariant, o->breach.text,
		       report);
	}
	if (o->tally.rebuilds == 0 && t->seed < end)
		end = t->seed;
}

void sweep_all(const char *only, bool quiet, uint64_t *passed, uint64_t *failed)
{
	size_t i;

	for (i = 0; i < sizeof(sweeps) / sizeof(sweeps[0]); i++) {
		struct task t = { .body = body,
				  .done = done,
				  .mutant = mutant_now };

		now = &sweeps[i];
		if (only != NULL && strcmp(only, now->name) != 0)
			continue;
		runs = 0;
		broken = 0;
		end = SWEEP_MAX;
		for (t.seed = 1; t.seed < end; t.seed++)
			farm_start(&t);
		farm_wait();
		if (broken == 0)
			++*passed;
		else
			++*failed;
		if (!quiet || broken > 0)
			printf("%s %s: %" PRIu64 " points, %" PRIu64
			       " broken\n",
			       broken == 0 ? "ok  " : "FAIL", now->name, runs,
			       broken);
		(void)fflush(stdout);
	}
}
