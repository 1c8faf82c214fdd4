/*
 * bind - (principal, address, method) -> may it? On the path of every call;
 * default deny.
 *
 * Loop thread. Binding is granting (DESIGN D10): there is no other list. Until
 * the binding graph exists, grants are kept in the directory (directory.h). A
 * grant gives a principal rights on the objects of one class whose name begins
 * with a prefix, and a principal that its name confines to a tenant and an
 * environment (node/base/principal.h) none outside. A node may read and seed
 * the directory, without a grant, and nothing else.
 * What a principal has no right on at all answers exactly like what does not
 * exist: RC_NOT_FOUND with the text of rc.tbl and no field.
 */
#ifndef HOLDFAST_CORE_BIND_H
#define HOLDFAST_CORE_BIND_H

#include "client/proto/method.h"
#include "node/core/address.h"

struct bind;

struct grant {
	/* As node/base/principal.h. */
	char principal[PRINCIPAL_BYTES_MAX + 1];
	char tenant[TENANT_BYTES_MAX + 1];
	char env[TENANT_BYTES_MAX + 1];
	char cls[CLASS_BYTES_MAX + 1]; /* "*": every class. */
	char prefix[NAME_BYTES_MAX + 1];
	uint32_t rights; /* Bits of enum method_right. */
};

enum rc bind_new(struct bind **out);
void bind_free(struct bind *b);
/* RC_OVERLOADED at GRANTS_MAX; RC_INVALID for a malformed one. Copies. */
enum rc bind_grant(struct bind *b, const struct grant *g, struct detail *why);
/* These and no others from now on. Those that this version cannot make sense of
 * (a class it does not have) give nothing. RC_NOMEM, RC_OVERLOADED: it is as it
 * was. */
enum rc bind_replace(struct bind *b, const struct grant *grants, size_t n);

/*
 * RC_OK: `method` is found and allowed. RC_NOT_FOUND: no right at all here, or
 * no such class. RC_DENIED: may do other things, not this. RC_INVALID: may do
 * things here, but the class has no such method (field "method"). An address by
 * id is covered only by grants with an empty prefix: the name behind it is not
 * known before the object is loaded.
 */
enum rc bind_resolve(const struct bind *b, struct pack_bytes principal,
		     const struct address *a, struct pack_bytes method_name,
		     const struct method **method, struct detail *why);

/* Any right of `rights` on anything of tenant/env: for status and listings. */
bool bind_any(const struct bind *b, struct pack_bytes principal,
	      struct pack_bytes tenant, struct pack_bytes env, uint32_t rights);
/* Rights on one object. 0: it does not exist for this principal. */
uint32_t bind_rights(const struct bind *b, struct pack_bytes principal,
		     const struct address *a);

#endif
