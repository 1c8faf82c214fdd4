/*
 * routes - which node owns which object, as far as a client was told.
 *
 * One thread. Nobody but the cluster can compute the shard of an address (its
 * hash is keyed), so a client learns: from a refusal (NOT_OWNER) the shard of
 * an address and the owner of the shard, from an answer the node that owns the
 * object. A table of a fixed size has addresses, by a hash that is not theirs
 * in the cluster; what is wrong or was put out costs a refused hop, never more.
 * A move of a shard is learned once, for all of its addresses. Nodes are links
 * of a session (session.h), here numbers below ROUTES_NODES_MAX.
 */
#ifndef HOLDFAST_CLIENT_ROUTES_H
#define HOLDFAST_CLIENT_ROUTES_H

#include "client/proto/pack.h"

#define ROUTES_NODES_MAX     8u
#define ROUTES_SHARDS_MAX    64u
#define ROUTES_ADDRESSES_MAX 65536u
#define ROUTES_NONE          UINT32_MAX

struct routes;

/*
 * What is known of an address, and which of its calls are under way: those of
 * one object go to one node at a time, so that they keep their order when the
 * owner changes. An entry with `in_flight` > 0 stays where it is.
 */
struct route {
	uint64_t hash;  /* Private, */
	uint32_t shard; /* as this, ROUTES_NONE: not told, */
	uint32_t owner; /* this, used without a shard, */
	uint32_t epoch; /* and this: of the owner when it was learned. */
	bool used;
	bool recent;
	uint8_t lane;       /* The node that has the calls in flight. */
	uint32_t in_flight; /* Sent and not answered. */
	uint64_t hold_ns;   /* Since when calls wait for them; 0: not. */
};

/* `addresses_max` is rounded up to a power of two, at least 16, at most
 * ROUTES_ADDRESSES_MAX; 0: that. RC_NOMEM. */
enum rc routes_new(uint64_t seed, uint32_t addresses_max, struct routes **out);
void routes_free(struct routes *r);

uint64_t routes_hash(const struct routes *r, struct pack_bytes address);

/* The entry of an address; NULL: there is none. */
struct route *routes_find(struct routes *r, uint64_t hash);
/* The same, made when there is none. NULL: all that it may replace have calls
 * in flight. */
struct route *routes_make(struct routes *r, uint64_t hash);

/* The owner; ROUTES_NONE: not known, or the node was lost since. */
uint32_t routes_owner(const struct routes *r, const struct route *e);
/*
 * The address belongs to `shard` (ROUTES_NONE: not said) and that to `node`
 * (ROUTES_NONE: nobody, as far as is known).
 */
void routes_learn(struct routes *r, uint64_t hash, uint32_t shard,
		  uint32_t node);
/* What `node` owned is not known any more. */
void routes_lost(struct routes *r, uint32_t node);

#endif
