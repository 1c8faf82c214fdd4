#include "raft-glue/entries.h"

#include "tests/lib/runner.h"

static struct entries tail;

static struct entry entry_of(uint64_t term, uint64_t ticket, uint32_t bytes)
{
	struct entry e = {
		.term = term,
		.ticket = ticket,
		.data = calloc(1, bytes > 0 ? bytes : 1),
		.bytes = bytes,
		.type = 1,
	};

	return e;
}

static void put(uint64_t index, uint64_t term, uint64_t ticket, uint32_t bytes)
{
	struct entry e = entry_of(term, ticket, bytes);

	EXPECT_TRUE(entries_put(&tail, index, &e));
}

TEST(empty)
{
	entries_init(&tail, 8);
	EXPECT_UINT(tail.durable, 7);
	EXPECT_TRUE(entries_get(&tail, 7) == NULL);
	EXPECT_TRUE(entries_get(&tail, 8) == NULL);
	EXPECT_UINT(entries_durable(&tail, 1000), 7);
	entries_drop(&tail, 7);
	entries_release(&tail);
	entries_release(&tail);
}

TEST(put_get_drop_over_many_turns_of_the_ring)
{
	uint64_t i;

	entries_init(&tail, 1);
	for (i = 1; i <= 1000; i++) {
		put(i, 1 + i / 100, i, (uint32_t)(i % 7));
		EXPECT_UINT(entries_durable(&tail, i), i);
		if (i > 10)
			entries_drop(&tail, i - 10);
	}
	EXPECT_UINT(tail.slots, 16);
	EXPECT_UINT(tail.first, 991);
	EXPECT_UINT(tail.next, 1001);
	EXPECT_TRUE(entries_get(&tail, 990) == NULL);
	EXPECT_UINT(entries_get(&tail, 991)->bytes, 991 % 7);
	EXPECT_UINT(entries_get(&tail, 1000)->term, 11);
	entries_release(&tail);
}

TEST(grows_with_a_wrapped_ring)
{
	uint64_t i;

	entries_init(&tail, 1);
	for (i = 1; i <= 12; i++)
		put(i, 1, i, 3);
	EXPECT_UINT(entries_durable(&tail, 12), 12);
	entries_drop(&tail, 9);
	for (; i <= 200; i++)
		put(i, 2, i, 3);
	EXPECT_UINT(tail.bytes, 3 * (200 - 9));
	for (i = 10; i <= 200; i++)
		EXPECT_UINT(entries_get(&tail, i)->ticket, i);
	entries_release(&tail);
}

TEST(durable_goes_by_ticket_in_order)
{
	entries_init(&tail, 1);
	put(1, 1, 5, 1);
	put(2, 1, 6, 1);
	put(3, 1, 9, 1);
	EXPECT_UINT(entries_durable(&tail, 4), 0);
	EXPECT_UINT(entries_durable(&tail, 6), 2);
	EXPECT_UINT(entries_durable(&tail, 8), 2);
	EXPECT_UINT(entries_durable(&tail, 9), 3);
	entries_release(&tail);
}

/* Guard B11: the write of an overwritten entry completes, and reports
 * nothing. */
TEST(an_overwritten_entry_is_not_durable)
{
	entries_init(&tail, 1);
	put(1, 1, 1, 1);
	put(2, 1, 2, 1);
	put(3, 1, 3, 10);
	EXPECT_UINT(entries_durable(&tail, 2), 2);
	put(2, 2, 4, 5);
	EXPECT_UINT(tail.next, 3);
	EXPECT_UINT(tail.durable, 1);
	EXPECT_UINT(tail.bytes, 6);
	EXPECT_TRUE(entries_get(&tail, 3) == NULL);
	EXPECT_UINT(entries_durable(&tail, 3), 1);
	EXPECT_UINT(entries_durable(&tail, 4), 2);
	entries_release(&tail);
}

TEST(read_at_start)
{
	entries_init(&tail, 41);
	put(41, 3, 0, 2);
	put(42, 3, 0, 2);
	EXPECT_UINT(entries_durable(&tail, 0), 42);
	put(43, 4, 1, 2);
	EXPECT_UINT(entries_durable(&tail, 0), 42);
	entries_release(&tail);
}

TEST(bytes_above_an_index)
{
	entries_init(&tail, 5);
	EXPECT_UINT(entries_above(&tail, 4), 0);
	EXPECT_UINT(entries_above(&tail, 100), 0);
	put(5, 1, 1, 10);
	put(6, 1, 2, 20);
	put(7, 1, 3, 40);
	EXPECT_UINT(entries_above(&tail, 0), 70);
	EXPECT_UINT(entries_above(&tail, 4), 70);
	EXPECT_UINT(entries_above(&tail, 5), 60);
	EXPECT_UINT(entries_above(&tail, 6), 40);
	EXPECT_UINT(entries_above(&tail, 7), 0);
	EXPECT_UINT(entries_above(&tail, 8), 0);
	EXPECT_UINT(entries_durable(&tail, 3), 7);
	entries_drop(&tail, 5);
	EXPECT_UINT(entries_above(&tail, 5), 60);
	EXPECT_UINT(entries_above(&tail, 6), 40);
	/* What is overwritten does not count. */
	put(7, 2, 4, 1);
	EXPECT_UINT(entries_above(&tail, 5), 21);
	put(8, 2, 5, 2);
	EXPECT_UINT(entries_above(&tail, 6), 3);
	EXPECT_UINT(entries_above(&tail, 7), 2);
	EXPECT_UINT(entries_durable(&tail, 5), 8);
	entries_drop(&tail, 8);
	EXPECT_UINT(entries_above(&tail, 3), 0);
	put(9, 2, 6, 7);
	EXPECT_UINT(entries_above(&tail, 8), 7);
	EXPECT_UINT(entries_above(&tail, 9), 0);
	entries_release(&tail);
}

TEST(reserve_makes_room)
{
	uint64_t i;

	entries_init(&tail, 1);
	for (i = 1; i <= 16; i++) {
		EXPECT_TRUE(entries_reserve(&tail));
		put(i, 1, i, 1);
	}
	EXPECT_UINT(tail.slots, 16);
	EXPECT_TRUE(entries_reserve(&tail));
	EXPECT_UINT(tail.slots, 32);
	entries_release(&tail);
}

TEST(misuse)
{
	struct entry e = entry_of(1, 1, 1);

	entries_init(&tail, 5);
	EXPECT_ABORT_SAYS(entries_put(&tail, 6, &e), "index <= t->next");
	EXPECT_ABORT_SAYS(entries_put(&tail, 4, &e), "index >= t->first");
	EXPECT_TRUE(entries_put(&tail, 5, &e));
	EXPECT_ABORT_SAYS(entries_drop(&tail, 5), "index <= t->durable");
	entries_release(&tail);
}
