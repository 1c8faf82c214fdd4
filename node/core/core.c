#include "node/core/core.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/core/bridge.h"
#include "node/core/forward.h"
#include "node/core/internal.h"
#include "node/core/reserve.h"
#include "raft-glue/round.h"

#define CORE_MAGIC 0x434f5245u

/* How often the file system is asked for room, and how often per second a
 * tenant table may grow is nobody's business: tenants are configured. */
#define SPACE_EVERY_MS 100u
#define TENANTS_MAX    256u

/* Leaderships are spread with one transfer per look; a shard stays for a while
 * where it has just come, so that two causes to move it cannot play ball. */
#define SPREAD_EVERY_MS 200u
#define SPREAD_STAY_MS  5000u
#define SPREAD_LAG_MAX  1024u
#define SPREAD_GONE_MS  2000u

/* One range of one shard's state at a time is compared with its hash: all of 16
 * shards within the hour. */
#define SCRUB_MS 10000u

/* How often a node that ends looks whether it still leads something. */
#define HAND_OVER_LOOK_MS 10u

/* What a tenant holds, per shard, so that a shard's share can be forgotten. */
struct usage {
	char tenant[TENANT_BYTES_MAX + 1];
	size_t tenant_n;
	int64_t objects;
	int64_t bytes;
	int64_t shard_objects[SHARDS_MAX];
	int64_t shard_bytes[SHARDS_MAX];
};

/* Of one shard: not to be handed over before. */
struct spread {
	uint64_t term;     /* Our leadership that this is of. */
	uint64_t after_ms; /* On env_now_ms. */
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
	struct core_config cfg;
	struct bind *bind;
	struct identity id;
	struct members *members;
	struct transport *transport;
	struct ballot *ballot;
	struct log *log;
	struct rounds *rounds;
	struct forwards *forwards;
	struct stamps *stamps; /* NULL: no peers. */
	struct residents *residents;
	struct call_table *calls;
	struct join join;
	struct bridge *bridges[SHARDS_MAX];

	struct usage *usage;
	size_t usage_n;

	/* The room on the disk, asked for on the storage worker. */
	struct env_timer space_timer;
	struct env_job space_job;
	struct reserve reserve; /* The worker's while its job runs. */
	enum rc space_rc;
	bool space_low;
	bool space_full;

	struct env_timer scrub_timer;
	uint32_t scrub_next; /* Shard. */
	struct env_timer hand_timer;
	uint64_t hand_until_ms;
	struct env_timer spread_timer;
	struct spread spread[SHARDS_MAX];

	struct env_task ready_task;
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
		.spread = true,
		.trailing_entries = TRAILING_ENTRIES,
		.checkpoint_bytes = STATE_WAL_BYTES_MAX,
		.scrub_ms = SCRUB_MS,
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

/* Nobody else has its shards. */
static bool core_alone(const struct core *core)
{
	return members_count(core->members) == 1;
}

static void core_up(struct env_task *t);
static void spread_due(struct env_timer *t);
static void hand_over_due(struct env_timer *t);
static void scrub_due(struct env_timer *t);

static void draw_if_zero(struct env *env, uint8_t id[ID_BYTES])
{
	static const uint8_t zero[ID_BYTES];

	if (memcmp(id, zero, ID_BYTES) == 0)
		env_random(env, id, ID_BYTES);
}

/* A node without others is its own only member. */
static struct member member_alone(const struct identity *id)
{
	struct member m = { .id = id->node_id };

	memcpy(m.name, id->node_name, sizeof(m.name));
	memcpy(m.incarnation, id->incarnation, ID_BYTES);
	return m;
}

static enum rc format(struct disk *disk, struct env *env, struct identity *id,
		      const struct member *members, size_t n, bool lost,
		      struct detail *why)
{
	struct member alone;
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
	draw_if_zero(env, id->cluster_id);
	draw_if_zero(env, id->incarnation);
	draw_if_zero(env, id->hash_key);
	if (n == 0) {
		alone = member_alone(id);
		members = &alone;
		n = 1;
	}
	log_cfg = log_config_of(id, 4ull * id->segment_bytes);
	rc = make_state_dir(disk, why);
	if (rc != RC_OK)
		return rc;
	rc = members_format(disk, members, n, why);
	if (rc == RC_OK)
		rc = lost ? ballot_format_lost(disk, id->shards, why)
			  : ballot_format(disk, id->shards, why);
	if (rc == RC_OK)
		rc = log_format(disk, &log_cfg, why);
	if (rc == RC_OK)
		rc = disk_sync_dir(disk, "");
	/* Last: a directory with an identity is whole. */
	if (rc == RC_OK)
		rc = identity_format(disk, env, id, why);
	return rc;
}

enum rc core_format(struct disk *disk, struct env *env, struct identity *id,
		    const struct member *members, size_t n, struct detail *why)
{
	return format(disk, env, id, members, n, false, why);
}

enum rc core_format_lost(struct disk *disk, struct env *env,
			 struct identity *id, const struct member *members,
			 size_t n, struct detail *why)
{
	PRE(n > 1);
	return format(disk, env, id, members, n, true, why);
}

static void voters_of(const struct core *core, struct shard_config *cfg)
{
	size_t i;

	cfg->voters_n = (uint32_t)members_count(core->members);
	for (i = 0; i < cfg->voters_n; i++) {
		const struct member *m = members_at(core->members, i);

		cfg->voters[i].id = m->id;
		snprintf(cfg->voters[i].address, sizeof(cfg->voters[i].address),
			 "%s", m->name);
	}
}

static enum rc core_open_bridge(struct core *core, uint32_t i,
				struct detail *why)
{
	struct ballot_slot slot = ballot_get(core->ballot, i);
	struct bridge_config cfg = {
		.shard = { .shard = i,
			   .node_id = core->id.node_id,
			   .election_ms = core->cfg.election_ms,
			   .heartbeat_ms = core->cfg.heartbeat_ms,
			   .trailing_entries = core->cfg.trailing_entries,
			   .ballot = slot,
			   .ballot_good = ballot_good(core->ballot, i) },
		.storage = { .shard = i,
			     .generation = slot.state_generation,
			     .window_ms = core->cfg.window_ms,
			     .window_bytes = core->cfg.window_bytes,
			     .wal_bytes_max = core->cfg.checkpoint_bytes },
	};
	struct detail bad = { { 0 }, { 0 } }; /* Of this shard alone. */
	enum rc rc;

	voters_of(core, &cfg.shard);
	if (!cfg.shard.ballot_good && core_alone(core))
		return detail_set(
			why, RC_CORRUPT, "ballot",
			"term and vote of shard %" PRIu32
			" are unreadable in both copies; the only "
			"voter must not guess them (see `holdfast log "
			"verify`)",
			i);
	rc = bridge_open(core, core->env, core->disk, &cfg, &core->bridges[i],
			 &bad);
	if (rc != RC_CORRUPT || core_alone(core)) {
		if (why != NULL && bad.text[0] != '\0')
			*why = bad;
		return rc;
	}
	/* Others have it: it is taken anew from a leader. */
	LOG_ERROR("state_bad", F("shard", i), F("why", (const char *)bad.text));
	cfg.storage.absent = true;
	cfg.shard.state_bad = true;
	return bridge_open(core, core->env, core->disk, &cfg, &core->bridges[i],
			   why);
}

static enum rc core_open_bridges(struct core *core, struct detail *why)
{
	uint32_t i;
	enum rc rc;

	for (i = 0; i < core->id.shards; i++) {
		rc = core_open_bridge(core, i, why);
		if (rc != RC_OK)
			return rc;
	}
	return RC_OK;
}

static struct shard *core_find_shard(void *arg, uint32_t shard)
{
	struct core *core = arg;

	CHECK_OBJ(core, CORE_MAGIC);
	if (shard >= core->id.shards || core->bridges[shard] == NULL)
		return NULL;
	return bridge_shard(core->bridges[shard]);
}

/* What the voters tell each other of the time. */

static uint64_t stamps_now(void *arg, uint32_t shard)
{
	struct core *core = arg;
	const struct bridge *b = core->bridges[shard];

	return b != NULL ? bridge_now_ns(b) : 0;
}

static void stamps_last(void *arg, uint32_t shard, uint64_t *stamp_ns,
			uint64_t *wall_ms)
{
	struct core *core = arg;
	struct bridge *b = core->bridges[shard];

	*stamp_ns = b != NULL ? storage_stamp(bridge_storage(b)) : 0;
	*wall_ms = b != NULL ? storage_wall(bridge_storage(b)) : 0;
}

static void stamps_told(void *arg, uint32_t shard, uint64_t term)
{
	struct core *core = arg;

	if (core->bridges[shard] != NULL)
		bridge_stamped(core->bridges[shard], term);
}

static enum rc core_open_stamps(struct core *core)
{
	const struct stamps_host host = { .now = stamps_now,
					  .last = stamps_last,
					  .ready = stamps_told,
					  .arg = core };

	if (core_alone(core))
		return RC_OK;
	return stamps_new(core->env, core->transport, core->id.shards,
			  core->cfg.heartbeat_ms, &host, &core->stamps);
}

/* A directory that was formatted before there were members is a lone node's. */
static enum rc core_open_members(struct core *core, struct detail *why)
{
	struct member alone;
	enum rc rc = members_open(core->env, core->disk, &core->id,
				  &core->members, why);

	if (rc != RC_NOT_FOUND)
		return rc;
	alone = member_alone(&core->id);
	rc = members_format(core->disk, &alone, 1, why);
	if (rc == RC_OK)
		rc = members_open(core->env, core->disk, &core->id,
				  &core->members, why);
	return rc;
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
	rc = rounds_new(core->env, core->transport, core_find_shard, core,
			&core->rounds);
	for (i = 0; rc == RC_OK && i < core->id.shards; i++)
		rc = bridge_attach(core->bridges[i], core->log, core->transport,
				   core->rounds, why);
	return rc;
}

static void space_asked(struct env_job *job)
{
	struct core *core = CONTAINER_OF(job, struct core, space_job);

	core->space_rc = reserve_look(&core->reserve);
}

/* Below this nothing that needs more room is taken on: what was taken on must
 * still reach the states. `was`: no log message each time when it is near the
 * edge. */
static uint64_t space_needed(const struct core *core, bool was)
{
	uint64_t n = core->cfg.reserve_bytes;
	uint32_t i;

	if (was)
		n += n / 4;
	if (n > 0 && core->log != NULL && !MUTANT(second_segment_uncounted))
		n += log_room(core->log);
	for (i = 0; i < core->id.shards; i++)
		if (n > 0 && core->bridges[i] != NULL)
			n += storage_room(bridge_storage(core->bridges[i]));
	return n;
}

/* What still has to reach the main file needs no room once it has. */
static void space_flush(struct bridge *b)
{
	struct storage *st = bridge_storage(b);
	struct shard_view view;

	shard_view(bridge_shard(b), &view);
	if (view.health == SHARD_WHOLE && storage_room(st) > 0 &&
	    !storage_checkpointing(st))
		storage_checkpoint(st);
}

/* A voter that owners with more room fill up must not die of it: when half of
 * the reserve is gone it takes no more. The other half is for what it has. */
static void space_tell_shards(struct core *core)
{
	uint64_t needed = space_needed(core, core->space_full) -
			  core->cfg.reserve_bytes / 2;
	bool full = core->reserve.space.bytes_free < needed;
	uint32_t i;

	if (full != core->space_full)
		LOG_WARN(full ? "disk_full" : "disk_not_full",
			 F("bytes_free", core->reserve.space.bytes_free),
			 F("needed", needed));
	core->space_full = full;
	for (i = 0; i < core->id.shards; i++) {
		if (core->bridges[i] == NULL)
			continue;
		shard_room(bridge_shard(core->bridges[i]), core->space_low,
			   full);
		if (full)
			space_flush(core->bridges[i]);
	}
}

static void space_tell(struct core *core)
{
	uint64_t needed = space_needed(core, core->space_low);
	bool low = core->reserve.space.bytes_free < needed;

	if (low != core->space_low)
		LOG_WARN(low ? "disk_low" : "disk_room",
			 F("bytes_free", core->reserve.space.bytes_free),
			 F("needed", needed));
	core->space_low = low;
	space_tell_shards(core);
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

enum rc core_open(struct env *env, struct disk *disk,
		  struct link *const links[LINKS],
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
	core->cfg = *cfg;
	core->bind = bind;
	core->ready = ready;
	core->ready_arg = arg;
	core->space_job.run = space_asked;
	core->space_job.done = space_answered;
	core->ready_task.cb = core_up;
	core->ready_task.phase = ENV_PHASE_RELEASE;
	env_timer_init(&core->space_timer, env, space_due);
	env_timer_init(&core->spread_timer, env, spread_due);
	env_timer_init(&core->hand_timer, env, hand_over_due);
	env_timer_init(&core->scrub_timer, env, scrub_due);
	core->usage = calloc(TENANTS_MAX, sizeof(*core->usage));
	rc = core->usage == NULL ? RC_NOMEM : RC_OK;
	if (rc == RC_OK)
		rc = identity_open(disk, env, &core->id, why);
	if (rc == RC_OK)
		rc = core_open_members(core, why);
	if (rc == RC_OK)
		rc = transport_new(env, links != NULL ? links[LINK_RAFT] : NULL,
				   links != NULL ? links[LINK_BULK] : NULL,
				   core->members, &core->transport);
	if (rc == RC_OK)
		rc = forwards_new(core, core->transport, &core->forwards);
	if (rc == RC_OK)
		rc = core_open_stamps(core);
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
	space_tell(core);
	for (i = 0; i < core->id.shards; i++)
		bridge_start(core->bridges[i]);
	env_timer_start(&core->space_timer, env_now_ms(env));
	env_timer_start(&core->scrub_timer, env_now_ms(env) + cfg->scrub_ms);
	if (!core_alone(core)) {
		/* Whether others are there or not: it says so to who asks. */
		env_post(env, &core->ready_task);
		call_table_watch(core->calls);
		if (cfg->spread)
			env_timer_start(&core->spread_timer,
					env_now_ms(env) + SPREAD_EVERY_MS);
	}
	*out = core;
	return RC_OK;
}

static void core_tell_ready(struct core *core)
{
	if (core->ready_told)
		return;
	core->ready_told = true;
	if (core->ready != NULL)
		core->ready(core->ready_arg);
}

static void core_up(struct env_task *t)
{
	struct core *core = CONTAINER_OF(t, struct core, ready_task);

	CHECK_OBJ(core, CORE_MAGIC);
	core_tell_ready(core);
}

void core_leads(struct core *core, uint32_t shard)
{
	uint64_t all = core->id.shards == 64 ? UINT64_MAX
					     : (1ull << core->id.shards) - 1;

	core->leading |= 1ull << shard;
	call_table_look(core->calls);
	if (core->leading == all)
		core_tell_ready(core);
}

/* Leaderships: shard i belongs to the i-th member, round about; while that one
 * is gone, to the next. */

enum spread_fit { SPREAD_FIT, SPREAD_LATER, SPREAD_GONE };

static enum spread_fit spread_peer(const struct core *core,
				   const struct shard *s, uint64_t id,
				   uint64_t now_ms)
{
	struct shard_view view;
	uint32_t i;

	shard_view(s, &view);
	if (view.health != SHARD_WHOLE || view.transferee != 0)
		return SPREAD_LATER;
	for (i = 0; i < view.peers_n; i++) {
		const struct shard_peer *p = &view.peers[i];

		if (p->node_id != id)
			continue;
		if (p->refused || p->heard_ms + SPREAD_GONE_MS < now_ms ||
		    (p->low && !MUTANT(full_disk_leads)))
			return SPREAD_GONE;
		if (p->streaming ||
		    p->match + SPREAD_LAG_MAX < shard_last_index(s) ||
		    p->heard_ms + 2u * core->cfg.heartbeat_ms + 50u < now_ms)
			return SPREAD_LATER;
		return SPREAD_FIT;
	}
	return SPREAD_GONE;
}

/* Who should lead it; 0: who does. */
static uint64_t spread_home(const struct core *core, const struct shard *s,
			    uint32_t shard, uint64_t now_ms)
{
	size_t n = members_count(core->members);
	size_t i;

	for (i = 0; i < n; i++) {
		uint64_t id = members_at(core->members, (shard + i) % n)->id;

		if (id == core->id.node_id) {
			/* Others may have room, and take what grows. */
			if (core->space_low && !MUTANT(full_disk_leads))
				continue;
			return 0;
		}
		switch (spread_peer(core, s, id, now_ms)) {
		case SPREAD_FIT:
			return id;
		case SPREAD_LATER:
			return 0;
		case SPREAD_GONE:
			break;
		}
	}
	return 0;
}

static bool spread_one(struct core *core, uint32_t i, uint64_t now_ms)
{
	struct shard *s = bridge_shard(core->bridges[i]);
	struct spread *sp = &core->spread[i];
	uint64_t home;
	uint64_t term;

	if (!shard_leads(s, &term))
		return false;
	if (sp->term != term) {
		*sp = (struct spread){ term, now_ms + SPREAD_STAY_MS };
		return false;
	}
	/* From a disk that is low it goes at once: what grows is refused. */
	if (now_ms < sp->after_ms && !core->space_low)
		return false;
	home = spread_home(core, s, i, now_ms);
	if (home == 0)
		return false;
	sp->after_ms = now_ms + SPREAD_STAY_MS;
	return bridge_transfer(core->bridges[i], home) == RC_OK;
}

static void spread_due(struct env_timer *t)
{
	struct core *core = CONTAINER_OF(t, struct core, spread_timer);
	uint64_t now_ms = env_now_ms(core->env);
	uint32_t i;

	CHECK_OBJ(core, CORE_MAGIC);
	if (core->closing_begun)
		return;
	for (i = 0; i < core->id.shards; i++)
		if (spread_one(core, i, now_ms))
			break;
	env_timer_start(&core->spread_timer, now_ms + SPREAD_EVERY_MS);
}

static void scrub_due(struct env_timer *t)
{
	struct core *core = CONTAINER_OF(t, struct core, scrub_timer);

	CHECK_OBJ(core, CORE_MAGIC);
	if (core->closing_begun)
		return;
	core->scrub_next = (core->scrub_next + 1) % core->id.shards;
	bridge_scrub(core->bridges[core->scrub_next]);
	env_timer_start(t, env_now_ms(core->env) + core->cfg.scrub_ms);
}

enum rc core_transfer(struct core *core, uint32_t shard, uint64_t to)
{
	PRE(shard < core->id.shards);
	if (core->bridges[shard] == NULL)
		return RC_NOT_LEADER;
	return bridge_transfer(core->bridges[shard], to);
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
	if ((objects > 0 || bytes > 0) && core->space_low &&
	    !MUTANT(reserve_unwatched))
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
	if (core->stamps != NULL)
		stamps_free(core->stamps);
	if (core->forwards != NULL)
		forwards_free(core->forwards);
	if (core->transport != NULL)
		transport_free(core->transport);
	if (core->calls != NULL)
		call_table_free(core->calls);
	if (core->residents != NULL)
		residents_free(core->residents);
	if (core->ballot != NULL)
		ballot_close(core->ballot);
	join_release(&core->join);
	free(core->usage);
	core->magic = 0;
	free(core);
}

static void members_closed(void *arg)
{
	struct core *core = arg;
	void (*closed)(void *) = core->closed;
	void *closed_arg = core->closed_arg;

	CHECK_OBJ(core, CORE_MAGIC);
	core->members = NULL;
	core_free(core);
	closed(closed_arg);
}

static void log_closed(void *arg)
{
	struct core *core = arg;

	CHECK_OBJ(core, CORE_MAGIC);
	core->log = NULL;
	members_close(core->members, members_closed, core);
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

/* True while this node leads a shard that another could. */
static bool hand_over(struct core *core)
{
	bool any = false;
	uint64_t term;
	uint32_t i;

	for (i = 0; i < core->id.shards; i++) {
		struct shard *s = bridge_shard(core->bridges[i]);

		if (!shard_leads(s, &term))
			continue;
		any = true;
		/* One that is under way, or has nobody to go to, is asked again
		 * at the next look. */
		(void)bridge_transfer(core->bridges[i], 0);
	}
	return any;
}

/* What is handed over is led elsewhere a round trip later; what is not, after
 * an election timeout. Calls that come meanwhile are forwarded. */
static void hand_over_due(struct env_timer *t)
{
	struct core *core = CONTAINER_OF(t, struct core, hand_timer);
	uint64_t now_ms = env_now_ms(core->env);

	CHECK_OBJ(core, CORE_MAGIC);
	if (!core_alone(core) && now_ms < core->hand_until_ms &&
	    hand_over(core)) {
		env_timer_start(t, now_ms + HAND_OVER_LOOK_MS);
		return;
	}
	core_drain(core);
	call_table_on_idle(core->calls, calls_ended, core);
}

void core_close(struct core *core, void (*closed)(void *arg), void *arg)
{
	PRE(!core->closing_begun);
	core->closing_begun = true;
	core->closed = closed;
	core->closed_arg = arg;
	env_timer_stop(&core->space_timer);
	env_timer_stop(&core->spread_timer);
	env_timer_stop(&core->scrub_timer);
	core->hand_until_ms =
		env_now_ms(core->env) + 2u * core->cfg.election_ms;
	hand_over_due(&core->hand_timer);
}

bool core_is_closing(const struct core *core)
{
	return core->closing_begun;
}

void core_discard(struct core *core)
{
	uint32_t i;

	env_timer_stop(&core->space_timer);
	env_timer_stop(&core->spread_timer);
	env_timer_stop(&core->scrub_timer);
	env_timer_stop(&core->hand_timer);
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
	if (core->stamps != NULL)
		stamps_free(core->stamps);
	core->stamps = NULL;
	if (core->forwards != NULL)
		forwards_free(core->forwards);
	core->forwards = NULL;
	if (core->transport != NULL)
		transport_discard(core->transport);
	core->transport = NULL;
	if (core->members != NULL)
		members_discard(core->members);
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

struct transport *core_transport(struct core *core)
{
	return core->transport;
}

const struct members *core_members(const struct core *core)
{
	return core->members;
}

struct stamps *core_stamps(struct core *core)
{
	return core->stamps;
}

struct join *core_join(struct core *core)
{
	return &core->join;
}

struct forwards *core_forwards(struct core *core)
{
	return core->forwards;
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
	if (core->rounds != NULL)
		out->rounds = rounds_count(core->rounds);
}
