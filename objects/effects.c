#include "objects/effects.h"

#include "node/base/check.h"

#define ENTRY_FIELDS 5u
#define UNIT_FIELDS  4u
#define ROW_FIELDS   4u
#define UNIT_FLAGS \
	((uint32_t)UNIT_WIPE | (uint32_t)UNIT_GONE | (uint32_t)UNIT_CLEAR)

/* The most that the head of an array or a string and an integer take. */
#define HEAD_BYTES 5u
#define INT_BYTES  9u

/* ---------------------------------------------------------------- writing */

void unit_begin(struct pack_w *w, const struct oid *oid, uint32_t flags,
		struct pack_bytes head, uint32_t rows)
{
	PRE((flags & ~UNIT_FLAGS) == 0);
	/* An object without a head has no rows: there is nothing to come back
	 * to them by. */
	PRE((flags & UNIT_GONE) == 0 || (flags & UNIT_WIPE) != 0);
	PRE((flags & UNIT_GONE) == 0 || head.p == NULL);
	PRE((flags & UNIT_GONE) == 0 || rows == 0);
	PRE(rows <= UINT32_MAX / ROW_FIELDS);
	pack_array(w, UNIT_FIELDS);
	pack_bin(w, oid->b, OID_BYTES);
	pack_u64(w, flags);
	if (head.p == NULL)
		pack_nil(w);
	else
		pack_bin(w, head.p, head.n);
	pack_array(w, rows * ROW_FIELDS);
}

void unit_row(struct pack_w *w, const struct unit_row *row)
{
	PRE(row->kind >= ROW_DATA);
	PRE(row->kind <= ROW_CONFIG);
	PRE(row->key.n <= ROW_KEY_BYTES_MAX);
	PRE(row->expires_ns <= INT64_MAX);
	PRE(row->value.p != NULL || row->expires_ns == 0);
	pack_u64(w, row->kind);
	pack_bin(w, row->key.p, row->key.n);
	if (row->value.p == NULL)
		pack_nil(w);
	else
		pack_bin(w, row->value.p, row->value.n);
	pack_u64(w, row->expires_ns);
}

static void entry_head(struct pack_w *w, uint64_t stamp_ns, uint64_t wall_ms,
		       uint64_t term)
{
	pack_array(w, ENTRY_FIELDS);
	pack_u64(w, ENTRY_VERSION);
	pack_u64(w, stamp_ns);
	pack_u64(w, wall_ms);
	pack_u64(w, term);
}

void entry_begin(struct pack_w *w, uint64_t stamp_ns, uint64_t wall_ms,
		 uint64_t term, uint32_t units)
{
	PRE(units <= ENTRY_UNITS_MAX);
	PRE(stamp_ns <= INT64_MAX);
	PRE(wall_ms <= INT64_MAX);
	entry_head(w, stamp_ns, wall_ms, term);
	pack_array(w, units);
}

void entry_scrub(struct pack_w *w, uint64_t stamp_ns, uint64_t wall_ms,
		 uint64_t term)
{
	PRE(stamp_ns <= INT64_MAX);
	PRE(wall_ms <= INT64_MAX);
	entry_head(w, stamp_ns, wall_ms, term);
	pack_nil(w);
}

size_t unit_bytes_max(size_t head_bytes, uint32_t rows, size_t row_bytes)
{
	return HEAD_BYTES + (HEAD_BYTES + OID_BYTES) + INT_BYTES +
	       (HEAD_BYTES + head_bytes) + HEAD_BYTES +
	       (size_t)rows *
		       (INT_BYTES + HEAD_BYTES + HEAD_BYTES + INT_BYTES) +
	       row_bytes;
}

/* ---------------------------------------------------------------- reading */

/* What pack refuses in an entry, we did not write. */
static enum rc ours(enum rc rc)
{
	return rc == RC_OK ? RC_OK : RC_CORRUPT;
}

static enum rc get_array(struct pack_r *r, uint32_t want)
{
	uint32_t n;

	if (pack_get_array(r, &n) != RC_OK || n != want)
		return RC_CORRUPT;
	return RC_OK;
}

/* Bytes or nil, which is p == NULL; what is there has p != NULL, even empty. */
static enum rc get_bin_or_nil(struct pack_r *r, struct pack_bytes *out)
{
	*out = (struct pack_bytes){ NULL, 0 };
	return pack_get_nil(r) == RC_OK ? RC_OK : ours(pack_get_bin(r, out));
}

/* Numbers that SQLite will hold are at most INT64_MAX. */
static enum rc get_number(struct pack_r *r, uint64_t max, uint64_t *out)
{
	if (pack_get_u64(r, out) != RC_OK || *out > max)
		return RC_CORRUPT;
	return RC_OK;
}

static enum rc get_units(struct pack_r *r, struct entry_r *out)
{
	enum pack_type type;

	if (pack_peek(r, &type) != RC_OK)
		return RC_CORRUPT;
	out->units = 0;
	out->scrub = type == PACK_NIL;
	if (out->scrub)
		return ours(pack_get_nil(r));
	if (pack_get_array(r, &out->units) != RC_OK ||
	    out->units > ENTRY_UNITS_MAX)
		return RC_CORRUPT;
	return RC_OK;
}

enum rc entry_read(const void *p, size_t n, struct entry_r *out)
{
	struct pack_r r = pack_reader(p, n);
	uint64_t version;

	*out = (struct entry_r){ 0 };
	if (p == NULL || n > ENTRY_BYTES_MAX)
		return RC_CORRUPT;
	/* Another version may have another number of fields, so its number is
	 * looked at before they are counted. */
	if (pack_get_array(&r, &out->units) != RC_OK)
		return RC_CORRUPT;
	if (get_number(&r, UINT32_MAX, &version) != RC_OK || version == 0)
		return RC_CORRUPT;
	if (version > ENTRY_VERSION)
		return RC_VERSION;
	if (out->units != ENTRY_FIELDS)
		return RC_CORRUPT;
	if (get_number(&r, INT64_MAX, &out->stamp_ns) != RC_OK ||
	    get_number(&r, INT64_MAX, &out->wall_ms) != RC_OK ||
	    get_number(&r, UINT64_MAX, &out->term) != RC_OK)
		return RC_CORRUPT;
	if (get_units(&r, out) != RC_OK)
		return RC_CORRUPT;
	out->r = r;
	return RC_OK;
}

bool entry_scrubs(const void *p, size_t n)
{
	struct entry_r e;

	return entry_read(p, n, &e) == RC_OK && e.scrub;
}

static enum rc read_row(struct pack_r *r, struct unit_row *out)
{
	uint64_t kind;

	if (get_number(r, ROW_CONFIG, &kind) != RC_OK || kind < ROW_DATA)
		return RC_CORRUPT;
	out->kind = (enum row_kind)kind;
	if (pack_get_bin(r, &out->key) != RC_OK ||
	    out->key.n > ROW_KEY_BYTES_MAX)
		return RC_CORRUPT;
	if (get_bin_or_nil(r, &out->value) != RC_OK)
		return RC_CORRUPT;
	if (get_number(r, INT64_MAX, &out->expires_ns) != RC_OK)
		return RC_CORRUPT;
	/* A row that is gone has no end: one spelling per effect. */
	if (out->value.p == NULL && out->expires_ns != 0)
		return RC_CORRUPT;
	return RC_OK;
}

static enum rc read_unit_head(struct pack_r *r, struct unit_r *out)
{
	struct pack_bytes oid;
	uint64_t flags;
	uint32_t fields;

	if (get_array(r, UNIT_FIELDS) != RC_OK)
		return RC_CORRUPT;
	if (pack_get_bin(r, &oid) != RC_OK || oid.n != OID_BYTES)
		return RC_CORRUPT;
	memcpy(out->oid.b, oid.p, OID_BYTES);
	if (get_number(r, UNIT_FLAGS, &flags) != RC_OK)
		return RC_CORRUPT;
	out->flags = (uint32_t)flags;
	if (get_bin_or_nil(r, &out->head) != RC_OK)
		return RC_CORRUPT;
	if (pack_get_array(r, &fields) != RC_OK || fields % ROW_FIELDS != 0)
		return RC_CORRUPT;
	out->rows = fields / ROW_FIELDS;
	if ((flags & UNIT_GONE) != 0 &&
	    ((flags & UNIT_WIPE) == 0 || out->head.p != NULL || out->rows > 0))
		return RC_CORRUPT;
	return RC_OK;
}

enum rc entry_next(struct entry_r *e, struct unit_r *out)
{
	struct unit_row row;

	*out = (struct unit_r){ .entry = e };
	for (; e->rows > 0; e->rows--)
		if (read_row(&e->r, &row) != RC_OK)
			return RC_CORRUPT;
	if (e->units == 0)
		return e->r.at == e->r.end ? RC_EOF : RC_CORRUPT;
	if (read_unit_head(&e->r, out) != RC_OK)
		return RC_CORRUPT;
	e->rows = out->rows;
	e->units--;
	return RC_OK;
}

enum rc unit_next(struct unit_r *u, struct unit_row *out)
{
	struct entry_r *e = u->entry;

	*out = (struct unit_row){ .kind = ROW_DATA };
	if (u->rows == 0)
		return RC_EOF;
	PRE(u->rows == e->rows);
	if (read_row(&e->r, out) != RC_OK)
		return RC_CORRUPT;
	u->rows--;
	e->rows--;
	return RC_OK;
}

enum rc unit_rest(struct unit_r *u, struct pack_bytes *out)
{
	const uint8_t *from = u->entry->r.at;
	struct unit_row row;
	enum rc rc;

	while ((rc = unit_next(u, &row)) == RC_OK)
		;
	*out = (struct pack_bytes){ from, (size_t)(u->entry->r.at - from) };
	return rc == RC_EOF ? RC_OK : rc;
}

void units_read(const void *p, size_t n, uint32_t units, struct entry_r *out)
{
	*out = (struct entry_r){ .units = units, .r = pack_reader(p, n) };
}
