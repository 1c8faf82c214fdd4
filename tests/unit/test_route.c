#include "node/core/route.h"

#include "tests/lib/core_rig.h"

TEST(nobody_owns_a_shard_before_its_election)
{
	struct detail why = { { 0 }, { 0 } };
	struct told *t;
	struct route r;

	rig_new(6);
	rig.id.shards = 1;
	rig_format();
	EXPECT_RC(rig_open(&why), RC_OK);
	r = route_find(core_bridge(rig.core, 0));
	EXPECT_INT(r.to, ROUTE_NOBODY);
	t = rig_wait(rig_start("me", "kv/a", "get", "{'key':'k'}", NULL));
	EXPECT_RC(t->rc, RC_NO_QUORUM);
	EXPECT_INT(t->outcome, OUTCOME_REFUSED);
	EXPECT_TRUE(t->retry_after_ms > 0);
	EXPECT_TRUE(world_run_flag(rig.w, &rig.ready, RIG_WAIT_MS));
	r = route_find(core_bridge(rig.core, 0));
	EXPECT_INT(r.to, ROUTE_HERE);
	EXPECT_UINT(r.node_id, 1);
	EXPECT_RC(rig_ask("kv/a", "get", "{'key':'k'}", NULL)->rc,
		  RC_NOT_FOUND);
	rig_end();
}

TEST(every_shard_has_its_own_route)
{
	uint32_t i;

	rig_begin(7);
	for (i = 0; i < core_shards(rig.core); i++)
		EXPECT_INT(route_find(core_bridge(rig.core, i)).to, ROUTE_HERE);
	rig_end();
}
