/*
 * round - proof, without a log write, that this node still owns a shard.
 *
 * What an event says may leave once a majority has confirmed, in a round that
 * began after the event, that this node still leads the shard in the same term
 * (DESIGN D7). One round per loop turn serves all shards. A lone voter is its
 * own majority: its round begins and completes in ENV_PHASE_ROUND of the turn.
 * Loop thread. Used by node/core/bridge.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_ROUND_H
#define HOLDFAST_RAFT_GLUE_ROUND_H

#include "raft-glue/shard.h"

struct rounds; /* All rounds of a node. */
struct round;
typedef void (*round_cb)(struct round *req, enum rc rc);

/* One question. The caller embeds it and keeps it in place, untouched, until
 * `cb` has fired. */
struct round {
	round_cb cb; /* Private, as all below. */
	struct shard *shard;
	uint64_t term;     /* Ours, when the question was asked. */
	uint64_t begun_ns; /* When the round that confirmed began: may be read
			    * in cb. */
	STAILQ_ENTRY(round) link;
};

/* RC_NOMEM. */
enum rc rounds_new(struct env *env, struct link *link, struct rounds **out);
/* Pending questions end with RC_CANCELLED. */
void rounds_free(struct rounds *r);
/* Those about `shard`, which is about to close, end with RC_CANCELLED now. */
void rounds_cancel(struct rounds *r, struct shard *shard);
/* The simulator's kill: frees memory only. */
void rounds_discard(struct rounds *r);

/*
 * Ask a majority whether this node still leads `shard` in its present term.
 *
 * RC_OK: `cb` fires exactly once, never from inside this call, with RC_OK,
 * RC_NOT_LEADER, or RC_CANCELLED. RC_NOT_LEADER: nothing was started.
 */
enum rc round_start(struct rounds *r, struct round *req, struct shard *shard,
		    round_cb cb);

#endif
