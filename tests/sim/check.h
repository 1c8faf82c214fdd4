/*
 * check - what clients were told, and whether one object in one order could
 * have told it.
 *
 * One thread. The load records every call of an object here; when a run is
 * over each history is judged by itself. `kv`: a search for an order of all
 * calls that agrees with the order in time and with a model of the class (Wing
 * and Gong, with Lowe's memory of what was tried). Calls whose outcome is
 * unknown may be in it, between their beginning and their end, or not; refused
 * ones are not. `rate_limiter`: bounds on what was admitted, and on what was
 * denied.
 *
 * Times are of two kinds: `begun` and `ended` are numbers of events of the
 * driver, which order everything; `stamp_lo` and `stamp_hi` are the owner's now
 * (DESIGN D8) at those two moments, and expiry is judged by them, so that
 * clocks may jump.
 */
#ifndef TESTS_SIM_CHECK_H
#define TESTS_SIM_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

#define CHECK_NEVER UINT64_MAX

enum verdict {
	VERDICT_GOOD,
	VERDICT_BAD,
	VERDICT_UNDECIDED, /* The search was given up. */
};

/* What is said of a breach. */
struct breach {
	char invariant[40];
	char text[1200];
};

/* ---- kv ---- */

enum kv_value_kind { KV_NONE, KV_INT, KV_BYTES };

/* Bytes are never written twice: a number stands for them. */
struct kv_value {
	enum kv_value_kind kind;
	uint64_t v;
};

enum kv_kind {
	KV_GET,
	KV_PUT,
	KV_DELETE,
	KV_INCR,
	KV_CAS,
	KV_LIST,
	KV_BATCH,
	KV_DESTROY,
};

/* One operation, alone or of a batch: what was asked, what was answered. */
struct kv_op {
	enum kv_kind kind;
	uint16_t key;
	bool has_if_rev;
	bool existed;           /* delete, answered */
	struct kv_value value;  /* put, cas: to be written; get: answered */
	struct kv_value expect; /* cas; KV_NONE: nil */
	int64_t by;             /* incr */
	uint64_t ttl_ns;        /* put */
	uint64_t if_rev;
	uint64_t rev; /* Answered. */
	int64_t sum;  /* incr, answered */
};

struct kv_item {
	uint16_t key;
	struct kv_value value;
	uint64_t rev;
};

enum call_end {
	CALL_OPEN,    /* Not yet. */
	CALL_DONE,    /* With the answers in its operations. */
	CALL_FAILED,  /* Refused for what the object looked like: `why`. */
	CALL_REFUSED, /* Refused for anything else: it did not happen. */
	CALL_UNKNOWN, /* It may have happened. */
};

enum kv_why {
	KV_WHY_NONE,
	KV_WHY_ABSENT, /* get: there is no such key */
	KV_WHY_IF_REV, /* The key has another revision, `why_rev`. */
	KV_WHY_EXPECT_OTHER,
	KV_WHY_EXPECT_ABSENT,
	KV_WHY_TYPE,     /* incr of what is no integer */
	KV_WHY_OVERFLOW, /* incr beyond 64 bits */
	KV_WHY_IDEM,     /* The key was used with other arguments. */
	KV_WHY_LARGE,    /* The answer is too large to be recorded. */
};

struct kv_call {
	enum kv_kind kind;
	uint64_t idem;      /* Idempotency key in its scope; 0: none. */
	uint64_t args;      /* Equal for equal arguments. */
	uint64_t window_ns; /* Of the idempotency key. */
	bool answer_large;  /* Too large to be recorded under a key. */
	uint64_t begun;
	uint64_t ended;
	uint64_t stamp_lo;
	uint64_t stamp_hi;
	enum call_end end;
	enum kv_why why;
	uint32_t why_op; /* Of a batch. */
	uint64_t why_rev;
	struct kv_op *ops;
	uint32_t ops_n;
	/* list: keys from..to - 1. */
	uint16_t from;
	uint16_t to;
	uint16_t limit;
	bool reverse;
	bool more;       /* Answered: there was a cursor. */
	bool bytes_page; /* It may have ended for its bytes. */
	struct kv_item *items;
	uint32_t items_n;
	/* Private. */
	uint32_t lane;
	int32_t slot;  /* Of its key among the keys used more than once. */
	bool observed; /* Somebody saw what it wrote. */
};

struct kv_history;

struct kv_history *kv_history_new(const char *name, unsigned keys);
void kv_history_free(struct kv_history *h);
/* A call with room for so many operations, to be filled in. */
struct kv_call *kv_history_add(struct kv_history *h, uint32_t ops);
void kv_call_items(struct kv_call *c, uint32_t items);
size_t kv_history_calls(const struct kv_history *h);
enum verdict kv_history_check(struct kv_history *h, struct breach *out);

/* ---- rate_limiter ---- */

enum limiter_class {
	LIMITER_MEMORY,
	LIMITER_LAGGED,
	LIMITER_COMMITTED,
	LIMITER_LEASED,
	LIMITER_CLASSES,
};

struct limiter_call {
	uint16_t key;
	uint32_t cost;
	bool take; /* Not a dry run, not a peek. */
	bool reset;
	bool allowed;
	/* What it took may be lost with a crash: its durability is weaker than
	 * committed, and it was answered shortly before one. */
	bool perishable;
	enum call_end end;
	uint64_t begun;
	uint64_t ended;
	uint64_t stamp_lo;
	uint64_t stamp_hi;
	uint64_t begun_ms; /* World time. */
	uint64_t ended_ms;
	uint64_t term; /* Of the owner that answered; 0: not known. */
};

struct limiter_history;

/* `forgets`: it may deny for no reason that can be seen. `lease`: so many
 * permits of a key may be lost with an owner. */
struct limiter_history *limiter_history_new(const char *name,
					    enum limiter_class class,
					    uint64_t limit, uint64_t period_ns,
					    uint64_t burst, unsigned keys,
					    bool forgets, uint64_t lease);
void limiter_history_free(struct limiter_history *h);
struct limiter_call *limiter_history_add(struct limiter_history *h);
size_t limiter_history_calls(const struct limiter_history *h);
/* The i-th, in the order in which they were added. */
struct limiter_call *limiter_history_call(struct limiter_history *h, size_t i);
/* A new owner at `stamp_ns`: what was kept in memory begins empty there, what
 * was lent is spent. */
void limiter_history_lead(struct limiter_history *h, uint64_t stamp_ns);
/* At `at`, an order like `begun`, a new owner's now was `now_ns`, and
 * `last_ns`, which is later, was the last one of the owner before. */
void limiter_history_back(struct limiter_history *h, uint64_t at,
			  uint64_t last_ns, uint64_t now_ns);
enum verdict limiter_history_check(struct limiter_history *h,
				   struct breach *out);

#endif
