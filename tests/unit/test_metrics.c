/*
 * What the node tells about itself and its objects, and to whom.
 */
#include "tests/lib/srv_rig.h"

TEST(without_a_grant_there_is_nothing_to_see)
{
	struct client *c;

	srv_defaults();
	srv.rights = 0;
	srv_begin();
	c = client();
	expect_alive(c);
	EXPECT_HAS(ask(c, "hello", "[]"), "'server':'holdfast'");
	expect_error(c, "status", "[]", RC_DENIED, "method");
	expect_error(c, "metrics", "[]", RC_DENIED, "method");
	expect_error(c, "shard", "[0]", RC_DENIED, "method");
	expect_error(c, "transfer", "[0]", RC_DENIED, "method");
	expect_ask(c, "objects", "[]", "{'items':[]}");
	expect_error(c, "object", "['kv/a']", RC_NOT_FOUND, "");
	expect_error(c, "call", "['kv/a','get',{'key':'k'}]", RC_NOT_FOUND, "");
	expect_error(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		     RC_NOT_FOUND, "");
	srv_end();
}

/* Neither listed nor shown, also by their ids. */
TEST(another_tenants_objects_are_not_there)
{
	const struct identity *id;
	char hex[2 * OID_BYTES + 1];
	char params[128];
	struct client *c;
	struct oid oid;

	srv_defaults();
	srv_begin();
	grant_to(srv.who, "other", RIGHT_WRITE);
	c = client();
	expect_ask(c, "call", "['other/dev/kv/x','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	expect_ask(c, "call", "['kv/mine','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	id = core_identity(srv.core);
	placement_id(id->hash_key, (struct pack_bytes){ (uint8_t *)"other", 5 },
		     (struct pack_bytes){ (uint8_t *)"dev", 3 },
		     (struct pack_bytes){ (uint8_t *)"kv", 2 },
		     (struct pack_bytes){ (uint8_t *)"x", 1 }, &oid);
	hex_encode(oid.b, OID_BYTES, hex);
	snprintf(params, sizeof(params), "['other/dev/kv/~%s']", hex);
	EXPECT_HAS(ask(c, "object", params), "'other/dev/kv/x'");
	/* As one of the own tenant it does not exist. */
	snprintf(params, sizeof(params), "['kv/~%s']", hex);
	expect_error(c, "object", params, RC_NOT_FOUND, "");
	snprintf(params, sizeof(params), "['other/dev/rate_limiter/~%s']", hex);
	expect_error(c, "object", params, RC_NOT_FOUND, "");
	EXPECT_NULL(strstr(ask(c, "objects", "[]"), "other"));
	EXPECT_HAS(ask(c, "objects", "[{'tenant':'other'}]"), "other/dev/kv/x");
	expect_ask(c, "objects", "[{'tenant':'third'}]", "{'items':[]}");
	srv_end();
}

TEST(objects_page_by_page)
{
	char params[128] = "[{'limit':7}]";
	unsigned seen = 0;
	unsigned pages = 0;
	struct client *c;
	unsigned i;

	srv_defaults();
	srv_begin();
	c = client();
	for (i = 0; i < 40; i++) {
		snprintf(params, sizeof(params),
			 "['kv/%u','put',{'key':'k','value':1}]", i);
		expect_ask(c, "call", params, "{'rev':1}");
	}
	(void)ask(c, "call",
		  "['rate_limiter/r','put_policy',{'limit':1,'period_ms':1}]");
	snprintf(params, sizeof(params), "[{'limit':7,'class':'kv'}]");
	for (;;) {
		struct pack_bytes items;
		struct pack_r r;
		const char *next;
		uint32_t n;

		EXPECT_NOT_NULL(ask(c, "objects", params));
		items = say_member(c->last.result, "items");
		r = pack_reader(items.p, items.n);
		EXPECT_RC(pack_get_array(&r, &n), RC_OK);
		seen += n;
		pages++;
		EXPECT_TRUE(n <= 7);
		next = strstr(say_text(c->last.result), "'next':'");
		if (next == NULL)
			break;
		next += strlen("'next':'");
		snprintf(params, sizeof(params),
			 "[{'limit':7,'class':'kv','after':'%.*s'}]",
			 (int)strcspn(next, "'"), next);
	}
	EXPECT_UINT(seen, 40);
	EXPECT_TRUE(pages >= 6);
	srv_end();
}

TEST(status)
{
	struct pack_bytes shards;
	struct pack_bytes shard;
	struct client *c;
	struct pack_r r;
	uint64_t up;
	uint32_t n;

	srv_defaults();
	srv_begin();
	c = client();
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	EXPECT_NOT_NULL(ask(c, "status", "[]"));
	EXPECT_STR(say_text(say_member(c->last.result, "node")), "'n1'");
	EXPECT_UINT(say_u64(c->last.result, "node_id"), 1);
	EXPECT_UINT(say_u64(c->last.result, "pid"), getpid());
	EXPECT_UINT(say_u64(c->last.result, "connections"), 1);
	EXPECT_UINT(say_u64(c->last.result, "calls_open"), 0);
	EXPECT_UINT(say_u64(c->last.result, "objects_resident"), 1);
	EXPECT_UINT(say_u64(c->last.result, "boot"), 1);
	EXPECT_TRUE(say_u64(c->last.result, "rss_bytes") > 1000000);
	EXPECT_TRUE(say_u64(c->last.result, "syncs") > 0);
	EXPECT_TRUE(say_u64(c->last.result, "cpu_us") > 0);
	up = say_u64(c->last.result, "up_ms");
	EXPECT_TRUE(up < WAIT_MS);
	shards = say_member(c->last.result, "shards");
	r = pack_reader(shards.p, shards.n);
	EXPECT_RC(pack_get_array(&r, &n), RC_OK);
	EXPECT_UINT(n, 4);
	while (n-- > 0) {
		EXPECT_RC(pack_skip(&r, &shard), RC_OK);
		EXPECT_STR(say_text(say_member(shard, "role")), "'owner'");
		EXPECT_UINT(say_u64(shard, "shard"), 3 - n);
		EXPECT_UINT(say_u64(shard, "leader"), 1);
		EXPECT_TRUE(say_u64(shard, "commit_index") <=
			    say_u64(shard, "last_index"));
		EXPECT_TRUE(say_u64(shard, "checkpointed_index") <=
			    say_u64(shard, "applied_index"));
	}
	srv_end();
}

TEST(members_are_told_to_whoever_greets)
{
	static const struct config cfg = {
		.advertise_rpc = { .host = "node.example", .port = 7101 },
	};
	static const struct config six = {
		.advertise_rpc = { .host = "::1", .port = 7101 },
	};
	const struct metrics_about about = { .cfg = &cfg };
	const struct metrics_about other = { .cfg = &six };
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	/* Nobody said where it is reached. */
	EXPECT_HAS(ask(c, "hello", "[]"),
		   "'members':[{'id':1,'name':'n1','rpc':''}]");
	EXPECT_UINT(say_u64(c->last.result, "node_id"), 1);
	metrics_about(srv.metrics, &about);
	EXPECT_HAS(ask(c, "hello", "[]"), "'rpc':'node.example:7101'");
	metrics_about(srv.metrics, &other);
	EXPECT_HAS(ask(c, "hello", "[]"), "'rpc':'[::1]:7101'");
	EXPECT_HAS(ask(c, "status", "[]"), "'members':[{'id':1");
	srv_end();
}

TEST(one_shard)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	EXPECT_NOT_NULL(ask(c, "shard", "[2]"));
	EXPECT_UINT(say_u64(c->last.result, "shard"), 2);
	EXPECT_STR(say_text(say_member(c->last.result, "node")), "'n1'");
	EXPECT_STR(say_text(say_member(c->last.result, "role")), "'owner'");
	EXPECT_STR(say_text(say_member(c->last.result, "owner")), "'n1'");
	EXPECT_STR(say_text(say_member(c->last.result, "health")), "'whole'");
	EXPECT_STR(say_text(say_member(c->last.result, "why")), "''");
	EXPECT_STR(say_text(say_member(c->last.result, "peers")), "[]");
	EXPECT_UINT(say_u64(c->last.result, "voters"), 1);
	EXPECT_UINT(say_u64(c->last.result, "lag"), 0);
	expect_error(c, "shard", "[4]", RC_INVALID, "shard");
	expect_error(c, "shard", "['0']", RC_INVALID, "shard");
	expect_error(c, "shard", "[-1]", RC_INVALID, "shard");
	expect_error(c, "shard", "[]", RC_INVALID, "params");
	srv_end();
}

TEST(a_lone_voter_hands_nothing_over)
{
	struct client *c;

	srv_defaults();
	srv_begin();
	c = client();
	expect_error(c, "transfer", "[0]", RC_NO_QUORUM, "node");
	expect_error(c, "transfer", "[0,'n1']", RC_NOT_FOUND, "node");
	expect_error(c, "transfer", "[0,'nobody']", RC_NOT_FOUND, "node");
	expect_error(c, "transfer", "[0,7]", RC_NOT_FOUND, "node");
	expect_error(c, "transfer", "[0,[]]", RC_NOT_FOUND, "node");
	expect_error(c, "transfer", "[9]", RC_INVALID, "shard");
	srv_end();
}

TEST(who_may_not_administer_hands_nothing_over)
{
	struct client *c;

	srv_defaults();
	srv.rights = RIGHT_READ | RIGHT_WRITE;
	srv_begin();
	c = client();
	EXPECT_NOT_NULL(ask(c, "shard", "[0]"));
	expect_error(c, "transfer", "[0]", RC_DENIED, "method");
	srv_end();
}

TEST(the_longest_turn_is_told_until_it_is_reset)
{
	struct client *c;
	uint64_t before;

	srv_defaults();
	srv_begin();
	c = client();
	turns(20);
	EXPECT_NOT_NULL(ask(c, "status", "[{'reset_stall':true}]"));
	before = say_u64(c->last.result, "loop_stall_max_us");
	EXPECT_TRUE(before > 0);
	EXPECT_NOT_NULL(ask(c, "status", "[{'reset_stall':false}]"));
	EXPECT_TRUE(say_u64(c->last.result, "loop_stall_max_us") <
		    WAIT_MS * 1000);
	srv_end();
}

static bool has_line(struct pack_bytes text, const char *line)
{
	return memmem(text.p, text.n, line, strlen(line)) != NULL;
}

/* Every line of the text format is a comment or a sample; each family has its
 * help and its type once, in front of its samples. */
TEST(metrics_are_prometheus_text)
{
	struct pack_bytes text;
	struct client *c;
	struct pack_r r;
	unsigned samples = 0;
	char family[128] = "";
	const char *p;
	const char *end;

	srv_defaults();
	srv_begin();
	c = client();
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':1}]",
		   "{'rev':1}");
	EXPECT_NULL(ask(c, "call", "['kv/a','get',{'key':'no'}]"));
	EXPECT_NOT_NULL(ask(c, "metrics", "[]"));
	r = pack_reader(c->last.result.p, c->last.result.n);
	EXPECT_RC(pack_get_str(&r, &text), RC_OK);
	p = (const char *)text.p;
	end = p + text.n;
	EXPECT_TRUE(text.n > 0 && end[-1] == '\n');
	while (p < end) {
		const char *eol = memchr(p, '\n', (size_t)(end - p));
		char line[512];
		char name[128];
		char kind[16];
		double value;

		EXPECT_NOT_NULL(eol);
		EXPECT_TRUE((size_t)(eol - p) < sizeof(line));
		memcpy(line, p, (size_t)(eol - p));
		line[eol - p] = '\0';
		p = eol + 1;
		runner_context("%s", line);
		if (sscanf(line, "# HELP %127s", name) == 1) {
			EXPECT_TRUE(strncmp(name, "holdfast_", 9) == 0);
			snprintf(family, sizeof(family), "%s", name);
			continue;
		}
		if (sscanf(line, "# TYPE %127s %15s", name, kind) == 2) {
			EXPECT_STR(name, family);
			EXPECT_TRUE(strcmp(kind, "counter") == 0 ||
				    strcmp(kind, "gauge") == 0 ||
				    strcmp(kind, "summary") == 0);
			continue;
		}
		EXPECT_INT(sscanf(line, "%127[a-z_0-9]%*[^ ] %lf", name,
				  &value) == 2 ||
				   sscanf(line, "%127[a-z_0-9] %lf", name,
					  &value) == 2,
			   1);
		EXPECT_TRUE(strncmp(name, family, strlen(family)) == 0);
		EXPECT_TRUE(value >= 0);
		samples++;
	}
	runner_context("%s", "");
	EXPECT_TRUE(samples > 20);
	EXPECT_TRUE(has_line(text, "holdfast_calls_total{code=\"OK\"} 1"));
	EXPECT_TRUE(
		has_line(text, "holdfast_calls_total{code=\"NOT_FOUND\"} 1"));
	srv_end();
}

TEST(one_object)
{
	struct client *c;
	const char *text;

	srv_defaults();
	srv_begin();
	c = client();
	expect_error(c, "object", "['kv/a']", RC_NOT_FOUND, "");
	expect_ask(c, "call", "['kv/a','put',{'key':'k','value':'four'}]",
		   "{'rev':1}");
	text = ask(c, "object", "['kv/a']");
	EXPECT_NOT_NULL(text);
	EXPECT_UINT(say_u64(c->last.result, "rev"), 1);
	EXPECT_UINT(say_u64(c->last.result, "rows"), 1);
	EXPECT_TRUE(say_u64(c->last.result, "bytes") > 4);
	EXPECT_FALSE(say_bool(c->last.result, "destroyed"));
	EXPECT_UINT(say_member(c->last.result, "id").n, 2 * OID_BYTES + 2);
	expect_ask(c, "call", "['kv/a','destroy',{}]", "{'rev':2}");
	EXPECT_NOT_NULL(ask(c, "object", "['kv/a']"));
	EXPECT_TRUE(say_bool(c->last.result, "destroyed"));
	/* A class that is none. */
	expect_error(c, "object", "['nothing/a']", RC_NOT_FOUND, "");
	srv_end();
}
