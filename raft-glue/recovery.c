/*
 * How a log is read, and why nothing in it is mistaken for something else.
 *
 * What a disk may do: at a power cut every 512-byte sector that was written and
 * not synced is old or new, never a mixture. When a process dies, what it wrote
 * stays in the page cache and is what we read, synced or not. A synced sector
 * stays as it is, unless the disk is at fault: then it is bad (checksum), or
 * old (the write was lost), or stands elsewhere (bad there, since the place is
 * part of the checksum).
 *
 * 1. Only one batch is ever unsynced: the writer begins a batch when the one
 *    before it is synced. So all batches that have a successor were whole and
 *    durable once: a bad or an old sector in one of them is corruption.
 * 2. The last batch may be torn: some sectors new, some old, none bad. It was
 *    never acknowledged, and is cut. What is left of it could be mistaken for
 *    part of a later batch with the same number: with its first sector lost
 *    and others kept, it is not even visible as a batch. Therefore recovery
 *    looks at every sector behind the last whole batch, not only at the next
 *    header, and before the log is used again zeroes all that is new there and
 *    syncs the zeros. So at every moment all sectors that carry a number above
 *    that of the last whole batch belong to one and the same batch, and a
 *    number is used again only when no sector on the disk carries it. If power
 *    fails while the zeros are written, less of the torn batch is left: still
 *    torn.
 * 3. Sectors of an earlier life of a segment have lower numbers: numbers only
 *    grow. They are old. In particular an old first sector proves that a batch
 *    was not synced there (a disk that loses writes aside).
 * 4. If new sectors of two numbers stand behind the last whole batch, the first
 *    of the two batches had a successor: corruption. The same when a following
 *    segment has been written to although no closing batch leads there.
 * 5. A bad sector within a batch is corruption, in the last batch too: power
 *    cuts make no bad sectors, so it was whole and may have been acknowledged.
 *    If the first sector is bad the batch's extent and shards are unknown. A
 *    bad sector behind the last batch, where the first block also holds an old
 *    sector and nothing is new, belongs to nothing that was synced: it is
 *    reported and zeroed.
 * 6. The last whole batch may be in the page cache only. It is written once
 *    more and synced before anything of it counts. All before it were synced
 *    (1). A segment that was never used is made again: if its making failed,
 *    the cache may show what the disk will never have.
 * 7. A header of a segment that is being recycled may be torn too: a mixture of
 *    the old sequence and the next one, none bad. Then the old one was free.
 * 8. When something behind the last whole batch is damaged, nothing there is
 *    changed: the log goes on in another segment, whose header says so and
 *    carries the damage of each shard on, until a base record ends it. The
 *    numbers jump ahead by 2^20, more than a segment has batches. No batch
 *    leads there, the header alone: if that cannot be read, or the disk lost
 *    it and shows the one of an earlier life, then the log seems to end at the
 *    damage. So when it does, all segments are searched for numbers above, and
 *    one that has any is damage of all shards.
 *
 * Which shards lost something: a shard is put in doubt when a batch that
 * touched it (the header says; else every shard) cannot be read, or a segment
 * is missing. Doubt ends well when the next segment's table says that the shard
 * stands where it stood: same last index in the same term means the same log
 * (Raft's log matching). It ends in a hole when a later entry or table says
 * where the shard stands now: then what is in memory of it counts for nothing,
 * and the shard is whole only if its floor lies above the hole. Doubt that
 * stays to the end is damage.
 */
#include "raft-glue/recovery.h"

#include <inttypes.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define READ_BYTES   (1u << 20)
#define CHUNK_BYTES  (256u << 10)
#define NUMBER_JUMP  ((uint64_t)1 << 20)
#define LINE_BYTES   240
#define SHARDS_BYTES 96

/* How a finding begins; takes the slot. */
#define FILE_AT SEGMENT_DIR "/%016x.seg, "

/* What stands for bytes that could not be read: no checksum fits it. */
#define UNREADABLE 0xa5

struct recovered_chunk {
	struct recovered_chunk *next;
	size_t used;
	size_t bytes;
	uint8_t data[];
};

struct recovery_file {
	uint32_t slot;
	uint64_t size;
	struct head_view view;
	struct log_segment *seg;
	bool entered; /* Part of the chain. */
	bool unled;   /* Written to after the log's end: rule 8. */
};

enum walk_end {
	WALK_CLOSED, /* A closing batch leads to the next segment. */
	WALK_OPEN,   /* The log, or the readable part of this segment, ends. */
};

/* ---- findings ---- */

static uint64_t all_shards(const struct recovery *r)
{
	uint32_t n = r->cfg->shards;

	return n == 64 ? UINT64_MAX : ((uint64_t)1 << n) - 1;
}

/* "shards 1, 3, 7" */
static void shards_text(const struct recovery *r, uint64_t shards,
			char out[SHARDS_BYTES])
{
	size_t n = 0;
	uint32_t s;

	if (shards == 0 || shards == all_shards(r)) {
		(void)snprintf(out, SHARDS_BYTES, "%s",
			       shards == 0 ? "no shard" : "all shards");
		return;
	}
	for (s = 0; s < SHARDS_MAX && n + 12 < SHARDS_BYTES; s++)
		if ((shards >> s & 1) != 0)
			n += (size_t)snprintf(out + n, SHARDS_BYTES - n,
					      n == 0 ? "shard %u" : ", %u", s);
}

__attribute__((format(printf, 2, 3))) static void find(struct recovery *r,
						       const char *fmt, ...)
{
	char line[LINE_BYTES];
	va_list ap;

	r->findings++;
	if (r->report == NULL)
		return;
	va_start(ap, fmt);
	(void)vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	r->report(r->arg, line);
}

/* The same, and these shards may have lost something. */
__attribute__((format(printf, 3, 4))) static void doubt(struct recovery *r,
							uint64_t shards,
							const char *fmt, ...)
{
	char of[SHARDS_BYTES];
	char line[LINE_BYTES];
	va_list ap;
	uint32_t s;

	va_start(ap, fmt);
	(void)vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	shards_text(r, shards, of);
	find(r, "%.130s: may concern %s", line, of);
	for (s = 0; s < r->cfg->shards; s++) {
		if ((shards >> s & 1) == 0)
			continue;
		r->shard[s].doubt = true;
		(void)detail_set(&r->shard[s].why, RC_CORRUPT, NULL, "%s",
				 line);
	}
}

/* ---- entries in memory ---- */

static void *keep(struct recovered_shard *s, const void *p, size_t n)
{
	struct recovered_chunk *c = s->chunks;
	size_t room = (n + 7) / 8 * 8;
	size_t bytes;
	uint8_t *to;

	if (c == NULL || c->bytes - c->used < room) {
		bytes = room > CHUNK_BYTES ? room : CHUNK_BYTES;
		c = malloc(sizeof(*c) + bytes);
		if (c == NULL)
			return NULL;
		*c = (struct recovered_chunk){ .next = s->chunks,
					       .bytes = bytes };
		s->chunks = c;
	}
	to = c->data + c->used;
	c->used += room;
	memcpy(to, p, n);
	return to;
}

void recovery_forget(struct recovered_shard *s)
{
	struct recovered_chunk *c;

	while ((c = s->chunks) != NULL) {
		s->chunks = c->next;
		free(c);
	}
	free(s->of);
	s->of = NULL;
	s->n = 0;
	s->cap = 0;
}

static enum rc reserve(struct recovered_shard *s, size_t n)
{
	size_t cap = s->cap == 0 ? 64 : s->cap;
	struct recovered_entry *of;

	if (n <= s->cap)
		return RC_OK;
	while (cap < n)
		cap *= 2;
	of = realloc(s->of, cap * sizeof(*of));
	if (of == NULL)
		return RC_NOMEM;
	s->of = of;
	s->cap = cap;
	return RC_OK;
}

/* Entries at and above `index` are void. */
static void cut(struct recovered_shard *s, uint64_t index)
{
	if (MUTANT(overwritten_stays))
		return;
	if (index <= s->floor)
		s->n = 0;
	else if (index - s->floor - 1 < s->n)
		s->n = (size_t)(index - s->floor - 1);
}

/* No more than a full log can hold: an index further out is nonsense. */
static bool far_out(const struct recovery *r, const struct recovered_shard *s,
		    uint64_t index)
{
	uint64_t bytes = r->cfg->bytes_max;

	if (bytes < r->files_n * (uint64_t)r->cfg->segment_bytes)
		bytes = r->files_n * (uint64_t)r->cfg->segment_bytes;
	return index > s->floor &&
	       index - s->floor > bytes / RECORD_HEADER_BYTES;
}

static enum rc put(struct recovered_shard *s, const struct record *rec)
{
	size_t at = (size_t)(rec->index - s->floor - 1);
	struct recovered_entry *e;
	void *data;
	enum rc rc;

	rc = reserve(s, at + 1);
	if (rc != RC_OK)
		return rc;
	while (s->n <= at)
		s->of[s->n++] = (struct recovered_entry){ .here = false };
	data = keep(s, rec->data, rec->bytes);
	if (data == NULL)
		return RC_NOMEM;
	e = &s->of[at];
	*e = (struct recovered_entry){ .data = data,
				       .term = rec->term,
				       .bytes = rec->bytes,
				       .type = rec->type,
				       .here = true };
	return RC_OK;
}

bool recovery_whole(const struct recovered_shard *s)
{
	uint64_t i = s->floor > s->base ? s->floor : s->base;

	if (s->damaged || s->doubt || !s->known)
		return false;
	for (i++; i <= s->last; i++)
		if (i - s->floor > s->n || !s->of[i - s->floor - 1].here)
			return false;
	return true;
}

/* ---- records ---- */

void log_segment_note(struct log_segments *live, struct log_segment *in,
		      const struct record *r, uint64_t last)
{
	struct log_segment *g;
	uint32_t s = r->shard;

	if (r->kind == RECORD_BASE) {
		TAILQ_FOREACH(g, live, link)
		{
			g->max[s] = 0;
			g->bytes[s] = 0;
		}
		return;
	}
	if (r->kind == RECORD_ENTRY && r->index <= last)
		TAILQ_FOREACH(g, live, link)
	if (g->max[s] >= r->index)
		g->max[s] = r->index - 1;
	if (in->max[s] < r->index)
		in->max[s] = r->index;
	in->bytes[s] += RECORD_HEADER_BYTES + r->bytes;
}

/* What is in memory of it counts for nothing; the hole shows at the end. */
static void drop(struct recovered_shard *s)
{
	s->n = 0;
	s->doubt = false;
}

static enum rc apply_entry(struct recovery *r, struct recovered_shard *s,
			   const struct record *rec)
{
	bool gap = s->known && rec->index > s->last + 1;

	if (rec->index <= s->base || far_out(r, s, rec->index)) {
		doubt(r, (uint64_t)1 << rec->shard,
		      "index %" PRIu64 " of shard %u cannot follow %" PRIu64,
		      rec->index, rec->shard, s->last);
		return RC_OK;
	}
	if (gap && !s->doubt)
		find(r,
		     "entries %" PRIu64 "..%" PRIu64 " of shard %u are missing",
		     s->last + 1, rec->index - 1, rec->shard);
	if (gap || s->doubt)
		drop(s);
	cut(s, rec->index);
	s->known = true;
	s->last = rec->index;
	s->last_term = rec->term;
	return rec->index > s->floor ? put(s, rec) : RC_OK;
}

static enum rc apply_copy(struct recovery *r, struct recovered_shard *s,
			  const struct record *rec)
{
	uint64_t at = rec->index - s->floor - 1;

	if (rec->index <= s->floor || rec->index <= s->base ||
	    rec->index > s->last)
		return RC_OK;
	if (at < s->n && s->of[at].here) {
		if (s->of[at].term != rec->term && !s->doubt)
			doubt(r, (uint64_t)1 << rec->shard,
			      "entry %" PRIu64 " of shard %u is there in two "
			      "terms",
			      rec->index, rec->shard);
		return RC_OK;
	}
	return far_out(r, s, rec->index) ? RC_OK : put(s, rec);
}

static void apply_base(struct recovered_shard *s, const struct record *rec)
{
	drop(s);
	s->known = true;
	s->damaged = false;
	s->why = (struct detail){ .text = "" };
	s->last = rec->index;
	s->last_term = rec->term;
	s->base = rec->index;
	s->base_term = rec->term;
}

static void dump(struct recovery *r, const struct record *rec)
{
	struct log_entry e = { .index = rec->index,
			       .term = rec->term,
			       .type = rec->type,
			       .data = rec->data,
			       .bytes = rec->bytes };

	if (r->dump != NULL)
		r->dump(r->arg, rec->shard, &e);
}

static enum rc apply_record(struct recovery *r, struct recovery_file *f,
			    const struct record *rec)
{
	struct recovered_shard *s = &r->shard[rec->shard];
	uint64_t last = s->last;
	enum rc rc = RC_OK;

	dump(r, rec);
	if (rec->kind == RECORD_ENTRY)
		rc = apply_entry(r, s, rec);
	else if (rec->kind == RECORD_COPY)
		rc = apply_copy(r, s, rec);
	else
		apply_base(s, rec);
	log_segment_note(&r->live, f->seg, rec, last);
	return rc;
}

static enum rc apply_batch(struct recovery *r, struct recovery_file *f,
			   uint64_t off, const struct batch_head *h)
{
	struct record rec;
	uint64_t at;
	enum rc rc = RC_OK;

	batch_get(r->image + off, 0, r->records, h->payload);
	for (at = 0; rc == RC_OK && at < h->payload;
	     at += RECORD_HEADER_BYTES + rec.bytes) {
		if (record_decode(r->records + at, h->payload - at, &rec) !=
			    RC_OK ||
		    rec.shard >= r->cfg->shards || rec.index == 0) {
			doubt(r, h->shards != 0 ? h->shards : all_shards(r),
			      FILE_AT "offset %" PRIu64
				      ": a record of batch %" PRIu64
				      " makes no sense",
			      f->slot, off, h->number);
			return RC_OK;
		}
		rc = apply_record(r, f, &rec);
	}
	return rc;
}

/* ---- files ---- */

static void note_file(void *arg, const char *name)
{
	struct recovery *r = arg;
	uint32_t slot = segment_slot(name);
	size_t cap = r->files_cap == 0 ? 16 : 2 * r->files_cap;
	struct recovery_file *files;

	if (slot == 0 || r->list_rc != RC_OK)
		return;
	if (r->files_n == r->files_cap) {
		files = realloc(r->files, cap * sizeof(*files));
		if (files == NULL) {
			r->list_rc = RC_NOMEM;
			return;
		}
		r->files = files;
		r->files_cap = cap;
	}
	memset(&r->files[r->files_n], 0, sizeof(*r->files));
	r->files[r->files_n++].slot = slot;
}

static int by_slot(const void *a, const void *b)
{
	const struct recovery_file *x = a;
	const struct recovery_file *y = b;

	return x->slot < y->slot ? -1 : x->slot > y->slot;
}

/* Reads `n` bytes; what is missing or cannot be read comes as UNREADABLE. */
static void read_range(struct disk_file *file, uint8_t *p, uint64_t n,
		       uint64_t off)
{
	uint64_t step = n < READ_BYTES ? n : READ_BYTES;
	uint64_t at = 0;
	size_t got;
	enum rc rc;

	while (at < n) {
		if (step > n - at)
			step = n - at;
		rc = disk_read(file, p + at, (size_t)step, off + at, &got);
		if (rc != RC_OK && step > BLOCK_BYTES) {
			/* Again, block by block: the others may be whole. */
			step = BLOCK_BYTES;
			continue;
		}
		if (rc != RC_OK)
			got = 0;
		memset(p + at + got, UNREADABLE, (size_t)(step - got));
		at += step;
	}
}

static enum rc open_file(struct recovery *r, const struct recovery_file *f,
			 struct disk_file **out, struct detail *why)
{
	char name[SEGMENT_NAME_BYTES];

	segment_name(name, f->slot);
	return disk_open(r->disk, name, DISK_READONLY | DISK_DIRECT, out, why);
}

static enum rc check_owner(struct recovery *r, const struct recovery_file *f,
			   struct detail *why)
{
	const struct segment_head *h = &f->view.head;

	if (!f->view.fixed)
		return RC_OK;
	if (memcmp(h->cluster_id, r->cfg->cluster_id, 16) != 0 ||
	    h->node_id != r->cfg->node_id)
		return detail_set(why, RC_FOREIGN, NULL,
				  "the log's segment in slot %u belongs to "
				  "another node or cluster",
				  f->slot);
	if (h->bytes != r->cfg->segment_bytes)
		return detail_set(why, RC_INVALID, "segment_bytes",
				  "the log's segments have %" PRIu64
				  " bytes, not %u",
				  h->bytes, r->cfg->segment_bytes);
	return RC_OK;
}

static enum rc read_head(struct recovery *r, struct recovery_file *f,
			 struct detail *why)
{
	struct disk_file *file;
	enum rc rc;

	rc = open_file(r, f, &file, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_size(file, &f->size);
	if (rc == RC_OK)
		read_range(file, r->image, SEGMENT_HEAD_BYTES, 0);
	disk_close(file);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "cannot read the size of the "
				  "log's slot %u",
				  f->slot);
	/* A file that was being made when power failed. */
	if (f->size < SEGMENT_HEAD_BYTES)
		memset(r->image, 0, SEGMENT_HEAD_BYTES);
	rc = segment_head_decode(r->image, f->slot, &f->view);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "a newer version of Holdfast wrote the log");
	if (f->view.state == HEAD_HURT || f->view.state == HEAD_LOST)
		find(r, FILE_AT "offset 0: the segment's header is damaged",
		     f->slot);
	return check_owner(r, f, why);
}

static enum rc new_segment(struct recovery *r, struct recovery_file *f)
{
	f->seg = calloc(1, sizeof(*f->seg));
	if (f->seg == NULL)
		return RC_NOMEM;
	f->seg->slot = f->slot;
	TAILQ_INSERT_TAIL(&r->idle, f->seg, link);
	r->total++;
	if (f->slot > r->slot_max)
		r->slot_max = f->slot;
	return RC_OK;
}

static enum rc read_heads(struct recovery *r, struct detail *why)
{
	size_t i;
	enum rc rc;

	rc = r->disk->ops->list(r->disk, SEGMENT_DIR, note_file, r);
	if (rc == RC_OK)
		rc = r->list_rc;
	if (rc == RC_OK && r->files_n == 0)
		rc = RC_NOT_FOUND;
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  rc == RC_NOT_FOUND
					  ? "there is no log in the directory"
					  : "cannot list the log's directory");
	qsort(r->files, r->files_n, sizeof(*r->files), by_slot);
	for (i = 0; i < r->files_n; i++) {
		rc = read_head(r, &r->files[i], why);
		if (rc == RC_OK)
			rc = new_segment(r, &r->files[i]);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

static bool head_usable(const struct recovery_file *f)
{
	return f->view.state == HEAD_WHOLE || f->view.state == HEAD_HURT;
}

static struct recovery_file *by_seq(struct recovery *r, uint64_t seq)
{
	struct recovery_file *found = NULL;
	struct recovery_file *f;
	size_t i;

	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (!head_usable(f) || f->view.seq != seq)
			continue;
		if (found != NULL) {
			find(r,
			     "slots %u and %u have the same sequence %" PRIu64,
			     found->slot, f->slot, seq);
			return NULL;
		}
		found = f;
	}
	return found;
}

/* ---- one segment ---- */

static enum sector_state judge(struct recovery *r,
			       const struct recovery_file *f, uint64_t off,
			       uint64_t newest, uint64_t *number)
{
	return sector_judge(r->image + off, f->slot, off, newest, number);
}

/* Does anything from `off` on carry a number above `newest`? */
static bool any_newer(struct recovery *r, const struct recovery_file *f,
		      uint64_t off, uint64_t newest)
{
	uint64_t n;

	for (; off < r->cfg->segment_bytes; off += SECTOR_BYTES)
		if (judge(r, f, off, newest, &n) == SECTOR_NEW)
			return true;
	return false;
}

/* The highest such number in a segment that is not the one in memory. */
static enum rc highest_above(struct recovery *r, const struct recovery_file *f,
			     uint64_t newest, uint64_t *highest,
			     struct detail *why)
{
	uint64_t off = SEGMENT_HEAD_BYTES;
	struct disk_file *file;
	uint8_t *block;
	uint64_t n;
	size_t i;
	enum rc rc;

	*highest = 0;
	block = aligned_alloc(DISK_ALIGN, BLOCK_BYTES);
	if (block == NULL)
		return RC_NOMEM;
	rc = open_file(r, f, &file, why);
	if (rc == RC_OK) {
		for (; off < r->cfg->segment_bytes; off += BLOCK_BYTES) {
			read_range(file, block, BLOCK_BYTES, off);
			for (i = 0; i < BLOCK_BYTES; i += SECTOR_BYTES)
				if (sector_judge(block + i, f->slot, off + i,
						 newest, &n) == SECTOR_NEW &&
				    n > *highest)
					*highest = n;
		}
		disk_close(file);
	}
	free(block);
	return rc;
}

static enum rc written_to(struct recovery *r, const struct recovery_file *f,
			  bool *yes, struct detail *why)
{
	uint64_t newest =
		f->view.fixed ? f->view.head.first_number - 1 : r->newest;
	uint64_t highest;
	enum rc rc = highest_above(r, f, newest, &highest, why);

	*yes = highest > 0;
	return rc;
}

static enum rc next_written(struct recovery *r, const struct recovery_file *f,
			    bool *yes, struct detail *why)
{
	struct recovery_file *next = by_seq(r, f->view.seq + 1);

	*yes = false;
	return next == NULL ? RC_OK : written_to(r, next, yes, why);
}

struct extent {
	unsigned old;
	unsigned bad;
	uint64_t bad_at; /* The first. */
};

static void check_extent(struct recovery *r, const struct recovery_file *f,
			 uint64_t off, const struct batch_head *h,
			 struct extent *x)
{
	struct sector_place at = { SECTOR_FIRST, f->slot, off };
	uint64_t n;

	*x = (struct extent){ .old = 0 };
	for (; at.offset < off + h->bytes; at.offset += SECTOR_BYTES) {
		if (sector_is(r->image + at.offset, &at, h->number))
			; /* As it should be. */
		else if (judge(r, f, at.offset, h->number - 1, &n) ==
			 SECTOR_OLD)
			x->old++;
		else if (x->bad++ == 0)
			x->bad_at = at.offset;
		at.kind = SECTOR_NEXT;
	}
}

/* What stands behind the last batch. */
struct rest {
	unsigned fresh;     /* New sectors, */
	uint64_t min;       /* the lowest of their numbers, */
	uint64_t max;       /* the highest, */
	uint64_t fresh_end; /* the end of the last of them. */
	unsigned bad;
	uint64_t bad_at;       /* The first, */
	uint64_t bad_end;      /* the end of the last. */
	unsigned bad_within;   /* Those before fresh_end. */
	unsigned old_in_block; /* Old ones in the first block. */
	enum sector_state first;
};

static void look_at_rest(struct recovery *r, const struct recovery_file *f,
			 uint64_t off, struct rest *t)
{
	uint64_t begin = off;
	enum sector_state state;
	uint64_t n;

	*t = (struct rest){ .min = UINT64_MAX };
	for (; off < r->cfg->segment_bytes; off += SECTOR_BYTES) {
		state = judge(r, f, off, r->newest, &n);
		if (off == begin)
			t->first = state;
		if (state == SECTOR_OLD && off < begin + BLOCK_BYTES)
			t->old_in_block++;
		if (state == SECTOR_BAD) {
			if (t->bad++ == 0)
				t->bad_at = off;
			t->bad_end = off + SECTOR_BYTES;
		}
		if (state != SECTOR_NEW)
			continue;
		t->fresh++;
		t->min = n < t->min ? n : t->min;
		t->max = n > t->max ? n : t->max;
		t->fresh_end = off + SECTOR_BYTES;
		t->bad_within = t->bad;
	}
}

static void wipe_later(struct recovery *r, uint64_t from, uint64_t to)
{
	if (to <= from)
		return;
	r->wipe_from = from;
	r->wipe_to = (to + BLOCK_BYTES - 1) / BLOCK_BYTES * BLOCK_BYTES;
}

/* Bad sectors where nothing was synced: rule 5. */
static void find_stale(struct recovery *r, const struct recovery_file *f,
		       const struct rest *t)
{
	if (t->bad > 0)
		find(r,
		     FILE_AT "offset %" PRIu64 ": %u bad sectors behind the "
			     "last batch: no shard",
		     f->slot, t->bad_at, t->bad);
}

/* Where the next readable batch begins; the segment's end when nowhere. */
static uint64_t resync(struct recovery *r, const struct recovery_file *f,
		       uint64_t off, struct batch_head *h)
{
	uint64_t size = r->cfg->segment_bytes;

	for (off += BLOCK_BYTES; off < size; off += BLOCK_BYTES)
		if (batch_decode(r->image + off, f->slot, off, size - off, h) ==
			    RC_OK &&
		    h->number > r->newest && h->seq == f->view.seq)
			return off;
	return size;
}

/*
 * No batch header stands at `*off`. RC_AGAIN: the damage ends at the new
 * `*off`, go on there. RC_OK: the log ends here, or nothing more can be read.
 */
static enum rc judge_rest(struct recovery *r, struct recovery_file *f,
			  uint64_t *off, struct detail *why)
{
	struct batch_head h;
	bool later = false;
	uint64_t at;
	struct rest t;
	enum rc rc;

	look_at_rest(r, f, *off, &t);
	if (t.fresh == 0 && (t.old_in_block > 0 || t.bad == 0)) {
		find_stale(r, f, &t);
		wipe_later(r, *off, t.bad_end);
		return RC_OK;
	}
	if (t.fresh > 0 && t.first == SECTOR_OLD && t.bad_within == 0 &&
	    t.min == t.max && (r->expected == 0 || t.min == r->expected)) {
		rc = next_written(r, f, &later, why);
		if (rc != RC_OK)
			return rc;
		if (!later) {
			find_stale(r, f, &t);
			wipe_later(r, *off,
				   t.bad_end > t.fresh_end ? t.bad_end
							   : t.fresh_end);
			return RC_OK;
		}
	}
	if (t.fresh > 0 && t.max + NUMBER_JUMP > r->next_number)
		r->next_number = t.max + NUMBER_JUMP;
	at = resync(r, f, *off, &h);
	doubt(r, all_shards(r),
	      FILE_AT "offset %" PRIu64 ": the batch after %" PRIu64
		      " cannot be read",
	      f->slot, *off, r->newest);
	r->hash_known = false;
	r->expected = 0;
	if (at == r->cfg->segment_bytes) {
		r->broken = true;
		return RC_OK;
	}
	*off = at;
	return RC_AGAIN;
}

static void hurt(struct recovery *r, const struct recovery_file *f,
		 const struct batch_head *h, uint64_t off, const char *what)
{
	doubt(r, h->shards & all_shards(r),
	      FILE_AT "offset %" PRIu64 ": a sector of batch %" PRIu64 " %s",
	      f->slot, off, h->number, what);
	r->newest = h->number;
	r->expected = batch_number_after(h->number);
	r->hash_known = false;
	/* Unless a whole batch follows. */
	r->broken = true;
}

static enum rc whole(struct recovery *r, struct recovery_file *f,
		     const struct batch_head *h, uint64_t off)
{
	if (!MUTANT(log_no_chain_check) && r->hash_known &&
	    memcmp(r->hash, h->before, HASH_BYTES) != 0)
		doubt(r, all_shards(r),
		      FILE_AT "offset %" PRIu64 ": the batch before %" PRIu64
			      " is not the one that was written",
		      f->slot, off, h->number);
	batch_hash(r->image + off, h, r->scratch, r->hash);
	r->hash_known = true;
	r->newest = h->number;
	r->expected = batch_number_after(h->number);
	r->broken = false;
	r->last_in = f->seg;
	r->last_offset = off;
	r->last_bytes = h->bytes;
	if (h->ballot > r->ballot)
		r->ballot = h->ballot;
	return apply_batch(r, f, off, h);
}

/* RC_OK: go on behind it. RC_EOF: it was torn, the log ends here. */
static enum rc judge_batch(struct recovery *r, struct recovery_file *f,
			   uint64_t off, const struct batch_head *h,
			   struct detail *why)
{
	bool gap = r->expected != 0 && h->number != r->expected;
	struct extent x;
	bool later;
	enum rc rc;

	if (gap) {
		doubt(r, all_shards(r),
		      FILE_AT "offset %" PRIu64 ": batches %" PRIu64
			      "..%" PRIu64 " are missing",
		      f->slot, off, r->expected, h->number - 1);
		r->hash_known = false;
	}
	check_extent(r, f, off, h, &x);
	if (x.bad > 0) {
		hurt(r, f, h, x.bad_at, "is damaged");
		return RC_OK;
	}
	if (x.old == 0)
		return whole(r, f, h, off);
	later = any_newer(r, f, off + h->bytes, h->number);
	if (!later) {
		rc = next_written(r, f, &later, why);
		if (rc != RC_OK)
			return rc;
	}
	if (later) {
		hurt(r, f, h, off, "was not written");
		return RC_OK;
	}
	wipe_later(r, off, off + h->bytes);
	if (gap)
		r->broken = true;
	return RC_EOF;
}

static enum rc walk(struct recovery *r, struct recovery_file *f,
		    enum walk_end *end, struct detail *why)
{
	uint64_t size = r->cfg->segment_bytes;
	uint64_t off = SEGMENT_HEAD_BYTES;
	struct batch_head h;
	enum rc rc = RC_OK;

	*end = WALK_OPEN;
	while (off < size) {
		rc = batch_decode(r->image + off, f->slot, off, size - off, &h);
		if (rc == RC_VERSION)
			return detail_set(why, rc, NULL,
					  "a newer version of Holdfast wrote "
					  "the log");
		if (rc != RC_OK || h.number <= r->newest ||
		    h.seq != f->view.seq) {
			rc = judge_rest(r, f, &off, why);
			if (rc == RC_AGAIN)
				continue;
			break;
		}
		rc = judge_batch(r, f, off, &h, why);
		if (rc != RC_OK)
			break;
		off += h.bytes;
		if ((h.flags & BATCH_CLOSING) != 0) {
			*end = WALK_CLOSED;
			break;
		}
	}
	r->head_offset = off;
	return rc == RC_EOF ? RC_OK : rc;
}

/* ---- the chain ---- */

static void adopt(struct recovery *r, uint32_t shard,
		  const struct segment_shard *row)
{
	struct recovered_shard *s = &r->shard[shard];

	if ((row->flags & SEGMENT_SHARD_DAMAGED) != 0 && !s->damaged) {
		s->damaged = true;
		(void)detail_set(&s->why, RC_CORRUPT, NULL,
				 "an earlier start found the log of shard %u "
				 "damaged, and nothing has replaced it since",
				 shard);
	}
	if (row->base > s->base) {
		s->base = row->base;
		s->base_term = row->base_term;
	}
	if (s->known && s->last == row->last &&
	    s->last_term == row->last_term) {
		s->doubt = false;
		if (!s->damaged)
			s->why = (struct detail){ .text = "" };
		return;
	}
	if (s->known && !s->doubt)
		doubt(r, (uint64_t)1 << shard,
		      "shard %u ends at %" PRIu64 ", where %" PRIu64
		      " is expected",
		      shard, s->last, row->last);
	drop(s);
	s->known = true;
	s->last = row->last;
	s->last_term = row->last_term;
}

static void enter(struct recovery *r, struct recovery_file *f, bool led_here)
{
	const struct segment_head *h = &f->view.head;
	uint32_t s;

	if (f->view.fixed) {
		if (led_here && r->expected != 0 &&
		    r->expected != h->first_number)
			doubt(r, all_shards(r),
			      FILE_AT "begins with batch %" PRIu64
				      ", where %" PRIu64 " is expected",
			      f->slot, h->first_number, r->expected);
		r->expected = h->first_number;
		r->newest = h->first_number - 1;
		memcpy(r->hash, h->before, HASH_BYTES);
		r->hash_known = true;
	}
	for (s = 0; s < r->cfg->shards; s++)
		if ((f->view.known >> s & 1) != 0)
			adopt(r, s, &h->shard[s]);
	f->entered = true;
	f->seg->seq = f->view.seq;
	TAILQ_REMOVE(&r->idle, f->seg, link);
	TAILQ_INSERT_TAIL(&r->live, f->seg, link);
	r->wipe_from = 0;
	r->wipe_to = 0;
	r->broken = false;
}

static enum rc keep_last_batch(struct recovery *r, struct recovery_file *f)
{
	uint8_t *p;

	if (r->last_in != f->seg)
		return RC_OK;
	p = realloc(r->last_batch, r->last_bytes);
	if (p == NULL)
		return RC_NOMEM;
	r->last_batch = p;
	memcpy(p, r->image + r->last_offset, r->last_bytes);
	return RC_OK;
}

static enum rc visit(struct recovery *r, struct recovery_file *f, bool led_here,
		     enum walk_end *end, struct detail *why)
{
	struct disk_file *file;
	enum rc rc;

	enter(r, f, led_here);
	rc = open_file(r, f, &file, why);
	if (rc != RC_OK)
		return rc;
	read_range(file, r->image, r->cfg->segment_bytes, 0);
	disk_close(file);
	rc = walk(r, f, end, why);
	if (rc == RC_OK)
		rc = keep_last_batch(r, f);
	return rc;
}

/* The oldest sequence that is still needed, and the newest there is. */
static void chain_bounds(struct recovery *r, uint64_t *tail, uint64_t *newest)
{
	const struct recovery_file *f;
	size_t i;

	*tail = 0;
	*newest = 0;
	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (!head_usable(f))
			continue;
		if (f->view.seq > *newest)
			*newest = f->view.seq;
		if (f->view.fixed && f->view.head.tail > *tail)
			*tail = f->view.head.tail;
	}
	if (*tail == 0)
		for (*tail = *newest; *tail > 1; --*tail)
			if (by_seq(r, *tail - 1) == NULL)
				break;
}

/* A header that was torn while its segment was recycled tells that the segment,
 * and all before it, were free. */
static void retire_torn(struct recovery *r, uint64_t newest, uint64_t *tail)
{
	struct recovery_file *f;
	size_t i;

	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (f->view.state != HEAD_TORN)
			continue;
		if (f->view.seq != newest + 1) {
			find(r,
			     FILE_AT "offset 0: the segment's header is of "
				     "two sequences",
			     f->slot);
			f->view.state = HEAD_LOST;
		} else if (*tail <= f->view.seq_old) {
			*tail = f->view.seq_old + 1;
		}
	}
}

/* What the newest tables say was recycled: true whether or not the log has
 * reached their segments. */
static void set_floors(struct recovery *r, const uint64_t *floors)
{
	const struct recovery_file *f;
	struct recovered_shard *s;
	uint32_t k;
	size_t i;

	for (k = 0; k < r->cfg->shards; k++) {
		s = &r->shard[k];
		s->first = 1;
		for (i = 0; i < r->files_n; i++) {
			f = &r->files[i];
			if (head_usable(f) && (f->view.known >> k & 1) != 0 &&
			    f->view.head.shard[k].first > s->first)
				s->first = f->view.head.shard[k].first;
		}
		s->floor = s->first - 1;
		if (floors != NULL && floors[k] > s->floor)
			s->floor = floors[k];
	}
}

enum led_here {
	LED_FIRST,   /* Nothing is needed before it. */
	LED_CLOSED,  /* By a closing batch. */
	LED_OPEN,    /* The segment before has none. */
	LED_MISSING, /* The segment before is not there. */
};

/* Is `f` part of the log, or only prepared for it? */
static enum rc is_entered(struct recovery *r, struct recovery_file *f,
			  enum led_here led, bool newest, bool *yes,
			  struct detail *why)
{
	enum rc rc;

	*yes = true;
	if (led == LED_FIRST || led == LED_CLOSED)
		return RC_OK;
	if (newest) {
		rc = written_to(r, f, yes, why);
		if (rc != RC_OK || !*yes)
			return rc;
	}
	if (led == LED_OPEN && (!f->view.fixed || (f->view.head.flags &
						   SEGMENT_AFTER_DAMAGE) == 0))
		doubt(r, all_shards(r),
		      FILE_AT "the log goes on here, but no batch leads to it",
		      f->slot);
	return RC_OK;
}

static void miss(struct recovery *r, uint64_t seq)
{
	doubt(r, all_shards(r), "segment %" PRIu64 " of the log is missing",
	      seq);
	r->expected = 0;
	r->hash_known = false;
	r->broken = true;
	r->next_seq = seq + 1;
}

static enum rc walk_chain(struct recovery *r, uint64_t tail, uint64_t newest,
			  struct detail *why)
{
	enum led_here led = LED_FIRST;
	enum walk_end end;
	struct recovery_file *f;
	uint64_t seq;
	bool yes;
	enum rc rc;

	for (seq = tail; seq <= newest; seq++) {
		f = by_seq(r, seq);
		if (f == NULL) {
			miss(r, seq);
			led = LED_MISSING;
			continue;
		}
		rc = is_entered(r, f, led, seq == newest, &yes, why);
		if (rc != RC_OK || !yes)
			return rc;
		rc = visit(r, f, led == LED_CLOSED, &end, why);
		if (rc != RC_OK)
			return rc;
		led = end == WALK_CLOSED ? LED_CLOSED : LED_OPEN;
		r->next_seq = seq + 1;
	}
	if (led == LED_CLOSED)
		miss(r, newest + 1);
	return RC_OK;
}

/* The log seems to end at damage. Does it go on where nothing leads? Rule 8. */
static enum rc find_unled(struct recovery *r, struct detail *why)
{
	const struct log_segment *head = TAILQ_LAST(&r->live, log_segments);
	struct recovery_file *f;
	uint64_t highest;
	size_t i;
	enum rc rc;

	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (f->seg == head)
			continue;
		rc = highest_above(r, f, r->newest, &highest, why);
		if (rc != RC_OK)
			return rc;
		if (highest == 0)
			continue;
		f->unled = true;
		doubt(r, all_shards(r),
		      FILE_AT "batch %" PRIu64
			      " was written, but no header leads to it",
		      f->slot, highest);
		if (highest + NUMBER_JUMP > r->next_number)
			r->next_number = highest + NUMBER_JUMP;
	}
	return RC_OK;
}

/* The one whose header has the next sequence must be used first, so that no two
 * ever have the same; those of unknown content come last. */
static void order_idle(struct recovery *r)
{
	const struct recovery_file *f;
	size_t i;

	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (f->entered || f->view.state == HEAD_BLANK)
			continue;
		TAILQ_REMOVE(&r->idle, f->seg, link);
		if (f->view.state == HEAD_LOST)
			TAILQ_INSERT_TAIL(&r->idle, f->seg, link);
		else
			TAILQ_INSERT_HEAD(&r->idle, f->seg, link);
	}
	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (f->entered || f->view.seq < r->next_seq ||
		    f->view.state == HEAD_LOST)
			continue;
		TAILQ_REMOVE(&r->idle, f->seg, link);
		TAILQ_INSERT_HEAD(&r->idle, f->seg, link);
		r->next_seq = f->view.seq;
	}
}

/* Rule 8. */
static void number_on(struct recovery *r)
{
	if (!r->broken) {
		r->next_number = batch_number_after(r->newest);
		return;
	}
	if (r->next_number < r->newest + NUMBER_JUMP)
		r->next_number = r->newest + NUMBER_JUMP;
	r->next_number = batch_number_after(r->next_number);
	memset(r->hash, 0, sizeof(r->hash));
}

static enum rc read_all(struct recovery *r, const uint64_t *floors,
			struct detail *why)
{
	uint64_t newest;
	uint64_t tail;
	uint32_t s;
	enum rc rc;

	rc = read_heads(r, why);
	if (rc != RC_OK)
		return rc;
	chain_bounds(r, &tail, &newest);
	retire_torn(r, newest, &tail);
	set_floors(r, floors);
	if (newest == 0)
		miss(r, 1);
	else
		rc = walk_chain(r, tail, newest, why);
	if (rc == RC_OK && r->broken && !MUTANT(log_no_search))
		rc = find_unled(r, why);
	if (rc != RC_OK)
		return rc;
	/* Our own writer always leaves room for a closing batch. */
	if (TAILQ_EMPTY(&r->live) ||
	    r->head_offset > r->cfg->segment_bytes - CLOSING_BYTES)
		r->broken = true;
	order_idle(r);
	for (s = 0; s < r->cfg->shards; s++)
		if (!recovery_whole(&r->shard[s]))
			(void)detail_set(&r->shard[s].why, RC_CORRUPT, NULL,
					 "entries of shard %u are missing", s);
	number_on(r);
	return RC_OK;
}

enum rc recovery_read(struct recovery *r, struct disk *disk,
		      const struct log_config *cfg, const uint64_t *floors,
		      void (*report)(void *arg, const char *line),
		      void (*dump_cb)(void *arg, uint32_t shard,
				      const struct log_entry *e),
		      void *arg, struct detail *why)
{
	size_t bytes = cfg->segment_bytes;

	memset(r, 0, sizeof(*r));
	r->disk = disk;
	r->cfg = cfg;
	r->report = report;
	r->dump = dump_cb;
	r->arg = arg;
	TAILQ_INIT(&r->live);
	TAILQ_INIT(&r->idle);
	r->image = aligned_alloc(DISK_ALIGN, bytes);
	r->scratch = malloc(bytes / SECTOR_BYTES * 8);
	r->records = malloc(bytes);
	if (r->image == NULL || r->scratch == NULL || r->records == NULL)
		return RC_NOMEM;
	return read_all(r, floors, why);
}

/* ---- mending ---- */

static enum rc write_at(struct recovery *r, const struct log_segment *g,
			const uint8_t *p, size_t n, uint64_t off,
			struct detail *why)
{
	char name[SEGMENT_NAME_BYTES];
	struct disk_file *file;
	enum rc rc;

	segment_name(name, g->slot);
	rc = disk_open(r->disk, name, 0, &file, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_write(file, p, n, off);
	if (rc == RC_OK)
		rc = disk_sync(file);
	disk_close(file);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "cannot write to the log's "
				  "slot %u",
				  g->slot);
	return RC_OK;
}

static enum rc wipe(struct recovery *r, struct detail *why)
{
	struct log_segment *head = TAILQ_LAST(&r->live, log_segments);
	size_t n = (size_t)(r->wipe_to - r->wipe_from);

	if (r->broken || n == 0)
		return RC_OK;
	memset(r->image, 0, n);
	return write_at(r, head, r->image, n, r->wipe_from, why);
}

/* A segment that was never used may be one whose making failed: then the kernel
 * shows a file, or zeros in it, that it will not write any more. It is made
 * again. So is one that is too short, except that one of which nothing can be
 * told stays for those who may want it, and one that only its batches tell of
 * until a header elsewhere does. */
static bool to_be_removed(const struct recovery *r,
			  const struct recovery_file *f)
{
	return !f->unled && (f->view.state == HEAD_BLANK ||
			     (f->size < r->cfg->segment_bytes &&
			      f->view.state != HEAD_LOST));
}

static enum rc remove_unused(struct recovery *r, struct detail *why)
{
	char name[SEGMENT_NAME_BYTES];
	struct recovery_file *f;
	size_t i;
	enum rc rc;

	for (i = 0; i < r->files_n; i++) {
		f = &r->files[i];
		if (f->entered || (f->view.state != HEAD_BLANK &&
				   f->size >= r->cfg->segment_bytes))
			continue;
		TAILQ_REMOVE(&r->idle, f->seg, link);
		free(f->seg);
		f->seg = NULL;
		f->entered = true;
		if (!to_be_removed(r, f))
			continue;
		r->total--;
		segment_name(name, f->slot);
		rc = r->disk->ops->unlink(r->disk, name);
		if (rc != RC_OK)
			return detail_set(why, rc, NULL, "cannot remove %s",
					  name);
	}
	return RC_OK;
}

enum rc recovery_mend(struct recovery *r, struct detail *why)
{
	enum rc rc = RC_OK;

	if (r->last_in != NULL && !MUTANT(log_trust_unsynced))
		rc = write_at(r, r->last_in, r->last_batch, r->last_bytes,
			      r->last_offset, why);
	if (rc == RC_OK)
		rc = wipe(r, why);
	if (rc == RC_OK)
		rc = remove_unused(r, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_sync_dir(r->disk, SEGMENT_DIR);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "cannot sync the log's "
				  "directory");
	return RC_OK;
}

void recovery_release(struct recovery *r)
{
	struct log_segment *g;
	uint32_t s;

	while ((g = TAILQ_FIRST(&r->live)) != NULL) {
		TAILQ_REMOVE(&r->live, g, link);
		free(g);
	}
	while ((g = TAILQ_FIRST(&r->idle)) != NULL) {
		TAILQ_REMOVE(&r->idle, g, link);
		free(g);
	}
	for (s = 0; s < SHARDS_MAX; s++)
		recovery_forget(&r->shard[s]);
	free(r->files);
	free(r->image);
	free(r->scratch);
	free(r->records);
	free(r->last_batch);
}
