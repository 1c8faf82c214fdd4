/*
 * space - what the files of objects/ share about a shard's live objects. For
 * them alone; everybody else sees objects/object.h.
 *
 * Loop thread. object.c moves events between mailbox, load, gate and end;
 * event.c is what a class sees while it runs and turns what it staged into a
 * unit; idem.c keeps idempotency records; sweep.c removes what has expired.
 */
#ifndef HOLDFAST_OBJECTS_SPACE_H
#define HOLDFAST_OBJECTS_SPACE_H

#include "node/base/crypto.h"
#include "node/base/env.h"
#include "node/base/htab.h"
#include "objects/gate.h"
#include "objects/object.h"
#include "objects/rows.h"
#include "objects/stage.h"

/*
 * Where an event is.
 *
 *   QUEUED ------> run ---> at the gate ---> PASSED ---> OVER
 *     ^  ^         |  |       (UNPROVED, UNCOMMITTED, FAR)
 *     |  |  JOINED-+  |                        |
 *     |  +--- load ---+                        | (suspending)
 *     |                                        v
 *     +------------------------------ CALLING, WAITING
 */
enum event_state {
	EVENT_OUT,         /* In no list. */
	EVENT_QUEUED,      /* In the object's mailbox. */
	EVENT_RESUMED,     /* Suspended before; goes on before the mailbox. */
	EVENT_RUNNING,     /* On the stack. */
	EVENT_JOINED,      /* Waits for the end of one with the same key. */
	EVENT_UNPROVED,    /* At the gate: the proof, */
	EVENT_UNCOMMITTED, /* the commit, */
	EVENT_FAR,         /* the commit, too far ahead for the ring. */
	EVENT_PASSED,      /* In space.passed. */
	EVENT_CALLING,     /* In space.calling: its nested call is under way. */
	EVENT_WAITING,     /* In space.timers. */
	EVENT_OVER,
};

static inline bool event_at_gate(const struct event *ev)
{
	return ev->state == EVENT_UNPROVED || ev->state == EVENT_UNCOMMITTED ||
	       ev->state == EVENT_FAR;
}

struct residents {
	struct env *env;
	struct residents_config cfg;
	TAILQ_HEAD(object_list, object) lru; /* Used last first. */
	uint64_t objects;
	uint64_t bytes;
	uint64_t held;   /* Results of events that have not left. */
	uint64_t now_ms; /* Coarse. */
	struct env_timer timer;
	struct stage stage;
	struct pack_w unit;
	struct pack_w head;
	struct pack_w scratch;
	uint8_t hash_key[HASH_KEY_BYTES];
	uint32_t spaces;
};

enum object_head_state {
	HEAD_NONE, /* Nothing of it is stored. */
	HEAD_LIVE,
	HEAD_TOMBSTONE, /* Destroyed, or never more than a key's record. */
};

/* Tenant, environment, class and name as they stand in the head record. */
struct object_names {
	uint16_t bytes;
	bool named; /* The name is not empty. */
	uint8_t packed[];
};

struct loading;
RB_HEAD(event_timers, event);

struct object {
	struct hnode node;
	struct oid oid;
	struct space *space;
	const struct class *cls;
	struct object_names *names; /* NULL until it has a head. */
	TAILQ_ENTRY(object) lru;
	struct rows rows;
	struct event_list mailbox;
	struct event_list resumed;
	LIST_HEAD(, event) keyed; /* Suspended ones with a key. */
	struct event *holder;     /* Suspended, and nobody else may enter. */
	struct loading *loading;
	uint64_t strong_mark; /* Of its newest committed-class unit. */
	uint64_t any_mark;    /* Of its newest unit. */
	uint64_t gone_mark;   /* Of the newest that removed a row without
			       * leaving a marker. */
	uint64_t trim_mark;   /* It was trimmed when all before was stored. */
	uint64_t rev;
	uint64_t rows_n;     /* ROW_DATA */
	uint64_t own_bytes;  /* Keys and values of ROW_DATA and ROW_CONFIG, */
	uint64_t idem_bytes; /* and of idempotency records. */
	uint64_t idem_until_ns;
	uint64_t created_ns;
	uint64_t full_ns; /* No memory row is worth keeping from then on. */
	struct row *memory_at; /* The next to be looked at; NULL: the first. */
	uint64_t used_ms;      /* residents.now_ms of its last use. */
	size_t memory;         /* As counted in residents.bytes. */
	uint32_t mailbox_n;
	uint32_t nested_n;  /* Of them nested calls. */
	uint32_t suspended; /* Events between two runs. */
	uint32_t memory_rows;
	uint16_t pins; /* Functions on the stack that hold it. */
	uint8_t head;  /* enum object_head_state */
	bool loaded;   /* The first load is done. */
};

struct sweep;
struct settle;

#define SPACE_MAGIC 0x53504143u

struct space {
	uint32_t magic;
	uint32_t shard;
	struct env *env;
	struct host *host;
	struct residents *res;
	struct storage *storage;
	uint64_t epoch;
	uint64_t lead_ns;
	uint64_t memory_lost_ns; /* Rows in memory were dropped then. */
	uint64_t stored;
	bool leading;
	struct htab objects;
	struct gate gate;
	struct event_list passed;
	uint64_t passed_n;
	struct env_task release;
	struct event_list calling;
	struct event_timers timers;
	struct env_timer timer;
	LIST_HEAD(, loading) loads;
	struct sweep *sweep;
	bool settling; /* Nothing may be lent. */
	struct settle *settle;
	struct space_stats stats;
};

static inline uint64_t space_now(struct space *s)
{
	return s->host->ops->now(s->host);
}

/* F of DESIGN D8. */
static inline uint64_t space_committed_stamp(struct space *s)
{
	return s->host->ops->committed_stamp(s->host);
}

#define EVENT_INTERNAL ((uint32_t)EVENT_SWEEP | (uint32_t)EVENT_SETTLE)

/* What an event waits for is of the strongest class. */
static inline bool event_is_committed(const struct event *ev)
{
	return ev->durability_now >= DURABILITY_COMMITTED ||
	       (ev->flags & (EVENT_KEYED | EVENT_INTERNAL)) != 0 ||
	       ev->suspending;
}

/* ------------------------------------------------------- event.c, for object.c
 */

/* Ready `ev` for a run of its class from where it last began. */
void event_begin(struct event *ev);
/*
 * Turn what `ev` has staged into a unit, with its key's record, propose it and
 * bring it into the object's rows. RC_OK: ev->own_mark is set when there was
 * anything. RC_AGAIN: a row is needed that is not in memory and noted as
 * wanted. Otherwise ev->why says why: RC_NO_SPACE, RC_OVERLOADED, RC_NOMEM,
 * RC_INVALID, RC_NOT_OWNER. When it is not RC_OK nothing has happened.
 */
enum rc event_close(struct event *ev);
/* The same for an event that failed after it was suspended: what it staged is
 * forgotten; its record is taken back, or says how it failed, or goes on saying
 * `started` when a class that resumes may do better the next time. */
enum rc event_close_failed(struct event *ev);
/* Put or replace an object's names. RC_NOMEM. */
enum rc object_set_names(struct object *o, struct pack_bytes tenant,
			 struct pack_bytes env, struct pack_bytes cls,
			 struct pack_bytes name);
/* What a load has found; RC_CORRUPT, RC_VERSION, RC_NOMEM. */
enum rc object_set_head(struct object *o, struct pack_bytes sealed);
/* The event's address is that of this object as it is stored. */
bool object_is_addressed(const struct object *o, const struct event *ev);
/* Count what the object takes. */
void object_account(struct object *o);

/* ------------------------------------------------------------------ object.c
 */

/* The mark of an empty entry that is proposed this turn; 0: the epoch is over.
 */
uint64_t space_tick(struct space *s, uint64_t now_ns);

/* ------------------------------------------------------------------- sweep.c
 */

enum rc sweep_new(struct space *s, struct sweep **out);
void sweep_free(struct sweep *w);
void sweep_lead(struct sweep *w);
void sweep_lost(struct sweep *w);
/* A row expires then: look again soon after. */
void sweep_expects(struct sweep *w, uint64_t expires_ns);
/* No slice is under way, in storage or in objects. */
bool sweep_idle(const struct sweep *w);
/* The run of an EVENT_SWEEP. */
enum run sweep_run(struct event *ev);

/* ------------------------------------------------------------------ settle.c
 */

enum rc settle_new(struct space *s, struct settle **out);
void settle_free(struct settle *t);
void settle_lost(struct settle *t);
/* No event of it is under way. */
bool settle_idle(const struct settle *t);
/* The run of an EVENT_SETTLE. */
enum run settle_run(struct event *ev);

#endif
