/*
 * stage - what one event has changed and not yet proposed.
 *
 * Loop thread; one per node, because one event runs at a time. Memory comes
 * from an arena that is emptied when the next event begins. A staged row
 * remembers the row (or marker) that it replaces, so that closing looks nothing
 * up again.
 */
#ifndef HOLDFAST_OBJECTS_STAGE_H
#define HOLDFAST_OBJECTS_STAGE_H

#include "objects/rows.h"
#include "objects/storage.h"

/* What one load fetches at most. */
#define STAGE_WANTS_MAX 1024u

struct arena_block;
struct arena {
	uint8_t *base; /* Kept between events. */
	size_t n;
	size_t cap;
	struct arena_block *more; /* Freed at the next reset. */
};

struct staged {
	RB_ENTRY(staged) node;
	struct row *base;  /* What stands there: a row, a marker, or NULL. */
	struct row *fresh; /* What will, when it cannot be done in place. */
	struct pack_bytes key;
	struct pack_bytes value;
	uint64_t expires_ns;
	uint8_t kind;
	bool deleted;
};

RB_HEAD(staged_tree, staged);

struct stage {
	struct arena arena;
	struct staged_tree tree;
	uint32_t n;   /* Staged rows that will be in the unit, */
	size_t bytes; /* with so many bytes of keys and values. */
	bool clear;   /* The object's own rows are gone first. */
	bool gone;    /* All of it is gone, the head too. */
	bool bumped;
	uint64_t rev;
	/* By how much the object grows: rows of ROW_DATA, rows in memory only,
	 * bytes of its own rows, bytes of idempotency records. */
	int64_t rows;
	int64_t memory_rows;
	int64_t own_bytes;
	int64_t idem_bytes;

	/* What was asked for and is not in memory. */
	struct load_key *wants;
	uint32_t wants_n;
	bool want_range;
	bool want_reverse;
	enum row_kind want_kind;
	struct pack_bytes want_start, want_end;
};

enum rc stage_init(struct stage *st);
void stage_release(struct stage *st);
/* Forget everything; the object's revision is `rev`. */
void stage_reset(struct stage *st, uint64_t rev);
/* Forget what was staged, keep the memory it lies in. */
void stage_drop(struct stage *st, uint64_t rev);

/* NULL without memory. Until the next stage_reset(). */
void *stage_alloc(struct stage *st, size_t n);

struct staged *stage_find(const struct stage *st, unsigned kind,
			  struct pack_bytes key);
/* Copies key and value. RC_NOMEM; RC_OVERLOADED with `bounded` at
 * EVENT_ROWS_MAX or EVENT_EFFECTS_BYTES_MAX. The row itself must be known:
 * `rows` tells what is replaced. */
enum rc stage_put(struct stage *st, const struct rows *rows, unsigned kind,
		  struct pack_bytes key, struct pack_bytes value,
		  uint64_t expires_ns, bool bounded);
enum rc stage_delete(struct stage *st, const struct rows *rows, unsigned kind,
		     struct pack_bytes key, bool bounded);
/* Whatever was staged of the object's own rows is forgotten, and those that it
 * has are gone: `rows_n` of ROW_DATA, `memory_n` in memory only, `own_bytes`
 * of the former and of ROW_CONFIG. */
void stage_clear(struct stage *st, uint64_t rows_n, uint64_t memory_n,
		 uint64_t own_bytes);
/* The kinds that it takes. */
#define STAGE_CLEARED_KINDS                                  \
	(row_kind_bit(ROW_MEMORY) | row_kind_bit(ROW_DATA) | \
	 row_kind_bit(ROW_CONFIG))

/* Staged rows of one kind at or after `start`, before `end` (p == NULL: no
 * bound); NULL when there is no more. */
struct staged *stage_first(const struct stage *st, unsigned kind,
			   struct pack_bytes start);
struct staged *stage_last(const struct stage *st, unsigned kind,
			  struct pack_bytes end);
struct staged *stage_next(struct staged *s);
struct staged *stage_prev(struct staged *s);

/* All that is staged, in order of kind and key. */
struct staged *stage_all(const struct stage *st);
struct staged *stage_follow(struct staged *s);

/* Note what has to be loaded; false without memory or when it is too much. */
bool stage_want_key(struct stage *st, enum row_kind kind,
		    struct pack_bytes key);
bool stage_want_range(struct stage *st, enum row_kind kind,
		      struct pack_bytes start, struct pack_bytes end,
		      bool reverse);

#endif
