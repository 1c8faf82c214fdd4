/*
 * Whole cores whose replicas compare what their states are: one whose rows
 * differ, with every checksum right, is found and taken anew from the others;
 * a copy that another voter contradicts is not taken.
 */
#include "node/base/mutant.h"
#include "objects/db.h"
#include "tests/lib/cluster_rig.h"

/* One shard of four each. */
#define QUICK_MS 100u
#define SLOW_MS  5000u

#define TAG_BYTES 16u /* At the end of what is sealed. */

static char object[32];
static uint32_t shard;
static unsigned owner;
static unsigned one;
static unsigned two;

static void put(const char *args)
{
	EXPECT_RC(cluster_ask(cluster_owner(shard), "me", object, "put", args,
			      NULL)
			  ->rc,
		  RC_OK);
}

static void begin(unsigned n, uint64_t seed, uint32_t scrub_ms)
{
	unsigned i = 0;

	cluster_segment_bytes = 4u << 20;
	cluster_new(n, seed);
	cluster_segment_bytes = SEGMENT_BYTES_MIN;
	rig.cfg.spread = false;
	rig.cfg.scrub_ms = scrub_ms;
	for (i = 1; i <= n; i++)
		cluster_boot(i);
	cluster_settle();
	i = 0;
	do {
		snprintf(object, sizeof(object), "kv/o%u", i++);
		shard = cluster_shard("kv", strchr(object, '/') + 1);
		owner = cluster_owner(shard);
	} while (owner == 0 || shard == 0);
	one = owner == 1 ? 2 : 1;
	two = owner + one == 3 ? 3 : 6 - owner - one;
	put("{'key':'m','value':10}");
}

static struct bridge *bridge_at(unsigned id)
{
	return core_bridge(cl.at[id].core, shard);
}

static struct compare_stats compares_of(unsigned id)
{
	struct compare_stats stats;

	bridge_compares(bridge_at(id), &stats);
	return stats;
}

static uint64_t installs_of(unsigned id)
{
	struct shard_stats stats;

	shard_stats(bridge_shard(bridge_at(id)), &stats);
	return stats.installs;
}

static enum shard_health health_of(unsigned id)
{
	struct shard_view view;

	shard_view(bridge_shard(bridge_at(id)), &view);
	return view.health;
}

static uint64_t value(unsigned id, const char *method, const char *args)
{
	struct told *t = cluster_ask(id, "me", object, method, args, NULL);

	if (t->rc != RC_OK)
		FAIL("%s: %s", rc_name(t->rc), t->why.text);
	return say_u64(rig_result(t), "value");
}

static uint64_t incr(unsigned id)
{
	return value(id, "incr", "{'key':'n'}");
}

/* What a test spoils: nobody writes it again. */
static uint64_t get(unsigned id)
{
	return value(id, "get", "{'key':'m'}");
}

static struct oid object_id(void)
{
	struct oid oid;

	placement_id(rig.id.hash_key, rig_bytes("default"), rig_bytes("dev"),
		     rig_bytes("kv"), rig_bytes(strchr(object, '/') + 1), &oid);
	return oid;
}

/* A row as it is read, and `by` added to the last byte of its value. */
struct wrong {
	struct unit_row row;
	uint8_t key[64];
	uint8_t value[256];
	uint8_t by;
};

static bool take_row(void *arg, const struct oid *oid,
		     const struct unit_row *row)
{
	struct wrong *x = arg;

	(void)oid;
	EXPECT_TRUE(row->key.n <= sizeof(x->key));
	EXPECT_TRUE(row->value.n > 0);
	EXPECT_TRUE(row->value.n <= sizeof(x->value));
	x->row = *row;
	memcpy(x->key, row->key.p, row->key.n);
	memcpy(x->value, row->value.p, row->value.n);
	x->value[row->value.n - 1 - TAG_BYTES] += x->by;
	x->row.key.p = x->key;
	x->row.value.p = x->value;
	return false;
}

/*
 * As if node `id` had applied something else: it stops, and its `m` is `by`
 * higher in its state, with every checksum and hash as they would be.
 */
static void apply_wrong(unsigned id, uint8_t by)
{
	struct oid oid = object_id();
	struct detail why = { .text = "" };
	struct wrong x = { .by = by };
	struct db_meta meta;
	struct db *db;

	cluster_run(500);
	cluster_close(id);
	if (db_open(world_disk(rig.w, id - 1), shard, 0, &db, &why) != RC_OK)
		FAIL("%s", why.text);
	EXPECT_RC(db_object(db, &oid, take_row, &x), RC_OK);
	EXPECT_TRUE(x.row.value.n > 0);
	meta = *db_meta(db);
	meta.conf = NULL;
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(db_put_row(db, &oid, &x.row), RC_OK);
	EXPECT_RC(db_commit(db, &meta), RC_OK);
	EXPECT_RC(db_checkpoint(db), RC_OK);
	db_close(db);
}

static bool owns_at_all(void)
{
	return cluster_owner(shard) != 0;
}

static void own(unsigned id)
{
	unsigned i;

	for (i = 0; i < 1000 && cluster_owner(shard) != id; i++) {
		unsigned at = cluster_owner(shard);

		if (at != 0)
			(void)core_transfer(cl.at[at].core, shard, id);
		cluster_run(20);
	}
	EXPECT_UINT(cluster_owner(shard), id);
}

static unsigned looked_at;

static bool is_whole(void)
{
	return health_of(looked_at) == SHARD_WHOLE &&
	       installs_of(looked_at) > 0;
}

static void expect_rebuilt(unsigned id)
{
	looked_at = id;
	if (!cluster_until(is_whole, 60000))
		FAIL("node %u is not rebuilt", id);
	EXPECT_TRUE(compares_of(id).differences > 0);
}

static uint64_t equal_from;

static bool are_equal(void)
{
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (cl.at[i].core != NULL && compares_of(i).index < equal_from)
			return false;
	return true;
}

/* From here on something is compared, and found the same by all. */
static void expect_equal(void)
{
	unsigned at;

	EXPECT_TRUE(cluster_until(owns_at_all, 5000));
	at = cluster_owner(shard);
	(void)incr(at);
	equal_from = shard_last_index(bridge_shard(bridge_at(at))) + 1;
	if (!cluster_until(are_equal, 60000))
		FAIL("the replicas are not found equal");
}

TEST(equal_replicas_are_left_alone)
{
	uint64_t compared;
	unsigned i;

	begin(3, 901, QUICK_MS);
	for (i = 0; i < 50; i++) {
		EXPECT_UINT(incr(1 + i % 3), i + 1);
		cluster_run(100);
	}
	expect_equal();
	for (i = 1; i <= 3; i++) {
		EXPECT_TRUE(compares_of(i).compared >= 5);
		EXPECT_UINT(compares_of(i).differences, 0);
		EXPECT_UINT(compares_of(i).undecided, 0);
		EXPECT_UINT(installs_of(i), 0);
	}
	/* A shard in which nothing happens is not compared again. */
	cluster_run(2000);
	compared = compares_of(1).compared;
	cluster_run(10000);
	EXPECT_UINT(compares_of(1).compared, compared);
	EXPECT_UINT(cluster_owner(shard), owner);
	cluster_end();
}

/* The entry of a scrub has no units: what comes behind it is in the next. */
TEST(what_comes_behind_a_scrub_is_kept)
{
	struct told *t;

	begin(3, 912, SLOW_MS);
	EXPECT_UINT(incr(owner), 1);
	bridge_scrub(bridge_at(owner));
	t = cluster_start(owner, "me", object, "incr", "{'key':'n'}", NULL);
	EXPECT_RC(rig_wait(t)->rc, RC_OK);
	cluster_run(100);
	own(one);
	EXPECT_UINT(incr(one), 3);
	cluster_end();
}

/* One that was on its way when the leadership ended will not come: the next is
 * asked for when this node leads again. */
TEST(a_scrub_that_is_lost_with_its_leadership)
{
	uint64_t compared;

	begin(3, 913, 1000000);
	EXPECT_UINT(incr(owner), 1);
	cluster_isolate(owner);
	bridge_scrub(bridge_at(owner));
	cluster_run(3000);
	EXPECT_TRUE(cluster_owner(shard) != owner);
	net_mend_all(cl.net);
	cluster_settle();
	EXPECT_UINT(incr(one), 2);
	own(owner);
	cluster_run(1000);
	compared = compares_of(owner).compared;
	bridge_scrub(bridge_at(owner));
	cluster_run(1000);
	EXPECT_TRUE(compares_of(owner).compared > compared);
	cluster_end();
}

TEST(a_replica_that_differs_is_rebuilt)
{
	unsigned i;

	begin(3, 902, QUICK_MS);
	for (i = 0; i < 5; i++)
		EXPECT_UINT(incr(owner), i + 1);
	apply_wrong(one, 3);
	cluster_boot(one);
	cluster_settle();
	EXPECT_UINT(incr(two), 6);
	expect_rebuilt(one);
	EXPECT_UINT(compares_of(one).confirmed, 1);
	EXPECT_UINT(installs_of(owner), 0);
	EXPECT_UINT(installs_of(two), 0);
	expect_equal();
	/* It may lead again, and has what the others have. */
	own(one);
	EXPECT_UINT(get(one), 10);
	cluster_end();
}

/* What it computes from a wrong state is replicated as any other effect; the
 * rest of its state is found. */
TEST(an_owner_that_differs_steps_down)
{
	begin(3, 903, SLOW_MS);
	EXPECT_UINT(incr(owner), 1);
	apply_wrong(one, 40);
	cluster_boot(one);
	cluster_settle();
	own(one);
	EXPECT_UINT(get(one), 50);
	expect_rebuilt(one);
	EXPECT_TRUE(cluster_until(owns_at_all, 5000));
	EXPECT_TRUE(cluster_owner(shard) != one);
	expect_equal();
	own(one);
	EXPECT_UINT(get(one), 10);
	cluster_end();
}

static void expect_nothing_done(unsigned id)
{
	EXPECT_TRUE(compares_of(id).undecided > 0);
	EXPECT_UINT(compares_of(id).differences, 0);
	EXPECT_UINT(installs_of(id), 0);
	EXPECT_INT(health_of(id), SHARD_WHOLE);
}

TEST(three_that_differ_rebuild_nobody)
{
	unsigned i;

	begin(3, 904, QUICK_MS);
	EXPECT_UINT(incr(owner), 1);
	cluster_run(1000);
	apply_wrong(one, 3);
	apply_wrong(two, 5);
	cluster_boot(one);
	cluster_boot(two);
	cluster_settle();
	(void)incr(owner);
	cluster_run(10000);
	for (i = 1; i <= 3; i++)
		expect_nothing_done(i);
	cluster_end();
}

TEST(one_against_one_rebuilds_nobody)
{
	begin(3, 905, QUICK_MS);
	EXPECT_UINT(incr(owner), 1);
	cluster_run(1000);
	apply_wrong(one, 3);
	cluster_kill(two);
	cluster_boot(one);
	cluster_settle();
	(void)incr(one);
	cluster_run(60000);
	expect_nothing_done(owner);
	expect_nothing_done(one);
	/* The third one decides it. */
	cluster_boot(two);
	cluster_settle();
	(void)incr(two);
	cluster_run(10000);
	EXPECT_UINT(installs_of(owner) + installs_of(one) + installs_of(two),
		    1);
	expect_equal();
	cluster_end();
}

/* ---- copies ---- */

static char large[3000];

/* It is given up by the log of the others. */
static void far_behind(unsigned id)
{
	char args[sizeof(large) + 64];
	unsigned i;

	memset(large, 'x', sizeof(large) - 1);
	if (cl.at[id].core != NULL)
		cluster_kill(id);
	for (i = 0; i < 2000; i++) {
		snprintf(args, sizeof(args), "{'key':'x%u','value':'%s'}",
			 i % 50, large);
		put(args);
	}
	cluster_run(1000);
}

static bool looked_at_installed(void)
{
	return installs_of(looked_at) > 0;
}

static void expect_installed(unsigned id, uint64_t within_ms)
{
	looked_at = id;
	EXPECT_TRUE(cluster_until(looked_at_installed, within_ms));
}

TEST(a_copy_is_what_another_voter_has)
{
	begin(3, 906, SLOW_MS);
	EXPECT_UINT(incr(owner), 1);
	far_behind(two);
	cluster_boot(two);
	expect_installed(two, 60000);
	EXPECT_UINT(compares_of(two).confirmed, 1);
	EXPECT_UINT(compares_of(two).alone, 0);
	EXPECT_UINT(compares_of(two).refused, 0);
	cluster_settle();
	expect_equal();
	cluster_end();
}

/* With nobody else to ask it is taken on its sender's word. */
TEST(a_copy_from_the_only_one_left)
{
	begin(3, 907, QUICK_MS);
	EXPECT_UINT(incr(owner), 1);
	far_behind(two);
	cluster_kill(one);
	cluster_boot(two);
	expect_installed(two, 60000);
	EXPECT_UINT(compares_of(two).confirmed, 0);
	EXPECT_UINT(compares_of(two).alone, 1);
	cluster_settle();
	EXPECT_UINT(incr(two), 2);
	cluster_end();
}

static bool is_refused(void)
{
	return compares_of(looked_at).refused > 0;
}

/* Its source is wrong, or the other one: nobody can tell. */
TEST(a_copy_that_another_voter_contradicts)
{
	begin(3, 908, QUICK_MS);
	EXPECT_UINT(incr(owner), 1);
	cluster_run(1000);
	cluster_kill(two);
	apply_wrong(one, 3);
	cluster_boot(one);
	cluster_settle();
	far_behind(two);
	cluster_boot(two);
	looked_at = two;
	if (!cluster_until(is_refused, 60000))
		FAIL("a copy that another voter does not have was taken");
	cluster_run(5000);
	EXPECT_UINT(installs_of(two), 0);
	/* The shard goes on. */
	(void)incr(cluster_owner(shard));
	cluster_end();
}

/* Of five the majority is right: the source is rebuilt, and then the copy is
 * taken from a good one. */
TEST(a_source_that_is_wrong_is_rebuilt_first)
{
	unsigned behind = 5;

	begin(5, 909, SLOW_MS);
	if (owner == behind)
		own(one);
	EXPECT_UINT(incr(owner), 1);
	cluster_run(1000);
	cluster_kill(behind);
	apply_wrong(one, 3);
	cluster_boot(one);
	cluster_settle();
	own(one);
	far_behind(behind);
	cluster_boot(behind);
	expect_installed(behind, 30000);
	EXPECT_TRUE(compares_of(behind).confirmed > 0);
	expect_rebuilt(one);
	cluster_settle();
	own(behind);
	EXPECT_UINT(get(behind), 10);
	cluster_end();
}
