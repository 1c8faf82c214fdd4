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
 * window W. T need not be whole, so times are counted in 1/limit ns ("scaled")
 * in 128 bits: nothing is rounded while deciding.
 *
 * Rows. ROW_CONFIG, key: the policy's name; value [rev, limit, period_ms,
 * burst, durability, changed_ns, cold_ns, cold_rev]. ROW_DATA, key: length of
 * the policy's name (1 byte), the name, the key; value [tat_ns, tat_rest,
 * limit, rev], TAT = tat_ns + rest/limit, rev: of the policy under which it was
 * written; and while a lease is open [.., epoch, until_ns, worth_ns,
 * worth_rest]. A key that is full (TAT <= now) is the same as an absent one;
 * rows stay a minute longer so that busy keys are not swept and written in
 * turns. A key is never emptier than empty: a TAT of before a change of its
 * policy counts as no more than the moment of that change + burst * T.
 *
 * Durability memory: rows live in the owner's memory. A new owner starts every
 * key of an older policy empty: TAT = takeover + burst * T, so that a failover
 * admits nothing twice. The same when a policy's durability becomes memory or
 * is it no longer: where its keys were kept so far nobody looks any more. Such
 * a policy is `cold` since then.
 *
 * Durability leased: a key's row says "the owner of this epoch may let in K
 * more before `until`", K * T = worth. Those come out of a row in its memory
 * [.., left, until_ns], and each answer waits for a proof of ownership only.
 * The next row books what was let in meanwhile, exactly (the TAT in memory is
 * the key's), and opens the next lease. Who finds a lease that it has no memory
 * of, of another epoch or of its own, books all of it at S, the last moment at
 * which it can have been used: the end of that memory, or `until` if that came
 * first. As requests at or before S of K permits in all
 * make of TAT at most max(TAT, S) + K * T, and no TAT is ever beyond the time
 * of its request + burst * T, the key then has let in no more than its limit,
 * and what it let in less is at most K. A new owner's time may begin before the
 * old one's ended, if nothing later was committed: S comes before some of those
 * requests then. TAT - S is only greater for it, so the key is no fuller than
 * it was, and what both admit is bounded by the sum of what passed for each.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/limits.h"
#include "node/base/mutant.h"
#include "objects/object.h"

__extension__ typedef __int128 i128;

#define POLICY_NAME_MAX 64u
#define KEY_ROW_MAX     (1u + POLICY_NAME_MAX + LIMITER_KEY_BYTES_MAX)
#define KEEP_FULL_NS    60000000000ull
#define KEEP_GRAIN_NS   (1ull << 34) /* 17 s */
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

/* A lease of a key: permits that may be spent from memory. */
struct lease {
	uint64_t epoch;    /* Whose it is; 0: none is open. */
	uint64_t until_ns; /* Nothing of it is spent from then on. */
	i128 worth;        /* K * T, scaled. */
};

/* What this owner's memory says of a key's lease. */
struct spending {
	bool open;
	uint64_t rev;
	uint64_t left;
	uint64_t until_ns;
	uint64_t full_ns; /* The row is worth nothing from then on. */
	i128 tat;
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
	struct spending spending;
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

/* A time as a row has it: ns and rest/limit. Another limit since: the rest
 * rounds up, towards denying. */
static i128 time_of(const struct policy *p, uint64_t ns, uint64_t rest,
		    uint64_t limit)
{
	return scaled(p, ns) +
	       (limit == p->limit
			? (i128)rest
			: ((i128)rest * p->limit + limit - 1) / limit);
}

static void time_write(const struct policy *p, i128 t, struct pack_w *w)
{
	pack_u64(w, (uint64_t)(t / p->limit));
	pack_u64(w, (uint64_t)(t % p->limit));
}

/* The part that all rows of keys have. */
struct fill {
	i128 tat;
	uint64_t limit;
	uint64_t rev;
};

static enum rc fill_read(const struct check *c, struct pack_r *r,
			 struct fill *out)
{
	uint64_t ns;
	uint64_t rest;
	enum rc rc = row_version_read(r);

	if (rc != RC_OK)
		return rc;
	if (pack_get_u64(r, &ns) != RC_OK || pack_get_u64(r, &rest) != RC_OK ||
	    pack_get_u64(r, &out->limit) != RC_OK ||
	    pack_get_u64(r, &out->rev) != RC_OK || out->limit == 0)
		return RC_CORRUPT;
	out->tat = time_of(&c->policy, ns, rest, out->limit);
	return RC_OK;
}

static enum rc lease_read(const struct check *c, struct pack_r *r,
			  const struct fill *f, struct lease *out)
{
	uint64_t ns;
	uint64_t rest;

	*out = (struct lease){ 0 };
	if (r->at == r->end)
		return RC_OK;
	if (pack_get_u64(r, &out->epoch) != RC_OK ||
	    pack_get_u64(r, &out->until_ns) != RC_OK ||
	    pack_get_u64(r, &ns) != RC_OK || pack_get_u64(r, &rest) != RC_OK ||
	    r->at != r->end || out->epoch == 0)
		return RC_CORRUPT;
	out->worth = time_of(&c->policy, ns, rest, f->limit);
	return RC_OK;
}

/* The row in memory, of either kind; RC_NOT_FOUND. */
static enum rc memory_read(struct check *c, struct fill *f, struct spending *sp)
{
	struct row_view view;
	struct pack_r r;
	enum rc rc;

	*sp = (struct spending){ 0 };
	/* Spares lagged and committed limits the search. */
	if (ev_memory_rows(c->ev) == 0)
		return RC_NOT_FOUND;
	rc = ev_get_memory(c->ev, key_of(c), &view);
	if (rc != RC_OK)
		return rc;
	r = pack_reader(view.value.p, view.value.n);
	rc = fill_read(c, &r, f);
	if (rc != RC_OK || r.at == r.end)
		return rc;
	if (pack_get_u64(&r, &sp->left) != RC_OK ||
	    pack_get_u64(&r, &sp->until_ns) != RC_OK || r.at != r.end)
		return RC_CORRUPT;
	sp->open = true;
	sp->tat = f->tat;
	sp->rev = f->rev;
	sp->full_ns = view.expires_ns;
	return RC_OK;
}

/* What is known of a lease about which memory says nothing: see the top. */
static i128 lease_booked(const struct check *c, const struct fill *f,
			 const struct lease *l)
{
	const struct policy *p = &c->policy;
	uint64_t last_ns = ev_lead_stamp(c->ev);
	i128 most;
	i128 tat;

	if (MUTANT(permit_not_booked))
		return f->tat;
	if (last_ns > l->until_ns)
		last_ns = l->until_ns;
	/* Nothing was spent under a policy that was no more. */
	if (f->rev != p->rev && last_ns > p->changed_ns)
		last_ns = p->changed_ns;
	tat = scaled(p, last_ns);
	if (tat < f->tat)
		tat = f->tat;
	tat += l->worth;
	most = scaled(p, last_ns) + burst_scaled(p);
	if (f->rev == p->rev && tat > most)
		tat = most;
	return tat > f->tat ? tat : f->tat;
}

/* Of a row in storage. */
static enum rc tat_read(const struct check *c, struct pack_bytes value,
			i128 *tat)
{
	struct pack_r r = pack_reader(value.p, value.n);
	const struct spending *sp = &c->spending;
	struct lease l;
	struct fill f;
	enum rc rc = fill_read(c, &r, &f);

	if (rc == RC_OK)
		rc = lease_read(c, &r, &f, &l);
	if (rc != RC_OK)
		return rc;
	*tat = f.tat;
	if (l.epoch != 0 && l.epoch == ev_epoch(c->ev) && sp->open &&
	    sp->rev == f.rev)
		*tat = sp->tat;
	else if (l.epoch != 0)
		*tat = lease_booked(c, &f, &l);
	if (f.rev != c->policy.rev)
		*tat = tat_of_old(c, *tat, f.rev);
	return RC_OK;
}

static enum rc row_get(struct check *c, struct row_view *view)
{
	if (c->policy.durability == DURABILITY_MEMORY)
		return ev_get_memory(c->ev, key_of(c), view);
	return ev_get(c->ev, ROW_DATA, key_of(c), view);
}

static enum rc tat_get_memory(struct check *c, i128 *tat)
{
	struct spending sp;
	struct fill f;
	enum rc rc = memory_read(c, &f, &sp);

	if (rc == RC_NOT_FOUND)
		*tat = tat_absent(c);
	else if (rc == RC_OK && f.rev != c->policy.rev)
		*tat = tat_of_old(c, f.tat, f.rev);
	else if (rc == RC_OK)
		*tat = f.tat;
	return rc == RC_NOT_FOUND ? RC_OK : rc;
}

static enum rc tat_get(struct check *c, i128 *tat)
{
	struct row_view view;
	struct fill f;
	enum rc rc;

	if (c->policy.durability == DURABILITY_MEMORY)
		return tat_get_memory(c, tat);
	rc = memory_read(c, &f, &c->spending);
	if (rc != RC_OK && rc != RC_NOT_FOUND)
		return rc;
	if (c->spending.open && c->spending.rev == c->policy.rev) {
		*tat = c->spending.tat;
		return RC_OK;
	}
	rc = row_get(c, &view);
	if (rc == RC_OK)
		return tat_read(c, view.value, tat);
	if (rc != RC_NOT_FOUND)
		return rc;
	*tat = tat_absent(c);
	return RC_OK;
}

static void fill_write(const struct check *c, i128 tat, struct pack_w *w)
{
	pack_w_init(w, 128);
	row_version_write(w);
	time_write(&c->policy, tat, w);
	pack_u64(w, c->policy.limit);
	pack_u64(w, c->policy.rev);
}

/* When a key with that row is full, whoever reads it. */
static uint64_t full_at(const struct check *c, i128 tat, const struct lease *l)
{
	const struct policy *p = &c->policy;
	uint64_t absent_ns = ns_up(p, tat_absent(c));
	uint64_t ns = (uint64_t)(tat / p->limit) + 1;
	i128 most;

	if (l->epoch != 0) {
		most = scaled(p, l->until_ns);
		tat = (tat > most ? tat : most) + l->worth;
		most += burst_scaled(p);
		ns = ns_up(p, tat < most ? tat : most) + 1;
	}
	/* As long as without it the key would be emptier than it is. */
	return absent_ns > ns ? absent_ns : ns;
}

/* A little longer, so that from check to check it seldom changes: where it
 * stays the same no index of times has to be kept up. */
static uint64_t kept_until(uint64_t full_ns)
{
	return (full_ns + KEEP_FULL_NS) | (KEEP_GRAIN_NS - 1);
}

static enum rc row_put(struct check *c, i128 tat, const struct lease *l)
{
	uint64_t full_ns = full_at(c, tat, l);
	struct pack_w w;
	enum rc rc;

	fill_write(c, tat, &w);
	if (l->epoch != 0) {
		pack_u64(&w, l->epoch);
		pack_u64(&w, l->until_ns);
		time_write(&c->policy, l->worth, &w);
	}
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put(c->ev, ROW_DATA, key_of(c),
			    (struct pack_bytes){ w.p, w.n },
			    kept_until(full_ns));
	pack_w_release(&w);
	return rc;
}

static enum rc memory_put(struct check *c, i128 tat, uint64_t full_ns)
{
	const struct spending *sp = &c->spending;
	struct pack_w w;
	enum rc rc;

	fill_write(c, tat, &w);
	if (sp->open) {
		pack_u64(&w, sp->left);
		pack_u64(&w, sp->until_ns);
	}
	rc = w.rc;
	if (rc == RC_OK)
		rc = ev_put_memory(c->ev, key_of(c),
				   (struct pack_bytes){ w.p, w.n }, full_ns);
	pack_w_release(&w);
	return rc;
}

/* No lease is open in memory any more. */
static enum rc spending_end(struct check *c)
{
	if (!c->spending.open)
		return RC_OK;
	c->spending.open = false;
	return ev_delete_memory(c->ev, key_of(c));
}

/* The key's TAT is this, and nothing is lent. */
static enum rc tat_put(struct check *c, i128 tat)
{
	const struct lease none = { 0 };
	enum rc rc;

	if (c->policy.durability == DURABILITY_MEMORY)
		return memory_put(c, tat, full_at(c, tat, &none));
	rc = row_put(c, tat, &none);
	return rc == RC_OK ? spending_end(c) : rc;
}

/* Leases. */

static uint64_t lease_size(const struct policy *p)
{
	uint64_t k = p->limit / 10;

	if (k > LIMITER_LEASE_MAX)
		k = LIMITER_LEASE_MAX;
	if (k > p->burst)
		k = p->burst;
	return k > 0 ? k : 1;
}

/* Books `tat`, and the next permits come out of memory. */
static enum rc lease_open(struct check *c, i128 tat)
{
	const struct policy *p = &c->policy;
	struct spending *sp = &c->spending;
	struct lease l = { .epoch = ev_epoch(c->ev) };
	uint64_t lasts_ns = LIMITER_LEASE_MS * MS_NS;
	enum rc rc;

	sp->left = lease_size(p);
	l.worth = (i128)sp->left * p->period_ns;
	if (ns_up(p, l.worth) > lasts_ns)
		lasts_ns = ns_up(p, l.worth);
	l.until_ns = ev_now(c->ev) + lasts_ns;
	rc = row_put(c, tat, &l);
	if (rc != RC_OK)
		return rc;
	sp->open = true;
	sp->until_ns = l.until_ns;
	return memory_put(c, tat, full_at(c, tat, &l));
}

/* Let in: from what is lent, or with a row of its own. */
static enum rc leased_put(struct check *c, i128 tat)
{
	struct spending *sp = &c->spending;

	if (ev_settling(c->ev))
		return tat_put(c, tat);
	if (!sp->open || sp->rev != c->policy.rev || sp->left < c->cost ||
	    ev_now(c->ev) >= sp->until_ns)
		return lease_open(c, tat);
	sp->left -= c->cost;
	return memory_put(c, tat, sp->full_ns);
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
		rc = p->durability == DURABILITY_LEASED ? leased_put(c, tat)
							: tat_put(c, tat);
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
	if (rc == RC_OK && existed)
		rc = spending_end(&c);
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

/* A hand-over: rows instead of what is lent. */

#define SETTLE_KEYS 256u

struct settling {
	struct pack_w keys;
	uint32_t n;
	struct pack_w next; /* Where to go on; empty: nowhere. */
};

static bool settle_key(void *arg, const struct row_view *row)
{
	struct settling *st = arg;

	if (st->n == SETTLE_KEYS) {
		pack_bin(&st->next, row->key.p, row->key.n);
		return false;
	}
	pack_bin(&st->keys, row->key.p, row->key.n);
	st->n++;
	return true;
}

static enum rc settle_one(struct event *ev, struct pack_bytes key, bool put)
{
	struct check c = { .ev = ev };
	struct fill f;
	i128 tat;
	enum rc rc;

	if (key.n == 0 || key.n > sizeof(c.key) || key.p[0] >= key.n)
		return RC_CORRUPT;
	memcpy(c.key, key.p, key.n);
	c.key_n = key.n;
	rc = policy_get(ev, (struct pack_bytes){ key.p + 1, key.p[0] },
			&c.policy, NULL);
	if (rc == RC_OK && c.policy.durability != DURABILITY_MEMORY)
		rc = memory_read(&c, &f, &c.spending);
	if (rc == RC_NOT_FOUND || (rc == RC_OK && !c.spending.open))
		return RC_OK;
	if (rc == RC_OK)
		rc = ev_want(ev, ROW_DATA, key);
	if (rc == RC_OK && put)
		rc = tat_get(&c, &tat);
	return rc == RC_OK && put ? tat_put(&c, tat) : rc;
}

/* Once to name all rows that are wanted, then to write them. */
static enum rc settle_pass(struct event *ev, const struct settling *st,
			   bool put)
{
	struct pack_r r = pack_reader(st->keys.p, st->keys.n);
	struct pack_bytes key;
	bool again = false;
	enum rc rc = RC_OK;
	uint32_t i;

	for (i = 0; i < st->n && (rc == RC_OK || rc == RC_AGAIN); i++) {
		CHECK(pack_get_bin(&r, &key) == RC_OK);
		rc = settle_one(ev, key, put);
		again = again || rc == RC_AGAIN;
	}
	return rc == RC_OK && again ? RC_AGAIN : rc;
}

static enum run limiter_settle(struct event *ev)
{
	struct settling st = { .n = 0 };
	enum rc rc;

	ev_durability(ev, DURABILITY_COMMITTED);
	pack_w_init(&st.keys, SETTLE_KEYS * (KEY_ROW_MAX + 8u));
	pack_w_init(&st.next, KEY_ROW_MAX + 8u);
	ev_scan_memory(ev, ev->args_bytes, settle_key, &st);
	rc = st.keys.rc == RC_OK ? st.next.rc : st.keys.rc;
	if (rc == RC_OK)
		rc = settle_pass(ev, &st, false);
	if (rc == RC_OK)
		rc = settle_pass(ev, &st, true);
	if (st.next.n > 0)
		pack_raw(&ev->result, st.next.p, st.next.n);
	else
		pack_nil(&ev->result);
	pack_w_release(&st.keys);
	pack_w_release(&st.next);
	if (rc == RC_AGAIN)
		return RUN_LOAD;
	if (rc == RC_OK)
		return RUN_DONE;
	return ev_fail(ev, rc_is_wire(rc) ? rc : RC_INTERNAL, NULL, "%s",
		       rc_text(rc));
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
	.settle = limiter_settle,
};
