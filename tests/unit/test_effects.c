#include "objects/effects.h"

#include "tests/lib/runner.h"

static struct pack_w w;

static void fresh(void)
{
	pack_w_release(&w);
	pack_w_init(&w, ENTRY_BYTES_MAX);
}

static struct pack_bytes bytes(const void *p, size_t n)
{
	return (struct pack_bytes){ p, n };
}

static struct pack_bytes text(const char *s)
{
	return bytes(s, strlen(s));
}

static const struct pack_bytes none = { NULL, 0 };

static struct oid oid_of(uint8_t first)
{
	struct oid oid = { { 0 } };

	memset(oid.b, first, sizeof(oid.b));
	return oid;
}

/* An entry with one of everything. */
static void write_sample(void)
{
	struct oid a = oid_of(1);
	struct oid b = oid_of(0xff);
	struct oid c = oid_of(3);

	fresh();
	entry_begin(&w, 1234567890123u, 99, 7, 3);
	unit_begin(&w, &a, 0, text("head"), 3);
	unit_row(&w,
		 &(struct unit_row){ ROW_DATA, text("key"), text("value"), 0 });
	unit_row(&w,
		 &(struct unit_row){ ROW_IDEM, text(""), text(""), INT64_MAX });
	unit_row(&w, &(struct unit_row){ ROW_CONFIG, text("gone"), none, 0 });
	unit_begin(&w, &b, UNIT_WIPE, text(""), 0);
	unit_begin(&w, &c, UNIT_WIPE | UNIT_GONE, none, 0);
	EXPECT_RC(w.rc, RC_OK);
}

static void expect_row(struct unit_r *u, enum row_kind kind, const char *key,
		       const char *value, uint64_t expires_ns)
{
	struct unit_row r;

	EXPECT_RC(unit_next(u, &r), RC_OK);
	EXPECT_INT(r.kind, kind);
	EXPECT_UINT(r.key.n, strlen(key));
	EXPECT_MEM(r.key.p, key, strlen(key));
	EXPECT_TRUE((r.value.p != NULL) == (value != NULL));
	if (value != NULL) {
		EXPECT_UINT(r.value.n, strlen(value));
		EXPECT_MEM(r.value.p, value, strlen(value));
	}
	EXPECT_UINT(r.expires_ns, expires_ns);
}

TEST(round_trip)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	struct oid oid;

	write_sample();
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_OK);
	EXPECT_UINT(e.stamp_ns, 1234567890123u);
	EXPECT_UINT(e.wall_ms, 99);
	EXPECT_UINT(e.term, 7);
	EXPECT_UINT(e.units, 3);

	EXPECT_RC(entry_next(&e, &u), RC_OK);
	oid = oid_of(1);
	EXPECT_MEM(u.oid.b, oid.b, OID_BYTES);
	EXPECT_UINT(u.flags, 0);
	EXPECT_UINT(u.head.n, 4);
	EXPECT_MEM(u.head.p, "head", 4);
	EXPECT_UINT(u.rows, 3);
	expect_row(&u, ROW_DATA, "key", "value", 0);
	expect_row(&u, ROW_IDEM, "", "", INT64_MAX);
	expect_row(&u, ROW_CONFIG, "gone", NULL, 0);
	EXPECT_RC(unit_next(&u, &r), RC_EOF);
	EXPECT_RC(unit_next(&u, &r), RC_EOF);

	EXPECT_RC(entry_next(&e, &u), RC_OK);
	oid = oid_of(0xff);
	EXPECT_MEM(u.oid.b, oid.b, OID_BYTES);
	EXPECT_UINT(u.flags, UNIT_WIPE);
	EXPECT_NOT_NULL(u.head.p);
	EXPECT_UINT(u.head.n, 0);
	EXPECT_RC(unit_next(&u, &r), RC_EOF);

	EXPECT_RC(entry_next(&e, &u), RC_OK);
	EXPECT_UINT(u.flags, UNIT_WIPE | UNIT_GONE);
	EXPECT_NULL(u.head.p);
	EXPECT_RC(entry_next(&e, &u), RC_EOF);
	EXPECT_RC(entry_next(&e, &u), RC_EOF);
	pack_w_release(&w);
}

TEST(scrub)
{
	struct entry_r e;
	struct unit_r u;

	fresh();
	entry_scrub(&w, 5, 6, UINT64_MAX);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_OK);
	EXPECT_UINT(e.stamp_ns, 5);
	EXPECT_UINT(e.wall_ms, 6);
	EXPECT_UINT(e.term, UINT64_MAX);
	EXPECT_UINT(e.units, 0);
	EXPECT_TRUE(e.scrub);
	EXPECT_TRUE(entry_scrubs(w.p, w.n));
	EXPECT_FALSE(entry_scrubs(w.p, w.n - 1));
	EXPECT_RC(entry_next(&e, &u), RC_EOF);
	/* Nothing may follow. */
	pack_nil(&w);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_OK);
	EXPECT_RC(entry_next(&e, &u), RC_CORRUPT);
	fresh();
	entry_begin(&w, 5, 6, 1, 0);
	EXPECT_FALSE(entry_scrubs(w.p, w.n));
	pack_w_release(&w);
}

TEST(tick)
{
	struct entry_r e;
	struct unit_r u;

	fresh();
	entry_begin(&w, 5, 6, UINT64_MAX, 0);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_OK);
	EXPECT_UINT(e.term, UINT64_MAX);
	EXPECT_RC(entry_next(&e, &u), RC_EOF);
	pack_w_release(&w);
}

/* All of an entry, whatever it holds, without a look at its rows. */
static enum rc pass_over(const void *p, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	enum rc rc = entry_read(p, n, &e);

	while (rc == RC_OK)
		rc = entry_next(&e, &u);
	return rc;
}

static enum rc read_all(const void *p, size_t n, unsigned *rows)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row r;
	enum rc rc = entry_read(p, n, &e);

	*rows = 0;
	if (rc != RC_OK)
		return rc;
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		while ((rc = unit_next(&u, &r)) == RC_OK)
			(*rows)++;
		if (rc != RC_EOF)
			return rc;
	}
	return rc;
}

/* Rows are verified whether somebody wants them or not. */
static enum rc walk(const void *p, size_t n, unsigned *rows)
{
	enum rc rc = read_all(p, n, rows);

	EXPECT_RC(pass_over(p, n), rc);
	return rc;
}

TEST(truncated_at_every_length)
{
	unsigned rows;
	uint8_t *copy;
	size_t n;

	write_sample();
	EXPECT_RC(walk(w.p, w.n, &rows), RC_EOF);
	EXPECT_UINT(rows, 3);
	for (n = 0; n < w.n; n++) {
		/* In memory of its own, so that ASan sees a byte too many. */
		copy = malloc(n + 1);
		memcpy(copy, w.p, n);
		runner_context("%zu of %zu bytes", n, w.n);
		EXPECT_RC(walk(copy, n, &rows), RC_CORRUPT);
		free(copy);
	}
	pack_w_release(&w);
}

TEST(bytes_behind_the_end)
{
	unsigned rows;

	write_sample();
	pack_nil(&w);
	EXPECT_RC(walk(w.p, w.n, &rows), RC_CORRUPT);
	pack_w_release(&w);
}

TEST(every_flip_is_read_without_harm)
{
	unsigned rows;
	size_t i;
	enum rc rc;

	write_sample();
	for (i = 0; i < w.n * 8; i++) {
		w.p[i / 8] ^= (uint8_t)(1u << i % 8);
		rc = walk(w.p, w.n, &rows);
		EXPECT_TRUE(rc == RC_EOF || rc == RC_CORRUPT ||
			    rc == RC_VERSION);
		w.p[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	pack_w_release(&w);
}

TEST(newer_version)
{
	struct entry_r e;

	fresh();
	pack_array(&w, 9);
	pack_u64(&w, ENTRY_VERSION + 1);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_VERSION);
	fresh();
	pack_array(&w, 5);
	pack_u64(&w, 0);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_CORRUPT);
	fresh();
	pack_array(&w, 4);
	pack_u64(&w, ENTRY_VERSION);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_CORRUPT);
	EXPECT_RC(entry_read(NULL, 0, &e), RC_CORRUPT);
	pack_w_release(&w);
}

/* One unit by hand, each field good or not. */
struct odd {
	size_t oid_n;
	uint64_t flags;
	bool head;
	uint32_t fields;
	uint64_t kind;
	size_t key_n;
	bool value;
	uint64_t expires_ns;
};

static enum rc read_odd(const struct odd *o)
{
	static const uint8_t zeros[ROW_KEY_BYTES_MAX + 1];
	unsigned rows;
	uint32_t i;

	fresh();
	entry_begin(&w, 1, 1, 1, 1);
	pack_array(&w, 4);
	pack_bin(&w, zeros, o->oid_n);
	pack_u64(&w, o->flags);
	if (o->head)
		pack_bin(&w, "h", 1);
	else
		pack_nil(&w);
	pack_array(&w, o->fields);
	for (i = 0; i + 4 <= o->fields; i += 4) {
		pack_u64(&w, o->kind);
		pack_bin(&w, zeros, o->key_n);
		if (o->value)
			pack_bin(&w, "v", 1);
		else
			pack_nil(&w);
		pack_u64(&w, o->expires_ns);
	}
	for (; i < o->fields; i++)
		pack_u64(&w, 1);
	return walk(w.p, w.n, &rows);
}

TEST(fields_out_of_bounds)
{
	const struct odd good = { OID_BYTES, 0, true, 8, 1, 3, true, 5 };
	struct odd o = good;

	EXPECT_RC(read_odd(&o), RC_EOF);
	o.key_n = ROW_KEY_BYTES_MAX;
	EXPECT_RC(read_odd(&o), RC_EOF);
	o.key_n = ROW_KEY_BYTES_MAX + 1;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o = good;
	o.oid_n = OID_BYTES - 1;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.oid_n = OID_BYTES + 1;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o = good;
	o.flags = 8;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.flags = UNIT_WIPE;
	EXPECT_RC(read_odd(&o), RC_EOF);
	o.flags = UNIT_CLEAR;
	EXPECT_RC(read_odd(&o), RC_EOF);
	o = good;
	o.fields = 6;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o = good;
	o.kind = 0;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.kind = ROW_CONFIG + 1;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o = good;
	o.expires_ns = (uint64_t)INT64_MAX + 1;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o = good;
	o.value = false;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.expires_ns = 0;
	EXPECT_RC(read_odd(&o), RC_EOF);
	pack_w_release(&w);
}

TEST(gone_is_nothing_but_gone)
{
	struct odd o = { OID_BYTES, UNIT_GONE | UNIT_WIPE, false, 0, 1, 1, true,
			 0 };

	EXPECT_RC(read_odd(&o), RC_EOF);
	o.flags = UNIT_GONE;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.flags = UNIT_GONE | UNIT_WIPE;
	o.head = true;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	o.head = false;
	o.fields = 4;
	EXPECT_RC(read_odd(&o), RC_CORRUPT);
	pack_w_release(&w);
}

TEST(too_many_units)
{
	struct entry_r e;

	fresh();
	entry_begin(&w, 1, 1, 1, ENTRY_UNITS_MAX);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_OK);
	fresh();
	pack_array(&w, 5);
	pack_u64(&w, ENTRY_VERSION);
	pack_u64(&w, 1);
	pack_u64(&w, 1);
	pack_u64(&w, 1);
	pack_array(&w, ENTRY_UNITS_MAX + 1);
	EXPECT_RC(entry_read(w.p, w.n, &e), RC_CORRUPT);
	pack_w_release(&w);
}

TEST(bound_holds)
{
	static const uint8_t big[70000];
	static const size_t sizes[] = { 0, 1, 255, 256, 65535, 65536, 70000 };
	struct oid oid = oid_of(0x80);
	struct unit_row row = { ROW_CONFIG, none, none, INT64_MAX };
	size_t i;
	uint32_t k;
	size_t row_bytes;

	for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		fresh();
		row.key = bytes(big, i * 300);
		row.value = bytes(big, sizes[i]);
		row_bytes = 0;
		unit_begin(&w, &oid, UNIT_WIPE, bytes(big, sizes[i]), 20);
		for (k = 0; k < 20; k++) {
			unit_row(&w, &row);
			row_bytes += row.key.n + row.value.n;
		}
		EXPECT_RC(w.rc, RC_OK);
		EXPECT_TRUE(w.n <= unit_bytes_max(sizes[i], 20, row_bytes));
	}
	pack_w_release(&w);
}

TEST(our_own_mistakes_abort)
{
	struct oid oid = oid_of(1);
	struct unit_row row = { ROW_DATA, none, none, 1 };

	fresh();
	EXPECT_ABORT(unit_begin(&w, &oid, 8, none, 0));
	EXPECT_ABORT(unit_begin(&w, &oid, UNIT_GONE, none, 0));
	EXPECT_ABORT(unit_begin(&w, &oid, UNIT_GONE | UNIT_WIPE, text("h"), 0));
	EXPECT_ABORT(unit_begin(&w, &oid, UNIT_GONE | UNIT_WIPE, none, 1));
	EXPECT_ABORT(unit_row(&w, &row));
	EXPECT_ABORT(entry_begin(&w, 1, 1, 1, ENTRY_UNITS_MAX + 1));
	pack_w_release(&w);
}
