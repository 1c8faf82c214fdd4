/*
 * check - asserts that stay in every build.
 *
 * PRE holds at entry, POST at exit, CHECK in between. They are for our own
 * bugs: what a client, peer, disk or operator can cause is an `enum rc`. A
 * struct that travels through a `void *` starts with `uint32_t magic` and is
 * verified with CHECK_OBJ where it comes back (Varnish's miniobj.h). One
 * condition per assert. A failure prints place, condition and what panic_note
 * was told, and aborts.
 */
#ifndef HOLDFAST_BASE_CHECK_H
#define HOLDFAST_BASE_CHECK_H

#include <stddef.h>
#include <stdint.h>

#include "node/base/banned.h"

_Noreturn void panic_at(const char *file, int line, const char *kind,
			const char *condition);

/* What a panic prints besides the place: at most four hooks, called in order
 * of registration; each writes what it knows to stderr. */
void panic_hook(void (*hook)(void *arg), void *arg);

#define CHECK_AT(kind, e) \
	((e) ? (void)0 : panic_at(__FILE__, __LINE__, kind, #e))
#define PRE(e)   CHECK_AT("PRE", e)
#define POST(e)  CHECK_AT("POST", e)
#define CHECK(e) CHECK_AT("CHECK", e)
#define CHECK_OBJ(p, m)                      \
	(CHECK_AT("CHECK_OBJ", (p) != NULL), \
	 CHECK_AT("CHECK_OBJ", (p)->magic == (m)))
#define UNREACHABLE() panic_at(__FILE__, __LINE__, "UNREACHABLE", "reached")

#define CONTAINER_OF(ptr, type, member) \
	((type *)(void *)((char *)(ptr)-offsetof(type, member)))

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

#endif
