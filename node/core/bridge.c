#include "node/core/bridge.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/core/internal.h"

#define BRIDGE_MAGIC 0x42524447u

/* A checkpoint is made when this much was applied since the last one, whether
 * or not the log asks: SQLite's WAL and the next start's replay stay short. */
#define CHECKPOINT_BYTES (64u << 20)

/* How long objects have to close what they may spend from memory before a
 * hand-over, and how often it is looked after. */
#define HAND_OVER_SETTLE_MS 50u
#define HAND_OVER_LOOK_MS   2u

/* A copy is made at the index of a scrub, so that other voters have a hash of
 * it. Where none can be committed, that is how long it is waited for. */
#define EXPORT_WAIT_MS 500u

/* Alone a proof is over in its turn. */
#define PROOFS_AT_FIRST 4u

/* The most that precedes the units in an entry. */
#define ENTRY_HEAD_BYTES 64u

/* Units that will be one entry, in order. */
struct chunk {
	TAILQ_ENTRY(chunk) link;
	struct pack_w units;
	uint32_t units_n;
	uint64_t last_mark;
	uint64_t stamp_ns; /* Of its entry, once collected. */
	bool scrub;        /* No units: a scrub entry. */
};
TAILQ_HEAD(chunks, chunk);

/* An entry on its way: which mark it ends with. */
struct passage {
	uint64_t index;
	uint64_t mark;
	uint64_t stamp_ns;
};

/* First in, first out, on a power of two of slots. */
struct passages {
	struct passage *slots;
	uint32_t cap;
	uint64_t head; /* Next to be stored. */
	uint64_t mid;  /* Next to be committed; head <= mid <= tail. */
	uint64_t tail;
};

/* One leadership round for all events of a turn. */
struct proof {
	struct round req;             /* First: the callback casts back. */
	STAILQ_ENTRY(proof) link;     /* Among the free ones. */
	STAILQ_ENTRY(proof) all_link; /* Among all, for the end. */
	struct bridge *bridge;
	uint64_t ticket;
	uint64_t epoch;
};
STAILQ_HEAD(proofs, proof);

struct bridge {
	uint32_t magic;
	struct app app;
	struct host host;
	struct storage_listener stored;
	struct core *core;
	struct env *env;
	struct shard *shard;
	struct space *space;
	struct storage *storage;
	struct storage_state state;
	struct rounds *rounds;
	struct bridge_config cfg;

	uint64_t epoch; /* Our term while we own the shard, else 0. */
	uint64_t led;   /* The shard leads in this term, else 0. */
	struct stamp stamp;
	uint64_t committed_stamp;

	struct chunks chunks; /* Collected by the shard from the front. */
	struct chunks sent;   /* Collected, waiting for submitted/refused. */
	struct chunks spare;  /* Empty ones, kept for their memory. */
	/* Gathers what may wait for others: all shards of a node let go in the
	 * same turn. */
	struct env_timer gather_timer;
	uint64_t next_mark;
	struct passages passages;

	struct proof *open; /* Joinable: its round has not begun. */
	struct proofs proofs_free;
	struct proofs proofs_all;
	struct env_task seal_proof;
	struct env_task close_step; /* Nothing is left to be collected. */
	bool closing;
	bool shard_closing;
	uint64_t next_ticket;

	uint64_t applied_bytes; /* Since the last checkpoint. */

	/* A hand-over: first what may be spent from memory is closed. */
	struct env_timer hand_timer;
	uint64_t hand_to;
	uint64_t hand_until_ms; /* Of what is going on now. */
	bool settling;
	bool handing; /* The shard was asked to. */

	struct storage_scrub scrub;
	bool scrubbing;

	/* Replicas are compared; NULL: there are no others. */
	struct compare *compare;
	struct compare_owner compares;
	struct storage_hash hash;
	bool hashing;
	bool asked;           /* A scrub entry is on its way. */
	uint64_t asked_index; /* Of the last one that was. */

	/* A copy to another: first the scrub that it is made at. */
	struct env_timer export_timer;
	bool export_waits;
	bool exporting;
	bool staging;
	uint64_t staged; /* The generation that waits for the others' word. */

	struct storage_export export;
	struct storage_stage stage;
	struct storage_switch change;

	struct storage_heads heads; /* Summing up tenants after a takeover. */
	uint64_t heads_epoch;
	bool heads_running;
	uint64_t lead_stamp;

	void (*closed)(void *arg);
	void *closed_arg;
};

static struct bridge *from_app(struct app *a)
{
	struct bridge *b = CONTAINER_OF(a, struct bridge, app);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	return b;
}

static struct bridge *from_host(struct host *h)
{
	struct bridge *b = CONTAINER_OF(h, struct bridge, host);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	return b;
}

/* Passages. */

static bool passages_push(struct passages *q, const struct passage *p)
{
	if (q->tail - q->head == q->cap) {
		uint32_t cap = q->cap == 0 ? 256 : q->cap * 2;
		struct passage *slots = malloc(cap * sizeof(*slots));
		uint64_t i;

		if (slots == NULL)
			return false;
		for (i = q->head; i < q->tail; i++)
			slots[i & (cap - 1)] = q->slots[i & (q->cap - 1)];
		free(q->slots);
		q->slots = slots;
		q->cap = cap;
	}
	q->slots[q->tail++ & (q->cap - 1)] = *p;
	return true;
}

static void passages_clear(struct passages *q)
{
	q->head = 0;
	q->mid = 0;
	q->tail = 0;
}

/* Chunks. */

static struct chunk *chunk_take(struct bridge *b)
{
	struct chunk *c = TAILQ_FIRST(&b->spare);

	if (c != NULL) {
		TAILQ_REMOVE(&b->spare, c, link);
		return c;
	}
	c = calloc(1, sizeof(*c));
	if (c != NULL)
		pack_w_init(&c->units, ENTRY_BYTES_MAX - ENTRY_HEAD_BYTES);
	return c;
}

static void chunk_put(struct bridge *b, struct chunk *c)
{
	/* One large event must not pin its memory for good. */
	if (c->units.cap > (256u << 10)) {
		pack_w_release(&c->units);
		pack_w_init(&c->units, ENTRY_BYTES_MAX - ENTRY_HEAD_BYTES);
	}
	pack_w_reset(&c->units);
	c->units_n = 0;
	c->scrub = false;
	TAILQ_INSERT_HEAD(&b->spare, c, link);
}

static void chunks_drop(struct bridge *b, struct chunks *q)
{
	struct chunk *c;

	while ((c = TAILQ_FIRST(q)) != NULL) {
		TAILQ_REMOVE(q, c, link);
		chunk_put(b, c);
	}
}

static void chunks_free(struct chunks *q)
{
	struct chunk *c;

	while ((c = TAILQ_FIRST(q)) != NULL) {
		TAILQ_REMOVE(q, c, link);
		pack_w_release(&c->units);
		free(c);
	}
}

/* The chunk that takes `bytes` more, or NULL without memory. */
static struct chunk *chunk_for(struct bridge *b, size_t bytes)
{
	struct chunk *c = TAILQ_LAST(&b->chunks, chunks);

	if (c != NULL && (!c->scrub || MUTANT(scrub_swallows)) &&
	    c->units_n < ENTRY_UNITS_MAX &&
	    c->units.n + bytes + ENTRY_HEAD_BYTES <=
		    shard_entry_bytes_max(b->shard))
		return c;
	c = chunk_take(b);
	if (c != NULL)
		TAILQ_INSERT_TAIL(&b->chunks, c, link);
	return c;
}

/* Gathering. */

/* For a mutant: before what is gathered. */
static struct chunk *chunk_ahead(struct bridge *b)
{
	struct chunk *c = chunk_take(b);

	if (c != NULL)
		TAILQ_INSERT_HEAD(&b->chunks, c, link);
	return c;
}

static void gathered_go(struct bridge *b)
{
	if (!TAILQ_EMPTY(&b->chunks))
		shard_want(b->shard);
}

static void gather_due(struct env_timer *t)
{
	struct bridge *b = CONTAINER_OF(t, struct bridge, gather_timer);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	gathered_go(b);
}

/* A unit is in `c`, the last chunk: it goes in this turn, and with it all that
 * came before, or waits for others. */
static void gather(struct bridge *b, const struct chunk *c, bool may_wait)
{
	uint64_t now_ms;

	if (!may_wait || TAILQ_FIRST(&b->chunks) != c ||
	    c->units.n >= LAG_GATHER_BYTES) {
		shard_want(b->shard);
	} else if (!b->gather_timer.running) {
		now_ms = env_now_ms(b->env);
		env_timer_start(&b->gather_timer,
				now_ms - now_ms % LAG_GATHER_MS +
					LAG_GATHER_MS);
	}
}

/* The host of our objects. */

static uint64_t host_now(struct host *h)
{
	struct bridge *b = from_host(h);

	return stamp_now(&b->stamp, env_now_ns(b->env));
}

static uint64_t host_committed_stamp(struct host *h)
{
	return from_host(h)->committed_stamp;
}

/* A log asks a shard once to move its old records. What was applied since then
 * may be what it waits for, and with every call refused nothing would make it
 * ask again. */
static void free_the_log(struct bridge *b)
{
	struct storage *st = b->storage;

	if (!MUTANT(full_asks_once) && !storage_checkpointing(st) &&
	    storage_checkpointed(st) < storage_applied(st))
		storage_checkpoint(st);
}

static uint64_t host_propose(struct host *h, uint64_t epoch,
			     const struct pack_w *unit, bool may_wait,
			     enum rc *why)
{
	struct bridge *b = from_host(h);
	struct chunk *c;

	PRE(unit->rc == RC_OK);
	/* A unit carries the term of its instance: nothing computed in one
	 * leadership is proposed in another. */
	if (epoch != b->epoch || epoch == 0) {
		*why = RC_TERM;
		return 0;
	}
	/* Small segments have small entries, and a unit is never split: it
	 * will not do better next time. */
	if (unit->n + ENTRY_HEAD_BYTES > shard_entry_bytes_max(b->shard) &&
	    !MUTANT(unit_any_size)) {
		*why = RC_INVALID;
		return 0;
	}
	/* Its old records pin the log: what is added now would stop every
	 * shard at the hard bound. */
	if (log_full(core_log(b->core), b->cfg.shard.shard)) {
		free_the_log(b);
		*why = RC_OVERLOADED;
		return 0;
	}
	/* SQLite is slower than the log: what has not reached it is memory. */
	if (storage_window_bytes(b->storage) >
	    WINDOW_BEHIND_MAX * (size_t)b->cfg.storage.window_bytes) {
		*why = RC_OVERLOADED;
		return 0;
	}
	if (MUTANT(gather_overtaken) && !may_wait)
		c = chunk_ahead(b);
	else
		c = chunk_for(b, unit->n);
	if (c != NULL)
		pack_raw(&c->units, unit->p, unit->n);
	if (c == NULL || c->units.rc != RC_OK) {
		*why = RC_NOMEM;
		env_fail_stop(b->env, "no memory for effects");
		return 0;
	}
	c->units_n++;
	c->last_mark = b->next_mark++;
	gather(b, c, may_wait);
	return c->last_mark;
}

static void host_hurry(struct host *h, uint64_t epoch)
{
	struct bridge *b = from_host(h);

	if (epoch == b->epoch)
		gathered_go(b);
}

static uint64_t host_tick(struct host *h, uint64_t epoch)
{
	struct bridge *b = from_host(h);
	struct chunk *c;

	if (epoch != b->epoch || epoch == 0)
		return 0;
	/* What is collected later is stamped later: any waiting chunk is a
	 * tick as well. */
	c = TAILQ_LAST(&b->chunks, chunks);
	if (c == NULL) {
		c = chunk_for(b, 0);
		if (c == NULL) {
			env_fail_stop(b->env, "no memory for a tick");
			return 0;
		}
		c->last_mark = b->next_mark++;
	}
	shard_want(b->shard);
	return c->last_mark;
}

static void proof_done(struct round *req, enum rc rc)
{
	struct proof *p = CONTAINER_OF(req, struct proof, req);
	struct bridge *b = p->bridge;
	uint64_t ticket = p->ticket;
	bool current = p->epoch == b->epoch && b->epoch != 0;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (b->open == p)
		b->open = NULL;
	STAILQ_INSERT_HEAD(&b->proofs_free, p, link);
	if (current)
		space_proved(b->space, ticket, rc);
}

/* The round of this turn is about to begin: later events need another. */
static void proof_seal(struct env_task *t)
{
	CONTAINER_OF(t, struct bridge, seal_proof)->open = NULL;
}

static bool proof_add(struct bridge *b)
{
	struct proof *p = calloc(1, sizeof(*p));

	if (p == NULL)
		return false;
	p->bridge = b;
	STAILQ_INSERT_HEAD(&b->proofs_all, p, all_link);
	STAILQ_INSERT_HEAD(&b->proofs_free, p, link);
	return true;
}

static void proofs_drop(struct bridge *b)
{
	struct proof *p;

	while ((p = STAILQ_FIRST(&b->proofs_all)) != NULL) {
		STAILQ_REMOVE_HEAD(&b->proofs_all, all_link);
		free(p);
	}
}

static uint64_t host_prove(struct host *h, uint64_t epoch)
{
	struct bridge *b = from_host(h);
	struct proof *p = b->open;

	if (epoch != b->epoch || epoch == 0)
		return 0;
	if (p != NULL)
		return p->ticket;
	if (STAILQ_EMPTY(&b->proofs_free) && !proof_add(b)) {
		env_fail_stop(b->env, "no memory to prove the ownership");
		return 0;
	}
	p = STAILQ_FIRST(&b->proofs_free);
	STAILQ_REMOVE_HEAD(&b->proofs_free, link);
	p->ticket = b->next_ticket;
	p->epoch = epoch;
	if (round_start(b->rounds, &p->req, b->shard, proof_done) != RC_OK) {
		STAILQ_INSERT_HEAD(&b->proofs_free, p, link);
		return 0;
	}
	b->next_ticket++;
	b->open = p;
	env_post(b->env, &b->seal_proof);
	return p->ticket;
}

static enum rc host_admit(struct host *h, struct pack_bytes tenant,
			  int64_t objects, int64_t bytes, struct detail *why)
{
	struct bridge *b = from_host(h);

	return core_admit(b->core, b->cfg.shard.shard, tenant, objects, bytes,
			  why);
}

static void host_call(struct host *h, struct event *ev)
{
	core_nested(from_host(h)->core, ev);
}

static void host_call_drop(struct host *h, struct event *ev)
{
	core_nested_drop(from_host(h)->core, ev);
}

static void host_random(struct host *h, void *out, size_t n)
{
	env_random(from_host(h)->env, out, n);
}

static const struct host_ops bridge_host_ops = {
	.now = host_now,
	.committed_stamp = host_committed_stamp,
	.propose = host_propose,
	.hurry = host_hurry,
	.tick = host_tick,
	.prove = host_prove,
	.admit = host_admit,
	.call = host_call,
	.call_drop = host_call_drop,
	.random = host_random,
};

/* Tenants' usage: summed up from the heads after a takeover, booked by
 * host_admit from then on. Objects made since are booked already. */

static void heads_head(struct storage_heads *hs, const struct oid *oid,
		       struct pack_bytes sealed)
{
	struct bridge *b = hs->arg;
	struct object_head head;

	hs->after = *oid;
	if (b->heads_epoch != b->epoch)
		return;
	if (object_head_read(oid, sealed, &head) != RC_OK || head.destroyed ||
	    head.created_ns >= b->lead_stamp)
		return;
	core_book(b->core, b->cfg.shard.shard, head.tenant, 1,
		  (int64_t)head.bytes);
}

static void heads_done(struct storage_heads *hs, enum rc rc, bool more)
{
	struct bridge *b = hs->arg;

	b->heads_running = false;
	if (rc != RC_OK || b->epoch == 0)
		return;
	if (b->heads_epoch != b->epoch) {
		memset(&hs->after, 0, sizeof(hs->after));
		b->heads_epoch = b->epoch;
		more = true;
	}
	if (!more)
		return;
	b->heads_running = true;
	storage_heads(b->storage, hs);
}

static void heads_begin(struct bridge *b)
{
	if (b->heads_running)
		return; /* heads_done begins again for the new epoch. */
	b->heads = (struct storage_heads){ .rows_max = 1024,
					   .head = heads_head,
					   .done = heads_done,
					   .arg = b };
	b->heads_epoch = b->epoch;
	b->heads_running = true;
	storage_heads(b->storage, &b->heads);
}

/* The app of our shard. */

static void stamp_begin(struct bridge *b)
{
	uint64_t now_ns = env_now_ns(b->env);
	uint64_t base_ns;
	bool cut = false;

	b->committed_stamp = storage_stamp(b->storage);
	if (core_stamps(b->core) == NULL) {
		stamp_lead(&b->stamp, b->committed_stamp,
			   storage_wall(b->storage), now_ns,
			   env_wall_ms(b->env),
			   b->env->ops->wall_synced(b->env), &cut);
		if (cut)
			LOG_WARN("stamp_forward_cut",
				 F("shard", b->cfg.shard.shard),
				 F("hours_max", 1));
	} else {
		CHECK(stamps_ready(core_stamps(b->core), b->cfg.shard.shard,
				   b->led, &base_ns));
		stamp_lead_at(&b->stamp, b->committed_stamp, base_ns, now_ns);
	}
	b->lead_stamp = stamp_now(&b->stamp, now_ns);
}

static bool stamped(const struct bridge *b)
{
	uint64_t base_ns;

	return core_stamps(b->core) == NULL ||
	       stamps_ready(core_stamps(b->core), b->cfg.shard.shard, b->led,
			    &base_ns);
}

static void scrub_propose(struct bridge *b);

/* From here on calls are executed. */
static void own(struct bridge *b)
{
	PRE(b->epoch == 0);
	stamp_begin(b);
	b->epoch = b->led;
	if (!MUTANT(unit_in_later_term))
		b->next_mark = 1;
	b->next_ticket = 1;
	passages_clear(&b->passages);
	core_unbook(b->core, b->cfg.shard.shard);
	heads_begin(b);
	space_lead(b->space, b->epoch, b->lead_stamp);
	core_leads(b->core, b->cfg.shard.shard);
	/* It led before it could propose anything. */
	if (b->export_waits)
		scrub_propose(b);
}

static void app_elected(struct app *a, uint64_t term)
{
	struct bridge *b = from_app(a);

	if (core_stamps(b->core) != NULL)
		stamps_elected(core_stamps(b->core), b->cfg.shard.shard, term);
}

static void app_lead(struct app *a, uint64_t term)
{
	struct bridge *b = from_app(a);

	if (b->closing)
		return;
	b->led = term;
	if (stamped(b))
		own(b);
}

void bridge_stamped(struct bridge *b, uint64_t term)
{
	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (b->led == term && b->epoch == 0 && !b->closing)
		own(b);
}

static void hand_end(struct bridge *b)
{
	env_timer_stop(&b->hand_timer);
	b->settling = false;
	b->handing = false;
}

static void app_lost(struct app *a, uint64_t term)
{
	struct bridge *b = from_app(a);
	bool owned = b->epoch != 0;

	hand_end(b);
	env_timer_stop(&b->gather_timer);
	if (core_stamps(b->core) != NULL)
		stamps_lost(core_stamps(b->core), b->cfg.shard.shard);
	b->led = 0;
	b->epoch = 0;
	b->asked = false;
	b->open = NULL;
	if (!MUTANT(unit_in_later_term))
		chunks_drop(b, &b->chunks);
	passages_clear(&b->passages);
	rounds_lost(b->rounds, b->shard);
	if (owned)
		space_lost(b->space, term);
	if (b->closing)
		env_post(b->env, &b->close_step);
}

static bool app_collect(struct app *a, uint64_t term, void **data,
			size_t *bytes)
{
	struct bridge *b = from_app(a);
	struct chunk *c = TAILQ_FIRST(&b->chunks);
	struct join *join = core_join(b->core);
	struct pack_w w;
	uint64_t stamp_ns;
	uint32_t units;

	if (c == NULL || term != b->epoch)
		return false;
	stamp_ns = stamp_now(&b->stamp, env_now_ns(b->env));
	pack_w_init(&w, ENTRY_BYTES_MAX);
	if (c->scrub) {
		entry_scrub(&w, stamp_ns, env_wall_ms(b->env), term);
	} else {
		units = join_read(join, c->units.p, c->units.n, c->units_n);
		/* It stays in memory for a while: no more than it needs. */
		(void)pack_w_reserve(&w,
				     ENTRY_HEAD_BYTES + join_bytes_max(join));
		entry_begin(&w, stamp_ns, env_wall_ms(b->env), term, units);
		join_write(join, &w);
	}
	if (w.rc != RC_OK) {
		pack_w_release(&w);
		env_fail_stop(b->env, "no memory for an entry");
		return false;
	}
	stamp_seen(&b->stamp, stamp_ns);
	c->stamp_ns = stamp_ns;
	TAILQ_REMOVE(&b->chunks, c, link);
	TAILQ_INSERT_TAIL(&b->sent, c, link);
	*data = w.p;
	*bytes = w.n;
	return true;
}

static struct chunk *sent_pop(struct bridge *b)
{
	struct chunk *c = TAILQ_FIRST(&b->sent);

	CHECK(c != NULL);
	TAILQ_REMOVE(&b->sent, c, link);
	return c;
}

static void app_submitted(struct app *a, uint64_t term, uint64_t index)
{
	struct bridge *b = from_app(a);
	struct chunk *c = sent_pop(b);
	struct passage p = { index, c->last_mark, c->stamp_ns };

	if (c->scrub)
		b->asked_index = index;
	if (term == b->epoch && !passages_push(&b->passages, &p))
		env_fail_stop(b->env, "no memory for a mark");
	chunk_put(b, c);
	if (b->closing)
		env_post(b->env, &b->close_step);
}

static void app_refused(struct app *a, enum rc rc)
{
	struct bridge *b = from_app(a);

	/* The shard is about to tell that it lost its leadership; what these
	 * units' events hear, space_lost decides. */
	(void)rc;
	chunk_put(b, sent_pop(b));
}

static void app_committed(struct app *a, uint64_t index)
{
	struct bridge *b = from_app(a);
	struct passages *q = &b->passages;
	uint64_t mark = 0;
	uint64_t at = 0;

	while (q->mid < q->tail) {
		const struct passage *p = &q->slots[q->mid & (q->cap - 1)];

		if (p->index > index)
			break;
		mark = p->mark;
		at = p->index;
		b->committed_stamp = p->stamp_ns;
		q->mid++;
	}
	if (mark != 0)
		space_committed(b->space, mark, at);
}

/* Scrubs: every replica hashes its state exactly at the entry, and a copy that
 * waits is made there. */

static void scrub_propose(struct bridge *b)
{
	struct chunk *c;

	if (b->asked)
		return;
	c = chunk_take(b);
	if (c == NULL)
		return; /* Another time. */
	c->scrub = true;
	c->last_mark = b->next_mark++;
	TAILQ_INSERT_TAIL(&b->chunks, c, link);
	b->asked = true;
	shard_want(b->shard);
}

static void hashed(struct storage_hash *h, enum rc rc)
{
	struct bridge *b = h->arg;
	struct compare_hash is = { .index = h->index };

	CHECK_OBJ(b, BRIDGE_MAGIC);
	b->hashing = false;
	if (rc != RC_OK)
		return;
	memcpy(is.state, h->hash, sizeof(is.state));
	memcpy(is.ranges, h->ranges, sizeof(is.ranges));
	compare_is(b->compare, &is);
}

static void export_go(struct bridge *b)
{
	env_timer_stop(&b->export_timer);
	b->export_waits = false;
	storage_export_begin(b->storage, &b->export);
}

static void export_due(struct env_timer *t)
{
	struct bridge *b = CONTAINER_OF(t, struct bridge, export_timer);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	export_go(b);
}

static void scrub_applied(struct bridge *b)
{
	b->asked = false;
	if (b->compare == NULL)
		return;
	/* One that is slow leaves some out. */
	if (!b->hashing) {
		b->hashing = true;
		b->hash = (struct storage_hash){ .done = hashed, .arg = b };
		storage_hash_at(b->storage, &b->hash);
	}
	if (b->export_waits)
		export_go(b);
}

static void maybe_checkpoint(struct bridge *b, size_t bytes)
{
	b->applied_bytes += bytes;
	if (b->applied_bytes < CHECKPOINT_BYTES)
		return;
	b->applied_bytes = 0;
	storage_checkpoint(b->storage);
}

static enum rc app_apply(struct app *a, uint64_t index, uint64_t term,
			 const void *data, size_t bytes)
{
	struct bridge *b = from_app(a);
	enum rc rc = storage_apply(b->storage, index, term, data, bytes);

	if (rc == RC_OK && bytes <= ENTRY_HEAD_BYTES &&
	    entry_scrubs(data, bytes))
		scrub_applied(b);
	if (rc == RC_OK)
		maybe_checkpoint(b, bytes);
	else
		LOG_ERROR("entry_indigestible", F("shard", b->cfg.shard.shard),
			  F("index", index), F("code", rc_name(rc)));
	return rc;
}

static enum rc app_applied_other(struct app *a, uint64_t index, uint64_t term,
				 const void *conf, size_t conf_bytes)
{
	return storage_apply_other(from_app(a)->storage, index, term, conf,
				   conf_bytes);
}

static void app_checkpoint(struct app *a)
{
	struct bridge *b = from_app(a);

	b->applied_bytes = 0;
	storage_checkpoint(b->storage);
}

/* Snapshots: the shard's wishes, the storage's answers. */

static void export_ready(struct storage_export *x, enum rc rc)
{
	struct bridge *b = x->arg;
	struct snapshot what = { .index = x->index,
				 .term = x->term,
				 .conf_index = x->conf_index,
				 .conf = x->conf,
				 .conf_bytes = x->conf_bytes,
				 .bytes = x->bytes };

	CHECK_OBJ(b, BRIDGE_MAGIC);
	memcpy(what.hash, x->hash, sizeof(what.hash));
	shard_exported(b->shard, rc, &what);
}

static void export_data(struct storage_export *x, enum rc rc, const void *p,
			size_t n)
{
	struct bridge *b = x->arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	shard_export_data(b->shard, rc, p, n);
}

static void app_export_begin(struct app *a)
{
	struct bridge *b = from_app(a);

	b->export = (struct storage_export){ .ready = export_ready,
					     .data = export_data,
					     .arg = b };
	b->exporting = true;
	if (b->compare == NULL || shard_full(b->shard) ||
	    MUTANT(copy_at_any_index)) {
		export_go(b);
		return;
	}
	b->export_waits = true;
	env_timer_start(&b->export_timer, env_now_ms(b->env) + EXPORT_WAIT_MS);
	if (b->epoch != 0)
		scrub_propose(b);
}

static void app_export_read(struct app *a, uint64_t offset, uint32_t bytes)
{
	struct bridge *b = from_app(a);

	storage_export_read(b->storage, &b->export, offset, bytes);
}

static void app_export_end(struct app *a)
{
	struct bridge *b = from_app(a);

	b->exporting = false;
	if (!b->export_waits)
		storage_export_end(b->storage, &b->export);
	b->export_waits = false;
	env_timer_stop(&b->export_timer);
}

static void stage_over(struct bridge *b)
{
	b->staging = false;
	if (b->compare != NULL)
		compare_forget(b->compare);
}

static void stage_written(struct storage_stage *g, enum rc rc)
{
	struct bridge *b = g->arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (rc != RC_OK)
		stage_over(b);
	shard_staged(b->shard, rc);
}

static void stage_done(struct storage_stage *g, enum rc rc, uint64_t generation)
{
	struct bridge *b = g->arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (rc == RC_OK && b->compare != NULL) {
		b->staged = generation;
		compare_copy(b->compare, g->hash);
		return;
	}
	stage_over(b);
	shard_stage_done(b->shard, rc, generation, g->hash);
}

/* It is what was sent: is it what the others have? */
static void stage_compared(struct compare_owner *o, enum rc rc)
{
	struct bridge *b = CONTAINER_OF(o, struct bridge, compares);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	stage_over(b);
	if (rc != RC_OK)
		storage_stage_drop(b->storage, &b->stage);
	shard_stage_done(b->shard, rc, b->staged, b->stage.hash);
}

static void app_stage_begin(struct app *a, const struct snapshot *what)
{
	struct bridge *b = from_app(a);

	b->stage = (struct storage_stage){ .index = what->index,
					   .term = what->term,
					   .conf_index = what->conf_index,
					   .conf = what->conf,
					   .conf_bytes = what->conf_bytes,
					   .bytes = what->bytes,
					   .written = stage_written,
					   .done = stage_done,
					   .arg = b };
	memcpy(b->stage.hash, what->hash, sizeof(b->stage.hash));
	b->staging = true;
	if (b->compare != NULL)
		compare_expect(b->compare, what->from, what->index);
	storage_stage_begin(b->storage, &b->stage);
}

static void app_stage_write(struct app *a, uint64_t offset, const void *p,
			    uint32_t n)
{
	struct bridge *b = from_app(a);

	storage_stage_write(b->storage, &b->stage, offset, p, n);
}

static void app_stage_end(struct app *a)
{
	struct bridge *b = from_app(a);

	storage_stage_end(b->storage, &b->stage);
}

static void app_stage_drop(struct app *a)
{
	struct bridge *b = from_app(a);

	stage_over(b);
	storage_stage_drop(b->storage, &b->stage);
}

static struct shard_state shard_state_of(const struct storage_state *from)
{
	return (struct shard_state){ .index = from->applied_index,
				     .term = from->applied_term,
				     .synced_index = from->main_index,
				     .conf_index = from->conf_index,
				     .conf = from->conf,
				     .conf_bytes = from->conf_bytes };
}

static void state_switched(struct storage_switch *w, enum rc rc,
			   const struct storage_state *from)
{
	struct bridge *b = w->arg;
	struct shard_state state = { 0 };

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (rc == RC_OK) {
		state = shard_state_of(from);
		b->applied_bytes = 0;
		/* What was told of the old one says nothing of it. */
		if (b->compare != NULL)
			compare_void(b->compare);
	}
	shard_switched(b->shard, rc, &state);
}

static void app_switch_state(struct app *a, uint64_t generation)
{
	struct bridge *b = from_app(a);

	b->change = (struct storage_switch){ .generation = generation,
					     .done = state_switched,
					     .arg = b };
	storage_switch(b->storage, &b->change);
}

static const struct app_ops bridge_app_ops = {
	.elected = app_elected,
	.lead = app_lead,
	.lost = app_lost,
	.collect = app_collect,
	.submitted = app_submitted,
	.refused = app_refused,
	.committed = app_committed,
	.apply = app_apply,
	.applied_other = app_applied_other,
	.checkpoint = app_checkpoint,
	.export_begin = app_export_begin,
	.export_read = app_export_read,
	.export_end = app_export_end,
	.stage_begin = app_stage_begin,
	.stage_write = app_stage_write,
	.stage_end = app_stage_end,
	.stage_drop = app_stage_drop,
	.switch_state = app_switch_state,
};

/* The listener of our storage. */

static void stored_stored(struct storage_listener *l, uint64_t index)
{
	struct bridge *b = CONTAINER_OF(l, struct bridge, stored);
	struct passages *q = &b->passages;
	uint64_t mark = 0;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	while (q->head < q->mid) {
		const struct passage *p = &q->slots[q->head & (q->cap - 1)];

		if (p->index > index)
			break;
		mark = p->mark;
		q->head++;
	}
	if (mark != 0 && b->epoch != 0)
		space_stored(b->space, mark);
}

static void stored_checkpointed(struct storage_listener *l, uint64_t index)
{
	struct bridge *b = CONTAINER_OF(l, struct bridge, stored);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (b->shard != NULL)
		shard_checkpointed(b->shard, index);
}

static void stored_bad(struct storage_listener *l, enum rc rc,
		       const struct detail *why)
{
	struct bridge *b = CONTAINER_OF(l, struct bridge, stored);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	LOG_ERROR("state_bad", F("shard", b->cfg.shard.shard),
		  F("code", rc_name(rc)), F("why", (const char *)why->text));
	if (b->shard != NULL)
		shard_state_lost(b->shard, why);
}

/* Hand-overs. */

static enum rc hand_move(struct bridge *b)
{
	enum rc rc = shard_transfer(b->shard, b->hand_to);

	b->settling = false;
	b->handing = rc == RC_OK;
	if (rc != RC_OK && b->epoch != 0)
		space_settle_end(b->space);
	return rc;
}

/* Nothing is on its way: what would be lost with the leadership, and be of
 * unknown outcome to whoever asked. Nothing new comes, see bridge_owns. */
static bool hand_quiet(struct bridge *b)
{
	gathered_go(b);
	return space_settle(b->space) && TAILQ_EMPTY(&b->chunks) &&
	       TAILQ_EMPTY(&b->sent) && b->passages.mid == b->passages.tail;
}

static bool hand_look(struct bridge *b)
{
	uint64_t now_ms = env_now_ms(b->env);
	struct shard_view view;

	if (b->settling) {
		if (!hand_quiet(b) && now_ms < b->hand_until_ms)
			return true;
		return hand_move(b) == RC_OK;
	}
	/* It has not happened: who owns goes on as before. */
	shard_view(b->shard, &view);
	if (view.transferee != 0)
		return true;
	if (b->epoch != 0)
		space_settle_end(b->space);
	return false;
}

static void hand_due(struct env_timer *t)
{
	struct bridge *b = CONTAINER_OF(t, struct bridge, hand_timer);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if ((b->settling || b->handing) && !b->closing && hand_look(b))
		env_timer_start(t, env_now_ms(b->env) + HAND_OVER_LOOK_MS);
	else
		hand_end(b);
}

enum rc bridge_transfer(struct bridge *b, uint64_t to)
{
	enum rc rc;

	if (b->settling || b->handing)
		return RC_CONFLICT;
	if (b->closing)
		return RC_NOT_LEADER;
	b->hand_to = to;
	b->hand_until_ms = env_now_ms(b->env) + HAND_OVER_SETTLE_MS;
	b->settling = b->epoch != 0 && !hand_quiet(b);
	if (!b->settling) {
		rc = hand_move(b);
		if (rc != RC_OK)
			return rc;
	}
	env_timer_start(&b->hand_timer, env_now_ms(b->env) + HAND_OVER_LOOK_MS);
	return RC_OK;
}

/* The scrub. What it finds the storage tells its listener. */

/* Whole, and not what a majority has. */
static void state_differs(struct compare_owner *o, const struct detail *why)
{
	struct bridge *b = CONTAINER_OF(o, struct bridge, compares);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (!b->closing)
		storage_spoil(b->storage, why);
}

/* Nothing has happened since all were found equal. */
static bool scrub_idle(const struct bridge *b)
{
	return b->asked_index != 0 &&
	       shard_last_index(b->shard) == b->asked_index &&
	       compare_equal(b->compare, b->asked_index);
}

static bool scrub_may(const struct bridge *b)
{
	return b->compare != NULL && bridge_owns(b) && !shard_full(b->shard) &&
	       !b->exporting && !b->staging &&
	       !storage_checkpointing(b->storage) &&
	       storage_window_bytes(b->storage) < b->cfg.storage.window_bytes;
}

static void scrub_done(struct storage_scrub *c, enum rc rc)
{
	struct bridge *b = c->arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	(void)rc;
	b->scrubbing = false;
	c->range = (c->range + 1) % STATE_RANGES;
}

void bridge_scrub(struct bridge *b)
{
	if (b->closing)
		return;
	if (scrub_may(b) && !scrub_idle(b))
		scrub_propose(b);
	if (b->scrubbing)
		return;
	b->scrubbing = true;
	b->scrub.done = scrub_done;
	b->scrub.arg = b;
	storage_scrub(b->storage, &b->scrub);
}

/* Life. */

static void close_step(struct env_task *t);

enum rc bridge_open(struct core *core, struct env *env, struct disk *disk,
		    const struct bridge_config *cfg, struct bridge **out,
		    struct detail *why)
{
	struct bridge *b = calloc(1, sizeof(*b));
	uint32_t i;
	enum rc rc;

	if (b == NULL)
		return RC_NOMEM;
	b->magic = BRIDGE_MAGIC;
	b->app.ops = &bridge_app_ops;
	b->host.ops = &bridge_host_ops;
	b->stored.stored = stored_stored;
	b->stored.checkpointed = stored_checkpointed;
	/* Alone there is nobody to take it anew from: the node stops. */
	if (cfg->shard.voters_n > 1)
		b->stored.bad = stored_bad;
	b->core = core;
	b->env = env;
	b->cfg = *cfg;
	b->seal_proof.cb = proof_seal;
	b->seal_proof.phase = ENV_PHASE_LOG;
	b->close_step.cb = close_step;
	b->close_step.phase = ENV_PHASE_RELEASE;
	b->compares.differs = state_differs;
	b->compares.copied = stage_compared;
	env_timer_init(&b->hand_timer, env, hand_due);
	env_timer_init(&b->export_timer, env, export_due);
	env_timer_init(&b->gather_timer, env, gather_due);
	TAILQ_INIT(&b->chunks);
	TAILQ_INIT(&b->sent);
	TAILQ_INIT(&b->spare);
	STAILQ_INIT(&b->proofs_free);
	STAILQ_INIT(&b->proofs_all);
	for (i = 0; i < PROOFS_AT_FIRST; i++)
		if (!proof_add(b)) {
			rc = RC_NOMEM;
			goto free_bridge;
		}
	rc = storage_open(env, disk, &cfg->storage, &b->stored, &b->storage,
			  &b->state, why);
	if (rc != RC_OK)
		goto free_bridge;
	rc = space_new(env, &b->host, core_residents(core), b->storage,
		       cfg->shard.shard, &b->space);
	if (rc != RC_OK)
		goto discard_storage;
	*out = b;
	return RC_OK;

discard_storage:
	storage_discard(b->storage);
free_bridge:
	proofs_drop(b);
	free(b);
	return rc;
}

uint64_t bridge_floor(const struct bridge *b)
{
	return b->state.main_index;
}

enum rc bridge_attach(struct bridge *b, struct log *log, struct transport *t,
		      struct rounds *rounds, struct detail *why)
{
	struct shard_state state = shard_state_of(&b->state);
	enum rc rc = RC_OK;

	b->rounds = rounds;
	if (b->cfg.shard.voters_n > 1)
		rc = compare_new(b->env, t, &b->compares, b->cfg.shard.shard,
				 &b->compare);
	if (rc != RC_OK)
		return rc;
	return shard_open(b->env, log, t, &b->app, &b->cfg.shard, &state,
			  &b->shard, why);
}

void bridge_start(struct bridge *b)
{
	shard_start(b->shard);
}

struct shard *bridge_shard(struct bridge *b)
{
	return b->shard;
}

struct space *bridge_space(struct bridge *b)
{
	return b->space;
}

struct storage *bridge_storage(struct bridge *b)
{
	return b->storage;
}

void bridge_compares(const struct bridge *b, struct compare_stats *out)
{
	*out = (struct compare_stats){ 0 };
	if (b->compare != NULL)
		compare_stats(b->compare, out);
}

uint64_t bridge_node_id(const struct bridge *b)
{
	return b->cfg.shard.node_id;
}

bool bridge_owns(const struct bridge *b)
{
	return b->epoch != 0 && !b->settling && !b->handing;
}

uint64_t bridge_now_ns(const struct bridge *b)
{
	return b->epoch != 0 ? stamp_now(&b->stamp, env_now_ns(b->env)) : 0;
}

static void bridge_free(struct bridge *b)
{
	env_timer_stop(&b->export_timer);
	if (b->compare != NULL)
		compare_free(b->compare);
	proofs_drop(b);
	chunks_free(&b->chunks);
	chunks_free(&b->sent);
	chunks_free(&b->spare);
	free(b->passages.slots);
	b->magic = 0;
	free(b);
}

static void storage_closed(void *arg)
{
	struct bridge *b = arg;
	void (*closed)(void *) = b->closed;
	void *closed_arg = b->closed_arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	space_free(b->space);
	bridge_free(b);
	closed(closed_arg);
}

static void shard_closed(void *arg)
{
	struct bridge *b = arg;

	CHECK_OBJ(b, BRIDGE_MAGIC);
	b->shard = NULL;
	/* Loads that are under way end in here: the space goes after. */
	storage_close(b->storage, storage_closed, b);
}

/* What was answered as `lagged` may still wait to be collected: the shard is
 * closed behind it. */
static void close_step(struct env_task *t)
{
	struct bridge *b = CONTAINER_OF(t, struct bridge, close_step);

	CHECK_OBJ(b, BRIDGE_MAGIC);
	if (!TAILQ_EMPTY(&b->chunks) || b->shard_closing)
		return;
	b->shard_closing = true;
	rounds_cancel(b->rounds, b->shard);
	b->epoch = 0;
	shard_close(b->shard, shard_closed, b);
}

void bridge_close(struct bridge *b, void (*closed)(void *arg), void *arg)
{
	PRE(!b->closing);
	b->closing = true;
	hand_end(b);
	env_timer_stop(&b->gather_timer);
	b->closed = closed;
	b->closed_arg = arg;
	/* Its objects are done: only what they have left is still to go. */
	space_lost(b->space, b->epoch);
	if (MUTANT(gather_dropped))
		chunks_drop(b, &b->chunks);
	gathered_go(b);
	env_post(b->env, &b->close_step);
}

void bridge_discard(struct bridge *b)
{
	env_timer_stop(&b->hand_timer);
	env_timer_stop(&b->gather_timer);
	if (b->shard != NULL)
		shard_discard(b->shard);
	space_discard(b->space);
	storage_discard(b->storage);
	bridge_free(b);
}
