#include "tests/sim/mutants.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define SEEDS_MAX 500u

/* Where one is looked for: in any trial if it does not stand here. */
static const struct {
	enum mutant m;
	enum focus focus;
} hunts[] = {
	{ MUTANT_log_no_dir_sync, FOCUS_BULK },
	{ MUTANT_log_no_sector_check, FOCUS_DAMAGE },
	{ MUTANT_log_recycle_early, FOCUS_BULK },
	{ MUTANT_page_unchecked, FOCUS_DAMAGE },
	{ MUTANT_wal_frame_unchecked, FOCUS_DAMAGE },
	{ MUTANT_idem_expires_early, FOCUS_KEYS },
	{ MUTANT_idem_any_args, FOCUS_KEYS },
	{ MUTANT_idem_separate_unit, FOCUS_KEYS },
	{ MUTANT_idem_late, FOCUS_KEYS },
	{ MUTANT_idem_unreplicated, FOCUS_KEYS },
	{ MUTANT_idem_unstored, FOCUS_KEYS },
	{ MUTANT_expiry_without_tick, FOCUS_QUIET },
	{ MUTANT_call_with_open_writes, FOCUS_CHAINS },
	{ MUTANT_cycle_allowed, FOCUS_CHAINS },
	{ MUTANT_wait_die_off, FOCUS_CHAINS },
	{ MUTANT_read_without_round, FOCUS_OWNERS },
	{ MUTANT_round_any_answer, FOCUS_OWNERS },
	{ MUTANT_round_counted_early, FOCUS_OWNERS },
	{ MUTANT_lost_released, FOCUS_OWNERS },
	{ MUTANT_instance_kept, FOCUS_OWNERS },
	{ MUTANT_incarnation_unchecked, FOCUS_LOST },
	{ MUTANT_boot_unchecked, FOCUS_LOST },
	{ MUTANT_reset_votes, FOCUS_LOST },
	{ MUTANT_permit_not_booked, FOCUS_LIMITS },
	{ MUTANT_vote_not_persisted, FOCUS_VOTES },
	{ MUTANT_ballot_no_sync, FOCUS_VOTES },
};

/* What no trial shows, why, and the test that does (mutants.sh runs it, with
 * the mutant and without). */
static const struct {
	enum mutant m;
	const char *test;
	const char *why;
} directed[] = {
	{ MUTANT_log_trust_unsynced, "unit/test_log",
	  "the first entry after a start syncs what was read" },
	{ MUTANT_log_no_chain_check, "unit/test_recovery",
	  "it takes a disk that brings old batches back" },
	{ MUTANT_held_unbounded,
	  "sim/test_cases_calls og6_what_is_held_in_a_stall_is_bounded",
	  "no trial holds 256 MB of answers" },
	{ MUTANT_peer_any_name, "unit/test_peer", "TLS stays out of trials" },
	{ MUTANT_client_any_name, "unit/test_rpc_tls",
	  "TLS stays out of trials" },
	{ MUTANT_expired_stays, "unit/test_peer", "TLS stays out of trials" },
	{ MUTANT_silence_is_life, "unit/test_peer",
	  "sockets stay out of trials" },
	{ MUTANT_heartbeats_apart,
	  "unit/test_step writes_do_not_wait_for_heartbeats_with_one_dead",
	  "writes become slow, not wrong" },
	{ MUTANT_guard_b2, "unit/test_guard b2_a_change_comes_first",
	  "it takes a change of membership" },
	{ MUTANT_guard_b6, "unit/test_guard b6_no_change_before_an_own_entry",
	  "it takes a change of membership" },
	{ MUTANT_guard_b7, "unit/test_guard b7_a_standby_votes",
	  "it takes a change of membership" },
	{ MUTANT_guard_b9, "unit/test_guard b9_the_timer_does_not_spin",
	  "it takes a change of membership" },
	{ MUTANT_guard_b17, "unit/test_guard b17_one_server_differs",
	  "it takes a change of membership" },
	{ MUTANT_guard_b18, "unit/test_guard b18_a_change_is_alone",
	  "it takes a change of membership" },
};

/* One search. */
struct hunt {
	uint64_t seeds;  /* Tried. */
	uint64_t first;  /* The least that broke; 0: none yet. */
	uint64_t panics; /* Ended by a CHECK. */
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

/* A CHECK that fails may stand in the mutated function: that proves nothing. */
static bool is_catch(const struct finding *f)
{
	return f->broken && strcmp(f->breach.invariant, "no-panic") != 0;
}

static void hunt_done(struct task *t, const struct finding *f,
		      const char *report)
{
	struct hunt *h = t->arg;

	h->seeds++;
	h->panics += f->broken && !is_catch(f);
	if (t->mutant == (int)MUTANT_none ? !f->broken : !is_catch(f))
		return;
	if (h->first != 0 && h->first < t->seed)
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

static bool hunt_mutant(struct hunt *h, enum mutant m, enum focus focus,
			uint64_t within)
{
	hunt(h, (int)m, focus, within);
	if (h->first == 0)
		printf("%-8s %-22s survives %" PRIu64 " seeds (%s), %" PRIu64
		       " of them ended by a CHECK\n",
		       within < SEEDS_MAX ? "open" : "FAIL", mutant_name(m),
		       h->seeds, focus_names[focus], h->panics);
	else
		printf("dies     %-22s of %-12s in %" PRIu64
		       " seeds, at %" PRIu64 " (%s)\n",
		       mutant_name(m), h->breach.invariant, h->seeds, h->first,
		       focus_names[focus]);
	(void)fflush(stdout);
	return h->first != 0;
}

static enum focus focus_of(enum mutant m)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(hunts); i++)
		if (hunts[i].m == m)
			return hunts[i].focus;
	return FOCUS_NONE;
}

static bool is_directed(enum mutant m)
{
	size_t i;

	for (i = 0; i < ARRAY_LEN(directed); i++) {
		if (directed[i].m != m)
			continue;
		printf("directed %-22s %s: %s\n", mutant_name(m),
		       directed[i].test, directed[i].why);
		return true;
	}
	return false;
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

void mutants_all(const char *only, uint64_t within, uint64_t *passed,
		 uint64_t *failed)
{
	static struct hunt h;
	uint64_t seeds[FOCUSES] = { 0 };
	enum focus focus;
	bool good;
	int m;

	for (m = MUTANT_none + 1; m < (int)MUTANTS; m++) {
		if ((only != NULL &&
		     strcmp(only, mutant_name((enum mutant)m)) != 0) ||
		    is_directed((enum mutant)m))
			continue;
		focus = focus_of((enum mutant)m);
		good = hunt_mutant(&h, (enum mutant)m, focus, within);
		*passed += good;
		*failed += !good && within >= SEEDS_MAX;
		if (h.seeds > seeds[focus])
			seeds[focus] = h.seeds;
	}
	for (focus = FOCUS_NONE; focus < FOCUSES; focus++) {
		if (seeds[focus] == 0)
			continue;
		good = honest_passes(&h, focus, seeds[focus]);
		*passed += good;
		*failed += !good;
	}
}
