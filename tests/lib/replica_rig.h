/*
 * replica_rig - one shard on three or five nodes in the seeded world: real log,
 * ballot, members, transport and shard; links in memory (fake_link.h), without
 * latency; an app so small that every loss shows.
 *
 * A state is a chained hash of all entries. What any node applies at an index
 * is remembered outside and must be the same everywhere; what a leader told
 * committed must be there at the end; two leaders in a term are noted at once.
 * The first thing that is wrong stays in `wrong`. Header only.
 */
#ifndef TESTS_LIB_REPLICA_RIG_H
#define TESTS_LIB_REPLICA_RIG_H

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/identity.h"
#include "raft-glue/shard.h"
#include "tests/lib/fake_link.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define CR_NODES     5u
#define CR_INDEX_MAX 200000u
#define CR_TERM_MAX  4096u
#define CR_SHARD     1u
#define CR_MAGIC     0x63724d61u
#define CR_HEAD      8192u

struct cr_saved {
	uint32_t magic;
	uint32_t conf_bytes;
	uint64_t counter;
	uint64_t index;
	uint64_t term;
	uint64_t conf_index;
	uint64_t chain;
	uint8_t conf[256];
	uint64_t sum;
};

struct cluster;

struct cr_node {
	struct cluster *c;
	unsigned i; /* Of the world; id i + 1. */
	bool up;
	struct env *env;
	struct disk *disk;
	struct identity id;
	struct ballot *ballot;
	struct log *log;
	struct members *members;
	struct transport *transport;
	struct shard *shard;
	struct app app;
	/* The state. */
	uint64_t generation;
	struct disk_file *file;
	bool state_bad;
	bool hoards; /* It saves no state. */
	struct cr_saved now;
	struct cr_saved saving;
	struct env_job save;
	bool saving_now;
	uint64_t saved_index;
	/* Export. */
	bool exporting;
	bool export_ready;
	struct cr_saved exported;
	uint8_t *piece;
	struct env_job read;
	uint64_t read_at;
	uint32_t read_n;
	/* Stage. */
	struct snapshot staged;
	struct cr_saved staged_state;
	struct disk_file *stage_file;
	uint8_t stage_conf[256];
	struct env_job stage;
	enum { CR_STAGE_IDLE, CR_STAGE_WRITE, CR_STAGE_END } staging;
	bool stage_dropped; /* The job that runs is of one that was dropped. */
	bool stage_waits;   /* The first write of the next. */
	uint64_t stage_at;
	uint8_t *stage_p;
	uint8_t *stage_next;
	uint32_t stage_n;
	uint32_t stage_next_n;
	enum rc stage_rc;
	struct env_job change;
	uint64_t change_to;
	/* The leader's part. */
	uint64_t leads;
	uint64_t elected;
	unsigned feed;
	uint32_t feed_bytes;
	uint64_t value;
	unsigned collected;
	uint64_t submitted;
	uint64_t refused;
	bool closed;
	unsigned applied_here;
	unsigned checkpoints;
};

struct cluster {
	struct world *w;
	struct fake_net net;
	unsigned n;
	uint32_t filler; /* Of a state file. */
	uint32_t bytes;  /* Of an entry. */
	struct cr_node node[CR_NODES];
	struct log_config log_cfg;
	uint32_t election_ms;
	/* What is known outside. */
	struct {
		uint64_t term;
		uint64_t chain;
	} * history;        /* By index. */
	uint64_t last;      /* The highest index applied anywhere. */
	uint64_t committed; /* The highest that a leader has told. */
	uint64_t leader_of[CR_TERM_MAX];
	uint64_t values;
	bool held_links[CR_NODES][CR_NODES];
	char wrong[256];
};

static inline void cr_wrong(struct cluster *c, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
static inline void cr_wrong(struct cluster *c, const char *fmt, ...)
{
	va_list ap;

	if (c->wrong[0] != '\0')
		return;
	va_start(ap, fmt);
	(void)vsnprintf(c->wrong, sizeof(c->wrong), fmt, ap);
	va_end(ap);
}

static inline uint64_t cr_hash(uint64_t chain, const void *p, size_t n)
{
	uint8_t k[HASH_KEY_BYTES] = { 0 };

	memcpy(k, &chain, sizeof(chain));
	return crypto_siphash(k, p, n);
}

/* ---- the state file ---- */

static inline uint64_t cr_sum(const struct cr_saved *s)
{
	return cr_hash(7, s, offsetof(struct cr_saved, sum));
}

static inline void cr_name(uint64_t generation, char name[32])
{
	(void)snprintf(name, 32, "state-%llu", (unsigned long long)generation);
}

static inline void cr_save_run(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, save);
	struct cr_saved *s = &n->saving;

	s->magic = CR_MAGIC;
	s->counter++;
	s->sum = cr_sum(s);
	if (disk_write(n->file, s, sizeof(*s), (s->counter & 1) * 4096) !=
		    RC_OK ||
	    disk_sync(n->file) != RC_OK)
		s->magic = 0;
}

static inline void cr_export_ready(struct cr_node *n);

static inline void cr_save_done(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, save);

	n->saving_now = false;
	if (n->saving.magic == 0) {
		env_fail_stop(n->env, "the state could not be written");
		return;
	}
	n->now.counter = n->saving.counter;
	n->saved_index = n->saving.index;
	if (n->shard != NULL && shard_applied_index(n->shard) >= n->saved_index)
		shard_checkpointed(n->shard, n->saved_index);
	if (n->exporting && !n->export_ready)
		cr_export_ready(n);
}

static inline void cr_save(struct cr_node *n)
{
	if (n->saving_now || n->state_bad || n->hoards || n->file == NULL)
		return;
	n->saving_now = true;
	n->saving = n->now;
	env_work(n->env, ENV_WORKER_STORAGE, &n->save);
}

static inline void cr_state_hash(const struct cr_saved *s, uint8_t hash[16])
{
	uint64_t h = cr_hash(s->index, &s->chain, sizeof(s->chain));

	memcpy(hash, &h, 8);
	h = ~h;
	memcpy(hash + 8, &h, 8);
}

/* ---- the app ---- */

static inline struct cr_node *cr_of(struct app *a)
{
	return CONTAINER_OF(a, struct cr_node, app);
}

static inline void cr_app_elected(struct app *a, uint64_t term)
{
	struct cr_node *n = cr_of(a);
	struct cluster *c = n->c;

	n->elected = term;
	CHECK(term < CR_TERM_MAX);
	if (c->leader_of[term] != 0 && c->leader_of[term] != n->i + 1)
		cr_wrong(c, "two leaders in term %u", (unsigned)term);
	c->leader_of[term] = n->i + 1;
	if (n->state_bad)
		cr_wrong(c, "elected with a bad state");
}

static inline void cr_app_lead(struct app *a, uint64_t term)
{
	struct cr_node *n = cr_of(a);

	if (n->elected != term || n->leads != 0)
		cr_wrong(n->c, "lead without elected");
	n->leads = term;
	/* Everything that anybody was told is here. */
	if (n->now.index < n->c->committed)
		cr_wrong(n->c, "node %u leads at %llu, committed is %llu",
			 n->i + 1, (unsigned long long)n->now.index,
			 (unsigned long long)n->c->committed);
	if (n->feed > 0)
		shard_want(n->shard);
}

static inline void cr_app_lost(struct app *a, uint64_t term)
{
	struct cr_node *n = cr_of(a);

	if (n->leads != term)
		cr_wrong(n->c, "lost without lead");
	n->leads = 0;
}

static inline bool cr_app_collect(struct app *a, uint64_t term, void **data,
				  size_t *bytes)
{
	struct cr_node *n = cr_of(a);
	uint8_t *p;

	if (n->leads != term)
		cr_wrong(n->c, "collect in another term");
	if (n->feed == 0)
		return false;
	n->feed--;
	*bytes = n->c->bytes > 16 ? n->c->bytes : 16;
	p = calloc(1, *bytes);
	CHECK(p != NULL);
	n->c->values++;
	memcpy(p, &n->c->values, 8);
	*data = p;
	n->collected++;
	return true;
}

static inline void cr_app_submitted(struct app *a, uint64_t term,
				    uint64_t index)
{
	(void)term;
	cr_of(a)->submitted = index;
}

static inline void cr_app_refused(struct app *a, enum rc rc)
{
	(void)rc;
	cr_of(a)->refused++;
}

static inline void cr_app_committed(struct app *a, uint64_t index)
{
	struct cr_node *n = cr_of(a);

	if (n->leads == 0)
		cr_wrong(n->c, "committed without leading");
	if (index > n->c->committed)
		n->c->committed = index;
}

static inline enum rc cr_apply(struct cr_node *n, uint64_t index, uint64_t term,
			       const void *data, size_t bytes)
{
	struct cluster *c = n->c;
	uint64_t key[2] = { index, term };

	if (n->state_bad)
		cr_wrong(c, "applied with a bad state");
	if (index != n->now.index + 1)
		cr_wrong(c, "applied %llu after %llu",
			 (unsigned long long)index,
			 (unsigned long long)n->now.index);
	n->now.index = index;
	n->now.term = term;
	n->now.chain = cr_hash(n->now.chain, key, sizeof(key));
	n->now.chain = cr_hash(n->now.chain, data, bytes);
	n->applied_here++;
	CHECK(index < CR_INDEX_MAX);
	if (c->history[index].term == 0) {
		c->history[index].term = term;
		c->history[index].chain = n->now.chain;
	}
	if (c->history[index].term != term ||
	    c->history[index].chain != n->now.chain)
		cr_wrong(c, "node %u differs at %llu", n->i + 1,
			 (unsigned long long)index);
	if (index > c->last)
		c->last = index;
	return RC_OK;
}

static inline enum rc cr_app_apply(struct app *a, uint64_t index, uint64_t term,
				   const void *data, size_t bytes)
{
	return cr_apply(cr_of(a), index, term, data, bytes);
}

static inline enum rc cr_app_other(struct app *a, uint64_t index, uint64_t term,
				   const void *conf, size_t conf_bytes)
{
	struct cr_node *n = cr_of(a);

	if (conf != NULL) {
		CHECK(conf_bytes <= sizeof(n->now.conf));
		memcpy(n->now.conf, conf, conf_bytes);
		n->now.conf_bytes = (uint32_t)conf_bytes;
		n->now.conf_index = index;
	}
	return cr_apply(n, index, term, "", 0);
}

static inline void cr_app_checkpoint(struct app *a)
{
	cr_of(a)->checkpoints++;
	cr_save(cr_of(a));
}

/* The file as others get it: two equal copies of the head, then filler. */
static inline void cr_image(const struct cr_saved *s, uint64_t offset,
			    uint8_t *p, uint32_t n)
{
	uint64_t at;
	uint32_t i;

	for (i = 0; i < n; i++) {
		at = offset + i;
		if (at < CR_HEAD && at % 4096 < sizeof(*s))
			p[i] = ((const uint8_t *)s)[at % 4096];
		else
			p[i] = at < CR_HEAD ? 0 : (uint8_t)(at * 31 >> 5);
	}
}

static inline void cr_export_ready(struct cr_node *n)
{
	struct snapshot what;

	n->export_ready = true;
	n->exported = n->saving;
	what = (struct snapshot){
		.index = n->exported.index,
		.term = n->exported.term,
		.conf_index = n->exported.conf_index,
		.conf = n->exported.conf,
		.conf_bytes = n->exported.conf_bytes,
		.bytes = CR_HEAD + n->c->filler,
	};
	cr_state_hash(&n->exported, what.hash);
	shard_exported(n->shard, RC_OK, &what);
}

static inline void cr_app_export_begin(struct app *a)
{
	struct cr_node *n = cr_of(a);

	if (n->exporting || n->state_bad)
		cr_wrong(n->c, "export_begin out of place");
	n->exporting = true;
	n->export_ready = false;
	cr_save(n);
}

static inline void cr_read_run(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, read);

	cr_image(&n->exported, n->read_at, n->piece, n->read_n);
}

static inline void cr_read_done(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, read);
	uint32_t bytes = n->read_n;

	n->read_n = 0;
	if (n->exporting)
		shard_export_data(n->shard, RC_OK, n->piece, bytes);
}

static inline void cr_app_export_read(struct app *a, uint64_t offset,
				      uint32_t bytes)
{
	struct cr_node *n = cr_of(a);

	if (!n->export_ready || bytes > SNAPSHOT_PIECE_BYTES ||
	    offset % 4096 != 0)
		cr_wrong(n->c, "export_read out of place");
	if (n->read_n != 0)
		return; /* One of an export that was ended: it answers. */
	n->read_at = offset;
	n->read_n = bytes;
	env_work(n->env, ENV_WORKER_STORAGE, &n->read);
}

static inline void cr_app_export_end(struct app *a)
{
	struct cr_node *n = cr_of(a);

	if (!n->exporting)
		cr_wrong(n->c, "export_end out of place");
	n->exporting = false;
}

static inline void cr_stage_run(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, stage);
	struct cr_saved s;
	uint8_t hash[16];
	char name[32];
	size_t got;

	cr_name(n->generation + 1, name);
	if (n->staging == CR_STAGE_WRITE) {
		if (n->stage_at == 0) {
			(void)disk_unlink(n->disk, name);
			n->stage_rc = disk_open(n->disk, name, DISK_CREATE,
						&n->stage_file, NULL);
			if (n->stage_rc != RC_OK)
				return;
		}
		n->stage_rc = disk_write(n->stage_file, n->stage_p, n->stage_n,
					 n->stage_at);
		return;
	}
	n->stage_rc = disk_sync(n->stage_file);
	if (n->stage_rc == RC_OK)
		n->stage_rc = disk_sync_dir(n->disk, "");
	if (n->stage_rc != RC_OK)
		return;
	memset(&s, 0, sizeof(s));
	n->stage_rc = disk_read(n->stage_file, &s, sizeof(s), 0, &got);
	cr_state_hash(&s, hash);
	if (n->stage_rc == RC_OK &&
	    (s.magic != CR_MAGIC || s.sum != cr_sum(&s) ||
	     s.index != n->staged.index || s.term != n->staged.term ||
	     memcmp(hash, n->staged.hash, 16) != 0))
		n->stage_rc = RC_CORRUPT;
}

static inline void cr_stage_write(struct cr_node *n, uint64_t offset,
				  const void *p, uint32_t bytes)
{
	n->staging = CR_STAGE_WRITE;
	n->stage_at = offset;
	memcpy(n->stage_p, p, bytes);
	n->stage_n = bytes;
	env_work(n->env, ENV_WORKER_STORAGE, &n->stage);
}

static inline void cr_stage_done(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, stage);
	bool end = n->staging == CR_STAGE_END;

	n->staging = CR_STAGE_IDLE;
	if (n->stage_rc == RC_IO) {
		env_fail_stop(n->env, "the stage could not be written");
		return;
	}
	if (n->stage_dropped || n->stage_rc != RC_OK || end) {
		if (n->stage_file != NULL)
			disk_close(n->stage_file);
		n->stage_file = NULL;
	}
	if (n->stage_dropped) {
		n->stage_dropped = false;
		if (n->stage_waits)
			cr_stage_write(n, 0, n->stage_next, n->stage_next_n);
		n->stage_waits = false;
		return;
	}
	if (end)
		shard_stage_done(n->shard, n->stage_rc, n->generation + 1,
				 n->staged.hash);
	else
		shard_staged(n->shard, n->stage_rc);
}

static inline void cr_app_stage_begin(struct app *a, const struct snapshot *s)
{
	struct cr_node *n = cr_of(a);

	n->staged = *s;
	if (s->bytes != CR_HEAD + n->c->filler)
		cr_wrong(n->c, "a stage of another size");
}

static inline void cr_app_stage_write(struct app *a, uint64_t offset,
				      const void *p, uint32_t bytes)
{
	struct cr_node *n = cr_of(a);

	if (n->staging == CR_STAGE_IDLE) {
		cr_stage_write(n, offset, p, bytes);
		return;
	}
	if (!n->stage_dropped || offset != 0)
		cr_wrong(n->c, "stage_write out of place");
	n->stage_waits = true;
	memcpy(n->stage_next, p, bytes);
	n->stage_next_n = bytes;
}

static inline void cr_app_stage_end(struct app *a)
{
	struct cr_node *n = cr_of(a);

	if (n->staging != CR_STAGE_IDLE)
		cr_wrong(n->c, "stage_end out of place");
	n->staging = CR_STAGE_END;
	env_work(n->env, ENV_WORKER_STORAGE, &n->stage);
}

static inline void cr_app_stage_drop(struct app *a)
{
	struct cr_node *n = cr_of(a);

	n->stage_waits = false;
	n->stage_dropped = n->staging != CR_STAGE_IDLE;
	if (!n->stage_dropped && n->stage_file != NULL) {
		disk_close(n->stage_file);
		n->stage_file = NULL;
	}
}

static inline enum rc cr_state_open(struct cr_node *n, uint64_t generation)
{
	struct cr_saved s;
	char name[32];
	size_t got;
	unsigned i;
	enum rc rc;

	cr_name(generation, name);
	rc = disk_open(n->disk, name, generation == 0 ? DISK_CREATE : 0,
		       &n->file, NULL);
	memset(&n->now, 0, sizeof(n->now));
	if (rc == RC_OK && generation == 0)
		rc = disk_sync_dir(n->disk, "");
	if (rc != RC_OK)
		return rc;
	n->generation = generation;
	for (i = 0; i < 2; i++) {
		memset(&s, 0, sizeof(s));
		if (disk_read(n->file, &s, sizeof(s), i * 4096, &got) !=
			    RC_OK ||
		    got != sizeof(s) || s.magic != CR_MAGIC ||
		    s.sum != cr_sum(&s))
			continue;
		if (s.counter > n->now.counter)
			n->now = s;
	}
	n->saved_index = n->now.index;
	return RC_OK;
}

static inline void cr_change_run(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, change);
	char name[32];

	cr_name(n->generation, name);
	if (n->file != NULL) {
		disk_close(n->file);
		n->file = NULL;
	}
	(void)disk_unlink(n->disk, name);
	n->stage_rc = cr_state_open(n, n->change_to);
}

static inline struct shard_state cr_shard_state(const struct cr_node *n)
{
	return (struct shard_state){
		.index = n->now.index,
		.term = n->now.term,
		.synced_index = n->now.index,
		.conf_index = n->now.conf_index,
		.conf = n->now.index > 0 ? n->now.conf : NULL,
		.conf_bytes = n->now.conf_bytes,
	};
}

static inline void cr_change_done(struct env_job *job)
{
	struct cr_node *n = CONTAINER_OF(job, struct cr_node, change);
	struct shard_state state = cr_shard_state(n);

	n->state_bad = false;
	if (n->now.index < n->c->last &&
	    n->c->history[n->now.index].chain != n->now.chain)
		cr_wrong(n->c, "a snapshot differs at %llu",
			 (unsigned long long)n->now.index);
	shard_switched(n->shard, n->stage_rc, &state);
}

static inline void cr_app_switch(struct app *a, uint64_t generation)
{
	struct cr_node *n = cr_of(a);

	if (n->leads != 0)
		cr_wrong(n->c, "a leader installs");
	n->change_to = generation;
	env_work(n->env, ENV_WORKER_STORAGE, &n->change);
}

static const struct app_ops cr_ops = {
	.elected = cr_app_elected,
	.lead = cr_app_lead,
	.lost = cr_app_lost,
	.collect = cr_app_collect,
	.submitted = cr_app_submitted,
	.refused = cr_app_refused,
	.committed = cr_app_committed,
	.apply = cr_app_apply,
	.applied_other = cr_app_other,
	.checkpoint = cr_app_checkpoint,
	.export_begin = cr_app_export_begin,
	.export_read = cr_app_export_read,
	.export_end = cr_app_export_end,
	.stage_begin = cr_app_stage_begin,
	.stage_write = cr_app_stage_write,
	.stage_end = cr_app_stage_end,
	.stage_drop = cr_app_stage_drop,
	.switch_state = cr_app_switch,
};

/* ---- nodes ---- */

static inline void cr_format(struct cluster *c, unsigned i)
{
	struct cr_node *n = &c->node[i];
	struct member list[CR_NODES];
	struct detail why = { .text = "" };
	unsigned k;

	n->log = NULL;
	EXPECT_RC(ballot_format(n->disk, c->log_cfg.shards, &why), RC_OK);
	c->log_cfg.node_id = i + 1;
	EXPECT_RC(log_format(n->disk, &c->log_cfg, &why), RC_OK);
	memset(list, 0, sizeof(list));
	for (k = 0; k < c->n; k++) {
		list[k].id = k + 1;
		(void)snprintf(list[k].name, sizeof(list[k].name), "node%u",
			       k + 1);
		memset(list[k].incarnation, (int)(0xa0 + k), ID_BYTES);
	}
	EXPECT_RC(members_format(n->disk, list, c->n, &why), RC_OK);
}

static inline void cluster_init(struct cluster *c, unsigned n, uint64_t seed)
{
	unsigned i;

	memset(c, 0, sizeof(*c));
	c->w = world_new(seed);
	c->n = n;
	c->filler = 600u << 10;
	c->bytes = 64;
	c->election_ms = 300;
	c->history = calloc(CR_INDEX_MAX, sizeof(*c->history));
	CHECK(c->history != NULL);
	c->log_cfg = (struct log_config){
		.shards = 2,
		.segment_bytes = SEGMENT_BYTES_MIN,
		.bytes_max = 8 * (uint64_t)SEGMENT_BYTES_MIN,
	};
	memset(c->log_cfg.cluster_id, 0xc1, 16);
	fake_net_init(&c->net, n);
	for (i = 0; i < n; i++) {
		c->node[i].c = c;
		c->node[i].i = i;
		c->node[i].env = world_env(c->w, i);
		c->node[i].disk = world_disk(c->w, i);
		cr_format(c, i);
	}
}

static inline void cr_config(const struct cr_node *n, struct shard_config *cfg)
{
	const struct cluster *c = n->c;
	unsigned k;

	memset(cfg, 0, sizeof(*cfg));
	cfg->shard = CR_SHARD;
	cfg->node_id = n->i + 1;
	cfg->voters_n = c->n;
	for (k = 0; k < c->n; k++) {
		cfg->voters[k].id = k + 1;
		(void)snprintf(cfg->voters[k].address,
			       sizeof(cfg->voters[k].address), "node%u", k + 1);
	}
	cfg->election_ms = c->election_ms;
	cfg->heartbeat_ms = c->election_ms / 6;
	cfg->ballot = ballot_get(n->ballot, CR_SHARD);
	cfg->ballot_good = ballot_good(n->ballot, CR_SHARD);
	cfg->state_bad = n->state_bad;
}

static inline void cr_join(struct cluster *c, unsigned i)
{
	unsigned k;
	unsigned l;

	for (k = 0; k < c->n; k++)
		for (l = 0; k != i && l < LINKS; l++)
			if (c->node[k].up && c->node[i].up &&
			    !c->held_links[i][k] && !c->held_links[k][i])
				fake_net_join(&c->net, i + 1, k + 1,
					      (enum link_kind)l);
}

/* Starts the node; `state_bad`: its state file is not usable. */
static inline enum rc cluster_boot_bad(struct cluster *c, unsigned i,
				       bool state_bad)
{
	struct cr_node *n = &c->node[i];
	struct cr_node was = *n;
	uint64_t floors[SHARDS_MAX] = { 0 };
	struct detail why = { .text = "" };
	struct shard_config cfg;
	struct shard_state state;
	enum rc rc;

	CHECK(!n->up);
	memset(n, 0, sizeof(*n));
	n->c = c;
	n->i = i;
	n->env = was.env;
	n->disk = was.disk;
	n->id = was.id;
	n->app.ops = &cr_ops;
	n->save = (struct env_job){ .run = cr_save_run, .done = cr_save_done };
	n->read = (struct env_job){ .run = cr_read_run, .done = cr_read_done };
	n->stage =
		(struct env_job){ .run = cr_stage_run, .done = cr_stage_done };
	n->change = (struct env_job){ .run = cr_change_run,
				      .done = cr_change_done };
	n->piece = malloc(3 * (size_t)SNAPSHOT_PIECE_BYTES);
	CHECK(n->piece != NULL);
	n->stage_p = n->piece + SNAPSHOT_PIECE_BYTES;
	n->stage_next = n->stage_p + SNAPSHOT_PIECE_BYTES;
	memcpy(n->id.cluster_id, c->log_cfg.cluster_id, 16);
	memset(n->id.incarnation, (int)(0xa0 + i), ID_BYTES);
	n->id.node_id = i + 1;
	n->id.boot++;
	env_random(n->env, n->id.nonce, sizeof(n->id.nonce));
	EXPECT_RC(ballot_open(n->disk, c->log_cfg.shards, &n->ballot, &why),
		  RC_OK);
	n->state_bad = state_bad;
	n->generation = ballot_get(n->ballot, CR_SHARD).state_generation;
	if (!state_bad && ballot_good(n->ballot, CR_SHARD)) {
		rc = cr_state_open(n, n->generation);
		if (rc != RC_OK)
			cr_wrong(c, "node %u: no state of generation %llu",
				 i + 1, (unsigned long long)n->generation);
	}
	if (state_bad)
		memset(&n->now, 0, sizeof(n->now));
	floors[CR_SHARD] = n->now.index;
	c->log_cfg.node_id = i + 1;
	rc = log_open(n->env, n->disk, n->ballot, &c->log_cfg, floors, &n->log,
		      &why);
	if (rc != RC_OK)
		FAIL("log_open: %s", why.text);
	EXPECT_RC(members_open(n->env, n->disk, &n->id, &n->members, &why),
		  RC_OK);
	EXPECT_RC(transport_new(n->env,
				fake_net_link(&c->net, i + 1, LINK_RAFT),
				fake_net_link(&c->net, i + 1, LINK_BULK),
				n->members, &n->transport),
		  RC_OK);
	cr_config(n, &cfg);
	state = cr_shard_state(n);
	rc = shard_open(n->env, n->log, n->transport, &n->app, &cfg, &state,
			&n->shard, &why);
	if (rc != RC_OK)
		FAIL("shard_open: %s", why.text);
	n->up = true;
	shard_start(n->shard);
	cr_join(c, i);
	return rc;
}

static inline void cluster_boot(struct cluster *c, unsigned i)
{
	(void)cluster_boot_bad(c, i, false);
}

/* Memory only. */
static inline void cr_drop(struct cluster *c, unsigned i)
{
	struct cr_node *n = &c->node[i];
	unsigned k;

	if (!n->up)
		return;
	n->up = false;
	for (k = 0; k < LINKS; k++) {
		struct link *l =
			fake_net_link(&c->net, i + 1, (enum link_kind)k);

		l->received = NULL;
		l->changed = NULL;
	}
	fake_net_cut_node(&c->net, i + 1);
	if (n->shard != NULL)
		shard_discard(n->shard);
	transport_discard(n->transport);
	members_discard(n->members);
	log_discard(n->log);
	ballot_close(n->ballot);
	if (n->file != NULL)
		disk_close(n->file);
	if (n->stage_file != NULL)
		disk_close(n->stage_file);
	free(n->piece);
	n->shard = NULL;
	n->leads = 0;
}

static inline void cluster_kill(struct cluster *c, unsigned i)
{
	cr_drop(c, i);
	world_kill(c->w, i);
}

static inline void cluster_cut_power(struct cluster *c, unsigned i)
{
	cr_drop(c, i);
	world_power_cut(c->w, i);
}

static inline void cluster_free(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < c->n; i++)
		cr_drop(c, i);
	fake_net_release(&c->net);
	world_free(c->w);
	free(c->history);
}

static inline void cluster_boot_all(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < c->n; i++)
		cluster_boot(c, i);
}

/* ---- going on ---- */

static inline void cr_deliver(struct cluster *c)
{
	struct fake_message *m;
	bool more = true;

	while (more) {
		/* Nothing reaches a node that has just ended. */
		while ((m = STAILQ_FIRST(&c->net.queue)) != NULL &&
		       !world_alive(c->w, (unsigned)m->to - 1)) {
			fake_net_take(&c->net, m);
			fake_message_free(m);
		}
		more = fake_net_step(&c->net);
	}
}

static inline bool cluster_step(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < c->n; i++) {
		if (!c->node[i].up || world_alive(c->w, i))
			continue;
		return false;
	}
	cr_deliver(c);
	return world_step(c->w);
}

static inline void cluster_run(struct cluster *c, uint64_t ms)
{
	uint64_t until = world_now_ms(c->w) + ms;

	while (world_now_ms(c->w) < until && c->wrong[0] == '\0')
		if (!cluster_step(c))
			break;
}

/* For a person who looks why a test fails. */
static inline void cluster_print(const struct cluster *c)
{
	const struct cr_node *n;
	struct shard_stats stats;
	struct log_stats log;
	struct shard_view v;
	unsigned i;
	unsigned k;

	for (i = 0; i < c->n; i++) {
		n = &c->node[i];
		if (!n->up) {
			(void)printf("# %u down\n", i + 1);
			continue;
		}
		shard_view(n->shard, &v);
		(void)printf("# %u%s term %u leader %u last %u durable %u "
			     "commit %u applied %u state %u health %d %s; %s\n",
			     i + 1, world_alive(c->w, i) ? "" : " DEAD",
			     (unsigned)shard_term(n->shard),
			     (unsigned)shard_leader(n->shard),
			     (unsigned)shard_last_index(n->shard),
			     (unsigned)shard_durable_index(n->shard),
			     (unsigned)shard_commit_index(n->shard),
			     (unsigned)shard_applied_index(n->shard),
			     (unsigned)n->now.index, (int)v.health, v.why,
			     world_stopped(c->w, i) != NULL
				     ? world_stopped(c->w, i)
				     : "");
		shard_stats(n->shard, &stats);
		log_stats(n->log, &log);
		(void)printf("#   cached %u trimmed %u installs %u exports %u "
			     "held %u out %u in %u; log %u live %u%s "
			     "unsynced %u\n",
			     (unsigned)stats.cached, (unsigned)stats.trimmed,
			     (unsigned)stats.installs, (unsigned)stats.exports,
			     (unsigned)stats.held, (unsigned)stats.messages_out,
			     (unsigned)stats.messages_in,
			     (unsigned)log.segments, (unsigned)log.live_bytes,
			     shard_full(n->shard) ? " full" : "",
			     (unsigned)log_unsynced_bytes(n->log));
		for (k = 0; k < v.peers_n; k++)
			(void)printf("#   peer %u match %u heard %u%s%s\n",
				     (unsigned)v.peers[k].node_id,
				     (unsigned)v.peers[k].match,
				     (unsigned)v.peers[k].heard_ms,
				     v.peers[k].streaming ? " streaming" : "",
				     v.peers[k].refused ? " refused" : "");
	}
}

/* The node that leads, -1: none. */
static inline int cluster_leader(const struct cluster *c)
{
	unsigned i;
	int found = -1;

	for (i = 0; i < c->n; i++)
		if (c->node[i].up && c->node[i].leads != 0 &&
		    (found < 0 || c->node[i].leads > c->node[found].leads))
			found = (int)i;
	return found;
}

static inline int cluster_elect(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < 200 && cluster_leader(c) < 0; i++)
		cluster_run(c, 50);
	EXPECT_STR(c->wrong, "");
	if (cluster_leader(c) < 0)
		cluster_print(c);
	EXPECT_TRUE(cluster_leader(c) >= 0);
	return cluster_leader(c);
}

static inline void cluster_propose(struct cluster *c, unsigned entries)
{
	int l = cluster_leader(c);

	if (l < 0)
		return;
	c->node[l].feed += entries;
	shard_want(c->node[l].shard);
}

/* `entries` of a leader, committed; another is waited for if it is lost. */
static inline void cluster_write(struct cluster *c, unsigned entries)
{
	uint64_t want = c->committed + entries;
	unsigned i;

	for (i = 0; i < 400 && c->committed < want && c->wrong[0] == '\0';
	     i++) {
		int l = cluster_leader(c);

		if (l >= 0 && c->node[l].feed == 0)
			cluster_propose(c, (unsigned)(want - c->committed));
		cluster_run(c, 20);
	}
	EXPECT_STR(c->wrong, "");
	if (c->committed < want)
		cluster_print(c);
	EXPECT_TRUE(c->committed >= want);
}

/* All that are up have applied everything. */
static inline bool cluster_level(const struct cluster *c)
{
	const struct cr_node *n;
	unsigned i;

	for (i = 0; i < c->n; i++) {
		n = &c->node[i];
		if (n->up && (n->state_bad || n->now.index < c->committed))
			return false;
	}
	return true;
}

static inline void cluster_settle(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < 600 && !cluster_level(c) && c->wrong[0] == '\0'; i++)
		cluster_run(c, 50);
	EXPECT_STR(c->wrong, "");
	if (!cluster_level(c))
		cluster_print(c);
	EXPECT_TRUE(cluster_level(c));
}

/* Both links between two nodes. */
static inline void cluster_cut(struct cluster *c, unsigned a, unsigned b)
{
	c->held_links[a][b] = true;
	fake_net_cut(&c->net, a + 1, b + 1, LINK_RAFT);
	fake_net_cut(&c->net, a + 1, b + 1, LINK_BULK);
}

static inline void cluster_isolate(struct cluster *c, unsigned i)
{
	unsigned k;

	for (k = 0; k < c->n; k++)
		if (k != i)
			cluster_cut(c, i, k);
}

static inline void cluster_heal(struct cluster *c)
{
	unsigned a;
	unsigned b;
	unsigned k;

	memset(c->held_links, 0, sizeof(c->held_links));
	for (a = 0; a < c->n; a++)
		for (b = a + 1; b < c->n; b++)
			for (k = 0; k < LINKS; k++)
				if (c->node[a].up && c->node[b].up &&
				    fake_net_end(&c->net, a + 1, b + 1,
						 (enum link_kind)k)
						    ->epoch == 0)
					fake_net_join(&c->net, a + 1, b + 1,
						      (enum link_kind)k);
}

#endif
