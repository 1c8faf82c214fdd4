#include "client/holdfast.h"

#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <uv.h>

#include "client/proto/frame.h"
#include "client/tls.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/lib/test_ca.h"

/*
 * A server in a thread that does what the called method's name says. It has one
 * connection at a time and reads until that is closed.
 */
struct server {
	char path[108];
	int listener;
	pthread_t thread;
	bool refuse_hello;
	atomic_bool silent; /* Not even hello is answered. */
	unsigned connections;
	atomic_uint calls;
	unsigned cancels;
	/* One of several: over TLS, on a port. */
	struct tls_context *context; /* NULL: a Unix socket. */
	struct tls *tls;
	uint16_t port;
	const char *node;              /* NULL: hello does not say. */
	struct server *const *members; /* The same for all; NULL ends it. */
	_Atomic(const char *) owner;   /* NULL: this one. */
	unsigned forwarded;
	unsigned redirected;
	int stop[2];
	struct pack_w out;
	uint8_t in[4 << 20];
};

static struct pack_bytes text(const char *s)
{
	struct pack_bytes b = { (const uint8_t *)s, strlen(s) };

	return b;
}

static void server_error(struct server *s, uint32_t id, enum rc code,
			 const char *message)
{
	struct frame_error e = { .code = code,
				 .outcome = rc_outcome(code),
				 .message = text(message),
				 .request_id = text("req-1"),
				 .field = text("key"),
				 .owner = text("node-2"),
				 .retry_after_ms = 7 };

	frame_response(&s->out, id);
	frame_error_write(&s->out, &e);
	pack_nil(&s->out);
}

static void server_value(struct server *s, uint32_t id, struct pack_bytes v)
{
	frame_response(&s->out, id);
	pack_nil(&s->out);
	pack_raw(&s->out, v.p, v.n);
}

static void server_meta(struct server *s, uint32_t id, struct pack_bytes v)
{
	frame_response(&s->out, id);
	pack_nil(&s->out);
	pack_array(&s->out, 2);
	pack_raw(&s->out, v.p, v.n);
	pack_map(&s->out, 5);
	pack_cstr(&s->out, "owner");
	pack_cstr(&s->out, "node-1");
	pack_cstr(&s->out, "later");
	pack_array(&s->out, 0);
	pack_cstr(&s->out, "shard");
	pack_u64(&s->out, 3);
	pack_cstr(&s->out, "term");
	pack_u64(&s->out, 4);
	pack_cstr(&s->out, "index");
	pack_u64(&s->out, 5);
}

/* What a node says that may own the object. */
static void server_own(struct server *s, uint32_t id, struct pack_bytes options)
{
	struct frame_error e = { .code = RC_NOT_OWNER,
				 .outcome = OUTCOME_REFUSED,
				 .has_shard = true,
				 .shard = 3,
				 .retry_after_ms = -1 };
	const char *owner = atomic_load(&s->owner);
	bool redirect = memmem(options.p, options.n, "redirect", 8) != NULL;

	if (owner == NULL || !redirect) {
		s->forwarded += owner != NULL;
		server_value(s, id, text("\x81\xa1x\x01"));
		return;
	}
	s->redirected++;
	e.owner = text(owner);
	frame_response(&s->out, id);
	frame_error_write(&s->out, &e);
	pack_nil(&s->out);
}

static void server_hello(struct server *s, uint32_t id)
{
	struct server *const *m;
	char rpc[32];
	uint32_t n = 0;

	frame_response(&s->out, id);
	pack_nil(&s->out);
	pack_map(&s->out, s->node == NULL ? 1 : 3);
	pack_cstr(&s->out, "protocol");
	pack_u64(&s->out, 1);
	if (s->node == NULL)
		return;
	pack_cstr(&s->out, "node");
	pack_cstr(&s->out, s->node);
	for (m = s->members; *m != NULL; m++)
		n++;
	pack_cstr(&s->out, "members");
	pack_array(&s->out, n);
	for (m = s->members; *m != NULL; m++) {
		(void)snprintf(rpc, sizeof(rpc), "127.0.0.1:%u", (*m)->port);
		pack_map(&s->out, 2);
		pack_cstr(&s->out, "name");
		pack_cstr(&s->out, (*m)->node);
		pack_cstr(&s->out, "rpc");
		pack_cstr(&s->out, rpc);
	}
}

/* False: the connection is to be closed. */
static bool server_call(struct server *s, const struct frame *f)
{
	struct pack_r r = pack_reader(f->params.p, f->params.n);
	struct pack_bytes method;
	struct pack_bytes args;
	uint32_t n;

	s->calls++;
	if (pack_get_array(&r, &n) != RC_OK || n != 4 ||
	    pack_skip(&r, NULL) != RC_OK ||
	    pack_get_str(&r, &method) != RC_OK || pack_skip(&r, &args) != RC_OK)
		FAIL("the call is malformed");
	if (pack_bytes_eq(method, "echo", 4))
		server_value(s, f->id, args);
	else if (pack_bytes_eq(method, "own", 3))
		server_own(s, f->id,
			   (struct pack_bytes){ r.at, (size_t)(r.end - r.at) });
	else if (pack_bytes_eq(method, "meta", 4))
		server_meta(s, f->id, args);
	else if (pack_bytes_eq(method, "conflict", 8))
		server_error(s, f->id, RC_CONFLICT, "not as expected");
	else if (pack_bytes_eq(method, "busy", 4) && s->calls == 1)
		server_error(s, f->id, RC_OVERLOADED, "later");
	else if (pack_bytes_eq(method, "busy", 4))
		server_value(s, f->id, args);
	else if (pack_bytes_eq(method, "drop", 4))
		return false;
	else if (pack_bytes_eq(method, "garbage", 7))
		pack_raw(&s->out, "HTTP/1.1 200 OK", 15);
	/* Others ("hang") are not answered. */
	return true;
}

static bool server_frame(struct server *s, const struct frame *f)
{
	if (f->kind == FRAME_NOTIFY) {
		s->cancels += pack_bytes_eq(f->method, "cancel", 6);
		return true;
	}
	if (s->silent)
		return true;
	if (pack_bytes_eq(f->method, "call", 4))
		return server_call(s, f);
	if (pack_bytes_eq(f->method, "hello", 5) && s->refuse_hello)
		server_error(s, f->id, RC_UNSUPPORTED, "protocol 1 is gone");
	else if (pack_bytes_eq(f->method, "hello", 5))
		server_hello(s, f->id);
	else
		server_value(s, f->id, f->params);
	return true;
}

static bool server_send_tls(struct server *s, int fd)
{
	const uint8_t *p;
	size_t left;
	ssize_t n;

	if (tls_ready(s->tls) && s->out.n > 0)
		EXPECT_RC(tls_write(s->tls, s->out.p, s->out.n), RC_OK);
	pack_w_reset(&s->out);
	for (;;) {
		tls_output(s->tls, &p, &left);
		if (left == 0)
			return true;
		n = send(fd, p, left, MSG_NOSIGNAL);
		if (n <= 0)
			return false;
		tls_sent(s->tls, (size_t)n);
	}
}

static bool server_send(struct server *s, int fd)
{
	size_t at = 0;
	ssize_t n;

	if (s->tls != NULL)
		return server_send_tls(s, fd);
	while (at < s->out.n) {
		n = send(fd, s->out.p + at, s->out.n - at, MSG_NOSIGNAL);
		if (n <= 0)
			return false;
		at += (size_t)n;
	}
	pack_w_reset(&s->out);
	return true;
}

/* False: the server is to end. */
static bool server_wait(struct server *s, int fd)
{
	struct pollfd p[2] = { { .fd = fd, .events = POLLIN },
			       { .fd = s->stop[0], .events = POLLIN } };

	while (poll(p, 2, -1) < 0 && errno == EINTR)
		;
	return p[1].revents == 0;
}

/* As recv(), of what TLS makes of it; 0: nothing, but the connection stands. */
static ssize_t server_recv(struct server *s, int fd, uint8_t *p, size_t n)
{
	uint8_t cipher[4096];
	ssize_t k;

	if (s->tls == NULL) {
		k = recv(fd, p, n, 0);
		return k == 0 ? -1 : k;
	}
	k = recv(fd, cipher, sizeof(cipher), 0);
	if (k <= 0 || tls_input(s->tls, cipher, (size_t)k, NULL) != RC_OK) {
		(void)server_send(s, fd);
		return -1;
	}
	return (ssize_t)tls_read(s->tls, p, n);
}

static bool server_connection(struct server *s, int fd)
{
	uint8_t *in = s->in;
	struct frame_reader fr;
	struct frame f;
	size_t have = 0;
	size_t at = 0;
	size_t used;
	bool more = true;
	ssize_t n;

	frame_reader_init(&fr, sizeof(s->in));
	while (more) {
		if (!server_wait(s, fd))
			return false;
		n = server_recv(s, fd, in + have, sizeof(s->in) - have);
		if (n < 0)
			return true;
		have += (size_t)n;
		for (at = 0; more && at < have; at += used) {
			used = 0;
			if (frame_next(&fr, in + at, have - at, &f, &used,
				       NULL) != RC_OK)
				break;
			more = server_frame(s, &f);
		}
		have -= at;
		memmove(in, in + at, have);
		if (!server_send(s, fd))
			return true;
	}
	return true;
}

static void *server_main(void *arg)
{
	struct server *s = arg;
	bool more = true;
	int fd;

	while (more && server_wait(s, s->listener)) {
		fd = accept(s->listener, NULL, NULL);
		if (fd < 0)
			break;
		s->connections++;
		if (s->context != NULL)
			EXPECT_RC(tls_new(s->context, true, &s->tls), RC_OK);
		more = server_connection(s, fd);
		tls_free(s->tls);
		s->tls = NULL;
		(void)close(fd);
	}
	return NULL;
}

static void server_run(struct server *s)
{
	pack_w_init(&s->out, 8 << 20);
	EXPECT_INT(listen(s->listener, 16), 0);
	EXPECT_INT(pipe(s->stop), 0);
	EXPECT_INT(pthread_create(&s->thread, NULL, server_main, s), 0);
}

/* The same port again when it had one. */
static void server_start_tcp(struct server *s)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
				    .sin_port = htons(s->port) };
	socklen_t n = sizeof(addr);
	int one = 1;

	addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	s->listener = socket(AF_INET, SOCK_STREAM, 0);
	EXPECT_TRUE(s->listener >= 0);
	EXPECT_INT(setsockopt(s->listener, SOL_SOCKET, SO_REUSEADDR, &one,
			      sizeof(one)),
		   0);
	EXPECT_INT(bind(s->listener, (struct sockaddr *)&addr, n), 0);
	EXPECT_INT(getsockname(s->listener, (struct sockaddr *)&addr, &n), 0);
	s->port = ntohs(addr.sin_port);
	server_run(s);
}

static void server_start(struct server *s)
{
	static unsigned n;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	if (s->path[0] == '\0')
		(void)snprintf(s->path, sizeof(s->path), "%.90s/s%u",
			       runner_dir(), n++);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", s->path);
	s->listener = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT_TRUE(s->listener >= 0);
	EXPECT_INT(bind(s->listener, (struct sockaddr *)&addr, sizeof(addr)),
		   0);
	server_run(s);
}

static void server_stop(struct server *s)
{
	EXPECT_INT(write(s->stop[1], "x", 1), 1);
	EXPECT_INT(pthread_join(s->thread, NULL), 0);
	(void)close(s->listener);
	(void)close(s->stop[0]);
	(void)close(s->stop[1]);
	(void)unlink(s->path);
	pack_w_release(&s->out);
}

static struct holdfast *connected(struct server *s)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast *h = NULL;
	char why[256] = "";

	o.socket = s->path;
	if (holdfast_connect(&o, &h, why, sizeof(why)) != HOLDFAST_OK)
		FAIL("connect: %s", why);
	EXPECT_NOT_NULL(h);
	return h;
}

/* -------------------------------------------------------------- blocking ---
 */

TEST(blocking_call)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	const struct holdfast_answer *a;
	struct holdfast *h;
	const void *p;
	int64_t v;
	size_t n;
	int b;
	char *json;

	server_start(&s);
	h = connected(&s);
	r.args = holdfast_args_new();
	EXPECT_INT(holdfast_args_str(r.args, "s", "text"), HOLDFAST_OK);
	EXPECT_INT(holdfast_args_bin(r.args, "b", "\0\1", 2), HOLDFAST_OK);
	EXPECT_INT(holdfast_args_int(r.args, "i", INT64_MIN), HOLDFAST_OK);
	EXPECT_INT(holdfast_args_bool(r.args, "t", 1), HOLDFAST_OK);
	EXPECT_INT(holdfast_args_nil(r.args, "n"), HOLDFAST_OK);
	EXPECT_INT(holdfast_args_json(r.args, "j", "{\"x\": [1, 2]}"),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_args_raw(r.args, "r", "\x91\x01", 2), HOLDFAST_OK);
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	EXPECT_INT(a->outcome, HOLDFAST_DONE);
	EXPECT_INT(a->local, 0);
	EXPECT_UINT(a->tries, 1);
	EXPECT_INT(holdfast_get_bytes(a, "s", &p, &n), HOLDFAST_OK);
	EXPECT_UINT(n, 4);
	EXPECT_MEM(p, "text", 4);
	EXPECT_INT(holdfast_get_bytes(a, "b", &p, &n), HOLDFAST_OK);
	EXPECT_UINT(n, 2);
	EXPECT_INT(holdfast_get_int(a, "i", &v), HOLDFAST_OK);
	EXPECT_INT(v, INT64_MIN);
	EXPECT_INT(holdfast_get_bool(a, "t", &b), HOLDFAST_OK);
	EXPECT_INT(b, 1);
	EXPECT_INT(holdfast_get_raw(a, "r", &p, &n), HOLDFAST_OK);
	EXPECT_UINT(n, 2);
	/* Other types, and what is not there. */
	EXPECT_INT(holdfast_get_int(a, "s", &v), HOLDFAST_INVALID);
	EXPECT_INT(holdfast_get_bool(a, "i", &b), HOLDFAST_INVALID);
	EXPECT_INT(holdfast_get_bytes(a, "j", &p, &n), HOLDFAST_INVALID);
	EXPECT_INT(holdfast_get_int(a, "none", &v), HOLDFAST_NOT_FOUND);
	json = holdfast_json(a);
	EXPECT_HAS(json, "\"s\"");
	EXPECT_HAS(json, "\"$bin\"");
	free(json);
	holdfast_args_free(r.args);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
	EXPECT_UINT(s.calls, 1);
	EXPECT_UINT(s.connections, 1);
}

TEST(blocking_rpc_and_meta)
{
	static struct server s;
	struct holdfast_request call = HOLDFAST_CALL("kv/a", "meta");
	struct holdfast_request ping = HOLDFAST_RPC("ping");
	const struct holdfast_answer *a;
	struct holdfast *h;

	server_start(&s);
	h = connected(&s);
	EXPECT_INT(holdfast_call_wait(h, &ping, &a), HOLDFAST_OK);
	EXPECT_UINT(a->value_bytes, 1);
	ping.raw = "\x91\xc3";
	ping.raw_bytes = 2;
	EXPECT_INT(holdfast_call_wait(h, &ping, &a), HOLDFAST_OK);
	EXPECT_UINT(a->value_bytes, 2);
	call.flags = HOLDFAST_META;
	EXPECT_INT(holdfast_call_wait(h, &call, &a), HOLDFAST_OK);
	EXPECT_UINT(a->value_bytes, 1);
	EXPECT_STR(a->owner, "node-1");
	EXPECT_UINT(a->shard, 3);
	EXPECT_UINT(a->term, 4);
	EXPECT_UINT(a->index, 5);
	/* A value that is no pair stays what it is. */
	call.method = "echo";
	EXPECT_INT(holdfast_call_wait(h, &call, &a), HOLDFAST_OK);
	EXPECT_UINT(a->value_bytes, 1);
	EXPECT_STR(a->owner, "");
	EXPECT_UINT(a->shard, 0);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
}

TEST(blocking_errors)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "conflict");
	const struct holdfast_answer *a;
	struct holdfast *h;
	int64_t v;

	server_start(&s);
	h = connected(&s);
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_CONFLICT);
	EXPECT_INT(a->outcome, HOLDFAST_REFUSED);
	EXPECT_STR(a->message, "not as expected");
	EXPECT_STR(a->field, "key");
	EXPECT_STR(a->request_id, "req-1");
	EXPECT_STR(a->owner, "node-2");
	EXPECT_INT(a->retry_after_ms, 7);
	EXPECT_INT(a->local, 0);
	EXPECT_NULL(holdfast_json(a));
	EXPECT_INT(holdfast_get_int(a, "x", &v), HOLDFAST_NOT_FOUND);
	/* What the library refuses by itself. */
	r.deadline_ms = 60001;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_INVALID);
	EXPECT_STR(a->field, "deadline_ms");
	EXPECT_INT(a->local, 1);
	EXPECT_STR(holdfast_why(h), a->message);
	r.deadline_ms = 0;
	r.durability = (enum holdfast_durability)9;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_INVALID);
	r.durability = HOLDFAST_DURABILITY_COMMITTED;
	r.size = 3;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_INVALID);
	r.size = sizeof(r);
	r.args = holdfast_args_new();
	EXPECT_INT(holdfast_args_json(r.args, "x", "{"), HOLDFAST_INVALID);
	EXPECT_INT(holdfast_args_int(r.args, "y", 1), HOLDFAST_INVALID);
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_INVALID);
	EXPECT_STR(a->field, "args");
	holdfast_args_reset(r.args);
	EXPECT_INT(holdfast_args_raw(r.args, "x", "\x92\x01", 2),
		   HOLDFAST_INVALID);
	holdfast_args_reset(r.args);
	EXPECT_INT(holdfast_args_int(r.args, "y", 1), HOLDFAST_OK);
	r.method = "echo";
	EXPECT_INT(holdfast_call_wait(h, &r, NULL), HOLDFAST_OK);
	holdfast_args_free(r.args);
	holdfast_args_free(NULL);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
	EXPECT_UINT(s.calls, 2);
}

TEST(blocking_retry_and_lost_connection)
{
	static struct server s;
	struct holdfast_request busy = HOLDFAST_CALL("kv/a", "busy");
	struct holdfast_request drop = HOLDFAST_CALL("kv/a", "drop");
	struct holdfast_request garbage = HOLDFAST_CALL("kv/a", "garbage");
	struct holdfast_request echo = HOLDFAST_CALL("kv/a", "echo");
	const struct holdfast_answer *a;
	struct holdfast *h;

	server_start(&s);
	h = connected(&s);
	EXPECT_INT(holdfast_call_wait(h, &busy, &a), HOLDFAST_OK);
	EXPECT_UINT(a->tries, 2);
	EXPECT_INT(holdfast_call_wait(h, &drop, &a), HOLDFAST_UNKNOWN_OUTCOME);
	EXPECT_INT(a->outcome, HOLDFAST_UNKNOWN);
	EXPECT_INT(a->local, 1);
	EXPECT_INT(holdfast_call_wait(h, &echo, &a), HOLDFAST_OK);
	EXPECT_INT(holdfast_call_wait(h, &garbage, &a),
		   HOLDFAST_UNKNOWN_OUTCOME);
	EXPECT_INT(holdfast_call_wait(h, &echo, &a), HOLDFAST_OK);
	/* With a key it is asked again, and again, until the deadline. */
	drop.idem = "k";
	drop.idem_bytes = 1;
	drop.deadline_ms = 150;
	EXPECT_INT(holdfast_call_wait(h, &drop, &a), HOLDFAST_UNKNOWN_OUTCOME);
	EXPECT_TRUE(a->tries >= 2);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
	EXPECT_TRUE(s.connections >= 5);
}

TEST(blocking_deadline)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "hang");
	const struct holdfast_answer *a;
	struct holdfast *h;

	server_start(&s);
	h = connected(&s);
	r.deadline_ms = 20;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_UNKNOWN_OUTCOME);
	EXPECT_HAS(a->message, "deadline");
	/* The connection is still good, and the server was told. */
	r.method = "echo";
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
	EXPECT_UINT(s.cancels, 1);
	EXPECT_UINT(s.connections, 1);
}

TEST(server_comes_back)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	const struct holdfast_answer *a;
	struct holdfast *h;

	server_start(&s);
	h = connected(&s);
	server_stop(&s);
	r.deadline_ms = 50;
	/* Nobody there: nothing was sent, so it is a refusal. */
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_DEADLINE);
	EXPECT_INT(a->outcome, HOLDFAST_REFUSED);
	EXPECT_HAS(a->message, "cannot connect");
	server_start(&s);
	r.deadline_ms = 0;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
}

TEST(values_of_a_megabyte)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	const struct holdfast_answer *a;
	struct holdfast *h;
	char *big = malloc(1 << 20);
	const void *p;
	size_t n;

	EXPECT_NOT_NULL(big);
	memset(big, 'x', 1 << 20);
	server_start(&s);
	h = connected(&s);
	r.args = holdfast_args_new();
	EXPECT_INT(holdfast_args_bin(r.args, "value", big, 1 << 20),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	EXPECT_INT(holdfast_get_bytes(a, "value", &p, &n), HOLDFAST_OK);
	EXPECT_UINT(n, 1 << 20);
	EXPECT_MEM(p, big, n);
	EXPECT_INT(holdfast_args_bin(r.args, "more", big, 1 << 20),
		   HOLDFAST_OVERLOADED);
	holdfast_args_free(r.args);
	holdfast_close(h, NULL, NULL);
	server_stop(&s);
	free(big);
}

TEST(no_connection)
{
	static struct server s = { .refuse_hello = true };
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast *h = NULL;
	char why[256];
	char path[200];

	(void)snprintf(path, sizeof(path), "%.90s/none", runner_dir());
	o.socket = path;
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_UNREACHABLE);
	EXPECT_HAS(why, path);
	memset(path, 'x', 150);
	path[150] = '\0';
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_INVALID);
	EXPECT_HAS(why, "socket");
	o.socket = "";
	EXPECT_INT(holdfast_connect(&o, &h, NULL, 0), HOLDFAST_INVALID);
	o.socket = "/x";
	o.calls_max = 70000;
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_INVALID);
	EXPECT_HAS(why, "calls_max");
	o.calls_max = 0;
	o.size = 1;
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_INVALID);
	o.size = sizeof(o);

	server_start(&s);
	o.socket = s.path;
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_UNSUPPORTED);
	EXPECT_HAS(why, "protocol 1 is gone");
	s.silent = true;
	o.connect_ms = 30;
	EXPECT_INT(holdfast_connect(&o, &h, why, sizeof(why)),
		   HOLDFAST_UNREACHABLE);
	EXPECT_HAS(why, "30 ms");
	EXPECT_NULL(h);
	server_stop(&s);
	holdfast_close(NULL, NULL, NULL);
}

TEST(where_the_socket_is)
{
	char path[128];

	EXPECT_INT(setenv("HOLDFAST_SOCKET", "/x/y", 1), 0);
	EXPECT_INT(holdfast_default_socket(path, sizeof(path)), HOLDFAST_OK);
	EXPECT_STR(path, "/x/y");
	EXPECT_INT(holdfast_default_socket(path, 4), HOLDFAST_INVALID);
	EXPECT_INT(unsetenv("HOLDFAST_SOCKET"), 0);
	EXPECT_INT(setenv("XDG_STATE_HOME", "/state", 1), 0);
	EXPECT_INT(setenv("HOME", "/home/u", 1), 0);
	EXPECT_INT(holdfast_default_socket(path, sizeof(path)), HOLDFAST_OK);
	EXPECT_STR(path, "/state/holdfast/holdfast.sock");
	/* A relative one is to be ignored, says the specification. */
	EXPECT_INT(setenv("XDG_STATE_HOME", "state", 1), 0);
	EXPECT_INT(holdfast_default_socket(path, sizeof(path)), HOLDFAST_OK);
	EXPECT_STR(path, "/home/u/.local/state/holdfast/holdfast.sock");
	EXPECT_INT(unsetenv("XDG_STATE_HOME"), 0);
	EXPECT_INT(unsetenv("HOME"), 0);
	EXPECT_INT(holdfast_default_socket(path, sizeof(path)),
		   HOLDFAST_INVALID);
}

TEST(names)
{
	EXPECT_STR(holdfast_code_name(HOLDFAST_OVERLOADED), "OVERLOADED");
	EXPECT_STR(holdfast_code_name(HOLDFAST_UNREACHABLE), "UNREACHABLE");
	EXPECT_STR(holdfast_code_name(HOLDFAST_NO_MEMORY), "NO_MEMORY");
	EXPECT_STR(holdfast_code_name(-1), "INTERNAL");
	EXPECT_STR(holdfast_code_name(12345), "INTERNAL");
	EXPECT_TRUE(holdfast_version()[0] != '\0');
}

/* Handles of several threads at once, each with a server of its own. */
static void *many_calls(void *arg)
{
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct server *s = arg;
	struct holdfast *h = connected(s);
	int i;

	for (i = 0; i < 200; i++)
		if (holdfast_call_wait(h, &r, NULL) != HOLDFAST_OK)
			FAIL("call %d failed", i);
	holdfast_close(h, NULL, NULL);
	return NULL;
}

TEST(a_handle_per_thread)
{
	static struct server s[3];
	pthread_t threads[3];
	int i;

	for (i = 0; i < 3; i++)
		server_start(&s[i]);
	for (i = 0; i < 3; i++)
		EXPECT_INT(pthread_create(&threads[i], NULL, many_calls, &s[i]),
			   0);
	for (i = 0; i < 3; i++)
		EXPECT_INT(pthread_join(threads[i], NULL), 0);
	for (i = 0; i < 3; i++)
		server_stop(&s[i]);
}

/* ---------------------------------------------------------- asynchronous ---
 */

struct seen {
	struct holdfast *h;
	unsigned answers;
	unsigned ok;
	unsigned cancelled;
	unsigned unknown;
	unsigned wanted; /* Close after so many answers; 0: never. */
	unsigned more;   /* Start so many more from callbacks. */
	bool closed;
	int connected;
	int lost;
	char why[256];
};

static void on_closed(void *arg)
{
	struct seen *seen = arg;

	seen->closed = true;
}

static void on_answer(void *arg, const struct holdfast_answer *a)
{
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen *seen = arg;

	seen->answers++;
	seen->ok += a->code == HOLDFAST_OK;
	seen->cancelled += a->code == HOLDFAST_CANCELLED;
	seen->unknown += a->code == HOLDFAST_UNKNOWN_OUTCOME;
	if (seen->more > 0) {
		seen->more--;
		EXPECT_INT(holdfast_call(seen->h, &r, on_answer, seen, NULL),
			   HOLDFAST_OK);
	}
	if (seen->wanted > 0 && seen->answers == seen->wanted)
		holdfast_close(seen->h, on_closed, seen);
}

static void on_state(void *arg, int up, const char *why)
{
	struct seen *seen = arg;

	if (up)
		seen->connected++;
	else
		seen->lost++;
	(void)snprintf(seen->why, sizeof(seen->why), "%s", why);
}

static struct holdfast *opened(uv_loop_t *loop, const char *path,
			       struct seen *seen)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;

	o.socket = path;
	o.state = on_state;
	o.state_arg = seen;
	EXPECT_INT(uv_loop_init(loop), 0);
	EXPECT_INT(holdfast_open(loop, &o, &seen->h), HOLDFAST_OK);
	return seen->h;
}

TEST(pipelined_calls)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen seen = { .wanted = 2000, .more = 1000 };
	struct holdfast *h;
	uv_loop_t loop;
	unsigned i;

	server_start(&s);
	h = opened(&loop, s.path, &seen);
	for (i = 0; i < 1000; i++)
		EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, NULL),
			   HOLDFAST_OK);
	EXPECT_UINT(seen.answers, 0);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_UINT(seen.answers, 2000);
	EXPECT_UINT(seen.ok, 2000);
	EXPECT_TRUE(seen.closed);
	EXPECT_INT(seen.connected, 1);
	EXPECT_INT(uv_loop_close(&loop), 0);
	server_stop(&s);
}

TEST(close_ends_every_call)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct holdfast_request hang = HOLDFAST_CALL("kv/a", "hang");
	struct seen seen = { .wanted = 1 };
	struct holdfast *h;
	uv_loop_t loop;

	server_start(&s);
	h = opened(&loop, s.path, &seen);
	EXPECT_INT(holdfast_call(h, &hang, on_answer, &seen, NULL),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, NULL), HOLDFAST_OK);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	/* The first answer closed it; the other call may have happened. */
	EXPECT_UINT(seen.answers, 2);
	EXPECT_UINT(seen.ok, 1);
	EXPECT_UINT(seen.unknown, 1);
	EXPECT_TRUE(seen.closed);
	EXPECT_INT(uv_loop_close(&loop), 0);

	/* Nothing was sent yet: it did not happen. */
	memset(&seen, 0, sizeof(seen));
	h = opened(&loop, s.path, &seen);
	EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, NULL), HOLDFAST_OK);
	holdfast_close(h, on_closed, &seen);
	EXPECT_UINT(seen.answers, 0);
	EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, NULL),
		   HOLDFAST_CANCELLED);
	holdfast_cancel(h, 1);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_UINT(seen.answers, 1);
	EXPECT_UINT(seen.cancelled, 1);
	EXPECT_TRUE(seen.closed);
	EXPECT_INT(uv_loop_close(&loop), 0);
	server_stop(&s);
}

TEST(cancelled_calls)
{
	static struct server s;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen seen = { .wanted = 2 };
	uint64_t ticket;
	struct holdfast *h;
	uv_loop_t loop;

	server_start(&s);
	h = opened(&loop, s.path, &seen);
	EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, &ticket),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_call(h, &r, on_answer, &seen, NULL), HOLDFAST_OK);
	holdfast_cancel(h, ticket);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_UINT(seen.cancelled, 1);
	EXPECT_UINT(seen.ok, 1);
	EXPECT_INT(uv_loop_close(&loop), 0);
	server_stop(&s);
	EXPECT_UINT(s.calls, 1);
}

static void on_poll_state(void *arg, int up, const char *why)
{
	struct seen *seen = arg;

	on_state(arg, up, why);
	if (seen->lost == 1 && !up)
		holdfast_close(seen->h, on_closed, seen);
}

TEST(state_is_told_and_may_close)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen seen = { 0 };
	char path[200];
	uv_loop_t loop;

	(void)snprintf(path, sizeof(path), "%.90s/none", runner_dir());
	o.socket = path;
	o.state = on_poll_state;
	o.state_arg = &seen;
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_INT(holdfast_open(&loop, &o, &seen.h), HOLDFAST_OK);
	EXPECT_INT(holdfast_call(seen.h, &r, on_answer, &seen, NULL),
		   HOLDFAST_OK);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_INT(seen.lost, 1);
	EXPECT_INT(seen.connected, 0);
	EXPECT_HAS(seen.why, "cannot connect");
	EXPECT_UINT(seen.cancelled, 1);
	EXPECT_TRUE(seen.closed);
	EXPECT_INT(uv_loop_close(&loop), 0);
}

TEST(bad_handles_and_bounds)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen seen = { .wanted = 1 };
	uv_loop_t loop;

	EXPECT_INT(holdfast_open(NULL, &o, &seen.h), HOLDFAST_INVALID);
	EXPECT_INT(uv_loop_init(&loop), 0);
	o.socket = "/none/of/these";
	o.calls_max = 1;
	EXPECT_INT(holdfast_open(&loop, &o, &seen.h), HOLDFAST_OK);
	r.deadline_ms = 30;
	EXPECT_INT(holdfast_call(seen.h, &r, on_answer, &seen, NULL),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_call(seen.h, &r, on_answer, &seen, NULL),
		   HOLDFAST_OVERLOADED);
	EXPECT_HAS(holdfast_why(seen.h), "unanswered");
	r.address = "";
	EXPECT_INT(holdfast_call(seen.h, &r, on_answer, &seen, NULL),
		   HOLDFAST_INVALID);
	EXPECT_HAS(holdfast_why(seen.h), "address");
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_UINT(seen.answers, 1);
	EXPECT_INT(uv_loop_close(&loop), 0);
}

/* ------------------------------------------------- several nodes, TLS --- */

static struct server nodes[3];
static struct server *const members[] = { &nodes[0], &nodes[1], &nodes[2],
					  NULL };
static char config[320];
static char pem[3][320];

static struct tls_context *context(const char *name)
{
	struct tls_context *c = NULL;
	struct detail why = { 0 };
	char cert[400];
	char key[400];
	char ca[400];

	(void)snprintf(ca, sizeof(ca), "%s/ca.crt", runner_dir());
	(void)snprintf(cert, sizeof(cert), "%s/%s.crt", runner_dir(), name);
	(void)snprintf(key, sizeof(key), "%s/%s.key", runner_dir(), name);
	if (tls_context_new(ca, cert, key, &c, &why) != RC_OK)
		FAIL("%s: %s", name, why.text);
	return c;
}

static void config_write(unsigned n, const char *client)
{
	FILE *f;
	unsigned i;

	(void)snprintf(config, sizeof(config), "%s/client.yaml", runner_dir());
	f = fopen(config, "w");
	EXPECT_NOT_NULL(f);
	EXPECT_TRUE(fprintf(f, "endpoints:\n") > 0);
	for (i = 0; i < n; i++)
		EXPECT_TRUE(fprintf(f, "- {name: n%u, rpc: '127.0.0.1:%u'}\n",
				    i + 1, nodes[i].port) > 0);
	EXPECT_TRUE(fprintf(f,
			    "tls:\n  ca: ca.crt\n  cert: %s.crt\n"
			    "  key: %s.key\n",
			    client, client) > 0);
	EXPECT_INT(fclose(f), 0);
	(void)snprintf(pem[0], sizeof(pem[0]), "%s/ca.crt", runner_dir());
	(void)snprintf(pem[1], sizeof(pem[1]), "%s/%s.crt", runner_dir(),
		       client);
	(void)snprintf(pem[2], sizeof(pem[2]), "%s/%s.key", runner_dir(),
		       client);
}

/* Three nodes, of which `owner` has the object; a client.yaml with the first
 * `endpoints`. */
static void nodes_start(const char *owner, unsigned endpoints)
{
	static const char *const names[] = { "n1", "n2", "n3" };
	static const char *const uris[] = {
		"spiffe://" TEST_CLUSTER "/node/1",
		"spiffe://" TEST_CLUSTER "/node/2",
		"spiffe://" TEST_CLUSTER "/node/3",
	};
	struct test_ca *ca = test_ca_new(runner_dir(), "ca");
	unsigned i;

	test_cert(ca, runner_dir(), "client",
		  &(struct test_leaf){ .uri = "spiffe://" TEST_CLUSTER
					      "/tenant/t/env/e/client/c" });
	memset(nodes, 0, sizeof(nodes));
	for (i = 0; i < 3; i++) {
		test_cert(ca, runner_dir(), names[i],
			  &(struct test_leaf){ .uri = uris[i] });
		nodes[i].context = context(names[i]);
		nodes[i].node = names[i];
		nodes[i].members = members;
		if (strcmp(names[i], owner) != 0)
			atomic_store(&nodes[i].owner, owner);
		server_start_tcp(&nodes[i]);
	}
	test_ca_free(ca);
	config_write(endpoints, "client");
}

static void nodes_stop(void)
{
	unsigned i;

	for (i = 0; i < 3; i++) {
		if (nodes[i].listener >= 0)
			server_stop(&nodes[i]);
		tls_context_free(nodes[i].context);
	}
}

static void node_kill(unsigned i)
{
	server_stop(&nodes[i]);
	nodes[i].listener = -1;
}

static struct holdfast *connected_by(const struct holdfast_options *o)
{
	struct holdfast *h = NULL;
	char why[256] = "";

	if (holdfast_connect(o, &h, why, sizeof(why)) != HOLDFAST_OK)
		FAIL("connect: %s", why);
	return h;
}

static const struct holdfast_answer *owned(struct holdfast *h, int code)
{
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "own");
	const struct holdfast_answer *a;

	EXPECT_INT(holdfast_call_wait(h, &r, &a), code);
	return a;
}

/* Until ten calls have reached the node: others forward until the link to the
 * owner stands. */
static void owned_by(struct holdfast *h, struct server *s)
{
	unsigned want = s->calls + 10;

	while (s->calls < want)
		(void)owned(h, HOLDFAST_OK);
}

/* From one endpoint to all, and from there to the owner. */
TEST(the_owner_is_found)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast *h;

	nodes_start("n3", 1);
	o.config = config;
	h = connected_by(&o);
	owned_by(h, &nodes[2]);
	EXPECT_UINT(owned(h, HOLDFAST_OK)->tries, 1);
	holdfast_close(h, NULL, NULL);
	EXPECT_UINT(nodes[2].calls, 11);
	EXPECT_TRUE(nodes[0].redirected >= 1);
	EXPECT_INT(setenv("HOLDFAST_CONFIG", config, 1), 0);
	h = connected_by(NULL);
	(void)owned(h, HOLDFAST_OK);
	holdfast_close(h, NULL, NULL);
	EXPECT_INT(unsetenv("HOLDFAST_CONFIG"), 0);
	nodes_stop();
}

TEST(one_endpoint_alone)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	const char *endpoint;
	char place[40];
	struct holdfast *h;
	unsigned i;

	nodes_start("n2", 3);
	(void)snprintf(place, sizeof(place), "127.0.0.1:%u", nodes[0].port);
	endpoint = place;
	o.endpoints = &endpoint;
	o.endpoints_n = 1;
	o.ca = pem[0];
	o.cert = pem[1];
	o.key = pem[2];
	o.only = 1;
	h = connected_by(&o);
	for (i = 0; i < 5; i++)
		(void)owned(h, HOLDFAST_OK);
	holdfast_close(h, NULL, NULL);
	nodes_stop();
	EXPECT_UINT(nodes[0].forwarded, 5);
	EXPECT_UINT(nodes[1].connections + nodes[2].connections, 0);
}

/* The owner dies, another node takes over: calls that begin later go on. */
TEST(the_owner_is_lost)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	uint64_t began;
	struct holdfast *h;

	nodes_start("n1", 3);
	o.config = config;
	h = connected_by(&o);
	owned_by(h, &nodes[0]);
	atomic_store(&nodes[1].owner, NULL);
	atomic_store(&nodes[2].owner, "n2");
	node_kill(0);
	began = uv_hrtime();
	(void)owned(h, HOLDFAST_OK);
	EXPECT_TRUE(uv_hrtime() - began < 4000000000u);
	owned_by(h, &nodes[1]);
	EXPECT_UINT(owned(h, HOLDFAST_OK)->tries, 1);
	/* It comes back, and so does its shard. */
	server_start_tcp(&nodes[0]);
	atomic_store(&nodes[1].owner, "n1");
	atomic_store(&nodes[2].owner, "n1");
	atomic_store(&nodes[0].owner, NULL);
	owned_by(h, &nodes[0]);
	holdfast_close(h, NULL, NULL);
	nodes_stop();
}

/* It reads and says nothing: frozen, or behind a cut cable. */
TEST(a_silent_node_is_left)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "own");
	const struct holdfast_answer *a;
	struct holdfast *h;

	nodes_start("n1", 3);
	o.config = config;
	h = connected_by(&o);
	owned_by(h, &nodes[0]);
	atomic_store(&nodes[0].silent, true);
	atomic_store(&nodes[1].owner, NULL);
	atomic_store(&nodes[2].owner, "n2");
	r.idem = "key";
	r.idem_bytes = 3;
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	EXPECT_TRUE(a->tries >= 2);
	holdfast_close(h, NULL, NULL);
	nodes_stop();
}

static void refused_connection(const struct holdfast_options *o, int code,
			       const char *sentence)
{
	struct holdfast *h = NULL;
	char why[256] = "";

	EXPECT_INT(holdfast_connect(o, &h, why, sizeof(why)), code);
	EXPECT_HAS(why, sentence);
	EXPECT_NULL(h);
}

TEST(who_is_no_node_of_ours)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct test_ca *ca;

	nodes_start("n1", 1);
	/* Another cluster under the same authority, and another authority. */
	ca = test_ca_new(runner_dir(), "other");
	test_cert(ca, runner_dir(), "alien",
		  &(struct test_leaf){ .uri = "spiffe://" TEST_CLUSTER
					      "/tenant/t/env/e/client/c" });
	test_ca_free(ca);
	o.config = config;
	o.connect_ms = 2000;
	config_write(1, "alien");
	refused_connection(&o, HOLDFAST_INVALID, "");
	config_write(1, "none");
	refused_connection(&o, HOLDFAST_INVALID, "none.crt");
	config_write(1, "client");
	nodes_stop();

	/* A client's certificate does not make a node. */
	nodes[0].context = context("client");
	server_start_tcp(&nodes[0]);
	config_write(1, "client");
	refused_connection(&o, HOLDFAST_UNREACHABLE, "no node of our cluster");
	server_stop(&nodes[0]);
	tls_context_free(nodes[0].context);
	refused_connection(&o, HOLDFAST_UNREACHABLE, "cannot connect");
}

TEST(bad_endpoints)
{
	static const char *const bad[] = { "host", "host:0", "h:1", "/x" };
	struct holdfast_options o = HOLDFAST_OPTIONS;
	const char *many[9];
	unsigned i;

	o.endpoints_n = 1;
	o.endpoints = &bad[0];
	refused_connection(&o, HOLDFAST_INVALID, "neither host:port");
	o.endpoints = &bad[1];
	refused_connection(&o, HOLDFAST_INVALID, "neither host:port");
	o.endpoints = &bad[2];
	refused_connection(&o, HOLDFAST_INVALID, "need ca, cert and key");
	for (i = 0; i < 9; i++)
		many[i] = bad[3];
	o.endpoints = many;
	o.endpoints_n = 9;
	refused_connection(&o, HOLDFAST_INVALID, "at most 8");
	o.endpoints_n = 2;
	refused_connection(&o, HOLDFAST_UNREACHABLE, "/x");
	o.endpoints_n = 0;
	o.config = "/none/such.yaml";
	refused_connection(&o, HOLDFAST_INVALID, "/none/such.yaml");
}

/* A name instead of an address: it is looked up beside the loop. */
TEST(a_host_by_name)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	const char *endpoint;
	struct seen seen = { 0 };
	struct holdfast *h;
	char place[40];
	uv_loop_t loop;

	nodes_start("n1", 1);
	(void)snprintf(place, sizeof(place), "localhost:%u", nodes[0].port);
	endpoint = place;
	o.endpoints = &endpoint;
	o.endpoints_n = 1;
	o.ca = pem[0];
	o.cert = pem[1];
	o.key = pem[2];
	h = connected_by(&o);
	(void)owned(h, HOLDFAST_OK);
	holdfast_close(h, NULL, NULL);
	/* Closed while it is looked up. */
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_INT(holdfast_open(&loop, &o, &h), HOLDFAST_OK);
	EXPECT_TRUE(uv_run(&loop, UV_RUN_NOWAIT) != 0);
	holdfast_close(h, on_closed, &seen);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_TRUE(seen.closed);
	EXPECT_INT(uv_loop_close(&loop), 0);
	nodes_stop();
}

TEST(megabytes_over_tls)
{
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct holdfast_options o = HOLDFAST_OPTIONS;
	const struct holdfast_answer *a;
	char *big = malloc(1 << 20);
	struct holdfast *h;
	const void *p;
	size_t n;

	EXPECT_NOT_NULL(big);
	memset(big, 'x', 1 << 20);
	nodes_start("n1", 3);
	o.config = config;
	h = connected_by(&o);
	r.args = holdfast_args_new();
	EXPECT_INT(holdfast_args_bin(r.args, "value", big, 1 << 20),
		   HOLDFAST_OK);
	EXPECT_INT(holdfast_call_wait(h, &r, &a), HOLDFAST_OK);
	EXPECT_INT(holdfast_get_bytes(a, "value", &p, &n), HOLDFAST_OK);
	EXPECT_UINT(n, 1 << 20);
	EXPECT_MEM(p, big, n);
	holdfast_args_free(r.args);
	holdfast_close(h, NULL, NULL);
	nodes_stop();
	free(big);
}

/* A life of a handle without a server, the n-th allocation failing. True: one
 * did. */
static bool life(uint64_t nth)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast_request r = HOLDFAST_CALL("kv/a", "echo");
	struct seen seen = { .wanted = 1 };
	uv_loop_t loop;
	int code;

	EXPECT_INT(uv_loop_init(&loop), 0);
	o.socket = "/none/of/these";
	r.deadline_ms = 10;
	fault_alloc(nth);
	r.args = holdfast_args_new();
	if (r.args != NULL)
		(void)holdfast_args_json(r.args, "x", "[1, {\"y\": 2}]");
	code = holdfast_open(&loop, &o, &seen.h);
	if (code == HOLDFAST_OK) {
		code = holdfast_call(seen.h, &r, on_answer, &seen, NULL);
		EXPECT_TRUE(code == HOLDFAST_OK || code == HOLDFAST_NO_MEMORY);
		if (code != HOLDFAST_OK)
			holdfast_close(seen.h, on_closed, &seen);
		EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
		EXPECT_TRUE(seen.closed);
		EXPECT_UINT(seen.answers, code == HOLDFAST_OK ? 1 : 0);
	} else {
		EXPECT_INT(code, HOLDFAST_NO_MEMORY);
	}
	holdfast_args_free(r.args);
	EXPECT_INT(uv_loop_close(&loop), 0);
	return fault_off();
}

TEST(nth_allocation_fails)
{
	uint64_t nth = 1;

	while (life(nth))
		nth++;
	EXPECT_TRUE(nth > 6);
}

/* The same for a blocking one, which finds nobody. */
TEST(nth_allocation_of_connect_fails)
{
	struct holdfast_options o = HOLDFAST_OPTIONS;
	struct holdfast *h = NULL;
	uint64_t nth = 1;
	bool fired = true;
	char why[256];
	int code;

	o.socket = "/none/of/these";
	for (; fired; nth++) {
		fault_alloc(nth);
		code = holdfast_connect(&o, &h, why, sizeof(why));
		fired = fault_off();
		EXPECT_INT(code,
			   fired ? HOLDFAST_NO_MEMORY : HOLDFAST_UNREACHABLE);
		EXPECT_NULL(h);
	}
	EXPECT_TRUE(nth > 4);
}
