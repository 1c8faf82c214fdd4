/*
 * route - who owns a shard, as far as this node knows. Loop thread.
 */
#ifndef HOLDFAST_CORE_ROUTE_H
#define HOLDFAST_CORE_ROUTE_H

#include "node/core/address.h"
#include "node/core/bridge.h"

enum route_to {
	ROUTE_HERE,   /* This node owns it and may execute. */
	ROUTE_PEER,   /* `node_id` owns it: forward or redirect. */
	ROUTE_NOBODY, /* No owner is known: NO_QUORUM with a retry time. */
};

struct route {
	enum route_to to;
	uint64_t node_id;
};

struct route route_find(struct bridge *b);

/* The shard of an object whose id is known: by its id, but the directory, which
 * tells of everything else, is always in the same one. */
uint32_t route_shard(const struct identity *id, const struct address *a);

#endif
