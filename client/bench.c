/*
 * A run is a row of phases:
 *
 *	set-up     what the work needs (policies, objects), each object once
 *	warm-up    the load itself, not measured
 *	measured   from one answer of `status` to another one
 *	drain      no new calls; those in flight are waited for
 *
 * A request is head, address and tail:
 *
 *	94 00 ce IIIIIIII a4 "call" 93|94   d9 LL "kv/PREFIX123"   METHOD ARGS
 *
 * with a fixed place for the id and, in the tail, for a limiter's key or an
 * idempotency key. The id is the call's place among those of its connection.
 */
#include "client/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/check.h"
#include "client/hdr.h"
#include "client/proto/frame.h"

#define NS_PER_S         1000000000u
#define NS_PER_MS        1000000u
#define IN_BYTES         262144u
#define IN_BYTES_MIN     16384u
#define FRAME_MAX        (4u << 20)
#define EVENTS           256
#define DRAIN_MS         7000u
#define SETUP_MS         600000u
#define RECONNECT_MS     20u
#define TURN_NS_MIN      20000u /* Open loop: wake up at most so often. */
#define TAIL_BYTES_MAX   (2u << 20)
#define WARM_WRITES      20000u
#define LIMIT_PER_PERIOD 1000000u
#define LIMIT_PERIOD_MS  1000u

/* How requests of one kind are made. */
struct recipe {
	const char *class_name; /* NULL: ping. */
	size_t class_bytes;
	struct pack_w tail;
	size_t key_at;  /* Of 8 digits in the tail; 0: none. */
	size_t idem_at; /* Of 16 bytes in the tail; 0: none. */
	bool checks;    /* Answers say whether they are allowed. */
	bool measured;
};

struct conn {
	int fd; /* -1: lost. */
	bool wants_write;
	bool dirty; /* In the list of those to write. */
	uint32_t in_flight;
	uint32_t *free_places; /* pipeline - in_flight of them. */
	uint64_t *began_ns;    /* By place; 0: free. */
	struct pack_w out;
	size_t out_at;
	uint8_t *in;
	size_t in_cap;
	size_t in_n;
	struct frame_reader reader;
	struct conn *next_dirty;
};

/* What `status` says, as far as it matters here. */
struct snapshot {
	bool good;
	uint64_t syncs;
	uint64_t cpu_us;
	uint64_t rss_bytes;
	uint64_t resident;
	uint64_t stall_us;
	uint64_t answered; /* Calls of ours until then. */
	uint64_t at_ns;
	uint64_t own_cpu_ns;
};

struct bench {
	const struct bench_options *o;
	struct bench_result *r;
	struct detail *why;
	int epoll;
	int timer;
	struct sockaddr_un addr;
	size_t prefix_bytes;
	struct conn *conns;
	struct conn control; /* For `status` alone. */
	uint32_t open_conns;
	uint64_t reconnect_ns;
	uint64_t timer_ns; /* When it fires. */
	struct conn *dirty;
	struct hdr *hdr;
	struct recipe recipe;
	struct recipe warm; /* BENCH_IDLE: before its objects. */
	const struct recipe *now_recipe;
	uint64_t now_ns;
	uint64_t random;
	uint64_t nonce;
	uint64_t calls; /* Begun. */
	uint64_t answered;

	/* The present phase. */
	bool measuring;
	bool sequence;        /* Each object once; else at random. */
	uint32_t next_object; /* sequence */
	uint32_t last_object;
	bool open_loop;
	bool full;         /* open loop: no free place for the next call. */
	uint64_t first_ns; /* open loop: of call 0. */
	uint64_t nth;
	uint64_t end_ns; /* No call begins at or after. */
	bool stop;

	/* An answer of status is waited for. */
	bool asked;
	struct snapshot *asked_into;
};

/* What follows the id. The second ends before the length of the address. */
static const uint8_t ping_head[] = { 0xa4, 'p', 'i', 'n', 'g', 0x90 };
static const uint8_t call_head[] = { 0xa4, 'c', 'a', 'l', 'l', 0x93, 0xd9 };

static const char *const work_names[] = {
	[BENCH_NULL] = "null",
	[BENCH_KV_PUT] = "kv-put",
	[BENCH_KV_INCR] = "kv-incr",
	[BENCH_KV_GET] = "kv-get",
	[BENCH_LIMIT_MEMORY] = "limit-memory",
	[BENCH_LIMIT_LAGGED] = "limit-lagged",
	[BENCH_LIMIT_COMMITTED] = "limit-committed",
	[BENCH_IDLE] = "idle",
};

const char *bench_work_name(enum bench_work work)
{
	return work < BENCH_WORKS ? work_names[work] : NULL;
}

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;

	(void)clock_gettime(id, &t);
	return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

static uint64_t bench_random(struct bench *b)
{
	/* xorshift64: objects at random, the same in each run. */
	b->random ^= b->random << 13;
	b->random ^= b->random >> 7;
	b->random ^= b->random << 17;
	return b->random;
}

static bool work_limits(enum bench_work w)
{
	return w == BENCH_LIMIT_MEMORY || w == BENCH_LIMIT_LAGGED ||
	       w == BENCH_LIMIT_COMMITTED;
}

/* --------------------------------------------------------------- recipes ---
 */

static void recipe_key(struct recipe *c, const char *key)
{
	pack_cstr(&c->tail, "key");
	pack_cstr(&c->tail, key);
}

static void recipe_options(struct recipe *c, bool keyed)
{
	static const uint8_t zeroes[16];

	if (!keyed)
		return;
	pack_map(&c->tail, 1);
	pack_cstr(&c->tail, "idem");
	pack_bin(&c->tail, zeroes, sizeof(zeroes));
	c->idem_at = c->tail.n - sizeof(zeroes);
}

static void recipe_init(struct recipe *c, const char *class_name)
{
	memset(c, 0, sizeof(*c));
	c->class_name = class_name;
	c->class_bytes = class_name != NULL ? strlen(class_name) : 0;
	pack_w_init(&c->tail, TAIL_BYTES_MAX);
}

static void recipe_value(struct recipe *c, uint32_t n)
{
	char *value = malloc(n + 1);

	pack_cstr(&c->tail, "value");
	if (value == NULL) {
		c->tail.rc = RC_NOMEM;
		return;
	}
	memset(value, 'v', n);
	pack_str(&c->tail, value, n);
	free(value);
}

static void recipe_put(struct recipe *c, uint32_t value_bytes, bool keyed)
{
	recipe_init(c, "kv");
	pack_cstr(&c->tail, "put");
	pack_map(&c->tail, 2);
	recipe_key(c, "k");
	recipe_value(c, value_bytes);
	recipe_options(c, keyed);
}

static void recipe_check(struct recipe *c, bool keyed)
{
	recipe_init(c, "rate_limiter");
	pack_cstr(&c->tail, "check");
	pack_map(&c->tail, 1);
	recipe_key(c, "k00000000");
	c->key_at = c->tail.n - 8;
	c->checks = true;
	recipe_options(c, keyed);
}

static void recipe_policy(struct recipe *c, enum bench_work work)
{
	const char *durability = "committed";

	if (work == BENCH_LIMIT_MEMORY)
		durability = "memory";
	else if (work == BENCH_LIMIT_LAGGED)
		durability = "lagged";
	recipe_init(c, "rate_limiter");
	pack_cstr(&c->tail, "put_policy");
	pack_map(&c->tail, 3);
	pack_cstr(&c->tail, "limit");
	pack_u64(&c->tail, LIMIT_PER_PERIOD);
	pack_cstr(&c->tail, "period_ms");
	pack_u64(&c->tail, LIMIT_PERIOD_MS);
	pack_cstr(&c->tail, "durability");
	pack_cstr(&c->tail, durability);
}

static void recipe_work(struct recipe *c, const struct bench_options *o)
{
	switch (o->work) {
	case BENCH_NULL:
		recipe_init(c, NULL);
		break;
	case BENCH_KV_PUT:
		recipe_put(c, o->value_bytes, o->keyed);
		break;
	case BENCH_KV_INCR:
		recipe_init(c, "kv");
		pack_cstr(&c->tail, "incr");
		pack_map(&c->tail, 1);
		recipe_key(c, "n");
		recipe_options(c, o->keyed);
		break;
	case BENCH_KV_GET:
		recipe_init(c, "kv");
		pack_cstr(&c->tail, "get");
		pack_map(&c->tail, 1);
		recipe_key(c, "k");
		break;
	case BENCH_LIMIT_MEMORY:
	case BENCH_LIMIT_LAGGED:
	case BENCH_LIMIT_COMMITTED:
		recipe_check(c, o->keyed);
		break;
	case BENCH_IDLE:
		recipe_put(c, 16, false);
		break;
	case BENCH_WORKS:
	default:
		CHECK(o->work < BENCH_WORKS);
	}
	c->measured = true;
}

static size_t digits_put(uint8_t *to, uint32_t v)
{
	uint8_t text[10];
	size_t n = 0;
	size_t i;

	do
		text[n++] = (uint8_t)('0' + v % 10);
	while ((v /= 10) != 0);
	for (i = 0; i < n; i++)
		to[i] = text[n - 1 - i];
	return n;
}

static void digits_8(uint8_t *to, uint32_t v)
{
	int i;

	for (i = 7; i >= 0; i--, v /= 10)
		to[i] = (uint8_t)('0' + v % 10);
}

static void u32_put(uint8_t *to, uint32_t v)
{
	to[0] = (uint8_t)(v >> 24);
	to[1] = (uint8_t)(v >> 16);
	to[2] = (uint8_t)(v >> 8);
	to[3] = (uint8_t)v;
}

static uint8_t *put(uint8_t *to, const void *bytes, size_t n)
{
	memcpy(to, bytes, n);
	return to + n;
}

/* One request behind what stands in `w`; at most 600 bytes and the tail. */
static void compose(struct bench *b, struct pack_w *w, uint32_t id,
		    uint32_t object)
{
	const struct recipe *c = b->now_recipe;
	uint8_t *length;
	uint8_t *p;

	if (!pack_w_reserve(w, 600 + c->tail.n))
		return;
	p = put(w->p + w->n, "\x94\x00\xce", 3);
	u32_put(p, id);
	p += 4;
	if (c->class_name == NULL) {
		p = put(p, ping_head, sizeof(ping_head));
		w->n = (size_t)(p - w->p);
		return;
	}
	p = put(p, call_head, sizeof(call_head));
	if (c->idem_at != 0)
		p[-2] = 0x94;
	length = p++;
	p = put(p, c->class_name, c->class_bytes);
	*p++ = '/';
	p = put(p, b->o->prefix, b->prefix_bytes);
	p += digits_put(p, object);
	*length = (uint8_t)(p - length - 1);
	if (c->tail.n > 0)
		memcpy(p, c->tail.p, c->tail.n);
	if (c->key_at != 0)
		digits_8(p + c->key_at,
			 (uint32_t)(bench_random(b) % b->o->keys));
	if (c->idem_at != 0)
		memcpy(put(p + c->idem_at, &b->nonce, 8), &b->calls, 8);
	w->n = (size_t)(p + c->tail.n - w->p);
}

/* ----------------------------------------------------------- connections ---
 */

static enum rc conn_alloc(struct conn *c, uint32_t places, size_t in_cap)
{
	c->fd = -1;
	c->in_cap = in_cap;
	c->in = malloc(in_cap);
	c->free_places = calloc(places, sizeof(*c->free_places));
	c->began_ns = calloc(places, sizeof(*c->began_ns));
	pack_w_init(&c->out, 64u << 20);
	return c->in != NULL && c->free_places != NULL && c->began_ns != NULL
		       ? RC_OK
		       : RC_NOMEM;
}

static void conn_release(struct conn *c)
{
	if (c->fd >= 0)
		(void)close(c->fd);
	free(c->in);
	free(c->free_places);
	free(c->began_ns);
	pack_w_release(&c->out);
}

static bool conn_watch(struct bench *b, struct conn *c, int op)
{
	struct epoll_event e = { .events = EPOLLIN |
					   (c->wants_write ? EPOLLOUT : 0u),
				 .data.ptr = c };

	return epoll_ctl(b->epoll, op, c->fd, &e) == 0;
}

static bool conn_open(struct bench *b, struct conn *c, uint32_t places)
{
	uint32_t i;

	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return false;
	c->wants_write = false;
	c->in_n = 0;
	c->out_at = 0;
	c->in_flight = 0;
	pack_w_reset(&c->out);
	frame_reader_init(&c->reader, FRAME_MAX);
	for (i = 0; i < places; i++) {
		c->free_places[i] = i;
		c->began_ns[i] = 0;
	}
	if (connect(c->fd, (struct sockaddr *)&b->addr, sizeof(b->addr)) == 0 &&
	    conn_watch(b, c, EPOLL_CTL_ADD))
		return true;
	(void)close(c->fd);
	c->fd = -1;
	return false;
}

/* Calls in flight may have happened. */
static void conn_lost(struct bench *b, struct conn *c)
{
	if (c->fd < 0)
		return;
	(void)close(c->fd);
	c->fd = -1;
	if (c == &b->control) {
		b->asked = false;
		return;
	}
	b->open_conns--;
	b->r->unknown_total += c->in_flight;
	if (b->measuring) {
		b->r->unknown += c->in_flight;
		b->r->errors++;
	}
	c->in_flight = 0;
	b->reconnect_ns = b->now_ns + RECONNECT_MS * NS_PER_MS;
}

static void conns_reopen(struct bench *b)
{
	uint32_t i;

	if (b->open_conns == b->o->clients || b->now_ns < b->reconnect_ns)
		return;
	b->reconnect_ns = b->now_ns + RECONNECT_MS * NS_PER_MS;
	for (i = 0; i < b->o->clients; i++) {
		if (b->conns[i].fd >= 0)
			continue;
		if (!conn_open(b, &b->conns[i], b->o->pipeline))
			return;
		b->open_conns++;
	}
	if (b->control.fd < 0)
		(void)conn_open(b, &b->control, 1);
}

static void conn_dirty(struct bench *b, struct conn *c)
{
	if (c->dirty)
		return;
	c->dirty = true;
	c->next_dirty = b->dirty;
	b->dirty = c;
}

static void conn_flush(struct bench *b, struct conn *c)
{
	bool wants_write = false;
	ssize_t n;

	while (c->fd >= 0 && c->out_at < c->out.n) {
		n = send(c->fd, c->out.p + c->out_at, c->out.n - c->out_at,
			 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			c->out_at += (size_t)n;
		} else if (n < 0 && errno == EAGAIN) {
			wants_write = true;
			break;
		} else if (n < 0 && errno != EINTR) {
			conn_lost(b, c);
			return;
		}
	}
	if (c->fd < 0)
		return;
	if (c->out_at == c->out.n) {
		pack_w_reset(&c->out);
		c->out_at = 0;
	}
	if (wants_write != c->wants_write) {
		c->wants_write = wants_write;
		(void)conn_watch(b, c, EPOLL_CTL_MOD);
	}
}

static void bench_flush(struct bench *b)
{
	struct conn *c;

	while ((c = b->dirty) != NULL) {
		b->dirty = c->next_dirty;
		c->dirty = false;
		conn_flush(b, c);
	}
}

/* ----------------------------------------------------------------- calls ---
 */

static void call_begin(struct bench *b, struct conn *c, uint32_t object,
		       uint64_t began_ns)
{
	uint32_t place = c->free_places[b->o->pipeline - c->in_flight - 1];

	compose(b, &c->out, place, object);
	if (c->out.rc != RC_OK) {
		conn_lost(b, c);
		return;
	}
	c->began_ns[place] = began_ns;
	c->in_flight++;
	b->calls++;
	conn_dirty(b, c);
}

static uint32_t object_next(struct bench *b)
{
	if (b->sequence)
		return b->next_object++;
	return b->o->objects == 1 ? 0
				  : (uint32_t)(bench_random(b) % b->o->objects);
}

static bool may_begin(const struct bench *b)
{
	if (b->stop || b->open_loop)
		return false;
	return !b->sequence || b->next_object < b->last_object;
}

/* Closed loop: every free place of a connection gets a call. */
static void conn_fill(struct bench *b, struct conn *c)
{
	while (c->fd >= 0 && c->in_flight < b->o->pipeline && may_begin(b))
		call_begin(b, c, object_next(b), b->now_ns);
}

static void conns_fill(struct bench *b)
{
	uint32_t i;

	for (i = 0; i < b->o->clients && may_begin(b); i++)
		conn_fill(b, &b->conns[i]);
}

static uint64_t intended_ns(const struct bench *b, uint64_t nth)
{
	return b->first_ns +
	       (uint64_t)((double)nth * (double)NS_PER_S / (double)b->o->rate);
}

/* A connection with a free place, in turns; NULL: there is none. */
static struct conn *conn_next(struct bench *b)
{
	struct conn *c;
	uint32_t i;

	for (i = 0; i < b->o->clients; i++) {
		c = &b->conns[(b->nth + i) % b->o->clients];
		if (c->fd >= 0 && c->in_flight < b->o->pipeline)
			return c;
	}
	return NULL;
}

/* Open loop: what should have begun by now begins, where there is a place. */
static void conns_begin_due(struct bench *b)
{
	struct conn *c;
	double late_us;
	uint64_t at;

	while (b->open_loop && !b->stop) {
		at = intended_ns(b, b->nth);
		if (at > b->now_ns || at >= b->end_ns)
			return;
		c = conn_next(b);
		b->full = c == NULL;
		if (c == NULL)
			return;
		late_us = (double)(b->now_ns - at) / 1000;
		if (b->measuring && late_us > b->r->generator_late_us)
			b->r->generator_late_us = late_us;
		b->nth++;
		call_begin(b, c, object_next(b), at);
	}
}

/* {allowed: false, ...}: the key is looked for as bytes, which no other key or
 * value of this answer contains. */
static bool is_denied(struct pack_bytes result)
{
	const uint8_t *at = memmem(result.p, result.n,
				   "\xa7"
				   "allowed",
				   8);

	return at != NULL && at + 8 < result.p + result.n && at[8] == 0xc2;
}

static void answer_error(struct bench *b, const struct frame *f)
{
	struct frame_error e;

	if (frame_error_read(f->error, &e) != RC_OK) {
		e.code = RC_INTERNAL;
		e.outcome = OUTCOME_UNKNOWN;
	}
	if (e.outcome != OUTCOME_REFUSED)
		b->r->unknown_total++;
	if (b->measuring) {
		b->r->errors += e.code == RC_INTERNAL;
		if (e.outcome == OUTCOME_REFUSED)
			b->r->refused++;
		else
			b->r->unknown++;
	}
	if (b->why != NULL && e.message.n > 0)
		(void)detail_set(b->why, e.code, NULL, "%s: %.*s",
				 rc_name(e.code),
				 (int)(e.message.n < 160 ? e.message.n : 160),
				 (const char *)e.message.p);
}

static void call_answered(struct bench *b, struct conn *c,
			  const struct frame *f)
{
	uint64_t began = f->id < b->o->pipeline ? c->began_ns[f->id] : 0;

	if (began == 0 || f->kind != FRAME_RESPONSE) {
		if (f->kind != FRAME_NOTIFY)
			conn_lost(b, c);
		return;
	}
	c->began_ns[f->id] = 0;
	c->free_places[b->o->pipeline - c->in_flight] = f->id;
	c->in_flight--;
	b->answered++;
	if (f->error.n != 1 || f->error.p[0] != 0xc0) {
		answer_error(b, f);
		return;
	}
	if (b->measuring && b->now_recipe->measured)
		hdr_record(b->hdr, b->now_ns - began);
	if (b->now_recipe->checks && is_denied(f->result)) {
		b->r->denied += b->measuring;
		return;
	}
	b->r->acked_total += b->now_recipe->measured;
	b->r->ok += b->measuring;
}

/* ---------------------------------------------------------------- status ---
 */

static void status_ask(struct bench *b, struct snapshot *into)
{
	struct conn *c = &b->control;

	into->good = false;
	b->asked_into = into;
	b->asked = c->fd >= 0;
	if (!b->asked)
		return;
	frame_request(&c->out, 0, "status", 6);
	pack_array(&c->out, 1);
	pack_map(&c->out, 1);
	pack_cstr(&c->out, "reset_stall");
	pack_bool(&c->out, true);
	conn_dirty(b, c);
}

static void status_read(struct pack_bytes map, struct snapshot *s)
{
	const struct {
		const char *name;
		uint64_t *to;
	} fields[] = {
		{ "syncs", &s->syncs },
		{ "cpu_us", &s->cpu_us },
		{ "rss_bytes", &s->rss_bytes },
		{ "objects_resident", &s->resident },
		{ "loop_stall_max_us", &s->stall_us },
	};
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes key;
	struct pack_bytes value;
	struct pack_r vr;
	uint32_t n;
	size_t i;

	if (pack_get_map(&r, &n) != RC_OK)
		return;
	s->good = true;
	for (; n > 0; n--) {
		if (pack_get_bytes(&r, &key) != RC_OK ||
		    pack_skip(&r, &value) != RC_OK)
			return;
		for (i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
			vr = pack_reader(value.p, value.n);
			if (pack_bytes_eq(key, fields[i].name,
					  strlen(fields[i].name)))
				(void)pack_get_u64(&vr, fields[i].to);
		}
	}
}

static void status_answered(struct bench *b, const struct frame *f)
{
	struct snapshot *s = b->asked_into;

	if (!b->asked || f->kind != FRAME_RESPONSE)
		return;
	b->asked = false;
	s->at_ns = b->now_ns;
	s->own_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	s->answered = b->answered;
	if (f->error.n == 1 && f->error.p[0] == 0xc0)
		status_read(f->result, s);
	else if (b->why != NULL)
		answer_error(b, f);
}

/* ------------------------------------------------------------------ loop ---
 */

static bool conn_grow(struct conn *c)
{
	uint8_t *p;

	CHECK(c->in_cap > 0);
	p = realloc(c->in, c->in_cap * 2);
	if (p == NULL)
		return false;
	c->in = p;
	c->in_cap *= 2;
	return true;
}

static void conn_frames(struct bench *b, struct conn *c)
{
	struct frame f;
	size_t at = 0;
	size_t used;
	enum rc rc = RC_OK;

	while (c->fd >= 0 && at < c->in_n) {
		used = 0;
		rc = frame_next(&c->reader, c->in + at, c->in_n - at, &f, &used,
				NULL);
		if (rc != RC_OK)
			break;
		at += used;
		if (c == &b->control)
			status_answered(b, &f);
		else
			call_answered(b, c, &f);
	}
	c->in_n -= at;
	if (c->in_n > 0 && at > 0)
		memmove(c->in, c->in + at, c->in_n);
	if ((rc != RC_OK && rc != RC_AGAIN) ||
	    (c->in_n == c->in_cap && !conn_grow(c)))
		conn_lost(b, c);
}

static void conn_read(struct bench *b, struct conn *c)
{
	ssize_t n;

	n = recv(c->fd, c->in + c->in_n, c->in_cap - c->in_n, MSG_DONTWAIT);
	b->now_ns = clock_ns(CLOCK_MONOTONIC);
	if (n > 0) {
		c->in_n += (size_t)n;
		conn_frames(b, c);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		conn_lost(b, c);
	}
	if (c != &b->control)
		conn_fill(b, c);
}

/* Wake up for the next call of an open loop, at the latest at `until_ns`. A
 * timer that fires too early costs a turn, so it is set only when it would fire
 * too late. */
static void timer_set(struct bench *b, uint64_t until_ns)
{
	struct itimerspec t = { { 0, 0 }, { 0, 0 } };
	uint64_t at = until_ns;

	if (b->open_loop && !b->stop && !b->full && intended_ns(b, b->nth) < at)
		at = intended_ns(b, b->nth);
	if (b->open_conns < b->o->clients && b->reconnect_ns < at)
		at = b->reconnect_ns;
	if (at < b->now_ns + TURN_NS_MIN)
		at = b->now_ns + TURN_NS_MIN;
	if (b->timer_ns > b->now_ns && b->timer_ns <= at)
		return;
	b->timer_ns = at;
	t.it_value.tv_sec = (time_t)(at / NS_PER_S);
	t.it_value.tv_nsec = (long)(at % NS_PER_S);
	(void)timerfd_settime(b->timer, TFD_TIMER_ABSTIME, &t, NULL);
}

static void bench_turn(struct bench *b, uint64_t until_ns)
{
	struct epoll_event events[EVENTS];
	struct conn *c;
	uint64_t ticks;
	int n;
	int i;

	bench_flush(b);
	timer_set(b, until_ns);
	n = epoll_wait(b->epoll, events, EVENTS, -1);
	b->now_ns = clock_ns(CLOCK_MONOTONIC);
	for (i = 0; i < n; i++) {
		c = events[i].data.ptr;
		if (c == NULL) {
			(void)!read(b->timer, &ticks, sizeof(ticks));
			continue;
		}
		if (c->fd >= 0 && (events[i].events & EPOLLOUT) != 0)
			conn_dirty(b, c);
		if (c->fd >= 0 && (events[i].events & ~(uint32_t)EPOLLOUT) != 0)
			conn_read(b, c);
	}
	if (b->open_conns < b->o->clients) {
		conns_reopen(b);
		conns_fill(b);
	}
	conns_begin_due(b);
}

static uint32_t calls_in_flight(const struct bench *b)
{
	uint32_t n = 0;
	uint32_t i;

	for (i = 0; i < b->o->clients; i++)
		n += b->conns[i].in_flight;
	return n;
}

/* Runs until `end_ns`. */
static void bench_until(struct bench *b, uint64_t end_ns)
{
	while (b->now_ns < end_ns)
		bench_turn(b, end_ns);
}

static void bench_status(struct bench *b, struct snapshot *into)
{
	uint64_t end_ns = b->now_ns + DRAIN_MS * (uint64_t)NS_PER_MS;

	status_ask(b, into);
	while (b->asked && b->now_ns < end_ns)
		bench_turn(b, end_ns);
	if (!into->good) {
		into->at_ns = b->now_ns;
		into->own_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
		into->answered = b->answered;
	}
	b->asked = false;
	b->asked_into = NULL;
}

/* No new calls; those in flight end, or are counted as lost. */
static void bench_drain(struct bench *b)
{
	uint64_t end_ns = b->now_ns + DRAIN_MS * (uint64_t)NS_PER_MS;
	uint32_t left;

	b->stop = true;
	b->open_loop = false;
	while ((left = calls_in_flight(b)) > 0 && b->now_ns < end_ns)
		bench_turn(b, end_ns);
	b->r->unknown_total += left;
	b->r->errors += left;
}

/* ---------------------------------------------------------------- phases ---
 */

/* One call of `c` to each object from 0 to `n` - 1, `times` over. */
static enum rc phase_each(struct bench *b, const struct recipe *c, uint32_t n,
			  const char *what)
{
	uint64_t end_ns = b->now_ns + SETUP_MS * (uint64_t)NS_PER_MS;
	uint64_t calls = b->calls;
	uint64_t lost = b->r->unknown_total;
	struct detail first = { 0 };
	struct detail *why = b->why;

	b->why = &first;
	b->now_recipe = c;
	b->sequence = true;
	b->next_object = 0;
	b->last_object = n;
	b->stop = false;
	conns_fill(b);
	while ((b->next_object < n || calls_in_flight(b) > 0) &&
	       b->now_ns < end_ns && b->r->unknown_total == lost &&
	       first.text[0] == '\0')
		bench_turn(b, end_ns);
	b->sequence = false;
	b->now_recipe = &b->recipe;
	b->why = why;
	if (b->next_object == n && calls_in_flight(b) == 0 &&
	    b->calls - calls == n && first.text[0] == '\0')
		return RC_OK;
	return detail_set(why, RC_CONFLICT, NULL, "%s: %s", what,
			  first.text[0] != '\0' ? first.text
						: "no answer of the server");
}

static enum rc bench_set_up(struct bench *b)
{
	const struct bench_options *o = b->o;
	struct recipe c;
	enum rc rc = RC_OK;

	PRE(b->conns != NULL);
	if (work_limits(o->work)) {
		recipe_policy(&c, o->work);
		rc = phase_each(b, &c, o->objects, "setting the policies");
		pack_w_release(&c.tail);
	} else if (o->work == BENCH_KV_GET) {
		recipe_put(&c, o->value_bytes, false);
		rc = phase_each(b, &c, o->objects, "writing the objects");
		pack_w_release(&c.tail);
	}
	return rc;
}

static void result_server(struct bench *b, const struct snapshot *from,
			  const struct snapshot *to)
{
	struct bench_result *r = b->r;
	double calls = (double)(to->answered - from->answered);

	r->syncs = -1;
	r->syncs_per_op = -1;
	r->server_cpu_us_per_op = -1;
	r->loop_stall_max_us = -1;
	r->rss_bytes = -1;
	r->objects_resident = -1;
	if (calls > 0)
		r->client_cpu_us_per_op =
			(double)(to->own_cpu_ns - from->own_cpu_ns) / 1000 /
			calls;
	/* A server that was started anew in between counts from 0. */
	if (!from->good || !to->good || to->cpu_us < from->cpu_us ||
	    to->syncs < from->syncs)
		return;
	r->syncs = (double)(to->syncs - from->syncs);
	r->loop_stall_max_us = (double)to->stall_us;
	r->rss_bytes = (double)to->rss_bytes;
	r->objects_resident = (double)to->resident;
	if (calls > 0) {
		r->syncs_per_op = r->syncs / calls;
		r->server_cpu_us_per_op =
			(double)(to->cpu_us - from->cpu_us) / calls;
	}
}

static void result_times(struct bench *b)
{
	struct bench_result *r = b->r;

	r->ops_per_s = r->elapsed_s > 0 ? (double)r->ok / r->elapsed_s : 0;
	r->p50_us = (double)hdr_percentile(b->hdr, 50) / 1000;
	r->p99_us = (double)hdr_percentile(b->hdr, 99) / 1000;
	r->p999_us = (double)hdr_percentile(b->hdr, 99.9) / 1000;
	r->max_us = (double)hdr_max(b->hdr) / 1000;
	r->mean_us = hdr_mean(b->hdr) / 1000;
}

static void phase_start(struct bench *b, uint64_t seconds_ns)
{
	b->stop = false;
	b->open_loop = b->o->rate > 0;
	b->first_ns = b->now_ns;
	b->nth = 0;
	b->end_ns = b->now_ns + seconds_ns;
	conns_fill(b);
	conns_begin_due(b);
}

/* How many calls of an open loop should have begun by `end_ns`. */
static uint64_t calls_due(const struct bench *b, uint64_t end_ns)
{
	return (uint64_t)((double)(end_ns - b->first_ns) * (double)b->o->rate /
			  (double)NS_PER_S);
}

static void bench_load(struct bench *b)
{
	struct snapshot from = { 0 };
	struct snapshot to = { 0 };
	uint64_t start_ns;
	uint64_t due;

	b->now_recipe = &b->recipe;
	b->now_ns = clock_ns(CLOCK_MONOTONIC);
	phase_start(b, UINT64_MAX / 4);
	bench_until(b, b->now_ns + b->o->warm_ms * (uint64_t)NS_PER_MS);
	bench_status(b, &from);
	start_ns = b->now_ns;
	b->measuring = true;
	phase_start(b, b->o->seconds * (uint64_t)NS_PER_S);
	bench_until(b, b->end_ns);
	b->r->elapsed_s = (double)(b->now_ns - start_ns) / NS_PER_S;
	/* The second answer of status ends the measurement of the server;
	 * calls go on until it is there. What is measured here has ended. */
	b->measuring = false;
	if (b->o->rate > 0) {
		due = calls_due(b, b->end_ns);
		b->r->unsent = due > b->nth ? due - b->nth : 0;
	}
	bench_status(b, &to);
	bench_drain(b);
	result_server(b, &from, &to);
	result_times(b);
}

/* Memory per object. Buffers and allocators get their size before: what they
 * take is not the objects'. */
static enum rc bench_idle(struct bench *b)
{
	struct snapshot from = { 0 };
	struct snapshot to = { 0 };
	uint64_t start_ns;
	uint32_t n;
	enum rc rc = RC_OK;

	recipe_put(&b->warm, 16, false);
	for (n = 0; n < WARM_WRITES && rc == RC_OK; n += 16)
		rc = phase_each(b, &b->warm, 16, "warming up");
	pack_w_release(&b->warm.tail);
	if (rc != RC_OK)
		return rc;
	bench_status(b, &from);
	start_ns = b->now_ns;
	b->measuring = true;
	rc = phase_each(b, &b->recipe, b->o->objects, "writing the objects");
	b->measuring = false;
	if (rc != RC_OK)
		return rc;
	b->r->elapsed_s = (double)(b->now_ns - start_ns) / NS_PER_S;
	b->stop = true;
	bench_until(b, b->now_ns + b->o->seconds * (uint64_t)NS_PER_S);
	bench_status(b, &to);
	result_server(b, &from, &to);
	result_times(b);
	if (from.good && to.good)
		b->r->rss_bytes_per_object =
			((double)to.rss_bytes - (double)from.rss_bytes) /
			(double)b->o->objects;
	return RC_OK;
}

/* ------------------------------------------------------------- beginning ---
 */

static enum rc bench_address(struct bench *b)
{
	size_t n = strlen(b->o->socket);

	b->addr.sun_family = AF_UNIX;
	if (n == 0 || n >= sizeof(b->addr.sun_path))
		return detail_set(b->why, RC_INVALID, "socket",
				  "the path of a socket has 1 to %zu bytes",
				  sizeof(b->addr.sun_path) - 1);
	memcpy(b->addr.sun_path, b->o->socket, n);
	return RC_OK;
}

static enum rc bench_connect(struct bench *b)
{
	size_t in_cap = b->o->pipeline > 8 ? IN_BYTES : IN_BYTES_MIN;
	uint32_t i;

	b->conns = calloc(b->o->clients, sizeof(*b->conns));
	if (b->conns == NULL)
		return RC_NOMEM;
	for (i = 0; i < b->o->clients; i++)
		b->conns[i].fd = -1;
	if (conn_alloc(&b->control, 1, IN_BYTES_MIN) != RC_OK)
		return RC_NOMEM;
	for (i = 0; i < b->o->clients; i++) {
		if (conn_alloc(&b->conns[i], b->o->pipeline, in_cap) != RC_OK)
			return RC_NOMEM;
		if (!conn_open(b, &b->conns[i], b->o->pipeline))
			return detail_set(b->why, RC_IO, NULL,
					  "cannot connect to %s: %s",
					  b->o->socket, strerror(errno));
		b->open_conns++;
	}
	if (!conn_open(b, &b->control, 1))
		return detail_set(b->why, RC_IO, NULL,
				  "cannot connect to %s: %s", b->o->socket,
				  strerror(errno));
	return RC_OK;
}

static enum rc bench_open(struct bench *b)
{
	struct epoll_event e = { .events = EPOLLIN };
	enum rc rc = bench_address(b);

	if (rc != RC_OK)
		return rc;
	b->hdr = hdr_new();
	b->epoll = epoll_create1(EPOLL_CLOEXEC);
	b->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (b->hdr == NULL)
		return RC_NOMEM;
	if (b->epoll < 0 || b->timer < 0 ||
	    epoll_ctl(b->epoll, EPOLL_CTL_ADD, b->timer, &e) != 0)
		return detail_set(b->why, RC_IO, NULL, "cannot wait: %s",
				  strerror(errno));
	b->now_ns = clock_ns(CLOCK_MONOTONIC);
	b->random = 0x9e3779b97f4a7c15u;
	if (getrandom(&b->nonce, sizeof(b->nonce), 0) < 0)
		b->nonce = b->now_ns;
	b->prefix_bytes = strlen(b->o->prefix);
	recipe_work(&b->recipe, b->o);
	b->now_recipe = &b->recipe;
	if (b->recipe.tail.rc != RC_OK)
		return RC_NOMEM;
	return bench_connect(b);
}

static void bench_release(struct bench *b)
{
	uint32_t i;

	for (i = 0; b->conns != NULL && i < b->o->clients; i++)
		conn_release(&b->conns[i]);
	conn_release(&b->control);
	free(b->conns);
	pack_w_release(&b->recipe.tail);
	hdr_free(b->hdr);
	if (b->epoll >= 0)
		(void)close(b->epoll);
	if (b->timer >= 0)
		(void)close(b->timer);
}

static enum rc options_check(const struct bench_options *o, struct detail *why)
{
	if (o->work >= BENCH_WORKS || o->clients < 1 ||
	    o->clients > BENCH_CLIENTS_MAX || o->pipeline < 1 ||
	    o->pipeline > BENCH_PIPELINE_MAX || o->objects < 1 ||
	    o->objects > BENCH_OBJECTS_MAX || o->keys < 1 ||
	    o->keys > 99999999u || strlen(o->prefix) > BENCH_PREFIX_MAX ||
	    o->value_bytes > (1u << 20))
		return detail_set(why, RC_INVALID, NULL,
				  "an option of the load is out of bounds");
	return RC_OK;
}

enum rc bench_run(const struct bench_options *o, struct bench_result *r,
		  struct detail *why)
{
	struct bench b = { .o = o, .r = r, .epoll = -1, .timer = -1 };
	struct detail ours = { 0 };
	enum rc rc;

	memset(r, 0, sizeof(*r));
	b.why = why != NULL ? why : &ours;
	b.control.fd = -1;
	rc = options_check(o, b.why);
	if (rc != RC_OK)
		return rc;
	rc = bench_open(&b);
	if (rc == RC_OK)
		rc = bench_set_up(&b);
	if (rc == RC_OK && o->work == BENCH_IDLE)
		rc = bench_idle(&b);
	else if (rc == RC_OK)
		bench_load(&b);
	bench_release(&b);
	return rc;
}
