#include "tests/sim/mutants.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/mutant.h"

#define BY_SEEDS     20u /* At least so many die of random seeds. */
#define SEEDS_TESTED 60u
#define NAME_BYTES   200u

/*
 * Where each is looked for, and a test that dies of it whatever the seeds do.
 * Trials come first, drawn towards `focus`, or as --seeds draws them. The test
 * is for those that survive them, and for those that no trial can show: they
 * have the reason instead of trials.
 */
struct row {
	enum focus focus;
	const char *test; /* In tests/: program and name. NULL: none. */
	const char *why;
	/* The test ends by a CHECK of this file, which states what must hold;
	 * the mutated function is in another. */
	const char *check;
};

#define ROW(name, focus, test) \
	[MUTANT_##name] = { FOCUS_##focus, test, NULL, NULL }
#define ALONE(name, test, why) [MUTANT_##name] = { FOCUS_NONE, test, why, NULL }
#define CHECKED(name, test, why, check) \
	[MUTANT_##name] = { FOCUS_NONE, test, why, check }

static const struct row rows[MUTANTS] = {
	ROW(log_no_sync, NONE,
	    "sim/test_cases_kept "
	    "du1_a_power_cut_of_all_at_the_acknowledgement"),
	ROW(log_ack_before_sync, NONE,
	    "sim/test_cases_kept "
	    "du1_a_power_cut_of_all_at_the_acknowledgement"),
	ROW(log_no_dir_sync, BULK,
	    "unit/test_log a_crash_anywhere_loses_nothing_acknowledged"),
	ALONE(log_trust_unsynced,
	      "unit/test_log a_crash_anywhere_loses_nothing_acknowledged",
	      "the first entry after a start syncs what was read"),
	ROW(log_no_sector_check, DAMAGE,
	    "unit/test_log a_crash_anywhere_loses_nothing_acknowledged"),
	ALONE(log_no_search,
	      "unit/test_recovery "
	      "a_lost_header_of_a_recycled_segment_hides_nothing",
	      "the disk must lose a header behind damage at the log's end"),
	ALONE(log_no_chain_check,
	      "unit/test_recovery "
	      "batch_of_another_history_is_found_by_the_chain",
	      "it takes a disk that brings old batches back"),
	ROW(log_recycle_early, BULK,
	    "unit/test_log a_crash_anywhere_loses_nothing_acknowledged"),
	ROW(ballot_no_sync, VOTES,
	    "unit/test_ballot votes_survive_a_power_cut"),
	ROW(evict_unstored, NONE,
	    "unit/test_object "
	    "an_idle_object_is_evicted_when_its_last_effect_is_stored"),
	ROW(load_skips_window, NONE,
	    "unit/test_storage loads_show_what_is_applied"),
	ROW(execute_without_tail, NONE,
	    "sim/test_cases_calls "
	    "rd3_a_new_owner_reads_after_it_has_committed_its_log"),
	ROW(errors_not_gated, NONE,
	    "unit/test_object an_error_waits_like_an_answer"),
	ROW(reply_before_commit, NONE,
	    "unit/test_object "
	    "a_write_is_answered_when_it_is_committed_and_not_before"),
	ROW(call_with_open_writes, CHAINS,
	    "unit/test_object "
	    "a_nested_call_leaves_after_the_writes_before_it_are_committed"),
	ROW(idem_separate_unit, KEYS,
	    "unit/test_idem record_and_effects_are_one_unit"),
	ROW(idem_any_args, KEYS,
	    "unit/test_idem other_arguments_are_refused_and_nothing_happens"),
	ROW(idem_expires_early, KEYS,
	    "unit/test_idem a_record_expires_by_the_log_and_not_by_the_clock"),
	ROW(read_without_round, STALE,
	    "unit/test_object a_read_needs_a_proof_and_nothing_else"),
	ROW(apply_undurable, NONE,
	    "sim/test_cases_kept du6_nothing_is_applied_beyond_the_own_log"),
	ROW(checkpoint_unsynced, NONE,
	    "unit/test_storage power_cut_at_every_change"),
	ROW(page_unchecked, DAMAGE, "unit/test_db_vfs flips_in_the_main_file"),
	ROW(wal_frame_unchecked, DAMAGE,
	    "unit/test_db_vfs a_damaged_frame_is_found_when_it_is_read"),
	ROW(tombstone_dropped, NONE,
	    "unit/test_object "
	    "destroy_leaves_a_tombstone_and_the_revision_goes_on"),
	ROW(expiry_without_tick, QUIET,
	    "unit/test_object "
	    "an_expiry_between_f_and_now_is_shown_after_a_tick"),
	ROW(cycle_allowed, CHAINS,
	    "unit/test_object "
	    "a_call_that_would_wait_for_its_own_chain_is_a_cycle"),
	ROW(wait_die_off, CHAINS,
	    "unit/test_object "
	    "the_younger_of_two_chains_dies_and_the_older_waits"),
	ROW(stage_unverified, NONE,
	    "unit/test_storage_copies a_damaged_piece_is_refused"),
	ROW(export_unpinned, NONE,
	    "unit/test_storage_copies a_copy_is_of_one_moment"),
	ROW(hashes_not_compared, NONE,
	    "sim/test_scrub a_replica_that_differs_is_rebuilt"),
	ROW(scrub_swallows, NONE,
	    "sim/test_scrub what_comes_behind_a_scrub_is_kept"),
	ROW(copy_not_compared, NONE,
	    "sim/test_scrub a_copy_that_another_voter_contradicts"),
	ROW(copy_at_any_index, NONE,
	    "sim/test_scrub a_copy_is_what_another_voter_has"),
	ROW(snapshot_unscrubbed, NONE,
	    "unit/test_storage_copies no_copy_of_rows_that_do_not_fit"),
	ROW(forward_twice, NONE,
	    "unit/test_forward a_lost_link_is_an_unknown_outcome"),
	ROW(forwarded_again, NONE,
	    "unit/test_route what_was_forwarded_is_not_forwarded_again"),
	ROW(incarnation_unchecked, LOST,
	    "unit/test_members another_disk_is_refused"),
	ROW(boot_unchecked, LOST, "unit/test_members a_copied_disk_is_refused"),
	ROW(epoch_stale, NONE,
	    "unit/test_transport a_frame_of_an_older_connection_is_dropped"),
	ROW(round_any_answer, OWNERS,
	    "unit/test_round an_older_answer_confirms_no_later_question"),
	ROW(round_other_term, STALE,
	    "unit/test_shard a_voter_of_a_later_term_confirms_no_older_one"),
	ALONE(round_later_term, "unit/test_round only_the_same_term_counts",
	      "the bridge drops answers to an older term's questions as well"),
	ROW(round_counted_early, OWNERS,
	    "unit/test_round a_question_after_the_round_began_is_not_in_it"),
	ROW(directory_version_old, RIGHTS,
	    "unit/test_directory nothing_leaves_under_an_older_version"),
	ROW(directory_copy_ageless, NONE,
	    "unit/test_directory a_copy_of_a_copy_is_as_old_as_that"),
	ROW(stamp_own_clock, NONE,
	    "unit/test_stamps a_clock_that_is_a_day_off_does_not_matter"),
	ROW(vote_not_persisted, VOTES,
	    "sim/test_replication so3_a_vote_is_durable_before_it_leaves"),
	ROW(old_term_commit, NONE,
	    "unit/test_step so1_an_entry_of_an_old_term_is_not_committed"),
	ROW(rebuild_needs_its_vote, NONE,
	    "sim/test_replication a_damaged_log_is_not_counted"),
	ROW(absent_hears_nobody, LOST,
	    "sim/test_replication a_lost_ballot_starts_in_a_new_term"),
	ROW(term_untold, DAMAGE,
	    "sim/test_replication a_damaged_log_of_a_later_term"),
	ROW(install_unbased, NONE,
	    "sim/test_replication a_crash_at_every_step_of_an_install"),
	ROW(guard_b1, NONE,
	    "unit/test_guard b1_a_refusal_acknowledges_nothing"),
	ALONE(guard_b2, "unit/test_guard b2_a_change_comes_first",
	      "it takes a change of membership"),
	ROW(guard_b3, NONE,
	    "unit/test_step b3_a_stale_rejection_does_not_starve_a_follower"),
	ROW(guess_told, NONE, "unit/test_step a_guess_is_told_to_nobody"),
	ROW(guard_b4, NONE, "unit/test_step b4_entries_from_below_the_state"),
	ROW(guard_b5, NONE,
	    "unit/test_guard b5_a_refused_pre_vote_tells_the_term"),
	ALONE(guard_b6, "unit/test_guard b6_no_change_before_an_own_entry",
	      "it takes a change of membership"),
	ALONE(guard_b7, "unit/test_guard b7_a_standby_votes",
	      "it takes a change of membership"),
	ROW(guard_b8, NONE, "unit/test_guard b8_a_dead_leader_is_forgotten"),
	ALONE(guard_b9, "unit/test_guard b9_the_timer_does_not_spin",
	      "it takes a change of membership"),
	ROW(guard_b10, NONE, "unit/test_guard b10_who_is_alone"),
	ROW(guard_b11, NONE,
	    "unit/test_guard b11_only_news_that_is_in_the_log"),
	ROW(guard_b12, NONE,
	    "unit/test_step a_follower_far_behind_gets_a_snapshot"),
	ROW(guard_b13, NONE, "unit/test_guard b13_two_leaders_in_a_term"),
	ROW(guard_b14, NONE, "unit/test_guard b14_only_candidates_count_votes"),
	ROW(guard_b15, NONE,
	    "unit/test_guard b15_the_hint_is_what_surely_matches"),
	ROW(guard_b16, NONE, "unit/test_guard b16_one_install_at_a_time"),
	ALONE(guard_b17, "unit/test_guard b17_one_server_differs",
	      "it takes a change of membership"),
	ALONE(guard_b18, "unit/test_guard b18_a_change_is_alone",
	      "it takes a change of membership"),
	ROW(guard_b19, NONE, "unit/test_guard b19_old_connections_are_dropped"),
	ROW(guard_b20, NONE,
	    "unit/test_guard b20_every_other_error_ends_the_process"),
	ROW(guard_b21, NONE, "unit/test_step what_cannot_be_is_dropped"),
	ALONE(peer_any_name, "unit/test_peer another_node_at_the_address",
	      "TLS stays out of trials"),
	ALONE(client_any_name, "unit/test_rpc_tls names_that_are_no_client",
	      "TLS stays out of trials"),
	ALONE(expired_stays, "unit/test_peer a_certificate_that_ends",
	      "TLS stays out of trials"),
	ROW(permit_not_booked, LIMITS,
	    "unit/test_rate_limiter a_new_owner_books_what_was_lent"),
	ROW(reset_votes, LOST,
	    "unit/test_ballot "
	    "a_lost_disk_has_no_good_ballot_until_it_is_written"),
	ROW(no_pre_vote, NONE,
	    "sim/test_cases_network nw1_a_partial_partition_moves_no_term"),
	ROW(quorum_unwatched, NONE,
	    "sim/test_cases_network nw3_a_deaf_leader_resigns"),
	ROW(disk_unwatched, NONE,
	    "sim/test_replication a_leader_whose_disk_hangs_hands_over"),
	ROW(inflight_unbounded, NONE,
	    "sim/test_cases_replication "
	    "sl2_a_slow_follower_takes_no_more_than_it_can"),
	ROW(ahead_unbounded, NONE,
	    "sim/test_cases_replication "
	    "lg9_a_leader_does_not_run_away_from_its_disk"),
	ROW(trim_unpinned, NONE,
	    "sim/test_cases_replication sn7_a_stream_while_the_log_is_trimmed"),
	ROW(stream_resumed, NONE,
	    "sim/test_replication a_crash_at_every_step_of_an_install"),
	ROW(undigested_skipped, NONE,
	    "sim/test_cases_replication rs2_an_entry_that_nobody_digests"),
	ROW(no_space_is_fatal, NONE,
	    "sim/test_replication a_full_disk_stops_nobody"),
	ROW(reserve_unwatched, NONE,
	    "unit/test_core a_full_disk_stops_growth_and_not_deletes"),
	ROW(failure_forgiven, NONE,
	    "unit/test_log "
	    "a_failed_write_or_sync_ends_the_node_and_loses_nothing"),
	ROW(durable_by_index, NONE,
	    "unit/test_step late_writes_of_overwritten_entries"),
	ROW(overwritten_stays, NONE,
	    "unit/test_log overwritten_entries_stay_away"),
	CHECKED(unit_any_size,
		"unit/test_core small_segments_have_small_entries",
		"no trial has a unit as large as a segment",
		"raft-glue/shard.c"),
	ROW(term_jump_taken, NONE,
	    "unit/test_step a_term_too_far_ahead_is_refused"),
	ROW(any_cluster, NONE,
	    "unit/test_transport another_cluster_is_refused"),
	ROW(time_by_wall, NONE,
	    "sim/test_cases_network ck1_wall_clocks_that_jump"),
	ALONE(silence_is_life, "unit/test_peer nothing_comes_for_the_dead_time",
	      "sockets stay out of trials"),
	ROW(gather_overtaken, NONE,
	    "unit/test_bridge a_stronger_effect_takes_gathered_ones_along"),
	ROW(gather_dropped, NONE,
	    "unit/test_bridge a_close_brings_gathered_effects_along"),
	ROW(join_old_head, OWNERS,
	    "unit/test_join units_of_one_object_are_one"),
	ROW(join_over_flags, NONE,
	    "unit/test_join what_hides_rows_stays_behind_them"),
	ALONE(second_segment_uncounted,
	      "unit/test_core room_for_a_second_segment_is_not_for_growth",
	      "a log has its second segment before a trial's disk is full"),
	ALONE(full_asks_once,
	      "unit/test_bridge a_full_log_is_freed_by_whom_it_refuses",
	      "what the log asked for must come to nothing, once in a long "
	      "run"),
	ROW(gate_own_only, NONE,
	    "unit/test_object a_read_of_what_is_not_committed_waits_for_it"),
	ROW(memory_refused, OWNERS,
	    "unit/test_object "
	    "what_was_done_in_memory_is_not_refused_when_the_shard_is_lost"),
	ROW(lost_released, OWNERS,
	    "unit/test_object "
	    "a_hundred_held_answers_are_unknown_when_the_shard_is_lost"),
	ROW(proof_kept, STALE,
	    "unit/test_gate a_new_leadership_begins_with_nothing"),
	ROW(instance_kept, OWNERS,
	    "sim/test_cases_calls "
	    "so4_an_owner_that_thaws_says_nothing_of_its_term"),
	ROW(second_instance, NONE,
	    "unit/test_object "
	    "calls_to_a_cold_object_share_one_load_and_keep_their_order"),
	ALONE(held_unbounded,
	      "sim/test_cases_calls og6_what_is_held_in_a_stall_is_bounded",
	      "no trial holds 256 MB of answers"),
	ROW(idem_late, KEYS,
	    "sim/test_cases_calls id2_one_key_on_two_connections_at_once"),
	ROW(idem_unreplicated, KEYS,
	    "sim/test_cases_calls og7_a_crash_between_commit_and_release"),
	ROW(idem_unstored, KEYS,
	    "sim/test_cases_calls "
	    "id5_keys_travel_with_snapshots_and_survive_restarts"),
	ROW(applied_apart, NONE, "unit/test_storage power_cut_at_every_change"),
	ROW(stage_no_dir_sync, NONE,
	    "unit/test_storage_copies du7_a_named_copy_survives_a_power_cut"),
	ALONE(heartbeats_apart,
	      "unit/test_step writes_do_not_wait_for_heartbeats_with_one_dead",
	      "writes become slow, not wrong"),
	ROW(admission_off, NONE,
	    "sim/test_cases_overload rx2_ten_times_the_capacity_moves_no_term"),
	ALONE(stall_is_silence, "unit/test_rpc an_own_stall_is_nobodys_silence",
	      "sockets stay out of trials"),
	ROW(owner_not_awaited, NONE,
	    "unit/test_route a_hand_over_fails_no_call"),
	ROW(unit_in_later_term, NONE, NULL),
	ROW(error_without_round, STALE,
	    "unit/test_object an_error_waits_like_an_answer"),
	ROW(applied_twice, NONE, NULL),
	ALONE(calls_first,
	      "unit/test_rpc what_peers_have_sent_comes_before_calls",
	      "sockets stay out of trials"),
	ROW(full_disk_acknowledges, NONE,
	    "sim/test_replication a_full_voter_takes_nothing"),
	ROW(full_disk_leads, NONE,
	    "sim/test_cases_network dk3_one_full_voter_stops_nothing"),
	ROW(silence_obeyed, NONE,
	    "sim/test_cases_network nw4_a_mute_leader_is_replaced"),
	ROW(term_not_persisted, NONE, NULL),
	ROW(damage_forgotten, NONE, "unit/test_shard damage_with_other_voters"),
	ROW(round_refused_counts, NONE, "unit/test_round a_no_is_no_yes"),
	ROW(idem_any_principal, NONE,
	    "unit/test_idem a_key_belongs_to_principal_object_and_method"),
	ROW(flush_hides, NONE,
	    "unit/test_storage loads_between_the_slices_of_a_flush"),
	ROW(stamp_backwards, NONE, NULL),
	ROW(directory_ttl_ignored, NONE,
	    "unit/test_directory a_node_that_is_cut_off"),
	ROW(recheck_skipped, NONE,
	    "unit/test_directory what_is_no_longer_allowed_does_not_leave"),
	ROW(lag_unbounded, NONE,
	    "unit/test_object "
	    "lagged_answers_stop_when_the_oldest_effect_gets_old"),
	ROW(lag_unproved, NONE,
	    "unit/test_object "
	    "lagged_answers_stop_when_the_last_proof_gets_old"),
	ROW(destroy_leaves_rows, NONE, NULL),
	ALONE(full_disk_fed, "sim/test_replication a_full_voter_takes_nothing",
	      "what is dropped costs time, and a trial has enough"),
};

/* What is looked for, and what was found. */
struct hunt {
	enum mutant m;
	struct row row;
	uint64_t seeds;  /* Tried. */
	uint64_t first;  /* The least that broke; 0: none yet. */
	uint64_t panics; /* Trials that a CHECK ended. */
	bool honest;     /* Without the mutant it passes. */
	bool by_seeds;
	bool dead;
	struct breach breach;
	struct breach panic;
	char said[400]; /* By its test. */
};

static struct hunt hunts[MUTANTS];

/* ---------------------------------------------------------------- seeds */

static void trial_body(const struct task *t, struct finding *out)
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
static bool is_panic(const struct finding *f)
{
	return f->broken && strcmp(f->breach.invariant, "no-panic") == 0;
}

static void trial_done(struct task *t, const struct finding *f,
		       const char *report)
{
	struct hunt *h = t->arg;

	(void)report;
	h->seeds++;
	if (is_panic(f)) {
		h->panics++;
		h->panic = f->breach;
		return;
	}
	if (!f->broken || (h->first != 0 && h->first < t->seed))
		return;
	h->first = t->seed;
	h->breach = f->breach;
}

/* One that has a test is given up earlier: what is left to be seen is whether
 * random trials show it too. */
static uint64_t seeds_for(const struct row *row, uint64_t within)
{
	if (row->test != NULL && within > SEEDS_TESTED)
		return SEEDS_TESTED;
	return within;
}

static void hunt(struct hunt *h, uint64_t within)
{
	struct task t = { .mutant = (int)h->m,
			  .focus = (int)h->row.focus,
			  .body = trial_body,
			  .done = trial_done,
			  .arg = h };

	for (t.seed = 1; t.seed <= within && h->first == 0; t.seed++)
		farm_start(&t);
	farm_wait();
}

static void honest_done(struct task *t, const struct finding *f,
			const char *report)
{
	struct hunt *h = t->arg;

	h->honest = !f->broken;
	if (f->broken)
		printf("FAIL     %-22s and without it seed %" PRIu64
		       " (%s) breaks %s: %s\n%s\n",
		       mutant_name(h->m), t->seed, focus_names[t->focus],
		       f->breach.invariant, f->breach.text, report);
}

/* The seed that catches one must pass with all rules, or it proves nothing. */
static bool honest_passes(struct hunt *h)
{
	const struct task t = { .seed = h->first,
				.mutant = (int)MUTANT_none,
				.focus = (int)h->row.focus,
				.body = trial_body,
				.done = honest_done,
				.arg = h };

	farm_start(&t);
	farm_wait();
	return h->honest;
}

static bool dies_of_seeds(struct hunt *h, uint64_t within)
{
	hunt(h, within);
	if (h->first == 0 || !honest_passes(h))
		return false;
	printf("dies     %-22s of %-12s in %" PRIu64 " seeds, at %" PRIu64
	       " (%s)\n",
	       mutant_name(h->m), h->breach.invariant, h->seeds, h->first,
	       focus_names[h->row.focus]);
	(void)fflush(stdout);
	return true;
}

/* ---------------------------------------------------------------- tests */

/* This program's directory is that of the build. */
static bool enter_build(void)
{
	static char path[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
	char *slash;

	if (n <= 0)
		return false;
	path[n] = '\0';
	slash = strrchr(path, '/');
	*slash = '\0';
	return chdir(path) == 0;
}

static void test_body(const struct task *t, struct finding *out)
{
	const struct hunt *h = t->arg;
	char path[NAME_BYTES];
	char *argv[3] = { path };

	(void)out;
	(void)snprintf(path, sizeof(path), "tests/%s", h->row.test);
	argv[1] = strchr(path, ' ');
	if (argv[1] != NULL)
		*argv[1]++ = '\0';
	/* A busy machine is no fault of the mutant's. */
	(void)setenv("RUNNER_TIMEOUT_S", "600", 0);
	(void)unsetenv("HOLDFAST_MUTANT");
	if (t->mutant != (int)MUTANT_none)
		(void)setenv("HOLDFAST_MUTANT", mutant_name(h->m), 1);
	if (enter_build())
		(void)execv(path, argv);
	perror(path);
	exit(2);
}

/* What a test expected stands in the line before `FAIL NAME'. */
static bool find_failure(const char *report, char *out, size_t n)
{
	const char *end = strstr(report, "\nFAIL ");
	const char *from = end;

	if (end == NULL)
		return false;
	while (from > report && from[-1] != '\n')
		from--;
	(void)snprintf(out, n, "%.*s", (int)(end - from), from);
	return true;
}

static void say_test(const struct hunt *h)
{
	if (h->dead)
		printf("dies     %-22s of %s: %s\n", mutant_name(h->m),
		       h->row.test,
		       h->row.why != NULL && h->row.check == NULL ? h->row.why
								  : h->said);
	else if (h->row.test != NULL)
		printf("FAIL     %-22s %s %s it: %s\n", mutant_name(h->m),
		       h->row.test,
		       h->honest ? "does not notice" : "fails without",
		       h->said);
	else
		printf("FAIL     %-22s survives\n", mutant_name(h->m));
	if (h->seeds > 0 && h->first == 0)
		printf("         not in %" PRIu64 " seeds (%s)\n", h->seeds,
		       focus_names[h->row.focus]);
	if (h->panics > 0)
		printf("         %" PRIu64 " of them ended by %s\n", h->panics,
		       h->panic.text);
	(void)fflush(stdout);
}

/* By a CHECK, and it is the one that the row names. */
static bool is_check(const struct hunt *h, const struct finding *f)
{
	return h->row.check != NULL && is_panic(f) &&
	       strstr(f->breach.text, h->row.check) != NULL;
}

/* It passes without the mutant, and fails with it by what it expects: a CHECK
 * may stand in the mutated function. */
static void test_done(struct task *t, const struct finding *f,
		      const char *report)
{
	struct task with = *t;
	struct hunt *h = t->arg;
	bool told = find_failure(report, h->said, sizeof(h->said));

	if (!told)
		(void)snprintf(h->said, sizeof(h->said), "%s", f->breach.text);
	if (t->mutant != (int)MUTANT_none) {
		h->dead = f->broken && (told || is_check(h, f));
		say_test(h);
		return;
	}
	h->honest = !f->broken;
	with.mutant = (int)h->m;
	if (h->honest)
		farm_start(&with);
	else
		say_test(h);
}

static void test_start(struct hunt *h)
{
	const struct task t = { .mutant = (int)MUTANT_none,
				.body = test_body,
				.done = test_done,
				.arg = h };

	farm_start(&t);
}

/* ------------------------------------------------------------------ all */

static bool is_wanted(const char *only, int m)
{
	return only == NULL || strcmp(only, mutant_name((enum mutant)m)) == 0;
}

/* Those that survive their seeds, and those that have none. Most of a test is
 * waiting: they run at the same time. */
static void run_tests(const char *only)
{
	int m;

	for (m = MUTANT_none + 1; m < (int)MUTANTS; m++) {
		if (!is_wanted(only, m) || hunts[m].dead)
			continue;
		if (hunts[m].row.test != NULL)
			test_start(&hunts[m]);
		else
			say_test(&hunts[m]);
	}
	farm_wait();
}

void mutants_all(const char *only, uint64_t within, uint64_t *passed,
		 uint64_t *failed)
{
	uint64_t by_seeds = 0;
	uint64_t dead = 0;
	struct hunt *h;
	int m;

	for (m = MUTANT_none + 1; m < (int)MUTANTS; m++) {
		h = &hunts[m];
		*h = (struct hunt){ .m = (enum mutant)m, .row = rows[m] };
		if (!is_wanted(only, m) || h->row.why != NULL)
			continue;
		h->by_seeds = dies_of_seeds(h, seeds_for(&h->row, within));
		h->dead = h->by_seeds;
		by_seeds += h->by_seeds;
	}
	run_tests(only);
	for (m = MUTANT_none + 1; m < (int)MUTANTS; m++) {
		if (!is_wanted(only, m))
			continue;
		dead += hunts[m].dead;
		*passed += hunts[m].dead;
		*failed += !hunts[m].dead;
	}
	printf("%" PRIu64 " mutants die: %" PRIu64 " of random seeds, %" PRIu64
	       " of a test\n",
	       dead, by_seeds, dead - by_seeds);
	if (only == NULL && by_seeds < BY_SEEDS) {
		printf("FAIL     at least %u must die of random seeds\n",
		       BY_SEEDS);
		(*failed)++;
	}
}
