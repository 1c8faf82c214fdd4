/*
 * object - live objects of one shard at its owner: mailbox, gates, storage,
 * idempotency, suspension, eviction.
 *
 * Loop thread. A `struct space` holds the objects of one shard; `struct
 * residents` is what all spaces of a node share (memory budget, LRU). The
 * owner's core (node/core/bridge.c) gives events in and is told when each may
 * leave.
 *
 * The life of an event:
 *
 *   deliver -> mailbox -> load (nothing enters meanwhile) -> run -> effects are
 *   one unit, proposed -> the gate: all it saw or wrote is committed, and the
 *   owner is proved -> done()
 *
 * Events run at once in mailbox order, reads too; errors wait at the gate like
 * answers. A suspended event has committed its writes first.
 */
#ifndef HOLDFAST_OBJECTS_OBJECT_H
#define HOLDFAST_OBJECTS_OBJECT_H

#include <bsd/sys/tree.h>
#include <sys/queue.h>

#include "client/proto/method.h"
#include "node/base/env.h"
#include "node/base/limits.h"
#include "objects/class.h"
#include "objects/host.h"
#include "objects/storage.h"

struct space;
struct residents;
struct object;

/* Where an event comes from: every ancestor, outermost first. */
struct chain {
	uint32_t n;
	uint64_t root_stamp; /* Age: when the outermost call entered; wall-free,
			      * from the entry node's env_now_ns. */
	uint8_t root_id[16]; /* Breaks ties; one per outermost call. */
	struct {
		struct oid oid;
		char address[96]; /* For the sentence of CYCLE; cut. */
		bool same_tenant_as_next;
	} at[CALL_DEPTH_MAX];
};

/* What a class asked for with RUN_SUSPEND. */
enum nested_kind { NESTED_NONE, NESTED_CALL, NESTED_WAIT };
struct nested {
	enum nested_kind kind;
	char address[ADDRESS_BYTES_MAX + 1]; /* NESTED_CALL */
	char method[64];
	struct pack_w args; /* Encoded map, owned by the event. */
	bool keyed;         /* `key` is the derived key. */
	uint8_t key[16];
	uint64_t until_ns; /* NESTED_WAIT: stamp. */
};

enum event_flags {
	EVENT_KEYED = 1 << 0,  /* Has an idempotency key. */
	EVENT_CREATE = 1 << 1, /* May create the object (most methods may). */
	EVENT_SWEEP = 1 << 2,  /* Internal: removes expired rows. */
	EVENT_SETTLE = 1 << 3, /* Internal: before a hand-over. */
};

/*
 * One event. What few events need (chain, nested) is out of line: thousands are
 * in flight and their size is cache misses. The core embeds it (in struct call)
 * and keeps it in place from event_deliver until `done`. In-part: everything
 * down to `done`.
 */
struct event {
	uint32_t magic;
	uint32_t flags;
	struct oid oid;
	struct pack_bytes tenant, env, name; /* name.n 0: addressed by id. */
	const struct class *cls;
	const struct method *method;
	struct method_args args;      /* Checked; views into the request. */
	struct pack_bytes args_bytes; /* The encoded map. */
	struct pack_bytes principal;
	struct pack_bytes idem; /* With EVENT_KEYED. */
	uint64_t idem_ms;       /* Window asked for; 0: the class's. */
	enum durability durability;
	uint64_t deadline_ns;      /* env_now_ns; 0: none (internal). */
	const struct chain *chain; /* NULL: a client's call. The core's. */
	uint64_t root_stamp;       /* Of the chain, or of this call itself. */
	void (*done)(struct event *ev); /* The gate is open: it may leave. */

	/* Out, valid in done. */
	enum rc rc;
	enum outcome outcome;
	struct pack_w result;   /* One encoded value when rc is RC_OK. */
	struct detail why;      /* Field and sentence otherwise. */
	int64_t retry_after_ms; /* < 0: none. */
	uint64_t index; /* Log index of its effects or of what it saw. */
	uint64_t term;

	/* For the class, while it runs. */
	uint32_t resume;    /* How often it was suspended. */
	uint64_t locals[4]; /* The class's own, kept over suspension; committed
			     * with `started` when the class resumes. So is
			     * what it has written to `result`, but in memory
			     * only. */
	enum rc reply_rc;   /* Of the nested call. RC_AGAIN when a class that
			     * resumes runs again after its owner was lost:
			     * what it staged before that suspension is
			     * committed, the answer is not known; asking
			     * again is the same call (same derived key). */
	struct detail reply_why;
	struct pack_w reply;   /* Its result. */
	struct nested *nested; /* Allocated by ev_call and ev_wait, freed when
				* the event ends; NULL otherwise. */

	/* Private to objects/. */
	struct space *space;
	struct object *object;
	struct stage *work;  /* What it staged, while it runs. */
	uint64_t now_ns;     /* ev_now() */
	uint64_t need_mark;  /* The gate: committed up to here, */
	uint64_t need_proof; /* and proved by this ticket; 0: by its mark. */
	uint64_t own_mark;   /* Of its last unit; 0: none. */
	uint64_t any_mark;   /* The newest effect it may have seen. */
	uint64_t locals_base[4]; /* As they were when it last began, */
	size_t result_base;      /* and its result. */
	uint64_t idem_expires_ns;
	uint32_t call_no; /* Suspensions that are over. */
	uint32_t held;    /* Of its result, as counted for the node. */
	uint16_t loads;
	uint8_t state;
	uint8_t durability_now;
	bool wrote;   /* Something of it is proposed, in memory or has left. */
	bool dirty;   /* More of it than its key's record. */
	bool ticked;  /* It was shown an expiry between F and now. */
	bool lagging; /* Its gate is that of `lagged` and `memory`. */
	bool suspending; /* The gate is before its nested call. */
	bool unrecorded;
	bool suspended; /* It was, and counts at its object. */
	bool recorded;  /* Its key's record says `started`. */
	bool hashed;    /* The three below are filled in. */
	uint8_t idem_key[16];
	uint8_t args_hash[16];
	uint8_t who_hash[16];
	TAILQ_ENTRY(event) link;
	RB_ENTRY(event) timer_node;
	LIST_ENTRY(event) joined_link;
	LIST_HEAD(, event) joined; /* Same key, waiting for this one's end. */
};
#define EVENT_MAGIC 0x45564e54u

struct residents_config {
	uint32_t objects_max;
	uint64_t bytes_max;
	uint32_t idle_ms;
};
enum rc residents_new(struct env *env, const struct residents_config *cfg,
		      struct residents **out);
void residents_free(struct residents *r);

enum rc space_new(struct env *env, struct host *host, struct residents *res,
		  struct storage *storage, uint32_t shard, struct space **out);
/* Everything must have ended (space_lost and no load under way), or discard. */
void space_free(struct space *s);
void space_discard(struct space *s); /* The simulator's kill. */

/* This node owns the shard in `epoch` from now on; `stamp_ns` is the owner's
 * now at the takeover. */
void space_lead(struct space *s, uint64_t epoch, uint64_t stamp_ns);
/* No longer: instances are thrown away. Every event ends: what proposed nothing
 * with NOT_OWNER (refused), the rest with UNKNOWN_OUTCOME. */
void space_lost(struct space *s, uint64_t epoch);

/* Give an event in. It ends through ev->done, never from inside this call. The
 * caller has zeroed it, filled in what is marked so, and given `result` its
 * bound (pack_w_init); it releases `result` after done. */
void event_deliver(struct space *s, struct event *ev);
/* The caller is gone or its deadline passed: the event ends as soon as it may,
 * with `rc` (RC_CANCELLED or RC_DEADLINE) when nothing of it was proposed, else
 * with UNKNOWN_OUTCOME. done() follows, perhaps from inside. */
void event_cancel(struct event *ev, enum rc rc);

/* Everything up to `mark` is committed, the last of it at `index`. */
void space_committed(struct space *s, uint64_t mark, uint64_t index);
/* Everything up to `mark` is in SQLite. */
void space_stored(struct space *s, uint64_t mark);
/* Proofs up to `ticket` succeeded (RC_OK); else those events end. */
void space_proved(struct space *s, uint64_t ticket, enum rc rc);
/* A nested call ended; result is copied. An error whose outcome is unknown has
 * a code that says so (RC_UNKNOWN_OUTCOME, RC_INTERNAL): any other is taken as
 * refused. */
void space_called(struct space *s, struct event *ev, enum rc rc,
		  struct pack_bytes result, const struct detail *why);

/* Remove expired rows now, a slice at a time; a timer of the space does it
 * anyway, about once a second while something may expire. */
void space_sweep(struct space *s);

/*
 * A hand-over is planned: what objects may still spend from memory is closed,
 * exactly, and from now on everything they let in is a unit of its own. True:
 * all of that is committed (or there was no memory for it; then the next owner
 * books more than was spent). False: it is under way; ask again, in a later
 * turn. It ends with the leadership, or with space_settle_end when the
 * hand-over does not happen.
 */
bool space_settle(struct space *s);
void space_settle_end(struct space *s);

/*
 * For classes, while run() is on the stack. RC_AGAIN from any of them: return
 * RUN_LOAD at once.
 */
struct row_view {
	struct pack_bytes key;
	struct pack_bytes value;
	uint64_t expires_ns;
};
/* RC_OK, RC_NOT_FOUND (absent or expired), RC_AGAIN. */
enum rc ev_get(struct event *ev, enum row_kind kind, struct pack_bytes key,
	       struct row_view *out);
/* Say that a row will be wanted: RC_OK, or RC_AGAIN when it is not in memory.
 * Unlike after ev_get() the class may go on naming rows before it returns
 * RUN_LOAD: all of them come with one load (an event may wait for at most
 * EVENT_LOADS_MAX). */
enum rc ev_want(struct event *ev, enum row_kind kind, struct pack_bytes key);
/* Stage; visible to later ev_ calls of this event. RC_OK, RC_OVERLOADED (rows
 * or bytes of one event: the class ends with INVALID). */
enum rc ev_put(struct event *ev, enum row_kind kind, struct pack_bytes key,
	       struct pack_bytes value, uint64_t expires_ns);
enum rc ev_delete(struct event *ev, enum row_kind kind, struct pack_bytes key);
/* A row that lives in this owner's memory only (durability memory): never
 * proposed, gone with the instance; dropped some time after ev_now() has
 * reached `full_ns`, when it is worth nothing any more. */
enum rc ev_put_memory(struct event *ev, struct pack_bytes key,
		      struct pack_bytes value, uint64_t full_ns);
enum rc ev_get_memory(struct event *ev, struct pack_bytes key,
		      struct row_view *out);
enum rc ev_delete_memory(struct event *ev, struct pack_bytes key);
/* How many rows ev_put_memory keeps for this object. */
uint64_t ev_memory_rows(struct event *ev);
/* These rows from the key `start` (p == NULL: the first) on, without what is
 * staged; `cb` returns false to stop. */
void ev_scan_memory(struct event *ev, struct pack_bytes start,
		    bool (*cb)(void *arg, const struct row_view *row),
		    void *arg);
/* Rows of `kind` in [start, end), in byte order of keys; reverse: the same rows
 * from the end. `cb` returns false to stop. RC_OK or RC_AGAIN. */
enum rc ev_scan(struct event *ev, enum row_kind kind, struct pack_bytes start,
		struct pack_bytes end, bool reverse,
		bool (*cb)(void *arg, const struct row_view *row), void *arg);
/* Every row, memory rows too, is gone; revision and idempotency records stay
 * as a tombstone until the last window ends. */
void ev_destroy(struct event *ev);
/* Is there an object: live, not a tombstone, or with something staged? */
bool ev_exists(const struct event *ev);
/* The object's revision; ev_bump counts it up, once per change. */
uint64_t ev_rev(const struct event *ev);
uint64_t ev_bump(struct event *ev);
/* Rows of the object (kind ROW_DATA), staged ones included. */
uint64_t ev_rows(const struct event *ev);
/* The owner's now, the same for the whole run. */
uint64_t ev_now(const struct event *ev);
/* What was in memory before is lost: when this leadership began, or later when
 * memory was so short that rows had to be dropped before their time. */
uint64_t ev_lead_stamp(const struct event *ev);
/* The leadership under which this runs: no two owners have the same one. */
uint64_t ev_epoch(const struct event *ev);
/* A hand-over is planned: nothing may be lent. */
bool ev_settling(const struct event *ev);
/* D8: is a time that lies at `at_ns` reached? Between F and now the answer will
 * wait for a tick. */
bool ev_reached(struct event *ev, uint64_t at_ns);
/* What the event's own effects wait for; from the class's policy. */
void ev_durability(struct event *ev, enum durability d);
/* End with an error: `return ev_fail(ev, RC_CONFLICT, "if_rev", "...")` gives
 * RUN_DONE; staged rows are dropped. */
enum run ev_fail(struct event *ev, enum rc rc, const char *field,
		 const char *fmt, ...) __attribute__((format(printf, 4, 5)));
/* An answer that is not kept under the event's idempotency key (a limiter's
 * denial). Of no effect when the event stages anything. */
void ev_unrecorded(struct event *ev);
/* Forget everything staged so far (memory rows and bumps too), and go on: an
 * answer without effects. */
void ev_rollback(struct event *ev);
/* Suspend: fill ev->nested and return RUN_SUSPEND. */
enum run ev_call(struct event *ev, const char *address, const char *method,
		 struct pack_bytes args);
enum run ev_wait(struct event *ev, uint64_t until_ns);

/* The value of every row of a class begins with the version of its format, so
 * that a later Holdfast may write another and this one says so. */
#define ROW_VERSION 1u
static inline void row_version_write(struct pack_w *w)
{
	pack_u64(w, ROW_VERSION);
}
/* RC_VERSION: a newer Holdfast wrote the row. RC_CORRUPT: nobody did. */
static inline enum rc row_version_read(struct pack_r *r)
{
	uint64_t v;

	if (pack_get_u64(r, &v) != RC_OK || v == 0)
		return RC_CORRUPT;
	return v > ROW_VERSION ? RC_VERSION : RC_OK;
}

/* An object's head record: what is known of it without its rows. */
struct object_head {
	struct pack_bytes tenant, env, cls, name; /* name.n 0: by id only */
	uint64_t rev;
	uint64_t rows;          /* ROW_DATA */
	uint64_t bytes;         /* Keys and values of all rows, */
	uint64_t idem_bytes;    /* of them idempotency records. */
	uint64_t idem_until_ns; /* No idempotency record lives beyond. */
	uint64_t created_ns;
	bool destroyed; /* A tombstone. */
};
enum rc object_head_read(const struct oid *oid, struct pack_bytes sealed,
			 struct object_head *out);

struct space_stats {
	uint64_t resident; /* Objects in memory. */
	uint64_t resident_bytes;
	uint64_t events;  /* Delivered so far. */
	uint64_t waiting; /* In mailboxes, running, or at a gate. */
	uint64_t loads;
	uint64_t evictions;
};
void space_stats(const struct space *s, struct space_stats *out);

#endif
