/*
 * effects, join: any bytes as a log entry. What is read is within its bounds
 * and inside the entry; written again and read again it is the same, and not
 * longer than unit_bytes_max says. Joined it has the same rows.
 */
#include <string.h>

#include "objects/join.h"
#include "tests/fuzz/fuzz.h"

static void must_lie_in(struct pack_bytes b, const uint8_t *p, size_t n)
{
	if (b.p == NULL)
		return;
	MUST(b.p >= p && b.p <= p + n);
	MUST(b.n <= (size_t)(p + n - b.p));
}

static bool same(struct pack_bytes a, struct pack_bytes b)
{
	if (a.p == NULL || b.p == NULL)
		return a.p == b.p;
	return a.n == b.n && memcmp(a.p, b.p, a.n) == 0;
}

/* Copies a unit of a good entry. */
static void write_unit(struct pack_w *w, struct unit_r u)
{
	struct unit_row row;
	size_t from = w->n;
	size_t bytes = 0;
	uint32_t rows = u.rows;
	enum rc rc;

	unit_begin(w, &u.oid, u.flags, u.head, u.rows);
	while ((rc = unit_next(&u, &row)) == RC_OK) {
		unit_row(w, &row);
		bytes += row.key.n + row.value.n;
	}
	MUST(rc == RC_EOF);
	MUST(w->rc == RC_OK);
	MUST(w->n - from <= unit_bytes_max(u.head.n, rows, bytes));
}

static void compare_units(struct unit_r a, struct unit_r b)
{
	struct unit_row x;
	struct unit_row y;

	MUST(memcmp(&a.oid, &b.oid, sizeof(a.oid)) == 0);
	MUST(a.flags == b.flags && a.rows == b.rows);
	MUST(same(a.head, b.head));
	while (a.rows > 0) {
		MUST(unit_next(&a, &x) == RC_OK);
		MUST(unit_next(&b, &y) == RC_OK);
		MUST(x.kind == y.kind && x.expires_ns == y.expires_ns);
		MUST(same(x.key, y.key));
		MUST(same(x.value, y.value));
	}
}

/* The whole entry is good: `units` of them. */
static void there_and_back(const uint8_t *p, size_t n, uint32_t units)
{
	struct pack_w w;
	struct entry_r a;
	struct entry_r b;
	struct unit_r x;
	struct unit_r y;

	pack_w_init(&w, ENTRY_BYTES_MAX);
	MUST(entry_read(p, n, &a) == RC_OK);
	if (a.scrub)
		entry_scrub(&w, a.stamp_ns, a.wall_ms, a.term);
	else
		entry_begin(&w, a.stamp_ns, a.wall_ms, a.term, units);
	while (entry_next(&a, &x) == RC_OK)
		write_unit(&w, x);
	MUST(w.rc == RC_OK);
	MUST(w.n <= n); /* Ours is the shortest form. */
	MUST(entry_read(p, n, &a) == RC_OK);
	MUST(entry_read(w.p, w.n, &b) == RC_OK);
	MUST(a.stamp_ns == b.stamp_ns && a.wall_ms == b.wall_ms);
	MUST(a.term == b.term && a.units == b.units);
	MUST(a.scrub == b.scrub && entry_scrubs(p, n) == a.scrub);
	while (entry_next(&a, &x) == RC_OK) {
		MUST(entry_next(&b, &y) == RC_OK);
		compare_units(x, y);
	}
	MUST(entry_next(&b, &y) == RC_EOF);
	pack_w_release(&w);
}

/* The units of a good entry, those of one object as one: no row is lost. */
static void joined(const uint8_t *p, size_t n)
{
	struct join join;
	struct pack_w units;
	struct pack_w w;
	struct entry_r e;
	struct unit_r u;
	uint32_t units_n = 0;
	uint64_t rows = 0;

	join_init(&join);
	pack_w_init(&units, ENTRY_BYTES_MAX);
	pack_w_init(&w, ENTRY_BYTES_MAX);
	MUST(entry_read(p, n, &e) == RC_OK);
	for (; entry_next(&e, &u) == RC_OK; units_n++) {
		write_unit(&units, u);
		rows += u.rows;
	}
	entry_begin(&w, e.stamp_ns, e.wall_ms, e.term,
		    join_read(&join, units.p, units.n, units_n));
	join_write(&join, &w);
	MUST(w.rc == RC_OK && w.n <= n);
	MUST(entry_read(w.p, w.n, &e) == RC_OK && e.units <= units_n);
	while (entry_next(&e, &u) == RC_OK)
		rows -= u.rows;
	MUST(rows == 0 && e.r.at == e.r.end);
	pack_w_release(&w);
	pack_w_release(&units);
	join_release(&join);
}

/* A good entry, without a look at its rows. */
static void passed_over(const uint8_t *p, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	enum rc rc;

	MUST(entry_read(p, n, &e) == RC_OK);
	while ((rc = entry_next(&e, &u)) == RC_OK)
		;
	MUST(rc == RC_EOF);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
	struct entry_r e;
	struct unit_r u;
	struct unit_row row;
	uint32_t units;
	enum rc rc = entry_read(p, n, &e);

	MUST(rc == RC_OK || rc == RC_CORRUPT || rc == RC_VERSION);
	if (rc != RC_OK)
		return 0;
	units = e.units;
	MUST(units <= ENTRY_UNITS_MAX);
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		must_lie_in(u.head, p, n);
		while ((rc = unit_next(&u, &row)) == RC_OK) {
			must_lie_in(row.key, p, n);
			must_lie_in(row.value, p, n);
			MUST(row.key.n <= ROW_KEY_BYTES_MAX);
			MUST(row.value.p != NULL || row.expires_ns == 0);
		}
		if (rc != RC_EOF)
			break;
	}
	MUST(rc == RC_EOF || rc == RC_CORRUPT);
	if (rc == RC_EOF) {
		passed_over(p, n);
		there_and_back(p, n, units);
		if (units > 0)
			joined(p, n);
	}
	return 0;
}
