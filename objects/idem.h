/*
 * idem - idempotency records: one row of the object per key, written in the
 * same unit as the effects (DESIGN D5).
 *
 * Loop thread. The row's key is a hash of principal, method and the caller's
 * key; its value says how far the event with that key came:
 *
 *   [version, state, args hash, principal hash, ...]
 *     STARTED  ..., suspensions, locals (4), dirty
 *     DONE     ..., the answer
 *     FAILED   ..., code, field, text     (it failed after some effects)
 *
 * The row expires with the key's window. How many records a principal has
 * stands in a row of kind ROW_IDEM_COUNT under the principal's hash. A
 * destroyed object keeps a row with the empty key until the last window ends,
 * so that the sweep comes back to it.
 */
#ifndef HOLDFAST_OBJECTS_IDEM_H
#define HOLDFAST_OBJECTS_IDEM_H

#include "client/proto/pack.h"
#include "node/base/crypto.h"
#include "objects/class.h"
#include "objects/object.h"
#include "objects/stage.h"

#define IDEM_VERSION 1u

enum idem_state {
	IDEM_STARTED = 1,
	IDEM_DONE = 2,
	IDEM_FAILED = 3,
};

struct idem_record {
	enum idem_state state;
	uint8_t args[HASH_BYTES];
	uint8_t who[HASH_BYTES];
	/* STARTED */
	uint32_t call_no;
	uint64_t locals[4];
	bool dirty;
	/* DONE */
	struct pack_bytes answer; /* View into what was read. */
	/* FAILED */
	enum rc rc;
	struct pack_bytes field, text;
};

/* Appends to `w`; its rc tells. */
void idem_write(struct pack_w *w, const struct idem_record *r);
/* RC_CORRUPT, RC_VERSION. */
enum rc idem_read(struct pack_bytes value, struct idem_record *out);

/* The key under which a nested call of this event goes out. */
void idem_derive(const struct event *ev, uint8_t key[HASH_BYTES]);

/* A window that a call may ask for: RC_OK, or RC_INVALID (field idem_ms). */
enum rc idem_window(const struct class *cls, uint64_t idem_ms, uint64_t *ns,
		    struct detail *why);

enum idem_look {
	IDEM_NEW,    /* Run it. */
	IDEM_RESUME, /* Run it from ev->resume on. */
	IDEM_LOAD,   /* The record is not in memory: noted as wanted. */
	IDEM_JOIN,   /* `*runner` has the same key and is not over. */
	IDEM_ANSWER, /* ev->rc, ev->outcome and ev->result (or why) say it. */
};
/* An event with a key is about to run for the first time. */
enum idem_look idem_look(struct event *ev, struct event **runner);
/* Its record is in memory, or noted as wanted. */
bool idem_at_hand(struct event *ev);

/* Stage the record: how far `ev` has come. RC_OVERLOADED, RC_NOMEM, RC_INVALID
 * (the answer is too large). */
enum rc idem_stage(struct event *ev, enum idem_state state);
/* Take a `started` back: nothing of the event has happened. */
enum rc idem_stage_removal(struct event *ev);
/* An expired record goes, and its principal has one less. RC_AGAIN: the count
 * was noted as wanted. */
enum rc idem_stage_expired(struct event *ev, struct row *r);

#endif
