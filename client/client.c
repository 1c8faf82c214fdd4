/*
 * The library's transport: a session (client/session.h) on a libuv loop.
 *
 * Sockets are watched with uv_poll and read and written here: so it is known
 * how many bytes of a call have left, a broken connection raises no SIGPIPE in
 * somebody's program, and bytes go straight into the session's buffer. A loop
 * turn that made calls ends in one write, from the prepare handle.
 *
 *   closed --connect()--> open --first answer--> greeted
 *     ^                     |                       |
 *     +---- after a pause --+-----------------------+  lost
 */
#include "client/holdfast.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "client/check.h"
#include "client/proto/json.h"
#include "client/session.h"

#define HOLDFAST_MAGIC     0x686f6c64u
#define CONN_MAGIC         0x686c6e6bu
#define ARGS_MAGIC         0x68617267u
#define NS_PER_MS          1000000u
#define READS_PER_TURN     16
#define CONNECT_DEFAULT_MS 5000u
/* The struct of version 0.1. */
#define REQUEST_BYTES_MIN \
	(offsetof(struct holdfast_request, flags) + sizeof(unsigned))

#ifndef HOLDFAST_VERSION
#define HOLDFAST_VERSION "0.1.0"
#endif

/* One connection. It outlives its end until libuv has let go of it. */
struct conn {
	uint32_t magic;
	int fd;
	bool wants_write;
	struct holdfast *h;
	uv_poll_t poll;
};

/* Room for what an answer's strings point to. */
struct answer_text {
	char message[512];
	char field[64];
	char request_id[64];
	char owner[256];
};

struct holdfast {
	uint32_t magic;
	LIST_HEAD(, pending) pending;
	bool own_loop;
	bool closing;
	bool lost;     /* Since `lost` was last cleared: once or more. */
	bool was_open; /* What the state callback was told last. */
	enum rc lost_rc;
	uint32_t open_handles;
	uint64_t limit_ns; /* holdfast_connect() waits until then. */
	uv_loop_t *loop;
	uv_loop_t private_loop;
	uv_prepare_t prepare;
	uv_timer_t timer;
	struct conn *conn;
	struct session *session;
	holdfast_state_cb state;
	void *state_arg;
	holdfast_close_cb close_cb;
	void *close_arg;
	bool waiting;   /* holdfast_call_wait() has no answer yet. */
	bool wait_meta; /* It asked for meta. */
	bool closed;
	struct pack_w params; /* Arguments on their way into the session. */
	struct pack_w kept;   /* Value of the last answer. */
	struct holdfast_answer answer;
	struct answer_text text;
	struct detail why;
	struct sockaddr_un addr;
};

struct holdfast_args {
	uint32_t magic;
	uint32_t pairs;
	struct pack_w body;
};

/* An asynchronous call between session_start() and its callback. */
struct pending {
	LIST_ENTRY(pending) entry;
	struct holdfast *h;
	holdfast_cb cb;
	void *arg;
	bool meta;
};

#define SAME(name)                                             \
	_Static_assert((int)HOLDFAST_##name == (int)RC_##name, \
		       "codes are those of rc.tbl")
SAME(OK);
SAME(INVALID);
SAME(UNAUTHENTICATED);
SAME(DENIED);
SAME(NOT_FOUND);
SAME(CONFLICT);
SAME(CYCLE);
SAME(CANCELLED);
SAME(LIMITED);
SAME(INTERNAL);
SAME(UNSUPPORTED);
SAME(OVERLOADED);
SAME(NOT_OWNER);
SAME(NO_QUORUM);
SAME(SEALED);
SAME(DEADLINE);
SAME(NO_SPACE);
SAME(UNKNOWN_OUTCOME);
#undef SAME

const char *holdfast_version(void)
{
	return HOLDFAST_VERSION;
}

const char *holdfast_code_name(int code)
{
	if (code == HOLDFAST_UNREACHABLE)
		return "UNREACHABLE";
	if (code == HOLDFAST_NO_MEMORY)
		return "NO_MEMORY";
	return code >= 0 && code < 64 ? rc_name((enum rc)code) : "INTERNAL";
}

static int code_of(enum rc rc)
{
	if (rc == RC_NOMEM)
		return HOLDFAST_NO_MEMORY;
	return rc_is_wire(rc) ? (int)rc : HOLDFAST_INTERNAL;
}

/* ------------------------------------------------------------- arguments ---
 */

struct holdfast_args *holdfast_args_new(void)
{
	struct holdfast_args *a = calloc(1, sizeof(*a));

	if (a == NULL)
		return NULL;
	a->magic = ARGS_MAGIC;
	pack_w_init(&a->body, SESSION_REQUEST_BYTES_MAX);
	return a;
}

void holdfast_args_free(struct holdfast_args *a)
{
	if (a == NULL)
		return;
	CHECK_OBJ(a, ARGS_MAGIC);
	a->magic = 0;
	pack_w_release(&a->body);
	free(a);
}

void holdfast_args_reset(struct holdfast_args *a)
{
	CHECK_OBJ(a, ARGS_MAGIC);
	pack_w_reset(&a->body);
	a->pairs = 0;
}

static void args_key(struct holdfast_args *a, const char *key)
{
	CHECK_OBJ(a, ARGS_MAGIC);
	pack_cstr(&a->body, key);
	a->pairs++;
}

int holdfast_args_str(struct holdfast_args *a, const char *key,
		      const char *text)
{
	args_key(a, key);
	pack_cstr(&a->body, text);
	return code_of(a->body.rc);
}

int holdfast_args_bin(struct holdfast_args *a, const char *key, const void *p,
		      size_t n)
{
	args_key(a, key);
	pack_bin(&a->body, p, n);
	return code_of(a->body.rc);
}

int holdfast_args_int(struct holdfast_args *a, const char *key, int64_t v)
{
	args_key(a, key);
	pack_i64(&a->body, v);
	return code_of(a->body.rc);
}

int holdfast_args_bool(struct holdfast_args *a, const char *key, int v)
{
	args_key(a, key);
	pack_bool(&a->body, v != 0);
	return code_of(a->body.rc);
}

int holdfast_args_nil(struct holdfast_args *a, const char *key)
{
	args_key(a, key);
	pack_nil(&a->body);
	return code_of(a->body.rc);
}

/* A value that cannot be taken spoils the arguments: the call says so. */
static int args_spoil(struct holdfast_args *a, enum rc rc)
{
	if (a->body.rc == RC_OK)
		a->body.rc = rc;
	return code_of(a->body.rc);
}

int holdfast_args_json(struct holdfast_args *a, const char *key,
		       const char *json)
{
	enum rc rc;

	args_key(a, key);
	if (a->body.rc != RC_OK)
		return code_of(a->body.rc);
	rc = json_to_pack(json, strlen(json), &a->body, NULL);
	return rc == RC_OK ? HOLDFAST_OK : args_spoil(a, rc);
}

int holdfast_args_raw(struct holdfast_args *a, const char *key, const void *p,
		      size_t n)
{
	struct pack_bounds bounds = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
				      SESSION_REQUEST_BYTES_MAX };
	struct pack_scan scan = { 0 };
	size_t size;

	args_key(a, key);
	if (pack_check(&scan, p, n, &bounds, &size) != RC_OK || size != n)
		return args_spoil(a, RC_INVALID);
	pack_raw(&a->body, p, n);
	return code_of(a->body.rc);
}

/* --------------------------------------------------------------- answers ---
 */

static void text_copy(char *out, size_t cap, struct pack_bytes b)
{
	size_t n = b.n < cap - 1 ? b.n : cap - 1;

	if (n > 0)
		memcpy(out, b.p, n);
	out[n] = '\0';
}

static void answer_clear(struct holdfast *h)
{
	memset(&h->answer, 0, sizeof(h->answer));
	h->text.message[0] = '\0';
	h->text.field[0] = '\0';
	h->text.request_id[0] = '\0';
	h->text.owner[0] = '\0';
	h->answer.message = h->text.message;
	h->answer.field = h->text.field;
	h->answer.request_id = h->text.request_id;
	h->answer.owner = h->text.owner;
	h->answer.retry_after_ms = -1;
}

static void answer_meta(struct holdfast *h, struct pack_r *r)
{
	struct pack_bytes key;
	struct pack_bytes owner;
	uint64_t v;
	uint32_t n;

	if (pack_get_map(r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_get_bytes(r, &key) == RC_OK; n--) {
		if (pack_bytes_eq(key, "owner", 5) &&
		    pack_get_bytes(r, &owner) == RC_OK) {
			text_copy(h->text.owner, sizeof(h->text.owner), owner);
		} else if (pack_get_u64(r, &v) == RC_OK) {
			if (pack_bytes_eq(key, "shard", 5))
				h->answer.shard = (uint32_t)v;
			else if (pack_bytes_eq(key, "term", 4))
				h->answer.term = v;
			else if (pack_bytes_eq(key, "index", 5))
				h->answer.index = v;
		} else if (pack_skip(r, NULL) != RC_OK) {
			return;
		}
	}
}

/* [value, {owner, shard, term, index}]: what is not that stays as it is. */
static void answer_value(struct holdfast *h, struct pack_bytes result,
			 bool meta)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes value = result;
	uint32_t n;

	if (meta && pack_get_array(&r, &n) == RC_OK && n == 2 &&
	    pack_skip(&r, &value) == RC_OK)
		answer_meta(h, &r);
	h->answer.value = value.p;
	h->answer.value_bytes = value.n;
}

static void answer_fill(struct holdfast *h, const struct session_answer *a,
			bool meta)
{
	answer_clear(h);
	h->answer.code = code_of(a->rc);
	h->answer.outcome = (enum holdfast_outcome)a->outcome;
	h->answer.tries = a->tries;
	h->answer.local = a->ours;
	if (a->rc == RC_OK) {
		answer_value(h, a->result, meta);
		return;
	}
	text_copy(h->text.message, sizeof(h->text.message), a->error.message);
	text_copy(h->text.field, sizeof(h->text.field), a->error.field);
	text_copy(h->text.request_id, sizeof(h->text.request_id),
		  a->error.request_id);
	text_copy(h->text.owner, sizeof(h->text.owner), a->error.owner);
	h->answer.retry_after_ms = a->error.retry_after_ms;
	if (h->text.message[0] == '\0')
		(void)snprintf(h->text.message, sizeof(h->text.message), "%s",
			       rc_text(a->rc));
}

int holdfast_get_raw(const struct holdfast_answer *a, const char *key,
		     const void **p, size_t *n)
{
	struct pack_r r = pack_reader(a->value, a->value_bytes);
	size_t key_bytes = strlen(key);
	struct pack_bytes name;
	struct pack_bytes value;
	uint32_t pairs;

	if (a->value == NULL || pack_get_map(&r, &pairs) != RC_OK)
		return HOLDFAST_NOT_FOUND;
	for (; pairs > 0; pairs--) {
		if (pack_get_bytes(&r, &name) != RC_OK) {
			name.n = SIZE_MAX; /* A key that is no text. */
			if (pack_skip(&r, NULL) != RC_OK)
				break;
		}
		if (pack_skip(&r, &value) != RC_OK)
			break;
		if (pack_bytes_eq(name, key, key_bytes)) {
			*p = value.p;
			*n = value.n;
			return HOLDFAST_OK;
		}
	}
	return HOLDFAST_NOT_FOUND;
}

int holdfast_get_int(const struct holdfast_answer *a, const char *key,
		     int64_t *out)
{
	struct pack_r r;
	const void *p;
	size_t n;

	if (holdfast_get_raw(a, key, &p, &n) != HOLDFAST_OK)
		return HOLDFAST_NOT_FOUND;
	r = pack_reader(p, n);
	return code_of(pack_get_i64(&r, out));
}

int holdfast_get_bool(const struct holdfast_answer *a, const char *key,
		      int *out)
{
	struct pack_r r;
	const void *p;
	size_t n;
	bool v;

	if (holdfast_get_raw(a, key, &p, &n) != HOLDFAST_OK)
		return HOLDFAST_NOT_FOUND;
	r = pack_reader(p, n);
	if (pack_get_bool(&r, &v) != RC_OK)
		return HOLDFAST_INVALID;
	*out = v;
	return HOLDFAST_OK;
}

int holdfast_get_bytes(const struct holdfast_answer *a, const char *key,
		       const void **p, size_t *n)
{
	struct pack_bytes b;
	struct pack_r r;
	const void *at;
	size_t size;

	if (holdfast_get_raw(a, key, &at, &size) != HOLDFAST_OK)
		return HOLDFAST_NOT_FOUND;
	r = pack_reader(at, size);
	if (pack_get_bytes(&r, &b) != RC_OK)
		return HOLDFAST_INVALID;
	*p = b.p;
	*n = b.n;
	return HOLDFAST_OK;
}

char *holdfast_json(const struct holdfast_answer *a)
{
	struct pack_bytes value = { a->value, a->value_bytes };
	struct pack_w w;
	char *text = NULL;

	if (a->value == NULL)
		return NULL;
	pack_w_init(&w, 8 * (size_t)SESSION_FRAME_BYTES_MAX);
	if (pack_to_json(value, &w, 0) == RC_OK)
		pack_raw(&w, "", 1);
	if (w.rc == RC_OK && w.n > 0 && w.p[w.n - 1] == '\0')
		text = strdup((const char *)w.p);
	pack_w_release(&w);
	return text;
}

/* -------------------------------------------------------- the connection ---
 */

static void client_turn(struct holdfast *h);

/* The last thing of a handle. */
static void client_handle_closed(struct holdfast *h)
{
	holdfast_close_cb cb = h->close_cb;
	void *arg = h->close_arg;

	CHECK_OBJ(h, HOLDFAST_MAGIC);
	CHECK(h->open_handles > 0);
	if (--h->open_handles > 0 || !h->closing)
		return;
	session_end(h->session);
	CHECK(LIST_EMPTY(&h->pending));
	session_free(h->session);
	pack_w_release(&h->params);
	pack_w_release(&h->kept);
	h->closed = true;
	if (!h->own_loop) {
		h->magic = 0;
		free(h);
	}
	if (cb != NULL)
		cb(arg);
}

static void conn_closed(uv_handle_t *handle)
{
	struct conn *c = handle->data;
	struct holdfast *h;

	CHECK_OBJ(c, CONN_MAGIC);
	h = c->h;
	c->magic = 0;
	free(c);
	client_handle_closed(h);
}

static void handle_closed(uv_handle_t *handle)
{
	client_handle_closed(handle->data);
}

static void conn_close(struct holdfast *h)
{
	struct conn *c = h->conn;

	if (c == NULL)
		return;
	h->conn = NULL;
	uv_close((uv_handle_t *)&c->poll, conn_closed);
	(void)close(c->fd);
	c->fd = -1;
}

__attribute__((format(printf, 3, 4))) static void client_lost(
	struct holdfast *h, enum rc rc, const char *format, ...)
{
	bool was_open = h->was_open;
	va_list ap;

	memset(&h->why, 0, sizeof(h->why));
	va_start(ap, format);
	(void)vsnprintf(h->why.text, sizeof(h->why.text), format, ap);
	va_end(ap);
	conn_close(h);
	session_lost(h->session, 0, uv_hrtime(), h->why.text);
	h->was_open = false;
	h->lost_rc = rc;
	if (h->state != NULL && !h->closing && (was_open || !h->lost))
		h->state(h->state_arg, 0, h->why.text);
	h->lost = true;
}

static void conn_event(uv_poll_t *poll, int status, int events);

/* Watch for room to write only as long as there is none. */
static bool conn_watch(struct conn *c, bool wants_write)
{
	int events = UV_READABLE | (wants_write ? UV_WRITABLE : 0);

	if (c->wants_write == wants_write)
		return true;
	c->wants_write = wants_write;
	return uv_poll_start(&c->poll, events, conn_event) == 0;
}

static void client_flush(struct holdfast *h)
{
	struct pack_bytes out;
	ssize_t n;

	while (h->conn != NULL) {
		out = session_output(h->session, 0);
		if (out.n == 0) {
			(void)conn_watch(h->conn, false);
			return;
		}
		n = send(h->conn->fd, out.p, out.n,
			 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n > 0) {
			session_sent(h->session, 0, (size_t)n, uv_hrtime());
		} else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			if (!conn_watch(h->conn, true))
				client_lost(h, RC_IO,
					    "cannot watch the connection");
			return;
		} else if (errno != EINTR) {
			/* What the server still said is read first. */
			if (errno == EPIPE && !h->conn->wants_write &&
			    conn_watch(h->conn, true))
				return;
			client_lost(h, RC_IO, "the connection broke: %s",
				    strerror(errno));
		}
	}
}

/* True: there may be more to read. */
static bool conn_read(struct holdfast *h)
{
	struct detail why = { 0 };
	uint8_t *p;
	size_t cap;
	ssize_t n;
	enum rc rc;

	if (session_room(h->session, 0, &p, &cap) != RC_OK) {
		client_lost(h, RC_NOMEM, "out of memory for an answer");
		return false;
	}
	n = recv(h->conn->fd, p, cap, MSG_DONTWAIT);
	if (n < 0) {
		if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
			client_lost(h, RC_IO, "the connection broke: %s",
				    strerror(errno));
		return false;
	}
	if (n == 0) {
		client_lost(h, RC_IO, "the server closed the connection");
		return false;
	}
	rc = session_input(h->session, 0, (size_t)n, uv_hrtime(), &why);
	if (rc != RC_OK) {
		client_lost(h, rc, "%s", why.text);
		return false;
	}
	return (size_t)n == cap && h->conn != NULL;
}

static void client_greeted(struct holdfast *h)
{
	if (h->was_open || h->conn == NULL ||
	    !session_is_greeted(h->session, 0))
		return;
	h->was_open = true;
	h->lost = false;
	if (h->state != NULL && !h->closing)
		h->state(h->state_arg, 1, "");
}

static void conn_event(uv_poll_t *poll, int status, int events)
{
	struct conn *c = poll->data;
	struct holdfast *h;
	int reads = READS_PER_TURN;

	CHECK_OBJ(c, CONN_MAGIC);
	h = c->h;
	if (h->conn != c)
		return;
	if (status < 0) {
		client_lost(h, RC_IO, "the connection broke: %s",
			    uv_strerror(status));
	} else if ((events & UV_READABLE) != 0) {
		while (reads-- > 0 && conn_read(h))
			;
		client_greeted(h);
	}
	client_turn(h);
}

static bool conn_open(struct holdfast *h, int fd)
{
	struct conn *c = calloc(1, sizeof(*c));

	if (c == NULL)
		return false;
	c->magic = CONN_MAGIC;
	c->fd = fd;
	c->h = h;
	c->poll.data = c;
	if (uv_poll_init(h->loop, &c->poll, fd) != 0) {
		free(c);
		return false;
	}
	c->poll.data = c;
	h->open_handles++;
	h->conn = c;
	if (uv_poll_start(&c->poll, UV_READABLE, conn_event) != 0) {
		h->conn = NULL;
		uv_close((uv_handle_t *)&c->poll, conn_closed);
		return false;
	}
	return true;
}

static void client_connect(struct holdfast *h)
{
	int fd;

	session_opening(h->session, 0);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0) {
		client_lost(h, RC_IO, "cannot open a socket: %s",
			    strerror(errno));
		return;
	}
	if (connect(fd, (const struct sockaddr *)&h->addr, sizeof(h->addr)) !=
	    0) {
		client_lost(h, RC_IO, "cannot connect to %s: %s",
			    h->addr.sun_path, strerror(errno));
		(void)close(fd);
		return;
	}
	if (!conn_open(h, fd)) {
		(void)close(fd);
		client_lost(h, RC_NOMEM, "cannot watch the connection");
		return;
	}
	session_opened(h->session, 0, uv_hrtime());
}

/* ---------------------------------------------------------------- turns --- */

static void client_timer(uv_timer_t *timer)
{
	struct holdfast *h = timer->data;

	CHECK_OBJ(h, HOLDFAST_MAGIC);
	client_turn(h);
}

static void client_arm(struct holdfast *h)
{
	uint64_t due = session_due(h->session);
	uint64_t now = uv_hrtime();
	uint64_t ms;

	if (due > h->limit_ns)
		due = h->limit_ns;
	if (due == UINT64_MAX) {
		(void)uv_timer_stop(&h->timer);
		return;
	}
	/* Never 0: libuv would run the timer again in the same pass, for
	 * ever. */
	ms = due > now ? (due - now + NS_PER_MS - 1) / NS_PER_MS : 1;
	uv_update_time(h->loop);
	(void)uv_timer_start(&h->timer, client_timer, ms, 0);
}

/* What is due is ended, what waits is sent, then the timer is set. */
static void client_turn(struct holdfast *h)
{
	uint64_t now = uv_hrtime();

	if (h->closing)
		return;
	session_tick(h->session, now);
	if (!h->closing && session_wants_link(h->session, 0, now))
		client_connect(h);
	if (!h->closing)
		client_flush(h);
	if (!h->closing)
		client_arm(h);
}

static void client_prepare(uv_prepare_t *prepare)
{
	struct holdfast *h = prepare->data;

	CHECK_OBJ(h, HOLDFAST_MAGIC);
	(void)uv_prepare_stop(prepare);
	client_turn(h);
}

static void client_soon(struct holdfast *h)
{
	if (!h->closing)
		(void)uv_prepare_start(&h->prepare, client_prepare);
}

/* ----------------------------------------------------------- open, close ---
 */

int holdfast_default_socket(char *out, size_t out_bytes)
{
	const char *given = getenv("HOLDFAST_SOCKET");
	const char *state = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	int n;

	if (given != NULL && given[0] != '\0')
		n = snprintf(out, out_bytes, "%s", given);
	else if (state != NULL && state[0] == '/')
		n = snprintf(out, out_bytes, "%s/holdfast/holdfast.sock",
			     state);
	else if (home != NULL && home[0] == '/')
		n = snprintf(out, out_bytes,
			     "%s/.local/state/holdfast/holdfast.sock", home);
	else
		return HOLDFAST_INVALID;
	return n > 0 && (size_t)n < out_bytes ? HOLDFAST_OK : HOLDFAST_INVALID;
}

static int client_address(struct holdfast *h, const char *path,
			  struct detail *why)
{
	size_t n = path != NULL ? strlen(path) : 0;

	h->addr.sun_family = AF_UNIX;
	if (path == NULL) {
		if (holdfast_default_socket(h->addr.sun_path,
					    sizeof(h->addr.sun_path)) !=
		    HOLDFAST_OK)
			return (int)detail_set(
				why, RC_INVALID, "socket",
				"no path of a socket: set HOLDFAST_SOCKET");
		return HOLDFAST_OK;
	}
	if (n == 0 || n >= sizeof(h->addr.sun_path))
		return (int)detail_set(
			why, RC_INVALID, "socket",
			"the path of a socket has 1 to %zu bytes",
			sizeof(h->addr.sun_path) - 1);
	memcpy(h->addr.sun_path, path, n);
	return HOLDFAST_OK;
}

static int client_session(struct holdfast *h, const struct holdfast_options *o,
			  struct detail *why)
{
	struct session_options so = { .calls_max = o->calls_max,
				      .greet =
					      "libholdfast " HOLDFAST_VERSION };
	enum rc rc;

	if (getrandom(&so.seed, sizeof(so.seed), GRND_NONBLOCK) < 0)
		so.seed = uv_hrtime() ^ (uint64_t)getpid();
	rc = session_new(&so, &h->session);
	if (rc == RC_INVALID)
		(void)detail_set(why, rc, "calls_max",
				 "calls_max is at most %u", SESSION_CALLS_MAX);
	return code_of(rc);
}

/* Without a loop yet: nothing that would have to be closed. */
static int client_new(const struct holdfast_options *o, struct holdfast **out,
		      struct detail *why)
{
	struct holdfast *h = calloc(1, sizeof(*h));
	int code;

	if (h == NULL)
		return HOLDFAST_NO_MEMORY;
	h->magic = HOLDFAST_MAGIC;
	h->limit_ns = UINT64_MAX;
	h->state = o->state;
	h->state_arg = o->state_arg;
	pack_w_init(&h->params, SESSION_REQUEST_BYTES_MAX);
	pack_w_init(&h->kept, SESSION_FRAME_BYTES_MAX);
	code = client_address(h, o->socket, why);
	if (code == HOLDFAST_OK)
		code = client_session(h, o, why);
	if (code != HOLDFAST_OK) {
		free(h);
		return code;
	}
	*out = h;
	return HOLDFAST_OK;
}

static void client_start(struct holdfast *h, uv_loop_t *loop)
{
	h->loop = loop;
	h->prepare.data = h;
	h->timer.data = h;
	/* These two cannot fail. */
	(void)uv_prepare_init(loop, &h->prepare);
	(void)uv_timer_init(loop, &h->timer);
	h->prepare.data = h;
	h->timer.data = h;
	h->open_handles = 2;
	client_soon(h);
}

/* What the caller's version of the struct has; the rest stays default. */
static bool options_read(const struct holdfast_options *o,
			 struct holdfast_options *out)
{
	static const struct holdfast_options none = HOLDFAST_OPTIONS;

	*out = none;
	if (o == NULL)
		return true;
	if (o->size < sizeof(o->size) || o->size > 4096)
		return false;
	memcpy(out, o, o->size < sizeof(*out) ? o->size : sizeof(*out));
	return true;
}

int holdfast_open(struct uv_loop_s *loop, const struct holdfast_options *o,
		  struct holdfast **out)
{
	struct holdfast_options all;
	struct holdfast *h;
	int code;

	if (loop == NULL || !options_read(o, &all))
		return HOLDFAST_INVALID;
	code = client_new(&all, &h, NULL);
	if (code != HOLDFAST_OK)
		return code;
	client_start(h, loop);
	*out = h;
	return HOLDFAST_OK;
}

static int client_await_greeting(struct holdfast *h, uint32_t connect_ms)
{
	h->limit_ns = uv_hrtime() + (uint64_t)connect_ms * NS_PER_MS;
	while (!h->was_open && !h->lost && uv_hrtime() < h->limit_ns)
		(void)uv_run(h->loop, UV_RUN_ONCE);
	h->limit_ns = UINT64_MAX;
	if (h->was_open)
		return HOLDFAST_OK;
	if (!h->lost)
		(void)detail_set(&h->why, RC_DEADLINE, NULL,
				 "%s: no answer within %u ms", h->addr.sun_path,
				 connect_ms);
	return h->lost && h->lost_rc == RC_VERSION ? HOLDFAST_UNSUPPORTED
						   : HOLDFAST_UNREACHABLE;
}

int holdfast_connect(const struct holdfast_options *o, struct holdfast **out,
		     char *why, size_t why_bytes)
{
	struct holdfast_options all;
	struct detail detail = { 0 };
	struct holdfast *h = NULL;
	int code = HOLDFAST_INVALID;

	if (options_read(o, &all))
		code = client_new(&all, &h, &detail);
	if (code == HOLDFAST_OK && uv_loop_init(&h->private_loop) != 0) {
		session_free(h->session);
		free(h);
		h = NULL;
		code = HOLDFAST_NO_MEMORY;
	}
	if (code == HOLDFAST_OK) {
		h->own_loop = true;
		h->state = NULL;
		client_start(h, &h->private_loop);
		code = client_await_greeting(h, all.connect_ms != 0
							? all.connect_ms
							: CONNECT_DEFAULT_MS);
		detail = h->why;
		if (code != HOLDFAST_OK)
			holdfast_close(h, NULL, NULL);
	}
	if (code == HOLDFAST_OK) {
		h->why.text[0] = '\0';
		*out = h;
	} else if (why != NULL && why_bytes > 0) {
		(void)snprintf(why, why_bytes, "%s",
			       detail.text[0] != '\0'
				       ? detail.text
				       : holdfast_code_name(code));
	}
	return code;
}

void holdfast_close(struct holdfast *h, holdfast_close_cb cb, void *arg)
{
	if (h == NULL)
		return;
	CHECK_OBJ(h, HOLDFAST_MAGIC);
	PRE(!h->closing);
	h->closing = true;
	h->close_cb = cb;
	h->close_arg = arg;
	conn_close(h);
	uv_close((uv_handle_t *)&h->prepare, handle_closed);
	uv_close((uv_handle_t *)&h->timer, handle_closed);
	if (!h->own_loop)
		return;
	while (!h->closed)
		(void)uv_run(h->loop, UV_RUN_ONCE);
	CHECK(uv_loop_close(&h->private_loop) == 0);
	h->magic = 0;
	free(h);
}

const char *holdfast_why(const struct holdfast *h)
{
	CHECK_OBJ(h, HOLDFAST_MAGIC);
	return h->why.text;
}

/* ----------------------------------------------------------------- calls ---
 */

static struct pack_bytes bytes_of(const char *text)
{
	struct pack_bytes b = { NULL, 0 };

	if (text != NULL) {
		b.p = (const uint8_t *)text;
		b.n = strlen(text);
	}
	return b;
}

static enum rc request_args(struct holdfast *h,
			    const struct holdfast_request *r,
			    struct pack_bytes *out)
{
	struct pack_w *w = &h->params;

	out->p = r->raw;
	out->n = r->raw_bytes;
	if (r->args == NULL)
		return RC_OK;
	CHECK_OBJ(r->args, ARGS_MAGIC);
	if (r->raw_bytes > 0 || r->rpc != NULL)
		return detail_set(&h->why, RC_INVALID, "args",
				  "args go with a call only, and without raw");
	if (r->args->body.rc != RC_OK)
		return detail_set(&h->why, r->args->body.rc, "args",
				  "one of the arguments could not be taken");
	pack_w_reset(w);
	pack_map(w, r->args->pairs);
	pack_raw(w, r->args->body.p, r->args->body.n);
	out->p = w->p;
	out->n = w->n;
	return w->rc;
}

static enum rc client_call(struct holdfast *h, const struct holdfast_request *r,
			   session_cb cb, void *arg, uint64_t *ticket)
{
	struct holdfast_request all = HOLDFAST_RPC(NULL);
	struct session_request sr = { 0 };
	enum rc rc;

	memset(&h->why, 0, sizeof(h->why));
	if (r->size < REQUEST_BYTES_MIN || r->size > 4096)
		return detail_set(&h->why, RC_INVALID, "size",
				  "the request was not initialized");
	memcpy(&all, r, r->size < sizeof(all) ? r->size : sizeof(all));
	sr.rpc = all.rpc;
	sr.address = bytes_of(all.address);
	sr.method = bytes_of(all.method);
	sr.deadline_ms = all.deadline_ms;
	sr.idem.p = all.idem;
	sr.idem.n = all.idem_bytes;
	sr.idem_ms = all.idem_ms;
	sr.trace = bytes_of(all.trace);
	if ((unsigned)all.durability > HOLDFAST_DURABILITY_COMMITTED)
		return detail_set(&h->why, RC_INVALID, "durability",
				  "durability is none of the four");
	sr.durability = (enum session_durability)all.durability;
	sr.meta = (all.flags & HOLDFAST_META) != 0;
	sr.once = (all.flags & HOLDFAST_ONCE) != 0;
	sr.redirect = (all.flags & HOLDFAST_REDIRECT) != 0;
	rc = request_args(h, &all, &sr.args);
	if (rc != RC_OK)
		return rc;
	return session_start(h->session, &sr, uv_hrtime(), cb, arg, ticket,
			     &h->why);
}

static void pending_answered(void *arg, const struct session_answer *a)
{
	struct pending *p = arg;
	struct holdfast *h = p->h;
	holdfast_cb cb = p->cb;
	void *cb_arg = p->arg;

	answer_fill(h, a, p->meta);
	LIST_REMOVE(p, entry);
	free(p);
	cb(cb_arg, &h->answer);
}

int holdfast_call(struct holdfast *h, const struct holdfast_request *r,
		  holdfast_cb cb, void *arg, uint64_t *ticket)
{
	struct pending *p;
	enum rc rc;

	CHECK_OBJ(h, HOLDFAST_MAGIC);
	PRE(!h->own_loop && cb != NULL);
	if (h->closing)
		return HOLDFAST_CANCELLED;
	p = malloc(sizeof(*p));
	if (p == NULL)
		return HOLDFAST_NO_MEMORY;
	p->h = h;
	p->cb = cb;
	p->arg = arg;
	p->meta = (r->flags & HOLDFAST_META) != 0;
	LIST_INSERT_HEAD(&h->pending, p, entry);
	rc = client_call(h, r, pending_answered, p, ticket);
	if (rc != RC_OK) {
		LIST_REMOVE(p, entry);
		free(p);
		return code_of(rc);
	}
	client_soon(h);
	return HOLDFAST_OK;
}

void holdfast_cancel(struct holdfast *h, uint64_t ticket)
{
	CHECK_OBJ(h, HOLDFAST_MAGIC);
	if (h->closing)
		return;
	session_cancel(h->session, ticket, uv_hrtime());
	client_soon(h);
}

/* The value is kept: the bytes it stands in belong to the connection. */
static void wait_answered(void *arg, const struct session_answer *a)
{
	struct holdfast *h = arg;
	struct session_answer copy = *a;

	pack_w_reset(&h->kept);
	pack_raw(&h->kept, a->result.p, a->result.n);
	if (a->rc == RC_OK && h->kept.rc != RC_OK) {
		/* It was done; what it said is lost. */
		answer_clear(h);
		h->answer.code = HOLDFAST_NO_MEMORY;
		h->answer.outcome = HOLDFAST_DONE;
		h->waiting = false;
		return;
	}
	copy.result.p = h->kept.p;
	answer_fill(h, &copy, h->wait_meta);
	h->waiting = false;
}

static void answer_local(struct holdfast *h, enum rc rc)
{
	answer_clear(h);
	h->answer.code = code_of(rc);
	h->answer.outcome = HOLDFAST_REFUSED;
	h->answer.local = 1;
	(void)snprintf(h->text.message, sizeof(h->text.message), "%s",
		       h->why.text[0] != '\0' ? h->why.text : rc_text(rc));
	(void)snprintf(h->text.field, sizeof(h->text.field), "%s",
		       h->why.field);
}

int holdfast_call_wait(struct holdfast *h, const struct holdfast_request *r,
		       const struct holdfast_answer **out)
{
	enum rc rc;

	CHECK_OBJ(h, HOLDFAST_MAGIC);
	PRE(h->own_loop && !h->waiting);
	h->wait_meta = (r->flags & HOLDFAST_META) != 0;
	rc = client_call(h, r, wait_answered, h, NULL);
	if (rc != RC_OK) {
		answer_local(h, rc);
	} else {
		h->waiting = true;
		client_turn(h);
		while (h->waiting)
			(void)uv_run(h->loop, UV_RUN_ONCE);
	}
	if (out != NULL)
		*out = &h->answer;
	return h->answer.code;
}
