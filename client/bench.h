/*
 * bench - load for a cluster or one server, and what they did with it.
 *
 * One process, one thread, one epoll loop; requests are composed from parts
 * that were encoded before, written once per turn and connection, and answers
 * are read in place: the load generator shares its machine with the server, so
 * it has to be cheap.
 *
 * Closed loop (rate 0): each connection keeps `pipeline` calls in flight; a
 * latency runs from the composition of a request to its answer. Open loop:
 * calls begin at fixed times, some together so that they share a write; those
 * that find no free place wait here, and a latency runs from the time at which
 * the call should have begun.
 *
 * With several nodes each client has a connection to every one of them and
 * sends a call to the node that owns the object, as it was told (NOT_OWNER); a
 * hop is part of its latency. Unlike the library's, its calls are never
 * repeated.
 */
#ifndef HOLDFAST_CLIENT_BENCH_H
#define HOLDFAST_CLIENT_BENCH_H

#include <stdbool.h>
#include <stdint.h>

#include "client/proto/rc.h"

#define BENCH_CLIENTS_MAX  4096u
#define BENCH_PIPELINE_MAX 8192u
#define BENCH_OBJECTS_MAX  10000000u
#define BENCH_PREFIX_MAX   200u
#define BENCH_NODES_MAX    8u

enum bench_work {
	BENCH_NULL, /* ping */
	BENCH_KV_PUT,
	BENCH_KV_INCR, /* key "n" */
	BENCH_KV_GET,  /* of objects that it writes first */
	BENCH_LIMIT_MEMORY,
	BENCH_LIMIT_LAGGED,
	BENCH_LIMIT_LEASED,
	BENCH_LIMIT_COMMITTED,
	BENCH_IDLE, /* memory of objects that do nothing */
	BENCH_WORKS,
};

/* "kv-put" ...; NULL for BENCH_WORKS. */
const char *bench_work_name(enum bench_work work);

struct bench_node {
	const char *name; /* As owners are named; "": as hello says. */
	const char *rpc;  /* host:port, or the path of a socket. */
};

struct bench_options {
	enum bench_work work;
	struct bench_node nodes[BENCH_NODES_MAX];
	uint32_t nodes_n;
	const char *ca; /* For host:port; else NULL. */
	const char *cert;
	const char *key;
	bool through_one;   /* All to the first node, which forwards. */
	uint32_t forwarded; /* Of 100 calls so many to a node that does not own
			     * the object. */
	const char *prefix; /* As it stands in an address: escaped. */
	uint32_t clients;
	uint32_t pipeline;    /* Calls in flight of each. */
	uint32_t objects;     /* kv: PREFIX0 ..; limiters for limit-*. */
	uint32_t keys;        /* Keys of all limiters together. */
	uint32_t value_bytes; /* kv-put, kv-get. */
	uint64_t rate;        /* Calls a second; 0: closed loop. */
	uint32_t warm_ms;     /* Not measured. */
	uint32_t seconds;
	bool keyed; /* Writes carry idempotency keys. */
};

/* Where the time of calls goes on the nodes: keys of `stages` of status. */
enum bench_stage {
	BENCH_EXECUTE,
	BENCH_PROPOSE,
	BENCH_LOG,
	BENCH_ROUND,
	BENCH_RELEASE,
	BENCH_SEND,
	BENCH_LOG_WRITER,
	BENCH_STORAGE,
	BENCH_STAGES,
};
/* "execute" ...; NULL for BENCH_STAGES. */
const char *bench_stage_name(enum bench_stage stage);

struct bench_result {
	uint64_t ok;      /* Acknowledged, limiter checks allowed. */
	uint64_t denied;  /* Acknowledged, limiter checks denied. */
	uint64_t refused; /* Errors with outcome refused. */
	uint64_t unknown; /* With outcome unknown, lost connections included. */
	uint64_t errors;  /* Lost connections, malformed answers, calls without
			   * one, INTERNAL. */
	uint64_t acked_total; /* ok, warm-up and end included. */
	uint64_t unknown_total;
	double elapsed_s;
	double ops_per_s;
	double p50_us;
	double p99_us;
	double p999_us;
	double max_us;
	double mean_us;
	/* From the nodes' status, all together; -1 when one did not say. */
	double syncs;
	double syncs_per_op;
	double server_cpu_us_per_op;
	double stage_us_per_op[BENCH_STAGES];
	double frames_per_op;        /* Read from clients, sent to peers. */
	double peer_frames_per_op;   /* Of these the second. */
	double rss_bytes_per_object; /* BENCH_IDLE; else 0. */
	double loop_stall_max_us;    /* Of the worst node. */
	double rss_bytes;            /* Of the largest. */
	double objects_resident;
	double client_cpu_us_per_op;
	double generator_late_us; /* Open loop: the latest beginning. */
	uint64_t unsent; /* Open loop: should have been sent, were not. */
	uint64_t hops;   /* From a node to the one it named. */
	/* Open loop: more than one call of 100 was not sent: whatever else is
	 * said, the load was not the one that was asked for. */
	bool is_void;
};

/*
 * RC_OK: `*r` is filled, whatever the server answered. Else `why` says what
 * went wrong before the measurement: RC_IO (no connection), RC_CONFLICT (the
 * set-up was refused), RC_UNKNOWN_OUTCOME (or may have happened), RC_NOMEM,
 * RC_INVALID (an option).
 */
enum rc bench_run(const struct bench_options *o, struct bench_result *r,
		  struct detail *why);

#endif
