#include "node/core/call.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/pool.h"
#include "node/base/sm.h"
#include "node/core/internal.h"
#include "node/core/route.h"
#include "raft-glue/placement.h"

#define CALL_MAGIC 0x43414c4cu

/*
 * Deadlines live in a wheel: a slot per 8 ms over more than the longest
 * deadline. Nearly every call ends before its own, so what counts is that
 * putting one in and taking it out cost nothing.
 */
#define WHEEL_SLOTS   8192u
#define WHEEL_TICK_MS 8u
_Static_assert((uint64_t)WHEEL_SLOTS *WHEEL_TICK_MS > DEADLINE_MAX_MS + 1000u,
	       "the wheel is longer than any deadline");

/* Most requests fit here and cost no allocation. */
#define CALL_INLINE_BYTES 320u

/*
 *   PARSED ----> EXECUTING ----> ENDED ----> (replied and freed)
 *      |                           ^
 *      +---------------------------+  refused before it reached its object
 */
enum call_state { CALL_PARSED, CALL_EXECUTING, CALL_ENDED };

static const struct sm_state call_states[] = {
	[CALL_PARSED] = { "parsed", 1u << CALL_EXECUTING | 1u << CALL_ENDED,
			  false },
	[CALL_EXECUTING] = { "executing", 1u << CALL_ENDED, false },
	[CALL_ENDED] = { "ended", 0, true },
};

struct call {
	uint32_t magic;
	struct sm sm;
	struct core *core;
	struct event ev;
	struct caller caller;
	struct address addr;
	struct bridge *bridge;
	uint64_t request_id;
	struct pack_bytes trace; /* W3C traceparent, {NULL, 0}: none. */
	call_reply reply;
	void *arg;
	uint32_t depth; /* 0: a client's. */
	bool meta;
	bool redirect;
	uint64_t owner;      /* To be told with NOT_OWNER. */
	struct call *nested; /* The call that our event waits for. */
	struct chain *chain; /* Ours when depth > 0. */
	char *principal;     /* The same. */
	uint8_t *bytes;      /* The request. */
	size_t bytes_n;
	uint64_t pass; /* Of the wheel, last looked at. */
	TAILQ_ENTRY(call) wheel;
	STAILQ_ENTRY(call) ended;
	uint8_t inlined[CALL_INLINE_BYTES];
};
TAILQ_HEAD(calls, call);

struct call_table {
	struct core *core;
	struct env *env;
	struct pool pool;
	uint32_t open;
	uint32_t open_at[CALL_DEPTH_MAX + 1];
	uint32_t max_at[CALL_DEPTH_MAX + 1];
	uint64_t bytes;
	uint64_t next_id;
	bool draining;
	void (*idle)(void *arg);
	void *idle_arg;
	struct env_task idle_task;
	STAILQ_HEAD(, call) ended;
	struct env_task reply_task;
	struct env_timer tick;
	uint64_t pass;
	uint64_t tick_at; /* The wheel's next slot, in ticks. */
	struct core_stats stats;
	struct calls wheel[WHEEL_SLOTS];
};

/* The wheel. */

static uint64_t tick_of(uint64_t ns)
{
	return ns / (WHEEL_TICK_MS * 1000000ull);
}

static void wheel_arm(struct call_table *t)
{
	env_timer_start(&t->tick, env_now_ms(t->env) + WHEEL_TICK_MS);
}

static void wheel_add(struct call_table *t, struct call *c)
{
	/* One tick later than its own: never before the deadline. */
	uint64_t at = tick_of(c->ev.deadline_ns) + 1;

	if (!t->tick.running) {
		t->tick_at = tick_of(env_now_ns(t->env));
		wheel_arm(t);
	}
	TAILQ_INSERT_TAIL(&t->wheel[at % WHEEL_SLOTS], c, wheel);
}

static void wheel_remove(struct call_table *t, struct call *c)
{
	uint64_t at = tick_of(c->ev.deadline_ns) + 1;

	TAILQ_REMOVE(&t->wheel[at % WHEEL_SLOTS], c, wheel);
}

static void wheel_expire(struct call_table *t, uint64_t slot, uint64_t now_ns)
{
	struct calls *head = &t->wheel[slot % WHEEL_SLOTS];
	uint64_t pass = ++t->pass;
	struct call *c;

	/* Ending one call may end others, of this slot too: always take the
	 * front, and put it back behind those not looked at yet. */
	while ((c = TAILQ_FIRST(head)) != NULL && c->pass != pass) {
		CHECK_OBJ(c, CALL_MAGIC);
		c->pass = pass;
		TAILQ_REMOVE(head, c, wheel);
		TAILQ_INSERT_TAIL(head, c, wheel);
		if (c->ev.deadline_ns <= now_ns && c->sm.now == CALL_EXECUTING)
			event_cancel(&c->ev, RC_DEADLINE);
	}
}

static void wheel_tick(struct env_timer *timer)
{
	struct call_table *t = CONTAINER_OF(timer, struct call_table, tick);
	uint64_t now_ns = env_now_ns(t->env);
	uint64_t now = tick_of(now_ns);

	/* After a suspension of the machine: each slot once is enough. */
	if (now > t->tick_at + WHEEL_SLOTS)
		t->tick_at = now - WHEEL_SLOTS;
	while (t->tick_at <= now)
		wheel_expire(t, t->tick_at++, now_ns);
	if (t->open > 0)
		wheel_arm(t);
}

/* Slots. */

static struct call *call_take(struct core *core, uint32_t depth)
{
	struct call_table *t = core_calls(core);
	struct call *c;

	if (t->draining && depth == 0)
		return NULL;
	/* Nested calls of each depth have a share of their own: clients cannot
	 * take the slots that let their calls end. */
	if (t->open_at[depth] == t->max_at[depth])
		return NULL;
	c = pool_take(&t->pool);
	if (c == NULL)
		return NULL;
	c->magic = CALL_MAGIC;
	sm_init(&c->sm, call_states, ARRAY_LEN(call_states), CALL_PARSED);
	c->core = core;
	c->depth = depth;
	c->request_id = t->next_id++;
	c->ev.magic = EVENT_MAGIC;
	c->ev.retry_after_ms = -1;
	pack_w_init(&c->ev.result, RESULT_BYTES_MAX);
	pack_w_init(&c->ev.reply, RESULT_BYTES_MAX);
	t->open++;
	t->open_at[depth]++;
	t->stats.calls++;
	return c;
}

static void table_idle(struct env_task *task)
{
	struct call_table *t = CONTAINER_OF(task, struct call_table, idle_task);
	void (*idle)(void *) = t->idle;

	if (t->open > 0 || idle == NULL)
		return;
	t->idle = NULL;
	idle(t->idle_arg);
}

static void call_memory_free(struct call_table *t, struct call *c)
{
	pack_w_release(&c->ev.result);
	pack_w_release(&c->ev.reply);
	if (c->bytes != c->inlined)
		free(c->bytes);
	t->bytes -= c->bytes_n;
	free(c->chain);
	free(c->principal);
	c->magic = 0;
}

static void call_free(struct call *c)
{
	struct call_table *t = core_calls(c->core);

	CHECK_OBJ(c, CALL_MAGIC);
	CHECK(c->nested == NULL);
	call_memory_free(t, c);
	t->open--;
	t->open_at[c->depth]--;
	pool_put(&t->pool, c);
	if (t->open == 0 && t->idle != NULL)
		env_post(t->env, &t->idle_task);
}

static bool call_copy(struct call_table *t, struct call *c,
		      struct pack_bytes params)
{
	if (params.n <= CALL_INLINE_BYTES) {
		c->bytes = c->inlined;
	} else {
		if (t->bytes + params.n > CALLS_BYTES_MAX)
			return false;
		c->bytes = malloc(params.n);
		if (c->bytes == NULL)
			return false;
	}
	memcpy(c->bytes, params.p, params.n);
	c->bytes_n = params.n;
	t->bytes += params.n;
	return true;
}

/* Replies. */

static void meta_write(struct call *c, struct pack_w *w)
{
	const struct identity *id = core_identity(c->core);

	pack_array(w, 2);
	pack_raw(w, c->ev.result.p, c->ev.result.n);
	pack_map(w, 4);
	pack_cstr(w, "owner");
	pack_cstr(w, id->node_name);
	pack_cstr(w, "shard");
	pack_u64(w, shard_number(bridge_shard(c->bridge)));
	pack_cstr(w, "term");
	pack_u64(w, c->ev.term);
	pack_cstr(w, "index");
	pack_u64(w, c->ev.index);
}

void call_id_text(uint64_t request_id, char out[CALL_ID_BYTES])
{
	snprintf(out, CALL_ID_BYTES, "%016llx", (unsigned long long)request_id);
}

/* The id is the one that the caller's error names. Names of objects and
 * arguments stay out: they may be what the caller keeps secret. */
static void call_log(const struct call *c, const struct answer *a)
{
	enum log_level level =
		a->rc == RC_INTERNAL ? LOG_ERROR_LEVEL : LOG_DEBUG_LEVEL;
	char id[CALL_ID_BYTES];

	if (!log_enabled(level))
		return;
	call_id_text(c->request_id, id);
	LOG_AT(level, "call_ended", F("request_id", (const char *)id),
	       F("principal", c->caller.principal), F("class", c->addr.cls),
	       F("method", c->ev.method != NULL ? c->ev.method->name : ""),
	       F("code", rc_name(a->rc)), F("trace", c->trace),
	       F("why", (const char *)c->ev.why.text));
}

static void call_send(struct call *c)
{
	struct core_stats *stats = &core_calls(c->core)->stats;
	struct event *ev = &c->ev;
	struct answer a = { .rc = ev->rc,
			    .outcome = ev->outcome,
			    .why = &ev->why,
			    .repeatable =
				    ev->method != NULL &&
				    (ev->method->flags & METHOD_WRITES) == 0,
			    .retry_after_ms = ev->retry_after_ms,
			    .request_id = c->request_id,
			    .owner = c->owner };
	struct pack_w w;

	pack_w_init(&w, RESULT_BYTES_MAX + 256);
	if (a.rc == RC_OK) {
		a.result = (struct pack_bytes){ ev->result.p, ev->result.n };
		if (c->meta) {
			meta_write(c, &w);
			a.result = (struct pack_bytes){ w.p, w.n };
		}
		if (ev->result.rc != RC_OK || w.rc != RC_OK) {
			/* It took effect; only its answer has no room. */
			a.rc = RC_UNKNOWN_OUTCOME;
			a.outcome = OUTCOME_UNKNOWN;
		}
	}
	CHECK(rc_is_wire(a.rc));
	stats->by_rc[a.rc]++;
	call_log(c, &a);
	c->reply(c->arg, &a);
	pack_w_release(&w);
}

static void call_finish(struct call *c)
{
	struct call_table *t = core_calls(c->core);

	if (c->ev.deadline_ns != 0)
		wheel_remove(t, c);
	call_send(c);
	call_free(c);
}

static void table_reply(struct env_task *task)
{
	struct call_table *t =
		CONTAINER_OF(task, struct call_table, reply_task);
	struct call *c;

	while ((c = STAILQ_FIRST(&t->ended)) != NULL) {
		STAILQ_REMOVE_HEAD(&t->ended, ended);
		call_finish(c);
	}
}

/* Ended before it reached its object. */
static void call_end(struct call *c, enum rc rc)
{
	struct call_table *t = core_calls(c->core);

	sm_move(&c->sm, CALL_ENDED);
	c->ev.rc = rc_is_wire(rc) ? rc : RC_INTERNAL;
	c->ev.outcome = OUTCOME_REFUSED;
	if (rc == RC_OVERLOADED || rc == RC_NO_QUORUM)
		c->ev.retry_after_ms = RETRY_AFTER_MS;
	STAILQ_INSERT_TAIL(&t->ended, c, ended);
	env_post(t->env, &t->reply_task);
}

static void event_done(struct event *ev)
{
	struct call *c = CONTAINER_OF(ev, struct call, ev);

	CHECK_OBJ(c, CALL_MAGIC);
	sm_move(&c->sm, CALL_ENDED);
	call_finish(c);
}

/* Requests. */

static bool hex_span(struct pack_bytes s, size_t from, size_t n)
{
	size_t i;

	for (i = from; i < from + n; i++) {
		uint8_t ch = s.p[i];

		if (!((ch >= '0' && ch <= '9') || (ch >= 'a' && ch <= 'f')))
			return false;
	}
	return true;
}

static bool all_zero(struct pack_bytes s, size_t from, size_t n)
{
	while (n > 0 && s.p[from + n - 1] == '0')
		n--;
	return n == 0;
}

/* https://www.w3.org/TR/trace-context/ section 3.2: version 00, and the prefix
 * of any later one. */
static bool traceparent_good(struct pack_bytes s)
{
	bool first;

	if (s.n < 55 || !hex_span(s, 0, 2) || s.p[2] != '-' ||
	    !hex_span(s, 3, 32) || s.p[35] != '-' || !hex_span(s, 36, 16) ||
	    s.p[52] != '-' || !hex_span(s, 53, 2))
		return false;
	if (all_zero(s, 3, 32) || all_zero(s, 36, 16) ||
	    (s.p[0] == 'f' && s.p[1] == 'f'))
		return false;
	first = all_zero(s, 0, 2);
	return s.n == 55 || (!first && s.p[55] == '-');
}

static enum rc options_read(struct call *c, struct pack_bytes bytes,
			    uint64_t *deadline_ms)
{
	struct event *ev = &c->ev;
	struct method_args o;
	struct pack_bytes trace;
	enum rc rc;

	rc = method_args_check(method_call_options(), bytes, &o, &ev->why);
	if (rc != RC_OK)
		return rc;
	*deadline_ms = method_u64(&o, OPTION_deadline_ms, DEADLINE_DEFAULT_MS);
	if (method_has(&o, OPTION_idem)) {
		ev->idem = o.at[OPTION_idem].v.s;
		ev->flags |= EVENT_KEYED;
	}
	ev->idem_ms = method_u64(&o, OPTION_idem_ms, 0);
	if (ev->idem_ms != 0 && (ev->flags & EVENT_KEYED) == 0)
		return detail_set(&ev->why, RC_INVALID, "idem_ms",
				  "idem_ms needs idem");
	if (method_word_of(&o, OPTION_read, WORD_read_linearizable) ==
	    WORD_read_stale)
		return detail_set(&ev->why, RC_UNSUPPORTED, "read",
				  "stale reads are not offered");
	if (method_has(&o, OPTION_durability))
		ev->durability = (enum durability)(
			DURABILITY_MEMORY + (int)o.at[OPTION_durability].word);
	c->redirect = method_word_of(&o, OPTION_route, WORD_route_forward) ==
		      WORD_route_redirect;
	c->meta = method_bool(&o, OPTION_meta, false);
	trace = method_bytes(&o, OPTION_trace);
	if (trace.n > 0 && !traceparent_good(trace))
		return detail_set(&ev->why, RC_INVALID, "trace",
				  "trace is a W3C traceparent");
	c->trace = trace;
	return RC_OK;
}

_Static_assert((int)DURABILITY_LAGGED - (int)DURABILITY_MEMORY ==
		       (int)WORD_durability_lagged,
	       "the words are in the order of the enum");
_Static_assert((int)DURABILITY_COMMITTED - (int)DURABILITY_MEMORY ==
		       (int)WORD_durability_committed,
	       "the words are in the order of the enum");

static enum rc params_read(struct call *c, struct pack_bytes *method,
			   uint64_t *deadline_ms)
{
	struct pack_r r = pack_reader(c->bytes, c->bytes_n);
	struct event *ev = &c->ev;
	struct pack_bytes text;
	struct pack_bytes options;
	uint32_t n;
	enum rc rc;

	*deadline_ms = DEADLINE_DEFAULT_MS;
	if (pack_get_array(&r, &n) != RC_OK || n < 3 || n > 4)
		return detail_set(&ev->why, RC_INVALID, "params",
				  "call takes [address, method, args] or "
				  "[address, method, args, options]");
	if (pack_get_bytes(&r, &text) != RC_OK)
		return detail_set(&ev->why, RC_INVALID, "address",
				  "an address is a string");
	if (pack_get_bytes(&r, method) != RC_OK)
		return detail_set(&ev->why, RC_INVALID, "method",
				  "a method is a string");
	if (pack_skip(&r, &ev->args_bytes) != RC_OK)
		return detail_set(&ev->why, RC_INVALID, "args",
				  "args is a map");
	rc = address_parse(text, c->caller.tenant, c->caller.env, &c->addr,
			   &ev->why);
	if (rc != RC_OK || n == 3)
		return rc;
	if (pack_skip(&r, &options) != RC_OK)
		return detail_set(&ev->why, RC_INVALID, "options",
				  "options is a map");
	return options_read(c, options, deadline_ms);
}

static enum rc call_bind(struct call *c, struct pack_bytes method)
{
	const struct identity *id = core_identity(c->core);
	struct event *ev = &c->ev;
	enum rc rc;

	rc = bind_resolve(core_bind(c->core), c->caller.principal, &c->addr,
			  method, &ev->method, &ev->why);
	if (rc != RC_OK)
		return rc;
	rc = method_args_check(ev->method, ev->args_bytes, &ev->args, &ev->why);
	if (rc != RC_OK)
		return rc;
	ev->cls = class_find(c->addr.cls);
	CHECK(ev->cls != NULL);
	if (ev->durability != DURABILITY_DEFAULT &&
	    (ev->cls->durabilities & 1u << ev->durability) == 0)
		return detail_set(&ev->why, RC_UNSUPPORTED, "durability",
				  "class %s does not offer that choice",
				  ev->cls->name);
	if (!c->addr.by_id)
		placement_id(id->hash_key, c->addr.tenant, c->addr.env,
			     c->addr.cls, c->addr.name, &c->addr.oid);
	ev->oid = c->addr.oid;
	ev->tenant = c->addr.tenant;
	ev->env = c->addr.env;
	ev->name = c->addr.name;
	ev->principal = c->caller.principal;
	/* By its id an object is found, not made: so one that is not there and
	 * one that is another's are the same. */
	if (!c->addr.by_id)
		/* An id says nothing of the names it was made of: by it nobody
		 * makes an object where another tenant's or class's may stand
		 * one day, and one that is absent answers as one that is not
		 * the caller's. */
		if (!c->addr.by_id)
			ev->flags |= EVENT_CREATE;
	c->bridge = core_bridge(
		c->core, placement_shard(id->hash_key, &ev->oid, id->shards));
	return RC_OK;
}

static enum rc call_route(struct call *c)
{
	struct route r = route_find(c->bridge);

	switch (r.to) {
	case ROUTE_HERE:
		return RC_OK;
	case ROUTE_PEER:
		c->owner = r.node_id;
		return RC_NOT_OWNER;
	case ROUTE_NOBODY:
		break;
	}
	return detail_set(&c->ev.why, RC_NO_QUORUM, NULL,
			  "the shard has no owner at the moment");
}

static void nested_chain_mark(struct call *c)
{
	struct chain *chain = c->chain;
	const struct call *outer = c->arg;

	/* The sentence of CYCLE names an ancestor only to its own tenant. */
	chain->at[chain->n - 1].same_tenant_as_next =
		c->addr.tenant.n == outer->addr.tenant.n &&
		(c->addr.tenant.n == 0 ||
		 memcmp(c->addr.tenant.p, outer->addr.tenant.p,
			c->addr.tenant.n) == 0);
}

/* Everything between a copied request and its object. */
static void call_begin(struct call *c, uint64_t deadline_ns)
{
	struct call_table *t = core_calls(c->core);
	struct event *ev = &c->ev;
	struct pack_bytes method = { NULL, 0 };
	uint64_t now_ns = env_now_ns(t->env);
	uint64_t deadline_ms;
	enum rc rc;

	rc = params_read(c, &method, &deadline_ms);
	if (rc == RC_OK && c->chain != NULL)
		nested_chain_mark(c);
	if (rc == RC_OK)
		rc = call_bind(c, method);
	if (rc == RC_OK)
		rc = call_route(c);
	if (rc == RC_OK && deadline_ns != 0 && deadline_ns <= now_ns)
		rc = RC_DEADLINE;
	if (rc != RC_OK) {
		call_end(c, rc);
		return;
	}
	ev->deadline_ns = deadline_ns != 0 ? deadline_ns
					   : now_ns + deadline_ms * 1000000ull;
	if (c->chain == NULL)
		ev->root_stamp = now_ns;
	ev->done = event_done;
	wheel_add(t, c);
	sm_move(&c->sm, CALL_EXECUTING);
	event_deliver(bridge_space(c->bridge), ev);
}

struct call *call_start(struct core *core, const struct caller *caller,
			struct pack_bytes params, call_reply reply, void *arg)
{
	struct call *c = call_take(core, 0);

	if (c == NULL)
		return NULL;
	c->caller = *caller;
	c->reply = reply;
	c->arg = arg;
	if (!call_copy(core_calls(core), c, params)) {
		detail_set(&c->ev.why, RC_OVERLOADED, NULL,
			   "no memory for the request");
		call_end(c, RC_OVERLOADED);
		return c;
	}
	call_begin(c, 0);
	return c;
}

void call_cancel(struct call *c)
{
	CHECK_OBJ(c, CALL_MAGIC);
	if (c->sm.now == CALL_EXECUTING)
		event_cancel(&c->ev, RC_CANCELLED);
}

uint64_t call_request_id(const struct call *c)
{
	return c->request_id;
}

size_t call_held_bytes(const struct call *c)
{
	return c->ev.result.n;
}

/* Nested calls: what an object's event asks of another object. */

static void nested_replied(void *arg, const struct answer *a)
{
	struct call *outer = arg;
	/* A refusal that may have left something behind is none: the outer
	 * event must not take back that it had begun. */
	enum rc rc = a->rc != RC_OK && a->outcome == OUTCOME_UNKNOWN
			     ? RC_UNKNOWN_OUTCOME
			     : a->rc;

	CHECK_OBJ(outer, CALL_MAGIC);
	outer->nested = NULL;
	space_called(bridge_space(outer->bridge), &outer->ev, rc, a->result,
		     a->why);
}

static void nested_forgotten(void *arg, const struct answer *a)
{
	(void)arg;
	(void)a;
}

static struct chain *chain_extend(struct call *outer)
{
	const struct event *ev = &outer->ev;
	struct chain *chain = calloc(1, sizeof(*chain));

	if (chain == NULL)
		return NULL;
	if (ev->chain != NULL)
		*chain = *ev->chain;
	chain->root_stamp = ev->root_stamp;
	if (ev->chain == NULL)
		memcpy(chain->root_id, &outer->request_id,
		       sizeof(outer->request_id));
	CHECK(chain->n < CALL_DEPTH_MAX);
	chain->at[chain->n].oid = ev->oid;
	address_write(outer->addr.tenant, outer->addr.env, outer->addr.cls,
		      outer->addr.name, &ev->oid, chain->at[chain->n].address,
		      sizeof(chain->at[chain->n].address));
	chain->n++;
	return chain;
}

static char *object_principal(const struct call *outer)
{
	char *s = malloc(PRINCIPAL_BYTES_MAX + 1);

	if (s != NULL)
		snprintf(s, PRINCIPAL_BYTES_MAX + 1, "object:%.*s/%.*s/%.*s",
			 (int)outer->addr.tenant.n,
			 (const char *)outer->addr.tenant.p,
			 (int)outer->addr.env.n,
			 (const char *)outer->addr.env.p,
			 (int)outer->addr.cls.n,
			 (const char *)outer->addr.cls.p);
	return s;
}

static void nested_params(const struct nested *n, struct pack_w *w)
{
	pack_array(w, n->keyed ? 4 : 3);
	pack_cstr(w, n->address);
	pack_cstr(w, n->method);
	pack_raw(w, n->args.p, n->args.n);
	if (!n->keyed)
		return;
	pack_map(w, 1);
	pack_cstr(w, "idem");
	pack_bin(w, n->key, sizeof(n->key));
}

/* The nested call, ready to begin, or NULL with `why` said. */
static struct call *nested_make(struct core *core, struct call *outer,
				struct detail *why, enum rc *rc)
{
	uint32_t depth = outer->depth + 1;
	struct pack_w w;
	struct call *c;

	if (depth > CALL_DEPTH_MAX) {
		*rc = detail_set(why, RC_INVALID, "address",
				 "calls nest at most %u deep", CALL_DEPTH_MAX);
		return NULL;
	}
	c = call_take(core, depth);
	if (c == NULL) {
		*rc = detail_set(why, RC_OVERLOADED, NULL,
				 "too many calls of this depth");
		return NULL;
	}
	c->chain = chain_extend(outer);
	c->principal = object_principal(outer);
	pack_w_init(&w, FRAME_BYTES_MAX);
	nested_params(outer->ev.nested, &w);
	if (c->chain == NULL || c->principal == NULL || w.rc != RC_OK ||
	    !call_copy(core_calls(core), c, (struct pack_bytes){ w.p, w.n })) {
		pack_w_release(&w);
		call_free(c);
		*rc = detail_set(why, RC_OVERLOADED, NULL,
				 "no memory for a nested call");
		return NULL;
	}
	pack_w_release(&w);
	c->caller = outer->caller;
	c->caller.tenant = outer->addr.tenant;
	c->caller.env = outer->addr.env;
	c->caller.principal =
		(struct pack_bytes){ (const uint8_t *)c->principal,
				     strlen(c->principal) };
	c->ev.chain = c->chain;
	c->ev.root_stamp = c->chain->root_stamp;
	c->reply = nested_replied;
	c->arg = outer;
	return c;
}

void core_nested(struct core *core, struct event *ev)
{
	struct call *outer = CONTAINER_OF(ev, struct call, ev);
	struct detail why = { { 0 }, { 0 } };
	struct call *c;
	enum rc rc = RC_OK;

	CHECK_OBJ(outer, CALL_MAGIC);
	CHECK(outer->nested == NULL);
	c = nested_make(core, outer, &why, &rc);
	if (c == NULL) {
		space_called(bridge_space(outer->bridge), ev, rc,
			     (struct pack_bytes){ NULL, 0 }, &why);
		return;
	}
	outer->nested = c;
	call_begin(c, outer->ev.deadline_ns);
}

void core_nested_drop(struct core *core, struct event *ev)
{
	struct call *outer = CONTAINER_OF(ev, struct call, ev);
	struct call *c = outer->nested;

	(void)core;
	CHECK_OBJ(outer, CALL_MAGIC);
	if (c == NULL)
		return;
	outer->nested = NULL;
	c->reply = nested_forgotten;
	c->arg = NULL;
	call_cancel(c);
}

/* The table. */

enum rc call_table_new(struct core *core, uint32_t calls_max,
		       struct call_table **out)
{
	struct call_table *t = calloc(1, sizeof(*t));
	uint32_t share = calls_max / CALL_DEPTH_SHARE;
	uint32_t i;
	enum rc rc;

	if (t == NULL)
		return RC_NOMEM;
	if (share == 0)
		share = 1;
	rc = pool_init(&t->pool, sizeof(struct call),
		       calls_max + CALL_DEPTH_MAX);
	if (rc != RC_OK) {
		free(t);
		return rc;
	}
	t->core = core;
	t->env = core_env(core);
	t->max_at[0] = calls_max > CALL_DEPTH_MAX * share
			       ? calls_max - CALL_DEPTH_MAX * share
			       : 1;
	for (i = 1; i <= CALL_DEPTH_MAX; i++)
		t->max_at[i] = share;
	for (i = 0; i < WHEEL_SLOTS; i++)
		TAILQ_INIT(&t->wheel[i]);
	STAILQ_INIT(&t->ended);
	t->reply_task.cb = table_reply;
	t->reply_task.phase = ENV_PHASE_RELEASE;
	t->idle_task.cb = table_idle;
	t->idle_task.phase = ENV_PHASE_RELEASE;
	env_timer_init(&t->tick, t->env, wheel_tick);
	/* Request ids of two boots do not meet in one log. */
	env_random(t->env, &t->next_id, sizeof(t->next_id));
	t->next_id &= ~0xffffffffull;
	*out = t;
	return RC_OK;
}

void call_table_free(struct call_table *t)
{
	PRE(t->open == 0);
	env_timer_stop(&t->tick);
	pool_release(&t->pool);
	free(t);
}

void call_table_discard(struct call_table *t)
{
	struct call *c;
	uint32_t i;

	env_timer_stop(&t->tick);
	for (i = 0; i < WHEEL_SLOTS; i++)
		while ((c = TAILQ_FIRST(&t->wheel[i])) != NULL) {
			TAILQ_REMOVE(&t->wheel[i], c, wheel);
			call_memory_free(t, c);
		}
	/* Refused ones never came into the wheel. */
	while ((c = STAILQ_FIRST(&t->ended)) != NULL) {
		STAILQ_REMOVE_HEAD(&t->ended, ended);
		call_memory_free(t, c);
	}
	pool_discard(&t->pool);
	free(t);
}

uint32_t call_table_open(const struct call_table *t)
{
	return t->open;
}

void call_table_on_idle(struct call_table *t, void (*idle)(void *arg),
			void *arg)
{
	t->idle = idle;
	t->idle_arg = arg;
	if (t->open == 0)
		env_post(t->env, &t->idle_task);
}

void call_table_drain(struct call_table *t)
{
	t->draining = true;
}

void call_table_stats(const struct call_table *t, struct core_stats *out)
{
	*out = t->stats;
	out->calls_open = t->open;
	out->calls_bytes = t->bytes;
}
