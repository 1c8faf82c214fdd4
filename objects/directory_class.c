/*
 * directory_class - the class of the one object that knows who may do what.
 *
 * Rows: ROW_DATA, a grant each; key: principal, tenant, environment, class,
 * each with a NUL behind it, and the prefix; value: the rights, as bits.
 * ROW_CONFIG, a member each; key: its id, 8 bytes, big endian; value: name,
 * incarnation. Each value has the version of its format first.
 *
 * The object's revision is the directory's version: each change counts it up by
 * one, and what changes nothing does not. 0: nothing was put in yet.
 */
#include "objects/directory_class.h"

#include <stdio.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/principal.h"
#include "objects/object.h"

#define INCARNATION_BYTES 16u
#define MEMBER_NAME_MAX   63u
#define MEMBER_KEY_BYTES  8u
#define RIGHTS_ALL        ((uint32_t)(RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN))
#define GRANT_KEY_MAX                                                    \
	(PRINCIPAL_BYTES_MAX + 2u * TENANT_BYTES_MAX + CLASS_BYTES_MAX + \
	 NAME_BYTES_MAX + 4u)

_Static_assert(GRANT_KEY_MAX <= ROW_KEY_BYTES_MAX, "a key fits a row's key");
_Static_assert(GRANTS_MAX *(GRANT_KEY_MAX + 128u) + 4096u < RESULT_BYTES_MAX,
	       "all grants are an answer");
_Static_assert(GRANTS_MAX + 16u < EVENT_ROWS_MAX, "a seed is one event");

struct given {
	struct pack_bytes principal;
	struct pack_bytes tenant;
	struct pack_bytes env;
	struct pack_bytes cls;
	struct pack_bytes prefix;
	uint32_t rights;
};

static bool is(struct pack_bytes s, const char *word)
{
	return pack_bytes_eq(s, word, strlen(word));
}

static bool same(struct pack_bytes a, struct pack_bytes b)
{
	return pack_bytes_eq(a, (const char *)b.p, b.n);
}

/* --------------------------------------------------------------------- rows */

static struct pack_bytes grant_key(const struct given *g,
				   uint8_t key[GRANT_KEY_MAX])
{
	const struct pack_bytes parts[] = { g->principal, g->tenant, g->env,
					    g->cls, g->prefix };
	size_t n = 0;
	size_t i;

	for (i = 0; i < ARRAY_LEN(parts); i++) {
		CHECK(n + parts[i].n < GRANT_KEY_MAX + 1);
		if (parts[i].n > 0)
			memcpy(key + n, parts[i].p, parts[i].n);
		n += parts[i].n;
		if (i + 1 < ARRAY_LEN(parts))
			key[n++] = 0;
	}
	return (struct pack_bytes){ key, n };
}

static bool key_part(struct pack_bytes *key, struct pack_bytes *part)
{
	const uint8_t *end = memchr(key->p, 0, key->n);

	if (end == NULL)
		return false;
	*part = (struct pack_bytes){ key->p, (size_t)(end - key->p) };
	key->p += part->n + 1;
	key->n -= part->n + 1;
	return true;
}

static enum rc grant_read(const struct row_view *row, struct given *g)
{
	struct pack_r r = pack_reader(row->value.p, row->value.n);
	struct pack_bytes key = row->key;
	uint64_t rights;
	enum rc rc = row_version_read(&r);

	if (rc != RC_OK)
		return rc;
	if (!key_part(&key, &g->principal) || !key_part(&key, &g->tenant) ||
	    !key_part(&key, &g->env) || !key_part(&key, &g->cls) ||
	    pack_get_u64(&r, &rights) != RC_OK || rights > RIGHTS_ALL)
		return RC_CORRUPT;
	g->prefix = key;
	g->rights = (uint32_t)rights;
	return RC_OK;
}

static enum rc grant_put(struct event *ev, struct pack_bytes key,
			 uint32_t rights)
{
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, 64);
	row_version_write(&w);
	pack_u64(&w, rights);
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(ev, ROW_DATA, key, (struct pack_bytes){ w.p, w.n },
			    0);
	pack_w_release(&w);
	return rc;
}

static struct pack_bytes member_key(uint64_t id, uint8_t key[MEMBER_KEY_BYTES])
{
	size_t i;

	for (i = 0; i < MEMBER_KEY_BYTES; i++)
		key[i] = (uint8_t)(id >> (8 * (MEMBER_KEY_BYTES - 1 - i)));
	return (struct pack_bytes){ key, MEMBER_KEY_BYTES };
}

static uint64_t member_id(struct pack_bytes key)
{
	uint64_t id = 0;
	size_t i;

	for (i = 0; i < key.n; i++)
		id = id << 8 | key.p[i];
	return id;
}

static enum rc member_read(const struct row_view *row, struct pack_bytes *name,
			   struct pack_bytes *incarnation)
{
	struct pack_r r = pack_reader(row->value.p, row->value.n);
	enum rc rc = row_version_read(&r);

	if (rc != RC_OK)
		return rc;
	if (row->key.n != MEMBER_KEY_BYTES || pack_get_str(&r, name) != RC_OK ||
	    pack_get_bin(&r, incarnation) != RC_OK)
		return RC_CORRUPT;
	return RC_OK;
}

static enum rc member_put(struct event *ev, uint64_t id, struct pack_bytes name,
			  struct pack_bytes incarnation)
{
	uint8_t key[MEMBER_KEY_BYTES];
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, 256);
	row_version_write(&w);
	pack_str(&w, (const char *)name.p, name.n);
	pack_bin(&w, incarnation.p, incarnation.n);
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(ev, ROW_CONFIG, member_key(id, key),
			    (struct pack_bytes){ w.p, w.n }, 0);
	pack_w_release(&w);
	return rc;
}

/* ------------------------------------------------------------------- checks */

static enum rc rights_read(struct pack_bytes array, uint32_t *out,
			   struct detail *why)
{
	struct pack_r r = pack_reader(array.p, array.n);
	struct pack_bytes word;
	uint32_t n;

	*out = 0;
	CHECK(pack_get_array(&r, &n) == RC_OK);
	while (n-- > 0) {
		enum method_right right;

		if (pack_get_bytes(&r, &word) != RC_OK ||
		    method_right_parse((const char *)word.p, word.n, &right) !=
			    RC_OK)
			return detail_set(why, RC_INVALID, "rights",
					  "rights are read, write, admin");
		*out |= (uint32_t)right;
	}
	return RC_OK;
}

static bool has_nul(struct pack_bytes s)
{
	return s.n > 0 && memchr(s.p, 0, s.n) != NULL;
}

static enum rc given_check(const struct given *g, struct detail *why)
{
	if (has_nul(g->principal) || principal_is_node(g->principal))
		return detail_set(why, RC_INVALID, "principal",
				  "nobody can be given rights by this name");
	if (!label_good(g->tenant))
		return detail_set(why, RC_INVALID, "tenant",
				  "a tenant is made of a-z, 0-9, _ and -, and "
				  "begins with a letter");
	if (!label_good(g->env))
		return detail_set(why, RC_INVALID, "env",
				  "an environment is made of a-z, 0-9, _ and "
				  "-, and begins with a letter");
	if (!principal_may_enter(g->principal, g->tenant, g->env))
		return detail_set(why, RC_INVALID, "principal",
				  "its certificate confines it to another "
				  "tenant or environment");
	if (!is(g->cls, "*") && class_find(g->cls) == NULL)
		return detail_set(why, RC_INVALID, "class",
				  "there is no such class; * is every class");
	if (has_nul(g->prefix))
		return detail_set(why, RC_INVALID, "prefix",
				  "a name holds no NUL");
	return RC_OK;
}

static enum rc given_read(const struct method_args *a, struct given *g,
			  struct detail *why)
{
	enum rc rc;

	*g = (struct given){
		.principal = method_bytes(a, ARG_directory_grant_principal),
		.tenant = method_bytes(a, ARG_directory_grant_tenant),
		.env = method_bytes(a, ARG_directory_grant_env),
		.cls = method_bytes(a, ARG_directory_grant_class),
		.prefix = method_bytes(a, ARG_directory_grant_prefix),
	};
	rc = rights_read(a->at[ARG_directory_grant_rights].bytes, &g->rights,
			 why);
	return rc == RC_OK ? given_check(g, why) : rc;
}

/* -------------------------------------------------------------------- grant */

/* Adds to what is there under the same names. */
static enum rc give(struct event *ev, const struct given *g, bool *changed,
		    struct detail *why)
{
	uint8_t buf[GRANT_KEY_MAX];
	struct pack_bytes key = grant_key(g, buf);
	struct row_view row;
	struct given old = { .rights = 0 };
	enum rc rc = ev_get(ev, ROW_DATA, key, &row);

	if (rc == RC_OK)
		rc = grant_read(&row, &old);
	else if (rc == RC_NOT_FOUND)
		rc = RC_OK;
	if (rc != RC_OK || (old.rights | g->rights) == old.rights)
		return rc;
	if (old.rights == 0 && ev_rows(ev) >= GRANTS_MAX)
		return detail_set(why, RC_NO_SPACE, "grants",
				  "a cluster has at most %u grants",
				  GRANTS_MAX);
	*changed = true;
	return grant_put(ev, key, old.rights | g->rights);
}

static void answer_version(struct event *ev, bool changed)
{
	uint64_t version = changed ? ev_bump(ev) : ev_rev(ev);

	pack_map(&ev->result, 2);
	pack_cstr(&ev->result, "version");
	pack_u64(&ev->result, version);
	pack_cstr(&ev->result, "changed");
	pack_bool(&ev->result, changed);
}

static enum rc directory_grant(struct event *ev, struct detail *why)
{
	bool changed = false;
	struct given g;
	enum rc rc = given_read(&ev->args, &g, why);

	if (rc == RC_OK)
		rc = give(ev, &g, &changed, why);
	if (rc == RC_OK)
		answer_version(ev, changed);
	return rc;
}

/* ------------------------------------------------------------------- revoke */

/* What is to be taken: a left out name stands for any. */
struct take {
	const struct method_args *args;
	uint32_t rights;
	struct pack_w hits; /* Keys and rights of the grants that fit. */
	uint32_t hits_n;
	enum rc rc;
};

static bool fits(const struct take *t, int place, struct pack_bytes have)
{
	return !method_has(t->args, place) ||
	       same(t->args->at[place].v.s, have);
}

static bool take_row(void *arg, const struct row_view *row)
{
	struct take *t = arg;
	struct given g;

	t->rc = grant_read(row, &g);
	if (t->rc != RC_OK)
		return false;
	if ((g.rights & t->rights) == 0 ||
	    !fits(t, ARG_directory_revoke_tenant, g.tenant) ||
	    !fits(t, ARG_directory_revoke_env, g.env) ||
	    !fits(t, ARG_directory_revoke_class, g.cls) ||
	    !fits(t, ARG_directory_revoke_prefix, g.prefix))
		return true;
	pack_bin(&t->hits, row->key.p, row->key.n);
	pack_u64(&t->hits, g.rights & ~t->rights);
	t->hits_n++;
	return true;
}

static enum rc take_hits(struct event *ev, const struct take *t)
{
	struct pack_r r = pack_reader(t->hits.p, t->hits.n);
	struct pack_bytes key;
	uint64_t rights;
	uint32_t i;
	enum rc rc = t->hits.rc;

	for (i = 0; rc == RC_OK && i < t->hits_n; i++) {
		CHECK(pack_get_bin(&r, &key) == RC_OK);
		CHECK(pack_get_u64(&r, &rights) == RC_OK);
		rc = rights == 0 ? ev_delete(ev, ROW_DATA, key)
				 : grant_put(ev, key, (uint32_t)rights);
	}
	return rc;
}

static enum rc directory_revoke(struct event *ev, struct detail *why)
{
	const struct method_args *a = &ev->args;
	struct pack_bytes who = a->at[ARG_directory_revoke_principal].v.s;
	struct take t = { .args = a, .rights = RIGHTS_ALL, .rc = RC_OK };
	uint8_t start[PRINCIPAL_BYTES_MAX + 1];
	uint8_t end[PRINCIPAL_BYTES_MAX + 1];
	enum rc rc = RC_OK;

	if (has_nul(who))
		return detail_set(why, RC_INVALID, "principal",
				  "a principal holds no NUL");
	if (method_has(a, ARG_directory_revoke_rights))
		rc = rights_read(a->at[ARG_directory_revoke_rights].bytes,
				 &t.rights, why);
	if (rc != RC_OK)
		return rc;
	/* Its keys lie between NAME 0 and NAME 1. */
	memcpy(start, who.p, who.n);
	start[who.n] = 0;
	memcpy(end, who.p, who.n);
	end[who.n] = 1;
	pack_w_init(&t.hits, RESULT_BYTES_MAX);
	rc = ev_scan(ev, ROW_DATA, (struct pack_bytes){ start, who.n + 1 },
		     (struct pack_bytes){ end, who.n + 1 }, false, take_row,
		     &t);
	if (rc == RC_OK)
		rc = t.rc;
	if (rc == RC_OK)
		rc = take_hits(ev, &t);
	if (rc == RC_OK)
		answer_version(ev, t.hits_n > 0);
	pack_w_release(&t.hits);
	return rc;
}

/* --------------------------------------------------------------------- read */

struct list {
	struct pack_w w;
	uint32_t n;
	enum rc rc;
};

static void write_rights(struct pack_w *w, uint32_t rights)
{
	static const enum method_right all[] = { RIGHT_READ, RIGHT_WRITE,
						 RIGHT_ADMIN };
	size_t i;

	pack_array(w, (uint32_t)__builtin_popcount(rights));
	for (i = 0; i < ARRAY_LEN(all); i++)
		if ((rights & (uint32_t)all[i]) != 0)
			pack_cstr(w, method_right_name(all[i]));
}

static void write_str(struct pack_w *w, const char *key, struct pack_bytes s)
{
	pack_cstr(w, key);
	pack_str(w, (const char *)s.p, s.n);
}

static bool list_grant(void *arg, const struct row_view *row)
{
	struct list *l = arg;
	struct given g;

	l->rc = grant_read(row, &g);
	if (l->rc != RC_OK)
		return false;
	pack_map(&l->w, 6);
	write_str(&l->w, "principal", g.principal);
	write_str(&l->w, "tenant", g.tenant);
	write_str(&l->w, "env", g.env);
	write_str(&l->w, "class", g.cls);
	write_str(&l->w, "prefix", g.prefix);
	pack_cstr(&l->w, "rights");
	write_rights(&l->w, g.rights);
	l->n++;
	return true;
}

static bool list_member(void *arg, const struct row_view *row)
{
	struct list *l = arg;
	struct pack_bytes name;
	struct pack_bytes incarnation;

	l->rc = member_read(row, &name, &incarnation);
	if (l->rc != RC_OK)
		return false;
	pack_map(&l->w, 3);
	pack_cstr(&l->w, "id");
	pack_u64(&l->w, member_id(row->key));
	write_str(&l->w, "name", name);
	pack_cstr(&l->w, "incarnation");
	pack_bin(&l->w, incarnation.p, incarnation.n);
	l->n++;
	return true;
}

static enum rc list_rows(struct event *ev, enum row_kind kind, const char *key,
			 bool (*cb)(void *arg, const struct row_view *row))
{
	static const struct pack_bytes all = { NULL, 0 };
	struct list l = { .rc = RC_OK };
	enum rc rc;

	pack_w_init(&l.w, RESULT_BYTES_MAX);
	rc = ev_scan(ev, kind, all, all, false, cb, &l);
	if (rc == RC_OK)
		rc = l.rc;
	if (rc == RC_OK)
		rc = l.w.rc;
	if (rc == RC_OK) {
		pack_cstr(&ev->result, key);
		pack_array(&ev->result, l.n);
		pack_raw(&ev->result, l.w.p, l.w.n);
	}
	pack_w_release(&l.w);
	return rc;
}

static enum rc directory_read(struct event *ev)
{
	bool news = !method_has(&ev->args, ARG_directory_read_since) ||
		    ev->args.at[ARG_directory_read_since].v.u != ev_rev(ev);
	enum rc rc;

	pack_map(&ev->result, news ? 3 : 1);
	pack_cstr(&ev->result, "version");
	pack_u64(&ev->result, ev_rev(ev));
	if (!news)
		return RC_OK;
	rc = list_rows(ev, ROW_DATA, "grants", list_grant);
	if (rc == RC_OK)
		rc = list_rows(ev, ROW_CONFIG, "members", list_member);
	return rc;
}

/* ------------------------------------------------------------------ members */

static enum rc directory_readmit(struct event *ev, struct detail *why)
{
	const struct method_args *a = &ev->args;
	uint64_t id = a->at[ARG_directory_readmit_node].v.u;
	struct pack_bytes wanted = a->at[ARG_directory_readmit_incarnation].v.s;
	struct pack_bytes name;
	struct pack_bytes incarnation;
	uint8_t key[MEMBER_KEY_BYTES];
	char copy[MEMBER_NAME_MAX + 1];
	struct row_view row;
	enum rc rc = ev_get(ev, ROW_CONFIG, member_key(id, key), &row);

	if (rc == RC_NOT_FOUND)
		return detail_set(why, RC_INVALID, "node",
				  "there is no member of this id");
	if (rc == RC_OK)
		rc = member_read(&row, &name, &incarnation);
	if (rc != RC_OK)
		return rc;
	if (same(wanted, incarnation)) {
		answer_version(ev, false);
		return RC_OK;
	}
	if (name.n > MEMBER_NAME_MAX)
		return RC_CORRUPT;
	memcpy(copy, name.p, name.n);
	name.p = (const uint8_t *)copy;
	rc = member_put(ev, id, name, wanted);
	if (rc == RC_OK)
		answer_version(ev, true);
	return rc;
}

struct member_given {
	uint64_t id;
	struct pack_bytes name;
	struct pack_bytes incarnation;
};

static bool member_parse(struct pack_bytes map, struct member_given *m)
{
	struct pack_r r = pack_reader(map.p, map.n);
	struct pack_bytes key;
	uint32_t pairs;

	*m = (struct member_given){ .id = 0 };
	if (pack_get_map(&r, &pairs) != RC_OK)
		return false;
	while (pairs-- > 0) {
		enum rc rc = RC_INVALID;

		if (pack_get_bytes(&r, &key) != RC_OK)
			return false;
		if (is(key, "id"))
			rc = pack_get_u64(&r, &m->id);
		else if (is(key, "name"))
			rc = pack_get_bytes(&r, &m->name);
		else if (is(key, "incarnation"))
			rc = pack_get_bytes(&r, &m->incarnation);
		if (rc != RC_OK)
			return false;
	}
	return m->id != 0 && m->name.n > 0 && m->name.n <= MEMBER_NAME_MAX &&
	       m->incarnation.n == INCARNATION_BYTES;
}

static enum rc seed_members(struct event *ev, struct pack_bytes array,
			    struct detail *why)
{
	struct pack_r r = pack_reader(array.p, array.n);
	struct member_given m;
	struct pack_bytes map;
	uint32_t n;
	uint32_t i;
	enum rc rc = pack_get_array(&r, &n);

	for (i = 0; rc == RC_OK && i < n; i++) {
		rc = pack_skip(&r, &map);
		if (rc == RC_OK && !member_parse(map, &m)) {
			rc = detail_set(why, RC_INVALID, "",
					"a member has id, name, incarnation");
			detail_within(why, "members[%u]", i);
		}
		if (rc == RC_OK)
			rc = member_put(ev, m.id, m.name, m.incarnation);
	}
	return rc;
}

static enum rc seed_grants(struct event *ev, struct pack_bytes array,
			   struct detail *why)
{
	const struct method *m = method_at(METHOD_directory_grant);
	struct pack_r r = pack_reader(array.p, array.n);
	struct method_args args;
	struct pack_bytes map;
	bool changed;
	struct given g;
	uint32_t n;
	uint32_t i;
	enum rc rc = pack_get_array(&r, &n);

	for (i = 0; rc == RC_OK && i < n; i++) {
		rc = pack_skip(&r, &map);
		if (rc == RC_OK)
			rc = method_args_check(m, map, &args, why);
		if (rc == RC_OK)
			rc = given_read(&args, &g, why);
		if (rc == RC_OK)
			rc = give(ev, &g, &changed, why);
		if (rc != RC_OK && rc != RC_AGAIN)
			detail_within(why, "grants[%u]", i);
	}
	return rc;
}

static enum rc directory_seed(struct event *ev, struct detail *why)
{
	const struct method_args *a = &ev->args;
	enum rc rc;

	if (ev_rev(ev) != 0)
		return detail_set(why, RC_CONFLICT, NULL,
				  "the directory has its content already");
	rc = seed_members(ev, a->at[ARG_directory_seed_members].bytes, why);
	if (rc == RC_OK)
		rc = seed_grants(ev, a->at[ARG_directory_seed_grants].bytes,
				 why);
	if (rc == RC_OK)
		answer_version(ev, true);
	return rc;
}

/* ---------------------------------------------------------------------- run */

static enum rc dispatch(struct event *ev, struct detail *why)
{
	switch (ev->method->number) {
	case METHOD_directory_read:
		return directory_read(ev);
	case METHOD_directory_grant:
		return directory_grant(ev, why);
	case METHOD_directory_revoke:
		return directory_revoke(ev, why);
	case METHOD_directory_readmit:
		return directory_readmit(ev, why);
	case METHOD_directory_seed:
		return directory_seed(ev, why);
	default:
		return RC_UNSUPPORTED;
	}
}

static enum run directory_run(struct event *ev)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc = dispatch(ev, &why);

	if (rc == RC_OK)
		return RUN_DONE;
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	if (!rc_is_wire(rc))
		rc = RC_INTERNAL;
	return ev_fail(ev, rc, why.field, "%s",
		       why.text[0] != '\0' ? why.text : rc_text(rc));
}

const struct class class_directory = {
	.name = DIRECTORY_CLASS,
	.interleave = INTERLEAVE_NEVER,
	.durability = DURABILITY_COMMITTED,
	.durabilities = 1u << DURABILITY_COMMITTED,
	.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,
	.run = directory_run,
};
