/*
 * fake_transport - transports of a few nodes in one test, joined by a queue.
 *
 * Header only; one translation unit. It stands in for raft-glue/transport.c and
 * members.c where a module of node/core/ is tested alone: records arrive when
 * the test says so (fake_pump), links are cut and made (fake_cut, fake_join),
 * queues may be full. Nodes have the ids 1, 2, .. and the names n1, n2, ..
 */
#ifndef TESTS_LIB_FAKE_TRANSPORT_H
#define TESTS_LIB_FAKE_TRANSPORT_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "raft-glue/transport.h"

#define FAKE_NODES_MAX 5u

struct members {
	uint64_t self;
	size_t n;
	struct member at[FAKE_NODES_MAX];
};

struct transport {
	struct members members;
	struct transport_sink *sinks[CHANNELS];
	uint64_t epoch[FAKE_NODES_MAX]; /* To each node; 0: cut. */
	size_t room;                    /* Of every queue. */
	unsigned drops;
	unsigned sent;
	uint64_t version;
	uint64_t version_of[FAKE_NODES_MAX];
};

struct fake_record {
	TAILQ_ENTRY(fake_record) link;
	unsigned from;
	unsigned to;
	uint64_t epoch;
	enum transport_channel ch;
	size_t n;
	uint8_t bytes[];
};

struct fake_net {
	unsigned nodes;
	uint64_t next_epoch;
	struct transport at[FAKE_NODES_MAX];
	TAILQ_HEAD(, fake_record) queue;
};

static struct fake_net fake;

/* Nobody has a link yet. */
static inline void fake_begin(unsigned nodes)
{
	unsigned i;
	unsigned k;

	memset(&fake, 0, sizeof(fake));
	fake.nodes = nodes;
	TAILQ_INIT(&fake.queue);
	for (i = 0; i < nodes; i++) {
		struct transport *t = &fake.at[i];

		t->room = 32u << 20;
		t->members.self = i + 1;
		t->members.n = nodes;
		for (k = 0; k < nodes; k++) {
			t->members.at[k].id = k + 1;
			snprintf(t->members.at[k].name,
				 sizeof(t->members.at[k].name), "n%u", k + 1);
		}
	}
}

static inline void fake_forget(unsigned a, unsigned b)
{
	struct fake_record *r = TAILQ_FIRST(&fake.queue);
	struct fake_record *next;

	for (; r != NULL; r = next) {
		next = TAILQ_NEXT(r, link);
		if (!((r->from == a && r->to == b) ||
		      (r->from == b && r->to == a)))
			continue;
		TAILQ_REMOVE(&fake.queue, r, link);
		free(r);
	}
}

static inline void fake_end(void)
{
	struct fake_record *r;

	while ((r = TAILQ_FIRST(&fake.queue)) != NULL) {
		TAILQ_REMOVE(&fake.queue, r, link);
		free(r);
	}
}

static inline void fake_changed(unsigned a, unsigned b, uint64_t epoch)
{
	unsigned ch;

	fake.at[a - 1].epoch[b - 1] = epoch;
	for (ch = 0; ch < CHANNELS; ch++) {
		struct transport_sink *k = fake.at[a - 1].sinks[ch];

		if (k != NULL && k->changed != NULL)
			k->changed(k, b, epoch);
	}
}

/* By node id. */
static inline void fake_join(unsigned a, unsigned b)
{
	fake.next_epoch++;
	fake_changed(a, b, fake.next_epoch);
	fake_changed(b, a, fake.next_epoch);
}

static inline void fake_cut(unsigned a, unsigned b)
{
	fake_forget(a, b);
	fake_changed(a, b, 0);
	fake_changed(b, a, 0);
}

static inline void fake_join_all(void)
{
	unsigned a;
	unsigned b;

	for (a = 1; a <= fake.nodes; a++)
		for (b = a + 1; b <= fake.nodes; b++)
			fake_join(a, b);
}

/* Deliver what is queued, and what that makes others send. */
static inline void fake_pump(void)
{
	struct fake_record *r;

	while ((r = TAILQ_FIRST(&fake.queue)) != NULL) {
		struct transport *to = &fake.at[r->to - 1];
		struct transport_sink *k = to->sinks[r->ch];

		TAILQ_REMOVE(&fake.queue, r, link);
		if (TAILQ_FIRST(&fake.queue) == r)
			abort(); /* For who cannot follow the list. */
		if (k != NULL && to->epoch[r->from - 1] == r->epoch)
			k->received(k, r->from, r->epoch, r->bytes, r->n);
		free(r);
	}
}

/* As if node `from` had sent these bytes to `to`. */
static inline void fake_say(enum transport_channel ch, unsigned from,
			    unsigned to, const void *p, size_t n)
{
	struct transport_sink *k = fake.at[to - 1].sinks[ch];

	k->received(k, from, fake.at[to - 1].epoch[from - 1], p, n);
}

/* The queued record that comes next, NULL: none. */
static inline struct fake_record *fake_next(void)
{
	return TAILQ_FIRST(&fake.queue);
}

/* ---- transport.h ---- */

void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k)
{
	if (shard != 0)
		abort();
	t->sinks[ch] = k;
}

enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n)
{
	struct fake_record *r;

	if (shard != 0)
		abort();
	if (t->epoch[node_id - 1] == 0)
		return RC_NOT_FOUND;
	if (head_n + body_n > t->room)
		return RC_OVERLOADED;
	r = malloc(sizeof(*r) + head_n + body_n);
	if (r == NULL)
		abort();
	r->from = (unsigned)t->members.self;
	r->to = (unsigned)node_id;
	r->epoch = t->epoch[node_id - 1];
	r->ch = ch;
	r->n = head_n + body_n;
	memcpy(r->bytes, head, head_n);
	if (body_n > 0)
		memcpy(r->bytes + head_n, body, body_n);
	TAILQ_INSERT_TAIL(&fake.queue, r, link);
	t->sent++;
	return RC_OK;
}

uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id)
{
	(void)ch;
	return t->epoch[node_id - 1];
}

size_t transport_room(const struct transport *t, enum transport_channel ch,
		      uint64_t node_id)
{
	(void)ch;
	return t->epoch[node_id - 1] == 0 ? 0 : t->room;
}

void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id)
{
	(void)ch;
	(void)node_id;
	t->drops++;
}

void transport_version(struct transport *t, uint64_t version)
{
	t->version = version;
}

uint64_t transport_version_of(const struct transport *t, uint64_t node_id)
{
	return t->version_of[node_id - 1];
}

uint64_t transport_version_max(const struct transport *t)
{
	uint64_t max = 0;
	unsigned i;

	for (i = 0; i < FAKE_NODES_MAX; i++)
		if (t->version_of[i] > max)
			max = t->version_of[i];
	return max;
}

struct members *transport_members(struct transport *t)
{
	return &t->members;
}

/* ---- members.h ---- */

size_t members_count(const struct members *m)
{
	return m->n;
}

const struct member *members_at(const struct members *m, size_t i)
{
	return &m->at[i];
}

const struct member *members_find(const struct members *m, uint64_t id)
{
	return id >= 1 && id <= m->n ? &m->at[id - 1] : NULL;
}

uint64_t members_self(const struct members *m)
{
	return m->self;
}

#endif
