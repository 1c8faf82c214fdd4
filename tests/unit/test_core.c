/*
 * A whole core - calls, shards, log, storage, both classes - in the seeded
 * world: its life from format to close, and what it keeps.
 */
#include "tests/lib/core_rig.h"

TEST(a_first_call)
{
	rig_begin(1);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_expect_ok("default/dev/kv/a", "incr", "{'key':'k'}",
		      "{'value':2,'rev':2}");
	rig_expect_ok("rate_limiter/r", "put_policy",
		      "{'limit':2,'period_ms':1000}", "{'rev':1}");
	rig_end();
}

TEST(close_and_open_keep_everything)
{
	char name[32];
	char want[64];
	unsigned i;

	rig_begin(2);
	for (i = 0; i < 50; i++) {
		snprintf(name, sizeof(name), "kv/object-%u", i);
		rig_expect_ok(name, "incr", "{'key':'n','by':7}",
			      "{'value':7,'rev':1}");
	}
	rig_expect_ok("rate_limiter/r", "put_policy",
		      "{'limit':2,'period_ms':3600000}", "{'rev':1}");
	EXPECT_RC(rig_ask("rate_limiter/r", "check", "{'key':'a'}", NULL)->rc,
		  RC_OK);
	rig_expect_ok("kv/gone", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_expect_ok("kv/gone", "destroy", "{}", "{'rev':2}");
	for (i = 0; i < 3; i++) {
		unsigned k;

		rig_close();
		rig_boot();
		for (k = 0; k < 50; k++) {
			snprintf(name, sizeof(name), "kv/object-%u", k);
			snprintf(want, sizeof(want), "{'value':%u,'rev':%u}",
				 8 + i, 2 + i);
			rig_expect_ok(name, "incr", "{'key':'n'}", want);
		}
		EXPECT_UINT(core_identity(rig.core)->boot, 2 + i);
	}
	EXPECT_UINT(say_u64(rig_result(rig_ask("rate_limiter/r", "peek",
					       "{'key':'a'}", NULL)),
			    "remaining"),
		    1);
	EXPECT_RC(rig_ask("kv/gone", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_expect_ok("kv/gone", "put", "{'key':'k','value':1}", "{'rev':3}");
	rig_end();
}

TEST(an_empty_disk_is_no_data_directory)
{
	struct detail why = { { 0 }, { 0 } };

	rig_new(3);
	EXPECT_RC(rig_open(&why), RC_NOT_FOUND);
	EXPECT_TRUE(why.text[0] != '\0');
	rig_end();
}

TEST(format_checks_what_it_is_told)
{
	static const struct {
		uint32_t shards;
		uint32_t segment_bytes;
		const char *field;
	} rows[] = {
		{ 0, 1u << 20, "shards" },
		{ SHARDS_MAX + 1, 1u << 20, "shards" },
		{ 4, SEGMENT_BYTES_MIN / 2, "log.segment_bytes" },
		{ 4, SEGMENT_BYTES_MIN + 4096, "log.segment_bytes" },
		{ 4, 0, "log.segment_bytes" },
	};
	size_t i;

	rig_new(4);
	for (i = 0; i < ARRAY_LEN(rows); i++) {
		struct detail why = { { 0 }, { 0 } };

		rig.id.shards = rows[i].shards;
		rig.id.segment_bytes = rows[i].segment_bytes;
		EXPECT_RC(core_format(world_disk(rig.w, 0), world_env(rig.w, 0),
				      &rig.id, NULL, 0, &why),
			  RC_INVALID);
		EXPECT_STR(why.field, rows[i].field);
	}
	rig_end();
}

TEST(a_directory_is_formatted_once)
{
	struct detail why = { { 0 }, { 0 } };
	struct identity id;

	rig_begin(5);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_close();
	id = rig.id;
	EXPECT_TRUE(core_format(world_disk(rig.w, 0), world_env(rig.w, 0), &id,
				NULL, 0, &why) != RC_OK);
	rig_boot();
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_end();
}

TEST(a_copied_directory_is_refused)
{
	struct detail why = { { 0 }, { 0 } };

	rig_begin(6);
	rig_close();
	world_copy(rig.w, 0, 1);
	world_copy(rig.w, 1, 0);
	EXPECT_RC(rig_open(&why), RC_FOREIGN);
	EXPECT_TRUE(why.text[0] != '\0');
	rig_end();
}

TEST(one_node_per_directory)
{
	struct disk *d;

	rig_new(7);
	d = world_disk(rig.w, 0);
	EXPECT_RC(disk_lock(d, NULL), RC_OK);
	EXPECT_RC(disk_lock(d, NULL), RC_EXISTS);
	world_kill(rig.w, 0);
	EXPECT_RC(disk_lock(d, NULL), RC_OK);
	rig_end();
}

TEST(any_number_of_shards)
{
	static const uint32_t shards[] = { 1, 2, 7, 64 };
	char name[32];
	size_t i;
	unsigned k;

	for (i = 0; i < ARRAY_LEN(shards); i++) {
		rig_new(8 + i);
		rig.id.shards = shards[i];
		rig.id.segment_bytes = SEGMENT_BYTES_MIN;
		rig_format();
		rig_boot();
		EXPECT_UINT(core_shards(rig.core), shards[i]);
		for (k = 0; k < 40; k++) {
			snprintf(name, sizeof(name), "kv/%u", k);
			rig_expect_ok(name, "incr", "{'key':'n'}",
				      "{'value':1,'rev':1}");
		}
		rig_close();
		rig_boot();
		for (k = 0; k < 40; k++) {
			snprintf(name, sizeof(name), "kv/%u", k);
			rig_expect_ok(name, "incr", "{'key':'n'}",
				      "{'value':2,'rev':2}");
		}
		rig_end();
	}
}

/* The power fails in the moment in which the answer is there: of one node alone
 * it waited for that node's own disk. */
TEST(du4_a_power_cut_at_the_answer)
{
	struct told *t;
	uint64_t i;

	rig_begin(44);
	world_sync_time(rig.w, 0, 4000, 8000, 0, 0);
	for (i = 1; i <= 30; i++) {
		t = rig_ask("kv/a", "incr", "{'key':'n'}", NULL);
		EXPECT_RC(t->rc, RC_OK);
		EXPECT_UINT(say_u64(rig_result(t), "value"), i);
		rig_power_cut();
		rig_boot();
	}
	rig_end();
}

TEST(killed_and_cut_off)
{
	char want[64];
	unsigned i;

	rig_begin(20);
	for (i = 1; i <= 12; i++) {
		snprintf(want, sizeof(want), "{'value':%u,'rev':%u}", i, i);
		rig_expect_ok("kv/a", "incr", "{'key':'n'}", want);
		if (i % 3 == 0)
			rig_pass(500); /* Stored, or not. */
		if (i % 2 == 0)
			rig_kill();
		else
			rig_power_cut();
		rig_boot();
	}
	rig_end();
}

/* ---- time ---- */

TEST(a_clock_a_day_ahead_after_a_restart_expires_nothing)
{
	rig_begin(30);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1,'ttl_ms':7200000}",
		      "{'rev':1}");
	rig_close();
	world_wall_synced(rig.w, 0, false);
	world_wall_jump(rig.w, 0, 86400000);
	rig_boot();
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	/* An hour at most was believed; the other still has to pass. */
	rig_pass(3500000);
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_pass(3800000);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_end();
}

TEST(a_clock_a_day_back_after_a_restart_freezes_nothing)
{
	rig_begin(31);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1,'ttl_ms':60000}",
		      "{'rev':1}");
	rig_expect_ok("rate_limiter/r", "put_policy",
		      "{'limit':1,'period_ms':10000,"
		      "'durability':'committed'}",
		      "{'rev':1}");
	EXPECT_RC(rig_ask("rate_limiter/r", "check", "{'key':'a'}", NULL)->rc,
		  RC_OK);
	rig_close();
	world_wall_jump(rig.w, 0, -86400000);
	rig_boot();
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	EXPECT_FALSE(say_bool(rig_result(rig_ask("rate_limiter/r", "check",
						 "{'key':'a'}", NULL)),
			      "allowed"));
	rig_pass(11000);
	EXPECT_TRUE(say_bool(rig_result(rig_ask("rate_limiter/r", "check",
						"{'key':'a'}", NULL)),
			     "allowed"));
	rig_pass(61000);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_end();
}

TEST(a_synchronised_clock_counts_the_time_that_was_off)
{
	rig_begin(32);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1,'ttl_ms':7200000}",
		      "{'rev':1}");
	rig_expect_ok("kv/a", "put", "{'key':'l','value':1,'ttl_ms':172800000}",
		      "{'rev':2}");
	rig_close();
	world_wall_synced(rig.w, 0, true);
	world_suspend(rig.w, 0, 86400000);
	rig_boot();
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_expect_ok("kv/a", "get", "{'key':'l'}", "{'value':1,'rev':2}");
	rig_end();
}

TEST(a_wall_clock_that_jumps_while_it_runs_is_nothing)
{
	rig_begin(33);
	rig_expect_ok("kv/a", "put", "{'key':'k','value':1,'ttl_ms':60000}",
		      "{'rev':1}");
	world_wall_jump(rig.w, 0, 86400000);
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	world_wall_jump(rig.w, 0, -2 * 86400000);
	rig_pass(61000);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_end();
}

/* ---- caps ---- */

TEST(a_tenant_has_a_cap_of_objects)
{
	struct told *t;

	rig_new(40);
	rig.cfg.tenant_objects_max = 3;
	rig_format();
	rig_boot();
	rig_grant("you", "other", "dev", "*", "", RIGHT_READ | RIGHT_WRITE);
	rig_expect_ok("kv/1", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_expect_ok("kv/2", "put", "{'key':'k','value':1}", "{'rev':1}");
	rig_expect_ok("rate_limiter/3", "put_policy",
		      "{'limit':1,'period_ms':1}", "{'rev':1}");
	t = rig_ask("kv/4", "put", "{'key':'k','value':1}", NULL);
	EXPECT_RC(t->rc, RC_NO_SPACE);
	EXPECT_STR(t->why.field, "tenant");
	EXPECT_HAS(t->why.text, "3 objects");
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	/* It is as if it had not been asked for. */
	EXPECT_RC(rig_ask("kv/4", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	/* What is there goes on; another tenant has its own. */
	rig_expect_ok("kv/1", "put", "{'key':'l','value':1}", "{'rev':2}");
	t = rig_wait(rig_start("you", "other/dev/kv/1", "put",
			       "{'key':'k','value':1}", NULL));
	EXPECT_RC(t->rc, RC_OK);
	/* The count survives a restart. */
	rig_close();
	rig_boot();
	rig_pass(2000);
	EXPECT_RC(rig_ask("kv/4", "put", "{'key':'k','value':1}", NULL)->rc,
		  RC_NO_SPACE);
	rig_expect_ok("kv/2", "destroy", "{}", "{'rev':2}");
	rig_expect_ok("kv/4", "put", "{'key':'k','value':1}", "{'rev':1}");
	EXPECT_RC(rig_ask("kv/5", "put", "{'key':'k','value':1}", NULL)->rc,
		  RC_NO_SPACE);
	rig_end();
}

static struct told *put_bytes(const char *address, const char *key, size_t n)
{
	char *value = malloc(n + 64);
	struct told *t;

	snprintf(value, n + 64, "{'key':'%s','value':'", key);
	memset(value + strlen(value), 'v', n);
	memcpy(value + strlen("{'key':'','value':'") + strlen(key) + n, "'}",
	       3);
	t = rig_ask(address, "put", value, NULL);
	free(value);
	return t;
}

TEST(a_tenant_has_a_cap_of_bytes)
{
	struct told *t;

	rig_new(41);
	rig.cfg.tenant_bytes_max = 10000;
	rig_format();
	rig_boot();
	EXPECT_RC(put_bytes("kv/a", "x", 4000)->rc, RC_OK);
	EXPECT_RC(put_bytes("kv/b", "x", 4000)->rc, RC_OK);
	t = put_bytes("kv/a", "y", 4000);
	EXPECT_RC(t->rc, RC_NO_SPACE);
	EXPECT_STR(t->why.field, "tenant");
	EXPECT_HAS(t->why.text, "10000 bytes");
	/* Replacing counts the difference. */
	EXPECT_RC(put_bytes("kv/a", "x", 4100)->rc, RC_OK);
	EXPECT_RC(put_bytes("kv/a", "x", 8000)->rc, RC_NO_SPACE);
	rig_close();
	rig_boot();
	rig_pass(2000);
	EXPECT_RC(put_bytes("kv/a", "y", 4000)->rc, RC_NO_SPACE);
	/* Deletes and reads still go. */
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'x'}", NULL)->rc, RC_OK);
	EXPECT_RC(rig_ask("kv/a", "delete", "{'key':'x'}", NULL)->rc, RC_OK);
	EXPECT_RC(put_bytes("kv/a", "y", 4000)->rc, RC_OK);
	EXPECT_RC(rig_ask("kv/b", "destroy", "{}", NULL)->rc, RC_OK);
	EXPECT_RC(put_bytes("kv/c", "y", 4000)->rc, RC_OK);
	rig_end();
}

/* A value that fits a frame and not an entry of the smallest segments: refused
 * for good, not a reason to stop. */
TEST(small_segments_have_small_entries)
{
	struct told *t;

	rig_new(42);
	rig.id.segment_bytes = SEGMENT_BYTES_MIN;
	rig_format();
	rig_boot();
	EXPECT_RC(put_bytes("kv/a", "x", 100000)->rc, RC_OK);
	t = put_bytes("kv/a", "x", VALUE_BYTES_MAX);
	EXPECT_RC(t->rc, RC_INVALID);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	rig_expect_ok("kv/a", "incr", "{'key':'n'}", "{'value':1,'rev':2}");
	rig_end();
}

/* Many of them in one turn: more than one entry. */
TEST(a_turn_with_more_than_an_entry)
{
	struct told *t[40];
	char address[32];
	char *args;
	unsigned i;

	rig_new(43);
	rig.id.segment_bytes = SEGMENT_BYTES_MIN;
	rig.id.shards = 1;
	rig_format();
	rig_boot();
	args = malloc(200100);
	for (i = 0; i < 40; i++) {
		int n = snprintf(args, 64, "{'key':'k','value':'");

		memset(args + n, 'v', 200000);
		memcpy(args + n + 200000, "'}", 3);
		snprintf(address, sizeof(address), "kv/%u", i);
		t[i] = rig_start("me", address, "put", args, NULL);
	}
	free(args);
	for (i = 0; i < 40; i++)
		EXPECT_RC(rig_wait(t[i])->rc, RC_OK);
	rig_kill();
	rig_boot();
	for (i = 0; i < 40; i++) {
		snprintf(address, sizeof(address), "kv/%u", i);
		EXPECT_RC(rig_ask(address, "get", "{'key':'k'}", NULL)->rc,
			  RC_OK);
	}
	rig_end();
}

/* ---- the end ---- */

TEST(a_drained_core_takes_no_calls_and_ends_those_it_has)
{
	struct told *a;
	struct told *b;

	rig_begin(50);
	a = rig_start("me", "kv/a", "put", "{'key':'k','value':1}", NULL);
	core_drain(rig.core);
	b = rig_start("me", "kv/a", "put", "{'key':'k','value':2}", NULL);
	EXPECT_NULL(b->call);
	EXPECT_RC(rig_wait(a)->rc, RC_OK);
	EXPECT_FALSE(b->done);
	rig_close();
	rig_boot();
	rig_expect_ok("kv/a", "get", "{'key':'k'}", "{'value':1,'rev':1}");
	rig_end();
}

TEST(calls_in_flight_end_before_the_core_does)
{
	struct told *t[20];
	char address[32];
	unsigned i;

	rig_begin(51);
	for (i = 0; i < 20; i++) {
		snprintf(address, sizeof(address), "kv/%u", i % 7);
		t[i] = rig_start("me", address, "incr", "{'key':'n'}", NULL);
	}
	rig_close();
	for (i = 0; i < 20; i++) {
		EXPECT_TRUE(t[i]->done);
		EXPECT_RC(t[i]->rc, RC_OK);
	}
	rig_boot();
	rig_expect_ok("kv/0", "incr", "{'key':'n'}", "{'value':4,'rev':4}");
	rig_end();
}

/* What was answered before it was in the log is in the log after a clean end,
 * also when it still waited for the writer. */
TEST(lagged_effects_survive_a_clean_end)
{
	unsigned i;

	rig_begin(52);
	world_sync_time(rig.w, 0, 5000, 9000, 0, 0);
	rig_expect_ok("rate_limiter/r", "put_policy",
		      "{'limit':1000,'period_ms':86400000}", "{'rev':1}");
	for (i = 0; i < 5; i++) {
		struct told *t = rig_start("me", "rate_limiter/r", "check",
					   "{'key':'a'}", NULL);

		EXPECT_RC(rig_wait(t)->rc, RC_OK);
	}
	rig_close();
	rig_boot();
	EXPECT_UINT(say_u64(rig_result(rig_ask("rate_limiter/r", "peek",
					       "{'key':'a'}", NULL)),
			    "remaining"),
		    995);
	rig_end();
}

/* Whatever is under way: loads of calls that were given up, sweeps of what has
 * expired, sums of tenants. */
TEST(it_closes_at_any_moment)
{
	uint64_t seed;

	for (seed = 100; seed < 125; seed++) {
		struct told *t[24];
		char address[32];
		unsigned i;

		runner_context("seed %" PRIu64, seed);
		rig_new(seed);
		rig.cfg.object_idle_ms = 20;
		rig.cfg.window_ms = 10;
		rig_format();
		rig_boot();
		for (i = 0; i < 24; i++) {
			snprintf(address, sizeof(address), "kv/%u", i);
			t[i] = rig_start("me", address, "put",
					 "{'key':'k','value':1,'ttl_ms':900}",
					 NULL);
		}
		for (i = 0; i < 24; i++)
			EXPECT_RC(rig_wait(t[i])->rc, RC_OK);
		/* Evicted, expired, being swept. */
		rig_pass(world_random(rig.w, 4000));
		for (i = 0; i < 24; i++) {
			snprintf(address, sizeof(address), "kv/%u", i);
			t[i] = rig_start("me", address, "get", "{'key':'k'}",
					 NULL);
		}
		for (i = 0; i < world_random(rig.w, 60); i++)
			world_step(rig.w);
		for (i = 0; i < 24; i++)
			if (world_random(rig.w, 2) == 0 && t[i]->call != NULL)
				call_cancel(t[i]->call);
		rig_close();
		for (i = 0; i < 24; i++)
			EXPECT_TRUE(t[i]->done);
		rig_boot();
		EXPECT_RC(rig_ask("kv/0", "incr", "{'key':'z'}", NULL)->rc,
			  RC_OK);
		rig_end();
	}
}

TEST(a_full_disk_stops_growth_and_not_deletes)
{
	struct told *t;

	rig_new(70);
	rig.cfg.reserve_bytes = 1u << 20;
	rig_format();
	rig_boot();
	EXPECT_RC(put_bytes("kv/a", "x", 1000)->rc, RC_OK);
	rig_close();
	/* The reserve itself does not fit any more. */
	rig.cfg.reserve_bytes = 1ull << 50;
	rig_boot();
	rig_pass(3000);
	t = put_bytes("kv/a", "y", 1000);
	EXPECT_RC(t->rc, RC_NO_SPACE);
	EXPECT_HAS(t->why.text, "reserve");
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'x'}", NULL)->rc, RC_OK);
	EXPECT_RC(rig_ask("kv/a", "delete", "{'key':'x'}", NULL)->rc, RC_OK);
	rig_end();
}

/* A log that has one segment keeps room for the states free when it makes its
 * second. Without room for both there is none for growth: else the log would
 * stall when the first is full, without a word, and deletes with it. */
TEST(room_for_a_second_segment_is_not_for_growth)
{
	struct log_stats log;

	rig_new(71);
	rig.id.shards = 1;
	rig.id.segment_bytes = 4 * SEGMENT_BYTES_MIN;
	rig.cfg.reserve_bytes = SEGMENT_BYTES_MIN;
	rig_format();
	world_capacity(rig.w, 0, world_used(rig.w, 0) + 3 * SEGMENT_BYTES_MIN);
	rig_boot();
	rig_pass(3000);
	log_stats(core_log(rig.core), &log);
	EXPECT_UINT(log.segments, 1);
	EXPECT_RC(put_bytes("kv/a", "x", 1000)->rc, RC_NO_SPACE);
	EXPECT_RC(rig_ask("kv/a", "delete", "{'key':'x'}", NULL)->rc, RC_OK);
	world_capacity(rig.w, 0, (uint64_t)1 << 40);
	rig_pass(3000);
	EXPECT_RC(put_bytes("kv/a", "x", 1000)->rc, RC_OK);
	rig_end();
}

TEST(the_same_seed_is_the_same_run)
{
	uint64_t hash[2];
	unsigned i;

	for (i = 0; i < 2; i++) {
		rig_begin(77);
		rig_expect_ok("kv/a", "incr", "{'key':'n'}",
			      "{'value':1,'rev':1}");
		rig_power_cut();
		rig_boot();
		rig_expect_ok("kv/a", "incr", "{'key':'n'}",
			      "{'value':2,'rev':2}");
		rig_close();
		hash[i] = world_hash(rig.w);
		rig_end();
	}
	EXPECT_UINT(hash[0], hash[1]);
}
