#include "node/base/htab.h"

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

struct item {
	uint32_t magic;
	struct hnode node;
	uint64_t key;
};

static struct item items[5000];

/* Deliberately poor: eight keys share each hash. */
static uint64_t hash_of(uint64_t key)
{
	return key / 8 * UINT64_C(0x9e3779b97f4a7c15);
}

static struct item *item_of(struct hnode *node)
{
	return (struct item *)(void *)((char *)node -
				       offsetof(struct item, node));
}

static struct item *find(const struct htab *t, uint64_t key)
{
	struct hnode *n;

	for (n = htab_first(t, hash_of(key)); n != NULL; n = n->next)
		if (n->hash == hash_of(key) && item_of(n)->key == key)
			return item_of(n);
	return NULL;
}

static void fill(struct htab *t, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		items[i].key = i;
		htab_insert(t, &items[i].node, hash_of(i));
	}
}

TEST(finds_what_was_inserted_through_growth)
{
	struct htab t;
	size_t i;

	EXPECT_RC(htab_init(&t, 0), RC_OK);
	fill(&t, 5000);
	EXPECT_UINT(t.n, 5000);
	EXPECT_TRUE(t.mask + 1 >= 4096);
	for (i = 0; i < 5000; i++)
		EXPECT_TRUE(find(&t, i) == &items[i]);
	EXPECT_NULL(find(&t, 5000));
	htab_release(&t);
}

TEST(forgets_what_was_removed)
{
	struct htab t;
	size_t i;

	EXPECT_RC(htab_init(&t, 100), RC_OK);
	EXPECT_UINT(t.mask, 127);
	fill(&t, 1000);
	for (i = 0; i < 1000; i += 3)
		htab_remove(&t, &items[i].node);
	for (i = 0; i < 1000; i++)
		EXPECT_TRUE((find(&t, i) != NULL) == (i % 3 != 0));
	EXPECT_UINT(t.n, 666);
	htab_release(&t);
}

TEST(removing_a_stranger_is_held_back)
{
	struct htab t;
	struct item stranger = { .node = { .hash = 1 } };

	EXPECT_RC(htab_init(&t, 0), RC_OK);
	fill(&t, 3);
	EXPECT_ABORT(htab_remove(&t, &stranger.node));
	htab_release(&t);
}

struct visit {
	struct htab *t;
	size_t seen;
};

static void remove_odd(void *arg, struct hnode *node)
{
	struct visit *v = arg;

	v->seen++;
	if (item_of(node)->key % 2 == 1)
		htab_remove(v->t, node);
}

TEST(each_visits_all_and_may_remove_the_visited)
{
	struct htab t;
	struct visit v = { &t, 0 };

	EXPECT_RC(htab_init(&t, 0), RC_OK);
	fill(&t, 1000);
	htab_each(&t, remove_odd, &v);
	EXPECT_UINT(v.seen, 1000);
	EXPECT_UINT(t.n, 500);
	v.seen = 0;
	htab_each(&t, remove_odd, &v);
	EXPECT_UINT(v.seen, 500);
	htab_release(&t);
}

TEST(without_memory_for_the_hint_it_starts_small)
{
	struct htab t;

	fault_alloc(1);
	EXPECT_RC(htab_init(&t, 1000), RC_OK);
	EXPECT_TRUE(fault_fired());
	EXPECT_UINT(t.mask, 15);
	htab_release(&t);
	fault_alloc_from(1);
	EXPECT_RC(htab_init(&t, 1000), RC_NOMEM);
	fault_off();
	htab_release(&t);
}

TEST(without_memory_to_grow_chains_get_longer)
{
	struct htab t;
	size_t i;

	EXPECT_RC(htab_init(&t, 0), RC_OK);
	fault_alloc_from(1);
	fill(&t, 200);
	fault_off();
	EXPECT_UINT(t.mask, 15);
	for (i = 0; i < 200; i++)
		EXPECT_TRUE(find(&t, i) == &items[i]);
	/* And it catches up when there is memory again. */
	items[200].key = 200;
	htab_insert(&t, &items[200].node, hash_of(200));
	EXPECT_UINT(t.mask, 31);
	EXPECT_TRUE(find(&t, 7) == &items[7]);
	htab_release(&t);
}
