/*
 * disk - the files of one data directory, as a vtable.
 *
 * Blocking: called on worker threads, and on the loop thread only before the
 * loop runs. Names are relative to the data directory, with '/' between parts,
 * no "..". A file is used by one thread at a time.
 *
 * Errors: RC_IO for a failed read, write or sync (EIO, short write);
 * RC_NO_SPACE for ENOSPC and EDQUOT; RC_NOT_FOUND, RC_EXISTS for names;
 * RC_OVERLOADED for descriptors (EMFILE). After a failed write or sync nothing
 * may be assumed about the file's content and it is never synced again: the
 * node stops (DESIGN D4: a failed sync may have thrown the page cache away).
 */
#ifndef HOLDFAST_BASE_DISK_H
#define HOLDFAST_BASE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

struct disk;
struct disk_file;

enum disk_flags {
	DISK_CREATE = 1 << 0, /* Create if absent. */
	DISK_EXCL = 1 << 1,   /* With CREATE: refuse an existing file. */
	DISK_READONLY = 1 << 2,
	/* Reads come from the device, not from the page cache: O_DIRECT, or
	 * where a file system refuses it a dropped cache. Offsets, lengths and
	 * buffers must be multiples of DISK_ALIGN. */
	DISK_DIRECT = 1 << 3,
};
#define DISK_ALIGN 4096u

/* What tells one directory from a copy of it. */
struct disk_birth {
	uint64_t inode;
	uint64_t birth_ns; /* 0: the file system does not tell. */
};

struct disk_space {
	uint64_t bytes_total;
	uint64_t bytes_free; /* For us, without what only root may take. */
};

struct disk_ops {
	enum rc (*open)(struct disk *d, const char *name, unsigned flags,
			struct disk_file **out, struct detail *why);
	void (*close)(struct disk_file *f);
	/* Reads at most `n` bytes; `*got` < `n` only at the end of the file. */
	enum rc (*read)(struct disk_file *f, void *p, size_t n, uint64_t off,
			size_t *got);
	/* Writes all of it or fails. */
	enum rc (*write)(struct disk_file *f, const void *p, size_t n,
			 uint64_t off);
	enum rc (*sync)(struct disk_file *f); /* fdatasync, size included */
	enum rc (*size)(struct disk_file *f, uint64_t *bytes);
	enum rc (*truncate)(struct disk_file *f, uint64_t bytes);
	/* Make a directory's entries durable; "" is the data directory. */
	enum rc (*sync_dir)(struct disk *d, const char *name);
	enum rc (*rename)(struct disk *d, const char *from, const char *to);
	enum rc (*unlink)(struct disk *d, const char *name);
	enum rc (*mkdir)(struct disk *d, const char *name); /* mode 0700 */
	/* Calls `cb` for every entry but "." and "..", in no order. */
	enum rc (*list)(struct disk *d, const char *dir,
			void (*cb)(void *arg, const char *name), void *arg);
	enum rc (*birth)(struct disk *d, struct disk_birth *out);
	enum rc (*space)(struct disk *d, struct disk_space *out);
	/* Exclusive lock on the data directory, held until the disk is closed
	 * or the process ends. RC_EXISTS: another process holds it. */
	enum rc (*lock)(struct disk *d, struct detail *why);
};

struct disk {
	const struct disk_ops *ops;
};

/* All files embed this at their front. */
struct disk_file {
	struct disk *disk;
};

static inline enum rc disk_open(struct disk *d, const char *name,
				unsigned flags, struct disk_file **out,
				struct detail *why)
{
	return d->ops->open(d, name, flags, out, why);
}

static inline void disk_close(struct disk_file *f)
{
	f->disk->ops->close(f);
}

static inline enum rc disk_read(struct disk_file *f, void *p, size_t n,
				uint64_t off, size_t *got)
{
	return f->disk->ops->read(f, p, n, off, got);
}

static inline enum rc disk_write(struct disk_file *f, const void *p, size_t n,
				 uint64_t off)
{
	return f->disk->ops->write(f, p, n, off);
}

static inline enum rc disk_sync(struct disk_file *f)
{
	return f->disk->ops->sync(f);
}

static inline enum rc disk_size(struct disk_file *f, uint64_t *bytes)
{
	return f->disk->ops->size(f, bytes);
}

static inline enum rc disk_truncate(struct disk_file *f, uint64_t bytes)
{
	return f->disk->ops->truncate(f, bytes);
}

static inline enum rc disk_sync_dir(struct disk *d, const char *name)
{
	return d->ops->sync_dir(d, name);
}

static inline enum rc disk_rename(struct disk *d, const char *from,
				  const char *to)
{
	return d->ops->rename(d, from, to);
}

static inline enum rc disk_unlink(struct disk *d, const char *name)
{
	return d->ops->unlink(d, name);
}

static inline enum rc disk_mkdir(struct disk *d, const char *name)
{
	return d->ops->mkdir(d, name);
}

static inline enum rc disk_list(struct disk *d, const char *dir,
				void (*cb)(void *arg, const char *name),
				void *arg)
{
	return d->ops->list(d, dir, cb, arg);
}

static inline enum rc disk_birth(struct disk *d, struct disk_birth *out)
{
	return d->ops->birth(d, out);
}

static inline enum rc disk_space(struct disk *d, struct disk_space *out)
{
	return d->ops->space(d, out);
}

static inline enum rc disk_lock(struct disk *d, struct detail *why)
{
	return d->ops->lock(d, why);
}

#endif
