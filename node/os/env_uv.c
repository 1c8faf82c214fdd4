/*
 * The end of a turn. libuv runs, in each iteration: timers (before 1.45; after
 * it, last), prepare, the wait for I/O with its callbacks, check. Tasks run in
 * check, so those that a timer posted share a turn with the I/O that is ready.
 * Prepare sees to it that the wait does not block while something is posted: an
 * active idle handle makes its timeout 0.
 */
#include "node/os/env_uv.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/timex.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/logline.h"

#define ENV_UV_MAGIC   0xe4f0a701u
#define HEAP_FIRST     4096u
#define RANDOM_BLOCK   1024u
#define EXIT_FAIL_STOP 70 /* EX_SOFTWARE of sysexits.h */
#define MS             UINT64_C(1000000)

static struct env_uv *env_uv_of(struct env *env)
{
	struct env_uv *e = CONTAINER_OF(env, struct env_uv, env);

	CHECK_OBJ(e, ENV_UV_MAGIC);
	return e;
}

/* ---- clocks, randomness, the end ---- */

static uint64_t clock_ns(clockid_t id)
{
	struct timespec t;

	CHECK(clock_gettime(id, &t) == 0);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Asked each time: what is cached for a turn would let a leadership round seem
 * younger than the event that it is to confirm. */
static uint64_t uv_env_now_ns(struct env *env)
{
	(void)env;
	return clock_ns(CLOCK_BOOTTIME);
}

static uint64_t now_ms(void)
{
	return clock_ns(CLOCK_BOOTTIME) / MS;
}

static uint64_t uv_env_wall_ms(struct env *env)
{
	(void)env;
	return clock_ns(CLOCK_REALTIME) / MS;
}

static bool uv_env_wall_synced(struct env *env)
{
	struct timex t = { .modes = 0 };

	(void)env;
	return adjtimex(&t) != TIME_ERROR && !(t.status & STA_UNSYNC);
}

static void from_kernel(void *out, size_t n)
{
	uint8_t *at = out;
	ssize_t got;

	while (n > 0) {
		got = getrandom(at, n, 0);
		if (got < 0 && errno == EINTR)
			continue;
		CHECK(got > 0);
		at += got;
		n -= (size_t)got;
	}
}

/* Each thread has a block of its own; what was given out is wiped. */
static void uv_env_random(struct env *env, void *out, size_t n)
{
	static _Thread_local uint8_t block[RANDOM_BLOCK];
	static _Thread_local size_t left;
	uint8_t *at;

	(void)env;
	if (n > RANDOM_BLOCK / 4) {
		from_kernel(out, n);
		return;
	}
	if (left < n) {
		from_kernel(block, sizeof(block));
		left = sizeof(block);
	}
	left -= n;
	at = block + left;
	memcpy(out, at, n);
	explicit_bzero(at, n);
}

/* Not through the log's sink: it may be what failed. */
static void uv_env_fail_stop(struct env *env, const char *why)
{
	const struct log_field field = log_f_str("why", why);
	char line[1024];
	size_t n;

	(void)env;
	n = logline_format(line, sizeof(line), LOG_ERROR_LEVEL, "fail_stop",
			   &field, 1);
	(void)!write(STDERR_FILENO, line, n);
	_exit(EXIT_FAIL_STOP);
}

/* ---- timers ---- */

static bool sooner(const struct env_uv_slot *a, const struct env_uv_slot *b)
{
	return a->at_ms != b->at_ms ? a->at_ms < b->at_ms : a->seq < b->seq;
}

static void slot_put(struct env_uv *e, size_t pos, struct env_uv_slot s)
{
	e->heap[pos] = s;
	s.t->impl[0] = (void *)(uintptr_t)pos;
}

static void slot_up(struct env_uv *e, size_t pos, struct env_uv_slot s)
{
	size_t up;

	for (; pos > 0; pos = up) {
		up = (pos - 1) / 2;
		if (!sooner(&s, &e->heap[up]))
			break;
		slot_put(e, pos, e->heap[up]);
	}
	slot_put(e, pos, s);
}

static void slot_down(struct env_uv *e, size_t pos, struct env_uv_slot s)
{
	size_t down;

	for (; (down = 2 * pos + 1) < e->heap_n; pos = down) {
		if (down + 1 < e->heap_n &&
		    sooner(&e->heap[down + 1], &e->heap[down]))
			down++;
		if (!sooner(&e->heap[down], &s))
			break;
		slot_put(e, pos, e->heap[down]);
	}
	slot_put(e, pos, s);
}

static void slot_remove(struct env_uv *e, size_t pos)
{
	struct env_uv_slot last = e->heap[--e->heap_n];

	if (pos == e->heap_n)
		return;
	if (pos > 0 && sooner(&last, &e->heap[(pos - 1) / 2]))
		slot_up(e, pos, last);
	else
		slot_down(e, pos, last);
}

/* False: no memory. */
static bool heap_reserve(struct env_uv *e)
{
	struct env_uv_slot *wider;

	if (e->heap_n < e->heap_max)
		return true;
	wider = realloc(e->heap, 2 * e->heap_max * sizeof(*wider));
	if (wider == NULL)
		return false;
	e->heap = wider;
	e->heap_max *= 2;
	return true;
}

static void timer_fired(uv_timer_t *timer);

/*
 * One libuv timer serves all: it is set when an earlier one than it is set for
 * comes first. When that one is stopped again it fires for nothing, which is
 * cheaper than to set it at each start and stop. libuv counts CLOCK_MONOTONIC
 * from its cached time: it may fire a little early, or late after the machine
 * was suspended; timer_fired() looks at the real time.
 */
static void arm(struct env_uv *e)
{
	uint64_t now;
	uint64_t at;

	if (e->heap_n == 0 || e->batch_ms > 0)
		return;
	at = e->heap[0].at_ms;
	if (e->armed_ms <= at)
		return;
	now = now_ms();
	CHECK(uv_timer_start(&e->timer, timer_fired, at > now ? at - now : 0,
			     0) == 0);
	e->armed_ms = at;
}

static void timer_fired(uv_timer_t *timer)
{
	struct env_uv *e = timer->data;
	struct env_timer *t;

	CHECK_OBJ(e, ENV_UV_MAGIC);
	e->armed_ms = UINT64_MAX;
	e->batch_ms = now_ms();
	while (e->heap_n > 0 && e->heap[0].at_ms <= e->batch_ms) {
		t = e->heap[0].t;
		slot_remove(e, 0);
		t->running = false;
		t->cb(t); /* It may be gone: nothing after. */
	}
	e->batch_ms = 0;
	arm(e);
}

static void uv_env_timer_start(struct env_timer *t)
{
	struct env_uv *e = env_uv_of(t->env);
	struct env_uv_slot s = { t->at_ms, e->seq++, t };

	PRE(t->cb != NULL);
	PRE(!t->running);
	if (!heap_reserve(e)) {
		uv_env_fail_stop(t->env, "no memory for timers");
		return;
	}
	/* Started by one that rings now, it rings in the next batch, however
	 * long ago its time was: a batch comes to its end. */
	if (s.at_ms <= e->batch_ms)
		s.at_ms = e->batch_ms + 1;
	t->running = true;
	slot_up(e, e->heap_n++, s);
	arm(e);
}

static void uv_env_timer_stop(struct env_timer *t)
{
	struct env_uv *e = env_uv_of(t->env);
	size_t pos = (size_t)(uintptr_t)t->impl[0];

	PRE(t->running);
	CHECK(pos < e->heap_n);
	CHECK(e->heap[pos].t == t);
	slot_remove(e, pos);
	t->running = false;
}

/* ---- the end of a turn ---- */

static void uv_env_post(struct env *env, struct env_task *task)
{
	turn_post(&env_uv_of(env)->turn, task);
}

static void nothing(uv_idle_t *idle)
{
	(void)idle;
}

static void before_wait(uv_prepare_t *prepare)
{
	struct env_uv *e = prepare->data;

	if (e->turn.pending > 0)
		CHECK(uv_idle_start(&e->idle, nothing) == 0);
}

/* Six clock readings a turn tell where the loop's time goes. */
static void phase_passed(struct turn *t, enum env_phase phase)
{
	struct env_uv *e = CONTAINER_OF(t, struct env_uv, turn);
	uint64_t now = env_now_ns(&e->env);

	e->phase_ns[phase] += now - e->phase_at_ns;
	e->phase_at_ns = now;
}

static void after_wait(uv_check_t *check)
{
	struct env_uv *e = check->data;

	CHECK_OBJ(e, ENV_UV_MAGIC);
	if (uv_is_active((uv_handle_t *)&e->idle))
		CHECK(uv_idle_stop(&e->idle) == 0);
	if (e->turn.pending > 0) {
		e->phase_at_ns = env_now_ns(&e->env);
		turn_run(&e->turn);
	}
}

uint64_t env_uv_worker_cpu_ns(const struct env_uv *e, enum env_worker w)
{
	struct timespec t;
	clockid_t clock;

	if (pthread_getcpuclockid(e->workers[w].thread, &clock) != 0 ||
	    clock_gettime(clock, &t) != 0)
		return 0;
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- workers ---- */

static void job_came_back(struct env_uv *e, struct env_job *job)
{
	bool first;

	uv_mutex_lock(&e->done_mutex);
	first = STAILQ_EMPTY(&e->done);
	STAILQ_INSERT_TAIL(&e->done, job, link);
	uv_mutex_unlock(&e->done_mutex);
	/* Else the loop has been woken and has not come to the list yet. */
	if (first)
		CHECK(uv_async_send(&e->async) == 0);
}

/* The jobs that wait, or none when the worker is to stop. */
static void wait_for_jobs(struct env_uv_worker *w, struct env_uv_jobs *jobs)
{
	uv_mutex_lock(&w->mutex);
	while (STAILQ_EMPTY(&w->queue) && !w->stop) {
		w->idle = true;
		uv_cond_wait(&w->cond, &w->mutex);
	}
	w->idle = false;
	STAILQ_CONCAT(jobs, &w->queue);
	uv_mutex_unlock(&w->mutex);
}

static void worker_main(void *arg)
{
	static const char *const names[ENV_WORKERS] = { "hf-log",
							"hf-storage" };
	struct env_uv_worker *w = arg;
	struct env_uv_jobs jobs = STAILQ_HEAD_INITIALIZER(jobs);
	struct env_job *job;

	(void)pthread_setname_np(pthread_self(), names[w->index]);
	for (;;) {
		wait_for_jobs(w, &jobs);
		if (STAILQ_EMPTY(&jobs))
			return;
		while ((job = STAILQ_FIRST(&jobs)) != NULL) {
			STAILQ_REMOVE_HEAD(&jobs, link);
			job->run(job);
			job_came_back(w->e, job);
		}
	}
}

static void uv_env_work(struct env *env, enum env_worker worker,
			struct env_job *job)
{
	struct env_uv *e = env_uv_of(env);
	struct env_uv_worker *w;
	bool wake;

	PRE(worker < ENV_WORKERS);
	PRE(job->run != NULL);
	PRE(job->done != NULL);
	w = &e->workers[worker];
	e->jobs++;
	uv_mutex_lock(&w->mutex);
	STAILQ_INSERT_TAIL(&w->queue, job, link);
	/* A busy worker looks at the queue before it sleeps; one that was woken
	 * already must not be woken twice. */
	wake = w->idle;
	w->idle = false;
	uv_mutex_unlock(&w->mutex);
	if (wake)
		uv_cond_signal(&w->cond);
}

static void jobs_done(uv_async_t *async)
{
	struct env_uv *e = async->data;
	struct env_uv_jobs jobs = STAILQ_HEAD_INITIALIZER(jobs);
	struct env_job *job;

	CHECK_OBJ(e, ENV_UV_MAGIC);
	uv_mutex_lock(&e->done_mutex);
	STAILQ_CONCAT(&jobs, &e->done);
	uv_mutex_unlock(&e->done_mutex);
	while ((job = STAILQ_FIRST(&jobs)) != NULL) {
		STAILQ_REMOVE_HEAD(&jobs, link);
		CHECK(e->jobs > 0);
		e->jobs--;
		job->done(job); /* It may be gone: nothing after. */
	}
}

static enum rc rc_of_uv(int status)
{
	return status == UV_ENOMEM ? RC_NOMEM : RC_OVERLOADED;
}

/* Signals are for the loop's thread. */
static int thread_start(struct env_uv_worker *w)
{
	sigset_t all;
	sigset_t before;
	int status;

	CHECK(sigfillset(&all) == 0);
	CHECK(pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
	status = uv_thread_create(&w->thread, worker_main, w);
	CHECK(pthread_sigmask(SIG_SETMASK, &before, NULL) == 0);
	return status;
}

static enum rc worker_start(struct env_uv *e, unsigned index)
{
	struct env_uv_worker *w = &e->workers[index];
	int status;

	w->e = e;
	w->index = index;
	STAILQ_INIT(&w->queue);
	status = uv_mutex_init(&w->mutex);
	if (status != 0)
		return rc_of_uv(status);
	status = uv_cond_init(&w->cond);
	if (status != 0)
		goto no_cond;
	status = thread_start(w);
	if (status == 0)
		return RC_OK;
	uv_cond_destroy(&w->cond);
no_cond:
	uv_mutex_destroy(&w->mutex);
	return rc_of_uv(status);
}

static void worker_stop(struct env_uv_worker *w)
{
	uv_mutex_lock(&w->mutex);
	w->stop = true;
	uv_mutex_unlock(&w->mutex);
	uv_cond_signal(&w->cond);
	CHECK(uv_thread_join(&w->thread) == 0);
	uv_cond_destroy(&w->cond);
	uv_mutex_destroy(&w->mutex);
}

/* ---- life ---- */

static const struct env_ops uv_env_ops = {
	.now_ns = uv_env_now_ns,
	.wall_ms = uv_env_wall_ms,
	.wall_synced = uv_env_wall_synced,
	.random = uv_env_random,
	.timer_start = uv_env_timer_start,
	.timer_stop = uv_env_timer_stop,
	.work = uv_env_work,
	.post = uv_env_post,
	.fail_stop = uv_env_fail_stop,
};

static void handles_open(struct env_uv *e)
{
	uv_handle_t *handles[] = {
		(uv_handle_t *)&e->prepare, (uv_handle_t *)&e->check,
		(uv_handle_t *)&e->idle,    (uv_handle_t *)&e->timer,
		(uv_handle_t *)&e->async,
	};
	unsigned i;

	/* These cannot fail. */
	CHECK(uv_prepare_init(e->loop, &e->prepare) == 0);
	CHECK(uv_check_init(e->loop, &e->check) == 0);
	CHECK(uv_idle_init(e->loop, &e->idle) == 0);
	CHECK(uv_timer_init(e->loop, &e->timer) == 0);
	CHECK(uv_prepare_start(&e->prepare, before_wait) == 0);
	CHECK(uv_check_start(&e->check, after_wait) == 0);
	for (i = 0; i < ARRAY_LEN(handles); i++)
		handles[i]->data = e;
	e->open_handles = ARRAY_LEN(handles);
	e->armed_ms = UINT64_MAX;
}

enum rc env_uv_open(struct env_uv *e, uv_loop_t *loop)
{
	unsigned started = 0;
	enum rc rc;
	int status;

	e->env.ops = &uv_env_ops;
	e->loop = loop;
	turn_init(&e->turn);
	e->turn.passed = phase_passed;
	STAILQ_INIT(&e->done);
	e->heap_max = HEAP_FIRST;
	e->heap = malloc(e->heap_max * sizeof(*e->heap));
	if (e->heap == NULL)
		return RC_NOMEM;
	rc = RC_OVERLOADED;
	status = uv_mutex_init(&e->done_mutex);
	if (status != 0)
		goto no_mutex;
	for (; started < ENV_WORKERS; started++) {
		rc = worker_start(e, started);
		if (rc != RC_OK)
			goto no_worker;
	}
	/* Last, because a handle can only be closed by the loop. */
	status = uv_async_init(loop, &e->async, jobs_done);
	if (status != 0) {
		rc = rc_of_uv(status);
		goto no_worker;
	}
	e->magic = ENV_UV_MAGIC;
	handles_open(e);
	return RC_OK;

no_worker:
	while (started-- > 0)
		worker_stop(&e->workers[started]);
	uv_mutex_destroy(&e->done_mutex);
no_mutex:
	free(e->heap);
	e->heap = NULL;
	return rc;
}

static void handle_closed(uv_handle_t *h)
{
	struct env_uv *e = h->data;

	CHECK_OBJ(e, ENV_UV_MAGIC);
	PRE(e->open_handles > 0);
	if (--e->open_handles > 0)
		return;
	free(e->heap);
	uv_mutex_destroy(&e->done_mutex);
	e->magic = 0;
	e->close_cb(e); /* The owner may free e: nothing after. */
}

void env_uv_close(struct env_uv *e, void (*cb)(struct env_uv *e))
{
	unsigned i;

	CHECK_OBJ(e, ENV_UV_MAGIC);
	PRE(e->jobs == 0);
	e->close_cb = cb;
	for (i = 0; i < ENV_WORKERS; i++)
		worker_stop(&e->workers[i]);
	turn_init(&e->turn);
	e->turn.passed = phase_passed;
	uv_close((uv_handle_t *)&e->prepare, handle_closed);
	uv_close((uv_handle_t *)&e->check, handle_closed);
	uv_close((uv_handle_t *)&e->idle, handle_closed);
	uv_close((uv_handle_t *)&e->timer, handle_closed);
	uv_close((uv_handle_t *)&e->async, handle_closed);
}
