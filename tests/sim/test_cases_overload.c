/*
 * Three whole cores whose processors are slow enough to be asked for ten times
 * what they can do: each call that is let in costs its node's loop CALL_NS, a
 * refusal REFUSAL_NS. What waits for a busy loop comes later, calls and
 * messages of peers in the order in which they came. A test is called after its
 * case in tests/README.md.
 */
#include "tests/lib/cluster_rig.h"

#define CALL_NS    50000u
#define REFUSAL_NS 1000u
#define OBJECTS    48u
#define CALLERS    21u /* Of a node, in the closed loop. */
#define MS_MAX     16384u

static struct {
	uint8_t *params[OBJECTS];
	size_t params_n[OBJECTS];
	struct core_stats then[MEMBERS_MAX + 1];
	unsigned idle[MEMBERS_MAX + 1]; /* Callers of a node that wait. */
	bool closed_loop;
	uint32_t per_ms;  /* Else: calls that begin each millisecond. */
	uint64_t from_ms; /* Counted are those that were to begin after it. */
	uint64_t offered;
	uint64_t refused;
	uint64_t unknown;
	uint64_t done;
	uint64_t done_ever;
	uint32_t took_ms[MS_MAX]; /* How many took so long. */
} load;

static void params_make(void)
{
	struct pack_w w;
	char address[16];
	unsigned i;

	for (i = 0; i < OBJECTS; i++) {
		snprintf(address, sizeof(address), "kv/x%u", i);
		rig_own(true);
		pack_w_init(&w, 4096);
		pack_array(&w, 3);
		pack_cstr(&w, address);
		pack_cstr(&w, "incr");
		say_pack(&w, "{'key':'n'}");
		rig_own(false);
		EXPECT_RC(w.rc, RC_OK);
		load.params[i] = w.p;
		load.params_n[i] = w.n;
	}
}

static void params_free(void)
{
	unsigned i;

	for (i = 0; i < OBJECTS; i++)
		free(load.params[i]);
}

/* One call that was to begin at a certain time. */
struct asked {
	uint64_t due_ms;
	unsigned node;
	struct asked *next; /* Among the free ones. */
};
static struct asked *asked_free;

static void asked_done(struct asked *a)
{
	if (load.closed_loop)
		load.idle[a->node]++;
	a->next = asked_free;
	asked_free = a;
}

static void asked_answered(void *arg, const struct answer *answer)
{
	struct asked *a = arg;
	uint64_t ms = world_now_ms(rig.w) - a->due_ms;
	bool counts = a->due_ms >= load.from_ms;

	load.done_ever += answer->rc == RC_OK;
	load.unknown += answer->outcome == OUTCOME_UNKNOWN;
	if (answer->rc != RC_OK && answer->rc != RC_OVERLOADED)
		FAIL("%s: %s", rc_name(answer->rc),
		     answer->why != NULL ? answer->why->text : "");
	if (counts && answer->rc == RC_OK) {
		load.done++;
		load.took_ms[ms < MS_MAX ? ms : MS_MAX - 1]++;
	}
	load.refused += counts && answer->rc == RC_OVERLOADED;
	asked_done(a);
}

static struct asked *asked_new(void)
{
	struct asked *a = asked_free;

	if (a != NULL) {
		asked_free = a->next;
		return a;
	}
	rig_own(true);
	a = malloc(sizeof(*a));
	rig_own(false);
	CHECK(a != NULL);
	return a;
}

static void ask(unsigned id, uint64_t due_ms)
{
	const struct caller caller = { .principal = rig_bytes("me"),
				       .tenant = rig_bytes("default"),
				       .env = rig_bytes("dev") };
	uint64_t i = world_random(rig.w, OBJECTS);
	struct asked *a = asked_new();

	*a = (struct asked){ .due_ms = due_ms, .node = id };
	load.offered += due_ms >= load.from_ms;
	if (call_start(cl.at[id].core, &caller,
		       (struct pack_bytes){ load.params[i], load.params_n[i] },
		       asked_answered, a) != NULL)
		return;
	load.refused += due_ms >= load.from_ms;
	asked_done(a);
}

/* What its loop did since it was looked at last. */
static void charge(unsigned id)
{
	struct core_stats now;
	struct core_stats *then = &load.then[id];

	core_stats(cl.at[id].core, &now);
	world_spend(rig.w, id - 1,
		    (now.calls - then->calls) * CALL_NS +
			    (now.calls_refused + now.served_refused -
			     then->calls_refused - then->served_refused) *
				    REFUSAL_NS);
	*then = now;
}

/* A millisecond of a node: the calls that were to begin in it begin, whenever
 * it comes to that. */
static void node_ms(void *arg)
{
	uint64_t what = (uint64_t)(uintptr_t)arg;
	unsigned id = (unsigned)(what % 8);
	uint64_t due_ms = what / 8;
	unsigned n = load.closed_loop ? load.idle[id] : load.per_ms;

	if (load.closed_loop)
		load.idle[id] = 0;
	while (n-- > 0)
		ask(id, load.closed_loop ? world_now_ms(rig.w) : due_ms);
	charge(id);
}

/* The load for `ms`, of which the first `warm_ms` are not counted; then what is
 * in flight ends. */
static void load_run(bool closed_loop, uint32_t per_ms, uint64_t warm_ms,
		     uint64_t ms)
{
	uint64_t from = world_now_ms(rig.w) + 1;
	uint64_t at;
	unsigned id;

	load.closed_loop = closed_loop;
	load.per_ms = per_ms;
	load.from_ms = from + warm_ms;
	load.offered = 0;
	load.refused = 0;
	load.done = 0;
	memset(load.took_ms, 0, sizeof(load.took_ms));
	for (id = 1; id <= cl.n; id++) {
		load.idle[id] = CALLERS;
		core_stats(cl.at[id].core, &load.then[id]);
	}
	for (at = from; at < from + ms; at++)
		for (id = 1; id <= cl.n; id++)
			world_at(rig.w, id - 1, at, node_ms,
				 (void *)(uintptr_t)(at * 8 + id));
	cluster_run(ms + 1);
	load.closed_loop = false;
	load.per_ms = 0;
	cluster_run(8000);
}

static uint64_t p99_ms(void)
{
	uint64_t above = load.done / 100; /* So many took longer. */
	uint64_t ms = MS_MAX - 1;

	while (ms > 0 && load.took_ms[ms] <= above)
		above -= load.took_ms[ms--];
	return ms;
}

static uint64_t terms(void)
{
	uint64_t sum = 0;
	uint32_t s;
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		for (s = 0; s < rig.id.shards; s++)
			sum += shard_term(
				bridge_shard(core_bridge(cl.at[i].core, s)));
	return sum;
}

/* What all counters say together. */
static uint64_t counted(void)
{
	char address[16];
	uint64_t sum = 0;
	uint64_t one;
	unsigned i;

	for (i = 0; i < OBJECTS; i++) {
		struct told *t;
		const char *at;

		snprintf(address, sizeof(address), "kv/x%u", i);
		t = cluster_ask(1, "me", address, "get", "{'key':'n'}", NULL);
		EXPECT_RC(t->rc, RC_OK);
		at = strstr(say_text(rig_result(t)), "'value':");
		EXPECT_NOT_NULL(at);
		EXPECT_TRUE(sscanf(at, "'value':%" SCNu64, &one) == 1);
		sum += one;
	}
	return sum;
}

/*
 * Ten times what a closed loop of 63 callers got, most of it to nodes that have
 * to pass it on, for three seconds: no election, what is let in is answered in
 * time, what is refused did not happen, and afterwards all is as it was.
 */
TEST(rx2_ten_times_the_capacity_moves_no_term)
{
	uint64_t normal;
	uint64_t before;
	uint64_t rate;
	uint64_t sum;

	cluster_new(3, 21);
	rig.cfg.spread = false;
	rig.cfg.calls_max = CALLS_MAX;
	memset(&load, 0, sizeof(load));
	params_make();
	cluster_boot(1);
	cluster_boot(2);
	cluster_boot(3);
	cluster_settle();

	load_run(true, 0, 100, 1000);
	rate = load.done * 1000 / 900;
	normal = p99_ms();
	EXPECT_UINT(load.refused, 0);
	before = terms();

	load_run(false, (uint32_t)(10 * rate / 3000), 500, 3000);
	EXPECT_UINT(terms(), before);
	EXPECT_TRUE(load.offered / 2500 * 1000 >= 9 * rate);
	EXPECT_UINT(load.done + load.refused, load.offered);
	EXPECT_TRUE(load.done * 1000 / 2500 > rate / 2);
	EXPECT_TRUE(p99_ms() < 5 * normal);

	sum = load.done_ever;
	load_run(true, 0, 100, 1000);
	EXPECT_TRUE(load.done * 1000 / 900 > rate * 9 / 10);
	EXPECT_TRUE(p99_ms() <= normal + 1);
	EXPECT_UINT(load.refused, 0);
	EXPECT_UINT(terms(), before);
	EXPECT_TRUE(load.done_ever > sum);
	EXPECT_UINT(load.unknown, 0);
	EXPECT_UINT(counted(), load.done_ever);

	while (asked_free != NULL) {
		struct asked *a = asked_free;

		asked_free = a->next;
		free(a);
	}
	params_free();
	cluster_end();
}
