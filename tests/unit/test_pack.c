#include "client/proto/pack.h"

#include <float.h>
#include <math.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define MIB (1024U * 1024U)

static const struct pack_bounds wide = { PACK_DEPTH_MAX, PACK_ELEMENTS_MAX,
					 MIB };

static enum rc check(const void *p, size_t n, const struct pack_bounds *bounds,
		     size_t *size)
{
	struct pack_scan st = { 0 };

	*size = 0;
	return pack_check(&st, p, n, bounds, size);
}

/* One of each, nested: what the tests of truncation cut. */
static void put_one_of_each(struct pack_w *w)
{
	static char text[70000];

	memset(text, 't', sizeof(text));
	pack_array(w, 20);
	pack_nil(w);
	pack_bool(w, true);
	pack_u64(w, 7);
	pack_u64(w, 200);
	pack_u64(w, 70000);
	pack_u64(w, UINT64_MAX);
	pack_i64(w, -1);
	pack_i64(w, -100);
	pack_i64(w, -1000);
	pack_i64(w, -100000);
	pack_i64(w, INT64_MIN);
	pack_double(w, 0.5);
	pack_str(w, text, 5);
	pack_str(w, text, 50);
	pack_str(w, text, 500);
	pack_str(w, text, sizeof(text));
	pack_bin(w, text, 5);
	pack_bin(w, text, 300);
	pack_map(w, 2);
	pack_cstr(w, "k");
	pack_array(w, 0);
	pack_nil(w);
	pack_map(w, 0);
	/* ext 8, by hand. */
	pack_raw(w,
		 "\xc7\x03\x2a"
		 "abc",
		 6);
}

/* ---------------------------------------------------------- values */

TEST(integers_take_the_shortest_form)
{
	static const struct {
		bool neg;
		uint64_t u;
		int64_t i;
		size_t size;
	} rows[] = {
		{ false, 0, 0, 1 },
		{ false, 127, 0, 1 },
		{ false, 128, 0, 2 },
		{ false, 255, 0, 2 },
		{ false, 256, 0, 3 },
		{ false, 65535, 0, 3 },
		{ false, 65536, 0, 5 },
		{ false, UINT32_MAX, 0, 5 },
		{ false, (uint64_t)UINT32_MAX + 1, 0, 9 },
		{ false, INT64_MAX, 0, 9 },
		{ false, (uint64_t)INT64_MAX + 1, 0, 9 },
		{ false, UINT64_MAX, 0, 9 },
		{ true, 0, -1, 1 },
		{ true, 0, -32, 1 },
		{ true, 0, -33, 2 },
		{ true, 0, -128, 2 },
		{ true, 0, -129, 3 },
		{ true, 0, -32768, 3 },
		{ true, 0, -32769, 5 },
		{ true, 0, INT32_MIN, 5 },
		{ true, 0, (int64_t)INT32_MIN - 1, 9 },
		{ true, 0, INT64_MIN, 9 },
	};
	struct pack_val v;
	struct pack_w w;
	struct pack_r r;
	size_t i, size;

	pack_w_init(&w, MIB);
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu", i);
		pack_w_reset(&w);
		if (rows[i].neg)
			pack_i64(&w, rows[i].i);
		else
			pack_u64(&w, rows[i].u);
		EXPECT_UINT(w.n, rows[i].size);
		EXPECT_RC(check(w.p, w.n, &wide, &size), RC_OK);
		EXPECT_UINT(size, w.n);
		r = pack_reader(w.p, w.n);
		EXPECT_RC(pack_next(&r, &v), RC_OK);
		EXPECT_INT(v.type, PACK_INT);
		EXPECT_INT(v.neg, rows[i].neg);
		if (rows[i].neg)
			EXPECT_INT(v.i, rows[i].i);
		else
			EXPECT_UINT(v.u, rows[i].u);
		EXPECT_RC(pack_next(&r, &v), RC_EOF);
	}
	pack_w_release(&w);
}

TEST(a_positive_number_in_a_signed_form_is_positive)
{
	static const uint8_t forms[4][9] = {
		{ 0xd0, 5 },
		{ 0xd1, 0, 5 },
		{ 0xd2, 0, 0, 0, 5 },
		{ 0xd3, 0, 0, 0, 0, 0, 0, 0, 5 },
	};
	struct pack_r r;
	uint64_t u;
	size_t i;

	for (i = 0; i < 4; i++) {
		r = pack_reader(forms[i], 1 + ((size_t)1 << i));
		EXPECT_RC(pack_get_u64(&r, &u), RC_OK);
		EXPECT_UINT(u, 5);
		EXPECT_TRUE(r.at == r.end);
	}
}

TEST(floats_of_both_sizes)
{
	static const uint8_t f32[] = { 0xca, 0x3f, 0x80, 0, 0 };
	static const double values[] = { 0.0,     -0.0,    1.5,
					 DBL_MAX, DBL_MIN, -1e-300 };
	struct pack_val v;
	struct pack_w w;
	struct pack_r r = pack_reader(f32, sizeof(f32));
	size_t i;

	EXPECT_RC(pack_next(&r, &v), RC_OK);
	EXPECT_INT(v.type, PACK_FLOAT);
	EXPECT_TRUE(v.f == 1.0);
	pack_w_init(&w, MIB);
	for (i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
		pack_w_reset(&w);
		pack_double(&w, values[i]);
		EXPECT_UINT(w.n, 9);
		r = pack_reader(w.p, w.n);
		EXPECT_RC(pack_next(&r, &v), RC_OK);
		EXPECT_MEM(&v.f, &values[i], sizeof(double));
	}
	pack_w_release(&w);
}

TEST(strings_of_every_head)
{
	static const size_t sizes[] = { 0,   1,   31,    32,    255,
					256, 300, 65535, 65536, 200000 };
	static char text[200000];
	struct pack_bytes s;
	enum pack_type type;
	struct pack_w w;
	struct pack_r r;
	size_t i, size;
	int bin;

	memset(text, 'a', sizeof(text));
	pack_w_init(&w, MIB);
	for (i = 0; i < 2 * sizeof(sizes) / sizeof(sizes[0]); i++) {
		bin = i % 2 == 1;
		runner_context("%s of %zu", bin ? "bin" : "str", sizes[i / 2]);
		pack_w_reset(&w);
		if (bin)
			pack_bin(&w, text, sizes[i / 2]);
		else
			pack_str(&w, text, sizes[i / 2]);
		EXPECT_RC(w.rc, RC_OK);
		EXPECT_RC(check(w.p, w.n, &wide, &size), RC_OK);
		EXPECT_UINT(size, w.n);
		r = pack_reader(w.p, w.n);
		EXPECT_RC(pack_peek(&r, &type), RC_OK);
		EXPECT_INT(type, bin ? PACK_BIN : PACK_STR);
		EXPECT_RC(bin ? pack_get_str(&r, &s) : pack_get_bin(&r, &s),
			  RC_INVALID);
		EXPECT_TRUE(r.at == w.p);
		EXPECT_RC(pack_get_bytes(&r, &s), RC_OK);
		EXPECT_UINT(s.n, sizes[i / 2]);
		EXPECT_MEM(s.p, text, s.n);
		EXPECT_TRUE(r.at == r.end);
	}
	pack_w_release(&w);
}

TEST(containers_of_every_head)
{
	static const uint32_t counts[] = { 0, 1, 15, 16, 65535, 65536, 100000 };
	struct pack_w w;
	struct pack_r r;
	uint32_t n, k;
	size_t i, size;

	pack_w_init(&w, MIB);
	for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		runner_context("%u", counts[i]);
		pack_w_reset(&w);
		pack_array(&w, counts[i]);
		for (k = 0; k < counts[i]; k++)
			pack_nil(&w);
		EXPECT_RC(check(w.p, w.n, &wide, &size), RC_OK);
		EXPECT_UINT(size, w.n);
		r = pack_reader(w.p, w.n);
		EXPECT_RC(pack_get_map(&r, &n), RC_INVALID);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		EXPECT_UINT(n, counts[i]);

		pack_w_reset(&w);
		pack_map(&w, counts[i]);
		for (k = 0; k < 2 * counts[i]; k++)
			pack_nil(&w);
		EXPECT_RC(check(w.p, w.n, &wide, &size), RC_OK);
		EXPECT_UINT(size, w.n);
		r = pack_reader(w.p, w.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_INVALID);
		EXPECT_RC(pack_get_map(&r, &n), RC_OK);
		EXPECT_UINT(n, counts[i]);
	}
	pack_w_release(&w);
}

TEST(ext_of_every_head)
{
	static const struct {
		const char *head;
		size_t head_bytes;
		size_t body_bytes;
	} rows[] = {
		{ "\xd4\xff", 2, 1 },
		{ "\xd5\xff", 2, 2 },
		{ "\xd6\xff", 2, 4 },
		{ "\xd7\xff", 2, 8 },
		{ "\xd8\xff", 2, 16 },
		{ "\xc7\x03\xff", 3, 3 },
		{ "\xc7\x00\xff", 3, 0 },
		{ "\xc8\x01\x00\xff", 4, 256 },
		{ "\xc9\x00\x00\x01\x01\xff", 6, 257 },
	};
	uint8_t buf[300];
	struct pack_val v;
	struct pack_r r;
	size_t i, size;

	memset(buf, 'e', sizeof(buf));
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		size_t n = rows[i].head_bytes + rows[i].body_bytes;

		runner_context("row %zu", i);
		memcpy(buf, rows[i].head, rows[i].head_bytes);
		EXPECT_RC(check(buf, n, &wide, &size), RC_OK);
		EXPECT_UINT(size, n);
		r = pack_reader(buf, n);
		EXPECT_RC(pack_next(&r, &v), RC_OK);
		EXPECT_INT(v.type, PACK_EXT);
		EXPECT_INT(v.ext_type, -1);
		EXPECT_UINT(v.s.n, rows[i].body_bytes);
		EXPECT_TRUE(v.s.p == buf + rows[i].head_bytes);
		r = pack_reader(buf, n - 1);
		EXPECT_RC(pack_next(&r, &v), RC_INVALID);
	}
}

TEST(typed_reads_refuse_the_other_types_and_stay)
{
	struct pack_bytes s;
	struct pack_r r, at;
	struct pack_w w;
	uint64_t u;
	uint32_t n;
	int64_t i;
	bool b;
	int type;

	pack_w_init(&w, MIB);
	pack_nil(&w);
	pack_bool(&w, false);
	pack_u64(&w, 1);
	pack_double(&w, 1.0);
	pack_cstr(&w, "s");
	pack_bin(&w, "b", 1);
	pack_array(&w, 0);
	pack_map(&w, 0);
	pack_raw(&w, "\xd4\x01x", 3);
	r = pack_reader(w.p, w.n);
	for (type = PACK_NIL; type <= PACK_EXT; type++) {
		enum pack_type is;

		runner_context("type %d", type);
		EXPECT_RC(pack_peek(&r, &is), RC_OK);
		EXPECT_INT(is, type);
#define STAYS(call, wanted)                                     \
	do {                                                    \
		at = r;                                         \
		EXPECT_RC(call, (wanted) ? RC_OK : RC_INVALID); \
		EXPECT_INT(at.at != r.at, (wanted));            \
	} while (0)
		STAYS(pack_get_nil(&at), type == PACK_NIL);
		STAYS(pack_get_bool(&at, &b), type == PACK_BOOL);
		STAYS(pack_get_u64(&at, &u), type == PACK_INT);
		STAYS(pack_get_i64(&at, &i), type == PACK_INT);
		STAYS(pack_get_str(&at, &s), type == PACK_STR);
		STAYS(pack_get_bin(&at, &s), type == PACK_BIN);
		STAYS(pack_get_bytes(&at, &s),
		      type == PACK_STR || type == PACK_BIN);
		STAYS(pack_get_array(&at, &n), type == PACK_ARRAY);
		STAYS(pack_get_map(&at, &n), type == PACK_MAP);
#undef STAYS
		EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	}
	/* At the end. */
	EXPECT_RC(pack_get_nil(&r), RC_INVALID);
	EXPECT_RC(pack_get_u64(&r, &u), RC_INVALID);
	EXPECT_RC(pack_skip(&r, NULL), RC_EOF);
	pack_w_release(&w);
}

TEST(integers_keep_their_half)
{
	struct pack_w w;
	struct pack_r r;
	uint64_t u = 1;
	int64_t i = 1;

	pack_w_init(&w, MIB);
	pack_i64(&w, -1);
	pack_u64(&w, (uint64_t)INT64_MAX + 1);
	pack_u64(&w, INT64_MAX);
	pack_i64(&w, INT64_MIN);
	r = pack_reader(w.p, w.n);
	EXPECT_RC(pack_get_u64(&r, &u), RC_INVALID);
	EXPECT_TRUE(r.at == w.p);
	EXPECT_RC(pack_get_i64(&r, &i), RC_OK);
	EXPECT_INT(i, -1);
	EXPECT_RC(pack_get_i64(&r, &i), RC_INVALID);
	EXPECT_RC(pack_get_u64(&r, &u), RC_OK);
	EXPECT_UINT(u, (uint64_t)INT64_MAX + 1);
	EXPECT_RC(pack_get_i64(&r, &i), RC_OK);
	EXPECT_INT(i, INT64_MAX);
	EXPECT_RC(pack_get_i64(&r, &i), RC_OK);
	EXPECT_INT(i, INT64_MIN);
	pack_w_release(&w);
}

/* ---------------------------------------------------------- check */

TEST(a_message_cut_anywhere_asks_for_more)
{
	struct pack_scan slow = { 0 };
	size_t n, size = 0;
	struct pack_r r;
	struct pack_w w;
	uint8_t *cut;

	pack_w_init(&w, MIB);
	put_one_of_each(&w);
	EXPECT_RC(w.rc, RC_OK);
	for (n = 0; n < w.n; n++) {
		runner_context("%zu of %zu bytes", n, w.n);
		/* Fresh each time near the ends, where all the heads are, and
		 * in its own allocation, so that a read too far is seen. */
		if (n < 2000 || n + 2000 > w.n) {
			cut = malloc(n > 0 ? n : 1);
			EXPECT_NOT_NULL(cut);
			memcpy(cut, w.p, n);
			EXPECT_RC(check(cut, n, &wide, &size), RC_AGAIN);
			r = pack_reader(cut, n);
			EXPECT_RC(pack_skip(&r, NULL),
				  n == 0 ? RC_EOF : RC_INVALID);
			EXPECT_TRUE(r.at == cut);
			free(cut);
		}
		/* Incremental: one byte more at a time. */
		EXPECT_RC(pack_check(&slow, w.p, n, &wide, &size), RC_AGAIN);
	}
	EXPECT_RC(pack_check(&slow, w.p, w.n, &wide, &size), RC_OK);
	EXPECT_UINT(size, w.n);
	/* What follows is not looked at. */
	pack_raw(&w, "\xc1\xc1", 2);
	EXPECT_RC(check(w.p, w.n, &wide, &size), RC_OK);
	EXPECT_UINT(size, w.n - 2);
	pack_w_release(&w);
}

/* Bytes that a first byte asks for at least, when zeros follow. */
static size_t bytes_after(int b)
{
	static const uint8_t c0[32] = { 0, 0, 0,  0, 1, 2, 4, 2, 3, 5, 4,
					8, 1, 2,  4, 8, 1, 2, 4, 8, 2, 3,
					5, 9, 17, 1, 2, 4, 2, 4, 2, 4 };

	if (b >= 0x80 && b < 0x90)
		return 2 * ((size_t)b & 15);
	if (b >= 0x90 && b < 0xa0)
		return (size_t)b & 15;
	if (b >= 0xa0 && b < 0xc0)
		return (size_t)b & 31;
	if (b >= 0xc0 && b < 0xe0)
		return c0[b - 0xc0];
	return 0;
}

TEST(all_first_bytes)
{
	uint8_t buf[64];
	struct pack_val v;
	struct pack_r r;
	size_t n, size;
	int b;

	for (b = 0; b < 256; b++) {
		memset(buf, 0, sizeof(buf));
		buf[0] = (uint8_t)b;
		for (n = 1; n <= 1 + bytes_after(b); n++) {
			bool whole = n == 1 + bytes_after(b);

			runner_context("%02x, %zu bytes", (unsigned)b, n);
			r = pack_reader(buf, n);
			if (b == 0xc1) {
				EXPECT_RC(check(buf, n, &wide, &size),
					  RC_INVALID);
				EXPECT_RC(pack_next(&r, &v), RC_INVALID);
				EXPECT_RC(pack_skip(&r, NULL), RC_INVALID);
				continue;
			}
			EXPECT_RC(check(buf, n, &wide, &size),
				  whole ? RC_OK : RC_AGAIN);
			EXPECT_RC(pack_skip(&r, NULL),
				  whole ? RC_OK : RC_INVALID);
			EXPECT_UINT(r.at - buf, whole ? n : 0);
		}
		EXPECT_RC(check(buf, sizeof(buf), &wide, &size),
			  b == 0xc1 ? RC_INVALID : RC_OK);
		EXPECT_UINT(size, b == 0xc1 ? 0 : 1 + bytes_after(b));
	}
}

TEST(a_claim_that_cannot_be_true_is_refused_at_once)
{
	static const struct {
		const char *bytes;
		size_t n;
	} rows[] = {
		{ "\xdd\x10\x00\x00\x00", 5 }, /* array of 268,435,456 */
		{ "\xdd\xff\xff\xff\xff", 5 },
		{ "\xdf\xff\xff\xff\xff", 5 },     /* map */
		{ "\xdf\x80\x00\x00\x00", 5 },     /* 2^32 objects in it */
		{ "\xc6\xff\xff\xff\xff", 5 },     /* bin */
		{ "\xdb\xff\xff\xff\xff", 5 },     /* str */
		{ "\xc9\xff\xff\xff\xff\x01", 6 }, /* ext */
		{ "\xc6\x00\x10\x00\x00", 5 },     /* bin of the bound itself */
		{ "\x91\xdd\x10\x00\x00\x00", 6 },
		{ "\x92\x01\xdb\x00\x0f\xff\xfa", 7 },
		{ "\x81\xa1k\xdf\x00\x08\x00\x00", 8 },
	};
	struct pack_r r;
	size_t i, n, size;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu", i);
		EXPECT_RC(check(rows[i].bytes, rows[i].n, &wide, &size),
			  RC_INVALID);
		for (n = 1; n < rows[i].n; n++)
			EXPECT_RC(check(rows[i].bytes, n, &wide, &size),
				  RC_AGAIN);
		r = pack_reader(rows[i].bytes, rows[i].n);
		EXPECT_RC(pack_skip(&r, NULL), RC_INVALID);
	}
	/* The largest that fit: more is needed, nothing is wrong. */
	EXPECT_RC(check("\xc6\x00\x0f\xff\xfb", 5, &wide, &size), RC_AGAIN);
	EXPECT_RC(check("\xdd\x00\x03\xff\xff", 5, &wide, &size), RC_AGAIN);
	EXPECT_RC(check("\xdd\x00\x04\x00\x00", 5, &wide, &size), RC_INVALID);
	EXPECT_RC(check("\xdf\x00\x01\xff\xff", 5, &wide, &size), RC_AGAIN);
	EXPECT_RC(check("\xdf\x00\x02\x00\x00", 5, &wide, &size), RC_INVALID);
}

TEST(the_bound_in_bytes_is_exact)
{
	struct pack_bounds bounds = wide;
	struct pack_scan st;
	struct pack_w w;
	size_t n, size;

	pack_w_init(&w, MIB);
	put_one_of_each(&w);
	bounds.bytes_max = w.n;
	EXPECT_RC(check(w.p, w.n, &bounds, &size), RC_OK);
	for (n = 0; n < w.n; n++) {
		if (n == 2000)
			n = w.n - 2000;
		bounds.bytes_max = n;
		runner_context("%zu of %zu", n, w.n);
		EXPECT_RC(check(w.p, w.n, &bounds, &size), RC_INVALID);
	}
	/* Found without the bytes behind the bound, too. */
	bounds.bytes_max = 4;
	memset(&st, 0, sizeof(st));
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x93\x01\x02", 3, &bounds,
			     &size),
		  RC_AGAIN);
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x93\x01\x02\xcc", 4,
			     &bounds, &size),
		  RC_INVALID);
	/* An object that is open when the bound is reached. */
	bounds.bytes_max = 6;
	memset(&st, 0, sizeof(st));
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x92\x93\x01\x01\x01", 5,
			     &bounds, &size),
		  RC_AGAIN);
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x92\x93\x01\x01\x01\x90",
			     6, &bounds, &size),
		  RC_OK);
	memset(&st, 0, sizeof(st));
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x92\x94\x01\x01\x01\x91",
			     6, &bounds, &size),
		  RC_INVALID);
	pack_w_release(&w);
}

TEST(the_bound_in_elements_counts_all_levels)
{
	struct pack_bounds bounds = wide;
	size_t size;

	bounds.elements_max = 6; /* [1, {2: 3}, []] is six. */
	EXPECT_RC(check("\x93\x01\x81\x02\x03\x90", 6, &bounds, &size), RC_OK);
	bounds.elements_max = 5;
	EXPECT_RC(check("\x93\x01\x81\x02\x03\x90", 6, &bounds, &size),
		  RC_INVALID);
	bounds.elements_max = 1;
	EXPECT_RC(check("\x01", 1, &bounds, &size), RC_OK);
	EXPECT_RC(check("\x91", 1, &bounds, &size), RC_INVALID);
	bounds.elements_max = 0;
	EXPECT_RC(check("\x01", 1, &bounds, &size), RC_INVALID);
}

TEST(nesting_ends_at_the_bound)
{
	struct pack_bounds bounds = wide;
	uint8_t deep[PACK_DEPTH_MAX + 2];
	size_t size;
	uint32_t d;

	memset(deep, 0x91, sizeof(deep));
	for (d = 1; d <= PACK_DEPTH_MAX; d++) {
		bounds.depth_max = d;
		runner_context("%u", d);
		deep[d] = 0x01;
		EXPECT_RC(check(deep, d + 1, &bounds, &size), RC_OK);
		EXPECT_UINT(size, d + 1);
		deep[d] = 0x90; /* Empty, but a level. */
		EXPECT_RC(check(deep, d + 1, &bounds, &size), RC_INVALID);
		deep[d] = 0x91;
	}
	/* No caller can ask for more than the scan has room for. */
	bounds.depth_max = 1000;
	EXPECT_RC(check(deep, sizeof(deep), &bounds, &size), RC_INVALID);
	bounds.depth_max = 0;
	EXPECT_RC(check("\x01", 1, &bounds, &size), RC_OK);
	EXPECT_RC(check("\x90", 1, &bounds, &size), RC_INVALID);
}

TEST(nesting_of_100000)
{
	static uint8_t deep[100001];
	struct pack_scan st = { 0 };
	struct pack_r r;
	size_t size;

	memset(deep, 0x91, sizeof(deep));
	EXPECT_RC(pack_check(&st, deep, sizeof(deep), &wide, &size),
		  RC_INVALID);
	EXPECT_UINT(st.at, PACK_DEPTH_MAX);
	/* skip has no bound of depth and needs none. */
	deep[sizeof(deep) - 1] = 0x01;
	r = pack_reader(deep, sizeof(deep));
	EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_TRUE(r.at == r.end);
	memset(deep, 0x81, sizeof(deep));
	r = pack_reader(deep, sizeof(deep));
	EXPECT_RC(pack_skip(&r, NULL), RC_INVALID);
	EXPECT_FALSE(pack_equal((struct pack_bytes){ deep, sizeof(deep) },
				(struct pack_bytes){ deep, sizeof(deep) }));
}

TEST(a_scan_that_failed_stays_failed)
{
	struct pack_scan st = { 0 };
	size_t size;
	int i;

	for (i = 0; i < 3; i++)
		EXPECT_RC(pack_check(&st, (const uint8_t *)"\x92\x01\xc1", 3,
				     &wide, &size),
			  RC_INVALID);
	/* Bytes that were there are gone: the caller's mistake, not a read
	 * beyond the end. */
	EXPECT_RC(pack_check(&st, (const uint8_t *)"\x92", 1, &wide, &size),
		  RC_INVALID);
}

/* ---------------------------------------------------------- skip */

TEST(skip_passes_over_whole_objects)
{
	struct pack_bytes whole;
	struct pack_w w;
	struct pack_r r;

	pack_w_init(&w, MIB);
	put_one_of_each(&w);
	pack_u64(&w, 42);
	r = pack_reader(w.p, w.n);
	EXPECT_RC(pack_skip(&r, &whole), RC_OK);
	EXPECT_TRUE(whole.p == w.p);
	EXPECT_UINT(whole.n, w.n - 1);
	EXPECT_RC(pack_skip(&r, NULL), RC_OK);
	EXPECT_RC(pack_skip(&r, NULL), RC_EOF);
	pack_w_release(&w);
}

/* ---------------------------------------------------------- writer */

TEST(a_writer_stops_at_its_bound)
{
	struct pack_w w;

	pack_w_init(&w, 10);
	pack_raw(&w, "0123456789", 10);
	EXPECT_RC(w.rc, RC_OK);
	EXPECT_UINT(w.n, 10);
	EXPECT_TRUE(w.cap <= 10);
	pack_nil(&w);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	EXPECT_UINT(w.n, 10);
	pack_w_reset(&w);
	EXPECT_RC(w.rc, RC_OK);
	EXPECT_UINT(w.n, 0);
	EXPECT_FALSE(pack_w_reserve(&w, 11));
	EXPECT_RC(w.rc, RC_OVERLOADED);
	pack_u64(&w, 1);
	pack_cstr(&w, "x");
	pack_raw(&w, "", 0);
	EXPECT_UINT(w.n, 0);
	EXPECT_FALSE(pack_w_reserve(&w, 1));
	pack_w_reset(&w);
	EXPECT_TRUE(pack_w_reserve(&w, 10));
	EXPECT_TRUE(pack_w_reserve(&w, 0));
	pack_w_release(&w);
	EXPECT_NULL(w.p);
	pack_w_release(&w);

	pack_w_init(&w, 0);
	EXPECT_TRUE(pack_w_reserve(&w, 0));
	pack_raw(&w, NULL, 0);
	EXPECT_RC(w.rc, RC_OK);
	pack_nil(&w);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	pack_w_release(&w);
}

TEST(a_writer_grows_and_keeps_what_it_has)
{
	struct pack_w w;
	uint64_t i, v;
	struct pack_r r;
	uint8_t *p;

	pack_w_init(&w, MIB);
	for (i = 0; i < 50000; i++)
		pack_u64(&w, i);
	EXPECT_RC(w.rc, RC_OK);
	r = pack_reader(w.p, w.n);
	for (i = 0; i < 50000; i++) {
		EXPECT_RC(pack_get_u64(&r, &v), RC_OK);
		EXPECT_UINT(v, i);
	}
	p = w.p;
	pack_w_reset(&w);
	pack_nil(&w);
	EXPECT_TRUE(w.p == p);
	pack_w_release(&w);
}

TEST(a_writer_without_memory_says_so)
{
	struct pack_w w;

	pack_w_init(&w, MIB);
	fault_alloc(1);
	pack_nil(&w);
	EXPECT_RC(w.rc, RC_NOMEM);
	EXPECT_UINT(w.n, 0);
	EXPECT_TRUE(fault_off());
	/* Nothing is tried again before it is reset. */
	pack_nil(&w);
	EXPECT_UINT(w.n, 0);
	pack_w_reset(&w);
	pack_nil(&w);
	EXPECT_RC(w.rc, RC_OK);
	/* What it has, it keeps. */
	fault_alloc(1);
	EXPECT_FALSE(pack_w_reserve(&w, 100000));
	EXPECT_TRUE(fault_off());
	EXPECT_RC(w.rc, RC_NOMEM);
	EXPECT_UINT(w.n, 1);
	EXPECT_UINT(w.p[0], 0xc0);
	pack_w_release(&w);
}

TEST(a_string_longer_than_the_format_can_say)
{
	struct pack_w w;

	pack_w_init(&w, SIZE_MAX);
	pack_str(&w, "x", (size_t)UINT32_MAX + 1);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	EXPECT_UINT(w.n, 0);
	pack_w_reset(&w);
	pack_bin(&w, "x", (size_t)UINT32_MAX + 1);
	EXPECT_RC(w.rc, RC_OVERLOADED);
	pack_w_release(&w);
}

/* ---------------------------------------------------------- equal */

static bool equal(const char *a, size_t a_bytes, const char *b, size_t b_bytes)
{
	struct pack_bytes x = { (const uint8_t *)a, a_bytes };
	struct pack_bytes y = { (const uint8_t *)b, b_bytes };
	bool one = pack_equal(x, y);
	bool other = pack_equal(y, x);

	EXPECT_INT(one, other);
	return one;
}

#define EQUAL(a, b) equal(a, sizeof(a) - 1, b, sizeof(b) - 1)

TEST(equal_compares_values)
{
	EXPECT_TRUE(EQUAL("\x01", "\xcc\x01"));
	EXPECT_TRUE(EQUAL("\x01", "\xd3\0\0\0\0\0\0\0\x01"));
	EXPECT_TRUE(EQUAL("\xff", "\xd1\xff\xff"));
	EXPECT_TRUE(EQUAL("\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
			  "\xcf\xff\xff\xff\xff\xff\xff\xff\xff"));
	EXPECT_FALSE(EQUAL("\xcf\xff\xff\xff\xff\xff\xff\xff\xff", "\xff"));
	EXPECT_FALSE(EQUAL("\x01", "\x02"));
	EXPECT_FALSE(EQUAL("\x01", "\xc3"));
	EXPECT_FALSE(EQUAL("\xc2", "\xc3"));
	EXPECT_FALSE(EQUAL("\xc0", "\xc2"));
	EXPECT_TRUE(EQUAL("\xc0", "\xc0"));
	/* 1 is not 1.0; 1.0 is 1.0 in both sizes. */
	EXPECT_FALSE(EQUAL("\x01", "\xca\x3f\x80\0\0"));
	EXPECT_TRUE(EQUAL("\xca\x3f\x80\0\0", "\xcb\x3f\xf0\0\0\0\0\0\0"));
	EXPECT_TRUE(EQUAL("\xa1x", "\xd9\x01x"));
	EXPECT_FALSE(EQUAL("\xa1x", "\xc4\x01x"));
	EXPECT_FALSE(EQUAL("\xa1x", "\xa1y"));
	EXPECT_FALSE(EQUAL("\xa1x", "\xa2xx"));
	EXPECT_TRUE(EQUAL("\xd4\x01x", "\xc7\x01\x01x"));
	EXPECT_FALSE(EQUAL("\xd4\x01x", "\xd4\x02x"));
	EXPECT_TRUE(EQUAL("\x92\x01\x90", "\xdc\0\x02\x01\xdc\0\0"));
	EXPECT_FALSE(EQUAL("\x92\x01\x02", "\x92\x02\x01"));
	EXPECT_FALSE(EQUAL("\x90", "\x80"));
	EXPECT_FALSE(EQUAL("\x91\x01", "\x92\x01\x01"));
}

TEST(equal_takes_maps_in_any_order)
{
	EXPECT_TRUE(EQUAL("\x80", "\xde\0\0"));
	EXPECT_TRUE(EQUAL("\x82\xa1x\x01\xa1y\x02", "\x82\xa1y\x02\xa1x\x01"));
	EXPECT_FALSE(EQUAL("\x82\xa1x\x01\xa1y\x02", "\x82\xa1y\x01\xa1x\x02"));
	EXPECT_FALSE(EQUAL("\x81\xa1x\x01", "\x81\xa1z\x01"));
	EXPECT_FALSE(EQUAL("\x81\xa1x\x01", "\x82\xa1x\x01\xa1y\x02"));
	EXPECT_TRUE(EQUAL("\x91\x82\x01\x91\x05\x02\xc0",
			  "\x91\x82\x02\xc0\x01\x91\xcc\x05"));
	/* A key twice: no map in the sense of this. */
	EXPECT_FALSE(EQUAL("\x82\x01\x01\x01\x01", "\x82\x01\x01\x02\x02"));
	EXPECT_FALSE(EQUAL("\x82\x01\x01\x01\x02", "\x82\x01\x01\x01\x01"));
}

TEST(equal_refuses_what_is_no_object)
{
	EXPECT_FALSE(EQUAL("", ""));
	EXPECT_FALSE(EQUAL("\xc1", "\xc1"));
	EXPECT_FALSE(EQUAL("\x91", "\x91"));
	EXPECT_FALSE(EQUAL("\x01\x01", "\x01\x01"));
	EXPECT_FALSE(EQUAL("\x01", "\x01\x01"));
	EXPECT_FALSE(EQUAL("\x81\x01", "\x81\x01"));
	EXPECT_FALSE(
		EQUAL("\xdd\xff\xff\xff\xff\x01", "\xdd\xff\xff\xff\xff\x01"));
}
