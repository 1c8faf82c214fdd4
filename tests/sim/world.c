#include "tests/sim/world.h"

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "node/base/turn.h"
#include "tests/sim/memdisk.h"
#include "tests/sim/prng.h"

#define WORLD_MAGIC 0x3a5eed01u
#define NODE_MAGIC  0x3a5e0de1u
#define MS          UINT64_C(1000000)
#define US          UINT64_C(1000)
/* 2025-01-01, when every world begins. */
#define EPOCH_MS UINT64_C(1735689600000)

enum kind {
	EVENT_TIMER,
	EVENT_RUN,  /* A worker takes its next job. */
	EVENT_DONE, /* A job comes back to the loop. */
	EVENT_CALL, /* world_at() */
};

struct event {
	uint64_t at_ns;
	uint64_t seq;
	size_t pos; /* In the heap. */
	unsigned node;
	enum kind kind;
	enum env_worker worker; /* RUN, DONE */
	void *p;                /* The timer, the job, the argument. */
	void (*cb)(void *arg);  /* CALL */
	struct event *next;     /* In the free list. */
};

struct worker {
	STAILQ_HEAD(, env_job) queue;
	bool scheduled;   /* Its next RUN is in the heap. */
	uint64_t free_ns; /* Its last job takes until then. */
	uint64_t done_ns; /* The last DONE: they keep the order. */
	struct world_latency latency;
};

struct node {
	struct env env;
	uint32_t magic;
	struct world *w;
	unsigned index;
	uint64_t generation;
	bool ended;
	bool crashed;
	bool stopped;
	char why[DETAIL_BYTES_MAX];
	struct turn turn;
	struct prng random;
	struct worker workers[ENV_WORKERS];
	uint64_t boot_ns; /* Boot time was 0 at world time -boot_ns. */
	int32_t drift_ppm;
	uint64_t drift_ns; /* World time from which it drifts so. */
	int64_t wall_ms;   /* Added to EPOCH_MS + world time. */
	bool synced;
	uint64_t paused_until_ns;
	uint64_t busy_until_ns; /* As if it were, but it is heard. */
	uint64_t spent_ns;      /* By the job that runs. */
	uint32_t sync_min_us;
	uint32_t sync_max_us;
	uint32_t sync_slow; /* Of 10,000. */
	uint32_t sync_slow_ms;
	struct memdisk *disk;
};

struct world {
	uint32_t magic;
	uint64_t seed;
	uint64_t now_ns;
	uint64_t seq;
	uint64_t events_done;
	uint64_t hash;
	uint64_t ends; /* Nodes that ended so far. */
	struct event **heap;
	size_t heap_n;
	size_t heap_max;
	struct event *free_list;
	struct prng random;  /* Latencies. */
	struct prng drivers; /* world_random() */
	uint32_t timer_late_us;
	bool in_job;    /* A job's run() is on the stack. */
	unsigned last;  /* Of the last event. */
	uint64_t still; /* Events since time went on. */
	struct node nodes[WORLD_NODES_MAX];
};

static void mix(struct world *w, uint64_t x)
{
	w->hash = prng_rotate(w->hash ^ x, 29) * UINT64_C(0x9e3779b97f4a7c15);
}

/* ---- the heap of events ---- */

static bool sooner(const struct event *a, const struct event *b)
{
	return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static void heap_put(struct world *w, size_t pos, struct event *e)
{
	w->heap[pos] = e;
	e->pos = pos;
}

static void heap_up(struct world *w, size_t pos, struct event *e)
{
	size_t up;

	for (; pos > 0; pos = up) {
		up = (pos - 1) / 2;
		if (!sooner(e, w->heap[up]))
			break;
		heap_put(w, pos, w->heap[up]);
	}
	heap_put(w, pos, e);
}

static void heap_down(struct world *w, size_t pos, struct event *e)
{
	size_t down;

	for (; (down = 2 * pos + 1) < w->heap_n; pos = down) {
		if (down + 1 < w->heap_n &&
		    sooner(w->heap[down + 1], w->heap[down]))
			down++;
		if (!sooner(w->heap[down], e))
			break;
		heap_put(w, pos, w->heap[down]);
	}
	heap_put(w, pos, e);
}

static void heap_insert(struct world *w, struct event *e)
{
	if (w->heap_n == w->heap_max) {
		w->heap_max = w->heap_max > 0 ? 2 * w->heap_max : 64;
		w->heap = sim_realloc(w->heap, w->heap_max * sizeof(*w->heap));
	}
	heap_up(w, w->heap_n++, e);
}

static void heap_remove(struct world *w, struct event *e)
{
	struct event *last = w->heap[--w->heap_n];
	size_t pos = e->pos;

	CHECK(pos <= w->heap_n);
	if (last == e)
		return;
	if (pos > 0 && sooner(last, w->heap[(pos - 1) / 2]))
		heap_up(w, pos, last);
	else
		heap_down(w, pos, last);
}

static struct event *event_new(struct world *w, unsigned node, enum kind kind,
			       uint64_t at_ns)
{
	struct event *e = w->free_list;

	if (e != NULL)
		w->free_list = e->next;
	else
		e = sim_alloc(sizeof(*e));
	*e = (struct event){ .at_ns = at_ns > w->now_ns ? at_ns : w->now_ns,
			     .seq = w->seq++,
			     .node = node,
			     .kind = kind };
	return e;
}

static void event_free(struct world *w, struct event *e)
{
	e->next = w->free_list;
	w->free_list = e;
}

/* ---- env ---- */

static struct node *node_of(struct env *env)
{
	struct node *n = CONTAINER_OF(env, struct node, env);

	CHECK_OBJ(n, NODE_MAGIC);
	return n;
}

/* What only the loop thread may do must not come from a job's run(). */
static struct node *node_on_loop(struct env *env)
{
	struct node *n = node_of(env);

	CHECK(!n->w->in_job);
	return n;
}

static struct node *node_at(struct world *w, unsigned node)
{
	CHECK_OBJ(w, WORLD_MAGIC);
	PRE(node < WORLD_NODES_MAX);
	return &w->nodes[node];
}

/* By how much its clock went on too far, since it drifts so. */
static uint64_t drifted(const struct node *n)
{
	int64_t ns = (int64_t)(n->w->now_ns - n->drift_ns);

	/* In two parts: years of drift do not overflow. */
	return (uint64_t)(ns / 1000000 * n->drift_ppm +
			  ns % 1000000 * n->drift_ppm / 1000000);
}

static uint64_t sim_now_ns(struct env *env)
{
	struct node *n = node_of(env);

	return n->boot_ns + n->w->now_ns + drifted(n);
}

/* In world time; never too short. */
static uint64_t world_delay(const struct node *n, uint64_t local_ns)
{
	uint64_t rate = (uint64_t)(1000000 + n->drift_ppm);

	if (n->drift_ppm == 0)
		return local_ns;
	return local_ns / rate * 1000000u + local_ns % rate * 1000000u / rate +
	       2;
}

static uint64_t node_wall_ms(const struct node *n)
{
	return (uint64_t)((int64_t)(EPOCH_MS + n->w->now_ns / MS) + n->wall_ms);
}

static uint64_t sim_wall_ms(struct env *env)
{
	return node_wall_ms(node_of(env));
}

static bool sim_wall_synced(struct env *env)
{
	return node_of(env)->synced;
}

static void sim_random(struct env *env, void *out, size_t n)
{
	struct node *node = node_of(env);
	uint8_t *at = out;
	uint64_t word;
	size_t some;

	for (; n > 0; n -= some, at += some) {
		word = prng_next(&node->random);
		some = n < sizeof(word) ? n : sizeof(word);
		memcpy(at, &word, some);
	}
}

static void sim_timer_start(struct env_timer *t)
{
	struct node *n = node_on_loop(t->env);
	struct world *w = n->w;
	uint64_t now = sim_now_ns(t->env);
	uint64_t at = t->at_ms < UINT64_MAX / MS ? t->at_ms * MS : UINT64_MAX;
	struct event *e;

	PRE(t->cb != NULL);
	PRE(!t->running);
	if (n->ended)
		return;
	at = at > now ? at - now : 0;
	at = at < UINT64_MAX / 4 ? world_delay(n, at) : UINT64_MAX / 4;
	at += w->now_ns + prng_below(&w->random, w->timer_late_us + 1) * US;
	e = event_new(w, n->index, EVENT_TIMER, at);
	e->p = t;
	t->running = true;
	t->seq = n->generation;
	t->impl[0] = e;
	heap_insert(w, e);
}

static void sim_timer_stop(struct env_timer *t)
{
	struct node *n = node_on_loop(t->env);
	struct event *e = t->impl[0];

	PRE(t->running);
	t->running = false;
	t->impl[0] = NULL;
	if (t->seq != n->generation || n->ended)
		return; /* It went with its node. */
	CHECK(e->p == t);
	heap_remove(n->w, e);
	event_free(n->w, e);
}

static void worker_schedule(struct node *n, enum env_worker worker)
{
	struct world *w = n->w;
	struct worker *k = &n->workers[worker];
	uint64_t from = k->free_ns > w->now_ns ? k->free_ns : w->now_ns;
	struct event *e;

	if (k->scheduled || STAILQ_EMPTY(&k->queue))
		return;
	from += prng_between(&w->random, k->latency.run_min_us,
			     k->latency.run_max_us) *
		US;
	e = event_new(w, n->index, EVENT_RUN, from);
	e->worker = worker;
	heap_insert(w, e);
	k->scheduled = true;
}

static void sim_work(struct env *env, enum env_worker worker,
		     struct env_job *job)
{
	struct node *n = node_on_loop(env);

	PRE(worker < ENV_WORKERS);
	PRE(job->run != NULL);
	PRE(job->done != NULL);
	if (n->ended)
		return;
	STAILQ_INSERT_TAIL(&n->workers[worker].queue, job, link);
	worker_schedule(n, worker);
}

static void sim_post(struct env *env, struct env_task *task)
{
	struct node *n = node_on_loop(env);

	if (!n->ended)
		turn_post(&n->turn, task);
}

/* Nothing that is under way leaves the node any more. */
static void node_end(struct node *n)
{
	if (n->ended)
		return;
	n->ended = true;
	n->w->ends++;
	turn_init(&n->turn);
	memdisk_freeze(n->disk);
	mix(n->w, n->index);
}

static void sim_fail_stop(struct env *env, const char *why)
{
	struct node *n = node_of(env);

	if (n->ended)
		return;
	n->stopped = true;
	(void)snprintf(n->why, sizeof(n->why), "%s", why);
	node_end(n);
}

static const struct env_ops sim_ops = {
	.now_ns = sim_now_ns,
	.wall_ms = sim_wall_ms,
	.wall_synced = sim_wall_synced,
	.random = sim_random,
	.timer_start = sim_timer_start,
	.timer_stop = sim_timer_stop,
	.work = sim_work,
	.post = sim_post,
	.fail_stop = sim_fail_stop,
};

/* ---- what the disk tells ---- */

static void disk_crashed(void *arg)
{
	struct node *n = arg;

	n->crashed = true;
	node_end(n);
}

static void disk_note(void *arg, uint64_t what)
{
	struct node *n = arg;

	mix(n->w, what);
}

static void disk_synced(void *arg)
{
	struct node *n = arg;
	struct prng *r = &n->w->random;

	/* A disk that hangs does so once: what waits behind is done then. */
	if (prng_below(r, 10000) < n->sync_slow &&
	    n->spent_ns < n->sync_slow_ms * MS)
		n->spent_ns += n->sync_slow_ms * MS;
	else
		n->spent_ns +=
			prng_between(r, n->sync_min_us, n->sync_max_us) * US;
}

static uint64_t disk_wall_ns(void *arg)
{
	return node_wall_ms(arg) * MS;
}

/* ---- the world ---- */

static void node_forget(struct node *n)
{
	unsigned i;

	turn_init(&n->turn);
	for (i = 0; i < ENV_WORKERS; i++) {
		STAILQ_INIT(&n->workers[i].queue);
		n->workers[i].scheduled = false;
		n->workers[i].free_ns = 0;
		n->workers[i].done_ns = 0;
	}
	n->paused_until_ns = 0;
	n->busy_until_ns = 0;
	n->generation++;
	n->ended = false;
	n->crashed = false;
	n->stopped = false;
	n->why[0] = '\0';
}

static void boot_time_start(struct node *n)
{
	n->boot_ns = prng_between(&n->w->random, 1000, 100000) * MS;
	/* From -now_ns on: the sum starts small again. */
	n->boot_ns -= n->w->now_ns;
	n->drift_ns = n->w->now_ns;
}

static void node_init(struct world *w, unsigned index)
{
	static const struct world_latency log = { 1, 50, 1, 50 };
	static const struct world_latency storage = { 1, 2000, 1, 2000 };
	struct node *n = &w->nodes[index];
	const struct memdisk_host host = { disk_crashed, disk_note, disk_synced,
					   disk_wall_ns, n };

	n->env.ops = &sim_ops;
	n->magic = NODE_MAGIC;
	n->w = w;
	n->index = index;
	n->synced = true;
	n->sync_min_us = 50;
	n->sync_max_us = 400;
	n->workers[ENV_WORKER_LOG].latency = log;
	n->workers[ENV_WORKER_STORAGE].latency = storage;
	prng_seed(&n->random, w->seed, 100 + index);
	node_forget(n);
	boot_time_start(n);
	n->disk = memdisk_new(&host, w->seed, index);
}

struct world *world_new(uint64_t seed)
{
	struct world *w = sim_alloc(sizeof(*w));
	unsigned i;

	w->magic = WORLD_MAGIC;
	w->seed = seed;
	w->timer_late_us = 1000;
	prng_seed(&w->random, seed, 1);
	prng_seed(&w->drivers, seed, 2);
	for (i = 0; i < WORLD_NODES_MAX; i++)
		node_init(w, i);
	return w;
}

void world_free(struct world *w)
{
	struct event *e;
	size_t i;

	CHECK_OBJ(w, WORLD_MAGIC);
	for (i = 0; i < WORLD_NODES_MAX; i++)
		memdisk_free(w->nodes[i].disk);
	for (i = 0; i < w->heap_n; i++)
		free(w->heap[i]);
	while ((e = w->free_list) != NULL) {
		w->free_list = e->next;
		free(e);
	}
	free(w->heap);
	w->magic = 0;
	free(w);
}

struct env *world_env(struct world *w, unsigned node)
{
	return &node_at(w, node)->env;
}

struct disk *world_disk(struct world *w, unsigned node)
{
	return memdisk_disk(node_at(w, node)->disk);
}

uint64_t world_now_ms(const struct world *w)
{
	return w->now_ns / MS;
}

uint64_t world_now_ns(const struct world *w)
{
	return w->now_ns;
}

unsigned world_last(const struct world *w)
{
	return w->last;
}

uint64_t world_still(const struct world *w)
{
	return w->still;
}

/* ---- stepping ---- */

static void run_timer(struct event *e)
{
	struct env_timer *t = e->p;

	/* Its clock was slowed down meanwhile. */
	if (sim_now_ns(t->env) / MS < t->at_ms) {
		t->running = false;
		sim_timer_start(t);
		return;
	}
	t->running = false;
	t->impl[0] = NULL;
	t->cb(t);
}

static void run_job(struct world *w, struct node *n, enum env_worker worker)
{
	struct worker *k = &n->workers[worker];
	struct env_job *job = STAILQ_FIRST(&k->queue);
	struct event *e;
	uint64_t at;

	CHECK(job != NULL);
	STAILQ_REMOVE_HEAD(&k->queue, link);
	k->scheduled = false;
	n->spent_ns = 0;
	w->in_job = true;
	job->run(job);
	w->in_job = false;
	if (n->ended)
		return;
	k->free_ns = w->now_ns + n->spent_ns;
	at = k->free_ns + prng_between(&w->random, k->latency.done_min_us,
				       k->latency.done_max_us) *
				  US;
	k->done_ns = at > k->done_ns ? at : k->done_ns;
	e = event_new(w, n->index, EVENT_DONE, k->done_ns);
	e->worker = worker;
	e->p = job;
	heap_insert(w, e);
	worker_schedule(n, worker);
}

static void run_event(struct world *w, struct event *e)
{
	struct node *n = e->node < WORLD_NODES_MAX ? &w->nodes[e->node] : NULL;
	struct env_job *job;

	switch (e->kind) {
	case EVENT_TIMER:
		run_timer(e);
		break;
	case EVENT_RUN:
		run_job(w, n, e->worker);
		return; /* No turn: that was another thread. */
	case EVENT_DONE:
		job = e->p;
		job->done(job);
		break;
	case EVENT_CALL:
		e->cb(e->p);
		break;
	default:
		UNREACHABLE();
	}
	if (n != NULL)
		turn_run(&n->turn);
}

/* Tasks that the driver's own calls posted. */
static bool run_posted(struct world *w)
{
	struct node *n;
	unsigned i;

	for (i = 0; i < WORLD_NODES_MAX; i++) {
		n = &w->nodes[i];
		if (n->turn.pending == 0)
			continue;
		w->last = i;
		mix(w, i);
		turn_run(&n->turn);
		w->events_done++;
		return true;
	}
	return false;
}

static uint64_t held_until_ns(const struct node *n)
{
	return n->paused_until_ns > n->busy_until_ns ? n->paused_until_ns
						     : n->busy_until_ns;
}

/* Not now: events of an ended node never come, those of a stopped process come
 * when it goes on. */
static bool is_held(const struct world *w, const struct event *e)
{
	const struct node *n;

	if (e->node == WORLD_NOBODY)
		return false;
	n = &w->nodes[e->node];
	return n->ended || held_until_ns(n) > e->at_ns;
}

/* The next event, still in the heap; NULL when there is none. */
static struct event *next_event(struct world *w)
{
	struct event *e;

	while (w->heap_n > 0) {
		e = w->heap[0];
		if (!is_held(w, e))
			return e;
		heap_remove(w, e);
		if (w->nodes[e->node].ended) {
			event_free(w, e);
			continue;
		}
		e->at_ns = held_until_ns(&w->nodes[e->node]);
		e->seq = w->seq++;
		heap_insert(w, e);
	}
	return NULL;
}

bool world_step(struct world *w)
{
	struct event *e;

	CHECK_OBJ(w, WORLD_MAGIC);
	CHECK(!w->in_job);
	if (run_posted(w))
		return true;
	e = next_event(w);
	if (e == NULL)
		return false;
	heap_remove(w, e);
	CHECK(e->at_ns >= w->now_ns);
	w->still = e->at_ns == w->now_ns ? w->still + 1 : 0;
	w->now_ns = e->at_ns;
	w->last = e->node;
	w->events_done++;
	mix(w, e->at_ns);
	mix(w, (uint64_t)e->kind << 8 | e->node);
	run_event(w, e);
	event_free(w, e);
	return true;
}

static bool something_is_due(struct world *w, uint64_t ns)
{
	const struct event *e;
	unsigned i;

	for (i = 0; i < WORLD_NODES_MAX; i++)
		if (w->nodes[i].turn.pending > 0)
			return true;
	e = next_event(w);
	return e != NULL && e->at_ns <= ns;
}

void world_run_until(struct world *w, uint64_t ms)
{
	uint64_t ends = w->ends;
	uint64_t ns = ms * MS;

	while (something_is_due(w, ns)) {
		(void)world_step(w);
		if (w->ends != ends)
			return;
	}
	if (w->now_ns < ns)
		w->now_ns = ns;
}

bool world_run_flag(struct world *w, const bool *flag, uint64_t ms_max)
{
	uint64_t ends = w->ends;
	uint64_t ns = w->now_ns + ms_max * MS;

	while (!*flag && w->ends == ends && something_is_due(w, ns))
		(void)world_step(w);
	if (!*flag && w->ends == ends && w->now_ns < ns)
		w->now_ns = ns;
	return *flag;
}

void world_at(struct world *w, unsigned node, uint64_t ms,
	      void (*cb)(void *arg), void *arg)
{
	world_at_ns(w, node, ms * MS, cb, arg);
}

void world_at_ns(struct world *w, unsigned node, uint64_t ns,
		 void (*cb)(void *arg), void *arg)
{
	struct event *e;

	PRE(node <= WORLD_NOBODY);
	PRE(cb != NULL);
	if (node < WORLD_NODES_MAX && w->nodes[node].ended)
		return;
	e = event_new(w, node, EVENT_CALL, ns);
	e->cb = cb;
	e->p = arg;
	heap_insert(w, e);
}

uint64_t world_random(struct world *w, uint64_t n)
{
	PRE(n > 0);
	return prng_below(&w->drivers, n);
}

/* ---- clocks and latencies ---- */

void world_wall_jump(struct world *w, unsigned node, int64_t ms)
{
	node_at(w, node)->wall_ms += ms;
}

void world_wall_synced(struct world *w, unsigned node, bool synced)
{
	node_at(w, node)->synced = synced;
}

void world_suspend(struct world *w, unsigned node, uint64_t ms)
{
	struct node *n = node_at(w, node);
	struct event *e;
	size_t i;

	n->boot_ns += ms * MS;
	n->wall_ms += (int64_t)ms;
	for (i = 0; i < w->heap_n; i++) {
		e = w->heap[i];
		if (e->node != node || e->kind != EVENT_TIMER)
			continue;
		e->at_ns = e->at_ns > w->now_ns + ms * MS ? e->at_ns - ms * MS
							  : w->now_ns;
	}
	for (i = w->heap_n; i-- > 0;)
		heap_down(w, i, w->heap[i]);
}

void world_pause(struct world *w, unsigned node, uint64_t ms)
{
	struct node *n = node_at(w, node);
	uint64_t until = w->now_ns + ms * MS;

	/* What already waits for the end of a longer one keeps its place. */
	if (until > n->paused_until_ns)
		n->paused_until_ns = until;
}

void world_spend(struct world *w, unsigned node, uint64_t ns)
{
	struct node *n = node_at(w, node);

	if (n->busy_until_ns < w->now_ns)
		n->busy_until_ns = w->now_ns;
	n->busy_until_ns += ns;
}

bool world_paused(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return w->nodes[node].paused_until_ns > w->now_ns;
}

void world_drift(struct world *w, unsigned node, int32_t ppm)
{
	struct node *n = node_at(w, node);

	PRE(ppm >= -500000);
	PRE(ppm <= 500000);
	n->boot_ns += drifted(n);
	n->drift_ns = w->now_ns;
	n->drift_ppm = ppm;
}

void world_latency(struct world *w, unsigned node, enum env_worker worker,
		   const struct world_latency *l)
{
	PRE(worker < ENV_WORKERS);
	PRE(l->run_min_us <= l->run_max_us);
	PRE(l->done_min_us <= l->done_max_us);
	node_at(w, node)->workers[worker].latency = *l;
}

void world_timer_late(struct world *w, uint32_t us_max)
{
	w->timer_late_us = us_max;
}

void world_sync_time(struct world *w, unsigned node, uint32_t min_us,
		     uint32_t max_us, uint32_t slow_per_10000, uint32_t slow_ms)
{
	struct node *n = node_at(w, node);

	PRE(min_us <= max_us);
	n->sync_min_us = min_us;
	n->sync_max_us = max_us;
	n->sync_slow = slow_per_10000;
	n->sync_slow_ms = slow_ms;
}

/* ---- ends and boots ---- */

bool world_alive(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return !w->nodes[node].ended;
}

bool world_crashed(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return w->nodes[node].crashed;
}

const char *world_stopped(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return w->nodes[node].stopped ? w->nodes[node].why : NULL;
}

void world_end(struct world *w, unsigned node)
{
	struct node *n = node_at(w, node);

	if (n->ended)
		return;
	n->crashed = true;
	node_end(n);
}

/* The node's events, without a look at what they point to. */
static void events_drop(struct world *w, unsigned node)
{
	size_t kept = 0;
	size_t i;

	for (i = 0; i < w->heap_n; i++) {
		if (w->heap[i]->node == node)
			event_free(w, w->heap[i]);
		else
			heap_put(w, kept++, w->heap[i]);
	}
	w->heap_n = kept;
	for (i = kept; i-- > 0;)
		heap_down(w, i, w->heap[i]);
}

static struct node *node_restart(struct world *w, unsigned node)
{
	struct node *n = node_at(w, node);

	PRE(!w->in_job);
	events_drop(w, node);
	node_forget(n);
	mix(w, n->generation);
	return n;
}

void world_kill(struct world *w, unsigned node)
{
	memdisk_restart(node_restart(w, node)->disk);
}

void world_power_cut(struct world *w, unsigned node)
{
	struct node *n = node_restart(w, node);

	memdisk_power_cut(n->disk);
	boot_time_start(n);
}

void world_drop_caches(struct world *w, unsigned node)
{
	memdisk_drop_caches(node_at(w, node)->disk);
}

/* ---- the disk ---- */

uint64_t world_count(const struct world *w, unsigned node, enum world_op op)
{
	PRE(node < WORLD_NODES_MAX);
	return memdisk_count(w->nodes[node].disk, op);
}

void world_watch(struct world *w, unsigned node,
		 void (*cb)(void *arg, enum world_op op, const char *name),
		 void *arg)
{
	memdisk_watch(node_at(w, node)->disk, cb, arg);
}

void world_fault(struct world *w, unsigned node, const struct world_fault *f)
{
	memdisk_fault(node_at(w, node)->disk, f);
}

void world_faults_clear(struct world *w, unsigned node)
{
	memdisk_faults_clear(node_at(w, node)->disk);
}

uint64_t world_faults_fired(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return memdisk_faults_fired(w->nodes[node].disk);
}

uint8_t *world_file(struct world *w, unsigned node, const char *name,
		    bool durable, size_t *bytes)
{
	return memdisk_file(node_at(w, node)->disk, name, durable, bytes);
}

enum rc world_flip(struct world *w, unsigned node, const char *name,
		   uint64_t byte, unsigned bit)
{
	return memdisk_flip(node_at(w, node)->disk, name, byte, bit);
}

void world_files(struct world *w, unsigned node,
		 void (*cb)(void *arg, const char *name, uint64_t bytes),
		 void *arg)
{
	memdisk_files(node_at(w, node)->disk, cb, arg);
}

void world_copy(struct world *w, unsigned from, unsigned to)
{
	struct node *source = node_at(w, from);

	memdisk_copy(node_restart(w, to)->disk, source->disk);
}

void world_wipe(struct world *w, unsigned node)
{
	memdisk_wipe(node_restart(w, node)->disk);
}

void world_clone(struct world *w, unsigned from, unsigned to)
{
	struct node *source = node_at(w, from);

	memdisk_clone(node_restart(w, to)->disk, source->disk);
}

struct disk *world_durable(struct world *w, unsigned node)
{
	return memdisk_durable(node_at(w, node)->disk);
}

void world_capacity(struct world *w, unsigned node, uint64_t bytes)
{
	memdisk_capacity(node_at(w, node)->disk, bytes);
}

uint64_t world_used(const struct world *w, unsigned node)
{
	PRE(node < WORLD_NODES_MAX);
	return memdisk_used(w->nodes[node].disk);
}

void world_birth_hidden(struct world *w, unsigned node, bool hidden)
{
	memdisk_birth_hidden(node_at(w, node)->disk, hidden);
}

/* ---- determinism ---- */

uint64_t world_hash(const struct world *w)
{
	return w->hash;
}

uint64_t world_events(const struct world *w)
{
	return w->events_done;
}

void world_note(struct world *w, const void *p, size_t n)
{
	mix(w, (uint64_t)n << 32 | crc32c(0, p, n));
}
