/*
 * stamps - what the voters tell each other about the owners' now (DESIGN D8).
 *
 * Loop thread. While this node owns shards it tells its peers their now, every
 * heartbeat, in one record for all of them. Every node keeps the highest it has
 * heard per shard, and when, on its own boot clock. A node that is elected asks
 * the others what the time is, and may execute nothing before a majority,
 * itself included, has answered: so time goes on over a failover as if nothing
 * had happened, and a wall clock counts only when everybody was down. A voter
 * that has nothing stored offers the beginning of time, the lowest there is.
 * Per shard:
 *
 *             elected                   a majority answered
 *   IDLE -------------------> ASKING -----------------------> READY
 *     ^                         |                               |
 *     +--------- lost ----------+---------------- lost ---------+
 *
 * CHANNEL_STAMP; records byte by byte at the top of stamps.c.
 */
#ifndef HOLDFAST_CORE_STAMPS_H
#define HOLDFAST_CORE_STAMPS_H

#include <stdbool.h>
#include <stdint.h>

#include "raft-glue/transport.h"

struct stamps;

/* What it asks of the node around it. */
struct stamps_host {
	/* The owner's now while this node owns the shard, else 0. */
	uint64_t (*now)(void *arg, uint32_t shard);
	/* The newest applied stamp and the wall clock noted beside it; 0 and 0
	 * when nothing is stored. */
	void (*last)(void *arg, uint32_t shard, uint64_t *stamp_ns,
		     uint64_t *wall_ms);
	/* A majority has answered for the election in `term`: stamps_ready has
	 * a base. Never from inside stamps_elected. */
	void (*ready)(void *arg, uint32_t shard, uint64_t term);
	void *arg;
};

/* RC_NOMEM. Listens to CHANNEL_STAMP of `t`, which outlives it. */
enum rc stamps_new(struct env *env, struct transport *t, uint32_t shards,
		   uint32_t heartbeat_ms, const struct stamps_host *host,
		   struct stamps **out);
void stamps_free(struct stamps *s);

/* This node was elected in `term`: ask. */
void stamps_elected(struct stamps *s, uint32_t shard, uint64_t term);
/* True: `*base_ns` is the time now, as the majority has it, for stamp_lead_at.
 * False: not yet, host.ready follows; or the node was not elected in `term`. A
 * lone voter is never ready: it has stamp_lead. */
bool stamps_ready(struct stamps *s, uint32_t shard, uint64_t term,
		  uint64_t *base_ns);
/* It leads no more. */
void stamps_lost(struct stamps *s, uint32_t shard);

#endif
