#include "raft-glue/guard.h"

#include <raft.h>

#include "node/base/check.h"
#include "tests/lib/runner.h"

/*
 * Each guard alone, on messages and on a real core. Where the fault can be
 * shown on one core, the test steps it once without the guard too: the day the
 * library behaves, that half fails and the guard may go.
 */

static struct raft raft;
static struct raft_update update;
static uint64_t now_ms;

static void conf_of(struct raft_configuration *conf, unsigned n)
{
	char address[16];
	unsigned i;

	raft_configuration_init(conf);
	for (i = 1; i <= n; i++) {
		(void)snprintf(address, sizeof(address), "n%u", i);
		EXPECT_INT(raft_configuration_add(conf, i, address, RAFT_VOTER),
			   0);
	}
}

static int step(struct raft_event *ev)
{
	memset(&update, 0, sizeof(update));
	ev->time = now_ms;
	return raft_step(&raft, ev, &update);
}

/* A member 1 of `n` with a state at index 10, term 2, in term `term`. */
static void core_open(unsigned n, uint64_t term)
{
	struct raft_snapshot_metadata meta = { .index = 10,
					       .term = 2,
					       .configuration_index = 1 };
	struct raft_event ev = { .type = RAFT_START };

	memset(&raft, 0, sizeof(raft));
	EXPECT_INT(raft_init(&raft, NULL, NULL, 1, "n1"), 0);
	raft.tracer = NULL;
	raft_seed(&raft, 7);
	raft_set_election_timeout(&raft, 300);
	raft_set_heartbeat_timeout(&raft, 50);
	raft_set_pre_vote(&raft, true);
	now_ms = 1000;
	conf_of(&meta.configuration, n);
	ev.start.term = term;
	ev.start.metadata = &meta;
	ev.start.start_index = 11;
	EXPECT_INT(step(&ev), 0);
}

static void core_close(void)
{
	raft_close(&raft, NULL);
}

static void free_entries(void)
{
	if (update.flags & (RAFT_UPDATE_ENTRIES))
		raft_free(update.entries.batch[0].batch);
}

static int receive(struct raft_message *m, uint64_t from)
{
	struct raft_event ev = { .type = RAFT_RECEIVE };
	static char address[16];

	(void)snprintf(address, sizeof(address), "n%u", (unsigned)from);
	m->server_id = from;
	m->server_address = address;
	ev.receive.message = m;
	return step(&ev);
}

static void fire(void)
{
	struct raft_event ev = { .type = RAFT_TIMEOUT };

	now_ms = raft_timeout(&raft);
	EXPECT_INT(step(&ev), 0);
}

static struct raft_message vote_result(uint64_t term, bool pre, bool granted)
{
	struct raft_message m = { .type = RAFT_REQUEST_VOTE_RESULT };

	m.request_vote_result.version = 2;
	m.request_vote_result.term = term;
	m.request_vote_result.pre_vote = pre;
	m.request_vote_result.vote_granted = granted;
	return m;
}

/* The core becomes leader of three; its barrier is at `index`. */
static void core_elect(void)
{
	struct raft_message m;

	fire();
	m = vote_result(raft.current_term + 1, true, true);
	EXPECT_INT(receive(&m, 2), 0);
	m = vote_result(raft.current_term, false, true);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_INT(raft_state(&raft), RAFT_LEADER);
	free_entries();
}

static struct raft_message append_entries(struct raft_entry *list, unsigned n,
					  uint64_t prev, uint64_t prev_term,
					  uint64_t term)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES };
	uint8_t *batch = n > 0 ? raft_calloc(n, 8) : NULL;
	unsigned i;

	for (i = 0; i < n; i++) {
		if (list[i].type == 0)
			list[i].type = RAFT_COMMAND;
		if (list[i].term == 0)
			list[i].term = term;
		list[i].buf.base = batch + (size_t)i * 8;
		list[i].buf.len = 8;
		list[i].batch = batch;
	}
	m.append_entries.term = term;
	m.append_entries.prev_log_index = prev;
	m.append_entries.prev_log_term = prev_term;
	m.append_entries.entries = list;
	m.append_entries.n_entries = n;
	return m;
}

static struct raft_message append_result(uint64_t term, uint64_t rejected,
					 uint64_t last)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES_RESULT };

	m.append_entries_result.version = 2;
	m.append_entries_result.term = term;
	m.append_entries_result.rejected = rejected;
	m.append_entries_result.last_log_index = last;
	return m;
}

/* ---- arriving ---- */

TEST(b2_a_change_comes_first)
{
	struct raft_entry list[6] = { { 0 } };
	struct raft_message m = append_entries(list, 6, 10, 2, 3);

	EXPECT_UINT(guard_b2(&m, 0), 6);
	list[2].type = RAFT_CHANGE;
	list[5].type = RAFT_CHANGE;
	EXPECT_UINT(guard_b2(&m, 0), 2);
	EXPECT_UINT(guard_b2(&m, 2), 3);
	EXPECT_UINT(guard_b2(&m, 5), 1);
	list[0].type = RAFT_CHANGE;
	EXPECT_UINT(guard_b2(&m, 0), 2);
	raft_free(list[0].batch);
}

/* The change is entry 12; the core files it under 11. */
TEST(b2_without_it_the_index_is_wrong)
{
	struct raft_entry list[2] = { { 0 } };
	struct raft_configuration conf;
	struct raft_message m;
	struct raft_buffer buf;

	core_open(3, 3);
	m = append_entries(list, 2, 10, 2, 3);
	conf_of(&conf, 4);
	EXPECT_INT(raft_configuration_encode(&conf, &buf), 0);
	raft_configuration_close(&conf);
	list[1].type = RAFT_CHANGE;
	list[1].buf = buf;
	EXPECT_UINT(guard_b2(&m, 0), 1);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(raft.configuration_uncommitted_index, 11);
	free_entries();
	raft_free(buf.base);
	core_close();
}

TEST(b3_a_stale_rejection_says_nothing)
{
	struct raft_message m;

	core_open(3, 3);
	core_elect();
	m = append_result(raft.current_term, 0, 10);
	EXPECT_INT(receive(&m, 2), 0);

	m = append_result(raft.current_term, 9, 8);
	m.server_id = 2;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 0);
	EXPECT_UINT(m.append_entries_result.last_log_index, 0);

	m = append_result(raft.current_term, 10, 9);
	m.server_id = 2;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 0);

	/* A true one, one of a server with nothing, one of another term, one
	 * of a stranger. */
	m = append_result(raft.current_term, 11, 10);
	m.server_id = 2;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 11);
	m.server_id = 3;
	m.append_entries_result.rejected = 9;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 9);
	m.server_id = 2;
	m.append_entries_result.term--;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 9);
	m.server_id = 9;
	m.append_entries_result.term++;
	guard_b3(&raft, &m);
	EXPECT_UINT(m.append_entries_result.rejected, 9);
	core_close();
}

TEST(b4_what_is_applied_is_dropped)
{
	struct raft_entry list[5] = { { 0 } };
	struct raft_message m;

	core_open(3, 3);
	/* 8..12 arrive, 10 is applied. */
	m = append_entries(list, 5, 7, 2, 3);
	EXPECT_UINT(guard_b4(&raft, &m, 10, 2), 3);
	EXPECT_UINT(m.append_entries.prev_log_index, 10);
	EXPECT_UINT(m.append_entries.prev_log_term, 2);
	EXPECT_UINT(m.append_entries.n_entries, 2);
	EXPECT_TRUE(m.append_entries.entries == &list[3]);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(update.entries.index, 11);
	EXPECT_UINT(raft_last_index(&raft), 12);
	free_entries();

	/* All below; a heartbeat below; one above is not touched. */
	m = append_entries(list, 3, 2, 1, 3);
	EXPECT_UINT(guard_b4(&raft, &m, 10, 2), 3);
	EXPECT_UINT(m.append_entries.n_entries, 0);
	EXPECT_UINT(m.append_entries.prev_log_index, 10);
	raft_free(list[0].batch);
	m = append_entries(NULL, 0, 2, 1, 3);
	EXPECT_UINT(guard_b4(&raft, &m, 10, 2), 0);
	EXPECT_UINT(m.append_entries.prev_log_index, 10);
	m = append_entries(NULL, 0, 12, 3, 3);
	EXPECT_UINT(guard_b4(&raft, &m, 10, 2), 0);
	EXPECT_UINT(m.append_entries.prev_log_index, 12);

	raft.snapshot.installing = true;
	m = append_entries(NULL, 0, 2, 1, 3);
	EXPECT_UINT(guard_b4(&raft, &m, 10, 2), 0);
	EXPECT_UINT(m.append_entries.prev_log_index, 2);
	raft.snapshot.installing = false;
	core_close();
}

/* From prev 0, with entry 1 below our prefix, it lands at the end. */
TEST(b4_without_it_the_log_is_wrong)
{
	struct raft_entry list[2] = { { 0 } };
	struct raft_message m;

	core_open(3, 3);
	m = append_entries(list, 2, 0, 0, 3);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_TRUE(raft_last_index(&raft) > 10);
	free_entries();
	core_close();
}

static struct raft_message request_vote(uint64_t term, bool pre)
{
	struct raft_message m = { .type = RAFT_REQUEST_VOTE };

	m.request_vote.version = 2;
	m.request_vote.term = term;
	m.request_vote.candidate_id = 2;
	m.request_vote.last_log_index = 10;
	m.request_vote.last_log_term = 2;
	m.request_vote.pre_vote = pre;
	return m;
}

TEST(b7_a_standby_votes)
{
	struct raft_message m = request_vote(4, false);
	int role;

	core_open(3, 3);
	raft.configuration.servers[0].role = RAFT_STANDBY;
	role = guard_b7_begin(&raft, &m);
	EXPECT_INT(role, RAFT_STANDBY);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_TRUE(update.messages.batch[0].request_vote_result.vote_granted);
	guard_b7_end(&raft, role);
	EXPECT_INT(raft.configuration.servers[0].role, RAFT_STANDBY);

	/* Without: refused. */
	m = request_vote(5, false);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_FALSE(update.messages.batch[0].request_vote_result.vote_granted);

	/* Other messages, and who is not a member at all. */
	m = append_result(5, 0, 0);
	EXPECT_INT(guard_b7_begin(&raft, &m), -1);
	guard_b7_end(&raft, -1);
	raft.configuration.servers[0].id = 9;
	m = request_vote(5, false);
	EXPECT_INT(guard_b7_begin(&raft, &m), -1);
	raft.configuration.servers[0].id = 1;
	core_close();
}

TEST(b8_a_dead_leader_is_forgotten)
{
	struct raft_message m = append_entries(NULL, 0, 10, 2, 3);
	uint64_t contact;

	core_open(3, 3);
	EXPECT_INT(receive(&m, 3), 0);
	contact = now_ms;
	m = request_vote(4, true);
	guard_b8(&raft, &m, contact, contact + 299);
	EXPECT_FALSE(m.request_vote.disrupt_leader);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_FALSE(update.messages.batch[0].request_vote_result.vote_granted);
	guard_b8(&raft, &m, contact, contact + 300);
	EXPECT_TRUE(m.request_vote.disrupt_leader);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_TRUE(update.messages.batch[0].request_vote_result.vote_granted);

	/* A leader is never talked into it. */
	core_elect();
	m = request_vote(raft.current_term + 1, true);
	guard_b8(&raft, &m, contact, contact + 10000);
	EXPECT_FALSE(m.request_vote.disrupt_leader);
	core_close();
}

TEST(b13_two_leaders_in_a_term)
{
	struct raft_message m = append_entries(NULL, 0, 10, 2, 3);

	core_open(3, 3);
	EXPECT_FALSE(guard_b13(&raft, &m));
	core_elect();
	EXPECT_FALSE(guard_b13(&raft, &m));
	m.append_entries.term = raft.current_term;
	EXPECT_TRUE(guard_b13(&raft, &m));
	m.append_entries.term++;
	EXPECT_FALSE(guard_b13(&raft, &m));
	m = (struct raft_message){ .type = RAFT_INSTALL_SNAPSHOT };
	m.install_snapshot.term = raft.current_term;
	EXPECT_TRUE(guard_b13(&raft, &m));
	m = request_vote(raft.current_term, false);
	EXPECT_FALSE(guard_b13(&raft, &m));
	core_close();
}

TEST(b14_only_candidates_count_votes)
{
	struct raft_message m = vote_result(9, true, true);

	core_open(3, 3);
	EXPECT_TRUE(guard_b14(&raft, &m));
	fire();
	EXPECT_INT(raft_state(&raft), RAFT_CANDIDATE);
	EXPECT_FALSE(guard_b14(&raft, &m));
	m = append_result(3, 0, 0);
	EXPECT_FALSE(guard_b14(&raft, &m));
	core_close();
}

/* A late pre-vote of term 9 at a follower: the core takes the term over. */
TEST(b14_without_it_the_term_jumps)
{
	struct raft_message m = vote_result(9, true, true);

	core_open(3, 3);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(raft.current_term, 9);
	core_close();
}

TEST(b16_one_install_at_a_time)
{
	struct raft_message m = { .type = RAFT_INSTALL_SNAPSHOT };

	core_open(3, 3);
	m.install_snapshot.term = 3;
	EXPECT_FALSE(guard_b16(&raft, &m));
	m.install_snapshot.term = 2;
	EXPECT_TRUE(guard_b16(&raft, &m));
	m.install_snapshot.term = 4;
	raft.snapshot.installing = true;
	EXPECT_TRUE(guard_b16(&raft, &m));
	raft.snapshot.installing = false;
	m.type = RAFT_APPEND_ENTRIES;
	EXPECT_FALSE(guard_b16(&raft, &m));
	core_close();
}

TEST(b19_old_connections_are_dropped)
{
	uint64_t known = 0;

	EXPECT_FALSE(guard_b19(&known, 0));
	EXPECT_TRUE(guard_b19(&known, 5));
	EXPECT_TRUE(guard_b19(&known, 5));
	EXPECT_FALSE(guard_b19(&known, 4));
	EXPECT_TRUE(guard_b19(&known, 6));
	EXPECT_FALSE(guard_b19(&known, 5));
	EXPECT_UINT(known, 6);
}

TEST(b21_versions)
{
	static const struct {
		enum raft_message_type type;
		uint8_t version;
	} good[] = {
		{ RAFT_APPEND_ENTRIES, 0 },   { RAFT_APPEND_ENTRIES_RESULT, 2 },
		{ RAFT_REQUEST_VOTE, 2 },     { RAFT_REQUEST_VOTE_RESULT, 2 },
		{ RAFT_INSTALL_SNAPSHOT, 0 }, { RAFT_TIMEOUT_NOW, 0 },
	};
	struct raft_message m;
	unsigned v;
	size_t i;

	for (i = 0; i < ARRAY_LEN(good); i++) {
		for (v = 0; v < 256; v++) {
			memset(&m, 0, sizeof(m));
			m.type = good[i].type;
			/* First in every member of the union. */
			m.request_vote.version = (uint8_t)v;
			EXPECT_INT(guard_b21(&m), v == good[i].version);
		}
	}
	memset(&m, 0, sizeof(m));
	EXPECT_FALSE(guard_b21(&m));
	m.type = (enum raft_message_type)7;
	EXPECT_FALSE(guard_b21(&m));
}

/* A late pre-vote with version 0 makes a leader whom nobody voted for. */
TEST(b21_without_it_a_pre_vote_counts_as_a_vote)
{
	struct raft_message m;

	core_open(3, 3);
	fire();
	m = vote_result(4, true, true);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(raft.current_term, 4);
	m = vote_result(4, true, true);
	EXPECT_INT(receive(&m, 3), 0);
	EXPECT_INT(raft_state(&raft), RAFT_CANDIDATE);
	m.request_vote_result.version = 0;
	EXPECT_FALSE(guard_b21(&m));
	EXPECT_INT(receive(&m, 3), 0);
	EXPECT_INT(raft_state(&raft), RAFT_LEADER);
	free_entries();
	core_close();
}

TEST(configurations_are_read_within_their_bytes)
{
	struct raft_configuration conf;
	struct raft_buffer buf;
	uint8_t *p;
	size_t i;

	conf_of(&conf, 3);
	EXPECT_INT(raft_configuration_encode(&conf, &buf), 0);
	raft_configuration_close(&conf);
	EXPECT_TRUE(guard_conf(buf.base, buf.len));
	p = buf.base;
	/* 9 + 3 * (8 + 3 + 1) = 45 bytes and padding. */
	for (i = 0; i < 45; i++) {
		runner_context("cut at %zu", i);
		EXPECT_FALSE(guard_conf(p, i));
	}
	runner_context("%s", "");
	EXPECT_TRUE(guard_conf(p, 45));
	p[0] = 2;
	EXPECT_FALSE(guard_conf(p, buf.len));
	p[0] = 1;
	p[1] = CONF_SERVERS_MAX + 1;
	EXPECT_FALSE(guard_conf(p, buf.len));
	p[1] = 0;
	EXPECT_FALSE(guard_conf(p, buf.len));
	p[1] = 3;
	p[8] = 1;
	EXPECT_FALSE(guard_conf(p, buf.len));
	p[8] = 0;
	p[44] = RAFT_SPARE + 1;
	EXPECT_FALSE(guard_conf(p, buf.len));
	raft_free(buf.base);
}

/* ---- leaving ---- */

TEST(b1_a_refusal_acknowledges_nothing)
{
	struct raft_message m = append_result(3, 0, 77);

	core_open(3, 3);
	guard_b1(&raft, &m, 3);
	EXPECT_UINT(m.append_entries_result.last_log_index, 77);
	guard_b1(&raft, &m, UINT64_MAX);
	EXPECT_UINT(m.append_entries_result.last_log_index, 77);
	guard_b1(&raft, &m, 2);
	EXPECT_UINT(m.append_entries_result.last_log_index, 0);
	m = request_vote(3, false);
	guard_b1(&raft, &m, 2);
	EXPECT_UINT(m.request_vote.last_log_index, 10);
	core_close();
}

TEST(b5_a_refused_pre_vote_tells_the_term)
{
	struct raft_message m = vote_result(4, true, false);

	core_open(3, 9);
	guard_b5(&raft, &m);
	EXPECT_UINT(m.request_vote_result.term, 9);
	m = vote_result(12, true, false);
	guard_b5(&raft, &m);
	EXPECT_UINT(m.request_vote_result.term, 12);
	m = vote_result(4, true, true);
	guard_b5(&raft, &m);
	EXPECT_UINT(m.request_vote_result.term, 4);
	m = vote_result(4, false, false);
	guard_b5(&raft, &m);
	EXPECT_UINT(m.request_vote_result.term, 4);
	/* The core alone echoes what it was asked. */
	m = request_vote(4, true);
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(update.messages.batch[0].request_vote_result.term, 4);
	core_close();
}

TEST(b15_the_hint_is_what_surely_matches)
{
	struct raft_entry list[8] = { { 0 } };
	struct raft_message m;

	core_open(3, 3);
	m = append_entries(list, 8, 10, 2, 3);
	EXPECT_INT(receive(&m, 2), 0);
	free_entries();
	/* A leader of term 4 asks about 18^4, which is 18^3 here. */
	m = append_entries(NULL, 0, 18, 4, 4);
	EXPECT_INT(receive(&m, 3), 0);
	m = update.messages.batch[0];
	EXPECT_UINT(m.append_entries_result.rejected, 18);
	EXPECT_UINT(m.append_entries_result.last_log_index, 17);
	guard_b15(&raft, &m);
	EXPECT_UINT(m.append_entries_result.last_log_index, 10);
	/* What matches in this term counts too. */
	raft.follower_state.match = 13;
	m.append_entries_result.last_log_index = 17;
	guard_b15(&raft, &m);
	EXPECT_UINT(m.append_entries_result.last_log_index, 13);
	/* A short log is not a conflict. */
	m = append_result(4, 30, 18);
	guard_b15(&raft, &m);
	EXPECT_UINT(m.append_entries_result.last_log_index, 18);
	raft.snapshot.installing = true;
	m = append_result(4, 18, 17);
	guard_b15(&raft, &m);
	EXPECT_UINT(m.append_entries_result.last_log_index, 17);
	raft.snapshot.installing = false;
	core_close();
}

/* ---- events ---- */

TEST(b6_no_change_before_an_own_entry)
{
	EXPECT_FALSE(guard_b6(0, 100));
	EXPECT_FALSE(guard_b6(12, 11));
	EXPECT_TRUE(guard_b6(12, 12));
}

TEST(b9_the_timer_does_not_spin)
{
	EXPECT_UINT(guard_b9(500, 1000, 50), 1025);
	EXPECT_UINT(guard_b9(1050, 1000, 50), 1050);
}

TEST(b10_who_is_alone)
{
	struct raft_configuration conf;

	conf_of(&conf, 1);
	EXPECT_TRUE(guard_b10(&conf, 1));
	EXPECT_FALSE(guard_b10(&conf, 2));
	raft_configuration_close(&conf);
	conf_of(&conf, 3);
	EXPECT_FALSE(guard_b10(&conf, 1));
	conf.servers[1].role = RAFT_STANDBY;
	conf.servers[2].role = RAFT_SPARE;
	EXPECT_TRUE(guard_b10(&conf, 1));
	EXPECT_FALSE(guard_b10(&conf, 2));
	raft_configuration_close(&conf);
}

/* The same term twice, with two histories. */
TEST(b10_without_it_the_term_stays)
{
	core_open(1, 3);
	EXPECT_INT(raft_state(&raft), RAFT_LEADER);
	EXPECT_UINT(raft.current_term, 3);
	core_close();
}

TEST(b11_only_news_that_is_in_the_log)
{
	struct raft_entry list[2] = { { 0 } };
	struct raft_message m;

	core_open(3, 3);
	m = append_entries(list, 2, 10, 2, 3);
	EXPECT_INT(receive(&m, 2), 0);
	free_entries();
	EXPECT_FALSE(guard_b11(&raft, 10));
	EXPECT_TRUE(guard_b11(&raft, 11));
	EXPECT_TRUE(guard_b11(&raft, 12));
	EXPECT_FALSE(guard_b11(&raft, 13));
	raft.snapshot.installing = true;
	EXPECT_FALSE(guard_b11(&raft, 11));
	raft.snapshot.installing = false;
	raft.state = RAFT_CANDIDATE;
	EXPECT_FALSE(guard_b11(&raft, 11));
	raft.state = RAFT_FOLLOWER;
	core_close();
}

TEST(b12_commit_never_falls)
{
	EXPECT_UINT(guard_b12(90, 50, false), 90);
	EXPECT_UINT(guard_b12(90, 91, false), 91);
	EXPECT_UINT(guard_b12(90, 1000, true), 90);
}

TEST(b12_without_it_commit_falls)
{
	struct raft_entry list[40] = { { 0 } };
	struct raft_message m;

	core_open(3, 3);
	m = append_entries(list, 40, 10, 2, 3);
	m.append_entries.leader_commit = 45;
	EXPECT_INT(receive(&m, 2), 0);
	free_entries();
	EXPECT_UINT(raft.commit_index, 45);
	m = append_entries(NULL, 0, 20, 3, 3);
	m.append_entries.leader_commit = 60;
	EXPECT_INT(receive(&m, 2), 0);
	EXPECT_UINT(raft.commit_index, 20);
	EXPECT_UINT(guard_b12(45, raft.commit_index, false), 45);
	core_close();
}

TEST(b17_one_server_differs)
{
	struct raft_configuration a;
	struct raft_configuration b;

	conf_of(&a, 3);
	conf_of(&b, 3);
	EXPECT_FALSE(guard_b17(&a, &b)); /* None. */
	b.servers[1].role = RAFT_STANDBY;
	EXPECT_TRUE(guard_b17(&a, &b)); /* A role. */
	b.servers[2].role = RAFT_SPARE;
	EXPECT_FALSE(guard_b17(&a, &b)); /* Two roles. */
	b.servers[1].role = RAFT_VOTER;
	b.servers[2].role = RAFT_VOTER;
	b.servers[2].id = 4;
	EXPECT_FALSE(guard_b17(&a, &b)); /* A swap: B17. */
	b.servers[2].id = 3;
	raft_configuration_close(&b);

	conf_of(&b, 4);
	EXPECT_TRUE(guard_b17(&a, &b)); /* Added at the end. */
	EXPECT_TRUE(guard_b17(&b, &a)); /* Removed from it. */
	b.servers[0].role = RAFT_STANDBY;
	EXPECT_FALSE(guard_b17(&a, &b)); /* Added, and a role. */
	b.servers[0].role = RAFT_VOTER;
	b.n = 2;
	b.servers[1].id = 3;
	b.servers[1].address[1] = '3';
	EXPECT_TRUE(guard_b17(&a, &b));  /* Removed from the middle. */
	EXPECT_FALSE(guard_b17(&b, &a)); /* Added in the middle. */
	b.n = 4;
	raft_configuration_close(&b);

	conf_of(&b, 5);
	EXPECT_FALSE(guard_b17(&a, &b)); /* Two more. */
	raft_configuration_close(&b);
	conf_of(&b, 3);
	b.servers[1].address[0] = 'x';
	EXPECT_FALSE(guard_b17(&a, &b)); /* Another address. */
	raft_configuration_close(&b);
	raft_configuration_close(&a);
}

TEST(b18_a_change_is_alone)
{
	EXPECT_TRUE(guard_b18(1, 1));
	EXPECT_TRUE(guard_b18(5, 0));
	EXPECT_FALSE(guard_b18(2, 1));
}

TEST(b20_every_other_error_ends_the_process)
{
	EXPECT_INT(guard_b20(RAFT_SUBMIT, 0), GUARD_DONE);
	EXPECT_INT(guard_b20(RAFT_SUBMIT, RAFT_NOTLEADER), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_SUBMIT, RAFT_NOSPACE), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_SUBMIT, RAFT_CANTCHANGE), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_SUBMIT, RAFT_NOMEM), GUARD_STOP);
	EXPECT_INT(guard_b20(RAFT_SUBMIT, RAFT_MALFORMED), GUARD_STOP);
	EXPECT_INT(guard_b20(RAFT_TRANSFER, RAFT_NOTLEADER), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_TRANSFER, RAFT_BADID), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_TRANSFER, RAFT_NOTFOUND), GUARD_REFUSED);
	EXPECT_INT(guard_b20(RAFT_RECEIVE, RAFT_NOTLEADER), GUARD_STOP);
	EXPECT_INT(guard_b20(RAFT_RECEIVE, RAFT_SHUTDOWN), GUARD_STOP);
	EXPECT_INT(guard_b20(RAFT_TIMEOUT, RAFT_NOMEM), GUARD_STOP);
}
