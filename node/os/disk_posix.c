#include "node/os/disk_posix.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "node/base/check.h"

#define DISK_POSIX_MAGIC 0xd15c9051u
#define FILE_MAGIC       0xd15cf11eu
#define LOCK_NAME        "lock"

struct disk_posix {
	struct disk disk;
	uint32_t magic;
	int dir;
	int lock;       /* -1: not held. */
	char path[512]; /* For sentences only. */
	atomic_bool direct_refused;
};

struct posix_file {
	struct disk_file file;
	uint32_t magic;
	int fd;
	bool direct;
	bool drop; /* A direct read drops the page cache first. */
	bool sync_failed;
};

static struct disk_posix *disk_of(struct disk *disk)
{
	struct disk_posix *d = CONTAINER_OF(disk, struct disk_posix, disk);

	CHECK_OBJ(d, DISK_POSIX_MAGIC);
	return d;
}

static struct posix_file *file_of(struct disk_file *file)
{
	struct posix_file *f = CONTAINER_OF(file, struct posix_file, file);

	CHECK_OBJ(f, FILE_MAGIC);
	return f;
}

static enum rc rc_of_errno(int e)
{
	switch (e) {
	case ENOENT:
	case ENOTDIR:
		return RC_NOT_FOUND;
	case EEXIST:
	case ENOTEMPTY:
		return RC_EXISTS;
	case EISDIR:
	case ELOOP: /* A link where a file should be. */
	case ENAMETOOLONG:
		return RC_INVALID;
	case ENOSPC:
	case EDQUOT:
		return RC_NO_SPACE;
	case EMFILE:
	case ENFILE:
		return RC_OVERLOADED;
	case ENOMEM:
		return RC_NOMEM;
	case EACCES:
	case EPERM:
	case EROFS:
		return RC_DENIED;
	default:
		return RC_IO;
	}
}

static enum rc why_of_errno(const struct disk_posix *d, struct detail *why,
			    const char *what, const char *name)
{
	int e = errno;
	char text[128];

	return detail_set(why, rc_of_errno(e), NULL, "%s %s/%s: %s", what,
			  d->path, name, strerror_r(e, text, sizeof(text)));
}

/* Names are ours: relative, no "..", no empty part. */
static void check_name(const char *name)
{
	const char *part = name;
	size_t n;

	PRE(name[0] != '\0');
	for (;;) {
		n = strcspn(part, "/");
		PRE(n > 0);
		PRE(n != 2 || memcmp(part, "..", 2) != 0);
		if (part[n] == '\0')
			return;
		part += n + 1;
	}
}

/* close() releases the descriptor whatever it says, EINTR included. */
static void fd_close(int fd)
{
	(void)close(fd);
}

static int fd_open(int dir, const char *name, int flags)
{
	int fd;

	do
		fd = openat(dir, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	while (fd < 0 && errno == EINTR);
	return fd;
}

/* ---- files ---- */

static int open_flags(unsigned flags)
{
	int to = flags & DISK_READONLY ? O_RDONLY : O_RDWR;

	PRE(!(flags & DISK_EXCL) || (flags & DISK_CREATE));
	PRE(!(flags & DISK_READONLY) || !(flags & DISK_CREATE));
	if (flags & DISK_CREATE)
		to |= O_CREAT;
	if (flags & DISK_EXCL)
		to |= O_EXCL;
	return to;
}

/* `*drop`: O_DIRECT was refused. What an exclusive open made before the refusal
 * is not there: the kernel looks at O_DIRECT after it made the file, so the
 * second open must not insist on making it. */
static int open_direct(struct disk_posix *d, const char *name, int flags,
		       bool *drop)
{
	int fd = fd_open(d->dir, name, flags | O_DIRECT);

	*drop = fd < 0 && errno == EINVAL;
	if (!*drop)
		return fd;
	atomic_store(&d->direct_refused, true);
	return fd_open(d->dir, name, flags & ~O_EXCL);
}

static enum rc posix_open(struct disk *disk, const char *name, unsigned flags,
			  struct disk_file **out, struct detail *why)
{
	struct disk_posix *d = disk_of(disk);
	struct posix_file *f;
	enum rc rc;

	check_name(name);
	f = calloc(1, sizeof(*f));
	if (f == NULL)
		return detail_set(why, RC_NOMEM, NULL, "open %s: no memory",
				  name);
	f->file.disk = disk;
	f->direct = flags & DISK_DIRECT;
	if (f->direct)
		f->fd = open_direct(d, name, open_flags(flags), &f->drop);
	else
		f->fd = fd_open(d->dir, name, open_flags(flags));
	if (f->fd < 0) {
		rc = why_of_errno(d, why, "open", name);
		free(f);
		return rc;
	}
	f->magic = FILE_MAGIC;
	*out = &f->file;
	return RC_OK;
}

static void posix_close(struct disk_file *file)
{
	struct posix_file *f = file_of(file);

	f->magic = 0;
	fd_close(f->fd);
	free(f);
}

static void check_direct(const struct posix_file *f, const void *p, size_t n,
			 uint64_t off)
{
	if (!f->direct)
		return;
	PRE((uintptr_t)p % DISK_ALIGN == 0);
	PRE(n % DISK_ALIGN == 0);
	PRE(off % DISK_ALIGN == 0);
}

/* So that the next read comes from the device: dirty pages are written first,
 * because those cannot be dropped. */
static enum rc drop_pages(const struct posix_file *f, size_t n, uint64_t off)
{
	if (sync_file_range(f->fd, (off_t)off, (off_t)n,
			    SYNC_FILE_RANGE_WAIT_BEFORE |
				    SYNC_FILE_RANGE_WRITE |
				    SYNC_FILE_RANGE_WAIT_AFTER) != 0 &&
	    errno != ESPIPE && errno != ENOSYS && errno != EINVAL)
		return RC_IO;
	(void)posix_fadvise(f->fd, (off_t)off, (off_t)n, POSIX_FADV_DONTNEED);
	return RC_OK;
}

static enum rc posix_read(struct disk_file *file, void *p, size_t n,
			  uint64_t off, size_t *got)
{
	struct posix_file *f = file_of(file);
	uint8_t *at = p;
	ssize_t some;

	check_direct(f, p, n, off);
	*got = 0;
	if (f->drop && drop_pages(f, n, off) != RC_OK)
		return RC_IO;
	while (*got < n) {
		some = pread(f->fd, at + *got, n - *got, (off_t)(off + *got));
		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			return RC_IO;
		if (some == 0)
			break;
		*got += (size_t)some;
		/* With O_DIRECT only the end of the file leaves the grid, and
		 * going on from there would be refused. */
		if (f->direct && *got % DISK_ALIGN != 0)
			break;
	}
	return RC_OK;
}

static enum rc posix_write(struct disk_file *file, const void *p, size_t n,
			   uint64_t off)
{
	struct posix_file *f = file_of(file);
	const uint8_t *at = p;
	ssize_t some;

	check_direct(f, p, n, off);
	while (n > 0) {
		some = pwrite(f->fd, at, n, (off_t)off);
		if (some < 0 && errno == EINTR)
			continue;
		if (some < 0)
			return rc_of_errno(errno) == RC_NO_SPACE ? RC_NO_SPACE
								 : RC_IO;
		if (some == 0)
			return RC_IO;
		at += some;
		off += (uint64_t)some;
		n -= (size_t)some;
	}
	return RC_OK;
}

static enum rc posix_sync(struct disk_file *file)
{
	struct posix_file *f = file_of(file);

	/* The kernel marks the pages clean when it fails to write them, so a
	 * second sync would say yes to what is lost. */
	CHECK(!f->sync_failed);
	if (fdatasync(f->fd) == 0)
		return RC_OK;
	f->sync_failed = true;
	return rc_of_errno(errno) == RC_NO_SPACE ? RC_NO_SPACE : RC_IO;
}

static enum rc posix_size(struct disk_file *file, uint64_t *bytes)
{
	struct posix_file *f = file_of(file);
	struct stat st;

	if (fstat(f->fd, &st) != 0)
		return RC_IO;
	*bytes = (uint64_t)st.st_size;
	return RC_OK;
}

static enum rc posix_truncate(struct disk_file *file, uint64_t bytes)
{
	struct posix_file *f = file_of(file);
	int status;

	do
		status = ftruncate(f->fd, (off_t)bytes);
	while (status != 0 && errno == EINTR);
	if (status == 0)
		return RC_OK;
	return rc_of_errno(errno) == RC_NO_SPACE ? RC_NO_SPACE : RC_IO;
}

/* ---- directories ---- */

/* A descriptor of its own, also of the data directory: a directory's position
 * belongs to the open description. */
static int dir_open(const struct disk_posix *d, const char *name)
{
	if (name[0] != '\0')
		check_name(name);
	return fd_open(d->dir, name[0] != '\0' ? name : ".",
		       O_RDONLY | O_DIRECTORY);
}

static enum rc posix_sync_dir(struct disk *disk, const char *name)
{
	struct disk_posix *d = disk_of(disk);
	int fd = dir_open(d, name);
	enum rc rc = RC_OK;

	if (fd < 0)
		return rc_of_errno(errno);
	if (fsync(fd) != 0)
		rc = rc_of_errno(errno) == RC_NO_SPACE ? RC_NO_SPACE : RC_IO;
	fd_close(fd);
	return rc;
}

static enum rc posix_rename(struct disk *disk, const char *from, const char *to)
{
	struct disk_posix *d = disk_of(disk);

	check_name(from);
	check_name(to);
	if (renameat(d->dir, from, d->dir, to) != 0)
		return rc_of_errno(errno);
	return RC_OK;
}

static enum rc posix_unlink(struct disk *disk, const char *name)
{
	struct disk_posix *d = disk_of(disk);

	check_name(name);
	if (unlinkat(d->dir, name, 0) != 0)
		return rc_of_errno(errno);
	return RC_OK;
}

static enum rc posix_mkdir(struct disk *disk, const char *name)
{
	struct disk_posix *d = disk_of(disk);

	check_name(name);
	if (mkdirat(d->dir, name, 0700) != 0)
		return rc_of_errno(errno);
	return RC_OK;
}

static enum rc posix_list(struct disk *disk, const char *name,
			  void (*cb)(void *arg, const char *name), void *arg)
{
	struct disk_posix *d = disk_of(disk);
	int fd = dir_open(d, name);
	struct dirent *entry;
	enum rc rc = RC_OK;
	DIR *dir;

	if (fd < 0)
		return rc_of_errno(errno);
	dir = fdopendir(fd);
	if (dir == NULL) {
		rc = rc_of_errno(errno);
		fd_close(fd);
		return rc;
	}
	while (errno = 0, (entry = readdir(dir)) != NULL)
		if (strcmp(entry->d_name, ".") != 0 &&
		    strcmp(entry->d_name, "..") != 0)
			cb(arg, entry->d_name);
	if (errno != 0)
		rc = RC_IO;
	(void)closedir(dir);
	return rc;
}

static enum rc posix_birth(struct disk *disk, struct disk_birth *out)
{
	struct disk_posix *d = disk_of(disk);
	struct statx st;

	if (statx(d->dir, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) != 0)
		return RC_IO;
	out->inode = st.stx_ino;
	out->birth_ns = 0;
	if (st.stx_mask & STATX_BTIME)
		out->birth_ns = (uint64_t)st.stx_btime.tv_sec * 1000000000u +
				st.stx_btime.tv_nsec;
	return RC_OK;
}

static enum rc posix_space(struct disk *disk, struct disk_space *out)
{
	struct disk_posix *d = disk_of(disk);
	struct statvfs st;

	if (fstatvfs(d->dir, &st) != 0)
		return RC_IO;
	out->bytes_total = (uint64_t)st.f_blocks * st.f_frsize;
	out->bytes_free = (uint64_t)st.f_bavail * st.f_frsize;
	return RC_OK;
}

static enum rc posix_lock(struct disk *disk, struct detail *why)
{
	struct disk_posix *d = disk_of(disk);
	int status;
	int fd;

	PRE(d->lock < 0);
	fd = fd_open(d->dir, LOCK_NAME, O_RDWR | O_CREAT);
	if (fd < 0)
		return why_of_errno(d, why, "open", LOCK_NAME);
	do
		status = flock(fd, LOCK_EX | LOCK_NB);
	while (status != 0 && errno == EINTR);
	if (status == 0) {
		d->lock = fd;
		return RC_OK;
	}
	if (errno == EWOULDBLOCK) {
		fd_close(fd);
		return detail_set(why, RC_EXISTS, NULL,
				  "another process uses %s", d->path);
	}
	(void)why_of_errno(d, why, "lock", LOCK_NAME);
	fd_close(fd);
	return RC_IO;
}

static const struct disk_ops posix_ops = {
	.open = posix_open,
	.close = posix_close,
	.read = posix_read,
	.write = posix_write,
	.sync = posix_sync,
	.size = posix_size,
	.truncate = posix_truncate,
	.sync_dir = posix_sync_dir,
	.rename = posix_rename,
	.unlink = posix_unlink,
	.mkdir = posix_mkdir,
	.list = posix_list,
	.birth = posix_birth,
	.space = posix_space,
	.lock = posix_lock,
};

/* ---- the data directory ---- */

/* Its own entry is in its parent, which is then synced. */
static enum rc data_create(const char *path, int *dir)
{
	int parent;
	enum rc rc = RC_OK;

	if (mkdir(path, 0700) != 0)
		return rc_of_errno(errno);
	do
		*dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	while (*dir < 0 && errno == EINTR);
	if (*dir < 0)
		return rc_of_errno(errno);
	parent = fd_open(*dir, "..", O_RDONLY | O_DIRECTORY);
	if (parent < 0 || fsync(parent) != 0)
		rc = rc_of_errno(errno);
	if (parent >= 0)
		fd_close(parent);
	if (rc != RC_OK)
		fd_close(*dir);
	return rc;
}

/* A link to the data directory is followed: it is the operator's. */
static enum rc data_open(const char *path, bool create, int *dir)
{
	do
		*dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	while (*dir < 0 && errno == EINTR);
	if (*dir >= 0)
		return RC_OK;
	if (errno == ENOENT && create)
		return data_create(path, dir);
	return errno == ENOTDIR ? RC_INVALID : rc_of_errno(errno);
}

enum rc disk_posix_open(const char *path, bool create, struct disk_posix **out,
			struct detail *why)
{
	struct disk_posix *d = calloc(1, sizeof(*d));
	char text[128];
	enum rc rc;

	if (d == NULL)
		return detail_set(why, RC_NOMEM, NULL, "open %s: no memory",
				  path);
	rc = data_open(path, create, &d->dir);
	if (rc != RC_OK) {
		free(d);
		return detail_set(why, rc, NULL, "data directory %s: %s", path,
				  strerror_r(errno, text, sizeof(text)));
	}
	d->disk.ops = &posix_ops;
	d->magic = DISK_POSIX_MAGIC;
	d->lock = -1;
	(void)snprintf(d->path, sizeof(d->path), "%s", path);
	*out = d;
	return RC_OK;
}

void disk_posix_close(struct disk_posix *d)
{
	if (d == NULL)
		return;
	CHECK_OBJ(d, DISK_POSIX_MAGIC);
	if (d->lock >= 0)
		fd_close(d->lock);
	fd_close(d->dir);
	d->magic = 0;
	free(d);
}

struct disk *disk_posix_disk(struct disk_posix *d)
{
	CHECK_OBJ(d, DISK_POSIX_MAGIC);
	return &d->disk;
}

bool disk_posix_direct_refused(const struct disk_posix *d)
{
	return atomic_load(&d->direct_refused);
}
