#include "node/config.h"

#include <unistd.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static struct config cfg;
static struct detail why;
static char path[512];

/* Writes `text` to a file of this test; its name is in `path`. */
static void save(const char *text, size_t n)
{
	FILE *f;

	snprintf(path, sizeof(path), "%s/holdfast.yaml", runner_dir());
	f = fopen(path, "w");
	EXPECT_NOT_NULL(f);
	EXPECT_UINT(fwrite(text, 1, n, f), n);
	EXPECT_INT(fclose(f), 0);
}

static enum rc load_n(const char *text, size_t n)
{
	save(text, n);
	config_release(&cfg);
	config_default(&cfg);
	why = (struct detail){ { 0 }, { 0 } };
	return config_load(&cfg, path, &why);
}

static enum rc load(const char *text)
{
	return load_n(text, strlen(text));
}

static void expect_good(const char *text)
{
	enum rc rc = load(text);

	if (rc != RC_OK)
		FAIL("%s: %s: %s", text, why.field, why.text);
}

/* A mistake: its field, the file, the line (0: none is told), and a part of the
 * sentence. */
static void expect_bad(const char *text, const char *field, unsigned line,
		       const char *part)
{
	char place[600];

	runner_context("%.200s", text);
	EXPECT_RC(load(text), RC_INVALID);
	EXPECT_STR(why.field, field);
	/* A long path is cut, its end is not lost on a reader. */
	if (strlen(path) < 80) {
		snprintf(place, sizeof(place),
			 line != 0 ? "%s:%u: " : "%s: ", path, line);
		EXPECT_HAS(why.text, place);
	}
	EXPECT_HAS(why.text, part);
	runner_context("%s", "");
}

TEST(the_least_that_is_enough)
{
	struct config d;

	expect_good("data: /var/lib/holdfast\n");
	config_default(&d);
	EXPECT_STR(cfg.data, "/var/lib/holdfast");
	EXPECT_STR(cfg.node_name, "node1");
	EXPECT_UINT(cfg.node_id, 1);
	EXPECT_STR(cfg.socket, "");
	EXPECT_UINT(cfg.shards, SHARDS_DEFAULT);
	EXPECT_UINT(cfg.connections_max, CONNECTIONS_MAX);
	EXPECT_MEM(&cfg.core, &d.core, sizeof(d.core));
	EXPECT_UINT(cfg.grants_n, 0);
}

static const char everything[] =
	"# All of it.\n"
	"node:\n"
	"  name: alpha\n"
	"  id: 7\n"
	"data: /d\n"
	"pid_file: /run/h.pid\n"
	"listen:\n"
	"  socket: /run/h.sock\n"
	"  rpc: 0.0.0.0:7101\n"
	"  peer: \"[::]:7201\"\n"
	"advertise:\n"
	"  rpc: alpha.example:443\n"
	"  peer: \"[fe80::1%eth0]:7301\"\n"
	"tls:\n"
	"  ca: /t/ca.pem\n"
	"  cert: /t/cert.pem\n"
	"  key: /t/key.pem\n"
	"peers:\n"
	"  - id: 8\n"
	"    name: beta\n"
	"    peer: 10.0.0.8:7201\n"
	"    rpc: beta.example:7101\n"
	"  - {id: 9, name: gamma, peer: 'gamma_9:65535'}\n"
	"log:\n"
	"  level: warn\n"
	"limits:\n"
	"  connections: 100\n"
	"  calls: 1000\n"
	"  objects: 5000\n"
	"  objects_bytes: 64MiB\n"
	"  object_idle: 5min\n"
	"  tenant_objects: 77\n"
	"  tenant_bytes: 3GiB\n"
	"  secret_bytes: 128KiB\n"
	"storage:\n"
	"  shards: 4\n"
	"  segment_bytes: 1MiB\n"
	"  log_bytes: 1TiB\n"
	"  reserve_bytes: 0\n"
	"  window: 20ms\n"
	"  window_bytes: 65536B\n"
	"raft:\n"
	"  election: 2s\n"
	"  heartbeat: 100\n"
	"  spread: false\n"
	"grants:\n"
	"  - principal: unix:alpha:1000\n"
	"    tenant: acme\n"
	"    env: prod\n"
	"    class: kv\n"
	"    prefix: 'team/'\n"
	"    rights: [read, write]\n"
	"  - {principal: 'unix:alpha:0', class: '*', rights: [admin]}\n";

static void expect_address(const struct config_address *a, const char *host,
			   uint16_t port)
{
	EXPECT_STR(a->host, host);
	EXPECT_UINT(a->port, port);
}

static void expect_places(void)
{
	expect_address(&cfg.listen_rpc, "0.0.0.0", 7101);
	expect_address(&cfg.listen_peer, "::", 7201);
	expect_address(&cfg.advertise_rpc, "alpha.example", 443);
	expect_address(&cfg.advertise_peer, "fe80::1%eth0", 7301);
	EXPECT_STR(cfg.tls_ca, "/t/ca.pem");
	EXPECT_STR(cfg.tls_cert, "/t/cert.pem");
	EXPECT_STR(cfg.tls_key, "/t/key.pem");
	EXPECT_UINT(cfg.peers_n, 2);
	EXPECT_UINT(cfg.peers[0].id, 8);
	EXPECT_STR(cfg.peers[0].name, "beta");
	expect_address(&cfg.peers[0].peer, "10.0.0.8", 7201);
	expect_address(&cfg.peers[0].rpc, "beta.example", 7101);
	EXPECT_UINT(cfg.peers[1].id, 9);
	EXPECT_STR(cfg.peers[1].name, "gamma");
	expect_address(&cfg.peers[1].peer, "gamma_9", 65535);
	expect_address(&cfg.peers[1].rpc, "", 0);
}

static void expect_everything(void)
{
	const struct core_config *c = &cfg.core;

	expect_places();

	EXPECT_STR(cfg.node_name, "alpha");
	EXPECT_UINT(cfg.node_id, 7);
	EXPECT_STR(cfg.data, "/d");
	EXPECT_STR(cfg.pid_file, "/run/h.pid");
	EXPECT_STR(cfg.socket, "/run/h.sock");
	EXPECT_INT(cfg.log_level, LOG_WARN_LEVEL);
	EXPECT_UINT(cfg.connections_max, 100);
	EXPECT_UINT(c->calls_max, 1000);
	EXPECT_UINT(c->objects_max, 5000);
	EXPECT_UINT(c->objects_bytes_max, 64ull << 20);
	EXPECT_UINT(c->object_idle_ms, 300000);
	EXPECT_UINT(c->tenant_objects_max, 77);
	EXPECT_UINT(c->tenant_bytes_max, 3ull << 30);
	EXPECT_UINT(cfg.secret_bytes, 128u << 10);
	EXPECT_UINT(cfg.shards, 4);
	EXPECT_UINT(cfg.segment_bytes, 1u << 20);
	EXPECT_UINT(c->log_bytes_max, 1ull << 40);
	EXPECT_UINT(c->reserve_bytes, 0);
	EXPECT_UINT(c->window_ms, 20);
	EXPECT_UINT(c->window_bytes, 65536);
	EXPECT_UINT(c->election_ms, 2000);
	EXPECT_UINT(c->heartbeat_ms, 100);
	EXPECT_FALSE(c->spread);
	EXPECT_UINT(cfg.grants_n, 2);
	EXPECT_STR(cfg.grants[0].principal, "unix:alpha:1000");
	EXPECT_STR(cfg.grants[0].tenant, "acme");
	EXPECT_STR(cfg.grants[0].env, "prod");
	EXPECT_STR(cfg.grants[0].cls, "kv");
	EXPECT_STR(cfg.grants[0].prefix, "team/");
	EXPECT_UINT(cfg.grants[0].rights, RIGHT_READ | RIGHT_WRITE);
	EXPECT_STR(cfg.grants[1].tenant, "default");
	EXPECT_STR(cfg.grants[1].env, "dev");
	EXPECT_STR(cfg.grants[1].cls, "*");
	EXPECT_STR(cfg.grants[1].prefix, "");
	EXPECT_UINT(cfg.grants[1].rights, RIGHT_ADMIN);
}

TEST(every_field_and_unit)
{
	expect_good(everything);
	expect_everything();
}

/* As text, with its NUL; the caller frees it. */
static char *printed(const struct config *c)
{
	char *p = NULL;
	size_t n = 0;
	FILE *f = open_memstream(&p, &n);

	EXPECT_NOT_NULL(f);
	config_print(c, f);
	EXPECT_INT(fclose(f), 0);
	return p;
}

TEST(what_is_printed_loads_again)
{
	char *once;
	char *twice;

	expect_good(everything);
	once = printed(&cfg);
	expect_good(once);
	expect_everything();
	twice = printed(&cfg);
	EXPECT_STR(twice, once);
	free(once);
	free(twice);
}

TEST(defaults_print_and_load)
{
	struct config d;
	char *p;

	expect_good("data: /d\n");
	d = cfg;
	EXPECT_FALSE(d.named);
	EXPECT_FALSE(d.numbered);
	p = printed(&cfg);
	expect_good(p);
	/* What is printed says both. */
	d.named = true;
	d.numbered = true;
	EXPECT_MEM(&cfg, &d, sizeof(d));
	free(p);
}

TEST(odd_texts_print_and_load)
{
	char *once;
	char *twice;

	expect_good("data: \"/d \\\"q\\\" \\\\ # \\t: {\\xe4\\u263a\"\n"
		    "listen: {socket: '/s: - &a *b !c %d @e `f'}\n"
		    "grants:\n"
		    "- principal: \" p \"\n"
		    "  class: kv\n"
		    "  prefix: \"'\\\"\\n\\x01~\"\n"
		    "  rights: [read]\n");
	once = printed(&cfg);
	expect_good(once);
	EXPECT_STR(cfg.grants[0].prefix, "'\"\n\x01~");
	EXPECT_STR(cfg.grants[0].principal, " p ");
	twice = printed(&cfg);
	EXPECT_STR(twice, once);
	free(once);
	free(twice);
}

/* libraries.md's list: each of them libcyaml itself takes for a number. */
TEST(scalar_traps)
{
	static const char *const bad[] = {
		"12x",
		"1.5",
		"010",
		"1_000",
		"0x10",
		"12 MiB",
		"-1",
		"+1",
		"1e3",
		"''",
		"' 12'",
		"'12 '",
		"yes",
		"maybe",
		"true",
		"~",
		"null",
		"1,000",
		"12KiB",
		"12s",
		"١",
		"0b11",
		"1/2",
		"Infinity",
		"NaN",
		"00",
		"18446744073709551616",
		"99999999999999999999999999",
	};
	char text[128];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(text, sizeof(text), "data: /d\nlimits:\n  calls: %s\n",
			 bad[i]);
		expect_bad(text, "limits.calls", 3, "a whole decimal number");
	}
	expect_good("data: /d\nlimits:\n  calls: '100'\n");
	EXPECT_UINT(cfg.core.calls_max, 100);
	expect_good("data: /d\nlimits:\n  calls: \"100\" # why\n");
}

TEST(units_belong_to_their_kind)
{
	expect_bad("data: /d\nlimits: {tenant_bytes: 1s}\n",
		   "limits.tenant_bytes", 2, "KiB, MiB, GiB, TiB");
	expect_bad("data: /d\nlimits: {tenant_bytes: 1MB}\n",
		   "limits.tenant_bytes", 2, "KiB, MiB, GiB, TiB");
	expect_bad("data: /d\nlimits: {tenant_bytes: 1kib}\n",
		   "limits.tenant_bytes", 2, "whole number of bytes");
	expect_bad("data: /d\nlimits: {tenant_bytes: 1 MiB}\n",
		   "limits.tenant_bytes", 2, "whole number of bytes");
	expect_bad("data: /d\nlimits: {tenant_bytes: 1.5GiB}\n",
		   "limits.tenant_bytes", 2, "whole number of bytes");
	expect_bad("data: /d\nlimits: {object_idle: 1m}\n",
		   "limits.object_idle", 2, "milliseconds");
	expect_bad("data: /d\nlimits: {object_idle: 1MiB}\n",
		   "limits.object_idle", 2, "milliseconds");
	/* Too large only with its unit. */
	expect_bad("data: /d\nlimits: {tenant_bytes: 16777216TiB}\n",
		   "limits.tenant_bytes", 2, "whole number of bytes");
	expect_good("data: /d\nlimits: {object_idle: 24h}\n");
	EXPECT_UINT(cfg.core.object_idle_ms, 86400000);
}

TEST(bounds)
{
	static const struct {
		const char *section;
		const char *field;
		const char *least;
		const char *below;
		const char *most;
		const char *above;
	} rows[] = {
		{ "limits", "connections", "1", "0", "4096", "4097" },
		{ "limits", "calls", "64", "63", "32768", "32769" },
		{ "limits", "objects", "16", "15", "16777216", "16777217" },
		{ "limits", "objects_bytes", "1MiB", "1048575", "1TiB",
		  "1099511627777" },
		{ "limits", "object_idle", "10", "9", "24h", "86400001" },
		{ "limits", "tenant_objects", "1", "0", "9223372036854775807",
		  "9223372036854775808" },
		{ "limits", "tenant_bytes", "1", "0", "9223372036854775807",
		  "9223372036854775808" },
		{ "limits", "secret_bytes", "64KiB", "65535", "64MiB",
		  "67108865" },
		{ "storage", "shards", "1", "0", "64", "65" },
		{ "storage", "segment_bytes", "1MiB", "512KiB", "256MiB",
		  "512MiB" },
		{ "storage", "log_bytes", "64MiB", "67108863", "16TiB",
		  "17TiB" },
		{ "storage", "reserve_bytes", "0", NULL, "16TiB", "17TiB" },
		{ "storage", "window", "0", NULL, "10s", "10001ms" },
		{ "storage", "window_bytes", "64KiB", "65535", "1GiB",
		  "1073741825" },
		{ "raft", "election", "150", "49", "60s", "60001" },
		{ "raft", "heartbeat", "5", "4", "100", "20001" },
		{ "node", "id", "1", "0", "9223372036854775807",
		  "9223372036854775808" },
	};
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		char text[160];
		char field[64];
		/* Beside a large segment a small log is another mistake. */
		const char *more = strcmp(rows[i].field, "segment_bytes") == 0
					   ? "  log_bytes: 1TiB\n"
					   : "";

		snprintf(field, sizeof(field), "%s.%s", rows[i].section,
			 rows[i].field);
#define ROW(value)                                                  \
	snprintf(text, sizeof(text), "data: /d\n%s:\n  %s: %s\n%s", \
		 rows[i].section, rows[i].field, value, more)
		ROW(rows[i].least);
		expect_good(text);
		ROW(rows[i].most);
		expect_good(text);
		ROW(rows[i].above);
		expect_bad(text, field, 3, "is not between");
		if (rows[i].below == NULL)
			continue;
		ROW(rows[i].below);
		expect_bad(text, field, 3, "is not between");
#undef ROW
	}
}

TEST(what_must_fit_together)
{
	expect_bad("data: /d\nstorage:\n  segment_bytes: 3MiB\n",
		   "storage.segment_bytes", 3, "power of two");
	expect_bad("data: /d\nstorage:\n  segment_bytes: 256MiB\n"
		   "  log_bytes: 512MiB\n",
		   "storage.log_bytes", 4, "not between");
	/* The default log is four of the largest segments. */
	expect_good("data: /d\nstorage: {segment_bytes: 256MiB}\n");
	expect_bad("data: /d\nraft: {election: 200, heartbeat: 100}\n",
		   "raft.heartbeat", 2, "a third of raft.election");
	expect_bad("data: /d\nraft:\n  election: 100\n", "raft.heartbeat", 0,
		   "a third of raft.election");
}

TEST(unknown_keys)
{
	expect_bad("data: /d\nport: 80\n", "port", 2, "no key `port`");
	expect_bad("data: /d\nlimits:\n  calls: 100\n  call: 100\n",
		   "limits.call", 4, "no key `call`");
	expect_bad("data: /d\nData: /d\n", "Data", 2, "no key `Data`");
	expect_bad("data: /d\ngrants:\n- principal: p\n  clas: kv\n",
		   "grants[0].clas", 4, "no key `clas`");
	/* Twice: which of them is not known. */
	expect_bad("calls: 1\ndata: /d\nlimits:\n  calls: 100\n", "calls", 0,
		   "no key `calls`");
	expect_bad("data: /d\n? [a, b]\n: c\n", "data", 1, "");
}

TEST(doubled_keys)
{
	expect_bad("data: /d\ndata: /e\n", "data", 2, "twice");
	expect_bad("data: /d\nlimits: {calls: 100, calls: 200}\n",
		   "limits.calls", 2, "twice");
	expect_bad("data: /d\nlimits:\n  calls: 100\nraft:\n  election: 300\n"
		   "limits:\n  objects: 100\n",
		   "limits", 6, "twice");
	expect_bad("data: /d\ngrants:\n- principal: p\n  class: kv\n"
		   "  rights: [read]\n  class: '*'\n",
		   "grants[0].class", 6, "twice");
	expect_bad("data: /d\ngrants: []\ngrants: []\n", "grants", 3, "twice");
	/* The same key in two places is fine. */
	expect_good("data: /d\ngrants:\n"
		    "- {principal: p, class: kv, rights: [read]}\n"
		    "- {principal: p, class: kv, rights: [read]}\n");
}

TEST(lines_are_those_of_keys)
{
	expect_bad("# calls: 1\ndata: '/calls: 1'\nlimits: # calls: 2\n"
		   "  tenant_bytes: 1 # \"\n  calls: x\n",
		   "limits.calls", 5, "`x`");
	expect_bad("data: \"/a\\\"\n  calls: 1\"\nlimits:\n\n  calls: x\n",
		   "limits.calls", 5, "`x`");
	expect_bad("data: /d # it's\nlimits: {tenant_bytes: 5, calls: x}\n",
		   "limits.calls", 2, "`x`");
	expect_bad("data: /d\r\nlimits:\r\n  calls: x\r\n", "limits.calls", 3,
		   "`x`");
	expect_bad("data: /d\nlimits:\n  calls:\n    x", "limits.calls", 3,
		   "`x`");
}

TEST(wrong_shapes)
{
	expect_bad("data: [a]\n", "data", 1, "SEQUENCE");
	expect_bad("data: {a: b}\n", "data", 1, "MAPPING");
	expect_bad("data: /d\nlimits: 5\n", "limits", 2, "Expecting MAPPING");
	expect_bad("data: /d\nlimits: [calls]\n", "limits", 2, "MAPPING");
	expect_bad("data: /d\ngrants: {a: b}\n", "grants", 2, "SEQUENCE");
	expect_bad("data: /d\ngrants: all\n", "grants", 2, "SEQUENCE");
	expect_bad("data: /d\ngrants: [all]\n", "grants[0]", 2, "MAPPING");
	expect_bad("data: /d\ngrants:\n- principal: p\n- [a]\n", "grants[1]", 4,
		   "MAPPING");
	expect_bad("- data\n", "", 0, "Expecting MAPPING");
	expect_bad("data\n", "", 0, "Expecting MAPPING");
}

TEST(not_yaml)
{
	expect_bad("data: \"/d\n", "", 0, "not YAML (behind line 1)");
	expect_bad("data: /d\n\tlimits: {}\n", "", 0, "tab character");
	expect_bad("data: /d\nlimits: {calls: 100\n", "", 0,
		   "not YAML (behind line 2)");
	expect_bad("data: *nobody\n", "data", 1, "nobody");
	expect_bad("%YAML 3.0\n---\ndata: /d\n", "", 0, "not YAML");
	expect_bad("\xff\xfe\xfd", "", 0, "not YAML");
	EXPECT_RC(load_n("data: /d\0x\n", 11), RC_INVALID);
	EXPECT_HAS(why.text, "byte of zero");
	expect_bad("data: /d\n---\ndata: /e\n", "", 2, "one document");
	expect_bad("--- {data: /d}\n--- {data: /e}\n", "", 2, "one document");
	expect_good("# first\n---\ndata: /d\n...\n");
	expect_good("%YAML 1.1\n---\ndata: /d\n");
	expect_good("--- {data: /d}");
}

TEST(nothing_is_not_a_configuration)
{
	expect_bad("", "", 0, "is empty");
	expect_bad("# nothing\n", "", 0, "is empty");
	expect_bad("---\n...\n", "", 0, "");
	expect_bad("{}\n", "data", 0, "is missing");
	expect_bad("node: {name: a}\n", "data", 0, "is missing");
	expect_bad("data: ''\n", "data", 1, "is empty");
	expect_bad("data:\n", "data", 1, "is empty");
	expect_bad("data: /d\nlisten: {socket: ''}\n", "listen.socket", 2,
		   "is empty");
	expect_bad("data: /d\npid_file: ''\n", "pid_file", 2, "is empty");
}

TEST(names_and_words)
{
	expect_bad("data: /d\nnode: {name: Node}\n", "node.name", 2,
		   "is made of");
	expect_bad("data: /d\nnode: {name: 1a}\n", "node.name", 2, "letter");
	expect_bad("data: /d\nnode: {name: a:b}\n", "node.name", 2,
		   "is made of");
	expect_bad("data: /d\nnode: {name: ''}\n", "node.name", 2, "empty");
	expect_bad("data: /d\nnode: {name: "
		   "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
		   "aaaaaaaaaaaaaaaaaaaa}\n",
		   "node.name", 2, "more than 63 bytes");
	expect_bad("data: /d\nlog: {level: loud}\n", "log.level", 2, "`loud`");
	expect_bad("data: /d\nlog: {level: INFO}\n", "log.level", 2, "`INFO`");
	expect_good("data: /d\nlog: {level: debug}\n");
	expect_good("data: /d\nlog: {level: error}\n");
	EXPECT_INT(cfg.log_level, LOG_ERROR_LEVEL);
}

TEST(grants)
{
	expect_bad("data: /d\ngrants:\n- {class: kv, rights: [read]}\n",
		   "grants[0].principal", 0, "is missing");
	expect_bad("data: /d\ngrants:\n- {principal: p, rights: [read]}\n",
		   "grants[0].class", 0, "is missing");
	expect_bad("data: /d\ngrants:\n- {principal: p, class: kv}\n",
		   "grants[0].rights", 0, "at least one");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, class: kv, rights: []}\n",
		   "grants[0].rights", 3, "at least one");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, class: kv, rights: [read]}\n"
		   "- {principal: p, class: kvv, rights: [read]}\n",
		   "grants[1].class", 4, "no class `kvv`");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, class: kv, rights: [reed]}\n",
		   "grants[0].rights", 3, "reed");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, class: kv, rights: [Read]}\n",
		   "grants[0].rights", 3, "Read");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, class: kv, rights: read}\n",
		   "grants[0].rights", 3, "");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, tenant: A, class: kv, rights: [read]}\n",
		   "grants[0].tenant", 3, "is made of");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: p, env: a/b, class: kv, rights: [read]}\n",
		   "grants[0].env", 3, "is made of");
	expect_bad("data: /d\ngrants:\n"
		   "- {principal: '', class: kv, rights: [read]}\n",
		   "grants[0].principal", 3, "is empty");
	/* A right said twice is still one. */
	expect_good("data: /d\ngrants:\n"
		    "- {principal: p, class: kv, rights: [read, read]}\n");
	EXPECT_UINT(cfg.grants[0].rights, RIGHT_READ);
}

TEST(grants_have_a_bound)
{
	static char text[128 * (GRANTS_MAX + 2)];
	size_t n = 0;
	unsigned i;

	n += (size_t)snprintf(text, sizeof(text), "data: /d\ngrants:\n");
	for (i = 0; i <= GRANTS_MAX; i++) {
		if (i == GRANTS_MAX) {
			expect_good(text);
			EXPECT_UINT(cfg.grants_n, GRANTS_MAX);
		}
		n += (size_t)snprintf(text + n, sizeof(text) - n,
				      "- {principal: p%u, class: kv, "
				      "rights: [read]}\n",
				      i);
	}
	EXPECT_RC(load(text), RC_INVALID);
	EXPECT_HAS(why.field, "grants");
	EXPECT_HAS(why.text, "1024 max");
}

/* A cluster's, with one line more or another. */
#define NAMED  "data: /d\nnode: {name: a, id: 1}\n"
#define TLS    "tls: {ca: c, cert: d, key: e}\n"
#define LISTEN "listen: {peer: 'h:1', rpc: 'h:2'}\n"
#define PEERS                               \
	"peers:\n"                          \
	"- {id: 2, name: b, peer: 'i:1'}\n" \
	"- {id: 3, name: c, peer: 'j:1'}\n"

TEST(addresses)
{
	static const char *const bad[] = {
		"h",     ":1",        "h:",      "h:0",      "h:65536",
		"h:01",  "h:1x",      "h: 1",    "[::1]",    "[::1]1",
		"::1:1", "[:1",       "[]:1",    "h h:1",    "h/x:1",
		"[h:1",  "h]:1",      "[::1]:0", "@h:1",     "h:-1",
		"h:+1",  "unix:/x:1", "h%0:1",   "[::1]x:1", "]:1",
	};
	struct config_address a;
	char text[256];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		EXPECT_RC(config_address_parse(bad[i], &a), RC_INVALID);
		snprintf(text, sizeof(text), "data: /d\nlisten:\n  rpc: '%s'\n",
			 bad[i]);
		expect_bad(text, "listen.rpc", 3, "HOST:PORT");
	}
	expect_bad("data: /d\nlisten:\n  rpc: ''\n", "listen.rpc", 3,
		   "HOST:PORT");
	memset(text, 'h', sizeof(text));
	snprintf(text + 250, 6, "hhhhh");
	EXPECT_RC(config_address_parse(text, &a), RC_INVALID);
	EXPECT_RC(config_address_parse("[fe80::1%lo]:7101", &a), RC_OK);
	expect_address(&a, "fe80::1%lo", 7101);
	EXPECT_RC(config_address_parse("h:65535", &a), RC_OK);
	expect_address(&a, "h", 65535);
}

TEST(a_host_has_a_bound)
{
	struct config_address a;
	char text[300];

	memset(text, 'h', sizeof(text));
	snprintf(text + 255, 3, ":1");
	EXPECT_RC(config_address_parse(text, &a), RC_OK);
	EXPECT_UINT(strlen(a.host), 255);
	memset(text, 'h', sizeof(text));
	snprintf(text + 256, 3, ":1");
	EXPECT_RC(config_address_parse(text, &a), RC_INVALID);
}

TEST(what_is_advertised)
{
	expect_good(NAMED TLS LISTEN PEERS);
	expect_address(&cfg.advertise_peer, "h", 1);
	expect_address(&cfg.advertise_rpc, "h", 2);
	expect_good("data: /d\n" TLS "listen: {rpc: '0.0.0.0:2'}\n"
		    "advertise: {rpc: 'h:3'}\n");
	expect_address(&cfg.listen_rpc, "0.0.0.0", 2);
	expect_address(&cfg.advertise_rpc, "h", 3);
	expect_bad("data: /d\n" TLS "listen:\n  rpc: 0.0.0.0:2\n", "listen.rpc",
		   4, "nobody can connect to 0.0.0.0");
	expect_bad("data: /d\n" TLS "listen:\n  rpc: h:1\nadvertise:\n"
		   "  rpc: '[::]:1'\n",
		   "advertise.rpc", 6, "nobody can connect to ::");
	expect_bad("data: /d\nadvertise:\n  peer: h:2\n", "advertise.peer", 3,
		   "listen.peer is not");
	expect_bad("data: /d\nadvertise:\n  rpc: h\n", "advertise.rpc", 3,
		   "HOST:PORT");
}

TEST(certificates_are_three_files)
{
	char want[600];

	expect_bad("data: /d\nlisten: {rpc: 'h:1'}\n", "tls.ca", 0,
		   "is missing");
	expect_bad("data: /d\ntls: {ca: c}\n", "tls.cert", 0, "is missing");
	expect_bad("data: /d\ntls: {ca: c, cert: d}\n", "tls.key", 0,
		   "is missing");
	expect_bad("data: /d\ntls: {ca: '', cert: d, key: e}\n", "tls.ca", 2,
		   "is empty");
	expect_good("data: /d\n" TLS);
	snprintf(want, sizeof(want), "%s/e", runner_dir());
	EXPECT_STR(cfg.tls_key, want);
}

TEST(peers)
{
	expect_good(NAMED TLS LISTEN PEERS);
	EXPECT_UINT(cfg.peers_n, 2);
	expect_good(NAMED TLS LISTEN PEERS "- {id: 4, name: d, peer: 'k:1'}\n"
					   "- {id: 5, name: e, peer: 'l:1'}\n");
	EXPECT_UINT(cfg.peers_n, 4);
	expect_bad(NAMED TLS LISTEN PEERS "- {id: 4, name: d, peer: 'k:1'}\n",
		   "peers", 5, "three or five");
	expect_bad(NAMED TLS LISTEN "peers:\n- {id: 2, name: b, peer: 'i:1'}\n",
		   "peers", 5, "three or five");
	EXPECT_RC(load(NAMED TLS LISTEN PEERS
		       "- {id: 4, name: d, peer: 'k:1'}\n"
		       "- {id: 5, name: e, peer: 'k:1'}\n"
		       "- {id: 6, name: f, peer: 'k:1'}\n"),
		  RC_INVALID);
	EXPECT_HAS(why.field, "peers");
	EXPECT_HAS(why.text, "4 max");
	expect_bad(NAMED TLS LISTEN, "peers", 0, "nobody to talk to");
	expect_bad(NAMED TLS "listen: {rpc: 'h:2'}\n" PEERS, "listen.peer", 0,
		   "is missing");
	expect_bad("data: /d\nnode: {id: 1}\n" TLS LISTEN PEERS, "node.name", 0,
		   "says both");
	expect_bad("data: /d\nnode: {name: a}\n" TLS LISTEN PEERS, "node.id", 0,
		   "says both");
}

TEST(each_peer)
{
	static const struct {
		const char *second;
		const char *field;
		const char *part;
	} rows[] = {
		{ "{name: c, peer: 'j:1'}", "peers[1].id", "is missing" },
		{ "{id: 0, name: c, peer: 'j:1'}", "peers[1].id",
		  "is not between" },
		{ "{id: 3, peer: 'j:1'}", "peers[1].name", "is missing" },
		{ "{id: 3, name: C, peer: 'j:1'}", "peers[1].name",
		  "is made of" },
		{ "{id: 3, name: c}", "peers[1].peer", "is missing" },
		{ "{id: 3, name: c, peer: j}", "peers[1].peer", "HOST:PORT" },
		{ "{id: 3, name: c, peer: 'j:1', rpc: 'j:x'}", "peers[1].rpc",
		  "HOST:PORT" },
		{ "{id: 2, name: c, peer: 'j:1'}", "peers[1]",
		  "the id or the name of peers[0]" },
		{ "{id: 3, name: b, peer: 'j:1'}", "peers[1]",
		  "the id or the name of peers[0]" },
		{ "{id: 1, name: c, peer: 'j:1'}", "peers[1]", "this node" },
		{ "{id: 3, name: a, peer: 'j:1'}", "peers[1]", "this node" },
		{ "{id: 3, name: c, pear: 'j:1'}", "peers[1].pear",
		  "no key `pear`" },
	};
	char text[512];
	size_t i;

	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		bool missing = strstr(rows[i].part, "is missing") != NULL;

		snprintf(text, sizeof(text),
			 NAMED TLS LISTEN "peers:\n"
					  "- {id: 2, name: b, peer: 'i:1'}\n"
					  "- %s\n",
			 rows[i].second);
		expect_bad(text, rows[i].field, missing ? 0 : 7, rows[i].part);
	}
}

TEST(spread)
{
	expect_good("data: /d\n");
	EXPECT_TRUE(cfg.core.spread);
	expect_good("data: /d\nraft: {spread: true}\n");
	EXPECT_TRUE(cfg.core.spread);
	expect_good("data: /d\nraft: {spread: false}\n");
	EXPECT_FALSE(cfg.core.spread);
	expect_bad("data: /d\nraft:\n  spread: yes\n", "raft.spread", 3,
		   "true or false");
	expect_bad("data: /d\nraft:\n  spread: ''\n", "raft.spread", 3,
		   "true or false");
}

/* The same key stands in other sections too, before and behind. */
TEST(lines_are_those_of_the_section)
{
	expect_bad(NAMED "listen:\n  peer: h:1\n  rpc: h:2\nadvertise:\n"
			 "# rpc\n  rpc: h\n" TLS PEERS,
		   "advertise.rpc", 8, "`h`");
	expect_bad(NAMED "listen:\n  peer: h:1\npeers:\n"
			 "  - id: 2\n    name: b\n    peer: i:1\n\n"
			 "  - id: 3\n    name: c\n    peer: j\n" TLS,
		   "peers[1].peer", 12, "`j`");
	expect_bad(NAMED "listen:\n  peer: h:1\npeers:\n"
			 "  - id: 2\n    name: b\n    peer: i\n"
			 "  - id: 3\n    name: c\n    peer: j:1\n" TLS,
		   "peers[0].peer", 8, "`i`");
	expect_bad(NAMED "listen:\n  peer: h:1\npeers:\n"
			 "  - id: 2\n    name: b\n    peer: i:1\n"
			 "  - id: 2\n    name: c\n    peer: j:1\n" TLS,
		   "peers[1]", 9, "peers[0]");
	/* Entries of one line each know no more than their line. */
	expect_bad(NAMED LISTEN TLS "peers: [{id: 2, name: b, peer: i},\n"
				    "  {id: 3, name: c, peer: 'j:1'}]\n",
		   "peers[0].peer", 0, "`i`");
}

TEST(paths_are_relative_to_the_file)
{
	char want[600];

	expect_good("data: here\npid_file: ../p\nlisten: {socket: a/s}\n");
	snprintf(want, sizeof(want), "%s/here", runner_dir());
	EXPECT_STR(cfg.data, want);
	snprintf(want, sizeof(want), "%s/../p", runner_dir());
	EXPECT_STR(cfg.pid_file, want);
	snprintf(want, sizeof(want), "%s/a/s", runner_dir());
	EXPECT_STR(cfg.socket, want);
}

TEST(a_file_named_without_a_directory)
{
	char here[512];
	struct config c;
	enum rc rc;

	save("data: d\n", 8);
	EXPECT_NOT_NULL(getcwd(here, sizeof(here)));
	EXPECT_INT(chdir(runner_dir()), 0);
	config_default(&c);
	rc = config_load(&c, "holdfast.yaml", NULL);
	EXPECT_INT(chdir(here), 0);
	EXPECT_RC(rc, RC_OK);
	EXPECT_STR(c.data, "d");
	config_release(&c);
}

TEST(long_paths)
{
	static char text[2 * CONFIG_PATH_MAX];
	int n = snprintf(text, sizeof(text), "data: /");

	memset(text + n, 'd', CONFIG_PATH_MAX - 2);
	EXPECT_RC(load_n(text, (size_t)n + CONFIG_PATH_MAX - 2), RC_OK);
	EXPECT_UINT(strlen(cfg.data), CONFIG_PATH_MAX - 1);
	memset(text + n, 'd', CONFIG_PATH_MAX - 1);
	EXPECT_RC(load_n(text, (size_t)n + CONFIG_PATH_MAX - 1), RC_INVALID);
	EXPECT_STR(why.field, "data");
	/* Relative: what it becomes counts. */
	text[n - 1] = 'd';
	EXPECT_RC(load_n(text, (size_t)n + CONFIG_PATH_MAX - 2), RC_INVALID);
	EXPECT_STR(why.field, "data");
	EXPECT_HAS(why.text, "more than 4095 bytes");
}

TEST(the_file_itself)
{
	static char large[CONFIG_BYTES_MAX + 2];

	config_default(&cfg);
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(config_load(&cfg, "/nowhere/at/all.yaml", &why),
		  RC_NOT_FOUND);
	EXPECT_HAS(why.text, "/nowhere/at/all.yaml");
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(config_load(&cfg, runner_dir(), &why), RC_INVALID);
	EXPECT_HAS(why.text, "directory");
	EXPECT_RC(config_load(&cfg, runner_dir(), NULL), RC_INVALID);
	memset(large, '#', sizeof(large));
	(void)snprintf(large, sizeof(large), "data: /d\n");
	large[9] = '#';
	EXPECT_RC(load_n(large, CONFIG_BYTES_MAX), RC_OK);
	EXPECT_RC(load_n(large, CONFIG_BYTES_MAX + 1), RC_INVALID);
	EXPECT_HAS(why.text, "larger than 1 MiB");
}

/* Aliases that multiply: a file must not take more than it is. */
TEST(a_bomb)
{
	EXPECT_RC(load("data: /d\n"
		       "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
		       "b: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
		       "c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
		       "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
		       "grants: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n"),
		  RC_INVALID);
}

TEST(dev)
{
	char who[64];

	config_release(&cfg);
	config_default(&cfg);
	EXPECT_RC(config_dev(&cfg, "/tmp/d", NULL), RC_OK);
	EXPECT_STR(cfg.data, "/tmp/d");
	EXPECT_STR(cfg.socket, "/tmp/d/holdfast.sock");
	EXPECT_STR(cfg.pid_file, "/tmp/d/holdfastd.pid");
	EXPECT_UINT(cfg.grants_n, 1);
	snprintf(who, sizeof(who), "unix:node1:%u", (unsigned)geteuid());
	EXPECT_STR(cfg.grants[0].principal, who);
	EXPECT_STR(cfg.grants[0].tenant, "default");
	EXPECT_STR(cfg.grants[0].env, "dev");
	EXPECT_STR(cfg.grants[0].cls, "*");
	EXPECT_UINT(cfg.grants[0].rights,
		    RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
}

TEST(dev_prints_and_loads)
{
	struct config d;
	char *p;

	config_release(&cfg);
	config_default(&cfg);
	EXPECT_RC(config_dev(&cfg, "/tmp/d", NULL), RC_OK);
	d = cfg;
	cfg.grants = NULL;
	p = printed(&d);
	expect_good(p);
	EXPECT_MEM(cfg.grants, d.grants, sizeof(*d.grants));
	config_release(&d);
	d.grants = cfg.grants;
	d.grants_n = cfg.grants_n;
	d.named = true;
	d.numbered = true;
	EXPECT_MEM(&cfg, &d, sizeof(d));
	free(p);
}

TEST(dev_with_a_path_that_is_too_long)
{
	char data[CONFIG_PATH_MAX + 1];

	memset(data, 'd', sizeof(data));
	data[CONFIG_PATH_MAX] = '\0';
	config_release(&cfg);
	config_default(&cfg);
	EXPECT_RC(config_dev(&cfg, data, NULL), RC_INVALID);
	data[CONFIG_PATH_MAX - 5] = '\0';
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(config_dev(&cfg, data, &why), RC_INVALID);
	EXPECT_STR(why.field, "data");
	EXPECT_RC(config_dev(&cfg, "", NULL), RC_INVALID);
	EXPECT_NULL(cfg.grants);
}

TEST(the_default_place)
{
	char out[64];

	setenv("XDG_STATE_HOME", "/x", 1);
	setenv("HOME", "/h", 1);
	EXPECT_RC(config_state_dir(out, sizeof(out)), RC_OK);
	EXPECT_STR(out, "/x/holdfast");
	setenv("XDG_STATE_HOME", "relative", 1);
	EXPECT_RC(config_state_dir(out, sizeof(out)), RC_OK);
	EXPECT_STR(out, "/h/.local/state/holdfast");
	unsetenv("XDG_STATE_HOME");
	EXPECT_RC(config_state_dir(out, sizeof(out)), RC_OK);
	EXPECT_STR(out, "/h/.local/state/holdfast");
	EXPECT_RC(config_state_dir(out, 10), RC_INVALID);
	unsetenv("HOME");
	EXPECT_RC(config_state_dir(out, sizeof(out)), RC_NOT_FOUND);
}

TEST(memory_runs_out)
{
	unsigned failed = 0;
	unsigned n;
	enum rc rc;

	save(everything, sizeof(everything) - 1);
	for (n = 1;; n++) {
		config_release(&cfg);
		config_default(&cfg);
		why = (struct detail){ { 0 }, { 0 } };
		fault_alloc(n);
		rc = config_load(&cfg, path, &why);
		if (!fault_off())
			break;
		EXPECT_TRUE(rc != RC_OK);
		failed++;
	}
	EXPECT_RC(rc, RC_OK);
	EXPECT_TRUE(failed > 1);
	config_release(&cfg);
}
