/*
 * compare - have the replicas of a shard the same state at the same index?
 *
 * Loop thread. At a scrub entry every replica computes what its state is
 * exactly there, and tells all others (CHANNEL_COMPARE). Each compares for
 * itself: who differs from a majority of the voters that agree is wrong, and
 * only about itself does a node conclude that. With no majority that agrees
 * nobody concludes anything: it is counted and logged. A replica that is silent
 * for COMPARE_WAIT_MS is not waited for.
 *
 * A copy that was received is compared in the same way with what the other
 * voters say of its index. Records byte by byte at the top of compare.c.
 * Used by node/core/bridge.c.
 */
#ifndef HOLDFAST_RAFT_GLUE_COMPARE_H
#define HOLDFAST_RAFT_GLUE_COMPARE_H

#include "node/base/env.h"
#include "node/base/limits.h"
#include "raft-glue/transport.h"

struct compare; /* Of one shard. */

#define COMPARE_WAIT_MS   5000u
#define COMPARE_COPY_MS   2000u /* For another voter's word on a copy, */
#define COMPARE_REACH_MS  500u  /* and if it has no link. */
#define COMPARE_HASH_SIZE 16u

/* A state: equal on every replica that applied the same entries. */
struct compare_hash {
	uint64_t index; /* Not 0. */
	uint8_t state[COMPARE_HASH_SIZE];
	uint8_t ranges[STATE_RANGES][COMPARE_HASH_SIZE]; /* Which part. */
};

/* Never from inside a call of compare.h. */
struct compare_owner {
	/* A majority of the voters has another state than this node. Once per
	 * index. */
	void (*differs)(struct compare_owner *o, const struct detail *why);
	/* The answer to compare_copy: RC_OK, or RC_CORRUPT: other voters have
	 * another state at that index. */
	void (*copied)(struct compare_owner *o, enum rc rc);
};

/* `t` has peers and outlives it. RC_NOMEM. */
enum rc compare_new(struct env *env, struct transport *t,
		    struct compare_owner *owner, uint32_t shard,
		    struct compare **out);
void compare_free(struct compare *c);

/* This node's state, at an index at which the others are asked too. */
void compare_is(struct compare *c, const struct compare_hash *h);

/* The state that was told of has been replaced. */
void compare_void(struct compare *c);

/*
 * A copy from voter `from` at `index` is on its way: what others tell of that
 * index is kept from now on. One at a time: the one before is forgotten.
 */
void compare_expect(struct compare *c, uint64_t from, uint64_t index);
/*
 * It is here: `state` is the hash that was computed from its rows. Answered by
 * `copied`, at once or when COMPARE_COPY_MS have passed: good when more voters
 * (`from` among them) say so than say otherwise, so also when nobody else can
 * be reached.
 */
void compare_copy(struct compare *c, const uint8_t state[COMPARE_HASH_SIZE]);
/* It is not wanted any more: `copied` is not called. */
void compare_forget(struct compare *c);

struct compare_stats {
	uint64_t index;    /* Newest at which all voters told the same. */
	uint64_t compared; /* Comparisons that ended. */
	/* Voters, this one included, that had another state than a majority. */
	uint64_t differences;
	uint64_t undecided; /* Comparisons without a majority that agreed. */
	uint64_t doubt;     /* The index of the last one if it was such; 0. */
	uint64_t confirmed; /* Copies of which another voter said the same, */
	uint64_t alone;     /* nobody else said anything, */
	uint64_t refused;   /* others said otherwise. */
};
void compare_stats(const struct compare *c, struct compare_stats *out);
/* The last comparison has ended, all voters told the same, at `index`. */
bool compare_equal(const struct compare *c, uint64_t index);

#endif
