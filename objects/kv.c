/*
 * kv - the built-in class of keys and values.
 *
 * A row (ROW_DATA, key: the bytes of the key) is three MessagePack objects, one
 * after the other: the revision that wrote it, whether the key was a bin, and
 * the value. Keys are bytes: "a" as str and as bin are one key; a list gives it
 * back as it was last written.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "objects/object.h"

#define KV_ROW_BYTES_MAX (VALUE_BYTES_MAX + 32u)

/* A page of `list` holds no more than this, unless its only item does. */
#define KV_PAGE_BYTES (1u << 20)
#define KV_ITEM_BYTES 64u /* Of an item, besides its key and value. */

_Static_assert(KV_PAGE_BYTES + KV_KEY_BYTES_MAX + 256u < RESULT_BYTES_MAX &&
		       VALUE_BYTES_MAX + KV_KEY_BYTES_MAX + 256u <
			       RESULT_BYTES_MAX,
	       "a page is an answer, also of the largest item");

struct kv_row {
	bool exists;
	bool key_bin;
	uint64_t rev;
	uint64_t expires_ns;
	struct pack_bytes value; /* Encoded. */
};

/* One operation: an event of its own, or a part of a batch. */
struct kv_op {
	struct event *ev;
	const struct method_args *args;
	struct pack_w *out;
	struct detail *why;
};

static enum rc kv_row_read(const struct row_view *view, struct kv_row *row)
{
	struct pack_r r = pack_reader(view->value.p, view->value.n);
	enum rc rc = row_version_read(&r);

	if (rc != RC_OK)
		return rc;
	row->exists = true;
	row->expires_ns = view->expires_ns;
	if (pack_get_u64(&r, &row->rev) != RC_OK ||
	    pack_get_bool(&r, &row->key_bin) != RC_OK ||
	    pack_skip(&r, &row->value) != RC_OK || r.at != r.end)
		return RC_CORRUPT;
	return RC_OK;
}

/* RC_OK also when there is none; RC_AGAIN when it must be loaded. */
static enum rc kv_row_get(struct event *ev, struct pack_bytes key,
			  struct kv_row *row)
{
	struct row_view view;
	enum rc rc = ev_get(ev, ROW_DATA, key, &view);

	memset(row, 0, sizeof(*row));
	if (rc == RC_NOT_FOUND)
		return RC_OK;
	if (rc != RC_OK)
		return rc;
	return kv_row_read(&view, row);
}

static enum rc kv_row_put(struct event *ev, const struct pack_val *key,
			  struct pack_bytes value, uint64_t expires_ns,
			  uint64_t *rev)
{
	struct pack_w w;
	enum rc rc;

	*rev = ev_bump(ev);
	pack_w_init(&w, KV_ROW_BYTES_MAX);
	row_version_write(&w);
	pack_u64(&w, *rev);
	pack_bool(&w, key->type == PACK_BIN);
	pack_raw(&w, value.p, value.n);
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(ev, ROW_DATA, key->s,
			    (struct pack_bytes){ w.p, w.n }, expires_ns);
	pack_w_release(&w);
	return rc;
}

static void kv_write_rev(struct pack_w *w, uint64_t rev)
{
	pack_map(w, 1);
	pack_cstr(w, "rev");
	pack_u64(w, rev);
}

static enum rc kv_revision_check(const struct kv_op *op, int place,
				 const struct kv_row *row)
{
	uint64_t want;

	if (!method_has(op->args, place))
		return RC_OK;
	want = op->args->at[place].v.u;
	if (want == row->rev)
		return RC_OK;
	return detail_set(op->why, RC_CONFLICT, "if_rev",
			  "the key has revision %" PRIu64, row->rev);
}

static enum rc kv_get(const struct kv_op *op)
{
	struct kv_row row;
	enum rc rc = kv_row_get(op->ev, op->args->at[ARG_kv_get_key].v.s, &row);

	if (rc != RC_OK)
		return rc;
	if (!row.exists)
		return RC_NOT_FOUND;
	pack_map(op->out, 2);
	pack_cstr(op->out, "value");
	pack_raw(op->out, row.value.p, row.value.n);
	pack_cstr(op->out, "rev");
	pack_u64(op->out, row.rev);
	return RC_OK;
}

static enum rc kv_put(const struct kv_op *op)
{
	const struct method_args *a = op->args;
	uint64_t ttl_ms = method_u64(a, ARG_kv_put_ttl_ms, 0);
	uint64_t expires_ns = 0;
	struct kv_row row;
	uint64_t rev;
	enum rc rc;

	if (method_has(a, ARG_kv_put_if_rev)) {
		rc = kv_row_get(op->ev, a->at[ARG_kv_put_key].v.s, &row);
		if (rc == RC_OK)
			rc = kv_revision_check(op, ARG_kv_put_if_rev, &row);
		if (rc != RC_OK)
			return rc;
	}
	if (ttl_ms != 0)
		expires_ns = ev_now(op->ev) + ttl_ms * 1000000u;
	rc = kv_row_put(op->ev, &a->at[ARG_kv_put_key].v,
			a->at[ARG_kv_put_value].bytes, expires_ns, &rev);
	if (rc == RC_OK)
		kv_write_rev(op->out, rev);
	return rc;
}

static enum rc kv_delete(const struct kv_op *op)
{
	const struct method_args *a = op->args;
	struct pack_bytes key = a->at[ARG_kv_delete_key].v.s;
	struct kv_row row;
	uint64_t rev = ev_rev(op->ev);
	enum rc rc = kv_row_get(op->ev, key, &row);

	if (rc == RC_OK)
		rc = kv_revision_check(op, ARG_kv_delete_if_rev, &row);
	if (rc == RC_OK && row.exists) {
		rev = ev_bump(op->ev);
		rc = ev_delete(op->ev, ROW_DATA, key);
	}
	if (rc != RC_OK)
		return rc;
	pack_map(op->out, 2);
	pack_cstr(op->out, "existed");
	pack_bool(op->out, row.exists);
	pack_cstr(op->out, "rev");
	pack_u64(op->out, rev);
	return RC_OK;
}

static enum rc kv_incr(const struct kv_op *op)
{
	const struct method_args *a = op->args;
	int64_t by = method_i64(a, ARG_kv_incr_by, 1);
	int64_t value = 0;
	struct kv_row row;
	struct pack_r r;
	struct pack_w w;
	uint64_t rev;
	enum rc rc = kv_row_get(op->ev, a->at[ARG_kv_incr_key].v.s, &row);

	if (rc != RC_OK)
		return rc;
	r = pack_reader(row.value.p, row.value.n);
	if (row.exists && pack_get_i64(&r, &value) != RC_OK)
		return detail_set(op->why, RC_INVALID, "key",
				  "the value is no integer of 64 bits");
	if (__builtin_add_overflow(value, by, &value))
		return detail_set(op->why, RC_INVALID, "by",
				  "the sum has no room in 64 bits");
	pack_w_init(&w, 16);
	pack_i64(&w, value);
	rc = w.rc;
	if (rc == RC_OK)
		rc = kv_row_put(op->ev, &a->at[ARG_kv_incr_key].v,
				(struct pack_bytes){ w.p, w.n }, row.expires_ns,
				&rev);
	pack_w_release(&w);
	if (rc != RC_OK)
		return rc;
	pack_map(op->out, 2);
	pack_cstr(op->out, "value");
	pack_i64(op->out, value);
	pack_cstr(op->out, "rev");
	pack_u64(op->out, rev);
	return RC_OK;
}

static enum rc kv_cas(const struct kv_op *op)
{
	const struct method_args *a = op->args;
	const struct method_value *expect = &a->at[ARG_kv_cas_expect];
	struct kv_row row;
	uint64_t rev;
	bool same;
	enum rc rc = kv_row_get(op->ev, a->at[ARG_kv_cas_key].v.s, &row);

	if (rc != RC_OK)
		return rc;
	if (expect->v.type == PACK_NIL)
		same = !row.exists;
	else
		same = row.exists && pack_equal(expect->bytes, row.value);
	if (!same)
		return detail_set(op->why, RC_CONFLICT, "expect",
				  row.exists ? "the key has another value"
					     : "the key does not exist");
	rc = kv_row_put(op->ev, &a->at[ARG_kv_cas_key].v,
			a->at[ARG_kv_cas_value].bytes, 0, &rev);
	if (rc == RC_OK)
		kv_write_rev(op->out, rev);
	return rc;
}

/* list: a range of keys, page by page. */

struct kv_range {
	uint8_t start[KV_KEY_BYTES_MAX + 1];
	uint8_t end[KV_KEY_BYTES_MAX + 1];
	size_t start_n;
	size_t end_n;
	bool bounded; /* `end` counts. */
};

static int bytes_cmp(const void *a, size_t an, const void *b, size_t bn)
{
	size_t n = an < bn ? an : bn;
	int c = n == 0 ? 0 : memcmp(a, b, n);

	if (c != 0)
		return c;
	return (an > bn) - (an < bn);
}

static void range_from(struct kv_range *g, struct pack_bytes at, bool after)
{
	size_t n = at.n + (after ? 1 : 0);
	uint8_t key[KV_KEY_BYTES_MAX + 1] = { 0 };

	CHECK(n <= sizeof(key));
	if (at.n > 0)
		memcpy(key, at.p, at.n);
	if (bytes_cmp(key, n, g->start, g->start_n) <= 0)
		return;
	memcpy(g->start, key, n);
	g->start_n = n;
}

static void range_to(struct kv_range *g, struct pack_bytes at)
{
	if (g->bounded && bytes_cmp(at.p, at.n, g->end, g->end_n) >= 0)
		return;
	g->bounded = true;
	if (at.n > 0)
		memcpy(g->end, at.p, at.n);
	g->end_n = at.n;
}

/* Keys that begin with `prefix` end before the prefix counted up. */
static void range_prefix(struct kv_range *g, struct pack_bytes prefix)
{
	uint8_t next[KV_KEY_BYTES_MAX];
	size_t n = prefix.n;

	if (n == 0)
		return;
	range_from(g, prefix, false);
	memcpy(next, prefix.p, n);
	while (n > 0 && next[n - 1] == 0xff)
		n--;
	if (n == 0)
		return;
	next[n - 1]++;
	range_to(g, (struct pack_bytes){ next, n });
}

struct kv_page {
	struct pack_w items;
	uint32_t n;
	uint32_t limit;
	uint8_t last[KV_KEY_BYTES_MAX];
	size_t last_n;
	bool more;
	enum rc rc;
};

static bool page_row(void *arg, const struct row_view *view)
{
	struct kv_page *page = arg;
	struct kv_row row;

	page->rc = kv_row_read(view, &row);
	if (page->rc != RC_OK)
		return false;
	if (page->n == page->limit ||
	    (page->n > 0 &&
	     page->items.n + view->key.n + row.value.n + KV_ITEM_BYTES >
		     KV_PAGE_BYTES)) {
		page->more = true;
		return false;
	}
	pack_map(&page->items, 3);
	pack_cstr(&page->items, "key");
	if (row.key_bin)
		pack_bin(&page->items, view->key.p, view->key.n);
	else
		pack_str(&page->items, (const char *)view->key.p, view->key.n);
	pack_cstr(&page->items, "value");
	pack_raw(&page->items, row.value.p, row.value.n);
	pack_cstr(&page->items, "rev");
	pack_u64(&page->items, row.rev);
	CHECK(view->key.n <= sizeof(page->last));
	memcpy(page->last, view->key.p, view->key.n);
	page->last_n = view->key.n;
	page->n++;
	return true;
}

static void page_write(const struct kv_page *page, struct pack_w *out)
{
	pack_map(out, page->more ? 2 : 1);
	pack_cstr(out, "items");
	pack_array(out, page->n);
	pack_raw(out, page->items.p, page->items.n);
	if (!page->more)
		return;
	pack_cstr(out, "cursor");
	pack_bin(out, page->last, page->last_n);
}

static enum rc kv_list_range(const struct kv_op *op, struct kv_range *g)
{
	const struct method_args *a = op->args;
	bool reverse = method_bool(a, ARG_kv_list_reverse, false);

	memset(g, 0, sizeof(*g));
	range_prefix(g, method_bytes(a, ARG_kv_list_prefix));
	range_from(g, method_bytes(a, ARG_kv_list_start), false);
	if (method_has(a, ARG_kv_list_end))
		range_to(g, method_bytes(a, ARG_kv_list_end));
	if (!method_has(a, ARG_kv_list_cursor))
		return RC_OK;
	if (a->at[ARG_kv_list_cursor].v.s.n > KV_KEY_BYTES_MAX)
		return detail_set(op->why, RC_INVALID, "cursor",
				  "this is no cursor of a list");
	if (reverse)
		range_to(g, a->at[ARG_kv_list_cursor].v.s);
	else
		range_from(g, a->at[ARG_kv_list_cursor].v.s, true);
	return RC_OK;
}

static enum rc kv_list(const struct kv_op *op)
{
	const struct method_args *a = op->args;
	struct pack_bytes end = { NULL, 0 };
	struct kv_page page = { .limit = KV_LIST_DEFAULT, .rc = RC_OK };
	struct kv_range g;
	enum rc rc = kv_list_range(op, &g);

	if (rc != RC_OK)
		return rc;
	page.limit =
		(uint32_t)method_u64(a, ARG_kv_list_limit, KV_LIST_DEFAULT);
	pack_w_init(&page.items, RESULT_BYTES_MAX);
	if (g.bounded)
		end = (struct pack_bytes){ g.end, g.end_n };
	/* An empty range: nothing is at once after start and before end. */
	if (!g.bounded || bytes_cmp(g.start, g.start_n, g.end, g.end_n) < 0)
		rc = ev_scan(op->ev, ROW_DATA,
			     (struct pack_bytes){ g.start, g.start_n }, end,
			     method_bool(a, ARG_kv_list_reverse, false),
			     page_row, &page);
	if (rc == RC_OK)
		rc = page.rc;
	if (rc == RC_OK)
		rc = page.items.rc;
	if (rc == RC_OK)
		page_write(&page, op->out);
	pack_w_release(&page.items);
	return rc;
}

/* batch: the writes, one after the other, each seeing the ones before. */

static enum rc kv_write(const struct kv_op *op, uint32_t method)
{
	switch (method) {
	case METHOD_kv_put:
		return kv_put(op);
	case METHOD_kv_delete:
		return kv_delete(op);
	case METHOD_kv_incr:
		return kv_incr(op);
	case METHOD_kv_cas:
		return kv_cas(op);
	default:
		return RC_UNSUPPORTED;
	}
}

static enum rc batch_method(struct pack_bytes map, const struct method **out,
			    struct detail *why)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes key;
	struct pack_bytes name;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return detail_set(why, RC_INVALID, "", "an op is a map");
	while (pairs-- > 0) {
		if (pack_get_bytes(&r, &key) != RC_OK)
			return detail_set(why, RC_INVALID, "",
					  "a key of an op is a string");
		if (!pack_bytes_eq(key, "op", 2)) {
			if (pack_skip(&r, NULL) != RC_OK)
				return RC_INVALID;
			continue;
		}
		if (pack_get_bytes(&r, &name) != RC_OK)
			break;
		*out = method_find("kv", 2, (const char *)name.p, name.n);
		if (*out != NULL && ((*out)->number == METHOD_kv_put ||
				     (*out)->number == METHOD_kv_delete ||
				     (*out)->number == METHOD_kv_incr ||
				     (*out)->number == METHOD_kv_cas))
			return RC_OK;
		break;
	}
	return detail_set(why, RC_INVALID, "op",
			  "op is put, delete, incr or cas");
}

static enum rc batch_one(const struct kv_op *op, struct pack_bytes map)
{
	const struct method *m = NULL;
	struct method_args args;
	struct kv_op one = *op;
	enum rc rc = batch_method(map, &m, op->why);

	if (rc == RC_OK)
		rc = method_args_check_besides(m, map, "op", &args, op->why);
	if (rc != RC_OK)
		return rc;
	CHECK(m != NULL);
	one.args = &args;
	return kv_write(&one, m->number);
}

/* The key that an op names, if it has one that is good. */
static bool batch_key(struct pack_bytes map, struct pack_bytes *key)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes name;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return false;
	while (pairs-- > 0) {
		if (pack_get_bytes(&r, &name) != RC_OK)
			return false;
		if (pack_bytes_eq(name, "key", 3))
			return pack_get_bytes(&r, key) == RC_OK && key->n > 0 &&
			       key->n <= KV_KEY_BYTES_MAX;
		if (pack_skip(&r, NULL) != RC_OK)
			return false;
	}
	return false;
}

/* All rows that a batch will look at come with one load: one after the other
 * they would be more loads than an event may wait for. */
static enum rc batch_want(struct event *ev, struct pack_r r, uint32_t n)
{
	struct pack_bytes map;
	struct pack_bytes key;
	enum rc rc = RC_OK;

	while (n-- > 0 && pack_skip(&r, &map) == RC_OK)
		if (batch_key(map, &key) && ev_want(ev, ROW_DATA, key) != RC_OK)
			rc = RC_AGAIN;
	return rc;
}

static enum rc kv_batch(const struct kv_op *op)
{
	struct pack_bytes ops = op->args->at[ARG_kv_batch_ops].bytes;
	struct pack_r r = pack_reader(ops.p, ops.n);
	struct detail why = { { 0 }, { 0 } };
	struct kv_op one = *op;
	struct pack_bytes map;
	char field[sizeof(why.field) + 32];
	uint32_t n;
	uint32_t i;
	enum rc rc;

	rc = pack_get_array(&r, &n);
	CHECK(rc == RC_OK);
	rc = batch_want(op->ev, r, n);
	if (rc != RC_OK)
		return rc;
	pack_map(op->out, 1);
	pack_cstr(op->out, "results");
	pack_array(op->out, n);
	one.why = &why;
	for (i = 0; i < n && rc == RC_OK; i++) {
		rc = pack_skip(&r, &map);
		if (rc == RC_OK)
			rc = batch_one(&one, map);
	}
	if (rc == RC_OK || rc == RC_AGAIN)
		return rc;
	snprintf(field, sizeof(field), "ops[%" PRIu32 "]%s%s", i - 1,
		 why.field[0] != '\0' ? "." : "", why.field);
	return detail_set(op->why, rc, field, "%s",
			  why.text[0] != '\0' ? why.text : rc_text(rc));
}

static enum rc kv_destroy(const struct kv_op *op)
{
	/* What is not there leaves no tombstone. */
	uint64_t rev = ev_exists(op->ev) ? ev_bump(op->ev) : ev_rev(op->ev);

	ev_destroy(op->ev);
	kv_write_rev(op->out, rev);
	return RC_OK;
}

static enum rc kv_dispatch(const struct kv_op *op)
{
	switch (op->ev->method->number) {
	case METHOD_kv_get:
		return kv_get(op);
	case METHOD_kv_list:
		return kv_list(op);
	case METHOD_kv_batch:
		return kv_batch(op);
	case METHOD_kv_destroy:
		return kv_destroy(op);
	default:
		return kv_write(op, op->ev->method->number);
	}
}

static enum run kv_run(struct event *ev)
{
	struct detail why = { { 0 }, { 0 } };
	struct kv_op op = { ev, &ev->args, &ev->result, &why };
	enum rc rc = kv_dispatch(&op);

	if (rc == RC_OK)
		return RUN_DONE;
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	/* More rows or bytes than one event may change: the caller's doing. */
	if (rc == RC_OVERLOADED)
		return ev_fail(ev, RC_INVALID, "args",
			       "one call changes too much");
	if (!rc_is_wire(rc))
		rc = RC_INTERNAL;
	return ev_fail(ev, rc, why.field, "%s",
		       why.text[0] != '\0' ? why.text : rc_text(rc));
}

const struct class class_kv = {
	.name = "kv",
	.interleave = INTERLEAVE_NEVER,
	.durability = DURABILITY_COMMITTED,
	.durabilities = 1u << DURABILITY_COMMITTED,
	.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,
	.run = kv_run,
};
