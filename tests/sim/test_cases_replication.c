/*
 * One shard on three nodes whose disks, logs and snapshots fail or lag in the
 * ways that have lost others data. A test is called after its case in
 * tests/README.md.
 */
#include "tests/lib/replica_rig.h"

static struct cluster c;

static struct shard_stats stats_of(unsigned i)
{
	struct shard_stats stats;

	shard_stats(c.node[i].shard, &stats);
	return stats;
}

/* A leader, its number; two entries are committed. */
static int begin(uint64_t seed, uint32_t filler)
{
	int l;

	cluster_init(&c, 3, seed);
	c.filler = filler;
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 2);
	return l;
}

/*
 * A snapshot of 32 MB streams while megabytes are written and the log is
 * trimmed: there is one stream, and what follows it comes from the log.
 */
TEST(sn7_a_stream_while_the_log_is_trimmed)
{
	const struct world_latency slow = { 10000, 12000, 10, 20 };
	unsigned f;
	unsigned i;
	int l = begin(1, 32u << 20);

	f = (unsigned)(l + 1) % 3;
	cluster_kill(&c, f);
	c.bytes = 64u << 10;
	cluster_write(&c, 150);
	cluster_run(&c, 500);
	cluster_write(&c, 2);
	cluster_boot(&c, f);
	world_latency(c.w, f, ENV_WORKER_STORAGE, &slow);
	for (i = 0; i < 400 && stats_of(f).installs == 0; i++) {
		cluster_propose(&c, 1);
		cluster_run(&c, 10);
		cr_save(&c.node[l]);
	}
	EXPECT_TRUE(i > 60);
	EXPECT_STR(c.wrong, "");
	EXPECT_UINT(stats_of(f).installs, 1);
	cluster_settle(&c);
	cluster_run(&c, 3000);
	EXPECT_UINT(stats_of(f).installs, 1);
	EXPECT_UINT(stats_of((unsigned)l).exports, 1);
	EXPECT_INT(cluster_leader(&c), l);
	cluster_free(&c);
}

/* The owner's disk is far slower than the followers', and not so slow that it
 * is taken for hanging: they would commit whatever it proposes. */
TEST(lg9_a_leader_does_not_run_away_from_its_disk)
{
	struct shard *s;
	uint64_t most = 0;
	uint64_t ahead;
	unsigned i;
	int l = begin(2, 600u << 10);

	s = c.node[l].shard;
	world_sync_time(c.w, (unsigned)l, 100000, 150000, 0, 0);
	for (i = 0; i < 200; i++) {
		cluster_propose(&c, 400);
		cluster_run(&c, 10);
		ahead = shard_last_index(s) - shard_durable_index(s);
		if (ahead > most)
			most = ahead;
	}
	EXPECT_STR(c.wrong, "");
	EXPECT_TRUE(most > AHEAD_ENTRIES_MAX / 2);
	EXPECT_TRUE(most <= AHEAD_ENTRIES_MAX);
	EXPECT_INT(cluster_leader(&c), l);
	c.node[l].feed = 0;
	world_sync_time(c.w, (unsigned)l, 50, 400, 0, 0);
	cluster_settle(&c);
	cluster_free(&c);
}

/* A follower 100 times as slow holds up nobody, and what waits in its memory
 * has a bound. */
TEST(sl2_a_slow_follower_takes_no_more_than_it_can)
{
	uint64_t most = 0;
	uint64_t was;
	unsigned slow;
	unsigned i;
	int l = begin(3, 600u << 10);

	slow = (unsigned)(l + 1) % 3;
	c.bytes = 512u << 10;
	world_sync_time(c.w, slow, 6000000, 6000001, 0, 0);
	was = c.committed;
	for (i = 0; i < 250; i++) {
		cluster_propose(&c, 2);
		cluster_run(&c, 10);
		cr_save(&c.node[l]);
		if (stats_of(slow).cached > most)
			most = stats_of(slow).cached;
	}
	EXPECT_STR(c.wrong, "");
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_TRUE(c.committed - was >= 400);
	EXPECT_TRUE(most >= INFLIGHT_BYTES / 2);
	EXPECT_TRUE(most <= 2 * INFLIGHT_BYTES);
	world_sync_time(c.w, slow, 50, 400, 0, 0);
	cluster_run(&c, 10000);
	cluster_settle(&c);
	cluster_free(&c);
}

/* A follower that lags under full load by some megabytes, and answers, catches
 * up from the log: no snapshot is sent that would be too old when it comes. */
TEST(sl4_a_lagging_follower_catches_up_from_the_log)
{
	unsigned slow;
	unsigned i;
	int l = begin(4, 600u << 10);

	slow = (unsigned)(l + 1) % 3;
	c.bytes = 64u << 10;
	world_sync_time(c.w, slow, 600000, 700000, 0, 0);
	for (i = 0; i < 120; i++) {
		cluster_propose(&c, 2);
		cluster_run(&c, 10);
		cr_save(&c.node[l]);
	}
	world_sync_time(c.w, slow, 50, 400, 0, 0);
	for (i = 0; i < 200; i++) {
		cluster_propose(&c, 1);
		cluster_run(&c, 10);
		cr_save(&c.node[l]);
	}
	EXPECT_STR(c.wrong, "");
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_TRUE(c.node[slow].now.index + 64 >= c.committed);
	EXPECT_UINT(stats_of(slow).installs, 0);
	cluster_settle(&c);
	cluster_free(&c);
}

/* ---- failures of a disk ---- */

/* One write or sync of the leader fails, and all after it would succeed. It
 * ends, the others go on, and it comes back with all that it knew. */
static void fail_once(enum world_fault_kind kind, enum world_op op,
		      uint64_t nth)
{
	const struct world_fault fault = { .kind = kind, .op = op, .nth = nth };
	uint64_t begun;
	unsigned i;
	int l = begin(5 + nth, 600u << 10);

	world_fault(c.w, (unsigned)l, &fault);
	for (i = 0; i < 200 && world_faults_fired(c.w, (unsigned)l) == 0; i++) {
		cluster_propose(&c, 1);
		cluster_run(&c, 5);
	}
	EXPECT_UINT(world_faults_fired(c.w, (unsigned)l), 1);
	begun = world_now_ms(c.w);
	while (world_alive(c.w, (unsigned)l) && world_now_ms(c.w) - begun < 100)
		cluster_run(&c, 5);
	EXPECT_FALSE(world_alive(c.w, (unsigned)l));
	cluster_cut_power(&c, (unsigned)l);
	cluster_write(&c, 10);
	EXPECT_STR(c.wrong, "");
	cluster_boot(&c, (unsigned)l);
	cluster_settle(&c);
	cluster_free(&c);
}

TEST(dk2_a_disk_that_fails_once_ends_its_node_and_no_other)
{
	static const enum world_fault_kind kinds[] = { WORLD_EIO, WORLD_SHORT,
						       WORLD_NO_SPACE };
	uint64_t nth;
	size_t i;

	for (nth = 1; nth <= 8; nth++) {
		runner_context("sync %u", (unsigned)nth);
		fail_once(WORLD_EIO, WORLD_SYNC, nth);
		for (i = 0; i < ARRAY_LEN(kinds); i++) {
			runner_context("write %u, kind %d", (unsigned)nth,
				       (int)kinds[i]);
			fail_once(kinds[i], WORLD_WRITE, nth);
		}
	}
}

/* ---- entries that cannot be digested ---- */

static unsigned undigested;

static enum rc picky_apply(struct app *a, uint64_t index, uint64_t term,
			   const void *data, size_t bytes)
{
	uint64_t value;

	memcpy(&value, data, sizeof(value));
	if (value == 20) {
		undigested++;
		return RC_CORRUPT;
	}
	return cr_app_apply(a, index, term, data, bytes);
}

static struct app_ops picky;

static void boot_picky(unsigned i)
{
	cluster_boot(&c, i);
	c.node[i].app.ops = &picky;
}

/* All replicas stop before it, alike, and stay up; so they do after they were
 * started again, and again. */
TEST(rs2_an_entry_that_nobody_digests)
{
	struct shard_view view;
	uint64_t at;
	unsigned round;
	unsigned i;

	picky = cr_ops;
	picky.apply = picky_apply;
	undigested = 0;
	cluster_init(&c, 3, 6);
	for (i = 0; i < 3; i++)
		boot_picky(i);
	(void)cluster_elect(&c);
	cluster_write(&c, 10);
	cluster_propose(&c, 30);
	cluster_run(&c, 2000);
	EXPECT_UINT(undigested, 3);
	at = c.last;
	for (round = 0; round < 3; round++) {
		for (i = 0; i < 3; i++) {
			EXPECT_TRUE(world_alive(c.w, i));
			shard_view(c.node[i].shard, &view);
			EXPECT_INT(view.health, SHARD_STUCK);
			EXPECT_HAS(view.why, "cannot be digested");
			EXPECT_UINT(shard_applied_index(c.node[i].shard), at);
		}
		EXPECT_INT(cluster_leader(&c), -1);
		for (i = 0; i < 3; i++)
			cluster_kill(&c, i);
		for (i = 0; i < 3; i++)
			boot_picky(i);
		cluster_run(&c, 3000);
	}
	EXPECT_STR(c.wrong, "");
	cluster_free(&c);
}
