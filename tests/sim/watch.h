/*
 * watch - what must hold after every event, and what nodes tell each other.
 *
 * One thread. It knows every node from inside, remembers what was committed,
 * and reads every message between nodes as it leaves. By the ids of the
 * invariants:
 *
 *   I1   one leader per shard and term
 *   I2   what is committed at an index never changes, on any node
 *   I3   terms, commit and applied index only grow; applied <= min(commit,
 *        durable); a term that was told is not forgotten over a restart
 *   I4   what is committed is on the synced disks of a majority
 *   I5   equal index and term: equal bytes, and the same before it
 *   I6   who is elected has everything that is committed
 *   I11  equal index, equal state
 *   I12  a log that is not whole, and a disk that is not known, neither vote
 *        nor acknowledge nor confirm; no second vote in a term
 *   I13  bounds
 *   I16  no timer spins
 *   D8   stamps only grow, over all owners
 *   D10  what a majority does not allow any more is not answered
 */
#ifndef TESTS_SIM_WATCH_H
#define TESTS_SIM_WATCH_H

#include "tests/sim/trial.h"

struct watch *watch_new(struct trial *r);
void watch_free(struct watch *w);

/* After an event on `node`. */
void watch_node(struct watch *w, unsigned node);
/* It has booted, it is about to be forgotten. */
void watch_booted(struct watch *w, unsigned node);
void watch_ended(struct watch *w, unsigned node);
/* A message leaves. */
void watch_message(struct watch *w, unsigned from, unsigned to,
		   enum link_kind kind, const uint8_t *p, size_t n);
/* All that are up are level: their states must be equal. */
void watch_level(struct watch *w);

/* Everything that was there to be committed when this was asked is committed or
 * can never be: false as long as that is not so. `*fence` is private; zero it
 * at the beginning. */
struct watch_fence {
	bool set;
	uint64_t term;
	uint64_t index;
};
bool watch_settled(struct watch *w, uint32_t shard, struct watch_fence *fence);

/* The guest's rights are gone since that version of the directory (`all`: as
 * every node has confirmed), or may be back from here on. */
void watch_taken(struct watch *w, uint64_t version, bool all);
void watch_given(struct watch *w);
/* A call of the guest that began then (trial's now) must not be answered. */
bool watch_refuses(const struct watch *w, uint64_t begun);

/* The owner's now can be no lower, or no higher, at this moment. */
uint64_t watch_stamp_lo(const struct watch *w, uint32_t shard);
uint64_t watch_stamp_hi(const struct watch *w, uint32_t shard);
uint64_t watch_commit(const struct watch *w, uint32_t shard);
/* When the newest entry of an earlier term than `term` that is committed was
 * proposed: what was proposed before it is committed too. 0: there is none. */
uint64_t watch_tail_ms(struct watch *w, uint32_t shard, uint64_t term);

#endif
