#include "node/core/directory.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/logline.h"
#include "node/base/mutant.h"
#include "node/base/principal.h"
#include "node/core/call.h"
#include "node/core/internal.h"
#include "node/core/route.h"
#include "objects/directory_class.h"

#define DIRECTORY_MAGIC 0x44495245u

/* A call of its own is over by then, one way or the other. */
#define DIRECTORY_DEADLINE_MS 2000u

struct directory {
	uint32_t magic;
	struct core *core; /* NULL: it is gone. */
	struct env *env;
	struct bind *bind;
	struct transport *t;
	struct members *members;
	struct directory_config cfg;
	void (*ready)(void *arg);
	void *ready_arg;
	bool ready_told;

	uint64_t version;   /* 0: nothing is known yet. */
	bool there;         /* A copy was read. */
	uint64_t from_ms;   /* When the newest read that succeeded began. */
	struct pack_w told; /* Two pairs of what was read: grants, members. */

	struct call *call; /* Of its own, in flight. */
	uint64_t asked_ms; /* When it began. */
	bool again;        /* Somebody wants what is newer than that. */
	uint64_t due_ms;   /* When it is read next in any case. */
	struct env_timer timer;
	struct env_task task; /* Reads, outside of whoever asked for it. */
	char principal[PRINCIPAL_NODE_BYTES];
};

bool directory_good(const struct directory *d)
{
	if (MUTANT(directory_ttl_ignored))
		return d->there;
	return d->there && env_now_ms(d->env) - d->from_ms < d->cfg.ttl_ms;
}

uint64_t directory_version(const struct directory *d)
{
	return d->version;
}

uint64_t directory_age_ms(const struct directory *d)
{
	return d->there ? env_now_ms(d->env) - d->from_ms : UINT64_MAX;
}

bool directory_outdated(const struct directory *d)
{
	return transport_version_max(d->t) > d->version || !directory_good(d);
}

/* ------------------------------------------------------------ what was read */

static bool bytes_are(struct pack_bytes b, const char *s)
{
	return pack_bytes_eq(b, s, strlen(s));
}

static bool text_take(struct pack_r *r, char *to, size_t cap)
{
	struct pack_bytes s;

	if (pack_get_bytes(r, &s) != RC_OK || s.n >= cap)
		return false;
	if (s.n > 0)
		memcpy(to, s.p, s.n);
	to[s.n] = '\0';
	return true;
}

static bool rights_take(struct pack_r *r, uint32_t *rights)
{
	enum method_right right;
	struct pack_bytes word;
	uint32_t n;

	if (pack_get_array(r, &n) != RC_OK)
		return false;
	while (n-- > 0) {
		if (pack_get_bytes(r, &word) != RC_OK)
			return false;
		/* A right that this version does not know gives nothing. */
		if (method_right_parse((const char *)word.p, word.n, &right) ==
		    RC_OK)
			*rights |= (uint32_t)right;
	}
	return true;
}

static bool grant_take(struct pack_r *r, struct grant *g)
{
	struct pack_bytes key;
	uint32_t pairs;

	memset(g, 0, sizeof(*g));
	if (pack_get_map(r, &pairs) != RC_OK)
		return false;
	while (pairs-- > 0) {
		bool good;

		if (pack_get_bytes(r, &key) != RC_OK)
			return false;
		if (bytes_are(key, "principal"))
			good = text_take(r, g->principal, sizeof(g->principal));
		else if (bytes_are(key, "tenant"))
			good = text_take(r, g->tenant, sizeof(g->tenant));
		else if (bytes_are(key, "env"))
			good = text_take(r, g->env, sizeof(g->env));
		else if (bytes_are(key, "class"))
			good = text_take(r, g->cls, sizeof(g->cls));
		else if (bytes_are(key, "prefix"))
			good = text_take(r, g->prefix, sizeof(g->prefix));
		else if (bytes_are(key, "rights"))
			good = rights_take(r, &g->rights);
		else
			good = pack_skip(r, NULL) == RC_OK;
		if (!good)
			return false;
	}
	return true;
}

static enum rc grants_take(struct directory *d, struct pack_r *r)
{
	struct grant *grants;
	uint32_t n;
	uint32_t i;
	enum rc rc = RC_OK;

	if (pack_get_array(r, &n) != RC_OK || n > GRANTS_MAX)
		return RC_CORRUPT;
	grants = calloc(n > 0 ? n : 1, sizeof(*grants));
	if (grants == NULL)
		return RC_NOMEM;
	for (i = 0; i < n && rc == RC_OK; i++)
		if (!grant_take(r, &grants[i]))
			rc = RC_CORRUPT;
	if (rc == RC_OK)
		rc = bind_replace(d->bind, grants, n);
	free(grants);
	return rc;
}

/* A member that came back with an empty disk: the cluster has agreed on it, and
 * from now on this node believes the new one and not the old. */
static void member_note(struct directory *d, uint64_t id,
			struct pack_bytes incarnation)
{
	const struct member *m = members_find(d->members, id);

	if (m == NULL || incarnation.n != ID_BYTES ||
	    id == members_self(d->members) ||
	    memcmp(m->incarnation, incarnation.p, ID_BYTES) == 0)
		return;
	LOG_INFO("member_readmitted", F("node", id));
	members_readmit(d->members, id, incarnation.p, NULL, NULL);
}

static enum rc members_take(struct directory *d, struct pack_r *r)
{
	uint32_t n;

	if (pack_get_array(r, &n) != RC_OK)
		return RC_CORRUPT;
	while (n-- > 0) {
		struct pack_bytes incarnation = { NULL, 0 };
		struct pack_bytes key;
		uint64_t id = 0;
		uint32_t pairs;

		if (pack_get_map(r, &pairs) != RC_OK)
			return RC_CORRUPT;
		while (pairs-- > 0) {
			enum rc rc;

			if (pack_get_bytes(r, &key) != RC_OK)
				return RC_CORRUPT;
			if (bytes_are(key, "id"))
				rc = pack_get_u64(r, &id);
			else if (bytes_are(key, "incarnation"))
				rc = pack_get_bytes(r, &incarnation);
			else
				rc = pack_skip(r, NULL);
			if (rc != RC_OK)
				return RC_CORRUPT;
		}
		member_note(d, id, incarnation);
	}
	return RC_OK;
}

/* A part of what was read, kept as it came. */
static enum rc part_take(struct directory *d, struct pack_r *r, const char *key,
			 enum rc (*take)(struct directory *d, struct pack_r *r))
{
	struct pack_bytes part;
	struct pack_r of;

	if (pack_skip(r, &part) != RC_OK)
		return RC_CORRUPT;
	of = pack_reader(part.p, part.n);
	pack_cstr(&d->told, key);
	pack_raw(&d->told, part.p, part.n);
	return take(d, &of);
}

/* {version, age_ms?, grants?, members?}. What is older than ours is left alone.
 */
static enum rc copy_take(struct directory *d, struct pack_bytes result,
			 uint64_t *version, uint64_t *age_ms)
{
	struct pack_r r = pack_reader(result.p, result.n);
	struct pack_bytes key;
	uint32_t pairs;
	enum rc rc = RC_OK;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return RC_CORRUPT;
	while (pairs-- > 0 && rc == RC_OK) {
		if (pack_get_bytes(&r, &key) != RC_OK)
			return RC_CORRUPT;
		if (bytes_are(key, "version"))
			rc = pack_get_u64(&r, version);
		else if (*version == 0)
			return RC_OK; /* Nobody has put anything in yet. */
		else if (bytes_are(key, "age_ms"))
			rc = pack_get_u64(&r, age_ms);
		else if (*version < d->version)
			rc = pack_skip(&r, NULL);
		else if (bytes_are(key, "grants")) {
			pack_w_reset(&d->told);
			rc = part_take(d, &r, "grants", grants_take);
		} else if (bytes_are(key, "members"))
			rc = part_take(d, &r, "members", members_take);
		else
			rc = pack_skip(&r, NULL);
	}
	return rc;
}

/* ------------------------------------------------------------ calls of its own
 */

static void directory_ask(struct directory *d, const struct pack_w *w,
			  call_reply reply)
{
	static const uint8_t none[] = "";
	const struct caller caller = {
		.principal = { (const uint8_t *)d->principal,
			       strlen(d->principal) },
		.tenant = { none, 0 },
		.env = { none, 0 },
	};

	d->asked_ms = env_now_ms(d->env);
	/* A full node's next look comes soon enough. */
	d->call = w->rc != RC_OK ? NULL
				 : call_start(d->core, &caller,
					      (struct pack_bytes){ w->p, w->n },
					      reply, d);
}

static void ask_begin(struct pack_w *w, const char *method)
{
	pack_w_init(w, FRAME_BYTES_MAX);
	pack_array(w, 4);
	pack_cstr(w, DIRECTORY_ADDRESS);
	pack_cstr(w, method);
}

static void ask_end(struct pack_w *w)
{
	pack_map(w, 1);
	pack_cstr(w, "deadline_ms");
	pack_u64(w, DIRECTORY_DEADLINE_MS);
}

static void write_grant(struct pack_w *w, const struct grant *g)
{
	static const enum method_right all[] = { RIGHT_READ, RIGHT_WRITE,
						 RIGHT_ADMIN };
	uint32_t rights = g->rights & (RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	size_t i;

	pack_map(w, 6);
	pack_cstr(w, "principal");
	pack_cstr(w, g->principal);
	pack_cstr(w, "tenant");
	pack_cstr(w, g->tenant);
	pack_cstr(w, "env");
	pack_cstr(w, g->env);
	pack_cstr(w, "class");
	pack_cstr(w, g->cls);
	pack_cstr(w, "prefix");
	pack_cstr(w, g->prefix);
	pack_cstr(w, "rights");
	pack_array(w, (uint32_t)__builtin_popcount(rights));
	for (i = 0; i < ARRAY_LEN(all); i++)
		if ((rights & (uint32_t)all[i]) != 0)
			pack_cstr(w, method_right_name(all[i]));
}

static void write_member(struct pack_w *w, const struct member *m)
{
	pack_map(w, 3);
	pack_cstr(w, "id");
	pack_u64(w, m->id);
	pack_cstr(w, "name");
	pack_cstr(w, m->name);
	pack_cstr(w, "incarnation");
	pack_bin(w, m->incarnation, ID_BYTES);
}

static void seed_replied(void *arg, const struct answer *a)
{
	struct directory *d = arg;

	CHECK_OBJ(d, DIRECTORY_MAGIC);
	d->call = NULL;
	/* Another owner may have been faster, or this one's try was lost on the
	 * way and came through: the next read tells. */
	if (a->rc == RC_OK)
		LOG_INFO("directory_seeded", F("grants", d->cfg.grants_n));
	else if (a->rc == RC_INVALID)
		LOG_ERROR("directory_seed_refused",
			  F("field", (const char *)a->why->field),
			  F("why", (const char *)a->why->text));
	if (a->rc == RC_OK)
		directory_look(d);
}

static void directory_seed(struct directory *d)
{
	struct pack_w w;
	size_t i;

	ask_begin(&w, "seed");
	pack_map(&w, 2);
	pack_cstr(&w, "grants");
	pack_array(&w, (uint32_t)d->cfg.grants_n);
	for (i = 0; i < d->cfg.grants_n; i++)
		write_grant(&w, &d->cfg.grants[i]);
	pack_cstr(&w, "members");
	pack_array(&w, (uint32_t)members_count(d->members));
	for (i = 0; i < members_count(d->members); i++)
		write_member(&w, members_at(d->members, i));
	ask_end(&w);
	directory_ask(d, &w, seed_replied);
	pack_w_release(&w);
}

static bool owns_it(struct directory *d)
{
	return route_find(core_bridge(d->core, DIRECTORY_SHARD)).to ==
	       ROUTE_HERE;
}

/* `age_ms`: of the copy of another member that this is one of, else 0. */
static void copy_is(struct directory *d, uint64_t version, uint64_t age_ms)
{
	uint64_t from_ms = d->asked_ms > age_ms ? d->asked_ms - age_ms : 0;

	d->version = version;
	if (!d->there || from_ms > d->from_ms)
		d->from_ms = from_ms;
	d->there = true;
	d->due_ms = d->asked_ms + DIRECTORY_POLL_MS;
	transport_version(d->t, version);
	call_table_renewed(core_calls(d->core));
	if (d->ready_told)
		return;
	d->ready_told = true;
	if (d->ready != NULL)
		d->ready(d->ready_arg);
}

static void read_replied(void *arg, const struct answer *a)
{
	struct directory *d = arg;
	uint64_t version = 0;
	uint64_t age_ms = 0;
	enum rc rc = a->rc;

	CHECK_OBJ(d, DIRECTORY_MAGIC);
	d->call = NULL;
	d->due_ms = env_now_ms(d->env) + DIRECTORY_WATCH_MS;
	if (rc == RC_OK)
		rc = copy_take(d, a->result, &version, &age_ms);
	if (rc == RC_CORRUPT)
		LOG_ERROR("directory_unreadable", F("version", version));
	if (rc == RC_OK && version == 0 && owns_it(d))
		directory_seed(d);
	/* What was read once is not unread: of a cluster whose versions go back
	 * nothing can be believed. */
	if (rc == RC_OK && version < d->version && age_ms == 0)
		LOG_ERROR("directory_went_back", F("version", version),
			  F("known", d->version));
	else if (rc == RC_OK && version > 0 && version >= d->version)
		copy_is(d, version, age_ms);
	if (d->again)
		directory_look(d);
}

bool directory_tell(const struct directory *d, struct pack_w *w)
{
	if (!directory_good(d) || d->told.n == 0 || d->told.rc != RC_OK)
		return false;
	pack_map(w, 4);
	pack_cstr(w, "version");
	pack_u64(w, d->version);
	/* Clocks are cut to milliseconds: rather too old. */
	pack_cstr(w, "age_ms");
	pack_u64(w,
		 MUTANT(directory_copy_ageless) ? 1 : directory_age_ms(d) + 1);
	pack_raw(w, d->told.p, d->told.n);
	return w->rc == RC_OK;
}

static void directory_read(struct directory *d)
{
	struct pack_w w;

	d->again = false;
	ask_begin(&w, "read");
	pack_map(&w, d->there ? 1 : 0);
	if (d->there) {
		pack_cstr(&w, "since");
		pack_u64(&w, d->version);
	}
	ask_end(&w);
	directory_ask(d, &w, read_replied);
	pack_w_release(&w);
}

/* ------------------------------------------------------------------- watching
 */

static void look_task(struct env_task *task)
{
	struct directory *d = CONTAINER_OF(task, struct directory, task);

	CHECK_OBJ(d, DIRECTORY_MAGIC);
	if (d->core == NULL || core_is_closing(d->core))
		return;
	if (d->call != NULL)
		d->again = true; /* What it reads may be from before. */
	else
		directory_read(d);
}

void directory_look(struct directory *d)
{
	env_post(d->env, &d->task);
}

static void watch_due(struct env_timer *timer)
{
	struct directory *d = CONTAINER_OF(timer, struct directory, timer);
	uint64_t now_ms = env_now_ms(d->env);

	CHECK_OBJ(d, DIRECTORY_MAGIC);
	if (core_is_closing(d->core))
		return;
	if (d->call == NULL &&
	    (now_ms >= d->due_ms || transport_version_max(d->t) > d->version))
		directory_look(d);
	env_timer_start(timer, now_ms + DIRECTORY_WATCH_MS);
}

/* ----------------------------------------------------------------- confirming
 */

static bool has_told(const struct directory *d, const struct member *m,
		     uint64_t version)
{
	if (m->id == members_self(d->members))
		return d->version >= version;
	return transport_version_of(d->t, m->id) >= version;
}

bool directory_confirmed(const struct directory *d, uint64_t version)
{
	size_t i;

	for (i = 0; i < members_count(d->members); i++)
		if (!has_told(d, members_at(d->members, i), version))
			return false;
	return true;
}

static void write_names(const struct directory *d, uint64_t version, bool told,
			struct pack_w *w)
{
	uint32_t n = 0;
	size_t i;

	for (i = 0; i < members_count(d->members); i++)
		if (has_told(d, members_at(d->members, i), version) == told)
			n++;
	pack_array(w, n);
	for (i = 0; i < members_count(d->members); i++)
		if (has_told(d, members_at(d->members, i), version) == told)
			pack_cstr(w, members_at(d->members, i)->name);
}

void directory_confirm_write(const struct directory *d, uint64_t version,
			     struct pack_w *w)
{
	pack_cstr(w, "confirmed");
	write_names(d, version, true, w);
	pack_cstr(w, "missing");
	write_names(d, version, false, w);
}

/* ----------------------------------------------------------------------- life
 */

enum rc directory_new(struct core *core, struct bind *bind,
		      const struct directory_config *cfg,
		      void (*ready)(void *arg), void *arg,
		      struct directory **out)
{
	struct directory *d = calloc(1, sizeof(*d));

	if (d == NULL)
		return RC_NOMEM;
	d->magic = DIRECTORY_MAGIC;
	d->core = core;
	d->env = core_env(core);
	d->bind = bind;
	d->t = core_transport(core);
	d->members = transport_members(d->t);
	d->cfg = *cfg;
	if (d->cfg.ttl_ms == 0)
		d->cfg.ttl_ms = DIRECTORY_TTL_MS;
	d->ready = ready;
	d->ready_arg = arg;
	pack_w_init(&d->told, FRAME_BYTES_MAX);
	principal_of_node(core_identity(core)->node_id, d->principal);
	d->task.cb = look_task;
	d->task.phase = ENV_PHASE_PROPOSE;
	env_timer_init(&d->timer, d->env, watch_due);
	call_table_directory(core_calls(core), d);
	directory_look(d);
	env_timer_start(&d->timer, env_now_ms(d->env) + DIRECTORY_WATCH_MS);
	*out = d;
	return RC_OK;
}

void directory_detach(struct directory *d)
{
	CHECK_OBJ(d, DIRECTORY_MAGIC);
	env_timer_stop(&d->timer);
	d->core = NULL;
	d->call = NULL;
}

void directory_free(struct directory *d)
{
	if (d == NULL)
		return;
	CHECK_OBJ(d, DIRECTORY_MAGIC);
	PRE(d->core == NULL);
	pack_w_release(&d->told);
	d->magic = 0;
	free(d);
}
