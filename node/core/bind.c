#include "node/core/bind.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/htab.h"
#include "node/base/principal.h"
#include "objects/class.h"
#include "objects/directory_class.h"

/* Grants of one principal, found by its name: a call looks at its caller's
 * grants only. */
struct holder {
	struct hnode node;
	char principal[PRINCIPAL_BYTES_MAX + 1];
	size_t principal_n;
	struct grant *grants;
	size_t grants_n;
};

struct bind {
	struct htab holders;
	size_t grants_n;
};

/* Principals come from the operator and from the kernel, never from a caller:
 * the hash needs no secret key. */
static uint64_t principal_hash(struct pack_bytes p)
{
	static const uint8_t key[HASH_KEY_BYTES];

	return crypto_siphash(key, p.p, p.n);
}

enum rc bind_new(struct bind **out)
{
	struct bind *b = calloc(1, sizeof(*b));
	enum rc rc;

	if (b == NULL)
		return RC_NOMEM;
	rc = htab_init(&b->holders, 64);
	if (rc != RC_OK) {
		free(b);
		return rc;
	}
	*out = b;
	return RC_OK;
}

static void holder_free(void *arg, struct hnode *node)
{
	struct bind *b = arg;
	struct holder *h = CONTAINER_OF(node, struct holder, node);

	htab_remove(&b->holders, node);
	free(h->grants);
	free(h);
}

static void bind_clear(struct bind *b)
{
	htab_each(&b->holders, holder_free, b);
	htab_release(&b->holders);
}

void bind_free(struct bind *b)
{
	if (b == NULL)
		return;
	bind_clear(b);
	free(b);
}

static struct holder *holder_find(const struct bind *b, struct pack_bytes p)
{
	uint64_t hash = principal_hash(p);
	struct hnode *n = htab_first(&b->holders, hash);

	for (; n != NULL; n = n->next) {
		struct holder *h = CONTAINER_OF(n, struct holder, node);

		if (n->hash == hash &&
		    pack_bytes_eq(p, h->principal, h->principal_n))
			return h;
	}
	return NULL;
}

static enum rc holder_add(struct bind *b, struct pack_bytes p,
			  struct holder **out)
{
	struct holder *h = calloc(1, sizeof(*h));

	if (h == NULL)
		return RC_NOMEM;
	memcpy(h->principal, p.p, p.n);
	h->principal_n = p.n;
	htab_insert(&b->holders, &h->node, principal_hash(p));
	*out = h;
	return RC_OK;
}

static struct pack_bytes text_of(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

enum rc bind_grant(struct bind *b, const struct grant *g, struct detail *why)
{
	struct pack_bytes p = text_of(g->principal);
	struct holder *h;
	struct grant *grown;

	if (p.n == 0)
		return detail_set(why, RC_INVALID, "principal",
				  "a grant names a principal");
	if (!principal_may_enter(p, text_of(g->tenant), text_of(g->env)))
		return detail_set(why, RC_INVALID, "principal",
				  "it cannot have rights in that tenant and "
				  "environment");
	if (g->rights == 0)
		return detail_set(why, RC_INVALID, "rights",
				  "a grant gives at least one right");
	if (strcmp(g->cls, "*") != 0 && class_find(text_of(g->cls)) == NULL)
		return detail_set(why, RC_INVALID, "class",
				  "there is no class `%s`", g->cls);
	if (b->grants_n == GRANTS_MAX)
		return detail_set(why, RC_OVERLOADED, "grants",
				  "at most %u grants", GRANTS_MAX);
	h = holder_find(b, p);
	if (h == NULL && holder_add(b, p, &h) != RC_OK)
		return RC_NOMEM;
	grown = realloc(h->grants, (h->grants_n + 1) * sizeof(*grown));
	if (grown == NULL)
		return RC_NOMEM;
	h->grants = grown;
	h->grants[h->grants_n++] = *g;
	b->grants_n++;
	return RC_OK;
}

enum rc bind_replace(struct bind *b, const struct grant *grants, size_t n)
{
	struct bind *other;
	struct bind old;
	enum rc rc = bind_new(&other);
	size_t i;

	if (rc != RC_OK)
		return rc;
	for (i = 0; rc == RC_OK && i < n; i++) {
		rc = bind_grant(other, &grants[i], NULL);
		if (rc == RC_INVALID)
			rc = RC_OK;
	}
	if (rc == RC_OK) {
		old = *b;
		*b = *other;
		*other = old;
	}
	bind_free(other);
	return rc;
}

static bool text_is(const char *s, struct pack_bytes b)
{
	return pack_bytes_eq(b, s, strlen(s));
}

static bool grant_covers(const struct grant *g, const struct address *a)
{
	size_t prefix_n;

	if (strcmp(g->cls, "*") != 0 && !text_is(g->cls, a->cls))
		return false;
	if (!text_is(g->tenant, a->tenant) || !text_is(g->env, a->env))
		return false;
	prefix_n = strlen(g->prefix);
	if (prefix_n == 0)
		return true;
	/* By id the name is not known here: only whoever may touch every name
	 * may use ids. */
	return !a->by_id && a->name.n >= prefix_n &&
	       memcmp(a->name.p, g->prefix, prefix_n) == 0;
}

/* There is one directory; elsewhere the class has no objects. */
static bool is_the_directory(const struct address *a)
{
	return !a->by_id && text_is(DIRECTORY_TENANT, a->tenant) &&
	       text_is(DIRECTORY_ENV, a->env) &&
	       text_is(DIRECTORY_NAME, a->name);
}

uint32_t bind_rights(const struct bind *b, struct pack_bytes principal,
		     const struct address *a)
{
	const struct holder *h = holder_find(b, principal);
	bool directory = text_is(DIRECTORY_CLASS, a->cls);
	uint32_t rights = 0;
	size_t i;

	if (directory && !is_the_directory(a))
		return 0;
	if (directory && principal_is_node(principal))
		return (uint32_t)(RIGHT_READ | RIGHT_NODE);
	for (i = 0; h != NULL && i < h->grants_n; i++)
		if (grant_covers(&h->grants[i], a))
			rights |= h->grants[i].rights;
	return rights;
}

enum rc bind_resolve(const struct bind *b, struct pack_bytes principal,
		     const struct address *a, struct pack_bytes method_name,
		     const struct method **method, struct detail *why)
{
	uint32_t rights = bind_rights(b, principal, a);
	const struct method *m;

	/* A class that does not exist and one that the caller may not see are
	 * the same to it. */
	if (rights == 0 || class_find(a->cls) == NULL)
		return RC_NOT_FOUND;
	m = method_find((const char *)a->cls.p, a->cls.n,
			(const char *)method_name.p, method_name.n);
	if (m == NULL)
		return detail_set(why, RC_INVALID, "method",
				  "class %.*s has no such method",
				  (int)a->cls.n, (const char *)a->cls.p);
	if ((rights & (uint32_t)m->right) == 0)
		return detail_set(why, RC_DENIED, "method",
				  "%s needs the right `%s`", m->name,
				  method_right_name(m->right));
	*method = m;
	return RC_OK;
}

bool bind_any(const struct bind *b, struct pack_bytes principal,
	      struct pack_bytes tenant, struct pack_bytes env, uint32_t rights)
{
	const struct holder *h = holder_find(b, principal);
	size_t i;

	for (i = 0; h != NULL && i < h->grants_n; i++) {
		const struct grant *g = &h->grants[i];

		if (text_is(g->tenant, tenant) && text_is(g->env, env) &&
		    (g->rights & rights) != 0)
			return true;
	}
	return false;
}
