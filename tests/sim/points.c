#include "tests/sim/points.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "tests/sim/faults.h"
#include "tests/sim/load.h"

#define POINTS_SEED        4u
#define POINTS_NODE        1u /* Who ends. */
#define AFTER_MS           400u
#define BACK_MS            60u
#define SECONDS_OF_A_CHILD 60u
#define SECONDS_OF_A_SWEEP 1800u

/* When what happens. */
#define RESTART_MS 900u
#define CUT_MS     1600u
#define MEND_MS    2800u
#define END_MS     4200u

struct points_result {
	uint64_t points; /* Operations and messages, */
	uint64_t splits; /* at so many of which it was split; */
	uint64_t broken; /* children that found something. */
};

static struct {
	enum crash kind;
	unsigned stride;
	unsigned jobs;
	bool quiet;
	bool in_child;
	struct finding *out; /* The child's. */
	struct points_result *result;
} sweep;

static const char *const kind_names[] = {
	[CRASH_KILL] = "kill",
	[CRASH_POWER] = "power cut",
};

/* ------------------------------------------------------------ the children */

static void child_done(struct task *t, const struct finding *f,
		       const char *report)
{
	if (!f->broken)
		return;
	sweep.result->broken++;
	printf("FAIL crash point %" PRIu64 " (%s) breaks %s: %s\n%s\n", t->seed,
	       kind_names[sweep.kind], f->breach.invariant, f->breach.text,
	       report);
	(void)fflush(stdout);
}

/* True in a child that ends its node here. */
static bool split(struct trial *r, unsigned node)
{
	struct task t = { .done = child_done };

	if (node != POINTS_NODE || sweep.in_child)
		return false;
	t.seed = ++sweep.result->points;
	if (t.seed % sweep.stride != 0)
		return false;
	sweep.result->splits++;
	if (!farm_split(&t, &sweep.out))
		return false;
	sweep.in_child = true;
	r->machines[node].ending = sweep.kind;
	/* Every child its own way from here. */
	prng_seed(&r->r, r->seed + t.seed, 10);
	return true;
}

static void at_op(struct trial *r, unsigned node, enum world_op op,
		  const char *name)
{
	struct world_fault f = { .kind = WORLD_CRASH_BEFORE,
				 .op = op,
				 .nth = 1 };

	if (op == WORLD_READ || !split(r, node))
		return;
	trial_trace(r, "n%u ends before op %d of %s", node + 1, op, name);
	world_fault(r->w, node, &f);
}

static void at_send(struct trial *r, unsigned node)
{
	if (!split(r, node))
		return;
	trial_trace(r, "n%u ends before a message", node + 1);
	world_end(r->w, node);
}

static _Noreturn void child_ends(struct trial *r)
{
	(void)trial_for(r, AFTER_MS);
	trial_judge(r);
	sweep.out->broken = trial_is_broken(r);
	sweep.out->breach = r->breach;
	sweep.out->tally = r->tally;
	if (sweep.out->broken)
		trial_dump(r);
	trial_free(r);
	farm_leave();
}

/* ---------------------------------------------------------------- the load */

static void draw(struct swarm *s)
{
	swarm_draw(s, POINTS_SEED, FOCUS_INSTALL);
	s->nodes = 3;
	s->shards = 2;
	s->faults = 0;
	s->clients = 3;
	s->burst = 1;
	s->think_ms = 15;
	s->calls_max = 1000000;
	s->core.window_ms = 10;
	s->core.trailing_entries = 2;
	s->core.checkpoint_bytes = 16u << 10;
	s->restart = false;
}

/* Until then; in a child that was split meanwhile, its rest. */
static void go_on(struct trial *r, uint64_t ms)
{
	while (trial_now(r) < ms && !trial_is_broken(r)) {
		if (sweep.in_child)
			child_ends(r);
		if (!trial_step(r))
			return;
	}
	if (sweep.in_child)
		child_ends(r);
}

static void cut(struct trial *r, bool on)
{
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++) {
		if (i == POINTS_NODE)
			continue;
		(on ? net_cut : net_mend)(r->net, i, POINTS_NODE);
		(on ? net_cut : net_mend)(r->net, POINTS_NODE, i);
	}
}

static void body(const struct task *t, struct finding *out)
{
	struct swarm swarm;
	struct trial *r;
	unsigned i;

	mutant_now = (enum mutant)t->mutant;
	farm_init(sweep.jobs, SECONDS_OF_A_CHILD);
	draw(&swarm);
	r = trial_new(POINTS_SEED, &swarm);
	r->at_op = at_op;
	r->at_send = at_send;
	for (i = 0; i < r->swarm.nodes; i++)
		r->machines[i].boot_ms = 10u * (i + 1);
	load_start(r->load);
	go_on(r, RESTART_MS);
	if (r->machines[POINTS_NODE].state == MACHINE_UP)
		trial_close(r, POINTS_NODE, BACK_MS);
	go_on(r, CUT_MS);
	cut(r, true);
	go_on(r, MEND_MS);
	cut(r, false);
	go_on(r, END_MS);
	farm_wait();
	r->at_op = NULL;
	r->at_send = NULL;
	trial_judge(r);
	out->broken = trial_is_broken(r);
	out->breach = r->breach;
	out->tally = r->tally;
	if (out->broken)
		trial_dump(r);
	trial_free(r);
}

static void done(struct task *t, const struct finding *f, const char *report)
{
	(void)t;
	/* What the children have said. */
	printf("%s", report);
	if (!f->broken)
		return;
	sweep.result->broken++;
	printf("FAIL the load itself breaks %s: %s\n", f->breach.invariant,
	       f->breach.text);
}

void points_all(unsigned jobs, unsigned stride, bool quiet, uint64_t *passed,
		uint64_t *failed)
{
	static const enum crash kinds[] = { CRASH_KILL, CRASH_POWER };
	const struct task t = { .seed = POINTS_SEED,
				.mutant = (int)mutant_now,
				.body = body,
				.done = done };
	struct points_result r;
	size_t i;

	/* The process that splits writes here. */
	sweep.result = mmap(NULL, sizeof(r), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(sweep.result != MAP_FAILED);
	sweep.stride = stride;
	sweep.jobs = jobs;
	for (i = 0; i < ARRAY_LEN(kinds); i++) {
		sweep.kind = kinds[i];
		memset(sweep.result, 0, sizeof(r));
		farm_init(1, SECONDS_OF_A_SWEEP);
		farm_start(&t);
		farm_wait();
		r = *sweep.result;
		*passed += r.broken == 0;
		*failed += r.broken != 0;
		if (!quiet || r.broken != 0)
			printf("%s crash points, %s: %" PRIu64 " of %" PRIu64
			       " tried, %" PRIu64 " broken\n",
			       r.broken == 0 ? "ok  " : "FAIL",
			       kind_names[sweep.kind], r.splits, r.points,
			       r.broken);
		(void)fflush(stdout);
	}
	(void)munmap(sweep.result, sizeof(r));
}
