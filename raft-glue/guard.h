/*
 * guard - what libraft 0.22.1 needs at its boundary, one function per fault.
 *
 * Pure: messages, events and the public fields of struct raft in, a verdict or
 * a corrected message out. Each is named after the fault it stands for, B1 to
 * B21, and has a test that fails without it. B20, "no event for a failed
 * write", is guard_b20 for the core's own errors and fail-stop in log.c for the
 * disk's. Loop thread. Used by step.c. With step.c and codec.c the only files
 * that know raft.h. Each has a mutant that leaves it out: guard_b1 to
 * guard_b21.
 */
#ifndef HOLDFAST_RAFT_GLUE_GUARD_H
#define HOLDFAST_RAFT_GLUE_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct raft;
struct raft_configuration;
struct raft_message;

#define CONF_SERVERS_MAX 32u

/* ---- messages that arrive ---- */

/*
 * B2: a follower gives every configuration entry the index of the first new
 * entry of its message. So a change must come first in one: how many entries,
 * from `from` on, may be stepped together.
 */
unsigned guard_b2(const struct raft_message *m, unsigned from);

/* B3: a stale rejection would make next == match, and that follower is never
 * served again. It becomes a success that says nothing. */
void guard_b3(const struct raft *r, struct raft_message *m);

/*
 * B4: entries from below the compacted prefix would be appended at the end.
 * What is applied here is dropped, and the message begins after it. Returns how
 * many entries were dropped; `entries` is advanced past them. When none is left
 * their memory is the caller's to free.
 */
unsigned guard_b4(const struct raft *r, struct raft_message *m,
		  uint64_t applied_index, uint64_t applied_term);

/*
 * B7: a member that is a non-voter only by its own newest configuration, which
 * may be uncommitted, refuses to vote. It counts as a voter while it steps a
 * RequestVote. Pass what begin returns to end.
 */
int guard_b7_begin(struct raft *r, const struct raft_message *m);
void guard_b7_end(struct raft *r, int role);

/* B8: a non-voter never forgets a dead leader, a voter only at the end of its
 * own timer. Who heard of no leader for an election timeout may vote. */
void guard_b8(const struct raft *r, struct raft_message *m, uint64_t contact_ms,
	      uint64_t now_ms);

/* B13: a leader would take entries or a snapshot of its own term and overwrite
 * its state. True: two leaders in a term; the process must end. */
bool guard_b13(const struct raft *r, const struct raft_message *m);

/* B14: an answer to a vote at a member that is no candidate reads another
 * member of a union. True: drop it. */
bool guard_b14(const struct raft *r, const struct raft_message *m);

/* B16: a second snapshot while one is installed, or one of an older term.
 * True: drop it. */
bool guard_b16(const struct raft *r, const struct raft_message *m);

/* B19: the core takes no message for lost, doubled or late. `known` is the
 * newest connection epoch of the sender; false: the message is of an older
 * one. */
bool guard_b19(uint64_t *known, uint64_t epoch);

/* B21: with another version, or none, the core reads fields that were not sent:
 * a late pre-vote would count as a vote. False: refuse the message. */
bool guard_b21(const struct raft_message *m);

/* Is this the encoding of a configuration? The core decodes without looking
 * where the bytes end. */
bool guard_conf(const void *data, size_t bytes);

/* ---- messages that leave ---- */

/* B1: the refusal of a lower term carries whatever was on the stack as the last
 * index: a false acknowledgement. `asked_term` is that of the message that `m`
 * answers. */
void guard_b1(const struct raft *r, struct raft_message *m,
	      uint64_t asked_term);

/* B5: a refused pre-vote echoes the candidate's term, so it never learns of a
 * higher one. */
void guard_b5(const struct raft *r, struct raft_message *m);

/* B15: a conflicting suffix is walked back one index per round trip. The hint
 * becomes the last index that surely matches. */
void guard_b15(const struct raft *r, struct raft_message *m);

/* ---- events ---- */

/* B6: a change before an entry of the own term is committed. `own_index` is the
 * first index of this leadership, 0: none. */
bool guard_b6(uint64_t own_index, uint64_t commit_index);

/* B9: a member whose last message is old makes the core's timeout stay in the
 * past: the timer would spin. Returns the time to use. */
uint64_t guard_b9(uint64_t timeout_ms, uint64_t last_ms, uint32_t heartbeat_ms);

/* B10: a single voter elects itself in the same term. True: `id` is the only
 * voter of `conf`; a higher term without a vote must be durable first. */
bool guard_b10(const struct raft_configuration *conf, uint64_t id);
bool guard_sole(const struct raft_configuration *conf, uint64_t id);

/* B11: the core believes whatever index it is told to be stored. */
bool guard_b11(struct raft *r, uint64_t index);

/* B12: the core's commit index falls, and rises during an install. Returns our
 * own: `commit` is what it was. */
uint64_t guard_b12(uint64_t commit, uint64_t core_commit, bool installing);

/* B17: in a configuration of the same size a newcomer inherits a match index.
 * True: exactly one server was added at the end, removed, or changed its
 * role. */
bool guard_b17(const struct raft_configuration *was,
	       const struct raft_configuration *is);

/* B18: a refused change after other entries leaves phantoms in the log. True:
 * these `n` entries, `changes` of them configurations, may be submitted
 * together. */
bool guard_b18(unsigned n, unsigned changes);

enum guard_b20 {
	GUARD_DONE,
	GUARD_REFUSED, /* Nothing happened; ask somebody else, or later. */
	GUARD_STOP,    /* An invariant is broken, or memory is out. */
};
/* B20: what raft_step returned for an event (enum raft_event_type). */
enum guard_b20 guard_b20(int event_type, int rv);

#endif
