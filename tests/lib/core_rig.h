/*
 * core_rig - a node's core in the seeded world, and callers of it.
 *
 * For tests of node/core/ and what stands on it: real shards, log, storage and
 * classes behind a simulated env and disk. Header only; one translation unit.
 * A test begins with rig_begin() and ends with rig_end(); in between the node
 * may be closed, killed, cut off from power and booted again.
 */
#ifndef TESTS_LIB_CORE_RIG_H
#define TESTS_LIB_CORE_RIG_H

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/core/bridge.h"
#include "node/core/call.h"
#include "objects/db_vfs.h"
#include "tests/lib/say.h"
#include "tests/sim/world.h"

#define RIG_NODE_NAME "n1"
#define RIG_WAIT_MS   120000u

/* A call on its way, and its answer. */
struct told {
	bool done;
	struct call *call; /* NULL: it was not taken. */
	enum rc rc;
	enum outcome outcome;
	struct detail why; /* As a client hears it: with rc.tbl's text. */
	int64_t retry_after_ms;
	uint64_t request_id;
	uint64_t owner;
	uint8_t *result;
	size_t result_n;
	uint64_t at_ms; /* World time of its end. */
	unsigned answers;
	struct told *next;
};

struct rig {
	struct world *w;
	struct core_config cfg;
	struct identity id;
	struct bind *bind;
	struct core *core;
	struct told *all;
	bool ready;
	bool closed;
	unsigned answered;
};

static struct rig rig;

/* Around what the rig itself allocates: fault_hold and fault_release of
 * tests/lib/fault.h, in tests that let allocations fail. */
static void (*rig_hold)(void);
static void (*rig_release)(void);

static inline void rig_own(bool on)
{
	void (*f)(void) = on ? rig_hold : rig_release;

	if (f != NULL)
		f();
}

static inline struct pack_bytes rig_bytes(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static inline void rig_grant(const char *who, const char *tenant,
			     const char *env, const char *cls,
			     const char *prefix, uint32_t rights)
{
	struct grant g = { .rights = rights };
	struct detail why = { { 0 }, { 0 } };

	snprintf(g.principal, sizeof(g.principal), "%s", who);
	snprintf(g.tenant, sizeof(g.tenant), "%s", tenant);
	snprintf(g.env, sizeof(g.env), "%s", env);
	snprintf(g.cls, sizeof(g.cls), "%s", cls);
	snprintf(g.prefix, sizeof(g.prefix), "%s", prefix);
	if (bind_grant(rig.bind, &g, &why) != RC_OK)
		FAIL("grant: %s", why.text);
}

static inline void rig_ready(void *arg)
{
	struct rig *r = arg;

	r->ready = true;
}

static inline enum rc rig_open(struct detail *why)
{
	rig.ready = false;
	rig.closed = false;
	rig.core = NULL;
	return core_open(world_env(rig.w, 0), world_disk(rig.w, 0), NULL,
			 &rig.cfg, rig.bind, rig_ready, &rig, &rig.core, why);
}

static inline void rig_boot(void)
{
	struct detail why = { { 0 }, { 0 } };

	if (rig_open(&why) != RC_OK)
		FAIL("core_open: %s: %s", why.field, why.text);
	if (!world_run_flag(rig.w, &rig.ready, RIG_WAIT_MS))
		FAIL("the node does not become ready");
}

static inline void rig_random(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)world_random(arg, 256);
}

/* An empty world with one caller, `me`, who may do everything in default/dev.
 */
static inline void rig_new(uint64_t seed)
{
	EXPECT_RC(crypto_init(), RC_OK);
	memset(&rig, 0, sizeof(rig));
	rig.w = world_new(seed);
	db_vfs_seed(rig_random, rig.w);
	core_config_default(&rig.cfg);
	rig.cfg.calls_max = 256;
	rig.id = (struct identity){ .node_id = 1,
				    .shards = 4,
				    .segment_bytes = SEGMENT_BYTES_MIN };
	snprintf(rig.id.node_name, sizeof(rig.id.node_name), "%s",
		 RIG_NODE_NAME);
	EXPECT_RC(bind_new(&rig.bind), RC_OK);
	rig_grant("me", "default", "dev", "*", "",
		  RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
}

static inline void rig_format(void)
{
	struct detail why = { { 0 }, { 0 } };

	if (core_format(world_disk(rig.w, 0), world_env(rig.w, 0), &rig.id,
			NULL, 0, &why) != RC_OK)
		FAIL("core_format: %s: %s", why.field, why.text);
}

static inline void rig_begin(uint64_t seed)
{
	rig_new(seed);
	rig_format();
	rig_boot();
}

static inline void rig_core_closed(void *arg)
{
	struct rig *r = arg;

	r->closed = true;
	r->core = NULL;
}

/* A clean end. The node may be booted again. */
static inline void rig_close(void)
{
	core_close(rig.core, rig_core_closed, &rig);
	if (!world_run_flag(rig.w, &rig.closed, 10 * RIG_WAIT_MS))
		FAIL("the core does not close");
	world_kill(rig.w, 0);
}

static inline void rig_kill(void)
{
	world_kill(rig.w, 0);
	core_discard(rig.core);
	rig.core = NULL;
}

static inline void rig_power_cut(void)
{
	world_power_cut(rig.w, 0);
	core_discard(rig.core);
	rig.core = NULL;
}

static inline void rig_forget_calls(void)
{
	struct told *t = rig.all;
	struct told *next;

	for (; t != NULL; t = next) {
		next = t->next;
		free(t->result);
		free(t);
	}
	rig.all = NULL;
}

static inline void rig_end(void)
{
	if (rig.core != NULL)
		rig_close();
	rig_forget_calls();
	bind_free(rig.bind);
	world_free(rig.w);
	memset(&rig, 0, sizeof(rig));
}

/* ---- calls ---- */

static inline void rig_reply(void *arg, const struct answer *a)
{
	struct told *t = arg;

	t->answers++;
	EXPECT_UINT(t->answers, 1);
	t->done = true;
	t->call = NULL;
	t->rc = a->rc;
	t->outcome = a->outcome;
	if (a->why != NULL)
		t->why = *a->why;
	if (t->why.text[0] == '\0')
		snprintf(t->why.text, sizeof(t->why.text), "%s",
			 rc_text(a->rc));
	t->retry_after_ms = a->retry_after_ms;
	t->request_id = a->request_id;
	t->owner = a->owner;
	if (a->rc == RC_OK) {
		rig_own(true);
		t->result = malloc(a->result.n + 1);
		rig_own(false);
		memcpy(t->result, a->result.p, a->result.n);
		t->result_n = a->result.n;
	}
	t->at_ms = world_now_ms(rig.w);
	rig.answered++;
}

/* A call with `params` as they come from the wire. Lives until rig_end(). */
static inline struct told *rig_send(const char *who, struct pack_bytes params)
{
	struct caller caller = { .tenant = rig_bytes("default"),
				 .env = rig_bytes("dev") };
	struct told *t;
	struct call *c;

	rig_own(true);
	t = calloc(1, sizeof(*t));
	rig_own(false);
	if (t == NULL)
		FAIL("no memory");
	caller.principal = rig_bytes(who);
	t->next = rig.all;
	rig.all = t;
	c = call_start(rig.core, &caller, params, rig_reply, t);
	EXPECT_FALSE(t->done); /* Never from inside. */
	t->call = c;
	if (c != NULL)
		t->request_id = call_request_id(c);
	return t;
}

/* `args` and `options` as text (tests/lib/say.h); NULL options: none are sent.
 */
static inline struct told *rig_start(const char *who, const char *address,
				     const char *method, const char *args,
				     const char *options)
{
	struct told *t;
	struct pack_w w;

	rig_own(true);
	pack_w_init(&w, 64u << 20);
	pack_array(&w, options != NULL ? 4 : 3);
	pack_cstr(&w, address);
	pack_cstr(&w, method);
	say_pack(&w, args);
	if (options != NULL)
		say_pack(&w, options);
	rig_own(false);
	EXPECT_RC(w.rc, RC_OK);
	t = rig_send(who, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return t;
}

static inline struct told *rig_wait(struct told *t)
{
	if (t->call == NULL && !t->done)
		FAIL("the call was not taken");
	if (!world_run_flag(rig.w, &t->done, RIG_WAIT_MS))
		FAIL("a call does not end");
	return t;
}

static inline struct told *rig_ask(const char *address, const char *method,
				   const char *args, const char *options)
{
	return rig_wait(rig_start("me", address, method, args, options));
}

static inline struct pack_bytes rig_result(const struct told *t)
{
	return (struct pack_bytes){ t->result, t->result_n };
}

static inline void rig_expect_ok(const char *address, const char *method,
				 const char *args, const char *want)
{
	struct told *t = rig_ask(address, method, args, NULL);

	if (t->rc != RC_OK)
		FAIL("%s %s %s: %s: %s: %s", address, method, args,
		     rc_name(t->rc), t->why.field, t->why.text);
	if (strcmp(say_text(rig_result(t)), want) != 0)
		FAIL("%s %s %s gave %s, expected %s", address, method, args,
		     say_text(rig_result(t)), want);
}

/* Every entry that any shard was given so far: nothing is written without it
 * going up. */
static inline uint64_t rig_entries(void)
{
	uint64_t sum = 0;
	uint32_t i;

	for (i = 0; i < core_shards(rig.core); i++)
		sum += shard_last_index(bridge_shard(core_bridge(rig.core, i)));
	return sum;
}

/* World time goes on. */
static inline void rig_pass(uint64_t ms)
{
	world_run_until(rig.w, world_now_ms(rig.w) + ms);
}

#endif
