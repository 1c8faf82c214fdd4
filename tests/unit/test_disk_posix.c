#include "node/os/disk_posix.h"

#include <fcntl.h>
#include <sys/syscall.h>

#include "node/base/check.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

/*
 * The calls that can fail in ways a healthy disk does not show. They stand in
 * front of libc's for this whole program and are told, each for its next calls,
 * what to do.
 */
static struct {
	int pwrite_errno; /* Fail with it, once. */
	bool pwrite_zero;
	unsigned pwrite_short; /* So many calls take at most 100 bytes. */
	int pread_errno;
	unsigned pread_short;
	int sync_errno;
	bool no_direct; /* openat refuses O_DIRECT. */
	unsigned syncs;
	unsigned dir_syncs;
	unsigned ranges;
} kernel;

static bool fails(int *e)
{
	if (*e == 0)
		return false;
	errno = *e;
	*e = 0;
	return true;
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t off)
{
	if (fails(&kernel.pwrite_errno))
		return -1;
	if (kernel.pwrite_zero)
		return 0;
	if (kernel.pwrite_short > 0 && n > 100) {
		kernel.pwrite_short--;
		n = 100;
	}
	return syscall(SYS_pwrite64, fd, p, n, off);
}

ssize_t pread(int fd, void *p, size_t n, off_t off)
{
	if (fails(&kernel.pread_errno))
		return -1;
	if (kernel.pread_short > 0 && n > 100) {
		kernel.pread_short--;
		n = 100;
	}
	return syscall(SYS_pread64, fd, p, n, off);
}

int fdatasync(int fd)
{
	kernel.syncs++;
	if (fails(&kernel.sync_errno))
		return -1;
	return (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
	kernel.dir_syncs++;
	if (fails(&kernel.sync_errno))
		return -1;
	return (int)syscall(SYS_fsync, fd);
}

int sync_file_range(int fd, off_t off, off_t n, unsigned flags)
{
	kernel.ranges++;
	return (int)syscall(SYS_sync_file_range, fd, off, n, flags);
}

int openat(int dir, const char *name, int flags, ...)
{
	mode_t mode = 0;
	va_list ap;
	int fd;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, mode_t);
	va_end(ap);
	if (!kernel.no_direct || !(flags & O_DIRECT))
		return (int)syscall(SYS_openat, dir, name, flags, mode);
	/* The kernel has made the file by the time it refuses. */
	fd = (int)syscall(SYS_openat, dir, name, flags & ~O_DIRECT, mode);
	if (fd < 0)
		return -1;
	(void)close(fd);
	errno = EINVAL;
	return -1;
}

static struct disk_posix *posix;
static struct disk *disk;
static char data[300];

static void begin(void)
{
	memset(&kernel, 0, sizeof(kernel));
	(void)snprintf(data, sizeof(data), "%s/data", runner_dir());
	EXPECT_RC(disk_posix_open(data, true, &posix, NULL), RC_OK);
	disk = disk_posix_disk(posix);
}

static void end(void)
{
	disk_posix_close(posix);
}

static struct disk_file *file(const char *name, unsigned flags)
{
	struct disk_file *f = NULL;

	EXPECT_RC(disk_open(disk, name, flags, &f, NULL), RC_OK);
	return f;
}

static void write_file(const char *name, const void *p, size_t n)
{
	struct disk_file *f = file(name, DISK_CREATE);

	EXPECT_RC(disk_write(f, p, n, 0), RC_OK);
	disk_close(f);
}

static void path_of(char *to, size_t n, const char *name)
{
	(void)snprintf(to, n, "%s/%s", data, name);
}

static unsigned mode_of(const char *path)
{
	struct stat st;

	EXPECT_INT(stat(path, &st), 0);
	return st.st_mode & 0777;
}

TEST(the_data_directory)
{
	struct detail why = { 0 };
	struct disk_posix *d;
	char path[400];

	(void)snprintf(path, sizeof(path), "%s/none", runner_dir());
	EXPECT_RC(disk_posix_open(path, false, &d, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "/none: No such file");
	(void)snprintf(path, sizeof(path), "%s/none/below", runner_dir());
	EXPECT_RC(disk_posix_open(path, true, &d, NULL), RC_NOT_FOUND);
	begin();
	/* Its entry in the parent. */
	EXPECT_UINT(kernel.dir_syncs, 1);
	write_file("f", "x", 1);
	path_of(path, sizeof(path), "f");
	EXPECT_RC(disk_posix_open(path, true, &d, NULL), RC_INVALID);
	end();
	EXPECT_RC(disk_posix_open(data, true, &d, NULL), RC_OK);
	EXPECT_UINT(kernel.dir_syncs, 1);
	disk_posix_close(d);
	disk_posix_close(NULL);
	memset(&why, 0, sizeof(why));
	kernel.sync_errno = EIO;
	(void)snprintf(path, sizeof(path), "%s/other", runner_dir());
	EXPECT_RC(disk_posix_open(path, true, &d, &why), RC_IO);
}

TEST(nobody_else_may_read)
{
	mode_t before = umask(0);
	char path[400];

	begin();
	EXPECT_UINT(mode_of(data), 0700);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
	write_file("d/f", "x", 1);
	path_of(path, sizeof(path), "d");
	EXPECT_UINT(mode_of(path), 0700);
	path_of(path, sizeof(path), "d/f");
	EXPECT_UINT(mode_of(path), 0600);
	end();
	(void)umask(before);
}

TEST(files_hold_what_was_written)
{
	struct disk_file *f;
	uint64_t size = 0;
	uint8_t p[100];
	size_t got;

	begin();
	f = file("f", DISK_CREATE | DISK_EXCL);
	EXPECT_RC(disk_write(f, "hello", 5, 5000), RC_OK);
	EXPECT_RC(disk_write(f, "", 0, 9000), RC_OK);
	EXPECT_RC(disk_size(f, &size), RC_OK);
	EXPECT_UINT(size, 5005);
	EXPECT_RC(disk_read(f, p, 100, 4999, &got), RC_OK);
	EXPECT_UINT(got, 6);
	EXPECT_MEM(p, "\0hello", 6);
	EXPECT_RC(disk_read(f, p, 100, 6000, &got), RC_OK);
	EXPECT_UINT(got, 0);
	EXPECT_RC(disk_truncate(f, 5002), RC_OK);
	EXPECT_RC(disk_truncate(f, 5005), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	EXPECT_UINT(kernel.syncs, 2);
	disk_close(f);
	f = file("f", DISK_READONLY);
	EXPECT_RC(disk_read(f, p, 100, 5000, &got), RC_OK);
	EXPECT_UINT(got, 5);
	EXPECT_MEM(p, "he\0\0\0", 5);
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_IO);
	EXPECT_RC(disk_truncate(f, 0), RC_IO);
	disk_close(f);
	end();
}

static void collect(void *arg, const char *name)
{
	char *names = arg;

	EXPECT_UINT(strlen(name), 1);
	names[strlen(names)] = name[0];
}

TEST(names_and_their_errors)
{
	struct disk_file *f;
	struct detail why = { 0 };
	char names[10] = "";
	char path[400];

	begin();
	EXPECT_RC(disk_open(disk, "f", 0, &f, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "/data/f: No such file");
	EXPECT_RC(disk_open(disk, "d/f", DISK_CREATE, &f, NULL), RC_NOT_FOUND);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_OK);
	EXPECT_RC(disk_mkdir(disk, "d"), RC_EXISTS);
	EXPECT_RC(disk_mkdir(disk, "e/e"), RC_NOT_FOUND);
	EXPECT_RC(disk_open(disk, "d", 0, &f, NULL), RC_INVALID);
	write_file("d/f", "abc", 3);
	EXPECT_RC(disk_open(disk, "d/f", DISK_CREATE | DISK_EXCL, &f, NULL),
		  RC_EXISTS);
	write_file("g", "x", 1);
	EXPECT_RC(disk_rename(disk, "d/f", "h"), RC_OK);
	EXPECT_RC(disk_rename(disk, "d/f", "h"), RC_NOT_FOUND);
	EXPECT_RC(disk_rename(disk, "g", "e/g"), RC_NOT_FOUND);
	EXPECT_RC(disk_unlink(disk, "d"), RC_INVALID);
	EXPECT_RC(disk_unlink(disk, "x"), RC_NOT_FOUND);
	EXPECT_RC(disk_list(disk, "", collect, names), RC_OK);
	EXPECT_UINT(strlen(names), 3);
	EXPECT_TRUE(strchr(names, 'd') && strchr(names, 'g') &&
		    strchr(names, 'h'));
	/* Once more: the position is not shared. */
	memset(names, 0, sizeof(names));
	EXPECT_RC(disk_list(disk, "", collect, names), RC_OK);
	EXPECT_UINT(strlen(names), 3);
	EXPECT_RC(disk_list(disk, "g", collect, names), RC_NOT_FOUND);
	EXPECT_RC(disk_sync_dir(disk, "g"), RC_NOT_FOUND);
	EXPECT_RC(disk_sync_dir(disk, "d"), RC_OK);
	EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
	EXPECT_RC(disk_unlink(disk, "h"), RC_OK);
	/* A link is not what we left there. */
	path_of(path, sizeof(path), "link");
	EXPECT_INT(symlink("/etc/passwd", path), 0);
	EXPECT_RC(disk_open(disk, "link", 0, &f, NULL), RC_INVALID);
	EXPECT_ABORT(disk_open(disk, "../f", 0, &f, NULL));
	EXPECT_ABORT(disk_open(disk, "d/../../f", 0, &f, NULL));
	EXPECT_ABORT(disk_open(disk, "/etc/passwd", 0, &f, NULL));
	EXPECT_ABORT(disk_open(disk, "", 0, &f, NULL));
	end();
}

TEST(interrupted_and_partial_calls_go_on)
{
	static uint8_t in[1000];
	static uint8_t out[1000];
	struct disk_file *f;
	size_t got;

	begin();
	memset(in, 'x', sizeof(in));
	in[999] = 'y';
	f = file("f", DISK_CREATE);
	kernel.pwrite_errno = EINTR;
	kernel.pwrite_short = 5;
	EXPECT_RC(disk_write(f, in, sizeof(in), 0), RC_OK);
	EXPECT_UINT(kernel.pwrite_short, 0);
	kernel.pread_errno = EINTR;
	kernel.pread_short = 5;
	EXPECT_RC(disk_read(f, out, sizeof(out), 0, &got), RC_OK);
	EXPECT_UINT(got, sizeof(out));
	EXPECT_MEM(out, in, sizeof(in));
	disk_close(f);
	end();
}

TEST(failures_have_their_code)
{
	struct disk_file *f;
	uint8_t p[8];
	size_t got;

	begin();
	f = file("f", DISK_CREATE);
	kernel.pwrite_errno = EIO;
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_IO);
	kernel.pwrite_errno = ENOSPC;
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_NO_SPACE);
	kernel.pwrite_errno = EDQUOT;
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_NO_SPACE);
	kernel.pwrite_zero = true;
	EXPECT_RC(disk_write(f, "x", 1, 0), RC_IO);
	kernel.pwrite_zero = false;
	kernel.pread_errno = EIO;
	EXPECT_RC(disk_read(f, p, 8, 0, &got), RC_IO);
	kernel.sync_errno = EIO;
	EXPECT_RC(disk_sync_dir(disk, ""), RC_IO);
	disk_close(f);
	end();
}

TEST(a_failed_sync_is_never_repeated)
{
	struct disk_file *f;

	begin();
	f = file("f", DISK_CREATE);
	kernel.sync_errno = EIO;
	EXPECT_RC(disk_sync(f), RC_IO);
	EXPECT_ABORT_SAYS(disk_sync(f), "sync_failed");
	disk_close(f);
	f = file("f", 0);
	kernel.sync_errno = ENOSPC;
	EXPECT_RC(disk_sync(f), RC_NO_SPACE);
	EXPECT_ABORT(disk_sync(f));
	disk_close(f);
	end();
}

static _Alignas(DISK_ALIGN) uint8_t grid[4 * DISK_ALIGN];

static void direct_reads(void)
{
	struct disk_file *f;
	size_t got;

	memset(grid, 'a', sizeof(grid));
	write_file("f", grid, 2 * DISK_ALIGN + 100);
	memset(grid, 0, sizeof(grid));
	/* Not synced, and read nevertheless. */
	f = file("f", DISK_READONLY | DISK_DIRECT);
	EXPECT_RC(disk_read(f, grid, sizeof(grid), 0, &got), RC_OK);
	EXPECT_UINT(got, 2 * DISK_ALIGN + 100);
	EXPECT_UINT(grid[0], 'a');
	EXPECT_UINT(grid[got - 1], 'a');
	EXPECT_RC(disk_read(f, grid, DISK_ALIGN, DISK_ALIGN, &got), RC_OK);
	EXPECT_UINT(got, DISK_ALIGN);
	EXPECT_RC(disk_read(f, grid, DISK_ALIGN, 3 * DISK_ALIGN, &got), RC_OK);
	EXPECT_UINT(got, 0);
	EXPECT_ABORT(disk_read(f, grid + 8, DISK_ALIGN, 0, &got));
	EXPECT_ABORT(disk_read(f, grid, 100, 0, &got));
	EXPECT_ABORT(disk_read(f, grid, DISK_ALIGN, 512, &got));
	disk_close(f);
	memset(grid, 'b', sizeof(grid));
	f = file("g", DISK_CREATE | DISK_EXCL | DISK_DIRECT);
	EXPECT_RC(disk_write(f, grid, sizeof(grid), 0), RC_OK);
	EXPECT_RC(disk_sync(f), RC_OK);
	disk_close(f);
	EXPECT_RC(disk_open(disk, "g", DISK_CREATE | DISK_EXCL | DISK_DIRECT,
			    &f, NULL),
		  RC_EXISTS);
}

/* Whatever the file system of the temporary directory says to O_DIRECT. */
TEST(direct_reads_pass_the_page_cache_by)
{
	begin();
	EXPECT_FALSE(disk_posix_direct_refused(posix));
	direct_reads();
	end();
}

TEST(without_o_direct_the_page_cache_is_dropped)
{
	begin();
	kernel.no_direct = true;
	direct_reads();
	EXPECT_TRUE(disk_posix_direct_refused(posix));
	EXPECT_TRUE(kernel.ranges > 0);
	end();
}

TEST(one_process_has_the_lock)
{
	struct detail why = { 0 };
	struct disk_posix *second;

	begin();
	EXPECT_RC(disk_lock(disk, NULL), RC_OK);
	EXPECT_RC(disk_posix_open(data, false, &second, NULL), RC_OK);
	EXPECT_RC(disk_lock(disk_posix_disk(second), &why), RC_EXISTS);
	EXPECT_HAS(why.text, "another process uses");
	EXPECT_HAS(why.text, "/data");
	end();
	EXPECT_RC(disk_lock(disk_posix_disk(second), NULL), RC_OK);
	disk_posix_close(second);
}

static void lock_and_die(void)
{
	if (disk_lock(disk, NULL) != RC_OK)
		_exit(1);
	(void)kill(getpid(), SIGKILL);
}

TEST(a_dead_process_has_no_lock)
{
	pid_t pid;

	begin();
	pid = fork();
	if (pid == 0)
		lock_and_die();
	EXPECT_TRUE(WIFSIGNALED(runner_reap(pid)));
	EXPECT_RC(disk_lock(disk, NULL), RC_OK);
	end();
}

TEST(birth_tells_a_directory_from_its_copy)
{
	struct disk_birth a;
	struct disk_birth b;
	struct disk_posix *copy;
	char path[300];

	begin();
	EXPECT_RC(disk_birth(disk, &a), RC_OK);
	EXPECT_TRUE(a.inode != 0);
	write_file("f", "x", 1);
	end();
	(void)snprintf(path, sizeof(path), "%s/moved", runner_dir());
	EXPECT_INT(rename(data, path), 0);
	EXPECT_RC(disk_posix_open(path, false, &posix, NULL), RC_OK);
	EXPECT_RC(disk_birth(disk_posix_disk(posix), &b), RC_OK);
	EXPECT_TRUE(a.inode == b.inode && a.birth_ns == b.birth_ns);
	EXPECT_RC(disk_posix_open(data, true, &copy, NULL), RC_OK);
	EXPECT_RC(disk_birth(disk_posix_disk(copy), &b), RC_OK);
	EXPECT_TRUE(a.inode != b.inode || a.birth_ns != b.birth_ns);
	disk_posix_close(copy);
	end();
}

TEST(space)
{
	struct disk_space s = { 0, 0 };

	begin();
	EXPECT_RC(disk_space(disk, &s), RC_OK);
	EXPECT_TRUE(s.bytes_total > 1 << 20);
	EXPECT_TRUE(s.bytes_free <= s.bytes_total);
	end();
}

static void open_too_many(void)
{
	static const struct rlimit few = { 20, 20 };
	struct disk_file *f;
	struct detail why = { 0 };
	enum rc rc;
	unsigned i;

	if (setrlimit(RLIMIT_NOFILE, &few) != 0)
		_exit(1);
	for (i = 0; i < 21; i++) {
		rc = disk_open(disk, "f", DISK_CREATE, &f, &why);
		if (rc != RC_OK)
			break;
	}
	if (rc != RC_OVERLOADED)
		_exit(2);
	if (disk_list(disk, "", collect, NULL) != RC_OVERLOADED)
		_exit(3);
	if (disk_sync_dir(disk, "") != RC_OVERLOADED)
		_exit(4);
	if (disk_lock(disk, NULL) != RC_OVERLOADED)
		_exit(5);
	_exit(77);
}

TEST(no_more_descriptors)
{
	begin();
	EXPECT_EXIT(open_too_many(), 77);
	end();
}

/* Beyond the limit the kernel writes what fits, then refuses. */
static void write_beyond_the_limit(void)
{
	static const struct rlimit limit = { 6000, 6000 };
	static uint8_t bytes[10000];
	struct disk_file *f = file("f", DISK_CREATE);

	(void)signal(SIGXFSZ, SIG_IGN);
	if (setrlimit(RLIMIT_FSIZE, &limit) != 0)
		_exit(1);
	_exit(disk_write(f, bytes, sizeof(bytes), 0) == RC_IO ? 77 : 2);
}

TEST(a_write_cut_short_by_the_kernel_fails)
{
	begin();
	EXPECT_EXIT(write_beyond_the_limit(), 77);
	end();
}

TEST(no_memory)
{
	struct disk_posix *d;
	struct disk_file *f;
	unsigned n;
	enum rc rc;

	begin();
	fault_alloc(1);
	EXPECT_RC(disk_posix_open(data, false, &d, NULL), RC_NOMEM);
	for (n = 1;; n++) {
		fault_alloc(n);
		rc = disk_open(disk, "f", DISK_CREATE, &f, NULL);
		if (!fault_off())
			break;
		EXPECT_RC(rc, RC_NOMEM);
	}
	EXPECT_RC(rc, RC_OK);
	EXPECT_TRUE(n > 1);
	disk_close(f);
	end();
}
