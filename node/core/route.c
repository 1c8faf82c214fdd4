#include "node/core/route.h"

struct route route_find(struct bridge *b)
{
	struct shard *s = bridge_shard(b);
	uint64_t leader = shard_leader(s);
	struct route r = { ROUTE_NOBODY, 0 };
	uint64_t term;

	if (shard_leads(s, &term)) {
		r.to = ROUTE_HERE;
		r.node_id = bridge_node_id(b);
	} else if (leader != 0 && leader != bridge_node_id(b)) {
		r.to = ROUTE_PEER;
		r.node_id = leader;
	}
	return r;
}
