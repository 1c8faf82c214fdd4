#include "tests/sim/wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"

static const char *const methods[] = {
	[KV_GET] = "get",     [KV_PUT] = "put",         [KV_DELETE] = "delete",
	[KV_INCR] = "incr",   [KV_CAS] = "cas",         [KV_LIST] = "list",
	[KV_BATCH] = "batch", [KV_DESTROY] = "destroy",
};

/* ---------------------------------------------------------------- values */

void wire_value_tag(uint64_t v, char out[WIRE_TAG_BYTES + 1])
{
	(void)snprintf(out, WIRE_TAG_BYTES + 1, "%016" PRIx64, v);
}

static uint8_t filler(uint64_t v, uint32_t i)
{
	return (uint8_t)('a' + (v / WIRE_VALUE_STEP + i * 7u) % 26u);
}

static void value_fill(uint64_t v, uint8_t *p)
{
	uint32_t n = wire_value_bytes(v);
	char tag[WIRE_TAG_BYTES + 1];
	uint32_t i;

	wire_value_tag(v, tag);
	for (i = WIRE_TAG_BYTES; i < n; i++)
		p[i] = filler(v, i);
	memcpy(p, tag, WIRE_TAG_BYTES);
	if (n >= 2 * WIRE_TAG_BYTES)
		memcpy(p + n - WIRE_TAG_BYTES, tag, WIRE_TAG_BYTES);
}

static void value_write(struct pack_w *w, struct kv_value v)
{
	uint8_t *p;

	if (v.kind == KV_NONE) {
		pack_nil(w);
		return;
	}
	if (v.kind == KV_INT) {
		pack_i64(w, (int64_t)v.v);
		return;
	}
	p = malloc(wire_value_bytes(v.v));
	CHECK(p != NULL);
	value_fill(v.v, p);
	if ((v.v & WIRE_VALUE_BIN) != 0)
		pack_bin(w, p, wire_value_bytes(v.v));
	else
		pack_str(w, (const char *)p, wire_value_bytes(v.v));
	free(p);
}

static bool bytes_read(const struct pack_val *val, struct kv_value *out)
{
	uint8_t *want;
	char tag[WIRE_TAG_BYTES + 1];
	char *end;
	bool same;

	if (val->s.n < WIRE_VALUE_MIN)
		return false;
	memcpy(tag, val->s.p, WIRE_TAG_BYTES);
	tag[WIRE_TAG_BYTES] = '\0';
	out->kind = KV_BYTES;
	out->v = strtoull(tag, &end, 16);
	if (*end != '\0' || wire_value_bytes(out->v) != val->s.n ||
	    ((out->v & WIRE_VALUE_BIN) != 0) != (val->type == PACK_BIN))
		return false;
	want = malloc(val->s.n);
	CHECK(want != NULL);
	value_fill(out->v, want);
	same = memcmp(want, val->s.p, val->s.n) == 0;
	free(want);
	return same;
}

static bool value_read(struct pack_r *r, struct kv_value *out)
{
	struct pack_val val;

	if (pack_next(r, &val) != RC_OK)
		return false;
	if (val.type == PACK_INT) {
		*out = (struct kv_value){ KV_INT, val.u };
		return true;
	}
	return (val.type == PACK_STR || val.type == PACK_BIN) &&
	       bytes_read(&val, out);
}

/* ------------------------------------------------------------- questions */

static void key_name(uint16_t key, char out[8])
{
	(void)snprintf(out, 8, "k%04u", key);
}

static void key_write(struct pack_w *w, uint16_t key, bool bin)
{
	char name[8];

	key_name(key, name);
	if (bin)
		pack_bin(w, name, strlen(name));
	else
		pack_cstr(w, name);
}

static bool key_read(struct pack_bytes s, uint16_t *key)
{
	char name[8] = { 0 };
	char *end;

	if (s.n != 5 || s.p[0] != 'k')
		return false;
	memcpy(name, s.p + 1, 4);
	*key = (uint16_t)strtoul(name, &end, 10);
	return *end == '\0';
}

static uint32_t op_pairs(const struct kv_op *op)
{
	switch (op->kind) {
	case KV_PUT:
		return 2u + (op->ttl_ns != 0) + op->has_if_rev;
	case KV_DELETE:
		return 1u + op->has_if_rev;
	case KV_INCR:
		return 2;
	case KV_CAS:
		return 3;
	case KV_GET:
		return 1;
	case KV_LIST:
	case KV_BATCH:
	case KV_DESTROY:
		break;
	}
	return 0;
}

static void op_write(const struct kv_op *op, bool bin, struct pack_w *w)
{
	pack_cstr(w, "key");
	key_write(w, op->key, bin);
	if (op->kind == KV_CAS) {
		pack_cstr(w, "expect");
		value_write(w, op->expect);
	}
	if (op->kind == KV_PUT || op->kind == KV_CAS) {
		pack_cstr(w, "value");
		value_write(w, op->value);
	}
	if (op->kind == KV_INCR) {
		pack_cstr(w, "by");
		pack_i64(w, op->by);
	}
	if (op->kind == KV_PUT && op->ttl_ns != 0) {
		pack_cstr(w, "ttl_ms");
		pack_u64(w, op->ttl_ns / 1000000u);
	}
	if (op->has_if_rev) {
		pack_cstr(w, "if_rev");
		pack_u64(w, op->if_rev);
	}
}

static void batch_write(const struct kv_call *c, bool bin, struct pack_w *w)
{
	uint32_t i;

	pack_map(w, 1);
	pack_cstr(w, "ops");
	pack_array(w, c->ops_n);
	for (i = 0; i < c->ops_n; i++) {
		pack_map(w, op_pairs(&c->ops[i]) + 1);
		pack_cstr(w, "op");
		pack_cstr(w, methods[c->ops[i].kind]);
		op_write(&c->ops[i], bin, w);
	}
}

static void bound_write(struct pack_w *w, const char *name, uint16_t key,
			bool bin)
{
	pack_cstr(w, name);
	key_write(w, key, bin);
}

static void list_write(const struct kv_call *c, const uint16_t *cursor,
		       bool bin, struct pack_w *w)
{
	/* A prefix where it says the same. */
	bool prefix = c->from % 10 == 0 && c->to == c->from + 10;

	pack_map(w, (prefix ? 1u : 2u) + 2u + (cursor != NULL));
	if (prefix) {
		char name[8];

		key_name(c->from, name);
		pack_cstr(w, "prefix");
		pack_str(w, name, 4);
	} else {
		bound_write(w, "start", c->from, bin);
		bound_write(w, "end", c->to, bin);
	}
	pack_cstr(w, "limit");
	pack_u64(w, c->limit);
	pack_cstr(w, "reverse");
	pack_bool(w, c->reverse);
	if (cursor != NULL)
		bound_write(w, "cursor", *cursor, true);
}

void wire_kv_cursor(const struct kv_call *c, uint16_t cursor, bool bin_keys,
		    struct pack_w *w)
{
	/* What the oracle is to expect is the rest alone. */
	struct kv_call all = *c;

	if (c->reverse)
		all.to = (uint16_t)(cursor + 1);
	else
		all.from = cursor;
	list_write(&all, &cursor, bin_keys, w);
}

const char *wire_kv_method(const struct kv_call *c)
{
	return methods[c->kind];
}

void wire_kv_args(const struct kv_call *c, bool bin_keys, struct pack_w *w)
{
	switch (c->kind) {
	case KV_DESTROY:
		pack_map(w, 0);
		return;
	case KV_BATCH:
		batch_write(c, bin_keys, w);
		return;
	case KV_LIST:
		list_write(c, NULL, bin_keys, w);
		return;
	case KV_GET:
	case KV_PUT:
	case KV_DELETE:
	case KV_INCR:
	case KV_CAS:
		pack_map(w, op_pairs(&c->ops[0]));
		op_write(&c->ops[0], bin_keys, w);
		return;
	}
	UNREACHABLE();
}

/* --------------------------------------------------------------- answers */

static bool op_answer(struct kv_op *op, struct pack_r *r)
{
	struct pack_bytes name;
	struct kv_value value;
	bool rev = false;
	uint32_t n;

	if (pack_get_map(r, &n) != RC_OK)
		return false;
	while (n-- > 0) {
		if (pack_get_bytes(r, &name) != RC_OK)
			return false;
		if (pack_bytes_eq(name, "rev", 3)) {
			rev = pack_get_u64(r, &op->rev) == RC_OK;
		} else if (pack_bytes_eq(name, "existed", 7) &&
			   op->kind == KV_DELETE) {
			if (pack_get_bool(r, &op->existed) != RC_OK)
				return false;
		} else if (pack_bytes_eq(name, "value", 5)) {
			if (!value_read(r, &value))
				return false;
			if (op->kind == KV_GET)
				op->value = value;
			else if (op->kind == KV_INCR && value.kind == KV_INT)
				op->sum = (int64_t)value.v;
			else
				return false;
		} else {
			return false;
		}
	}
	return rev;
}

static bool batch_answer(struct kv_call *c, struct pack_r *r)
{
	struct pack_bytes name;
	uint32_t n;
	uint32_t i;

	if (pack_get_map(r, &n) != RC_OK || n != 1 ||
	    pack_get_bytes(r, &name) != RC_OK ||
	    !pack_bytes_eq(name, "results", 7) ||
	    pack_get_array(r, &n) != RC_OK || n != c->ops_n)
		return false;
	for (i = 0; i < n; i++)
		if (!op_answer(&c->ops[i], r))
			return false;
	return true;
}

static bool item_read(struct kv_item *it, struct pack_r *r)
{
	struct pack_bytes name;
	struct pack_bytes key;
	unsigned seen = 0;
	uint32_t n;

	if (pack_get_map(r, &n) != RC_OK || n != 3)
		return false;
	while (n-- > 0) {
		if (pack_get_bytes(r, &name) != RC_OK)
			return false;
		if (pack_bytes_eq(name, "key", 3) &&
		    pack_get_bytes(r, &key) == RC_OK && key_read(key, &it->key))
			seen |= 1;
		else if (pack_bytes_eq(name, "value", 5) &&
			 value_read(r, &it->value))
			seen |= 2;
		else if (pack_bytes_eq(name, "rev", 3) &&
			 pack_get_u64(r, &it->rev) == RC_OK)
			seen |= 4;
		else
			return false;
	}
	return seen == 7;
}

static bool list_answer(struct kv_call *c, struct pack_r *r)
{
	struct pack_bytes name;
	struct pack_bytes cursor;
	uint16_t key;
	uint32_t pairs;
	uint32_t n;
	uint32_t i;

	if (pack_get_map(r, &pairs) != RC_OK || pairs < 1 || pairs > 2 ||
	    pack_get_bytes(r, &name) != RC_OK ||
	    !pack_bytes_eq(name, "items", 5) || pack_get_array(r, &n) != RC_OK)
		return false;
	kv_call_items(c, n);
	for (i = 0; i < n; i++)
		if (!item_read(&c->items[i], r))
			return false;
	c->more = pairs == 2;
	if (!c->more)
		return true;
	return pack_get_bytes(r, &name) == RC_OK &&
	       pack_bytes_eq(name, "cursor", 6) &&
	       pack_get_bytes(r, &cursor) == RC_OK && key_read(cursor, &key) &&
	       n > 0 && c->items[n - 1].key == key;
}

bool wire_kv_answer(struct kv_call *c, struct pack_bytes result,
		    const char **why)
{
	struct pack_r r = pack_reader(result.p, result.n);
	bool good;

	*why = "the answer is not what the class gives, or a value is damaged";
	if (c->kind == KV_BATCH)
		good = batch_answer(c, &r);
	else if (c->kind == KV_LIST)
		good = list_answer(c, &r);
	else
		good = op_answer(&c->ops[0], &r);
	return good && r.at == r.end;
}

/* "ops[3].if_rev" names the operation, and what of it. */
static const char *field_of(struct kv_call *c, const char *field)
{
	char *end;

	if (strncmp(field, "ops[", 4) != 0)
		return field;
	c->why_op = (uint32_t)strtoul(field + 4, &end, 10);
	return end[0] == ']' && end[1] == '.' ? end + 2 : "";
}

bool wire_kv_failure(struct kv_call *c, enum rc rc, const struct detail *why)
{
	const char *field = field_of(c, why->field);

	c->why = KV_WHY_NONE;
	if (rc == RC_NOT_FOUND && c->kind == KV_GET) {
		c->why = KV_WHY_ABSENT;
	} else if (rc == RC_CONFLICT && strcmp(field, "if_rev") == 0) {
		c->why = KV_WHY_IF_REV;
		if (sscanf(why->text, "the key has revision %" SCNu64,
			   &c->why_rev) != 1)
			return false;
	} else if (rc == RC_CONFLICT && strcmp(field, "expect") == 0) {
		c->why = strstr(why->text, "does not exist") != NULL
				 ? KV_WHY_EXPECT_ABSENT
				 : KV_WHY_EXPECT_OTHER;
	} else if (rc == RC_CONFLICT && strcmp(field, "idem") == 0) {
		c->why = KV_WHY_IDEM;
	} else if (rc == RC_INVALID && strcmp(field, "key") == 0) {
		c->why = KV_WHY_TYPE;
	} else if (rc == RC_INVALID && strcmp(field, "by") == 0) {
		c->why = KV_WHY_OVERFLOW;
	} else if (rc == RC_INVALID && strcmp(field, "idem") == 0) {
		c->why = KV_WHY_LARGE;
	}
	return c->why != KV_WHY_NONE;
}

bool wire_verdict(struct pack_bytes result, bool *allowed, uint64_t *remaining,
		  uint64_t *retry_ms)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes name;
	unsigned seen = 0;
	uint64_t other;
	uint32_t n;

	if (pack_get_map(&r, &n) != RC_OK || n != 6)
		return false;
	while (n-- > 0) {
		if (pack_get_bytes(&r, &name) != RC_OK)
			return false;
		if (pack_bytes_eq(name, "allowed", 7)) {
			if (pack_get_bool(&r, allowed) != RC_OK)
				return false;
			seen |= 1;
		} else if (pack_get_u64(&r, &other) != RC_OK) {
			return false;
		} else if (pack_bytes_eq(name, "remaining", 9)) {
			*remaining = other;
			seen |= 2;
		} else if (pack_bytes_eq(name, "retry_after_ms", 14)) {
			*retry_ms = other;
			seen |= 4;
		}
	}
	return seen == 7 && r.at == r.end;
}
