/*
 * fake_link - the links of a few nodes, connected in memory, driven by hand.
 *
 *	fake_net_init(&net, 3);
 *	transport_new(env, fake_net_link(&net, 1, LINK_RAFT),
 *		      fake_net_link(&net, 1, LINK_BULK), ...);
 *	fake_net_join_all(&net);
 *	fake_net_run(&net);    (then a turn, and again until it says 0)
 *
 * Nodes are 1 .. nodes. What is sent waits in one queue until the test delivers
 * it, in order; joining and cutting call `changed` of both ends at once, a
 * drop() from inside the code under test only with the next step. Each end of a
 * connection counts its own epochs. A link whose `received` was never set takes
 * nothing: what is for it can be looked at with fake_net_next(). Header only.
 */
#ifndef TESTS_LIB_FAKE_LINK_H
#define TESTS_LIB_FAKE_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/link.h"

#define FAKE_NODES_MAX 5u

struct fake_message {
	STAILQ_ENTRY(fake_message) link;
	uint64_t from;
	uint64_t to;
	enum link_kind kind;
	uint64_t epoch; /* Of the receiver's end. */
	size_t n;
	uint8_t *p; /* Its own allocation: sanitizers see a read too far. */
};
STAILQ_HEAD(fake_messages, fake_message);

/* One end of a connection. */
struct fake_end {
	uint64_t epoch; /* 0: none. */
	bool dropping;  /* drop() was called. */
	bool full;      /* send() says RC_OVERLOADED. */
	bool held;      /* What it sends stays in the queue. */
	unsigned lose;  /* So many of the next messages vanish. */
	unsigned drops; /* Calls of drop(). */
	uint64_t sent;  /* Messages, and their bytes. */
	uint64_t bytes;
};

struct fake_net;

struct fake_link {
	struct link link;
	struct fake_net *net;
	uint64_t self;
	enum link_kind kind;
	struct fake_end end[FAKE_NODES_MAX + 1]; /* By node id. */
};

struct fake_net {
	unsigned nodes;
	uint64_t epochs;
	struct fake_messages queue;
	struct fake_link links[FAKE_NODES_MAX + 1][LINKS];
};

static inline struct fake_link *fake_link_of(struct link *l)
{
	return CONTAINER_OF(l, struct fake_link, link);
}

static inline struct link *fake_net_link(struct fake_net *net, uint64_t node,
					 enum link_kind kind)
{
	CHECK(node >= 1);
	CHECK(node <= net->nodes);
	return &net->links[node][kind].link;
}

static inline struct fake_end *fake_net_end(struct fake_net *net, uint64_t from,
					    uint64_t to, enum link_kind kind)
{
	CHECK(to >= 1);
	CHECK(to <= net->nodes);
	return &fake_link_of(fake_net_link(net, from, kind))->end[to];
}

/* As if `from` had sent it over the connection that stands. */
static inline void fake_net_inject(struct fake_net *net, uint64_t from,
				   uint64_t to, enum link_kind kind,
				   const void *p, size_t n)
{
	struct fake_message *m = malloc(sizeof(*m));

	CHECK(m != NULL);
	m->from = from;
	m->to = to;
	m->kind = kind;
	m->epoch = fake_net_end(net, to, from, kind)->epoch;
	m->n = n;
	m->p = malloc(n > 0 ? n : 1);
	CHECK(m->p != NULL);
	if (n > 0)
		memcpy(m->p, p, n);
	STAILQ_INSERT_TAIL(&net->queue, m, link);
}

static inline enum rc fake_link_send(struct link *l, uint64_t node_id,
				     const void *p, size_t n)
{
	struct fake_link *f = fake_link_of(l);
	struct fake_end *e;

	CHECK(n <= LINK_MESSAGE_BYTES_MAX);
	if (node_id < 1 || node_id > f->net->nodes)
		return RC_NOT_FOUND;
	e = &f->end[node_id];
	if (e->epoch == 0 || e->dropping)
		return RC_NOT_FOUND;
	if (e->full)
		return RC_OVERLOADED;
	e->sent++;
	e->bytes += n;
	if (e->lose > 0)
		e->lose--;
	else
		fake_net_inject(f->net, f->self, node_id, f->kind, p, n);
	return RC_OK;
}

static inline uint64_t fake_link_epoch(struct link *l, uint64_t node_id)
{
	struct fake_link *f = fake_link_of(l);

	if (node_id < 1 || node_id > f->net->nodes)
		return 0;
	return f->end[node_id].dropping ? 0 : f->end[node_id].epoch;
}

static inline size_t fake_link_room(struct link *l, uint64_t node_id)
{
	struct fake_link *f = fake_link_of(l);

	if (fake_link_epoch(l, node_id) == 0 || f->end[node_id].full)
		return 0;
	return PEER_OUT_BYTES_MAX;
}

static inline void fake_link_drop(struct link *l, uint64_t node_id)
{
	struct fake_link *f = fake_link_of(l);

	CHECK(node_id >= 1);
	CHECK(node_id <= f->net->nodes);
	f->end[node_id].drops++;
	if (f->end[node_id].epoch != 0)
		f->end[node_id].dropping = true;
}

static const struct link_ops fake_link_ops = {
	.send = fake_link_send,
	.epoch = fake_link_epoch,
	.room = fake_link_room,
	.drop = fake_link_drop,
};

static inline void fake_net_init(struct fake_net *net, unsigned nodes)
{
	unsigned i;
	unsigned k;

	CHECK(nodes <= FAKE_NODES_MAX);
	memset(net, 0, sizeof(*net));
	net->nodes = nodes;
	STAILQ_INIT(&net->queue);
	for (i = 1; i <= nodes; i++)
		for (k = 0; k < LINKS; k++) {
			net->links[i][k].link.ops = &fake_link_ops;
			net->links[i][k].net = net;
			net->links[i][k].self = i;
			net->links[i][k].kind = (enum link_kind)k;
		}
}

static inline void fake_message_free(struct fake_message *m)
{
	free(m->p);
	free(m);
}

/* Forget what waits; the connections stand. */
static inline void fake_net_clear(struct fake_net *net)
{
	struct fake_message *m;

	while ((m = STAILQ_FIRST(&net->queue)) != NULL) {
		STAILQ_REMOVE_HEAD(&net->queue, link);
		fake_message_free(m);
	}
}

static inline void fake_net_release(struct fake_net *net)
{
	fake_net_clear(net);
}

/* The next message that waits from `from` to `to`; NULL: none. */
static inline struct fake_message *fake_net_next(struct fake_net *net,
						 uint64_t from, uint64_t to,
						 enum link_kind kind)
{
	struct fake_message *m;

	STAILQ_FOREACH(m, &net->queue, link)
	if (m->from == from && m->to == to && m->kind == kind)
		return m;
	return NULL;
}

static inline void fake_net_take(struct fake_net *net, struct fake_message *m)
{
	STAILQ_REMOVE(&net->queue, m, fake_message, link);
}

static inline void fake_net_tell(struct fake_net *net, uint64_t node,
				 uint64_t peer, enum link_kind kind,
				 uint64_t epoch)
{
	struct link *l = fake_net_link(net, node, kind);

	if (l->changed != NULL)
		l->changed(l->arg, peer, epoch);
}

/* Ends a connection. `late`: what is under way arrives all the same, with the
 * epoch of then, as no true link would do. */
static inline void fake_net_cut_late(struct fake_net *net, uint64_t a,
				     uint64_t b, enum link_kind kind, bool late)
{
	struct fake_end *x = fake_net_end(net, a, b, kind);
	struct fake_end *y = fake_net_end(net, b, a, kind);
	struct fake_message *m;
	bool stood = x->epoch != 0;

	while (!late && ((m = fake_net_next(net, a, b, kind)) != NULL ||
			 (m = fake_net_next(net, b, a, kind)) != NULL)) {
		fake_net_take(net, m);
		fake_message_free(m);
	}
	x->epoch = 0;
	y->epoch = 0;
	x->dropping = false;
	y->dropping = false;
	if (!stood)
		return;
	fake_net_tell(net, a, b, kind, 0);
	fake_net_tell(net, b, a, kind, 0);
}

static inline void fake_net_cut(struct fake_net *net, uint64_t a, uint64_t b,
				enum link_kind kind)
{
	fake_net_cut_late(net, a, b, kind, false);
}

/* A new connection; one that stands is cut first. */
static inline void fake_net_join(struct fake_net *net, uint64_t a, uint64_t b,
				 enum link_kind kind)
{
	struct fake_end *x = fake_net_end(net, a, b, kind);
	struct fake_end *y = fake_net_end(net, b, a, kind);

	CHECK(a != b);
	fake_net_cut(net, a, b, kind);
	x->epoch = ++net->epochs;
	y->epoch = ++net->epochs;
	fake_net_tell(net, a, b, kind, x->epoch);
	fake_net_tell(net, b, a, kind, y->epoch);
}

static inline void fake_net_join_all(struct fake_net *net)
{
	unsigned a;
	unsigned b;
	unsigned k;

	for (a = 1; a <= net->nodes; a++)
		for (b = a + 1; b <= net->nodes; b++)
			for (k = 0; k < LINKS; k++)
				fake_net_join(net, a, b, (enum link_kind)k);
}

/* The node is gone for all others. */
static inline void fake_net_cut_node(struct fake_net *net, uint64_t node)
{
	unsigned b;
	unsigned k;

	for (b = 1; b <= net->nodes; b++)
		for (k = 0; k < LINKS && b != node; k++)
			fake_net_cut(net, node, b, (enum link_kind)k);
}

static inline bool fake_net_drop_one(struct fake_net *net)
{
	unsigned a;
	unsigned b;
	unsigned k;

	for (a = 1; a <= net->nodes; a++)
		for (b = 1; b <= net->nodes; b++)
			for (k = 0; k < LINKS; k++)
				if (net->links[a][k].end[b].dropping) {
					fake_net_cut(net, a, b,
						     (enum link_kind)k);
					return true;
				}
	return false;
}

/* Carries out one drop(), or delivers one message. False: there is none. */
static inline bool fake_net_step(struct fake_net *net)
{
	struct fake_message *m;
	struct link *l;

	if (fake_net_drop_one(net))
		return true;
	STAILQ_FOREACH(m, &net->queue, link)
	{
		l = fake_net_link(net, m->to, m->kind);
		if (l->received == NULL ||
		    fake_net_end(net, m->from, m->to, m->kind)->held)
			continue;
		fake_net_take(net, m);
		l->received(l->arg, m->from, m->epoch, m->p, m->n);
		fake_message_free(m);
		return true;
	}
	return false;
}

/* What waits now and what it sets off; how many steps that were. */
static inline unsigned fake_net_run(struct fake_net *net)
{
	unsigned n = 0;

	while (fake_net_step(net))
		n++;
	return n;
}

#endif
