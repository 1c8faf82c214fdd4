/*
 * The schema, version DB_SCHEMA_VERSION, which is in the header's user_version:
 *
 *   meta    key -> value: "format" (the schema's version), "shard",
 *           "generation", "applied_index", "applied_term", "stamp_ns",
 *           "wall_ms", "conf_index": integers of 64 bits, unsigned ones as the
 *           signed ones with the same bits; "conf": blob, absent until there
 *           is one
 *   heads   oid -> the object's head record, sealed
 *   rows    (oid, kind, key) -> value, sealed, and expires: stamp in ns, 0
 * never ranges  range -> set hash, 16 bytes: two sums of 64 bits, little endian
 *
 * A head counts in its range's set hash as BLAKE2b-128 of the parts
 * (13 bytes: 'h', zeros), oid, (empty), head; a row as the one of
 * (13 bytes: 'r', kind in 4 bytes, expires in 8, little endian), oid, key,
 * value; see crypto_hash.
 *
 * The sums are kept with the changes. What a statement replaces it hands to
 * swap(), which subtracts it: to read it first would be a second statement for
 * each row, a third of what a flush costs.
 */
#include "objects/db.h"

#include <inttypes.h>
#include <sqlite3.h>

#include "node/base/check.h"
#include "objects/db_vfs.h"

#define DB_MAGIC 0x44420a01u

/* SQLite's page cache of one shard. */
#define CACHE_KIB "512"

_Static_assert(STATE_RANGES == 16, "a range is the first nibble of an id");
_Static_assert(DB_SCHEMA_VERSION == 1, "the schema below");

static const char schema[] =
	"BEGIN IMMEDIATE;"
	"CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;"
	"CREATE TABLE heads(oid BLOB PRIMARY KEY, head BLOB NOT NULL)"
	" WITHOUT ROWID;"
	"CREATE TABLE rows(oid BLOB NOT NULL, kind INTEGER NOT NULL,"
	" key BLOB NOT NULL, value BLOB NOT NULL, expires INTEGER NOT NULL,"
	" PRIMARY KEY(oid, kind, key)) WITHOUT ROWID;"
	"CREATE INDEX rows_expires ON rows(expires) WHERE expires > 0;"
	"CREATE TABLE ranges(range INTEGER PRIMARY KEY, hash BLOB NOT NULL);"
	"PRAGMA user_version=1;";

/* The locking mode comes first: SQLite must not look for shared memory. */
static const char pragmas[] = "PRAGMA locking_mode=EXCLUSIVE;"
			      "PRAGMA journal_mode=WAL;"
			      "PRAGMA synchronous=NORMAL;"
			      "PRAGMA wal_autocheckpoint=0;"
			      "PRAGMA cache_size=-" CACHE_KIB ";"
			      "PRAGMA temp_store=MEMORY;"
			      "PRAGMA mmap_size=0;"
			      "PRAGMA foreign_keys=OFF;"
			      "PRAGMA trusted_schema=OFF;"
			      "PRAGMA secure_delete=ON;";

enum statement {
	BEGIN,
	COMMIT,
	ROLLBACK,
	META_GET,
	META_PUT,
	RANGE_GET,
	RANGE_PUT,
	HEAD_GET,
	HEAD_SET,
	HEAD_ADD,
	HEAD_DELETE,
	HEADS_FROM,
	HEADS_AFTER,
	ROW_GET,
	ROW_KEEP,
	ROW_PUT,
	ROW_DELETE,
	OBJECT_GET,
	KIND_WIPE,
	SCAN_UP,
	SCAN_DOWN,
	SCAN_DOWN_ALL,
	ROWS_FROM,
	EXPIRED,
	STATEMENTS,
};

/* What a row's columns are, in this order, wherever a row is read. */
#define ROW_COLUMNS "oid, kind, key, value, expires"

static const char *const sql[STATEMENTS] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ROLLBACK] = "ROLLBACK",
	[META_GET] = "SELECT value FROM meta WHERE key = ?1",
	[META_PUT] = "INSERT INTO meta VALUES(?1, ?2)"
		     " ON CONFLICT DO UPDATE SET value = excluded.value",
	[RANGE_GET] = "SELECT hash FROM ranges WHERE range = ?1",
	[RANGE_PUT] = "INSERT INTO ranges VALUES(?1, ?2)"
		      " ON CONFLICT DO UPDATE SET hash = excluded.hash",
	[HEAD_GET] = "SELECT oid, head FROM heads WHERE oid = ?1",
	[HEAD_SET] = "UPDATE heads SET head = swap(head, 0, ?2)"
		     " WHERE oid = ?1",
	[HEAD_ADD] = "INSERT INTO heads VALUES(?1, ?2)",
	[HEAD_DELETE] = "DELETE FROM heads WHERE oid = ?1",
	[HEADS_FROM] = "SELECT oid, head FROM heads WHERE oid >= ?1"
		       " ORDER BY oid",
	[HEADS_AFTER] = "SELECT oid, head FROM heads WHERE oid > ?1"
			" ORDER BY oid",
	[ROW_GET] = "SELECT " ROW_COLUMNS " FROM rows"
		    " WHERE oid = ?1 AND kind = ?2 AND key = ?3",
	[ROW_KEEP] = "UPDATE rows SET value = swap(value, expires, ?4)"
		     " WHERE oid = ?1 AND kind = ?2 AND key = ?3"
		     " AND expires = ?5",
	[ROW_PUT] = "INSERT INTO rows VALUES(?1, ?2, ?3, ?4, ?5)"
		    " ON CONFLICT DO UPDATE SET"
		    " value = swap(value, expires, excluded.value),"
		    " expires = excluded.expires",
	[ROW_DELETE] = "DELETE FROM rows"
		       " WHERE oid = ?1 AND kind = ?2 AND key = ?3",
	[OBJECT_GET] = "SELECT " ROW_COLUMNS " FROM rows WHERE oid = ?1"
		       " ORDER BY kind, key",
	[KIND_WIPE] = "DELETE FROM rows WHERE oid = ?1 AND kind = ?2",
	[SCAN_UP] = "SELECT " ROW_COLUMNS " FROM rows"
		    " WHERE oid = ?1 AND kind = ?2 AND key >= ?3 ORDER BY key",
	[SCAN_DOWN] = "SELECT " ROW_COLUMNS " FROM rows"
		      " WHERE oid = ?1 AND kind = ?2 AND key < ?3"
		      " ORDER BY key DESC",
	[SCAN_DOWN_ALL] = "SELECT " ROW_COLUMNS " FROM rows"
			  " WHERE oid = ?1 AND kind = ?2 ORDER BY key DESC",
	[ROWS_FROM] = "SELECT " ROW_COLUMNS " FROM rows WHERE oid >= ?1"
		      " ORDER BY oid, kind, key",
	[EXPIRED] = "SELECT " ROW_COLUMNS " FROM rows INDEXED BY rows_expires"
		    " WHERE expires > 0 AND expires <= ?1 ORDER BY expires",
};

/* A set hash: see db.h. */
struct sum {
	uint64_t lane[2];
};

struct db {
	uint32_t magic;
	struct db_vfs *vfs;
	sqlite3 *conn;
	sqlite3_stmt *statements[STATEMENTS];
	struct db_meta meta;
	void *conf; /* What meta.conf points to. */
	struct sum sums[STATE_RANGES];
	struct sum committed[STATE_RANGES];
	const struct oid *oid;      /* Of what swap() replaces: a head, or */
	const struct unit_row *row; /* a row with this name. */
	bool foreign;               /* It found what we never write. */
	struct detail why;
};

/* ---------------------------------------------------------------- results */

static enum rc rc_of(int e)
{
	switch (e & 0xff) {
	case SQLITE_NOMEM:
		return RC_NOMEM;
	case SQLITE_FULL:
		return RC_NO_SPACE;
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return RC_CORRUPT;
	case SQLITE_IOERR:
		return e == SQLITE_IOERR_NOMEM ? RC_NOMEM : RC_IO;
	default:
		return RC_INTERNAL;
	}
}

/* What SQLite's code means. The files know best: SQLite only passes on. */
static enum rc failed(struct db *db, int e, const char *what)
{
	enum rc rc;

	db->why = (struct detail){ 0 };
	rc = db_vfs_fault(db->vfs, &db->why);
	if (rc != RC_OK)
		return rc;
	rc = rc_of(e);
	(void)detail_set(&db->why, rc, NULL, "%s, %s: %s", db_vfs_file(db->vfs),
			 what,
			 db->conn != NULL ? sqlite3_errmsg(db->conn)
					  : sqlite3_errstr(e));
	return rc;
}

static enum rc not_ours(struct db *db, const char *what)
{
	db->why = (struct detail){ 0 };
	(void)detail_set(&db->why, RC_CORRUPT, NULL, "%s: %s",
			 db_vfs_file(db->vfs), what);
	return RC_CORRUPT;
}

const char *db_why(const struct db *db)
{
	return db->why.text;
}

/* ------------------------------------------------------------- statements */

static int bind_bytes(sqlite3_stmt *s, int at, const void *p, size_t n)
{
	/* A pointer of NULL would be SQL's NULL. */
	return sqlite3_bind_blob64(s, at, p != NULL ? p : "", n, SQLITE_STATIC);
}

static int bind_oid(sqlite3_stmt *s, const struct oid *oid)
{
	return bind_bytes(s, 1, oid->b, OID_BYTES);
}

static int bind_row_id(sqlite3_stmt *s, const struct oid *oid,
		       enum row_kind kind, struct pack_bytes key)
{
	int e = bind_oid(s, oid);

	if (e == SQLITE_OK)
		e = sqlite3_bind_int(s, 2, (int)kind);
	return e == SQLITE_OK ? bind_bytes(s, 3, key.p, key.n) : e;
}

/* Runs a statement that gives no rows; `e` is what binding gave. */
static enum rc run(struct db *db, enum statement which, int e)
{
	sqlite3_stmt *s = db->statements[which];
	enum rc rc = RC_OK;

	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e != SQLITE_DONE)
		rc = failed(db, e, sql[which]);
	(void)sqlite3_reset(s);
	return rc;
}

static enum rc column_bytes(struct db *db, sqlite3_stmt *s, int at,
			    struct pack_bytes *out)
{
	*out = (struct pack_bytes){ NULL, 0 };
	if (sqlite3_column_type(s, at) != SQLITE_BLOB)
		return not_ours(db, "a column is of another type");
	out->p = sqlite3_column_blob(s, at);
	out->n = (size_t)sqlite3_column_bytes(s, at);
	if (out->p == NULL && out->n > 0)
		return failed(db, SQLITE_NOMEM, "reading a column");
	if (out->p == NULL)
		out->p = (const uint8_t *)""; /* NULL would mean absent. */
	return RC_OK;
}

static enum rc column_oid(struct db *db, sqlite3_stmt *s, struct oid *out)
{
	struct pack_bytes b;
	enum rc rc = column_bytes(db, s, 0, &b);

	if (rc != RC_OK)
		return rc;
	if (b.n != OID_BYTES)
		return not_ours(db, "an id is of another length");
	memcpy(out->b, b.p, OID_BYTES);
	return RC_OK;
}

static enum rc column_row(struct db *db, sqlite3_stmt *s, struct oid *oid,
			  struct unit_row *out)
{
	int kind = sqlite3_column_int(s, 1);
	sqlite3_int64 expires = sqlite3_column_int64(s, 4);
	enum rc rc = column_oid(db, s, oid);

	if (rc == RC_OK)
		rc = column_bytes(db, s, 2, &out->key);
	if (rc == RC_OK)
		rc = column_bytes(db, s, 3, &out->value);
	if (rc != RC_OK)
		return rc;
	if (kind < ROW_DATA || kind > ROW_CONFIG || expires < 0)
		return not_ours(db, "a row is out of bounds");
	out->kind = (enum row_kind)kind;
	out->expires_ns = (uint64_t)expires;
	return RC_OK;
}

/* Runs a statement that gives rows of ROW_COLUMNS. */
static enum rc each_row(struct db *db, enum statement which, int e,
			db_row_cb cb, void *arg)
{
	sqlite3_stmt *s = db->statements[which];
	struct unit_row row;
	struct oid oid;
	enum rc rc = RC_OK;

	while (e == SQLITE_OK || e == SQLITE_ROW) {
		e = sqlite3_step(s);
		if (e != SQLITE_ROW)
			break;
		rc = column_row(db, s, &oid, &row);
		if (rc != RC_OK || !cb(arg, &oid, &row))
			break;
	}
	if (e != SQLITE_ROW && e != SQLITE_DONE)
		rc = failed(db, e, sql[which]);
	(void)sqlite3_reset(s);
	return rc;
}

static enum rc each_head(struct db *db, enum statement which, int e,
			 db_head_cb cb, void *arg)
{
	sqlite3_stmt *s = db->statements[which];
	struct pack_bytes head;
	struct oid oid;
	enum rc rc = RC_OK;

	while (e == SQLITE_OK || e == SQLITE_ROW) {
		e = sqlite3_step(s);
		if (e != SQLITE_ROW)
			break;
		rc = column_oid(db, s, &oid);
		if (rc == RC_OK)
			rc = column_bytes(db, s, 1, &head);
		if (rc != RC_OK || !cb(arg, &oid, head))
			break;
	}
	if (e != SQLITE_ROW && e != SQLITE_DONE)
		rc = failed(db, e, sql[which]);
	(void)sqlite3_reset(s);
	return rc;
}

/* ---------------------------------------------------------------- reading */

enum rc db_head(struct db *db, const struct oid *oid, db_head_cb cb, void *arg)
{
	return each_head(db, HEAD_GET, bind_oid(db->statements[HEAD_GET], oid),
			 cb, arg);
}

enum rc db_row(struct db *db, const struct oid *oid, enum row_kind kind,
	       struct pack_bytes key, db_row_cb cb, void *arg)
{
	sqlite3_stmt *s = db->statements[ROW_GET];

	return each_row(db, ROW_GET, bind_row_id(s, oid, kind, key), cb, arg);
}

enum rc db_object(struct db *db, const struct oid *oid, db_row_cb cb, void *arg)
{
	return each_row(db, OBJECT_GET,
			bind_oid(db->statements[OBJECT_GET], oid), cb, arg);
}

enum rc db_scan(struct db *db, const struct oid *oid, enum row_kind kind,
		struct pack_bytes start, bool reverse, db_row_cb cb, void *arg)
{
	enum statement which = reverse ? SCAN_DOWN : SCAN_UP;
	sqlite3_stmt *s;
	int e;

	if (reverse && start.p == NULL)
		which = SCAN_DOWN_ALL;
	s = db->statements[which];
	if (which == SCAN_DOWN_ALL) {
		e = bind_oid(s, oid);
		if (e == SQLITE_OK)
			e = sqlite3_bind_int(s, 2, (int)kind);
	} else {
		e = bind_row_id(s, oid, kind, start);
	}
	return each_row(db, which, e, cb, arg);
}

enum rc db_expired(struct db *db, uint64_t stamp_ns, db_row_cb cb, void *arg)
{
	sqlite3_int64 at =
		stamp_ns > INT64_MAX ? INT64_MAX : (sqlite3_int64)stamp_ns;

	return each_row(db, EXPIRED,
			sqlite3_bind_int64(db->statements[EXPIRED], 1, at), cb,
			arg);
}

enum rc db_heads(struct db *db, const struct oid *after, db_head_cb cb,
		 void *arg)
{
	static const struct oid first;

	if (after == NULL)
		return each_head(db, HEADS_FROM,
				 bind_oid(db->statements[HEADS_FROM], &first),
				 cb, arg);
	return each_head(db, HEADS_AFTER,
			 bind_oid(db->statements[HEADS_AFTER], after), cb, arg);
}

/* ------------------------------------------------------------- set hashes */

static void le64(uint8_t *p, uint64_t v)
{
	unsigned i;

	for (i = 0; i < 8; i++)
		p[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t from_le64(const uint8_t *p)
{
	uint64_t v = 0;
	unsigned i;

	for (i = 0; i < 8; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

static void sum_read(struct sum *s, const uint8_t p[HASH_BYTES])
{
	s->lane[0] = from_le64(p);
	s->lane[1] = from_le64(p + 8);
}

static void sum_write(const struct sum *s, uint8_t p[HASH_BYTES])
{
	le64(p, s->lane[0]);
	le64(p + 8, s->lane[1]);
}

static struct sum hash_of(const uint8_t prefix[13], const struct oid *oid,
			  struct pack_bytes key, struct pack_bytes value)
{
	const struct hash_part parts[] = {
		{ prefix, 13 },
		{ oid->b, OID_BYTES },
		{ key.p, key.n },
		{ value.p, value.n },
	};
	uint8_t hash[HASH_BYTES];
	struct sum s;

	crypto_hash(NULL, 0, parts, ARRAY_LEN(parts), hash);
	sum_read(&s, hash);
	return s;
}

static struct sum hash_row(const struct oid *oid, const struct unit_row *row)
{
	uint8_t prefix[13] = { 'r' };

	prefix[1] = (uint8_t)row->kind;
	le64(prefix + 5, row->expires_ns);
	return hash_of(prefix, oid, row->key, row->value);
}

static struct sum hash_head(const struct oid *oid, struct pack_bytes head)
{
	static const uint8_t prefix[13] = { 'h' };

	return hash_of(prefix, oid, (struct pack_bytes){ NULL, 0 }, head);
}

static struct sum *sum_of(struct db *db, const struct oid *oid)
{
	return &db->sums[oid->b[0] >> 4];
}

static void sum_add(struct sum *s, struct sum x)
{
	s->lane[0] += x.lane[0];
	s->lane[1] += x.lane[1];
}

static void sum_subtract(struct sum *s, struct sum x)
{
	s->lane[0] -= x.lane[0];
	s->lane[1] -= x.lane[1];
}

void db_range_hash(const struct db *db, unsigned range, uint8_t out[HASH_BYTES])
{
	PRE(range < STATE_RANGES);
	sum_write(&db->committed[range], out);
}

struct recompute {
	unsigned range;
	struct sum sum;
};

static bool recompute_head(void *arg, const struct oid *oid,
			   struct pack_bytes head)
{
	struct recompute *r = arg;

	if (oid->b[0] >> 4 != r->range)
		return false;
	sum_add(&r->sum, hash_head(oid, head));
	return true;
}

static bool recompute_row(void *arg, const struct oid *oid,
			  const struct unit_row *row)
{
	struct recompute *r = arg;

	if (oid->b[0] >> 4 != r->range)
		return false;
	sum_add(&r->sum, hash_row(oid, row));
	return true;
}

enum rc db_range_recompute(struct db *db, unsigned range,
			   uint8_t out[HASH_BYTES])
{
	struct recompute r = { .range = range };
	struct oid from = { { 0 } };
	enum rc rc;

	PRE(range < STATE_RANGES);
	from.b[0] = (uint8_t)(range << 4);
	rc = each_head(db, HEADS_FROM,
		       bind_oid(db->statements[HEADS_FROM], &from),
		       recompute_head, &r);
	if (rc == RC_OK)
		rc = each_row(db, ROWS_FROM,
			      bind_oid(db->statements[ROWS_FROM], &from),
			      recompute_row, &r);
	if (rc == RC_OK)
		sum_write(&r.sum, out);
	return rc;
}

enum rc db_range_check(struct db *db, unsigned range)
{
	uint8_t kept[HASH_BYTES];
	uint8_t made[HASH_BYTES];
	char text[64];
	enum rc rc = db_range_recompute(db, range, made);

	if (rc != RC_OK)
		return rc;
	sum_write(&db->sums[range], kept);
	if (memcmp(kept, made, HASH_BYTES) == 0)
		return RC_OK;
	(void)snprintf(text, sizeof(text),
		       "the hash of range %u does not fit its rows", range);
	return not_ours(db, text);
}

void db_state_hash(const struct db *db, uint8_t out[HASH_BYTES])
{
	const struct db_meta *m = &db->meta;
	uint8_t numbers[5 * 8];
	uint8_t ranges[STATE_RANGES * HASH_BYTES];
	const struct hash_part parts[] = {
		{ numbers, sizeof(numbers) },
		{ m->conf, m->conf_bytes },
		{ ranges, sizeof(ranges) },
	};
	unsigned i;

	le64(numbers, m->applied_index);
	le64(numbers + 8, m->applied_term);
	le64(numbers + 16, m->stamp_ns);
	le64(numbers + 24, m->wall_ms);
	le64(numbers + 32, m->conf_index);
	for (i = 0; i < STATE_RANGES; i++)
		sum_write(&db->committed[i], ranges + (size_t)i * HASH_BYTES);
	crypto_hash(NULL, 0, parts, ARRAY_LEN(parts), out);
}

uint64_t db_main_bytes(const struct db *db)
{
	return db_vfs_main_bytes(db->vfs);
}

enum rc db_main_read(struct db *db, uint64_t off, void *p, size_t n,
		     size_t *got)
{
	enum rc rc = db_vfs_main_read(db->vfs, off, p, n, got);

	return rc == RC_OK ? rc : failed(db, SQLITE_IOERR, "reading pages");
}

enum rc db_main_verify(struct db *db, uint32_t first, uint32_t pages)
{
	enum rc rc;

	db->why = (struct detail){ 0 };
	rc = db_vfs_main_verify(db->vfs, first, pages, &db->why);
	if (rc != RC_OK)
		(void)detail_set(&db->why, rc, NULL, "%s: %s",
				 db_vfs_file(db->vfs), rc_text(rc));
	return rc;
}

/* ---------------------------------------------------------------- writing */

enum rc db_begin(struct db *db)
{
	return run(db, BEGIN, SQLITE_OK);
}

static bool subtract_row(void *arg, const struct oid *oid,
			 const struct unit_row *row)
{
	sum_subtract(arg, hash_row(oid, row));
	return true;
}

static bool subtract_head(void *arg, const struct oid *oid,
			  struct pack_bytes head)
{
	sum_subtract(arg, hash_head(oid, head));
	return true;
}

enum rc db_wipe(struct db *db, const struct oid *oid, uint32_t kinds)
{
	sqlite3_stmt *s = db->statements[KIND_WIPE];
	static const struct pack_bytes first;
	unsigned kind;
	enum rc rc = RC_OK;
	int e;

	for (kind = ROW_DATA; rc == RC_OK && kind <= ROW_CONFIG; kind++) {
		if ((kinds & 1u << kind) == 0)
			continue;
		rc = db_scan(db, oid, (enum row_kind)kind, first, false,
			     subtract_row, sum_of(db, oid));
		if (rc != RC_OK)
			break;
		e = bind_oid(s, oid);
		if (e == SQLITE_OK)
			e = sqlite3_bind_int(s, 2, (int)kind);
		rc = run(db, KIND_WIPE, e);
	}
	return rc;
}

/* Stands for its third argument, and takes the other two, the value and the
 * expiry that are replaced by it, from the sum. */
static void swap(sqlite3_context *ctx, int n, sqlite3_value **v)
{
	struct db *db = sqlite3_user_data(ctx);
	sqlite3_int64 expires = sqlite3_value_int64(v[1]);
	const uint8_t *p = sqlite3_value_blob(v[0]);
	struct unit_row old;

	CHECK_OBJ(db, DB_MAGIC);
	CHECK(n == 3);
	old.value.p = p != NULL ? p : (const uint8_t *)"";
	old.value.n = (size_t)sqlite3_value_bytes(v[0]);
	if (sqlite3_value_type(v[0]) != SQLITE_BLOB || expires < 0 ||
	    (p == NULL && old.value.n > 0)) {
		db->foreign = true;
		sqlite3_result_error(ctx, "not ours", -1);
		return;
	}
	if (db->row == NULL) {
		(void)subtract_head(sum_of(db, db->oid), db->oid, old.value);
	} else {
		old.kind = db->row->kind;
		old.key = db->row->key;
		old.expires_ns = (uint64_t)expires;
		(void)subtract_row(sum_of(db, db->oid), db->oid, &old);
	}
	sqlite3_result_value(ctx, v[2]);
}

/* Runs `set`, which is bound. Not `done`: there is nothing to replace. */
static enum rc put(struct db *db, const struct oid *oid,
		   const struct unit_row *row, enum statement set, int e,
		   bool *done)
{
	enum rc rc;

	db->oid = oid;
	db->row = row;
	db->foreign = false;
	rc = run(db, set, e);
	if (rc != RC_OK && db->foreign)
		return not_ours(db, "a column is of another type");
	*done = rc == RC_OK && sqlite3_changes(db->conn) > 0;
	return rc;
}

static int bind_head(sqlite3_stmt *s, const struct oid *oid,
		     struct pack_bytes head)
{
	int e = bind_oid(s, oid);

	return e == SQLITE_OK ? bind_bytes(s, 2, head.p, head.n) : e;
}

enum rc db_put_head(struct db *db, const struct oid *oid,
		    struct pack_bytes head)
{
	bool done = false;
	enum rc rc;

	if (head.p == NULL) {
		rc = db_head(db, oid, subtract_head, sum_of(db, oid));
		return rc != RC_OK ? rc
				   : run(db, HEAD_DELETE,
					 bind_oid(db->statements[HEAD_DELETE],
						  oid));
	}
	rc = put(db, oid, NULL, HEAD_SET,
		 bind_head(db->statements[HEAD_SET], oid, head), &done);
	if (rc == RC_OK && !done)
		rc = run(db, HEAD_ADD,
			 bind_head(db->statements[HEAD_ADD], oid, head));
	if (rc == RC_OK)
		sum_add(sum_of(db, oid), hash_head(oid, head));
	return rc;
}

static int bind_row(sqlite3_stmt *s, const struct oid *oid,
		    const struct unit_row *row)
{
	int e = bind_row_id(s, oid, row->kind, row->key);

	if (e == SQLITE_OK)
		e = bind_bytes(s, 4, row->value.p, row->value.n);
	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(s, 5, (sqlite3_int64)row->expires_ns);
	return e;
}

enum rc db_put_row(struct db *db, const struct oid *oid,
		   const struct unit_row *row)
{
	bool done = false;
	enum rc rc;

	if (row->value.p == NULL) {
		rc = db_row(db, oid, row->kind, row->key, subtract_row,
			    sum_of(db, oid));
		return rc != RC_OK ? rc
				   : run(db, ROW_DELETE,
					 bind_row_id(db->statements[ROW_DELETE],
						     oid, row->kind, row->key));
	}
	/* A row that expires when it did before leaves the index alone, which
	 * is half of what it costs. */
	rc = put(db, oid, row, ROW_KEEP,
		 bind_row(db->statements[ROW_KEEP], oid, row), &done);
	if (rc == RC_OK && !done)
		rc = put(db, oid, row, ROW_PUT,
			 bind_row(db->statements[ROW_PUT], oid, row), &done);
	if (rc == RC_OK)
		sum_add(sum_of(db, oid), hash_row(oid, row));
	return rc;
}

static enum rc put_number(struct db *db, const char *key, uint64_t v)
{
	sqlite3_stmt *s = db->statements[META_PUT];
	int e = sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);

	if (e == SQLITE_OK)
		e = sqlite3_bind_int64(s, 2, (sqlite3_int64)v);
	return run(db, META_PUT, e);
}

static enum rc put_changed(struct db *db, const char *key, uint64_t old,
			   uint64_t new)
{
	return old == new ? RC_OK : put_number(db, key, new);
}

static enum rc put_conf(struct db *db, const struct db_meta *m)
{
	sqlite3_stmt *s = db->statements[META_PUT];
	void *copy = malloc(m->conf_bytes + 1);
	enum rc rc;
	int e;

	if (copy == NULL)
		return failed(db, SQLITE_NOMEM, "the configuration");
	if (m->conf_bytes > 0)
		memcpy(copy, m->conf, m->conf_bytes);
	e = sqlite3_bind_text(s, 1, "conf", -1, SQLITE_STATIC);
	if (e == SQLITE_OK)
		e = bind_bytes(s, 2, copy, m->conf_bytes);
	rc = run(db, META_PUT, e);
	free(db->conf);
	db->conf = copy;
	db->meta.conf = copy;
	db->meta.conf_bytes = m->conf_bytes;
	return rc;
}

static enum rc put_meta(struct db *db, const struct db_meta *m)
{
	const struct db_meta *old = &db->meta;
	enum rc rc = put_changed(db, "applied_index", old->applied_index,
				 m->applied_index);

	if (rc == RC_OK)
		rc = put_changed(db, "applied_term", old->applied_term,
				 m->applied_term);
	if (rc == RC_OK)
		rc = put_changed(db, "stamp_ns", old->stamp_ns, m->stamp_ns);
	if (rc == RC_OK)
		rc = put_changed(db, "wall_ms", old->wall_ms, m->wall_ms);
	if (rc == RC_OK && m->conf != NULL) {
		rc = put_conf(db, m);
		if (rc == RC_OK)
			rc = put_changed(db, "conf_index", old->conf_index,
					 m->conf_index);
	}
	return rc;
}

static enum rc put_sums(struct db *db)
{
	sqlite3_stmt *s = db->statements[RANGE_PUT];
	uint8_t hash[HASH_BYTES];
	unsigned i;
	enum rc rc = RC_OK;
	int e;

	for (i = 0; rc == RC_OK && i < STATE_RANGES; i++) {
		if (memcmp(&db->sums[i], &db->committed[i],
			   sizeof(db->sums[i])) == 0)
			continue;
		sum_write(&db->sums[i], hash);
		e = sqlite3_bind_int(s, 1, (int)i);
		if (e == SQLITE_OK)
			e = bind_bytes(s, 2, hash, sizeof(hash));
		rc = run(db, RANGE_PUT, e);
	}
	return rc;
}

enum rc db_commit(struct db *db, const struct db_meta *meta)
{
	enum rc rc = put_sums(db);

	if (rc == RC_OK)
		rc = put_meta(db, meta);
	if (rc == RC_OK)
		rc = run(db, COMMIT, SQLITE_OK);
	if (rc != RC_OK)
		return rc;
	memcpy(db->committed, db->sums, sizeof(db->sums));
	db->meta.applied_index = meta->applied_index;
	db->meta.applied_term = meta->applied_term;
	db->meta.stamp_ns = meta->stamp_ns;
	db->meta.wall_ms = meta->wall_ms;
	if (meta->conf != NULL)
		db->meta.conf_index = meta->conf_index;
	return RC_OK;
}

enum rc db_rollback(struct db *db)
{
	memcpy(db->sums, db->committed, sizeof(db->sums));
	if (sqlite3_get_autocommit(db->conn) != 0)
		return RC_OK; /* SQLite did it when something failed. */
	return run(db, ROLLBACK, SQLITE_OK);
}

enum rc db_checkpoint(struct db *db)
{
	int e;

	PRE(sqlite3_get_autocommit(db->conn) != 0);
	e = sqlite3_wal_checkpoint_v2(db->conn, NULL,
				      SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
	if (e != SQLITE_OK)
		return failed(db, e, "a checkpoint");
	POST(db_vfs_main_whole(db->vfs));
	return RC_OK;
}

uint64_t db_wal_bytes(const struct db *db)
{
	return (uint64_t)db_vfs_frames(db->vfs) * STATE_PAGE_BYTES;
}

/* ---------------------------------------------------------------- opening */

static enum rc exec(struct db *db, const char *text)
{
	int e = sqlite3_exec(db->conn, text, NULL, NULL, NULL);

	return e == SQLITE_OK ? RC_OK : failed(db, e, text);
}

/* A statement that gives one value; RC_EOF when it gives none. */
static enum rc one(struct db *db, const char *text, sqlite3_int64 *out,
		   char *word, size_t word_bytes)
{
	sqlite3_stmt *s = NULL;
	enum rc rc = RC_EOF;
	int e = sqlite3_prepare_v2(db->conn, text, -1, &s, NULL);

	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e == SQLITE_ROW) {
		rc = RC_OK;
		if (out != NULL)
			*out = sqlite3_column_int64(s, 0);
		if (word != NULL)
			(void)snprintf(word, word_bytes, "%s",
				       (const char *)sqlite3_column_text(s, 0));
	} else if (e != SQLITE_DONE) {
		rc = failed(db, e, text);
	}
	(void)sqlite3_finalize(s);
	return rc;
}

/* A pragma that does not apply says nothing. */
static enum rc check_pragmas(struct db *db)
{
	char mode[16] = "";
	char lock[16] = "";
	sqlite3_int64 sync = -1;
	sqlite3_int64 page = -1;
	enum rc rc = one(db, "PRAGMA journal_mode", NULL, mode, sizeof(mode));

	if (rc == RC_OK)
		rc = one(db, "PRAGMA locking_mode", NULL, lock, sizeof(lock));
	if (rc == RC_OK)
		rc = one(db, "PRAGMA synchronous", &sync, NULL, 0);
	if (rc == RC_OK)
		rc = one(db, "PRAGMA page_size", &page, NULL, 0);
	if (rc != RC_OK)
		return rc;
	if (strcmp(mode, "wal") != 0 || strcmp(lock, "exclusive") != 0 ||
	    sync != 1 || page != STATE_PAGE_BYTES)
		return failed(db, SQLITE_ERROR, "SQLite refuses our pragmas");
	return RC_OK;
}

static enum rc open_conn(struct db *db)
{
	int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
		    SQLITE_OPEN_PRIVATECACHE | SQLITE_OPEN_EXRESCODE;
	int e = sqlite3_open_v2(db_vfs_file(db->vfs), &db->conn, flags,
				db_vfs_name(db->vfs));
	enum rc rc;

	if (e == SQLITE_OK)
		e = sqlite3_db_config(db->conn,
				      SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1,
				      (int *)NULL);
	if (e == SQLITE_OK)
		e = sqlite3_db_config(db->conn, SQLITE_DBCONFIG_DEFENSIVE, 1,
				      (int *)NULL);
	if (e == SQLITE_OK)
		e = sqlite3_create_function(db->conn, "swap", 3,
					    SQLITE_UTF8 | SQLITE_DIRECTONLY, db,
					    swap, NULL, NULL);
	if (e != SQLITE_OK)
		return failed(db, e, "open");
	rc = exec(db, pragmas);
	return rc == RC_OK ? check_pragmas(db) : rc;
}

static enum rc prepare(struct db *db)
{
	unsigned i;
	int e;

	for (i = 0; i < STATEMENTS; i++) {
		e = sqlite3_prepare_v3(db->conn, sql[i], -1,
				       SQLITE_PREPARE_PERSISTENT,
				       &db->statements[i], NULL);
		if (e == SQLITE_ERROR)
			return not_ours(db, "the schema is not ours");
		if (e != SQLITE_OK)
			return failed(db, e, sql[i]);
	}
	return RC_OK;
}

static enum rc create_rows(struct db *db, uint32_t shard, uint64_t generation)
{
	static const char *const zero[] = { "applied_index", "applied_term",
					    "stamp_ns", "wall_ms",
					    "conf_index" };
	sqlite3_stmt *s = db->statements[RANGE_PUT];
	static const uint8_t none[HASH_BYTES];
	unsigned i;
	enum rc rc = put_number(db, "format", DB_SCHEMA_VERSION);
	int e;

	if (rc == RC_OK)
		rc = put_number(db, "shard", shard);
	if (rc == RC_OK)
		rc = put_number(db, "generation", generation);
	for (i = 0; rc == RC_OK && i < ARRAY_LEN(zero); i++)
		rc = put_number(db, zero[i], 0);
	for (i = 0; rc == RC_OK && i < STATE_RANGES; i++) {
		e = sqlite3_bind_int(s, 1, (int)i);
		if (e == SQLITE_OK)
			e = bind_bytes(s, 2, none, sizeof(none));
		rc = run(db, RANGE_PUT, e);
	}
	return rc;
}

/* A database without a table is one whose first transaction was lost. */
static enum rc create(struct db *db, uint32_t shard, uint64_t generation)
{
	sqlite3_int64 tables = 0;
	enum rc rc =
		one(db, "SELECT count(*) FROM sqlite_schema", &tables, NULL, 0);

	if (rc == RC_OK && tables > 0)
		return not_ours(db, "the schema has no version");
	if (rc == RC_OK)
		rc = exec(db, schema);
	if (rc == RC_OK)
		rc = prepare(db);
	if (rc == RC_OK)
		rc = create_rows(db, shard, generation);
	if (rc == RC_OK)
		rc = run(db, COMMIT, SQLITE_OK);
	return rc;
}

/* RC_EOF: there is no such row. */
static enum rc get_number(struct db *db, const char *key, uint64_t *out)
{
	sqlite3_stmt *s = db->statements[META_GET];
	enum rc rc = RC_EOF;
	int e = sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);

	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e == SQLITE_ROW && sqlite3_column_type(s, 0) == SQLITE_INTEGER) {
		*out = (uint64_t)sqlite3_column_int64(s, 0);
		rc = RC_OK;
	} else if (e != SQLITE_ROW && e != SQLITE_DONE) {
		rc = failed(db, e, sql[META_GET]);
	}
	(void)sqlite3_reset(s);
	return rc;
}

static enum rc get_conf(struct db *db)
{
	sqlite3_stmt *s = db->statements[META_GET];
	struct pack_bytes b;
	enum rc rc = RC_OK;
	int e = sqlite3_bind_text(s, 1, "conf", -1, SQLITE_STATIC);

	if (e == SQLITE_OK)
		e = sqlite3_step(s);
	if (e == SQLITE_ROW) {
		rc = column_bytes(db, s, 0, &b);
		if (rc == RC_OK) {
			db->conf = malloc(b.n + 1);
			if (db->conf == NULL)
				rc = failed(db, SQLITE_NOMEM, "configuration");
		}
		if (rc == RC_OK) {
			memcpy(db->conf, b.p, b.n);
			db->meta.conf = db->conf;
			db->meta.conf_bytes = b.n;
		}
	} else if (e != SQLITE_DONE) {
		rc = failed(db, e, sql[META_GET]);
	}
	(void)sqlite3_reset(s);
	return rc;
}

/* Whose copy it was, it is no more. */
static enum rc put_generation(struct db *db, uint64_t generation)
{
	enum rc rc = run(db, BEGIN, SQLITE_OK);

	if (rc == RC_OK)
		rc = put_number(db, "generation", generation);
	if (rc == RC_OK)
		rc = run(db, COMMIT, SQLITE_OK);
	return rc == RC_OK ? db_checkpoint(db) : rc;
}

static enum rc get_meta(struct db *db, uint32_t shard, uint64_t generation,
			bool adopt)
{
	uint64_t format = 0;
	uint64_t got_shard = UINT64_MAX;
	uint64_t got_generation = UINT64_MAX;
	struct {
		const char *key;
		uint64_t *to;
	} numbers[] = {
		{ "format", &format },
		{ "shard", &got_shard },
		{ "generation", &got_generation },
		{ "applied_index", &db->meta.applied_index },
		{ "applied_term", &db->meta.applied_term },
		{ "stamp_ns", &db->meta.stamp_ns },
		{ "wall_ms", &db->meta.wall_ms },
		{ "conf_index", &db->meta.conf_index },
	};
	unsigned i;
	enum rc rc = RC_OK;

	for (i = 0; rc == RC_OK && i < ARRAY_LEN(numbers); i++)
		rc = get_number(db, numbers[i].key, numbers[i].to);
	if (rc == RC_EOF)
		return not_ours(db, "meta lacks a row");
	if (rc != RC_OK)
		return rc;
	if (format != DB_SCHEMA_VERSION || got_shard != shard ||
	    (got_generation != generation && !adopt))
		return not_ours(db, "it is another shard's state");
	if (got_generation != generation)
		rc = put_generation(db, generation);
	return rc == RC_OK ? get_conf(db) : rc;
}

static enum rc get_sums(struct db *db)
{
	sqlite3_stmt *s = db->statements[RANGE_GET];
	struct pack_bytes b;
	unsigned i;
	enum rc rc = RC_OK;
	int e;

	for (i = 0; rc == RC_OK && i < STATE_RANGES; i++) {
		e = sqlite3_bind_int(s, 1, (int)i);
		if (e == SQLITE_OK)
			e = sqlite3_step(s);
		if (e == SQLITE_ROW)
			rc = column_bytes(db, s, 0, &b);
		else if (e == SQLITE_DONE)
			rc = not_ours(db, "ranges lacks a row");
		else
			rc = failed(db, e, sql[RANGE_GET]);
		if (rc == RC_OK && b.n != HASH_BYTES)
			rc = not_ours(db, "a range's hash is too short");
		if (rc == RC_OK)
			sum_read(&db->sums[i], b.p);
		(void)sqlite3_reset(s);
	}
	memcpy(db->committed, db->sums, sizeof(db->sums));
	return rc;
}

static enum rc open_schema(struct db *db, uint32_t shard, uint64_t generation,
			   bool adopt)
{
	sqlite3_int64 version = -1;
	enum rc rc = one(db, "PRAGMA user_version", &version, NULL, 0);

	if (rc != RC_OK)
		return rc;
	if (version > (sqlite3_int64)DB_SCHEMA_VERSION) {
		db->why = (struct detail){ 0 };
		return detail_set(&db->why, RC_VERSION, NULL,
				  "%s has schema version %lld, this program "
				  "knows up to %u",
				  db_vfs_file(db->vfs), version,
				  DB_SCHEMA_VERSION);
	}
	if (version == 0 && !adopt)
		rc = create(db, shard, generation);
	else if (version == (sqlite3_int64)DB_SCHEMA_VERSION)
		rc = prepare(db);
	else
		rc = not_ours(db, "its schema version is unknown");
	if (rc == RC_OK)
		rc = get_meta(db, shard, generation, adopt);
	return rc == RC_OK ? get_sums(db) : rc;
}

static void release(struct db *db)
{
	unsigned i;

	for (i = 0; i < STATEMENTS; i++)
		(void)sqlite3_finalize(db->statements[i]);
	CHECK(sqlite3_close(db->conn) == SQLITE_OK);
	db_vfs_close(db->vfs);
	free(db->conf);
	db->magic = 0;
	free(db);
}

static enum rc open_as(struct disk *disk, uint32_t shard, uint64_t generation,
		       bool adopt, struct db **out, struct detail *why)
{
	struct db *db = calloc(1, sizeof(*db));
	enum rc rc;

	*out = NULL;
	if (db == NULL)
		return RC_NOMEM;
	db->magic = DB_MAGIC;
	rc = db_vfs_open(disk, shard, generation, &db->vfs, why);
	if (rc != RC_OK) {
		free(db);
		return rc;
	}
	rc = open_conn(db);
	if (rc == RC_OK)
		rc = open_schema(db, shard, generation, adopt);
	if (rc != RC_OK) {
		(void)detail_set(why, rc, NULL, "%s", db->why.text);
		db_discard(db);
		return rc;
	}
	*out = db;
	return RC_OK;
}

enum rc db_open(struct disk *disk, uint32_t shard, uint64_t generation,
		struct db **out, struct detail *why)
{
	return open_as(disk, shard, generation, false, out, why);
}

enum rc db_adopt(struct disk *disk, uint32_t shard, uint64_t generation,
		 struct db **out, struct detail *why)
{
	return open_as(disk, shard, generation, true, out, why);
}

void db_close(struct db *db)
{
	CHECK_OBJ(db, DB_MAGIC);
	PRE(sqlite3_get_autocommit(db->conn) != 0);
	release(db);
}

void db_discard(struct db *db)
{
	CHECK_OBJ(db, DB_MAGIC);
	db_vfs_freeze(db->vfs);
	release(db);
}

const struct db_meta *db_meta(const struct db *db)
{
	return &db->meta;
}
