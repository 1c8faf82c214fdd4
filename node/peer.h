/*
 * peer - the links to the other nodes: TCP, TLS, frames, bounded queues.
 *
 * Loop thread. Implements `struct link` twice (node/base/link.h). Each pair of
 * nodes has two connections; the one with the lower id connects, with a pause
 * that grows from 20 ms to 1 s; the first plain byte tells which link it is.
 * The other side's certificate must be that of the node (SPIFFE
 * `spiffe://CLUSTER/node/ID`, see docs/security.md). A message is its length
 * (u32, little endian) and its bytes. A queue that is full drops; a connection
 * from which nothing came for a dead time, or that cannot take what is queued
 * for as long, is closed (half-open TCP).
 */
#ifndef HOLDFAST_NODE_PEER_H
#define HOLDFAST_NODE_PEER_H

#include <uv.h>

#include "client/tls.h"
#include "node/base/env.h"
#include "node/base/link.h"

struct peers;

struct peer_address {
	uint64_t id;
	char host[256]; /* A name or an address. */
	uint16_t port;
};

struct peers_config {
	uint64_t node_id;
	char cluster[40]; /* The trust domain: cluster id in hex. */
	const char *listen_host;
	uint16_t listen_port; /* 0: any, for tests. */
	const struct peer_address *peers;
	size_t peers_n;
	uint32_t dead_ms; /* 4 election timeouts. */
};

/* RC_EXISTS: the port is taken; RC_INVALID: an address; RC_IO, RC_NOMEM. The
 * context stays the caller's. */
enum rc peers_open(uv_loop_t *loop, struct env *env,
		   const struct peers_config *cfg, struct tls_context *tls,
		   struct peers **out, struct detail *why);
struct link *peers_link(struct peers *p, enum link_kind kind);
uint16_t peers_port(const struct peers *p);
/* A renewed certificate: for new connections; the old ones are made anew, one
 * after the other. */
void peers_tls(struct peers *p, struct tls_context *tls);

struct peer_stats {
	uint64_t node_id;
	bool up[LINKS];
	uint64_t bytes_in;
	uint64_t bytes_out;
	uint64_t queued;
	uint64_t dropped; /* Messages: the queue was full. */
	uint64_t connects;
	uint64_t refused;    /* Handshakes with a wrong certificate. */
	uint64_t expires_ms; /* Of its certificate; 0: never seen. */
};
/* At most `n`, in the order of the configuration; how many. */
size_t peers_stats(const struct peers *p, struct peer_stats *out, size_t n);
/* Handshakes at our port of who is nobody that the configuration knows. */
uint64_t peers_refused(const struct peers *p);

/* `closed` fires once, from the loop; no `received` or `changed` after this
 * call. */
void peers_close(struct peers *p, void (*closed)(void *arg), void *arg);

#endif
