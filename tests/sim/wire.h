/*
 * wire - what the load asks, as MessagePack, and what was answered, read back
 * into the oracle's terms.
 *
 * Pure. A value is a number (struct kv_value): its bytes follow from it and are
 * verified when they come back, so that a damaged one is found at once.
 */
#ifndef TESTS_SIM_WIRE_H
#define TESTS_SIM_WIRE_H

#include "client/proto/pack.h"
#include "tests/sim/check.h"

/* What the number of a value says: length, whether it is bin, which it is. */
#define WIRE_VALUE_MIN  16u
#define WIRE_VALUE_BIN  (UINT64_C(1) << 24)
#define WIRE_VALUE_STEP (UINT64_C(1) << 25)
#define WIRE_TAG_BYTES  16u

static inline uint32_t wire_value_bytes(uint64_t v)
{
	return (uint32_t)(v & (WIRE_VALUE_BIN - 1));
}

/* It begins with its tag, and ends with it when it is long enough. */
void wire_value_tag(uint64_t v, char out[WIRE_TAG_BYTES + 1]);

/* The method of a call, and its args. */
const char *wire_kv_method(const struct kv_call *c);
void wire_kv_args(const struct kv_call *c, bool bin_keys, struct pack_w *w);
/* A list goes on behind the key that `cursor` names. */
void wire_kv_cursor(const struct kv_call *c, uint16_t cursor, bool bin_keys,
		    struct pack_w *w);

/* The result of a call that is done. False: it is not what the class answers;
 * `why` says what. */
bool wire_kv_answer(struct kv_call *c, struct pack_bytes result,
		    const char **why);
/* Why it was refused, when that says something of the object (CALL_FAILED);
 * false: it does not. */
bool wire_kv_failure(struct kv_call *c, enum rc rc, const struct detail *why);

/* A limiter's verdict; false: it is none. */
bool wire_verdict(struct pack_bytes result, bool *allowed, uint64_t *remaining,
		  uint64_t *retry_ms);

#endif
