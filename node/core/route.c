#include "node/core/route.h"

#include <string.h>

#include "objects/directory_class.h"
#include "raft-glue/placement.h"

struct route route_find(struct bridge *b)
{
	struct shard *s = bridge_shard(b);
	uint64_t leader = shard_leader(s);
	struct route r = { ROUTE_NOBODY, 0 };

	if (bridge_owns(b)) {
		r.to = ROUTE_HERE;
		r.node_id = bridge_node_id(b);
	} else if (leader != 0 && leader != bridge_node_id(b)) {
		r.to = ROUTE_PEER;
		r.node_id = leader;
	}
	return r;
}

uint32_t route_shard(const struct identity *id, const struct address *a)
{
	if (pack_bytes_eq(a->cls, DIRECTORY_CLASS, strlen(DIRECTORY_CLASS)))
		return DIRECTORY_SHARD;
	return placement_shard(id->hash_key, &a->oid, id->shards);
}
