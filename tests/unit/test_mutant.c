#include "node/base/mutant.h"

#include "client/proto/rc.h"
#include "tests/lib/runner.h"

TEST(none_is_selected_at_start)
{
	EXPECT_INT(mutant_now, MUTANT_none);
	EXPECT_FALSE(MUTANT(log_no_sync));
	EXPECT_STR(mutant_name(MUTANT_none), "none");
}

TEST(each_has_a_name_that_parses_and_a_text)
{
	unsigned i;

	for (i = 0; i < MUTANTS; i++) {
		enum mutant m = (enum mutant)i;

		EXPECT_INT(mutant_parse(mutant_name(m)), m);
		EXPECT_TRUE(strlen(mutant_text(m)) > 10);
	}
	EXPECT_INT(mutant_parse("no_such_rule"), MUTANTS);
	EXPECT_INT(mutant_parse(""), MUTANTS);
	EXPECT_ABORT(mutant_name(MUTANTS));
}

TEST(one_is_switched_on)
{
	mutant_now = mutant_parse("ballot_no_sync");
	EXPECT_TRUE(MUTANT(ballot_no_sync));
	EXPECT_FALSE(MUTANT(log_no_sync));
	mutant_now = MUTANT_none;
}
