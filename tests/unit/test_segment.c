#include "raft-glue/segment.h"

#include "node/base/check.h"
#include "raft-glue/le.h"
#include "tests/lib/runner.h"

static uint8_t batch[64 << 10];
static uint8_t scratch[1024];
static uint8_t hash[HASH_BYTES];

/* ---- sectors ---- */

TEST(sector_is_what_it_was_sealed_as)
{
	struct sector_place at = { SECTOR_NEXT, 3, 8192 };
	struct sector_place other;
	uint8_t s[SECTOR_BYTES];

	memset(s, 7, sizeof(s));
	sector_seal(s, &at, 0x1234567890);
	EXPECT_UINT(le_get32(s + SECTOR_PAYLOAD), 0x34567890);
	EXPECT_TRUE(sector_is(s, &at, 0x1234567890));
	EXPECT_FALSE(sector_is(s, &at, 0x1334567890));
	EXPECT_FALSE(sector_is(s, &at, 0x1234567891));
	other = at;
	other.kind = SECTOR_FIRST;
	EXPECT_FALSE(sector_is(s, &other, 0x1234567890));
	other = at;
	other.slot = 4;
	EXPECT_FALSE(sector_is(s, &other, 0x1234567890));
	other = at;
	other.offset += 512;
	EXPECT_FALSE(sector_is(s, &other, 0x1234567890));
}

TEST(every_bit_of_a_sector_counts)
{
	struct sector_place at = { SECTOR_NEXT, 3, 8192 + 512 };
	uint8_t s[SECTOR_BYTES];
	uint64_t n;
	unsigned i;

	memset(s, 0x3c, sizeof(s));
	sector_seal(s, &at, 5);
	for (i = 0; i < SECTOR_BYTES * 8; i++) {
		runner_context("bit %u", i);
		s[i / 8] ^= (uint8_t)(1u << i % 8);
		EXPECT_FALSE(sector_is(s, &at, 5));
		EXPECT_TRUE(sector_judge(s, 3, at.offset, 4, &n) == SECTOR_BAD);
		EXPECT_TRUE(sector_judge(s, 3, at.offset, 900, &n) ==
			    SECTOR_BAD);
		s[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	EXPECT_TRUE(sector_is(s, &at, 5));
}

TEST(judge_tells_old_from_new_over_four_billion)
{
	static const struct {
		uint64_t number;
		uint64_t newest;
		enum sector_state state;
	} c[] = {
		{ 1, 0, SECTOR_NEW },
		{ 5, 5, SECTOR_OLD },
		{ 6, 5, SECTOR_NEW },
		{ 1, 5, SECTOR_OLD },
		{ 0x100000001, 0xffffffff, SECTOR_NEW },
		{ 0xffffffff, 0x100000001, SECTOR_OLD },
		{ 0xffffffff, 0xfffffffe, SECTOR_NEW },
		{ 7, 0x500000001, SECTOR_OLD },
		{ 0x300000007, 0x500000001, SECTOR_OLD },
		{ 0x500000007, 0x500000001, SECTOR_NEW },
	};
	struct sector_place at = { SECTOR_NEXT, 1, 4096 };
	uint8_t s[SECTOR_BYTES];
	uint64_t n;
	size_t i;

	for (i = 0; i < ARRAY_LEN(c); i++) {
		runner_context("case %zu", i);
		memset(s, 1, sizeof(s));
		at.kind = i % 2 == 0 ? SECTOR_NEXT : SECTOR_FIRST;
		sector_seal(s, &at, c[i].number);
		n = 0;
		EXPECT_UINT(sector_judge(s, 1, 4096, c[i].newest, &n),
			    c[i].state);
		if (c[i].state == SECTOR_NEW)
			EXPECT_UINT(n, c[i].number);
	}
	memset(s, 0, sizeof(s));
	EXPECT_UINT(sector_judge(s, 1, 4096, 9, &n), SECTOR_OLD);
}

TEST(first_sectors_stand_on_blocks_only)
{
	struct sector_place at = { SECTOR_FIRST, 1, 4096 + 512 };
	uint8_t s[SECTOR_BYTES];
	uint64_t n;

	memset(s, 1, sizeof(s));
	sector_seal(s, &at, 4);
	EXPECT_UINT(sector_judge(s, 1, at.offset, 3, &n), SECTOR_BAD);
}

/* ---- batches ---- */

TEST(numbers_leave_out_a_low_half_of_zero)
{
	EXPECT_UINT(batch_number_after(0), 1);
	EXPECT_UINT(batch_number_after(7), 8);
	EXPECT_UINT(batch_number_after(0xffffffff), 0x100000001);
}

TEST(batch_bytes_and_payload_agree)
{
	uint64_t n;

	EXPECT_UINT(batch_bytes(0), 4096);
	EXPECT_UINT(batch_payload_max(4096), 8 * 504 - 80);
	for (n = 4096; n <= 65536; n += 4096) {
		EXPECT_UINT(batch_bytes(batch_payload_max(n)), n);
		EXPECT_UINT(batch_bytes(batch_payload_max(n) + 1), n + 4096);
	}
}

TEST(records_go_around_the_trailers)
{
	struct batch_head h = { .number = 9,
				.shards = 5,
				.ballot = 77,
				.seq = 3,
				.flags = BATCH_CLOSING,
				.successor = 4 };
	struct batch_head got;
	uint8_t again[HASH_BYTES];
	uint8_t in[5000];
	uint8_t out[5000];
	size_t i;

	for (i = 0; i < sizeof(in); i++)
		in[i] = (uint8_t)(i * 7);
	memset(batch, 0xee, sizeof(batch));
	h.payload = sizeof(in);
	h.bytes = (uint32_t)batch_bytes(sizeof(in));
	EXPECT_UINT(h.bytes, 8192);
	batch_put(batch, 0, in, 10);
	batch_put(batch, 10, in + 10, 1000);
	batch_put(batch, 1010, in + 1010, sizeof(in) - 1010);
	batch_seal(batch, &h, 2, 12288, scratch, hash);
	batch_get(batch, 0, out, sizeof(out));
	EXPECT_MEM(out, in, sizeof(in));
	EXPECT_RC(batch_decode(batch, 2, 12288, 8192, &got), RC_OK);
	EXPECT_UINT(got.number, 9);
	EXPECT_UINT(got.shards, 5);
	EXPECT_UINT(got.ballot, 77);
	EXPECT_UINT(got.seq, 3);
	EXPECT_UINT(got.flags, BATCH_CLOSING);
	EXPECT_UINT(got.successor, 4);
	EXPECT_UINT(got.payload, sizeof(in));
	batch_hash(batch, &got, scratch, again);
	EXPECT_MEM(again, hash, HASH_BYTES);
	/* What is behind the records is zero. */
	batch_get(batch, sizeof(in), out, 2000);
	for (i = 0; i < 2000; i++)
		EXPECT_UINT(out[i], 0);
	/* Neither elsewhere nor cut short. */
	EXPECT_RC(batch_decode(batch, 2, 8192, 8192, &got), RC_CORRUPT);
	EXPECT_RC(batch_decode(batch, 1, 12288, 8192, &got), RC_CORRUPT);
	EXPECT_RC(batch_decode(batch, 2, 12288, 8191, &got), RC_CORRUPT);
}

TEST(batch_header_out_of_bounds_is_corrupt)
{
	struct sector_place at = { SECTOR_FIRST, 1, 4096 };
	struct batch_head h = { .number = 9, .bytes = 4096, .seq = 1 };
	struct batch_head got;
	static const struct {
		unsigned at;
		uint8_t byte;
		enum rc rc;
	} c[] = {
		{ 0, 'X', RC_CORRUPT },                          /* tag */
		{ 4, 2, RC_VERSION },                            /* version */
		{ 17, 0x20, RC_CORRUPT },                        /* bytes */
		{ 16, 1, RC_CORRUPT },    { 22, 1, RC_CORRUPT }, /* payload */
		{ 23, 0xff, RC_CORRUPT },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(c); i++) {
		runner_context("case %zu", i);
		memset(batch, 0, 4096);
		batch_seal(batch, &h, 1, 4096, scratch, hash);
		batch[c[i].at] = c[i].byte;
		sector_seal(batch, &at, 9);
		EXPECT_RC(batch_decode(batch, 1, 4096, 60000, &got), c[i].rc);
	}
}

TEST(hash_depends_on_the_hash_before_and_on_each_sector)
{
	struct batch_head h = { .number = 9, .bytes = 4096, .seq = 1 };
	uint8_t one[HASH_BYTES];

	memset(batch, 0, 4096);
	batch_seal(batch, &h, 1, 4096, scratch, one);
	h.before[3] = 1;
	batch_seal(batch, &h, 1, 4096, scratch, hash);
	EXPECT_TRUE(memcmp(one, hash, HASH_BYTES) != 0);
	h.before[3] = 0;
	batch_seal(batch, &h, 1, 4096, scratch, hash);
	EXPECT_MEM(one, hash, HASH_BYTES);
	batch[4096 - 1] ^= 1;
	batch_hash(batch, &h, scratch, hash);
	EXPECT_TRUE(memcmp(one, hash, HASH_BYTES) != 0);
}

/* ---- records ---- */

TEST(records_round_trip_and_are_bounded)
{
	struct record r = { .kind = RECORD_COPY,
			    .shard = 63,
			    .type = 700,
			    .bytes = 5,
			    .index = 1ull << 40,
			    .term = 9 };
	struct record got;
	uint8_t p[RECORD_HEADER_BYTES + 5] = { 0 };
	uint64_t n;

	record_encode(p, &r);
	memcpy(p + RECORD_HEADER_BYTES, "hello", 5);
	EXPECT_RC(record_decode(p, sizeof(p), &got), RC_OK);
	EXPECT_UINT(got.kind, RECORD_COPY);
	EXPECT_UINT(got.shard, 63);
	EXPECT_UINT(got.type, 700);
	EXPECT_UINT(got.index, 1ull << 40);
	EXPECT_UINT(got.term, 9);
	EXPECT_MEM(got.data, "hello", 5);
	for (n = 0; n < sizeof(p); n++)
		EXPECT_RC(record_decode(p, n, &got), RC_CORRUPT);
	p[6] = 0;
	EXPECT_RC(record_decode(p, sizeof(p), &got), RC_CORRUPT);
	p[6] = 4;
	EXPECT_RC(record_decode(p, sizeof(p), &got), RC_CORRUPT);
}

/* ---- segment headers ---- */

static struct segment_head sample(uint64_t seq)
{
	struct segment_head h = { .slot = 5,
				  .shards = 64,
				  .seq = seq,
				  .bytes = 65536,
				  .node_id = 3,
				  .tail = 2,
				  .first_number = 44 };
	uint32_t s;

	memset(h.cluster_id, 0xaa, 16);
	memset(h.before, 0xbb, HASH_BYTES);
	for (s = 0; s < SHARDS_MAX; s++)
		h.shard[s] = (struct segment_shard){ s,     s + 1, s + 2,
						     s + 3, s + 4, s % 2 };
	return h;
}

TEST(header_round_trip)
{
	struct segment_head h = sample(7);
	struct head_view v;

	segment_head_encode(batch, &h);
	EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
	EXPECT_UINT(v.state, HEAD_WHOLE);
	EXPECT_UINT(v.seq, 7);
	EXPECT_TRUE(v.fixed);
	EXPECT_UINT(v.known, UINT64_MAX);
	EXPECT_MEM(&v.head, &h, sizeof(h));
	/* In another file it is nothing. */
	EXPECT_RC(segment_head_decode(batch, 6, &v), RC_OK);
	EXPECT_UINT(v.state, HEAD_LOST);
	memset(batch, 0, 4096);
	EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
	EXPECT_UINT(v.state, HEAD_BLANK);
	/* A batch is no header. */
	memset(batch, 0, 4096);
	batch[9] = 1;
	EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
	EXPECT_UINT(v.state, HEAD_LOST);
}

TEST(torn_header_is_told_from_a_damaged_one)
{
	struct segment_head h = sample(7);
	struct segment_head old = sample(3);
	struct head_view v;
	unsigned set;
	unsigned i;

	for (set = 0; set < 256; set++) {
		runner_context("set %u", set);
		segment_head_encode(batch, &h);
		segment_head_encode(batch + 4096, &old);
		for (i = 0; i < 8; i++)
			if ((set >> i & 1) != 0)
				memcpy(batch + i * 512, batch + 4096 + i * 512,
				       512);
		EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
		if (set == 0 || set == 255) {
			EXPECT_UINT(v.state, HEAD_WHOLE);
		} else {
			EXPECT_UINT(v.state, HEAD_TORN);
			EXPECT_UINT(v.seq, 7);
			EXPECT_UINT(v.seq_old, 3);
		}
		batch[3 * 512 + 5] ^= 4;
		EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
		if (v.state == HEAD_HURT)
			EXPECT_FALSE((v.known >> 20 & 1) != 0);
		else
			EXPECT_UINT(v.state, HEAD_LOST);
		if (set == 0) {
			EXPECT_UINT(v.state, HEAD_HURT);
			EXPECT_TRUE(v.fixed);
			EXPECT_UINT(v.known,
				    UINT64_MAX ^ (((1ull << 10) - 1) << 20));
		}
	}
}

TEST(header_of_a_newer_version_is_refused)
{
	struct sector_place at = { SECTOR_HEAD, 5, 0 };
	struct segment_head h = sample(7);
	struct head_view v;

	segment_head_encode(batch, &h);
	batch[8] = 2;
	sector_seal(batch, &at, 7);
	EXPECT_RC(segment_head_decode(batch, 5, &v), RC_VERSION);
	batch[0] = 'h';
	sector_seal(batch, &at, 7);
	EXPECT_RC(segment_head_decode(batch, 5, &v), RC_OK);
	EXPECT_UINT(v.state, HEAD_LOST);
}

/* ---- names ---- */

TEST(names)
{
	char name[SEGMENT_NAME_BYTES];

	segment_name(name, 0x1f);
	EXPECT_STR(name, "log/000000000000001f.seg");
	EXPECT_UINT(segment_slot(name + 4), 0x1f);
	EXPECT_UINT(segment_slot("000000000000001F.seg"), 0);
	EXPECT_UINT(segment_slot("1f.seg"), 0);
	EXPECT_UINT(segment_slot("0000000000000000.seg"), 0);
	EXPECT_UINT(segment_slot("0000000100000000.seg"), 0);
	EXPECT_UINT(segment_slot("000000000000001f.seg~"), 0);
	EXPECT_UINT(segment_slot(""), 0);
}
