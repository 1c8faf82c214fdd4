#include "node/base/logline.h"

#include <math.h>

#include "node/base/check.h"
#include "tests/lib/runner.h"

static char last[65536];
static unsigned lines;
static uint64_t clock_ms;

static void keep(void *arg, const char *line, size_t n)
{
	EXPECT_TRUE(arg == &lines);
	EXPECT_TRUE(n < sizeof(last));
	memcpy(last, line, n);
	last[n] = '\0';
	lines++;
}

static uint64_t now_ms(void *arg)
{
	EXPECT_TRUE(arg == &lines);
	return clock_ms;
}

static void setup(enum log_level level, uint64_t ms)
{
	clock_ms = ms;
	lines = 0;
	last[0] = '\0';
	log_setup(level, keep, now_ms, &lines);
}

TEST(a_line_has_time_level_event_and_fields)
{
	bool open = true; /* `true` itself is an int in C11. */

	setup(LOG_INFO_LEVEL, 1709210096789);
	LOG_WARN("call_redirected", F("object", "kv/a"), F("owner", 7u),
		 F("delta", -3), F("open", open), F("load", 0.5));
	EXPECT_STR(last, "{\"time\":\"2024-02-29T12:34:56.789Z\","
			 "\"level\":\"warn\",\"event\":\"call_redirected\","
			 "\"object\":\"kv/a\",\"owner\":7,\"delta\":-3,"
			 "\"open\":true,\"load\":0.5}\n");
}

static void expect_time(uint64_t ms, const char *want)
{
	char part[64];

	setup(LOG_INFO_LEVEL, ms);
	LOG_INFO("x", F("a", 1));
	(void)snprintf(part, sizeof(part), "\"time\":\"%s\"", want);
	EXPECT_HAS(last, part);
}

TEST(dates)
{
	expect_time(0, "1970-01-01T00:00:00.000Z");
	expect_time(951782399999, "2000-02-28T23:59:59.999Z");
	expect_time(951782400000, "2000-02-29T00:00:00.000Z");
	expect_time(1735689599999, "2024-12-31T23:59:59.999Z");
	expect_time(1735689600000, "2025-01-01T00:00:00.000Z");
	expect_time(4107542400000, "2100-03-01T00:00:00.000Z");
}

TEST(levels_below_the_chosen_one_are_not_even_built)
{
	unsigned built = 0;

	setup(LOG_WARN_LEVEL, 0);
	LOG_INFO("quiet", F("n", ++built));
	LOG_DEBUG("quiet", F("n", ++built));
	EXPECT_UINT(built, 0);
	EXPECT_UINT(lines, 0);
	LOG_ERROR("loud", F("n", ++built));
	EXPECT_UINT(lines, 1);
}

TEST(strings_are_escaped)
{
	setup(LOG_INFO_LEVEL, 0);
	LOG_INFO("x", F("s", "a\"b\\c\n\t\x7f\xc3\xa4"));
	EXPECT_HAS(last, "\"s\":\"a\\\"b\\\\c\\u000a\\u0009\\u007f\xc3\xa4\"}");
	/* Not UTF-8: a stray tail, an overlong form, a surrogate, a head with
	 * nothing behind it, above U+10FFFF. */
	LOG_INFO("x",
		 F("s", "\x80|\xc0\xaf|\xed\xa0\x80|\xf4\x90\x80\x80|\xe2"));
	EXPECT_HAS(last, "\"\\ufffd|\\ufffd\\ufffd|\\ufffd\\ufffd\\ufffd|"
			 "\\ufffd\\ufffd\\ufffd\\ufffd|\\ufffd\"}");
	LOG_INFO("x", F("s", "\xf0\x9f\x98\x80\xef\xbf\xbf"));
	EXPECT_HAS(last, "\"\xf0\x9f\x98\x80\xef\xbf\xbf\"}");
}

TEST(bytes_and_nothing)
{
	static const uint8_t zero[3] = { 'a', 0, 'b' };
	const char *none = NULL;

	setup(LOG_INFO_LEVEL, 0);
	LOG_INFO("x", F("b", ((struct pack_bytes){ zero, 3 })), F("n", none),
		 F("e", ((struct pack_bytes){ NULL, 0 })), F("nan", NAN),
		 F("inf", -INFINITY));
	EXPECT_HAS(last, "\"b\":\"a\\u0000b\",\"n\":null,\"e\":null,"
			 "\"nan\":null,\"inf\":null}");
}

TEST(extreme_numbers)
{
	setup(LOG_INFO_LEVEL, 0);
	LOG_INFO("x", F("i", INT64_MIN), F("u", UINT64_MAX), F("d", -1.5e300));
	EXPECT_HAS(last, "\"i\":-9223372036854775808,"
			 "\"u\":18446744073709551615,\"d\":-1.5e+300}");
}

TEST(long_strings_are_cut_and_the_worst_line_fits)
{
	char text[2000];
	struct log_field fields[LOG_FIELDS_MAX];
	size_t i;

	setup(LOG_INFO_LEVEL, 0);
	memset(text, 'y', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	LOG_INFO("x", F("s", text));
	EXPECT_HAS(last, "yyy...\"}");
	EXPECT_TRUE(strlen(last) < LOG_FIELD_BYTES_MAX + 100);
	/* The cut does not go through a character. */
	memcpy(text + LOG_FIELD_BYTES_MAX - 1, "\xc3\xa4", 2);
	LOG_INFO("x", F("s", text));
	EXPECT_HAS(last, "yyy...\"}");
	memset(text, 1, sizeof(text) - 1);
	for (i = 0; i < LOG_FIELDS_MAX; i++)
		fields[i] = log_f_str("a_key_that_is_as_long_as_a_key_may_ever_"
				      "be_which_is_64_bytes_xxx",
				      text);
	log_write(LOG_INFO_LEVEL, "x", fields, LOG_FIELDS_MAX);
	EXPECT_TRUE(strlen(last) > LOG_FIELDS_MAX * LOG_FIELD_BYTES_MAX * 6u);
	EXPECT_ABORT(
		log_write(LOG_INFO_LEVEL, "x", fields, LOG_FIELDS_MAX + 1));
}

TEST(what_a_key_calls_secret_is_redacted)
{
	static const char *const keys[] = { "authorization", "key_value",
					    "client_secret", "accessToken",
					    "PASSWORD",      "set-cookie" };
	struct log_field field;
	size_t i;

	setup(LOG_INFO_LEVEL, 0);
	for (i = 0; i < ARRAY_LEN(keys); i++) {
		field = log_f_str(keys[i], "hunter2");
		log_write(LOG_INFO_LEVEL, "x", &field, 1);
		EXPECT_HAS(last, "[redacted]");
		EXPECT_NULL(strstr(last, "hunter2"));
		field = log_f_bytes(
			keys[i],
			(struct pack_bytes){ (const uint8_t *)"hunter2", 7 });
		log_write(LOG_INFO_LEVEL, "x", &field, 1);
		EXPECT_NULL(strstr(last, "hunter2"));
	}
	LOG_INFO("x", F("key_id", "k7"));
	EXPECT_HAS(last, "\"key_id\":\"k7\"");
}

static void log_and_panic(void)
{
	unsigned i;

	panic_hook(log_ring_dump, NULL);
	for (i = 0; i < LOG_RING + 5; i++)
		LOG_INFO("line", F("n", i));
	CHECK(false);
}

TEST(the_last_lines_come_with_a_panic)
{
	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	EXPECT_ABORT_SAYS(log_and_panic(),
			  "{\"time\":\"1970-01-01T00:00:00.000Z\","
			  "\"level\":\"info\",\"event\":\"line\","
			  "\"n\":5}\n");
	EXPECT_ABORT_SAYS(log_and_panic(), "\"n\":68}\n");
}

TEST(a_line_alone_goes_nowhere_and_is_cut)
{
	const struct log_field field = log_f_str("why", "x");
	char line[200];
	size_t n;

	setup(LOG_ERROR_LEVEL, 0);
	n = logline_format(line, sizeof(line), LOG_INFO_LEVEL, "e", &field, 1);
	EXPECT_TRUE(n < sizeof(line));
	line[n] = '\0';
	EXPECT_HAS(line, "\"event\":\"e\",\"why\":\"x\"}\n");
	EXPECT_UINT(lines, 0);
	EXPECT_UINT(logline_format(line, 10, LOG_INFO_LEVEL, "e", &field, 1),
		    10);
	EXPECT_MEM(line, "{\"time\":\"1", 10);
}

TEST(levels_have_names)
{
	enum log_level level = LOG_INFO_LEVEL;

	EXPECT_RC(log_level_parse("debug", &level), RC_OK);
	EXPECT_INT(level, LOG_DEBUG_LEVEL);
	EXPECT_RC(log_level_parse("error", &level), RC_OK);
	EXPECT_INT(level, LOG_ERROR_LEVEL);
	EXPECT_RC(log_level_parse("loud", &level), RC_NOT_FOUND);
}

static void *log_many(void *arg)
{
	unsigned i;

	for (i = 0; i < 20000; i++)
		LOG_INFO("thread", F("n", i), F("who", (char *)arg));
	return NULL;
}

TEST(two_threads_may_log)
{
	pthread_t a;
	pthread_t b;
	char a_name[] = "a";
	char b_name[] = "b";

	log_setup(LOG_INFO_LEVEL, NULL, NULL, NULL);
	EXPECT_INT(pthread_create(&a, NULL, log_many, a_name), 0);
	EXPECT_INT(pthread_create(&b, NULL, log_many, b_name), 0);
	EXPECT_INT(pthread_join(a, NULL), 0);
	EXPECT_INT(pthread_join(b, NULL), 0);
}
