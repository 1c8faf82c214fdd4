/*
 * The window has two generations. `now` takes what is applied; when a flush
 * begins it becomes `old`, which nobody changes any more, so that the worker
 * may read it while loads on the loop look at it too; when the flush is
 * committed `old` is forgotten.
 *
 *	apply -> now --flush begins--> old --commit--> SQLite
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

#include "node/base/check.h"
#include "node/base/htab.h"
#include "node/base/mutant.h"
#include "objects/db.h"

#define STORAGE_MAGIC 0x53746f72u
#define JOB_MAGIC     0x53744a62u

#define CHUNK_BYTES    (64u << 10)
#define SLOTS_KEPT_MAX 4096u

/* ----------------------------------------------------------------- window */

struct row {
	RB_ENTRY(row) link;
	struct unit_row r;
	size_t room; /* For the value. */
};
RB_HEAD(rows, row);

enum head_is { HEAD_UNCHANGED, HEAD_SET, HEAD_GONE };

/* Kinds of rows, as bits. */
#define KIND(kind) (1u << (kind))
#define KINDS_ALL                                                 \
	(KIND(ROW_DATA) | KIND(ROW_IDEM) | KIND(ROW_IDEM_COUNT) | \
	 KIND(ROW_CONFIG))
#define KINDS_CLEARED (KIND(ROW_DATA) | KIND(ROW_CONFIG))

/* What happened to an object. */
struct change {
	struct hnode node;
	struct change *next; /* In order of their first change. */
	struct oid oid;
	uint32_t hides; /* Kinds whose rows in the layers below are gone. */
	enum head_is head_is;
	struct pack_bytes head;
	size_t head_room;
	struct rows rows;
};

struct chunk {
	struct chunk *next;
	size_t used;
	size_t room;
	uint8_t bytes[];
};

struct gen {
	struct htab objects;
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

static enum rc gen_init(struct gen *g)
{
	*g = (struct gen){ 0 };
	g->end = &g->first;
	return htab_init(&g->objects, 0);
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
}

/* Empty again, without asking for memory. */
static void gen_clear(struct gen *g)
{
	struct htab objects = g->objects;
	struct htab small;

	if (objects.mask >= SLOTS_KEPT_MAX && htab_init(&small, 0) == RC_OK) {
		htab_release(&objects);
		objects = small;
	}
	g->objects = (struct htab){ 0 };
	gen_release(g);
	memset(objects.slots, 0, (objects.mask + 1) * sizeof(*objects.slots));
	objects.n = 0;
	*g = (struct gen){ .objects = objects };
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

static void change_row(struct gen *g, struct change *c,
		       const struct unit_row *r)
{
	struct row probe = { .r = *r };
	struct row *row = RB_FIND(rows, &c->rows, &probe);
	size_t key_room = 0;
	struct pack_bytes spare;

	if (row == NULL) {
		row = gen_take(g, sizeof(*row));
		*row = (struct row){ .r = { .kind = r->kind } };
		gen_copy(g, r->key, &row->r.key, &key_room);
		(void)RB_INSERT(rows, &c->rows, row);
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

static void change_hide(struct change *c, uint32_t kinds)
{
	struct row *row;
	struct row *next;

	c->hides |= kinds;
	RB_FOREACH_SAFE(row, rows, &c->rows, next)
	if ((kinds & KIND(row->r.kind)) != 0)
		RB_REMOVE(rows, &c->rows, row);
}

static void change_unit(struct gen *g, struct unit_r *u)
{
	struct change *c = gen_change(g, &u->oid);
	struct unit_row r;

	if ((u->flags & UNIT_WIPE) != 0)
		change_hide(c, KINDS_ALL);
	if ((u->flags & UNIT_CLEAR) != 0)
		change_hide(c, KINDS_CLEARED);
	change_head(g, c, u);
	while (u->rows > 0) {
		CHECK(unit_next(u, &r) == RC_OK);
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

enum busy { IDLE, FLUSHING, CHECKPOINTING, CLOSING };

struct flush {
	struct env_job job;
	struct change **changes; /* Of `old`, in order of their ids. */
	size_t n;
	size_t at;
	struct row *row; /* The next of changes[at]; NULL: it is begun anew. */
	bool begun;
	bool committed;
	enum rc rc;
	struct detail why;
	uint64_t rows;
	uint64_t ns;
	uint64_t wal_bytes;
};

struct checkpoint {
	struct env_job job;
	enum rc rc;
	struct detail why;
	uint64_t index;
};

struct storage {
	uint32_t magic;
	struct env *env;
	struct storage_config cfg;
	struct storage_listener *listener;
	/* Worker's: */
	struct db *db;
	/* Loop's; `old` and `flush` the worker's too, while its job runs. */
	struct gen gens[2];
	struct gen *now;
	struct gen *old; /* NULL: no flush. */
	struct db_meta applied;
	uint64_t stored;
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
	/* Requests that get no job end with the turn; linked by their `job`. */
	struct storage_load *refused_loads;
	struct storage_expired *refused_expired;
	struct storage_heads *refused_heads;
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

/* The first fault stays. What the caller was about to do, it leaves. */
static void fault(struct storage *s, enum rc rc, const struct detail *why)
{
	PRE(rc != RC_OK);
	if (s->fault != RC_OK)
		return;
	s->fault = rc;
	env_timer_stop(&s->timer);
	readings_unpark(s);
	if (rc == RC_CORRUPT && s->listener->bad != NULL)
		s->listener->bad(s->listener, rc, why);
	else
		env_fail_stop(s->env, why->text);
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
	if (f->changes == NULL)
		return RC_NOMEM;
	for (c = s->old->first; c != NULL; c = c->next)
		f->changes[i++] = c;
	CHECK(i == f->n);
	qsort(f->changes, f->n, sizeof(struct change *), by_oid);
	rc = db_begin(s->db);
	f->begun = rc == RC_OK;
	return rc;
}

static enum rc flush_object(struct storage *s, const struct change *c)
{
	enum rc rc = RC_OK;

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
	struct change *c;
	size_t rows = 0;
	size_t bytes = 0;
	enum rc rc = RC_OK;

	while (rc == RC_OK && f->at < f->n && rows < STATE_SLICE_ROWS &&
	       bytes < STATE_SLICE_BYTES) {
		c = f->changes[f->at];
		if (f->row == NULL) {
			rc = flush_object(s, c);
			f->row = RB_MIN(rows, &c->rows);
		} else {
			if ((c->hides & KIND(f->row->r.kind)) == 0 ||
			    f->row->r.value.p != NULL)
				rc = db_put_row(s->db, &c->oid, &f->row->r);
			bytes += f->row->r.key.n + f->row->r.value.n;
			f->row = RB_NEXT(rows, &c->rows, f->row);
		}
		rows++;
		if (f->row == NULL)
			f->at++;
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
	}
	if (f->rc != RC_OK)
		explain(s, f->rc, &f->why);
	f->wal_bytes = db_wal_bytes(s->db);
	f->ns += env_now_ns(s->env) - from;
}

static void flush_done(struct env_job *job)
{
	struct storage *s = storage_of_flush(job);
	struct flush *f = &s->flush;

	if (f->rc == RC_OK && !f->committed) {
		env_work(s->env, ENV_WORKER_STORAGE, job);
		return;
	}
	free(f->changes);
	f->changes = NULL;
	s->busy = IDLE;
	if (f->rc != RC_OK) {
		fault(s, f->rc, &f->why);
		step(s);
		return;
	}
	s->stats.flushes++;
	s->stats.rows_written += f->rows;
	s->stats.flush_ns_sum += f->ns;
	s->stored = s->old->meta.applied_index;
	gen_clear(s->old);
	s->old = NULL;
	readings_unpark(s);
	s->wal_bytes = f->wal_bytes;
	if (f->wal_bytes >= STATE_WAL_BYTES_MAX)
		s->want_checkpoint = true;
	s->listener->stored(s->listener, s->stored);
	step(s);
}

static void flush_start(struct storage *s)
{
	struct gen *other = s->now == &s->gens[0] ? &s->gens[1] : &s->gens[0];
	const void *conf = s->now->meta.conf;
	size_t conf_bytes = s->now->meta.conf_bytes;

	CHECK(s->old == NULL);
	s->old = s->now;
	s->now = other;
	s->old->meta = s->applied;
	s->old->meta.conf = conf;
	s->old->meta.conf_bytes = conf_bytes;
	s->want_flush = false;
	env_timer_stop(&s->timer);
	s->busy = FLUSHING;
	s->flush = (struct flush){ 0 };
	s->flush.job.run = flush_run;
	s->flush.job.done = flush_done;
	env_work(s->env, ENV_WORKER_STORAGE, &s->flush.job);
}

/* ------------------------------------------------------------- checkpoint */

static void checkpoint_run(struct env_job *job)
{
	struct storage *s = storage_of_checkpoint(job);
	struct checkpoint *c = &s->checkpoint;

	c->rc = db_checkpoint(s->db);
	c->index = db_meta(s->db)->applied_index;
	if (c->rc != RC_OK)
		explain(s, c->rc, &c->why);
}

static void checkpoint_done(struct env_job *job)
{
	struct storage *s = storage_of_checkpoint(job);
	struct checkpoint *c = &s->checkpoint;

	s->busy = IDLE;
	if (c->rc != RC_OK) {
		fault(s, c->rc, &c->why);
		step(s);
		return;
	}
	s->stats.checkpoints++;
	s->wal_bytes = 0;
	s->checkpointed = c->index;
	s->listener->checkpointed(s->listener, c->index);
	step(s);
}

static void checkpoint_start(struct storage *s)
{
	s->want_checkpoint = false;
	s->checkpoint_from = 0;
	s->busy = CHECKPOINTING;
	s->checkpoint = (struct checkpoint){ 0 };
	s->checkpoint.job.run = checkpoint_run;
	s->checkpoint.job.done = checkpoint_done;
	env_work(s->env, ENV_WORKER_STORAGE, &s->checkpoint.job);
}

/* ------------------------------------------------------------------ close */

static void release(struct storage *s)
{
	env_timer_stop(&s->timer);
	gen_release(&s->gens[0]);
	gen_release(&s->gens[1]);
	free(s->flush.changes);
	free(s->conf);
	s->magic = 0;
	free(s);
}

static void close_run(struct env_job *job)
{
	struct storage *s = CONTAINER_OF(job, struct storage, close);

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->close_faulty)
		db_discard(s->db);
	else
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

/*
 * One flush, checkpoint or close at a time:
 *
 *	IDLE -> FLUSHING -> IDLE       the window's time or size, or it was
 *asked IDLE -> CHECKPOINTING -> IDLE  asked, or the WAL is long; after a flush
 *	IDLE -> CLOSING                when all of that is done
 */
static void step(struct storage *s)
{
	bool changed = s->applied.applied_index > s->stored;

	if (s->busy != IDLE)
		return;
	if (s->fault != RC_OK) {
		if (s->closing)
			close_start(s);
		return;
	}
	if (s->want_checkpoint && s->stored < s->checkpoint_from)
		s->want_flush = true;
	if (s->want_flush && changed) {
		flush_start(s);
		return;
	}
	s->want_flush = false;
	if (s->want_checkpoint)
		checkpoint_start(s);
	else if (s->closing)
		close_start(s);
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

void storage_close(struct storage *s, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(!s->closing);
	s->closed = closed;
	s->closed_arg = arg;
	s->closing = true;
	storage_checkpoint(s);
}

/* ------------------------------------------------------------------ apply */

/* The whole entry is good, and there is memory for all of it. */
static enum rc apply_check(struct gen *g, const void *entry, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	size_t room = 0;
	enum rc rc = entry_read(entry, n, &e);

	if (rc != RC_OK)
		return rc;
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		room += unit_room(&u);
		while ((rc = unit_next(&u, &r)) == RC_OK)
			room += row_room(&r);
		if (rc != RC_EOF)
			return rc;
	}
	if (rc != RC_EOF)
		return rc;
	return gen_reserve(g, room) ? RC_OK : RC_NOMEM;
}

static void applied(struct storage *s, uint64_t index, uint64_t term)
{
	s->applied.applied_index = index;
	s->applied.applied_term = term;
	if (!s->timer.running)
		env_timer_start(&s->timer,
				env_now_ms(s->env) + s->cfg.window_ms);
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
	enum rc rc;

	CHECK_OBJ(s, STORAGE_MAGIC);
	PRE(index == s->applied.applied_index + 1);
	PRE(!s->closing);
	if (s->fault != RC_OK)
		return s->fault;
	rc = apply_check(s->now, entry, n);
	if (rc != RC_OK)
		return rc;
	CHECK(entry_read(entry, n, &e) == RC_OK);
	while (entry_next(&e, &u) == RC_OK)
		change_unit(s->now, &u);
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
	return s->now->bytes + (s->old != NULL ? s->old->bytes : 0);
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

enum reading_what { READ_LOAD, READ_EXPIRED, READ_HEADS };

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
	}
	if (r->rc == RC_OK && (r->rows.no_memory || r->head.no_memory))
		r->rc = RC_NOMEM;
	else if (r->rc != RC_OK)
		explain(r->storage, r->rc, &r->why);
}

/* ---- on the loop: SQLite's rows, `old` and `now`, one over the other ---- */

/* Three lists in the same order; of equal rows the newest counts. */
struct merge {
	const struct harvest *db;
	size_t at;
	struct row *old;
	struct row *now;
	bool reverse;
	uint32_t hidden_db; /* Kinds that do not count any more. */
	uint32_t hidden_old;
};

/* Is `old` newer than what the reading saw? */
static const struct gen *over(const struct storage *s, const struct reading *r)
{
	if (MUTANT(load_skips_window))
		return NULL;
	if (s->old == NULL || s->old->meta.applied_index <= r->index)
		return NULL;
	return s->old;
}

static const struct gen *over_all(const struct storage *s)
{
	return MUTANT(load_skips_window) ? NULL : s->now;
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
	while (m->at < m->db->n &&
	       (m->hidden_db & KIND(m->db->rows[m->at].kind)) != 0)
		m->at++;
	while (m->old != NULL && (m->hidden_old & KIND(m->old->r.kind)) != 0)
		m->old = merge_step(m, m->old);
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
	struct change *old = change_in(over(s, r), &l->oid);
	struct change *now = change_in(over_all(s), &l->oid);

	*m = (struct merge){ .db = &r->rows, .reverse = l->reverse };
	if (now != NULL) {
		m->now = merge_first(&now->rows, l);
		m->hidden_old = now->hides;
	}
	m->hidden_db = m->hidden_old;
	if (old != NULL) {
		m->old = merge_first(&old->rows, l);
		m->hidden_db |= old->hides;
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

	merge_skip(m);
	has_db = m->at < m->db->n;
	has = has_db;
	if (has_db) {
		db = harvest_row(m->db, m->at);
		*out = db;
	}
	if (m->old != NULL && (!has || !merge_before(m, out, &m->old->r))) {
		*out = m->old->r;
		has = true;
	}
	if (m->now != NULL && (!has || !merge_before(m, out, &m->now->r))) {
		*out = m->now->r;
		has = true;
	}
	if (!has)
		return false;
	if (has_db && row_compare(&db, out) == 0)
		m->at++;
	if (m->old != NULL && row_compare(&m->old->r, out) == 0)
		m->old = merge_step(m, m->old);
	if (m->now != NULL && row_compare(&m->now->r, out) == 0)
		m->now = merge_step(m, m->now);
	return true;
}

static void show_head(const struct storage *s, const struct reading *r,
		      struct storage_load *l)
{
	const struct change *c = change_in(over_all(s), &l->oid);

	l->head = (struct pack_bytes){ NULL, 0 };
	if (c == NULL || c->head_is == HEAD_UNCHANGED)
		c = change_in(over(s, r), &l->oid);
	if (c != NULL && c->head_is != HEAD_UNCHANGED)
		l->head = c->head;
	else if (r->has_head)
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
static const struct row *row_in(struct change *c, const struct load_key *key,
				bool *hides)
{
	struct row probe = { .r = { .kind = key->kind, .key = key->key } };
	struct row *row;

	if (c == NULL)
		return NULL;
	row = RB_FIND(rows, &c->rows, &probe);
	*hides = row != NULL || (c->hides & KIND(key->kind)) != 0;
	return row;
}

static void show_keys(const struct storage *s, const struct reading *r,
		      struct storage_load *l)
{
	struct change *now = change_in(over_all(s), &l->oid);
	struct change *old = change_in(over(s, r), &l->oid);
	const struct row *row;
	struct unit_row db;
	bool has_db;
	bool hides;
	size_t at = 0;
	size_t i;

	for (i = 0; i < r->keys_n; i++) {
		hides = false;
		has_db = false;
		if (at < r->rows.n) {
			db = harvest_row(&r->rows, at);
			has_db = db.kind == r->keys[i]->kind &&
				 bytes_compare(db.key, r->keys[i]->key) == 0;
			at += has_db;
		}
		row = row_in(now, r->keys[i], &hides);
		if (!hides)
			row = row_in(old, r->keys[i], &hides);
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

/* The heads of SQLite and of both generations, as show_range does it. */
static void show_heads_of(const struct reading *r, struct storage_heads *h,
			  const struct change **lists[2], const size_t ns[2],
			  bool *more)
{
	size_t at[2] = { 0, 0 };
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
		for (i = 0; i < 2; i++)
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
		for (i = 0; i < 2; i++)
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
	size_t ns[2];
	const struct change **lists[2];

	lists[0] = head_changes(over(s, r), &h->after, &ns[0], &no_memory);
	lists[1] = head_changes(over_all(s), &h->after, &ns[1], &no_memory);
	if (!no_memory)
		show_heads_of(r, h, lists, ns, more);
	free(lists[0]);
	free(lists[1]);
	return no_memory ? RC_NOMEM : RC_OK;
}

static void end_request(enum reading_what what, void *request, enum rc rc,
			bool more)
{
	struct storage_load *l = request;
	struct storage_expired *x = request;
	struct storage_heads *h = request;

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

/* What a request is told of a fault: the state is bad, or the node stops. */
static enum rc told(enum rc rc)
{
	if (rc == RC_NO_SPACE || rc == RC_INTERNAL)
		return RC_IO;
	return rc;
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
	if (s->fault != RC_OK)
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

static void refuse(struct env_task *t)
{
	struct storage *s = CONTAINER_OF(t, struct storage, refuse);
	struct storage_load *l = s->refused_loads;
	struct storage_expired *x = s->refused_expired;
	struct storage_heads *h = s->refused_heads;
	enum rc rc = s->closing ? RC_CANCELLED : RC_NOMEM;
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
	if (s->closed_waits && !s->refusing)
		close_end(s);
}

/* NULL: the request is to be refused, at the end of the turn. */
static struct reading *reading_start(struct storage *s, enum reading_what what,
				     void *request)
{
	struct reading *r = NULL;

	CHECK_OBJ(s, STORAGE_MAGIC);
	if (s->fault == RC_OK && !s->closing)
		r = calloc(1, sizeof(*r));
	if (r == NULL) {
		s->refusing = true;
		env_post(s->env, &s->refuse);
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

/* ------------------------------------------------------------------- open */

static enum rc open_state(struct storage *s, const struct db_meta *m,
			  struct storage_state *state)
{
	if (m->conf != NULL) {
		s->conf = malloc(m->conf_bytes + 1);
		if (s->conf == NULL)
			return RC_NOMEM;
		memcpy(s->conf, m->conf, m->conf_bytes);
	}
	s->applied = *m;
	s->applied.conf = NULL;
	s->applied.conf_bytes = 0;
	s->stored = m->applied_index;
	s->checkpointed = m->applied_index;
	*state = (struct storage_state){
		.applied_index = m->applied_index,
		.applied_term = m->applied_term,
		.stamp_ns = m->stamp_ns,
		.wall_ms = m->wall_ms,
		/* db_open leaves nothing in the WAL. */
		.main_index = m->applied_index,
		.conf_index = m->conf_index,
		.conf = s->conf,
		.conf_bytes = m->conf_bytes,
	};
	return RC_OK;
}

enum rc storage_open(struct env *env, struct disk *disk,
		     const struct storage_config *cfg,
		     struct storage_listener *listener, struct storage **out,
		     struct storage_state *state, struct detail *why)
{
	struct storage *s = calloc(1, sizeof(*s));
	enum rc rc;

	*out = NULL;
	if (s == NULL)
		return detail_set(why, RC_NOMEM, NULL, "%s", rc_text(RC_NOMEM));
	s->magic = STORAGE_MAGIC;
	s->env = env;
	s->cfg = *cfg;
	s->listener = listener;
	s->now = &s->gens[0];
	s->refuse.cb = refuse;
	s->refuse.phase = ENV_PHASE_RELEASE;
	LIST_INIT(&s->readings);
	env_timer_init(&s->timer, env, timer_fired);
	rc = gen_init(&s->gens[0]);
	if (rc == RC_OK)
		rc = gen_init(&s->gens[1]);
	if (rc != RC_OK)
		goto undo;
	rc = db_open(disk, cfg->shard, cfg->generation, &s->db, why);
	if (rc != RC_OK)
		goto undo;
	rc = open_state(s, db_meta(s->db), state);
	if (rc != RC_OK)
		goto undo_db;
	*out = s;
	return RC_OK;

undo_db:
	db_discard(s->db);
undo:
	(void)detail_set(why, rc, NULL, "%s", rc_text(rc));
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
