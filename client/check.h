/*
 * check - assertions of the client's code, in every build.
 *
 * Any thread. What a server, a user or the system can cause is an error and
 * not one of these. (node/base/check.h is out of this folder's reach.)
 */
#ifndef HOLDFAST_CLIENT_CHECK_H
#define HOLDFAST_CLIENT_CHECK_H

#include <stdio.h>
#include <stdlib.h>

__attribute__((noreturn, cold)) static inline void check_failed(
	const char *text, const char *file, int line)
{
	(void)fprintf(stderr, "%s:%d: %s does not hold\n", file, line, text);
	abort();
}

#define CHECK(cond)                                        \
	(__builtin_expect(!(cond), 0)                      \
		 ? check_failed(#cond, __FILE__, __LINE__) \
		 : (void)0)
#define PRE(cond) CHECK(cond)

/* A struct that comes back through a `void *` begins with its magic. */
#define CHECK_OBJ(p, magic_) CHECK((p) != NULL && (p)->magic == (magic_))

#endif
