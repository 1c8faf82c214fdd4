#include "tests/sim/mutants.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define SEEDS_MAX 500u

/* Where one is looked for; in any trial if it does not stand here. */
static const struct {
	enum mutant m;
	enum focus focus;
	/* Why no trial shows it, and the tests that do. */
	const char *elsewhere;
} hunts[] = {
	{ MUTANT_log_trust_unsynced, FOCUS_NONE,
	  "a lone voter's first entry syncs what it read: test_log" },
	{ MUTANT_log_no_chain_check, FOCUS_NONE,
	  "it takes a disk that brings old batches back: test_recovery" },
	{ MUTANT_held_unbounded, FOCUS_NONE,
	  "no trial holds 256 MB of answers: test_cases_calls, test_call" },
	{ MUTANT_peer_any_name, FOCUS_NONE,
	  "TLS stays out of trials: test_peer" },
	{ MUTANT_client_any_name, FOCUS_NONE,
	  "TLS stays out of trials: test_rpc_tls" },
	{ MUTANT_expired_stays, FOCUS_NONE,
	  "TLS stays out of trials: test_peer, test_rpc_tls" },
	{ MUTANT_silence_is_life, FOCUS_NONE,
	  "sockets stay out of trials: test_peer" },
	{ MUTANT_log_no_dir_sync, FOCUS_BULK, NULL },
	{ MUTANT_log_no_sector_check, FOCUS_DAMAGE, NULL },
	{ MUTANT_log_recycle_early, FOCUS_BULK, NULL },
	{ MUTANT_page_unchecked, FOCUS_DAMAGE, NULL },
	{ MUTANT_wal_frame_unchecked, FOCUS_DAMAGE, NULL },
	{ MUTANT_idem_expires_early, FOCUS_KEYS, NULL },
	{ MUTANT_idem_any_args, FOCUS_KEYS, NULL },
	{ MUTANT_idem_separate_unit, FOCUS_KEYS, NULL },
	{ MUTANT_expiry_without_tick, FOCUS_QUIET, NULL },
	{ MUTANT_call_with_open_writes, FOCUS_CHAINS, NULL },
	{ MUTANT_cycle_allowed, FOCUS_CHAINS, NULL },
	{ MUTANT_wait_die_off, FOCUS_CHAINS, NULL },
};

/* One search. */
struct hunt {
	uint64_t seeds; /* Tried. */
	uint64_t first; /* The least that broke; 0: none yet. */
	struct breach breach;
	char report[16384];
};

static void hunt_body(const struct task *t, struct finding *out)
{
	struct swarm swarm;
	struct trial *r;

	mutant_now = (enum mutant)t->mutant;
	swarm_draw(&swarm, t->seed, (enum focus)t->focus);
	r = trial_new(t->seed, &swarm);
	trial_all(r);
	out->broken = trial_is_broken(r);
	out->breach = r->breach;
	out->tally = r->tally;
	trial_free(r);
}

static void hunt_done(struct task *t, const struct finding *f,
		      const char *report)
{
	struct hunt *h = t->arg;

	h->seeds++;
	if (!f->broken || (h->first != 0 && h->first < t->seed))
		return;
	h->first = t->seed;
	h->breach = f->breach;
	(void)snprintf(h->report, sizeof(h->report), "%s", report);
}

/* Seeds 1.. until one breaks, or `seeds_max` of them. */
static void hunt(struct hunt *h, int mutant, enum focus focus,
		 uint64_t seeds_max)
{
	struct task t = { .mutant = mutant,
			  .focus = focus,
			  .body = hunt_body,
			  .done = hunt_done,
			  .arg = h };

	memset(h, 0, sizeof(*h));
	for (t.seed = 1; t.seed <= seeds_max && h->first == 0; t.seed++)
		farm_start(&t);
	farm_wait();
}

static bool hunt_mutant(struct hunt *h, enum mutant m, enum focus focus)
{
	hunt(h, (int)m, focus, SEEDS_MAX);
	if (h->first == 0)
		printf("FAIL mutant %-22s survives %" PRIu64 " seeds (%s)\n",
		       mutant_name(m), h->seeds, focus_names[focus]);
	else
		printf("dies %-22s of %-20s seed %" PRIu64 " (%s)\n",
		       mutant_name(m), h->breach.invariant, h->first,
		       focus_names[focus]);
	(void)fflush(stdout);
	return h->first != 0;
}

static size_t hunt_of(enum mutant m)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(hunts); i++)
		if (hunts[i].m == m)
			break;
	return i;
}

static bool honest_passes(struct hunt *h, enum focus focus, uint64_t seeds)
{
	hunt(h, MUTANT_none, focus, seeds);
	if (h->first == 0)
		printf("ok   no mutant passes %" PRIu64 " seeds (%s)\n",
		       h->seeds, focus_names[focus]);
	else
		printf("FAIL without a mutant seed %" PRIu64
		       " (%s) breaks %s: %s\n%s\n",
		       h->first, focus_names[focus], h->breach.invariant,
		       h->breach.text, h->report);
	(void)fflush(stdout);
	return h->first == 0;
}

void mutants_all(const char *only, bool quiet, uint64_t *passed,
		 uint64_t *failed)
{
	static struct hunt h;
	uint64_t seeds[FOCUSES] = { 0 };
	enum focus focus;
	bool good;
	size_t at;
	int m;

	for (m = MUTANT_none + 1; m < (int)MUTANTS; m++) {
		if (only != NULL &&
		    strcmp(only, mutant_name((enum mutant)m)) != 0)
			continue;
		at = hunt_of((enum mutant)m);
		focus = at < ARRAY_LEN(hunts) ? hunts[at].focus : FOCUS_NONE;
		if (at < ARRAY_LEN(hunts) && hunts[at].elsewhere != NULL) {
			if (!quiet)
				printf("     %-22s not here: %s\n",
				       mutant_name((enum mutant)m),
				       hunts[at].elsewhere);
			continue;
		}
		good = hunt_mutant(&h, (enum mutant)m, focus);
		*passed += good;
		*failed += !good;
		if (h.first > seeds[focus])
			seeds[focus] = h.first;
	}
	for (focus = FOCUS_NONE; focus < FOCUSES; focus++) {
		if (seeds[focus] == 0)
			continue;
		good = honest_passes(&h, focus, seeds[focus]);
		*passed += good;
		*failed += !good;
	}
}
