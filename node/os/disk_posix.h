/*
 * disk_posix - disk on a directory of the machine.
 *
 * Everything is opened relative to one descriptor of the data directory, with
 * O_CLOEXEC and without following a link at the end of a name; files are made
 * with mode 0600, directories with 0700. Threads as disk.h says.
 */
#ifndef HOLDFAST_OS_DISK_POSIX_H
#define HOLDFAST_OS_DISK_POSIX_H

#include <stdbool.h>

#include "node/base/disk.h"

struct disk_posix;

/*
 * The data directory at `path`. With `create` it is made, mode 0700, when it
 * is absent (its parent must be there), and the parent is synced.
 *
 * RC_OK: `*out` is the caller's until disk_posix_close(). RC_NOT_FOUND: there
 * is no such directory. RC_DENIED, RC_INVALID (not a directory), RC_NO_SPACE,
 * RC_OVERLOADED, RC_NOMEM, RC_IO. `why` says which path.
 */
enum rc disk_posix_open(const char *path, bool create, struct disk_posix **out,
			struct detail *why);
/* Releases the lock; the disk's files are closed before. NULL is fine. */
void disk_posix_close(struct disk_posix *d);

struct disk *disk_posix_disk(struct disk_posix *d);

/* The file system refused O_DIRECT, so that direct reads drop the page cache
 * instead: worth a warning. Known after the first file was opened with
 * DISK_DIRECT. */
bool disk_posix_direct_refused(const struct disk_posix *d);

#endif
