#include "tests/sim/memdisk.h"

#include <sys/queue.h>

#include "node/base/check.h"
#include "node/base/crc32c.h"

#define CHUNK      4096u
#define SECTORS    (CHUNK / WORLD_SECTOR)
#define FAULTS_MAX 16u
#define DISK_MAGIC 0x3e3d15c0u
#define FILE_MAGIC 0x3e3f11e0u

/* ---- memory ---- */

/* Only there when the program is linked with tests/lib/fault.c. */
void fault_hold(void) __attribute__((weak));
void fault_release(void) __attribute__((weak));

void *sim_realloc(void *p, size_t n)
{
	if (fault_hold != NULL)
		fault_hold();
	p = realloc(p, n);
	if (fault_release != NULL)
		fault_release();
	CHECK(p != NULL);
	return p;
}

void *sim_alloc(size_t n)
{
	return memset(sim_realloc(NULL, n), 0, n);
}

char *sim_strdup(const char *s)
{
	size_t n = strlen(s) + 1;

	return memcpy(sim_realloc(NULL, n), s, n);
}

/* ---- shapes ---- */

struct chunk {
	uint8_t *cache; /* NULL: zeros. */
	uint8_t *disk;  /* NULL: zeros; only while a mask is set. */
	uint8_t dirty;
	uint8_t cut; /* A subset of dirty. */
	uint8_t lost;
};

struct entry {
	char *name;
	struct inode *inode;
};

/* Sorted by name. */
struct entries {
	struct entry *v;
	size_t n;
};

struct inode {
	uint64_t number;
	bool is_dir;
	bool seen; /* By the sweep. */
	unsigned links;
	/* A file. */
	struct chunk *chunks;
	size_t chunks_n;
	uint64_t size;
	uint64_t disk_size;
	bool size_lost; /* A sync that failed should have written it. */
	size_t dirty_from;
	size_t dirty_to; /* Chunks that may be dirty lie in from..to - 1. */
	/* A directory. */
	struct entries now;
	struct entries disk;
	SLIST_ENTRY(inode) link;
};

/* An operation on directories that is not on the disk yet. */
struct change {
	enum { CREATE, UNLINK, RENAME } kind;
	struct inode *dir; /* Of `name`. */
	char *name;
	struct inode *to_dir; /* RENAME only. */
	char *to_name;
	struct inode *target;
	bool lost; /* A directory sync failed: it never gets to the disk. */
	TAILQ_ENTRY(change) link;
};
TAILQ_HEAD(changes, change);

struct mem_file {
	struct disk_file file;
	uint32_t magic;
	struct memdisk *d;
	struct inode *inode;
	uint64_t generation;
	unsigned flags;
	char *name;
	LIST_ENTRY(mem_file) link;
};

struct memdisk {
	struct disk disk;
	uint32_t magic;
	struct disk durable; /* The same, as a power cut would leave it. */
	struct memdisk_host host;
	struct prng random;
	uint64_t generation;
	bool frozen;
	bool locked;
	struct inode *root;
	uint64_t birth_ns;
	bool birth_hidden;
	uint64_t next_number;
	SLIST_HEAD(, inode) inodes;
	struct changes changes;
	LIST_HEAD(, mem_file) files;
	uint64_t used; /* Bytes of linked files. */
	uint64_t capacity;
	uint64_t counts[WORLD_OPS];
	struct world_fault faults[FAULTS_MAX];
	unsigned faults_n;
	uint64_t fired;
	void (*watch)(void *arg, enum world_op op, const char *name);
	void *watch_arg;
};

static struct memdisk *disk_of(struct disk *disk)
{
	struct memdisk *d = CONTAINER_OF(disk, struct memdisk, disk);

	CHECK_OBJ(d, DISK_MAGIC);
	return d;
}

static struct mem_file *file_of(struct disk_file *file)
{
	struct mem_file *f = CONTAINER_OF(file, struct mem_file, file);

	CHECK_OBJ(f, FILE_MAGIC);
	return f;
}

static void note(struct memdisk *d, enum world_op op, const char *name,
		 uint64_t a, uint64_t b)
{
	d->host.note(d->host.arg,
		     (uint64_t)op << 32 | crc32c(0, name, strlen(name)));
	d->host.note(d->host.arg, a);
	d->host.note(d->host.arg, b);
}

/* ---- inodes and entries ---- */

static struct inode *inode_new(struct memdisk *d, bool is_dir)
{
	struct inode *i = sim_alloc(sizeof(*i));

	i->number = d->next_number;
	/* Numbers are unique and not consecutive. */
	d->next_number += 1 + prng_below(&d->random, 7);
	i->is_dir = is_dir;
	SLIST_INSERT_HEAD(&d->inodes, i, link);
	return i;
}

static void entries_clear(struct entries *e)
{
	size_t i;

	for (i = 0; i < e->n; i++)
		free(e->v[i].name);
	free(e->v);
	*e = (struct entries){ NULL, 0 };
}

static void inode_free(struct inode *i)
{
	size_t c;

	for (c = 0; c < i->chunks_n; c++) {
		free(i->chunks[c].cache);
		free(i->chunks[c].disk);
	}
	free(i->chunks);
	entries_clear(&i->now);
	entries_clear(&i->disk);
	free(i);
}

/* Where `name` is, or would be. */
static size_t entries_at(const struct entries *e, const char *name, bool *found)
{
	size_t i;
	int order = 1;

	for (i = 0; i < e->n; i++) {
		order = strcmp(e->v[i].name, name);
		if (order >= 0)
			break;
	}
	*found = order == 0 && i < e->n;
	return i;
}

static struct inode *entries_get(const struct entries *e, const char *name)
{
	bool found;
	size_t i = entries_at(e, name, &found);

	return found ? e->v[i].inode : NULL;
}

static void entries_set(struct entries *e, const char *name,
			struct inode *inode)
{
	bool found;
	size_t i = entries_at(e, name, &found);

	if (!found) {
		e->v = sim_realloc(e->v, (e->n + 1) * sizeof(*e->v));
		memmove(&e->v[i + 1], &e->v[i], (e->n - i) * sizeof(*e->v));
		e->v[i].name = sim_strdup(name);
		e->n++;
	}
	CHECK(e->v != NULL);
	e->v[i].inode = inode;
}

static void entries_remove(struct entries *e, const char *name)
{
	bool found;
	size_t i = entries_at(e, name, &found);

	CHECK(found);
	free(e->v[i].name);
	e->n--;
	memmove(&e->v[i], &e->v[i + 1], (e->n - i) * sizeof(*e->v));
}

static void entries_copy(struct entries *to, const struct entries *from)
{
	size_t i;

	entries_clear(to);
	for (i = 0; i < from->n; i++)
		entries_set(to, from->v[i].name, from->v[i].inode);
}

static uint64_t inode_bytes(const struct inode *i)
{
	uint64_t n = 0;
	size_t c;

	for (c = 0; c < i->chunks_n; c++)
		n += i->chunks[c].cache != NULL ? CHUNK : 0;
	return n;
}

static void link_to(struct memdisk *d, struct inode *dir, const char *name,
		    struct inode *target)
{
	if (target->links++ == 0)
		d->used += inode_bytes(target);
	entries_set(&dir->now, name, target);
}

static void unlink_from(struct memdisk *d, struct inode *dir, const char *name)
{
	struct inode *target = entries_get(&dir->now, name);

	CHECK(target != NULL);
	if (--target->links == 0)
		d->used -= inode_bytes(target);
	entries_remove(&dir->now, name);
}

/*
 * Split `name` into the directory it is in and the last part. NULL: a part on
 * the way is no directory. "" is the data directory itself, and `*last` is
 * then "".
 */
static struct inode *walk(struct memdisk *d, const char *name,
			  const char **last)
{
	struct inode *dir = d->root;
	const char *slash;
	char part[256];
	size_t n;

	PRE(name[0] != '/');
	while ((slash = strchr(name, '/')) != NULL) {
		n = (size_t)(slash - name);
		PRE(n > 0);
		PRE(n < sizeof(part));
		memcpy(part, name, n);
		part[n] = '\0';
		PRE(strcmp(part, "..") != 0);
		dir = entries_get(&dir->now, part);
		if (dir == NULL || !dir->is_dir)
			return NULL;
		name = slash + 1;
	}
	PRE(strcmp(name, "..") != 0);
	*last = name;
	return dir;
}

static struct inode *find(struct memdisk *d, const char *name)
{
	const char *last;
	struct inode *dir = walk(d, name, &last);

	if (dir == NULL || last[0] == '\0')
		return dir;
	return entries_get(&dir->now, last);
}

/* ---- changes of directories ---- */

static void change_add(struct memdisk *d, const struct change *c)
{
	struct change *kept = sim_alloc(sizeof(*kept));

	*kept = *c;
	kept->name = sim_strdup(c->name);
	if (c->to_name != NULL)
		kept->to_name = sim_strdup(c->to_name);
	TAILQ_INSERT_TAIL(&d->changes, kept, link);
}

static void change_drop(struct memdisk *d, struct change *c)
{
	TAILQ_REMOVE(&d->changes, c, link);
	free(c->name);
	free(c->to_name);
	free(c);
}

static void change_to_disk(const struct change *c)
{
	struct entries *from = &c->dir->disk;

	switch (c->kind) {
	case CREATE:
		entries_set(from, c->name, c->target);
		break;
	case RENAME:
		if (entries_get(from, c->name) == c->target)
			entries_remove(from, c->name);
		entries_set(&c->to_dir->disk, c->to_name, c->target);
		break;
	case UNLINK:
		if (entries_get(from, c->name) == c->target)
			entries_remove(from, c->name);
		break;
	default:
		UNREACHABLE();
	}
}

/* The directory whose sync makes it durable. */
static const struct inode *change_dir(const struct change *c)
{
	return c->kind == RENAME ? c->to_dir : c->dir;
}

static bool change_is_needed(const struct change *c, const struct inode *dir)
{
	const struct change *later;

	/* Operations on one file get to the disk in order. */
	for (later = c; later != NULL; later = TAILQ_NEXT(later, link))
		if (later->target == c->target && change_dir(later) == dir &&
		    !later->lost)
			return true;
	return false;
}

static void changes_sync(struct memdisk *d, const struct inode *dir, bool lose)
{
	struct change *c;
	struct change *next;

	for (c = TAILQ_FIRST(&d->changes); c != NULL; c = next) {
		next = TAILQ_NEXT(c, link);
		if (c->lost || !change_is_needed(c, dir))
			continue;
		if (lose) {
			c->lost = true;
			continue;
		}
		change_to_disk(c);
		change_drop(d, c);
	}
}

/* ---- bytes ---- */

static struct chunk *chunk_at(struct inode *i, size_t c)
{
	size_t n = i->chunks_n;

	if (c >= n) {
		n = c + 1 > 2 * n ? c + 1 : 2 * n;
		i->chunks = sim_realloc(i->chunks, n * sizeof(*i->chunks));
		memset(i->chunks + i->chunks_n, 0,
		       (n - i->chunks_n) * sizeof(*i->chunks));
		i->chunks_n = n;
	}
	return &i->chunks[c];
}

static uint8_t *image(uint8_t **p)
{
	if (*p == NULL)
		*p = sim_alloc(CHUNK);
	return *p;
}

/* From one image of a chunk to the other; NULL is zeros. */
static void sector_copy(uint8_t **to, const uint8_t *from, unsigned s)
{
	if (from == NULL && *to == NULL)
		return;
	if (from == NULL)
		memset(image(to) + s * WORLD_SECTOR, 0, WORLD_SECTOR);
	else
		memcpy(image(to) + s * WORLD_SECTOR, from + s * WORLD_SECTOR,
		       WORLD_SECTOR);
}

/* Before the cache of a chunk changes: keep what the disk has. */
static void chunk_split(struct chunk *c)
{
	if ((c->dirty | c->lost) != 0)
		return;
	CHECK(c->disk == NULL);
	if (c->cache != NULL)
		memcpy(image(&c->disk), c->cache, CHUNK);
}

static void chunk_join(struct chunk *c)
{
	if ((c->dirty | c->lost) != 0)
		return;
	free(c->disk);
	c->disk = NULL;
}

static uint8_t sectors_of(size_t from, size_t n)
{
	unsigned first = (unsigned)(from / WORLD_SECTOR);
	unsigned last = (unsigned)((from + n - 1) / WORLD_SECTOR);

	return (uint8_t)((0xffu << first) & (0xffu >> (7 - last)));
}

static void mark_dirty(struct inode *i, size_t c, struct chunk *chunk,
		       uint8_t mask)
{
	chunk->dirty |= mask;
	chunk->cut &= (uint8_t)~mask;
	chunk->lost &= (uint8_t)~mask;
	if (i->dirty_from == i->dirty_to) {
		i->dirty_from = c;
		i->dirty_to = c + 1;
		return;
	}
	if (c < i->dirty_from)
		i->dirty_from = c;
	if (c >= i->dirty_to)
		i->dirty_to = c + 1;
}

/* `p` NULL: zeros. */
static void cache_put(struct memdisk *d, struct inode *i, const uint8_t *p,
		      size_t n, uint64_t off)
{
	struct chunk *chunk;
	size_t in;
	size_t some;

	for (; n > 0; n -= some, off += some) {
		in = (size_t)(off % CHUNK);
		some = n < CHUNK - in ? n : CHUNK - in;
		chunk = chunk_at(i, (size_t)(off / CHUNK));
		chunk_split(chunk);
		if (chunk->cache == NULL && i->links > 0)
			d->used += CHUNK;
		if (p != NULL) {
			memcpy(image(&chunk->cache) + in, p, some);
			p += some;
		} else {
			memset(image(&chunk->cache) + in, 0, some);
		}
		mark_dirty(i, (size_t)(off / CHUNK), chunk,
			   sectors_of(in, some));
	}
}

/* What was just written never gets to the disk. */
static void cache_lose(struct inode *i, size_t n, uint64_t off)
{
	struct chunk *chunk;
	uint8_t mask;
	size_t in;
	size_t some;

	for (; n > 0; n -= some, off += some) {
		in = (size_t)(off % CHUNK);
		some = n < CHUNK - in ? n : CHUNK - in;
		chunk = chunk_at(i, (size_t)(off / CHUNK));
		mask = sectors_of(in, some);
		chunk->dirty &= (uint8_t)~mask;
		chunk->lost |= mask;
	}
}

/* Bytes that appear on the disk behind the cache's back. */
static void disk_put(struct inode *i, const uint8_t *p, size_t n, uint64_t off)
{
	struct chunk *chunk;
	uint8_t mask;
	size_t in;
	size_t some;

	for (; n > 0 && off < i->size; n -= some, off += some, p += some) {
		in = (size_t)(off % CHUNK);
		some = n < CHUNK - in ? n : CHUNK - in;
		chunk = chunk_at(i, (size_t)(off / CHUNK));
		chunk_split(chunk);
		mask = sectors_of(in, some);
		memcpy(image(&chunk->disk) + in, p, some);
		chunk->lost |= (uint8_t)(mask & ~chunk->dirty);
	}
}

/* The cache's image of a chunk becomes zeros that take no room. */
static void cache_drop(struct memdisk *d, const struct inode *i,
		       struct chunk *chunk)
{
	if (chunk->cache == NULL)
		return;
	if (i->links > 0)
		d->used -= CHUNK;
	free(chunk->cache);
	chunk->cache = NULL;
}

/* Zeros from `size` on, in the cache, for good: nothing of it counts any
 * more. */
static void chunks_end(struct memdisk *d, struct inode *i, uint64_t size)
{
	size_t whole = (size_t)((size + CHUNK - 1) / CHUNK);
	size_t in = (size_t)(size % CHUNK);
	size_t c;

	if (in > 0 && whole <= i->chunks_n && i->chunks[whole - 1].cache)
		memset(i->chunks[whole - 1].cache + in, 0, CHUNK - in);
	for (c = whole; c < i->chunks_n; c++) {
		cache_drop(d, i, &i->chunks[c]);
		free(i->chunks[c].disk);
		i->chunks[c] = (struct chunk){ 0 };
	}
}

static void truncate_to(struct memdisk *d, struct inode *i, uint64_t size)
{
	struct chunk *chunk;
	uint64_t off;
	uint64_t end = i->size;
	size_t some;
	size_t in;
	uint8_t mask;

	for (off = size; off < end; off += some) {
		in = (size_t)(off % CHUNK);
		some = (size_t)(end - off < CHUNK - in ? end - off
						       : CHUNK - in);
		if (off / CHUNK >= i->chunks_n)
			break;
		chunk = &i->chunks[off / CHUNK];
		if (chunk->cache == NULL && (chunk->dirty | chunk->lost) == 0)
			continue;
		cache_put(d, i, NULL, some, off);
		/* A sector that keeps bytes before the new end is like any
		 * other dirty one. */
		mask = sectors_of(in, some);
		if (in % WORLD_SECTOR != 0)
			mask &= (uint8_t) ~(1u << in / WORLD_SECTOR);
		chunk->cut |= mask;
		if (some == CHUNK)
			cache_drop(d, i, chunk);
	}
	i->size = size;
	i->size_lost = false;
}

static void sync_bytes(struct inode *i, bool lose)
{
	struct chunk *chunk;
	size_t c;
	unsigned s;

	for (c = i->dirty_from; c < i->dirty_to; c++) {
		chunk = &i->chunks[c];
		if (lose)
			chunk->lost |= chunk->dirty;
		for (s = 0; !lose && s < SECTORS; s++)
			if (chunk->dirty & 1u << s)
				sector_copy(&chunk->disk, chunk->cache, s);
		chunk->dirty = 0;
		chunk->cut = 0;
		chunk_join(chunk);
	}
	i->dirty_from = i->dirty_to = 0;
	if (lose && i->size != i->disk_size)
		i->size_lost = true;
	if (!lose && !i->size_lost)
		i->disk_size = i->size;
}

static void read_bytes(const struct inode *i, uint8_t *p, size_t n,
		       uint64_t off, bool direct)
{
	const struct chunk *chunk;
	const uint8_t *from;
	size_t in;
	size_t some;

	for (; n > 0; n -= some, off += some, p += some) {
		in = (size_t)(off % WORLD_SECTOR);
		some = n < WORLD_SECTOR - in ? n : WORLD_SECTOR - in;
		from = NULL;
		if (off / CHUNK < i->chunks_n) {
			chunk = &i->chunks[off / CHUNK];
			from = chunk->cache;
			if (direct &&
			    (chunk->lost & 1u << off % CHUNK / WORLD_SECTOR))
				from = chunk->disk;
		}
		if (from == NULL)
			memset(p, 0, some);
		else
			memcpy(p, from + off % CHUNK, some);
	}
}

/* ---- faults ---- */

static bool fault_matches(const struct world_fault *f, enum world_op op,
			  const char *name, const char *other)
{
	if (f->op != op && !(f->op == WORLD_CHANGE && op != WORLD_READ))
		return false;
	if (f->prefix == NULL)
		return true;
	return strncmp(name, f->prefix, strlen(f->prefix)) == 0 ||
	       (other != NULL &&
		strncmp(other, f->prefix, strlen(f->prefix)) == 0);
}

/* Counts the operation. True, and `*kind` set, when a fault fires. */
static bool fault_fires(struct memdisk *d, enum world_op op, const char *name,
			const char *other, enum world_fault_kind *kind)
{
	struct world_fault *f;
	bool fires = false;
	unsigned i = 0;

	if (d->watch != NULL)
		d->watch(d->watch_arg, op, name);
	d->counts[op]++;
	if (op != WORLD_READ)
		d->counts[WORLD_CHANGE]++;
	while (i < d->faults_n) {
		f = &d->faults[i];
		if (!fault_matches(f, op, name, other) || --f->nth > 0) {
			i++;
			continue;
		}
		if (!fires)
			*kind = f->kind;
		fires = true;
		if (f->sticky) {
			f->nth = 1;
			i++;
			continue;
		}
		*f = d->faults[--d->faults_n];
	}
	d->fired += fires;
	return fires;
}

static void crash(struct memdisk *d)
{
	d->frozen = true;
	d->host.crashed(d->host.arg);
}

/*
 * Every operation begins here. RC_OK: do it, then return after(). Else return
 * that. `*crash_after` is for after().
 */
static enum rc before(struct memdisk *d, enum world_op op, const char *name,
		      const char *other, bool *crash_after)
{
	enum world_fault_kind kind;

	*crash_after = false;
	if (d->frozen)
		return RC_IO;
	if (!fault_fires(d, op, name, other, &kind))
		return RC_OK;
	switch (kind) {
	case WORLD_CRASH_BEFORE:
		crash(d);
		return RC_IO;
	case WORLD_CRASH_AFTER:
		*crash_after = true;
		return RC_OK;
	case WORLD_NO_SPACE:
		return RC_NO_SPACE;
	case WORLD_EIO:
		return RC_IO;
	case WORLD_SHORT:
	case WORLD_LOST:
	case WORLD_MISDIRECTED:
	case WORLD_BAD_READ:
	default:
		UNREACHABLE();
	}
}

static enum rc after(struct memdisk *d, bool crash_after)
{
	if (!crash_after)
		return RC_OK;
	crash(d);
	return RC_IO;
}

/* ---- operations on files ---- */

static bool is_stale(const struct mem_file *f)
{
	return f->d->frozen || f->generation != f->d->generation;
}

static void file_new(struct memdisk *d, struct inode *inode, const char *name,
		     unsigned flags, struct disk_file **out)
{
	struct mem_file *f = sim_alloc(sizeof(*f));

	f->file.disk = &d->disk;
	f->magic = FILE_MAGIC;
	f->d = d;
	f->inode = inode;
	f->generation = d->generation;
	f->flags = flags;
	f->name = sim_strdup(name);
	LIST_INSERT_HEAD(&d->files, f, link);
	*out = &f->file;
}

static enum rc create(struct memdisk *d, struct inode *dir, const char *name,
		      const char *last, struct inode **out)
{
	bool crash_after;
	enum rc rc = before(d, WORLD_CREATE, name, NULL, &crash_after);

	if (rc != RC_OK)
		return rc;
	*out = inode_new(d, false);
	link_to(d, dir, last, *out);
	change_add(d, &(struct change){ .kind = CREATE,
					.dir = dir,
					.name = (char *)(uintptr_t)last,
					.target = *out });
	note(d, WORLD_CREATE, name, 0, 0);
	return after(d, crash_after);
}

static enum rc mem_open(struct disk *disk, const char *name, unsigned flags,
			struct disk_file **out, struct detail *why)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	struct inode *inode = NULL;
	const char *last = "";
	enum rc rc = RC_OK;

	PRE(!(flags & DISK_EXCL) || (flags & DISK_CREATE));
	PRE(!(flags & DISK_READONLY) || !(flags & DISK_CREATE));
	if (d->frozen)
		return detail_set(why, RC_IO, NULL, "open %s: the disk is gone",
				  name);
	dir = walk(d, name, &last);
	if (dir != NULL && last[0] != '\0')
		inode = entries_get(&dir->now, last);
	if (inode != NULL && inode->is_dir)
		rc = RC_INVALID;
	else if (inode != NULL && (flags & DISK_EXCL))
		rc = RC_EXISTS;
	else if (inode == NULL && (dir == NULL || !(flags & DISK_CREATE)))
		rc = RC_NOT_FOUND;
	else if (inode == NULL)
		rc = create(d, dir, name, last, &inode);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "open %s: %s", name,
				  rc_name(rc));
	file_new(d, inode, name, flags, out);
	return RC_OK;
}

static void mem_close(struct disk_file *file)
{
	struct mem_file *f = file_of(file);

	f->magic = 0;
	LIST_REMOVE(f, link);
	free(f->name);
	free(f);
}

static void check_direct(const struct mem_file *f, const void *p, size_t n,
			 uint64_t off)
{
	if (!(f->flags & DISK_DIRECT))
		return;
	PRE((uintptr_t)p % DISK_ALIGN == 0);
	PRE(n % DISK_ALIGN == 0);
	PRE(off % DISK_ALIGN == 0);
}

static enum rc mem_read(struct disk_file *file, void *p, size_t n, uint64_t off,
			size_t *got)
{
	struct mem_file *f = file_of(file);
	struct memdisk *d = f->d;
	struct inode *i = f->inode;
	enum world_fault_kind kind;
	bool fires;
	uint64_t at;

	check_direct(f, p, n, off);
	*got = 0;
	if (is_stale(f))
		return RC_IO;
	fires = fault_fires(d, WORLD_READ, f->name, NULL, &kind);
	if (fires && kind != WORLD_BAD_READ) {
		if (kind == WORLD_CRASH_BEFORE || kind == WORLD_CRASH_AFTER)
			crash(d);
		return RC_IO;
	}
	if (off >= i->size)
		return RC_OK;
	*got = n < i->size - off ? n : (size_t)(i->size - off);
	read_bytes(i, p, *got, off, f->flags & DISK_DIRECT);
	if (fires && *got > 0) {
		at = prng_below(&d->random, *got * 8);
		((uint8_t *)p)[at / 8] ^= (uint8_t)(1u << at % 8);
	}
	return RC_OK;
}

/* How many bytes of a write get through when it stops half-way: it ends at the
 * border of a sector. */
static size_t short_bytes(struct memdisk *d, size_t n, uint64_t off)
{
	uint64_t first = off / WORLD_SECTOR;
	uint64_t sectors = (off + n - 1) / WORLD_SECTOR - first + 1;
	uint64_t some = prng_below(&d->random, sectors);

	return some == 0 ? 0 : (size_t)((first + some) * WORLD_SECTOR - off);
}

static void misdirect(struct memdisk *d, struct inode *i, const void *p,
		      size_t n, uint64_t off)
{
	uint64_t chunks = i->size / CHUNK;
	uint64_t at;

	if (chunks < 2)
		return;
	at = prng_below(&d->random, chunks) * CHUNK;
	if (at / CHUNK == off / CHUNK)
		at = (at / CHUNK + 1) % chunks * CHUNK;
	disk_put(i, p, n, at + off % CHUNK);
}

static uint64_t missing_chunks(const struct inode *i, size_t n, uint64_t off)
{
	uint64_t c;
	uint64_t missing = 0;

	for (c = off / CHUNK; c <= (off + n - 1) / CHUNK; c++)
		missing += c >= i->chunks_n || i->chunks[c].cache == NULL;
	return missing;
}

static void write_bytes(struct memdisk *d, struct mem_file *f, const void *p,
			size_t n, uint64_t off)
{
	struct inode *i = f->inode;

	if (n == 0)
		return;
	cache_put(d, i, p, n, off);
	if (off + n > i->size) {
		i->size = off + n;
		i->size_lost = false;
	}
	note(d, WORLD_WRITE, f->name, off, (uint64_t)n << 32 | crc32c(0, p, n));
}

static enum rc write_fault(struct memdisk *d, struct mem_file *f, const void *p,
			   size_t n, uint64_t off, enum world_fault_kind kind)
{
	switch (kind) {
	case WORLD_CRASH_AFTER:
		write_bytes(d, f, p, n, off);
		crash(d);
		return RC_IO;
	case WORLD_CRASH_BEFORE:
		crash(d);
		return RC_IO;
	case WORLD_NO_SPACE:
		return RC_NO_SPACE;
	case WORLD_SHORT:
		write_bytes(d, f, p, short_bytes(d, n, off), off);
		return RC_IO;
	case WORLD_LOST:
	case WORLD_MISDIRECTED:
		write_bytes(d, f, p, n, off);
		cache_lose(f->inode, n, off);
		if (kind == WORLD_MISDIRECTED)
			misdirect(d, f->inode, p, n, off);
		return RC_OK;
	case WORLD_EIO:
		return RC_IO;
	case WORLD_BAD_READ:
	default:
		UNREACHABLE();
	}
}

static enum rc mem_write(struct disk_file *file, const void *p, size_t n,
			 uint64_t off)
{
	struct mem_file *f = file_of(file);
	struct memdisk *d = f->d;
	enum world_fault_kind kind;
	uint64_t missing;

	check_direct(f, p, n, off);
	PRE(!(f->flags & DISK_READONLY));
	if (is_stale(f))
		return RC_IO;
	if (n == 0)
		return RC_OK;
	if (fault_fires(d, WORLD_WRITE, f->name, NULL, &kind))
		return write_fault(d, f, p, n, off, kind);
	missing = missing_chunks(f->inode, n, off);
	/* What is overwritten in place needs no room, also when a power cut
	 * brought back what had been removed. */
	if (missing > 0 && d->used + missing * CHUNK > d->capacity)
		return RC_NO_SPACE;
	write_bytes(d, f, p, n, off);
	return RC_OK;
}

static enum rc mem_sync(struct disk_file *file)
{
	struct mem_file *f = file_of(file);
	struct memdisk *d = f->d;
	bool crash_after;
	enum rc rc;

	if (is_stale(f))
		return RC_IO;
	rc = before(d, WORLD_SYNC, f->name, NULL, &crash_after);
	if (d->frozen)
		return rc;
	sync_bytes(f->inode, rc != RC_OK);
	note(d, WORLD_SYNC, f->name, rc, 0);
	d->host.synced(d->host.arg);
	return rc != RC_OK ? rc : after(d, crash_after);
}

static enum rc mem_size(struct disk_file *file, uint64_t *bytes)
{
	struct mem_file *f = file_of(file);

	if (is_stale(f))
		return RC_IO;
	*bytes = f->inode->size;
	return RC_OK;
}

static enum rc mem_truncate(struct disk_file *file, uint64_t bytes)
{
	struct mem_file *f = file_of(file);
	struct memdisk *d = f->d;
	bool crash_after;
	enum rc rc;

	PRE(!(f->flags & DISK_READONLY));
	if (is_stale(f))
		return RC_IO;
	rc = before(d, WORLD_TRUNCATE, f->name, NULL, &crash_after);
	if (rc != RC_OK)
		return rc;
	truncate_to(d, f->inode, bytes);
	note(d, WORLD_TRUNCATE, f->name, bytes, 0);
	return after(d, crash_after);
}

/* ---- operations on directories ---- */

static enum rc mem_sync_dir(struct disk *disk, const char *name)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	bool crash_after;
	enum rc rc;

	if (d->frozen)
		return RC_IO;
	dir = find(d, name);
	if (dir == NULL || !dir->is_dir)
		return RC_NOT_FOUND;
	rc = before(d, WORLD_SYNC_DIR, name, NULL, &crash_after);
	if (d->frozen)
		return rc;
	changes_sync(d, dir, rc != RC_OK);
	note(d, WORLD_SYNC_DIR, name, rc, 0);
	d->host.synced(d->host.arg);
	return rc != RC_OK ? rc : after(d, crash_after);
}

static enum rc mem_rename(struct disk *disk, const char *from, const char *to)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	struct inode *to_dir;
	struct inode *target;
	const char *last = "";
	const char *to_last = "";
	bool crash_after;
	enum rc rc;

	rc = before(d, WORLD_RENAME, from, to, &crash_after);
	if (rc != RC_OK)
		return rc;
	dir = walk(d, from, &last);
	to_dir = walk(d, to, &to_last);
	target = dir != NULL ? entries_get(&dir->now, last) : NULL;
	if (target == NULL || to_dir == NULL)
		return RC_NOT_FOUND;
	if (entries_get(&to_dir->now, to_last) == target)
		return after(d, crash_after);
	change_add(d, &(struct change){ .kind = RENAME,
					.dir = dir,
					.name = (char *)(uintptr_t)last,
					.to_dir = to_dir,
					.to_name = (char *)(uintptr_t)to_last,
					.target = target });
	if (entries_get(&to_dir->now, to_last) != NULL)
		unlink_from(d, to_dir, to_last);
	link_to(d, to_dir, to_last, target);
	unlink_from(d, dir, last);
	note(d, WORLD_RENAME, from, crc32c(0, to, strlen(to)), 0);
	return after(d, crash_after);
}

static enum rc mem_unlink(struct disk *disk, const char *name)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	struct inode *target;
	const char *last = "";
	bool crash_after;
	enum rc rc = before(d, WORLD_UNLINK, name, NULL, &crash_after);

	if (rc != RC_OK)
		return rc;
	dir = walk(d, name, &last);
	target = dir != NULL ? entries_get(&dir->now, last) : NULL;
	if (target == NULL)
		return RC_NOT_FOUND;
	if (target->is_dir)
		return RC_INVALID;
	change_add(d, &(struct change){ .kind = UNLINK,
					.dir = dir,
					.name = (char *)(uintptr_t)last,
					.target = target });
	unlink_from(d, dir, last);
	note(d, WORLD_UNLINK, name, 0, 0);
	return after(d, crash_after);
}

static enum rc mem_mkdir(struct disk *disk, const char *name)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	struct inode *made;
	const char *last = "";
	bool crash_after;
	enum rc rc = before(d, WORLD_MKDIR, name, NULL, &crash_after);

	if (rc != RC_OK)
		return rc;
	dir = walk(d, name, &last);
	if (dir == NULL)
		return RC_NOT_FOUND;
	if (last[0] == '\0' || entries_get(&dir->now, last) != NULL)
		return RC_EXISTS;
	made = inode_new(d, true);
	link_to(d, dir, last, made);
	change_add(d, &(struct change){ .kind = CREATE,
					.dir = dir,
					.name = (char *)(uintptr_t)last,
					.target = made });
	note(d, WORLD_MKDIR, name, 0, 0);
	return after(d, crash_after);
}

/* The names are taken first: `cb` may change the directory. They start
 * anywhere, so that nobody relies on an order. */
static enum rc mem_list(struct disk *disk, const char *name,
			void (*cb)(void *arg, const char *name), void *arg)
{
	struct memdisk *d = disk_of(disk);
	struct inode *dir;
	struct entries names = { NULL, 0 };
	size_t first = 0;
	size_t i;

	if (d->frozen)
		return RC_IO;
	dir = find(d, name);
	if (dir == NULL || !dir->is_dir)
		return RC_NOT_FOUND;
	entries_copy(&names, &dir->now);
	if (names.n > 0)
		first = (size_t)prng_below(&d->random, names.n);
	for (i = 0; i < names.n; i++)
		cb(arg, names.v[(first + i) % names.n].name);
	entries_clear(&names);
	return RC_OK;
}

static enum rc mem_birth(struct disk *disk, struct disk_birth *out)
{
	struct memdisk *d = disk_of(disk);

	if (d->frozen)
		return RC_IO;
	out->inode = d->root->number;
	out->birth_ns = d->birth_hidden ? 0 : d->birth_ns;
	return RC_OK;
}

static enum rc mem_space(struct disk *disk, struct disk_space *out)
{
	struct memdisk *d = disk_of(disk);

	if (d->frozen)
		return RC_IO;
	out->bytes_total = d->capacity;
	out->bytes_free = d->capacity > d->used ? d->capacity - d->used : 0;
	return RC_OK;
}

/* The real lock is a file, so there is one here too. */
static enum rc mem_lock(struct disk *disk, struct detail *why)
{
	struct memdisk *d = disk_of(disk);
	struct inode *i;

	if (d->frozen)
		return RC_IO;
	if (d->locked)
		return detail_set(why, RC_EXISTS, NULL,
				  "another process uses the data directory");
	if (entries_get(&d->root->now, "lock") == NULL) {
		i = inode_new(d, false);
		link_to(d, d->root, "lock", i);
		entries_set(&d->root->disk, "lock", i);
	}
	d->locked = true;
	return RC_OK;
}

static const struct disk_ops mem_ops = {
	.open = mem_open,
	.close = mem_close,
	.read = mem_read,
	.write = mem_write,
	.sync = mem_sync,
	.size = mem_size,
	.truncate = mem_truncate,
	.sync_dir = mem_sync_dir,
	.rename = mem_rename,
	.unlink = mem_unlink,
	.mkdir = mem_mkdir,
	.list = mem_list,
	.birth = mem_birth,
	.space = mem_space,
	.lock = mem_lock,
};

/* ---- life ---- */

static void root_new(struct memdisk *d)
{
	d->root = inode_new(d, true);
	d->root->links = 1;
	d->birth_ns =
		d->host.wall_ns(d->host.arg) + prng_below(&d->random, 1000000);
}

struct memdisk *memdisk_new(const struct memdisk_host *host, uint64_t seed,
			    unsigned node)
{
	struct memdisk *d = sim_alloc(sizeof(*d));

	d->disk.ops = &mem_ops;
	d->magic = DISK_MAGIC;
	d->host = *host;
	d->capacity = UINT64_C(1) << 40;
	prng_seed(&d->random, seed, 1000 + node);
	d->next_number = 2 + prng_below(&d->random, 1000000);
	SLIST_INIT(&d->inodes);
	TAILQ_INIT(&d->changes);
	LIST_INIT(&d->files);
	root_new(d);
	return d;
}

struct disk *memdisk_disk(struct memdisk *d)
{
	return &d->disk;
}

static void changes_clear(struct memdisk *d)
{
	struct change *c;
	struct change *next;

	for (c = TAILQ_FIRST(&d->changes); c != NULL; c = next) {
		next = TAILQ_NEXT(c, link);
		change_drop(d, c);
	}
}

static void inodes_clear(struct memdisk *d)
{
	struct inode *i;

	while ((i = SLIST_FIRST(&d->inodes)) != NULL) {
		SLIST_REMOVE_HEAD(&d->inodes, link);
		inode_free(i);
	}
	d->used = 0;
}

void memdisk_free(struct memdisk *d)
{
	struct mem_file *f;
	struct mem_file *next;

	for (f = LIST_FIRST(&d->files); f != NULL; f = next) {
		next = LIST_NEXT(f, link);
		mem_close(&f->file);
	}
	changes_clear(d);
	inodes_clear(d);
	d->magic = 0;
	free(d);
}

static void see(struct inode *i)
{
	size_t e;

	if (i->seen)
		return;
	i->seen = true;
	for (e = 0; e < i->now.n; e++)
		see(i->now.v[e].inode);
	for (e = 0; e < i->disk.n; e++)
		see(i->disk.v[e].inode);
}

/* Frees what no directory and no operation leads to. */
static void sweep(struct memdisk *d)
{
	struct change *c;
	struct inode *i;
	struct inode *next;

	SLIST_FOREACH(i, &d->inodes, link)
	i->seen = false;
	see(d->root);
	TAILQ_FOREACH(c, &d->changes, link)
	{
		see(c->dir);
		see(c->target);
		if (c->to_dir != NULL)
			see(c->to_dir);
	}
	for (i = SLIST_FIRST(&d->inodes); i != NULL; i = next) {
		next = SLIST_NEXT(i, link);
		if (i->seen)
			continue;
		SLIST_REMOVE(&d->inodes, i, inode, link);
		inode_free(i);
	}
}

void memdisk_freeze(struct memdisk *d)
{
	d->frozen = true;
}

void memdisk_restart(struct memdisk *d)
{
	d->generation++;
	d->frozen = false;
	d->locked = false;
	sweep(d);
}

static uint64_t size_after_cut(struct memdisk *d, const struct inode *i)
{
	uint64_t from = i->disk_size / WORLD_SECTOR;
	uint64_t to = i->size / WORLD_SECTOR;
	uint64_t draw = prng_below(&d->random, 3);

	if (i->size_lost || i->size == i->disk_size)
		return i->disk_size;
	if (draw == 0)
		return i->disk_size;
	if (draw == 1 || i->size < i->disk_size || to <= from)
		return i->size;
	return prng_between(&d->random, from + 1, to) * WORLD_SECTOR;
}

static void file_power_cut(struct memdisk *d, struct inode *i)
{
	static const unsigned rates[] = { 0, 10, 50, 90, 100 };
	uint64_t rate = rates[prng_below(&d->random, ARRAY_LEN(rates))];
	uint64_t size = size_after_cut(d, i);
	bool uncut = i->size < i->disk_size && size == i->disk_size;
	struct chunk *c;
	size_t n;
	unsigned s;
	bool keep;

	for (n = 0; n < i->chunks_n; n++) {
		c = &i->chunks[n];
		if ((c->dirty | c->lost) == 0)
			continue;
		for (s = 0; s < SECTORS; s++) {
			if (!((c->dirty | c->lost) & 1u << s))
				continue;
			keep = prng_below(&d->random, 100) < rate;
			if (c->lost & 1u << s)
				keep = false;
			if (uncut && (c->cut & 1u << s))
				keep = false;
			if (!keep)
				sector_copy(&c->cache, c->disk, s);
		}
		c->dirty = c->cut = c->lost = 0;
		chunk_join(c);
	}
	chunks_end(d, i, size);
	i->size = i->disk_size = size;
	i->size_lost = false;
	i->dirty_from = i->dirty_to = 0;
}

/* For each file a number of its first operations. */
static void changes_power_cut(struct memdisk *d)
{
	struct change *c;
	struct change *later;
	struct change *next;

	for (c = TAILQ_FIRST(&d->changes); c != NULL; c = next) {
		next = TAILQ_NEXT(c, link);
		if (!c->lost && prng_below(&d->random, 2) == 0) {
			change_to_disk(c);
			continue;
		}
		for (later = c; later != NULL; later = TAILQ_NEXT(later, link))
			if (later->target == c->target)
				later->lost = true;
	}
	changes_clear(d);
}

/* Links and bytes in use, after directories changed behind our back. */
static void recount(struct memdisk *d)
{
	struct inode *i;
	size_t e;

	d->used = 0;
	SLIST_FOREACH(i, &d->inodes, link)
	i->links = 0;
	SLIST_FOREACH(i, &d->inodes, link)
	for (e = 0; e < i->now.n; e++)
		i->now.v[e].inode->links++;
	d->root->links++;
	SLIST_FOREACH(i, &d->inodes, link)
	d->used += inode_bytes(i);
}

void memdisk_power_cut(struct memdisk *d)
{
	struct inode *i;

	changes_power_cut(d);
	SLIST_FOREACH(i, &d->inodes, link)
	{
		if (i->is_dir)
			entries_copy(&i->now, &i->disk);
		else
			file_power_cut(d, i);
	}
	memdisk_restart(d);
	recount(d);
}

void memdisk_drop_caches(struct memdisk *d)
{
	struct inode *i;
	struct chunk *c;
	size_t n;
	unsigned s;

	SLIST_FOREACH(i, &d->inodes, link)
	{
		for (n = 0; n < i->chunks_n; n++) {
			c = &i->chunks[n];
			for (s = 0; s < SECTORS; s++)
				if (c->lost & 1u << s)
					sector_copy(&c->cache, c->disk, s);
			c->lost = 0;
			chunk_join(c);
		}
		if (i->size_lost) {
			chunks_end(d, i, i->disk_size);
			i->size = i->disk_size;
			i->size_lost = false;
		}
	}
	recount(d);
}

void memdisk_wipe(struct memdisk *d)
{
	changes_clear(d);
	inodes_clear(d);
	root_new(d);
	memdisk_restart(d);
}

static void copy_bytes(struct inode *to, const struct inode *from)
{
	size_t c;

	to->size = to->disk_size = from->size;
	for (c = 0; c < from->chunks_n; c++)
		if (from->chunks[c].cache != NULL)
			memcpy(image(&chunk_at(to, c)->cache),
			       from->chunks[c].cache, CHUNK);
}

static void copy_dir(struct memdisk *d, struct inode *to,
		     const struct inode *from)
{
	struct inode *made;
	size_t e;

	for (e = 0; e < from->now.n; e++) {
		made = inode_new(d, from->now.v[e].inode->is_dir);
		if (made->is_dir)
			copy_dir(d, made, from->now.v[e].inode);
		else
			copy_bytes(made, from->now.v[e].inode);
		link_to(d, to, from->now.v[e].name, made);
	}
	entries_copy(&to->disk, &to->now);
}

void memdisk_copy(struct memdisk *to, const struct memdisk *from)
{
	PRE(to != from);
	memdisk_wipe(to);
	copy_dir(to, to->root, from->root);
}

/* ---- what is durable ---- */

static void clone_bytes(struct inode *to, const struct inode *from)
{
	const struct chunk *c;
	const uint8_t *p;
	unsigned s;
	size_t i;

	to->size = to->disk_size = from->disk_size;
	for (i = 0; i < from->chunks_n; i++) {
		c = &from->chunks[i];
		for (s = 0; s < SECTORS; s++) {
			p = (c->dirty | c->lost) & 1u << s ? c->disk : c->cache;
			if (p != NULL)
				sector_copy(&chunk_at(to, i)->cache, p, s);
		}
	}
}

static void clone_dir(struct memdisk *d, struct inode *to,
		      const struct inode *from)
{
	const struct entries *e = &from->disk;
	struct inode *made;
	size_t i;

	for (i = 0; i < e->n; i++) {
		made = inode_new(d, e->v[i].inode->is_dir);
		if (made->is_dir)
			clone_dir(d, made, e->v[i].inode);
		else
			clone_bytes(made, e->v[i].inode);
		link_to(d, to, e->v[i].name, made);
	}
	entries_copy(&to->disk, &to->now);
}

void memdisk_clone(struct memdisk *to, const struct memdisk *from)
{
	PRE(to != from);
	memdisk_wipe(to);
	to->root->number = from->root->number;
	to->birth_ns = from->birth_ns;
	to->birth_hidden = from->birth_hidden;
	clone_dir(to, to->root, from->root);
}

static struct inode *disk_find(struct memdisk *d, const char *name);
static void read_disk(const struct inode *i, uint8_t *p, uint64_t from,
		      size_t n);

static struct memdisk *durable_of(struct disk *disk)
{
	struct memdisk *d = CONTAINER_OF(disk, struct memdisk, durable);

	CHECK_OBJ(d, DISK_MAGIC);
	return d;
}

static enum rc durable_open(struct disk *disk, const char *name, unsigned flags,
			    struct disk_file **out, struct detail *why)
{
	struct memdisk *d = durable_of(disk);
	struct inode *i = disk_find(d, name);

	if (i == NULL || i->is_dir)
		return detail_set(why, RC_NOT_FOUND, NULL, "open %s", name);
	file_new(d, i, name, flags, out);
	(*out)->disk = disk;
	return RC_OK;
}

static enum rc durable_read(struct disk_file *file, void *p, size_t n,
			    uint64_t off, size_t *got)
{
	struct mem_file *f = file_of(file);
	const struct inode *i = f->inode;

	check_direct(f, p, n, off);
	*got = 0;
	if (off >= i->disk_size)
		return RC_OK;
	*got = n < i->disk_size - off ? n : (size_t)(i->disk_size - off);
	read_disk(i, p, off, *got);
	return RC_OK;
}

static enum rc durable_size(struct disk_file *file, uint64_t *bytes)
{
	*bytes = file_of(file)->inode->disk_size;
	return RC_OK;
}

static enum rc durable_list(struct disk *disk, const char *name,
			    void (*cb)(void *arg, const char *name), void *arg)
{
	struct memdisk *d = durable_of(disk);
	const struct inode *dir =
		name[0] == '\0' ? d->root : disk_find(d, name);
	size_t i;

	if (dir == NULL || !dir->is_dir)
		return RC_NOT_FOUND;
	for (i = 0; i < dir->disk.n; i++)
		cb(arg, dir->disk.v[i].name);
	return RC_OK;
}

static enum rc durable_birth(struct disk *disk, struct disk_birth *out)
{
	struct memdisk *d = durable_of(disk);

	out->inode = d->root->number;
	out->birth_ns = d->birth_hidden ? 0 : d->birth_ns;
	return RC_OK;
}

static const struct disk_ops durable_ops = {
	.open = durable_open,
	.close = mem_close,
	.read = durable_read,
	.size = durable_size,
	.list = durable_list,
	.birth = durable_birth,
};

struct disk *memdisk_durable(struct memdisk *d)
{
	d->durable.ops = &durable_ops;
	return &d->durable;
}

/* ---- what drivers ask ---- */

void memdisk_watch(struct memdisk *d,
		   void (*cb)(void *arg, enum world_op op, const char *name),
		   void *arg)
{
	d->watch = cb;
	d->watch_arg = arg;
}

void memdisk_fault(struct memdisk *d, const struct world_fault *f)
{
	PRE(d->faults_n < FAULTS_MAX);
	PRE(f->nth > 0);
	PRE(f->op < WORLD_OPS);
	if (f->kind == WORLD_SHORT || f->kind == WORLD_LOST ||
	    f->kind == WORLD_MISDIRECTED)
		PRE(f->op == WORLD_WRITE);
	if (f->kind == WORLD_BAD_READ)
		PRE(f->op == WORLD_READ);
	if (f->kind == WORLD_NO_SPACE)
		PRE(f->op != WORLD_READ);
	d->faults[d->faults_n++] = *f;
}

void memdisk_faults_clear(struct memdisk *d)
{
	d->faults_n = 0;
}

uint64_t memdisk_faults_fired(const struct memdisk *d)
{
	return d->fired;
}

uint64_t memdisk_count(const struct memdisk *d, enum world_op op)
{
	PRE(op < WORLD_OPS);
	return d->counts[op];
}

static struct inode *disk_find(struct memdisk *d, const char *name)
{
	struct inode *i = d->root;
	const char *slash;
	char part[256];

	for (;;) {
		slash = strchrnul(name, '/');
		PRE((size_t)(slash - name) < sizeof(part));
		memcpy(part, name, (size_t)(slash - name));
		part[slash - name] = '\0';
		i = entries_get(&i->disk, part);
		if (i == NULL || *slash == '\0')
			return i;
		name = slash + 1;
	}
}

/* The disk's bytes where the cache differs. */
static void read_disk(const struct inode *i, uint8_t *p, uint64_t from,
		      size_t n)
{
	const struct chunk *c;
	const uint8_t *bytes;
	uint64_t off = from;
	size_t some;

	for (; n > 0; n -= some, off += some, p += some) {
		some = WORLD_SECTOR - (size_t)(off % WORLD_SECTOR);
		some = some < n ? some : n;
		bytes = NULL;
		if (off / CHUNK < i->chunks_n) {
			c = &i->chunks[off / CHUNK];
			bytes = (c->dirty | c->lost) &
						1u << off % CHUNK / WORLD_SECTOR
					? c->disk
					: c->cache;
		}
		if (bytes == NULL)
			memset(p, 0, some);
		else
			memcpy(p, bytes + off % CHUNK, some);
	}
}

uint8_t *memdisk_file(struct memdisk *d, const char *name, bool durable,
		      size_t *bytes)
{
	struct inode *i = durable ? disk_find(d, name) : find(d, name);
	uint8_t *p;

	if (i == NULL || i->is_dir)
		return NULL;
	*bytes = (size_t)(durable ? i->disk_size : i->size);
	p = sim_alloc(*bytes + 1);
	if (durable)
		read_disk(i, p, 0, *bytes);
	else
		read_bytes(i, p, *bytes, 0, false);
	return p;
}

enum rc memdisk_flip(struct memdisk *d, const char *name, uint64_t byte,
		     unsigned bit)
{
	struct inode *i = find(d, name);
	struct chunk *c;

	PRE(bit < 8);
	if (i == NULL || i->is_dir)
		return RC_NOT_FOUND;
	if (byte >= i->size)
		return RC_INVALID;
	c = chunk_at(i, (size_t)(byte / CHUNK));
	if (c->cache == NULL && i->links > 0)
		d->used += CHUNK;
	image(&c->cache)[byte % CHUNK] ^= (uint8_t)(1u << bit);
	if ((c->dirty | c->lost) != 0)
		image(&c->disk)[byte % CHUNK] ^= (uint8_t)(1u << bit);
	return RC_OK;
}

static void files_in(const struct inode *dir, const char *path,
		     void (*cb)(void *arg, const char *name, uint64_t bytes),
		     void *arg)
{
	const struct inode *i;
	char name[1024];
	size_t e;
	int n;

	for (e = 0; e < dir->now.n; e++) {
		i = dir->now.v[e].inode;
		n = snprintf(name, sizeof(name), "%s%s%s", path,
			     path[0] != '\0' ? "/" : "", dir->now.v[e].name);
		CHECK(n > 0);
		CHECK((size_t)n < sizeof(name));
		if (i->is_dir)
			files_in(i, name, cb, arg);
		else
			cb(arg, name, i->size);
	}
}

void memdisk_files(struct memdisk *d,
		   void (*cb)(void *arg, const char *name, uint64_t bytes),
		   void *arg)
{
	files_in(d->root, "", cb, arg);
}

void memdisk_capacity(struct memdisk *d, uint64_t bytes)
{
	d->capacity = bytes;
}

uint64_t memdisk_used(const struct memdisk *d)
{
	return d->used;
}

void memdisk_birth_hidden(struct memdisk *d, bool hidden)
{
	d->birth_hidden = hidden;
}
