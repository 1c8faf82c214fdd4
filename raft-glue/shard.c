#include "raft-glue/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/base/sm.h"
#include "raft-glue/codec.h"
#include "raft-glue/entries.h"
#include "raft-glue/snapshot.h"
#include "raft-glue/step.h"

#define SHARD_MAGIC 0x73686172u

/*
 *	OPEN --> STARTING --> RUNNING <-> HALTED
 *	  |       |    |        ^  |        |
 *	  |       |    v        |  |        |
 *	  |       |  ABSENT ----+  |        |
 *	  |       |    |           |        |
 *	  +-------+----+----+------+--------+
 *	                    v
 *	                 CLOSING
 *
 * STARTING waits for what shard_open wrote. ABSENT: log or ballot are lost, so
 * the core is not started before a leader has sent its state. HALTED: an entry
 * could not be digested; it goes on if that was the state's fault and a leader
 * sends another. CLOSING ends with free().
 */
enum {
	SHARD_OPEN,
	SHARD_STARTING,
	SHARD_ABSENT,
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
			     .next = TO(SHARD_RUNNING) | TO(SHARD_ABSENT) |
				     TO(SHARD_CLOSING) },
	[SHARD_ABSENT] = { .name = "absent",
			   .next = TO(SHARD_RUNNING) | TO(SHARD_CLOSING) },
	[SHARD_RUNNING] = { .name = "running",
			    .next = TO(SHARD_HALTED) | TO(SHARD_CLOSING) },
	[SHARD_HALTED] = { .name = "halted",
			   .next = TO(SHARD_RUNNING) | TO(SHARD_CLOSING) },
	[SHARD_CLOSING] = { .name = "closing", .final = true },
};
#undef TO

/*
 * A snapshot that was received becomes the state:
 *
 *	STAGED   its file is whole and synced, and nothing points to it.
 *	WRITING  the ballot slot that names its generation, with its hash, and
 *	         the base record that voids the log are on their way. The slot
 *	         is written first: once it is durable the install will happen.
 *	CLEARING both are durable; the slot without the hash is on its way.
 *	SWITCHING the app makes it the state.
 *	SWITCHED the app has.
 *
 * The hash in the slot stands exactly from the commit point until the base
 * record is durable. Nothing is appended, acknowledged or applied in between.
 * So who finds one at start knows, whatever its log looks like, that the log is
 * void and begins after the state: it writes the base record (once more) and
 * clears the hash. If it were kept longer, a log that later lost its end would
 * be taken for the result of an install.
 * A state that is replaced beside a whole log needs no base record and no hash:
 * it skips CLEARING.
 */
enum install {
	INSTALL_NONE,
	INSTALL_STAGED,
	INSTALL_WRITING,
	INSTALL_CLEARING,
	INSTALL_SWITCHING,
	INSTALL_SWITCHED,
};

/* A configuration as it was applied last. */
struct shard_conf {
	uint64_t index;
	void *data;
	size_t bytes;
};

/* Another member. */
struct shard_other {
	uint64_t id;
	uint64_t heard_ms;
	bool refused;
	bool low;    /* Its disk is. */
	bool full;   /* So much that it takes nothing. */
	bool wished; /* The core wants to send it a snapshot. */
	/* It asked for one: what it may have acknowledged of this leadership
	 * ends at `wants_index`. */
	bool wants;
	bool abstains;
	uint64_t wants_term;
	uint64_t wants_index;
	/* What it told us, who have lost our ballot. */
	bool told;
	bool told_lost; /* It has lost its own. */
	uint64_t told_term;
};

/* A message that waits for the ballot. */
struct held {
	STAILQ_ENTRY(held) link;
	uint64_t to;
	size_t n;
	uint8_t p[];
};

struct shard {
	uint32_t magic;
	uint32_t number;
	uint64_t node_id;
	uint32_t election_ms;
	uint32_t heartbeat_ms;
	struct sm sm;
	struct env *env;
	struct log *log;
	struct transport *transport;
	struct app *app;
	struct step *step;
	struct step_sink sink;
	struct entries tail;
	struct log_listener listener;
	struct transport_sink wire;
	struct env_task turn; /* ENV_PHASE_PROPOSE: commit, propose. */
	struct env_task rest; /* After ENV_PHASE_LOG: apply. */
	struct env_timer timer;
	struct ballot_slot ballot;
	uint64_t state_index; /* What the state contained at open. */
	uint64_t state_term;
	bool unsure;             /* state_term is a guess. */
	uint64_t ticket;         /* The last one that the log gave us. */
	uint64_t durable_ticket; /* The last one that it reported. */
	uint64_t vote_ticket;    /* The same of ballots. */
	uint64_t voted_ticket;
	uint64_t voted_ms; /* When a ballot became durable last. */
	STAILQ_HEAD(, held) held;
	size_t held_bytes;
	struct pack_w out;
	uint64_t applied;
	uint64_t floor; /* Last told to the log. */
	struct shard_conf conf;
	uint64_t voters[VOTERS_MAX]; /* Before the core has started. */
	struct shard_other others[VOTERS_MAX];
	uint64_t led_term;    /* The core leads in this term; 0: it does not. */
	uint64_t barrier;     /* First entry of that term. */
	uint64_t told;        /* Commit index that the app knows. */
	uint64_t transfer_to; /* 0: leadership is not being handed over. */
	uint64_t transfer_ms; /* Until then it must be level. */
	bool transfer_told;   /* It was told to stand. */
	uint64_t yield_ms;    /* Not before that is the next hand-over tried. */
	uint64_t yield_term;  /* In which the last one was. */
	uint64_t pending_ms;  /* Since then something is not durable; 0: all is.
			       */
	uint64_t mute_term;   /* Nothing is said or heard in this leadership. */
	enum shard_health health;
	uint32_t trailing; /* Applied entries that are kept for followers. */
	bool ballot_lost;
	char why[160]; /* Why it is not SHARD_WHOLE. */
	struct snapshots *snapshots;
	struct snapshots_owner owner;
	uint64_t ask_ms; /* When the others are asked next. */
	enum install install;
	struct snapshot_from from; /* Of what is staged, */
	struct snapshot what;      /* the snapshots' until they are told. */
	uint64_t generation;
	uint8_t hash[16];
	bool beside; /* The log is kept. */
	bool begun;  /* The core was started. */
	/* Before: who says that it leads, and in which term. */
	uint64_t heard_leader;
	uint64_t heard_term;
	bool leading; /* Between app->lead and app->lost. */
	bool halted;
	bool wanted;   /* The app has something to collect. */
	bool pinned;   /* The log wants a checkpoint. */
	bool due;      /* The timer fired. */
	bool spoilt;   /* The state is bad, says the app. */
	bool draining; /* The app is on the stack. */
	bool dead;     /* Fail-stop. */
	bool full;     /* The disk is. */
	struct shard_stats stats;
	void (*closed)(void *arg);
	void *closed_arg;
};

#define ASK_MS    500u  /* Between two questions of who wants a snapshot. */
#define YIELD_MS  1000u /* Between two hand-overs by who must not lead. */
#define FINISH_MS 100u  /* Between two looks whether the log is stalled. */

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

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* NULL: it is none, or there is no room for another. */
static struct shard_other *shard_other(struct shard *s, uint64_t id)
{
	unsigned i;

	for (i = 0; i < VOTERS_MAX && id != s->node_id; i++) {
		if (s->others[i].id == 0)
			s->others[i].id = id;
		if (s->others[i].id == id)
			return &s->others[i];
	}
	return NULL;
}

/* The i-th voter; 0: no more. Before the core has started: of the last
 * configuration that is known. */
static uint64_t shard_member(const struct shard *s, uint32_t i)
{
	if (s->begun)
		return step_member_id(s->step, i);
	return i < VOTERS_MAX ? s->voters[i] : 0;
}

static bool shard_heard(const struct shard *s, const struct shard_other *o)
{
	return o->heard_ms != 0 &&
	       env_now_ms(s->env) - o->heard_ms < s->election_ms;
}

/* It may be elected, for the log's sake, but then hands over. */
static bool shard_may_lead(const struct shard *s)
{
	return s->health == SHARD_WHOLE && !s->halted;
}

/* ---- messages ---- */

static bool shard_mute(const struct shard *s)
{
	return s->mute_term != 0 && step_leads(s->step) &&
	       step_term(s->step) == s->mute_term;
}

static void shard_hold(struct shard *s, uint64_t to, const void *p, size_t n)
{
	struct held *h;

	if (s->held_bytes + n > HELD_BYTES_MAX)
		return; /* Raft sends again. */
	h = malloc(sizeof(*h) + n);
	if (h == NULL)
		return;
	h->to = to;
	h->n = n;
	memcpy(h->p, p, n);
	STAILQ_INSERT_TAIL(&s->held, h, link);
	s->held_bytes += n;
	s->stats.held++;
}

static enum rc shard_emit(struct shard *s, uint64_t to, const void *p, size_t n)
{
	s->stats.messages_out++;
	return transport_send(s->transport, CHANNEL_RAFT, s->number, to, p, n,
			      NULL, 0);
}

/* The ballot that they rest on is durable, or (not `send`) nobody wants them
 * any longer. */
static void shard_unhold(struct shard *s, bool send)
{
	struct held *h;

	while ((h = STAILQ_FIRST(&s->held)) != NULL) {
		STAILQ_REMOVE_HEAD(&s->held, link);
		if (send)
			(void)shard_emit(s, h->to, h->p, h->n);
		s->held_bytes -= h->n;
		free(h);
	}
}

static void shard_want_snapshot(struct shard *s, uint64_t id);

static void shard_send(struct step_sink *k, const struct raft_message *m)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);
	uint64_t to = step_receiver(m);
	unsigned from = 0;

	CHECK(s->transport != NULL);
	if (s->dead || s->sm.now == SHARD_CLOSING || shard_mute(s))
		return;
	if (step_wish(m)) {
		shard_want_snapshot(s, to);
		return;
	}
	do {
		pack_w_reset(&s->out);
		codec_write(&s->out, m, &from);
		/* A piece that is lost makes all behind it useless. */
		if (s->out.rc != RC_OK)
			return;
		if (s->vote_ticket > s->voted_ticket &&
		    !MUTANT(vote_not_persisted))
			shard_hold(s, to, s->out.p, s->out.n);
		else if (shard_emit(s, to, s->out.p, s->out.n) != RC_OK)
			return;
	} while (codec_more(m, from));
}

/* Too much is not durable, or not applied, or there is no room for it: entries
 * are not taken, and so not acknowledged. The majority goes on without us. */
static bool shard_replete(const struct shard *s)
{
	if (s->full && !MUTANT(full_disk_acknowledges))
		return true;
	return log_unsynced_bytes(s->log) >= 2 * UNSYNCED_BYTES_MAX ||
	       entries_above(&s->tail, s->applied) >= BEHIND_BYTES_MAX;
}

/* Its disk is not the one that acknowledged. */
static void shard_forgotten(struct shard *s, struct shard_other *o)
{
	if (o->refused)
		return;
	o->refused = true;
	LOG_WARN("peer_forgot", F("shard", s->number), F("node", o->id),
		 F("match", step_match(s->step, o->id)),
		 F("why", "its log ends below what it acknowledged: the disk "
			  "was lost or rolled back; `holdfast node reset` "
			  "brings the node back"));
}

/* Who abstains follows nobody, and must still know whom to ask: the directory
 * says which disks the others have now. */
static void shard_hear(struct shard *s, uint64_t node_id, const uint8_t *p,
		       size_t n)
{
	uint64_t term;

	if (MUTANT(absent_hears_nobody) || !codec_leads(p, n, &term) ||
	    term < s->heard_term)
		return;
	s->heard_term = term;
	s->heard_leader = node_id;
}

static void shard_received(struct transport_sink *k, uint64_t node_id,
			   uint64_t epoch, const uint8_t *p, size_t n)
{
	struct shard *s = CONTAINER_OF(k, struct shard, wire);
	struct shard_other *o = shard_other(s, node_id);
	struct step_seen seen;
	enum rc rc;

	CHECK_OBJ(s, SHARD_MAGIC);
	if (!s->begun && o != NULL)
		shard_hear(s, node_id, p, n);
	if (!s->begun || o == NULL || s->sm.now == SHARD_CLOSING || s->dead ||
	    step_failed(s->step) || shard_mute(s))
		return;
	rc = step_deliver(s->step, node_id, epoch, p, n, shard_replete(s),
			  &seen);
	if (rc == RC_INVALID)
		transport_drop(s->transport, CHANNEL_RAFT, node_id);
	if (rc != RC_OK)
		return;
	s->stats.messages_in++;
	if (seen.jumped) {
		s->stats.refused++;
		LOG_WARN("term_jump", F("shard", s->number), F("node", node_id),
			 F("term", s->ballot.term),
			 F("why", "a term more than 1,048,576 ahead is "
				  "refused"));
		return;
	}
	o->heard_ms = env_now_ms(s->env);
	if (seen.result) {
		o->low = seen.low;
		o->full = seen.full;
	}
	if (seen.forgot)
		shard_forgotten(s, o);
	else if (seen.level)
		o->refused = false;
	env_post(s->env, &s->turn);
}

/* ---- what the core asks for ---- */

static void shard_write_ballot(struct shard *s)
{
	s->vote_ticket = log_vote(s->log, s->number, &s->ballot);
	s->ticket = s->vote_ticket;
}

static void shard_ballot(struct step_sink *k, uint64_t term, uint64_t vote)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);

	s->ballot.term = term;
	s->ballot.vote = vote;
	if (MUTANT(term_not_persisted) && vote == 0)
		return;
	shard_write_ballot(s);
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

static void shard_show(struct step_sink *k, uint64_t index,
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

/* The log is void up to the snapshot's index: what was appended is not reported
 * any more. The slot names the staged file, and is written before the record:
 * the commit point. */
static void shard_base(struct shard *s, uint64_t index, uint64_t term)
{
	entries_release(&s->tail);
	entries_init(&s->tail, index + 1);
	(void)log_base(s->log, s->number, index, term);
	s->ballot.state_generation = s->generation;
	memcpy(s->ballot.state_hash, s->hash, sizeof(s->hash));
	shard_write_ballot(s);
	s->install = INSTALL_WRITING;
}

static void shard_install(struct step_sink *k, uint64_t index, uint64_t term)
{
	struct shard *s = CONTAINER_OF(k, struct shard, sink);

	CHECK(s->install == INSTALL_STAGED);
	CHECK(index == s->what.index);
	shard_base(s, index, term);
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
	s->transfer_to = 0;
	snapshots_stop(s->snapshots);
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
	s->mute_term = 0;
	if (step_own_index(s->step) == 0)
		shard_bar(s);
	s->barrier = step_own_index(s->step);
	if (shard_may_lead(s) && !shard_dead(s) && s->app->ops->elected != NULL)
		s->app->ops->elected(s->app, s->led_term);
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
	if (s->leading || s->led_term == 0 || s->barrier == 0 ||
	    !shard_may_lead(s))
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
	if (!s->pinned || s->halted)
		return false;
	s->pinned = false;
	/* A state that is to be replaced cannot move the log's floor. */
	if (s->health != SHARD_STATE_BAD)
		s->app->ops->checkpoint(s->app);
	return true;
}

static void shard_conf_set(struct shard *s, uint64_t index, const void *conf,
			   size_t bytes)
{
	void *data = malloc(bytes > 0 ? bytes : 1);

	if (data == NULL) {
		shard_fail(s, "no memory for a configuration");
		return;
	}
	if (bytes > 0)
		memcpy(data, conf, bytes);
	free(s->conf.data);
	s->conf = (struct shard_conf){ index, data, bytes };
}

static void shard_configured(struct shard *s, uint64_t index,
			     const struct entry *e)
{
	shard_conf_set(s, index, e->data, e->bytes);
	if (!shard_dead(s))
		step_configured(s->step, index, e->data, e->bytes);
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

/* The core's log goes no further back than the entries that are held. */
static void shard_forget(struct shard *s, uint64_t index)
{
	uint64_t snapshot = min_u64(s->applied, step_stored(s->step));

	if (step_installing(s->step) || index < step_first(s->step) ||
	    snapshot <= step_snapshot_index(s->step) || index > snapshot ||
	    s->conf.index > snapshot)
		return;
	step_snapshot(s->step, snapshot, s->conf.index, s->conf.data,
		      s->conf.bytes, (uint32_t)(snapshot - index));
	entries_drop(&s->tail, step_first(s->step) - 1);
}

/* The lowest index that a voter who answers has, or a stream contains. */
static uint64_t shard_needed(struct shard *s, uint64_t *bytes_max)
{
	uint64_t lowest = snapshots_pin(s->snapshots);
	struct shard_other *o;
	uint64_t match;
	uint32_t i;

	*bytes_max = lowest != UINT64_MAX ? TRAILING_STREAM_BYTES
					  : TRAILING_LAG_BYTES;
	if (MUTANT(trim_unpinned))
		return UINT64_MAX;
	if (!step_leads(s->step))
		return lowest;
	for (i = 0; shard_member(s, i) != 0; i++) {
		o = shard_other(s, shard_member(s, i));
		if (o == NULL || !shard_heard(s, o))
			continue;
		match = step_match(s->step, o->id);
		/* Who is further behind gets a snapshot. */
		if (match < lowest && match + 1 >= s->tail.first)
			lowest = match;
	}
	return lowest;
}

/*
 * Followers want what is applied here: the last `trailing` are kept, or
 * fewer when they are large, more while somebody is on its way. Alone nobody
 * wants any.
 */
static void shard_trim(struct shard *s)
{
	uint64_t upto = min_u64(s->applied, s->tail.durable);
	uint64_t first = s->tail.first;
	uint64_t bytes_max;
	uint64_t needed;
	uint64_t bytes;

	if (step_alone(s->step)) {
		entries_drop(&s->tail, upto);
		return;
	}
	bytes = s->tail.bytes - entries_above(&s->tail, upto);
	/* In slices: what is trimmed at all is trimmed by a quarter. */
	if (first > upto || s->health == SHARD_STATE_BAD ||
	    (upto - first < s->trailing + s->trailing / 4 &&
	     bytes < TRAILING_BYTES + TRAILING_BYTES / 4))
		return;
	needed = shard_needed(s, &bytes_max);
	for (; first <= upto; first++) {
		if (upto - first < s->trailing && bytes <= TRAILING_BYTES)
			break;
		/* What follows an entry is sent with its term. */
		if (first >= needed && bytes <= bytes_max)
			break;
		bytes -= entries_get(&s->tail, first)->bytes;
	}
	shard_forget(s, first - 1);
}

/* It leads no more, whatever the core does. */
static void shard_resign(struct shard *s)
{
	uint64_t term = s->led_term;

	s->wanted = false;
	if (!s->leading)
		return;
	s->leading = false;
	s->app->ops->lost(s->app, term);
}

static void shard_halt(struct shard *s)
{
	s->halted = true;
	s->health = SHARD_STUCK;
	s->stats.halted = true;
	if (s->sm.now == SHARD_RUNNING)
		sm_move(&s->sm, SHARD_HALTED);
	shard_resign(s);
}

/* What the app said of its state takes effect. */
static bool shard_spoil(struct shard *s)
{
	if (!s->spoilt)
		return false;
	s->spoilt = false;
	if (step_alone(s->step)) {
		shard_halt(s);
		return true;
	}
	s->health = SHARD_STATE_BAD;
	s->halted = false;
	s->stats.halted = false;
	if (s->sm.now == SHARD_HALTED)
		sm_move(&s->sm, SHARD_RUNNING);
	snapshots_stop(s->snapshots);
	shard_resign(s);
	return true;
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

	if (s->halted || s->install > INSTALL_STAGED ||
	    s->health == SHARD_STATE_BAD || index > shard_apply_limit(s))
		return false;
	e = entries_get(&s->tail, index);
	CHECK(e != NULL);
	rc = shard_apply_entry(s, index, e);
	if (rc == RC_CORRUPT && MUTANT(undigested_skipped))
		rc = RC_OK;
	if (rc == RC_CORRUPT) {
		(void)snprintf(s->why, sizeof(s->why),
			       "entry %llu cannot be digested; `holdfast log "
			       "verify` shows it",
			       (unsigned long long)index);
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
	while (!shard_dead(s)) {
		if (shard_spoil(s) || shard_deposed(s) || shard_elected(s) ||
		    shard_tell(s) || shard_lead(s))
			continue;
		if (!apply || (!shard_apply(s) && !shard_checkpoint(s)))
			break;
	}
	s->draining = false;
}

/* ---- proposing ---- */

/* Proposed and not committed, or committed and not durable here: with quick
 * followers and a slow disk it would grow for ever. */
static bool shard_far_ahead(const struct shard *s)
{
	uint64_t safe = shard_apply_limit(s);

	if (MUTANT(ahead_unbounded))
		return false;
	return s->tail.next - 1 - safe >= AHEAD_ENTRIES_MAX ||
	       entries_above(&s->tail, safe) >= AHEAD_BYTES_MAX;
}

static bool shard_may_append(const struct shard *s)
{
	if (!s->leading || s->sm.now != SHARD_RUNNING || shard_dead(s))
		return false;
	/* The one that is to lead must become level. */
	if (s->transfer_to != 0)
		return false;
	if (log_unsynced_bytes(s->log) >= UNSYNCED_BYTES_MAX)
		return false;
	/* Alone the own sync is the commit: what arrives while one runs shares
	 * the next. With followers waiting would cost throughput. */
	if (step_alone(s->step))
		return !log_busy(s->log);
	return !shard_far_ahead(s);
}

/* As many small entries as the core allows, or some bytes of large ones. */
static void shard_inflight(struct shard *s)
{
	uint64_t held = s->tail.next - s->tail.first;
	uint64_t n = STEP_INFLIGHT_MAX;

	if (s->tail.bytes > 0 && !MUTANT(inflight_unbounded))
		n = min_u64(n, held * INFLIGHT_BYTES / s->tail.bytes);
	step_inflight(s->step, n > 8 ? (uint32_t)n : 8);
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
	if (!s->wanted || !shard_may_append(s))
		return;
	shard_inflight(s);
	s->draining = true;
	while (s->wanted && shard_may_append(s))
		s->wanted = shard_propose_one(s);
	s->draining = false;
}

/* ---- handing over ---- */

static bool shard_is_voter(const struct shard *s, uint64_t id)
{
	uint32_t i;

	if (s->begun)
		return step_voter(s->step, id);
	for (i = 0; i < VOTERS_MAX; i++)
		if (s->voters[i] == id && id != 0)
			return true;
	return false;
}

/* The voter that answers and has the most; 0: nobody answers. */
static uint64_t shard_most_level(struct shard *s)
{
	struct shard_other *o;
	uint64_t best = 0;
	uint64_t most = 0;
	uint64_t match;
	uint32_t i;

	for (i = 0; shard_member(s, i) != 0; i++) {
		o = shard_other(s, shard_member(s, i));
		if (o == NULL || !shard_heard(s, o) || o->refused ||
		    !step_voter(s->step, o->id))
			continue;
		match = step_match(s->step, o->id);
		if (best == 0 || match > most) {
			best = o->id;
			most = match;
		}
	}
	return best;
}

static void shard_transfer_begin(struct shard *s, uint64_t to)
{
	s->transfer_to = to;
	s->transfer_told = false;
	s->transfer_ms = env_now_ms(s->env) + s->election_ms;
	env_post(s->env, &s->turn);
}

/* The core tells a voter to stand at the first sign of progress, level or not,
 * and only once: so it is asked when that voter is level. */
static void shard_transfer_go(struct shard *s)
{
	uint64_t to = s->transfer_to;

	if (to == 0)
		return;
	if (s->transfer_told) {
		if (step_transferee(s->step) == 0)
			s->transfer_to = 0; /* The core gave up. */
	} else if (step_match(s->step, to) == step_last(s->step)) {
		s->transfer_told = true;
		if (step_transfer(s->step, to) != RC_OK)
			s->transfer_to = 0;
	} else if (env_now_ms(s->env) >= s->transfer_ms) {
		s->transfer_to = 0;
	}
}

/* No batch has been completed for a while, and something waits for one. */
static bool shard_stalled(const struct shard *s)
{
	struct log_stats stats;
	uint64_t since = s->pending_ms;

	if (since == 0 || MUTANT(disk_unwatched))
		return false;
	log_stats(s->log, &stats);
	if (stats.last_sync_ms > since)
		since = stats.last_sync_ms;
	return env_now_ms(s->env) - since >= DISK_STALL_MS;
}

/*
 * A leader whose disk hangs commits by its followers, but nothing it does is
 * durable or applied here; one that must not lead was elected for its log. Both
 * hand over, and try it again from time to time. With a hanging disk and nobody
 * to take over, silence makes the others elect one.
 */
static void shard_yield(struct shard *s)
{
	uint64_t now = env_now_ms(s->env);
	bool stalled = shard_stalled(s);
	uint64_t to;

	if (s->led_term == 0 || step_alone(s->step) || s->transfer_to != 0 ||
	    (shard_may_lead(s) && !stalled) || now < s->yield_ms)
		return;
	to = s->yield_term == s->led_term && stalled ? 0 : shard_most_level(s);
	s->yield_ms = now + (s->halted ? 10 * YIELD_MS : s->election_ms);
	if (s->yield_term != s->led_term)
		LOG_WARN("leadership_yielded", F("shard", s->number),
			 F("term", s->led_term), F("to", to),
			 F("why",
			   stalled ? "the disk completes no write" : s->why));
	s->yield_term = s->led_term;
	if (to != 0)
		shard_transfer_begin(s, to);
	else if (stalled)
		s->mute_term = s->led_term;
}

/* ---- snapshots: to others ---- */

/* The core asks again with every heartbeat that is rejected meanwhile. */
static void shard_want_snapshot(struct shard *s, uint64_t id)
{
	struct shard_other *o = shard_other(s, id);

	if (o == NULL || o->wished || snapshots_sending(s->snapshots) == id)
		return;
	o->wished = true;
	env_post(s->env, &s->turn);
}

static struct shard *shard_owner(struct snapshots_owner *o)
{
	struct shard *s = CONTAINER_OF(o, struct shard, owner);

	CHECK_OBJ(s, SHARD_MAGIC);
	return s;
}

static void owner_wanted(struct snapshots_owner *k, uint64_t node_id,
			 bool abstains)
{
	struct shard *s = shard_owner(k);
	struct shard_other *o = shard_other(s, node_id);

	if (o == NULL || s->led_term == 0 ||
	    (o->wants && o->abstains == abstains) ||
	    snapshots_sending(s->snapshots) == node_id)
		return;
	o->wants = true;
	o->abstains = abstains;
	o->wants_term = s->led_term;
	o->wants_index = s->tail.next - 1;
	env_post(s->env, &s->turn);
}

static bool owner_tell(struct snapshots_owner *k, uint64_t *term)
{
	struct shard *s = shard_owner(k);

	*term = s->ballot.term;
	return !s->ballot_lost;
}

static void owner_sent(struct snapshots_owner *k, uint64_t node_id, bool ok)
{
	struct shard *s = shard_owner(k);

	(void)node_id;
	s->stats.exports += ok;
	env_post(s->env, &s->turn);
}

/*
 * Who has lost its log may have acknowledged anything up to `wants_index` to
 * us, and anything committed before to others. That entry is of our term. Once
 * a majority without the asker has it, no leader can come that lacks any of
 * that, and the asker's votes and acknowledgements count again.
 */
static bool shard_without(struct shard *s, const struct shard_other *o)
{
	unsigned have = 0;
	uint64_t id;
	uint32_t i;

	if (MUTANT(rebuild_needs_its_vote))
		return true;
	if (s->applied < o->wants_index)
		return false;
	for (i = 0; (id = shard_member(s, i)) != 0; i++) {
		if (id == o->id || !step_voter(s->step, id))
			continue;
		have += (id == s->node_id
				 ? s->tail.durable
				 : step_match(s->step, id)) >= o->wants_index;
	}
	return have > step_voters(s->step) / 2;
}

/* What follows its match is not in the core's log any more. */
static bool shard_beyond(const struct shard *s, const struct shard_other *o)
{
	uint64_t match = step_match(s->step, o->id);

	return match == 0 ? step_first(s->step) > 1
			  : step_term_at(s->step, match) == 0;
}

static bool shard_may_send(struct shard *s, struct shard_other *o)
{
	/* A new leader that must level somebody before it can commit anything
	 * sends what it has applied. */
	if (s->led_term == 0 || !shard_may_lead(s)) {
		o->wished = false;
		o->wants = false;
		return false;
	}
	if (o->wants && o->abstains && o->wants_term != s->led_term)
		o->wants = false;
	if (o->wants)
		return !o->abstains || (s->leading && shard_without(s, o));
	/* It would refuse a copy, and each is a checkpoint here. */
	if (o->full)
		return false;
	/* A wish may come from an answer that was under way when the last
	 * stream ended. */
	o->wished = o->wished && shard_beyond(s, o);
	return o->wished;
}

static void shard_serve(struct shard *s)
{
	struct snapshot_from from = { .node_id = s->node_id,
				      .term = s->led_term };
	struct shard_other *o;
	unsigned i;

	for (i = 0; i < VOTERS_MAX; i++) {
		o = &s->others[i];
		if ((!o->wants && !o->wished) || !shard_may_send(s, o))
			continue;
		from.rebuilds = o->wants && o->abstains;
		if (!snapshots_send(s->snapshots, o->id, &from, s->applied))
			continue;
		o->wants = false;
		o->wished = false;
	}
}

static bool shard_wishes(const struct shard *s)
{
	unsigned i;

	for (i = 0; i < VOTERS_MAX; i++)
		if (s->others[i].wants || s->others[i].wished)
			return true;
	return false;
}

/* ---- snapshots: to us ---- */

static bool hash_set(const uint8_t hash[16])
{
	static const uint8_t none[16];

	return memcmp(hash, none, sizeof(none)) != 0;
}

static bool shard_rebuilds(const struct shard *s)
{
	return s->health == SHARD_LOG_BAD || s->health == SHARD_STATE_BAD;
}

static bool shard_asks(const struct shard *s)
{
	return shard_rebuilds(s) && s->transport != NULL &&
	       (s->sm.now == SHARD_RUNNING || s->sm.now == SHARD_ABSENT) &&
	       (s->install == INSTALL_NONE ||
		(s->install == INSTALL_STAGED && s->ballot_lost));
}

static void shard_ask(struct shard *s)
{
	bool abstains = s->health == SHARD_LOG_BAD;
	uint64_t now = env_now_ms(s->env);
	uint64_t id;
	uint32_t i;

	if (!shard_asks(s) || now < s->ask_ms)
		return;
	s->ask_ms = now + ASK_MS;
	/* Terms are wanted even while a stream comes in. */
	if (!s->ballot_lost && snapshots_receiving(s->snapshots))
		return;
	for (i = 0; (id = shard_member(s, i)) != 0; i++)
		if (id != s->node_id)
			snapshots_ask(s->snapshots, id, abstains);
}

static void owner_told(struct snapshots_owner *k, uint64_t node_id, bool lost,
		       uint64_t term)
{
	struct shard *s = shard_owner(k);
	struct shard_other *o = shard_other(s, node_id);

	if (o == NULL || !s->ballot_lost)
		return;
	o->told = true;
	o->told_lost = lost;
	o->told_term = term;
	env_post(s->env, &s->rest);
}

static bool offer_sane(struct shard *s, const struct snapshot_from *from,
		       const struct snapshot *what)
{
	struct step_conf conf;

	if (!shard_is_voter(s, from->node_id) || from->node_id == s->node_id)
		return false;
	if (!s->ballot_lost && from->term > s->ballot.term + TERM_JUMP_MAX) {
		s->stats.refused++;
		return false;
	}
	return step_conf_read(what->conf, what->conf_bytes, s->node_id,
			      &conf) == RC_OK &&
	       conf.member;
}

/* A leader of a term that we have left cannot bring back what we acknowledged
 * since, and nobody who abstains answers what it sends: so it would lead, and
 * we wait, for ever. */
static void shard_tell_term(struct shard *s, uint64_t leader)
{
	if (MUTANT(term_untold))
		return;
	pack_w_reset(&s->out);
	step_refusal(&s->out, s->ballot.term);
	if (s->out.rc == RC_OK)
		(void)shard_emit(s, leader, s->out.p, s->out.n);
}

static bool owner_offered(struct snapshots_owner *k,
			  const struct snapshot_from *from,
			  const struct snapshot *what)
{
	struct shard *s = shard_owner(k);

	if (s->install != INSTALL_NONE || s->full || !offer_sane(s, from, what))
		return false;
	if (s->sm.now == SHARD_ABSENT && !s->ballot_lost &&
	    from->term < s->ballot.term) {
		shard_tell_term(s, from->node_id);
		return false;
	}
	if (s->sm.now == SHARD_ABSENT)
		return from->rebuilds && what->index >= s->applied;
	if (s->sm.now != SHARD_RUNNING || from->term < step_term(s->step))
		return false;
	/* What follows must be in the log, in memory and on disk. */
	if (s->health == SHARD_STATE_BAD)
		return what->index + 1 >= step_first(s->step) &&
		       what->index >= s->floor;
	return what->index > s->applied &&
	       step_term_at(s->step, what->index) != what->term;
}

static void owner_staged(struct snapshots_owner *k,
			 const struct snapshot_from *from,
			 const struct snapshot *what, uint64_t generation,
			 const uint8_t hash[16])
{
	struct shard *s = shard_owner(k);

	CHECK(s->install == INSTALL_NONE);
	CHECK(hash_set(hash));
	s->install = INSTALL_STAGED;
	s->from = *from;
	s->what = *what;
	s->generation = generation;
	memcpy(s->hash, hash, sizeof(s->hash));
	env_post(s->env, &s->rest);
}

static void shard_refuse(struct shard *s)
{
	s->install = INSTALL_NONE;
	snapshots_took(s->snapshots, false);
}

/*
 * The ballot is lost: whatever we voted, the candidate holds that term. So a
 * term above all that the others tell is one in which we have no vote. One that
 * has lost its own ballot is no candidate any more: it only counts if it won,
 * and then somebody of a majority, who must have told, was in that term. False:
 * not enough have told.
 */
static bool shard_new_term(struct shard *s, uint64_t *term)
{
	const struct shard_other *o;
	uint64_t least = UINT64_MAX;
	uint64_t most = 0;
	uint32_t known = 0;
	uint32_t voters = 1;
	uint64_t id;
	uint32_t i;

	for (i = 0; (id = shard_member(s, i)) != 0; i++) {
		if (id == s->node_id)
			continue;
		voters++;
		o = shard_other(s, id);
		if (o == NULL || !o->told) {
			(void)snprintf(s->why, sizeof(s->why),
				       "its ballot is lost: it waits for the "
				       "term of node %llu",
				       (unsigned long long)id);
			return false;
		}
		if (o->told_lost)
			continue;
		known++;
		least = min_u64(least, o->told_term);
		if (o->told_term > most)
			most = o->told_term;
	}
	if (known <= voters / 2) {
		(void)snprintf(s->why, sizeof(s->why),
			       "its ballot is lost, and those of %u others: "
			       "no majority can tell its term",
			       voters - 1 - known);
		return false;
	}
	if (most - least > TERM_JUMP_MAX) {
		(void)snprintf(s->why, sizeof(s->why),
			       "the others tell terms that are too far "
			       "apart: %llu and %llu",
			       (unsigned long long)least,
			       (unsigned long long)most);
		return false;
	}
	*term = most;
	return true;
}

/* Nothing that we acknowledged to a leader of a higher term may be missing. */
static void shard_take_absent(struct shard *s)
{
	uint64_t term = s->ballot.term;

	if (s->ballot_lost && !shard_new_term(s, &term))
		return;
	if (s->from.term < term || s->from.term - term > TERM_JUMP_MAX) {
		shard_refuse(s);
		return;
	}
	if (s->ballot_lost) {
		s->ballot.term = s->from.term + 1;
		s->ballot.vote = 0;
	}
	s->beside = false;
	shard_base(s, s->what.index, s->what.term);
}

/* The log has the entry that the snapshot ends with. */
static bool shard_covers(const struct shard *s)
{
	uint64_t index = s->what.index;

	if (s->health != SHARD_STATE_BAD || index > step_last(s->step))
		return false;
	return step_term_at(s->step, index) == s->what.term ||
	       (s->unsure && index == s->state_index);
}

static void shard_take_running(struct shard *s)
{
	const struct step_staged staged = {
		.node_id = s->from.node_id,
		.term = s->from.term,
		.index = s->what.index,
		.index_term = s->what.term,
		.conf_index = s->what.conf_index,
		.conf = s->what.conf,
		.conf_bytes = s->what.conf_bytes,
	};

	s->beside = shard_covers(s);
	if (!s->beside) {
		if (step_staged(s->step, &staged) != RC_OK)
			shard_refuse(s);
		return;
	}
	/* The state must not be ahead of the log. */
	if (s->tail.durable < s->what.index)
		return;
	s->ballot.state_generation = s->generation;
	shard_write_ballot(s);
	s->install = INSTALL_WRITING;
}

static void shard_begin(struct shard *s);

/* The slot is durable: nothing below the snapshot is needed any more. A full
 * log needs that room for the base record. */
static void shard_past_commit(struct shard *s)
{
	if (s->voted_ticket < s->vote_ticket || s->floor >= s->what.index)
		return;
	s->floor = s->what.index;
	log_floor(s->log, s->number, s->floor);
}

/* What was installed is the state, durably. */
static void shard_installed(struct shard *s)
{
	s->install = INSTALL_NONE;
	s->applied = s->what.index;
	s->stats.installs++;
	s->health = SHARD_WHOLE;
	s->why[0] = '\0';
	s->ballot_lost = false;
	shard_past_commit(s);
	if (!s->begun) {
		s->state_index = s->what.index;
		s->state_term = s->what.term;
		if (s->sm.now == SHARD_ABSENT)
			shard_begin(s);
	} else if (!s->beside) {
		step_installed(s->step);
	} else if (!s->unsure || s->applied > s->state_index) {
		step_applied(s->step, s->applied, s->what.term);
	}
	LOG_INFO("snapshot_installed", F("shard", s->number),
		 F("index", s->what.index), F("from", s->from.node_id));
	snapshots_took(s->snapshots, true);
}

static bool shard_installing(struct shard *s)
{
	bool durable = s->durable_ticket >= s->ticket;
	enum install was = s->install;

	switch (s->install) {
	case INSTALL_NONE:
	case INSTALL_SWITCHING:
		break;
	case INSTALL_STAGED:
		if (s->begun)
			shard_take_running(s);
		else
			shard_take_absent(s);
		break;
	case INSTALL_WRITING:
		shard_past_commit(s);
		if (!durable && !MUTANT(install_unbased))
			break;
		s->install = INSTALL_CLEARING;
		if (!hash_set(s->ballot.state_hash))
			break;
		memset(s->ballot.state_hash, 0, sizeof(s->ballot.state_hash));
		shard_write_ballot(s);
		break;
	case INSTALL_CLEARING:
		if (!durable && !MUTANT(install_unbased))
			break;
		s->install = INSTALL_SWITCHING;
		s->app->ops->switch_state(s->app, s->generation);
		break;
	case INSTALL_SWITCHED:
		shard_installed(s);
		break;
	}
	return s->install != was;
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
		.first = s->tail.first,
		.last = s->tail.next - 1,
		.unsure = s->unsure,
	};

	sm_move(&s->sm, SHARD_RUNNING);
	/* On a first boot entry 1 was written by us: it is durable now. */
	(void)entries_durable(&s->tail, s->durable_ticket);
	s->begun = true;
	step_start(s->step, &boot);
}

/*
 * Heartbeats of all shards of a node that leads many fall into one turn and
 * share a frame. Who must not lead lets the others stand first. A candidate
 * whose ballot takes longer to write than its timer runs would begin one
 * election after the other, and none would be heard of: the time of an election
 * counts from when its questions left.
 */
static uint64_t shard_timeout(const struct shard *s)
{
	uint64_t at = step_timeout_ms(s->step);
	uint64_t grid = s->heartbeat_ms >= 5 ? s->heartbeat_ms / 5 : 1;

	if (at == STEP_NEVER)
		return at;
	if (step_leads(s->step))
		return (at + grid - 1) / grid * grid;
	if (s->vote_ticket > s->voted_ticket)
		return STEP_NEVER;
	if (s->voted_ms != 0 && at < s->voted_ms + s->election_ms)
		at = s->voted_ms + s->election_ms;
	return shard_may_lead(s) ? at : at + 2 * (uint64_t)s->election_ms;
}

/* A timer that fires early is set again: cheaper than to move it with every
 * message. */
static void shard_arm(struct shard *s)
{
	uint64_t at = s->begun ? shard_timeout(s) : STEP_NEVER;

	if (s->transfer_to != 0 && !s->transfer_told)
		at = min_u64(at, s->transfer_ms);
	if (shard_asks(s))
		at = min_u64(at, s->ask_ms);
	if (at == STEP_NEVER || s->sm.now == SHARD_CLOSING)
		env_timer_stop(&s->timer);
	else if (!s->timer.running || s->timer.at_ms > at)
		env_timer_start(&s->timer, at);
}

static bool shard_behind(const struct shard *s)
{
	if (s->install != INSTALL_NONE || shard_wishes(s))
		return true;
	return s->begun && !s->halted &&
	       (s->pinned || (s->health != SHARD_STATE_BAD &&
			      s->applied < shard_apply_limit(s)));
}

static void shard_pending(struct shard *s)
{
	uint64_t now;

	if (s->durable_ticket >= s->ticket) {
		s->pending_ms = 0;
	} else if (s->pending_ms == 0) {
		now = env_now_ms(s->env);
		s->pending_ms = now > 0 ? now : 1;
	}
}

static void shard_run(struct shard *s)
{
	step_persisted(s->step, entries_durable(&s->tail, s->durable_ticket));
	shard_trim(s);
	shard_drain(s, false);
	if (s->sm.now == SHARD_CLOSING || shard_dead(s))
		return;
	/* Timeouts last: after a stall the frames that are in the socket come
	 * before the conclusion that nobody has sent any. */
	if (s->due && env_now_ms(s->env) >= shard_timeout(s)) {
		step_timeout(s->step);
		shard_drain(s, false);
	}
	shard_pending(s);
	if (step_leads(s->step)) {
		shard_transfer_go(s);
		shard_yield(s);
	}
	shard_propose(s);
}

static void shard_release(struct shard *s)
{
	shard_unhold(s, false);
	if (s->snapshots != NULL)
		snapshots_free(s->snapshots);
	if (s->step != NULL)
		step_free(s->step);
	pack_w_release(&s->out);
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
	if (s->turn.posted || s->rest.posted || shard_dead(s))
		return;
	/* Nobody was told of what is not durable. It is waited for, but not for
	 * room on a disk that is full. */
	if ((s->durable_ticket < s->ticket && !log_stalled(s->log)) ||
	    s->install > INSTALL_STAGED) {
		env_timer_start(&s->timer, env_now_ms(s->env) + FINISH_MS);
		return;
	}
	if (snapshots_posted(s->snapshots)) {
		env_post(s->env, &s->turn);
		return;
	}
	snapshots_close(s->snapshots);
	env_timer_stop(&s->timer);
	log_listen(s->log, s->number, NULL);
	shard_release(s);
	closed(arg);
}

/* What shard_open wrote is durable. */
static void shard_started(struct shard *s)
{
	if (s->health != SHARD_LOG_BAD && hash_set(s->ballot.state_hash)) {
		/* The base record is there: see enum install. */
		memset(s->ballot.state_hash, 0, sizeof(s->ballot.state_hash));
		shard_write_ballot(s);
	} else if (s->health == SHARD_LOG_BAD) {
		sm_move(&s->sm, SHARD_ABSENT);
	} else {
		shard_begin(s);
	}
}

static void shard_turn(struct env_task *t)
{
	struct shard *s = CONTAINER_OF(t, struct shard, turn);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->sm.now == SHARD_STARTING && s->durable_ticket >= s->ticket)
		shard_started(s);
	if (s->begun && !shard_dead(s))
		shard_run(s);
	s->due = false;
	if (!shard_dead(s)) {
		shard_ask(s);
		shard_arm(s);
		/* The writer has its batch before this thread applies the last
		 * one. */
		if (shard_behind(s))
			env_post(s->env, &s->rest);
	}
	if (s->sm.now == SHARD_CLOSING)
		shard_finish(s);
}

static void shard_rest(struct env_task *t)
{
	struct shard *s = CONTAINER_OF(t, struct shard, rest);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->begun && !shard_dead(s))
		shard_drain(s, true);
	/* What has passed its commit point is brought to its end. */
	while (!shard_dead(s) &&
	       (s->sm.now != SHARD_CLOSING || s->install > INSTALL_STAGED) &&
	       shard_installing(s))
		;
	if (s->sm.now != SHARD_CLOSING && !shard_dead(s))
		shard_serve(s);
	if (!shard_dead(s))
		shard_arm(s);
	if (s->sm.now == SHARD_CLOSING)
		shard_finish(s);
}

/* ---- what is noted for the turn ---- */

static void shard_voted(struct log_listener *l, uint64_t ticket)
{
	struct shard *s = CONTAINER_OF(l, struct shard, listener);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (ticket <= s->voted_ticket)
		return;
	s->voted_ticket = ticket;
	if (ticket < s->vote_ticket)
		return;
	s->voted_ms = env_now_ms(s->env);
	shard_unhold(s, !shard_dead(s) && s->sm.now != SHARD_CLOSING);
	env_post(s->env, &s->turn);
}

static void shard_durable(struct log_listener *l, uint64_t ticket)
{
	struct shard *s = CONTAINER_OF(l, struct shard, listener);

	CHECK_OBJ(s, SHARD_MAGIC);
	if (ticket <= s->durable_ticket)
		return;
	s->durable_ticket = ticket;
	s->pending_ms = 0;
	shard_voted(l, min_u64(ticket, s->vote_ticket));
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

/* What the records of the log are read into. */
struct shard_scan {
	struct shard *s;
	char *what;    /* What is wrong; 160 bytes. */
	uint64_t last; /* Of all records, those in the state included. */
	uint64_t last_term;
	bool skip; /* The log is void. */
};

static enum rc scan_damaged(struct shard_scan *scan, const char *what)
{
	(void)snprintf(scan->what, sizeof(scan->s->why), "%s", what);
	return RC_CORRUPT;
}

/* Followers may want some of what the state contains already. */
static void scan_trim(struct shard *s)
{
	(void)entries_durable(&s->tail, 0);
	while (s->tail.first <= s->state_index &&
	       s->tail.bytes > TRAILING_BYTES)
		entries_drop(&s->tail, s->tail.first);
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
	scan_trim(s);
	return RC_OK;
}

static enum rc scan_entry(void *arg, const struct log_entry *e)
{
	struct shard_scan *scan = arg;
	struct shard *s = scan->s;

	if (scan->skip)
		return RC_OK;
	if (scan->last != 0 && e->index != scan->last + 1)
		return scan_damaged(scan, "the log has a gap");
	if (e->term == 0 || e->term < scan->last_term ||
	    e->term > s->ballot.term)
		return scan_damaged(scan, "the terms in the log do not fit "
					  "the ballot");
	if (e->index == s->state_index && e->term != s->state_term)
		return scan_damaged(scan, "the state is of another log");
	/* With a bad state the log is all that there is, wherever it begins. */
	if (scan->last == 0 &&
	    (s->health == SHARD_STATE_BAD || e->index <= s->state_index))
		entries_init(&s->tail, e->index);
	scan->last = e->index;
	scan->last_term = e->term;
	if (e->index > s->tail.next)
		return scan_damaged(scan, "the log begins after the state "
					  "ends");
	return scan_keep(scan, e);
}

/*
 * The state is bad, the log is whole: the core is started with the end of what
 * was recycled as its state, which was in a state file once and is committed.
 * Its term need not be known.
 */
static enum rc shard_stand_in(struct shard *s, const struct shard_scan *scan,
			      uint64_t base_index, uint64_t base_term)
{
	struct log_range range = log_range(s->log, s->number);
	uint64_t before = s->tail.first - 1;

	if (scan->last == 0) {
		before = range.last;
		s->state_term = range.last_term;
		entries_init(&s->tail, before + 1);
	} else if (before > 0 && before == base_index) {
		s->state_term = base_term;
	} else if (before > 0) {
		s->state_term = entries_get(&s->tail, s->tail.first)->term;
		s->unsure = true;
	}
	s->state_index = before;
	/* Nothing at all: the disk was formatted by `node reset`, and has
	 * forgotten its vote as well. */
	s->ballot_lost = scan->last == 0 && before == 0 && s->ballot.term == 0;
	if (scan->last == 0 && s->state_term == 0)
		return RC_CORRUPT;
	return RC_OK;
}

static enum rc shard_fits(struct shard *s, const struct shard_state *state,
			  struct shard_scan *scan, uint64_t base_index,
			  uint64_t base_term)
{
	struct log_range range = log_range(s->log, s->number);

	if (s->health == SHARD_STATE_BAD &&
	    shard_stand_in(s, scan, base_index, base_term) != RC_OK)
		return scan_damaged(scan, s->ballot_lost
						  ? "its disk was reset"
						  : "its state is bad, and "
						    "its log has no records");
	if (base_index > s->state_index)
		return scan_damaged(scan, "the log goes on after a snapshot "
					  "that the state does not contain");
	if (range.first > s->state_index + 1)
		return scan_damaged(scan, "the log begins after the state "
					  "ends");
	if (range.last > state->synced_index && range.last > s->state_index &&
	    scan->last != range.last)
		return scan_damaged(scan, "the log lacks records");
	/* We apply only what is durable in the log: it has lost what it had
	 * synced, and who knows how much behind the state's end. */
	if (range.last < s->state_index)
		return scan_damaged(scan, "the log ends before the state "
					  "does");
	if (s->state_index == 0 && s->tail.next > 1 &&
	    entries_get(&s->tail, 1)->type != STEP_CHANGE)
		return scan_damaged(scan, "the log does not begin with a "
					  "configuration");
	return RC_OK;
}

static enum rc shard_recover(struct shard *s, const struct shard_state *state,
			     struct shard_scan *scan)
{
	uint64_t base_index = 0;
	uint64_t base_term = 0;
	enum rc rc;

	rc = log_recovered(s->log, s->number, scan_entry, scan, &base_index,
			   &base_term);
	if (scan->skip)
		return RC_OK;
	if (rc == RC_OK)
		rc = shard_fits(s, state, scan, base_index, base_term);
	if (rc != RC_OK)
		return rc;
	(void)entries_durable(&s->tail, 0);
	return RC_OK;
}

/* Log, ballot and state, each by itself and together. */
static enum rc shard_judge(struct shard *s, const struct shard_config *cfg,
			   const struct shard_state *state)
{
	struct detail found = { 0 };
	struct shard_scan scan = { .s = s, .what = s->why };
	bool installed = hash_set(s->ballot.state_hash);
	enum rc rc;

	if (!cfg->ballot_good) {
		s->ballot_lost = true;
		return scan_damaged(&scan, "both copies of its ballot are bad");
	}
	if (installed && (cfg->state_bad || state->index == 0))
		return scan_damaged(&scan, "a snapshot that was installed is "
					   "bad");
	/* What the log holds is void: see enum install. */
	scan.skip = installed;
	if (!installed && log_status(s->log, s->number, &found) != LOG_WHOLE) {
		(void)snprintf(s->why, sizeof(s->why),
			       "its log is damaged (%.120s)", found.text);
		return RC_CORRUPT;
	}
	if (cfg->state_bad)
		s->health = SHARD_STATE_BAD;
	rc = shard_recover(s, state, &scan);
	if (rc == RC_OK && cfg->state_bad)
		(void)snprintf(s->why, sizeof(s->why),
			       "its state is bad: it waits for a copy from "
			       "the leader");
	return rc;
}

/* The newest configuration, committed or not, is the one in force. */
static enum rc shard_conf_now(const struct shard *s, struct step_conf *out)
{
	const struct entry *e;
	uint64_t i;

	for (i = s->tail.next; i > s->tail.first; i--) {
		e = entries_get(&s->tail, i - 1);
		if (e->type == STEP_CHANGE && i - 1 > s->conf.index)
			return step_conf_read(e->data, e->bytes, s->node_id,
					      out);
	}
	return step_conf_read(s->conf.data, s->conf.bytes, s->node_id, out);
}

/* Entry 1, the same on every founder. It is written when nothing can go wrong
 * any more. */
static enum rc shard_founders(struct shard *s, const struct shard_config *cfg,
			      struct detail *why)
{
	struct step_member members[VOTERS_MAX];
	enum rc rc;
	uint32_t i;

	for (i = 0; i < cfg->voters_n; i++) {
		members[i].id = cfg->voters[i].id;
		members[i].address = cfg->voters[i].address;
	}
	free(s->conf.data);
	s->conf = (struct shard_conf){ .index = 1 };
	rc = step_conf_encode(members, cfg->voters_n, &s->conf.data,
			      &s->conf.bytes);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "shard %u: its founders cannot be listed",
				  s->number);
	return RC_OK;
}

static enum rc shard_refused(const struct shard *s, struct detail *why)
{
	return detail_set(why, RC_CORRUPT, NULL, "shard %u: %s; " SHARD_ALONE,
			  s->number, s->why, (unsigned long long)s->applied);
}

static enum rc shard_membership(struct shard *s, struct detail *why,
				struct step_conf *conf)
{
	enum rc rc = shard_conf_now(s, conf);
	uint32_t i;

	if (rc == RC_CORRUPT) {
		(void)snprintf(s->why, sizeof(s->why),
			       "the configuration in its state cannot be "
			       "read");
		return shard_refused(s, why);
	}
	if (rc != RC_OK)
		return rc;
	if (!conf->member)
		return detail_set(
			why, RC_FOREIGN, NULL,
			"shard %u: node %llu is not among its members",
			s->number, (unsigned long long)s->node_id);
	for (i = 0; i < VOTERS_MAX; i++) {
		s->voters[i] = conf->ids[i];
		if (conf->ids[i] != 0)
			(void)shard_other(s, conf->ids[i]);
	}
	return RC_OK;
}

/* With other voters it says nothing until one of them has sent its state. */
static void shard_abstain(struct shard *s)
{
	if (!MUTANT(damage_forgotten))
		s->health = SHARD_LOG_BAD;
	s->state_index = s->applied;
	s->unsure = false;
	entries_release(&s->tail);
	entries_init(&s->tail, s->applied + 1);
	LOG_WARN("shard_abstains", F("shard", s->number), F("why", s->why));
}

/* The first writes of this boot; they share a sync with those of the other
 * shards. */
static void shard_write(struct shard *s, bool founded, bool anew)
{
	struct entry e = { .term = 1, .type = STEP_CHANGE };

	if (s->health == SHARD_LOG_BAD)
		return;
	if (founded) {
		e.data = s->conf.data;
		e.bytes = (uint32_t)s->conf.bytes;
		s->conf = (struct shard_conf){ 0 };
		s->ticket = e.ticket = shard_log(s, 1, &e);
		CHECK(entries_put(&s->tail, 1, &e));
		if (s->ballot.term == 0)
			s->ballot.term = 1;
	}
	/* Again: see enum install. */
	if (hash_set(s->ballot.state_hash))
		s->ticket = log_base(s->log, s->number, s->state_index,
				     s->state_term);
	/* Guard B10: the core would elect itself in the term it is given, which
	 * may have been another leadership of ours with a lost tail. */
	if (anew) {
		s->ballot.term++;
		s->ballot.vote = 0;
	}
	if (founded || anew)
		shard_write_ballot(s);
}

static const char *shard_address(const struct shard_config *cfg)
{
	uint32_t i;

	for (i = 0; i < cfg->voters_n; i++)
		if (cfg->voters[i].id == cfg->node_id)
			return cfg->voters[i].address;
	return "-";
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
			       struct transport *t, struct app *app,
			       const struct shard_config *cfg,
			       const struct shard_state *state)
{
	struct shard *s = calloc(1, sizeof(*s));

	if (s == NULL)
		return NULL;
	s->magic = SHARD_MAGIC;
	s->number = cfg->shard;
	s->node_id = cfg->node_id;
	s->election_ms = cfg->election_ms;
	s->trailing = cfg->trailing_entries > 0 ? cfg->trailing_entries
						: TRAILING_ENTRIES;
	s->heartbeat_ms = cfg->heartbeat_ms;
	s->env = env;
	s->log = log;
	s->transport = t;
	s->app = app;
	s->ballot = cfg->ballot;
	s->state_index = state->index;
	s->state_term = state->term;
	s->applied = state->index;
	s->floor = state->synced_index;
	s->sink.ballot = shard_ballot;
	s->sink.append = shard_append;
	s->sink.entry = shard_show;
	s->sink.install = shard_install;
	s->sink.send = shard_send;
	s->wire.received = shard_received;
	s->owner.wanted = owner_wanted;
	s->owner.tell = owner_tell;
	s->owner.told = owner_told;
	s->owner.offered = owner_offered;
	s->owner.staged = owner_staged;
	s->owner.sent = owner_sent;
	s->listener.durable = shard_durable;
	s->listener.pinning = shard_pinning;
	s->listener.idle = shard_idle;
	s->listener.voted = shard_voted;
	s->turn.cb = shard_turn;
	s->turn.phase = ENV_PHASE_PROPOSE;
	s->rest.cb = shard_rest;
	s->rest.phase = ENV_PHASE_RELEASE;
	STAILQ_INIT(&s->held);
	pack_w_init(&s->out, LINK_MESSAGE_BYTES_MAX);
	env_timer_init(&s->timer, env, shard_timer);
	entries_init(&s->tail, state->index + 1);
	sm_init(&s->sm, shard_states, SHARD_STATES, SHARD_OPEN);
	return s;
}

/* Nothing is written yet. */
static enum rc shard_prepare(struct shard *s, const struct shard_config *cfg,
			     const struct shard_state *state,
			     struct step_conf *conf, bool *founded,
			     struct detail *why)
{
	enum rc judged;
	enum rc rc;

	rc = shard_keep_conf(s, state);
	if (rc != RC_OK)
		return rc;
	judged = shard_judge(s, cfg, state);
	if (judged != RC_OK && judged != RC_CORRUPT)
		return judged;
	*founded = judged == RC_OK && s->health == SHARD_WHOLE &&
		   s->applied == 0 && s->tail.next == 1;
	if (judged == RC_CORRUPT) {
		entries_release(&s->tail);
		entries_init(&s->tail, s->applied + 1);
	}
	/* What is known of a shard without a log and a state. */
	if (s->conf.data == NULL && (s->tail.first != 1 || s->tail.next == 1)) {
		rc = shard_founders(s, cfg, why);
		if (rc != RC_OK)
			return rc;
	}
	rc = shard_membership(s, why, conf);
	if (rc != RC_OK)
		return rc;
	if (conf->members == 1 && (judged != RC_OK || cfg->state_bad))
		return shard_refused(s, why);
	if (judged != RC_OK)
		shard_abstain(s);
	if (conf->members == 1)
		entries_drop(&s->tail,
			     min_u64(s->state_index, s->tail.durable));
	return *founded && !entries_reserve(&s->tail) ? RC_NOMEM : RC_OK;
}

enum rc shard_open(struct env *env, struct log *log, struct transport *t,
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
	struct step_conf conf = { 0 };
	struct shard *s;
	bool founded;
	enum rc rc;

	PRE(cfg->node_id > 0);
	PRE(cfg->voters_n <= VOTERS_MAX);
	PRE(state->index == 0 || state->conf != NULL);
	PRE(!cfg->state_bad || state->index == 0);
	s = shard_new(env, log, t, app, cfg, state);
	if (s == NULL)
		return RC_NOMEM;
	rc = shard_prepare(s, cfg, state, &conf, &founded, why);
	CHECK(rc != RC_OK || conf.members == 1 || t != NULL);
	if (rc == RC_OK)
		rc = snapshots_new(env, t, app, &s->owner, s->number,
				   &s->snapshots);
	if (rc == RC_OK)
		rc = step_new(&core, &s->sink, &s->step);
	if (rc != RC_OK) {
		shard_release(s);
		return rc;
	}
	log_listen(log, s->number, &s->listener);
	if (t != NULL)
		transport_listen(t, CHANNEL_RAFT, s->number, &s->wire);
	shard_write(s, founded, conf.anew);
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
	return s->begun ? step_leader(s->step) : s->heard_leader;
}

uint64_t shard_commit_index(const struct shard *s)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	/* A state that was taken from a leader beside a whole log is committed
	 * before the core of this node has heard so. */
	if (!s->begun || step_commit(s->step) < s->applied)
		return s->applied;
	return step_commit(s->step);
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
	uint32_t n = 0;

	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->begun)
		return step_voters(s->step);
	while (n < VOTERS_MAX && s->voters[n] != 0)
		n++;
	return n;
}

bool shard_confirms(const struct shard *s, uint64_t term)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return s->begun && !shard_dead(s) && s->sm.now != SHARD_CLOSING &&
	       (step_term(s->step) == term || MUTANT(round_other_term));
}

bool shard_voter(const struct shard *s, uint64_t node_id)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	return shard_is_voter(s, node_id);
}

enum rc shard_transfer(struct shard *s, uint64_t to)
{
	struct shard_other *o;

	CHECK_OBJ(s, SHARD_MAGIC);
	if (!s->leading || shard_dead(s) || s->sm.now != SHARD_RUNNING)
		return RC_NOT_LEADER;
	if (s->transfer_to != 0)
		return RC_CONFLICT;
	if (to == 0)
		to = shard_most_level(s);
	else if (to == s->node_id || !step_voter(s->step, to))
		return RC_NOT_FOUND;
	o = to != 0 ? shard_other(s, to) : NULL;
	if (o == NULL || !shard_heard(s, o) || o->refused)
		return RC_NO_QUORUM;
	shard_transfer_begin(s, to);
	return RC_OK;
}

void shard_room(struct shard *s, bool low, bool full)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	s->full = full;
	step_room(s->step, low, full);
}

void shard_view(const struct shard *s, struct shard_view *out)
{
	const struct shard_other *o;
	struct shard_peer *p;
	unsigned i;

	CHECK_OBJ(s, SHARD_MAGIC);
	*out = (struct shard_view){ .health = s->health,
				    .transferee = s->transfer_to };
	memcpy(out->why, s->why, sizeof(out->why));
	for (i = 0; s->begun && step_leads(s->step) && i < VOTERS_MAX; i++) {
		o = &s->others[i];
		if (o->id == 0 || !step_voter(s->step, o->id))
			continue;
		p = &out->peers[out->peers_n++];
		p->node_id = o->id;
		p->match = step_match(s->step, o->id);
		p->heard_ms = o->heard_ms;
		p->streaming = snapshots_sending(s->snapshots) == o->id;
		p->refused = o->refused;
		p->low = o->low;
	}
}

/* ---- answers of the app ---- */

void shard_exported(struct shard *s, enum rc rc, const struct snapshot *what)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	snapshots_exported(s->snapshots, rc, what);
}

void shard_export_data(struct shard *s, enum rc rc, const void *p, size_t n)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	snapshots_export_data(s->snapshots, rc, p, n);
}

void shard_staged(struct shard *s, enum rc rc)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	snapshots_staged(s->snapshots, rc);
}

void shard_stage_done(struct shard *s, enum rc rc, uint64_t generation,
		      const uint8_t hash[16])
{
	CHECK_OBJ(s, SHARD_MAGIC);
	snapshots_stage_done(s->snapshots, rc, generation, hash);
}

void shard_switched(struct shard *s, enum rc rc,
		    const struct shard_state *state)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	PRE(s->install == INSTALL_SWITCHING);
	if (shard_dead(s))
		return;
	/* It was verified when it was staged: a restart finds it bad. */
	if (rc != RC_OK || state->index != s->what.index) {
		shard_fail(s, "an installed snapshot cannot be opened");
		return;
	}
	shard_conf_set(s, state->conf_index, state->conf, state->conf_bytes);
	s->install = INSTALL_SWITCHED;
	env_post(s->env, &s->rest);
}

void shard_stats(const struct shard *s, struct shard_stats *out)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	*out = s->stats;
	out->cached = s->tail.bytes;
	out->trimmed = step_snapshot_index(s->step);
}

void shard_state_lost(struct shard *s, const struct detail *why)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	if (s->health == SHARD_LOG_BAD || s->health == SHARD_STATE_BAD)
		return;
	(void)snprintf(s->why, sizeof(s->why), "its state is damaged: %.120s",
		       why->text);
	s->spoilt = true;
	env_post(s->env, &s->turn);
}

void shard_checkpointed(struct shard *s, uint64_t index)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	/* The new state speaks before the shard has made it its own. */
	if (s->install > INSTALL_STAGED)
		return;
	PRE(index <= s->applied);
	if (index < s->floor)
		return;
	s->floor = index;
	log_floor(s->log, s->number, index);
	/* With followers shard_trim moves the core's log. */
	if (!s->begun || shard_dead(s) || !step_alone(s->step) ||
	    index <= step_snapshot_index(s->step))
		return;
	/* The core wants the configuration that was final at `index`; a newer
	 * one waits for a checkpoint that contains it. */
	if (s->conf.index > index)
		return;
	if (MUTANT(apply_undurable) && index > step_stored(s->step))
		return;
	step_snapshot(s->step, index, s->conf.index, s->conf.data,
		      s->conf.bytes, 0);
}

void shard_close(struct shard *s, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(s, SHARD_MAGIC);
	sm_move(&s->sm, SHARD_CLOSING);
	if (s->transport != NULL)
		transport_listen(s->transport, CHANNEL_RAFT, s->number, NULL);
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

bool shard_look(const struct shard *s, uint64_t index, struct log_entry *out)
{
	const struct entry *e = entries_get(&s->tail, index);

	if (e == NULL)
		return false;
	*out = (struct log_entry){ .index = index,
				   .term = e->term,
				   .type = e->type,
				   .data = e->data,
				   .bytes = e->bytes };
	return true;
}
