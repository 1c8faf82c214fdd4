/*
 * seal - values on their way to the log, and back.
 *
 * Any thread; pure. Every head, row and stored answer passes here between an
 * event's effects and the proposal. The format has room for a header and a tag,
 * so that encryption (DESIGN D9) changes no other file:
 *
 *   sealed = version (1) | key id (4) | payload | tag (16)
 *
 * Version 0 is the identity: key id and tag are zero, and open() checks that.
 */
#ifndef HOLDFAST_OBJECTS_SEAL_H
#define HOLDFAST_OBJECTS_SEAL_H

#include "client/proto/pack.h"
#include "node/base/oid.h"

#define SEAL_OVERHEAD_BYTES 21u

/* What a value is bound to: it cannot be moved to another address. */
struct seal_address {
	const struct oid *oid;
	uint32_t kind; /* enum row_kind, or 0 for a head. */
	struct pack_bytes key;
	uint64_t rev;
};

/* `out` has plain.n + SEAL_OVERHEAD_BYTES bytes. */
void seal_close(const struct seal_address *at, struct pack_bytes plain,
		uint8_t *out);
/* The payload inside `sealed`. RC_CORRUPT: not ours; RC_VERSION: newer. */
enum rc seal_open(const struct seal_address *at, struct pack_bytes sealed,
		  struct pack_bytes *plain);

#endif
