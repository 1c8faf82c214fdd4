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
 * idempotency key. The id is the call's place among those of its client. There
 * are two tails: one of them asks to be told when the node is not the owner.
 */
#include "client/bench.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
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
#include "client/profile.h"
#include "client/proto/frame.h"
#include "client/tls.h"

#define NS_PER_S     1000000000u
#define NS_PER_MS    1000000u
#define IN_BYTES     262144u
#define IN_BYTES_MIN 16384u
#define FRAME_MAX    (4u << 20)
/* So many connections are read before what their answers set off is sent: with
 * all of them at once the nodes would have nothing to do meanwhile. */
#define EVENTS           8
#define DRAIN_MS         7000u
#define SETUP_MS         600000u
#define CONNECT_MS       20000u
#define CONNECT_REST_MS  1000u  /* While one node is there, for the others. */
#define SETTLE_MS        30000u /* Set-up: until a shard has an owner. */
#define RECONNECT_MS     20u
#define CIPHER_BYTES     262144u
#define HOPS_MAX         4u
#define OWNER_UNKNOWN    0xffu
#define VOID_PERCENT     1u
#define TURN_NS_MIN      20000u   /* Open loop: wake up at most so often. */
#define BATCH_CALLS      256u     /* Open loop: about so many begin at once, */
#define BATCH_NS_MAX     1000000u /* at most so long apart. */
#define TAIL_BYTES_MAX   (2u << 20)
#define WARM_WRITES      20000u
#define LIMIT_PER_PERIOD 1000000u
#define LIMIT_PERIOD_MS  1000u

/* What stands behind the address. */
struct tail {
	struct pack_w w;
	size_t key_at;  /* Of 8 digits; 0: none. */
	size_t idem_at; /* Of 16 bytes; 0: none. */
};

/* How requests of one kind are made. */
struct recipe {
	const char *class_name; /* NULL: ping. */
	size_t class_bytes;
	struct tail tail[2]; /* The second asks to be redirected. */
	bool options;        /* The first has options too. */
	bool checks;         /* Answers say whether they are allowed. */
	bool measured;
};

struct client;

struct conn {
	int fd;     /* -1: lost. */
	bool ready; /* Connected, and the handshake is over. */
	bool wants_write;
	bool dirty;            /* In the list of those to write. */
	struct client *client; /* NULL: for `status` and `hello`. */
	uint32_t node;
	struct tls *tls; /* NULL: none. */
	uint32_t queued; /* Calls since the socket had taken everything. */
	struct pack_w out;
	size_t out_at;
	uint8_t *in;
	size_t in_cap;
	size_t in_n;
	struct frame_reader reader;
	struct conn *next_dirty;
};

/* A place for one call. */
struct place {
	uint64_t began_ns; /* 0: free. */
	uint64_t number;   /* Of the call, for its idempotency key. */
	uint32_t object;
	uint8_t node;
	uint8_t hops;
};

struct client {
	uint32_t in_flight;
	uint32_t *free_places; /* pipeline - in_flight of them. */
	struct place *places;
	struct conn *conns; /* One for each node that is called. */
};

/* What `status` of one node says, as far as it matters here. */
struct said {
	bool good;
	uint64_t syncs;
	uint64_t cpu_us;
	uint64_t rss_bytes;
	uint64_t resident;
	uint64_t stall_us;
	uint64_t frames;
	uint64_t peer_frames;
	uint64_t stage_us[BENCH_STAGES];
};

/* The nodes and ourselves at one moment. */
struct snapshot {
	struct said of[BENCH_NODES_MAX];
	uint64_t answered; /* Calls of ours until then. */
	uint64_t at_ns;
	uint64_t own_cpu_ns;
};

struct node {
	char name[PROFILE_NAME_BYTES_MAX + 1];
	char id[24];
	struct sockaddr_storage addr;
	socklen_t addr_bytes;
	bool tcp;
	struct conn control;
	bool asked; /* An answer of status is waited for. */
	bool greeted;
};

struct bench {
	const struct bench_options *o;
	struct bench_result *r;
	struct detail *why;
	int epoll;
	int timer;
	struct tls_context *tls;
	struct node nodes[BENCH_NODES_MAX];
	uint32_t called; /* So many of them have the load. */
	size_t prefix_bytes;
	struct client *clients;
	uint32_t lost_conns;
	uint64_t reconnect_ns;
	uint64_t timer_ns; /* When it fires. */
	struct conn *dirty;
	struct hdr *hdr;
	struct recipe recipe;
	struct recipe warm; /* BENCH_IDLE: before its objects. */
	const struct recipe *now_recipe;
	uint8_t *owners; /* The node of each object; OWNER_UNKNOWN. */
	uint8_t *cipher;
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
	uint64_t
		settle_ns; /* sequence: refusals that pass are borne so long. */
	bool open_loop;
	bool full;         /* open loop: no free place for the next call. */
	uint64_t first_ns; /* open loop: of call 0. */
	uint64_t nth;
	uint64_t batch_ns; /* open loop: when the next calls begin. */
	uint32_t batch_of; /* and of whom. */
	uint64_t end_ns;   /* No call begins at or after. */
	bool stop;

	struct snapshot *asked_into; /* NULL: nothing is asked. */
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
	[BENCH_LIMIT_LEASED] = "limit-leased",
	[BENCH_LIMIT_COMMITTED] = "limit-committed",
	[BENCH_IDLE] = "idle",
};

const char *bench_work_name(enum bench_work work)
{
	return work < BENCH_WORKS ? work_names[work] : NULL;
}

static const char *const stage_names[] = {
	[BENCH_EXECUTE] = "execute",
	[BENCH_PROPOSE] = "propose",
	[BENCH_LOG] = "log",
	[BENCH_ROUND] = "round",
	[BENCH_RELEASE] = "release",
	[BENCH_SEND] = "send",
	[BENCH_LOG_WRITER] = "log_writer",
	[BENCH_STORAGE] = "storage",
};

const char *bench_stage_name(enum bench_stage stage)
{
	return stage < BENCH_STAGES ? stage_names[stage] : NULL;
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
	       w == BENCH_LIMIT_LEASED || w == BENCH_LIMIT_COMMITTED;
}

/* --------------------------------------------------------------- recipes ---
 */

static void tail_options(struct tail *t, bool keyed, bool redirect)
{
	static const uint8_t zeroes[16];

	if (!keyed && !redirect)
		return;
	pack_map(&t->w, (uint32_t)keyed + (uint32_t)redirect);
	if (redirect) {
		pack_cstr(&t->w, "route");
		pack_cstr(&t->w, "redirect");
	}
	if (keyed) {
		pack_cstr(&t->w, "idem");
		pack_bin(&t->w, zeroes, sizeof(zeroes));
		t->idem_at = t->w.n - sizeof(zeroes);
	}
}

/* The method and its arguments are in the first tail. */
static void recipe_finish(struct recipe *c, bool keyed)
{
	struct tail *t = c->tail;

	t[1].key_at = t[0].key_at;
	if (t[0].w.rc == RC_OK)
		pack_raw(&t[1].w, t[0].w.p, t[0].w.n);
	tail_options(&t[0], keyed, false);
	tail_options(&t[1], keyed, true);
	c->options = keyed;
	if (t[1].w.rc != RC_OK)
		t[0].w.rc = t[1].w.rc;
}

static struct pack_w *recipe_init(struct recipe *c, const char *class_name,
				  const char *method, uint32_t args)
{
	memset(c, 0, sizeof(*c));
	pack_w_init(&c->tail[0].w, TAIL_BYTES_MAX);
	pack_w_init(&c->tail[1].w, TAIL_BYTES_MAX);
	c->class_name = class_name;
	if (class_name == NULL)
		return NULL;
	c->class_bytes = strlen(class_name);
	pack_cstr(&c->tail[0].w, method);
	pack_map(&c->tail[0].w, args);
	return &c->tail[0].w;
}

static void recipe_release(struct recipe *c)
{
	pack_w_release(&c->tail[0].w);
	pack_w_release(&c->tail[1].w);
}

static void put_pair(struct pack_w *w, const char *key, const char *text)
{
	pack_cstr(w, key);
	pack_cstr(w, text);
}

static void put_value(struct pack_w *w, uint32_t n)
{
	char *value = malloc(n + 1);

	pack_cstr(w, "value");
	if (value == NULL) {
		w->rc = RC_NOMEM;
		return;
	}
	memset(value, 'v', n);
	pack_str(w, value, n);
	free(value);
}

static void recipe_put(struct recipe *c, uint32_t value_bytes, bool keyed)
{
	struct pack_w *w = recipe_init(c, "kv", "put", 2);

	put_pair(w, "key", "k");
	put_value(w, value_bytes);
	recipe_finish(c, keyed);
}

/* One argument: the key. */
static void recipe_key(struct recipe *c, const char *class_name,
		       const char *method, const char *key, bool keyed)
{
	put_pair(recipe_init(c, class_name, method, 1), "key", key);
	if (strlen(key) == 9) /* A letter and digits that change. */
		c->tail[0].key_at = c->tail[0].w.n - 8;
	recipe_finish(c, keyed);
}

static void recipe_policy(struct recipe *c, enum bench_work work)
{
	struct pack_w *w = recipe_init(c, "rate_limiter", "put_policy", 3);
	const char *durability = "committed";

	if (work == BENCH_LIMIT_MEMORY)
		durability = "memory";
	else if (work == BENCH_LIMIT_LAGGED)
		durability = "lagged";
	else if (work == BENCH_LIMIT_LEASED)
		durability = "leased";
	pack_cstr(w, "limit");
	pack_u64(w, LIMIT_PER_PERIOD);
	pack_cstr(w, "period_ms");
	pack_u64(w, LIMIT_PERIOD_MS);
	put_pair(w, "durability", durability);
	recipe_finish(c, false);
}

static void recipe_work(struct recipe *c, const struct bench_options *o)
{
	switch (o->work) {
	case BENCH_NULL:
		(void)recipe_init(c, NULL, NULL, 0);
		break;
	case BENCH_KV_PUT:
		recipe_put(c, o->value_bytes, o->keyed);
		break;
	case BENCH_KV_INCR:
		recipe_key(c, "kv", "incr", "n", o->keyed);
		break;
	case BENCH_KV_GET:
		recipe_key(c, "kv", "get", "k", false);
		break;
	case BENCH_LIMIT_MEMORY:
	case BENCH_LIMIT_LAGGED:
	case BENCH_LIMIT_LEASED:
	case BENCH_LIMIT_COMMITTED:
		recipe_key(c, "rate_limiter", "check", "k00000000", o->keyed);
		c->checks = true;
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

/* Each key has its limiter: of n, limiter i has the keys i, i + n, ... */
static uint32_t key_of(struct bench *b, uint32_t object)
{
	uint32_t n = b->o->keys / b->o->objects;

	return (uint32_t)(bench_random(b) % (n > 0 ? n : 1)) * b->o->objects +
	       object;
}

/* One request behind what stands in `w`; at most 600 bytes and the tail. */
static void compose(struct bench *b, struct pack_w *w, uint32_t id,
		    const struct place *l, bool redirect)
{
	const struct recipe *c = b->now_recipe;
	const struct tail *t = &c->tail[redirect];
	uint8_t *length;
	uint8_t *p;

	if (!pack_w_reserve(w, 600 + t->w.n))
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
	if (c->options || redirect)
		p[-2] = 0x94;
	length = p++;
	p = put(p, c->class_name, c->class_bytes);
	*p++ = '/';
	p = put(p, b->o->prefix, b->prefix_bytes);
	p += digits_put(p, l->object);
	*length = (uint8_t)(p - length - 1);
	if (t->w.n > 0)
		memcpy(p, t->w.p, t->w.n);
	if (t->key_at != 0)
		digits_8(p + t->key_at, key_of(b, l->object));
	if (t->idem_at != 0)
		memcpy(put(p + t->idem_at, &b->nonce, 8), &l->number, 8);
	w->n = (size_t)(p + t->w.n - w->p);
}

/* ----------------------------------------------------------- connections ---
 */

static bool conn_is_control(const struct conn *c)
{
	return c->client == NULL;
}

static enum rc conn_alloc(struct conn *c, struct client *client, uint32_t node,
			  size_t in_cap)
{
	c->fd = -1;
	c->client = client;
	c->node = node;
	c->in_cap = in_cap;
	c->in = malloc(in_cap);
	pack_w_init(&c->out, 64u << 20);
	return c->in != NULL ? RC_OK : RC_NOMEM;
}

static void conn_shut(struct conn *c)
{
	if (c->fd >= 0)
		(void)close(c->fd);
	c->fd = -1;
	c->ready = false;
	tls_free(c->tls);
	c->tls = NULL;
}

static void conn_release(struct conn *c)
{
	conn_shut(c);
	free(c->in);
	pack_w_release(&c->out);
}

static bool conn_watch(struct bench *b, struct conn *c, int op)
{
	struct epoll_event e = { .events = EPOLLIN |
					   (c->wants_write ? EPOLLOUT : 0u),
				 .data.ptr = c };

	return epoll_ctl(b->epoll, op, c->fd, &e) == 0;
}

static void conn_dirty(struct bench *b, struct conn *c)
{
	if (c->dirty)
		return;
	c->dirty = true;
	c->next_dirty = b->dirty;
	b->dirty = c;
}

static void hello_ask(struct bench *b, struct conn *c)
{
	frame_request(&c->out, 1, "hello", 5);
	pack_array(&c->out, 0);
	conn_dirty(b, c);
}

/* It may carry calls. */
static void conn_is_ready(struct bench *b, struct conn *c)
{
	c->ready = true;
	if (conn_is_control(c))
		hello_ask(b, c);
}

static bool conn_open(struct bench *b, struct conn *c)
{
	const struct node *n = &b->nodes[c->node];
	int one = 1;
	int e;

	c->fd = socket(n->addr.ss_family,
		       SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		return false;
	c->wants_write = n->tcp;
	c->in_n = 0;
	c->out_at = 0;
	c->queued = 0;
	pack_w_reset(&c->out);
	frame_reader_init(&c->reader, FRAME_MAX);
	if (n->tcp)
		(void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one,
				 sizeof(one));
	e = connect(c->fd, (const struct sockaddr *)&n->addr, n->addr_bytes);
	if ((e != 0 && !(n->tcp && errno == EINPROGRESS)) ||
	    (n->tcp && tls_new(b->tls, false, &c->tls) != RC_OK) ||
	    !conn_watch(b, c, EPOLL_CTL_ADD)) {
		e = errno;
		conn_shut(c);
		errno = e;
		return false;
	}
	if (n->tcp)
		tls_keep(c->tls);
	else
		conn_is_ready(b, c);
	return true;
}

static void place_free(struct bench *b, struct client *k, uint32_t place)
{
	k->places[place].began_ns = 0;
	k->free_places[b->o->pipeline - k->in_flight] = place;
	k->in_flight--;
}

/* Calls in flight on it may have happened. */
static void conn_lost(struct bench *b, struct conn *c)
{
	uint32_t lost = 0;
	uint32_t i;

	if (c->fd < 0)
		return;
	conn_shut(c);
	b->lost_conns++;
	b->reconnect_ns = b->now_ns + RECONNECT_MS * NS_PER_MS;
	if (conn_is_control(c)) {
		b->nodes[c->node].asked = false;
		return;
	}
	for (i = 0; i < b->o->pipeline; i++) {
		if (c->client->places[i].began_ns == 0 ||
		    c->client->places[i].node != c->node)
			continue;
		place_free(b, c->client, i);
		lost++;
	}
	b->r->unknown_total += lost;
	if (b->measuring) {
		b->r->unknown += lost;
		b->r->errors++;
	}
}

/* False: no use to try more. */
static bool conn_reopen(struct bench *b, struct conn *c)
{
	if (c->fd >= 0)
		return true;
	if (!conn_open(b, c))
		return false;
	b->lost_conns--;
	return true;
}

static void conns_reopen(struct bench *b)
{
	uint32_t i;
	uint32_t n;

	if (b->lost_conns == 0 || b->now_ns < b->reconnect_ns)
		return;
	b->reconnect_ns = b->now_ns + RECONNECT_MS * NS_PER_MS;
	for (n = 0; n < b->o->nodes_n; n++) {
		/* One connection tries whether it is there. */
		if (!conn_reopen(b, &b->nodes[n].control) ||
		    !b->nodes[n].control.ready || n >= b->called)
			continue;
		for (i = 0; i < b->o->clients; i++)
			if (!conn_reopen(b, &b->clients[i].conns[n]))
				break;
	}
}

/* What is to be sent next: `*n` 0: nothing. False: out of memory. */
static bool conn_output(struct conn *c, const uint8_t **p, size_t *n)
{
	*p = c->out.p + c->out_at;
	*n = c->ready ? c->out.n - c->out_at : 0;
	if (c->tls == NULL)
		return true;
	if (*n > 0 && tls_write(c->tls, *p, *n) != RC_OK)
		return false;
	if (c->ready)
		pack_w_reset(&c->out);
	tls_output(c->tls, p, n);
	return true;
}

static void conn_flush(struct bench *b, struct conn *c)
{
	bool wants_write = false;
	const uint8_t *p;
	ssize_t k;
	size_t n;

	while (c->fd >= 0) {
		if (!conn_output(c, &p, &n)) {
			conn_lost(b, c);
			return;
		}
		if (n == 0)
			break;
		k = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k > 0 && c->tls != NULL) {
			tls_sent(c->tls, (size_t)k);
		} else if (k > 0) {
			c->out_at += (size_t)k;
		} else if (k < 0 && (errno == EAGAIN || errno == ENOTCONN)) {
			wants_write = true;
			break;
		} else if (k < 0 && errno != EINTR) {
			conn_lost(b, c);
			return;
		}
	}
	if (c->fd < 0)
		return;
	if (c->tls == NULL && c->out_at == c->out.n) {
		pack_w_reset(&c->out);
		c->out_at = 0;
	}
	if (!wants_write)
		c->queued = 0;
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

/* The node that a call goes to first, and whether it is asked to say so when it
 * is not the owner. */
static uint32_t node_for(struct bench *b, const struct client *k,
			 uint32_t object, bool *redirect)
{
	uint32_t home = (uint32_t)(k - b->clients) % b->called;
	uint32_t owner = b->owners[object];

	*redirect = b->called > 1;
	if (owner == OWNER_UNKNOWN)
		return home;
	if (b->o->forwarded > 0 && !b->sequence &&
	    bench_random(b) % 100 < b->o->forwarded) {
		*redirect = false;
		return (owner + 1) % b->called;
	}
	return owner;
}

/* One whose connection stands, this one first. */
static struct conn *conn_for(struct bench *b, struct client *k, uint32_t node)
{
	uint32_t i;

	for (i = 0; i < b->called; i++)
		if (k->conns[(node + i) % b->called].ready)
			return &k->conns[(node + i) % b->called];
	return NULL;
}

static void call_send(struct bench *b, struct client *k, uint32_t place,
		      uint32_t node, bool redirect)
{
	struct place *l = &k->places[place];
	struct conn *c = conn_for(b, k, node);

	if (c == NULL) {
		place_free(b, k, place);
		return;
	}
	l->node = (uint8_t)c->node;
	c->queued++;
	compose(b, &c->out, place, l, redirect && c->node == node);
	if (c->out.rc != RC_OK)
		conn_lost(b, c);
	else
		conn_dirty(b, c);
}

static void call_begin(struct bench *b, struct client *k, uint32_t object,
		       uint64_t began_ns)
{
	uint32_t place = k->free_places[b->o->pipeline - k->in_flight - 1];
	bool redirect;
	uint32_t node = node_for(b, k, object, &redirect);

	k->in_flight++;
	k->places[place] = (struct place){ .began_ns = began_ns,
					   .number = b->calls++,
					   .object = object };
	call_send(b, k, place, node, redirect);
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

static bool client_is_ready(const struct bench *b, const struct client *k)
{
	uint32_t i;

	if (k->in_flight == b->o->pipeline)
		return false;
	for (i = 0; i < b->called; i++)
		if (k->conns[i].ready)
			return true;
	return false;
}

/* Closed loop: every free place of a client gets a call. */
static void client_fill(struct bench *b, struct client *k)
{
	while (may_begin(b) && client_is_ready(b, k))
		call_begin(b, k, object_next(b), b->now_ns);
}

static void clients_fill(struct bench *b)
{
	uint32_t i;

	for (i = 0; i < b->o->clients && may_begin(b); i++)
		client_fill(b, &b->clients[i]);
}

static uint64_t intended_ns(const struct bench *b, uint64_t nth)
{
	return b->first_ns +
	       (uint64_t)((double)nth * (double)NS_PER_S / (double)b->o->rate);
}

/* A client with a free place, the one whose turn it is as long as it has one;
 * NULL: there is none. */
static struct client *client_next(struct bench *b)
{
	struct client *k;
	uint32_t i;

	for (i = 0; i < b->o->clients; i++) {
		k = &b->clients[b->batch_of];
		if (client_is_ready(b, k))
			return k;
		b->batch_of = (b->batch_of + 1) % b->o->clients;
	}
	return NULL;
}

/* Calls that begin together, and are of one client, share a record and a write
 * to each node: one at a time they would cost more than those who answer them.
 * It makes none of them slower than it is: a latency runs from when its call
 * should have begun. */
static uint64_t batch_gap_ns(const struct bench *b)
{
	uint64_t ns = BATCH_CALLS * (uint64_t)NS_PER_S / b->o->rate;

	return ns < BATCH_NS_MAX ? ns : BATCH_NS_MAX;
}

/* Open loop: what should have begun by now begins, where there is a place. */
static void calls_begin_due(struct bench *b)
{
	struct client *k;
	double late_us;
	uint64_t at;

	if (!b->open_loop || b->stop || b->now_ns < b->batch_ns)
		return;
	b->batch_ns = b->now_ns + batch_gap_ns(b);
	b->batch_of = (b->batch_of + 1) % b->o->clients;
	while (b->open_loop && !b->stop) {
		at = intended_ns(b, b->nth);
		if (at > b->now_ns || at >= b->end_ns)
			return;
		k = client_next(b);
		b->full = k == NULL;
		if (k == NULL)
			return;
		late_us = (double)(b->now_ns - at) / 1000;
		if (b->measuring && late_us > b->r->generator_late_us)
			b->r->generator_late_us = late_us;
		b->nth++;
		call_begin(b, k, object_next(b), at);
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

static uint32_t node_named(const struct bench *b, struct pack_bytes name)
{
	uint32_t i;

	for (i = 0; i < b->called && name.n > 0; i++)
		if (pack_bytes_eq(name, b->nodes[i].name,
				  strlen(b->nodes[i].name)) ||
		    pack_bytes_eq(name, b->nodes[i].id, strlen(b->nodes[i].id)))
			return i;
	return OWNER_UNKNOWN;
}

static void error_count(struct bench *b, const struct frame_error *e)
{
	if (e->outcome != OUTCOME_REFUSED)
		b->r->unknown_total++;
	if (b->measuring) {
		b->r->errors += e->code == RC_INTERNAL;
		if (e->outcome == OUTCOME_REFUSED)
			b->r->refused++;
		else
			b->r->unknown++;
	}
	if (b->why != NULL && e->message.n > 0)
		(void)detail_set(b->why, e->code, NULL, "%s: %.*s",
				 rc_name(e->code),
				 (int)(e->message.n < 160 ? e->message.n : 160),
				 (const char *)e->message.p);
}

/* True: the call goes on, to the node that was named, or the next; in the
 * set-up also when it is too early. */
static bool call_hops(struct bench *b, struct client *k, uint32_t place,
		      const struct frame_error *e)
{
	struct place *l = &k->places[place];
	uint32_t owner;

	if (e->outcome != OUTCOME_REFUSED || b->called == 1)
		return false;
	if (e->code == RC_NOT_OWNER) {
		owner = node_named(b, e->owner);
		b->owners[l->object] = (uint8_t)owner;
		if (owner == OWNER_UNKNOWN) /* Another may have heard. */
			owner = ((uint32_t)l->node + 1) % b->called;
		if (l->hops < HOPS_MAX) {
			l->hops++;
			b->r->hops += b->measuring;
			call_send(b, k, place, owner, true);
			return true;
		}
	}
	if (!b->sequence || b->now_ns > b->settle_ns ||
	    (e->code != RC_NOT_OWNER && e->code != RC_NO_QUORUM &&
	     e->code != RC_OVERLOADED))
		return false;
	l->hops = 0;
	call_send(b, k, place, ((uint32_t)l->node + 1) % b->called, true);
	return true;
}

/* In a flood most answers are this one: known by how our nodes write it. */
static bool is_overloaded(struct pack_bytes error)
{
	static const char code[] = "\xa4"
				   "code"
				   "\xaa"
				   "OVERLOADED";
	static const char outcome[] = "\xa7"
				      "outcome"
				      "\xa7"
				      "refused";
	const size_t code_n = sizeof(code) - 1;
	size_t n = error.n < 64 ? error.n : 64;

	return n > code_n && memcmp(error.p + 1, code, code_n) == 0 &&
	       memmem(error.p + code_n, n - code_n, outcome,
		      sizeof(outcome) - 1) != NULL;
}

static void call_refused(struct bench *b, struct client *k, uint32_t place)
{
	place_free(b, k, place);
	b->answered++;
	b->r->refused += b->measuring;
}

static void call_failed(struct bench *b, struct client *k, uint32_t place,
			const struct frame *f)
{
	struct frame_error e;

	if (!b->sequence && is_overloaded(f->error)) {
		call_refused(b, k, place);
		return;
	}
	if (frame_error_read(f->error, &e) != RC_OK) {
		e.code = RC_INTERNAL;
		e.outcome = OUTCOME_UNKNOWN;
	}
	if (call_hops(b, k, place, &e))
		return;
	place_free(b, k, place);
	b->answered++;
	error_count(b, &e);
}

static void call_answered(struct bench *b, struct conn *c,
			  const struct frame *f)
{
	struct client *k = c->client;
	struct place *l;
	uint64_t began;

	if (f->kind == FRAME_NOTIFY)
		return;
	l = &k->places[f->id < b->o->pipeline ? f->id : 0];
	began = l->began_ns;
	if (f->id >= b->o->pipeline || began == 0 || l->node != c->node ||
	    f->kind != FRAME_RESPONSE) {
		conn_lost(b, c);
		return;
	}
	if (f->error.n != 1 || f->error.p[0] != 0xc0) {
		call_failed(b, k, f->id, f);
		return;
	}
	if (b->called > 1 && b->o->forwarded == 0)
		b->owners[l->object] = (uint8_t)c->node;
	place_free(b, k, f->id);
	b->answered++;
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
	struct conn *c;
	uint32_t i;

	memset(into, 0, sizeof(*into));
	b->asked_into = into;
	for (i = 0; i < b->o->nodes_n; i++) {
		c = &b->nodes[i].control;
		b->nodes[i].asked = c->ready;
		if (!c->ready)
			continue;
		frame_request(&c->out, 0, "status", 6);
		pack_array(&c->out, 1);
		pack_map(&c->out, 1);
		pack_cstr(&c->out, "reset_stall");
		pack_bool(&c->out, true);
		conn_dirty(b, c);
	}
}

static bool status_waits(const struct bench *b)
{
	uint32_t i;

	for (i = 0; i < b->o->nodes_n; i++)
		if (b->nodes[i].asked)
			return true;
	return false;
}

static void stages_read(struct pack_bytes map, struct said *s)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes key;
	char name[32];
	uint64_t us;
	uint32_t n;
	size_t i;

	if (pack_get_map(&r, &n) != RC_OK)
		return;
	for (; n > 0; n--) {
		if (pack_get_bytes(&r, &key) != RC_OK ||
		    pack_get_u64(&r, &us) != RC_OK)
			return;
		for (i = 0; i < BENCH_STAGES; i++) {
			(void)snprintf(name, sizeof(name), "%s_us",
				       stage_names[i]);
			if (pack_bytes_eq(key, name, strlen(name)))
				s->stage_us[i] = us;
		}
	}
}

static void status_read(struct pack_bytes map, struct said *s)
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
		{ "frames", &s->frames },
		{ "peer_frames", &s->peer_frames },
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
		if (pack_bytes_eq(key, "stages", 6))
			stages_read(value, s);
	}
}

/* Who the node is, when nobody told. */
static void hello_read(struct node *n, struct pack_bytes map)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes text;
	struct pack_bytes key;
	uint64_t id;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return;
	for (; pairs > 0 && pack_get_bytes(&r, &key) == RC_OK; pairs--) {
		if (pack_bytes_eq(key, "node", 4) &&
		    pack_get_bytes(&r, &text) == RC_OK)
			(void)snprintf(n->name, sizeof(n->name), "%.*s",
				       (int)text.n, (const char *)text.p);
		else if (pack_bytes_eq(key, "node_id", 7) &&
			 pack_get_u64(&r, &id) == RC_OK)
			(void)snprintf(n->id, sizeof(n->id), "%llu",
				       (unsigned long long)id);
		else
			(void)pack_skip(&r, NULL);
	}
}

static void control_answered(struct bench *b, struct conn *c,
			     const struct frame *f)
{
	struct node *n = &b->nodes[c->node];
	bool good = f->error.n == 1 && f->error.p[0] == 0xc0;
	struct frame_error e;

	if (f->kind != FRAME_RESPONSE)
		return;
	if (f->id == 1) {
		n->greeted = true;
		if (good)
			hello_read(n, f->result);
		return;
	}
	if (!n->asked)
		return;
	n->asked = false;
	if (good)
		status_read(f->result, &b->asked_into->of[c->node]);
	else if (frame_error_read(f->error, &e) == RC_OK && e.message.n > 0)
		(void)detail_set(b->why, e.code, NULL, "status: %.*s",
				 (int)(e.message.n < 160 ? e.message.n : 160),
				 (const char *)e.message.p);
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
		if (conn_is_control(c))
			control_answered(b, c, &f);
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

/* False: the connection ended. */
static bool conn_decrypt(struct bench *b, struct conn *c, size_t n)
{
	size_t got;

	if (tls_input(c->tls, b->cipher, n, b->why) != RC_OK) {
		conn_lost(b, c);
		return false;
	}
	if (!c->ready && tls_ready(c->tls))
		conn_is_ready(b, c);
	while (c->ready && (got = tls_read(c->tls, c->in + c->in_n,
					   c->in_cap - c->in_n)) > 0) {
		c->in_n += got;
		conn_frames(b, c);
	}
	if (c->fd >= 0 && tls_ended(c->tls))
		conn_lost(b, c);
	if (c->fd >= 0)
		conn_dirty(b, c); /* The handshake goes on. */
	return c->fd >= 0;
}

static void conn_read(struct bench *b, struct conn *c)
{
	uint8_t *to = c->tls != NULL ? b->cipher : c->in + c->in_n;
	size_t cap = c->tls != NULL ? CIPHER_BYTES : c->in_cap - c->in_n;
	ssize_t n = recv(c->fd, to, cap, MSG_DONTWAIT);

	b->now_ns = clock_ns(CLOCK_MONOTONIC);
	if (n > 0 && c->tls != NULL) {
		(void)conn_decrypt(b, c, (size_t)n);
	} else if (n > 0) {
		c->in_n += (size_t)n;
		conn_frames(b, c);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		conn_lost(b, c);
	}
	if (!conn_is_control(c))
		client_fill(b, c->client);
}

/* When the next call of an open loop begins. */
static uint64_t call_due_ns(const struct bench *b)
{
	uint64_t at = intended_ns(b, b->nth);

	return at > b->batch_ns ? at : b->batch_ns;
}

/* Wake up for the next call of an open loop, at the latest at `until_ns`. A
 * timer that fires too early costs a turn, so it is set only when it would fire
 * too late. */
static void timer_set(struct bench *b, uint64_t until_ns)
{
	struct itimerspec t = { { 0, 0 }, { 0, 0 } };
	uint64_t at = until_ns;

	if (b->open_loop && !b->stop && !b->full && call_due_ns(b) < at)
		at = call_due_ns(b);
	if (b->lost_conns > 0 && b->reconnect_ns < at)
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
	if (b->lost_conns > 0) {
		conns_reopen(b);
		clients_fill(b);
	}
	calls_begin_due(b);
}

static uint32_t calls_in_flight(const struct bench *b)
{
	uint32_t n = 0;
	uint32_t i;

	for (i = 0; i < b->o->clients; i++)
		n += b->clients[i].in_flight;
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
	uint32_t i;

	status_ask(b, into);
	while (status_waits(b) && b->now_ns < end_ns)
		bench_turn(b, end_ns);
	into->at_ns = b->now_ns;
	into->own_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
	into->answered = b->answered;
	for (i = 0; i < b->o->nodes_n; i++)
		b->nodes[i].asked = false;
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
	b->settle_ns = b->now_ns + SETTLE_MS * (uint64_t)NS_PER_MS;
	b->stop = false;
	clients_fill(b);
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
	return detail_set(
		why,
		b->r->unknown_total != lost ? RC_UNKNOWN_OUTCOME : RC_CONFLICT,
		NULL, "%s: %s", what,
		first.text[0] != '\0' ? first.text : "no answer of the server");
}

static enum rc bench_set_up(struct bench *b)
{
	const struct bench_options *o = b->o;
	struct recipe c;
	enum rc rc = RC_OK;

	PRE(b->clients != NULL);
	if (work_limits(o->work)) {
		recipe_policy(&c, o->work);
		rc = phase_each(b, &c, o->objects, "setting the policies");
		recipe_release(&c);
	} else if (o->work == BENCH_KV_GET) {
		recipe_put(&c, o->value_bytes, false);
		rc = phase_each(b, &c, o->objects, "writing the objects");
		recipe_release(&c);
	}
	return rc;
}

/* A node that was started anew in between counts from 0. */
static bool said_both(const struct said *from, const struct said *to)
{
	return from->good && to->good && to->cpu_us >= from->cpu_us &&
	       to->syncs >= from->syncs;
}

/* The nodes' counters, summed; false: one did not say. */
static bool said_sum(const struct bench *b, const struct snapshot *from,
		     const struct snapshot *to, struct said *sum)
{
	const struct said *f;
	const struct said *t;
	uint32_t i;
	size_t k;

	memset(sum, 0, sizeof(*sum));
	for (i = 0; i < b->o->nodes_n; i++) {
		f = &from->of[i];
		t = &to->of[i];
		if (!said_both(f, t))
			return false;
		sum->syncs += t->syncs - f->syncs;
		sum->cpu_us += t->cpu_us - f->cpu_us;
		sum->frames += t->frames - f->frames;
		sum->peer_frames += t->peer_frames - f->peer_frames;
		sum->resident += t->resident;
		for (k = 0; k < BENCH_STAGES; k++)
			sum->stage_us[k] += t->stage_us[k] - f->stage_us[k];
		if (t->stall_us > sum->stall_us)
			sum->stall_us = t->stall_us;
		if (t->rss_bytes > sum->rss_bytes)
			sum->rss_bytes = t->rss_bytes;
	}
	return true;
}

static void result_server(struct bench *b, const struct snapshot *from,
			  const struct snapshot *to)
{
	struct bench_result *r = b->r;
	double calls = (double)(to->answered - from->answered);
	struct said sum;
	size_t k;

	r->syncs = -1;
	r->syncs_per_op = -1;
	r->server_cpu_us_per_op = -1;
	r->loop_stall_max_us = -1;
	r->rss_bytes = -1;
	r->objects_resident = -1;
	r->frames_per_op = -1;
	r->peer_frames_per_op = -1;
	for (k = 0; k < BENCH_STAGES; k++)
		r->stage_us_per_op[k] = -1;
	if (calls > 0)
		r->client_cpu_us_per_op =
			(double)(to->own_cpu_ns - from->own_cpu_ns) / 1000 /
			calls;
	if (!said_sum(b, from, to, &sum))
		return;
	r->syncs = (double)sum.syncs;
	r->loop_stall_max_us = (double)sum.stall_us;
	r->rss_bytes = (double)sum.rss_bytes;
	r->objects_resident = (double)sum.resident;
	if (calls <= 0)
		return;
	r->syncs_per_op = r->syncs / calls;
	r->server_cpu_us_per_op = (double)sum.cpu_us / calls;
	r->peer_frames_per_op = (double)sum.peer_frames / calls;
	r->frames_per_op = (double)sum.frames / calls + r->peer_frames_per_op;
	for (k = 0; k < BENCH_STAGES; k++)
		r->stage_us_per_op[k] = (double)sum.stage_us[k] / calls;
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
	b->batch_ns = 0;
	b->end_ns = b->now_ns + seconds_ns;
	clients_fill(b);
	calls_begin_due(b);
}

/* How many calls of an open loop should have begun by `end_ns`. */
static uint64_t calls_due(const struct bench *b, uint64_t end_ns)
{
	return (uint64_t)((double)(end_ns - b->first_ns) * (double)b->o->rate /
			  (double)NS_PER_S);
}

/* Begun, but the sockets have not taken them: nobody was offered those. */
static uint64_t calls_queued(const struct bench *b)
{
	uint64_t sum = 0;
	uint32_t i;
	uint32_t n;

	for (i = 0; i < b->o->clients; i++)
		for (n = 0; n < b->called; n++)
			sum += b->clients[i].conns[n].queued;
	return sum;
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
		b->r->unsent += calls_queued(b);
		b->r->is_void = b->r->unsent > due / 100 * VOID_PERCENT;
	}
	bench_status(b, &to);
	bench_drain(b);
	result_server(b, &from, &to);
	result_times(b);
}

/* Of all nodes; 0 when one did not say. */
static double rss_growth(const struct bench *b, const struct snapshot *from,
			 const struct snapshot *to)
{
	double sum = 0;
	uint32_t i;

	for (i = 0; i < b->o->nodes_n; i++) {
		if (!said_both(&from->of[i], &to->of[i]))
			return 0;
		sum += (double)to->of[i].rss_bytes -
		       (double)from->of[i].rss_bytes;
	}
	return sum;
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
	recipe_release(&b->warm);
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
	b->r->rss_bytes_per_object =
		rss_growth(b, &from, &to) / (double)b->o->objects;
	return RC_OK;
}

/* ------------------------------------------------------------- beginning ---
 */

static enum rc node_socket(struct bench *b, struct node *n, const char *path)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&n->addr;
	size_t bytes = strlen(path);

	un->sun_family = AF_UNIX;
	if (bytes == 0 || bytes >= sizeof(un->sun_path))
		return detail_set(b->why, RC_INVALID, "socket",
				  "the path of a socket has 1 to %zu bytes",
				  sizeof(un->sun_path) - 1);
	memcpy(un->sun_path, path, bytes + 1);
	n->addr_bytes = sizeof(*un);
	return RC_OK;
}

static enum rc node_address(struct bench *b, struct node *n, const char *rpc)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct addrinfo *list = NULL;
	char host[256];
	char port[6];
	int e;

	if (profile_host_port(rpc, host, sizeof(host), port) != RC_OK)
		return node_socket(b, n, rpc);
	e = getaddrinfo(host, port, &hints, &list);
	if (e != 0)
		return detail_set(b->why, RC_IO, NULL, "cannot find %.150s: %s",
				  rpc, gai_strerror(e));
	memcpy(&n->addr, list->ai_addr, list->ai_addrlen);
	n->addr_bytes = list->ai_addrlen;
	n->tcp = true;
	freeaddrinfo(list);
	if (b->tls != NULL)
		return RC_OK;
	return tls_context_new(b->o->ca, b->o->cert, b->o->key, &b->tls,
			       b->why);
}

static enum rc nodes_open(struct bench *b)
{
	struct node *n;
	uint32_t i;
	enum rc rc;

	b->called = b->o->through_one ? 1 : b->o->nodes_n;
	for (i = 0; i < b->o->nodes_n; i++) {
		n = &b->nodes[i];
		(void)snprintf(n->name, sizeof(n->name), "%s",
			       b->o->nodes[i].name);
		rc = node_address(b, n, b->o->nodes[i].rpc);
		if (rc == RC_OK)
			rc = conn_alloc(&n->control, NULL, i, IN_BYTES_MIN);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

static enum rc client_alloc(struct bench *b, struct client *k, size_t in_cap)
{
	uint32_t i;

	k->free_places = calloc(b->o->pipeline, sizeof(*k->free_places));
	k->places = calloc(b->o->pipeline, sizeof(*k->places));
	k->conns = calloc(b->called, sizeof(*k->conns));
	if (k->free_places == NULL || k->places == NULL || k->conns == NULL)
		return RC_NOMEM;
	for (i = 0; i < b->o->pipeline; i++)
		k->free_places[i] = i;
	for (i = 0; i < b->called; i++)
		k->conns[i].fd = -1;
	for (i = 0; i < b->called; i++)
		if (conn_alloc(&k->conns[i], k, i, in_cap) != RC_OK)
			return RC_NOMEM;
	return RC_OK;
}

static enum rc clients_alloc(struct bench *b)
{
	size_t in_cap = b->o->pipeline > 8 ? IN_BYTES : IN_BYTES_MIN;
	uint32_t i;
	enum rc rc = RC_OK;

	b->owners = malloc(b->o->objects);
	b->cipher = malloc(CIPHER_BYTES);
	b->clients = calloc(b->o->clients, sizeof(*b->clients));
	if (b->clients == NULL || b->owners == NULL || b->cipher == NULL)
		return RC_NOMEM;
	memset(b->owners, OWNER_UNKNOWN, b->o->objects);
	for (i = 0; i < b->o->clients && rc == RC_OK; i++)
		rc = client_alloc(b, &b->clients[i], in_cap);
	return rc;
}

/* Every connection to it stands, and it has said who it is. */
static bool node_is_ready(const struct bench *b, uint32_t n)
{
	uint32_t i;

	if (!b->nodes[n].greeted)
		return false;
	for (i = 0; i < b->o->clients && n < b->called; i++)
		if (!b->clients[i].conns[n].ready)
			return false;
	return true;
}

/* Nothing of it is under way any more. */
static bool node_is_decided(const struct bench *b, uint32_t n)
{
	const struct conn *c;
	uint32_t i;

	if (b->nodes[n].control.fd >= 0 && !b->nodes[n].greeted)
		return false;
	for (i = 0; i < b->o->clients && n < b->called; i++) {
		c = &b->clients[i].conns[n];
		if (c->fd >= 0 && !c->ready)
			return false;
	}
	return true;
}

static bool bench_is_ready(const struct bench *b)
{
	uint32_t n;

	for (n = 0; n < b->called; n++)
		if (node_is_ready(b, n))
			return true;
	return false;
}

static bool bench_is_decided(const struct bench *b)
{
	uint32_t n;

	for (n = 0; n < b->o->nodes_n; n++)
		if (!node_is_decided(b, n))
			return false;
	return true;
}

/* Of several nodes some may not be there: it is tried again as we go. */
static enum rc conn_first(struct bench *b, struct conn *c)
{
	if (conn_open(b, c))
		return RC_OK;
	if (b->o->nodes_n > 1 && errno != EMFILE && errno != ENFILE) {
		b->lost_conns++;
		return RC_OK;
	}
	return detail_set(b->why, RC_IO, NULL, "cannot connect to %.150s: %s",
			  b->o->nodes[c->node].rpc, strerror(errno));
}

static enum rc bench_connect(struct bench *b)
{
	uint64_t end_ns = b->now_ns + CONNECT_MS * (uint64_t)NS_PER_MS;
	uint64_t rest_ns = b->now_ns + CONNECT_REST_MS * (uint64_t)NS_PER_MS;
	enum rc rc = nodes_open(b);
	uint32_t i;
	uint32_t n;

	if (rc == RC_OK)
		rc = clients_alloc(b);
	for (n = 0; n < b->o->nodes_n && rc == RC_OK; n++) {
		rc = conn_first(b, &b->nodes[n].control);
		for (i = 0; i < b->o->clients && n < b->called && rc == RC_OK;
		     i++)
			rc = conn_first(b, &b->clients[i].conns[n]);
	}
	if (rc != RC_OK)
		return rc;
	b->stop = true;
	while (!bench_is_decided(b) && b->now_ns < end_ns &&
	       (b->now_ns < rest_ns || !bench_is_ready(b)))
		bench_turn(b, b->now_ns < rest_ns ? rest_ns : end_ns);
	b->stop = false;
	if (bench_is_ready(b))
		return RC_OK;
	return detail_set(
		b->why, RC_IO, NULL, "cannot connect to %.100s%s: no answer",
		b->o->nodes[0].rpc, b->o->nodes_n > 1 ? " and others" : "");
}

static enum rc bench_open(struct bench *b)
{
	struct epoll_event e = { .events = EPOLLIN };

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
	if (b->recipe.tail[0].w.rc != RC_OK)
		return RC_NOMEM;
	return bench_connect(b);
}

static void client_release(const struct bench *b, struct client *k)
{
	uint32_t i;

	for (i = 0; k->conns != NULL && i < b->called; i++)
		conn_release(&k->conns[i]);
	free(k->conns);
	free(k->places);
	free(k->free_places);
}

static void bench_release(struct bench *b)
{
	uint32_t i;

	for (i = 0; b->clients != NULL && i < b->o->clients; i++)
		client_release(b, &b->clients[i]);
	for (i = 0; i < BENCH_NODES_MAX; i++)
		conn_release(&b->nodes[i].control);
	free(b->clients);
	free(b->owners);
	free(b->cipher);
	tls_context_free(b->tls);
	recipe_release(&b->recipe);
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
	    o->value_bytes > (1u << 20) || o->nodes_n < 1 ||
	    o->nodes_n > BENCH_NODES_MAX || o->forwarded > 100)
		return detail_set(why, RC_INVALID, NULL,
				  "an option of the load is out of bounds");
	return RC_OK;
}

enum rc bench_run(const struct bench_options *o, struct bench_result *r,
		  struct detail *why)
{
	struct bench b = { .o = o, .r = r, .epoll = -1, .timer = -1 };
	struct detail ours = { 0 };
	uint32_t i;
	enum rc rc;

	memset(r, 0, sizeof(*r));
	b.why = why != NULL ? why : &ours;
	for (i = 0; i < BENCH_NODES_MAX; i++)
		b.nodes[i].control.fd = -1;
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
