/*
 * db - one shard's state database: schema, transactions, reads, set hashes.
 *
 * Any thread, one at a time (storage.c: the storage worker). Blocks. Stands on
 * db_vfs.c; every other file of the server knows nothing of SQLite.
 *
 * Result codes of all that return one: RC_OK; RC_CORRUPT, the state is bad (a
 * checksum, or SQLite found its structure wrong); RC_IO and RC_NO_SPACE, a
 * write or sync failed and the node has to stop; RC_NOMEM, nothing is certain
 * about a transaction that was open. After anything but RC_OK from a function
 * that writes, the database can only be discarded. db_why() has the sentence.
 */
#ifndef HOLDFAST_OBJECTS_DB_H
#define HOLDFAST_OBJECTS_DB_H

#include <stdbool.h>
#include <stdint.h>

#include "node/base/crypto.h"
#include "node/base/disk.h"
#include "node/base/limits.h"
#include "objects/effects.h"

struct db;

#define DB_SCHEMA_VERSION 1u

/* What is written with the effects, in the same transaction. */
struct db_meta {
	uint64_t applied_index;
	uint64_t applied_term;
	uint64_t stamp_ns;
	uint64_t wall_ms;
	uint64_t conf_index;
	const void *conf; /* NULL: none yet; in db_commit: unchanged. */
	size_t conf_bytes;
};

/*
 * Open, or create. What `db_meta` then says is in the synced main file; its
 * `conf` belongs to the database until the next commit with one.
 * RC_CORRUPT, RC_VERSION (a newer schema), and as above.
 */
enum rc db_open(struct disk *disk, uint32_t shard, uint64_t generation,
		struct db **out, struct detail *why);
/*
 * Open a file that db_vfs_stage_* made of another node's, and write down that
 * it is of this generation. RC_CORRUPT: it is no state of the shard;
 * RC_VERSION; RC_IO and RC_NO_SPACE for a write or sync.
 */
enum rc db_adopt(struct disk *disk, uint32_t shard, uint64_t generation,
		 struct db **out, struct detail *why);
/* Everything must be committed. What is in the WAL stays there. */
void db_close(struct db *db);
/* The same without touching the disk: after a fault, or in the simulator's
 * kill. */
void db_discard(struct db *db);

/* As last committed. */
const struct db_meta *db_meta(const struct db *db);
/* The sentence to the last result that was not RC_OK. */
const char *db_why(const struct db *db);

/* ---- writing: begin, changes, commit ---- */

enum rc db_begin(struct db *db);
/* Every row of the object is gone whose kind is among `kinds` (bits: 1 <<
 * kind). */
enum rc db_wipe(struct db *db, const struct oid *oid, uint32_t kinds);
/* head.p == NULL: deleted. */
enum rc db_put_head(struct db *db, const struct oid *oid,
		    struct pack_bytes head);
/* row->value.p == NULL: deleted. */
enum rc db_put_row(struct db *db, const struct oid *oid,
		   const struct unit_row *row);
enum rc db_commit(struct db *db, const struct db_meta *meta);
enum rc db_rollback(struct db *db);

/* Copy the WAL into the main file, sync that, empty the WAL. No transaction may
 * be open. */
enum rc db_checkpoint(struct db *db);
/* What the WAL holds. */
uint64_t db_wal_bytes(const struct db *db);

/* ---- reading: views are valid inside the callback; false ends the scan ----
 */

typedef bool (*db_row_cb)(void *arg, const struct oid *oid,
			  const struct unit_row *row);
typedef bool (*db_head_cb)(void *arg, const struct oid *oid,
			   struct pack_bytes head);

/* The callback is called once or, when there is none, never. */
enum rc db_head(struct db *db, const struct oid *oid, db_head_cb cb, void *arg);
enum rc db_row(struct db *db, const struct oid *oid, enum row_kind kind,
	       struct pack_bytes key, db_row_cb cb, void *arg);
/* All rows of an object, in order of (kind, key). */
enum rc db_object(struct db *db, const struct oid *oid, db_row_cb cb,
		  void *arg);
/* Rows of one kind with start <= key, ascending; `reverse`: with key < start
 * (p == NULL: all), descending. */
enum rc db_scan(struct db *db, const struct oid *oid, enum row_kind kind,
		struct pack_bytes start, bool reverse, db_row_cb cb, void *arg);
/* Rows with 0 < expires <= stamp_ns, the earliest first. */
enum rc db_expired(struct db *db, uint64_t stamp_ns, db_row_cb cb, void *arg);
/* Heads with an id above `after`, ascending; NULL: from the first. */
enum rc db_heads(struct db *db, const struct oid *after, db_head_cb cb,
		 void *arg);

/* ---- set hashes ---- */

/*
 * The hash of everything in a range (0 <= range < STATE_RANGES; an object's
 * range is the first nibble of its id): the sum, in two lanes modulo 2^64, of
 * the BLAKE2b-128 of each head and row. It does not depend on the order in
 * which they came. As committed; little endian.
 */
void db_range_hash(const struct db *db, unsigned range,
		   uint8_t out[HASH_BYTES]);
/* The same, computed from the rows. */
enum rc db_range_recompute(struct db *db, unsigned range,
			   uint8_t out[HASH_BYTES]);
/* Do the rows of a range give the hash that was kept with them? Also inside a
 * transaction. RC_CORRUPT: they do not. */
enum rc db_range_check(struct db *db, unsigned range);
/*
 * BLAKE2b-128 over applied index, term, stamp, wall and conf_index (8 bytes
 * each, little endian), the configuration and the hashes of all ranges, as
 * committed: equal on every replica that applied the same entries, whatever its
 * file looks like.
 */
void db_state_hash(const struct db *db, uint8_t out[HASH_BYTES]);

/* ---- the main file as it is, see db_vfs.h ---- */

uint64_t db_main_bytes(const struct db *db);
enum rc db_main_read(struct db *db, uint64_t off, void *p, size_t n,
		     size_t *got);
enum rc db_main_verify(struct db *db, uint32_t first, uint32_t pages);

#endif
