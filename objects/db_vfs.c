/*
 * The files of shard SS in generation GGGGGGGG (both decimal), in DB_DIR:
 *
 *   SS-GGGGGGGG.db        the main file: SQLite's format 3, made of pages of
 *                         STATE_PAGE_BYTES of which the last
 *                         STATE_RESERVE_BYTES are ours
 *   SS-GGGGGGGG.db-wal    SQLite's WAL, empty after each checkpoint
 *   SS-GGGGGGGG.wal-mark  what the last checkpoint copied
 *   SS-GGGGGGGG.new       a main file in the making; renamed when synced
 *
 * Numbers of ours are little endian. The reserved bytes of a page:
 *
 *    0  4  "HFpg"
 *    4  4  version (1)
 *    8  4  number of the page, from 1
 *   12  4  shard
 *   16  8  generation
 *   24  4  zero
 *   28  4  CRC-32C of the page's bytes before this
 *
 * SQLite computes the checksum of a WAL frame before it gives the page to
 * xWrite, so a page may only be stamped when the main file is written; in the
 * WAL the reserved bytes are whatever they were. What is read from the WAL is
 * verified against CRCs kept in memory.
 *
 * The mark is two blocks of MARK_BYTES with the same text; the newer good one
 * counts:
 *
 *    0  8  "HFwalmk1"
 *    8  8  sequence: counts writes of the mark, from 1
 *   16  4  shard
 *   20  4  1: copying, 2: done
 *   24  8  generation
 *   32  8  the WAL's salts, as its header has them
 *   40  4  frames of the WAL that are committed
 *   44  8  checksum of the last of them, as its header has it
 *   52  4  pages of the main file when the copying began
 *   4092 4 CRC-32C of the block's bytes before this
 *
 * A checkpoint: the WAL is synced; the mark says `copying`; pages go to the
 * main file; it is synced; the mark says `done`; the WAL is emptied. So
 *
 * - under `copying` the main file may be a mixture of old and new pages, which
 *   the WAL makes whole: it must have all the frames of the mark;
 * - under `done` the main file is whole, and a WAL with the mark's salts holds
 *   nothing else; one with other salts holds what was committed since, as far
 *   as its checksums go.
 */
#include "objects/db_vfs.h"

#include <inttypes.h>
#include <sqlite3.h>

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"

#define DB_VFS_MAGIC 0x44425646u

#define PAGE_BYTES   STATE_PAGE_BYTES
#define TRAILER_AT   (PAGE_BYTES - STATE_RESERVE_BYTES)
#define PAGE_VERSION 1u
#define PAGE_CRC_AT  (PAGE_BYTES - 4u)

#define MARK_BYTES 4096u

#define WAL_HEADER_BYTES 32u
#define FRAME_HEAD_BYTES 24u
#define FRAME_BYTES      (FRAME_HEAD_BYTES + PAGE_BYTES)
#define WAL_MAGIC        0x377f0682u /* The lowest bit: big endian sums. */
#define WAL_VERSION      3007000u

#define STREAM_BYTES (256u << 10)
#define GATHER_BYTES (16u * FRAME_BYTES)

_Static_assert(STREAM_BYTES % DISK_ALIGN == 0, "read past the page cache");
_Static_assert(MARK_BYTES % DISK_ALIGN == 0, "read past the page cache");
_Static_assert(STATE_RESERVE_BYTES == 32, "the trailer's layout");

static const uint8_t page_magic[4] = { 'H', 'F', 'p', 'g' };
static const uint8_t mark_magic[8] = { 'H', 'F', 'w', 'a', 'l', 'm', 'k', '1' };

enum mark_state { MARK_COPYING = 1, MARK_DONE = 2 };

struct mark {
	uint64_t sequence;
	enum mark_state state;
	uint8_t salts[8];
	uint32_t frames;
	uint8_t sum[8];
	uint32_t pages;
};

/* CRC-32C of what was written of a frame. */
struct frame {
	uint32_t head;
	uint32_t data;
};

struct db_vfs {
	uint32_t magic;
	sqlite3_vfs vfs;
	char name[32];
	char file[DB_NAME_BYTES];
	struct disk *disk;
	uint32_t shard;
	uint64_t generation;
	struct disk_file *main;
	struct disk_file *wal;
	struct disk_file *mark_file;
	bool frozen;
	enum rc fault;
	struct detail why;

	uint32_t main_pages;

	bool wal_header; /* There is one. */
	bool wal_header_synced;
	bool wal_synced;
	uint32_t wal_header_crc;
	uint8_t salts[8];
	uint8_t sum[8]; /* Of the last committed frame. */
	uint32_t committed;
	uint32_t sealed; /* Frames that no later transaction may touch. */
	struct frame *frames;
	uint32_t heads_n; /* Frames whose head was written, from the first. */
	uint32_t datas_n; /* Frames whose page was written too. */
	uint32_t frames_cap;
	uint64_t gather_at; /* Where what is gathered is to be written. */
	size_t gathered;

	struct mark mark;
	unsigned mark_durable; /* The block that certainly is on the disk. */

	uint8_t page[PAGE_BYTES]; /* For one page on its way. */
	uint8_t block[MARK_BYTES];
	uint8_t gather[GATHER_BYTES];
};

struct db_file {
	sqlite3_file base;
	struct db_vfs *v;
};

/* ----------------------------------------------------------------- names */

enum file { FILE_MAIN, FILE_WAL, FILE_MARK, FILE_MADE, FILES };

static const char *const file_ends[FILES] = {
	[FILE_MAIN] = ".db",
	[FILE_WAL] = ".db-wal",
	[FILE_MARK] = ".wal-mark",
	[FILE_MADE] = ".new",
};

static void file_name(char out[DB_NAME_BYTES], uint32_t shard,
		      uint64_t generation, enum file which)
{
	int n = snprintf(out, DB_NAME_BYTES, DB_DIR "/%02u-%08" PRIu64 "%s",
			 shard, generation, file_ends[which]);

	CHECK(n > 0);
	CHECK((unsigned)n < DB_NAME_BYTES);
}

/* What file of what generation is this entry of DB_DIR? FILES: none of ours of
 * that shard. */
static enum file file_of(const char *entry, uint32_t shard,
			 uint64_t *generation)
{
	char name[DB_NAME_BYTES];
	const char *digits = strchr(entry, '-');
	unsigned which;

	if (digits == NULL)
		return FILES;
	*generation = strtoull(digits + 1, NULL, 10);
	for (which = FILE_MAIN; which < FILES; which++) {
		file_name(name, shard, *generation, (enum file)which);
		if (strcmp(name + sizeof(DB_DIR), entry) == 0)
			break;
	}
	return (enum file)which;
}

/* --------------------------------------------------------------- numbers */

static void put32(uint8_t *p, uint32_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
	p[2] = (uint8_t)(v >> 16);
	p[3] = (uint8_t)(v >> 24);
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
	       (uint32_t)p[3] << 24;
}

static void put64(uint8_t *p, uint64_t v)
{
	put32(p, (uint32_t)v);
	put32(p + 4, (uint32_t)(v >> 32));
}

static uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* SQLite's own numbers. */
static uint32_t get32_big(const uint8_t *p)
{
	return __builtin_bswap32(get32(p));
}

static void put32_big(uint8_t *p, uint32_t v)
{
	put32(p, __builtin_bswap32(v));
}

/* ---------------------------------------------------------------- faults */

static bool dead(const struct db_vfs *v)
{
	return v->frozen || v->fault != RC_OK;
}

/* Returns SQLite's code for it: SQLite only passes it on. */
__attribute__((format(printf, 3, 4))) static int fault(struct db_vfs *v,
						       enum rc rc,
						       const char *fmt, ...)
{
	va_list ap;

	PRE(rc != RC_OK);
	if (v->fault == RC_OK) {
		v->fault = rc;
		va_start(ap, fmt);
		(void)vsnprintf(v->why.text, sizeof(v->why.text), fmt, ap);
		va_end(ap);
	}
	if (rc == RC_NO_SPACE)
		return SQLITE_FULL;
	return rc == RC_CORRUPT ? SQLITE_IOERR_DATA : SQLITE_IOERR;
}

static int write_fault(struct db_vfs *v, enum rc rc, const char *what)
{
	return fault(v, rc == RC_NO_SPACE ? RC_NO_SPACE : RC_IO,
		     "%s of %s failed: %s", what, v->file, rc_text(rc));
}

enum rc db_vfs_fault(const struct db_vfs *v, struct detail *why)
{
	if (v->fault != RC_OK)
		(void)detail_set(why, v->fault, NULL, "%s", v->why.text);
	return v->fault;
}

/* ----------------------------------------------------------------- pages */

static void page_stamp(const struct db_vfs *v, uint32_t number, uint8_t *page)
{
	uint8_t *t = page + TRAILER_AT;

	memcpy(t, page_magic, sizeof(page_magic));
	put32(t + 4, PAGE_VERSION);
	put32(t + 8, number);
	put32(t + 12, v->shard);
	put64(t + 16, v->generation);
	put32(t + 24, 0);
	put32(page + PAGE_CRC_AT, crc32c(0, page, PAGE_CRC_AT));
}

static uint64_t page_generation(const uint8_t *page)
{
	return get64(page + TRAILER_AT + 16);
}

/* A page of that number of the shard's state, in some generation. */
static bool page_whole(const struct db_vfs *v, uint32_t number,
		       const uint8_t *page)
{
	const uint8_t *t = page + TRAILER_AT;

	return get32(page + PAGE_CRC_AT) == crc32c(0, page, PAGE_CRC_AT) &&
	       memcmp(t, page_magic, sizeof(page_magic)) == 0 &&
	       get32(t + 4) == PAGE_VERSION && get32(t + 8) == number &&
	       get32(t + 12) == v->shard;
}

static bool page_good(const struct db_vfs *v, uint32_t number,
		      const uint8_t *page)
{
	return page_whole(v, number, page) &&
	       page_generation(page) == v->generation;
}

/* A database without a table, in WAL mode, as SQLite would have begun it. */
static void page_first(uint8_t *page)
{
	memset(page, 0, PAGE_BYTES);
	memcpy(page, "SQLite format 3", 16);
	page[16] = (uint8_t)(PAGE_BYTES >> 8);
	page[17] = (uint8_t)PAGE_BYTES;
	page[18] = 2; /* Written and read through a WAL. */
	page[19] = 2;
	page[20] = STATE_RESERVE_BYTES;
	page[21] = 64; /* Payload fractions: constants of the format. */
	page[22] = 32;
	page[23] = 32;
	put32_big(page + 28, 1); /* Pages. */
	put32_big(page + 68, DB_APPLICATION_ID);
	page[100] = 0x0d; /* An empty leaf of a table. */
	page[105] = (uint8_t)(TRAILER_AT >> 8);
	page[106] = (uint8_t)TRAILER_AT;
}

/* -------------------------------------------------------------- the mark */

static bool mark_get(const struct db_vfs *v, const uint8_t *block,
		     struct mark *out)
{
	uint32_t state = get32(block + 20);

	if (get32(block + MARK_BYTES - 4) != crc32c(0, block, MARK_BYTES - 4))
		return false;
	if (memcmp(block, mark_magic, sizeof(mark_magic)) != 0)
		return false;
	if (get32(block + 16) != v->shard || get64(block + 24) != v->generation)
		return false;
	if (state != MARK_COPYING && state != MARK_DONE)
		return false;
	out->sequence = get64(block + 8);
	out->state = (enum mark_state)state;
	memcpy(out->salts, block + 32, sizeof(out->salts));
	out->frames = get32(block + 40);
	memcpy(out->sum, block + 44, sizeof(out->sum));
	out->pages = get32(block + 52);
	return true;
}

static enum rc mark_put(struct db_vfs *v, unsigned at)
{
	const struct mark *m = &v->mark;
	uint8_t *block = v->block;

	memset(block, 0, MARK_BYTES);
	memcpy(block, mark_magic, sizeof(mark_magic));
	put64(block + 8, m->sequence);
	put32(block + 16, v->shard);
	put32(block + 20, m->state);
	put64(block + 24, v->generation);
	memcpy(block + 32, m->salts, sizeof(m->salts));
	put32(block + 40, m->frames);
	memcpy(block + 44, m->sum, sizeof(m->sum));
	put32(block + 52, m->pages);
	put32(block + MARK_BYTES - 4, crc32c(0, block, MARK_BYTES - 4));
	return disk_write(v->mark_file, block, MARK_BYTES,
			  (uint64_t)at * MARK_BYTES);
}

/*
 * One sync for two copies: first the block that may not be on the disk yet,
 * while the other one is; then that one, which the next mark's sync, or an
 * earlier write-back, brings there.
 */
static int mark_write(struct db_vfs *v, enum mark_state state)
{
	unsigned first = 1 - v->mark_durable;
	enum rc rc;

	v->mark.sequence++;
	v->mark.state = state;
	rc = mark_put(v, first);
	if (rc == RC_OK)
		rc = disk_sync(v->mark_file);
	if (rc == RC_OK) {
		v->mark_durable = first;
		rc = mark_put(v, 1 - first);
	}
	return rc == RC_OK ? SQLITE_OK : write_fault(v, rc, "marking the WAL");
}

/* ---------------------------------------------------------- the main file */

static bool mark_is_wal(const struct db_vfs *v)
{
	return v->mark.frames == v->committed &&
	       memcmp(v->mark.salts, v->salts, sizeof(v->salts)) == 0;
}

/* Everything that is committed to the WAL is in the synced main file. */
static bool wal_copied(const struct db_vfs *v)
{
	return v->committed == 0 ||
	       (v->mark.state == MARK_DONE && mark_is_wal(v));
}

/* Before the first page of a checkpoint is overwritten. */
static int main_begin(struct db_vfs *v)
{
	if (v->mark.state == MARK_COPYING && mark_is_wal(v))
		return SQLITE_OK;
	/* Frames that a power cut could take must not be asked for later. */
	CHECK(v->wal_synced);
	CHECK(v->wal_header);
	CHECK(v->committed <= v->datas_n);
	if (v->mark.state == MARK_DONE)
		v->mark.pages = v->main_pages;
	memcpy(v->mark.salts, v->salts, sizeof(v->salts));
	memcpy(v->mark.sum, v->sum, sizeof(v->sum));
	v->mark.frames = v->committed;
	return mark_write(v, MARK_COPYING);
}

static int main_put_one(struct db_vfs *v, uint32_t number)
{
	enum rc rc;

	page_stamp(v, number, v->page);
	rc = disk_write(v->main, v->page, PAGE_BYTES,
			(uint64_t)(number - 1) * PAGE_BYTES);
	if (rc != RC_OK)
		return write_fault(v, rc, "a write");
	if (number > v->main_pages)
		v->main_pages = number;
	return SQLITE_OK;
}

/* Pages that SQLite has in the file and never wrote (free ones): each page of
 * the file has a checksum, or a page that was lost would look like them. */
static int main_fill(struct db_vfs *v, uint32_t pages)
{
	int e = SQLITE_OK;

	while (e == SQLITE_OK && v->main_pages < pages) {
		memset(v->page, 0, PAGE_BYTES);
		e = main_put_one(v, v->main_pages + 1);
	}
	return e;
}

static int main_put(struct db_vfs *v, uint32_t number, const uint8_t *page)
{
	int e = main_fill(v, number - 1);

	if (e != SQLITE_OK)
		return e;
	memcpy(v->page, page, PAGE_BYTES);
	return main_put_one(v, number);
}

static int main_resize(struct db_vfs *v, uint32_t pages)
{
	enum rc rc;

	if (pages >= v->main_pages)
		return main_fill(v, pages);
	rc = disk_truncate(v->main, (uint64_t)pages * PAGE_BYTES);
	if (rc != RC_OK)
		return write_fault(v, rc, "truncation");
	v->main_pages = pages;
	return SQLITE_OK;
}

static int main_end(struct db_vfs *v)
{
	enum rc rc = RC_OK;

	if (!MUTANT(checkpoint_unsynced))
		rc = disk_sync(v->main);
	if (rc != RC_OK)
		return write_fault(v, rc, "a sync");
	if (v->mark.state == MARK_DONE)
		return SQLITE_OK;
	return mark_write(v, MARK_DONE);
}

static int main_get(struct db_vfs *v, uint32_t number, uint8_t *page)
{
	size_t got = 0;
	enum rc rc = disk_read(v->main, page, PAGE_BYTES,
			       (uint64_t)(number - 1) * PAGE_BYTES, &got);

	if (rc != RC_OK)
		return fault(v, RC_CORRUPT, "page %u of %s cannot be read: %s",
			     number, v->file, rc_text(rc));
	if (got != PAGE_BYTES)
		return fault(v, RC_CORRUPT, "%s ends in page %u of %u", v->file,
			     number, v->main_pages);
	if (!MUTANT(page_unchecked) && !page_good(v, number, page))
		return fault(v, RC_CORRUPT, "page %u of %s is damaged", number,
			     v->file);
	return SQLITE_OK;
}

/* --------------------------------------------------------------- the WAL */

static uint64_t frame_at(uint32_t frame)
{
	return WAL_HEADER_BYTES + (uint64_t)frame * FRAME_BYTES;
}

static void wal_forget(struct db_vfs *v)
{
	v->wal_header = false;
	v->wal_header_synced = false;
	v->wal_synced = false;
	v->committed = 0;
	v->sealed = 0;
	v->heads_n = 0;
	v->datas_n = 0;
	v->gathered = 0;
}

static uint64_t wal_bytes(const struct db_vfs *v)
{
	if (!v->wal_header)
		return 0;
	return frame_at(v->datas_n) +
	       (v->heads_n > v->datas_n ? FRAME_HEAD_BYTES : 0);
}

static int wal_put(struct db_vfs *v, const void *p, size_t n, uint64_t off)
{
	enum rc rc = disk_write(v->wal, p, n, off);

	v->wal_synced = false;
	return rc == RC_OK ? SQLITE_OK
			   : write_fault(v, rc, "a write to the WAL");
}

static int wal_flush(struct db_vfs *v)
{
	size_t n = v->gathered;

	v->gathered = 0;
	return n > 0 ? wal_put(v, v->gather, n, v->gather_at) : SQLITE_OK;
}

/* SQLite makes two writes of each frame, one behind the other, and a file
 * system's price is by the write. The last page of a transaction takes with it
 * what is gathered, so that a commit is out of this process when it is over. */
static int wal_gather(struct db_vfs *v, const void *p, size_t n, uint64_t off)
{
	int e = SQLITE_OK;

	if (v->gathered + n > GATHER_BYTES || off != v->gather_at + v->gathered)
		e = wal_flush(v);
	if (e != SQLITE_OK)
		return e;
	if (v->gathered == 0)
		v->gather_at = off;
	memcpy(v->gather + v->gathered, p, n);
	v->gathered += n;
	return SQLITE_OK;
}

/* Again: in its place, and behind what was gathered before. */
static int wal_put_again(struct db_vfs *v, const void *p, size_t n,
			 uint64_t off)
{
	int e = wal_flush(v);

	return e == SQLITE_OK ? wal_put(v, p, n, off) : e;
}

static int wal_put_header(struct db_vfs *v, const uint8_t *p)
{
	CHECK(get32_big(p + 8) == PAGE_BYTES);
	/* Its frames would be lost: SQLite begins anew only after it copied
	 * them all. */
	CHECK(wal_copied(v));
	wal_forget(v);
	v->wal_header = true;
	v->wal_header_crc = crc32c(0, p, WAL_HEADER_BYTES);
	memcpy(v->salts, p + 16, sizeof(v->salts));
	return wal_put(v, p, WAL_HEADER_BYTES, 0);
}

static int wal_sync(struct db_vfs *v)
{
	enum rc rc;
	int e = wal_flush(v);

	if (e != SQLITE_OK)
		return e;
	rc = disk_sync(v->wal);
	if (rc != RC_OK)
		return write_fault(v, rc, "a sync of the WAL");
	v->wal_synced = true;
	v->wal_header_synced = v->wal_header;
	return SQLITE_OK;
}

static bool frames_room(struct db_vfs *v, uint32_t frame)
{
	uint32_t cap = v->frames_cap;
	struct frame *wider;

	if (frame < cap)
		return true;
	cap = cap == 0 ? 256 : cap * 2;
	wider = realloc(v->frames, cap * sizeof(*wider));
	if (wider == NULL)
		return false;
	v->frames = wider;
	v->frames_cap = cap;
	return true;
}

static int wal_put_head(struct db_vfs *v, uint32_t frame, const uint8_t *p)
{
	bool again = frame < v->heads_n;
	int e;

	CHECK(frame <= v->heads_n);
	CHECK(frame <= v->datas_n);
	/* A transaction begins behind the last one. Pages that it writes twice
	 * stay where they were: after its last frame it writes the heads of all
	 * its frames again. */
	if (frame == v->committed)
		v->sealed = frame;
	if (frame < v->sealed)
		return fault(v, RC_IO, "frame %u of %s-wal was committed",
			     frame, v->file);
	if (!frames_room(v, frame))
		return SQLITE_IOERR_NOMEM;
	/* An old header in front of new frames would hide them, which is
	 * harmless, but also hide that old frames were cut. */
	if (!v->wal_header_synced) {
		e = wal_sync(v);
		if (e != SQLITE_OK)
			return e;
	}
	v->frames[frame].head = crc32c(0, p, FRAME_HEAD_BYTES);
	if (frame == v->heads_n)
		v->heads_n++;
	e = again ? wal_put_again(v, p, FRAME_HEAD_BYTES, frame_at(frame))
		  : wal_gather(v, p, FRAME_HEAD_BYTES, frame_at(frame));
	if (e == SQLITE_OK && get32_big(p + 4) != 0) {
		v->committed = frame + 1;
		memcpy(v->sum, p + 16, sizeof(v->sum));
	}
	return e;
}

static int wal_put_data(struct db_vfs *v, uint32_t frame, const uint8_t *p)
{
	uint64_t off = frame_at(frame) + FRAME_HEAD_BYTES;
	bool again = frame < v->datas_n;
	int e;

	CHECK(frame < v->heads_n);
	CHECK(frame <= v->datas_n);
	v->frames[frame].data = crc32c(0, p, PAGE_BYTES);
	if (again)
		return wal_put_again(v, p, PAGE_BYTES, off);
	v->datas_n++;
	e = wal_gather(v, p, PAGE_BYTES, off);
	return e == SQLITE_OK && frame + 1 == v->committed ? wal_flush(v) : e;
}

/* One piece of the WAL (its header, a frame's head, a frame's page), whole. */
static int wal_get(struct db_vfs *v, uint8_t *p, size_t n, uint64_t off,
		   uint32_t crc)
{
	size_t got = 0;
	enum rc rc;
	int e = wal_flush(v);

	if (e != SQLITE_OK)
		return e;
	rc = disk_read(v->wal, p, n, off, &got);
	if (rc != RC_OK || got != n)
		return fault(v, RC_CORRUPT, "%s-wal cannot be read at %" PRIu64,
			     v->file, off);
	if (!MUTANT(wal_frame_unchecked) && crc32c(0, p, n) != crc)
		return fault(v, RC_CORRUPT, "%s-wal is damaged at %" PRIu64,
			     v->file, off);
	return SQLITE_OK;
}

static int wal_empty(struct db_vfs *v)
{
	enum rc rc = disk_truncate(v->wal, 0);

	if (rc != RC_OK)
		return write_fault(v, rc, "truncation of the WAL");
	wal_forget(v);
	return SQLITE_OK;
}

/* ------------------------------------------------- SQLite's view of a file */

static struct db_vfs *vfs_of(sqlite3_file *file)
{
	struct db_vfs *v = ((struct db_file *)file)->v;

	CHECK_OBJ(v, DB_VFS_MAGIC);
	return v;
}

static int io_close(sqlite3_file *file)
{
	file->pMethods = NULL;
	return SQLITE_OK;
}

static int main_read(sqlite3_file *file, void *p, int n, sqlite3_int64 off)
{
	struct db_vfs *v = vfs_of(file);
	uint8_t *to = p;
	uint64_t at = (uint64_t)off;
	uint64_t end = at + (uint64_t)n;
	uint64_t last = (uint64_t)v->main_pages * PAGE_BYTES;
	uint32_t number;
	size_t skip;
	size_t take;
	int e;

	if (dead(v))
		return SQLITE_IOERR_READ;
	while (at < end && at < last) {
		number = (uint32_t)(at / PAGE_BYTES) + 1;
		skip = at % PAGE_BYTES;
		take = PAGE_BYTES - skip;
		if (take > end - at)
			take = (size_t)(end - at);
		e = main_get(v, number, take == PAGE_BYTES ? to : v->page);
		if (e != SQLITE_OK)
			return e;
		if (take < PAGE_BYTES)
			memcpy(to, v->page + skip, take);
		to += take;
		at += take;
	}
	if (at == end)
		return SQLITE_OK;
	memset(to, 0, (size_t)(end - at));
	return SQLITE_IOERR_SHORT_READ;
}

static int main_write(sqlite3_file *file, const void *p, int n,
		      sqlite3_int64 off)
{
	struct db_vfs *v = vfs_of(file);
	int e;

	if (dead(v))
		return SQLITE_IOERR_WRITE;
	/* In WAL mode only a checkpoint writes here, whole pages. */
	CHECK(n == PAGE_BYTES);
	CHECK(off % PAGE_BYTES == 0);
	e = main_begin(v);
	if (e != SQLITE_OK)
		return e;
	return main_put(v, (uint32_t)(off / PAGE_BYTES) + 1, p);
}

static int main_truncate(sqlite3_file *file, sqlite3_int64 bytes)
{
	struct db_vfs *v = vfs_of(file);
	uint32_t pages = (uint32_t)(bytes / PAGE_BYTES);
	int e;

	if (dead(v))
		return SQLITE_IOERR_TRUNCATE;
	CHECK(bytes % PAGE_BYTES == 0);
	if (pages == v->main_pages)
		return SQLITE_OK;
	e = main_begin(v);
	return e == SQLITE_OK ? main_resize(v, pages) : e;
}

static int main_sync(sqlite3_file *file, int flags)
{
	struct db_vfs *v = vfs_of(file);

	(void)flags;
	return dead(v) ? SQLITE_IOERR_FSYNC : main_end(v);
}

static int main_size(sqlite3_file *file, sqlite3_int64 *bytes)
{
	*bytes = (sqlite3_int64)vfs_of(file)->main_pages * PAGE_BYTES;
	return SQLITE_OK;
}

/* Where in the WAL `off` lies: the piece that it is in. */
struct piece {
	uint64_t at;
	size_t n;
	uint32_t crc;
	bool known;
};

static struct piece wal_piece(const struct db_vfs *v, uint64_t off)
{
	struct piece p = { 0, WAL_HEADER_BYTES, v->wal_header_crc,
			   v->wal_header };
	uint64_t frame;

	if (off < WAL_HEADER_BYTES)
		return p;
	frame = (off - WAL_HEADER_BYTES) / FRAME_BYTES;
	p.at = WAL_HEADER_BYTES + frame * FRAME_BYTES;
	p.n = FRAME_HEAD_BYTES;
	p.known = frame < v->heads_n;
	if (p.known)
		p.crc = v->frames[frame].head;
	if (off < p.at + FRAME_HEAD_BYTES)
		return p;
	p.at += FRAME_HEAD_BYTES;
	p.n = PAGE_BYTES;
	p.known = frame < v->datas_n;
	if (p.known)
		p.crc = v->frames[frame].data;
	return p;
}

static int wal_read(sqlite3_file *file, void *p, int n, sqlite3_int64 off)
{
	struct db_vfs *v = vfs_of(file);
	uint8_t *to = p;
	uint64_t at = (uint64_t)off;
	uint64_t end = at + (uint64_t)n;
	struct piece piece;
	size_t take;
	bool whole;
	int e;

	if (dead(v))
		return SQLITE_IOERR_READ;
	while (at < end) {
		piece = wal_piece(v, at);
		if (!piece.known) {
			memset(to, 0, (size_t)(end - at));
			return SQLITE_IOERR_SHORT_READ;
		}
		take = piece.n - (size_t)(at - piece.at);
		if (take > end - at)
			take = (size_t)(end - at);
		whole = take == piece.n;
		e = wal_get(v, whole ? to : v->page, piece.n, piece.at,
			    piece.crc);
		if (e != SQLITE_OK)
			return e;
		if (!whole)
			memcpy(to, v->page + (at - piece.at), take);
		to += take;
		at += take;
	}
	return SQLITE_OK;
}

static int wal_write(sqlite3_file *file, const void *p, int n,
		     sqlite3_int64 off)
{
	struct db_vfs *v = vfs_of(file);
	uint64_t in = (uint64_t)off - WAL_HEADER_BYTES;
	uint32_t frame = (uint32_t)(in / FRAME_BYTES);

	if (dead(v))
		return SQLITE_IOERR_WRITE;
	if (off == 0) {
		CHECK(n == WAL_HEADER_BYTES);
		return wal_put_header(v, p);
	}
	CHECK(off >= WAL_HEADER_BYTES);
	if (in % FRAME_BYTES == 0) {
		CHECK(n == FRAME_HEAD_BYTES);
		return wal_put_head(v, frame, p);
	}
	CHECK(in % FRAME_BYTES == FRAME_HEAD_BYTES);
	CHECK(n == PAGE_BYTES);
	return wal_put_data(v, frame, p);
}

static int wal_truncate(sqlite3_file *file, sqlite3_int64 bytes)
{
	struct db_vfs *v = vfs_of(file);

	if (dead(v))
		return SQLITE_IOERR_TRUNCATE;
	CHECK(bytes == 0);
	CHECK(wal_copied(v));
	return wal_empty(v);
}

static int wal_xsync(sqlite3_file *file, int flags)
{
	struct db_vfs *v = vfs_of(file);

	(void)flags;
	return dead(v) ? SQLITE_IOERR_FSYNC : wal_sync(v);
}

static int wal_size(sqlite3_file *file, sqlite3_int64 *bytes)
{
	*bytes = (sqlite3_int64)wal_bytes(vfs_of(file));
	return SQLITE_OK;
}

static int io_lock(sqlite3_file *file, int level)
{
	(void)file;
	(void)level;
	return SQLITE_OK;
}

static int io_reserved(sqlite3_file *file, int *out)
{
	(void)file;
	*out = 0;
	return SQLITE_OK;
}

static int io_control(sqlite3_file *file, int op, void *arg)
{
	(void)file;
	(void)op;
	(void)arg;
	return SQLITE_NOTFOUND;
}

static int io_sector(sqlite3_file *file)
{
	(void)file;
	return PAGE_BYTES;
}

static int io_traits(sqlite3_file *file)
{
	(void)file;
	return 0;
}

static const sqlite3_io_methods main_methods = {
	.iVersion = 1,
	.xClose = io_close,
	.xRead = main_read,
	.xWrite = main_write,
	.xTruncate = main_truncate,
	.xSync = main_sync,
	.xFileSize = main_size,
	.xLock = io_lock,
	.xUnlock = io_lock,
	.xCheckReservedLock = io_reserved,
	.xFileControl = io_control,
	.xSectorSize = io_sector,
	.xDeviceCharacteristics = io_traits,
};

static const sqlite3_io_methods wal_methods = {
	.iVersion = 1,
	.xClose = io_close,
	.xRead = wal_read,
	.xWrite = wal_write,
	.xTruncate = wal_truncate,
	.xSync = wal_xsync,
	.xFileSize = wal_size,
	.xLock = io_lock,
	.xUnlock = io_lock,
	.xCheckReservedLock = io_reserved,
	.xFileControl = io_control,
	.xSectorSize = io_sector,
	.xDeviceCharacteristics = io_traits,
};

/* ------------------------------------------------- SQLite's view of a VFS */

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
		    int flags, int *flags_out)
{
	struct db_vfs *v = vfs->pAppData;
	struct db_file *f = (struct db_file *)file;

	CHECK_OBJ(v, DB_VFS_MAGIC);
	file->pMethods = NULL;
	if ((flags & SQLITE_OPEN_MAIN_DB) != 0 && name != NULL &&
	    strcmp(name, v->file) == 0)
		file->pMethods = &main_methods;
	else if ((flags & SQLITE_OPEN_WAL) != 0)
		file->pMethods = &wal_methods;
	else
		return SQLITE_CANTOPEN;
	f->v = v;
	if (flags_out != NULL)
		*flags_out = flags;
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	(void)vfs;
	(void)name;
	(void)sync_dir;
	return SQLITE_IOERR_DELETE;
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *out)
{
	const struct db_vfs *v = vfs->pAppData;
	size_t n = strlen(v->file);

	(void)flags;
	*out = strncmp(name, v->file, n) == 0 &&
	       (name[n] == '\0' || strcmp(name + n, "-wal") == 0);
	return SQLITE_OK;
}

static int vfs_path(sqlite3_vfs *vfs, const char *name, int n, char *out)
{
	(void)vfs;
	return snprintf(out, (size_t)n, "%s", name) < n ? SQLITE_OK
							: SQLITE_CANTOPEN;
}

static int vfs_random(sqlite3_vfs *vfs, int n, char *out)
{
	/* Only the default VFS is asked. */
	(void)vfs;
	memset(out, 0, (size_t)n);
	return 0;
}

static int vfs_sleep(sqlite3_vfs *vfs, int us)
{
	(void)vfs;
	return us;
}

static int vfs_error(sqlite3_vfs *vfs, int n, char *out)
{
	(void)vfs;
	(void)n;
	(void)out;
	return 0;
}

/* No statement of ours asks for the time: 1970-01-01 as a Julian day. */
static int vfs_time(sqlite3_vfs *vfs, double *out)
{
	(void)vfs;
	*out = 2440587.5;
	return SQLITE_OK;
}

static int vfs_time_ms(sqlite3_vfs *vfs, sqlite3_int64 *out)
{
	(void)vfs;
	*out = 210866760000000;
	return SQLITE_OK;
}

static const sqlite3_vfs vfs_pattern = {
	.iVersion = 2,
	.szOsFile = sizeof(struct db_file),
	.mxPathname = DB_NAME_BYTES,
	.xOpen = vfs_open,
	.xDelete = vfs_delete,
	.xAccess = vfs_access,
	.xFullPathname = vfs_path,
	.xRandomness = vfs_random,
	.xSleep = vfs_sleep,
	.xCurrentTime = vfs_time,
	.xGetLastError = vfs_error,
	.xCurrentTimeInt64 = vfs_time_ms,
};

/* --------------------------------------------------- what a crash has left */

/* A file read from the front to the back, past the page cache: after a failed
 * sync the cache may have bytes that the disk does not have. */
struct stream {
	struct disk_file *f;
	uint8_t *buf;
	uint64_t at; /* Of buf, in the file. */
	size_t n;
	uint64_t bytes; /* The file's. */
};

static enum rc stream_open(struct stream *s, struct disk *disk,
			   const char *name, struct detail *why)
{
	enum rc rc;

	*s = (struct stream){ 0 };
	s->buf = aligned_alloc(DISK_ALIGN, STREAM_BYTES);
	if (s->buf == NULL)
		return RC_NOMEM;
	rc = disk_open(disk, name, DISK_READONLY | DISK_DIRECT, &s->f, why);
	if (rc != RC_OK)
		goto undo_buf;
	rc = disk_size(s->f, &s->bytes);
	if (rc != RC_OK)
		goto undo_open;
	return RC_OK;

undo_open:
	disk_close(s->f);
	s->f = NULL;
undo_buf:
	free(s->buf);
	s->buf = NULL;
	return rc;
}

static void stream_close(struct stream *s)
{
	if (s->f != NULL)
		disk_close(s->f);
	free(s->buf);
	*s = (struct stream){ 0 };
}

/* RC_EOF: the file has fewer bytes. */
static enum rc stream_get(struct stream *s, uint64_t off, void *p, size_t n)
{
	uint8_t *to = p;
	size_t take;
	enum rc rc;

	while (n > 0) {
		if (off < s->at || off >= s->at + s->n) {
			s->n = 0;
			s->at = off - off % DISK_ALIGN;
			rc = disk_read(s->f, s->buf, STREAM_BYTES, s->at,
				       &s->n);
			if (rc != RC_OK)
				return rc;
			if (off >= s->at + s->n)
				return RC_EOF;
		}
		take = (size_t)(s->at + s->n - off);
		if (take > n)
			take = n;
		memcpy(to, s->buf + (off - s->at), take);
		to += take;
		off += take;
		n -= take;
	}
	return RC_OK;
}

/* One frame of a WAL that was left. */
struct old_frame {
	uint32_t page;
	uint32_t frame;
	uint32_t crc;
};

struct old_wal {
	bool header; /* Whole and ours. */
	bool big_endian;
	uint32_t sum[2];
	uint8_t salts[8];
	uint32_t committed;
	uint8_t committed_sum[8]; /* Of the last committed frame. */
	uint8_t marked_sum[8];    /* Of the mark's last frame. */
	uint32_t pages;           /* Of the database after the last commit. */
	struct old_frame *frames;
	uint32_t n;
	uint32_t cap;
};

/* SQLite's WAL checksum over 8-byte steps, from file format, section 4.2. */
static void wal_sum(bool big_endian, uint32_t sum[2], const uint8_t *p,
		    size_t n)
{
	size_t i;

	for (i = 0; i < n; i += 8) {
		if (big_endian) {
			sum[0] += get32_big(p + i) + sum[1];
			sum[1] += get32_big(p + i + 4) + sum[0];
		} else {
			sum[0] += get32(p + i) + sum[1];
			sum[1] += get32(p + i + 4) + sum[0];
		}
	}
}

static bool wal_sum_is(const uint32_t sum[2], const uint8_t *p)
{
	return get32_big(p) == sum[0] && get32_big(p + 4) == sum[1];
}

static enum rc old_header(struct old_wal *w, struct stream *s)
{
	uint8_t head[WAL_HEADER_BYTES];
	enum rc rc = stream_get(s, 0, head, sizeof(head));

	if (rc != RC_OK)
		return rc;
	if ((get32_big(head) & ~1u) != WAL_MAGIC ||
	    get32_big(head + 4) != WAL_VERSION ||
	    get32_big(head + 8) != PAGE_BYTES)
		return RC_EOF;
	w->big_endian = (get32_big(head) & 1u) != 0;
	wal_sum(w->big_endian, w->sum, head, 24);
	if (!wal_sum_is(w->sum, head + 24))
		return RC_EOF;
	memcpy(w->salts, head + 16, sizeof(w->salts));
	w->header = true;
	return RC_OK;
}

/* The next frame; RC_EOF where the good ones end. */
static enum rc old_frame(const struct db_vfs *v, struct old_wal *w,
			 struct stream *s)
{
	uint8_t bytes[FRAME_BYTES];
	struct old_frame *wider;
	uint32_t cap;
	enum rc rc = stream_get(s, frame_at(w->n), bytes, sizeof(bytes));

	if (rc != RC_OK)
		return rc;
	if (memcmp(bytes + 8, w->salts, sizeof(w->salts)) != 0 ||
	    get32_big(bytes) == 0)
		return RC_EOF;
	wal_sum(w->big_endian, w->sum, bytes, 8);
	wal_sum(w->big_endian, w->sum, bytes + FRAME_HEAD_BYTES, PAGE_BYTES);
	if (!wal_sum_is(w->sum, bytes + 16))
		return RC_EOF;
	if (w->n == w->cap) {
		cap = w->cap == 0 ? 256 : w->cap * 2;
		wider = realloc(w->frames, cap * sizeof(*wider));
		if (wider == NULL)
			return RC_NOMEM;
		w->frames = wider;
		w->cap = cap;
	}
	w->frames[w->n] = (struct old_frame){
		.page = get32_big(bytes),
		.frame = w->n,
		.crc = crc32c(0, bytes + FRAME_HEAD_BYTES, PAGE_BYTES),
	};
	w->n++;
	if (w->n == v->mark.frames)
		memcpy(w->marked_sum, bytes + 16, sizeof(w->marked_sum));
	if (get32_big(bytes + 4) != 0) {
		w->committed = w->n;
		w->pages = get32_big(bytes + 4);
		memcpy(w->committed_sum, bytes + 16, sizeof(w->committed_sum));
	}
	return RC_OK;
}

/* What can be had of the WAL; a failed read is damage of that file. */
static enum rc old_scan(const struct db_vfs *v, struct old_wal *w,
			struct stream *s, struct detail *why)
{
	enum rc rc = old_header(w, s);

	while (rc == RC_OK)
		rc = old_frame(v, w, s);
	if (rc == RC_EOF)
		return RC_OK;
	if (rc == RC_NOMEM)
		return rc;
	return detail_set(why, RC_CORRUPT, NULL, "%s-wal cannot be read: %s",
			  v->file, rc_text(rc));
}

/* How many frames have to go into the main file? */
static enum rc old_judge(const struct db_vfs *v, const struct old_wal *w,
			 uint32_t *frames, struct detail *why)
{
	const struct mark *m = &v->mark;
	bool marked = w->header && memcmp(w->salts, m->salts, 8) == 0;
	bool has_all = marked && w->committed >= m->frames &&
		       memcmp(w->marked_sum, m->sum, 8) == 0;

	*frames = w->committed;
	if (m->state == MARK_COPYING && !has_all)
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s-wal lost frames of a checkpoint that was "
				  "under way (%u of %u)",
				  v->file, marked ? w->committed : 0,
				  m->frames);
	if (m->state == MARK_DONE && marked &&
	    (!has_all || w->committed == m->frames))
		*frames = 0; /* The main file has them. */
	return RC_OK;
}

static int by_page(const void *a, const void *b)
{
	const struct old_frame *x = a;
	const struct old_frame *y = b;

	if (x->page != y->page)
		return x->page < y->page ? -1 : 1;
	return (x->frame > y->frame) - (x->frame < y->frame);
}

static int by_frame(const void *a, const void *b)
{
	const struct old_frame *x = a;
	const struct old_frame *y = b;

	return (x->frame > y->frame) - (x->frame < y->frame);
}

/* Keep the newest frame of each page, in the order of the file. */
static void old_newest(struct old_wal *w, uint32_t frames)
{
	uint32_t i;
	uint32_t n = 0;

	qsort(w->frames, frames, sizeof(*w->frames), by_page);
	for (i = 0; i < frames; i++) {
		if (i + 1 < frames &&
		    w->frames[i + 1].page == w->frames[i].page)
			continue;
		if (w->frames[i].page <= w->pages)
			w->frames[n++] = w->frames[i];
	}
	qsort(w->frames, n, sizeof(*w->frames), by_frame);
	w->n = n;
}

static int old_copy(struct db_vfs *v, const struct old_wal *w, struct stream *s)
{
	uint8_t page[PAGE_BYTES];
	uint32_t i;
	enum rc rc;
	int e = SQLITE_OK;

	for (i = 0; e == SQLITE_OK && i < w->n; i++) {
		rc = stream_get(s,
				frame_at(w->frames[i].frame) + FRAME_HEAD_BYTES,
				page, sizeof(page));
		if (rc != RC_OK ||
		    crc32c(0, page, PAGE_BYTES) != w->frames[i].crc)
			return fault(v, RC_CORRUPT, "%s-wal reads differently",
				     v->file);
		e = main_put(v, w->frames[i].page, page);
	}
	return e == SQLITE_OK ? main_resize(v, w->pages) : e;
}

/* A checkpoint of our own, of a WAL that SQLite never sees. */
static int old_fold(struct db_vfs *v, struct old_wal *w, uint32_t frames,
		    struct stream *s)
{
	int e = wal_sync(v);

	if (e != SQLITE_OK)
		return e;
	memcpy(v->mark.salts, w->salts, sizeof(w->salts));
	memcpy(v->mark.sum, w->committed_sum, sizeof(w->committed_sum));
	v->mark.frames = frames;
	v->mark.pages = v->main_pages;
	e = mark_write(v, MARK_COPYING);
	if (e == SQLITE_OK) {
		old_newest(w, frames);
		e = old_copy(v, w, s);
	}
	return e == SQLITE_OK ? main_end(v) : e;
}

static enum rc check_header(struct db_vfs *v, struct detail *why);

/*
 * Before the WAL is laid over it: the main file is as long as it was left. One
 * that was cut would get pages of zeros in place of those it lost, with good
 * checksums.
 */
static enum rc old_main(struct db_vfs *v, const struct old_wal *w,
			struct detail *why)
{
	uint32_t least = v->mark.pages;

	if (v->mark.state == MARK_DONE)
		return check_header(v, why);
	/* The checkpoint may have shortened it. */
	if (least > w->pages)
		least = w->pages;
	if (v->main_pages >= least)
		return RC_OK;
	return detail_set(why, RC_CORRUPT, NULL,
			  "%s has %u pages and should have %u", v->file,
			  v->main_pages, least);
}

static enum rc recover(struct db_vfs *v, const char *wal, struct detail *why)
{
	struct old_wal w = { 0 };
	struct stream s;
	uint32_t frames = 0;
	enum rc rc = stream_open(&s, v->disk, wal, why);
	int e = SQLITE_OK;

	if (rc != RC_OK)
		return rc;
	rc = old_scan(v, &w, &s, why);
	if (rc == RC_OK)
		rc = old_judge(v, &w, &frames, why);
	if (rc == RC_OK && frames > 0)
		rc = old_main(v, &w, why);
	if (rc == RC_OK && frames > 0)
		e = old_fold(v, &w, frames, &s);
	if (rc == RC_OK && e == SQLITE_OK && s.bytes > 0)
		e = wal_empty(v);
	stream_close(&s);
	free(w.frames);
	return e == SQLITE_OK ? rc : db_vfs_fault(v, why);
}

/* ------------------------------------------------------- opening, creating */

static enum rc mark_load(struct db_vfs *v, const char *name, bool *found,
			 struct detail *why)
{
	struct stream s;
	struct mark m[2];
	bool good[2] = { false, false };
	unsigned i;
	enum rc rc = stream_open(&s, v->disk, name, why);

	*found = false;
	if (rc != RC_OK)
		return rc;
	for (i = 0; rc == RC_OK && i < 2; i++) {
		rc = stream_get(&s, (uint64_t)i * MARK_BYTES, v->block,
				MARK_BYTES);
		if (rc == RC_OK)
			good[i] = mark_get(v, v->block, &m[i]);
	}
	stream_close(&s);
	if (rc != RC_OK && rc != RC_EOF)
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s cannot be read: %s", name, rc_text(rc));
	if (!good[0] && !good[1])
		return RC_OK;
	i = good[1] && (!good[0] || m[1].sequence > m[0].sequence) ? 1 : 0;
	v->mark = m[i];
	v->mark_durable = i;
	*found = true;
	return RC_OK;
}

static bool exists(struct disk *d, const char *name, enum rc *rc,
		   struct detail *why)
{
	struct disk_file *f;

	*rc = disk_open(d, name, DISK_READONLY, &f, why);
	if (*rc == RC_OK) {
		disk_close(f);
		return true;
	}
	if (*rc == RC_NOT_FOUND) {
		*rc = RC_OK;
		if (why != NULL)
			*why = (struct detail){ 0 };
	}
	return false;
}

/* A file with `n` bytes of v->page or v->block in front, synced. */
static enum rc create_main(struct db_vfs *v, const char *name,
			   struct detail *why)
{
	struct disk_file *f;
	enum rc rc = disk_open(v->disk, name, DISK_CREATE, &f, why);

	if (rc != RC_OK)
		return rc;
	page_first(v->page);
	page_stamp(v, 1, v->page);
	rc = disk_truncate(f, 0);
	if (rc == RC_OK)
		rc = disk_write(f, v->page, PAGE_BYTES, 0);
	if (rc == RC_OK)
		rc = disk_sync(f);
	disk_close(f);
	return rc;
}

static enum rc create_mark(struct db_vfs *v, const char *name,
			   struct detail *why)
{
	enum rc rc = disk_open(v->disk, name, DISK_CREATE, &v->mark_file, why);

	if (rc != RC_OK)
		return rc;
	v->mark = (struct mark){ .sequence = 1, .state = MARK_DONE };
	v->mark_durable = 0;
	rc = mark_put(v, 0);
	if (rc == RC_OK)
		rc = mark_put(v, 1);
	if (rc == RC_OK)
		rc = disk_sync(v->mark_file);
	disk_close(v->mark_file);
	v->mark_file = NULL;
	return rc;
}

/*
 * The main file appears last, whole, by a rename: whoever finds none finds
 * nothing that ever counted. Everything else is durable before.
 */
static enum rc create(struct db_vfs *v, const char *mark, const char *made,
		      struct detail *why)
{
	enum rc rc = v->disk->ops->mkdir(v->disk, DB_DIR);

	if (rc != RC_OK && rc != RC_EXISTS)
		return detail_set(why, rc, NULL, "the directory %s: %s", DB_DIR,
				  rc_text(rc));
	rc = disk_sync_dir(v->disk, "");
	if (rc == RC_OK)
		rc = create_mark(v, mark, why);
	if (rc == RC_OK)
		rc = create_main(v, made, why);
	if (rc == RC_OK)
		rc = disk_sync_dir(v->disk, DB_DIR);
	if (rc == RC_OK)
		rc = v->disk->ops->rename(v->disk, made, v->file);
	if (rc == RC_OK)
		rc = disk_sync_dir(v->disk, DB_DIR);
	return rc;
}

/* What was read may be in the page cache alone, when a process was killed
 * before its sync. The WAL is about to be emptied on its word: so it is written
 * again and synced first. */
static enum rc mark_settle(struct db_vfs *v, const char *name,
			   struct detail *why)
{
	enum rc rc = mark_put(v, v->mark_durable);

	if (rc == RC_OK)
		rc = disk_sync(v->mark_file);
	if (rc == RC_OK)
		return RC_OK;
	return detail_set(why, rc, NULL, "%s cannot be settled: %s", name,
			  rc_text(rc));
}

static enum rc open_wal(struct db_vfs *v, const char *name, struct detail *why)
{
	struct detail none = { 0 };
	enum rc rc = disk_open(v->disk, name, 0, &v->wal, &none);

	if (rc != RC_NOT_FOUND)
		return rc;
	rc = disk_open(v->disk, name, DISK_CREATE, &v->wal, why);
	if (rc != RC_OK)
		return rc;
	/* A mark may soon ask for the frames in it. */
	if (MUTANT(stage_no_dir_sync))
		return RC_OK;
	return disk_sync_dir(v->disk, DB_DIR);
}

static enum rc open_main(struct db_vfs *v, struct detail *why)
{
	uint64_t bytes;
	enum rc rc = disk_open(v->disk, v->file, 0, &v->main, why);

	if (rc == RC_OK)
		rc = disk_size(v->main, &bytes);
	if (rc != RC_OK)
		return rc;
	if (bytes / PAGE_BYTES > UINT32_MAX)
		return detail_set(why, RC_CORRUPT, NULL, "%s is too long",
				  v->file);
	v->main_pages = (uint32_t)(bytes / PAGE_BYTES);
	if (v->mark.state == MARK_COPYING) {
		/* What lies behind the old end may be torn, or be there only
		 * in the page cache. */
		if (v->main_pages > v->mark.pages)
			v->main_pages = v->mark.pages;
		rc = disk_truncate(v->main,
				   (uint64_t)v->main_pages * PAGE_BYTES);
		if (rc != RC_OK)
			return rc;
	} else if (bytes % PAGE_BYTES != 0) {
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s is not made of whole pages", v->file);
	}
	return RC_OK;
}

/* After recovery the header is what we believe, not what decides. */
static enum rc check_header(struct db_vfs *v, struct detail *why)
{
	uint8_t want[PAGE_BYTES];
	uint8_t page[PAGE_BYTES];

	if (v->main_pages == 0)
		return detail_set(why, RC_CORRUPT, NULL, "%s is empty",
				  v->file);
	if (main_get(v, 1, page) != SQLITE_OK)
		return db_vfs_fault(v, why);
	page_first(want);
	if (memcmp(page, want, 24) != 0 || memcmp(page + 68, want + 68, 4) != 0)
		return detail_set(why, RC_CORRUPT, NULL,
				  "the header of %s is not ours", v->file);
	if (get32_big(page + 28) != v->main_pages)
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s has %u pages and should have %u", v->file,
				  v->main_pages, get32_big(page + 28));
	return RC_OK;
}

static enum rc open_files(struct db_vfs *v, struct detail *why)
{
	char wal[DB_NAME_BYTES];
	char mark[DB_NAME_BYTES];
	char made[DB_NAME_BYTES];
	bool marked = false;
	enum rc rc;

	file_name(v->file, v->shard, v->generation, FILE_MAIN);
	file_name(wal, v->shard, v->generation, FILE_WAL);
	file_name(mark, v->shard, v->generation, FILE_MARK);
	file_name(made, v->shard, v->generation, FILE_MADE);
	if (exists(v->disk, mark, &rc, why))
		rc = mark_load(v, mark, &marked, why);
	if (rc != RC_OK)
		return rc;
	if (!exists(v->disk, v->file, &rc, why)) {
		if (rc != RC_OK)
			return rc;
		if ((marked && v->mark.sequence > 1) ||
		    exists(v->disk, wal, &rc, why))
			return detail_set(why, RC_CORRUPT, NULL,
					  "%s is missing, its WAL is there",
					  v->file);
		if (rc == RC_OK)
			rc = create(v, mark, made, why);
		if (rc != RC_OK)
			return rc;
	} else if (!marked) {
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s is missing or damaged in both copies",
				  mark);
	}
	rc = open_main(v, why);
	if (rc == RC_OK)
		rc = disk_open(v->disk, mark, 0, &v->mark_file, why);
	if (rc == RC_OK)
		rc = mark_settle(v, mark, why);
	if (rc == RC_OK)
		rc = open_wal(v, wal, why);
	if (rc == RC_OK)
		rc = recover(v, wal, why);
	return rc == RC_OK ? check_header(v, why) : rc;
}

static void release(struct db_vfs *v)
{
	if (v->main != NULL)
		disk_close(v->main);
	if (v->wal != NULL)
		disk_close(v->wal);
	if (v->mark_file != NULL)
		disk_close(v->mark_file);
	free(v->frames);
	v->magic = 0;
	free(v);
}

enum rc db_vfs_open(struct disk *disk, uint32_t shard, uint64_t generation,
		    struct db_vfs **out, struct detail *why)
{
	struct db_vfs *v = calloc(1, sizeof(*v));
	enum rc rc;

	*out = NULL;
	if (v == NULL)
		return RC_NOMEM;
	v->magic = DB_VFS_MAGIC;
	v->disk = disk;
	v->shard = shard;
	v->generation = generation;
	rc = open_files(v, why);
	if (rc != RC_OK)
		goto fail;
	/* Its counts of bytes cost a process-wide lock at each allocation, and
	 * nobody reads them. Refused once SQLite runs, as it does then. */
	(void)sqlite3_config(SQLITE_CONFIG_MEMSTATUS, 0);
	(void)snprintf(v->name, sizeof(v->name), "holdfast-%p", (void *)v);
	v->vfs = vfs_pattern;
	v->vfs.zName = v->name;
	v->vfs.pAppData = v;
	if (sqlite3_vfs_register(&v->vfs, 0) != SQLITE_OK) {
		rc = RC_NOMEM;
		goto fail;
	}
	*out = v;
	return RC_OK;

fail:
	(void)detail_set(why, rc, NULL, "%s: %s", v->file, rc_text(rc));
	release(v);
	return rc;
}

void db_vfs_close(struct db_vfs *v)
{
	CHECK_OBJ(v, DB_VFS_MAGIC);
	(void)sqlite3_vfs_unregister(&v->vfs);
	release(v);
}

const char *db_vfs_name(const struct db_vfs *v)
{
	return v->name;
}

const char *db_vfs_file(const struct db_vfs *v)
{
	return v->file;
}

void db_vfs_freeze(struct db_vfs *v)
{
	CHECK_OBJ(v, DB_VFS_MAGIC);
	v->frozen = true;
}

uint32_t db_vfs_frames(const struct db_vfs *v)
{
	return v->committed;
}

bool db_vfs_main_whole(const struct db_vfs *v)
{
	return v->fault == RC_OK && wal_copied(v);
}

/* ------------------------------------------------------------ whole files */

uint64_t db_vfs_main_bytes(const struct db_vfs *v)
{
	return (uint64_t)v->main_pages * PAGE_BYTES;
}

enum rc db_vfs_main_read(struct db_vfs *v, uint64_t off, void *p, size_t n,
			 size_t *got)
{
	uint64_t end = db_vfs_main_bytes(v);
	uint32_t number = (uint32_t)(off / PAGE_BYTES) + 1;
	const uint8_t *page = p;
	size_t left;
	enum rc rc;

	PRE(off % PAGE_BYTES == 0);
	PRE(n % PAGE_BYTES == 0);
	*got = 0;
	if (dead(v))
		return v->fault != RC_OK ? v->fault : RC_IO;
	if (off >= end)
		return RC_OK;
	if (n > end - off)
		n = (size_t)(end - off);
	rc = disk_read(v->main, p, n, off, got);
	if (rc != RC_OK || *got != n) {
		(void)fault(v, RC_CORRUPT, "%s cannot be read at %" PRIu64,
			    v->file, off);
		return v->fault;
	}
	for (left = n; left > 0; left -= PAGE_BYTES) {
		if (!MUTANT(page_unchecked) && !page_good(v, number, page)) {
			(void)fault(v, RC_CORRUPT, "page %u of %s is damaged",
				    number, v->file);
			return v->fault;
		}
		page += PAGE_BYTES;
		number++;
	}
	return RC_OK;
}

enum rc db_vfs_main_verify(struct db_vfs *v, uint32_t first, uint32_t pages,
			   struct detail *why)
{
	struct stream s;
	uint32_t i;
	enum rc rc;

	if (dead(v))
		return db_vfs_fault(v, why);
	rc = stream_open(&s, v->disk, v->file, why);
	if (rc != RC_OK)
		return rc;
	for (i = first; i < v->main_pages && i - first < pages; i++) {
		rc = stream_get(&s, (uint64_t)i * PAGE_BYTES, v->page,
				PAGE_BYTES);
		if (rc != RC_OK || !page_good(v, i + 1, v->page)) {
			(void)fault(v, RC_CORRUPT,
				    "page %u of %s is damaged on the disk",
				    i + 1, v->file);
			break;
		}
	}
	stream_close(&s);
	return db_vfs_fault(v, why);
}

#define LOOK_MAX 16u

struct look {
	uint32_t shard;
	uint64_t generation;
	bool named;
	bool other;
	uint64_t others[LOOK_MAX]; /* Some of them. */
	unsigned n;
};

static void look_at(void *arg, const char *name)
{
	struct look *l = arg;
	uint64_t generation = 0;
	enum file which = file_of(name, l->shard, &generation);

	if (which == FILES)
		return;
	if (generation == l->generation) {
		l->named |= which == FILE_MAIN;
		return;
	}
	l->other |= which == FILE_MAIN;
	if (l->n < LOOK_MAX && (l->n == 0 || l->others[l->n - 1] != generation))
		l->others[l->n++] = generation;
}

static enum rc look(struct disk *disk, uint32_t shard, uint64_t generation,
		    struct look *l, struct detail *why)
{
	enum rc rc;

	*l = (struct look){ .shard = shard, .generation = generation };
	rc = disk_list(disk, DB_DIR, look_at, l);
	if (rc == RC_NOT_FOUND)
		rc = RC_OK;
	if (rc != RC_OK)
		(void)detail_set(why, rc, NULL, "the directory %s: %s", DB_DIR,
				 rc_text(rc));
	return rc;
}

enum rc db_vfs_look(struct disk *disk, uint32_t shard, uint64_t generation,
		    bool *named, bool *other, struct detail *why)
{
	struct look l;
	enum rc rc = look(disk, shard, generation, &l, why);

	*named = l.named;
	*other = l.other;
	return rc;
}

enum rc db_vfs_keep_only(struct disk *disk, uint32_t shard, uint64_t generation,
			 struct detail *why)
{
	struct look l;
	unsigned i;
	enum rc rc;

	do {
		rc = look(disk, shard, generation, &l, why);
		for (i = 0; rc == RC_OK && i < l.n; i++)
			rc = db_vfs_remove(disk, shard, l.others[i], why);
	} while (rc == RC_OK && l.n > 0);
	return rc;
}

/* The main file goes first: without it the others mean nothing. */
enum rc db_vfs_remove(struct disk *disk, uint32_t shard, uint64_t generation,
		      struct detail *why)
{
	char name[DB_NAME_BYTES];
	unsigned which;
	enum rc rc = RC_OK;

	for (which = FILE_MAIN; which < FILES; which++) {
		file_name(name, shard, generation, (enum file)which);
		rc = disk_unlink(disk, name);
		if (rc == RC_NOT_FOUND)
			rc = RC_OK;
		if (rc != RC_OK)
			break;
	}
	if (rc != RC_OK)
		(void)detail_set(why, rc, NULL, "%s cannot be deleted: %s",
				 name, rc_text(rc));
	return rc;
}

/* Written and not yet synced, at most: the end's sync is a short one. */
#define STAGE_UNSYNCED_MAX (8u << 20)

struct db_vfs_stage {
	struct db_vfs *v; /* Only names, numbers and `main` are used. */
	bool begun;
	uint64_t source; /* The generation that its pages had. */
	uint64_t at;
	uint64_t unsynced;
};

static enum rc stage_failed(const struct db_vfs_stage *st, enum rc rc,
			    const char *what, struct detail *why)
{
	return detail_set(why, rc, NULL, "%s of %s failed: %s", what,
			  st->v->file, rc_text(rc));
}

/* What is left over of that generation could be a WAL, which would be laid over
 * the new file. */
static enum rc stage_clear(struct db_vfs_stage *st, struct detail *why)
{
	struct db_vfs *v = st->v;
	enum rc rc = disk_mkdir(v->disk, DB_DIR);

	if (rc == RC_OK)
		rc = disk_sync_dir(v->disk, "");
	if (rc != RC_OK && rc != RC_EXISTS)
		return stage_failed(st, rc, "the directory", why);
	rc = db_vfs_remove(v->disk, v->shard, v->generation, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_sync_dir(v->disk, DB_DIR);
	return rc == RC_OK ? rc : stage_failed(st, rc, "a deletion", why);
}

enum rc db_vfs_stage_new(struct disk *disk, uint32_t shard, uint64_t generation,
			 struct db_vfs_stage **out, struct detail *why)
{
	struct db_vfs_stage *st = calloc(1, sizeof(*st));
	struct db_vfs *v = calloc(1, sizeof(*v));
	enum rc rc;

	*out = NULL;
	if (st == NULL || v == NULL) {
		free(st);
		free(v);
		return detail_set(why, RC_NOMEM, NULL, "%s", rc_text(RC_NOMEM));
	}
	v->magic = DB_VFS_MAGIC;
	v->disk = disk;
	v->shard = shard;
	v->generation = generation;
	file_name(v->file, shard, generation, FILE_MAIN);
	st->v = v;
	rc = stage_clear(st, why);
	if (rc == RC_OK)
		rc = disk_open(disk, v->file, DISK_CREATE | DISK_EXCL, &v->main,
			       why);
	if (rc != RC_OK) {
		v->main = NULL;
		db_vfs_stage_free(st);
		return rc;
	}
	*out = st;
	return RC_OK;
}

/* Pages of one file, in their order; from here on they are ours. */
static enum rc stage_stamp(struct db_vfs_stage *st, uint8_t *p, size_t n,
			   struct detail *why)
{
	uint32_t number = (uint32_t)(st->at / PAGE_BYTES) + 1;
	uint8_t *page = p;

	for (; n > 0; n -= PAGE_BYTES) {
		if (!st->begun)
			st->source = page_generation(page);
		st->begun = true;
		if (!MUTANT(stage_unverified) &&
		    (!page_whole(st->v, number, page) ||
		     page_generation(page) != st->source))
			return detail_set(why, RC_CORRUPT, NULL,
					  "page %u for %s came damaged", number,
					  st->v->file);
		page_stamp(st->v, number, page);
		page += PAGE_BYTES;
		number++;
	}
	return RC_OK;
}

enum rc db_vfs_stage_write(struct db_vfs_stage *st, uint64_t off, uint8_t *p,
			   size_t n, struct detail *why)
{
	enum rc rc;

	if (off != st->at || n == 0 || n % PAGE_BYTES != 0 ||
	    (off + n) / PAGE_BYTES > UINT32_MAX)
		return detail_set(why, RC_CORRUPT, NULL,
				  "a piece of %zu bytes at %" PRIu64
				  " for %s: expected pages at %" PRIu64,
				  n, off, st->v->file, st->at);
	rc = stage_stamp(st, p, n, why);
	if (rc != RC_OK)
		return rc;
	rc = disk_write(st->v->main, p, n, off);
	if (rc != RC_OK)
		return stage_failed(st, rc, "a write", why);
	st->at += n;
	st->unsynced += n;
	if (st->unsynced < STAGE_UNSYNCED_MAX)
		return RC_OK;
	st->unsynced = 0;
	rc = disk_sync(st->v->main);
	return rc == RC_OK ? rc : stage_failed(st, rc, "a sync", why);
}

enum rc db_vfs_stage_end(struct db_vfs_stage *st, uint64_t bytes,
			 struct detail *why)
{
	struct db_vfs *v = st->v;
	char mark[DB_NAME_BYTES];
	enum rc rc;

	if (st->at != bytes || bytes == 0)
		return detail_set(why, RC_CORRUPT, NULL,
				  "%s has %" PRIu64 " bytes of %" PRIu64,
				  v->file, st->at, bytes);
	rc = disk_sync(v->main);
	if (rc != RC_OK)
		return stage_failed(st, rc, "a sync", why);
	file_name(mark, v->shard, v->generation, FILE_MARK);
	rc = create_mark(v, mark, why);
	if (rc == RC_OK && !MUTANT(stage_no_dir_sync))
		rc = disk_sync_dir(v->disk, DB_DIR);
	return rc == RC_OK ? rc : stage_failed(st, rc, "the mark", why);
}

void db_vfs_stage_free(struct db_vfs_stage *st)
{
	release(st->v);
	free(st);
}

/* --------------------------------------------------------- the simulator's */

#ifdef HOLDFAST_TESTING
struct seed {
	sqlite3_vfs vfs;
	void (*random)(void *arg, void *out, size_t n);
	void *arg;
};

static int seed_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file,
		     int flags, int *flags_out)
{
	(void)vfs;
	(void)name;
	(void)flags;
	(void)flags_out;
	file->pMethods = NULL;
	return SQLITE_CANTOPEN;
}

static int seed_random(sqlite3_vfs *vfs, int n, char *out)
{
	struct seed *s = vfs->pAppData;

	s->random(s->arg, out, (size_t)n);
	return n;
}

void db_vfs_seed(void (*random)(void *arg, void *out, size_t n), void *arg)
{
	static struct seed s;

	s.random = random;
	s.arg = arg;
	/* SQLite's list goes through it when it is there already. */
	(void)sqlite3_vfs_unregister(&s.vfs);
	s.vfs = vfs_pattern;
	s.vfs.zName = "holdfast-seed";
	s.vfs.pAppData = &s;
	s.vfs.xOpen = seed_open;
	s.vfs.xRandomness = seed_random;
	CHECK(sqlite3_vfs_register(&s.vfs, 1) == SQLITE_OK);
	sqlite3_randomness(0, NULL);
}
#endif
