/*
 * rows - the rows of one object that are in memory, in order of kind and key.
 *
 * Loop thread. An object that was loaded whole knows every row of a kind: what
 * is not here does not exist. Of a larger one only what was asked for is here,
 * and the gaps between are remembered: a row says whether anything unknown may
 * lie between it and its successor, markers stand for keys that are known not
 * to exist and for the ends of ranges that were loaded.
 */
#ifndef HOLDFAST_OBJECTS_ROWS_H
#define HOLDFAST_OBJECTS_ROWS_H

#include <bsd/sys/tree.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "client/proto/pack.h"
#include "objects/effects.h"

/* Beside enum row_kind: rows that are never proposed. Always known. */
#define ROW_MEMORY 0u
#define ROW_KINDS  (ROW_CONFIG + 1u)

enum row_flags {
	ROW_ABSENT = 1 << 0,  /* A marker: this key does not exist. */
	ROW_UNKNOWN = 1 << 1, /* A marker: of this key nothing is known. */
	ROW_NEXT = 1 << 2,    /* Nothing unknown lies between it and the next
			       * row or marker of its kind, or the end. */
};

struct row {
	RB_ENTRY(row) node;
	LIST_ENTRY(row) chain;
	uint64_t mark;       /* Of the unit that wrote it; 0: it was loaded. */
	uint64_t expires_ns; /* 0: never. ROW_MEMORY: when it is full. */
	uint32_t value_n;
	uint32_t value_cap;
	uint16_t key_n;
	uint8_t kind;
	uint8_t flags;
	uint8_t data[]; /* The key, then the value. */
};

RB_HEAD(row_tree, row);
LIST_HEAD(row_chain, row);

struct rows {
	struct row_tree tree;
	/* Finds a row by its name without a walk through memory: of many rows
	 * only, NULL of a few, or without memory. */
	struct row_chain *chains;
	uint32_t chains_n; /* A power of two. */
	uint32_t n;
	/* Per kind the row or marker that was found last: who runs asks for it
	 * several times. */
	struct row *last[ROW_KINDS];
	size_t bytes;      /* Memory of all of them. */
	uint32_t complete; /* Bit per kind: every row is here. */
};

static inline struct pack_bytes row_key(const struct row *r)
{
	return (struct pack_bytes){ r->data, r->key_n };
}

static inline struct pack_bytes row_value(const struct row *r)
{
	return (struct pack_bytes){ r->data + r->key_n, r->value_n };
}

static inline bool row_exists(const struct row *r)
{
	return (r->flags & (ROW_ABSENT | ROW_UNKNOWN)) == 0;
}

static inline uint32_t row_kind_bit(unsigned kind)
{
	return (uint32_t)1 << kind;
}

static inline bool rows_complete(const struct rows *rows, unsigned kind)
{
	return (rows->complete & row_kind_bit(kind)) != 0;
}

/* Order of keys: as bytes, the shorter first. */
int row_key_cmp(struct pack_bytes a, struct pack_bytes b);

/* Empty, and nothing known but rows in memory only. */
void rows_init(struct rows *rows);
void rows_release(struct rows *rows);

/* A row that is in no tree yet; NULL without memory. Freed with free(). */
struct row *row_new(unsigned kind, struct pack_bytes key,
		    struct pack_bytes value, uint64_t expires_ns);
/* Its value can be replaced by one of `n` bytes in place, without waste. */
bool row_fits(const struct row *r, size_t n);
/* row_fits() must hold. Markers become rows. */
void row_set(struct row *r, struct pack_bytes value, uint64_t expires_ns);

enum rows_found {
	ROWS_FOUND,
	ROWS_ABSENT,
	ROWS_UNKNOWN, /* It has to be loaded to know. */
};
/* `*out` is the row, or the marker in its place, or NULL. */
enum rows_found rows_find(const struct rows *rows, unsigned kind,
			  struct pack_bytes key, struct row **out);

/* There must be nothing at its key. */
void rows_insert(struct rows *rows, struct row *r);
/* `r` takes the place of `old`, which has the same key and is freed. */
void rows_replace(struct rows *rows, struct row *old, struct row *r);
/* A row of a kind that is complete, or in memory only, is freed. */
void rows_remove(struct rows *rows, struct row *r);
/* What was a row says from now on that there is none. */
void rows_make_absent(struct rows *rows, struct row *r);
/* Every row of these kinds is gone, and all of them are known to be. */
void rows_clear(struct rows *rows, uint32_t kinds);

/* A load has shown everything of `kind` in [start, end) (start.p == NULL: from
 * the first, end.p == NULL: to the last), and what it found is in the tree.
 * RC_NOMEM: as if it had not been said. */
enum rc rows_known(struct rows *rows, unsigned kind, struct pack_bytes start,
		   struct pack_bytes end);
/* A load has shown that there is no such row. RC_NOMEM. */
enum rc rows_known_absent(struct rows *rows, unsigned kind,
			  struct pack_bytes key);

/* How much rows_trim() would give back. */
size_t rows_stored_bytes(const struct rows *rows, uint64_t stored);
/* Drop what can be loaded again: all but memory rows and what was written after
 * `stored`. Nothing is complete any more, except what is in memory only. */
void rows_trim(struct rows *rows, uint64_t stored);

/*
 * Walking one kind, forward or back. Before `at` (NULL: no more) is looked at,
 * `gap_known` says whether everything between where the walk came from and `at`
 * is known.
 */
struct rows_walk {
	const struct rows *rows;
	unsigned kind;
	bool gap_known;
	struct row *at;
};
/* The first at or after `start` (p == NULL: the first of all). */
void rows_first(struct rows_walk *w, const struct rows *rows, unsigned kind,
		struct pack_bytes start);
void rows_next(struct rows_walk *w);
/* The last before `end` (p == NULL: the last of all). */
void rows_last(struct rows_walk *w, const struct rows *rows, unsigned kind,
	       struct pack_bytes end);
void rows_prev(struct rows_walk *w);

#endif
