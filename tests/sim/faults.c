#include "tests/sim/faults.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/core/bridge.h"
#include "objects/directory_class.h"
#include "tests/sim/client.h"
#include "tests/sim/load.h"
#include "tests/sim/memdisk.h"
#include "tests/sim/watch.h"

#define DAY_MS    INT64_C(86400000)
#define HOUR_MS   INT64_C(3600000)
#define UNDO_MAX  64u
#define FULL_ROOM (64u << 10)
/* So long after a boot its peers have it on their disks. */
#define KNOWN_MS 1000u
/* So long after its last start a node that is refused is given up. */
#define LOST_MS       1500u
#define MEND_AGAIN_MS 200u

const char *const point_files[POINT_FILES] = {
	[POINT_BALLOT] = "ballot",
	[POINT_LOG] = "log",
	[POINT_STATE] = "state",
	[POINT_MEMBERS] = "members",
};
const char *const point_moments[POINT_MOMENTS] = {
	[POINT_BEFORE_SYNC] = "before_sync",
	[POINT_AFTER_SYNC] = "after_sync",
	[POINT_BEFORE_SEND] = "before_send",
	[POINT_AFTER_SEND] = "after_send",
};

static const char *const names[FAULTS] = {
	[FAULT_KILL] = "kill",
	[FAULT_POWER] = "power_cut",
	[FAULT_POWER_ALL] = "power_cut_of_all",
	[FAULT_CLOSE] = "restart",
	[FAULT_OP] = "crash_at_operation",
	[FAULT_POINT] = "crash_point",
	[FAULT_EIO] = "failed_write_or_sync",
	[FAULT_NO_SPACE] = "no_space_once",
	[FAULT_FULL] = "disk_full",
	[FAULT_SLOW] = "slow_syncs",
	[FAULT_HANG] = "disk_hangs",
	[FAULT_FLIP] = "bit_flips",
	[FAULT_FLIP_LIVE] = "bit_flips_live",
	[FAULT_LOST] = "lost_write",
	[FAULT_MISDIRECTED] = "misdirected_write",
	[FAULT_EMPTY] = "empty_disk",
	[FAULT_OLDER] = "older_disk",
	[FAULT_COPIED] = "copied_disk",
	[FAULT_READMIT] = "node_reset",
	[FAULT_PAUSE] = "pause",
	[FAULT_SUSPEND] = "suspend",
	[FAULT_JUMP] = "clock_jump",
	[FAULT_DRIFT] = "clock_drift",
	[FAULT_RESET] = "reset",
	[FAULT_CLOG] = "clog",
	[FAULT_ONE_WAY] = "one_way_cut",
	[FAULT_PARTITION] = "partition",
	[FAULT_ALONE] = "owner_cut_off",
	[FAULT_RING] = "ring",
	[FAULT_CLIENT] = "client_cut",
	[FAULT_TRANSFER] = "transfer",
	[FAULT_REVOKE] = "rights_taken",
	[FAULT_LATE] = "late_message",
};

const char *fault_name(enum fault f)
{
	return names[f];
}

/* What ends by itself, after a while. */
struct undo {
	uint64_t ms;
	void (*over)(struct faults *f, unsigned a, unsigned b);
	unsigned a;
	unsigned b;
};

/* A crash that waits for its moment. */
struct arm {
	bool on;
	enum point_file file;
	enum point_moment moment;
	uint64_t nth; /* Sync of that file. */
	bool synced;  /* It was: the next message is the one. */
	enum crash crash;
};

struct faults {
	struct trial *r;
	uint64_t next_ms;
	struct undo undo[UNDO_MAX];
	unsigned undo_n;
	struct arm arm[NET_NODES_MAX];
	/* A planned failure may still stop the node. */
	bool failing[NET_NODES_MAX];
	bool full[NET_NODES_MAX];
	/* Its log lacks the last batch and cannot know: it must not end before
	 * so many syncs. */
	uint64_t holds[NET_NODES_MAX];
	bool stash; /* There is an older disk, */
	unsigned stash_of;
	uint64_t stash_boots; /* from that boot. */
	/* Who runs the cluster, and what he is at. */
	struct client *person;
	enum { MEND_NOTHING, MEND_ASK, MEND_WAIT, MEND_FORMAT } mending;
	unsigned mending_node;
	uint64_t mending_ms; /* Not before. */
	/* Of the guest. */
	enum {
		RIGHTS_GIVEN,
		RIGHTS_TAKING,
		RIGHTS_TAKEN,
		RIGHTS_GIVING
	} rights;
	uint64_t rights_ms; /* They change next, */
	uint64_t rights_n;  /* for the n-th time. */
	uint64_t move_ms;
};

/* ----------------------------------------------------------------- taking back
 */

static void undo_in(struct faults *f,
		    void (*over)(struct faults *f, unsigned a, unsigned b),
		    unsigned a, unsigned b, uint64_t ms)
{
	CHECK(f->undo_n < UNDO_MAX);
	f->undo[f->undo_n++] =
		(struct undo){ trial_now(f->r) + ms, over, a, b };
}

static void full_over(struct faults *f, unsigned n, unsigned unused)
{
	(void)unused;
	f->full[n] = false;
	world_capacity(f->r->w, n, UINT64_C(1) << 40);
}

static void slow_over(struct faults *f, unsigned n, unsigned unused)
{
	(void)unused;
	world_sync_time(f->r->w, n, 50, 400, 0, 0);
}

static void drift_over(struct faults *f, unsigned n, unsigned unused)
{
	(void)unused;
	world_drift(f->r->w, n, 0);
}

static void cut_over(struct faults *f, unsigned from, unsigned to)
{
	net_mend(f->r->net, from, to);
}

static void undo_due(struct faults *f, bool all)
{
	unsigned i = 0;
	struct undo u;

	while (i < f->undo_n) {
		if (!all && f->undo[i].ms > trial_now(f->r)) {
			i++;
			continue;
		}
		u = f->undo[i];
		f->undo[i] = f->undo[--f->undo_n];
		u.over(f, u.a, u.b);
	}
}

/* ------------------------------------------------------------------- who */

static struct machine *machine(struct faults *f, unsigned n)
{
	return &f->r->machines[n];
}

static unsigned some_node(struct faults *f)
{
	return (unsigned)trial_random(f->r, f->r->swarm.nodes);
}

/* One that runs and may end; -1: this time there is none. */
static int some_victim(struct faults *f)
{
	unsigned n = some_node(f);
	struct machine *m = machine(f, n);
	int owner;

	/* Owners are where it hurts. */
	if (trial_chance(f->r, 40)) {
		owner = trial_owner(
			f->r, (uint32_t)trial_random(f->r, f->r->swarm.shards));
		if (owner >= 0)
			m = machine(f, (unsigned)owner);
	}
	if (m->state != MACHINE_UP || m->log_syncs < f->holds[m->n])
		return -1;
	return (int)m->n;
}

static unsigned sick_or_foreign(const struct trial *r)
{
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		n += r->machines[i].sick || r->machines[i].foreign ||
		     r->machines[i].fresh;
	return n;
}

/* May this node's disk lie, or be lost? One node of a trial at most, or two of
 * five. */
static bool may_be_sick(struct faults *f, unsigned n)
{
	const struct trial *r = f->r;

	if (machine(f, n)->foreign || machine(f, n)->fresh)
		return false;
	return machine(f, n)->sick ||
	       sick_or_foreign(r) < (r->swarm.nodes - 1) / 2;
}

static uint64_t down_ms(struct trial *r)
{
	uint64_t x = trial_random(r, 100);

	if (x < 50)
		return 1 + trial_random(r, 200);
	if (x < 85)
		return 100 + trial_random(r, 2000);
	return 1000 + trial_random(r, 6000);
}

static uint64_t cut_ms(struct trial *r)
{
	return trial_chance(r, 50) ? 20 + trial_random(r, 800)
				   : 300 + trial_random(r, 4000);
}

/* ------------------------------------------------------------- crashes */

static bool crash(struct faults *f, enum crash kind)
{
	int n = some_victim(f);

	if (n < 0)
		return false;
	trial_crash(f->r, (unsigned)n, kind, down_ms(f->r));
	return true;
}

static bool power_all(struct faults *f)
{
	struct trial *r = f->r;
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		if (machine(f, i)->log_syncs < f->holds[i])
			return false;
	for (i = 0; i < r->swarm.nodes; i++)
		if (machine(f, i)->state != MACHINE_DOWN)
			trial_crash(r, i, CRASH_POWER,
				    machine(f, i)->foreign ? CHECK_NEVER
							   : down_ms(r));
	return true;
}

static bool restart(struct faults *f)
{
	int n = some_victim(f);

	if (n < 0)
		return false;
	trial_close(f->r, (unsigned)n, down_ms(f->r));
	return true;
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

static const char *some_prefix(struct trial *r)
{
	static const char *const prefixes[] = { "log/", "state/", "ballot",
						"members", NULL };

	return prefixes[trial_random(r, ARRAY_LEN(prefixes))];
}

static void plan(struct faults *f, unsigned n, struct world_fault *w)
{
	struct trial *r = f->r;

	w->nth = 1 + trial_random(r, w->prefix != NULL ? 12 : 60);
	trial_trace(r, "n%u: fault %d at op %d number %" PRIu64 " of %s", n + 1,
		    w->kind, w->op, w->nth,
		    w->prefix != NULL ? w->prefix : "all");
	world_faults_clear(r->w, n);
	world_fault(r->w, n, w);
}

static bool at_operation(struct faults *f)
{
	int n = some_victim(f);
	struct world_fault w = { .op = some_op(f->r),
				 .prefix = some_prefix(f->r) };

	if (n < 0)
		return false;
	w.kind =
		trial_chance(f->r, 50) ? WORLD_CRASH_BEFORE : WORLD_CRASH_AFTER;
	machine(f, (unsigned)n)->ending =
		trial_chance(f->r, 50) ? CRASH_POWER : CRASH_KILL;
	plan(f, (unsigned)n, &w);
	return true;
}

static bool failing(struct faults *f, enum world_fault_kind kind)
{
	int n = some_victim(f);
	struct world_fault w = { .kind = kind, .prefix = some_prefix(f->r) };

	if (n < 0)
		return false;
	w.op = trial_chance(f->r, 60) ? WORLD_SYNC : WORLD_WRITE;
	if (w.op == WORLD_WRITE && kind == WORLD_EIO && trial_chance(f->r, 30))
		w.kind = WORLD_SHORT;
	machine(f, (unsigned)n)->ending = CRASH_SYNC;
	f->failing[n] = true;
	plan(f, (unsigned)n, &w);
	return true;
}

static bool arm_point(struct faults *f)
{
	struct trial *r = f->r;
	int n = some_victim(f);
	struct arm *a;

	if (n < 0)
		return false;
	a = &f->arm[n];
	*a = (struct arm){
		.on = true,
		.file = (enum point_file)trial_random(r, POINT_FILES),
		.moment = (enum point_moment)trial_random(r, POINT_MOMENTS),
		.nth = 1 + trial_random(r, 3),
		.crash = trial_chance(r, 70) ? CRASH_POWER : CRASH_KILL,
	};
	/* Those that matter most. */
	if (trial_chance(r, 40))
		a->file = trial_chance(r, 60) ? POINT_BALLOT : POINT_LOG;
	trial_trace(r, "n%d: ends %s of %s number %" PRIu64, n + 1,
		    point_moments[a->moment], point_files[a->file], a->nth);
	return true;
}

/* ------------------------------------------------------------------ disks */

static bool full(struct faults *f)
{
	int n = some_victim(f);

	if (n < 0 || f->full[n] || f->r->swarm.core.reserve_bytes == 0)
		return false;
	f->full[n] = true;
	world_capacity(
		f->r->w, (unsigned)n,
		world_used(f->r->w, (unsigned)n) + FULL_ROOM +
			trial_random(f->r, 2 * f->r->swarm.core.reserve_bytes));
	undo_in(f, full_over, (unsigned)n, (unsigned)n,
		200 + trial_random(f->r, 4000));
	return true;
}

static bool slow(struct faults *f)
{
	unsigned n = some_node(f);

	world_sync_time(f->r->w, n, 100, 20000, 300, 400);
	undo_in(f, slow_over, n, n, 500 + trial_random(f->r, 5000));
	return true;
}

static bool hang(struct faults *f)
{
	unsigned n = some_node(f);

	world_sync_time(f->r->w, n, 50, 400, 10000,
			600 + (uint32_t)trial_random(f->r, 4400));
	undo_in(f, slow_over, n, n, 100 + trial_random(f->r, 1000));
	return true;
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

static void flip_one(struct faults *f, unsigned n)
{
	static const char *const prefixes[] = { "state/",  "state/", "log/",
						"log/",    "ballot", "members",
						"identity" };
	struct trial *r = f->r;
	struct victim v = {
		.r = r,
		.prefix = prefixes[trial_random(r, ARRAY_LEN(prefixes))],
	};
	uint64_t at;
	unsigned bit;

	world_files(r->w, n, look_at_file, &v);
	if (v.n == 0)
		return;
	/* Where something is, mostly. */
	at = trial_random(r, v.bytes > 65536 && trial_chance(r, 70) ? 65536
								    : v.bytes);
	bit = (unsigned)trial_random(r, 8);
	CHECK(world_flip(r->w, n, v.name, at, bit) == RC_OK);
	trial_trace(r, "n%u: flipped bit %u of byte %" PRIu64 " of %s", n + 1,
		    bit, at, v.name);
}

static bool flip(struct faults *f, bool live)
{
	struct trial *r = f->r;
	unsigned n = some_node(f);
	struct machine *m = machine(f, n);
	uint64_t bits = 1 + trial_random(r, 3);

	if (!may_be_sick(f, n) || m->state != MACHINE_UP ||
	    m->log_syncs < f->holds[n])
		return false;
	m->sick = true;
	if (!live)
		trial_crash(r, n,
			    trial_chance(r, 50) ? CRASH_POWER : CRASH_KILL,
			    down_ms(r));
	while (bits-- > 0)
		flip_one(f, n);
	return true;
}

/* A write of the log that never arrives, or elsewhere. What comes after it
 * shows it; so that must come. */
static bool lose(struct faults *f, enum world_fault_kind kind)
{
	struct trial *r = f->r;
	unsigned n = some_node(f);
	struct machine *m = machine(f, n);
	struct world_fault w = {
		.kind = kind, .op = WORLD_WRITE, .nth = 1, .prefix = "log/"
	};

	if (!may_be_sick(f, n) || m->state != MACHINE_UP ||
	    m->log_syncs < f->holds[n] || trial_lone(r))
		return false;
	m->sick = true;
	m->ending = CRASH_KILL;
	f->arm[n].on = false;
	f->holds[n] = m->log_syncs + 8;
	world_faults_clear(r->w, n);
	world_fault(r->w, n, &w);
	return true;
}

/* ---------------------------------------------------- disks that are others */

/* A disk that comes in place of a lost one knows nobody's boots. */
static bool nobody_is_lost(const struct trial *r)
{
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		if (r->machines[i].foreign || r->machines[i].fresh)
			return false;
	return true;
}

static bool nobody_is_rolled_back(const struct trial *r)
{
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		if (r->machines[i].rolled_back)
			return false;
	return true;
}

static bool may_be_lost(struct faults *f, unsigned n)
{
	return !machine(f, n)->sick && may_be_sick(f, n) &&
	       nobody_is_rolled_back(f->r);
}

/* Its peers know this disk in its newest boot, all of them. */
static bool is_known(struct trial *r, unsigned n)
{
	uint64_t boot;
	unsigned i;

	if (r->machines[n].state != MACHINE_UP ||
	    trial_now(r) < r->machines[n].up_ms + KNOWN_MS)
		return false;
	boot = core_identity(r->machines[n].core)->boot;
	for (i = 0; i < r->swarm.nodes; i++) {
		const struct machine *m = &r->machines[i];

		if (m->state != MACHINE_UP || m->foreign)
			return false;
		if (i != n &&
		    (transport_epoch(core_transport(m->core), CHANNEL_RAFT,
				     n + 1) == 0 ||
		     members_find(core_members(m->core), n + 1)->boot != boot))
			return false;
	}
	return true;
}

static void draw_incarnation(struct faults *f, struct machine *m)
{
	unsigned i;

	for (i = 0; i < ID_BYTES; i++)
		m->incarnation[i] = (uint8_t)(1 + trial_random(f->r, 255));
}

/* Its first start is the one that its peers must refuse: nothing disturbs it.
 */
static void become_foreign(struct faults *f, struct machine *m)
{
	m->foreign = true;
	m->foreign_boot = m->boots + 1;
	m->ending = CRASH_KILL;
	world_faults_clear(f->r->w, m->n);
	f->arm[m->n].on = false;
}

static bool empty(struct faults *f)
{
	struct trial *r = f->r;
	unsigned n = some_node(f);
	struct machine *m = machine(f, n);

	if (trial_lone(r) || !may_be_lost(f, n) || m->state != MACHINE_UP)
		return false;
	trial_crash(r, n, CRASH_POWER, CHECK_NEVER);
	world_wipe(r->w, n);
	draw_incarnation(f, m);
	become_foreign(f, m);
	if (trial_format(r, n, false))
		m->boot_ms = trial_now(r) + down_ms(r);
	return true;
}

/* First the copy is made, and the node starts once more; later it comes back.
 */
static bool older(struct faults *f)
{
	struct trial *r = f->r;
	struct machine *m = machine(f, some_node(f));

	if (trial_lone(r) || f->stash || m->state != MACHINE_UP || m->foreign ||
	    m->fresh || m->sick)
		return false;
	world_clone(r->w, m->n, TRIAL_STASH);
	f->stash = true;
	f->stash_of = m->n;
	f->stash_boots = m->boots;
	trial_crash(r, m->n, CRASH_KILL, 20);
	return true;
}

static void older_due(struct faults *f)
{
	struct trial *r = f->r;
	struct machine *m = machine(f, f->stash_of);

	if (m->foreign || m->fresh || m->sick) {
		f->stash = false;
		return;
	}
	/* It would boot with a number that its peers have seen. */
	if (!nobody_is_lost(r) || !may_be_lost(f, m->n) ||
	    m->boots < f->stash_boots + 1 || !is_known(r, m->n))
		return;
	trial_trace(r, "fault: %s", names[FAULT_OLDER]);
	r->tally.faults[FAULT_OLDER]++;
	trial_crash(r, m->n, CRASH_POWER, down_ms(r));
	world_clone(r->w, TRIAL_STASH, m->n);
	become_foreign(f, m);
	m->rolled_back = true;
	f->stash = false;
}

static bool copied(struct faults *f)
{
	struct trial *r = f->r;
	unsigned n = some_node(f);
	unsigned from = some_node(f);
	struct machine *m = machine(f, n);

	if (trial_lone(r) || !may_be_lost(f, n) || m->state != MACHINE_UP ||
	    machine(f, from)->foreign)
		return false;
	trial_crash(r, n, CRASH_POWER, down_ms(r));
	/* Of itself: restored from a backup, on another file system. */
	if (from == n) {
		world_clone(r->w, n, TRIAL_SCRATCH);
		world_copy(r->w, TRIAL_SCRATCH, n);
	} else {
		world_clone(r->w, from, TRIAL_SCRATCH);
		world_copy(r->w, TRIAL_SCRATCH, n);
	}
	become_foreign(f, m);
	return true;
}

/* ---------------------------------------------------------- a lost disk anew
 */

static void readmitted(void *arg, const struct session_answer *a)
{
	struct faults *f = arg;

	trial_trace(f->r, "n%u: readmitted: %s", f->mending_node + 1,
		    rc_name(a->rc));
	f->mending = a->rc == RC_OK ? MEND_FORMAT : MEND_ASK;
	if (a->rc == RC_OK)
		memcpy(machine(f, f->mending_node)->agreed,
		       machine(f, f->mending_node)->incarnation, ID_BYTES);
	f->mending_ms = trial_now(f->r) + MEND_AGAIN_MS;
}

/* The cluster agrees on the new disk before there is one. */
static void readmit(struct faults *f)
{
	struct machine *m = machine(f, f->mending_node);
	struct session_request q = {
		.address = { (const uint8_t *)DIRECTORY_ADDRESS,
			     sizeof(DIRECTORY_ADDRESS) - 1 },
		.method = { (const uint8_t *)"readmit", 7 },
		.deadline_ms = 2000,
	};
	struct detail why = { { 0 }, { 0 } };
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, 256);
	pack_map(&w, 2);
	pack_cstr(&w, "node");
	pack_u64(&w, m->n + 1);
	pack_cstr(&w, "incarnation");
	pack_bin(&w, m->incarnation, ID_BYTES);
	q.args = (struct pack_bytes){ w.p, w.n };
	f->mending = MEND_WAIT;
	rc = client_call(f->person, &q, readmitted, f, NULL, &why);
	CHECK(rc == RC_OK);
	pack_w_release(&w);
}

/* It has been refused for a while: a person takes it in hand. */
static bool is_lost(const struct trial *r, const struct machine *m)
{
	bool refused = m->foreign || (m->sick && m->state == MACHINE_DOWN &&
				      m->boot_ms == CHECK_NEVER);

	return refused && trial_now(r) > m->down_ms + LOST_MS;
}

static void mend_begin(struct faults *f)
{
	struct trial *r = f->r;
	struct machine *m;
	unsigned i;

	if (trial_lone(r))
		return;
	for (i = 0; i < r->swarm.nodes; i++) {
		m = machine(f, i);
		if (!is_lost(r, m) ||
		    (!m->foreign && !nobody_is_rolled_back(r)))
			continue;
		if (m->state != MACHINE_DOWN)
			trial_crash(r, i, CRASH_POWER, CHECK_NEVER);
		m->boot_ms = CHECK_NEVER;
		m->foreign = true;
		m->foreign_boot = m->boots;
		world_faults_clear(r->w, i);
		f->arm[i].on = false;
		world_wipe(r->w, i);
		draw_incarnation(f, m);
		f->mending = MEND_ASK;
		f->mending_node = i;
		return;
	}
}

static void mend_format(struct faults *f)
{
	struct trial *r = f->r;
	struct machine *m = machine(f, f->mending_node);

	f->mending = MEND_NOTHING;
	if (!trial_format(r, m->n, true))
		return;
	r->tally.faults[FAULT_READMIT]++;
	trial_trace(r, "fault: %s", names[FAULT_READMIT]);
	m->foreign = false;
	m->rolled_back = false;
	m->sick = false;
	m->fresh = true;
	m->boot_ms = trial_now(r) + trial_random(r, 500);
}

/* What was reset is whole when every shard of it is. */
static void fresh_look(struct faults *f, struct machine *m)
{
	struct shard_view v;
	uint32_t s;

	if (!m->fresh || m->state != MACHINE_UP)
		return;
	for (s = 0; s < f->r->swarm.shards; s++) {
		shard_view(bridge_shard(core_bridge(m->core, s)), &v);
		if (v.health != SHARD_WHOLE)
			return;
	}
	trial_trace(f->r, "n%u is whole again", m->n + 1);
	f->r->tally.rebuilds++;
	m->fresh = false;
}

static void mend_tick(struct faults *f)
{
	unsigned i;

	for (i = 0; i < f->r->swarm.nodes; i++)
		fresh_look(f, machine(f, i));
	if (trial_now(f->r) < f->mending_ms)
		return;
	f->mending_ms = trial_now(f->r) + MEND_AGAIN_MS;
	if (f->mending == MEND_NOTHING)
		mend_begin(f);
	else if (f->mending == MEND_ASK)
		readmit(f);
	else if (f->mending == MEND_FORMAT)
		mend_format(f);
}

/* ----------------------------------------------------------------- rights */

/* {version, changed, confirmed, missing}; false: it is not. */
static bool read_taken(struct pack_bytes result, uint64_t *version, bool *all)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes key;
	uint32_t missing = 1;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return false;
	while (pairs-- > 0) {
		enum rc rc = pack_get_bytes(&r, &key);

		if (rc == RC_OK && pack_bytes_eq(key, "version", 7))
			rc = pack_get_u64(&r, version);
		else if (rc == RC_OK && pack_bytes_eq(key, "missing", 7))
			rc = pack_get_array(&r, &missing);
		else if (rc == RC_OK)
			rc = pack_skip(&r, NULL);
		if (rc != RC_OK)
			return false;
		/* Last, and of names. */
		if (pack_bytes_eq(key, "missing", 7))
			break;
	}
	*all = missing == 0;
	return *version != 0;
}

static void rights_told(void *arg, const struct session_answer *a)
{
	struct faults *f = arg;
	struct trial *r = f->r;
	uint64_t version = 0;
	bool all = false;

	f->rights_ms = trial_now(r) + 1 + trial_random(r, 1500);
	/* It may or may not have happened: the same again. */
	if (a->rc != RC_OK) {
		f->rights = f->rights == RIGHTS_TAKING ? RIGHTS_GIVEN
						       : RIGHTS_TAKEN;
		return;
	}
	f->rights_n++;
	if (f->rights == RIGHTS_GIVING) {
		f->rights = RIGHTS_GIVEN;
		return;
	}
	f->rights = RIGHTS_TAKEN;
	if (!read_taken(a->result, &version, &all)) {
		trial_breach(r, "answer", "revoke: no version");
		return;
	}
	r->tally.faults[FAULT_REVOKE]++;
	trial_trace(r, "fault: %s, version %" PRIu64 "%s", names[FAULT_REVOKE],
		    version, all ? ", all have confirmed" : "");
	watch_taken(r->watch, version, all);
}

static void rights_ask(struct faults *f, bool give)
{
	static const char *const words[] = { "read", "write", "admin" };
	struct pack_bytes who = load_principal(f->r->swarm.principals);
	struct session_request q = {
		.address = { (const uint8_t *)DIRECTORY_ADDRESS,
			     sizeof(DIRECTORY_ADDRESS) - 1 },
		.method = { (const uint8_t *)(give ? "grant" : "revoke"),
			    give ? 5 : 6 },
		.deadline_ms = 3000,
	};
	struct detail why = { { 0 }, { 0 } };
	struct pack_w w;
	char key[32];
	size_t i;

	/* One that was given up must not give them after they were taken. */
	(void)snprintf(key, sizeof(key), "rights-%" PRIu64, f->rights_n);
	q.idem = (struct pack_bytes){ (const uint8_t *)key, strlen(key) };
	pack_w_init(&w, 1024);
	pack_map(&w, give ? 5 : 1);
	pack_cstr(&w, "principal");
	pack_str(&w, (const char *)who.p, who.n);
	if (give) {
		pack_cstr(&w, "tenant");
		pack_cstr(&w, "default");
		pack_cstr(&w, "env");
		pack_cstr(&w, "dev");
		pack_cstr(&w, "class");
		pack_cstr(&w, "*");
		pack_cstr(&w, "rights");
		pack_array(&w, ARRAY_LEN(words));
		for (i = 0; i < ARRAY_LEN(words); i++)
			pack_cstr(&w, words[i]);
	}
	q.args = (struct pack_bytes){ w.p, w.n };
	CHECK(client_call(f->person, &q, rights_told, f, NULL, &why) == RC_OK);
	pack_w_release(&w);
}

static void rights_tick(struct faults *f)
{
	bool give = f->rights == RIGHTS_TAKEN;

	if (!f->r->swarm.guest || trial_now(f->r) < f->rights_ms ||
	    f->rights == RIGHTS_TAKING || f->rights == RIGHTS_GIVING)
		return;
	f->rights = give ? RIGHTS_GIVING : RIGHTS_TAKING;
	if (give)
		watch_given(f->r->watch);
	rights_ask(f, give);
}

/* ----------------------------------------------------------------- clocks */

static bool pause_node(struct faults *f)
{
	struct trial *r = f->r;
	int n = some_victim(f);
	uint64_t ms = trial_chance(r, 60) ? 20 + trial_random(r, 800)
					  : 500 + trial_random(r, 5000);

	if (n < 0)
		return false;
	world_pause(r->w, (unsigned)n, ms);
	trial_trace(r, "n%d stands still for %" PRIu64 " ms", n + 1, ms);
	return true;
}

static bool suspend(struct faults *f)
{
	int n = some_victim(f);

	if (n < 0)
		return false;
	world_suspend(f->r->w, (unsigned)n, 1 + trial_random(f->r, 5000));
	return true;
}

static bool jump(struct faults *f)
{
	static const int64_t by[] = { -DAY_MS, -HOUR_MS, -5000,
				      5000,    HOUR_MS,  DAY_MS };

	world_wall_jump(f->r->w, some_node(f),
			by[trial_random(f->r, ARRAY_LEN(by))]);
	return true;
}

static bool drift(struct faults *f)
{
	static const int32_t ppm[] = { -50000, -1000, -100, 100, 1000, 50000 };
	unsigned n = some_node(f);

	world_drift(f->r->w, n, ppm[trial_random(f->r, ARRAY_LEN(ppm))]);
	undo_in(f, drift_over, n, n, 1000 + trial_random(f->r, 8000));
	return true;
}

/* -------------------------------------------------------------------- net */

static void cut(struct faults *f, unsigned from, unsigned to, uint64_t ms)
{
	net_cut(f->r->net, from, to);
	undo_in(f, cut_over, from, to, ms);
}

static bool room_for(const struct faults *f, unsigned n)
{
	return f->undo_n + n <= UNDO_MAX;
}

static bool two_nodes(struct faults *f, unsigned *a, unsigned *b)
{
	uint32_t n = f->r->swarm.nodes;

	if (n < 2)
		return false;
	*a = some_node(f);
	*b = (*a + 1 + (unsigned)trial_random(f->r, n - 1)) % n;
	return true;
}

static bool reset(struct faults *f)
{
	struct trial *r = f->r;
	unsigned a = some_node(f);
	unsigned b = NET_CLIENT + (unsigned)trial_random(r, r->swarm.clients);

	if (trial_lone(r) || trial_chance(r, 20)) {
		net_reset(r->net, a, b);
		return true;
	}
	if (!two_nodes(f, &a, &b))
		return false;
	net_reset(r->net, a, b);
	return true;
}

static bool clog_way(struct faults *f)
{
	unsigned a;
	unsigned b;

	if (!two_nodes(f, &a, &b))
		return false;
	net_clog(f->r->net, a, b, 20 + (uint32_t)trial_random(f->r, 1500));
	return true;
}

static bool one_way(struct faults *f)
{
	unsigned a;
	unsigned b;

	if (!two_nodes(f, &a, &b) || !room_for(f, 1))
		return false;
	cut(f, a, b, cut_ms(f->r));
	return true;
}

/* Between two sets, in both directions. */
static bool split(struct faults *f, uint32_t set, uint64_t ms)
{
	struct trial *r = f->r;
	unsigned a;
	unsigned b;

	if (!room_for(f, r->swarm.nodes * r->swarm.nodes))
		return false;
	for (a = 0; a < r->swarm.nodes; a++)
		for (b = 0; b < r->swarm.nodes; b++)
			if ((set & 1u << a) != 0 && (set & 1u << b) == 0) {
				cut(f, a, b, ms);
				cut(f, b, a, ms);
			}
	trial_trace(r,
		    "partition: nodes %x against the others for %" PRIu64 " ms",
		    set, ms);
	return true;
}

static bool partition(struct faults *f)
{
	struct trial *r = f->r;
	uint32_t set;

	if (trial_lone(r))
		return false;
	set = 1 + (uint32_t)trial_random(r, (1u << r->swarm.nodes) - 2);
	return split(f, set, cut_ms(r));
}

/* With a clock at half its pace it is the last to notice, and those who write
 * find the next owner: who reads here must not be told. */
static bool left_behind(struct faults *f, unsigned owner)
{
	struct trial *r = f->r;
	uint64_t ms = 3 * r->swarm.core.election_ms;
	uint32_t c;

	if (!room_for(f, r->swarm.nodes * r->swarm.nodes +
				 2 * r->swarm.clients + 1))
		return false;
	for (c = r->swarm.readers; c < r->swarm.clients; c++) {
		cut(f, owner, NET_CLIENT + c, ms);
		cut(f, NET_CLIENT + c, owner, ms);
	}
	world_drift(r->w, owner, -450000);
	undo_in(f, drift_over, owner, owner, ms);
	return split(f, 1u << owner, ms);
}

static bool alone(struct faults *f)
{
	struct trial *r = f->r;
	int owner = trial_owner(r, (uint32_t)trial_random(r, r->swarm.shards));

	if (trial_lone(r) || owner < 0)
		return false;
	if (r->swarm.readers > 0)
		return left_behind(f, (unsigned)owner);
	return split(f, 1u << owner, 200 + cut_ms(r));
}

static bool ring(struct faults *f)
{
	struct trial *r = f->r;
	uint32_t n = r->swarm.nodes;
	uint64_t ms = cut_ms(r);
	unsigned a;
	unsigned b;

	if (n < 3 || !room_for(f, n * n))
		return false;
	/* Of three: a chain. */
	for (a = 0; a < n; a++)
		for (b = a + 1; b < n; b++) {
			if (b == a + 1 || (n > 3 && a == 0 && b == n - 1))
				continue;
			cut(f, a, b, ms);
			cut(f, b, a, ms);
		}
	return true;
}

static bool client(struct faults *f)
{
	struct trial *r = f->r;
	unsigned n = some_node(f);
	unsigned c = NET_CLIENT + (unsigned)trial_random(r, r->swarm.clients);
	uint64_t ms = cut_ms(r);

	if (!room_for(f, 2))
		return false;
	if (trial_chance(r, 70))
		cut(f, n, c, ms);
	if (trial_chance(r, 70))
		cut(f, c, n, ms);
	return true;
}

static bool transfer(struct faults *f)
{
	struct trial *r = f->r;
	uint32_t s = (uint32_t)trial_random(r, r->swarm.shards);
	int owner = trial_owner(r, s);
	unsigned to = some_node(f);

	if (trial_lone(r) || owner < 0 || (unsigned)owner == to ||
	    world_paused(r->w, (unsigned)owner))
		return false;
	return core_transfer(machine(f, (unsigned)owner)->core, s, to + 1) ==
	       RC_OK;
}

/* ------------------------------------------------------------------- draws */

/* False: not this time. */
static bool begin(struct faults *f, enum fault kind)
{
	switch (kind) {
	case FAULT_KILL:
		return crash(f, CRASH_KILL);
	case FAULT_POWER:
		return crash(f, CRASH_POWER);
	case FAULT_POWER_ALL:
		return power_all(f);
	case FAULT_CLOSE:
		return restart(f);
	case FAULT_OP:
		return at_operation(f);
	case FAULT_POINT:
		return arm_point(f);
	case FAULT_EIO:
		return failing(f, WORLD_EIO);
	case FAULT_NO_SPACE:
		return failing(f, WORLD_NO_SPACE);
	case FAULT_FULL:
		return full(f);
	case FAULT_SLOW:
		return slow(f);
	case FAULT_HANG:
		return hang(f);
	case FAULT_FLIP:
		return flip(f, false);
	case FAULT_FLIP_LIVE:
		return flip(f, true);
	case FAULT_LOST:
		return lose(f, WORLD_LOST);
	case FAULT_MISDIRECTED:
		return lose(f, WORLD_MISDIRECTED);
	case FAULT_EMPTY:
		return empty(f);
	case FAULT_OLDER:
		return older(f);
	case FAULT_COPIED:
		return copied(f);
	case FAULT_PAUSE:
		return pause_node(f);
	case FAULT_SUSPEND:
		return suspend(f);
	case FAULT_JUMP:
		return jump(f);
	case FAULT_DRIFT:
		return drift(f);
	case FAULT_RESET:
		return reset(f);
	case FAULT_CLOG:
		return clog_way(f);
	case FAULT_ONE_WAY:
		return one_way(f);
	case FAULT_PARTITION:
		return partition(f);
	case FAULT_ALONE:
		return alone(f);
	case FAULT_RING:
		return ring(f);
	case FAULT_CLIENT:
		return client(f);
	case FAULT_TRANSFER:
		return transfer(f);
	case FAULT_READMIT:
	case FAULT_REVOKE:
	case FAULT_LATE:
		return false;
	case FAULTS:
		break;
	}
	UNREACHABLE();
}

/* Beside all else that goes wrong. */
static void moves_tick(struct faults *f)
{
	struct trial *r = f->r;

	if (r->swarm.moves_ms == 0 || trial_now(r) < f->move_ms)
		return;
	f->move_ms = trial_now(r) + 1 + trial_random(r, 2 * r->swarm.moves_ms);
	r->tally.faults[FAULT_TRANSFER] += transfer(f);
}

void faults_tick(struct faults *f)
{
	struct trial *r = f->r;
	enum fault kind;
	unsigned tries;

	if (f->undo_n > 0)
		undo_due(f, false);
	if (f->stash)
		older_due(f);
	mend_tick(f);
	rights_tick(f);
	moves_tick(f);
	if (trial_now(r) < f->next_ms || r->swarm.faults == 0)
		return;
	f->next_ms = trial_now(r) + 1 + trial_random(r, 2 * r->swarm.fault_ms);
	for (tries = 0; tries < 8; tries++) {
		kind = (enum fault)trial_random(r, FAULTS);
		if ((r->swarm.faults & UINT64_C(1) << kind) == 0 ||
		    !begin(f, kind))
			continue;
		trial_trace(r, "fault: %s", names[kind]);
		if (kind != FAULT_OP && kind != FAULT_POINT &&
		    kind != FAULT_OLDER)
			r->tally.faults[kind]++;
		return;
	}
}

void faults_end(struct faults *f)
{
	struct trial *r = f->r;
	unsigned i;

	undo_due(f, true);
	net_mend_all(r->net);
	for (i = 0; i < r->swarm.nodes; i++) {
		world_faults_clear(r->w, i);
		world_drift(r->w, i, 0);
		world_capacity(r->w, i, UINT64_C(1) << 40);
		world_sync_time(r->w, i, 50, 400, 0, 0);
		f->arm[i].on = false;
	}
}

bool faults_excuse(struct faults *f, unsigned node)
{
	return f->failing[node] || f->full[node] || machine(f, node)->sick ||
	       machine(f, node)->foreign;
}

void faults_expect(struct faults *f, unsigned node)
{
	f->failing[node] = true;
}

void faults_crashed(struct faults *f, unsigned node)
{
	if (f->failing[node])
		world_faults_clear(f->r->w, node);
	else if (world_crashed(f->r->w, node) && !f->arm[node].synced)
		f->r->tally.faults[FAULT_OP]++;
	f->failing[node] = false;
	f->arm[node] = (struct arm){ .on = false };
}

/* ------------------------------------------------------- persist, then send */

static bool is_file(enum point_file file, const char *name)
{
	const char *prefix = point_files[file];

	return strncmp(name, prefix, strlen(prefix)) == 0;
}

static void fire(struct faults *f, unsigned node, struct arm *a)
{
	struct trial *r = f->r;

	r->tally.points[a->file][a->moment]++;
	r->tally.faults[FAULT_POINT]++;
	machine(f, node)->ending = a->crash;
	a->on = false;
	a->synced = true;
	trial_trace(r, "n%u: ends %s of %s", node + 1, point_moments[a->moment],
		    point_files[a->file]);
}

void faults_op(struct faults *f, unsigned node, enum world_op op,
	       const char *name)
{
	struct arm *a = &f->arm[node];
	struct world_fault w = { .op = WORLD_SYNC, .nth = 1 };

	if (!a->on || op != WORLD_SYNC || a->synced ||
	    !is_file(a->file, name) || --a->nth > 0)
		return;
	if (a->moment == POINT_BEFORE_SEND || a->moment == POINT_AFTER_SEND) {
		a->synced = true;
		return;
	}
	w.kind = a->moment == POINT_BEFORE_SYNC ? WORLD_CRASH_BEFORE
						: WORLD_CRASH_AFTER;
	fire(f, node, a);
	world_fault(f->r->w, node, &w);
}

void faults_leaving(struct faults *f, unsigned node)
{
	struct arm *a = &f->arm[node];

	if (!a->on || !a->synced || a->moment != POINT_BEFORE_SEND)
		return;
	fire(f, node, a);
	world_end(f->r->w, node);
}

void faults_left(struct faults *f, unsigned node)
{
	struct arm *a = &f->arm[node];

	if (!a->on || !a->synced || a->moment != POINT_AFTER_SEND)
		return;
	fire(f, node, a);
	world_end(f->r->w, node);
}

struct faults *faults_new(struct trial *r)
{
	struct faults *f = sim_alloc(sizeof(*f));

	f->r = r;
	f->next_ms = 300 + trial_random(r, 1000);
	f->person = client_new(r->w, r->net, TRIAL_OPERATOR, r->seed,
			       (1u << r->swarm.nodes) - 1);
	return f;
}

void faults_free(struct faults *f)
{
	client_free(f->person);
	free(f);
}
