/*
 * hand - an env driven by hand, for the unit tests of raft-glue/.
 *
 * No seed and no threads: the test moves the clock, fires the timers and ends
 * the turn when it wants to. There is no worker: env_work aborts. After a
 * fail-stop no task runs any more. Header only; one translation unit.
 */
#ifndef TESTS_LIB_HAND_H
#define TESTS_LIB_HAND_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "node/base/check.h"
#include "node/base/env.h"
#include "node/base/turn.h"

#define HAND_TIMERS_MAX 16u

struct hand {
	struct env env;
	struct turn turn;
	uint64_t now_ms;
	uint64_t random;
	struct env_timer *timers[HAND_TIMERS_MAX];
	bool stopped; /* fail_stop was called. */
	char why[200];
};

static inline struct hand *hand_of(struct env *env)
{
	return CONTAINER_OF(env, struct hand, env);
}

static inline uint64_t hand_now_ns(struct env *env)
{
	return hand_of(env)->now_ms * 1000000u;
}

static inline uint64_t hand_wall_ms(struct env *env)
{
	return 1700000000000u + hand_of(env)->now_ms;
}

static inline bool hand_wall_synced(struct env *env)
{
	(void)env;
	return true;
}

/* Knuth's MMIX generator. */
static inline void hand_random(struct env *env, void *out, size_t n)
{
	struct hand *h = hand_of(env);
	uint8_t *p = out;

	while (n-- > 0) {
		h->random = h->random * UINT64_C(6364136223846793005) +
			    UINT64_C(1442695040888963407);
		*p++ = (uint8_t)(h->random >> 56);
	}
}

static inline void hand_timer_start(struct env_timer *timer)
{
	struct hand *h = hand_of(timer->env);
	unsigned i = 0;

	while (i < HAND_TIMERS_MAX && h->timers[i] != NULL)
		i++;
	CHECK(i < HAND_TIMERS_MAX);
	h->timers[i] = timer;
	timer->running = true;
}

static inline void hand_timer_stop(struct env_timer *timer)
{
	struct hand *h = hand_of(timer->env);
	unsigned i;

	for (i = 0; i < HAND_TIMERS_MAX; i++)
		if (h->timers[i] == timer)
			h->timers[i] = NULL;
	timer->running = false;
}

static inline void hand_work(struct env *env, enum env_worker w,
			     struct env_job *job)
{
	(void)env;
	(void)w;
	(void)job;
	UNREACHABLE();
}

static inline void hand_post(struct env *env, struct env_task *task)
{
	turn_post(&hand_of(env)->turn, task);
}

static inline void hand_fail_stop(struct env *env, const char *why)
{
	struct hand *h = hand_of(env);

	if (!h->stopped)
		(void)snprintf(h->why, sizeof(h->why), "%s", why);
	h->stopped = true;
}

static const struct env_ops hand_ops = {
	.now_ns = hand_now_ns,
	.wall_ms = hand_wall_ms,
	.wall_synced = hand_wall_synced,
	.random = hand_random,
	.timer_start = hand_timer_start,
	.timer_stop = hand_timer_stop,
	.work = hand_work,
	.post = hand_post,
	.fail_stop = hand_fail_stop,
};

static inline void hand_init(struct hand *h)
{
	*h = (struct hand){ .env = { .ops = &hand_ops }, .now_ms = 1000 };
	turn_init(&h->turn);
}

/* The tasks of one turn. */
static inline void hand_turn(struct hand *h)
{
	if (!h->stopped)
		turn_run(&h->turn);
}

/* Moves the clock on, fires what is due, and ends the turn. */
static inline void hand_advance(struct hand *h, uint64_t ms)
{
	struct env_timer *timer;
	unsigned i;

	h->now_ms += ms;
	for (i = 0; i < HAND_TIMERS_MAX; i++) {
		timer = h->timers[i];
		if (timer == NULL || timer->at_ms > h->now_ms)
			continue;
		hand_timer_stop(timer);
		timer->cb(timer);
	}
	hand_turn(h);
}

static inline unsigned hand_timers(const struct hand *h)
{
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < HAND_TIMERS_MAX; i++)
		n += h->timers[i] != NULL;
	return n;
}

#endif
