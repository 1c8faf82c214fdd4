#include "objects/db.h"

#include <sqlite3.h>

#include "node/base/check.h"
#include "objects/db_vfs.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define STATE "state/05-00000002.db"

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

static enum rc open_db(struct db **db, struct detail *why)
{
	return db_open(world_disk(world, 0), 5, 2, db, why);
}

static struct db *must_open(void)
{
	struct detail why = { 0 };
	struct db *db;
	enum rc rc = open_db(&db, &why);

	if (rc != RC_OK)
		FAIL("open: %s: %s", rc_name(rc), why.text);
	return db;
}

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static const struct pack_bytes none = { NULL, 0 };

static struct oid oid_of(unsigned i)
{
	struct oid oid = { { 0 } };

	/* Spread over the ranges. */
	oid.b[0] = (uint8_t)(i * 37);
	oid.b[15] = (uint8_t)i;
	return oid;
}

static enum rc put(struct db *db, unsigned object, enum row_kind kind,
		   const char *key, const char *value, uint64_t expires_ns)
{
	struct oid oid = oid_of(object);
	struct unit_row row = { kind, text(key), none, expires_ns };

	if (value != NULL)
		row.value = text(value);
	return db_put_row(db, &oid, &row);
}

static enum rc commit(struct db *db, uint64_t index)
{
	struct db_meta m = *db_meta(db);

	m.applied_index = index;
	m.applied_term = index / 10;
	m.stamp_ns = index * 1000;
	m.wall_ms = index * 7;
	m.conf = NULL;
	return db_commit(db, &m);
}

/* Rows as "kind:key=value@expires " in one string. */
struct said {
	char text[4096];
	size_t n;
	unsigned rows;
	unsigned rows_max;
};

static bool say_row(void *arg, const struct oid *oid,
		    const struct unit_row *row)
{
	struct said *s = arg;

	(void)oid;
	s->n += (size_t)snprintf(s->text + s->n, sizeof(s->text) - s->n,
				 "%d:%.*s=%.*s@%" PRIu64 " ", (int)row->kind,
				 (int)row->key.n, (const char *)row->key.p,
				 (int)row->value.n, (const char *)row->value.p,
				 row->expires_ns);
	s->rows++;
	return s->rows != s->rows_max;
}

static bool say_head(void *arg, const struct oid *oid, struct pack_bytes head)
{
	struct said *s = arg;

	s->n += (size_t)snprintf(s->text + s->n, sizeof(s->text) - s->n,
				 "%u=%.*s ", oid->b[15], (int)head.n,
				 (const char *)head.p);
	s->rows++;
	return s->rows != s->rows_max;
}

static const char *object(struct db *db, unsigned i)
{
	static struct said s;
	struct oid oid = oid_of(i);

	s = (struct said){ 0 };
	EXPECT_RC(db_object(db, &oid, say_row, &s), RC_OK);
	return s.text;
}

static void expect_hashes(struct db *db)
{
	uint8_t kept[HASH_BYTES];
	uint8_t made[HASH_BYTES];
	unsigned i;

	for (i = 0; i < STATE_RANGES; i++) {
		db_range_hash(db, i, kept);
		EXPECT_RC(db_range_recompute(db, i, made), RC_OK);
		EXPECT_MEM(kept, made, HASH_BYTES);
	}
}

/* ------------------------------------------------------------------ tests */

TEST(new_database)
{
	struct db *db;
	static const uint8_t zeros[HASH_BYTES];
	uint8_t hash[HASH_BYTES];

	new_world(1);
	db = must_open();
	EXPECT_UINT(db_meta(db)->applied_index, 0);
	EXPECT_NULL(db_meta(db)->conf);
	EXPECT_STR(object(db, 1), "");
	db_range_hash(db, 15, hash);
	EXPECT_MEM(hash, zeros, HASH_BYTES);
	db_close(db);
	end_world();
}

TEST(rows_and_meta_stay)
{
	struct db *db;
	struct db_meta m;
	struct oid oid = oid_of(1);

	new_world(2);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "2", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_IDEM, "a", "3", 77), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "", "1", INT64_MAX), RC_OK);
	EXPECT_RC(put(db, 2, ROW_DATA, "a", "other", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "gone", "x", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "gone", NULL, 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "3", 5), RC_OK);
	EXPECT_RC(db_put_head(db, &oid, text("head")), RC_OK);
	m = (struct db_meta){ .applied_index = UINT64_MAX,
			      .applied_term = 3,
			      .stamp_ns = 4,
			      .wall_ms = 5,
			      .conf_index = 6,
			      .conf = "conf",
			      .conf_bytes = 4 };
	EXPECT_RC(db_commit(db, &m), RC_OK);
	EXPECT_STR(object(db, 1), "1:=1@9223372036854775807 1:a=@0 1:b=3@5 "
				  "2:a=3@77 ");
	expect_hashes(db);
	db_close(db);
	db = must_open();
	EXPECT_STR(object(db, 1), "1:=1@9223372036854775807 1:a=@0 1:b=3@5 "
				  "2:a=3@77 ");
	EXPECT_UINT(db_meta(db)->applied_index, UINT64_MAX);
	EXPECT_UINT(db_meta(db)->applied_term, 3);
	EXPECT_UINT(db_meta(db)->stamp_ns, 4);
	EXPECT_UINT(db_meta(db)->wall_ms, 5);
	EXPECT_UINT(db_meta(db)->conf_index, 6);
	EXPECT_UINT(db_meta(db)->conf_bytes, 4);
	EXPECT_MEM(db_meta(db)->conf, "conf", 4);
	expect_hashes(db);
	db_close(db);
	end_world();
}

static const char *scan(struct db *db, const char *start, bool reverse,
			unsigned rows_max)
{
	static struct said s;
	struct oid oid = oid_of(1);
	struct pack_bytes from = start != NULL ? text(start) : none;

	s = (struct said){ .rows_max = rows_max };
	EXPECT_RC(db_scan(db, &oid, ROW_DATA, from, reverse, say_row, &s),
		  RC_OK);
	return s.text;
}

TEST(scans)
{
	struct db *db;
	struct said s = { 0 };
	struct oid oid = oid_of(1);

	new_world(3);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 0, ROW_DATA, "z", "x", 0), RC_OK);
	EXPECT_RC(put(db, 2, ROW_DATA, "a", "x", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_IDEM, "b", "x", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "c", "3", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b\xff", "2", 0), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_STR(scan(db, NULL, false, 0), "1:a=1@0 1:b\xff=2@0 1:c=3@0 ");
	EXPECT_STR(scan(db, "", false, 0), "1:a=1@0 1:b\xff=2@0 1:c=3@0 ");
	EXPECT_STR(scan(db, "b", false, 0), "1:b\xff=2@0 1:c=3@0 ");
	EXPECT_STR(scan(db, "b", false, 1), "1:b\xff=2@0 ");
	EXPECT_STR(scan(db, "d", false, 0), "");
	EXPECT_STR(scan(db, NULL, true, 0), "1:c=3@0 1:b\xff=2@0 1:a=1@0 ");
	EXPECT_STR(scan(db, "c", true, 0), "1:b\xff=2@0 1:a=1@0 ");
	EXPECT_STR(scan(db, "c", true, 1), "1:b\xff=2@0 ");
	EXPECT_STR(scan(db, "", true, 0), "");
	EXPECT_RC(db_row(db, &oid, ROW_DATA, text("c"), say_row, &s), RC_OK);
	EXPECT_RC(db_row(db, &oid, ROW_IDEM, text("c"), say_row, &s), RC_OK);
	EXPECT_STR(s.text, "1:c=3@0 ");
	db_close(db);
	end_world();
}

TEST(expired_rows_come_in_order)
{
	struct db *db;
	struct said s = { 0 };

	new_world(4);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "never", "", 0), RC_OK);
	EXPECT_RC(put(db, 3, ROW_DATA, "c", "", 30), RC_OK);
	EXPECT_RC(put(db, 2, ROW_IDEM, "a", "", 10), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "", 20), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "d", "", 40), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "d", "", 0), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_RC(db_expired(db, 9, say_row, &s), RC_OK);
	EXPECT_STR(s.text, "");
	EXPECT_RC(db_expired(db, 20, say_row, &s), RC_OK);
	EXPECT_STR(s.text, "2:a=@10 1:b=@20 ");
	s = (struct said){ .rows_max = 1 };
	EXPECT_RC(db_expired(db, UINT64_MAX, say_row, &s), RC_OK);
	EXPECT_STR(s.text, "2:a=@10 ");
	db_close(db);
	end_world();
}

TEST(heads_and_wipes)
{
	struct db *db;
	struct said s = { 0 };
	struct oid oid;
	unsigned i;

	new_world(5);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	for (i = 1; i <= 5; i++) {
		oid = oid_of(i);
		EXPECT_RC(db_put_head(db, &oid, text("h")), RC_OK);
		EXPECT_RC(put(db, i, ROW_DATA, "k", "v", 0), RC_OK);
		EXPECT_RC(put(db, i, ROW_IDEM, "k", "v", 9), RC_OK);
		EXPECT_RC(put(db, i, ROW_CONFIG, "k", "v", 0), RC_OK);
	}
	oid = oid_of(2);
	EXPECT_RC(db_put_head(db, &oid, none), RC_OK);
	EXPECT_RC(db_wipe(db, &oid, 1u << ROW_DATA | 1u << ROW_CONFIG), RC_OK);
	oid = oid_of(3);
	EXPECT_RC(db_put_head(db, &oid, text("other")), RC_OK);
	EXPECT_RC(db_wipe(db, &oid, 0x1e), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_STR(object(db, 1), "1:k=v@0 2:k=v@9 4:k=v@0 ");
	EXPECT_STR(object(db, 2), "2:k=v@9 ");
	EXPECT_STR(object(db, 3), "");
	EXPECT_RC(db_heads(db, NULL, say_head, &s), RC_OK);
	EXPECT_STR(s.text, "1=h 3=other 4=h 5=h ");
	s = (struct said){ .rows_max = 2 };
	oid = oid_of(1);
	EXPECT_RC(db_heads(db, &oid, say_head, &s), RC_OK);
	EXPECT_STR(s.text, "3=other 4=h ");
	s = (struct said){ 0 };
	oid = oid_of(2);
	EXPECT_RC(db_head(db, &oid, say_head, &s), RC_OK);
	EXPECT_STR(s.text, "");
	expect_hashes(db);
	db_close(db);
	end_world();
}

TEST(large_values)
{
	static uint8_t big[VALUE_BYTES_MAX];
	struct db *db;
	struct oid oid = oid_of(1);
	struct unit_row row = {
		ROW_DATA, { big, ROW_KEY_BYTES_MAX }, { big, sizeof(big) }, 1
	};
	struct said s = { .rows_max = 1 };
	unsigned i;

	new_world(6);
	for (i = 0; i < sizeof(big); i++)
		big[i] = (uint8_t)(i % 251);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(db_put_row(db, &oid, &row), RC_OK);
	row.value.n = 100;
	EXPECT_RC(db_put_row(db, &oid, &row), RC_OK);
	row.value.n = sizeof(big);
	EXPECT_RC(db_put_row(db, &oid, &row), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_RC(db_checkpoint(db), RC_OK);
	expect_hashes(db);
	db_close(db);
	db = must_open();
	expect_hashes(db);
	EXPECT_RC(db_expired(db, 1, say_row, &s), RC_OK);
	EXPECT_UINT(s.rows, 1);
	db_close(db);
	end_world();
}

TEST(rollback)
{
	struct db *db;

	new_world(7);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 0), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "2", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "2", 0), RC_OK);
	EXPECT_RC(db_rollback(db), RC_OK);
	EXPECT_RC(db_rollback(db), RC_OK);
	EXPECT_STR(object(db, 1), "1:a=1@0 ");
	expect_hashes(db);
	EXPECT_UINT(db_meta(db)->applied_index, 1);
	db_close(db);
	end_world();
}

/* The hash of a set is the same however it came to be. */
TEST(hash_of_a_set)
{
	struct db *db;
	uint8_t a[HASH_BYTES];
	uint8_t b[HASH_BYTES];
	struct oid oid = oid_of(1);

	new_world(8);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "2", 0), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	db_range_hash(db, oid.b[0] >> 4, a);
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(db_wipe(db, &oid, 0x1e), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "0", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "c", "3", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "b", "2", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "c", NULL, 0), RC_OK);
	EXPECT_RC(commit(db, 2), RC_OK);
	db_range_hash(db, oid.b[0] >> 4, b);
	EXPECT_MEM(a, b, HASH_BYTES);
	/* And another for another expiry, kind, or split of key and value. */
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 1), RC_OK);
	EXPECT_RC(commit(db, 3), RC_OK);
	db_range_hash(db, oid.b[0] >> 4, b);
	EXPECT_TRUE(memcmp(a, b, HASH_BYTES) != 0);
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", NULL, 0), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a1", "", 0), RC_OK);
	EXPECT_RC(commit(db, 4), RC_OK);
	db_range_hash(db, oid.b[0] >> 4, b);
	EXPECT_TRUE(memcmp(a, b, HASH_BYTES) != 0);
	db_close(db);
	end_world();
}

/* A change behind our back keeps every checksum and breaks the set hash. */
TEST(recompute_finds_a_changed_row)
{
	struct db *db;
	uint8_t kept[HASH_BYTES];
	uint8_t made[HASH_BYTES];
	struct oid oid = oid_of(1);
	struct db_vfs *vfs;
	sqlite3 *conn;

	new_world(9);
	db = must_open();
	EXPECT_RC(db_begin(db), RC_OK);
	EXPECT_RC(put(db, 1, ROW_DATA, "a", "1", 0), RC_OK);
	EXPECT_RC(commit(db, 1), RC_OK);
	EXPECT_RC(db_checkpoint(db), RC_OK);
	db_close(db);
	EXPECT_RC(db_vfs_open(world_disk(world, 0), 5, 2, &vfs, NULL), RC_OK);
	EXPECT_INT(sqlite3_open_v2(db_vfs_file(vfs), &conn,
				   SQLITE_OPEN_READWRITE, db_vfs_name(vfs)),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_exec(conn,
				"PRAGMA locking_mode=EXCLUSIVE;"
				"PRAGMA synchronous=NORMAL;"
				"UPDATE rows SET value = x'32'",
				NULL, NULL, NULL),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_wal_checkpoint_v2(
			   conn, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_close(conn), SQLITE_OK);
	db_vfs_close(vfs);
	db = must_open();
	db_range_hash(db, oid.b[0] >> 4, kept);
	EXPECT_RC(db_range_recompute(db, oid.b[0] >> 4, made), RC_OK);
	EXPECT_TRUE(memcmp(kept, made, HASH_BYTES) != 0);
	db_close(db);
	end_world();
}

static void sql_on_file(const char *sql)
{
	struct db_vfs *vfs;
	sqlite3 *conn;
	char *error = NULL;

	EXPECT_RC(db_vfs_open(world_disk(world, 0), 5, 2, &vfs, NULL), RC_OK);
	EXPECT_INT(sqlite3_open_v2(db_vfs_file(vfs), &conn,
				   SQLITE_OPEN_READWRITE, db_vfs_name(vfs)),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_db_config(conn, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1,
				     (int *)NULL),
		   SQLITE_OK);
	EXPECT_INT(sqlite3_exec(conn,
				"PRAGMA locking_mode=EXCLUSIVE;"
				"PRAGMA synchronous=NORMAL",
				NULL, NULL, NULL),
		   SQLITE_OK);
	(void)sqlite3_exec(conn, sql, NULL, NULL, &error);
	EXPECT_STR(error, NULL);
	EXPECT_INT(sqlite3_close(conn), SQLITE_OK);
	db_vfs_close(vfs);
}

TEST(schemas_that_are_not_ours)
{
	static const struct {
		const char *sql;
		enum rc rc;
		const char *says;
	} cases[] = {
		{ "PRAGMA user_version=2", RC_VERSION, "version 2" },
		{ "PRAGMA user_version=-1", RC_CORRUPT, "unknown" },
		{ "PRAGMA user_version=0", RC_CORRUPT, "no version" },
		{ "DROP TABLE ranges", RC_CORRUPT, "schema" },
		{ "DELETE FROM ranges WHERE range = 3", RC_CORRUPT, "ranges" },
		{ "UPDATE ranges SET hash = x'00'", RC_CORRUPT, "short" },
		{ "UPDATE ranges SET hash = 'text'", RC_CORRUPT, "type" },
		{ "DELETE FROM meta WHERE key = 'applied_index'", RC_CORRUPT,
		  "meta" },
		{ "UPDATE meta SET value = 6 WHERE key = 'shard'", RC_CORRUPT,
		  "another shard" },
		{ "UPDATE meta SET value = 9 WHERE key = 'generation'",
		  RC_CORRUPT, "another shard" },
		{ "UPDATE meta SET value = 'x' WHERE key = 'stamp_ns'",
		  RC_CORRUPT, "meta" },
		{ "INSERT INTO meta VALUES('conf', 7)", RC_CORRUPT, "type" },
	};
	struct db *db;
	struct detail why;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		new_world(10);
		db = must_open();
		db_close(db);
		sql_on_file(cases[i].sql);
		why = (struct detail){ 0 };
		runner_context("%s", cases[i].sql);
		EXPECT_RC(open_db(&db, &why), cases[i].rc);
		EXPECT_HAS(why.text, cases[i].says);
	}
	end_world();
}

TEST(rows_that_are_not_ours)
{
	static const char *const cases[] = {
		"INSERT INTO rows VALUES(x'01', 1, x'00', x'00', 0)",
		"INSERT INTO rows VALUES(zeroblob(16), 1, 'text', x'00', 0)",
		"INSERT INTO rows VALUES(zeroblob(16), 1, x'00', 17, 0)",
		"INSERT INTO rows VALUES(zeroblob(16), 9, x'00', x'00', 0)",
		"INSERT INTO rows VALUES(zeroblob(16), 1, x'00', x'00', -1)",
		"INSERT INTO heads VALUES(zeroblob(17), x'00')",
		"INSERT INTO heads VALUES(zeroblob(16), 5)",
	};
	uint8_t hash[HASH_BYTES];
	struct db *db;
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		new_world(11);
		db = must_open();
		db_close(db);
		sql_on_file(cases[i]);
		db = must_open();
		runner_context("%s", cases[i]);
		EXPECT_RC(db_range_recompute(db, 0, hash), RC_CORRUPT);
		EXPECT_TRUE(db_why(db)[0] != '\0');
		db_discard(db);
	}
	end_world();
}

/* ------------------------------------------------------- seeded histories */

/* The state after a transaction is a function of its number alone. */
static enum rc transaction(struct db *db, unsigned n)
{
	char value[40];
	char key[8];
	struct oid oid;
	unsigned i;
	enum rc rc = db_begin(db);

	for (i = 0; rc == RC_OK && i < 6; i++) {
		unsigned x = n * 7919 + i * 104729;

		(void)snprintf(key, sizeof(key), "k%u", x % 5);
		(void)snprintf(value, sizeof(value), "value %u of %u", i, n);
		rc = put(db, x % 4, (enum row_kind)(1 + x % 2), key,
			 x % 6 == 0 ? NULL : value, x % 6 == 0 ? 0 : x % 3);
	}
	if (rc == RC_OK && n % 5 == 0) {
		oid = oid_of(n % 4);
		rc = db_wipe(db, &oid, 0x1e);
	}
	oid = oid_of(n % 3);
	if (rc == RC_OK)
		rc = db_put_head(db, &oid, n % 4 == 0 ? none : text(value));
	return rc == RC_OK ? commit(db, n) : rc;
}

/* All that is in a database, in one number. */
static uint64_t digest(struct db *db)
{
	uint8_t hash[HASH_BYTES];
	uint64_t sum = 0;
	uint64_t lane;
	unsigned i;

	for (i = 0; i < STATE_RANGES; i++) {
		if (db_range_recompute(db, i, hash) != RC_OK)
			return 0;
		memcpy(&lane, hash, sizeof(lane));
		sum += lane;
	}
	return sum;
}

#define LIFE_MAX 30u
static uint64_t digests[LIFE_MAX + 1];

static void learn_digests(void)
{
	struct db *db;
	unsigned n;

	new_world(99);
	db = must_open();
	for (n = 1; n <= LIFE_MAX; n++) {
		EXPECT_RC(transaction(db, n), RC_OK);
		digests[n] = digest(db);
	}
	expect_hashes(db);
	db_close(db);
}

static void crash_life(const struct world_fault *fault, bool power,
		       uint64_t stride)
{
	struct world_fault f = *fault;
	struct db *db;
	uint64_t index;
	unsigned n;
	unsigned done;
	unsigned checked;
	enum rc rc;

	learn_digests();
	for (f.nth = 1;; f.nth += stride) {
		runner_context("operation %d", (int)f.nth);
		new_world(f.nth);
		db = must_open();
		world_fault(world, 0, &f);
		done = checked = 0;
		rc = RC_OK;
		for (n = 1; rc == RC_OK && n <= LIFE_MAX; n++) {
			rc = transaction(db, n);
			if (rc == RC_OK)
				done = n;
			if (rc == RC_OK && n % 6 == 0) {
				rc = db_checkpoint(db);
				if (rc == RC_OK)
					checked = n;
			}
		}
		if (rc != RC_OK)
			EXPECT_TRUE(db_why(db)[0] != '\0');
		db_discard(db);
		if (world_faults_fired(world, 0) == 0)
			break;
		if (power)
			world_power_cut(world, 0);
		else
			world_kill(world, 0);
		db = must_open();
		index = db_meta(db)->applied_index;
		EXPECT_TRUE(index >= checked);
		EXPECT_TRUE(index <= done + 1);
		if (!power && f.kind != WORLD_EIO)
			EXPECT_TRUE(index >= done);
		EXPECT_UINT(db_meta(db)->stamp_ns, index * 1000);
		EXPECT_UINT(db_meta(db)->applied_term, index / 10);
		EXPECT_UINT(digest(db), digests[index]);
		expect_hashes(db);
		/* And on from there. */
		for (n = (unsigned)index + 1; n <= LIFE_MAX; n++)
			EXPECT_RC(transaction(db, n), RC_OK);
		EXPECT_RC(db_checkpoint(db), RC_OK);
		EXPECT_UINT(digest(db), digests[LIFE_MAX]);
		db_close(db);
	}
	EXPECT_TRUE(f.nth > 50);
	end_world();
}

TEST(power_cut_at_every_change)
{
	crash_life(&(struct world_fault){ .kind = WORLD_CRASH_BEFORE,
					  .op = WORLD_CHANGE },
		   true, 5);
}

TEST(kill_at_every_change)
{
	crash_life(&(struct world_fault){ .kind = WORLD_CRASH_AFTER,
					  .op = WORLD_CHANGE },
		   false, 7);
}

TEST(failed_change_then_power_cut)
{
	crash_life(
		&(struct world_fault){ .kind = WORLD_EIO, .op = WORLD_CHANGE },
		true, 7);
}

TEST(no_space_then_restart)
{
	crash_life(&(struct world_fault){ .kind = WORLD_NO_SPACE,
					  .op = WORLD_WRITE },
		   false, 11);
}

/* Random bits of all files, after a crash in the middle of a checkpoint or not:
 * found, or nothing else than an earlier commit. */
TEST(flips_are_found_or_change_nothing)
{
	static const char *const suffix[] = { STATE, STATE "-wal",
					      "state/05-00000002.wal-mark" };
	struct db *db;
	uint64_t seed;
	uint64_t index;
	uint64_t sum;
	unsigned found = 0;
	unsigned n;
	uint8_t *bytes;
	size_t size;
	const char *name;

	learn_digests();
	for (seed = 1; seed <= 150; seed++) {
		runner_context("seed %d", (int)seed);
		new_world(seed);
		db = must_open();
		for (n = 1; n <= 12; n++)
			EXPECT_RC(transaction(db, n), RC_OK);
		EXPECT_RC(db_checkpoint(db), RC_OK);
		for (; n <= 24; n++)
			EXPECT_RC(transaction(db, n), RC_OK);
		if (seed % 2 == 0) {
			world_fault(world, 0,
				    &(struct world_fault){
					    .kind = WORLD_CRASH_AFTER,
					    .op = WORLD_CHANGE,
					    .nth = 1 + seed % 15 });
			(void)db_checkpoint(db);
		}
		db_discard(db);
		world_faults_clear(world, 0);
		world_kill(world, 0);
		name = suffix[world_random(world, 3)];
		bytes = world_file(world, 0, name, false, &size);
		free(bytes);
		if (size == 0)
			continue;
		EXPECT_RC(world_flip(world, 0, name, world_random(world, size),
				     (unsigned)world_random(world, 8)),
			  RC_OK);
		if (open_db(&db, NULL) == RC_CORRUPT) {
			found++;
			continue;
		}
		EXPECT_NOT_NULL(db);
		index = db_meta(db)->applied_index;
		sum = digest(db);
		if (sum == 0) {
			found++;
		} else {
			EXPECT_TRUE(index >= 12 && index <= 24);
			EXPECT_UINT(sum, digests[index]);
		}
		db_discard(db);
	}
	EXPECT_TRUE(found > 20);
	end_world();
}

/* ------------------------------------------------------------ allocations */

static sqlite3_mem_methods real;

static void *sqlite_malloc(int n)
{
	return fault_next() ? NULL : real.xMalloc(n);
}

static void *sqlite_realloc(void *p, int n)
{
	return fault_next() ? NULL : real.xRealloc(p, n);
}

static void wrap_sqlite(bool on)
{
	sqlite3_mem_methods m;

	EXPECT_INT(sqlite3_shutdown(), SQLITE_OK);
	if (on) {
		EXPECT_INT(sqlite3_config(SQLITE_CONFIG_GETMALLOC, &real),
			   SQLITE_OK);
		m = real;
		m.xMalloc = sqlite_malloc;
		m.xRealloc = sqlite_realloc;
	} else {
		m = real;
	}
	EXPECT_INT(sqlite3_config(SQLITE_CONFIG_MALLOC, &m), SQLITE_OK);
	EXPECT_INT(sqlite3_initialize(), SQLITE_OK);
}

TEST(every_allocation_fails)
{
	struct db *db;
	struct detail why;
	uint64_t n;
	uint64_t step;
	unsigned i;
	enum rc rc;
	bool fired;

	learn_digests();
	wrap_sqlite(true);
	for (n = 1;; n += step) {
		step = n < 60 ? 1 : 17;
		runner_context("allocation %d", (int)n);
		new_world(n);
		why = (struct detail){ 0 };
		fault_alloc(n);
		rc = open_db(&db, &why);
		if (rc == RC_OK) {
			for (i = 1; rc == RC_OK && i <= 4; i++)
				rc = transaction(db, i);
			if (rc == RC_OK)
				rc = db_checkpoint(db);
			fired = fault_off();
			db_discard(db);
		} else {
			fired = fault_off();
		}
		if (!fired) {
			EXPECT_RC(rc, RC_OK);
			break;
		}
		/* SQLite does without some of what it asks for. */
		if (rc != RC_OK)
			EXPECT_RC(rc, RC_NOMEM);
		world_kill(world, 0);
		db = must_open();
		i = (unsigned)db_meta(db)->applied_index;
		EXPECT_TRUE(i <= 4);
		if (i > 0)
			EXPECT_UINT(digest(db), digests[i]);
		expect_hashes(db);
		db_close(db);
	}
	EXPECT_TRUE(n > 100);
	wrap_sqlite(false);
	end_world();
}
