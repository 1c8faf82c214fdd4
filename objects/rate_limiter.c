/*
 * rate_limiter - the built-in class of limits: GCRA with integer arithmetic.
 *
 * The generic cell rate algorithm (ITU-T I.371, the virtual scheduling form)
 * keeps one time per key, the theoretical arrival time TAT. With T = period /
 * limit, a request of cost c at now is let in when
 *
 *	max(TAT, now) + c * T - burst * T <= now
 *
 * and then becomes the new TAT. It admits at most burst + rate * W in any
 *window W. T need not be whole, so times are counted in 1/limit ns ("scaled")
 *in 128 bits: nothing is rounded while deciding.
 *
 * Rows: ROW_CONFIG, key: the policy's name; value [rev, limit, period_ms,
 *burst, durability, changed_ns, cold_ns, cold_rev]. ROW_DATA, key: length of
 *the policy's name (1 byte), the name, the key; value [tat_ns, tat_rest, limit,
 *rev], TAT = tat_ns + rest/limit, rev: of the policy under which it was
 *written. A key that is full (TAT <= now) is the same as an absent one; rows
 *stay a minute longer so that busy keys are not swept and written in turns. A
 *key is never emptier than empty: a TAT of before a change of its policy counts
 *as no more than the moment of that change + burst * T.
 *
 * Durability memory: rows live in the owner's memory. A new owner starts every
 * key of an older policy empty: TAT = takeover + burst * T, so that a failover
 * admits nothing twice. The same when a policy's durability becomes memory or
 * is it no longer: where its keys were kept so far nobody looks any more. Such
 *a policy is `cold` since then.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "objects/object.h"

__extension__ typedef __int128 i128;

#define POLICY_NAME_MAX 64u
#define KEY_ROW_MAX     (1u + POLICY_NAME_MAX + LIMITER_KEY_BYTES_MAX)
#define KEEP_FULL_NS    60000000000ull
#define MS_NS           1000000ull

/* The longest a key may take to fill up: beyond it no clock would matter. */
#define FILL_MS_MAX 3155760000000ull /* A century. */

_Static_assert(KEY_ROW_MAX <= ROW_KEY_BYTES_MAX, "a key fits a row's key");

struct policy {
	uint64_t rev;
	uint64_t limit;
	uint64_t period_ns;
	uint64_t burst;
	enum durability durability;
	uint64_t changed_ns; /* When it got `rev`. */
	uint64_t cold_ns;    /* 0: a key without a row is full. */
	uint64_t cold_rev;   /* Rows of older ones know too little. */
};

/* What a check found. Times in ns from now. */
struct verdict {
	bool allowed;
	uint64_t remaining;
	uint64_t retry_ns;
	uint64_t reset_ns;
};

/* One check on its way. */
struct check {
	struct event *ev;
	struct policy policy;
	uint8_t key[KEY_ROW_MAX];
	size_t key_n;
	uint64_t cost;
	bool take;
	struct detail *why;
};

static const char *const durability_names[] = {
	[DURABILITY_DEFAULT] = "lagged", [DURABILITY_MEMORY] = "memory",
	[DURABILITY_LAGGED] = "lagged",  [DURABILITY_COMMITTED] = "committed",
	[DURABILITY_LEASED] = "leased",
};

static struct pack_bytes policy_name(const struct method_args *a, int place)
{
	struct pack_bytes name = method_bytes(a, place);

	if (name.n == 0)
		name = (struct pack_bytes){ (const uint8_t *)"default", 7 };
	return name;
}

static enum rc policy_read(struct pack_bytes value, struct policy *p)
{
	struct pack_r r = pack_reader(value.p, value.n);
	uint64_t durability;
	uint64_t period_ms;
	enum rc rc = row_version_read(&r);

	if (rc != RC_OK)
		return rc;
	if (pack_get_u64(&r, &p->rev) != RC_OK ||
	    pack_get_u64(&r, &p->limit) != RC_OK ||
	    pack_get_u64(&r, &period_ms) != RC_OK ||
	    pack_get_u64(&r, &p->burst) != RC_OK ||
	    pack_get_u64(&r, &durability) != RC_OK ||
	    pack_get_u64(&r, &p->changed_ns) != RC_OK ||
	    pack_get_u64(&r, &p->cold_ns) != RC_OK ||
	    pack_get_u64(&r, &p->cold_rev) != RC_OK || r.at != r.end ||
	    p->limit == 0 || p->burst == 0 || period_ms == 0 ||
	    durability < DURABILITY_MEMORY || durability > DURABILITY_LEASED)
		return RC_CORRUPT;
	p->period_ns = period_ms * MS_NS;
	p->durability = (enum durability)durability;
	return RC_OK;
}

static enum rc policy_get(struct event *ev, struct pack_bytes name,
			  struct policy *p, struct detail *why)
{
	struct row_view view;
	enum rc rc = ev_get(ev, ROW_CONFIG, name, &view);

	if (rc == RC_OK)
		return policy_read(view.value, p);
	if (rc == RC_NOT_FOUND)
		return detail_set(why, rc, "policy",
				  "there is no policy `%.*s`", (int)name.n,
				  (const char *)name.p);
	return rc;
}

/* Scaled arithmetic. */

static i128 scaled(const struct policy *p, uint64_t ns)
{
	return (i128)ns * p->limit;
}

static uint64_t ns_up(const struct policy *p, i128 t)
{
	if (t <= 0)
		return 0;
	return (uint64_t)((t + p->limit - 1) / p->limit);
}

static uint64_t ms_up(uint64_t ns)
{
	return (ns + MS_NS - 1) / MS_NS;
}

static i128 burst_scaled(const struct policy *p)
{
	return (i128)p->burst * p->period_ns;
}

/* Keys. */

static void check_key(struct check *c, struct pack_bytes policy,
		      struct pack_bytes key)
{
	CHECK(policy.n <= POLICY_NAME_MAX);
	CHECK(key.n <= LIMITER_KEY_BYTES_MAX);
	c->key[0] = (uint8_t)policy.n;
	memcpy(c->key + 1, policy.p, policy.n);
	if (key.n > 0)
		memcpy(c->key + 1 + policy.n, key.p, key.n);
	c->key_n = 1 + policy.n + key.n;
}

static struct pack_bytes key_of(const struct check *c)
{
	return (struct pack_bytes){ c->key, c->key_n };
}

/* Since when keys without a row count as empty; 0: they are full. */
static uint64_t cold_since(const struct event *ev, const struct policy *p)
{
	uint64_t lead_ns = ev_lead_stamp(ev);

	/* What was said in the very moment of the takeover was said before
	 * it. */
	if (p->durability == DURABILITY_MEMORY && p->changed_ns <= lead_ns)
		return lead_ns;
	return p->cold_ns;
}

static i128 tat_absent(const struct check *c)
{
	uint64_t cold_ns = cold_since(c->ev, &c->policy);

	return cold_ns == 0
		       ? 0
		       : scaled(&c->policy, cold_ns) + burst_scaled(&c->policy);
}

/* What a row says of before the policy was changed to what it is. */
static i128 tat_of_old(const struct check *c, i128 tat, uint64_t rev)
{
	const struct policy *p = &c->policy;
	i128 empty = scaled(p, p->changed_ns) + burst_scaled(p);
	i128 absent = tat_absent(c);

	if (tat > empty)
		tat = empty;
	if (rev < p->cold_rev && tat < absent)
		tat = absent;
	return tat;
}

static enum rc tat_read(const struct check *c, struct pack_bytes value,
			i128 *tat)
{
	const struct policy *p = &c->policy;
	struct pack_r r = pack_reader(value.p, value.n);
	uint64_t ns;
	uint64_t rest;
	uint64_t limit;
	uint64_t rev;
	enum rc rc = row_version_read(&r);

	if (rc != RC_OK)
		return rc;
	if (pack_get_u64(&r, &ns) != RC_OK ||
	    pack_get_u64(&r, &rest) != RC_OK ||
	    pack_get_u64(&r, &limit) != RC_OK ||
	    pack_get_u64(&r, &rev) != RC_OK || r.at != r.end || limit == 0)
		return RC_CORRUPT;
	*tat = scaled(p, ns);
	/* Another limit since: the rest rounds up, towards denying. */
	*tat += limit == p->limit ? (i128)rest
				  : ((i128)rest * p->limit + limit - 1) / limit;
	if (rev != p->rev)
		*tat = tat_of_old(c, *tat, rev);
	return RC_OK;
}

static enum rc row_get(struct check *c, struct row_view *view)
{
	if (c->policy.durability == DURABILITY_MEMORY)
		return ev_get_memory(c->ev, key_of(c), view);
	return ev_get(c->ev, ROW_DATA, key_of(c), view);
}

static enum rc tat_get(struct check *c, i128 *tat)
{
	struct row_view view;
	enum rc rc = row_get(c, &view);

	if (rc == RC_OK)
		return tat_read(c, view.value, tat);
	if (rc != RC_NOT_FOUND)
		return rc;
	*tat = tat_absent(c);
	return RC_OK;
}

static enum rc tat_put(struct check *c, i128 tat)
{
	const struct policy *p = &c->policy;
	uint64_t ns = (uint64_t)(tat / p->limit);
	uint64_t keep_ns = ns_up(p, tat_absent(c));
	struct pack_w w;
	enum rc rc;

	/* As long as without it the key would be emptier than it is. */
	if (keep_ns <= ns)
		keep_ns = ns + 1;
	pack_w_init(&w, 64);
	row_version_write(&w);
	pack_u64(&w, ns);
	pack_u64(&w, (uint64_t)(tat % p->limit));
	pack_u64(&w, p->limit);
	pack_u64(&w, p->rev);
	rc = w.rc;
	if (rc == RC_OK && p->durability == DURABILITY_MEMORY)
		rc = ev_put_memory(c->ev, key_of(c),
				   (struct pack_bytes){ w.p, w.n }, keep_ns);
	else if (rc == RC_OK)
		rc = ev_put(c->ev, ROW_DATA, key_of(c),
			    (struct pack_bytes){ w.p, w.n },
			    keep_ns + KEEP_FULL_NS);
	pack_w_release(&w);
	return rc;
}

/* Past its bound of keys a limiter keeps one bucket for all unknown ones:
 * memory stays bounded and nobody is let in for being new. */
static enum rc check_overflow(struct check *c, struct pack_bytes policy)
{
	bool memory = c->policy.durability == DURABILITY_MEMORY;
	uint64_t keys = memory ? ev_memory_rows(c->ev) : ev_rows(c->ev);
	struct row_view view;
	enum rc rc;

	if (keys < LIMITER_KEYS_MAX)
		return RC_OK;
	rc = row_get(c, &view);
	if (rc != RC_NOT_FOUND)
		return rc;
	check_key(c, policy, (struct pack_bytes){ NULL, 0 });
	return RC_OK;
}

static void verdict_fill(const struct policy *p, i128 tat, i128 now,
			 i128 cost_tat, struct verdict *v)
{
	i128 burst = burst_scaled(p);
	i128 used = tat > now ? tat - now : 0;
	i128 wait = cost_tat - burst - now;

	v->remaining =
		used >= burst ? 0 : (uint64_t)((burst - used) / p->period_ns);
	v->retry_ns = v->allowed ? 0 : ns_up(p, wait);
	v->reset_ns = ns_up(p, used);
}

static enum rc check_run(struct check *c, struct verdict *v)
{
	const struct policy *p = &c->policy;
	i128 now = scaled(p, ev_now(c->ev));
	i128 next;
	i128 tat;
	enum rc rc;

	if (c->cost > p->burst)
		return detail_set(c->why, RC_INVALID, "cost",
				  "the burst is %" PRIu64
				  ": this cost is never let in",
				  p->burst);
	rc = tat_get(c, &tat);
	if (rc != RC_OK)
		return rc;
	next = (tat > now ? tat : now) + (i128)c->cost * p->period_ns;
	v->allowed = next - burst_scaled(p) <= now;
	if (v->allowed && c->take && c->cost > 0) {
		tat = next;
		rc = tat_put(c, tat);
		if (rc != RC_OK)
			return rc;
	}
	verdict_fill(p, tat, now, next, v);
	return RC_OK;
}

static void verdict_write(const struct policy *p, const struct verdict *v,
			  struct pack_w *w)
{
	pack_map(w, 6);
	pack_cstr(w, "allowed");
	pack_bool(w, v->allowed);
	pack_cstr(w, "limit");
	pack_u64(w, p->limit);
	pack_cstr(w, "remaining");
	pack_u64(w, v->remaining);
	pack_cstr(w, "retry_after_ms");
	pack_u64(w, ms_up(v->retry_ns));
	pack_cstr(w, "reset_after_ms");
	pack_u64(w, ms_up(v->reset_ns));
	pack_cstr(w, "rev");
	pack_u64(w, p->rev);
}

/* The policy's durability, or a stronger one that the call names. A key in
 * memory cannot be made durable by asking. */
static enum rc durability_choose(struct event *ev, enum durability d,
				 struct detail *why)
{
	if (ev->durability != DURABILITY_DEFAULT && ev->durability > d) {
		if (d == DURABILITY_MEMORY)
			return detail_set(why, RC_UNSUPPORTED, "durability",
					  "the policy keeps its keys in "
					  "memory");
		d = ev->durability;
	}
	ev_durability(ev, d);
	return RC_OK;
}

static enum rc check_args(struct check *c, const struct method_args *a)
{
	struct pack_bytes name = policy_name(a, ARG_rate_limiter_check_policy);
	enum rc rc = policy_get(c->ev, name, &c->policy, c->why);

	if (rc != RC_OK)
		return rc;
	check_key(c, name, a->at[ARG_rate_limiter_check_key].v.s);
	c->cost = method_u64(a, ARG_rate_limiter_check_cost, 1);
	c->take = !method_bool(a, ARG_rate_limiter_check_dry_run, false);
	return check_overflow(c, name);
}

static enum rc limiter_check(struct event *ev, struct detail *why)
{
	struct check c = { .ev = ev, .why = why };
	struct verdict v = { 0 };
	enum rc rc = check_args(&c, &ev->args);

	if (rc == RC_OK)
		rc = durability_choose(ev, c.policy.durability, why);
	if (rc == RC_OK)
		rc = check_run(&c, &v);
	if (rc != RC_OK)
		return rc;
	if (!v.allowed)
		ev_unrecorded(ev);
	verdict_write(&c.policy, &v, &ev->result);
	return RC_OK;
}

/* check_many */

struct many {
	struct pack_w results;
	enum durability strongest;
	uint32_t done;
	bool allowed;
};

static enum rc many_one(struct event *ev, struct pack_bytes map, struct many *m,
			struct detail *why)
{
	const struct method *check = method_at(METHOD_rate_limiter_check);
	struct check c = { .ev = ev, .why = why };
	struct method_args args;
	struct pack_r r = pack_reader(map.p, map.n);
	struct verdict v = { 0 };
	uint32_t pairs;
	enum rc rc;

	if (pack_get_map(&r, &pairs) != RC_OK)
		return detail_set(why, RC_INVALID, NULL, "a check is a map");
	rc = method_args_check(check, map, &args, why);
	if (rc == RC_OK && method_has(&args, ARG_rate_limiter_check_dry_run))
		rc = detail_set(why, RC_INVALID, "dry_run",
				"check_many has no dry_run");
	if (rc == RC_OK)
		rc = check_args(&c, &args);
	if (rc == RC_OK)
		rc = check_run(&c, &v);
	if (rc != RC_OK)
		return rc;
	if (c.policy.durability > m->strongest)
		m->strongest = c.policy.durability;
	m->allowed = v.allowed;
	m->done++;
	verdict_write(&c.policy, &v, &m->results);
	return RC_OK;
}

static void many_write(const struct many *m, struct pack_w *out)
{
	pack_map(out, m->allowed ? 2 : 3);
	pack_cstr(out, "allowed");
	pack_bool(out, m->allowed);
	if (!m->allowed) {
		pack_cstr(out, "refused");
		pack_u64(out, m->done - 1);
	}
	pack_cstr(out, "results");
	pack_array(out, m->done);
	pack_raw(out, m->results.p, m->results.n);
}

static enum rc many_run(struct event *ev, struct many *m, struct detail *why)
{
	struct pack_bytes checks =
		ev->args.at[ARG_rate_limiter_check_many_checks].bytes;
	struct pack_r r = pack_reader(checks.p, checks.n);
	struct detail one = { { 0 }, { 0 } };
	char field[sizeof(one.field) + 32];
	struct pack_bytes map;
	uint32_t n;
	uint32_t i;
	enum rc rc = pack_get_array(&r, &n);

	CHECK(rc == RC_OK);
	for (i = 0; i < n && rc == RC_OK && m->allowed; i++) {
		rc = pack_skip(&r, &map);
		if (rc == RC_OK)
			rc = many_one(ev, map, m, &one);
	}
	if (rc == RC_OK || rc == RC_AGAIN)
		return rc;
	snprintf(field, sizeof(field), "checks[%" PRIu32 "]%s%s", i - 1,
		 one.field[0] != '\0' ? "." : "", one.field);
	return detail_set(why, rc, field, "%s",
			  one.text[0] != '\0' ? one.text : rc_text(rc));
}

/* One pass over the checks: their policies, or with those at hand their keys.
 * What is malformed is passed over, many_one() says it. */
static enum rc many_want_pass(struct event *ev, bool keys)
{
	const struct method *check = method_at(METHOD_rate_limiter_check);
	struct pack_bytes checks =
		ev->args.at[ARG_rate_limiter_check_many_checks].bytes;
	struct pack_r r = pack_reader(checks.p, checks.n);
	struct check c = { .ev = ev };
	struct method_args args;
	struct pack_bytes map;
	struct pack_bytes name;
	enum rc rc = RC_OK;
	uint32_t n;

	CHECK(pack_get_array(&r, &n) == RC_OK);
	while (n-- > 0 && pack_skip(&r, &map) == RC_OK) {
		if (method_args_check(check, map, &args, NULL) != RC_OK)
			continue;
		name = policy_name(&args, ARG_rate_limiter_check_policy);
		if (!keys) {
			if (ev_want(ev, ROW_CONFIG, name) != RC_OK)
				rc = RC_AGAIN;
			continue;
		}
		if (policy_get(ev, name, &c.policy, NULL) != RC_OK ||
		    c.policy.durability == DURABILITY_MEMORY)
			continue;
		check_key(&c, name, args.at[ARG_rate_limiter_check_key].v.s);
		if (ev_want(ev, ROW_DATA, key_of(&c)) != RC_OK)
			rc = RC_AGAIN;
	}
	return rc;
}

/* All rows come with a load or two: one after the other they would be more than
 * an event may wait for. */
static enum rc many_want(struct event *ev)
{
	enum rc rc = many_want_pass(ev, false);

	return rc == RC_OK ? many_want_pass(ev, true) : rc;
}

static enum rc limiter_check_many(struct event *ev, struct detail *why)
{
	struct many m = { .strongest = DURABILITY_MEMORY, .allowed = true };
	enum rc rc;

	pack_w_init(&m.results, RESULT_BYTES_MAX);
	rc = many_want(ev);
	if (rc == RC_OK)
		rc = many_run(ev, &m, why);
	if (rc == RC_OK)
		rc = m.results.rc;
	if (rc == RC_OK)
		rc = durability_choose(ev, m.strongest, why);
	if (rc == RC_OK && !m.allowed) {
		/* All or nothing: what the earlier ones took goes back. */
		ev_rollback(ev);
		ev_unrecorded(ev);
	}
	if (rc == RC_OK)
		many_write(&m, &ev->result);
	pack_w_release(&m.results);
	return rc;
}

/* The rest. */

static enum rc limiter_peek(struct event *ev, struct detail *why)
{
	struct check c = { .ev = ev, .why = why, .cost = 1 };
	struct pack_bytes name =
		policy_name(&ev->args, ARG_rate_limiter_peek_policy);
	struct verdict v = { 0 };
	enum rc rc = policy_get(ev, name, &c.policy, why);

	if (rc != RC_OK)
		return rc;
	check_key(&c, name, ev->args.at[ARG_rate_limiter_peek_key].v.s);
	rc = check_overflow(&c, name);
	if (rc == RC_OK)
		rc = check_run(&c, &v);
	if (rc == RC_OK)
		verdict_write(&c.policy, &v, &ev->result);
	return rc;
}

static enum rc limiter_reset(struct event *ev, struct detail *why)
{
	struct check c = { .ev = ev, .why = why };
	struct pack_bytes name =
		policy_name(&ev->args, ARG_rate_limiter_reset_policy);
	i128 tat;
	i128 now;
	bool existed;
	enum rc rc = policy_get(ev, name, &c.policy, why);

	if (rc != RC_OK)
		return rc;
	check_key(&c, name, ev->args.at[ARG_rate_limiter_reset_key].v.s);
	now = scaled(&c.policy, ev_now(ev));
	rc = tat_get(&c, &tat);
	if (rc != RC_OK)
		return rc;
	existed = tat > now;
	/* Not deleted where an absent key counts as empty. */
	if (existed && tat_absent(&c) > now)
		rc = tat_put(&c, now);
	else if (existed && c.policy.durability == DURABILITY_MEMORY)
		rc = ev_delete_memory(ev, key_of(&c));
	else if (existed)
		rc = ev_delete(ev, ROW_DATA, key_of(&c));
	if (rc != RC_OK)
		return rc;
	pack_map(&ev->result, 1);
	pack_cstr(&ev->result, "existed");
	pack_bool(&ev->result, existed);
	return RC_OK;
}

struct described {
	struct pack_w policies;
	uint32_t n;
	enum rc rc;
};

static bool describe_row(void *arg, const struct row_view *row)
{
	struct described *d = arg;
	struct policy p;
	struct pack_w *w = &d->policies;

	d->rc = policy_read(row->value, &p);
	if (d->rc != RC_OK)
		return false;
	pack_map(w, 6);
	pack_cstr(w, "name");
	pack_str(w, (const char *)row->key.p, row->key.n);
	pack_cstr(w, "limit");
	pack_u64(w, p.limit);
	pack_cstr(w, "period_ms");
	pack_u64(w, p.period_ns / MS_NS);
	pack_cstr(w, "burst");
	pack_u64(w, p.burst);
	pack_cstr(w, "durability");
	pack_cstr(w, durability_names[p.durability]);
	pack_cstr(w, "rev");
	pack_u64(w, p.rev);
	d->n++;
	return true;
}

static enum rc policies_scan(struct event *ev, struct described *d)
{
	const struct pack_bytes all = { (const uint8_t *)"", 0 };
	const struct pack_bytes no_end = { NULL, 0 };
	enum rc rc;

	*d = (struct described){ .rc = RC_OK };
	pack_w_init(&d->policies, RESULT_BYTES_MAX);
	rc = ev_scan(ev, ROW_CONFIG, all, no_end, false, describe_row, d);
	return rc == RC_OK ? d->rc : rc;
}

static enum rc limiter_describe(struct event *ev)
{
	struct described d;
	enum rc rc = policies_scan(ev, &d);

	if (rc == RC_OK) {
		pack_map(&ev->result, 2);
		pack_cstr(&ev->result, "policies");
		pack_array(&ev->result, d.n);
		pack_raw(&ev->result, d.policies.p, d.policies.n);
		pack_cstr(&ev->result, "rev");
		pack_u64(&ev->result, ev_rev(ev));
	}
	pack_w_release(&d.policies);
	return rc;
}

static enum rc policy_fill(const struct method_args *a, struct policy *p,
			   struct detail *why)
{
	p->limit = a->at[ARG_rate_limiter_put_policy_limit].v.u;
	p->period_ns = a->at[ARG_rate_limiter_put_policy_period_ms].v.u * MS_NS;
	p->burst = method_u64(a, ARG_rate_limiter_put_policy_burst, p->limit);
	p->durability =
		method_has(a, ARG_rate_limiter_put_policy_durability)
			? (enum durability)(
				  DURABILITY_MEMORY +
				  (int)a->at
					  [ARG_rate_limiter_put_policy_durability]
						  .word)
			: DURABILITY_LAGGED;
	if (burst_scaled(p) / p->limit > (i128)FILL_MS_MAX * (i128)MS_NS)
		return detail_set(why, RC_INVALID, "burst",
				  "filling this burst would take more than a "
				  "century");
	return RC_OK;
}

static enum rc policy_write(struct event *ev, struct pack_bytes name,
			    const struct policy *p)
{
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, 128);
	row_version_write(&w);
	pack_u64(&w, p->rev);
	pack_u64(&w, p->limit);
	pack_u64(&w, p->period_ns / MS_NS);
	pack_u64(&w, p->burst);
	pack_u64(&w, (uint64_t)p->durability);
	pack_u64(&w, p->changed_ns);
	pack_u64(&w, p->cold_ns);
	pack_u64(&w, p->cold_rev);
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(ev, ROW_CONFIG, name,
			    (struct pack_bytes){ w.p, w.n }, 0);
	pack_w_release(&w);
	return rc;
}

/* What is known of keys without a row, over a change from `old` to `p`. */
static void policy_inherit(struct event *ev, const struct policy *old,
			   struct policy *p)
{
	uint64_t now_ns = ev_now(ev);

	p->changed_ns = now_ns;
	if (old->rev == 0)
		return;
	p->cold_rev = old->cold_rev;
	if ((old->durability == DURABILITY_MEMORY) !=
	    (p->durability == DURABILITY_MEMORY)) {
		p->cold_ns = now_ns;
		p->cold_rev = p->rev;
		return;
	}
	/* Under the old policy they have filled up since: it is past. */
	p->cold_ns = cold_since(ev, old);
	if (p->cold_ns != 0 &&
	    scaled(old, p->cold_ns) + burst_scaled(old) <= scaled(old, now_ns))
		p->cold_ns = 0;
}

static enum rc policies_bound(struct event *ev, struct detail *why)
{
	struct described d;
	enum rc rc = policies_scan(ev, &d);

	pack_w_release(&d.policies);
	if (rc == RC_OK && d.n >= LIMITER_POLICIES_MAX)
		return detail_set(why, RC_OVERLOADED, "name",
				  "a limiter has at most %u policies",
				  LIMITER_POLICIES_MAX);
	return rc;
}

static enum rc limiter_put_policy(struct event *ev, struct detail *why)
{
	const struct method_args *a = &ev->args;
	struct pack_bytes name =
		policy_name(a, ARG_rate_limiter_put_policy_name);
	struct policy old = { 0 };
	struct policy p = { 0 };
	struct row_view view;
	enum rc rc = ev_get(ev, ROW_CONFIG, name, &view);

	if (rc == RC_OK)
		rc = policy_read(view.value, &old);
	else if (rc == RC_NOT_FOUND)
		rc = policies_bound(ev, why);
	if (rc != RC_OK)
		return rc;
	if (method_has(a, ARG_rate_limiter_put_policy_if_rev) &&
	    a->at[ARG_rate_limiter_put_policy_if_rev].v.u != old.rev)
		return detail_set(why, RC_CONFLICT, "if_rev",
				  "the policy has revision %" PRIu64, old.rev);
	rc = policy_fill(a, &p, why);
	if (rc != RC_OK)
		return rc;
	p.rev = ev_bump(ev);
	policy_inherit(ev, &old, &p);
	rc = policy_write(ev, name, &p);
	if (rc != RC_OK)
		return rc;
	pack_map(&ev->result, 1);
	pack_cstr(&ev->result, "rev");
	pack_u64(&ev->result, p.rev);
	return RC_OK;
}

static enum rc limiter_destroy(struct event *ev)
{
	/* What is not there leaves no tombstone. */
	uint64_t rev = ev_exists(ev) ? ev_bump(ev) : ev_rev(ev);

	ev_destroy(ev);
	pack_map(&ev->result, 1);
	pack_cstr(&ev->result, "rev");
	pack_u64(&ev->result, rev);
	return RC_OK;
}

static enum rc limiter_dispatch(struct event *ev, struct detail *why)
{
	switch (ev->method->number) {
	case METHOD_rate_limiter_check:
		return limiter_check(ev, why);
	case METHOD_rate_limiter_check_many:
		return limiter_check_many(ev, why);
	case METHOD_rate_limiter_peek:
		return limiter_peek(ev, why);
	case METHOD_rate_limiter_reset:
		return limiter_reset(ev, why);
	case METHOD_rate_limiter_describe:
		return limiter_describe(ev);
	case METHOD_rate_limiter_put_policy:
		return limiter_put_policy(ev, why);
	case METHOD_rate_limiter_destroy:
		return limiter_destroy(ev);
	default:
		return RC_UNSUPPORTED;
	}
}

static enum run limiter_run(struct event *ev)
{
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	/* Configuration is always committed; a check says otherwise below. */
	ev_durability(ev, DURABILITY_COMMITTED);
	rc = limiter_dispatch(ev, &why);
	if (rc == RC_OK)
		return RUN_DONE;
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	if (!rc_is_wire(rc))
		rc = RC_INTERNAL;
	return ev_fail(ev, rc, why.field, "%s",
		       why.text[0] != '\0' ? why.text : rc_text(rc));
}

const struct class class_rate_limiter = {
	.name = "rate_limiter",
	.interleave = INTERLEAVE_NEVER,
	.durability = DURABILITY_LAGGED,
	.durabilities = 1u << DURABILITY_LAGGED | 1u << DURABILITY_COMMITTED,
	.idem_window_ms = IDEM_WINDOW_DEFAULT_MS,
	.run = limiter_run,
};
