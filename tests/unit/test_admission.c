/* How many calls may be in flight, by what they take. */
#include "node/core/admission.h"

#include "node/base/limits.h"
#include "tests/lib/runner.h"

#define MS UINT64_C(1000000)
/* More calls than any limit. */
#define FLOOD 100000u

static struct admission a;
static uint64_t now;

static void begin(uint32_t limit_max)
{
	now = 5000 * MS;
	admission_init(&a, limit_max, now);
}

/* So many of clients as are let in; how many were. */
static uint32_t fill(uint32_t most)
{
	uint32_t n = 0;

	while (n < most && admission_enter(&a, DOOR_CLIENTS, false))
		n++;
	return n;
}

/* All that are in flight have taken `ms` each, and the window is over. */
static void window(uint64_t ms, uint64_t syncs, uint64_t sync_ns)
{
	while (a.open[DOOR_CLIENTS] > 0) {
		admission_leave(&a, DOOR_CLIENTS);
		admission_took(&a, ms * MS);
	}
	EXPECT_FALSE(admission_due(&a, now));
	while (!admission_due(&a, now))
		now += MS;
	admission_turn(&a, now, syncs, sync_ns);
}

/* `n` windows in which calls take `ms` each, and as many come as can. */
static void flood(unsigned n, uint64_t ms)
{
	for (; n > 0; n--) {
		(void)fill(FLOOD);
		window(ms, 0, 0);
	}
}

TEST(whoever_keeps_few_in_flight_is_never_refused)
{
	unsigned i;

	begin(16384);
	for (i = 0; i < 100; i++) {
		EXPECT_UINT(fill(ADMISSION_CALLS), ADMISSION_CALLS);
		window(5000, 0, 0);
	}
	EXPECT_UINT(a.limit, ADMISSION_CALLS);
	EXPECT_UINT(a.refused[DOOR_CLIENTS], 0);
}

TEST(the_limit_falls_while_calls_are_refused_and_slow)
{
	begin(16384);
	EXPECT_UINT(fill(FLOOD), ADMISSION_CALLS);
	window(40, 0, 0);
	/* At most halved at once. */
	EXPECT_UINT(a.limit, ADMISSION_CALLS / 2);
	EXPECT_UINT(fill(FLOOD), ADMISSION_CALLS / 2);
	window(10, 0, 0);
	EXPECT_UINT(a.limit, ADMISSION_CALLS / 4);
	flood(10, 1000);
	EXPECT_UINT(a.limit, ADMISSION_CALLS_MIN);
}

TEST(it_settles_at_what_they_may_take)
{
	unsigned i;

	begin(16384);
	/* 20 us of one processor each. */
	for (i = 0; i < 40; i++) {
		uint32_t n = fill(FLOOD);

		window(n / 50, 0, 0);
	}
	EXPECT_TRUE(a.limit > 50 * ADMISSION_OWN_MS * 3 / 4);
	EXPECT_TRUE(a.limit < 50 * ADMISSION_OWN_MS * 3 / 2);
}

TEST(it_grows_while_they_are_fast)
{
	unsigned i;

	begin(4096);
	flood(40, 1);
	EXPECT_UINT(a.limit, 4096);
	/* Kept as long as it is used, and given back when it is not. */
	for (i = 0; i < 40; i++) {
		EXPECT_UINT(fill(2100), 2100);
		window(1, 0, 0);
	}
	EXPECT_UINT(a.limit, 4096);
	for (i = 0; i < 40; i++) {
		(void)fill(10);
		window(1, 0, 0);
	}
	EXPECT_UINT(a.limit, ADMISSION_CALLS);
}

TEST(it_comes_back_when_nothing_is_refused)
{
	unsigned i;

	begin(16384);
	flood(10, 100);
	EXPECT_UINT(a.limit, ADMISSION_CALLS_MIN);
	for (i = 0; i < 8; i++)
		window(1, 0, 0);
	EXPECT_UINT(a.limit, ADMISSION_CALLS);
}

/* Syncs of 20 ms: a write may take as long as its disks. */
TEST(slow_disks_are_no_flood)
{
	uint64_t syncs = 0;
	unsigned i;

	begin(16384);
	for (i = 0; i < 60; i++) {
		(void)fill(FLOOD);
		syncs += 3;
		window(60, syncs, syncs * 20 * MS);
		EXPECT_TRUE(a.limit >= ADMISSION_CALLS);
	}
	EXPECT_UINT(a.limit, 16384);
	/* Without syncs the last that was seen counts. */
	(void)fill(FLOOD);
	window(60, syncs, syncs * 20 * MS);
	EXPECT_UINT(a.limit, 16384);
	/* A disk that is fast again. */
	(void)fill(FLOOD);
	window(60, syncs + 100, syncs * 20 * MS + 100 * MS);
	EXPECT_UINT(a.limit, 8192);
}

/* Nothing ends: no reason to let more in, nor fewer. */
TEST(a_standstill_moves_nothing)
{
	begin(16384);
	(void)fill(FLOOD);
	now += 1000 * MS;
	EXPECT_TRUE(admission_due(&a, now));
	admission_turn(&a, now, 0, 0);
	EXPECT_UINT(a.limit, ADMISSION_CALLS);
}

/* What a new limit does is seen before it moves again. */
TEST(a_window_is_as_long_as_a_call)
{
	begin(16384);
	flood(1, 400);
	EXPECT_FALSE(admission_due(&a, now + 399 * MS));
	EXPECT_TRUE(admission_due(&a, now + 400 * MS));
}

TEST(who_asks_for_one_comes_in)
{
	begin(16384);
	EXPECT_UINT(fill(FLOOD), ADMISSION_CALLS);
	EXPECT_TRUE(admission_enter(&a, DOOR_CLIENTS, true));
	EXPECT_FALSE(admission_enter(&a, DOOR_CLIENTS, false));
	while (admission_enter(&a, DOOR_CLIENTS, true))
		;
	EXPECT_UINT(a.open[DOOR_CLIENTS], 2 * ADMISSION_CALLS);
}

TEST(other_nodes_have_a_door_of_their_own)
{
	begin(16384);
	EXPECT_UINT(fill(FLOOD), ADMISSION_CALLS);
	while (admission_enter(&a, DOOR_NODES, false))
		;
	EXPECT_UINT(a.open[DOOR_NODES], 2 * ADMISSION_CALLS);
	EXPECT_UINT(a.refused[DOOR_NODES], 1);
	admission_leave(&a, DOOR_NODES);
	EXPECT_TRUE(admission_enter(&a, DOOR_NODES, false));
}

TEST(small_nodes_have_small_limits)
{
	unsigned i;

	begin(1);
	for (i = 0; i < 5; i++) {
		EXPECT_UINT(fill(100), 1);
		window(100, 0, 0);
		EXPECT_UINT(a.limit, 1);
	}
	begin(32);
	EXPECT_UINT(fill(100), 32);
	flood(5, 100);
	EXPECT_UINT(a.limit, 32);
}
