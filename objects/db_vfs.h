/*
 * db_vfs - the files of one state database, as a file system for SQLite over
 * `struct disk`, with a checksum on all that SQLite reads.
 *
 * One per open database: an sqlite3_vfs with a name of its own, known to SQLite
 * from db_vfs_open to db_vfs_close. No shared memory, locks that do nothing
 * (the data directory is locked as a whole), no rollback journal, no temporary
 * files: the one above sets locking_mode=EXCLUSIVE, journal_mode=WAL,
 * synchronous=NORMAL and temp_store=MEMORY, and checkpoints by itself.
 *
 * What is verified: each page of the main file by a checksum in its reserved
 * bytes, which also names the page, shard and generation; each frame of the WAL
 * by a checksum kept in memory since it was written; that a checkpoint which
 * was begun ends with the frames it began with, by the mark beside the file.
 *
 * The first fault stays: from then on every operation fails and nothing is
 * written any more. RC_CORRUPT: a read failed or its bytes are wrong, the state
 * is bad. RC_IO, RC_NO_SPACE: a write or sync failed, the node has to stop.
 *
 * Any thread, one at a time. Used by db.c.
 */
#ifndef HOLDFAST_OBJECTS_DB_VFS_H
#define HOLDFAST_OBJECTS_DB_VFS_H

#include <stdbool.h>
#include <stdint.h>

#include "node/base/disk.h"

struct db_vfs;

/* Length of "state/SS-GGGGGGGG.db-wal" and its NUL, with room. */
#define DB_NAME_BYTES 64u
#define DB_DIR        "state"

/* The number in the header's application_id: "Hfst". */
#define DB_APPLICATION_ID 0x48667374u

/*
 * Open the files of a shard's generation, creating them when the main file does
 * not exist. A WAL that was left is first copied into the main file, as far as
 * its own checksums go, and emptied: what the main file has afterwards is
 * synced and all there is.
 *
 * RC_CORRUPT: the header is not ours or damaged, or the WAL lost frames that a
 * checkpoint had begun to copy. RC_IO, RC_NO_SPACE, RC_OVERLOADED
 * (descriptors), RC_NOMEM. Nothing is left open then.
 */
enum rc db_vfs_open(struct disk *disk, uint32_t shard, uint64_t generation,
		    struct db_vfs **out, struct detail *why);
/* SQLite must have closed the database. */
void db_vfs_close(struct db_vfs *v);

/* For sqlite3_open_v2: the VFS's name and the file's. */
const char *db_vfs_name(const struct db_vfs *v);
const char *db_vfs_file(const struct db_vfs *v);

/* Before sqlite3_close of a database whose node was killed: from now on nothing
 * reaches the disk. */
void db_vfs_freeze(struct db_vfs *v);

/* RC_OK, or the first fault; `why` (may be NULL) gets its sentence. */
enum rc db_vfs_fault(const struct db_vfs *v, struct detail *why);

/* Frames committed to the WAL since it was last emptied. */
uint32_t db_vfs_frames(const struct db_vfs *v);
/* True when every commit so far is in the main file, and that is synced. */
bool db_vfs_main_whole(const struct db_vfs *v);

#ifdef HOLDFAST_TESTING
/*
 * SQLite takes its random numbers (WAL salts) from the default VFS, once for
 * the process. Makes that a VFS which has nothing but `random`, and begins its
 * numbers anew: for the simulator, where equal seeds must give equal runs.
 */
void db_vfs_seed(void (*random)(void *arg, void *out, size_t n), void *arg);
#endif

#endif
