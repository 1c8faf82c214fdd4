#include "raft-glue/log.h"

#include "tests/lib/fault.h"
#include "tests/lib/log_rig.h"

#define SEG (64u << 10)
#ifndef SEEDS
#define SEEDS 40u
#endif

static struct rig rig;

static void begin(uint64_t seed, uint32_t shards, uint32_t segment_bytes,
		  unsigned segments)
{
	rig_init(&rig, seed, shards, segment_bytes, segments);
	rig_format(&rig);
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
}

static void reopen(void)
{
	rig_close(&rig);
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
}

static void end(void)
{
	rig_free(&rig);
}

/* ---- round trips ---- */

TEST(new_log_is_empty)
{
	begin(1, 4, SEG, 4);
	EXPECT_UINT(log_range(rig.log, 0).first, 1);
	EXPECT_UINT(log_range(rig.log, 0).last, 0);
	EXPECT_FALSE(log_busy(rig.log));
	EXPECT_UINT(log_unsynced_bytes(rig.log), 0);
	reopen();
	end();
}

TEST(entries_of_all_sizes_come_back)
{
	static const uint32_t sizes[] = { 0,    1,    399,  400,  401,  503,
					  504,  505,  1007, 1008, 1009, 3951,
					  3952, 3953, 4096, 8192, 20000 };
	size_t i;

	begin(2, 2, SEG, 8);
	for (i = 0; i < ARRAY_LEN(sizes); i++) {
		(void)rig_next(&rig, 0, sizes[i]);
		rig_settle(&rig);
		(void)rig_next(&rig, 1, sizes[i]);
	}
	rig_settle(&rig);
	(void)rig_next(&rig, 1, log_entry_bytes_max(rig.log));
	(void)rig_next(&rig, 0, log_entry_bytes_max(rig.log));
	rig_settle(&rig);
	reopen();
	EXPECT_UINT(log_range(rig.log, 0).last, ARRAY_LEN(sizes) + 1);
	end();
}

TEST(entry_bytes_max_is_what_fits_a_segment)
{
	begin(3, 1, SEG, 4);
	EXPECT_TRUE(log_entry_bytes_max(rig.log) > SEG / 2);
	EXPECT_TRUE(log_entry_bytes_max(rig.log) < SEG);
	end();
	begin(3, 1, 16u << 20, 4);
	EXPECT_UINT(log_entry_bytes_max(rig.log), ENTRY_BYTES_MAX);
	end();
}

TEST(shards_of_one_turn_share_a_batch_and_a_sync)
{
	struct log_stats a;
	struct log_stats b;
	uint32_t s;

	begin(4, 16, SEG, 4);
	log_stats(rig.log, &a);
	for (s = 0; s < 16; s++)
		(void)rig_next(&rig, s, 100);
	EXPECT_UINT(log_unsynced_bytes(rig.log), 16 * 124);
	rig_settle(&rig);
	log_stats(rig.log, &b);
	EXPECT_UINT(b.batches - a.batches, 1);
	EXPECT_UINT(b.syncs - a.syncs, 1);
	EXPECT_UINT(log_unsynced_bytes(rig.log), 0);
	EXPECT_TRUE(b.bytes - a.bytes == 4096);
	reopen();
	end();
}

TEST(overwritten_entries_stay_away)
{
	begin(5, 1, SEG, 4);
	while (rig.shard[0].last < 10)
		(void)rig_next(&rig, 0, 50);
	rig_settle(&rig);
	(void)rig_append(&rig, 0, 4, 2, 7);
	(void)rig_append(&rig, 0, 5, 2, 8);
	rig_settle(&rig);
	reopen();
	EXPECT_UINT(log_range(rig.log, 0).last, 5);
	EXPECT_UINT(log_range(rig.log, 0).last_term, 2);
	/* Within one batch, too. */
	(void)rig_next(&rig, 0, 9);
	(void)rig_next(&rig, 0, 9);
	(void)rig_append(&rig, 0, 6, 3, 10);
	rig_settle(&rig);
	reopen();
	EXPECT_UINT(log_range(rig.log, 0).last, 6);
	end();
}

static enum rc count_one(void *arg, const struct log_entry *e)
{
	(void)e;
	++*(unsigned *)arg;
	return RC_OK;
}

TEST(base_voids_what_was_before)
{
	uint64_t index;
	uint64_t term;
	unsigned n = 0;

	begin(6, 2, SEG, 4);
	while (rig.shard[0].last < 10)
		(void)rig_next(&rig, 0, 50);
	rig_base(&rig, 0, 100);
	(void)rig_next(&rig, 0, 1);
	(void)rig_next(&rig, 0, 2);
	rig_settle(&rig);
	rig_close(&rig);
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_RC(log_recovered(rig.log, 0, count_one, &n, &index, &term),
		  RC_OK);
	EXPECT_UINT(index, 100);
	EXPECT_UINT(term, 1);
	EXPECT_UINT(n, 2);
	EXPECT_UINT(log_range(rig.log, 0).first, 101);
	EXPECT_UINT(log_range(rig.log, 0).last, 102);
	/* Asked again, it has forgotten. */
	n = 0;
	EXPECT_RC(log_recovered(rig.log, 0, count_one, &n, NULL, NULL), RC_OK);
	EXPECT_UINT(n, 0);
	end();
}

static enum rc refuse_second(void *arg, const struct log_entry *e)
{
	(void)arg;
	return e->index == 2 ? RC_CORRUPT : RC_OK;
}

TEST(callback_of_recovered_can_refuse)
{
	begin(7, 1, SEG, 4);
	(void)rig_next(&rig, 0, 1);
	(void)rig_next(&rig, 0, 1);
	(void)rig_next(&rig, 0, 1);
	rig_close(&rig);
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_RC(log_recovered(rig.log, 0, refuse_second, NULL, NULL, NULL),
		  RC_CORRUPT);
	end();
}

TEST(records_at_or_below_the_floor_are_not_told)
{
	begin(8, 1, SEG, 4);
	while (rig.shard[0].last < 10)
		(void)rig_next(&rig, 0, 50);
	rig_settle(&rig);
	rig_floor(&rig, 0, 6);
	EXPECT_UINT(log_range(rig.log, 0).first, 7);
	reopen();
	EXPECT_UINT(log_range(rig.log, 0).first, 7);
	EXPECT_UINT(log_range(rig.log, 0).last, 10);
	end();
}

TEST(state_ahead_of_the_log_is_no_damage)
{
	begin(9, 1, SEG, 4);
	(void)rig_next(&rig, 0, 50);
	rig_settle(&rig);
	rig_close(&rig);
	rig.floors[0] = 20;
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_TRUE(log_status(rig.log, 0, NULL) == LOG_WHOLE);
	EXPECT_UINT(log_range(rig.log, 0).last, 1);
	EXPECT_UINT(log_range(rig.log, 0).first, 2);
	(void)log_base(rig.log, 0, 20, 3);
	EXPECT_UINT(log_range(rig.log, 0).first, 21);
	end();
}

/* ---- votes ---- */

TEST(votes_of_a_turn_share_two_syncs_and_need_no_batch)
{
	struct log_stats a;
	struct log_stats b;
	uint32_t s;

	begin(10, 16, SEG, 4);
	log_stats(rig.log, &a);
	for (s = 0; s < 16; s++)
		rig_vote(&rig, s, 3);
	rig_settle(&rig);
	log_stats(rig.log, &b);
	EXPECT_UINT(b.batches - a.batches, 0);
	EXPECT_UINT(b.syncs - a.syncs, 2);
	for (s = 0; s < 16; s++)
		EXPECT_TRUE(rig.shard[s].durable > 0);
	reopen();
	EXPECT_UINT(ballot_get(rig.ballot, 15).term, 3);
	end();
}

TEST(vote_and_entries_of_a_turn)
{
	begin(11, 4, SEG, 4);
	rig_vote(&rig, 2, 5);
	(void)rig_next(&rig, 2, 10);
	rig_vote(&rig, 2, 6);
	rig_settle(&rig);
	EXPECT_UINT(rig.shard[2].durable, 3);
	EXPECT_UINT(rig.shard[2].voted, 3);
	reopen();
	EXPECT_UINT(ballot_get(rig.ballot, 2).term, 6);
	end();
}

/* ---- what the loop sees ---- */

struct order_seen {
	struct log_listener l;
	struct log *log;
	unsigned durable;
	unsigned idle;
	bool busy_in_idle;
	bool idle_first;
};

static void seen_durable(struct log_listener *l, uint64_t ticket)
{
	struct order_seen *o = CONTAINER_OF(l, struct order_seen, l);

	(void)ticket;
	o->durable++;
	o->idle_first = o->idle > 0;
}

static void seen_pinning(struct log_listener *l)
{
	(void)l;
}

static void seen_idle(struct log_listener *l)
{
	struct order_seen *o = CONTAINER_OF(l, struct order_seen, l);

	o->idle++;
	o->busy_in_idle = log_busy(o->log);
}

TEST(idle_comes_after_durable_for_every_listener)
{
	struct order_seen o[2] = {
		{ .l = { .durable = seen_durable,
			 .pinning = seen_pinning,
			 .idle = seen_idle } },
		{ .l = { .durable = seen_durable,
			 .pinning = seen_pinning,
			 .idle = seen_idle } },
	};

	begin(12, 2, SEG, 4);
	o[0].log = rig.log;
	o[1].log = rig.log;
	log_listen(rig.log, 0, &o[0].l);
	log_listen(rig.log, 1, &o[1].l);
	(void)rig_next(&rig, 0, 10);
	EXPECT_UINT(o[0].durable, 0);
	while (o[0].idle == 0)
		EXPECT_TRUE(world_step(rig.w));
	EXPECT_UINT(o[0].durable, 1);
	EXPECT_FALSE(o[0].idle_first);
	EXPECT_FALSE(o[0].busy_in_idle);
	EXPECT_UINT(o[1].durable, 0);
	EXPECT_UINT(o[1].idle, 1);
	log_listen(rig.log, 0, NULL);
	(void)rig_next(&rig, 0, 10);
	while (o[1].idle == 1)
		EXPECT_TRUE(world_step(rig.w));
	EXPECT_UINT(o[0].durable, 1);
	end();
}

TEST(a_batch_begins_only_when_the_one_before_is_synced)
{
	struct log_stats st;
	unsigned steps = 0;

	begin(13, 1, SEG, 4);
	(void)rig_next(&rig, 0, 10);
	EXPECT_TRUE(world_step(rig.w));
	EXPECT_TRUE(log_busy(rig.log));
	/* Comes together behind the batch under way. */
	while (++steps < 10)
		(void)rig_next(&rig, 0, 10);
	while (rig.ticket == 0)
		EXPECT_TRUE(world_step(rig.w));
	EXPECT_UINT(rig.ticket, 1);
	rig_settle(&rig);
	log_stats(rig.log, &st);
	EXPECT_UINT(st.batches, 2);
	reopen();
	end();
}

TEST(more_than_a_batch_holds_is_split)
{
	struct log_stats st;

	begin(14, 3, SEG, 16);
	while (rig.ops_n < 300)
		(void)rig_next(&rig, (uint32_t)rig.ops_n % 3, 1000);
	rig_settle(&rig);
	EXPECT_UINT(rig.ticket, 300);
	log_stats(rig.log, &st);
	EXPECT_TRUE(st.batches >= 300000 / (SEG / 2));
	EXPECT_UINT(log_unsynced_bytes(rig.log), 0);
	reopen();
	end();
}

TEST(close_writes_what_was_appended)
{
	begin(15, 1, SEG, 4);
	(void)rig_next(&rig, 0, 10);
	rig.closed = false;
	log_close(rig.log, rig_log_closed, &rig);
	EXPECT_FALSE(rig.closed);
	EXPECT_TRUE(world_run_flag(rig.w, &rig.closed, 1000));
	rig.log = NULL;
	ballot_close(rig.ballot);
	world_power_cut(rig.w, 0);
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_UINT(log_range(rig.log, 0).last, 1);
	rig_check(&rig);
	end();
}

/* ---- configuration ---- */

TEST(bad_sizes_are_refused)
{
	struct log_config cfg = { .shards = 1,
				  .segment_bytes = 3 * 4096,
				  .bytes_max = 1 << 20 };
	struct world *w = world_new(16);
	struct detail why = { .text = "" };

	EXPECT_RC(log_format(world_disk(w, 0), &cfg, &why), RC_INVALID);
	EXPECT_STR(why.field, "segment_bytes");
	cfg.segment_bytes = SEG;
	cfg.bytes_max = 4 * SEG - 1;
	why = (struct detail){ .text = "" };
	EXPECT_RC(log_format(world_disk(w, 0), &cfg, &why), RC_INVALID);
	EXPECT_STR(why.field, "log_bytes");
	world_free(w);
}

TEST(no_log_is_not_found)
{
	rig_init(&rig, 17, 1, SEG, 4);
	EXPECT_RC(ballot_format(world_disk(rig.w, 0), 1, NULL), RC_OK);
	EXPECT_RC(rig_open(&rig), RC_NOT_FOUND);
	EXPECT_RC(world_disk(rig.w, 0)->ops->mkdir(world_disk(rig.w, 0), "log"),
		  RC_OK);
	EXPECT_RC(rig_open(&rig), RC_NOT_FOUND);
	EXPECT_HAS(rig.why.text, "no log");
	end();
}

TEST(a_log_in_use_is_not_formatted_again)
{
	struct disk *d;

	begin(18, 1, SEG, 4);
	d = world_disk(rig.w, 0);
	rig_close(&rig);
	/* Nothing was written yet: an interrupted format is repeated. */
	EXPECT_RC(log_format(d, &rig.cfg, NULL), RC_OK);
	EXPECT_RC(rig_open(&rig), RC_OK);
	(void)rig_next(&rig, 0, 10);
	rig_settle(&rig);
	rig_close(&rig);
	EXPECT_RC(log_format(d, &rig.cfg, &rig.why), RC_EXISTS);
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
	end();
}

TEST(another_nodes_log_is_foreign)
{
	begin(19, 1, SEG, 4);
	rig_close(&rig);
	rig.cfg.node_id = 8;
	EXPECT_RC(rig_open(&rig), RC_FOREIGN);
	rig.cfg.node_id = 7;
	rig.cfg.cluster_id[3] ^= 1;
	EXPECT_RC(rig_open(&rig), RC_FOREIGN);
	rig.cfg.cluster_id[3] ^= 1;
	rig.cfg.segment_bytes *= 2;
	rig.cfg.bytes_max *= 2;
	EXPECT_RC(rig_open(&rig), RC_INVALID);
	end();
}

/* ---- recycling ---- */

static uint64_t log_bytes(void)
{
	struct log_stats st;

	log_stats(rig.log, &st);
	return st.segments * rig.cfg.segment_bytes;
}

TEST(a_hot_shard_goes_round_within_the_bound)
{
	unsigned i;

	begin(20, 1, SEG, 4);
	for (i = 0; i < 3000; i++) {
		(void)rig_next(&rig, 0, 700);
		if (i % 7 == 0)
			rig_settle(&rig);
		EXPECT_TRUE(log_bytes() <= rig.cfg.bytes_max);
	}
	rig_settle(&rig);
	EXPECT_UINT(rig.ticket, 3000);
	EXPECT_TRUE(rig.shard[0].asked > 10);
	reopen();
	end();
}

TEST(cold_shards_that_move_do_not_stop_a_hot_one)
{
	uint32_t s;
	unsigned i;

	begin(21, 16, SEG, 6);
	for (s = 0; s < 16; s++)
		(void)rig_next(&rig, s, 300);
	for (i = 0; i < 3000; i++) {
		(void)rig_next(&rig, 0, 700);
		if (i % 7 == 0)
			rig_settle(&rig);
	}
	rig_settle(&rig);
	for (s = 1; s < 16; s++)
		EXPECT_TRUE(rig.shard[s].asked > 0);
	EXPECT_TRUE(log_bytes() <= rig.cfg.bytes_max);
	reopen();
	end();
}

TEST(cold_shards_that_cannot_move_are_copied_to_the_head)
{
	struct log_stats st;
	uint32_t s;
	unsigned i;

	begin(22, 16, SEG, 8);
	for (i = 0; i < 4; i++)
		for (s = 0; s < 16; s++)
			(void)rig_next(&rig, s, 100 * (i + 1));
	for (s = 1; s < 16; s++)
		rig.shard[s].stubborn = true;
	/* One that has overwritten some of its own. */
	(void)rig_append(&rig, 5, 3, 9, 44);
	for (i = 0; i < 4000; i++) {
		(void)rig_next(&rig, 0, 700);
		if (i % 7 == 0)
			rig_settle(&rig);
		if (i % 1000 == 999)
			reopen();
	}
	rig_settle(&rig);
	log_stats(rig.log, &st);
	EXPECT_TRUE(log_bytes() <= rig.cfg.bytes_max);
	EXPECT_FALSE(log_full(rig.log, 0));
	for (s = 1; s < 16; s++)
		EXPECT_UINT(log_range(rig.log, s).first, 1);
	reopen();
	EXPECT_UINT(log_range(rig.log, 5).last, 3);
	EXPECT_UINT(log_range(rig.log, 6).last, 4);
	end();
}

TEST(a_log_that_is_full_of_live_entries_waits)
{
	uint64_t before;
	unsigned i;

	begin(23, 2, SEG, 4);
	rig.shard[0].stubborn = true;
	for (i = 0; i < 400; i++)
		(void)rig_next(&rig, 0, 700);
	world_run_until(rig.w, world_now_ms(rig.w) + 2000);
	EXPECT_TRUE(rig.ticket < 400);
	EXPECT_TRUE(log_full(rig.log, 0));
	EXPECT_TRUE(log_full(rig.log, 1));
	EXPECT_TRUE(log_busy(rig.log));
	EXPECT_TRUE(log_stalled(rig.log));
	EXPECT_TRUE(log_bytes() <= rig.cfg.bytes_max);
	/* A vote does not wait. */
	rig_vote(&rig, 1, 4);
	world_run_until(rig.w, world_now_ms(rig.w) + 2000);
	EXPECT_UINT(rig.shard[1].durable, rig.ops_n);
	EXPECT_UINT(rig.shard[1].voted, rig.ops_n);
	/* Not even behind entries of its own shard that do. */
	rig_vote(&rig, 0, 5);
	world_run_until(rig.w, world_now_ms(rig.w) + 2000);
	EXPECT_UINT(rig.shard[0].voted, rig.ops_n);
	EXPECT_TRUE(rig.shard[0].durable < 400);
	before = rig_durable_index(&rig, 0);
	EXPECT_TRUE(before < 400);
	rig_floor(&rig, 0, before);
	rig.shard[0].stubborn = false;
	rig_settle(&rig);
	world_run_until(rig.w, world_now_ms(rig.w) + 2000);
	EXPECT_UINT(rig.shard[0].durable, rig.ops_n);
	EXPECT_FALSE(log_full(rig.log, 1));
	reopen();
	end();
}

TEST(three_quarters_tell_the_shard_that_pins)
{
	begin(24, 2, SEG, 8);
	rig.shard[0].stubborn = true;
	while (!log_full(rig.log, 0)) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
		EXPECT_TRUE(rig.ops_n < 8 * SEG / 4096);
	}
	EXPECT_TRUE(rig.ops_n >= 5 * 14);
	EXPECT_TRUE(rig.shard[0].asked > 0);
	EXPECT_FALSE(log_full(rig.log, 1));
	rig_floor(&rig, 0, rig.shard[0].last);
	EXPECT_FALSE(log_full(rig.log, 0));
	end();
}

TEST(a_lower_bound_gives_segments_back)
{
	unsigned i;

	begin(25, 1, SEG, 12);
	rig.shard[0].stubborn = true;
	for (i = 0; i < 120; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(log_bytes() > 4 * SEG);
	rig_floor(&rig, 0, 120);
	rig.shard[0].stubborn = false;
	rig_close(&rig);
	rig.cfg.bytes_max = 4 * SEG;
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
	for (i = 0; i < 300; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(log_bytes() <= 4 * SEG);
	reopen();
	end();
}

TEST(large_entries_and_segments)
{
	unsigned i;

	begin(29, 2, 16u << 20, 4);
	for (i = 0; i < 10; i++) {
		(void)rig_next(&rig, 0, ENTRY_BYTES_MAX);
		(void)rig_next(&rig, 1, 10);
		if (i % 4 == 3)
			rig_settle(&rig);
	}
	rig_settle(&rig);
	EXPECT_UINT(rig.ticket, 20);
	EXPECT_UINT(log_unsynced_bytes(rig.log), 0);
	reopen();
	end();
}

TEST(segment_that_cannot_be_read_is_not_copied)
{
	unsigned i;

	begin(30, 2, SEG, 8);
	(void)rig_next(&rig, 1, 3000);
	rig_settle(&rig);
	rig.shard[1].stubborn = true;
	EXPECT_RC(world_flip(rig.w, 0, "log/0000000000000001.seg", 5000, 1),
		  RC_OK);
	for (i = 0; i < 150; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	/* It stays where it is, and pins; nothing that is live is lost. */
	EXPECT_TRUE(world_alive(rig.w, 0));
	EXPECT_TRUE(log_full(rig.log, 1));
	EXPECT_TRUE(log_bytes() <= rig.cfg.bytes_max);
	rig_drop(&rig);
	world_kill(rig.w, 0);
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_DAMAGED);
	EXPECT_TRUE(log_status(rig.log, 0, NULL) == LOG_WHOLE);
	end();
}

/* ---- a disk without room ---- */

TEST(no_room_for_a_new_segment_is_not_fatal)
{
	struct world_fault none = { .kind = WORLD_NO_SPACE,
				    .op = WORLD_CREATE,
				    .nth = 1,
				    .prefix = "log/",
				    .sticky = true };
	unsigned i;

	begin(26, 1, SEG, 16);
	for (i = 0; i < 15; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_UINT(log_bytes(), 2 * SEG);
	world_fault(rig.w, 0, &none);
	for (; i < 1000; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(world_alive(rig.w, rig.node));
	EXPECT_UINT(rig.ticket, 1000);
	EXPECT_UINT(log_bytes(), 2 * SEG);
	world_faults_clear(rig.w, 0);
	rig.shard[0].stubborn = true;
	for (i = 0; i < 100; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(log_bytes() > 2 * SEG);
	reopen();
	end();
}

TEST(the_reserve_is_not_for_segments)
{
	unsigned i;

	begin(31, 1, SEG, 16);
	rig.cfg.reserve_bytes = (uint64_t)1 << 40;
	reopen();
	for (i = 0; i < 1000; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(world_alive(rig.w, rig.node));
	EXPECT_UINT(log_bytes(), 2 * SEG);
	rig.cfg.reserve_bytes = SEG;
	reopen();
	rig.shard[0].stubborn = true;
	for (i = 0; i < 100; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(log_bytes() > 2 * SEG);
	reopen();
	end();
}

/* It has the first segment only, and what is left is for the states. */
TEST(the_second_segment_leaves_half_of_the_reserve)
{
	uint64_t first;
	unsigned i;

	begin(36, 1, SEG, 16);
	rig_close(&rig);
	first = world_used(rig.w, rig.node);
	rig.cfg.reserve_bytes = 4 * SEG;
	world_capacity(rig.w, rig.node, first + SEG + 2 * SEG - 4096);
	EXPECT_RC(rig_open(&rig), RC_OK);
	for (i = 0; !log_stalled(rig.log); i++) {
		(void)rig_next(&rig, 0, 700);
		world_run_until(rig.w, world_now_ms(rig.w) + 10);
		EXPECT_TRUE(i < 100);
	}
	EXPECT_UINT(log_bytes(), SEG);
	EXPECT_UINT(world_used(rig.w, rig.node), first);
	world_capacity(rig.w, rig.node, first + SEG + 2 * SEG);
	rig_settle(&rig);
	EXPECT_UINT(log_bytes(), 2 * SEG);
	reopen();
	end();
}

TEST(no_room_while_a_segment_is_zeroed_is_undone)
{
	struct world_fault none = { .kind = WORLD_NO_SPACE,
				    .op = WORLD_WRITE,
				    .nth = 1,
				    .prefix = "log/0000000000000003",
				    .sticky = true };
	size_t bytes;
	unsigned i;

	begin(27, 1, SEG, 16);
	world_fault(rig.w, 0, &none);
	for (i = 0; i < 300; i++) {
		(void)rig_next(&rig, 0, 700);
		rig_settle(&rig);
	}
	EXPECT_TRUE(world_alive(rig.w, rig.node));
	EXPECT_UINT(rig.ticket, 300);
	EXPECT_NULL(world_file(rig.w, 0, "log/0000000000000003.seg", false,
			       &bytes));
	reopen();
	end();
}

/* ---- failures ---- */

static void crash(struct rig *r, unsigned how)
{
	rig_drop(r);
	if (how != 0)
		world_kill(r->w, 0);
	if (how == 1)
		return;
	if (how == 2) {
		/* Read after the kill, then the power went. */
		(void)rig_open(r);
		rig_drop(r);
	}
	world_power_cut(r->w, 0);
}

/* A crash, or a failure, while the log is opened; then power goes. */
static void open_badly(struct rig *r, enum world_fault_kind kind, uint64_t nth)
{
	struct world_fault f = { .kind = kind,
				 .op = kind == WORLD_SHORT ? WORLD_WRITE
							   : WORLD_CHANGE,
				 .nth = nth };

	world_fault(r->w, r->node, &f);
	(void)rig_open(r);
	rig_drop(r);
	world_faults_clear(r->w, r->node);
	if (nth % 2 == 0)
		world_drop_caches(r->w, r->node);
	world_power_cut(r->w, r->node);
}

/* One load with a fault at the n-th operation of a kind, another while it is
 * opened again, and a crash some time later: what is there is right each time,
 * and the log goes on. True when the fault came. */
static bool crash_once(struct rig *r, uint64_t seed, enum world_op op,
		       uint64_t nth, enum world_fault_kind kind, unsigned how)
{
	struct world_fault f = { .kind = kind, .op = op, .nth = nth };
	bool fired;

	rig_init(r, seed, 3, 16384, 5);
	r->quiet = true;
	/* Shards 1 and 2 live by copies in every third world. */
	r->shard[1].stubborn = seed % 3 == 0;
	r->shard[2].stubborn = seed % 3 == 0;
	rig_format(r);
	EXPECT_RC(rig_open(r), RC_OK);
	rig_check(r);
	rig_load(r, 60);
	world_fault(r->w, 0, &f);
	rig_load(r, 60);
	fired = world_faults_fired(r->w, r->node) > 0;
	if (kind != WORLD_NO_SPACE && fired && world_alive(r->w, r->node))
		rig_wrong(r, "the node lives on after a failure");
	world_faults_clear(r->w, r->node);
	crash(r, how);
	if (nth % 4 == 3)
		open_badly(r, kind, nth / 4 + 1);
	if (rig_open(r) != RC_OK) {
		rig_wrong(r, "does not open: %s", r->why.text);
		return fired;
	}
	rig_check(r);
	if (!r->wrong) {
		rig_load(r, 30);
		crash(r, (unsigned)(seed % 3));
		if (rig_open(r) != RC_OK)
			rig_wrong(r, "does not open again: %s", r->why.text);
		else
			rig_check(r);
	}
	return fired;
}

/* Faults at every operation; stops at the first run that goes wrong. */
static uint64_t faults_everywhere(uint64_t seeds, const enum world_op *ops,
				  size_t ops_n,
				  const enum world_fault_kind kinds[2],
				  bool expect_right)
{
	uint64_t runs = 0;
	uint64_t nth;
	uint64_t seed;
	bool fired;
	size_t i;

	for (seed = 1; seed <= seeds; seed++)
		for (i = 0; i < ops_n; i++)
			for (nth = 1;; nth++) {
				runner_context("seed %llu, op %u, nth %llu",
					       (unsigned long long)seed, ops[i],
					       (unsigned long long)nth);
				fired = crash_once(&rig, seed, ops[i], nth,
						   kinds[(seed + nth) % 2],
						   (unsigned)(nth % 3));
				runs++;
				if (rig.wrong && expect_right)
					FAIL("%s", rig.wrong_text);
				rig_free(&rig);
				if (rig.wrong)
					return runs;
				if (!fired)
					break;
			}
	return expect_right ? runs : 0;
}

static uint64_t crash_everywhere(uint64_t seeds, bool expect_right)
{
	static const enum world_op ops[] = { WORLD_WRITE, WORLD_SYNC,
					     WORLD_CREATE, WORLD_SYNC_DIR,
					     WORLD_UNLINK };
	static const enum world_fault_kind kinds[] = { WORLD_CRASH_BEFORE,
						       WORLD_CRASH_AFTER };

	return faults_everywhere(seeds, ops, ARRAY_LEN(ops), kinds,
				 expect_right);
}

TEST(a_crash_anywhere_loses_nothing_acknowledged)
{
	uint64_t runs = crash_everywhere(SEEDS, true);

	EXPECT_TRUE(runs > 100);
	printf("# %llu crashes\n", (unsigned long long)runs);
}

TEST(a_failed_write_or_sync_ends_the_node_and_loses_nothing)
{
	static const enum world_op writes[] = { WORLD_WRITE };
	static const enum world_op others[] = { WORLD_SYNC, WORLD_SYNC_DIR,
						WORLD_CREATE, WORLD_CHANGE };
	static const enum world_fault_kind bad[] = { WORLD_SHORT, WORLD_EIO };
	static const enum world_fault_kind none[] = { WORLD_EIO,
						      WORLD_NO_SPACE };
	uint64_t runs;

	runs = faults_everywhere(SEEDS / 4, writes, 1, bad, true);
	runs += faults_everywhere(SEEDS / 4, others, 4, none, true);
	EXPECT_TRUE(runs > 100);
	printf("# %llu failures\n", (unsigned long long)runs);
}

/* ---- memory ---- */

TEST(no_memory_is_an_error_or_a_clean_stop)
{
	unsigned stopped = 0;
	unsigned refused = 0;
	uint64_t n;
	enum rc rc;
	bool fired;

	for (n = 1;; n++) {
		runner_context("allocation %llu", (unsigned long long)n);
		rig_init(&rig, 28, 3, 16384, 5);
		rig_format(&rig);
		EXPECT_RC(rig_open(&rig), RC_OK);
		rig_check(&rig);
		rig_load(&rig, 60);
		rig_close(&rig);
		fault_alloc(n);
		rc = rig_open(&rig);
		if (rc == RC_OK) {
			fault_hold();
			rig_check(&rig);
			fault_release();
			rig_load(&rig, 60);
		}
		fired = fault_off();
		if (rc != RC_OK) {
			EXPECT_RC(rc, RC_NOMEM);
			refused++;
		} else if (!world_alive(rig.w, rig.node)) {
			stopped++;
		}
		rig_drop(&rig);
		world_kill(rig.w, rig.node);
		world_power_cut(rig.w, rig.node);
		EXPECT_RC(rig_open(&rig), RC_OK);
		rig_check(&rig);
		rig_free(&rig);
		if (!fired)
			break;
	}
	EXPECT_TRUE(refused > 5);
	EXPECT_TRUE(stopped > 0);
}

/* ---- the rules, left out ---- */

static void expect_death(enum mutant m)
{
	uint64_t runs;

	mutant_now = m;
	runs = crash_everywhere(200, false);
	mutant_now = MUTANT_none;
	EXPECT_TRUE(runs > 0);
	printf("# dies in run %llu: %s\n", (unsigned long long)runs,
	       rig.wrong_text);
}

TEST(mutant_log_no_sync_dies)
{
	expect_death(MUTANT_log_no_sync);
}

TEST(mutant_log_ack_before_sync_dies)
{
	expect_death(MUTANT_log_ack_before_sync);
}

TEST(mutant_log_no_dir_sync_dies)
{
	expect_death(MUTANT_log_no_dir_sync);
}

TEST(mutant_log_trust_unsynced_dies)
{
	expect_death(MUTANT_log_trust_unsynced);
}

TEST(mutant_log_recycle_early_dies)
{
	expect_death(MUTANT_log_recycle_early);
}

TEST(mutant_ballot_no_sync_dies)
{
	expect_death(MUTANT_ballot_no_sync);
}
