/*
 * Three or five nodes on virtual time, joined by a queue, that tell each other
 * what the owners' now is.
 */
#include "node/core/stamps.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "node/core/stamp.h"
#include "raft-glue/le.h"
#include "tests/lib/fake_transport.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define SHARDS  4u
#define BEAT_MS 50u
#define S_NS    1000000000ull
#define MS_NS   1000000ull
#define HOUR_NS (3600 * S_NS)
#define DAY_MS  86400000

struct node {
	struct stamps *stamps;
	struct stamp owner[SHARDS]; /* While it owns. */
	bool owns[SHARDS];
	uint64_t last_ns[SHARDS];
	uint64_t wall_ms[SHARDS];
	unsigned ready;
	uint64_t ready_term;
	uint32_t ready_shard;
};

static struct world *w;
static struct node nodes[FAKE_NODES_MAX];

static struct env *env(unsigned id)
{
	return world_env(w, id - 1);
}

static uint64_t host_now(void *arg, uint32_t shard)
{
	struct node *n = arg;

	if (!n->owns[shard])
		return 0;
	return stamp_now(&n->owner[shard],
			 env_now_ns(env((unsigned)(n - nodes) + 1)));
}

static void host_last(void *arg, uint32_t shard, uint64_t *stamp_ns,
		      uint64_t *wall_ms)
{
	struct node *n = arg;

	*stamp_ns = n->last_ns[shard];
	*wall_ms = n->wall_ms[shard];
}

static void host_ready(void *arg, uint32_t shard, uint64_t term)
{
	struct node *n = arg;

	n->ready++;
	n->ready_shard = shard;
	n->ready_term = term;
}

static void boot(unsigned id)
{
	struct stamps_host host = { .now = host_now,
				    .last = host_last,
				    .ready = host_ready,
				    .arg = &nodes[id - 1] };

	memset(nodes[id - 1].owns, 0, sizeof(nodes[id - 1].owns));
	EXPECT_RC(stamps_new(env(id), &fake.at[id - 1], SHARDS, BEAT_MS, &host,
			     &nodes[id - 1].stamps),
		  RC_OK);
}

/* What it has heard is gone; what it has stored is not. */
static void restart(unsigned id)
{
	stamps_free(nodes[id - 1].stamps);
	boot(id);
}

static void begin(unsigned n)
{
	unsigned i;

	memset(nodes, 0, sizeof(nodes));
	w = world_new(5);
	fake_begin(n);
	for (i = 1; i <= n; i++)
		boot(i);
	fake_join_all();
}

static void finish(void)
{
	unsigned i;

	for (i = 1; i <= fake.nodes; i++)
		stamps_free(nodes[i - 1].stamps);
	fake_end();
	world_free(w);
}

static void run(uint64_t ms)
{
	uint64_t until = world_now_ms(w) + ms;

	while (world_now_ms(w) < until) {
		world_run_until(w, world_now_ms(w) + 5);
		fake_pump();
	}
}

static void own(unsigned id, uint32_t shard, uint64_t base_ns)
{
	stamp_lead_at(&nodes[id - 1].owner[shard], 0, base_ns,
		      env_now_ns(env(id)));
	nodes[id - 1].owns[shard] = true;
}

/* Everybody has stored the owner's now and the wall clock beside it. */
static void store(uint32_t shard, uint64_t stamp_ns)
{
	unsigned i;

	for (i = 0; i < fake.nodes; i++) {
		nodes[i].last_ns[shard] = stamp_ns;
		nodes[i].wall_ms[shard] = env_wall_ms(env(i + 1));
	}
}

static uint64_t elect(unsigned id, uint32_t shard, uint64_t term)
{
	struct node *n = &nodes[id - 1];
	uint64_t base = 0;

	n->ready = 0;
	stamps_elected(n->stamps, shard, term);
	EXPECT_UINT(n->ready, 0);
	run(2 * BEAT_MS);
	EXPECT_UINT(n->ready, 1);
	EXPECT_UINT(n->ready_term, term);
	EXPECT_UINT(n->ready_shard, shard);
	EXPECT_TRUE(stamps_ready(n->stamps, shard, term, &base));
	return base;
}

/* `ns` is `want`, or a little more. */
#define EXPECT_ABOUT(ns, want, slack)                        \
	do {                                                 \
		EXPECT_TRUE((ns) + 150 * MS_NS >= (want));   \
		EXPECT_TRUE((ns) <= (want) + (slack)*MS_NS); \
	} while (0)

TEST(time_goes_on_over_a_failover)
{
	begin(3);
	own(1, 2, 1000 * S_NS);
	store(2, 1000 * S_NS);
	run(5000);
	fake_cut(1, 2);
	fake_cut(1, 3);
	nodes[0].owns[2] = false;
	/* Whatever the wall clocks say. */
	world_wall_jump(w, 1, DAY_MS);
	world_wall_jump(w, 2, -DAY_MS);
	run(2000);
	EXPECT_ABOUT(elect(2, 2, 7), 1007 * S_NS, 200);
	finish();
}

TEST(the_other_one_alone_has_heard)
{
	begin(3);
	own(1, 0, 1000 * S_NS);
	store(0, 1000 * S_NS);
	run(5000);
	fake_cut(1, 2);
	fake_cut(1, 3);
	restart(2);
	world_wall_jump(w, 1, DAY_MS);
	run(1000);
	EXPECT_ABOUT(elect(2, 0, 7), 1006 * S_NS, 200);
	finish();
}

TEST(an_owner_that_comes_back_has_heard_itself)
{
	begin(3);
	own(1, 0, 1000 * S_NS);
	store(0, 1000 * S_NS);
	run(5000);
	nodes[0].owns[0] = false;
	stamps_lost(nodes[0].stamps, 0);
	restart(2);
	restart(3);
	world_wall_jump(w, 0, DAY_MS);
	run(1000);
	EXPECT_ABOUT(elect(1, 0, 7), 1006 * S_NS, 200);
	finish();
}

TEST(everybody_was_down)
{
	unsigned i;

	begin(3);
	store(0, 1000 * S_NS);
	for (i = 0; i < 3; i++)
		world_suspend(w, i, 3600000);
	EXPECT_ABOUT(elect(3, 0, 9), 1000 * S_NS + HOUR_NS, 300);
	finish();
}

TEST(a_clock_that_is_a_day_off_does_not_matter)
{
	unsigned off;
	unsigned up;

	for (off = 0; off < 3; off++)
		for (up = 0; up < 2; up++) {
			uint64_t base;

			runner_context("node %u, %s", off + 1,
				       up ? "ahead" : "behind");
			begin(3);
			store(0, 1000 * S_NS);
			world_wall_jump(w, off, up ? DAY_MS : -DAY_MS);
			run(10000);
			base = elect(2, 0, 9);
			EXPECT_TRUE(base >= 1000 * S_NS);
			EXPECT_TRUE(base <= 1011 * S_NS);
			finish();
		}
}

TEST(mutant_stamp_own_clock)
{
	begin(3);
	mutant_now = MUTANT_stamp_own_clock;
	store(0, 1000 * S_NS);
	world_wall_jump(w, 1, DAY_MS);
	EXPECT_TRUE(elect(2, 0, 9) > 1000 * S_NS + HOUR_NS);
	finish();
}

TEST(without_a_majority_it_waits)
{
	struct node *n;
	uint64_t base;

	begin(5);
	n = &nodes[0];
	fake_cut(1, 2);
	fake_cut(1, 3);
	fake_cut(1, 4);
	stamps_elected(n->stamps, 1, 3);
	run(1000);
	EXPECT_UINT(n->ready, 0);
	EXPECT_FALSE(stamps_ready(n->stamps, 1, 3, &base));
	/* It goes on asking. */
	fake_join(1, 4);
	run(2 * BEAT_MS);
	EXPECT_UINT(n->ready, 1);
	EXPECT_FALSE(stamps_ready(n->stamps, 1, 2, &base));
	EXPECT_FALSE(stamps_ready(n->stamps, 0, 3, &base));
	EXPECT_TRUE(stamps_ready(n->stamps, 1, 3, &base));
	EXPECT_UINT(base, STAMP_FIRST_NS);
	stamps_lost(n->stamps, 1);
	EXPECT_FALSE(stamps_ready(n->stamps, 1, 3, &base));
	finish();
}

TEST(answers_to_an_older_election_do_not_count)
{
	uint8_t word[24] = { 3 };
	uint64_t base;

	begin(3);
	stamps_elected(nodes[0].stamps, 1, 3);
	stamps_elected(nodes[0].stamps, 1, 4);
	le_put32(word + 4, 1);
	le_put64(word + 8, 3);
	le_put64(word + 16, 5 * S_NS);
	fake_say(CHANNEL_STAMP, 2, 1, word, sizeof(word));
	EXPECT_UINT(nodes[0].ready, 0);
	le_put64(word + 8, 4);
	fake_say(CHANNEL_STAMP, 2, 1, word, sizeof(word));
	EXPECT_UINT(nodes[0].ready, 1);
	EXPECT_TRUE(stamps_ready(nodes[0].stamps, 1, 4, &base));
	/* One more comes too late, and changes nothing. */
	fake_say(CHANNEL_STAMP, 3, 1, word, sizeof(word));
	EXPECT_UINT(nodes[0].ready, 1);
	EXPECT_UINT(fake.at[0].drops, 0);
	finish();
}

TEST(the_same_voter_twice_is_no_majority)
{
	uint8_t word[24] = { 3 };

	begin(5);
	stamps_elected(nodes[0].stamps, 1, 4);
	le_put32(word + 4, 1);
	le_put64(word + 8, 4);
	fake_say(CHANNEL_STAMP, 2, 1, word, sizeof(word));
	fake_say(CHANNEL_STAMP, 2, 1, word, sizeof(word));
	EXPECT_UINT(nodes[0].ready, 0);
	fake_say(CHANNEL_STAMP, 3, 1, word, sizeof(word));
	EXPECT_UINT(nodes[0].ready, 1);
	finish();
}

TEST(a_lone_voter_asks_nobody)
{
	uint64_t base;

	begin(1);
	stamps_elected(nodes[0].stamps, 0, 1);
	run(500);
	EXPECT_UINT(fake.at[0].sent, 0);
	EXPECT_FALSE(stamps_ready(nodes[0].stamps, 0, 1, &base));
	finish();
}

TEST(one_record_tells_of_all_shards)
{
	begin(3);
	own(1, 0, 10 * S_NS);
	own(1, 3, 20 * S_NS);
	fake.at[0].sent = 0;
	world_run_until(w, world_now_ms(w) + BEAT_MS + 10);
	EXPECT_UINT(fake.at[0].sent, 2);
	EXPECT_UINT(fake_next()->n, 4 + 2 * 12);
	finish();
}

TEST(what_is_no_record)
{
	static const uint8_t zero[64];
	uint8_t rec[64];
	unsigned drops = 0;
	unsigned kind;
	size_t n;

	begin(3);
	for (kind = 0; kind < 6; kind++)
		for (n = 0; n < sizeof(rec); n++) {
			memcpy(rec, zero, sizeof(rec));
			rec[0] = (uint8_t)kind;
			if ((kind == 1 && n == 4) || (kind == 2 && n == 16) ||
			    (kind == 3 && n == 24))
				continue; /* Those are good. */
			fake_say(CHANNEL_STAMP, 2, 1, rec, n);
			EXPECT_UINT(fake.at[0].drops, ++drops);
		}
	memcpy(rec, zero, sizeof(rec));
	rec[0] = 1;
	rec[2] = 1;
	rec[4] = SHARDS;
	fake_say(CHANNEL_STAMP, 2, 1, rec, 16);
	EXPECT_UINT(fake.at[0].drops, ++drops);
	rec[0] = 2;
	fake_say(CHANNEL_STAMP, 2, 1, rec, 16);
	EXPECT_UINT(fake.at[0].drops, ++drops);
	rec[0] = 3;
	fake_say(CHANNEL_STAMP, 2, 1, rec, 24);
	EXPECT_UINT(fake.at[0].drops, ++drops);
	rec[4] = 0;
	rec[23] = 0xff; /* No time. */
	fake_say(CHANNEL_STAMP, 2, 1, rec, 24);
	EXPECT_UINT(fake.at[0].drops, ++drops);
	finish();
}

/* An owner that was cut off tells a time that is behind. */
TEST(an_older_owner_does_not_turn_time_back)
{
	begin(3);
	own(1, 0, 1000 * S_NS);
	run(200);
	own(2, 0, 2000 * S_NS);
	run(200);
	EXPECT_ABOUT(elect(3, 0, 9), 2000 * S_NS, 700);
	finish();
}
