#include "objects/object.h"

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/mutant.h"
#include "objects/idem.h"
#include "objects/seal.h"
#include "objects/space.h"

#define LOAD_RANGE_BYTES  (4u << 20)
#define IDLE_CHECK_MS     1000u
#define IDLE_BATCH        4096u
#define IDLE_BATCH_MS     10u
#define SQUEEZE_TRIES     64u
#define TRIM_BYTES_MIN    16384u
#define OBJECTS_SLOTS_MIN 64u

/* One load under way. It outlives events, objects and leaderships: storage has
 * it until its done. */
struct loading {
	struct storage_load l;
	struct space *space;
	struct object *object; /* NULL: nobody waits any more. */
	struct event *ev;      /* For which; NULL: for the object as such. */
	struct row *first;     /* In order of keys, what LOAD_RANGE gave. */
	struct row *last;
	enum rc rc;
	LIST_ENTRY(loading) link;
	struct load_key keys[]; /* Then the bytes of keys and bounds. */
};

static void object_step(struct object *o);
static void event_detach(struct event *ev);

static int timer_cmp(const struct event *a, const struct event *b)
{
	uint64_t x = a->nested->until_ns;
	uint64_t y = b->nested->until_ns;

	if (x != y)
		return x < y ? -1 : 1;
	return a == b ? 0 : (a < b ? -1 : 1);
}

RB_GENERATE_INTERNAL(event_timers, event, timer_node, timer_cmp,
		     __attribute__((unused)) static)

/* ----------------------------------------------------------- how events end */

static void nested_free(struct event *ev)
{
	if (ev->nested == NULL)
		return;
	pack_w_release(&ev->nested->args);
	free(ev->nested);
	ev->nested = NULL;
}

/* It has passed the gate, or never needs one. */
static void event_passed(struct event *ev)
{
	struct space *s = ev->space;

	ev->state = EVENT_PASSED;
	TAILQ_INSERT_TAIL(&s->passed, ev, link);
	s->passed_n++;
	env_post(s->env, &s->release);
}

/* Its result takes so much from now on. */
static void event_hold_result(struct event *ev, size_t bytes)
{
	struct residents *r = ev->space->res;

	r->held += bytes;
	r->held -= ev->held;
	ev->held = (uint32_t)bytes;
}

static void event_end(struct event *ev)
{
	struct space *s = ev->space;

	s->stats.waiting--;
	event_hold_result(ev, 0);
	ev->state = EVENT_OVER;
	ev->work = NULL;
	nested_free(ev);
	ev->done(ev);
}

/* It ends with what depends on no object's state: no gate. */
static void event_refuse(struct event *ev, enum rc rc, const char *field,
			 const char *text)
{
	ev->object = NULL;
	ev->lagging = false;
	ev->suspending = false;
	ev->result.n = 0;
	ev->rc = rc;
	ev->outcome = OUTCOME_REFUSED;
	ev->why.field[0] = '\0';
	ev->why.text[0] = '\0';
	(void)detail_set(&ev->why, rc, field, "%s", text);
	if (rc == RC_OVERLOADED)
		ev->retry_after_ms = RETRY_AFTER_MS;
	event_passed(ev);
}

/* It ends in the middle, for `rc`; the object is done with it. */
static void event_abort(struct event *ev, enum rc rc, const char *text)
{
	bool wrote = ev->wrote;

	event_refuse(ev, wrote ? RC_UNKNOWN_OUTCOME : rc, NULL, text);
	if (wrote)
		ev->outcome = OUTCOME_UNKNOWN;
}

static const char *abort_text(enum rc rc, bool wrote)
{
	if (rc == RC_DEADLINE)
		return wrote ? "the deadline passed with effects on their way"
			     : "the deadline passed";
	if (rc == RC_CANCELLED)
		return wrote ? "cancelled with effects on their way"
			     : "cancelled";
	return wrote ? "the shard was lost with effects on their way"
		     : "this node does not own the shard of the object";
}

/* ------------------------------------------------------------------ residents
 */

static void residents_due(struct env_timer *t);

enum rc residents_new(struct env *env, const struct residents_config *cfg,
		      struct residents **out)
{
	struct residents *r = calloc(1, sizeof(*r));

	*out = NULL;
	if (r == NULL)
		return RC_NOMEM;
	if (stage_init(&r->stage) != RC_OK) {
		free(r);
		return RC_NOMEM;
	}
	r->env = env;
	r->cfg = *cfg;
	TAILQ_INIT(&r->lru);
	pack_w_init(&r->unit, ENTRY_BYTES_MAX);
	pack_w_init(&r->head, 65536);
	pack_w_init(&r->scratch, 65536);
	env_random(env, r->hash_key, sizeof(r->hash_key));
	env_timer_init(&r->timer, env, residents_due);
	*out = r;
	return RC_OK;
}

void residents_free(struct residents *r)
{
	CHECK(r->spaces == 0);
	CHECK(TAILQ_EMPTY(&r->lru));
	env_timer_stop(&r->timer);
	stage_release(&r->stage);
	pack_w_release(&r->unit);
	pack_w_release(&r->head);
	pack_w_release(&r->scratch);
	free(r);
}

static void object_touch(struct object *o)
{
	struct residents *r = o->space->res;

	/* A clock that is coarse keeps the list still for hot objects. */
	if (o->used_ms == r->now_ms)
		return;
	o->used_ms = r->now_ms;
	TAILQ_REMOVE(&r->lru, o, lru);
	TAILQ_INSERT_HEAD(&r->lru, o, lru);
}

/* No event, and every effect of it is where a load would find it. */
static bool object_is_evictable(const struct object *o)
{
	if (o->pins > 0 || o->loading != NULL || o->suspended > 0 ||
	    !TAILQ_EMPTY(&o->mailbox) || !TAILQ_EMPTY(&o->resumed))
		return false;
	return o->any_mark <= o->space->stored || MUTANT(evict_unstored);
}

static void object_free(struct object *o)
{
	struct space *s = o->space;

	if (o->loading != NULL)
		o->loading->object = NULL;
	htab_remove(&s->objects, &o->node);
	TAILQ_REMOVE(&s->res->lru, o, lru);
	s->res->objects--;
	s->res->bytes -= o->memory;
	s->stats.resident_bytes -= o->memory;
	rows_release(&o->rows);
	free(o->names);
	free(o);
}

/* It could go if its effects were stored: the window does not end because
 * memory is short elsewhere. */
static void object_store(const struct object *o)
{
	if (o->any_mark > o->space->stored)
		storage_flush(o->space->storage);
}

/* What only this owner knows and is not worth nothing yet. */
static bool object_is_kept(const struct object *o)
{
	return o->memory_rows > 0 && o->full_ns > space_now(o->space);
}

static void object_evict(struct object *o)
{
	struct space *s = o->space;

	/* From here on nobody knows what those rows said: who misses one must
	 * not take it for never having been there. */
	if (object_is_kept(o))
		s->memory_lost_ns = space_now(s);
	s->stats.evictions++;
	object_free(o);
}

/* Of an object that has to stay, drop what can be loaded again. Not twice with
 * the same rows stored: what is left after the first time is needed. */
static void object_trim(struct object *o)
{
	uint64_t stored = o->space->stored;

	if (o->pins > 0 || o->loading != NULL || !o->loaded ||
	    o->rows.bytes < TRIM_BYTES_MIN || o->gone_mark > stored ||
	    o->trim_mark > stored)
		return;
	o->trim_mark = stored + 1;
	if (rows_stored_bytes(&o->rows, stored) < TRIM_BYTES_MIN)
		return;
	rows_trim(&o->rows, stored);
	object_account(o);
}

static void second_chance(struct residents *r, struct object *o)
{
	o->used_ms = r->now_ms;
	TAILQ_REMOVE(&r->lru, o, lru);
	TAILQ_INSERT_HEAD(&r->lru, o, lru);
}

/* With `more` objects. */
static bool is_over(const struct residents *r, uint32_t more)
{
	return r->bytes > r->cfg.bytes_max ||
	       r->objects + more > r->cfg.objects_max;
}

/* Make room for so many, a little at a time, from the least recently used. What
 * had to stay comes round again when there is nothing better. */
static void residents_squeeze(struct residents *r, uint32_t more)
{
	struct object *o = TAILQ_LAST(&r->lru, object_list);
	struct object *before;
	uint32_t i;

	for (i = 0; i < SQUEEZE_TRIES && is_over(r, more); i++) {
		if (o == NULL)
			o = TAILQ_LAST(&r->lru, object_list);
		if (o == NULL)
			return;
		before = TAILQ_PREV(o, object_list, lru);
		if (object_is_evictable(o) &&
		    (i >= SQUEEZE_TRIES / 2 || !object_is_kept(o))) {
			object_evict(o);
		} else {
			object_store(o);
			object_trim(o);
			second_chance(r, o);
		}
		o = before;
	}
}

static bool residents_are_full(struct residents *r)
{
	if (is_over(r, 1))
		residents_squeeze(r, 1);
	/* Memory is given back a little at a time: some may be owed. */
	return r->objects >= r->cfg.objects_max ||
	       r->bytes > r->cfg.bytes_max + r->cfg.bytes_max / 8;
}

static void residents_again(struct residents *r, uint64_t ms)
{
	if (r->objects > 0)
		env_timer_start(&r->timer, env_now_ms(r->env) + ms);
}

static void residents_due(struct env_timer *t)
{
	struct residents *r = CONTAINER_OF(t, struct residents, timer);
	struct object *o = TAILQ_LAST(&r->lru, object_list);
	struct object *before;
	uint64_t ms = r->cfg.idle_ms / 4;
	uint32_t i;

	r->now_ms = env_now_ms(r->env);
	for (i = 0; i < IDLE_BATCH; i++, o = before) {
		if (o == NULL || o->used_ms + r->cfg.idle_ms > r->now_ms)
			break;
		before = TAILQ_PREV(o, object_list, lru);
		if (object_is_evictable(o) && !object_is_kept(o))
			object_evict(o);
		else
			second_chance(r, o);
	}
	residents_squeeze(r, 0);
	if (i == IDLE_BATCH)
		ms = IDLE_BATCH_MS;
	else if (ms > IDLE_CHECK_MS)
		ms = IDLE_CHECK_MS;
	residents_again(r, ms > 0 ? ms : 1);
}

/* -------------------------------------------------------------------- loads */

static struct loading *loading_new(struct object *o, enum load_what what,
				   size_t keys, size_t bytes);

static void load_row(struct storage_load *l, const struct unit_row *row)
{
	struct loading *load = CONTAINER_OF(l, struct loading, l);
	struct object *o = load->object;
	const struct seal_address at = { .oid = &l->oid,
					 .kind = row->kind,
					 .key = row->key };
	struct pack_bytes plain;
	struct row *old;
	struct row *r;

	if (o == NULL || load->rc != RC_OK)
		return;
	load->rc = seal_open(&at, row->value, &plain);
	if (load->rc != RC_OK)
		return;
	/* What is in memory is never older. */
	(void)rows_find(&o->rows, row->kind, row->key, &old);
	r = old;
	if (old == NULL || (old->flags & ROW_UNKNOWN) != 0) {
		r = row_new(row->kind, row->key, plain, row->expires_ns);
		if (r == NULL) {
			load->rc = RC_NOMEM;
			return;
		}
		if (old != NULL)
			rows_replace(&o->rows, old, r);
		else
			rows_insert(&o->rows, r);
	}
	if (load->first == NULL ||
	    row_key_cmp(row_key(r), row_key(load->first)) < 0)
		load->first = r;
	if (load->last == NULL ||
	    row_key_cmp(row_key(r), row_key(load->last)) > 0)
		load->last = r;
}

static enum rc loaded_object(struct object *o, const struct storage_load *l)
{
	enum rc rc = RC_OK;

	if (l->head.p != NULL)
		rc = object_set_head(o, l->head);
	if (l->complete || l->head.p == NULL)
		o->rows.complete = UINT32_MAX;
	o->loaded = rc == RC_OK;
	return rc;
}

static enum rc loaded_keys(struct object *o, const struct storage_load *l)
{
	enum rc rc = RC_OK;
	size_t i;

	for (i = 0; i < l->keys_n && rc == RC_OK; i++)
		rc = rows_known_absent(&o->rows, l->keys[i].kind,
				       l->keys[i].key);
	return rc;
}

static enum rc loaded_range(struct object *o, const struct loading *load)
{
	const struct storage_load *l = &load->l;
	struct pack_bytes start = l->reverse ? l->end : l->start;
	struct pack_bytes end = l->reverse ? l->start : l->end;

	/* As far as it came. */
	if (!l->complete) {
		if (load->first == NULL)
			return RC_CORRUPT;
		if (l->reverse)
			start = row_key(load->first);
		else
			end = row_key(load->last);
	}
	return rows_known(&o->rows, l->kind, start, end);
}

static enum rc loaded(struct object *o, struct loading *load)
{
	switch (load->l.what) {
	case LOAD_OBJECT:
		return loaded_object(o, &load->l);
	case LOAD_KEYS:
		return loaded_keys(o, &load->l);
	case LOAD_RANGE:
		return loaded_range(o, load);
	}
	UNREACHABLE();
}

static void event_refuse_for_load(struct event *ev, enum rc rc)
{
	event_detach(ev);
	if (rc == RC_NOMEM)
		event_abort(ev, RC_OVERLOADED, "no memory to load the object");
	else if (rc == RC_CANCELLED)
		event_abort(ev, RC_NOT_OWNER, "the node is stopping");
	else if (rc == RC_NOT_OWNER)
		event_abort(ev, rc,
			    "the shard's state is damaged here: this node "
			    "gives it up");
	else
		event_abort(ev, RC_INTERNAL,
			    "the object's state cannot be read");
}

static void mailbox_take(struct object *o, struct event *ev)
{
	TAILQ_REMOVE(&o->mailbox, ev, link);
	o->mailbox_n--;
	if (ev->chain != NULL)
		o->nested_n--;
	ev->state = EVENT_OUT;
}

/* The object stays what it was; who needed the load ends. */
static void load_failed(struct object *o, struct event *for_ev, enum rc rc)
{
	struct event *ev;

	if (o->loaded) {
		if (for_ev == NULL)
			return;
		if (for_ev->state == EVENT_QUEUED) {
			mailbox_take(o, for_ev);
		} else {
			TAILQ_REMOVE(&o->resumed, for_ev, link);
			for_ev->state = EVENT_OUT;
		}
		event_refuse_for_load(for_ev, rc);
		return;
	}
	while ((ev = TAILQ_FIRST(&o->mailbox)) != NULL) {
		mailbox_take(o, ev);
		event_refuse_for_load(ev, rc);
	}
}

static void load_done(struct storage_load *l, enum rc rc)
{
	struct loading *load = CONTAINER_OF(l, struct loading, l);
	struct object *o = load->object;
	struct event *ev = load->ev;

	LIST_REMOVE(load, link);
	if (o != NULL) {
		o->loading = NULL;
		/* Not the object alone: the shard loses its state with it, and
		 * is somebody else's next. */
		if (rc == RC_CORRUPT)
			rc = RC_NOT_OWNER;
		if (rc == RC_OK)
			rc = load->rc;
		if (rc == RC_OK)
			rc = loaded(o, load);
		object_account(o);
	}
	free(load);
	if (o == NULL)
		return;
	if (rc != RC_OK) {
		load_failed(o, ev, rc);
		if (!o->loaded) {
			object_free(o);
			return;
		}
	}
	object_step(o);
}

static struct loading *loading_new(struct object *o, enum load_what what,
				   size_t keys, size_t bytes)
{
	struct loading *load =
		calloc(1, sizeof(*load) + keys * sizeof(load->keys[0]) + bytes);

	if (load == NULL)
		return NULL;
	load->space = o->space;
	load->object = o;
	load->l.oid = o->oid;
	load->l.what = what;
	load->l.keys = load->keys;
	load->l.keys_n = keys;
	load->l.row = load_row;
	load->l.done = load_done;
	return load;
}

static void loading_start(struct loading *load)
{
	struct space *s = load->space;

	load->object->loading = load;
	LIST_INSERT_HEAD(&s->loads, load, link);
	s->stats.loads++;
	storage_load(s->storage, &load->l);
}

static bool load_whole(struct object *o)
{
	struct loading *load = loading_new(o, LOAD_OBJECT, 0, 0);

	if (load == NULL)
		return false;
	load->l.bytes_max = OBJECT_LOAD_BYTES_MAX;
	loading_start(load);
	return true;
}

static struct pack_bytes keep_bytes(uint8_t **at, struct pack_bytes from)
{
	struct pack_bytes out = { *at, from.n };

	if (from.p == NULL)
		return from;
	if (from.n > 0)
		memcpy(*at, from.p, from.n);
	*at += from.n;
	return out;
}

static bool load_keys(struct object *o, struct event *ev,
		      const struct stage *st)
{
	struct loading *load;
	size_t bytes = 0;
	uint8_t *at;
	uint32_t i;

	for (i = 0; i < st->wants_n; i++)
		bytes += st->wants[i].key.n;
	load = loading_new(o, LOAD_KEYS, st->wants_n, bytes);
	if (load == NULL)
		return false;
	at = (uint8_t *)&load->keys[st->wants_n];
	for (i = 0; i < st->wants_n; i++) {
		load->keys[i].kind = st->wants[i].kind;
		load->keys[i].key = keep_bytes(&at, st->wants[i].key);
	}
	load->ev = ev;
	loading_start(load);
	return true;
}

static bool load_range(struct object *o, struct event *ev,
		       const struct stage *st)
{
	/* A byte more: an empty bound is not the same as none. */
	struct loading *load = loading_new(
		o, LOAD_RANGE, 0, st->want_start.n + st->want_end.n + 1);
	uint8_t *at;

	if (load == NULL)
		return false;
	at = (uint8_t *)&load->keys[0];
	load->l.kind = st->want_kind;
	load->l.start = keep_bytes(&at, st->want_start);
	load->l.end = keep_bytes(&at, st->want_end);
	load->l.reverse = st->want_reverse;
	load->l.rows_max = OBJECT_PAGE_ROWS;
	load->l.bytes_max = LOAD_RANGE_BYTES;
	load->ev = ev;
	loading_start(load);
	return true;
}

/* ------------------------------------------------------------------ objects */

static struct object *object_find(struct space *s, const struct oid *oid,
				  uint64_t hash)
{
	struct hnode *n;
	struct object *o;

	for (n = htab_first(&s->objects, hash); n != NULL; n = n->next) {
		o = CONTAINER_OF(n, struct object, node);
		if (n->hash == hash && memcmp(&o->oid, oid, OID_BYTES) == 0)
			return o;
	}
	return NULL;
}

static const struct class *variant_of(const struct event *ev)
{
	if (ev->cls != NULL && ev->cls->variant != NULL)
		return ev->cls->variant(ev->name);
	return ev->cls;
}

static struct object *object_new(struct space *s, const struct event *ev,
				 uint64_t hash)
{
	struct residents *r = s->res;
	struct object *o;

	if (residents_are_full(r))
		return NULL;
	o = calloc(1, sizeof(*o));
	if (o == NULL)
		return NULL;
	o->oid = ev->oid;
	o->space = s;
	o->cls = variant_of(ev);
	rows_init(&o->rows);
	TAILQ_INIT(&o->mailbox);
	TAILQ_INIT(&o->resumed);
	LIST_INIT(&o->keyed);
	htab_insert(&s->objects, &o->node, hash);
	if (!r->timer.running) {
		r->now_ms = env_now_ms(r->env);
		env_timer_start(&r->timer, r->now_ms + IDLE_CHECK_MS);
	}
	o->used_ms = r->now_ms;
	TAILQ_INSERT_HEAD(&r->lru, o, lru);
	r->objects++;
	object_account(o);
	if (!load_whole(o)) {
		object_free(o);
		return NULL;
	}
	return o;
}

static struct object *object_get(struct space *s, const struct event *ev)
{
	uint64_t hash = crypto_siphash(s->res->hash_key, ev->oid.b, OID_BYTES);
	struct object *o = object_find(s, &ev->oid, hash);

	if (o == NULL || (MUTANT(second_instance) && o->loading != NULL))
		return object_new(s, ev, hash);
	object_touch(o);
	return o;
}

/* ------------------------------------------------------------------ mailbox */

static void mailbox_put(struct object *o, struct event *ev, bool first)
{
	ev->state = EVENT_QUEUED;
	if (first)
		TAILQ_INSERT_HEAD(&o->mailbox, ev, link);
	else
		TAILQ_INSERT_TAIL(&o->mailbox, ev, link);
	o->mailbox_n++;
	if (ev->chain != NULL)
		o->nested_n++;
}

/* Back to where it came from, to be the next. */
static void put_back(struct object *o, struct event *ev)
{
	if (!ev->suspended) {
		mailbox_put(o, ev, true);
		return;
	}
	ev->state = EVENT_RESUMED;
	TAILQ_INSERT_HEAD(&o->resumed, ev, link);
}

static bool is_older(const struct event *a, const struct event *b)
{
	if (a->root_stamp != b->root_stamp)
		return a->root_stamp < b->root_stamp;
	if (a->chain == NULL || b->chain == NULL)
		return false;
	return memcmp(a->chain->root_id, b->chain->root_id,
		      sizeof(a->chain->root_id)) < 0;
}

/* One of its callers is suspended at this very object. */
static bool is_cycle(const struct event *ev, const struct event *holder)
{
	uint32_t i;

	if (ev->root_stamp != holder->root_stamp)
		return false;
	for (i = 0; i < ev->chain->n; i++)
		if (memcmp(&ev->chain->at[i].oid, &ev->oid, OID_BYTES) == 0)
			return true;
	return false;
}

static void put_text(char *to, size_t cap, const char *text)
{
	size_t n = strlen(to);

	(void)snprintf(to + n, cap - n, "%s", text);
}

/* The chain for a person. Names are shown as far as they are of the tenant that
 * made the last call. */
static void refuse_cycle(struct event *ev)
{
	const struct chain *c = ev->chain;
	char text[DETAIL_BYTES_MAX] = "the call would wait for itself: ";
	bool shown[CALL_DEPTH_MAX];
	uint32_t i;

	for (i = c->n; i-- > 0;)
		shown[i] = i + 1 == c->n ||
			   (shown[i + 1] && c->at[i].same_tenant_as_next);
	for (i = 0; i < c->n; i++) {
		put_text(text, sizeof(text),
			 shown[i] ? c->at[i].address : "(another tenant's)");
		put_text(text, sizeof(text), " -> ");
	}
	for (i = 0; i < c->n; i++)
		if (memcmp(&c->at[i].oid, &ev->oid, OID_BYTES) == 0)
			break;
	put_text(text, sizeof(text),
		 i < c->n && shown[i] ? c->at[i].address
				      : "(another tenant's)");
	event_refuse(ev, RC_CYCLE, NULL, text);
}

/*
 * A nested call would wait for `holder`, which is suspended. Who waits is
 * always older than who is waited for, so that no circle of waiting can close;
 * the younger dies and may try again with the same age. True: it was refused.
 */
static bool refuse_waiting(struct event *ev, const struct event *holder)
{
	if (ev->chain == NULL)
		return false;
	if (is_cycle(ev, holder)) {
		if (MUTANT(cycle_allowed))
			return false;
		refuse_cycle(ev);
		return true;
	}
	if (is_older(ev, holder) || MUTANT(wait_die_off))
		return false;
	event_refuse(ev, RC_OVERLOADED, NULL,
		     "an older call is in the middle of this object; try "
		     "again");
	return true;
}

/* `holder` has just become suspended with the object: so far who waits in the
 * mailbox only waited for its turn. */
static void refuse_younger(struct object *o, const struct event *holder)
{
	struct event *ev = TAILQ_FIRST(&o->mailbox);
	struct event *next;

	for (; o->nested_n > 0 && ev != NULL; ev = next) {
		next = TAILQ_NEXT(ev, link);
		if (ev->chain == NULL || is_cycle(ev, holder) ||
		    is_older(ev, holder) || MUTANT(wait_die_off))
			continue;
		mailbox_take(o, ev);
		(void)refuse_waiting(ev, holder);
	}
}

static void event_init(struct space *s, struct event *ev)
{
	ev->space = s;
	ev->object = NULL;
	ev->nested = NULL;
	ev->work = NULL;
	ev->resume = 0;
	ev->call_no = 0;
	ev->held = 0;
	ev->loads = 0;
	ev->result_base = 0;
	memset(ev->locals, 0, sizeof(ev->locals));
	memset(ev->locals_base, 0, sizeof(ev->locals_base));
	ev->idem_expires_ns = 0;
	ev->reply_rc = RC_OK;
	ev->index = 0;
	ev->term = s->epoch;
	ev->retry_after_ms = -1;
	ev->wrote = false;
	ev->dirty = false;
	ev->lagging = false;
	ev->suspending = false;
	ev->suspended = false;
	ev->recorded = false;
	ev->hashed = false;
	ev->state = EVENT_OUT;
	LIST_INIT(&ev->joined);
	if (ev->result.max == 0)
		pack_w_init(&ev->result, RESULT_BYTES_MAX);
	if (ev->reply.max == 0)
		pack_w_init(&ev->reply, RESULT_BYTES_MAX);
}

void event_deliver(struct space *s, struct event *ev)
{
	struct object *o;

	CHECK_OBJ(s, SPACE_MAGIC);
	CHECK_OBJ(ev, EVENT_MAGIC);
	PRE(ev->done != NULL);
	PRE(ev->state == EVENT_OUT || ev->state == EVENT_OVER);
	event_init(s, ev);
	s->stats.events++;
	s->stats.waiting++;
	if (!s->leading) {
		event_refuse(ev, RC_NOT_OWNER, NULL,
			     abort_text(RC_NOT_OWNER, false));
		return;
	}
	o = object_get(s, ev);
	if (o == NULL) {
		event_refuse(ev, RC_OVERLOADED, NULL,
			     "no room for another object in memory");
		return;
	}
	if (o->holder != NULL && refuse_waiting(ev, o->holder))
		return;
	if (o->mailbox_n >= MAILBOX_MAX) {
		event_refuse(ev, RC_OVERLOADED, NULL,
			     "too many calls wait at this object");
		return;
	}
	ev->object = o;
	mailbox_put(o, ev, false);
	object_step(o);
}

/* ------------------------------------------------------------------ the gate
 */

uint64_t space_tick(struct space *s, uint64_t now_ns)
{
	uint64_t mark = s->host->ops->tick(s->host, s->epoch);

	if (mark > s->gate.committed)
		gate_noted(&s->gate, mark, false, now_ns);
	return mark;
}

/* The stamp that was shown must be in the log before anybody hears of it: an
 * own unit carries it, else a tick does. */
static uint64_t tick_for(struct event *ev)
{
	uint64_t mark = ev->own_mark;

	if (mark == 0)
		mark = space_tick(ev->space, ev->now_ns);
	return mark != 0 ? mark : UINT64_MAX;
}

/* What the event says depends on all that its object went through so far. */
static void event_to_gate(struct event *ev, const struct object *o)
{
	struct gate *g = &ev->space->gate;
	bool committed = event_is_committed(ev);
	uint64_t mark;

	event_hold_result(ev, ev->result.n);
	ev->any_mark = o->any_mark;
	ev->need_mark = committed ? o->any_mark : o->strong_mark;
	if (MUTANT(gate_own_only))
		ev->need_mark = committed ? ev->own_mark : 0;
	ev->need_proof = 0;
	ev->lagging = !committed;
	if (ev->ticked) {
		mark = tick_for(ev);
		if (mark > ev->need_mark)
			ev->need_mark = mark;
	}
	if (!committed)
		gate_freshen(g, ev->now_ns);
	else if (ev->own_mark == 0 && !MUTANT(read_without_round) &&
		 (ev->rc == RC_OK || !MUTANT(error_without_round)))
		ev->need_proof = gate_prove(g, ev->now_ns);
	if ((MUTANT(reply_before_commit) && ev->own_mark != 0 &&
	     !ev->suspending) ||
	    (MUTANT(errors_not_gated) && ev->rc != RC_OK) ||
	    (MUTANT(call_with_open_writes) && ev->suspending)) {
		ev->lagging = false;
		event_passed(ev);
		return;
	}
	gate_enter(g, ev);
}

static void proof_failed(struct event *ev, enum rc rc)
{
	struct object *o = ev->object;

	if (!rc_is_wire(rc) || rc == RC_CANCELLED)
		rc = RC_NOT_OWNER;
	event_detach(ev);
	event_abort(ev, rc, "this node could not prove that it owns the shard");
	if (o != NULL)
		object_step(o);
}

/* ------------------------------------------------------------------- running
 */

/* The object is done with it: its last run is over, or it was given up. */
static void event_detach(struct event *ev)
{
	struct object *o = ev->object;
	struct event *j;

	if (o == NULL)
		return;
	ev->object = NULL;
	if (o->loading != NULL && o->loading->ev == ev)
		o->loading->ev = NULL;
	if (!ev->suspended)
		return;
	ev->suspended = false;
	o->suspended--;
	if (o->holder == ev)
		o->holder = NULL;
	if ((ev->flags & EVENT_KEYED) != 0)
		LIST_REMOVE(ev, joined_link);
	/* The last to join is the first in the list, and so behind the others
	 * in the mailbox. */
	while ((j = LIST_FIRST(&ev->joined)) != NULL) {
		LIST_REMOVE(j, joined_link);
		mailbox_put(o, j, true);
	}
}

static enum rc shown_rc(enum rc rc)
{
	if (rc == RC_NOMEM)
		return RC_OVERLOADED;
	return rc_is_wire(rc) ? rc : RC_INTERNAL;
}

/* The event is over with an error, about which `outcome` tells. */
static void conclude_error(struct object *o, struct event *ev, enum rc rc,
			   enum outcome outcome)
{
	ev->suspending = false;
	ev->result.n = 0;
	ev->result.rc = RC_OK;
	ev->rc = shown_rc(rc);
	ev->outcome = outcome;
	(void)detail_set(&ev->why, ev->rc, NULL, "%s", rc_text(ev->rc));
	if (ev->rc == RC_OVERLOADED && ev->retry_after_ms < 0)
		ev->retry_after_ms = RETRY_AFTER_MS;
	event_detach(ev);
	event_to_gate(ev, o);
}

static void conclude_failed(struct object *o, struct event *ev, enum rc rc)
{
	enum outcome outcome = OUTCOME_REFUSED;

	ev->suspending = false;
	ev->rc = shown_rc(rc);
	if (rc == RC_UNKNOWN_OUTCOME || ev->dirty)
		outcome = OUTCOME_UNKNOWN;
	if (event_close_failed(ev) != RC_OK)
		outcome = OUTCOME_UNKNOWN;
	conclude_error(o, ev, rc, outcome);
}

/* It wants rows that are not in memory; as soon as they are it runs again. */
static void event_load(struct object *o, struct event *ev)
{
	const struct stage *st = ev->work;
	bool begun = false;

	ev->suspending = false;
	if (++ev->loads > EVENT_LOADS_MAX) {
		(void)detail_set(&ev->why, RC_OVERLOADED, NULL,
				 "it needs more rows than an event may load");
		conclude_failed(o, ev, RC_OVERLOADED);
		return;
	}
	if (st->wants_n > 0)
		begun = load_keys(o, ev, st);
	else if (st->want_range)
		begun = load_range(o, ev, st);
	if (begun)
		put_back(o, ev);
	else
		conclude_failed(o, ev, RC_NOMEM);
}

static enum rc result_rc(struct event *ev)
{
	if (ev->result.rc == RC_OVERLOADED)
		return detail_set(&ev->why, RC_INVALID, NULL,
				  "the answer is larger than %u bytes",
				  RESULT_BYTES_MAX);
	return ev->result.rc;
}

static void event_conclude(struct object *o, struct event *ev)
{
	enum rc rc = ev->rc != RC_OK ? ev->rc : result_rc(ev);

	if (rc == RC_OK)
		rc = event_close(ev);
	if (rc == RC_AGAIN) {
		event_load(o, ev);
	} else if (rc != RC_OK) {
		conclude_failed(o, ev, rc);
	} else {
		ev->rc = RC_OK;
		ev->outcome = OUTCOME_DONE;
		event_detach(ev);
		event_to_gate(ev, o);
	}
}

/* Between this run and the next it counts at its object. */
static void event_hold(struct object *o, struct event *ev)
{
	if (ev->suspended)
		return;
	ev->suspended = true;
	o->suspended++;
	if ((ev->flags & EVENT_KEYED) != 0)
		LIST_INSERT_HEAD(&o->keyed, ev, joined_link);
	if (o->cls->interleave == INTERLEAVE_NEVER) {
		CHECK(o->holder == NULL);
		o->holder = ev;
		refuse_younger(o, ev);
	}
}

static void event_suspend(struct object *o, struct event *ev)
{
	enum rc rc = result_rc(ev);

	CHECK(ev->nested != NULL);
	CHECK(ev->nested->kind != NESTED_NONE);
	ev->suspending = true;
	if (rc == RC_OK)
		rc = event_close(ev);
	if (rc == RC_AGAIN) {
		event_load(o, ev);
		return;
	}
	if (rc != RC_OK) {
		conclude_failed(o, ev, rc);
		return;
	}
	ev->result_base = ev->result.n;
	memcpy(ev->locals_base, ev->locals, sizeof(ev->locals_base));
	ev->nested->keyed = (ev->flags & EVENT_KEYED) != 0;
	if (ev->nested->keyed)
		idem_derive(ev, ev->nested->key);
	event_hold(o, ev);
	event_to_gate(ev, o);
}

static void event_join(struct event *ev, struct event *runner)
{
	if (refuse_waiting(ev, runner))
		return;
	ev->state = EVENT_JOINED;
	LIST_INSERT_HEAD(&runner->joined, ev, joined_link);
}

/* What the key says. True: the event is taken care of. */
static bool event_looked_up(struct object *o, struct event *ev)
{
	struct event *runner = NULL;

	if (ev->suspended) {
		if (idem_at_hand(ev))
			return false;
		event_load(o, ev);
		return true;
	}
	switch (idem_look(ev, &runner)) {
	case IDEM_NEW:
	case IDEM_RESUME:
		return false;
	case IDEM_LOAD:
		event_load(o, ev);
		return true;
	case IDEM_JOIN:
		event_join(ev, runner);
		return true;
	case IDEM_ANSWER:
		break;
	}
	/* What its key stands for happened, or may have: cut short here, it
	 * must not be told that nothing did. */
	if (ev->outcome != OUTCOME_REFUSED)
		ev->wrote = true;
	if (ev->rc != RC_OK) {
		conclude_error(o, ev, ev->rc, ev->outcome);
	} else {
		event_detach(ev);
		event_to_gate(ev, o);
	}
	return true;
}

/* By its id an object can be asked for as what it is not: of another tenant or
 * class. It answers as one that is not there. */
static bool is_meant(struct object *o, const struct event *ev)
{
	if ((ev->flags & EVENT_INTERNAL) != 0 || ev->suspended)
		return true;
	if (o->head != HEAD_NONE && !object_is_addressed(o, ev))
		return false;
	/* Absent answers like another's, whatever else the call says. */
	if (o->head == HEAD_NONE && (ev->flags & EVENT_CREATE) == 0)
		return false;
	/* While nothing of it is stored it is what it is asked for as. */
	if ((o->head == HEAD_NONE && o->suspended == 0) || o->cls == NULL)
		o->cls = variant_of(ev);
	return o->head != HEAD_NONE || o->cls == variant_of(ev);
}

static enum run run_class(struct object *o, struct event *ev)
{
	if ((ev->flags & EVENT_SWEEP) != 0)
		return sweep_run(ev);
	if ((ev->flags & EVENT_SETTLE) != 0)
		return settle_run(ev);
	if (!ev->suspended && o->head != HEAD_LIVE &&
	    (ev->flags & EVENT_CREATE) == 0)
		return ev_fail(ev, RC_NOT_FOUND, NULL, "%s",
			       rc_text(RC_NOT_FOUND));
	return o->cls->run(ev);
}

static void event_run(struct object *o, struct event *ev)
{
	bool meant = is_meant(o, ev);

	event_begin(ev);
	if (!meant) {
		conclude_error(o, ev, RC_NOT_FOUND, OUTCOME_REFUSED);
		return;
	}
	if (ev->space->res->held > RESULTS_BYTES_MAX && !ev->suspended &&
	    (ev->flags & EVENT_INTERNAL) == 0 && !MUTANT(held_unbounded)) {
		event_detach(ev);
		event_refuse(ev, RC_OVERLOADED, NULL,
			     "too many answers wait to leave");
		return;
	}
	if ((ev->flags & EVENT_KEYED) != 0 && event_looked_up(o, ev))
		return;
	switch (run_class(o, ev)) {
	case RUN_DONE:
		event_conclude(o, ev);
		return;
	case RUN_LOAD:
		event_load(o, ev);
		return;
	case RUN_SUSPEND:
		event_suspend(o, ev);
		return;
	}
	UNREACHABLE();
}

static struct event *next_event(struct object *o)
{
	struct event *ev = TAILQ_FIRST(&o->resumed);

	if (ev != NULL) {
		TAILQ_REMOVE(&o->resumed, ev, link);
		ev->state = EVENT_OUT;
		return ev;
	}
	ev = TAILQ_FIRST(&o->mailbox);
	if (ev == NULL || o->holder != NULL)
		return NULL;
	mailbox_take(o, ev);
	return ev;
}

/* Run whatever may run. The object may be gone afterwards. */
static void object_step(struct object *o)
{
	struct residents *r = o->space->res;
	struct event *ev;

	if (o->pins > 0)
		return; /* The loop below it on the stack goes on. */
	if (!o->space->leading)
		return; /* Who is left in here is about to be told. */
	o->pins++;
	while (o->loading == NULL && o->loaded && (ev = next_event(o)) != NULL)
		event_run(o, ev);
	o->pins--;
	if (is_over(r, 0))
		residents_squeeze(r, 0);
}

/* ---------------------------------------------------------------- suspension
 */

static void timers_again(struct space *s)
{
	struct event *ev = RB_MIN(event_timers, &s->timers);
	uint64_t now;
	uint64_t ms = 0;

	env_timer_stop(&s->timer);
	if (ev == NULL)
		return;
	now = space_now(s);
	if (ev->nested->until_ns > now)
		ms = (ev->nested->until_ns - now) / 1000000u + 1;
	env_timer_start(&s->timer, env_now_ms(s->env) + ms);
}

/* Everything it said before is committed and proved: out it goes. */
static void event_leave(struct space *s, struct event *ev)
{
	if (ev->nested->kind == NESTED_WAIT) {
		ev->state = EVENT_WAITING;
		(void)RB_INSERT(event_timers, &s->timers, ev);
		timers_again(s);
		return;
	}
	ev->state = EVENT_CALLING;
	ev->wrote = true;
	TAILQ_INSERT_TAIL(&s->calling, ev, link);
	s->host->ops->call(s->host, ev);
}

/* Its wait is over: it runs before anybody in the mailbox. */
static void event_resume(struct event *ev)
{
	struct object *o = ev->object;

	ev->call_no++;
	ev->resume = ev->call_no;
	ev->state = EVENT_RESUMED;
	TAILQ_INSERT_TAIL(&o->resumed, ev, link);
	object_touch(o);
	object_step(o);
}

void space_called(struct space *s, struct event *ev, enum rc rc,
		  struct pack_bytes result, const struct detail *why)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	CHECK_OBJ(ev, EVENT_MAGIC);
	CHECK(ev->state == EVENT_CALLING);
	TAILQ_REMOVE(&s->calling, ev, link);
	ev->state = EVENT_OUT;
	ev->reply_why = (struct detail){ { 0 }, { 0 } };
	if (why != NULL)
		ev->reply_why = *why;
	pack_w_reset(&ev->reply);
	if (rc == RC_OK)
		pack_raw(&ev->reply, result.p, result.n);
	ev->reply_rc = rc;
	/* It was carried out; only what it said is lost. */
	if (ev->reply.rc != RC_OK)
		ev->reply_rc = RC_UNKNOWN_OUTCOME;
	if (rc_outcome(ev->reply_rc) != OUTCOME_REFUSED)
		ev->dirty = true;
	event_resume(ev);
}

static void timer_due(struct env_timer *t)
{
	struct space *s = CONTAINER_OF(t, struct space, timer);
	struct event *ev;
	uint64_t now = space_now(s);

	while ((ev = RB_MIN(event_timers, &s->timers)) != NULL &&
	       ev->nested->until_ns <= now) {
		(void)RB_REMOVE(event_timers, &s->timers, ev);
		ev->reply_rc = RC_OK;
		pack_w_reset(&ev->reply);
		event_resume(ev);
	}
	timers_again(s);
}

/* ------------------------------------------------------------------- release
 */

static void release(struct env_task *t)
{
	struct space *s = CONTAINER_OF(t, struct space, release);
	uint64_t n = s->passed_n;
	struct event *ev;

	/* What passes meanwhile has its own turn. */
	while (n-- > 0 && (ev = TAILQ_FIRST(&s->passed)) != NULL) {
		TAILQ_REMOVE(&s->passed, ev, link);
		s->passed_n--;
		ev->state = EVENT_OUT;
		if (ev->suspending)
			event_leave(s, ev);
		else if (!ev->lagging ||
			 gate_lagging_may_leave(&s->gate, ev, space_now(s)))
			event_end(ev);
	}
	if (!TAILQ_EMPTY(&s->passed))
		env_post(s->env, &s->release);
}

/* -------------------------------------------------------------------- cancel
 */

/* Out of wherever it is; false when its end is settled already. */
static bool event_take_out(struct event *ev)
{
	struct space *s = ev->space;

	switch ((enum event_state)ev->state) {
	case EVENT_QUEUED:
		mailbox_take(ev->object, ev);
		break;
	case EVENT_RESUMED:
		TAILQ_REMOVE(&ev->object->resumed, ev, link);
		break;
	case EVENT_JOINED:
		LIST_REMOVE(ev, joined_link);
		break;
	case EVENT_UNPROVED:
	case EVENT_UNCOMMITTED:
	case EVENT_FAR:
		gate_leave(&s->gate, ev);
		break;
	case EVENT_PASSED:
		if (!ev->suspending)
			return false;
		TAILQ_REMOVE(&s->passed, ev, link);
		s->passed_n--;
		break;
	case EVENT_CALLING:
		TAILQ_REMOVE(&s->calling, ev, link);
		break;
	case EVENT_WAITING:
		(void)RB_REMOVE(event_timers, &s->timers, ev);
		timers_again(s);
		break;
	case EVENT_OUT:
	case EVENT_RUNNING:
	case EVENT_OVER:
		UNREACHABLE();
	}
	return true;
}

static void swap_bytes(struct pack_w *a, struct pack_w *b)
{
	struct pack_w w = *a;

	*a = *b;
	*b = w;
}

/* Into the list where `ev` was. */
static void put_in(struct event *ev, enum event_state state)
{
	struct space *s = ev->space;

	switch (state) {
	case EVENT_RESUMED:
		ev->state = EVENT_RESUMED;
		TAILQ_INSERT_TAIL(&ev->object->resumed, ev, link);
		break;
	case EVENT_UNPROVED:
	case EVENT_UNCOMMITTED:
	case EVENT_FAR:
		gate_enter(&s->gate, ev);
		break;
	case EVENT_PASSED:
		event_passed(ev);
		break;
	case EVENT_CALLING:
	case EVENT_WAITING:
		event_leave(s, ev);
		break;
	case EVENT_OUT:
	case EVENT_QUEUED:
	case EVENT_RUNNING:
	case EVENT_JOINED:
	case EVENT_OVER:
		UNREACHABLE();
	}
}

/*
 * The caller of `ev` is gone, but others wait for the same: one of them goes on
 * in its place, as if it had been the first. A nested call is made anew under
 * the same derived key before the old one is dropped, so that it joins it.
 */
static void event_promote(struct event *ev, enum event_state state)
{
	struct object *o = ev->object;
	struct event *heir = LIST_FIRST(&ev->joined);
	struct event *j;

	LIST_REMOVE(heir, joined_link);
	while ((j = LIST_FIRST(&ev->joined)) != NULL) {
		LIST_REMOVE(j, joined_link);
		LIST_INSERT_HEAD(&heir->joined, j, joined_link);
	}
	LIST_REMOVE(ev, joined_link);
	LIST_INSERT_HEAD(&o->keyed, heir, joined_link);
	swap_bytes(&ev->result, &heir->result);
	heir->held = ev->held;
	ev->held = 0;
	swap_bytes(&ev->reply, &heir->reply);
	heir->nested = ev->nested;
	ev->nested = NULL;
	heir->reply_rc = ev->reply_rc;
	heir->reply_why = ev->reply_why;
	heir->resume = ev->resume;
	heir->call_no = ev->call_no;
	heir->result_base = ev->result_base;
	memcpy(heir->locals, ev->locals, sizeof(heir->locals));
	memcpy(heir->locals_base, ev->locals_base, sizeof(heir->locals_base));
	heir->idem_expires_ns = ev->idem_expires_ns;
	heir->now_ns = ev->now_ns;
	heir->need_mark = ev->need_mark;
	heir->need_proof = ev->need_proof;
	heir->own_mark = ev->own_mark;
	heir->any_mark = ev->any_mark;
	heir->loads = ev->loads;
	heir->durability_now = ev->durability_now;
	heir->wrote = ev->wrote;
	heir->dirty = ev->dirty;
	heir->suspending = ev->suspending;
	heir->recorded = ev->recorded;
	heir->suspended = true;
	ev->suspended = false;
	ev->object = NULL;
	if (o->loading != NULL && o->loading->ev == ev)
		o->loading->ev = heir;
	put_in(heir, state);
	if (state == EVENT_CALLING)
		ev->space->host->ops->call_drop(ev->space->host, ev);
}

void event_cancel(struct event *ev, enum rc rc)
{
	enum event_state state = (enum event_state)ev->state;
	struct object *o = ev->object;

	CHECK_OBJ(ev, EVENT_MAGIC);
	PRE(rc == RC_CANCELLED || rc == RC_DEADLINE);
	if (!event_take_out(ev))
		return;
	/* The one it joined may have done it under its key. */
	if (state == EVENT_JOINED)
		ev->wrote = true;
	if (!LIST_EMPTY(&ev->joined)) {
		event_promote(ev, state);
	} else {
		event_detach(ev);
		if (state == EVENT_CALLING)
			ev->space->host->ops->call_drop(ev->space->host, ev);
	}
	event_abort(ev, rc, abort_text(rc, ev->wrote));
	if (o != NULL)
		object_step(o);
}

/* ---------------------------------------------------------------- leadership
 */

enum rc space_new(struct env *env, struct host *host, struct residents *res,
		  struct storage *storage, uint32_t shard, struct space **out)
{
	struct space *s = calloc(1, sizeof(*s));
	enum rc rc;

	*out = NULL;
	if (s == NULL)
		return RC_NOMEM;
	s->magic = SPACE_MAGIC;
	s->env = env;
	s->host = host;
	s->res = res;
	s->storage = storage;
	s->shard = shard;
	TAILQ_INIT(&s->passed);
	TAILQ_INIT(&s->calling);
	RB_INIT(&s->timers);
	LIST_INIT(&s->loads);
	s->release.cb = release;
	s->release.phase = ENV_PHASE_RELEASE;
	env_timer_init(&s->timer, env, timer_due);
	rc = htab_init(&s->objects, OBJECTS_SLOTS_MIN);
	if (rc != RC_OK)
		goto free_space;
	rc = gate_init(&s->gate, host, event_passed, proof_failed);
	if (rc != RC_OK)
		goto release_objects;
	rc = sweep_new(s, &s->sweep);
	if (rc != RC_OK)
		goto release_gate;
	rc = settle_new(s, &s->settle);
	if (rc != RC_OK)
		goto free_sweep;
	res->spaces++;
	*out = s;
	return RC_OK;

free_sweep:
	sweep_free(s->sweep);
release_gate:
	gate_release(&s->gate);
release_objects:
	htab_release(&s->objects);
free_space:
	free(s);
	return rc;
}

void space_lead(struct space *s, uint64_t epoch, uint64_t stamp_ns)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	PRE(!s->leading);
	PRE(epoch > 0);
	CHECK(s->objects.n == 0 || MUTANT(instance_kept));
	s->leading = true;
	s->epoch = epoch;
	s->lead_ns = stamp_ns;
	s->stored = 0;
	gate_lead(&s->gate, epoch);
	sweep_lead(s->sweep);
}

/* Nothing of its object is left to be told. */
static void lost_event(struct event *ev)
{
	struct event *j;

	while ((j = LIST_FIRST(&ev->joined)) != NULL) {
		LIST_REMOVE(j, joined_link);
		j->wrote = true;
		event_abort(j, RC_NOT_OWNER, abort_text(RC_NOT_OWNER, true));
	}
	event_abort(ev, RC_NOT_OWNER, abort_text(RC_NOT_OWNER, ev->wrote));
}

static void lost_at_gate(struct event *ev)
{
	if (MUTANT(lost_released) && !ev->suspending)
		event_passed(ev);
	else
		lost_event(ev);
}

/* What has passed may leave: it was committed and proved. Not so who was about
 * to call, and what would have been lost with an owner's last moments. */
static void lost_passed(struct space *s)
{
	struct event_list list = TAILQ_HEAD_INITIALIZER(list);
	struct event *ev;

	TAILQ_CONCAT(&list, &s->passed, link);
	s->passed_n = 0;
	while ((ev = TAILQ_FIRST(&list)) != NULL) {
		TAILQ_REMOVE(&list, ev, link);
		if (ev->suspending || ev->lagging)
			lost_at_gate(ev);
		else
			event_passed(ev);
	}
}

static void lost_object(void *arg, struct hnode *node)
{
	struct object *o = CONTAINER_OF(node, struct object, node);
	struct event *ev;

	(void)arg;
	while ((ev = TAILQ_FIRST(&o->mailbox)) != NULL) {
		mailbox_take(o, ev);
		lost_event(ev);
	}
	while ((ev = TAILQ_FIRST(&o->resumed)) != NULL) {
		TAILQ_REMOVE(&o->resumed, ev, link);
		lost_event(ev);
	}
	if (MUTANT(instance_kept) && o->loading == NULL) {
		o->any_mark = 0;
		o->strong_mark = 0;
		o->gone_mark = 0;
		o->trim_mark = 0;
		return;
	}
	object_free(o);
}

void space_lost(struct space *s, uint64_t epoch)
{
	struct event *ev;

	CHECK_OBJ(s, SPACE_MAGIC);
	if (!s->leading || epoch != s->epoch)
		return;
	s->leading = false;
	sweep_lost(s->sweep);
	settle_lost(s->settle);
	env_timer_stop(&s->timer);
	lost_passed(s);
	gate_drain(&s->gate, lost_at_gate);
	while ((ev = TAILQ_FIRST(&s->calling)) != NULL) {
		TAILQ_REMOVE(&s->calling, ev, link);
		s->host->ops->call_drop(s->host, ev);
		lost_event(ev);
	}
	while ((ev = RB_MIN(event_timers, &s->timers)) != NULL) {
		(void)RB_REMOVE(event_timers, &s->timers, ev);
		lost_event(ev);
	}
	htab_each(&s->objects, lost_object, NULL);
}

void space_committed(struct space *s, uint64_t mark, uint64_t index)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	if (s->leading)
		gate_committed(&s->gate, mark, index);
}

void space_stored(struct space *s, uint64_t mark)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	if (s->leading && mark > s->stored)
		s->stored = mark;
}

void space_proved(struct space *s, uint64_t ticket, enum rc rc)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	if (s->leading)
		gate_proved(&s->gate, ticket, rc);
}

/* ----------------------------------------------------------------- the end */

static void discard_object(void *arg, struct hnode *node)
{
	struct object *o = CONTAINER_OF(node, struct object, node);

	(void)arg;
	object_free(o);
}

static void space_release(struct space *s)
{
	sweep_free(s->sweep);
	settle_free(s->settle);
	htab_release(&s->objects);
	s->res->spaces--;
	s->magic = 0;
	free(s);
}

void space_free(struct space *s)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	CHECK(!s->leading);
	CHECK(s->stats.waiting == 0);
	CHECK(LIST_EMPTY(&s->loads));
	CHECK(sweep_idle(s->sweep));
	CHECK(settle_idle(s->settle));
	if (MUTANT(instance_kept))
		htab_each(&s->objects, discard_object, NULL);
	gate_release(&s->gate);
	space_release(s);
}

static void forget(struct event *ev)
{
	nested_free(ev);
}

void space_discard(struct space *s)
{
	struct loading *load;
	struct event *ev;

	CHECK_OBJ(s, SPACE_MAGIC);
	env_timer_stop(&s->timer);
	gate_drain(&s->gate, forget);
	TAILQ_FOREACH(ev, &s->passed, link)
	forget(ev);
	TAILQ_FOREACH(ev, &s->calling, link)
	forget(ev);
	/* In order of time they are compared by what is freed here. */
	while ((ev = RB_MIN(event_timers, &s->timers)) != NULL) {
		(void)RB_REMOVE(event_timers, &s->timers, ev);
		forget(ev);
	}
	htab_each(&s->objects, discard_object, NULL);
	while ((load = LIST_FIRST(&s->loads)) != NULL) {
		LIST_REMOVE(load, link);
		free(load);
	}
	gate_release(&s->gate);
	space_release(s);
}

void space_stats(const struct space *s, struct space_stats *out)
{
	CHECK_OBJ(s, SPACE_MAGIC);
	*out = s->stats;
	out->resident = s->objects.n;
}
