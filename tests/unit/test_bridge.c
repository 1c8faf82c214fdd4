/*
 * What joins a shard to its objects: turns become entries, marks become
 * indexes, and memory that runs out ends in an error or a clean stop.
 */
#include "tests/lib/core_rig.h"
#include "tests/lib/fault.h"

static uint64_t index_of(const struct told *t)
{
	struct pack_r r = pack_reader(t->result, t->result_n);
	struct pack_bytes meta;
	uint32_t n;

	EXPECT_RC(t->rc, RC_OK);
	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_RC(pack_skip(&r, &meta), RC_OK);
	return say_u64(meta, "index");
}

static struct told *put(const char *address)
{
	return rig_start("me", address, "put", "{'key':'k','value':1}",
			 "{'meta':true}");
}

static void one_shard(uint64_t seed)
{
	rig_new(seed);
	rig.id.shards = 1;
	rig_format();
	rig_boot();
}

TEST(the_effects_of_a_turn_share_an_entry)
{
	struct told *t[50];
	char address[32];
	uint64_t before;
	unsigned i;

	one_shard(1);
	for (i = 0; i < 50; i++) {
		snprintf(address, sizeof(address), "kv/%u", i);
		(void)rig_wait(put(address));
	}
	/* In memory: one turn, one entry, whatever the object. */
	before = rig_entries();
	for (i = 0; i < 50; i++) {
		snprintf(address, sizeof(address), "kv/%u", i);
		t[i] = put(address);
	}
	for (i = 0; i < 50; i++) {
		rig_wait(t[i]);
		EXPECT_UINT(index_of(t[i]), index_of(t[0]));
	}
	EXPECT_UINT(rig_entries() - before, 1);
	rig_end();
}

TEST(what_comes_while_the_log_writes_shares_the_next)
{
	struct told *first;
	struct told *t[20];
	unsigned i;

	one_shard(2);
	world_sync_time(rig.w, 0, 20000, 20000, 0, 0);
	(void)rig_wait(put("kv/a"));
	first = put("kv/a");
	world_step(rig.w);
	for (i = 0; i < 20; i++) {
		t[i] = put("kv/a");
		rig_pass(1);
	}
	rig_wait(first);
	for (i = 0; i < 20; i++)
		rig_wait(t[i]);
	EXPECT_UINT(index_of(t[0]), index_of(first) + 1);
	EXPECT_UINT(index_of(t[9]), index_of(t[0]));
	rig_end();
}

TEST(reads_write_nothing)
{
	uint64_t before;
	unsigned i;

	one_shard(3);
	(void)rig_wait(put("kv/a"));
	before = rig_entries();
	for (i = 0; i < 20; i++)
		EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
			  RC_OK);
	EXPECT_UINT(rig_entries(), before);
	rig_end();
}

/* An expiry between the newest stamp in the log and now is shown only when its
 * moment is in the log; afterwards it costs nothing. */
TEST(an_expiry_costs_one_tick)
{
	struct told *t[10];
	uint64_t before;
	unsigned i;

	one_shard(4);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1,'ttl_ms':500}",
		      "{'rev':1}");
	rig_pass(501);
	before = rig_entries();
	for (i = 0; i < 10; i++)
		t[i] = rig_start("me", "kv/a", "get", "{'key':'k'}", NULL);
	for (i = 0; i < 10; i++)
		EXPECT_RC(rig_wait(t[i])->rc, RC_NOT_FOUND);
	EXPECT_UINT(rig_entries(), before + 1);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	EXPECT_UINT(rig_entries(), before + 1);
	rig_end();
}

/* Two shards, and a log of four segments. */
static void small_log(uint64_t seed)
{
	rig_new(seed);
	rig.id.shards = 2;
	rig.cfg.log_bytes_max = 4 * SEGMENT_BYTES_MIN;
	rig_format();
	rig_boot();
}

static const char *large_put(void)
{
	static char args[60100];
	int n = snprintf(args, sizeof(args), "{'key':'k','value':'");

	memset(args + n, 'v', 60000);
	memcpy(args + n + 60000, "'}", 3);
	return args;
}

/* Many times what the log holds goes through it. */
TEST(the_log_is_trimmed_behind_what_is_checkpointed)
{
	const char *args;
	unsigned refused = 0;
	unsigned i;

	small_log(5);
	args = large_put();
	for (i = 0; i < 300; i++) {
		char address[32];
		struct told *t;

		snprintf(address, sizeof(address), "kv/%u", i % 5);
		t = rig_ask(address, "put", args, NULL);
		if (t->rc == RC_OVERLOADED) {
			/* Until the checkpoint that was asked for is made. */
			EXPECT_TRUE(t->retry_after_ms >= 0);
			refused++;
			rig_pass(200);
			continue;
		}
		EXPECT_RC(t->rc, RC_OK);
		rig_forget_calls();
	}
	EXPECT_TRUE(refused < 100);
	rig_kill();
	rig_boot();
	EXPECT_RC(rig_ask("kv/1", "get", "{'key':'k'}", NULL)->rc, RC_OK);
	rig_end();
}

static uint64_t last_of(uint32_t shard)
{
	return shard_last_index(bridge_shard(core_bridge(rig.core, shard)));
}

/* An object of this shard, with an entry there. */
static void object_of(uint32_t shard, char *address, size_t bytes)
{
	uint64_t before = last_of(shard);
	unsigned i;

	for (i = 0; last_of(shard) == before; i++) {
		EXPECT_TRUE(i < 100);
		snprintf(address, bytes, "kv/%u", i);
		EXPECT_RC(rig_ask(address, "put", large_put(), NULL)->rc,
			  RC_OK);
	}
}

/* What the log asked of a shard may have come to nothing. It asks once; the
 * next call that it stops asks again. */
TEST(a_full_log_is_freed_by_whom_it_refuses)
{
	char pinning[32];
	char other[32];
	struct log *log;
	struct told *t;
	unsigned i;

	small_log(6);
	log = core_log(rig.core);
	object_of(1, pinning, sizeof(pinning));
	object_of(0, other, sizeof(other));
	log_listen(log, 1, NULL);
	for (i = 0; !log_full(log, 1); i++) {
		EXPECT_TRUE(i < 1000);
		t = rig_ask(other, "put", large_put(), NULL);
		if (t->rc != RC_OVERLOADED)
			EXPECT_RC(t->rc, RC_OK);
		rig_forget_calls();
		rig_pass(200);
	}
	rig_pass(10000);
	EXPECT_TRUE(log_full(log, 1));
	EXPECT_RC(rig_ask(pinning, "put", large_put(), NULL)->rc,
		  RC_OVERLOADED);
	rig_pass(1000);
	EXPECT_FALSE(log_full(log, 1));
	rig_kill();
	rig_boot();
	EXPECT_RC(rig_ask(pinning, "get", "{'key':'k'}", NULL)->rc, RC_OK);
	rig_end();
}

/* ---- gathering ---- */

#define LIMIT_ASK "{'key':'a','cost':10}"

static void limiter(uint64_t seed)
{
	one_shard(seed);
	rig_expect_ok("rate_limiter/l", "put_policy",
		      "{'limit':1000,'period_ms':2000000000}", "{'rev':1}");
	rig_pass(1000);
}

static struct told *take(const char *options)
{
	return rig_start("me", "rate_limiter/l", "check", LIMIT_ASK, options);
}

static uint64_t remaining(void)
{
	struct told *t = rig_ask("rate_limiter/l", "peek", "{'key':'a'}", NULL);

	EXPECT_RC(t->rc, RC_OK);
	return say_u64(rig_result(t), "remaining");
}

/* Lagged effects of many turns share an entry; their answers do not wait. */
TEST(lagged_effects_are_gathered)
{
	uint64_t before;
	uint64_t from_ms;
	unsigned i;

	limiter(20);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	before = rig_entries();
	from_ms = world_now_ms(rig.w);
	for (i = 0; i < 5 * LAG_GATHER_MS; i += 2) {
		struct told *t = rig_wait(take(NULL));

		EXPECT_TRUE(t->at_ms <= from_ms + i);
		rig_pass(from_ms + i + 2 - world_now_ms(rig.w));
	}
	rig_pass(1000);
	EXPECT_TRUE(rig_entries() - before >= 5);
	EXPECT_TRUE(rig_entries() - before <= 6);
	EXPECT_UINT(remaining(), 1000 - 10 * (5 * LAG_GATHER_MS / 2 + 1));
	rig_end();
}

/* Units become entries in the order in which they were made. */
TEST(a_stronger_effect_takes_gathered_ones_along)
{
	struct told *lagged;
	struct told *t;
	uint64_t before;

	limiter(21);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	before = rig_entries();
	lagged = take(NULL);
	rig_wait(lagged);
	EXPECT_UINT(rig_entries(), before);
	t = rig_wait(take("{'durability':'committed'}"));
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_TRUE(t->at_ms < lagged->at_ms + LAG_GATHER_MS);
	if (mutant_now == MUTANT_none)
		EXPECT_UINT(rig_entries(), before + 1);
	rig_pass(1000);
	rig_kill();
	rig_boot();
	EXPECT_UINT(remaining(), 1000 - 30);
	rig_end();
}

/* Who waits for what is gathered does not wait for its time. */
TEST(a_waiting_read_hurries_gathered_effects)
{
	struct told *lagged;
	struct told *t;
	uint64_t before;

	limiter(22);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	before = rig_entries();
	lagged = rig_wait(take(NULL));
	EXPECT_UINT(rig_entries(), before);
	t = rig_ask("rate_limiter/l", "peek", "{'key':'a'}", NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_TRUE(t->at_ms < lagged->at_ms + LAG_GATHER_MS);
	EXPECT_UINT(rig_entries(), before + 1);
	/* And it is on the disk. */
	rig_power_cut();
	rig_boot();
	EXPECT_UINT(remaining(), 1000 - 20);
	rig_end();
}

/* Many at once do not wait either. */
TEST(gathered_effects_have_a_bound)
{
	static char args[800 * 140];
	uint64_t before;
	unsigned at;
	unsigned i;

	limiter(23);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	at = (unsigned)snprintf(args, sizeof(args), "{'checks':[");
	for (i = 0; i < 800; i++)
		at += (unsigned)snprintf(args + at, sizeof(args) - at,
					 "%s{'key':'%0100u'}", i > 0 ? "," : "",
					 i);
	(void)snprintf(args + at, sizeof(args) - at, "]}");
	before = rig_entries();
	EXPECT_RC(rig_ask("rate_limiter/l", "check_many", args, NULL)->rc,
		  RC_OK);
	rig_pass(1);
	EXPECT_UINT(rig_entries(), before + 1);
	rig_end();
}

/* More than an entry may have come while the log writes. */
TEST(an_entry_has_a_bound_of_units)
{
	uint64_t before;
	uint64_t left;
	unsigned i;

	rig_new(26);
	rig.id.shards = 1;
	rig.id.segment_bytes = SEGMENT_BYTES_DEFAULT;
	rig_format();
	rig_boot();
	rig_expect_ok("rate_limiter/l", "put_policy",
		      "{'limit':1000000,'period_ms':2000000000}", "{'rev':1}");
	rig_pass(1000);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	world_sync_time(rig.w, 0, 50000, 50000, 0, 0);
	before = rig_entries();
	(void)put("kv/a");
	world_step(rig.w);
	for (i = 0; i < ENTRY_UNITS_MAX + 1000; i++)
		EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	EXPECT_UINT(rig_entries(), before + 3);
	rig_kill();
	rig_boot();
	/* One comes back in two seconds. */
	left = remaining();
	EXPECT_TRUE(left >= 1000000 - 10 * (ENTRY_UNITS_MAX + 1001));
	EXPECT_TRUE(left < 1000000 - 10 * (ENTRY_UNITS_MAX + 1000));
	rig_end();
}

/* A clean end loses nothing. */
TEST(a_close_brings_gathered_effects_along)
{
	limiter(24);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_pass(1000);
	EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
	rig_close();
	rig_boot();
	EXPECT_UINT(remaining(), 1000 - 20);
	rig_end();
}

/* A killed owner loses what it had gathered, and no more than it may. */
TEST(a_kill_loses_what_is_gathered_only)
{
	uint64_t left;
	unsigned i;

	limiter(25);
	for (i = 0; i < 60; i++) {
		EXPECT_RC(rig_wait(take(NULL))->rc, RC_OK);
		rig_pass(1);
	}
	rig_kill();
	rig_boot();
	left = remaining();
	EXPECT_TRUE(left >= 1000 - 600);
	EXPECT_TRUE(left <= 1000 - 600 + 10 * (LAG_GATHER_MS + 5));
	rig_end();
}

/* ---- faults ---- */

TEST(a_failed_sync_is_the_end)
{
	struct told *t;

	one_shard(10);
	rig_expect_ok("kv/a", "incr", "{'key':'n'}", "{'value':1,'rev':1}");
	world_fault(rig.w, 0,
		    &(struct world_fault){ .kind = WORLD_EIO,
					   .op = WORLD_SYNC,
					   .nth = 1,
					   .prefix = "log" });
	t = rig_start("me", "kv/a", "incr", "{'key':'n'}", NULL);
	rig_pass(1000);
	EXPECT_FALSE(t->done);
	EXPECT_FALSE(world_alive(rig.w, 0));
	EXPECT_NOT_NULL(world_stopped(rig.w, 0));
	rig_power_cut();
	world_faults_clear(rig.w, 0);
	rig_boot();
	/* The one that was not acknowledged may be there or not. */
	t = rig_ask("kv/a", "incr", "{'key':'n'}", NULL);
	EXPECT_RC(t->rc, RC_OK);
	EXPECT_TRUE(say_u64(rig_result(t), "value") >= 2);
	rig_end();
}

TEST(memory_runs_out_while_it_opens)
{
	unsigned failed = 0;
	unsigned n;

	one_shard(11);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_close();
	for (n = 1;; n++) {
		struct detail why = { { 0 }, { 0 } };
		bool fired;
		enum rc rc;

		runner_context("allocation %u", n);
		fault_alloc(n);
		rc = rig_open(&why);
		fired = fault_off();
		if (!fired)
			break;
		if (rc == RC_OK) {
			/* Something that can do without. */
			EXPECT_TRUE(
				world_run_flag(rig.w, &rig.ready, RIG_WAIT_MS));
			rig_close();
			continue;
		}
		failed++;
		EXPECT_TRUE(rc == RC_NOMEM || rc == RC_IO);
		EXPECT_NULL(rig.core);
		world_kill(rig.w, 0);
	}
	EXPECT_TRUE(failed > 10);
	EXPECT_TRUE(world_run_flag(rig.w, &rig.ready, RIG_WAIT_MS));
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_end();
}

/* Every allocation of a call's life: it ends with an error, or the node stops;
 * what was acknowledged is there afterwards. */
TEST(memory_runs_out_during_a_call)
{
	uint64_t value = 0;
	unsigned errors = 0;
	unsigned stops = 0;
	unsigned calm = 0;
	unsigned n;

	rig_hold = fault_hold;
	rig_release = fault_release;
	one_shard(12);
	for (n = 1; calm < 20; n++) {
		struct told *t;
		uint64_t now;

		runner_context("allocation %u", n / 2 + 1);
		rig_forget_calls();
		/* Every other time the object is not in memory. */
		if (n % 4 == 0) {
			rig_kill();
			rig_boot();
		}
		fault_alloc(n / 2 + 1);
		t = rig_start("me", "kv/a", "incr", "{'key':'n'}",
			      n % 2 == 0 ? "{'idem':'x'}" : NULL);
		rig_pass(400);
		calm = fault_off() ? 0 : calm + 1;
		if (!world_alive(rig.w, 0)) {
			stops++;
			rig_kill();
			rig_boot();
		} else {
			EXPECT_TRUE(t->done || t->call == NULL);
			errors += t->rc != RC_OK || !t->done;
		}
		now = say_u64(rig_result(rig_ask("kv/a", "incr",
						 "{'key':'n','by':0}", NULL)),
			      "value");
		EXPECT_TRUE(now >= value);
		if (t->done && t->rc == RC_OK && n % 2 == 1)
			EXPECT_TRUE(now >= value + 1);
		if (t->done && t->outcome == OUTCOME_REFUSED && t->rc != RC_OK)
			EXPECT_UINT(now, value);
		EXPECT_TRUE(now <= value + 1);
		value = now;
	}
	EXPECT_TRUE(errors + stops > 5);
	rig_hold = NULL;
	rig_release = NULL;
	rig_end();
}
