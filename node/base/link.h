/*
 * link - FIFO byte messages between members, as a vtable.
 *
 * A message sent to a peer arrives once, whole, in order within a connection
 * epoch, or not at all; a new connection is a new epoch, a larger number, and
 * everything of the old one is dropped (guard B19 of raft_step: a reordered or
 * doubled message across reconnects stalls a follower for good). Who the peer
 * is has been proved by its certificate; what it says it is, transport.c
 * checks. A node has two links to each peer: one for Raft, one for what may be
 * slow (forwarded calls, snapshots), so that a long stream never delays a
 * heartbeat. Loop thread only.
 */
#ifndef HOLDFAST_BASE_LINK_H
#define HOLDFAST_BASE_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct link;

enum link_kind {
	LINK_RAFT,
	LINK_BULK,
	LINKS,
};

struct link_ops {
	/* Copies the message, at most LINK_MESSAGE_BYTES_MAX. RC_OVERLOADED:
	 * the queue is full and the message is dropped (Raft sends again);
	 * RC_NOT_FOUND: no such peer, or no connection. Nothing fires from
	 * inside. */
	enum rc (*send)(struct link *l, uint64_t node_id, const void *p,
			size_t n);
	/* 0 while there is no connection. */
	uint64_t (*epoch)(struct link *l, uint64_t node_id);
	/* How many bytes `send` takes now; 0 while there is no connection. */
	size_t (*room)(struct link *l, uint64_t node_id);
	/* End the connection: the peer said what it must not. `changed` comes
	 * later; another connection is tried after a pause that grows. */
	void (*drop)(struct link *l, uint64_t node_id);
};

struct link {
	const struct link_ops *ops;
	/* Set by the receiver, before the loop runs. */
	void (*received)(void *arg, uint64_t node_id, uint64_t epoch,
			 const void *p, size_t n);
	/* A connection stands (`epoch`) or is lost (0). */
	void (*changed)(void *arg, uint64_t node_id, uint64_t epoch);
	void *arg;
};

#endif
