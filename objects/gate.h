/*
 * gate - the output gate of one space: what an event says waits here until it
 * may leave (DESIGN D5).
 *
 * Loop thread. An event waits first for the proof of ownership that it needs,
 * then for the mark up to which everything has to be committed; either may be
 * nothing. Entering, opening and leaving are O(1) per event: events are kept in
 * lists by mark, in a ring that covers the marks under way.
 *
 * The gate of `lagged` and `memory` opens without waiting for the event's own
 * effects or a proof of its own, as long as the oldest lagged effect that is
 * not committed, and the start of the last proof that succeeded, are younger
 * than LAG_MS_DEFAULT. This is asked when the event leaves, not when it enters:
 * the node may have been frozen in between. When it does not hold, the event
 * waits like a committed one.
 */
#ifndef HOLDFAST_OBJECTS_GATE_H
#define HOLDFAST_OBJECTS_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "client/proto/rc.h"

struct host;
struct event;

TAILQ_HEAD(event_list, event);

struct gate_slot {
	struct event_list waiting;
	uint64_t lagged_ns; /* A lagged unit was proposed then; 0: none. */
};

struct gate {
	struct host *host; /* Private, as all below. */
	uint64_t epoch;
	void (*open)(struct event *ev);
	void (*fail)(struct event *ev, enum rc rc);
	struct gate_slot *ring; /* Marks committed + 1 .. committed + slots. */
	size_t slots;           /* A power of two. */
	struct event_list far;  /* Beyond the ring. */
	struct event_list unproved; /* In order of ticket. */
	struct event_list unasked;  /* For whom nothing could be asked: they go
				     * with the next question. */
	uint64_t committed;
	uint64_t index; /* Of the entry that holds `committed`. */
	uint64_t newest;
	uint64_t under_way; /* Up to here nothing is gathered. */
	uint64_t proved;
	uint64_t asked;
	uint64_t fresh_ns;     /* When the last good proof began. */
	uint64_t asked_ticket; /* The one by which the next is known. */
	uint64_t asked_ns;
	uint64_t lagged_mark; /* The oldest lagged unit, 0: none. */
	uint64_t lagged_ns;
	uint64_t lagged_newest;
	uint64_t blind_mark; /* Until here `lagged` waits: not in the ring. */
};

/* `open` and `fail` are told when an event has passed, or its proof has failed;
 * they must not free it. RC_NOMEM. */
enum rc gate_init(struct gate *g, struct host *host,
		  void (*open)(struct event *ev),
		  void (*fail)(struct event *ev, enum rc rc));
void gate_release(struct gate *g); /* CHECKs that nobody waits. */

/* A new leadership: marks and tickets begin again. */
void gate_lead(struct gate *g, uint64_t epoch);

/* A unit or tick got this mark at `now_ns`. */
void gate_noted(struct gate *g, uint64_t mark, bool lagged, uint64_t now_ns);
/* Ask for a proof that begins after now; its ticket. UINT64_MAX, which is never
 * proved, when it cannot be asked for: the next that can serves as well, or the
 * loss of the epoch ends who waits. */
uint64_t gate_prove(struct gate *g, uint64_t now_ns);
/* A lagged answer will soon need one: asked for in time, nobody waits. */
void gate_freshen(struct gate *g, uint64_t now_ns);

/* ev->need_proof and ev->need_mark say what it waits for. `open` may be called
 * from inside. */
void gate_enter(struct gate *g, struct event *ev);
/* It waits here and shall not. */
void gate_leave(struct gate *g, struct event *ev);
/* May an event with ev->lagging leave now? If not it is back in the gate. */
bool gate_lagging_may_leave(struct gate *g, struct event *ev, uint64_t now_ns);

void gate_committed(struct gate *g, uint64_t mark, uint64_t index);
void gate_proved(struct gate *g, uint64_t ticket, enum rc rc);
/* Everybody out, in no order. */
void gate_drain(struct gate *g, void (*cb)(struct event *ev));

#endif
