/*
 * A call lives in a slot from session_start() until its callback.
 *
 *   start --> WAITING --sent--> SENT --answered--> (callback, free)
 *               ^  |             |  \
 *               |  |             |   refused or unknown, to be asked again
 *               |  |             v                  |
 *               |  |      link lost, may be sent    v
 *               |  |      again: WAITING          PAUSED
 *               |  |                                |
 *               +--|------------- due --------------+
 *               |  |   (at once: refused by a node that names the owner)
 *                  v
 *                ENDING: its end is known and waits for the next tick
 *
 * Slots are found by the id of a response (id modulo the number of slots); each
 * time a call is sent it gets another id, so a late answer finds nobody. What
 * has a time (a deadline, the end of a pause, an end to be told) is in one
 * heap. The bytes of each link are counted from its opening: a call whose first
 * byte lies behind what the transport took was never sent.
 */
#include "client/session.h"

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "client/check.h"
#include "client/proto/method.h"
#include "client/routes.h"

#define NS_PER_MS            1000000u
#define HEAP_NONE            UINT32_MAX
#define LINK_IN_BYTES        65536u
#define LINK_IN_BYTES_MIN    4096u
#define LINK_KEEP_BYTES      (1u << 20)
#define CALL_KEEP_BYTES      4096u
#define CONNECT_PAUSE_MS     20u
#define CONNECT_PAUSE_MAX_MS 1000u
#define RETRY_PAUSE_MS       10u
#define RETRY_PAUSE_MAX_MS   1000u
#define MOVE_PAUSE_MAX_MS    160u /* An election takes a few of these. */
/* Of ten calls that begin one may be repeated because a node had no room for
 * it, and a hundred more: what is sent again in a flood feeds it. */
#define PATIENCE_MAX  1000u
#define PATIENCE_COST 10u
#define HOPS_MAX      2u /* From refusal to refusal without a pause. */
#define PROBE_EVERY   16u
#define LATE_MS       250u

_Static_assert(SESSION_LINKS_MAX <= ROUTES_NODES_MAX, "a link is a node");

enum call_state {
	CALL_FREE,
	CALL_WAITING,
	CALL_SENT,
	CALL_PAUSED,
	CALL_ENDING,
};

/* The allowed moves: bit i of row j, from j to i. */
static const uint8_t call_moves[] = {
	[CALL_FREE] = 1u << CALL_WAITING,
	[CALL_WAITING] = 1u << CALL_SENT | 1u << CALL_ENDING | 1u << CALL_FREE,
	[CALL_SENT] = 1u << CALL_WAITING | 1u << CALL_PAUSED |
		      1u << CALL_ENDING | 1u << CALL_FREE,
	[CALL_PAUSED] =
		1u << CALL_WAITING | 1u << CALL_ENDING | 1u << CALL_FREE,
	[CALL_ENDING] = 1u << CALL_FREE,
};

struct call {
	enum call_state state;
	uint32_t serial;
	uint32_t turn;       /* Of the ids of this slot. */
	uint32_t id;         /* SENT: of this try. */
	uint32_t link;       /* SENT: where. */
	uint32_t shun;       /* A link that does not own the object, plus 1. */
	uint32_t hops;       /* From owner to owner since the last pause. */
	uint64_t seq;        /* In the order they were started. */
	uint64_t hash;       /* Of the address; routes.h. */
	struct route *route; /* SENT: it is counted there; NULL: nowhere. */
	uint64_t from;   /* SENT: where its frame begins among the link's. */
	uint64_t due_ns; /* When something happens without an answer. */
	uint64_t deadline_ns;
	uint32_t heap_at;
	uint32_t tries;
	enum rc last;     /* Of the try before; RC_OK: none, or a lost link. */
	enum rc end;      /* ENDING */
	const char *text; /* ENDING */
	bool is_call;
	bool keyed; /* May be sent again whatever became of it. */
	bool once;
	bool asked;    /* SENT: the node refuses when it is not the owner. */
	bool redirect; /* Its caller does not want it forwarded. */
	bool cancelled;
	/* A try before this one may have happened: over this link, plus 1, sent
	 * then. 0: none may. */
	uint32_t via;
	uint64_t via_ns;
	uint64_t sent_ns; /* SENT: when. */
	uint64_t keep_ns; /* So long its key is remembered, less a share. */
	uint32_t options; /* Pairs in `body` from `options_at` on. */
	size_t options_at;
	struct pack_w body; /* is_call: address, method, args, options; else
			     * params. */
	char rpc[FRAME_METHOD_BYTES_MAX];
	size_t rpc_bytes;
	session_cb cb;
	void *arg;
	TAILQ_ENTRY(call) entry; /* WAITING: s->waiting; SENT: link->sent. */
};

TAILQ_HEAD(call_list, call);

struct link {
	char rpc[SESSION_RPC_BYTES_MAX];
	char node[SESSION_NODE_BYTES_MAX + 1]; /* "": not known yet. */
	char id[24]; /* Of the node, in digits; "": not known yet. */
	char cluster[40];
	bool learned; /* From hello. */
	bool open;
	bool opening; /* The transport is at it. */
	bool greeted;
	bool pinged;         /* Since it was heard last. */
	bool stale;          /* Nothing came all the same. */
	uint64_t opening_ns; /* Since when. */
	uint64_t heard_ns;   /* Or since when we wait to hear. */
	uint64_t pinged_ns;
	uint32_t failures;   /* To connect, in a row. */
	uint64_t connect_ns; /* When it may be tried again. */
	struct call_list sent;
	uint32_t in_flight;
	uint32_t hello_id; /* 0: no answer to hello is expected. */
	uint64_t written;  /* Bytes that were given to `out`. */
	uint64_t taken;    /* Bytes that the transport took. */
	struct pack_w out;
	size_t out_at;
	uint8_t *in;
	size_t in_at; /* The first unread byte. */
	size_t in_n;
	size_t in_cap;
	struct frame_reader reader;
};

struct session {
	uint32_t slots;
	uint32_t used;
	uint32_t *free_slots; /* The last slots - used are free. */
	struct call *calls;
	uint32_t *heap;
	uint32_t heap_n;
	struct call_list waiting;
	uint32_t links;
	uint32_t now_link; /* The one that calls go to. */
	uint32_t in_flight_max;
	uint32_t tries_max;
	uint32_t patience;
	uint32_t hellos;
	uint32_t probes;
	uint64_t seq;
	uint64_t now_ns; /* When we were called last. */
	uint64_t hold_due_ns;
	struct routes *routes; /* NULL: never more than one link. */
	bool learn;
	uint64_t random;
	bool ended;
	bool inside; /* A callback runs. */
	const char *greet;
	char lost_text[DETAIL_BYTES_MAX]; /* Why there is no link. */
	struct link link[SESSION_LINKS_MAX];
};

/* ------------------------------------------------------------- the heap --- */

static bool heap_before(const struct session *s, uint32_t a, uint32_t b)
{
	return s->calls[a].due_ns < s->calls[b].due_ns;
}

static void heap_put(struct session *s, uint32_t at, uint32_t slot)
{
	s->heap[at] = slot;
	s->calls[slot].heap_at = at;
}

static void heap_up(struct session *s, uint32_t at)
{
	uint32_t slot = s->heap[at];

	while (at > 0 && heap_before(s, slot, s->heap[(at - 1) / 2])) {
		heap_put(s, at, s->heap[(at - 1) / 2]);
		at = (at - 1) / 2;
	}
	heap_put(s, at, slot);
}

static void heap_down(struct session *s, uint32_t at)
{
	uint32_t slot = s->heap[at];
	uint32_t child;

	while ((child = 2 * at + 1) < s->heap_n) {
		if (child + 1 < s->heap_n &&
		    heap_before(s, s->heap[child + 1], s->heap[child]))
			child++;
		if (!heap_before(s, s->heap[child], slot))
			break;
		heap_put(s, at, s->heap[child]);
		at = child;
	}
	heap_put(s, at, slot);
}

static void heap_remove(struct session *s, struct call *c)
{
	uint32_t at = c->heap_at;
	uint32_t last;

	CHECK(at < s->heap_n && &s->calls[s->heap[at]] == c);
	c->heap_at = HEAP_NONE;
	last = s->heap[--s->heap_n];
	if (at == s->heap_n)
		return;
	heap_put(s, at, last);
	heap_up(s, at);
	heap_down(s, s->calls[last].heap_at);
}

static void call_due(struct session *s, struct call *c, uint64_t due_ns)
{
	c->due_ns = due_ns;
	if (c->heap_at == HEAP_NONE) {
		c->heap_at = s->heap_n++;
		s->heap[c->heap_at] = (uint32_t)(c - s->calls);
	}
	heap_up(s, c->heap_at);
	heap_down(s, c->heap_at);
}

/* ----------------------------------------------------------- small parts ---
 */

/* splitmix64: enough to keep clients from coming back all at once. */
static uint64_t session_random(struct session *s)
{
	uint64_t x = s->random += 0x9e3779b97f4a7c15u;

	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

/* base * 2^n, at most max, then between that and half as much again. */
static uint64_t pause_ns(struct session *s, uint64_t base_ms, uint32_t n,
			 uint64_t max_ms, uint64_t least_ms)
{
	uint64_t ms = n < 10 ? base_ms << n : max_ms;

	if (ms > max_ms)
		ms = max_ms;
	if (ms < least_ms)
		ms = least_ms;
	ms *= NS_PER_MS;
	return ms + session_random(s) % (ms / 2 + 1);
}

static void call_move(struct call *c, enum call_state to)
{
	CHECK((call_moves[c->state] >> to & 1u) != 0);
	c->state = to;
}

static bool code_is_retryable(enum rc rc)
{
	return rc == RC_OVERLOADED || rc == RC_NOT_OWNER || rc == RC_NO_QUORUM;
}

/* Takes a call out of the list that its state says it is in. */
static void call_unlist(struct session *s, struct call *c)
{
	struct link *l;

	if (c->state == CALL_WAITING) {
		TAILQ_REMOVE(&s->waiting, c, entry);
	} else if (c->state == CALL_SENT) {
		l = &s->link[c->link];
		TAILQ_REMOVE(&l->sent, c, entry);
		l->in_flight--;
		c->id = 0;
		if (c->route != NULL && --c->route->in_flight == 0)
			c->route->hold_ns = 0;
		c->route = NULL;
	}
}

static void call_wait(struct session *s, struct call *c)
{
	call_move(c, CALL_WAITING);
	TAILQ_INSERT_TAIL(&s->waiting, c, entry);
	call_due(s, c, c->deadline_ns);
}

static void body_shrink(struct pack_w *w)
{
	if (w->cap > CALL_KEEP_BYTES) {
		pack_w_release(w);
		pack_w_init(w, SESSION_REQUEST_BYTES_MAX);
	} else {
		pack_w_reset(w);
	}
}

/* The slot is free before the callback runs, which may start another call. */
static void call_free(struct session *s, struct call *c,
		      const struct session_answer *a)
{
	session_cb cb = c->cb;
	void *arg = c->arg;
	bool inside = s->inside;

	call_unlist(s, c);
	if (c->heap_at != HEAP_NONE)
		heap_remove(s, c);
	call_move(c, CALL_FREE);
	body_shrink(&c->body);
	c->serial++;
	s->used--;
	s->free_slots[s->slots - s->used - 1] = (uint32_t)(c - s->calls);
	s->inside = true;
	cb(arg, a);
	s->inside = inside;
}

static struct pack_bytes text_bytes(const char *text)
{
	struct pack_bytes b = { (const uint8_t *)text, strlen(text) };

	return b;
}

/* An end that the session itself decides. `text` NULL: that of rc.tbl. */
static void call_end_ours(struct session *s, struct call *c, enum rc rc,
			  const char *text)
{
	struct session_answer a = { .rc = rc, .ours = true, .tries = c->tries };
	struct detail why = { 0 };

	if (c->via != 0 && rc_outcome(rc) == OUTCOME_REFUSED) {
		detail_set(&why, rc, NULL,
			   "%s; a try before it may have happened",
			   text != NULL ? text : rc_text(rc));
		a.rc = RC_UNKNOWN_OUTCOME;
	} else if (c->last != RC_OK) {
		detail_set(&why, rc, NULL, "%s; the last answer was %s",
			   text != NULL ? text : rc_text(rc), rc_name(c->last));
	} else {
		detail_set(&why, rc, NULL, "%s",
			   text != NULL ? text : rc_text(rc));
	}
	a.outcome = rc_outcome(a.rc);
	a.error.code = a.rc;
	a.error.outcome = a.outcome;
	a.error.message = text_bytes(why.text);
	a.error.retry_after_ms = -1;
	call_free(s, c, &a);
}

/* The same at the next tick. */
static void call_end_later(struct session *s, struct call *c, enum rc rc,
			   const char *text)
{
	call_unlist(s, c);
	call_move(c, CALL_ENDING);
	c->end = rc;
	c->text = text;
	call_due(s, c, 0);
}

/* ------------------------------------------------------------ new, free --- */

static enum rc session_slots(struct session *s)
{
	uint32_t i;

	s->calls = calloc(s->slots, sizeof(*s->calls));
	s->heap = calloc(s->slots, sizeof(*s->heap));
	s->free_slots = calloc(s->slots, sizeof(*s->free_slots));
	if (s->calls == NULL || s->heap == NULL || s->free_slots == NULL)
		return RC_NOMEM;
	for (i = 0; i < s->slots; i++) {
		pack_w_init(&s->calls[i].body, SESSION_REQUEST_BYTES_MAX);
		s->calls[i].heap_at = HEAP_NONE;
		s->free_slots[i] = s->slots - 1 - i;
	}
	return RC_OK;
}

static uint32_t or_default(uint32_t v, uint32_t otherwise)
{
	return v != 0 ? v : otherwise;
}

static void copy_text(char *out, size_t cap, struct pack_bytes b)
{
	size_t n = b.n < cap ? b.n : 0; /* All of it or nothing. */

	if (n > 0)
		memcpy(out, b.p, n);
	out[n] = '\0';
}

/* There is a choice where a call goes. */
static bool session_routes(const struct session *s)
{
	return s->routes != NULL && s->links > 1;
}

static void session_links_init(struct session *s,
			       const struct session_options *o)
{
	struct link *l;
	uint32_t i;

	/* Clients that know nothing begin at different nodes. */
	if (o->rpcs != NULL)
		s->now_link = (uint32_t)(session_random(s) % s->links);
	for (i = 0; i < SESSION_LINKS_MAX; i++) {
		l = &s->link[i];
		TAILQ_INIT(&l->sent);
		pack_w_init(&l->out, SESSION_OUT_BYTES_MAX);
		if (i < s->links && o->rpcs != NULL)
			copy_text(l->rpc, sizeof(l->rpc),
				  text_bytes(o->rpcs[i]));
		if (i < s->links && o->nodes != NULL)
			copy_text(l->node, sizeof(l->node),
				  text_bytes(o->nodes[i]));
	}
}

enum rc session_new(const struct session_options *o, struct session **out)
{
	struct session *s;

	if (o->links > SESSION_LINKS_MAX || o->calls_max > SESSION_CALLS_MAX)
		return RC_INVALID;
	s = calloc(1, sizeof(*s));
	if (s == NULL)
		return RC_NOMEM;
	s->slots = or_default(o->calls_max, SESSION_CALLS_DEFAULT);
	s->links = or_default(o->links, 1);
	s->in_flight_max =
		or_default(o->in_flight_max, SESSION_IN_FLIGHT_DEFAULT);
	s->tries_max = or_default(o->tries_max, SESSION_TRIES_DEFAULT);
	s->patience = PATIENCE_MAX;
	s->random = o->seed;
	s->greet = o->greet;
	s->learn = o->learn;
	s->hold_due_ns = UINT64_MAX;
	TAILQ_INIT(&s->waiting);
	session_links_init(s, o);
	if (session_slots(s) != RC_OK ||
	    ((s->links > 1 || s->learn) &&
	     routes_new(s->random, o->addresses_max, &s->routes) != RC_OK)) {
		session_free(s);
		return RC_NOMEM;
	}
	*out = s;
	return RC_OK;
}

void session_free(struct session *s)
{
	uint32_t i;

	if (s == NULL)
		return;
	PRE(s->used == 0);
	PRE(!s->inside);
	for (i = 0; i < SESSION_LINKS_MAX; i++) {
		pack_w_release(&s->link[i].out);
		free(s->link[i].in);
	}
	routes_free(s->routes);
	for (i = 0; s->calls != NULL && i < s->slots; i++)
		pack_w_release(&s->calls[i].body);
	free(s->free_slots);
	free(s->heap);
	free(s->calls);
	free(s);
}

uint32_t session_calls(const struct session *s)
{
	return s->used;
}

/* -------------------------------------------------------------- starting ---
 */

static enum rc one_object(struct pack_bytes b, enum pack_type want,
			  const char *field, struct detail *why)
{
	/* The message around it counts as well. */
	struct pack_bounds bounds = { PACK_DEPTH_MAX - 2,
				      PACK_ELEMENTS_MAX - 64,
				      SESSION_REQUEST_BYTES_MAX };
	struct pack_scan scan = { 0 };
	struct pack_r r = pack_reader(b.p, b.n);
	enum pack_type type;
	size_t size;

	if (b.n == 0)
		return RC_OK;
	if (pack_check(&scan, b.p, b.n, &bounds, &size) != RC_OK ||
	    size != b.n || pack_peek(&r, &type) != RC_OK || type != want)
		return detail_set(why, RC_INVALID, field,
				  "%s is no encoded %s within the bounds",
				  field, want == PACK_MAP ? "map" : "array");
	return RC_OK;
}

static enum rc length_check(struct pack_bytes b, size_t min, size_t max,
			    const char *field, struct detail *why)
{
	if (b.n < min || b.n > max)
		return detail_set(why, RC_INVALID, field,
				  "%s has %zu bytes, must have %zu to %zu",
				  field, b.n, min, max);
	return RC_OK;
}

static enum rc request_check_call(const struct session_request *r,
				  struct detail *why)
{
	enum rc rc;

	rc = length_check(r->address, 1, SESSION_ADDRESS_BYTES_MAX, "address",
			  why);
	if (rc == RC_OK)
		rc = length_check(r->method, 1, FRAME_METHOD_BYTES_MAX,
				  "method", why);
	if (rc == RC_OK)
		rc = length_check(r->idem, 0, SESSION_IDEM_BYTES_MAX, "idem",
				  why);
	if (rc == RC_OK)
		rc = length_check(r->trace, 0, SESSION_TRACE_BYTES_MAX, "trace",
				  why);
	return rc;
}

static enum rc request_check(const struct session_request *r,
			     struct detail *why)
{
	enum rc rc;

	if (r->deadline_ms > SESSION_DEADLINE_MAX_MS)
		return detail_set(why, RC_INVALID, "deadline_ms",
				  "deadline_ms is at most %u",
				  SESSION_DEADLINE_MAX_MS);
	if (r->rpc == NULL) {
		rc = one_object(r->args, PACK_MAP, "args", why);
		return rc == RC_OK ? request_check_call(r, why) : rc;
	}
	rc = length_check(text_bytes(r->rpc), 1, FRAME_METHOD_BYTES_MAX,
			  "method", why);
	return rc == RC_OK ? one_object(r->args, PACK_ARRAY, "params", why)
			   : rc;
}

static void put_option(struct call *c, const char *name)
{
	pack_cstr(&c->body, name);
	c->options++;
}

/* All but deadline_ms and route, which change from try to try. */
static void call_options(struct call *c, const struct session_request *r)
{
	struct pack_w *w = &c->body;

	c->options_at = w->n;
	c->options = 0;
	if (r->idem.n > 0) {
		put_option(c, "idem");
		pack_bin(w, r->idem.p, r->idem.n);
	}
	if (r->idem.n > 0 && r->idem_ms > 0) {
		put_option(c, "idem_ms");
		pack_u64(w, r->idem_ms);
	}
	if (r->trace.n > 0) {
		put_option(c, "trace");
		pack_str(w, (const char *)r->trace.p, r->trace.n);
	}
	if (r->durability != SESSION_DURABILITY_CLASS) {
		put_option(c, "durability");
		pack_cstr(w, method_word(SET_durability,
					 (uint32_t)r->durability - 1));
	}
	if (r->stale_read) {
		put_option(c, "read");
		pack_cstr(w, "stale");
	}
	if (r->meta) {
		put_option(c, "meta");
		pack_bool(w, true);
	}
}

static void call_body(struct call *c, const struct session_request *r)
{
	struct pack_w *w = &c->body;

	c->is_call = r->rpc == NULL;
	if (!c->is_call) {
		c->rpc_bytes = strlen(r->rpc);
		memcpy(c->rpc, r->rpc, c->rpc_bytes);
		if (r->args.n > 0)
			pack_raw(w, r->args.p, r->args.n);
		else
			pack_array(w, 0);
		return;
	}
	pack_str(w, (const char *)r->address.p, r->address.n);
	pack_str(w, (const char *)r->method.p, r->method.n);
	if (r->args.n > 0)
		pack_raw(w, r->args.p, r->args.n);
	else
		pack_map(w, 0);
	call_options(c, r);
}

static enum rc body_rc(struct call *c, struct detail *why)
{
	enum rc rc = c->body.rc;

	if (rc == RC_OK)
		return RC_OK;
	body_shrink(&c->body);
	if (rc == RC_NOMEM)
		return RC_NOMEM;
	return detail_set(why, RC_INVALID, "args",
			  "the call is longer than %u bytes",
			  SESSION_REQUEST_BYTES_MAX);
}

static void session_pump(struct session *s, uint64_t now_ns);

/* A node remembers a key for its window from the first try on. What is sent
 * takes time to arrive, and clocks run apart: an eighth less. */
static uint64_t key_kept_ns(const struct call *c,
			    const struct session_request *r)
{
	uint64_t ms = r->idem_ms > 0 ? r->idem_ms : SESSION_IDEM_DEFAULT_MS;

	return c->is_call ? (ms - ms / 8) * NS_PER_MS : UINT64_MAX;
}

enum rc session_start(struct session *s, const struct session_request *r,
		      uint64_t now_ns, session_cb cb, void *arg,
		      uint64_t *ticket, struct detail *why)
{
	struct call *c;
	uint32_t slot;
	enum rc rc;

	PRE(cb != NULL);
	rc = request_check(r, why);
	if (rc != RC_OK)
		return rc;
	if (s->ended)
		return detail_set(why, RC_CANCELLED, NULL,
				  "the client is being closed");
	if (s->used == s->slots)
		return detail_set(why, RC_OVERLOADED, NULL,
				  "%u calls are unanswered", s->slots);
	slot = s->free_slots[s->slots - s->used - 1];
	c = &s->calls[slot];
	call_body(c, r);
	rc = body_rc(c, why);
	if (rc != RC_OK)
		return rc;
	s->used++;
	s->patience += s->patience < PATIENCE_MAX;
	c->cb = cb;
	c->arg = arg;
	c->shun = 0;
	c->hops = 0;
	c->seq = s->seq++;
	c->route = NULL;
	c->redirect = r->redirect;
	if (c->is_call && s->routes != NULL)
		c->hash = routes_hash(s->routes, r->address);
	c->tries = 0;
	c->last = RC_OK;
	c->keyed = !c->is_call || r->idem.n > 0;
	c->once = r->once;
	c->cancelled = false;
	c->via = 0;
	c->keep_ns = key_kept_ns(c, r);
	c->deadline_ns =
		now_ns + (uint64_t)or_default(r->deadline_ms,
					      SESSION_DEADLINE_DEFAULT_MS) *
				 NS_PER_MS;
	if (ticket != NULL)
		*ticket = ((uint64_t)c->serial + 1) << 32 | slot;
	call_wait(s, c);
	session_pump(s, now_ns);
	return RC_OK;
}

/* --------------------------------------------------------------- sending ---
 */

static bool link_has_room(const struct session *s, const struct link *l)
{
	return l->open && l->in_flight < s->in_flight_max;
}

static bool links_open(const struct session *s)
{
	uint32_t i;

	for (i = 0; i < s->links; i++)
		if (s->link[i].open)
			return true;
	return false;
}

/* An open link for what any node may get: the present one as long as it is
 * open, so that the order of calls holds; one that said "not here" only when
 * there is no other. */
static uint32_t link_any(struct session *s, uint32_t shun)
{
	uint32_t found = s->links;
	uint32_t i;
	uint32_t n;

	if (s->link[s->now_link].open && s->now_link + 1 != shun)
		return s->now_link;
	for (i = 1; i <= s->links; i++) {
		n = (s->now_link + i) % s->links;
		if (!s->link[n].open || n + 1 == shun)
			continue;
		if (found == s->links ||
		    (s->link[n].greeted && !s->link[found].greeted))
			found = n;
	}
	if (found == s->links)
		return shun - 1;
	if (!s->link[s->now_link].open)
		s->now_link = found;
	return found;
}

/* Where a try goes, and how. */
struct way {
	uint32_t link;
	bool redirect; /* The node is to say so when it is not the owner. */
	bool held;     /* Not yet: calls to the same object come first. */
};

/* The owner as far as it is known. When there is no link to it others forward;
 * now and then they are asked whether it still is. */
static uint32_t call_owner(struct session *s, const struct route *e)
{
	uint32_t owner = e != NULL ? routes_owner(s->routes, e) : ROUTES_NONE;

	if (owner != ROUTES_NONE && !s->link[owner].open &&
	    ++s->probes % PROBE_EVERY == 0)
		return ROUTES_NONE;
	return owner;
}

/* Calls to the object that are at another node are waited for, a moment. */
static bool call_held(struct session *s, struct route *e, uint32_t to,
		      uint64_t now_ns)
{
	uint64_t until;

	if (e == NULL || e->in_flight == 0)
		return false;
	if (e->lane != to && e->hold_ns == 0)
		e->hold_ns = now_ns;
	until = e->hold_ns + SESSION_HOLD_MS * (uint64_t)NS_PER_MS;
	if (e->hold_ns == 0 || until <= now_ns)
		return false;
	if (until < s->hold_due_ns)
		s->hold_due_ns = until;
	return true;
}

/* A node's own socket: there a caller is unix:NODE:UID. */
static bool link_is_socket(const struct link *l)
{
	return strchr(l->rpc, '/') != NULL;
}

/* A key is its caller's, and at the socket of each node the caller is another
 * one: what may have happened is asked for again only as the same. */
static bool call_is_known(const struct session *s, const struct call *c,
			  uint32_t link)
{
	if (c->via == 0 || !c->is_call)
		return true;
	if (link_is_socket(&s->link[c->via - 1]))
		return link == c->via - 1;
	return !link_is_socket(&s->link[link]);
}

/* An open link where it is known; none: it waits for one. */
static void way_known(const struct session *s, const struct call *c,
		      struct way *w)
{
	uint32_t i;

	w->redirect = c->redirect;
	for (i = 0; i < s->links; i++)
		if (s->link[i].open && call_is_known(s, c, i)) {
			w->link = i;
			return;
		}
	w->held = true;
}

/* PRE: a link is open. */
static struct way call_way(struct session *s, const struct call *c,
			   uint64_t now_ns)
{
	struct way w = { .redirect = c->redirect };
	struct route *e;
	uint32_t owner;

	if (!session_routes(s) || !c->is_call) {
		w.link = link_any(s, c->shun);
		return w;
	}
	e = routes_find(s->routes, c->hash);
	owner = call_owner(s, e);
	if (owner != ROUTES_NONE && s->link[owner].open)
		w.link = owner;
	else
		w.link = link_any(s, c->shun);
	/* Who is told "not here" needs another try. */
	if (!c->once && c->tries + 1 < s->tries_max &&
	    (owner == ROUTES_NONE || owner == w.link))
		w.redirect = true;
	if (!call_is_known(s, c, w.link))
		way_known(s, c, &w);
	if (!w.held)
		w.held = call_held(s, e, w.link, now_ns);
	return w;
}

static uint64_t ms_left(const struct call *c, uint64_t now_ns)
{
	uint64_t ns = c->deadline_ns > now_ns ? c->deadline_ns - now_ns : 0;

	return (ns + NS_PER_MS - 1) / NS_PER_MS;
}

static void call_frame(const struct call *c, struct pack_w *w, uint32_t id,
		       bool redirect, uint64_t now_ns)
{
	if (!c->is_call) {
		frame_request(w, id, c->rpc, c->rpc_bytes);
		pack_raw(w, c->body.p, c->body.n);
		return;
	}
	frame_request(w, id, "call", 4);
	pack_array(w, 4);
	pack_raw(w, c->body.p, c->options_at);
	pack_map(w, c->options + 1 + redirect);
	pack_cstr(w, "deadline_ms");
	pack_u64(w, ms_left(c, now_ns));
	if (redirect) {
		pack_cstr(w, "route");
		pack_cstr(w, "redirect");
	}
	pack_raw(w, c->body.p + c->options_at, c->body.n - c->options_at);
}

/* Drops what the transport took when that is worth a move. */
static void link_compact(struct link *l)
{
	if (l->out_at == 0 || (l->out_at < l->out.n && l->out_at < 65536))
		return;
	l->out.n -= l->out_at;
	memmove(l->out.p, l->out.p + l->out_at, l->out.n);
	l->out_at = 0;
	if (l->out.n == 0 && l->out.cap > LINK_KEEP_BYTES) {
		pack_w_release(&l->out);
		pack_w_init(&l->out, SESSION_OUT_BYTES_MAX);
	}
}

/* What was written since `mark` is whole, or was not written. */
static bool link_wrote(struct link *l, size_t mark)
{
	if (l->out.rc != RC_OK) {
		l->out.rc = RC_OK;
		l->out.n = mark;
		return false;
	}
	l->written += l->out.n - mark;
	return true;
}

/* Something came, or from now on something is waited for. */
static void link_heard(struct link *l, uint64_t now_ns)
{
	l->heard_ns = now_ns;
	l->pinged = false;
	l->stale = false;
}

static uint32_t call_next_id(const struct session *s, struct call *c)
{
	uint32_t slot = (uint32_t)(c - s->calls);
	uint32_t turns = UINT32_MAX / s->slots;

	/* Turn 0 is nobody's; the last ids are those of hello and ping. */
	c->turn = c->turn + 1 < turns - 2 * SESSION_LINKS_MAX ? c->turn + 1 : 1;
	return c->turn * s->slots + slot;
}

/* Its object's calls are there until they are answered. */
static void call_count(struct session *s, struct call *c)
{
	if (!c->is_call || !session_routes(s))
		return;
	c->route = routes_make(s->routes, c->hash);
	if (c->route == NULL)
		return;
	c->route->in_flight++;
	c->route->lane = (uint8_t)c->link;
}

/* Its key may be forgotten by now: sent again, it could take effect twice. */
static bool call_is_late(const struct call *c, uint64_t now_ns)
{
	return c->via != 0 && now_ns - c->via_ns >= c->keep_ns;
}

/* False: the link takes no more now. True: the call waits no longer. */
static bool call_send(struct session *s, struct call *c, struct way w,
		      uint64_t now_ns)
{
	struct link *l = &s->link[w.link];
	uint32_t id = call_next_id(s, c);
	size_t mark;

	if (call_is_late(c, now_ns)) {
		call_end_later(s, c, RC_UNKNOWN_OUTCOME,
			       "a try may have happened, and the window of its "
			       "key is over");
		return true;
	}
	link_compact(l);
	mark = l->out.n;
	call_frame(c, &l->out, id, w.redirect, now_ns);
	if (l->out.rc == RC_NOMEM) {
		(void)link_wrote(l, mark);
		call_end_later(s, c, RC_OVERLOADED, "out of memory");
		return true;
	}
	if (!link_wrote(l, mark))
		return false;
	call_unlist(s, c);
	call_move(c, CALL_SENT);
	TAILQ_INSERT_TAIL(&l->sent, c, entry);
	if (l->in_flight++ == 0 && l->hello_id == 0)
		link_heard(l, now_ns);
	c->id = id;
	c->link = w.link;
	c->sent_ns = now_ns;
	c->asked = w.redirect;
	c->from = l->written - (l->out.n - mark);
	c->tries++;
	call_count(s, c);
	call_due(s, c, c->deadline_ns + SESSION_GRACE_MS * NS_PER_MS);
	return true;
}

/* Sends what waits, in order, as far as links take it: what has to go to a link
 * that is full stays, and so does what comes behind it there. */
static void session_pump(struct session *s, uint64_t now_ns)
{
	uint32_t full = 0;
	struct call *next;
	struct call *c;
	struct way w;

	s->hold_due_ns = UINT64_MAX;
	if (!links_open(s))
		return;
	for (c = TAILQ_FIRST(&s->waiting); c != NULL; c = next) {
		next = TAILQ_NEXT(c, entry);
		if (c->deadline_ns <= now_ns) {
			call_end_later(
				s, c, RC_DEADLINE,
				"the deadline passed before it was sent");
			continue;
		}
		w = call_way(s, c, now_ns);
		if (w.held || (full >> w.link & 1u) != 0)
			continue;
		if (link_has_room(s, &s->link[w.link]) &&
		    call_send(s, c, w, now_ns))
			continue;
		full |= 1u << w.link;
		if (s->links == 1)
			return;
	}
}

struct pack_bytes session_output(const struct session *s, uint32_t link)
{
	const struct link *l = &s->link[link];
	struct pack_bytes b = { NULL, 0 };

	PRE(link < s->links);
	if (l->open && l->out.n > l->out_at) {
		b.p = l->out.p + l->out_at;
		b.n = l->out.n - l->out_at;
	}
	return b;
}

void session_sent(struct session *s, uint32_t link, size_t n, uint64_t now_ns)
{
	struct link *l = &s->link[link];

	PRE(link < s->links && l->open);
	PRE(n <= l->out.n - l->out_at);
	l->out_at += n;
	l->taken += n;
	link_compact(l);
	if (!TAILQ_EMPTY(&s->waiting))
		session_pump(s, now_ns);
}

/* --------------------------------------------------------------- cancel --- */

/* Best effort: a server that does not hear it answers all the same. */
static void link_cancel(struct link *l, uint32_t id)
{
	size_t mark;

	link_compact(l);
	mark = l->out.n;
	frame_notify(&l->out, "cancel", 6);
	pack_array(&l->out, 1);
	pack_u64(&l->out, id);
	(void)link_wrote(l, mark);
}

void session_cancel(struct session *s, uint64_t ticket, uint64_t now_ns)
{
	uint32_t slot = (uint32_t)ticket;
	struct call *c;

	(void)now_ns;
	if (ticket == 0 || slot >= s->slots)
		return;
	c = &s->calls[slot];
	if (c->state == CALL_FREE || c->state == CALL_ENDING || c->cancelled ||
	    ((uint64_t)c->serial + 1) << 32 != (ticket & ~(uint64_t)UINT32_MAX))
		return;
	c->cancelled = true;
	if (c->state == CALL_SENT)
		link_cancel(&s->link[c->link], c->id);
	else
		call_end_later(s, c, RC_CANCELLED, NULL);
}

/* -------------------------------------------------------------- the links ---
 */

bool session_is_open(const struct session *s, uint32_t link)
{
	PRE(link < s->links);
	return s->link[link].open;
}

bool session_is_greeted(const struct session *s, uint32_t link)
{
	PRE(link < s->links);
	return s->link[link].open && s->link[link].greeted;
}

uint32_t session_links(const struct session *s)
{
	return s->links;
}

const char *session_link_rpc(const struct session *s, uint32_t link)
{
	PRE(link < s->links);
	return s->link[link].rpc;
}

const char *session_link_node(const struct session *s, uint32_t link)
{
	PRE(link < s->links);
	return s->link[link].node;
}

/* Another link leads to the same node already. */
static bool link_is_spare(const struct session *s, uint32_t link)
{
	const struct link *l = &s->link[link];
	uint32_t i;

	for (i = 0; i < s->links && l->node[0] != '\0'; i++)
		if (i != link && s->link[i].open &&
		    strcmp(s->link[i].node, l->node) == 0)
			return true;
	return false;
}

static bool link_is_idle(const struct session *s, uint32_t link)
{
	return !s->ended && !s->link[link].open && !s->link[link].opening &&
	       !link_is_spare(s, link);
}

bool session_wants_link(const struct session *s, uint32_t link, uint64_t now_ns)
{
	PRE(link < s->links);
	return link_is_idle(s, link) && s->link[link].connect_ns <= now_ns;
}

/* There is another node to go to when this one is silent. */
static bool link_is_listening(const struct session *s, const struct link *l)
{
	return l->open && s->links > 1 &&
	       (l->in_flight > 0 || l->hello_id != 0);
}

/* When it will be pinged, or is stale; UINT64_MAX: there is no need. */
static uint64_t link_due(const struct session *s, const struct link *l)
{
	if (l->stale)
		return UINT64_MAX;
	if (l->opening)
		return l->opening_ns + SESSION_CONNECT_MS * (uint64_t)NS_PER_MS;
	if (!link_is_listening(s, l))
		return UINT64_MAX;
	return (l->pinged ? l->pinged_ns : l->heard_ns) +
	       SESSION_SILENT_MS / 2 * (uint64_t)NS_PER_MS;
}

bool session_is_stale(const struct session *s, uint32_t link)
{
	PRE(link < s->links);
	return s->link[link].stale;
}

void session_opening(struct session *s, uint32_t link)
{
	PRE(link < s->links && !s->link[link].open);
	s->link[link].opening = true;
	s->link[link].opening_ns = s->now_ns;
	s->link[link].stale = false;
}

static void link_ping(struct session *s, struct link *l, uint64_t now_ns)
{
	/* Nobody waits for the answer: what counts is that something comes. */
	uint32_t id = UINT32_MAX - SESSION_LINKS_MAX -
		      (s->hellos++ % SESSION_LINKS_MAX);
	size_t mark;

	link_compact(l);
	mark = l->out.n;
	frame_request(&l->out, id, "ping", 4);
	pack_array(&l->out, 0);
	(void)link_wrote(l, mark);
	l->pinged = true;
	l->pinged_ns = now_ns;
}

static bool we_slept(uint64_t now_ns, uint64_t due_ns)
{
	return now_ns - due_ns > LATE_MS * (uint64_t)NS_PER_MS;
}

/* Pings whom we did not hear, and gives up who is silent all the same. When it
 * was us who slept, what came meanwhile has to be read first. */
static void links_listen(struct session *s, uint64_t now_ns)
{
	struct link *l;
	uint64_t due;
	uint32_t i;

	for (i = 0; i < s->links; i++) {
		l = &s->link[i];
		due = link_due(s, l);
		if (due > now_ns)
			continue;
		if (l->opening || (l->pinged && !we_slept(now_ns, due)))
			l->stale = true;
		else if (we_slept(now_ns, due))
			link_heard(l, now_ns);
		else
			link_ping(s, l, now_ns);
	}
}

static void link_greet(struct session *s, struct link *l)
{
	size_t mark = l->out.n;

	l->hello_id = UINT32_MAX - (s->hellos++ % SESSION_LINKS_MAX);
	frame_request(&l->out, l->hello_id, "hello", 5);
	pack_array(&l->out, 1);
	pack_map(&l->out, 2);
	pack_cstr(&l->out, "protocol");
	pack_u64(&l->out, SESSION_PROTOCOL);
	pack_cstr(&l->out, "client");
	pack_cstr(&l->out, s->greet);
	if (!link_wrote(l, mark))
		l->hello_id = 0;
}

void session_opened(struct session *s, uint32_t link, uint64_t now_ns)
{
	struct link *l = &s->link[link];

	PRE(link < s->links && !l->open);
	CHECK(TAILQ_EMPTY(&l->sent) && l->in_flight == 0);
	l->open = true;
	l->opening = false;
	l->greeted = false;
	l->written = 0;
	l->taken = 0;
	l->out_at = 0;
	l->in_at = 0;
	l->in_n = 0;
	l->hello_id = 0;
	l->cluster[0] = '\0';
	link_heard(l, now_ns);
	pack_w_reset(&l->out);
	frame_reader_init(&l->reader, SESSION_FRAME_BYTES_MAX);
	if (s->greet != NULL)
		link_greet(s, l);
	session_pump(s, now_ns);
}

static bool call_may_repeat(const struct session *s, const struct call *c)
{
	return !c->once && !c->cancelled && !s->ended &&
	       c->tries < s->tries_max;
}

/* The try that was sent last may have. */
static void call_happened(struct call *c)
{
	if (c->via != 0)
		return;
	c->via = c->link + 1;
	c->via_ns = c->sent_ns;
}

/* What becomes of a sent call whose link is gone. */
static void call_lost(struct session *s, struct call *c, uint64_t taken,
		      struct call_list *again)
{
	bool sent = c->from < taken;

	if (sent) {
		call_happened(c);
		c->last = RC_OK;
	} else {
		c->tries--;
	}
	if (sent && (!c->keyed || !call_may_repeat(s, c))) {
		call_end_later(s, c, RC_UNKNOWN_OUTCOME,
			       "the connection was lost before the answer");
	} else if (c->cancelled) {
		call_end_later(s, c, RC_CANCELLED, NULL);
	} else {
		call_unlist(s, c);
		call_move(c, CALL_WAITING);
		TAILQ_INSERT_TAIL(again, c, entry);
		call_due(s, c, c->deadline_ns);
	}
}

void session_lost(struct session *s, uint32_t link, uint64_t now_ns,
		  const char *text)
{
	struct link *l = &s->link[link];
	struct call_list again;
	struct call *c;

	PRE(link < s->links);
	TAILQ_INIT(&again);
	if (l->open && s->routes != NULL)
		routes_lost(s->routes, link);
	l->open = false;
	l->opening = false;
	while ((c = TAILQ_FIRST(&l->sent)) != NULL)
		call_lost(s, c, l->taken, &again);
	TAILQ_CONCAT(&again, &s->waiting, entry);
	TAILQ_CONCAT(&s->waiting, &again, entry);
	if (l->greeted)
		l->failures = 0;
	l->connect_ns = now_ns + pause_ns(s, CONNECT_PAUSE_MS, l->failures++,
					  CONNECT_PAUSE_MAX_MS, 0);
	l->greeted = false;
	l->stale = false;
	s->lost_text[0] = '\0';
	if (text != NULL) {
		strncpy(s->lost_text, text, sizeof(s->lost_text) - 1);
		s->lost_text[sizeof(s->lost_text) - 1] = '\0';
	}
	session_pump(s, now_ns);
}

/* ------------------------------------------------------------- receiving ---
 */

enum rc session_room(struct session *s, uint32_t link, uint8_t **p, size_t *n)
{
	struct link *l = &s->link[link];
	size_t cap;
	uint8_t *q;

	PRE(link < s->links && l->open);
	if (l->in_at > 0) {
		l->in_n -= l->in_at;
		memmove(l->in, l->in + l->in_at, l->in_n);
		l->in_at = 0;
	}
	if (l->in_n == 0 && l->in_cap > LINK_KEEP_BYTES) {
		free(l->in);
		l->in = NULL;
		l->in_cap = 0;
	}
	if (l->in_cap - l->in_n < LINK_IN_BYTES_MIN) {
		cap = l->in_cap == 0 ? LINK_IN_BYTES : l->in_cap * 2;
		q = realloc(l->in, cap);
		if (q == NULL)
			return RC_NOMEM;
		l->in = q;
		l->in_cap = cap;
	}
	*p = l->in + l->in_n;
	*n = l->in_cap - l->in_n;
	return RC_OK;
}

/* What hello's answer says; what is not said is empty. */
struct hello {
	bool good;
	uint64_t protocol;
	struct pack_bytes node;
	uint64_t node_id;
	struct pack_bytes cluster;
	struct pack_bytes members; /* The encoded array. */
};

static void hello_pair(struct hello *h, struct pack_bytes key,
		       struct pack_bytes value)
{
	struct pack_r r = pack_reader(value.p, value.n);

	if (pack_bytes_eq(key, "protocol", 8))
		h->good = pack_get_u64(&r, &h->protocol) == RC_OK;
	else if (pack_bytes_eq(key, "node", 4))
		(void)pack_get_bytes(&r, &h->node);
	else if (pack_bytes_eq(key, "node_id", 7))
		(void)pack_get_u64(&r, &h->node_id);
	else if (pack_bytes_eq(key, "cluster", 7))
		(void)pack_get_bytes(&r, &h->cluster);
	else if (pack_bytes_eq(key, "members", 7))
		h->members = value;
}

static void hello_read(struct pack_bytes result, struct hello *h)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes value;
	struct pack_bytes key;
	uint32_t n;

	memset(h, 0, sizeof(*h));
	if (pack_get_map(&r, &n) != RC_OK)
		return;
	for (; n > 0; n--) {
		if (pack_get_bytes(&r, &key) != RC_OK ||
		    pack_skip(&r, &value) != RC_OK)
			return;
		hello_pair(h, key, value);
	}
}

/* One of the members: a map with name, id and rpc. */
struct member {
	char node[SESSION_NODE_BYTES_MAX + 1];
	char rpc[SESSION_RPC_BYTES_MAX];
	char id[24];
};

static void id_text(uint64_t id, char out[24])
{
	char digits[24];
	size_t n = 0;
	size_t i;

	for (; id > 0; id /= 10)
		digits[n++] = (char)('0' + id % 10);
	for (i = 0; i < n; i++)
		out[i] = digits[n - 1 - i];
	out[n] = '\0';
}

static bool member_read(struct pack_bytes map, struct member *m)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes text;
	struct pack_bytes key;
	uint64_t id;
	uint32_t n;

	memset(m, 0, sizeof(*m));
	if (pack_get_map(&r, &n) != RC_OK)
		return false;
	for (; n > 0 && pack_get_bytes(&r, &key) == RC_OK; n--) {
		if (pack_bytes_eq(key, "id", 2) &&
		    pack_get_u64(&r, &id) == RC_OK)
			id_text(id, m->id);
		else if (pack_get_bytes(&r, &text) != RC_OK)
			(void)pack_skip(&r, NULL);
		else if (pack_bytes_eq(key, "name", 4))
			copy_text(m->node, sizeof(m->node), text);
		else if (pack_bytes_eq(key, "rpc", 3))
			copy_text(m->rpc, sizeof(m->rpc), text);
	}
	return m->node[0] != '\0' && m->rpc[0] != '\0';
}

/* The link that leads to a node by its name or id, an open one first;
 * ROUTES_NONE. */
static uint32_t link_of(const struct session *s, struct pack_bytes node)
{
	uint32_t found = ROUTES_NONE;
	const struct link *l;
	uint32_t i;

	for (i = 0; i < s->links && node.n > 0; i++) {
		l = &s->link[i];
		if (!pack_bytes_eq(node, l->node, strlen(l->node)) &&
		    !pack_bytes_eq(node, l->id, strlen(l->id)))
			continue;
		if (found == ROUTES_NONE || l->open)
			found = i;
	}
	return found;
}

static struct link *link_at(struct session *s, const char *rpc)
{
	uint32_t i;

	for (i = 0; i < s->links; i++)
		if (strcmp(s->link[i].rpc, rpc) == 0)
			return &s->link[i];
	return NULL;
}

/* A member becomes a link, unless one leads there. */
static void session_learn(struct session *s, const struct member *m)
{
	uint32_t known = link_of(s, text_bytes(m->node));
	struct link *l = link_at(s, m->rpc);

	if (known != ROUTES_NONE) {
		l = &s->link[known];
		if (l->learned)
			memcpy(l->rpc, m->rpc, sizeof(l->rpc));
	} else if (l == NULL) {
		if (s->links == SESSION_LINKS_MAX)
			return;
		l = &s->link[s->links++];
		memcpy(l->rpc, m->rpc, sizeof(l->rpc));
		memcpy(l->node, m->node, sizeof(l->node));
		l->learned = true;
	} else if (l->node[0] == '\0') {
		memcpy(l->node, m->node, sizeof(l->node));
	}
	memcpy(l->id, m->id, sizeof(l->id));
}

static void session_members(struct session *s, struct pack_bytes members)
{
	struct pack_r r = pack_reader(members.p, members.n);
	struct pack_bytes map;
	struct member m;
	uint32_t n;

	if (!s->learn || pack_get_array(&r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_skip(&r, &map) == RC_OK; n--)
		if (member_read(map, &m))
			session_learn(s, &m);
}

/* One session talks to one cluster. */
static bool link_is_foreign(const struct session *s, const struct link *l)
{
	uint32_t i;

	for (i = 0; i < s->links && l->cluster[0] != '\0'; i++)
		if (s->link[i].open && s->link[i].cluster[0] != '\0' &&
		    strcmp(s->link[i].cluster, l->cluster) != 0)
			return true;
	return false;
}

static enum rc hello_taken(struct session *s, struct link *l,
			   const struct hello *h, struct detail *why)
{
	if (!h->good)
		return detail_set(why, RC_INVALID, NULL,
				  "this is no Holdfast server");
	if (h->protocol != SESSION_PROTOCOL)
		return detail_set(why, RC_VERSION, NULL,
				  "the server speaks version %llu of "
				  "the protocol, this client %d",
				  (unsigned long long)h->protocol,
				  SESSION_PROTOCOL);
	copy_text(l->cluster, sizeof(l->cluster), h->cluster);
	if (link_is_foreign(s, l)) {
		l->cluster[0] = '\0';
		return detail_set(why, RC_INVALID, NULL,
				  "the server belongs to another cluster");
	}
	if (h->node.n > 0)
		copy_text(l->node, sizeof(l->node), h->node);
	id_text(h->node_id, l->id);
	session_members(s, h->members);
	return RC_OK;
}

static enum rc hello_answered(struct session *s, struct link *l,
			      const struct frame *f, struct detail *why)
{
	struct pack_r r = pack_reader(f->error.p, f->error.n);
	struct frame_error e;
	struct hello h;

	l->hello_id = 0;
	if (pack_get_nil(&r) == RC_OK) {
		hello_read(f->result, &h);
		return hello_taken(s, l, &h, why);
	}
	if (frame_error_read(f->error, &e) != RC_OK)
		return detail_set(why, RC_INVALID, NULL,
				  "the server's greeting is malformed");
	return detail_set(why, RC_VERSION, NULL, "the server refuses: %.*s",
			  (int)(e.message.n < 160 ? e.message.n : 160),
			  (const char *)e.message.p);
}

/* Back to where it was among those that wait. */
static void call_wait_in_turn(struct session *s, struct call *c)
{
	struct call *at = TAILQ_FIRST(&s->waiting);

	call_move(c, CALL_WAITING);
	while (at != NULL && at->seq < c->seq)
		at = TAILQ_NEXT(at, entry);
	if (at != NULL)
		TAILQ_INSERT_BEFORE(at, c, entry);
	else
		TAILQ_INSERT_TAIL(&s->waiting, c, entry);
	call_due(s, c, c->deadline_ns);
}

/* The node does not own the object. True: the call goes on to the one that
 * does, at once, once those sent before it have come back too. */
static bool call_redirected(struct session *s, struct call *c,
			    const struct frame_error *e, uint64_t now_ns)
{
	uint32_t shard = e->has_shard ? e->shard : ROUTES_NONE;
	uint32_t owner = link_of(s, e->owner);
	struct route *route = c->route;

	if (owner == c->link)
		owner = ROUTES_NONE; /* It cannot be right. */
	routes_learn(s->routes, c->hash, shard, owner);
	if (owner == ROUTES_NONE || c->hops == HOPS_MAX ||
	    !call_may_repeat(s, c) || (c->redirect && !s->link[owner].open)) {
		c->hops = 0;
		return false;
	}
	c->hops++;
	c->shun = 0;
	c->last = e->code;
	call_unlist(s, c);
	if (route != NULL && route->in_flight > 0 && route->hold_ns == 0)
		route->hold_ns = now_ns;
	call_wait_in_turn(s, c);
	return true;
}

/* What a refusal says about where to go. */
static bool call_rerouted(struct session *s, struct call *c,
			  const struct frame_error *e, uint64_t now_ns)
{
	struct route *route;

	if (!session_routes(s) || !c->is_call || e->outcome != OUTCOME_REFUSED)
		return false;
	if (e->code == RC_NOT_OWNER)
		return call_redirected(s, c, e, now_ns);
	route = routes_find(s->routes, c->hash);
	if (e->code == RC_NO_QUORUM && route != NULL &&
	    routes_owner(s->routes, route) == c->link)
		routes_learn(s->routes, c->hash, ROUTES_NONE, ROUTES_NONE);
	return false;
}

/* A refused or unknown try: ask again after a pause, if the rules and the time
 * allow. */
static bool call_retry(struct session *s, struct call *c,
		       const struct frame_error *e, uint64_t now_ns)
{
	bool moves = e->code == RC_NOT_OWNER || e->code == RC_NO_QUORUM;
	uint64_t least = 0;
	uint64_t pause;

	if (e->outcome == OUTCOME_REFUSED ? !code_is_retryable(e->code)
					  : !c->keyed)
		return false;
	if (!call_may_repeat(s, c) ||
	    (c->redirect && e->code == RC_NOT_OWNER && !session_routes(s)))
		return false;
	if (e->code == RC_OVERLOADED && s->patience < PATIENCE_COST)
		return false;
	if (e->retry_after_ms > 0)
		least = (uint64_t)e->retry_after_ms < SESSION_DEADLINE_MAX_MS
				? (uint64_t)e->retry_after_ms
				: SESSION_DEADLINE_MAX_MS;
	pause = pause_ns(s, RETRY_PAUSE_MS, c->tries - 1,
			 moves ? MOVE_PAUSE_MAX_MS : RETRY_PAUSE_MAX_MS, least);
	if (now_ns + pause >= c->deadline_ns)
		return false;
	if (e->code == RC_OVERLOADED)
		s->patience -= PATIENCE_COST;
	if (e->outcome != OUTCOME_REFUSED)
		call_happened(c);
	c->shun = moves ? c->link + 1 : 0;
	c->last = e->code;
	call_unlist(s, c);
	call_move(c, CALL_PAUSED);
	call_due(s, c, now_ns + pause);
	return true;
}

static void call_answered_error(struct session *s, struct call *c,
				const struct frame_error *e, uint64_t now_ns)
{
	struct session_answer a = { .rc = e->code,
				    .outcome = e->outcome,
				    .error = *e,
				    .tries = c->tries };
	struct detail why = { 0 };

	if (call_rerouted(s, c, e, now_ns) || call_retry(s, c, e, now_ns))
		return;
	if (c->via != 0 && e->outcome == OUTCOME_REFUSED) {
		detail_set(&why, e->code, NULL,
			   "a try may have happened; the last was refused: "
			   "%s: %.*s",
			   rc_name(e->code),
			   (int)(e->message.n < 120 ? e->message.n : 120),
			   (const char *)e->message.p);
		a.rc = RC_UNKNOWN_OUTCOME;
		a.outcome = OUTCOME_UNKNOWN;
		a.error.code = a.rc;
		a.error.outcome = a.outcome;
		a.error.message = text_bytes(why.text);
	}
	call_free(s, c, &a);
}

/* It was asked to say so if it were not the owner. */
static void call_owned(struct session *s, const struct call *c)
{
	if (c->route != NULL && c->asked &&
	    routes_owner(s->routes, c->route) != c->link)
		routes_learn(s->routes, c->hash, ROUTES_NONE, c->link);
}

static enum rc link_response(struct session *s, uint32_t link,
			     const struct frame *f, uint64_t now_ns,
			     struct detail *why)
{
	struct link *l = &s->link[link];
	struct call *c = &s->calls[f->id % s->slots];
	struct session_answer a = { .rc = RC_OK, .outcome = OUTCOME_DONE };
	struct pack_r r = pack_reader(f->error.p, f->error.n);
	struct frame_error e = { .code = RC_INTERNAL };

	if (l->hello_id != 0 && f->id == l->hello_id)
		return hello_answered(s, l, f, why);
	if (c->state != CALL_SENT || c->id != f->id || c->link != link)
		return RC_OK; /* Late: its call was given up. */
	if (pack_get_nil(&r) == RC_OK) {
		a.result = f->result;
		a.tries = c->tries;
		call_owned(s, c);
		call_free(s, c, &a);
		return RC_OK;
	}
	if (frame_error_read(f->error, &e) != RC_OK)
		return detail_set(why, RC_INVALID, NULL,
				  "an error of the server is malformed");
	if (e.code == RC_OK) {
		e.code = RC_INTERNAL;
		e.outcome = OUTCOME_UNKNOWN;
	}
	call_answered_error(s, c, &e, now_ns);
	return RC_OK;
}

/* One message. RC_AGAIN: there is none whole. */
static enum rc link_message(struct session *s, uint32_t link, uint64_t now_ns,
			    struct detail *why)
{
	struct link *l = &s->link[link];
	struct frame f;
	size_t used;
	enum rc rc;

	rc = frame_next(&l->reader, l->in + l->in_at, l->in_n - l->in_at, &f,
			&used, why);
	if (rc == RC_AGAIN)
		return RC_AGAIN;
	if (rc != RC_OK)
		return detail_set(why, RC_INVALID, NULL,
				  "the server does not speak MessagePack-RPC");
	l->in_at += used;
	if (f.kind == FRAME_REQUEST)
		return detail_set(why, RC_INVALID, NULL,
				  "the server sent a request");
	if (f.kind == FRAME_NOTIFY)
		return RC_OK;
	rc = link_response(s, link, &f, now_ns, why);
	if (rc == RC_OK)
		l->greeted = true;
	return rc;
}

enum rc session_input(struct session *s, uint32_t link, size_t n,
		      uint64_t now_ns, struct detail *why)
{
	struct link *l = &s->link[link];
	enum rc rc = RC_OK;

	PRE(link < s->links && l->open);
	PRE(n <= l->in_cap - l->in_n);
	PRE(!s->inside);
	s->now_ns = now_ns;
	link_heard(l, now_ns);
	l->in_n += n;
	while (rc == RC_OK && l->in_at < l->in_n)
		rc = link_message(s, link, now_ns, why);
	if (rc != RC_OK && rc != RC_AGAIN) {
		l->greeted = false; /* The next try comes later and later. */
		return rc;
	}
	session_pump(s, now_ns);
	return RC_OK;
}

/* ------------------------------------------------------------------ time ---
 */

uint64_t session_due(const struct session *s)
{
	uint64_t due = s->heap_n > 0 ? s->calls[s->heap[0]].due_ns : UINT64_MAX;
	uint32_t i;

	if (s->hold_due_ns < due)
		due = s->hold_due_ns;
	for (i = 0; i < s->links && !s->ended; i++) {
		if (link_is_idle(s, i) && s->link[i].connect_ns < due)
			due = s->link[i].connect_ns;
		if (link_due(s, &s->link[i]) < due)
			due = link_due(s, &s->link[i]);
	}
	return due;
}

static void call_overdue(struct session *s, struct call *c)
{
	struct detail why = { 0 };

	switch (c->state) {
	case CALL_WAITING:
		if (s->lost_text[0] != '\0' && !links_open(s))
			detail_set(&why, RC_DEADLINE, NULL,
				   "the deadline passed without a connection: "
				   "%.160s",
				   s->lost_text);
		else
			detail_set(&why, RC_DEADLINE, NULL,
				   "the deadline passed before it was sent");
		call_end_ours(s, c, RC_DEADLINE, why.text);
		break;
	case CALL_SENT:
		link_cancel(&s->link[c->link], c->id);
		call_end_ours(s, c, RC_UNKNOWN_OUTCOME,
			      "no answer came before the deadline");
		break;
	case CALL_PAUSED:
		call_wait(s, c);
		break;
	case CALL_ENDING:
		call_end_ours(s, c, c->end, c->text);
		break;
	case CALL_FREE:
	default:
		CHECK(c->state != CALL_FREE);
	}
}

void session_tick(struct session *s, uint64_t now_ns)
{
	struct call *c;

	PRE(!s->inside);
	s->now_ns = now_ns;
	while (s->heap_n > 0) {
		c = &s->calls[s->heap[0]];
		if (c->due_ns > now_ns)
			break;
		call_overdue(s, c);
	}
	links_listen(s, now_ns);
	session_pump(s, now_ns);
}

void session_end(struct session *s)
{
	struct call *c;

	PRE(!s->inside);
	s->ended = true;
	while (s->heap_n > 0) {
		c = &s->calls[s->heap[0]];
		if (c->state == CALL_ENDING) {
			call_end_ours(s, c, c->end, c->text);
		} else if (c->state == CALL_SENT &&
			   c->from < s->link[c->link].taken) {
			call_end_ours(s, c, RC_UNKNOWN_OUTCOME,
				      "the client was closed");
		} else {
			call_end_ours(s, c, RC_CANCELLED,
				      "the client was closed");
		}
	}
}
