#include "raft-glue/step.h"

#include <raft.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "raft-glue/codec.h"
#include "raft-glue/entries.h"
#include "tests/lib/hand.h"
#include "tests/lib/runner.h"

/*
 * One core alone, then three that talk: a driver in the test's hand for clock,
 * disks and network. Writes are durable when the test says so, messages arrive
 * when it says so, entries are copied on the way as a codec would.
 */

#define NODES     3u
#define QUEUE_MAX 4096u

struct node {
	struct hand hand;
	struct step *step;
	struct step_sink sink;
	struct entries tail;
	uint64_t id;
	uint64_t term;
	uint64_t vote;
	unsigned ballots;
	uint64_t ticket;
	uint64_t applied;
	uint64_t applied_term;
	uint64_t commit; /* The highest seen; must never fall. */
	unsigned installs;
	uint64_t install_index;
	uint64_t install_term;
	void *conf; /* Applied last. */
	size_t conf_bytes;
	uint64_t conf_index;
	bool cut;
	bool lazy; /* It applies nothing. */
};

struct parcel {
	uint64_t from;
	struct raft_message m;
};

static struct node nodes[NODES + 1];
static unsigned nodes_n;
static struct parcel queue[QUEUE_MAX];
static unsigned queue_head;
static unsigned queue_tail;
static unsigned sent[8];
static uint64_t epoch;
static bool want_snapshots;

/* ---- sink ---- */

static void on_ballot(struct step_sink *k, uint64_t term, uint64_t vote)
{
	struct node *n = CONTAINER_OF(k, struct node, sink);

	EXPECT_TRUE(term >= n->term);
	if (term == n->term && n->vote != 0)
		EXPECT_UINT(vote, n->vote);
	n->term = term;
	n->vote = vote;
	n->ballots++;
}

static void on_append(struct step_sink *k, uint64_t index,
		      const struct step_entry *from)
{
	struct node *n = CONTAINER_OF(k, struct node, sink);
	struct entry e = {
		.term = from->term,
		.ticket = ++n->ticket,
		.data = from->data,
		.bytes = from->bytes,
		.type = from->type,
	};

	EXPECT_TRUE(index > n->applied);
	EXPECT_TRUE(entries_put(&n->tail, index, &e));
}

static void on_entry(struct step_sink *k, uint64_t index,
		     struct step_entry *out)
{
	struct node *n = CONTAINER_OF(k, struct node, sink);
	const struct entry *e = entries_get(&n->tail, index);

	EXPECT_TRUE(e != NULL);
	out->term = e->term;
	out->type = e->type;
	out->bytes = e->bytes;
	out->data = e->data;
}

static void on_install(struct step_sink *k, uint64_t index, uint64_t term)
{
	struct node *n = CONTAINER_OF(k, struct node, sink);

	n->installs++;
	n->install_index = index;
	n->install_term = term;
}

/* As a codec would: everything is copied, into one batch. */
static void copy_entries(struct raft_append_entries *ae)
{
	const struct raft_entry *from = ae->entries;
	struct raft_entry *to;
	size_t bytes = 0;
	uint8_t *batch;
	unsigned i;

	if (ae->n_entries == 0) {
		ae->entries = NULL;
		return;
	}
	for (i = 0; i < ae->n_entries; i++)
		bytes += from[i].buf.len;
	to = calloc(ae->n_entries, sizeof(*to));
	batch = raft_malloc(bytes);
	for (i = 0, bytes = 0; i < ae->n_entries; i++) {
		to[i] = from[i];
		memcpy(batch + bytes, from[i].buf.base, from[i].buf.len);
		to[i].buf.base = batch + bytes;
		to[i].batch = batch;
		bytes += from[i].buf.len;
	}
	ae->entries = to;
}

static void on_send(struct step_sink *k, const struct raft_message *m)
{
	struct node *n = CONTAINER_OF(k, struct node, sink);
	struct parcel *p;

	EXPECT_NULL(m->server_address);
	sent[m->type]++;
	if (n->cut || m->server_id > nodes_n || nodes[m->server_id].cut)
		return;
	if (m->type == RAFT_INSTALL_SNAPSHOT) {
		EXPECT_NULL(m->install_snapshot.conf.servers);
		EXPECT_NULL(m->install_snapshot.data.base);
		if (!want_snapshots)
			return;
	}
	EXPECT_TRUE(queue_tail < QUEUE_MAX);
	p = &queue[queue_tail++];
	p->from = n->id;
	p->m = *m;
	if (m->type == RAFT_APPEND_ENTRIES)
		copy_entries(&p->m.append_entries);
}

/* ---- driver ---- */

static void *conf_bytes(unsigned n, size_t *bytes)
{
	static const char *const address[] = { "n1", "n2", "n3", "n4", "n5" };
	struct step_member m[5];
	void *data;
	unsigned i;

	for (i = 0; i < n; i++)
		m[i] = (struct step_member){ i + 1, address[i] };
	EXPECT_RC(step_conf_encode(m, n, &data, bytes), RC_OK);
	return data;
}

static void node_open(uint64_t id)
{
	static const char *const address[] = { "", "n1", "n2", "n3" };
	struct node *n = &nodes[id];
	struct step_config cfg = {
		.node_id = id,
		.address = address[id],
		.election_ms = 300,
		.heartbeat_ms = 50,
	};

	memset(n, 0, sizeof(*n));
	hand_init(&n->hand);
	n->hand.random = id * 77;
	n->id = id;
	n->sink.ballot = on_ballot;
	n->sink.append = on_append;
	n->sink.entry = on_entry;
	n->sink.install = on_install;
	n->sink.send = on_send;
	cfg.env = &n->hand.env;
	EXPECT_RC(step_new(&cfg, &n->sink, &n->step), RC_OK);
	entries_init(&n->tail, 1);
}

static void node_close(struct node *n)
{
	if (n->step != NULL)
		step_free(n->step);
	entries_release(&n->tail);
	free(n->conf);
	memset(n, 0, sizeof(*n));
}

/* A founder's first boot: entry 1. */
static void node_found(struct node *n, unsigned voters, uint64_t term)
{
	struct step_boot boot = { .term = term, .last = 1 };
	struct entry e = { .term = 1, .type = STEP_CHANGE };
	size_t bytes;

	e.data = conf_bytes(voters, &bytes);
	e.bytes = (uint32_t)bytes;
	EXPECT_TRUE(entries_put(&n->tail, 1, &e));
	(void)entries_durable(&n->tail, 0);
	n->term = term;
	step_start(n->step, &boot);
}

static void parcel_free(struct parcel *p)
{
	if (p->m.type == RAFT_APPEND_ENTRIES)
		free(p->m.append_entries.entries);
}

static void cluster_open(unsigned n)
{
	uint64_t id;

	nodes_n = n;
	queue_head = queue_tail = 0;
	epoch = 1;
	want_snapshots = false;
	memset(sent, 0, sizeof(sent));
	for (id = 1; id <= n; id++) {
		node_open(id);
		node_found(&nodes[id], n, 1);
	}
}

static void cluster_close(void)
{
	uint64_t id;

	for (; queue_head < queue_tail; queue_head++) {
		struct parcel *p = &queue[queue_head];

		if (p->m.type == RAFT_APPEND_ENTRIES &&
		    p->m.append_entries.n_entries > 0)
			raft_free(p->m.append_entries.entries[0].batch);
		parcel_free(p);
	}
	for (id = 1; id <= nodes_n; id++)
		node_close(&nodes[id]);
}

static void node_check(struct node *n)
{
	EXPECT_FALSE(n->hand.stopped);
	EXPECT_TRUE(step_commit(n->step) >= n->commit);
	n->commit = step_commit(n->step);
	EXPECT_UINT(step_term(n->step), n->term);
	EXPECT_UINT(step_last(n->step), step_installing(n->step)
						? n->install_index
						: n->tail.next - 1);
}

/* The disk: all that was written is durable. */
static void persist(struct node *n)
{
	step_persisted(n->step, entries_durable(&n->tail, n->ticket));
	node_check(n);
}

static void apply(struct node *n)
{
	const struct entry *e;
	uint64_t upto = step_commit(n->step);

	if (n->lazy)
		return;
	if (upto > n->tail.durable)
		upto = n->tail.durable;
	while (n->applied < upto && !step_installing(n->step)) {
		e = entries_get(&n->tail, n->applied + 1);
		EXPECT_TRUE(e != NULL);
		n->applied++;
		n->applied_term = e->term;
		step_applied(n->step, n->applied, e->term);
		if (e->type != STEP_CHANGE)
			continue;
		free(n->conf);
		n->conf = malloc(e->bytes);
		memcpy(n->conf, e->data, e->bytes);
		n->conf_bytes = e->bytes;
		n->conf_index = n->applied;
		step_configured(n->step, n->applied, n->conf, n->conf_bytes);
	}
	node_check(n);
}

/* A wish for a snapshot becomes one of the sender's applied state. */
static bool build_snapshot(struct node *from, struct raft_message *m)
{
	struct raft_install_snapshot *is = &m->install_snapshot;
	struct raft_buffer buf = { from->conf, from->conf_bytes };

	is->last_index = from->applied;
	is->last_term = from->applied_term;
	is->conf_index = from->conf_index;
	EXPECT_INT(raft_configuration_decode(&buf, &is->conf), 0);
	return true;
}

static void deliver_one(void)
{
	struct parcel p = queue[queue_head++];
	struct node *to = &nodes[p.m.server_id];
	char address[8];

	if (queue_head == queue_tail)
		queue_head = queue_tail = 0;
	if (p.m.type == RAFT_INSTALL_SNAPSHOT)
		(void)build_snapshot(&nodes[p.from], &p.m);
	p.m.server_id = p.from;
	(void)snprintf(address, sizeof(address), "n%u", (unsigned)p.from);
	p.m.server_address = address;
	step_receive(to->step, &p.m, epoch);
	parcel_free(&p);
	node_check(to);
}

static void deliver(void)
{
	while (queue_head < queue_tail)
		deliver_one();
}

/* Until nothing moves any more. */
static void settle(void)
{
	uint64_t id;
	unsigned i;

	for (i = 0; i < 20; i++) {
		deliver();
		for (id = 1; id <= nodes_n; id++) {
			persist(&nodes[id]);
			apply(&nodes[id]);
		}
	}
}

static void clock_to(uint64_t ms)
{
	uint64_t id;

	for (id = 1; id <= nodes_n; id++)
		if (nodes[id].hand.now_ms < ms)
			nodes[id].hand.now_ms = ms;
}

static void fire(struct node *n)
{
	clock_to(step_timeout_ms(n->step));
	step_timeout(n->step);
	node_check(n);
}

/* Heartbeats of `n` until all have heard. */
static void beat(struct node *n)
{
	fire(n);
	settle();
	fire(n);
	settle();
}

static void elect(struct node *n)
{
	unsigned i;

	for (i = 0; i < 10 && !step_leads(n->step); i++) {
		/* The others hear of no leader either. */
		clock_to(n->hand.now_ms + 700);
		fire(n);
		settle();
	}
	EXPECT_TRUE(step_leads(n->step));
	beat(n);
}

static enum rc submit(struct node *n, uint8_t byte, uint32_t bytes)
{
	uint64_t index = 0;
	void *data = malloc(bytes);
	enum rc rc;

	memset(data, byte, bytes);
	rc = step_submit(n->step, STEP_COMMAND, data, bytes, &index);
	if (rc != RC_OK)
		free(data);
	else
		EXPECT_UINT(index, n->tail.next - 1);
	return rc;
}

static void expect_equal_logs(void)
{
	const struct entry *a;
	const struct entry *b;
	uint64_t id;
	uint64_t i;

	for (id = 2; id <= nodes_n; id++) {
		EXPECT_UINT(nodes[id].tail.next, nodes[1].tail.next);
		EXPECT_UINT(nodes[id].applied, nodes[1].applied);
		for (i = nodes[id].tail.first; i < nodes[id].tail.next; i++) {
			a = entries_get(&nodes[1].tail, i);
			b = entries_get(&nodes[id].tail, i);
			EXPECT_TRUE(a != NULL);
			EXPECT_UINT(b->term, a->term);
			EXPECT_UINT(b->type, a->type);
			EXPECT_UINT(b->bytes, a->bytes);
			EXPECT_MEM(b->data, a->data, a->bytes);
		}
	}
}

/* ---- alone ---- */

TEST(a_lone_voter_leads_at_start)
{
	struct node *n = &nodes[1];

	nodes_n = 1;
	node_open(1);
	node_found(n, 1, 2);
	EXPECT_TRUE(step_leads(n->step));
	EXPECT_TRUE(step_alone(n->step));
	EXPECT_UINT(step_term(n->step), 2);
	EXPECT_UINT(step_commit(n->step), 1);
	EXPECT_UINT(step_own_index(n->step), 0);
	EXPECT_UINT(step_leader(n->step), 1);
	EXPECT_UINT(step_voters(n->step), 1);
	EXPECT_UINT(n->ballots, 0);
	/* Nothing to wake up for. */
	EXPECT_UINT(step_timeout_ms(n->step), STEP_NEVER);

	EXPECT_RC(submit(n, 'a', 10), RC_OK);
	EXPECT_UINT(step_own_index(n->step), 2);
	EXPECT_UINT(step_last(n->step), 2);
	EXPECT_UINT(step_commit(n->step), 1);
	persist(n);
	EXPECT_UINT(step_commit(n->step), 2);
	persist(n);
	apply(n);
	EXPECT_UINT(n->applied, 2);
	node_close(n);
}

TEST(a_lone_voter_commits_its_old_log)
{
	struct node *n = &nodes[1];
	struct step_boot boot = { .term = 5,
				  .index = 7,
				  .index_term = 3,
				  .conf_index = 1,
				  .last = 10 };
	struct entry e = { .type = STEP_COMMAND };
	void *conf;
	uint64_t i;

	nodes_n = 1;
	node_open(1);
	entries_release(&n->tail);
	entries_init(&n->tail, 8);
	for (i = 8; i <= 10; i++) {
		e.term = i < 10 ? 3 : 4;
		e.data = calloc(1, 4);
		e.bytes = 4;
		EXPECT_TRUE(entries_put(&n->tail, i, &e));
	}
	(void)entries_durable(&n->tail, 0);
	conf = conf_bytes(1, &boot.conf_bytes);
	boot.conf = conf;
	n->applied = 7;
	n->term = 5;
	step_start(n->step, &boot);
	free(conf);
	EXPECT_TRUE(step_leads(n->step));
	EXPECT_UINT(step_commit(n->step), 10);
	EXPECT_UINT(step_stored(n->step), 10);
	EXPECT_UINT(step_term_at(n->step, 7), 3);
	EXPECT_UINT(step_term_at(n->step, 6), 0);
	EXPECT_UINT(step_term_at(n->step, 9), 3);
	EXPECT_UINT(step_term_at(n->step, 10), 4);
	EXPECT_UINT(step_term_at(n->step, 11), 0);
	apply(n);
	EXPECT_UINT(n->applied, 10);
	node_close(n);
}

TEST(snapshots_of_a_lone_voter)
{
	struct node *n = &nodes[1];
	unsigned i;

	nodes_n = 1;
	node_open(1);
	node_found(n, 1, 2);
	for (i = 0; i < 100; i++) {
		EXPECT_RC(submit(n, (uint8_t)i, 10), RC_OK);
		persist(n);
		apply(n);
		if (i % 10 != 9)
			continue;
		step_snapshot(n->step, n->applied - i % 3, n->conf_index,
			      n->conf, n->conf_bytes, 0);
		entries_drop(&n->tail, n->applied - i % 3);
		EXPECT_UINT(step_snapshot_index(n->step), n->applied - i % 3);
		EXPECT_UINT(step_term_at(n->step, n->applied), 2);
		EXPECT_UINT(step_last(n->step), n->applied);
	}
	/* Down to an empty log, and on. */
	EXPECT_RC(submit(n, 1, 1), RC_OK);
	persist(n);
	apply(n);
	step_snapshot(n->step, n->applied, 1, n->conf, n->conf_bytes, 0);
	EXPECT_UINT(step_last(n->step), n->applied);
	EXPECT_RC(submit(n, 1, 1), RC_OK);
	persist(n);
	EXPECT_UINT(step_commit(n->step), n->applied + 1);

	EXPECT_ABORT_SAYS(step_snapshot(n->step, n->applied, 1, n->conf,
					n->conf_bytes, 0),
			  "index > step_snapshot_index");
	EXPECT_ABORT_SAYS(step_snapshot(n->step, n->applied + 1, 1, n->conf,
					n->conf_bytes, 0),
			  "index <= st->applied");
	node_close(n);
}

TEST(time_does_not_go_back)
{
	struct node *n = &nodes[1];

	cluster_open(3);
	clock_to(5000);
	step_timeout(n->step);
	n->hand.now_ms = 10;
	step_timeout(n->step);
	EXPECT_TRUE(step_timeout_ms(n->step) > 5000);
	cluster_close();
}

/* ---- three ---- */

TEST(three_elect_and_replicate)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	EXPECT_FALSE(step_leads(n->step));
	EXPECT_TRUE(step_timeout_ms(n->step) >= 1000 + 300);
	EXPECT_RC(submit(n, 'x', 5), RC_NOT_LEADER);
	elect(n);
	EXPECT_UINT(step_leader(nodes[2].step), 1);
	EXPECT_UINT(step_leader(nodes[3].step), 1);
	EXPECT_UINT(step_voters(n->step), 3);
	EXPECT_FALSE(step_alone(n->step));
	for (i = 0; i < 1000; i++) {
		EXPECT_RC(submit(n, (uint8_t)i, 1 + i % 50), RC_OK);
		if (i % 17 == 0)
			settle();
	}
	settle();
	beat(n);
	EXPECT_UINT(n->applied, n->tail.next - 1);
	expect_equal_logs();
	cluster_close();
}

/* A leader may commit by its followers' disks, and its entries leave before its
 * own sync. */
TEST(entries_leave_before_they_are_synced)
{
	struct node *n = &nodes[1];
	uint64_t last;

	cluster_open(3);
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	last = step_last(n->step);
	deliver();
	persist(&nodes[2]);
	persist(&nodes[3]);
	deliver();
	EXPECT_UINT(step_commit(n->step), last);
	EXPECT_UINT(step_stored(n->step), last - 1);
	cluster_close();
}

TEST(a_lost_suffix_is_overwritten)
{
	struct node *n = &nodes[1];
	unsigned probes;
	unsigned i;

	cluster_open(3);
	elect(n);
	/* 500 entries that only node 1 has. */
	n->cut = true;
	for (i = 0; i < 500; i++)
		EXPECT_RC(submit(n, 'l', 8), RC_OK);
	persist(n);
	elect(&nodes[2]);
	for (i = 0; i < 600; i++)
		EXPECT_RC(submit(&nodes[2], 'w', 8), RC_OK);
	settle();
	beat(&nodes[2]);
	EXPECT_UINT(step_commit(nodes[2].step), step_last(nodes[2].step));
	/* Back: without B15 it takes a round trip per entry. */
	n->cut = false;
	sent[RAFT_APPEND_ENTRIES_RESULT] = 0;
	for (i = 0; i < 10; i++)
		beat(&nodes[2]);
	probes = sent[RAFT_APPEND_ENTRIES_RESULT];
	EXPECT_TRUE(probes < 200);
	EXPECT_FALSE(step_leads(n->step));
	expect_equal_logs();
	EXPECT_MEM(entries_get(&n->tail, 10)->data, "wwwwwwww", 8);
	cluster_close();
}

/* The write of an overwritten entry completes late: nothing is reported. */
TEST(late_writes_of_overwritten_entries)
{
	struct node *n = &nodes[1];
	uint64_t ticket;
	uint64_t stored;

	cluster_open(3);
	elect(n);
	n->cut = true;
	EXPECT_RC(submit(n, 'l', 8), RC_OK);
	EXPECT_RC(submit(n, 'l', 8), RC_OK);
	ticket = n->ticket;
	stored = step_stored(n->step);
	elect(&nodes[2]);
	EXPECT_RC(submit(&nodes[2], 'w', 8), RC_OK);
	n->cut = false;
	/* n's disk stays silent while the new entries arrive. */
	fire(&nodes[2]);
	deliver();
	fire(&nodes[2]);
	deliver();
	EXPECT_TRUE(n->ticket > ticket);
	step_persisted(n->step, entries_durable(&n->tail, ticket));
	EXPECT_TRUE(step_stored(n->step) <= stored);
	beat(&nodes[2]);
	expect_equal_logs();
	cluster_close();
}

TEST(a_follower_far_behind_gets_a_snapshot)
{
	struct node *n = &nodes[1];
	struct node *late = &nodes[3];
	uint64_t commit;
	unsigned i;

	cluster_open(3);
	want_snapshots = true;
	elect(n);
	late->cut = true;
	for (i = 0; i < 50; i++)
		EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	beat(n);
	step_snapshot(n->step, n->applied, n->conf_index, n->conf,
		      n->conf_bytes, 5);
	EXPECT_UINT(step_term_at(n->step, n->applied - 6), 0);
	EXPECT_TRUE(step_term_at(n->step, n->applied - 4) > 0);
	late->cut = false;
	/* The deposed timers of the late one must not disturb. */
	for (i = 0; i < 30 && late->installs == 0; i++) {
		fire(n);
		deliver();
	}
	EXPECT_UINT(late->installs, 1);
	EXPECT_TRUE(step_installing(late->step));
	EXPECT_UINT(late->install_index, n->applied);
	commit = step_commit(late->step);
	/* B12, B16: heartbeats and repeats change nothing. */
	for (i = 0; i < 5; i++) {
		fire(n);
		deliver();
		step_persisted(late->step, late->tail.durable);
	}
	EXPECT_UINT(late->installs, 1);
	EXPECT_UINT(step_commit(late->step), commit);
	/* The state is there. */
	entries_release(&late->tail);
	entries_init(&late->tail, late->install_index + 1);
	late->applied = late->install_index;
	step_installed(late->step);
	EXPECT_FALSE(step_installing(late->step));
	EXPECT_UINT(step_commit(late->step), late->install_index);
	EXPECT_UINT(step_snapshot_index(late->step), late->install_index);
	for (i = 0; i < 10; i++)
		EXPECT_RC(submit(n, 'b', 8), RC_OK);
	for (i = 0; i < 10; i++)
		beat(n);
	EXPECT_UINT(late->tail.next, n->tail.next);
	EXPECT_UINT(late->applied, n->applied);
	cluster_close();
}

TEST(freed_while_a_snapshot_is_installed)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	want_snapshots = true;
	elect(n);
	nodes[3].cut = true;
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	step_snapshot(n->step, n->applied, n->conf_index, n->conf,
		      n->conf_bytes, 0);
	nodes[3].cut = false;
	for (i = 0; i < 30 && nodes[3].installs == 0; i++) {
		fire(n);
		deliver();
	}
	EXPECT_UINT(nodes[3].installs, 1);
	cluster_close();
}

TEST(changes_of_members)
{
	struct node *n = &nodes[1];
	uint64_t index;
	size_t bytes;
	void *four;
	void *five;
	unsigned i;

	cluster_open(3);
	four = conf_bytes(4, &bytes);
	EXPECT_RC(step_submit(nodes[2].step, STEP_CHANGE, four, (uint32_t)bytes,
			      &index),
		  RC_NOT_LEADER);
	elect(n);
	/* Entry 1 is not of this term. */
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, four, (uint32_t)bytes,
			      &index),
		  RC_CONFLICT);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, four, (uint32_t)bytes,
			      &index),
		  RC_CONFLICT);
	settle();
	five = conf_bytes(5, &bytes);
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, five, (uint32_t)bytes,
			      &index),
		  RC_INVALID);
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, five, 12, &index),
		  RC_INVALID);
	free(five);
	free(four);
	four = conf_bytes(4, &bytes);
	/* A message with a change in the middle (guard B2): all entries reach
	 * the followers in one. */
	fire(n);
	queue_head = queue_tail = 0;
	EXPECT_RC(submit(n, 'b', 8), RC_OK);
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, four, (uint32_t)bytes,
			      &index),
		  RC_OK);
	EXPECT_RC(submit(n, 'c', 8), RC_OK);
	EXPECT_UINT(step_voters(n->step), 4);
	for (i = 0; i < 10; i++)
		beat(n);
	EXPECT_UINT(nodes[2].applied, n->applied);
	EXPECT_UINT(nodes[2].conf_index, index);
	EXPECT_UINT(step_voters(nodes[2].step), 4);
	/* It is final everywhere: another may follow. */
	four = conf_bytes(3, &bytes);
	EXPECT_RC(step_submit(n->step, STEP_CHANGE, four, (uint32_t)bytes,
			      &index),
		  RC_OK);
	for (i = 0; i < 10; i++)
		beat(n);
	EXPECT_UINT(nodes[3].conf_index, index);
	EXPECT_UINT(step_voters(nodes[3].step), 3);
	expect_equal_logs();
	cluster_close();
}

static struct raft_message stale_append(uint64_t term, uint64_t prev,
					uint64_t prev_term)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES,
				  .server_id = 3,
				  .server_address = "n3" };

	m.append_entries.term = term;
	m.append_entries.prev_log_index = prev;
	m.append_entries.prev_log_term = prev_term;
	return m;
}

/* Guard B1, on the way out. */
TEST(a_stale_leader_gets_no_acknowledgement)
{
	struct raft_message m = stale_append(1, 0, 0);
	const struct raft_append_entries_result *res;
	struct raft_entry e = { .term = 1, .type = RAFT_COMMAND };

	cluster_open(3);
	elect(&nodes[1]);
	e.batch = raft_calloc(1, 8);
	e.buf.base = e.batch;
	e.buf.len = 8;
	m.append_entries.entries = &e;
	m.append_entries.n_entries = 1;
	step_receive(nodes[2].step, &m, epoch);
	EXPECT_UINT(queue_tail - queue_head, 1);
	EXPECT_INT(queue[queue_head].m.type, RAFT_APPEND_ENTRIES_RESULT);
	res = &queue[queue_head].m.append_entries_result;
	EXPECT_UINT(res->rejected, 0);
	EXPECT_UINT(res->last_log_index, 0);
	EXPECT_UINT(res->term, step_term(nodes[2].step));
	EXPECT_UINT(step_leader(nodes[2].step), 1);
	cluster_close();
}

TEST(what_cannot_be_is_dropped)
{
	static const char trash[16] = "no configuration";
	struct raft_message good = stale_append(9, 1, 1);
	struct raft_message m;
	struct raft_entry e;
	struct node *n = &nodes[2];
	unsigned i;

	cluster_open(3);
	for (i = 0; i < 8; i++) {
		runner_context("case %u", i);
		m = good;
		e = (struct raft_entry){ .term = 9, .type = RAFT_COMMAND };
		e.batch = raft_malloc(16);
		memcpy(e.batch, trash, 16);
		e.buf.base = e.batch;
		e.buf.len = 16;
		m.append_entries.entries = &e;
		m.append_entries.n_entries = 1;
		epoch = 7;
		switch (i) {
		case 0:
			m.append_entries.version = 1;
			break;
		case 1:
			m.server_id = 2;
			break;
		case 2:
			m.server_id = 0;
			break;
		case 3:
			m.append_entries.prev_log_term = 0;
			break;
		case 4:
			e.type = RAFT_CHANGE;
			break;
		case 5:
			e.term = 10;
			break;
		case 6:
			e.term = 0;
			break;
		default:
			epoch = 0;
			break;
		}
		step_receive(n->step, &m, epoch);
		EXPECT_UINT(step_term(n->step), 1);
		EXPECT_UINT(step_last(n->step), 1);
		EXPECT_UINT(queue_tail, 0);
	}
	runner_context("%s", "");
	/* Epoch 7 was not believed together with what it brought; 8 is; 7 is
	 * old then. */
	m = stale_append(9, 1, 1);
	step_receive(n->step, &m, 8);
	EXPECT_UINT(step_term(n->step), 9);
	m = stale_append(10, 1, 1);
	step_receive(n->step, &m, 7);
	EXPECT_UINT(step_term(n->step), 9);
	cluster_close();
}

TEST(snapshots_that_cannot_be_are_dropped)
{
	struct raft_message m = { .type = RAFT_INSTALL_SNAPSHOT,
				  .server_id = 1,
				  .server_address = "n1" };
	struct node *n = &nodes[2];
	struct raft_buffer buf;
	unsigned i;

	cluster_open(3);
	elect(&nodes[1]);
	buf.base = conf_bytes(3, &buf.len);
	for (i = 0; i < 2; i++) {
		m.install_snapshot.term = i == 0 ? 1 : 50;
		m.install_snapshot.last_index = i == 0 ? 100 : 0;
		m.install_snapshot.last_term = 1;
		m.install_snapshot.conf_index = 1;
		EXPECT_INT(raft_configuration_decode(&buf,
						     &m.install_snapshot.conf),
			   0);
		step_receive(n->step, &m, epoch);
		EXPECT_UINT(n->installs, 0);
		EXPECT_FALSE(step_installing(n->step));
	}
	free(buf.base);
	cluster_close();
}

/* Guard B13. */
TEST(a_second_leader_in_the_term_ends_the_process)
{
	struct raft_message m;
	struct node *n = &nodes[1];
	uint64_t index;

	cluster_open(3);
	elect(n);
	m = stale_append(step_term(n->step), 1, 1);
	step_receive(n->step, &m, epoch);
	EXPECT_TRUE(n->hand.stopped);
	EXPECT_HAS(n->hand.why, "another leader");
	EXPECT_TRUE(step_failed(n->step));
	/* From here on nothing happens. */
	step_timeout(n->step);
	step_persisted(n->step, 100);
	EXPECT_RC(step_submit(n->step, STEP_COMMAND, &index, 8, &index),
		  RC_NOT_LEADER);
	EXPECT_UINT(step_timeout_ms(n->step), STEP_NEVER);
	step_receive(n->step, &m, epoch);
	cluster_close();
}

/* A committed entry that conflicts: the core says RAFT_SHUTDOWN. */
TEST(a_conflict_with_committed_entries_ends_the_process)
{
	struct raft_message m;
	struct node *n = &nodes[2];
	uint64_t i;

	cluster_open(3);
	elect(&nodes[1]);
	for (i = 0; i < 10; i++)
		EXPECT_RC(submit(&nodes[1], 'a', 8), RC_OK);
	settle();
	beat(&nodes[1]);
	/* Applied is 11; an entry beyond it that conflicts is no fault. */
	EXPECT_UINT(n->applied, 11);
	m = stale_append(step_term(n->step) + 1, 11, 77);
	step_receive(n->step, &m, epoch);
	EXPECT_TRUE(n->hand.stopped);
	EXPECT_HAS(n->hand.why, "receive");
	cluster_close();
}

/* Guard B9: nobody answers, and the leader's timer fires at a human pace. */
TEST(timers_do_not_spin)
{
	struct node *n = &nodes[1];
	uint64_t until;
	unsigned fired = 0;

	cluster_open(3);
	elect(n);
	nodes[2].cut = true;
	until = n->hand.now_ms + 10000;
	while (n->hand.now_ms < until) {
		fire(n);
		deliver();
		persist(&nodes[3]);
		deliver();
		fired++;
	}
	EXPECT_TRUE(step_leads(n->step));
	EXPECT_TRUE(fired >= 150);
	EXPECT_TRUE(fired <= 400);
	cluster_close();
}

TEST(a_leader_without_a_majority_steps_down)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	elect(n);
	n->cut = true;
	for (i = 0; i < 40 && step_leads(n->step); i++)
		fire(n);
	EXPECT_FALSE(step_leads(n->step));
	EXPECT_UINT(step_own_index(n->step), 0);
	/* Pre-vote: cut off, its term stays. */
	for (i = 0; i < 20; i++)
		fire(n);
	EXPECT_UINT(step_term(n->step), step_term(nodes[2].step));
	cluster_close();
}

/* The dead one has its heartbeat's time, the living one, who was sent an entry
 * in between, another: each write is committed as it comes all the same. */
TEST(writes_do_not_wait_for_heartbeats_with_one_dead)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	elect(n);
	nodes[3].cut = true;
	for (i = 0; i < 20; i++) {
		fire(n);
		settle();
		fire(n);
		settle();
		clock_to(n->hand.now_ms + 30);
		EXPECT_RC(submit(n, (uint8_t)i, 8), RC_OK);
		settle();
		runner_context("write %u", i);
		EXPECT_UINT(step_commit(n->step), step_last(n->step));
	}
	cluster_close();
}

/* ---- guards in their places ---- */

static struct raft_message request_vote(uint64_t term, bool pre)
{
	struct raft_message m = { .type = RAFT_REQUEST_VOTE,
				  .server_id = 3,
				  .server_address = "n3" };

	m.request_vote.version = 2;
	m.request_vote.term = term;
	m.request_vote.candidate_id = 3;
	m.request_vote.last_log_index = 1000;
	m.request_vote.last_log_term = term;
	m.request_vote.pre_vote = pre;
	return m;
}

static const struct raft_message *last_sent(enum raft_message_type type)
{
	EXPECT_TRUE(queue_tail > queue_head);
	EXPECT_INT(queue[queue_tail - 1].m.type, type);
	return &queue[queue_tail - 1].m;
}

TEST(b3_a_stale_rejection_does_not_starve_a_follower)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES_RESULT,
				  .server_id = 3,
				  .server_address = "n3" };
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	/* What is applied there would help it: guard B4. */
	nodes[3].lazy = true;
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	beat(n);
	/* Silence puts its progress back to probing. */
	nodes[3].cut = true;
	for (i = 0; i < 20; i++)
		beat(n);
	m.append_entries_result.version = 2;
	m.append_entries_result.term = step_term(n->step);
	m.append_entries_result.rejected = nodes[3].tail.next - 1;
	m.append_entries_result.last_log_index = nodes[3].tail.next - 2;
	step_receive(n->step, &m, epoch);
	nodes[3].cut = false;
	EXPECT_RC(submit(n, 'b', 8), RC_OK);
	for (i = 0; i < 10; i++)
		beat(n);
	nodes[3].lazy = false;
	settle();
	expect_equal_logs();
	cluster_close();
}

/* A follower whose state ends at 10, term 2. */
static void follower_at_ten(struct node *n)
{
	struct step_boot boot = { .term = 2,
				  .index = 10,
				  .index_term = 2,
				  .conf_index = 1,
				  .last = 10 };
	void *conf = conf_bytes(3, &boot.conf_bytes);

	nodes_n = 3;
	queue_head = queue_tail = 0;
	node_open(n->id);
	entries_release(&n->tail);
	entries_init(&n->tail, 11);
	n->applied = 10;
	n->term = 2;
	boot.conf = conf;
	step_start(n->step, &boot);
	free(conf);
}

static void fill_entries(struct raft_message *m, struct raft_entry *list,
			 unsigned n, uint64_t term)
{
	uint8_t *batch = raft_calloc(n, 8);
	unsigned i;

	for (i = 0; i < n; i++) {
		list[i] = (struct raft_entry){ .term = term,
					       .type = RAFT_COMMAND };
		list[i].buf.base = batch + (size_t)i * 8;
		list[i].buf.len = 8;
		list[i].batch = batch;
	}
	m->append_entries.entries = list;
	m->append_entries.n_entries = n;
}

/* ---- as bytes ---- */

static struct pack_w wire;

static struct step_seen give(struct node *to, uint64_t from,
			     const struct raft_message *m, bool full)
{
	struct step_seen seen;
	unsigned at = 0;

	pack_w_init(&wire, LINK_MESSAGE_BYTES_MAX);
	codec_write(&wire, m, &at);
	EXPECT_RC(wire.rc, RC_OK);
	EXPECT_FALSE(codec_more(m, at));
	EXPECT_RC(step_deliver(to->step, from, epoch, wire.p, wire.n, full,
			       &seen),
		  RC_OK);
	pack_w_release(&wire);
	return seen;
}

/* MI3. */
TEST(a_term_too_far_ahead_is_refused)
{
	struct node *n = &nodes[1];
	struct step_seen seen;
	struct raft_message m;
	uint64_t term;

	cluster_open(3);
	elect(n);
	term = step_term(n->step);
	m = request_vote(term + TERM_JUMP_MAX + 1, false);
	m.request_vote.candidate_id = 2;
	m.request_vote.disrupt_leader = true;
	seen = give(n, 2, &m, false);
	EXPECT_TRUE(seen.jumped);
	EXPECT_UINT(step_term(n->step), term);
	EXPECT_TRUE(step_leads(n->step));
	m.request_vote.term = term + TERM_JUMP_MAX;
	seen = give(n, 2, &m, false);
	EXPECT_FALSE(seen.jumped);
	EXPECT_UINT(step_term(n->step), term + TERM_JUMP_MAX);
	EXPECT_RC(step_deliver(n->step, 2, epoch, (const uint8_t *)"nonsense",
			       8, false, &seen),
		  RC_INVALID);
	cluster_close();
}

/* A peer without room for entries takes what else the message says. */
TEST(entries_are_not_taken_when_there_is_no_room)
{
	struct raft_entry list[2];
	struct raft_message m = stale_append(3, 10, 2);
	struct node *n = &nodes[2];
	uint8_t data[8] = { 1 };
	unsigned i;

	n->id = 2;
	follower_at_ten(n);
	for (i = 0; i < 2; i++)
		list[i] = (struct raft_entry){ .term = 3,
					       .type = RAFT_COMMAND,
					       .buf = { data, 8 } };
	m.append_entries.entries = list;
	m.append_entries.n_entries = 2;
	(void)give(n, 1, &m, true);
	EXPECT_UINT(step_last(n->step), 10);
	EXPECT_UINT(step_term(n->step), 3);
	EXPECT_UINT(step_leader(n->step), 1);
	EXPECT_UINT(last_sent(RAFT_APPEND_ENTRIES_RESULT)
			    ->append_entries_result.last_log_index,
		    10);
	(void)give(n, 1, &m, false);
	EXPECT_UINT(step_last(n->step), 12);
	EXPECT_UINT(n->tail.next, 13);
	cluster_close();
}

/* Amnesia: over one connection a rejection of what was acknowledged. */
TEST(a_peer_that_has_forgotten)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES_RESULT,
				  .server_id = 2 };
	struct raft_append_entries_result *res = &m.append_entries_result;
	struct node *n = &nodes[1];
	struct step_seen seen;
	uint64_t match;

	cluster_open(3);
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	match = step_match(n->step, 2);
	EXPECT_UINT(match, step_last(n->step));
	EXPECT_UINT(step_match(n->step, 9), 0);
	EXPECT_UINT(step_match(nodes[2].step, 1), 0);
	res->version = 2;
	res->term = step_term(n->step);
	res->rejected = match;
	res->last_log_index = match - 1;
	seen = give(n, 2, &m, false);
	EXPECT_TRUE(seen.forgot);
	EXPECT_FALSE(seen.level);
	EXPECT_UINT(step_match(n->step, 2), match);
	/* It has what it acknowledged: that is no loss. */
	res->last_log_index = match;
	seen = give(n, 2, &m, false);
	EXPECT_FALSE(seen.forgot);
	res->last_log_index = match - 1;
	/* Of what it never acknowledged it may lack anything. */
	res->rejected = match + 1;
	seen = give(n, 2, &m, false);
	EXPECT_FALSE(seen.forgot);
	/* In another term it says nothing. */
	res->rejected = match;
	res->term--;
	seen = give(n, 2, &m, false);
	EXPECT_FALSE(seen.forgot);
	res->term++;
	res->rejected = 0;
	seen = give(n, 2, &m, false);
	EXPECT_FALSE(seen.level);
	res->last_log_index = match;
	seen = give(n, 2, &m, false);
	EXPECT_TRUE(seen.level);
	cluster_close();
}

/* ---- snapshots that are staged, states that are bad ---- */

TEST(staged_snapshots)
{
	struct step_staged s = { .node_id = 1,
				 .term = 3,
				 .index = 20,
				 .index_term = 3,
				 .conf_index = 1 };
	struct node *n = &nodes[2];
	void *conf;

	n->id = 2;
	follower_at_ten(n);
	conf = conf_bytes(3, &s.conf_bytes);
	s.conf = "no configuration at all";
	EXPECT_RC(step_staged(n->step, &s), RC_CORRUPT);
	s.conf = conf;
	s.term = 1;
	s.index_term = 1;
	EXPECT_RC(step_staged(n->step, &s), RC_CONFLICT);
	EXPECT_UINT(n->installs, 0);
	s.term = 2;
	s.index = 10;
	s.index_term = 2;
	EXPECT_RC(step_staged(n->step, &s), RC_EXISTS);
	s.node_id = 2;
	EXPECT_RC(step_staged(n->step, &s), RC_CORRUPT);
	s.node_id = 1;
	s.term = 3;
	s.index = 20;
	s.index_term = 3;
	EXPECT_RC(step_staged(n->step, &s), RC_OK);
	EXPECT_UINT(n->installs, 1);
	EXPECT_UINT(step_term(n->step), 3);
	EXPECT_TRUE(step_installing(n->step));
	EXPECT_RC(step_staged(n->step, &s), RC_CONFLICT);
	step_installed(n->step);
	EXPECT_UINT(step_first(n->step), 21);
	EXPECT_UINT(step_last(n->step), 20);
	free(conf);
	cluster_close();
}

/* The log of a state that is lost: it begins behind 10, and the term there is a
 * guess. */
static void begin_without_a_state(struct node *n)
{
	struct step_boot boot = { .term = 3,
				  .index = 10,
				  .index_term = 3,
				  .conf_index = 1,
				  .last = 10,
				  .unsure = true };
	void *conf = conf_bytes(3, &boot.conf_bytes);

	nodes_n = 3;
	queue_head = queue_tail = 0;
	epoch = 1;
	node_open(2);
	entries_release(&n->tail);
	entries_init(&n->tail, 11);
	n->applied = 10;
	n->term = 3;
	boot.conf = conf;
	step_start(n->step, &boot);
	free(conf);
}

/* A leader that knows the term sends it 11. */
static void give_the_next(struct node *n)
{
	uint8_t data[8] = { 1 };
	struct raft_entry e = { .term = 3,
				.type = RAFT_COMMAND,
				.buf = { data, 8 } };
	struct raft_message m = stale_append(3, 10, 2);

	m.append_entries.entries = &e;
	m.append_entries.n_entries = 1;
	(void)give(n, 1, &m, false);
}

TEST(a_log_without_its_state)
{
	struct node *n = &nodes[2];

	begin_without_a_state(n);
	give_the_next(n);
	EXPECT_FALSE(n->hand.stopped);
	EXPECT_UINT(step_last(n->step), 11);
	/* What it applies again of a newer state is no news. */
	step_applied(n->step, 11, 3);
	step_applied(n->step, 10, 3);
	cluster_close();
}

/* The third node's vote. */
static void grant(struct node *n, bool pre_vote, uint64_t term)
{
	struct raft_message m = { .type = RAFT_REQUEST_VOTE_RESULT,
				  .server_id = 3 };

	m.request_vote_result.version = 2;
	m.request_vote_result.term = term;
	m.request_vote_result.pre_vote = pre_vote;
	m.request_vote_result.vote_granted = true;
	(void)give(n, 3, &m, false);
	persist(n);
}

static void reject(struct node *n, uint64_t rejected, uint64_t last)
{
	struct raft_message m = { .type = RAFT_APPEND_ENTRIES_RESULT,
				  .server_id = 3 };
	struct raft_append_entries_result *res = &m.append_entries_result;

	res->version = 2;
	res->term = step_term(n->step);
	res->rejected = rejected;
	res->last_log_index = last;
	(void)give(n, 3, &m, false);
}

/* Whoever has an entry there that is committed would stop. */
TEST(a_guess_is_told_to_nobody)
{
	struct node *n = &nodes[2];
	unsigned wished;
	unsigned i;

	begin_without_a_state(n);
	give_the_next(n);
	persist(n);
	clock_to(n->hand.now_ms + 700);
	fire(n);
	grant(n, true, 3);
	grant(n, false, 4);
	EXPECT_TRUE(step_leads(n->step));
	want_snapshots = true;
	wished = sent[RAFT_INSTALL_SNAPSHOT];
	i = queue_tail;
	reject(n, 11, 10);
	EXPECT_TRUE(sent[RAFT_INSTALL_SNAPSHOT] > wished);
	for (; i < queue_tail; i++)
		EXPECT_TRUE(queue[i].m.type != RAFT_APPEND_ENTRIES ||
			    queue[i].m.append_entries.prev_log_index != 10);
	want_snapshots = false;
	cluster_close();
}

/* Entries that the state contains are still there for followers. */
TEST(a_start_with_entries_below_the_state)
{
	struct step_boot boot = { .term = 2,
				  .index = 10,
				  .index_term = 2,
				  .conf_index = 1,
				  .first = 6,
				  .last = 12 };
	struct node *n = &nodes[2];
	struct entry e = { .term = 2, .type = STEP_COMMAND, .bytes = 8 };
	void *conf = conf_bytes(3, &boot.conf_bytes);
	uint64_t i;

	nodes_n = 3;
	queue_head = queue_tail = 0;
	node_open(2);
	entries_release(&n->tail);
	entries_init(&n->tail, 6);
	for (i = 6; i <= 12; i++) {
		e.data = calloc(1, 8);
		EXPECT_TRUE(entries_put(&n->tail, i, &e));
	}
	n->term = 2;
	boot.conf = conf;
	step_start(n->step, &boot);
	free(conf);
	EXPECT_UINT(step_first(n->step), 6);
	EXPECT_UINT(step_last(n->step), 12);
	EXPECT_UINT(step_commit(n->step), 10);
	EXPECT_UINT(step_stored(n->step), 12);
	EXPECT_UINT(step_term_at(n->step, 6), 2);
	EXPECT_UINT(step_term_at(n->step, 5), 0);
	EXPECT_UINT(step_voters(n->step), 3);
	EXPECT_UINT(step_member_id(n->step, 0), 1);
	EXPECT_UINT(step_member_id(n->step, 2), 3);
	EXPECT_UINT(step_member_id(n->step, 3), 0);
	EXPECT_TRUE(step_voter(n->step, 3));
	EXPECT_FALSE(step_voter(n->step, 4));
	cluster_close();
}

TEST(leadership_is_handed_over)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	elect(n);
	EXPECT_RC(step_transfer(nodes[2].step, 1), RC_NOT_LEADER);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	EXPECT_ABORT_SAYS(step_transfer(n->step, 2), "step_last");
	settle();
	EXPECT_RC(step_transfer(n->step, 2), RC_OK);
	EXPECT_UINT(step_transferee(n->step), 2);
	EXPECT_RC(step_transfer(n->step, 3), RC_NOT_LEADER);
	EXPECT_RC(submit(n, 'b', 8), RC_NOT_LEADER);
	for (i = 0; i < 5; i++)
		settle();
	EXPECT_TRUE(step_leads(nodes[2].step));
	EXPECT_FALSE(step_leads(n->step));
	EXPECT_UINT(step_leader(n->step), 2);
	cluster_close();
}

/* Elected again, with nothing to commit: there is no entry of this term yet. */
TEST(an_own_entry_is_of_the_own_term)
{
	struct node *n = &nodes[1];

	cluster_open(3);
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	EXPECT_TRUE(step_own_index(n->step) > 0);
	settle();
	beat(n);
	EXPECT_RC(step_transfer(n->step, 2), RC_OK);
	settle();
	beat(&nodes[2]);
	EXPECT_RC(step_transfer(nodes[2].step, 1), RC_OK);
	settle();
	EXPECT_TRUE(step_leads(n->step));
	EXPECT_UINT(step_own_index(n->step), 0);
	EXPECT_RC(submit(n, 'b', 8), RC_OK);
	EXPECT_UINT(step_own_index(n->step), step_last(n->step));
	cluster_close();
}

/* A follower knows no leader of a term that it has only heard of. */
TEST(a_leader_of_an_older_term_is_none)
{
	struct raft_message m = request_vote(50, false);

	cluster_open(3);
	elect(&nodes[1]);
	EXPECT_UINT(step_leader(nodes[3].step), 1);
	m.server_id = 2;
	m.request_vote.candidate_id = 2;
	m.request_vote.disrupt_leader = true;
	m.request_vote.last_log_index = 0;
	m.request_vote.last_log_term = 0;
	step_receive(nodes[3].step, &m, epoch);
	EXPECT_UINT(step_term(nodes[3].step), 50);
	EXPECT_UINT(step_leader(nodes[3].step), 0);
	cluster_close();
}

/*
 * SO1, figure 8 of the Raft paper: an entry of an old term is on a majority,
 * and a candidate without it could still be elected. It is not committed before
 * an entry of the leader's own term is. SO2: the leader's disk is slow, and the
 * followers acknowledge its own term's entry first, so that it is on no
 * majority yet.
 */
static void figure_eight(bool slow)
{
	struct node *n = &nodes[1];
	bool seen = false;
	uint64_t index;
	unsigned i;

	cluster_open(3);
	elect(n);
	beat(n);
	/* Only 1 has this one. */
	nodes[1].cut = true;
	EXPECT_RC(submit(n, 'x', 8), RC_OK);
	index = step_last(n->step);
	persist(n);
	/* 3 leads, and has another at its place. */
	elect(&nodes[3]);
	nodes[3].cut = true;
	EXPECT_RC(submit(&nodes[3], 'y', 8), RC_OK);
	persist(&nodes[3]);
	/* 1 again. One entry at a time: the old one is acknowledged first. */
	step_inflight(n->step, 1);
	nodes[2].cut = true;
	nodes[1].cut = false;
	for (i = 0; i < 20 && step_leads(n->step); i++)
		beat(n);
	nodes[2].cut = false;
	for (i = 0; i < 40 && !step_leads(n->step); i++) {
		clock_to(n->hand.now_ms + 700);
		fire(n);
		while (queue_head < queue_tail && !step_leads(n->step))
			deliver_one();
	}
	EXPECT_TRUE(step_leads(n->step));
	if (!slow)
		persist(n);
	for (i = 0; i < 100 && step_match(n->step, 2) <= index; i++) {
		if (queue_head < queue_tail)
			deliver_one();
		else
			persist(&nodes[2]);
		if (i % 10 == 9)
			fire(n);
		seen |= step_match(n->step, 2) == index;
		if (slow || step_match(n->step, 2) <= index)
			EXPECT_TRUE(step_commit(n->step) < index);
	}
	EXPECT_TRUE(seen);
	if (slow)
		persist(n);
	settle();
	EXPECT_TRUE(step_commit(n->step) > index);
	cluster_close();
}

TEST(so1_an_entry_of_an_old_term_is_not_committed)
{
	figure_eight(false);
}

TEST(so2_the_same_with_a_leader_whose_disk_is_slow)
{
	figure_eight(true);
}

TEST(b4_entries_from_below_the_state)
{
	struct raft_entry list[5];
	struct raft_message m = stale_append(2, 7, 2);
	const struct raft_append_entries_result *res;
	struct node *n = &nodes[2];

	n->id = 2;
	follower_at_ten(n);
	fill_entries(&m, list, 5, 2);
	step_receive(n->step, &m, 1);
	EXPECT_UINT(step_last(n->step), 12);
	EXPECT_UINT(n->tail.first, 11);
	EXPECT_UINT(n->tail.next, 13);
	/* All of it below: what is applied is told. */
	m = stale_append(2, 0, 0);
	fill_entries(&m, list, 3, 1);
	step_receive(n->step, &m, 1);
	EXPECT_UINT(step_last(n->step), 12);
	res = &last_sent(RAFT_APPEND_ENTRIES_RESULT)->append_entries_result;
	EXPECT_UINT(res->rejected, 0);
	EXPECT_UINT(res->last_log_index, 10);
	/* Of an older leader: refused as ever. */
	m = stale_append(1, 0, 0);
	fill_entries(&m, list, 3, 1);
	step_receive(n->step, &m, 1);
	res = &last_sent(RAFT_APPEND_ENTRIES_RESULT)->append_entries_result;
	EXPECT_UINT(res->last_log_index, 0);
	cluster_close();
}

TEST(b5_a_refused_pre_vote_tells_the_term)
{
	struct raft_message m = request_vote(2, true);
	const struct raft_request_vote_result *res;
	struct node *n = &nodes[2];

	n->id = 2;
	follower_at_ten(n);
	m.request_vote.term = 1;
	step_receive(n->step, &m, 1);
	res = &last_sent(RAFT_REQUEST_VOTE_RESULT)->request_vote_result;
	EXPECT_FALSE(res->vote_granted);
	EXPECT_UINT(res->term, 2);
	cluster_close();
}

/* An entry 1 in which a member has another role. */
static void *conf_with_role(unsigned n, unsigned member, uint8_t role,
			    size_t *bytes)
{
	uint8_t *p = conf_bytes(n, bytes);

	/* 9 of head, then 8 of id, 3 of address, 1 of role each. */
	p[9 + member * 12 - 1] = role;
	return p;
}

TEST(b7_a_standby_votes)
{
	struct raft_message m = request_vote(5, false);
	struct step_boot boot = { .term = 1, .last = 1 };
	struct entry e = { .term = 1, .type = STEP_CHANGE };
	struct node *n = &nodes[2];
	size_t bytes;

	nodes_n = 3;
	queue_head = queue_tail = 0;
	node_open(2);
	e.data = conf_with_role(3, 2, RAFT_STANDBY, &bytes);
	e.bytes = (uint32_t)bytes;
	EXPECT_TRUE(entries_put(&n->tail, 1, &e));
	(void)entries_durable(&n->tail, 0);
	n->term = 1;
	step_start(n->step, &boot);
	EXPECT_UINT(step_voters(n->step), 2);
	step_receive(n->step, &m, 1);
	EXPECT_TRUE(last_sent(RAFT_REQUEST_VOTE_RESULT)
			    ->request_vote_result.vote_granted);
	EXPECT_UINT(n->vote, 3);
	EXPECT_UINT(step_voters(n->step), 2);
	cluster_close();
}

TEST(b14_a_late_answer_moves_no_term)
{
	struct raft_message m = { .type = RAFT_REQUEST_VOTE_RESULT,
				  .server_id = 3,
				  .server_address = "n3" };

	cluster_open(3);
	m.request_vote_result.version = 2;
	m.request_vote_result.term = 9;
	m.request_vote_result.pre_vote = true;
	m.request_vote_result.vote_granted = true;
	step_receive(nodes[2].step, &m, epoch);
	EXPECT_UINT(step_term(nodes[2].step), 1);
	cluster_close();
}

TEST(b15_the_hint_of_a_conflict)
{
	struct raft_entry list[8];
	struct raft_message m = stale_append(2, 10, 2);
	const struct raft_append_entries_result *res;
	struct node *n = &nodes[2];

	n->id = 2;
	follower_at_ten(n);
	fill_entries(&m, list, 8, 2);
	step_receive(n->step, &m, 1);
	EXPECT_UINT(step_last(n->step), 18);
	m = stale_append(3, 18, 3);
	step_receive(n->step, &m, 1);
	res = &last_sent(RAFT_APPEND_ENTRIES_RESULT)->append_entries_result;
	EXPECT_UINT(res->rejected, 18);
	EXPECT_UINT(res->last_log_index, 10);
	cluster_close();
}

static enum rc change_role(struct node *n, unsigned member, uint8_t role)
{
	uint64_t index;
	size_t bytes;
	void *conf = conf_with_role(3, member, role, &bytes);
	enum rc rc;

	rc = step_submit(n->step, STEP_CHANGE, conf, (uint32_t)bytes, &index);
	if (rc != RC_OK)
		free(conf);
	return rc;
}

/* The change stands in the middle of one message: on the follower it would
 * never become final, and no change would be possible when that one leads. */
TEST(b2_a_change_in_the_middle_of_a_message)
{
	struct node *n = &nodes[1];
	unsigned i;

	cluster_open(3);
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	beat(n);
	nodes[3].cut = true;
	for (i = 0; i < 20; i++)
		beat(n);
	EXPECT_RC(submit(n, 'b', 8), RC_OK);
	EXPECT_RC(change_role(n, 2, RAFT_STANDBY), RC_OK);
	EXPECT_RC(submit(n, 'c', 8), RC_OK);
	nodes[3].cut = false;
	for (i = 0; i < 10; i++)
		beat(n);
	EXPECT_UINT(nodes[3].applied, n->applied);
	EXPECT_UINT(nodes[3].conf_index, n->conf_index);
	expect_equal_logs();
	/* Only two vote, and the leader would not: it must fall first. */
	nodes[3].cut = true;
	for (i = 0; i < 40 && step_leads(n->step); i++)
		fire(n);
	nodes[3].cut = false;
	elect(&nodes[3]);
	EXPECT_RC(submit(&nodes[3], 'd', 8), RC_OK);
	for (i = 0; i < 5; i++)
		beat(&nodes[3]);
	EXPECT_RC(change_role(&nodes[3], 2, RAFT_VOTER), RC_OK);
	for (i = 0; i < 5; i++)
		beat(&nodes[3]);
	EXPECT_UINT(step_voters(nodes[1].step), 3);
	expect_equal_logs();
	cluster_close();
}

/* A spare that once was replicated to: its last message gets older and older.
 */
TEST(b9_a_spare_does_not_make_the_timer_spin)
{
	struct node *n = &nodes[1];
	uint64_t until;
	unsigned fired = 0;
	unsigned i;

	cluster_open(3);
	elect(n);
	EXPECT_RC(submit(n, 'a', 8), RC_OK);
	settle();
	EXPECT_RC(change_role(n, 3, RAFT_SPARE), RC_OK);
	for (i = 0; i < 5; i++)
		beat(n);
	EXPECT_UINT(step_voters(n->step), 2);
	until = n->hand.now_ms + 10000;
	while (n->hand.now_ms < until && fired < 1000) {
		fire(n);
		deliver();
		fired++;
	}
	EXPECT_TRUE(fired >= 150);
	EXPECT_TRUE(fired <= 450);
	EXPECT_TRUE(step_leads(n->step));
	cluster_close();
}

/* ---- configurations ---- */

TEST(configurations)
{
	struct step_member bad[2] = { { 1, "a" }, { 1, "b" } };
	struct step_conf conf;
	size_t bytes;
	void *data = conf_bytes(1, &bytes);

	EXPECT_RC(step_conf_read(data, bytes, 1, &conf), RC_OK);
	EXPECT_UINT(conf.voters, 1);
	EXPECT_UINT(conf.members, 1);
	EXPECT_TRUE(conf.member);
	EXPECT_TRUE(conf.sole);
	EXPECT_RC(step_conf_read(data, bytes, 2, &conf), RC_OK);
	EXPECT_FALSE(conf.member);
	EXPECT_FALSE(conf.sole);
	EXPECT_RC(step_conf_read(data, 12, 1, &conf), RC_CORRUPT);
	free(data);
	data = conf_bytes(3, &bytes);
	EXPECT_RC(step_conf_read(data, bytes, 3, &conf), RC_OK);
	EXPECT_UINT(conf.voters, 3);
	EXPECT_TRUE(conf.member);
	EXPECT_FALSE(conf.sole);
	free(data);

	EXPECT_RC(step_conf_encode(bad, 2, &data, &bytes), RC_INVALID);
	bad[1].id = 0;
	EXPECT_RC(step_conf_encode(bad, 2, &data, &bytes), RC_INVALID);
	bad[1] = (struct step_member){ 2, "" };
	EXPECT_RC(step_conf_encode(bad, 2, &data, &bytes), RC_INVALID);
	bad[1].address = "a";
	EXPECT_RC(step_conf_encode(bad, 2, &data, &bytes), RC_INVALID);
	EXPECT_RC(step_conf_encode(bad, 0, &data, &bytes), RC_INVALID);
	/* Two servers with one id: readable bytes, and no configuration. */
	data = conf_bytes(2, &bytes);
	((uint8_t *)data)[9 + 12] = 1;
	EXPECT_RC(step_conf_read(data, bytes, 1, &conf), RC_CORRUPT);
	free(data);
}

/* ---- memory ---- */

static unsigned fail_in;

static void *heap_malloc(void *data, size_t n)
{
	(void)data;
	return fail_in != 0 && --fail_in == 0 ? NULL : malloc(n);
}

static void heap_free(void *data, void *p)
{
	(void)data;
	free(p);
}

static void *heap_calloc(void *data, size_t n, size_t size)
{
	(void)data;
	return fail_in != 0 && --fail_in == 0 ? NULL : calloc(n, size);
}

static void *heap_realloc(void *data, void *p, size_t n)
{
	(void)data;
	return fail_in != 0 && --fail_in == 0 ? NULL : realloc(p, n);
}

static struct raft_heap failing = {
	.malloc = heap_malloc,
	.free = heap_free,
	.calloc = heap_calloc,
	.realloc = heap_realloc,
};

/* A whole life with the n-th allocation of the core failing: it ends well, or
 * with a fail-stop. Exits 0: it stopped; 7: it never failed. */
static void life(unsigned n)
{
	struct step_config cfg = { .node_id = 1,
				   .address = "n1",
				   .election_ms = 300,
				   .heartbeat_ms = 50 };
	struct step_boot boot = { .term = 5,
				  .index = 7,
				  .index_term = 3,
				  .conf_index = 1,
				  .last = 8 };
	struct node *node = &nodes[1];
	struct entry e = { .term = 3, .type = STEP_COMMAND, .bytes = 4 };
	uint64_t index;
	void *data;

	node_open(1);
	step_free(node->step);
	node->step = NULL;
	entries_release(&node->tail);
	entries_init(&node->tail, 8);
	e.data = calloc(1, 4);
	(void)entries_put(&node->tail, 8, &e);
	(void)entries_durable(&node->tail, 0);
	boot.conf = conf_bytes(1, &boot.conf_bytes);
	cfg.env = &node->hand.env;
	raft_heap_set(&failing);
	fail_in = n;
	if (step_new(&cfg, &node->sink, &node->step) != RC_OK)
		_exit(0);
	node->term = 5;
	step_start(node->step, &boot);
	data = calloc(1, 8);
	if (step_submit(node->step, STEP_COMMAND, data, 8, &index) == RC_OK) {
		step_persisted(node->step,
			       entries_durable(&node->tail, node->ticket));
		if (!step_failed(node->step) && step_commit(node->step) != 9)
			_exit(2);
		step_applied(node->step, 9, 5);
		step_configured(node->step, 9, boot.conf, boot.conf_bytes);
		if (!step_failed(node->step))
			step_snapshot(node->step, 9, 1, boot.conf,
				      boot.conf_bytes, 0);
	}
	if (fail_in == 0 && !node->hand.stopped)
		_exit(3);
	_exit(fail_in == 0 ? 0 : 7);
}

TEST(every_allocation_of_the_core_may_fail)
{
	unsigned n;

	for (n = 1; n <= 12; n++) {
		runner_context("allocation %u", n);
		EXPECT_EXIT(life(n), 0);
	}
	runner_context("%s", "");
	EXPECT_EXIT(life(1000), 7);
}
