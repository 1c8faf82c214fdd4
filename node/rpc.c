#include "node/rpc.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "client/proto/frame.h"
#include "client/proto/method.h"
#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/base/pool.h"
#include "node/core/internal.h"

#define RPC_MAGIC  0x52504353u
#define CONN_MAGIC 0x434f4e4eu
#define SLOT_MAGIC 0x534c4f54u

#define SWEEP_MS         1000u
#define KEEPALIVE_S      60u
#define CIPHER_BYTES     (64u << 10)  /* One read of ciphertext. */
#define SEAL_BYTES       (256u << 10) /* Sealed ahead of the socket. */
#define HANDSHAKE_BYTES  (64u << 10)  /* More is no handshake. */
#define CROWDED_MS       1000u        /* Its share when many wait. */
#define REFUSED_LOG_MS   1000u
#define FORGET_BYTES_MIN 4096u
#define PROTOCOL_VERSION 1u
/* So many connections at most keep buffers of TLS between records. */
#define KEEPING_MAX 256u

struct conn;

enum {
	LISTEN_UNIX,
	LISTEN_TCP,
	LISTENERS,
};

struct listener {
	struct rpc *rpc;
	bool open;
	bool owed; /* One has come and was not accepted yet. */
	union {
		uv_handle_t handle;
		uv_stream_t stream;
		uv_pipe_t pipe;
		uv_tcp_t tcp;
	};
};

struct rpc_slot {
	uint32_t magic;
	uint32_t id; /* The request's, as the client numbers it. */
	struct conn *conn;
	struct call *call; /* NULL: not a call. */
	size_t held;       /* Of its answer, which may not leave yet. */
	LIST_ENTRY(rpc_slot) link;
};

struct conn {
	uint32_t magic;
	bool closing;
	bool closed; /* libuv is done with the handle. */
	bool eof;    /* The client sends no more, but may still read. */
	bool reading;
	bool dirty;   /* In the list of those with something to write. */
	bool waiting; /* In the list of those with frames to begin. */
	bool writing; /* A uv_write is under way. */
	bool shaking; /* In the list of handshakes. */
	bool secure;  /* TCP and TLS. */
	struct rpc *rpc;
	union {
		uv_handle_t handle;
		uv_stream_t stream;
		uv_pipe_t pipe;
		uv_tcp_t tcp;
	};
	struct tls *tls; /* From its first bytes on. */
	uint64_t since_ms;
	size_t shaken; /* Bytes of its handshake. */
	struct caller caller;
	char principal[PRINCIPAL_BYTES_MAX + 1];
	uint64_t number;

	uint8_t *in; /* in_at..in_n is unparsed. */
	size_t in_at;
	size_t in_n;
	size_t in_cap;
	struct frame_reader reader;
	uint64_t partial_ms; /* Since when a frame is unfinished; 0: none. */

	struct pack_w out;  /* Filled by answers. */
	struct pack_w wire; /* Being written by libuv, or sealed. */
	size_t wire_at;
	struct pack_w sealed; /* With TLS: being written by libuv. */
	uint64_t stuck_ms;    /* Since when nothing could be written. */
	size_t stuck_left;    /* How much was left then. */
	uv_write_t write;

	uint32_t calls;
	size_t held; /* Of all slots. */
	LIST_HEAD(, rpc_slot) slots;
	LIST_HEAD(, rpc_slot) dying; /* Cancelled, not yet ended. */
	TAILQ_ENTRY(conn) link;
	STAILQ_ENTRY(conn) dirty_link;
	STAILQ_ENTRY(conn) waiting_link;
	TAILQ_ENTRY(conn) shake_link;
};

struct rpc {
	uint32_t magic;
	uv_loop_t *loop;
	struct env *env;
	struct core *core;
	struct rpc_host host;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	char cluster[2 * ID_BYTES + 1];
	uint32_t connections_max;
	struct listener listeners[LISTENERS];
	uint16_t port;
	struct tls_context *tls; /* The caller's. */
	uint8_t *cipher;         /* One read, of whichever connection. */
	uint32_t frame_stall_ms;
	uint32_t write_stall_ms;
	uint32_t handshake_ms;
	uint32_t sweep_ms;
	uint32_t steps; /* Of handshakes, in this turn. */
	bool closing;
	uint32_t open_handles;
	struct pool slots;
	TAILQ_HEAD(, conn) conns;
	STAILQ_HEAD(, conn) dirty;
	STAILQ_HEAD(, conn) waiting;
	TAILQ_HEAD(, conn) handshakes; /* The oldest first. */
	struct env_task calls_task;
	struct env_task send_task;
	struct env_task steps_task;
	struct env_timer again; /* Begins what a turn left over. */
	struct env_timer sweep;
	uint64_t sweep_at_ms; /* When it should run next. */
	uint64_t in_bytes;
	uint64_t out_bytes;
	uint64_t next_number;
	uint64_t next_id;
	uint64_t refused_log_ms;
	uint64_t unaccepted_log_ms;
	uint64_t refused_unsaid;
	struct pack_w overloaded; /* What follows the id of a refusal. */
	size_t overloaded_id_at;  /* Its request id. */
	struct rpc_stats stats;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void conn_close(struct conn *c);
static void conn_begin(struct conn *c);
static void conn_due(struct conn *c);
static void conn_again(struct conn *c);
static void conn_maybe_end(struct conn *c);
static void conn_flush(struct conn *c);

/* Writing. */

static void conn_dirty(struct conn *c)
{
	struct rpc *rpc = c->rpc;

	if (c->dirty || c->closing)
		return;
	c->dirty = true;
	STAILQ_INSERT_TAIL(&rpc->dirty, c, dirty_link);
	env_post(rpc->env, &rpc->send_task);
}

static size_t conn_unsent(const struct conn *c)
{
	return c->out.n + (c->wire.n - c->wire_at) + c->sealed.n;
}

/* Answers that wait for their commit are on their way here too. */
static bool conn_out_full(const struct conn *c)
{
	return conn_unsent(c) + c->held > CONNECTION_OUT_PAUSE_BYTES;
}

/* What a read gave, and has no room: it may be asked again. Half of the room is
 * for answers that tell what has happened. */
static bool conn_may_forget(const struct conn *c, const struct answer *a)
{
	size_t n = a->result.n;

	if (a->rc != RC_OK || !a->repeatable || n < FORGET_BYTES_MIN)
		return false;
	return conn_unsent(c) + n > CONNECTION_OUT_BYTES_MAX / 2 ||
	       c->rpc->out_bytes + n > CONNECTIONS_OUT_BYTES_MAX / 2;
}

/* A client's failing to read closes its connection, nobody else's. */
static void conn_out_check(struct conn *c, size_t before)
{
	struct rpc *rpc = c->rpc;

	rpc->out_bytes += c->out.n - before;
	if (c->out.rc == RC_OK && rpc->out_bytes <= CONNECTIONS_OUT_BYTES_MAX)
		return;
	LOG_WARN("connection_unread", F("connection", c->number),
		 F("bytes", c->out.n));
	rpc->stats.broken++;
	conn_close(c);
}

/* Large answers must not pin their memory. */
static void conn_out_empty(struct pack_w *w)
{
	if (w->cap > CONNECTION_OUT_PAUSE_BYTES)
		pack_w_release(w);
	else
		pack_w_reset(w);
}

static void conn_written(uv_write_t *req, int status)
{
	struct conn *c = req->data;

	CHECK_OBJ(c, CONN_MAGIC);
	c->writing = false;
	if (c->secure) {
		c->rpc->out_bytes -= c->sealed.n;
		conn_out_empty(&c->sealed);
	} else {
		c->rpc->out_bytes -= c->wire.n - c->wire_at;
		c->wire_at = 0;
		conn_out_empty(&c->wire);
	}
	c->stuck_ms = 0;
	if (c->closing)
		return;
	if (status < 0) {
		conn_close(c);
		return;
	}
	if (conn_unsent(c) > 0)
		conn_dirty(c);
	if (c->eof && c->in_at == c->in_n)
		conn_maybe_end(c);
	else
		conn_due(c); /* It may have paused for us. */
}

/* How many bytes the socket took; < 0: the connection was closed. */
static ssize_t conn_try(struct conn *c, const uint8_t *p, size_t n)
{
	struct rpc *rpc = c->rpc;
	uv_buf_t buf = uv_buf_init((char *)p, (unsigned)n);
	int took = uv_try_write(&c->stream, &buf, 1);

	rpc->stats.writes++;
	if (took < 0 && took != UV_EAGAIN) {
		conn_close(c);
		return -1;
	}
	if (took < 0)
		took = 0;
	rpc->stats.bytes_out += (uint64_t)took;
	return took;
}

/* The rest, when the socket takes it. `p` stays in place until then. */
static void conn_later(struct conn *c, const uint8_t *p, size_t n)
{
	uv_buf_t buf = uv_buf_init((char *)p, (unsigned)n);

	c->writing = true;
	c->stuck_ms = env_now_ms(c->rpc->env);
	c->stuck_left = n;
	c->write.data = c;
	if (uv_write(&c->write, &c->stream, &buf, 1, conn_written) < 0) {
		c->writing = false;
		conn_close(c);
	}
}

/* Everything has left. */
static void conn_flushed(struct conn *c)
{
	/* It may have paused for us, and no write will tell. */
	if (!c->reading && c->in_at < c->in_n)
		conn_again(c);
	conn_maybe_end(c);
}

static void out_to_wire(struct conn *c)
{
	struct pack_w swap = c->wire;

	c->wire = c->out;
	c->out = swap;
	c->wire_at = 0;
}

static void conn_flush_plain(struct conn *c)
{
	ssize_t n;

	if (c->out.n == 0)
		return;
	n = conn_try(c, c->out.p, c->out.n);
	if (n < 0)
		return;
	c->rpc->out_bytes -= (uint64_t)n;
	if ((size_t)n == c->out.n) {
		conn_out_empty(&c->out);
		conn_flushed(c);
		return;
	}
	out_to_wire(c);
	c->wire_at = (size_t)n;
	conn_later(c, c->wire.p + c->wire_at, c->wire.n - c->wire_at);
}

/* Seals a piece of what is to be sent. False: nothing is, or no memory. */
static bool conn_seal(struct conn *c)
{
	size_t n;

	if (c->wire_at == c->wire.n) {
		conn_out_empty(&c->wire);
		c->wire_at = 0;
		if (c->out.n == 0)
			return false;
		out_to_wire(c);
	}
	n = c->wire.n - c->wire_at;
	if (n > SEAL_BYTES)
		n = SEAL_BYTES;
	if (tls_write(c->tls, c->wire.p + c->wire_at, n) != RC_OK) {
		conn_close(c);
		return false;
	}
	c->wire_at += n;
	c->rpc->out_bytes -= n;
	return true;
}

/* What the socket did not take of the sealed bytes waits in a buffer of its
 * own: those of libssl move. */
static void conn_seal_later(struct conn *c, const uint8_t *p, size_t n)
{
	pack_raw(&c->sealed, p, n);
	if (c->sealed.rc != RC_OK) {
		conn_close(c);
		return;
	}
	c->rpc->out_bytes += n;
	tls_sent(c->tls, n);
	conn_later(c, c->sealed.p, c->sealed.n);
}

static void conn_flush_tls(struct conn *c)
{
	const uint8_t *p;
	bool any = false;
	ssize_t took;
	size_t n;

	for (;;) {
		tls_output(c->tls, &p, &n);
		if (n == 0) {
			if (!tls_ready(c->tls) || !conn_seal(c))
				break;
			continue;
		}
		any = true;
		took = conn_try(c, p, n);
		if (took < 0)
			return;
		tls_sent(c->tls, (size_t)took);
		if ((size_t)took == n)
			continue;
		tls_output(c->tls, &p, &n);
		conn_seal_later(c, p, n);
		return;
	}
	if (any && !c->closing)
		conn_flushed(c);
}

static void conn_flush(struct conn *c)
{
	if (c->writing || c->closing)
		return;
	if (!c->secure)
		conn_flush_plain(c);
	else if (c->tls != NULL)
		conn_flush_tls(c);
}

static void rpc_send(struct env_task *task)
{
	struct rpc *rpc = CONTAINER_OF(task, struct rpc, send_task);
	struct conn *c;

	while ((c = STAILQ_FIRST(&rpc->dirty)) != NULL) {
		STAILQ_REMOVE_HEAD(&rpc->dirty, dirty_link);
		c->dirty = false;
		conn_flush(c);
	}
}

/* Slots. */

static struct rpc_slot *slot_take(struct conn *c, uint32_t id)
{
	struct rpc_slot *s;

	if (c->calls == CONNECTION_CALLS_MAX)
		return NULL;
	s = pool_take(&c->rpc->slots);
	if (s == NULL)
		return NULL;
	s->magic = SLOT_MAGIC;
	s->id = id;
	s->conn = c;
	c->calls++;
	LIST_INSERT_HEAD(&c->slots, s, link);
	return s;
}

static void slot_put(struct rpc_slot *s)
{
	struct conn *c = s->conn;

	LIST_REMOVE(s, link);
	c->held -= s->held;
	s->magic = 0;
	pool_put(&c->rpc->slots, s);
	c->calls--;
	conn_maybe_end(c); /* May free c: nothing after. */
}

/* Answers. */

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

/* As people call it; one that we do not know has its number at least. */
static const char *owner_name(const struct rpc *rpc, uint64_t node_id,
			      char number[32])
{
	const struct member *m;

	if (node_id == 0)
		return "";
	m = members_find(core_members(rpc->core), node_id);
	if (m != NULL)
		return m->name;
	snprintf(number, 32, "%llu", (unsigned long long)node_id);
	return number;
}

static void error_write(struct conn *c, uint32_t id, const struct answer *a)
{
	char request_id[CALL_ID_BYTES];
	char number[32];
	struct frame_error e = { .code = a->rc,
				 .outcome = a->outcome,
				 .retry_after_ms = a->retry_after_ms,
				 .has_shard = a->rc == RC_NOT_OWNER &&
					      a->shard != UINT32_MAX,
				 .shard = a->shard };
	const char *message = a->why != NULL && a->why->text[0] != '\0'
				      ? a->why->text
				      : rc_text(a->rc);

	call_id_text(a->request_id, request_id);
	e.message = text(message);
	e.request_id = text(request_id);
	e.field = text(a->why != NULL ? a->why->field : "");
	e.owner = text(owner_name(c->rpc, a->owner, number));
	frame_response(&c->out, id);
	frame_error_write(&c->out, &e);
	pack_nil(&c->out);
}

static void conn_answer(struct conn *c, uint32_t id, const struct answer *a)
{
	static const struct detail unread = {
		.text = "answers wait to be read on this connection"
	};
	size_t before = c->out.n;
	struct answer refusal = { .rc = RC_OVERLOADED,
				  .outcome = OUTCOME_REFUSED,
				  .why = &unread,
				  .retry_after_ms = RETRY_AFTER_MS,
				  .request_id = a->request_id,
				  .shard = a->shard };

	if (c->closing)
		return;
	if (conn_may_forget(c, a))
		a = &refusal;
	if (a->rc == RC_OK) {
		frame_response(&c->out, id);
		pack_nil(&c->out);
		pack_raw(&c->out, a->result.p, a->result.n);
	} else {
		error_write(c, id, a);
	}
	conn_dirty(c);
	conn_out_check(c, before);
}

/* An answer of the server itself, not of a call. */
static void conn_refuse(struct conn *c, uint32_t id, enum rc rc,
			const char *field, const char *message)
{
	struct answer a = { .rc = rc,
			    .outcome = OUTCOME_REFUSED,
			    .retry_after_ms = -1,
			    .request_id = c->rpc->next_id++,
			    .shard = UINT32_MAX };
	struct detail why = { { 0 }, { 0 } };

	if (rc == RC_OVERLOADED || rc == RC_NO_QUORUM)
		a.retry_after_ms = RETRY_AFTER_MS;
	detail_set(&why, rc, field, "%s", message);
	a.why = &why;
	conn_answer(c, id, &a);
}

static void conn_value(struct conn *c, uint32_t id, const struct pack_w *w)
{
	struct answer a = { .rc = RC_OK,
			    .retry_after_ms = -1,
			    .result = { w->p, w->n },
			    .shard = UINT32_MAX };

	if (w->rc == RC_OK)
		conn_answer(c, id, &a);
	else
		conn_refuse(c, id, RC_OVERLOADED, NULL,
			    "the answer is too large");
}

void rpc_answer(struct rpc_slot *slot, const struct answer *a)
{
	CHECK_OBJ(slot, SLOT_MAGIC);
	struct answer named = *a;

	/* What is not a call has no id of its own, and is of no shard. */
	if (named.request_id == 0)
		named.request_id = slot->conn->rpc->next_id++;
	if (slot->call == NULL)
		named.shard = UINT32_MAX;
	conn_answer(slot->conn, slot->id, &named);
	slot_put(slot);
}

/* Requests. */

static void call_replied(void *arg, const struct answer *a)
{
	rpc_answer(arg, a);
}

/* The one answer that has to cost next to nothing is made once. */
static enum rc overloaded_make(struct rpc *rpc)
{
	static const char id[] = "0000000000000000";
	const struct frame_error e = {
		.code = RC_OVERLOADED,
		.outcome = OUTCOME_REFUSED,
		.message = text("too many calls are in flight"),
		.request_id = text(id),
		.retry_after_ms = RETRY_AFTER_MS,
	};
	struct pack_w *w = &rpc->overloaded;
	const uint8_t *at;

	pack_w_init(w, 4096);
	frame_error_write(w, &e);
	pack_nil(w);
	if (w->rc != RC_OK)
		return w->rc;
	at = memmem(w->p, w->n, id, sizeof(id) - 1);
	CHECK(at != NULL);
	rpc->overloaded_id_at = (size_t)(at - w->p);
	return RC_OK;
}

/* Refused for what is in flight, before anything of it but its id was looked
 * at. */
static void conn_overloaded(struct conn *c, uint32_t id)
{
	char request_id[CALL_ID_BYTES];
	struct rpc *rpc = c->rpc;
	size_t before = c->out.n;

	call_id_text(rpc->next_id++, request_id);
	memcpy(rpc->overloaded.p + rpc->overloaded_id_at, request_id,
	       sizeof(request_id) - 1);
	frame_response(&c->out, id);
	pack_raw(&c->out, rpc->overloaded.p, rpc->overloaded.n);
	conn_dirty(c);
	conn_out_check(c, before);
}

static void begin_call(struct conn *c, const struct frame *f)
{
	struct rpc_slot *s = slot_take(c, f->id);

	if (s == NULL) {
		conn_overloaded(c, f->id);
		return;
	}
	c->caller.alone = c->calls == 1;
	s->call = call_start(c->rpc->core, &c->caller, f->params, call_replied,
			     s);
	if (s->call != NULL) {
		s->held = call_held_bytes(s->call);
		c->held += s->held;
		return;
	}
	slot_put(s);
	conn_overloaded(c, f->id);
}

static void hello_limits(struct pack_w *w)
{
	static const struct {
		const char *name;
		uint64_t value;
	} limits[] = {
		{ "frame_bytes_max", FRAME_BYTES_MAX },
		{ "value_bytes_max", VALUE_BYTES_MAX },
		{ "name_bytes_max", NAME_BYTES_MAX },
		{ "idem_bytes_max", IDEM_BYTES_MAX },
		{ "deadline_default_ms", DEADLINE_DEFAULT_MS },
		{ "deadline_max_ms", DEADLINE_MAX_MS },
		{ "connection_calls_max", CONNECTION_CALLS_MAX },
		{ "depth_max", PACK_DEPTH_MAX },
		{ "elements_max", PACK_ELEMENTS_MAX },
	};
	size_t i;

	pack_map(w, ARRAY_LEN(limits));
	for (i = 0; i < ARRAY_LEN(limits); i++) {
		pack_cstr(w, limits[i].name);
		pack_u64(w, limits[i].value);
	}
}

/* What a client says of itself may be more than this server knows of. */
static bool hello_params(struct conn *c, const struct frame *f)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	uint32_t n = 0;
	uint32_t pairs;

	if (pack_get_array(&r, &n) == RC_OK && n == 0)
		return true;
	if (pack_get_map(&r, &pairs) == RC_OK)
		return true;
	conn_refuse(c, f->id, RC_INVALID, "params", "hello takes a map");
	return false;
}

static void answer_hello(struct conn *c, uint32_t id)
{
	const struct identity *node = core_identity(c->rpc->core);
	char address[2 * TENANT_BYTES_MAX + 2];
	struct pack_w w;

	snprintf(address, sizeof(address), "%.*s/%.*s", (int)c->caller.tenant.n,
		 (const char *)c->caller.tenant.p, (int)c->caller.env.n,
		 (const char *)c->caller.env.p);
	pack_w_init(&w, 4096);
	pack_map(&w, 10);
	pack_cstr(&w, "server");
	pack_cstr(&w, "holdfast");
	pack_cstr(&w, "version");
	pack_cstr(&w, HOLDFAST_VERSION);
	pack_cstr(&w, "protocol");
	pack_u64(&w, PROTOCOL_VERSION);
	pack_cstr(&w, "node");
	pack_cstr(&w, node->node_name);
	pack_cstr(&w, "node_id");
	pack_u64(&w, node->node_id);
	pack_cstr(&w, "members");
	c->rpc->host.members(c->rpc->host.arg, &w);
	pack_cstr(&w, "cluster");
	pack_cstr(&w, c->rpc->cluster);
	pack_cstr(&w, "principal");
	pack_cstr(&w, c->principal);
	pack_cstr(&w, "limits");
	hello_limits(&w);
	pack_cstr(&w, "address");
	pack_cstr(&w, address);
	conn_value(c, id, &w);
	pack_w_release(&w);
}

void rpc_shown(struct pack_bytes key, char out[64])
{
	size_t i;

	for (i = 0; i < key.n && i < 63; i++)
		out[i] = key.p[i] >= 0x20 && key.p[i] < 0x7f ? (char)key.p[i]
							     : '?';
	out[i] = '\0';
}

/* The params of status: [] or [{reset_stall: bool}]. False: refused. */
static bool status_params(struct conn *c, const struct frame *f, bool *reset)
{
	static const char field[] = "reset_stall";
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	struct pack_bytes key;
	char name[64];
	uint32_t pairs = 0;
	uint32_t n = 0;

	*reset = false;
	if (pack_get_array(&r, &n) == RC_OK && n == 0)
		return true;
	if (pack_get_map(&r, &pairs) != RC_OK) {
		conn_refuse(c, f->id, RC_INVALID, "params",
			    "status takes a map");
		return false;
	}
	for (n = 0; n < pairs; n++) {
		if (pack_get_bytes(&r, &key) != RC_OK) {
			conn_refuse(c, f->id, RC_INVALID, "params",
				    "a key is a string");
			return false;
		}
		rpc_shown(key, name);
		if (strcmp(name, field) != 0 || n > 0) {
			conn_refuse(c, f->id, RC_INVALID, name,
				    "status takes reset_stall, once");
			return false;
		}
		if (pack_get_bool(&r, reset) != RC_OK) {
			conn_refuse(c, f->id, RC_INVALID, field,
				    "reset_stall is true or false");
			return false;
		}
	}
	return true;
}

/* Status and metrics show the whole node: any right in the own environment is
 * enough to look, none is not. What an old copy of the directory says is good
 * enough for that; where there is none, whoever runs the node may see why. */
static bool may_look(struct conn *c, uint32_t id)
{
	bool decides = call_may_decide(c->rpc->core, NULL) == RC_OK;

	if (bind_any(core_bind(c->rpc->core), c->caller.principal,
		     c->caller.tenant, c->caller.env,
		     RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN))
		return true;
	if (decides)
		conn_refuse(c, id, RC_DENIED, "method",
			    "status is for principals with a grant");
	else if (c->secure)
		conn_refuse(c, id, RC_NO_QUORUM, NULL,
			    "this node has not heard from the directory, and "
			    "knows nobody but at its own socket");
	return !decides && !c->secure;
}

static void answer_status(struct conn *c, const struct frame *f)
{
	struct rpc *rpc = c->rpc;
	struct pack_w w;
	bool reset;

	if (!may_look(c, f->id) || !status_params(c, f, &reset))
		return;
	pack_w_init(&w, RESULT_BYTES_MAX);
	rpc->host.status(rpc->host.arg, &c->caller, reset, &w);
	conn_value(c, f->id, &w);
	pack_w_release(&w);
}

static void answer_metrics(struct conn *c, const struct frame *f)
{
	struct rpc *rpc = c->rpc;
	struct pack_w w;

	if (!may_look(c, f->id))
		return;
	pack_w_init(&w, RESULT_BYTES_MAX);
	rpc->host.metrics(rpc->host.arg, &w);
	conn_value(c, f->id, &w);
	pack_w_release(&w);
}

static void begin_hosted(struct conn *c, const struct frame *f,
			 void (*begin)(void *arg, const struct caller *caller,
				       struct pack_bytes params,
				       struct rpc_slot *slot))
{
	struct rpc_slot *s = slot_take(c, f->id);

	if (s == NULL) {
		conn_refuse(c, f->id, RC_OVERLOADED, NULL,
			    "too many calls in flight on this connection");
		return;
	}
	begin(c->rpc->host.arg, &c->caller, f->params, s);
}

static bool params_count(struct conn *c, const struct frame *f,
			 const struct rpc_method *m)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	uint32_t n;

	if (pack_get_array(&r, &n) == RC_OK && n >= m->params_min &&
	    n <= m->params_max)
		return true;
	conn_refuse(c, f->id, RC_INVALID, "params",
		    "wrong number of params for this method");
	return false;
}

static void request(struct conn *c, const struct frame *f)
{
	const struct rpc_method *m;
	struct pack_w w;

	m = rpc_method_find((const char *)f->method.p, f->method.n, false);
	if (m == NULL) {
		conn_refuse(c, f->id, RC_UNSUPPORTED, "method",
			    "this server has no such method");
		return;
	}
	if (!params_count(c, f, m))
		return;
	/* Whoever looks at shards or their storage is too late. */
	if (core_is_closing(c->rpc->core)) {
		conn_refuse(c, f->id, RC_OVERLOADED, NULL,
			    "the node is stopping");
		return;
	}
	switch (m->number) {
	case RPC_call:
		begin_call(c, f);
		break;
	case RPC_hello:
		if (hello_params(c, f))
			answer_hello(c, f->id);
		break;
	case RPC_ping:
		pack_w_init(&w, 16);
		pack_nil(&w);
		conn_value(c, f->id, &w);
		pack_w_release(&w);
		break;
	case RPC_status:
		answer_status(c, f);
		break;
	case RPC_metrics:
		answer_metrics(c, f);
		break;
	case RPC_objects:
		begin_hosted(c, f, c->rpc->host.objects);
		break;
	case RPC_object:
		begin_hosted(c, f, c->rpc->host.object);
		break;
	case RPC_shard:
		if (may_look(c, f->id))
			begin_hosted(c, f, c->rpc->host.shard);
		break;
	case RPC_transfer:
		if (may_look(c, f->id))
			begin_hosted(c, f, c->rpc->host.transfer);
		break;
	case RPC_cancel:
	case RPCS_COUNT:
		UNREACHABLE();
	}
}

/* The one notification that does something: cancel [id]. */
static void notification(struct conn *c, const struct frame *f)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	struct rpc_slot *s;
	uint64_t id;
	uint32_t n;

	if (rpc_method_find((const char *)f->method.p, f->method.n, true) ==
	    NULL)
		return;
	if (pack_get_array(&r, &n) != RC_OK || n != 1 ||
	    pack_get_u64(&r, &id) != RC_OK)
		return;
	LIST_FOREACH(s, &c->slots, link)
	if (s->id == id && s->call != NULL) {
		call_cancel(s->call);
		return;
	}
}

/* Reading. */

/* Whoever is not known yet may come again and again: one line a second. */
static void log_refused(struct conn *c, const char *uri, const char *why)
{
	struct rpc *rpc = c->rpc;
	uint64_t now = env_now_ms(rpc->env);

	if (rpc->refused_log_ms != 0 &&
	    now - rpc->refused_log_ms < REFUSED_LOG_MS) {
		rpc->refused_unsaid++;
		return;
	}
	LOG_WARN("connection_refused", F("connection", c->number),
		 F("name", uri), F("why", why),
		 F("unsaid", rpc->refused_unsaid));
	rpc->refused_log_ms = now;
	rpc->refused_unsaid = 0;
}

static void conn_refused(struct conn *c, const char *uri, const char *why)
{
	log_refused(c, uri, why);
	c->rpc->stats.refused++;
	conn_close(c);
}

static void conn_broken(struct conn *c, const char *sentence)
{
	if (c->shaking)
		log_refused(c, "", sentence);
	else
		LOG_INFO("connection_broken", F("connection", c->number),
			 F("why", sentence));
	c->rpc->stats.broken++;
	conn_close(c);
}

/* One message from the front of the input. False: stop for now. */
static bool conn_frame(struct conn *c)
{
	struct detail why = { { 0 }, { 0 } };
	struct frame f;
	size_t used = 0;
	enum rc rc;

	rc = frame_next(&c->reader, c->in + c->in_at, c->in_n - c->in_at, &f,
			&used, &why);
	if (rc == RC_AGAIN)
		return false;
	if (rc != RC_OK && used == 0) {
		conn_broken(c, why.text);
		return false;
	}
	c->rpc->stats.frames++;
	c->in_at += used;
	if (rc != RC_OK) {
		conn_refuse(c, f.id, RC_INVALID,
			    why.field[0] != '\0' ? why.field : NULL, why.text);
		return !c->closing;
	}
	if (f.kind == FRAME_REQUEST)
		request(c, &f);
	else if (f.kind == FRAME_NOTIFY)
		notification(c, &f);
	else
		/* We asked nothing: a response is a confused peer. */
		conn_broken(c, "a response came to a server");
	return !c->closing;
}

static void conn_read_start(struct conn *c);

static void conn_read_stop(struct conn *c)
{
	if (!c->reading)
		return;
	c->reading = false;
	uv_read_stop(&c->stream);
}

/* Move what is unparsed to the front; give back memory a large frame took. */
static void conn_compact(struct conn *c)
{
	size_t left = c->in_n - c->in_at;

	if (left > 0 && c->in_at > 0)
		memmove(c->in, c->in + c->in_at, left);
	c->in_at = 0;
	c->in_n = left;
	if (c->in_cap > CONNECTION_IN_BYTES && left == 0) {
		c->rpc->in_bytes -= c->in_cap;
		free(c->in);
		c->in = NULL;
		c->in_cap = 0;
	}
}

/* The client has not only stopped sending, it will not read either. */
static bool conn_gone(const struct conn *c)
{
	struct pollfd p = { .events = 0 };

	if (uv_fileno(&c->handle, &p.fd) < 0)
		return false;
	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0;
}

/* TCP says that the other side has ended, TLS that it meant to: without that it
 * was cut off, or died. */
static bool conn_cut(const struct conn *c)
{
	return c->secure && (c->shaking || !tls_ended(c->tls));
}

/* The client sends no more. */
static void conn_eof(struct conn *c)
{
	c->eof = true;
	conn_read_stop(c);
	if (conn_cut(c) || conn_gone(c))
		conn_close(c);
	else
		conn_maybe_end(c);
}

static void conn_wait(struct conn *c)
{
	struct rpc *rpc = c->rpc;

	if (c->waiting)
		return;
	c->waiting = true;
	STAILQ_INSERT_TAIL(&rpc->waiting, c, waiting_link);
}

/* It has something to begin, which is done when what the other nodes have sent
 * is taken: no flood of calls comes before a heartbeat of this turn. */
static void conn_due(struct conn *c)
{
	if (MUTANT(calls_first)) {
		conn_begin(c);
		return;
	}
	conn_wait(c);
	env_post(c->rpc->env, &c->rpc->calls_task);
}

/* In the next turn. */
static void conn_again(struct conn *c)
{
	struct rpc *rpc = c->rpc;

	conn_wait(c);
	if (!rpc->again.running)
		env_timer_start(&rpc->again, 0);
}

/* Begin what is whole in the input, as far as a turn's share and the unsent
 * answers allow. */
static void conn_begin(struct conn *c)
{
	uint32_t begun = 0;
	bool partial = false;

	while (c->in_at < c->in_n && !conn_out_full(c)) {
		if (begun++ == CONNECTION_TURN_FRAMES) {
			conn_again(c);
			break;
		}
		if (!conn_frame(c)) {
			partial = true;
			break;
		}
	}
	if (c->closing)
		return;
	if (!partial && c->in_at < c->in_n) {
		/* Full, or another turn's: read no more meanwhile. */
		conn_read_stop(c);
		return;
	}
	conn_compact(c);
	if (c->in_n == 0)
		c->partial_ms = 0;
	else if (begun > 1 || c->partial_ms == 0)
		c->partial_ms = env_now_ms(c->rpc->env);
	if (c->eof)
		conn_maybe_end(c);
	else if (c->tls != NULL && tls_ended(c->tls))
		conn_eof(c);
	else
		conn_read_start(c);
}

static void accept_owed(struct rpc *rpc);

static void rpc_again(struct env_timer *t)
{
	struct rpc *rpc = CONTAINER_OF(t, struct rpc, again);

	env_post(rpc->env, &rpc->calls_task);
	accept_owed(rpc);
}

static void rpc_calls(struct env_task *t)
{
	struct rpc *rpc = CONTAINER_OF(t, struct rpc, calls_task);
	STAILQ_HEAD(, conn) now = STAILQ_HEAD_INITIALIZER(now);
	struct conn *c;

	STAILQ_CONCAT(&now, &rpc->waiting);
	while ((c = STAILQ_FIRST(&now)) != NULL) {
		STAILQ_REMOVE_HEAD(&now, waiting_link);
		c->waiting = false;
		if (!c->closing)
			conn_begin(c);
	}
}

/* Room for more input. It grows only by what has really come: memory follows
 * input. */
static bool conn_room(struct conn *c)
{
	struct rpc *rpc = c->rpc;
	size_t cap = c->in_cap == 0 ? CONNECTION_IN_BYTES : c->in_cap * 2;
	uint8_t *in;

	if (c->in_n < c->in_cap)
		return true;
	if (rpc->in_bytes + cap - c->in_cap > CONNECTIONS_IN_BYTES_MAX)
		return false;
	in = realloc(c->in, cap);
	if (in == NULL)
		return false;
	rpc->in_bytes += cap - c->in_cap;
	c->in = in;
	c->in_cap = cap;
	return true;
}

/* Handshakes cost more than calls: a turn makes so many steps of them, and what
 * else came waits in the kernel for the next. */
static bool conn_may_shake(struct conn *c)
{
	return !c->shaking || c->rpc->steps < TURN_HANDSHAKES;
}

static void conn_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct conn *c = h->data;

	(void)suggested;
	CHECK_OBJ(c, CONN_MAGIC);
	*buf = uv_buf_init(NULL, 0);
	if (c->secure) {
		if (conn_may_shake(c))
			*buf = uv_buf_init((char *)c->rpc->cipher,
					   CIPHER_BYTES);
		return;
	}
	if (conn_room(c))
		*buf = uv_buf_init((char *)c->in + c->in_n,
				   (unsigned)(c->in_cap - c->in_n));
}

static void steps_over(struct env_task *t)
{
	struct rpc *rpc = CONTAINER_OF(t, struct rpc, steps_task);

	rpc->steps = 0;
}

static bool label_byte(char c, bool first)
{
	if (c >= 'a' && c <= 'z')
		return true;
	return !first && ((c >= '0' && c <= '9') || c == '_' || c == '-');
}

/* A tenant's or environment's name in front of `*at`, up to a slash. */
static bool uri_label(const char **at, struct pack_bytes *out)
{
	const char *p = *at;
	size_t n = 0;

	while (label_byte(p[n], n == 0))
		n++;
	if (n == 0 || n > TENANT_BYTES_MAX || p[n] != '/')
		return false;
	*out = (struct pack_bytes){ (const uint8_t *)p, n };
	*at = p + n;
	return true;
}

static bool uri_part(const char **at, const char *part)
{
	size_t n = strlen(part);

	if (strncmp(*at, part, n) != 0)
		return false;
	*at += n;
	return true;
}

/* spiffe://CLUSTER/tenant/T/env/E/client/NAME, and nothing else, is a client
 * of T/E. */
static bool client_uri(const char *uri, const char *cluster,
		       struct caller *caller)
{
	const char *at = uri;

	if (!uri_part(&at, "spiffe://") || !uri_part(&at, cluster) ||
	    !uri_part(&at, "/tenant/") || !uri_label(&at, &caller->tenant) ||
	    !uri_part(&at, "/env/") || !uri_label(&at, &caller->env) ||
	    !uri_part(&at, "/client/"))
		return false;
	return *at != '\0' && strchr(at, '/') == NULL;
}

/* The handshake is over: who is it? Nothing it said was looked at yet. */
static void conn_named(struct conn *c)
{
	struct rpc *rpc = c->rpc;
	const char *uri = tls_uri(c->tls);

	TAILQ_REMOVE(&rpc->handshakes, c, shake_link);
	c->shaking = false;
	rpc->stats.handshakes--;
	if (rpc->stats.connections <= KEEPING_MAX)
		tls_keep(c->tls);
	snprintf(c->principal, sizeof(c->principal), "%s", uri);
	c->caller.principal = text(c->principal);
	if (client_uri(c->principal, rpc->cluster, &c->caller))
		return;
	if (MUTANT(client_any_name)) {
		c->caller.tenant = text("default");
		c->caller.env = text("dev");
		return;
	}
	conn_refused(c, uri, "it is no client of this cluster");
}

static void conn_step(struct conn *c, size_t n)
{
	struct rpc *rpc = c->rpc;

	rpc->steps++;
	env_post(rpc->env, &rpc->steps_task);
	if (c->tls == NULL && tls_new(rpc->tls, true, &c->tls) != RC_OK)
		conn_broken(c, "no memory for a handshake");
	else if (c->shaken > HANDSHAKE_BYTES)
		conn_broken(c, "its handshake is too long");
	c->shaken += n; /* Calls may follow its end in the same read. */
}

/* Something new is in its input. It is not asked for more than a buffer full
 * before it has begun what it sent: that waits with the sender. */
static void conn_came(struct conn *c)
{
	conn_due(c);
	if (c->in_n >= CONNECTION_IN_BYTES)
		conn_read_stop(c);
}

/* Plain bytes join the others of the connection. */
static bool conn_opened(struct conn *c)
{
	const uint8_t *p;
	size_t n;

	for (;;) {
		tls_plain(c->tls, &p, &n);
		if (n == 0)
			return true;
		if (!conn_room(c)) {
			conn_broken(c, "no memory for a request");
			return false;
		}
		c->in_n +=
			tls_read(c->tls, c->in + c->in_n, c->in_cap - c->in_n);
	}
}

static void conn_take_tls(struct conn *c, size_t n)
{
	struct rpc *rpc = c->rpc;
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	if (c->shaking)
		conn_step(c, n);
	if (c->closing)
		return;
	rc = tls_input(c->tls, rpc->cipher, n, &why);
	conn_flush(c); /* Its part of the handshake, or an alert. */
	if (c->closing)
		return;
	if (rc == RC_DENIED && c->shaking) {
		conn_refused(c, "", why.text);
		return;
	}
	if (rc != RC_OK) {
		conn_broken(c, why.text[0] != '\0' ? why.text : rc_text(rc));
		return;
	}
	if (c->shaking && tls_ready(c->tls))
		conn_named(c);
	if (c->closing || c->shaking || !conn_opened(c))
		return;
	conn_came(c);
}

static void conn_read(uv_stream_t *s, ssize_t n, const uv_buf_t *buf)
{
	struct conn *c = s->data;

	(void)buf;
	CHECK_OBJ(c, CONN_MAGIC);
	if (n == UV_ENOBUFS) {
		if (conn_may_shake(c))
			conn_broken(c, "no memory for a request");
		return;
	}
	if (n == UV_EOF) {
		/* What came just before may not have begun yet. */
		if (c->waiting)
			conn_begin(c);
		if (!c->closing)
			conn_eof(c);
		return;
	}
	if (n < 0) {
		conn_close(c);
		return;
	}
	c->rpc->stats.bytes_in += (uint64_t)n;
	if (c->secure) {
		conn_take_tls(c, (size_t)n);
		return;
	}
	c->in_n += (size_t)n;
	conn_came(c);
}

static void conn_read_start(struct conn *c)
{
	if (c->reading || c->eof)
		return;
	c->reading = true;
	if (uv_read_start(&c->stream, conn_alloc, conn_read) < 0)
		conn_close(c);
}

/* Connections. */

static void rpc_maybe_closed(struct rpc *rpc)
{
	if (!rpc->closing || rpc->open_handles > 0)
		return;
	env_timer_stop(&rpc->sweep);
	env_timer_stop(&rpc->again);
	pool_release(&rpc->slots);
	pack_w_release(&rpc->overloaded);
	free(rpc->cipher);
	rpc->magic = 0;
	rpc->closed(rpc->closed_arg);
	free(rpc);
}

static void conn_free(struct conn *c)
{
	struct rpc *rpc = c->rpc;

	rpc->in_bytes -= c->in_cap;
	rpc->out_bytes -= conn_unsent(c);
	free(c->in);
	pack_w_release(&c->out);
	pack_w_release(&c->wire);
	pack_w_release(&c->sealed);
	tls_free(c->tls);
	c->magic = 0;
	free(c);
	rpc->open_handles--;
	rpc_maybe_closed(rpc);
}

/* Calls hold the caller's names, which live in the connection: it ends after
 * the last of them. One whose client only stopped sending ends when the last
 * answer has left. */
static void conn_maybe_end(struct conn *c)
{
	if (c->calls > 0)
		return;
	if (c->closed)
		conn_free(c);
	else if (c->eof && !c->waiting && conn_unsent(c) == 0)
		conn_close(c);
}

static void conn_closed(uv_handle_t *h)
{
	struct conn *c = h->data;

	CHECK_OBJ(c, CONN_MAGIC);
	c->closed = true;
	conn_maybe_end(c);
}

/* So that the client knows that nothing was cut off. */
static void conn_goodbye(struct conn *c)
{
	const uint8_t *p;
	uv_buf_t buf;
	size_t n;

	if (c->tls == NULL || c->writing)
		return;
	tls_shutdown(c->tls);
	tls_output(c->tls, &p, &n);
	buf = uv_buf_init((char *)p, (unsigned)n);
	if (n > 0)
		(void)uv_try_write(&c->stream, &buf, 1);
}

static void conn_close(struct conn *c)
{
	struct rpc *rpc = c->rpc;
	struct rpc_slot *s;

	if (c->closing)
		return;
	c->closing = true;
	conn_goodbye(c);
	if (c->shaking) {
		TAILQ_REMOVE(&rpc->handshakes, c, shake_link);
		rpc->stats.handshakes--;
		c->shaking = false;
	}
	if (rpc->listeners[LISTEN_TCP].owed && !rpc->again.running)
		env_timer_start(&rpc->again, 0);
	if (c->dirty)
		STAILQ_REMOVE(&rpc->dirty, c, conn, dirty_link);
	if (c->waiting)
		STAILQ_REMOVE(&rpc->waiting, c, conn, waiting_link);
	c->dirty = false;
	c->waiting = false;
	TAILQ_REMOVE(&rpc->conns, c, link);
	rpc->stats.connections--;
	/* Nobody is left to hear: what has not begun need not. The caller's
	 * names live in the connection, so its calls must end before it does.
	 */
	while ((s = LIST_FIRST(&c->slots)) != NULL) {
		LIST_REMOVE(s, link);
		LIST_INSERT_HEAD(&c->dying, s, link);
		if (s->call != NULL)
			call_cancel(s->call);
	}
	uv_close(&c->handle, conn_closed);
}

static enum rc peer_uid(struct conn *c, uid_t *uid)
{
	struct ucred cred;
	socklen_t n = sizeof(cred);
	uv_os_fd_t fd;

	if (uv_fileno(&c->handle, &fd) < 0)
		return RC_IO;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n) != 0)
		return RC_IO;
	*uid = cred.uid;
	return RC_OK;
}

static enum rc conn_identify(struct conn *c)
{
	const struct identity *id = core_identity(c->rpc->core);
	uid_t uid;

	if (peer_uid(c, &uid) != RC_OK)
		return RC_UNAUTHENTICATED;
	if (uid != 0 && uid != geteuid()) {
		LOG_WARN("connection_refused", F("uid", uid));
		return RC_UNAUTHENTICATED;
	}
	snprintf(c->principal, sizeof(c->principal), "unix:%s:%u",
		 id->node_name, (unsigned)uid);
	c->caller.principal = text(c->principal);
	c->caller.tenant = text("default");
	c->caller.env = text("dev");
	return RC_OK;
}

static struct conn *conn_new(struct rpc *rpc, bool secure)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (c == NULL)
		return NULL;
	c->magic = CONN_MAGIC;
	c->rpc = rpc;
	c->secure = secure;
	c->number = ++rpc->next_number;
	c->since_ms = env_now_ms(rpc->env);
	LIST_INIT(&c->slots);
	LIST_INIT(&c->dying);
	pack_w_init(&c->out, CONNECTION_OUT_BYTES_MAX);
	pack_w_init(&c->wire, CONNECTION_OUT_BYTES_MAX);
	pack_w_init(&c->sealed, CONNECTION_OUT_BYTES_MAX);
	frame_reader_init(&c->reader, FRAME_BYTES_MAX);
	if (secure)
		uv_tcp_init(rpc->loop, &c->tcp);
	else
		uv_pipe_init(rpc->loop, &c->pipe, 0);
	c->handle.data = c;
	rpc->open_handles++;
	rpc->stats.accepted++;
	rpc->stats.connections++;
	TAILQ_INSERT_TAIL(&rpc->conns, c, link);
	if (secure) {
		c->shaking = true;
		rpc->stats.handshakes++;
		TAILQ_INSERT_TAIL(&rpc->handshakes, c, shake_link);
	}
	return c;
}

/* A place for one more handshake: that of the oldest, when it had its share. */
static bool handshake_room(struct rpc *rpc)
{
	struct conn *c = TAILQ_FIRST(&rpc->handshakes);

	if (rpc->stats.handshakes < CONNECTION_HANDSHAKES_MAX)
		return true;
	if (env_now_ms(rpc->env) - c->since_ms < CROWDED_MS)
		return false;
	conn_broken(c, "there are too many handshakes");
	return true;
}

static void conn_accepted(struct conn *c)
{
	struct rpc *rpc = c->rpc;
	bool good =
		!rpc->closing && rpc->stats.connections <= rpc->connections_max;

	if (good && c->secure) {
		(void)uv_tcp_nodelay(&c->tcp, 1);
		(void)uv_tcp_keepalive(&c->tcp, 1, KEEPALIVE_S);
	} else if (good) {
		good = conn_identify(c) == RC_OK;
	}
	if (good) {
		conn_read_start(c);
		return;
	}
	rpc->stats.refused++;
	conn_close(c);
}

/* Without descriptors it is told of each try of libuv's, at once. */
static void log_unaccepted(struct rpc *rpc, int status)
{
	uint64_t now = env_now_ms(rpc->env);

	if (rpc->unaccepted_log_ms != 0 &&
	    now - rpc->unaccepted_log_ms < REFUSED_LOG_MS)
		return;
	LOG_WARN("accept_failed", F("why", uv_strerror(status)));
	rpc->unaccepted_log_ms = now;
}

static void rpc_accept(uv_stream_t *server, int status)
{
	struct listener *l = server->data;
	struct rpc *rpc = l->rpc;
	bool secure = l == &rpc->listeners[LISTEN_TCP];
	struct conn *c = NULL;

	CHECK_OBJ(rpc, RPC_MAGIC);
	if (status < 0) {
		log_unaccepted(rpc, status);
		return;
	}
	if (!secure || handshake_room(rpc))
		c = conn_new(rpc, secure);
	if (c == NULL) {
		/* libuv listens again when this one is accepted. */
		l->owed = true;
		return;
	}
	if (uv_accept(server, &c->stream) < 0) {
		rpc->stats.refused++;
		conn_close(c);
	} else {
		conn_accepted(c);
	}
}

static void accept_owed(struct rpc *rpc)
{
	unsigned i;

	for (i = 0; i < LISTENERS; i++) {
		struct listener *l = &rpc->listeners[i];

		if (!l->owed || !l->open)
			continue;
		l->owed = false;
		rpc_accept(&l->stream, 0);
	}
}

/* It has stood still for so long. */
static bool conn_stuck(struct conn *c, uint64_t now)
{
	size_t left;

	if (c->stuck_ms == 0)
		return false;
	left = uv_stream_get_write_queue_size(&c->stream);
	if (left < c->stuck_left) {
		c->stuck_left = left;
		c->stuck_ms = now;
	}
	return now - c->stuck_ms > c->rpc->write_stall_ms;
}

/* A certificate that ends while it is in use: so does its connection. */
static bool conn_expired(const struct conn *c)
{
	if (c->tls == NULL || c->shaking || MUTANT(expired_stays))
		return false;
	return env_wall_ms(c->rpc->env) > tls_peer_expires_ms(c->tls);
}

static void since_later(uint64_t *since_ms, uint64_t late_ms, uint64_t now)
{
	if (*since_ms != 0)
		*since_ms =
			*since_ms + late_ms < now ? *since_ms + late_ms : now;
}

/* While we stood still ourselves, paused or busy, nothing of anybody's could
 * get through: what it did meanwhile has yet to be read. */
static void conn_excuse(struct conn *c, uint64_t late_ms, uint64_t now)
{
	if (late_ms == 0 || MUTANT(stall_is_silence))
		return;
	since_later(&c->stuck_ms, late_ms, now);
	since_later(&c->partial_ms, late_ms, now);
	since_later(&c->since_ms, late_ms, now);
}

static void sweep_start(struct rpc *rpc, uint64_t now)
{
	rpc->sweep_at_ms = now + rpc->sweep_ms;
	env_timer_start(&rpc->sweep, rpc->sweep_at_ms);
}

/* Once a second: who keeps a frame unfinished, who never reads, who is gone. */
static void rpc_sweep(struct env_timer *t)
{
	struct rpc *rpc = CONTAINER_OF(t, struct rpc, sweep);
	uint64_t now = env_now_ms(rpc->env);
	uint64_t late = now > rpc->sweep_at_ms ? now - rpc->sweep_at_ms : 0;
	struct conn *c;
	struct conn *next;

	CHECK_OBJ(rpc, RPC_MAGIC);
	for (c = TAILQ_FIRST(&rpc->conns); c != NULL; c = next) {
		next = TAILQ_NEXT(c, link);
		conn_excuse(c, late, now);
		if (c->partial_ms != 0 &&
		    now - c->partial_ms > rpc->frame_stall_ms)
			conn_broken(c, "a frame was not finished in time");
		else if (conn_stuck(c, now))
			conn_broken(c, "answers were not read in time");
		else if (c->shaking && now - c->since_ms > rpc->handshake_ms)
			conn_broken(c, "its handshake took too long");
		else if (conn_expired(c))
			conn_broken(c, "its certificate has expired");
		else if (c->eof && conn_gone(c))
			conn_close(c);
	}
	accept_owed(rpc);
	sweep_start(rpc, now);
}

/* Listening. */

static enum rc socket_free(const char *path, struct detail *why)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct stat st;
	int fd;
	int e;

	if (lstat(path, &st) != 0)
		return RC_OK;
	if (!S_ISSOCK(st.st_mode))
		return detail_set(why, RC_EXISTS, "listen.socket",
				  "%s exists and is no socket", path);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return detail_set(why, RC_IO, "listen.socket", "no socket: %s",
				  strerror(errno));
	e = connect(fd, (struct sockaddr *)&addr, sizeof(addr));
	close(fd);
	if (e == 0)
		return detail_set(why, RC_EXISTS, "listen.socket",
				  "another process listens on %s", path);
	if (unlink(path) != 0)
		return detail_set(why, RC_IO, "listen.socket",
				  "cannot replace %s: %s", path,
				  strerror(errno));
	return RC_OK;
}

static bool folder_there(const char *path)
{
	const char *slash = strrchr(path, '/');
	struct sockaddr_un addr;

	if (slash == NULL || slash == path)
		return true;
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%.*s",
		 (int)(slash - path), path);
	return access(addr.sun_path, F_OK) == 0 || errno != ENOENT;
}

static void listener_init(struct rpc *rpc, unsigned i)
{
	struct listener *l = &rpc->listeners[i];

	if (i == LISTEN_TCP)
		uv_tcp_init(rpc->loop, &l->tcp);
	else
		uv_pipe_init(rpc->loop, &l->pipe, 0);
	l->rpc = rpc;
	l->handle.data = l;
	l->open = true;
	rpc->open_handles++;
}

static enum rc listen_unix(struct rpc *rpc, struct detail *why)
{
	struct listener *l = &rpc->listeners[LISTEN_UNIX];
	enum rc rc = socket_free(rpc->path, why);
	int e;

	if (rc != RC_OK)
		return rc;
	listener_init(rpc, LISTEN_UNIX);
	/* The umask is 0077: the socket is never open to others. */
	e = uv_pipe_bind(&l->pipe, rpc->path);
	/* It says EACCES for a folder that is not there. */
	if (e == UV_EACCES && !folder_there(rpc->path))
		e = UV_ENOENT;
	if (e == 0 && chmod(rpc->path, 0600) != 0)
		e = UV_EPERM;
	if (e == 0)
		e = uv_listen(&l->stream, 1024, rpc_accept);
	if (e < 0)
		return detail_set(why, RC_IO, "listen.socket",
				  "cannot listen on %s: %s", rpc->path,
				  uv_strerror(e));
	return RC_OK;
}

static uint16_t port_of(const uv_tcp_t *tcp)
{
	struct sockaddr_storage a = { 0 };
	int n = sizeof(a);

	if (uv_tcp_getsockname(tcp, (struct sockaddr *)&a, &n) < 0)
		return 0;
	return ntohs(a.ss_family == AF_INET6
			     ? ((struct sockaddr_in6 *)&a)->sin6_port
			     : ((struct sockaddr_in *)&a)->sin_port);
}

/* A name may take its time: this is before anybody is served. */
static enum rc listen_tcp(struct rpc *rpc, const struct rpc_config *cfg,
			  struct detail *why)
{
	struct listener *l = &rpc->listeners[LISTEN_TCP];
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_PASSIVE };
	uv_getaddrinfo_t req;
	char port[8];
	int e;

	rpc->cipher = malloc(CIPHER_BYTES);
	if (rpc->cipher == NULL)
		return RC_NOMEM;
	snprintf(port, sizeof(port), "%u", cfg->listen_port);
	e = uv_getaddrinfo(rpc->loop, &req, NULL, cfg->listen_host, port,
			   &hints);
	if (e < 0)
		return detail_set(why, RC_INVALID, "listen.rpc", "%s: %s",
				  cfg->listen_host, uv_strerror(e));
	listener_init(rpc, LISTEN_TCP);
	e = uv_tcp_bind(&l->tcp, req.addrinfo->ai_addr, 0);
	uv_freeaddrinfo(req.addrinfo);
	if (e == 0)
		e = uv_listen(&l->stream, 1024, rpc_accept);
	if (e < 0)
		return detail_set(
			why, e == UV_EADDRINUSE ? RC_EXISTS : RC_IO,
			"listen.rpc", "cannot listen on %s port %u: %s",
			cfg->listen_host, cfg->listen_port, uv_strerror(e));
	rpc->port = port_of(&l->tcp);
	return RC_OK;
}

static enum rc rpc_listen(struct rpc *rpc, const struct rpc_config *cfg,
			  struct detail *why)
{
	enum rc rc = RC_OK;

	if (rpc->path[0] != '\0')
		rc = listen_unix(rpc, why);
	if (rc == RC_OK && cfg->listen_host != NULL)
		rc = listen_tcp(rpc, cfg, why);
	return rc;
}

static void rpc_abandoned(void *arg)
{
	(void)arg;
}

static uint32_t handshake_ms_of(const struct rpc_config *cfg)
{
	return cfg->handshake_ms != 0 ? cfg->handshake_ms
				      : CONNECTION_HANDSHAKE_MS;
}

/* A quarter of what it looks for, and at least once a second. */
static uint32_t sweep_ms_of(const struct rpc_config *cfg)
{
	uint32_t ms = cfg->frame_stall_ms < cfg->write_stall_ms
			      ? cfg->frame_stall_ms
			      : cfg->write_stall_ms;

	if (cfg->listen_host != NULL && handshake_ms_of(cfg) < ms)
		ms = handshake_ms_of(cfg);
	ms = ms / 4 + 1;
	return ms < SWEEP_MS ? ms : SWEEP_MS;
}

enum rc rpc_open(uv_loop_t *loop, struct env *env, struct core *core,
		 const struct rpc_config *cfg, const struct rpc_host *host,
		 struct rpc **out, struct detail *why)
{
	const char *path = cfg->socket_path != NULL ? cfg->socket_path : "";
	struct rpc *rpc;
	enum rc rc;

	PRE(cfg->listen_host == NULL || cfg->tls != NULL);
	if (strlen(path) >= sizeof(rpc->path))
		return detail_set(why, RC_INVALID, "listen.socket",
				  "the path of a Unix socket has at most %zu "
				  "bytes",
				  sizeof(rpc->path) - 1);
	rpc = calloc(1, sizeof(*rpc));
	if (rpc == NULL)
		return RC_NOMEM;
	rpc->magic = RPC_MAGIC;
	rpc->loop = loop;
	rpc->env = env;
	rpc->core = core;
	rpc->host = *host;
	rpc->connections_max = cfg->connections_max;
	rpc->frame_stall_ms = cfg->frame_stall_ms;
	rpc->write_stall_ms = cfg->write_stall_ms;
	rpc->handshake_ms = handshake_ms_of(cfg);
	rpc->sweep_ms = sweep_ms_of(cfg);
	rpc->tls = cfg->tls;
	memcpy(rpc->path, path, strlen(path) + 1);
	hex_encode(core_identity(core)->cluster_id, ID_BYTES, rpc->cluster);
	TAILQ_INIT(&rpc->conns);
	TAILQ_INIT(&rpc->handshakes);
	STAILQ_INIT(&rpc->dirty);
	STAILQ_INIT(&rpc->waiting);
	rpc->calls_task.cb = rpc_calls;
	rpc->calls_task.phase = ENV_PHASE_CALLS;
	rpc->send_task.cb = rpc_send;
	rpc->send_task.phase = ENV_PHASE_SEND;
	rpc->steps_task.cb = steps_over;
	rpc->steps_task.phase = ENV_PHASE_SEND;
	env_timer_init(&rpc->again, env, rpc_again);
	env_timer_init(&rpc->sweep, env, rpc_sweep);
	env_random(env, &rpc->next_id, sizeof(rpc->next_id));
	rpc->next_id |= 1ull << 63; /* Apart from the ids of calls. */
	rc = overloaded_make(rpc);
	if (rc == RC_OK)
		rc = pool_init(&rpc->slots, sizeof(struct rpc_slot), CALLS_MAX);
	if (rc != RC_OK) {
		pack_w_release(&rpc->overloaded);
		free(rpc);
		return rc;
	}
	rc = rpc_listen(rpc, cfg, why);
	if (rc != RC_OK) {
		rpc_close(rpc, rpc_abandoned, NULL);
		return rc;
	}
	sweep_start(rpc, env_now_ms(env));
	*out = rpc;
	return RC_OK;
}

static void listener_closed(uv_handle_t *h)
{
	struct listener *l = h->data;
	struct rpc *rpc = l->rpc;

	CHECK_OBJ(rpc, RPC_MAGIC);
	rpc->open_handles--;
	rpc_maybe_closed(rpc);
}

void rpc_stop_listening(struct rpc *rpc)
{
	unsigned i;

	for (i = 0; i < LISTENERS; i++) {
		struct listener *l = &rpc->listeners[i];

		if (!l->open)
			continue;
		l->open = false;
		uv_close(&l->handle, listener_closed); /* Unlinks a socket. */
	}
}

uint16_t rpc_port(const struct rpc *rpc)
{
	CHECK_OBJ(rpc, RPC_MAGIC);
	return rpc->port;
}

void rpc_tls(struct rpc *rpc, struct tls_context *tls)
{
	CHECK_OBJ(rpc, RPC_MAGIC);
	rpc->tls = tls;
}

void rpc_close(struct rpc *rpc, void (*closed)(void *arg), void *arg)
{
	struct conn *c;

	CHECK_OBJ(rpc, RPC_MAGIC);
	PRE(!rpc->closing);
	rpc->closed = closed;
	rpc->closed_arg = arg;
	rpc_send(&rpc->send_task);
	rpc_stop_listening(rpc);
	while ((c = TAILQ_FIRST(&rpc->conns)) != NULL)
		conn_close(c);
	rpc->closing = true;
	rpc_maybe_closed(rpc);
}

void rpc_stats(const struct rpc *rpc, struct rpc_stats *out)
{
	*out = rpc->stats;
	out->in_held = rpc->in_bytes;
	out->out_held = rpc->out_bytes;
}
