#include "client/proto/rc.h"

#include <limits.h>

#include "tests/lib/runner.h"

static const struct {
	enum rc rc;
	int number;
	const char *name;
	int http;
	enum outcome outcome;
	const char *text;
} codes[] = {
#define RC(name, number, http, outcome, text) \
	{ RC_##name, number, #name, http, OUTCOME_##outcome, text },
#include "client/proto/rc.tbl"
#undef RC
};

#define CODES (sizeof(codes) / sizeof(codes[0]))

TEST(every_row_says_what_the_table_says)
{
	size_t i;

	for (i = 0; i < CODES; i++) {
		runner_context("%s", codes[i].name);
		EXPECT_INT(codes[i].rc, codes[i].number);
		EXPECT_STR(rc_name(codes[i].rc), codes[i].name);
		EXPECT_STR(rc_text(codes[i].rc), codes[i].text);
		EXPECT_INT(rc_http(codes[i].rc), codes[i].http);
		EXPECT_INT(rc_outcome(codes[i].rc), codes[i].outcome);
		EXPECT_INT(rc_is_wire(codes[i].rc), codes[i].number < 64);
	}
}

TEST(numbers_and_names_are_unique)
{
	size_t i, k;

	for (i = 0; i < CODES; i++) {
		for (k = 0; k < i; k++) {
			runner_context("%s, %s", codes[i].name, codes[k].name);
			EXPECT_FALSE(codes[i].number == codes[k].number);
			EXPECT_FALSE(strcmp(codes[i].name, codes[k].name) == 0);
		}
	}
}

TEST(the_codes_of_the_protocol_keep_their_numbers)
{
	/* Clients were compiled with these. */
	EXPECT_INT(RC_OK, 0);
	EXPECT_INT(RC_INVALID, 1);
	EXPECT_INT(RC_UNAUTHENTICATED, 2);
	EXPECT_INT(RC_DENIED, 3);
	EXPECT_INT(RC_NOT_FOUND, 4);
	EXPECT_INT(RC_CONFLICT, 5);
	EXPECT_INT(RC_CYCLE, 6);
	EXPECT_INT(RC_CANCELLED, 7);
	EXPECT_INT(RC_LIMITED, 8);
	EXPECT_INT(RC_INTERNAL, 9);
	EXPECT_INT(RC_UNSUPPORTED, 10);
	EXPECT_INT(RC_OVERLOADED, 11);
	EXPECT_INT(RC_NOT_OWNER, 12);
	EXPECT_INT(RC_NO_QUORUM, 13);
	EXPECT_INT(RC_SEALED, 14);
	EXPECT_INT(RC_DEADLINE, 15);
	EXPECT_INT(RC_NO_SPACE, 16);
	EXPECT_INT(RC_UNKNOWN_OUTCOME, 17);
}

TEST(rows_are_fit_for_the_wire)
{
	size_t i;

	for (i = 0; i < CODES; i++) {
		runner_context("%s", codes[i].name);
		EXPECT_TRUE(codes[i].http >= 200 && codes[i].http < 600);
		EXPECT_TRUE(strlen(codes[i].text) > 0);
		EXPECT_TRUE(strlen(codes[i].text) < DETAIL_BYTES_MAX);
		EXPECT_INT(codes[i].outcome == OUTCOME_DONE,
			   codes[i].rc == RC_OK);
	}
}

TEST(a_number_without_a_row_is_internal)
{
	static const int numbers[] = { -1, 18, 63, 75, 1000, INT_MAX, INT_MIN };
	size_t i;

	for (i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		enum rc rc = (enum rc)numbers[i];

		runner_context("%d", numbers[i]);
		EXPECT_STR(rc_name(rc), "INTERNAL");
		EXPECT_INT(rc_http(rc), 500);
		EXPECT_INT(rc_outcome(rc), OUTCOME_UNKNOWN);
		EXPECT_FALSE(rc_is_wire(rc));
	}
}

TEST(parse_takes_what_a_client_may_see_and_nothing_else)
{
	enum rc rc;
	size_t i;

	for (i = 0; i < CODES; i++) {
		runner_context("%s", codes[i].name);
		rc = RC_FOREIGN;
		EXPECT_RC(rc_parse(codes[i].name, strlen(codes[i].name), &rc),
			  codes[i].number < 64 ? RC_OK : RC_NOT_FOUND);
		EXPECT_RC(rc, codes[i].number < 64 ? codes[i].rc : RC_FOREIGN);
	}
	EXPECT_RC(rc_parse("", 0, &rc), RC_NOT_FOUND);
	EXPECT_RC(rc_parse("ok", 2, &rc), RC_NOT_FOUND);
	EXPECT_RC(rc_parse("OK ", 3, &rc), RC_NOT_FOUND);
	EXPECT_RC(rc_parse("INVALIDATE", 10, &rc), RC_NOT_FOUND);
	EXPECT_RC(rc_parse("INVALIDATE", 7, &rc), RC_OK);
}

TEST(outcomes_have_names)
{
	EXPECT_STR(outcome_name(OUTCOME_DONE), "done");
	EXPECT_STR(outcome_name(OUTCOME_REFUSED), "refused");
	EXPECT_STR(outcome_name(OUTCOME_UNKNOWN), "unknown");
	EXPECT_STR(outcome_name((enum outcome)77), "unknown");
}

TEST(the_first_detail_wins)
{
	struct detail why = { 0 };

	EXPECT_RC(detail_set(NULL, RC_IO, "f", "x"), RC_IO);
	EXPECT_RC(detail_set(&why, RC_INVALID, "limit", "%d is too %s", 7,
			     "small"),
		  RC_INVALID);
	EXPECT_STR(why.field, "limit");
	EXPECT_STR(why.text, "7 is too small");
	EXPECT_RC(detail_set(&why, RC_IO, "other", "later"), RC_IO);
	EXPECT_STR(why.field, "limit");
	EXPECT_STR(why.text, "7 is too small");
}

TEST(a_detail_without_field)
{
	struct detail why = { 0 };

	detail_set(&why, RC_IO, NULL, "no room");
	EXPECT_STR(why.field, "");
	EXPECT_STR(why.text, "no room");
}

TEST(a_long_detail_is_cut_between_characters)
{
	/* Each pad moves the cut by a byte through characters of 2, 3 and 4
	 * bytes. */
	static const char *const characters[] = { "\xc3\xa9", "\xe2\x82\xac",
						  "\xf0\x9f\x98\x80" };
	char text[4 * DETAIL_BYTES_MAX];
	size_t c, i, pad, width;

	for (c = 0; c < 3; c++) {
		width = strlen(characters[c]);
		for (pad = 0; pad < 4; pad++) {
			struct detail why = { 0 };

			memset(text, 'x', pad);
			for (i = pad; i + width < sizeof(text); i += width)
				memcpy(text + i, characters[c], width);
			text[i] = '\0';
			detail_set(&why, RC_IO, text, "%s", text);
			runner_context("width %zu, pad %zu", width, pad);
			EXPECT_UINT((strlen(why.text) - pad) % width, 0);
			EXPECT_UINT((strlen(why.field) - pad) % width, 0);
			EXPECT_TRUE(strlen(why.text) > DETAIL_BYTES_MAX - 5);
			EXPECT_TRUE(strlen(why.field) > sizeof(why.field) - 5);
		}
	}
}

TEST(a_detail_says_where_its_field_lies)
{
	struct detail why = { 0 };

	detail_set(&why, RC_INVALID, "key", "`key` is missing");
	detail_within(&why, "ops[%u]", 3U);
	EXPECT_STR(why.field, "ops[3].key");
	EXPECT_STR(why.text, "`key` is missing");
	detail_within(NULL, "ops[%u]", 3U);

	memset(&why, 0, sizeof(why));
	detail_set(&why, RC_INVALID, NULL, "no map");
	detail_within(&why, "ops[%u]", 0U);
	EXPECT_STR(why.field, "ops[0]");

	memset(why.field, 'a', sizeof(why.field) - 1);
	detail_within(&why, "outer");
	EXPECT_UINT(strlen(why.field), sizeof(why.field) - 1);
	EXPECT_TRUE(memcmp(why.field, "outer.aaa", 9) == 0);
}
