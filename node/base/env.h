/*
 * env - time, randomness, timers, threads and the end of a loop turn, as a
 * vtable.
 *
 * What decides correctness (raft-glue/, objects/, node/core/) reaches the world
 * only through this, `disk` and `link`, so the same code runs on libuv
 * (node/os/env_uv.c) or in a seeded world (tests/sim/world.c).
 * Loop thread only, except inside env_job.run.
 */
#ifndef HOLDFAST_BASE_ENV_H
#define HOLDFAST_BASE_ENV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

struct env;

/* A one-shot timer, embedded by its user; zeroed before env_timer_init. Fires
 * `cb` on the loop thread at or after its time, never from inside
 * env_timer_start. Does not move while it is running. */
struct env_timer {
	void (*cb)(struct env_timer *t);
	struct env *env; /* Private, as all below. */
	uint64_t at_ms;
	uint64_t seq;
	bool running;
	void *impl[4];
};

/* Work for another thread. Jobs of one worker run one after the other, in the
 * order they were queued, and their `done` are called in that order on the loop
 * thread. The job must stay in place until `done` has been called. */
enum env_worker {
	ENV_WORKER_LOG,     /* The log writer. */
	ENV_WORKER_STORAGE, /* SQLite. */
	ENV_WORKERS,
};
struct env_job {
	void (*run)(struct env_job *job);  /* On the worker's thread. */
	void (*done)(struct env_job *job); /* On the loop thread. */
	STAILQ_ENTRY(env_job) link;        /* Private. */
};

/*
 * The end of a loop turn. Everything that is ready is read first; then the
 * tasks run, phase by phase; a task that posts one of an earlier phase sends
 * the turn round again. A task runs once per post; posting a posted task is a
 * no-op. So effects of one turn share an entry, entries of all shards share a
 * batch, answers of a connection share a write.
 */
enum env_phase {
	ENV_PHASE_CALLS,   /* What clients ask for begins. */
	ENV_PHASE_PROPOSE, /* Shards turn the turn's units into entries. */
	ENV_PHASE_LOG,     /* The log hands a batch to its writer. */
	ENV_PHASE_ROUND,   /* Leadership rounds begin. */
	ENV_PHASE_RELEASE, /* Output gates open. */
	ENV_PHASE_SEND,    /* Connections write. */
	ENV_PHASES,
};
struct env_task {
	void (*cb)(struct env_task *t);
	enum env_phase phase;
	bool posted; /* Private, as below. */
	STAILQ_ENTRY(env_task) link;
};

struct env_ops {
	/* CLOCK_BOOTTIME; never goes back. */
	uint64_t (*now_ns)(struct env *env);
	/* Milliseconds since 1970; may jump. */
	uint64_t (*wall_ms)(struct env *env);
	/* The kernel calls its wall clock synchronised. */
	bool (*wall_synced)(struct env *env);
	void (*random)(struct env *env, void *out, size_t n);
	void (*timer_start)(struct env_timer *t);
	void (*timer_stop)(struct env_timer *t);
	void (*work)(struct env *env, enum env_worker w, struct env_job *job);
	void (*post)(struct env *env, struct env_task *task);
	/* Fail-stop: the process ends at once, nothing more is sent. In the
	 * simulator the node is dead and this returns: the caller then
	 * returns too, without touching anything that leaves the node. */
	void (*fail_stop)(struct env *env, const char *why);
};

struct env {
	const struct env_ops *ops;
};

static inline uint64_t env_now_ns(struct env *env)
{
	return env->ops->now_ns(env);
}

static inline uint64_t env_now_ms(struct env *env)
{
	return env->ops->now_ns(env) / 1000000u;
}

static inline uint64_t env_wall_ms(struct env *env)
{
	return env->ops->wall_ms(env);
}

static inline void env_random(struct env *env, void *out, size_t n)
{
	env->ops->random(env, out, n);
}

static inline void env_timer_init(struct env_timer *t, struct env *env,
				  void (*cb)(struct env_timer *t))
{
	*t = (struct env_timer){ .cb = cb, .env = env };
}

/* (Re)start: fires at `at_ms` of env_now_ms, or at the next turn if that is
 * past. */
static inline void env_timer_start(struct env_timer *t, uint64_t at_ms)
{
	if (t->running)
		t->env->ops->timer_stop(t);
	t->at_ms = at_ms;
	t->env->ops->timer_start(t);
}

static inline void env_timer_stop(struct env_timer *t)
{
	if (t->running)
		t->env->ops->timer_stop(t);
}

static inline void env_work(struct env *env, enum env_worker w,
			    struct env_job *job)
{
	env->ops->work(env, w, job);
}

static inline void env_post(struct env *env, struct env_task *task)
{
	if (!task->posted)
		env->ops->post(env, task);
}

static inline void env_fail_stop(struct env *env, const char *why)
{
	env->ops->fail_stop(env, why);
}

#endif
