#include "raft-glue/shard.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "node/base/sm.h"
#include "raft-glue/entries.h"
#include "raft-glue/step.h"

#define SHARD_MAGIC 0x73686172u

/*
 *	OPEN --> STARTING --> RUNNING --> HALTED
 *	  |         |            |          |
 *	  +---------+-----+------+----------+
 *	                  v
 *	               CLOSING
 *
 * STARTING waits for what shard_open wrote. HALTED: an entry could not be
 * digested. CLOSING ends with free().
 */
enum {
	SHARD_OPEN,
	SHARD_STARTING,
	SHARD_RUNNING,
	SHARD_HALTED,
	SHARD_CLOSING,
	SHARD_STATES,
};

#define TO(state) (UINT32_C(1) << (state))
static const struct sm_state shard_states[SHARD_STATES] = {
	[SHARD_OPEN] = { .name = "open",
			 .next = TO(SHARD_STARTING) | TO(SHARD_CLOSING) },
	[SHARD_STARTING] = { .name = "starting",
			     .next = TO(SHARD_RUNNING) | TO(SHARD_CLOSING) },
	[SHARD_RUNNING] = { .name = "running",
			    .next = TO(SHARD_HALTED) | TO(SHARD_CLOSING) },
	[SHARD_HALTED] = { .name = "halted", .next = TO(SHARD_CLOSING) },
	[SHARD_CLOSING] = { .name = "closing", .final = true },
};
#undef TO

/* A configuration as it was applied last. */
struct shard_conf {
	uint64_t index;
	void *data;
	size_t bytes;
};

struct shard {
	uint32_t magic;
	uint32_t number;
	uint64_t node_id;
	struct sm sm;
	struct env *env;
	struct log *log;
	struct link *link;
	struct app *app;
	struct step *step;
	struct step_sink sink;
	struct entries tail;
	struct log_listener listener;
	struct env_task turn; /* ENV_PHASE_PROPOSE: commit, propose. */
	struct env_task rest; /* After ENV_PHASE_LOG: apply. */
	struct env_timer timer;
	struct ballot_slot ballot;
	uint64_t state_index; /* What the state contained at open. */
	uint64_t state_term;
	uint64_t ticket;         /* The last one that the log gave us. */
	uint64_t durable_ticket; /* The last one that it reported. */
	uint64_t applied;
	uint64_t floor; /* Last told to the log. */
	struct shard_conf conf;
	uint64_t led_term; /* The core leads in this term; 0: it does not. */
	uint64_t barrier;  /* First entry of that term. */
	uint64_t told;     /* Commit index that the app knows. */
	bool begun;        /* The core was started. */
	bool leading;      /* Between app->lead and app->lost. */
	bool halted;
	bool wanted;   /* The app has something to collect. */
	bool pinned;   /* The log wants a checkpoint. */
	bool due;      /* The timer fired. */
	bool draining; /* The app is on the stack. */
	bool dead;     /* Fail-stop. */
	struct shard_stats stats;
	void (*closed)(void *arg);
	void *closed_arg;
};

static void shard_fail(struct shard *s, const char *why)
{
	if (s->dead)
		return;
	s->dead = true;
	env_fail_stop(s->env, why);
}

static bool shard_dead(const struct shard *s)
{
	return s->dead || step_failed(s->step);
}

/* ---- what the core asks for ---- */

static void shard_ballot(struct step_sink *k, uint64_t term, uint64_t vote)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);

	s->ballot.term = term;
	s->ballot.vote = vote;
	s->ticket = log_vote(s->log, s->number, &s->ballot);
}

static uint64_t shard_log(struct shard *s, uint64_t index,
			  const struct entry *e)
{
	const struct log_entry record = {
		.index = index,
		.term = e->term,
		.type = e->type,
		.data = e->data,
		.bytes = e->bytes,
	};

	return log_append(s->log, s->number, &record);
}

static void shard_append(struct step_sink *k, uint64_t index,
			 const struct step_entry *from)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);
	struct entry e = {
		.term = from->term,
		.type = from->type,
		.data = from->data,
		.bytes = from->bytes,
	};

	/* Applied entries are committed: nobody may take them back. */
	CHECK(index > s->applied);
	s->ticket = e.ticket = shard_log(s, index, &e);
	if (!entries_put(&s->tail, index, &e)) {
		free(e.data);
		shard_fail(s, "no memory for a log entry");
	}
}

static void shard_entry(struct step_sink *k, uint64_t index,
			struct step_entry *out)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);
	const struct entry *e = entries_get(&s->tail, index);

	CHECK(e != NULL);
	*out = (struct step_entry){
		.term = e->term,
		.type = e->type,
		.data = e->data,
		.bytes = e->bytes,
	};
}

/* Nobody can send a snapshot or be sent to: shard_open takes one voter. */
static void shard_install(struct step_sink *k, uint64_t index, uint64_t term)
{
	(void)k;
	(void)index;
	(void)term;
	UNREACHABLE();
}

static void shard_send(struct step_sink *k, const struct raft_message *m)
{
	(void)k;
	(void)m;
	UNREACHABLE();
}

/* ---- what the app hears, in order ---- */

static bool shard_deposed(struct shard *s)
{
	uint64_t term = s->led_term;

	if (term == 0)
		return false;
	if (step_leads(s->step) && step_term(s->step) == term)
		return false;
	s->led_term = 0;
	s->barrier = 0;
	s->wanted = false;
	if (s->leading) {
		s->leading = false;
		s->app->ops->lost(s->app, term);
	}
	return true;
}

/* An entry of the new term commits all that is before it. The core adds one
 * only when its log is longer than its commit index. */
static void shard_bar(struct shard *s)
{
	const uint32_t bytes = 8;
	uint64_t index;
	void *data;

	data = calloc(1, bytes);
	if (data == NULL) {
		shard_fail(s, "no memory for a barrier");
		return;
	}
	if (step_submit(s->step, STEP_BARRIER, data, bytes, &index) != RC_OK) {
		free(data);
		CHECK(shard_dead(s));
		return;
	}
	s->stats.entries++;
	s->stats.bytes += bytes;
}

static bool shard_elected(struct shard *s)
{
	if (s->led_term != 0 || !step_leads(s->step))
		return false;
	s->led_term = step_term(s->step);
	s->stats.elections++;
	if (step_own_index(s->step) == 0)
		shard_bar(s);
	s->barrier = step_own_index(s->step);
	return true;
}

static bool shard_tell(struct shard *s)
{
	uint64_t commit = step_commit(s->step);

	if (!s->leading || commit <= s->told)
		return false;
	s->told = commit;
	s->app->ops->committed(s->app, commit);
	return true;
}

static bool shard_lead(struct shard *s)
{
	if (s->leading || s->led_term == 0 || s->barrier == 0)
		return false;
	if (!MUTANT(execute_without_tail) && s->applied < s->barrier)
		return false;
	s->leading = true;
	s->told = 0;
	s->app->ops->lead(s->app, s->led_term);
	return true;
}

static bool shard_checkpoint(struct shard *s)
{
	if (!s->pinned)
		return false;
	s->pinned = false;
	s->app->ops->checkpoint(s->app);
	return true;
}

static void shard_configured(struct shard *s, uint64_t index,
			     const struct entry *e)
{
	void *data = malloc(e->bytes);

	if (data == NULL) {
		shard_fail(s, "no memory for a configuration");
		return;
	}
	memcpy(data, e->data, e->bytes);
	free(s->conf.data);
	s->conf = (struct shard_conf){ index, data, e->bytes };
	step_configured(s->step, index, data, e->bytes);
}

/* The state may contain what the own log has durably, and no more: a crash
 * would leave it ahead of its log. A leader can learn of a commit before. */
static uint64_t shard_apply_limit(const struct shard *s)
{
	uint64_t commit = step_commit(s->step);

	if (MUTANT(apply_undurable))
		return s->tail.next - 1;
	return commit < s->tail.durable ? commit : s->tail.durable;
}

/* Alone nobody needs what is applied here. */
static void shard_trim(struct shard *s)
{
	if (!step_alone(s->step))
		return;
	entries_drop(&s->tail, s->applied < s->tail.durable ? s->applied
							    : s->tail.durable);
}

static void shard_halt(struct shard *s)
{
	uint64_t term = s->led_term;

	s->halted = true;
	s->stats.halted = true;
	s->wanted = false;
	if (s->sm.now == SHARD_RUNNING)
		sm_move(&s->sm, SHARD_HALTED);
	if (s->leading) {
		s->leading = false;
		s->app->ops->lost(s->app, term);
	}
}

static enum rc shard_apply_entry(struct shard *s, uint64_t index,
				 const struct entry *e)
{
	const struct app_ops *ops = s->app->ops;

	if (e->type == STEP_COMMAND)
		return ops->apply(s->app, index, e->term, e->data, e->bytes);
	if (e->type == STEP_CHANGE)
		return ops->applied_other(s->app, index, e->term, e->data,
					  e->bytes);
	return ops->applied_other(s->app, index, e->term, NULL, 0);
}

static bool shard_apply(struct shard *s)
{
	uint64_t index = s->applied + 1;
	const struct entry *e;
	enum rc rc;

	if (step_installing(s->step) || index > shard_apply_limit(s))
		return false;
	e = entries_get(&s->tail, index);
	CHECK(e != NULL);
	rc = shard_apply_entry(s, index, e);
	if (rc == RC_CORRUPT) {
		shard_halt(s);
		return true;
	}
	if (rc != RC_OK) {
		shard_fail(s, "a committed entry could not be applied");
		return true;
	}
	s->applied = index;
	step_applied(s->step, index, e->term);
	if (e->type == STEP_CHANGE)
		shard_configured(s, index, e);
	shard_trim(s);
	return true;
}

/*
 * One call of the app at a time, in the order that its contract promises: the
 * end of a leadership before anything of the next; the commit of an entry
 * before its application; the whole log before `lead`.
 */
static void shard_drain(struct shard *s, bool apply)
{
	PRE(!s->draining);
	s->draining = true;
	while (!shard_dead(s) && !s->halted) {
		if (shard_deposed(s) || shard_elected(s) || shard_tell(s) ||
		    shard_lead(s))
			continue;
		if (!apply || (!shard_apply(s) && !shard_checkpoint(s)))
			break;
	}
	s->draining = false;
}

/* ---- proposing ---- */

static bool shard_may_append(const struct shard *s)
{
	if (!s->leading || s->sm.now != SHARD_RUNNING || shard_dead(s))
		return false;
	/* Alone the own sync is the commit: what arrives while one runs shares
	 * the next. With followers waiting would cost throughput. */
	if (step_alone(s->step) && log_busy(s->log))
		return false;
	return log_unsynced_bytes(s->log) < UNSYNCED_BYTES_MAX;
}

/* False: nothing is left to propose. */
static bool shard_propose_one(struct shard *s)
{
	const struct app_ops *ops = s->app->ops;
	uint64_t term = s->led_term;
	uint64_t index = 0;
	void *data = NULL;
	size_t bytes = 0;
	enum rc rc;

	/* What was computed in one leadership is not proposed in another. */
	CHECK(step_term(s->step) == term);
	if (!ops->collect(s->app, term, &data, &bytes))
		return false;
	CHECK(data != NULL);
	CHECK(bytes > 0);
	CHECK(bytes <= shard_entry_bytes_max(s));
	rc = step_submit(s->step, STEP_COMMAND, data, (uint32_t)bytes, &index);
	if (rc == RC_OK) {
		s->stats.entries++;
		s->stats.bytes += bytes;
		ops->submitted(s->app, term, index);
	} else {
		free(data);
		ops->refused(s->app, rc);
	}
	return true;
}

static void shard_propose(struct shard *s)
{
	s->draining = true;
	while (s->wanted && shard_may_append(s))
		s->wanted = shard_propose_one(s);
	s->draining = false;
}

/* ---- the turn ---- */

static void shard_begin(struct shard *s)
{
	const struct step_boot boot = {
		.term = s->ballot.term,
		.vote = s->ballot.vote,
		.index = s->state_index,
		.index_term = s->state_term,
		.conf_index = s->conf.index,
		.conf = s->conf.data,
		.conf_bytes = s->conf.bytes,
		.last = s->tail.next - 1,
	};

	sm_move(&s->sm, SHARD_RUNNING);
	/* On a first boot entry 1 was written by us: it is durable now. */
	(void)entries_durable(&s->tail, s->durable_ticket);
	s->begun = true;
	step_start(s->step, &boot);
}

static void shard_arm(struct shard *s)
{
	uint64_t at = step_timeout_ms(s->step);

	if (at == STEP_NEVER)
		env_timer_stop(&s->timer);
	else if (!s->timer.running || s->timer.at_ms != at)
		env_timer_start(&s->timer, at);
}

static bool shard_behind(const struct shard *s)
{
	return s->begun && !s->halted &&
	       (s->pinned || s->applied < shard_apply_limit(s));
}

static void shard_run(struct shard *s)
{
	step_persisted(s->step, entries_durable(&s->tail, s->durable_ticket));
	shard_trim(s);
	shard_drain(s, false);
	/* Timeouts last: after a stall the frames that are in the socket come
	 * before the conclusion that nobody has sent any. */
	if (s->due && env_now_ms(s->env) >= step_timeout_ms(s->step)) {
		step_timeout(s->step);
		shard_drain(s, false);
	}
	s->due = false;
	shard_propose(s);
	if (shard_dead(s))
		return;
	shard_arm(s);
	/* The writer has its batch before this thread applies the last one. */
	if (shard_behind(s))
		env_post(s->env, &s->rest);
}

static void shard_release(struct shard *s)
{
	if (s->step != NULL)
		step_free(s->step);
	entries_release(&s->tail);
	free(s->conf.data);
	s->magic = 0;
	free(s);
}

static void shard_finish(struct shard *s)
{
	void (*closed)(void *arg) = s->closed;
	void *arg = s->closed_arg;

	/* `durable` posts the turn again, and that the rest. */
	if (s->durable_ticket < s->ticket || s->turn.posted || s->rest.posted ||
	    shard_dead(s))
		return;
	env_timer_stop(&s->timer);
	log_listen(s->log, s->number, NULL);
	shard_release(s);
	closed(arg);
}

static void shard_turn(struct env_task *t)
{
	struct shard *s = CONTAINER_OF(t, struct shard, turn);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->sm.now == SHARD_STARTING && s->durable_ticket >= s->ticket)
		shard_begin(s);
	if (s->begun && !shard_dead(s))
		shard_run(s);
	if (s->sm.now == SHARD_CLOSING)
		shard_finish(s);
}

static void shard_rest(struct env_task *t)
{
	struct shard *s = CONTAINER_OF(t, struct shard, rest);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (!shard_dead(s)) {
		shard_drain(s, true);
		shard_arm(s);
	}
	if (s->sm.now == SHARD_CLOSING)
		shard_finish(s);
}

/* ---- what is noted for the turn ---- */

static void shard_durable(struct log_listener *l, uint64_t ticket)
{
	struct shard *s = CONTAINER_OF(l, struct shard, listener);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (ticket <= s->durable_ticket)
		return;
	s->durable_ticket = ticket;
	env_post(s->env, &s->turn);
}

static void shard_idle(struct log_listener *l)
{
	struct shard *s = CONTAINER_OF(l, struct shard, listener);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->wanted)
		env_post(s->env, &s->turn);
}

static void shard_pinning(struct log_listener *l)
{
	struct shard *s = CONTAINER_OF(l, struct shard, listener);

	CHECK_OBJ(s, SHARD_MAGIC);
	s->pinned = true;
	env_post(s->env, &s->turn);
}

static void shard_timer(struct env_timer *t)
{
	struct shard *s = CONTAINER_OF(t, struct shard, timer);

	CHECK_OBJ(s, SHARD_MAGIC);
	s->due = true;
	env_post(s->env, &s->turn);
}

/* ---- opening ---- */

/* What a lone node must be told when it refuses: there is no other copy. */
#define SHARD_ALONE                                                         \
	"a lone node has no other copy to repair it from; acknowledged "    \
	"writes after index %llu may be lost; `holdfast log verify` shows " \
	"what is damaged"

struct shard_scan {
	struct shard *s;
	struct detail *why;
	uint64_t last; /* Of all records, those in the state included. */
	uint64_t last_term;
};

static enum rc scan_damaged(struct shard_scan *scan, const char *what)
{
	struct shard *s = scan->s;

	return detail_set(scan->why, RC_CORRUPT, NULL,
			  "shard %u: %s; " SHARD_ALONE, s->number, what,
			  (unsigned long long)s->applied);
}

static enum rc scan_keep(struct shard_scan *scan, const struct log_entry *from)
{
	struct shard *s = scan->s;
	struct step_conf conf;
	struct entry e = {
		.term = from->term,
		.type = from->type,
		.bytes = from->bytes,
	};
	enum rc rc;

	if (from->type == STEP_CHANGE) {
		rc = step_conf_read(from->data, from->bytes, s->node_id, &conf);
		if (rc == RC_CORRUPT)
			return scan_damaged(scan, "a configuration in the log "
						  "cannot be read");
		if (rc != RC_OK)
			return rc;
	} else if (from->type != STEP_COMMAND && from->type != STEP_BARRIER) {
		return scan_damaged(scan, "the log has an entry of an unknown "
					  "type");
	}
	e.data = malloc(e.bytes > 0 ? e.bytes : 1);
	if (e.data == NULL)
		return RC_NOMEM;
	if (e.bytes > 0)
		memcpy(e.data, from->data, e.bytes);
	if (!entries_put(&s->tail, from->index, &e)) {
		free(e.data);
		return RC_NOMEM;
	}
	return RC_OK;
}

static enum rc scan_entry(void *arg, const struct log_entry *e)
{
	struct shard_scan *scan = arg;
	struct shard *s = scan->s;

	if (scan->last != 0 && e->index != scan->last + 1)
		return scan_damaged(scan, "the log has a gap");
	if (e->term == 0 || e->term < scan->last_term ||
	    e->term > s->ballot.term)
		return scan_damaged(scan, "the terms in the log do not fit "
					  "the ballot");
	scan->last = e->index;
	scan->last_term = e->term;
	if (e->index == s->state_index && e->term != s->state_term)
		return scan_damaged(scan, "the state is of another log");
	if (e->index <= s->state_index)
		return RC_OK;
	if (e->index > s->tail.next)
		return scan_damaged(scan, "the log begins after the state "
					  "ends");
	return scan_keep(scan, e);
}

static enum rc shard_recover(struct shard *s, const struct shard_state *state,
			     struct detail *why)
{
	struct shard_scan scan = { .s = s, .why = why };
	uint64_t base_index = 0;
	uint64_t base_term = 0;
	struct log_range range;
	enum rc rc;

	range = log_range(s->log, s->number);
	rc = log_recovered(s->log, s->number, scan_entry, &scan, &base_index,
			   &base_term);
	if (rc != RC_OK)
		return rc;
	if (base_index > state->index)
		return scan_damaged(&scan, "the log goes on after a snapshot "
					   "that the state does not contain");
	if (range.first > state->index + 1)
		return scan_damaged(&scan, "the log begins after the state "
					   "ends");
	if (range.last > state->synced_index && scan.last != range.last)
		return scan_damaged(&scan, "the log lacks records");
	/* We apply only what is durable in the log: it has lost what it had
	 * synced, and who knows how much behind the state's end. */
	if (range.last < state->index)
		return scan_damaged(&scan, "the log ends before the state "
					   "does");
	if (state->index == 0 && s->tail.next > 1 &&
	    entries_get(&s->tail, 1)->type != STEP_CHANGE)
		return scan_damaged(&scan, "the log does not begin with a "
					   "configuration");
	(void)entries_durable(&s->tail, 0);
	return RC_OK;
}

/* The newest configuration, committed or not, is the one in force. */
static enum rc shard_conf_now(const struct shard *s, struct step_conf *out)
{
	const struct entry *e;
	uint64_t i;

	for (i = s->tail.next; i > s->tail.first; i--) {
		e = entries_get(&s->tail, i - 1);
		if (e->type == STEP_CHANGE)
			return step_conf_read(e->data, e->bytes, s->node_id,
					      out);
	}
	return step_conf_read(s->conf.data, s->conf.bytes, s->node_id, out);
}

static enum rc shard_membership(const struct shard *s, struct detail *why)
{
	struct step_conf conf;
	enum rc rc = shard_conf_now(s, &conf);

	if (rc == RC_CORRUPT)
		return detail_set(why, rc, NULL,
				  "shard %u: the configuration in its state "
				  "cannot be read",
				  s->number);
	if (rc != RC_OK)
		return rc;
	if (!conf.member)
		return detail_set(
			why, RC_FOREIGN, NULL,
			"shard %u: node %llu is not among its members",
			s->number, (unsigned long long)s->node_id);
	if (!conf.sole || conf.members != 1)
		return detail_set(why, RC_UNSUPPORTED, NULL,
				  "shard %u has %u members; this version runs "
				  "shards of one",
				  s->number, conf.members);
	return RC_OK;
}

/* Entry 1, the same on every founder. It is written when nothing can go wrong
 * any more. */
static enum rc shard_found(struct shard *s, const struct shard_config *cfg,
			   struct detail *why)
{
	struct step_member members[VOTERS_MAX];
	enum rc rc;
	uint32_t i;

	for (i = 0; i < cfg->voters_n; i++) {
		members[i].id = cfg->voters[i].id;
		members[i].address = cfg->voters[i].address;
	}
	rc = step_conf_encode(members, cfg->voters_n, &s->conf.data,
			      &s->conf.bytes);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "shard %u: its founders cannot be listed",
				  s->number);
	if (!entries_reserve(&s->tail))
		return RC_NOMEM;
	if (s->ballot.term == 0)
		s->ballot.term = 1;
	return RC_OK;
}

/* The first writes of this boot; they share a sync with those of the other
 * shards. */
static void shard_write(struct shard *s, bool founded)
{
	struct entry e = { .term = 1, .type = STEP_CHANGE };

	if (founded) {
		e.data = s->conf.data;
		e.bytes = (uint32_t)s->conf.bytes;
		s->conf = (struct shard_conf){ 0 };
		s->ticket = e.ticket = shard_log(s, 1, &e);
		CHECK(entries_put(&s->tail, 1, &e));
	}
	/* Guard B10: the core would elect itself in the term it is given, which
	 * may have been another leadership of ours with a lost tail. */
	s->ballot.term++;
	s->ballot.vote = 0;
	s->ticket = log_vote(s->log, s->number, &s->ballot);
}

static const char *shard_address(const struct shard_config *cfg)
{
	uint32_t i;

	for (i = 0; i < cfg->voters_n; i++)
		if (cfg->voters[i].id == cfg->node_id)
			return cfg->voters[i].address;
	return "-";
}

static enum rc shard_whole(struct shard *s, const struct shard_config *cfg,
			   struct detail *why)
{
	struct detail found = { 0 };
	struct shard_scan scan = { .s = s, .why = why };

	if (!cfg->ballot_good)
		return scan_damaged(&scan, "both copies of its ballot are bad");
	if (log_status(s->log, s->number, &found) != LOG_WHOLE)
		return detail_set(
			why, RC_CORRUPT, NULL,
			"shard %u: its log is damaged; " SHARD_ALONE " (%s)",
			s->number, (unsigned long long)s->applied, found.text);
	return RC_OK;
}

static enum rc shard_keep_conf(struct shard *s, const struct shard_state *state)
{
	if (state->index == 0)
		return RC_OK;
	s->conf.data = malloc(state->conf_bytes > 0 ? state->conf_bytes : 1);
	if (s->conf.data == NULL)
		return RC_NOMEM;
	if (state->conf_bytes > 0)
		memcpy(s->conf.data, state->conf, state->conf_bytes);
	s->conf.bytes = state->conf_bytes;
	s->conf.index = state->conf_index;
	return RC_OK;
}

static struct shard *shard_new(struct env *env, struct log *log,
			       struct link *link, struct app *app,
			       const struct shard_config *cfg,
			       const struct shard_state *state)
{
	struct shard *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	s->magic = SHARD_MAGIC;
	s->number = cfg->shard;
	s->node_id = cfg->node_id;
	s->env = env;
	s->log = log;
	s->link = link;
	s->app = app;
	s->ballot = cfg->ballot;
	s->state_index = state->index;
	s->state_term = state->term;
	s->applied = state->index;
	s->floor = state->synced_index;
	s->sink.ballot = shard_ballot;
	s->sink.append = shard_append;
	s->sink.entry = shard_entry;
	s->sink.install = shard_install;
	s->sink.send = shard_send;
	s->listener.durable = shard_durable;
	s->listener.pinning = shard_pinning;
	s->listener.idle = shard_idle;
	s->turn.cb = shard_turn;
	s->turn.phase = ENV_PHASE_PROPOSE;
	s->rest.cb = shard_rest;
	s->rest.phase = ENV_PHASE_RELEASE;
	env_timer_init(&s->timer, env, shard_timer);
	entries_init(&s->tail, state->index + 1);
	sm_init(&s->sm, shard_states, SHARD_STATES, SHARD_OPEN);
	return s;
}

enum rc shard_open(struct env *env, struct log *log, struct link *link,
		   struct app *app, const struct shard_config *cfg,
		   const struct shard_state *state, struct shard **out,
		   struct detail *why)
{
	const struct step_config core = {
		.env = env,
		.node_id = cfg->node_id,
		.address = shard_address(cfg),
		.election_ms = cfg->election_ms,
		.heartbeat_ms = cfg->heartbeat_ms,
	};
	struct shard *s;
	bool founded;
	enum rc rc;

	PRE(cfg->node_id > 0);
	PRE(cfg->voters_n <= VOTERS_MAX);
	PRE(state->index == 0 || state->conf != NULL);
	s = shard_new(env, log, link, app, cfg, state);
	if (s == NULL)
		return RC_NOMEM;
	rc = shard_whole(s, cfg, why);
	if (rc == RC_OK)
		rc = shard_keep_conf(s, state);
	if (rc == RC_OK)
		rc = shard_recover(s, state, why);
	founded = s->applied == 0 && s->tail.next == 1;
	if (rc == RC_OK && founded)
		rc = shard_found(s, cfg, why);
	if (rc == RC_OK)
		rc = shard_membership(s, why);
	if (rc == RC_OK)
		rc = step_new(&core, &s->sink, &s->step);
	if (rc != RC_OK) {
		shard_release(s);
		return rc;
	}
	log_listen(log, s->number, &s->listener);
	shard_write(s, founded);
	*out = s;
	return RC_OK;
}

void shard_start(struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	sm_move(&s->sm, SHARD_STARTING);
	env_post(s->env, &s->turn);
}

/* ---- the rest ---- */

void shard_want(struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	if (!s->leading)
		return;
	s->wanted = true;
	env_post(s->env, &s->turn);
}

uint32_t shard_entry_bytes_max(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return log_entry_bytes_max(s->log);
}

bool shard_full(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return log_full(s->log, s->number);
}

bool shard_leads(const struct shard *s, uint64_t *term)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	if (!s->leading)
		return false;
	*term = s->led_term;
	return true;
}

uint64_t shard_term(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->ballot.term;
}

uint64_t shard_leader(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->begun ? step_leader(s->step) : 0;
}

uint64_t shard_commit_index(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->begun ? step_commit(s->step) : s->applied;
}

uint64_t shard_last_index(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->tail.next - 1;
}

uint64_t shard_durable_index(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->tail.durable;
}

uint64_t shard_applied_index(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->applied;
}

uint32_t shard_number(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->number;
}

uint32_t shard_voters(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->begun ? step_voters(s->step) : 1;
}

void shard_stats(const struct shard *s, struct shard_stats *out)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	*out = s->stats;
	out->cached = s->tail.bytes;
	out->trimmed = step_snapshot_index(s->step);
}

void shard_checkpointed(struct shard *s, uint64_t index)
{
	uint32_t trailing;

	CHECK_OBJ(s, SHARD_MAGIC);
	PRE(index <= s->applied);
	if (index < s->floor)
		return;
	s->floor = index;
	log_floor(s->log, s->number, index);
	if (!s->begun || shard_dead(s) || index <= step_snapshot_index(s->step))
		return;
	/* The core wants the configuration that was final at `index`; a newer
	 * one waits for a checkpoint that contains it. */
	if (s->conf.index > index)
		return;
	if (MUTANT(apply_undurable) && index > step_stored(s->step))
		return;
	trailing = step_alone(s->step) ? 0 : TRAILING_ENTRIES;
	step_snapshot(s->step, index, s->conf.index, s->conf.data,
		      s->conf.bytes, trailing);
}

void shard_close(struct shard *s, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	sm_move(&s->sm, SHARD_CLOSING);
	s->closed = closed;
	s->closed_arg = arg;
	env_post(s->env, &s->turn);
}

void shard_discard(struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	PRE(!s->draining);
	shard_release(s);
}
