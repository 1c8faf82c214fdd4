#include "objects/class.h"

#include "tests/lib/runner.h"

static struct pack_bytes name_of(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

TEST(classes_are_found_by_name)
{
	EXPECT_TRUE(class_find(name_of("kv")) == &class_kv);
	EXPECT_TRUE(class_find(name_of("rate_limiter")) == &class_rate_limiter);
	EXPECT_TRUE(class_find(name_of("relay")) == &class_relay);
}

TEST(what_is_no_class_is_not_found)
{
	static const char *const names[] = { "",   "k",   "kvv",
					     "KV", "kv ", "rate_limite" };
	const struct pack_bytes zero = { (const uint8_t *)"kv\0", 3 };
	size_t i;

	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		EXPECT_TRUE(class_find(name_of(names[i])) == NULL);
	EXPECT_TRUE(class_find(zero) == NULL);
}

TEST(every_class_is_whole)
{
	const struct class *c;
	unsigned i;

	for (i = 0; (c = class_at(i)) != NULL; i++) {
		runner_context("class %s", c->name);
		EXPECT_TRUE(class_find(name_of(c->name)) == c);
		EXPECT_TRUE(c->run != NULL);
		EXPECT_TRUE(c->durability != DURABILITY_DEFAULT);
		EXPECT_TRUE((c->durabilities & 1u << c->durability) != 0);
		EXPECT_TRUE(c->idem_window_ms > 0);
	}
	EXPECT_UINT(i, 4);
	EXPECT_TRUE(class_at(i + 1) == NULL);
}
