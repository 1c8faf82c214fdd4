/*
 * The loop thread collects; the writer thread lays out, seals, writes, syncs.
 *
 *	log_append, log_vote -> `fill`, votes          loop
 *	  ENV_PHASE_LOG, or the end of a batch:
 *	  `fill` becomes the order                     loop
 *	  ballot_write; one batch; fdatasync           batch_run, writer
 *	  durable(), the next part or order            batch_done, loop
 *	  what does not hurry: new segments, copies    chore_run, writer
 *
 * Of struct log, `w` belongs to the writer while one of the two jobs is under
 * way and to the loop otherwise. `order` is filled by the loop before a batch
 * job and left alone until it is done; `result` and `chore_result` go the
 * other way.
 *
 * The format of the files is at the top of segment.c; what recovery makes of
 * them, and why a leftover is never mistaken, at the top of recovery.c.
 *
 * Segments. `live` are those that hold the log, oldest first, the last one is
 * the head; `idle` can be used. A change of segments is: write and sync the
 * header of the next one, then a closing batch that names it in the old one,
 * and sync that. The oldest becomes idle when no shard has a live record in
 * it: each segment knows, per shard, the highest index whose record in it may
 * be live; entries that overwrite, and base records, lower it when they are
 * durable, and the shard's floor passes it in the end. When too little is
 * free, the shards that pin the oldest are asked to move their floors; from
 * three quarters on what they still have there is appended once more as
 * copies.
 */
#include "raft-glue/log.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/recovery.h"

#define LOG_MAGIC 0x6c6f6721u

#define SEGMENTS_MIN      4u
#define SEGMENT_BYTES_LOW (4u * BLOCK_BYTES)
#define FILL_BYTES        (64u << 10)  /* First size of a buffer. */
#define FILL_BYTES_KEEP   (8u << 20)   /* Larger ones are given back. */
#define SLICE_BYTES       (512u << 10) /* Zeroes written at a time. */
#define COPY_BYTES        (1u << 20)   /* Records copied at a time. */
#define RETRY_MS          100u         /* When no segment is free. */

/* A record in memory: its ticket, then as in a batch. */
#define TICKET_BYTES 8u

struct buffer {
	uint8_t *p;
	size_t used;
	size_t cap;
};

/* What the loop wants to know of the writer's segments. */
struct view {
	uint64_t segments;
	uint64_t idle;
	uint64_t live;
	uint64_t live_bytes;
	uint64_t head;            /* Its sequence. */
	uint64_t max[SHARDS_MAX]; /* Of the oldest, unless it is the head. */
	bool ask;   /* Shards that pin it should move their floors. */
	bool full;  /* Three quarters. */
	bool chore; /* There is something for chore_run. */
};

struct order {
	struct buffer records;
	size_t pos;     /* Records before are written. */
	uint64_t asked; /* Shards that were asked to move. */
	uint64_t voted;
	struct ballot_change changes[SHARDS_MAX];
	size_t changes_n;
	uint64_t vote[SHARDS_MAX]; /* Tickets, as in struct log. */
	uint64_t vote_after[SHARDS_MAX];
	uint64_t floors[SHARDS_MAX];
};

struct result {
	enum rc rc;
	struct detail why;
	bool stalled;    /* No segment: nothing was written. */
	uint64_t ticket; /* Of the last record written. */
	uint64_t shards; /* Whose records were written. */
	uint64_t bytes;  /* Of them, as counted in `unsynced`. */
	struct view view;
	struct log_stats stats;
};

struct copying {
	struct log_segment *from; /* NULL: nothing is copied. */
	uint64_t seq;
	struct buffer records;
	size_t pos;
	bool wait;            /* For room. */
	uint64_t refused_seq; /* Of a segment that could not be read. */
};

struct creating {
	struct log_segment *seg; /* NULL: none is being made. */
	uint64_t zeroed;
	uint64_t retry_at; /* No room on the disk: not before so many bytes
			    * were written. */
	bool no_space;
};

struct writer {
	struct disk *disk;
	struct ballot *ballot;
	const struct log_config *cfg;
	struct log_segments live;
	struct log_segments idle;
	uint64_t live_n;
	uint64_t idle_n;
	uint64_t total;
	uint64_t total_max;
	uint32_t slot_max;
	struct log_segment *head; /* NULL: the next batch needs a new one. */
	bool after_damage;        /* And cannot close the one before. */
	uint64_t offset;
	uint64_t next_seq;
	uint64_t next_number;
	uint8_t hash[HASH_BYTES];
	struct segment_shard row[SHARDS_MAX];
	uint64_t floors[SHARDS_MAX];
	uint64_t asked;
	struct creating creating;
	struct copying copying;
	bool failed;    /* Something did: not a byte is written after it. */
	bool sync_owed; /* Only a mutant owes one. */
	uint8_t *out;   /* A batch in its final form. */
	uint8_t *scratch;
	uint8_t *block; /* A segment's header. */
	uint8_t *zeroes;
	struct log_stats stats;
};

struct log {
	uint32_t magic;
	struct env *env;
	struct log_config cfg;
	bool dead;
	bool closing;
	bool stalled;
	bool batch_busy;
	bool chore_busy;
	struct env_task task;
	struct env_timer retry;
	struct env_job batch;
	struct env_job chore;
	struct buffer fill;
	uint64_t ticket;
	uint64_t unsynced;
	uint64_t voted;
	struct ballot_slot slot[SHARDS_MAX];
	uint64_t asked;
	struct log_listener *listener[SHARDS_MAX];
	struct view view;
	struct log_stats stats;
	struct {
		/* Tickets: of the last record; up to which records are
		 * durable; of the last vote, and of the record before it; of a
		 * durable vote that was not told yet, and of the record before
		 * it. */
		uint64_t appended;
		uint64_t durable;
		uint64_t vote;
		uint64_t vote_after;
		uint64_t untold;
		uint64_t untold_after;
		uint64_t floor;
		uint64_t last;
		uint64_t last_term;
		uint64_t base;
		bool damaged;
		bool ballot_lost;
		struct detail why;
		struct recovered_shard recovered;
	} shard[SHARDS_MAX];
	void (*closed)(void *arg);
	void *closed_arg;
	struct order order;
	struct result result;
	struct result chore_result;
	char stop_text[DETAIL_BYTES_MAX + 16];
	struct writer w;
};

/* ---- bounds ---- */

static uint64_t record_bytes_max(uint32_t segment_bytes)
{
	uint64_t room = segment_bytes - SEGMENT_HEAD_BYTES - CLOSING_BYTES;
	uint64_t n = batch_payload_max(room) - RECORD_HEADER_BYTES;

	return n < ENTRY_BYTES_MAX ? n : ENTRY_BYTES_MAX;
}

/* Of one batch, unless it is a single larger record. */
static uint64_t batch_bytes_max(uint32_t segment_bytes)
{
	uint64_t half = segment_bytes / 2;

	return half < BATCH_BYTES_MAX ? half : BATCH_BYTES_MAX;
}

static enum rc check_config(const struct log_config *cfg, struct detail *why)
{
	PRE(cfg->shards >= 1);
	PRE(cfg->shards <= SHARDS_MAX);
	if (cfg->segment_bytes < SEGMENT_BYTES_LOW ||
	    (cfg->segment_bytes & (cfg->segment_bytes - 1)) != 0)
		return detail_set(why, RC_INVALID, "segment_bytes",
				  "%u is no power of two of at least %u",
				  cfg->segment_bytes, SEGMENT_BYTES_LOW);
	if (cfg->bytes_max / cfg->segment_bytes < SEGMENTS_MIN)
		return detail_set(why, RC_INVALID, "log_bytes",
				  "the log needs room for at least %u segments "
				  "of %u bytes",
				  SEGMENTS_MIN, cfg->segment_bytes);
	return RC_OK;
}

/* ---- buffers of records ---- */

static uint8_t *buffer_take(struct buffer *b, size_t n)
{
	size_t cap = b->cap == 0 ? FILL_BYTES : b->cap;
	uint8_t *p;

	if (b->cap - b->used < n) {
		while (cap - b->used < n)
			cap *= 2;
		p = realloc(b->p, cap);
		if (p == NULL)
			return NULL;
		b->p = p;
		b->cap = cap;
	}
	p = b->p + b->used;
	b->used += n;
	return p;
}

static void buffer_clear(struct buffer *b)
{
	b->used = 0;
	if (b->cap > FILL_BYTES_KEEP) {
		free(b->p);
		*b = (struct buffer){ .p = NULL };
	}
}

static bool buffer_add(struct buffer *b, uint64_t ticket,
		       const struct record *r)
{
	uint8_t *p =
		buffer_take(b, TICKET_BYTES + RECORD_HEADER_BYTES + r->bytes);

	if (p == NULL)
		return false;
	memcpy(p, &ticket, TICKET_BYTES);
	record_encode(p + TICKET_BYTES, r);
	if (r->bytes > 0)
		memcpy(p + TICKET_BYTES + RECORD_HEADER_BYTES, r->data,
		       r->bytes);
	return true;
}

/* The record at `pos`, which is our own; returns where the next one is. */
static size_t buffer_at(const struct buffer *b, size_t pos, struct record *r)
{
	enum rc rc;

	rc = record_decode(b->p + pos + TICKET_BYTES,
			   b->used - pos - TICKET_BYTES, r);
	CHECK(rc == RC_OK);
	return pos + TICKET_BYTES + RECORD_HEADER_BYTES + r->bytes;
}

/* ---- the writer: segments ---- */

static bool segment_dead(const struct writer *w, const struct log_segment *g)
{
	uint32_t s;

	if (MUTANT(log_recycle_early))
		return true;
	for (s = 0; s < w->cfg->shards; s++)
		if (g->max[s] > w->floors[s])
			return false;
	return true;
}

static void free_dead(struct writer *w)
{
	struct log_segment *g;

	while ((g = TAILQ_FIRST(&w->live)) != NULL && g != w->head &&
	       segment_dead(w, g)) {
		TAILQ_REMOVE(&w->live, g, link);
		TAILQ_INSERT_TAIL(&w->idle, g, link);
		w->live_n--;
		w->idle_n++;
	}
}

static uint64_t pins(const struct writer *w)
{
	const struct log_segment *g = TAILQ_FIRST(&w->live);
	uint64_t set = 0;
	uint32_t s;

	if (g == NULL || g == w->head)
		return 0;
	for (s = 0; s < w->cfg->shards; s++)
		if (g->max[s] > w->floors[s])
			set |= (uint64_t)1 << s;
	return set;
}

/* Segments that could be used without recycling one. */
static uint64_t spare(const struct writer *w)
{
	if (w->creating.no_space || w->total >= w->total_max)
		return w->idle_n;
	return w->idle_n + (w->total_max - w->total);
}

static bool three_quarters(const struct writer *w)
{
	uint64_t max = w->creating.no_space ? w->total : w->total_max;

	return 4 * w->live_n >= 3 * max;
}

static bool copy_wanted(const struct writer *w)
{
	const struct log_segment *g = TAILQ_FIRST(&w->live);
	uint64_t set = pins(w);
	uint64_t bytes = 0;
	uint32_t s;

	if (w->copying.from != NULL)
		return !w->copying.wait;
	if (!three_quarters(w) || set == 0 || (set & ~w->asked) != 0 ||
	    w->copying.wait || g->seq == w->copying.refused_seq)
		return false;
	/* More than half of it lives: copying would gain too little. */
	for (s = 0; s < w->cfg->shards; s++)
		if ((set >> s & 1) != 0)
			bytes += g->bytes[s];
	return bytes <= w->cfg->segment_bytes / 2;
}

/* New segments are made while the head fills, a little faster than it does. */
static bool create_wanted(const struct writer *w)
{
	const struct creating *c = &w->creating;

	if (c->seg != NULL)
		return c->zeroed < w->offset + w->offset / 2 + SLICE_BYTES;
	return w->idle_n == 0 && w->total < w->total_max &&
	       w->stats.bytes >= c->retry_at;
}

static bool unlink_wanted(const struct writer *w)
{
	return w->total > w->total_max && w->idle_n > 1;
}

static void look(const struct writer *w, struct view *v)
{
	const struct log_segment *oldest = TAILQ_FIRST(&w->live);
	uint64_t whole = w->live_n > 0 ? w->live_n - 1 : 0;

	*v = (struct view){
		.segments = w->total,
		.idle = w->idle_n,
		.live = w->live_n,
		.live_bytes = whole * w->cfg->segment_bytes + w->offset,
		.head = w->head != NULL ? w->head->seq : 0,
		.ask = 2 * w->live_n > w->total_max || spare(w) < 2,
		.full = three_quarters(w),
		.chore = w->sync_owed || create_wanted(w) || copy_wanted(w) ||
			 unlink_wanted(w),
	};
	if (oldest != NULL && oldest != w->head)
		memcpy(v->max, oldest->max, sizeof(v->max));
}

static enum rc sync_counted(struct writer *w, struct disk_file *f)
{
	w->stats.syncs++;
	return disk_sync(f);
}

static enum rc writer_why(const struct log_segment *g, enum rc rc,
			  const char *what, struct detail *why)
{
	char name[SEGMENT_NAME_BYTES];

	if (rc == RC_OK)
		return RC_OK;
	segment_name(name, g->slot);
	return detail_set(why, rc, NULL, "cannot %s %s: %s", what, name,
			  rc_text(rc));
}

static enum rc open_segment(struct writer *w, struct log_segment *g,
			    unsigned flags, struct detail *why)
{
	char name[SEGMENT_NAME_BYTES];

	if (g->file != NULL)
		return RC_OK;
	segment_name(name, g->slot);
	/* What is written is synced at once and not read again before the next
	 * start, so the page cache would only be a copy and a walk over dirty
	 * pages: a fifth of the CPU of a sync. */
	return disk_open(w->disk, name, flags | DISK_DIRECT, &g->file, why);
}

static void forget_segment(struct writer *w, struct log_segment *g)
{
	char name[SEGMENT_NAME_BYTES];

	if (g->file != NULL)
		disk_close(g->file);
	segment_name(name, g->slot);
	/* If this fails the file is found, and used or removed, at the next
	 * start. */
	(void)w->disk->ops->unlink(w->disk, name);
	free(g);
	w->total--;
}

static void create_refused(struct writer *w)
{
	w->creating.no_space = true;
	w->creating.retry_at = w->stats.bytes + w->cfg->segment_bytes / 8;
}

/* RC_AGAIN: the disk has no room; what was begun is undone. */
static enum rc create_abandon(struct writer *w, enum rc rc, struct detail *why)
{
	struct creating *c = &w->creating;

	rc = writer_why(c->seg, rc, "make", why);
	if (rc != RC_NO_SPACE || MUTANT(no_space_is_fatal))
		return rc;
	forget_segment(w, c->seg);
	c->seg = NULL;
	create_refused(w);
	return RC_AGAIN;
}

/* The reserve is for the states: without room for them what the log holds
 * cannot be brought there, and no segment is ever free again. With less than
 * two segments nothing can be recycled either, so the second may take half of
 * it; with the other half gone too, a state that has to write ends the node,
 * and that at each start. */
static bool create_room(struct writer *w)
{
	uint64_t keep = w->cfg->reserve_bytes;
	struct disk_space space;

	if (w->total < 2)
		keep /= 2;
	return keep == 0 || disk_space(w->disk, &space) != RC_OK ||
	       space.bytes_free >= keep + w->cfg->segment_bytes;
}

/* RC_AGAIN: there is no room. */
static enum rc create_begin(struct writer *w, struct detail *why)
{
	struct creating *c = &w->creating;
	enum rc rc;

	if (!create_room(w)) {
		create_refused(w);
		return RC_AGAIN;
	}
	c->seg = calloc(1, sizeof(*c->seg));
	if (c->seg == NULL)
		return RC_NOMEM;
	c->zeroed = 0;
	c->seg->slot = ++w->slot_max;
	w->total++;
	rc = open_segment(w, c->seg, DISK_CREATE | DISK_EXCL, why);
	return rc == RC_OK ? RC_OK : create_abandon(w, rc, why);
}

static enum rc create_end(struct writer *w, struct detail *why)
{
	struct creating *c = &w->creating;
	enum rc rc = RC_OK;

	if (!MUTANT(log_no_dir_sync))
		rc = disk_sync_dir(w->disk, SEGMENT_DIR);
	if (rc != RC_OK)
		return create_abandon(w, rc, why);
	TAILQ_INSERT_TAIL(&w->idle, c->seg, link);
	w->idle_n++;
	c->seg = NULL;
	c->no_space = false;
	return RC_OK;
}

/* Zeroes, synced at once: a sync of a whole segment would hold up a batch. */
static enum rc create_slice(struct writer *w, struct detail *why)
{
	struct creating *c = &w->creating;
	uint64_t n = w->cfg->segment_bytes - c->zeroed;
	enum rc rc;

	if (n > SLICE_BYTES)
		n = SLICE_BYTES;
	rc = disk_write(c->seg->file, w->zeroes, (size_t)n, c->zeroed);
	if (rc == RC_OK)
		rc = sync_counted(w, c->seg->file);
	if (rc != RC_OK)
		return create_abandon(w, rc, why);
	c->zeroed += n;
	return c->zeroed < w->cfg->segment_bytes ? RC_OK : create_end(w, why);
}

/* One that can be used now, even if it has to be made first. */
static enum rc take_idle(struct writer *w, struct log_segment **out,
			 struct detail *why)
{
	enum rc rc = RC_OK;

	free_dead(w);
	if (w->idle_n == 0 && w->creating.seg == NULL) {
		if (w->total >= w->total_max)
			return RC_AGAIN;
		rc = create_begin(w, why);
	}
	while (rc == RC_OK && w->idle_n == 0)
		rc = create_slice(w, why);
	if (rc != RC_OK)
		return rc;
	*out = TAILQ_FIRST(&w->idle);
	return open_segment(w, *out, 0, why);
}

static void closing_batch(struct writer *w, uint64_t *number,
			  uint8_t hash[HASH_BYTES])
{
	struct batch_head h = {
		.flags = BATCH_CLOSING,
		.number = *number,
		.bytes = CLOSING_BYTES,
		.ballot = ballot_counter(w->ballot),
		.seq = w->head->seq,
		.successor = w->next_seq,
	};

	memcpy(h.before, w->hash, HASH_BYTES);
	batch_seal(w->out, &h, w->head->slot, w->offset, w->scratch, hash);
	*number = batch_number_after(*number);
}

static enum rc write_head(struct writer *w, struct log_segment *g,
			  uint64_t number, const uint8_t hash[HASH_BYTES],
			  struct detail *why)
{
	const struct log_segment *oldest = TAILQ_FIRST(&w->live);
	struct segment_head h = {
		.slot = g->slot,
		.flags = w->after_damage ? SEGMENT_AFTER_DAMAGE : 0,
		.shards = w->cfg->shards,
		.seq = w->next_seq,
		.bytes = w->cfg->segment_bytes,
		.node_id = w->cfg->node_id,
		.tail = oldest != NULL ? oldest->seq : w->next_seq,
		.first_number = number,
	};
	uint32_t s;
	enum rc rc;

	memcpy(h.cluster_id, w->cfg->cluster_id, sizeof(h.cluster_id));
	memcpy(h.before, hash, HASH_BYTES);
	for (s = 0; s < w->cfg->shards; s++) {
		h.shard[s] = w->row[s];
		if (h.shard[s].first <= w->floors[s])
			h.shard[s].first = w->floors[s] + 1;
	}
	segment_head_encode(w->block, &h);
	rc = disk_write(g->file, w->block, SEGMENT_HEAD_BYTES, 0);
	if (rc == RC_OK)
		rc = sync_counted(w, g->file);
	w->stats.bytes += SEGMENT_HEAD_BYTES;
	return writer_why(g, rc, "begin", why);
}

/* The log goes on in another segment. RC_AGAIN: there is none. */
static enum rc next_segment(struct writer *w, struct detail *why)
{
	uint64_t number = w->next_number;
	uint8_t hash[HASH_BYTES] = { 0 };
	struct log_segment *g;
	enum rc rc;

	rc = take_idle(w, &g, why);
	if (rc != RC_OK)
		return rc;
	if (w->head != NULL)
		closing_batch(w, &number, hash);
	rc = write_head(w, g, number, hash, why);
	if (rc == RC_OK && w->head != NULL) {
		rc = disk_write(w->head->file, w->out, CLOSING_BYTES,
				w->offset);
		if (rc == RC_OK)
			rc = sync_counted(w, w->head->file);
		w->stats.bytes += CLOSING_BYTES;
		rc = writer_why(w->head, rc, "close", why);
	}
	if (rc != RC_OK)
		return rc;
	TAILQ_REMOVE(&w->idle, g, link);
	TAILQ_INSERT_TAIL(&w->live, g, link);
	w->idle_n--;
	w->live_n++;
	g->seq = w->next_seq++;
	memset(g->max, 0, sizeof(g->max));
	memset(g->bytes, 0, sizeof(g->bytes));
	w->head = g;
	w->after_damage = false;
	w->offset = SEGMENT_HEAD_BYTES;
	w->next_number = number;
	memcpy(w->hash, hash, HASH_BYTES);
	return RC_OK;
}

/* ---- the writer: batches ---- */

/* Room in the head, what a closing batch needs set aside. */
static uint64_t room(const struct writer *w)
{
	if (w->head == NULL)
		return 0;
	return w->cfg->segment_bytes - CLOSING_BYTES - w->offset;
}

/* How many bytes of records from `pos` on fit a batch of `limit` bytes; `*end`
 * is behind the last. 0: not even the first. */
static uint64_t fitting(const struct buffer *b, size_t pos, uint64_t limit,
			size_t *end)
{
	uint64_t sum = 0;
	struct record r;
	size_t next;

	for (*end = pos; pos < b->used; pos = next) {
		next = buffer_at(b, pos, &r);
		if (batch_bytes(sum + RECORD_HEADER_BYTES + r.bytes) > limit)
			break;
		sum += RECORD_HEADER_BYTES + r.bytes;
		*end = next;
	}
	return sum;
}

/* Chooses what goes into the next batch, and makes room for it. */
static enum rc choose(struct writer *w, const struct buffer *b, size_t pos,
		      uint64_t *payload, size_t *end, struct detail *why)
{
	uint64_t max = batch_bytes_max(w->cfg->segment_bytes);
	struct record first;
	enum rc rc;

	(void)buffer_at(b, pos, &first);
	if (batch_bytes(RECORD_HEADER_BYTES + first.bytes) > max)
		max = batch_bytes(RECORD_HEADER_BYTES + first.bytes);
	*payload = fitting(b, pos, max < room(w) ? max : room(w), end);
	/* A small rest of a segment is not worth a batch of its own. */
	if (*payload > 0 &&
	    (*end == b->used || room(w) >= w->cfg->segment_bytes / 8))
		return RC_OK;
	rc = next_segment(w, why);
	if (rc != RC_OK)
		return rc;
	*payload = fitting(b, pos, max < room(w) ? max : room(w), end);
	CHECK(*payload > 0);
	return RC_OK;
}

/* The record is durable: what it voids, and what it is. */
static void note_record(struct writer *w, const struct record *r)
{
	struct segment_shard *row = &w->row[r->shard];

	log_segment_note(&w->live, w->head, r, row->last);
	if (r->kind == RECORD_COPY)
		return;
	row->last = r->index;
	row->last_term = r->term;
	if (r->kind == RECORD_BASE) {
		row->base = r->index;
		row->base_term = r->term;
		row->flags &= ~(uint64_t)SEGMENT_SHARD_DAMAGED;
	}
}

static enum rc sync_batch(struct writer *w)
{
	if (MUTANT(log_no_sync))
		return RC_OK;
	if (MUTANT(log_ack_before_sync)) {
		w->sync_owed = true;
		return RC_OK;
	}
	return sync_counted(w, w->head->file);
}

/* Lays the records pos..end out and writes and syncs them as one batch. */
static enum rc write_batch(struct writer *w, const struct buffer *b, size_t pos,
			   size_t end, uint64_t payload, struct detail *why)
{
	struct batch_head h = {
		.number = w->next_number,
		.bytes = (uint32_t)batch_bytes(payload),
		.payload = (uint32_t)payload,
		.ballot = ballot_counter(w->ballot),
		.seq = w->head->seq,
	};
	uint8_t hash[HASH_BYTES];
	uint64_t at = 0;
	struct record r;
	size_t next;
	size_t p;
	enum rc rc;

	for (p = pos; p < end; p = next) {
		next = buffer_at(b, p, &r);
		batch_put(w->out, at, b->p + p + TICKET_BYTES,
			  next - p - TICKET_BYTES);
		at += next - p - TICKET_BYTES;
		h.shards |= (uint64_t)1 << r.shard;
	}
	memcpy(h.before, w->hash, HASH_BYTES);
	batch_seal(w->out, &h, w->head->slot, w->offset, w->scratch, hash);
	rc = disk_write(w->head->file, w->out, h.bytes, w->offset);
	if (rc == RC_OK)
		rc = sync_batch(w);
	if (MUTANT(failure_forgiven))
		rc = RC_OK;
	if (rc != RC_OK)
		return writer_why(w->head, rc, "write to", why);
	for (p = pos; p < end; p = next) {
		next = buffer_at(b, p, &r);
		note_record(w, &r);
	}
	memcpy(w->hash, hash, HASH_BYTES);
	w->next_number = batch_number_after(w->next_number);
	w->offset += h.bytes;
	w->stats.batches++;
	w->stats.bytes += h.bytes;
	return RC_OK;
}

static void batch_tell(const struct order *o, size_t from, size_t to,
		       struct result *res)
{
	struct record r;
	size_t next;

	for (; from < to; from = next) {
		next = buffer_at(&o->records, from, &r);
		memcpy(&res->ticket, o->records.p + from, TICKET_BYTES);
		res->shards |= (uint64_t)1 << r.shard;
		res->bytes += RECORD_HEADER_BYTES + r.bytes;
	}
}

static enum rc write_order(struct writer *w, struct order *o,
			   struct result *res)
{
	uint64_t payload;
	size_t end;
	enum rc rc = RC_OK;

	if (o->changes_n > 0) {
		rc = ballot_write(w->ballot, o->changes, o->changes_n,
				  &res->why);
		w->stats.syncs += 2;
		o->changes_n = 0;
	}
	if (rc != RC_OK || o->pos == o->records.used)
		return rc;
	rc = choose(w, &o->records, o->pos, &payload, &end, &res->why);
	if (rc == RC_OK)
		rc = write_batch(w, &o->records, o->pos, end, payload,
				 &res->why);
	if (rc == RC_OK) {
		batch_tell(o, o->pos, end, res);
		o->pos = end;
	}
	return rc;
}

static void batch_run(struct env_job *job)
{
	struct log *log = CONTAINER_OF(job, struct log, batch);
	struct result *res = &log->result;
	struct writer *w = &log->w;
	uint64_t begun = env_now_ns(log->env);
	uint64_t took;

	*res = (struct result){ .rc = RC_OK };
	/* The chore before it: its `done` ends the node. */
	if (w->failed)
		return;
	memcpy(w->floors, log->order.floors, sizeof(w->floors));
	w->asked = log->order.asked;
	w->copying.wait = false;
	res->rc = write_order(w, &log->order, res);
	if (res->rc == RC_AGAIN) {
		res->rc = RC_OK;
		res->stalled = true;
		res->why = (struct detail){ .text = "" };
	}
	w->failed = res->rc != RC_OK && !MUTANT(failure_forgiven);
	took = env_now_ns(log->env) - begun;
	w->stats.sync_ns_sum += took;
	if (took > w->stats.sync_ns_max)
		w->stats.sync_ns_max = took;
	if (!res->stalled)
		w->stats.last_sync_ms = env_now_ms(log->env);
	free_dead(w);
	look(w, &res->view);
	res->stats = w->stats;
}

/* ---- the writer: copies ---- */

static void copy_end(struct writer *w)
{
	free(w->copying.records.p);
	w->copying.records = (struct buffer){ .p = NULL };
	w->copying.from = NULL;
	w->copying.pos = 0;
}

/* The kind in memory of a record that is void. */
static void copy_void(struct buffer *b, uint32_t shard, uint64_t index)
{
	struct record r;
	size_t next;
	size_t pos;

	for (pos = 0; pos < b->used; pos = next) {
		next = buffer_at(b, pos, &r);
		if (r.shard == shard && r.index >= index) {
			r.index = 0;
			record_encode(b->p + pos + TICKET_BYTES, &r);
		}
	}
}

/* Takes over the live records of one batch of the segment that is copied. */
static enum rc copy_collect(struct writer *w, const uint8_t *batch,
			    const struct batch_head *h, uint8_t *records,
			    uint64_t set, uint64_t last[SHARDS_MAX])
{
	struct buffer *b = &w->copying.records;
	struct record r;
	uint64_t at;

	batch_get(batch, 0, records, h->payload);
	for (at = 0; at < h->payload; at += RECORD_HEADER_BYTES + r.bytes) {
		if (record_decode(records + at, h->payload - at, &r) != RC_OK ||
		    r.shard >= w->cfg->shards)
			return RC_CORRUPT;
		if ((set >> r.shard & 1) == 0)
			continue;
		if (r.kind != RECORD_COPY) {
			if (r.index <= last[r.shard] || r.kind == RECORD_BASE)
				copy_void(b, r.shard,
					  r.kind == RECORD_BASE ? 0 : r.index);
			last[r.shard] = r.index;
		}
		if (r.kind == RECORD_BASE)
			continue;
		r.kind = RECORD_COPY;
		if (!buffer_add(b, 0, &r))
			return RC_NOMEM;
	}
	return RC_OK;
}

static bool sectors_whole(const uint8_t *batch, const struct batch_head *h,
			  uint32_t slot, uint64_t offset)
{
	struct sector_place at = { SECTOR_FIRST, slot, offset };

	for (; at.offset < offset + h->bytes; at.offset += SECTOR_BYTES) {
		if (!sector_is(batch + (at.offset - offset), &at, h->number))
			return false;
		at.kind = SECTOR_NEXT;
	}
	return true;
}

/* The segment as it is on the device; every batch of it verified. */
static enum rc copy_scan(struct writer *w, const uint8_t *image,
			 uint8_t *records)
{
	struct log_segment *g = w->copying.from;
	uint64_t size = w->cfg->segment_bytes;
	uint64_t last[SHARDS_MAX] = { 0 };
	uint64_t off = SEGMENT_HEAD_BYTES;
	uint64_t set = pins(w);
	struct batch_head h;
	enum rc rc;

	do {
		rc = off < size ? batch_decode(image + off, g->slot, off,
					       size - off, &h)
				: RC_CORRUPT;
		if (rc == RC_OK &&
		    (h.seq != g->seq ||
		     !sectors_whole(image + off, &h, g->slot, off)))
			rc = RC_CORRUPT;
		if (rc == RC_OK)
			rc = copy_collect(w, image + off, &h, records, set,
					  last);
		if (rc != RC_OK)
			return rc;
		off += h.bytes;
	} while ((h.flags & BATCH_CLOSING) == 0);
	return RC_OK;
}

static enum rc copy_read(struct writer *w, uint8_t *image)
{
	struct log_segment *g = w->copying.from;
	size_t size = w->cfg->segment_bytes;
	char name[SEGMENT_NAME_BYTES];
	struct disk_file *f;
	size_t got = 0;
	enum rc rc;

	segment_name(name, g->slot);
	rc = disk_open(w->disk, name, DISK_READONLY | DISK_DIRECT, &f, NULL);
	if (rc != RC_OK)
		return rc;
	rc = disk_read(f, image, size, 0, &got);
	disk_close(f);
	return rc == RC_OK && got != size ? RC_CORRUPT : rc;
}

/*
 * A segment that cannot be read whole is left as it is: its shards must move
 * their floors by themselves, and the next start says what is damaged.
 */
static void copy_begin(struct writer *w)
{
	struct copying *c = &w->copying;
	uint8_t *image = aligned_alloc(DISK_ALIGN, w->cfg->segment_bytes);
	uint8_t *records = malloc(w->cfg->segment_bytes);
	enum rc rc = RC_NOMEM;

	c->from = TAILQ_FIRST(&w->live);
	c->seq = c->from->seq;
	c->pos = 0;
	if (image != NULL && records != NULL)
		rc = copy_read(w, image);
	if (rc == RC_OK)
		rc = copy_scan(w, image, records);
	if (rc != RC_OK) {
		c->refused_seq = c->seq;
		copy_end(w);
	}
	free(image);
	free(records);
}

static bool copy_live(const struct writer *w, const struct record *r)
{
	return r->index > w->floors[r->shard] &&
	       r->index <= w->copying.from->max[r->shard];
}

/* The floors moved, and it is not the oldest any more. */
static bool copy_moved(const struct writer *w)
{
	return w->copying.from != TAILQ_FIRST(&w->live) ||
	       w->copying.from->seq != w->copying.seq;
}

/* A part of the records, those that are still live, as one batch. */
static enum rc copy_step(struct writer *w, struct detail *why)
{
	struct copying *c = &w->copying;
	struct buffer some = { .p = NULL };
	uint64_t payload;
	struct record r;
	size_t pos;
	size_t end;
	size_t at;
	enum rc rc = RC_OK;

	for (pos = c->pos; pos < c->records.used && some.used < COPY_BYTES;) {
		pos = buffer_at(&c->records, pos, &r);
		if (copy_live(w, &r) && !buffer_add(&some, 0, &r)) {
			free(some.p);
			return RC_NOMEM;
		}
	}
	for (at = 0; rc == RC_OK && at < some.used; at = end) {
		rc = choose(w, &some, at, &payload, &end, why);
		if (rc == RC_OK)
			rc = write_batch(w, &some, at, end, payload, why);
	}
	free(some.p);
	if (rc != RC_OK) {
		/* Without room: once more from the same place, later. What
		 * was written twice does no harm. */
		c->wait = rc == RC_AGAIN;
		return rc == RC_AGAIN ? RC_OK : rc;
	}
	c->pos = pos;
	/* Unless it was recycled just now. */
	if (copy_moved(w)) {
		copy_end(w);
	} else if (pos == c->records.used) {
		memset(c->from->max, 0, sizeof(c->from->max));
		memset(c->from->bytes, 0, sizeof(c->from->bytes));
		copy_end(w);
	}
	return RC_OK;
}

static enum rc copy_on(struct writer *w, struct detail *why)
{
	struct copying *c = &w->copying;

	if (c->from == NULL)
		copy_begin(w);
	if (c->from == NULL)
		return RC_OK;
	if (copy_moved(w)) {
		copy_end(w);
		return RC_OK;
	}
	return copy_step(w, why);
}

static enum rc create_on(struct writer *w, struct detail *why)
{
	enum rc rc = RC_OK;

	if (w->creating.seg == NULL)
		rc = create_begin(w, why);
	if (rc == RC_OK)
		rc = create_slice(w, why);
	return rc == RC_AGAIN ? RC_OK : rc;
}

/* The bound was lowered: segments above it go. */
static void unlink_one(struct writer *w)
{
	struct log_segment *g = TAILQ_LAST(&w->idle, log_segments);

	TAILQ_REMOVE(&w->idle, g, link);
	w->idle_n--;
	forget_segment(w, g);
}

static void chore_run(struct env_job *job)
{
	struct log *log = CONTAINER_OF(job, struct log, chore);
	struct result *res = &log->chore_result;
	struct writer *w = &log->w;

	*res = (struct result){ .rc = RC_OK };
	if (w->failed)
		return;
	if (w->sync_owed) {
		w->sync_owed = false;
		res->rc = sync_counted(w, w->head->file);
	} else if (create_wanted(w)) {
		res->rc = create_on(w, &res->why);
	} else if (copy_wanted(w)) {
		res->rc = copy_on(w, &res->why);
	} else if (unlink_wanted(w)) {
		unlink_one(w);
	}
	w->failed = res->rc != RC_OK;
	free_dead(w);
	look(w, &res->view);
	res->stats = w->stats;
}

/* ---- the loop ---- */

static void stop(struct log *log, const char *why)
{
	if (log->dead)
		return;
	log->dead = true;
	(void)snprintf(log->stop_text, sizeof(log->stop_text), "the log: %s",
		       why);
	env_fail_stop(log->env, log->stop_text);
}

static bool failed(struct log *log, const struct result *res)
{
	if (res->rc == RC_OK || MUTANT(failure_forgiven))
		return false;
	stop(log, res->why.text[0] != '\0' ? res->why.text : rc_text(res->rc));
	return true;
}

static bool order_done(const struct log *log)
{
	return log->order.pos == log->order.records.used;
}

static bool anything_to_write(const struct log *log)
{
	return !order_done(log) || log->fill.used > 0 || log->voted != 0;
}

/* What has come together becomes the order. */
static void take_records(struct log *log)
{
	struct order *o = &log->order;
	struct buffer empty = o->records;

	buffer_clear(&empty);
	o->records = log->fill;
	o->pos = 0;
	log->fill = empty;
}

/* Votes do not wait for records that were appended before. */
static void take_votes(struct log *log)
{
	struct order *o = &log->order;
	uint32_t s;

	o->voted = log->voted;
	log->voted = 0;
	o->changes_n = 0;
	for (s = 0; s < log->cfg.shards; s++) {
		if ((o->voted >> s & 1) == 0)
			continue;
		o->changes[o->changes_n].shard = s;
		o->changes[o->changes_n++].slot = log->slot[s];
		o->vote[s] = log->shard[s].vote;
		o->vote_after[s] = log->shard[s].vote_after;
	}
}

static void begin_batch(struct log *log)
{
	uint32_t s;

	PRE(!log->batch_busy);
	if (order_done(log))
		take_records(log);
	take_votes(log);
	for (s = 0; s < log->cfg.shards; s++)
		log->order.floors[s] = log->shard[s].floor;
	log->order.asked = log->asked;
	log->batch_busy = true;
	env_work(log->env, ENV_WORKER_LOG, &log->batch);
}

static void begin_chore(struct log *log)
{
	if (log->chore_busy || log->closing || log->dead || !log->view.chore)
		return;
	log->chore_busy = true;
	env_work(log->env, ENV_WORKER_LOG, &log->chore);
}

/* The writer is idle: what floors moved meanwhile counts at once. */
static void settle(struct log *log)
{
	uint32_t s;

	if (log->batch_busy || log->chore_busy)
		return;
	for (s = 0; s < log->cfg.shards; s++)
		log->w.floors[s] = log->shard[s].floor;
	log->w.asked = log->asked;
	free_dead(&log->w);
	look(&log->w, &log->view);
}

/* Against the floors of now, which the writer may not have seen. */
static bool shard_pins(const struct log *log, uint32_t shard)
{
	return log->view.max[shard] > log->shard[shard].floor;
}

static void ask_pinning(struct log *log)
{
	struct log_listener *l;
	uint32_t s;

	for (s = 0; log->view.ask && s < log->cfg.shards; s++) {
		l = log->listener[s];
		if (!shard_pins(log, s) || (log->asked >> s & 1) != 0 ||
		    l == NULL)
			continue;
		log->asked |= (uint64_t)1 << s;
		l->pinning(l);
	}
}

/* The votes of the order that has just been carried out. */
static void note_votes(struct log *log)
{
	const struct order *o = &log->order;
	uint32_t s;

	for (s = 0; s < log->cfg.shards; s++) {
		if ((o->voted >> s & 1) == 0)
			continue;
		log->shard[s].untold = o->vote[s];
		log->shard[s].untold_after = o->vote_after[s];
	}
}

static void tell_voted(struct log *log, uint32_t s)
{
	struct log_listener *l = log->listener[s];

	if (l != NULL && l->voted != NULL)
		l->voted(l, log->shard[s].untold);
}

static void tell_durable(struct log *log, uint32_t s, uint64_t ticket)
{
	struct log_listener *l = log->listener[s];

	if (ticket > log->shard[s].durable)
		log->shard[s].durable = ticket;
	if (log->shard[s].untold > 0 &&
	    log->shard[s].durable >= log->shard[s].untold_after) {
		if (ticket < log->shard[s].untold)
			ticket = log->shard[s].untold;
		log->shard[s].untold = 0;
	}
	if (ticket > 0 && l != NULL)
		l->durable(l, ticket);
}

/* `records`, `votes`: the shards whose were written. */
static void tell_all(struct log *log, uint64_t records, uint64_t votes,
		     uint64_t ticket)
{
	uint32_t s;

	for (s = 0; s < log->cfg.shards; s++) {
		if ((votes >> s & 1) != 0)
			tell_voted(log, s);
		if ((records >> s & 1) != 0)
			tell_durable(log, s, ticket);
		else if ((votes >> s & 1) != 0)
			tell_durable(log, s, 0);
	}
}

static void tell_idle(struct log *log)
{
	struct log_listener *l;
	uint32_t s;

	for (s = 0; s < log->cfg.shards && !log_busy(log); s++) {
		l = log->listener[s];
		if (l != NULL && l->idle != NULL)
			l->idle(l);
	}
}

static void stall(struct log *log, bool stalled)
{
	log->stalled = stalled;
	if (stalled)
		env_timer_start(&log->retry, env_now_ms(log->env) + RETRY_MS);
	else
		env_timer_stop(&log->retry);
}

static void finish(struct log *log);

static bool may_finish(const struct log *log)
{
	return log->closing && !log->batch_busy && !log->chore_busy &&
	       (log->dead || log->stalled || !anything_to_write(log));
}

static void batch_done(struct env_job *job)
{
	struct log *log = CONTAINER_OF(job, struct log, batch);
	struct result *res = &log->result;
	uint64_t votes = log->order.voted;
	uint64_t records = res->shards;
	uint64_t ticket = res->ticket;

	CHECK_OBJ(log, LOG_MAGIC);
	log->batch_busy = false;
	if (log->dead || failed(log, res))
		return;
	/* Who was asked and did nothing is asked again. */
	if (res->stalled || res->view.head != log->view.head)
		log->asked = 0;
	log->view = res->view;
	log->stats = res->stats;
	log->unsynced -= res->bytes;
	note_votes(log);
	stall(log, res->stalled);
	settle(log);
	/* The disk first: it works while the listeners do. */
	if (!log->stalled && anything_to_write(log))
		begin_batch(log);
	begin_chore(log);
	tell_all(log, records, votes, ticket);
	ask_pinning(log);
	tell_idle(log);
	if (may_finish(log))
		env_post(log->env, &log->task);
}

static void chore_done(struct env_job *job)
{
	struct log *log = CONTAINER_OF(job, struct log, chore);
	struct result *res = &log->chore_result;

	CHECK_OBJ(log, LOG_MAGIC);
	log->chore_busy = false;
	if (log->dead || failed(log, res))
		return;
	log->view = res->view;
	log->stats = res->stats;
	settle(log);
	if (log->stalled && log->view.idle > 0)
		env_post(log->env, &log->task);
	begin_chore(log);
	ask_pinning(log);
	if (may_finish(log))
		env_post(log->env, &log->task);
}

/* The end of the turn. */
static void turn_end(struct env_task *task)
{
	struct log *log = CONTAINER_OF(task, struct log, task);

	CHECK_OBJ(log, LOG_MAGIC);
	if (may_finish(log)) {
		finish(log); /* The log is gone: nothing after. */
		return;
	}
	if (!log->dead && !log->batch_busy && anything_to_write(log))
		begin_batch(log);
}

static void retry_fired(struct env_timer *t)
{
	struct log *log = CONTAINER_OF(t, struct log, retry);

	CHECK_OBJ(log, LOG_MAGIC);
	if (!log->dead && !log->batch_busy && anything_to_write(log))
		begin_batch(log);
}

static uint64_t add_record(struct log *log, const struct record *r)
{
	log->ticket++;
	if (log->dead)
		return log->ticket;
	if (!buffer_add(&log->fill, log->ticket, r)) {
		stop(log, "out of memory");
		return log->ticket;
	}
	log->unsynced += RECORD_HEADER_BYTES + r->bytes;
	log->shard[r->shard].appended = log->ticket;
	if (!log->stalled)
		env_post(log->env, &log->task);
	return log->ticket;
}

uint64_t log_append(struct log *log, uint32_t shard, const struct log_entry *e)
{
	struct record r = { .kind = RECORD_ENTRY,
			    .shard = (uint8_t)shard,
			    .type = e->type,
			    .bytes = e->bytes,
			    .index = e->index,
			    .term = e->term,
			    .data = e->data };

	CHECK_OBJ(log, LOG_MAGIC);
	PRE(!log->closing);
	PRE(shard < log->cfg.shards);
	PRE(!log->shard[shard].damaged);
	PRE(e->bytes <= log_entry_bytes_max(log));
	PRE(e->index > log->shard[shard].base);
	PRE(e->index <= log->shard[shard].last + 1);
	log->shard[shard].last = e->index;
	log->shard[shard].last_term = e->term;
	return add_record(log, &r);
}

uint64_t log_base(struct log *log, uint32_t shard, uint64_t index,
		  uint64_t term)
{
	struct record r = { .kind = RECORD_BASE,
			    .shard = (uint8_t)shard,
			    .index = index,
			    .term = term };

	CHECK_OBJ(log, LOG_MAGIC);
	PRE(!log->closing);
	PRE(shard < log->cfg.shards);
	PRE(index > 0);
	log->shard[shard].last = index;
	log->shard[shard].last_term = term;
	log->shard[shard].base = index;
	log->shard[shard].damaged = false;
	return add_record(log, &r);
}

uint64_t log_vote(struct log *log, uint32_t shard,
		  const struct ballot_slot *slot)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(!log->closing);
	PRE(shard < log->cfg.shards);
	log->slot[shard] = *slot;
	log->voted |= (uint64_t)1 << shard;
	log->shard[shard].ballot_lost = false;
	log->shard[shard].vote = ++log->ticket;
	log->shard[shard].vote_after = log->shard[shard].appended;
	if (!log->dead)
		env_post(log->env, &log->task);
	return log->ticket;
}

void log_floor(struct log *log, uint32_t shard, uint64_t index)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	log->asked &= ~((uint64_t)1 << shard);
	if (index <= log->shard[shard].floor)
		return;
	log->shard[shard].floor = index;
	settle(log);
	if (log->stalled && !log->dead)
		env_post(log->env, &log->task);
}

void log_listen(struct log *log, uint32_t shard, struct log_listener *l)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	log->listener[shard] = l;
}

bool log_stalled(const struct log *log)
{
	CHECK_OBJ(log, LOG_MAGIC);
	return log->stalled;
}

bool log_busy(const struct log *log)
{
	CHECK_OBJ(log, LOG_MAGIC);
	return log->batch_busy || !order_done(log);
}

bool log_full(const struct log *log, uint32_t shard)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	return log->stalled || (log->view.full && shard_pins(log, shard));
}

uint64_t log_room(const struct log *log)
{
	CHECK_OBJ(log, LOG_MAGIC);
	return log->view.segments < 2 ? log->cfg.segment_bytes : 0;
}

uint64_t log_unsynced_bytes(const struct log *log)
{
	CHECK_OBJ(log, LOG_MAGIC);
	return log->unsynced;
}

uint32_t log_entry_bytes_max(const struct log *log)
{
	return (uint32_t)record_bytes_max(log->cfg.segment_bytes);
}

struct log_range log_range(const struct log *log, uint32_t shard)
{
	struct log_range range;

	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	range.last = log->shard[shard].last;
	range.last_term = log->shard[shard].last_term;
	range.first = log->shard[shard].floor;
	if (range.first < log->shard[shard].base)
		range.first = log->shard[shard].base;
	if (range.first > range.last)
		range.first = range.last;
	range.first++;
	return range;
}

void log_stats(const struct log *log, struct log_stats *out)
{
	CHECK_OBJ(log, LOG_MAGIC);
	*out = log->stats;
	out->segments = log->view.segments;
	out->segments_free = log->view.idle;
	out->live_bytes = log->view.live_bytes;
	out->bytes_max = log->cfg.bytes_max;
}

enum log_status log_status(const struct log *log, uint32_t shard,
			   struct detail *why)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	if (!log->shard[shard].damaged && !log->shard[shard].ballot_lost)
		return LOG_WHOLE;
	(void)detail_set(why, RC_CORRUPT, NULL, "%s",
			 log->shard[shard].why.text);
	return LOG_DAMAGED;
}

enum rc log_recovered(struct log *log, uint32_t shard,
		      enum rc (*cb)(void *arg, const struct log_entry *e),
		      void *arg, uint64_t *base_index, uint64_t *base_term)
{
	struct recovered_shard *s;
	struct recovered_entry *e;
	enum rc rc = RC_OK;
	uint64_t i;

	CHECK_OBJ(log, LOG_MAGIC);
	PRE(shard < log->cfg.shards);
	s = &log->shard[shard].recovered;
	if (base_index != NULL)
		*base_index = s->base;
	if (base_term != NULL)
		*base_term = s->base_term;
	if (log->shard[shard].damaged)
		rc = RC_CORRUPT;
	i = s->floor > s->base ? s->floor : s->base;
	for (i++; rc == RC_OK && i <= s->floor + s->n; i++) {
		e = &s->of[i - s->floor - 1];
		rc = cb(arg, &(struct log_entry){ .index = i,
						  .term = e->term,
						  .type = e->type,
						  .data = e->data,
						  .bytes = e->bytes });
	}
	recovery_forget(s);
	return rc;
}

/* ---- the end ---- */

static void free_segments(struct log_segments *list)
{
	struct log_segment *g;

	while ((g = TAILQ_FIRST(list)) != NULL) {
		TAILQ_REMOVE(list, g, link);
		if (g->file != NULL)
			disk_close(g->file);
		free(g);
	}
}

static void release(struct log *log)
{
	struct writer *w = &log->w;
	uint32_t s;

	free_segments(&w->live);
	free_segments(&w->idle);
	if (w->creating.seg != NULL) {
		if (w->creating.seg->file != NULL)
			disk_close(w->creating.seg->file);
		free(w->creating.seg);
	}
	free(w->copying.records.p);
	free(w->out);
	free(w->scratch);
	free(w->block);
	free(w->zeroes);
	free(log->fill.p);
	free(log->order.records.p);
	for (s = 0; s < SHARDS_MAX; s++)
		recovery_forget(&log->shard[s].recovered);
	log->magic = 0;
	free(log);
}

static void finish(struct log *log)
{
	void (*closed)(void *arg) = log->closed;
	void *arg = log->closed_arg;

	env_timer_stop(&log->retry);
	release(log);
	closed(arg); /* The owner may be gone: nothing after. */
}

void log_close(struct log *log, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(log, LOG_MAGIC);
	PRE(!log->closing);
	log->closing = true;
	log->closed = closed;
	log->closed_arg = arg;
	env_post(log->env, &log->task);
}

void log_discard(struct log *log)
{
	CHECK_OBJ(log, LOG_MAGIC);
	env_timer_stop(&log->retry);
	release(log);
}

/* ---- the beginning ---- */

static enum rc writer_init(struct log *log, struct disk *disk,
			   struct ballot *ballot)
{
	struct writer *w = &log->w;
	uint64_t bytes = batch_bytes_max(log->cfg.segment_bytes);
	uint64_t one = batch_bytes(RECORD_HEADER_BYTES +
				   record_bytes_max(log->cfg.segment_bytes));

	if (bytes < one)
		bytes = one;
	w->disk = disk;
	w->ballot = ballot;
	w->cfg = &log->cfg;
	w->total_max = log->cfg.bytes_max / log->cfg.segment_bytes;
	TAILQ_INIT(&w->live);
	TAILQ_INIT(&w->idle);
	w->out = aligned_alloc(DISK_ALIGN, bytes);
	w->scratch = malloc(bytes / SECTOR_BYTES * 8);
	w->block = aligned_alloc(DISK_ALIGN, SEGMENT_HEAD_BYTES);
	w->zeroes = aligned_alloc(DISK_ALIGN, SLICE_BYTES);
	if (w->out == NULL || w->scratch == NULL || w->block == NULL ||
	    w->zeroes == NULL)
		return RC_NOMEM;
	memset(w->zeroes, 0, SLICE_BYTES);
	return RC_OK;
}

static uint64_t take_list(struct log_segments *to, struct log_segments *from)
{
	struct log_segment *g;
	uint64_t n = 0;

	TAILQ_CONCAT(to, from, link);
	TAILQ_FOREACH(g, to, link)
	n++;
	return n;
}

static void take_shard(struct log *log, uint32_t i, struct recovered_shard *r)
{
	struct segment_shard *row = &log->w.row[i];
	struct log_segment *g;

	log->shard[i].floor = r->floor;
	log->shard[i].last = r->last;
	log->shard[i].last_term = r->last_term;
	log->shard[i].base = r->base;
	log->shard[i].damaged = !recovery_whole(r);
	log->shard[i].why = r->why;
	log->w.floors[i] = r->floor;
	*row = (struct segment_shard){ .first = r->first,
				       .last = r->last,
				       .last_term = r->last_term,
				       .base = r->base,
				       .base_term = r->base_term };
	if (log->shard[i].damaged) {
		/* Void until a base record comes: it pins nothing. */
		row->flags = SEGMENT_SHARD_DAMAGED;
		TAILQ_FOREACH(g, &log->w.live, link)
		g->max[i] = 0;
	}
	log->shard[i].recovered = *r;
	*r = (struct recovered_shard){ .floor = 0 };
}

static void take_recovery(struct log *log, struct recovery *r)
{
	struct writer *w = &log->w;
	uint32_t i;

	w->live_n = take_list(&w->live, &r->live);
	w->idle_n = take_list(&w->idle, &r->idle);
	w->total = r->total;
	w->slot_max = r->slot_max;
	w->next_seq = r->next_seq;
	w->next_number = r->next_number;
	w->after_damage = r->broken;
	memcpy(w->hash, r->hash, HASH_BYTES);
	if (!r->broken) {
		w->head = TAILQ_LAST(&w->live, log_segments);
		w->offset = r->head_offset;
	}
	for (i = 0; i < log->cfg.shards; i++)
		take_shard(log, i, &r->shard[i]);
	free_dead(w);
	look(w, &log->view);
}

static enum rc open_files(struct writer *w, struct detail *why)
{
	struct log_segment *g;
	enum rc rc;

	TAILQ_FOREACH(g, &w->live, link)
	{
		rc = open_segment(w, g, 0, why);
		if (rc != RC_OK)
			return rc;
	}
	TAILQ_FOREACH(g, &w->idle, link)
	{
		rc = open_segment(w, g, 0, why);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

/* A batch of the log knows of a write that the ballot file has not. */
static enum rc check_ballots(struct log *log, uint64_t counter,
			     struct detail *why)
{
	struct ballot *b = log->w.ballot;
	uint32_t s;
	enum rc rc;

	rc = ballot_reconcile(b, counter, why);
	if (rc != RC_OK)
		return rc;
	for (s = 0; s < log->cfg.shards; s++)
		if (ballot_check(b, s, &log->shard[s].why) != RC_OK)
			log->shard[s].ballot_lost = true;
	return RC_OK;
}

enum rc log_open(struct env *env, struct disk *disk, struct ballot *ballot,
		 const struct log_config *cfg, const uint64_t *floors,
		 struct log **out, struct detail *why)
{
	struct recovery r;
	struct log *log;
	enum rc rc;

	rc = check_config(cfg, why);
	if (rc != RC_OK)
		return rc;
	log = calloc(1, sizeof(*log));
	if (log == NULL)
		return RC_NOMEM;
	log->magic = LOG_MAGIC;
	log->env = env;
	log->cfg = *cfg;
	log->task = (struct env_task){ .cb = turn_end, .phase = ENV_PHASE_LOG };
	log->batch = (struct env_job){ .run = batch_run, .done = batch_done };
	log->chore = (struct env_job){ .run = chore_run, .done = chore_done };
	env_timer_init(&log->retry, env, retry_fired);
	rc = writer_init(log, disk, ballot);
	if (rc != RC_OK) {
		release(log);
		return rc;
	}
	rc = recovery_read(&r, disk, &log->cfg, floors, NULL, NULL, NULL, why);
	if (rc == RC_OK)
		rc = recovery_mend(&r, why);
	if (rc == RC_OK)
		take_recovery(log, &r);
	recovery_release(&r);
	if (rc == RC_OK)
		rc = open_files(&log->w, why);
	if (rc == RC_OK)
		rc = check_ballots(log, r.ballot, why);
	if (rc != RC_OK) {
		release(log);
		return rc;
	}
	*out = log;
	return RC_OK;
}

/* ---- format ---- */

struct formatting {
	struct disk *disk;
	const struct log_config *cfg;
	uint8_t *block;
	enum rc rc;
};

/* What an interrupted format left is written over; a segment that holds a batch
 * ends the format. */
static void refuse_written(void *arg, const char *name)
{
	struct formatting *f = arg;
	uint32_t slot = segment_slot(name);
	char path[SEGMENT_NAME_BYTES];
	struct disk_file *file;
	uint8_t any = 0;
	size_t got = 0;
	size_t i;

	if (slot == 0 || f->rc != RC_OK)
		return;
	segment_name(path, slot);
	f->rc = disk_open(f->disk, path, DISK_READONLY, &file, NULL);
	if (f->rc != RC_OK)
		return;
	f->rc = disk_read(file, f->block, BLOCK_BYTES, SEGMENT_HEAD_BYTES,
			  &got);
	disk_close(file);
	for (i = 0; i < got; i++)
		any |= f->block[i];
	if (f->rc == RC_OK && any != 0)
		f->rc = RC_EXISTS;
}

/* The first segment; others are made when they are needed. */
static enum rc format_first(struct formatting *f, struct detail *why)
{
	struct segment_head h = { .slot = 1,
				  .shards = f->cfg->shards,
				  .seq = 1,
				  .bytes = f->cfg->segment_bytes,
				  .node_id = f->cfg->node_id,
				  .tail = 1,
				  .first_number = 1 };
	char name[SEGMENT_NAME_BYTES];
	struct disk_file *file;
	uint64_t off;
	enum rc rc;

	memcpy(h.cluster_id, f->cfg->cluster_id, sizeof(h.cluster_id));
	segment_name(name, 1);
	rc = disk_open(f->disk, name, DISK_CREATE, &file, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_truncate(file, 0);
	memset(f->block, 0, SEGMENT_HEAD_BYTES);
	for (off = 0; rc == RC_OK && off < f->cfg->segment_bytes;
	     off += SEGMENT_BYTES_LOW)
		rc = disk_write(file, f->block, SEGMENT_BYTES_LOW, off);
	if (rc == RC_OK) {
		segment_head_encode(f->block, &h);
		rc = disk_write(file, f->block, SEGMENT_HEAD_BYTES, 0);
	}
	if (rc == RC_OK)
		rc = disk_sync(file);
	disk_close(file);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot make %s: %s", name,
				  rc_text(rc));
	return RC_OK;
}

static enum rc format_all(struct formatting *f, struct detail *why)
{
	enum rc rc;

	rc = f->disk->ops->mkdir(f->disk, SEGMENT_DIR);
	if (rc != RC_OK && rc != RC_EXISTS)
		return detail_set(why, rc, NULL, "cannot make the directory %s",
				  SEGMENT_DIR);
	rc = f->disk->ops->list(f->disk, SEGMENT_DIR, refuse_written, f);
	if (rc == RC_OK)
		rc = f->rc;
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  rc == RC_EXISTS
					  ? "the directory holds a log: it is "
					    "not formatted again"
					  : "cannot read the directory of the "
					    "log");
	rc = format_first(f, why);
	if (rc == RC_OK)
		rc = disk_sync_dir(f->disk, SEGMENT_DIR);
	if (rc == RC_OK)
		rc = disk_sync_dir(f->disk, "");
	return rc;
}

enum rc log_format(struct disk *disk, const struct log_config *cfg,
		   struct detail *why)
{
	struct formatting f = { .disk = disk, .cfg = cfg };
	enum rc rc;

	rc = check_config(cfg, why);
	if (rc != RC_OK)
		return rc;
	f.block = aligned_alloc(DISK_ALIGN, SEGMENT_BYTES_LOW);
	if (f.block == NULL)
		return RC_NOMEM;
	memset(f.block, 0, SEGMENT_BYTES_LOW);
	rc = format_all(&f, why);
	free(f.block);
	return rc;
}

/* ---- offline ---- */

enum rc log_verify(struct disk *disk, const struct log_config *cfg,
		   void (*report)(void *arg, const char *line),
		   void (*dump)(void *arg, uint32_t shard,
				const struct log_entry *e),
		   void *arg, struct detail *why)
{
	char line[DETAIL_BYTES_MAX];
	struct recovery r;
	uint64_t counter;
	bool whole;
	enum rc rc;

	rc = check_config(cfg, why);
	if (rc != RC_OK)
		return rc;
	rc = recovery_read(&r, disk, cfg, NULL, report, dump, arg, why);
	whole = r.findings == 0;
	recovery_release(&r);
	if (rc != RC_OK)
		return rc;
	rc = ballot_verify(disk, cfg->shards, report, arg, &counter, why);
	if (rc == RC_OK && counter < r.ballot) {
		(void)snprintf(line, sizeof(line),
			       "ballot: the log was written when this file had "
			       "counted to %llu, a shard of it only to %llu: "
			       "it lost writes",
			       (unsigned long long)r.ballot,
			       (unsigned long long)counter);
		report(arg, line);
		rc = RC_CORRUPT;
	}
	return rc == RC_OK && !whole ? RC_CORRUPT : rc;
}
