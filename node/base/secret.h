/*
 * secret - the one arena for keys, tokens and private parts.
 *
 * Loop thread only. One mapping, locked (mlock), excluded from core dumps,
 * wiped in a child after fork, between guard pages, its free and inactive slots
 * inaccessible; sized by configuration (default 2 MiB, so that it fits the
 * common 8 MiB RLIMIT_MEMLOCK). Start is refused when it cannot be locked.
 * A `struct secret` is opaque: it cannot be logged (F() does not compile),
 * printed or copied; its bytes are readable only between secret_begin() and
 * secret_end().
 */
#ifndef HOLDFAST_BASE_SECRET_H
#define HOLDFAST_BASE_SECRET_H

#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct secret;

#define SECRET_ARENA_BYTES_DEFAULT (2u << 20)
#define SECRET_BYTES_MAX           4096u

/* RC_NOMEM: the mapping failed; RC_DENIED: mlock failed, `why` names the limit
 * to raise. Also sets PR_SET_DUMPABLE 0 and RLIMIT_CORE 0 when `harden`. */
enum rc secret_arena_open(size_t bytes, bool harden, struct detail *why);
/* Wipes everything. */
void secret_arena_close(void);

/* Copy `n` (1..SECRET_BYTES_MAX) bytes in; the caller wipes its own copy.
 * RC_OVERLOADED: the arena is full. */
enum rc secret_new(const uint8_t *p, size_t n, struct secret **out);
void secret_free(struct secret *s); /* Wipes. NULL is fine. */
size_t secret_bytes(const struct secret *s);

/* The bytes, until secret_end(). Not nested for the same secret. */
const uint8_t *secret_begin(struct secret *s);
void secret_end(struct secret *s);

#endif
