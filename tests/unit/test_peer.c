/*
 * Links between nodes of one process on loopback, and hands that speak their
 * language badly.
 */
#include "node/peer.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/os/env_uv.h"
#include "tests/lib/fault.h"
#include "tests/lib/negatives.h"
#include "tests/lib/test_ca.h"

#define NODES   4u
#define HANDS   300u
#define WAIT_MS 60000u
#define DEAD_MS 1200u

/* What came to one node over one link, from whomever. */
struct inbox {
	struct node *node;
	unsigned messages;
	unsigned changes;
	uint64_t epoch;             /* As it was told last, */
	uint64_t epochs[NODES + 1]; /* and of each. */
	uint64_t epoch_max;
	uint64_t next; /* Number that the next message begins with. */
	size_t bytes;
	uint8_t last[64];
	size_t last_n;
	bool inside; /* A callback runs. */
	bool drop;   /* At the next message. */
	bool close;  /* The whole node at the next message. */
	bool numbered;
};

struct node {
	uint64_t id;
	struct peers *peers;
	struct tls_context *tls;
	struct inbox in[LINKS];
	bool closed;
};

/* A peer made by hand. */
struct hand {
	int fd;
	struct tls *tls;
	bool deaf;
	bool closed;
	enum rc rc;
	struct detail why;
	size_t got;
};

static uv_loop_t loop;
static struct env_uv env;
static struct test_ca *ca;
static struct node nodes[NODES + 1];
static struct hand hands[HANDS];
static unsigned hands_n;

static uint64_t now_ms(void)
{
	return env_now_ms(&env.env);
}

static const char *path(const char *name, const char *end)
{
	static char texts[4][400];
	static unsigned next;
	char *text = texts[next++ % 4];

	snprintf(text, 400, "%s/%s.%s", runner_dir(), name, end);
	return text;
}

static struct tls_context *context_of(const char *ca_name, const char *name)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c = NULL;

	if (tls_context_new(path(ca_name, "crt"), path(name, "crt"),
			    path(name, "key"), &c, &why) != RC_OK)
		FAIL("%s: %s: %s", name, why.field, why.text);
	return c;
}

static void node_cert(const char *name, const char *cluster, uint64_t id,
		      long to_s)
{
	char uri[200];
	struct test_leaf leaf = { .uri = uri, .to_s = to_s };

	snprintf(uri, sizeof(uri), "spiffe://%s/node/%" PRIu64, cluster, id);
	test_cert(ca, runner_dir(), name, &leaf);
}

static void begin(void)
{
	uint64_t id;

	(void)signal(SIGPIPE, SIG_IGN);
	memset(nodes, 0, sizeof(nodes));
	memset(&env, 0, sizeof(env));
	hands_n = 0;
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_RC(env_uv_open(&env, &loop), RC_OK);
	ca = test_ca_new(runner_dir(), "ca");
	for (id = 1; id <= NODES; id++) {
		char name[16];

		snprintf(name, sizeof(name), "node%u", (unsigned)id);
		node_cert(name, TEST_CLUSTER, id, 86400);
	}
}

static void received(void *arg, uint64_t node_id, uint64_t epoch, const void *p,
		     size_t n);
static void changed(void *arg, uint64_t node_id, uint64_t epoch);
static void node_closed(void *arg);

static enum rc open_at(struct node *n, uint64_t id, const char *host,
		       uint16_t port, const struct peer_address *peers,
		       size_t peers_n, struct detail *why)
{
	struct peers_config cfg = { .node_id = id,
				    .cluster = TEST_CLUSTER,
				    .listen_host = host,
				    .listen_port = port,
				    .peers = peers,
				    .peers_n = peers_n,
				    .dead_ms = DEAD_MS };
	enum link_kind k;
	enum rc rc;

	n->id = id;
	rc = peers_open(&loop, &env.env, &cfg, n->tls, &n->peers, why);
	if (rc != RC_OK)
		return rc;
	for (k = LINK_RAFT; k < LINKS; k++) {
		struct link *l = peers_link(n->peers, k);

		n->in[k].node = n;
		l->received = received;
		l->changed = changed;
		l->arg = &n->in[k];
	}
	return RC_OK;
}

/* Node `id` with the peers whose bits are set, on their ports so far. */
static struct node *node_open(uint64_t id, unsigned peers)
{
	struct peer_address list[NODES];
	struct detail why = { { 0 }, { 0 } };
	struct node *n = &nodes[id];
	char name[16];
	uint64_t i;
	size_t k = 0;

	for (i = 1; i <= NODES; i++) {
		if ((peers & 1u << i) == 0)
			continue;
		list[k] = (struct peer_address){ .id = i, .host = "127.0.0.1" };
		if (nodes[i].peers != NULL)
			list[k].port = peers_port(nodes[i].peers);
		k++;
	}
	snprintf(name, sizeof(name), "node%u", (unsigned)id);
	if (n->tls == NULL)
		n->tls = context_of("ca", name);
	if (open_at(n, id, "127.0.0.1", 0, list, k, &why) != RC_OK)
		FAIL("node %u: %s", (unsigned)id, why.text);
	return n;
}

static void hand_pump(struct hand *h)
{
	static uint8_t buf[65536];
	const uint8_t *p;
	ssize_t k;
	size_t n;

	if (h->closed)
		return;
	tls_output(h->tls, &p, &n);
	if (n > 0 && (k = send(h->fd, p, n, MSG_NOSIGNAL)) > 0)
		tls_sent(h->tls, (size_t)k);
	if (h->deaf)
		return;
	k = recv(h->fd, buf, sizeof(buf), 0);
	if (k == 0 || (k < 0 && errno != EAGAIN))
		h->closed = true;
	if (k > 0 && h->rc == RC_OK)
		h->rc = tls_input(h->tls, buf, (size_t)k, &h->why);
	if (k > 0)
		h->got += (size_t)k;
}

static void pump(void)
{
	unsigned i;
	struct pollfd fd;

	uv_run(&loop, UV_RUN_NOWAIT);
	for (i = 0; i < hands_n; i++)
		hand_pump(&hands[i]);
	fd.fd = uv_backend_fd(&loop);
	fd.events = POLLIN;
	poll(&fd, 1, 1);
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

/* What is not to happen has had its time. */
static void pump_ms(uint64_t ms)
{
	uint64_t until = now_ms() + ms;

	while (now_ms() < until)
		pump();
}

static int port_fd(uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	EXPECT_TRUE(fd >= 0);
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) != 0)
		FAIL("connect: %s", strerror(errno));
	EXPECT_INT(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	return fd;
}

static struct hand *hand_of(struct tls_context *tls, uint16_t port)
{
	struct hand *h = &hands[hands_n++];

	CHECK(hands_n <= HANDS);
	memset(h, 0, sizeof(*h));
	h->fd = port_fd(port);
	EXPECT_RC(tls_new(tls, false, &h->tls), RC_OK);
	return h;
}

static struct hand *hand(const char *name, uint16_t port)
{
	struct tls_context *c = context_of("ca", name);
	struct hand *h = hand_of(c, port);

	tls_context_free(c);
	return h;
}

/* Up, as the link `kind`. */
static struct hand *hand_up(const char *name, uint16_t port,
			    enum link_kind kind)
{
	struct hand *h = hand(name, port);
	uint8_t byte = (uint8_t)(kind + 1);
	uint8_t back = 0;

	WAIT_FOR(tls_ready(h->tls));
	EXPECT_RC(tls_write(h->tls, &byte, 1), RC_OK);
	WAIT_FOR(tls_read(h->tls, &back, 1) == 1 || h->closed);
	EXPECT_UINT(back, byte);
	return h;
}

static void hand_say(struct hand *h, const void *p, size_t n)
{
	EXPECT_RC(tls_write(h->tls, p, n), RC_OK);
}

static void hands_close(void)
{
	unsigned i;

	for (i = 0; i < hands_n; i++) {
		close(hands[i].fd);
		tls_free(hands[i].tls);
	}
	hands_n = 0;
}

static void env_closed(struct env_uv *e)
{
	(void)e;
}

static void end(void)
{
	uint64_t id;

	for (id = 0; id <= NODES; id++) {
		struct node *n = &nodes[id];

		if (n->peers != NULL && !n->in[0].close) {
			peers_close(n->peers, node_closed, n);
			WAIT_FOR(n->closed);
		}
		tls_context_free(n->tls);
		n->tls = NULL;
	}
	hands_close();
	env_uv_close(&env, env_closed);
	uv_run(&loop, UV_RUN_DEFAULT);
	EXPECT_INT(uv_loop_close(&loop), 0);
	test_ca_free(ca);
}

static void node_closed(void *arg)
{
	struct node *n = arg;

	n->closed = true;
	n->peers = NULL;
}

static void received(void *arg, uint64_t node_id, uint64_t epoch, const void *p,
		     size_t n)
{
	struct inbox *in = arg;
	struct link *l = peers_link(in->node->peers,
				    (enum link_kind)(in - in->node->in));
	uint64_t number;

	EXPECT_FALSE(in->inside);
	EXPECT_UINT(epoch, l->ops->epoch(l, node_id));
	EXPECT_UINT(epoch, in->epochs[node_id]);
	in->inside = true;
	in->messages++;
	in->bytes += n;
	in->last_n = n;
	memcpy(in->last, p, n < sizeof(in->last) ? n : sizeof(in->last));
	if (in->numbered) {
		EXPECT_TRUE(n >= sizeof(number));
		memcpy(&number, p, sizeof(number));
		EXPECT_UINT(number, in->next);
		in->next++;
	}
	if (in->drop) {
		in->drop = false;
		l->ops->drop(l, node_id);
		EXPECT_UINT(l->ops->epoch(l, node_id), 0);
		EXPECT_UINT(l->ops->room(l, node_id), 0);
		EXPECT_RC(l->ops->send(l, node_id, "x", 1), RC_NOT_FOUND);
		l->ops->drop(l, node_id);
	}
	if (in->close)
		peers_close(in->node->peers, node_closed, in->node);
	in->inside = false;
}

static void changed(void *arg, uint64_t node_id, uint64_t epoch)
{
	struct inbox *in = arg;

	EXPECT_FALSE(in->inside);
	/* Each end is told before the next begin, and epochs only grow. */
	EXPECT_TRUE(in->epochs[node_id] == 0 || epoch == 0);
	EXPECT_TRUE(epoch == 0 || epoch > in->epoch_max);
	if (epoch > in->epoch_max)
		in->epoch_max = epoch;
	in->changes++;
	in->epoch = epoch;
	in->epochs[node_id] = epoch;
}

static enum rc say(struct node *n, enum link_kind kind, uint64_t to,
		   const void *p, size_t len)
{
	struct link *l = peers_link(n->peers, kind);

	return l->ops->send(l, to, p, len);
}

static struct peer_stats stats(struct node *n, unsigned i)
{
	struct peer_stats s[NODES];

	EXPECT_TRUE(peers_stats(n->peers, s, NODES) > i);
	return s[i];
}

static void up_1_2(void)
{
	node_open(2, 1u << 1);
	node_open(1, 1u << 2);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch != 0);
	WAIT_FOR(nodes[1].in[LINK_BULK].epoch != 0);
	WAIT_FOR(nodes[2].in[LINK_RAFT].epoch != 0);
	WAIT_FOR(nodes[2].in[LINK_BULK].epoch != 0);
}

/* ---- between nodes ---- */

TEST(two_nodes_two_links)
{
	struct peer_stats s;
	struct link *l;

	begin();
	node_open(2, 1u << 1);
	l = peers_link(nodes[2].peers, LINK_RAFT);
	EXPECT_UINT(l->ops->epoch(l, 1), 0);
	EXPECT_UINT(l->ops->room(l, 1), 0);
	EXPECT_RC(say(&nodes[2], LINK_RAFT, 1, "x", 1), RC_NOT_FOUND);
	node_open(1, 1u << 2);
	WAIT_FOR(nodes[1].in[0].epoch != 0 && nodes[1].in[1].epoch != 0 &&
		 nodes[2].in[0].epoch != 0 && nodes[2].in[1].epoch != 0);
	EXPECT_UINT(l->ops->epoch(l, 1), nodes[2].in[LINK_RAFT].epoch);
	EXPECT_UINT(l->ops->room(l, 1), LINK_MESSAGE_BYTES_MAX);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "vote", 4), RC_OK);
	EXPECT_RC(say(&nodes[1], LINK_BULK, 2, "call", 4), RC_OK);
	EXPECT_RC(say(&nodes[2], LINK_RAFT, 1, "granted", 7), RC_OK);
	EXPECT_UINT(nodes[2].in[LINK_RAFT].messages, 0);
	WAIT_FOR(nodes[2].in[LINK_RAFT].messages == 1);
	WAIT_FOR(nodes[2].in[LINK_BULK].messages == 1);
	WAIT_FOR(nodes[1].in[LINK_RAFT].messages == 1);
	EXPECT_MEM(nodes[2].in[LINK_RAFT].last, "vote", 4);
	EXPECT_MEM(nodes[2].in[LINK_BULK].last, "call", 4);
	EXPECT_MEM(nodes[1].in[LINK_RAFT].last, "granted", 7);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 3, "x", 1), RC_NOT_FOUND);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 1, "x", 1), RC_NOT_FOUND);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "", 0), RC_INVALID);
	s = stats(&nodes[1], 0);
	EXPECT_UINT(s.node_id, 2);
	EXPECT_TRUE(s.up[LINK_RAFT] && s.up[LINK_BULK]);
	EXPECT_UINT(s.connects, 2);
	EXPECT_TRUE(s.bytes_in > 0 && s.bytes_out > 0);
	EXPECT_UINT(s.dropped + s.refused, 0);
	EXPECT_UINT(s.expires_ms, tls_context_expires_ms(nodes[2].tls));
	end();
}

/* In order, whole, each once, whatever their size. */
TEST(messages_of_every_size)
{
	static uint8_t p[LINK_MESSAGE_BYTES_MAX + 1];
	static const size_t sizes[] = { 8,       9,      100,    16383,
					16384,   16385,  65536,  300000,
					1 << 20, 262140, 262144, 8u << 20 };
	struct inbox *in = &nodes[2].in[LINK_BULK];
	size_t total = 0;
	uint64_t i;

	begin();
	up_1_2();
	in->numbered = true;
	nodes[1].in[LINK_RAFT].numbered = true;
	EXPECT_RC(say(&nodes[1], LINK_BULK, 2, p, sizeof(p)), RC_INVALID);
	for (i = 0; i < 3000; i++) {
		size_t n = sizes[i % (i % 100 == 0 ? ARRAY_LEN(sizes) : 4)];

		memcpy(p, &i, sizeof(i));
		/* Back, too, and on the other link. */
		EXPECT_RC(say(&nodes[2], LINK_RAFT, 1, p, 8), RC_OK);
		while (say(&nodes[1], LINK_BULK, 2, p, n) != RC_OK)
			pump();
		total += n;
		if (i % 64 == 0)
			pump();
	}
	WAIT_FOR(in->messages == 3000);
	EXPECT_UINT(in->bytes, total);
	WAIT_FOR(nodes[1].in[LINK_RAFT].messages == 3000);
	EXPECT_UINT(in->changes, 1);
	end();
}

TEST(four_nodes)
{
	uint64_t id;
	uint64_t to;

	begin();
	/* The highest first: its port is known to those that connect. */
	for (id = NODES; id > 0; id--)
		node_open(id, 0x1eu & ~(1u << id));
	for (id = 1; id <= NODES; id++)
		WAIT_FOR(nodes[id].in[LINK_RAFT].changes == NODES - 1);
	for (id = 1; id <= NODES; id++)
		WAIT_FOR(nodes[id].in[LINK_BULK].changes == NODES - 1);
	for (id = 1; id <= NODES; id++)
		for (to = 1; to <= NODES; to++)
			EXPECT_RC(say(&nodes[id], LINK_RAFT, to, "x", 1),
				  to == id ? RC_NOT_FOUND : RC_OK);
	for (id = 1; id <= NODES; id++)
		WAIT_FOR(nodes[id].in[LINK_RAFT].messages == NODES - 1);
	end();
}

/* Silence on both links for longer than the dead time: signs of life. */
TEST(idle_links_stay)
{
	begin();
	up_1_2();
	pump_ms(3 * DEAD_MS);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].changes, 1);
	EXPECT_UINT(nodes[2].in[LINK_BULK].changes, 1);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].messages, 0);
	EXPECT_UINT(stats(&nodes[1], 0).connects, 2);
	end();
}

TEST(a_peer_that_comes_back)
{
	uint64_t epoch;
	uint16_t port;
	struct peer_address at = { .id = 1, .host = "127.0.0.1" };
	struct detail why = { { 0 }, { 0 } };

	begin();
	up_1_2();
	epoch = nodes[1].in[LINK_RAFT].epoch;
	port = peers_port(nodes[2].peers);
	peers_close(nodes[2].peers, node_closed, &nodes[2]);
	WAIT_FOR(nodes[2].closed);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch == 0);
	WAIT_FOR(nodes[1].in[LINK_BULK].epoch == 0);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "x", 1), RC_NOT_FOUND);
	EXPECT_FALSE(stats(&nodes[1], 0).up[LINK_RAFT]);
	pump_ms(200);
	memset(nodes[2].in, 0, sizeof(nodes[2].in));
	nodes[2].closed = false;
	EXPECT_RC(open_at(&nodes[2], 2, "127.0.0.1", port, &at, 1, &why),
		  RC_OK);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch > epoch);
	WAIT_FOR(nodes[1].in[LINK_BULK].epoch > epoch);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "x", 1), RC_OK);
	WAIT_FOR(nodes[2].in[LINK_RAFT].messages == 1);
	end();
}

/* Who said what it must not is cut off; the next connection is another epoch.
 */
TEST(drop)
{
	struct inbox *in = &nodes[2].in[LINK_RAFT];
	uint64_t epoch;

	begin();
	up_1_2();
	epoch = in->epoch;
	in->drop = true;
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "a", 1), RC_OK);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "b", 1), RC_OK);
	WAIT_FOR(in->epoch == 0);
	EXPECT_UINT(in->messages, 1);
	WAIT_FOR(in->epoch > epoch);
	EXPECT_UINT(in->changes, 3);
	EXPECT_UINT(in->messages, 1);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch != 0);
	EXPECT_UINT(nodes[2].in[LINK_BULK].changes, 1);
	end();
}

/* The side that connects can drop as well; pauses grow. */
TEST(dropped_again_and_again)
{
	struct inbox *in = &nodes[1].in[LINK_RAFT];
	uint64_t began;
	unsigned i;

	begin();
	up_1_2();
	began = now_ms();
	for (i = 0; i < 6; i++) {
		unsigned messages = in->messages;

		in->drop = true;
		EXPECT_RC(say(&nodes[2], LINK_RAFT, 1, "x", 1), RC_OK);
		WAIT_FOR(in->messages == messages + 1 && in->epoch == 0);
		WAIT_FOR(in->epoch != 0 && nodes[2].in[LINK_RAFT].epoch != 0 &&
			 nodes[2].in[LINK_RAFT].changes == in->changes);
	}
	/* Three quarters of 20 + 40 + 80 + 160 + 320 + 640 at least. */
	EXPECT_TRUE(now_ms() - began >= 945);
	end();
}

TEST(closed_from_inside)
{
	begin();
	up_1_2();
	nodes[2].in[LINK_RAFT].close = true;
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "a", 1), RC_OK);
	EXPECT_RC(say(&nodes[1], LINK_RAFT, 2, "b", 1), RC_OK);
	WAIT_FOR(nodes[2].closed);
	EXPECT_UINT(nodes[2].in[LINK_RAFT].messages, 1);
	EXPECT_UINT(nodes[2].in[LINK_RAFT].changes, 1);
	end();
}

TEST(a_name_instead_of_an_address)
{
	struct peer_address at = { .id = 2, .host = "localhost" };
	struct detail why = { { 0 }, { 0 } };

	begin();
	node_open(2, 1u << 1);
	at.port = peers_port(nodes[2].peers);
	nodes[1].tls = context_of("ca", "node1");
	EXPECT_RC(open_at(&nodes[1], 1, "localhost", 0, &at, 1, &why), RC_OK);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch != 0);
	WAIT_FOR(nodes[2].in[LINK_BULK].epoch != 0);
	end();
}

/* A name that there is not; and the end while it is looked for. */
TEST(a_name_that_is_none)
{
	struct peer_address at[2] = {
		{ .id = 2, .host = "no-such-host.invalid", .port = 1 },
		{ .id = 3, .host = "127.0.0.1", .port = 1 },
	};
	struct detail why = { { 0 }, { 0 } };

	begin();
	nodes[1].tls = context_of("ca", "node1");
	EXPECT_RC(open_at(&nodes[1], 1, "127.0.0.1", 0, at, 2, &why), RC_OK);
	pump_ms(100);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].changes, 0);
	EXPECT_UINT(stats(&nodes[1], 0).connects, 0);
	end();
}

TEST(ports)
{
	struct detail why = { { 0 }, { 0 } };
	struct node other = { 0 };

	begin();
	node_open(2, 1u << 1);
	other.tls = nodes[2].tls;
	EXPECT_RC(open_at(&other, 2, "127.0.0.1", peers_port(nodes[2].peers),
			  NULL, 0, &why),
		  RC_EXISTS);
	EXPECT_STR(why.field, "listen.peer");
	EXPECT_HAS(why.text, "in use");
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(open_at(&other, 2, "no-such-host.invalid", 0, NULL, 0, &why),
		  RC_INVALID);
	EXPECT_STR(why.field, "listen.peer");
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(open_at(&other, 2, "203.0.113.1", 0, NULL, 0, &why), RC_IO);
	end();
}

/* ---- who is refused ---- */

struct stranger {
	const char *what;
	const char *cluster;
	uint64_t id;
};

static void expect_refused(struct node *n, struct hand *h, const char *what)
{
	uint64_t refused = peers_refused(n->peers);
	uint8_t kind = 1;

	runner_context("%s", what);
	WAIT_FOR(tls_ready(h->tls) || h->closed);
	if (tls_ready(h->tls))
		(void)tls_write(h->tls, &kind, 1);
	WAIT_FOR(h->closed || n->in[LINK_RAFT].changes > 0);
	EXPECT_TRUE(h->closed);
	WAIT_FOR(peers_refused(n->peers) > refused);
	EXPECT_UINT(n->in[LINK_RAFT].changes, 0);
	EXPECT_UINT(n->in[LINK_BULK].changes, 0);
	EXPECT_UINT(tls_read(h->tls, &kind, 1), 0);
	runner_context("%s", "");
}

TEST(strangers_at_the_port)
{
	static const struct stranger strangers[] = {
		{ "a node nobody configured", TEST_CLUSTER, 9 },
		{ "ourselves", TEST_CLUSTER, 3 },
		{ "one with a higher id", TEST_CLUSTER, 4 },
		{ "a node of another cluster",
		  "ffeeddccbbaa99887766554433221100", 1 },
	};
	static const char *const uris[] = {
		"spiffe://" TEST_CLUSTER "/node/01",
		"spiffe://" TEST_CLUSTER "/node/1/x",
		"spiffe://" TEST_CLUSTER "/node/",
		"spiffe://" TEST_CLUSTER
		"/tenant/default/env/dev/client/node/1",
		"spiffe://" TEST_CLUSTER "/tenant/default/env/dev/client/c",
	};
	struct tls_context *c;
	struct test_ca *other;
	struct node *n;
	uint16_t port;
	size_t i;

	begin();
	n = node_open(3, 1u << 1 | 1u << 2 | 1u << 4);
	port = peers_port(n->peers);
	for (i = 0; i < ARRAY_LEN(strangers); i++) {
		node_cert("stranger", strangers[i].cluster, strangers[i].id,
			  86400);
		expect_refused(n, hand("stranger", port), strangers[i].what);
	}
	for (i = 0; i < ARRAY_LEN(uris); i++) {
		test_cert(ca, runner_dir(), "stranger",
			  &(struct test_leaf){ .uri = uris[i] });
		expect_refused(n, hand("stranger", port), uris[i]);
	}
	/* Ours by name, not by signature. */
	other = test_ca_new(runner_dir(), "other");
	test_cert(other, runner_dir(), "stranger",
		  &(struct test_leaf){ .uri = "spiffe://" TEST_CLUSTER
					      "/node/1" });
	{
		/* It believes us, so that we must refuse. */
		FILE *to = fopen(path("other", "crt"), "a");

		EXPECT_INT(PEM_write_X509(to, ca->cert), 1);
		fclose(to);
	}
	c = context_of("other", "stranger");
	expect_refused(n, hand_of(c, port), "another CA");
	tls_context_free(c);
	test_ca_free(other);
	/* One that may is let in all the while. */
	(void)hand_up("node1", port, LINK_RAFT);
	EXPECT_UINT(n->in[LINK_RAFT].changes, 1);
	end();
}

TEST(certificates_of_every_kind_of_wrong)
{
	struct negative_cas cas;
	struct node *n;
	size_t i;

	begin();
	n = node_open(2, 1u << 1);
	negative_cas_new(&cas, runner_dir(), ca);
	for (i = 0; i <= ARRAY_LEN(negatives); i++) {
		uint64_t refused = peers_refused(n->peers);
		int fd = port_fd(peers_port(n->peers));
		const char *name = "";
		struct raw r;

		runner_context("%zu", i);
		if (i < ARRAY_LEN(negatives)) {
			negative_cert(&negatives[i], &cas, runner_dir());
			name = "bad";
		}
		raw_new(&r, runner_dir(), name, false);
		while (peers_refused(n->peers) == refused) {
			(void)raw_step(&r, fd);
			pump();
		}
		raw_free(&r);
		close(fd);
	}
	runner_context("%s", "");
	negative_cas_free(&cas);
	EXPECT_UINT(n->in[LINK_RAFT].changes, 0);
	end();
}

/* Another node answers where we connect: it is not the one. */
TEST(another_node_at_the_address)
{
	begin();
	/* Node 2's place is taken by one that holds node 3's certificate. */
	nodes[2].tls = context_of("ca", "node3");
	node_open(2, 1u << 1);
	node_open(1, 1u << 2);
	WAIT_FOR(stats(&nodes[1], 0).refused >= 2 ||
		 nodes[1].in[LINK_RAFT].changes > 0);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].changes, 0);
	EXPECT_UINT(nodes[2].in[LINK_RAFT].changes, 0);
	EXPECT_UINT(stats(&nodes[1], 0).connects, 0);
	end();
}

TEST(without_the_rule_any_name_does)
{
	begin();
	node_cert("stranger", TEST_CLUSTER, 9, 86400);
	node_open(3, 1u << 1);
	mutant_now = MUTANT_peer_any_name;
	(void)hand_up("stranger", peers_port(nodes[3].peers), LINK_RAFT);
	mutant_now = MUTANT_none;
	EXPECT_UINT(nodes[3].in[LINK_RAFT].changes, 1);
	end();
}

/* ---- connections ---- */

TEST(a_newer_connection_replaces_the_older)
{
	struct hand *a;
	struct hand *b;
	struct inbox *in = &nodes[2].in[LINK_RAFT];
	uint64_t epoch;

	begin();
	node_open(2, 1u << 1);
	a = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	WAIT_FOR(in->epoch != 0);
	epoch = in->epoch;
	hand_say(a, "\1\0\0\0a", 5);
	WAIT_FOR(in->messages == 1);
	b = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	EXPECT_TRUE(in->epoch > epoch);
	EXPECT_UINT(in->changes, 3);
	WAIT_FOR(a->closed);
	hand_say(b, "\1\0\0\0b", 5);
	WAIT_FOR(in->messages == 2);
	/* The other link is another matter. */
	(void)hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	EXPECT_FALSE(b->closed);
	EXPECT_UINT(in->changes, 3);
	end();
}

TEST(bytes_that_no_peer_sends)
{
	static const struct {
		const char *what;
		const char *p;
		size_t n;
	} table[] = {
		{ "link 0", "\0", 1 },
		{ "link 3", "\3", 1 },
		{ "link 255", "\xff", 1 },
		{ "a message of 4 GiB", "\1\xff\xff\xff\xff", 5 },
		{ "a message of 8 MiB and a byte", "\1\1\0\x80\0", 5 },
	};
	struct hand *h;
	size_t i;

	begin();
	node_open(2, 1u << 1);
	for (i = 0; i < ARRAY_LEN(table); i++) {
		runner_context("%s", table[i].what);
		h = hand("node1", peers_port(nodes[2].peers));
		WAIT_FOR(tls_ready(h->tls));
		hand_say(h, table[i].p, table[i].n);
		WAIT_FOR(h->closed);
		WAIT_FOR(nodes[2].in[LINK_RAFT].epoch == 0);
	}
	runner_context("%s", "");
	EXPECT_UINT(nodes[2].in[LINK_RAFT].messages, 0);
	/* What is no TLS at all. */
	h = hand("node1", peers_port(nodes[2].peers));
	EXPECT_INT(send(h->fd, "GET / HTTP/1.1\r\n\r\n", 18, 0), 18);
	WAIT_FOR(h->closed);
	/* Messages of no length are signs of life. */
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	hand_say(h, "\0\0\0\0\0\0\0\0\2\0\0\0ab", 14);
	WAIT_FOR(nodes[2].in[LINK_RAFT].messages == 1);
	EXPECT_UINT(nodes[2].in[LINK_RAFT].last_n, 2);
	end();
}

/* NW5: the other side is there no more and nobody says so. */
static char down_line[512];

static void keep_down(void *arg, const char *line, size_t n)
{
	(void)arg;
	if (memmem(line, n, "\"peer_down\"", 11) != NULL)
		snprintf(down_line, sizeof(down_line), "%.*s", (int)n, line);
}

static uint64_t no_time(void *arg)
{
	(void)arg;
	return 0;
}

TEST(a_reset_is_told_as_one)
{
	const struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	struct inbox *in = &nodes[2].in[LINK_BULK];
	struct hand *h;

	begin();
	log_setup(LOG_INFO_LEVEL, keep_down, no_time, NULL);
	node_open(2, 1u << 1);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	WAIT_FOR(in->epoch != 0);
	EXPECT_INT(
		setsockopt(h->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)),
		0);
	close(h->fd);
	h->fd = -1;
	h->closed = true;
	WAIT_FOR(in->epoch == 0);
	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	EXPECT_HAS(down_line, "Connection reset by peer");
	end();
}

static unsigned ups;
static unsigned downs;
static unsigned unwelcome;

static void count_lines(void *arg, const char *line, size_t n)
{
	(void)arg;
	ups += memmem(line, n, "\"peer_up\"", 9) != NULL;
	downs += memmem(line, n, "\"peer_down\"", 11) != NULL;
	unwelcome += memmem(line, n, "\"peer_unwelcome\"", 16) != NULL;
}

/* As one does that refuses this node, for as long as nobody looks. */
TEST(a_peer_that_ends_each_connection)
{
	struct inbox *in = &nodes[2].in[LINK_BULK];
	uint64_t until;
	struct hand *h;
	unsigned i;

	begin();
	ups = downs = unwelcome = 0;
	log_setup(LOG_INFO_LEVEL, count_lines, no_time, NULL);
	node_open(2, 1u << 1);
	for (i = 0; i < 6; i++) {
		h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
		WAIT_FOR(in->epoch != 0);
		close(h->fd);
		h->fd = -1;
		h->closed = true;
		WAIT_FOR(in->epoch == 0);
	}
	EXPECT_UINT(ups, 3);
	EXPECT_UINT(downs, 3);
	EXPECT_UINT(unwelcome, 1);
	/* One that lasts is news again, and so is its end. */
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	WAIT_FOR(in->epoch != 0);
	EXPECT_UINT(ups, 3);
	until = now_ms() + WAIT_MS;
	while (ups == 3 && now_ms() < until) {
		hand_say(h, "\0\0\0\0", 4);
		pump_ms(50);
	}
	EXPECT_UINT(ups, 4);
	close(h->fd);
	h->fd = -1;
	h->closed = true;
	WAIT_FOR(in->epoch == 0);
	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	EXPECT_UINT(downs, 4);
	EXPECT_UINT(unwelcome, 1);
	end();
}

TEST(nothing_comes_for_the_dead_time)
{
	struct inbox *in = &nodes[2].in[LINK_BULK];
	struct hand *h;
	uint64_t began;

	begin();
	node_open(2, 1u << 1);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	began = now_ms();
	WAIT_FOR(in->epoch == 0 || now_ms() - began > 3 * DEAD_MS);
	EXPECT_UINT(in->epoch, 0);
	EXPECT_TRUE(now_ms() - began >= DEAD_MS - 50);
	WAIT_FOR(h->closed);
	end();
}

/* What came while nobody looked is no silence: this process stands still for
 * longer than the dead time, with bytes in the kernel. */
TEST(what_has_come_is_no_silence)
{
	struct inbox *in = &nodes[2].in[LINK_RAFT];
	struct hand *h;
	struct pollfd fd;
	uint64_t until;

	begin();
	node_open(2, 1u << 1);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	hand_say(h, "\1\0\0\0a", 5);
	hand_pump(h);
	until = now_ms() + DEAD_MS + 300;
	while (now_ms() < until) {
		fd = (struct pollfd){ .fd = -1 };
		poll(&fd, 1, 50);
	}
	pump();
	pump();
	EXPECT_UINT(in->messages, 1);
	EXPECT_TRUE(in->epoch != 0);
	end();
}

/* A peer that takes nothing: the queue has its bound, then the line ends. */
TEST(a_peer_that_does_not_read)
{
	static uint8_t p[1 << 20];
	struct inbox *in = &nodes[2].in[LINK_BULK];
	struct link *l;
	struct hand *h;
	unsigned sent = 0;
	uint64_t began;

	begin();
	node_open(2, 1u << 1);
	l = peers_link(nodes[2].peers, LINK_BULK);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	h->deaf = true;
	while (say(&nodes[2], LINK_BULK, 1, p, sizeof(p)) == RC_OK) {
		EXPECT_TRUE(stats(&nodes[2], 0).queued <=
			    PEER_OUT_BYTES_MAX + (64u << 10));
		sent++;
		pump();
	}
	/* A MiB each, and what the kernel took. */
	EXPECT_TRUE(sent >= 31 && sent < 48);
	EXPECT_TRUE(l->ops->room(l, 1) < sizeof(p));
	EXPECT_RC(say(&nodes[2], LINK_BULK, 1, p, sizeof(p)), RC_OVERLOADED);
	EXPECT_UINT(stats(&nodes[2], 0).dropped, 2);
	EXPECT_TRUE(in->epoch != 0);
	/* It goes on saying that it lives. */
	began = now_ms();
	while (in->epoch != 0 && now_ms() - began < WAIT_MS) {
		hand_say(h, "\0\0\0\0", 4);
		pump();
	}
	EXPECT_UINT(in->epoch, 0);
	EXPECT_TRUE(now_ms() - began <= 3 * DEAD_MS);
	EXPECT_UINT(stats(&nodes[2], 0).queued, 0);
	end();
}

/* Slow, and yet it goes on. */
TEST(a_slow_reader_keeps_its_line)
{
	static uint8_t p[1 << 20];
	struct hand *h;
	uint64_t until;
	unsigned sent = 0;

	begin();
	node_open(2, 1u << 1);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_BULK);
	h->deaf = true;
	while (say(&nodes[2], LINK_BULK, 1, p, sizeof(p)) == RC_OK)
		sent++;
	until = now_ms() + 3 * DEAD_MS;
	while (now_ms() < until) {
		uint64_t next = now_ms() + DEAD_MS / 3;
		unsigned i;

		hand_say(h, "\0\0\0\0", 4);
		h->deaf = false;
		for (i = 0; i < 40; i++)
			hand_pump(h);
		h->deaf = true;
		while (now_ms() < next)
			pump();
	}
	EXPECT_FALSE(h->closed);
	EXPECT_UINT(nodes[2].in[LINK_BULK].changes, 1);
	h->deaf = false;
	until = now_ms();
	while (h->got < sent * sizeof(p)) {
		if (now_ms() - until > 100) {
			hand_say(h, "\0\0\0\0", 4);
			until = now_ms();
		}
		pump();
		EXPECT_FALSE(h->closed);
	}
	end();
}

/* ---- floods ---- */

/* Half handshakes take what they are worth, and nobody else's place. */
TEST(half_handshakes)
{
	struct hand *h[250];
	uint64_t began;
	unsigned open = 0;
	unsigned i;

	begin();
	node_open(2, 1u << 1);
	for (i = 0; i < ARRAY_LEN(h); i++) {
		const uint8_t *p;
		size_t n;

		h[i] = hand("node1", peers_port(nodes[2].peers));
		/* A third says nothing, a third a part, a third is too late
		 * with the kind. */
		if (i % 3 == 2)
			continue;
		tls_output(h[i]->tls, &p, &n);
		if (i % 3 == 1)
			EXPECT_INT(send(h[i]->fd, p, 20, MSG_NOSIGNAL), 20);
		tls_sent(h[i]->tls, n);
		if (i % 10 == 0)
			pump();
	}
	began = now_ms();
	/* All the while a real one comes in. */
	node_open(1, 1u << 2);
	WAIT_FOR(nodes[1].in[LINK_RAFT].epoch != 0);
	WAIT_FOR(nodes[1].in[LINK_BULK].epoch != 0);
	EXPECT_TRUE(now_ms() - began < 3000);
	for (i = 0; i < ARRAY_LEN(h); i++)
		open += !h[i]->closed;
	EXPECT_TRUE(open <= PEER_HANDSHAKES_MAX + ARRAY_LEN(h) / 3);
	for (i = 0; i < ARRAY_LEN(h); i++)
		WAIT_FOR(h[i]->closed);
	EXPECT_TRUE(now_ms() - began >= PEER_HANDSHAKE_MS - 1500);
	EXPECT_TRUE(now_ms() - began < 2 * PEER_HANDSHAKE_MS);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].changes, 1);
	end();
}

/* ---- certificates over time ---- */

TEST(a_certificate_that_ends)
{
	struct inbox *in = &nodes[2].in[LINK_RAFT];
	struct hand *h;
	uint64_t began;

	begin();
	node_open(2, 1u << 1);
	node_cert("node1", TEST_CLUSTER, 1, 3);
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	began = now_ms();
	while (in->epoch != 0 && now_ms() - began < WAIT_MS) {
		hand_say(h, "\0\0\0\0", 4);
		pump();
	}
	EXPECT_UINT(in->epoch, 0);
	EXPECT_TRUE(env_wall_ms(&env.env) > stats(&nodes[2], 0).expires_ms);
	EXPECT_TRUE(now_ms() - began < 5000);
	/* Without the rule it stays. */
	node_cert("node1", TEST_CLUSTER, 1, 3);
	mutant_now = MUTANT_expired_stays;
	h = hand_up("node1", peers_port(nodes[2].peers), LINK_RAFT);
	began = now_ms();
	while (now_ms() - began < 4000) {
		hand_say(h, "\0\0\0\0", 4);
		pump();
	}
	EXPECT_TRUE(in->epoch != 0);
	mutant_now = MUTANT_none;
	end();
}

/* A renewed certificate: one connection after the other is made anew. */
static void renew(struct node *n, const char *name, long to_s)
{
	struct tls_context *old = n->tls;

	node_cert(name, TEST_CLUSTER, n->id, to_s);
	n->tls = context_of("ca", name);
	peers_tls(n->peers, n->tls);
	tls_context_free(old);
}

TEST(renewal)
{
	uint64_t want;
	unsigned i;

	begin();
	up_1_2();
	for (i = 0; i < 2; i++) {
		struct node *a = &nodes[1 + i];
		struct node *b = &nodes[2 - i];
		uint64_t epochs[LINKS] = { b->in[0].epoch, b->in[1].epoch };

		renew(a, i == 0 ? "node1" : "node2", 100000 + (long)i * 1000);
		want = tls_context_expires_ms(a->tls);
		WAIT_FOR(b->in[LINK_RAFT].epoch > epochs[0]);
		WAIT_FOR(b->in[LINK_BULK].epoch > epochs[1]);
		EXPECT_UINT(stats(b, 0).expires_ms, want);
		WAIT_FOR(a->in[LINK_RAFT].epoch != 0);
		WAIT_FOR(a->in[LINK_BULK].epoch != 0);
	}
	/* And then there is peace. */
	i = nodes[1].in[LINK_RAFT].changes;
	pump_ms(1500);
	EXPECT_UINT(nodes[1].in[LINK_RAFT].changes, i);
	EXPECT_RC(say(&nodes[1], LINK_BULK, 2, "x", 1), RC_OK);
	WAIT_FOR(nodes[2].in[LINK_BULK].messages == 1);
	end();
}

/* The n-th allocation of ours fails: no peers, or a connection less; with
 * memory again everything comes back. */
TEST(no_memory)
{
	struct peer_address at = { .id = 2, .host = "127.0.0.1" };
	struct detail why = { { 0 }, { 0 } };
	struct node *n = &nodes[1];
	bool fired = true;
	uint64_t i;

	begin();
	node_open(2, 1u << 1);
	at.port = peers_port(nodes[2].peers);
	n->tls = context_of("ca", "node1");
	for (i = 1; fired; i++) {
		enum rc rc;

		runner_context("allocation %" PRIu64, i);
		fault_alloc(i);
		rc = open_at(n, 1, "127.0.0.1", 0, &at, 1, &why);
		EXPECT_TRUE(rc == RC_OK || (rc == RC_NOMEM && fault_fired()));
		if (rc == RC_OK) {
			unsigned turns;

			for (turns = 0; turns < 50 && !fault_fired(); turns++) {
				(void)say(n, LINK_RAFT, 2, "ping", 4);
				pump();
			}
		}
		fired = fault_off();
		if (rc != RC_OK)
			continue;
		WAIT_FOR(n->in[LINK_RAFT].epoch != 0);
		WAIT_FOR(n->in[LINK_BULK].epoch != 0);
		EXPECT_RC(say(n, LINK_RAFT, 2, "pong", 4), RC_OK);
		WAIT_FOR(nodes[2].in[LINK_RAFT].last_n == 4 &&
			 memcmp(nodes[2].in[LINK_RAFT].last, "pong", 4) == 0);
		nodes[2].in[LINK_RAFT].last_n = 0;
		peers_close(n->peers, node_closed, n);
		WAIT_FOR(n->closed);
		memset(n->in, 0, sizeof(n->in));
		n->closed = false;
	}
	runner_context("%s", "");
	EXPECT_TRUE(i > 10);
	end();
}
