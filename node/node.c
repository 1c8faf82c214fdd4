#include "node/node.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "node/base/check.h"
#include "node/base/crypto.h"
#include "node/base/limits.h"
#include "node/base/secret.h"
#include "node/core/directory.h"
#include "node/metrics.h"
#include "node/notify.h"
#include "node/os/disk_posix.h"
#include "node/os/env_uv.h"
#include "node/os/preempt.h"
#include "node/peer.h"
#include "node/rpc.h"

#define NODE_MAGIC 0x4e4f4445u
#define EXPIRES_DAYS                                            \
	30u /* A certificate with less left is worth a warning. \
	     */
#define DAY_MS 86400000u

struct node {
	uint32_t magic;
	const struct config *cfg;
	uv_loop_t loop;
	struct env_uv env;
	struct preempt preempt;
	struct disk_posix *posix;
	struct disk *disk;
	struct identity id; /* As it was before this boot. */
	struct tls_context *tls;
	struct peers *peers; /* NULL: this node is alone. */
	struct bind *bind;
	struct core *core;
	struct directory *directory;
	struct rpc *rpc;
	struct metrics *metrics;
	uv_signal_t sigterm;
	uv_signal_t sigint;
	uv_signal_t sighup;
	bool stopping;
};

static void log_to_stderr(void *arg, const char *line, size_t n)
{
	(void)arg;
	/* One write per line: lines of two processes do not mix. A full disk
	 * or a closed stderr must not stop the node. */
	if (write(STDERR_FILENO, line, n) < 0)
		return;
}

static uint64_t log_wall_ms(void *arg)
{
	return env_wall_ms(arg);
}

static int exit_code_of(enum rc rc)
{
	static const struct {
		enum rc rc;
		int code;
	} codes[] = {
		{ RC_OK, NODE_EXIT_OK },
		{ RC_EXISTS, NODE_EXIT_BUSY },
		{ RC_INVALID, NODE_EXIT_CONFIG },
		{ RC_CORRUPT, NODE_EXIT_DATA },
		{ RC_FOREIGN, NODE_EXIT_DATA },
		{ RC_VERSION, NODE_EXIT_DATA },
		{ RC_NOT_FOUND, NODE_EXIT_DATA },
		{ RC_IO, NODE_EXIT_FAIL_STOP },
		{ RC_NO_SPACE, NODE_EXIT_FAIL_STOP },
	};
	size_t i;

	for (i = 0; i < ARRAY_LEN(codes); i++)
		if (codes[i].rc == rc)
			return codes[i].code;
	return NODE_EXIT_OTHER;
}

static int complain(enum rc rc, const struct detail *why)
{
	fprintf(stderr, "holdfastd: %s%s%s\n", why->field,
		why->field[0] != '\0' ? ": " : "",
		why->text[0] != '\0' ? why->text : rc_text(rc));
	return exit_code_of(rc);
}

/* A start that failed ends here: nothing was promised to anybody, and what is
 * open ends with the process. */
_Noreturn static void give_up(enum rc rc, const struct detail *why)
{
	int code = complain(rc, why);

	fflush(NULL);
	_exit(code);
}

/* The data directory's parents, mode 0700 like itself. */
static enum rc make_dirs(const char *path, struct detail *why)
{
	char part[CONFIG_PATH_MAX];
	char *p;

	snprintf(part, sizeof(part), "%s", path);
	for (p = part + 1;; p++) {
		char c = *p;

		if (c != '/' && c != '\0')
			continue;
		*p = '\0';
		if (mkdir(part, 0700) != 0 && errno != EEXIST)
			return detail_set(why, RC_IO, "data",
					  "cannot make %.150s: %s", part,
					  strerror(errno));
		*p = c;
		if (c == '\0')
			return RC_OK;
	}
}

/* The process id, for scripts; gone when the node has ended well. */
static enum rc pid_write(const char *path, struct detail *why)
{
	FILE *f;

	if (path[0] == '\0')
		return RC_OK;
	f = fopen(path, "we");
	if (f == NULL)
		return detail_set(why, RC_IO, "pid_file", "%.150s: %s", path,
				  strerror(errno));
	fprintf(f, "%ld\n", (long)getpid());
	if (fclose(f) != 0)
		return detail_set(why, RC_IO, "pid_file", "%.150s: %s", path,
				  strerror(errno));
	return RC_OK;
}

/* A supervisor that does not listen is no reason to stop. */
static void supervisor_tell(const char *state)
{
	struct detail why = { { 0 }, { 0 } };

	if (notify_send(state, &why) != RC_OK)
		LOG_WARN("supervisor_deaf", F("state", state),
			 F("why", why.text));
}

/* Stopping, in order: no new connections, leaderships are handed over, calls
 * end, state is checkpointed, the links to the others close, connections
 * close, handles close, the loop ends. */

static void env_closed(struct env_uv *e)
{
	(void)e;
}

static void signal_closed(uv_handle_t *h)
{
	(void)h;
}

static void rpc_closed(void *arg)
{
	struct node *node = arg;

	CHECK_OBJ(node, NODE_MAGIC);
	node->rpc = NULL;
	uv_close((uv_handle_t *)&node->sigterm, signal_closed);
	uv_close((uv_handle_t *)&node->sigint, signal_closed);
	uv_close((uv_handle_t *)&node->sighup, signal_closed);
	if (node->metrics != NULL)
		metrics_close(node->metrics);
	env_uv_close(&node->env, env_closed);
}

static void peers_closed(void *arg)
{
	struct node *node = arg;

	CHECK_OBJ(node, NODE_MAGIC);
	node->peers = NULL;
	rpc_close(node->rpc, rpc_closed, node);
}

static void core_closed(void *arg)
{
	struct node *node = arg;

	CHECK_OBJ(node, NODE_MAGIC);
	node->core = NULL;
	directory_free(node->directory);
	node->directory = NULL;
	if (node->peers != NULL)
		peers_close(node->peers, peers_closed, node);
	else
		rpc_close(node->rpc, rpc_closed, node);
}

static void node_stop(struct node *node)
{
	if (node->stopping)
		return;
	node->stopping = true;
	LOG_INFO("node_stopping", F("node", node->cfg->node_name));
	supervisor_tell("STOPPING=1");
	rpc_stop_listening(node->rpc);
	preempt_stop(&node->preempt);
	core_close(node->core, core_closed, node);
}

static void node_signalled(uv_signal_t *s, int number)
{
	struct node *node = s->data;

	(void)number;
	CHECK_OBJ(node, NODE_MAGIC);
	node_stop(node);
}

/* Certificates. */

/* Whoever shows a certificate is the node that it names: another's, or that of
 * another cluster, would be refused by everybody, one connection at a time. */
static enum rc tls_open(const struct node *node, struct tls_context **out,
			struct detail *why)
{
	const struct config *cfg = node->cfg;
	char cluster[2 * ID_BYTES + 1];
	char want[TLS_URI_BYTES_MAX];
	struct detail said = { { 0 }, { 0 } };
	enum rc rc;

	rc = tls_context_new(cfg->tls_ca, cfg->tls_cert, cfg->tls_key, out,
			     &said);
	if (rc != RC_OK) {
		char field[16];

		snprintf(field, sizeof(field), "tls.%.8s", said.field);
		return detail_set(why, rc, field, "%s", said.text);
	}
	hex_encode(node->id.cluster_id, ID_BYTES, cluster);
	snprintf(want, sizeof(want), "spiffe://%s/node/%" PRIu64, cluster,
		 node->id.node_id);
	if (strcmp(tls_context_uri(*out), want) == 0)
		return RC_OK;
	detail_set(why, RC_INVALID, "tls.cert",
		   "it is that of %.110s, and this is %s",
		   tls_context_uri(*out), want);
	tls_context_free(*out);
	*out = NULL;
	return RC_INVALID;
}

static void tls_told(struct node *node)
{
	uint64_t now = env_wall_ms(&node->env.env);
	uint64_t end = tls_context_expires_ms(node->tls);
	uint64_t days = end > now ? (end - now) / DAY_MS : 0;

	if (days < EXPIRES_DAYS)
		LOG_WARN("certificate_expires", F("days", days));
	else
		LOG_INFO("certificate_loaded", F("days", days));
}

/* SIGHUP: new files for new connections; wrong ones change nothing. */
static void node_reload(uv_signal_t *s, int number)
{
	struct node *node = s->data;
	struct tls_context *old = node->tls;
	struct detail why = { { 0 }, { 0 } };

	(void)number;
	CHECK_OBJ(node, NODE_MAGIC);
	if (old == NULL || node->stopping)
		return;
	if (tls_open(node, &node->tls, &why) != RC_OK) {
		node->tls = old;
		LOG_ERROR("certificate_refused", F("field", why.field),
			  F("why", why.text));
		return;
	}
	if (node->peers != NULL)
		peers_tls(node->peers, node->tls);
	if (node->rpc != NULL)
		rpc_tls(node->rpc, node->tls);
	tls_context_free(old);
	tls_told(node);
}

/* Starting. */

static enum rc node_take_disk(struct node *node, bool create,
			      struct detail *why)
{
	enum rc rc =
		disk_posix_open(node->cfg->data, create, &node->posix, why);

	if (rc != RC_OK)
		return rc;
	node->disk = disk_posix_disk(node->posix);
	return node->disk->ops->lock(node->disk, why);
}

static enum rc node_make_disk(struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	struct identity id = { .node_id = cfg->node_id,
			       .shards = cfg->shards,
			       .segment_bytes = cfg->segment_bytes };

	snprintf(id.node_name, sizeof(id.node_name), "%s", cfg->node_name);
	return core_format(node->disk, &node->env.env, &id, NULL, 0, why);
}

static enum rc node_open_disk(struct node *node, bool format,
			      struct detail *why)
{
	const struct config *cfg = node->cfg;
	enum rc rc;

	rc = format ? make_dirs(cfg->data, why) : RC_OK;
	if (rc == RC_OK)
		rc = node_take_disk(node, format, why);
	if (rc != RC_OK || !format)
		return rc;
	rc = identity_read(node->disk, &node->id, NULL);
	if (rc != RC_NOT_FOUND)
		return RC_OK; /* node_check_identity says what is wrong. */
	return node_make_disk(node, why);
}

static enum rc node_open_bind(struct node *node, struct detail *why)
{
	enum rc rc = bind_new(&node->bind);
	size_t i;

	/* Those of a cluster come from its directory. */
	if (node->cfg->peers_n > 0)
		return rc;
	for (i = 0; rc == RC_OK && i < node->cfg->grants_n; i++)
		rc = bind_grant(node->bind, &node->cfg->grants[i], why);
	return rc;
}

static enum rc node_open_peers(struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	struct peer_address at[MEMBERS_MAX];
	struct peers_config p = {
		.node_id = node->id.node_id,
		.listen_host = cfg->listen_peer.host,
		.listen_port = cfg->listen_peer.port,
		.peers = at,
		.peers_n = cfg->peers_n,
		.dead_ms = 4 * cfg->core.election_ms,
	};
	size_t i;

	for (i = 0; i < cfg->peers_n; i++) {
		at[i].id = cfg->peers[i].id;
		at[i].port = cfg->peers[i].peer.port;
		snprintf(at[i].host, sizeof(at[i].host), "%s",
			 cfg->peers[i].peer.host);
	}
	hex_encode(node->id.cluster_id, ID_BYTES, p.cluster);
	return peers_open(&node->loop, &node->env.env, &p, node->tls,
			  &node->peers, why);
}

static enum rc node_open_rpc(struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	const struct rpc_config rpc_cfg = {
		.socket_path = cfg->socket,
		.listen_host =
			cfg->listen_rpc.port != 0 ? cfg->listen_rpc.host : NULL,
		.listen_port = cfg->listen_rpc.port,
		.tls = node->tls,
		.connections_max = cfg->connections_max,
		.frame_stall_ms = FRAME_STALL_MS,
		.write_stall_ms = WRITE_STALL_MS,
	};
	const struct metrics_about about = { .cfg = cfg,
					     .peers = &node->peers,
					     .tls = &node->tls };
	struct rpc_host host;
	enum rc rc;

	if (cfg->socket[0] == '\0' && cfg->listen_rpc.port == 0)
		return detail_set(why, RC_INVALID, "listen.socket",
				  "is missing: a node that nobody can call");
	rc = metrics_open(&node->loop, &node->env, node->core, &node->metrics);
	if (rc != RC_OK)
		return rc;
	metrics_about(node->metrics, &about);
	metrics_host(node->metrics, &host);
	rc = rpc_open(&node->loop, &node->env.env, node->core, &rpc_cfg, &host,
		      &node->rpc, why);
	if (rc == RC_OK)
		metrics_rpc(node->metrics, node->rpc);
	return rc;
}

static void node_ready(void *arg)
{
	struct node *node = arg;

	CHECK_OBJ(node, NODE_MAGIC);
	LOG_INFO("node_ready", F("node", node->cfg->node_name),
		 F("socket", node->cfg->socket),
		 F("shards", core_shards(node->core)),
		 F("boot", core_identity(node->core)->boot));
	supervisor_tell("READY=1");
}

static enum rc node_open_directory(struct node *node)
{
	const struct directory_config cfg = {
		.ttl_ms = DIRECTORY_TTL_MS,
		.grants = node->cfg->grants,
		.grants_n = node->cfg->grants_n,
	};

	return directory_new(node->core, node->bind, &cfg, node_ready, node,
			     &node->directory);
}

/* The core is up: alone, it leads; with peers, it has just started, and
 * whoever calls is told when there is no majority yet. */
static void node_up(void *arg)
{
	struct node *node = arg;
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	CHECK_OBJ(node, NODE_MAGIC);
	/* Only now: whoever can connect is served. */
	rc = node_open_rpc(node, &why);
	if (rc == RC_OK)
		rc = pid_write(node->cfg->pid_file, &why);
	if (rc == RC_OK && node->peers != NULL)
		rc = node_open_directory(node);
	if (rc != RC_OK)
		give_up(rc, &why);
	uv_signal_start(&node->sigterm, node_signalled, SIGTERM);
	uv_signal_start(&node->sigint, node_signalled, SIGINT);
	if (node->peers == NULL)
		node_ready(node);
	else
		LOG_INFO("node_listening", F("node", node->cfg->node_name),
			 F("socket", node->cfg->socket),
			 F("boot", core_identity(node->core)->boot));
}

/* Principals and certificates are named after the node of the data directory:
 * a configuration that says another name would grant to nobody. */
static enum rc node_check_identity(struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	enum rc rc = identity_read(node->disk, &node->id, why);

	if (rc != RC_OK)
		return rc;
	if (cfg->named && strcmp(node->id.node_name, cfg->node_name) != 0)
		return detail_set(why, RC_INVALID, "node.name",
				  "the data directory is that of node `%s`",
				  node->id.node_name);
	if (cfg->numbered && node->id.node_id != cfg->node_id)
		return detail_set(why, RC_INVALID, "node.id",
				  "the data directory is that of node %" PRIu64,
				  node->id.node_id);
	return RC_OK;
}

/* Who the others are stands in the data directory, where they are in the
 * configuration. */
static enum rc node_check_members(const struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	const struct members *m = core_members(node->core);
	size_t i;

	if (members_count(m) != cfg->peers_n + 1)
		return detail_set(why, RC_INVALID, "peers",
				  "has %zu: by its data directory this node is "
				  "one of %zu",
				  cfg->peers_n, members_count(m));
	for (i = 0; i < cfg->peers_n; i++) {
		const struct config_peer *p = &cfg->peers[i];
		const struct member *known = members_find(m, p->id);

		if (known == NULL || strcmp(known->name, p->name) != 0)
			return detail_set(why, RC_INVALID, "peers",
					  "the data directory knows no node "
					  "%" PRIu64 " with the name `%s`",
					  p->id, p->name);
	}
	return RC_OK;
}

static enum rc node_open_core(struct node *node, struct detail *why)
{
	struct link *links[LINKS] = { NULL };
	bool alone = node->peers == NULL;
	enum rc rc;
	int k;

	for (k = 0; k < LINKS && !alone; k++)
		links[k] = peers_link(node->peers, (enum link_kind)k);
	rc = core_open(&node->env.env, node->disk, alone ? NULL : links,
		       &node->cfg->core, node->bind, node_up, node, &node->core,
		       why);
	if (rc == RC_OK)
		rc = node_check_members(node, why);
	return rc;
}

static enum rc node_open(struct node *node, bool format, struct detail *why)
{
	uv_signal_t *signals[] = { &node->sigterm, &node->sigint,
				   &node->sighup };
	enum rc rc;
	size_t i;

	for (i = 0; i < ARRAY_LEN(signals); i++) {
		uv_signal_init(&node->loop, signals[i]);
		signals[i]->data = node;
	}
	rc = env_uv_open(&node->env, &node->loop);
	if (rc != RC_OK)
		return rc;
	log_setup(node->cfg->log_level, log_to_stderr, log_wall_ms,
		  &node->env.env);
	panic_hook(log_ring_dump, NULL);
	rc = node_open_disk(node, format, why);
	if (rc == RC_OK)
		rc = node_check_identity(node, why);
	if (rc == RC_OK)
		rc = node_open_bind(node, why);
	if (rc == RC_OK && node->cfg->tls_cert[0] != '\0')
		rc = tls_open(node, &node->tls, why);
	if (rc == RC_OK && node->tls != NULL) {
		uv_signal_start(&node->sighup, node_reload, SIGHUP);
		tls_told(node);
	}
	if (rc == RC_OK && node->cfg->peers_n > 0)
		rc = node_open_peers(node, why);
	if (rc == RC_OK)
		rc = node_open_core(node, why);
	return rc;
}

static uint64_t node_refused(const void *arg)
{
	const struct node *node = arg;
	struct core_stats core;

	CHECK_OBJ(node, NODE_MAGIC);
	core_stats(node->core, &core);
	return core.calls_refused + core.served_refused;
}

int node_run(const struct config *cfg, bool format)
{
	struct node *node = calloc(1, sizeof(*node));
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	if (node == NULL)
		return NODE_EXIT_OTHER;
	node->magic = NODE_MAGIC;
	node->cfg = cfg;
	umask(0077);
	signal(SIGPIPE, SIG_IGN);
	rc = crypto_init();
	if (rc == RC_OK)
		rc = secret_arena_open(cfg->secret_bytes, true, &why);
	if (rc == RC_OK && uv_loop_init(&node->loop) != 0)
		rc = RC_NOMEM;
	/* Before the loop runs: metrics tell turns from waiting by it. */
	if (rc == RC_OK &&
	    uv_loop_configure(&node->loop, UV_METRICS_IDLE_TIME) != 0)
		rc = RC_INTERNAL;
	if (rc == RC_OK)
		rc = node_open(node, format, &why);
	if (rc != RC_OK)
		give_up(rc, &why);
	preempt_start(&node->preempt, &node->env.env, node_refused, node);
	uv_run(&node->loop, UV_RUN_DEFAULT);
	CHECK(uv_loop_close(&node->loop) == 0);
	if (cfg->pid_file[0] != '\0')
		unlink(cfg->pid_file);
	LOG_INFO("node_stopped", F("node", cfg->node_name));
	disk_posix_close(node->posix);
	bind_free(node->bind);
	tls_context_free(node->tls);
	secret_arena_close();
	node->magic = 0;
	free(node);
	return NODE_EXIT_OK;
}

/* Offline. */

/* Which of core_format's ways. */
enum making { MAKE_NEW, MAKE_LOST };

static enum rc data_format(struct disk *disk, struct env *env,
			   enum making making, struct identity *id,
			   const struct member *members, size_t n,
			   struct detail *why)
{
	struct identity there;
	enum rc rc = disk->ops->lock(disk, why);

	if (rc != RC_OK)
		return rc;
	if (identity_read(disk, &there, NULL) != RC_NOT_FOUND)
		return detail_set(why, RC_EXISTS, "data",
				  "it is a data directory already");
	return making == MAKE_LOST
		       ? core_format_lost(disk, env, id, members, n, why)
		       : core_format(disk, env, id, members, n, why);
}

/* On a loop of its own, for what the vtables stand on. */
static enum rc data_make(const char *data, enum making making,
			 struct identity *id, const struct member *members,
			 size_t n, struct detail *why)
{
	struct env_uv *env = calloc(1, sizeof(*env));
	struct disk_posix *posix = NULL;
	uv_loop_t loop;
	enum rc rc;

	if (env == NULL)
		return RC_NOMEM;
	if (uv_loop_init(&loop) != 0) {
		free(env);
		return RC_NOMEM;
	}
	rc = make_dirs(data, why);
	if (rc == RC_OK)
		rc = disk_posix_open(data, true, &posix, why);
	if (rc == RC_OK)
		rc = env_uv_open(env, &loop);
	if (rc == RC_OK) {
		rc = data_format(disk_posix_disk(posix), &env->env, making, id,
				 members, n, why);
		env_uv_close(env, env_closed);
	}
	uv_run(&loop, UV_RUN_DEFAULT);
	CHECK(uv_loop_close(&loop) == 0);
	disk_posix_close(posix);
	free(env);
	return rc;
}

enum rc node_make(const char *data, struct identity *id,
		  const struct member *members, size_t n, struct detail *why)
{
	return data_make(data, MAKE_NEW, id, members, n, why);
}

int node_format(const struct config *cfg)
{
	struct identity id = { .node_id = cfg->node_id,
			       .shards = cfg->shards,
			       .segment_bytes = cfg->segment_bytes };
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	umask(0077);
	snprintf(id.node_name, sizeof(id.node_name), "%s", cfg->node_name);
	rc = crypto_init();
	if (rc == RC_OK)
		rc = node_make(cfg->data, &id, NULL, 0, &why);
	if (rc != RC_OK)
		return complain(rc, &why);
	return NODE_EXIT_OK;
}

static void verify_line(void *arg, const char *line)
{
	(void)arg;
	printf("%s\n", line);
}

static void dump_entry(void *arg, uint32_t shard, const struct log_entry *e)
{
	(void)arg;
	printf("shard %" PRIu32 " index %" PRIu64 " term %" PRIu64
	       " type %u bytes %" PRIu32 "\n",
	       shard, e->index, e->term, (unsigned)e->type, e->bytes);
}

int node_log_verify(const char *data, bool dump)
{
	struct detail why = { { 0 }, { 0 } };
	struct log_config cfg = { .bytes_max = UINT64_MAX };
	struct disk_posix *posix = NULL;
	struct disk *disk = NULL;
	struct identity id;
	enum rc rc;

	rc = crypto_init();
	if (rc == RC_OK)
		rc = disk_posix_open(data, false, &posix, &why);
	if (rc == RC_OK) {
		disk = disk_posix_disk(posix);
		rc = disk->ops->lock(disk, &why);
	}
	if (rc == RC_OK)
		rc = identity_read(disk, &id, &why);
	if (rc == RC_OK) {
		cfg.shards = id.shards;
		cfg.segment_bytes = id.segment_bytes;
		cfg.node_id = id.node_id;
		memcpy(cfg.cluster_id, id.cluster_id, ID_BYTES);
		rc = log_verify(disk, &cfg, verify_line,
				dump ? dump_entry : NULL, NULL, &why);
	}
	disk_posix_close(posix);
	if (rc != RC_OK)
		return complain(rc, &why);
	printf("the log is whole\n");
	return NODE_EXIT_OK;
}

int node_adopt(const char *data)
{
	struct detail why = { { 0 }, { 0 } };
	struct disk_posix *posix = NULL;
	struct identity id;
	struct disk *disk;
	enum rc rc = disk_posix_open(data, false, &posix, &why);

	if (rc == RC_OK) {
		disk = disk_posix_disk(posix);
		rc = disk->ops->lock(disk, &why);
		if (rc == RC_OK)
			rc = identity_adopt(disk, &id, &why);
	}
	disk_posix_close(posix);
	if (rc != RC_OK)
		return complain(rc, &why);
	printf("%s is the data directory of %s (node %" PRIu64
	       ") from now on\n",
	       data, id.node_name, id.node_id);
	if (id.boot > 0)
		printf("The original must never start again, and what it did "
		       "since this copy was made\nis not here: peers refuse "
		       "it when it is older than what they saw.\n");
	return NODE_EXIT_OK;
}

/* What the other member's directory says, which may be in use. */
static enum rc like_read(const struct node_reset *r, struct identity *id,
			 struct member *members, size_t *n, struct detail *why)
{
	struct disk_posix *posix = NULL;
	enum rc rc = disk_posix_open(r->like, false, &posix, why);

	if (rc == RC_OK)
		rc = identity_read(disk_posix_disk(posix), id, why);
	if (rc == RC_OK)
		rc = members_read(disk_posix_disk(posix), members, n, why);
	disk_posix_close(posix);
	return rc;
}

/* As the others know it, but for the disk. */
static enum rc reset_plan(const struct node_reset *r, struct identity *id,
			  struct member *members, size_t *n, struct detail *why)
{
	struct member *self = NULL;
	size_t i;
	enum rc rc = like_read(r, id, members, n, why);

	if (rc != RC_OK)
		return rc;
	if (id->node_id == r->node_id)
		return detail_set(why, RC_INVALID, "like",
				  "%.150s is that node's own: it is needed "
				  "from another member",
				  r->like);
	for (i = 0; i < *n; i++)
		if (members[i].id == r->node_id)
			self = &members[i];
	if (self == NULL)
		return detail_set(why, RC_INVALID, "node",
				  "there is no member %" PRIu64, r->node_id);
	memcpy(self->incarnation, r->incarnation, ID_BYTES);
	self->boot = 0;
	memset(self->nonce, 0, ID_BYTES);
	id->node_id = self->id;
	memcpy(id->node_name, self->name, sizeof(id->node_name));
	memcpy(id->incarnation, r->incarnation, ID_BYTES);
	id->boot = 0;
	memset(id->nonce, 0, ID_BYTES);
	return RC_OK;
}

/* A file system of its own comes with a directory in it. */
static bool place_empty(DIR *dir)
{
	static const char *const ours[] = { ".", "..", "lost+found" };
	const struct dirent *e;
	size_t i;

	while ((e = readdir(dir)) != NULL) {
		for (i = 0; i < ARRAY_LEN(ours); i++)
			if (strcmp(e->d_name, ours[i]) == 0)
				break;
		if (i == ARRAY_LEN(ours))
			return false;
	}
	return true;
}

/* Whatever lies there may be all that is left of something: a person moves it
 * away. An empty directory stays the one that it is: it may be where a disk is
 * mounted, and it is somebody's. */
static enum rc reset_place(const char *data, struct detail *why)
{
	DIR *dir = opendir(data);
	bool empty = dir != NULL ? place_empty(dir) : errno == ENOENT;

	if (dir != NULL)
		(void)closedir(dir);
	if (empty)
		return RC_OK;
	return detail_set(why, RC_EXISTS, "data",
			  "%.150s must be empty or absent: move away what is "
			  "there",
			  data);
}

int node_reset(const struct node_reset *r)
{
	struct member members[MEMBERS_MAX];
	struct detail why = { { 0 }, { 0 } };
	struct identity id;
	size_t n = 0;
	enum rc rc;

	umask(0077);
	rc = crypto_init();
	if (rc == RC_OK)
		rc = reset_plan(r, &id, members, &n, &why);
	if (rc == RC_OK)
		rc = reset_place(r->data, &why);
	if (rc == RC_OK && !r->dry)
		rc = data_make(r->data, MAKE_LOST, &id, members, n, &why);
	if (rc != RC_OK)
		return complain(rc, &why);
	if (!r->dry)
		printf("%s is the new data directory of %s (node %" PRIu64
		       "), empty: the others fill it when it starts\n",
		       r->data, id.node_name, id.node_id);
	return NODE_EXIT_OK;
}
