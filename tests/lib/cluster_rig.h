/*
 * cluster_rig - three or five whole cores in the seeded world, their links, and
 * callers of any of them.
 *
 * For tests of what nodes do together: forwarding, the directory, time. Header
 * only; one translation unit; stands on core_rig.h, whose calls and answers
 * (`struct told`) are the same here. A test begins with cluster_begin() and
 * ends with cluster_end(); nodes are numbered from 1, like their ids.
 */
#ifndef TESTS_LIB_CLUSTER_RIG_H
#define TESTS_LIB_CLUSTER_RIG_H

#include "node/core/directory.h"
#include "node/core/route.h"
#include "raft-glue/placement.h"
#include "tests/lib/core_rig.h"
#include "tests/sim/net.h"

struct cluster_node {
	struct core *core;
	struct bind *bind;
	struct directory *directory;
	bool ready;
	bool watching; /* It has its first copy of the directory. */
	bool closed;
};

struct cluster {
	struct net *net;
	unsigned n;
	uint32_t ttl_ms;
	struct member members[MEMBERS_MAX];
	struct grant grants[8];
	size_t grants_n;
	struct cluster_node at[MEMBERS_MAX + 1];
};

static struct cluster cl;

/* Other than SEGMENT_BYTES_MIN, for entries that are larger. */
static uint32_t cluster_segment_bytes = SEGMENT_BYTES_MIN;

static inline void cluster_seed_grant(const char *who, const char *tenant,
				      const char *env, const char *cls,
				      uint32_t rights)
{
	struct grant *g = &cl.grants[cl.grants_n++];

	CHECK(cl.grants_n <= ARRAY_LEN(cl.grants));
	*g = (struct grant){ .rights = rights };
	snprintf(g->principal, sizeof(g->principal), "%s", who);
	snprintf(g->tenant, sizeof(g->tenant), "%s", tenant);
	snprintf(g->env, sizeof(g->env), "%s", env);
	snprintf(g->cls, sizeof(g->cls), "%s", cls);
}

static inline void cluster_up(void *arg)
{
	*(bool *)arg = true;
}

static inline void cluster_boot(unsigned id)
{
	struct cluster_node *c = &cl.at[id];
	struct link *links[LINKS] = { net_link(cl.net, id - 1, LINK_RAFT),
				      net_link(cl.net, id - 1, LINK_BULK) };
	const struct directory_config dir = { .ttl_ms = cl.ttl_ms,
					      .grants = cl.grants,
					      .grants_n = cl.grants_n };
	struct detail why = { { 0 }, { 0 } };

	memset(c, 0, sizeof(*c));
	EXPECT_RC(bind_new(&c->bind), RC_OK);
	if (core_open(world_env(rig.w, id - 1), world_disk(rig.w, id - 1),
		      links, &rig.cfg, c->bind, cluster_up, &c->ready, &c->core,
		      &why) != RC_OK)
		FAIL("node %u: %s: %s", id, why.field, why.text);
	EXPECT_RC(directory_new(c->core, c->bind, &dir, cluster_up,
				&c->watching, &c->directory),
		  RC_OK);
	net_up(cl.net, id - 1);
}

static inline void cluster_format(unsigned id)
{
	struct identity one = rig.id;
	struct detail why = { { 0 }, { 0 } };

	one.node_id = id;
	snprintf(one.node_name, sizeof(one.node_name), "n%u", id);
	memcpy(one.incarnation, cl.members[id - 1].incarnation, ID_BYTES);
	if (core_format(world_disk(rig.w, id - 1), world_env(rig.w, id - 1),
			&one, cl.members, cl.n, &why) != RC_OK)
		FAIL("node %u: %s: %s", id, why.field, why.text);
}

/* Nobody is up yet. */
static inline void cluster_new(unsigned n, uint64_t seed)
{
	const struct net_config net = { .nodes = n,
					.delay_min_us = 50,
					.delay_max_us = 400,
					.bytes_per_us = 1000,
					.queue_bytes = PEER_OUT_BYTES_MAX,
					.dead_ms = 1200 };
	unsigned i;

	rig_new(seed);
	rig.id.segment_bytes = cluster_segment_bytes;
	memset(&cl, 0, sizeof(cl));
	cl.n = n;
	cl.net = net_new(rig.w, seed, &net, NULL);
	memset(rig.id.cluster_id, 7, ID_BYTES);
	memset(rig.id.hash_key, 9, ID_BYTES);
	for (i = 0; i < n; i++) {
		cl.members[i].id = i + 1;
		snprintf(cl.members[i].name, sizeof(cl.members[i].name), "n%u",
			 i + 1);
		memset(cl.members[i].incarnation, (int)(i + 1), ID_BYTES);
	}
	cluster_seed_grant("me", "default", "dev", "*",
			   RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	cluster_seed_grant("root", "holdfast", "system", "directory",
			   RIGHT_READ | RIGHT_ADMIN);
	for (i = 1; i <= n; i++)
		cluster_format(i);
}

static inline bool cluster_until(bool (*done)(void), uint64_t ms)
{
	uint64_t end = world_now_ms(rig.w) + ms;

	while (!done() && world_now_ms(rig.w) < end)
		world_run_until(rig.w, world_now_ms(rig.w) + 5);
	return done();
}

static inline void cluster_run(uint64_t ms)
{
	world_run_until(rig.w, world_now_ms(rig.w) + ms);
}

/* The node that owns `shard`, 0: none, or two think so. */
static inline unsigned cluster_owner(uint32_t shard)
{
	unsigned owner = 0;
	unsigned i;

	for (i = 1; i <= cl.n; i++) {
		if (cl.at[i].core == NULL ||
		    route_find(core_bridge(cl.at[i].core, shard)).to !=
			    ROUTE_HERE)
			continue;
		if (owner != 0)
			return 0;
		owner = i;
	}
	return owner;
}

/* Every shard has an owner that all living nodes know, and each of them has
 * its copy of the directory. */
static inline bool cluster_is_up(void)
{
	uint32_t s;
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (cl.at[i].core != NULL &&
		    (!cl.at[i].watching || !directory_good(cl.at[i].directory)))
			return false;
	for (s = 0; s < rig.id.shards; s++) {
		unsigned owner = cluster_owner(s);

		if (owner == 0)
			return false;
		for (i = 1; i <= cl.n; i++) {
			struct route r;

			if (cl.at[i].core == NULL)
				continue;
			r = route_find(core_bridge(cl.at[i].core, s));
			if (r.to == ROUTE_NOBODY || r.node_id != owner)
				return false;
		}
	}
	return true;
}

static inline void cluster_settle(void)
{
	if (!cluster_until(cluster_is_up, RIG_WAIT_MS))
		FAIL("the cluster does not come up");
}

static inline void cluster_begin(unsigned n, uint64_t seed)
{
	unsigned i;

	cluster_new(n, seed);
	for (i = 1; i <= n; i++)
		cluster_boot(i);
	cluster_settle();
}

static inline void cluster_kill(unsigned id)
{
	struct cluster_node *c = &cl.at[id];

	net_down(cl.net, id - 1, false);
	world_kill(rig.w, id - 1);
	core_discard(c->core);
	directory_free(c->directory);
	bind_free(c->bind);
	memset(c, 0, sizeof(*c));
}

static inline void cluster_closed(void *arg)
{
	struct cluster_node *c = arg;

	c->core = NULL;
	c->closed = true;
}

static inline void cluster_close(unsigned id)
{
	struct cluster_node *c = &cl.at[id];

	core_close(c->core, cluster_closed, c);
	if (!world_run_flag(rig.w, &c->closed, RIG_WAIT_MS))
		FAIL("node %u does not close", id);
	net_down(cl.net, id - 1, false);
	world_kill(rig.w, id - 1);
	directory_free(c->directory);
	bind_free(c->bind);
	memset(c, 0, sizeof(*c));
}

static inline void cluster_end(void)
{
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (cl.at[i].core != NULL)
			cluster_kill(i);
	net_free(cl.net);
	rig_end();
}

/* ---- calls ---- */

static inline struct told *cluster_start(unsigned id, const char *who,
					 const char *address,
					 const char *method, const char *args,
					 const char *options)
{
	struct told *t;

	CHECK(cl.at[id].core != NULL);
	rig.core = cl.at[id].core;
	t = rig_start(who, address, method, args, options);
	rig.core = NULL;
	return t;
}

static inline struct told *cluster_ask(unsigned id, const char *who,
				       const char *address, const char *method,
				       const char *args, const char *options)
{
	return rig_wait(cluster_start(id, who, address, method, args, options));
}

static inline void cluster_expect_ok(unsigned id, const char *who,
				     const char *address, const char *method,
				     const char *args, const char *want)
{
	struct told *t = cluster_ask(id, who, address, method, args, NULL);

	if (t->rc != RC_OK)
		FAIL("%s %s: %s: %s: %s", address, method, rc_name(t->rc),
		     t->why.field, t->why.text);
	EXPECT_STR(say_text(rig_result(t)), want);
}

/* The shard of an object of default/dev. */
static inline uint32_t cluster_shard(const char *cls, const char *name)
{
	struct oid oid;

	placement_id(rig.id.hash_key, rig_bytes("default"), rig_bytes("dev"),
		     rig_bytes(cls), rig_bytes(name), &oid);
	return placement_shard(rig.id.hash_key, &oid, rig.id.shards);
}

static inline void cluster_cut(unsigned a, unsigned b)
{
	net_cut(cl.net, a - 1, b - 1);
	net_cut(cl.net, b - 1, a - 1);
}

static inline void cluster_isolate(unsigned id)
{
	unsigned i;

	for (i = 1; i <= cl.n; i++)
		if (i != id)
			cluster_cut(id, i);
}

#endif
