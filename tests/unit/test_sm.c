#include "node/base/sm.h"

#include "client/proto/rc.h"
#include "tests/lib/runner.h"

enum { IDLE, RUNNING, WAITING, DONE, STATES };

/* IDLE -> RUNNING <-> WAITING, RUNNING -> DONE */
static const struct sm_state table[STATES] = {
	[IDLE] = { "idle", 1u << RUNNING, false },
	[RUNNING] = { "running", 1u << WAITING | 1u << DONE, false },
	[WAITING] = { "waiting", 1u << RUNNING, false },
	[DONE] = { "done", 0, true },
};

TEST(moves_by_the_table_and_remembers)
{
	struct sm sm;

	sm_init(&sm, table, STATES, IDLE);
	EXPECT_STR(sm_name(&sm), "idle");
	EXPECT_UINT(sm.past[0], 0xff);
	sm_move(&sm, RUNNING);
	sm_move(&sm, WAITING);
	sm_move(&sm, RUNNING);
	sm_move(&sm, DONE);
	EXPECT_STR(sm_name(&sm), "done");
	EXPECT_UINT(sm.past[0], RUNNING);
	EXPECT_UINT(sm.past[1], WAITING);
	EXPECT_UINT(sm.past[2], RUNNING);
	EXPECT_UINT(sm.past[3], IDLE);
	EXPECT_UINT(sm.past[4], 0xff);
}

TEST(a_long_life_keeps_the_last_states)
{
	struct sm sm;
	unsigned i;

	sm_init(&sm, table, STATES, RUNNING);
	for (i = 0; i < 100; i++) {
		sm_move(&sm, WAITING);
		sm_move(&sm, RUNNING);
	}
	EXPECT_UINT(sm.past[0], WAITING);
	EXPECT_UINT(sm.past[5], RUNNING);
	EXPECT_UINT(sm.now, RUNNING);
}

TEST(other_moves_are_held_back)
{
	struct sm sm;

	sm_init(&sm, table, STATES, IDLE);
	EXPECT_ABORT_SAYS(sm_move(&sm, DONE), "idle failed: done");
	EXPECT_ABORT(sm_move(&sm, IDLE));
	EXPECT_ABORT(sm_move(&sm, STATES));
	EXPECT_ABORT(sm_init(&sm, table, STATES, STATES));
}
