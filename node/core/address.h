/*
 * address - what a caller writes to name an object. Pure.
 *
 *   class/name                  tenant and environment of the caller
 *   class/~hexid                by id: 32 lower-case hex digits
 *   tenant/env/class/name       or tenant/env/class/~hexid
 *
 * A name holds any bytes but NUL, 1..NAME_BYTES_MAX of them; `/`, `%` and a
 * leading `~` are written %2F, %25 and %7E, nothing else is escaped: every
 * object has one spelling. Tenant, environment and class are 1..64 bytes of
 * [a-z0-9_-], starting with a letter.
 */
#ifndef HOLDFAST_CORE_ADDRESS_H
#define HOLDFAST_CORE_ADDRESS_H

#include <stdbool.h>

#include "client/proto/pack.h"
#include "node/base/limits.h"
#include "node/base/oid.h"

struct address {
	struct pack_bytes tenant; /* Views into the text, or the defaults. */
	struct pack_bytes env;
	struct pack_bytes cls;
	struct pack_bytes name; /* Into `buf`, or into the text when nothing was
				 * escaped; n == 0: by id. */
	bool by_id;
	struct oid
		oid; /* Set by address_parse when by_id, else by the caller. */
	char buf[NAME_BYTES_MAX];
};

/* RC_INVALID, `why` says what is wrong (field "address"). The struct must not
 * be copied afterwards: `name` may point into it. */
enum rc address_parse(struct pack_bytes text, struct pack_bytes tenant_default,
		      struct pack_bytes env_default, struct address *out,
		      struct detail *why);

/* The canonical text tenant/env/class/name (or ~id when name is empty) with a
 * final NUL; returns its length; cut at `n`. */
size_t address_write(struct pack_bytes tenant, struct pack_bytes env,
		     struct pack_bytes cls, struct pack_bytes name,
		     const struct oid *oid, char *out, size_t n);

#endif
