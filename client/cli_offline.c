/*
 * What the daemon's program does without serving: `init`, `cert`, `log`.
 */
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "client/cli.h"

#define WORDS_MAX 24

bool cli_daemon_find(const struct cli *cli, char *path, size_t path_bytes)
{
	static const char *const places[] = { "holdfastd", "../sbin/holdfastd",
					      "../libexec/holdfast/holdfastd" };
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;
	size_t i;

	if (n <= 0)
		n = snprintf(self, sizeof(self), "%s", cli->program);
	if (n >= (ssize_t)sizeof(self))
		return false;
	self[n] = '\0';
	slash = strrchr(self, '/');
	if (slash == NULL)
		return false;
	*slash = '\0';
	for (i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		(void)snprintf(path, path_bytes, "%s/%s", self, places[i]);
		if (access(path, X_OK) == 0)
			return true;
	}
	(void)fprintf(stderr, "holdfast: there is no holdfastd beside %s/%s\n",
		      self, slash + 1);
	return false;
}

/* What the daemon's exit code (sysexits.h) is among ours. */
static int daemon_code(int status)
{
	if (!WIFEXITED(status))
		return CLI_INTERNAL;
	switch (WEXITSTATUS(status)) {
	case EX_OK:
		return CLI_OK;
	case EX_USAGE:
	case EX_CONFIG:
		return CLI_USAGE;
	case EX_DATAERR:
	case EX_TEMPFAIL:
		return CLI_REFUSED;
	default:
		return CLI_INTERNAL;
	}
}

int cli_daemon_run(const struct cli *cli, const char *const *words)
{
	char path[PATH_MAX + 64];
	char *argv[WORDS_MAX + 2] = { path };
	int code = CLI_INTERNAL;
	int status = 0;
	pid_t pid = -1;
	bool whole = true;
	int n;

	for (n = 0; words[n] != NULL && n < WORDS_MAX; n++) {
		argv[n + 1] = strdup(words[n]);
		whole = whole && argv[n + 1] != NULL;
	}
	(void)fflush(stdout);
	if (whole && cli_daemon_find(cli, path, sizeof(path)) &&
	    posix_spawn(&pid, path, NULL, NULL, argv, environ) == 0) {
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		code = daemon_code(status);
	}
	for (; n > 0; n--)
		free(argv[n]);
	return code;
}

static int log_command(struct cli *cli, int argc, char **argv)
{
	const char *words[] = { NULL, NULL, NULL };
	int code = cli_parse(cli, argc, argv, NULL, 2, 2);

	if (code != CLI_OK || cli->help)
		return code;
	if (strcmp(cli->args[0], "verify") == 0)
		words[0] = "--log-verify";
	else if (strcmp(cli->args[0], "dump") == 0)
		words[0] = "--log-dump";
	else
		return cli_usage(cli, "log verify DIR, or log dump DIR");
	words[1] = cli->args[1];
	return cli_daemon_run(cli, words);
}

const struct cli_command cli_log_command = {
	"log",
	"Checks or prints the log of a stopped node",
	"log verify DIR\n"
	"log dump DIR\n",
	"DIR is the node's data directory. No server is asked.\n",
	log_command,
};

/* ------------------------------------------------------------------- init ---
 */

#define NOT_SAID UINT64_MAX

/* An option and its number, unless it was not said. */
static void word_number(const char **words, size_t *n, const char *option,
			uint64_t v, char text[24])
{
	if (v == NOT_SAID)
		return;
	(void)snprintf(text, 24, "%" PRIu64, v);
	words[(*n)++] = option;
	words[(*n)++] = text;
}

struct init_options {
	uint64_t nodes;
	const char *host;
	uint64_t rpc_port;
	uint64_t peer_port;
	uint64_t shards;
};

static int init_cluster(const struct cli *cli, const struct init_options *o)
{
	const char *words[WORDS_MAX] = { "--init", cli->args[0] };
	char numbers[4][24];
	size_t n = 2;

	word_number(words, &n, "--nodes", o->nodes, numbers[0]);
	word_number(words, &n, "--rpc-port", o->rpc_port, numbers[1]);
	word_number(words, &n, "--peer-port", o->peer_port, numbers[2]);
	word_number(words, &n, "--shards", o->shards, numbers[3]);
	if (o->host != NULL) {
		words[n++] = "--host";
		words[n++] = o->host;
	}
	return cli_daemon_run(cli, words);
}

static int init_command(struct cli *cli, int argc, char **argv)
{
	struct init_options o = { .nodes = 1,
				  .rpc_port = NOT_SAID,
				  .peer_port = NOT_SAID,
				  .shards = NOT_SAID };
	const struct cli_opt opts[] = {
		{ "nodes", 0, CLI_NUMBER, &o.nodes, 1, 5, "N",
		  "members of the cluster: 1, 3 or 5 (1)" },
		{ "host", 0, CLI_TEXT, &o.host, 0, 0, "HOST[,...]",
		  "of all nodes (127.0.0.1), or of each" },
		{ "rpc-port", 0, CLI_NUMBER, &o.rpc_port, 0, 65535, "PORT",
		  "of the first node, for clients (7101)" },
		{ "peer-port", 0, CLI_NUMBER, &o.peer_port, 0, 65535, "PORT",
		  "of the first node, for nodes (7201)" },
		{ "shards", 0, CLI_NUMBER, &o.shards, 1, 64, "N",
		  "for good (16)" },
		CLI_OPT_END,
	};
	const char *alone[] = { "--format", NULL, NULL };
	int code = cli_parse(cli, argc, argv, opts, 1, 1);

	if (code != CLI_OK || cli->help)
		return code;
	if (o.nodes == 2 || o.nodes == 4)
		return cli_usage(cli, "a cluster has 1, 3 or 5 nodes");
	if (o.nodes != 1)
		return init_cluster(cli, &o);
	if (o.host != NULL || o.rpc_port != NOT_SAID ||
	    o.peer_port != NOT_SAID || o.shards != NOT_SAID)
		return cli_usage(cli, "what is said is for --nodes 3 or 5");
	alone[1] = cli->args[0];
	return cli_daemon_run(cli, alone);
}

const struct cli_command cli_init_command = {
	"init",
	"Makes the files of a new cluster, or of a node alone",
	"init DIR --nodes 3 [OPTION...]\n"
	"init DIR [--nodes 1]\n",
	"With one host the ports count up from node to node, with one for "
	"each\n"
	"they are the same on all; 0 is a free port of this machine for each.\n"
	"Makes DIR/node1/holdfast.yaml and so on, each with its data "
	"directory\n"
	"and certificate, DIR/client.yaml for those who call, and DIR/ca/ "
	"with\n"
	"the key that signs: take that offline.\n"
	"With one node DIR becomes its data directory.\n",
	init_command,
};

/* ------------------------------------------------------------------- node ---
 */

#define INCARNATION_BYTES 16

struct reset {
	uint64_t id;
	const char *id_text;
	const char *data;
	const char *like;
	uint8_t incarnation[INCARNATION_BYTES];
	char hex[2 * INCARNATION_BYTES + 1];
};

static int reset_daemon(const struct cli *cli, const struct reset *r, bool dry)
{
	const char *words[] = { "--reset",
				r->data,
				"--node",
				r->id_text,
				"--like",
				r->like,
				"--incarnation",
				r->hex,
				dry ? "--dry-run" : NULL,
				NULL };

	return cli_daemon_run(cli, words);
}

/* The cluster agrees on the new disk before there is one: whoever comes with
 * the old one from here on is refused. */
static int reset_readmit(struct cli *cli, const struct reset *r)
{
	struct holdfast_request q =
		HOLDFAST_CALL("holdfast/system/directory/cluster", "readmit");
	const struct holdfast_answer *a = NULL;
	int code = CLI_INTERNAL;

	q.args = holdfast_args_new();
	if (q.args == NULL)
		return code;
	(void)holdfast_args_int(q.args, "node", (int64_t)r->id);
	(void)holdfast_args_bin(q.args, "incarnation", r->incarnation,
				sizeof(r->incarnation));
	code = cli_call(cli, &q, "node reset", &a);
	holdfast_args_free(q.args);
	return code;
}

static int node_reset(struct cli *cli, const char *like)
{
	struct reset r = { .id_text = cli->args[1],
			   .data = cli->args[2],
			   .like = like };
	size_t i;
	char *end;
	int code;

	r.id = strtoull(r.id_text, &end, 10);
	if (r.id == 0 || r.id > INT64_MAX || *end != '\0')
		return cli_usage(cli, "`%s' is no node's id", r.id_text);
	if (like == NULL)
		return cli_usage(cli, "--like DIR is needed");
	if (getrandom(r.incarnation, sizeof(r.incarnation), 0) !=
	    (ssize_t)sizeof(r.incarnation))
		return CLI_INTERNAL;
	for (i = 0; i < sizeof(r.incarnation); i++)
		(void)snprintf(r.hex + 2 * i, 3, "%02x", r.incarnation[i]);
	code = reset_daemon(cli, &r, true);
	if (code == CLI_OK)
		code = reset_readmit(cli, &r);
	if (code == CLI_OK)
		code = reset_daemon(cli, &r, false);
	return code;
}

static int node_command(struct cli *cli, int argc, char **argv)
{
	const char *like = NULL;
	const struct cli_opt opts[] = {
		{ "like", 0, CLI_TEXT, &like, 0, 0, "DIR",
		  "reset: the data directory of another member, in use or "
		  "not" },
		CLI_OPT_END,
	};
	const char *adopt[] = { "--adopt", NULL, NULL };
	int code = cli_parse(cli, argc, argv, opts, 2, 3);

	if (code != CLI_OK || cli->help)
		return code;
	if (strcmp(cli->args[0], "reset") == 0 && cli->args_n == 3)
		return node_reset(cli, like);
	if (strcmp(cli->args[0], "adopt") != 0 || cli->args_n != 2)
		return cli_usage(cli, "node adopt DIR, or node reset ID DIR "
				      "--like DIR");
	adopt[1] = cli->args[1];
	return cli_daemon_run(cli, adopt);
}

const struct cli_command cli_node_command = {
	"node",
	"Brings back a node that was moved, or lost its disk",
	"node adopt DIR\n"
	"node reset ID DIR --like DIR\n",
	"adopt: DIR is the data directory of a stopped node, in its new place. "
	"A\n"
	"copy does not start before, and of two copies only one may ever "
	"start.\n"
	"reset: the cluster is told that the node ID comes back with an empty\n"
	"disk; then DIR is made, its new data directory. It must be empty or\n"
	"absent. Needs the right `admin' on the cluster's directory: run it\n"
	"where another node is, with --socket.\n",
	node_command,
};

/* ------------------------------------------------------------------- cert ---
 */

struct cert_options {
	const char *ca;
	const char *out;
	uint64_t days;
};

/* TENANT/ENV/NAME as the certificate has it. False: it is not that. */
static bool client_path(const char *text, char *out, size_t n)
{
	const char *env = strchr(text, '/');
	const char *name = env != NULL ? strchr(env + 1, '/') : NULL;

	if (name == NULL || strchr(name + 1, '/') != NULL)
		return false;
	return snprintf(out, n, "tenant/%.*s/env/%.*s/client/%s",
			(int)(env - text), text, (int)(name - env - 1), env + 1,
			name + 1) < (int)n;
}

static int cert_make(const struct cli *cli, const struct cert_options *o,
		     const char *path)
{
	const char *words[WORDS_MAX] = { "--certificate", path,    "--ca",
					 o->ca,           "--out", o->out };
	char days[24];
	size_t n = 6;

	word_number(words, &n, "--days", o->days, days);
	return cli_daemon_run(cli, words);
}

static int cert_command(struct cli *cli, int argc, char **argv)
{
	struct cert_options o = { .days = NOT_SAID };
	const struct cli_opt opts[] = {
		{ "ca", 0, CLI_TEXT, &o.ca, 0, 0, "DIR",
		  "has ca.pem and ca.key" },
		{ "out", 0, CLI_TEXT, &o.out, 0, 0, "DIR",
		  "where the files go" },
		{ "days", 0, CLI_NUMBER, &o.days, 1, 3650, "N",
		  "how long it is valid (365)" },
		CLI_OPT_END,
	};
	char path[256];
	int code = cli_parse(cli, argc, argv, opts, 2, 2);

	if (code != CLI_OK || cli->help)
		return code;
	if (o.ca == NULL || o.out == NULL)
		return cli_usage(cli, "--ca DIR and --out DIR are needed");
	if (strcmp(cli->args[0], "node") == 0 &&
	    strspn(cli->args[1], "0123456789") == strlen(cli->args[1]))
		code = snprintf(path, sizeof(path), "node/%s", cli->args[1]) <
				       (int)sizeof(path)
			       ? CLI_OK
			       : CLI_USAGE;
	else if (strcmp(cli->args[0], "client") == 0 &&
		 client_path(cli->args[1], path, sizeof(path)))
		code = CLI_OK;
	else
		code = CLI_USAGE;
	if (code != CLI_OK)
		return cli_usage(
			cli, "cert node ID, or cert client TENANT/ENV/NAME");
	return cert_make(cli, &o, path);
}

const struct cli_command cli_cert_command = {
	"cert",
	"Makes a key and a certificate for a node or a client",
	"cert node ID --ca DIR --out DIR [--days N]\n"
	"cert client TENANT/ENV/NAME --ca DIR --out DIR [--days N]\n",
	"Writes ca.pem, and node.pem and node.key, or client.pem and "
	"client.key,\n"
	"over what is there. A node reads them anew when it gets SIGHUP.\n",
	cert_command,
};
