#include "tests/sim/trial.h"

#include <inttypes.h>
#include <signal.h>
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
#include "objects/directory_class.h"
#include "tests/sim/faults.h"
#include "tests/sim/load.h"
#include "tests/sim/memdisk.h"
#include "tests/sim/watch.h"

#define CLOSE_MS      (DEADLINE_MAX_MS + 30000u)
#define BOOT_AGAIN_MS 20u
#define LEVEL_LOOK_MS 50u
#define BOOTS_BAD_MAX 50u

/* node/base/logline.h has one sink. */
static struct trial *current;

/* ------------------------------------------------------------- the trace */

void trial_trace(struct trial *r, const char *fmt, ...)
{
	char *line = r->line[r->lines++ % TRIAL_LINES];
	unsigned node = world_last(r->w);
	va_list ap;
	int n;

	n = snprintf(line, sizeof(r->line[0]),
		     "%8" PRIu64 ".%03u %6" PRIu64 " %c ", trial_now(r),
		     (unsigned)(world_now_ns(r->w) / 1000u % 1000u), r->now,
		     node < r->swarm.nodes ? (char)('1' + node) : '-');
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

/* It took too long: what was it at? */
static void late(int signal_number)
{
	(void)signal(signal_number, SIG_DFL);
	dump_current(NULL);
	(void)raise(signal_number);
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
	trial_trace(r, "BREACH %s: %s", invariant, r->breach.text);
}

/* ------------------------------------------------------------------ set up */

static void seen_op(void *arg, enum world_op op, const char *name)
{
	struct machine *m = arg;

	if (op == WORLD_SYNC && strncmp(name, "log/", 4) == 0)
		m->log_syncs++;
	if (m->r->at_op != NULL)
		m->r->at_op(m->r, m->n, op, name);
	if (m->r->faults != NULL)
		faults_op(m->r->faults, m->n, op, name);
}

static void seen_leaving(void *arg, unsigned from, unsigned to,
			 enum link_kind kind, const uint8_t *p, size_t n)
{
	struct trial *r = arg;

	faults_leaving(r->faults, from);
	if (r->at_send != NULL)
		r->at_send(r, from);
	if (world_alive(r->w, from))
		watch_message(r->watch, from, to, kind, p, n);
}

static void seen_left(void *arg, unsigned from, unsigned to,
		      enum link_kind kind)
{
	struct trial *r = arg;

	(void)to;
	(void)kind;
	faults_left(r->faults, from);
}

/* SQLite draws the salts of its logs from here. */
static void sqlite_random(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)prng_next(arg);
}

/* The bytes outlive every call. */
static struct pack_bytes operator_at(unsigned node)
{
	static char names[NET_NODES_MAX][24];

	(void)snprintf(names[node], sizeof(names[node]), "unix:n%u:0",
		       node + 1);
	return (struct pack_bytes){ (const uint8_t *)names[node],
				    strlen(names[node]) };
}

static struct pack_bytes principal_of(unsigned client, unsigned node)
{
	if (client == TRIAL_OPERATOR)
		return operator_at(node);
	return load_principal(load_caller(&current->swarm, client));
}

static void set_speeds(struct trial *r, unsigned node)
{
	const struct world_latency slow = { 1, 20000, 1, 5000 };
	const struct world_latency quick = { 1, 200, 1, 200 };

	if (r->swarm.slow_storage && trial_chance(r, 60))
		world_latency(r->w, node, ENV_WORKER_STORAGE, &slow);
	else if (trial_chance(r, 40))
		world_latency(r->w, node, ENV_WORKER_STORAGE, &quick);
	if (r->swarm.slow_syncs && trial_chance(r, 60))
		world_sync_time(r->w, node, 100, 5000, 100, 400);
	world_wall_synced(r->w, node, !r->swarm.unsynced_clock);
}

static void draw_id(struct trial *r, uint8_t id[ID_BYTES])
{
	unsigned i;

	for (i = 0; i < ID_BYTES; i++)
		id[i] = (uint8_t)(1 + trial_random(r, 255));
}

static enum rc format(struct trial *r, unsigned node, bool lost,
		      struct detail *why)
{
	struct member members[NET_NODES_MAX] = { 0 };
	struct identity id = { .node_id = node + 1,
			       .shards = r->swarm.shards,
			       .segment_bytes = TRIAL_SEGMENT };
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++) {
		members[i].id = i + 1;
		(void)snprintf(members[i].name, sizeof(members[i].name), "n%u",
			       i + 1);
		memcpy(members[i].incarnation,
		       i == node ? r->machines[i].incarnation
				 : r->machines[i].agreed,
		       ID_BYTES);
	}
	(void)snprintf(id.node_name, sizeof(id.node_name), "n%u", node + 1);
	memcpy(id.cluster_id, r->cluster_id, ID_BYTES);
	memcpy(id.hash_key, r->hash_key, ID_BYTES);
	memcpy(id.incarnation, r->machines[node].incarnation, ID_BYTES);
	return (lost ? core_format_lost : core_format)(
		world_disk(r->w, node), world_env(r->w, node), &id, members,
		r->swarm.nodes, why);
}

bool trial_format(struct trial *r, unsigned node, bool lost)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc = format(r, node, lost, &why);

	if (rc != RC_OK)
		trial_breach(r, "format", "%s: %s", rc_name(rc), why.text);
	return rc == RC_OK;
}

/* Of every node's configuration, alike. */
static void grants_set(struct trial *r)
{
	struct grant g = { .tenant = "default",
			   .env = "dev",
			   .cls = "*",
			   .rights = RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN };
	uint32_t i;

	CHECK(r->swarm.principals + 2 + r->swarm.nodes <= ARRAY_LEN(r->grants));
	for (i = 0; i < r->swarm.principals + r->swarm.guest; i++) {
		(void)snprintf(g.principal, sizeof(g.principal), "%s",
			       (const char *)load_principal(i).p);
		r->grants[r->grants_n++] = g;
	}
	(void)snprintf(g.principal, sizeof(g.principal),
		       "object:default/dev/relay");
	r->grants[r->grants_n++] = g;
	(void)snprintf(g.tenant, sizeof(g.tenant), DIRECTORY_TENANT);
	(void)snprintf(g.env, sizeof(g.env), DIRECTORY_ENV);
	(void)snprintf(g.cls, sizeof(g.cls), DIRECTORY_CLASS);
	for (i = 0; i < r->swarm.nodes; i++) {
		(void)snprintf(g.principal, sizeof(g.principal), "%s",
			       (const char *)operator_at(i).p);
		r->grants[r->grants_n++] = g;
	}
}

static void machine_init(struct trial *r, unsigned node)
{
	struct machine *m = &r->machines[node];

	m->r = r;
	m->n = node;
	m->boot_ms = CHECK_NEVER;
	m->ending = CRASH_KILL;
	draw_id(r, m->incarnation);
	memcpy(m->agreed, m->incarnation, ID_BYTES);
	world_watch(r->w, node, seen_op, m);
	set_speeds(r, node);
}

struct trial *trial_new(uint64_t seed, const struct swarm *swarm)
{
	struct trial *r = sim_alloc(sizeof(*r));
	const struct net_tap tap = { seen_leaving, seen_left, r };
	unsigned i;

	CHECK(crypto_init() == RC_OK);
	r->seed = seed;
	r->swarm = *swarm;
	r->line = sim_alloc(TRIAL_LINES * sizeof(r->line[0]));
	r->w = world_new(seed);
	prng_seed(&r->r, seed, 8);
	prng_seed(&r->sqlite, seed, 9);
	db_vfs_seed(sqlite_random, &r->sqlite);
	if (current == NULL) {
		panic_hook(dump_current, NULL);
		(void)signal(SIGXCPU, late);
	}
	current = r;
	log_setup(LOG_INFO_LEVEL, log_line, log_wall_ms, NULL);
	r->swarm.net.nodes = swarm->nodes;
	r->net = net_new(r->w, seed, &r->swarm.net, &tap);
	draw_id(r, r->cluster_id);
	draw_id(r, r->hash_key);
	grants_set(r);
	for (i = 0; i < swarm->nodes; i++)
		machine_init(r, i);
	for (i = 0; i < swarm->nodes && !trial_is_broken(r); i++)
		(void)trial_format(r, i, false);
	r->watch = watch_new(r);
	r->faults = faults_new(r);
	r->load = load_new(r);
	return r;
}

void trial_free(struct trial *r)
{
	struct machine *m;
	unsigned i;

	load_free(r->load);
	for (i = 0; i < r->swarm.nodes; i++) {
		m = &r->machines[i];
		if (m->core == NULL)
			continue;
		world_end(r->w, i);
		core_discard(m->core);
		directory_free(m->directory);
		door_free(m->door);
		bind_free(m->bind);
	}
	faults_free(r->faults);
	watch_free(r->watch);
	net_free(r->net);
	world_free(r->w);
	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	current = NULL;
	free(r->line);
	free(r);
}

/* ------------------------------------------------------------ boots, ends */

static void became_ready(void *arg)
{
	struct machine *m = arg;

	if (!world_alive(m->r->w, m->n))
		return;
	m->ready = true;
	trial_trace(m->r, "ready");
}

static void machine_up(struct machine *m)
{
	struct trial *r = m->r;
	const struct directory_config cfg = {
		.ttl_ms = DIRECTORY_TTL_MS,
		.grants = r->grants,
		.grants_n = r->grants_n,
	};

	m->state = MACHINE_UP;
	m->boots++;
	m->up_ms = trial_now(r);
	m->serial = net_serial(r->net);
	CHECK(directory_new(m->core, m->bind, &cfg, NULL, NULL,
			    &m->directory) == RC_OK);
	m->door = door_new(r->w, r->net, m->n, m->core, principal_of);
	net_up(r->net, m->n);
	watch_booted(r->watch, m->n);
}

/* What stands around a core that is no more. */
static void machine_release(struct machine *m)
{
	directory_free(m->directory);
	door_free(m->door);
	bind_free(m->bind);
	m->core = NULL;
	m->directory = NULL;
	m->door = NULL;
	m->bind = NULL;
}

/* Memory goes, the disk stays as the crash leaves it. */
static void machine_forget(struct machine *m)
{
	struct trial *r = m->r;

	if (m->core == NULL)
		return;
	watch_ended(r->watch, m->n);
	if (!m->closed)
		core_discard(m->core);
	machine_release(m);
}

static void machine_down(struct machine *m, enum crash kind, uint64_t ms)
{
	struct trial *r = m->r;

	m->state = MACHINE_DOWN;
	m->ready = false;
	m->down_ms = trial_now(r);
	m->ending = CRASH_KILL;
	m->boot_ms = ms == CHECK_NEVER ? CHECK_NEVER : trial_now(r) + ms;
	/* A volume that was rolled back and starts often enough counts beyond
	 * what its peers know: nobody promises to see that. */
	if (m->foreign && m->boots > 0 && kind != CRASH_CLOSE &&
	    m->foreign_boot == m->boots)
		m->boot_ms = CHECK_NEVER;
	net_down(r->net, m->n, kind == CRASH_POWER);
	if (kind == CRASH_POWER)
		world_power_cut(r->w, m->n);
	else
		world_kill(r->w, m->n);
	if (kind == CRASH_SYNC)
		world_drop_caches(r->w, m->n);
}

enum rc trial_boot(struct trial *r, unsigned node)
{
	struct machine *m = &r->machines[node];
	struct link *links[LINKS] = { NULL };
	struct detail why = { { 0 }, { 0 } };
	uint64_t fired = world_faults_fired(r->w, node);
	unsigned k;
	enum rc rc;

	PRE(m->state == MACHINE_DOWN);
	m->ready = false;
	m->closed = false;
	m->boot_ms = CHECK_NEVER;
	r->tally.boots++;
	trial_trace(r, "n%u boots", node + 1);
	CHECK(bind_new(&m->bind) == RC_OK);
	for (k = 0; k < LINKS; k++)
		links[k] = net_link(r->net, node, (enum link_kind)k);
	rc = core_open(world_env(r->w, node), world_disk(r->w, node),
		       trial_lone(r) ? NULL : links, &r->swarm.core, m->bind,
		       became_ready, m, &m->core, &why);
	if (rc == RC_OK && world_alive(r->w, node)) {
		machine_up(m);
		return RC_OK;
	}
	/* It may have met its end at the very last operation. */
	if (rc == RC_OK)
		core_discard(m->core);
	bind_free(m->bind);
	m->core = NULL;
	m->bind = NULL;
	trial_trace(r, "n%u does not start: %s %s", node + 1, rc_name(rc),
		    why.text);
	if (world_faults_fired(r->w, node) != fired ||
	    !world_alive(r->w, node)) {
		machine_down(m, m->ending, BOOT_AGAIN_MS);
		return RC_IO;
	}
	machine_down(m, CRASH_KILL, CHECK_NEVER);
	if (m->sick || m->foreign)
		r->tally.refused++;
	else
		trial_breach(r, "starts", "n%u: %s: %s", node + 1, rc_name(rc),
			     why.text);
	return rc;
}

static void tally_node(struct machine *m)
{
	struct trial *r = m->r;
	struct space_stats objects;
	struct log_stats log;
	uint32_t i;

	if (m->core == NULL || m->state != MACHINE_UP)
		return;
	log_stats(core_log(m->core), &log);
	if (log.segments > r->tally.segments)
		r->tally.segments = log.segments;
	for (i = 0; i < r->swarm.shards; i++) {
		space_stats(bridge_space(core_bridge(m->core, i)), &objects);
		r->tally.loads += objects.loads;
		r->tally.evictions += objects.evictions;
	}
}

void trial_crash(struct trial *r, unsigned node, enum crash kind, uint64_t ms)
{
	struct machine *m = &r->machines[node];
	const char *stopped = world_stopped(r->w, node);

	PRE(kind != CRASH_CLOSE);
	trial_trace(r, "n%u ends (%s)%s%s%s", node + 1,
		    kind == CRASH_POWER  ? "power"
		    : kind == CRASH_KILL ? "kill"
					 : "failed write",
		    world_crashed(r->w, node) ? " at an operation" : "",
		    stopped != NULL ? ": " : "",
		    stopped != NULL ? stopped : "");
	r->tally.crashes[kind]++;
	r->tally.crash_ops += world_crashed(r->w, node);
	world_end(r->w, node);
	tally_node(m);
	machine_forget(m);
	machine_down(m, kind, ms);
}

static void was_closed(void *arg)
{
	struct machine *m = arg;

	m->closed = true;
}

void trial_close(struct trial *r, unsigned node, uint64_t ms)
{
	struct machine *m = &r->machines[node];

	PRE(m->state == MACHINE_UP);
	trial_trace(r, "n%u is closed", node + 1);
	tally_node(m);
	watch_ended(r->watch, node);
	m->state = MACHINE_CLOSING;
	m->boot_ms = ms;
	door_drain(m->door);
	core_close(m->core, was_closed, m);
}

/* It said that it is closed: nothing of its core is left. */
static void machine_closed(struct machine *m)
{
	struct trial *r = m->r;
	uint64_t ms = m->boot_ms;

	trial_trace(r, "n%u has closed", m->n + 1);
	r->tally.crashes[CRASH_CLOSE]++;
	machine_release(m);
	machine_down(m, CRASH_KILL, ms);
}

/* It ended by itself: at a crash point, or because a write failed. */
static void machine_ended(struct machine *m)
{
	struct trial *r = m->r;
	const char *stopped = world_stopped(r->w, m->n);
	uint64_t ms = 20 + trial_random(r, trial_chance(r, 70) ? 400 : 4000);

	if (stopped != NULL && !faults_excuse(r->faults, m->n))
		trial_breach(r, "ends", "n%u ended without a fault: %s",
			     m->n + 1, stopped);
	faults_crashed(r->faults, m->n);
	trial_crash(r, m->n, m->ending, ms);
}

/* --------------------------------------------------------------- the loop */

static void machines_look(struct trial *r)
{
	struct machine *m;
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++) {
		m = &r->machines[i];
		if (m->state == MACHINE_DOWN) {
			if (m->boot_ms <= trial_now(r))
				(void)trial_boot(r, i);
			continue;
		}
		if (m->closed && m->state == MACHINE_CLOSING)
			machine_closed(m);
		else if (!world_alive(r->w, i))
			machine_ended(m);
	}
}

/* One that hands over and drains answers still, and acknowledges. */
static bool has_core(const struct machine *m)
{
	return m->state == MACHINE_UP ||
	       (m->state == MACHINE_CLOSING && !m->closed);
}

bool trial_step(struct trial *r)
{
	unsigned last;

	if (r->chaos)
		faults_tick(r->faults);
	machines_look(r);
	if (!world_step(r->w))
		return false;
	r->tally.events++;
	last = world_last(r->w);
	if (last < r->swarm.nodes && has_core(&r->machines[last]) &&
	    world_alive(r->w, last))
		watch_node(r->watch, last);
	machines_look(r);
	load_tick(r->load);
	return true;
}

bool trial_until(struct trial *r, const bool *flag, uint64_t ms_max)
{
	uint64_t end = trial_now(r) + ms_max;

	while (!(flag != NULL && *flag) && trial_now(r) < end &&
	       !trial_is_broken(r))
		if (!trial_step(r))
			return false;
	return !trial_is_broken(r) && (flag == NULL || *flag);
}

bool trial_for(struct trial *r, uint64_t ms)
{
	return trial_until(r, NULL, ms);
}

int trial_owner(const struct trial *r, uint32_t shard)
{
	uint64_t best = 0;
	uint64_t term;
	int owner = -1;
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++) {
		const struct machine *m = &r->machines[i];

		if (m->state != MACHINE_UP ||
		    !shard_leads(bridge_shard(core_bridge(m->core, shard)),
				 &term) ||
		    term < best)
			continue;
		best = term;
		owner = (int)i;
	}
	return owner;
}

/* ----------------------------------------------------------------- the end */

/* A ballot that is lost needs the word of every other voter (DESIGN D4). */
static bool may_wait(const struct trial *r, const struct machine *m,
		     uint32_t core_set)
{
	return (m->fresh || m->sick) && core_set != (1u << r->swarm.nodes) - 1;
}

/* Why it has not come together; "" when it has. */
static void look_level(struct trial *r, uint32_t core_set, char why[300])
{
	uint32_t s;
	unsigned i;
	int owner;

	why[0] = '\0';
	for (s = 0; s < r->swarm.shards && why[0] == '\0'; s++) {
		const struct shard *os;

		owner = trial_owner(r, s);
		if (owner < 0) {
			(void)snprintf(why, 300, "shard %u has no owner", s);
			return;
		}
		os = bridge_shard(core_bridge(r->machines[owner].core, s));
		for (i = 0; i < r->swarm.nodes && why[0] == '\0'; i++) {
			const struct machine *m = &r->machines[i];
			const struct shard *is;
			struct shard_view v;

			if ((core_set & 1u << i) == 0)
				continue;
			if (m->state != MACHINE_UP) {
				(void)snprintf(why, 300, "n%u is down", i + 1);
				return;
			}
			is = bridge_shard(core_bridge(m->core, s));
			shard_view(is, &v);
			if (v.health != SHARD_WHOLE && may_wait(r, m, core_set))
				continue;
			if (v.health != SHARD_WHOLE)
				(void)snprintf(why, 300,
					       "shard %u of n%u is not whole "
					       "(%d): %s",
					       s, i + 1, v.health, v.why);
			else if (shard_applied_index(is) !=
				 shard_last_index(os))
				(void)snprintf(
					why, 200,
					"shard %u of n%u has applied %" PRIu64
					" of %" PRIu64 ", the owner is n%d",
					s, i + 1, shard_applied_index(is),
					shard_last_index(os), owner + 1);
		}
	}
}

/* Who is where, for who reads the trace. */
static void show_all(struct trial *r)
{
	struct shard_view v;
	unsigned i;
	unsigned k;
	uint32_t s;

	for (i = 0; i < r->swarm.nodes; i++) {
		struct machine *m = &r->machines[i];

		if (m->state != MACHINE_UP) {
			trial_trace(r, "  n%u is down", i + 1);
			continue;
		}
		for (k = 0; k < r->swarm.nodes; k++)
			if (k != i)
				trial_trace(
					r,
					"  n%u to n%u: greeted %" PRIu64
					", %" PRIu64,
					i + 1, k + 1,
					transport_epoch(core_transport(m->core),
							CHANNEL_RAFT, k + 1),
					transport_epoch(core_transport(m->core),
							CHANNEL_CALL, k + 1));
		for (s = 0; s < r->swarm.shards; s++) {
			const struct shard *sh =
				bridge_shard(core_bridge(m->core, s));

			shard_view(sh, &v);
			trial_trace(r,
				    "  n%u shard %u: term %" PRIu64
				    ", leader %" PRIu64 ", last %" PRIu64
				    ", durable %" PRIu64 ", commit %" PRIu64
				    ", applied %" PRIu64 ", health %d %s",
				    i + 1, s, shard_term(sh), shard_leader(sh),
				    shard_last_index(sh),
				    shard_durable_index(sh),
				    shard_commit_index(sh),
				    shard_applied_index(sh), v.health, v.why);
		}
	}
}

/* The nodes that heal: all that a majority needs, perhaps more. */
static uint32_t draw_core(struct trial *r)
{
	uint32_t majority = r->swarm.nodes / 2 + 1;
	uint32_t want = majority + (uint32_t)trial_random(
					   r, r->swarm.nodes - majority + 1);
	uint32_t set = 0;
	uint32_t n = 0;
	unsigned at = (unsigned)trial_random(r, r->swarm.nodes);
	unsigned round;
	unsigned i;

	/* The healthy ones first. */
	for (round = 0; round < 2; round++)
		for (i = 0; i < r->swarm.nodes && n < want; i++) {
			unsigned node = (at + i) % r->swarm.nodes;
			const struct machine *m = &r->machines[node];

			if (m->foreign ||
			    (round == 0 && (m->sick || m->fresh)) ||
			    (set & 1u << node) != 0)
				continue;
			set |= 1u << node;
			n++;
		}
	return set;
}

/* A sick disk may be so bad that its node does not start: then the others must
 * do without. */
static void replace_broken(struct trial *r, uint32_t *core_set)
{
	unsigned i;
	bool any = false;

	for (i = 0; i < r->swarm.nodes; i++) {
		const struct machine *m = &r->machines[i];

		if ((*core_set & 1u << i) != 0 && m->sick &&
		    m->state == MACHINE_DOWN && m->boot_ms == CHECK_NEVER) {
			*core_set &= ~(1u << i);
			any = true;
		}
	}
	for (i = 0; any && i < r->swarm.nodes; i++) {
		struct machine *m = &r->machines[i];

		if (m->sick || m->foreign || (*core_set & 1u << i) != 0)
			continue;
		*core_set |= 1u << i;
		m->boot_ms = trial_now(r);
	}
}

static bool heal(struct trial *r, uint32_t *core_set)
{
	uint64_t begin = trial_now(r);
	char why[300];
	unsigned i;
	uint64_t took;

	r->chaos = false;
	faults_end(r->faults);
	/* What comes later than a follower waits for ends leaderships. */
	net_calm(r->net, r->swarm.core.election_ms / 2);
	load_stop(r->load);
	*core_set = draw_core(r);
	trial_trace(r, "heals: nodes %x", *core_set);
	for (i = 0; i < r->swarm.nodes; i++) {
		struct machine *m = &r->machines[i];

		if ((*core_set & 1u << i) != 0) {
			if (m->state == MACHINE_DOWN)
				m->boot_ms = trial_now(r);
			else if (m->state == MACHINE_CLOSING)
				m->boot_ms = 0;
			continue;
		}
		if (m->state != MACHINE_DOWN)
			trial_crash(r, i, CRASH_POWER, CHECK_NEVER);
		m->boot_ms = CHECK_NEVER;
	}
	do {
		if (!trial_for(r, LEVEL_LOOK_MS))
			return false;
		replace_broken(r, core_set);
		look_level(r, *core_set, why);
	} while (why[0] != '\0' && trial_now(r) - begin < TRIAL_HEALS_MS);
	took = trial_now(r) - begin;
	if (why[0] != '\0') {
		show_all(r);
		trial_breach(r, "heals", "not within %u ms: %s", TRIAL_HEALS_MS,
			     why);
		return false;
	}
	r->tally.heals++;
	r->tally.heal_ms += took;
	if (took > r->tally.heal_max_ms)
		r->tally.heal_max_ms = took;
	return true;
}

/* Nothing is under way: the same index on all, and so the same state. */
static bool level(struct trial *r, uint32_t core_set)
{
	uint64_t begin = trial_now(r);
	char why[300];

	for (;;) {
		look_level(r, core_set, why);
		if (why[0] == '\0')
			break;
		if (trial_now(r) - begin > TRIAL_HEALS_MS) {
			trial_breach(r, "level", "%s", why);
			return false;
		}
		if (!trial_for(r, LEVEL_LOOK_MS))
			return false;
	}
	return true;
}

static bool is_quiet(struct trial *r)
{
	struct core_stats stats;
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++) {
		if (r->machines[i].state != MACHINE_UP)
			continue;
		core_stats(r->machines[i].core, &stats);
		/* The directory reads itself, once a second. */
		if (stats.calls_open > 1)
			return false;
	}
	return net_quiet(r->net);
}

/* Until nothing can begin any more that a client once asked for. */
static void settle(struct trial *r, uint32_t core_set)
{
	uint64_t end = trial_now(r) + TRIAL_HEALS_MS;

	while (!is_quiet(r) && trial_now(r) < end)
		if (!trial_for(r, LEVEL_LOOK_MS))
			return;
	if (is_quiet(r) && level(r, core_set))
		load_settled(r->load);
}

static bool close_all(struct trial *r)
{
	uint64_t begin = trial_now(r);
	unsigned i;
	bool open;

	for (i = 0; i < r->swarm.nodes; i++)
		if (r->machines[i].state == MACHINE_UP)
			trial_close(r, i, CHECK_NEVER);
	do {
		open = false;
		for (i = 0; i < r->swarm.nodes; i++)
			open = open || r->machines[i].state != MACHINE_DOWN;
		if (!open)
			return true;
		if (trial_now(r) - begin > CLOSE_MS) {
			trial_breach(r, "closes", "not within %u ms", CLOSE_MS);
			return false;
		}
	} while (trial_step(r) && !trial_is_broken(r));
	return false;
}

static bool restart_all(struct trial *r, uint32_t core_set)
{
	uint64_t begin = trial_now(r);
	char why[300];
	unsigned i;

	trial_trace(r, "all lose power");
	for (i = 0; i < r->swarm.nodes; i++)
		if (r->machines[i].state != MACHINE_DOWN)
			trial_crash(r, i, CRASH_POWER, trial_random(r, 1000));
	do {
		if (!trial_for(r, LEVEL_LOOK_MS))
			return false;
		replace_broken(r, &core_set);
		look_level(r, core_set, why);
	} while (why[0] != '\0' && trial_now(r) - begin < TRIAL_HEALS_MS);
	if (why[0] != '\0')
		trial_breach(r, "heals", "after a power cut: %s", why);
	return why[0] == '\0';
}

static void finish(struct trial *r)
{
	uint64_t begin = trial_now(r);
	uint32_t core_set;

	if (!heal(r, &core_set) ||
	    !load_serves(r->load, begin + TRIAL_HEALS_MS) ||
	    !load_settle(r->load))
		return;
	settle(r, core_set);
	if (!load_audit(r->load) || !level(r, core_set))
		return;
	watch_level(r->watch);
	if (r->swarm.restart &&
	    (!restart_all(r, core_set) || !load_audit(r->load)))
		return;
	(void)close_all(r);
}

void trial_judge(struct trial *r)
{
	struct net_stats net;

	if (!trial_is_broken(r))
		finish(r);
	if (!trial_is_broken(r))
		load_judge(r->load);
	net_stats(r->net, &net);
	r->tally.messages = net.messages;
	r->tally.late = net.late;
	r->tally.faults[FAULT_LATE] += net.late;
	r->tally.virtual_ms = trial_now(r);
	r->tally.hash = world_hash(r->w);
}

void trial_all(struct trial *r)
{
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		r->machines[i].boot_ms = trial_random(r, 200);
	load_start(r->load);
	r->chaos = true;
	(void)trial_for(r, r->swarm.ms);
	trial_judge(r);
}
