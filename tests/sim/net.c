/*
 * A `way` is one direction of one connection after the other: a queue of
 * parcels with the times at which they arrive, in order. That a connection
 * begins or ends is a parcel too, so it comes after what was sent before.
 *
 * Each end of a connection knows it by its number, or knows of none. A parcel
 * of another number than the one its end knows is late, and dropped.
 */
#include "tests/sim/net.h"

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "node/base/check.h"
#include "tests/sim/memdisk.h"

#define MS           UINT64_C(1000000)
#define US           UINT64_C(1000)
#define PAUSE_MS     20u
#define PAUSE_MAX_MS 1000u
#define SWEEP_MS     100u
#define LATE_MAX     64u
#define LATE_MS      3000u

enum parcel_kind { PARCEL_OPEN, PARCEL_DATA, PARCEL_END };

struct parcel {
	STAILQ_ENTRY(parcel) link;
	enum parcel_kind kind;
	uint64_t due_ns;
	uint64_t serial; /* Of the connection. */
	size_t n;
	uint8_t p[];
};
STAILQ_HEAD(parcels, parcel);

struct way {
	struct net *net;
	unsigned from;
	unsigned to;
	struct parcels parcels;
	size_t bytes;
	uint64_t last_ns; /* Nothing may come before that. */
	uint64_t free_ns; /* The wire is. */
	bool scheduled;
	void (*arrived)(struct way *w, const struct parcel *p);
	void *arg;
};

struct half {
	struct join *join;
	unsigned node;
	uint64_t serial; /* 0: none. */
	bool dropping;
	struct way in;
	struct parcels late; /* Of old connections. */
	unsigned late_n;
};

/* A pair of nodes and one kind of link. */
struct join {
	struct net *net;
	enum link_kind kind;
	struct half half[2]; /* The first, the lower one, connects. */
	bool trying;
	uint64_t opening; /* A connection that is being made. */
	uint32_t pause_ms;
};

struct net_link_end {
	struct link link;
	struct net *net;
	unsigned node;
	enum link_kind kind;
};

struct net_stream {
	struct net *net;
	unsigned client; /* An end. */
	unsigned node;
	uint64_t client_serial;
	uint64_t node_serial;
	uint64_t dialing; /* Until it is open or refused. */
	struct way up;    /* To the node. */
	struct way down;
	struct net_dialer dialer;
	void *mark;
};

struct net {
	struct world *w;
	struct prng r;
	struct net_config cfg;
	struct net_tap tap;
	uint64_t serial;
	bool up[NET_NODES_MAX];
	unsigned cuts[NET_ENDS][NET_ENDS];
	bool no_bulk[NET_NODES_MAX][NET_NODES_MAX];
	uint64_t clogged_ns[NET_ENDS][NET_ENDS];
	uint64_t silent_ns[NET_ENDS][NET_ENDS]; /* Since then; 0: it is not. */
	struct net_link_end ends[NET_NODES_MAX][LINKS];
	struct join joins[NET_NODES_MAX][NET_NODES_MAX][LINKS]; /* a < b */
	const struct net_door *doors[NET_NODES_MAX];
	struct net_door door_of[NET_NODES_MAX];
	struct net_stream streams[NET_CLIENTS_MAX][NET_NODES_MAX];
	struct net_stats stats;
};

/* ------------------------------------------------------------------- ways */

static bool is_node(unsigned end)
{
	return end < NET_NODES_MAX;
}

bool net_is_cut(const struct net *n, unsigned from, unsigned to)
{
	return n->cuts[from][to] > 0;
}

static unsigned thread_of(unsigned end)
{
	return is_node(end) ? end : WORLD_NOBODY;
}

static void way_due(void *arg);

static void way_schedule(struct way *w)
{
	struct parcel *p = STAILQ_FIRST(&w->parcels);

	if (p == NULL || w->scheduled || net_is_cut(w->net, w->from, w->to) ||
	    (is_node(w->to) &&
	     (!w->net->up[w->to] || !world_alive(w->net->w, w->to))))
		return;
	w->scheduled = true;
	world_at_ns(w->net->w, thread_of(w->to), p->due_ns, way_due, w);
}

static void way_due(void *arg)
{
	struct way *w = arg;
	struct parcel *p;

	w->scheduled = false;
	while ((p = STAILQ_FIRST(&w->parcels)) != NULL &&
	       p->due_ns <= world_now_ns(w->net->w) &&
	       !net_is_cut(w->net, w->from, w->to)) {
		if (is_node(w->to) && !world_alive(w->net->w, w->to))
			return;
		STAILQ_REMOVE_HEAD(&w->parcels, link);
		w->bytes -= p->n;
		w->arrived(w, p);
		free(p);
	}
	way_schedule(w);
}

static uint64_t delay_ns(struct net *n)
{
	uint64_t us =
		prng_between(&n->r, n->cfg.delay_min_us, n->cfg.delay_max_us);

	if (n->cfg.spike_per_10000 > 0 &&
	    prng_below(&n->r, 10000) < n->cfg.spike_per_10000)
		us += prng_below(&n->r, n->cfg.spike_ms * 1000u);
	return us * US;
}

static void way_put(struct way *w, enum parcel_kind kind, uint64_t serial,
		    const void *bytes, size_t n)
{
	struct net *net = w->net;
	struct parcel *p = sim_realloc(NULL, sizeof(*p) + n);
	uint64_t now = world_now_ns(net->w);
	uint64_t at = now > w->free_ns ? now : w->free_ns;

	if (at < net->clogged_ns[w->from][w->to])
		at = net->clogged_ns[w->from][w->to];
	at += n * US / net->cfg.bytes_per_us;
	w->free_ns = at;
	at += delay_ns(net);
	*p = (struct parcel){ .kind = kind, .serial = serial, .n = n };
	p->due_ns = at > w->last_ns ? at : w->last_ns;
	if (n > 0)
		memcpy(p->p, bytes, n);
	w->last_ns = p->due_ns;
	w->bytes += n;
	STAILQ_INSERT_TAIL(&w->parcels, p, link);
	way_schedule(w);
}

static void parcels_clear(struct parcels *list)
{
	struct parcel *p;

	while ((p = STAILQ_FIRST(list)) != NULL) {
		STAILQ_REMOVE_HEAD(list, link);
		free(p);
	}
}

/* An event that is still in the world finds nothing. */
static void way_clear(struct way *w)
{
	parcels_clear(&w->parcels);
	w->bytes = 0;
	w->last_ns = 0;
	w->free_ns = 0;
}

/* What a machine had not yet sent when it lost power. */
static void way_truncate(struct way *w, struct prng *r)
{
	struct parcel *p;
	struct parcels kept = STAILQ_HEAD_INITIALIZER(kept);
	uint64_t n = prng_below(r, 8);

	while (n-- > 0 && (p = STAILQ_FIRST(&w->parcels)) != NULL) {
		STAILQ_REMOVE_HEAD(&w->parcels, link);
		STAILQ_INSERT_TAIL(&kept, p, link);
	}
	way_clear(w);
	STAILQ_FOREACH(p, &kept, link)
	{
		w->bytes += p->n;
		w->last_ns = p->due_ns;
	}
	STAILQ_CONCAT(&w->parcels, &kept);
}

static void way_init(struct way *w, struct net *n, unsigned from, unsigned to,
		     void (*arrived)(struct way *w, const struct parcel *p),
		     void *arg)
{
	w->net = n;
	w->from = from;
	w->to = to;
	w->arrived = arrived;
	w->arg = arg;
	STAILQ_INIT(&w->parcels);
}

/* ------------------------------------------------------------------ links */

static struct half *other_half(const struct half *h)
{
	struct join *j = h->join;

	return h == &j->half[0] ? &j->half[1] : &j->half[0];
}

static struct link *link_of(const struct half *h)
{
	return &h->join->net->ends[h->node][h->join->kind].link;
}

static struct half *half_at(struct net *n, unsigned node, unsigned peer,
			    enum link_kind kind)
{
	unsigned a = node < peer ? node : peer;
	unsigned b = node < peer ? peer : node;

	return &n->joins[a][b][kind].half[node != a];
}

static void join_due(void *arg);

static void join_try(struct join *j)
{
	if (j->trying || j->half[0].serial != 0 || j->opening != 0 ||
	    !j->net->up[j->half[0].node])
		return;
	j->trying = true;
	world_at_ns(j->net->w, WORLD_NOBODY,
		    world_now_ns(j->net->w) + prng_between(&j->net->r,
							   j->pause_ms / 2,
							   j->pause_ms) *
						      MS,
		    join_due, j);
	j->pause_ms =
		2 * j->pause_ms < PAUSE_MAX_MS ? 2 * j->pause_ms : PAUSE_MAX_MS;
}

static bool answers(const struct net *n, unsigned node)
{
	return n->up[node] && world_alive(n->w, node) &&
	       !world_paused(n->w, node);
}

static void join_due(void *arg)
{
	struct join *j = arg;
	struct net *n = j->net;
	unsigned a = j->half[0].node;
	unsigned b = j->half[1].node;

	j->trying = false;
	if (!n->up[a] || j->half[0].serial != 0 || j->opening != 0)
		return;
	if (!answers(n, a) || !answers(n, b) || net_is_cut(n, a, b) ||
	    net_is_cut(n, b, a) || (j->kind == LINK_BULK && n->no_bulk[a][b])) {
		join_try(j);
		return;
	}
	j->opening = ++n->serial;
	way_put(&j->half[1].in, PARCEL_OPEN, j->opening, NULL, 0);
	way_put(&j->half[0].in, PARCEL_OPEN, j->opening, NULL, 0);
}

/* What is lost with a connection may come back in a hostile net. */
static void half_remember(struct half *h, const struct parcel *p)
{
	struct net *n = h->join->net;
	struct parcel *copy;

	if (!n->cfg.hostile || p->kind != PARCEL_DATA || p->n > 65536 ||
	    h->late_n >= LATE_MAX)
		return;
	copy = sim_realloc(NULL, sizeof(*copy) + p->n);
	memcpy(copy, p, sizeof(*copy) + p->n);
	copy->due_ns = world_now_ns(n->w) + prng_below(&n->r, LATE_MS) * MS;
	STAILQ_INSERT_TAIL(&h->late, copy, link);
	h->late_n++;
}

/* What came, or is to come, of that connection. */
static void half_flush(struct half *h, uint64_t serial)
{
	struct parcels kept = STAILQ_HEAD_INITIALIZER(kept);
	struct parcel *p;

	while ((p = STAILQ_FIRST(&h->in.parcels)) != NULL) {
		STAILQ_REMOVE_HEAD(&h->in.parcels, link);
		if (p->serial != serial) {
			STAILQ_INSERT_TAIL(&kept, p, link);
			continue;
		}
		half_remember(h, p);
		h->in.bytes -= p->n;
		free(p);
	}
	STAILQ_CONCAT(&h->in.parcels, &kept);
}

/* The late ones, once another connection stands. */
static void half_late(struct half *h)
{
	struct net *n = h->join->net;
	struct link *l = link_of(h);
	unsigned peer = other_half(h)->node;
	struct parcel *p;
	unsigned left = h->late_n;

	while (left-- > 0 && h->serial != 0) {
		p = STAILQ_FIRST(&h->late);
		STAILQ_REMOVE_HEAD(&h->late, link);
		if (p->serial == h->serial || p->due_ns > world_now_ns(n->w)) {
			STAILQ_INSERT_TAIL(&h->late, p, link);
			continue;
		}
		h->late_n--;
		n->stats.late++;
		l->received(l->arg, peer + 1, p->serial, p->p, p->n);
		free(p);
		if (!world_alive(n->w, h->node))
			return;
	}
}

/* On its node's thread. */
static void half_lost(struct half *h)
{
	struct link *l = link_of(h);

	if (h->serial == 0)
		return;
	h->serial = 0;
	h->dropping = false;
	h->join->net->stats.resets++;
	if (l->changed != NULL)
		l->changed(l->arg, other_half(h)->node + 1, 0);
	join_try(h->join);
}

static void half_open(struct half *h, uint64_t serial)
{
	struct link *l = link_of(h);

	half_lost(h);
	h->serial = serial;
	h->dropping = false;
	if (h == &h->join->half[0]) {
		h->join->opening = 0;
		h->join->pause_ms = PAUSE_MS;
		h->join->net->stats.connects++;
	}
	if (l->changed != NULL)
		l->changed(l->arg, other_half(h)->node + 1, serial);
}

static void half_arrived(struct way *w, const struct parcel *p)
{
	struct half *h = w->arg;
	struct net *n = w->net;
	struct link *l = link_of(h);

	if (p->kind == PARCEL_OPEN) {
		half_open(h, p->serial);
		return;
	}
	if (h->late_n > 0)
		half_late(h);
	if (!world_alive(n->w, h->node))
		return;
	if (p->serial != h->serial) {
		/* Nobody knows that connection here. */
		if (p->kind == PARCEL_DATA &&
		    other_half(h)->serial == p->serial)
			way_put(&other_half(h)->in, PARCEL_END, p->serial, NULL,
				0);
		return;
	}
	if (p->kind == PARCEL_END) {
		half_lost(h);
		return;
	}
	if (h->dropping)
		return;
	n->stats.messages++;
	n->stats.bytes += p->n;
	if (n->cfg.hostile && prng_below(&n->r, 100) < 2)
		half_remember(h, p);
	l->received(l->arg, other_half(h)->node + 1, h->serial, p->p, p->n);
}

/* Gives its connection up, and tells the other side if it can. */
static void half_close(void *arg)
{
	struct half *h = arg;
	uint64_t serial = h->serial;

	if (serial == 0)
		return;
	way_put(&other_half(h)->in, PARCEL_END, serial, NULL, 0);
	half_flush(h, serial);
	half_lost(h);
}

static struct net_link_end *end_of(struct link *l)
{
	return CONTAINER_OF(l, struct net_link_end, link);
}

static struct half *half_to(struct link *l, uint64_t node_id)
{
	struct net_link_end *e = end_of(l);

	if (node_id == 0 || node_id > e->net->cfg.nodes ||
	    node_id == e->node + 1)
		return NULL;
	return half_at(e->net, e->node, (unsigned)node_id - 1, e->kind);
}

static enum rc net_send(struct link *l, uint64_t node_id, const void *p,
			size_t n)
{
	struct net_link_end *e = end_of(l);
	struct net *net = e->net;
	struct half *h = half_to(l, node_id);
	struct half *to;

	if (h == NULL || h->serial == 0 || !world_alive(net->w, e->node))
		return RC_NOT_FOUND;
	to = other_half(h);
	if (to->in.bytes + n > net->cfg.queue_bytes) {
		net->stats.full++;
		return RC_OVERLOADED;
	}
	if (net->tap.leaving != NULL)
		net->tap.leaving(net->tap.arg, e->node, to->node, e->kind, p,
				 n);
	if (!world_alive(net->w, e->node))
		return RC_OK;
	world_note(net->w, p, n);
	way_put(&to->in, PARCEL_DATA, h->serial, p, n);
	if (net->tap.left != NULL)
		net->tap.left(net->tap.arg, e->node, to->node, e->kind);
	return RC_OK;
}

static uint64_t net_epoch(struct link *l, uint64_t node_id)
{
	const struct half *h = half_to(l, node_id);

	return h != NULL ? h->serial : 0;
}

static size_t net_room(struct link *l, uint64_t node_id)
{
	const struct half *h = half_to(l, node_id);
	size_t max = end_of(l)->net->cfg.queue_bytes;
	size_t bytes;

	if (h == NULL || h->serial == 0)
		return 0;
	bytes = other_half(h)->in.bytes;
	return bytes < max ? max - bytes : 0;
}

static void net_drop(struct link *l, uint64_t node_id)
{
	struct half *h = half_to(l, node_id);

	if (h == NULL || h->serial == 0 || h->dropping)
		return;
	h->dropping = true;
	world_at_ns(h->join->net->w, h->node, world_now_ns(h->join->net->w),
		    half_close, h);
}

static const struct link_ops net_ops = {
	.send = net_send,
	.epoch = net_epoch,
	.room = net_room,
	.drop = net_drop,
};

struct link *net_link(struct net *n, unsigned node, enum link_kind kind)
{
	PRE(node < n->cfg.nodes);
	return &n->ends[node][kind].link;
}

/* ---------------------------------------------------------------- streams */

static void stream_to_node(struct way *w, const struct parcel *p)
{
	struct net_stream *s = w->arg;
	const struct net_door *d = w->net->doors[s->node];

	if (d == NULL)
		return;
	switch (p->kind) {
	case PARCEL_OPEN:
		if (s->node_serial != 0)
			d->lost(d->arg, s);
		s->node_serial = p->serial;
		way_put(&s->down, PARCEL_OPEN, p->serial, NULL, 0);
		d->opened(d->arg, s);
		return;
	case PARCEL_DATA:
		if (p->serial == s->node_serial)
			d->input(d->arg, s, p->p, p->n);
		return;
	case PARCEL_END:
		if (p->serial != s->node_serial)
			return;
		s->node_serial = 0;
		d->lost(d->arg, s);
		return;
	}
	UNREACHABLE();
}

static void stream_to_client(struct way *w, const struct parcel *p)
{
	struct net_stream *s = w->arg;

	switch (p->kind) {
	case PARCEL_OPEN:
		if (p->serial != s->dialing)
			return;
		s->dialing = 0;
		s->client_serial = p->serial;
		s->dialer.opened(s->dialer.arg);
		return;
	case PARCEL_DATA:
		if (p->serial == s->client_serial)
			s->dialer.input(s->dialer.arg, p->p, p->n);
		return;
	case PARCEL_END:
		if (p->serial != s->client_serial && p->serial != s->dialing)
			return;
		s->client_serial = 0;
		s->dialing = 0;
		s->dialer.lost(s->dialer.arg);
		return;
	}
	UNREACHABLE();
}

struct net_stream *net_stream(struct net *n, unsigned client, unsigned node)
{
	PRE(client < NET_CLIENTS_MAX);
	PRE(node < n->cfg.nodes);
	return &n->streams[client][node];
}

void net_dial(struct net_stream *s, const struct net_dialer *d)
{
	struct net *n = s->net;
	unsigned node = s->node;

	PRE(s->client_serial == 0);
	PRE(s->dialing == 0);
	s->dialer = *d;
	s->dialing = ++n->serial;
	if (n->up[node] && world_alive(n->w, node))
		way_put(&s->up, PARCEL_OPEN, s->dialing, NULL, 0);
	else /* A machine answers for a process that is not there. */
		way_put(&s->down, PARCEL_END, s->dialing, NULL, 0);
}

void net_client_send(struct net_stream *s, const void *p, size_t n)
{
	if (s->client_serial == 0 || n == 0)
		return;
	world_note(s->net->w, p, n);
	way_put(&s->up, PARCEL_DATA, s->client_serial, p, n);
}

void net_client_close(struct net_stream *s)
{
	uint64_t serial = s->client_serial != 0 ? s->client_serial : s->dialing;

	s->client_serial = 0;
	s->dialing = 0;
	if (serial != 0)
		way_put(&s->up, PARCEL_END, serial, NULL, 0);
}

void net_node_send(struct net_stream *s, const void *p, size_t n)
{
	if (s->node_serial == 0 || n == 0 || !world_alive(s->net->w, s->node))
		return;
	world_note(s->net->w, p, n);
	way_put(&s->down, PARCEL_DATA, s->node_serial, p, n);
}

void net_node_close(struct net_stream *s)
{
	uint64_t serial = s->node_serial;

	s->node_serial = 0;
	if (serial != 0)
		way_put(&s->down, PARCEL_END, serial, NULL, 0);
}

size_t net_unread(const struct net_stream *s)
{
	return s->down.bytes;
}

void **net_stream_mark(struct net_stream *s)
{
	return &s->mark;
}

unsigned net_stream_client(const struct net_stream *s)
{
	return s->client - NET_CLIENT;
}

void net_door(struct net *n, unsigned node, const struct net_door *door)
{
	PRE(node < n->cfg.nodes);
	n->doors[node] = NULL;
	if (door == NULL)
		return;
	n->door_of[node] = *door;
	n->doors[node] = &n->door_of[node];
}

/* The client is told, as far as it can be. */
static void stream_end(struct net_stream *s, bool dark)
{
	uint64_t serial = s->node_serial != 0 ? s->node_serial : s->dialing;

	s->node_serial = 0;
	s->mark = NULL;
	way_clear(&s->up);
	if (serial == 0)
		serial = s->client_serial;
	if (serial == 0)
		return;
	if (dark)
		way_truncate(&s->down, &s->net->r);
	else
		way_put(&s->down, PARCEL_END, serial, NULL, 0);
}

/* Nothing comes from there any more: the client gives up. */
static void stream_sweep(struct net_stream *s, bool silent)
{
	uint64_t serial = s->client_serial != 0 ? s->client_serial : s->dialing;

	if (!silent || serial == 0)
		return;
	s->client_serial = 0;
	s->dialing = 0;
	way_clear(&s->down);
	way_put(&s->up, PARCEL_END, serial, NULL, 0);
	s->dialer.lost(s->dialer.arg);
}

/* ----------------------------------------------------------- what happens */

void net_up(struct net *n, unsigned node)
{
	unsigned peer;
	unsigned k;

	PRE(!n->up[node]);
	n->up[node] = true;
	for (peer = 0; peer < n->cfg.nodes; peer++)
		for (k = 0; k < LINKS && peer != node; k++) {
			struct half *h =
				half_at(n, node, peer, (enum link_kind)k);
			struct half *o = other_half(h);

			way_clear(&h->in);
			h->in.scheduled = false;
			/* What was open to a machine without power. */
			if (o->serial != 0)
				way_put(&o->in, PARCEL_END, o->serial, NULL, 0);
			h->join->pause_ms = PAUSE_MS;
			join_try(h->join);
		}
	for (k = 0; k < NET_CLIENTS_MAX; k++) {
		n->streams[k][node].up.scheduled = false;
		stream_end(&n->streams[k][node], false);
	}
}

void net_down(struct net *n, unsigned node, bool dark)
{
	unsigned peer;
	unsigned k;

	if (!n->up[node])
		return;
	n->up[node] = false;
	n->doors[node] = NULL;
	for (peer = 0; peer < n->cfg.nodes; peer++)
		for (k = 0; k < LINKS && peer != node; k++) {
			struct half *h =
				half_at(n, node, peer, (enum link_kind)k);
			struct half *o = other_half(h);

			uint64_t serial =
				o->serial != 0 ? o->serial : h->join->opening;

			h->join->opening = 0;
			way_clear(&h->in);
			h->in.scheduled = false;
			h->serial = 0;
			h->dropping = false;
			parcels_clear(&h->late);
			h->late_n = 0;
			if (dark)
				way_truncate(&o->in, &n->r);
			else if (serial != 0)
				way_put(&o->in, PARCEL_END, serial, NULL, 0);
		}
	for (k = 0; k < NET_CLIENTS_MAX; k++)
		stream_end(&n->streams[k][node], dark);
}

/* All ways from one end to the other go on. */
static void ways_kick(struct net *n, unsigned from, unsigned to)
{
	unsigned k;

	for (k = 0; is_node(from) && is_node(to) && k < LINKS; k++)
		way_schedule(&half_at(n, to, from, (enum link_kind)k)->in);
	if (is_node(from) && !is_node(to))
		way_schedule(&n->streams[to - NET_CLIENT][from].down);
	if (!is_node(from) && is_node(to))
		way_schedule(&n->streams[from - NET_CLIENT][to].up);
}

void net_cut(struct net *n, unsigned from, unsigned to)
{
	PRE(from < NET_ENDS);
	PRE(to < NET_ENDS);
	n->cuts[from][to]++;
}

void net_mend(struct net *n, unsigned from, unsigned to)
{
	if (n->cuts[from][to] == 0 || --n->cuts[from][to] > 0)
		return;
	ways_kick(n, from, to);
}

void net_mend_all(struct net *n)
{
	unsigned a;
	unsigned b;

	memset(n->no_bulk, 0, sizeof(n->no_bulk));
	for (a = 0; a < NET_ENDS; a++)
		for (b = 0; b < NET_ENDS; b++) {
			n->clogged_ns[a][b] = 0;
			if (n->cuts[a][b] == 0)
				continue;
			n->cuts[a][b] = 1;
			net_mend(n, a, b);
		}
}

void net_calm(struct net *n, uint32_t spike_ms)
{
	PRE(spike_ms > 0);
	if (n->cfg.spike_ms > spike_ms)
		n->cfg.spike_ms = spike_ms;
}

void net_clog(struct net *n, unsigned from, unsigned to, uint32_t ms)
{
	n->clogged_ns[from][to] = world_now_ns(n->w) + ms * MS;
}

static void half_reset(struct half *h)
{
	half_flush(h, h->serial);
	if (h->serial != 0)
		way_put(&h->in, PARCEL_END, h->serial, NULL, 0);
}

static void join_reset(struct half *h)
{
	/* A connection that is being made is not there yet. */
	if (h->join->opening != 0)
		return;
	half_reset(h);
	half_reset(other_half(h));
}

void net_refuse_bulk(struct net *n, unsigned a, unsigned b)
{
	PRE(is_node(a) && is_node(b));
	n->no_bulk[a][b] = true;
	n->no_bulk[b][a] = true;
	join_reset(half_at(n, a, b, LINK_BULK));
}

void net_reset(struct net *n, unsigned a, unsigned b)
{
	unsigned k;

	for (k = 0; k < LINKS && is_node(a) && is_node(b); k++)
		join_reset(half_at(n, a, b, (enum link_kind)k));
	if (is_node(a) && !is_node(b)) {
		struct net_stream *s = &n->streams[b - NET_CLIENT][a];

		if (s->client_serial == 0)
			return;
		way_clear(&s->up);
		way_clear(&s->down);
		way_put(&s->up, PARCEL_END, s->client_serial, NULL, 0);
		way_put(&s->down, PARCEL_END, s->client_serial, NULL, 0);
	}
}

/* Is it so long that nothing can have come from there? */
static bool is_silent(struct net *n, unsigned from, unsigned to)
{
	bool silent =
		net_is_cut(n, from, to) ||
		(is_node(from) && (!n->up[from] || world_paused(n->w, from)));
	uint64_t now = world_now_ns(n->w);

	if (!silent)
		n->silent_ns[from][to] = 0;
	else if (n->silent_ns[from][to] == 0)
		n->silent_ns[from][to] = now;
	return silent && now - n->silent_ns[from][to] >= n->cfg.dead_ms * MS;
}

static void half_sweep(struct half *h)
{
	struct net *n = h->join->net;
	struct half *o = other_half(h);
	bool silent = is_silent(n, o->node, h->node);
	/* What is sent there does not arrive. */
	bool stuck = is_silent(n, h->node, o->node) && o->in.bytes > 0;

	if (h->serial != 0 && (silent || stuck) && n->up[h->node])
		world_at_ns(n->w, h->node, world_now_ns(n->w), half_close, h);
}

static void sweep_due(void *arg)
{
	struct net *n = arg;
	unsigned a;
	unsigned b;
	unsigned k;

	for (a = 0; a < n->cfg.nodes; a++)
		for (b = a + 1; b < n->cfg.nodes; b++)
			for (k = 0; k < LINKS; k++) {
				half_sweep(&n->joins[a][b][k].half[0]);
				half_sweep(&n->joins[a][b][k].half[1]);
			}
	for (a = 0; a < NET_CLIENTS_MAX; a++)
		for (k = 0; k < NET_NODES_MAX; k++) {
			struct net_stream *s = &n->streams[a][k];

			if (s->client_serial == 0 && s->dialing == 0)
				continue;
			/* One after the other: both keep their time. */
			bool down = is_silent(n, s->node, s->client);
			bool up = is_silent(n, s->client, s->node);

			stream_sweep(s, down || (up && s->dialing != 0));
		}
	world_at_ns(n->w, WORLD_NOBODY, world_now_ns(n->w) + SWEEP_MS * MS,
		    sweep_due, n);
}

/* ------------------------------------------------------------------- life */

static void join_init(struct net *n, unsigned a, unsigned b, enum link_kind k)
{
	struct join *j = &n->joins[a][b][k];
	unsigned i;

	j->net = n;
	j->kind = k;
	j->pause_ms = PAUSE_MS;
	for (i = 0; i < 2; i++) {
		struct half *h = &j->half[i];

		h->join = j;
		h->node = i == 0 ? a : b;
		STAILQ_INIT(&h->late);
		way_init(&h->in, n, i == 0 ? b : a, h->node, half_arrived, h);
	}
}

struct net *net_new(struct world *w, uint64_t seed,
		    const struct net_config *cfg, const struct net_tap *tap)
{
	struct net *n = sim_alloc(sizeof(*n));
	unsigned a;
	unsigned b;
	unsigned k;

	PRE(cfg->nodes >= 1);
	PRE(cfg->nodes <= NET_NODES_MAX);
	PRE(cfg->bytes_per_us > 0);
	n->w = w;
	n->cfg = *cfg;
	if (tap != NULL)
		n->tap = *tap;
	prng_seed(&n->r, seed, 20);
	for (a = 0; a < NET_NODES_MAX; a++)
		for (k = 0; k < LINKS; k++)
			n->ends[a][k] = (struct net_link_end){
				.link = { .ops = &net_ops },
				.net = n,
				.node = a,
				.kind = (enum link_kind)k,
			};
	for (a = 0; a < NET_NODES_MAX; a++)
		for (b = a + 1; b < NET_NODES_MAX; b++)
			for (k = 0; k < LINKS; k++)
				join_init(n, a, b, (enum link_kind)k);
	for (a = 0; a < NET_CLIENTS_MAX; a++)
		for (k = 0; k < NET_NODES_MAX; k++) {
			struct net_stream *s = &n->streams[a][k];

			s->net = n;
			s->client = NET_CLIENT + a;
			s->node = k;
			way_init(&s->up, n, s->client, k, stream_to_node, s);
			way_init(&s->down, n, k, s->client, stream_to_client,
				 s);
		}
	sweep_due(n);
	return n;
}

void net_free(struct net *n)
{
	unsigned a;
	unsigned b;
	unsigned k;

	for (a = 0; a < NET_NODES_MAX; a++)
		for (b = a + 1; b < NET_NODES_MAX; b++)
			for (k = 0; k < LINKS; k++) {
				struct join *j = &n->joins[a][b][k];

				way_clear(&j->half[0].in);
				way_clear(&j->half[1].in);
				parcels_clear(&j->half[0].late);
				parcels_clear(&j->half[1].late);
			}
	for (a = 0; a < NET_CLIENTS_MAX; a++)
		for (k = 0; k < NET_NODES_MAX; k++) {
			way_clear(&n->streams[a][k].up);
			way_clear(&n->streams[a][k].down);
		}
	free(n);
}

uint64_t net_serial(const struct net *n)
{
	return n->serial;
}

bool net_quiet(const struct net *n)
{
	unsigned a;
	unsigned b;

	for (a = 0; a < NET_CLIENTS_MAX; a++)
		for (b = 0; b < n->cfg.nodes; b++)
			if (!STAILQ_EMPTY(&n->streams[a][b].up.parcels))
				return false;
	for (a = 0; a < n->cfg.nodes; a++)
		for (b = a + 1; b < n->cfg.nodes; b++) {
			const struct join *j = &n->joins[a][b][LINK_BULK];

			if (j->half[0].in.bytes + j->half[1].in.bytes > 0)
				return false;
		}
	return true;
}

void net_stats(const struct net *n, struct net_stats *out)
{
	*out = n->stats;
}
