/*
 * The file `ballot` is 64 KiB: area A (blocks 0..7) and area B (blocks 8..15)
 * hold the same; the slot of shard s is sector s of each. A sector, of 512
 * bytes, integers little endian:
 *
 *	  0  8  "HFBALLOT"
 *	  8  4  version, 1
 *	 12  4  shard
 *	 16  8  write counter, of the last ballot_write, whomever it was for
 *	 24  8  term
 *	 32  8  vote
 *	 40  8  state generation
 *	 48 16  state hash
 *	 64  4  flags; 1: doubted, the file was found to have lost writes
 *	 68     zero
 *	508  4  CRC-32C of all before
 *
 * A write puts all sectors with the new counter into area A, syncs, then into
 * B, syncs. A power cut leaves each sector old or new, so after it the higher
 * counter is the truth or was never acted upon. Once both are synced, either
 * copy alone tells all: a bad one is noticed and costs nothing. If both are
 * bad the shard is not good. Since every write stamps all, a shard whose
 * counter is below that of a batch in the log has lost a write, its own or
 * another's. (A write that a crash cut short stamps some; ballot_reconcile
 * levels them before there is a batch with the new counter.)
 */
#include "raft-glue/ballot.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"
#include "raft-glue/pair.h"

#define BALLOT_MAGIC   0x62616c6cu
#define BALLOT_VERSION 1u
#define BALLOT_FILE    "ballot"
#define AREA_BYTES     (SHARDS_MAX * PAIR_SECTOR)
#define FILE_BYTES     (2u * AREA_BYTES)

#define FLAG_DOUBTED 1u

static const uint8_t ballot_tag[8] = { 'H', 'F', 'B', 'A', 'L', 'L', 'O', 'T' };

_Static_assert(AREA_BYTES % PAIR_BLOCK == 0, "an area is whole blocks");

struct ballot {
	uint32_t magic;
	uint32_t shards;
	struct disk_file *file;
	uint8_t *image;
	uint64_t counter;
	struct {
		struct ballot_slot slot;
		uint64_t counter;
		bool readable; /* At least one copy is. */
		bool doubted;
	} of[SHARDS_MAX];
};

struct copy {
	uint64_t counter;
	uint32_t flags;
	struct ballot_slot slot;
};

static uint8_t *sector_of(uint8_t *image, unsigned area, uint32_t shard)
{
	return image + area * AREA_BYTES + shard * PAIR_SECTOR;
}

static void copy_encode(uint8_t *p, uint32_t shard, const struct copy *c)
{
	memset(p, 0, PAIR_SECTOR);
	memcpy(p, ballot_tag, 8);
	le_put32(p + 8, BALLOT_VERSION);
	le_put32(p + 12, shard);
	le_put64(p + 16, c->counter);
	le_put64(p + 24, c->slot.term);
	le_put64(p + 32, c->slot.vote);
	le_put64(p + 40, c->slot.state_generation);
	memcpy(p + 48, c->slot.state_hash, sizeof(c->slot.state_hash));
	le_put32(p + 64, c->flags);
	pair_seal(p);
}

static enum rc copy_decode(const uint8_t *p, uint32_t shard, struct copy *c)
{
	if (!pair_sealed(p) || memcmp(p, ballot_tag, 8) != 0)
		return RC_CORRUPT;
	if (le_get32(p + 8) > BALLOT_VERSION)
		return RC_VERSION;
	if (le_get32(p + 12) != shard)
		return RC_CORRUPT;
	c->counter = le_get64(p + 16);
	c->slot.term = le_get64(p + 24);
	c->slot.vote = le_get64(p + 32);
	c->slot.state_generation = le_get64(p + 40);
	memcpy(c->slot.state_hash, p + 48, sizeof(c->slot.state_hash));
	c->flags = le_get32(p + 64);
	return RC_OK;
}

/* The newer of the good copies. RC_CORRUPT: none is good. */
static enum rc copy_choose(uint8_t *image, uint32_t shard, struct copy *out)
{
	struct copy c[2];
	enum rc a = copy_decode(sector_of(image, 0, shard), shard, &c[0]);
	enum rc b = copy_decode(sector_of(image, 1, shard), shard, &c[1]);

	if (a == RC_VERSION || b == RC_VERSION)
		return RC_VERSION;
	if (a != RC_OK && b != RC_OK)
		return RC_CORRUPT;
	*out = c[b == RC_OK && (a != RC_OK || c[1].counter > c[0].counter)];
	return RC_OK;
}

static void slot_encode(struct ballot *b, uint32_t shard)
{
	struct copy c = {
		.counter = b->of[shard].counter,
		.flags = b->of[shard].doubted ? FLAG_DOUBTED : 0,
		.slot = b->of[shard].slot,
	};

	copy_encode(sector_of(b->image, 0, shard), shard, &c);
	copy_encode(sector_of(b->image, 1, shard), shard, &c);
}

static enum rc refuse_existing(struct disk *disk, uint8_t *image,
			       struct detail *why)
{
	struct copy c;
	uint32_t s;
	enum rc rc;

	rc = pair_read(disk, BALLOT_FILE, image, FILE_BYTES, NULL);
	if (rc == RC_NOT_FOUND)
		return RC_OK;
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot read the file %s",
				  BALLOT_FILE);
	for (s = 0; s < SHARDS_MAX; s++) {
		rc = copy_choose(image, s, &c);
		if (rc == RC_VERSION || (rc == RC_OK && c.slot.term > 0))
			return detail_set(why, RC_EXISTS, NULL,
					  "the directory holds the votes of a "
					  "node: it is not formatted again");
	}
	return RC_OK;
}

static enum rc format_write(struct disk *disk, const uint8_t *image,
			    struct detail *why)
{
	struct disk_file *f;
	enum rc rc;

	rc = disk_open(disk, BALLOT_FILE, DISK_CREATE, &f, why);
	if (rc != RC_OK)
		return rc;
	rc = pair_write(f, image, FILE_BYTES, false);
	disk_close(f);
	if (rc == RC_OK)
		rc = disk_sync_dir(disk, "");
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot write the file %s",
				  BALLOT_FILE);
	return RC_OK;
}

static enum rc format(struct disk *disk, uint32_t shards, uint32_t flags,
		      struct detail *why)
{
	const struct copy empty = { .counter = 1, .flags = flags };
	uint8_t *image;
	uint32_t s;
	enum rc rc;

	PRE(shards >= 1);
	PRE(shards <= SHARDS_MAX);
	image = pair_image(FILE_BYTES);
	if (image == NULL)
		return RC_NOMEM;
	rc = refuse_existing(disk, image, why);
	if (rc == RC_OK) {
		for (s = 0; s < SHARDS_MAX; s++) {
			copy_encode(sector_of(image, 0, s), s, &empty);
			copy_encode(sector_of(image, 1, s), s, &empty);
		}
		rc = format_write(disk, image, why);
	}
	free(image);
	return rc;
}

enum rc ballot_format(struct disk *disk, uint32_t shards, struct detail *why)
{
	return format(disk, shards, 0, why);
}

enum rc ballot_format_lost(struct disk *disk, uint32_t shards,
			   struct detail *why)
{
	return format(disk, shards, MUTANT(reset_votes) ? 0 : FLAG_DOUBTED,
		      why);
}

/* Takes what the image says; shards of which both copies are bad keep their
 * bytes, so that they are bad at the next start as well. */
static enum rc ballot_load(struct ballot *b, struct detail *why)
{
	struct copy c;
	uint32_t s;
	enum rc rc;

	for (s = 0; s < SHARDS_MAX; s++) {
		rc = copy_choose(b->image, s, &c);
		if (rc == RC_VERSION)
			return detail_set(why, rc, NULL,
					  "a newer version of Holdfast wrote "
					  "the file %s",
					  BALLOT_FILE);
		if (rc != RC_OK)
			continue;
		b->of[s].readable = true;
		b->of[s].doubted = (c.flags & FLAG_DOUBTED) != 0;
		b->of[s].slot = c.slot;
		b->of[s].counter = c.counter;
		if (c.counter > b->counter)
			b->counter = c.counter;
		slot_encode(b, s);
	}
	return RC_OK;
}

static enum rc ballot_store(struct ballot *b, bool second_first,
			    struct detail *why)
{
	enum rc rc;

	if (MUTANT(ballot_no_sync))
		rc = disk_write(b->file, b->image, FILE_BYTES, 0);
	else
		rc = pair_write(b->file, b->image, FILE_BYTES, second_first);
	if (rc == RC_OK)
		return RC_OK;
	return detail_set(why, rc, NULL, "cannot write the file %s",
			  BALLOT_FILE);
}

enum rc ballot_open(struct disk *disk, uint32_t shards, struct ballot **out,
		    struct detail *why)
{
	struct ballot *b;
	enum rc rc;

	PRE(shards >= 1);
	PRE(shards <= SHARDS_MAX);
	b = calloc(1, sizeof(*b));
	if (b == NULL)
		return RC_NOMEM;
	b->magic = BALLOT_MAGIC;
	b->shards = shards;
	b->image = pair_image(FILE_BYTES);
	if (b->image == NULL) {
		rc = RC_NOMEM;
		goto free_b;
	}
	rc = pair_read(disk, BALLOT_FILE, b->image, FILE_BYTES, why);
	if (rc != RC_OK)
		goto free_b;
	rc = ballot_load(b, why);
	if (rc != RC_OK)
		goto free_b;
	rc = disk_open(disk, BALLOT_FILE, 0, &b->file, why);
	if (rc != RC_OK)
		goto free_b;
	/* The newest is in area A, or in both, unless A is bad: B goes first,
	 * so that one whole copy of it stands at every moment. */
	if (!MUTANT(log_trust_unsynced))
		rc = ballot_store(b, true, why);
	if (rc != RC_OK)
		goto free_b;
	*out = b;
	return RC_OK;

free_b:
	ballot_close(b);
	return rc;
}

void ballot_close(struct ballot *b)
{
	CHECK_OBJ(b, BALLOT_MAGIC);
	if (b->file != NULL)
		disk_close(b->file);
	free(b->image);
	b->magic = 0;
	free(b);
}

enum rc ballot_check(const struct ballot *b, uint32_t shard, struct detail *why)
{
	CHECK_OBJ(b, BALLOT_MAGIC);
	PRE(shard < b->shards);
	if (!b->of[shard].readable)
		return detail_set(why, RC_CORRUPT, NULL,
				  "both copies of the ballot of shard %u are "
				  "damaged: the node may have voted in a term "
				  "it does not know",
				  shard);
	if (b->of[shard].doubted)
		return detail_set(why, RC_CORRUPT, NULL,
				  "the file %s lost writes: shard %u may have "
				  "voted in a term it does not know",
				  BALLOT_FILE, shard);
	return RC_OK;
}

bool ballot_good(const struct ballot *b, uint32_t shard)
{
	return ballot_check(b, shard, NULL) == RC_OK;
}

struct ballot_slot ballot_get(const struct ballot *b, uint32_t shard)
{
	CHECK_OBJ(b, BALLOT_MAGIC);
	PRE(shard < b->shards);
	return b->of[shard].slot;
}

uint64_t ballot_counter(const struct ballot *b)
{
	CHECK_OBJ(b, BALLOT_MAGIC);
	return b->counter;
}

static void stamp_all(struct ballot *b)
{
	uint32_t s;

	for (s = 0; s < SHARDS_MAX; s++) {
		if (!b->of[s].readable)
			continue;
		b->of[s].counter = b->counter;
		slot_encode(b, s);
	}
}

enum rc ballot_reconcile(struct ballot *b, uint64_t counter, struct detail *why)
{
	bool any = false;
	uint32_t s;

	CHECK_OBJ(b, BALLOT_MAGIC);
	if (counter > b->counter)
		b->counter = counter;
	for (s = 0; s < SHARDS_MAX; s++) {
		if (!b->of[s].readable)
			continue;
		if (b->of[s].counter < counter)
			b->of[s].doubted = true;
		any = any || b->of[s].counter < b->counter;
	}
	if (!any)
		return RC_OK;
	/* From here on all have counted as far: the flag remembers. */
	stamp_all(b);
	return ballot_store(b, true, why);
}

enum rc ballot_write(struct ballot *b, const struct ballot_change *changes,
		     size_t n, struct detail *why)
{
	uint32_t s;
	size_t i;

	CHECK_OBJ(b, BALLOT_MAGIC);
	PRE(n > 0);
	b->counter++;
	for (i = 0; i < n; i++) {
		s = changes[i].shard;
		PRE(s < b->shards);
		b->of[s].slot = changes[i].slot;
		b->of[s].readable = true;
		b->of[s].doubted = false;
	}
	stamp_all(b);
	return ballot_store(b, false, why);
}

static bool verify_copy(uint8_t *image, unsigned area, uint32_t shard,
			void (*report)(void *arg, const char *line), void *arg)
{
	char line[160];
	struct copy c;
	enum rc rc;

	rc = copy_decode(sector_of(image, area, shard), shard, &c);
	if (rc == RC_OK && (c.flags & FLAG_DOUBTED) == 0)
		return true;
	(void)snprintf(line, sizeof(line),
		       "%s, offset %u: copy %c of shard %u %s", BALLOT_FILE,
		       area * AREA_BYTES + shard * PAIR_SECTOR,
		       area == 0 ? 'A' : 'B', shard,
		       rc == RC_OK        ? "is marked: the file lost writes"
		       : rc == RC_VERSION ? "has a newer version"
					  : "is damaged");
	report(arg, line);
	return false;
}

enum rc ballot_verify(struct disk *disk, uint32_t shards,
		      void (*report)(void *arg, const char *line), void *arg,
		      uint64_t *counter, struct detail *why)
{
	uint8_t *image = pair_image(FILE_BYTES);
	bool whole = true;
	struct copy c;
	uint32_t s;
	enum rc rc;

	*counter = UINT64_MAX;
	if (image == NULL)
		return RC_NOMEM;
	rc = pair_read(disk, BALLOT_FILE, image, FILE_BYTES, why);
	for (s = 0; rc == RC_OK && s < shards; s++) {
		whole = verify_copy(image, 0, s, report, arg) && whole;
		whole = verify_copy(image, 1, s, report, arg) && whole;
		if (copy_choose(image, s, &c) == RC_OK && c.counter < *counter)
			*counter = c.counter;
	}
	free(image);
	return rc == RC_OK && !whole ? RC_CORRUPT : rc;
}
