/*
 * The window has two generations. `now` takes what is applied; when a flush
 * begins it becomes `old`, which nobody changes any more, so that the worker
 * may read it while loads on the loop look at it too; when the flush is
 * committed `old` is forgotten.
 *
 *	apply -> now --flush begins--> old --commit--> SQLite
 *
 * A third one, `closed`, lies between them when a flush has to end exactly at
 * an index (storage_hash_at) while another one is under way: it is the next.
 *
 * A flush is one transaction, done in slices, each a job of its own, so that
 * loads of all shards get through in between. A load between two slices may
 * read rows of the open transaction, but reports the index of the last commit:
 * `old` then is laid over what it read, and holds every row that the
 * transaction changes. So what the load shows is exact in either case.
 *
 * The worker does one job at a time, in order, and `done` comes in that order:
 * a load that began before a commit is done before it, and `old` may go in the
 * commit's done.
 */
#include "objects/storage.h"

#include <bsd/sys/tree.h>
#include <inttypes.h>

#include "node/base/check.h"
#include "node/base/htab.h"
#include "node/base/mutant.h"
#include "objects/db.h"
#include "objects/db_vfs.h"

#define STORAGE_MAGIC 0x53746f72u
#define JOB_MAGIC     0x53744a62u
#define EXPORT_MAGIC  0x53744578u
#define STAGE_MAGIC   0x53745367u

#define CHUNK_BYTES    (64u << 10)
#define SLOTS_KEPT_MAX 4096u
#define FETCH_AHEAD    8u
#define CACHE_LINE     64u

/* ----------------------------------------------------------------- window */

struct change;

/* What row_find looks at stands first, in one line of the cache. */
struct row {
	struct hnode node; /* In its generation, for who knows its name. */
	const struct change *change;
	struct unit_row r;
	size_t room;      /* For the value. */
	struct row *next; /* Of its change. */
	RB_ENTRY(row) link;
};
RB_HEAD(rows, row);

enum head_is { HEAD_UNCHANGED, HEAD_SET, HEAD_GONE };

/* Kinds of rows, as bits. */
#define KIND(kind) (1u << (kind))
#define KINDS_ALL                                                 \
	(KIND(ROW_DATA) | KIND(ROW_IDEM) | KIND(ROW_IDEM_COUNT) | \
	 KIND(ROW_CONFIG))
#define KINDS_CLEARED (KIND(ROW_DATA) | KIND(ROW_CONFIG))

/* What happened to an object. Its rows are put in order when somebody wants
 * them in order: on the loop, in `rows`, where only the loop looks; on the
 * worker in a list of its own. */
struct change {
	struct hnode node;
	struct change *next; /* In order of their first change. */
	struct oid oid;
	uint32_t hides; /* Kinds whose rows in the layers below are gone. */
	enum head_is head_is;
	struct pack_bytes head;
	size_t head_room;
	struct row *all;     /* The last one first. */
	struct row *ordered; /* From this one on they are in `rows`. */
	struct rows rows;
};

struct chunk {
	struct chunk *next;
	size_t used;
	size_t room;
	uint8_t bytes[];
};

struct gen {
	const uint8_t *hash_key; /* Keys of rows come from outside. */
	struct htab objects;
	struct htab rows;
	struct change *first;
	struct change **end;
	size_t n;
	struct chunk *chunks;
	size_t bytes;        /* Taken from the chunks. */
	struct db_meta meta; /* As of its last entry. */
};

static int bytes_compare(struct pack_bytes a, struct pack_bytes b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int c = n > 0 ? memcmp(a.p, b.p, n) : 0;

	if (c != 0)
		return c;
	return (a.n > b.n) - (a.n < b.n);
}

/* As SQLite orders them: by kind, then key, byte by byte. */
static int row_compare(const struct unit_row *a, const struct unit_row *b)
{
	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	return bytes_compare(a->key, b->key);
}

static int tree_compare(struct row *a, struct row *b)
{
	return row_compare(&a->r, &b->r);
}

/* RB_GENERATE_STATIC with an attribute that glibc does not define. */
RB_GENERATE_INTERNAL(rows, row, link, tree_compare,
		     __attribute__((unused)) static)

/* An id is a keyed hash already. */
static uint64_t oid_hash(const struct oid *oid)
{
	uint64_t h;

	memcpy(&h, oid->b, sizeof(h));
	return h;
}

static enum rc gen_init(struct gen *g, const uint8_t *hash_key)
{
	enum rc rc;

	*g = (struct gen){ .hash_key = hash_key };
	g->end = &g->first;
	rc = htab_init(&g->objects, 0);
	return rc == RC_OK ? htab_init(&g->rows, 0) : rc;
}

static void gen_release(struct gen *g)
{
	struct chunk *c;

	while ((c = g->chunks) != NULL) {
		g->chunks = c->next;
		free(c);
	}
	if (g->objects.slots != NULL)
		htab_release(&g->objects);
	if (g->rows.slots != NULL)
		htab_release(&g->rows);
}

/* Empty, and not much larger than it has to be. */
static void index_clear(struct htab *t)
{
	struct htab small;

	if (t->mask >= SLOTS_KEPT_MAX && htab_init(&small, 0) == RC_OK) {
		htab_release(t);
		*t = small;
	}
	memset(t->slots, 0, (t->mask + 1) * sizeof(*t->slots));
	t->n = 0;
}

/* Empty again, without asking for memory. */
static void gen_clear(struct gen *g)
{
	struct htab objects = g->objects;
	struct htab rows = g->rows;

	g->objects = (struct htab){ 0 };
	g->rows = (struct htab){ 0 };
	gen_release(g);
	index_clear(&objects);
	index_clear(&rows);
	*g = (struct gen){ .hash_key = g->hash_key,
			   .objects = objects,
			   .rows = rows };
	g->end = &g->first;
}

static size_t padded(size_t n)
{
	return (n + 15) & ~(size_t)15;
}

/* Room for `n` bytes in one piece: takes from here on do not fail. */
static bool gen_reserve(struct gen *g, size_t n)
{
	struct chunk *c = g->chunks;
	size_t room = n > CHUNK_BYTES ? n : CHUNK_BYTES;

	if (c != NULL && c->room - c->used >= n)
		return true;
	c = malloc(sizeof(*c) + room);
	if (c == NULL)
		return false;
	c->next = g->chunks;
	c->used = 0;
	c->room = room;
	g->chunks = c;
	return true;
}

static void *gen_take(struct gen *g, size_t n)
{
	struct chunk *c = g->chunks;
	void *p;

	n = padded(n);
	CHECK(c != NULL);
	CHECK(c->room - c->used >= n);
	p = c->bytes + c->used;
	c->used += n;
	g->bytes += n;
	return p;
}

/* What gen_take will take for them, at most. */
static size_t unit_room(const struct unit_r *u)
{
	return padded(sizeof(struct change)) + padded(u->head.n + 1);
}

static size_t row_room(const struct unit_row *r)
{
	return padded(sizeof(struct row)) + padded(r->key.n + 1) +
	       padded(r->value.n + 1);
}

static struct change *gen_find(const struct gen *g, const struct oid *oid)
{
	uint64_t h = oid_hash(oid);
	struct hnode *n;
	struct change *c;

	for (n = htab_first(&g->objects, h); n != NULL; n = n->next) {
		c = CONTAINER_OF(n, struct change, node);
		if (n->hash == h && memcmp(&c->oid, oid, sizeof(*oid)) == 0)
			return c;
	}
	return NULL;
}

static struct change *gen_change(struct gen *g, const struct oid *oid)
{
	struct change *c = gen_find(g, oid);

	if (c != NULL)
		return c;
	c = gen_take(g, sizeof(*c));
	*c = (struct change){ .oid = *oid };
	RB_INIT(&c->rows);
	*g->end = c;
	g->end = &c->next;
	g->n++;
	htab_insert(&g->objects, &c->node, oid_hash(oid));
	return c;
}

/* A copy in `to`, whose memory (of `room` bytes) is used again if it suffices.
 * Never p == NULL, which says something else. */
static void gen_copy(struct gen *g, struct pack_bytes from,
		     struct pack_bytes *to, size_t *room)
{
	uint8_t *p = (uint8_t *)(uintptr_t)to->p;

	if (from.n + 1 > *room) {
		p = gen_take(g, from.n + 1);
		*room = padded(from.n + 1);
	}
	if (from.n > 0)
		memcpy(p, from.p, from.n);
	*to = (struct pack_bytes){ p, from.n };
}

static uint64_t row_hash(const struct gen *g, const struct oid *oid,
			 enum row_kind kind, struct pack_bytes key)
{
	return crypto_siphash(g->hash_key, key.p, key.n) + oid_hash(oid) +
	       (uint64_t)kind;
}

static struct row *row_find(const struct gen *g, const struct change *c,
			    enum row_kind kind, struct pack_bytes key,
			    uint64_t hash)
{
	struct hnode *n;
	struct row *row;

	for (n = htab_first(&g->rows, hash); n != NULL; n = n->next) {
		row = CONTAINER_OF(n, struct row, node);
		if (n->hash == hash && row->change == c &&
		    row->r.kind == kind && bytes_compare(row->r.key, key) == 0)
			return row;
	}
	return NULL;
}

/* All of a change's rows, in order. */
static struct rows *rows_of(struct change *c)
{
	struct row *row;

	for (row = c->all; row != c->ordered; row = row->next)
		(void)RB_INSERT(rows, &c->rows, row);
	c->ordered = c->all;
	return &c->rows;
}

static void change_row(struct gen *g, struct change *c,
		       const struct unit_row *r)
{
	uint64_t hash = row_hash(g, &c->oid, r->kind, r->key);
	struct row *row = row_find(g, c, r->kind, r->key, hash);
	size_t key_room = 0;
	struct pack_bytes spare;

	if (row == NULL) {
		row = gen_take(g, sizeof(*row));
		*row = (struct row){ .change = c, .r = { .kind = r->kind } };
		gen_copy(g, r->key, &row->r.key, &key_room);
		row->next = c->all;
		c->all = row;
		htab_insert(&g->rows, &row->node, hash);
	}
	row->r.expires_ns = r->expires_ns;
	if (r->value.p == NULL) {
		/* The memory stays the row's only while something is there. */
		row->r.value = (struct pack_bytes){ NULL, 0 };
		row->room = 0;
		return;
	}
	spare = row->r.value;
	gen_copy(g, r->value, &spare, &row->room);
	row->r.value = spare;
}

static void change_head(struct gen *g, struct change *c, const struct unit_r *u)
{
	if ((u->flags & UNIT_GONE) != 0) {
		c->head_is = HEAD_GONE;
		c->head = (struct pack_bytes){ NULL, 0 };
		c->head_room = 0;
	} else if (u->head.p != NULL) {
		c->head_is = HEAD_SET;
		gen_copy(g, u->head, &c->head, &c->head_room);
	}
}

static void change_hide(struct gen *g, struct change *c, uint32_t kinds)
{
	struct row **at = &c->all;
	struct row *row;

	c->hides |= kinds;
	while ((row = *at) != NULL) {
		if ((kinds & KIND(row->r.kind)) == 0) {
			at = &row->next;
			continue;
		}
		*at = row->next;
		htab_remove(&g->rows, &row->node);
	}
	RB_INIT(&c->rows);
	c->ordered = NULL;
}

static void change_unit(struct gen *g, struct unit_r *u)
{
	struct change *c = gen_change(g, &u->oid);
	struct unit_row r;

	if ((u->flags & UNIT_WIPE) != 0)
		change_hide(g, c, KINDS_ALL);
	if ((u->flags & UNIT_CLEAR) != 0 && !MUTANT(destroy_leaves_rows))
		change_hide(g, c, KINDS_CLEARED);
	change_head(g, c, u);
	while (u->rows > 0) {
		CHECK(unit_next(u, &r) == RC_OK);
		if (MUTANT(idem_unstored) && r.kind == ROW_IDEM)
			continue;
		change_row(g, c, &r);
	}
}

/* ---------------------------------------------------- what a load has read */

struct found {
	struct oid oid;
	enum row_kind kind;
	bool is_head;
	size_t at; /* Of key and value, in `bytes`, one after the other. */
	size_t key_n;
	size_t value_n;
	uint64_t expires_ns;
};

struct harvest {
	struct found *rows;
	size_t n;
	size_t cap;
	uint8_t *bytes;
	size_t used;
	size_t room;
	bool no_memory;
};

static void harvest_release(struct harvest *h)
{
	free(h->rows);
	free(h->bytes);
	*h = (struct harvest){ 0 };
}

static void harvest_empty(struct harvest *h)
{
	h->n = 0;
	h->used = 0;
}

static bool harvest_grow(struct harvest *h, size_t bytes)
{
	size_t cap = h->cap == 0 ? 16 : h->cap * 2;
	size_t room = h->room == 0 ? 1024 : h->room;
	void *p;

	if (h->n == h->cap) {
		p = realloc(h->rows, cap * sizeof(*h->rows));
		if (p == NULL)
			return false;
		h->rows = p;
		h->cap = cap;
	}
	if (h->room - h->used >= bytes)
		return true;
	while (room - h->used < bytes)
		room *= 2;
	p = realloc(h->bytes, room);
	if (p == NULL)
		return false;
	h->bytes = p;
	h->room = room;
	return true;
}

static bool harvest_add(struct harvest *h, const struct oid *oid,
			const struct unit_row *r)
{
	struct found *f;

	if (!harvest_grow(h, r->key.n + r->value.n)) {
		h->no_memory = true;
		return false;
	}
	f = &h->rows[h->n++];
	*f = (struct found){
		.oid = *oid,
		.kind = r->kind,
		.at = h->used,
		.key_n = r->key.n,
		.value_n = r->value.n,
		.expires_ns = r->expires_ns,
	};
	if (r->key.n > 0)
		memcpy(h->bytes + h->used, r->key.p, r->key.n);
	h->used += r->key.n;
	if (r->value.n > 0)
		memcpy(h->bytes + h->used, r->value.p, r->value.n);
	h->used += r->value.n;
	return true;
}

static struct unit_row harvest_row(const struct harvest *h, size_t i)
{
	static const uint8_t empty[1];
	const struct found *f = &h->rows[i];
	const uint8_t *p = h->bytes != NULL ? h->bytes + f->at : empty;

	return (struct unit_row){
		.kind = f->kind,
		.key = { p, f->key_n },
		.value = { p + f->key_n, f->value_n },
		.expires_ns = f->expires_ns,
	};
}

/* ---------------------------------------------------------------- storage */

/* Generations of the window, at most. */
#define LAYERS 3u

enum busy { IDLE, FLUSHING, CHECKPOINTING, SWITCHING, CLOSING };

/* Of a whole state, and of its parts. */
struct hashes {
	uint8_t state[HASH_BYTES];
	uint8_t ranges[STATE_RANGES][HASH_BYTES];
};

struct flush {
	struct env_job job;
	struct change **changes; /* Of `old`, in order of their ids. */
	size_t n;
	size_t at;
	struct row **sorted; /* Of changes[at]; there is room for all. */
	size_t sorted_n;
	size_t row;  /* The next of them. */
	bool opened; /* changes[at] was begun. */
	bool begun;
	bool committed;
	enum rc rc;
	struct detail why;
	uint64_t rows;
	uint64_t ns;
	uint64_t wal_bytes;
	struct hashes hashes; /* Of what was committed. */
};

struct checkpoint {
	struct env_job job;
	enum rc rc;
	struct detail why;
	uint64_t index;
	struct export *export; /* Begins with it; NULL: none. */
};

enum export_is {
	EXPORT_WAITS,  /* For a checkpoint. */
	EXPORT_CHECKS, /* The main file is pinned, its ranges are checked. */
	EXPORT_OPEN,
};

/* A copy on its way out. */
struct export
{
	uint32_t magic;
	struct env_job job;
	bool busy; /* The job, or a checkpoint that it waits for. */
	LIST_ENTRY(export) link;
	struct storage *storage;
	struct storage_export *x; /* NULL: nobody wants it any more. */
	enum export_is is;
	uint64_t at;  /* The index to be copied, if it can be. */
	enum rc over; /* Not RC_OK: what everything asked is told. */
	unsigned range;
	uint64_t offset;
	uint32_t bytes;
	/* The worker's, while it is busy. */
	struct db_meta meta; /* `conf` is ours. */
	uint8_t hash[HASH_BYTES];
	uint64_t main_bytes;
	void *conf;
	void *buf;
	size_t got;
	enum rc rc;
	struct detail why;
};

enum stage_does {
	STAGE_WRITES,
	STAGE_SEALS, /* Syncs and opens. */
	STAGE_READS, /* Pages, then ranges. */
	STAGE_READY,
	STAGE_DROPS,
};

/* A copy on its way in. */
struct stage {
	uint32_t magic;
	struct env_job job;
	bool busy;
	LIST_ENTRY(stage) link;
	struct storage *storage;
	struct storage_stage *g; /* NULL: dropped, or taken by a switch. */
	uint64_t generation;
	enum stage_does does;
	bool ends; /* No piece comes after the one that is written. */
	/* As announced; `conf` is ours. */
	struct db_meta meta;
	void *conf;
	uint64_t bytes;
	uint8_t hash[HASH_BYTES];
	/* The worker's, while it is busy. */
	struct db_vfs_stage *file;
	struct db *db;
	uint8_t *buf;
	uint64_t offset;
	uint32_t n;
	uint32_t page;
	unsigned range;
	enum rc rc;
	struct detail why;
};

struct change_over {
	struct env_job job;
	struct storage_switch *request; /* NULL: none. */
	bool forgotten;                 /* It is not told. */
	struct stage *stage;
	enum rc rc;
	struct detail why;
	struct db_meta meta;
};

struct storage {
	uint32_t magic;
	struct env *env;
	struct disk *disk;
	struct storage_config cfg;
	struct storage_listener *listener;
	/* Worker's: */
	struct db *db;
	/* Loop's; `old` and `flush` the worker's too, while its job runs. */
	uint8_t hash_key[HASH_KEY_BYTES];
	struct gen gens[LAYERS];
	struct gen *now;
	struct gen *closed_gen; /* Flushed next; NULL: `now` is. */
	struct gen *old;        /* NULL: no flush. */
	struct db_meta applied;
	uint64_t stored;
	uint64_t stored_stamp;
	uint64_t checkpointed;
	uint64_t wal_bytes; /* After the last flush; 0: it is empty. */
	void *conf;         /* As opened. */
	struct env_timer timer;
	enum busy busy;
	bool want_flush;
	bool want_checkpoint;
	uint64_t checkpoint_from; /* It is to hold at least this index. */
	bool closing;
	void (*closed)(void *arg);
	void *closed_arg;
	enum rc fault;
	struct flush flush;
	struct checkpoint checkpoint;
	struct env_job close;
	bool close_faulty;
	LIST_HEAD(, reading) readings;
	LIST_HEAD(, export) exports;
	LIST_HEAD(, stage) stages;
	uint64_t stage_next; /* Its generation. */
	struct change_over change;
	struct storage_hash *hashes; /* Wait for a flush, linked by `job`. */
	/* Requests that get no job end with the turn; linked by their `job`. */
	struct storage_load *refused_loads;
	struct storage_expired *refused_expired;
	struct storage_heads *refused_heads;
	struct storage_scrub *refused_scrubs;
	struct storage_hash *refused_hashes;
	struct storage_export *refused_exports;
	struct storage_stage *refused_stage; /* There is one. */
	struct env_task refuse;
	bool refusing; /* It is posted. */
	bool closed_waits;
	struct storage_stats stats;
};

static struct storage *storage_of_flush(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, flush.job);

	CHECK_OBJ(s, STORAGE_MAGIC);
	return s;
}

static struct storage *storage_of_checkpoint(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, checkpoint.job);

	CHECK_OBJ(s, STORAGE_MAGIC);
	return s;
}

static void step(struct storage *s);
static void readings_unpark(struct storage *s);
static void exports_over(struct storage *s, enum rc rc);
static void hash_refuse(struct storage *s, struct storage_hash *h, enum rc rc);
static void hashes_refuse(struct storage *s, enum rc rc);

static bool changing(const struct storage *s)
{
	return s->change.request != NULL;
}

/* What a request is told of a fault: the state is bad, or the node stops. */
static enum rc told(enum rc rc)
{
	if (rc == RC_NO_SPACE || rc == RC_INTERNAL)
		return RC_IO;
	return rc;
}

static void stop(struct storage *s, enum rc rc, const struct detail *why)
{
	s->fault = rc == RC_CORRUPT ? RC_IO : rc;
	env_timer_stop(&s->timer);
	env_fail_stop(s->env, why->text);
}

/* The first fault stays. What the caller was about to do, it leaves. */
static void fault(struct storage *s, enum rc rc, const struct detail *why)
{
	PRE(rc != RC_OK);
	if (s->fault != RC_OK)
		return;
	/* What is bad with it, it takes along. */
	if (rc == RC_CORRUPT && changing(s))
		return;
	s->fault = rc;
	env_timer_stop(&s->timer);
	readings_unpark(s);
	exports_over(s, told(rc));
	hashes_refuse(s, told(rc));
	if (rc == RC_CORRUPT && s->listener->bad != NULL)
		s->listener->bad(s->listener, rc, why);
	else
		stop(s, rc, why);
	step(s);
}

/* On the worker: what is told on the loop, where the database may be busy. */
static void explain(const struct storage *s, enum rc rc, struct detail *why)
{
	const char *text = rc == RC_NOMEM ? rc_text(rc) : db_why(s->db);

	(void)detail_set(why, rc, NULL, "the state of shard %u: %s",
			 s->cfg.shard, text);
}

/* ------------------------------------------------------------------ flush */

static int by_oid(const void *a, const void *b)
{
	const struct change *const *x = a;
	const struct change *const *y = b;

	return memcmp(&(*x)->oid, &(*y)->oid, sizeof((*x)->oid));
}

/* SQLite's trees are walked from one end to the other. */
static enum rc flush_begin(struct storage *s)
{
	struct flush *f = &s->flush;
	struct change *c;
	size_t i = 0;
	enum rc rc;

	f->n = s->old->n;
	f->changes = malloc((f->n + 1) * sizeof(struct change *));
	f->sorted = malloc((s->old->rows.n + 1) * sizeof(struct row *));
	if (f->changes == NULL || f->sorted == NULL)
		return RC_NOMEM;
	for (c = s->old->first; c != NULL; c = c->next)
		f->changes[i++] = c;
	CHECK(i == f->n);
	qsort(f->changes, f->n, sizeof(struct change *), by_oid);
	rc = db_begin(s->db);
	if (MUTANT(applied_apart) && rc == RC_OK) {
		rc = db_commit(s->db, &s->old->meta);
		if (rc == RC_OK)
			rc = db_begin(s->db);
	}
	f->begun = rc == RC_OK;
	return rc;
}

/* On the worker. */
static void hashes_take(const struct db *db, struct hashes *out)
{
	unsigned i;

	db_state_hash(db, out->state);
	for (i = 0; i < STATE_RANGES; i++)
		db_range_hash(db, i, out->ranges[i]);
}

static int by_name(const void *a, const void *b)
{
	const struct row *const *x = a;
	const struct row *const *y = b;

	return row_compare(&(*x)->r, &(*y)->r);
}

static enum rc flush_object(struct storage *s, const struct change *c)
{
	struct flush *f = &s->flush;
	struct row *row;
	enum rc rc = RC_OK;

	f->opened = true;
	f->row = 0;
	f->sorted_n = 0;
	for (row = c->all; row != NULL; row = row->next)
		f->sorted[f->sorted_n++] = row;
	CHECK(f->sorted_n <= s->old->rows.n);
	qsort(f->sorted, f->sorted_n, sizeof(struct row *), by_name);

	if (c->hides != 0)
		rc = db_wipe(s->db, &c->oid, c->hides);
	if (rc == RC_OK && c->head_is != HEAD_UNCHANGED)
		rc = db_put_head(s->db, &c->oid, c->head);
	return rc;
}

/* Rows until the slice is full or there are no more. */
static enum rc flush_slice(struct storage *s)
{
	struct flush *f = &s->flush;
	const struct change *c;
	const struct unit_row *r;
	size_t rows = 0;
	size_t bytes = 0;
	enum rc rc = RC_OK;

	while (rc == RC_OK && f->at < f->n && rows < STATE_SLICE_ROWS &&
	       bytes < STATE_SLICE_BYTES) {
		c = f->changes[f->at];
		if (!f->opened) {
			rc = flush_object(s, c);
		} else {
			r = &f->sorted[f->row++]->r;
			if ((c->hides & KIND(r->kind)) == 0 ||
			    r->value.p != NULL)
				rc = db_put_row(s->db, &c->oid, r);
			bytes += r->key.n + r->value.n;
		}
		rows++;
		if (f->row == f->sorted_n) {
			f->opened = false;
			f->at++;
		}
	}
	f->rows += rows;
	return rc;
}

static void flush_run(struct env_job *job)
{
	struct storage *s = storage_of_flush(job);
	struct flush *f = &s->flush;
	uint64_t from = env_now_ns(s->env);

	f->rc = f->begun ? RC_OK : flush_begin(s);
	if (f->rc == RC_OK)
		f->rc = flush_slice(s);
	if (f->rc == RC_OK && f->at == f->n) {
		f->rc = db_commit(s->db, &s->old->meta);
		f->committed = f->rc == RC_OK;
		hashes_take(s->db, &f->hashes);
	}
	if (f->rc != RC_OK)
		explain(s, f->rc, &f->why);
	f->wal_bytes = db_wal_bytes(s->db);
	f->ns += env_now_ns(s->env) - from;
}

static void hash_give(struct storage_hash *h, const struct hashes *from)
{
	memcpy(h->hash, from->state, sizeof(h->hash));
	memcpy(h->ranges, from->ranges, sizeof(h->ranges));
}

/* The state is committed exactly as somebody wanted it hashed. */
static void hashes_answer(struct storage *s)
{
	struct storage_hash **at = &s->hashes;
	struct storage_hash *ready = NULL;
	struct storage_hash *h;

	while ((h = *at) != NULL) {
		if (h->index != s->stored) {
			at = (struct storage_hash **)&h->job;
			continue;
		}
		*at = h->job;
		h->job = ready;
		ready = h;
	}
	while ((h = ready) != NULL) {
		ready = h->job;
		h->job = NULL;
		hash_give(h, &s->flush.hashes);
		h->done(h, RC_OK);
	}
}

static uint64_t wal_bytes_max(const struct storage *s)
{
	return s->cfg.wal_bytes_max > 0 ? s->cfg.wal_bytes_max
					: STATE_WAL_BYTES_MAX;
}

static void flush_done(struct env_job *job)
{
	struct storage *s = storage_of_flush(job);
	struct flush *f = &s->flush;

	if (f->rc == RC_OK && !f->committed && !changing(s)) {
		env_work(s->env, ENV_WORKER_STORAGE, job);
		return;
	}
	free(f->changes);
	free(f->sorted);
	f->changes = NULL;
	f->sorted = NULL;
	s->busy = IDLE;
	if (f->rc != RC_OK)
		fault(s, f->rc, &f->why);
	if (f->rc != RC_OK || changing(s)) {
		step(s);
		return;
	}
	s->stats.flushes++;
	s->stats.rows_written += f->rows;
	s->stats.flush_ns_sum += f->ns;
	s->stored = s->old->meta.applied_index;
	s->stored_stamp = s->old->meta.stamp_ns;
	gen_clear(s->old);
	s->old = NULL;
	readings_unpark(s);
	s->wal_bytes = f->wal_bytes;
	if (f->wal_bytes >= wal_bytes_max(s))
		s->want_checkpoint = true;
	hashes_answer(s);
	s->listener->stored(s->listener, s->stored);
	step(s);
}

/* `now` takes nothing any more; an empty one takes its place. */
static struct gen *gen_close(struct storage *s)
{
	struct gen *g = s->now;
	const void *conf = g->meta.conf;
	size_t conf_bytes = g->meta.conf_bytes;
	unsigned i;

	for (i = 0; i < LAYERS; i++)
		if (&s->gens[i] != g && &s->gens[i] != s->closed_gen &&
		    &s->gens[i] != s->old)
			s->now = &s->gens[i];
	CHECK(s->now != g);
	g->meta = s->applied;
	g->meta.conf = conf;
	g->meta.conf_bytes = conf_bytes;
	s->want_flush = false;
	env_timer_stop(&s->timer);
	return g;
}

/*
 * What is applied already is in the flush that is under way, or in `now`: which
 * then becomes that flush's next, so that nothing more gets in. False: another
 * one stands there already. The caller steps.
 */
static bool flush_ends_here(struct storage *s)
{
	uint64_t index = s->applied.applied_index;

	if (s->old != NULL && s->old->meta.applied_index == index)
		return true;
	if (s->closed_gen != NULL)
		return s->closed_gen->meta.applied_index == index;
	s->closed_gen = gen_close(s);
	return true;
}

static void flush_start(struct storage *s)
{
	CHECK(s->old == NULL);
	if (s->closed_gen != NULL)
		s->old = s->closed_gen;
	else
		s->old = gen_close(s);
	s->closed_gen = NULL;
	s->busy = FLUSHING;
	s->flush = (struct flush){ 0 };
	s->flush.job.run = flush_run;
	s->flush.job.done = flush_done;
	env_work(s->env, ENV_WORKER_STORAGE, &s->flush.job);
}

/* ------------------------------------------------------------- checkpoint */

static struct export *export_waiting(struct storage *s);
static void export_pin(struct export *e);
static void export_pinned(struct export *e);
static void export_failed(struct export *e, enum rc rc);
static void export_done(struct env_job *job);
static void stage_done(struct env_job *job);
static void readings_cancel(struct storage *s);
static void refuse_post(struct storage *s);
static void state_is(struct storage *s, const struct db_meta *m,
		     struct storage_state *state);

static void checkpoint_run(struct env_job *job)
{
	struct storage *s = storage_of_checkpoint(job);
	struct checkpoint *c = &s->checkpoint;

	c->rc = db_checkpoint(s->db);
	c->index = db_meta(s->db)->applied_index;
	if (c->rc != RC_OK)
		explain(s, c->rc, &c->why);
	else if (c->export != NULL)
		export_pin(c->export);
}

static void checkpoint_done(struct env_job *job)
{
	struct storage *s = storage_of_checkpoint(job);
	struct checkpoint *c = &s->checkpoint;

	s->busy = IDLE;
	if (c->rc != RC_OK) {
		fault(s, c->rc, &c->why);
		if (c->export != NULL)
			export_failed(c->export, told(c->rc));
		step(s);
		return;
	}
	s->stats.checkpoints++;
	s->wal_bytes = 0;
	s->checkpointed = c->index;
	if (c->export != NULL)
		export_pinned(c->export);
	if (!changing(s))
		s->listener->checkpointed(s->listener, c->index);
	step(s);
}

static void checkpoint_start(struct storage *s)
{
	s->want_checkpoint = false;
	s->checkpoint_from = 0;
	s->busy = CHECKPOINTING;
	s->checkpoint = (struct checkpoint){ .export = export_waiting(s) };
	if (s->checkpoint.export != NULL)
		s->checkpoint.export->busy = true;
	s->checkpoint.job.run = checkpoint_run;
	s->checkpoint.job.done = checkpoint_done;
	env_work(s->env, ENV_WORKER_STORAGE, &s->checkpoint.job);
}

/* ---------------------------------------------------------------- exports */

static void export_free(struct export *e)
{
	LIST_REMOVE(e, link);
	free(e->conf);
	free(e->buf);
	e->magic = 0;
	free(e);
}

static struct export *export_of(struct env_job *job)
{
	struct export *e = CONTAINER_OF(job, struct export, job);

	CHECK_OBJ(e, EXPORT_MAGIC);
	return e;
}

/* The one that the next checkpoint is for. */
static struct export *export_waiting(struct storage *s)
{
	struct export *e;

	LIST_FOREACH(e, &s->exports, link)
	if (e->x != NULL && e->is == EXPORT_WAITS && e->over == RC_OK)
		return e;
	return NULL;
}

/* The main file must stay as it is. */
static bool main_pinned(const struct storage *s)
{
	const struct export *e;

	if (MUTANT(export_unpinned))
		return false;
	LIST_FOREACH(e, &s->exports, link)
	if (e->is != EXPORT_WAITS && e->over == RC_OK)
		return true;
	return false;
}

/* What is stored is what is to be copied: nothing more may come before. */
static bool export_is_here(struct storage *s)
{
	const struct export *e = export_waiting(s);

	return e != NULL && e->at == s->stored && !main_pinned(s);
}

/* ---- on the worker ---- */

/* What the main file is, while it is that. */
static void export_pin(struct export *e)
{
	struct db *db = e->storage->db;

	e->meta = *db_meta(db);
	e->conf = malloc(e->meta.conf_bytes + 1);
	e->buf = malloc(STORAGE_PIECE_MAX);
	if (e->conf == NULL || e->buf == NULL) {
		e->rc = RC_NOMEM;
		return;
	}
	if (e->meta.conf_bytes > 0)
		memcpy(e->conf, e->meta.conf, e->meta.conf_bytes);
	if (e->meta.conf != NULL)
		e->meta.conf = e->conf;
	e->main_bytes = db_main_bytes(db);
	db_state_hash(db, e->hash);
}

static void export_run(struct env_job *job)
{
	struct export *e = export_of(job);
	struct storage *s = e->storage;

	if (e->rc != RC_OK)
		return;
	if (e->is == EXPORT_OPEN)
		e->rc = db_main_read(s->db, e->offset, e->buf, e->bytes,
				     &e->got);
	else if (!MUTANT(snapshot_unscrubbed))
		e->rc = db_range_check(s->db, e->range);
	if (e->rc != RC_OK)
		explain(s, e->rc, &e->why);
}

/* ---- on the loop ---- */

static void export_work(struct export *e)
{
	e->busy = true;
	e->rc = e->over;
	e->job.done = export_done;
	e->job.run = export_run;
	env_work(e->storage->env, ENV_WORKER_STORAGE, &e->job);
}

/* `ready` with what it is; with a code it is the end. */
static void export_ready(struct export *e, enum rc rc)
{
	struct storage_export *x = e->x;

	x->index = e->meta.applied_index;
	x->term = e->meta.applied_term;
	x->conf_index = e->meta.conf_index;
	x->conf = e->meta.conf;
	x->conf_bytes = e->meta.conf_bytes;
	x->bytes = e->main_bytes;
	memcpy(x->hash, e->hash, HASH_BYTES);
	if (rc == RC_OK) {
		e->is = EXPORT_OPEN;
	} else {
		x->job = NULL;
		x->conf = NULL;
		export_free(e);
	}
	x->ready(x, rc);
}

static void export_pinned(struct export *e)
{
	e->busy = false;
	if (e->x == NULL) {
		export_free(e);
		return;
	}
	e->is = EXPORT_CHECKS;
	if (e->rc != RC_OK)
		e->over = e->rc;
	export_work(e);
}

/* There was no checkpoint. */
static void export_failed(struct export *e, enum rc rc)
{
	e->busy = false;
	if (e->over == RC_OK)
		e->over = rc;
	if (e->x != NULL)
		export_work(e);
	else
		export_free(e);
}

static void export_done(struct env_job *job)
{
	struct export *e = export_of(job);
	struct storage *s = e->storage;
	enum rc rc = e->rc;

	e->busy = false;
	/* Not what it was told itself: what it found. */
	if (rc != RC_OK && rc != RC_NOMEM && e->over == RC_OK)
		fault(s, rc, &e->why);
	if (e->over != RC_OK)
		rc = e->over;
	if (e->x == NULL)
		export_free(e);
	else if (e->is == EXPORT_OPEN)
		e->x->data(e->x, rc, e->buf, rc == RC_OK ? e->got : 0);
	else if (rc != RC_OK || ++e->range == STATE_RANGES)
		export_ready(e, rc);
	else
		export_work(e);
	step(s);
}

/* Whatever is asked from now on, and what is under way, gets this code. */
static void exports_over(struct storage *s, enum rc rc)
{
	struct export *e;

	LIST_FOREACH(e, &s->exports, link)
	{
		if (e->over != RC_OK)
			continue;
		e->over = rc;
		if (e->x != NULL && e->is == EXPORT_WAITS && !e->busy)
			export_work(e);
	}
}

/* Nobody is told anything. */
static void exports_forget(struct storage *s)
{
	struct export *e = LIST_FIRST(&s->exports);
	struct export *next;

	s->refused_exports = NULL;
	for (; e != NULL; e = next) {
		next = LIST_NEXT(e, link);
		e->x = NULL;
		if (!e->busy)
			export_free(e);
	}
}

static bool export_wanted(const struct storage *s)
{
	const struct export *e;

	LIST_FOREACH(e, &s->exports, link)
	if (e->x != NULL)
		return true;
	return false;
}

void storage_export_begin(struct storage *s, struct storage_export *x)
{
	struct export *e = calloc(1, sizeof(*e));

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(!s->closing);
	x->rc = RC_NOMEM;
	if (e == NULL) {
		x->job = s->refused_exports;
		s->refused_exports = x;
		refuse_post(s);
		return;
	}
	e->magic = EXPORT_MAGIC;
	e->storage = s;
	e->x = x;
	x->job = e;
	if (export_wanted(s))
		e->over = RC_CONFLICT;
	else if (changing(s))
		e->over = RC_CANCELLED;
	else if (s->fault != RC_OK)
		e->over = told(s->fault);
	LIST_INSERT_HEAD(&s->exports, e, link);
	if (e->over != RC_OK) {
		export_work(e);
		return;
	}
	e->at = s->applied.applied_index;
	if (s->stored < e->at)
		(void)flush_ends_here(s);
	storage_checkpoint(s);
}

void storage_export_read(struct storage *s, struct storage_export *x,
			 uint64_t offset, uint32_t bytes)
{
	struct export *e = x->job;

	CHECK_OBJ(s, STORAGE_MAGIC);
	CHECK_OBJ(e, EXPORT_MAGIC);
	PRE(e->x == x);
	PRE(e->is == EXPORT_OPEN);
	PRE(!e->busy);
	PRE(offset % STATE_PAGE_BYTES == 0);
	PRE(bytes % STATE_PAGE_BYTES == 0);
	PRE(bytes <= STORAGE_PIECE_MAX);
	e->offset = offset;
	e->bytes = bytes;
	export_work(e);
}

void storage_export_end(struct storage *s, struct storage_export *x)
{
	struct storage_export **at = &s->refused_exports;
	struct export *e = x->job;

	CHECK_OBJ(s, STORAGE_MAGIC);
	for (; *at != NULL; at = (struct storage_export **)&(*at)->job)
		if (*at == x) {
			*at = x->job;
			x->job = NULL;
			return;
		}
	if (e == NULL)
		return;
	CHECK_OBJ(e, EXPORT_MAGIC);
	PRE(e->x == x);
	x->job = NULL;
	e->x = NULL;
	e->over = RC_CANCELLED; /* What it still reads, nobody looks at. */
	if (!e->busy)
		export_free(e);
	step(s);
}

/* ----------------------------------------------------------------- stages */

static void stage_free(struct stage *st)
{
	LIST_REMOVE(st, link);
	if (st->db != NULL)
		db_discard(st->db);
	if (st->file != NULL)
		db_vfs_stage_free(st->file);
	free(st->conf);
	free(st->buf);
	st->magic = 0;
	free(st);
}

static struct stage *stage_of(struct env_job *job)
{
	struct stage *st = CONTAINER_OF(job, struct stage, job);

	CHECK_OBJ(st, STAGE_MAGIC);
	return st;
}

/* ---- on the worker ---- */

static enum rc stage_piece(struct stage *st)
{
	const struct storage *s = st->storage;
	enum rc rc = RC_OK;

	if (st->file == NULL)
		rc = db_vfs_stage_new(s->disk, s->cfg.shard, st->generation,
				      &st->file, &st->why);
	if (rc != RC_OK)
		return rc;
	return db_vfs_stage_write(st->file, st->offset, st->buf, st->n,
				  &st->why);
}

/* What it says of itself is what was announced. */
static enum rc stage_compare(struct stage *st)
{
	const struct db_meta *m = db_meta(st->db);

	if (MUTANT(stage_unverified))
		return RC_OK;
	if (m->applied_index == st->meta.applied_index &&
	    m->applied_term == st->meta.applied_term &&
	    m->conf_index == st->meta.conf_index &&
	    m->conf_bytes == st->meta.conf_bytes &&
	    (m->conf_bytes == 0 ||
	     memcmp(m->conf, st->meta.conf, m->conf_bytes) == 0))
		return RC_OK;
	return detail_set(&st->why, RC_CORRUPT, NULL,
			  "a state at index %" PRIu64 ", term %" PRIu64
			  " was announced, it is at %" PRIu64 ", term %" PRIu64,
			  st->meta.applied_index, st->meta.applied_term,
			  m->applied_index, m->applied_term);
}

static enum rc stage_seal(struct stage *st)
{
	const struct storage *s = st->storage;
	enum rc rc;

	if (st->file == NULL)
		return detail_set(&st->why, RC_CORRUPT, NULL, "nothing came");
	rc = db_vfs_stage_end(st->file, st->bytes, &st->why);
	if (rc != RC_OK)
		return rc;
	db_vfs_stage_free(st->file);
	st->file = NULL;
	rc = db_adopt(s->disk, s->cfg.shard, st->generation, &st->db, &st->why);
	return rc == RC_OK ? stage_compare(st) : rc;
}

static enum rc stage_compare_hash(struct stage *st)
{
	uint8_t hash[HASH_BYTES];

	db_state_hash(st->db, hash);
	if (memcmp(hash, st->hash, HASH_BYTES) == 0 || MUTANT(stage_unverified))
		return RC_OK;
	return detail_set(&st->why, RC_CORRUPT, NULL,
			  "its hash is not the one that was announced");
}

/* A slice of what there is to verify. */
static enum rc stage_read(struct stage *st)
{
	enum rc rc;

	if ((uint64_t)st->page * STATE_PAGE_BYTES < db_main_bytes(st->db)) {
		rc = db_main_verify(st->db, st->page, STATE_VERIFY_PAGES);
		st->page += STATE_VERIFY_PAGES;
	} else if (st->range < STATE_RANGES) {
		rc = MUTANT(stage_unverified)
			     ? RC_OK
			     : db_range_check(st->db, st->range);
		st->range++;
	} else {
		st->does = STAGE_READY;
		return stage_compare_hash(st);
	}
	if (rc != RC_OK)
		(void)detail_set(&st->why, rc, NULL, "%s", db_why(st->db));
	return rc;
}

/* Nothing is left of it. */
static enum rc stage_delete(struct stage *st)
{
	const struct storage *s = st->storage;

	if (st->db != NULL)
		db_discard(st->db);
	if (st->file != NULL)
		db_vfs_stage_free(st->file);
	st->db = NULL;
	st->file = NULL;
	return db_vfs_remove(s->disk, s->cfg.shard, st->generation, &st->why);
}

/* Codes after which the node goes on without that file. */
static bool stage_survives(enum rc rc)
{
	return rc != RC_IO && rc != RC_INTERNAL;
}

static void stage_run(struct env_job *job)
{
	struct stage *st = stage_of(job);

	if (st->rc == RC_OK && st->does == STAGE_WRITES)
		st->rc = stage_piece(st);
	else if (st->rc == RC_OK && st->does == STAGE_SEALS)
		st->rc = stage_seal(st);
	else if (st->rc == RC_OK && st->does == STAGE_READS)
		st->rc = stage_read(st);
	if ((st->rc != RC_OK && stage_survives(st->rc)) ||
	    st->does == STAGE_DROPS) {
		struct detail why = st->why;
		enum rc rc;

		st->why = (struct detail){ 0 };
		rc = stage_delete(st);
		if (rc != RC_OK)
			st->rc = RC_IO;
		else
			st->why = why;
	}
}

/* ---- on the loop ---- */

static void stage_work(struct stage *st, enum stage_does does)
{
	st->does = does;
	st->busy = true;
	st->job.run = stage_run;
	st->job.done = stage_done;
	env_work(st->storage->env, ENV_WORKER_STORAGE, &st->job);
}

/* Its files are gone, or nobody may touch them. */
static void stage_end(struct stage *st, bool wrote)
{
	struct storage_stage *g = st->g;
	enum rc rc = st->rc;

	if (g != NULL)
		g->job = NULL;
	stage_free(st);
	if (g == NULL)
		return;
	if (wrote)
		g->written(g, rc);
	else
		g->done(g, rc, 0);
}

static void stage_wrote(struct stage *st)
{
	struct storage_stage *g = st->g;

	if (st->ends)
		stage_work(st, STAGE_SEALS);
	g->written(g, RC_OK);
}

static void stage_done(struct env_job *job)
{
	struct stage *st = stage_of(job);
	struct storage *s = st->storage;

	st->busy = false;
	if (st->rc != RC_OK && !stage_survives(st->rc)) {
		struct detail why = st->why;

		(void)detail_set(&why, st->rc, NULL, "%s", rc_text(st->rc));
		stop(s, st->rc, &why);
		return;
	}
	if (st->rc != RC_OK || st->does == STAGE_DROPS)
		stage_end(st, st->does == STAGE_WRITES);
	else if (s->closing)
		stage_free(st);
	else if (st->g == NULL)
		stage_work(st, STAGE_DROPS);
	else if (st->does == STAGE_WRITES)
		stage_wrote(st);
	else if (st->does == STAGE_READY)
		st->g->done(st->g, RC_OK, st->generation);
	else
		stage_work(st, STAGE_READS);
	step(s);
}

void storage_stage_begin(struct storage *s, struct storage_stage *g)
{
	struct stage *st;

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(!s->closing);
	PRE(!changing(s));
	LIST_FOREACH(st, &s->stages, link)
	PRE(st->g == NULL);
	g->job = NULL;
	st = calloc(1, sizeof(*st));
	if (st == NULL)
		return; /* It is told with the first piece. */
	st->conf = malloc(g->conf_bytes + 1);
	st->buf = aligned_alloc(DISK_ALIGN, STORAGE_PIECE_MAX);
	if (st->conf == NULL || st->buf == NULL) {
		free(st->conf);
		free(st->buf);
		free(st);
		return;
	}
	if (g->conf_bytes > 0)
		memcpy(st->conf, g->conf, g->conf_bytes);
	st->magic = STAGE_MAGIC;
	st->storage = s;
	st->g = g;
	st->generation = s->stage_next++;
	st->meta = (struct db_meta){ .applied_index = g->index,
				     .applied_term = g->term,
				     .conf_index = g->conf_index,
				     .conf = st->conf,
				     .conf_bytes = g->conf_bytes };
	st->bytes = g->bytes;
	memcpy(st->hash, g->hash, HASH_BYTES);
	g->job = st;
	LIST_INSERT_HEAD(&s->stages, st, link);
}

static void stage_refuse(struct storage *s, struct storage_stage *g, bool ends)
{
	g->ends = ends;
	s->refused_stage = g;
	refuse_post(s);
}

void storage_stage_write(struct storage *s, struct storage_stage *g,
			 uint64_t offset, const void *p, uint32_t n)
{
	struct stage *st = g->job;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (st == NULL) {
		stage_refuse(s, g, false);
		return;
	}
	CHECK_OBJ(st, STAGE_MAGIC);
	PRE(!st->busy);
	PRE(!st->ends);
	st->offset = offset;
	st->n = n;
	if (n > STORAGE_PIECE_MAX)
		st->rc = detail_set(&st->why, RC_CORRUPT, NULL,
				    "a piece of %" PRIu32 " bytes", n);
	else
		memcpy(st->buf, p, n);
	stage_work(st, STAGE_WRITES);
}

void storage_stage_end(struct storage *s, struct storage_stage *g)
{
	struct stage *st = g->job;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (st == NULL) {
		stage_refuse(s, g, true);
		return;
	}
	CHECK_OBJ(st, STAGE_MAGIC);
	PRE(!st->ends);
	st->ends = true;
	if (!st->busy)
		stage_work(st, STAGE_SEALS);
}

void storage_stage_drop(struct storage *s, struct storage_stage *g)
{
	struct stage *st = g->job;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->refused_stage == g)
		s->refused_stage = NULL;
	if (st == NULL)
		return;
	CHECK_OBJ(st, STAGE_MAGIC);
	PRE(st->g == g);
	g->job = NULL;
	st->g = NULL;
	if (!st->busy)
		stage_work(st, STAGE_DROPS);
}

/* At close; what it has written, the next open deletes, unless the ballot names
 * it by then. */
static void stages_forget(struct storage *s)
{
	struct stage *st;

	s->refused_stage = NULL;
	LIST_FOREACH(st, &s->stages, link)
	{
		if (st->g != NULL)
			st->g->job = NULL;
		st->g = NULL;
	}
}

static bool stages_busy(const struct storage *s)
{
	const struct stage *st;

	LIST_FOREACH(st, &s->stages, link)
	if (st->busy)
		return true;
	return false;
}

/* ----------------------------------------------------------------- switch */

static void change_run(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, change.job);
	struct change_over *c = &s->change;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->db != NULL)
		db_discard(s->db);
	s->db = c->stage->db;
	c->stage->db = NULL;
	c->meta = *db_meta(s->db);
	c->rc = db_vfs_keep_only(s->disk, s->cfg.shard, c->stage->generation,
				 &c->why);
}

/* It is as if it had been opened so. */
static void change_state(struct storage *s, struct storage_state *state)
{
	struct change_over *c = &s->change;
	unsigned i;

	for (i = 0; i < LAYERS; i++)
		gen_clear(&s->gens[i]);
	s->now = &s->gens[0];
	s->closed_gen = NULL;
	s->old = NULL;
	s->cfg.generation = c->stage->generation;
	s->cfg.absent = false;
	s->fault = RC_OK;
	s->want_flush = false;
	s->want_checkpoint = false;
	s->checkpoint_from = 0;
	s->wal_bytes = 0;
	free(s->conf);
	s->conf = c->stage->conf;
	c->stage->conf = NULL;
	c->meta.conf_bytes = c->stage->meta.conf_bytes;
	c->meta.conf = c->meta.conf != NULL ? s->conf : NULL;
	state_is(s, &c->meta, state);
}

static void change_done(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, change.job);
	struct storage_switch *w = s->change.request;
	struct storage_state state;
	bool forgotten = s->change.forgotten;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->change.rc != RC_OK) {
		stop(s, s->change.rc, &s->change.why);
		return;
	}
	change_state(s, &state);
	stage_free(s->change.stage);
	s->busy = IDLE;
	s->change = (struct change_over){ 0 };
	if (!forgotten)
		w->done(w, RC_OK, &state);
	step(s);
}

static void change_start(struct storage *s)
{
	s->busy = SWITCHING;
	s->change.job.run = change_run;
	s->change.job.done = change_done;
	env_work(s->env, ENV_WORKER_STORAGE, &s->change.job);
}

void storage_switch(struct storage *s, struct storage_switch *w)
{
	struct stage *st;

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(!s->closing);
	PRE(!changing(s));
	LIST_FOREACH(st, &s->stages, link)
	if (st->g != NULL && st->generation == w->generation)
		break;
	PRE(st != NULL);
	PRE(st->does == STAGE_READY);
	PRE(!st->busy);
	st->g->job = NULL;
	st->g = NULL;
	s->change.request = w;
	s->change.stage = st;
	env_timer_stop(&s->timer);
	readings_cancel(s);
	exports_over(s, RC_CANCELLED);
	hashes_refuse(s, RC_CANCELLED);
	step(s);
}

/* ------------------------------------------------------------------ close */

static void release(struct storage *s)
{
	struct export *e = LIST_FIRST(&s->exports);
	struct stage *st = LIST_FIRST(&s->stages);
	void *next;
	unsigned i;

	for (; e != NULL; e = next) {
		next = LIST_NEXT(e, link);
		export_free(e);
	}
	for (; st != NULL; st = next) {
		next = LIST_NEXT(st, link);
		stage_free(st);
	}
	env_timer_stop(&s->timer);
	for (i = 0; i < LAYERS; i++)
		gen_release(&s->gens[i]);
	free(s->flush.changes);
	free(s->flush.sorted);
	free(s->conf);
	s->magic = 0;
	free(s);
}

static void close_run(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, close);

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->db != NULL && s->close_faulty)
		db_discard(s->db);
	else if (s->db != NULL)
		db_close(s->db);
	s->db = NULL;
}

static void close_end(struct storage *s)
{
	void (*closed)(void *arg) = s->closed;
	void *arg = s->closed_arg;

	CHECK(LIST_EMPTY(&s->readings));
	release(s);
	closed(arg);
}

static void close_done(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, close);

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->refusing)
		s->closed_waits = true; /* The task is the env's until then. */
	else
		close_end(s);
}

static void close_start(struct storage *s)
{
	s->busy = CLOSING;
	s->close = (struct env_job){ .run = close_run, .done = close_done };
	s->close_faulty = s->fault != RC_OK;
	env_work(s->env, ENV_WORKER_STORAGE, &s->close);
}

/* --------------------------------------------------------------- what next */

/* A bad state has no window either. */
static void window_drop(struct storage *s)
{
	unsigned i;

	if (storage_window_bytes(s) == 0)
		return;
	for (i = 0; i < LAYERS; i++)
		gen_clear(&s->gens[i]);
	s->closed_gen = NULL;
	s->old = NULL;
}

/* What copies are under way holds up a close. */
static void maybe_close(struct storage *s)
{
	if (s->closing && LIST_EMPTY(&s->exports) && !stages_busy(s))
		close_start(s);
}

/*
 * One flush, checkpoint, switch or close at a time:
 *
 *	IDLE -> FLUSHING -> IDLE       the window's time or size, or asked
 *	IDLE -> CHECKPOINTING -> IDLE  asked, or the WAL is long; after a
 *	                               flush, but for an export at the index
 *	                               that it asked for; not under an export
 *	IDLE -> SWITCHING -> IDLE      asked, before all else
 *	IDLE -> CLOSING                when all of that is done
 */
static void step(struct storage *s)
{
	bool changed = s->applied.applied_index > s->stored;

	if (s->busy != IDLE)
		return;
	if (s->fault != RC_OK && s->fault != RC_CORRUPT) {
		maybe_close(s);
		return;
	}
	if (changing(s)) {
		change_start(s);
		return;
	}
	if (s->fault != RC_OK) {
		window_drop(s);
		maybe_close(s);
		return;
	}
	if (export_is_here(s)) {
		checkpoint_start(s);
		return;
	}
	if (s->want_checkpoint && s->stored < s->checkpoint_from)
		s->want_flush = true;
	if (s->closed_gen != NULL || (s->want_flush && changed)) {
		flush_start(s);
		return;
	}
	s->want_flush = false;
	if (s->want_checkpoint && !main_pinned(s))
		checkpoint_start(s);
	else
		maybe_close(s);
}

static void timer_fired(struct env_timer *t)
{
	struct storage *s = CONTAINER_OF(t, struct storage, timer);

	CHECK_OBJ(s, STORAGE_MAGIC);
	s->want_flush = true;
	step(s);
}

void storage_flush(struct storage *s)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	s->want_flush = true;
	step(s);
}

void storage_checkpoint(struct storage *s)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	s->want_checkpoint = true;
	s->checkpoint_from = s->applied.applied_index;
	step(s);
}

void storage_spoil(struct storage *s, const struct detail *why)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(s->listener->bad != NULL);
	fault(s, RC_CORRUPT, why);
}

void storage_close(struct storage *s, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(!s->closing);
	s->closed = closed;
	s->closed_arg = arg;
	s->closing = true;
	exports_forget(s);
	stages_forget(s);
	s->change.forgotten = changing(s);
	storage_checkpoint(s);
}

/* ------------------------------------------------------------------ apply */

/* Rows on their way into the cache: a replica changes each of many thousand
 * rows now and then, and waited for memory several times for each of them,
 * which was a third of what applying cost. */
struct fetch {
	uint64_t hash[FETCH_AHEAD];
	unsigned n;
};

static void fetch_row(struct fetch *f, const struct gen *g, uint64_t hash)
{
	uint64_t *slot = &f->hash[f->n++ % FETCH_AHEAD];
	const struct hnode *node;

	__builtin_prefetch(htab_slot(&g->rows, hash));
	if (f->n > FETCH_AHEAD &&
	    (node = htab_first(&g->rows, *slot)) != NULL) {
		__builtin_prefetch(node);
		__builtin_prefetch((const uint8_t *)node + CACHE_LINE);
		__builtin_prefetch((const uint8_t *)node + 2 * CACHE_LINE);
	}
	*slot = hash;
}

/* The whole entry is good, and there is memory for all of it. */
static enum rc apply_check(struct gen *g, const void *entry, size_t n)
{
	struct fetch fetch = { .n = 0 };
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	size_t room = 0;
	enum rc rc = entry_read(entry, n, &e);

	if (rc != RC_OK)
		return rc;
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		room += unit_room(&u);
		while ((rc = unit_next(&u, &r)) == RC_OK) {
			room += row_room(&r);
			fetch_row(&fetch, g,
				  row_hash(g, &u.oid, r.kind, r.key));
		}
		if (rc != RC_EOF)
			return rc;
	}
	if (rc != RC_EOF)
		return rc;
	if (MUTANT(applied_twice))
		room *= 2;
	return gen_reserve(g, room) ? RC_OK : RC_NOMEM;
}

static void applied(struct storage *s, uint64_t index, uint64_t term)
{
	uint64_t ms = s->cfg.window_ms;

	/* A voter whose state knows no stamp has no time to offer when all were
	 * down. */
	if (s->stored_stamp == 0 && ms > WINDOW_FIRST_MS)
		ms = WINDOW_FIRST_MS;
	s->applied.applied_index = index;
	s->applied.applied_term = term;
	if (!s->timer.running)
		env_timer_start(&s->timer, env_now_ms(s->env) + ms);
	if (s->now->bytes >= s->cfg.window_bytes && !s->want_flush) {
		s->want_flush = true;
		step(s);
	}
}

enum rc storage_apply(struct storage *s, uint64_t index, uint64_t term,
		      const void *entry, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	enum rc rc;

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(index == s->applied.applied_index + 1);
	PRE(!s->closing);
	if (s->fault != RC_OK)
		return s->fault;
	if (changing(s))
		return RC_CORRUPT;
	rc = apply_check(s->now, entry, n);
	if (rc != RC_OK)
		return rc;
	CHECK(entry_read(entry, n, &e) == RC_OK);
	while (entry_next(&e, &u) == RC_OK)
		change_unit(s->now, &u);
	if (MUTANT(applied_twice) && entry_read(entry, n, &e) == RC_OK &&
	    entry_next(&e, &u) == RC_OK && unit_next(&u, &r) == RC_OK)
		change_row(s->now, gen_change(s->now, &u.oid), &r);
	s->applied.stamp_ns = e.stamp_ns;
	s->applied.wall_ms = e.wall_ms;
	applied(s, index, term);
	return RC_OK;
}

enum rc storage_apply_other(struct storage *s, uint64_t index, uint64_t term,
			    const void *conf, size_t conf_bytes)
{
	void *copy;

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(index == s->applied.applied_index + 1);
	PRE(!s->closing);
	if (s->fault != RC_OK)
		return s->fault;
	if (changing(s))
		return RC_CORRUPT;
	if (conf != NULL) {
		if (!gen_reserve(s->now, padded(conf_bytes + 1)))
			return RC_NOMEM;
		copy = gen_take(s->now, conf_bytes + 1);
		memcpy(copy, conf, conf_bytes);
		s->now->meta.conf = copy;
		s->now->meta.conf_bytes = conf_bytes;
		s->applied.conf_index = index;
	}
	applied(s, index, term);
	return RC_OK;
}

uint64_t storage_applied(const struct storage *s)
{
	return s->applied.applied_index;
}

uint64_t storage_stored(const struct storage *s)
{
	return s->stored;
}

uint64_t storage_checkpointed(const struct storage *s)
{
	return s->checkpointed;
}

uint64_t storage_stamp(const struct storage *s)
{
	return s->applied.stamp_ns;
}

uint64_t storage_wall(const struct storage *s)
{
	return s->applied.wall_ms;
}

size_t storage_window_bytes(const struct storage *s)
{
	size_t bytes = 0;
	unsigned i;

	for (i = 0; i < LAYERS; i++)
		bytes += s->gens[i].bytes;
	return bytes;
}

bool storage_checkpointing(const struct storage *s)
{
	return s->want_checkpoint || s->busy == CHECKPOINTING;
}

uint64_t storage_room(const struct storage *s)
{
	return 2 * (uint64_t)storage_window_bytes(s) + s->wal_bytes;
}

void storage_stats(const struct storage *s, struct storage_stats *out)
{
	*out = s->stats;
}

/* ------------------------------------------------------------------ loads */

enum reading_what {
	READ_LOAD,
	READ_EXPIRED,
	READ_HEADS,
	READ_SCRUB,
	READ_HASH,
};

/* A request on its way through the worker. */
struct reading {
	uint32_t magic;
	struct env_job job;
	LIST_ENTRY(reading) link;
	struct storage *storage;
	enum reading_what what;
	void *request;
	/* What the worker found. */
	enum rc rc;
	struct detail why;
	uint64_t index; /* Of the last commit, when it read. */
	bool more;      /* There are rows that it left. */
	bool too_big;   /* LOAD_OBJECT: more than bytes_max. */
	bool has_head;  /* `head` has one row, the value is it. */
	bool parked;    /* It waits for a flush. */
	bool cancelled; /* Not the worker's. */
	struct harvest head;
	struct harvest rows;
	const struct load_key **keys; /* LOAD_KEYS: in order, each once. */
	size_t keys_n;
};

static size_t page_bytes_max(const struct storage_load *l)
{
	if (l->bytes_max == 0 || l->bytes_max > LOAD_PAGE_BYTES_MAX)
		return LOAD_PAGE_BYTES_MAX;
	return l->bytes_max;
}

/* ---- on the worker ---- */

static bool take_head(void *arg, const struct oid *oid, struct pack_bytes head)
{
	struct reading *r = arg;
	struct unit_row row = { .kind = ROW_DATA, .value = head };

	r->has_head = harvest_add(&r->head, oid, &row);
	return false;
}

/* All of an object, or nothing. */
static bool take_object(void *arg, const struct oid *oid,
			const struct unit_row *row)
{
	struct reading *r = arg;
	const struct storage_load *l = r->request;

	if (r->rows.used + row->key.n + row->value.n > l->bytes_max) {
		r->too_big = true;
		harvest_empty(&r->rows);
		return false;
	}
	return harvest_add(&r->rows, oid, row);
}

static bool take_row(void *arg, const struct oid *oid,
		     const struct unit_row *row)
{
	struct reading *r = arg;

	return harvest_add(&r->rows, oid, row);
}

static bool beyond_end(const struct storage_load *l, struct pack_bytes key)
{
	int c;

	if (l->end.p == NULL)
		return false;
	c = bytes_compare(key, l->end);
	return l->reverse ? c < 0 : c >= 0;
}

static bool take_range(void *arg, const struct oid *oid,
		       const struct unit_row *row)
{
	struct reading *r = arg;
	const struct storage_load *l = r->request;

	if (beyond_end(l, row->key))
		return false;
	if (r->rows.n == l->rows_max || r->rows.used >= page_bytes_max(l)) {
		r->more = true;
		return false;
	}
	return harvest_add(&r->rows, oid, row);
}

static bool take_expired(void *arg, const struct oid *oid,
			 const struct unit_row *row)
{
	struct reading *r = arg;
	const struct storage_expired *x = r->request;

	if (r->rows.n == x->rows_max || r->rows.used >= LOAD_PAGE_BYTES_MAX) {
		r->more = true;
		return false;
	}
	return harvest_add(&r->rows, oid, row);
}

static bool take_heads(void *arg, const struct oid *oid, struct pack_bytes head)
{
	struct reading *r = arg;
	const struct storage_heads *h = r->request;
	struct unit_row row = { .kind = ROW_DATA, .value = head };

	if (r->rows.n == h->rows_max || r->rows.used >= LOAD_PAGE_BYTES_MAX) {
		r->more = true;
		return false;
	}
	return harvest_add(&r->rows, oid, &row);
}

static int by_load_key(const void *a, const void *b)
{
	const struct load_key *x = *(const struct load_key *const *)a;
	const struct load_key *y = *(const struct load_key *const *)b;

	if (x->kind != y->kind)
		return x->kind < y->kind ? -1 : 1;
	return bytes_compare(x->key, y->key);
}

static enum rc read_keys(struct db *db, struct reading *r,
			 const struct storage_load *l)
{
	const struct load_key **keys;
	size_t i;
	enum rc rc = RC_OK;

	keys = malloc((l->keys_n + 1) * sizeof(const struct load_key *));
	if (keys == NULL)
		return RC_NOMEM;
	r->keys = keys;
	for (i = 0; i < l->keys_n; i++)
		keys[i] = &l->keys[i];
	qsort(keys, l->keys_n, sizeof(const struct load_key *), by_load_key);
	for (i = 0; rc == RC_OK && i < l->keys_n; i++) {
		if (r->keys_n > 0 &&
		    by_load_key(&keys[r->keys_n - 1], &keys[i]) == 0)
			continue;
		keys[r->keys_n++] = keys[i];
		rc = db_row(db, &l->oid, keys[i]->kind, keys[i]->key, take_row,
			    r);
	}
	return rc;
}

static enum rc read_load(struct db *db, struct reading *r,
			 const struct storage_load *l)
{
	enum rc rc = db_head(db, &l->oid, take_head, r);

	if (rc != RC_OK)
		return rc;
	switch (l->what) {
	case LOAD_OBJECT:
		return db_object(db, &l->oid, take_object, r);
	case LOAD_KEYS:
		return read_keys(db, r, l);
	case LOAD_RANGE:
		return db_scan(db, &l->oid, l->kind, l->start, l->reverse,
			       take_range, r);
	}
	UNREACHABLE();
}

static struct reading *reading_of(struct env_job *job)
{
	struct reading *r = CONTAINER_OF(job, struct reading, job);

	CHECK_OBJ(r, JOB_MAGIC);
	return r;
}

static void reading_run(struct env_job *job)
{
	struct reading *r = reading_of(job);
	struct db *db = r->storage->db;
	const struct storage_expired *x = r->request;
	const struct storage_heads *h = r->request;
	const struct storage_scrub *c = r->request;
	struct storage_hash *hash = r->request;
	struct hashes hashes;

	r->index = db_meta(db)->applied_index;
	switch (r->what) {
	case READ_LOAD:
		r->rc = read_load(db, r, r->request);
		break;
	case READ_EXPIRED:
		r->rc = db_expired(db, x->stamp_ns, take_expired, r);
		break;
	case READ_HEADS:
		r->rc = db_heads(db, &h->after, take_heads, r);
		break;
	case READ_SCRUB:
		r->rc = db_range_check(db, c->range);
		break;
	case READ_HASH:
		CHECK(r->index == hash->index);
		hashes_take(db, &hashes);
		hash_give(hash, &hashes);
		break;
	}
	if (r->rc == RC_OK && (r->rows.no_memory || r->head.no_memory))
		r->rc = RC_NOMEM;
	else if (r->rc != RC_OK)
		explain(r->storage, r->rc, &r->why);
}

/* ---- on the loop: SQLite's rows and the window, one over the other ---- */

/* Lists in the same order; of equal rows the newest counts. */
struct merge {
	const struct harvest *db;
	size_t at;
	struct row *rows[LAYERS];
	bool reverse;
	uint32_t hidden_db; /* Kinds that do not count any more. */
	uint32_t hidden[LAYERS];
};

/* The window's generations, the newest first; NULL: none, or the reading saw
 * it. */
static const struct gen *layer(const struct storage *s, const struct reading *r,
			       unsigned i)
{
	const struct gen *g = i == 1 ? s->closed_gen : s->old;

	if (MUTANT(load_skips_window))
		return NULL;
	if (i == 0)
		return s->now;
	if (MUTANT(flush_hides))
		return NULL;
	return g != NULL && g->meta.applied_index > r->index ? g : NULL;
}

static struct change *change_in(const struct gen *g, const struct oid *oid)
{
	return g != NULL ? gen_find(g, oid) : NULL;
}

static struct row *merge_step(const struct merge *m, struct row *r)
{
	return m->reverse ? RB_PREV(rows, unused, r) : RB_NEXT(rows, unused, r);
}

/* Past what does not count. */
static void merge_skip(struct merge *m)
{
	unsigned i;

	while (m->at < m->db->n &&
	       (m->hidden_db & KIND(m->db->rows[m->at].kind)) != 0)
		m->at++;
	for (i = 0; i < LAYERS; i++)
		while (m->rows[i] != NULL &&
		       (m->hidden[i] & KIND(m->rows[i]->r.kind)) != 0)
			m->rows[i] = merge_step(m, m->rows[i]);
}

/* Where a tree begins for a load: the first row, or the first of the range. */
static struct row *merge_first(struct rows *rows, const struct storage_load *l)
{
	struct row probe = { .r = { .kind = l->kind, .key = l->start } };
	struct row *r;

	if (l->what != LOAD_RANGE)
		return RB_MIN(rows, rows);
	if (l->reverse && l->start.p == NULL) {
		probe.r.kind = (enum row_kind)(l->kind + 1);
		probe.r.key.n = 0;
	}
	r = RB_NFIND(rows, rows, &probe);
	if (!l->reverse)
		return r;
	return r != NULL ? RB_PREV(rows, rows, r) : RB_MAX(rows, rows);
}

static void merge_init(struct merge *m, const struct storage *s,
		       const struct reading *r, const struct storage_load *l)
{
	struct change *c;
	unsigned i;

	*m = (struct merge){ .db = &r->rows, .reverse = l->reverse };
	for (i = 0; i < LAYERS; i++) {
		c = change_in(layer(s, r, i), &l->oid);
		m->hidden[i] = m->hidden_db;
		if (c == NULL)
			continue;
		m->rows[i] = merge_first(rows_of(c), l);
		m->hidden_db |= c->hides;
	}
}

static bool merge_before(const struct merge *m, const struct unit_row *a,
			 const struct unit_row *b)
{
	int c = row_compare(a, b);

	return m->reverse ? c > 0 : c < 0;
}

/* The next row, deleted ones included. False: none is left. */
static bool merge_next(struct merge *m, struct unit_row *out)
{
	struct unit_row db;
	bool has_db;
	bool has;
	unsigned i;

	merge_skip(m);
	has_db = m->at < m->db->n;
	has = has_db;
	if (has_db) {
		db = harvest_row(m->db, m->at);
		*out = db;
	}
	for (i = LAYERS; i-- > 0;) {
		if (m->rows[i] == NULL ||
		    (has && merge_before(m, out, &m->rows[i]->r)))
			continue;
		*out = m->rows[i]->r;
		has = true;
	}
	if (!has)
		return false;
	if (has_db && row_compare(&db, out) == 0)
		m->at++;
	for (i = 0; i < LAYERS; i++)
		if (m->rows[i] != NULL && row_compare(&m->rows[i]->r, out) == 0)
			m->rows[i] = merge_step(m, m->rows[i]);
	return true;
}

static void show_head(const struct storage *s, const struct reading *r,
		      struct storage_load *l)
{
	const struct change *c;
	unsigned i;

	l->head = (struct pack_bytes){ NULL, 0 };
	for (i = 0; i < LAYERS; i++) {
		c = change_in(layer(s, r, i), &l->oid);
		if (c == NULL || c->head_is == HEAD_UNCHANGED)
			continue;
		l->head = c->head;
		return;
	}
	if (r->has_head)
		l->head = harvest_row(&r->head, 0).value;
}

static void show_object(const struct storage *s, const struct reading *r,
			struct storage_load *l)
{
	struct merge m;
	struct unit_row row;
	size_t bytes = 0;

	merge_init(&m, s, r, l);
	if (r->too_big && m.hidden_db != KINDS_ALL)
		return;
	while (merge_next(&m, &row))
		if (row.value.p != NULL)
			bytes += row.key.n + row.value.n;
	if (bytes > l->bytes_max)
		return;
	merge_init(&m, s, r, l);
	while (merge_next(&m, &row))
		if (row.value.p != NULL)
			l->row(l, &row);
	l->complete = true;
}

/* The row of a key in one change; `hides`: it decides, row or not. */
static const struct row *row_in(const struct gen *g, const struct oid *oid,
				const struct load_key *key, bool *hides)
{
	const struct change *c = change_in(g, oid);
	const struct row *row;

	if (c == NULL)
		return NULL;
	row = row_find(g, c, key->kind, key->key,
		       row_hash(g, &c->oid, key->kind, key->key));
	*hides = row != NULL || (c->hides & KIND(key->kind)) != 0;
	return row;
}

static void show_keys(const struct storage *s, const struct reading *r,
		      struct storage_load *l)
{
	const struct row *row;
	struct unit_row db;
	bool has_db;
	bool hides;
	size_t at = 0;
	size_t i;
	unsigned k;

	for (i = 0; i < r->keys_n; i++) {
		hides = false;
		has_db = false;
		if (at < r->rows.n) {
			db = harvest_row(&r->rows, at);
			has_db = db.kind == r->keys[i]->kind &&
				 bytes_compare(db.key, r->keys[i]->key) == 0;
			at += has_db;
		}
		row = NULL;
		for (k = 0; k < LAYERS && !hides; k++)
			row = row_in(layer(s, r, k), &l->oid, r->keys[i],
				     &hides);
		if (hides && row != NULL && row->r.value.p != NULL)
			l->row(l, &row->r);
		else if (!hides && has_db)
			l->row(l, &db);
	}
	l->complete = true;
}

/*
 * Behind the last row that was read, SQLite may have more: there the window's
 * rows are not shown either, since what lies between is not known. False: that
 * left nothing to show.
 */
static bool show_range(const struct storage *s, const struct reading *r,
		       struct storage_load *l)
{
	struct merge m;
	struct unit_row row;
	struct unit_row last = { .kind = l->kind };
	bool more;
	uint32_t rows = 0;
	size_t bytes = 0;

	merge_init(&m, s, r, l);
	more = r->more && (m.hidden_db & KIND(l->kind)) == 0;
	if (more)
		last = harvest_row(&r->rows, r->rows.n - 1);
	while (merge_next(&m, &row)) {
		if (row.kind != l->kind || beyond_end(l, row.key))
			break;
		if (more && merge_before(&m, &last, &row))
			break;
		if (row.value.p == NULL)
			continue;
		if (rows == l->rows_max || bytes >= page_bytes_max(l))
			return true;
		l->row(l, &row);
		l->covered_end = row.key;
		rows++;
		bytes += row.key.n + row.value.n;
	}
	l->complete = !more;
	l->covered_end = last.key; /* None when complete. */
	return l->complete || rows > 0;
}

/* False: see show_range. */
static bool show_load(struct storage *s, const struct reading *r,
		      struct storage_load *l)
{
	l->index = s->applied.applied_index;
	show_head(s, r, l);
	switch (l->what) {
	case LOAD_OBJECT:
		show_object(s, r, l);
		return true;
	case LOAD_KEYS:
		show_keys(s, r, l);
		return true;
	case LOAD_RANGE:
		return show_range(s, r, l);
	}
	UNREACHABLE();
}

static void show_expired(const struct reading *r, struct storage_expired *x)
{
	struct unit_row row;
	size_t i;

	for (i = 0; i < r->rows.n; i++) {
		row = harvest_row(&r->rows, i);
		x->row(x, &r->rows.rows[i].oid, &row);
	}
}

/* Changes of heads in a generation behind `after`, in order; NULL: none, or no
 * memory. */
static const struct change **head_changes(const struct gen *g,
					  const struct oid *after, size_t *n,
					  bool *no_memory)
{
	const struct change **list;
	const struct change *c;

	*n = 0;
	if (g == NULL || g->n == 0)
		return NULL;
	list = malloc(g->n * sizeof(const struct change *));
	if (list == NULL) {
		*no_memory = true;
		return NULL;
	}
	for (c = g->first; c != NULL; c = c->next)
		if (c->head_is != HEAD_UNCHANGED &&
		    memcmp(&c->oid, after, sizeof(*after)) > 0)
			list[(*n)++] = c;
	qsort(list, *n, sizeof(const struct change *), by_oid);
	return list;
}

/* The heads of SQLite and of the window, as show_range does it. */
static void show_heads_of(const struct reading *r, struct storage_heads *h,
			  const struct change **lists[LAYERS],
			  const size_t ns[LAYERS], bool *more)
{
	size_t at[LAYERS] = { 0 };
	size_t db = 0;
	const struct oid *next;
	struct pack_bytes head;
	struct oid last = { { 0 } };
	uint32_t rows = 0;
	unsigned i;

	if (r->more)
		last = r->rows.rows[r->rows.n - 1].oid;
	*more = r->more;
	for (;;) {
		next = db < r->rows.n ? &r->rows.rows[db].oid : NULL;
		for (i = 0; i < LAYERS; i++)
			if (at[i] < ns[i] &&
			    (next == NULL || memcmp(&lists[i][at[i]]->oid, next,
						    OID_BYTES) < 0))
				next = &lists[i][at[i]]->oid;
		if (next == NULL ||
		    (r->more && memcmp(next, &last, OID_BYTES) > 0))
			break;
		head = (struct pack_bytes){ NULL, 0 };
		if (db < r->rows.n &&
		    memcmp(&r->rows.rows[db].oid, next, OID_BYTES) == 0)
			head = harvest_row(&r->rows, db++).value;
		for (i = LAYERS; i-- > 0;)
			if (at[i] < ns[i] &&
			    memcmp(&lists[i][at[i]]->oid, next, OID_BYTES) == 0)
				head = lists[i][at[i]++]->head;
		if (head.p == NULL)
			continue;
		if (rows == h->rows_max) {
			*more = true;
			return;
		}
		h->head(h, next, head);
		h->after = *next;
		rows++;
	}
	if (r->more)
		h->after = last;
}

static enum rc show_heads(struct storage *s, const struct reading *r,
			  struct storage_heads *h, bool *more)
{
	bool no_memory = false;
	size_t ns[LAYERS];
	const struct change **lists[LAYERS];
	unsigned i;

	for (i = 0; i < LAYERS; i++)
		lists[i] = head_changes(layer(s, r, i), &h->after, &ns[i],
					&no_memory);
	if (!no_memory)
		show_heads_of(r, h, lists, ns, more);
	for (i = 0; i < LAYERS; i++)
		free(lists[i]);
	return no_memory ? RC_NOMEM : RC_OK;
}

static void end_request(enum reading_what what, void *request, enum rc rc,
			bool more)
{
	struct storage_load *l = request;
	struct storage_expired *x = request;
	struct storage_heads *h = request;
	struct storage_scrub *c = request;
	struct storage_hash *hash = request;

	switch (what) {
	case READ_LOAD:
		l->job = NULL;
		l->done(l, rc);
		break;
	case READ_EXPIRED:
		x->job = NULL;
		x->done(x, rc, more);
		break;
	case READ_HEADS:
		h->job = NULL;
		h->done(h, rc, more);
		break;
	case READ_SCRUB:
		c->job = NULL;
		c->done(c, rc);
		break;
	case READ_HASH:
		hash->job = NULL;
		hash->done(hash, rc);
		break;
	}
}

static void reading_free(struct reading *r)
{
	harvest_release(&r->head);
	harvest_release(&r->rows);
	free(r->keys);
	r->magic = 0;
	free(r);
}

/* After a flush, or when there will be none: then they meet the fault. */
static void readings_unpark(struct storage *s)
{
	struct reading *r;

	LIST_FOREACH(r, &s->readings, link)
	{
		if (!r->parked)
			continue;
		r->parked = false;
		env_work(s->env, ENV_WORKER_STORAGE, &r->job);
	}
}

/* What is on its way to the state that goes. */
static void readings_cancel(struct storage *s)
{
	struct reading *r;

	LIST_FOREACH(r, &s->readings, link)
	r->cancelled = true;
	readings_unpark(s);
}

/*
 * The window has deleted everything that was read, and there is more behind it.
 * A page with nothing on it is of no use to anybody: the load waits for the
 * flush of the deletions, and reads again.
 */
static enum rc reading_again(struct storage *s, struct reading *r)
{
	struct storage_load *l = r->request;

	if (s->busy == CLOSING)
		return RC_CANCELLED;
	l->head = (struct pack_bytes){ NULL, 0 };
	l->covered_end = (struct pack_bytes){ NULL, 0 };
	harvest_empty(&r->head);
	harvest_empty(&r->rows);
	r->has_head = false;
	r->more = false;
	r->parked = true;
	storage_flush(s);
	return RC_AGAIN;
}

static enum rc reading_show(struct storage *s, struct reading *r, bool *more)
{
	switch (r->what) {
	case READ_LOAD:
		if (show_load(s, r, r->request))
			return RC_OK;
		return reading_again(s, r);
	case READ_EXPIRED:
		show_expired(r, r->request);
		return RC_OK;
	case READ_HEADS:
		return show_heads(s, r, r->request, more);
	case READ_SCRUB:
	case READ_HASH:
		return RC_OK;
	}
	UNREACHABLE();
}

static void reading_done(struct env_job *job)
{
	struct reading *r = reading_of(job);
	struct storage *s = r->storage;
	enum rc rc = r->rc;
	bool more = r->more;

	/* A flush that this reading did not see is not done before it. */
	CHECK(rc != RC_OK || r->index >= s->stored);
	if (rc != RC_OK && rc != RC_NOMEM)
		fault(s, rc, &r->why);
	if (r->cancelled)
		rc = RC_CANCELLED;
	else if (s->fault != RC_OK)
		rc = s->fault;
	else if (rc == RC_OK)
		rc = reading_show(s, r, &more);
	if (rc == RC_AGAIN)
		return;
	s->stats.loads++;
	/* The views that the caller was given end with its done. */
	end_request(r->what, r->request, told(rc), more);
	LIST_REMOVE(r, link);
	reading_free(r);
}

/* Each with its own code, or the common one. */
static void refuse_copies(struct storage *s, enum rc rc)
{
	struct storage_scrub *c = s->refused_scrubs;
	struct storage_hash *h = s->refused_hashes;
	struct storage_export *x = s->refused_exports;
	struct storage_stage *g = s->refused_stage;
	void *next;

	s->refused_scrubs = NULL;
	s->refused_hashes = NULL;
	s->refused_exports = NULL;
	s->refused_stage = NULL;
	for (; c != NULL; c = next) {
		next = c->job;
		end_request(READ_SCRUB, c, rc, false);
	}
	for (; h != NULL; h = next) {
		next = h->job;
		end_request(READ_HASH, h, h->rc != RC_OK ? h->rc : rc, false);
	}
	for (; x != NULL; x = next) {
		next = x->job;
		x->job = NULL;
		x->ready(x, x->rc);
	}
	if (g != NULL && g->ends)
		g->done(g, RC_NOMEM, 0);
	else if (g != NULL)
		g->written(g, RC_NOMEM);
}

static void refuse(struct env_task *t)
{
	struct storage *s = CONTAINER_OF(t, struct storage, refuse);
	struct storage_load *l = s->refused_loads;
	struct storage_expired *x = s->refused_expired;
	struct storage_heads *h = s->refused_heads;
	enum rc rc = s->closing || changing(s) ? RC_CANCELLED : RC_NOMEM;
	void *next;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->fault != RC_OK)
		rc = told(s->fault);
	s->refusing = false;
	s->refused_loads = NULL;
	s->refused_expired = NULL;
	s->refused_heads = NULL;
	for (; l != NULL; l = next) {
		next = l->job;
		end_request(READ_LOAD, l, rc, false);
	}
	for (; x != NULL; x = next) {
		next = x->job;
		end_request(READ_EXPIRED, x, rc, false);
	}
	for (; h != NULL; h = next) {
		next = h->job;
		end_request(READ_HEADS, h, rc, false);
	}
	refuse_copies(s, rc);
	if (s->closed_waits && !s->refusing)
		close_end(s);
}

static void refuse_post(struct storage *s)
{
	s->refusing = true;
	env_post(s->env, &s->refuse);
}

static void hash_refuse(struct storage *s, struct storage_hash *h, enum rc rc)
{
	h->rc = rc;
	h->job = s->refused_hashes;
	s->refused_hashes = h;
	refuse_post(s);
}

static void hashes_refuse(struct storage *s, enum rc rc)
{
	struct storage_hash *h = s->hashes;
	struct storage_hash *next;

	s->hashes = NULL;
	for (; h != NULL; h = next) {
		next = h->job;
		hash_refuse(s, h, rc);
	}
}

/* NULL: the request is to be refused, at the end of the turn. */
static struct reading *reading_start(struct storage *s, enum reading_what what,
				     void *request)
{
	struct reading *r = NULL;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->fault == RC_OK && !s->closing && !changing(s))
		r = calloc(1, sizeof(*r));
	if (r == NULL) {
		refuse_post(s);
		return NULL;
	}
	r->magic = JOB_MAGIC;
	r->storage = s;
	r->what = what;
	r->request = request;
	r->job.run = reading_run;
	r->job.done = reading_done;
	LIST_INSERT_HEAD(&s->readings, r, link);
	env_work(s->env, ENV_WORKER_STORAGE, &r->job);
	return r;
}

void storage_load(struct storage *s, struct storage_load *l)
{
	PRE(l->what != LOAD_RANGE || l->rows_max > 0);
	l->head = (struct pack_bytes){ NULL, 0 };
	l->covered_end = (struct pack_bytes){ NULL, 0 };
	l->complete = false;
	l->index = 0;
	l->job = reading_start(s, READ_LOAD, l);
	if (l->job == NULL) {
		l->job = s->refused_loads;
		s->refused_loads = l;
	}
}

void storage_expired(struct storage *s, struct storage_expired *x)
{
	PRE(x->rows_max > 0);
	x->job = reading_start(s, READ_EXPIRED, x);
	if (x->job == NULL) {
		x->job = s->refused_expired;
		s->refused_expired = x;
	}
}

void storage_heads(struct storage *s, struct storage_heads *h)
{
	PRE(h->rows_max > 0);
	h->job = reading_start(s, READ_HEADS, h);
	if (h->job == NULL) {
		h->job = s->refused_heads;
		s->refused_heads = h;
	}
}

void storage_scrub(struct storage *s, struct storage_scrub *c)
{
	PRE(c->range < STATE_RANGES);
	c->job = reading_start(s, READ_SCRUB, c);
	if (c->job == NULL) {
		c->job = s->refused_scrubs;
		s->refused_scrubs = c;
	}
}

void storage_hash_at(struct storage *s, struct storage_hash *h)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	h->index = s->applied.applied_index;
	h->rc = RC_OK;
	if (s->stored == h->index || s->fault != RC_OK || s->closing ||
	    changing(s)) {
		h->job = reading_start(s, READ_HASH, h);
		if (h->job == NULL) {
			h->job = s->refused_hashes;
			s->refused_hashes = h;
		}
		return;
	}
	if (!flush_ends_here(s)) {
		hash_refuse(s, h, RC_CONFLICT);
		return;
	}
	h->job = s->hashes;
	s->hashes = h;
	step(s);
}

/* ------------------------------------------------------------------- open */

static enum rc open_state(struct storage *s, const struct db_meta *m,
			  struct storage_state *state)
{
	struct db_meta own = *m;

	if (m->conf != NULL) {
		s->conf = malloc(m->conf_bytes + 1);
		if (s->conf == NULL)
			return RC_NOMEM;
		memcpy(s->conf, m->conf, m->conf_bytes);
		own.conf = s->conf;
	}
	state_is(s, &own, state);
	return RC_OK;
}

/* The database holds it, and nothing else does. `conf` is s->conf. */
static void state_is(struct storage *s, const struct db_meta *m,
		     struct storage_state *state)
{
	s->applied = *m;
	s->applied.conf = NULL;
	s->applied.conf_bytes = 0;
	s->stored = m->applied_index;
	s->stored_stamp = m->stamp_ns;
	s->checkpointed = m->applied_index;
	*state = (struct storage_state){
		.applied_index = m->applied_index,
		.applied_term = m->applied_term,
		.stamp_ns = m->stamp_ns,
		.wall_ms = m->wall_ms,
		/* db_open leaves nothing in the WAL, nor does db_adopt. */
		.main_index = m->applied_index,
		.conf_index = m->conf_index,
		.conf = m->conf,
		.conf_bytes = m->conf_bytes,
	};
}

/* Only the generation that is named counts, and only the first one is made. */
static enum rc open_db(struct storage *s, struct storage_state *state,
		       struct detail *why)
{
	const struct storage_config *cfg = &s->cfg;
	bool named;
	bool other;
	enum rc rc = db_vfs_look(s->disk, cfg->shard, cfg->generation, &named,
				 &other, why);

	if (rc != RC_OK)
		return rc;
	if (!named && (other || cfg->generation > 0))
		return detail_set(why, RC_CORRUPT, NULL,
				  "the state of shard %" PRIu32
				  ", generation %" PRIu64 ", is missing",
				  cfg->shard, cfg->generation);
	rc = db_open(s->disk, cfg->shard, cfg->generation, &s->db, why);
	return rc == RC_OK ? open_state(s, db_meta(s->db), state) : rc;
}

enum rc storage_open(struct env *env, struct disk *disk,
		     const struct storage_config *cfg,
		     struct storage_listener *listener, struct storage **out,
		     struct storage_state *state, struct detail *why)
{
	struct storage *s = calloc(1, sizeof(*s));
	enum rc rc = RC_OK;
	unsigned i;

	*out = NULL;
	*state = (struct storage_state){ 0 };
	if (s == NULL)
		return detail_set(why, RC_NOMEM, NULL, "%s", rc_text(RC_NOMEM));
	s->magic = STORAGE_MAGIC;
	s->env = env;
	s->disk = disk;
	s->cfg = *cfg;
	s->stage_next = cfg->generation + 1;
	s->listener = listener;
	s->now = &s->gens[0];
	s->refuse.cb = refuse;
	s->refuse.phase = ENV_PHASE_RELEASE;
	LIST_INIT(&s->readings);
	LIST_INIT(&s->exports);
	LIST_INIT(&s->stages);
	env_timer_init(&s->timer, env, timer_fired);
	env_random(env, s->hash_key, sizeof(s->hash_key));
	for (i = 0; i < LAYERS && rc == RC_OK; i++)
		rc = gen_init(&s->gens[i], s->hash_key);
	if (rc == RC_OK && cfg->absent)
		s->fault = RC_CORRUPT;
	else if (rc == RC_OK)
		rc = open_db(s, state, why);
	if (rc == RC_OK)
		rc = db_vfs_keep_only(disk, cfg->shard, cfg->generation, why);
	if (rc == RC_OK) {
		*out = s;
		return RC_OK;
	}
	(void)detail_set(why, rc, NULL, "%s", rc_text(rc));
	if (s->db != NULL)
		db_discard(s->db);
	release(s);
	return rc;
}

void storage_discard(struct storage *s)
{
	struct reading *r = LIST_FIRST(&s->readings);
	struct reading *next;

	CHECK_OBJ(s, STORAGE_MAGIC);
	for (; r != NULL; r = next) {
		next = LIST_NEXT(r, link);
		reading_free(r);
	}
	if (s->db != NULL)
		db_discard(s->db);
	release(s);
}
