/*
 * Before a planned hand-over: an internal event of each object whose class
 * lends from memory closes what is lent, behind whatever else that object does,
 * in as many units as it takes. The ids are collected first, since what runs
 * may evict others; a few events are under way at a time.
 */
#include "node/base/check.h"
#include "objects/space.h"

#define EVENTS_MAX 64u

struct settle_event {
	struct event ev;
	struct settle *settle;
	struct pack_w start; /* The memory row at which it goes on. */
	LIST_ENTRY(settle_event) link;
};

struct settle {
	struct space *space;
	struct oid *oids;
	size_t n;
	size_t cap;
	LIST_HEAD(, settle_event) events;
	uint32_t events_n;
};

enum rc settle_new(struct space *s, struct settle **out)
{
	struct settle *t = calloc(1, sizeof(*t));

	*out = t;
	if (t == NULL)
		return RC_NOMEM;
	t->space = s;
	LIST_INIT(&t->events);
	return RC_OK;
}

static void event_free(struct settle_event *e)
{
	LIST_REMOVE(e, link);
	e->settle->events_n--;
	pack_w_release(&e->start);
	pack_w_release(&e->ev.result);
	free(e);
}

static void forget(struct settle *t)
{
	free(t->oids);
	t->oids = NULL;
	t->n = 0;
	t->cap = 0;
}

void settle_free(struct settle *t)
{
	struct settle_event *e = LIST_FIRST(&t->events);
	struct settle_event *next;

	for (; e != NULL; e = next) {
		next = LIST_NEXT(e, link);
		event_free(e);
	}
	forget(t);
	free(t);
}

bool settle_idle(const struct settle *t)
{
	return t->n == 0 && t->events_n == 0;
}

void settle_lost(struct settle *t)
{
	t->space->settling = false;
	forget(t);
}

static bool oids_room(struct settle *t)
{
	size_t cap = t->cap == 0 ? 64 : t->cap * 2;
	struct oid *wider;

	if (t->n < t->cap)
		return true;
	wider = realloc(t->oids, cap * sizeof(*wider));
	if (wider == NULL)
		return false;
	t->oids = wider;
	t->cap = cap;
	return true;
}

/* Without memory some are left out: what they lent, the next owner books. */
static void collect(void *arg, struct hnode *node)
{
	struct object *o = CONTAINER_OF(node, struct object, node);
	struct settle *t = arg;

	if (o->memory_rows == 0 || o->cls == NULL || o->cls->settle == NULL)
		return;
	if (oids_room(t))
		t->oids[t->n++] = o->oid;
}

static void go_on(struct settle *t);

/* Where the next run of this object begins; false: it is done with. */
static bool next_start(struct settle_event *e)
{
	struct pack_r r = pack_reader(e->ev.result.p, e->ev.result.n);
	struct pack_bytes key;

	if (e->ev.rc != RC_OK || !e->settle->space->settling ||
	    pack_get_bin(&r, &key) != RC_OK)
		return false;
	pack_w_reset(&e->start);
	pack_raw(&e->start, key.p, key.n);
	e->ev.args_bytes = (struct pack_bytes){ e->start.p, e->start.n };
	pack_w_reset(&e->ev.result);
	return e->start.rc == RC_OK;
}

static void settled(struct event *ev)
{
	struct settle_event *e = CONTAINER_OF(ev, struct settle_event, ev);
	struct settle *t = e->settle;

	if (next_start(e)) {
		event_deliver(t->space, ev);
		return;
	}
	event_free(e);
	go_on(t);
}

static void deliver(struct settle *t, const struct oid *oid)
{
	struct settle_event *e = calloc(1, sizeof(*e));

	if (e == NULL)
		return;
	e->settle = t;
	e->ev.magic = EVENT_MAGIC;
	e->ev.flags = EVENT_SETTLE;
	e->ev.oid = *oid;
	e->ev.done = settled;
	pack_w_init(&e->ev.result, RESULT_BYTES_MAX);
	pack_w_init(&e->start, ROW_KEY_BYTES_MAX);
	LIST_INSERT_HEAD(&t->events, e, link);
	t->events_n++;
	event_deliver(t->space, &e->ev);
}

static void go_on(struct settle *t)
{
	struct oid oid;

	while (t->n > 0 && t->events_n < EVENTS_MAX) {
		oid = t->oids[--t->n];
		deliver(t, &oid);
	}
}

bool space_settle(struct space *s)
{
	struct settle *t = s->settle;

	CHECK_OBJ(s, SPACE_MAGIC);
	if (!s->leading)
		return true;
	if (!s->settling) {
		s->settling = true;
		htab_each(&s->objects, collect, t);
		go_on(t);
	}
	return settle_idle(t);
}

void space_settle_end(struct space *s)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	settle_lost(s->settle);
}

enum run settle_run(struct event *ev)
{
	const struct class *cls = ev->object->cls;

	if (cls != NULL && cls->settle != NULL && ev->object->head == HEAD_LIVE)
		return cls->settle(ev);
	pack_nil(&ev->result);
	return RUN_DONE;
}
