/*
 * Expired rows go in slices: storage names some that it holds, an internal
 * event of each object looks at them again, behind whatever else that object
 * does, and removes in one unit those that are past by the committed stamp.
 * Rows of one object that arrive in one slice share an event. The next slice
 * begins when all events of the last are over.
 *
 * The arguments of such an event: [kind, key, kind, key, ...].
 */
#include "node/base/check.h"
#include "objects/idem.h"
#include "objects/space.h"

#define NEXT_MS          20u
#define SOON_MS          1000u
#define RARE_MS          30000u
#define NS_PER_MS        UINT64_C(1000000)
#define SWEEP_ROUNDS_MAX 5u
#define ARGS_BYTES_MAX   (SWEEP_ROWS * (ROW_KEY_BYTES_MAX + 16u))

struct swept {
	struct oid oid;
	enum row_kind kind;
	uint16_t key_n;
	uint8_t key[];
};

struct sweep_event {
	struct event ev;
	struct sweep *sweep;
	struct pack_w args;
	LIST_ENTRY(sweep_event) link;
};

struct sweep {
	struct space *space;
	struct env_timer timer;
	struct storage_expired ask;
	struct swept **rows; /* What the slice has named. */
	uint32_t rows_n;
	LIST_HEAD(, sweep_event) events;
	uint64_t expects_ns; /* The next that is known to expire. */
	uint32_t rounds;     /* Slices soon, after one that found something. */
	bool asking;
	bool more;
	bool ahead; /* It found what is past by the clock only. */
};

static void sweep_due(struct env_timer *t);

enum rc sweep_new(struct space *s, struct sweep **out)
{
	struct sweep *w = calloc(1, sizeof(*w));

	*out = NULL;
	if (w == NULL)
		return RC_NOMEM;
	w->rows = calloc(SWEEP_ROWS, sizeof(struct swept *));
	if (w->rows == NULL) {
		free(w);
		return RC_NOMEM;
	}
	w->space = s;
	w->expects_ns = UINT64_MAX;
	LIST_INIT(&w->events);
	env_timer_init(&w->timer, s->env, sweep_due);
	*out = w;
	return RC_OK;
}

static void rows_forget(struct sweep *w)
{
	while (w->rows_n > 0)
		free(w->rows[--w->rows_n]);
}

static void sweep_event_free(struct sweep_event *e)
{
	LIST_REMOVE(e, link);
	pack_w_release(&e->args);
	pack_w_release(&e->ev.result);
	free(e);
}

void sweep_free(struct sweep *w)
{
	struct sweep_event *e = LIST_FIRST(&w->events);
	struct sweep_event *next;

	env_timer_stop(&w->timer);
	rows_forget(w);
	for (; e != NULL; e = next) {
		next = LIST_NEXT(e, link);
		sweep_event_free(e);
	}
	free(w->rows);
	free(w);
}

bool sweep_idle(const struct sweep *w)
{
	return !w->asking && LIST_EMPTY(&w->events);
}

static void again_in(struct sweep *w, uint64_t ms)
{
	env_timer_start(&w->timer, env_now_ms(w->space->env) + ms);
}

void sweep_lead(struct sweep *w)
{
	/* What expired under an owner before is not known here. */
	w->rounds = 1;
	w->expects_ns = UINT64_MAX;
	again_in(w, SOON_MS);
}

void sweep_lost(struct sweep *w)
{
	env_timer_stop(&w->timer);
}

void sweep_expects(struct sweep *w, uint64_t expires_ns)
{
	if (expires_ns >= w->expects_ns)
		return;
	w->expects_ns = expires_ns;
	if (expires_ns == 0 && w->space->leading && sweep_idle(w))
		again_in(w, SOON_MS);
}

/* ----------------------------------------------------------------- a slice */

static void slice_over(struct sweep *w)
{
	uint64_t now;
	uint64_t ms = RARE_MS;

	if (!w->space->leading || !sweep_idle(w))
		return;
	now = space_now(w->space);
	if (w->expects_ns < now + RARE_MS * NS_PER_MS)
		ms = w->expects_ns > now ? (w->expects_ns - now) / NS_PER_MS
					 : 0;
	if (w->rounds > 0 || ms < SOON_MS)
		ms = SOON_MS;
	again_in(w, w->more ? NEXT_MS : ms);
}

static void sweep_event_done(struct event *ev)
{
	struct sweep_event *e = CONTAINER_OF(ev, struct sweep_event, ev);
	struct sweep *w = e->sweep;

	sweep_event_free(e);
	if (LIST_EMPTY(&w->events))
		slice_over(w);
}

static int swept_cmp(const void *a, const void *b)
{
	const struct swept *x = *(const struct swept *const *)a;
	const struct swept *y = *(const struct swept *const *)b;

	return memcmp(x->oid.b, y->oid.b, OID_BYTES);
}

/* rows[from] to rows[to - 1] are of one object. */
static struct sweep_event *sweep_event_new(struct sweep *w, uint32_t from,
					   uint32_t to)
{
	struct sweep_event *e = calloc(1, sizeof(*e));
	uint32_t i;

	if (e == NULL)
		return NULL;
	e->sweep = w;
	e->ev.magic = EVENT_MAGIC;
	e->ev.flags = EVENT_SWEEP;
	e->ev.oid = w->rows[from]->oid;
	e->ev.done = sweep_event_done;
	pack_w_init(&e->ev.result, RESULT_BYTES_MAX);
	pack_w_init(&e->args, ARGS_BYTES_MAX);
	LIST_INSERT_HEAD(&w->events, e, link);
	pack_array(&e->args, (to - from) * 2);
	for (i = from; i < to; i++) {
		pack_u64(&e->args, w->rows[i]->kind);
		pack_bin(&e->args, w->rows[i]->key, w->rows[i]->key_n);
	}
	if (e->args.rc != RC_OK) {
		sweep_event_free(e);
		return NULL;
	}
	e->ev.args_bytes = (struct pack_bytes){ e->args.p, e->args.n };
	return e;
}

/* Without memory a slice is simply shorter: it will be asked for again. */
static void sweep_deliver(struct sweep *w)
{
	struct sweep_event *e;
	uint32_t from = 0;
	uint32_t to;

	qsort(w->rows, w->rows_n, sizeof(struct swept *), swept_cmp);
	for (; from < w->rows_n; from = to) {
		for (to = from + 1; to < w->rows_n; to++)
			if (swept_cmp(&w->rows[from], &w->rows[to]) != 0)
				break;
		e = sweep_event_new(w, from, to);
		if (e != NULL)
			event_deliver(w->space, &e->ev);
	}
	rows_forget(w);
}

static void expired_row(struct storage_expired *x, const struct oid *oid,
			const struct unit_row *row)
{
	struct sweep *w = x->arg;
	struct swept *r;

	/* Past by the clock alone is not past: without traffic the committed
	 * stamp needs a tick to move on. */
	if (row->expires_ns > space_committed_stamp(w->space)) {
		w->ahead = true;
		return;
	}
	if (w->rows_n == SWEEP_ROWS || row->key.n > ROW_KEY_BYTES_MAX)
		return;
	r = malloc(offsetof(struct swept, key) + row->key.n);
	if (r == NULL)
		return;
	r->oid = *oid;
	r->kind = row->kind;
	r->key_n = (uint16_t)row->key.n;
	if (row->key.n > 0)
		memcpy(r->key, row->key.p, row->key.n);
	w->rows[w->rows_n++] = r;
}

static void expired_done(struct storage_expired *x, enum rc rc, bool more)
{
	struct sweep *w = x->arg;

	w->asking = false;
	w->more = rc == RC_OK && more && w->rows_n > 0;
	if (!w->space->leading || rc != RC_OK) {
		rows_forget(w);
		slice_over(w);
		return;
	}
	if (w->ahead)
		(void)space_tick(w->space, space_now(w->space));
	if (w->ahead || w->rows_n > 0)
		w->rounds = SWEEP_ROUNDS_MAX;
	else if (w->rounds > 0)
		w->rounds--;
	if (w->rows_n > 0)
		sweep_deliver(w);
	slice_over(w);
}

void space_sweep(struct space *s)
{
	struct sweep *w = s->sweep;
	uint64_t now;

	if (!s->leading || !sweep_idle(w))
		return;
	now = space_now(s);
	if (w->expects_ns <= now)
		w->expects_ns = UINT64_MAX;
	w->ahead = false;
	w->ask = (struct storage_expired){
		.stamp_ns = now,
		.rows_max = SWEEP_ROWS,
		.row = expired_row,
		.done = expired_done,
		.arg = w,
	};
	/* What the last slice removed must not be found again. */
	if (w->more)
		storage_flush(s->storage);
	w->asking = true;
	storage_expired(s->storage, &w->ask);
}

static void sweep_due(struct env_timer *t)
{
	space_sweep(CONTAINER_OF(t, struct sweep, timer)->space);
}

/* ----------------------------------------------------------- in its object */

static bool next_key(struct pack_r *r, enum row_kind *kind,
		     struct pack_bytes *key)
{
	uint64_t n;

	if (pack_get_u64(r, &n) != RC_OK || pack_get_bin(r, key) != RC_OK)
		return false;
	*kind = (enum row_kind)n;
	return true;
}

/* All of them in memory? What is not is noted as wanted. */
static bool at_hand(struct event *ev, struct pack_r r)
{
	enum row_kind kind;
	struct pack_bytes key;
	bool all = true;

	while (next_key(&r, &kind, &key))
		if (ev_want(ev, kind, key) != RC_OK)
			all = false;
	return all;
}

static enum rc sweep_row(struct event *ev, enum row_kind kind,
			 struct pack_bytes key)
{
	struct object *o = ev->object;
	struct row *r;

	if (rows_find(&o->rows, kind, key, &r) != ROWS_FOUND ||
	    r->expires_ns == 0 ||
	    r->expires_ns > space_committed_stamp(ev->space))
		return RC_OK;
	if (kind == ROW_IDEM)
		return idem_stage_expired(ev, r);
	return stage_delete(ev->work, &o->rows, kind, key, false);
}

static bool nothing_is_left(const struct event *ev)
{
	const struct object *o = ev->object;
	const struct stage *st = ev->work;

	return o->head == HEAD_TOMBSTONE &&
	       o->idem_until_ns <= space_committed_stamp(ev->space) &&
	       (int64_t)o->own_bytes + st->own_bytes == 0 &&
	       (int64_t)o->idem_bytes + st->idem_bytes == 0;
}

enum run sweep_run(struct event *ev)
{
	struct pack_r r = pack_reader(ev->args_bytes.p, ev->args_bytes.n);
	enum row_kind kind;
	struct pack_bytes key;
	enum rc rc = RC_OK;
	uint32_t n;

	CHECK(pack_get_array(&r, &n) == RC_OK);
	if (!at_hand(ev, r))
		return RUN_LOAD;
	while (rc == RC_OK && next_key(&r, &kind, &key))
		rc = sweep_row(ev, kind, key);
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	if (rc != RC_OK)
		return ev_fail(ev, rc, NULL, "%s", rc_text(rc));
	if (nothing_is_left(ev))
		ev->work->gone = true;
	pack_nil(&ev->result);
	return RUN_DONE;
}
