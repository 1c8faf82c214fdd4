/*
 * The server on its socket: real loop, real files, real Unix sockets, all in
 * this thread. What a client may send - and what else may come - is answered or
 * ends that connection, in memory and time that follow the input, and nobody
 * else notices.
 */
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "client/proto/frame.h"
#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/core/bridge.h"
#include "node/metrics.h"
#include "node/os/disk_posix.h"
#include "node/os/env_uv.h"
#include "node/rpc.h"
#include "raft-glue/placement.h"
#include "tests/lib/say.h"

#define WAIT_MS   60000u
#define CLIENTS   1200u
#define ANSWERS   16384u
#define FRAME_ID  7u

/* ---- the server ---- */

static struct {
	uv_loop_t loop;
	struct env_uv env;
	struct disk_posix *posix;
	struct bind *bind;
	struct core *core;
	struct metrics *metrics;
	struct rpc *rpc;
	struct rpc_config rpc_cfg;
	struct core_config cfg;
	char socket[100];
	char who[64];
	uint32_t rights; /* Of the own uid in default/dev. */
	bool ready;
	bool core_closed;
	bool rpc_closed;
} srv;

/* One connection. Answers are kept whole, in the order they came. */
struct client {
	int fd;
	bool deaf;   /* Reads nothing. */
	bool closed; /* The server has closed. */
	uint8_t *in;
	size_t in_n;
	size_t in_cap;
	uint8_t *out;
	size_t out_n;
	size_t out_at;
	struct frame_reader reader;
	unsigned answers;
	unsigned errors;
	/* The last answer, and the bytes it points into. */
	struct frame last;
	struct frame_error error;
	uint8_t *kept;
	uint8_t seen[ANSWERS / 8]; /* By id. */
};

static struct client clients[CLIENTS];
static unsigned clients_n;

static uint64_t now_ms(void)
{
	return env_now_ms(&srv.env.env);
}

static void srv_ready(void *arg)
{
	(void)arg;
	srv.ready = true;
}

static void srv_defaults(void)
{
	unsigned i;

	for (i = 0; i < clients_n; i++) {
		if (clients[i].fd >= 0)
			close(clients[i].fd);
		free(clients[i].in);
		free(clients[i].out);
		free(clients[i].kept);
	}
	clients_n = 0;
	memset(&srv, 0, sizeof(srv));
	core_config_default(&srv.cfg);
	srv.cfg.reserve_bytes = 0;
	srv.cfg.calls_max = 16384 + 8 * 2048;
	srv.rights = RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN;
	snprintf(srv.socket, sizeof(srv.socket), "%.90s/s", runner_dir());
	srv.rpc_cfg = (struct rpc_config){ .socket_path = srv.socket,
					   .connections_max = CONNECTIONS_MAX,
					   .frame_stall_ms = FRAME_STALL_MS,
					   .write_stall_ms = WRITE_STALL_MS };
}

static void grant_to(const char *who, const char *tenant, uint32_t rights)
{
	struct grant g = { .env = "dev", .cls = "*", .rights = rights };

	snprintf(g.principal, sizeof(g.principal), "%s", who);
	snprintf(g.tenant, sizeof(g.tenant), "%s", tenant);
	EXPECT_RC(bind_grant(srv.bind, &g, NULL), RC_OK);
}

static enum rc srv_listen(struct detail *why)
{
	struct rpc_host host;

	metrics_host(srv.metrics, &host);
	return rpc_open(&srv.loop, &srv.env.env, srv.core, &srv.rpc_cfg, &host,
			&srv.rpc, why);
}

static void srv_core(void)
{
	struct identity id = { .node_id = 1,
			       .node_name = "n1",
			       .shards = 4,
			       .segment_bytes = 4u << 20 };
	struct detail why = { { 0 }, { 0 } };
	char path[300];

	(void)signal(SIGPIPE, SIG_IGN);
	EXPECT_RC(crypto_init(), RC_OK);
	EXPECT_INT(uv_loop_init(&srv.loop), 0);
	EXPECT_RC(env_uv_open(&srv.env, &srv.loop), RC_OK);
	EXPECT_RC(bind_new(&srv.bind), RC_OK);
	snprintf(srv.who, sizeof(srv.who), "unix:n1:%u", (unsigned)geteuid());
	if (srv.rights != 0)
		grant_to(srv.who, "default", srv.rights);
	snprintf(path, sizeof(path), "%s/data", runner_dir());
	EXPECT_RC(disk_posix_open(path, true, &srv.posix, &why), RC_OK);
	EXPECT_RC(core_format(disk_posix_disk(srv.posix), &srv.env.env, &id,
			      &why),
		  RC_OK);
	if (core_open(&srv.env.env, disk_posix_disk(srv.posix), NULL, &srv.cfg,
		      srv.bind, srv_ready, NULL, &srv.core, &why) != RC_OK)
		FAIL("core_open: %s", why.text);
	while (!srv.ready)
		uv_run(&srv.loop, UV_RUN_ONCE);
	EXPECT_RC(metrics_open(&srv.loop, &srv.env, srv.core,
			       &srv.metrics),
		  RC_OK);
}

static void srv_begin(void)
{
	struct detail why = { { 0 }, { 0 } };

	srv_core();
	if (srv_listen(&why) != RC_OK)
		FAIL("rpc_open: %s", why.text);
	metrics_rpc(srv.metrics, srv.rpc);
}

static void srv_core_closed(void *arg)
{
	(void)arg;
	srv.core_closed = true;
}

static void srv_rpc_closed(void *arg)
{
	(void)arg;
	srv.rpc_closed = true;
}

static void srv_env_closed(struct env_uv *e)
{
	(void)e;
}

static void srv_end(void)
{
	if (srv.rpc != NULL)
		rpc_stop_listening(srv.rpc);
	core_close(srv.core, srv_core_closed, NULL);
	while (!srv.core_closed)
		uv_run(&srv.loop, UV_RUN_ONCE);
	if (srv.rpc != NULL) {
		rpc_close(srv.rpc, srv_rpc_closed, NULL);
		while (!srv.rpc_closed)
			uv_run(&srv.loop, UV_RUN_ONCE);
	}
	metrics_close(srv.metrics);
	env_uv_close(&srv.env, srv_env_closed);
	uv_run(&srv.loop, UV_RUN_DEFAULT);
	EXPECT_INT(uv_loop_close(&srv.loop), 0);
	disk_posix_close(srv.posix);
	bind_free(srv.bind);
	srv_defaults();
}

static struct rpc_stats stats(void)
{
	struct rpc_stats s;

	rpc_stats(srv.rpc, &s);
	return s;
}

/* ---- clients ---- */

static struct client *client(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct client *c = &clients[clients_n++];

	CHECK(clients_n <= CLIENTS);
	memset(c, 0, sizeof(*c));
	frame_reader_init(&c->reader, 8u << 20);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	EXPECT_TRUE(c->fd >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", srv.socket);
	if (connect(c->fd, (struct sockaddr *)&a, sizeof(a)) != 0)
		FAIL("connect: %s", strerror(errno));
	EXPECT_INT(fcntl(c->fd, F_SETFL, O_NONBLOCK), 0);
	return c;
}

static void client_close(struct client *c)
{
	close(c->fd);
	c->fd = -1;
	c->closed = true;
}

static void send_bytes(struct client *c, const void *p, size_t n)
{
	uint8_t *grown = realloc(c->out, c->out_n + n);

	EXPECT_NOT_NULL(grown);
	c->out = grown;
	memcpy(c->out + c->out_n, p, n);
	c->out_n += n;
}

static void take_answer(struct client *c, const struct frame *f, size_t used)
{
	enum pack_type t = PACK_NIL;
	struct pack_r r;

	EXPECT_INT(f->kind, FRAME_RESPONSE);
	c->answers++;
	if (f->id < ANSWERS)
		c->seen[f->id / 8] |= (uint8_t)(1u << (f->id % 8));
	c->last = *f;
	r = pack_reader(f->error.p, f->error.n);
	EXPECT_RC(pack_peek(&r, &t), RC_OK);
	memset(&c->error, 0, sizeof(c->error));
	/* What it points into is moved away. */
	free(c->kept);
	c->kept = malloc(used);
	memcpy(c->kept, c->in, used);
	c->last.error.p = c->kept + (f->error.p - c->in);
	c->last.result.p = c->kept + (f->result.p - c->in);
	if (t != PACK_NIL) {
		c->errors++;
		EXPECT_RC(frame_error_read(c->last.error, &c->error), RC_OK);
	}
}

static bool client_parse(struct client *c)
{
	struct detail why = { { 0 }, { 0 } };
	bool any = false;
	struct frame f;
	size_t used;
	size_t at = 0;

	for (;;) {
		enum rc rc = frame_next(&c->reader, c->in + at, c->in_n - at,
					&f, &used, &why);

		if (rc == RC_AGAIN)
			break;
		if (rc != RC_OK)
			FAIL("the server sent what is no frame: %s", why.text);
		memmove(c->in, c->in + at, c->in_n - at);
		c->in_n -= at;
		at = 0;
		frame_reader_init(&c->reader, 8u << 20);
		EXPECT_RC(frame_next(&c->reader, c->in, c->in_n, &f, &used,
				     &why),
			  RC_OK);
		take_answer(c, &f, used);
		frame_reader_init(&c->reader, 8u << 20);
		memmove(c->in, c->in + used, c->in_n - used);
		c->in_n -= used;
		any = true;
	}
	return any;
}

static bool client_read(struct client *c)
{
	ssize_t n;

	if (c->in_cap - c->in_n < 65536) {
		c->in_cap = c->in_cap * 2 + 65536;
		c->in = realloc(c->in, c->in_cap);
		EXPECT_NOT_NULL(c->in);
	}
	n = read(c->fd, c->in + c->in_n, c->in_cap - c->in_n);
	if (n > 0) {
		c->in_n += (size_t)n;
		(void)client_parse(c);
		return true;
	}
	if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		c->closed = true;
		return true;
	}
	return false;
}

static bool client_write(struct client *c)
{
	ssize_t n = send(c->fd, c->out + c->out_at, c->out_n - c->out_at,
			 MSG_NOSIGNAL);

	if (n > 0) {
		c->out_at += (size_t)n;
		if (c->out_at == c->out_n)
			c->out_at = c->out_n = 0;
		return true;
	}
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		c->out_at = c->out_n = 0; /* It hears why when it reads. */
	return false;
}

/* Everybody goes on as far as it may; waits when nobody can. */
static void pump(void)
{
	static struct pollfd fds[CLIENTS + 1];
	unsigned n = 0;
	unsigned i;
	bool any = false;

	uv_run(&srv.loop, UV_RUN_NOWAIT);
	for (i = 0; i < clients_n; i++) {
		struct client *c = &clients[i];

		if (c->closed)
			continue;
		if (c->out_n > c->out_at && client_write(c))
			any = true;
		if (!c->deaf && client_read(c))
			any = true;
		if (c->closed)
			continue;
		fds[n].fd = c->fd;
		fds[n].events = (short)((c->deaf ? 0 : POLLIN) |
					(c->out_n > c->out_at ? POLLOUT : 0));
		n++;
	}
	if (any)
		return;
	fds[n].fd = uv_backend_fd(&srv.loop);
	fds[n].events = POLLIN;
	i = (unsigned)uv_backend_timeout(&srv.loop);
	poll(fds, n + 1, i < 10 ? (int)i : 10);
}

#define WAIT_FOR(cond)                                          \
	do {                                                    \
		uint64_t wait_until = now_ms() + WAIT_MS;       \
                                                                \
		while (!(cond)) {                               \
			if (now_ms() > wait_until)              \
				FAIL("%s never came", #cond);   \
			pump();                                 \
		}                                               \
	} while (0)

/* So many turns of the loop go by. */
static void turns(unsigned n)
{
	while (n-- > 0)
		pump();
}

/* ---- requests ---- */

static void request_raw(struct client *c, uint32_t id, const char *method,
			struct pack_bytes params)
{
	struct pack_w w;

	pack_w_init(&w, 64u << 20);
	frame_request(&w, id, method, strlen(method));
	pack_raw(&w, params.p, params.n);
	EXPECT_RC(w.rc, RC_OK);
	send_bytes(c, w.p, w.n);
	pack_w_release(&w);
}

static void request(struct client *c, uint32_t id, const char *method,
		    const char *params)
{
	struct pack_w w;

	pack_w_init(&w, 64u << 20);
	say_pack(&w, params);
	request_raw(c, id, method, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
}

static void notify(struct client *c, const char *method, const char *params)
{
	struct pack_w w;

	pack_w_init(&w, 65536);
	frame_notify(&w, method, strlen(method));
	say_pack(&w, params);
	send_bytes(c, w.p, w.n);
	pack_w_release(&w);
}

/* Waits for the answer; NULL: an error, which is in c->error. */
static const char *ask(struct client *c, const char *method,
		       const char *params)
{
	unsigned answers = c->answers;

	request(c, FRAME_ID, method, params);
	WAIT_FOR(c->answers > answers || c->closed);
	if (c->closed)
		FAIL("%s %s: the connection was closed", method, params);
	EXPECT_UINT(c->last.id, FRAME_ID);
	if (c->error.code != RC_OK)
		return NULL;
	return say_text(c->last.result);
}

static void expect_ask(struct client *c, const char *method,
		       const char *params, const char *want)
{
	const char *got = ask(c, method, params);

	if (got == NULL)
		FAIL("%s %s: %s: %.*s", method, params,
		     rc_name(c->error.code), (int)c->error.message.n,
		     (const char *)c->error.message.p);
	EXPECT_STR(got, want);
}

static void expect_error(struct client *c, const char *method,
			 const char *params, enum rc rc, const char *field)
{
	runner_context("%s %.100s", method, params);
	EXPECT_NULL(ask(c, method, params));
	EXPECT_RC(c->error.code, rc);
	EXPECT_INT((int)c->error.field.n, (int)strlen(field));
	EXPECT_MEM(c->error.field.p, field, strlen(field));
	EXPECT_INT(c->error.outcome, OUTCOME_REFUSED);
	EXPECT_UINT(c->error.request_id.n, 16);
	EXPECT_TRUE(c->error.message.n > 0);
	runner_context("%s", "");
}

static void expect_alive(struct client *c)
{
	expect_ask(c, "ping", "[]", "null");
}

/* ---- first ---- */

TEST(a_call_and_the_rest)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_alive(c);
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	expect_ask(c, "call", "['kv/a','get',{'key':'k'},{'meta':false}]",
		   "{'value':1,'rev':1}");
	EXPECT_HAS(ask(c, "hello", "[]"), "'principal':'unix:n1:");
	EXPECT_HAS(ask(c, "hello", "[{'protocol':9,'client':'x','more':[]}]"),
		   "'protocol':1");
	EXPECT_HAS(ask(c, "status", "[]"), "'node':'n1'");
	EXPECT_HAS(ask(c, "status", "[{'reset_stall':true}]"), "'shards':[");
	EXPECT_HAS(ask(c, "metrics", "[]"), "# TYPE holdfast_");
	EXPECT_HAS(ask(c, "objects", "[]"),
		   "'address':'default/dev/kv/a','rev':1,");
	EXPECT_HAS(ask(c, "object", "['kv/a']"),
		   "'address':'default/dev/kv/a','rev':1,");
	srv_end();
}

TEST(params_of_the_servers_own_methods)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_error(c, "ping", "[1]", RC_INVALID, "params");
	expect_error(c, "metrics", "[{}]", RC_INVALID, "params");
	expect_error(c, "hello", "[1]", RC_INVALID, "params");
	expect_error(c, "hello", "[{},{}]", RC_INVALID, "params");
	expect_error(c, "status", "[1]", RC_INVALID, "params");
	expect_error(c, "status", "[{'reset_stall':1}]", RC_INVALID,
		     "reset_stall");
	expect_error(c, "status", "[{'reset_stal':true}]", RC_INVALID,
		     "reset_stal");
	expect_error(c, "objects", "['a']", RC_INVALID, "params");
	expect_error(c, "objects", "[{'tenants':'a'}]", RC_INVALID, "tenants");
	expect_error(c, "objects", "[{'limit':0}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':1001}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':'9'}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'limit':-1}]", RC_INVALID, "limit");
	expect_error(c, "objects", "[{'tenant':1}]", RC_INVALID, "tenant");
	expect_error(c, "objects", "[{'tenant':''}]", RC_INVALID, "tenant");
	expect_error(c, "objects", "[{'env':[]}]", RC_INVALID, "env");
	expect_error(c, "objects", "[{'class':null}]", RC_INVALID, "class");
	expect_error(c, "objects", "[{'after':''}]", RC_INVALID, "after");
	expect_error(c, "objects", "[{'after':'0'}]", RC_INVALID, "after");
	expect_error(c, "objects", "[{'after':'4.00'}]", RC_INVALID, "after");
	expect_error(c, "objects",
		     "[{'after':'9.00112233445566778899aabbccddeeff'}]",
		     RC_INVALID, "after");
	expect_error(c, "object", "[]", RC_INVALID, "params");
	expect_error(c, "object", "[7]", RC_INVALID, "address");
	expect_error(c, "object", "['kv']", RC_INVALID, "address");
	expect_error(c, "call", "[]", RC_INVALID, "params");
	expect_error(c, "call", "['kv/a','get',{},{},{}]", RC_INVALID,
		     "params");
	expect_error(c, "cancel", "[1]", RC_UNSUPPORTED, "method");
	expect_error(c, "no_such", "[]", RC_UNSUPPORTED, "method");
	expect_error(c, "", "[]", RC_UNSUPPORTED, "method");
	expect_alive(c);
	srv_end();
}

/* ---- who may look ---- */

TEST(without_a_grant_there_is_nothing_to_see)
{
	struct client *c;

	srv_defaults();
	srv.rights = 0;
	srv_begin();
	c = client();
	expect_alive(c);
	EXPECT_HAS(ask(c, "hello", "[]"), "'server':'holdfast'");
	expect_error(c, "status", "[]", RC_DENIED, "method");
	expect_error(c, "metrics", "[]", RC_DENIED, "method");
	expect_ask(c, "objects", "[]", "{'items':[]}");
	expect_error(c, "object", "['kv/a']", RC_NOT_FOUND, "");
	expect_error(c, "call", "['kv/a','get',{'key':'k'}]", RC_NOT_FOUND,
		     "");
	expect_error(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		     RC_NOT_FOUND, "");
	srv_end();
}

/* Neither listed nor shown, also by their ids. */
TEST(another_tenants_objects_are_not_there)
{
	const struct identity *id;
	char hex[2 * OID_BYTES + 1];
	char params[128];
	struct client *c;
	struct oid oid;

	srv_defaults();
	srv_begin();
	grant_to(srv.who, "other", RIGHT_WRITE);
	c = client();
	expect_ask(c, "call", "['other/dev/kv/x','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	expect_ask(c, "call", "['kv/mine','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	id = core_identity(srv.core);
	placement_id(id->hash_key, (struct pack_bytes){ (uint8_t *)"other", 5 },
		     (struct pack_bytes){ (uint8_t *)"dev", 3 },
		     (struct pack_bytes){ (uint8_t *)"kv", 2 },
		     (struct pack_bytes){ (uint8_t *)"x", 1 }, &oid);
	hex_encode(oid.b, OID_BYTES, hex);
	snprintf(params, sizeof(params), "['other/dev/kv/~%s']", hex);
	EXPECT_HAS(ask(c, "object", params), "'other/dev/kv/x'");
	/* As one of the own tenant it does not exist. */
	snprintf(params, sizeof(params), "['kv/~%s']", hex);
	expect_error(c, "object", params, RC_NOT_FOUND, "");
	snprintf(params, sizeof(params), "['other/dev/rate_limiter/~%s']",
		 hex);
	expect_error(c, "object", params, RC_NOT_FOUND, "");
	EXPECT_NULL(strstr(ask(c, "objects", "[]"), "other"));
	EXPECT_HAS(ask(c, "objects", "[{'tenant':'other'}]"),
		   "other/dev/kv/x");
	expect_ask(c, "objects", "[{'tenant':'third'}]", "{'items':[]}");
	srv_end();
}

TEST(objects_page_by_page)
{
	char params[128] = "[{'limit':7}]";
	unsigned seen = 0;
	unsigned pages = 0;
	struct client *c;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	for (i = 0; i < 40; i++) {
		snprintf(params, sizeof(params),
			 "['kv/%u','put',{'key':'k','value':1}]", i);
		expect_ask(c, "call", params, "{'rev':1}");
	}
	(void)ask(c, "call",
		  "['rate_limiter/r','put_policy',{'limit':1,'period_ms':1}]");
	snprintf(params, sizeof(params), "[{'limit':7,'class':'kv'}]");
	for (;;) {
		struct pack_bytes items;
		struct pack_r r;
		const char *next;
		uint32_t n;

		EXPECT_NOT_NULL(ask(c, "objects", params));
		items = say_member(c->last.result, "items");
		r = pack_reader(items.p, items.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		seen += n;
		pages++;
		EXPECT_TRUE(n <= 7);
		next = strstr(say_text(c->last.result), "'next':'");
		if (next == NULL)
			break;
		next += strlen("'next':'");
		snprintf(params, sizeof(params),
			 "[{'limit':7,'class':'kv','after':'%.*s'}]",
			 (int)strcspn(next, "'"), next);
	}
	EXPECT_UINT(seen, 40);
	EXPECT_TRUE(pages >= 6);
	srv_end();
}

/* ---- the shape of an error ---- */

TEST(an_error_is_a_map)
{
	struct client *c;
	const char *text;

	srv_defaults();
	srv_begin();
	c = client();
	EXPECT_NULL(ask(c, "call", "['kv/a','get',{}]"));
	text = say_text(c->last.error);
	EXPECT_HAS(text, "'code':'INVALID'");
	EXPECT_HAS(text, "'http':400");
	EXPECT_HAS(text, "'outcome':'refused'");
	EXPECT_HAS(text, "'message':'");
	EXPECT_HAS(text, "'request_id':'");
	EXPECT_HAS(text, "'field':'key'");
	EXPECT_NULL(strstr(text, "retry_after_ms"));
	EXPECT_NULL(strstr(text, "owner"));
	EXPECT_STR(say_text(c->last.result), "null");
	/* What is not there, and what one may not see. */
	EXPECT_NULL(ask(c, "call", "['kv/a','get',{'key':'k'}]"));
	text = say_text(c->last.error);
	EXPECT_HAS(text, "'code':'NOT_FOUND','http':404");
	EXPECT_HAS(text, rc_text(RC_NOT_FOUND));
	EXPECT_NULL(strstr(text, "field"));
	EXPECT_NULL(ask(c, "call", "['nowhere/dev/kv/a','get',{'key':'k'}]"));
	EXPECT_HAS(say_text(c->last.error), rc_text(RC_NOT_FOUND));
	EXPECT_NULL(strstr(say_text(c->last.error), "field"));
	srv_end();
}

/* ---- hostile bytes ---- */

static void expect_closed(const char *what, const void *p, size_t n)
{
	struct client *c = client();
	uint64_t held = stats().in_held;

	runner_context("%s", what);
	send_bytes(c, p, n);
	WAIT_FOR(c->closed);
	EXPECT_UINT(c->answers, 0);
	turns(3);
	EXPECT_TRUE(stats().in_held <= held + 65536);
	client_close(c);
	runner_context("%s", "");
}

TEST(bytes_that_can_never_become_a_message)
{
	static const struct {
		const char *what;
		const char *p;
		size_t n;
	} table[] = {
		{ "an array of 4 G elements", "\xdd\xff\xff\xff\xff", 5 },
		{ "a map of 4 G pairs", "\xdf\xff\xff\xff\xff", 5 },
		{ "a str of 4 GiB", "\xdb\xff\xff\xff\xff", 5 },
		{ "a bin of 4 GiB", "\xc6\xff\xff\xff\xff", 5 },
		{ "an ext of 4 GiB", "\xc9\xff\xff\xff\xff\x01", 6 },
		{ "a request with a str of 4 GiB",
		  "\x94\x00\x01\xdb\xff\xff\xff\xff", 8 },
		{ "a request with params of 4 G elements",
		  "\x94\x00\x01\xa4ping\xdd\xff\xff\xff\xff", 13 },
		{ "a request with a map of 4 G pairs in it",
		  "\x94\x00\x01\xa4ping\x91\xdf\xff\xff\xff\xff", 14 },
		{ "a request with a bin of 3 MiB",
		  "\x94\x00\x01\xa4ping\x91\xc6\x00\x30\x00\x00", 14 },
		{ "the byte that is none", "\xc1", 1 },
		{ "nil", "\xc0", 1 },
		{ "a number", "\x07", 1 },
		{ "HTTP", "GET / HTTP/1.1\r\n\r\n", 18 },
		{ "TLS", "\x16\x03\x01\x02\x00\x01\x00", 7 },
		{ "a map", "\x81\x00\x01", 3 },
		{ "a string", "\xa4ping", 5 },
		{ "an array of nothing", "\x90", 1 },
		{ "one element", "\x91\x00", 2 },
		{ "another kind", "\x94\x03\x01\xa4ping\x90", 9 },
		{ "a negative kind", "\x94\xff\x01\xa4ping\x90", 9 },
		{ "a response", "\x94\x01\x01\xc0\xc0", 5 },
		{ "a kind that is a string", "\x94\xa1x\x01\xa4ping\x90", 10 },
	};
	struct client *other;
	size_t i;

	srv_defaults();
	srv_begin();
	other = client();
	expect_alive(other);
	for (i = 0; i < ARRAY_LEN(table); i++) {
		expect_closed(table[i].what, table[i].p, table[i].n);
		expect_alive(other);
	}
	EXPECT_UINT(stats().broken, ARRAY_LEN(table));
	srv_end();
}

TEST(nesting_of_100000)
{
	struct client *other;
	uint8_t *deep = malloc(100000);
	uint8_t *in_params = malloc(100000);

	srv_defaults();
	srv_begin();
	other = client();
	memset(deep, 0x91, 100000);
	expect_closed("arrays", deep, 100000);
	memset(deep, 0x81, 100000);
	expect_closed("maps", deep, 100000);
	memset(in_params, 0x91, 100000);
	memcpy(in_params, "\x94\x00\x01\xa4ping", 8);
	expect_closed("params", in_params, 100000);
	expect_alive(other);
	free(deep);
	free(in_params);
	srv_end();
}

TEST(more_objects_than_a_message_may_have)
{
	struct client *other;
	size_t n = 12 + PACK_ELEMENTS_MAX + 10;
	uint8_t *p = malloc(n);

	srv_defaults();
	srv_begin();
	other = client();
	memset(p, 0xc0, n);
	memcpy(p, "\x94\x00\x01\xa4ping\xdd\x00\x04\x00\x0a", 13);
	expect_closed("elements", p, n);
	expect_alive(other);
	free(p);
	srv_end();
}

/* Garbage of every kind, from a seed: an answer or the end, never a crash. */
TEST(random_bytes)
{
	struct client *other;
	uint64_t x = 88172645463325252u;
	unsigned round;

	srv_defaults();
	srv_begin();
	other = client();
	for (round = 0; round < 300; round++) {
		struct client *c = client();
		uint8_t p[512];
		size_t n;
		size_t i;

		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		n = 1 + x % sizeof(p);
		for (i = 0; i < n; i++) {
			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			p[i] = (uint8_t)x;
		}
		/* Half of them begin well. */
		if (round % 2 == 0 && n > 12)
			memcpy(p, "\x94\x00\x05\xa4"
				  "call\x93",
			       9);
		send_bytes(c, p, n);
		WAIT_FOR(c->out_n == 0 || c->closed);
		shutdown(c->fd, SHUT_WR);
		WAIT_FOR(c->closed);
		client_close(c);
		clients_n--;
		free(c->in);
		free(c->out);
		free(c->kept);
	}
	expect_alive(other);
	WAIT_FOR(stats().connections == 1);
	EXPECT_TRUE(stats().in_held <= 2 * CONNECTION_IN_BYTES);
	srv_end();
}

/* ---- wrong types in every position ---- */

TEST(wrong_types_in_every_position_of_the_envelope)
{
	static const struct {
		const char *what;
		const char *p;
		size_t n;
	} values[] = {
		{ "nil", "\xc0", 1 },
		{ "true", "\xc3", 1 },
		{ "5", "\x05", 1 },
		{ "-5", "\xfb", 1 },
		{ "2^32", "\xcf\x00\x00\x00\x01\x00\x00\x00\x00", 9 },
		{ "a float", "\xca\x3f\x80\x00\x00", 5 },
		{ "a str", "\xa1x", 2 },
		{ "a bin", "\xc4\x01x", 3 },
		{ "an array", "\x90", 1 },
		{ "a map", "\x80", 1 },
		{ "an ext", "\xd4\x01x", 3 },
		{ "a long str",
		  "\xd9\x50xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
		  "xxxxxxxxxxxxxxxxxxxxxxxxxxxx",
		  82 },
	};
	static const char *const good[] = { "\x00", "\x09", "\xa4ping", "\x90" };
	static const size_t good_n[] = { 1, 1, 5, 1 };
	struct client *other;
	unsigned answered = 0;
	unsigned closed = 0;
	unsigned place;
	size_t i;
	unsigned k;

	srv_defaults();
	srv_begin();
	other = client();
	for (place = 0; place < 4; place++)
		for (i = 0; i < ARRAY_LEN(values); i++) {
			struct client *c = client();

			runner_context("%s in place %u", values[i].what,
				       place);
			send_bytes(c, "\x94", 1);
			for (k = 0; k < 4; k++)
				send_bytes(c,
					   k == place ? values[i].p : good[k],
					   k == place ? values[i].n :
							good_n[k]);
			request(c, 77, "ping", "[]");
			WAIT_FOR(c->closed || c->last.id == 77);
			if (c->closed) {
				/* Nobody knows whom to answer. */
				EXPECT_TRUE(place < 2);
				EXPECT_UINT(c->answers, 0);
				closed++;
			} else {
				EXPECT_UINT(c->answers, 2);
				answered += c->errors;
			}
			client_close(c);
		}
	EXPECT_TRUE(closed >= 15);
	EXPECT_TRUE(answered >= 15);
	expect_alive(other);
	srv_end();
}

TEST(too_few_and_too_many_elements)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	send_bytes(c, "\x93\x00\x05\xa4ping", 8);
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 5);
	EXPECT_RC(c->error.code, RC_INVALID);
	send_bytes(c, "\x95\x00\x06\xa4ping\x90\xc0", 10);
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, 6);
	EXPECT_RC(c->error.code, RC_INVALID);
	send_bytes(c, "\x92\x00\x07", 3);
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->last.id, 7);
	expect_alive(c);
	srv_end();
}

/* ---- truncation ---- */

TEST(every_truncation_of_good_frames)
{
	static const char *const params[] = {
		"['kv/t','put',{'key':'k','value':{'$bin':'AAECAwQF'}},"
		"{'idem':'a','deadline_ms':1000,'meta':true}]",
		"['rate_limiter/t','check',{'key':'k','cost':1}]",
	};
	struct client *other;
	size_t i;

	srv_defaults();
	srv_begin();
	other = client();
	for (i = 0; i < ARRAY_LEN(params); i++) {
		struct pack_w w;
		size_t n;

		pack_w_init(&w, 65536);
		frame_request(&w, 3, "call", 4);
		say_pack(&w, params[i]);
		for (n = 0; n < w.n; n++) {
			struct client *c = client();

			runner_context("frame %zu cut at %zu", i, n);
			send_bytes(c, w.p, n);
			WAIT_FOR(c->out_n == 0);
			/* Half closed, or gone altogether. */
			if (n % 2 == 0) {
				shutdown(c->fd, SHUT_WR);
				WAIT_FOR(c->closed);
				EXPECT_UINT(c->answers, 0);
			}
			client_close(c);
			clients_n--;
			free(c->in);
			free(c->out);
			free(c->kept);
		}
		pack_w_release(&w);
	}
	WAIT_FOR(stats().connections == 1);
	/* Nothing of them was carried out. */
	expect_ask(other, "objects", "[]", "{'items':[]}");
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

TEST(byte_by_byte)
{
	struct client *c;
	struct pack_w w;
	size_t i;

	srv_defaults();
	srv_begin();
	c = client();
	pack_w_init(&w, 65536);
	frame_request(&w, 3, "call", 4);
	say_pack(&w, "['kv/b','put',{'key':'k','value':'some text'}]");
	frame_request(&w, 4, "call", 4);
	say_pack(&w, "['kv/b','get',{'key':'k'}]");
	for (i = 0; i < w.n; i++) {
		send_bytes(c, w.p + i, 1);
		turns(2);
	}
	WAIT_FOR(c->answers == 2);
	EXPECT_STR(say_text(c->last.result), "{'value':'some text','rev':1}");
	pack_w_release(&w);
	srv_end();
}

/* ---- what stock clients do ---- */

TEST(names_may_be_bin_and_ids_any)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	send_bytes(c, "\x94\x00\x05\xc4\x04ping\x90", 10);
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 5);
	EXPECT_UINT(c->errors, 0);
	/* In their long forms. */
	send_bytes(c, "\xdc\x00\x04\xcc\x00\xce\xff\xff\xff\xff\xd9\x04ping"
		      "\xdc\x00\x00",
		   19);
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, UINT32_MAX);
	EXPECT_UINT(c->errors, 0);
	srv_end();
}

TEST(notifications)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	/* What editors greet with. */
	notify(c, "nvim_ui_attach", "[80,24,{}]");
	notify(c, "$/setTrace", "[]");
	notify(c, "", "[]");
	/* What would do something, were it a request. */
	notify(c, "call", "['kv/n','put',{'key':'k','value':1}]");
	notify(c, "ping", "[]");
	notify(c, "cancel", "[]");
	notify(c, "cancel", "['x']");
	notify(c, "cancel", "[-1]");
	notify(c, "cancel", "[1,2]");
	notify(c, "cancel", "[4711]");
	expect_alive(c);
	EXPECT_UINT(c->answers, 1);
	expect_error(c, "call", "['kv/n','get',{'key':'k'}]", RC_NOT_FOUND,
		     "");
	srv_end();
}

TEST(an_id_twice_is_answered_twice)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	request(c, 9, "call", "['kv/i','incr',{'key':'n'}]");
	request(c, 9, "call", "['kv/i','incr',{'key':'n'}]");
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->errors, 0);
	EXPECT_STR(say_text(c->last.result), "{'value':2,'rev':2}");
	srv_end();
}

TEST(cancel)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	request(c, 1, "call", "['relay/o','run',{'steps':[['wait',50000]]},"
			      "{'deadline_ms':60000}]");
	request(c, 2, "call", "['relay/o','get',{}]");
	turns(20);
	EXPECT_UINT(c->answers, 0);
	notify(c, "cancel", "[3]");
	notify(c, "cancel", "[2]");
	WAIT_FOR(c->answers == 1);
	EXPECT_UINT(c->last.id, 2);
	EXPECT_RC(c->error.code, RC_CANCELLED);
	notify(c, "cancel", "[1]");
	WAIT_FOR(c->answers == 2);
	EXPECT_UINT(c->last.id, 1);
	EXPECT_RC(c->error.code, RC_CANCELLED);
	/* Another connection's ids are its own. */
	request(c, 5, "call", "['relay/o','run',{'steps':[['wait',300]]}]");
	turns(5);
	notify(client(), "cancel", "[5]");
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->errors, 2);
	srv_end();
}

/* ---- pipelining ---- */

static bool all_seen(const struct client *c, unsigned n)
{
	unsigned i;

	for (i = 0; i < n; i++)
		if ((c->seen[i / 8] & 1u << (i % 8)) == 0)
			return false;
	return true;
}

TEST(half_close_after_pipelining)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	for (i = 0; i < 3000; i++) {
		char params[64];

		snprintf(params, sizeof(params),
			 "['kv/%u','incr',{'key':'n'}]", i % 10);
		if (i % 3 == 0)
			request(c, i, "ping", "[]");
		else
			request(c, i, "call", params);
	}
	WAIT_FOR(c->out_n == 0);
	shutdown(c->fd, SHUT_WR);
	WAIT_FOR(c->closed);
	EXPECT_UINT(c->answers, 3000);
	EXPECT_UINT(c->errors, 0);
	EXPECT_TRUE(all_seen(c, 3000));
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

TEST(gone_while_calls_are_in_flight)
{
	struct core_stats s;
	unsigned round;

	srv_defaults();
	srv_begin();
	for (round = 0; round < 20; round++) {
		struct client *c = client();
		unsigned i;

		for (i = 0; i < 200; i++)
			request(c, i, "call",
				i % 2 == 0 ?
					"['relay/o','run',"
					"{'steps':[['wait',40000]]}]" :
					"['kv/o','incr',{'key':'n'}]");
		WAIT_FOR(c->out_n == 0);
		turns(round);
		client_close(c);
	}
	WAIT_FOR(stats().connections == 0);
	core_stats(srv.core, &s);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 0);
	EXPECT_UINT(stats().out_held, 0);
	EXPECT_UINT(stats().in_held, 0);
	expect_alive(client());
	srv_end();
}

/* Not the same as one that only sends no more: nobody will hear the answers. */
TEST(gone_for_good_and_half_closed)
{
	struct core_stats s;
	struct client *half;
	struct client *gone;
	struct client *later;
	const char *slow = "['relay/%c','run',{'steps':[['wait',%u]]},"
			   "{'deadline_ms':60000}]";
	char params[128];

	srv_defaults();
	srv_begin();
	half = client();
	gone = client();
	later = client();
	snprintf(params, sizeof(params), slow, 'a', 1500);
	request(half, 1, "call", params);
	snprintf(params, sizeof(params), slow, 'b', 50000);
	request(gone, 1, "call", params);
	snprintf(params, sizeof(params), slow, 'c', 50000);
	request(later, 1, "call", params);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 3);
	shutdown(half->fd, SHUT_WR);
	shutdown(later->fd, SHUT_WR);
	client_close(gone);
	WAIT_FOR((core_stats(srv.core, &s), s.calls_open) == 2);
	turns(10);
	client_close(later);
	WAIT_FOR(half->answers == 1);
	EXPECT_UINT(half->errors, 0);
	WAIT_FOR(stats().connections == 0);
	core_stats(srv.core, &s);
	EXPECT_UINT(s.calls_open, 0);
	srv_end();
}

TEST(calls_of_a_connection_have_a_bound)
{
	struct client *c;
	struct client *other;
	uint32_t i;

	srv_defaults();
	srv_begin();
	c = client();
	other = client();
	for (i = 0; i < CONNECTION_CALLS_MAX + 3; i++)
		request(c, i, "call",
			"['relay/o','run',{'steps':[['wait',50000]]},"
			"{'deadline_ms':60000}]");
	WAIT_FOR(c->answers == 3);
	EXPECT_UINT(c->errors, 3);
	EXPECT_RC(c->error.code, RC_OVERLOADED);
	EXPECT_TRUE(c->error.retry_after_ms >= 0);
	/* Others have their own. */
	expect_ask(other, "call", "['kv/a','incr',{'key':'n'}]",
		   "{'value':1,'rev':1}");
	client_close(c);
	WAIT_FOR(stats().connections == 1);
	srv_end();
}

TEST(calls_of_the_node_have_a_bound)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv.cfg.calls_max = 64;
	srv_begin();
	c = client();
	for (i = 0; i < 40; i++)
		request(c, i, "call",
			"['relay/o','run',{'steps':[['wait',50000]]},"
			"{'deadline_ms':60000}]");
	WAIT_FOR(c->answers == 8);
	EXPECT_UINT(c->errors, 8);
	EXPECT_RC(c->error.code, RC_OVERLOADED);
	EXPECT_TRUE(c->error.retry_after_ms > 0);
	expect_alive(c);
	client_close(c);
	srv_end();
}

/* ---- those who do not read, or not finish ---- */

static void put_large(struct client *c)
{
	static uint8_t value[VALUE_BYTES_MAX];
	struct pack_w w;
	unsigned answers = c->answers;

	memset(value, 'v', sizeof(value));
	pack_w_init(&w, 4u << 20);
	pack_array(&w, 3);
	pack_cstr(&w, "kv/large");
	pack_cstr(&w, "put");
	pack_map(&w, 2);
	pack_cstr(&w, "key");
	pack_cstr(&w, "k");
	pack_cstr(&w, "value");
	pack_bin(&w, value, sizeof(value));
	request_raw(c, 1, "call", (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	WAIT_FOR(c->answers > answers);
	EXPECT_RC(c->error.code, RC_OK);
}

/* A client that reads gets all of it, however much it pipelines; and at no
 * moment has the server more of it in memory than a few. */
TEST(large_answers_come_as_fast_as_they_are_read)
{
	struct client *c;
	uint64_t most = 0;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	put_large(c);
	for (i = 0; i < 200; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	while (c->answers < 201) {
		uint64_t held;

		pump();
		held = stats().out_held;
		if (held > most)
			most = held;
	}
	EXPECT_UINT(c->errors, 0);
	EXPECT_TRUE(most < 8u << 20);
	EXPECT_UINT(stats().broken, 0);
	srv_end();
}

/* All of them are begun before the first is known to be large. */
TEST(large_answers_of_an_object_that_is_not_in_memory)
{
	struct client *c;
	unsigned i;

	srv_defaults();
	srv.cfg.object_idle_ms = 10;
	srv.cfg.window_ms = 1;
	srv_begin();
	c = client();
	put_large(c);
	/* Until it has been evicted. */
	WAIT_FOR(strstr(ask(c, "status", "[]"), "'objects_resident':0") !=
		 NULL);
	c->answers = 0;
	for (i = 0; i < 1500; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	WAIT_FOR(c->answers == 1500 || c->closed);
	EXPECT_FALSE(c->closed);
	EXPECT_TRUE(all_seen(c, 1500));
	/* Those for which there was no room were told to come again. */
	EXPECT_TRUE(c->errors < 1500);
	EXPECT_UINT(stats().broken, 0);
	expect_alive(c);
	srv_end();
}

TEST(a_reader_that_never_reads)
{
	struct client *c;
	struct client *other;
	uint64_t most = 0;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 400;
	srv_begin();
	c = client();
	other = client();
	put_large(other);
	c->deaf = true;
	for (i = 0; i < 500; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	while (stats().broken == 0) {
		uint64_t held;

		expect_ask(other, "call", "['kv/o','list',{}]", "{'items':[]}");
		held = stats().out_held;
		if (held > most)
			most = held;
	}
	EXPECT_TRUE(most < 8u << 20);
	WAIT_FOR(stats().connections == 1);
	EXPECT_UINT(stats().out_held, 0);
	srv_end();
}

/* Slow, and yet it goes on. (The kernel asks for more when three quarters of
 * what it holds have been read.) */
TEST(a_slow_reader_is_no_dead_one)
{
	struct client *c;
	uint64_t until;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.write_stall_ms = 700;
	srv_begin();
	c = client();
	put_large(c);
	for (i = 0; i < 6; i++)
		request(c, i, "call", "['kv/large','get',{'key':'k'}]");
	c->deaf = true;
	until = now_ms() + 2500;
	while (now_ms() < until) {
		uint8_t some[60000];
		uint64_t next = now_ms() + 100;
		ssize_t n;

		n = read(c->fd, some, sizeof(some));
		if (n > 0) {
			c->in = realloc(c->in, c->in_n + (size_t)n);
			memcpy(c->in + c->in_n, some, (size_t)n);
			c->in_n += (size_t)n;
			c->in_cap = c->in_n;
		}
		while (now_ms() < next)
			pump();
	}
	EXPECT_UINT(stats().broken, 0);
	c->deaf = false;
	WAIT_FOR(c->answers == 7);
	EXPECT_UINT(c->errors, 0);
	srv_end();
}

TEST(a_sender_that_stalls)
{
	struct client *half;
	struct client *idle;
	struct client *waiting;

	srv_defaults();
	srv.rpc_cfg.frame_stall_ms = 300;
	srv_begin();
	half = client();
	idle = client();
	waiting = client();
	expect_alive(half);
	expect_alive(idle);
	request(waiting, 1, "call",
		"['relay/o','run',{'steps':[['wait',2500]]}]");
	send_bytes(half, "\x94\x00\x01\xa4pi", 6);
	WAIT_FOR(half->closed);
	EXPECT_UINT(stats().broken, 1);
	/* Nothing begun, or everything sent: both may take their time. */
	WAIT_FOR(waiting->answers == 1);
	EXPECT_FALSE(idle->closed);
	expect_alive(idle);
	EXPECT_UINT(stats().broken, 1);
	srv_end();
}

/* Half of a large frame takes as much memory as has come. */
TEST(unfinished_requests_take_what_they_sent)
{
	static uint8_t part[700000];
	struct client *c[20];
	struct client *other;
	unsigned i;

	srv_defaults();
	srv_begin();
	other = client();
	memcpy(part, "\x94\x00\x01\xa4"
		     "call\x93\xa4kv/a\xa3put\x82\xa3key\xa1k\xa5value"
		     "\xc6\x00\x10\x00\x00",
	       36);
	for (i = 0; i < 20; i++) {
		c[i] = client();
		send_bytes(c[i], part, sizeof(part));
	}
	for (i = 0; i < 20; i++)
		WAIT_FOR(c[i]->out_n == 0);
	turns(20);
	EXPECT_TRUE(stats().in_held >= 20 * sizeof(part));
	EXPECT_TRUE(stats().in_held <= 2 * 20 * sizeof(part) + (1u << 20));
	expect_alive(other);
	for (i = 0; i < 20; i++)
		client_close(c[i]);
	WAIT_FOR(stats().connections == 1);
	EXPECT_TRUE(stats().in_held <= CONNECTION_IN_BYTES);
	srv_end();
}

/* ---- many ---- */

TEST(a_thousand_connections)
{
	struct rlimit files;
	unsigned n = 1000;
	unsigned i;

	srv_defaults();
	EXPECT_INT(getrlimit(RLIMIT_NOFILE, &files), 0);
	files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096;
	EXPECT_INT(setrlimit(RLIMIT_NOFILE, &files), 0);
	/* Two descriptors each. */
	if (n > (files.rlim_cur - 100) / 2)
		n = (unsigned)(files.rlim_cur - 100) / 2;
	srv_begin();
	for (i = 0; i < n; i++) {
		struct client *c = client();

		request(c, 1, "call", "['kv/a','incr',{'key':'n'}]");
		request(c, 2, "ping", "[]");
		pump();
	}
	for (i = 0; i < n; i++) {
		WAIT_FOR(clients[i].answers == 2);
		EXPECT_UINT(clients[i].errors, 0);
	}
	EXPECT_UINT(stats().connections, n);
	EXPECT_HAS(ask(&clients[0], "call", "['kv/a','get',{'key':'n'}]"),
		   n == 1000 ? "'value':1000" : "'value':");
	srv_end();
}

TEST(connections_have_a_bound)
{
	struct client *c[4];
	struct client *over;
	unsigned i;

	srv_defaults();
	srv.rpc_cfg.connections_max = 4;
	srv_begin();
	for (i = 0; i < 4; i++) {
		c[i] = client();
		expect_alive(c[i]);
	}
	over = client();
	WAIT_FOR(over->closed);
	EXPECT_UINT(stats().refused, 1);
	for (i = 0; i < 4; i++)
		expect_alive(c[i]);
	client_close(c[2]);
	WAIT_FOR(stats().connections == 3);
	expect_alive(client());
	srv_end();
}

/* ---- the socket ---- */

static void abandoned(void *arg)
{
	(void)arg;
}

TEST(the_socket)
{
	struct detail why = { { 0 }, { 0 } };
	char text[200];
	struct rpc *first;
	struct stat st;
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	FILE *f;
	int fd;

	srv_defaults();
	srv_begin();
	EXPECT_INT(lstat(srv.socket, &st), 0);
	EXPECT_UINT(st.st_mode & 07777, 0600);
	/* Somebody listens. */
	first = srv.rpc;
	EXPECT_RC(srv_listen(&why), RC_EXISTS);
	EXPECT_STR(why.field, "socket");
	EXPECT_HAS(why.text, "another process listens");
	EXPECT_TRUE(srv.rpc == first);
	turns(3);
	expect_alive(client());
	/* No path for a socket. */
	memset(text, 'x', sizeof(text));
	text[150] = '\0';
	text[0] = '/';
	why = (struct detail){ { 0 }, { 0 } };
	srv.rpc_cfg.socket_path = text;
	EXPECT_RC(srv_listen(&why), RC_INVALID);
	EXPECT_HAS(why.text, "107 bytes");
	/* No directory, a file. */
	snprintf(text, sizeof(text), "%.90s/none/s", runner_dir());
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(srv_listen(&why), RC_IO);
	EXPECT_HAS(why.text, text);
	turns(3);
	snprintf(text, sizeof(text), "%.90s/file", runner_dir());
	f = fopen(text, "w");
	EXPECT_NOT_NULL(f);
	fclose(f);
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(srv_listen(&why), RC_EXISTS);
	EXPECT_HAS(why.text, "is no socket");
	EXPECT_INT(access(text, F_OK), 0);
	/* One that nobody listens on is replaced. */
	snprintf(text, sizeof(text), "%.90s/dead", runner_dir());
	snprintf(a.sun_path, sizeof(a.sun_path), "%.100s", text);
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	EXPECT_INT(bind(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	close(fd);
	EXPECT_RC(srv_listen(&why), RC_OK);
	EXPECT_TRUE(srv.rpc != first);
	rpc_close(srv.rpc, abandoned, NULL);
	turns(3);
	EXPECT_TRUE(lstat(text, &st) != 0);
	srv.rpc = first;
	expect_alive(client());
	srv_end();
}

/* ---- the end ---- */

TEST(who_asks_while_it_stops)
{
	struct client *c;
	struct client *busy;
	uint32_t i;

	srv_defaults();
	srv_begin();
	c = client();
	busy = client();
	expect_alive(c);
	for (i = 0; i < 50; i++)
		request(busy, i, "call", "['kv/a','incr',{'key':'n'}]");
	request(busy, 50, "call",
		"['relay/o','run',{'steps':[['wait',300]]}]");
	WAIT_FOR(busy->answers >= 50);
	rpc_stop_listening(srv.rpc);
	core_close(srv.core, srv_core_closed, NULL);
	while (!srv.core_closed) {
		static const char *const methods[] = { "status", "metrics",
						       "objects", "ping" };

		if (c->answers < 2000)
			for (i = 0; i < 4; i++)
				request(c, i, methods[i], "[]");
		pump();
	}
	EXPECT_UINT(busy->answers, 51);
	EXPECT_UINT(busy->errors, 0);
	EXPECT_TRUE(c->answers > 10);
	rpc_close(srv.rpc, srv_rpc_closed, NULL);
	WAIT_FOR(srv.rpc_closed);
	WAIT_FOR(c->closed && busy->closed);
	metrics_close(srv.metrics);
	env_uv_close(&srv.env, srv_env_closed);
	uv_run(&srv.loop, UV_RUN_DEFAULT);
	EXPECT_INT(uv_loop_close(&srv.loop), 0);
	disk_posix_close(srv.posix);
	bind_free(srv.bind);
	srv_defaults();
}
