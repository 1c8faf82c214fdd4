#include "node/core/core.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/core/bridge.h"
#include "node/core/internal.h"
#include "node/core/reserve.h"
#include "raft-glue/round.h"

#define CORE_MAGIC 0x434f5245u

/* How often the file system is asked for room, and how often per second a
 * tenant table may grow is nobody's business: tenants are configured. */
#define SPACE_EVERY_MS 100u
#define TENANTS_MAX    256u

/* What a tenant holds, per shard, so that a shard's share can be forgotten. */
struct usage {
	char tenant[TENANT_BYTES_MAX + 1];
	size_t tenant_n;
	int64_t objects;
	int64_t bytes;
	int64_t shard_objects[SHARDS_MAX];
	int64_t shard_bytes[SHARDS_MAX];
};

/* One bridge on its way out. */
struct leaving {
	struct core *core;
	uint32_t shard;
};

struct core {
	uint32_t magic;
	struct env *env;
	struct disk *disk;
	struct link *link;
	struct core_config cfg;
	struct bind *bind;
	struct identity id;
	struct ballot *ballot;
	struct log *log;
	struct rounds *rounds;
	struct residents *residents;
	struct call_table *calls;
	struct bridge *bridges[SHARDS_MAX];

	struct usage *usage;
	size_t usage_n;

	/* The room on the disk, asked for on the storage worker. */
	struct env_timer space_timer;
	struct env_job space_job;
	struct reserve reserve; /* The worker's while its job runs. */
	enum rc space_rc;
	bool space_low;

	uint64_t leading; /* A bit per shard that led once. */
	bool ready_told;
	void (*ready)(void *arg);
	void *ready_arg;

	uint32_t closing; /* Bridges that are still open. */
	struct leaving leaving[SHARDS_MAX];
	bool closing_begun;
	void (*closed)(void *arg);
	void *closed_arg;
};

void core_config_default(struct core_config *cfg)
{
	*cfg = (struct core_config){
		.calls_max = CALLS_MAX,
		.objects_max = OBJECTS_RESIDENT_MAX,
		.objects_bytes_max = OBJECTS_RESIDENT_BYTES_MAX,
		.object_idle_ms = OBJECT_IDLE_MS,
		.window_ms = WINDOW_MS,
		.window_bytes = WINDOW_BYTES_MAX,
		.log_bytes_max = LOG_BYTES_DEFAULT,
		.reserve_bytes = RESERVE_BYTES_DEFAULT,
		.tenant_objects_max = TENANT_OBJECTS_MAX,
		.tenant_bytes_max = TENANT_BYTES_MAX_DEFAULT,
		.election_ms = 300,
		.heartbeat_ms = 50,
	};
}

static struct log_config log_config_of(const struct identity *id,
				       uint64_t bytes_max)
{
	struct log_config c = { .shards = id->shards,
				.segment_bytes = id->segment_bytes,
				.bytes_max = bytes_max,
				.node_id = id->node_id };

	memcpy(c.cluster_id, id->cluster_id, ID_BYTES);
	return c;
}

static void any_file(void *arg, const char *name)
{
	bool *any = arg;

	(void)name;
	*any = true;
}

/* State is made after the identity: where there is some, there was a node. */
static enum rc make_state_dir(struct disk *disk, struct detail *why)
{
	bool any = false;
	enum rc rc = disk->ops->mkdir(disk, "state");

	if (rc == RC_EXISTS)
		rc = disk->ops->list(disk, "state", any_file, &any);
	if (rc == RC_OK && any)
		return detail_set(why, RC_EXISTS, NULL,
				  "the directory holds the state of a node: it "
				  "is not formatted again");
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot make state/");
	return RC_OK;
}

enum rc core_format(struct disk *disk, struct env *env, struct identity *id,
		    struct detail *why)
{
	struct log_config log_cfg;
	enum rc rc;

	if (id->shards == 0 || id->shards > SHARDS_MAX)
		return detail_set(why, RC_INVALID, "shards",
				  "a cluster has 1 to %u shards", SHARDS_MAX);
	if (id->segment_bytes < SEGMENT_BYTES_MIN ||
	    (id->segment_bytes & (id->segment_bytes - 1)) != 0)
		return detail_set(why, RC_INVALID, "log.segment_bytes",
				  "a segment is a power of two of at least %u "
				  "bytes",
				  SEGMENT_BYTES_MIN);
	env_random(env, id->cluster_id, ID_BYTES);
	env_random(env, id->incarnation, ID_BYTES);
	env_random(env, id->hash_key, ID_BYTES);
	log_cfg = log_config_of(id, 4ull * id->segment_bytes);
	rc = make_state_dir(disk, why);
	if (rc != RC_OK)
		return rc;
	rc = ballot_format(disk, id->shards, why);
	if (rc == RC_OK)
		rc = log_format(disk, &log_cfg, why);
	if (rc == RC_OK)
		rc = disk_sync_dir(disk, "");
	/* Last: a directory with an identity is whole. */
	if (rc == RC_OK)
		rc = identity_format(disk, env, id, why);
	return rc;
}

static enum rc core_open_bridges(struct core *core, struct detail *why)
{
	uint32_t i;
	enum rc rc;

	for (i = 0; i < core->id.shards; i++) {
		struct ballot_slot slot = ballot_get(core->ballot, i);
		struct bridge_config cfg = {
			.shard = { .shard = i,
				   .node_id = core->id.node_id,
				   .voters_n = 1,
				   .election_ms = core->cfg.election_ms,
				   .heartbeat_ms = core->cfg.heartbeat_ms,
				   .ballot = slot,
				   .ballot_good = true },
			.storage = { .shard = i,
				     .generation = slot.state_generation,
				     .window_ms = core->cfg.window_ms,
				     .window_bytes = core->cfg.window_bytes },
		};

		cfg.shard.voters[0].id = core->id.node_id;
		snprintf(cfg.shard.voters[0].address,
			 sizeof(cfg.shard.voters[0].address), "%s",
			 core->id.node_name);
		if (!ballot_good(core->ballot, i))
			return detail_set(
				why, RC_CORRUPT, "ballot",
				"term and vote of shard %" PRIu32
				" are unreadable in both copies; the only "
				"voter must not guess them (see `holdfast log "
				"verify`)",
				i);
		rc = bridge_open(core, core->env, core->disk, &cfg,
				 &core->bridges[i], why);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

static enum rc core_open_log(struct core *core, struct detail *why)
{
	struct log_config cfg =
		log_config_of(&core->id, core->cfg.log_bytes_max);
	uint64_t floors[SHARDS_MAX];
	uint32_t i;
	enum rc rc;

	cfg.reserve_bytes = core->cfg.reserve_bytes;
	for (i = 0; i < core->id.shards; i++)
		floors[i] = bridge_floor(core->bridges[i]);
	rc = log_open(core->env, core->disk, core->ballot, &cfg, floors,
		      &core->log, why);
	if (rc != RC_OK)
		return rc;
	rc = rounds_new(core->env, core->link, &core->rounds);
	for (i = 0; rc == RC_OK && i < core->id.shards; i++)
		rc = bridge_attach(core->bridges[i], core->log, core->link,
				   core->rounds, why);
	return rc;
}

static void space_asked(struct env_job *job)
{
	struct core *core = CONTAINER_OF(job, struct core, space_job);

	core->space_rc = reserve_look(&core->reserve);
}

/* Below this nothing that needs more room is taken on: what was taken on must
 * still reach the states. */
static uint64_t space_needed(const struct core *core)
{
	uint64_t n = core->cfg.reserve_bytes;
	uint32_t i;

	/* No log message each time when it is near the edge. */
	if (core->space_low)
		n += n / 4;
	for (i = 0; i < core->id.shards; i++)
		if (n > 0 && core->bridges[i] != NULL)
			n += storage_room(bridge_storage(core->bridges[i]));
	return n;
}

static void space_tell(struct core *core)
{
	uint64_t needed = space_needed(core);
	bool low = core->reserve.space.bytes_free < needed;

	if (low != core->space_low)
		LOG_WARN(low ? "disk_low" : "disk_room",
			 F("bytes_free", core->reserve.space.bytes_free),
			 F("needed", needed));
	core->space_low = low;
}

static void space_answered(struct env_job *job)
{
	struct core *core = CONTAINER_OF(job, struct core, space_job);

	CHECK_OBJ(core, CORE_MAGIC);
	if (core->closing_begun)
		return; /* Bridges go one by one. */
	if (core->space_rc == RC_OK)
		space_tell(core);
	env_timer_start(&core->space_timer,
			env_now_ms(core->env) + SPACE_EVERY_MS);
}

static void space_due(struct env_timer *t)
{
	struct core *core = CONTAINER_OF(t, struct core, space_timer);

	CHECK_OBJ(core, CORE_MAGIC);
	env_work(core->env, ENV_WORKER_STORAGE, &core->space_job);
}

enum rc core_open(struct env *env, struct disk *disk, struct link *link,
		  const struct core_config *cfg, struct bind *bind,
		  void (*ready)(void *arg), void *arg, struct core **out,
		  struct detail *why)
{
	struct core *core = calloc(1, sizeof(*core));
	const struct residents_config res = { .objects_max = cfg->objects_max,
					      .bytes_max =
						      cfg->objects_bytes_max,
					      .idle_ms = cfg->object_idle_ms };
	uint32_t i;
	enum rc rc;

	if (core == NULL)
		return RC_NOMEM;
	core->magic = CORE_MAGIC;
	core->env = env;
	core->disk = disk;
	core->link = link;
	core->cfg = *cfg;
	core->bind = bind;
	core->ready = ready;
	core->ready_arg = arg;
	core->space_job.run = space_asked;
	core->space_job.done = space_answered;
	env_timer_init(&core->space_timer, env, space_due);
	core->usage = calloc(TENANTS_MAX, sizeof(*core->usage));
	rc = core->usage == NULL ? RC_NOMEM : RC_OK;
	if (rc == RC_OK)
		rc = identity_open(disk, env, &core->id, why);
	if (rc == RC_OK)
		rc = reserve_open(&core->reserve, disk, cfg->reserve_bytes);
	if (rc == RC_OK)
		space_tell(core);
	if (rc == RC_OK)
		rc = ballot_open(disk, core->id.shards, &core->ballot, why);
	if (rc == RC_OK)
		rc = residents_new(env, &res, &core->residents);
	if (rc == RC_OK)
		rc = call_table_new(core, cfg->calls_max, &core->calls);
	if (rc == RC_OK)
		rc = core_open_bridges(core, why);
	if (rc == RC_OK)
		rc = core_open_log(core, why);
	if (rc != RC_OK) {
		core_discard(core);
		return rc;
	}
	for (i = 0; i < core->id.shards; i++)
		bridge_start(core->bridges[i]);
	env_timer_start(&core->space_timer, env_now_ms(env));
	*out = core;
	return RC_OK;
}

void core_leads(struct core *core, uint32_t shard)
{
	uint64_t all = core->id.shards == 64 ? UINT64_MAX
					     : (1ull << core->id.shards) - 1;

	core->leading |= 1ull << shard;
	if (core->leading == all && !core->ready_told) {
		core->ready_told = true;
		if (core->ready != NULL)
			core->ready(core->ready_arg);
	}
}

/* Tenants. */

static struct usage *usage_of(struct core *core, struct pack_bytes tenant)
{
	struct usage *u;
	size_t i;

	for (i = 0; i < core->usage_n; i++)
		if (pack_bytes_eq(tenant, core->usage[i].tenant,
				  core->usage[i].tenant_n))
			return &core->usage[i];
	if (core->usage_n == TENANTS_MAX || tenant.n > TENANT_BYTES_MAX)
		return NULL;
	u = &core->usage[core->usage_n++];
	memcpy(u->tenant, tenant.p, tenant.n);
	u->tenant_n = tenant.n;
	return u;
}

static void usage_add(struct usage *u, uint32_t shard, int64_t objects,
		      int64_t bytes)
{
	u->objects += objects;
	u->bytes += bytes;
	u->shard_objects[shard] += objects;
	u->shard_bytes[shard] += bytes;
}

enum rc core_admit(struct core *core, uint32_t shard, struct pack_bytes tenant,
		   int64_t objects, int64_t bytes, struct detail *why)
{
	struct usage *u = usage_of(core, tenant);

	if (u == NULL)
		return detail_set(why, RC_NO_SPACE, "tenant",
				  "the node counts at most %u tenants",
				  TENANTS_MAX);
	/* What shrinks a tenant is always let in. */
	if (objects > 0 &&
	    u->objects + objects > (int64_t)core->cfg.tenant_objects_max)
		return detail_set(why, RC_NO_SPACE, "tenant",
				  "tenant %s may have %" PRIu64 " objects",
				  u->tenant, core->cfg.tenant_objects_max);
	if (bytes > 0 && u->bytes + bytes > (int64_t)core->cfg.tenant_bytes_max)
		return detail_set(why, RC_NO_SPACE, "tenant",
				  "tenant %s may have %" PRIu64 " bytes",
				  u->tenant, core->cfg.tenant_bytes_max);
	if ((objects > 0 || bytes > 0) && core->space_low)
		return detail_set(why, RC_NO_SPACE, NULL,
				  "the disk is down to its reserve");
	usage_add(u, shard, objects, bytes);
	return RC_OK;
}

void core_book(struct core *core, uint32_t shard, struct pack_bytes tenant,
	       int64_t objects, int64_t bytes)
{
	struct usage *u = usage_of(core, tenant);

	if (u != NULL)
		usage_add(u, shard, objects, bytes);
}

void core_unbook(struct core *core, uint32_t shard)
{
	size_t i;

	for (i = 0; i < core->usage_n; i++) {
		struct usage *u = &core->usage[i];

		usage_add(u, shard, -u->shard_objects[shard],
			  -u->shard_bytes[shard]);
	}
}

/* The end. */

static void core_free(struct core *core)
{
	if (core->calls != NULL)
		call_table_free(core->calls);
	if (core->residents != NULL)
		residents_free(core->residents);
	if (core->ballot != NULL)
		ballot_close(core->ballot);
	free(core->usage);
	core->magic = 0;
	free(core);
}

static void log_closed(void *arg)
{
	struct core *core = arg;
	void (*closed)(void *) = core->closed;
	void *closed_arg = core->closed_arg;

	CHECK_OBJ(core, CORE_MAGIC);
	core->log = NULL;
	core_free(core);
	closed(closed_arg);
}

static void bridge_closed(void *arg)
{
	struct leaving *leaving = arg;
	struct core *core = leaving->core;

	CHECK_OBJ(core, CORE_MAGIC);
	/* A kill may still come. */
	core->bridges[leaving->shard] = NULL;
	if (--core->closing > 0)
		return;
	rounds_free(core->rounds);
	core->rounds = NULL;
	log_close(core->log, log_closed, core);
}

static void calls_ended(void *arg)
{
	struct core *core = arg;
	uint32_t i;

	CHECK_OBJ(core, CORE_MAGIC);
	core->closing = core->id.shards;
	for (i = 0; i < core->id.shards; i++) {
		core->leaving[i] = (struct leaving){ core, i };
		bridge_close(core->bridges[i], bridge_closed,
			     &core->leaving[i]);
	}
}

void core_drain(struct core *core)
{
	call_table_drain(core->calls);
}

void core_close(struct core *core, void (*closed)(void *arg), void *arg)
{
	PRE(!core->closing_begun);
	core->closing_begun = true;
	core->closed = closed;
	core->closed_arg = arg;
	env_timer_stop(&core->space_timer);
	core_drain(core);
	call_table_on_idle(core->calls, calls_ended, core);
}

bool core_is_closing(const struct core *core)
{
	return core->closing_begun;
}

void core_discard(struct core *core)
{
	uint32_t i;

	env_timer_stop(&core->space_timer);
	/* Objects first: they hold pointers into the calls. */
	for (i = 0; i < SHARDS_MAX; i++)
		if (core->bridges[i] != NULL)
			bridge_discard(core->bridges[i]);
	if (core->calls != NULL)
		call_table_discard(core->calls);
	core->calls = NULL;
	if (core->rounds != NULL)
		rounds_discard(core->rounds);
	if (core->log != NULL)
		log_discard(core->log);
	core_free(core);
}

const struct identity *core_identity(const struct core *core)
{
	return &core->id;
}

const struct bind *core_bind(const struct core *core)
{
	return core->bind;
}

struct log *core_log(struct core *core)
{
	return core->log;
}

uint32_t core_shards(const struct core *core)
{
	return core->id.shards;
}

struct bridge *core_bridge(struct core *core, uint32_t shard)
{
	PRE(shard < core->id.shards);
	return core->bridges[shard];
}

struct env *core_env(struct core *core)
{
	return core->env;
}

struct residents *core_residents(struct core *core)
{
	return core->residents;
}

struct call_table *core_calls(struct core *core)
{
	return core->calls;
}

void core_stats(const struct core *core, struct core_stats *out)
{
	call_table_stats(core->calls, out);
}
