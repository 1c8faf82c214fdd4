#include "node/core/address.h"

#include <string.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/principal.h"

/* Tenants, environments and classes. */
static enum rc label_check(struct pack_bytes s, const char *what,
			   struct detail *why)
{
	if (s.n == 0 || s.n > TENANT_BYTES_MAX)
		return detail_set(why, RC_INVALID, "address",
				  "%s has 1 to %u bytes", what,
				  TENANT_BYTES_MAX);
	if (!label_good(s))
		return detail_set(why, RC_INVALID, "address",
				  "%s is made of a-z, 0-9, _ and -, and begins "
				  "with a letter",
				  what);
	return RC_OK;
}

static bool escaped(const uint8_t *p, size_t left, bool first, uint8_t *out)
{
	if (left < 3)
		return false;
	if (memcmp(p, "%2F", 3) == 0)
		*out = '/';
	else if (memcmp(p, "%25", 3) == 0)
		*out = '%';
	else if (first && memcmp(p, "%7E", 3) == 0)
		*out = '~';
	else
		return false;
	return true;
}

static enum rc name_decode(struct pack_bytes text, struct address *a,
			   struct detail *why)
{
	size_t i = 0;
	size_t n = 0;

	while (i < text.n) {
		uint8_t c = text.p[i];

		if (c == 0)
			return detail_set(why, RC_INVALID, "address",
					  "a name holds no NUL");
		if (n == NAME_BYTES_MAX)
			return detail_set(why, RC_INVALID, "address",
					  "a name has at most %u bytes",
					  NAME_BYTES_MAX);
		if (c == '%') {
			if (!escaped(text.p + i, text.n - i, i == 0, &c))
				return detail_set(
					why, RC_INVALID, "address",
					"in a name only / (%%2F), %% (%%25) "
					"and a leading ~ (%%7E) are escaped");
			i += 3;
		} else {
			i++;
		}
		a->buf[n++] = (char)c;
	}
	a->name = (struct pack_bytes){ (const uint8_t *)a->buf, n };
	return RC_OK;
}

static enum rc name_parse(struct pack_bytes text, struct address *a,
			  struct detail *why)
{
	if (text.n == 0)
		return detail_set(why, RC_INVALID, "address",
				  "the name is empty");
	if (text.p[0] != '~')
		return name_decode(text, a, why);
	if (hex_decode((const char *)text.p + 1, text.n - 1, a->oid.b,
		       OID_BYTES) != RC_OK)
		return detail_set(why, RC_INVALID, "address",
				  "an id is ~ and %u lower-case hex digits",
				  2 * OID_BYTES);
	a->by_id = true;
	return RC_OK;
}

enum rc address_parse(struct pack_bytes text, struct pack_bytes tenant_default,
		      struct pack_bytes env_default, struct address *out,
		      struct detail *why)
{
	struct pack_bytes part[4];
	size_t parts = 0;
	size_t from = 0;
	size_t i;
	enum rc rc;

	if (text.n > ADDRESS_BYTES_MAX)
		return detail_set(why, RC_INVALID, "address",
				  "an address has at most %u bytes",
				  ADDRESS_BYTES_MAX);
	for (i = 0; i <= text.n; i++) {
		if (i < text.n && text.p[i] != '/')
			continue;
		if (parts == ARRAY_LEN(part))
			return detail_set(why, RC_INVALID, "address",
					  "too many parts; write / in a name "
					  "as %%2F");
		part[parts++] = (struct pack_bytes){ text.p + from, i - from };
		from = i + 1;
	}
	if (parts != 2 && parts != 4)
		return detail_set(why, RC_INVALID, "address",
				  "an address is class/name or "
				  "tenant/env/class/name");
	out->tenant = parts == 4 ? part[0] : tenant_default;
	out->env = parts == 4 ? part[1] : env_default;
	out->cls = part[parts - 2];
	out->name = (struct pack_bytes){ NULL, 0 };
	out->by_id = false;
	rc = label_check(out->tenant, "a tenant", why);
	if (rc == RC_OK)
		rc = label_check(out->env, "an environment", why);
	if (rc == RC_OK)
		rc = label_check(out->cls, "a class", why);
	if (rc == RC_OK)
		rc = name_parse(part[parts - 1], out, why);
	return rc;
}

struct text {
	char *p;
	size_t n;
	size_t max;
};

static void text_add(struct text *t, const char *s, size_t n)
{
	size_t room = t->max - 1 - t->n;

	if (n > room)
		n = room;
	memcpy(t->p + t->n, s, n);
	t->n += n;
}

static void text_bytes(struct text *t, struct pack_bytes b)
{
	if (b.n > 0)
		text_add(t, (const char *)b.p, b.n);
}

static void text_name(struct text *t, struct pack_bytes name)
{
	size_t i;

	for (i = 0; i < name.n; i++) {
		char c = (char)name.p[i];

		if (c == '/')
			text_add(t, "%2F", 3);
		else if (c == '%')
			text_add(t, "%25", 3);
		else if (c == '~' && i == 0)
			text_add(t, "%7E", 3);
		else
			text_add(t, &c, 1);
	}
}

size_t address_write(struct pack_bytes tenant, struct pack_bytes env,
		     struct pack_bytes cls, struct pack_bytes name,
		     const struct oid *oid, char *out, size_t n)
{
	struct text t = { out, 0, n };
	char hex[2 * OID_BYTES + 1];

	PRE(n > 0);
	text_bytes(&t, tenant);
	text_add(&t, "/", 1);
	text_bytes(&t, env);
	text_add(&t, "/", 1);
	text_bytes(&t, cls);
	text_add(&t, "/", 1);
	if (name.n > 0) {
		text_name(&t, name);
	} else {
		hex_encode(oid->b, OID_BYTES, hex);
		text_add(&t, "~", 1);
		text_add(&t, hex, 2 * OID_BYTES);
	}
	out[t.n] = '\0';
	return t.n;
}
