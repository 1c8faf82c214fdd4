/*
 * The format is in seal.h. Version 0 seals nothing: the payload is the plain
 * bytes, key id and tag are zero. open() still checks every byte around the
 * payload, so that whatever was not written by close() is found out here.
 */
#include "objects/seal.h"

#include "node/base/check.h"

#define SEAL_VERSION   0u
#define KEY_ID_AT      1u
#define PAYLOAD_AT     5u
#define SEAL_TAG_BYTES 16u

_Static_assert(PAYLOAD_AT + SEAL_TAG_BYTES == SEAL_OVERHEAD_BYTES,
	       "header and tag are the overhead");

static const uint8_t zeros[SEAL_TAG_BYTES];

void seal_close(const struct seal_address *at, struct pack_bytes plain,
		uint8_t *out)
{
	PRE(at->oid != NULL);
	PRE(out != NULL);
	out[0] = SEAL_VERSION;
	memcpy(out + KEY_ID_AT, zeros, PAYLOAD_AT - KEY_ID_AT);
	if (plain.n > 0)
		memcpy(out + PAYLOAD_AT, plain.p, plain.n);
	memcpy(out + PAYLOAD_AT + plain.n, zeros, SEAL_TAG_BYTES);
}

enum rc seal_open(const struct seal_address *at, struct pack_bytes sealed,
		  struct pack_bytes *plain)
{
	size_t n;

	PRE(at->oid != NULL);
	if (sealed.p == NULL || sealed.n < SEAL_OVERHEAD_BYTES)
		return RC_CORRUPT;
	if (sealed.p[0] > SEAL_VERSION)
		return RC_VERSION;
	n = sealed.n - SEAL_OVERHEAD_BYTES;
	if (memcmp(sealed.p + KEY_ID_AT, zeros, PAYLOAD_AT - KEY_ID_AT) != 0)
		return RC_CORRUPT;
	if (memcmp(sealed.p + PAYLOAD_AT + n, zeros, SEAL_TAG_BYTES) != 0)
		return RC_CORRUPT;
	plain->p = sealed.p + PAYLOAD_AT;
	plain->n = n;
	return RC_OK;
}
