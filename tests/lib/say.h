/*
 * say - calls and answers as text, for tests of classes and of what carries
 * their calls.
 *
 * Arguments and results are JSON (client/proto/json.h) with ' for ", so that
 * they can be read in C. Header only.
 */
#ifndef TESTS_LIB_SAY_H
#define TESTS_LIB_SAY_H

#include <stdarg.h>

#include "client/proto/json.h"
#include "tests/lib/runner.h"

#define SAY_TEXT_MAX 8192

/* `text` with ' for " as MessagePack, appended. */
static inline void say_pack(struct pack_w *w, const char *text)
{
	struct detail why = { { 0 }, { 0 } };
	size_t n = strlen(text);
	char *copy = malloc(n + 1);
	size_t i;

	if (copy == NULL)
		FAIL("no memory for %zu bytes", n);
	for (i = 0; i <= n; i++)
		copy[i] = text[i];
	for (i = 0; i < n; i++)
		if (copy[i] == '\'')
			copy[i] = '"';
	if (json_to_pack(copy, n, w, &why) != RC_OK)
		FAIL("%s: %s", text, why.text);
	free(copy);
}

/* A value as such a text; long ones are cut. Valid until the next but three.
 */
static inline const char *say_text(struct pack_bytes value)
{
	static char texts[4][SAY_TEXT_MAX];
	static unsigned turn;
	char *out = texts[turn++ % 4];
	struct pack_w w;
	size_t n;
	size_t i;

	pack_w_init(&w, 16u << 20);
	if (pack_to_json(value, &w, 0) != RC_OK)
		FAIL("an answer of %zu bytes is no MessagePack", value.n);
	n = w.n < SAY_TEXT_MAX - 1 ? w.n : SAY_TEXT_MAX - 1;
	for (i = 0; i < n; i++)
		out[i] = w.p[i] == '"' ? '\'' : (char)w.p[i];
	out[n] = '\0';
	pack_w_release(&w);
	return out;
}

/* The member `key` of a map of a result; fails when there is none. */
static inline struct pack_bytes say_member(struct pack_bytes map,
					   const char *key)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes name;
	struct pack_bytes value;
	uint32_t pairs;

	if (pack_get_map(&r, &pairs) != RC_OK)
		FAIL("%s is no map", say_text(map));
	while (pairs-- > 0) {
		if (pack_get_bytes(&r, &name) != RC_OK ||
		    pack_skip(&r, &value) != RC_OK)
			FAIL("a broken map");
		if (pack_bytes_eq(name, key, strlen(key)))
			return value;
	}
	FAIL("%s has no `%s`", say_text(map), key);
}

static inline uint64_t say_u64(struct pack_bytes map, const char *key)
{
	struct pack_bytes v = say_member(map, key);
	struct pack_r r = pack_reader(v.p, v.n);
	uint64_t u = 0;

	if (pack_get_u64(&r, &u) != RC_OK)
		FAIL("`%s` of %s is no number", key, say_text(map));
	return u;
}

static inline bool say_bool(struct pack_bytes map, const char *key)
{
	struct pack_bytes v = say_member(map, key);
	struct pack_r r = pack_reader(v.p, v.n);
	bool b = false;

	if (pack_get_bool(&r, &b) != RC_OK)
		FAIL("`%s` of %s is no boolean", key, say_text(map));
	return b;
}

#endif
