/*
 * What nodes say is read where it leaves: the frames of raft-glue/transport.c,
 * of their records those of Raft (raft-glue/codec.c) and of the rounds
 * (raft-glue/round.c). A breach of those formats is not looked for here; what
 * does not fit is passed over.
 */
#include "tests/sim/watch.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/crc32c.h"
#include "node/base/limits.h"
#include "node/core/bridge.h"
#include "raft-glue/le.h"
#include "raft-glue/recovery.h"
#include "tests/sim/load.h"
#include "tests/sim/memdisk.h"

#define STILL_MAX   20000u
#define SAMPLES_MAX 10u
#define LOOK_EVERY  16u
#define HASH_MS     10000u
#define HASHES      256u

#define FRAME_READY   2u
#define FRAME_RECORDS 3u
#define FRAME_HEAD    10u
#define RECORD_HEAD   6u

enum {
	RAFT_AE = 1,
	RAFT_AE_RESULT,
	RAFT_RV,
	RAFT_RV_RESULT,
	RAFT_IS,
	RAFT_TIMEOUT_NOW,
};
#define FLAG_PRE_VOTE 1u
#define FLAG_GRANTED  4u

/* What is committed at an index. */
struct commit {
	uint64_t term; /* 0: nobody has told. */
	uint32_t crc;
};

/* Somebody's entry, or his vote, or his leadership: told once, for good. */
struct fact {
	uint64_t key;  /* Never 0. */
	uint64_t prev; /* An entry's: term of the one before; 0: not told. */
	uint64_t ms;   /* When it was seen first. */
	uint32_t crc;
	uint32_t who;
};

struct facts {
	struct fact *v;
	size_t n;
	size_t cap;
};

/* One shard of one node, in its present life. */
struct view {
	uint64_t term;
	uint64_t commit;
	uint64_t applied;
	uint64_t led;  /* The last term in which it led the core. */
	uint64_t owns; /* The last term in which it owned. */
	uint64_t installs;
	uint64_t stamp;     /* Of the newest entry that it has applied. */
	struct commit *log; /* What its log has, by index, as far as seen. */
	uint64_t log_n;
	uint64_t last;
	bool begun;
	bool bad; /* Its state is. */
};

struct watched {
	struct commit *commits; /* By index. */
	uint64_t commits_n;
	uint64_t commit; /* The highest. */
	uint64_t led;    /* The highest term in which somebody led. */
	uint64_t stamp_lo;
	uint64_t stamp_hi;
	uint64_t owned;       /* The highest term in which somebody owned, */
	uint64_t owned_ns;    /* and the last now in it. */
	struct facts entries; /* By index and term. */
	struct facts leaders; /* By term. */
	struct facts votes;   /* By voter and term. */
	struct view views[NET_NODES_MAX];
	/* The highest term that a node told, over its restarts. */
	uint64_t told[NET_NODES_MAX];
};

/* The state of a shard on a node, as it says. */
struct hashed {
	struct storage_hash hash;
	bool asked;
	bool done;
	enum rc rc;
};

/* What a state was at an index, and who said so first. */
struct state_seen {
	uint64_t index;
	unsigned who;
	uint8_t hash[HASH_BYTES];
};

/* A look at a state while all goes on. */
struct peek {
	struct storage_hash hash;
	struct watch *w;
	uint32_t shard;
	unsigned node;
	bool asked;
	uint64_t due_ms;
};

struct watch {
	struct trial *r;
	struct hashed hashes[TRIAL_SHARDS][NET_NODES_MAX];
	struct peek peeks[TRIAL_SHARDS][NET_NODES_MAX];
	struct state_seen seen[TRIAL_SHARDS][HASHES];
	/* The guest's rights are gone since that version; 0: they may not be.
	 */
	uint64_t taken;
	bool taken_all;                   /* Every node has confirmed, */
	uint64_t taken_now;               /* by then. */
	uint64_t taken_by[NET_NODES_MAX]; /* A node has it since then. */
	uint64_t looks;
	unsigned samples;
	struct watched shards[TRIAL_SHARDS];
};

static struct commit *commit_in(struct commit **list, uint64_t *list_n,
				uint64_t index)
{
	uint64_t n = *list_n;

	if (index >= n) {
		n = n > 0 ? 2 * n : 256;
		while (n <= index)
			n *= 2;
		*list = sim_realloc(*list, n * sizeof(**list));
		memset(*list + *list_n, 0, (n - *list_n) * sizeof(**list));
		*list_n = n;
	}
	return &(*list)[index];
}

static struct commit *commit_at(struct watched *x, uint64_t index)
{
	return commit_in(&x->commits, &x->commits_n, index);
}

/* ----------------------------------------------------------------- facts */

static uint64_t fact_key(uint64_t a, uint64_t b)
{
	uint64_t h = (a + 1) * UINT64_C(0x9e3779b97f4a7c15) ^
		     (b + 1) * UINT64_C(0xd1342543de82ef95);

	h ^= h >> 29;
	return h != 0 ? h : 1;
}

static struct fact *fact_slot(struct fact *v, size_t cap, uint64_t key)
{
	size_t i = key & (cap - 1);

	while (v[i].key != 0 && v[i].key != key)
		i = (i + 1) & (cap - 1);
	return &v[i];
}

/* What is known under (a, b); with key 0 when nothing was. */
static struct fact *fact_at(struct facts *f, uint64_t a, uint64_t b)
{
	struct fact *wider;
	struct fact *at;
	size_t cap;
	size_t i;

	if (2 * f->n >= f->cap) {
		cap = f->cap > 0 ? 2 * f->cap : 256;
		wider = sim_alloc(cap * sizeof(*wider));
		for (i = 0; i < f->cap; i++)
			if (f->v[i].key != 0)
				*fact_slot(wider, cap, f->v[i].key) = f->v[i];
		free(f->v);
		f->v = wider;
		f->cap = cap;
	}
	at = fact_slot(f->v, f->cap, fact_key(a, b));
	if (at->key == 0)
		f->n++;
	return at;
}

/* --------------------------------------------------------------- messages */

static void told_term(struct watch *w, unsigned from, uint32_t s, uint64_t term)
{
	uint64_t *told = &w->shards[s].told[from];

	if (term > *told)
		*told = term;
}

/* I12: from a log that is not whole, or a disk that is another. */
static void check_voice(struct watch *w, unsigned from, uint32_t s,
			const char *what)
{
	const struct machine *m = &w->r->machines[from];
	struct shard_view v;

	shard_view(bridge_shard(core_bridge(m->core, s)), &v);
	if (v.health == SHARD_LOG_BAD)
		trial_breach(w->r, "I12",
			     "n%u sends %s for shard %u, and its log is not "
			     "whole",
			     from + 1, what, s);
}

static void saw_vote(struct watch *w, unsigned from, unsigned to, uint32_t s,
		     uint64_t term)
{
	struct fact *f = fact_at(&w->shards[s].votes, from, term);

	check_voice(w, from, s, "a vote");
	if (f->key != 0 && f->who != to)
		trial_breach(w->r, "I12",
			     "n%u votes for n%u in term %" PRIu64
			     " of shard %u, and voted for n%u in it",
			     from + 1, to + 1, term, s, f->who + 1);
	f->key = fact_key(from, term);
	f->who = to;
}

/* I5 */
static void saw_entry(struct watch *w, unsigned node, uint32_t s,
		      uint64_t index, uint64_t term, uint64_t prev,
		      uint32_t crc)
{
	struct fact *f = fact_at(&w->shards[s].entries, index, term);

	if (f->key == 0) {
		*f = (struct fact){ .key = fact_key(index, term),
				    .prev = prev,
				    .ms = trial_now(w->r),
				    .crc = crc };
		return;
	}
	if (f->prev == 0)
		f->prev = prev;
	if (f->crc != crc || (prev != 0 && f->prev != prev))
		trial_breach(w->r, "I5",
			     "n%u has another entry %" PRIu64
			     " of term %" PRIu64 " of shard %u",
			     node + 1, index, term, s);
}

static void saw_entries(struct watch *w, unsigned from, uint32_t s,
			const uint8_t *p, size_t n)
{
	uint64_t index;
	uint64_t prev;
	unsigned count;
	size_t at = 40;

	if (n < 40)
		return;
	count = le_get16(p + 2);
	index = le_get64(p + 16);
	prev = le_get64(p + 24);
	while (count-- > 0 && at + 16 <= n) {
		uint64_t term = le_get64(p + at);
		uint32_t bytes = le_get32(p + at + 8);
		uint32_t crc;

		index++;
		if (at + 16 + bytes > n)
			return;
		crc = crc32c((uint32_t)p[at + 12], p + at + 16, bytes);
		saw_entry(w, from, s, index, term, prev, crc);
		prev = term;
		at += 16 + bytes;
	}
}

static void saw_raft(struct watch *w, unsigned from, unsigned to, uint32_t s,
		     const uint8_t *p, size_t n)
{
	uint64_t term;
	unsigned flags;

	if (n < 16 || s >= w->r->swarm.shards)
		return;
	flags = le_get16(p + 2);
	term = le_get64(p + 8);
	switch (p[0]) {
	case RAFT_AE:
		told_term(w, from, s, term);
		saw_entries(w, from, s, p, n);
		return;
	case RAFT_AE_RESULT:
		told_term(w, from, s, term);
		if (n >= 32 && le_get64(p + 16) == 0 && le_get64(p + 24) > 0)
			check_voice(w, from, s, "an acknowledgement");
		return;
	case RAFT_RV:
		if ((flags & FLAG_PRE_VOTE) == 0)
			told_term(w, from, s, term);
		return;
	case RAFT_RV_RESULT:
		if ((flags & FLAG_PRE_VOTE) != 0)
			return;
		told_term(w, from, s, term);
		if ((flags & FLAG_GRANTED) != 0)
			saw_vote(w, from, to, s, term);
		return;
	default:
		return;
	}
}

static void saw_round(struct watch *w, unsigned from, const uint8_t *p,
		      size_t n)
{
	unsigned count;
	unsigned i;

	if (n < 10 || p[0] != 2)
		return;
	count = p[1];
	for (i = 0; i < count && 10 + 2 * (i + 1) <= n; i++)
		if (p[10 + 2 * i + 1] == 1 && p[10 + 2 * i] < TRIAL_SHARDS)
			check_voice(w, from, p[10 + 2 * i], "a confirmation");
}

static void saw_record(struct watch *w, unsigned from, unsigned to,
		       unsigned channel, uint32_t shard, const uint8_t *p,
		       size_t n)
{
	if (channel == CHANNEL_RAFT)
		saw_raft(w, from, to, shard, p, n);
	else if (channel == CHANNEL_ROUND)
		saw_round(w, from, p, n);
}

/* It goes to who runs now, not to who ran before. */
static bool is_of_now(struct watch *w, unsigned from, unsigned to,
		      enum link_kind kind)
{
	struct link *l = net_link(w->r->net, from, kind);
	const struct machine *m = &w->r->machines[to];

	return m->state == MACHINE_UP && l->ops->epoch(l, to + 1) > m->serial;
}

void watch_message(struct watch *w, unsigned from, unsigned to,
		   enum link_kind kind, const uint8_t *p, size_t n)
{
	struct trial *r = w->r;
	size_t at = FRAME_HEAD;
	uint32_t bytes;

	if (n < FRAME_HEAD || r->machines[from].core == NULL)
		return;
	if (kind == LINK_BULK)
		r->tally.forwards++;
	/* Nobody may speak with a disk that he does not know. */
	if (p[1] == FRAME_READY && r->machines[to].foreign &&
	    !r->machines[from].foreign && is_of_now(w, from, to, kind)) {
		trial_breach(r, "I12",
			     "n%u takes n%u for a member, and its disk is "
			     "another",
			     from + 1, to + 1);
		return;
	}
	if (p[1] != FRAME_RECORDS)
		return;
	while (at + RECORD_HEAD <= n) {
		bytes = le_get32(p + at);
		if (at + RECORD_HEAD + bytes > n)
			return;
		saw_record(w, from, to, p[at + 4], p[at + 5],
			   p + at + RECORD_HEAD, bytes);
		at += RECORD_HEAD + bytes;
	}
}

/* ------------------------------------------------------------ what is durable
 */

/* Is the entry on the node's disk, whatever happens now? */
static bool is_on_disk(struct watch *w, unsigned node, uint32_t s,
		       uint64_t index, uint64_t term)
{
	struct trial *r = w->r;
	struct log_config cfg = { .shards = r->swarm.shards,
				  .segment_bytes = TRIAL_SEGMENT,
				  .bytes_max = r->swarm.core.log_bytes_max,
				  .node_id = node + 1 };
	struct recovery *rec = sim_alloc(sizeof(*rec));
	struct recovered_shard *x = &rec->shard[s];
	const struct machine *m = &r->machines[node];
	bool found = false;

	memcpy(cfg.cluster_id, r->cluster_id, ID_BYTES);
	if (recovery_read(rec, world_durable(r->w, node), &cfg, NULL, NULL,
			  NULL, NULL, NULL) == RC_OK) {
		found = x->base >= index;
		if (index > x->floor && index - x->floor - 1 < x->n) {
			const struct recovered_entry *e =
				&x->of[index - x->floor - 1];

			found = found || (e->here && e->term == term);
		}
	}
	recovery_release(rec);
	free(rec);
	/* Or in the state, and so recycled. */
	if (!found && m->state == MACHINE_UP && m->core != NULL)
		found = storage_checkpointed(bridge_storage(
				core_bridge(m->core, s))) >= index;
	return found;
}

/* I4. Of a sick disk nobody knows. */
static void sample(struct watch *w, uint32_t s, uint64_t index, uint64_t term)
{
	struct trial *r = w->r;
	unsigned have = 0;
	unsigned i;

	w->samples++;
	r->tally.samples++;
	for (i = 0; i < r->swarm.nodes; i++)
		have += r->machines[i].sick || r->machines[i].foreign ||
			is_on_disk(w, i, s, index, term);
	if (have < r->swarm.nodes / 2 + 1)
		trial_breach(r, "I4",
			     "entry %" PRIu64 " of term %" PRIu64
			     " of shard %u is committed and on the disks of %u "
			     "of %u nodes",
			     index, term, s, have, r->swarm.nodes);
}

/* ------------------------------------------------------------ after an event
 */

/* I2 */
static void saw_commit(struct watch *w, unsigned node, uint32_t s,
		       const struct view *v, uint64_t from, uint64_t to)
{
	struct watched *x = &w->shards[s];
	struct trial *r = w->r;
	const struct commit *mine;
	struct commit *c;
	uint64_t index;

	for (index = from; index <= to && index < v->log_n; index++) {
		mine = &v->log[index];
		if (mine->term == 0)
			continue;
		c = commit_at(x, index);
		if (c->term != 0 &&
		    (c->term != mine->term || c->crc != mine->crc)) {
			trial_breach(r, "I2",
				     "entry %" PRIu64
				     " of shard %u was committed in term "
				     "%" PRIu64 ", on n%u it is one of term "
				     "%" PRIu64,
				     index, s, c->term, node + 1, mine->term);
			return;
		}
		*c = *mine;
	}
	if (to <= x->commit)
		return;
	x->commit = to;
	c = commit_at(x, to);
	/* The first is every founder's own. */
	if (to > 1 && c->term != 0 && w->samples < SAMPLES_MAX && r->chaos &&
	    r->machines[node].state == MACHINE_UP && trial_random(r, 64) == 0)
		sample(w, s, to, c->term);
}

/* I1, I6: it leads the core. */
static void saw_leader(struct watch *w, unsigned node, uint32_t s,
		       const struct shard *sh, uint64_t term)
{
	struct watched *x = &w->shards[s];
	struct fact *f = fact_at(&x->leaders, 0, term);
	const struct commit *c;
	struct log_entry e;

	if (f->key != 0 && f->who != node)
		trial_breach(w->r, "I1",
			     "n%u and n%u lead shard %u in term %" PRIu64,
			     f->who + 1, node + 1, s, term);
	f->key = fact_key(0, term);
	f->who = node;
	if (term < x->led)
		return;
	x->led = term;
	c = commit_at(x, x->commit);
	if (shard_last_index(sh) < x->commit ||
	    (c->term != 0 && shard_look(sh, x->commit, &e) &&
	     e.term != c->term))
		trial_breach(w->r, "I6",
			     "n%u leads shard %u in term %" PRIu64
			     " without entry %" PRIu64 ", which is committed",
			     node + 1, s, term, x->commit);
}

static void check_storage(struct watch *w, unsigned node, uint32_t s,
			  struct bridge *b)
{
	struct storage *st = bridge_storage(b);
	struct watched *x = &w->shards[s];
	struct view *v = &x->views[node];
	uint64_t stamp = storage_stamp(st);
	uint64_t now = bridge_now_ns(b);

	if (stamp > x->stamp_lo)
		x->stamp_lo = stamp;
	if (stamp > x->stamp_hi)
		x->stamp_hi = stamp;
	if (now > x->stamp_hi)
		x->stamp_hi = now;
	if (stamp < v->stamp)
		trial_breach(w->r, "D8",
			     "n%u, shard %u: an entry of %" PRIu64
			     " comes behind one of %" PRIu64,
			     node + 1, s, stamp, v->stamp);
	v->stamp = stamp;
	if (now != 0 && now < stamp)
		trial_breach(w->r, "now-after-F",
			     "n%u, shard %u: now %" PRIu64
			     ", committed %" PRIu64,
			     node + 1, s, now, stamp);
	if (storage_stored(st) > storage_applied(st) ||
	    storage_checkpointed(st) > storage_stored(st))
		trial_breach(w->r, "I3",
			     "n%u, shard %u: %" PRIu64 " checkpointed, %" PRIu64
			     " stored, %" PRIu64 " applied",
			     node + 1, s, storage_checkpointed(st),
			     storage_stored(st), storage_applied(st));
}

/* A copy in place of a bad state may end before that did: what follows is in
 * the log, and is applied again. */
static void saw_rebuild(const struct shard *sh, struct view *v)
{
	struct shard_view now;

	shard_view(sh, &now);
	if (v->bad && now.health == SHARD_WHOLE) {
		v->applied = 0;
		v->stamp = 0;
	}
	v->bad = now.health == SHARD_STATE_BAD;
}

/* I3 */
static void check_indexes(struct watch *w, unsigned node, uint32_t s,
			  const struct shard *sh, struct view *v)
{
	uint64_t term = shard_term(sh);
	uint64_t commit = shard_commit_index(sh);
	uint64_t applied = shard_applied_index(sh);

	if (term < v->term || commit < v->commit || applied < v->applied)
		trial_breach(w->r, "I3",
			     "n%u, shard %u: back to term %" PRIu64
			     ", commit %" PRIu64 ", applied %" PRIu64
			     " from %" PRIu64 ", %" PRIu64 ", %" PRIu64,
			     node + 1, s, term, commit, applied, v->term,
			     v->commit, v->applied);
	if (applied > commit || applied > shard_durable_index(sh))
		trial_breach(w->r, "I3",
			     "n%u, shard %u: applied %" PRIu64
			     ", committed %" PRIu64 ", durable %" PRIu64,
			     node + 1, s, applied, commit,
			     shard_durable_index(sh));
	v->term = term;
	v->applied = applied;
}

/* A term that it told in an earlier life. */
static void check_memory(struct watch *w, unsigned node, uint32_t s,
			 const struct shard *sh, struct view *v)
{
	const struct machine *m = &w->r->machines[node];

	v->begun = true;
	if (!m->sick && !m->foreign && shard_term(sh) < w->shards[s].told[node])
		trial_breach(w->r, "I3",
			     "n%u begins shard %u in term %" PRIu64
			     ", and told its peers of term %" PRIu64,
			     node + 1, s, shard_term(sh),
			     w->shards[s].told[node]);
}

/* What its log has now; below what was seen before it is the same. */
static void look_at_log(struct watch *w, unsigned node, uint32_t s,
			const struct shard *sh, struct view *v)
{
	uint64_t last = shard_last_index(sh);
	uint64_t index;
	struct log_entry e;
	struct log_entry before = { .term = 0 };
	struct commit *c;

	for (index = last; index > 0 && shard_look(sh, index, &e); index--) {
		c = commit_in(&v->log, &v->log_n, index);
		if (index <= v->last && c->term == e.term)
			break;
		c->term = e.term;
		c->crc = crc32c((uint32_t)e.type, e.data, e.bytes);
		before.term = 0;
		if (index > 1)
			(void)shard_look(sh, index - 1, &before);
		saw_entry(w, node, s, index, e.term, before.term, c->crc);
	}
	v->last = last;
}

/* A snapshot took the place of its log. */
static void look_for_install(const struct shard *sh, struct view *v)
{
	struct shard_stats stats;

	shard_stats(sh, &stats);
	if (stats.installs == v->installs)
		return;
	v->installs = stats.installs;
	memset(v->log, 0, v->log_n * sizeof(*v->log));
	v->last = 0;
}

/* I11, as the nodes see it themselves: no state differs, whatever happens. */
static void check_compares(struct watch *w, unsigned node, uint32_t s,
			   const struct bridge *b)
{
	struct compare_stats stats;

	bridge_compares(b, &stats);
	if (stats.differences + stats.undecided + stats.refused > 0)
		trial_breach(w->r, "I11",
			     "n%u finds that states of shard %u differ: "
			     "%" PRIu64 " from a majority, %" PRIu64
			     " times without one, %" PRIu64 " copies",
			     node + 1, s, stats.differences, stats.undecided,
			     stats.refused);
}

/* An owner's now in its term. Of one that is none any more and does not know it
 * nothing is answered: its clock does not count. */
static void saw_now(struct watch *w, uint32_t s, uint64_t term, uint64_t now)
{
	struct watched *x = &w->shards[s];

	if (now == 0 || term < x->owned)
		return;
	if (term > x->owned && now < x->owned_ns)
		load_set_back(w->r->load, s, x->owned_ns, now);
	x->owned = term;
	x->owned_ns = now;
}

static void look_at_shard(struct watch *w, struct machine *m, uint32_t s)
{
	struct bridge *b = core_bridge(m->core, s);
	struct watched *x = &w->shards[s];
	struct view *v = &x->views[m->n];
	struct shard *sh;
	uint64_t commit;
	uint64_t term;

	if (b == NULL || bridge_shard(b) == NULL)
		return;
	sh = bridge_shard(b);
	if (!v->begun && shard_term(sh) > 0)
		check_memory(w, m->n, s, sh, v);
	saw_rebuild(sh, v);
	check_indexes(w, m->n, s, sh, v);
	check_storage(w, m->n, s, b);
	check_compares(w, m->n, s, b);
	commit = shard_commit_index(sh);
	if (commit > v->commit && v->log_n > 0)
		look_for_install(sh, v);
	look_at_log(w, m->n, s, sh, v);
	if (commit > v->commit)
		saw_commit(w, m->n, s, v, v->commit + 1, commit);
	v->commit = commit;
	if (shard_leader(sh) == m->n + 1 && shard_term(sh) != v->led) {
		v->led = shard_term(sh);
		saw_leader(w, m->n, s, sh, v->led);
	}
	if (shard_leads(sh, &term) && term != v->owns) {
		v->owns = term;
		/* Whatever was committed before it owned was before its now. */
		if (term >= x->led && bridge_now_ns(b) != 0 &&
		    bridge_now_ns(b) < x->stamp_lo)
			trial_breach(w->r, "D8",
				     "n%u owns shard %u at %" PRIu64
				     ", committed is %" PRIu64,
				     m->n + 1, s, bridge_now_ns(b),
				     x->stamp_lo);
		w->r->tally.elections++;
		load_owner(w->r->load, s, m->n, term);
	}
	if (shard_leads(sh, &term))
		saw_now(w, s, term, bridge_now_ns(b));
}

/* Whose disk neither lies nor is another has nothing to rebuild. */
static void check_whole(struct watch *w, const struct machine *m)
{
	struct shard_view v;
	uint32_t s;

	if (m->sick || m->foreign || m->fresh)
		return;
	for (s = 0; s < w->r->swarm.shards; s++) {
		if (core_bridge(m->core, s) == NULL)
			continue;
		shard_view(bridge_shard(core_bridge(m->core, s)), &v);
		if (v.health == SHARD_LOG_BAD || v.health == SHARD_STATE_BAD)
			trial_breach(w->r, "whole",
				     "n%u finds shard %u damaged: %s", m->n + 1,
				     s, v.why);
	}
}

/* I11, at whatever index it happens to be. */
static void peek_done(struct storage_hash *h, enum rc rc)
{
	struct peek *p = CONTAINER_OF(h, struct peek, hash);
	struct watch *w = p->w;
	struct state_seen *x = &w->seen[p->shard][h->index % HASHES];

	p->asked = false;
	/* Before its first entry a state may not be made yet. */
	if (rc != RC_OK || h->index == 0 || w->r->machines[p->node].sick)
		return;
	if (x->index != h->index) {
		x->index = h->index;
		x->who = p->node;
		memcpy(x->hash, h->hash, HASH_BYTES);
		return;
	}
	w->r->tally.equal++;
	if (memcmp(x->hash, h->hash, HASH_BYTES) != 0)
		trial_breach(w->r, "I11",
			     "shard %u at index %" PRIu64
			     " of n%u is not what it was on n%u",
			     p->shard, h->index, p->node + 1, x->who + 1);
}

static void peek_at(struct watch *w, struct machine *m, uint32_t s)
{
	struct peek *p = &w->peeks[s][m->n];
	struct shard_view v;

	if (p->asked || p->due_ms > trial_now(w->r) ||
	    core_bridge(m->core, s) == NULL)
		return;
	p->due_ms = trial_now(w->r) + 1 +
		    trial_random(w->r, 2 * w->r->swarm.hash_ms);
	shard_view(bridge_shard(core_bridge(m->core, s)), &v);
	if (v.health != SHARD_WHOLE || core_is_closing(m->core))
		return;
	p->hash.done = peek_done;
	p->w = w;
	p->shard = s;
	p->node = m->n;
	p->asked = true;
	storage_hash_at(bridge_storage(core_bridge(m->core, s)), &p->hash);
}

/* D10: which directory does it decide by? */
static void look_at_rights(struct watch *w, const struct machine *m)
{
	if (w->taken != 0 && w->taken_by[m->n] == 0 && !m->foreign &&
	    !m->fresh && directory_version(m->directory) >= w->taken)
		w->taken_by[m->n] = w->r->now;
}

void watch_taken(struct watch *w, uint64_t version, bool all)
{
	w->taken = version;
	w->taken_all = all;
	w->taken_now = w->r->now;
}

void watch_given(struct watch *w)
{
	w->taken = 0;
	w->taken_all = false;
	memset(w->taken_by, 0, sizeof(w->taken_by));
}

bool watch_refuses(const struct watch *w, uint64_t begun)
{
	unsigned have = 0;
	unsigned i;

	if (w->taken == 0)
		return false;
	for (i = 0; i < w->r->swarm.nodes; i++)
		have += w->taken_by[i] != 0 && w->taken_by[i] < begun;
	return have > w->r->swarm.nodes / 2 ||
	       (w->taken_all && w->taken_now < begun);
}

/* I13 */
static void check_bounds(struct watch *w, struct machine *m)
{
	struct core_stats stats;

	core_stats(m->core, &stats);
	if (stats.calls_open > w->r->swarm.core.calls_max)
		trial_breach(w->r, "I13",
			     "n%u has %" PRIu64 " calls open, %u may be",
			     m->n + 1, stats.calls_open,
			     w->r->swarm.core.calls_max);
}

void watch_node(struct watch *w, unsigned node)
{
	struct machine *m = &w->r->machines[node];
	uint32_t s;

	for (s = 0; s < w->r->swarm.shards; s++)
		look_at_shard(w, m, s);
	if (world_still(w->r->w) > STILL_MAX)
		trial_breach(w->r, "I16",
			     "%" PRIu64 " events, and no time passes",
			     world_still(w->r->w));
	if (m->state != MACHINE_UP)
		return;
	look_at_rights(w, m);
	if (++w->looks % LOOK_EVERY != 0)
		return;
	check_bounds(w, m);
	check_whole(w, m);
	for (s = 0;
	     w->r->chaos && w->r->swarm.hash_ms > 0 && s < w->r->swarm.shards;
	     s++)
		peek_at(w, m, s);
}

void watch_booted(struct watch *w, unsigned node)
{
	uint32_t s;

	for (s = 0; s < w->r->swarm.shards; s++) {
		free(w->shards[s].views[node].log);
		w->shards[s].views[node] = (struct view){ .term = 0 };
		w->peeks[s][node].asked = false;
	}
	w->taken_by[node] = 0;
}

void watch_ended(struct watch *w, unsigned node)
{
	struct machine *m = &w->r->machines[node];
	struct shard_stats stats;
	uint32_t s;

	if (m->state != MACHINE_UP)
		return;
	for (s = 0; s < w->r->swarm.shards; s++) {
		if (core_bridge(m->core, s) == NULL)
			continue;
		shard_stats(bridge_shard(core_bridge(m->core, s)), &stats);
		w->r->tally.installs += stats.installs;
		w->r->tally.exports += stats.exports;
	}
}

/* ----------------------------------------------------------- what load asks */

uint64_t watch_stamp_lo(const struct watch *w, uint32_t shard)
{
	return w->shards[shard].stamp_lo;
}

uint64_t watch_stamp_hi(const struct watch *w, uint32_t shard)
{
	return w->shards[shard].stamp_hi;
}

uint64_t watch_commit(const struct watch *w, uint32_t shard)
{
	return w->shards[shard].commit;
}

uint64_t watch_tail_ms(struct watch *w, uint32_t shard, uint64_t term)
{
	struct watched *x = &w->shards[shard];
	uint64_t index;

	for (index = x->commit; index > 0; index--) {
		const struct commit *c = commit_at(x, index);

		if (c->term != 0 && c->term < term)
			return fact_at(&x->entries, index, c->term)->ms;
	}
	return 0;
}

bool watch_settled(struct watch *w, uint32_t shard, struct watch_fence *fence)
{
	struct watched *x = &w->shards[shard];
	const struct machine *m;
	const struct shard *sh;
	unsigned i;

	/* What exists now lies at or below the highest index in a log, and is
	 * of no later term than the highest; what is committed beyond, in that
	 * term or a later one, came later, and decides about all of it. */
	for (i = 0; !fence->set && i < w->r->swarm.nodes; i++) {
		m = &w->r->machines[i];
		if (m->state != MACHINE_UP)
			continue;
		sh = bridge_shard(core_bridge(m->core, shard));
		if (shard_term(sh) > fence->term)
			fence->term = shard_term(sh);
		if (shard_last_index(sh) > fence->index)
			fence->index = shard_last_index(sh);
	}
	fence->set = true;
	if (x->commit <= fence->index)
		return false;
	/* One that nobody could look at is as good as none. */
	return commit_at(x, x->commit)->term >= fence->term;
}

static void hash_done(struct storage_hash *h, enum rc rc)
{
	struct hashed *x = CONTAINER_OF(h, struct hashed, hash);

	x->rc = rc;
	x->done = true;
}

/* I11 */
static void compare(struct watch *w, uint32_t s)
{
	const struct hashed *first = NULL;
	const struct hashed *x;
	unsigned i;

	for (i = 0; i < w->r->swarm.nodes; i++) {
		x = &w->hashes[s][i];
		if (!x->asked || x->rc != RC_OK)
			continue;
		w->r->tally.equal++;
		if (first == NULL) {
			first = x;
			continue;
		}
		if (x->hash.index != first->hash.index ||
		    memcmp(x->hash.hash, first->hash.hash, HASH_BYTES) != 0)
			trial_breach(w->r, "I11",
				     "shard %u at index %" PRIu64
				     " of n%u is not what it is at %" PRIu64
				     " of another",
				     s, x->hash.index, i + 1,
				     first->hash.index);
	}
}

static bool all_hashed(const struct watch *w)
{
	uint32_t s;
	unsigned i;

	for (s = 0; s < TRIAL_SHARDS; s++)
		for (i = 0; i < NET_NODES_MAX; i++)
			if (w->hashes[s][i].asked && !w->hashes[s][i].done)
				return false;
	return true;
}

void watch_level(struct watch *w)
{
	struct trial *r = w->r;
	struct machine *m;
	uint64_t end;
	uint32_t s;
	unsigned i;

	memset(w->hashes, 0, sizeof(w->hashes));
	for (i = 0; i < r->swarm.nodes; i++) {
		m = &r->machines[i];
		if (m->state != MACHINE_UP)
			continue;
		for (s = 0; s < r->swarm.shards; s++) {
			struct hashed *x = &w->hashes[s][i];
			struct shard_view v;

			shard_view(bridge_shard(core_bridge(m->core, s)), &v);
			if (v.health != SHARD_WHOLE)
				continue;
			x->hash.done = hash_done;
			x->asked = true;
			storage_hash_at(bridge_storage(core_bridge(m->core, s)),
					&x->hash);
		}
	}
	end = trial_now(r) + HASH_MS;
	while (!all_hashed(w) && trial_now(r) < end)
		if (!trial_for(r, 1))
			return;
	for (s = 0; s < r->swarm.shards; s++) {
		for (i = 0; i < r->swarm.nodes; i++)
			if (w->hashes[s][i].asked && !w->hashes[s][i].done)
				trial_breach(r, "I11",
					     "n%u does not hash shard %u",
					     i + 1, s);
		compare(w, s);
	}
}

struct watch *watch_new(struct trial *r)
{
	struct watch *w = sim_alloc(sizeof(*w));

	PRE(r->swarm.shards <= TRIAL_SHARDS);
	w->r = r;
	return w;
}

void watch_free(struct watch *w)
{
	uint32_t s;
	unsigned i;

	for (s = 0; s < TRIAL_SHARDS; s++) {
		for (i = 0; i < NET_NODES_MAX; i++)
			free(w->shards[s].views[i].log);
		free(w->shards[s].commits);
		free(w->shards[s].entries.v);
		free(w->shards[s].leaders.v);
		free(w->shards[s].votes.v);
	}
	free(w);
}
