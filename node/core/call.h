/*
 * call - one call as a state machine: parse, bind, route, execute, reply.
 *
 * Loop thread. The only file that sees both a caller and an object.
 *
 *   PARSED -> EXECUTING -> REPLYING -> (freed)
 *
 * Every call that was started ends through its reply callback, exactly once,
 * at the latest a turn after its deadline.
 */
#ifndef HOLDFAST_CORE_CALL_H
#define HOLDFAST_CORE_CALL_H

#include "node/core/core.h"
#include "objects/object.h"

/* Who is calling and where the answer goes. */
struct caller {
	struct pack_bytes principal; /* Stays valid while calls are open. */
	struct pack_bytes tenant;    /* Of addresses that name none. */
	struct pack_bytes env;
	bool alone; /* It has no other call in flight. */
};

/* The answer; views are valid inside the callback. */
struct answer {
	enum rc rc;
	enum outcome outcome;
	struct pack_bytes result; /* One encoded value when rc is RC_OK, with
				   * `meta` already around it. */
	const struct detail *why;
	bool repeatable; /* It changed nothing: it may as well be asked again.
			  */
	int64_t retry_after_ms; /* < 0: none. */
	uint64_t request_id;
	uint64_t owner; /* Node id, 0: none to tell. */
	uint32_t shard; /* Of the object; UINT32_MAX: not known. */
};
typedef void (*call_reply)(void *arg, const struct answer *a);

/*
 * Start a call from its `params` ([address, method, args, options?], encoded
 * and passed by pack_check). Copies what it keeps. `reply` never fires from
 * inside. Returns NULL when as many calls are in flight as may be
 * (admission.h): nothing of it was looked at, and the caller answers OVERLOADED
 * itself.
 */
struct call *call_start(struct core *core, const struct caller *caller,
			struct pack_bytes params, call_reply reply, void *arg);
/* The caller does not want it any more (RC_CANCELLED) or is gone: the reply
 * still fires, perhaps from inside. */
void call_cancel(struct call *c);
uint64_t call_request_id(const struct call *c);
/* What its answer takes so far, before it may leave. */
size_t call_held_bytes(const struct call *c);

/* Whether grants can be gone by now (DESIGN D10): not while this node has not
 * read the cluster's directory for too long, or yet. What is decided without a
 * call asks this first: RC_OK, or RC_NO_QUORUM. */
enum rc call_may_decide(struct core *core, struct detail *why);

#define CALL_ID_BYTES 17u
/* A request id as errors and log lines spell it. */
void call_id_text(uint64_t request_id, char out[CALL_ID_BYTES]);

#endif
