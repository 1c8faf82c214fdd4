/*
 * The links to the other nodes. What goes over one, inside TLS:
 *
 *   kind      1 byte, from the side that connected: 1 Raft, 2 bulk
 *   kind      the same byte back: the other side takes it
 *   message   u32 little endian length, then that many bytes; any number of
 *             times, both ways. Length 0: a sign of life, nothing else.
 *
 * A connection:
 *
 *   CONNECTING --(writable)--> SHAKING --(TLS ready, right name)--> NAMED
 *                                 ^                                   |
 *   accepted ---------------------+            (kind, or kind back) --+-> UP
 *
 * Sockets are watched with uv_poll and read and written here: so no write is
 * under way behind our back, and before silence is concluded a last read can
 * tell what the kernel has.
 */
#include "node/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/proto/pack.h"
#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"

#define PEERS_MAGIC 0x50454552u
#define LANE_MAGIC  0x4c414e45u
#define LINE_MAGIC  0x4c494e45u

#define PAUSE_MIN_MS    20u
#define PAUSE_MAX_MS    1000u
#define CONNECT_MS      1000u
#define BRIEF_LIMIT     3u /* Connections, then they are no news. */
#define UNWELCOME_MS    60000u
#define RENEW_MS        500u
#define REFUSED_LOG_MS  1000u
#define READ_BYTES      (256u << 10)
#define READS_PER_TURN  8u
#define SEAL_BYTES      (256u << 10) /* Sealed ahead of the socket. */
#define ACCEPTS         16u          /* Per turn. */
#define QUEUE_KEEP      (1u << 20)
#define HEAD_BYTES      4u
#define SHAKE_BYTES_MAX (64u << 10)

struct lane;

enum line_state {
	LINE_CONNECTING,
	LINE_SHAKING,
	LINE_NAMED,
	LINE_UP,
};

/* One connection. It stays in the list until libuv has let go of it. */
struct line {
	uint32_t magic;
	enum line_state state;
	bool outbound;
	bool doomed;  /* Ends with this turn. */
	bool closing; /* Has ended. */
	bool dirty;   /* In the list of those with something to write. */
	int fd;
	int events; /* Watched for. */
	struct peers *peers;
	struct peer *peer; /* NULL: who it is is not known yet. */
	struct lane *lane; /* NULL: which link it is is not known yet. */
	struct tls *tls;   /* NULL: nothing came yet. */
	uint64_t epoch;
	uint64_t generation; /* Of our certificate. */
	uint64_t since_ms;   /* In this state. */
	uint64_t in_ms;      /* When something came last, */
	uint64_t out_ms;     /* and was sent. */
	uint64_t
		stuck_ms; /* Since when the socket takes nothing; 0: it does. */
	size_t shaken;    /* Bytes of its handshake. */
	struct pack_w out;  /* Messages of this turn. */
	struct pack_w wire; /* Those that are being sealed, from wire_at on. */
	size_t wire_at;
	uv_poll_t poll;
	char address[80];
	TAILQ_ENTRY(line) link;
	STAILQ_ENTRY(line) dirty_link;
};

/* One of the links to one peer. */
struct lane {
	uint32_t magic;
	uint32_t pause_ms;
	struct peer *peer;
	enum link_kind kind;
	struct line *up;
	struct line *dialing;
	bool resolving;
	bool dropped;      /* By who stands on it. */
	uint32_t attempts; /* To resolve its name. */
	uint64_t began_ms;
	/* A peer that refuses us ends each connection as soon as it is up. It
	 * cannot tell why, and two lines a second would tell nothing. */
	uint32_t brief; /* Such ones, one after the other. */
	uint64_t brief_log_ms;
	struct env_timer retry;
	uv_getaddrinfo_t resolve;
};

struct peer {
	struct peers *peers;
	struct peer_address at;
	char uri[TLS_URI_BYTES_MAX + 1];
	struct lane lanes[LINKS];
	struct peer_stats stats;
};

struct peer_link {
	struct link link;
	struct peers *peers;
	enum link_kind kind;
};

struct peers {
	uint32_t magic;
	uint32_t dead_ms;
	uint32_t tick_ms;
	uv_loop_t *loop;
	struct env *env;
	struct tls_context *tls;
	uint64_t generation; /* Of `tls`. */
	uint64_t renew_ms;   /* The next connection is made anew then. */
	uint64_t node_id;
	uint64_t epochs;
	bool closing;
	bool listening;
	int listen_fd;
	uint16_t port;
	uv_poll_t listener;
	uint32_t open_handles;
	uint32_t shaking; /* Accepted, and not known yet. */
	uint64_t refused; /* Of strangers. */
	uint64_t refused_log_ms;
	uint64_t refused_unsaid;
	struct peer_link links[LINKS];
	struct env_task send_task;
	struct env_timer sweep;
	TAILQ_HEAD(, line) lines;
	STAILQ_HEAD(, line) dirty;
	size_t peers_n;
	struct peer *peers;
	uint8_t *in; /* One read, of whichever connection. */
	void (*closed)(void *arg);
	void *closed_arg;
};

static void lane_dial(struct lane *l);
static void line_end(struct line *c, const char *why);
static void line_read(struct line *c);
static void line_watch(struct line *c);
static void line_polled(uv_poll_t *h, int status, int events);

static const char *kind_name(enum link_kind kind)
{
	return kind == LINK_RAFT ? "raft" : "bulk";
}

static uint64_t now_ms(const struct peers *ps)
{
	return env_now_ms(ps->env);
}

/* What was noted after `now` was asked for is no time ago. */
static uint64_t since(uint64_t now, uint64_t then)
{
	return now > then ? now - then : 0;
}

/* ------------------------------------------------------------ who is who ---
 */

static struct peer *peer_find(const struct peers *ps, uint64_t node_id)
{
	size_t i;

	for (i = 0; i < ps->peers_n; i++)
		if (ps->peers[i].at.id == node_id)
			return &ps->peers[i];
	return NULL;
}

static struct peer *peer_of_uri(const struct peers *ps, const char *uri)
{
	size_t i;

	for (i = 0; i < ps->peers_n; i++)
		if (strcmp(ps->peers[i].uri, uri) == 0)
			return &ps->peers[i];
	return NULL;
}

/* Whoever knocks may knock often: one line a second. */
static void log_refused(struct peers *ps, const struct line *c, const char *uri,
			const char *why)
{
	uint64_t now = now_ms(ps);

	if (ps->refused_log_ms != 0 &&
	    now - ps->refused_log_ms < REFUSED_LOG_MS) {
		ps->refused_unsaid++;
		return;
	}
	LOG_WARN("peer_refused", F("address", (const char *)c->address),
		 F("name", uri), F("why", why),
		 F("unsaid", ps->refused_unsaid));
	ps->refused_log_ms = now;
	ps->refused_unsaid = 0;
}

static void line_refuse(struct line *c, const char *uri, const char *why)
{
	struct peers *ps = c->peers;

	log_refused(ps, c, uri, why);
	if (c->peer != NULL)
		c->peer->stats.refused++;
	else
		ps->refused++;
	line_end(c, "its certificate is refused");
}

/* The connecting side wants one certain node, the accepting side one of those
 * that are to connect. */
static void line_name(struct line *c)
{
	struct peers *ps = c->peers;
	const char *uri = tls_uri(c->tls);
	struct peer *who = peer_of_uri(ps, uri);
	uint8_t kind;

	if (MUTANT(peer_any_name) && who == NULL)
		who = c->outbound ? c->peer : &ps->peers[0];
	if (who == NULL) {
		line_refuse(c, uri,
			    "it is no node that the configuration has "
			    "as a peer");
		return;
	}
	if (c->outbound && who != c->peer && !MUTANT(peer_any_name)) {
		line_refuse(c, uri, "another node answers at its address");
		return;
	}
	if (!c->outbound && who->at.id >= ps->node_id &&
	    !MUTANT(peer_any_name)) {
		line_refuse(c, uri, "the node with the lower id connects");
		return;
	}
	if (!c->outbound) {
		c->peer = who;
		ps->shaking--;
	}
	c->peer->stats.expires_ms = tls_peer_expires_ms(c->tls);
	c->state = LINE_NAMED;
	if (!c->outbound)
		return;
	kind = (uint8_t)(c->lane->kind + 1);
	if (tls_write(c->tls, &kind, 1) != RC_OK)
		line_end(c, "no memory");
}

/* --------------------------------------------------------------- writing ---
 */

static size_t line_unsent(const struct line *c)
{
	const uint8_t *p;
	size_t n = 0;

	if (c->tls != NULL)
		tls_output(c->tls, &p, &n);
	return n + c->out.n + (c->wire.n - c->wire_at);
}

static void line_dirty(struct line *c)
{
	struct peers *ps = c->peers;

	if (c->dirty)
		return;
	c->dirty = true;
	STAILQ_INSERT_TAIL(&ps->dirty, c, dirty_link);
	env_post(ps->env, &ps->send_task);
}

static void queue_empty(struct pack_w *w)
{
	if (w->cap > QUEUE_KEEP)
		pack_w_release(w);
	else
		pack_w_reset(w);
}

/* Seals a piece of what is queued. False: nothing is, or the line ended. */
static bool line_seal(struct line *c)
{
	struct pack_w swap;
	size_t n;

	if (c->wire_at == c->wire.n) {
		queue_empty(&c->wire);
		c->wire_at = 0;
		if (c->out.n == 0)
			return false;
		swap = c->wire;
		c->wire = c->out;
		c->out = swap;
	}
	n = c->wire.n - c->wire_at;
	if (n > SEAL_BYTES)
		n = SEAL_BYTES;
	if (tls_write(c->tls, c->wire.p + c->wire_at, n) != RC_OK) {
		line_end(c, "no memory");
		return false;
	}
	c->wire_at += n;
	return true;
}

/* As much as the socket takes. */
static void line_flush(struct line *c)
{
	struct peers *ps = c->peers;
	const uint8_t *p;
	ssize_t sent;
	size_t n;

	if (c->closing || c->tls == NULL)
		return;
	for (;;) {
		tls_output(c->tls, &p, &n);
		if (n == 0) {
			c->stuck_ms = 0;
			if (c->state != LINE_UP || !line_seal(c))
				break;
			continue;
		}
		sent = send(c->fd, p, n, MSG_NOSIGNAL);
		if (sent < 0 && errno == EINTR)
			continue;
		if (sent < 0 && errno != EAGAIN) {
			line_end(c, strerror(errno));
			return;
		}
		if (sent > 0) {
			tls_sent(c->tls, (size_t)sent);
			c->out_ms = now_ms(ps);
			c->stuck_ms = 0;
			if (c->peer != NULL)
				c->peer->stats.bytes_out += (uint64_t)sent;
		}
		if ((size_t)(sent > 0 ? sent : 0) < n) {
			if (c->stuck_ms == 0)
				c->stuck_ms = now_ms(ps);
			break;
		}
	}
	line_watch(c);
}

static void lines_send(struct env_task *t)
{
	struct peers *ps = CONTAINER_OF(t, struct peers, send_task);
	struct line *c;

	CHECK_OBJ(ps, PEERS_MAGIC);
	while ((c = STAILQ_FIRST(&ps->dirty)) != NULL) {
		STAILQ_REMOVE_HEAD(&ps->dirty, dirty_link);
		c->dirty = false;
		if (c->closing)
			continue;
		if (c->doomed)
			line_end(c, "it said what it must not");
		else
			line_flush(c);
	}
}

/* ------------------------------------------------------------- the vtable ---
 */

static struct line *link_line(struct link *l, uint64_t node_id,
			      struct peer **out)
{
	struct peer_link *pl = CONTAINER_OF(l, struct peer_link, link);
	struct peer *p = peer_find(pl->peers, node_id);
	struct line *c;

	CHECK_OBJ(pl->peers, PEERS_MAGIC);
	*out = p;
	if (p == NULL)
		return NULL;
	c = p->lanes[pl->kind].up;
	return c != NULL && !c->doomed ? c : NULL;
}

/* What a message's head and body still find room for. */
static size_t line_room(const struct line *c)
{
	size_t unsent = line_unsent(c) + HEAD_BYTES;

	return unsent < PEER_OUT_BYTES_MAX ? PEER_OUT_BYTES_MAX - unsent : 0;
}

static enum rc link_send(struct link *l, uint64_t node_id, const void *p,
			 size_t n)
{
	struct peer *peer;
	struct line *c = link_line(l, node_id, &peer);
	uint8_t head[HEAD_BYTES] = { (uint8_t)n, (uint8_t)(n >> 8),
				     (uint8_t)(n >> 16), (uint8_t)(n >> 24) };

	if (c == NULL)
		return RC_NOT_FOUND;
	if (n == 0 || n > LINK_MESSAGE_BYTES_MAX)
		return RC_INVALID;
	if (n > line_room(c) || !pack_w_reserve(&c->out, HEAD_BYTES + n)) {
		c->out.rc = RC_OK; /* What is in it is whole. */
		peer->stats.dropped++;
		return RC_OVERLOADED;
	}
	pack_raw(&c->out, head, HEAD_BYTES);
	pack_raw(&c->out, p, n);
	line_dirty(c);
	return RC_OK;
}

static uint64_t link_epoch(struct link *l, uint64_t node_id)
{
	struct peer *peer;
	struct line *c = link_line(l, node_id, &peer);

	return c != NULL ? c->epoch : 0;
}

static size_t link_room(struct link *l, uint64_t node_id)
{
	struct peer *peer;
	struct line *c = link_line(l, node_id, &peer);
	size_t room = c != NULL ? line_room(c) : 0;

	return room < LINK_MESSAGE_BYTES_MAX ? room : LINK_MESSAGE_BYTES_MAX;
}

static void link_drop(struct link *l, uint64_t node_id)
{
	struct peer *peer;
	struct line *c = link_line(l, node_id, &peer);

	if (c == NULL)
		return;
	c->doomed = true;
	c->lane->dropped = true;
	line_dirty(c);
}

static const struct link_ops peer_link_ops = {
	.send = link_send,
	.epoch = link_epoch,
	.room = link_room,
	.drop = link_drop,
};

static void tell_changed(struct lane *l, uint64_t epoch)
{
	struct peers *ps = l->peer->peers;
	struct link *link = &ps->links[l->kind].link;

	if (!ps->closing && link->changed != NULL)
		link->changed(link->arg, l->peer->at.id, epoch);
}

/* ------------------------------------------------------------ lines begin ---
 */

static void line_watch(struct line *c)
{
	int want = UV_READABLE;

	if (c->closing)
		return;
	if (c->state == LINE_CONNECTING || c->stuck_ms != 0)
		want |= UV_WRITABLE;
	if (want == c->events)
		return;
	if (uv_poll_start(&c->poll, want, line_polled) < 0)
		line_end(c, "it cannot be watched");
	else
		c->events = want;
}

static void address_text(const struct sockaddr *a, char out[80])
{
	char host[64] = "?";
	unsigned port = 0;

	if (a->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)a;

		uv_ip4_name(in, host, sizeof(host));
		port = ntohs(in->sin_port);
	} else if (a->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)a;

		uv_ip6_name(in6, host, sizeof(host));
		port = ntohs(in6->sin6_port);
	}
	snprintf(out, 80, strchr(host, ':') != NULL ? "[%s]:%u" : "%s:%u", host,
		 port);
}

/* A frame must not wait for others, and what is not acknowledged in time will
 * not be. */
static void socket_options(const struct peers *ps, int fd)
{
	unsigned user_ms = ps->dead_ms;
	int on = 1;

	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms,
			 sizeof(user_ms));
}

/* Takes `fd` over, also when it fails. */
static struct line *line_new(struct peers *ps, int fd,
			     const struct sockaddr *address)
{
	struct line *c = calloc(1, sizeof(*c));

	if (c == NULL || uv_poll_init(ps->loop, &c->poll, fd) < 0) {
		free(c);
		close(fd);
		return NULL;
	}
	c->magic = LINE_MAGIC;
	c->poll.data = c;
	c->fd = fd;
	c->peers = ps;
	c->generation = ps->generation;
	c->since_ms = now_ms(ps);
	c->in_ms = c->since_ms;
	c->out_ms = c->since_ms;
	pack_w_init(&c->out, 2 * PEER_OUT_BYTES_MAX);
	pack_w_init(&c->wire, 2 * PEER_OUT_BYTES_MAX);
	address_text(address, c->address);
	socket_options(ps, fd);
	ps->open_handles++;
	TAILQ_INSERT_TAIL(&ps->lines, c, link);
	return c;
}

static void log_up(const struct line *c)
{
	LOG_INFO("peer_up", F("node", c->peer->at.id),
		 F("link", kind_name(c->lane->kind)), F("epoch", c->epoch),
		 F("address", (const char *)c->address));
}

/* A newer connection is the better one: the other side would not have made it
 * if the old one were any good to it. */
static void line_up(struct line *c)
{
	struct peers *ps = c->peers;
	struct lane *l = c->lane;

	if (l->up != NULL)
		line_end(l->up, "a newer connection replaces it");
	if (c->closing)
		return;
	if (l->dialing == c)
		l->dialing = NULL;
	c->state = LINE_UP;
	c->since_ms = now_ms(ps);
	c->in_ms = c->since_ms;
	c->epoch = ++ps->epochs;
	l->up = c;
	l->dropped = false;
	l->began_ms = c->since_ms;
	l->peer->stats.connects++;
	if (l->brief < BRIEF_LIMIT)
		log_up(c);
	tell_changed(l, c->epoch);
}

/* It has been up for long enough. */
static void lane_lasts(struct lane *l)
{
	if (l->brief >= BRIEF_LIMIT)
		log_up(l->up);
	l->brief = 0;
}

static void lane_was_brief(struct lane *l)
{
	uint64_t now = now_ms(l->peer->peers);

	if (l->peer->peers->closing)
		return;
	if (l->brief < BRIEF_LIMIT)
		l->brief++;
	if (l->dropped || l->brief < BRIEF_LIMIT ||
	    (l->brief_log_ms != 0 && now - l->brief_log_ms < UNWELCOME_MS))
		return;
	l->brief_log_ms = now;
	LOG_WARN("peer_unwelcome", F("node", l->peer->at.id),
		 F("link", kind_name(l->kind)),
		 F("why", "it ends each connection at once: its log says why, "
			  "in a line `peer_refused`"));
}

/* The byte that says which link it is, in either direction. */
static void line_kind(struct line *c)
{
	uint8_t kind = 0;

	if (tls_read(c->tls, &kind, 1) == 0)
		return;
	if (c->outbound) {
		if (kind != c->lane->kind + 1) {
			line_end(c, "it answered for another link");
			return;
		}
		line_up(c);
		return;
	}
	if (kind == 0 || kind > LINKS) {
		line_end(c, "it asks for a link that does not exist");
		return;
	}
	if (tls_write(c->tls, &kind, 1) != RC_OK) {
		line_end(c, "no memory");
		return;
	}
	c->lane = &c->peer->lanes[kind - 1];
	line_up(c);
}

/* --------------------------------------------------------------- reading ---
 */

static uint32_t le32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

/* Whole messages, in place. */
static void line_messages(struct line *c)
{
	struct peers *ps = c->peers;
	struct link *link = &ps->links[c->lane->kind].link;
	const uint8_t *p;
	uint32_t len;
	size_t n;

	while (!c->closing && !c->doomed) {
		tls_plain(c->tls, &p, &n);
		if (n < HEAD_BYTES)
			return;
		len = le32(p);
		if (len > LINK_MESSAGE_BYTES_MAX) {
			line_end(c, "a message is too large");
			return;
		}
		if (n - HEAD_BYTES < len)
			return;
		if (len > 0 && link->received != NULL)
			link->received(link->arg, c->peer->at.id, c->epoch,
				       p + HEAD_BYTES, len);
		tls_took(c->tls, HEAD_BYTES + len);
	}
}

/* Ciphertext has come. */
static void line_took(struct line *c, const uint8_t *p, size_t n)
{
	struct peers *ps = c->peers;
	struct detail why = { { 0 }, { 0 } };
	const uint8_t *out;
	size_t left;
	enum rc rc;

	if (c->tls == NULL && tls_new(ps->tls, true, &c->tls) != RC_OK) {
		line_end(c, "no memory");
		return;
	}
	if (c->state == LINE_SHAKING) {
		c->shaken += n;
		if (c->shaken > SHAKE_BYTES_MAX) {
			line_end(c, "its handshake is too long");
			return;
		}
	}
	rc = tls_input(c->tls, p, n, &why);
	if (rc == RC_DENIED) {
		line_flush(c); /* The alert. */
		if (!c->closing)
			line_refuse(c, "", why.text);
		return;
	}
	if (c->state == LINE_SHAKING && tls_ready(c->tls)) {
		tls_keep(c->tls);
		line_name(c);
	}
	if (!c->closing && c->state == LINE_NAMED)
		line_kind(c);
	if (!c->closing && c->state == LINE_UP)
		line_messages(c);
	if (c->closing)
		return;
	tls_output(c->tls, &out, &left);
	if (left > 0)
		line_flush(c);
	if (c->closing)
		return;
	if (rc != RC_OK)
		line_end(c, why.text[0] != '\0' ? why.text : rc_text(rc));
	else if (tls_ended(c->tls))
		line_end(c, "the other side has ended it");
}

/* What the kernel has, as much as is one connection's share of a turn. */
static void line_read(struct line *c)
{
	struct peers *ps = c->peers;
	unsigned i;

	for (i = 0; i < READS_PER_TURN && !c->closing && !c->doomed; i++) {
		ssize_t n = recv(c->fd, ps->in, READ_BYTES, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			line_end(c, n == 0 ? "the other side has closed it"
					   : strerror(errno));
			return;
		}
		c->in_ms = now_ms(ps);
		if (c->peer != NULL)
			c->peer->stats.bytes_in += (uint64_t)n;
		line_took(c, ps->in, (size_t)n);
		if ((size_t)n < READ_BYTES)
			return;
	}
}

/* What the kernel has against it; 0: nothing. */
static int line_error(const struct line *c)
{
	socklen_t len = sizeof(int);
	int e = 0;

	if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &len) != 0)
		e = errno;
	return e;
}

static void line_connected(struct line *c)
{
	int e = line_error(c);

	if (e != 0) {
		line_end(c, strerror(e));
		return;
	}
	if (tls_new(c->peers->tls, false, &c->tls) != RC_OK) {
		line_end(c, "no memory");
		return;
	}
	c->state = LINE_SHAKING;
	c->since_ms = now_ms(c->peers);
	line_flush(c);
}

static void line_polled(uv_poll_t *h, int status, int events)
{
	struct line *c = h->data;
	int e;

	CHECK_OBJ(c, LINE_MAGIC);
	if (c->closing)
		return;
	if (c->state == LINE_CONNECTING) {
		line_connected(c);
		return;
	}
	if (status < 0) {
		/* libuv says EBADF whatever it is. */
		e = line_error(c);
		line_end(c, e != 0 ? strerror(e) : "the connection has failed");
		return;
	}
	if ((events & UV_READABLE) != 0)
		line_read(c);
	if (!c->closing && !c->doomed && (events & UV_WRITABLE) != 0)
		line_flush(c);
}

/* -------------------------------------------------------------- lines end ---
 */

static void peers_maybe_closed(struct peers *ps)
{
	if (!ps->closing || ps->open_handles > 0)
		return;
	ps->magic = 0;
	ps->closed(ps->closed_arg); /* The last that is heard of it. */
	free(ps->in);
	free(ps->peers);
	free(ps);
}

static void line_closed(uv_handle_t *h)
{
	struct line *c = h->data;
	struct peers *ps = c->peers;

	CHECK_OBJ(c, LINE_MAGIC);
	TAILQ_REMOVE(&ps->lines, c, link);
	close(c->fd);
	tls_free(c->tls);
	pack_w_release(&c->out);
	pack_w_release(&c->wire);
	c->magic = 0;
	free(c);
	ps->open_handles--;
	peers_maybe_closed(ps);
}

/* A quarter more or less, so that two that lost each other at once do not try
 * in step. */
static void lane_retry(struct lane *l)
{
	struct peers *ps = l->peer->peers;
	uint32_t r;

	if (ps->closing || ps->node_id > l->peer->at.id || l->dialing != NULL ||
	    l->resolving || l->retry.running)
		return;
	env_random(ps->env, &r, sizeof(r));
	env_timer_start(&l->retry, now_ms(ps) + l->pause_ms * 3 / 4 +
					   r % (l->pause_ms / 2 + 1));
	l->pause_ms =
		l->pause_ms * 2 < PAUSE_MAX_MS ? l->pause_ms * 2 : PAUSE_MAX_MS;
}

/* Those that are to connect and cannot say so at each attempt. */
static void log_down(const struct line *c, const char *why)
{
	if (c->state == LINE_UP && c->lane != NULL &&
	    c->lane->brief < BRIEF_LIMIT)
		LOG_INFO("peer_down", F("node", c->peer->at.id),
			 F("link", kind_name(c->lane->kind)),
			 F("epoch", c->epoch), F("why", why));
	else
		LOG_DEBUG("peer_failed", F("address", (const char *)c->address),
			  F("why", why));
}

static void line_goodbye(struct line *c)
{
	const uint8_t *p;
	size_t n;

	if (c->tls == NULL || c->stuck_ms != 0)
		return;
	tls_shutdown(c->tls);
	tls_output(c->tls, &p, &n);
	if (n > 0 && send(c->fd, p, n, MSG_NOSIGNAL) < 0)
		return; /* Then it finds out by itself. */
}

static void line_end(struct line *c, const char *why)
{
	struct peers *ps = c->peers;
	struct lane *l = c->lane;
	bool was_up = l != NULL && l->up == c;

	if (c->closing)
		return;
	c->closing = true;
	log_down(c, why);
	line_goodbye(c);
	if (c->dirty) {
		STAILQ_REMOVE(&ps->dirty, c, line, dirty_link);
		c->dirty = false;
	}
	if (!c->outbound && c->peer == NULL)
		ps->shaking--;
	uv_close((uv_handle_t *)&c->poll, line_closed);
	if (l == NULL)
		return;
	if (l->dialing == c)
		l->dialing = NULL;
	if (was_up) {
		l->up = NULL;
		/* It was some good: the next may come soon. */
		if (now_ms(ps) - l->began_ms < PAUSE_MAX_MS)
			lane_was_brief(l);
		else if (!l->dropped)
			l->pause_ms = PAUSE_MIN_MS;
	}
	if (l->up == NULL)
		lane_retry(l);
	if (was_up)
		tell_changed(l, 0); /* May change everything: nothing after. */
}

/* --------------------------------------------------------------- dialing ---
 */

/* RC_OK: an attempt is under way, and ends by line_end() or line_up(). */
static enum rc lane_connect(struct lane *l, const struct sockaddr *a,
			    socklen_t len)
{
	struct peers *ps = l->peer->peers;
	int fd = socket(a->sa_family,
			SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct line *c;

	if (fd < 0)
		return RC_IO;
	c = line_new(ps, fd, a);
	if (c == NULL)
		return RC_NOMEM;
	c->outbound = true;
	c->peer = l->peer;
	c->lane = l;
	l->dialing = c;
	if (connect(fd, a, len) != 0 && errno != EINPROGRESS) {
		line_end(c, strerror(errno));
		return RC_OK;
	}
	line_watch(c);
	return RC_OK;
}

/* A name may have addresses that lead nowhere: each attempt takes the next. */
static const struct addrinfo *nth(const struct addrinfo *list, uint32_t i)
{
	const struct addrinfo *a;
	uint32_t n = 0;

	for (a = list; a != NULL; a = a->ai_next)
		n++;
	PRE(n > 0);
	for (i %= n, a = list; i > 0; i--)
		a = a->ai_next;
	return a;
}

static void lane_resolved(uv_getaddrinfo_t *req, int status,
			  struct addrinfo *list)
{
	const struct addrinfo *a;
	struct lane *l = req->data;
	struct peers *ps = l->peer->peers;
	enum rc rc = RC_IO;

	CHECK_OBJ(l, LANE_MAGIC);
	l->resolving = false;
	ps->open_handles--;
	if (status == 0 && list != NULL && !ps->closing) {
		a = nth(list, l->attempts++);
		rc = lane_connect(l, a->ai_addr, a->ai_addrlen);
	}
	uv_freeaddrinfo(list);
	if (rc != RC_OK)
		lane_retry(l);
	peers_maybe_closed(ps);
}

static enum rc numeric(const char *host, uint16_t port,
		       struct sockaddr_storage *out, socklen_t *len)
{
	if (uv_ip4_addr(host, port, (struct sockaddr_in *)out) == 0) {
		*len = sizeof(struct sockaddr_in);
		return RC_OK;
	}
	if (uv_ip6_addr(host, port, (struct sockaddr_in6 *)out) == 0) {
		*len = sizeof(struct sockaddr_in6);
		return RC_OK;
	}
	return RC_INVALID;
}

static void lane_dial(struct lane *l)
{
	struct peers *ps = l->peer->peers;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	struct sockaddr_storage a = { 0 };
	socklen_t len;
	char port[8];

	if (ps->closing || l->dialing != NULL || l->resolving)
		return;
	if (numeric(l->peer->at.host, l->peer->at.port, &a, &len) == RC_OK) {
		if (lane_connect(l, (struct sockaddr *)&a, len) != RC_OK)
			lane_retry(l);
		return;
	}
	snprintf(port, sizeof(port), "%u", l->peer->at.port);
	l->resolve.data = l;
	if (uv_getaddrinfo(ps->loop, &l->resolve, lane_resolved,
			   l->peer->at.host, port, &hints) < 0) {
		lane_retry(l);
		return;
	}
	l->resolving = true;
	ps->open_handles++;
}

static void lane_again(struct env_timer *t)
{
	struct lane *l = CONTAINER_OF(t, struct lane, retry);

	CHECK_OBJ(l, LANE_MAGIC);
	if (l->up == NULL)
		lane_dial(l);
}

/* ------------------------------------------------------------- accepting ---
 */

/* The one that has had the most time gives way. */
static void make_room(struct peers *ps)
{
	struct line *c;

	if (ps->shaking < PEER_HANDSHAKES_MAX)
		return;
	TAILQ_FOREACH(c, &ps->lines, link)
	if (!c->closing && !c->outbound && c->peer == NULL) {
		line_end(c, "there are too many handshakes");
		return;
	}
}

static void peers_accept(uv_poll_t *h, int status, int events)
{
	struct peers *ps = h->data;
	unsigned i;

	CHECK_OBJ(ps, PEERS_MAGIC);
	(void)events;
	for (i = 0; status == 0 && i < ACCEPTS; i++) {
		struct sockaddr_storage a = { 0 };
		socklen_t len = sizeof(a);
		struct line *c;
		int fd = accept4(ps->listen_fd, (struct sockaddr *)&a, &len,
				 SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0 && errno == EINTR)
			continue;
		if (fd < 0 && (errno == EMFILE || errno == ENFILE ||
			       errno == ENOBUFS || errno == ENOMEM))
			/* The sweep tries again. */
			(void)uv_poll_stop(&ps->listener);
		if (fd < 0)
			return;
		make_room(ps);
		c = line_new(ps, fd, (struct sockaddr *)&a);
		if (c == NULL)
			continue;
		c->state = LINE_SHAKING;
		ps->shaking++;
		line_watch(c);
	}
}

static enum rc listen_at(struct peers *ps, const struct addrinfo *a,
			 const struct peers_config *cfg, struct detail *why)
{
	struct sockaddr_storage bound = { 0 };
	struct sockaddr_in in = { 0 };
	socklen_t len = sizeof(bound);
	const char *step = "make a socket for";
	int on = 1;
	int e;

	PRE(a != NULL);
	ps->listen_fd = socket(a->ai_family,
			       SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (ps->listen_fd < 0)
		goto failed;
	step = "listen on";
	(void)setsockopt(ps->listen_fd, SOL_SOCKET, SO_REUSEADDR, &on,
			 sizeof(on));
	if (bind(ps->listen_fd, a->ai_addr, a->ai_addrlen) != 0 ||
	    listen(ps->listen_fd, 512) != 0 ||
	    getsockname(ps->listen_fd, (struct sockaddr *)&bound, &len) != 0)
		goto failed;
	/* It stands at the same place for both families. */
	memcpy(&in, &bound, sizeof(in));
	ps->port = ntohs(in.sin_port);
	return RC_OK;
failed:
	e = errno;
	if (ps->listen_fd >= 0)
		close(ps->listen_fd);
	ps->listen_fd = -1;
	return detail_set(why, e == EADDRINUSE ? RC_EXISTS : RC_IO,
			  "listen.peer", "cannot %s %s port %u: %s", step,
			  cfg->listen_host, cfg->listen_port, strerror(e));
}

/* Before the loop runs: a name may take its time. */
static enum rc peers_listen(struct peers *ps, const struct peers_config *cfg,
			    struct detail *why)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_PASSIVE };
	struct addrinfo *list = NULL;
	char port[8];
	enum rc rc;
	int e;

	snprintf(port, sizeof(port), "%u", cfg->listen_port);
	e = getaddrinfo(cfg->listen_host, port, &hints, &list);
	if (e != 0)
		return detail_set(why, RC_INVALID, "listen.peer", "%s: %s",
				  cfg->listen_host, gai_strerror(e));
	rc = listen_at(ps, list, cfg, why);
	freeaddrinfo(list);
	if (rc != RC_OK)
		return rc;
	if (uv_poll_init(ps->loop, &ps->listener, ps->listen_fd) < 0) {
		close(ps->listen_fd);
		return detail_set(why, RC_IO, "listen.peer",
				  "the socket cannot be watched");
	}
	ps->listener.data = ps;
	ps->listening = true;
	ps->open_handles++;
	return RC_OK;
}

/* ----------------------------------------------------------------- time ---
 */

/* A certificate that ends while it is in use: the connection ends with it. */
static bool line_expired(const struct line *c)
{
	uint64_t wall = env_wall_ms(c->peers->env);

	if (MUTANT(expired_stays))
		return false;
	return wall > tls_peer_expires_ms(c->tls);
}

static void line_alive(struct line *c)
{
	static const uint8_t nothing[HEAD_BYTES];

	if (line_unsent(c) > 0 || !pack_w_reserve(&c->out, HEAD_BYTES)) {
		c->out.rc = RC_OK;
		return;
	}
	pack_raw(&c->out, nothing, HEAD_BYTES);
	line_dirty(c);
}

static void line_sweep_up(struct line *c, uint64_t now)
{
	struct peers *ps = c->peers;

	if (c->lane->brief > 0 && since(now, c->lane->began_ms) >= PAUSE_MAX_MS)
		lane_lasts(c->lane);
	if (since(now, c->out_ms) >= ps->tick_ms)
		line_alive(c);
	/* What has come and was not read yet is not silence. */
	if (since(now, c->in_ms) > ps->dead_ms)
		line_read(c);
	if (c->closing || c->doomed)
		return;
	if (since(now, c->in_ms) > ps->dead_ms && !MUTANT(silence_is_life))
		line_end(c, "nothing came for too long");
	else if (c->stuck_ms != 0 && since(now, c->stuck_ms) > ps->dead_ms)
		line_end(c, "it takes nothing");
	else if (line_expired(c))
		line_end(c, "its certificate has expired");
}

static void line_sweep(struct line *c, uint64_t now)
{
	switch (c->state) {
	case LINE_CONNECTING:
		if (since(now, c->since_ms) > CONNECT_MS)
			line_end(c, "nobody answers at its address");
		break;
	case LINE_SHAKING:
	case LINE_NAMED:
		if (since(now, c->since_ms) > PEER_HANDSHAKE_MS)
			line_end(c, "its handshake took too long");
		break;
	case LINE_UP:
		line_sweep_up(c, now);
		break;
	}
}

/* One connection after the other is made anew under a new certificate, so that
 * a peer is never without both links. */
static void renew_one(struct peers *ps, uint64_t now)
{
	struct line *c;

	if (ps->renew_ms == 0 || now < ps->renew_ms)
		return;
	TAILQ_FOREACH(c, &ps->lines, link)
	{
		if (c->closing || c->doomed || c->state != LINE_UP ||
		    c->generation == ps->generation)
			continue;
		ps->renew_ms = now + RENEW_MS;
		if (c->outbound)
			lane_dial(c->lane);
		else
			line_end(c, "our certificate was renewed");
		return;
	}
	ps->renew_ms = 0;
}

static void peers_sweep(struct env_timer *t)
{
	struct peers *ps = CONTAINER_OF(t, struct peers, sweep);
	uint64_t now = now_ms(ps);
	struct line *c;

	CHECK_OBJ(ps, PEERS_MAGIC);
	/* Lines that end stay in the list until the loop has closed them. */
	TAILQ_FOREACH(c, &ps->lines, link)
	{
		if (ps->closing)
			return;
		if (!c->closing && !c->doomed)
			line_sweep(c, now);
	}
	renew_one(ps, now);
	if (ps->closing)
		return;
	if (ps->listening && !uv_is_active((uv_handle_t *)&ps->listener))
		(void)uv_poll_start(&ps->listener, UV_READABLE, peers_accept);
	env_timer_start(&ps->sweep, now + ps->tick_ms);
}

/* ------------------------------------------------------------- open, close ---
 */

static void peer_init(struct peers *ps, struct peer *p,
		      const struct peers_config *cfg,
		      const struct peer_address *at)
{
	enum link_kind k;

	p->peers = ps;
	p->at = *at;
	p->stats.node_id = at->id;
	snprintf(p->uri, sizeof(p->uri), "spiffe://%s/node/%" PRIu64,
		 cfg->cluster, at->id);
	for (k = LINK_RAFT; k < LINKS; k++) {
		struct lane *l = &p->lanes[k];

		l->magic = LANE_MAGIC;
		l->peer = p;
		l->kind = k;
		l->pause_ms = PAUSE_MIN_MS;
		env_timer_init(&l->retry, ps->env, lane_again);
		if (ps->node_id < at->id)
			env_timer_start(&l->retry, 0);
	}
}

static uint32_t tick_of(uint32_t dead_ms)
{
	uint32_t ms = dead_ms / 4;

	if (ms < 5)
		return 5;
	return ms < 1000 ? ms : 1000;
}

enum rc peers_open(uv_loop_t *loop, struct env *env,
		   const struct peers_config *cfg, struct tls_context *tls,
		   struct peers **out, struct detail *why)
{
	struct peers *ps = calloc(1, sizeof(*ps));
	enum link_kind k;
	enum rc rc;
	size_t i;

	if (ps == NULL)
		return RC_NOMEM;
	ps->magic = PEERS_MAGIC;
	ps->loop = loop;
	ps->env = env;
	ps->tls = tls;
	ps->node_id = cfg->node_id;
	ps->dead_ms = cfg->dead_ms;
	ps->tick_ms = tick_of(cfg->dead_ms);
	ps->send_task.cb = lines_send;
	ps->send_task.phase = ENV_PHASE_SEND;
	env_timer_init(&ps->sweep, env, peers_sweep);
	TAILQ_INIT(&ps->lines);
	STAILQ_INIT(&ps->dirty);
	for (k = LINK_RAFT; k < LINKS; k++)
		ps->links[k] = (struct peer_link){ .link.ops = &peer_link_ops,
						   .peers = ps,
						   .kind = k };
	ps->in = malloc(READ_BYTES);
	ps->peers = calloc(cfg->peers_n + 1, sizeof(*ps->peers));
	rc = ps->in != NULL && ps->peers != NULL ? peers_listen(ps, cfg, why)
						 : RC_NOMEM;
	if (rc != RC_OK) {
		free(ps->in);
		free(ps->peers);
		free(ps);
		return rc;
	}
	ps->peers_n = cfg->peers_n;
	for (i = 0; i < cfg->peers_n; i++)
		peer_init(ps, &ps->peers[i], cfg, &cfg->peers[i]);
	/* The first sweep begins to listen. */
	env_timer_start(&ps->sweep, 0);
	*out = ps;
	return RC_OK;
}

struct link *peers_link(struct peers *p, enum link_kind kind)
{
	CHECK_OBJ(p, PEERS_MAGIC);
	return &p->links[kind].link;
}

uint16_t peers_port(const struct peers *p)
{
	CHECK_OBJ(p, PEERS_MAGIC);
	return p->port;
}

void peers_tls(struct peers *p, struct tls_context *tls)
{
	CHECK_OBJ(p, PEERS_MAGIC);
	p->tls = tls;
	p->generation++;
	p->renew_ms = now_ms(p);
}

uint64_t peers_refused(const struct peers *p)
{
	CHECK_OBJ(p, PEERS_MAGIC);
	return p->refused;
}

size_t peers_stats(const struct peers *p, struct peer_stats *out, size_t n)
{
	size_t i;

	CHECK_OBJ(p, PEERS_MAGIC);
	if (n > p->peers_n)
		n = p->peers_n;
	for (i = 0; i < n; i++) {
		const struct peer *at = &p->peers[i];
		enum link_kind k;

		out[i] = at->stats;
		for (k = LINK_RAFT; k < LINKS; k++) {
			out[i].up[k] = at->lanes[k].up != NULL;
			if (out[i].up[k])
				out[i].queued += line_unsent(at->lanes[k].up);
		}
	}
	return n;
}

static void listener_closed(uv_handle_t *h)
{
	struct peers *ps = h->data;

	CHECK_OBJ(ps, PEERS_MAGIC);
	close(ps->listen_fd);
	ps->open_handles--;
	peers_maybe_closed(ps);
}

void peers_close(struct peers *p, void (*closed)(void *arg), void *arg)
{
	struct line *c;
	enum link_kind k;
	size_t i;

	CHECK_OBJ(p, PEERS_MAGIC);
	PRE(!p->closing);
	p->closing = true;
	p->closed = closed;
	p->closed_arg = arg;
	env_timer_stop(&p->sweep);
	for (i = 0; i < p->peers_n; i++)
		for (k = LINK_RAFT; k < LINKS; k++) {
			struct lane *l = &p->peers[i].lanes[k];

			env_timer_stop(&l->retry);
			if (l->resolving)
				(void)uv_cancel((uv_req_t *)&l->resolve);
		}
	/* What was said in this turn is sent as far as the sockets take it. */
	TAILQ_FOREACH(c, &p->lines, link)
	{
		line_flush(c);
		line_end(c, "the node stops");
	}
	p->listening = false;
	uv_close((uv_handle_t *)&p->listener, listener_closed);
}
