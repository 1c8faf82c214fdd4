/*
 * shard - one Raft group on this node: propose, commit, apply, lead.
 *
 * Loop thread. A shard drives its `app`, appends to the node's `log`, talks
 * over `transport` and never learns what its entries mean. With one voter it
 * elects itself at start (in a new term, guard B10) and commits with its own
 * sync; with three or five nothing above it changes. All calls into the app are
 * made from its tasks at the end of a turn: what the log, the timer and the
 * peers report is stepped through the core at once and noted. No message leaves
 * before the ballot that the core had when it asked for it is durable.
 */
#ifndef HOLDFAST_RAFT_GLUE_SHARD_H
#define HOLDFAST_RAFT_GLUE_SHARD_H

#include "node/base/env.h"
#include "raft-glue/app.h"
#include "raft-glue/log.h"
#include "raft-glue/transport.h"

struct shard;

#define VOTERS_MAX 5u

struct shard_config {
	uint32_t shard;
	uint64_t node_id;
	struct {
		uint64_t id;
		char address[128]; /* Only shown, and replicated with the
				    * configuration. */
	} voters[VOTERS_MAX];      /* The founders, in order of id. */
	uint32_t voters_n;
	uint32_t election_ms;  /* 300 */
	uint32_t heartbeat_ms; /* 50 */
	/* Applied entries that are kept for followers; 0: TRAILING_ENTRIES. */
	uint32_t trailing_entries;
	/* ballot_get and ballot_good of this shard. The shard keeps the slot
	 * from here on: it alone writes it, through log_vote. */
	struct ballot_slot ballot;
	bool ballot_good;
	/* The state file was not usable (RC_CORRUPT), or there is none after
	 * `node reset`: state->index is 0 and the shard has to be rebuilt from
	 * a leader. */
	bool state_bad;
};

/* What the state file contains: one transaction with the effects. */
struct shard_state {
	uint64_t index; /* 0: empty. */
	uint64_t term;
	uint64_t synced_index; /* What the synced main file contains: the
				* shard's floor at log_open. */
	uint64_t conf_index;
	const void *conf; /* Encoded configuration; NULL with index 0. */
	size_t conf_bytes;
};

/*
 * Open the shard: takes its records from log_recovered, writes what a founder
 * writes on its first boot, makes term and vote durable where they change.
 * Runs before the loop; the raft core is started by shard_start, when every
 * shard of the node is open (their first votes share a sync). `state` is read
 * inside the call only; `log` and `app` outlive the shard.
 * RC_CORRUPT: log, ballot or state are damaged or do not fit each other; `why`
 * names the command that shows it and what may be lost. RC_FOREIGN: this node
 * is not a member. RC_NOMEM. After an error nothing was written. With other
 * voters damage is no error: the shard opens, abstains (no vote,
 * acknowledgement or confirmation when log or ballot are damaged; no leadership
 * and no export when only the state is) and is rebuilt (DESIGN D4);
 * shard_health says so. `t` may be NULL for a lone voter.
 */
enum rc shard_open(struct env *env, struct log *log, struct transport *t,
		   struct app *app, const struct shard_config *cfg,
		   const struct shard_state *state, struct shard **out,
		   struct detail *why);
/* Once. The core starts when what shard_open wrote is durable. */
void shard_start(struct shard *s);

/* Something is there to collect. The shard asks app->collect in this turn's
 * ENV_PHASE_PROPOSE; a lone voter waits until its writer is idle, so that what
 * arrives meanwhile shares one entry and one sync. No-op unless leading. */
void shard_want(struct shard *s);

/* What app->collect may give at most: ENTRY_BYTES_MAX, or less where the log's
 * segments are small. */
uint32_t shard_entry_bytes_max(const struct shard *s);
/* The log is nearly full and this shard's records pin it: answer OVERLOADED
 * until a checkpoint has moved its floor. */
bool shard_full(const struct shard *s);

/* True between app->lead and app->lost. */
bool shard_leads(const struct shard *s, uint64_t *term);
uint64_t shard_term(const struct shard *s);
/* Node id of the leader as far as known, 0 when not. */
uint64_t shard_leader(const struct shard *s);
uint64_t shard_commit_index(const struct shard *s);
uint64_t shard_last_index(const struct shard *s);
uint64_t shard_durable_index(const struct shard *s);
uint64_t shard_applied_index(const struct shard *s);
uint32_t shard_number(const struct shard *s);
/* An entry that is held in memory, for who looks on from outside; its data is
 * valid until the shard is touched. False: it is not held. */
bool shard_look(const struct shard *s, uint64_t index, struct log_entry *out);
uint32_t shard_voters(const struct shard *s);

/* ---- peers ---- */

/*
 * Would this node, asked now, confirm that `term` is still the shard's term?
 * Only while it votes: its term is `term` and its log is whole. For round.c.
 */
bool shard_confirms(const struct shard *s, uint64_t term);
/* Is the node a voter of the configuration in force? Of the one before it too
 * while a change is not committed. */
bool shard_voter(const struct shard *s, uint64_t node_id);

/* Hand the leadership to the voter `to` (0: the most level one). RC_OK: begun;
 * it ends with app->lost, or after an election timeout without a change. What
 * is proposed meanwhile waits. RC_NOT_LEADER; RC_NOT_FOUND: no such voter;
 * RC_CONFLICT: one is under way; RC_NO_QUORUM: that voter does not answer. */
enum rc shard_transfer(struct shard *s, uint64_t to);

/*
 * How much room the disk has. `low`: the leaders that this node answers learn
 * it, so that none hands over to it. `full`: it is down to what was
 * acknowledged already and must still reach the states: nothing new is
 * acknowledged and no snapshot is taken in, while a majority goes on. It votes
 * and confirms as ever.
 */
void shard_room(struct shard *s, bool low, bool full);

enum shard_health {
	SHARD_WHOLE,
	SHARD_STATE_BAD, /* Votes and acknowledges; does not lead. */
	SHARD_LOG_BAD,   /* Abstains. */
	SHARD_STUCK,     /* An entry could not be digested. */
};
/* What a person asks of a shard; `peers` for a leader only. */
struct shard_peer {
	uint64_t node_id;
	uint64_t match;    /* Durable there up to here, as it told us. */
	uint64_t heard_ms; /* env_now_ms of its last message; 0: never. */
	bool streaming;    /* A snapshot is on its way to it. */
	bool refused;      /* Its log ends below what it acknowledged. */
	bool low;          /* Its disk is, see shard_room. */
};
struct shard_view {
	enum shard_health health;
	uint32_t peers_n;
	struct shard_peer peers[VOTERS_MAX];
	uint64_t transferee; /* 0: none. */
	char why[160];       /* Why it is stuck; "" when it is not. */
};
void shard_view(const struct shard *s, struct shard_view *out);

/* ---- answers to the app's snapshot operations (app.h) ---- */

void shard_exported(struct shard *s, enum rc rc, const struct snapshot *what);
void shard_export_data(struct shard *s, enum rc rc, const void *p, size_t n);
void shard_staged(struct shard *s, enum rc rc);
/* RC_CORRUPT: it is not what was announced. `hash` goes into the ballot. */
void shard_stage_done(struct shard *s, enum rc rc, uint64_t generation,
		      const uint8_t hash[16]);
void shard_switched(struct shard *s, enum rc rc,
		    const struct shard_state *state);

/*
 * The app's state was found bad (RC_CORRUPT) while it was in use. With other
 * voters the shard goes on as after shard_open with state_bad: nothing is
 * applied any more, a leadership is given up, the state is taken anew from a
 * leader. A lone voter is stuck. Ignored when log or state are lost already;
 * an entry that could not be digested is put down to the state.
 */
void shard_state_lost(struct shard *s, const struct detail *why);

/* The synced main state file contains everything up to `index`, which is
 * applied: trims the raft core's log, the entry cache and tells the node's log.
 */
void shard_checkpointed(struct shard *s, uint64_t index);

struct shard_stats {
	uint64_t entries;   /* Proposed here, barriers included. */
	uint64_t bytes;     /* Of their data. */
	uint64_t elections; /* Won here. */
	uint64_t cached;    /* Bytes of entries in memory. */
	uint64_t trimmed;   /* The core's log begins after this index. */
	bool halted;        /* app->apply refused an entry: applies and leads no
			     * more. */
	uint64_t installs;  /* Snapshots that became the state here. */
	uint64_t exports;   /* Streams that ended well from here. */
	uint64_t messages_out;
	uint64_t messages_in;
	uint64_t held;    /* Messages that waited for the ballot. */
	uint64_t refused; /* Terms too far ahead. */
};
void shard_stats(const struct shard *s, struct shard_stats *out);

/*
 * Asynchronous end: nothing more is collected; what was appended becomes
 * durable (unless the log has no room for it), is committed and applied; then
 * `closed` is called, never from inside this call, and the shard is gone.
 * app->lost is not called.
 */
void shard_close(struct shard *s, void (*closed)(void *arg), void *arg);
/* The simulator's kill: frees memory only. */
void shard_discard(struct shard *s);

#endif
