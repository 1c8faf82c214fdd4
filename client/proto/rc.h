/*
 * rc - result codes: one enum for the whole system, made from rc.tbl.
 *
 * Any thread. A foreign code (errno, UV_*, RAFT_*, SQLite, OpenSSL) is turned
 * into one of these in the function that met it and goes no further.
 */
#ifndef HOLDFAST_PROTO_RC_H
#define HOLDFAST_PROTO_RC_H

#include <stdbool.h>
#include <stddef.h>

enum rc {
#define RC(name, number, http, outcome, text) RC_##name = number,
#include "client/proto/rc.tbl"
#undef RC
};

enum outcome {
	OUTCOME_DONE,    /* It was carried out. */
	OUTCOME_REFUSED, /* It did not happen. */
	OUTCOME_UNKNOWN, /* It may have happened. */
};

#define DETAIL_BYTES_MAX 240

/*
 * One sentence for a person, and the field it is about. The caller owns it,
 * zeroed; functions that take one accept NULL. The first writer wins: what is
 * nearest to the fault knows most.
 */
struct detail {
	char field[64];
	char text[DETAIL_BYTES_MAX];
};

/* "INVALID" for RC_INVALID; "INTERNAL" for a number that is not in rc.tbl. */
const char *rc_name(enum rc rc);
/* The text of rc.tbl. */
const char *rc_text(enum rc rc);
int rc_http(enum rc rc);
enum outcome rc_outcome(enum rc rc);
/* "refused", "unknown" or "done". */
const char *outcome_name(enum outcome o);
/* True for codes that a client may see (number below 64). */
bool rc_is_wire(enum rc rc);
/* RC_OK and `out` set when `name` (`len` bytes) is a code of rc.tbl that a
 * client may see, else RC_NOT_FOUND. */
enum rc rc_parse(const char *name, size_t len, enum rc *out);

/* Fill `why` (may be NULL) unless it is filled already; returns `rc`, so that
 * it can stand in a return. `field` may be NULL. */
enum rc detail_set(struct detail *why, enum rc rc, const char *field,
		   const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Say where `why->field` lies: "ops[3]" before "key" makes "ops[3].key"; an
 * empty field becomes "ops[3]". `why` may be NULL. */
void detail_within(struct detail *why, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));

#endif
