/*
 * step - the one driver of raft_step: events in, updates out in the one right
 * order.
 *
 * Loop thread. Each function below that is an event steps the core of one shard
 * once and hands what the core asks for to the sink before it returns: ballot,
 * entries, snapshot, messages, in this order. What only changes a number (role,
 * term, commit index, timeout) is read afterwards. The guards of guard.h stand
 * on both sides. No sink function may call an event function.
 *
 * The core holds no entry data: only indexes and terms. Any error of the core
 * but a refusal means a broken invariant, or no memory: fail-stop, and in the
 * simulator, where that returns, every later event is a no-op.
 * Used by shard.c. With guard.c and codec.c the only files that know raft.h.
 */
#ifndef HOLDFAST_RAFT_GLUE_STEP_H
#define HOLDFAST_RAFT_GLUE_STEP_H

#include "client/proto/rc.h"
#include "node/base/env.h"

struct pack_w;
struct step;
struct step_sink;
struct raft_message;

/* As in the log's records; the numbers are libraft's. */
enum step_type {
	STEP_COMMAND = 1,
	STEP_BARRIER = 2,
	STEP_CHANGE = 3, /* An encoded configuration. */
};

/* Entries of one AppendEntries at most; more are in flight as more messages. */
#define STEP_INFLIGHT_MAX 256u
#define STEP_NEVER        UINT64_MAX

struct step_entry {
	uint64_t term;
	uint16_t type;
	uint32_t bytes;
	void *data;
};

/* What the core asks for. */
struct step_sink {
	/* Durable before any message of this shard leaves. */
	void (*ballot)(struct step_sink *k, uint64_t term, uint64_t vote);
	/* One entry to write; all at and above `index` that were there are
	 * void. The data is the sink's from here on, freed with free(). */
	void (*append)(struct step_sink *k, uint64_t index,
		       const struct step_entry *e);
	/* An entry that was appended, or given at start; the data is only read,
	 * before the next call. It is an error of the sink not to have it. */
	void (*entry)(struct step_sink *k, uint64_t index,
		      struct step_entry *out);
	/* A snapshot that was received and staged must become the state;
	 * step_installed follows. The log is void. */
	void (*install)(struct step_sink *k, uint64_t index, uint64_t term);
	/* To the member step_receiver(m). Valid, entries included, inside the
	 * call only; codec.h makes bytes of it. step_wish: it is the wish that
	 * a snapshot be sent. */
	void (*send)(struct step_sink *k, const struct raft_message *m);
};
uint64_t step_receiver(const struct raft_message *m);
bool step_wish(const struct raft_message *m);

struct step_config {
	struct env *env;
	uint64_t node_id;
	const char *address; /* Copied. */
	uint32_t election_ms;
	uint32_t heartbeat_ms;
};

/* RC_NOMEM. */
enum rc step_new(const struct step_config *cfg, struct step_sink *sink,
		 struct step **out);
void step_free(struct step *st);

/* What is durable at start. */
struct step_boot {
	uint64_t term;
	uint64_t vote;
	uint64_t index; /* Of the state; 0: empty. */
	uint64_t index_term;
	uint64_t conf_index; /* Of the state's configuration. */
	const void *conf;    /* Encoded, checked with step_conf_read. */
	size_t conf_bytes;
	/* Entries first .. last, from sink->entry; `first` is at most index + 1
	 * (0: that), and what it and `index` span is there too. */
	uint64_t first;
	uint64_t last;
	/* `index` is committed, but of which term is not known: the state is
	 * lost and the log was recycled up to there. A leader is believed. */
	bool unsure;
};

/* ---- events ---- */

/* Exactly once, before all others. A lone voter leads when it returns, and its
 * whole log is committed. Its term must be a new one (guard B10). */
void step_start(struct step *st, const struct step_boot *boot);
/*
 * Propose one entry. RC_OK: `*index` is its place, `data` (malloc'ed, not NULL)
 * was given to sink->append. Otherwise `data` stays the caller's:
 * RC_NOT_LEADER: also while leadership is transferred. RC_NO_SPACE.
 * RC_INVALID, RC_CONFLICT: a STEP_CHANGE that is none, that differs in more
 * than one server, or that comes before its time.
 */
enum rc step_submit(struct step *st, enum step_type type, void *data,
		    uint32_t bytes, uint64_t *index);
/* Entries up to `index` are durable; what is not news is ignored. */
void step_persisted(struct step *st, uint64_t index);
/* The state contains everything up to `index`. What is not news is ignored: a
 * state that was replaced by an older one catches up. */
void step_applied(struct step *st, uint64_t index, uint64_t term);
/* The configuration at `index` was applied: it is final. */
void step_configured(struct step *st, uint64_t index, const void *conf,
		     size_t bytes);
/* The state is durable at `index` (applied, in the log, above the last one),
 * with the configuration that was applied last: forget the log up to
 * `index - trailing`. Ignored while a snapshot is installed. */
void step_snapshot(struct step *st, uint64_t index, uint64_t conf_index,
		   const void *conf, size_t conf_bytes, uint32_t trailing);
/* The state that sink->install asked for is durable and in place. */
void step_installed(struct step *st);
/* At or after step_timeout_ms. */
void step_timeout(struct step *st);
/*
 * A message from the member m->server_id over the connection `epoch`. The
 * struct and its array of entries stay the caller's; their batch and an
 * InstallSnapshot's configuration (raft_malloc'ed) are taken.
 */
void step_receive(struct step *st, struct raft_message *m, uint64_t epoch);

/* What a message from a peer was, for those who count. */
struct step_seen {
	bool jumped; /* Its term is more than TERM_JUMP_MAX ahead: refused. */
	bool forgot; /* The sender's log ends below what it acknowledged. */
	bool level;  /* It acknowledges all that it ever did. */
	bool result; /* It answers us who lead, */
	bool low;    /* and its disk is low, */
	bool full;   /* or full (step_room). */
};
/*
 * The bytes of one message of codec.h. `full`: there is no room for entries,
 * the message counts without them. RC_OK; RC_INVALID: that is none; RC_NOMEM:
 * it counts as lost.
 */
enum rc step_deliver(struct step *st, uint64_t node_id, uint64_t epoch,
		     const uint8_t *p, size_t n, bool full,
		     struct step_seen *seen);

/* Append to `w` what a member of that term answers to a leader of a lower one:
 * its term, and that it took nothing. Needs no core. */
void step_refusal(struct pack_w *w, uint64_t term);

/*
 * A snapshot that the leader `node_id` of `term` has sent is staged. RC_OK:
 * sink->install was called. RC_EXISTS: the log has all that it contains.
 * RC_CONFLICT: `term` is over, or one is being installed. RC_CORRUPT: its
 * configuration is none. RC_NOMEM.
 */
struct step_staged {
	uint64_t node_id;
	uint64_t term;
	uint64_t index;
	uint64_t index_term;
	uint64_t conf_index;
	const void *conf;
	size_t conf_bytes;
};
enum rc step_staged(struct step *st, const struct step_staged *s);

/* Hand the leadership to the voter `node_id`, whose log must be level with
 * ours. RC_OK: it has been told to stand; the core gives up after an election
 * timeout. RC_NOT_LEADER: also while another is under way; RC_NOT_FOUND. */
enum rc step_transfer(struct step *st, uint64_t node_id);
/* Entries on their way to one follower, 1..STEP_INFLIGHT_MAX. */
void step_inflight(struct step *st, uint32_t entries);
/* From now on every answer to a leader says so; `full` is `low` as well. */
void step_room(struct step *st, bool low, bool full);

/* ---- reading ---- */

bool step_failed(const struct step *st);
bool step_leads(const struct step *st);
/* The only voter and the only member. */
bool step_alone(const struct step *st);
uint64_t step_term(const struct step *st);
/* Never falls, and stands while a snapshot is installed (guard B12). */
uint64_t step_commit(const struct step *st);
uint64_t step_last(const struct step *st);
uint64_t step_stored(const struct step *st);
/* Term of an entry in the log or of the last snapshot; 0: neither. */
uint64_t step_term_at(const struct step *st, uint64_t index);
uint64_t step_snapshot_index(const struct step *st);
/* As leader: the first entry of this leadership, 0: none yet. */
uint64_t step_own_index(const struct step *st);
uint64_t step_leader(const struct step *st);
uint32_t step_voters(const struct step *st);
/* Of the configuration in force, and of the one before while a change is not
 * committed. */
bool step_voter(const struct step *st, uint64_t node_id);
/* The i-th member of the configuration in force; 0: there is none. */
uint64_t step_member_id(const struct step *st, uint32_t i);
bool step_installing(const struct step *st);
/* The first index of the core's log; what it may ask sink->entry for. */
uint64_t step_first(const struct step *st);
/* As leader: how far the member's log is durable and equal to ours. */
uint64_t step_match(const struct step *st, uint64_t node_id);
/* As leader: who was told to stand; 0: nobody. */
uint64_t step_transferee(const struct step *st);
/* On env_now_ms; STEP_NEVER when nothing is to be done. */
uint64_t step_timeout_ms(const struct step *st);

/* ---- configurations ---- */

struct step_member {
	uint64_t id;
	const char *address;
};
/* A configuration of voters, encoded; malloc'ed. RC_NOMEM; RC_INVALID: an id or
 * an address is 0, empty or there twice. */
enum rc step_conf_encode(const struct step_member *voters, size_t n,
			 void **data, size_t *bytes);
#define STEP_IDS 8u
struct step_conf {
	uint32_t voters;
	uint32_t members;
	bool member;            /* The node asked about. */
	bool sole;              /* It is the only voter, */
	bool anew;              /* and must start in a new term (guard B10). */
	uint64_t ids[STEP_IDS]; /* Of the first voters, then 0. */
};
/* RC_CORRUPT when the bytes are no configuration. RC_NOMEM. */
enum rc step_conf_read(const void *data, size_t bytes, uint64_t node_id,
		       struct step_conf *out);

#endif
