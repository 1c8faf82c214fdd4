/*
 * env_uv - env on libuv.
 *
 * The struct holds handles: it does not move between env_uv_open() and the
 * callback of env_uv_close(). Loop thread only, except inside a job's run(),
 * which may call now_ns, wall_ms, wall_synced, random and fail_stop.
 *
 * While it is open it keeps the loop alive.
 */
#ifndef HOLDFAST_OS_ENV_UV_H
#define HOLDFAST_OS_ENV_UV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "client/proto/rc.h"
#include "node/base/env.h"
#include "node/base/turn.h"

STAILQ_HEAD(env_uv_jobs, env_job);

/* One thread and the jobs that wait for it. */
struct env_uv_worker {
	struct env_uv *e; /* Private, as all below. */
	uv_thread_t thread;
	uv_mutex_t mutex; /* Of the four below. */
	uv_cond_t cond;
	struct env_uv_jobs queue;
	bool idle;
	bool stop;
	unsigned index;
};

struct env_uv_slot {
	uint64_t at_ms;
	uint64_t seq;
	struct env_timer *t;
};

struct env_uv {
	struct env env;
	uint32_t magic; /* Private, as all below. */
	uv_loop_t *loop;
	struct turn turn;
	uint64_t phase_at_ns;
	uint64_t phase_ns[ENV_PHASES]; /* Spent in each phase so far. */
	uv_prepare_t prepare;
	uv_check_t check;
	uv_idle_t idle;
	uv_timer_t timer;
	uv_async_t async;
	unsigned open_handles;
	/* Timers: a heap by time, then by the order of their starts. */
	struct env_uv_slot *heap;
	size_t heap_n;
	size_t heap_max;
	uint64_t seq;
	uint64_t armed_ms; /* `timer` fires then; UINT64_MAX: it does not. */
	uint64_t batch_ms; /* Timers up to then ring now; 0: none does. */
	struct env_uv_worker workers[ENV_WORKERS];
	unsigned jobs; /* Queued and not yet done. */
	uv_mutex_t done_mutex;
	struct env_uv_jobs done; /* Under done_mutex. */
	void (*close_cb)(struct env_uv *e);
};

/* `e` zeroed. Starts the workers' threads. RC_NOMEM, RC_OVERLOADED (no more
 * threads or descriptors): nothing is left open. */
enum rc env_uv_open(struct env_uv *e, uv_loop_t *loop);

/* CPU time of a worker's thread so far. Loop thread. */
uint64_t env_uv_worker_cpu_ns(const struct env_uv *e, enum env_worker w);

/*
 * No job may be under way. Timers that run and tasks that are posted are
 * forgotten. `cb` is called once, from the loop, when `e` may be freed.
 */
void env_uv_close(struct env_uv *e, void (*cb)(struct env_uv *e));

#endif
