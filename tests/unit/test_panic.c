#include "node/base/check.h"

#include "client/proto/rc.h"
#include "tests/lib/runner.h"

static void say(void *arg)
{
	(void)fprintf(stderr, "hook %s;", (const char *)arg);
}

static void fail_again(void *arg)
{
	(void)arg;
	CHECK(false);
}

struct thing {
	uint32_t magic;
	int value;
};

TEST(says_place_and_condition)
{
	int one = 1;

	CHECK(one == 1);
	EXPECT_ABORT_SAYS(PRE(one == 2), "PRE failed: one == 2");
	EXPECT_ABORT_SAYS(POST(one == 2), "tests/unit/test_panic.c");
	EXPECT_ABORT_SAYS(UNREACHABLE(), "UNREACHABLE");
}

TEST(objects_are_recognised)
{
	struct thing good = { 0x1234, 0 };
	struct thing *none = NULL;

	CHECK_OBJ(&good, 0x1234u);
	EXPECT_ABORT(CHECK_OBJ(&good, 0x1235u));
	EXPECT_ABORT(CHECK_OBJ(none, 0x1234u));
	EXPECT_TRUE(CONTAINER_OF(&good.value, struct thing, value) == &good);
}

static char names[5][8] = { "one", "two", "three", "four", "five" };

static void four_hooks_and_a_panic(void (*last)(void *arg))
{
	panic_hook(say, names[0]);
	panic_hook(say, names[1]);
	panic_hook(say, names[2]);
	panic_hook(last, names[3]);
	CHECK(false);
}

TEST(hooks_run_in_order)
{
	EXPECT_ABORT_SAYS(four_hooks_and_a_panic(say),
			  "hook one;hook two;hook three;hook four;");
}

TEST(a_fault_in_a_hook_ends_it)
{
	EXPECT_ABORT_SAYS(four_hooks_and_a_panic(fail_again), "hook three;");
}

static void five_hooks(void)
{
	unsigned i;

	for (i = 0; i < 5; i++)
		panic_hook(say, names[i]);
}

TEST(a_fifth_hook_is_held_back)
{
	EXPECT_ABORT_SAYS(five_hooks(), "hooks_n < 4");
}
