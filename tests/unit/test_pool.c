#include "node/base/pool.h"

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

TEST(gives_each_slot_once_then_null)
{
	struct pool p;
	void *item[7];
	unsigned i;
	unsigned j;

	EXPECT_RC(pool_init(&p, 40, 7), RC_OK);
	for (i = 0; i < 7; i++) {
		item[i] = pool_take(&p);
		EXPECT_NOT_NULL(item[i]);
		EXPECT_UINT((uintptr_t)item[i] % 16, 0);
		for (j = 0; j < i; j++)
			EXPECT_TRUE(item[i] != item[j]);
		memset(item[i], 0xaa, 40);
	}
	EXPECT_UINT(p.used, 7);
	EXPECT_NULL(pool_take(&p));
	for (i = 0; i < 7; i++)
		pool_put(&p, item[i]);
	EXPECT_UINT(p.used, 0);
	pool_release(&p);
}

TEST(a_slot_is_zero_when_taken_again_and_last_in_is_first_out)
{
	static const uint8_t zero[40];
	struct pool p;
	void *a;
	void *b;

	EXPECT_RC(pool_init(&p, 40, 2), RC_OK);
	a = pool_take(&p);
	b = pool_take(&p);
	memset(a, 1, 40);
	memset(b, 2, 40);
	pool_put(&p, a);
	pool_put(&p, b);
	EXPECT_TRUE(pool_take(&p) == b);
	EXPECT_MEM(b, zero, 40);
	EXPECT_TRUE(pool_take(&p) == a);
	EXPECT_MEM(a, zero, 40);
	pool_discard(&p);
}

TEST(small_items_have_room_for_the_list)
{
	struct pool p;
	void *a;
	void *b;

	EXPECT_RC(pool_init(&p, 1, 2), RC_OK);
	a = pool_take(&p);
	b = pool_take(&p);
	pool_put(&p, a);
	pool_put(&p, b);
	EXPECT_TRUE(pool_take(&p) == b);
	EXPECT_TRUE(pool_take(&p) == a);
	pool_put(&p, a);
	pool_put(&p, b);
	pool_release(&p);
}

TEST(mistakes_are_held_back)
{
	struct pool p;
	uint8_t *a;
	long foreign;

	EXPECT_RC(pool_init(&p, 64, 4), RC_OK);
	a = pool_take(&p);
	EXPECT_ABORT_SAYS(pool_release(&p), "p->used == 0");
	EXPECT_ABORT(pool_put(&p, a + 16));
	EXPECT_ABORT(pool_put(&p, a + 64));
	EXPECT_ABORT(pool_put(&p, &foreign));
	EXPECT_ABORT(pool_put(&p, NULL));
	EXPECT_ABORT(pool_put(&p, a); pool_put(&p, a));
	pool_put(&p, a);
	pool_release(&p);
}

TEST(a_pool_that_cannot_be_had_is_an_error)
{
	struct pool p;

	fault_alloc(1);
	EXPECT_RC(pool_init(&p, 64, 4), RC_NOMEM);
	fault_off();
	pool_discard(&p);
}
