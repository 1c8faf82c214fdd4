#include "node/os/preempt.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "node/base/check.h"

#define LOOK_MS 250u
/* Three nodes and their clients on two cores wait up to 3.6 times as long as
 * they run, whatever the load; beside three programs that only compute it is 20
 * to 40 times with durable calls (docs/adr/0024). */
#define WAIT_MAX    6u
#define BAD_LOOKS   2u
#define SLICES_MIN  8u /* Fewer tell nothing. */
#define REST_MIN_MS 1000u
#define REST_MAX_MS 64000u
#define LASTS_MS    5000u /* A trial that did not fail at once. */

static void turn_to(struct preempt *p, uint64_t now_ms, bool batch)
{
	p->batch = batch;
	p->since_ms = now_ms;
	p->bad = 0;
}

/* A trial that fails at once makes the next one wait twice as long. */
static void give_up(struct preempt *p, uint64_t now_ms)
{
	bool soon = now_ms - p->since_ms < LASTS_MS;

	p->rest_ms = soon && p->rest_ms > 0 ? 2 * p->rest_ms : REST_MIN_MS;
	if (p->rest_ms > REST_MAX_MS)
		p->rest_ms = REST_MAX_MS;
	turn_to(p, now_ms, false);
}

/* Until so long after now, or as long as it was to be anyway. */
static void rest_on(struct preempt *p, uint64_t now_ms)
{
	if (p->since_ms + p->rest_ms < now_ms + REST_MIN_MS)
		p->since_ms = now_ms + REST_MIN_MS - p->rest_ms;
}

bool preempt_decide(struct preempt *p, uint64_t now_ms,
		    const struct preempt_counts *now)
{
	uint64_t slices = now->slices - p->last.slices;
	uint64_t waited_ns = now->waited_ns - p->last.waited_ns;
	uint64_t ran_ns = now->ran_ns - p->last.ran_ns;

	if (!p->counted) {
		p->counted = true;
		turn_to(p, now_ms, true);
	} else if (now->refused > p->last.refused) {
		if (p->batch)
			give_up(p, now_ms);
		else
			rest_on(p, now_ms);
	} else if (!p->batch) {
		if (now_ms - p->since_ms >= p->rest_ms)
			turn_to(p, now_ms, true);
	} else if (slices < SLICES_MIN) {
		return true;
	} else if (waited_ns <= WAIT_MAX * ran_ns) {
		p->bad = 0;
	} else if (++p->bad >= BAD_LOOKS) {
		give_up(p, now_ms);
	}
	p->last = *now;
	return p->batch;
}

/* Of one thread, unless it has ended. False: it could not be looked at. */
static bool counts_add(struct preempt_counts *c, int tasks, const char *tid)
{
	uint64_t waited_ns;
	uint64_t ran_ns;
	uint64_t slices;
	char text[96];
	ssize_t n;
	int fd;

	(void)snprintf(text, sizeof(text), "%.20s/schedstat", tid);
	fd = openat(tasks, text, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT;
	n = read(fd, text, sizeof(text) - 1);
	(void)close(fd);
	if (n <= 0)
		return n < 0 && errno == ESRCH;
	text[n] = '\0';
	if (sscanf(text, "%" SCNu64 " %" SCNu64 " %" SCNu64, &ran_ns,
		   &waited_ns, &slices) != 3)
		return false;
	c->ran_ns += ran_ns;
	c->waited_ns += waited_ns;
	c->slices += slices;
	return true;
}

static void policy_set(const char *tid, bool batch)
{
	const struct sched_param none = { 0 };

	(void)sched_setscheduler((pid_t)strtol(tid, NULL, 10),
				 batch ? SCHED_BATCH : SCHED_OTHER, &none);
}

/* All threads: what they have counted, or what they are to be from now on.
 * False: not of all of them. */
static bool each_thread(struct preempt_counts *counts, bool batch)
{
	const struct dirent *e;
	DIR *dir = opendir("/proc/self/task");
	bool all = dir != NULL;

	while (all && (e = readdir(dir)) != NULL)
		if (e->d_name[0] == '.')
			continue;
		else if (counts != NULL)
			all = counts_add(counts, dirfd(dir), e->d_name);
		else
			policy_set(e->d_name, batch);
	if (dir != NULL)
		(void)closedir(dir);
	return all;
}

static void look(struct env_timer *t)
{
	struct preempt *p = CONTAINER_OF(t, struct preempt, timer);
	uint64_t now_ms = env_now_ms(t->env);
	struct preempt_counts now = { 0 };
	bool looked = each_thread(&now, false);

	now.refused = p->refused(p->arg);
	/* This thread has run: here the kernel does not count. */
	if (looked && now.slices == 0)
		return;
	/* Later it was a descriptor that was missing, which comes back. */
	if (looked && preempt_decide(p, now_ms, &now) != p->set &&
	    each_thread(NULL, p->batch))
		p->set = p->batch;
	env_timer_start(t, now_ms + LOOK_MS);
}

void preempt_start(struct preempt *p, struct env *env,
		   uint64_t (*refused)(const void *arg), const void *arg)
{
	*p = (struct preempt){ .refused = refused, .arg = arg };
	env_timer_init(&p->timer, env, look);
	if (sched_getscheduler(0) == SCHED_OTHER)
		look(&p->timer);
}

void preempt_stop(struct preempt *p)
{
	env_timer_stop(&p->timer);
}
