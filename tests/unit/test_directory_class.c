/*
 * directory behind a real live object, on a world moved by hand
 * (tests/lib/fake_host.h).
 */
#include "objects/directory_class.h"

#include "client/proto/pack.h"
#include "tests/lib/fake_host.h"
#include "tests/lib/say.h"

static struct fake *f;
static struct fake_event *last; /* The call before. */

static void drop_last(void)
{
	if (last != NULL)
		fake_event_free(last);
	last = NULL;
}

static void begin(void)
{
	drop_last();
	if (f != NULL)
		fake_free(f);
	f = fake_new(NULL);
	EXPECT_NOT_NULL(f);
}

static void end(void)
{
	drop_last();
	fake_free(f);
	f = NULL;
}

static enum rc call_raw(const char *method, struct pack_bytes args)
{
	drop_last();
	last = fake_event(f, &class_directory, DIRECTORY_NAME, method);
	fake_event_args(last, args.p, args.n);
	fake_send(f, last);
	fake_go(f);
	EXPECT_TRUE(last->done);
	return last->ev.rc;
}

static enum rc call(const char *method, const char *args)
{
	struct pack_w w;
	enum rc rc;

	pack_w_init(&w, FRAME_BYTES_MAX);
	say_pack(&w, args);
	rc = call_raw(method, (struct pack_bytes){ w.p, w.n });
	pack_w_release(&w);
	return rc;
}

static const char *told(void)
{
	return say_text(
		(struct pack_bytes){ last->ev.result.p, last->ev.result.n });
}

static void expect_ok(const char *method, const char *args, const char *want)
{
	runner_context("%s %.200s", method, args);
	if (call(method, args) != RC_OK)
		FAIL("%s: %s: %s", rc_name(last->ev.rc), last->ev.why.field,
		     last->ev.why.text);
	if (want != NULL)
		EXPECT_STR(told(), want);
	runner_context("%s", "");
}

static void expect_refused(const char *method, const char *args, enum rc rc,
			   const char *field)
{
	size_t units = f->units_all;

	runner_context("%s %.200s", method, args);
	EXPECT_RC(call(method, args), rc);
	EXPECT_STR(last->ev.why.field, field);
	EXPECT_TRUE(last->ev.why.text[0] != '\0');
	EXPECT_INT(last->ev.outcome, OUTCOME_REFUSED);
	EXPECT_UINT(f->units_all, units);
	runner_context("%s", "");
}

#define ANN "'principal':'unix:n1:7','tenant':'a','env':'b'"

TEST(nothing_is_version_zero)
{
	begin();
	expect_ok("read", "{}", "{'version':0,'grants':[],'members':[]}");
	expect_ok("read", "{'since':0}", "{'version':0}");
	end();
}

TEST(grants_add_up)
{
	begin();
	expect_ok("grant", "{" ANN ",'class':'kv','rights':['read']}",
		  "{'version':1,'changed':true}");
	expect_ok("grant", "{" ANN ",'class':'kv','rights':['read','read']}",
		  "{'version':1,'changed':false}");
	expect_ok("grant", "{" ANN ",'class':'kv','rights':['admin']}",
		  "{'version':2,'changed':true}");
	expect_ok("grant", "{" ANN ",'class':'*','rights':['write']}",
		  "{'version':3,'changed':true}");
	expect_ok("grant",
		  "{" ANN ",'class':'kv','rights':['write'],'prefix':'x/'}",
		  "{'version':4,'changed':true}");
	expect_ok("read", "{'since':3}",
		  "{'version':4,'grants':["
		  "{" ANN ",'class':'*','prefix':'','rights':['write']},"
		  "{" ANN ",'class':'kv','prefix':'',"
		  "'rights':['read','admin']},"
		  "{" ANN ",'class':'kv','prefix':'x/','rights':['write']}],"
		  "'members':[]}");
	expect_ok("read", "{'since':4}", "{'version':4}");
	/* Of another life of the cluster, as far as it knows. */
	expect_ok("read", "{'since':9}", NULL);
	EXPECT_HAS(told(), "grants");
	end();
}

TEST(revoke)
{
	begin();
	expect_ok("grant", "{" ANN ",'class':'kv','rights':['read','write']}",
		  NULL);
	expect_ok("grant", "{" ANN ",'class':'*','rights':['read']}", NULL);
	expect_ok("grant",
		  "{'principal':'unix:n1:70','tenant':'a','env':'b',"
		  "'class':'kv','rights':['read']}",
		  NULL);
	expect_ok("grant",
		  "{'principal':'unix:n1:7','tenant':'c','env':'b',"
		  "'class':'kv','rights':['read'],'prefix':'p'}",
		  "{'version':4,'changed':true}");
	expect_ok("revoke", "{'principal':'unix:n1:'}",
		  "{'version':4,'changed':false}");
	expect_ok("revoke", "{'principal':'unix:n1:7','rights':['write']}",
		  "{'version':5,'changed':true}");
	expect_ok("revoke", "{'principal':'unix:n1:7','prefix':'q'}",
		  "{'version':5,'changed':false}");
	expect_ok("revoke",
		  "{'principal':'unix:n1:7','tenant':'c','env':'b',"
		  "'class':'kv','prefix':'p'}",
		  "{'version':6,'changed':true}");
	expect_ok("read", "{}",
		  "{'version':6,'grants':["
		  "{" ANN ",'class':'*','prefix':'','rights':['read']},"
		  "{" ANN ",'class':'kv','prefix':'','rights':['read']},"
		  "{'principal':'unix:n1:70','tenant':'a','env':'b',"
		  "'class':'kv','prefix':'','rights':['read']}],"
		  "'members':[]}");
	expect_ok("revoke", "{'principal':'unix:n1:7'}",
		  "{'version':7,'changed':true}");
	expect_ok("read", "{}",
		  "{'version':7,'grants':["
		  "{'principal':'unix:n1:70','tenant':'a','env':'b',"
		  "'class':'kv','prefix':'','rights':['read']}],"
		  "'members':[]}");
	end();
}

TEST(what_nobody_can_be_given)
{
	static const struct {
		const char *args;
		const char *field;
	} t[] = {
		{ "'principal':'node:1','tenant':'a','env':'b',"
		  "'class':'kv','rights':['read']",
		  "principal" },
		{ "'principal':'a\\u0000b','tenant':'a','env':'b',"
		  "'class':'kv','rights':['read']",
		  "principal" },
		{ "'principal':'x','tenant':'A','env':'b',"
		  "'class':'kv','rights':['read']",
		  "tenant" },
		{ "'principal':'x','tenant':'a','env':'1',"
		  "'class':'kv','rights':['read']",
		  "env" },
		{ "'principal':'x','tenant':'a','env':'b',"
		  "'class':'nothing','rights':['read']",
		  "class" },
		{ "'principal':'x','tenant':'a','env':'b',"
		  "'class':'kv','rights':['node']",
		  "rights" },
		{ "'principal':'x','tenant':'a','env':'b',"
		  "'class':'kv','rights':['read',7]",
		  "rights" },
		{ "'principal':'x','tenant':'a','env':'b',"
		  "'class':'kv','rights':['read'],'prefix':'\\u0000'",
		  "prefix" },
		{ "'principal':'spiffe://c/tenant/z/env/b/client/x',"
		  "'tenant':'a','env':'b','class':'kv','rights':['read']",
		  "principal" },
		{ "'principal':'spiffe://c/tenant/a/env/z/client/x',"
		  "'tenant':'a','env':'b','class':'kv','rights':['read']",
		  "principal" },
		{ "'principal':'spiffe://c/node/1',"
		  "'tenant':'a','env':'b','class':'kv','rights':['read']",
		  "principal" },
	};
	char args[512];
	char field[64];
	size_t i;

	begin();
	for (i = 0; i < sizeof(t) / sizeof(t[0]); i++) {
		snprintf(args, sizeof(args), "{%s}", t[i].args);
		expect_refused("grant", args, RC_INVALID, t[i].field);
		snprintf(args, sizeof(args),
			 "{'members':[{'id':1,'name':'n1',"
			 "'incarnation':'0123456789abcdef'}],"
			 "'grants':[{" ANN ",'class':'kv','rights':['read']},"
			 "{%s}]}",
			 t[i].args);
		snprintf(field, sizeof(field), "grants[1].%s", t[i].field);
		expect_refused("seed", args, RC_INVALID, field);
	}
	expect_refused("revoke", "{'principal':'a\\u0000'}", RC_INVALID,
		       "principal");
	expect_refused("revoke", "{'principal':'a','rights':['all']}",
		       RC_INVALID, "rights");
	expect_ok("grant",
		  "{'principal':'spiffe://c/tenant/a/env/b/client/x',"
		  "'tenant':'a','env':'b','class':'kv','rights':['read']}",
		  "{'version':1,'changed':true}");
	end();
}

#define SEED_MEMBERS                                                        \
	"'members':[{'id':1,'name':'n1','incarnation':'0123456789abcdef'}," \
	"{'id':2,'name':'n2','incarnation':'fedcba9876543210'}]"

TEST(a_cluster_is_seeded_once)
{
	begin();
	expect_ok("seed",
		  "{" SEED_MEMBERS ",'grants':[{" ANN
		  ",'class':'kv','rights':['read']},{" ANN
		  ",'class':'kv','rights':['write']}]}",
		  "{'version':1,'changed':true}");
	expect_refused("seed", "{" SEED_MEMBERS ",'grants':[]}", RC_CONFLICT,
		       "");
	expect_ok("read", "{}", NULL);
	EXPECT_HAS(told(), "'rights':['read','write']");
	EXPECT_HAS(told(), "'id':2,'name':'n2'");
	/* Also when nothing of it is left. */
	expect_ok("revoke", "{'principal':'unix:n1:7'}", NULL);
	expect_refused("seed", "{" SEED_MEMBERS ",'grants':[]}", RC_CONFLICT,
		       "");
	end();
}

TEST(members_that_are_none)
{
	static const char *const bad[] = {
		"7",
		"{}",
		"{'id':0,'name':'n','incarnation':'0123456789abcdef'}",
		"{'id':1,'name':'','incarnation':'0123456789abcdef'}",
		"{'id':1,'name':'n','incarnation':'0123456789abcde'}",
		"{'id':1,'name':'n'}",
		"{'id':1,'name':'n','incarnation':'0123456789abcdef','x':1}",
		"{'id':'1','name':'n','incarnation':'0123456789abcdef'}",
	};
	char args[512];
	size_t i;

	begin();
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(args, sizeof(args),
			 "{'grants':[],'members':[{'id':3,'name':'n3',"
			 "'incarnation':'0123456789abcdef'},%s]}",
			 bad[i]);
		expect_refused("seed", args, RC_INVALID, "members[1]");
	}
	expect_ok("read", "{'since':0}", "{'version':0}");
	end();
}

TEST(readmit)
{
	begin();
	expect_ok("seed", "{" SEED_MEMBERS ",'grants':[]}", NULL);
	expect_refused("readmit", "{'node':3,'incarnation':'0000000000000000'}",
		       RC_INVALID, "node");
	expect_ok("readmit", "{'node':2,'incarnation':'fedcba9876543210'}",
		  "{'version':1,'changed':false}");
	expect_ok("readmit", "{'node':2,'incarnation':'0000000000000000'}",
		  "{'version':2,'changed':true}");
	expect_ok("readmit", "{'node':2,'incarnation':'0000000000000000'}",
		  "{'version':2,'changed':false}");
	end();
}

static void grant_number(struct pack_w *w, unsigned i)
{
	char principal[300];
	char prefix[600];

	memset(principal, 'p', sizeof(principal));
	snprintf(principal, sizeof(principal), "%05u", i);
	principal[5] = 'p';
	memset(prefix, 'x', sizeof(prefix));
	pack_map(w, 6);
	pack_cstr(w, "principal");
	pack_str(w, principal, PRINCIPAL_BYTES_MAX);
	pack_cstr(w, "tenant");
	pack_str(w, prefix, TENANT_BYTES_MAX);
	pack_cstr(w, "env");
	pack_str(w, prefix, TENANT_BYTES_MAX);
	pack_cstr(w, "class");
	pack_cstr(w, "rate_limiter");
	pack_cstr(w, "prefix");
	pack_str(w, prefix, NAME_BYTES_MAX);
	pack_cstr(w, "rights");
	pack_array(w, 3);
	pack_cstr(w, "read");
	pack_cstr(w, "write");
	pack_cstr(w, "admin");
}

static void seed_of(struct pack_w *w, unsigned n)
{
	unsigned i;

	pack_w_init(w, FRAME_BYTES_MAX);
	pack_map(w, 2);
	pack_cstr(w, "grants");
	pack_array(w, n);
	for (i = 0; i < n; i++)
		grant_number(w, i);
	pack_cstr(w, "members");
	pack_array(w, 1);
	say_pack(w, "{'id':1,'name':'n1','incarnation':'0123456789abcdef'}");
	EXPECT_RC(w->rc, RC_OK);
}

/* The largest directory: it is one event, and one answer. */
TEST(as_many_grants_as_there_may_be)
{
	struct pack_w w;

	begin();
	seed_of(&w, GRANTS_MAX);
	if (call_raw("seed", (struct pack_bytes){ w.p, w.n }) != RC_OK)
		FAIL("%s: %s", last->ev.why.field, last->ev.why.text);
	pack_w_release(&w);
	expect_refused("grant", "{" ANN ",'class':'kv','rights':['read']}",
		       RC_NO_SPACE, "grants");
	EXPECT_RC(call("read", "{}"), RC_OK);
	EXPECT_TRUE(last->ev.result.n > GRANTS_MAX * 900u);
	pack_w_init(&w, FRAME_BYTES_MAX);
	grant_number(&w, 7);
	/* One that is there has its place. */
	EXPECT_RC(call_raw("grant", (struct pack_bytes){ w.p, w.n }), RC_OK);
	pack_w_release(&w);
	end();
}
