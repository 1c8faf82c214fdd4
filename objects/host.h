/*
 * host - all that objects may ask of the world around them, per shard.
 *
 * Loop thread. node/core/bridge.c implements it over a shard; tests fake it. Of
 * Raft it shows an owner's term as an opaque epoch and marks: a mark is the
 * number of a proposed unit (or tick) in this epoch, 1 .., in order.
 */
#ifndef HOLDFAST_OBJECTS_HOST_H
#define HOLDFAST_OBJECTS_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/pack.h"

struct host;
struct event;

struct host_ops {
	/* The owner's now (DESIGN D8), ns; never below a committed stamp. */
	uint64_t (*now)(struct host *h);
	/* F: the stamp of the newest committed entry. */
	uint64_t (*committed_stamp)(struct host *h);
	/* Propose one unit in epoch `epoch`; copies it. Returns its mark; 0
	 * when the epoch is over or nothing can be proposed (the object layer
	 * then ends the event with UNKNOWN_OUTCOME or OVERLOADED: see why).
	 * With `may_wait` it is gathered, LAG_GATHER_MS at most, so that one
	 * entry carries many, unless a unit that may not wait comes behind it:
	 * units become entries in the order of their marks. */
	uint64_t (*propose)(struct host *h, uint64_t epoch,
			    const struct pack_w *unit, bool may_wait,
			    enum rc *why);
	/* Somebody waits for a unit that may have been gathered: all are
	 * proposed in this turn. */
	void (*hurry)(struct host *h, uint64_t epoch);
	/* The mark of an empty entry of this turn: one per shard and turn. */
	uint64_t (*tick)(struct host *h, uint64_t epoch);
	/* Ask for a proof of ownership that begins after now; returns its
	 * ticket, which space_proved() will reach. One per turn is asked. */
	uint64_t (*prove)(struct host *h, uint64_t epoch);
	/* May new state of this tenant come in? RC_NO_SPACE at a cap or at the
	 * disk reserve (deletes and reads go on), RC_OVERLOADED while the log
	 * is pinned. `why` says which. */
	enum rc (*admit)(struct host *h, struct pack_bytes tenant,
			 int64_t objects, int64_t bytes, struct detail *why);
	/* Start the nested call that ev->nested describes; it ends through
	 * space_called(). Called when the gate before it has opened. */
	void (*call)(struct host *h, struct event *ev);
	/* The outer event ended: whatever it still waits for is dropped. */
	void (*call_drop)(struct host *h, struct event *ev);
	void (*random)(struct host *h, void *out, size_t n);
};

struct host {
	const struct host_ops *ops;
};

#endif
