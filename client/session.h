/*
 * session - a client's side of the conversation, without I/O.
 *
 * Requests go in; bytes to send come out, bytes received go in, answers come
 * out. In between: ids and their matching, deadlines, cancel, and the rule when
 * a call may be sent again. No socket, no clock, no random source: bytes, time
 * (nanoseconds of any clock that never goes back) and a seed are arguments, so
 * the client library (client/client.c) and the simulator's clients run the same
 * code. One thread at a time per session.
 *
 * A link is a place for one connection to one node, known by its number. The
 * transport asks session_wants_link() whether to connect it, says
 * session_opening(), then session_opened() or session_lost(), fills
 * session_room() and calls session_input(), sends session_output() and says how
 * much of it was taken with session_sent(), and calls session_tick() when
 * session_due() has come and after each batch of requests.
 *
 * With several links (those it was made with, and with `learn` those of the
 * members that `hello` names) a call goes to the link of the node that owns the
 * object, as far as that was told (client/routes.h), and asks to be told when
 * it is another one: NOT_OWNER with owner and shard costs a hop, once for each
 * address and once for each move of a shard. To an owner whose link does not
 * stand a call goes through any other, which forwards it. A link on which
 * nothing comes for SESSION_SILENT_MS while something is waited for, a ping
 * included, is stale: the transport closes it.
 *
 * When a call is sent again, within its deadline:
 *   - a refusal with OVERLOADED, NOT_OWNER or NO_QUORUM: it did not happen.
 *     After a pause with jitter, at least the server's retry_after_ms; at
 *     once to the owner that a refusal names;
 *   - a connection that is lost before a byte of the call was taken: the same;
 *   - an outcome that is unknown (the connection is lost later, or the server
 *     says so): only with an idempotency key, or when the request is none that
 *     changes anything (ping, status ...). If a later try is refused the
 *     outcome stays unknown: the refusal says nothing of the tries before.
 * A call that was sent is given up SESSION_GRACE_MS after its deadline, because
 * the server's word on it is worth more than ours; its outcome is then unknown.
 * A call that was never sent ends at its deadline, refused.
 *
 * Order: calls are sent in the order they were started while their link
 * stays; one that is sent again goes behind the others. When the owner of an
 * object changes, calls to it wait for those under way to the old one, at most
 * SESSION_HOLD_MS, so that refusals keep the order too.
 */
#ifndef HOLDFAST_CLIENT_SESSION_H
#define HOLDFAST_CLIENT_SESSION_H

#include "client/proto/frame.h"

#define SESSION_LINKS_MAX           8
#define SESSION_CALLS_MAX           65536u
#define SESSION_CALLS_DEFAULT       4096u
#define SESSION_IN_FLIGHT_DEFAULT   1024u /* As many as a node takes. */
#define SESSION_DEADLINE_DEFAULT_MS 5000u
#define SESSION_IDEM_DEFAULT_MS     600000u
#define SESSION_DEADLINE_MAX_MS     60000u
#define SESSION_GRACE_MS            250u
#define SESSION_FRAME_BYTES_MAX     (4u << 20) /* An answer. */
#define SESSION_REQUEST_BYTES_MAX                                   \
	((2u << 20) - 1024u)                 /* A node takes 2 MiB. \
					      */
#define SESSION_OUT_BYTES_MAX     (8u << 20) /* Unsent, of one link. */
#define SESSION_ADDRESS_BYTES_MAX 2048u
#define SESSION_IDEM_BYTES_MAX    64u
#define SESSION_TRACE_BYTES_MAX   128u
#define SESSION_TRIES_DEFAULT     32u
#define SESSION_SILENT_MS         1000u /* Half of it until a ping. */
#define SESSION_CONNECT_MS        2000u /* From opening to opened. */
#define SESSION_HOLD_MS           50u
#define SESSION_NODE_BYTES_MAX    64u
#define SESSION_RPC_BYTES_MAX     272u /* "host:port" */
#define SESSION_PROTOCOL          1    /* Version of docs/protocol.md. */

struct session;

/* Zero stands for the default of each. */
struct session_options {
	uint64_t seed;          /* Of the jitter. */
	uint32_t links;         /* 1..SESSION_LINKS_MAX; default 1. */
	uint32_t calls_max;     /* 1..SESSION_CALLS_MAX, unanswered ones. */
	uint32_t in_flight_max; /* Sent and unanswered, of one link. */
	uint32_t tries_max;     /* How often one call is sent at most. */
	const char *greet;      /* Sent with `hello` on each new link as the
				 * name of the client; NULL: no hello. The
				 * string outlives the session. */
	/* One for each link, NULL or of `links` strings, "" where it is not
	 * known: the address as members are told to advertise it, and the name
	 * of the node. Copied; one that is too long counts as not known. */
	const char *const *rpcs;
	const char *const *nodes;
	bool learn;             /* Members that hello names become links too. */
	uint32_t addresses_max; /* Whose owners are remembered; routes.h. */
};

enum session_durability {
	SESSION_DURABILITY_CLASS, /* The class's own default. */
	SESSION_DURABILITY_MEMORY,
	SESSION_DURABILITY_LAGGED,
	SESSION_DURABILITY_COMMITTED,
};

/* What to ask. Nothing of it needs to outlive session_start(). Empty strings
 * and zeroes leave an option out. */
struct session_request {
	/* NULL: `call`, with the three below; else this method, with `args`
	 * as the encoded params array (empty: []). */
	const char *rpc;
	struct pack_bytes address;
	struct pack_bytes method;
	struct pack_bytes args; /* An encoded map; empty: {}. */

	uint32_t deadline_ms; /* 1..SESSION_DEADLINE_MAX_MS; 0: the default. */
	struct pack_bytes idem; /* 1..64 bytes, sent as bin. */
	uint64_t idem_ms;       /* 0: SESSION_IDEM_DEFAULT_MS. */
	struct pack_bytes trace;
	enum session_durability durability;
	bool stale_read;
	bool redirect; /* Never forward: say who the owner is. */
	bool meta;
	bool once; /* Never send it a second time. */
};

/* Valid inside the callback. */
struct session_answer {
	enum rc rc; /* A code that goes over the wire. */
	enum outcome outcome;
	struct pack_bytes result; /* RC_OK: one encoded object. */
	struct frame_error error; /* Else. */
	bool ours;                /* The server did not say this. */
	uint32_t tries;           /* How often it was sent. */
};

typedef void (*session_cb)(void *arg, const struct session_answer *a);

/*
 * RC_OK: `*out` is to be freed with session_free(). RC_INVALID: an option is
 * out of bounds. RC_NOMEM.
 */
enum rc session_new(const struct session_options *o, struct session **out);

/* Frees a session without an unanswered call (session_end() first). NULL is
 * fine. Never from inside a callback. */
void session_free(struct session *s);

/*
 * RC_OK: `cb` fires exactly once, from session_input(), session_tick() or
 * session_end(), never from inside this; `*ticket` (may be NULL) is never 0.
 * Else nothing was started: RC_INVALID (`why` names the field),
 * RC_OVERLOADED (calls_max are unanswered), RC_NOMEM.
 */
enum rc session_start(struct session *s, const struct session_request *r,
		      uint64_t now_ns, session_cb cb, void *arg,
		      uint64_t *ticket, struct detail *why);

/*
 * Give a call up. One that was not sent, or is between two tries, ends with
 * RC_CANCELLED at the next tick; for one that was, the server is told and its
 * answer, whatever it is, ends the call. No-op for a ticket that has ended.
 */
void session_cancel(struct session *s, uint64_t ticket, uint64_t now_ns);

/* Ends every call: RC_CANCELLED where it certainly did not happen,
 * RC_UNKNOWN_OUTCOME where it may have. Calls started by the callbacks are
 * refused. Never from inside a callback. */
void session_end(struct session *s);

/* How many links there are; more than before after session_input() with
 * `learn`, never more than SESSION_LINKS_MAX. */
uint32_t session_links(const struct session *s);
/* Where it leads, and to whom; "" when it is not known. Valid until the next
 * session_input(). */
const char *session_link_rpc(const struct session *s, uint32_t link);
const char *session_link_node(const struct session *s, uint32_t link);

/* The transport should connect this link now. */
bool session_wants_link(const struct session *s, uint32_t link,
			uint64_t now_ns);
/* It has begun to. */
void session_opening(struct session *s, uint32_t link);
void session_opened(struct session *s, uint32_t link, uint64_t now_ns);
/* The link was closed, or could not be opened. `text` says why (may be NULL).
 * The callbacks of what ends by it come with the next tick. */
void session_lost(struct session *s, uint32_t link, uint64_t now_ns,
		  const char *text);
bool session_is_open(const struct session *s, uint32_t link);
/* Nothing was heard on it for too long, as session_tick() found: the transport
 * closes it and calls session_lost(). */
bool session_is_stale(const struct session *s, uint32_t link);
/* The server has answered something on it. */
bool session_is_greeted(const struct session *s, uint32_t link);

/* Room for at least 1 received byte: `*p`, `*n`. RC_NOMEM. */
enum rc session_room(struct session *s, uint32_t link, uint8_t **p, size_t *n);
/*
 * `n` bytes were put there. Callbacks fire. RC_OK, or with `why`: RC_INVALID
 * (that is no MessagePack-RPC server), RC_VERSION (it speaks another version):
 * the transport closes the connection and calls session_lost().
 */
enum rc session_input(struct session *s, uint32_t link, size_t n,
		      uint64_t now_ns, struct detail *why);

/* What is to be sent; empty when there is nothing. Valid until the next call
 * of the session. */
struct pack_bytes session_output(const struct session *s, uint32_t link);
/* The transport has taken the first `n` bytes of it. */
void session_sent(struct session *s, uint32_t link, size_t n, uint64_t now_ns);

/* When session_tick() must be called next; UINT64_MAX: there is no need. */
uint64_t session_due(const struct session *s);
/* Ends what is due, sends what is waiting. Callbacks fire. */
void session_tick(struct session *s, uint64_t now_ns);

/* Calls without an answer. */
uint32_t session_calls(const struct session *s);

#endif
