#include "objects/db_vfs.h"

#include <sqlite3.h>

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define MAIN "state/03-00000007.db"
#define WAL  "state/03-00000007.db-wal"
#define MARK "state/03-00000007.wal-mark"
#define PAGE STATE_PAGE_BYTES

static struct world *world;

static void random_of_world(void *arg, void *out, size_t n)
{
	uint8_t *p = out;

	while (n-- > 0)
		*p++ = (uint8_t)world_random(arg, 256);
}

static void new_world(uint64_t seed)
{
	if (world != NULL)
		world_free(world);
	world = world_new(seed);
	db_vfs_seed(random_of_world, world);
}

static void end_world(void)
{
	world_free(world);
	world = NULL;
}

/* ------------------------------------------------- a database by itself */

struct conn {
	struct db_vfs *vfs;
	sqlite3 *db;
};

static const char pragmas[] = "PRAGMA locking_mode=EXCLUSIVE;"
			      "PRAGMA journal_mode=WAL;"
			      "PRAGMA synchronous=NORMAL;"
			      "PRAGMA wal_autocheckpoint=0;"
			      "PRAGMA temp_store=MEMORY;";

static int run(struct conn *c, const char *sql)
{
	return sqlite3_exec(c->db, sql, NULL, NULL, NULL);
}

static enum rc open_vfs(struct conn *c, struct detail *why)
{
	return db_vfs_open(world_disk(world, 0), 3, 7, &c->vfs, why);
}

static enum rc open_conn(struct conn *c, struct detail *why)
{
	enum rc rc = open_vfs(c, why);

	c->db = NULL;
	if (rc != RC_OK)
		return rc;
	EXPECT_INT(sqlite3_open_v2(db_vfs_file(c->vfs), &c->db,
				   SQLITE_OPEN_READWRITE, db_vfs_name(c->vfs)),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_db_config(c->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1,
				     (int *)NULL),
		   SQLITE_OK);
	if (run(c, pragmas) != SQLITE_OK)
		return db_vfs_fault(c->vfs, why);
	return RC_OK;
}

static void close_conn(struct conn *c)
{
	if (c->db != NULL)
		EXPECT_INT(sqlite3_close(c->db), SQLITE_OK);
	db_vfs_close(c->vfs);
}

static void must_open(struct conn *c)
{
	struct detail why = { 0 };
	enum rc rc = open_conn(c, &why);

	if (rc != RC_OK)
		FAIL("open: %s: %s", rc_name(rc), why.text);
}

static int checkpoint(struct conn *c)
{
	return sqlite3_wal_checkpoint_v2(
		c->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
}

/* The first column of the first row; -1 when that fails. */
static int64_t ask(struct conn *c, const char *sql)
{
	sqlite3_stmt *s = NULL;
	int64_t v = -1;

	if (sqlite3_prepare_v2(c->db, sql, -1, &s, NULL) == SQLITE_OK &&
	    sqlite3_step(s) == SQLITE_ROW)
		v = sqlite3_column_int64(s, 0);
	(void)sqlite3_finalize(s);
	return v;
}

static uint64_t file_bytes(const char *name)
{
	size_t n = 0;
	uint8_t *p = world_file(world, 0, name, false, &n);

	EXPECT_NOT_NULL(p);
	free(p);
	return n;
}

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

/* Every page of the main file carries what db_vfs.c says. */
static void expect_stamps(void)
{
	size_t n = 0;
	uint8_t *p = world_file(world, 0, MAIN, false, &n);
	size_t i;

	EXPECT_TRUE(n > 0 && n % PAGE == 0);
	for (i = 0; i < n / PAGE; i++) {
		const uint8_t *page = p + i * PAGE;
		const uint8_t *t = page + PAGE - STATE_RESERVE_BYTES;

		runner_context("page %zu", i + 1);
		EXPECT_MEM(t, "HFpg\1\0\0\0", 8);
		EXPECT_UINT(get32(t + 8), i + 1);
		EXPECT_UINT(get32(t + 12), 3);
		EXPECT_UINT(get32(t + 16), 7);
		EXPECT_UINT(get32(t + 28), crc32c(0, page, PAGE - 4));
	}
	runner_context("%s", "");
	free(p);
}

/* Overwrites a part of a file, with a new stamp when it is of the main file. */
static void patch(const char *name, uint64_t off, const void *p, size_t n)
{
	struct disk *d = world_disk(world, 0);
	struct disk_file *f;
	uint8_t page[PAGE];
	size_t got;

	EXPECT_RC(disk_open(d, name, 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_write(f, p, n, off), RC_OK);
	if (strcmp(name, MAIN) == 0) {
		off -= off % PAGE;
		EXPECT_RC(disk_read(f, page, PAGE, off, &got), RC_OK);
		put32(page + PAGE - 4, crc32c(0, page, PAGE - 4));
		EXPECT_RC(disk_write(f, page, PAGE, off), RC_OK);
	}
	disk_close(f);
}

static enum rc opens_with(const char *part)
{
	struct conn c;
	struct detail why = { 0 };
	enum rc rc = open_conn(&c, &why);

	if (rc == RC_OK)
		close_conn(&c);
	else if (part != NULL)
		EXPECT_HAS(why.text, part);
	return rc;
}

/* ----------------------------------------------------------------- tests */

TEST(new_file)
{
	struct conn c;

	new_world(1);
	must_open(&c);
	EXPECT_STR(db_vfs_file(c.vfs), MAIN);
	EXPECT_INT(ask(&c, "PRAGMA page_size"), PAGE);
	EXPECT_INT(ask(&c, "PRAGMA application_id"), DB_APPLICATION_ID);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM sqlite_schema"), 0);
	EXPECT_TRUE(db_vfs_main_whole(c.vfs));
	close_conn(&c);
	EXPECT_UINT(file_bytes(MAIN), PAGE);
	EXPECT_UINT(file_bytes(WAL), 0);
	EXPECT_UINT(file_bytes(MARK), 8192);
	expect_stamps();
	end_world();
}

static void fill(struct conn *c, int rows)
{
	char sql[200];

	EXPECT_INT(run(c, "CREATE TABLE t(k INTEGER PRIMARY KEY, v)"),
		   SQLITE_OK);
	(void)snprintf(sql, sizeof(sql),
		       "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1"
		       " FROM n WHERE i < %d) INSERT INTO t SELECT i,"
		       " hex(zeroblob(200)) || i FROM n",
		       rows);
	EXPECT_INT(run(c, sql), SQLITE_OK);
}

TEST(a_left_wal_is_folded_in)
{
	struct conn c;

	new_world(2);
	must_open(&c);
	fill(&c, 100);
	EXPECT_TRUE(db_vfs_frames(c.vfs) > 10);
	EXPECT_FALSE(db_vfs_main_whole(c.vfs));
	close_conn(&c);
	EXPECT_UINT(file_bytes(MAIN), PAGE);
	must_open(&c);
	EXPECT_UINT(db_vfs_frames(c.vfs), 0);
	EXPECT_TRUE(db_vfs_main_whole(c.vfs));
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 100);
	EXPECT_INT(ask(&c, "SELECT v LIKE '%100' FROM t WHERE k = 100"), 1);
	close_conn(&c);
	EXPECT_UINT(file_bytes(WAL), 0);
	EXPECT_TRUE(file_bytes(MAIN) > 10 * PAGE);
	expect_stamps();
	end_world();
}

TEST(checkpoint_stamps_and_empties)
{
	struct conn c;
	uint64_t syncs;

	new_world(3);
	must_open(&c);
	fill(&c, 500);
	syncs = world_count(world, 0, WORLD_SYNC);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	/* WAL, mark, main file, mark. */
	EXPECT_UINT(world_count(world, 0, WORLD_SYNC) - syncs, 4);
	EXPECT_TRUE(db_vfs_main_whole(c.vfs));
	EXPECT_UINT(file_bytes(WAL), 0);
	expect_stamps();
	/* The file shrinks and grows, with free pages in it. */
	EXPECT_INT(run(&c, "DELETE FROM t WHERE k > 20"), SQLITE_OK);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	expect_stamps();
	EXPECT_INT(run(&c, "VACUUM"), SQLITE_OK);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	expect_stamps();
	EXPECT_INT(run(&c, "BEGIN; CREATE TABLE u(a, b);"
			   "INSERT INTO u SELECT k, zeroblob(9000) FROM t;"
			   "DELETE FROM u; DROP TABLE u; COMMIT"),
		   SQLITE_OK);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	expect_stamps();
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 20);
	close_conn(&c);
	must_open(&c);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 20);
	close_conn(&c);
	end_world();
}

/* Transactions larger than SQLite's cache go to the WAL in pieces, pages twice,
 * and come back from there. */
TEST(spills_and_rollbacks)
{
	struct conn c;
	int i;

	new_world(4);
	must_open(&c);
	EXPECT_INT(run(&c, "PRAGMA cache_size=10"), SQLITE_OK);
	fill(&c, 1000);
	for (i = 0; i < 5; i++) {
		EXPECT_INT(run(&c, "BEGIN; UPDATE t SET v = v || 'x';"
				   "SAVEPOINT s;"
				   "UPDATE t SET v = v || 'y'; ROLLBACK TO s;"
				   "UPDATE t SET v = v || 'z' WHERE k % 3 = 0;"
				   "COMMIT"),
			   SQLITE_OK);
		EXPECT_INT(run(&c, "BEGIN; DELETE FROM t; ROLLBACK"),
			   SQLITE_OK);
	}
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t WHERE v LIKE '%xxxxx'"),
		   667);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t WHERE v LIKE '%xzxzxz'"),
		   333);
	EXPECT_RC(db_vfs_fault(c.vfs, NULL), RC_OK);
	close_conn(&c);
	must_open(&c);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t WHERE v LIKE '%xxxxx'"),
		   667);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM pragma_integrity_check"
			   " WHERE integrity_check = 'ok'"),
		   1);
	close_conn(&c);
	expect_stamps();
	end_world();
}

static void copy_out(const char *name, const char *to)
{
	size_t n = 0;
	uint8_t *p = world_file(world, 0, name, false, &n);
	FILE *f = fopen(to, "wb");

	EXPECT_NOT_NULL(f);
	EXPECT_UINT(fwrite(p, 1, n, f), n);
	EXPECT_INT(fclose(f), 0);
	free(p);
}

/* What the program `sqlite3' does with a stopped node's file. */
TEST(plain_sqlite_reads_it)
{
	struct conn c;
	char path[300];
	char wal[310];

	new_world(5);
	must_open(&c);
	fill(&c, 300);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	(void)snprintf(path, sizeof(path), "%s/state.db", runner_dir());
	(void)snprintf(wal, sizeof(wal), "%s-wal", path);
	copy_out(MAIN, path);
	copy_out(WAL, wal);
	c = (struct conn){ 0 };
	EXPECT_INT(sqlite3_open_v2(path, &c.db, SQLITE_OPEN_READWRITE, "unix"),
		   SQLITE_OK);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 300);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM pragma_integrity_check"
			   " WHERE integrity_check = 'ok'"),
		   1);
	EXPECT_INT(sqlite3_close(c.db), SQLITE_OK);
	end_world();
}

/* The process or the machine ends at every change that creation makes. */
static void creation_crash(bool power)
{
	struct conn c;
	uint64_t n;
	bool crashed;

	for (n = 1;; n++) {
		new_world(n);
		world_fault(world, 0,
			    &(struct world_fault){ .kind = WORLD_CRASH_BEFORE,
						   .op = WORLD_CHANGE,
						   .nth = n });
		if (open_vfs(&c, NULL) == RC_OK)
			db_vfs_close(c.vfs);
		crashed = world_crashed(world, 0);
		world_faults_clear(world, 0);
		if (power)
			world_power_cut(world, 0);
		else
			world_kill(world, 0);
		runner_context("change %d", (int)n);
		must_open(&c);
		EXPECT_INT(run(&c, "CREATE TABLE t(k)"), SQLITE_OK);
		close_conn(&c);
		if (!crashed)
			break;
	}
	EXPECT_TRUE(n > 10);
	end_world();
}

TEST(creation_and_power_cuts)
{
	creation_crash(true);
}

TEST(creation_and_kills)
{
	creation_crash(false);
}

TEST(creation_and_failures)
{
	struct conn c;
	uint64_t n;
	enum rc rc;

	for (n = 1;; n++) {
		new_world(n);
		world_fault(world, 0,
			    &(struct world_fault){ .kind = WORLD_EIO,
						   .op = WORLD_CHANGE,
						   .nth = n });
		rc = open_vfs(&c, NULL);
		if (rc == RC_OK)
			db_vfs_close(c.vfs);
		runner_context("change %d", (int)n);
		if (world_faults_fired(world, 0) == 0)
			break;
		EXPECT_RC(rc, RC_IO);
		world_kill(world, 0);
		must_open(&c);
		close_conn(&c);
	}
	end_world();
}

static void remove_file(const char *name)
{
	struct disk *d = world_disk(world, 0);

	EXPECT_RC(d->ops->unlink(d, name), RC_OK);
}

TEST(missing_files)
{
	struct conn c;

	new_world(7);
	must_open(&c);
	fill(&c, 10);
	close_conn(&c);
	remove_file(MAIN);
	EXPECT_RC(opens_with("missing"), RC_CORRUPT);

	new_world(7);
	must_open(&c);
	fill(&c, 10);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	remove_file(MARK);
	EXPECT_RC(opens_with("missing"), RC_CORRUPT);

	/* Without a WAL, and without frames, the main file is all. */
	new_world(7);
	must_open(&c);
	fill(&c, 10);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	remove_file(WAL);
	must_open(&c);
	EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 10);
	close_conn(&c);
	remove_file(WAL);
	remove_file(MAIN);
	EXPECT_RC(opens_with("missing"), RC_CORRUPT);
	end_world();
}

TEST(the_header_is_checked_not_believed)
{
	static const uint8_t page_1024[2] = { 4, 0 };
	static const uint8_t rollback_journal[2] = { 1, 1 };
	static const uint8_t no_reserve[1] = { 0 };
	static const uint8_t other_id[4] = { 1, 2, 3, 4 };
	static const uint8_t more_pages[4] = { 0, 0, 0, 99 };
	static const struct {
		uint64_t off;
		const uint8_t *p;
		size_t n;
	} lies[] = {
		{ 16, page_1024, 2 },  { 18, rollback_journal, 2 },
		{ 20, no_reserve, 1 }, { 68, other_id, 4 },
		{ 28, more_pages, 4 },
	};
	struct conn c;
	size_t i;

	for (i = 0; i < sizeof(lies) / sizeof(lies[0]); i++) {
		new_world(8);
		must_open(&c);
		close_conn(&c);
		patch(MAIN, lies[i].off, lies[i].p, lies[i].n);
		runner_context("byte %d", (int)lies[i].off);
		EXPECT_RC(opens_with(MAIN), RC_CORRUPT);
	}
	end_world();
}

TEST(another_files_page)
{
	struct conn c;
	struct db_vfs *v;
	size_t n = 0;
	uint8_t *p;
	struct detail why = { 0 };

	new_world(9);
	EXPECT_RC(db_vfs_open(world_disk(world, 0), 4, 7, &v, NULL), RC_OK);
	db_vfs_close(v);
	must_open(&c);
	close_conn(&c);
	p = world_file(world, 0, "state/04-00000007.db", false, &n);
	patch(MAIN, 0, p, n);
	free(p);
	EXPECT_RC(open_conn(&c, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "page 1");
	end_world();
}

TEST(cut_main_file)
{
	struct disk *d;
	struct disk_file *f;
	struct conn c;

	new_world(10);
	must_open(&c);
	fill(&c, 200);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	d = world_disk(world, 0);
	EXPECT_RC(disk_open(d, MAIN, 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_truncate(f, file_bytes(MAIN) - 100), RC_OK);
	EXPECT_RC(opens_with("whole pages"), RC_CORRUPT);
	EXPECT_RC(disk_truncate(f, file_bytes(MAIN) / PAGE * PAGE), RC_OK);
	EXPECT_RC(opens_with("should have"), RC_CORRUPT);
	EXPECT_RC(disk_truncate(f, 0), RC_OK);
	EXPECT_RC(opens_with("empty"), RC_CORRUPT);
	disk_close(f);
	end_world();
}

/* Under the feet of an open database. */
static void cut_main(uint64_t bytes)
{
	struct disk_file *f;

	EXPECT_RC(disk_open(world_disk(world, 0), MAIN, 0, &f, NULL), RC_OK);
	EXPECT_RC(disk_truncate(f, bytes), RC_OK);
	disk_close(f);
}

/* A WAL that is laid over a main file which lost its last pages: they must not
 * come back as zeros with a good checksum. */
TEST(cut_main_file_under_a_wal)
{
	static const char blob[] =
		"CREATE TABLE t(k INTEGER PRIMARY KEY, v);"
		"INSERT INTO t VALUES(1, hex(randomblob(20000)))";
	struct conn c;
	bool crashed;
	uint64_t n;

	for (n = 0;; n++) {
		new_world(24);
		must_open(&c);
		EXPECT_INT(run(&c, blob), SQLITE_OK);
		EXPECT_INT(checkpoint(&c), SQLITE_OK);
		EXPECT_INT(run(&c, "INSERT INTO t VALUES(2, 'x')"), SQLITE_OK);
		crashed = n == 0; /* The first time without a checkpoint. */
		if (n > 0) {
			world_fault(world, 0,
				    &(struct world_fault){
					    .kind = WORLD_CRASH_AFTER,
					    .op = WORLD_CHANGE,
					    .nth = n });
			crashed = checkpoint(&c) != SQLITE_OK;
		}
		close_conn(&c);
		world_power_cut(world, 0);
		if (!crashed)
			break;
		runner_context("crash after change %d", (int)n);
		cut_main(file_bytes(MAIN) - PAGE);
		EXPECT_RC(opens_with("should have"), RC_CORRUPT);
	}
	EXPECT_TRUE(n > 4);
	end_world();
}

TEST(a_damaged_page_is_found_when_it_is_read)
{
	struct conn c;
	struct detail why = { 0 };
	uint64_t changes;

	new_world(11);
	must_open(&c);
	fill(&c, 500);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	must_open(&c);
	EXPECT_RC(world_flip(world, 0, MAIN, 5 * PAGE + 1234, 3), RC_OK);
	EXPECT_INT(ask(&c, "SELECT sum(length(v)) FROM t"), -1);
	EXPECT_RC(db_vfs_fault(c.vfs, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "page 6 of " MAIN);
	/* From then on nothing is written. */
	changes = world_count(world, 0, WORLD_CHANGE);
	EXPECT_TRUE(run(&c, "INSERT INTO t VALUES(9999, 1)") != SQLITE_OK);
	EXPECT_TRUE(checkpoint(&c) != SQLITE_OK);
	EXPECT_UINT(world_count(world, 0, WORLD_CHANGE), changes);
	close_conn(&c);
	end_world();
}

TEST(mutant_page_unchecked)
{
	struct conn c;

	new_world(11);
	must_open(&c);
	fill(&c, 500);
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	close_conn(&c);
	must_open(&c);
	EXPECT_RC(world_flip(world, 0, MAIN, 5 * PAGE + 1234, 3), RC_OK);
	mutant_now = MUTANT_page_unchecked;
	EXPECT_TRUE(ask(&c, "SELECT sum(length(v)) FROM t") > 0);
	mutant_now = MUTANT_none;
	EXPECT_RC(db_vfs_fault(c.vfs, NULL), RC_OK);
	close_conn(&c);
	end_world();
}

static void flip_in_wal(struct conn *c)
{
	uint64_t at = 32 + 8 * (24 + PAGE) + 24 + 1500;

	must_open(c);
	fill(c, 500);
	EXPECT_TRUE(db_vfs_frames(c->vfs) > 8);
	EXPECT_RC(world_flip(world, 0, WAL, at, 5), RC_OK);
	EXPECT_INT(sqlite3_db_release_memory(c->db), SQLITE_OK);
}

TEST(a_damaged_frame_is_found_when_it_is_read)
{
	struct conn c;
	struct detail why = { 0 };

	new_world(12);
	flip_in_wal(&c);
	EXPECT_INT(ask(&c, "SELECT sum(length(v)) FROM t"), -1);
	EXPECT_RC(db_vfs_fault(c.vfs, &why), RC_CORRUPT);
	EXPECT_HAS(why.text, "-wal is damaged");
	close_conn(&c);
	end_world();
}

TEST(a_damaged_frame_is_not_checkpointed)
{
	struct conn c;

	new_world(12);
	flip_in_wal(&c);
	EXPECT_TRUE(checkpoint(&c) != SQLITE_OK);
	EXPECT_RC(db_vfs_fault(c.vfs, NULL), RC_CORRUPT);
	EXPECT_FALSE(db_vfs_main_whole(c.vfs));
	close_conn(&c);
	end_world();
}

TEST(mutant_wal_frame_unchecked)
{
	struct conn c;

	new_world(12);
	flip_in_wal(&c);
	mutant_now = MUTANT_wal_frame_unchecked;
	EXPECT_INT(checkpoint(&c), SQLITE_OK);
	mutant_now = MUTANT_none;
	EXPECT_RC(db_vfs_fault(c.vfs, NULL), RC_OK);
	close_conn(&c);
	end_world();
}

/* A page of the checkpoint goes to another page's place. */
TEST(a_misdirected_page_is_found)
{
	struct conn c;
	uint64_t seed;
	unsigned found = 0;

	for (seed = 1; seed <= 20; seed++) {
		new_world(seed);
		must_open(&c);
		fill(&c, 500);
		world_fault(world, 0,
			    &(struct world_fault){ .kind = WORLD_MISDIRECTED,
						   .op = WORLD_WRITE,
						   .nth = 1 + seed,
						   .prefix = MAIN });
		(void)checkpoint(&c);
		close_conn(&c);
		world_drop_caches(world, 0);
		if (open_conn(&c, NULL) != RC_OK) {
			found++;
			continue;
		}
		if (ask(&c, "SELECT sum(length(v)) FROM t") < 0)
			found++;
		close_conn(&c);
	}
	EXPECT_UINT(found, 20);
	end_world();
}

TEST(failed_reads_are_damage_failed_writes_the_end)
{
	static const struct {
		enum world_fault_kind kind;
		enum world_op op;
		enum rc rc;
	} faults[] = {
		{ WORLD_EIO, WORLD_READ, RC_CORRUPT },
		{ WORLD_BAD_READ, WORLD_READ, RC_CORRUPT },
		{ WORLD_EIO, WORLD_WRITE, RC_IO },
		{ WORLD_SHORT, WORLD_WRITE, RC_IO },
		{ WORLD_NO_SPACE, WORLD_WRITE, RC_NO_SPACE },
		{ WORLD_EIO, WORLD_SYNC, RC_IO },
		{ WORLD_EIO, WORLD_TRUNCATE, RC_IO },
	};
	struct conn c;
	struct world_fault f;
	size_t i;
	uint64_t n;
	uint64_t changes;
	int e;

	for (i = 0; i < sizeof(faults) / sizeof(faults[0]); i++) {
		for (n = 1;; n += 1 + n / 4) {
			runner_context("fault %zu at %d", i, (int)n);
			new_world(n);
			must_open(&c);
			fill(&c, 200);
			EXPECT_INT(checkpoint(&c), SQLITE_OK);
			EXPECT_INT(run(&c, "PRAGMA cache_size=5"), SQLITE_OK);
			f = (struct world_fault){ .kind = faults[i].kind,
						  .op = faults[i].op,
						  .nth = n };
			world_fault(world, 0, &f);
			e = run(&c, "UPDATE t SET v = v || 'x'");
			if (e == SQLITE_OK)
				e = checkpoint(&c);
			if (world_faults_fired(world, 0) == 0) {
				EXPECT_INT(e, SQLITE_OK);
				close_conn(&c);
				break;
			}
			EXPECT_TRUE(e != SQLITE_OK);
			EXPECT_RC(db_vfs_fault(c.vfs, NULL), faults[i].rc);
			changes = world_count(world, 0, WORLD_CHANGE);
			EXPECT_TRUE(run(&c, "DELETE FROM t") != SQLITE_OK);
			close_conn(&c);
			EXPECT_UINT(world_count(world, 0, WORLD_CHANGE),
				    changes);
			/* A new process sees either everything or nothing. */
			world_kill(world, 0);
			must_open(&c);
			EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), 200);
			e = (int)ask(&c, "SELECT count(*) FROM t"
					 " WHERE v LIKE '%x'");
			EXPECT_TRUE(e == 0 || e == 200);
			close_conn(&c);
		}
	}
	end_world();
}

TEST(a_frozen_database_writes_nothing)
{
	struct conn c;
	uint64_t changes;

	new_world(14);
	must_open(&c);
	fill(&c, 10);
	EXPECT_INT(run(&c, "BEGIN; INSERT INTO t VALUES(1000, 1)"), SQLITE_OK);
	db_vfs_freeze(c.vfs);
	changes = world_count(world, 0, WORLD_CHANGE);
	EXPECT_TRUE(run(&c, "COMMIT") != SQLITE_OK);
	EXPECT_RC(db_vfs_fault(c.vfs, NULL), RC_OK);
	close_conn(&c);
	EXPECT_UINT(world_count(world, 0, WORLD_CHANGE), changes);
	end_world();
}

/* ------------------------------------------------ crashes and checkpoints */

/* One step of a seeded life: a commit or a checkpoint. */
static int live(struct conn *c, int *step)
{
	char sql[160];

	++*step;
	if (*step % 7 == 0)
		return checkpoint(c);
	(void)snprintf(sql, sizeof(sql),
		       "BEGIN; INSERT INTO t VALUES(%d, zeroblob(%d));"
		       "UPDATE t SET v = v || 'x' WHERE k %% 5 = %d; COMMIT",
		       *step, (*step * 977) % 6000, *step % 5);
	return run(c, sql);
}

/*
 * Power cuts at every change of a life with checkpoints: what comes back is
 * what some commit left, not older than the last checkpoint that returned.
 */
static void crash_life(bool power, enum world_fault_kind kind, uint64_t stride)
{
	struct conn c;
	uint64_t n;
	int step;
	int done;
	int checked;
	int64_t last;

	for (n = 1;; n += stride) {
		runner_context("change %d", (int)n);
		new_world(n);
		must_open(&c);
		fill(&c, 3);
		EXPECT_INT(run(&c, "DELETE FROM t"), SQLITE_OK);
		EXPECT_INT(checkpoint(&c), SQLITE_OK);
		world_fault(world, 0,
			    &(struct world_fault){ .kind = kind,
						   .op = WORLD_CHANGE,
						   .nth = n });
		done = checked = step = 0;
		while (step < 40 && live(&c, &step) == SQLITE_OK) {
			done = step;
			if (step % 7 == 0)
				checked = step;
		}
		close_conn(&c);
		if (world_faults_fired(world, 0) == 0)
			break;
		if (power)
			world_power_cut(world, 0);
		else
			world_kill(world, 0);
		must_open(&c);
		last = ask(&c, "SELECT ifnull(max(k), 0) FROM t");
		EXPECT_TRUE(last <= step);
		EXPECT_TRUE(last >= checked - 1);
		if (!power && kind != WORLD_EIO)
			EXPECT_TRUE(last >= done - 1);
		/* All rows up to the last, but the checkpoints' numbers. */
		EXPECT_INT(ask(&c, "SELECT count(*) FROM t"), last - last / 7);
		EXPECT_INT(ask(&c, "SELECT count(*) FROM pragma_integrity_check"
				   " WHERE integrity_check = 'ok'"),
			   1);
		close_conn(&c);
		expect_stamps();
	}
	EXPECT_TRUE(n > 100);
	end_world();
}

TEST(power_cut_at_every_change)
{
	crash_life(true, WORLD_CRASH_BEFORE, 3);
}

TEST(kill_at_every_change)
{
	crash_life(false, WORLD_CRASH_AFTER, 5);
}

TEST(failure_then_power_cut)
{
	crash_life(true, WORLD_EIO, 5);
}

TEST(failure_then_kill)
{
	crash_life(false, WORLD_EIO, 5);
}

/* A checkpoint that did not sync: its main file is only believed. */
TEST(mutant_checkpoint_unsynced)
{
	struct conn c;
	uint64_t seed;
	unsigned lost = 0;

	for (seed = 1; seed <= 20; seed++) {
		new_world(seed);
		must_open(&c);
		fill(&c, 100);
		mutant_now = MUTANT_checkpoint_unsynced;
		EXPECT_INT(checkpoint(&c), SQLITE_OK);
		mutant_now = MUTANT_none;
		close_conn(&c);
		world_power_cut(world, 0);
		if (open_conn(&c, NULL) != RC_OK) {
			lost++;
			continue;
		}
		if (ask(&c, "SELECT count(*) FROM t") != 100)
			lost++;
		close_conn(&c);
	}
	EXPECT_TRUE(lost > 15);
	end_world();
}

/* ---------------------------------------------------------- single bits */

/* Files in memory that can be put back in no time. */
struct ram_file {
	struct disk_file f;
	const char *name;
	uint8_t *bytes;
	size_t n;
};
#define RAM_BYTES (512u << 10)
static struct ram_file ram[3];
static struct disk ram_disk;

static enum rc ram_open(struct disk *d, const char *name, unsigned flags,
			struct disk_file **out, struct detail *why)
{
	size_t i;

	(void)why;
	for (i = 0; i < 3; i++) {
		if (strcmp(ram[i].name, name) != 0)
			continue;
		ram[i].f.disk = d;
		*out = &ram[i].f;
		return RC_OK;
	}
	return flags & DISK_CREATE ? RC_IO : RC_NOT_FOUND;
}

static void ram_close(struct disk_file *f)
{
	(void)f;
}

static enum rc ram_read(struct disk_file *f, void *p, size_t n, uint64_t off,
			size_t *got)
{
	struct ram_file *r = CONTAINER_OF(f, struct ram_file, f);

	*got = 0;
	if (off < r->n) {
		*got = n < r->n - off ? n : (size_t)(r->n - off);
		memcpy(p, r->bytes + off, *got);
	}
	return RC_OK;
}

static enum rc ram_write(struct disk_file *f, const void *p, size_t n,
			 uint64_t off)
{
	struct ram_file *r = CONTAINER_OF(f, struct ram_file, f);

	EXPECT_TRUE(off + n <= RAM_BYTES);
	memcpy(r->bytes + off, p, n);
	if (off + n > r->n)
		r->n = (size_t)(off + n);
	return RC_OK;
}

static enum rc ram_sync(struct disk_file *f)
{
	(void)f;
	return RC_OK;
}

static enum rc ram_size(struct disk_file *f, uint64_t *bytes)
{
	*bytes = CONTAINER_OF(f, struct ram_file, f)->n;
	return RC_OK;
}

static enum rc ram_truncate(struct disk_file *f, uint64_t bytes)
{
	struct ram_file *r = CONTAINER_OF(f, struct ram_file, f);

	if (bytes > r->n)
		memset(r->bytes + r->n, 0, (size_t)bytes - r->n);
	r->n = (size_t)bytes;
	return RC_OK;
}

static enum rc ram_sync_dir(struct disk *d, const char *name)
{
	(void)d;
	(void)name;
	return RC_OK;
}

static const struct disk_ops ram_ops = {
	.open = ram_open,
	.close = ram_close,
	.read = ram_read,
	.write = ram_write,
	.sync = ram_sync,
	.size = ram_size,
	.truncate = ram_truncate,
	.sync_dir = ram_sync_dir,
};

/* What the files were, and the main files that a good recovery may end with. */
static uint8_t *saved[3];
static size_t saved_n[3];
#define GOOD_MAX 16
static uint32_t good[GOOD_MAX];
static unsigned good_n;

static void ram_save(void)
{
	static const char *const names[3] = { MAIN, WAL, MARK };
	size_t i;

	ram_disk.ops = &ram_ops;
	for (i = 0; i < 3; i++) {
		ram[i].name = names[i];
		ram[i].bytes = malloc(RAM_BYTES);
		saved[i] = world_file(world, 0, names[i], false, &saved_n[i]);
		EXPECT_NOT_NULL(saved[i]);
	}
}

static void ram_restore(void)
{
	size_t i;

	for (i = 0; i < 3; i++) {
		ram[i].n = saved_n[i];
		memcpy(ram[i].bytes, saved[i], saved_n[i]);
	}
}

static void ram_free(void)
{
	size_t i;

	for (i = 0; i < 3; i++) {
		free(ram[i].bytes);
		free(saved[i]);
	}
}

static enum rc ram_recover(struct db_vfs **v)
{
	return db_vfs_open(&ram_disk, 3, 7, v, NULL);
}

/* The main file after recovery, less the header's counters. */
static uint32_t ram_sum(void)
{
	return crc32c(0, ram[0].bytes, ram[0].n);
}

/* Reads a page as SQLite does. */
static int ram_page(struct db_vfs *v, uint32_t number)
{
	sqlite3_vfs *vfs = sqlite3_vfs_find(db_vfs_name(v));
	sqlite3_file *f = calloc(1, (size_t)vfs->szOsFile);
	uint8_t page[PAGE];
	int e;

	EXPECT_INT(vfs->xOpen(vfs, MAIN, f, SQLITE_OPEN_MAIN_DB, NULL),
		   SQLITE_OK);
	e = f->pMethods->xRead(f, page, PAGE,
			       (sqlite3_int64)(number - 1) * PAGE);
	(void)f->pMethods->xClose(f);
	free(f);
	return e;
}

/*
 * Flips bit `bit` of file `file` and recovers. In the main file, the page has
 * to be found bad; in the WAL and the mark, recovery has to refuse or to end
 * with a state that was committed, not older than the main file's.
 */
static void flip_one(unsigned file, size_t bit)
{
	struct db_vfs *v;
	unsigned i;
	uint32_t sum;
	enum rc rc;

	ram_restore();
	ram[file].bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
	rc = ram_recover(&v);
	if (rc != RC_OK) {
		if (rc != RC_CORRUPT)
			FAIL("bit %zu of file %u: %s", bit, file, rc_name(rc));
		return;
	}
	if (file == 0 && saved_n[1] == 0) {
		if (ram_page(v, (uint32_t)(bit / 8 / PAGE) + 1) == SQLITE_OK)
			FAIL("bit %zu of the main file is not found", bit);
		db_vfs_close(v);
		return;
	}
	db_vfs_close(v);
	sum = ram_sum();
	for (i = 0; i < good_n; i++)
		if (good[i] == sum)
			return;
	FAIL("bit %zu of file %u makes another state", bit, file);
}

/* What recovery makes of the first `frames` frames is a good end. */
static void good_after(size_t frames)
{
	struct db_vfs *v;

	ram_restore();
	if (frames < 1000)
		ram[1].n = 32 + frames * (24 + PAGE);
	if (ram_recover(&v) != RC_OK)
		return;
	db_vfs_close(v);
	EXPECT_TRUE(good_n < GOOD_MAX);
	good[good_n++] = ram_sum();
}

/* Every bit; with sanitizers, which make it ten times slower, every 13th. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define FLIP_STEP 13
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FLIP_STEP 13
#endif
#endif
#ifndef FLIP_STEP
#define FLIP_STEP 1
#endif

static void flip_all(unsigned file)
{
	size_t i;

	for (i = 0; i < saved_n[file] * 8; i += FLIP_STEP)
		flip_one(file, i);
}

static void small_life(struct conn *c)
{
	must_open(c);
	EXPECT_INT(run(c, "CREATE TABLE t(k INTEGER PRIMARY KEY, v);"
			  "INSERT INTO t VALUES(1, 'one')"),
		   SQLITE_OK);
	EXPECT_INT(checkpoint(c), SQLITE_OK);
}

TEST(flips_in_the_main_file)
{
	struct conn c;

	new_world(21);
	small_life(&c);
	close_conn(&c);
	ram_save();
	good_n = 0;
	EXPECT_UINT(saved_n[0], 2 * PAGE);
	flip_all(0);
	ram_free();
	end_world();
}

TEST(flips_in_the_wal)
{
	struct conn c;
	size_t i;

	new_world(22);
	small_life(&c);
	for (i = 2; i < 5; i++) {
		char sql[80];

		(void)snprintf(sql, sizeof(sql),
			       "INSERT INTO t VALUES(%zu, 'more')", i);
		EXPECT_INT(run(&c, sql), SQLITE_OK);
	}
	EXPECT_UINT(db_vfs_frames(c.vfs), 3);
	close_conn(&c);
	ram_save();
	good_n = 0;
	for (i = 0; i <= 3; i++)
		good_after(i);
	EXPECT_UINT(good_n, 4);
	flip_all(1);
	flip_all(2);
	ram_free();
	end_world();
}

/*
 * The same with a checkpoint that ended after each of its changes. The main
 * file may be torn then; whatever is flipped anywhere, recovery ends with all
 * frames, or with what the main file had when nothing was copied yet, or
 * refuses.
 */
TEST(flips_in_the_middle_of_a_checkpoint)
{
	struct conn c;
	uint64_t n;
	unsigned middles = 0;
	bool crashed;
	size_t i;

	for (n = 1;; n++) {
		new_world(23);
		small_life(&c);
		EXPECT_INT(run(&c, "INSERT INTO t VALUES(2, zeroblob(9000));"),
			   SQLITE_OK);
		world_fault(world, 0,
			    &(struct world_fault){ .kind = WORLD_CRASH_AFTER,
						   .op = WORLD_CHANGE,
						   .nth = n });
		crashed = checkpoint(&c) != SQLITE_OK;
		close_conn(&c);
		world_power_cut(world, 0);
		if (!crashed)
			break;
		ram_save();
		runner_context("crash after change %d", (int)n);
		good_n = 0;
		good_after(SIZE_MAX);
		EXPECT_UINT(good_n, 1);
		good_after(0);
		middles += good_n == 1;
		/* Sparser: there are a dozen such ends. */
		for (i = 0; i < saved_n[1]; i += 11)
			flip_one(1, i * 8 + i % 8);
		for (i = 0; i < 32 * 8 && i < saved_n[1] * 8; i++)
			flip_one(1, i);
		for (i = 0; i < 64 * 8; i++)
			flip_one(2, i);
		for (i = 0; i < saved_n[0]; i += 37)
			if (saved_n[1] > 0 && good_n == 1)
				flip_one(0, i * 8 + i % 8);
		ram_free();
	}
	EXPECT_TRUE(middles >= 4);
	end_world();
}
