/*
 * codec - Raft's messages as bytes, and back.
 *
 * Loop thread. Little endian, fixed fields, byte by byte at the top of codec.c.
 * What comes from a peer is read with every bound checked before anything is
 * allocated. With step.c and guard.c the only files that know raft.h.
 */
#ifndef HOLDFAST_RAFT_GLUE_CODEC_H
#define HOLDFAST_RAFT_GLUE_CODEC_H

#include <stdint.h>

#include "client/proto/pack.h"

struct raft_message;

/* How much of a message's entries goes into one piece. More pieces follow, each
 * a complete message: together they are what the core asked for. One entry is
 * never cut. */
#define CODEC_PIECE_BYTES (1u << 20)

/* Of terms and indexes. */
#define NUMBER_MAX (UINT64_MAX >> 1)

/* The `capacity` of a result: the sender's disk is low, or full. */
#define CODEC_CAPACITY_LOW  1u
#define CODEC_CAPACITY_FULL 2u

/*
 * Append the encoding of `m` to `w`. Of an AppendEntries only the entries from
 * `*from` on, as many as CODEC_PIECE_BYTES has room for and at least one;
 * `*from` is moved on, also when `w` is full (w->rc), and the caller comes
 * again until codec_more() is false. An INSTALL_SNAPSHOT is never encoded
 * (snapshot.c sends it).
 */
void codec_write(struct pack_w *w, const struct raft_message *m,
		 unsigned *from);
bool codec_more(const struct raft_message *m, unsigned from);

/* RC_OK: `*m` is from `server_id`; its entries (raft_malloc'ed array, data in
 * one batch) are the caller's: pass it to step_receive, then codec_release the
 * array. RC_INVALID: that is no message. RC_NOMEM. After these nothing is to be
 * released. */
enum rc codec_read(const uint8_t *p, size_t n, uint64_t server_id,
		   struct raft_message *m);
/* It comes from who leads, in `*term`: an AppendEntries. Looks at no more than
 * that. */
bool codec_leads(const uint8_t *p, size_t n, uint64_t *term);
/* What step_receive leaves to the caller. It may have moved `entries` on: the
 * array is found by server_address, which is empty and to be left as it is. */
void codec_release(struct raft_message *m);
/* A message that was never given to step_receive. */
void codec_discard(struct raft_message *m);

#endif
