#include "node/founders.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdarg.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/ca.h"
#include "node/config.h"
#include "node/node.h"
#include "objects/directory_class.h"

struct founder {
	struct member member;
	struct config_address rpc;
	struct config_address peer;
	int held[2]; /* Sockets that keep the free ports until all are drawn. */
};

/* What is being made. */
struct founding {
	const struct founders *f;
	char cluster[2 * ID_BYTES + 1];
	struct identity common; /* What all identities share. */
	struct founder founder[MEMBERS_MAX];
	struct member members[MEMBERS_MAX];
	struct ca *ca;
};

void founders_default(struct founders *f)
{
	*f = (struct founders){ .nodes = 3,
				.hosts = "127.0.0.1",
				.rpc_port = FOUNDERS_RPC_PORT,
				.peer_port = FOUNDERS_PEER_PORT,
				.shards = SHARDS_DEFAULT };
}

/* ----------------------------------------------------------------- places ---
 */

__attribute__((format(printf, 4, 5))) static enum rc path_of(
	const struct founding *g, char out[CONFIG_PATH_MAX], struct detail *why,
	const char *format, ...)
{
	size_t n = (size_t)snprintf(out, CONFIG_PATH_MAX, "%s/", g->f->dir);
	va_list ap;
	int more = 0;

	if (n < CONFIG_PATH_MAX) {
		va_start(ap, format);
		more = vsnprintf(out + n, CONFIG_PATH_MAX - n, format, ap);
		va_end(ap);
	}
	if (n + (size_t)more >= CONFIG_PATH_MAX)
		return detail_set(why, RC_INVALID, "dir",
				  "the path is too long");
	return RC_OK;
}

static enum rc make_dir(const char *path, struct detail *why)
{
	if (mkdir(path, 0700) == 0)
		return RC_OK;
	return detail_set(why, errno == ENOSPC ? RC_NO_SPACE : RC_IO, "dir",
			  "cannot make %.150s: %s", path, strerror(errno));
}

/* An empty directory may be there already. */
static enum rc take_dir(const char *path, struct detail *why)
{
	struct dirent *e;
	bool empty = true;
	DIR *d;

	if (mkdir(path, 0700) == 0)
		return RC_OK;
	if (errno != EEXIST)
		return detail_set(why, RC_IO, "dir", "cannot make %.150s: %s",
				  path, strerror(errno));
	d = opendir(path);
	if (d == NULL)
		return detail_set(why, RC_EXISTS, "dir",
				  "%.150s is there, and no directory", path);
	while ((e = readdir(d)) != NULL)
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			empty = false;
	closedir(d);
	if (!empty)
		return detail_set(why, RC_EXISTS, "dir",
				  "%.150s is not empty: a new cluster needs a "
				  "directory of its own",
				  path);
	return RC_OK;
}

static enum rc make_dirs(const struct founding *g, struct detail *why)
{
	static const char *const shared[] = { "ca", "client" };
	char path[CONFIG_PATH_MAX];
	enum rc rc = take_dir(g->f->dir, why);
	unsigned i;

	for (i = 0; i < ARRAY_LEN(shared) && rc == RC_OK; i++) {
		rc = path_of(g, path, why, "%s", shared[i]);
		if (rc == RC_OK)
			rc = make_dir(path, why);
	}
	for (i = 0; i < g->f->nodes && rc == RC_OK; i++) {
		rc = path_of(g, path, why, "%s", g->members[i].name);
		if (rc == RC_OK)
			rc = make_dir(path, why);
		if (rc == RC_OK)
			rc = path_of(g, path, why, "%s/tls",
				     g->members[i].name);
		if (rc == RC_OK)
			rc = make_dir(path, why);
	}
	return rc;
}

/* -------------------------------------------------------------- addresses ---
 */

/* The host of the i-th node; a single one is that of all. */
static enum rc host_of(const char *hosts, unsigned i, char *out, size_t n,
		       struct detail *why)
{
	size_t len = strcspn(hosts, ",");

	for (; i > 0 && hosts[len] == ','; i--) {
		hosts += len + 1;
		len = strcspn(hosts, ",");
	}
	if (len == 0 || len >= n)
		return detail_set(why, RC_INVALID, "host",
				  "a host is missing or too long");
	memcpy(out, hosts, len);
	out[len] = '\0';
	return RC_OK;
}

static unsigned hosts_count(const char *hosts)
{
	unsigned n = 1;

	for (; *hosts != '\0'; hosts++)
		n += *hosts == ',';
	return n;
}

/* Below those that the kernel gives to whoever connects: one of those may be
 * taken by then, or while a node is down. */
#define FREE_PORT_FIRST 10240u
#define FREE_PORT_LAST  32767u
#define FREE_PORT_TRIES 256u

static int port_try(const struct addrinfo *at, uint16_t port, int *held)
{
	struct sockaddr_storage a;
	int e;

	memcpy(&a, at->ai_addr, at->ai_addrlen);
	/* Both families have the port in the same place. */
	((struct sockaddr_in *)&a)->sin_port = htons(port);
	*held = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (*held < 0)
		return errno;
	if (bind(*held, (const struct sockaddr *)&a, at->ai_addrlen) == 0)
		return 0;
	e = errno;
	close(*held);
	*held = -1;
	return e;
}

/* A port that nobody uses now, held by a socket until all are drawn. */
static enum rc port_draw(const char *host, uint16_t *port, int *held,
			 struct detail *why)
{
	const struct addrinfo hints = { .ai_family = AF_UNSPEC,
					.ai_socktype = SOCK_STREAM };
	struct addrinfo *list = NULL;
	unsigned tries = FREE_PORT_TRIES;
	int e = getaddrinfo(host, "0", &hints, &list);

	if (e != 0)
		return detail_set(why, RC_INVALID, "host", "%.100s: %s", host,
				  gai_strerror(e));
	do {
		uint16_t r = 0;

		if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
			r = (uint16_t)(tries * 89u);
		*port = (uint16_t)(FREE_PORT_FIRST +
				   r % (FREE_PORT_LAST - FREE_PORT_FIRST + 1));
		e = port_try(list, *port, held);
	} while (e == EADDRINUSE && --tries > 0);
	freeaddrinfo(list);
	if (e != 0)
		return detail_set(why, RC_INVALID, "host",
				  "there is no free port on %.100s: %s", host,
				  strerror(e));
	return RC_OK;
}

static enum rc address_make(const struct founding *g, unsigned i,
			    uint16_t first, struct config_address *out,
			    int *held, struct detail *why)
{
	bool alone = hosts_count(g->f->hosts) > 1; /* On its host. */
	uint32_t port = first + (alone ? 0u : i);
	bool colons;
	char host[256];
	char text[300];
	uint16_t drawn = 0;
	enum rc rc = host_of(g->f->hosts, i, host, sizeof(host), why);

	if (rc == RC_OK && first == 0) {
		rc = port_draw(host, &drawn, held, why);
		port = rc == RC_OK ? drawn : 0;
	}
	if (rc != RC_OK)
		return rc;
	colons = strchr(host, ':') != NULL;
	snprintf(text, sizeof(text), "%s%s%s:%" PRIu32, colons ? "[" : "", host,
		 colons ? "]" : "", port);
	if (config_address_parse(text, out) != RC_OK)
		return detail_set(why, RC_INVALID, "host",
				  "`%.100s` is no address", text);
	return RC_OK;
}

static bool same_address(const struct config_address *a,
			 const struct config_address *b)
{
	return a->port == b->port && strcmp(a->host, b->host) == 0;
}

/* Two of them on one port would fail only when they start. */
static enum rc addresses_check(const struct founding *g, struct detail *why)
{
	const struct config_address *all[2 * MEMBERS_MAX];
	unsigned n = 0;
	unsigned i;
	unsigned k;

	for (i = 0; i < g->f->nodes; i++) {
		all[n++] = &g->founder[i].rpc;
		all[n++] = &g->founder[i].peer;
	}
	for (i = 0; i < n; i++)
		for (k = 0; k < i; k++)
			if (same_address(all[i], all[k]))
				return detail_set(why, RC_INVALID, "host",
						  "%.100s:%u would be used "
						  "twice",
						  all[i]->host,
						  (unsigned)all[i]->port);
	return RC_OK;
}

static enum rc addresses_make(struct founding *g, struct detail *why)
{
	unsigned hosts = hosts_count(g->f->hosts);
	enum rc rc = RC_OK;
	unsigned i;

	if (hosts != 1 && hosts != g->f->nodes)
		return detail_set(why, RC_INVALID, "host",
				  "one host for all nodes, or one for each");
	for (i = 0; i < g->f->nodes && rc == RC_OK; i++) {
		struct founder *p = &g->founder[i];

		rc = address_make(g, i, g->f->rpc_port, &p->rpc, &p->held[0],
				  why);
		if (rc == RC_OK)
			rc = address_make(g, i, g->f->peer_port, &p->peer,
					  &p->held[1], why);
	}
	return rc == RC_OK ? addresses_check(g, why) : rc;
}

static void ports_release(struct founding *g)
{
	unsigned i;
	unsigned k;

	for (i = 0; i < MEMBERS_MAX; i++)
		for (k = 0; k < 2; k++)
			if (g->founder[i].held[k] > 0)
				close(g->founder[i].held[k]);
}

/* -------------------------------------------------------------- identities ---
 */

static enum rc draw(uint8_t id[ID_BYTES], struct detail *why)
{
	if (getrandom(id, ID_BYTES, 0) == (ssize_t)ID_BYTES)
		return RC_OK;
	return detail_set(why, RC_INTERNAL, NULL,
			  "the kernel gives no randomness: %s",
			  strerror(errno));
}

static enum rc identities_draw(struct founding *g, struct detail *why)
{
	enum rc rc;
	unsigned i;

	g->common = (struct identity){ .shards = g->f->shards,
				       .segment_bytes = SEGMENT_BYTES_DEFAULT };
	rc = draw(g->common.cluster_id, why);
	if (rc == RC_OK)
		rc = draw(g->common.hash_key, why);
	hex_encode(g->common.cluster_id, ID_BYTES, g->cluster);
	for (i = 0; i < g->f->nodes && rc == RC_OK; i++) {
		struct member *m = &g->members[i];

		m->id = i + 1;
		snprintf(m->name, sizeof(m->name), "node%u", i + 1);
		rc = draw(m->incarnation, why);
	}
	return rc;
}

static enum rc data_format(const struct founding *g, unsigned i,
			   struct detail *why)
{
	const struct member *m = &g->members[i];
	struct identity id = g->common;
	char path[CONFIG_PATH_MAX];
	enum rc rc = path_of(g, path, why, "%s/data", m->name);

	id.node_id = m->id;
	memcpy(id.node_name, m->name, sizeof(id.node_name));
	memcpy(id.incarnation, m->incarnation, ID_BYTES);
	if (rc == RC_OK)
		rc = node_make(path, &id, g->members, g->f->nodes, why);
	return rc;
}

/* ------------------------------------------------------------- certificates
 * ---
 */

static enum rc authority_make(struct founding *g, struct detail *why)
{
	char cert[CONFIG_PATH_MAX];
	char key[CONFIG_PATH_MAX];
	enum rc rc = ca_new(g->cluster, &g->ca, why);

	if (rc == RC_OK)
		rc = path_of(g, cert, why, "ca/ca.pem");
	if (rc == RC_OK)
		rc = path_of(g, key, why, "ca/ca.key");
	if (rc == RC_OK)
		rc = ca_save(g->ca, cert, key, why);
	return rc;
}

/* DIR/`dir`/ca.pem, NAME.pem and NAME.key. */
static enum rc certificate_make(const struct founding *g, enum ca_use use,
				const char *uri_path, const char *dir,
				const char *name, struct detail *why)
{
	char ca[CONFIG_PATH_MAX];
	char cert[CONFIG_PATH_MAX];
	char key[CONFIG_PATH_MAX];
	enum rc rc = path_of(g, ca, why, "%s/ca.pem", dir);

	if (rc == RC_OK)
		rc = path_of(g, cert, why, "%s/%s.pem", dir, name);
	if (rc == RC_OK)
		rc = path_of(g, key, why, "%s/%s.key", dir, name);
	if (rc == RC_OK)
		rc = ca_save(g->ca, ca, NULL, why);
	if (rc == RC_OK)
		rc = ca_issue(g->ca, use, uri_path, CA_LEAF_DAYS, cert, key,
			      why);
	return rc;
}

static enum rc node_certificate(const struct founding *g, unsigned i,
				struct detail *why)
{
	char uri_path[32];
	char dir[96];

	snprintf(uri_path, sizeof(uri_path), "node/%" PRIu64, g->members[i].id);
	snprintf(dir, sizeof(dir), "%s/tls", g->members[i].name);
	return certificate_make(g, CA_NODE, uri_path, dir, "node", why);
}

/* ----------------------------------------------------------- configurations
 * ---
 */

static const char client_path[] = "tenant/default/env/dev/client/admin";

static void say_address(FILE *out, const char *key,
			const struct config_address *a)
{
	bool colons = strchr(a->host, ':') != NULL;

	fprintf(out, "%s: \"%s%s%s:%u\"\n", key, colons ? "[" : "", a->host,
		colons ? "]" : "", (unsigned)a->port);
}

static void say_peers(FILE *out, const struct founding *g, unsigned self)
{
	unsigned i;

	fprintf(out, "peers:\n");
	for (i = 0; i < g->f->nodes; i++) {
		if (i == self)
			continue;
		fprintf(out, "  - id: %" PRIu64 "\n    name: %s\n",
			g->members[i].id, g->members[i].name);
		say_address(out, "    peer", &g->founder[i].peer);
		say_address(out, "    rpc", &g->founder[i].rpc);
	}
}

static void say_grant(FILE *out, const char *principal, const char *tenant,
		      const char *env, const char *cls, const char *rights)
{
	fprintf(out,
		"  - principal: \"%s\"\n"
		"    tenant: %s\n"
		"    env: %s\n"
		"    class: \"%s\"\n"
		"    rights: [%s]\n",
		principal, tenant, env, cls, rights);
}

/* All nodes have the same, whichever of them seeds the directory. That is where
 * grants are given and taken; a certificate is confined to its own tenant and
 * environment, so it is the uid that may. */
static void say_grants(FILE *out, const struct founding *g)
{
	static const char all[] = "read, write, admin";
	char principal[PRINCIPAL_BYTES_MAX + 1];
	unsigned i;

	fprintf(out, "# Read once, when the cluster starts for the first time; "
		     "then the cluster\n# itself keeps them.\ngrants:\n");
	for (i = 0; i < g->f->nodes; i++) {
		snprintf(principal, sizeof(principal), "unix:%s:%u",
			 g->members[i].name, (unsigned)geteuid());
		say_grant(out, principal, "default", "dev", "*", all);
		say_grant(out, principal, DIRECTORY_TENANT, DIRECTORY_ENV,
			  DIRECTORY_CLASS, "read, admin");
	}
	snprintf(principal, sizeof(principal), "spiffe://%s/%s", g->cluster,
		 client_path);
	say_grant(out, principal, "default", "dev", "*", all);
}

static void say_node(FILE *out, const struct founding *g, unsigned i)
{
	const struct founder *p = &g->founder[i];

	fprintf(out,
		"# %s of the cluster %s. Relative paths are relative to this "
		"file.\n"
		"node:\n"
		"  name: %s\n"
		"  id: %" PRIu64 "\n"
		"data: data\n"
		"pid_file: holdfastd.pid\n"
		"listen:\n"
		"  socket: holdfast.sock\n",
		g->members[i].name, g->cluster, g->members[i].name,
		g->members[i].id);
	say_address(out, "  rpc", &p->rpc);
	say_address(out, "  peer", &p->peer);
	fprintf(out, "# What others reach it by.\nadvertise:\n");
	say_address(out, "  rpc", &p->rpc);
	say_address(out, "  peer", &p->peer);
	fprintf(out, "tls:\n"
		     "  ca: tls/ca.pem\n"
		     "  cert: tls/node.pem\n"
		     "  key: tls/node.key\n");
	say_peers(out, g, i);
	say_grants(out, g);
}

static void say_client(FILE *out, const struct founding *g, unsigned unused)
{
	unsigned i;

	(void)unused;
	fprintf(out,
		"# For clients of the cluster %s, as its admin. Relative paths "
		"are relative\n# to this file.\nendpoints:\n",
		g->cluster);
	for (i = 0; i < g->f->nodes; i++) {
		fprintf(out, "  - name: %s\n", g->members[i].name);
		say_address(out, "    rpc", &g->founder[i].rpc);
	}
	fprintf(out, "tls:\n"
		     "  ca: client/ca.pem\n"
		     "  cert: client/client.pem\n"
		     "  key: client/client.key\n");
}

static enum rc text_write(const char *path, const struct founding *g,
			  void (*say)(FILE *, const struct founding *,
				      unsigned),
			  unsigned i, struct detail *why)
{
	FILE *f = fopen(path, "wxe");
	bool good;

	if (f == NULL)
		return detail_set(why, RC_IO, NULL, "cannot make %.150s: %s",
				  path, strerror(errno));
	say(f, g, i);
	good = fflush(f) == 0 && fsync(fileno(f)) == 0;
	if (fclose(f) != 0 || !good)
		return detail_set(why, errno == ENOSPC ? RC_NO_SPACE : RC_IO,
				  NULL, "cannot write %.150s: %s", path,
				  strerror(errno));
	return RC_OK;
}

/* ---------------------------------------------------------------- the whole
 * ---
 */

static enum rc node_files(const struct founding *g, unsigned i,
			  struct detail *why)
{
	char path[CONFIG_PATH_MAX];
	enum rc rc = node_certificate(g, i, why);

	if (rc == RC_OK)
		rc = data_format(g, i, why);
	if (rc == RC_OK)
		rc = path_of(g, path, why, "%s/holdfast.yaml",
			     g->members[i].name);
	if (rc == RC_OK)
		rc = text_write(path, g, say_node, i, why);
	return rc;
}

static enum rc client_files(const struct founding *g, struct detail *why)
{
	char path[CONFIG_PATH_MAX];
	enum rc rc = certificate_make(g, CA_CLIENT, client_path, "client",
				      "client", why);

	if (rc == RC_OK)
		rc = path_of(g, path, why, "client.yaml");
	if (rc == RC_OK)
		rc = text_write(path, g, say_client, 0, why);
	return rc;
}

static void say_made(FILE *out, const struct founding *g)
{
	const char *dir = g->f->dir;
	unsigned i;

	fprintf(out, "cluster %s: %u nodes, %" PRIu32 " shards\n\n", g->cluster,
		g->f->nodes, g->f->shards);
	for (i = 0; i < g->f->nodes; i++)
		fprintf(out, "  holdfastd --config %s/%s/holdfast.yaml\n", dir,
			g->members[i].name);
	fprintf(out,
		"\n%s/client.yaml and %s/client/ are for those who call.\n"
		"%s/ca/ca.key signs certificates of this cluster. No node "
		"needs it: take\n%s/ca offline now.\n",
		dir, dir, dir, dir);
}

static enum rc fields_check(const struct founders *f, struct detail *why)
{
	if (f->nodes != 3 && f->nodes != 5)
		return detail_set(why, RC_INVALID, "nodes",
				  "a cluster has 3 or 5 nodes");
	if (f->shards < 1 || f->shards > SHARDS_MAX)
		return detail_set(why, RC_INVALID, "shards",
				  "there are 1 to %u shards", SHARDS_MAX);
	if (f->rpc_port + f->nodes > UINT16_MAX ||
	    f->peer_port + f->nodes > UINT16_MAX)
		return detail_set(why, RC_INVALID, "port",
				  "the ports end at 65535");
	return RC_OK;
}

static enum rc all_make(struct founding *g, struct detail *why)
{
	enum rc rc = make_dirs(g, why);
	unsigned i;

	if (rc == RC_OK)
		rc = authority_make(g, why);
	for (i = 0; i < g->f->nodes && rc == RC_OK; i++)
		rc = node_files(g, i, why);
	/* Last: who finds it finds a cluster that is whole. */
	if (rc == RC_OK)
		rc = client_files(g, why);
	return rc;
}

enum rc founders_make(const struct founders *f, FILE *out, struct detail *why)
{
	struct founding g = { .f = f };
	enum rc rc = fields_check(f, why);

	if (rc == RC_OK)
		rc = addresses_make(&g, why);
	if (rc == RC_OK)
		rc = identities_draw(&g, why);
	if (rc == RC_OK)
		rc = all_make(&g, why);
	ports_release(&g);
	ca_free(g.ca);
	if (rc == RC_OK)
		say_made(out, &g);
	return rc;
}
