#include "raft-glue/ballot.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/pair.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

static struct world *w;
static struct disk *disk;
static struct ballot *ballot;
static struct detail why;

static void begin(uint64_t seed)
{
	w = world_new(seed);
	disk = world_disk(w, 0);
	why = (struct detail){ .text = "" };
	EXPECT_RC(ballot_format(disk, 16, &why), RC_OK);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
}

static void end(void)
{
	ballot_close(ballot);
	world_free(w);
}

static struct ballot_change vote(uint32_t shard, uint64_t n)
{
	struct ballot_change c = {
		.shard = shard,
		.slot = { .term = n, .vote = n % 7, .state_generation = n + 1 },
	};

	memset(c.slot.state_hash, (int)n, sizeof(c.slot.state_hash));
	return c;
}

static void put(uint32_t shard, uint64_t n)
{
	struct ballot_change c = vote(shard, n);

	EXPECT_RC(ballot_write(ballot, &c, 1, &why), RC_OK);
}

static void expect_vote(uint32_t shard, uint64_t n)
{
	struct ballot_slot got = ballot_get(ballot, shard);
	struct ballot_change c = vote(shard, n);

	EXPECT_TRUE(ballot_good(ballot, shard));
	EXPECT_UINT(got.term, n);
	EXPECT_MEM(&got, &c.slot, sizeof(got));
}

static void reopen(void)
{
	ballot_close(ballot);
	world_power_cut(w, 0);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
}

TEST(new_file_is_good_and_empty)
{
	uint32_t s;

	begin(1);
	for (s = 0; s < 16; s++) {
		EXPECT_TRUE(ballot_good(ballot, s));
		EXPECT_UINT(ballot_get(ballot, s).term, 0);
		EXPECT_UINT(ballot_get(ballot, s).vote, 0);
	}
	EXPECT_UINT(ballot_counter(ballot), 1);
	end();
}

TEST(votes_survive_a_power_cut)
{
	struct ballot_change many[16];
	uint64_t syncs;
	uint32_t s;

	begin(2);
	for (s = 0; s < 16; s++)
		many[s] = vote(s, 40 + s);
	syncs = world_count(w, 0, WORLD_SYNC);
	EXPECT_RC(ballot_write(ballot, many, 16, &why), RC_OK);
	EXPECT_UINT(world_count(w, 0, WORLD_SYNC) - syncs, PAIR_SYNCS);
	put(3, 99);
	EXPECT_UINT(ballot_counter(ballot), 3);
	expect_vote(3, 99);
	reopen();
	EXPECT_UINT(ballot_counter(ballot), 3);
	for (s = 0; s < 16; s++)
		expect_vote(s, s == 3 ? 99 : 40 + s);
	end();
}

TEST(format_overwrites_only_what_holds_no_term)
{
	begin(3);
	ballot_close(ballot);
	EXPECT_RC(ballot_format(disk, 16, &why), RC_OK);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	put(2, 5);
	EXPECT_RC(ballot_format(disk, 16, &why), RC_EXISTS);
	EXPECT_HAS(why.text, "not formatted again");
	reopen();
	expect_vote(2, 5);
	end();
}

TEST(no_file_is_not_found)
{
	w = world_new(4);
	EXPECT_RC(ballot_open(world_disk(w, 0), 1, &ballot, NULL),
		  RC_NOT_FOUND);
	world_free(w);
}

/* At every operation of a write: the vote before, or this one. */
TEST(crash_in_a_write_leaves_the_old_or_the_new_vote)
{
	static const enum world_fault_kind kinds[] = { WORLD_CRASH_BEFORE,
						       WORLD_CRASH_AFTER };
	struct ballot_change c = vote(6, 11);
	uint64_t seed;
	uint64_t nth;
	enum rc rc;

	for (seed = 0; seed < 40; seed++)
		for (nth = 1; nth <= 4; nth++) {
			struct world_fault f = { .kind = kinds[seed % 2],
						 .op = WORLD_CHANGE,
						 .nth = nth };

			runner_context("seed %llu, operation %llu",
				       (unsigned long long)seed,
				       (unsigned long long)nth);
			begin(seed);
			put(6, 10);
			world_fault(w, 0, &f);
			rc = ballot_write(ballot, &c, 1, &why);
			world_kill(w, 0);
			if (seed % 3 == 0) {
				/* Read once from the cache, then a cut. */
				ballot_close(ballot);
				EXPECT_RC(ballot_open(disk, 16, &ballot, &why),
					  RC_OK);
				if (ballot_get(ballot, 6).term == 11)
					rc = RC_OK;
			}
			reopen();
			if (rc == RC_OK || ballot_get(ballot, 6).term == 11)
				expect_vote(6, 11);
			else
				expect_vote(6, 10);
			/* It goes on in step. */
			EXPECT_RC(ballot_reconcile(ballot, 2, &why), RC_OK);
			put(5, 12);
			reopen();
			EXPECT_RC(ballot_reconcile(
					  ballot, ballot_counter(ballot), &why),
				  RC_OK);
			expect_vote(5, 12);
			EXPECT_TRUE(ballot_good(ballot, 6));
			end();
		}
}

/* One of the two areas, as it is or was. */
static void area_io(unsigned area, uint8_t *image, bool write)
{
	const size_t bytes = SHARDS_MAX * PAIR_SECTOR;
	struct disk_file *f;
	size_t got;

	EXPECT_RC(disk_open(disk, "ballot", 0, &f, NULL), RC_OK);
	if (write) {
		EXPECT_RC(disk_write(f, image, bytes, area * bytes), RC_OK);
		EXPECT_RC(disk_sync(f), RC_OK);
	} else {
		EXPECT_RC(disk_read(f, image, bytes, area * bytes, &got),
			  RC_OK);
		EXPECT_UINT(got, bytes);
	}
	disk_close(f);
}

/* Shard 6 voted in 10 and 11, and one area knows nothing of the second. */
static void begin_with_an_old_area(unsigned area)
{
	uint8_t *old = pair_image(SHARDS_MAX * PAIR_SECTOR);

	begin(11);
	put(6, 10);
	area_io(area, old, false);
	put(6, 11);
	ballot_close(ballot);
	area_io(area, old, true);
	free(old);
}

TEST(the_newer_copy_counts)
{
	unsigned area;

	for (area = 0; area < 2; area++) {
		begin_with_an_old_area(area);
		EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
		expect_vote(6, 11);
		end();
	}
}

/* The start writes both again: when the first is touched, and damaged, the
 * second is already what it was. */
TEST(a_start_overwrites_the_older_copy_first)
{
	const struct world_fault f = { .kind = WORLD_CRASH_BEFORE,
				       .op = WORLD_CHANGE,
				       .nth = 3 };

	begin_with_an_old_area(1);
	world_fault(w, 0, &f);
	EXPECT_TRUE(ballot_open(disk, 16, &ballot, &why) != RC_OK);
	world_kill(w, 0);
	world_power_cut(w, 0);
	EXPECT_RC(world_flip(w, 0, "ballot", 6 * PAIR_SECTOR + 20, 1), RC_OK);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	expect_vote(6, 11);
	end();
}

TEST(failed_write_or_sync_is_told)
{
	static const struct world_fault f[] = {
		{ .kind = WORLD_EIO, .op = WORLD_WRITE, .nth = 1 },
		{ .kind = WORLD_EIO, .op = WORLD_WRITE, .nth = 2 },
		{ .kind = WORLD_SHORT, .op = WORLD_WRITE, .nth = 1 },
		{ .kind = WORLD_NO_SPACE, .op = WORLD_WRITE, .nth = 2 },
		{ .kind = WORLD_EIO, .op = WORLD_SYNC, .nth = 1 },
		{ .kind = WORLD_EIO, .op = WORLD_SYNC, .nth = 2 },
	};
	struct ballot_change c = vote(1, 4);
	uint64_t term;
	size_t i;

	for (i = 0; i < ARRAY_LEN(f); i++) {
		runner_context("case %zu", i);
		begin(5);
		put(1, 3);
		world_fault(w, 0, &f[i]);
		EXPECT_RC(ballot_write(ballot, &c, 1, &why),
			  f[i].kind == WORLD_NO_SPACE ? RC_NO_SPACE : RC_IO);
		EXPECT_HAS(why.text, "ballot");
		world_kill(w, 0);
		world_drop_caches(w, 0);
		reopen();
		term = ballot_get(ballot, 1).term;
		EXPECT_TRUE(term == 3 || term == 4);
		expect_vote(1, term);
		end();
	}
}

/* ---- damage ---- */

static void copy_to_spare(void)
{
	world_copy(w, 0, 1);
	disk = world_disk(w, 1);
}

TEST(every_flipped_bit_changes_nothing)
{
	uint64_t byte;
	unsigned bit;

	begin(6);
	put(3, 5);
	put(4, 6);
	for (byte = 0; byte < 2 * SHARDS_MAX * PAIR_SECTOR; byte++) {
		/* The two that were written whole, the others in part. */
		if (byte / PAIR_SECTOR % SHARDS_MAX != 3 &&
		    byte / PAIR_SECTOR % SHARDS_MAX != 4 && byte % 37 != 0)
			continue;
		bit = (unsigned)(byte % 8);
		runner_context("byte %llu, bit %u", (unsigned long long)byte,
			       bit);
		ballot_close(ballot);
		copy_to_spare();
		EXPECT_RC(world_flip(w, 1, "ballot", byte, bit), RC_OK);
		EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
		expect_vote(3, 5);
		expect_vote(4, 6);
		EXPECT_TRUE(ballot_good(ballot, 5));
		EXPECT_UINT(ballot_counter(ballot), 3);
		/* And the bad copy is mended. */
		EXPECT_RC(ballot_reconcile(ballot, 3, &why), RC_OK);
		EXPECT_TRUE(ballot_good(ballot, 3));
	}
	end();
}

TEST(both_copies_bad_is_a_lost_ballot_until_it_is_written)
{
	begin(7);
	put(3, 5);
	put(4, 6);
	ballot_close(ballot);
	EXPECT_RC(world_flip(w, 0, "ballot", 3 * 512 + 20, 1), RC_OK);
	EXPECT_RC(world_flip(w, 0, "ballot", (64 + 3) * 512 + 30, 1), RC_OK);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	EXPECT_FALSE(ballot_good(ballot, 3));
	EXPECT_RC(ballot_check(ballot, 3, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "shard 3");
	expect_vote(4, 6);
	/* Others write, restarts come: it stays lost. */
	put(4, 7);
	reopen();
	EXPECT_FALSE(ballot_good(ballot, 3));
	expect_vote(4, 7);
	put(3, 9);
	expect_vote(3, 9);
	reopen();
	expect_vote(3, 9);
	end();
}

/* A disk that replaces a lost one: what it says, it knows from others. */
static unsigned good_after_a_loss(void)
{
	unsigned good = 0;
	uint32_t s;

	w = world_new(30);
	disk = world_disk(w, 0);
	EXPECT_RC(ballot_format_lost(disk, 16, &why), RC_OK);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	reopen();
	for (s = 0; s < 16; s++)
		good += ballot_good(ballot, s);
	return good;
}

TEST(a_lost_disk_has_no_good_ballot_until_it_is_written)
{
	EXPECT_UINT(good_after_a_loss(), 0);
	put(3, 9);
	reopen();
	expect_vote(3, 9);
	EXPECT_FALSE(ballot_good(ballot, 4));
	EXPECT_RC(ballot_check(ballot, 4, &why), RC_CORRUPT);
	end();
}

TEST(mutant_reset_votes_dies)
{
	unsigned good;

	mutant_now = MUTANT_reset_votes;
	good = good_after_a_loss();
	mutant_now = MUTANT_none;
	EXPECT_UINT(good, 16);
	end();
}

TEST(unreadable_blocks_are_bad_copies)
{
	struct world_fault f = { .kind = WORLD_EIO,
				 .op = WORLD_READ,
				 .nth = 1 };

	begin(8);
	put(3, 5);
	ballot_close(ballot);
	world_fault(w, 0, &f);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	expect_vote(3, 5);
	end();
}

TEST(truncated_file_loses_one_copy)
{
	struct disk_file *f;

	begin(9);
	put(3, 5);
	ballot_close(ballot);
	EXPECT_RC(disk_open(disk, "ballot", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_truncate(f, SHARDS_MAX * PAIR_SECTOR), RC_OK);
	disk_close(f);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	expect_vote(3, 5);
	ballot_close(ballot);
	EXPECT_RC(disk_open(disk, "ballot", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_truncate(f, 0), RC_OK);
	disk_close(f);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	EXPECT_FALSE(ballot_good(ballot, 3));
	end();
}

TEST(newer_version_is_refused)
{
	struct disk_file *f;
	uint8_t *p;
	size_t n;

	begin(10);
	ballot_close(ballot);
	p = world_file(w, 0, "ballot", false, &n);
	p[5 * 512 + 8] = 2;
	pair_seal(p + 5 * 512);
	EXPECT_RC(disk_open(disk, "ballot", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, p, n, 0), RC_OK);
	disk_close(f);
	free(p);
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_VERSION);
	EXPECT_HAS(why.text, "newer version");
	EXPECT_RC(ballot_format(disk, 16, NULL), RC_EXISTS);
	world_free(w);
}

/* ---- the counter ---- */

TEST(lost_writes_are_found_and_remembered)
{
	begin(11);
	put(3, 5);
	put(4, 6);
	EXPECT_UINT(ballot_counter(ballot), 3);
	EXPECT_RC(ballot_reconcile(ballot, 3, &why), RC_OK);
	EXPECT_TRUE(ballot_good(ballot, 3));
	EXPECT_RC(ballot_reconcile(ballot, 5, &why), RC_OK);
	EXPECT_FALSE(ballot_good(ballot, 3));
	EXPECT_FALSE(ballot_good(ballot, 0));
	EXPECT_RC(ballot_check(ballot, 3, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "lost writes");
	EXPECT_UINT(ballot_counter(ballot), 5);
	put(3, 8);
	EXPECT_TRUE(ballot_good(ballot, 3));
	reopen();
	EXPECT_TRUE(ballot_good(ballot, 3));
	EXPECT_FALSE(ballot_good(ballot, 4));
	EXPECT_UINT(ballot_get(ballot, 4).term, 6);
	end();
}

TEST(only_shards_whose_sectors_are_behind_are_in_doubt)
{
	struct disk_file *f;
	uint8_t *old;
	size_t n;

	begin(12);
	put(3, 5);
	old = world_file(w, 0, "ballot", false, &n);
	put(3, 6);
	/* Both copies of shard 3 as they were before. */
	EXPECT_RC(disk_open(disk, "ballot", 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, old + 3 * 512, 512, 3 * 512), RC_OK);
	EXPECT_RC(disk_write(f, old + 67 * 512, 512, 67 * 512), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	free(old);
	reopen();
	EXPECT_RC(ballot_reconcile(ballot, 3, &why), RC_OK);
	EXPECT_FALSE(ballot_good(ballot, 3));
	EXPECT_TRUE(ballot_good(ballot, 4));
	end();
}

/* ---- offline ---- */

static unsigned lines;
static char last_line[256];

static void note(void *arg, const char *line)
{
	(void)arg;
	lines++;
	(void)snprintf(last_line, sizeof(last_line), "%s", line);
}

TEST(verify_tells_each_bad_copy_and_changes_nothing)
{
	uint64_t counter;
	uint64_t before;

	begin(13);
	put(3, 5);
	lines = 0;
	EXPECT_RC(ballot_verify(disk, 16, note, NULL, &counter, &why), RC_OK);
	EXPECT_UINT(lines, 0);
	EXPECT_UINT(counter, 2);
	EXPECT_RC(world_flip(w, 0, "ballot", 67 * 512 + 20, 1), RC_OK);
	before = world_count(w, 0, WORLD_CHANGE);
	EXPECT_RC(ballot_verify(disk, 16, note, NULL, &counter, &why),
		  RC_CORRUPT);
	EXPECT_UINT(lines, 1);
	EXPECT_STR(last_line, "ballot, offset 34304: copy B of shard 3 is "
			      "damaged");
	EXPECT_UINT(world_count(w, 0, WORLD_CHANGE), before);
	end();
}

TEST(mutant_ballot_no_sync_dies)
{
	begin(14);
	mutant_now = MUTANT_ballot_no_sync;
	put(3, 5);
	mutant_now = MUTANT_none;
	world_power_cut(w, 0);
	ballot_close(ballot);
	/* What a power cut may leave when it keeps nothing. */
	EXPECT_RC(ballot_open(disk, 16, &ballot, &why), RC_OK);
	EXPECT_TRUE(ballot_get(ballot, 3).term == 0 ||
		    ballot_counter(ballot) == 2);
	end();
}
