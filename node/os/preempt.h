/*
 * preempt - whether a thread that wakes takes the core from one that runs.
 *
 * By default it does, mostly. Where nodes, or a node and its clients, share
 * cores, each message then interrupts its sender, and turns are short. Under
 * SCHED_BATCH (sched(7)) a thread that wakes waits until whoever runs has to
 * wait itself: turns gather more, and everything costs less (ADR 0024). That
 * is as long as those others wait soon. Beside a program that only computes, it
 * would be the end of a slice of milliseconds, at each wake. So what the
 * threads wait is looked at four times a second, as the kernel counts it in
 * /proc/PID/task/TID/schedstat, and when it is many times what they run they
 * preempt again for a while. So they do while calls are refused because there
 * are too many: whoever sends those has the cores, and what was let in would
 * wait for him.
 *
 * Loop thread only. A process that was started with another policy than
 * SCHED_OTHER keeps it, and so does one whose kernel counts nothing.
 */
#ifndef HOLDFAST_OS_PREEMPT_H
#define HOLDFAST_OS_PREEMPT_H

#include <stdbool.h>
#include <stdint.h>

#include "node/base/env.h"

/* Since the start: what the kernel has counted of the threads, and the node. */
struct preempt_counts {
	uint64_t ran_ns;
	uint64_t waited_ns; /* Ready to run, and did not. */
	uint64_t slices;    /* How often they began to. */
	uint64_t refused;   /* Calls, because there were too many. */
};

struct preempt {
	bool batch;   /* What is wanted now. Private, as all below. */
	bool set;     /* What all threads are. */
	bool counted; /* `last` is there. */
	struct preempt_counts last;
	unsigned bad;      /* Looks in a row that found long waits. */
	uint64_t since_ms; /* `batch` is as it is since then, */
	uint64_t rest_ms;  /* and if it is false, for so long. */
	uint64_t (*refused)(const void *arg);
	const void *arg;
	struct env_timer timer;
};

/* What is to be from now on. The first call says so whatever is counted. */
bool preempt_decide(struct preempt *p, uint64_t now_ms,
		    const struct preempt_counts *now);

/* For all threads that there are; later ones inherit it. It cannot fail: at
 * worst everything stays as it is. `refused`: the calls, so far. */
void preempt_start(struct preempt *p, struct env *env,
		   uint64_t (*refused)(const void *arg), const void *arg);
void preempt_stop(struct preempt *p);

#endif
