/*
 * round - proof, without a log write, that this node still owns a shard.
 *
 * What an event says may leave once a majority has confirmed, in a round that
 * began after the event, that this node still leads the shard in the same term
 * (DESIGN D7). One round serves all shards: one record to each peer. What is
 * asked in a turn, or while a round is under way that is less than 2 ms old,
 * shares the next, and that one asks no more peers than it needs, and the
 * others when those do not confirm within 2 ms. A round has a number of its
 * own, so that the answer to an older one never confirms what was asked later;
 * a question without an answer is asked again under a new number. A lone voter
 * is its own majority: its round begins and completes in ENV_PHASE_ROUND of the
 * turn. Loop thread. Used by node/core/bridge.c.
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
	uint64_t number;   /* Of the first round that serves it; 0: none yet. */
	uint64_t begun_ns; /* When the round that confirmed began: may be read
			    * in cb. */
	STAILQ_ENTRY(round) link;
};

/* RC_NOMEM. `t` may be NULL for lone voters. `find` gives this node's shard of
 * a number, NULL when there is none: for what peers ask. */
enum rc rounds_new(struct env *env, struct transport *t,
		   struct shard *(*find)(void *arg, uint32_t shard), void *arg,
		   struct rounds **out);
/* How many rounds asked peers. */
uint64_t rounds_count(const struct rounds *r);
/* Pending questions end with RC_CANCELLED. */
void rounds_free(struct rounds *r);
/* Those about `shard`, which is about to close, end with RC_CANCELLED now. */
void rounds_cancel(struct rounds *r, struct shard *shard);
/* Its leadership ended: those about `shard` that were asked in another term
 * than the present one end with RC_NOT_LEADER now, and not only when the next
 * answer or turn finds it. */
void rounds_lost(struct rounds *r, struct shard *shard);
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
