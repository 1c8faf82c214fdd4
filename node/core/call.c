#include "node/core/call.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/base/pool.h"
#include "node/base/principal.h"
#include "node/base/sm.h"
#include "node/core/admission.h"
#include "node/core/directory.h"
#include "node/core/forward.h"
#include "node/core/internal.h"
#include "node/core/route.h"
#include "objects/directory_class.h"
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

/* How often a call is sent to an owner that turns out to be none. */
#define FORWARD_HOPS_MAX 4u

/* How long a change of the directory waits for the nodes to have it. */
#define CONFIRM_MAX_MS 2000u
/* How often held calls look whether what they wait for has come. */
#define HELD_LOOK_MS 10u
/* A node that refused as no owner, or to which there is no link, is asked again
 * after so long when we hear of no other. */
#define OWNER_AGAIN_MS 50u
/* How often it is looked which shards have no owner. */
#define OWNER_WATCH_MS 100u

/*
 *   PARSED ----> EXECUTING ----> ENDED ----> (replied and freed)
 *     | |         |    ^           ^ ^
 *     | |         v    |           | |
 *     | +------> FORWARDED --------+ |  another node executes it
 *     +------------------------------+  refused before it reached its object
 *
 * From EXECUTING to FORWARDED, and on from there: refused, and not done, by one
 * that was not, or is no longer, the owner. From all three, HELD: it waits for
 * this node's copy of the directory, or for an owner, and goes on from there.
 */
enum call_state {
	CALL_PARSED,
	CALL_EXECUTING,
	CALL_FORWARDED,
	CALL_HELD,
	CALL_ENDED,
};

static const struct sm_state call_states[] = {
	[CALL_PARSED] = { "parsed",
			  1u << CALL_EXECUTING | 1u << CALL_FORWARDED |
				  1u << CALL_HELD | 1u << CALL_ENDED,
			  false },
	[CALL_EXECUTING] = { "executing",
			     1u << CALL_FORWARDED | 1u << CALL_HELD |
				     1u << CALL_ENDED,
			     false },
	[CALL_FORWARDED] = { "forwarded",
			     1u << CALL_EXECUTING | 1u << CALL_FORWARDED |
				     1u << CALL_HELD | 1u << CALL_ENDED,
			     false },
	[CALL_HELD] = { "held",
			1u << CALL_EXECUTING | 1u << CALL_FORWARDED |
				1u << CALL_HELD | 1u << CALL_ENDED,
			false },
	[CALL_ENDED] = { "ended", 0, true },
};

/* What a held call waits with. */
enum call_hold {
	HOLD_DECISION, /* A newer copy may allow what ours does not. */
	HOLD_ANSWER,   /* Decided under a version that is not the newest. */
	HOLD_CONFIRM,  /* It changed the directory: until all nodes know. */
	HOLD_OWNER,    /* Its shard has none, or none that can be reached. */
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
	uint64_t began_ns;
	struct pack_bytes trace; /* W3C traceparent, {NULL, 0}: none. */
	call_reply reply;
	void *arg;
	uint32_t depth; /* 0: a client's. */
	bool meta;
	bool redirect;
	bool serving;  /* Came from another node: `served` counts, and it is
			* never sent on. */
	bool ran;      /* It was given to its object. */
	bool unwanted; /* Cancelled: not sent anywhere any more. */
	bool timed;    /* In the wheel. */
	bool node;     /* A node asks: the directory does not decide it. */
	bool admitted; /* It counts at `door`. */
	uint8_t door;  /* enum door */
	uint8_t hold;  /* enum call_hold, in CALL_HELD. */
	uint8_t hops;  /* Owners it was sent to. */
	uint32_t shard;
	struct forward forward;
	struct served served;
	uint64_t owner;      /* To be told with NOT_OWNER. */
	struct call *nested; /* The call that our event waits for. */
	struct chain *chain; /* Ours when depth > 0. */
	char *principal;     /* The same. */
	uint8_t *bytes;      /* The request. */
	size_t bytes_n;
	uint32_t params_at; /* In `bytes`; before it, with `serving`, names. */
	uint64_t pass;      /* Of the wheel, last looked at. */
	struct pack_bytes method; /* As it was called. */
	uint64_t version;         /* Of the directory that allowed it, */
	uint64_t changed;         /* and that it has made. */
	uint64_t confirm_ms;      /* Until when that is waited for. */
	uint64_t owner_ms;        /* Until when an owner is; 0: not yet. */
	uint64_t shun;            /* The node that is none, */
	uint64_t shun_ms;         /* as far as we know before this. */
	uint64_t held_bytes;
	uint64_t held_pass;
	TAILQ_ENTRY(call) held;
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
	struct admission admission;
	uint64_t bytes;
	uint64_t next_id;
	bool draining;
	bool over; /* Idle for good: there are no shards any more. */
	void (*idle)(void *arg);
	void *idle_arg;
	struct env_task idle_task;
	STAILQ_HEAD(, call) ended;
	struct env_task reply_task;
	struct env_timer tick;
	uint64_t pass;
	uint64_t tick_at; /* The wheel's next slot, in ticks. */
	bool ticking;     /* It is being gone through: its place stays. */
	struct core_stats stats;
	struct directory *directory; /* NULL: nobody has said there is one. */
	struct calls held;
	uint32_t awaiting; /* Of them, an owner. */
	uint64_t held_pass;
	struct env_timer look;
	struct env_timer watch;
	uint64_t without_ms[SHARDS_MAX]; /* Since when a shard has no owner; 0:
					  * it has, or had just now. */
	struct calls wheel[WHEEL_SLOTS];
	struct placements placements;
};

static void call_expire(struct call *c);

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

	c->timed = true;

	if (!t->tick.running && !t->ticking) {
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
		if (c->ev.deadline_ns <= now_ns)
			call_expire(c);
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
	t->ticking = true;
	while (t->tick_at <= now)
		wheel_expire(t, t->tick_at++, now_ns);
	t->ticking = false;
	if (t->open > 0)
		wheel_arm(t);
}

/* Slots. */

/* What a call is, before anything of it was read. */
struct kind {
	uint32_t depth;
	/* Nodes ask each other on, as long as there is somebody to answer: what
	 * is still in flight is decided from what they learn. */
	bool node;
	enum door door;
	bool alone; /* Nothing else is in flight on its connection. */
};

static struct call *call_slot(struct call_table *t, const struct kind *k)
{
	/* Nested calls of each depth have a share of their own: clients cannot
	 * take the slots that let their calls end. */
	if (t->open_at[k->depth] == t->max_at[k->depth])
		return NULL;
	return pool_take(&t->pool);
}

static struct call *call_take(struct core *core, const struct kind *k)
{
	struct call_table *t = core_calls(core);
	bool counts = k->depth == 0 && !k->node;
	uint32_t depth = k->depth;
	struct call *c;

	/* Nested ones come from other nodes, too, whose calls go on. */
	if (t->over)
		return NULL;
	if (t->draining && depth == 0 && (!k->node || core_is_closing(core)))
		return NULL;
	if (counts && !admission_enter(&t->admission, k->door, k->alone))
		return NULL;
	c = call_slot(t, k);
	if (c == NULL) {
		if (counts)
			admission_leave(&t->admission, k->door);
		return NULL;
	}
	c->magic = CALL_MAGIC;
	c->admitted = counts;
	c->door = (uint8_t)k->door;
	sm_init(&c->sm, call_states, ARRAY_LEN(call_states), CALL_PARSED);
	c->core = core;
	c->node = k->node;
	c->depth = depth;
	c->request_id = t->next_id++;
	c->shard = UINT32_MAX;
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
	t->over = true;
	idle(t->idle_arg);
}

static void call_memory_free(struct call_table *t, struct call *c)
{
	pack_w_release(&c->ev.result);
	pack_w_release(&c->ev.reply);
	if (c->bytes != c->inlined)
		free(c->bytes);
	t->bytes -= c->bytes_n + c->held_bytes;
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
	if (c->admitted)
		admission_leave(&t->admission, (enum door)c->door);
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
	uint64_t big_endian = htobe64(request_id);

	hex_encode((const uint8_t *)&big_endian, sizeof(big_endian), out);
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
	       F("why", a->why != NULL ? (const char *)a->why->text : ""));
}

static void call_tell(struct call *c, const struct answer *a)
{
	CHECK(rc_is_wire(a->rc));
	core_calls(c->core)->stats.by_rc[a->rc]++;
	call_log(c, a);
	c->reply(c->arg, a);
}

static void call_send(struct call *c)
{
	struct event *ev = &c->ev;
	struct answer a = { .rc = ev->rc,
			    .outcome = ev->outcome,
			    .why = &ev->why,
			    .repeatable =
				    ev->method != NULL &&
				    (ev->method->flags & METHOD_WRITES) == 0,
			    .retry_after_ms = ev->retry_after_ms,
			    .request_id = c->request_id,
			    .owner = c->owner,
			    .shard = c->shard };
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
	call_tell(c, &a);
	pack_w_release(&w);
}

/* What it took tells how busy this node is, and the owner when it was sent
 * there; what an event waited for of its own does not. */
static void call_took(struct call_table *t, const struct call *c)
{
	uint64_t now_ns = env_now_ns(t->env);
	struct log_stats log;

	if ((c->ran || c->hops > 0) && c->ev.resume == 0)
		admission_took(&t->admission, now_ns - c->began_ns);
	if (!admission_due(&t->admission, now_ns))
		return;
	log_stats(core_log(c->core), &log);
	admission_turn(&t->admission, now_ns, log.syncs, log.sync_ns_sum);
}

/* Out of the wheel, answered and gone. `a` NULL: as its event says. */
static void call_finish(struct call *c, const struct answer *a)
{
	struct call_table *t = core_calls(c->core);

	if (c->admitted)
		call_took(t, c);
	if (c->timed)
		wheel_remove(t, c);
	if (a != NULL)
		call_tell(c, a);
	else
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
		call_finish(c, NULL);
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

static bool call_sent_on(struct call *c, uint64_t from, uint64_t named);
static void call_leave(struct call *c);
static uint64_t call_owner(const struct call *c);

static void event_done(struct event *ev)
{
	struct call *c = CONTAINER_OF(ev, struct call, ev);

	CHECK_OBJ(c, CALL_MAGIC);
	if (ev->rc == RC_NOT_OWNER && ev->outcome == OUTCOME_REFUSED) {
		if (call_sent_on(c, 0, 0))
			return;
		c->owner = call_owner(c);
	}
	call_leave(c);
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

static enum rc params_read(struct call *c, uint64_t *deadline_ms)
{
	struct pack_r r =
		pack_reader(c->bytes + c->params_at, c->bytes_n - c->params_at);
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
	if (pack_get_bytes(&r, &c->method) != RC_OK)
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

static enum rc call_bind(struct call *c)
{
	const struct identity *id = core_identity(c->core);
	struct event *ev = &c->ev;
	enum rc rc;

	rc = bind_resolve(core_bind(c->core), c->caller.principal, &c->addr,
			  c->method, &ev->method, &ev->why);
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
		placements_id(&core_calls(c->core)->placements, id->hash_key,
			      c->addr.tenant, c->addr.env, c->addr.cls,
			      c->addr.name, &c->addr.oid);
	ev->oid = c->addr.oid;
	ev->tenant = c->addr.tenant;
	ev->env = c->addr.env;
	ev->name = c->addr.name;
	ev->principal = c->caller.principal;
	/* An id says nothing of the names it was made of: by it nobody makes
	 * an object where another tenant's or class's may stand one day, and
	 * one that is absent answers as one that is not the caller's. */
	if (!c->addr.by_id)
		ev->flags |= EVENT_CREATE;
	c->shard = route_shard(id, &c->addr);
	c->bridge = core_bridge(c->core, c->shard);
	return RC_OK;
}

/* What is left of its deadline. */
static uint32_t call_left_ms(const struct call *c)
{
	uint64_t now_ns = env_now_ns(core_env(c->core));

	if (c->ev.deadline_ns <= now_ns)
		return 0;
	return (uint32_t)((c->ev.deadline_ns - now_ns) / 1000000u);
}

static void call_answered(struct forward *f, const struct answer *a);

static enum rc call_forward(struct call *c, uint64_t node_id)
{
	const struct forward_request r = {
		.principal = c->caller.principal,
		.tenant = c->caller.tenant,
		.env = c->caller.env,
		.params = { c->bytes + c->params_at,
			    c->bytes_n - c->params_at },
		.deadline_ms = call_left_ms(c),
		.depth = c->depth,
		.chain = c->chain,
		.request_id = c->request_id,
	};
	enum rc rc;

	if (r.deadline_ms == 0)
		return RC_DEADLINE;
	if (c->hops == FORWARD_HOPS_MAX)
		return detail_set(&c->ev.why, RC_NO_QUORUM, NULL,
				  "the shard's owner is changing");
	c->hops++;
	c->forward.answered = call_answered;
	rc = forward_send(core_forwards(c->core), &c->forward, node_id, &r);
	if (rc == RC_OK)
		sm_move(&c->sm, CALL_FORWARDED);
	else if (rc == RC_NO_QUORUM)
		detail_set(&c->ev.why, rc, NULL,
			   "the shard's owner cannot be reached");
	else
		detail_set(&c->ev.why, rc, NULL,
			   "too many calls are on their way to the owner");
	return rc;
}

static void call_execute(struct call *c)
{
	c->ran = true;
	sm_move(&c->sm, CALL_EXECUTING);
	event_deliver(bridge_space(c->bridge), &c->ev);
}

static void call_hold(struct call *c, enum call_hold hold);

/* How long it may wait: half of its deadline is left to whoever asked, and who
 * wants to be told, rather than served, can ask elsewhere. */
static uint32_t owner_wait_ms(const struct call *c)
{
	uint32_t ms =
		c->serving || c->redirect ? OWNER_WAIT_TOLD_MS : OWNER_WAIT_MS;
	uint32_t half = call_left_ms(c) / 2;

	return half < ms ? half : ms;
}

/* A shard that has had no owner for as long as that gets none now: who is cut
 * off says so at once. */
static uint64_t owner_until_ms(const struct call *c, uint64_t now_ms)
{
	uint64_t since = core_calls(c->core)->without_ms[c->shard];
	uint64_t until = now_ms + owner_wait_ms(c);

	if (since != 0 && since + OWNER_WAIT_MS < until)
		until = since + OWNER_WAIT_MS;
	return until;
}

/* Elections and hand-overs end soon: who waits for that is answered sooner than
 * who has to come again. RC_OK: it waits. `shun`: the node that is no owner or
 * cannot be reached, or 0. Nothing of the call has happened anywhere. */
static enum rc call_await(struct call *c, uint64_t shun)
{
	struct call_table *t = core_calls(c->core);
	uint64_t now_ms = env_now_ms(t->env);

	if (c->owner_ms == 0)
		c->owner_ms = owner_until_ms(c, now_ms);
	if (now_ms >= c->owner_ms || c->unwanted || t->draining ||
	    t->awaiting == OWNER_WAITS_MAX || MUTANT(owner_not_awaited))
		return RC_NO_QUORUM;
	/* It takes nothing of the node meanwhile, and tells nothing of how
	 * busy it is. */
	if (c->admitted)
		admission_leave(&t->admission, (enum door)c->door);
	c->admitted = false;
	c->shun = shun;
	c->shun_ms = now_ms + OWNER_AGAIN_MS;
	c->hops = 0;
	t->awaiting++;
	call_hold(c, HOLD_OWNER);
	if (!t->look.running)
		env_timer_start(&t->look, now_ms + HELD_LOOK_MS);
	return RC_OK;
}

/* Not yet: it leads and does not execute yet, or no more. */
static bool shard_is_ours(const struct call *c)
{
	return shard_leader(bridge_shard(c->bridge)) ==
	       bridge_node_id(c->bridge);
}

/* A member reads the directory. */
static bool call_watches(const struct call *c)
{
	return c->node && c->ev.cls == &class_directory &&
	       (c->ev.method->flags & METHOD_WRITES) == 0;
}

/* To one that this node, no owner, can serve from its own copy. */
static bool call_told(struct call *c)
{
	struct call_table *t = core_calls(c->core);
	struct event *ev = &c->ev;

	if (!c->serving || !call_watches(c) || t->directory == NULL)
		return false;
	if (!directory_tell(t->directory, &ev->result)) {
		pack_w_reset(&ev->result);
		return false;
	}
	sm_move(&c->sm, CALL_ENDED);
	ev->rc = RC_OK;
	ev->outcome = OUTCOME_DONE;
	STAILQ_INSERT_TAIL(&t->ended, c, ended);
	env_post(t->env, &t->reply_task);
	return true;
}

/* No way to the directory's owner is no reason to stop serving: another member
 * may have one, and what it knows is as good as it is old. */
static bool call_asks_around(struct call *c)
{
	const struct members *m = core_members(c->core);
	size_t n = members_count(m);
	size_t i;

	if (c->serving || !call_watches(c))
		return false;
	for (i = 0; i < n; i++) {
		uint64_t id = members_at(m, (c->request_id + i) % n)->id;

		c->hops = 0;
		if (id != members_self(m) && call_forward(c, id) == RC_OK)
			return true;
	}
	return false;
}

/* RC_OK: it is on its way, here or there, or waits until it can be. */
static enum rc call_route(struct call *c)
{
	struct route r = route_find(c->bridge);
	enum rc rc;

	switch (r.to) {
	case ROUTE_HERE:
		call_execute(c);
		return RC_OK;
	case ROUTE_PEER:
		c->owner = r.node_id;
		/* The entry knows as much, and it alone sends on: two nodes
		 * that take each other for the owner would play ball. */
		if (c->serving && MUTANT(forwarded_again))
			return call_forward(c, r.node_id);
		if (call_told(c))
			return RC_OK;
		if (c->serving || c->redirect)
			return RC_NOT_OWNER;
		rc = call_forward(c, r.node_id);
		if (rc == RC_NO_QUORUM &&
		    (call_asks_around(c) || call_await(c, r.node_id) == RC_OK))
			return RC_OK;
		return rc;
	case ROUTE_NOBODY:
		break;
	}
	if (call_told(c) || call_asks_around(c))
		return RC_OK;
	/* The entry may know of one. */
	if (c->serving && !shard_is_ours(c))
		return RC_NOT_OWNER;
	if (call_await(c, 0) == RC_OK)
		return RC_OK;
	if (c->serving)
		return RC_NOT_OWNER;
	return detail_set(&c->ev.why, RC_NO_QUORUM, NULL,
			  "the shard has no owner at the moment");
}

/*
 * `from` (0: this node) refused the call because it does not own the shard,
 * and named `named` (0: nobody). True: somebody else has it now, or this node,
 * or it waits for one.
 */
static bool call_sent_on(struct call *c, uint64_t from, uint64_t named)
{
	const uint64_t self = core_identity(c->core)->node_id;
	struct route r;
	enum rc rc;

	if (c->serving || c->redirect || c->unwanted)
		return false;
	r = route_find(c->bridge);
	if (r.to == ROUTE_HERE && !c->ran) {
		call_execute(c);
		return true;
	}
	/* We know no better than that it was `from`. */
	if (r.to != ROUTE_PEER || r.node_id == from)
		r.node_id = named;
	if (r.node_id == 0 || r.node_id == from || r.node_id == self)
		return call_await(c, from) == RC_OK;
	rc = call_forward(c, r.node_id);
	return rc == RC_OK ||
	       (rc == RC_NO_QUORUM && call_await(c, r.node_id) == RC_OK);
}

/* The other node that owns its shard, 0: nobody, as far as known. */
static uint64_t call_owner(const struct call *c)
{
	struct route r = route_find(c->bridge);

	return r.to == ROUTE_PEER ? r.node_id : 0;
}

/* It leaves nothing behind, whether it happens or not. */
static bool call_only_reads(const struct call *c)
{
	return (c->ev.method->flags & METHOD_WRITES) == 0 &&
	       (c->ev.flags & EVENT_KEYED) == 0;
}

/* The answer of another node is that of the call. */
static void call_answered(struct forward *f, const struct answer *a)
{
	struct call *c = CONTAINER_OF(f, struct call, forward);
	struct answer out = *a;

	CHECK_OBJ(c, CALL_MAGIC);
	if (a->rc == RC_NOT_OWNER && a->outcome == OUTCOME_REFUSED) {
		if (call_sent_on(c, f->node_id, a->owner))
			return;
		/* It asked to be forwarded: whom to ask instead is not its
		 * business. */
		out.rc = RC_NO_QUORUM;
		out.why = &c->ev.why;
		out.owner = 0;
		out.retry_after_ms = RETRY_AFTER_MS;
		detail_set(&c->ev.why, RC_NO_QUORUM, NULL,
			   "the shard has no owner at the moment");
	}
	/* Not sent again from here; whoever asked may. */
	if (a->rc == RC_UNKNOWN_OUTCOME && call_only_reads(c)) {
		out.rc = RC_NO_QUORUM;
		out.outcome = OUTCOME_REFUSED;
		out.retry_after_ms = RETRY_AFTER_MS;
	}
	out.request_id = c->request_id;
	out.shard = c->shard;
	sm_move(&c->sm, CALL_ENDED);
	call_finish(c, &out);
}

/* Its owner has not answered: what became of it only the owner knows. */
static void call_give_up(struct call *c)
{
	struct answer a = { .rc = RC_UNKNOWN_OUTCOME,
			    .outcome = OUTCOME_UNKNOWN,
			    .why = &c->ev.why,
			    .retry_after_ms = -1,
			    .request_id = c->request_id,
			    .shard = c->shard };

	forward_cancel(core_forwards(c->core), &c->forward);
	if (call_only_reads(c)) {
		a.rc = RC_DEADLINE;
		a.outcome = OUTCOME_REFUSED;
	}
	detail_set(&c->ev.why, a.rc, NULL,
		   "the deadline passed before the owner answered");
	sm_move(&c->sm, CALL_ENDED);
	call_finish(c, &a);
}

/* Authority: what is decided from this node's copy of the directory, and what
 * waits for a newer one (DESIGN D10). */

static struct directory *call_directory(const struct call *c)
{
	return c->node ? NULL : core_calls(c->core)->directory;
}

enum rc call_may_decide(struct core *core, struct detail *why)
{
	const struct directory *d = core_calls(core)->directory;

	if (d == NULL || directory_good(d))
		return RC_OK;
	return detail_set(why, RC_NO_QUORUM, NULL,
			  "this node has not heard from the directory for too "
			  "long");
}

/* A peer knows a newer directory, or ours may be too old to go by. */
static bool call_outdated(const struct call *c)
{
	struct directory *d = call_directory(c);

	return d != NULL && directory_outdated(d);
}

/* Everything that a peer has told by now is in the copy that allowed it. */
static bool call_current(const struct call *c)
{
	struct directory *d = call_directory(c);

	return d == NULL || MUTANT(directory_version_old) ||
	       (c->version == directory_version(d) && !directory_outdated(d));
}

/* `c` has ended with something that its caller may not have. */
static void call_withhold(struct call *c, enum rc rc, const struct detail *why)
{
	struct event *ev = &c->ev;
	bool nothing = ev->outcome == OUTCOME_REFUSED ||
		       (ev->method->flags & METHOD_WRITES) == 0;

	ev->why = *why;
	ev->rc = nothing ? rc : RC_UNKNOWN_OUTCOME;
	ev->outcome = nothing ? OUTCOME_REFUSED : OUTCOME_UNKNOWN;
	ev->retry_after_ms = -1;
	if (ev->rc == RC_NO_QUORUM)
		ev->retry_after_ms = RETRY_AFTER_MS;
}

/* The copy is newer than the one that allowed it: does it still? */
static void call_recheck(struct call *c)
{
	struct detail why = { { 0 }, { 0 } };
	const struct method *m;
	enum rc rc = bind_resolve(core_bind(c->core), c->caller.principal,
				  &c->addr, c->method, &m, &why);

	if (rc != RC_OK && !MUTANT(recheck_skipped))
		call_withhold(c, rc, &why);
}

static void call_hold(struct call *c, enum call_hold hold)
{
	struct call_table *t = core_calls(c->core);

	sm_move(&c->sm, CALL_HELD);
	c->hold = (uint8_t)hold;
	c->held_bytes = c->ev.result.n;
	t->bytes += c->held_bytes;
	TAILQ_INSERT_TAIL(&t->held, c, held);
	if (!c->timed)
		wheel_add(t, c);
	if (hold != HOLD_OWNER)
		directory_look(t->directory);
}

static void call_end_now(struct call *c)
{
	sm_move(&c->sm, CALL_ENDED);
	call_finish(c, NULL);
}

/* It changed the directory: that is over when every node has it, or has had
 * the time to. */
static bool call_changed(struct call *c)
{
	struct event *ev = &c->ev;
	struct pack_r r = pack_reader(ev->result.p, ev->result.n);
	uint32_t pairs;

	if (call_directory(c) == NULL || ev->rc != RC_OK ||
	    ev->cls != &class_directory ||
	    (ev->method->flags & METHOD_WRITES) == 0)
		return false;
	CHECK(pack_get_map(&r, &pairs) == RC_OK);
	CHECK(pack_skip(&r, NULL) == RC_OK); /* `version`, its first key. */
	CHECK(pack_get_u64(&r, &c->changed) == RC_OK);
	return true;
}

/* {version, changed} becomes {version, changed, confirmed, missing}. */
static void call_confirmed(struct call *c)
{
	struct event *ev = &c->ev;
	struct pack_r r = pack_reader(ev->result.p, ev->result.n);
	uint32_t pairs;
	struct pack_w w;

	pack_w_init(&w, RESULT_BYTES_MAX);
	CHECK(pack_get_map(&r, &pairs) == RC_OK);
	pack_map(&w, pairs + 2);
	pack_raw(&w, r.at, (size_t)(r.end - r.at));
	directory_confirm_write(call_directory(c), c->changed, &w);
	pack_w_release(&ev->result);
	ev->result = w;
}

static bool call_is_confirmed(const struct call *c)
{
	return directory_confirmed(call_directory(c), c->changed) ||
	       env_now_ms(core_env(c->core)) >= c->confirm_ms;
}

static void call_confirm(struct call *c)
{
	struct call_table *t = core_calls(c->core);
	uint64_t now_ms = env_now_ms(t->env);

	c->confirm_ms = now_ms + CONFIRM_MAX_MS;
	call_hold(c, HOLD_CONFIRM);
	if (!t->look.running)
		env_timer_start(&t->look, now_ms + HELD_LOOK_MS);
}

/* Its event has ended: may the answer leave? */
static void call_leave(struct call *c)
{
	if (!call_current(c)) {
		if (call_outdated(c)) {
			call_hold(c, HOLD_ANSWER);
			return;
		}
		call_recheck(c);
	}
	if (call_changed(c))
		call_confirm(c);
	else
		call_end_now(c);
}

static void held_take(struct call_table *t, struct call *c)
{
	TAILQ_REMOVE(&t->held, c, held);
	t->bytes -= c->held_bytes;
	c->held_bytes = 0;
	t->awaiting -= c->hold == HOLD_OWNER;
}

static void call_decide(struct call *c);

static bool owner_is_awaited(const struct call *c)
{
	uint64_t now_ms = env_now_ms(core_env(c->core));
	struct route r = route_find(c->bridge);

	if (now_ms >= c->owner_ms || core_calls(c->core)->draining)
		return false;
	if (r.to == ROUTE_NOBODY)
		return !c->serving || shard_is_ours(c);
	return r.to == ROUTE_PEER && r.node_id == c->shun &&
	       now_ms < c->shun_ms;
}

/* There is an owner, or it has waited long enough: then it ends here. What was
 * decided may be so no longer. */
static void call_awaited(struct call *c)
{
	if (!c->ran) {
		c->ev.why = (struct detail){ { 0 }, { 0 } };
		call_decide(c);
	} else if (!call_sent_on(c, 0, 0)) {
		c->owner = call_owner(c);
		call_leave(c);
	}
}

static bool held_waits(const struct call *c)
{
	switch ((enum call_hold)c->hold) {
	case HOLD_DECISION:
	case HOLD_ANSWER:
		break;
	case HOLD_CONFIRM:
		return !call_is_confirmed(c);
	case HOLD_OWNER:
		return owner_is_awaited(c);
	}
	return call_outdated(c);
}

/* The copy is another, or time has passed. */
static void held_look(struct call_table *t, struct call *c)
{
	if (held_waits(c))
		return;
	held_take(t, c);
	switch ((enum call_hold)c->hold) {
	case HOLD_DECISION:
		c->ev.why = (struct detail){ { 0 }, { 0 } };
		call_decide(c);
		break;
	case HOLD_ANSWER:
		call_leave(c);
		break;
	case HOLD_CONFIRM:
		call_confirmed(c);
		call_end_now(c);
		break;
	case HOLD_OWNER:
		call_awaited(c);
		break;
	}
}

void call_table_renewed(struct call_table *t)
{
	uint64_t pass = ++t->held_pass;
	struct call *c;

	/* Ending one may end others: always take the front, and put it back
	 * behind those not looked at yet. */
	while ((c = TAILQ_FIRST(&t->held)) != NULL && c->held_pass != pass) {
		CHECK_OBJ(c, CALL_MAGIC);
		c->held_pass = pass;
		TAILQ_REMOVE(&t->held, c, held);
		TAILQ_INSERT_TAIL(&t->held, c, held);
		held_look(t, c);
	}
}

void call_table_directory(struct call_table *t, struct directory *d)
{
	t->directory = d;
}

static bool shard_is_reached(struct call_table *t, uint32_t shard)
{
	struct route r = route_find(core_bridge(t->core, shard));

	return r.to == ROUTE_HERE ||
	       (r.to == ROUTE_PEER &&
		forward_reaches(core_forwards(t->core), r.node_id));
}

static void watch_due(struct env_timer *timer)
{
	struct call_table *t = CONTAINER_OF(timer, struct call_table, watch);
	uint64_t now_ms = env_now_ms(t->env);
	uint32_t i;

	for (i = 0; i < core_shards(t->core); i++)
		if (shard_is_reached(t, i))
			t->without_ms[i] = 0;
		else if (t->without_ms[i] == 0)
			t->without_ms[i] = now_ms;
	env_timer_start(timer, now_ms + OWNER_WATCH_MS);
}

void call_table_watch(struct call_table *t)
{
	env_timer_start(&t->watch, env_now_ms(t->env) + OWNER_WATCH_MS);
}

void call_table_look(struct call_table *t)
{
	if (t->awaiting > 0)
		env_timer_start(&t->look, env_now_ms(t->env));
}

static void look_due(struct env_timer *timer)
{
	struct call_table *t = CONTAINER_OF(timer, struct call_table, look);
	const struct call *c;
	bool any = false;

	call_table_renewed(t);
	TAILQ_FOREACH(c, &t->held, held)
	any = any || c->hold == HOLD_CONFIRM || c->hold == HOLD_OWNER;
	if (any)
		env_timer_start(timer, env_now_ms(t->env) + HELD_LOOK_MS);
}

/* It waits no longer. */
static void held_give_up(struct call *c, enum rc rc)
{
	static const struct detail unknown = {
		.text = "this node has not heard what it may answer"
	};

	held_take(core_calls(c->core), c);
	switch ((enum call_hold)c->hold) {
	case HOLD_OWNER:
		if (c->ran)
			break;
		/* fallthrough */
	case HOLD_DECISION:
		c->ev.why = (struct detail){ { 0 }, { 0 } };
		call_end(c, rc);
		return;
	case HOLD_ANSWER:
		call_withhold(c, RC_NO_QUORUM, &unknown);
		break;
	case HOLD_CONFIRM:
		call_confirmed(c);
		break;
	}
	call_end_now(c);
}

static void call_expire(struct call *c)
{
	switch ((enum call_state)c->sm.now) {
	case CALL_EXECUTING:
		event_cancel(&c->ev, RC_DEADLINE);
		break;
	case CALL_FORWARDED:
		call_give_up(c);
		break;
	case CALL_HELD:
		held_give_up(c, RC_DEADLINE);
		break;
	case CALL_PARSED:
	case CALL_ENDED:
		break;
	}
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

static enum rc call_allowed(struct call *c)
{
	struct directory *d = call_directory(c);
	enum rc rc;

	if (d != NULL) {
		rc = call_may_decide(c->core, &c->ev.why);
		if (rc != RC_OK)
			return rc;
		c->version = directory_version(d);
	}
	rc = call_bind(c);
	/* A change that nobody looks at is none. */
	if (rc == RC_OK && d == NULL && !c->node &&
	    c->ev.cls == &class_directory)
		return detail_set(&c->ev.why, RC_UNSUPPORTED, "address",
				  "this node's grants are those of its "
				  "configuration");
	return rc;
}

/* May it, and where is it to be executed? */
static void call_decide(struct call *c)
{
	enum rc rc = call_allowed(c);

	if ((rc == RC_NOT_FOUND || rc == RC_DENIED) && call_outdated(c)) {
		call_hold(c, HOLD_DECISION);
		return;
	}
	if (rc == RC_OK && !c->timed)
		wheel_add(core_calls(c->core), c);
	if (rc == RC_OK)
		rc = call_route(c);
	if (rc != RC_OK)
		call_end(c, rc);
}

/* Everything between a copied request and its object. */
static void call_begin(struct call *c, uint64_t deadline_ns)
{
	struct event *ev = &c->ev;
	uint64_t now_ns = env_now_ns(core_env(c->core));
	uint64_t deadline_ms;
	enum rc rc = params_read(c, &deadline_ms);

	c->began_ns = now_ns;
	if (rc == RC_OK && c->chain != NULL && !c->serving)
		nested_chain_mark(c);
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
	call_decide(c);
}

struct call *call_start(struct core *core, const struct caller *caller,
			struct pack_bytes params, call_reply reply, void *arg)
{
	const struct kind kind = { .node = principal_is_node(caller->principal),
				   .door = DOOR_CLIENTS,
				   .alone = caller->alone };
	struct call *c = call_take(core, &kind);

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

static void served_reply(void *arg, const struct answer *a)
{
	struct served *sv = arg;

	sv->answered(sv, a);
}

static struct chain *chain_copy(const struct chain *chain)
{
	struct chain *copy = malloc(sizeof(*copy));

	if (copy != NULL)
		*copy = *chain;
	return copy;
}

/* Names and params are one piece, and are kept as one. */
static bool served_copy(struct call *c, const struct call_request *r)
{
	size_t names_n = r->principal.n + r->tenant.n + r->env.n;
	const struct pack_bytes whole = { r->principal.p,
					  names_n + r->params.n };

	PRE(r->params.p == r->principal.p + names_n);
	if (!call_copy(core_calls(c->core), c, whole))
		return false;
	c->caller.principal = (struct pack_bytes){ c->bytes, r->principal.n };
	c->caller.tenant =
		(struct pack_bytes){ c->bytes + r->principal.n, r->tenant.n };
	c->caller.env = (struct pack_bytes){ c->caller.tenant.p + r->tenant.n,
					     r->env.n };
	c->params_at = (uint32_t)names_n;
	if (r->chain == NULL)
		return true;
	c->chain = chain_copy(r->chain);
	if (c->chain == NULL)
		return false;
	c->ev.chain = c->chain;
	c->ev.root_stamp = c->chain->root_stamp;
	return true;
}

struct served *call_serve(struct core *core, const struct call_request *r,
			  void (*answered)(struct served *sv,
					   const struct answer *a))
{
	const struct kind kind = { .depth = r->depth,
				   .node = principal_is_node(r->principal),
				   .door = DOOR_NODES };
	struct call *c = call_take(core, &kind);

	if (c == NULL)
		return NULL;
	if (!served_copy(c, r)) {
		call_free(c);
		return NULL;
	}
	c->serving = true;
	c->request_id = r->request_id;
	c->served.answered = answered;
	c->reply = served_reply;
	c->arg = &c->served;
	call_begin(c, env_now_ns(core_env(core)) + r->deadline_ms * 1000000ull);
	return &c->served;
}

struct call *served_call(struct served *sv)
{
	struct call *c = CONTAINER_OF(sv, struct call, served);

	CHECK_OBJ(c, CALL_MAGIC);
	return c;
}

void call_cancel(struct call *c)
{
	CHECK_OBJ(c, CALL_MAGIC);
	c->unwanted = true;
	switch ((enum call_state)c->sm.now) {
	case CALL_EXECUTING:
		event_cancel(&c->ev, RC_CANCELLED);
		break;
	case CALL_FORWARDED:
		forward_recall(core_forwards(c->core), &c->forward);
		break;
	case CALL_HELD:
		held_give_up(c, RC_CANCELLED);
		break;
	case CALL_PARSED:
	case CALL_ENDED:
		break;
	}
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
	const struct kind kind = { .depth = outer->depth + 1 };
	struct pack_w w;
	struct call *c;

	if (kind.depth > CALL_DEPTH_MAX) {
		*rc = detail_set(why, RC_INVALID, "address",
				 "calls nest at most %u deep", CALL_DEPTH_MAX);
		return NULL;
	}
	c = call_take(core, &kind);
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
	admission_init(&t->admission, t->max_at[0], env_now_ns(t->env));
	for (i = 0; i < WHEEL_SLOTS; i++)
		TAILQ_INIT(&t->wheel[i]);
	STAILQ_INIT(&t->ended);
	TAILQ_INIT(&t->held);
	t->reply_task.cb = table_reply;
	t->reply_task.phase = ENV_PHASE_RELEASE;
	t->idle_task.cb = table_idle;
	t->idle_task.phase = ENV_PHASE_RELEASE;
	env_timer_init(&t->tick, t->env, wheel_tick);
	env_timer_init(&t->look, t->env, look_due);
	env_timer_init(&t->watch, t->env, watch_due);
	/* Request ids of two boots do not meet in one log. */
	env_random(t->env, &t->next_id, sizeof(t->next_id));
	t->next_id &= ~0xffffffffull;
	*out = t;
	return RC_OK;
}

static void table_silence(struct call_table *t)
{
	env_timer_stop(&t->tick);
	env_timer_stop(&t->look);
	env_timer_stop(&t->watch);
	if (t->directory != NULL)
		directory_detach(t->directory);
}

void call_table_free(struct call_table *t)
{
	PRE(t->open == 0);
	table_silence(t);
	pool_release(&t->pool);
	free(t);
}

void call_table_discard(struct call_table *t)
{
	struct call *c;
	uint32_t i;

	table_silence(t);
	for (i = 0; i < WHEEL_SLOTS; i++)
		while ((c = TAILQ_FIRST(&t->wheel[i])) != NULL) {
			TAILQ_REMOVE(&t->wheel[i], c, wheel);
			call_memory_free(t, c);
		}
	/* Most of what was refused never came into the wheel. */
	while ((c = STAILQ_FIRST(&t->ended)) != NULL) {
		STAILQ_REMOVE_HEAD(&t->ended, ended);
		if (!c->timed)
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
	env_timer_stop(&t->watch); /* The shards go. */
}

void call_table_stats(const struct call_table *t, struct core_stats *out)
{
	*out = t->stats;
	out->calls_open = t->open;
	out->calls_limit = t->admission.limit;
	out->calls_refused = t->admission.refused[DOOR_CLIENTS];
	out->served_refused = t->admission.refused[DOOR_NODES];
	out->calls_bytes = t->bytes;
}
