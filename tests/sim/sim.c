/*
 * sim - the cluster in the seeded world: many seeds, every crash point, every
 * mutant. tests/sim/README.md says how to read what it prints.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/personality.h>
#include <time.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "tests/sim/farm.h"
#include "tests/sim/ledger.h"
#include "tests/sim/mutants.h"
#include "tests/sim/points.h"
#include "tests/sim/sweep.h"

#define SECONDS_OF_A_TRIAL 60u
#define TWICE_EVERY        100u
#define JOBS_MAX           16u
#define REGRESSIONS_MAX    1000u

struct options {
	uint64_t from;
	uint64_t to;
	unsigned seconds;
	unsigned jobs;
	bool range;
	bool sweep;
	bool json;
	bool loud;
	bool quiet;
	bool mutants;
	bool points;
	unsigned stride;
	enum focus focus;
	const char *regressions;
	const char *mutant;
	const char *only;
	uint64_t within; /* Seeds, for each mutant. */
};

/* No jobs: as many as there are cores. */
static struct options opt = { .stride = 1, .within = 500 };

static struct ledger ledger;
/* As ./check counts. */
static uint64_t passed;
static uint64_t failed;

static uint64_t real_ms(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000u + (uint64_t)ts.tv_nsec / 1000000u;
}

/* ---------------------------------------------------------------- seeds */

static void seed_body(const struct task *t, struct finding *out)
{
	struct swarm swarm;
	struct trial *r;

	mutant_now = (enum mutant)t->mutant;
	swarm_draw(&swarm, t->seed, (enum focus)t->focus);
	r = trial_new(t->seed, &swarm);
	r->loud = opt.loud;
	trial_all(r);
	out->broken = trial_is_broken(r);
	out->breach = r->breach;
	out->tally = r->tally;
	if (out->broken)
		trial_dump(r);
	trial_free(r);
}

static void say_outcome(const char *what, uint64_t seed,
			const struct finding *o, const char *report)
{
	const struct tally *t = &o->tally;

	if (!o->broken && !opt.quiet)
		printf("%s %" PRIu64 " ok: %" PRIu64 " ms, %" PRIu64
		       " events, %" PRIu64 " calls (%" PRIu64 " ok, %" PRIu64
		       " failed, %" PRIu64 " refused, %" PRIu64
		       " unknown), %" PRIu64 " boots, %" PRIu64
		       " leaderships, %" PRIu64 " installs, healed in %" PRIu64
		       " ms, hash %016" PRIx64 "\n",
		       what, seed, t->virtual_ms, t->events, t->calls,
		       t->by_end[CALL_DONE], t->by_end[CALL_FAILED],
		       t->by_end[CALL_REFUSED], t->by_end[CALL_UNKNOWN],
		       t->boots, t->elections, t->installs, t->heal_ms,
		       t->hash);
	if (o->broken)
		printf("FAIL %s %" PRIu64 " breaks %s: %s\n%s\n", what, seed,
		       o->breach.invariant, o->breach.text, report);
	if (!o->broken && opt.loud)
		printf("%s", report);
	(void)fflush(stdout);
}

static uint64_t first_hash;

static void seed_done(struct task *t, const struct finding *o,
		      const char *report)
{
	ledger.seeds++;
	ledger_add(&ledger, &o->tally);
	if (o->broken)
		ledger_broken(&ledger, t->seed);
	say_outcome("seed", t->seed, o, report);
}

static void twice_done(struct task *t, const struct finding *o,
		       const char *report)
{
	(void)report;
	if (t->arg == NULL) {
		first_hash = o->tally.hash;
		return;
	}
	ledger.replayed++;
	if (o->tally.hash == first_hash)
		return;
	ledger_broken(&ledger, t->seed);
	printf("FAIL seed %" PRIu64 " breaks replay: hash %016" PRIx64
	       " and then %016" PRIx64 "\n",
	       t->seed, first_hash, o->tally.hash);
}

static void run_twice(uint64_t seed)
{
	struct task t = { .seed = seed,
			  .body = seed_body,
			  .done = twice_done,
			  .focus = opt.focus,
			  .mutant = mutant_now };

	farm_wait();
	farm_start(&t);
	farm_wait();
	t.arg = &t;
	farm_start(&t);
	farm_wait();
}

static void run_seed(uint64_t seed)
{
	const struct task t = { .seed = seed,
				.body = seed_body,
				.done = seed_done,
				.focus = opt.focus,
				.mutant = mutant_now };

	farm_start(&t);
	if (seed % TWICE_EVERY == 0)
		run_twice(seed);
}

static void batch_over(const char *what, uint64_t violations)
{
	if (ledger.violations == violations)
		passed++;
	else
		failed++;
	if (!opt.quiet || ledger.violations != violations)
		printf("%s: %s\n", what,
		       ledger.violations == violations ? "ok" : "FAILED");
}

/* All lines first: a child that ends sets the place in the file back, for its
 * parent too (POSIX on exit() and streams that are read). */
static size_t regressions_read(uint64_t *seeds)
{
	FILE *f = fopen(opt.regressions, "r");
	char line[256];
	size_t n = 0;

	if (f == NULL) {
		perror(opt.regressions);
		exit(2);
	}
	while (fgets(line, sizeof(line), f) != NULL) {
		if (line[0] < '0' || line[0] > '9')
			continue;
		CHECK(n < REGRESSIONS_MAX);
		seeds[n++] = strtoull(line, NULL, 10);
	}
	(void)fclose(f);
	return n;
}

static void run_regressions(void)
{
	uint64_t violations = ledger.violations;
	uint64_t seeds[REGRESSIONS_MAX];
	size_t n;
	size_t i;

	if (opt.regressions == NULL)
		return;
	n = regressions_read(seeds);
	for (i = 0; i < n; i++)
		run_seed(seeds[i]);
	farm_wait();
	batch_over("known seeds", violations);
}

static void run_range(void)
{
	uint64_t violations = ledger.violations;
	uint64_t seed;

	for (seed = opt.from; seed <= opt.to; seed++)
		run_seed(seed);
	farm_wait();
	batch_over("seeds", violations);
}

static void run_seconds(void)
{
	uint64_t violations = ledger.violations;
	uint64_t end = real_ms() + opt.seconds * 1000u;
	/* Fresh: nobody ran these before. */
	uint64_t seed = (uint64_t)time(NULL) * 100000u;

	while (real_ms() < end)
		run_seed(seed++);
	farm_wait();
	batch_over("fresh seeds", violations);
}

/* --------------------------------------------------------------- the program
 */

static _Noreturn void usage(int status)
{
	(void)fprintf(
		status == 0 ? stdout : stderr,
		"usage: sim [OPTION]...\n"
		"  --seed N             one seed\n"
		"  --seeds A..B         all of them\n"
		"  --seconds N          fresh seeds for so long\n"
		"  --sweep              a crash at every operation of the "
		"disk\n"
		"  --within N           with --mutants: in N seeds each, not "
		"500\n"
		"  --only NAME          with --sweep and --mutants: this one\n"
		"  --points             a node of three ends at each "
		"operation and message\n"
		"  --stride N           with --points: at each n-th\n"
		"  --mutant NAME        with seeds: this rule is left out\n"
		"  --mutants            each of them, until it is caught\n"
		"  --focus NAME         with seeds: trials of one kind\n"
		"  --regressions FILE   known seeds, first\n"
		"  --jobs N             processes at once (one a core)\n"
		"  --json               the ledger as JSON, last\n"
		"  --quiet              only what is wrong\n"
		"  --trace              every event, as it happens\n");
	exit(status);
}

static const char *value_of(int argc, char **argv, int *i)
{
	if (*i + 1 >= argc)
		usage(2);
	return argv[++*i];
}

static enum focus focus_of(const char *name)
{
	unsigned f;

	for (f = 0; f < FOCUSES; f++)
		if (strcmp(name, focus_names[f]) == 0)
			return (enum focus)f;
	usage(2);
}

static void parse_range(const char *s)
{
	char *end;

	opt.from = strtoull(s, &end, 10);
	if (strncmp(end, "..", 2) != 0)
		usage(2);
	opt.to = strtoull(end + 2, NULL, 10);
	opt.range = true;
}

static void parse(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++) {
		const char *a = argv[i];

		if (strcmp(a, "--seed") == 0) {
			opt.from = strtoull(value_of(argc, argv, &i), NULL, 10);
			opt.to = opt.from;
			opt.range = true;
		} else if (strcmp(a, "--seeds") == 0) {
			parse_range(value_of(argc, argv, &i));
		} else if (strcmp(a, "--seconds") == 0) {
			opt.seconds = (unsigned)strtoul(
				value_of(argc, argv, &i), NULL, 10);
		} else if (strcmp(a, "--jobs") == 0) {
			opt.jobs = (unsigned)strtoul(value_of(argc, argv, &i),
						     NULL, 10);
		} else if (strcmp(a, "--regressions") == 0) {
			opt.regressions = value_of(argc, argv, &i);
		} else if (strcmp(a, "--mutant") == 0) {
			opt.mutant = value_of(argc, argv, &i);
		} else if (strcmp(a, "--within") == 0) {
			opt.within =
				strtoull(value_of(argc, argv, &i), NULL, 10);
		} else if (strcmp(a, "--only") == 0) {
			opt.only = value_of(argc, argv, &i);
		} else if (strcmp(a, "--focus") == 0) {
			opt.focus = focus_of(value_of(argc, argv, &i));
		} else if (strcmp(a, "--points") == 0) {
			opt.points = true;
		} else if (strcmp(a, "--stride") == 0) {
			opt.stride = (unsigned)strtoul(value_of(argc, argv, &i),
						       NULL, 10);
		} else if (strcmp(a, "--mutants") == 0) {
			opt.mutants = true;
		} else if (strcmp(a, "--sweep") == 0) {
			opt.sweep = true;
		} else if (strcmp(a, "--json") == 0) {
			opt.json = true;
		} else if (strcmp(a, "--quiet") == 0) {
			opt.quiet = true;
		} else if (strcmp(a, "--trace") == 0) {
			opt.loud = true;
		} else {
			usage(strcmp(a, "--help") == 0 ? 0 : 2);
		}
	}
	if (opt.jobs > JOBS_MAX || opt.stride < 1)
		usage(2);
	if (opt.mutant != NULL) {
		mutant_now = mutant_parse(opt.mutant);
		if (mutant_now == MUTANTS)
			usage(2);
	}
}

static unsigned cores(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	if (n < 1)
		return 1;
	return n < (long)JOBS_MAX ? (unsigned)n : JOBS_MAX;
}

/* Addresses are part of the world: with them always the same, so is a trial. */
static void fix_addresses(char **argv)
{
	int now = personality(0xffffffff);

	if (now < 0 || (now & ADDR_NO_RANDOMIZE) != 0)
		return;
	if (personality((unsigned long)now | ADDR_NO_RANDOMIZE) >= 0)
		(void)execv("/proc/self/exe", argv);
}

int main(int argc, char **argv)
{
	fix_addresses(argv);
	parse(argc, argv);
	if (opt.jobs == 0)
		opt.jobs = cores();
	farm_init(opt.jobs, SECONDS_OF_A_TRIAL);
	run_regressions();
	if (opt.range)
		run_range();
	if (opt.seconds > 0)
		run_seconds();
	if (ledger.seeds > 0)
		ledger_say(&ledger);
	if (opt.seconds > 0 && opt.focus == FOCUS_NONE) {
		if (ledger_floors(&ledger, opt.seconds))
			passed++;
		else
			failed++;
	}
	if (opt.sweep)
		sweep_all(opt.only, opt.quiet, &passed, &failed);
	if (opt.points)
		points_all(opt.jobs, opt.stride, opt.quiet, &passed, &failed);
	if (opt.mutants)
		mutants_all(opt.only, opt.within, &passed, &failed);
	printf("# sim: %" PRIu64 " passed, %" PRIu64 " failed\n", passed,
	       failed);
	if (opt.json)
		ledger_json(&ledger);
	return failed > 0 ? 1 : 0;
}
