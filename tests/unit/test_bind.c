#include "node/core/bind.h"

#include "objects/class.h"
#include "objects/directory_class.h"
#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static struct bind *b;
static struct detail why;

static struct pack_bytes text(const char *s)
{
	return (struct pack_bytes){ (const uint8_t *)s, strlen(s) };
}

static void begin(void)
{
	bind_free(b);
	b = NULL;
	EXPECT_RC(bind_new(&b), RC_OK);
}

static struct grant grant_of(const char *who, const char *cls,
			     const char *prefix, uint32_t rights)
{
	struct grant g = { .tenant = "default",
			   .env = "dev",
			   .rights = rights };

	snprintf(g.principal, sizeof(g.principal), "%s", who);
	snprintf(g.cls, sizeof(g.cls), "%s", cls);
	snprintf(g.prefix, sizeof(g.prefix), "%s", prefix);
	return g;
}

static void grant(const char *who, const char *cls, const char *prefix,
		  uint32_t rights)
{
	struct grant g = grant_of(who, cls, prefix, rights);

	EXPECT_RC(bind_grant(b, &g, NULL), RC_OK);
}

static enum rc ask(const char *who, const char *address, const char *method)
{
	const struct method *m = NULL;
	struct address a;
	enum rc rc;

	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(address_parse(text(address), text("default"), text("dev"), &a,
				NULL),
		  RC_OK);
	rc = bind_resolve(b, text(who), &a, text(method), &m, &why);
	if (rc == RC_OK) {
		EXPECT_NOT_NULL(m);
		EXPECT_STR(m->name, method);
	}
	return rc;
}

TEST(nothing_is_allowed_to_begin_with)
{
	begin();
	EXPECT_RC(ask("unix:n:1", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_STR(why.text, "");
	EXPECT_STR(why.field, "");
	EXPECT_FALSE(bind_any(b, text("unix:n:1"), text("default"), text("dev"),
			      RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN));
}

TEST(a_right_is_for_its_methods_only)
{
	begin();
	grant("r", "kv", "", RIGHT_READ);
	grant("w", "kv", "", RIGHT_WRITE);
	grant("a", "kv", "", RIGHT_ADMIN);
	EXPECT_RC(ask("r", "kv/a", "get"), RC_OK);
	EXPECT_RC(ask("r", "kv/a", "list"), RC_OK);
	EXPECT_RC(ask("r", "kv/a", "put"), RC_DENIED);
	EXPECT_STR(why.field, "method");
	EXPECT_HAS(why.text, "put needs the right `write`");
	EXPECT_RC(ask("r", "kv/a", "destroy"), RC_DENIED);
	EXPECT_RC(ask("w", "kv/a", "get"), RC_DENIED);
	EXPECT_RC(ask("w", "kv/a", "put"), RC_OK);
	EXPECT_RC(ask("a", "kv/a", "put"), RC_DENIED);
	EXPECT_RC(ask("a", "kv/a", "destroy"), RC_OK);
}

/* Every method of every class, with every set of rights. */
TEST(every_method_asks_for_its_right)
{
	const struct method *m;
	uint32_t rights;
	size_t i;

	for (rights = 0; rights < 8; rights++) {
		begin();
		if (rights != 0)
			grant("p", "*", "", rights);
		for (i = 0; (m = method_at(i)) != NULL; i++) {
			char address[128];
			enum rc want = RC_NOT_FOUND;

			if (rights != 0)
				want = (rights & (uint32_t)m->right) != 0
					       ? RC_OK
					       : RC_DENIED;
			/* Of the directory there is only one. */
			if (strcmp(m->class_name, DIRECTORY_CLASS) == 0) {
				EXPECT_RC(ask("p", "directory/x", m->name),
					  RC_NOT_FOUND);
				continue;
			}
			snprintf(address, sizeof(address), "%s/x",
				 m->class_name);
			runner_context("%s %s with %u", address, m->name,
				       rights);
			EXPECT_RC(ask("p", address, m->name), want);
		}
	}
}

TEST(rights_of_several_grants_add_up)
{
	begin();
	grant("p", "kv", "", RIGHT_READ);
	grant("p", "kv", "logs", RIGHT_WRITE);
	grant("p", "rate_limiter", "", RIGHT_ADMIN);
	EXPECT_RC(ask("p", "kv/logs-1", "put"), RC_OK);
	EXPECT_RC(ask("p", "kv/logs-1", "get"), RC_OK);
	EXPECT_RC(ask("p", "kv/other", "put"), RC_DENIED);
	EXPECT_RC(ask("p", "rate_limiter/logs", "check"), RC_DENIED);
}

TEST(a_prefix_covers_names_that_begin_so)
{
	begin();
	grant("p", "kv", "team/", RIGHT_READ);
	EXPECT_RC(ask("p", "kv/team%2Fa", "get"), RC_OK);
	EXPECT_RC(ask("p", "kv/team%2F", "get"), RC_OK);
	EXPECT_RC(ask("p", "kv/team", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "kv/teams", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "kv/x", "get"), RC_NOT_FOUND);
	/* The name behind an id is not known. */
	EXPECT_RC(ask("p", "kv/~00112233445566778899aabbccddeeff", "get"),
		  RC_NOT_FOUND);
	grant("p", "kv", "", RIGHT_READ);
	EXPECT_RC(ask("p", "kv/~00112233445566778899aabbccddeeff", "get"),
		  RC_OK);
}

TEST(tenants_and_environments_are_apart)
{
	begin();
	grant("p", "*", "", RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
	EXPECT_RC(ask("p", "default/dev/kv/a", "get"), RC_OK);
	EXPECT_RC(ask("p", "default/prod/kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "other/dev/kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "defaul/dev/kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "defaults/dev/kv/a", "get"), RC_NOT_FOUND);
	EXPECT_TRUE(bind_any(b, text("p"), text("default"), text("dev"),
			     RIGHT_READ));
	EXPECT_FALSE(bind_any(b, text("p"), text("default"), text("prod"),
			      RIGHT_READ));
	EXPECT_FALSE(bind_any(b, text("q"), text("default"), text("dev"),
			      RIGHT_READ));
}

TEST(principals_are_whole_names)
{
	begin();
	grant("unix:n:10", "kv", "", RIGHT_READ);
	EXPECT_RC(ask("unix:n:10", "kv/a", "get"), RC_OK);
	EXPECT_RC(ask("unix:n:1", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("unix:n:100", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("", "kv/a", "get"), RC_NOT_FOUND);
}

TEST(what_does_not_exist_and_what_is_not_ours_are_the_same)
{
	begin();
	grant("p", "kv", "", RIGHT_READ);
	grant("q", "*", "", RIGHT_READ);
	/* A class that does not exist, one that is not granted. */
	EXPECT_RC(ask("p", "nothing/a", "get"), RC_NOT_FOUND);
	EXPECT_STR(why.text, "");
	EXPECT_RC(ask("p", "rate_limiter/a", "peek"), RC_NOT_FOUND);
	EXPECT_STR(why.text, "");
	EXPECT_RC(ask("q", "nothing/a", "get"), RC_NOT_FOUND);
	EXPECT_STR(why.text, "");
	EXPECT_STR(why.field, "");
	/* Methods of what one may not see are not told apart either. */
	EXPECT_RC(ask("p", "rate_limiter/a", "no_such"), RC_NOT_FOUND);
	EXPECT_RC(ask("p", "kv/a", "no_such"), RC_INVALID);
	EXPECT_STR(why.field, "method");
	EXPECT_RC(ask("p", "kv/a", ""), RC_INVALID);
	EXPECT_RC(ask("p", "kv/a", "check"), RC_INVALID);
}

TEST(malformed_grants_are_refused)
{
	struct grant g;

	begin();
	why = (struct detail){ { 0 }, { 0 } };
	g = grant_of("", "kv", "", RIGHT_READ);
	EXPECT_RC(bind_grant(b, &g, &why), RC_INVALID);
	EXPECT_STR(why.field, "principal");
	why = (struct detail){ { 0 }, { 0 } };
	g = grant_of("p", "kv", "", 0);
	EXPECT_RC(bind_grant(b, &g, &why), RC_INVALID);
	EXPECT_STR(why.field, "rights");
	why = (struct detail){ { 0 }, { 0 } };
	g = grant_of("p", "none", "", RIGHT_READ);
	EXPECT_RC(bind_grant(b, &g, &why), RC_INVALID);
	EXPECT_STR(why.field, "class");
	EXPECT_HAS(why.text, "`none`");
	g = grant_of("p", "", "", RIGHT_READ);
	EXPECT_RC(bind_grant(b, &g, NULL), RC_INVALID);
	EXPECT_FALSE(bind_any(b, text("p"), text("default"), text("dev"),
			      RIGHT_READ));
}

TEST(grants_are_copied)
{
	struct grant g = grant_of("p", "kv", "", RIGHT_READ);

	begin();
	EXPECT_RC(bind_grant(b, &g, NULL), RC_OK);
	memset(&g, 'x', sizeof(g));
	EXPECT_RC(ask("p", "kv/a", "get"), RC_OK);
}

TEST(grants_have_a_bound)
{
	struct grant g = grant_of("p", "kv", "", RIGHT_READ);
	unsigned i;

	begin();
	for (i = 0; i < GRANTS_MAX; i++) {
		snprintf(g.principal, sizeof(g.principal), "p%u", i % 300);
		snprintf(g.prefix, sizeof(g.prefix), "%u", i);
		EXPECT_RC(bind_grant(b, &g, NULL), RC_OK);
	}
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(bind_grant(b, &g, &why), RC_OVERLOADED);
	EXPECT_STR(why.field, "grants");
	EXPECT_RC(ask("p7", "kv/7", "get"), RC_OK);
	EXPECT_RC(ask("p7", "kv/8", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("p123", "kv/1023", "get"), RC_OK);
}

TEST(the_longest_names_fit)
{
	char name[PRINCIPAL_BYTES_MAX + 1];
	struct grant g = grant_of("", "kv", "", RIGHT_READ);
	struct pack_bytes tenant;
	struct address a = { .name = text("n") };
	const struct method *m;

	begin();
	memset(name, 'p', sizeof(name) - 1);
	name[sizeof(name) - 1] = '\0';
	memcpy(g.principal, name, sizeof(name));
	memset(g.tenant, 't', TENANT_BYTES_MAX);
	memset(g.env, 'e', TENANT_BYTES_MAX);
	tenant = text(g.tenant);
	EXPECT_RC(bind_grant(b, &g, NULL), RC_OK);
	a.tenant = tenant;
	a.env = text(g.env);
	a.cls = text("kv");
	EXPECT_RC(bind_resolve(b, text(name), &a, text("get"), &m, NULL),
		  RC_OK);
	name[0] = 'q';
	EXPECT_RC(bind_resolve(b, text(name), &a, text("get"), &m, NULL),
		  RC_NOT_FOUND);
}

static void grant_in(const char *who, const char *tenant, const char *env,
		     uint32_t rights, enum rc want)
{
	struct grant g = grant_of(who, "*", "", rights);

	snprintf(g.tenant, sizeof(g.tenant), "%s", tenant);
	snprintf(g.env, sizeof(g.env), "%s", env);
	EXPECT_RC(bind_grant(b, &g, NULL), want);
}

TEST(the_directory)
{
	char by_id[80] = "holdfast/system/directory/~";

	begin();
	memset(by_id + strlen(by_id), '0', 2 * OID_BYTES);
	grant_in("root", "holdfast", "system", RIGHT_READ | RIGHT_ADMIN, RC_OK);
	EXPECT_RC(ask("root", DIRECTORY_ADDRESS, "read"), RC_OK);
	EXPECT_RC(ask("root", DIRECTORY_ADDRESS, "revoke"), RC_OK);
	EXPECT_RC(ask("root", DIRECTORY_ADDRESS, "seed"), RC_DENIED);
	EXPECT_RC(ask("you", DIRECTORY_ADDRESS, "read"), RC_NOT_FOUND);
	EXPECT_RC(ask("root", "holdfast/system/directory/x", "read"),
		  RC_NOT_FOUND);
	EXPECT_RC(ask("root", "holdfast/dev/directory/cluster", "read"),
		  RC_NOT_FOUND);
	EXPECT_RC(ask("root", by_id, "read"), RC_NOT_FOUND);
}

TEST(nodes_have_the_directory_and_nothing_else)
{
	begin();
	EXPECT_RC(ask("node:1", DIRECTORY_ADDRESS, "read"), RC_OK);
	EXPECT_RC(ask("node:1", DIRECTORY_ADDRESS, "seed"), RC_OK);
	EXPECT_RC(ask("node:1", DIRECTORY_ADDRESS, "grant"), RC_DENIED);
	EXPECT_RC(ask("node:1", DIRECTORY_ADDRESS, "revoke"), RC_DENIED);
	EXPECT_RC(ask("node:1", "directory/cluster", "read"), RC_NOT_FOUND);
	EXPECT_RC(ask("node:1", "kv/a", "get"), RC_NOT_FOUND);
	grant_in("node:1", "default", "dev", RIGHT_READ, RC_INVALID);
}

TEST(a_certificate_is_good_for_its_own_tenant)
{
	static const char *const who =
		"spiffe://c/tenant/acme/env/prod/client/x";

	begin();
	grant_in(who, "acme", "prod", RIGHT_READ, RC_OK);
	grant_in(who, "acme", "dev", RIGHT_READ, RC_INVALID);
	grant_in(who, "default", "prod", RIGHT_READ, RC_INVALID);
	EXPECT_RC(ask(who, "acme/prod/kv/a", "get"), RC_OK);
	EXPECT_RC(ask(who, "acme/dev/kv/a", "get"), RC_NOT_FOUND);
}

TEST(all_grants_are_replaced_at_once)
{
	struct grant g[] = { grant_of("a", "kv", "", RIGHT_READ),
			     grant_of("b", "no-such-class", "", RIGHT_READ),
			     grant_of("c", "kv", "", RIGHT_WRITE) };

	begin();
	grant("old", "kv", "", RIGHT_READ);
	EXPECT_RC(bind_replace(b, g, 3), RC_OK);
	EXPECT_RC(ask("old", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("a", "kv/a", "get"), RC_OK);
	EXPECT_RC(ask("b", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_RC(ask("c", "kv/a", "put"), RC_OK);
	EXPECT_RC(bind_replace(b, g, 1), RC_OK);
	EXPECT_RC(ask("c", "kv/a", "put"), RC_NOT_FOUND);
	EXPECT_RC(bind_replace(b, NULL, 0), RC_OK);
	EXPECT_RC(ask("a", "kv/a", "get"), RC_NOT_FOUND);
	EXPECT_FALSE(bind_any(b, text("a"), text("default"), text("dev"),
			      RIGHT_READ));
}

TEST(too_many_replace_nothing)
{
	static struct grant g[GRANTS_MAX + 1];
	unsigned i;

	begin();
	grant("old", "kv", "", RIGHT_READ);
	for (i = 0; i <= GRANTS_MAX; i++)
		g[i] = grant_of("a", "kv", "", RIGHT_READ);
	EXPECT_RC(bind_replace(b, g, GRANTS_MAX + 1), RC_OVERLOADED);
	EXPECT_RC(ask("old", "kv/a", "get"), RC_OK);
	EXPECT_RC(bind_replace(b, g, GRANTS_MAX), RC_OK);
	EXPECT_RC(ask("old", "kv/a", "get"), RC_NOT_FOUND);
}

TEST(without_memory_the_old_grants_stay)
{
	struct grant g[] = { grant_of("a", "kv", "", RIGHT_READ),
			     grant_of("b", "kv", "", RIGHT_READ) };
	unsigned n;
	enum rc rc;

	for (n = 1;; n++) {
		begin();
		grant("old", "kv", "", RIGHT_READ);
		fault_alloc(n);
		rc = bind_replace(b, g, 2);
		if (!fault_off())
			break;
		/* A table that cannot grow is only slower. */
		if (rc != RC_OK)
			EXPECT_RC(rc, RC_NOMEM);
		EXPECT_RC(ask("old", "kv/a", "get"),
			  rc == RC_OK ? RC_NOT_FOUND : RC_OK);
		EXPECT_RC(ask("a", "kv/a", "get"),
			  rc == RC_OK ? RC_OK : RC_NOT_FOUND);
	}
	EXPECT_TRUE(n > 4);
	EXPECT_RC(rc, RC_OK);
}

TEST(memory_runs_out)
{
	struct grant g = grant_of("p", "kv", "", RIGHT_READ);
	struct bind *out = NULL;
	unsigned n;
	enum rc rc;

	for (n = 1;; n++) {
		fault_alloc(n);
		rc = bind_new(&out);
		if (rc == RC_OK)
			rc = bind_grant(out, &g, NULL);
		if (!fault_off())
			break;
		/* A table that cannot grow is only slower. */
		if (rc != RC_OK)
			EXPECT_RC(rc, RC_NOMEM);
		/* It can be said again. */
		if (out != NULL)
			EXPECT_RC(bind_grant(out, &g, NULL), RC_OK);
		bind_free(out);
		out = NULL;
	}
	EXPECT_TRUE(n > 3);
	EXPECT_RC(rc, RC_OK);
	bind_free(out);
	bind_free(NULL);
	bind_free(b);
	b = NULL;
}
