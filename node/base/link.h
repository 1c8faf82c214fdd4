/*
 * link - FIFO byte messages between members, as a vtable.
 *
 * A message sent to a peer arrives once, whole, in order within a connection
 * epoch, or not at all; a new connection is a new epoch and everything of the
 * old one is dropped (guard B19 of raft_step: a reordered or doubled message
 * across reconnects stalls a follower for good). Loop thread only.
 * With one voter nobody is at the other end; the vtable exists so that shards
 * are written against it.
 */
#ifndef HOLDFAST_BASE_LINK_H
#define HOLDFAST_BASE_LINK_H

#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct link;

struct link_ops {
	/* Copies the message. RC_OVERLOADED: the queue is full and the message
	 * is dropped (Raft sends again); RC_NOT_FOUND: no such peer. */
	enum rc (*send)(struct link *l, uint64_t node_id, const void *p,
			size_t n);
	/* 0 while there is no connection. */
	uint64_t (*epoch)(struct link *l, uint64_t node_id);
};

struct link {
	const struct link_ops *ops;
	/* Set by the receiver. */
	void (*received)(void *arg, uint64_t node_id, uint64_t epoch,
			 const void *p, size_t n);
	void *arg;
};

#endif
