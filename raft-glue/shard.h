/*
 * shard - one Raft group on this node: propose, commit, apply, lead.
 *
 * Loop thread. A shard drives its `app`, appends to the node's `log`, talks
 * over `link` and never learns what its entries mean. With one voter it elects
 * itself at start (in a new term, guard B10) and commits with its own sync;
 * with three nothing above it changes. All calls into the app are made from one
 * task in ENV_PHASE_PROPOSE: what the log and the timer report is only noted.
 */
#ifndef HOLDFAST_RAFT_GLUE_SHARD_H
#define HOLDFAST_RAFT_GLUE_SHARD_H

#include "node/base/env.h"
#include "node/base/link.h"
#include "raft-glue/app.h"
#include "raft-glue/log.h"

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
	/* ballot_get and ballot_good of this shard. The shard keeps the slot
	 * from here on: it alone writes it, through log_vote. */
	struct ballot_slot ballot;
	bool ballot_good;
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
 * is not a member. RC_UNSUPPORTED: the shard has other voters. RC_NOMEM. After
 * an error nothing was written.
 */
enum rc shard_open(struct env *env, struct log *log, struct link *link,
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
uint32_t shard_voters(const struct shard *s);

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
};
void shard_stats(const struct shard *s, struct shard_stats *out);

/*
 * Asynchronous end: nothing more is collected; what was appended becomes
 * durable, is committed and applied; then `closed` is called, never from inside
 * this call, and the shard is gone. app->lost is not called.
 */
void shard_close(struct shard *s, void (*closed)(void *arg), void *arg);
/* The simulator's kill: frees memory only. */
void shard_discard(struct shard *s);

#endif
