#include "node/os/preempt.h"

#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include "node/os/env_uv.h"
#include "tests/lib/runner.h"

static struct preempt p;
static struct preempt_counts counts;
static uint64_t now_ms;

static void begin(void)
{
	p = (struct preempt){ .counted = false };
	counts = (struct preempt_counts){ 9000000000u, 7000000000u, 1000, 50 };
	now_ms = 5000;
	EXPECT_TRUE(preempt_decide(&p, now_ms, &counts));
}

/* A quarter of a second later: so many turns of 0.1 ms, and before each of them
 * so much waiting. */
static bool later(uint64_t slices, uint64_t waited_us)
{
	now_ms += 250;
	counts.slices += slices;
	counts.waited_ns += slices * waited_us * 1000;
	counts.ran_ns += slices * 100000;
	return preempt_decide(&p, now_ms, &counts);
}

/* For how long it does not wait its turn after this. */
static uint64_t rest(void)
{
	uint64_t since_ms = now_ms;

	while (!later(100, 5000))
		;
	return now_ms - since_ms;
}

TEST(short_waits_are_good)
{
	unsigned i;

	begin();
	for (i = 0; i < 100; i++)
		EXPECT_TRUE(later(700, 600));
	EXPECT_TRUE(later(1000000, 0));
}

TEST(long_waits_end_it_for_a_while)
{
	begin();
	EXPECT_TRUE(later(100, 600));
	EXPECT_TRUE(later(100, 600));
	EXPECT_TRUE(later(100, 601));
	EXPECT_FALSE(later(100, 601));
	EXPECT_UINT(rest(), 1000);
}

/* Many connect, or somebody works hard for a moment. */
TEST(one_long_wait_ends_nothing)
{
	unsigned i;

	begin();
	for (i = 0; i < 10; i++) {
		EXPECT_TRUE(later(100, 5000));
		EXPECT_TRUE(later(100, 600));
	}
}

TEST(a_trial_that_fails_at_once_makes_the_next_one_wait_longer)
{
	static const uint64_t rests[] = { 1000,  2000,  4000,  8000,
					  16000, 32000, 64000, 64000 };
	unsigned i;

	begin();
	for (i = 0; i < 8; i++) {
		EXPECT_TRUE(later(100, 3000));
		EXPECT_FALSE(later(100, 3000));
		EXPECT_UINT(rest(), rests[i]);
	}
	/* Until one lasted. */
	for (i = 0; i < 20; i++)
		EXPECT_TRUE(later(100, 100));
	EXPECT_TRUE(later(100, 3000));
	EXPECT_FALSE(later(100, 3000));
	EXPECT_UINT(rest(), 1000);
}

/* An idle node is woken a few times: what it waited adds up. */
TEST(few_slices_are_looked_at_together)
{
	begin();
	EXPECT_TRUE(later(3, 5000));
	EXPECT_TRUE(later(4, 5000));
	EXPECT_TRUE(later(1, 5000));
	EXPECT_FALSE(later(8, 5000));
	begin();
	EXPECT_TRUE(later(0, 0));
	EXPECT_TRUE(later(7, 5000));
	EXPECT_TRUE(later(1000, 100));
	EXPECT_TRUE(later(8, 5000));
}

/* Who sends too much has the cores. */
TEST(a_flood_ends_it_until_it_is_over)
{
	unsigned i;

	begin();
	EXPECT_TRUE(later(100, 100));
	for (i = 0; i < 100; i++) {
		counts.refused++;
		EXPECT_FALSE(later(100, 100));
	}
	EXPECT_UINT(rest(), 1000);
	EXPECT_TRUE(later(100, 100));
	/* Also where waits have ended it for longer. */
	EXPECT_TRUE(later(100, 3000));
	EXPECT_FALSE(later(100, 3000));
	EXPECT_UINT(rest(), 2000);
	EXPECT_TRUE(later(100, 3000));
	EXPECT_FALSE(later(100, 3000));
	/* A rest that is longer goes on. */
	counts.refused++;
	EXPECT_FALSE(later(100, 100));
	EXPECT_UINT(rest(), 3750);
}

/* Calls that a trial made slow are too many: it has failed. */
TEST(refusals_of_trials_make_them_rarer)
{
	const uint64_t rests[] = { 1000, 2000, 4000, 8000 };
	unsigned i;

	begin();
	for (i = 0; i < 4; i++) {
		counts.refused++;
		EXPECT_FALSE(later(100, 3000));
		counts.refused++;
		EXPECT_FALSE(later(100, 100));
		EXPECT_UINT(rest(), i == 0 ? 1000 : rests[i] - 250);
	}
}

/* The real thing. */

static uint64_t none_refused(const void *arg)
{
	(void)arg;
	return 0;
}

static void closed(struct env_uv *e)
{
	(void)e;
}

static void policy_after_start(int before, int during)
{
	const struct sched_param none = { 0 };
	static struct env_uv env;
	struct preempt real;
	uv_loop_t loop;

	EXPECT_INT(sched_setscheduler(0, before, &none), 0);
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_RC(env_uv_open(&env, &loop), RC_OK);
	preempt_start(&real, &env.env, none_refused, NULL);
	EXPECT_INT(sched_getscheduler(0), during);
	preempt_stop(&real);
	env_uv_close(&env, closed);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_INT(uv_loop_close(&loop), 0);
}

TEST(a_look_without_descriptors_is_not_the_last)
{
	static struct env_uv env;
	struct rlimit before;
	struct rlimit none;
	struct preempt real;
	uv_loop_t loop;

	if (access("/proc/self/schedstat", R_OK) != 0)
		return;
	EXPECT_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_RC(env_uv_open(&env, &loop), RC_OK);
	preempt_start(&real, &env.env, none_refused, NULL);
	EXPECT_TRUE(real.timer.running);
	preempt_stop(&real);
	none = (struct rlimit){ 0, before.rlim_max };
	EXPECT_INT(setrlimit(RLIMIT_NOFILE, &none), 0);
	real.timer.cb(&real.timer);
	EXPECT_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
	EXPECT_TRUE(real.timer.running);
	EXPECT_TRUE(real.batch);
	preempt_stop(&real);
	env_uv_close(&env, closed);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_INT(uv_loop_close(&loop), 0);
	EXPECT_INT(
		sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){ 0 }),
		0);
}

TEST(a_policy_that_somebody_chose_stays)
{
	policy_after_start(SCHED_BATCH, SCHED_BATCH);
	EXPECT_INT(
		sched_setscheduler(0, SCHED_OTHER, &(struct sched_param){ 0 }),
		0);
	policy_after_start(SCHED_OTHER,
			   access("/proc/self/schedstat", R_OK) == 0
				   ? SCHED_BATCH
				   : SCHED_OTHER);
	policy_after_start(SCHED_IDLE, SCHED_IDLE);
}
