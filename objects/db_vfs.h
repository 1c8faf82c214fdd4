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
 * A state file that comes from another node is made here too (db_vfs_stage): in
 * the place of its own generation, page by page, each verified and stamped as
 * ours.
 *
 * Any thread, one at a time. Used by db.c; storage.c moves whole files with it.
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

/* ---- whole files ---- */

uint64_t db_vfs_main_bytes(const struct db_vfs *v);
/*
 * Whole pages of the main file as it lies there, verified: `off` and `n` are
 * multiples of STATE_PAGE_BYTES, `*got` < `n` only at its end. A WAL is not
 * looked at: the caller takes care that there is no checkpoint. RC_CORRUPT is a
 * fault.
 */
enum rc db_vfs_main_read(struct db_vfs *v, uint64_t off, void *p, size_t n,
			 size_t *got);
/* Read `pages` pages from page `first` (0: the first) past the page cache and
 * verify them; pages behind the end are none. RC_CORRUPT is a fault; RC_NOMEM.
 */
enum rc db_vfs_main_verify(struct db_vfs *v, uint32_t first, uint32_t pages,
			   struct detail *why);

/*
 * What lies of a shard's generations: is the main file of `generation` there
 * (*named), and one of any other (*other)? RC_IO.
 */
enum rc db_vfs_look(struct disk *disk, uint32_t shard, uint64_t generation,
		    bool *named, bool *other, struct detail *why);
/* Delete the files of every other generation of the shard. RC_IO. */
enum rc db_vfs_keep_only(struct disk *disk, uint32_t shard, uint64_t generation,
			 struct detail *why);
/* Delete the files of this generation; nothing of them may be open. RC_IO. */
enum rc db_vfs_remove(struct disk *disk, uint32_t shard, uint64_t generation,
		      struct detail *why);

/*
 * A main file made of the pages of another node's. Nothing else of that
 * generation is left over after db_vfs_stage_new; nothing opens it by itself.
 *
 * RC_CORRUPT: these are not pages of that shard's state, whole, in their order
 * and all of one file. RC_IO: the node has to stop; RC_NO_SPACE, RC_OVERLOADED
 * (descriptors), RC_NOMEM. After anything but RC_OK it can only be removed.
 */
struct db_vfs_stage;
enum rc db_vfs_stage_new(struct disk *disk, uint32_t shard, uint64_t generation,
			 struct db_vfs_stage **out, struct detail *why);
/* The next `n` bytes at `off`, stamped in place before they are written. */
enum rc db_vfs_stage_write(struct db_vfs_stage *st, uint64_t off, uint8_t *p,
			   size_t n, struct detail *why);
/* That is all of it: the file, its mark and the directory are synced. Then
 * db_vfs_open opens it, as db_adopt does. */
enum rc db_vfs_stage_end(struct db_vfs_stage *st, uint64_t bytes,
			 struct detail *why);
/* Closes the file; what was written stays. */
void db_vfs_stage_free(struct db_vfs_stage *st);

#ifdef HOLDFAST_TESTING
/*
 * SQLite takes its random numbers (WAL salts) from the default VFS, once for
 * the process. Makes that a VFS which has nothing but `random`, and begins its
 * numbers anew: for the simulator, where equal seeds must give equal runs.
 */
void db_vfs_seed(void (*random)(void *arg, void *out, size_t n), void *arg);
#endif

#endif
