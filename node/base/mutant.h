/*
 * mutant - faults that can be switched on, in testing builds only.
 *
 * Every rule whose breach loses, doubles or leaks data has a mutant: one place
 * where `if (MUTANT(name))` leaves the rule out. The simulator selects one at
 * run time and must catch it. In a production build MUTANT() is the constant 0
 * and nothing of it remains.
 */
#ifndef HOLDFAST_BASE_MUTANT_H
#define HOLDFAST_BASE_MUTANT_H

enum mutant {
	MUTANT_none,
#define M(name, text) MUTANT_##name,
#include "node/base/mutant.tbl"
#undef M
	MUTANTS,
};

#ifdef HOLDFAST_TESTING
extern enum mutant mutant_now;
#define MUTANT(name) (mutant_now == MUTANT_##name)

/* The mutant called `name` in mutant.tbl ("none": the rules as they are), or
 * MUTANTS when there is none. */
enum mutant mutant_parse(const char *name);
const char *mutant_name(enum mutant m);
/* What it leaves out. */
const char *mutant_text(enum mutant m);
#else
#define MUTANT(name) 0
#endif

#endif
