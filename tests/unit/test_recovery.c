#include "raft-glue/recovery.h"

#include "raft-glue/segment.h"
#include "tests/lib/log_rig.h"

#define SEG 32768u
#define ONE "log/0000000000000001.seg"
#define TWO "log/0000000000000002.seg"

static struct rig rig;

static void begin(uint64_t seed, unsigned segments)
{
	rig_init(&rig, seed, 3, SEG, segments);
	rig_format(&rig);
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
}

static void end(void)
{
	rig_free(&rig);
}

/* One batch. */
static void put(uint32_t shard, uint32_t bytes)
{
	(void)rig_next(&rig, shard, bytes);
	rig_settle(&rig);
}

/* Three batches of three shards, one of them of many sectors. */
static void begin_with_three(uint64_t seed)
{
	begin(seed, 6);
	put(0, 10);
	put(1, 5000);
	put(2, 20);
}

/* Opens what is there; the set of shards that are damaged. Those that are not
 * hold exactly what was appended. */
static unsigned damage(void)
{
	struct rig_found f;
	unsigned set = 0;
	uint32_t s;

	EXPECT_RC(rig_open(&rig), RC_OK);
	for (s = 0; s < rig.cfg.shards; s++) {
		if (log_status(rig.log, s, &rig.why) != LOG_WHOLE) {
			set |= 1u << s;
			continue;
		}
		rig_find(&rig, s, &f);
		EXPECT_FALSE(f.wrong_data);
		EXPECT_TRUE(rig_matches(&rig, &f, rig.ops_n));
		free(f.e);
	}
	return set;
}

static unsigned reopened(void)
{
	rig_drop(&rig);
	world_kill(rig.w, rig.node);
	return damage();
}

static void flip(const char *name, uint64_t byte, unsigned bit)
{
	EXPECT_RC(world_flip(rig.w, rig.node, name, byte, bit), RC_OK);
}

/* Writes into a file as if the disk had done it. */
static void overwrite(const char *name, const void *p, size_t n, uint64_t off)
{
	struct disk *d = world_disk(rig.w, rig.node);
	struct disk_file *f;

	EXPECT_RC(disk_open(d, name, 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, p, n, off), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
}

static void zero(const char *name, size_t n, uint64_t off)
{
	uint8_t *p = rig_alloc(n);

	overwrite(name, p, n, off);
	free(p);
}

static void stop_node(void)
{
	rig_drop(&rig);
	world_kill(rig.w, rig.node);
}

/* ---- findings ---- */

static char lines[8192];
static unsigned lines_n;

static void note_line(void *arg, const char *line)
{
	size_t n = strlen(lines);

	(void)arg;
	(void)snprintf(lines + n, sizeof(lines) - n, "%s\n", line);
	lines_n++;
}

static enum rc verify(void)
{
	lines[0] = '\0';
	lines_n = 0;
	return log_verify(world_disk(rig.w, rig.node), &rig.cfg, note_line,
			  NULL, NULL, NULL);
}

/* ---- torn or damaged ---- */

TEST(torn_last_batch_is_cut_silently)
{
	/* The second batch has two blocks at 8192: without its first sector,
	 * its last, one in the middle, all but the first. */
	static const struct {
		uint64_t off;
		size_t n;
	} lost[] = { { 8192, 512 },
		     { 16384 - 512, 512 },
		     { 8192 + 1024, 512 },
		     { 8192 + 512, 8192 - 512 } };
	size_t i;

	for (i = 0; i < ARRAY_LEN(lost); i++) {
		runner_context("loss %zu", i);
		begin(1, 6);
		put(0, 10);
		put(1, 5000);
		stop_node();
		zero(ONE, lost[i].n, lost[i].off);
		EXPECT_RC(verify(), RC_OK);
		rig.ops_n = 1;
		EXPECT_UINT(damage(), 0);
		/* What was left of it is gone: the same number again. */
		rig.ticket = 1;
		rig.shard[1].last = 0;
		rig.shard[1].durable = 0;
		put(1, 20);
		EXPECT_UINT(reopened(), 0);
		end();
	}
}

TEST(bad_sector_in_the_last_batch_is_damage)
{
	begin_with_three(2);
	stop_node();
	flip(ONE, 16384 + 700, 3);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, ONE ", offset 16896: a sector of batch 3");
	EXPECT_HAS(lines, "shard 2");
	EXPECT_UINT(damage(), 1u << 2);
	EXPECT_HAS(rig.why.text, "is damaged");
	/* And still is when the others went on. */
	EXPECT_UINT(reopened(), 1u << 2);
	put(0, 30);
	EXPECT_UINT(reopened(), 1u << 2);
	end();
}

TEST(bad_first_sector_of_the_last_batch_is_damage_of_all)
{
	begin_with_three(3);
	stop_node();
	flip(ONE, 16384 + 70, 3);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "all shards");
	EXPECT_UINT(damage(), 7);
	end();
}

TEST(bad_sector_in_an_older_batch_is_damage_of_its_shards)
{
	begin(4, 6);
	put(0, 10);
	put(1, 10);
	put(0, 10);
	stop_node();
	flip(ONE, 8192 + 1000, 1);
	EXPECT_UINT(damage(), 1u << 1);
	EXPECT_HAS(rig.why.text, "offset 8704: a sector of batch 2 is damaged");
	stop_node();
	/* Also when the floor says that its only known entry is not needed:
	 * there may have been more in it. */
	rig.floors[1] = 1;
	EXPECT_UINT(damage(), 1u << 1);
	end();
}

TEST(damage_below_the_floor_is_none)
{
	begin(27, 6);
	put(0, 10);
	put(1, 10);
	put(0, 10);
	put(1, 10);
	stop_node();
	flip(ONE, 8192 + 1000, 1);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_UINT(damage(), 1u << 1);
	stop_node();
	rig.floors[1] = 1;
	EXPECT_UINT(damage(), 0);
	EXPECT_UINT(log_range(rig.log, 1).first, 2);
	end();
}

TEST(old_sector_in_a_batch_with_a_successor_is_damage)
{
	begin(5, 6);
	put(0, 10);
	put(1, 10);
	put(2, 10);
	stop_node();
	zero(ONE, 512, 8192 + 1024);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "batch 2 was not written");
	EXPECT_UINT(damage(), 1u << 1);
	end();
}

TEST(lost_first_sector_of_a_batch_with_a_successor_is_damage)
{
	begin(6, 6);
	put(0, 10);
	put(1, 10);
	put(2, 10);
	stop_node();
	zero(ONE, 4096, 8192);
	EXPECT_RC(verify(), RC_CORRUPT);
	/* Whose it was cannot be told; shard 2 has an entry behind it, its
	 * first, so nothing of it can be missing. */
	EXPECT_UINT(damage(), 3);
	end();
}

TEST(misdirected_sector_is_bad_where_it_stands)
{
	uint8_t *p;
	size_t n;

	begin(7, 6);
	put(0, 10);
	put(1, 10);
	stop_node();
	p = world_file(rig.w, rig.node, ONE, false, &n);
	/* The first batch's second sector over the second's. */
	overwrite(ONE, p + 4096 + 512, 512, 8192 + 512);
	free(p);
	EXPECT_UINT(damage(), 1u << 1);
	end();
}

TEST(stale_bad_sector_behind_the_log_is_told_and_cleared)
{
	begin(8, 6);
	put(0, 10);
	stop_node();
	flip(ONE, 8192 + 1000, 1);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "behind the last batch: no shard");
	EXPECT_UINT(damage(), 0);
	stop_node();
	EXPECT_RC(verify(), RC_OK);
	end();
}

TEST(a_block_that_is_bad_throughout_may_have_been_a_batch)
{
	uint8_t junk[4096];

	memset(junk, 0x5a, sizeof(junk));
	begin(9, 6);
	put(0, 10);
	stop_node();
	overwrite(ONE, junk, sizeof(junk), 8192);
	EXPECT_UINT(damage(), 7);
	end();
}

TEST(unreadable_block_is_damage)
{
	struct world_fault f = { .kind = WORLD_EIO,
				 .op = WORLD_READ,
				 .nth = 1,
				 .prefix = ONE,
				 .sticky = true };

	begin(10, 6);
	put(0, 10);
	stop_node();
	world_fault(rig.w, rig.node, &f);
	EXPECT_UINT(damage(), 7);
	world_faults_clear(rig.w, rig.node);
	EXPECT_UINT(reopened(), 0);
	end();
}

TEST(damage_is_remembered_when_its_segment_is_recycled)
{
	unsigned i;

	begin(11, 4);
	put(0, 10);
	put(1, 10);
	put(0, 10);
	stop_node();
	flip(ONE, 8192 + 1000, 1);
	EXPECT_UINT(damage(), 2);
	for (i = 0; i < 60; i++)
		put(0, 500);
	rig_drop(&rig);
	world_kill(rig.w, rig.node);
	rig.floors[0] = rig_durable_index(&rig, 0);
	EXPECT_UINT(damage(), 2);
	EXPECT_HAS(rig.why.text, "an earlier start");
	/* The shard is built anew: nothing is wrong with it any more. */
	rig.ops_n = 0;
	rig.base_ticket = 0;
	rig.ticket = 0;
	rig_base(&rig, 1, 77);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_WHOLE);
	put(1, 5);
	rig_drop(&rig);
	world_kill(rig.w, rig.node);
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_WHOLE);
	EXPECT_UINT(log_range(rig.log, 1).first, 78);
	EXPECT_UINT(log_range(rig.log, 1).last, 78);
	end();
}

TEST(after_damage_at_the_end_the_log_goes_on_elsewhere)
{
	uint8_t *a;
	uint8_t *b;
	size_t n;

	begin_with_three(12);
	stop_node();
	flip(ONE, 16384 + 700, 3);
	a = world_file(rig.w, rig.node, ONE, false, &n);
	EXPECT_UINT(damage(), 1u << 2);
	put(0, 30);
	put(1, 30);
	EXPECT_UINT(reopened(), 1u << 2);
	put(0, 30);
	EXPECT_UINT(reopened(), 1u << 2);
	/* The damaged segment is left as it is. */
	b = world_file(rig.w, rig.node, ONE, false, &n);
	EXPECT_MEM(b, a, n);
	free(a);
	free(b);
	EXPECT_RC(verify(), RC_CORRUPT);
	end();
}

TEST(unidentified_end_is_damage_of_all_that_stays)
{
	begin_with_three(26);
	stop_node();
	flip(ONE, 16384 + 70, 3);
	EXPECT_UINT(damage(), 7);
	rig_base(&rig, 1, 50);
	rig.ops_n--;
	rig_base(&rig, 2, 60);
	rig.ops_n--;
	world_run_until(rig.w, world_now_ms(rig.w) + 100);
	stop_node();
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_TRUE(log_status(rig.log, 0, NULL) == LOG_DAMAGED);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_WHOLE);
	EXPECT_UINT(log_range(rig.log, 1).last, 50);
	EXPECT_UINT(log_range(rig.log, 2).last, 60);
	end();
}

/* The headers of the first slots; zeros: there is none. */
#define SLOTS 8u

static void read_headers(uint8_t head[SLOTS][SEGMENT_HEAD_BYTES])
{
	char name[SEGMENT_NAME_BYTES];
	uint8_t *p;
	uint32_t i;
	size_t n;

	memset(head, 0, SLOTS * sizeof(*head));
	for (i = 0; i < SLOTS; i++) {
		segment_name(name, i + 1);
		p = world_file(rig.w, rig.node, name, false, &n);
		if (p != NULL && n >= SEGMENT_HEAD_BYTES)
			memcpy(head[i], p, SEGMENT_HEAD_BYTES);
		free(p);
	}
}

/* The slot of the newest segment. */
static uint32_t newest_slot(void)
{
	static uint8_t head[SLOTS][SEGMENT_HEAD_BYTES];
	struct head_view v;
	uint64_t seq = 0;
	uint32_t slot = 0;
	uint32_t i;

	read_headers(head);
	for (i = 0; i < SLOTS; i++) {
		EXPECT_RC(segment_head_decode(head[i], i + 1, &v), RC_OK);
		if (v.state != HEAD_WHOLE || v.seq <= seq)
			continue;
		seq = v.seq;
		slot = i + 1;
	}
	EXPECT_TRUE(slot > 0);
	return slot;
}

/* The last batch there. */
static uint64_t last_batch(const char *name)
{
	uint64_t off = SEGMENT_HEAD_BYTES;
	struct batch_head h;
	uint64_t number = 0;
	uint64_t at = 0;
	size_t n;
	uint8_t *p = world_file(rig.w, rig.node, name, false, &n);
	uint32_t slot = newest_slot();

	for (; off < n; off += BLOCK_BYTES)
		if (batch_decode(p + off, slot, off, n - off, &h) == RC_OK &&
		    h.number > number) {
			number = h.number;
			at = off;
		}
	free(p);
	EXPECT_TRUE(at > 0);
	return at;
}

/* The log goes on behind damage, and the disk has lost the header that says
 * so: it shows what stood there before. */
static void lose_the_header(unsigned batches, uint32_t bytes)
{
	static uint8_t before[SLOTS][SEGMENT_HEAD_BYTES];
	char name[SEGMENT_NAME_BYTES];
	uint32_t slot;

	begin(29, 4);
	put(1, 10);
	put(2, 10);
	while (batches-- > 0)
		put(0, bytes);
	stop_node();
	segment_name(name, newest_slot());
	flip(name, last_batch(name) + 700, 1);
	EXPECT_UINT(damage() & 1, 1);
	read_headers(before);
	put(1, 10);
	put(2, 10);
	slot = newest_slot();
	segment_name(name, slot);
	stop_node();
	overwrite(name, before[slot - 1], SEGMENT_HEAD_BYTES, 0);
}

static void the_rest_is_missed(void)
{
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "no header leads to it");
	EXPECT_UINT(damage(), 7);
	/* Nothing was written: it is found again. */
	EXPECT_UINT(reopened(), 7);
	rig_base(&rig, 1, 50);
	put(1, 30);
	stop_node();
	EXPECT_RC(rig_open(&rig), RC_OK);
	EXPECT_TRUE(log_status(rig.log, 0, NULL) == LOG_DAMAGED);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_WHOLE);
	EXPECT_TRUE(log_status(rig.log, 2, NULL) == LOG_DAMAGED);
	EXPECT_UINT(log_range(rig.log, 1).last, 51);
	end();
}

TEST(a_lost_header_behind_damage_hides_no_segment)
{
	lose_the_header(2, 10);
	the_rest_is_missed();
}

TEST(a_lost_header_of_a_recycled_segment_hides_nothing)
{
	lose_the_header(60, 500);
	the_rest_is_missed();
}

/* ---- files ---- */

static void remove_file(const char *name)
{
	struct disk *d = world_disk(rig.w, rig.node);

	EXPECT_RC(d->ops->unlink(d, name), RC_OK);
}

/* Four segments: shards 0 and 1 in all of them, 2 in the first only. */
static void begin_with_four(uint64_t seed)
{
	uint32_t i;

	begin(seed, 16);
	for (i = 0; i < 3; i++)
		rig.shard[i].stubborn = true;
	put(2, 10);
	while (log_range(rig.log, 0).last < 8) {
		put(0, 5000);
		put(1, 10);
	}
	stop_node();
	EXPECT_RC(verify(), RC_OK);
}

TEST(deleted_segment_is_damage_of_what_was_in_it)
{
	char name[SEGMENT_NAME_BYTES];
	unsigned slot;

	for (slot = 1; slot <= 5; slot++) {
		runner_context("slot %u", slot);
		begin_with_four(13);
		segment_name(name, slot);
		remove_file(name);
		/* Shard 2 is in the first only, and the fifth is the head: what
		 * it held nobody tells. */
		EXPECT_UINT(damage(), slot == 1 || slot == 5 ? 7 : 3);
		end();
	}
}

TEST(deleted_segment_below_the_floors_is_no_damage)
{
	begin_with_four(14);
	remove_file(ONE);
	rig.floors[0] = 8;
	rig.floors[1] = 8;
	rig.floors[2] = 1;
	EXPECT_UINT(damage(), 0);
	end();
}

TEST(all_segments_deleted_is_no_log)
{
	begin(15, 4);
	while (log_range(rig.log, 0).last < 7)
		put(0, 10);
	stop_node();
	remove_file(ONE);
	EXPECT_UINT(damage(), 1);
	stop_node();
	remove_file(TWO);
	EXPECT_RC(rig_open(&rig), RC_NOT_FOUND);
	end();
}

TEST(swapped_segments_are_damage)
{
	struct disk *d;

	begin_with_four(16);
	d = world_disk(rig.w, rig.node);
	EXPECT_RC(d->ops->rename(d, ONE, "log/x"), RC_OK);
	EXPECT_RC(d->ops->rename(d, TWO, ONE), RC_OK);
	EXPECT_RC(d->ops->rename(d, "log/x", TWO), RC_OK);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "header is damaged");
	EXPECT_UINT(damage(), 7);
	end();
}

TEST(truncated_segment_is_damage)
{
	struct disk *d;
	struct disk_file *f;

	begin_with_four(17);
	d = world_disk(rig.w, rig.node);
	EXPECT_RC(disk_open(d, TWO, 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_truncate(f, 8192), RC_OK);
	disk_close(f);
	EXPECT_TRUE((damage() & 3) == 3);
	end();
}

TEST(other_files_in_the_directory_are_left_alone)
{
	struct disk *d;
	struct disk_file *f;
	uint8_t *p;
	size_t n;

	begin_with_four(18);
	d = world_disk(rig.w, rig.node);
	EXPECT_RC(disk_open(d, "log/1.seg", DISK_CREATE, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_OK);
	disk_close(f);
	EXPECT_UINT(damage(), 0);
	p = world_file(rig.w, rig.node, "log/1.seg", false, &n);
	EXPECT_UINT(n, 1);
	free(p);
	end();
}

TEST(batch_of_another_history_is_found_by_the_chain)
{
	struct rig other;
	uint8_t *p;
	size_t n;
	int round;

	for (round = 0; round < 2; round++) {
		begin(19, 6);
		rig_init(&other, 20, 3, SEG, 6);
		rig_format(&other);
		EXPECT_RC(rig_open(&other), RC_OK);
		put(0, 10);
		(void)rig_next(&other, 1, 10);
		rig_settle(&other);
		put(0, 10);
		stop_node();
		p = world_file(other.w, 0, ONE, false, &n);
		/* Whole, its number, its place: another batch nevertheless. */
		overwrite(ONE, p + 4096, 4096, 4096);
		free(p);
		if (round == 1)
			mutant_now = MUTANT_log_no_chain_check;
		EXPECT_RC(verify(), round == 0 ? RC_CORRUPT : RC_CORRUPT);
		if (round == 0)
			EXPECT_HAS(lines, "is not the one that was written");
		else
			EXPECT_NULL(strstr(lines, "is not the one"));
		mutant_now = MUTANT_none;
		rig_free(&other);
		end();
	}
}

TEST(mutant_log_no_sector_check_dies)
{
	struct rig_found f;

	begin(21, 6);
	put(0, 900);
	put(0, 10);
	stop_node();
	flip(ONE, 4096 + 700, 2);
	world_copy(rig.w, 0, 1);
	mutant_now = MUTANT_log_no_sector_check;
	EXPECT_RC(rig_open(&rig), RC_OK);
	/* Wrong bytes as if nothing were: what the check is for. */
	EXPECT_TRUE(log_status(rig.log, 0, NULL) == LOG_WHOLE);
	rig_find(&rig, 0, &f);
	EXPECT_TRUE(f.wrong_data);
	free(f.e);
	mutant_now = MUTANT_none;
	stop_node();
	rig.node = 1;
	EXPECT_UINT(damage(), 1);
	end();
}

/* ---- versions ---- */

TEST(newer_versions_are_refused_in_a_sentence)
{
	struct sector_place head = { SECTOR_HEAD, 1, 0 };
	struct sector_place first = { SECTOR_FIRST, 1, 4096 };
	uint8_t *p;
	size_t n;

	begin(22, 6);
	put(0, 10);
	stop_node();
	p = world_file(rig.w, rig.node, ONE, false, &n);
	p[8] = 2;
	sector_seal(p, &head, 1);
	overwrite(ONE, p, 512, 0);
	EXPECT_RC(rig_open(&rig), RC_VERSION);
	EXPECT_HAS(rig.why.text, "newer version");
	p[8] = 1;
	sector_seal(p, &head, 1);
	overwrite(ONE, p, 512, 0);
	EXPECT_UINT(damage(), 0);
	stop_node();
	p[4096 + 4] = 2;
	sector_seal(p + 4096, &first, 1);
	overwrite(ONE, p + 4096, 512, 4096);
	EXPECT_RC(rig_open(&rig), RC_VERSION);
	free(p);
	end();
}

/* ---- whole batches with wrong contents ---- */

/* The first batch of the log, forged: one record, or the bytes of one. */
static void forge(const struct record *rec, uint64_t number, uint64_t before)
{
	struct batch_head h = { .number = number,
				.bytes = 4096,
				.payload = RECORD_HEADER_BYTES + rec->bytes,
				.shards = 1u << rec->shard,
				.seq = 1 };
	uint8_t header[RECORD_HEADER_BYTES];
	uint8_t scratch[64];
	uint8_t hash[HASH_BYTES];
	uint8_t batch[4096];

	memset(h.before, (int)before, HASH_BYTES);
	memset(batch, 0, sizeof(batch));
	record_encode(header, rec);
	batch_put(batch, 0, header, sizeof(header));
	batch_seal(batch, &h, 1, 4096, scratch, hash);
	overwrite(ONE, batch, sizeof(batch), 4096);
}

TEST(records_that_make_no_sense_are_damage)
{
	static const struct {
		struct record rec;
		uint64_t number;
		unsigned set;
		const char *says;
	} c[] = {
		{ { .kind = RECORD_ENTRY, .shard = 1, .index = 1 }, 1, 0, "" },
		{ { .kind = RECORD_ENTRY, .shard = 1, .index = 2 },
		  1,
		  2,
		  "entries 1..1 of shard 1 are missing" },
		{ { .kind = RECORD_ENTRY, .shard = 1, .index = 0 },
		  1,
		  2,
		  "a record of batch 1 makes no sense" },
		{ { .kind = RECORD_ENTRY, .shard = 3, .index = 1 },
		  1,
		  0,
		  "a record of batch 1 makes no sense" },
		{ { .kind = RECORD_ENTRY, .shard = 1, .index = 1ull << 60 },
		  1,
		  2,
		  "cannot follow" },
		{ { .kind = (enum record_kind)4, .shard = 1, .index = 1 },
		  1,
		  2,
		  "a record of batch 1 makes no sense" },
		{ { .kind = RECORD_ENTRY, .shard = 1, .index = 1 },
		  2,
		  5,
		  "batches 1..1 are missing" },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(c); i++) {
		runner_context("case %zu", i);
		begin(29, 4);
		stop_node();
		forge(&c[i].rec, c[i].number, 0);
		EXPECT_RC(verify(), c[i].says[0] != '\0' ? RC_CORRUPT : RC_OK);
		EXPECT_HAS(lines, c[i].says);
		EXPECT_RC(rig_open(&rig), RC_OK);
		EXPECT_UINT(log_status(rig.log, 1, NULL) == LOG_DAMAGED,
			    (c[i].set >> 1 & 1));
		EXPECT_UINT(log_status(rig.log, 0, NULL) == LOG_DAMAGED,
			    (c[i].set & 1));
		end();
	}
}

static void count_dumped(void *arg, uint32_t shard, const struct log_entry *e)
{
	uint64_t *sum = arg;

	*sum += e->index * 100 + shard;
}

TEST(dump_gives_every_record)
{
	uint64_t sum = 0;

	begin_with_three(30);
	stop_node();
	EXPECT_RC(log_verify(world_disk(rig.w, 0), &rig.cfg, note_line,
			     count_dumped, &sum, NULL),
		  RC_OK);
	EXPECT_UINT(sum, 303);
	end();
}

TEST(verify_changes_nothing)
{
	uint64_t before;

	begin_with_four(31);
	before = world_count(rig.w, 0, WORLD_CHANGE);
	EXPECT_RC(verify(), RC_OK);
	EXPECT_UINT(world_count(rig.w, 0, WORLD_CHANGE), before);
	end();
}

TEST(a_read_that_fails_once_is_repeated_by_blocks)
{
	struct world_fault f = {
		.kind = WORLD_EIO, .op = WORLD_READ, .nth = 2, .prefix = ONE
	};

	begin_with_three(32);
	stop_node();
	world_fault(rig.w, rig.node, &f);
	EXPECT_UINT(damage(), 0);
	EXPECT_UINT(world_faults_fired(rig.w, rig.node), 1);
	stop_node();
	/* Blocks that stay unreadable are bad. */
	f.sticky = true;
	world_fault(rig.w, rig.node, &f);
	EXPECT_UINT(damage(), 7);
	world_faults_clear(rig.w, rig.node);
	end();
}

/* ---- the ballot's counter ---- */

TEST(ballot_file_that_lost_writes_is_found)
{
	struct rig_op op;
	uint8_t *old;
	size_t n;

	begin(23, 6);
	rig_vote(&rig, 1, 5);
	put(0, 10);
	rig_close(&rig);
	old = world_file(rig.w, 0, "ballot", false, &n);
	EXPECT_RC(rig_open(&rig), RC_OK);
	rig_check(&rig);
	rig_vote(&rig, 1, 6);
	put(0, 10);
	rig_close(&rig);
	EXPECT_RC(verify(), RC_OK);
	overwrite("ballot", old, n, 0);
	free(old);
	EXPECT_RC(verify(), RC_CORRUPT);
	EXPECT_HAS(lines, "lost writes");
	EXPECT_UINT(damage(), 7);
	EXPECT_HAS(rig.why.text, "the file ballot lost writes");
	EXPECT_FALSE(ballot_good(rig.ballot, 1));
	/* Remembered, although the file counts on. */
	EXPECT_UINT(reopened(), 7);
	/* One that is written again is good. */
	op.index = 9;
	rig_vote(&rig, 1, op.index);
	EXPECT_TRUE(log_status(rig.log, 1, NULL) == LOG_WHOLE);
	rig_settle(&rig);
	EXPECT_UINT(reopened(), 5);
	end();
}

/* ---- every bit ---- */

static uint64_t sweep_detected;

/* The disk of node 0 with one bit flipped, on node 1. */
static void sweep_one(const char *name, uint64_t byte, unsigned bit)
{
	runner_context("%s, byte %llu, bit %u", name, (unsigned long long)byte,
		       bit);
	world_copy(rig.w, 0, 1);
	rig.node = 1;
	EXPECT_RC(world_flip(rig.w, 1, name, byte, bit), RC_OK);
	if (damage() != 0)
		sweep_detected++;
	rig_drop(&rig);
	world_kill(rig.w, 1);
	rig.node = 0;
}

static void sweep(const char *name, unsigned step)
{
	uint64_t byte;
	uint8_t *p;
	size_t n;

	p = world_file(rig.w, 0, name, false, &n);
	EXPECT_NOT_NULL(p);
	free(p);
	sweep_detected = 0;
	for (byte = 0; byte < n; byte += step)
		sweep_one(name, byte, (unsigned)world_random(rig.w, 8));
	printf("# %s: %zu flips, %llu marked a shard damaged\n", name, n / step,
	       (unsigned long long)sweep_detected);
}

TEST(every_flipped_bit_is_detected_or_changes_nothing)
{
	unsigned i;

	begin(24, 4);
	rig_vote(&rig, 0, 3);
	/* Round once, so that old batches lie behind the head. */
	for (i = 0; i < 24; i++) {
		put(i % 2, 400 * (i % 4));
		if (i % 5 == 4)
			rig_vote(&rig, i % 3, i);
	}
	for (i = 0; i < 3; i++)
		rig.shard[i].stubborn = true;
	for (i = 0; i < 6; i++)
		put(i % 3, 1000);
	rig_close(&rig);
	sweep(ONE, 1);
	sweep(TWO, 7);
	sweep("log/0000000000000003.seg", 61);
	sweep("ballot", 31);
	world_kill(rig.w, 0);
	end();
}

/* Every bit of a small log, exhaustively in the first and last batch. */
TEST(every_bit_of_a_batch)
{
	uint64_t byte;
	unsigned bit;

	begin(25, 4);
	put(0, 10);
	put(1, 10);
	rig_close(&rig);
	sweep_detected = 0;
	for (byte = 4096; byte < 4096 + 520; byte++)
		for (bit = 0; bit < 8; bit++)
			sweep_one(ONE, byte, bit);
	for (byte = 8192; byte < 8192 + 520; byte++)
		for (bit = 0; bit < 8; bit++)
			sweep_one(ONE, byte, bit);
	EXPECT_UINT(sweep_detected, 2 * 520 * 8);
	world_kill(rig.w, 0);
	end();
}

/* ---- several faults at once ---- */

static void spoil(const char *name, uint64_t bytes)
{
	uint8_t junk[512];
	uint64_t off = world_random(rig.w, bytes / 512) * 512;
	size_t i;

	switch (world_random(rig.w, 3)) {
	case 0:
		for (i = 0; i < sizeof(junk); i++)
			junk[i] = (uint8_t)world_random(rig.w, 256);
		overwrite(name, junk, sizeof(junk), off);
		break;
	case 1:
		flip(name, off + world_random(rig.w, 512), 4);
		break;
	default:
		for (i = 0; i < 8; i++)
			flip(name, off / 4096 * 4096 + i * 512 + 9, 1);
		break;
	}
}

static void spoil_some(unsigned n)
{
	char name[SEGMENT_NAME_BYTES];

	while (n-- > 0) {
		segment_name(name, 1 + (uint32_t)world_random(rig.w, 3));
		spoil(name, SEG);
	}
}

/* Whatever is damaged: a shard that is called whole holds exactly what was
 * appended, and one that is damaged stays so while the others go on. */
TEST(bad_sectors_anywhere_are_never_taken_for_the_log)
{
	unsigned damaged = 0;
	unsigned trial;
	unsigned set;
	uint64_t ops;
	uint32_t s;

	begin(28, 24);
	rig_load(&rig, 120);
	for (s = 0; s < 3; s++)
		rig.shard[s].stubborn = true;
	rig_load(&rig, 60);
	rig_settle(&rig);
	rig_close(&rig);
	ops = rig.ops_n;
	for (trial = 0; trial < 1500; trial++) {
		runner_context("trial %u", trial);
		world_copy(rig.w, 0, 1);
		rig.node = 1;
		rig.ops_n = ops;
		spoil_some(1 + (unsigned)world_random(rig.w, 4));
		set = damage();
		damaged += set != 0;
		for (s = 0; s < 3; s++) {
			rig.shard[s].last = log_range(rig.log, s).last;
			if ((set >> s & 1) == 0)
				(void)rig_next(&rig, s, 100 * s);
		}
		rig.ticket = ops;
		rig_settle(&rig);
		/* More only where the log has reached what was spoilt in a
		 * segment that was free before. */
		EXPECT_UINT(reopened() & set, set);
		stop_node();
		rig.node = 0;
	}
	printf("# %u of %u marked a shard damaged\n", damaged, trial);
	end();
}
