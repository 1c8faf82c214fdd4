/*
 * log: a list of edits of a small log on disk, many of them with valid
 * checksums, then recovery. Whatever it finds: it comes to an end in bounds; a
 * shard that it calls whole has every entry from its floor on; what it mends it
 * reads again, and finds the same.
 *
 * An edit is 8 bytes: what, slot, sector (2), number (2), offset (1), byte (1).
 */
#include <string.h>

#include "node/base/env.h"
#include "raft-glue/ballot.h"
#include "raft-glue/le.h"
#include "raft-glue/log.h"
#include "raft-glue/recovery.h"
#include "tests/fuzz/fuzz.h"
#include "tests/sim/world.h"

#define SEGMENT_BYTES 32768u
#define SLOTS         5u
#define SECTORS       (SEGMENT_BYTES / SECTOR_BYTES)
#define EDITS_MAX     32u

static const struct log_config cfg = {
	.shards = 3,
	.segment_bytes = SEGMENT_BYTES,
	.bytes_max = 12 * SEGMENT_BYTES,
	.node_id = 1,
};

static struct world *w;
static uint8_t image[SLOTS][SEGMENT_BYTES];
static uint8_t edited[SLOTS][SEGMENT_BYTES];

static void drain(void)
{
	while (world_step(w))
		;
}

/* Batches of several sizes, an overwritten entry, a base record, two changes of
 * segments. */
static void build(struct log *log)
{
	static const uint32_t sizes[] = { 10, 600, 0, 2000, 40, 900, 1, 300 };
	static const uint8_t data[4096];
	uint64_t last[3] = { 0 };
	unsigned i;

	for (i = 0; i < 24; i++) {
		uint32_t s = i % 3;
		struct log_entry e = { .index = ++last[s],
				       .term = 1 + i / 8,
				       .data = data,
				       .bytes = sizes[i % 8] };

		if (i == 10)
			e.index = last[s] = 2;
		(void)log_append(log, s, &e);
		if (i == 15) {
			(void)log_base(log, 2, 50, 2);
			last[2] = 50;
		}
		drain();
	}
}

static void load_images(void)
{
	char name[SEGMENT_NAME_BYTES];
	uint8_t *p;
	uint32_t i;
	size_t n;

	for (i = 0; i < SLOTS; i++) {
		segment_name(name, i + 1);
		p = world_file(w, 0, name, false, &n);
		if (p != NULL && n == SEGMENT_BYTES)
			memcpy(image[i], p, n);
		free(p);
	}
}

static void begin(void)
{
	const uint64_t floors[SHARDS_MAX] = { 0 };
	struct disk *d;
	struct ballot *b;
	struct log *log;

	w = world_new(1);
	d = world_disk(w, 0);
	MUST(ballot_format(d, cfg.shards, NULL) == RC_OK);
	MUST(log_format(d, &cfg, NULL) == RC_OK);
	MUST(ballot_open(d, cfg.shards, &b, NULL) == RC_OK);
	MUST(log_open(world_env(w, 0), d, b, &cfg, floors, &log, NULL) ==
	     RC_OK);
	build(log);
	log_discard(log);
	ballot_close(b);
	world_kill(w, 0);
	load_images();
}

static void seal(unsigned slot, unsigned sector, enum sector_kind kind,
		 uint64_t number)
{
	uint64_t off = (uint64_t)sector * SECTOR_BYTES;
	struct sector_place at = { kind, slot + 1, off };

	if (off < SEGMENT_HEAD_BYTES)
		at.kind = SECTOR_HEAD;
	sector_seal(edited[slot] + off, &at, number);
}

static void edit(const uint8_t e[8])
{
	unsigned slot = e[1] % SLOTS;
	unsigned sector = le_get16(e + 2) % SECTORS;
	uint8_t *p = edited[slot] + sector * SECTOR_BYTES;
	uint64_t own = le_get32(p + SECTOR_PAYLOAD);
	uint16_t number = le_get16(e + 4);
	unsigned from = e[6] % SECTORS;

	switch (e[0] % 8) {
	case 0: /* A byte, as it is. */
		p[e[6] * 2] = e[7];
		break;
	case 1: /* A byte of a batch header, sealed. */
		p[e[6] % 80] = e[7];
		seal(slot, sector, SECTOR_FIRST, own);
		break;
	case 2: /* A byte of a record or of a table, sealed. */
		p[e[6]] = e[7];
		seal(slot, sector, sector % 8 == 0 ? SECTOR_FIRST : SECTOR_NEXT,
		     own);
		break;
	case 3: /* Another number. */
		le_put64(p + 8, number);
		seal(slot, sector, e[7] % 2 == 0 ? SECTOR_FIRST : SECTOR_NEXT,
		     number);
		break;
	case 4: /* A sector from elsewhere, sealed here. */
		memcpy(p, edited[e[7] % SLOTS] + from * SECTOR_BYTES,
		       SECTOR_BYTES);
		seal(slot, sector, sector % 8 == 0 ? SECTOR_FIRST : SECTOR_NEXT,
		     number);
		break;
	case 5: /* The same, as it is. */
		memcpy(p, edited[e[7] % SLOTS] + from * SECTOR_BYTES,
		       SECTOR_BYTES);
		break;
	case 6:
		memset(p, 0, SECTOR_BYTES);
		break;
	default: /* As it was written. */
		memcpy(p, image[slot] + sector * SECTOR_BYTES, SECTOR_BYTES);
		break;
	}
}

static void store(void)
{
	struct disk *d = world_disk(w, 1);
	char name[SEGMENT_NAME_BYTES];
	struct disk_file *f;
	uint32_t i;

	for (i = 0; i < SLOTS; i++) {
		segment_name(name, i + 1);
		MUST(disk_open(d, name, DISK_CREATE, &f, NULL) == RC_OK);
		MUST(disk_write(f, edited[i], SEGMENT_BYTES, 0) == RC_OK);
		disk_close(f);
	}
}

struct seen {
	bool whole[SHARDS_MAX];
	uint64_t last[SHARDS_MAX];
};

static void look(struct recovery *r, struct seen *seen)
{
	struct recovered_shard *s;
	uint64_t i;
	uint32_t k;

	for (k = 0; k < cfg.shards; k++) {
		s = &r->shard[k];
		seen->whole[k] = recovery_whole(s);
		seen->last[k] = s->last;
		if (!seen->whole[k])
			continue;
		i = s->floor > s->base ? s->floor : s->base;
		for (i++; i <= s->last; i++) {
			MUST(i - s->floor <= s->n);
			MUST(s->of[i - s->floor - 1].here);
		}
	}
	MUST(r->next_number > 0);
	MUST(r->broken || r->head_offset <= SEGMENT_BYTES - CLOSING_BYTES);
}

static enum rc recover(const uint64_t *floors, bool mend, struct seen *seen)
{
	struct recovery r;
	enum rc rc;

	rc = recovery_read(&r, world_disk(w, 1), &cfg, floors, NULL, NULL, NULL,
			   NULL);
	if (rc == RC_OK)
		look(&r, seen);
	if (rc == RC_OK && mend)
		MUST(recovery_mend(&r, NULL) == RC_OK);
	recovery_release(&r);
	return rc;
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	uint64_t floors[SHARDS_MAX] = { 0 };
	struct seen one;
	struct seen two;
	size_t i;
	enum rc rc;

	if (w == NULL)
		begin();
	if (n == 0)
		return 0;
	floors[p[0] % 3] = p[0] / 3;
	memcpy(edited, image, sizeof(edited));
	for (i = 1; i + 8 <= n && i < 8 * EDITS_MAX; i += 8)
		edit(p + i);
	world_copy(w, 0, 1);
	store();
	rc = recover(floors, true, &one);
	MUST(rc == RC_OK || rc == RC_VERSION || rc == RC_FOREIGN ||
	     rc == RC_INVALID);
	if (rc == RC_OK) {
		MUST(recover(floors, false, &two) == RC_OK);
		for (i = 0; i < cfg.shards; i++) {
			MUST(one.whole[i] == two.whole[i]);
			MUST(!one.whole[i] || one.last[i] == two.last[i]);
		}
	}
	world_kill(w, 1);
	return 0;
}
