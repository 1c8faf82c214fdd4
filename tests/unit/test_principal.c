#include "node/base/principal.h"

#include "node/base/limits.h"
#include "tests/lib/runner.h"

static struct pack_bytes b(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

TEST(a_certificate_confines_to_a_tenant_and_an_environment)
{
	static const struct {
		const char *principal;
		bool enters;
	} t[] = {
		{ "spiffe://c/tenant/acme/env/dev/client/x", true },
		{ "spiffe://c/tenant/acme/env/dev", true },
		{ "spiffe://c/tenant/acme/env/dev/", true },
		{ "spiffe://c/tenant/acme/env/devel/client/x", false },
		{ "spiffe://c/tenant/acme/env/de/client/x", false },
		{ "spiffe://c/tenant/acm/env/dev/client/x", false },
		{ "spiffe://c/tenant/acmee/env/dev/client/x", false },
		{ "spiffe://c/tenant/acme/client/x", false },
		{ "spiffe://c/tenant/acme", false },
		{ "spiffe://c/tenant", false },
		{ "spiffe://c", false },
		{ "spiffe://", false },
		{ "spiffe:///tenant/acme/env/dev", false },
		{ "spiffe://c//tenant/acme/env/dev", false },
		{ "spiffe://c/node/1", false },
		{ "spiffe://c/x/tenant/acme/env/dev", false },
		{ "node:1", false },
		{ "unix:n1:1000", true },
		{ "object:other/dev/kv", true },
		{ "spiffe:", true },
		{ "me", true },
	};
	size_t i;

	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		runner_context("%s", t[i].principal);
		EXPECT_INT(principal_may_enter(b(t[i].principal), b("acme"),
					       b("dev")),
			   t[i].enters);
	}
}

TEST(nodes)
{
	char name[PRINCIPAL_NODE_BYTES];

	principal_of_node(UINT64_MAX, name);
	EXPECT_STR(name, "node:18446744073709551615");
	EXPECT_TRUE(principal_is_node(b(name)));
	EXPECT_TRUE(principal_is_node(b("node:")));
	EXPECT_FALSE(principal_is_node(b("node")));
	EXPECT_FALSE(principal_is_node(b("unix:node:1")));
	EXPECT_FALSE(principal_is_node((struct pack_bytes){ NULL, 0 }));
}

TEST(labels)
{
	char s[TENANT_BYTES_MAX + 2];
	unsigned c;

	memset(s, 'a', sizeof(s));
	EXPECT_FALSE(label_good(b("")));
	EXPECT_TRUE(label_good(
		(struct pack_bytes){ (uint8_t *)s, TENANT_BYTES_MAX }));
	EXPECT_FALSE(label_good(
		(struct pack_bytes){ (uint8_t *)s, TENANT_BYTES_MAX + 1 }));
	for (c = 0; c < 256; c++) {
		bool letter = c >= 'a' && c <= 'z';
		bool more = (c >= '0' && c <= '9') || c == '_' || c == '-';

		s[0] = (char)c;
		s[1] = 'a';
		EXPECT_INT(label_good((struct pack_bytes){ (uint8_t *)s, 2 }),
			   letter);
		s[0] = 'a';
		s[1] = (char)c;
		EXPECT_INT(label_good((struct pack_bytes){ (uint8_t *)s, 2 }),
			   letter || more);
	}
}
