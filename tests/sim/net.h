/*
 * net - what lies between the nodes, and between them and their clients.
 *
 * One thread, virtual time, one seed. Nodes get `struct link` of both kinds
 * (node/base/link.h): connections that are made again and again with a growing
 * pause, messages in order within one, delays, a bandwidth, a queue that is
 * full. Clients get streams of bytes to one node each. What goes wrong is the
 * driver's word: cuts in one direction or both, clogs, resets; a process that
 * ended says so to its peers, a machine without power says nothing, and a
 * connection over which nothing can come is given up after `dead_ms`.
 *
 * A hostile net breaks the one promise of a link that its user is to check
 * himself: messages of an old connection come after those of a new one, or a
 * second time, with the number of the old one (guard B19).
 *
 * Ends are numbered: nodes from 0, clients from NET_CLIENT. A node's id is its
 * number plus 1.
 */
#ifndef TESTS_SIM_NET_H
#define TESTS_SIM_NET_H

#include "node/base/link.h"
#include "tests/sim/prng.h"
#include "tests/sim/world.h"

#define NET_NODES_MAX   5u
#define NET_CLIENT      5u
#define NET_CLIENTS_MAX 12u
#define NET_ENDS        (NET_CLIENT + NET_CLIENTS_MAX)

struct net;

struct net_config {
	unsigned nodes;
	uint32_t delay_min_us;
	uint32_t delay_max_us;
	uint32_t spike_per_10000; /* Messages that take longer, */
	uint32_t spike_ms;        /* by so much at most. */
	uint32_t bytes_per_us;
	uint32_t queue_bytes; /* A link takes no more. */
	uint32_t dead_ms;
	bool hostile;
};

/* What the driver sees. All may be NULL. */
struct net_tap {
	/* A node sends a message over a link; it may end here, then nothing
	 * leaves. */
	void (*leaving)(void *arg, unsigned from, unsigned to,
			enum link_kind kind, const uint8_t *p, size_t n);
	/* It has left. */
	void (*left)(void *arg, unsigned from, unsigned to,
		     enum link_kind kind);
	void *arg;
};

struct net *net_new(struct world *w, uint64_t seed,
		    const struct net_config *cfg, const struct net_tap *tap);
void net_free(struct net *n);

struct link *net_link(struct net *n, unsigned node, enum link_kind kind);
/* The node has booted: connections may come. */
void net_up(struct net *n, unsigned node);
/* It ended. `dark`: its machine too, so that nobody is told. */
void net_down(struct net *n, unsigned node, bool dark);

/* ---- what goes wrong ---- */

/* From here nothing passes that way; what is on it waits. Cuts add up. */
void net_cut(struct net *n, unsigned from, unsigned to);
void net_mend(struct net *n, unsigned from, unsigned to);
void net_mend_all(struct net *n);
/* From here no message is late by more. */
void net_calm(struct net *n, uint32_t spike_ms);
/* Between two nodes the link for calls and snapshots is refused, until all is
 * mended. */
void net_refuse_bulk(struct net *n, unsigned a, unsigned b);
bool net_is_cut(const struct net *n, unsigned from, unsigned to);
/* What is sent that way comes after `ms` at the earliest. */
void net_clog(struct net *n, unsigned from, unsigned to, uint32_t ms);
/* Every connection between the two is lost with what is on its way. */
void net_reset(struct net *n, unsigned a, unsigned b);

/* Connections so far: the number of the newest. */
uint64_t net_serial(const struct net *n);
/* Nothing of a client is on its way to a node, nothing on a bulk link. */
bool net_quiet(const struct net *n);

struct net_stats {
	uint64_t messages; /* Delivered. */
	uint64_t bytes;
	uint64_t connects;
	uint64_t resets; /* Connections that were lost, for any reason. */
	uint64_t late;   /* Of old connections (hostile). */
	uint64_t full;   /* Refused: the queue was. */
};
void net_stats(const struct net *n, struct net_stats *out);

/* ---- streams of clients ---- */

struct net_stream;

/* At the node; on its thread. */
struct net_door {
	void (*opened)(void *arg, struct net_stream *s);
	void (*input)(void *arg, struct net_stream *s, const uint8_t *p,
		      size_t n);
	void (*lost)(void *arg, struct net_stream *s);
	void *arg;
};
/* NULL: nobody is at home. */
void net_door(struct net *n, unsigned node, const struct net_door *door);

/* At the client; on the driver's thread. */
struct net_dialer {
	void (*opened)(void *arg);
	void (*input)(void *arg, const uint8_t *p, size_t n);
	void (*lost)(void *arg); /* Or could not be opened. */
	void *arg;
};
struct net_stream *net_stream(struct net *n, unsigned client, unsigned node);
/* `lost` or `opened` comes later. The stream must be closed or lost. */
void net_dial(struct net_stream *s, const struct net_dialer *d);
/* Takes all. */
void net_client_send(struct net_stream *s, const void *p, size_t n);
void net_client_close(struct net_stream *s);
void net_node_send(struct net_stream *s, const void *p, size_t n);
void net_node_close(struct net_stream *s);
/* On their way to the client, or kept for it. */
size_t net_unread(const struct net_stream *s);
/* The node's own mark on an open stream. */
void **net_stream_mark(struct net_stream *s);
unsigned net_stream_client(const struct net_stream *s);

#endif
