/*
 * Three and five shards that talk, each on the real log, ballot, members and
 * transport in the seeded world: elections, replication, damage, snapshots.
 */
#include "tests/lib/replica_rig.h"

static struct cluster c;

static void setup(unsigned n, uint64_t seed)
{
	cluster_init(&c, n, seed);
}

static void teardown(void)
{
	cluster_free(&c);
}

TEST(three_elect_one_and_replicate)
{
	int l;

	setup(3, 1);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 100);
	cluster_settle(&c);
	EXPECT_UINT(c.committed, c.last);
	EXPECT_TRUE(c.last >= 101);
	cluster_run(&c, 5000);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_UINT(shard_leader(c.node[(l + 1) % 3].shard), l + 1);
	EXPECT_STR(c.wrong, "");
	teardown();
}

TEST(five_elect_one_and_replicate)
{
	setup(5, 2);
	cluster_boot_all(&c);
	(void)cluster_elect(&c);
	cluster_write(&c, 50);
	cluster_settle(&c);
	teardown();
}

TEST(a_dead_leader_is_replaced_and_comes_back)
{
	uint64_t before;
	uint64_t at;
	int l;

	setup(3, 3);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 20);
	before = c.committed;
	cluster_cut_power(&c, (unsigned)l);
	at = world_now_ms(c.w);
	EXPECT_INT(cluster_leader(&c), -1);
	(void)cluster_elect(&c);
	EXPECT_TRUE(world_now_ms(c.w) - at < 2000);
	cluster_write(&c, 20);
	EXPECT_TRUE(c.committed >= before + 20);
	cluster_boot(&c, (unsigned)l);
	cluster_settle(&c);
	EXPECT_UINT(c.node[l].now.index, c.last);
	teardown();
}

TEST(a_leader_that_is_cut_off_loses)
{
	uint64_t term;
	int was;
	int l;

	setup(3, 4);
	cluster_boot_all(&c);
	was = cluster_elect(&c);
	cluster_write(&c, 5);
	cluster_isolate(&c, (unsigned)was);
	/* What it proposes now is never committed. */
	cluster_propose(&c, 3);
	cluster_run(&c, 2000);
	EXPECT_UINT(c.node[was].leads, 0);
	EXPECT_FALSE(shard_leads(c.node[was].shard, &term));
	l = cluster_elect(&c);
	EXPECT_TRUE(l != was);
	cluster_write(&c, 30);
	cluster_heal(&c);
	cluster_settle(&c);
	/* With pre-vote its return moves no term. */
	EXPECT_INT(cluster_leader(&c), l);
	teardown();
}

/* Everything that was committed survives that all die at once. */
TEST(a_power_cut_of_all)
{
	uint64_t committed;
	unsigned round;
	unsigned i;

	setup(3, 5);
	cluster_boot_all(&c);
	for (round = 0; round < 10; round++) {
		(void)cluster_elect(&c);
		cluster_write(&c, 10 + round);
		cluster_propose(&c, 20);
		cluster_run(&c, round);
		committed = c.committed;
		for (i = 0; i < 3; i++)
			cluster_cut_power(&c, i);
		cluster_boot_all(&c);
		(void)cluster_elect(&c);
		EXPECT_TRUE(c.committed >= committed);
		cluster_settle(&c);
	}
	teardown();
}

static struct shard_stats stats_of(unsigned i)
{
	struct shard_stats stats;

	shard_stats(c.node[i].shard, &stats);
	return stats;
}

static struct shard_view view_of(unsigned i)
{
	struct shard_view view;

	shard_view(c.node[i].shard, &view);
	return view;
}

static void first_segment(void *arg, const char *name, uint64_t bytes)
{
	char *first = arg;

	(void)bytes;
	if (strstr(name, ".seg") != NULL && first[0] == '\0')
		(void)snprintf(first, 64, "%s", name);
}

/* A bit in the first batch that has any. */
static void damage_log(unsigned i)
{
	char name[64] = "";
	size_t bytes = 0;
	uint8_t *p;
	size_t at;

	world_files(c.w, i, first_segment, name);
	p = world_file(c.w, i, name, false, &bytes);
	EXPECT_NOT_NULL(p);
	for (at = 8192; at + 512 < bytes && p[at] == 0; at++)
		;
	free(p);
	EXPECT_RC(world_flip(c.w, i, name, at + 3, 1), RC_OK);
}

static uint64_t storm_installs;
static uint64_t storm_held;
static uint64_t storm_entries;
static uint64_t storm_damages;

/* One at a time, while all others are whole: then nothing may be lost. */
static void storm_damage(unsigned k)
{
	bool bad_state = world_random(c.w, 2) == 0;
	unsigned i;

	for (i = 0; i < c.n; i++)
		if (!c.node[i].up || view_of(i).health != SHARD_WHOLE)
			return;
	cluster_kill(&c, k);
	if (!bad_state)
		damage_log(k);
	(void)cluster_boot_bad(&c, k, bad_state);
	storm_damages++;
}

/* Kills, power cuts and cuts of links at random; at the end all is healed. */
static void storm(unsigned n, uint64_t seed, unsigned events)
{
	unsigned down = 0;
	unsigned i;
	unsigned k;

	setup(n, seed);
	c.bytes = 16 + (uint32_t)(seed * 977 % 5000);
	cluster_boot_all(&c);
	for (i = 0; i < events && c.wrong[0] == '\0'; i++) {
		k = (unsigned)world_random(c.w, n);
		switch (world_random(c.w, 8)) {
		case 6:
			storm_damage(k);
			break;
		case 0:
		case 1:
			if (c.node[k].up) {
				if (world_random(c.w, 2) == 0)
					cluster_kill(&c, k);
				else
					cluster_cut_power(&c, k);
				down++;
			} else {
				cluster_boot(&c, k);
				down--;
			}
			break;
		case 2:
			cluster_cut(
				&c, k,
				(k + 1 + (unsigned)world_random(c.w, n - 1)) %
					n);
			break;
		case 3:
			cluster_heal(&c);
			break;
		case 4:
			if (c.node[k].up)
				cr_save(&c.node[k]);
			break;
		default:
			break;
		}
		cluster_propose(&c, (unsigned)world_random(c.w, 40));
		cluster_run(&c, world_random(c.w, 700));
	}
	EXPECT_STR(c.wrong, "");
	cluster_heal(&c);
	for (k = 0; k < n; k++)
		if (!c.node[k].up)
			cluster_boot(&c, k);
	(void)cluster_elect(&c);
	cluster_write(&c, 5);
	cluster_settle(&c);
	for (k = 0; k < n; k++) {
		struct shard_stats stats;

		shard_stats(c.node[k].shard, &stats);
		storm_installs += stats.installs;
		storm_held += stats.held;
	}
	storm_entries += c.last;
	teardown();
}

TEST(storms)
{
	const char *from = getenv("STORM_SEED");
	const char *seeds = getenv("STORM_SEEDS");
	uint64_t seed = from != NULL ? strtoull(from, NULL, 0) : 1;
	uint64_t end = seed + (seeds != NULL ? strtoull(seeds, NULL, 0) : 20);

	for (; seed < end; seed++) {
		runner_context("seed %u", (unsigned)seed);
		storm(seed % 4 == 0 ? 5 : 3, seed, 60);
	}
	if (seeds != NULL)
		(void)printf("# %u entries, %u installs, %u damages, %u held\n",
			     (unsigned)storm_entries, (unsigned)storm_installs,
			     (unsigned)storm_damages, (unsigned)storm_held);
}

/* ---- snapshots ---- */

/* A follower is down while more is written than the others keep for it. */
static unsigned far_behind(uint64_t seed)
{
	unsigned f;
	int l;

	setup(3, seed);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 3);
	f = (unsigned)(l + 1) % 3;
	cluster_kill(&c, f);
	c.bytes = 64u << 10;
	cluster_write(&c, 150);
	cluster_run(&c, 500);
	cluster_write(&c, 2);
	EXPECT_TRUE(stats_of((unsigned)l).trimmed > 20);
	EXPECT_TRUE(stats_of((unsigned)l).cached <
		    TRAILING_BYTES + TRAILING_BYTES / 2);
	return f;
}

TEST(a_follower_far_behind_gets_a_snapshot)
{
	unsigned f = far_behind(7);
	int l = cluster_leader(&c);

	cluster_boot(&c, f);
	cluster_settle(&c);
	EXPECT_UINT(stats_of(f).installs, 1);
	EXPECT_UINT(c.node[f].generation, 1);
	/* One stream, however often the core asked for it. */
	cluster_run(&c, 3000);
	EXPECT_UINT(stats_of((unsigned)l).exports, 1);
	EXPECT_UINT(stats_of(f).installs, 1);
	EXPECT_INT(cluster_leader(&c), l);
	/* It goes on from the log. */
	cluster_write(&c, 20);
	cluster_settle(&c);
	EXPECT_UINT(stats_of(f).installs, 1);
	/* And the hash is not kept in its ballot. */
	EXPECT_UINT(ballot_get(c.node[f].ballot, CR_SHARD).state_generation, 1);
	EXPECT_UINT(ballot_get(c.node[f].ballot, CR_SHARD).state_hash[0], 0);
	cluster_kill(&c, f);
	cluster_boot(&c, f);
	cluster_write(&c, 3);
	cluster_settle(&c);
	EXPECT_UINT(c.node[f].generation, 1);
	teardown();
}

/* While it streams the log goes on, and is kept: SN7. */
TEST(writes_during_a_stream)
{
	unsigned f = far_behind(8);
	unsigned i;

	c.bytes = 8u << 10;
	cluster_boot(&c, f);
	for (i = 0; i < 50; i++) {
		cluster_propose(&c, 20);
		cluster_run(&c, 10);
	}
	cluster_settle(&c);
	EXPECT_UINT(stats_of(f).installs, 1);
	teardown();
}

static void cut_bulk(unsigned f)
{
	unsigned k;

	for (k = 0; k < c.n; k++)
		if (k != f)
			fake_net_join(&c.net, f + 1, k + 1, LINK_BULK);
}

TEST(a_stream_starts_over_with_the_link)
{
	unsigned f = far_behind(9);
	unsigned i;

	cluster_boot(&c, f);
	for (i = 0; i < 2000 && c.node[f].staging == CR_STAGE_IDLE; i++)
		EXPECT_TRUE(cluster_step(&c));
	EXPECT_TRUE(c.node[f].staging != CR_STAGE_IDLE);
	cut_bulk(f);
	EXPECT_UINT(stats_of(f).installs, 0);
	cluster_settle(&c);
	EXPECT_UINT(stats_of(f).installs, 1);
	teardown();
}

TEST(the_leader_dies_while_it_streams)
{
	unsigned f = far_behind(10);
	int l = cluster_leader(&c);
	unsigned i;

	cluster_boot(&c, f);
	for (i = 0; i < 2000 && c.node[f].staging == CR_STAGE_IDLE; i++)
		EXPECT_TRUE(cluster_step(&c));
	cluster_cut_power(&c, (unsigned)l);
	(void)cluster_elect(&c);
	cluster_settle(&c);
	EXPECT_UINT(stats_of(f).installs, 1);
	cluster_boot(&c, (unsigned)l);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

/* The follower ends before or after each change of its disk, from the boot to
 * the end of the install, with power or without. */
static bool crash_in_install(uint64_t nth, bool after, bool power)
{
	struct world_fault fault = {
		.kind = after ? WORLD_CRASH_AFTER : WORLD_CRASH_BEFORE,
		.op = WORLD_CHANGE,
		.nth = nth,
	};
	unsigned f = far_behind(11);
	bool fired;
	unsigned i;

	cluster_boot(&c, f);
	world_fault(c.w, f, &fault);
	for (i = 0; i < 200 && world_alive(c.w, f) && stats_of(f).installs == 0;
	     i++)
		cluster_run(&c, 20);
	cluster_run(&c, 50);
	fired = !world_alive(c.w, f);
	world_faults_clear(c.w, f);
	if (fired) {
		if (power)
			cluster_cut_power(&c, f);
		else
			cluster_kill(&c, f);
		cluster_boot(&c, f);
		/* Old or new, and whole. */
		EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	}
	cluster_settle(&c);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
	return fired;
}

TEST(a_crash_at_every_step_of_an_install)
{
	uint64_t nth;

	for (nth = 1; nth < 200; nth++) {
		runner_context("change %u", (unsigned)nth);
		if (!crash_in_install(nth, nth % 2 == 0, nth % 3 != 0))
			break;
	}
	EXPECT_TRUE(nth > 15);
	EXPECT_TRUE(nth < 200);
}

/* ---- damage ---- */

TEST(a_damaged_log_is_rebuilt_from_a_leader)
{
	uint64_t term;
	unsigned f;
	int l;

	setup(3, 12);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	f = (unsigned)(l + 1) % 3;
	cluster_kill(&c, f);
	damage_log(f);
	cluster_write(&c, 3);
	cluster_boot(&c, f);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	EXPECT_HAS(view_of(f).why, "its log is damaged");
	term = shard_term(c.node[l].shard);
	EXPECT_FALSE(shard_confirms(c.node[f].shard, term));
	cluster_run(&c, 3000);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	EXPECT_TRUE(shard_confirms(c.node[f].shard, term));
	EXPECT_UINT(stats_of(f).installs, 1);
	EXPECT_UINT(shard_term(c.node[f].shard), term);
	cluster_write(&c, 10);
	cluster_settle(&c);
	/* And it counts again. */
	cluster_kill(&c, (f + 1) % 3);
	(void)cluster_elect(&c);
	cluster_write(&c, 10);
	teardown();
}

/* It stood for election, and nobody heard of it. */
static void raise_term(unsigned i, uint64_t by)
{
	struct ballot_change change = { .shard = CR_SHARD };
	struct ballot *b;

	EXPECT_RC(ballot_open(world_disk(c.w, i), c.log_cfg.shards, &b, NULL),
		  RC_OK);
	change.slot = ballot_get(b, CR_SHARD);
	change.slot.term += by;
	change.slot.vote = i + 1;
	EXPECT_RC(ballot_write(b, &change, 1, NULL), RC_OK);
	ballot_close(b);
}

TEST(a_damaged_log_of_a_later_term)
{
	uint64_t term;
	unsigned f;
	int l;

	setup(3, 21);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	term = shard_term(c.node[l].shard);
	f = (unsigned)(l + 1) % 3;
	cluster_kill(&c, f);
	raise_term(f, 3);
	damage_log(f);
	cluster_write(&c, 3);
	cluster_boot(&c, f);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	EXPECT_UINT(shard_term(c.node[f].shard), term + 3);
	cluster_run(&c, 5000);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	l = cluster_elect(&c);
	EXPECT_TRUE(shard_term(c.node[l].shard) > term + 3);
	cluster_write(&c, 10);
	cluster_settle(&c);
	teardown();
}

/* With the third dead nobody can say what it had acknowledged. */
TEST(a_damaged_log_waits_for_a_majority_without_it)
{
	unsigned f;
	unsigned d;
	int l;

	setup(3, 13);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	f = (unsigned)(l + 1) % 3;
	d = (unsigned)(l + 2) % 3;
	/* These are committed with its acknowledgement alone. */
	cluster_kill(&c, d);
	cluster_write(&c, 30);
	cluster_kill(&c, f);
	damage_log(f);
	cluster_boot(&c, f);
	cluster_run(&c, 5000);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	EXPECT_INT(cluster_leader(&c), -1);
	cluster_boot(&c, d);
	cluster_settle(&c);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	cluster_write(&c, 3);
	teardown();
}

/* The acknowledgements of a follower whose log is lost are in the leader's
 * count. If it came back with a copy of less, and voted, they would be gone. */
TEST(a_damaged_log_is_not_counted)
{
	unsigned f;
	unsigned d;
	int l;

	setup(3, 14);
	c.election_ms = 2000;
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	f = (unsigned)(l + 1) % 3;
	d = (unsigned)(l + 2) % 3;
	cluster_write(&c, 5);
	cluster_cut(&c, (unsigned)l, d);
	cluster_cut(&c, f, d);
	cluster_write(&c, 30);
	cluster_kill(&c, f);
	damage_log(f);
	cluster_boot(&c, f);
	/* The leader is still one: it has heard of `f` a moment ago. */
	cluster_run(&c, 1500);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	teardown();
}

static void damage_ballot(unsigned i)
{
	size_t bytes = 0;
	uint8_t *p = world_file(c.w, i, "ballot", false, &bytes);
	size_t at;

	EXPECT_NOT_NULL(p);
	free(p);
	for (at = 0; at < bytes; at += 512)
		EXPECT_RC(world_flip(c.w, i, "ballot", at + 8, 0), RC_OK);
}

TEST(a_lost_ballot_starts_in_a_new_term)
{
	uint64_t term;
	unsigned f;
	unsigned d;
	int l;

	setup(3, 15);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	f = (unsigned)(l + 1) % 3;
	d = (unsigned)(l + 2) % 3;
	cluster_kill(&c, f);
	damage_ballot(f);
	/* Whom it voted for may be the one that does not answer. */
	cluster_cut(&c, f, d);
	cluster_boot(&c, f);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	EXPECT_UINT(shard_leader(c.node[f].shard), 0);
	cluster_run(&c, 4000);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	/* It can ask who the others are now. */
	EXPECT_UINT(shard_leader(c.node[f].shard), (unsigned)l + 1);
	term = shard_term(c.node[l].shard);
	cluster_heal(&c);
	cluster_run(&c, 4000);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	EXPECT_TRUE(shard_term(c.node[f].shard) > term);
	(void)cluster_elect(&c);
	cluster_write(&c, 10);
	cluster_settle(&c);
	teardown();
}

TEST(a_bad_state_votes_and_is_replaced)
{
	unsigned f;
	unsigned d;
	unsigned k;
	int l;

	setup(3, 16);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	f = (unsigned)(l + 1) % 3;
	d = (unsigned)(l + 2) % 3;
	cr_save(&c.node[f]);
	cluster_run(&c, 100);
	cluster_kill(&c, f);
	(void)cluster_boot_bad(&c, f, true);
	EXPECT_INT(view_of(f).health, SHARD_STATE_BAD);
	EXPECT_UINT(shard_applied_index(c.node[f].shard), 0);
	for (k = 0; k < c.n; k++)
		if (k != f)
			fake_net_cut(&c.net, f + 1, k + 1, LINK_BULK);
	/* It acknowledges: these need it. */
	cluster_kill(&c, d);
	cluster_write(&c, 10);
	EXPECT_INT(view_of(f).health, SHARD_STATE_BAD);
	EXPECT_UINT(shard_applied_index(c.node[f].shard), 0);
	cluster_boot(&c, d);
	cluster_heal(&c);
	cluster_settle(&c);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	EXPECT_UINT(stats_of(f).installs, 1);
	cluster_kill(&c, f);
	cluster_boot(&c, f);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

TEST(a_bad_state_does_not_lead)
{
	unsigned f;
	unsigned d;
	unsigned k;
	int l;

	setup(3, 17);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	f = (unsigned)(l + 1) % 3;
	d = (unsigned)(l + 2) % 3;
	/* `d` is behind: of those that are left only `f` can be elected. */
	cluster_kill(&c, d);
	cluster_write(&c, 10);
	cluster_kill(&c, f);
	cluster_kill(&c, (unsigned)l);
	(void)cluster_boot_bad(&c, f, true);
	for (k = 0; k < c.n; k++)
		c.held_links[k][k] = false;
	cluster_boot(&c, d);
	EXPECT_INT(cluster_elect(&c), (int)d);
	EXPECT_TRUE(stats_of(f).elections > 0);
	cluster_write(&c, 5);
	cluster_settle(&c);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	cluster_boot(&c, (unsigned)l);
	cluster_settle(&c);
	teardown();
}

/* ---- handing over ---- */

TEST(leadership_is_handed_over)
{
	struct shard *leader;
	uint64_t term;
	uint64_t at;
	unsigned to;
	unsigned i;
	int l;

	setup(3, 18);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	leader = c.node[l].shard;
	cluster_write(&c, 10);
	to = (unsigned)(l + 1) % 3;
	EXPECT_RC(shard_transfer(c.node[to].shard, 0), RC_NOT_LEADER);
	EXPECT_RC(shard_transfer(leader, 9), RC_NOT_FOUND);
	EXPECT_RC(shard_transfer(leader, (unsigned)l + 1), RC_NOT_FOUND);
	term = shard_term(leader);
	cluster_propose(&c, 20);
	EXPECT_RC(shard_transfer(leader, to + 1), RC_OK);
	EXPECT_UINT(view_of((unsigned)l).transferee, to + 1);
	EXPECT_RC(shard_transfer(leader, to + 1), RC_CONFLICT);
	at = world_now_ms(c.w);
	for (i = 0; i < 100 && cluster_leader(&c) != (int)to; i++)
		cluster_run(&c, 5);
	EXPECT_INT(cluster_leader(&c), (int)to);
	EXPECT_TRUE(world_now_ms(c.w) - at < 100);
	EXPECT_UINT(shard_term(c.node[to].shard), term + 1);
	cluster_write(&c, 5);
	/* To nobody in particular, and back. */
	EXPECT_RC(shard_transfer(c.node[to].shard, 0), RC_OK);
	cluster_run(&c, 300);
	EXPECT_TRUE(cluster_leader(&c) != (int)to);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

TEST(a_hand_over_that_fails_is_given_up)
{
	unsigned to;
	int l;

	setup(3, 19);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	to = (unsigned)(l + 1) % 3;
	cluster_propose(&c, 5);
	cluster_cut(&c, (unsigned)l, to);
	EXPECT_RC(shard_transfer(c.node[l].shard, to + 1), RC_OK);
	cluster_run(&c, 1000);
	EXPECT_UINT(view_of((unsigned)l).transferee, 0);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_RC(shard_transfer(c.node[l].shard, to + 1), RC_NO_QUORUM);
	cluster_write(&c, 5);
	teardown();
}

/* SL1: the leader's disk hangs, its network does not. */
TEST(a_leader_whose_disk_hangs_hands_over)
{
	uint64_t at;
	unsigned i;
	int was;

	setup(3, 20);
	cluster_boot_all(&c);
	was = cluster_elect(&c);
	cluster_write(&c, 10);
	world_sync_time(c.w, (unsigned)was, 8000000, 8000001, 0, 0);
	at = world_now_ms(c.w);
	for (i = 0;
	     i < 400 && (cluster_leader(&c) == was || cluster_leader(&c) < 0);
	     i++) {
		cluster_propose(&c, 1);
		cluster_run(&c, 10);
	}
	EXPECT_STR(c.wrong, "");
	EXPECT_TRUE(cluster_leader(&c) >= 0);
	EXPECT_TRUE(cluster_leader(&c) != was);
	EXPECT_TRUE(world_now_ms(c.w) - at < 1500);
	cluster_write(&c, 5);
	world_sync_time(c.w, (unsigned)was, 50, 400, 0, 0);
	cluster_settle(&c);
	teardown();
}

/* LG9, SL2: a slow disk bounds what runs ahead, and stops nobody. */
TEST(a_slow_disk_bounds_the_tail)
{
	uint64_t most = 0;
	unsigned slow;
	unsigned i;
	int l;

	setup(3, 21);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	slow = (unsigned)(l + 1) % 3;
	world_sync_time(c.w, slow, 100000, 200000, 0, 0);
	c.bytes = 32u << 10;
	for (i = 0; i < 300; i++) {
		cluster_propose(&c, 4);
		cluster_run(&c, 5);
		if (stats_of(slow).cached > most)
			most = stats_of(slow).cached;
	}
	EXPECT_STR(c.wrong, "");
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_TRUE(c.committed > 500);
	EXPECT_TRUE(most < BEHIND_BYTES_MAX);
	world_sync_time(c.w, slow, 50, 400, 0, 0);
	cluster_settle(&c);
	teardown();
}

/* Its core was elected, whether or not it may execute. */
static bool step_leads_somewhere(const struct cluster *k, unsigned i)
{
	return shard_leader(k->node[i].shard) == i + 1;
}

/* DK3: a disk without room, and a log that cannot be recycled, stop nothing
 * while a majority has room. Who has none still votes. */
TEST(a_full_disk_stops_nobody)
{
	unsigned full;
	unsigned i;
	int l;

	setup(3, 22);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	full = (unsigned)l;
	c.node[full].hoards = true;
	world_capacity(c.w, full, 3u << 20);
	c.bytes = 32u << 10;
	cluster_write(&c, 400);
	EXPECT_TRUE(world_alive(c.w, full));
	cluster_run(&c, 1500);
	cluster_write(&c, 20);
	EXPECT_TRUE(cluster_leader(&c) != (int)full);
	EXPECT_TRUE(shard_full(c.node[full].shard));
	EXPECT_TRUE(shard_durable_index(c.node[full].shard) < c.committed);
	/* Its vote is needed. */
	for (i = 0; i < 3; i++)
		if (i != full && (int)i != cluster_leader(&c))
			break;
	l = cluster_leader(&c);
	cluster_run(&c, 1000);
	cluster_kill(&c, (unsigned)l);
	for (l = -1; l < 100 && !step_leads_somewhere(&c, i); l++)
		cluster_run(&c, 50);
	EXPECT_TRUE(step_leads_somewhere(&c, i));
	world_capacity(c.w, full, (uint64_t)1 << 40);
	c.node[full].hoards = false;
	cr_save(&c.node[full]);
	cluster_settle(&c);
	cluster_write(&c, 3);
	teardown();
}

static void shard_is_closed(void *arg)
{
	*(struct shard **)arg = NULL;
}

/* What waits for room in the log was acknowledged to nobody: a node that is
 * told to stop does not wait for it. */
TEST(a_full_log_does_not_hold_up_the_end)
{
	struct shard *closing;
	unsigned full;
	int l;

	setup(3, 30);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	full = (unsigned)(l + 1) % 3;
	c.node[full].hoards = true;
	world_capacity(c.w, full, 3u << 20);
	c.bytes = 32u << 10;
	cluster_write(&c, 400);
	cluster_run(&c, 500);
	closing = c.node[full].shard;
	EXPECT_TRUE(shard_durable_index(closing) < shard_last_index(closing));
	shard_close(closing, shard_is_closed, &c.node[full].shard);
	cluster_run(&c, 2000);
	EXPECT_TRUE(c.node[full].shard == NULL);
	cluster_kill(&c, full);
	world_capacity(c.w, full, (uint64_t)1 << 40);
	c.node[full].hoards = false;
	cluster_boot(&c, full);
	cluster_settle(&c);
	cluster_write(&c, 3);
	teardown();
}

/* DK3: a voter that has no room for more acknowledges no more and takes no
 * copy; its leader knows, and it comes after when it has. */
TEST(a_full_voter_takes_nothing)
{
	struct transport_stats before;
	struct transport_stats after;
	struct shard_view view;
	uint64_t held;
	unsigned full;
	unsigned i;
	int l;

	setup(3, 29);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	cluster_settle(&c);
	full = (unsigned)(l + 1) % 3;
	held = shard_last_index(c.node[full].shard);
	shard_room(c.node[full].shard, true, true);
	c.bytes = 4u << 10;
	for (i = 0; i < 20; i++)
		cluster_write(&c, 20);
	cluster_run(&c, 500);
	/* It is not sent again and again what it drops. */
	transport_stats(c.node[full].transport, &before);
	cluster_run(&c, 2000);
	transport_stats(c.node[full].transport, &after);
	EXPECT_TRUE(after.bytes_in - before.bytes_in < 1u << 20);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_UINT(shard_last_index(c.node[full].shard), held);
	shard_view(c.node[l].shard, &view);
	EXPECT_UINT(view.peers_n, 2);
	for (i = 0; i < 2; i++)
		EXPECT_INT(view.peers[i].low,
			   view.peers[i].node_id == full + 1);
	shard_room(c.node[full].shard, false, false);
	cluster_settle(&c);
	cluster_write(&c, 3);
	shard_view(c.node[l].shard, &view);
	EXPECT_FALSE(view.peers[0].low);
	EXPECT_FALSE(view.peers[1].low);
	teardown();
}

/*
 * SO3: a voter ends after its vote has left and before it is durable, comes
 * back and votes again. Its log's writer begins late, so a message that does
 * not wait for it is far ahead.
 */
static void vote_and_forget(uint64_t seed)
{
	const struct world_latency slow = { 3000000, 3000001, 0, 1 };
	const struct world_latency quick = { 10, 20, 10, 20 };
	unsigned i;

	setup(3, seed);
	c.election_ms = 200;
	cluster_boot_all(&c);
	(void)cluster_elect(&c);
	cluster_write(&c, 5);
	cluster_settle(&c);
	for (i = 0; i < 3; i++)
		cluster_cut_power(&c, i);
	/* 1 and 2 know each other, and 2 is slow to keep what it promised. */
	cluster_cut(&c, 0, 2);
	cluster_cut(&c, 1, 2);
	cluster_boot(&c, 0);
	cluster_boot(&c, 1);
	cluster_run(&c, 30);
	world_latency(c.w, 1, ENV_WORKER_LOG, &slow);
	for (i = 0; i < 400 && c.node[0].elected + c.node[1].elected == 0; i++)
		cluster_run(&c, 5);
	cluster_cut_power(&c, 1);
	world_latency(c.w, 1, ENV_WORKER_LOG, &quick);
	/* Now 2 meets 3, which knows of nothing. */
	cluster_isolate(&c, 0);
	c.held_links[1][2] = false;
	cluster_boot(&c, 1);
	cluster_boot(&c, 2);
	cluster_run(&c, 3000);
	EXPECT_STR(c.wrong, "");
	EXPECT_TRUE(c.node[1].leads != 0 || c.node[2].leads != 0);
	cluster_heal(&c);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

TEST(so3_a_vote_is_durable_before_it_leaves)
{
	uint64_t seed;

	for (seed = 30; seed < 40; seed++)
		vote_and_forget(seed);
}

/* ---- partial partitions ---- */

/* What `from` sends does not reach `to`; the other way it does. */
static void deafen(unsigned from, unsigned to, bool on)
{
	unsigned k;

	for (k = 0; k < LINKS; k++)
		fake_net_end(&c.net, from + 1, to + 1, (enum link_kind)k)
			->lose = on ? UINT32_MAX : 0;
}

/* A link that loses messages is broken: transport drops it when it notices.
 * Here it never does, as with a cable that is cut one way. */
static void expect_back(int was, uint64_t ms)
{
	uint64_t at = world_now_ms(c.w);
	unsigned i;

	for (i = 0;
	     i < 400 && (cluster_leader(&c) == was || cluster_leader(&c) < 0);
	     i++)
		cluster_run(&c, 10);
	EXPECT_STR(c.wrong, "");
	EXPECT_TRUE(cluster_leader(&c) >= 0);
	EXPECT_TRUE(cluster_leader(&c) != was);
	EXPECT_TRUE(world_now_ms(c.w) - at < ms);
}

/* The leader and one follower do not see each other, the third sees both: the
 * leader stays, and so does the term. */
TEST(nw1_a_follower_without_its_leader)
{
	uint64_t term;
	unsigned a;
	int l;

	setup(3, 40);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 5);
	term = shard_term(c.node[l].shard);
	a = (unsigned)(l + 1) % 3;
	cluster_cut(&c, (unsigned)l, a);
	cluster_run(&c, 30000);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_UINT(shard_term(c.node[l].shard), term);
	cluster_write(&c, 5);
	cluster_heal(&c);
	cluster_settle(&c);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_UINT(shard_term(c.node[a].shard), term);
	teardown();
}

/* Five in a chain, the leader in the middle. */
TEST(nw2_a_chain_of_five)
{
	static const unsigned far[][2] = { { 0, 2 }, { 0, 3 }, { 0, 4 },
					   { 1, 3 }, { 1, 4 }, { 2, 4 } };
	uint64_t term;
	unsigned i;
	int l = -1;

	setup(5, 41);
	cluster_boot_all(&c);
	for (i = 0; i < 20 && l != 2; i++) {
		l = cluster_elect(&c);
		cluster_write(&c, 3);
		if (l != 2)
			(void)shard_transfer(c.node[l].shard, 3);
		cluster_run(&c, 500);
		l = cluster_leader(&c);
	}
	EXPECT_INT(l, 2);
	term = shard_term(c.node[2].shard);
	for (i = 0; i < 6; i++)
		cluster_cut(&c, far[i][0], far[i][1]);
	cluster_run(&c, 20000);
	EXPECT_INT(cluster_leader(&c), 2);
	EXPECT_UINT(shard_term(c.node[2].shard), term);
	cluster_write(&c, 5);
	cluster_heal(&c);
	cluster_settle(&c);
	teardown();
}

/* The leader is heard by all and hears nobody. */
TEST(nw3_a_deaf_leader)
{
	unsigned k;
	int was;

	setup(3, 42);
	cluster_boot_all(&c);
	was = cluster_elect(&c);
	cluster_write(&c, 5);
	for (k = 0; k < 3; k++)
		if ((int)k != was)
			deafen(k, (unsigned)was, true);
	expect_back(was, 2 * c.election_ms + c.election_ms + 900);
	cluster_write(&c, 5);
	for (k = 0; k < 3; k++)
		if ((int)k != was)
			deafen(k, (unsigned)was, false);
	cluster_settle(&c);
	teardown();
}

TEST(nw4_a_mute_leader)
{
	unsigned k;
	int was;

	setup(3, 43);
	cluster_boot_all(&c);
	was = cluster_elect(&c);
	cluster_write(&c, 5);
	for (k = 0; k < 3; k++)
		if ((int)k != was)
			deafen((unsigned)was, k, true);
	expect_back(was, 3 * c.election_ms);
	cluster_write(&c, 5);
	for (k = 0; k < 3; k++)
		if ((int)k != was)
			deafen((unsigned)was, k, false);
	cluster_settle(&c);
	teardown();
}

/* A node that was alone for long comes back and costs nobody the office. */
TEST(nw7_a_node_returns)
{
	uint64_t term;
	unsigned a;
	int l;

	setup(3, 44);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	a = (unsigned)(l + 1) % 3;
	cluster_write(&c, 5);
	term = shard_term(c.node[l].shard);
	cluster_isolate(&c, a);
	cluster_run(&c, 20000);
	cluster_write(&c, 5);
	cluster_heal(&c);
	cluster_settle(&c);
	cluster_run(&c, 5000);
	EXPECT_INT(cluster_leader(&c), l);
	EXPECT_UINT(shard_term(c.node[l].shard), term);
	teardown();
}

/* NW6: a link that comes and goes every second. */
TEST(nw6_a_link_that_flaps)
{
	uint64_t term;
	unsigned i;
	int l;

	setup(3, 45);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 5);
	term = shard_term(c.node[l].shard);
	for (i = 0; i < 60; i++) {
		cluster_cut(&c, (unsigned)l, (unsigned)(l + 1) % 3);
		cluster_run(&c, 1000);
		cluster_heal(&c);
		cluster_run(&c, 1000);
	}
	EXPECT_STR(c.wrong, "");
	/* At most one change in ten seconds. */
	EXPECT_TRUE(shard_term(c.node[l].shard) - term <= 12);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

/* SO2: the new leader's own disk is slow, its followers' are not: what it
 * commits by them it applies when it has it itself. */
TEST(so2_a_leader_with_a_slow_disk)
{
	unsigned slow;
	unsigned i;
	int l;

	setup(3, 46);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 10);
	slow = (unsigned)(l + 1) % 3;
	world_sync_time(c.w, slow, 150000, 200000, 0, 0);
	EXPECT_RC(shard_transfer(c.node[l].shard, slow + 1), RC_OK);
	for (i = 0; i < 200 && cluster_leader(&c) != (int)slow; i++)
		cluster_run(&c, 20);
	EXPECT_INT(cluster_leader(&c), (int)slow);
	for (i = 0; i < 20; i++) {
		cluster_propose(&c, 3);
		cluster_run(&c, 50);
		EXPECT_TRUE(shard_applied_index(c.node[slow].shard) <=
			    shard_durable_index(c.node[slow].shard));
	}
	EXPECT_STR(c.wrong, "");
	/* It loses what it has not synced, and nothing that was told. */
	cluster_cut_power(&c, slow);
	world_sync_time(c.w, slow, 50, 400, 0, 0);
	(void)cluster_elect(&c);
	cluster_boot(&c, slow);
	cluster_write(&c, 5);
	cluster_settle(&c);
	teardown();
}

/* SO8: a volume that was rolled back under a running name. */
TEST(so8_a_log_that_ends_below_what_it_acknowledged)
{
	const struct shard_peer *p = NULL;
	struct shard_view view;
	uint64_t before;
	unsigned f;
	unsigned i;
	int l;

	setup(3, 50);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	f = (unsigned)(l + 1) % 3;
	cluster_write(&c, 10);
	cluster_settle(&c);
	before = shard_last_index(c.node[f].shard);
	world_clone(c.w, f, 4);
	cluster_write(&c, 20);
	cluster_settle(&c);
	cluster_run(&c, 500);
	cluster_kill(&c, f);
	world_clone(c.w, 4, f);
	cluster_boot(&c, f);
	cluster_run(&c, 2000);
	EXPECT_INT(cluster_leader(&c), l);
	view = view_of((unsigned)l);
	for (i = 0; i < view.peers_n; i++)
		if (view.peers[i].node_id == f + 1)
			p = &view.peers[i];
	EXPECT_NOT_NULL(p);
	EXPECT_TRUE(p->refused);
	/* It is not levelled as if nothing had happened, nor made a leader. */
	EXPECT_UINT(shard_last_index(c.node[f].shard), before);
	EXPECT_RC(shard_transfer(c.node[l].shard, f + 1), RC_NO_QUORUM);
	cluster_write(&c, 5);
	EXPECT_UINT(shard_last_index(c.node[f].shard), before);
	teardown();
}

/* A leader that is idle speaks on a grid, with all other shards of its node. */
TEST(heartbeats_share_their_turns)
{
	uint64_t out = 0;
	unsigned beats = 0;
	uint64_t until;
	int l;

	setup(3, 51);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 5);
	cluster_run(&c, 1000);
	until = world_now_ms(c.w) + 2000;
	out = stats_of((unsigned)l).messages_out;
	while (world_now_ms(c.w) < until) {
		EXPECT_TRUE(cluster_step(&c));
		if (stats_of((unsigned)l).messages_out == out)
			continue;
		EXPECT_UINT(stats_of((unsigned)l).messages_out - out, 2);
		out += 2;
		beats++;
		/* Timers come up to a millisecond late. */
		EXPECT_TRUE(env_now_ms(c.node[l].env) % 10 <= 1);
	}
	EXPECT_TRUE(beats >= 30);
	EXPECT_TRUE(beats <= 41);
	teardown();
}

/* Two of five have lost their logs: three can say what is committed. */
TEST(two_damaged_logs_of_five)
{
	unsigned a;
	unsigned b;
	int l;

	setup(5, 52);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	cluster_settle(&c);
	a = (unsigned)(l + 1) % 5;
	b = (unsigned)(l + 2) % 5;
	cluster_kill(&c, a);
	cluster_kill(&c, b);
	damage_log(a);
	damage_log(b);
	cluster_boot(&c, a);
	cluster_boot(&c, b);
	EXPECT_INT(view_of(a).health, SHARD_LOG_BAD);
	EXPECT_INT(view_of(b).health, SHARD_LOG_BAD);
	cluster_write(&c, 5);
	cluster_settle(&c);
	EXPECT_INT(view_of(a).health, SHARD_WHOLE);
	EXPECT_INT(view_of(b).health, SHARD_WHOLE);
	teardown();
}

/* What `node reset` leaves: a formatted disk under an old id. */
TEST(a_disk_that_was_reset)
{
	uint64_t term;
	unsigned f;
	int l;

	setup(3, 53);
	cluster_boot_all(&c);
	l = cluster_elect(&c);
	cluster_write(&c, 30);
	cluster_settle(&c);
	f = (unsigned)(l + 1) % 3;
	cluster_kill(&c, f);
	world_wipe(c.w, f);
	cr_format(&c, f);
	(void)cluster_boot_bad(&c, f, true);
	EXPECT_INT(view_of(f).health, SHARD_LOG_BAD);
	EXPECT_HAS(view_of(f).why, "its disk was reset");
	term = shard_term(c.node[l].shard);
	cluster_write(&c, 5);
	cluster_settle(&c);
	EXPECT_INT(view_of(f).health, SHARD_WHOLE);
	EXPECT_TRUE(shard_term(c.node[f].shard) > term);
	teardown();
}

/* The state goes bad while the node leads: another leads, and sends its own. */
TEST(a_leader_whose_state_goes_bad)
{
	int was;
	int l;

	setup(3, 54);
	cluster_boot_all(&c);
	was = cluster_elect(&c);
	cluster_write(&c, 30);
	c.node[was].state_bad = true;
	shard_state_lost(c.node[was].shard,
			 &(struct detail){ .text = "a page fails" });
	cluster_run(&c, 1000);
	EXPECT_STR(c.wrong, "");
	l = cluster_leader(&c);
	EXPECT_TRUE(l >= 0);
	EXPECT_TRUE(l != was);
	cluster_write(&c, 10);
	cluster_settle(&c);
	EXPECT_INT(view_of((unsigned)was).health, SHARD_WHOLE);
	EXPECT_UINT(c.node[was].generation, 1);
	teardown();
}

/* Two of five have lost their ballots: each is no candidate to the other, and
 * the three can tell. Two of three is too many. */
TEST(two_disks_that_were_reset)
{
	unsigned n;
	unsigned a;
	unsigned b;
	int l;

	for (n = 3; n <= 5; n += 2) {
		setup(n, 55);
		cluster_boot_all(&c);
		l = cluster_elect(&c);
		cluster_write(&c, 30);
		cluster_settle(&c);
		a = (unsigned)(l + 1) % n;
		b = (unsigned)(l + 2) % n;
		cluster_kill(&c, a);
		cluster_kill(&c, b);
		world_wipe(c.w, a);
		world_wipe(c.w, b);
		cr_format(&c, a);
		cr_format(&c, b);
		(void)cluster_boot_bad(&c, a, true);
		(void)cluster_boot_bad(&c, b, true);
		if (n == 5) {
			cluster_write(&c, 5);
			cluster_settle(&c);
		}
		cluster_run(&c, 5000);
		EXPECT_INT(view_of(a).health,
			   n == 5 ? SHARD_WHOLE : SHARD_LOG_BAD);
		EXPECT_INT(view_of(b).health,
			   n == 5 ? SHARD_WHOLE : SHARD_LOG_BAD);
		teardown();
	}
}
