/*
 * `dev-cluster`: the nodes of a cluster as children of this program, and a line
 * for every change of what can be seen of them from outside.
 *
 * Every node has a connection of its own, over its Unix socket. Four times a
 * second each that has one is asked for its status; who leads a shard is what
 * the node says that knows of the highest term.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include "client/cli.h"

#define NODES_MAX  5
#define SHARDS_MAX 64
#define ASK_MS     250

struct cluster;

struct child {
	struct cluster *of;
	unsigned id; /* 1 .. */
	char dir[PATH_MAX];
	char socket[PATH_MAX];
	pid_t pid; /* 0: not running, as far as we are its parent. */
	struct holdfast *h;
	bool up;     /* It answers. */
	bool asked;  /* And has not answered yet. */
	bool failed; /* It ended otherwise than it was told to. */
};

struct leader {
	uint64_t term;
	unsigned id; /* 0: nobody. */
};

struct cluster {
	const struct cli *cli;
	const char *dir;
	unsigned nodes;
	struct child child[NODES_MAX];
	unsigned shards;
	struct leader seen[SHARDS_MAX]; /* By the answers so far. */
	unsigned told[SHARDS_MAX];      /* What was printed last. */
	char daemon[PATH_MAX + 64];
	uv_loop_t loop;
	uv_timer_t timer;
	uv_signal_t signals[4];
	uint64_t from_ms;
	bool stopping;
	int code;
};

/* ------------------------------------------------------------------ lines ---
 */

__attribute__((format(printf, 2, 3))) static void say(const struct cluster *c,
						      const char *format, ...)
{
	uint64_t ms = uv_now(&c->loop) - c->from_ms;
	va_list ap;

	(void)printf("%6llu.%03llu  ", (unsigned long long)(ms / 1000),
		     (unsigned long long)(ms % 1000));
	va_start(ap, format);
	(void)vprintf(format, ap);
	va_end(ap);
	(void)putchar('\n');
	(void)fflush(stdout);
}

/* " 0 3-5 9": the shards whose leader became `id`. */
static void shards_text(const struct cluster *c, unsigned id, char *out,
			size_t n)
{
	size_t at = 0;
	unsigned s;
	unsigned e;

	out[0] = '\0';
	for (s = 0; s < c->shards && at < n; s = e + 1) {
		e = s;
		if (c->seen[s].id != id || c->told[s] == id)
			continue;
		while (e + 1 < c->shards && c->seen[e + 1].id == id &&
		       c->told[e + 1] != id)
			e++;
		at += (size_t)snprintf(out + at, n - at,
				       e > s ? " %u-%u" : " %u", s, e);
	}
}

/* One line for all that moved since the last. */
static void leaders_tell(struct cluster *c)
{
	char line[1024];
	char part[256];
	size_t at = 0;
	unsigned id;
	unsigned s;

	for (id = 0; id <= c->nodes; id++) {
		shards_text(c, id, part, sizeof(part));
		if (part[0] == '\0' || at >= sizeof(line))
			continue;
		if (id == 0)
			at += (size_t)snprintf(line + at, sizeof(line) - at,
					       "%sno leader for%s",
					       at > 0 ? "; " : "", part);
		else
			at += (size_t)snprintf(line + at, sizeof(line) - at,
					       "%snode%u leads%s",
					       at > 0 ? "; " : "", id, part);
	}
	for (s = 0; s < c->shards; s++)
		c->told[s] = c->seen[s].id;
	if (at > 0)
		say(c, "%s", line);
}

/* ----------------------------------------------------------------- status ---
 */

static void row_read(struct cluster *c, const struct child *from,
		     struct pack_bytes row)
{
	uint64_t shard;
	uint64_t leader;
	uint64_t term;
	struct leader *l;

	if (!out_find_u64(row, "shard", &shard) ||
	    !out_find_u64(row, "leader", &leader) ||
	    !out_find_u64(row, "term", &term) || shard >= SHARDS_MAX ||
	    leader > c->nodes)
		return;
	if (shard >= c->shards)
		c->shards = (unsigned)shard + 1;
	/* The others may not have noticed yet that it is gone. */
	if (leader != 0 && !c->child[leader - 1].up)
		leader = 0;
	l = &c->seen[shard];
	/* In one term there is one leader; that a node does not hear it says
	 * nothing, unless it is the leader itself. */
	if (term > l->term || (term == l->term && leader != 0) ||
	    l->id == from->id) {
		l->term = term;
		l->id = (unsigned)leader;
	}
}

static void status_read(struct cluster *c, const struct child *from,
			const struct holdfast_answer *a)
{
	struct pack_bytes shards;
	struct pack_bytes row;
	struct pack_r r;
	uint32_t n;

	if (!out_find(answer_value_of(a), "shards", &shards))
		return;
	r = pack_reader(shards.p, shards.n);
	if (pack_get_array(&r, &n) != RC_OK)
		return;
	for (; n > 0 && pack_skip(&r, &row) == RC_OK; n--)
		row_read(c, from, row);
}

static void status_answered(void *arg, const struct holdfast_answer *a)
{
	struct child *k = arg;
	uint64_t pid;

	k->asked = false;
	if (a->code != HOLDFAST_OK || k->of->stopping)
		return;
	if (!k->up) {
		k->up = true;
		if (out_find_u64(answer_value_of(a), "pid", &pid))
			say(k->of, "node%u is up, process %llu", k->id,
			    (unsigned long long)pid);
		else
			say(k->of, "node%u is up", k->id);
	}
	status_read(k->of, k, a);
}

/* Whatever led there leads no more; who follows it, the others tell. */
static void child_lost(struct child *k)
{
	struct cluster *c = k->of;
	unsigned s;

	k->up = false;
	for (s = 0; s < c->shards; s++)
		if (c->seen[s].id == k->id)
			c->seen[s].id = 0;
}

static void child_state(void *arg, int connected, const char *why)
{
	struct child *k = arg;

	(void)why;
	if (connected != 0 || !k->up || k->of->stopping)
		return;
	child_lost(k);
	/* Of a child of ours the end of the process is told instead. */
	if (k->pid == 0)
		say(k->of, "node%u is down", k->id);
}

static void ask_all(uv_timer_t *t)
{
	struct cluster *c = t->data;
	struct holdfast_request r = HOLDFAST_RPC("status");
	unsigned i;

	leaders_tell(c);
	r.deadline_ms = 1000;
	for (i = 0; i < c->nodes; i++) {
		struct child *k = &c->child[i];

		if (!k->asked && holdfast_call(k->h, &r, status_answered, k,
					       NULL) == HOLDFAST_OK)
			k->asked = true;
	}
}

/* --------------------------------------------------------------- children ---
 */

/* In the child. Its log goes on in a file of the node; it is told to end when
 * we are gone, however that was. */
_Noreturn static void child_run(const struct child *k, pid_t parent)
{
	char config[PATH_MAX + 32];
	char log[PATH_MAX + 32];
	sigset_t none;
	int fd;

	(void)snprintf(config, sizeof(config), "%s/holdfast.yaml", k->dir);
	(void)snprintf(log, sizeof(log), "%s/holdfastd.log", k->dir);
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd >= 0)
		(void)dup2(fd, STDERR_FILENO);
	(void)sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	/* Ctrl-C reaches a whole group of processes: we pass it on ourselves.
	 */
	(void)setpgid(0, 0);
	(void)prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() == parent)
		(void)execl(k->of->daemon, "holdfastd", "--config", config,
			    (char *)NULL);
	_exit(127);
}

static bool child_start(struct child *k)
{
	pid_t self = getpid();

	(void)fflush(NULL);
	k->pid = fork();
	if (k->pid == 0)
		child_run(k, self);
	if (k->pid > 0)
		return true;
	k->pid = 0;
	(void)fprintf(stderr, "holdfast: cannot start node%u: %s\n", k->id,
		      strerror(errno));
	return false;
}

static void end_tell(struct child *k, int status)
{
	const struct cluster *c = k->of;

	if (WIFSIGNALED(status)) {
		k->failed = c->stopping;
		say(c, "node%u is down: killed by signal %d", k->id,
		    WTERMSIG(status));
	} else if (WEXITSTATUS(status) == 0) {
		say(c, "node%u is down: it ended well", k->id);
	} else {
		k->failed = true;
		say(c,
		    "node%u is down: exit code %d; %s/holdfastd.log says why",
		    k->id, WEXITSTATUS(status), k->dir);
	}
}

static unsigned running(const struct cluster *c)
{
	unsigned n = 0;
	unsigned i;

	for (i = 0; i < c->nodes; i++)
		n += c->child[i].pid != 0;
	return n;
}

static void handle_closed(uv_handle_t *h)
{
	(void)h;
}

/* No child is left: the loop ends when all handles have. */
static void cluster_end(struct cluster *c)
{
	unsigned i;

	for (i = 0; i < c->nodes; i++)
		if (c->child[i].failed)
			c->code = CLI_INTERNAL;
	if (!c->stopping) {
		say(c, "no node is left");
		c->code = CLI_INTERNAL;
	}
	c->stopping = true;
	for (i = 0; i < c->nodes; i++)
		holdfast_close(c->child[i].h, NULL, NULL);
	uv_close((uv_handle_t *)&c->timer, handle_closed);
	for (i = 0; i < sizeof(c->signals) / sizeof(c->signals[0]); i++)
		uv_close((uv_handle_t *)&c->signals[i], handle_closed);
}

/* Only those that we started: the loop may have children of its own. */
static void children_reap(uv_signal_t *s, int number)
{
	struct cluster *c = s->data;
	unsigned i;
	int status;

	(void)number;
	for (i = 0; i < c->nodes; i++) {
		struct child *k = &c->child[i];

		if (k->pid == 0 || waitpid(k->pid, &status, WNOHANG) != k->pid)
			continue;
		k->pid = 0;
		child_lost(k);
		end_tell(k, status);
	}
	if (running(c) == 0 && !uv_is_closing((uv_handle_t *)&c->timer))
		cluster_end(c);
}

static void children_signal(struct cluster *c, int number)
{
	unsigned i;

	for (i = 0; i < c->nodes; i++)
		if (c->child[i].pid != 0)
			(void)kill(c->child[i].pid, number);
}

/* The first time in order, the second time at once. */
static void stop_asked(uv_signal_t *s, int number)
{
	struct cluster *c = s->data;

	(void)number;
	children_signal(c, c->stopping ? SIGKILL : SIGTERM);
	c->stopping = true;
}

/* --------------------------------------------------------------- starting ---
 */

static void signals_start(struct cluster *c)
{
	static const int stops[] = { SIGINT, SIGTERM, SIGHUP };
	size_t i;

	for (i = 0; i < 4; i++) {
		(void)uv_signal_init(&c->loop, &c->signals[i]);
		c->signals[i].data = c;
		if (i < 3)
			(void)uv_signal_start(&c->signals[i], stop_asked,
					      stops[i]);
		else
			(void)uv_signal_start(&c->signals[i], children_reap,
					      SIGCHLD);
	}
}

static int child_open(struct cluster *c, unsigned i)
{
	struct child *k = &c->child[i];
	struct holdfast_options o = HOLDFAST_OPTIONS;

	k->of = c;
	k->id = i + 1;
	if (snprintf(k->dir, sizeof(k->dir), "%s/node%u", c->dir, k->id) >=
		    (int)sizeof(k->dir) - 32 ||
	    snprintf(k->socket, sizeof(k->socket), "%s/node%u/holdfast.sock",
		     c->dir, k->id) >= (int)sizeof(k->socket))
		return HOLDFAST_INVALID;
	o.socket = k->socket;
	o.state = child_state;
	o.state_arg = k;
	return holdfast_open(&c->loop, &o, &k->h);
}

static int cluster_run(struct cluster *c)
{
	bool good = true;
	unsigned i;

	if (uv_loop_init(&c->loop) != 0)
		return CLI_INTERNAL;
	c->from_ms = uv_now(&c->loop);
	signals_start(c);
	(void)uv_timer_init(&c->loop, &c->timer);
	c->timer.data = c;
	for (i = 0; i < c->nodes; i++)
		good = child_open(c, i) == HOLDFAST_OK && good;
	for (i = 0; i < c->nodes && good; i++)
		good = child_start(&c->child[i]);
	if (!good) {
		(void)fprintf(stderr, "holdfast: the nodes cannot be run\n");
		return CLI_INTERNAL; /* What was started ends with us. */
	}
	(void)uv_timer_start(&c->timer, ask_all, ASK_MS, ASK_MS);
	(void)uv_run(&c->loop, UV_RUN_DEFAULT);
	(void)uv_loop_close(&c->loop);
	return c->code;
}

/* Nodes whose configuration is there. */
static unsigned nodes_found(const char *dir)
{
	char path[PATH_MAX + 64];
	unsigned n = 0;

	while (n < NODES_MAX) {
		(void)snprintf(path, sizeof(path), "%s/node%u/holdfast.yaml",
			       dir, n + 1);
		if (access(path, R_OK) != 0)
			break;
		n++;
	}
	return n;
}

struct dev_options {
	const char *dir;
	uint64_t nodes;
	uint64_t shards;
	uint64_t rpc_port;
	uint64_t peer_port;
};

/* The daemon refuses a directory with anything else in it. */
static int cluster_make(const struct cli *cli, const struct dev_options *o)
{
	char numbers[4][24];
	const char *words[] = { "--init",     o->dir,     "--nodes",
				numbers[0],   "--shards", numbers[1],
				"--rpc-port", numbers[2], "--peer-port",
				numbers[3],   NULL };
	const uint64_t values[] = { o->nodes, o->shards, o->rpc_port,
				    o->peer_port };
	size_t i;

	for (i = 0; i < 4; i++)
		(void)snprintf(numbers[i], sizeof(numbers[i]), "%llu",
			       (unsigned long long)values[i]);
	return cli_daemon_run(cli, words);
}

static int dev_cluster(struct cli *cli, const struct dev_options *o,
		       bool nodes_said)
{
	struct cluster *c;
	unsigned found = nodes_found(o->dir);
	int code;

	if (found == 0) {
		code = cluster_make(cli, o);
		if (code != CLI_OK)
			return code;
		found = (unsigned)o->nodes;
	} else if (nodes_said && o->nodes != found) {
		return cli_usage(cli, "%s has %u nodes", o->dir, found);
	}
	c = calloc(1, sizeof(*c));
	if (c == NULL)
		return CLI_INTERNAL;
	c->cli = cli;
	c->dir = o->dir;
	c->nodes = found;
	code = cli_daemon_find(cli, c->daemon, sizeof(c->daemon))
		       ? cluster_run(c)
		       : CLI_INTERNAL;
	free(c);
	return code;
}

static int dev_cluster_command(struct cli *cli, int argc, char **argv)
{
	struct dev_options o = {
		.nodes = 0, .shards = 16, .rpc_port = 7101, .peer_port = 7201
	};
	const struct cli_opt opts[] = {
		{ "dir", 0, CLI_TEXT, &o.dir, 0, 0, "DIR",
		  "of the cluster; made when it is absent" },
		{ "nodes", 0, CLI_NUMBER, &o.nodes, 3, 5, "N",
		  "of a new cluster: 3 or 5 (3)" },
		{ "shards", 0, CLI_NUMBER, &o.shards, 1, SHARDS_MAX, "N",
		  "of a new cluster (16)" },
		{ "rpc-port", 0, CLI_NUMBER, &o.rpc_port, 0, 65535, "PORT",
		  "of a new cluster's first node (7101); 0: free ones" },
		{ "peer-port", 0, CLI_NUMBER, &o.peer_port, 0, 65535, "PORT",
		  "the same, between nodes (7201)" },
		CLI_OPT_END,
	};
	int code = cli_parse(cli, argc, argv, opts, 0, 0);
	bool said = o.nodes != 0;

	if (code != CLI_OK || cli->help)
		return code;
	if (o.dir == NULL)
		return cli_usage(cli, "--dir DIR is needed");
	if (o.nodes == 4)
		return cli_usage(cli, "a cluster has 3 or 5 nodes");
	if (!said)
		o.nodes = 3;
	return dev_cluster(cli, &o, said);
}

const struct cli_command cli_dev_cluster_command = {
	"dev-cluster",
	"Runs all nodes of a cluster on this machine",
	"dev-cluster --dir DIR [--nodes 3]\n",
	"Stays in the foreground and prints a line when a node comes or goes, "
	"and\n"
	"when shards get another leader. A node that dies stays dead, so that "
	"one\n"
	"can watch: start it again with holdfastd --config. All end with it.\n",
	dev_cluster_command,
};
