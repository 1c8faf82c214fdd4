/*
 * oid - the id of an object: 16 bytes that nobody outside can compute.
 * How they are made: raft-glue/placement.h.
 */
#ifndef HOLDFAST_BASE_OID_H
#define HOLDFAST_BASE_OID_H

#include <stdint.h>

#define OID_BYTES 16u

struct oid {
	uint8_t b[OID_BYTES];
};

#endif
