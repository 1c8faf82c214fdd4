/*
 * frame - MessagePack-RPC envelopes, incremental, bounded.
 *
 * Any thread. Reads requests, responses and notifications out of a stream of
 * bytes, and writes them. The spec: msgpack-rpc (request [0,id,method,params],
 * response [1,id,error,result], notification [2,method,params]).
 * The connection owns one growing input buffer; frame_next() says where the
 * next whole message lies in it.
 */
#ifndef HOLDFAST_PROTO_FRAME_H
#define HOLDFAST_PROTO_FRAME_H

#include "client/proto/pack.h"

enum frame_kind {
	FRAME_REQUEST = 0,
	FRAME_RESPONSE = 1,
	FRAME_NOTIFY = 2,
};

/* Points into the bytes it was parsed from. */
struct frame {
	enum frame_kind kind;
	uint32_t id;              /* Request, response. */
	struct pack_bytes method; /* Request, notification: name, str or bin. */
	struct pack_bytes
		params;          /* Request, notification: the encoded array. */
	struct pack_bytes error; /* Response: one encoded object. */
	struct pack_bytes result; /* Response: one encoded object. */
};

#define FRAME_METHOD_BYTES_MAX 64

/* Per connection: where in the current message the scan stands. */
struct frame_reader {
	struct pack_scan scan;
	struct pack_bounds bounds;
};

void frame_reader_init(struct frame_reader *fr, size_t frame_bytes_max);

/*
 * Look for one whole message at the front of `p`..`p + n`.
 *
 * RC_OK: `f` is filled, `*used` bytes make the message; the caller advances
 * and calls again. RC_AGAIN: more bytes are needed; nothing was consumed; call
 * again with the same start and more bytes. RC_INVALID: the stream is not
 * MessagePack-RPC or breaks a bound; `why` says how; the connection cannot be
 * used any more. A message that is MessagePack but not an envelope (not an
 * array, other kind, id not uint32, method neither str nor bin or too long,
 * params not an array) is RC_INVALID as well; when it is recognisably a request
 * with a usable id, `*used` and `f->id` are set and `f->method.p` is NULL so
 * that the caller may answer it with INVALID and go on (`*used` is 0
 * otherwise).
 */
enum rc frame_next(struct frame_reader *fr, const uint8_t *p, size_t n,
		   struct frame *f, size_t *used, struct detail *why);

/* Envelope heads; the caller appends params, or error and result. */
void frame_request(struct pack_w *w, uint32_t id, const char *method,
		   size_t method_bytes);            /* then: params array */
void frame_response(struct pack_w *w, uint32_t id); /* then: error, result */
void frame_notify(struct pack_w *w, const char *method,
		  size_t method_bytes); /* then: params array */

/*
 * The error map of a response, as docs/protocol.md says. retry_after_ms < 0,
 * NULL and empty strings, and no has_shard leave their key out.
 */
struct frame_error {
	enum rc code;
	enum outcome outcome;
	struct pack_bytes message;
	struct pack_bytes request_id;
	struct pack_bytes field;
	struct pack_bytes owner;
	int64_t retry_after_ms;
	bool has_shard;
	uint32_t shard; /* Of the object that was called. */
};
void frame_error_write(struct pack_w *w, const struct frame_error *e);
/* Reads an error map; unknown keys are passed over, an unknown code becomes
 * RC_INTERNAL with outcome unknown. An error that is no map (another server's)
 * is RC_INTERNAL with what it says as the message where it is a string.
 * RC_INVALID only for bytes that are not MessagePack. */
enum rc frame_error_read(struct pack_bytes error, struct frame_error *e);

#endif
