#include "node/base/mutant.h"

#include "node/base/check.h"

#ifdef HOLDFAST_TESTING

enum mutant mutant_now;

static const struct {
	const char *name;
	const char *text;
} rows[MUTANTS] = {
	[MUTANT_none] = { "none", "nothing is left out" },
#define M(name, text) [MUTANT_##name] = { #name, text },
#include "node/base/mutant.tbl"
#undef M
};

enum mutant mutant_parse(const char *name)
{
	unsigned i;

	for (i = 0; i < MUTANTS; i++)
		if (strcmp(rows[i].name, name) == 0)
			return (enum mutant)i;
	return MUTANTS;
}

const char *mutant_name(enum mutant m)
{
	PRE(m < MUTANTS);
	return rows[m].name;
}

const char *mutant_text(enum mutant m)
{
	PRE(m < MUTANTS);
	return rows[m].text;
}

#endif
