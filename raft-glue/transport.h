/*
 * transport - what the modules of a node say to those of its peers.
 *
 * Loop thread. Stands on the two links. The first frame of a connection is a
 * greeting (members.h); nothing else is taken or sent before it was checked and
 * synced. What is said to one peer in one loop turn, heartbeats of all shards
 * included, goes out as one frame of records in ENV_PHASE_SEND. Each frame also
 * carries the version of the sender's copy of the directory (DESIGN D10).
 * Frames and records byte by byte at the top of transport.c. With no peers
 * (`raft` and `bulk` NULL) it is there and silent.
 */
#ifndef HOLDFAST_RAFT_GLUE_TRANSPORT_H
#define HOLDFAST_RAFT_GLUE_TRANSPORT_H

#include "node/base/env.h"
#include "node/base/limits.h"
#include "node/base/link.h"
#include "raft-glue/members.h"

struct transport;

#define TRANSPORT_PROTOCOL 1u
/* Head and body of one record: what a frame and a message of a link leave. */
#define TRANSPORT_RECORD_BYTES_MAX (LINK_MESSAGE_BYTES_MAX - 16u)

enum transport_channel {
	CHANNEL_RAFT,     /* shard.c: messages of the core. */
	CHANNEL_ROUND,    /* round.c */
	CHANNEL_STAMP,    /* node/core: the owner's now. */
	CHANNEL_SNAPSHOT, /* snapshot.c; bulk from here on. */
	CHANNEL_CALL,     /* node/core/forward.c */
	CHANNEL_COMPARE,  /* compare.c */
	CHANNELS,
};

/* Who listens to one channel of one shard. */
struct transport_sink {
	/* `p` is valid inside the call only. */
	void (*received)(struct transport_sink *k, uint64_t node_id,
			 uint64_t epoch, const uint8_t *p, size_t n);
	/* May be NULL. The link that carries the channel was greeted (`epoch`)
	 * or lost (0). */
	void (*changed)(struct transport_sink *k, uint64_t node_id,
			uint64_t epoch);
};

/* RC_NOMEM. The links' `received`, `changed` and `arg` are set here. */
enum rc transport_new(struct env *env, struct link *raft, struct link *bulk,
		      struct members *members, struct transport **out);
/* The links must be silent from here on, and the members closed. */
void transport_free(struct transport *t);
/* The simulator's kill: frees memory only. */
void transport_discard(struct transport *t);

/* Channels that belong to no shard use shard 0. `k` NULL: nobody any longer;
 * what comes for nobody is counted and dropped. */
void transport_listen(struct transport *t, enum transport_channel ch,
		      uint32_t shard, struct transport_sink *k);

/*
 * Add a record to this turn's frame; copies `head` and `body`. RC_OK only says
 * that it is on its way. RC_NOT_FOUND: the peer is not greeted. RC_OVERLOADED:
 * no room in its queue; RC_INVALID: larger than a frame.
 */
enum rc transport_send(struct transport *t, enum transport_channel ch,
		       uint32_t shard, uint64_t node_id, const void *head,
		       size_t head_n, const void *body, size_t body_n);
/* Of the greeted connection that carries the channel; 0: none. */
uint64_t transport_epoch(const struct transport *t, enum transport_channel ch,
			 uint64_t node_id);
size_t transport_room(const struct transport *t, enum transport_channel ch,
		      uint64_t node_id);
/* The peer broke the protocol: its connection ends. */
void transport_drop(struct transport *t, enum transport_channel ch,
		    uint64_t node_id);

/* The version of our copy of the directory, and of the newest that a peer, or
 * any peer, has told since this node started. */
void transport_version(struct transport *t, uint64_t version);
uint64_t transport_version_of(const struct transport *t, uint64_t node_id);
uint64_t transport_version_max(const struct transport *t);

struct members *transport_members(struct transport *t);

struct transport_stats {
	uint64_t frames_out;
	uint64_t frames_in;
	uint64_t records_out;
	uint64_t records_in;
	uint64_t bytes_out;
	uint64_t bytes_in;
	uint64_t refused; /* Greetings, */
	uint64_t dropped; /* and records: no room, nobody listens. */
	uint64_t broken;  /* Connections dropped for what came over them. */
};
void transport_stats(const struct transport *t, struct transport_stats *out);

#endif
