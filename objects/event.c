/*
 * What a class sees while it runs, and how what it staged becomes a unit.
 *
 * The head record of an object, sealed, in units and in storage:
 *
 *   [version, tenant, env, class, name, rev, rows, own bytes, idem bytes,
 *    idem until, created, destroyed]
 *
 * all names bin, all else integers and a bool. Only this file writes it.
 */
#include <stdarg.h>

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "objects/idem.h"
#include "objects/seal.h"
#include "objects/space.h"

#define HEAD_VERSION 1u
#define HEAD_FIELDS  12u
#define NAMES_BYTES_MAX \
	(4u * 8u + 2u * TENANT_BYTES_MAX + CLASS_BYTES_MAX + NAME_BYTES_MAX)
#define MALLOC_HEAD 8u
/* A destroyed object is remembered under this key of kind ROW_IDEM. */
#define TOMBSTONE_KEY "t"

_Static_assert(NAMES_BYTES_MAX <= UINT16_MAX, "names fit their count");

static const struct pack_bytes no_bytes = { NULL, 0 };

/* -------------------------------------------------------------------- head */

enum rc object_set_names(struct object *o, struct pack_bytes tenant,
			 struct pack_bytes env, struct pack_bytes cls,
			 struct pack_bytes name)
{
	struct pack_w *w = &o->space->res->scratch;
	struct object_names *names;

	pack_w_reset(w);
	pack_bin(w, tenant.p, tenant.n);
	pack_bin(w, env.p, env.n);
	pack_bin(w, cls.p, cls.n);
	pack_bin(w, name.p, name.n);
	if (w->rc != RC_OK)
		return w->rc;
	if (w->n > NAMES_BYTES_MAX)
		return RC_CORRUPT;
	names = malloc(sizeof(*names) + w->n);
	if (names == NULL)
		return RC_NOMEM;
	names->bytes = (uint16_t)w->n;
	names->named = name.n > 0;
	memcpy(names->packed, w->p, w->n);
	free(o->names);
	o->names = names;
	return RC_OK;
}

static void names_read(const struct object_names *names,
		       struct object_head *out)
{
	struct pack_r r = pack_reader(names->packed, names->bytes);

	CHECK(pack_get_bin(&r, &out->tenant) == RC_OK);
	CHECK(pack_get_bin(&r, &out->env) == RC_OK);
	CHECK(pack_get_bin(&r, &out->cls) == RC_OK);
	CHECK(pack_get_bin(&r, &out->name) == RC_OK);
}

static bool same(struct pack_bytes a, struct pack_bytes b)
{
	return row_key_cmp(a, b) == 0;
}

static struct pack_bytes class_name(const struct class *cls)
{
	return (struct pack_bytes){ (const uint8_t *)cls->name,
				    strlen(cls->name) };
}

bool object_is_addressed(const struct object *o, const struct event *ev)
{
	struct object_head h;

	/* An id is made of all the names: by name it can be no other. */
	if (o->names == NULL || ev->name.n > 0)
		return true;
	names_read(o->names, &h);
	return same(h.tenant, ev->tenant) && same(h.env, ev->env) &&
	       same(h.cls, class_name(ev->cls));
}

static bool head_names(struct pack_r *r, struct object_head *out)
{
	return pack_get_bin(r, &out->tenant) == RC_OK &&
	       pack_get_bin(r, &out->env) == RC_OK &&
	       pack_get_bin(r, &out->cls) == RC_OK &&
	       pack_get_bin(r, &out->name) == RC_OK;
}

static bool head_numbers(struct pack_r *r, struct object_head *out)
{
	uint64_t own;

	if (pack_get_u64(r, &out->rev) != RC_OK ||
	    pack_get_u64(r, &out->rows) != RC_OK ||
	    pack_get_u64(r, &own) != RC_OK ||
	    pack_get_u64(r, &out->idem_bytes) != RC_OK ||
	    pack_get_u64(r, &out->idem_until_ns) != RC_OK ||
	    pack_get_u64(r, &out->created_ns) != RC_OK)
		return false;
	out->bytes = own + out->idem_bytes;
	return out->bytes >= own && pack_get_bool(r, &out->destroyed) == RC_OK;
}

enum rc object_head_read(const struct oid *oid, struct pack_bytes sealed,
			 struct object_head *out)
{
	const struct seal_address at = { .oid = oid };
	struct pack_bytes plain;
	struct pack_r r;
	uint64_t version;
	uint32_t fields;
	enum rc rc = seal_open(&at, sealed, &plain);

	*out = (struct object_head){ 0 };
	if (rc != RC_OK)
		return rc;
	r = pack_reader(plain.p, plain.n);
	if (pack_get_array(&r, &fields) != RC_OK ||
	    pack_get_u64(&r, &version) != RC_OK || version == 0)
		return RC_CORRUPT;
	if (version > HEAD_VERSION)
		return RC_VERSION;
	if (fields != HEAD_FIELDS || !head_names(&r, out) ||
	    !head_numbers(&r, out) || r.at != r.end)
		return RC_CORRUPT;
	return RC_OK;
}

enum rc object_set_head(struct object *o, struct pack_bytes sealed)
{
	const struct class *cls;
	struct object_head h;
	enum rc rc = object_head_read(&o->oid, sealed, &h);

	if (rc != RC_OK)
		return rc;
	rc = object_set_names(o, h.tenant, h.env, h.cls, h.name);
	if (rc != RC_OK)
		return rc;
	cls = class_find(h.cls);
	if (cls != NULL)
		o->cls = cls->variant != NULL ? cls->variant(h.name) : cls;
	o->head = h.destroyed ? HEAD_TOMBSTONE : HEAD_LIVE;
	o->rev = h.rev;
	o->rows_n = h.rows;
	o->own_bytes = h.bytes - h.idem_bytes;
	o->idem_bytes = h.idem_bytes;
	o->idem_until_ns = h.idem_until_ns;
	o->created_ns = h.created_ns;
	return RC_OK;
}

/* The object as it will be. */
struct after {
	enum object_head_state head;
	uint64_t rev, rows, own_bytes, idem_bytes, idem_until_ns, created_ns;
};

static void head_write(struct pack_w *w, const struct object *o,
		       const struct after *a)
{
	pack_w_reset(w);
	pack_array(w, HEAD_FIELDS);
	pack_u64(w, HEAD_VERSION);
	pack_raw(w, o->names->packed, o->names->bytes);
	pack_u64(w, a->rev);
	pack_u64(w, a->rows);
	pack_u64(w, a->own_bytes);
	pack_u64(w, a->idem_bytes);
	pack_u64(w, a->idem_until_ns);
	pack_u64(w, a->created_ns);
	pack_bool(w, a->head == HEAD_TOMBSTONE);
}

void object_account(struct object *o)
{
	struct residents *res = o->space->res;
	size_t memory = sizeof(*o) + MALLOC_HEAD + o->rows.bytes;

	if (o->names != NULL)
		memory += sizeof(*o->names) + o->names->bytes + MALLOC_HEAD;
	res->bytes += memory;
	res->bytes -= o->memory;
	o->space->stats.resident_bytes += memory;
	o->space->stats.resident_bytes -= o->memory;
	o->memory = memory;
}

/* ------------------------------------------------------- the start of a run */

void event_begin(struct event *ev)
{
	struct object *o = ev->object;

	ev->work = &ev->space->res->stage;
	stage_reset(ev->work, o->rev);
	ev->now_ns = space_now(ev->space);
	ev->rc = RC_OK;
	ev->why.field[0] = '\0';
	ev->why.text[0] = '\0';
	ev->retry_after_ms = -1;
	ev->result.n = ev->result_base;
	ev->result.rc = RC_OK;
	memcpy(ev->locals, ev->locals_base, sizeof(ev->locals));
	ev->durability_now =
		(uint8_t)(ev->durability != DURABILITY_DEFAULT ? ev->durability
			  : o->cls != NULL ? o->cls->durability
					   : DURABILITY_COMMITTED);
	ev->own_mark = 0;
	ev->ticked = false;
	ev->suspending = false;
	ev->unrecorded = false;
	ev->state = EVENT_RUNNING;
}

/* -------------------------------------------------- what a class sees: rows */

static enum rc want(struct event *ev, enum row_kind kind, struct pack_bytes key)
{
	/* Without memory nothing is noted, and the event ends for that. */
	(void)stage_want_key(ev->work, kind, key);
	return RC_AGAIN;
}

/* The row that stands in storage is there no more for this event. */
static bool is_cleared(const struct event *ev, unsigned kind)
{
	return ev->work->clear &&
	       (STAGE_CLEARED_KINDS & row_kind_bit(kind)) != 0;
}

bool ev_reached(struct event *ev, uint64_t at_ns)
{
	CHECK(ev->work != NULL);
	if (at_ns > ev->now_ns)
		return false;
	if (at_ns > space_committed_stamp(ev->space) &&
	    !MUTANT(expiry_without_tick))
		ev->ticked = true;
	return true;
}

static bool expired(struct event *ev, unsigned kind, uint64_t expires_ns)
{
	return kind != ROW_MEMORY && expires_ns != 0 &&
	       ev_reached(ev, expires_ns);
}

static enum rc show(struct event *ev, unsigned kind, struct pack_bytes key,
		    struct pack_bytes value, uint64_t expires_ns,
		    struct row_view *out)
{
	if (expired(ev, kind, expires_ns))
		return RC_NOT_FOUND;
	*out = (struct row_view){ key, value, expires_ns };
	return RC_OK;
}

static enum rc get(struct event *ev, unsigned kind, struct pack_bytes key,
		   struct row_view *out)
{
	const struct staged *s;
	struct row *r;

	CHECK(ev->work != NULL);
	s = stage_find(ev->work, kind, key);
	if (s != NULL && s->deleted)
		return RC_NOT_FOUND;
	if (s != NULL)
		return show(ev, kind, s->key, s->value, s->expires_ns, out);
	if (is_cleared(ev, kind))
		return RC_NOT_FOUND;
	switch (rows_find(&ev->object->rows, kind, key, &r)) {
	case ROWS_FOUND:
		return show(ev, kind, row_key(r), row_value(r), r->expires_ns,
			    out);
	case ROWS_ABSENT:
		return RC_NOT_FOUND;
	case ROWS_UNKNOWN:
		break;
	}
	return want(ev, (enum row_kind)kind, key);
}

static void pre_own_kind(enum row_kind kind)
{
	PRE(kind == ROW_DATA || kind == ROW_CONFIG);
}

enum rc ev_get(struct event *ev, enum row_kind kind, struct pack_bytes key,
	       struct row_view *out)
{
	pre_own_kind(kind);
	return get(ev, kind, key, out);
}

enum rc ev_want(struct event *ev, enum row_kind kind, struct pack_bytes key)
{
	struct row *r;

	CHECK(ev->work != NULL);
	if (stage_find(ev->work, kind, key) != NULL || is_cleared(ev, kind) ||
	    rows_find(&ev->object->rows, kind, key, &r) != ROWS_UNKNOWN)
		return RC_OK;
	return want(ev, kind, key);
}

enum rc ev_put(struct event *ev, enum row_kind kind, struct pack_bytes key,
	       struct pack_bytes value, uint64_t expires_ns)
{
	pre_own_kind(kind);
	PRE(expires_ns <= INT64_MAX);
	if (ev_want(ev, kind, key) != RC_OK)
		return RC_AGAIN;
	return stage_put(ev->work, &ev->object->rows, kind, key, value,
			 expires_ns, true);
}

enum rc ev_delete(struct event *ev, enum row_kind kind, struct pack_bytes key)
{
	pre_own_kind(kind);
	if (ev_want(ev, kind, key) != RC_OK)
		return RC_AGAIN;
	if (stage_find(ev->work, kind, key) == NULL && is_cleared(ev, kind))
		return RC_OK;
	return stage_delete(ev->work, &ev->object->rows, kind, key, true);
}

enum rc ev_put_memory(struct event *ev, struct pack_bytes key,
		      struct pack_bytes value, uint64_t full_ns)
{
	CHECK(ev->work != NULL);
	return stage_put(ev->work, &ev->object->rows, ROW_MEMORY, key, value,
			 full_ns, false);
}

enum rc ev_get_memory(struct event *ev, struct pack_bytes key,
		      struct row_view *out)
{
	return get(ev, ROW_MEMORY, key, out);
}

enum rc ev_delete_memory(struct event *ev, struct pack_bytes key)
{
	CHECK(ev->work != NULL);
	if (stage_find(ev->work, ROW_MEMORY, key) == NULL &&
	    is_cleared(ev, ROW_MEMORY))
		return RC_OK;
	return stage_delete(ev->work, &ev->object->rows, ROW_MEMORY, key,
			    false);
}

void ev_scan_memory(struct event *ev, struct pack_bytes start,
		    bool (*cb)(void *arg, const struct row_view *row),
		    void *arg)
{
	struct rows_walk w;
	struct row_view view;

	CHECK(ev->work != NULL);
	rows_first(&w, &ev->object->rows, ROW_MEMORY, start);
	for (; w.at != NULL; rows_next(&w)) {
		view = (struct row_view){ row_key(w.at), row_value(w.at),
					  w.at->expires_ns };
		if (!cb(arg, &view))
			return;
	}
}

uint64_t ev_memory_rows(struct event *ev)
{
	return (uint64_t)((int64_t)ev->object->memory_rows +
			  ev->work->memory_rows);
}

uint64_t ev_rows(const struct event *ev)
{
	return (uint64_t)((int64_t)ev->object->rows_n + ev->work->rows);
}

/* ------------------------------------------------- what a class sees: a scan
 */

/* The rows in memory and the staged ones, merged; a staged one stands before
 * what it replaces. */
struct scan {
	struct event *ev;
	enum row_kind kind;
	struct pack_bytes start, end;
	bool reverse;
	struct rows_walk walk;
	struct staged *staged;
	struct pack_bytes at; /* Everything up to here has been passed. */
};

static bool in_range(const struct scan *sc, struct pack_bytes key)
{
	if (sc->reverse)
		return sc->start.p == NULL || row_key_cmp(key, sc->start) >= 0;
	return sc->end.p == NULL || row_key_cmp(key, sc->end) < 0;
}

static void scan_begin(struct scan *sc)
{
	const struct rows *rows = &sc->ev->object->rows;
	const struct stage *st = sc->ev->work;

	sc->at = sc->reverse ? sc->end : sc->start;
	if (sc->reverse) {
		rows_last(&sc->walk, rows, sc->kind, sc->end);
		sc->staged = stage_last(st, sc->kind, sc->end);
	} else {
		rows_first(&sc->walk, rows, sc->kind, sc->start);
		sc->staged = stage_first(st, sc->kind, sc->start);
	}
	if (is_cleared(sc->ev, sc->kind)) {
		sc->walk.at = NULL;
		sc->walk.gap_known = true;
	}
}

/* Key order of the row in memory and the staged one, in the direction of the
 * scan: < 0 when the row comes first. */
static int scan_order(const struct scan *sc, const struct row *r,
		      const struct staged *s)
{
	int order;

	if (r == NULL || s == NULL)
		return r != NULL ? -1 : 1;
	order = row_key_cmp(row_key(r), s->key);
	return sc->reverse ? -order : order;
}

static void scan_pass_row(struct scan *sc)
{
	sc->at = row_key(sc->walk.at);
	if (sc->reverse)
		rows_prev(&sc->walk);
	else
		rows_next(&sc->walk);
}

static enum rc scan_want(struct scan *sc)
{
	/* Going back, the lower end itself was the last (no key is before the
	 * empty one): there is no gap. */
	if (sc->reverse && sc->at.p != NULL &&
	    row_key_cmp(sc->at, sc->start) == 0)
		return RC_OK;
	if (sc->reverse)
		(void)stage_want_range(sc->ev->work, sc->kind, sc->at,
				       sc->start, true);
	else
		(void)stage_want_range(sc->ev->work, sc->kind, sc->at, sc->end,
				       false);
	return RC_AGAIN;
}

static enum rc scan_run(struct scan *sc,
			bool (*cb)(void *arg, const struct row_view *row),
			void *arg)
{
	struct row_view view;
	struct staged *s;
	struct row *r;
	int order;

	for (;;) {
		r = sc->walk.at;
		if (r != NULL && !in_range(sc, row_key(r)))
			r = NULL;
		s = sc->staged;
		if (s != NULL && !in_range(sc, s->key))
			s = NULL;
		order = scan_order(sc, r, s);
		if (!sc->walk.gap_known ||
		    (order < 0 && (r->flags & ROW_UNKNOWN) != 0))
			return scan_want(sc);
		if (r == NULL && s == NULL)
			return RC_OK;
		view.key.p = NULL;
		if (order < 0 && row_exists(r) &&
		    !expired(sc->ev, sc->kind, r->expires_ns))
			view = (struct row_view){ row_key(r), row_value(r),
						  r->expires_ns };
		if (order >= 0 && !s->deleted &&
		    !expired(sc->ev, sc->kind, s->expires_ns))
			view = (struct row_view){ s->key, s->value,
						  s->expires_ns };
		if (order <= 0)
			scan_pass_row(sc);
		if (order >= 0)
			sc->staged =
				sc->reverse ? stage_prev(s) : stage_next(s);
		if (view.key.p != NULL && !cb(arg, &view))
			return RC_OK;
	}
}

enum rc ev_scan(struct event *ev, enum row_kind kind, struct pack_bytes start,
		struct pack_bytes end, bool reverse,
		bool (*cb)(void *arg, const struct row_view *row), void *arg)
{
	struct scan sc = { .ev = ev,
			   .kind = kind,
			   .start = start,
			   .end = end,
			   .reverse = reverse };

	pre_own_kind(kind);
	CHECK(ev->work != NULL);
	if (start.p != NULL && end.p != NULL && row_key_cmp(start, end) >= 0)
		return RC_OK;
	scan_begin(&sc);
	return scan_run(&sc, cb, arg);
}

/* ------------------------------------------------ what a class sees: the rest
 */

void ev_destroy(struct event *ev)
{
	struct object *o = ev->object;

	stage_clear(ev->work, o->rows_n, o->memory_rows, o->own_bytes);
}

bool ev_exists(const struct event *ev)
{
	return ev->object->head == HEAD_LIVE || ev->work->n > 0;
}

uint64_t ev_rev(const struct event *ev)
{
	return ev->work->rev;
}

uint64_t ev_bump(struct event *ev)
{
	ev->work->bumped = true;
	return ++ev->work->rev;
}

uint64_t ev_now(const struct event *ev)
{
	return ev->now_ns;
}

uint64_t ev_lead_stamp(const struct event *ev)
{
	const struct space *s = ev->space;

	return s->memory_lost_ns > s->lead_ns ? s->memory_lost_ns : s->lead_ns;
}

uint64_t ev_epoch(const struct event *ev)
{
	return ev->space->epoch;
}

bool ev_settling(const struct event *ev)
{
	return ev->space->settling;
}

void ev_durability(struct event *ev, enum durability d)
{
	PRE(d != DURABILITY_DEFAULT);
	ev->durability_now = (uint8_t)d;
}

void ev_unrecorded(struct event *ev)
{
	ev->unrecorded = true;
}

void ev_rollback(struct event *ev)
{
	CHECK(ev->work != NULL);
	stage_reset(ev->work, ev->object->rev);
}

enum run ev_fail(struct event *ev, enum rc rc, const char *field,
		 const char *fmt, ...)
{
	va_list ap;

	PRE(rc != RC_OK);
	PRE(rc != RC_AGAIN);
	ev->rc = rc;
	if (ev->why.text[0] != '\0')
		return RUN_DONE;
	if (field != NULL)
		(void)snprintf(ev->why.field, sizeof(ev->why.field), "%s",
			       field);
	va_start(ap, fmt);
	(void)vsnprintf(ev->why.text, sizeof(ev->why.text), fmt, ap);
	va_end(ap);
	return RUN_DONE;
}

/* The event's nested, empty; false without memory. */
static bool nested_take(struct event *ev, enum nested_kind kind)
{
	if (ev->nested == NULL) {
		ev->nested = calloc(1, sizeof(*ev->nested));
		if (ev->nested == NULL)
			return false;
		pack_w_init(&ev->nested->args, FRAME_BYTES_MAX);
	}
	ev->nested->kind = kind;
	ev->nested->keyed = false;
	pack_w_reset(&ev->nested->args);
	return true;
}

enum run ev_call(struct event *ev, const char *address, const char *method,
		 struct pack_bytes args)
{
	struct nested *n;

	if (!nested_take(ev, NESTED_CALL))
		return ev_fail(ev, RC_OVERLOADED, NULL,
			       "no memory for a nested call");
	n = ev->nested;
	if (strlen(address) >= sizeof(n->address))
		return ev_fail(ev, RC_INVALID, "address",
			       "a nested call's address is too long");
	if (strlen(method) >= sizeof(n->method))
		return ev_fail(ev, RC_INVALID, "method",
			       "a nested call's method is too long");
	(void)snprintf(n->address, sizeof(n->address), "%s", address);
	(void)snprintf(n->method, sizeof(n->method), "%s", method);
	pack_raw(&n->args, args.p, args.n);
	if (n->args.rc != RC_OK)
		return ev_fail(ev, RC_OVERLOADED, NULL,
			       "no room for a nested call's arguments");
	return RUN_SUSPEND;
}

enum run ev_wait(struct event *ev, uint64_t until_ns)
{
	if (!nested_take(ev, NESTED_WAIT))
		return ev_fail(ev, RC_OVERLOADED, NULL, "no memory to wait");
	ev->nested->until_ns = until_ns;
	return RUN_SUSPEND;
}

/* ----------------------------------------------------------------- closing */

static bool has_effects(const struct stage *st)
{
	return st->n > 0 || st->bumped || st->clear || st->gone;
}

static enum object_head_state head_after(const struct object *o,
					 const struct stage *st)
{
	if (st->gone)
		return HEAD_NONE;
	if ((int64_t)o->own_bytes + st->own_bytes > 0)
		return HEAD_LIVE;
	if (st->clear)
		return HEAD_TOMBSTONE;
	if (o->head == HEAD_LIVE || st->bumped)
		return HEAD_LIVE;
	/* Not more than the record of a key. */
	return HEAD_TOMBSTONE;
}

static void look_after(const struct event *ev, struct after *a)
{
	const struct object *o = ev->object;
	const struct stage *st = ev->work;

	*a = (struct after){ .head = head_after(o, st) };
	if (a->head == HEAD_NONE)
		return;
	a->rev = st->rev;
	a->rows = (uint64_t)((int64_t)o->rows_n + st->rows);
	a->own_bytes = (uint64_t)((int64_t)o->own_bytes + st->own_bytes);
	a->idem_bytes = (uint64_t)((int64_t)o->idem_bytes + st->idem_bytes);
	a->idem_until_ns = o->idem_until_ns;
	if (ev->idem_expires_ns > a->idem_until_ns)
		a->idem_until_ns = ev->idem_expires_ns;
	a->created_ns = o->head == HEAD_LIVE ? o->created_ns : ev->now_ns;
}

/* A destroyed object is remembered for a window, keys or no keys, so that
 * nobody takes a new one's revision for the old one's. */
static enum rc stage_tombstone(struct event *ev)
{
	const struct object *o = ev->object;
	const struct pack_bytes key = { (const uint8_t *)TOMBSTONE_KEY, 1 };
	struct row *r;
	uint64_t until = 0;

	if (rows_find(&o->rows, ROW_IDEM, key, &r) == ROWS_UNKNOWN)
		return want(ev, ROW_IDEM, key);
	CHECK(idem_window(o->cls, 0, &until, NULL) == RC_OK);
	until += ev->now_ns;
	if (until < o->idem_until_ns)
		until = o->idem_until_ns;
	if (until > ev->idem_expires_ns)
		ev->idem_expires_ns = until;
	return stage_put(ev->work, &o->rows, ROW_IDEM, key, key,
			 ev->idem_expires_ns, false);
}

/* What this tenant has of the object. */
static int64_t booked(enum object_head_state head, uint64_t own, uint64_t idem)
{
	return head == HEAD_LIVE ? (int64_t)(own + idem) : 0;
}

static struct pack_bytes tenant_of(const struct event *ev)
{
	struct object_head h;

	if (ev->tenant.n > 0 || ev->object->names == NULL)
		return ev->tenant;
	names_read(ev->object->names, &h);
	return h.tenant;
}

static enum rc admit(struct event *ev, const struct after *a)
{
	struct object *o = ev->object;
	struct host *h = ev->space->host;
	struct pack_bytes tenant = tenant_of(ev);
	int64_t objects = (a->head == HEAD_LIVE) - (o->head == HEAD_LIVE);
	int64_t bytes = booked(a->head, a->own_bytes, a->idem_bytes) -
			booked(o->head, o->own_bytes, o->idem_bytes);
	enum rc rc;

	/* Records of keys alone are not booked, but they need room too. */
	if (a->head == HEAD_TOMBSTONE && ev->work->idem_bytes > 0 &&
	    o->head != HEAD_LIVE) {
		rc = h->ops->admit(h, tenant, 0, ev->work->idem_bytes,
				   &ev->why);
		if (rc != RC_OK)
			return rc;
		bytes -= ev->work->idem_bytes;
	}
	if (objects == 0 && bytes == 0)
		return RC_OK;
	return h->ops->admit(h, tenant, objects, bytes, &ev->why);
}

/* It was booked and does not happen. */
static void admit_undo(struct event *ev, const struct after *a)
{
	struct object *o = ev->object;
	struct host *h = ev->space->host;
	int64_t objects = (o->head == HEAD_LIVE) - (a->head == HEAD_LIVE);
	int64_t bytes = booked(o->head, o->own_bytes, o->idem_bytes) -
			booked(a->head, a->own_bytes, a->idem_bytes);

	if (objects != 0 || bytes != 0)
		(void)h->ops->admit(h, tenant_of(ev), objects, bytes, NULL);
}

static void drop_fresh(struct stage *st)
{
	struct staged *s;

	for (s = stage_all(st); s != NULL; s = stage_follow(s)) {
		free(s->fresh);
		s->fresh = NULL;
	}
}

/* All memory that bringing the rows in will take. */
static enum rc take_fresh(struct stage *st)
{
	struct staged *s;

	for (s = stage_all(st); s != NULL; s = stage_follow(s)) {
		if (s->deleted ||
		    (s->base != NULL && row_fits(s->base, s->value.n)))
			continue;
		s->fresh = row_new(s->kind, s->key, s->value, s->expires_ns);
		if (s->fresh == NULL) {
			drop_fresh(st);
			return RC_NOMEM;
		}
	}
	return RC_OK;
}

/* `plain` sealed, in the stage's memory; p == NULL without any. */
static struct pack_bytes sealed(struct event *ev, uint32_t kind,
				struct pack_bytes key, struct pack_bytes plain)
{
	const struct seal_address at = { .oid = &ev->oid,
					 .kind = kind,
					 .key = key };
	size_t n = plain.n + SEAL_OVERHEAD_BYTES;
	uint8_t *p = stage_alloc(ev->work, n);

	if (p == NULL)
		return no_bytes;
	seal_close(&at, plain, p);
	return (struct pack_bytes){ p, n };
}

static enum rc write_row(struct event *ev, struct pack_w *w,
			 const struct staged *s)
{
	struct unit_row row = { .kind = (enum row_kind)s->kind, .key = s->key };

	if (!s->deleted &&
	    !(MUTANT(idem_unreplicated) && s->kind == ROW_IDEM)) {
		row.value = sealed(ev, s->kind, s->key, s->value);
		if (row.value.p == NULL)
			return RC_NOMEM;
		row.expires_ns = s->expires_ns;
	}
	unit_row(w, &row);
	return RC_OK;
}

static enum rc write_unit(struct event *ev, const struct after *a)
{
	struct residents *res = ev->space->res;
	struct pack_w *w = &res->unit;
	struct pack_bytes head;
	struct staged *s;

	pack_w_reset(w);
	if (a->head == HEAD_NONE) {
		unit_begin(w, &ev->oid, UNIT_WIPE | UNIT_GONE, no_bytes, 0);
		return w->rc;
	}
	head_write(&res->head, ev->object, a);
	if (res->head.rc != RC_OK)
		return res->head.rc;
	head = sealed(ev, 0, no_bytes,
		      (struct pack_bytes){ res->head.p, res->head.n });
	if (head.p == NULL)
		return RC_NOMEM;
	unit_begin(w, &ev->oid, ev->work->clear ? UNIT_CLEAR : 0, head,
		   ev->work->n);
	for (s = stage_all(ev->work); s != NULL; s = stage_follow(s))
		if (s->kind != ROW_MEMORY && write_row(ev, w, s) != RC_OK)
			return RC_NOMEM;
	return w->rc;
}

static void bring_in(struct object *o, struct staged *s, uint64_t mark)
{
	struct row *r = s->base;

	if (s->deleted && rows_complete(&o->rows, s->kind)) {
		if (o->memory_at == r)
			o->memory_at = NULL;
		rows_remove(&o->rows, r);
		if (mark > o->gone_mark)
			o->gone_mark = mark;
		return;
	}
	if (s->deleted) {
		rows_make_absent(&o->rows, r);
	} else if (s->fresh == NULL) {
		row_set(r, s->value, s->expires_ns);
	} else {
		if (r != NULL && o->memory_at == r)
			o->memory_at = s->fresh;
		if (r != NULL)
			rows_replace(&o->rows, r, s->fresh);
		else
			rows_insert(&o->rows, s->fresh);
		r = s->fresh;
	}
	r->mark = mark;
}

/* With each new memory row look at two of the others, with a change at one,
 * round and round: what is full goes, so that an object in use keeps the rows
 * of active keys only. */
static void drop_full(struct object *o, int64_t looks, uint64_t now_ns)
{
	const struct pack_bytes first = { (const uint8_t *)"", 0 };
	struct rows_walk w = { .rows = &o->rows, .kind = ROW_MEMORY };
	struct row *r;
	int64_t n;

	w.at = o->memory_at;
	for (n = 0; n < looks; n++) {
		if (w.at == NULL)
			rows_first(&w, &o->rows, ROW_MEMORY, first);
		r = w.at;
		if (r == NULL)
			break;
		rows_next(&w);
		if (r->expires_ns > now_ns)
			continue;
		rows_remove(&o->rows, r);
		o->memory_rows--;
	}
	o->memory_at = w.at;
}

static void bring_in_all(struct event *ev, uint64_t mark)
{
	struct object *o = ev->object;
	struct stage *st = ev->work;
	struct staged *s;
	bool memory = false;

	if (st->gone) {
		drop_fresh(st);
		rows_clear(&o->rows, UINT32_MAX);
		o->gone_mark = mark;
		o->full_ns = 0;
		o->memory_rows = 0;
		o->memory_at = NULL;
		return;
	}
	if (st->clear) {
		rows_clear(&o->rows, STAGE_CLEARED_KINDS);
		o->gone_mark = mark;
		o->full_ns = 0;
		o->memory_at = NULL;
	}
	for (s = stage_all(st); s != NULL; s = stage_follow(s)) {
		memory = memory || s->kind == ROW_MEMORY;
		bring_in(o, s, s->kind == ROW_MEMORY ? 0 : mark);
		s->fresh = NULL;
		if (s->kind == ROW_MEMORY && s->expires_ns > o->full_ns)
			o->full_ns = s->expires_ns;
		if (s->kind != ROW_MEMORY && s->expires_ns != 0)
			sweep_expects(ev->space->sweep, s->expires_ns);
	}
	o->memory_rows = (uint32_t)((int64_t)o->memory_rows + st->memory_rows);
	if (memory) {
		/* It goes with the owner, but until then others see it. */
		if (!MUTANT(memory_refused))
			ev->wrote = true;
		drop_full(o, 1 + 2 * st->memory_rows, ev->now_ns);
	}
}

static void become(struct object *o, const struct after *a)
{
	o->head = (uint8_t)a->head;
	o->rev = a->rev;
	o->rows_n = a->rows;
	o->own_bytes = a->own_bytes;
	o->idem_bytes = a->idem_bytes;
	o->idem_until_ns = a->idem_until_ns;
	o->created_ns = a->created_ns;
}

static enum rc need_names(struct event *ev)
{
	struct object *o = ev->object;

	if (o->names != NULL && (o->names->named || ev->name.n == 0))
		return RC_OK;
	return object_set_names(o, ev->tenant, ev->env, class_name(o->cls),
				ev->name);
}

static enum rc propose(struct event *ev)
{
	struct space *s = ev->space;
	struct object *o = ev->object;
	bool lagged = !event_is_committed(ev);
	enum rc why = RC_NOT_OWNER;
	uint64_t mark = s->host->ops->propose(s->host, s->epoch, &s->res->unit,
					      lagged, &why);

	if (mark == 0)
		return rc_is_wire(why) && why != RC_OK ? why : RC_NOT_OWNER;
	CHECK(mark > o->any_mark);
	gate_noted(&s->gate, mark, lagged, ev->now_ns);
	ev->own_mark = mark;
	ev->wrote = true;
	o->any_mark = mark;
	if (!lagged)
		o->strong_mark = mark;
	return RC_OK;
}

static enum rc close_unit(struct event *ev)
{
	struct after a;
	enum rc rc;

	look_after(ev, &a);
	rc = need_names(ev);
	if (rc == RC_OK)
		rc = take_fresh(ev->work);
	if (rc != RC_OK)
		return rc;
	rc = write_unit(ev, &a);
	if (rc == RC_OK)
		rc = admit(ev, &a);
	if (rc == RC_OK) {
		rc = propose(ev);
		if (rc != RC_OK)
			admit_undo(ev, &a);
	}
	if (rc != RC_OK) {
		drop_fresh(ev->work);
		return rc;
	}
	bring_in_all(ev, ev->own_mark);
	become(ev->object, &a);
	object_account(ev->object);
	return RC_OK;
}

static enum rc close_stage(struct event *ev)
{
	struct object *o = ev->object;
	struct stage *st = ev->work;

	if (st->clear && o->head == HEAD_LIVE &&
	    head_after(o, st) == HEAD_TOMBSTONE) {
		enum rc rc = stage_tombstone(ev);

		if (rc != RC_OK)
			return rc;
		if (MUTANT(tombstone_dropped))
			st->gone = true;
	}
	/* Destroying what is not there changes nothing. */
	if (has_effects(st) &&
	    (st->n > 0 || st->bumped || st->gone || o->head == HEAD_LIVE))
		return close_unit(ev);
	if (take_fresh(st) != RC_OK)
		return RC_NOMEM;
	bring_in_all(ev, o->gone_mark);
	object_account(o);
	return RC_OK;
}

/* The record in a unit of its own, after the effects. */
static enum rc close_apart(struct event *ev, enum idem_state state)
{
	enum rc rc = close_stage(ev);

	if (rc != RC_OK)
		return rc;
	stage_drop(ev->work, ev->object->rev);
	rc = idem_stage(ev, state);
	return rc != RC_OK ? rc : close_stage(ev);
}

enum rc event_close(struct event *ev)
{
	enum idem_state state = ev->suspending ? IDEM_STARTED : IDEM_DONE;
	bool effects = has_effects(ev->work);
	bool was_dirty = ev->dirty;
	enum rc rc = RC_OK;

	if ((ev->flags & EVENT_KEYED) == 0 ||
	    (ev->unrecorded && !effects && !ev->recorded && !ev->suspending)) {
		rc = close_stage(ev);
	} else {
		ev->dirty = ev->dirty || effects;
		if (MUTANT(idem_separate_unit) && effects)
			return close_apart(ev, state);
		rc = idem_stage(ev, state);
		if (rc == RC_OK)
			rc = close_stage(ev);
		if (rc == RC_OK)
			ev->recorded = true;
	}
	ev->dirty = was_dirty || (effects && rc == RC_OK);
	return rc;
}

/* What may go better another time, without anything being different. */
static bool is_passing(enum rc rc)
{
	return rc == RC_OVERLOADED || rc == RC_NOT_OWNER ||
	       rc == RC_NO_QUORUM || rc == RC_SEALED || rc == RC_NO_SPACE ||
	       rc == RC_DEADLINE || rc == RC_UNKNOWN_OUTCOME;
}

enum rc event_close_failed(struct event *ev)
{
	enum rc rc;

	stage_drop(ev->work, ev->object->rev);
	if (!ev->recorded)
		return RC_OK;
	/* `started` stands: whoever asks again goes on at the call that failed,
	 * under the same derived key. */
	if (ev->dirty && ev->object->cls->resumes && is_passing(ev->rc))
		return RC_OK;
	if (!idem_at_hand(ev))
		return RC_AGAIN;
	rc = ev->dirty ? idem_stage(ev, IDEM_FAILED) : idem_stage_removal(ev);
	return rc != RC_OK ? rc : close_stage(ev);
}
