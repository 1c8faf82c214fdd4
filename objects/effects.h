/*
 * effects - what one event changed, encoded: a unit; and the log entry that
 * carries the units of one loop turn and shard.
 *
 * Any thread; pure. Written as MessagePack through client/proto/pack.h (the
 * only encoder), versioned because it is replicated and stored:
 *
 *	entry = [version, stamp_ns, wall_ms, term, units]
 *	unit  = [oid, flags, head, rows]
 *	head  = nil (unchanged) or bin: the object's head record, sealed
 *	rows  = [kind, key, value | nil, expires_ns, kind, key, ...]
 *
 * Empty `units` are a tick, nil is a scrub: every replica hashes what its state
 * is when it has applied exactly that. Rows are flat, four each; nil value: the
 * row is deleted.
 *
 * A unit is never split; what one event changed is in one unit, which may have
 * more of the same object (join.h). Applying is:
 * if flags has UNIT_WIPE, drop every row of the object; if it has UNIT_CLEAR,
 * drop every row but those of kind ROW_IDEM and ROW_IDEM_COUNT; then head; then
 * rows.
 */
#ifndef HOLDFAST_OBJECTS_EFFECTS_H
#define HOLDFAST_OBJECTS_EFFECTS_H

#include "client/proto/pack.h"
#include "node/base/limits.h"
#include "node/base/oid.h"

#define ENTRY_VERSION 1u

enum row_kind {
	ROW_DATA = 1,       /* A class's own row. */
	ROW_IDEM = 2,       /* An idempotency record. */
	ROW_IDEM_COUNT = 3, /* How many of them a principal has. */
	ROW_CONFIG = 4,     /* A class's configuration (limiter policies). */
};

enum unit_flags {
	UNIT_WIPE = 1 << 0, /* Every row the object had before is gone. */
	/* The head too (a tombstone's end): only with UNIT_WIPE, without a head
	 * and without rows. */
	UNIT_GONE = 1 << 1,
	/* Every row but ROW_IDEM and ROW_IDEM_COUNT is gone: a destroyed
	 * object's idempotency records outlive it until their windows end, and
	 * they may be too many to be written again. */
	UNIT_CLEAR = 1 << 2,
};

struct unit_row {
	enum row_kind kind;
	struct pack_bytes key;
	struct pack_bytes value; /* p == NULL: deleted. */
	uint64_t expires_ns;     /* 0: never. Stamp of the shard (DESIGN D8). */
};

/* Writing. All into a pack_w; its rc tells at the end. */
void unit_begin(struct pack_w *w, const struct oid *oid, uint32_t flags,
		struct pack_bytes head /* p == NULL: unchanged */,
		uint32_t rows);
void unit_row(struct pack_w *w, const struct unit_row *row);
void entry_begin(struct pack_w *w, uint64_t stamp_ns, uint64_t wall_ms,
		 uint64_t term, uint32_t units);
/* A whole entry. */
void entry_scrub(struct pack_w *w, uint64_t stamp_ns, uint64_t wall_ms,
		 uint64_t term);
/* Upper bounds of what the above append, for admission. */
size_t unit_bytes_max(size_t head_bytes, uint32_t rows, size_t row_bytes);

/* Reading: everything is verified; RC_CORRUPT for bytes we did not write,
 * RC_VERSION for a newer entry. Views point into the entry. */
struct entry_r {
	uint64_t stamp_ns;
	uint64_t wall_ms;
	uint64_t term;
	uint32_t units;  /* Left for entry_next. */
	bool scrub;      /* It has none. */
	uint32_t rows;   /* Private: of the last unit, not read yet. */
	struct pack_r r; /* Private. */
};
struct unit_r {
	struct oid oid;
	uint32_t flags;
	struct pack_bytes head; /* p == NULL: unchanged. */
	uint32_t rows;          /* Left for unit_next. */
	struct entry_r *entry;  /* Private. */
};
enum rc entry_read(const void *p, size_t n, struct entry_r *out);
/* Rows that unit_next was not asked for are passed over, and verified. RC_EOF
 * after the last; then the entry must be at its end (RC_CORRUPT). */
enum rc entry_next(struct entry_r *e, struct unit_r *out);
/* Of an entry that was found good. */
bool entry_scrubs(const void *p, size_t n);
/* Of the unit that entry_next gave last. RC_EOF after its last row. */
enum rc unit_next(struct unit_r *u, struct unit_row *out);
/* All rows that are left of it, as they are written. */
enum rc unit_rest(struct unit_r *u, struct pack_bytes *out);
/* Units alone, before they are an entry: for entry_next. */
void units_read(const void *p, size_t n, uint32_t units, struct entry_r *out);

#endif
