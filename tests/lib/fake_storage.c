#include "tests/lib/fake_storage.h"

#include <bsd/sys/tree.h>
#include <sys/queue.h>

#include "node/base/check.h"
#include "tests/lib/fault.h"

/* What a fake needs for itself is not what a test lets fail. The tests that do
 * link tests/lib/fault.c; the others need not. */
#pragma weak fault_hold
#pragma weak fault_release

struct item {
	RB_ENTRY(item) node;
	struct oid oid;
	unsigned kind; /* 0: the head. */
	struct pack_bytes key;
	struct pack_bytes value;
	uint64_t expires_ns;
};

RB_HEAD(items, item);

struct job {
	STAILQ_ENTRY(job) link;
	struct storage_load *load;
	struct storage_expired *expired;
};

struct storage {
	struct items items;
	STAILQ_HEAD(jobs, job) jobs;
	size_t jobs_n;
	uint64_t applied;
	uint64_t stamp_ns;
	size_t flushes;
};

static int bytes_cmp(struct pack_bytes a, struct pack_bytes b)
{
	size_t n = a.n < b.n ? a.n : b.n;
	int order = n == 0 ? 0 : memcmp(a.p, b.p, n);

	if (order != 0)
		return order;
	return a.n == b.n ? 0 : (a.n < b.n ? -1 : 1);
}

static int item_cmp(const struct item *a, const struct item *b)
{
	int order = memcmp(a->oid.b, b->oid.b, OID_BYTES);

	if (order != 0)
		return order;
	if (a->kind != b->kind)
		return a->kind < b->kind ? -1 : 1;
	return bytes_cmp(a->key, b->key);
}

RB_GENERATE_INTERNAL(items, item, node, item_cmp,
		     __attribute__((unused)) static)

static void hold(void)
{
	if (fault_hold != NULL)
		fault_hold();
}

static void unhold(void)
{
	if (fault_release != NULL)
		fault_release();
}

static struct pack_bytes copy(struct pack_bytes from)
{
	uint8_t *p;

	hold();
	p = malloc(from.n + 1);
	unhold();

	CHECK(p != NULL);
	if (from.n > 0)
		memcpy(p, from.p, from.n);
	return (struct pack_bytes){ p, from.n };
}

struct storage *fake_storage_new(void)
{
	struct storage *s = calloc(1, sizeof(*s));

	CHECK(s != NULL);
	RB_INIT(&s->items);
	STAILQ_INIT(&s->jobs);
	return s;
}

static void item_free(struct storage *s, struct item *i)
{
	(void)RB_REMOVE(items, &s->items, i);
	free((void *)(uintptr_t)i->key.p);
	free((void *)(uintptr_t)i->value.p);
	free(i);
}

void fake_storage_free(struct storage *s)
{
	CHECK(s->jobs_n == 0);
	storage_discard(s);
}

void storage_discard(struct storage *s)
{
	struct job *j;

	while (!RB_EMPTY(&s->items))
		item_free(s, RB_ROOT(&s->items));
	while ((j = STAILQ_FIRST(&s->jobs)) != NULL) {
		STAILQ_REMOVE_HEAD(&s->jobs, link);
		free(j);
	}
	free(s);
}

static struct item *find(const struct storage *s, const struct oid *oid,
			 unsigned kind, struct pack_bytes key)
{
	struct item like = { .oid = *oid, .kind = kind, .key = key };

	return RB_FIND(items, (struct items *)(uintptr_t)&s->items, &like);
}

static void put(struct storage *s, const struct oid *oid, unsigned kind,
		struct pack_bytes key, struct pack_bytes value,
		uint64_t expires_ns)
{
	struct item *i = find(s, oid, kind, key);

	if (value.p == NULL) {
		if (i != NULL)
			item_free(s, i);
		return;
	}
	if (i == NULL) {
		hold();
		i = calloc(1, sizeof(*i));
		unhold();
		CHECK(i != NULL);
		i->oid = *oid;
		i->kind = kind;
		i->key = copy(key);
		CHECK(RB_INSERT(items, &s->items, i) == NULL);
	} else {
		free((void *)(uintptr_t)i->value.p);
	}
	i->value = copy(value);
	i->expires_ns = expires_ns;
}

static struct item *first_of(const struct storage *s, const struct oid *oid)
{
	struct item like = { .oid = *oid };

	return RB_NFIND(items, (struct items *)(uintptr_t)&s->items, &like);
}

static bool is_of(const struct item *i, const struct oid *oid)
{
	return i != NULL && memcmp(i->oid.b, oid->b, OID_BYTES) == 0;
}

static void clear(struct storage *s, const struct oid *oid, uint32_t flags)
{
	struct item *i = first_of(s, oid);
	struct item *next;

	for (; is_of(i, oid); i = next) {
		bool idem = i->kind == ROW_IDEM || i->kind == ROW_IDEM_COUNT;
		bool head = i->kind == 0;

		next = RB_NEXT(items, &s->items, i);
		if (head ? (flags & UNIT_GONE) != 0
			 : ((flags & UNIT_WIPE) != 0 || !idem))
			item_free(s, i);
	}
}

enum rc storage_apply(struct storage *s, uint64_t index, uint64_t term,
		      const void *entry, size_t n)
{
	const struct pack_bytes none = { NULL, 0 };
	struct entry_r e;
	struct unit_r u;
	struct unit_row row;
	enum rc rc = entry_read(entry, n, &e);

	(void)term;
	CHECK(rc == RC_OK);
	s->applied = index;
	s->stamp_ns = e.stamp_ns;
	while ((rc = entry_next(&e, &u)) == RC_OK) {
		if ((u.flags & (UNIT_WIPE | UNIT_CLEAR | UNIT_GONE)) != 0)
			clear(s, &u.oid, u.flags);
		if (u.head.p != NULL)
			put(s, &u.oid, 0, none, u.head, 0);
		while ((rc = unit_next(&u, &row)) == RC_OK)
			put(s, &u.oid, row.kind, row.key, row.value,
			    row.expires_ns);
		CHECK(rc == RC_EOF);
	}
	CHECK(rc == RC_EOF);
	return RC_OK;
}

/* ------------------------------------------------------------------- loads */

static void job_add(struct storage *s, struct storage_load *l,
		    struct storage_expired *x)
{
	struct job *j;

	hold();
	j = calloc(1, sizeof(*j));
	unhold();
	CHECK(j != NULL);
	j->load = l;
	j->expired = x;
	STAILQ_INSERT_TAIL(&s->jobs, j, link);
	s->jobs_n++;
}

void storage_load(struct storage *s, struct storage_load *l)
{
	job_add(s, l, NULL);
}

void storage_expired(struct storage *s, struct storage_expired *x)
{
	job_add(s, NULL, x);
}

static void give(struct storage_load *l, const struct item *i)
{
	const struct unit_row row = { .kind = (enum row_kind)i->kind,
				      .key = i->key,
				      .value = i->value,
				      .expires_ns = i->expires_ns };

	l->row(l, &row);
}

static void load_object(struct storage *s, struct storage_load *l)
{
	struct item *first = first_of(s, &l->oid);
	struct item *i;
	size_t bytes = 0;

	for (i = first; is_of(i, &l->oid); i = RB_NEXT(items, &s->items, i))
		if (i->kind != 0)
			bytes += i->key.n + i->value.n;
	l->complete = bytes <= l->bytes_max;
	for (i = first; l->complete && is_of(i, &l->oid);
	     i = RB_NEXT(items, &s->items, i))
		if (i->kind != 0)
			give(l, i);
}

static void load_keys(struct storage *s, struct storage_load *l)
{
	const struct item *i;
	size_t k;

	for (k = 0; k < l->keys_n; k++) {
		i = find(s, &l->oid, l->keys[k].kind, l->keys[k].key);
		if (i != NULL)
			give(l, i);
	}
}

static bool in_range(const struct storage_load *l, const struct item *i)
{
	if (!is_of(i, &l->oid) || i->kind != l->kind)
		return false;
	if (l->reverse)
		return (l->start.p == NULL ||
			bytes_cmp(i->key, l->start) < 0) &&
		       (l->end.p == NULL || bytes_cmp(i->key, l->end) >= 0);
	return (l->start.p == NULL || bytes_cmp(i->key, l->start) >= 0) &&
	       (l->end.p == NULL || bytes_cmp(i->key, l->end) < 0);
}

static void load_range(struct storage *s, struct storage_load *l)
{
	struct item *i = l->reverse ? RB_MAX(items, &s->items)
				    : RB_MIN(items, &s->items);
	size_t bytes = 0;
	uint32_t n = 0;

	l->complete = true;
	while (i != NULL) {
		if (in_range(l, i)) {
			if (n == l->rows_max ||
			    (l->bytes_max != 0 && bytes >= l->bytes_max)) {
				l->complete = false;
				return;
			}
			give(l, i);
			bytes += i->key.n + i->value.n;
			n++;
		}
		i = l->reverse ? RB_PREV(items, &s->items, i)
			       : RB_NEXT(items, &s->items, i);
	}
}

static void run_load(struct storage *s, struct storage_load *l, enum rc rc)
{
	const struct pack_bytes none = { NULL, 0 };
	const struct item *head = find(s, &l->oid, 0, none);

	l->head = rc == RC_OK && head != NULL ? head->value : none;
	l->complete = false;
	l->index = s->applied;
	if (rc == RC_OK) {
		switch (l->what) {
		case LOAD_OBJECT:
			load_object(s, l);
			break;
		case LOAD_KEYS:
			load_keys(s, l);
			break;
		case LOAD_RANGE:
			load_range(s, l);
			break;
		}
	}
	l->done(l, rc);
}

static void run_expired(struct storage *s, struct storage_expired *x,
			enum rc rc)
{
	struct item *i;
	uint32_t n = 0;
	bool more = false;

	RB_FOREACH(i, items, &s->items)
	{
		const struct unit_row row = { .kind = (enum row_kind)i->kind,
					      .key = i->key,
					      .value = i->value,
					      .expires_ns = i->expires_ns };

		if (rc != RC_OK || i->kind == 0 || i->expires_ns == 0 ||
		    i->expires_ns > x->stamp_ns)
			continue;
		if (n++ == x->rows_max) {
			more = true;
			break;
		}
		x->row(x, &i->oid, &row);
	}
	x->done(x, rc, more);
}

size_t fake_storage_waiting(const struct storage *s)
{
	return s->jobs_n;
}

static struct job *job_at(const struct storage *s, size_t i)
{
	struct job *j;

	STAILQ_FOREACH(j, &s->jobs, link)
	if (i-- == 0)
		return j;
	return NULL;
}

const struct storage_load *fake_storage_load(const struct storage *s, size_t i)
{
	struct job *j = job_at(s, i);

	CHECK(j != NULL);
	return j->load;
}

void fake_storage_finish(struct storage *s, size_t i, enum rc rc)
{
	struct job *j = job_at(s, i);
	struct job job;

	CHECK(j != NULL);
	job = *j;
	STAILQ_REMOVE(&s->jobs, j, job, link);
	s->jobs_n--;
	free(j);
	if (job.load != NULL)
		run_load(s, job.load, rc);
	else
		run_expired(s, job.expired, rc);
}

void fake_storage_finish_all(struct storage *s)
{
	while (s->jobs_n > 0)
		fake_storage_finish(s, 0, RC_OK);
}

void storage_flush(struct storage *s)
{
	s->flushes++;
}

size_t fake_storage_flushes(const struct storage *s)
{
	return s->flushes;
}

/* ------------------------------------------------------------------ looking */

struct pack_bytes fake_storage_row(const struct storage *s,
				   const struct oid *oid, enum row_kind kind,
				   struct pack_bytes key)
{
	const struct item *i = find(s, oid, kind, key);

	return i != NULL ? i->value : (struct pack_bytes){ NULL, 0 };
}

struct pack_bytes fake_storage_head(const struct storage *s,
				    const struct oid *oid)
{
	const struct item *i = find(s, oid, 0, (struct pack_bytes){ NULL, 0 });

	return i != NULL ? i->value : (struct pack_bytes){ NULL, 0 };
}

size_t fake_storage_rows(const struct storage *s, const struct oid *oid,
			 enum row_kind kind)
{
	struct item *i = first_of(s, oid);
	size_t n = 0;

	for (; is_of(i, oid); i = RB_NEXT(items, NULL, i))
		n += i->kind == kind;
	return n;
}

void fake_storage_damage(struct storage *s, const struct oid *oid,
			 enum row_kind kind, struct pack_bytes key)
{
	struct item *i = find(s, oid, kind, key);

	CHECK(i != NULL);
	((uint8_t *)(uintptr_t)i->value.p)[1] ^= 1;
}

uint64_t storage_applied(const struct storage *s)
{
	return s->applied;
}

uint64_t storage_stamp(const struct storage *s)
{
	return s->stamp_ns;
}
