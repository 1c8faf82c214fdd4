#include "tests/sim/ledger.h"

#include <inttypes.h>
#include <stdio.h>

#define FLOOR_SECONDS 600u
#define FLOOR_HOURS   10.0
#define FLOOR_CHECKED 2000000.0
#define FLOOR_CRASHES 5000.0
#define FLOOR_INSTALL 1000.0
#define FLOOR_FAULT   300.0
#define FLOOR_DECIDED 990.0 /* Of 1,000. */
/* A shorter run must have done each fault at least so often. */
#define FLOOR_LEAST 1.0

static void add(uint64_t *sum, const uint64_t *part, size_t n)
{
	while (n-- > 0)
		*sum++ += *part++;
}

static uint64_t larger(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

void ledger_add(struct ledger *l, const struct tally *t)
{
	struct tally *sum = &l->sum;
	uint64_t segments = larger(sum->segments, t->segments);
	uint64_t heal_max_ms = larger(sum->heal_max_ms, t->heal_max_ms);

	_Static_assert(sizeof(*t) % sizeof(uint64_t) == 0,
		       "a tally is made of counts");
	add((uint64_t *)sum, (const uint64_t *)t,
	    sizeof(*t) / sizeof(uint64_t));
	sum->segments = segments;
	sum->heal_max_ms = heal_max_ms;
}

void ledger_broken(struct ledger *l, uint64_t seed)
{
	if (l->violations < LEDGER_BROKEN_MAX)
		l->broken[l->violations] = seed;
	l->violations++;
}

static uint64_t crashes(const struct tally *t)
{
	return t->crashes[CRASH_KILL] + t->crashes[CRASH_POWER] +
	       t->crashes[CRASH_SYNC];
}

static double hours(const struct tally *t)
{
	return (double)t->virtual_ms / 3600000.0;
}

void ledger_say(const struct ledger *l)
{
	const struct tally *t = &l->sum;
	unsigned i;
	unsigned k;

	printf("ledger: %" PRIu64 " seeds, %.2f virtual hours, %" PRIu64
	       " events, %" PRIu64 " messages, %" PRIu64 " calls\n"
	       "  checked: %" PRIu64 " operations in histories, %" PRIu64
	       " commits and %" PRIu64 " values on disks, %" PRIu64
	       " states compared, %" PRIu64 " seeds run twice\n"
	       "  histories: %" PRIu64 ", %" PRIu64 " of them undecided\n"
	       "  calls: %" PRIu64 " ok, %" PRIu64 " failed, %" PRIu64
	       " refused, %" PRIu64 " unknown, %" PRIu64 " cycles\n"
	       "  crashes: %" PRIu64 " (%" PRIu64 " kill, %" PRIu64
	       " power cut, %" PRIu64 " failed write or sync), %" PRIu64
	       " at an operation; %" PRIu64 " closed, %" PRIu64 " boots\n",
	       l->seeds, hours(t), t->events, t->messages, t->calls, t->checked,
	       t->samples, t->truths, t->equal, l->replayed, t->histories,
	       t->undecided, t->by_end[CALL_DONE], t->by_end[CALL_FAILED],
	       t->by_end[CALL_REFUSED], t->by_end[CALL_UNKNOWN], t->cycles,
	       crashes(t), t->crashes[CRASH_KILL], t->crashes[CRASH_POWER],
	       t->crashes[CRASH_SYNC], t->crash_ops, t->crashes[CRASH_CLOSE],
	       t->boots);
	printf("  owners: %" PRIu64 " leaderships, %" PRIu64
	       " installs of %" PRIu64 " exports, %" PRIu64
	       " disks refused, %" PRIu64 " rebuilt\n"
	       "  healed: %" PRIu64 " times, mean %" PRIu64
	       " ms, at most %" PRIu64 " ms\n  faults:",
	       t->elections, t->installs, t->exports, t->refused, t->rebuilds,
	       t->heals, t->heals > 0 ? t->heal_ms / t->heals : 0,
	       t->heal_max_ms);
	for (i = 0; i < FAULTS; i++)
		printf("%s %s %" PRIu64, i > 0 ? "," : "",
		       fault_name((enum fault)i), t->faults[i]);
	printf("\n  crash points:");
	for (i = 0; i < POINT_FILES; i++)
		for (k = 0; k < POINT_MOMENTS; k++)
			printf("%s %s/%s %" PRIu64, i + k > 0 ? "," : "",
			       point_files[i], point_moments[k],
			       t->points[i][k]);
	printf("\n  violations: %" PRIu64 "\n", l->violations);
}

void ledger_json(const struct ledger *l)
{
	const struct tally *t = &l->sum;
	unsigned i;
	unsigned k;

	printf("{\"seeds\":%" PRIu64
	       ",\"virtual_hours\":%.4f,\"events\":%" PRIu64
	       ",\"messages\":%" PRIu64 ",\"calls\":%" PRIu64
	       ",\"checked\":%" PRIu64 ",\"histories\":%" PRIu64
	       ",\"undecided\":%" PRIu64 ",\"commits_on_disks\":%" PRIu64
	       ",\"states_compared\":%" PRIu64 ",\"replayed\":%" PRIu64
	       ",\"boots\":%" PRIu64 ",\"crashes\":%" PRIu64
	       ",\"kills\":%" PRIu64 ",\"power_cuts\":%" PRIu64
	       ",\"failed_syncs\":%" PRIu64 ",\"crashes_at_operation\":%" PRIu64
	       ",\"leaderships\":%" PRIu64 ",\"installs\":%" PRIu64
	       ",\"exports\":%" PRIu64 ",\"disks_refused\":%" PRIu64
	       ",\"rebuilt\":%" PRIu64 ",\"heals\":%" PRIu64
	       ",\"heal_ms_max\":%" PRIu64 ",\"faults\":{",
	       l->seeds, hours(t), t->events, t->messages, t->calls, t->checked,
	       t->histories, t->undecided, t->samples, t->equal, l->replayed,
	       t->boots, crashes(t), t->crashes[CRASH_KILL],
	       t->crashes[CRASH_POWER], t->crashes[CRASH_SYNC], t->crash_ops,
	       t->elections, t->installs, t->exports, t->refused, t->rebuilds,
	       t->heals, t->heal_max_ms);
	for (i = 0; i < FAULTS; i++)
		printf("%s\"%s\":%" PRIu64, i > 0 ? "," : "",
		       fault_name((enum fault)i), t->faults[i]);
	printf("},\"crash_points\":{");
	for (i = 0; i < POINT_FILES; i++)
		for (k = 0; k < POINT_MOMENTS; k++)
			printf("%s\"%s/%s\":%" PRIu64, i + k > 0 ? "," : "",
			       point_files[i], point_moments[k],
			       t->points[i][k]);
	printf("},\"floors_missed\":%" PRIu64 ",\"violations\":%" PRIu64
	       ",\"broken_seeds\":[",
	       l->missed, l->violations);
	for (i = 0; i < l->violations && i < LEDGER_BROKEN_MAX; i++)
		printf("%s%" PRIu64, i > 0 ? "," : "", l->broken[i]);
	printf("]}\n");
}

static bool above(struct ledger *l, const char *what, double is, double least)
{
	if (is >= least)
		return true;
	l->missed++;
	printf("FAIL floor: %s %.2f, at least %.2f\n", what, is, least);
	return false;
}

bool ledger_floors(struct ledger *l, unsigned seconds)
{
	double share = (double)seconds / FLOOR_SECONDS;
	const struct tally *t = &l->sum;
	double fault = FLOOR_FAULT * share;
	char name[64];
	bool good = true;
	unsigned i;
	unsigned k;

	good &= above(l, "virtual hours", hours(t), FLOOR_HOURS * share);
	good &= above(l, "checked", (double)t->checked, FLOOR_CHECKED * share);
	good &= above(l, "crashes", (double)crashes(t), FLOOR_CRASHES * share);
	good &= above(l, "installs", (double)t->installs,
		      FLOOR_INSTALL * share);
	good &= above(l, "decided histories, of 1000",
		      1000.0 - 1000.0 * (double)t->undecided /
				       ((double)t->histories + 1),
		      FLOOR_DECIDED);
	if (fault < FLOOR_LEAST)
		fault = FLOOR_LEAST;
	for (i = 0; i < FAULTS; i++)
		good &= above(l, fault_name((enum fault)i),
			      (double)t->faults[i], fault);
	/* Each fired; that takes a while. */
	for (i = 0; share >= 0.2 && i < POINT_FILES; i++)
		for (k = 0; k < POINT_MOMENTS; k++) {
			(void)snprintf(name, sizeof(name), "%s/%s",
				       point_files[i], point_moments[k]);
			good &= above(l, name, (double)t->points[i][k],
				      FLOOR_LEAST);
		}
	return good;
}
