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
	uint32_t turn;   /* Of the ids of this slot. */
	uint32_t id;     /* SENT: of this try. */
	uint32_t link;   /* SENT: where. */
	uint32_t shun;   /* A link that does not own the object, plus 1. */
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
	bool cancelled;
	bool maybe;       /* A try before this one may have happened. */
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
	bool open;
	bool opening; /* The transport is at it. */
	bool greeted;
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
	uint32_t hellos;
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

	if (c->maybe && rc_outcome(rc) == OUTCOME_REFUSED) {
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

enum rc session_new(const struct session_options *o, struct session **out)
{
	struct session *s;
	uint32_t i;

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
	s->random = o->seed;
	s->greet = o->greet;
	TAILQ_INIT(&s->waiting);
	for (i = 0; i < s->links; i++) {
		TAILQ_INIT(&s->link[i].sent);
		pack_w_init(&s->link[i].out, SESSION_OUT_BYTES_MAX);
	}
	if (session_slots(s) != RC_OK) {
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
	for (i = 0; i < s->links; i++) {
		pack_w_release(&s->link[i].out);
		free(s->link[i].in);
	}
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

/* All but deadline_ms, which gets shorter from try to try. */
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
	if (r->redirect) {
		put_option(c, "route");
		pack_cstr(w, "redirect");
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
	c->cb = cb;
	c->arg = arg;
	c->shun = 0;
	c->tries = 0;
	c->last = RC_OK;
	c->keyed = !c->is_call || r->idem.n > 0;
	c->once = r->once;
	c->cancelled = false;
	c->maybe = false;
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

/* The link that a call goes to: the present one as long as it is open, so that
 * the order of calls holds; else any. A call that was told "not here" tries
 * another one first. s->links: none has room. */
static uint32_t link_for(struct session *s, const struct call *c)
{
	uint32_t i;
	uint32_t n;

	if (!s->link[s->now_link].open)
		for (i = 0; i < s->links; i++)
			if (s->link[i].open)
				s->now_link = i;
	if (c->shun == 0 || c->shun - 1 != s->now_link)
		return link_has_room(s, &s->link[s->now_link]) ? s->now_link
							       : s->links;
	for (i = 1; i <= s->links; i++) {
		n = (s->now_link + i) % s->links;
		if (link_has_room(s, &s->link[n]))
			return n;
	}
	return s->links;
}

static uint64_t ms_left(const struct call *c, uint64_t now_ns)
{
	uint64_t ns = c->deadline_ns > now_ns ? c->deadline_ns - now_ns : 0;

	return (ns + NS_PER_MS - 1) / NS_PER_MS;
}

static void call_frame(const struct call *c, struct pack_w *w, uint32_t id,
		       uint64_t now_ns)
{
	if (!c->is_call) {
		frame_request(w, id, c->rpc, c->rpc_bytes);
		pack_raw(w, c->body.p, c->body.n);
		return;
	}
	frame_request(w, id, "call", 4);
	pack_array(w, 4);
	pack_raw(w, c->body.p, c->options_at);
	pack_map(w, c->options + 1);
	pack_cstr(w, "deadline_ms");
	pack_u64(w, ms_left(c, now_ns));
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

static uint32_t call_next_id(const struct session *s, struct call *c)
{
	uint32_t slot = (uint32_t)(c - s->calls);
	uint32_t turns = UINT32_MAX / s->slots;

	/* Turn 0 is nobody's; the last ids are hello's. */
	c->turn = c->turn + 1 < turns - SESSION_LINKS_MAX ? c->turn + 1 : 1;
	return c->turn * s->slots + slot;
}

/* False: the link takes no more now. True: the call waits no longer. */
static bool call_send(struct session *s, struct call *c, uint32_t to,
		      uint64_t now_ns)
{
	struct link *l = &s->link[to];
	uint32_t id = call_next_id(s, c);
	size_t mark;

	link_compact(l);
	mark = l->out.n;
	call_frame(c, &l->out, id, now_ns);
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
	l->in_flight++;
	c->id = id;
	c->link = to;
	c->from = l->written - (l->out.n - mark);
	c->tries++;
	call_due(s, c, c->deadline_ns + SESSION_GRACE_MS * NS_PER_MS);
	return true;
}

/* Sends what waits, in order, as far as links take it. */
static void session_pump(struct session *s, uint64_t now_ns)
{
	struct call *c;
	uint32_t to;

	while ((c = TAILQ_FIRST(&s->waiting)) != NULL) {
		if (c->deadline_ns <= now_ns) {
			call_end_later(
				s, c, RC_DEADLINE,
				"the deadline passed before it was sent");
			continue;
		}
		to = link_for(s, c);
		if (to == s->links || !call_send(s, c, to, now_ns))
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

bool session_wants_link(const struct session *s, uint32_t link, uint64_t now_ns)
{
	PRE(link < s->links);
	return !s->ended && !s->link[link].open && !s->link[link].opening &&
	       s->link[link].connect_ns <= now_ns;
}

void session_opening(struct session *s, uint32_t link)
{
	PRE(link < s->links && !s->link[link].open);
	s->link[link].opening = true;
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

/* What becomes of a sent call whose link is gone. */
static void call_lost(struct session *s, struct call *c, uint64_t taken,
		      struct call_list *again)
{
	bool sent = c->from < taken;

	if (sent) {
		c->maybe = true;
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

/* What the server speaks; RC_INVALID when it does not say. */
static enum rc hello_protocol(struct pack_bytes result, uint64_t *protocol)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes key;
	uint32_t n;

	if (pack_get_map(&r, &n) != RC_OK)
		return RC_INVALID;
	for (; n > 0 && pack_get_bytes(&r, &key) == RC_OK; n--) {
		if (pack_bytes_eq(key, "protocol", 8))
			return pack_get_u64(&r, protocol);
		if (pack_skip(&r, NULL) != RC_OK)
			break;
	}
	return RC_INVALID;
}

static enum rc hello_answered(struct link *l, const struct frame *f,
			      struct detail *why)
{
	struct pack_r r = pack_reader(f->error.p, f->error.n);
	struct frame_error e;
	uint64_t protocol;

	l->hello_id = 0;
	if (pack_get_nil(&r) == RC_OK) {
		if (hello_protocol(f->result, &protocol) != RC_OK)
			return detail_set(why, RC_INVALID, NULL,
					  "this is no Holdfast server");
		if (protocol != SESSION_PROTOCOL)
			return detail_set(why, RC_VERSION, NULL,
					  "the server speaks version %llu of "
					  "the protocol, this client %d",
					  (unsigned long long)protocol,
					  SESSION_PROTOCOL);
		return RC_OK;
	}
	if (frame_error_read(f->error, &e) != RC_OK)
		return detail_set(why, RC_INVALID, NULL,
				  "the server's greeting is malformed");
	return detail_set(why, RC_VERSION, NULL, "the server refuses: %.*s",
			  (int)(e.message.n < 160 ? e.message.n : 160),
			  (const char *)e.message.p);
}

/* A refused or unknown try: ask again after a pause, if the rules and the time
 * allow. */
static bool call_retry(struct session *s, struct call *c,
		       const struct frame_error *e, uint64_t now_ns)
{
	uint64_t least = 0;
	uint64_t pause;

	if (e->outcome == OUTCOME_REFUSED ? !code_is_retryable(e->code)
					  : !c->keyed)
		return false;
	if (!call_may_repeat(s, c))
		return false;
	if (e->retry_after_ms > 0)
		least = (uint64_t)e->retry_after_ms < SESSION_DEADLINE_MAX_MS
				? (uint64_t)e->retry_after_ms
				: SESSION_DEADLINE_MAX_MS;
	pause = pause_ns(s, RETRY_PAUSE_MS, c->tries - 1, RETRY_PAUSE_MAX_MS,
			 least);
	if (now_ns + pause >= c->deadline_ns)
		return false;
	if (e->outcome != OUTCOME_REFUSED)
		c->maybe = true;
	c->shun = e->code == RC_NOT_OWNER ? c->link + 1 : 0;
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

	if (call_retry(s, c, e, now_ns))
		return;
	if (c->maybe && e->outcome == OUTCOME_REFUSED) {
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
		return hello_answered(l, f, why);
	if (c->state != CALL_SENT || c->id != f->id || c->link != link)
		return RC_OK; /* Late: its call was given up. */
	if (pack_get_nil(&r) == RC_OK) {
		a.result = f->result;
		a.tries = c->tries;
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

	for (i = 0; i < s->links && !s->ended; i++)
		if (!s->link[i].open && !s->link[i].opening &&
		    s->link[i].connect_ns < due)
			due = s->link[i].connect_ns;
	return due;
}

static void call_overdue(struct session *s, struct call *c)
{
	struct detail why = { 0 };

	switch (c->state) {
	case CALL_WAITING:
		if (s->lost_text[0] != '\0' && !s->link[s->now_link].open)
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
	while (s->heap_n > 0) {
		c = &s->calls[s->heap[0]];
		if (c->due_ns > now_ns)
			break;
		call_overdue(s, c);
	}
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
