#include "node/base/principal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "node/base/limits.h"

static bool starts_with(struct pack_bytes b, const char *s)
{
	size_t n = strlen(s);

	return b.n >= n && memcmp(b.p, s, n) == 0;
}

bool principal_is_node(struct pack_bytes p)
{
	return starts_with(p, "node:");
}

void principal_of_node(uint64_t node_id, char out[PRINCIPAL_NODE_BYTES])
{
	snprintf(out, PRINCIPAL_NODE_BYTES, "node:%" PRIu64, node_id);
}

/* The part of a path up to the next slash; false: there is none, or nothing in
 * it. */
static bool part_take(struct pack_bytes *path, struct pack_bytes *part)
{
	const uint8_t *slash;

	if (path->n == 0)
		return false;
	slash = memchr(path->p, '/', path->n);
	part->p = path->p;
	part->n = slash != NULL ? (size_t)(slash - path->p) : path->n;
	path->p += part->n;
	path->n -= part->n;
	if (path->n > 0) {
		path->p++;
		path->n--;
	}
	return part->n > 0;
}

static bool part_is(struct pack_bytes *path, const char *word)
{
	struct pack_bytes part;

	return part_take(path, &part) &&
	       pack_bytes_eq(part, word, strlen(word));
}

bool principal_may_enter(struct pack_bytes p, struct pack_bytes tenant,
			 struct pack_bytes env)
{
	static const char scheme[] = "spiffe://";
	struct pack_bytes part;

	if (!starts_with(p, scheme))
		return !principal_is_node(p);
	p.p += strlen(scheme);
	p.n -= strlen(scheme);
	if (!part_take(&p, &part) || !part_is(&p, "tenant") ||
	    !part_take(&p, &part) ||
	    !pack_bytes_eq(part, (const char *)tenant.p, tenant.n))
		return false;
	return part_is(&p, "env") && part_take(&p, &part) &&
	       pack_bytes_eq(part, (const char *)env.p, env.n);
}

static bool label_byte(uint8_t c, bool first)
{
	if (c >= 'a' && c <= 'z')
		return true;
	if (first)
		return false;
	return (c >= '0' && c <= '9') || c == '_' || c == '-';
}

bool label_good(struct pack_bytes s)
{
	size_t i;

	_Static_assert(TENANT_BYTES_MAX == CLASS_BYTES_MAX,
		       "one bound for all labels");
	if (s.n == 0 || s.n > TENANT_BYTES_MAX)
		return false;
	for (i = 0; i < s.n; i++)
		if (!label_byte(s.p[i], i == 0))
			return false;
	return true;
}
