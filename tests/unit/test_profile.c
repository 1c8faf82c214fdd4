#include "client/profile.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "tests/lib/fault.h"
#include "tests/lib/runner.h"

static struct profile f;
static struct detail why;

static enum rc parse(const char *text)
{
	memset(&why, 0, sizeof(why));
	return profile_parse(text, strlen(text), "/etc/hf/client.yaml", &f,
			     &why);
}

static void refused(const char *text, const char *sentence)
{
	runner_context("%.40s", text);
	EXPECT_RC(parse(text), RC_INVALID);
	EXPECT_HAS(why.text, "/etc/hf/client.yaml");
	EXPECT_HAS(why.text, sentence);
}

#define TLS "tls: {ca: a, cert: b, key: c}\n"

TEST(as_init_writes_it)
{
	EXPECT_RC(parse("# For clients of the cluster c, as its admin. Paths\n"
			"# are relative to this file.\n"
			"endpoints:\n"
			"  - name: node1\n"
			"    rpc: \"127.0.0.1:7101\"\n"
			"  - name: node2\n"
			"    rpc: \"[::1]:7102\"\n"
			"tls:\n"
			"  ca: client/ca.pem\n"
			"  cert: /abs/client.pem\n"
			"  key: client/client.key\n"),
		  RC_OK);
	EXPECT_UINT(f.endpoints_n, 2);
	EXPECT_STR(f.endpoints[0].name, "node1");
	EXPECT_STR(f.endpoints[0].rpc, "127.0.0.1:7101");
	EXPECT_STR(f.endpoints[1].rpc, "[::1]:7102");
	EXPECT_STR(f.ca, "/etc/hf/client/ca.pem");
	EXPECT_STR(f.cert, "/abs/client.pem");
	EXPECT_STR(f.key, "/etc/hf/client/client.key");
}

TEST(other_ways_to_write_it)
{
	EXPECT_RC(parse("---\r\n"
			"tls: { ca: 'it''s', cert: \"b\\\\\\\"c\" , key: k }  "
			"# x\n"
			"\n"
			"endpoints:   # those\n"
			"- {rpc: host.example:1, name: n-1}\n"
			"-   rpc:   h:65535   # a comment\n"
			"    name: 'n # 2'\n"
			"- {name: \"a, b\", rpc: x/y.sock}"),
		  RC_OK);
	EXPECT_UINT(f.endpoints_n, 3);
	EXPECT_STR(f.ca, "/etc/hf/it's");
	EXPECT_STR(f.cert, "/etc/hf/b\\\"c");
	EXPECT_STR(f.key, "/etc/hf/k");
	EXPECT_STR(f.endpoints[0].name, "n-1");
	EXPECT_STR(f.endpoints[1].name, "n # 2");
	EXPECT_STR(f.endpoints[1].rpc, "h:65535");
	EXPECT_STR(f.endpoints[2].name, "a, b");
	EXPECT_STR(f.endpoints[2].rpc, "/etc/hf/x/y.sock");
	/* Sockets need no certificate. */
	EXPECT_RC(parse("endpoints:\n- rpc: /run/h.sock\n"), RC_OK);
	EXPECT_STR(f.ca, "");
	/* A value that holds what means something elsewhere. */
	EXPECT_RC(parse("endpoints:\n- rpc: /a#b/-c:d\n"), RC_OK);
	EXPECT_STR(f.endpoints[0].rpc, "/a#b/-c:d");
}

TEST(what_is_wrong_is_said_with_its_line)
{
	refused("", "names no endpoints");
	refused("endpoints:\n" TLS, "names no endpoints");
	refused("nodes:\n", ":1: there are endpoints and tls, no `nodes'");
	refused(TLS "endpoints:\n- {rpc: a}\n", ":3: rpc is host:port");
	refused(TLS TLS, ":2: `tls' comes twice");
	refused(TLS "endpoints: []\n", "stands below");
	refused(TLS "endpoints:\n- name: a\n", "an endpoint has no rpc");
	refused(TLS "endpoints:\n- name: a\n  name: b\n", "each once");
	refused(TLS "endpoints:\n- nome: a\n", "not `nome'");
	refused(TLS "endpoints:\n- name: a\n   rpc: b:1\n", "indented");
	refused(TLS "endpoints:\n  rpc: b:1\n", "belongs to nothing");
	refused("  rpc: b:1\n", "belongs to nothing");
	refused(TLS "endpoints:\n- name:\n", "a value is missing");
	refused(TLS "endpoints:\n- name: # none\n", "a value is missing");
	refused(TLS "endpoints:\n- name: ''\n", "1 to 64");
	refused(TLS "endpoints:\n- rpc b:1\n", "a key and a colon");
	refused(TLS "endpoints:\n- rpc:b:1\n", "a key and a colon");
	refused(TLS "endpoints:\n- rpc: &x b:1\n", "does not begin with `&'");
	refused(TLS "endpoints:\n- rpc: |\n", "does not begin with `|'");
	refused(TLS "endpoints:\n- rpc: - b\n", "does not begin with `-'");
	refused(TLS "endpoints:\n- rpc: a: b\n", "not a map");
	refused(TLS "endpoints:\n- rpc: \"b:1\n", "not closed");
	refused(TLS "endpoints:\n- rpc: \"\n", "not closed");
	refused(TLS "endpoints:\n- rpc: \"b:1\" x\n", "something behind");
	refused(TLS "endpoints:\n- rpc: \"\\n:1\"\n", "in quotes");
	refused(TLS "endpoints:\n- {rpc: b:1\n", "`,' or `}'");
	refused(TLS "endpoints:\n- {rpc: b:1} x\n", "something behind");
	refused(TLS "endpoints:\n- {}\n", "a key and a colon");
	refused(TLS "endpoints:\n\t- rpc: b:1\n", "a tab");
	refused("tls:\n- ca: a\n", "only endpoints is a list");
	refused("tls: {ca: a}\nendpoints:\n- {rpc: /s}\n", "ca, cert and key");
	refused("tls: {ca: a, ca: b}\n", "each once");
	refused("tls: {ca: ''}\n", "is empty");
	refused("tls: x\n", "stands below");
	refused("endpoints:\n- {rpc: b:1}\n", "needs tls");
}

TEST(bounds)
{
	static char text[200000];
	char *at = text + sprintf(text, "endpoints:\n");
	int i;

	for (i = 0; i < 9; i++)
		at += sprintf(at, "- rpc: /s%d\n", i);
	refused(text, ":10: there are at most 8");
	at = text + sprintf(text, "endpoints:\n- name: ");
	memset(at, 'n', 65);
	(void)sprintf(at + 65, "\n  rpc: /s\n");
	refused(text, "1 to 64 bytes");
	at = text + sprintf(text, "endpoints:\n- rpc: /");
	memset(at, 's', 1100);
	at[1100] = '\0';
	refused(text, "more than 1023 bytes");
	at = text + sprintf(text, "endpoints:\n- rpc: '/");
	memset(at, 's', 1100);
	(void)sprintf(at + 1100, "'");
	refused(text, "more than 1023 bytes");
	at = text + sprintf(text, "endpoints:\n- rpc: s/");
	memset(at, 's', 1015);
	at[1015] = '\0';
	refused(text, "a path has at most");
	memset(&why, 0, sizeof(why));
	EXPECT_RC(profile_parse("a\0b", 3, "x", &f, &why), RC_INVALID);
	EXPECT_HAS(why.text, "no text");
}

/* Every beginning of a good file, and every byte of it changed: an answer, and
 * no more. */
TEST(damaged_files)
{
	static const char good[] =
		"endpoints:\n- {name: a, rpc: 'b:1'} # x\n- name: \"c\"\n"
		"  rpc: d:2\ntls:\n  ca: x\n  cert: y\n  key: z\n";
	char text[sizeof(good)];
	size_t i;
	int c;

	for (i = 0; i < sizeof(good); i++) {
		char *copy = strndup(good, i);

		EXPECT_NOT_NULL(copy);
		(void)profile_parse(copy, i, "p", &f, &why);
		free(copy);
	}
	for (i = 0; i + 1 < sizeof(good); i++) {
		memcpy(text, good, sizeof(good));
		for (c = 1; c < 256; c++) {
			text[i] = (char)c;
			(void)profile_parse(text, sizeof(good) - 1, "p", &f,
					    &why);
		}
	}
}

static void file_write(const char *path, size_t n)
{
	FILE *out = fopen(path, "w");

	EXPECT_NOT_NULL(out);
	for (; n > 0; n--)
		EXPECT_TRUE(fputc('#', out) == '#');
	EXPECT_INT(fputs("\nendpoints:\n- rpc: h.sock/\n", out) >= 0, 1);
	EXPECT_INT(fclose(out), 0);
}

TEST(files)
{
	char path[300];
	char want[320];

	(void)snprintf(path, sizeof(path), "%s/client.yaml", runner_dir());
	memset(&why, 0, sizeof(why));
	EXPECT_RC(profile_read(path, &f, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, path);
	file_write(path, 100);
	EXPECT_RC(profile_read(path, &f, &why), RC_OK);
	(void)snprintf(want, sizeof(want), "%s/h.sock/", runner_dir());
	EXPECT_STR(f.endpoints[0].rpc, want);
	fault_alloc(1);
	EXPECT_RC(profile_read(path, &f, &why), RC_NOMEM);
	EXPECT_TRUE(fault_off());
	file_write(path, PROFILE_FILE_BYTES_MAX);
	memset(&why, 0, sizeof(why));
	EXPECT_RC(profile_read(path, &f, &why), RC_INVALID);
	EXPECT_HAS(why.text, "more than");
	EXPECT_RC(profile_read(runner_dir(), &f, &why), RC_IO);
	/* Where the working directory is. */
	EXPECT_RC(profile_parse("endpoints:\n- rpc: a/b\n", 22, "c.yaml", &f,
				&why),
		  RC_OK);
	EXPECT_STR(f.endpoints[0].rpc, "a/b");
}

TEST(host_and_port)
{
	static const char *const bad[] = {
		"",     "a",    ":1",    "a:",   "a:0",  "a:65536", "a:x",
		"a:1x", "a:-1", "::1:5", "[]:1", "[a:1", "/a:1",    "a:123456"
	};
	char host[8];
	char port[6];
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		runner_context("%s", bad[i]);
		EXPECT_RC(profile_host_port(bad[i], host, sizeof(host), port),
			  RC_INVALID);
	}
	EXPECT_RC(profile_host_port("1234567:1", host, sizeof(host), port),
		  RC_OK);
	EXPECT_STR(host, "1234567");
	EXPECT_STR(port, "1");
	EXPECT_RC(profile_host_port("12345678:1", host, sizeof(host), port),
		  RC_INVALID);
	EXPECT_RC(profile_host_port("[::1]:65535", host, sizeof(host), port),
		  RC_OK);
	EXPECT_STR(host, "::1");
	EXPECT_STR(port, "65535");
}
