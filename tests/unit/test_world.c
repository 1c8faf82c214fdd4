#include "tests/sim/world.h"

#include "node/base/check.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define BUFFER 65536u

static struct world *world;
static struct env *env;
static struct disk *disk;
static char trace[256];

static void begin(uint64_t seed)
{
	world = world_new(seed);
	env = world_env(world, 0);
	disk = world_disk(world, 0);
	trace[0] = '\0';
}

static void end(void)
{
	world_free(world);
}

static void say(char c)
{
	size_t n = strlen(trace);

	EXPECT_TRUE(n + 1 < sizeof(trace));
	trace[n] = c;
	trace[n + 1] = '\0';
}

/* ---- timers ---- */

struct alarm_clock {
	struct env_timer timer;
	char name;
	unsigned again;
	struct alarm_clock *stops;
};

static void ring(struct env_timer *t)
{
	struct alarm_clock *a = CONTAINER_OF(t, struct alarm_clock, timer);

	EXPECT_FALSE(t->running);
	EXPECT_TRUE(env_now_ms(t->env) >= t->at_ms);
	EXPECT_TRUE(t->at_ms == 0 || env_now_ms(t->env) <= t->at_ms + 2);
	say(a->name);
	if (a->again > 0) {
		a->again--;
		env_timer_start(t, env_now_ms(t->env));
	}
	if (a->stops != NULL)
		env_timer_stop(&a->stops->timer);
}

static struct alarm_clock alarm_named(char name)
{
	struct alarm_clock a = { .name = name };

	env_timer_init(&a.timer, env, ring);
	return a;
}

static void start_in(struct alarm_clock *a, uint64_t ms)
{
	env_timer_start(&a->timer, env_now_ms(env) + ms);
}

TEST(timers_ring_in_time_and_order)
{
	struct alarm_clock a;
	struct alarm_clock b;
	struct alarm_clock c;

	begin(1);
	a = alarm_named('a');
	b = alarm_named('b');
	c = alarm_named('c');
	start_in(&a, 30);
	start_in(&b, 10);
	start_in(&c, 20);
	EXPECT_STR(trace, "");
	world_run_until(world, 15);
	EXPECT_STR(trace, "b");
	EXPECT_UINT(world_now_ms(world), 15);
	/* A running timer moves. */
	start_in(&c, 50);
	world_run_until(world, 40);
	EXPECT_STR(trace, "ba");
	env_timer_stop(&c.timer);
	env_timer_stop(&c.timer);
	EXPECT_FALSE(world_step(world));
	EXPECT_STR(trace, "ba");
	end();
}

TEST(a_timer_may_start_itself_and_stop_another)
{
	struct alarm_clock a;
	struct alarm_clock b;

	begin(2);
	world_timer_late(world, 0);
	a = alarm_named('a');
	b = alarm_named('b');
	a.again = 3;
	a.stops = &b;
	/* In the past: the next turn, not at once. */
	env_timer_start(&a.timer, 0);
	EXPECT_STR(trace, "");
	start_in(&b, 0);
	while (world_step(world))
		;
	EXPECT_STR(trace, "aaaa");
	end();
}

/* ---- jobs and tasks ---- */

struct step {
	struct env_job job;
	struct env_task task;
	char name;
	bool posts;
	enum env_worker worker;
};

static void step_run(struct env_job *job)
{
	struct step *s = CONTAINER_OF(job, struct step, job);

	say(s->name);
}

static void step_done(struct env_job *job)
{
	struct step *s = CONTAINER_OF(job, struct step, job);

	say((char)(s->name - 'a' + 'A'));
	if (s->posts)
		env_post(env, &s->task);
}

static void step_task(struct env_task *task)
{
	struct step *s = CONTAINER_OF(task, struct step, task);

	say('(');
	say(s->name);
	say(')');
}

static struct step step_named(char name)
{
	return (struct step){
		.job = { .run = step_run, .done = step_done },
		.task = { .cb = step_task, .phase = ENV_PHASE_LOG },
		.name = name,
	};
}

/* The places of each letter in the trace. */
static long place(char c)
{
	const char *at = strchr(trace, c);

	EXPECT_NOT_NULL(at);
	return at - trace;
}

TEST(jobs_of_a_worker_keep_their_order)
{
	struct step s[8];
	uint64_t seed;
	unsigned i;
	bool overlapped = false;

	for (seed = 0; seed < 50; seed++) {
		begin(seed);
		for (i = 0; i < 8; i++) {
			s[i] = step_named((char)('a' + i));
			env_work(env,
				 i < 4 ? ENV_WORKER_LOG : ENV_WORKER_STORAGE,
				 &s[i].job);
		}
		EXPECT_STR(trace, "");
		while (world_step(world))
			;
		EXPECT_UINT(strlen(trace), 16);
		for (i = 0; i < 8; i++) {
			char name = (char)('a' + i);
			char done = (char)('A' + i);

			EXPECT_TRUE(place(name) < place(done));
			if (i % 4 == 0)
				continue;
			EXPECT_TRUE(place((char)(name - 1)) < place(name));
			EXPECT_TRUE(place((char)(done - 1)) < place(done));
		}
		overlapped |= place('b') < place('A');
		end();
	}
	EXPECT_TRUE(overlapped);
}

TEST(tasks_run_at_the_end_of_each_event)
{
	struct step a;
	struct step b;

	begin(3);
	a = step_named('a');
	a.posts = true;
	b = step_named('b');
	b.posts = true;
	env_work(env, ENV_WORKER_LOG, &a.job);
	while (world_step(world))
		;
	EXPECT_STR(trace, "aA(a)");
	/* Posted by the driver: an event of its own; posted twice: once. */
	env_post(env, &b.task);
	env_post(env, &b.task);
	EXPECT_STR(trace, "aA(a)");
	EXPECT_TRUE(world_step(world));
	EXPECT_STR(trace, "aA(a)(b)");
	EXPECT_FALSE(world_step(world));
	end();
}

static void run_that_posts(struct env_job *job)
{
	env_post(env, &CONTAINER_OF(job, struct step, job)->task);
}

static void run_that_starts(struct env_job *job)
{
	struct env_timer t;

	(void)job;
	env_timer_init(&t, env, ring);
	env_timer_start(&t, 0);
}

static void run_all(struct env_job *job)
{
	env_work(env, ENV_WORKER_LOG, job);
	while (world_step(world))
		;
}

TEST(a_job_keeps_off_the_loop)
{
	struct step a;

	begin(4);
	a = step_named('a');
	a.job.run = run_that_posts;
	EXPECT_ABORT_SAYS(run_all(&a.job), "in_job");
	a.job.run = run_that_starts;
	EXPECT_ABORT_SAYS(run_all(&a.job), "in_job");
	end();
}

static void call_say(void *arg)
{
	say(*(char *)arg);
}

TEST(drivers_have_events_of_their_own)
{
	char x = 'x';
	char y = 'y';
	char z = 'z';
	bool never = false;

	begin(5);
	world_at(world, 0, 20, call_say, &x);
	world_at(world, WORLD_NOBODY, 10, call_say, &y);
	world_at(world, 0, 40, call_say, &z);
	EXPECT_FALSE(world_run_flag(world, &never, 30));
	EXPECT_STR(trace, "yx");
	EXPECT_UINT(world_now_ms(world), 30);
	end();
}

/* ---- ends ---- */

static void stop_in_task(struct env_task *task)
{
	(void)task;
	say('!');
	env_fail_stop(env, "the disk refused a write");
	env_fail_stop(env, "again");
}

static bool write_at(const char *name, uint64_t off, const void *p, size_t n);

TEST(fail_stop_ends_a_node_at_once)
{
	struct step a;
	struct step b;
	struct step c;
	struct alarm_clock clock;
	struct env_job never = { .run = step_run, .done = step_done };
	char x = 'x';

	begin(6);
	clock = alarm_named('t');
	start_in(&clock, 1000);
	a = step_named('a');
	a.task.cb = stop_in_task;
	b = step_named('b');
	c = step_named('c');
	env_work(env, ENV_WORKER_LOG, &c.job);
	world_at(world, WORLD_NOBODY, 2000, call_say, &x);
	env_post(env, &a.task);
	env_post(env, &b.task);
	EXPECT_TRUE(world_step(world));
	EXPECT_STR(trace, "!");
	EXPECT_FALSE(world_alive(world, 0));
	EXPECT_FALSE(world_crashed(world, 0));
	EXPECT_STR(world_stopped(world, 0), "the disk refused a write");
	EXPECT_FALSE(write_at("f", 0, "x", 1));
	/* What the event at hand still starts is forgotten too. */
	env_work(env, ENV_WORKER_LOG, &never);
	start_in(&clock, 0);
	while (world_step(world))
		;
	EXPECT_STR(trace, "!x");
	EXPECT_UINT(world_now_ms(world), 2000);
	world_kill(world, 0);
	EXPECT_TRUE(world_alive(world, 0));
	EXPECT_NULL(world_stopped(world, 0));
	EXPECT_TRUE(write_at("f", 0, "x", 1));
	end();
}

TEST(a_kill_forgets_without_touching)
{
	struct alarm_clock *clock = malloc(sizeof(*clock));
	struct alarm_clock kept;
	struct step *a = malloc(sizeof(*a));
	struct disk_file *f;

	EXPECT_NOT_NULL(clock);
	EXPECT_NOT_NULL(a);
	begin(7);
	*clock = alarm_named('t');
	start_in(clock, 5);
	kept = alarm_named('k');
	start_in(&kept, 6);
	*a = step_named('a');
	env_work(env, ENV_WORKER_LOG, &a->job);
	env_post(env, &a->task);
	EXPECT_RC(disk_open(disk, "f", DISK_CREATE, &f, NULL), RC_OK);
	free(clock);
	free(a);
	world_kill(world, 0);
	/* The rest may be torn down later. */
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_IO);
	disk_close(f);
	env_timer_stop(&kept.timer);
	start_in(&kept, 6);
	while (world_step(world))
		;
	EXPECT_STR(trace, "k");
	end();
}

TEST(clocks)
{
	struct alarm_clock a;
	uint64_t boot;
	uint64_t wall;

	begin(8);
	EXPECT_TRUE(env->ops->wall_synced(env));
	world_wall_synced(world, 0, false);
	EXPECT_FALSE(env->ops->wall_synced(env));
	boot = env_now_ns(env);
	wall = env_wall_ms(env);
	world_run_until(world, 1500);
	EXPECT_UINT(env_now_ns(env) - boot, 1500000000);
	EXPECT_UINT(env_wall_ms(env) - wall, 1500);
	world_wall_jump(world, 0, -3600000);
	EXPECT_UINT(wall + 1500 - env_wall_ms(env), 3600000);
	EXPECT_UINT(env_now_ns(env) - boot, 1500000000);
	/* Other nodes have clocks of their own. */
	EXPECT_UINT(env_wall_ms(world_env(world, 1)), wall + 1500);
	a = alarm_named('a');
	start_in(&a, 10000);
	world_suspend(world, 0, 9000);
	EXPECT_UINT(env_now_ns(env) - boot, 10500000000);
	world_run_until(world, 2400);
	EXPECT_STR(trace, "");
	world_run_until(world, 2600);
	EXPECT_STR(trace, "a");
	/* A process that is killed does not restart its machine. */
	boot = env_now_ns(env);
	world_kill(world, 0);
	EXPECT_UINT(env_now_ns(env), boot);
	world_run_until(world, 200000);
	boot = env_now_ns(env);
	world_power_cut(world, 0);
	EXPECT_TRUE(env_now_ns(env) < boot);
	a = alarm_named('b');
	start_in(&a, 10);
	world_run_until(world, 200020);
	EXPECT_STR(trace, "ab");
	end();
}

TEST(a_paused_process_comes_late)
{
	struct alarm_clock a;
	char x = 'x';
	char y = 'y';

	begin(9);
	world_timer_late(world, 0);
	a = alarm_named('a');
	world_at(world, 0, 5, call_say, &x);
	world_at(world, WORLD_NOBODY, 6, call_say, &y);
	start_in(&a, 100);
	world_pause(world, 0, 100);
	world_run_until(world, 99);
	EXPECT_STR(trace, "y");
	world_run_until(world, 100);
	EXPECT_STR(trace, "yax");
	end();
}

TEST(a_shorter_pause_does_not_end_a_longer_one)
{
	char x = 'x';

	begin(15);
	world_at(world, 0, 5, call_say, &x);
	world_pause(world, 0, 100);
	EXPECT_TRUE(world_paused(world, 0));
	world_run_until(world, 20);
	world_pause(world, 0, 10);
	world_run_until(world, 99);
	EXPECT_STR(trace, "");
	world_run_until(world, 101);
	EXPECT_STR(trace, "x");
	EXPECT_FALSE(world_paused(world, 0));
	EXPECT_UINT(world_last(world), 0);
	end();
}

TEST(a_clock_that_drifts)
{
	struct alarm_clock a;
	uint64_t from;
	uint64_t to;

	begin(16);
	world_timer_late(world, 0);
	from = env_now_ns(env);
	world_drift(world, 0, 100000);
	world_run_until(world, 1000);
	to = env_now_ns(env);
	EXPECT_UINT((to - from) / 1000000u, 1100);
	/* Its timers go by it. */
	a = alarm_named('a');
	start_in(&a, 110);
	world_run_until(world, 1099);
	EXPECT_STR(trace, "");
	world_run_until(world, 1102);
	EXPECT_STR(trace, "a");
	/* Slowed down on the way, a timer is late by the world's time and not
	 * early by its own: ring() sees to that. */
	world_drift(world, 0, 0);
	start_in(&a, 100);
	world_drift(world, 0, -500000);
	world_run_until(world, 1250);
	EXPECT_STR(trace, "a");
	world_run_until(world, 1310);
	EXPECT_STR(trace, "aa");
	from = env_now_ns(env);
	world_drift(world, 0, 0);
	EXPECT_UINT(env_now_ns(env), from);
	end();
}

static void end_itself(void *arg)
{
	(void)arg;
	say('e');
	world_end(world, 0);
	say('n');
}

TEST(a_driver_ends_a_node)
{
	char x = 'x';

	begin(17);
	world_at(world, 0, 5, end_itself, NULL);
	world_at(world, 0, 6, call_say, &x);
	world_run_until(world, 10);
	EXPECT_STR(trace, "en");
	EXPECT_FALSE(world_alive(world, 0));
	EXPECT_TRUE(world_crashed(world, 0));
	EXPECT_TRUE(world_stopped(world, 0) == NULL);
	world_kill(world, 0);
	EXPECT_TRUE(world_alive(world, 0));
	end();
}

TEST(it_is_seen_that_time_stands_still)
{
	struct alarm_clock a;

	begin(18);
	world_timer_late(world, 0);
	a = alarm_named('.');
	a.again = 50;
	start_in(&a, 1);
	world_run_until(world, 1);
	EXPECT_TRUE(world_still(world) >= 49);
	world_at(world, WORLD_NOBODY, 9, call_say, &a.name);
	world_run_until(world, 9);
	EXPECT_UINT(world_still(world), 0);
	end();
}

static uint64_t busy_run(uint64_t seed)
{
	struct step s[6];
	struct alarm_clock a;
	uint8_t random[37];
	uint64_t hash;
	unsigned i;

	begin(seed);
	a = alarm_named('.');
	a.again = 5;
	start_in(&a, 3);
	for (i = 0; i < 6; i++) {
		s[i] = step_named((char)('a' + i));
		s[i].posts = true;
		env_work(env, i % 2 ? ENV_WORKER_LOG : ENV_WORKER_STORAGE,
			 &s[i].job);
		env_random(env, random, sizeof(random));
		EXPECT_TRUE(write_at("f", 100 * i, random, sizeof(random)));
	}
	while (world_step(world))
		;
	world_power_cut(world, 0);
	world_note(world, trace, strlen(trace));
	hash = world_hash(world);
	EXPECT_TRUE(world_events(world) > 6);
	end();
	return hash;
}

TEST(the_seed_decides_everything)
{
	uint64_t seed;

	for (seed = 0; seed < 20; seed++) {
		EXPECT_UINT(busy_run(seed), busy_run(seed));
		EXPECT_TRUE(busy_run(seed) != busy_run(seed + 1));
	}
}

TEST(random_streams_differ_by_node)
{
	uint8_t a[32];
	uint8_t b[32];

	begin(11);
	env_random(env, a, sizeof(a));
	env_random(world_env(world, 1), b, sizeof(b));
	EXPECT_TRUE(memcmp(a, b, sizeof(a)) != 0);
	EXPECT_TRUE(world_random(world, 10) < 10);
	end();
}

/* ---- files ---- */

static struct disk_file *file(const char *name, unsigned flags)
{
	struct disk_file *f = NULL;

	EXPECT_RC(disk_open(disk, name, flags, &f, NULL), RC_OK);
	return f;
}

static bool write_at(const char *name, uint64_t off, const void *p, size_t n)
{
	struct disk_file *f;
	enum rc rc = disk_open(disk, name, DISK_CREATE, &f, NULL);

	if (rc != RC_OK)
		return false;
	rc = disk_write(f, p, n, off);
	disk_close(f);
	return rc == RC_OK;
}

/* `n` bytes of `byte` at `off`. */
static void fill(struct disk_file *f, uint64_t off, size_t n, uint8_t byte)
{
	static uint8_t bytes[BUFFER];

	memset(bytes, byte, n);
	EXPECT_RC(disk_write(f, bytes, n, off), RC_OK);
}

/* A file that is wholly on the disk. */
static struct disk_file *durable(const char *name, size_t n, uint8_t byte)
{
	struct disk_file *f = file(name, DISK_CREATE);

	fill(f, 0, n, byte);
	EXPECT_RC(disk_sync(f), RC_OK);
	EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
	return f;
}

static size_t read_all(const char *name, unsigned flags, uint8_t **p)
{
	static _Alignas(DISK_ALIGN) uint8_t bytes[BUFFER];
	struct disk_file *f = file(name, flags);
	size_t got = 0;

	memset(bytes, 0xee, sizeof(bytes));
	EXPECT_RC(disk_read(f, bytes, sizeof(bytes), 0, &got), RC_OK);
	disk_close(f);
	*p = bytes;
	return got;
}

static bool exists(const char *name)
{
	struct disk_file *f;
	enum rc rc = disk_open(disk, name, DISK_READONLY, &f, NULL);

	if (rc == RC_OK)
		disk_close(f);
	else
		EXPECT_RC(rc, RC_NOT_FOUND);
	return rc == RC_OK;
}

static void fault(enum world_fault_kind kind, enum world_op op, uint64_t nth)
{
	world_fault(
		world, 0,
		&(struct world_fault){ .kind = kind, .op = op, .nth = nth });
}

TEST(files_hold_what_was_written)
{
	struct disk_file *f;
	uint64_t size = 0;
	uint8_t *p;
	size_t got;
	uint8_t end_of_file[8];

	begin(20);
	f = file("f", DISK_CREATE | DISK_EXCL);
	EXPECT_RC(disk_write(f, "hello", 5, 5000), RC_OK);
	EXPECT_RC(disk_write(f, "", 0, 9000), RC_OK);
	EXPECT_RC(disk_size(f, &size), RC_OK);
	EXPECT_UINT(size, 5005);
	EXPECT_UINT(read_all("f", 0, &p), 5005);
	EXPECT_UINT(p[0], 0);
	EXPECT_UINT(p[4999], 0);
	EXPECT_MEM(p + 5000, "hello", 5);
	EXPECT_RC(disk_read(f, end_of_file, 8, 5001, &got), RC_OK);
	EXPECT_UINT(got, 4);
	EXPECT_MEM(end_of_file, "ello", 4);
	EXPECT_RC(disk_read(f, end_of_file, 8, 6000, &got), RC_OK);
	EXPECT_UINT(got, 0);
	EXPECT_RC(disk_truncate(f, 5002), RC_OK);
	EXPECT_RC(disk_truncate(f, 5005), RC_OK);
	EXPECT_UINT(read_all("f", DISK_READONLY, &p), 5005);
	EXPECT_MEM(p + 5000, "he\0\0\0", 5);
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p), 5005);
	EXPECT_MEM(p + 5000, "he\0\0\0", 5);
	disk_close(f);
	end();
}

static void collect(void *arg, const char *name)
{
	char *names = arg;

	EXPECT_UINT(strlen(name), 1);
	names[strlen(names)] = name[0];
}

static void collect_file(void *arg, const char *name, uint64_t bytes)
{
	char *names = arg;
	size_t n = strlen(names);

	(void)snprintf(names + n, 100 - n, "%s:%u ", name, (unsigned)bytes);
}

TEST(names_and_their_errors)
{
	struct disk_file *f;
	struct detail why = { 0 };
	char names[100] = "";

	begin(21);
	EXPECT_RC(disk_open(disk, "f", 0, &f, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "open f");
	EXPECT_RC(disk_open(disk, "d/f", DISK_CREATE, &f, NULL), RC_NOT_FOUND);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_EXISTS);
	EXPECT_RC(disk_mkdir(disk, "e/e"), RC_NOT_FOUND);
	EXPECT_RC(disk_open(disk, "d", 0, &f, NULL), RC_INVALID);
	EXPECT_TRUE(write_at("d/f", 0, "abc", 3));
	EXPECT_RC(disk_open(disk, "d/f", DISK_CREATE | DISK_EXCL, &f, NULL),
		  RC_EXISTS);
	EXPECT_TRUE(write_at("g", 0, "x", 1));
	EXPECT_RC(disk_rename(disk, "d/f", "h"), RC_OK);
	EXPECT_RC(disk_rename(disk, "d/f", "h"), RC_NOT_FOUND);
	EXPECT_RC(disk_rename(disk, "g", "e/g"), RC_NOT_FOUND);
	EXPECT_RC(disk_rename(disk, "g", "g"), RC_OK);
	EXPECT_FALSE(exists("d/f"));
	EXPECT_RC(disk_unlink(disk, "d"), RC_INVALID);
	EXPECT_RC(disk_unlink(disk, "x"), RC_NOT_FOUND);
	EXPECT_TRUE(write_at("d/k", 0, "yy", 2));
	world_files(world, 0, collect_file, names);
	EXPECT_STR(names, "d/k:2 g:1 h:3 ");
	names[0] = '\0';
	memset(names, 0, sizeof(names));
	EXPECT_RC(disk_list(disk, "", collect, names), RC_OK);
	EXPECT_UINT(strlen(names), 3);
	EXPECT_TRUE(strchr(names, 'd') && strchr(names, 'g') &&
		    strchr(names, 'h'));
	EXPECT_RC(disk_list(disk, "g", collect, names), RC_NOT_FOUND);
	EXPECT_RC(disk_sync_dir(disk, "g"), RC_NOT_FOUND);
	EXPECT_RC(disk_unlink(disk, "h"), RC_OK);
	EXPECT_FALSE(exists("h"));
	EXPECT_ABORT(disk_open(disk, "../f", 0, &f, NULL));
	EXPECT_ABORT(disk_open(disk, "/f", 0, &f, NULL));
	end();
}

TEST(an_open_file_survives_its_name)
{
	struct disk_file *f;
	uint8_t byte = 0;
	size_t got;

	begin(22);
	f = durable("f", 1, 'a');
	EXPECT_RC(disk_unlink(disk, "f"), RC_OK);
	EXPECT_RC(disk_read(f, &byte, 1, 0, &got), RC_OK);
	EXPECT_UINT(byte, 'a');
	EXPECT_RC(disk_write(f, "b", 1, 0), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	end();
}

TEST(one_process_has_the_lock)
{
	struct detail why = { 0 };

	begin(23);
	EXPECT_RC(disk_lock(disk, &why), RC_OK);
	EXPECT_RC(disk_lock(disk, &why), RC_EXISTS);
	EXPECT_HAS(why.text, "another process");
	world_kill(world, 0);
	EXPECT_RC(disk_lock(disk, NULL), RC_OK);
	end();
}

TEST(direct_reads_are_aligned)
{
	static _Alignas(DISK_ALIGN) uint8_t p[2 * DISK_ALIGN];
	struct disk_file *f;
	size_t got;

	begin(24);
	f = durable("f", 100, 'a');
	disk_close(f);
	f = file("f", DISK_READONLY | DISK_DIRECT);
	EXPECT_RC(disk_read(f, p, DISK_ALIGN, 0, &got), RC_OK);
	EXPECT_UINT(got, 100);
	EXPECT_ABORT(disk_read(f, p + 1, DISK_ALIGN, 0, &got));
	EXPECT_ABORT(disk_read(f, p, 100, 0, &got));
	EXPECT_ABORT(disk_read(f, p, DISK_ALIGN, 512, &got));
	EXPECT_ABORT(disk_write(f, p, DISK_ALIGN, 0));
	disk_close(f);
	end();
}

/* ---- crashes ---- */

TEST(a_kill_keeps_the_page_cache)
{
	struct disk_file *f;
	uint8_t *p;
	size_t bytes;

	begin(30);
	f = durable("f", 4096, 'a');
	fill(f, 1024, 512, 'b');
	EXPECT_TRUE(write_at("g", 0, "x", 1));
	disk_close(f);
	world_kill(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 4096);
	EXPECT_UINT(p[1024], 'b');
	EXPECT_TRUE(exists("g"));
	/* Linux writes dirty pages back before it reads around them. */
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p), 4096);
	EXPECT_UINT(p[1024], 'b');
	/* But it is still not synced. */
	p = world_file(world, 0, "f", true, &bytes);
	EXPECT_UINT(bytes, 4096);
	EXPECT_UINT(p[1024], 'a');
	free(p);
	EXPECT_NULL(world_file(world, 0, "g", true, &bytes));
	end();
}

TEST(a_power_cut_keeps_any_subset_of_unsynced_sectors)
{
	unsigned masks_seen[16] = { 0 };
	struct disk_file *f;
	uint64_t seed;
	unsigned mask;
	unsigned s;
	uint8_t *p;

	for (seed = 0; seed < 400; seed++) {
		begin(seed);
		f = durable("f", 4096, 'a');
		fill(f, 512, 2048, 'b');
		disk_close(f);
		world_power_cut(world, 0);
		EXPECT_UINT(read_all("f", 0, &p), 4096);
		mask = 0;
		for (s = 0; s < 8; s++) {
			EXPECT_TRUE(p[s * 512] == p[s * 512 + 511]);
			if (s < 1 || s > 4)
				EXPECT_UINT(p[s * 512], 'a');
			else if (p[s * 512] == 'b')
				mask |= 1u << (s - 1);
			else
				EXPECT_UINT(p[s * 512], 'a');
		}
		masks_seen[mask]++;
		end();
	}
	for (mask = 0; mask < 16; mask++)
		EXPECT_TRUE(masks_seen[mask] > 0);
}

TEST(what_is_synced_stays)
{
	struct disk_file *f;
	uint64_t seed;
	uint8_t *p;

	for (seed = 0; seed < 50; seed++) {
		begin(seed);
		f = durable("f", 10000, 'a');
		fill(f, 3000, 6000, 'b');
		EXPECT_RC(disk_sync(f), RC_OK);
		fill(f, 0, 512, 'c');
		disk_close(f);
		world_power_cut(world, 0);
		EXPECT_UINT(read_all("f", 0, &p), 10000);
		EXPECT_TRUE(p[0] == 'a' || p[0] == 'c');
		EXPECT_UINT(p[512], 'a');
		EXPECT_UINT(p[3000], 'b');
		EXPECT_UINT(p[8999], 'b');
		EXPECT_UINT(p[9000], 'a');
		/* Nothing is left of the choice: a second cut changes nothing.
		 */
		EXPECT_TRUE(p[0] == 'a' || p[0] == 'c');
		end();
	}
}

TEST(an_unsynced_size_is_old_new_or_between)
{
	bool old = false;
	bool new = false;
	bool between = false;
	struct disk_file *f;
	uint64_t seed;
	size_t size;
	size_t i;
	uint8_t *p;

	for (seed = 0; seed < 100; seed++) {
		begin(seed);
		f = durable("f", 1000, 'a');
		fill(f, 1000, 9000, 'b');
		disk_close(f);
		world_power_cut(world, 0);
		size = read_all("f", 0, &p);
		EXPECT_TRUE(size >= 1000 && size <= 10000);
		old |= size == 1000;
		new |= size == 10000;
		between |= size > 1000 && size < 10000;
		EXPECT_TRUE(size == 1000 || size == 10000 || size % 512 == 0);
		for (i = 0; i < 1000; i++)
			EXPECT_UINT(p[i], 'a');
		for (; i < size; i++)
			EXPECT_TRUE(p[i] == 'b' || p[i] == 0);
		end();
	}
	EXPECT_TRUE(old && new &&between);
}

TEST(an_unsynced_truncate_happened_or_not)
{
	bool old = false;
	bool new = false;
	struct disk_file *f;
	uint64_t seed;
	size_t size;
	size_t i;
	uint8_t *p;

	for (seed = 0; seed < 60; seed++) {
		begin(seed);
		f = durable("f", 20000, 'a');
		EXPECT_RC(disk_truncate(f, 3000), RC_OK);
		disk_close(f);
		world_power_cut(world, 0);
		size = read_all("f", 0, &p);
		EXPECT_TRUE(size == 3000 || size == 20000);
		old |= size == 20000;
		new |= size == 3000;
		for (i = 0; i < 2560; i++)
			EXPECT_UINT(p[i], 'a');
		for (i = 3072; i < size; i++)
			EXPECT_UINT(p[i], 'a');
		end();
	}
	EXPECT_TRUE(old && new);
}

TEST(an_unsynced_name_is_there_or_not)
{
	bool there = false;
	bool gone = false;
	uint64_t seed;
	struct disk_file *f;

	for (seed = 0; seed < 40; seed++) {
		begin(seed);
		f = file("f", DISK_CREATE);
		fill(f, 0, 100, 'a');
		EXPECT_RC(disk_sync(f), RC_OK);
		disk_close(f);
		world_power_cut(world, 0);
		if (exists("f"))
			there = true;
		else
			gone = true;
		end();
	}
	EXPECT_TRUE(there && gone);
}

TEST(a_rename_is_whole)
{
	bool old = false;
	bool new = false;
	uint64_t seed;
	struct disk_file *f;
	uint8_t *p;

	for (seed = 0; seed < 40; seed++) {
		begin(seed);
		disk_close(durable("f", 10, 'a'));
		f = file("f.new", DISK_CREATE);
		fill(f, 0, 10, 'b');
		EXPECT_RC(disk_sync(f), RC_OK);
		disk_close(f);
		EXPECT_RC(disk_rename(disk, "f.new", "f"), RC_OK);
		world_power_cut(world, 0);
		EXPECT_UINT(read_all("f", 0, &p), 10);
		old |= p[0] == 'a';
		new |= p[0] == 'b';
		if (p[0] == 'b')
			EXPECT_FALSE(exists("f.new"));
		end();
	}
	EXPECT_TRUE(old && new);
}

TEST(a_synced_directory_keeps_its_names)
{
	uint64_t seed;
	struct disk_file *f;

	for (seed = 0; seed < 40; seed++) {
		begin(seed);
		EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
		EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
		disk_close(durable("old", 1, 'a'));
		f = file("d/f", DISK_CREATE);
		disk_close(f);
		EXPECT_RC(disk_rename(disk, "d/f", "g"), RC_OK);
		EXPECT_RC(disk_unlink(disk, "old"), RC_OK);
		f = file("d/k", DISK_CREATE);
		disk_close(f);
		EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
		world_power_cut(world, 0);
		EXPECT_TRUE(exists("g"));
		EXPECT_FALSE(exists("old"));
		EXPECT_FALSE(exists("d/f"));
		world_kill(world, 0);
		EXPECT_TRUE(exists("g"));
		end();
	}
}

TEST(a_file_in_a_lost_directory_is_lost)
{
	bool lost = false;
	uint64_t seed;

	for (seed = 0; seed < 40; seed++) {
		begin(seed);
		EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
		EXPECT_TRUE(write_at("d/f", 0, "x", 1));
		EXPECT_RC(disk_sync_dir(disk, "d"), RC_OK);
		world_power_cut(world, 0);
		lost |= !exists("d/f");
		end();
	}
	EXPECT_TRUE(lost);
}

/* ---- faults ---- */

TEST(a_failed_sync_leaves_the_cache_new_and_the_disk_old)
{
	struct disk_file *f;
	uint8_t *p;

	begin(40);
	f = durable("f", 4096, 'a');
	fill(f, 512, 1024, 'b');
	fault(WORLD_EIO, WORLD_SYNC, 1);
	EXPECT_RC(disk_sync(f), RC_IO);
	/* The next one says yes and does nothing. */
	EXPECT_RC(disk_sync(f), RC_OK);
	EXPECT_UINT(read_all("f", 0, &p), 4096);
	EXPECT_UINT(p[512], 'b');
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p), 4096);
	EXPECT_UINT(p[512], 'a');
	disk_close(f);
	world_kill(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 4096);
	EXPECT_UINT(p[512], 'b');
	/* Written again, it is dirty again. */
	f = file("f", 0);
	fill(f, 512, 512, 'c');
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p), 4096);
	EXPECT_UINT(p[512], 'c');
	EXPECT_UINT(p[1024], 'a');
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	world_power_cut(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 4096);
	EXPECT_UINT(p[512], 'c');
	EXPECT_UINT(p[1024], 'a');
	end();
}

TEST(dropped_caches_show_what_a_failed_sync_lost)
{
	struct disk_file *f;
	uint8_t *p;

	begin(41);
	f = durable("f", 1000, 'a');
	fill(f, 0, 3000, 'b');
	fault(WORLD_NO_SPACE, WORLD_SYNC, 1);
	EXPECT_RC(disk_sync(f), RC_NO_SPACE);
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	EXPECT_UINT(read_all("f", 0, &p), 3000);
	world_drop_caches(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 1000);
	EXPECT_UINT(p[0], 'a');
	end();
}

TEST(a_failed_directory_sync_is_never_made_up_for)
{
	uint64_t seed;

	for (seed = 0; seed < 20; seed++) {
		begin(seed);
		EXPECT_TRUE(write_at("f", 0, "x", 1));
		fault(WORLD_EIO, WORLD_SYNC_DIR, 1);
		EXPECT_RC(disk_sync_dir(disk, ""), RC_IO);
		EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
		EXPECT_TRUE(exists("f"));
		world_power_cut(world, 0);
		EXPECT_FALSE(exists("f"));
		end();
	}
}

static void three_writes_and_a_sync(enum rc *rc)
{
	struct disk_file *f = file("f", 0);

	rc[0] = disk_write(f, "b", 1, 0);
	rc[1] = disk_write(f, "b", 1, 512);
	rc[2] = disk_write(f, "b", 1, 1024);
	rc[3] = disk_sync(f);
	disk_close(f);
}

static void crash_case(enum world_fault_kind kind, enum world_op op,
		       uint64_t nth, const char *want)
{
	enum rc rc[4];
	uint8_t *p;

	begin(42);
	disk_close(durable("f", 1536, 'a'));
	fault(kind, op, nth);
	three_writes_and_a_sync(rc);
	EXPECT_TRUE(world_crashed(world, 0));
	EXPECT_FALSE(world_alive(world, 0));
	EXPECT_NULL(world_stopped(world, 0));
	EXPECT_RC(rc[3], RC_IO);
	EXPECT_UINT(world_faults_fired(world, 0), 1);
	world_kill(world, 0);
	EXPECT_FALSE(world_crashed(world, 0));
	EXPECT_UINT(read_all("f", 0, &p), 1536);
	EXPECT_UINT(p[0], want[0]);
	EXPECT_UINT(p[512], want[1]);
	EXPECT_UINT(p[1024], want[2]);
	end();
}

TEST(a_crash_point_freezes_the_disk)
{
	crash_case(WORLD_CRASH_BEFORE, WORLD_WRITE, 1, "aaa");
	crash_case(WORLD_CRASH_AFTER, WORLD_WRITE, 1, "baa");
	crash_case(WORLD_CRASH_BEFORE, WORLD_WRITE, 3, "bba");
	crash_case(WORLD_CRASH_AFTER, WORLD_WRITE, 3, "bbb");
	crash_case(WORLD_CRASH_BEFORE, WORLD_CHANGE, 4, "bbb");
}

TEST(a_crash_around_a_sync)
{
	enum rc rc[4];
	uint64_t seed;
	uint8_t *p;
	bool lost = false;

	for (seed = 0; seed < 30; seed++) {
		begin(seed);
		disk_close(durable("f", 1536, 'a'));
		fault(WORLD_CRASH_AFTER, WORLD_SYNC, 1);
		three_writes_and_a_sync(rc);
		EXPECT_RC(rc[2], RC_OK);
		EXPECT_RC(rc[3], RC_IO);
		world_power_cut(world, 0);
		EXPECT_UINT(read_all("f", 0, &p), 1536);
		EXPECT_TRUE(p[0] == 'b' && p[512] == 'b' && p[1024] == 'b');
		/* Before it, anything may be missing. */
		fault(WORLD_CRASH_BEFORE, WORLD_SYNC, 1);
		disk_close(file("f", 0));
		EXPECT_TRUE(write_at("f", 0, "c", 1));
		three_writes_and_a_sync(rc);
		EXPECT_TRUE(world_crashed(world, 0));
		world_power_cut(world, 0);
		end();
		begin(seed + 1000);
		disk_close(durable("f", 1536, 'a'));
		fault(WORLD_CRASH_BEFORE, WORLD_SYNC, 1);
		three_writes_and_a_sync(rc);
		world_power_cut(world, 0);
		EXPECT_UINT(read_all("f", 0, &p), 1536);
		lost |= p[0] == 'a';
		end();
	}
	EXPECT_TRUE(lost);
}

TEST(every_operation_can_be_the_last)
{
	static const enum world_op ops[] = {
		WORLD_CREATE,   WORLD_WRITE,    WORLD_SYNC,
		WORLD_TRUNCATE, WORLD_MKDIR,    WORLD_RENAME,
		WORLD_UNLINK,   WORLD_SYNC_DIR, WORLD_READ,
	};
	struct disk_file *f;
	unsigned i;
	uint8_t byte;
	size_t got;

	for (i = 0; i < ARRAY_LEN(ops); i++) {
		runner_context("operation %u", i);
		begin(i);
		fault(i % 2 ? WORLD_CRASH_BEFORE : WORLD_CRASH_AFTER, ops[i],
		      1);
		if (disk_open(disk, "f", DISK_CREATE, &f, NULL) == RC_OK) {
			(void)disk_write(f, "x", 1, 0);
			(void)disk_sync(f);
			(void)disk_truncate(f, 0);
			(void)disk_read(f, &byte, 1, 0, &got);
			disk_close(f);
		}
		(void)disk_mkdir(disk, "d");
		(void)disk_rename(disk, "f", "d/g");
		(void)disk_unlink(disk, "d/g");
		(void)disk_sync_dir(disk, "");
		EXPECT_TRUE(world_crashed(world, 0));
		EXPECT_UINT(world_count(world, 0, ops[i]), 1);
		EXPECT_RC(disk_mkdir(disk, "e"), RC_IO);
		EXPECT_RC(disk_lock(disk, NULL), RC_IO);
		EXPECT_RC(disk_list(disk, "", collect, NULL), RC_IO);
		EXPECT_RC(disk_birth(disk, &(struct disk_birth){ 0 }), RC_IO);
		EXPECT_RC(disk_space(disk, &(struct disk_space){ 0 }), RC_IO);
		end();
	}
}

TEST(a_failed_write_changes_nothing)
{
	struct disk_file *f;
	uint8_t *p;

	begin(43);
	f = durable("f", 2048, 'a');
	fault(WORLD_EIO, WORLD_WRITE, 1);
	fault(WORLD_NO_SPACE, WORLD_WRITE, 2);
	EXPECT_RC(disk_write(f, "b", 1, 0), RC_IO);
	EXPECT_RC(disk_write(f, "b", 1, 0), RC_NO_SPACE);
	EXPECT_RC(disk_write(f, "b", 1, 1), RC_OK);
	disk_close(f);
	EXPECT_UINT(read_all("f", 0, &p), 2048);
	EXPECT_MEM(p, "aba", 3);
	EXPECT_TRUE(world_alive(world, 0));
	end();
}

TEST(a_short_write_leaves_whole_sectors)
{
	bool some = false;
	bool none = false;
	uint8_t bytes[5000];
	struct disk_file *f;
	uint64_t seed;
	uint64_t size;
	uint8_t *p;
	size_t i;

	memset(bytes, 'b', sizeof(bytes));
	for (seed = 0; seed < 100; seed++) {
		begin(seed);
		f = durable("f", 6000, 'a');
		fault(WORLD_SHORT, WORLD_WRITE, 1);
		EXPECT_RC(disk_write(f, bytes, sizeof(bytes), 700), RC_IO);
		EXPECT_RC(disk_size(f, &size), RC_OK);
		EXPECT_UINT(size, 6000);
		disk_close(f);
		EXPECT_UINT(read_all("f", 0, &p), 6000);
		for (i = 0; i < 700; i++)
			EXPECT_UINT(p[i], 'a');
		for (; i < 5700 && p[i] == 'b'; i++)
			;
		EXPECT_TRUE(i == 700 || (i < 5700 && i % 512 == 0));
		none |= i == 700;
		some |= i > 700;
		for (; i < 6000; i++)
			EXPECT_UINT(p[i], 'a');
		end();
	}
	EXPECT_TRUE(some && none);
}

TEST(a_lost_write_shows_only_later)
{
	struct disk_file *f;
	uint8_t *p;

	begin(44);
	f = durable("f", 8192, 'a');
	fault(WORLD_LOST, WORLD_WRITE, 1);
	fill(f, 4096, 512, 'b');
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	EXPECT_UINT(read_all("f", 0, &p), 8192);
	EXPECT_UINT(p[4096], 'b');
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p), 8192);
	EXPECT_UINT(p[4096], 'a');
	world_power_cut(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 8192);
	EXPECT_UINT(p[4096], 'a');
	end();
}

TEST(a_misdirected_write_hits_another_place)
{
	struct disk_file *f;
	unsigned i;
	unsigned hit = 0;
	uint8_t *p;

	begin(45);
	f = durable("f", 8 * 4096, 'a');
	fault(WORLD_MISDIRECTED, WORLD_WRITE, 1);
	fill(f, 4096 + 512, 512, 'b');
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	EXPECT_UINT(read_all("f", 0, &p), 8 * 4096);
	EXPECT_UINT(p[4096 + 512], 'b');
	world_power_cut(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 8 * 4096);
	EXPECT_UINT(p[4096 + 512], 'a');
	for (i = 0; i < 64; i++)
		hit += p[i * 512] == 'b';
	EXPECT_UINT(hit, 1);
	end();
}

TEST(bad_reads_and_flipped_bits)
{
	struct disk_file *f;
	uint8_t bytes[100];
	uint8_t want[100];
	size_t got;
	size_t i;
	unsigned bits = 0;
	uint8_t *p;

	begin(46);
	memset(want, 'a', sizeof(want));
	f = durable("f", 100, 'a');
	fault(WORLD_EIO, WORLD_READ, 1);
	fault(WORLD_BAD_READ, WORLD_READ, 2);
	EXPECT_RC(disk_read(f, bytes, 100, 0, &got), RC_IO);
	EXPECT_RC(disk_read(f, bytes, 100, 0, &got), RC_OK);
	for (i = 0; i < 100; i++)
		bits += (unsigned)__builtin_popcount(bytes[i] ^ want[i]);
	EXPECT_UINT(bits, 1);
	EXPECT_RC(disk_read(f, bytes, 100, 0, &got), RC_OK);
	EXPECT_MEM(bytes, want, 100);
	disk_close(f);
	EXPECT_RC(world_flip(world, 0, "f", 7, 0), RC_OK);
	EXPECT_RC(world_flip(world, 0, "f", 100, 0), RC_INVALID);
	EXPECT_RC(world_flip(world, 0, "x", 0, 0), RC_NOT_FOUND);
	world_power_cut(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), 100);
	EXPECT_UINT(p[7], 'a' ^ 1);
	end();
}

TEST(faults_choose_by_name_and_may_stay)
{
	struct disk_file *f;
	struct disk_file *g;

	begin(47);
	f = file("f", DISK_CREATE);
	g = file("g", DISK_CREATE);
	world_fault(world, 0,
		    &(struct world_fault){ .kind = WORLD_EIO,
					   .op = WORLD_WRITE,
					   .nth = 2,
					   .prefix = "g",
					   .sticky = true });
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_OK);
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_OK);
	EXPECT_RC(disk_write(g, "x", 1, 0), RC_OK);
	EXPECT_RC(disk_write(g, "x", 1, 0), RC_IO);
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_OK);
	EXPECT_RC(disk_write(g, "x", 1, 0), RC_IO);
	EXPECT_UINT(world_faults_fired(world, 0), 2);
	world_faults_clear(world, 0);
	EXPECT_RC(disk_write(g, "x", 1, 0), RC_OK);
	disk_close(f);
	disk_close(g);
	end();
}

TEST(a_disk_gets_full)
{
	struct disk_space space;
	struct disk_file *f;
	uint8_t bytes[8192] = { 1 };

	begin(48);
	world_capacity(world, 0, 5 * 4096);
	f = file("f", DISK_CREATE);
	EXPECT_RC(disk_write(f, bytes, 8192, 0), RC_OK);
	EXPECT_RC(disk_write(f, bytes, 8192, 8192), RC_OK);
	EXPECT_RC(disk_space(disk, &space), RC_OK);
	EXPECT_UINT(space.bytes_total, 5 * 4096);
	EXPECT_UINT(space.bytes_free, 4096);
	EXPECT_RC(disk_write(f, bytes, 8192, 16384), RC_NO_SPACE);
	/* What is there may be written over. */
	EXPECT_RC(disk_write(f, bytes, 8192, 0), RC_OK);
	EXPECT_RC(disk_truncate(f, 4096), RC_OK);
	EXPECT_RC(disk_space(disk, &space), RC_OK);
	EXPECT_UINT(space.bytes_free, 4 * 4096);
	EXPECT_RC(disk_write(f, bytes, 8192, 4096), RC_OK);
	/* Also beyond its end: a power cut may bring back what was removed. */
	world_capacity(world, 0, 4096);
	EXPECT_RC(disk_write(f, bytes, 8192, 4096), RC_OK);
	EXPECT_RC(disk_write(f, bytes, 8192, 8192), RC_NO_SPACE);
	world_capacity(world, 0, 5 * 4096);
	disk_close(f);
	EXPECT_RC(disk_unlink(disk, "f"), RC_OK);
	EXPECT_RC(disk_space(disk, &space), RC_OK);
	EXPECT_UINT(space.bytes_free, 5 * 4096);
	end();
}

TEST(a_copied_directory_has_another_birth)
{
	struct disk_birth a;
	struct disk_birth b;
	struct disk_birth c;
	size_t bytes;
	uint8_t *p;

	begin(49);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
	EXPECT_TRUE(write_at("d/f", 5000, "abc", 3));
	EXPECT_RC(disk_birth(disk, &a), RC_OK);
	world_copy(world, 0, 3);
	EXPECT_RC(disk_birth(world_disk(world, 3), &b), RC_OK);
	EXPECT_TRUE(a.inode != b.inode);
	EXPECT_TRUE(a.birth_ns != b.birth_ns);
	EXPECT_TRUE(a.birth_ns > 0);
	/* The copy is on the disk, whatever became of the original. */
	world_power_cut(world, 3);
	p = world_file(world, 3, "d/f", false, &bytes);
	EXPECT_NOT_NULL(p);
	EXPECT_UINT(bytes, 5003);
	EXPECT_MEM(p + 5000, "abc", 3);
	free(p);
	EXPECT_RC(disk_birth(disk, &c), RC_OK);
	EXPECT_TRUE(c.inode == a.inode && c.birth_ns == a.birth_ns);
	world_wipe(world, 0);
	EXPECT_FALSE(exists("d/f"));
	EXPECT_RC(disk_birth(disk, &c), RC_OK);
	EXPECT_TRUE(c.inode != a.inode);
	world_birth_hidden(world, 0, true);
	EXPECT_RC(disk_birth(disk, &c), RC_OK);
	EXPECT_UINT(c.birth_ns, 0);
	end();
}

TEST(a_clone_is_what_is_durable_and_keeps_its_birth)
{
	struct disk_birth a;
	struct disk_birth b;
	struct disk_file *f;
	size_t bytes;
	uint8_t *p;

	begin(51);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
	disk_close(durable("f", 5000, 'a'));
	f = file("f", 0);
	EXPECT_RC(disk_write(f, "bbb", 3, 600), RC_OK);
	disk_close(file("unsynced", DISK_CREATE));
	EXPECT_RC(disk_birth(disk, &a), RC_OK);
	world_clone(world, 0, 3);
	EXPECT_RC(disk_birth(world_disk(world, 3), &b), RC_OK);
	EXPECT_TRUE(a.inode == b.inode && a.birth_ns == b.birth_ns);
	p = world_file(world, 3, "f", false, &bytes);
	EXPECT_NOT_NULL(p);
	EXPECT_UINT(bytes, 5000);
	EXPECT_MEM(p + 599, "aaaaa", 5);
	free(p);
	EXPECT_TRUE(world_file(world, 3, "unsynced", false, &bytes) == NULL);
	EXPECT_TRUE(world_used(world, 3) >= 5000);
	disk_close(f);
	end();
}

static void count_name(void *arg, const char *name)
{
	(void)name;
	++*(unsigned *)arg;
}

TEST(what_is_durable_can_be_read_while_the_disk_is_used)
{
	struct disk *d;
	struct disk_file *f;
	struct disk_file *g;
	unsigned names = 0;
	uint64_t size;
	char got[8];
	size_t n;

	begin(52);
	disk_close(durable("f", 1000, 'a'));
	f = file("f", 0);
	EXPECT_RC(disk_write(f, "bbbb", 4, 510), RC_OK);
	EXPECT_RC(disk_write(f, "cccc", 4, 998), RC_OK);
	disk_close(file("unsynced", DISK_CREATE));
	d = world_durable(world, 0);
	EXPECT_RC(disk_open(d, "unsynced", DISK_READONLY, &g, NULL),
		  RC_NOT_FOUND);
	EXPECT_RC(disk_open(d, "f", DISK_READONLY, &g, NULL), RC_OK);
	EXPECT_RC(d->ops->size(g, &size), RC_OK);
	EXPECT_UINT(size, 1000);
	EXPECT_RC(disk_read(g, got, 6, 508, &n), RC_OK);
	EXPECT_UINT(n, 6);
	EXPECT_MEM(got, "aaaaaa", 6);
	EXPECT_RC(disk_read(g, got, 8, 996, &n), RC_OK);
	EXPECT_UINT(n, 4);
	EXPECT_RC(d->ops->list(d, "", count_name, &names), RC_OK);
	EXPECT_UINT(names, 1);
	/* And then it is. */
	EXPECT_RC(disk_sync(f), RC_OK);
	EXPECT_RC(disk_read(g, got, 6, 508, &n), RC_OK);
	EXPECT_MEM(got, "aabbbb", 6);
	disk_close(g);
	disk_close(f);
	end();
}

static void run_with_sync(struct env_job *job)
{
	(void)job;
	disk_close(durable("f", 100, 'a'));
}

TEST(syncs_take_their_time)
{
	struct step a;
	struct step b;

	begin(50);
	world_sync_time(world, 0, 10, 20, 10000, 400);
	a = step_named('a');
	a.job.run = run_with_sync;
	b = step_named('b');
	env_work(env, ENV_WORKER_LOG, &a.job);
	env_work(env, ENV_WORKER_LOG, &b.job);
	/* Two syncs, of the file and of the directory: it hangs once. */
	world_run_until(world, 400);
	EXPECT_STR(trace, "");
	world_run_until(world, 401);
	EXPECT_UINT(strlen(trace), 3);
	EXPECT_TRUE(place('b') < place('B'));
	EXPECT_TRUE(place('A') < place('B'));
	EXPECT_ABORT(world_sync_time(world, 0, 20, 10, 0, 0));
	end();
}

/* A test that fails every allocation of a node has a world to do it in. */
TEST(the_world_needs_no_memory_of_the_test)
{
	struct disk_file *f;
	struct alarm_clock a;

	begin(51);
	a = alarm_named('a');
	fault_alloc_from(1);
	start_in(&a, 1);
	f = durable("f", 5000, 'a');
	disk_close(f);
	while (world_step(world))
		;
	world_power_cut(world, 0);
	EXPECT_UINT(fault_count(), 0);
	EXPECT_NULL(malloc(1));
	EXPECT_TRUE(fault_off());
	EXPECT_STR(trace, "a");
	end();
}

/* ---- a model ---- */

#define MODEL_SECTORS 40u

struct model {
	uint8_t now[MODEL_SECTORS];
	uint8_t disk[MODEL_SECTORS];
	bool lost[MODEL_SECTORS];
};

static void model_write(struct model *m, struct disk_file *f, uint8_t byte)
{
	unsigned first = (unsigned)world_random(world, MODEL_SECTORS);
	unsigned n = 1 + (unsigned)world_random(world, MODEL_SECTORS - first);
	unsigned s;

	fill(f, first * 512, n * 512, byte);
	for (s = first; s < first + n; s++) {
		m->now[s] = byte;
		m->lost[s] = false;
	}
}

static void model_sync(struct model *m, struct disk_file *f)
{
	bool fails = world_random(world, 4) == 0;
	unsigned s;

	if (fails)
		fault(WORLD_EIO, WORLD_SYNC, 1);
	EXPECT_RC(disk_sync(f), fails ? RC_IO : RC_OK);
	for (s = 0; s < MODEL_SECTORS; s++) {
		if (m->lost[s])
			continue;
		if (fails)
			m->lost[s] = m->now[s] != m->disk[s];
		else
			m->disk[s] = m->now[s];
	}
}

static void model_cut(struct model *m)
{
	uint8_t *p;
	unsigned s;

	world_power_cut(world, 0);
	EXPECT_UINT(read_all("f", 0, &p), MODEL_SECTORS * 512);
	for (s = 0; s < MODEL_SECTORS; s++) {
		uint8_t byte = p[s * 512];

		EXPECT_UINT(p[s * 512 + 511], byte);
		EXPECT_TRUE(byte == m->disk[s] ||
			    (byte == m->now[s] && !m->lost[s]));
		m->now[s] = m->disk[s] = byte;
		m->lost[s] = false;
	}
}

static void model_read(const struct model *m)
{
	uint8_t *p;
	unsigned s;

	EXPECT_UINT(read_all("f", 0, &p), MODEL_SECTORS * 512);
	for (s = 0; s < MODEL_SECTORS; s++)
		EXPECT_UINT(p[s * 512], m->now[s]);
	EXPECT_UINT(read_all("f", DISK_READONLY | DISK_DIRECT, &p),
		    MODEL_SECTORS * 512);
	for (s = 0; s < MODEL_SECTORS; s++)
		EXPECT_UINT(p[s * 512], m->lost[s] ? m->disk[s] : m->now[s]);
}

/* A lost sector that was written with the same byte is not lost for the model:
 * each write brings a new byte. */
TEST(random_histories_agree_with_a_model)
{
	struct model m;
	struct disk_file *f;
	uint64_t seed;
	uint8_t byte;
	unsigned i;

	for (seed = 0; seed < 100; seed++) {
		runner_context("seed %u", (unsigned)seed);
		begin(seed);
		memset(&m, 0, sizeof(m));
		disk_close(durable("f", MODEL_SECTORS * 512, 0));
		for (i = 0, byte = 1; i < 60; i++, byte++) {
			f = file("f", 0);
			switch (world_random(world, 6)) {
			case 0:
			case 1:
			case 2:
				model_write(&m, f, byte);
				break;
			case 3:
			case 4:
				model_sync(&m, f);
				break;
			default:
				if (world_random(world, 3) == 0)
					model_cut(&m);
				else
					world_kill(world, 0);
				break;
			}
			disk_close(f);
			model_read(&m);
		}
		end();
	}
}
