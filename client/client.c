/*
 * The library's transport: a session (client/session.h) on a libuv loop.
 *
 * Sockets are watched with uv_poll and read and written here: so it is known
 * how many bytes of a call have left, a broken connection raises no SIGPIPE in
 * somebody's program, and bytes go straight into the session's buffer. A loop
 * turn that made calls ends in one write, from the prepare handle.
 * Each link of the session has at most one connection:
 *
 *   RESOLVING --> CONNECTING --> SHAKING --> OPEN --first answer--> greeted
 *   (a name)      (TCP)          (TLS)        |                        |
 *       ^                                     |                        |
 *       +------- after a pause, from any -----+------------------------+
 *
 * Over TLS one piece of plain bytes at a time is encrypted; it counts as taken
 * when the first byte of it has gone out.
 */
#include "client/holdfast.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "client/check.h"
#include "client/profile.h"
#include "client/proto/json.h"
#include "client/session.h"
#include "client/tls.h"

#define HOLDFAST_MAGIC     0x686f6c64u
#define CONN_MAGIC         0x686c6e6bu
#define ARGS_MAGIC         0x68617267u
#define NS_PER_MS          1000000u
#define READS_PER_TURN     16
#define CONNECT_DEFAULT_MS 5000u
#define CIPHER_BYTES       65536u
#define PIECE_BYTES        65536u /* Plain bytes that are encrypted at once. */
#define USER_TIMEOUT_MS    5000   /* TCP: sent and not acknowledged. */
#define PLACE_BYTES        PROFILE_TEXT_BYTES_MAX
/* The struct of version 0.1. */
#define REQUEST_BYTES_MIN \
	(offsetof(struct holdfast_request, flags) + sizeof(unsigned))

#ifndef HOLDFAST_VERSION
#define HOLDFAST_VERSION "0.1.0"
#endif

enum conn_state {
	CONN_RESOLVING,
	CONN_CONNECTING,
	CONN_SHAKING,
	CONN_OPEN,
};

/* One connection. It outlives its end until libuv has let go of it. */
struct conn {
	uint32_t magic;
	enum conn_state state;
	uint32_t link;
	int fd; /* -1: none. */
	bool wants_write;
	bool ended;  /* It is nobody's connection any more. */
	bool polled; /* `poll` has to be closed. */
	bool asked;  /* `resolve` is under way. */
	struct holdfast *h;
	struct tls *tls; /* NULL: none. */
	size_t given;    /* Plain bytes in it of which none has left. */
	uv_poll_t poll;
	uv_getaddrinfo_t resolve;
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
	bool lost;       /* Told so since a connection last stood. */
	bool was_open;   /* What the state callback was told last. */
	uint32_t failed; /* Links that could not be made since then. */
	enum rc lost_rc;
	uint32_t open_handles;
	uint64_t limit_ns; /* holdfast_connect() waits until then. */
	uv_loop_t *loop;
	uv_loop_t private_loop;
	uv_prepare_t prepare;
	uv_timer_t timer;
	struct conn *conn[SESSION_LINKS_MAX];
	uint32_t attempts[SESSION_LINKS_MAX];
	uint32_t places_n; /* Those that are given; others are learned. */
	char places[SESSION_LINKS_MAX][PLACE_BYTES];
	char names[SESSION_LINKS_MAX][PROFILE_NAME_BYTES_MAX + 1];
	struct tls_context *tls; /* NULL: without. */
	char *tls_files;         /* Paths of ca, cert, key. */
	const char *ca;
	const char *cert;
	const char *key;
	struct timespec tls_mtime;
	uint8_t cipher[CIPHER_BYTES];
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

/* ------------------------------------------------------- the connections ---
 */

static void client_turn(struct holdfast *h);

static void client_release(struct holdfast *h)
{
	session_free(h->session);
	tls_context_free(h->tls);
	free(h->tls_files);
	pack_w_release(&h->params);
	pack_w_release(&h->kept);
}

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
	client_release(h);
	h->closed = true;
	if (!h->own_loop) {
		h->magic = 0;
		free(h);
	}
	if (cb != NULL)
		cb(arg);
}

static void conn_maybe_free(struct conn *c)
{
	struct holdfast *h = c->h;

	if (!c->ended || c->polled || c->asked)
		return;
	tls_free(c->tls);
	c->magic = 0;
	free(c);
	client_handle_closed(h);
}

static void conn_closed(uv_handle_t *handle)
{
	struct conn *c = handle->data;

	CHECK_OBJ(c, CONN_MAGIC);
	c->polled = false;
	conn_maybe_free(c);
}

static void handle_closed(uv_handle_t *handle)
{
	client_handle_closed(handle->data);
}

static void conn_close(struct conn *c)
{
	c->h->conn[c->link] = NULL;
	c->ended = true;
	if (c->polled)
		uv_close((uv_handle_t *)&c->poll, conn_closed);
	if (c->asked)
		(void)uv_cancel((uv_req_t *)&c->resolve);
	if (c->fd >= 0)
		(void)close(c->fd);
	c->fd = -1;
	conn_maybe_free(c);
}

static void conns_close(struct holdfast *h)
{
	uint32_t i;

	for (i = 0; i < SESSION_LINKS_MAX; i++)
		if (h->conn[i] != NULL)
			conn_close(h->conn[i]);
}

/* Where a link leads, for people. */
static const char *place_of(const struct holdfast *h, uint32_t link)
{
	return link < h->places_n ? h->places[link]
				  : session_link_rpc(h->session, link);
}

static bool any_greeted(const struct holdfast *h)
{
	uint32_t i;

	for (i = 0; i < session_links(h->session); i++)
		if (session_is_greeted(h->session, i))
			return true;
	return false;
}

/* Nobody is left, or nobody could be reached. */
static void client_down(struct holdfast *h, uint32_t link, enum rc rc)
{
	uint32_t all = (1u << session_links(h->session)) - 1;
	bool was_open = h->was_open;

	h->failed |= 1u << link;
	h->was_open = was_open && any_greeted(h);
	if (rc != RC_IO || h->lost_rc == RC_OK)
		h->lost_rc = rc;
	if (h->was_open || (!was_open && (h->failed & all) != all))
		return;
	if (h->state != NULL && !h->closing && (was_open || !h->lost))
		h->state(h->state_arg, 0, h->why.text);
	h->lost = true;
}

__attribute__((format(printf, 4, 5))) static void client_lost(
	struct holdfast *h, uint32_t link, enum rc rc, const char *format, ...)
{
	va_list ap;

	memset(&h->why, 0, sizeof(h->why));
	va_start(ap, format);
	(void)vsnprintf(h->why.text, sizeof(h->why.text), format, ap);
	va_end(ap);
	if (h->conn[link] != NULL)
		conn_close(h->conn[link]);
	session_lost(h->session, link, uv_hrtime(), h->why.text);
	client_down(h, link, rc);
}

static void conn_broke(struct conn *c, int error)
{
	client_lost(c->h, c->link, RC_IO, "the connection to %.160s broke: %s",
		    place_of(c->h, c->link), strerror(error));
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

/* What is to be sent next; `n` 0: nothing now. False: the connection ended. */
static bool conn_output(struct conn *c, const uint8_t **p, size_t *n)
{
	struct pack_bytes out;

	*n = 0;
	if (c->tls != NULL) {
		tls_output(c->tls, p, n);
		if (*n > 0 || c->state != CONN_OPEN)
			return true;
	}
	out = session_output(c->h->session, c->link);
	if (c->tls == NULL || out.n == 0) {
		*p = out.p;
		*n = out.n;
		return true;
	}
	c->given = out.n < PIECE_BYTES ? out.n : PIECE_BYTES;
	if (tls_write(c->tls, out.p, c->given) != RC_OK) {
		client_lost(c->h, c->link, RC_NOMEM,
			    "out of memory for a call");
		return false;
	}
	tls_output(c->tls, p, n);
	return true;
}

static void conn_sent(struct conn *c, size_t n)
{
	size_t given = c->given;

	if (c->tls == NULL) {
		session_sent(c->h->session, c->link, n, uv_hrtime());
		return;
	}
	tls_sent(c->tls, n);
	c->given = 0;
	if (given > 0)
		session_sent(c->h->session, c->link, given, uv_hrtime());
}

static void conn_flush(struct conn *c)
{
	const uint8_t *p;
	ssize_t k;
	size_t n;

	if (c->state < CONN_SHAKING)
		return;
	while (conn_output(c, &p, &n)) {
		if (n == 0) {
			(void)conn_watch(c, false);
			return;
		}
		k = send(c->fd, p, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k > 0) {
			conn_sent(c, (size_t)k);
		} else if (k < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
			if (!conn_watch(c, true))
				conn_broke(c, ENOMEM);
			return;
		} else if (errno != EINTR) {
			/* What the server still said is read first. */
			if (errno == EPIPE && !c->wants_write &&
			    conn_watch(c, true))
				return;
			conn_broke(c, errno);
			return;
		}
	}
}

static void client_greeted(struct holdfast *h)
{
	if (h->was_open || !any_greeted(h))
		return;
	h->was_open = true;
	h->lost = false;
	h->lost_rc = RC_OK;
	h->failed = 0;
	if (h->state != NULL && !h->closing)
		h->state(h->state_arg, 1, "");
}

/* False: the connection ended. */
static bool conn_took(struct conn *c, size_t n)
{
	struct holdfast *h = c->h;
	struct detail why = { 0 };
	uint32_t link = c->link;
	enum rc rc;

	rc = session_input(h->session, link, n, uv_hrtime(), &why);
	if (h->conn[link] != c)
		return false; /* A callback has closed the handle. */
	if (rc == RC_OK)
		return true;
	client_lost(h, link, rc, "%.160s: %s", place_of(h, link), why.text);
	return false;
}

static bool conn_room(struct conn *c, uint8_t **p, size_t *cap)
{
	if (session_room(c->h->session, c->link, p, cap) == RC_OK)
		return true;
	client_lost(c->h, c->link, RC_NOMEM, "out of memory for an answer");
	return false;
}

/* recv() whose errors have been dealt with. 0: nothing came. */
static size_t conn_recv(struct conn *c, uint8_t *p, size_t cap)
{
	ssize_t n = recv(c->fd, p, cap, MSG_DONTWAIT);

	if (n > 0)
		return (size_t)n;
	if (n == 0)
		client_lost(c->h, c->link, RC_IO,
			    "%.160s closed the connection",
			    place_of(c->h, c->link));
	else if (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
		conn_broke(c, errno);
	return 0;
}

static void conn_opened(struct conn *c)
{
	c->state = CONN_OPEN;
	session_opened(c->h->session, c->link, uv_hrtime());
}

/* The handshake says that the other side is of our certificate authority; it
 * must be a node, of our cluster: spiffe://CLUSTER/node/ID. */
static bool tls_is_node(const struct holdfast *h, const struct tls *t)
{
	const char *ours = tls_context_uri(h->tls);
	const char *theirs = tls_uri(t);
	const char *end = strchr(ours + strlen("spiffe://"), '/');
	size_t n;

	/* That both begin with the scheme, the handshake has seen to. */
	if (end == NULL)
		return false;
	n = (size_t)(end - ours);
	return strncmp(ours, theirs, n) == 0 &&
	       strncmp(theirs + n, "/node/", 6) == 0;
}

/* What TLS has decrypted. False: the connection ended. */
static bool conn_plain(struct conn *c)
{
	uint8_t *p;
	size_t cap;
	size_t n;

	while (c->state == CONN_OPEN) {
		if (!conn_room(c, &p, &cap))
			return false;
		n = tls_read(c->tls, p, cap);
		if (n == 0)
			break;
		if (!conn_took(c, n))
			return false;
	}
	if (!tls_ended(c->tls))
		return true;
	client_lost(c->h, c->link, RC_IO, "%.160s closed the connection",
		    place_of(c->h, c->link));
	return false;
}

static bool conn_ciphers(struct conn *c, const uint8_t *p, size_t n)
{
	struct holdfast *h = c->h;
	struct detail why = { 0 };
	const uint8_t *alert;
	enum rc rc = tls_input(c->tls, p, n, &why);

	if (rc != RC_OK) {
		/* It may tell why; whether that arrives does not matter. */
		tls_output(c->tls, &alert, &n);
		(void)!send(c->fd, alert, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		client_lost(h, c->link, rc, "%.100s: %s", place_of(h, c->link),
			    why.text);
		return false;
	}
	if (c->state == CONN_SHAKING && tls_ready(c->tls)) {
		if (!tls_is_node(h, c->tls)) {
			client_lost(h, c->link, RC_DENIED,
				    "%.100s is no node of our cluster but "
				    "%.120s",
				    place_of(h, c->link), tls_uri(c->tls));
			return false;
		}
		conn_opened(c);
	}
	return conn_plain(c);
}

/* True: there may be more to read. */
static bool conn_read(struct conn *c)
{
	uint8_t *p;
	size_t cap;
	size_t n;

	if (c->tls != NULL) {
		n = conn_recv(c, c->h->cipher, CIPHER_BYTES);
		return n > 0 && conn_ciphers(c, c->h->cipher, n) &&
		       n == CIPHER_BYTES;
	}
	if (!conn_room(c, &p, &cap))
		return false;
	n = conn_recv(c, p, cap);
	return n > 0 && conn_took(c, n) && n == cap;
}

/* What the kernel has against it; 0: nothing. */
static int conn_error(const struct conn *c)
{
	socklen_t n = sizeof(int);
	int error = 0;

	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &n) != 0)
		error = errno;
	return error;
}

static void conn_connected(struct conn *c)
{
	int error = conn_error(c);

	if (error != 0) {
		client_lost(c->h, c->link, RC_IO,
			    "cannot connect to %.160s: %s",
			    place_of(c->h, c->link), strerror(error));
		return;
	}
	c->state = CONN_SHAKING;
	c->wants_write = true; /* As it is watched until now. */
	/* The handshake begins by itself: the first output is there. */
}

static void conn_event(uv_poll_t *poll, int status, int events)
{
	struct conn *c = poll->data;
	struct holdfast *h;
	uint32_t link;
	int reads = READS_PER_TURN;
	int error;

	CHECK_OBJ(c, CONN_MAGIC);
	h = c->h;
	link = c->link;
	if (h->conn[link] != c)
		return;
	if (c->state == CONN_CONNECTING) {
		conn_connected(c);
	} else if (status < 0) {
		/* libuv says EBADF whatever it is. */
		error = conn_error(c);
		conn_broke(c, error != 0 ? error : ECONNABORTED);
	} else if ((events & UV_READABLE) != 0) {
		while (reads-- > 0 && conn_read(c))
			;
		client_greeted(h);
	}
	client_turn(h);
}

static bool conn_poll(struct conn *c, int events)
{
	if (uv_poll_init(c->h->loop, &c->poll, c->fd) != 0)
		return false;
	c->poll.data = c;
	c->polled = true;
	return uv_poll_start(&c->poll, events, conn_event) == 0;
}

static void conn_socket(struct conn *c, const struct sockaddr *addr,
			socklen_t addr_bytes)
{
	struct holdfast *h = c->h;
	bool tcp = addr->sa_family != AF_UNIX;
	int timeout_ms = USER_TIMEOUT_MS;
	int one = 1;
	int e;

	c->fd = socket(addr->sa_family,
		       SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0) {
		client_lost(h, c->link, RC_IO, "cannot open a socket: %s",
			    strerror(errno));
		return;
	}
	if (tcp) {
		(void)setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one,
				 sizeof(one));
		(void)setsockopt(c->fd, IPPROTO_TCP, TCP_USER_TIMEOUT,
				 &timeout_ms, sizeof(timeout_ms));
		(void)setsockopt(c->fd, SOL_SOCKET, SO_KEEPALIVE, &one,
				 sizeof(one));
	}
	e = connect(c->fd, addr, addr_bytes);
	if (e != 0 && !(tcp && errno == EINPROGRESS)) {
		client_lost(h, c->link, RC_IO, "cannot connect to %.160s: %s",
			    place_of(h, c->link), strerror(errno));
		return;
	}
	if ((tcp && tls_new(h->tls, false, &c->tls) != RC_OK) ||
	    !conn_poll(c, UV_READABLE | (tcp ? UV_WRITABLE : 0))) {
		client_lost(h, c->link, RC_NOMEM,
			    "cannot watch the connection");
		return;
	}
	if (tcp) {
		tls_keep(c->tls);
		c->state = CONN_CONNECTING;
	} else {
		conn_opened(c);
	}
}

/* One address after the other, from try to try. */
static void conn_resolved(uv_getaddrinfo_t *resolve, int status,
			  struct addrinfo *list)
{
	struct conn *c = resolve->data;
	struct addrinfo *a;
	struct holdfast *h;
	uint32_t n = 0;

	CHECK_OBJ(c, CONN_MAGIC);
	h = c->h;
	c->asked = false;
	if (c->ended) {
		uv_freeaddrinfo(list);
		conn_maybe_free(c);
		return;
	}
	for (a = list; a != NULL; a = a->ai_next)
		n++;
	if (status != 0 || list == NULL) {
		client_lost(h, c->link, RC_IO, "cannot find %.160s: %s",
			    place_of(h, c->link), uv_strerror(status));
	} else {
		n = h->attempts[c->link]++ % n;
		for (a = list; n > 0 && a->ai_next != NULL; n--)
			a = a->ai_next;
		conn_socket(c, a->ai_addr, a->ai_addrlen);
	}
	uv_freeaddrinfo(list);
	client_turn(h);
}

static void conn_resolve(struct conn *c, const char *host, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_ADDRCONFIG };
	struct sockaddr_in6 in6 = { 0 };
	struct sockaddr_in in4 = { 0 };
	int number = atoi(port);

	if (uv_ip4_addr(host, number, &in4) == 0) {
		conn_socket(c, (struct sockaddr *)&in4, sizeof(in4));
		return;
	}
	if (uv_ip6_addr(host, number, &in6) == 0) {
		conn_socket(c, (struct sockaddr *)&in6, sizeof(in6));
		return;
	}
	c->asked = true;
	c->resolve.data = c;
	if (uv_getaddrinfo(c->h->loop, &c->resolve, conn_resolved, host, port,
			   &hints) != 0) {
		c->asked = false;
		client_lost(c->h, c->link, RC_NOMEM, "cannot look up %.160s",
			    host);
	}
}

static void conn_begin(struct conn *c, const char *place)
{
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	char host[256];
	char port[6];

	if (strchr(place, '/') != NULL) {
		(void)snprintf(un.sun_path, sizeof(un.sun_path), "%s", place);
		conn_socket(c, (struct sockaddr *)&un, sizeof(un));
	} else if (profile_host_port(place, host, sizeof(host), port) !=
		   RC_OK) {
		client_lost(c->h, c->link, RC_INVALID,
			    "`%.160s' is no host:port", place);
	} else if (c->h->tls == NULL) {
		client_lost(c->h, c->link, RC_INVALID,
			    "%.160s needs a certificate: none is given", place);
	} else {
		conn_resolve(c, host, port);
	}
}

/* A certificate that was renewed counts for connections from here on; one that
 * cannot be read leaves us with that we have. */
static void client_renew(struct holdfast *h)
{
	struct tls_context *fresh;
	struct stat st;

	if (h->tls == NULL || stat(h->cert, &st) != 0 ||
	    (st.st_mtim.tv_sec == h->tls_mtime.tv_sec &&
	     st.st_mtim.tv_nsec == h->tls_mtime.tv_nsec))
		return;
	if (tls_context_new(h->ca, h->cert, h->key, &fresh, NULL) != RC_OK)
		return;
	h->tls_mtime = st.st_mtim;
	tls_context_free(h->tls);
	h->tls = fresh;
}

static void client_connect(struct holdfast *h, uint32_t link)
{
	struct conn *c = calloc(1, sizeof(*c));

	session_opening(h->session, link);
	if (c == NULL) {
		client_lost(h, link, RC_NOMEM, "out of memory to connect");
		return;
	}
	c->magic = CONN_MAGIC;
	c->state = CONN_RESOLVING;
	c->link = link;
	c->fd = -1;
	c->h = h;
	h->conn[link] = c;
	h->open_handles++;
	client_renew(h);
	conn_begin(c, place_of(h, link));
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

static void link_turn(struct holdfast *h, uint32_t link, uint64_t now)
{
	if (session_is_stale(h->session, link))
		client_lost(h, link, RC_TIMEOUT, "no answer of %.160s",
			    place_of(h, link));
	if (!h->closing && session_wants_link(h->session, link, now))
		client_connect(h, link);
	if (!h->closing && h->conn[link] != NULL)
		conn_flush(h->conn[link]);
}

/* What is due is ended, what waits is sent, then the timer is set. */
static void client_turn(struct holdfast *h)
{
	uint64_t now = uv_hrtime();
	uint32_t i;

	if (h->closing)
		return;
	session_tick(h->session, now);
	for (i = 0; !h->closing && i < session_links(h->session); i++)
		link_turn(h, i, now);
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

static int place_add(struct holdfast *h, const char *place, const char *name,
		     struct detail *why)
{
	size_t path_max = sizeof(((struct sockaddr_un *)0)->sun_path);
	size_t n = strlen(place);
	char host[256];
	char port[6];

	if (h->places_n == SESSION_LINKS_MAX)
		return (int)detail_set(why, RC_INVALID, "endpoints",
				       "there are at most %u endpoints",
				       SESSION_LINKS_MAX);
	if (strchr(place, '/') == NULL &&
	    profile_host_port(place, host, sizeof(host), port) != RC_OK)
		return (int)detail_set(why, RC_INVALID, "endpoints",
				       "`%.100s' is neither host:port nor the "
				       "path of a socket",
				       place);
	if (n >= PLACE_BYTES || (strchr(place, '/') != NULL && n >= path_max))
		return (int)detail_set(
			why, RC_INVALID, "socket",
			"the path of a socket has 1 to %zu bytes",
			path_max - 1);
	memcpy(h->places[h->places_n], place, n + 1);
	memcpy(h->names[h->places_n], name, strlen(name) + 1);
	h->places_n++;
	return HOLDFAST_OK;
}

/* A path without a slash is one all the same. */
static int socket_add(struct holdfast *h, const char *path, struct detail *why)
{
	char text[PLACE_BYTES];

	if (path[0] == '\0' || strlen(path) + 3 > sizeof(text))
		return (int)detail_set(
			why, RC_INVALID, "socket",
			"the path of a socket has 1 to %zu bytes",
			sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
	(void)snprintf(text, sizeof(text), "%s%s",
		       strchr(path, '/') != NULL ? "" : "./", path);
	return place_add(h, text, "", why);
}

static int tls_load(struct holdfast *h, const char *ca, const char *cert,
		    const char *key, struct detail *why)
{
	size_t n[3] = { strlen(ca) + 1, strlen(cert) + 1, strlen(key) + 1 };
	struct stat st;
	char *p;

	h->tls_files = malloc(n[0] + n[1] + n[2]);
	if (h->tls_files == NULL)
		return HOLDFAST_NO_MEMORY;
	p = h->tls_files;
	h->ca = memcpy(p, ca, n[0]);
	h->cert = memcpy(p + n[0], cert, n[1]);
	h->key = memcpy(p + n[0] + n[1], key, n[2]);
	if (stat(h->cert, &st) == 0)
		h->tls_mtime = st.st_mtim;
	return code_of(tls_context_new(h->ca, h->cert, h->key, &h->tls, why));
}

static int places_from_file(struct holdfast *h, const char *path,
			    struct detail *why)
{
	struct profile *f = malloc(sizeof(*f));
	int code = HOLDFAST_NO_MEMORY;
	enum rc rc = RC_NOMEM;
	size_t i;

	if (f != NULL)
		rc = profile_read(path, f, why);
	if (rc == RC_OK)
		code = HOLDFAST_OK;
	else if (rc != RC_NOMEM)
		code = HOLDFAST_INVALID;
	for (i = 0; code == HOLDFAST_OK && i < f->endpoints_n; i++)
		code = place_add(h, f->endpoints[i].rpc, f->endpoints[i].name,
				 why);
	if (code == HOLDFAST_OK && f->ca[0] != '\0')
		code = tls_load(h, f->ca, f->cert, f->key, why);
	free(f);
	return code;
}

static int places_given(struct holdfast *h, const struct holdfast_options *o,
			struct detail *why)
{
	bool tcp = false;
	int code = HOLDFAST_OK;
	size_t i;

	for (i = 0; i < o->endpoints_n && code == HOLDFAST_OK; i++) {
		tcp = tcp || strchr(o->endpoints[i], '/') == NULL;
		code = place_add(h, o->endpoints[i], "", why);
	}
	if (code != HOLDFAST_OK || (!tcp && o->ca == NULL))
		return code;
	if (o->ca == NULL || o->cert == NULL || o->key == NULL)
		return (int)detail_set(why, RC_INVALID, "ca",
				       "endpoints over TCP need ca, cert and "
				       "key");
	return tls_load(h, o->ca, o->cert, o->key, why);
}

static int client_places(struct holdfast *h, const struct holdfast_options *o,
			 struct detail *why)
{
	const char *config = o->config;
	char path[PLACE_BYTES];

	if (o->socket != NULL)
		return socket_add(h, o->socket, why);
	if (o->endpoints_n > 0)
		return places_given(h, o, why);
	if (config == NULL)
		config = getenv("HOLDFAST_CONFIG");
	if (config != NULL && config[0] != '\0')
		return places_from_file(h, config, why);
	if (holdfast_default_socket(path, sizeof(path)) != HOLDFAST_OK)
		return (int)detail_set(why, RC_INVALID, "socket",
				       "no path of a socket: set "
				       "HOLDFAST_SOCKET");
	return socket_add(h, path, why);
}

static int client_session(struct holdfast *h, const struct holdfast_options *o,
			  struct detail *why)
{
	const char *rpcs[SESSION_LINKS_MAX];
	const char *nodes[SESSION_LINKS_MAX];
	struct session_options so = { .calls_max = o->calls_max,
				      .links = h->places_n,
				      .learn = h->tls != NULL && o->only == 0,
				      .rpcs = rpcs,
				      .nodes = nodes,
				      .greet =
					      "libholdfast " HOLDFAST_VERSION };
	uint32_t i;
	enum rc rc;

	for (i = 0; i < h->places_n; i++) {
		rpcs[i] = h->places[i];
		nodes[i] = h->names[i];
	}
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
	code = client_places(h, o, why);
	if (code == HOLDFAST_OK)
		code = client_session(h, o, why);
	if (code != HOLDFAST_OK) {
		client_release(h);
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
				 "%s%s: no answer within %u ms", h->places[0],
				 h->places_n > 1 ? " and others" : "",
				 connect_ms);
	if (h->lost && h->lost_rc == RC_NOMEM)
		return HOLDFAST_NO_MEMORY;
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
		client_release(h);
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
	conns_close(h);
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
	/* The loop stood still since the last call: a connection that was lost
	 * meanwhile must not be what this call is sent on. */
	(void)uv_run(h->loop, UV_RUN_NOWAIT);
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
