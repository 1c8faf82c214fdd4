#include "client/proto/json.h"

#include <float.h>
#include <locale.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

#define BYTES (16U * 1024 * 1024)

static struct pack_w packed, text;

static void start(void)
{
	pack_w_release(&packed);
	pack_w_release(&text);
	pack_w_init(&packed, BYTES);
	pack_w_init(&text, BYTES);
}

static void stop(void)
{
	pack_w_release(&packed);
	pack_w_release(&text);
}

/* What `packed` holds as text. */
static const char *shown(unsigned flags)
{
	pack_w_reset(&text);
	EXPECT_RC(pack_to_json((struct pack_bytes){ packed.p, packed.n }, &text,
			       flags),
		  RC_OK);
	pack_raw(&text, "", 1);
	EXPECT_RC(text.rc, RC_OK);
	return (const char *)text.p;
}

static enum rc read_text(const char *s, size_t n, struct detail *why)
{
	memset(why, 0, sizeof(*why));
	pack_w_reset(&packed);
	return json_to_pack(s, n, &packed, why);
}

static void expect_read(const char *s, const char *want, size_t want_bytes)
{
	struct detail why;

	runner_context("%s", s);
	EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
	EXPECT_UINT(packed.n, want_bytes);
	EXPECT_MEM(packed.p, want, want_bytes);
}

#define EXPECT_READ(s, want) expect_read(s, want, sizeof(want) - 1)

TEST(values_are_read)
{
	start();
	EXPECT_READ("null", "\xc0");
	EXPECT_READ("true", "\xc3");
	EXPECT_READ("false", "\xc2");
	EXPECT_READ(" \t\r\n1 \n", "\x01");
	EXPECT_READ("0", "\x00");
	EXPECT_READ("-0", "\x00");
	EXPECT_READ("-1", "\xff");
	EXPECT_READ("128", "\xcc\x80");
	EXPECT_READ("9223372036854775807",
		    "\xcf\x7f\xff\xff\xff\xff\xff\xff\xff");
	EXPECT_READ("18446744073709551615",
		    "\xcf\xff\xff\xff\xff\xff\xff\xff\xff");
	EXPECT_READ("-9223372036854775808", "\xd3\x80\0\0\0\0\0\0\0");
	EXPECT_READ("1.0", "\xcb\x3f\xf0\0\0\0\0\0\0");
	EXPECT_READ("1e0", "\xcb\x3f\xf0\0\0\0\0\0\0");
	EXPECT_READ("10E-1", "\xcb\x3f\xf0\0\0\0\0\0\0");
	EXPECT_READ("0.1e+1", "\xcb\x3f\xf0\0\0\0\0\0\0");
	EXPECT_READ("-0.0", "\xcb\x80\0\0\0\0\0\0\0");
	EXPECT_READ("\"\"", "\xa0");
	EXPECT_READ("\"\\u0000\"", "\xa1\0");
	EXPECT_READ("[]", "\x90");
	EXPECT_READ("{}", "\x80");
	EXPECT_READ("[ ]", "\x90");
	EXPECT_READ("{ }", "\x80");
	EXPECT_READ("[1,[2 , 3],{\"a\" : {}}]", "\x93\x01\x92\x02\x03\x81\xa1"
						"a\x80");
	EXPECT_READ("{\"b\":1,\"a\":2}", "\x82\xa1"
					 "b\x01\xa1"
					 "a\x02");
	stop();
}

TEST(strings_are_read)
{
	start();
	EXPECT_READ("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"", "\xa8\"\\/\b\f\n\r\t");
	EXPECT_READ("\"\\u00e9\\u20AC\\ud83d\\ude00\"",
		    "\xa9\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
	EXPECT_READ("\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"",
		    "\xa9\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80");
	EXPECT_READ("\"\\u007f\\u0080\\u07ff\\u0800\\uffff\"",
		    "\xab\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf");
	EXPECT_READ("\"\\udbff\\udfff\"", "\xa4\xf4\x8f\xbf\xbf");
	stop();
}

TEST(what_json_cannot_say_has_reserved_keys)
{
	start();
	EXPECT_READ("{\"$bin\":\"\"}", "\xc4\x00");
	EXPECT_READ("{\"$bin\":\"YQ==\"}", "\xc4\x01"
					   "a");
	EXPECT_READ("{\"$bin\":\"YWI=\"}", "\xc4\x02"
					   "ab");
	EXPECT_READ("{\"$bin\":\"+/8A\"}", "\xc4\x03\xfb\xff\0");
	EXPECT_READ("{\"$str\":\"/w==\"}", "\xa1\xff");
	EXPECT_READ("{\"$ext\":[-1,\"YQ==\"]}", "\xd4\xff"
						"a");
	EXPECT_READ("{\"$ext\":[5,\"\"]}", "\xc7\x00\x05");
	EXPECT_READ("{\"$float\":\"inf\"}", "\xcb\x7f\xf0\0\0\0\0\0\0");
	EXPECT_READ("{\"$float\":\"-inf\"}", "\xcb\xff\xf0\0\0\0\0\0\0");
	EXPECT_READ("{\"$float\":\"nan\"}", "\xcb\x7f\xf8\0\0\0\0\0\0");
	EXPECT_READ("{\"$map\":[]}", "\x80");
	EXPECT_READ("{\"$map\":[[1,2],[null,[]]]}", "\x82\x01\x02\xc0\x90");
	EXPECT_READ("{\"$map\":[[\"$bin\",\"x\"]]}", "\x81\xa4$bin\xa1x");
	EXPECT_READ("[{\"$bin\":\"YQ==\"},1]", "\x92\xc4\x01"
					       "a\x01");
	/* Not alone, they are keys like others. */
	EXPECT_READ("{\"$bin\":\"x\",\"a\":1}", "\x82\xa4$bin\xa1x\xa1"
						"a\x01");
	EXPECT_READ("{\"$ref\":1}", "\x81\xa4$ref\x01");
	stop();
}

TEST(what_is_no_json_is_refused)
{
	static const struct {
		const char *s;
		const char *says;
	} rows[] = {
		{ "", "byte 1 of the JSON: expected a value" },
		{ " ", "byte 2 of the JSON: expected a value" },
		{ "nul", "expected a value" },
		{ "NULL", "expected a value" },
		{ "True", "expected a value" },
		{ "nan", "expected a value" },
		{ "Infinity", "expected a value" },
		{ "'a'", "expected a value" },
		{ "\xef\xbb\xbf"
		  "1",
		  "expected a value" },
		{ "1 2", "byte 3 of the JSON: something follows" },
		{ "1,", "something follows" },
		{ "truex", "something follows" },
		{ "01", "something follows" },
		{ "1_000", "something follows" },
		{ "0x10", "something follows" },
		{ "-", "not a number" },
		{ "+1", "expected a value" },
		{ ".5", "expected a value" },
		{ "1.", "not a number" },
		{ "1e", "not a number" },
		{ "1e+", "not a number" },
		{ "-a", "not a number" },
		{ "18446744073709551616", "more than 64 bits" },
		{ "-9223372036854775809", "more than 64 bits" },
		{ "99999999999999999999999", "more than 64 bits" },
		{ "1e400", "too large for a float" },
		{ "-1e400", "too large for a float" },
		{ "\"", "has no end" },
		{ "\"abc", "has no end" },
		{ "\"\\", "no such escape" },
		{ "\"\\x\"", "no such escape" },
		{ "\"\\'\"", "no such escape" },
		{ "\"\\u12\"", "four hexadecimal digits" },
		{ "\"\\u12g4\"", "four hexadecimal digits" },
		{ "\"\\ud800\"", "surrogate" },
		{ "\"\\ud800x\"", "surrogate" },
		{ "\"\\ud800\\u0041\"", "surrogate" },
		{ "\"\\udc00\"", "surrogate" },
		{ "\"a\nb\"", "control character" },
		{ "\"a\tb\"", "control character" },
		{ "\"\x1f\"", "control character" },
		{ "\"\x80\"", "not UTF-8" },
		{ "\"\xc0\xaf\"", "not UTF-8" },
		{ "\"\xc1\xbf\"", "not UTF-8" },
		{ "\"\xe0\x80\xaf\"", "not UTF-8" },
		{ "\"\xed\xa0\x80\"", "not UTF-8" },
		{ "\"\xf0\x80\x80\xaf\"", "not UTF-8" },
		{ "\"\xf4\x90\x80\x80\"", "not UTF-8" },
		{ "\"\xf5\x80\x80\x80\"", "not UTF-8" },
		{ "\"\xc3\"", "not UTF-8" },
		{ "\"\xe2\x82\"", "not UTF-8" },
		{ "\"\xff\"", "not UTF-8" },
		{ "[", "expected a value" },
		{ "[1", "expected , or ]" },
		{ "[1,]", "expected a value" },
		{ "[,1]", "expected a value" },
		{ "[1 2]", "expected , or ]" },
		{ "[1}", "expected , or ]" },
		{ "]", "expected a value" },
		{ "{", "expected a key" },
		{ "{1:2}", "expected a key" },
		{ "{a:1}", "expected a key" },
		{ "{\"a\"}", "expected :" },
		{ "{\"a\":}", "expected a value" },
		{ "{\"a\":1,}", "expected a key" },
		{ "{\"a\":1", "expected , or }" },
		{ "{\"a\":1]", "expected , or }" },
		{ "{\"a\":1 \"b\":2}", "expected , or }" },
		{ "{\"a\":1,\"a\":2}", "a key twice" },
		{ "{\"a\":1,\"b\":0,\"\\u0061\":2}", "a key twice" },
		{ "[{\"x\":{\"a\":1,\"b\":1,\"a\":1}}]", "a key twice" },
		{ "/* */ 1", "expected a value" },
		{ "1 // x", "something follows" },
		{ "{\"$bin\":1}", "base64 belongs" },
		{ "{\"$bin\":\"YQ\"}", "not base64" },
		{ "{\"$bin\":\"YQ=\"}", "not base64" },
		{ "{\"$bin\":\"Y===\"}", "not base64" },
		{ "{\"$bin\":\"YQ==YQ==\"}", "not base64" },
		{ "{\"$bin\":\"YR==\"}", "not base64" },
		{ "{\"$bin\":\"YWJ=\"}", "not base64" },
		{ "{\"$bin\":\"Y Q=\"}", "not base64" },
		{ "{\"$bin\":\"YQ=a\"}", "not base64" },
		{ "{\"$bin\":\"-_8A\"}", "not base64" },
		{ "{\"$bin\":\"\\u0000AAA\"}", "not base64" },
		{ "{\"$str\":[]}", "base64 belongs" },
		{ "{\"$ext\":\"x\"}", "$ext is" },
		{ "{\"$ext\":[1]}", "$ext is" },
		{ "{\"$ext\":[128,\"\"]}", "$ext is" },
		{ "{\"$ext\":[-129,\"\"]}", "$ext is" },
		{ "{\"$ext\":[1,\"?\"]}", "not base64" },
		{ "{\"$float\":\"NaN\"}", "$float is" },
		{ "{\"$float\":1.0}", "$float is" },
		{ "{\"$map\":{}}", "$map is" },
		{ "{\"$map\":[1]}", "$map is" },
		{ "{\"$map\":[[1]]}", "$map is" },
		{ "{\"$map\":[[1,2,3]]}", "$map is" },
		{ "{\"$map\":[[1,2],3]}", "$map is" },
	};
	struct detail why;
	size_t i;

	start();
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		runner_context("row %zu: %s", i, rows[i].s);
		EXPECT_RC(read_text(rows[i].s, strlen(rows[i].s), &why),
			  RC_INVALID);
		EXPECT_HAS(why.text, rows[i].says);
		EXPECT_HAS(why.text, "of the JSON: ");
		EXPECT_UINT(packed.n, 0);
		EXPECT_RC(json_to_pack(rows[i].s, strlen(rows[i].s), &packed,
				       NULL),
			  RC_INVALID);
	}
	EXPECT_RC(read_text("1\0", 2, &why), RC_INVALID);
	EXPECT_RC(read_text("\0", 1, &why), RC_INVALID);
	EXPECT_RC(read_text("\"\0\"", 3, &why), RC_INVALID);
	stop();
}

TEST(json_cut_anywhere_is_refused)
{
	static const char s[] = "{\"a\":[1,-2.5e3,\"\\ud83d\\ude00\\n\",true,"
				"null,{\"$bin\":\"YWI=\"}],\"\xc3\xa9\":{}}";
	struct detail why;
	char *cut;
	size_t n;

	start();
	for (n = 0; n < sizeof(s) - 1; n++) {
		runner_context("%zu bytes", n);
		cut = malloc(n > 0 ? n : 1);
		EXPECT_NOT_NULL(cut);
		memcpy(cut, s, n);
		EXPECT_RC(read_text(cut, n, &why), RC_INVALID);
		free(cut);
	}
	EXPECT_RC(read_text(s, n, &why), RC_OK);
	stop();
}

static void expect_same(const char *s, const char *want)
{
	struct detail why;

	runner_context("%s", s);
	EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
	EXPECT_STR(shown(0), want);
}

TEST(text_comes_back)
{
	static const char *const rows[] = {
		"null",
		"true",
		"false",
		"0",
		"-1",
		"9223372036854775807",
		"9223372036854775808",
		"18446744073709551615",
		"-9223372036854775808",
		"1.0",
		"-0.0",
		"0.1",
		"1e+100",
		"1.7976931348623157e+308",
		"4.94065645841247e-324",
		"123456789.123",
		"\"\"",
		"\"a\\\"b\\\\c/\"",
		"\"\\b\\t\\n\\f\\r\\u0000\\u000b\\u001f\\u007f\\u009b\"",
		"\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"",
		"[]",
		"{}",
		"[[],{},[1,[2]]]",
		"{\"a\":{\"b\":[1,2,3]},\"\":null}",
		"{\"$bin\":\"AP8=\"}",
		"{\"$str\":\"/w==\"}",
		"{\"$ext\":[-128,\"YWJj\"]}",
		"{\"$float\":\"nan\"}",
		"{\"$float\":\"inf\"}",
		"{\"$float\":\"-inf\"}",
		"{\"$map\":[[1,2]]}",
		"{\"$map\":[[{\"$bin\":\"YQ==\"},[]],[\"a\",1]]}",
		"{\"$map\":[[\"a\",1],[\"a\",2]]}",
		"{\"$map\":[[\"$map\",[]]]}",
		"{\"$map\":[[{\"$str\":\"/w==\"},1]]}",
		"{\"$ref\":1}",
		"{\"$bin\":1,\"a\":2}",
	};
	size_t i;

	start();
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		expect_same(rows[i], rows[i]);
	expect_same("1.50", "1.5");
	expect_same("1E2", "100.0");
	expect_same("[ 1 , 2 ]", "[1,2]");
	stop();
}

TEST(heads_of_every_size_come_back)
{
	static const size_t sizes[] = { 0,   1,   2,     3,     4,     5,
					8,   15,  16,    17,    31,    32,
					255, 256, 65535, 65536, 100000 };
	static char filler[100000];
	struct pack_w want;
	struct detail why;
	const char *s;
	size_t i, k;
	int kind;

	start();
	memset(filler, 0xff, sizeof(filler));
	pack_w_init(&want, BYTES);
	for (kind = 0; kind < 5; kind++) {
		for (i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			size_t n = sizes[i];
			uint8_t ext[] = { 0xc9,
					  (uint8_t)(n >> 24),
					  (uint8_t)(n >> 16),
					  (uint8_t)(n >> 8),
					  (uint8_t)n,
					  7 };

			pack_w_reset(&want);
			switch (kind) {
			case 0:
				pack_bin(&want, filler, n);
				break;
			case 1:
				pack_str(&want, filler, n);
				break;
			case 2:
				pack_raw(&want, ext, sizeof(ext));
				pack_raw(&want, filler, n);
				break;
			case 3:
				pack_array(&want, (uint32_t)n);
				for (k = 0; k < n; k++)
					pack_u64(&want, k);
				break;
			default:
				pack_map(&want, (uint32_t)n);
				for (k = 0; k < n; k++) {
					pack_u64(&want, k);
					pack_nil(&want);
				}
				break;
			}
			runner_context("kind %d of %zu", kind, n);
			pack_w_reset(&packed);
			pack_raw(&packed, want.p, want.n);
			s = shown(0);
			EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
			EXPECT_TRUE(kind == 2 ? packed.n <= want.n
					      : packed.n == want.n);
			if (n > 300 && kind > 2) {
				EXPECT_MEM(packed.p, want.p, want.n);
				continue;
			}
			EXPECT_TRUE(pack_equal(
				(struct pack_bytes){ packed.p, packed.n },
				(struct pack_bytes){ want.p, want.n }));
		}
	}
	pack_w_release(&want);
	stop();
}

TEST(bin_may_be_shown_as_text)
{
	start();
	pack_array(&packed, 5);
	pack_bin(&packed, "abc", 3);
	pack_bin(&packed, "a\nb\t\xc3\xa9", 6);
	pack_bin(&packed, "a\0", 2);
	pack_bin(&packed, "\xff", 1);
	pack_map(&packed, 1);
	pack_bin(&packed, "k", 1);
	pack_bin(&packed, "\x1b[", 2);
	EXPECT_STR(shown(JSON_BIN_TEXT),
		   "[\"abc\",\"a\\nb\\t\xc3\xa9\",{\"$bin\":\"YQA=\"},"
		   "{\"$bin\":\"/w==\"},{\"k\":{\"$bin\":\"G1s=\"}}]");
	EXPECT_STR(shown(0),
		   "[{\"$bin\":\"YWJj\"},{\"$bin\":\"YQpiCcOp\"},"
		   "{\"$bin\":\"YQA=\"},{\"$bin\":\"/w==\"},"
		   "{\"$map\":[[{\"$bin\":\"aw==\"},{\"$bin\":\"G1s=\"}]]}]");
	/* As text, the two keys are one. */
	pack_w_reset(&packed);
	pack_map(&packed, 2);
	pack_bin(&packed, "k", 1);
	pack_nil(&packed);
	pack_cstr(&packed, "k");
	pack_nil(&packed);
	EXPECT_HAS(shown(JSON_BIN_TEXT), "$map");
	stop();
}

TEST(pretty_text_is_the_same_value)
{
	static const char s[] = "{\"a\":[1,[],{}],\"b\":{\"c\":\"d\"},"
				"\"m\":{\"$map\":[[1,2],[3,[4]]]},"
				"\"x\":{\"$bin\":\"YQ==\"}}";
	struct detail why;
	char *pretty;

	start();
	EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
	EXPECT_STR(shown(JSON_PRETTY), "{\n"
				       "  \"a\": [\n"
				       "    1,\n"
				       "    [],\n"
				       "    {}\n"
				       "  ],\n"
				       "  \"b\": {\n"
				       "    \"c\": \"d\"\n"
				       "  },\n"
				       "  \"m\": {\"$map\": [\n"
				       "    [1,2],\n"
				       "    [3,[\n"
				       "      4\n"
				       "    ]]\n"
				       "  ]},\n"
				       "  \"x\": {\"$bin\": \"YQ==\"}\n"
				       "}");
	pretty = strdup(shown(JSON_PRETTY));
	EXPECT_NOT_NULL(pretty);
	EXPECT_RC(read_text(pretty, strlen(pretty), &why), RC_OK);
	free(pretty);
	EXPECT_STR(shown(0), s);
	stop();
}

TEST(depth_is_bounded_on_both_ways)
{
	char s[2 * (PACK_DEPTH_MAX + 1) + 1];
	struct detail why;
	uint8_t deep[PACK_DEPTH_MAX + 1];
	static char very[200000];
	size_t d;

	start();
	for (d = 1; d <= PACK_DEPTH_MAX + 1; d++) {
		memset(s, '[', d);
		memset(s + d, ']', d);
		runner_context("%zu", d);
		EXPECT_RC(read_text(s, 2 * d, &why),
			  d <= PACK_DEPTH_MAX ? RC_OK : RC_INVALID);
		memset(deep, 0x91, sizeof(deep));
		deep[d - 1] = 0x90;
		pack_w_reset(&text);
		EXPECT_RC(
			pack_to_json((struct pack_bytes){ deep, d }, &text, 0),
			d <= PACK_DEPTH_MAX ? RC_OK : RC_INVALID);
	}
	EXPECT_STR(why.text, "the JSON has more than 32 levels or 262144 "
			     "values");
	memset(very, '[', sizeof(very));
	EXPECT_RC(read_text(very, sizeof(very), &why), RC_INVALID);
	EXPECT_HAS(why.text, "nested too deep");
	stop();
}

TEST(what_is_as_deep_as_may_be_comes_back)
{
	/* A map with the key 1 in each, an ext in the last: the text has three
	 * levels for each, and two. */
	static const uint8_t pair[] = { 0x81, 0x01 };
	static const uint8_t ext[] = { 0xc7, 0x01, 0x05, 'x' };
	uint8_t deep[2 * PACK_DEPTH_MAX + 4];
	struct detail why;
	const char *s;
	size_t d;

	start();
	for (d = 0; d < PACK_DEPTH_MAX; d++)
		memcpy(deep + 2 * d, pair, sizeof(pair));
	memcpy(deep + 2 * d, ext, sizeof(ext));
	pack_raw(&packed, deep, sizeof(deep));
	s = shown(0);
	EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
	EXPECT_UINT(packed.n, sizeof(deep) - 1);
	EXPECT_MEM(packed.p, deep, sizeof(deep) - 4);
	EXPECT_MEM(packed.p + sizeof(deep) - 4, "\xd4\x05x", 3);
	stop();
}

TEST(values_are_counted)
{
	static char s[2 * PACK_ELEMENTS_MAX + 10];
	struct detail why;
	size_t i, n;

	start();
	for (n = PACK_ELEMENTS_MAX - 1; n <= PACK_ELEMENTS_MAX; n++) {
		s[0] = '[';
		for (i = 0; i < n; i++) {
			s[1 + 2 * i] = '1';
			s[2 + 2 * i] = ',';
		}
		s[2 * n] = ']';
		EXPECT_RC(read_text(s, 2 * n + 1, &why),
			  n < PACK_ELEMENTS_MAX ? RC_OK : RC_INVALID);
	}
	EXPECT_HAS(why.text, "more than 32 levels or 262144 values");
	stop();
}

TEST(a_big_object_with_a_key_twice_is_found_in_time)
{
	const size_t pairs = 100000;
	struct detail why;
	struct pack_w s;
	char pair[32];
	size_t i;

	start();
	pack_w_init(&s, BYTES);
	pack_raw(&s, "{", 1);
	for (i = 0; i < pairs; i++) {
		int n = snprintf(pair, sizeof(pair), "\"k%zu\":0,", i);

		pack_raw(&s, pair, (size_t)n);
	}
	pack_raw(&s, "\"k5\":1}", 7);
	EXPECT_RC(read_text((const char *)s.p, s.n, &why), RC_INVALID);
	EXPECT_HAS(why.text, "a key twice");
	s.p[s.n - 4] = 'x'; /* "kx" */
	s.p[s.n - 3] = '"';
	memcpy(s.p + s.n - 7, "\"kx\":1}", 7);
	EXPECT_RC(read_text((const char *)s.p, s.n, &why), RC_OK);
	pack_w_release(&s);
	stop();
}

TEST(a_number_of_many_digits)
{
	char s[1000];
	struct detail why;

	start();
	memset(s, '1', sizeof(s));
	s[0] = '0';
	s[1] = '.';
	EXPECT_RC(read_text(s, 400, &why), RC_OK);
	EXPECT_RC(read_text(s, 401, &why), RC_INVALID);
	EXPECT_HAS(why.text, "too many digits");
	stop();
}

TEST(what_is_no_messagepack_is_not_shown)
{
	static const struct {
		const char *p;
		size_t n;
	} rows[] = {
		{ "", 0 },
		{ "\xc1", 1 },
		{ "\x91", 1 },
		{ "\x01\x01", 2 },
		{ "\xdd\xff\xff\xff\xff", 5 },
		{ "\x81\x01", 2 },
		{ "\xa5"
		  "abc",
		  4 },
	};
	size_t i;

	start();
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct pack_bytes b = { (const uint8_t *)rows[i].p, rows[i].n };

		runner_context("row %zu", i);
		EXPECT_RC(pack_to_json(b, &text, 0), RC_INVALID);
		EXPECT_UINT(text.n, 0);
	}
	stop();
}

TEST(output_has_the_bound_of_its_writer)
{
	static const char s[] = "{\"a\":[1,\"two\",{\"$bin\":\"YWJj\"},"
				"{\"$map\":[[1,2]]}],\"b\":[]}";
	struct pack_w small;
	struct detail why;
	size_t max, want;

	start();
	EXPECT_RC(read_text(s, strlen(s), &why), RC_OK);
	want = packed.n;
	/* A little more is in it before it shrinks. */
	for (max = 0; max < want; max++) {
		runner_context("%zu of %zu", max, want);
		pack_w_init(&small, max);
		EXPECT_RC(json_to_pack(s, strlen(s), &small, NULL),
			  RC_OVERLOADED);
		EXPECT_UINT(small.n, 0);
		pack_w_release(&small);
	}
	for (max = 0; max < strlen(s); max++) {
		pack_w_init(&small, max);
		runner_context("%zu of %zu", max, strlen(s));
		EXPECT_RC(
			pack_to_json((struct pack_bytes){ packed.p, packed.n },
				     &small, 0),
			RC_OVERLOADED);
		pack_w_release(&small);
	}
	stop();
}

TEST(each_allocation_may_fail)
{
	static const char s[] = "{\"a\":[1,\"two\",{\"$bin\":\"YWJj\"},"
				"{\"$map\":[[1,2]]}],\"b\":{}}";
	struct pack_w out, back;
	bool fired;
	enum rc rc;
	uint64_t n;

	for (n = 1;; n++) {
		runner_context("allocation %d", (int)n);
		pack_w_init(&out, BYTES);
		pack_w_init(&back, BYTES);
		fault_alloc(n);
		rc = json_to_pack(s, strlen(s), &out, NULL);
		if (rc == RC_OK)
			rc = pack_to_json((struct pack_bytes){ out.p, out.n },
					  &back, 0);
		fired = fault_off();
		EXPECT_RC(rc, fired ? RC_NOMEM : RC_OK);
		pack_w_release(&out);
		pack_w_release(&back);
		if (!fired)
			break;
	}
	EXPECT_TRUE(n > 5);
}

TEST(what_was_in_the_writer_stays)
{
	struct detail why = { 0 };

	start();
	pack_u64(&packed, 7);
	EXPECT_RC(json_to_pack("[1,{\"a\":2}]", 11, &packed, &why), RC_OK);
	EXPECT_UINT(packed.n, 7);
	EXPECT_MEM(packed.p,
		   "\x07\x92\x01\x81\xa1"
		   "a\x02",
		   7);
	EXPECT_RC(json_to_pack("[1,{\"a\":2", 9, &packed, &why), RC_INVALID);
	EXPECT_UINT(packed.n, 7);
	stop();
}

TEST(a_locale_changes_nothing)
{
	/* Where it is not installed, this says nothing. */
	char *old = strdup(setlocale(LC_ALL, NULL));

	EXPECT_NOT_NULL(old);
	start();
	if (setlocale(LC_ALL, "de_DE.UTF-8") != NULL)
		expect_same("[1.5,-2.25]", "[1.5,-2.25]");
	(void)setlocale(LC_ALL, old);
	free(old);
	stop();
}
