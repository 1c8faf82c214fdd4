/*
 * rpc - the MessagePack-RPC server: listeners, connections, their bounds.
 *
 * Loop thread. A connection reads frames in place, starts calls, and writes all
 * answers of a loop turn at once. What is not a call (hello, ping, status ...)
 * is answered here with the help of `struct rpc_host`.
 *
 * Unix sockets are created with mode 0600 and serve the own uid and root only;
 * the principal of a connection is unix:NODE:UID, in default/dev. Over TCP
 * there is TLS with client certificates (client/tls.h); the principal is the
 * certificate's URI, which must be
 * spiffe://CLUSTER/tenant/T/env/E/client/NAME of this cluster, and T/E are the
 * caller's; whoever has another is refused before anything it says is read. A
 * connection ends with the certificate that it was opened with.
 */
#ifndef HOLDFAST_NODE_RPC_H
#define HOLDFAST_NODE_RPC_H

#include <uv.h>

#include "client/tls.h"
#include "node/base/env.h"
#include "node/core/call.h"

struct rpc;
struct rpc_slot; /* One request that waits for its answer. */

/* What the daemon tells about itself; each writes one encoded value. */
struct rpc_host {
	void *arg;
	void (*status)(void *arg, const struct caller *caller, bool reset_stall,
		       struct pack_w *out);
	void (*metrics)(void *arg, struct pack_w *out);
	/* An array: who the members are, and where they take clients. */
	void (*members)(void *arg, struct pack_w *out);
	/* Asynchronous: answers through rpc_answer, perhaps from inside. */
	void (*objects)(void *arg, const struct caller *caller,
			struct pack_bytes params, struct rpc_slot *slot);
	void (*object)(void *arg, const struct caller *caller,
		       struct pack_bytes params, struct rpc_slot *slot);
	void (*shard)(void *arg, const struct caller *caller,
		      struct pack_bytes params, struct rpc_slot *slot);
	void (*transfer)(void *arg, const struct caller *caller,
			 struct pack_bytes params, struct rpc_slot *slot);
};

struct rpc_config {
	const char *socket_path; /* NULL or empty: none. */
	const char *listen_host; /* NULL: not over TCP. */
	uint16_t listen_port;    /* 0: any. */
	struct tls_context *tls; /* Of the TCP listener; stays the caller's. */
	uint32_t connections_max;
	uint32_t frame_stall_ms; /* FRAME_STALL_MS */
	uint32_t write_stall_ms; /* WRITE_STALL_MS */
	uint32_t handshake_ms;   /* 0: CONNECTION_HANDSHAKE_MS */
};

/* RC_EXISTS: somebody listens on the socket or port; RC_INVALID: the path is
 * too long, the host is none; RC_IO, RC_NOMEM otherwise. A dead socket file is
 * replaced. After an error nothing is left but a handle that closes in the
 * loop. */
enum rc rpc_open(uv_loop_t *loop, struct env *env, struct core *core,
		 const struct rpc_config *cfg, const struct rpc_host *host,
		 struct rpc **out, struct detail *why);
/* The TCP port; 0: none. */
uint16_t rpc_port(const struct rpc *rpc);
/* A renewed certificate, for new connections. */
void rpc_tls(struct rpc *rpc, struct tls_context *tls);
/* No new connections; the socket file is removed. */
void rpc_stop_listening(struct rpc *rpc);
/* Sends what is ready, then closes every connection. */
void rpc_close(struct rpc *rpc, void (*closed)(void *arg), void *arg);

/* A key from outside as the `field` of an error: printable, cut. */
void rpc_shown(struct pack_bytes key, char out[64]);

/* End a slot with an answer. Views are copied. */
void rpc_answer(struct rpc_slot *slot, const struct answer *a);

struct rpc_stats {
	uint64_t connections;
	uint64_t handshakes; /* Of them not yet known by name. */
	uint64_t accepted;
	uint64_t refused; /* Wrong uid or certificate, or too many. */
	uint64_t frames;
	uint64_t bytes_in;
	uint64_t bytes_out;
	uint64_t writes;
	uint64_t broken;   /* Closed by us: malformed, too slow, too much. */
	uint64_t in_held;  /* Memory of requests that are not whole yet, */
	uint64_t out_held; /* and bytes of answers that are not sent. */
};
void rpc_stats(const struct rpc *rpc, struct rpc_stats *out);

#endif
