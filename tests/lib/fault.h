/*
 * fault - makes the n-th allocation fail.
 *
 * The program is linked with WRAP_ALLOC (Makefile.am), which sends malloc,
 *calloc and realloc of everything that is linked statically into it through
 *here; what shared libraries allocate for themselves is not seen. For those,
 *install an allocator of theirs (sqlite3_config(SQLITE_CONFIG_MALLOC),
 *raft_heap_set) that asks fault_next() first. Any thread; armed for all threads
 *together.
 *
 *	for (n = 1;; n++) {
 *		fault_alloc(n);
 *		rc = thing_open(...);
 *		fired = fault_off();
 *		...
 *		if (!fired)
 *			break; // It makes fewer than n allocations.
 *	}
 */
#ifndef TESTS_LIB_FAULT_H
#define TESTS_LIB_FAULT_H

#include <stdbool.h>
#include <stdint.h>

/* The n-th allocation from now on fails, once; 1 is the next. */
void fault_alloc(uint64_t nth);
/* So do all after it. */
void fault_alloc_from(uint64_t nth);
/* Nothing fails any more. True when something did since it was armed. */
bool fault_off(void);
bool fault_fired(void);
/* Allocations since it was armed. */
uint64_t fault_count(void);

/* Counts one allocation; true: it has to fail. */
bool fault_next(void);

/* Between the two, allocations of this thread neither count nor fail: for
 * what the test itself, or the simulated world, needs. They nest. */
void fault_hold(void);
void fault_release(void);

#endif
