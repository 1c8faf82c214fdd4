#include "node/os/env_uv.h"

#include "node/base/check.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static uv_loop_t loop;
static struct env_uv uv;
static struct env *env;
static bool closed;
static char trace[256];

static void begin(void)
{
	EXPECT_INT(uv_loop_init(&loop), 0);
	memset(&uv, 0, sizeof(uv));
	EXPECT_RC(env_uv_open(&uv, &loop), RC_OK);
	env = &uv.env;
	closed = false;
	trace[0] = '\0';
}

static void note_closed(struct env_uv *e)
{
	EXPECT_TRUE(e == &uv);
	closed = true;
}

static void end(void)
{
	env_uv_close(&uv, note_closed);
	EXPECT_FALSE(closed);
	EXPECT_INT(uv_run(&loop, UV_RUN_DEFAULT), 0);
	EXPECT_TRUE(closed);
	EXPECT_INT(uv_loop_close(&loop), 0);
}

static void run(void)
{
	(void)uv_run(&loop, UV_RUN_DEFAULT);
}

static void say(char c)
{
	size_t n = strlen(trace);

	EXPECT_TRUE(n + 1 < sizeof(trace));
	trace[n] = c;
	trace[n + 1] = '\0';
}

/* ---- clocks and randomness ---- */

static uint64_t boottime_ns(void)
{
	struct timespec t;

	EXPECT_INT(clock_gettime(CLOCK_BOOTTIME, &t), 0);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

TEST(clocks)
{
	uint64_t before;
	uint64_t now;
	uint64_t wall;

	begin();
	before = boottime_ns();
	now = env_now_ns(env);
	EXPECT_TRUE(now >= before);
	EXPECT_TRUE(now <= boottime_ns());
	wall = env_wall_ms(env);
	EXPECT_TRUE(wall / 1000 >= (uint64_t)time(NULL) - 2);
	EXPECT_TRUE(wall / 1000 <= (uint64_t)time(NULL) + 2);
	(void)env->ops->wall_synced(env);
	end();
}

TEST(random_bytes)
{
	static uint8_t seen[4096];
	uint8_t zero[16] = { 0 };
	size_t n;
	size_t at;
	size_t i;

	begin();
	for (n = 1; n < sizeof(seen); n = n * 3 + 1) {
		memset(seen, 0, sizeof(seen));
		env_random(env, seen, n);
		for (i = n; i < sizeof(seen); i++)
			EXPECT_UINT(seen[i], 0);
	}
	/* Pieces of one block are not each other's repetition. */
	for (at = 0; at < sizeof(seen); at += 16)
		env_random(env, seen + at, 16);
	for (at = 16; at < sizeof(seen); at += 16)
		for (i = 0; i < at; i += 16)
			EXPECT_TRUE(memcmp(seen + at, seen + i, 16) != 0);
	EXPECT_TRUE(memcmp(seen, zero, 16) != 0);
	end();
}

/* ---- timers ---- */

struct alarm_clock {
	struct env_timer timer;
	uint64_t at_ms;
	unsigned rang;
	unsigned again;
	struct alarm_clock *stops;
	char name;
};

static unsigned left;
static uint64_t rang_last;

static void ring(struct env_timer *t)
{
	struct alarm_clock *a = CONTAINER_OF(t, struct alarm_clock, timer);

	EXPECT_FALSE(t->running);
	EXPECT_TRUE(env_now_ms(env) >= t->at_ms);
	a->rang++;
	if (a->name != '\0')
		say(a->name);
	if (a->stops != NULL)
		env_timer_stop(&a->stops->timer);
	if (a->again > 0) {
		a->again--;
		env_timer_start(t, 0);
		return;
	}
	EXPECT_TRUE(left > 0);
	if (--left == 0)
		uv_stop(&loop);
}

static void ring_in_order(struct env_timer *t)
{
	EXPECT_TRUE(t->at_ms >= rang_last);
	rang_last = t->at_ms;
	ring(t);
}

static uint64_t step(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return *state >> 33;
}

#define ALARMS 10000u

TEST(thousands_of_timers_ring_once_and_in_order)
{
	static struct alarm_clock a[ALARMS];
	uint64_t state = 1;
	uint64_t now;
	unsigned i;

	begin();
	memset(a, 0, sizeof(a));
	now = env_now_ms(env);
	rang_last = 0;
	for (i = 0; i < ALARMS; i++) {
		env_timer_init(&a[i].timer, env, ring_in_order);
		env_timer_start(&a[i].timer, now + 20 + step(&state) % 50);
	}
	/* A third stops, a third moves. */
	left = ALARMS;
	for (i = 0; i < ALARMS; i++) {
		if (i % 3 == 0) {
			env_timer_stop(&a[i].timer);
			EXPECT_FALSE(a[i].timer.running);
			left--;
		} else if (i % 3 == 1) {
			env_timer_start(&a[i].timer,
					now + 20 + step(&state) % 50);
		}
	}
	run();
	for (i = 0; i < ALARMS; i++)
		EXPECT_UINT(a[i].rang, i % 3 != 0);
	EXPECT_UINT(uv.heap_n, 0);
	end();
}

static struct alarm_clock alarm_named(char name)
{
	struct alarm_clock a = { .name = name };

	env_timer_init(&a.timer, env, ring);
	return a;
}

TEST(a_past_time_rings_in_the_next_turn)
{
	struct alarm_clock a;
	struct alarm_clock b;

	begin();
	a = alarm_named('a');
	b = alarm_named('b');
	a.again = 5;
	left = 2;
	env_timer_start(&a.timer, 0);
	env_timer_start(&b.timer, env_now_ms(env));
	EXPECT_STR(trace, "");
	run();
	/* `a` starts itself again at once and yet `b` comes between. */
	EXPECT_STR(trace, "abaaaaa");
	end();
}

TEST(a_timer_may_stop_one_that_is_due_as_well)
{
	struct alarm_clock a;
	struct alarm_clock b;
	struct alarm_clock c;

	begin();
	a = alarm_named('a');
	b = alarm_named('b');
	c = alarm_named('c');
	a.stops = &b;
	left = 2;
	env_timer_start(&a.timer, 1);
	env_timer_start(&b.timer, 2);
	env_timer_start(&c.timer, 3);
	run();
	EXPECT_STR(trace, "ac");
	end();
}

TEST(an_earlier_timer_moves_the_alarm_forward)
{
	struct alarm_clock a;
	struct alarm_clock b;
	uint64_t now;

	begin();
	a = alarm_named('a');
	b = alarm_named('b');
	now = env_now_ms(env);
	left = 1;
	env_timer_start(&a.timer, now + 3600000);
	env_timer_start(&b.timer, now + 5);
	run();
	EXPECT_STR(trace, "b");
	EXPECT_TRUE(env_now_ms(env) < now + 60000);
	/* Whatever runs when it is closed is forgotten. */
	end();
}

static void start_many(void)
{
	static struct alarm_clock a[5000];
	unsigned i;

	fault_alloc_from(1);
	for (i = 0; i < 5000; i++) {
		env_timer_init(&a[i].timer, env, ring);
		env_timer_start(&a[i].timer, UINT64_MAX);
	}
}

TEST(no_memory_for_timers_is_a_clean_stop)
{
	begin();
	EXPECT_EXIT(start_many(), 70);
	end();
}

/* ---- tasks ---- */

static void task_says(struct env_task *task)
{
	(void)task;
	say('t');
}

static void task_stops(struct env_task *task)
{
	(void)task;
	say('s');
	uv_stop(&loop);
}

static struct env_task first = { .cb = task_says, .phase = ENV_PHASE_PROPOSE };
static struct env_task last = { .cb = task_stops, .phase = ENV_PHASE_SEND };

static void ring_and_post(struct env_timer *t)
{
	(void)t;
	say('r');
	env_post(env, &last);
	env_post(env, &first);
	env_post(env, &first);
}

/* Nothing else will ever happen in this loop: it would wait forever. */
TEST(tasks_of_a_timer_do_not_wait_for_io)
{
	struct env_timer t;

	begin();
	env_timer_init(&t, env, ring_and_post);
	env_timer_start(&t, env_now_ms(env) + 1);
	run();
	EXPECT_STR(trace, "rts");
	end();
}

TEST(tasks_posted_before_the_loop_runs)
{
	begin();
	env_post(env, &last);
	run();
	EXPECT_STR(trace, "s");
	end();
}

static void closed_and_post(uv_handle_t *h)
{
	(void)h;
	env_post(env, &last);
}

TEST(tasks_of_a_close_callback)
{
	uv_timer_t timer;

	begin();
	EXPECT_INT(uv_timer_init(&loop, &timer), 0);
	uv_close((uv_handle_t *)&timer, closed_and_post);
	run();
	EXPECT_STR(trace, "s");
	end();
}

/* ---- jobs ---- */

#define JOBS 2000u

struct counted {
	struct env_job job;
	enum env_worker worker;
	unsigned number;
	uint8_t random[8];
};

static unsigned run_next[ENV_WORKERS];
static unsigned done_next[ENV_WORKERS];
static unsigned jobs_left;
static uv_thread_t loop_thread;
static uv_thread_t worker_threads[ENV_WORKERS];

static void counted_run(struct env_job *job)
{
	struct counted *c = CONTAINER_OF(job, struct counted, job);
	uv_thread_t self = uv_thread_self();

	EXPECT_UINT(c->number, run_next[c->worker]);
	EXPECT_FALSE(uv_thread_equal(&self, &loop_thread));
	if (c->number > 0)
		EXPECT_TRUE(uv_thread_equal(&self, &worker_threads[c->worker]));
	worker_threads[c->worker] = self;
	run_next[c->worker]++;
	env_random(env, c->random, sizeof(c->random));
	EXPECT_TRUE(env_now_ns(env) > 0);
}

static void counted_done(struct env_job *job)
{
	struct counted *c = CONTAINER_OF(job, struct counted, job);
	uv_thread_t self = uv_thread_self();

	EXPECT_TRUE(uv_thread_equal(&self, &loop_thread));
	EXPECT_UINT(c->number, done_next[c->worker]);
	done_next[c->worker]++;
	if (--jobs_left == 0)
		uv_stop(&loop);
}

TEST(jobs_keep_their_order_and_come_back_to_the_loop)
{
	static struct counted c[ENV_WORKERS][JOBS];
	unsigned i;
	unsigned w;

	begin();
	loop_thread = uv_thread_self();
	jobs_left = ENV_WORKERS * JOBS;
	memset(run_next, 0, sizeof(run_next));
	memset(done_next, 0, sizeof(done_next));
	for (i = 0; i < JOBS; i++) {
		for (w = 0; w < ENV_WORKERS; w++) {
			c[w][i] = (struct counted){
				.job = { .run = counted_run,
					 .done = counted_done },
				.worker = (enum env_worker)w,
				.number = i,
			};
			env_work(env, (enum env_worker)w, &c[w][i].job);
		}
		/* Let the workers come to rest now and then. */
		if (i % 100 == 0)
			(void)uv_run(&loop, UV_RUN_NOWAIT);
	}
	run();
	for (w = 0; w < ENV_WORKERS; w++) {
		EXPECT_UINT(run_next[w], JOBS);
		EXPECT_UINT(done_next[w], JOBS);
	}
	EXPECT_FALSE(uv_thread_equal(&worker_threads[ENV_WORKER_LOG],
				     &worker_threads[ENV_WORKER_STORAGE]));
	end();
}

struct pinger {
	struct env_job job;
	unsigned left;
};

static void nothing(struct env_job *job)
{
	(void)job;
}

static void ping_again(struct env_job *job)
{
	struct pinger *p = CONTAINER_OF(job, struct pinger, job);

	if (--p->left == 0)
		uv_stop(&loop);
	else
		env_work(env, ENV_WORKER_LOG, job);
}

TEST(a_job_may_be_queued_again_from_its_done)
{
	struct pinger p = { { .run = nothing, .done = ping_again }, 2000 };

	begin();
	env_work(env, ENV_WORKER_LOG, &p.job);
	run();
	EXPECT_UINT(p.left, 0);
	end();
}

static void done_posts(struct env_job *job)
{
	(void)job;
	say('d');
	env_post(env, &last);
}

TEST(tasks_of_a_done_run_in_the_same_turn)
{
	struct env_job job = { .run = nothing, .done = done_posts };

	begin();
	env_work(env, ENV_WORKER_STORAGE, &job);
	run();
	EXPECT_STR(trace, "ds");
	end();
}

static void close_with_job(void)
{
	static struct env_job job = { .run = nothing, .done = done_posts };

	env_work(env, ENV_WORKER_LOG, &job);
	env_uv_close(&uv, note_closed);
}

TEST(closing_over_a_job_is_held_back)
{
	begin();
	EXPECT_ABORT_SAYS(close_with_job(), "e->jobs == 0");
	end();
}

TEST(fail_stop_says_why_and_exits_with_70)
{
	begin();
	RUNNER_FORKED(env_fail_stop(env, "write of \"log\" failed"), 70, false,
		      "\"event\":\"fail_stop\","
		      "\"why\":\"write of \\\"log\\\" failed\"}\n");
	end();
}

TEST(no_memory_at_open)
{
	EXPECT_INT(uv_loop_init(&loop), 0);
	memset(&uv, 0, sizeof(uv));
	fault_alloc(1);
	EXPECT_RC(env_uv_open(&uv, &loop), RC_NOMEM);
	fault_off();
	EXPECT_INT(uv_loop_close(&loop), 0);
}
