/*
 * forward - calls that another node executes, and those it sends here.
 *
 * Loop thread. One hop over the bulk link (CHANNEL_CALL): the node that a
 * client called is the entry, the shard's leader is the owner. The entry sends
 * address, method, arguments and options as they came, with the principal (only
 * a link between members carries one), the time that is left of the deadline,
 * and the chain of a nested call; the owner parses, resolves and executes them
 * as if they were its own, never forwards them again, and answers with what the
 * client is to get. A call that the owner refuses as NOT_OWNER is sent on to
 * whom it names, within its deadline; one whose bytes reached a link that was
 * lost ends with UNKNOWN_OUTCOME and is never sent twice. Records byte by byte
 * at the top of forward.c.
 */
#ifndef HOLDFAST_CORE_FORWARD_H
#define HOLDFAST_CORE_FORWARD_H

#include "node/core/call.h"

struct forwards;

/* RC_NOMEM. */
enum rc forwards_new(struct core *core, struct transport *t,
		     struct forwards **out);
void forwards_free(struct forwards *f);

/* One call on its way; embedded by its call. */
struct forward {
	/* Once, never from inside forward_send. The views of the answer are
	 * valid inside. */
	void (*answered)(struct forward *f, const struct answer *a);
	uint64_t node_id; /* Private, as all below. */
	uint64_t number;
	uint64_t epoch;
};

struct forward_request {
	struct pack_bytes principal;
	struct pack_bytes tenant; /* Of addresses that name none. */
	struct pack_bytes env;
	struct pack_bytes params; /* [address, method, args, options?] */
	uint32_t deadline_ms;     /* What is left of it. */
	uint32_t depth;
	const struct chain *chain; /* NULL: a client's call. */
	uint64_t request_id;       /* The owner's log names it too. */
};

/* RC_OK: `answered` will be called. RC_NO_QUORUM (no link to it), RC_OVERLOADED
 * (its queue is full): nothing was sent. */
enum rc forward_send(struct forwards *fs, struct forward *f, uint64_t node_id,
		     const struct forward_request *r);
/* There is a link to it. */
bool forward_reaches(struct forwards *fs, uint64_t node_id);
/* Nobody waits any more: the owner is told, `answered` is not called. */
void forward_cancel(struct forwards *fs, struct forward *f);
/* The caller does not want it any more: the owner is told, and what it says to
 * that is still answered. */
void forward_recall(struct forwards *fs, struct forward *f);

struct forward_stats {
	uint64_t sent;   /* To owners, */
	uint64_t lost;   /* of them on a link that was lost. */
	uint64_t served; /* For other nodes. */
	uint64_t broken; /* Records that were none. */
};
void forwards_stats(const struct forwards *fs, struct forward_stats *out);

#endif
