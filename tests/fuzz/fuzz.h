/*
 * fuzz - what each fuzz target is made of.
 *
 * A target is one file with LLVMFuzzerTestOneInput(). It links either with
 * libFuzzer (./configure --enable-fuzz CC=clang) or with main.c, which needs no
 * runtime of a compiler.
 */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* One input. Returns 0; ends the process when a property does not hold. */
int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

/* A property of the code under test, in every build. */
#define MUST(cond)                                                             \
	do {                                                                   \
		if (!(cond)) {                                                 \
			(void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, \
				      __LINE__, #cond);                        \
			abort();                                               \
		}                                                              \
	} while (0)

#endif
