/*
 * srv_rig - the server on its socket and its port, and clients of it: real
 * loop, real files, real sockets, all in the test's own thread.
 *
 * client() is one on the Unix socket or, with SRV_TLS defined, one over TCP and
 * TLS: the same tests then hold for both.
 *
 * A test begins with srv_defaults(), changes srv.cfg and srv.rpc_cfg as it
 * wants, and srv_begin(); it ends with srv_end(). Nothing moves but in pump(),
 * which WAIT_FOR() calls. Header only; one translation unit.
 */
#ifndef TESTS_LIB_SRV_RIG_H
#define TESTS_LIB_SRV_RIG_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
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
#include "tests/lib/test_ca.h"

#define WAIT_MS  60000u
#define CLIENTS  1200u
#define ANSWERS  16384u
#define FRAME_ID 7u

#ifdef SRV_TLS
#define SRV_OVER_TLS true
#else
#define SRV_OVER_TLS false
#endif
#define SRV_CLIENT "spiffe://" TEST_CLUSTER "/tenant/default/env/dev/client/c-1"

/* ---- the server ---- */

struct srv {
	uv_loop_t loop;
	struct env_uv env;
	struct disk_posix *posix;
	struct bind *bind;
	struct core *core;
	struct metrics *metrics;
	struct rpc *rpc;
	struct rpc_config rpc_cfg;
	struct core_config cfg;
	struct test_ca *ca;
	struct tls_context *tls;
	struct tls_context *client_tls; /* Of client() over TLS. */
	char socket[100];
	char who[128];
	uint32_t rights; /* Of the own uid in default/dev. */
	bool ready;
	bool core_closed;
	bool rpc_closed;
};

/* Of this test. What a failed one leaves behind nobody touches again. */
static struct srv *srv_now;
#define srv (*srv_now)

/* One connection. Answers are kept whole, in the order they came. */
struct client {
	int fd;
	bool deaf;   /* Reads nothing. */
	bool closed; /* The server has closed. */
	struct tls *tls;
	enum rc tls_rc; /* What tls_input said last. */
	struct detail tls_why;
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

static inline uint64_t now_ms(void)
{
	return env_now_ms(&srv.env.env);
}

static inline void srv_ready(void *arg)
{
	(void)arg;
	srv.ready = true;
}

static inline void clients_forget(void)
{
	unsigned i;

	for (i = 0; i < clients_n; i++) {
		if (clients[i].fd >= 0)
			close(clients[i].fd);
		tls_free(clients[i].tls);
		free(clients[i].in);
		free(clients[i].out);
		free(clients[i].kept);
	}
	clients_n = 0;
}

static inline void srv_forget(void)
{
	clients_forget();
	free(srv_now);
	srv_now = NULL;
}

static inline void srv_defaults(void)
{
	clients_forget();
	srv_now = calloc(1, sizeof(*srv_now));
	EXPECT_NOT_NULL(srv_now);
	core_config_default(&srv.cfg);
	srv.cfg.reserve_bytes = 0;
	srv.cfg.calls_max = 16384 + 8 * 2048;
	srv.rights = RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN;
	snprintf(srv.socket, sizeof(srv.socket), "%.90s/s", runner_dir());
	srv.rpc_cfg = (struct rpc_config){ .socket_path = srv.socket,
					   .listen_host = "127.0.0.1",
					   .connections_max = CONNECTIONS_MAX,
					   .frame_stall_ms = FRAME_STALL_MS,
					   .write_stall_ms = WRITE_STALL_MS };
}

static inline void grant_to(const char *who, const char *tenant,
			    uint32_t rights)
{
	struct grant g = { .env = "dev", .cls = "*", .rights = rights };

	snprintf(g.principal, sizeof(g.principal), "%s", who);
	snprintf(g.tenant, sizeof(g.tenant), "%s", tenant);
	EXPECT_RC(bind_grant(srv.bind, &g, NULL), RC_OK);
}

static inline const char *srv_path(const char *name, const char *end)
{
	static char texts[4][400];
	static unsigned next;
	char *at = texts[next++ % 4];

	snprintf(at, 400, "%.250s/%.60s.%.10s", runner_dir(), name, end);
	return at;
}

/* Of the certificate NAME, which trusts what is in CA. */
static inline struct tls_context *srv_context(const char *ca, const char *name)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c = NULL;

	if (tls_context_new(srv_path(ca, "crt"), srv_path(name, "crt"),
			    srv_path(name, "key"), &c, &why) != RC_OK)
		FAIL("%s: %s: %s", name, why.field, why.text);
	return c;
}

static inline void srv_certs(void)
{
	static const char node[] = "spiffe://" TEST_CLUSTER "/node/1";
	const char *dir = runner_dir();

	srv.ca = test_ca_new(dir, "ca");
	test_cert(srv.ca, dir, "node1", &(struct test_leaf){ .uri = node });
	test_cert(
		srv.ca, dir, "client",
		&(struct test_leaf){ .uri = SRV_CLIENT, .eku = "clientAuth" });
	srv.tls = srv_context("ca", "node1");
	srv.client_tls = srv_context("ca", "client");
	srv.rpc_cfg.tls = srv.tls;
}

static inline enum rc srv_listen(struct detail *why)
{
	struct rpc_host host;

	metrics_host(srv.metrics, &host);
	return rpc_open(&srv.loop, &srv.env.env, srv.core, &srv.rpc_cfg, &host,
			&srv.rpc, why);
}

static inline void srv_core(void)
{
	struct identity id = { .node_id = 1,
			       .node_name = "n1",
			       .shards = 4,
			       .segment_bytes = 4u << 20 };
	struct detail why = { { 0 }, { 0 } };
	char path[300];

	(void)signal(SIGPIPE, SIG_IGN);
	EXPECT_RC(crypto_init(), RC_OK);
	EXPECT_RC(
		hex_decode(TEST_CLUSTER, 2 * ID_BYTES, id.cluster_id, ID_BYTES),
		RC_OK);
	srv_certs();
	EXPECT_INT(uv_loop_init(&srv.loop), 0);
	EXPECT_RC(env_uv_open(&srv.env, &srv.loop), RC_OK);
	EXPECT_RC(bind_new(&srv.bind), RC_OK);
	if (SRV_OVER_TLS)
		snprintf(srv.who, sizeof(srv.who), "%s", SRV_CLIENT);
	else
		snprintf(srv.who, sizeof(srv.who), "unix:n1:%u",
			 (unsigned)geteuid());
	if (srv.rights != 0)
		grant_to(srv.who, "default", srv.rights);
	snprintf(path, sizeof(path), "%s/data", runner_dir());
	EXPECT_RC(disk_posix_open(path, true, &srv.posix, &why), RC_OK);
	EXPECT_RC(core_format(disk_posix_disk(srv.posix), &srv.env.env, &id,
			      NULL, 0, &why),
		  RC_OK);
	if (core_open(&srv.env.env, disk_posix_disk(srv.posix), NULL, &srv.cfg,
		      srv.bind, srv_ready, NULL, &srv.core, &why) != RC_OK)
		FAIL("core_open: %s", why.text);
	while (!srv.ready)
		uv_run(&srv.loop, UV_RUN_ONCE);
	EXPECT_RC(metrics_open(&srv.loop, &srv.env, srv.core, &srv.metrics),
		  RC_OK);
}

static inline void srv_begin(void)
{
	struct detail why = { { 0 }, { 0 } };

	srv_core();
	if (srv_listen(&why) != RC_OK)
		FAIL("rpc_open: %s", why.text);
	metrics_rpc(srv.metrics, srv.rpc);
}

static inline void srv_core_closed(void *arg)
{
	(void)arg;
	srv.core_closed = true;
}

static inline void srv_rpc_closed(void *arg)
{
	(void)arg;
	srv.rpc_closed = true;
}

static inline void srv_env_closed(struct env_uv *e)
{
	(void)e;
}

static inline void srv_keys_free(void)
{
	tls_context_free(srv.tls);
	tls_context_free(srv.client_tls);
	test_ca_free(srv.ca);
}

static inline void srv_end(void)
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
	srv_keys_free();
	srv_forget();
}

static inline struct rpc_stats stats(void)
{
	struct rpc_stats s;

	rpc_stats(srv.rpc, &s);
	return s;
}

/* ---- clients ---- */

static inline struct client *client_new(int domain, const void *a,
					socklen_t len)
{
	struct client *c = &clients[clients_n++];

	CHECK(clients_n <= CLIENTS);
	memset(c, 0, sizeof(*c));
	frame_reader_init(&c->reader, 8u << 20);
	c->fd = socket(domain, SOCK_STREAM | SOCK_CLOEXEC, 0);
	EXPECT_TRUE(c->fd >= 0);
	if (connect(c->fd, a, len) != 0)
		FAIL("connect: %s", strerror(errno));
	EXPECT_INT(fcntl(c->fd, F_SETFL, O_NONBLOCK), 0);
	return c;
}

static inline struct client *client_unix(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", srv.socket);
	return client_new(AF_UNIX, &a, sizeof(a));
}

/* Without TLS: only a connection. */
static inline struct client *client_tcp(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(rpc_port(srv.rpc)) };

	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return client_new(AF_INET, &a, sizeof(a));
}

static inline struct client *client_tls(struct tls_context *tls)
{
	struct client *c = client_tcp();

	EXPECT_RC(tls_new(tls, false, &c->tls), RC_OK);
	return c;
}

static inline struct client *client(void)
{
	return SRV_OVER_TLS ? client_tls(srv.client_tls) : client_unix();
}

static inline void client_close(struct client *c)
{
	close(c->fd);
	c->fd = -1;
	c->closed = true;
}

/* Bytes that are no text. */
static inline void put_raw(void *to, const void *from, size_t n)
{
	memcpy(to, from, n);
}

static inline void send_bytes(struct client *c, const void *p, size_t n)
{
	uint8_t *grown = realloc(c->out, c->out_n + n);

	EXPECT_NOT_NULL(grown);
	c->out = grown;
	memcpy(c->out + c->out_n, p, n);
	c->out_n += n;
}

static inline void take_answer(struct client *c, const struct frame *f,
			       size_t used)
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

static inline bool client_parse(struct client *c)
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
		EXPECT_RC(
			frame_next(&c->reader, c->in, c->in_n, &f, &used, &why),
			RC_OK);
		take_answer(c, &f, used);
		frame_reader_init(&c->reader, 8u << 20);
		memmove(c->in, c->in + used, c->in_n - used);
		c->in_n -= used;
		any = true;
	}
	return any;
}

static inline void client_room(struct client *c, size_t n)
{
	if (c->in_cap - c->in_n >= n)
		return;
	c->in_cap = c->in_cap * 2 + n;
	c->in = realloc(c->in, c->in_cap);
	EXPECT_NOT_NULL(c->in);
}

/* At most `max` bytes of what has come. */
static inline bool client_read_some(struct client *c, size_t max)
{
	static uint8_t buf[65536];
	ssize_t n = read(c->fd, buf, max < sizeof(buf) ? max : sizeof(buf));

	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		c->closed = true;
		return true;
	}
	if (n < 0)
		return false;
	if (c->tls == NULL) {
		client_room(c, (size_t)n);
		memcpy(c->in + c->in_n, buf, (size_t)n);
		c->in_n += (size_t)n;
		return true;
	}
	if (c->tls_rc == RC_OK)
		c->tls_rc = tls_input(c->tls, buf, (size_t)n, &c->tls_why);
	do {
		client_room(c, 65536);
		max = tls_read(c->tls, c->in + c->in_n, c->in_cap - c->in_n);
		c->in_n += max;
	} while (max > 0);
	return true;
}

static inline bool client_read(struct client *c)
{
	if (!client_read_some(c, 65536))
		return false;
	(void)client_parse(c);
	return true;
}

/* The server has not all of it yet. */
static inline bool client_unsent(const struct client *c)
{
	const uint8_t *p;
	size_t n = 0;

	if (c->tls != NULL)
		tls_output(c->tls, &p, &n);
	return n > 0 || c->out_n > c->out_at;
}

static inline bool client_write(struct client *c)
{
	const uint8_t *p = c->out + c->out_at;
	size_t left = c->out_n - c->out_at;
	ssize_t n;

	if (c->tls != NULL) {
		if (left > 0 && tls_ready(c->tls)) {
			(void)tls_write(c->tls, p, left);
			c->out_at = c->out_n = 0;
		}
		tls_output(c->tls, &p, &left);
		if (left == 0)
			return false;
	}
	n = send(c->fd, p, left, MSG_NOSIGNAL);
	if (n > 0) {
		if (c->tls != NULL)
			tls_sent(c->tls, (size_t)n);
		else
			c->out_at += (size_t)n;
		if (c->out_at == c->out_n)
			c->out_at = c->out_n = 0;
		return true;
	}
	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		/* It hears why when it reads. */
		c->out_at = c->out_n = 0;
		if (c->tls != NULL)
			tls_sent(c->tls, left);
	}
	return false;
}

/* It sends no more, and still reads. All it has to say has been sent. */
static inline void client_half_close(struct client *c)
{
	if (c->tls != NULL) {
		tls_shutdown(c->tls);
		(void)client_write(c);
	}
	shutdown(c->fd, SHUT_WR);
}

/* Everybody goes on as far as it may; waits when nobody can. */
static inline void pump(void)
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
		if (client_unsent(c) && client_write(c))
			any = true;
		if (!c->deaf && client_read(c))
			any = true;
		if (c->closed)
			continue;
		fds[n].fd = c->fd;
		fds[n].events = (short)((c->deaf ? 0 : POLLIN) |
					(client_unsent(c) && (c->tls == NULL ||
							      tls_ready(c->tls))
						 ? POLLOUT
						 : 0));
		n++;
	}
	if (any)
		return;
	fds[n].fd = uv_backend_fd(&srv.loop);
	fds[n].events = POLLIN;
	i = (unsigned)uv_backend_timeout(&srv.loop);
	poll(fds, n + 1, i < 10 ? (int)i : 10);
}

#define WAIT_FOR(cond)                                        \
	do {                                                  \
		uint64_t wait_until = now_ms() + WAIT_MS;     \
                                                              \
		while (!(cond)) {                             \
			if (now_ms() > wait_until)            \
				FAIL("%s never came", #cond); \
			pump();                               \
		}                                             \
	} while (0)

/* So many turns of the loop go by. */
static inline void turns(unsigned n)
{
	while (n-- > 0)
		pump();
}

/* ---- requests ---- */

static inline void request_raw(struct client *c, uint32_t id,
			       const char *method, struct pack_bytes params)
{
	struct pack_w w;

	pack_w_init(&w, 64u << 20);
	frame_request(&w, id, method, strlen(method));
	pack_raw(&w, params.p, params.n);
	EXPECT_RC(w.rc, RC_OK);
	send_bytes(c, w.p, w.n);
	pack_w_release(&w);
}

static inline void request(struct client *c, uint32_t id, const char *method,
			   const char *params)
{
	struct pack_w w;

	pack_w_init(&w, 64u << 20);
	say_pack(&w, params);
	request_raw(c, id, method, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
}

static inline void notify(struct client *c, const char *method,
			  const char *params)
{
	struct pack_w w;

	pack_w_init(&w, 65536);
	frame_notify(&w, method, strlen(method));
	say_pack(&w, params);
	send_bytes(c, w.p, w.n);
	pack_w_release(&w);
}

/* Waits for the answer; NULL: an error, which is in c->error. */
static inline const char *ask(struct client *c, const char *method,
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

static inline void expect_ask(struct client *c, const char *method,
			      const char *params, const char *want)
{
	const char *got = ask(c, method, params);

	if (got == NULL)
		FAIL("%s %s: %s: %.*s", method, params, rc_name(c->error.code),
		     (int)c->error.message.n, (const char *)c->error.message.p);
	EXPECT_STR(got, want);
}

static inline void expect_error(struct client *c, const char *method,
				const char *params, enum rc rc,
				const char *field)
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

static inline void expect_alive(struct client *c)
{
	expect_ask(c, "ping", "[]", "null");
}

/* Every id below `n` was answered. */
static inline bool all_seen(const struct client *c, unsigned n)
{
	unsigned i;

	for (i = 0; i < n; i++)
		if ((c->seen[i / 8] & 1u << (i % 8)) == 0)
			return false;
	return true;
}

#endif
