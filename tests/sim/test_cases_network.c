/*
 * Whole cores whose links, clocks and processes fail in the ways that have
 * stopped others: partial partitions, deaf and mute leaders, flapping links,
 * wrong clocks, pauses, storms. A test is called after its case in
 * tests/README.md.
 */
#include "node/base/mutant.h"
#include "objects/directory_class.h"
#include "tests/lib/cluster_rig.h"

#define ELECTION_MS 300u

/* ---- the cluster ---- */

static void begin(unsigned n, uint64_t seed)
{
	unsigned i;

	cluster_new(n, seed);
	rig.cfg.spread = false;
	for (i = 1; i <= n; i++)
		cluster_boot(i);
	cluster_settle();
}

static struct shard *shard_at(unsigned id, uint32_t s)
{
	return bridge_shard(core_bridge(cl.at[id].core, s));
}

/* The highest of a shard's terms. */
static uint64_t term_of(uint32_t s)
{
	uint64_t most = 0;
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (cl.at[i].core != NULL && shard_term(shard_at(i, s)) > most)
			most = shard_term(shard_at(i, s));
	return most;
}

static uint64_t terms(void)
{
	uint64_t sum = 0;
	uint32_t s;

	for (s = 0; s < rig.id.shards; s++)
		sum += term_of(s);
	return sum;
}

/* Elections that were won, by anybody. */
static uint64_t elections(void)
{
	struct shard_stats stats;
	uint64_t sum = 0;
	uint32_t s;
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		for (s = 0; cl.at[i].core != NULL && s < rig.id.shards; s++) {
			shard_stats(shard_at(i, s), &stats);
			sum += stats.elections;
		}
	return sum;
}

static unsigned gather_at;

static bool is_gathered(void)
{
	uint32_t s;

	for (s = 0; s < rig.id.shards; s++)
		if (cluster_owner(s) != gather_at)
			return false;
	return true;
}

/* One node owns every shard. */
static void gather(unsigned id)
{
	uint64_t end = world_now_ms(rig.w) + RIG_WAIT_MS;
	uint32_t s;
	unsigned o;

	gather_at = id;
	while (!is_gathered() && world_now_ms(rig.w) < end) {
		for (s = 0; s < rig.id.shards; s++) {
			o = cluster_owner(s);
			if (o != 0 && o != id)
				(void)core_transfer(cl.at[o].core, s, id);
		}
		cluster_run(200);
	}
	EXPECT_TRUE(is_gathered());
	cluster_settle();
}

static void cut_one_way(unsigned from, unsigned to)
{
	net_cut(cl.net, from - 1, to - 1);
}

/* ---- calls ---- */

static struct told *incr(unsigned id, const char *address)
{
	return cluster_start(id, "me", address, "incr", "{'key':'n'}",
			     "{'deadline_ms':300}");
}

static void write_ok(unsigned id, const char *address)
{
	struct told *t = rig_wait(incr(id, address));

	if (t->rc != RC_OK)
		FAIL("incr at node %u: %s: %s", id, rc_name(t->rc),
		     t->why.text);
}

#define TRIES_MAX 4096u
#define TRY_MS    10u

/* An object of default/dev in that shard. */
static const char *object_in(uint32_t shard)
{
	static char address[16];
	unsigned i;

	for (i = 0; i < 1000; i++) {
		snprintf(address, sizeof(address), "kv/o%u", i);
		if (cluster_shard("kv", address + 3) == shard)
			return address;
	}
	FAIL("no object in shard %u", shard);
}

/*
 * Calls at the nodes of `at` (bits) begin every 50 ms until one of each shard
 * was acknowledged: the milliseconds until then.
 */
static uint64_t writes_back(unsigned at, uint64_t limit_ms)
{
	static struct {
		struct told *told;
		uint32_t shard;
	} tries[TRIES_MAX];
	uint64_t begun = world_now_ms(rig.w);
	uint64_t asked = 0;
	uint64_t back = 0;
	unsigned n = 0;
	unsigned i;
	uint32_t s;

	while (world_now_ms(rig.w) - begun < limit_ms) {
		for (s = 0; world_now_ms(rig.w) >= asked && s < rig.id.shards;
		     s++)
			for (i = 1; (back >> s & 1) == 0 && i <= cl.n; i++) {
				if ((at >> i & 1) == 0)
					continue;
				if (n == TRIES_MAX)
					return UINT64_MAX;
				tries[n].shard = s;
				tries[n++].told = cluster_start(
					i, "me", object_in(s), "incr",
					"{'key':'b'}", "{'deadline_ms':300}");
			}
		if (world_now_ms(rig.w) >= asked)
			asked = world_now_ms(rig.w) + TRY_MS;
		cluster_run(5);
		for (i = 0; i < n; i++)
			if (tries[i].told->done && tries[i].told->rc == RC_OK)
				back |= UINT64_C(1) << tries[i].shard;
		if (back == (UINT64_C(1) << rig.id.shards) - 1)
			return world_now_ms(rig.w) - begun;
	}
	return UINT64_MAX;
}

static unsigned all_but(unsigned id)
{
	unsigned bits = 0;
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (i != id)
			bits |= 1u << i;
	return bits;
}

/* ---- partitions ---- */

/* Leader and A do not hear each other, B hears both: nobody is elected, and
 * no term goes up. */
TEST(nw1_a_partial_partition_moves_no_term)
{
	uint64_t before;
	unsigned a;
	unsigned i;

	begin(3, 1);
	gather(1);
	for (a = 2; a <= 3; a++) {
		before = terms();
		cluster_cut(1, a);
		for (i = 0; i < 60; i++) {
			write_ok(1, object_in(i % rig.id.shards));
			cluster_run(1000);
		}
		EXPECT_UINT(terms(), before);
		EXPECT_TRUE(is_gathered());
		net_mend_all(cl.net);
		cluster_settle();
		EXPECT_UINT(terms(), before);
	}
	cluster_end();
}

/* Who owns a shard and does not see the owner of the directory serves all the
 * same: a majority is there for both. */
TEST(nw1_a_partial_partition_stops_no_owner)
{
	unsigned i;

	begin(3, 2);
	gather(1);
	EXPECT_RC(core_transfer(cl.at[1].core, DIRECTORY_SHARD, 2), RC_OK);
	for (i = 0; i < 100 && cluster_owner(DIRECTORY_SHARD) != 2; i++)
		cluster_run(20);
	EXPECT_UINT(cluster_owner(DIRECTORY_SHARD), 2);
	cluster_settle();
	cluster_cut(1, 2);
	for (i = 0; i < 40; i++) {
		write_ok(1, object_in(1));
		cluster_run(1000);
	}
	EXPECT_UINT(cluster_owner(1), 1);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_end();
}

/* Five in a row, each with a link to its neighbours only, the leader in the
 * middle. */
TEST(nw2_a_chain_of_five_keeps_its_leader)
{
	uint64_t before;
	unsigned a;
	unsigned b;
	unsigned i;

	begin(5, 2);
	gather(3);
	before = terms();
	for (a = 1; a <= 5; a++)
		for (b = a + 2; b <= 5; b++)
			cluster_cut(a, b);
	for (i = 0; i < 60; i++) {
		write_ok(3, object_in(i % rig.id.shards));
		cluster_run(1000);
	}
	EXPECT_UINT(terms(), before);
	EXPECT_TRUE(is_gathered());
	net_mend_all(cl.net);
	cluster_settle();
	EXPECT_UINT(terms(), before);
	cluster_end();
}

/* Its heartbeats arrive, and it hears of nobody: the others' answers do not. */
static uint64_t deaf(uint64_t seed)
{
	uint64_t ms;
	unsigned i;

	begin(3, seed);
	gather(1);
	for (i = 2; i <= 3; i++)
		cut_one_way(i, 1);
	ms = writes_back(all_but(1), 20000);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_end();
	return ms;
}

TEST(nw3_a_deaf_leader_resigns)
{
	uint64_t seed;

	for (seed = 1; seed <= 20; seed++) {
		uint64_t ms = deaf(seed);

		runner_context("seed %u", (unsigned)seed);
		EXPECT_TRUE(ms < 2 * ELECTION_MS + 300);
	}
}

static uint64_t mute(uint64_t seed)
{
	uint64_t ms;
	unsigned i;

	begin(3, seed);
	gather(1);
	for (i = 2; i <= 3; i++)
		cut_one_way(1, i);
	ms = writes_back(all_but(1), 20000);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_end();
	return ms;
}

TEST(nw4_a_mute_leader_is_replaced)
{
	uint64_t seed;

	for (seed = 1; seed <= 20; seed++) {
		uint64_t ms = mute(seed);

		runner_context("seed %u", (unsigned)seed);
		EXPECT_TRUE(ms < 2 * ELECTION_MS + 100);
	}
}

/* Five; all that the others hear goes through node 2, and node 1 leads. */
static uint64_t hub(uint64_t seed)
{
	uint64_t ms;
	unsigned a;
	unsigned b;

	begin(5, seed);
	gather(1);
	for (a = 1; a <= 5; a++)
		for (b = a + 1; b <= 5; b++)
			if (a != 2 && b != 2)
				cluster_cut(a, b);
	ms = writes_back(all_but(1), 20000);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_end();
	return ms;
}

TEST(nw4_a_leader_that_one_hub_sees_resigns)
{
	uint64_t seed;

	for (seed = 1; seed <= 10; seed++) {
		uint64_t ms = hub(seed);

		runner_context("seed %u", (unsigned)seed);
		EXPECT_TRUE(ms < 1400);
	}
}

/* A link of the leader that is there for a second and away for one. */
TEST(nw6_a_flapping_link_changes_no_leader)
{
	uint64_t before;
	unsigned i;

	begin(3, 6);
	gather(1);
	before = elections();
	for (i = 0; i < 150; i++) {
		cluster_cut(1, 2);
		cluster_run(500);
		write_ok(3, object_in(i % rig.id.shards));
		cluster_run(500);
		net_mend_all(cl.net);
		cluster_run(500);
		write_ok(2, object_in(i % rig.id.shards));
		cluster_run(500);
	}
	EXPECT_TRUE(elections() - before <= 30);
	cluster_settle();
	cluster_end();
}

/* Alone for a minute, it comes back with nothing to say. */
TEST(nw7_who_was_alone_comes_back_quietly)
{
	uint64_t before;
	unsigned i;

	begin(3, 7);
	gather(1);
	before = terms();
	for (i = 0; i < 5; i++) {
		cluster_isolate(2 + i % 2);
		cluster_run(60000);
		write_ok(1, object_in(i % rig.id.shards));
		net_mend_all(cl.net);
		cluster_settle();
		cluster_run(2000);
		EXPECT_UINT(terms(), before);
		EXPECT_TRUE(is_gathered());
	}
	cluster_end();
}

/* ---- counters ---- */

/* Increments of one object each, at any node; what was answered says between
 * which bounds the counter is in the end. */
#define COUNTS_MAX 20000u

static struct {
	struct told *told[COUNTS_MAX];
	uint32_t shard[COUNTS_MAX];
	unsigned n;
} counts;

static void count(unsigned id, uint32_t shard)
{
	if (cl.at[id].core == NULL || counts.n == COUNTS_MAX)
		return;
	counts.shard[counts.n] = shard;
	counts.told[counts.n] = incr(id, object_in(shard));
	if (counts.told[counts.n]->call != NULL)
		counts.n++;
}

static unsigned counts_acked(uint32_t shard)
{
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < counts.n; i++)
		n += counts.shard[i] == shard && counts.told[i]->done &&
		     counts.told[i]->rc == RC_OK;
	return n;
}

/* No value was given twice, and what was acknowledged is there. */
static void counts_check(unsigned id)
{
	static bool given[COUNTS_MAX + 1];
	const struct told *t;
	struct told *got;
	uint64_t value;
	unsigned open;
	unsigned i;
	uint32_t s;

	for (s = 0; s < rig.id.shards; s++) {
		memset(given, 0, sizeof(given));
		for (i = 0, open = 0; i < counts.n; i++) {
			t = counts.told[i];
			if (counts.shard[i] != s)
				continue;
			if (!t->done || t->outcome == OUTCOME_UNKNOWN)
				open++;
			if (!t->done || t->rc != RC_OK)
				continue;
			value = say_u64(rig_result(t), "value");
			CHECK(value <= COUNTS_MAX);
			if (given[value])
				FAIL("shard %u gave %u twice", s,
				     (unsigned)value);
			given[value] = true;
		}
		got = cluster_ask(id, "me", object_in(s), "get", "{'key':'n'}",
				  NULL);
		if (got->rc != RC_NOT_FOUND)
			EXPECT_RC(got->rc, RC_OK);
		value = got->rc != RC_OK ? 0
					 : say_u64(rig_result(got), "value");
		if (value < counts_acked(s) || value > counts_acked(s) + open)
			FAIL("shard %u is at %u: %u acknowledged, %u open", s,
			     (unsigned)value, counts_acked(s), open);
	}
	counts.n = 0;
}

/* ---- clocks ---- */

/* Wall clocks go an hour back and forth: nobody is elected, nothing is old. */
TEST(ck1_wall_clocks_that_jump)
{
	static const int64_t steps[] = { 3600000, -3600000, -3600000, 3600000 };
	uint64_t before;
	unsigned round = 0;
	unsigned id;
	unsigned i;

	begin(3, 11);
	gather(1);
	before = terms();
	for (id = 1; id <= 3; id++)
		for (i = 0; i < ARRAY_LEN(steps); i++) {
			char want[64];

			world_wall_jump(rig.w, id - 1, steps[i]);
			cluster_run(1500);
			write_ok(1 + round++ % 3, "kv/w");
			snprintf(want, sizeof(want), "%u", round);
			EXPECT_UINT(
				say_u64(rig_result(cluster_ask(
						1 + round % 3, "me", "kv/w",
						"get", "{'key':'n'}", NULL)),
					"value"),
				round);
		}
	EXPECT_UINT(terms(), before);
	EXPECT_TRUE(is_gathered());
	cluster_end();
}

/* A read that began when `now` was acknowledged. */
static void never_older(struct told *t, uint64_t now)
{
	if (!t->done && t->call != NULL)
		rig_wait(t);
	if (t->done && t->rc == RC_OK)
		EXPECT_TRUE(say_u64(rig_result(t), "value") >= now);
}

/* Clocks that run 5 % too fast and too slow elect nobody; and the slow owner,
 * cut off, does not take itself for one for longer than it may. */
TEST(ck2_clocks_that_run_apart)
{
	struct told *reads[200];
	uint64_t before;
	unsigned n = 0;
	unsigned i;
	unsigned o;

	begin(3, 12);
	gather(1);
	world_drift(rig.w, 0, -50000);
	world_drift(rig.w, 1, 50000);
	world_drift(rig.w, 2, 50000);
	before = terms();
	for (i = 0; i < 120; i++) {
		write_ok(1 + i % 3, "kv/d");
		cluster_run(500);
	}
	EXPECT_UINT(terms(), before);
	EXPECT_TRUE(is_gathered());
	cluster_isolate(1);
	/* It still answers what began before; what begins when the others
	 * have written must not see less. */
	for (o = 0; o == 0;) {
		struct told *t = incr(2 + i++ % 2, "kv/d");

		cluster_run(5);
		o = t->done && t->rc == RC_OK;
	}
	while (n < ARRAY_LEN(reads)) {
		reads[n++] =
			cluster_start(1, "me", "kv/d", "get", "{'key':'n'}",
				      "{'deadline_ms':2000}");
		cluster_run(2);
	}
	for (i = 0; i < n; i++)
		never_older(reads[i], 121);
	net_mend_all(cl.net);
	cluster_settle();
	cluster_end();
}

static struct told *late_read;

static void read_late(void *arg)
{
	(void)arg;
	late_read = cluster_start(1, "me", "kv/p", "get", "{'key':'n'}",
				  "{'deadline_ms':2000}");
}

/* The owner stands still for longer than any timeout, after it was proved and
 * before it reads. */
TEST(ck3_a_pause_between_check_and_use)
{
	unsigned ms;

	for (ms = 250; ms <= 10000; ms += ms < 1000 ? 50 : 3000) {
		struct told *t = NULL;
		uint64_t end;
		bool others = false;

		runner_context("%u ms", ms);
		begin(3, 13);
		gather(1);
		/* What the owner allows does not wait for itself. */
		EXPECT_RC(core_transfer(cl.at[1].core, DIRECTORY_SHARD, 2),
			  RC_OK);
		cluster_run(500);
		cluster_settle();
		write_ok(1, "kv/p");
		late_read = NULL;
		end = world_now_ms(rig.w) + ms;
		world_pause(rig.w, 0, ms);
		world_at_ns(rig.w, 0, world_now_ns(rig.w), read_late, NULL);
		/* It is the first that the process finds when it goes on. */
		cluster_run(3);
		while (world_now_ms(rig.w) + 5 < end) {
			if (!others && (t == NULL || t->done))
				t = incr(2, "kv/p");
			cluster_run(5);
			others = others || (t->done && t->rc == RC_OK);
		}
		cluster_run(1000);
		EXPECT_NOT_NULL(late_read);
		if (others)
			never_older(late_read, 2);
		else
			never_older(late_read, 1);
		cluster_settle();
		cluster_end();
	}
}

/* ---- slow and dying processes ---- */

/* The owner gets a tenth of the time, in slices of `slice_ms`. */
static void tenth(uint64_t seed, uint32_t slice_ms, unsigned rounds)
{
	unsigned served = 0;
	unsigned owner;
	unsigned i;
	uint32_t s;

	begin(3, seed);
	gather(1);
	for (i = 0; i < rounds; i++) {
		owner = cluster_owner(1);
		if (owner == 0)
			owner = 1;
		world_pause(rig.w, owner - 1, slice_ms * 9 / 10);
		for (s = 0; s < rig.id.shards; s++)
			count(owner, s);
		cluster_run(slice_ms / 20);
		for (s = 0; s < rig.id.shards; s++)
			count(owner % 3 + 1, s);
		cluster_run(slice_ms - slice_ms / 20);
	}
	cluster_run(3000);
	for (s = 0; s < rig.id.shards; s++)
		served += counts_acked(s);
	/* Of two calls per shard and slice. */
	EXPECT_TRUE(served > rounds * rig.id.shards / 2);
	cluster_settle();
	counts_check(2);
	cluster_end();
}

TEST(sl3_an_owner_with_a_tenth_of_a_processor)
{
	tenth(14, 100, 300);
	tenth(15, 1000, 60);
	tenth(16, 4000, 30);
}

/* The process ends, or its machine. */
static void end_node(unsigned id)
{
	struct cluster_node *n = &cl.at[id];

	if (world_random(rig.w, 2) == 0) {
		cluster_kill(id);
		return;
	}
	net_down(cl.net, id - 1, true);
	world_power_cut(rig.w, id - 1);
	core_discard(n->core);
	directory_free(n->directory);
	bind_free(n->bind);
	memset(n, 0, sizeof(*n));
}

/* Nodes end every 1 to 3 s for five minutes, all at once too, and while they
 * recover; two seconds after the last of it there is service. */
TEST(rs1_a_storm_of_five_minutes)
{
	uint64_t end;
	unsigned down = 0;
	unsigned i;
	uint32_t s;

	begin(3, 17);
	end = world_now_ms(rig.w) + 300000;
	while (world_now_ms(rig.w) < end) {
		uint64_t next =
			world_now_ms(rig.w) + 1000 + world_random(rig.w, 2000);

		if (world_random(rig.w, 10) == 0)
			down = 7;
		else
			down = 1u << world_random(rig.w, 3);
		for (i = 1; i <= 3; i++)
			if ((down >> (i - 1) & 1) != 0)
				end_node(i);
		/* Back at once, or after a while; then perhaps again. */
		cluster_run(world_random(rig.w, 400));
		for (i = 1; i <= 3; i++)
			if ((down >> (i - 1) & 1) != 0)
				cluster_boot(i);
		if (world_random(rig.w, 4) == 0) {
			i = 1 + (unsigned)world_random(rig.w, 3);
			cluster_run(world_random(rig.w, 50));
			end_node(i);
			cluster_boot(i);
		}
		while (world_now_ms(rig.w) < next) {
			s = (uint32_t)world_random(rig.w, rig.id.shards);
			count(1 + (unsigned)world_random(rig.w, 3), s);
			cluster_run(20);
		}
	}
	EXPECT_TRUE(writes_back(14, 2000) < 2000);
	cluster_settle();
	EXPECT_TRUE(counts.n > 3000);
	counts_check(2);
	cluster_end();
}

/* Its log is 100 times as slow as the others': nobody but itself waits. */
static uint64_t p99_of(unsigned at, unsigned rounds)
{
	static uint64_t ms[4096];
	uint64_t begun;
	unsigned i;
	unsigned j;
	uint64_t x;

	CHECK(rounds <= ARRAY_LEN(ms));
	for (i = 0; i < rounds; i++) {
		begun = world_now_ns(rig.w);
		write_ok(at, object_in(i % rig.id.shards));
		ms[i] = (world_now_ns(rig.w) - begun) / 1000;
	}
	for (i = 1; i < rounds; i++)
		for (j = i; j > 0 && ms[j - 1] > ms[j]; j--) {
			x = ms[j];
			ms[j] = ms[j - 1];
			ms[j - 1] = x;
		}
	return ms[rounds * 99 / 100];
}

/* ---- a disk that is full ---- */

static bool nothing_at_2(void)
{
	uint32_t s;
	unsigned o;

	for (s = 0; s < rig.id.shards; s++) {
		o = cluster_owner(s);
		if (o == 0 || o == 2)
			return false;
	}
	return true;
}

static bool something_at_2(void)
{
	uint32_t s;

	for (s = 0; s < rig.id.shards; s++)
		if (cluster_owner(s) == 2)
			return true;
	return false;
}

/* One voter's disk is down to its reserve. What it owned is owned by those who
 * have room, so that nothing is refused; what they take does not end it. */
TEST(dk3_one_full_voter_stops_nothing)
{
	static char args[40u << 10];
	const uint64_t all = (uint64_t)1 << 40;
	uint32_t s;
	unsigned i;

	cluster_new(3, 31);
	rig.cfg.spread = true;
	rig.cfg.reserve_bytes = 4u << 20;
	for (i = 1; i <= 3; i++)
		cluster_boot(i);
	cluster_settle();
	EXPECT_TRUE(cluster_until(something_at_2, RIG_WAIT_MS));
	world_capacity(rig.w, 1, world_used(rig.w, 1) + (1u << 20));
	EXPECT_TRUE(cluster_until(nothing_at_2, 3000));
	cluster_settle();
	for (i = 0; i < 200; i++) {
		for (s = 0; s < rig.id.shards; s++) {
			snprintf(args, sizeof(args),
				 "{'key':'k%u','value':'%032768u'}", i, i);
			EXPECT_RC(cluster_ask(1, "me", object_in(s), "put",
					      args, NULL)
					  ->rc,
				  RC_OK);
		}
		EXPECT_TRUE(world_alive(rig.w, 1));
	}
	cluster_run(10000);
	EXPECT_TRUE(nothing_at_2());
	EXPECT_TRUE(world_alive(rig.w, 1));
	world_capacity(rig.w, 1, all);
	EXPECT_TRUE(cluster_until(something_at_2, 30000));
	cluster_settle();
	for (s = 0; s < rig.id.shards; s++)
		write_ok(2, object_in(s));
	cluster_end();
}

TEST(sl2_a_slow_follower_slows_nobody)
{
	uint64_t before;
	uint64_t slow;

	begin(3, 18);
	gather(1);
	before = p99_of(1, 1000);
	world_sync_time(rig.w, 2, 5000, 40000, 0, 0);
	slow = p99_of(1, 1000);
	/* The same on both. */
	world_sync_time(rig.w, 1, 5000, 40000, 0, 0);
	EXPECT_TRUE(p99_of(1, 200) > 3 * before);
	EXPECT_TRUE(slow < before + before / 2);
	world_sync_time(rig.w, 1, 50, 400, 0, 0);
	world_sync_time(rig.w, 2, 50, 400, 0, 0);
	EXPECT_TRUE(is_gathered());
	cluster_end();
}

/* ---- what a client is told ---- */

static struct told *get(unsigned id, const char *options)
{
	return cluster_start(id, "me", "kv/c", "get", "{'key':'n'}", options);
}

/* The client knows one node only: a follower, a follower without its leader,
 * or the leader that was. Within 200 ms it has an answer or an honest error. */
TEST(nw8_a_client_that_reaches_one_node_only)
{
	struct told *t[3];
	unsigned i;

	begin(3, 19);
	gather(1);
	write_ok(1, "kv/c");
	t[0] = get(2, NULL);
	t[1] = get(2, "{'route':'redirect'}");
	cluster_run(200);
	EXPECT_TRUE(t[0]->done);
	EXPECT_RC(t[0]->rc, RC_OK);
	EXPECT_TRUE(t[1]->done);
	EXPECT_RC(t[1]->rc, RC_NOT_OWNER);
	EXPECT_UINT(t[1]->owner, 1);
	/* The old leader alone, and the others' new one. */
	cluster_isolate(1);
	EXPECT_TRUE(writes_back(12, 2000) < 2000);
	cluster_run(1000);
	t[0] = get(1, NULL);
	t[1] = incr(1, "kv/c");
	t[2] = get(1, "{'route':'redirect'}");
	cluster_run(200);
	for (i = 0; i < 3; i++) {
		EXPECT_TRUE(t[i]->done);
		EXPECT_RC(t[i]->rc, RC_NO_QUORUM);
		EXPECT_INT(t[i]->outcome, OUTCOME_REFUSED);
	}
	net_mend_all(cl.net);
	cluster_settle();
	/* A follower that its leader cannot be reached from. */
	gather(1);
	cluster_cut(1, 2);
	cluster_run(2500);
	t[0] = get(2, NULL);
	t[1] = incr(2, "kv/c");
	t[2] = get(2, "{'route':'redirect'}");
	cluster_run(200);
	for (i = 0; i < 3; i++) {
		EXPECT_TRUE(t[i]->done);
		EXPECT_TRUE(t[i]->rc == RC_NO_QUORUM ||
			    t[i]->rc == RC_NOT_OWNER || t[i]->rc == RC_OK);
	}
	cluster_end();
}

/* ---- lagging ---- */

/* A node that was away comes back, on a thin line, under full load: it catches
 * up while the others go on. */
TEST(sl4_a_lagging_node_catches_up_under_load)
{
	char value[4096];
	char args[4200];
	uint64_t end;
	uint64_t last = 0;
	unsigned done = 0;
	unsigned i;

	begin(3, 20);
	gather(1);
	memset(value, 'x', sizeof(value) - 1);
	value[sizeof(value) - 1] = '\0';
	snprintf(args, sizeof(args), "{'key':'k','value':'%s'}", value);
	cluster_kill(3);
	for (i = 0; i < 3000; i++) {
		(void)cluster_start(1 + i % 2, "me", object_in(i % 4), "put",
				    args, NULL);
		cluster_run(2);
	}
	cluster_boot(3);
	end = world_now_ms(rig.w) + 20000;
	while (world_now_ms(rig.w) < end) {
		for (i = 0; i < 4; i++)
			(void)cluster_start(1 + i % 2, "me", object_in(i),
					    "put", args, NULL);
		cluster_run(2);
		done++;
		if (cl.at[3].core != NULL && cl.at[3].ready &&
		    shard_applied_index(shard_at(3, 1)) + 64 >=
			    shard_commit_index(shard_at(1, 1))) {
			last = world_now_ms(rig.w);
			break;
		}
	}
	EXPECT_TRUE(last != 0);
	EXPECT_TRUE(is_gathered());
	cluster_settle();
	cluster_end();
}
