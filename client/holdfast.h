/*
 * holdfast - the C client of Holdfast: calls to durable objects.
 *
 * Two ways, one handle type:
 *
 *   blocking       holdfast_connect(), holdfast_call_wait(), holdfast_close().
 *                  The handle has an event loop of its own.
 *   asynchronous   holdfast_open() on your libuv loop, holdfast_call() with a
 *                  callback, as many at a time as you like; answers come in any
 *                  order.
 *
 * Threads: a handle, and what belongs to it, is used by one thread at a time;
 * an asynchronous one by the thread that runs its loop. Different handles may
 * be used by different threads at once. Nothing here is safe in a signal
 * handler, and a handle does not survive fork().
 *
 * Ownership: what you pass in is copied before the function returns. What you
 * are given (an answer and all it points to) is valid inside the callback, or
 * until the next call on the blocking handle.
 *
 * What became of a call is its answer's `outcome`: HOLDFAST_DONE,
 * HOLDFAST_REFUSED (it certainly did not happen), HOLDFAST_UNKNOWN (it may have
 * happened). The library sends a call again by itself, within its deadline,
 * where that is safe: after a refusal that time may cure, or when no byte of it
 * was sent; an unknown outcome only if the call has an idempotency key.
 * Everything else is said to you.
 *
 * Calls of one handle to one object are executed in the order they were made,
 * while the connection lasts and none is sent again.
 *
 *	struct holdfast *h;
 *	struct holdfast_request r = HOLDFAST_CALL("kv/cart", "incr");
 *	const struct holdfast_answer *a;
 *	int64_t value;
 *
 *	if (holdfast_connect(NULL, &h, NULL, 0) != HOLDFAST_OK)
 *		...
 *	r.args = holdfast_args_new();
 *	holdfast_args_str(r.args, "key", "apples");
 *	if (holdfast_call_wait(h, &r, &a) == HOLDFAST_OK)
 *		holdfast_get_int(a, "value", &value);
 *	holdfast_args_free(r.args);
 *	holdfast_close(h, NULL, NULL);
 *
 * Structs begin with their size (the initializers set it), so that a program
 * and a library of different versions understand each other: fields are only
 * added, at the end.
 */
#ifndef HOLDFAST_H
#define HOLDFAST_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HOLDFAST_API __attribute__((visibility("default")))

#define HOLDFAST_VERSION_MAJOR 0
#define HOLDFAST_VERSION_MINOR 1
#define HOLDFAST_VERSION_PATCH 0

struct uv_loop_s;
struct holdfast;
struct holdfast_args;

/* What goes wrong; docs/protocol.md says when. Numbers are stable. */
enum holdfast_code {
	HOLDFAST_OK = 0,
	HOLDFAST_INVALID = 1,
	HOLDFAST_UNAUTHENTICATED = 2,
	HOLDFAST_DENIED = 3,
	HOLDFAST_NOT_FOUND = 4,
	HOLDFAST_CONFLICT = 5,
	HOLDFAST_CYCLE = 6,
	HOLDFAST_CANCELLED = 7,
	HOLDFAST_LIMITED = 8,
	HOLDFAST_INTERNAL = 9,
	HOLDFAST_UNSUPPORTED = 10,
	HOLDFAST_OVERLOADED = 11,
	HOLDFAST_NOT_OWNER = 12,
	HOLDFAST_NO_QUORUM = 13,
	HOLDFAST_SEALED = 14,
	HOLDFAST_DEADLINE = 15,
	HOLDFAST_NO_SPACE = 16,
	HOLDFAST_UNKNOWN_OUTCOME = 17,
	/* Of this library alone. */
	HOLDFAST_UNREACHABLE = 200, /* No connection to a server. */
	HOLDFAST_NO_MEMORY = 201,
};

enum holdfast_outcome {
	HOLDFAST_DONE,
	HOLDFAST_REFUSED,
	HOLDFAST_UNKNOWN,
};

enum holdfast_durability {
	HOLDFAST_DURABILITY_CLASS, /* What the class or its policy says. */
	HOLDFAST_DURABILITY_MEMORY,
	HOLDFAST_DURABILITY_LAGGED,
	HOLDFAST_DURABILITY_COMMITTED,
};

/* Of the library that is linked, as "0.1.0". */
HOLDFAST_API const char *holdfast_version(void);
/* "OVERLOADED"; "INTERNAL" for a number that is none. Static. */
HOLDFAST_API const char *holdfast_code_name(int code);

/* ---------------------------------------------------------------- handles ---
 */

/* Told when the first connection to a server stands (1), and when the last one
 * is lost or none can be made (0, with a sentence). */
typedef void (*holdfast_state_cb)(void *arg, int connected, const char *why);

/*
 * Zero or NULL stands for the default of each.
 *
 * Where the servers are is said by the first of these that is there: `socket`,
 * `endpoints`, `config`, the environment's HOLDFAST_CONFIG (as `config`) and
 * HOLDFAST_SOCKET (as `socket`), else holdfast.sock in the user's state
 * directory, holdfast/ below $XDG_STATE_HOME or ~/.local/state.
 *
 * With several servers, or one that is reached over TCP, the handle connects to
 * all members of the cluster, learns which of them owns which object, and calls
 * that one; while it cannot, another one that passes the call on.
 */
struct holdfast_options {
	size_t size;
	/* Path of one server's Unix socket. */
	const char *socket;
	/* Calls without an answer; 1 to 65,536, default 4,096. Another one is
	 * HOLDFAST_OVERLOADED. */
	uint32_t calls_max;
	/* How long holdfast_connect() waits; default 5,000. */
	uint32_t connect_ms;
	/* Asynchronous handles only. */
	holdfast_state_cb state;
	void *state_arg;
	/* Path of a client.yaml (client/profile.h): endpoints, and ca, cert and
	 * key. */
	const char *config;
	/* Or these: "host:port", "[address]:port" or the path of a Unix socket,
	 * at most 8. */
	const char *const *endpoints;
	size_t endpoints_n;
	/* With endpoints that are reached over TCP, PEM files: the cluster's
	 * certificate, ours and its key. They are read again when a connection
	 * is made after the certificate's file has changed. */
	const char *ca;
	const char *cert;
	const char *key;
	/* 1: these servers alone, not the members that they name. */
	int only;
};
#define HOLDFAST_OPTIONS                                                       \
	{                                                                      \
		sizeof(struct holdfast_options), NULL, 0, 0, NULL, NULL, NULL, \
			NULL, 0, NULL, NULL, NULL, 0                           \
	}

/*
 * The socket's path that is used when options name no server, in `out`; whether
 * the environment has a HOLDFAST_CONFIG is not looked at. HOLDFAST_OK, or
 * HOLDFAST_INVALID when it does not fit `out_bytes` or the environment has no
 * home directory.
 */
HOLDFAST_API int holdfast_default_socket(char *out, size_t out_bytes);

/*
 * A blocking handle, connected and greeted by the server. `o` may be NULL.
 * Else `*out` is untouched, and `why` (may be NULL) of `why_bytes` has a
 * sentence: HOLDFAST_UNREACHABLE, HOLDFAST_UNSUPPORTED (the server speaks
 * another version), HOLDFAST_INVALID, HOLDFAST_NO_MEMORY.
 * A connection that is lost later is made anew by the next call.
 */
HOLDFAST_API int holdfast_connect(const struct holdfast_options *o,
				  struct holdfast **out, char *why,
				  size_t why_bytes);

/*
 * An asynchronous handle on `loop`. It connects as soon as the loop runs, and
 * again whenever the connection is lost; calls may be made at once and wait for
 * it within their deadlines. It keeps the loop alive until it is closed.
 * HOLDFAST_OK, HOLDFAST_INVALID, HOLDFAST_NO_MEMORY.
 */
HOLDFAST_API int holdfast_open(struct uv_loop_s *loop,
			       const struct holdfast_options *o,
			       struct holdfast **out);

typedef void (*holdfast_close_cb)(void *arg);

/*
 * Close a handle. NULL is fine.
 * Blocking: it is gone when this returns; `cb` (may be NULL) has been called.
 * Asynchronous: all calls without an answer get one first
 * (HOLDFAST_CANCELLED or HOLDFAST_UNKNOWN_OUTCOME), then `cb`, from the loop,
 * never from inside this; after that the handle is gone. May be called from a
 * callback of the handle. Once.
 */
HOLDFAST_API void holdfast_close(struct holdfast *h, holdfast_close_cb cb,
				 void *arg);

/* -------------------------------------------------------------- arguments ---
 */

/*
 * The arguments of a call: a map. Functions return HOLDFAST_OK,
 * HOLDFAST_NO_MEMORY, HOLDFAST_INVALID (json, raw: not one value) or
 * HOLDFAST_OVERLOADED (2 MiB are full); after one that failed a call with
 * these arguments fails the same way, so checking there is enough.
 */
HOLDFAST_API struct holdfast_args *holdfast_args_new(void);
HOLDFAST_API void holdfast_args_free(struct holdfast_args *a);
HOLDFAST_API void holdfast_args_reset(struct holdfast_args *a);
HOLDFAST_API int holdfast_args_str(struct holdfast_args *a, const char *key,
				   const char *text);
HOLDFAST_API int holdfast_args_bin(struct holdfast_args *a, const char *key,
				   const void *p, size_t n);
HOLDFAST_API int holdfast_args_int(struct holdfast_args *a, const char *key,
				   int64_t v);
HOLDFAST_API int holdfast_args_bool(struct holdfast_args *a, const char *key,
				    int v);
HOLDFAST_API int holdfast_args_nil(struct holdfast_args *a, const char *key);
/* `json`, as one JSON value, becomes the value of `key`. */
HOLDFAST_API int holdfast_args_json(struct holdfast_args *a, const char *key,
				    const char *json);
/* The same with one encoded MessagePack object. */
HOLDFAST_API int holdfast_args_raw(struct holdfast_args *a, const char *key,
				   const void *p, size_t n);

/* ------------------------------------------------------------------ calls ---
 */

/* Bits of holdfast_request.flags. */
#define HOLDFAST_META 1u /* Ask for shard, term and index. */
#define HOLDFAST_ONCE 2u /* Never send it a second time. */
#define HOLDFAST_REDIRECT                           \
	4u /* Never let a node pass it on: with one \
	    * server the answer is HOLDFAST_NOT_OWNER. */

/* Begin with HOLDFAST_CALL or HOLDFAST_RPC. */
struct holdfast_request {
	size_t size;
	/* A call of an object: `class/name`, and a method of its class. */
	const char *address;
	const char *method;
	/* A method of the server itself (`ping`, `status`, `metrics` ...)
	 * instead: then address, method and args are NULL. */
	const char *rpc;
	struct holdfast_args *args; /* NULL: none. */
	/* Or encoded MessagePack: a map; with `rpc` the array of params. */
	const void *raw;
	size_t raw_bytes;
	uint32_t deadline_ms; /* 1 to 60,000; default 5,000. */
	/* Idempotency key, 1 to 64 bytes: the call takes effect at most once
	 * within the key's window, idem_ms (default 600,000). */
	const void *idem;
	size_t idem_bytes;
	uint64_t idem_ms;
	const char *trace; /* W3C traceparent. */
	enum holdfast_durability durability;
	unsigned flags;
};
#define HOLDFAST_CALL(address_, method_)                                      \
	{                                                                     \
		sizeof(struct holdfast_request), (address_), (method_), NULL, \
			NULL, NULL, 0, 0, NULL, 0, 0, NULL,                   \
			HOLDFAST_DURABILITY_CLASS, 0                          \
	}
#define HOLDFAST_RPC(rpc_)                                                 \
	{                                                                  \
		sizeof(struct holdfast_request), NULL, NULL, (rpc_), NULL, \
			NULL, 0, 0, NULL, 0, 0, NULL,                      \
			HOLDFAST_DURABILITY_CLASS, 0                       \
	}

struct holdfast_answer {
	int code; /* enum holdfast_code */
	enum holdfast_outcome outcome;
	/* HOLDFAST_OK: the value, one encoded MessagePack object. */
	const void *value;
	size_t value_bytes;
	/* Else: a sentence, and what is known besides; empty when it is not. */
	const char *message;
	const char *field;
	const char *request_id;
	int64_t retry_after_ms; /* -1: not said. */
	/* The object's owner: with HOLDFAST_META, or HOLDFAST_NOT_OWNER. */
	const char *owner;
	/* With HOLDFAST_META and HOLDFAST_OK. */
	uint32_t shard;
	uint64_t term;
	uint64_t index;
	uint32_t tries; /* How often it was sent. */
	int local;      /* 1: the server did not say this, the library did. */
};

typedef void (*holdfast_cb)(void *arg, const struct holdfast_answer *a);

/*
 * Make a call and wait for its answer, which `*out` (may be NULL) points to
 * until the next call; it is set whatever happened. Returns its code.
 * Blocking handles only.
 */
HOLDFAST_API int holdfast_call_wait(struct holdfast *h,
				    const struct holdfast_request *r,
				    const struct holdfast_answer **out);

/*
 * Make a call. HOLDFAST_OK: `cb` will be called exactly once, from the loop,
 * never from inside this; `*ticket` (may be NULL) is for holdfast_cancel().
 * Else nothing was begun and `cb` is never called: HOLDFAST_INVALID,
 * HOLDFAST_OVERLOADED (calls_max), HOLDFAST_NO_MEMORY, HOLDFAST_CANCELLED (the
 * handle is being closed); holdfast_why() has the sentence.
 * Asynchronous handles only. Calls that are made in one turn of the loop share
 * a write.
 */
HOLDFAST_API int holdfast_call(struct holdfast *h,
			       const struct holdfast_request *r, holdfast_cb cb,
			       void *arg, uint64_t *ticket);

/* Why the last function on this handle failed; "" when none did. */
HOLDFAST_API const char *holdfast_why(const struct holdfast *h);

/*
 * Give a call up. Its callback still comes: HOLDFAST_CANCELLED if it certainly
 * did not happen, else what the server says. No-op when it has ended.
 */
HOLDFAST_API void holdfast_cancel(struct holdfast *h, uint64_t ticket);

/* ---------------------------------------------------------------- answers ---
 */

/*
 * The value of `key` in an answer that is a map. HOLDFAST_OK;
 * HOLDFAST_NOT_FOUND: it is no map or has no such key; HOLDFAST_INVALID: the
 * value is of another type. `out` is set with HOLDFAST_OK only.
 */
HOLDFAST_API int holdfast_get_int(const struct holdfast_answer *a,
				  const char *key, int64_t *out);
HOLDFAST_API int holdfast_get_bool(const struct holdfast_answer *a,
				   const char *key, int *out);
/* str or bin; points into the answer, no NUL behind it. */
HOLDFAST_API int holdfast_get_bytes(const struct holdfast_answer *a,
				    const char *key, const void **p, size_t *n);
/* Any value: its encoded MessagePack object, in the answer. */
HOLDFAST_API int holdfast_get_raw(const struct holdfast_answer *a,
				  const char *key, const void **p, size_t *n);

/* The answer's value as JSON text, to be freed with free(); NULL: out of
 * memory or no value. bin is {"$bin": "base64"}. */
HOLDFAST_API char *holdfast_json(const struct holdfast_answer *a);

#ifdef __cplusplus
}
#endif

#endif
