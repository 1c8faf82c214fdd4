/*
 * fake_storage - objects/storage.h in memory, with loads that complete when the
 * test says so, in its order.
 *
 * It stands in for objects/storage.c in tests of what lies above: what is
 * applied is shown by the next load that completes. Linked instead of the real
 * one.
 */
#ifndef TESTS_LIB_FAKE_STORAGE_H
#define TESTS_LIB_FAKE_STORAGE_H

#include "objects/storage.h"

struct storage *fake_storage_new(void);
void fake_storage_free(struct storage *s); /* Nothing may be under way. */

/* How many loads (and searches for expired rows) wait. */
size_t fake_storage_waiting(const struct storage *s);
/* Complete the i-th of those that wait, with this code. */
void fake_storage_finish(struct storage *s, size_t i, enum rc rc);
/* What the i-th asks for; NULL when it is no load. */
const struct storage_load *fake_storage_load(const struct storage *s, size_t i);
/* From now on everything that is asked for is answered at once when
 * fake_storage_finish_all() is called. */
void fake_storage_finish_all(struct storage *s);

/* What is stored: the value as it was sealed, p == NULL when there is none. */
struct pack_bytes fake_storage_row(const struct storage *s,
				   const struct oid *oid, enum row_kind kind,
				   struct pack_bytes key);
struct pack_bytes fake_storage_head(const struct storage *s,
				    const struct oid *oid);
size_t fake_storage_rows(const struct storage *s, const struct oid *oid,
			 enum row_kind kind);
/* How often somebody did not want to wait for the window. */
size_t fake_storage_flushes(const struct storage *s);
/* Flip a byte of a row's value. */
void fake_storage_damage(struct storage *s, const struct oid *oid,
			 enum row_kind kind, struct pack_bytes key);

#endif
