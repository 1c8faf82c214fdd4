/*
 * What `holdfast init --nodes` makes, read back by those who will: config.c,
 * members.c, identity.c, and the certificates by ca.c.
 */
#include "node/founders.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/ca.h"
#include "node/config.h"
#include "node/node.h"
#include "node/os/disk_posix.h"
#include "node/os/env_uv.h"
#include "tests/lib/runner.h"

static struct founders f;
static struct detail why;
static char dir[300];
static char said[8192];

static const char *path(const char *name)
{
	static char out[4][600];
	static unsigned next;
	char *p = out[next++ % 4];

	snprintf(p, sizeof(out[0]), "%s/%s", dir, name);
	return p;
}

static void begin(unsigned nodes)
{
	EXPECT_RC(crypto_init(), RC_OK);
	founders_default(&f);
	snprintf(dir, sizeof(dir), "%s/c", runner_dir());
	f.dir = dir;
	f.nodes = nodes;
	f.shards = 2;
	why = (struct detail){ { 0 }, { 0 } };
}

static enum rc make(void)
{
	FILE *out;
	enum rc rc;

	memset(said, 0, sizeof(said));
	out = fmemopen(said, sizeof(said), "w");
	EXPECT_NOT_NULL(out);
	rc = founders_make(&f, out, &why);
	EXPECT_INT(fclose(out), 0);
	return rc;
}

static void expect_made(void)
{
	if (make() != RC_OK)
		FAIL("%s: %s", why.field, why.text);
}

static void load(struct config *cfg, unsigned node)
{
	char name[64];

	snprintf(name, sizeof(name), "node%u/holdfast.yaml", node);
	config_default(cfg);
	if (config_load(cfg, path(name), &why) != RC_OK)
		FAIL("%s: %s", why.field, why.text);
}

static void identity_of(const struct config *cfg, struct identity *id)
{
	struct disk_posix *d;

	EXPECT_RC(disk_posix_open(cfg->data, false, &d, &why), RC_OK);
	EXPECT_RC(identity_read(disk_posix_disk(d), id, &why), RC_OK);
	disk_posix_close(d);
}

static void env_gone(struct env_uv *e)
{
	(void)e;
}

/* The members that a data directory knows. */
static size_t members_of(const struct config *cfg, struct member *out)
{
	static struct env_uv env;
	struct disk_posix *d;
	struct identity id;
	struct members *m;
	uv_loop_t loop;
	size_t n;
	size_t i;

	memset(&env, 0, sizeof(env));
	identity_of(cfg, &id);
	EXPECT_INT(uv_loop_init(&loop), 0);
	EXPECT_RC(env_uv_open(&env, &loop), RC_OK);
	EXPECT_RC(disk_posix_open(cfg->data, false, &d, &why), RC_OK);
	EXPECT_RC(members_open(&env.env, disk_posix_disk(d), &id, &m, &why),
		  RC_OK);
	n = members_count(m);
	for (i = 0; i < n; i++)
		out[i] = *members_at(m, i);
	members_discard(m);
	disk_posix_close(d);
	env_uv_close(&env, env_gone);
	uv_run(&loop, UV_RUN_DEFAULT);
	EXPECT_INT(uv_loop_close(&loop), 0);
	return n;
}

static void expect_node(unsigned node, const struct identity *first,
			const struct member *members)
{
	struct member known[MEMBERS_MAX];
	struct identity id;
	struct config cfg;
	char want[64];

	load(&cfg, node);
	snprintf(want, sizeof(want), "node%u", node);
	EXPECT_STR(cfg.node_name, want);
	EXPECT_UINT(cfg.node_id, node);
	EXPECT_TRUE(cfg.named && cfg.numbered);
	EXPECT_UINT(cfg.peers_n, f.nodes - 1);
	EXPECT_UINT(cfg.grants_n, 2 * f.nodes + 1);
	identity_of(&cfg, &id);
	EXPECT_STR(id.node_name, want);
	EXPECT_UINT(id.node_id, node);
	EXPECT_UINT(id.shards, 2);
	EXPECT_UINT(id.boot, 0);
	EXPECT_MEM(id.cluster_id, first->cluster_id, ID_BYTES);
	EXPECT_MEM(id.hash_key, first->hash_key, ID_BYTES);
	EXPECT_UINT(members_of(&cfg, known), f.nodes);
	EXPECT_MEM(known, members, f.nodes * sizeof(known[0]));
	EXPECT_MEM(id.incarnation, known[node - 1].incarnation, ID_BYTES);
	config_release(&cfg);
}

static void expect_cluster(unsigned nodes)
{
	struct member members[MEMBERS_MAX];
	struct identity first;
	struct config cfg;
	unsigned i;
	unsigned k;

	begin(nodes);
	expect_made();
	load(&cfg, 1);
	identity_of(&cfg, &first);
	EXPECT_UINT(members_of(&cfg, members), nodes);
	config_release(&cfg);
	for (i = 1; i <= nodes; i++)
		expect_node(i, &first, members);
	for (i = 0; i < nodes; i++)
		for (k = 0; k < i; k++)
			EXPECT_TRUE(memcmp(members[i].incarnation,
					   members[k].incarnation,
					   ID_BYTES) != 0);
	EXPECT_HAS(said, "offline");
	EXPECT_HAS(said, dir);
}

TEST(three)
{
	expect_cluster(3);
}

TEST(five)
{
	expect_cluster(5);
}

TEST(default_addresses)
{
	struct config cfg;

	begin(3);
	expect_made();
	load(&cfg, 2);
	EXPECT_STR(cfg.listen_rpc.host, "127.0.0.1");
	EXPECT_UINT(cfg.listen_rpc.port, 7102);
	EXPECT_UINT(cfg.listen_peer.port, 7202);
	EXPECT_UINT(cfg.advertise_rpc.port, 7102);
	EXPECT_UINT(cfg.peers[0].id, 1);
	EXPECT_UINT(cfg.peers[0].peer.port, 7201);
	EXPECT_UINT(cfg.peers[0].rpc.port, 7101);
	EXPECT_UINT(cfg.peers[1].id, 3);
	EXPECT_UINT(cfg.peers[1].peer.port, 7203);
	config_release(&cfg);
}

TEST(a_host_for_each)
{
	struct config cfg;

	begin(3);
	f.hosts = "a.example,::1,10.0.0.3";
	f.rpc_port = 1000;
	f.peer_port = 2000;
	expect_made();
	load(&cfg, 2);
	EXPECT_STR(cfg.listen_peer.host, "::1");
	EXPECT_UINT(cfg.listen_peer.port, 2000);
	EXPECT_UINT(cfg.listen_rpc.port, 1000);
	EXPECT_STR(cfg.peers[0].peer.host, "a.example");
	EXPECT_STR(cfg.peers[1].rpc.host, "10.0.0.3");
	EXPECT_UINT(cfg.peers[1].rpc.port, 1000);
	config_release(&cfg);
}

TEST(free_ports_are_free)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	uint16_t seen[6];
	unsigned n = 0;
	unsigned i;
	unsigned k;

	begin(3);
	f.rpc_port = 0;
	f.peer_port = 0;
	expect_made();
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	for (i = 1; i <= 3; i++) {
		struct config cfg;

		load(&cfg, i);
		seen[n++] = cfg.listen_rpc.port;
		seen[n++] = cfg.listen_peer.port;
		config_release(&cfg);
	}
	for (i = 0; i < n; i++) {
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

		/* Not one of those that outgoing connections take. */
		EXPECT_TRUE(seen[i] >= 10240 && seen[i] <= 32767);
		for (k = 0; k < i; k++)
			EXPECT_TRUE(seen[k] != seen[i]);
		at.sin_port = htons(seen[i]);
		EXPECT_INT(bind(fd, (struct sockaddr *)&at, sizeof(at)), 0);
		close(fd);
	}
}

/* Who may what: the uid everywhere, the certificate in default/dev. */
TEST(grants)
{
	struct config cfg;
	char want[300];
	char cluster[2 * ID_BYTES + 1];
	struct identity id;
	const struct grant *last;
	unsigned i;

	begin(3);
	expect_made();
	load(&cfg, 3);
	identity_of(&cfg, &id);
	hex_encode(id.cluster_id, ID_BYTES, cluster);
	for (i = 0; i < 3; i++) {
		snprintf(want, sizeof(want), "unix:node%u:%u", i + 1,
			 (unsigned)geteuid());
		EXPECT_STR(cfg.grants[2 * i].principal, want);
		EXPECT_STR(cfg.grants[2 * i].tenant, "default");
		EXPECT_STR(cfg.grants[2 * i].cls, "*");
		EXPECT_UINT(cfg.grants[2 * i].rights,
			    RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN);
		EXPECT_STR(cfg.grants[2 * i + 1].principal, want);
		EXPECT_STR(cfg.grants[2 * i + 1].tenant, "holdfast");
		EXPECT_STR(cfg.grants[2 * i + 1].cls, "directory");
	}
	last = &cfg.grants[6];
	snprintf(want, sizeof(want),
		 "spiffe://%s/tenant/default/env/dev/client/admin", cluster);
	EXPECT_STR(last->principal, want);
	EXPECT_STR(last->env, "dev");
	EXPECT_STR(last->cls, "*");
	config_release(&cfg);
}

TEST(the_authority_is_kept)
{
	struct ca *ca = NULL;
	struct identity id;
	struct config cfg;
	char cluster[2 * ID_BYTES + 1];

	begin(3);
	expect_made();
	load(&cfg, 1);
	identity_of(&cfg, &id);
	hex_encode(id.cluster_id, ID_BYTES, cluster);
	EXPECT_RC(ca_load(path("ca/ca.pem"), path("ca/ca.key"), &ca, &why),
		  RC_OK);
	EXPECT_STR(ca_cluster(ca), cluster);
	ca_free(ca);
	config_release(&cfg);
}

static void expect_bad(enum rc rc, const char *field, const char *part)
{
	runner_context("%s", part);
	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(make(), rc);
	EXPECT_STR(why.field, field);
	EXPECT_HAS(why.text, part);
	EXPECT_STR(said, "");
	runner_context("%s", "");
}

TEST(fields)
{
	static const unsigned counts[] = { 0, 1, 2, 4, 6, 99 };
	size_t i;

	for (i = 0; i < sizeof(counts) / sizeof(counts[0]); i++) {
		begin(counts[i]);
		expect_bad(RC_INVALID, "nodes", "3 or 5");
	}
	begin(3);
	f.shards = 0;
	expect_bad(RC_INVALID, "shards", "1 to 64");
	f.shards = SHARDS_MAX + 1;
	expect_bad(RC_INVALID, "shards", "1 to 64");
	begin(3);
	f.rpc_port = 65534;
	expect_bad(RC_INVALID, "port", "65535");
	begin(3);
	f.rpc_port = 7200;
	expect_bad(RC_INVALID, "host", "127.0.0.1:7201 would be used twice");
	begin(3);
	f.hosts = "a,b";
	expect_bad(RC_INVALID, "host", "one for each");
	f.hosts = "a,,c";
	expect_bad(RC_INVALID, "host", "missing");
	f.hosts = "";
	expect_bad(RC_INVALID, "host", "missing");
	f.hosts = "a b";
	expect_bad(RC_INVALID, "host", "no address");
	f.hosts = "a,b,a";
	expect_bad(RC_INVALID, "host", "twice");
	f.hosts = "203.0.113.1";
	f.rpc_port = 0;
	expect_bad(RC_INVALID, "host", "no free port");
	f.hosts = "no.such.host.invalid";
	expect_bad(RC_INVALID, "host", "no.such.host.invalid");
	EXPECT_INT(access(dir, F_OK), -1);
}

TEST(the_directory)
{
	static char long_dir[CONFIG_PATH_MAX + 10];
	FILE *file;

	begin(3);
	EXPECT_INT(mkdir(dir, 0700), 0);
	expect_made(); /* An empty one is fine. */
	expect_bad(RC_EXISTS, "dir", "not empty");
	begin(3);
	f.dir = path("no/such");
	expect_bad(RC_IO, "dir", "cannot make");
	file = fopen(path("file"), "w");
	EXPECT_NOT_NULL(file);
	fclose(file);
	f.dir = path("file");
	expect_bad(RC_EXISTS, "dir", "no directory");
	memset(long_dir, 'd', sizeof(long_dir) - 1);
	f.dir = long_dir;
	EXPECT_RC(make(), RC_IO);
}

/* Longer than a socket's path may be is found when the node starts; longer than
 * any path may be is found here. */
TEST(a_path_that_is_too_long)
{
	static char deep[CONFIG_PATH_MAX];
	size_t n;
	size_t part;

	begin(3);
	n = (size_t)snprintf(deep, sizeof(deep), "%s", runner_dir());
	while (n < sizeof(deep) - 7) {
		part = sizeof(deep) - 7 - n - 1;
		/* Never a rest that is too short for a name. */
		if (part > 200)
			part = part < 210 ? 100 : 200;
		deep[n] = '/';
		memset(deep + n + 1, 'd', part);
		n += part + 1;
		deep[n] = '\0';
		EXPECT_INT(mkdir(deep, 0700), 0);
	}
	f.dir = deep;
	EXPECT_RC(make(), RC_INVALID);
	EXPECT_STR(why.field, "dir");
	EXPECT_HAS(why.text, "too long");
}
