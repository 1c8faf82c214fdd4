/*
 * A segment is a file of fixed size, log/<slot as 16 hex digits>.seg. It is
 * made of sectors of 512 bytes; integers are little endian. Every sector:
 *
 *	  0 504  payload
 *	504   4  the low half of its number
 *	508   4  CRC-32C of the payload, kind (4), slot (4), offset in the
 *	         file (8), the whole number (8)
 *
 * The kind is 0 in a segment's header, 1 in the first sector of a batch, 2 in
 * the others: a payload that looks like a header is none.
 *
 * The first 4,096 bytes are the segment's header: eight sectors of kind 0 whose
 * number is the segment's sequence (below 2^32). Sector 0:
 *
 *	  0   8  "HFSEGMNT"
 *	  8   4  version, 1
 *	 12   4  flags; 1: the segment before ends in damage, no batch closes it
 *	 16   4  slot
 *	 20   4  shards
 *	 24   8  sequence
 *	 32   8  bytes of the segment
 *	 40  16  cluster id
 *	 56   8  node id
 *	 64   8  tail: the oldest sequence still needed
 *	 72   8  number of the first batch
 *	 80  16  chained hash of the batch before that
 *
 * Sectors 1..7 are the table, ten rows of 48 bytes each, one per shard: the
 * first live index, last index, its term, base index, its term, flags (1: the
 * shard is damaged). It says what earlier segments hold when this one begins.
 *
 * A batch begins on a multiple of 4,096 and is a multiple of that long. The
 * payloads of its sectors together are its header, its records, zeros:
 *
 *	  0   4  "HFBA"
 *	  4   2  version, 1
 *	  6   2  flags; 1: closing
 *	  8   8  number
 *	 16   4  bytes on disk
 *	 20   4  bytes of records
 *	 24  16  chained hash of the batch before
 *	 40   8  shards it touches, one bit each
 *	 48   8  the ballot file's write counter
 *	 56   8  the segment's sequence
 *	 64   8  the successor's sequence (closing), else 0
 *	 72   8  zero
 *
 * The chained hash of a batch is BLAKE2b-128 over (the hash before, all its
 * trailers in order): through their CRCs it holds the contents, at a
 * sixtieth of the work.
 *
 * A record:
 *
 *	  0   4  bytes of data
 *	  4   2  type
 *	  6   1  kind; 1 entry, 2 base, 3 copy
 *	  7   1  shard
 *	  8   8  index
 *	 16   8  term
 *	 24      data
 */
#include "raft-glue/segment.h"

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"

#define TRAILER_BYTES (SECTOR_BYTES - SECTOR_PAYLOAD)
#define ROW_BYTES     48u
#define SECTOR_ROWS   (SECTOR_PAYLOAD / ROW_BYTES)

#define SEGMENT_VERSION 1u
#define BATCH_TAG       0x41424648u /* "HFBA" */
#define BATCH_VERSION   1u

static const uint8_t segment_tag[8] = {
	'H', 'F', 'S', 'E', 'G', 'M', 'N', 'T'
};

_Static_assert(SECTOR_ROWS *(BLOCK_SECTORS - 1) >= SHARDS_MAX,
	       "the table fits the header");
_Static_assert(BATCH_HEADER_BYTES < SECTOR_PAYLOAD,
	       "a batch header fits a sector");
_Static_assert(SHARDS_MAX <= 64, "a set of shards fits 64 bits");

/* ---- sectors ---- */

/* The part that does not depend on the number. */
static uint32_t sector_crc(const uint8_t *s, const struct sector_place *at)
{
	uint8_t place[16];

	le_put32(place, at->kind);
	le_put32(place + 4, at->slot);
	le_put64(place + 8, at->offset);
	return crc32c(crc32c(0, s, SECTOR_PAYLOAD), place, sizeof(place));
}

static uint32_t crc_with(uint32_t crc, uint64_t number)
{
	uint8_t p[8];

	le_put64(p, number);
	return crc32c(crc, p, sizeof(p));
}

void sector_seal(uint8_t *s, const struct sector_place *at, uint64_t number)
{
	le_put32(s + SECTOR_PAYLOAD, (uint32_t)number);
	le_put32(s + SECTOR_PAYLOAD + 4, crc_with(sector_crc(s, at), number));
}

static bool crc_fits(const uint8_t *s, uint32_t crc, uint64_t number)
{
	if (MUTANT(log_no_sector_check))
		return true;
	return le_get32(s + SECTOR_PAYLOAD + 4) == crc_with(crc, number);
}

bool sector_is(const uint8_t *s, const struct sector_place *at, uint64_t number)
{
	return le_get32(s + SECTOR_PAYLOAD) == (uint32_t)number &&
	       crc_fits(s, sector_crc(s, at), number);
}

static bool sector_zero(const uint8_t *s)
{
	uint64_t words[SECTOR_BYTES / 8];
	uint64_t any = 0;
	size_t i;

	memcpy(words, s, sizeof(words));
	for (i = 0; i < SECTOR_BYTES / 8; i++)
		any |= words[i];
	return any == 0;
}

/* 2^44 batches: longer than any disk lives. */
#define HIGH_HALVES_MAX 4096

/*
 * The trailer has the low half of the number only. The high half is found by
 * trying: the next number above `newest` with that low half, then those below.
 * There are as many of them as the log has seen multiples of 2^32 batches, so
 * one, for days or years.
 */
static enum sector_state judge_as(const uint8_t *s,
				  const struct sector_place *at,
				  uint64_t newest, uint64_t *number)
{
	uint32_t low = le_get32(s + SECTOR_PAYLOAD);
	uint32_t crc = sector_crc(s, at);
	uint64_t n = (newest & ~(uint64_t)UINT32_MAX) | low;
	unsigned tries;

	if (n <= newest)
		n += (uint64_t)1 << 32;
	if (crc_fits(s, crc, n)) {
		*number = n;
		return SECTOR_NEW;
	}
	for (tries = 0; n >> 32 != 0 && tries < HIGH_HALVES_MAX; tries++) {
		n -= (uint64_t)1 << 32;
		if (n != 0 && crc_fits(s, crc, n))
			return SECTOR_OLD;
	}
	return SECTOR_BAD;
}

enum sector_state sector_judge(const uint8_t *s, uint32_t slot, uint64_t offset,
			       uint64_t newest, uint64_t *number)
{
	struct sector_place at = { SECTOR_NEXT, slot, offset };
	enum sector_state state;

	if (sector_zero(s))
		return SECTOR_OLD;
	state = judge_as(s, &at, newest, number);
	if (state == SECTOR_BAD && offset % BLOCK_BYTES == 0) {
		at.kind = SECTOR_FIRST;
		state = judge_as(s, &at, newest, number);
	}
	return state;
}

/* ---- batches ---- */

uint64_t batch_number_after(uint64_t number)
{
	number++;
	return (uint32_t)number == 0 ? number + 1 : number;
}

uint64_t batch_bytes(uint64_t payload)
{
	uint64_t n = BATCH_HEADER_BYTES + payload;
	uint64_t block = BLOCK_SECTORS * SECTOR_PAYLOAD;

	return (n + block - 1) / block * BLOCK_BYTES;
}

uint64_t batch_payload_max(uint64_t bytes)
{
	return bytes / SECTOR_BYTES * SECTOR_PAYLOAD - BATCH_HEADER_BYTES;
}

/* Logical offset -> its place, and how much of the sector is left there. */
static uint64_t around(uint64_t at, size_t *left)
{
	*left = SECTOR_PAYLOAD - (size_t)(at % SECTOR_PAYLOAD);
	return at / SECTOR_PAYLOAD * SECTOR_BYTES + at % SECTOR_PAYLOAD;
}

void batch_put(uint8_t *batch, uint64_t at, const void *p, size_t n)
{
	const uint8_t *from = p;
	uint64_t to;
	size_t k;

	for (at += BATCH_HEADER_BYTES; n > 0; at += k, from += k, n -= k) {
		to = around(at, &k);
		if (k > n)
			k = n;
		memcpy(batch + to, from, k);
	}
}

void batch_get(const uint8_t *batch, uint64_t at, void *p, size_t n)
{
	uint8_t *to = p;
	uint64_t from;
	size_t k;

	for (at += BATCH_HEADER_BYTES; n > 0; at += k, to += k, n -= k) {
		from = around(at, &k);
		if (k > n)
			k = n;
		memcpy(to, batch + from, k);
	}
}

static void batch_clear_rest(uint8_t *batch, const struct batch_head *h)
{
	uint64_t at = BATCH_HEADER_BYTES + h->payload;
	uint64_t end = h->bytes / SECTOR_BYTES * SECTOR_PAYLOAD;
	uint64_t to;
	size_t k;

	for (; at < end; at += k) {
		to = around(at, &k);
		memset(batch + to, 0, k);
	}
}

static void batch_encode(uint8_t *p, const struct batch_head *h)
{
	le_put32(p, BATCH_TAG);
	le_put16(p + 4, BATCH_VERSION);
	le_put16(p + 6, h->flags);
	le_put64(p + 8, h->number);
	le_put32(p + 16, h->bytes);
	le_put32(p + 20, h->payload);
	memcpy(p + 24, h->before, HASH_BYTES);
	le_put64(p + 40, h->shards);
	le_put64(p + 48, h->ballot);
	le_put64(p + 56, h->seq);
	le_put64(p + 64, h->successor);
	le_put64(p + 72, 0);
}

void batch_hash(const uint8_t *batch, const struct batch_head *h,
		uint8_t *scratch, uint8_t hash[HASH_BYTES])
{
	size_t sectors = h->bytes / SECTOR_BYTES;
	struct hash_part parts[2] = {
		{ h->before, HASH_BYTES },
		{ scratch, sectors * TRAILER_BYTES },
	};
	size_t i;

	for (i = 0; i < sectors; i++)
		memcpy(scratch + i * TRAILER_BYTES,
		       batch + i * SECTOR_BYTES + SECTOR_PAYLOAD,
		       TRAILER_BYTES);
	crypto_hash(NULL, 0, parts, 2, hash);
}

void batch_seal(uint8_t *batch, const struct batch_head *h, uint32_t slot,
		uint64_t offset, uint8_t *scratch, uint8_t hash[HASH_BYTES])
{
	struct sector_place at = { SECTOR_FIRST, slot, offset };
	uint64_t end = offset + h->bytes;
	uint8_t *s;

	PRE(offset % BLOCK_BYTES == 0);
	PRE(h->bytes == batch_bytes(h->payload));
	batch_encode(batch, h);
	batch_clear_rest(batch, h);
	for (s = batch; at.offset < end; s += SECTOR_BYTES) {
		sector_seal(s, &at, h->number);
		at.kind = SECTOR_NEXT;
		at.offset += SECTOR_BYTES;
	}
	batch_hash(batch, h, scratch, hash);
}

static bool batch_sane(const struct batch_head *h, uint64_t room)
{
	return h->number != 0 && h->bytes <= room && h->payload <= h->bytes &&
	       h->bytes == batch_bytes(h->payload);
}

enum rc batch_decode(const uint8_t *p, uint32_t slot, uint64_t offset,
		     uint64_t room, struct batch_head *h)
{
	struct sector_place at = { SECTOR_FIRST, slot, offset };

	h->number = le_get64(p + 8);
	if (!sector_is(p, &at, h->number) || le_get32(p) != BATCH_TAG)
		return RC_CORRUPT;
	if (le_get16(p + 4) > BATCH_VERSION)
		return RC_VERSION;
	h->flags = le_get16(p + 6);
	h->bytes = le_get32(p + 16);
	h->payload = le_get32(p + 20);
	memcpy(h->before, p + 24, HASH_BYTES);
	h->shards = le_get64(p + 40);
	h->ballot = le_get64(p + 48);
	h->seq = le_get64(p + 56);
	h->successor = le_get64(p + 64);
	return batch_sane(h, room) ? RC_OK : RC_CORRUPT;
}

/* ---- records ---- */

void record_encode(uint8_t p[RECORD_HEADER_BYTES], const struct record *r)
{
	le_put32(p, r->bytes);
	le_put16(p + 4, r->type);
	p[6] = (uint8_t)r->kind;
	p[7] = r->shard;
	le_put64(p + 8, r->index);
	le_put64(p + 16, r->term);
}

enum rc record_decode(const uint8_t *p, uint64_t n, struct record *r)
{
	if (n < RECORD_HEADER_BYTES)
		return RC_CORRUPT;
	r->bytes = le_get32(p);
	if (r->bytes > n - RECORD_HEADER_BYTES)
		return RC_CORRUPT;
	if (p[6] < RECORD_ENTRY || p[6] > RECORD_COPY)
		return RC_CORRUPT;
	r->type = le_get16(p + 4);
	r->kind = (enum record_kind)p[6];
	r->shard = p[7];
	r->index = le_get64(p + 8);
	r->term = le_get64(p + 16);
	r->data = p + RECORD_HEADER_BYTES;
	return RC_OK;
}

/* ---- segment headers ---- */

static void row_encode(uint8_t *p, const struct segment_shard *r)
{
	le_put64(p, r->first);
	le_put64(p + 8, r->last);
	le_put64(p + 16, r->last_term);
	le_put64(p + 24, r->base);
	le_put64(p + 32, r->base_term);
	le_put64(p + 40, r->flags);
}

static void row_decode(const uint8_t *p, struct segment_shard *r)
{
	r->first = le_get64(p);
	r->last = le_get64(p + 8);
	r->last_term = le_get64(p + 16);
	r->base = le_get64(p + 24);
	r->base_term = le_get64(p + 32);
	r->flags = le_get64(p + 40);
}

static uint32_t row_offset(uint32_t shard)
{
	return (1 + shard / SECTOR_ROWS) * SECTOR_BYTES +
	       shard % SECTOR_ROWS * ROW_BYTES;
}

static void fixed_encode(uint8_t *p, const struct segment_head *h)
{
	memcpy(p, segment_tag, 8);
	le_put32(p + 8, SEGMENT_VERSION);
	le_put32(p + 12, h->flags);
	le_put32(p + 16, h->slot);
	le_put32(p + 20, h->shards);
	le_put64(p + 24, h->seq);
	le_put64(p + 32, h->bytes);
	memcpy(p + 40, h->cluster_id, 16);
	le_put64(p + 56, h->node_id);
	le_put64(p + 64, h->tail);
	le_put64(p + 72, h->first_number);
	memcpy(p + 80, h->before, HASH_BYTES);
}

void segment_head_encode(uint8_t block[SEGMENT_HEAD_BYTES],
			 const struct segment_head *h)
{
	struct sector_place at = { SECTOR_HEAD, h->slot, 0 };
	uint32_t i;

	PRE(h->seq > 0);
	PRE(h->seq < UINT32_MAX);
	memset(block, 0, SEGMENT_HEAD_BYTES);
	fixed_encode(block, h);
	for (i = 0; i < SHARDS_MAX; i++)
		row_encode(block + row_offset(i), &h->shard[i]);
	for (; at.offset < SEGMENT_HEAD_BYTES; at.offset += SECTOR_BYTES)
		sector_seal(block + at.offset, &at, h->seq);
}

/* A sector of a header: its sequence; 0 when it is zero. */
static enum rc head_sector(const uint8_t *block, uint32_t slot, uint32_t i,
			   uint64_t *seq)
{
	struct sector_place at = { SECTOR_HEAD, slot, i * SECTOR_BYTES };
	const uint8_t *s = block + at.offset;

	*seq = le_get32(s + SECTOR_PAYLOAD);
	if (sector_zero(s))
		return RC_OK;
	return *seq != 0 && sector_is(s, &at, *seq) ? RC_OK : RC_CORRUPT;
}

static void fixed_decode(const uint8_t *p, struct segment_head *h)
{
	h->flags = le_get32(p + 12);
	h->slot = le_get32(p + 16);
	h->shards = le_get32(p + 20);
	h->seq = le_get64(p + 24);
	h->bytes = le_get64(p + 32);
	memcpy(h->cluster_id, p + 40, 16);
	h->node_id = le_get64(p + 56);
	h->tail = le_get64(p + 64);
	h->first_number = le_get64(p + 72);
	memcpy(h->before, p + 80, HASH_BYTES);
}

/* `good`: bit i, sector i is whole. */
static enum rc head_fields(const uint8_t *block, unsigned good,
			   struct head_view *v)
{
	uint32_t i;

	if ((good & 1u) != 0) {
		if (memcmp(block, segment_tag, 8) != 0) {
			v->state = HEAD_LOST;
			return RC_OK;
		}
		if (le_get32(block + 8) > SEGMENT_VERSION)
			return RC_VERSION;
		fixed_decode(block, &v->head);
		v->fixed = true;
	}
	for (i = 0; i < SHARDS_MAX; i++) {
		if ((good & (2u << i / SECTOR_ROWS)) == 0)
			continue;
		row_decode(block + row_offset(i), &v->head.shard[i]);
		v->known |= (uint64_t)1 << i;
	}
	return RC_OK;
}

enum rc segment_head_decode(const uint8_t block[SEGMENT_HEAD_BYTES],
			    uint32_t slot, struct head_view *v)
{
	uint64_t min = UINT64_MAX;
	uint64_t max = 0;
	unsigned good = 0;
	uint64_t seq;
	uint32_t i;

	memset(v, 0, sizeof(*v));
	for (i = 0; i < BLOCK_SECTORS; i++) {
		if (head_sector(block, slot, i, &seq) != RC_OK)
			continue;
		good |= 1u << i;
		if (seq < min)
			min = seq;
		if (seq > max)
			max = seq;
	}
	v->seq = max;
	v->seq_old = min;
	v->state = good != (1u << BLOCK_SECTORS) - 1 ? HEAD_HURT
		   : min != max                      ? HEAD_TORN
		   : max == 0                        ? HEAD_BLANK
						     : HEAD_WHOLE;
	if (v->state == HEAD_HURT && (good == 0 || min != max || max == 0))
		v->state = HEAD_LOST;
	if (v->state == HEAD_WHOLE || v->state == HEAD_HURT)
		return head_fields(block, good, v);
	return RC_OK;
}

/* ---- names ---- */

void segment_name(char name[SEGMENT_NAME_BYTES], uint32_t slot)
{
	(void)snprintf(name, SEGMENT_NAME_BYTES, SEGMENT_DIR "/%016x.seg",
		       slot);
}

uint32_t segment_slot(const char *name)
{
	char want[SEGMENT_NAME_BYTES];
	char *end;
	unsigned long long v;

	v = strtoull(name, &end, 16);
	if (v == 0 || v > UINT32_MAX)
		return 0;
	segment_name(want, (uint32_t)v);
	return strcmp(want + sizeof(SEGMENT_DIR), name) == 0 ? (uint32_t)v : 0;
}
