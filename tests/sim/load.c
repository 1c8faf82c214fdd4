#include "tests/sim/load.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/core/bridge.h"
#include "node/core/call.h"
#include "raft-glue/placement.h"
#include "tests/sim/client.h"
#include "tests/sim/memdisk.h"
#include "tests/sim/watch.h"
#include "tests/sim/wire.h"

#define KEYS_MAX     64u
#define TTL_KEYS     3u
#define LARGE_KEYS   44u
#define USERS_MAX    (NET_CLIENTS_MAX - 2)
#define TARGETS_MAX  32u
#define KEPT_MAX     256u
#define SETTLE_TRIES 20u
#define AUDIT_TRIES  200u
/* A request may wait on its way: in front of a cut, at a node that stands
 * still. So long after its client gave it up it may still begin. */
#define ASTRAY_MS       9000u
#define ASTRAY_LONE_MS  300u
#define ASTRAY_TWICE_MS 60000u
#define MS_NS           UINT64_C(1000000)
/* Of a relay's keys. */
#define RELAY_WINDOW_MS 60000u
/* A call ends at the latest so long after its deadline. */
#define LATE_MS 1000u
/* With one of these a call may take as long as it likes. */
#define FAULTS_THAT_HANG                                           \
	(UINT64_C(1) << FAULT_PAUSE | UINT64_C(1) << FAULT_HANG |  \
	 UINT64_C(1) << FAULT_SLOW | UINT64_C(1) << FAULT_CLIENT | \
	 UINT64_C(1) << FAULT_SUSPEND)
/* What a lagged answer may be ahead of the log, and the turn it takes. */
#define LAG_SLACK_MS 5u
/* One write in so many is looked for on the disk itself. */
#define TRUTH_EVERY 48u
/* Events between two looks at what went astray. */
#define ASTRAY_EVERY 32u

enum target_kind { TARGET_KV, TARGET_LIMITER, TARGET_RELAY, TARGET_SINK };

struct known {
	struct kv_value value;
	uint64_t rev;
};

/* An object that is called. */
struct target {
	enum target_kind kind;
	char address[64];
	uint32_t shard;
	/* kv: keys, then keys with a ttl, then one that is never written. */
	struct kv_history *kv;
	uint32_t keys;
	bool large;
	struct known known[KEYS_MAX];
	/* rate_limiter */
	struct limiter_history *limiter;
	enum limiter_class class;
	uint64_t limit;
	uint64_t period_ms;
	uint64_t burst;
	uint32_t limiter_keys;
	bool configured;
	bool forgets;
};

/* What is sent, and perhaps sent again. */
struct request {
	struct target *t;
	const char *method;
	struct pack_w args;
	uint32_t principal;
	uint64_t idem;      /* 0: no key. */
	uint64_t window_ms; /* 0: the class's. */
	uint32_t sent;
	uint32_t refs;
	struct kv_call *kv; /* The first call's: what it asks. */
	struct relay_call *relay;
};

/* A run of a relay, and what it must have left behind. */
struct relay_call {
	uint64_t number; /* Names the rows that it writes. */
	struct target *relay;
	struct target *sink;
	bool rows;           /* It adds to its own row before it calls. */
	bool nested;         /* It adds to a row of the sink. */
	uint32_t asked;      /* How often it was sent, */
	uint32_t done;       /* answered with RC_OK, */
	uint32_t refused;    /* refused, */
	bool unknown;        /* or neither. */
	bool late;           /* A record of it may have expired. */
	uint64_t stamp;      /* Of the relay's shard, when it began; */
	uint64_t sink_stamp; /* of the sink's. */
	int64_t own;         /* What was found in the end; 0: nothing. */
	int64_t there;
	TAILQ_ENTRY(relay_call) link;
};

/* Who calls, over a client of his own. */
struct user {
	struct load *l;
	uint32_t number;
	uint32_t principal;
	struct client *client;
	uint32_t open;
	uint64_t rest_ms; /* Not before then: it was refused. */
	bool due;         /* An event of his is in the world. */
};

/* A call that nobody knows the outcome of, and may still happen. */
struct astray {
	struct kv_call *kv; /* One of these two. */
	struct limiter_call *limiter;
	uint32_t shard;
	uint64_t ms; /* From then on nobody begins it. */
	struct watch_fence fence;
	TAILQ_ENTRY(astray) link;
};

enum op_kind { OP_KV, OP_LIMITER, OP_POLICY, OP_RELAY, OP_ROWS };

/* A call in flight. */
struct op {
	struct load *l;
	struct user *user;
	enum op_kind kind;
	struct request *req;
	struct kv_call *kv;
	struct limiter_call *limiter;
	uint64_t ticket; /* 0: not started. */
	uint64_t begun;  /* Events of the driver then. */
	uint64_t begun_ms;
	uint64_t deadline_ms;
	uint64_t log_syncs; /* When it was sent. */
	bool meta;
	bool must_not_hang; /* Nothing it waits for takes long. */
	uint64_t term;      /* Of the owner that answered, as meta says. */
	uint64_t old_term;  /* Of the owner when it began, */
	uint64_t old_now;   /* and its now. */
	uint32_t tries;     /* How often the session sent it. */
	TAILQ_ENTRY(op) link;
};

struct load {
	struct trial *r;
	struct target targets[TARGETS_MAX];
	uint32_t targets_n;
	struct user users[USERS_MAX];
	struct user auditor;
	uint64_t next_value;
	uint64_t next_idem;
	uint64_t next_relay;
	uint64_t next_truth;
	bool stopped;
	bool closing;
	uint32_t open;
	TAILQ_HEAD(, op) ops;
	TAILQ_HEAD(, relay_call) relays;
	TAILQ_HEAD(, astray) astrays;
	uint64_t owner_term[TRIAL_SHARDS];
	struct request *kept[KEPT_MAX]; /* To be sent again. */
	uint32_t kept_n;
};

static void user_due(void *arg);

/* Who calls; the bytes outlive every call. */
struct pack_bytes load_principal(uint32_t i)
{
	static char names[8][96];

	CHECK(i < ARRAY_LEN(names));
	(void)snprintf(names[i], sizeof(names[i]),
		       "spiffe://00112233445566778899aabbccddeeff/tenant/"
		       "default/env/dev/client/c%u",
		       i);
	return (struct pack_bytes){ (const uint8_t *)names[i],
				    strlen(names[i]) };
}

uint32_t load_caller(const struct swarm *s, uint32_t client)
{
	if (s->guest && client == s->clients - 1)
		return s->principals;
	return client % s->principals;
}

/* --------------------------------------------------------------- targets */

static const char *const class_words[] = {
	[LIMITER_MEMORY] = "memory",
	[LIMITER_LAGGED] = "lagged",
	[LIMITER_COMMITTED] = "committed",
	[LIMITER_LEASED] = "leased",
};

static struct target *target_add(struct load *l, enum target_kind kind,
				 const char *class, const char *name)
{
	struct target *t = &l->targets[l->targets_n++];

	CHECK(l->targets_n <= TARGETS_MAX);
	t->kind = kind;
	(void)snprintf(t->address, sizeof(t->address), "%s/%s", class, name);
	return t;
}

static void add_kv(struct load *l, uint32_t i, bool large)
{
	char name[32];
	struct target *t;

	(void)snprintf(name, sizeof(name), large ? "large%u" : "small%u", i);
	t = target_add(l, TARGET_KV, "kv", name);
	t->keys = large ? LARGE_KEYS : l->r->swarm.keys;
	t->large = large;
	CHECK(t->keys + TTL_KEYS + 1 <= KEYS_MAX);
	t->kv = kv_history_new(t->address, t->keys + TTL_KEYS + 1);
}

/* Permits that an owner may have lent when it ends. */
static uint64_t lease_of(const struct target *t)
{
	uint64_t lease = t->limit / 10;

	if (t->class != LIMITER_LEASED)
		return 0;
	if (lease > t->burst)
		lease = t->burst;
	return lease > 0 ? lease : 1;
}

static void add_limiter(struct load *l, uint32_t i)
{
	struct trial *r = l->r;
	char name[32];
	struct target *t;

	(void)snprintf(name, sizeof(name), "limit%u", i);
	t = target_add(l, TARGET_LIMITER, "rate_limiter", name);
	t->class = (enum limiter_class)trial_random(r, LIMITER_CLASSES);
	t->limit = 1 + trial_random(r, 50);
	t->period_ms = 10 + trial_random(r, 2000);
	t->burst = 1 + trial_random(r, 20);
	/* What is lent is more than one, and it is used up most of the time. */
	if (t->class == LIMITER_LEASED && trial_chance(r, 80)) {
		t->limit = 20 + trial_random(r, 60);
		t->period_ms = 2000 + trial_random(r, 20000);
		t->burst = 5 + trial_random(r, 30);
	}
	/* What is kept in memory alone may be dropped when it is short. */
	t->forgets =
		(t->class == LIMITER_MEMORY || t->class == LIMITER_LEASED) &&
		(r->swarm.core.objects_max < 1000 ||
		 r->swarm.core.objects_bytes_max < 1u << 20);
	t->limiter_keys = 1 + (uint32_t)trial_random(r, 3);
	t->limiter = limiter_history_new(
		t->address, t->class, t->limit, t->period_ms * MS_NS, t->burst,
		t->limiter_keys, t->forgets, lease_of(t));
}

static void add_relay(struct load *l, uint32_t i)
{
	char name[32];

	(void)snprintf(name, sizeof(name),
		       i % 4 == 2   ? "open-%u"
		       : i % 4 == 3 ? "once-%u"
				    : "relay%u",
		       i);
	(void)target_add(l, TARGET_RELAY, "relay", name);
	(void)snprintf(name, sizeof(name), "sink%u", i);
	(void)target_add(l, TARGET_SINK, "kv", name);
}

/* Where an object lives follows from the key that the format has drawn. */
static void place(struct load *l, struct target *t)
{
	const struct trial *r = l->r;
	const struct pack_bytes tenant = { (const uint8_t *)"default", 7 };
	const struct pack_bytes env = { (const uint8_t *)"dev", 3 };
	const char *slash = strchr(t->address, '/');
	struct pack_bytes cls = { (const uint8_t *)t->address,
				  (size_t)(slash - t->address) };
	struct pack_bytes name = { (const uint8_t *)slash + 1,
				   strlen(slash + 1) };
	struct oid oid;

	placement_id(r->hash_key, tenant, env, cls, name, &oid);
	t->shard = placement_shard(r->hash_key, &oid, r->swarm.shards);
}

static void user_init(struct load *l, struct user *u, uint32_t number)
{
	struct trial *r = l->r;
	uint32_t all = (1u << r->swarm.nodes) - 1;
	uint32_t nodes = all;

	/* Some know one node only, and it may not be the owner's. */
	if (u != &l->auditor && (r->swarm.fixed || trial_chance(r, 20)))
		nodes = 1u << trial_random(r, r->swarm.nodes);
	/* Who writes goes where the owner is. */
	if (u != &l->auditor && r->swarm.readers > 0)
		nodes = number < r->swarm.readers
				? 1u << number % r->swarm.nodes
				: all;
	u->l = l;
	u->number = number;
	u->principal = load_caller(&r->swarm, number);
	u->client = client_new(r->w, r->net, number, r->seed, nodes);
}

struct load *load_new(struct trial *r)
{
	struct load *l = sim_alloc(sizeof(*l));
	uint32_t i;

	l->r = r;
	TAILQ_INIT(&l->ops);
	TAILQ_INIT(&l->relays);
	TAILQ_INIT(&l->astrays);
	CHECK(r->swarm.clients <= USERS_MAX);
	for (i = 0; i < r->swarm.clients; i++)
		user_init(l, &l->users[i], i);
	user_init(l, &l->auditor, r->swarm.clients);
	for (i = 0; i < r->swarm.small; i++)
		add_kv(l, i, false);
	for (i = 0; i < r->swarm.large; i++)
		add_kv(l, i, true);
	for (i = 0; i < r->swarm.limiters; i++)
		add_limiter(l, i);
	for (i = 0; i < r->swarm.relays; i++)
		add_relay(l, i);
	for (i = 0; i < l->targets_n; i++)
		place(l, &l->targets[i]);
	return l;
}

static void request_drop(struct request *q)
{
	if (--q->refs > 0)
		return;
	pack_w_release(&q->args);
	free(q);
}

void load_free(struct load *l)
{
	struct relay_call *rc;
	struct astray *a;
	struct op *op;
	uint32_t i;

	l->closing = true;
	for (i = 0; i < l->r->swarm.clients; i++)
		client_free(l->users[i].client);
	client_free(l->auditor.client);
	while ((op = TAILQ_FIRST(&l->ops)) != NULL) {
		TAILQ_REMOVE(&l->ops, op, link);
		request_drop(op->req);
		free(op);
	}
	while ((a = TAILQ_FIRST(&l->astrays)) != NULL) {
		TAILQ_REMOVE(&l->astrays, a, link);
		free(a);
	}
	while ((rc = TAILQ_FIRST(&l->relays)) != NULL) {
		TAILQ_REMOVE(&l->relays, rc, link);
		free(rc);
	}
	while (l->kept_n > 0)
		request_drop(l->kept[--l->kept_n]);
	for (i = 0; i < l->targets_n; i++) {
		if (l->targets[i].kv != NULL)
			kv_history_free(l->targets[i].kv);
		if (l->targets[i].limiter != NULL)
			limiter_history_free(l->targets[i].limiter);
	}
	free(l);
}

static uint64_t stamp_lo(const struct load *l, const struct target *t)
{
	return watch_stamp_lo(l->r->watch, t->shard);
}

static uint64_t stamp_hi(const struct load *l, const struct target *t)
{
	return watch_stamp_hi(l->r->watch, t->shard);
}

/* --------------------------------------------------------------- requests */

static struct request *request_new(const struct user *u, struct target *t,
				   const char *method)
{
	struct request *q = sim_alloc(sizeof(*q));

	q->t = t;
	q->method = method;
	q->refs = 1;
	q->principal = u->principal;
	pack_w_init(&q->args, FRAME_BYTES_MAX);
	return q;
}

static void replied(void *arg, const struct session_answer *a);

static void op_free(struct op *op)
{
	struct load *l = op->l;

	TAILQ_REMOVE(&l->ops, op, link);
	l->open--;
	op->user->open--;
	request_drop(op->req);
	free(op);
}

static struct op *op_new(struct load *l, struct user *u, enum op_kind kind,
			 struct request *q)
{
	uint32_t longest = l->r->swarm.deadline_ms;
	struct op *op = sim_alloc(sizeof(*op));

	op->l = l;
	op->user = u;
	op->kind = kind;
	op->req = q;
	q->refs++;
	op->begun_ms = trial_now(l->r);
	op->deadline_ms = longest / 4 + trial_random(l->r, longest);
	op->log_syncs = l->r->machines[TRIAL_NODE].log_syncs;
	op->meta = trial_chance(l->r, 10);
	TAILQ_INSERT_TAIL(&l->ops, op, link);
	l->open++;
	u->open++;
	return op;
}

static void note_end(struct op *op, enum call_end end);

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

/* From here on `op` may be gone. */
static void op_send(struct op *op)
{
	struct load *l = op->l;
	const struct request *q = op->req;
	struct detail why = { { 0 }, { 0 } };
	char key[32] = "";
	struct session_request r = {
		.address = text(q->t->address),
		.method = text(q->method),
		.args = { q->args.p, q->args.n },
		.deadline_ms = (uint32_t)op->deadline_ms,
		.idem_ms = q->window_ms,
		.meta = op->meta,
		.redirect = trial_chance(l->r, 5),
	};
	enum rc rc;

	if (q->idem != 0)
		(void)snprintf(key, sizeof(key), "idem-%" PRIu64, q->idem);
	r.idem = text(key);
	op->begun = l->r->now;
	op->req->sent++;
	l->r->tally.calls++;
	CHECK(op->user->principal == q->principal);
	rc = client_call(op->user->client, &r, replied, op, &op->ticket, &why);
	if (rc == RC_OK)
		return;
	op->ticket = 0;
	note_end(op, CALL_REFUSED);
	op_free(op);
}

static void cancel_due(void *arg)
{
	struct load *l = ((struct user *)arg)->l;
	uint64_t n = l->open;
	struct op *op;

	/* Whichever it is: the n-th. */
	if (n == 0 || l->stopped)
		return;
	n = trial_random(l->r, n);
	TAILQ_FOREACH(op, &l->ops, link)
	if (n-- == 0)
		break;
	if (op != NULL && op->ticket != 0 && op->user == arg)
		client_cancel(op->user->client, op->ticket);
}

/* ------------------------------------------------------------- what was said
 */

static void row_name(const struct relay_call *rc, char out[24])
{
	(void)snprintf(out, 24, "u%" PRIu64, rc->number);
}

static void keep(struct load *l, struct request *q)
{
	if (l->kept_n == KEPT_MAX)
		return;
	l->kept[l->kept_n++] = q;
	q->refs++;
}

/* Records that may have expired promise nothing any more. */
static void relay_late(const struct load *l, struct relay_call *rc)
{
	if (stamp_hi(l, rc->relay) - rc->stamp >= RELAY_WINDOW_MS * MS_NS ||
	    stamp_hi(l, rc->sink) - rc->sink_stamp >=
		    IDEM_WINDOW_DEFAULT_MS * MS_NS)
		rc->late = true;
}

/* The same once more: the questions, without the answers. */
static struct kv_call *kv_again(const struct request *q)
{
	const struct kv_call *old = q->kv;
	struct kv_call *c = kv_history_add(q->t->kv, old->ops_n);
	uint32_t i;

	c->kind = old->kind;
	c->answer_large = old->answer_large;
	for (i = 0; i < old->ops_n; i++) {
		c->ops[i] = old->ops[i];
		c->ops[i].rev = 0;
		c->ops[i].sum = 0;
		c->ops[i].existed = false;
		if (old->kind == KV_GET)
			c->ops[i].value = (struct kv_value){ KV_NONE, 0 };
	}
	return c;
}

/* Its end is told later: when it can have no effect any more. */
static void go_astray(const struct op *op, struct kv_call *kv,
		      struct limiter_call *limiter)
{
	struct astray *a = sim_alloc(sizeof(*a));

	a->kv = kv;
	a->limiter = limiter;
	a->shard = op->req->t->shard;
	a->ms = trial_now(op->l->r) + op->deadline_ms +
		(trial_lone(op->l->r) ? ASTRAY_LONE_MS : ASTRAY_MS);
	TAILQ_INSERT_TAIL(&op->l->astrays, a, link);
}

static void astray_ends(struct load *l, struct astray *a)
{
	uint64_t hi = watch_stamp_hi(l->r->watch, a->shard);

	l->r->now++;
	if (a->kv != NULL) {
		a->kv->ended = l->r->now;
		a->kv->stamp_hi = hi;
	}
	if (a->limiter != NULL) {
		a->limiter->ended = l->r->now;
		a->limiter->stamp_hi = hi;
		a->limiter->ended_ms = trial_now(l->r);
	}
	TAILQ_REMOVE(&l->astrays, a, link);
	free(a);
}

void load_tick(struct load *l)
{
	struct astray *a;
	struct astray *next;

	if (l->r->tally.events % ASTRAY_EVERY != 0)
		return;
	for (a = TAILQ_FIRST(&l->astrays); a != NULL; a = next) {
		next = TAILQ_NEXT(a, link);
		if (a->ms <= trial_now(l->r) &&
		    watch_settled(l->r->watch, a->shard, &a->fence))
			astray_ends(l, a);
	}
}

/* It was sent more than once: a try that was not answered may come when the
 * record has expired, also after the answer. */
static void note_tries(struct op *op)
{
	struct kv_call *c = op->kv;
	uint64_t took = stamp_hi(op->l, op->req->t) - c->stamp_lo;
	struct kv_call *before;

	/* Most windows are longer than any trial. */
	if (c->idem == 0 || op->tries < 2 ||
	    took + ASTRAY_TWICE_MS * MS_NS < c->window_ns)
		return;
	before = kv_again(op->req);
	before->begun = c->begun;
	before->stamp_lo = c->stamp_lo;
	before->idem = c->idem;
	before->args = c->args;
	before->window_ns = c->window_ns;
	before->end = CALL_UNKNOWN;
	go_astray(op, before, NULL);
}

static void note_end(struct op *op, enum call_end end)
{
	struct trial *r = op->l->r;
	bool known = end != CALL_UNKNOWN;

	r->tally.by_end[end]++;
	r->now++;
	if (op->kv != NULL) {
		op->kv->end = end;
		op->kv->ended = known ? r->now : CHECK_NEVER;
		op->kv->stamp_hi =
			known ? stamp_hi(op->l, op->req->t) : CHECK_NEVER;
		note_tries(op);
	}
	if (op->limiter != NULL) {
		op->limiter->end = end;
		op->limiter->ended = known ? r->now : CHECK_NEVER;
		op->limiter->stamp_hi =
			known ? stamp_hi(op->l, op->req->t) : CHECK_NEVER;
		op->limiter->ended_ms = trial_now(r);
		op->limiter->term = op->term;
	}
	if (!known && (op->kv != NULL || op->limiter != NULL))
		go_astray(op, op->kv, op->limiter);
	if (op->kind == OP_RELAY && op->req->relay != NULL) {
		struct relay_call *rc = op->req->relay;

		rc->done += end == CALL_DONE;
		rc->refused += end == CALL_REFUSED;
		rc->unknown = rc->unknown || end == CALL_UNKNOWN;
		relay_late(op->l, rc);
	}
	if (end == CALL_REFUSED)
		op->user->rest_ms =
			trial_now(r) + trial_random(r, RETRY_AFTER_MS);
	if (op->req->idem != 0 && op->kind != OP_ROWS &&
	    (end == CALL_UNKNOWN ? trial_chance(r, 85)
				 : end == CALL_DONE && trial_chance(r, 15)))
		keep(op->l, op->req);
}

/* An acknowledged write of a call that was sent once: a sync of the log must
 * have been done since it was sent. */
static void check_synced(struct op *op)
{
	struct trial *r = op->l->r;

	if (trial_lone(r) && op->req->sent == 1 &&
	    r->machines[TRIAL_NODE].log_syncs <= op->log_syncs)
		trial_breach(r, "synced-before-reply",
			     "%s %s was acknowledged and no sync of the log "
			     "came since it was sent",
			     op->req->t->address, op->req->method);
}

struct truth {
	struct load *l;
	char tag[WIRE_TAG_BYTES + 1];
	bool found;
};

static void look_in_file(void *arg, const char *name, uint64_t bytes)
{
	struct truth *t = arg;
	uint8_t *p;
	size_t n;

	(void)bytes;
	if (t->found || strncmp(name, "log/", 4) != 0)
		return;
	p = world_file(t->l->r->w, TRIAL_NODE, name, true, &n);
	if (p == NULL)
		return;
	t->found = memmem(p, n, t->tag, WIRE_TAG_BYTES) != NULL;
	free(p);
}

/* What a power cut would leave now must hold the value. A sector ends every 504
 * bytes; it cannot cut both tags. */
static void check_truth(struct op *op, struct kv_value v)
{
	struct trial *r = op->l->r;
	struct truth t = { .l = op->l };

	if (!trial_lone(r) || op->req->sent != 1 || v.kind != KV_BYTES ||
	    wire_value_bytes(v.v) < 2 * WIRE_TAG_BYTES ||
	    wire_value_bytes(v.v) > 480 ||
	    op->l->next_truth++ % TRUTH_EVERY != 0)
		return;
	wire_value_tag(v.v, t.tag);
	world_files(r->w, TRIAL_NODE, look_in_file, &t);
	r->tally.truths++;
	if (!t.found)
		trial_breach(r, "on-disk",
			     "%s %s of %s was acknowledged and is in no "
			     "segment on the disk",
			     op->req->t->address, op->req->method, t.tag);
}

static bool wrote(const struct kv_call *c)
{
	uint32_t i;

	for (i = 0; i < c->ops_n; i++)
		if (c->ops[i].kind == KV_PUT || c->ops[i].kind == KV_CAS ||
		    c->ops[i].kind == KV_INCR || c->ops[i].existed)
			return true;
	return false;
}

static void learn(struct target *t, const struct kv_call *c)
{
	uint32_t i;

	for (i = 0; i < c->ops_n && c->kind != KV_DESTROY; i++) {
		const struct kv_op *op = &c->ops[i];
		struct known *k = &t->known[op->key];

		k->rev = op->rev;
		k->value = op->value;
		if (op->kind == KV_INCR)
			k->value =
				(struct kv_value){ KV_INT, (uint64_t)op->sum };
		if (op->kind == KV_DELETE)
			*k = (struct known){ .rev = 0 };
	}
	for (i = 0; i < c->items_n; i++)
		t->known[c->items[i].key] =
			(struct known){ c->items[i].value, c->items[i].rev };
}

static void kv_done(struct op *op, struct pack_bytes result)
{
	const char *why;

	if (!wire_kv_answer(op->kv, result, &why)) {
		trial_breach(op->l->r, "answer", "%s %s: %s",
			     op->req->t->address, op->req->method, why);
		return;
	}
	learn(op->req->t, op->kv);
	if (!wrote(op->kv))
		return;
	check_synced(op);
	/* In a batch a later one may have replaced it. */
	if (op->kv->kind == KV_PUT || op->kv->kind == KV_CAS)
		check_truth(op, op->kv->ops[0].value);
}

static void limiter_done(struct op *op, struct pack_bytes result)
{
	struct limiter_call *c = op->limiter;
	const struct target *t = op->req->t;
	uint64_t remaining = 0;
	uint64_t retry_ms = 0;

	/* It was the same owner: nothing of it was decided earlier. */
	if (op->term != 0 && op->term == op->old_term &&
	    op->old_now > c->stamp_lo)
		c->stamp_lo = op->old_now;
	if (c->reset)
		return;
	if (!wire_verdict(result, &c->allowed, &remaining, &retry_ms) ||
	    remaining > t->burst || (c->allowed != (retry_ms == 0))) {
		trial_breach(op->l->r, "answer",
			     "%s %s: no verdict: allowed %d, %" PRIu64
			     " remaining, again in %" PRIu64 " ms",
			     t->address, op->req->method, c->allowed, remaining,
			     retry_ms);
		return;
	}
	if (!c->take || !c->allowed || c->cost == 0)
		return;
	if (t->class == LIMITER_COMMITTED || op->req->idem != 0)
		check_synced(op);
	/* The answer of an owner that is one no more. */
	if (t->class == LIMITER_LAGGED &&
	    op->term < op->l->owner_term[t->shard])
		c->perishable = true;
}

/* A chain that cannot wait for itself must not end by its deadline. */
static void relay_done(struct op *op, struct pack_bytes result)
{
	if (memmem(result.p, result.n, "CYCLE", 5) != NULL)
		op->l->r->tally.cycles++; /* What it wrote before it called, and
					   * what it called: the one was synced
					   * before the other left. */
	if (trial_lone(op->l->r) && op->req->relay != NULL &&
	    op->req->relay->rows && op->req->sent == 1 &&
	    op->l->r->machines[TRIAL_NODE].log_syncs < op->log_syncs + 2)
		trial_breach(op->l->r, "call-after-commit",
			     "%s called %s, and its own writes were not synced "
			     "before",
			     op->req->t->address,
			     op->req->relay->sink->address);
	if (op->must_not_hang &&
	    memmem(result.p, result.n, "DEADLINE", 8) != NULL)
		trial_breach(op->l->r, "no-hang",
			     "%s: a nested call ended by its deadline",
			     op->req->t->address);
}

static struct relay_call *relay_of_row(struct load *l, struct pack_bytes key)
{
	struct relay_call *rc;
	char row[24];

	TAILQ_FOREACH(rc, &l->relays, link)
	{
		row_name(rc, row);
		if (pack_bytes_eq(key, row, strlen(row)))
			return rc;
	}
	return NULL;
}

static bool sink_row(struct load *l, const struct target *t, struct pack_r *r)
{
	struct pack_bytes name;
	struct pack_bytes key = { NULL, 0 };
	struct relay_call *rc;
	uint64_t rev;
	int64_t sum = 0;
	uint32_t n;

	if (pack_get_map(r, &n) != RC_OK || n != 3 ||
	    pack_get_bytes(r, &name) != RC_OK ||
	    pack_get_bytes(r, &key) != RC_OK ||
	    pack_get_bytes(r, &name) != RC_OK ||
	    pack_get_i64(r, &sum) != RC_OK ||
	    pack_get_bytes(r, &name) != RC_OK || pack_get_u64(r, &rev) != RC_OK)
		return false;
	rc = relay_of_row(l, key);
	if (rc == NULL || rc->sink != t)
		return false;
	rc->there = sum;
	return true;
}

static bool relay_row(struct load *l, const struct target *t, struct pack_r *r)
{
	struct pack_bytes key;
	struct relay_call *rc;
	int64_t sum;

	if (pack_get_bytes(r, &key) != RC_OK || pack_get_i64(r, &sum) != RC_OK)
		return false;
	rc = relay_of_row(l, key);
	if (rc == NULL || rc->relay != t)
		return false;
	rc->own = sum;
	return true;
}

/* All rows of a relay or of a sink. */
static void rows_done(struct op *op, struct pack_bytes result)
{
	struct load *l = op->l;
	struct target *t = op->req->t;
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes name;
	bool good = true;
	uint32_t n;

	if (t->kind == TARGET_SINK)
		good = pack_get_map(&r, &n) == RC_OK && n == 1 &&
		       pack_get_bytes(&r, &name) == RC_OK &&
		       pack_get_array(&r, &n) == RC_OK;
	else
		good = pack_get_map(&r, &n) == RC_OK;
	while (good && n-- > 0)
		good = t->kind == TARGET_SINK ? sink_row(l, t, &r)
					      : relay_row(l, t, &r);
	t->configured = good;
	if (!good)
		trial_breach(l->r, "answer", "%s: a row that nobody wrote",
			     t->address);
}

static bool meta_strip(struct op *op, struct pack_bytes *result)
{
	struct pack_r r = pack_reader(result->p, result->n);
	struct pack_bytes value;
	struct pack_bytes name;
	uint32_t n;

	if (pack_get_array(&r, &n) != RC_OK || n != 2 ||
	    pack_skip(&r, &value) != RC_OK || pack_get_map(&r, &n) != RC_OK ||
	    n != 4)
		return false;
	*result = value;
	while (n-- > 0) {
		if (pack_get_bytes(&r, &name) != RC_OK)
			return false;
		if (pack_bytes_eq(name, "term", 4)) {
			if (pack_get_u64(&r, &op->term) != RC_OK)
				return false;
		} else if (pack_skip(&r, &value) != RC_OK) {
			return false;
		}
	}
	return true;
}

static void op_done(struct op *op, const struct answer *a)
{
	struct pack_bytes result = a->result;

	if (op->meta && !meta_strip(op, &result)) {
		trial_breach(op->l->r, "answer", "%s: no meta",
			     op->req->t->address);
		return;
	}
	switch (op->kind) {
	case OP_KV:
		kv_done(op, result);
		break;
	case OP_LIMITER:
		limiter_done(op, result);
		break;
	case OP_POLICY:
		op->req->t->configured = true;
		break;
	case OP_RELAY:
		relay_done(op, result);
		break;
	case OP_ROWS:
		rows_done(op, result);
		break;
	default:
		UNREACHABLE();
	}
}

/* Codes that say nothing of an object. */
static bool is_plain_refusal(enum rc rc)
{
	return rc == RC_OVERLOADED || rc == RC_DEADLINE || rc == RC_CANCELLED ||
	       rc == RC_NO_QUORUM || rc == RC_NO_SPACE || rc == RC_NOT_OWNER;
}

/* What a relay's steps and a limiter without its policy may say besides. */
static bool is_expected(const struct op *op, enum rc rc)
{
	if (op->kind == OP_POLICY)
		return rc == RC_CONFLICT;
	if (op->kind == OP_LIMITER)
		return rc == RC_NOT_FOUND || rc == RC_INVALID;
	return op->kind == OP_RELAY && (rc == RC_CYCLE || rc == RC_CONFLICT);
}

static bool may_be_damaged(const struct trial *r)
{
	unsigned i;

	for (i = 0; i < r->swarm.nodes; i++)
		if (r->machines[i].sick)
			return true;
	return false;
}

static bool is_guest(const struct op *op)
{
	const struct swarm *s = &op->l->r->swarm;

	return s->guest && op->user->principal == s->principals;
}

/* D10. What is answered before it is proved may be a little late. */
static void check_rights(const struct op *op)
{
	const struct target *t = op->req->t;
	bool proved = t->limiter == NULL || t->class == LIMITER_COMMITTED ||
		      t->class == LIMITER_LEASED || op->kind == OP_POLICY;

	if (is_guest(op) && proved && watch_refuses(op->l->r->watch, op->begun))
		trial_breach(op->l->r, "D10",
			     "%s %s was answered, and a majority had taken "
			     "its caller's rights before it began",
			     t->address, op->req->method);
}

static enum call_end op_failed(struct op *op, const struct answer *a)
{
	if (a->rc == RC_INTERNAL)
		trial_breach(op->l->r, "internal", "%s %s: %s",
			     op->req->t->address, op->req->method,
			     a->why->text);
	if (a->outcome == OUTCOME_UNKNOWN)
		return CALL_UNKNOWN;
	/* Whether there is such a key is not told to who has no rights. */
	if (is_guest(op) && (a->rc == RC_NOT_FOUND || a->rc == RC_DENIED))
		return CALL_REFUSED;
	if (op->kind == OP_KV && wire_kv_failure(op->kv, a->rc, a->why))
		return CALL_FAILED;
	if (a->rc == RC_CONFLICT && op->kind == OP_POLICY)
		op->req->t->configured = true;
	if (!is_plain_refusal(a->rc) && !is_expected(op, a->rc))
		trial_breach(op->l->r, "answer", "%s %s: %s %s: %s",
			     op->req->t->address, op->req->method,
			     rc_name(a->rc), a->why->field, a->why->text);
	return CALL_REFUSED;
}

static void check_end(const struct op *op, const struct answer *a)
{
	struct trial *r = op->l->r;
	uint64_t took = trial_now(r) - op->begun_ms;

	if (took > op->deadline_ms + LATE_MS)
		trial_breach(r, "deadline",
			     "%s %s took %" PRIu64 " ms of %" PRIu64,
			     op->req->t->address, op->req->method, took,
			     op->deadline_ms);
	if (op->must_not_hang && a->rc != RC_OK && took >= op->deadline_ms)
		trial_breach(r, "no-hang", "%s: ended by its deadline",
			     op->req->t->address);
}

/* What the session says, in the node's words. */
static void answer_of(const struct session_answer *a, struct answer *out,
		      struct detail *why)
{
	*why = (struct detail){ { 0 }, { 0 } };
	*out = (struct answer){ .rc = a->rc,
				.outcome = a->outcome,
				.result = a->result,
				.why = why };
	if (a->rc == RC_OK)
		return;
	(void)snprintf(why->text, sizeof(why->text), "%.*s",
		       (int)a->error.message.n,
		       (const char *)a->error.message.p);
	(void)snprintf(why->field, sizeof(why->field), "%.*s",
		       (int)a->error.field.n, (const char *)a->error.field.p);
}

/* Keys and revisions, for who reads the trace. */
static void trace_kv(struct trial *r, const struct kv_call *c)
{
	char text[160] = "";
	size_t n = 0;
	uint32_t i;

	for (i = 0; i < c->ops_n && n < sizeof(text) - 40; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n,
				      " %u:%" PRIu64, c->ops[i].key,
				      c->ops[i].rev);
	for (i = 0; i < c->items_n && n < sizeof(text) - 40; i++)
		n += (size_t)snprintf(text + n, sizeof(text) - n,
				      " %u:%" PRIu64, c->items[i].key,
				      c->items[i].rev);
	trial_trace(r, "    keys%s", text);
}

static void replied(void *arg, const struct session_answer *said)
{
	struct op *op = arg;
	struct trial *r = op->l->r;
	enum call_end end = CALL_DONE;
	struct detail why;
	struct answer a;

	if (op->l->closing)
		return;
	answer_of(said, &a, &why);
	op->tries = said->tries;
	check_end(op, &a);
	if (a.rc == RC_OK)
		op_done(op, &a);
	else
		end = op_failed(op, &a);
	if (end == CALL_DONE || end == CALL_FAILED)
		check_rights(op);
	note_end(op, end);
	world_note(r->w, &a.rc, sizeof(a.rc));
	world_note(r->w, a.result.p, a.result.n);
	if (op->kv != NULL)
		trace_kv(r, op->kv);
	if (op->limiter != NULL && end == CALL_DONE)
		trial_trace(r, "    key %u cost %u: %s", op->limiter->key,
			    op->limiter->cost,
			    op->limiter->reset     ? "reset"
			    : op->limiter->allowed ? "allowed"
						   : "denied");
	trial_trace(r,
		    "%s c%u %s %s%s idem %" PRIu64 " begun %" PRIu64 " %s %s",
		    end == CALL_DONE      ? "ok "
		    : end == CALL_UNKNOWN ? "???"
					  : "err",
		    op->user->number, op->req->t->address, op->req->method,
		    op->user == &op->l->auditor ? "*" : "", op->req->idem,
		    op->kv != NULL        ? op->kv->begun
		    : op->limiter != NULL ? op->limiter->begun
					  : 0,
		    a.rc == RC_OK ? "" : rc_name(a.rc),
		    a.rc == RC_OK ? "" : why.text);
	op_free(op);
}

/* ---------------------------------------------------------------------- kv */

static struct kv_value new_bytes(struct load *l, const struct target *t)
{
	struct trial *r = l->r;
	uint64_t n = WIRE_VALUE_MIN + trial_random(r, r->swarm.value_max);

	if (t->large)
		n = 1500 + trial_random(r, 6000);
	if (r->swarm.bulk && trial_chance(r, 20))
		n = 20000 + trial_random(r, 150000);
	return (struct kv_value){
		KV_BYTES, ++l->next_value * WIRE_VALUE_STEP +
				  (trial_chance(r, 50) ? WIRE_VALUE_BIN : 0) + n
	};
}

/* Odd keys hold bytes, even ones integers; mostly. */
static struct kv_value new_value(struct load *l, const struct target *t,
				 uint16_t key)
{
	struct trial *r = l->r;

	if ((key % 2 == 0) != trial_chance(r, 5) && !t->large)
		return (struct kv_value){ KV_INT, trial_random(r, 1000) };
	return new_bytes(l, t);
}

static uint16_t some_key(struct load *l, const struct target *t, bool ttl)
{
	if (ttl)
		return (uint16_t)(t->keys + trial_random(l->r, TTL_KEYS));
	return (uint16_t)trial_random(l->r, t->keys);
}

static enum kv_kind some_write(struct trial *r)
{
	uint64_t x = trial_random(r, 100);

	if (x < 40)
		return KV_PUT;
	if (x < 65)
		return KV_INCR;
	return x < 85 ? KV_CAS : KV_DELETE;
}

static int64_t some_sum(struct trial *r)
{
	static const int64_t large[] = { INT64_MAX, INT64_MIN };

	if (trial_chance(r, 2))
		return large[trial_random(r, 2)];
	return (int64_t)trial_random(r, 9) - 2;
}

static void fill_op(struct load *l, struct target *t, struct kv_op *op,
		    enum kv_kind kind, uint16_t key)
{
	struct trial *r = l->r;
	const struct known *k = &t->known[key];

	*op = (struct kv_op){ .kind = kind, .key = key };
	if (kind == KV_PUT || kind == KV_CAS)
		op->value = new_value(l, t, key);
	if (kind == KV_INCR)
		op->by = some_sum(r);
	if (kind == KV_CAS && trial_chance(r, 85))
		op->expect = k->value;
	if ((kind == KV_PUT || kind == KV_DELETE) && trial_chance(r, 25)) {
		op->has_if_rev = true;
		op->if_rev = trial_chance(r, 80) ? k->rev : trial_random(r, 20);
	}
	if (kind == KV_PUT && key >= t->keys && trial_chance(r, 85))
		op->ttl_ns = (trial_chance(r, 80) ? 1 + trial_random(r, 60)
						  : trial_random(r, 5000) + 1) *
			     MS_NS;
}

static struct kv_call *new_single(struct load *l, struct target *t,
				  enum kv_kind kind)
{
	struct kv_call *c = kv_history_add(t->kv, 1);

	c->kind = kind;
	fill_op(l, t, &c->ops[0], kind,
		some_key(l, t, trial_chance(l->r, l->r->swarm.ttl)));
	return c;
}

static struct kv_call *new_batch(struct load *l, struct target *t, bool keyed)
{
	struct trial *r = l->r;
	/* An answer that is too large for the record of a key. */
	bool large = keyed && trial_chance(r, 15);
	uint32_t n = large ? 420 : 2 + (uint32_t)trial_random(r, 5);
	struct kv_call *c = kv_history_add(t->kv, n);
	uint32_t i;

	c->kind = KV_BATCH;
	c->answer_large = large;
	for (i = 0; i < n; i++) {
		fill_op(l, t, &c->ops[i], large ? KV_INCR : some_write(r),
			some_key(l, t, false));
		if (large)
			c->ops[i].by = 1;
		if (large)
			c->ops[i].key = (uint16_t)(c->ops[i].key & ~1u);
	}
	return c;
}

static struct kv_call *new_list(struct load *l, struct target *t)
{
	struct trial *r = l->r;
	struct kv_call *c = kv_history_add(t->kv, 0);
	uint32_t n = t->keys + TTL_KEYS + 1;

	c->kind = KV_LIST;
	c->to = (uint16_t)n;
	c->limit = (uint16_t)(trial_chance(r, 50) ? KV_LIST_DEFAULT
						  : 1 + trial_random(r, 12));
	c->reverse = trial_chance(r, 30);
	c->bytes_page = t->large || r->swarm.bulk;
	if (trial_chance(r, 60)) {
		c->from = (uint16_t)trial_random(r, n);
		c->to = (uint16_t)(c->from + trial_random(r, n - c->from + 1));
	}
	if (trial_chance(r, 10) && n >= 10) {
		c->from = (uint16_t)(10 * trial_random(r, n / 10));
		c->to = (uint16_t)(c->from + 10);
	}
	return c;
}

static bool bin_keys(const struct kv_call *c)
{
	return c->begun % 8 == 0;
}

/* What `c` asks, as a request. */
static struct request *kv_request(struct load *l, const struct user *u,
				  struct target *t, struct kv_call *c)
{
	struct request *q = request_new(u, t, wire_kv_method(c));

	/* A page that goes on behind another. */
	if (c->kind == KV_LIST && c->to > c->from + 1 &&
	    trial_chance(l->r, 20)) {
		uint16_t cursor = c->reverse ? --c->to : c->from++;

		wire_kv_cursor(c, cursor, bin_keys(c), &q->args);
	} else {
		wire_kv_args(c, bin_keys(c), &q->args);
	}
	CHECK(q->args.rc == RC_OK);
	q->kv = c;
	return q;
}

/* The class compares what was sent, byte by byte (FNV-1a). */
static uint64_t args_hash(const struct request *q)
{
	uint64_t h = UINT64_C(0xcbf29ce484222325);
	size_t i;

	for (i = 0; i < q->args.n; i++)
		h = (h ^ q->args.p[i]) * UINT64_C(0x100000001b3);
	return h;
}

static void kv_begin(struct load *l, struct kv_call *c, const struct request *q)
{
	c->begun = ++l->r->now;
	c->stamp_lo = stamp_lo(l, q->t);
	c->idem = q->idem;
	c->args = args_hash(q);
	c->window_ns =
		(q->window_ms != 0 ? q->window_ms : IDEM_WINDOW_DEFAULT_MS) *
		MS_NS;
}

static void send_kv(struct load *l, struct user *u, struct request *q,
		    struct kv_call *c)
{
	struct op *op = op_new(l, u, OP_KV, q);
	struct trial *r = l->r;

	kv_begin(l, c, q);
	op->kv = c;
	if (trial_chance(r, r->swarm.hurried))
		op->deadline_ms = 1 + trial_random(r, 20);
	op_send(op);
}

/* Another call under the same key. */
static struct request *other_args(struct load *l, const struct user *u,
				  const struct request *q)
{
	struct kv_call *c = new_single(l, q->t, q->kv->kind);
	struct request *other = kv_request(l, u, q->t, c);

	other->idem = q->idem;
	other->window_ms = q->window_ms;
	/* By chance it may be the same. */
	other->sent = 1;
	return other;
}

/* Any user that the key is good for: the scope of a key is its principal. */
static struct user *user_for(struct load *l, const struct request *q)
{
	uint32_t n = l->r->swarm.clients;
	uint32_t at = (uint32_t)trial_random(l->r, n);
	uint32_t i;

	for (i = 0; i < n; i++)
		if (l->users[(at + i) % n].principal == q->principal)
			return &l->users[(at + i) % n];
	return &l->auditor;
}

static void send_again(struct load *l, struct request *q)
{
	struct user *u = user_for(l, q);
	struct request *other;

	if (q->relay != NULL) {
		struct op *op = op_new(l, u, OP_RELAY, q);

		q->relay->asked++;
		relay_late(l, q->relay);
		op->deadline_ms = 10000;
		op_send(op);
		return;
	}
	if (q->kv->kind != KV_BATCH && q->kv->kind != KV_DESTROY &&
	    trial_chance(l->r, 10)) {
		other = other_args(l, u, q);
		send_kv(l, u, other, other->kv);
		request_drop(other);
		return;
	}
	send_kv(l, u, q, kv_again(q));
}

static struct kv_call *new_call(struct load *l, const struct user *u,
				struct target *t, bool keyed)
{
	struct trial *r = l->r;
	struct kv_call *c;

	if (u->number < r->swarm.readers)
		return new_single(l, t, KV_GET);
	if (trial_chance(r, r->swarm.destroys)) {
		c = kv_history_add(t->kv, 1);
		c->kind = KV_DESTROY;
		c->ops[0].kind = KV_DESTROY;
		return c;
	}
	if (trial_chance(r, r->swarm.reads)) {
		if (!keyed && trial_chance(r, 25))
			return new_list(l, t);
		return new_single(l, t, KV_GET);
	}
	if (trial_chance(r, 12))
		return new_batch(l, t, keyed);
	return new_single(l, t, some_write(r));
}

static void kv_one(struct load *l, struct user *u, struct target *t)
{
	struct trial *r = l->r;
	bool keyed = trial_chance(r, r->swarm.keyed);
	struct kv_call *c = new_call(l, u, t, keyed);
	struct request *q = kv_request(l, u, t, c);

	/* Of a large value the answer could not be recorded. */
	if (keyed && c->kind != KV_LIST &&
	    (c->kind != KV_GET || (!t->large && !r->swarm.bulk))) {
		q->idem = ++l->next_idem; /* The shortest window, or nearly. */
		if (trial_chance(r, 30))
			q->window_ms =
				IDEM_WINDOW_MIN_MS +
				trial_random(r,
					     trial_chance(r, 60) ? 60 : 2000);
	}
	send_kv(l, u, q, c);
	if (q->idem != 0 && r->swarm.twice && trial_chance(r, 10))
		send_kv(l, user_for(l, q), q, kv_again(q));
	request_drop(q);
}

/* ------------------------------------------------------------ rate_limiter */

static void policy_send(struct load *l, struct user *u, struct target *t)
{
	struct request *q = request_new(u, t, "put_policy");
	struct op *op;

	pack_map(&q->args, 5);
	pack_cstr(&q->args, "limit");
	pack_u64(&q->args, t->limit);
	pack_cstr(&q->args, "period_ms");
	pack_u64(&q->args, t->period_ms);
	pack_cstr(&q->args, "burst");
	pack_u64(&q->args, t->burst);
	pack_cstr(&q->args, "durability");
	pack_cstr(&q->args, class_words[t->class]);
	pack_cstr(&q->args, "if_rev");
	pack_u64(&q->args, 0);
	op = op_new(l, u, OP_POLICY, q);
	request_drop(q);
	op_send(op);
}

static void limiter_args(struct request *q, const struct limiter_call *c)
{
	char key[16];

	(void)snprintf(key, sizeof(key), "user%u", c->key);
	if (c->take && c->cost != 1) {
		pack_map(&q->args, 2);
		pack_cstr(&q->args, "cost");
		pack_u64(&q->args, c->cost);
	} else if (!c->take && !c->reset && strcmp(q->method, "check") == 0) {
		pack_map(&q->args, 2);
		pack_cstr(&q->args, "dry_run");
		pack_bool(&q->args, true);
	} else {
		pack_map(&q->args, 1);
	}
	pack_cstr(&q->args, "key");
	pack_cstr(&q->args, key);
}

/* What the owner's clock says as the call begins. */
static void owner_now(struct op *op)
{
	struct trial *r = op->l->r;
	uint32_t shard = op->req->t->shard;
	int owner = trial_owner(r, shard);
	struct bridge *b;

	if (owner < 0)
		return;
	b = core_bridge(r->machines[owner].core, shard);
	if (shard_leads(bridge_shard(b), &op->old_term))
		op->old_now = bridge_now_ns(b);
}

static void limiter_one(struct load *l, struct user *u, struct target *t)
{
	struct trial *r = l->r;
	struct limiter_call *c;
	struct request *q;
	struct op *op;

	if (!t->configured) {
		policy_send(l, u, t);
		return;
	}
	c = limiter_history_add(t->limiter);
	c->key = (uint16_t)trial_random(r, t->limiter_keys);
	c->cost = 1;
	c->take = trial_chance(r, 90);
	if (c->take && trial_chance(r, 20))
		c->cost = 1 + (uint32_t)trial_random(r, t->burst);
	c->reset = !c->take && trial_chance(r, 5);
	q = request_new(u, t,
			c->reset                         ? "reset"
			: c->take || trial_chance(r, 50) ? "check"
							 : "peek");
	limiter_args(q, c);
	c->begun = ++r->now;
	c->begun_ms = trial_now(r);
	c->stamp_lo = stamp_lo(l, t);
	op = op_new(l, u, OP_LIMITER, q);
	op->limiter = c;
	op->meta = trial_chance(r, 90) || t->class == LIMITER_LAGGED;
	owner_now(op);
	request_drop(q);
	op_send(op);
}

/* ------------------------------------------------------------------- relay */

static struct target *some_target(struct load *l, enum target_kind kind)
{
	struct target *t;
	uint32_t i = (uint32_t)trial_random(l->r, l->targets_n);
	uint32_t n;

	for (n = 0; n < l->targets_n; n++) {
		t = &l->targets[(i + n) % l->targets_n];
		if (t->kind == kind)
			return t;
	}
	return NULL;
}

static void step_add(struct pack_w *w, const struct relay_call *rc)
{
	char row[24];

	row_name(rc, row);
	pack_array(w, 3);
	pack_cstr(w, "add");
	pack_cstr(w, row);
	pack_i64(w, 1);
}

static void step_incr(struct pack_w *w, const struct relay_call *rc)
{
	char row[24];

	row_name(rc, row);
	pack_array(w, 4);
	pack_cstr(w, "call");
	pack_cstr(w, rc->sink->address);
	pack_cstr(w, "incr");
	pack_map(w, 1);
	pack_cstr(w, "key");
	pack_cstr(w, row);
}

static void step_wait(struct pack_w *w, uint64_t ms)
{
	pack_array(w, 2);
	pack_cstr(w, "wait");
	pack_u64(w, ms);
}

/* [add own row], [wait], call the sink, [wait] */
static void relay_plain(struct load *l, struct relay_call *rc, struct pack_w *w)
{
	bool before = trial_chance(l->r, 30);
	bool after = trial_chance(l->r, 30);

	pack_map(w, 1);
	pack_cstr(w, "steps");
	pack_array(w, 1u + rc->rows + before + after);
	if (rc->rows)
		step_add(w, rc);
	if (before)
		step_wait(w, trial_random(l->r, 10));
	step_incr(w, rc);
	if (after)
		step_wait(w, trial_random(l->r, 10));
}

static void steps_try(struct pack_w *w, const struct target *t)
{
	pack_array(w, 4);
	pack_cstr(w, "try");
	pack_cstr(w, t->address);
	pack_cstr(w, "run");
	pack_map(w, 1);
	pack_cstr(w, "steps");
}

/* a waits a little, then calls b, which calls a (or c, or itself). */
static void relay_chain(struct load *l, const struct target *a,
			struct pack_w *w)
{
	const struct target *b = some_target(l, TARGET_RELAY);
	const struct target *c = some_target(l, TARGET_RELAY);
	bool wait = trial_chance(l->r, 70);

	if (trial_chance(l->r, 50))
		c = a;
	pack_map(w, 1);
	pack_cstr(w, "steps");
	pack_array(w, 1u + wait);
	if (wait)
		step_wait(w, trial_random(l->r, 6));
	steps_try(w, b);
	pack_array(w, 1);
	steps_try(w, c);
	pack_array(w, 0);
}

static void relay_one(struct load *l, struct user *u, struct target *t)
{
	struct trial *r = l->r;
	struct request *q = request_new(u, t, "run");
	struct relay_call *rc;
	struct op *op;

	op = op_new(l, u, OP_RELAY, q);
	op->deadline_ms = trial_lone(r) ? 20000 : 4 * r->swarm.deadline_ms;
	op->must_not_hang = trial_lone(r) && !r->swarm.slow_syncs &&
			    (r->swarm.faults & FAULTS_THAT_HANG) == 0;
	if (trial_chance(r, 40)) {
		relay_chain(l, t, &q->args);
	} else {
		rc = sim_alloc(sizeof(*rc));
		rc->number = ++l->next_relay;
		rc->relay = t;
		rc->sink = some_target(l, TARGET_SINK);
		rc->rows = trial_chance(r, 60);
		rc->stamp = stamp_lo(l, t);
		rc->sink_stamp = stamp_lo(l, rc->sink);
		rc->asked = 1;
		TAILQ_INSERT_TAIL(&l->relays, rc, link);
		q->relay = rc;
		relay_plain(l, rc, &q->args);
		if (trial_chance(r, r->swarm.keyed))
			q->idem = ++l->next_idem;
		if (trial_chance(r, r->swarm.hurried)) {
			op->deadline_ms = 1 + trial_random(r, 20);
			op->must_not_hang = false;
		}
	}
	request_drop(q);
	op_send(op);
}

/* ------------------------------------------------------------------ clients */

static void one_call(struct user *u)
{
	struct load *l = u->l;
	struct trial *r = l->r;
	struct target *t;
	struct request *q;

	if (l->kept_n > 0 && trial_chance(r, 30)) {
		q = l->kept[--l->kept_n];
		send_again(l, q);
		request_drop(q);
		return;
	}
	do
		t = &l->targets[trial_random(r, l->targets_n)];
	while (t->kind == TARGET_SINK);
	if (t->kind == TARGET_KV)
		kv_one(l, u, t);
	else if (t->kind == TARGET_LIMITER)
		limiter_one(l, u, t);
	else
		relay_one(l, u, t);
	if (trial_chance(r, r->swarm.cancels))
		world_at(r->w, WORLD_NOBODY, trial_now(r) + trial_random(r, 4),
			 cancel_due, u);
}

static void again_in(struct user *u, uint64_t ms)
{
	struct trial *r = u->l->r;

	if (u->due)
		return;
	u->due = true;
	world_at(r->w, WORLD_NOBODY, trial_now(r) + ms, user_due, u);
}

static void user_due(void *arg)
{
	struct user *u = arg;
	struct load *l = u->l;
	const struct swarm *swarm = &l->r->swarm;
	uint64_t now = trial_now(l->r);
	uint32_t i;

	u->due = false;
	if (l->stopped || l->r->tally.calls >= swarm->calls_max)
		return;
	if (now < u->rest_ms) {
		again_in(u, u->rest_ms - now);
		return;
	}
	for (i = 0; i < swarm->burst && u->open < swarm->depth; i++)
		one_call(u);
	/* At least a ms later, or time would stand still. */
	again_in(u, trial_random(l->r, swarm->think_ms + 1u) + (i == 0));
}

void load_start(struct load *l)
{
	struct trial *r = l->r;
	uint32_t i;

	l->stopped = false;
	for (i = 0; i < r->swarm.clients; i++)
		again_in(&l->users[i], trial_random(r, 4));
}

void load_stop(struct load *l)
{
	l->stopped = true;
}

uint32_t load_open(const struct load *l)
{
	return l->open;
}

/* What an owner in an earlier term answered after the last that is left of it
 * may be lost. It may not be much: it stops when the oldest is older than a
 * lag. */
static void lose_perishable(struct load *l, const struct target *t,
			    uint64_t term)
{
	uint64_t tail_ms = watch_tail_ms(l->r->watch, t->shard, term);
	size_t i = limiter_history_calls(t->limiter);
	const struct limiter_call *last = NULL;
	struct limiter_call *c;

	while (i-- > 0) {
		c = limiter_history_call(t->limiter, i);
		if (c->end != CALL_DONE || c->ended_ms < tail_ms ||
		    c->term >= term)
			continue;
		c->perishable = true;
		if (!c->take || !c->allowed || c->cost == 0)
			continue;
		if (last == NULL || c->begun_ms > last->begun_ms)
			last = c;
		if (c->begun_ms > tail_ms && c->term == last->term &&
		    last->begun_ms >
			    c->ended_ms + LAG_MS_DEFAULT + LAG_SLACK_MS)
			trial_breach(l->r, "lag",
				     "%s: call %" PRIu64
				     " was answered %" PRIu64
				     " ms after call %" PRIu64
				     ", of which nothing is left",
				     t->address, last->begun,
				     last->begun_ms - c->ended_ms, c->begun);
	}
}

void load_owner(struct load *l, uint32_t shard, unsigned node, uint64_t term)
{
	struct target *t;
	uint32_t i;

	trial_trace(l->r,
		    "n%u owns shard %u in term %" PRIu64 ", committed %" PRIu64
		    ", of before until %" PRIu64 " ms",
		    node + 1, shard, term, watch_commit(l->r->watch, shard),
		    watch_tail_ms(l->r->watch, shard, term));
	if (term > l->owner_term[shard])
		l->owner_term[shard] = term;
	for (i = 0; i < l->targets_n; i++) {
		t = &l->targets[i];
		if (t->limiter == NULL || t->shard != shard)
			continue;
		limiter_history_lead(t->limiter, stamp_hi(l, t));
		if (t->class == LIMITER_LAGGED)
			lose_perishable(l, t, term);
	}
}

void load_set_back(struct load *l, uint32_t shard, uint64_t last_ns,
		   uint64_t now_ns)
{
	uint32_t i;

	trial_trace(l->r, "shard %u is set back by %" PRIu64 " ns", shard,
		    last_ns - now_ns);
	for (i = 0; i < l->targets_n; i++)
		if (l->targets[i].limiter != NULL &&
		    l->targets[i].shard == shard)
			limiter_history_back(l->targets[i].limiter, l->r->now,
					     last_ns, now_ns);
}

/* ----------------------------------------------------------------- the end */

static bool wait_for_all(struct load *l)
{
	struct trial *r = l->r;
	uint64_t end = trial_now(r) + DEADLINE_MAX_MS + 30000;

	while (l->open > 0) {
		if (trial_now(r) > end) {
			trial_breach(r, "no-hang",
				     "%u calls have no answer, one to %s",
				     l->open,
				     TAILQ_FIRST(&l->ops)->req->t->address);
			return false;
		}
		if (!trial_step(r) || trial_is_broken(r))
			return false;
	}
	return true;
}

/* A call of the auditor leaves; the history has it. */
static void auditor_sends(struct load *l, struct target *t, struct kv_call *c,
			  uint64_t ms)
{
	struct request *q = request_new(&l->auditor, t, wire_kv_method(c));
	struct op *op;

	wire_kv_args(c, false, &q->args);
	q->kv = c;
	op = op_new(l, &l->auditor, OP_KV, q);
	kv_begin(l, c, q);
	op->kv = c;
	op->deadline_ms = ms;
	op->meta = false;
	request_drop(q);
	op_send(op);
}

static struct kv_call *audit_send(struct load *l, struct target *t,
				  enum kv_kind kind, uint16_t from)
{
	struct kv_call *c = kv_history_add(t->kv, kind != KV_LIST);

	c->kind = kind;
	c->from = from;
	c->to = (uint16_t)(t->keys + TTL_KEYS + 1);
	c->limit = KV_LIST_MAX;
	c->bytes_page = true;
	/* What is not there is not deleted: the answer is the revision. */
	if (kind == KV_DELETE)
		c->ops[0] = (struct kv_op){
			.kind = KV_DELETE,
			.key = (uint16_t)(t->keys + TTL_KEYS),
		};
	auditor_sends(l, t, c, 30000);
	return c;
}

/* Refused, as anybody may be: again a little later. False: too often. */
static bool audit_again(struct load *l, const struct target *t, unsigned *tries)
{
	if (trial_lone(l->r) && may_be_damaged(l->r)) {
		l->r->over = true;
		return false;
	}
	if (++*tries > AUDIT_TRIES) {
		trial_breach(l->r, "audit", "%s cannot be read", t->address);
		return false;
	}
	return trial_for(l->r, RETRY_AFTER_MS);
}

static struct kv_call *write_send(struct load *l, struct target *t, uint64_t ms)
{
	struct kv_call *c = kv_history_add(t->kv, 1);

	c->kind = KV_PUT;
	c->ops[0] = (struct kv_op){ .kind = KV_PUT, .value = new_bytes(l, t) };
	auditor_sends(l, t, c, ms);
	return c;
}

bool load_serves(struct load *l, uint64_t until_ms)
{
	struct trial *r = l->r;
	const struct kv_call *c;
	struct target *t;
	uint32_t i = 0;

	while (i < l->targets_n) {
		t = &l->targets[i];
		/* Who is alone and damaged may have nothing to write to. */
		if (t->kv == NULL || (trial_lone(r) && may_be_damaged(r))) {
			i++;
			continue;
		}
		if (trial_now(r) >= until_ms) {
			trial_breach(r, "serves",
				     "%s has taken no write by then",
				     t->address);
			return false;
		}
		c = write_send(l, t, until_ms - trial_now(r));
		while (c->end == CALL_OPEN)
			if (!trial_step(r) || trial_is_broken(r))
				return false;
		if (c->end == CALL_DONE)
			i++;
		else if (!trial_for(r, RETRY_AFTER_MS))
			return false;
	}
	return true;
}

static bool audit_kv(struct load *l, struct target *t)
{
	struct kv_call *rev;
	struct kv_call *list;
	unsigned tries = 0;
	uint16_t from = 0;

	for (;;) {
		rev = audit_send(l, t, KV_DELETE, 0);
		list = audit_send(l, t, KV_LIST, from);
		if (!wait_for_all(l))
			return false;
		if (rev->end != CALL_DONE || list->end != CALL_DONE) {
			if (!audit_again(l, t, &tries))
				return false;
			continue;
		}
		if (!list->more)
			return true;
		from = (uint16_t)(list->items[list->items_n - 1].key + 1);
	}
}

static void rows_send(struct load *l, struct target *t)
{
	bool sink = t->kind == TARGET_SINK;
	struct request *q = request_new(&l->auditor, t, sink ? "list" : "get");
	struct op *op;

	pack_map(&q->args, sink);
	if (sink) {
		pack_cstr(&q->args, "limit");
		pack_u64(&q->args, KV_LIST_MAX);
	}
	op = op_new(l, &l->auditor, OP_ROWS, q);
	op->deadline_ms = 30000;
	op->meta = false;
	request_drop(q);
	op_send(op);
}

static bool audit_rows(struct load *l, struct target *t)
{
	unsigned tries = 0;

	t->configured = false;
	for (;;) {
		rows_send(l, t);
		if (!wait_for_all(l))
			return false;
		if (t->configured)
			return true;
		if (!audit_again(l, t, &tries))
			return false;
	}
}

void load_settled(struct load *l)
{
	struct astray *a;

	while ((a = TAILQ_FIRST(&l->astrays)) != NULL)
		astray_ends(l, a);
}

bool load_audit(struct load *l)
{
	struct relay_call *rc;
	bool good;
	uint32_t i;

	if (!wait_for_all(l))
		return false;
	TAILQ_FOREACH(rc, &l->relays, link)
	{
		rc->own = 0;
		rc->there = 0;
	}
	for (i = 0; i < l->targets_n; i++) {
		struct target *t = &l->targets[i];

		if (t->kind == TARGET_KV)
			good = audit_kv(l, t);
		else
			good = t->kind == TARGET_LIMITER || audit_rows(l, t);
		if (!good)
			return false;
	}
	return true;
}

bool load_settle(struct load *l)
{
	uint32_t tries;

	if (!wait_for_all(l))
		return false;
	for (tries = 0; tries < SETTLE_TRIES && l->kept_n > 0; tries++) {
		uint32_t n = l->kept_n;

		while (n-- > 0) {
			struct request *q = l->kept[--l->kept_n];

			send_again(l, q);
			request_drop(q);
			if (!wait_for_all(l))
				return false;
		}
	}
	return true;
}

static const char *relay_wrong(const struct relay_call *rc)
{
	if (rc->late)
		return NULL;
	if (rc->there > 1 || rc->own > 1)
		return "took effect twice";
	if (rc->done > 0 && rc->there != 1)
		return "was acknowledged, and what it called shows nothing";
	if (rc->done > 0 && rc->rows && rc->own != 1)
		return "was acknowledged, and it shows nothing itself";
	if (rc->rows && rc->there > 0 && rc->own == 0)
		return "called with writes that were never committed";
	if (rc->done == 0 && !rc->unknown && (rc->there > 0 || rc->own > 0))
		return "was refused and took effect";
	return NULL;
}

static void judge_relays(struct load *l)
{
	struct relay_call *rc;
	const char *wrong;

	/* Of a damaged disk not every row was read. */
	if (l->r->over)
		return;
	TAILQ_FOREACH(rc, &l->relays, link)
	{
		l->r->tally.checked++;
		wrong = relay_wrong(rc);
		if (wrong != NULL)
			trial_breach(l->r, "relay",
				     "%s, run %" PRIu64 " to %s: %s (asked %u, "
				     "done %u, refused %u%s; own %" PRId64
				     ", there %" PRId64 ")",
				     rc->relay->address, rc->number,
				     rc->sink->address, wrong, rc->asked,
				     rc->done, rc->refused,
				     rc->unknown ? ", unknown" : "", rc->own,
				     rc->there);
	}
}

void load_judge(struct load *l)
{
	struct breach b = { { 0 }, { 0 } };
	struct op *op;
	enum verdict v;
	uint32_t i;

	/* Of a node that stays down. */
	TAILQ_FOREACH(op, &l->ops, link)
	note_end(op, CALL_UNKNOWN);

	for (i = 0; i < l->targets_n; i++) {
		struct target *t = &l->targets[i];

		v = VERDICT_GOOD;
		if (t->kv != NULL) {
			l->r->tally.checked += kv_history_calls(t->kv);
			v = kv_history_check(t->kv, &b);
		} else if (t->limiter != NULL) {
			l->r->tally.checked +=
				limiter_history_calls(t->limiter);
			v = limiter_history_check(t->limiter, &b);
		}
		l->r->tally.histories++;
		l->r->tally.undecided += v == VERDICT_UNDECIDED;
		if (v == VERDICT_BAD) {
			trial_breach(l->r, b.invariant, "%s", b.text);
			return;
		}
	}
	judge_relays(l);
}
