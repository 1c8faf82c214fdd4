#include "client/proto/method.h"

#include <stdio.h>
#include <string.h>

#define NAME_SHOWN_BYTES_MAX 48

/* ----------------------------------------------------------------- tables */

struct word {
	enum method_set set;
	uint32_t word;
	const char *name;
	size_t name_bytes;
};

static const struct word words[] = {
#define WORD(set, word) \
	{ SET_##set, WORD_##set##_##word, #word, sizeof(#word) - 1 },
#include "client/proto/method.tbl"
};

#define WORDS_COUNT (sizeof(words) / sizeof(words[0]))

static const struct method_arg options[] = {
#define OPTION(name, type, min, max, text) \
	{ #name, sizeof(#name) - 1, METHOD_##type, false, min, max, text },
#include "client/proto/method.tbl"
};
_Static_assert(OPTIONS_COUNT <= METHOD_ARGS_MAX, "options fit method_args");

/* All arguments of all methods, in the order of the table. */
static const struct method_arg all_args[] = {
#define ARG(class, method, name, type, required, min, max, text) \
	{ #name, sizeof(#name) - 1, METHOD_##type, required, min, max, text },
#include "client/proto/method.tbl"
};

/* Where a method's begin among them, and how many it has: a struct per method
 * with a byte before the first and one for each. */
enum {
	FIRST_NONE = -1,
#define METHOD(class, name, right, flags, text) \
	FIRST_##class##_##name,                 \
		FIRST_##class##_##name##_BACK = FIRST_##class##_##name - 1,
#define ARG(class, method, name, type, required, min, max, text) \
	FIRST_##class##_##method##_ARG_##name,
#include "client/proto/method.tbl"
};

/* clang-format off */
struct method_none_args {
	char before;
#define METHOD(class, name, right, flags, text) \
};                                              \
struct method_##class##_##name##_args {         \
	char before;
#define ARG(class, method, name, type, required, min, max, text) char name;
#include "client/proto/method.tbl"
};
/* clang-format on */

#define METHOD(class, name, right, flags, text)                             \
	_Static_assert(sizeof(struct method_##class##_##name##_args) - 1 <= \
			       METHOD_ARGS_MAX,                             \
		       #class "." #name " has too many arguments");
#include "client/proto/method.tbl"

static const struct method methods[] = {
#define METHOD(class, name, right, flags, text)              \
	{ #class,                                            \
	  sizeof(#class) - 1,                                \
	  #name,                                             \
	  sizeof(#name) - 1,                                 \
	  METHOD_##class##_##name,                           \
	  RIGHT_##right,                                     \
	  flags,                                             \
	  sizeof(struct method_##class##_##name##_args) - 1, \
	  all_args + FIRST_##class##_##name,                 \
	  text },
#include "client/proto/method.tbl"
};

static const struct method call_options = {
	.class_name = "",
	.name = "call",
	.name_bytes = sizeof("call") - 1,
	.number = METHODS_COUNT,
	.flags = METHOD_OPTIONS,
	.args_count = OPTIONS_COUNT,
	.args = options,
	.text = "options of a call",
};

static const struct rpc_method rpc_methods[] = {
#define RPC(name, params_min, params_max, text)             \
	{ #name,      sizeof(#name) - 1, RPC_##name, false, \
	  params_min, params_max,        text },
#define NOTIFY(name, params_min, params_max, text)         \
	{ #name,      sizeof(#name) - 1, RPC_##name, true, \
	  params_min, params_max,        text },
#include "client/proto/method.tbl"
};

/* ---------------------------------------------------------------- finding */

static inline bool same(const char *a, size_t a_bytes, const char *b,
			size_t b_bytes)
{
	return a_bytes == b_bytes &&
	       (a_bytes == 0 || memcmp(a, b, a_bytes) == 0);
}

const struct method *method_find(const char *class_name, size_t class_bytes,
				 const char *name, size_t name_bytes)
{
	const struct method *m;

	for (m = methods; m < methods + METHODS_COUNT; m++)
		if (same(name, name_bytes, m->name, m->name_bytes) &&
		    same(class_name, class_bytes, m->class_name,
			 m->class_bytes))
			return m;
	return NULL;
}

bool method_class_known(const char *class_name, size_t class_bytes)
{
	const struct method *m;

	for (m = methods; m < methods + METHODS_COUNT; m++)
		if (same(class_name, class_bytes, m->class_name,
			 m->class_bytes))
			return true;
	return false;
}

const struct method *method_at(size_t number)
{
	return number < METHODS_COUNT ? &methods[number] : NULL;
}

const struct method *method_call_options(void)
{
	return &call_options;
}

const char *method_word(enum method_set set, uint32_t word)
{
	size_t i;

	for (i = 0; i < WORDS_COUNT; i++)
		if (words[i].set == set && words[i].word == word)
			return words[i].name;
	return NULL;
}

const char *method_right_name(enum method_right right)
{
	switch (right) {
	case RIGHT_READ:
		return "read";
	case RIGHT_WRITE:
		return "write";
	case RIGHT_ADMIN:
		return "admin";
	case RIGHT_NODE:
		return "node";
	}
	return "none";
}

enum rc method_right_parse(const char *name, size_t len, enum method_right *out)
{
	static const enum method_right rights[] = { RIGHT_READ, RIGHT_WRITE,
						    RIGHT_ADMIN };
	size_t i;

	for (i = 0; i < sizeof(rights) / sizeof(rights[0]); i++) {
		const char *known = method_right_name(rights[i]);

		if (same(name, len, known, strlen(known))) {
			*out = rights[i];
			return RC_OK;
		}
	}
	return RC_NOT_FOUND;
}

const struct rpc_method *rpc_method_find(const char *name, size_t name_bytes,
					 bool notify)
{
	const struct rpc_method *m;

	for (m = rpc_methods; m < rpc_methods + RPCS_COUNT; m++)
		if (m->notify == notify &&
		    same(name, name_bytes, m->name, m->name_bytes))
			return m;
	return NULL;
}

const struct rpc_method *rpc_method_at(size_t number)
{
	return number < RPCS_COUNT ? &rpc_methods[number] : NULL;
}

/* -------------------------------------------------------------- sentences */

/* What an argument must be, to stand behind "must be". */
static void expected(const struct method_arg *a, char *to, size_t cap)
{
	long long min = a->min;
	long long max = a->max;
	const char *word;
	uint32_t i;
	size_t n = 0;

	switch (a->type) {
	case METHOD_STR:
		(void)snprintf(to, cap, "a string of %lld to %lld bytes", min,
			       max);
		return;
	case METHOD_BYTES:
		(void)snprintf(to, cap,
			       "a string or binary of %lld to %lld bytes", min,
			       max);
		return;
	case METHOD_UINT:
	case METHOD_INT:
		(void)snprintf(to, cap, "an integer from %lld to %lld", min,
			       max);
		return;
	case METHOD_BOOL:
		(void)snprintf(to, cap, "true or false");
		return;
	case METHOD_ENUM:
		(void)snprintf(to, cap, "one of");
		for (i = 0;
		     (word = method_word((enum method_set)a->min, i)) != NULL &&
		     n < cap;
		     i++) {
			n = strlen(to);
			(void)snprintf(to + n, cap - n, "%s %s",
				       i > 0 ? "," : "", word);
		}
		return;
	case METHOD_VALUE:
	case METHOD_VALUE_NIL:
		(void)snprintf(to, cap,
			       "a string or binary of at most %lld bytes%s or "
			       "an integer of 64 bits",
			       max, a->type == METHOD_VALUE_NIL ? ", nil" : "");
		return;
	case METHOD_ARRAY:
		(void)snprintf(to, cap, "an array of %lld to %lld elements",
			       min, max);
		return;
	case METHOD_MAP:
		(void)snprintf(to, cap, "a map of %lld to %lld pairs", min,
			       max);
		return;
	}
}

/* The only function that formats: nothing of it is on the way of a good
 * request. */
static enum rc not_as_expected(const struct method_arg *a, struct detail *why)
{
	char what[160] = "";

	if (why == NULL)
		return RC_INVALID;
	expected(a, what, sizeof(what));
	return detail_set(why, RC_INVALID, a->name, "`%s` must be %s", a->name,
			  what);
}

static const char *noun(const struct method *m)
{
	return (m->flags & METHOD_OPTIONS) != 0 ? "option" : "argument";
}

/* A name from outside, safe to be shown. */
static enum rc unknown(const struct method *m, struct pack_bytes key,
		       struct detail *why)
{
	char shown[NAME_SHOWN_BYTES_MAX + sizeof("...")];
	size_t i;

	if (why == NULL)
		return RC_INVALID;
	for (i = 0; i < key.n && i < NAME_SHOWN_BYTES_MAX; i++) {
		bool plain = key.p[i] >= 0x20 && key.p[i] < 0x7f;

		shown[i] = plain ? (char)key.p[i] : '?';
	}
	memcpy(shown + i, "...", sizeof("..."));
	if (i == key.n)
		shown[i] = '\0';
	return detail_set(why, RC_INVALID, shown, "unknown %s `%s`", noun(m),
			  shown);
}

/* The map as a whole. */
static enum rc malformed(const struct method *m, const char *what,
			 struct detail *why)
{
	const char *name =
		(m->flags & METHOD_OPTIONS) != 0 ? "options" : "args";

	return detail_set(why, RC_INVALID, name, "`%s` %s", name, what);
}

/* --------------------------------------------------------------- checking */

static inline bool within(const struct method_arg *a, uint64_t n)
{
	return n <= INT64_MAX && (int64_t)n >= a->min && (int64_t)n <= a->max;
}

static inline bool int64_fits(const struct pack_val *v)
{
	return v->type == PACK_INT && (v->neg || v->u <= INT64_MAX);
}

static inline bool bytes_fit(const struct method_arg *a,
			     const struct pack_val *v)
{
	return (v->type == PACK_STR || v->type == PACK_BIN) &&
	       within(a, v->s.n);
}

static bool word_find(const struct method_arg *a, struct method_value *v)
{
	size_t i;

	if (v->v.type != PACK_STR && v->v.type != PACK_BIN)
		return false;
	for (i = 0; i < WORDS_COUNT; i++) {
		if (words[i].set == (enum method_set)a->min &&
		    pack_bytes_eq(v->v.s, words[i].name, words[i].name_bytes)) {
			v->word = words[i].word;
			return true;
		}
	}
	return false;
}

static bool fits(const struct method_arg *a, struct method_value *v)
{
	const struct pack_val *p = &v->v;

	switch (a->type) {
	case METHOD_STR:
		return p->type == PACK_STR && within(a, p->s.n);
	case METHOD_BYTES:
		return bytes_fit(a, p);
	case METHOD_UINT:
		return p->type == PACK_INT && !p->neg && within(a, p->u);
	case METHOD_INT:
		return int64_fits(p) && p->i >= a->min && p->i <= a->max;
	case METHOD_BOOL:
		return p->type == PACK_BOOL;
	case METHOD_ENUM:
		return word_find(a, v);
	case METHOD_VALUE:
		return int64_fits(p) || bytes_fit(a, p);
	case METHOD_VALUE_NIL:
		return p->type == PACK_NIL || int64_fits(p) || bytes_fit(a, p);
	case METHOD_ARRAY:
		return p->type == PACK_ARRAY && within(a, p->n);
	case METHOD_MAP:
		return p->type == PACK_MAP && within(a, p->n);
	}
	return false;
}

static inline enum rc get_value(struct pack_r *r, struct method_value *v)
{
	struct pack_r start = *r;

	if (pack_next(r, &v->v) != RC_OK)
		return RC_INVALID;
	if (v->v.n == 0) {
		v->bytes.p = start.at;
		v->bytes.n = (size_t)(r->at - start.at);
		return RC_OK;
	}
	*r = start;
	return pack_skip(r, &v->bytes);
}

/* The place of the argument `key`; args_count when there is none. */
static inline uint32_t place_of(const struct method *m, struct pack_bytes key)
{
	uint32_t i;

	for (i = 0; i < m->args_count; i++)
		if (pack_bytes_eq(key, m->args[i].name, m->args[i].name_bytes))
			break;
	return i;
}

/* One pair whose key has been read. */
static enum rc take(const struct method *m, struct pack_r *r,
		    struct pack_bytes key, struct method_args *out,
		    struct detail *why)
{
	uint32_t i = place_of(m, key);

	if (i == m->args_count)
		return unknown(m, key, why);
	if (method_has(out, (int)i))
		return detail_set(why, RC_INVALID, m->args[i].name,
				  "%s `%s` is given twice", noun(m),
				  m->args[i].name);
	if (get_value(r, &out->at[i]) != RC_OK)
		return malformed(m, "is cut off", why);
	if (!fits(&m->args[i], &out->at[i]))
		return not_as_expected(&m->args[i], why);
	out->present |= 1U << i;
	return RC_OK;
}

static enum rc missing(const struct method *m, const struct method_args *a,
		       struct detail *why)
{
	uint32_t i;

	for (i = 0; i < m->args_count; i++)
		if (m->args[i].required && !method_has(a, (int)i))
			return detail_set(why, RC_INVALID, m->args[i].name,
					  "%s `%s` is missing", noun(m),
					  m->args[i].name);
	return RC_OK;
}

enum rc method_args_check_besides(const struct method *m,
				  struct pack_bytes args, const char *besides,
				  struct method_args *out, struct detail *why)
{
	struct pack_r r = pack_reader(args.p, args.n);
	struct pack_bytes key;
	uint32_t n;
	enum rc rc;

	out->present = 0;
	if (pack_get_map(&r, &n) != RC_OK)
		return malformed(m, "must be a map", why);
	for (; n > 0; n--) {
		if (pack_get_bytes(&r, &key) != RC_OK)
			return malformed(m, "has a key that is no string", why);
		if (besides != NULL &&
		    pack_bytes_eq(key, besides, strlen(besides))) {
			if (pack_skip(&r, NULL) != RC_OK)
				return malformed(m, "is cut off", why);
			besides = NULL;
			continue;
		}
		rc = take(m, &r, key, out, why);
		if (rc != RC_OK)
			return rc;
	}
	if (r.at != r.end)
		return malformed(m, "is followed by other bytes", why);
	return missing(m, out, why);
}

enum rc method_args_check(const struct method *m, struct pack_bytes args,
			  struct method_args *out, struct detail *why)
{
	return method_args_check_besides(m, args, NULL, out, why);
}
