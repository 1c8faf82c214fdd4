#include "node/node.h"

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
#include "node/metrics.h"
#include "node/os/disk_posix.h"
#include "node/os/env_uv.h"
#include "node/rpc.h"

#define NODE_MAGIC 0x4e4f4445u

struct node {
	uint32_t magic;
	const struct config *cfg;
	uv_loop_t loop;
	struct env_uv env;
	struct disk_posix *posix;
	struct disk *disk;
	struct bind *bind;
	struct core *core;
	struct rpc *rpc;
	struct metrics *metrics;
	uv_signal_t sigterm;
	uv_signal_t sigint;
	bool signals;
	bool stopping;
	int exit_code;
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

/* Stopping, in order: no new connections, calls end, state is checkpointed,
 * connections close, handles close, the loop ends. */

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
	if (node->metrics != NULL)
		metrics_close(node->metrics);
	env_uv_close(&node->env, env_closed);
}

static void core_closed(void *arg)
{
	struct node *node = arg;

	CHECK_OBJ(node, NODE_MAGIC);
	node->core = NULL;
	rpc_close(node->rpc, rpc_closed, node);
}

static void node_stop(struct node *node)
{
	if (node->stopping)
		return;
	node->stopping = true;
	LOG_INFO("node_stopping", F("node", node->cfg->node_name));
	rpc_stop_listening(node->rpc);
	core_close(node->core, core_closed, node);
}

static void node_signalled(uv_signal_t *s, int number)
{
	struct node *node = s->data;

	(void)number;
	CHECK_OBJ(node, NODE_MAGIC);
	node_stop(node);
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
	return core_format(node->disk, &node->env.env, &id, why);
}

static enum rc node_open_disk(struct node *node, bool format,
			      struct detail *why)
{
	const struct config *cfg = node->cfg;
	struct identity id;
	enum rc rc;

	rc = format ? make_dirs(cfg->data, why) : RC_OK;
	if (rc == RC_OK)
		rc = node_take_disk(node, format, why);
	if (rc != RC_OK || !format)
		return rc;
	rc = identity_read(node->disk, &id, NULL);
	if (rc != RC_NOT_FOUND)
		return RC_OK; /* core_open says what is wrong with it. */
	return node_make_disk(node, why);
}

static enum rc node_open_bind(struct node *node, struct detail *why)
{
	enum rc rc = bind_new(&node->bind);
	size_t i;

	for (i = 0; rc == RC_OK && i < node->cfg->grants_n; i++)
		rc = bind_grant(node->bind, &node->cfg->grants[i], why);
	return rc;
}

static enum rc node_open_rpc(struct node *node, struct detail *why)
{
	const struct rpc_config rpc_cfg = {
		.socket_path = node->cfg->socket,
		.connections_max = node->cfg->connections_max,
		.frame_stall_ms = FRAME_STALL_MS,
		.write_stall_ms = WRITE_STALL_MS,
	};
	struct rpc_host host;
	enum rc rc;

	if (node->cfg->socket[0] == '\0')
		return detail_set(why, RC_INVALID, "listen.socket",
				  "is missing: a node that nobody can call");
	rc = metrics_open(&node->loop, &node->env, node->core, &node->metrics);
	if (rc != RC_OK)
		return rc;
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
	struct detail why = { { 0 }, { 0 } };
	enum rc rc;

	CHECK_OBJ(node, NODE_MAGIC);
	/* Only now: whoever can connect is served. */
	rc = node_open_rpc(node, &why);
	if (rc == RC_OK)
		rc = pid_write(node->cfg->pid_file, &why);
	if (rc != RC_OK)
		give_up(rc, &why);
	uv_signal_start(&node->sigterm, node_signalled, SIGTERM);
	uv_signal_start(&node->sigint, node_signalled, SIGINT);
	LOG_INFO("node_ready", F("node", node->cfg->node_name),
		 F("socket", node->cfg->socket),
		 F("shards", core_shards(node->core)),
		 F("boot", core_identity(node->core)->boot));
}

/* Principals are named after the node of the data directory: a configuration
 * that says another name would grant to nobody. */
static enum rc node_check_name(struct node *node, struct detail *why)
{
	const struct config *cfg = node->cfg;
	struct identity id;

	if (identity_read(node->disk, &id, NULL) != RC_OK)
		return RC_OK; /* core_open says what is wrong with it. */
	if (cfg->named && strcmp(id.node_name, cfg->node_name) != 0)
		return detail_set(why, RC_INVALID, "node.name",
				  "the data directory is that of node `%s`",
				  id.node_name);
	if (cfg->numbered && id.node_id != cfg->node_id)
		return detail_set(why, RC_INVALID, "node.id",
				  "the data directory is that of node %" PRIu64,
				  id.node_id);
	return RC_OK;
}

static enum rc node_open(struct node *node, bool format, struct detail *why)
{
	enum rc rc;

	uv_signal_init(&node->loop, &node->sigterm);
	uv_signal_init(&node->loop, &node->sigint);
	node->sigterm.data = node;
	node->sigint.data = node;
	rc = env_uv_open(&node->env, &node->loop);
	if (rc != RC_OK)
		return rc;
	log_setup(node->cfg->log_level, log_to_stderr, log_wall_ms,
		  &node->env.env);
	panic_hook(log_ring_dump, NULL);
	rc = node_open_disk(node, format, why);
	if (rc == RC_OK)
		rc = node_open_bind(node, why);
	if (rc == RC_OK)
		rc = node_check_name(node, why);
	if (rc == RC_OK)
		rc = core_open(&node->env.env, node->disk, NULL,
			       &node->cfg->core, node->bind, node_ready, node,
			       &node->core, why);
	return rc;
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
	uv_run(&node->loop, UV_RUN_DEFAULT);
	CHECK(uv_loop_close(&node->loop) == 0);
	if (cfg->pid_file[0] != '\0')
		unlink(cfg->pid_file);
	LOG_INFO("node_stopped", F("node", cfg->node_name));
	disk_posix_close(node->posix);
	bind_free(node->bind);
	secret_arena_close();
	node->magic = 0;
	free(node);
	return NODE_EXIT_OK;
}

/* Offline. */

int node_format(const struct config *cfg)
{
	/* What is open in it ends with the process. */
	static struct node only;
	struct node *node = &only;
	struct detail why = { { 0 }, { 0 } };
	struct identity id;
	enum rc rc;

	node->magic = NODE_MAGIC;
	node->cfg = cfg;
	umask(0077);
	rc = crypto_init();
	if (rc == RC_OK && uv_loop_init(&node->loop) != 0)
		rc = RC_NOMEM;
	if (rc == RC_OK)
		rc = env_uv_open(&node->env, &node->loop);
	if (rc == RC_OK)
		rc = make_dirs(cfg->data, &why);
	if (rc == RC_OK)
		rc = node_take_disk(node, true, &why);
	if (rc == RC_OK)
		rc = identity_read(node->disk, &id, NULL) != RC_NOT_FOUND
			     ? detail_set(&why, RC_EXISTS, "data",
					  "%.150s is a data directory already",
					  cfg->data)
			     : node_make_disk(node, &why);
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
