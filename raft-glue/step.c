#include "raft-glue/step.h"

#include <raft.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "raft-glue/codec.h"
#include "raft-glue/guard.h"

/* Debian builds libraft without asserts and its ownership of memory changes
 * after this version: another one is a port, not a rebuild. */
_Static_assert(RAFT_VERSION_NUMBER == 2201, "written for libraft 0.22.1");
#ifdef __x86_64__
_Static_assert(sizeof(struct raft) == 992, "struct raft");
_Static_assert(offsetof(struct raft, tracer) == 8, "raft.tracer");
_Static_assert(offsetof(struct raft, current_term) == 48, "raft.current_term");
_Static_assert(offsetof(struct raft, configuration) == 72,
	       "raft.configuration");
_Static_assert(offsetof(struct raft, election_timeout) == 120,
	       "raft.election_timeout");
_Static_assert(offsetof(struct raft, commit_index) == 136, "raft.commit_index");
_Static_assert(offsetof(struct raft, last_stored) == 152, "raft.last_stored");
_Static_assert(offsetof(struct raft, state) == 160, "raft.state");
_Static_assert(offsetof(struct raft, follower_state.match) == 192,
	       "raft.follower_state.match");
#endif
_Static_assert((int)STEP_COMMAND == (int)RAFT_COMMAND, "entry types");
_Static_assert((int)STEP_BARRIER == (int)RAFT_BARRIER, "entry types");
_Static_assert((int)STEP_CHANGE == (int)RAFT_CHANGE, "entry types");

#define STEP_MAGIC 0x53746570u
#define PEERS_MAX  CONF_SERVERS_MAX

/* The newest connection of a member (guard B19). */
struct step_peer {
	uint64_t id;
	uint64_t epoch;
	bool full; /* It takes no entries, it said last. */
};

struct step {
	uint32_t magic;
	bool stepping;   /* The core or a sink function is on the stack. */
	bool failed;     /* Fail-stop: every event is a no-op. */
	bool installing; /* Between sink->install and step_installed. */
	uint16_t room;   /* Of the disk: the capacity that is told. */
	uint32_t heartbeat_ms;
	struct raft raft;
	struct env *env;
	struct step_sink *sink;
	uint64_t now_ms;
	uint64_t ahead_ms; /* Of the wall clock, at start. */
	uint64_t commit;
	uint64_t contact_ms; /* A leader was heard of (guard B8). */
	uint64_t heard_term; /* Of that leader. */
	uint64_t fired_ms;   /* The last timeout event (guard B9). */
	uint64_t asked_term; /* Of the message in step (guard B1). */
	uint64_t own_term;   /* The leadership that own_index is of. */
	uint64_t own_index;
	uint64_t applied;
	uint64_t applied_term;
	/* Where the state ended at start, if its term is a guess; else 0. */
	uint64_t guessed;
	const void *submitted; /* Data in step that need not be copied. */
	bool taken;            /* The sink has it. */
	struct raft_snapshot_metadata snapshot; /* While installing. */
	struct step_peer peers[PEERS_MAX];
	struct raft_entry scratch[STEP_INFLIGHT_MAX];
	char why[160];
};

static void step_fail(struct step *st, const char *what, int rv)
{
	if (st->failed)
		return;
	st->failed = true;
	(void)snprintf(st->why, sizeof(st->why), "raft: %s: %s", what,
		       rv != 0 ? raft_strerror(rv) : "broken invariant");
	env_fail_stop(st->env, st->why);
}

static uint64_t step_now(struct step *st)
{
	uint64_t now = env_now_ms(st->env);

	if (MUTANT(time_by_wall))
		now = env_wall_ms(st->env) - st->ahead_ms;
	/* The core must never see time go back. */
	if (now > st->now_ms)
		st->now_ms = now;
	return st->now_ms;
}

/* ---- updates ---- */

/* A copy for the sink. The core frees nothing that an ENTRIES update has. */
static bool step_append(struct step *st, uint64_t index,
			const struct raft_entry *e)
{
	struct step_entry out = {
		.term = e->term,
		.type = (uint16_t)e->type,
		.bytes = (uint32_t)e->buf.len,
		.data = e->buf.base,
	};

	if (st->submitted != NULL && e->buf.base == st->submitted) {
		st->taken = true;
	} else {
		out.data = malloc(e->buf.len > 0 ? e->buf.len : 1);
		if (out.data == NULL)
			return false;
		if (e->buf.len > 0)
			memcpy(out.data, e->buf.base, e->buf.len);
	}
	st->sink->append(st->sink, index, &out);
	return true;
}

static void step_entries(struct step *st, const struct raft_update *up)
{
	bool foreign = st->submitted == NULL;
	unsigned i;

	if (st->raft.state == RAFT_LEADER &&
	    st->own_term != st->raft.current_term) {
		st->own_term = st->raft.current_term;
		st->own_index = up->entries.index;
	}
	for (i = 0; i < up->entries.n; i++) {
		if (!step_append(st, up->entries.index + i,
				 &up->entries.batch[i])) {
			step_fail(st, "append", RAFT_NOMEM);
			return;
		}
	}
	if (foreign)
		raft_free(up->entries.batch[0].batch);
}

/* The core names a range of its log; the data is the sink's. */
static void step_fill(struct step *st, struct raft_append_entries *ae)
{
	struct step_entry e;
	unsigned i;

	CHECK(ae->n_entries <= STEP_INFLIGHT_MAX);
	for (i = 0; i < ae->n_entries; i++) {
		st->sink->entry(st->sink, ae->prev_log_index + 1 + i, &e);
		st->scratch[i] = (struct raft_entry){
			.term = e.term,
			.type = e.type,
			.buf = { .base = e.data, .len = e.bytes },
		};
	}
	ae->entries = st->scratch;
}

static struct step_peer *peer_of(struct step *st, uint64_t id)
{
	unsigned i;

	for (i = 0; i < PEERS_MAX; i++) {
		if (st->peers[i].id == 0)
			st->peers[i].id = id;
		if (st->peers[i].id == id)
			return &st->peers[i];
	}
	return NULL;
}

/* Whoever is full drops them; with each heartbeat the core would send as many
 * as may be in flight. Without them the message is what it makes of it. */
static bool starved(struct step *st, uint64_t id)
{
	const struct step_peer *p = peer_of(st, id);

	return p != NULL && p->full && !MUTANT(full_disk_fed);
}

/* What a follower has there is committed. Told of another term at that place
 * its core would stop for good: it gets a snapshot instead, from whoever has
 * the state. */
static bool guesses(const struct step *st, const struct raft_message *m)
{
	return m->type == RAFT_APPEND_ENTRIES && st->guessed != 0 &&
	       m->append_entries.prev_log_index == st->guessed &&
	       !MUTANT(guess_told);
}

static void step_send(struct step *st, const struct raft_message *from_core)
{
	struct raft_message m = *from_core;

	m.server_address = NULL; /* It may point into a received message. */
	if (guesses(st, &m)) {
		m.type = RAFT_INSTALL_SNAPSHOT;
		memset(&m.install_snapshot, 0, sizeof(m.install_snapshot));
	}
	if (m.type == RAFT_APPEND_ENTRIES) {
		if (starved(st, m.server_id))
			m.append_entries.n_entries = 0;
		step_fill(st, &m.append_entries);
	} else if (m.type == RAFT_INSTALL_SNAPSHOT) {
		memset(&m.install_snapshot.conf, 0,
		       sizeof(m.install_snapshot.conf));
		memset(&m.install_snapshot.data, 0,
		       sizeof(m.install_snapshot.data));
	} else {
		guard_b15(&st->raft, &m);
		guard_b1(&st->raft, &m, st->asked_term);
		guard_b5(&st->raft, &m);
	}
	st->sink->send(st->sink, &m);
}

/* The rule that the core keeps: an entry of an older term is not committed by
 * counting who has it (figure 8 of the Raft paper). */
static void commit_by_counting(struct raft *r)
{
	const struct raft_configuration *conf = &r->configuration;
	raft_index best = r->commit_index;
	raft_index mine;
	raft_index match;
	unsigned voters;
	unsigned have;
	unsigned i;
	unsigned j;

	for (i = 0; i < conf->n && r->state == RAFT_LEADER; i++) {
		if (raft_match_index(r, conf->servers[i].id, &mine) != 0 ||
		    mine <= best || conf->servers[i].role != RAFT_VOTER)
			continue;
		for (j = 0, voters = 0, have = 0; j < conf->n; j++) {
			if (conf->servers[j].role != RAFT_VOTER)
				continue;
			voters++;
			if (raft_match_index(r, conf->servers[j].id, &match) ==
			    0)
				have += match >= mine;
		}
		if (have > voters / 2)
			best = mine;
	}
	r->commit_index = best;
}

static void step_update(struct step *st, const struct raft_update *up)
{
	struct raft *r = &st->raft;
	unsigned i;

	if (up->flags & (RAFT_UPDATE_CURRENT_TERM | RAFT_UPDATE_VOTED_FOR))
		st->sink->ballot(st->sink, r->current_term, r->voted_for);
	if (up->flags & (RAFT_UPDATE_ENTRIES))
		step_entries(st, up);
	if (up->flags & (RAFT_UPDATE_SNAPSHOT)) {
		CHECK(!st->installing);
		st->installing = true;
		st->snapshot = up->snapshot.metadata;
		st->sink->install(st->sink, st->snapshot.index,
				  st->snapshot.term);
	}
	if (up->flags & (RAFT_UPDATE_MESSAGES))
		for (i = 0; i < up->messages.n && !st->failed; i++)
			step_send(st, &up->messages.batch[i]);
	if (MUTANT(old_term_commit))
		commit_by_counting(r);
	st->commit = guard_b12(st->commit, r->commit_index, st->installing);
}

static enum guard_b20 step_event(struct step *st, struct raft_event *ev,
				 const char *what)
{
	struct raft_update up;
	enum guard_b20 verdict;
	int rv;

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(!st->stepping);
	if (st->failed)
		return GUARD_STOP;
	st->stepping = true;
	ev->time = step_now(st);
	/* The core hands it on; it looks at it only above a threshold, of which
	 * it has none. */
	ev->capacity = st->room;
	memset(&up, 0, sizeof(up));
	rv = raft_step(&st->raft, ev, &up);
	verdict = guard_b20((int)ev->type, rv);
	if (verdict == GUARD_DONE)
		step_update(st, &up);
	else if (verdict == GUARD_STOP)
		step_fail(st, what, rv);
	st->stepping = false;
	return st->failed ? GUARD_STOP : verdict;
}

/* ---- life, start ---- */

enum rc step_new(const struct step_config *cfg, struct step_sink *sink,
		 struct step **out)
{
	struct step *st = calloc(1, sizeof(*st));
	unsigned seed;

	if (st == NULL)
		return RC_NOMEM;
	st->magic = STEP_MAGIC;
	st->env = cfg->env;
	st->sink = sink;
	st->asked_term = UINT64_MAX;
	if (MUTANT(time_by_wall))
		st->ahead_ms = env_wall_ms(cfg->env) - env_now_ms(cfg->env);
	if (raft_init(&st->raft, NULL, NULL, cfg->node_id, cfg->address) != 0) {
		free(st);
		return RC_NOMEM;
	}
	/* The default one formats every line and throws it away. */
	st->raft.tracer = NULL;
	env_random(cfg->env, &seed, sizeof(seed));
	raft_seed(&st->raft, seed);
	raft_set_election_timeout(&st->raft, cfg->election_ms);
	raft_set_heartbeat_timeout(&st->raft, cfg->heartbeat_ms);
	st->heartbeat_ms = cfg->heartbeat_ms;
	raft_set_pre_vote(&st->raft, !MUTANT(no_pre_vote));
	raft_set_max_inflight_entries(&st->raft, STEP_INFLIGHT_MAX);
	/* Then it wishes again: a stream that goes on already does not mind,
	 * and of one that failed it may not learn in another way. */
	raft_set_install_snapshot_timeout(&st->raft, 1000);
	*out = st;
	return RC_OK;
}

void step_free(struct step *st)
{
	CHECK_OBJ(st, STEP_MAGIC);
	PRE(!st->stepping);
	raft_close(&st->raft, NULL);
	if (st->installing)
		raft_configuration_close(&st->snapshot.configuration);
	st->magic = 0;
	free(st);
}

static enum rc conf_decode(const void *data, size_t bytes,
			   struct raft_configuration *out)
{
	struct raft_buffer buf = { .base = (void *)(uintptr_t)data,
				   .len = bytes };
	int rv;

	if (!guard_conf(data, bytes))
		return RC_CORRUPT;
	rv = raft_configuration_decode(&buf, out);
	if (rv != 0)
		return rv == RAFT_NOMEM ? RC_NOMEM : RC_CORRUPT;
	return RC_OK;
}

static bool boot_metadata(const struct step_boot *boot,
			  struct raft_snapshot_metadata *meta)
{
	meta->index = boot->index;
	meta->term = boot->index_term;
	meta->configuration_index = boot->conf_index;
	return conf_decode(boot->conf, boot->conf_bytes,
			   &meta->configuration) == RC_OK;
}

static uint64_t boot_first(const struct step_boot *boot)
{
	return boot->first != 0 ? boot->first : boot->index + 1;
}

/* Of a COMMAND the core wants only the term. The array is allocated by its heap
 * because on an error it frees it. */
static struct raft_entry *boot_entries(struct step *st,
				       const struct step_boot *boot, unsigned n)
{
	struct raft_entry *list = raft_calloc(n, sizeof(*list));
	struct step_entry e;
	unsigned i;

	if (list == NULL)
		return NULL;
	for (i = 0; i < n; i++) {
		st->sink->entry(st->sink, boot_first(boot) + i, &e);
		list[i].term = e.term;
		list[i].type = e.type;
		if (e.type == RAFT_CHANGE) {
			list[i].buf.base = e.data;
			list[i].buf.len = e.bytes;
		}
	}
	return list;
}

void step_start(struct step *st, const struct step_boot *boot)
{
	struct raft_snapshot_metadata meta;
	struct raft_event ev = { .type = RAFT_START };
	unsigned n;

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(boot_first(boot) <= boot->index + 1);
	PRE(!boot->unsure || boot->index > 0);
	PRE(boot->last >= boot->index);
	PRE(boot->last + 1 - boot_first(boot) <= UINT32_MAX);
	n = (unsigned)(boot->last + 1 - boot_first(boot));
	PRE(boot->term > 0 || n == 0);

	st->contact_ms = step_now(st);
	st->commit = boot->index;
	st->applied = boot->index;
	st->applied_term = boot->index_term;
	st->guessed = boot->unsure ? boot->index : 0;
	ev.start.term = boot->term;
	ev.start.voted_for = boot->vote;
	ev.start.start_index = boot_first(boot);
	ev.start.n_entries = n;
	if (boot->index > 0) {
		if (!boot_metadata(boot, &meta)) {
			step_fail(st, "start", RAFT_NOMEM);
			return;
		}
		ev.start.metadata = &meta;
	}
	if (n > 0) {
		ev.start.entries = boot_entries(st, boot, n);
		if (ev.start.entries == NULL) {
			if (boot->index > 0)
				raft_configuration_close(&meta.configuration);
			step_fail(st, "start", RAFT_NOMEM);
			return;
		}
	}
	if (step_event(st, &ev, "start") == GUARD_DONE)
		raft_free(ev.start.entries);
}

/* ---- events ---- */

static enum rc change_check(struct step *st, const void *data, uint32_t bytes)
{
	struct raft_configuration conf;
	enum rc rc;

	if (!guard_b6(step_own_index(st), st->commit) ||
	    st->raft.configuration_uncommitted_index != 0)
		return RC_CONFLICT;
	rc = conf_decode(data, bytes, &conf);
	if (rc == RC_CORRUPT)
		return RC_INVALID;
	if (rc != RC_OK)
		return rc;
	rc = guard_b17(&st->raft.configuration, &conf) ? RC_OK : RC_INVALID;
	raft_configuration_close(&conf);
	return rc;
}

enum rc step_submit(struct step *st, enum step_type type, void *data,
		    uint32_t bytes, uint64_t *index)
{
	struct raft_entry e = {
		.term = st->raft.current_term,
		.type = (enum raft_entry_type)type,
		.buf = { .base = data, .len = bytes },
		.batch = data,
	};
	struct raft_event ev = { .type = RAFT_SUBMIT };
	enum guard_b20 verdict;
	enum rc rc;

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(data != NULL);
	if (!step_leads(st) || st->failed)
		return RC_NOT_LEADER;
	if (type == STEP_CHANGE) {
		rc = change_check(st, data, bytes);
		if (rc != RC_OK)
			return rc;
	}
	CHECK(guard_b18(1, type == STEP_CHANGE ? 1 : 0));
	ev.submit.entries = &e;
	ev.submit.n = 1;
	*index = step_last(st) + 1;
	st->submitted = data;
	st->taken = false;
	verdict = step_event(st, &ev, "submit");
	st->submitted = NULL;
	switch (verdict) {
	case GUARD_DONE:
		return RC_OK;
	case GUARD_REFUSED:
		return step_leads(st) && st->raft.leader_state.transferee == 0
			       ? RC_NO_SPACE
			       : RC_NOT_LEADER;
	case GUARD_STOP:
		break;
	}
	return st->taken ? RC_OK : RC_NOT_LEADER;
}

void step_persisted(struct step *st, uint64_t index)
{
	struct raft_event ev = { .type = RAFT_PERSISTED_ENTRIES };

	CHECK_OBJ(st, STEP_MAGIC);
	if (st->failed || !guard_b11(&st->raft, index))
		return;
	ev.persisted_entries.index = index;
	(void)step_event(st, &ev, "persisted");
}

void step_applied(struct step *st, uint64_t index, uint64_t term)
{
	CHECK_OBJ(st, STEP_MAGIC);
	if (index <= st->applied)
		return;
	st->applied = index;
	st->applied_term = term;
}

void step_configured(struct step *st, uint64_t index, const void *conf,
		     size_t bytes)
{
	struct raft_event ev = { .type = RAFT_CONFIGURATION };

	CHECK_OBJ(st, STEP_MAGIC);
	if (st->failed)
		return;
	ev.configuration.index = index;
	if (conf_decode(conf, bytes, &ev.configuration.conf) != RC_OK) {
		step_fail(st, "configuration", RAFT_NOMEM);
		return;
	}
	(void)step_event(st, &ev, "configuration");
}

void step_snapshot(struct step *st, uint64_t index, uint64_t conf_index,
		   const void *conf, size_t conf_bytes, uint32_t trailing)
{
	struct raft_event ev = { .type = RAFT_SNAPSHOT };
	struct raft_snapshot_metadata *meta = &ev.snapshot.metadata;

	CHECK_OBJ(st, STEP_MAGIC);
	if (st->failed || st->installing)
		return;
	PRE(index > step_snapshot_index(st));
	PRE(index <= st->applied);
	PRE(index <= st->raft.last_stored);
	PRE(conf_index <= index);
	meta->index = index;
	meta->term = step_term_at(st, index);
	CHECK(meta->term != 0);
	meta->configuration_index = conf_index;
	ev.snapshot.trailing = trailing;
	if (conf_decode(conf, conf_bytes, &meta->configuration) != RC_OK) {
		step_fail(st, "snapshot", RAFT_NOMEM);
		return;
	}
	(void)step_event(st, &ev, "snapshot");
}

void step_installed(struct step *st)
{
	struct raft_event ev = { .type = RAFT_PERSISTED_SNAPSHOT };

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(st->installing);
	if (st->failed)
		return;
	st->installing = false;
	st->applied = st->snapshot.index;
	st->applied_term = st->snapshot.term;
	ev.persisted_snapshot.metadata = st->snapshot;
	ev.persisted_snapshot.last = true;
	(void)step_event(st, &ev, "installed");
}

void step_timeout(struct step *st)
{
	struct raft_event ev = { .type = RAFT_TIMEOUT };

	CHECK_OBJ(st, STEP_MAGIC);
	if (st->failed)
		return;
	st->fired_ms = step_now(st);
	if (MUTANT(quorum_unwatched) && step_leads(st))
		st->raft.election_timer_start = st->fired_ms;
	if (MUTANT(silence_obeyed) && !step_leads(st) && step_leader(st) != 0)
		st->raft.election_timer_start = st->fired_ms;
	/*
	 * A leader's timeout finds every follower silent that has not answered
	 * since the one before, and sends it no entries until its next
	 * heartbeat was answered. So all must be asked at each: where each had
	 * its own heartbeat's time, the one that was not asked lately would be
	 * found silent, and with another dead every write would wait for it.
	 */
	if (!MUTANT(heartbeats_apart))
		st->raft.heartbeat_timeout = 1;
	(void)step_event(st, &ev, "timeout");
	st->raft.heartbeat_timeout = st->heartbeat_ms;
}

/* ---- receive ---- */

static void message_release(struct raft_message *m)
{
	if (m->type == RAFT_APPEND_ENTRIES && m->append_entries.n_entries > 0)
		raft_free(m->append_entries.entries[0].batch);
	if (m->type == RAFT_INSTALL_SNAPSHOT) {
		raft_configuration_close(&m->install_snapshot.conf);
		raft_free(m->install_snapshot.data.base);
	}
}

static bool message_fresh(struct step *st, uint64_t id, uint64_t epoch)
{
	struct step_peer *p = peer_of(st, id);

	return p != NULL && guard_b19(&p->epoch, epoch);
}

/* What the core takes on trust. */
static bool entries_sane(const struct raft_append_entries *ae)
{
	const struct raft_entry *e;
	unsigned i;

	if ((ae->prev_log_index == 0) != (ae->prev_log_term == 0))
		return false;
	for (i = 0; i < ae->n_entries; i++) {
		e = &ae->entries[i];
		if (e->term == 0 || e->term > ae->term)
			return false;
		if (e->type == RAFT_CHANGE &&
		    !guard_conf(e->buf.base, e->buf.len))
			return false;
	}
	return true;
}

static bool message_sane(struct step *st, const struct raft_message *m)
{
	if (m->server_id == 0 || m->server_id == st->raft.id)
		return false;
	if (!guard_b21(m))
		return false;
	if (m->type == RAFT_APPEND_ENTRIES)
		return entries_sane(&m->append_entries);
	if (m->type == RAFT_INSTALL_SNAPSHOT)
		return m->install_snapshot.last_index > 0 &&
		       m->install_snapshot.last_term > 0;
	return true;
}

static void receive_one(struct step *st, struct raft_message *m)
{
	struct raft_event ev = { .type = RAFT_RECEIVE };
	int role = guard_b7_begin(&st->raft, m);

	ev.receive.message = m;
	(void)step_event(st, &ev, "receive");
	guard_b7_end(&st->raft, role);
}

/* A piece of an AppendEntries, with memory of its own. */
static bool piece_copy(struct raft_entry *list, unsigned n)
{
	size_t bytes = 0;
	uint8_t *batch;
	unsigned i;

	for (i = 0; i < n; i++)
		bytes += list[i].buf.len;
	batch = raft_malloc(bytes > 0 ? bytes : 1);
	if (batch == NULL)
		return false;
	for (i = 0, bytes = 0; i < n; i++) {
		if (list[i].buf.len > 0)
			memcpy(batch + bytes, list[i].buf.base,
			       list[i].buf.len);
		list[i].buf.base = batch + bytes;
		list[i].batch = batch;
		bytes += list[i].buf.len;
	}
	return true;
}

static void receive_pieces(struct step *st, const struct raft_message *m)
{
	const struct raft_append_entries *ae = &m->append_entries;
	struct raft_message piece;
	void *batch = ae->entries[0].batch;
	unsigned at;
	unsigned n;

	for (at = 0; at < ae->n_entries && !st->failed; at += n) {
		n = guard_b2(m, at);
		piece = *m;
		piece.append_entries.entries = ae->entries + at;
		piece.append_entries.n_entries = n;
		piece.append_entries.prev_log_index = ae->prev_log_index + at;
		if (at > 0)
			piece.append_entries.prev_log_term =
				ae->entries[at - 1].term;
		if (!piece_copy(piece.append_entries.entries, n)) {
			step_fail(st, "receive", RAFT_NOMEM);
			break;
		}
		receive_one(st, &piece);
	}
	raft_free(batch);
}

static void receive_entries(struct step *st, struct raft_message *m)
{
	struct raft_append_entries *ae = &m->append_entries;
	void *batch = ae->n_entries > 0 ? ae->entries[0].batch : NULL;

	/* What is committed here is in every leader's log. */
	if (st->guessed != 0 && ae->prev_log_index == st->applied)
		ae->prev_log_term = st->applied_term;
	if (ae->term >= st->raft.current_term &&
	    guard_b4(&st->raft, m, st->applied, st->applied_term) > 0 &&
	    ae->n_entries == 0)
		raft_free(batch);
	if (ae->n_entries > 0 && guard_b2(m, 0) < ae->n_entries)
		receive_pieces(st, m);
	else
		receive_one(st, m);
}

/* A leader was heard of. */
static void receive_contact(struct step *st, uint64_t term)
{
	st->asked_term = term;
	if (term < st->raft.current_term)
		return;
	st->contact_ms = step_now(st);
	st->heard_term = term;
}

/* `m` is sane, and of the newest connection of its sender. */
static void receive_checked(struct step *st, struct raft_message *m)
{
	struct raft *r = &st->raft;

	if (guard_b14(r, m) || guard_b16(r, m)) {
		message_release(m);
		return;
	}
	if (guard_b13(r, m)) {
		message_release(m);
		step_fail(st, "another leader in our term", 0);
		return;
	}
	guard_b3(r, m);
	guard_b8(r, m, st->contact_ms, step_now(st));
	if (m->type == RAFT_APPEND_ENTRIES) {
		receive_contact(st, m->append_entries.term);
		receive_entries(st, m);
	} else {
		if (m->type == RAFT_INSTALL_SNAPSHOT)
			receive_contact(st, m->install_snapshot.term);
		receive_one(st, m);
	}
	st->asked_term = UINT64_MAX;
}

void step_receive(struct step *st, struct raft_message *m, uint64_t epoch)
{
	CHECK_OBJ(st, STEP_MAGIC);
	PRE(!st->stepping);
	if (st->failed || !message_sane(st, m) ||
	    !message_fresh(st, m->server_id, epoch))
		message_release(m);
	else
		receive_checked(st, m);
}

static raft_term message_term(const struct raft_message *m)
{
	switch (m->type) {
	case RAFT_APPEND_ENTRIES:
		return m->append_entries.term;
	case RAFT_APPEND_ENTRIES_RESULT:
		return m->append_entries_result.term;
	case RAFT_REQUEST_VOTE:
		return m->request_vote.term;
	case RAFT_REQUEST_VOTE_RESULT:
		return m->request_vote_result.term;
	case RAFT_INSTALL_SNAPSHOT:
		return m->install_snapshot.term;
	case RAFT_TIMEOUT_NOW:
		return m->timeout_now.term;
	}
	return 0;
}

/* Over one connection a result never overtakes another. So who rejects, in this
 * term, an index that it acknowledged before, has lost it. */
static void look_at_result(const struct raft *r, const struct raft_message *m,
			   struct step_seen *seen)
{
	const struct raft_append_entries_result *res =
		&m->append_entries_result;
	raft_index match;

	if (m->type != RAFT_APPEND_ENTRIES_RESULT || r->state != RAFT_LEADER ||
	    res->term != r->current_term ||
	    raft_match_index(r, m->server_id, &match) != 0)
		return;
	seen->result = true;
	seen->low = res->capacity != 0;
	seen->full = res->capacity == CODEC_CAPACITY_FULL;
	if (res->rejected != 0)
		seen->forgot =
			res->rejected <= match && res->last_log_index < match;
	else
		seen->level = res->last_log_index >= match;
}

static void drop_entries(struct raft_append_entries *ae)
{
	raft_free(ae->entries[0].batch);
	ae->n_entries = 0;
}

enum rc step_deliver(struct step *st, uint64_t node_id, uint64_t epoch,
		     const uint8_t *p, size_t n, bool full,
		     struct step_seen *seen)
{
	struct step_peer *peer;
	struct raft_message m;
	enum rc rc = codec_read(p, n, node_id, &m);

	CHECK_OBJ(st, STEP_MAGIC);
	*seen = (struct step_seen){ 0 };
	if (rc != RC_OK)
		return rc;
	if (message_term(&m) > st->raft.current_term + TERM_JUMP_MAX &&
	    !MUTANT(term_jump_taken)) {
		seen->jumped = true;
		codec_discard(&m);
		return RC_OK;
	}
	look_at_result(&st->raft, &m, seen);
	peer = seen->result ? peer_of(st, node_id) : NULL;
	if (peer != NULL)
		peer->full = seen->full;
	if (full && m.type == RAFT_APPEND_ENTRIES &&
	    m.append_entries.n_entries > 0)
		drop_entries(&m.append_entries);
	step_receive(st, &m, epoch);
	codec_release(&m);
	return RC_OK;
}

void step_refusal(struct pack_w *w, uint64_t term)
{
	/* The first entry stands for any: who reads it is of a lower term. */
	const struct raft_message m = {
		.type = RAFT_APPEND_ENTRIES_RESULT,
		.append_entries_result = {
			.version = 2, .term = term, .rejected = 1,
		},
	};
	unsigned from = 0;

	codec_write(w, &m, &from);
}

enum rc step_staged(struct step *st, const struct step_staged *s)
{
	struct raft_message m = {
		.type = RAFT_INSTALL_SNAPSHOT,
		.server_id = s->node_id,
		.server_address = "",
	};
	struct raft_install_snapshot *is = &m.install_snapshot;
	enum rc rc;

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(!st->stepping);
	if (st->failed || st->installing)
		return RC_CONFLICT;
	rc = conf_decode(s->conf, s->conf_bytes, &is->conf);
	if (rc != RC_OK)
		return rc;
	is->term = s->term;
	is->last_index = s->index;
	is->last_term = s->index_term;
	is->conf_index = s->conf_index;
	if (!message_sane(st, &m)) {
		message_release(&m);
		return RC_CORRUPT;
	}
	receive_checked(st, &m);
	if (st->installing)
		return RC_OK;
	return s->term < st->raft.current_term ? RC_CONFLICT : RC_EXISTS;
}

enum rc step_transfer(struct step *st, uint64_t node_id)
{
	struct raft_event ev = { .type = RAFT_TRANSFER };

	CHECK_OBJ(st, STEP_MAGIC);
	PRE(node_id != 0);
	if (st->failed || !step_leads(st) || step_transferee(st) != 0)
		return RC_NOT_LEADER;
	/* The core tells a voter that is not level once, and too early. */
	PRE(step_match(st, node_id) == step_last(st));
	ev.transfer.server_id = node_id;
	switch (step_event(st, &ev, "transfer")) {
	case GUARD_DONE:
		return RC_OK;
	case GUARD_REFUSED:
		return RC_NOT_FOUND;
	case GUARD_STOP:
		break;
	}
	return RC_NOT_LEADER;
}

void step_inflight(struct step *st, uint32_t entries)
{
	CHECK_OBJ(st, STEP_MAGIC);
	PRE(entries >= 1);
	PRE(entries <= STEP_INFLIGHT_MAX);
	raft_set_max_inflight_entries(&st->raft, entries);
}

void step_room(struct step *st, bool low, bool full)
{
	CHECK_OBJ(st, STEP_MAGIC);
	st->room = low ? CODEC_CAPACITY_LOW : 0;
	if (full)
		st->room = CODEC_CAPACITY_FULL;
}

uint64_t step_receiver(const struct raft_message *m)
{
	return m->server_id;
}

bool step_wish(const struct raft_message *m)
{
	return m->type == RAFT_INSTALL_SNAPSHOT;
}

/* ---- reading ---- */

bool step_failed(const struct step *st)
{
	return st->failed;
}

bool step_leads(const struct step *st)
{
	return st->raft.state == RAFT_LEADER;
}

bool step_alone(const struct step *st)
{
	const struct raft_configuration *conf = &st->raft.configuration;

	return conf->n == 1 && guard_sole(conf, st->raft.id);
}

uint64_t step_term(const struct step *st)
{
	return st->raft.current_term;
}

uint64_t step_commit(const struct step *st)
{
	return st->commit;
}

/* The accessors of libraft take no const, and change nothing. */
static struct raft *raft_of(const struct step *st)
{
	return &((struct step *)(uintptr_t)st)->raft;
}

uint64_t step_last(const struct step *st)
{
	return raft_last_index(raft_of(st));
}

uint64_t step_stored(const struct step *st)
{
	return st->raft.last_stored;
}

uint64_t step_term_at(const struct step *st, uint64_t index)
{
	const struct raft_trail *t = &st->raft.trail;
	unsigned i;

	PRE(index > 0);
	if (index == t->snapshot.index)
		return t->snapshot.term;
	if (index <= t->offset)
		return 0;
	/* A record is the last index of a term. */
	for (i = t->front; i != t->back; i = (i + 1) % t->size)
		if (index <= t->records[i].index)
			return t->records[i].term;
	return 0;
}

uint64_t step_snapshot_index(const struct step *st)
{
	return st->raft.trail.snapshot.index;
}

uint64_t step_own_index(const struct step *st)
{
	if (!step_leads(st) || st->own_term != st->raft.current_term)
		return 0;
	return st->own_index;
}

uint64_t step_leader(const struct step *st)
{
	const char *address;
	raft_id id = 0;

	raft_leader(raft_of(st), &id, &address);
	/* A follower keeps the name of a leader whose term is over. */
	if (st->raft.state == RAFT_FOLLOWER &&
	    st->heard_term != st->raft.current_term)
		return 0;
	return id;
}

uint32_t step_voters(const struct step *st)
{
	const struct raft_configuration *conf = &st->raft.configuration;
	uint32_t voters = 0;
	unsigned i;

	for (i = 0; i < conf->n; i++)
		voters += conf->servers[i].role == RAFT_VOTER;
	return voters;
}

static bool conf_voter(const struct raft_configuration *conf, uint64_t id)
{
	unsigned i;

	for (i = 0; i < conf->n; i++)
		if (conf->servers[i].id == id)
			return conf->servers[i].role == RAFT_VOTER;
	return false;
}

bool step_voter(const struct step *st, uint64_t node_id)
{
	const struct raft *r = &st->raft;

	if (conf_voter(&r->configuration, node_id))
		return true;
	return r->configuration_uncommitted_index != 0 &&
	       conf_voter(&r->configuration_committed, node_id);
}

uint64_t step_member_id(const struct step *st, uint32_t i)
{
	const struct raft_configuration *conf = &st->raft.configuration;

	return i < conf->n ? conf->servers[i].id : 0;
}

bool step_installing(const struct step *st)
{
	return st->installing;
}

uint64_t step_first(const struct step *st)
{
	return st->raft.trail.offset + 1;
}

uint64_t step_match(const struct step *st, uint64_t node_id)
{
	raft_index match;

	if (raft_match_index(&st->raft, node_id, &match) != 0)
		return 0;
	return match;
}

uint64_t step_transferee(const struct step *st)
{
	return raft_transferee(&st->raft);
}

uint64_t step_timeout_ms(const struct step *st)
{
	uint64_t at;

	if (st->failed)
		return STEP_NEVER;
	if (!step_leads(st))
		return raft_timeout(&st->raft);
	/* Alone there is nobody to send to and no quorum to watch: the core
	 * would have itself woken every election timeout for nothing. */
	if (step_alone(st))
		return STEP_NEVER;
	at = raft_timeout(&st->raft);
	return guard_b9(at, st->fired_ms, st->raft.heartbeat_timeout);
}

/* ---- configurations ---- */

enum rc step_conf_encode(const struct step_member *voters, size_t n,
			 void **data, size_t *bytes)
{
	struct raft_configuration conf;
	struct raft_buffer buf;
	size_t i;
	int rv = n == 0 ? RAFT_INVALID : 0;

	raft_configuration_init(&conf);
	for (i = 0; i < n && rv == 0; i++) {
		if (voters[i].id == 0 || voters[i].address[0] == '\0')
			rv = RAFT_BADID;
		else
			rv = raft_configuration_add(&conf, voters[i].id,
						    voters[i].address,
						    RAFT_VOTER);
	}
	if (rv == 0)
		rv = raft_configuration_encode(&conf, &buf);
	raft_configuration_close(&conf);
	if (rv != 0)
		return rv == RAFT_NOMEM ? RC_NOMEM : RC_INVALID;
	*data = buf.base;
	*bytes = buf.len;
	return RC_OK;
}

enum rc step_conf_read(const void *data, size_t bytes, uint64_t node_id,
		       struct step_conf *out)
{
	struct raft_configuration conf;
	enum rc rc = conf_decode(data, bytes, &conf);
	unsigned i;

	*out = (struct step_conf){ 0 };
	if (rc != RC_OK)
		return rc;
	out->members = conf.n;
	for (i = 0; i < conf.n; i++) {
		if (conf.servers[i].role == RAFT_VOTER) {
			if (out->voters < STEP_IDS)
				out->ids[out->voters] = conf.servers[i].id;
			out->voters++;
		}
		out->member |= conf.servers[i].id == node_id;
	}
	out->sole = guard_sole(&conf, node_id);
	out->anew = guard_b10(&conf, node_id);
	raft_configuration_close(&conf);
	return RC_OK;
}
