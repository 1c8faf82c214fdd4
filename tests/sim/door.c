#include "tests/sim/door.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "client/proto/frame.h"
#include "client/proto/method.h"
#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/core/call.h"
#include "tests/sim/memdisk.h"

struct door_conn;

struct slot {
	struct door *door;
	struct door_conn *conn; /* NULL: it is gone. */
	uint32_t id;
	struct call *call;
	LIST_ENTRY(slot) link;
	LIST_ENTRY(slot) all;
};

struct door_conn {
	struct door *door;
	struct net_stream *stream;
	struct frame_reader reader;
	uint8_t *in;
	size_t n;
	size_t cap;
	LIST_HEAD(, slot) slots;
	LIST_ENTRY(door_conn) link;
};

struct door {
	struct world *w;
	struct net *net;
	unsigned node;
	struct core *core;
	struct pack_bytes (*principal)(unsigned client, unsigned node);
	uint64_t next_id;
	bool draining;
	LIST_HEAD(, door_conn) conns;
	LIST_HEAD(, slot) slots;
};

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static void error_write(struct pack_w *w, uint32_t id, const struct answer *a)
{
	char request_id[CALL_ID_BYTES];
	char owner[32] = "";
	struct frame_error e = { .code = a->rc,
				 .outcome = a->outcome,
				 .retry_after_ms = a->retry_after_ms,
				 .has_shard = a->shard != UINT32_MAX,
				 .shard = a->shard };
	const char *message = a->why != NULL && a->why->text[0] != '\0'
				      ? a->why->text
				      : rc_text(a->rc);

	call_id_text(a->request_id, request_id);
	if (a->owner != 0)
		(void)snprintf(owner, sizeof(owner), "n%llu",
			       (unsigned long long)a->owner);
	e.message = text(message);
	e.request_id = text(request_id);
	e.field = text(a->why != NULL ? a->why->field : "");
	e.owner = text(owner);
	frame_response(w, id);
	frame_error_write(w, &e);
	pack_nil(w);
}

static void answer(struct door_conn *c, uint32_t id, const struct answer *a)
{
	struct pack_w w;

	pack_w_init(&w, CONNECTION_OUT_BYTES_MAX);
	if (a->rc == RC_OK) {
		frame_response(&w, id);
		pack_nil(&w);
		pack_raw(&w, a->result.p, a->result.n);
	} else {
		error_write(&w, id, a);
	}
	CHECK(w.rc == RC_OK);
	net_node_send(c->stream, w.p, w.n);
	pack_w_release(&w);
}

static void refuse(struct door_conn *c, uint32_t id, enum rc rc,
		   const char *message)
{
	struct detail why = { { 0 }, { 0 } };
	struct answer a = {
		.rc = rc,
		.outcome = OUTCOME_REFUSED,
		.why = &why,
		.retry_after_ms = -1,
		.request_id = c->door->next_id++,
		.shard = UINT32_MAX,
	};

	if (rc == RC_OVERLOADED)
		a.retry_after_ms = RETRY_AFTER_MS;
	detail_set(&why, rc, NULL, "%s", message);
	answer(c, id, &a);
}

static void slot_free(struct slot *s)
{
	if (s->conn != NULL)
		LIST_REMOVE(s, link);
	LIST_REMOVE(s, all);
	free(s);
}

static void replied(void *arg, const struct answer *a)
{
	struct slot *s = arg;

	if (s->conn != NULL && world_alive(s->door->w, s->door->node))
		answer(s->conn, s->id, a);
	slot_free(s);
}

static void begin_call(struct door_conn *c, const struct frame *f)
{
	struct door *d = c->door;
	struct caller caller = {
		.principal =
			d->principal(net_stream_client(c->stream), d->node),
		.tenant = text("default"),
		.env = text("dev"),
	};
	struct slot *s = sim_alloc(sizeof(*s));

	s->door = d;
	s->conn = c;
	s->id = f->id;
	LIST_INSERT_HEAD(&c->slots, s, link);
	LIST_INSERT_HEAD(&d->slots, s, all);
	s->call = call_start(d->core, &caller, f->params, replied, s);
	if (s->call != NULL)
		return;
	slot_free(s);
	refuse(c, f->id, RC_OVERLOADED, "too many calls in flight");
}

static void value(struct door_conn *c, uint32_t id, struct pack_w *w)
{
	struct answer a = { .rc = RC_OK, .result = { w->p, w->n } };

	CHECK(w->rc == RC_OK);
	answer(c, id, &a);
	pack_w_release(w);
}

static void answer_hello(struct door_conn *c, uint32_t id)
{
	const struct identity *node = core_identity(c->door->core);
	struct pack_w w;

	pack_w_init(&w, 4096);
	pack_map(&w, 4);
	pack_cstr(&w, "server");
	pack_cstr(&w, "holdfast");
	pack_cstr(&w, "protocol");
	pack_u64(&w, 1);
	pack_cstr(&w, "node");
	pack_cstr(&w, node->node_name);
	pack_cstr(&w, "address");
	pack_cstr(&w, "default/dev");
	value(c, id, &w);
}

static void request(struct door_conn *c, const struct frame *f)
{
	const struct rpc_method *m =
		rpc_method_find((const char *)f->method.p, f->method.n, false);
	struct pack_w w;

	if (m == NULL) {
		refuse(c, f->id, RC_UNSUPPORTED, "no such method");
		return;
	}
	if (core_is_closing(c->door->core)) {
		refuse(c, f->id, RC_OVERLOADED, "the node is stopping");
		return;
	}
	if (m->number == RPC_call) {
		begin_call(c, f);
	} else if (m->number == RPC_hello) {
		answer_hello(c, f->id);
	} else if (m->number == RPC_ping) {
		pack_w_init(&w, 16);
		pack_nil(&w);
		value(c, f->id, &w);
	} else {
		refuse(c, f->id, RC_UNSUPPORTED, "not in a simulation");
	}
}

static void notification(struct door_conn *c, const struct frame *f)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	struct slot *s;
	uint64_t id;
	uint32_t n;

	if (pack_get_array(&r, &n) != RC_OK || n != 1 ||
	    pack_get_u64(&r, &id) != RC_OK)
		return;
	LIST_FOREACH(s, &c->slots, link)
	if (s->id == id) {
		call_cancel(s->call);
		return;
	}
}

/* What it called meanwhile ends unheard. */
static void conn_free(struct door_conn *c)
{
	struct slot *s;

	while ((s = LIST_FIRST(&c->slots)) != NULL) {
		LIST_REMOVE(s, link);
		s->conn = NULL;
		call_cancel(s->call);
	}
	*net_stream_mark(c->stream) = NULL;
	LIST_REMOVE(c, link);
	free(c->in);
	free(c);
}

static void conn_opened(void *arg, struct net_stream *stream)
{
	struct door *d = arg;
	struct door_conn *c;

	if (d->draining) {
		net_node_close(stream);
		return;
	}
	c = sim_alloc(sizeof(*c));
	c->door = d;
	c->stream = stream;
	frame_reader_init(&c->reader, FRAME_BYTES_MAX);
	LIST_INIT(&c->slots);
	LIST_INSERT_HEAD(&d->conns, c, link);
	*net_stream_mark(stream) = c;
}

static void conn_lost(void *arg, struct net_stream *stream)
{
	(void)arg;
	if (*net_stream_mark(stream) != NULL)
		conn_free(*net_stream_mark(stream));
}

static void conn_input(void *arg, struct net_stream *stream, const uint8_t *p,
		       size_t n)
{
	struct door_conn *c = *net_stream_mark(stream);
	struct door *d = arg;
	struct detail why;
	struct frame f;
	size_t at = 0;
	size_t used;

	if (c == NULL)
		return;
	if (c->n + n > c->cap) {
		c->cap = 2 * (c->n + n);
		c->in = sim_realloc(c->in, c->cap);
	}
	memcpy(c->in + c->n, p, n);
	c->n += n;
	while (frame_next(&c->reader, c->in + at, c->n - at, &f, &used, &why) ==
	       RC_OK) {
		at += used;
		if (f.kind == FRAME_REQUEST)
			request(c, &f);
		else if (f.kind == FRAME_NOTIFY)
			notification(c, &f);
		if (!world_alive(d->w, d->node))
			return;
	}
	memmove(c->in, c->in + at, c->n - at);
	c->n -= at;
}

struct door *door_new(struct world *w, struct net *net, unsigned node,
		      struct core *core,
		      struct pack_bytes (*principal)(unsigned client,
						     unsigned node))
{
	struct door *d = sim_alloc(sizeof(*d));
	const struct net_door ops = { conn_opened, conn_input, conn_lost, d };

	d->w = w;
	d->net = net;
	d->node = node;
	d->core = core;
	d->principal = principal;
	d->next_id = 1;
	LIST_INIT(&d->conns);
	LIST_INIT(&d->slots);
	net_door(net, node, &ops);
	return d;
}

void door_drain(struct door *d)
{
	d->draining = true;
}

void door_free(struct door *d)
{
	struct door_conn *c;
	struct slot *s;

	while ((c = LIST_FIRST(&d->conns)) != NULL) {
		LIST_REMOVE(c, link);
		free(c->in);
		free(c);
	}
	while ((s = LIST_FIRST(&d->slots)) != NULL) {
		LIST_REMOVE(s, all);
		free(s);
	}
	free(d);
}
