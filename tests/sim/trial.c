#include "tests/sim/trial.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/core/bridge.h"
#include "objects/db_vfs.h"
#include "tests/sim/load.h"
#include "tests/sim/memdisk.h"

#define SEGMENT_BYTES  (1u << 20)
#define CLOSE_MS       (DEADLINE_MAX_MS + 30000u)
#define DAY_MS         INT64_C(86400000)
#define HOUR_MS        INT64_C(3600000)
#define LOOK_EVERY     4u /* Steps between two looks at the invariants. */
#define BOOT_TRIES_MAX 6u

/* node/base/logline.h has one sink. */
static struct trial *current;

/* ------------------------------------------------------------- the trace */

void trial_trace(struct trial *r, const char *fmt, ...)
{
	char *line = r->line[r->lines++ % TRIAL_LINES];
	va_list ap;
	int n;

	n = snprintf(line, sizeof(r->line[0]), "%8" PRIu64 " ms %6" PRIu64 " ",
		     world_now_ms(r->w), r->now);
	va_start(ap, fmt);
	(void)vsnprintf(line + n, sizeof(r->line[0]) - (size_t)n, fmt, ap);
	va_end(ap);
	if (r->loud)
		(void)fprintf(stderr, "%s\n", line);
}

void trial_dump(const struct trial *r)
{
	unsigned from = r->lines > TRIAL_LINES ? r->lines - TRIAL_LINES : 0;
	unsigned i;

	(void)fprintf(stderr,
		      "--- the last %u of %u events of seed %" PRIu64 ":\n",
		      r->lines - from, r->lines, r->seed);
	for (i = from; i < r->lines; i++)
		(void)fprintf(stderr, "%s\n", r->line[i % TRIAL_LINES]);
}

static void dump_current(void *unused)
{
	(void)unused;
	if (current != NULL)
		trial_dump(current);
}

static void log_line(void *arg, const char *line, size_t n)
{
	(void)arg;
	if (current != NULL)
		trial_trace(current, "%.*s", (int)(n > 0 ? n - 1 : 0), line);
}

static uint64_t log_wall_ms(void *arg)
{
	(void)arg;
	return 0;
}

bool trial_is_broken(const struct trial *r)
{
	return r->breach.invariant[0] != '\0';
}

void trial_breach(struct trial *r, const char *invariant, const char *fmt, ...)
{
	va_list ap;

	if (trial_is_broken(r))
		return;
	(void)snprintf(r->breach.invariant, sizeof(r->breach.invariant), "%s",
		       invariant);
	va_start(ap, fmt);
	(void)vsnprintf(r->breach.text, sizeof(r->breach.text), fmt, ap);
	va_end(ap);
	trial_trace(r, "BREACH %s", invariant);
}

/* ------------------------------------------------------------- the swarm */

static uint32_t between(struct prng *p, uint32_t least, uint32_t most)
{
	return (uint32_t)prng_between(p, least, most);
}

static bool chance(struct prng *p, uint32_t of_100)
{
	return prng_below(p, 100) < of_100;
}

static void draw_core(struct swarm *s, struct prng *p)
{
	struct core_config *c = &s->core;

	core_config_default(c);
	c->calls_max = 256;
	c->objects_max = chance(p, 50) ? between(p, 4, 12) : 1000;
	c->objects_bytes_max =
		chance(p, 50) ? between(p, 16, 256) << 10 : 64u << 20;
	c->object_idle_ms = chance(p, 60) ? between(p, 1, 60) : 5000;
	c->window_ms = chance(p, 30) ? 0 : between(p, 1, 150);
	c->window_bytes = chance(p, 30) ? between(p, 4, 256) << 10 : 32u << 20;
	c->log_bytes_max = (uint64_t)between(p, 4, 8) * SEGMENT_BYTES;
}

static void draw_faults(struct swarm *s, struct prng *p)
{
	s->crash_kinds = 1u << between(p, CRASH_KILL, CRASH_SYNC);
	if (chance(p, 60))
		s->crash_kinds =
			1u << CRASH_KILL | 1u << CRASH_POWER | 1u << CRASH_SYNC;
	if (chance(p, 20))
		s->crash_kinds |= 1u << CRASH_CLOSE;
	s->at_ops = chance(p, 80);
	s->at_boot = chance(p, 40);
	s->jumps = chance(p, 50);
	s->unsynced_clock = chance(p, 30);
	s->pauses = chance(p, 20);
	s->slow_syncs = chance(p, 15);
	s->slow_storage = chance(p, 30);
}

static void draw_work(struct swarm *s, struct prng *p)
{
	s->clients = between(p, 2, 6);
	s->depth = between(p, 1, 3);
	s->burst = chance(p, 30) ? between(p, 2, 4) : 1;
	s->think_ms = chance(p, 50) ? between(p, 0, 3) : between(p, 2, 20);
	s->principals = between(p, 1, 3);
	s->small = between(p, 1, 4);
	s->large = chance(p, 40) ? between(p, 1, 2) : 0;
	s->limiters = chance(p, 50) ? between(p, 1, 3) : 0;
	s->relays = chance(p, 50) ? between(p, 2, 4) : 0;
	s->keys = between(p, 1, 12);
	s->value_max = chance(p, 80) ? 300 : 4000;
	s->keyed = chance(p, 70) ? between(p, 5, 60) : 0;
	s->reads = between(p, 10, 60);
	s->ttl = chance(p, 50) ? between(p, 5, 40) : 0;
	s->destroys = chance(p, 40) ? between(p, 1, 4) : 0;
	s->hurried = chance(p, 30) ? between(p, 1, 10) : 0;
	s->cancels = chance(p, 30) ? between(p, 1, 10) : 0;
	s->twice = chance(p, 50);
	s->bulk = chance(p, 15);
	s->damage = chance(p, 10);
}

static void draw_quiet(struct swarm *s, struct prng *p)
{
	s->shards = between(p, 1, 2);
	s->clients = between(p, 1, 2);
	s->depth = 1;
	s->burst = 1;
	s->think_ms = between(p, 20, 120);
	s->small = 1;
	s->large = 0;
	s->limiters = 0;
	s->relays = 0;
	s->reads = 60;
	s->ttl = 50;
	s->at_ops = false;
	s->jumps = true;
	s->pauses = false;
	s->cycles = between(p, 3, 6);
	s->cycle_ms = 600;
}

static void draw_focus(struct swarm *s, struct prng *p, enum focus focus)
{
	switch (focus) {
	case FOCUS_NONE:
		return;
	case FOCUS_QUIET:
		draw_quiet(s, p);
		return;
	case FOCUS_BULK:
		s->bulk = true;
		s->cycle_ms = 1000;
		return;
	case FOCUS_DAMAGE:
		s->damage = true;
		return;
	case FOCUS_CHAINS:
		s->relays = between(p, 2, 4);
		s->small = 1;
		s->large = 0;
		s->limiters = 0;
		return;
	case FOCUS_KEYS:
		s->keyed = 70;
		s->twice = true;
		return;
	default:
		UNREACHABLE();
	}
}

void swarm_draw(struct swarm *s, uint64_t seed, enum focus focus)
{
	struct prng p;

	prng_seed(&p, seed, 7);
	*s = (struct swarm){ .shards = between(&p, 1, 5),
			     .cycles = between(&p, 2, 5),
			     .cycle_ms = chance(&p, 70) ? between(&p, 20, 300)
							: 1000,
			     .calls_max = 1200 };
	draw_core(s, &p);
	draw_faults(s, &p);
	draw_work(s, &p);
	if (focus == FOCUS_NONE && chance(&p, 10))
		focus = FOCUS_QUIET;
	draw_focus(s, &p, focus);
}

/* ------------------------------------------------------------------ set up */

static void seen_op(void *arg, enum world_op op, const char *name)
{
	struct trial *r = arg;
	if (op == WORLD_SYNC && strncmp(name, "log/", 4) == 0)
		r->log_syncs++;
	if (r->at_op != NULL)
		r->at_op(r, op, name);
}

/* SQLite draws the salts of its logs from here. */
static void sqlite_random(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)prng_next(arg);
}

static void grant(struct trial *r, const char *principal)
{
	struct grant g = { .tenant = "default",
			   .env = "dev",
			   .cls = "*",
			   .rights = RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN };

	(void)snprintf(g.principal, sizeof(g.principal), "%s", principal);
	CHECK(bind_grant(r->bind, &g, NULL) == RC_OK);
}

static void grant_all(struct trial *r)
{
	char principal[64];
	uint32_t i;

	CHECK(bind_new(&r->bind) == RC_OK);
	for (i = 0; i < r->swarm.principals; i++) {
		(void)snprintf(principal, sizeof(principal), "unix:sim:%u",
			       1000 + i);
		grant(r, principal);
	}
	grant(r, "object:default/dev/relay");
}

static void set_speeds(struct trial *r)
{
	const struct world_latency slow = { 1, 20000, 1, 5000 };
	const struct world_latency quick = { 1, 200, 1, 200 };

	if (r->swarm.slow_storage)
		world_latency(r->w, TRIAL_NODE, ENV_WORKER_STORAGE, &slow);
	else if (trial_chance(r, 30))
		world_latency(r->w, TRIAL_NODE, ENV_WORKER_STORAGE, &quick);
	if (r->swarm.slow_syncs)
		world_sync_time(r->w, TRIAL_NODE, 100, 5000, 200, 400);
	world_wall_synced(r->w, TRIAL_NODE, !r->swarm.unsynced_clock);
}

static void format(struct trial *r)
{
	struct detail why = { { 0 }, { 0 } };
	struct identity id = { .node_id = 1,
			       .node_name = "sim",
			       .shards = r->swarm.shards,
			       .segment_bytes = SEGMENT_BYTES };
	enum rc rc = core_format(world_disk(r->w, TRIAL_NODE),
				 world_env(r->w, TRIAL_NODE), &id, &why);

	if (rc != RC_OK)
		trial_breach(r, "format", "%s: %s", rc_name(rc), why.text);
}

struct trial *trial_new(uint64_t seed, const struct swarm *swarm)
{
	struct trial *r = sim_alloc(sizeof(*r));

	CHECK(crypto_init() == RC_OK);
	r->seed = seed;
	r->swarm = *swarm;
	r->line = sim_alloc(TRIAL_LINES * sizeof(r->line[0]));
	r->w = world_new(seed);
	prng_seed(&r->r, seed, 8);
	prng_seed(&r->sqlite, seed, 9);
	db_vfs_seed(sqlite_random, &r->sqlite);
	if (current == NULL)
		panic_hook(dump_current, NULL);
	current = r;
	log_setup(LOG_INFO_LEVEL, log_line, log_wall_ms, NULL);
	world_watch(r->w, TRIAL_NODE, seen_op, r);
	grant_all(r);
	set_speeds(r);
	format(r);
	r->load = load_new(r);
	return r;
}

void trial_free(struct trial *r)
{
	if (r->core != NULL)
		core_discard(r->core);
	load_free(r->load);
	bind_free(r->bind);
	world_free(r->w);
	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	current = NULL;
	free(r->line);
	free(r);
}

/* -------------------------------------------------------- what always holds */

static void look_at_shard(struct trial *r, uint32_t i)
{
	struct bridge *b = core_bridge(r->core, i);
	struct shard *s = bridge_shard(b);
	struct storage *st = bridge_storage(b);
	uint64_t stamp = storage_stamp(st);
	uint64_t now = bridge_now_ns(b);
	uint64_t term;

	if (now != 0 && now < stamp)
		trial_breach(r, "now-after-F",
			     "shard %u: now %" PRIu64 ", committed %" PRIu64, i,
			     now, stamp);
	if (storage_stored(st) > storage_applied(st))
		trial_breach(r, "stored<=applied",
			     "shard %u: %" PRIu64 " > %" PRIu64, i,
			     storage_stored(st), storage_applied(st));
	if (storage_checkpointed(st) > storage_stored(st))
		trial_breach(r, "checkpointed<=stored",
			     "shard %u: %" PRIu64 " > %" PRIu64, i,
			     storage_checkpointed(st), storage_stored(st));
	if (!shard_leads(s, &term))
		return;
	/* Also over a crash: what was committed is in the log. */
	if (stamp < r->stamp[i])
		trial_breach(r, "F-monotone",
			     "shard %u: %" PRIu64 " after %" PRIu64, i, stamp,
			     r->stamp[i]);
	r->stamp[i] = stamp;
	if (shard_applied_index(s) > shard_durable_index(s))
		trial_breach(r, "applied<=durable",
			     "shard %u: %" PRIu64 " > %" PRIu64, i,
			     shard_applied_index(s), shard_durable_index(s));
	if (shard_applied_index(s) > shard_commit_index(s))
		trial_breach(r, "applied<=committed",
			     "shard %u: %" PRIu64 " > %" PRIu64, i,
			     shard_applied_index(s), shard_commit_index(s));
	if (shard_commit_index(s) > shard_durable_index(s))
		trial_breach(r, "committed<=durable",
			     "shard %u: %" PRIu64 " > %" PRIu64, i,
			     shard_commit_index(s), shard_durable_index(s));
}

static void look(struct trial *r)
{
	uint32_t i;

	if (r->core == NULL || r->closing)
		return;
	for (i = 0; i < r->swarm.shards; i++)
		look_at_shard(r, i);
}

bool trial_step(struct trial *r)
{
	if (!world_step(r->w))
		return false;
	r->tally.events++;
	if (!world_alive(r->w, TRIAL_NODE))
		return false;
	if (r->tally.events % LOOK_EVERY == 0)
		look(r);
	return true;
}

bool trial_until(struct trial *r, const bool *flag, uint64_t ms_max)
{
	uint64_t end = world_now_ms(r->w) + ms_max;

	while (!(flag != NULL && *flag) && world_now_ms(r->w) < end &&
	       !trial_is_broken(r))
		if (!trial_step(r))
			return false;
	return flag == NULL || *flag;
}

bool trial_for(struct trial *r, uint64_t ms)
{
	return trial_until(r, NULL, ms);
}

/* ------------------------------------------------------------ boots, ends */

static void became_ready(void *arg)
{
	struct trial *r = arg;

	if (!world_alive(r->w, TRIAL_NODE))
		return;
	r->ready = true;
	trial_trace(r, "ready");
	load_ready(r->load);
}

enum rc trial_boot(struct trial *r)
{
	struct detail why = { { 0 }, { 0 } };
	uint64_t fired = world_faults_fired(r->w, TRIAL_NODE);
	enum rc rc;

	r->ready = false;
	r->closing = false;
	r->closed = false;
	r->tally.boots++;
	trial_trace(r, "boot");
	rc = core_open(world_env(r->w, TRIAL_NODE),
		       world_disk(r->w, TRIAL_NODE), NULL, &r->swarm.core,
		       r->bind, became_ready, r, &r->core, &why);
	if (rc == RC_OK) {
		load_start(r->load);
		return rc;
	}
	r->core = NULL;
	trial_trace(r, "boot refused: %s %s", rc_name(rc), why.text);
	if (world_faults_fired(r->w, TRIAL_NODE) != fired ||
	    !world_alive(r->w, TRIAL_NODE))
		return RC_IO;
	if (!r->noted_bad)
		trial_breach(r, "starts", "%s: %s", rc_name(rc), why.text);
	return rc;
}

static void forget_core(struct trial *r)
{
	struct space_stats objects;
	struct log_stats log;
	uint32_t i;

	if (r->core == NULL || r->closing)
		return;
	log_stats(core_log(r->core), &log);
	if (log.segments > r->tally.segments)
		r->tally.segments = log.segments;
	for (i = 0; i < r->swarm.shards; i++) {
		space_stats(bridge_space(core_bridge(r->core, i)), &objects);
		r->tally.loads += objects.loads;
		r->tally.evictions += objects.evictions;
	}
}

void trial_crash(struct trial *r, enum crash kind)
{
	const char *stopped = world_stopped(r->w, TRIAL_NODE);

	trial_trace(r, "crash %d%s%s%s", kind,
		    world_crashed(r->w, TRIAL_NODE) ? " at an operation" : "",
		    stopped != NULL ? ": " : "",
		    stopped != NULL ? stopped : "");
	r->tally.crashes[kind]++;
	r->tally.crash_points += world_crashed(r->w, TRIAL_NODE);
	forget_core(r);
	load_crashed(r->load);
	if (r->core != NULL)
		core_discard(r->core);
	r->core = NULL;
	if (kind == CRASH_POWER)
		world_power_cut(r->w, TRIAL_NODE);
	else
		world_kill(r->w, TRIAL_NODE);
	if (kind == CRASH_SYNC)
		world_drop_caches(r->w, TRIAL_NODE);
}

static void was_closed(void *arg)
{
	struct trial *r = arg;

	r->core = NULL;
	r->closed = true;
}

bool trial_close(struct trial *r)
{
	r->closed = false;
	trial_trace(r, "close");
	load_stop(r->load);
	forget_core(r);
	r->closing = true;
	core_close(r->core, was_closed, r);
	if (!trial_until(r, &r->closed, CLOSE_MS)) {
		if (world_alive(r->w, TRIAL_NODE))
			trial_breach(r, "closes", "not within %u ms", CLOSE_MS);
		return false;
	}
	r->tally.crashes[CRASH_CLOSE]++;
	world_kill(r->w, TRIAL_NODE);
	return true;
}

static void jump(struct trial *r)
{
	static const int64_t by[] = { -DAY_MS, -HOUR_MS, -5000,
				      5000,    HOUR_MS,  DAY_MS };

	if (!r->swarm.jumps || trial_chance(r, 40))
		return;
	r->tally.jumps++;
	world_wall_jump(r->w, TRIAL_NODE, by[trial_random(r, ARRAY_LEN(by))]);
}

static enum world_op some_op(struct trial *r)
{
	static const enum world_op ops[] = { WORLD_WRITE,   WORLD_SYNC,
					     WORLD_SYNC,    WORLD_CHANGE,
					     WORLD_CREATE,  WORLD_UNLINK,
					     WORLD_SYNC_DIR };

	return trial_chance(r, 80) ? ops[trial_random(r, 3)]
				   : ops[trial_random(r, ARRAY_LEN(ops))];
}

static void plan_crash(struct trial *r, enum crash kind, uint64_t within)
{
	static const char *const prefixes[] = { "log/", "state/", "ballot",
						"log/" };
	struct world_fault f = { .op = some_op(r),
				 .nth = 1 + trial_random(r, within) };

	if (kind == CRASH_SYNC && trial_chance(r, 60))
		f.op = WORLD_SYNC;
	else if (kind == CRASH_SYNC)
		f.op = WORLD_WRITE;
	if (trial_chance(r, 50))
		f.prefix = prefixes[trial_random(r, ARRAY_LEN(prefixes))];
	f.kind = trial_chance(r, 50) ? WORLD_CRASH_BEFORE : WORLD_CRASH_AFTER;
	if (kind == CRASH_SYNC) {
		f.kind = trial_chance(r, 70) ? WORLD_EIO : WORLD_NO_SPACE;
		if (f.op == WORLD_WRITE && trial_chance(r, 30))
			f.kind = WORLD_SHORT;
		if (f.op == WORLD_SYNC)
			r->tally.sync_fails++;
		else
			r->tally.write_fails++;
	}
	trial_trace(r, "plan: fault %d at op %d number %" PRIu64 " of %s",
		    f.kind, f.op, f.nth, f.prefix != NULL ? f.prefix : "all");
	world_fault(r->w, TRIAL_NODE, &f);
}

void trial_reboot(struct trial *r, enum crash kind)
{
	unsigned tries = 0;
	enum rc rc;

	do {
		trial_crash(r, kind);
		jump(r);
		if (r->swarm.at_boot && tries < BOOT_TRIES_MAX &&
		    trial_chance(r, 30))
			plan_crash(r, CRASH_KILL, 30);
		else
			world_faults_clear(r->w, TRIAL_NODE);
		rc = trial_boot(r);
		if (rc == RC_IO && tries++ > 0)
			kind = trial_chance(r, 50) ? CRASH_POWER : CRASH_KILL;
	} while (rc == RC_IO && !trial_is_broken(r) && tries < 100);
	/* A crash that is planned further on may still come. */
}

/* ---------------------------------------------------------------- a whole run
 */

static enum crash some_crash(struct trial *r)
{
	enum crash kind;

	do
		kind = (enum crash)trial_random(r, CRASHES);
	while ((r->swarm.crash_kinds & 1u << kind) == 0);
	return kind;
}

static void maybe_pause(struct trial *r)
{
	if (!r->swarm.pauses || !trial_chance(r, 50))
		return;
	r->tally.pauses++;
	if (trial_chance(r, 50))
		world_pause(r->w, TRIAL_NODE, 1 + trial_random(r, 500));
	else
		world_suspend(r->w, TRIAL_NODE, 1 + trial_random(r, 5000));
}

static void cycle(struct trial *r)
{
	enum crash kind = some_crash(r);
	uint64_t ms = 1 + trial_random(r, r->swarm.cycle_ms);

	if (kind != CRASH_CLOSE && (r->swarm.at_ops || kind == CRASH_SYNC))
		plan_crash(r, kind, 20 + 10 * trial_random(r, 40));
	if (!trial_for(r, ms / 2)) {
		trial_reboot(r, kind);
		return;
	}
	maybe_pause(r);
	if (trial_for(r, ms / 2) && kind == CRASH_CLOSE && trial_close(r)) {
		if (trial_boot(r) == RC_IO)
			trial_reboot(r, CRASH_KILL);
		return;
	}
	trial_reboot(r, kind == CRASH_CLOSE ? CRASH_KILL : kind);
}

bool trial_get_ready(struct trial *r)
{
	unsigned tries;

	for (tries = 0; tries < BOOT_TRIES_MAX && !trial_is_broken(r);
	     tries++) {
		world_faults_clear(r->w, TRIAL_NODE);
		if (trial_until(r, &r->ready, 60000))
			return true;
		if (world_alive(r->w, TRIAL_NODE)) {
			trial_breach(r, "ready", "not within 60 s");
			return false;
		}
		trial_reboot(r, CRASH_KILL);
	}
	return false;
}

struct victim {
	struct trial *r;
	const char *prefix;
	uint64_t n; /* Files that fit. */
	char name[64];
	uint64_t bytes;
};

/* Any of them, with the same chance. */
static void look_at_file(void *arg, const char *name, uint64_t bytes)
{
	struct victim *v = arg;

	if (strncmp(name, v->prefix, strlen(v->prefix)) != 0 || bytes == 0)
		return;
	v->n++;
	if (trial_random(v->r, v->n) != 0)
		return;
	(void)snprintf(v->name, sizeof(v->name), "%s", name);
	v->bytes = bytes;
}

static void flip(struct trial *r)
{
	static const char *const prefixes[] = { "state/", "state/", "log/",
						"ballot", "identity" };
	struct victim v = {
		.r = r,
		.prefix = prefixes[trial_random(r, ARRAY_LEN(prefixes))],
	};
	uint64_t at;
	unsigned bit;

	world_files(r->w, TRIAL_NODE, look_at_file, &v);
	if (v.n == 0)
		return;
	/* Where something is, mostly. */
	at = trial_random(r, v.bytes > 65536 && trial_chance(r, 70) ? 65536
								    : v.bytes);
	bit = (unsigned)trial_random(r, 8);
	CHECK(world_flip(r->w, TRIAL_NODE, v.name, at, bit) == RC_OK);
	trial_trace(r, "flipped bit %u of byte %" PRIu64 " of %s", bit, at,
		    v.name);
}

/* A disk that lies: the node says so, or answers as if it had not. */
static void finish_damaged(struct trial *r)
{
	uint64_t n = 1 + trial_random(r, 3);

	if (trial_chance(r, 50)) {
		if (!trial_close(r))
			return;
	} else {
		trial_crash(r, trial_chance(r, 50) ? CRASH_POWER : CRASH_KILL);
	}
	r->noted_bad = true;
	r->tally.damaged++;
	while (n-- > 0)
		flip(r);
	r->over = true;
	if (trial_boot(r) == RC_OK) {
		load_stop(r->load);
		if (trial_until(r, &r->ready, 60000) && load_audit(r->load))
			r->over = !trial_close(r);
	}
	r->tally.detected += r->over;
}

static void finish(struct trial *r)
{
	load_stop(r->load);
	if (!trial_get_ready(r) || !load_settle(r->load) ||
	    !load_audit(r->load))
		return;
	if (r->swarm.damage) {
		finish_damaged(r);
		return;
	}
	if (!trial_close(r) || trial_boot(r) != RC_OK || !trial_get_ready(r))
		return;
	load_stop(r->load);
	if (load_audit(r->load))
		(void)trial_close(r);
}

void trial_judge(struct trial *r)
{
	if (!trial_is_broken(r))
		finish(r);
	if (!trial_is_broken(r) && !r->closed && !r->over)
		trial_breach(r, "ends",
			     "the node ended without a planned crash: %s",
			     world_stopped(r->w, TRIAL_NODE) != NULL
				     ? world_stopped(r->w, TRIAL_NODE)
				     : "?");
	if (!trial_is_broken(r) && r->core != NULL)
		load_crashed(r->load);
	if (!trial_is_broken(r))
		load_judge(r->load);
	r->tally.virtual_ms = world_now_ms(r->w);
	r->tally.hash = world_hash(r->w);
}

void trial_all(struct trial *r)
{
	uint32_t i;

	if (!trial_is_broken(r))
		(void)trial_boot(r);
	for (i = 0; i < r->swarm.cycles && !trial_is_broken(r); i++)
		cycle(r);
	trial_judge(r);
}
