/*
 * The daemon from its configuration to its exit code, each time in a process of
 * its own.
 */
#include "node/node.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "tests/lib/runner.h"

#define WAIT_MS 60000

static struct config cfg;
static char data[300];

/* A node of this test: its process and what it says. */
static struct {
	pid_t pid;
	int says;
	char text[65536];
	size_t n;
} node;

static void dev(const char *name)
{
	config_release(&cfg);
	config_default(&cfg);
	snprintf(data, sizeof(data), "%s/%s", runner_dir(), name);
	EXPECT_RC(config_dev(&cfg, data, NULL), RC_OK);
	cfg.shards = 2;
	cfg.segment_bytes = 1u << 20;
	cfg.core.reserve_bytes = 0;
}

/* In a child, with stdout and stderr in node.text. */
static void begin(int (*run)(void))
{
	int fds[2];

	memset(&node, 0, sizeof(node));
	(void)fflush(NULL);
	EXPECT_INT(pipe2(fds, O_CLOEXEC), 0);
	node.pid = fork();
	EXPECT_TRUE(node.pid >= 0);
	if (node.pid == 0) {
		int code;

		(void)dup2(fds[1], STDERR_FILENO);
		(void)dup2(fds[1], STDOUT_FILENO);
		code = run();
		(void)fflush(NULL);
		_exit(code);
	}
	close(fds[1]);
	node.says = fds[0];
}

/* Reads what it says; false at its end. */
static bool listen_to(void)
{
	struct pollfd p = { .fd = node.says, .events = POLLIN };
	size_t room = sizeof(node.text) - 1 - node.n;
	ssize_t n;

	EXPECT_TRUE(room > 0);
	if (poll(&p, 1, WAIT_MS) != 1)
		FAIL("it says nothing more after: %s", node.text);
	n = read(node.says, node.text + node.n, room);
	if (n <= 0)
		return false;
	node.n += (size_t)n;
	node.text[node.n] = '\0';
	return true;
}

static void wait_for(const char *part)
{
	while (strstr(node.text, part) == NULL)
		if (!listen_to())
			FAIL("it ended without `%s`: %s", part, node.text);
}

static void expect_end(int code)
{
	int status;

	while (listen_to())
		;
	close(node.says);
	status = runner_reap(node.pid);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != code)
		FAIL("wait status 0x%x, expected exit %d: %s", (unsigned)status,
		     code, node.text);
}

static void kill_hard(void)
{
	kill(node.pid, SIGKILL);
	while (listen_to())
		;
	close(node.says);
	(void)runner_reap(node.pid);
}

static int serve_dev(void)
{
	return node_run(&cfg, true);
}

static int serve(void)
{
	return node_run(&cfg, false);
}

static int format(void)
{
	return node_format(&cfg);
}

static int verify(void)
{
	return node_log_verify(data, false);
}

static int dump(void)
{
	return node_log_verify(data, true);
}

static bool can_connect(void)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	bool ok;

	snprintf(a.sun_path, sizeof(a.sun_path), "%.100s", cfg.socket);
	ok = connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0;
	close(fd);
	return ok;
}

static void run_and_stop(int signal)
{
	struct stat st;
	char pid[32] = "";
	FILE *f;

	begin(serve_dev);
	wait_for("node_ready");
	EXPECT_TRUE(can_connect());
	f = fopen(cfg.pid_file, "r");
	EXPECT_NOT_NULL(f);
	EXPECT_NOT_NULL(fgets(pid, sizeof(pid), f));
	fclose(f);
	EXPECT_INT(strtol(pid, NULL, 10), node.pid);
	EXPECT_INT(stat(cfg.pid_file, &st), 0);
	EXPECT_UINT(st.st_mode & 077, 0);
	EXPECT_INT(stat(cfg.data, &st), 0);
	EXPECT_UINT(st.st_mode & 07777, 0700);
	kill(node.pid, signal);
	expect_end(NODE_EXIT_OK);
	EXPECT_HAS(node.text, "node_stopped");
	EXPECT_TRUE(access(cfg.pid_file, F_OK) != 0);
	EXPECT_TRUE(access(cfg.socket, F_OK) != 0);
}

TEST(it_serves_and_ends_with_0)
{
	dev("d");
	run_and_stop(SIGTERM);
	run_and_stop(SIGINT);
	/* Parents are made too. */
	dev("a/b/c");
	run_and_stop(SIGTERM);
}

TEST(killed_it_begins_again)
{
	dev("d");
	begin(serve_dev);
	wait_for("node_ready");
	kill_hard();
	/* Over what it left: the socket, the process id. */
	EXPECT_INT(access(cfg.socket, F_OK), 0);
	run_and_stop(SIGTERM);
}

TEST(one_node_per_data_directory)
{
	struct config first;
	pid_t pid;
	int says;

	dev("d");
	begin(serve_dev);
	wait_for("node_ready");
	pid = node.pid;
	says = node.says;
	first = cfg;
	snprintf(cfg.socket, sizeof(cfg.socket), "%s/other", runner_dir());
	cfg.pid_file[0] = '\0';
	begin(serve_dev);
	expect_end(NODE_EXIT_BUSY);
	EXPECT_HAS(node.text, "holdfastd: ");
	begin(verify);
	expect_end(NODE_EXIT_BUSY);
	begin(format);
	expect_end(NODE_EXIT_BUSY);
	cfg = first;
	EXPECT_TRUE(can_connect());
	node.pid = pid;
	node.says = says;
	kill(pid, SIGTERM);
	expect_end(NODE_EXIT_OK);
}

TEST(only_what_formats_formats)
{
	dev("d");
	begin(serve);
	expect_end(NODE_EXIT_DATA);
	EXPECT_TRUE(access(data, F_OK) != 0);
	begin(format);
	expect_end(NODE_EXIT_OK);
	begin(format);
	expect_end(NODE_EXIT_BUSY);
	EXPECT_HAS(node.text, "is a data directory already");
	begin(serve);
	wait_for("node_ready");
	kill(node.pid, SIGTERM);
	expect_end(NODE_EXIT_OK);
}

TEST(a_node_that_nobody_can_call)
{
	dev("d");
	cfg.socket[0] = '\0';
	begin(serve_dev);
	expect_end(NODE_EXIT_CONFIG);
	EXPECT_HAS(node.text, "listen.socket");
	dev("d");
	memset(cfg.socket, 'x', 200);
	cfg.socket[0] = '/';
	cfg.socket[200] = '\0';
	begin(serve_dev);
	expect_end(NODE_EXIT_CONFIG);
	EXPECT_HAS(node.text, "a Unix socket has at most");
}

TEST(a_grant_that_means_nothing)
{
	dev("d");
	snprintf(cfg.grants[0].cls, sizeof(cfg.grants[0].cls), "none");
	begin(serve_dev);
	expect_end(NODE_EXIT_CONFIG);
	EXPECT_HAS(node.text, "`none`");
}

TEST(a_copied_directory_is_refused)
{
	char command[700];

	dev("d");
	begin(format);
	expect_end(NODE_EXIT_OK);
	snprintf(command, sizeof(command), "cp -r '%s' '%s.copy'", data, data);
	EXPECT_INT(system(command), 0);
	dev("d.copy");
	begin(serve_dev);
	expect_end(NODE_EXIT_DATA);
	EXPECT_TRUE(node.n > 0);
}

TEST(a_directory_that_cannot_be_made)
{
	char path[400];
	FILE *f;

	dev("d");
	snprintf(path, sizeof(path), "%s/file", runner_dir());
	f = fopen(path, "w");
	EXPECT_NOT_NULL(f);
	fclose(f);
	dev("file/d");
	begin(serve_dev);
	expect_end(NODE_EXIT_FAIL_STOP);
	EXPECT_HAS(node.text, "file");
}

TEST(the_log_of_a_stopped_node)
{
	dev("d");
	run_and_stop(SIGTERM);
	begin(verify);
	expect_end(NODE_EXIT_OK);
	EXPECT_HAS(node.text, "the log is whole");
	begin(dump);
	expect_end(NODE_EXIT_OK);
	EXPECT_HAS(node.text, "shard 0 index 1 ");
	EXPECT_HAS(node.text, "shard 1 index 1 ");
}

static void flip(const char *name, long at)
{
	char path[700];
	FILE *f;
	int byte;

	snprintf(path, sizeof(path), "%s/%s", data, name);
	f = fopen(path, "r+");
	EXPECT_NOT_NULL(f);
	EXPECT_INT(fseek(f, at, SEEK_SET), 0);
	byte = fgetc(f);
	EXPECT_INT(fseek(f, at, SEEK_SET), 0);
	EXPECT_INT(fputc(byte ^ 1, f), byte ^ 1);
	EXPECT_INT(fclose(f), 0);
}

static void first_segment(char *out, size_t n)
{
	char path[400];
	char *roots[] = { path, NULL };
	FTSENT *e;
	FTS *fts;

	snprintf(path, sizeof(path), "%s/log", data);
	out[0] = '\0';
	fts = fts_open(roots, FTS_PHYSICAL, NULL);
	EXPECT_NOT_NULL(fts);
	while ((e = fts_read(fts)) != NULL)
		if (e->fts_info == FTS_F &&
		    (out[0] == '\0' || strcmp(e->fts_name, out + 4) < 0))
			snprintf(out, n, "log/%s", e->fts_name);
	fts_close(fts);
	EXPECT_TRUE(out[0] != '\0');
}

TEST(damage_is_told_and_not_served)
{
	char name[300];

	dev("d");
	/* Nothing of it is anywhere else yet. */
	begin(serve_dev);
	wait_for("node_ready");
	kill_hard();
	/* In the first batch that the first boot wrote. */
	first_segment(name, sizeof(name));
	flip(name, 4096 + 100);
	begin(verify);
	expect_end(NODE_EXIT_DATA);
	begin(serve_dev);
	expect_end(NODE_EXIT_DATA);
	EXPECT_HAS(node.text, "holdfastd: ");
}

TEST(both_copies_of_the_identity)
{
	dev("d");
	begin(format);
	expect_end(NODE_EXIT_OK);
	flip("identity", 20);
	flip("identity", 4096 + 20);
	begin(serve_dev);
	expect_end(NODE_EXIT_DATA);
	begin(verify);
	expect_end(NODE_EXIT_DATA);
}

TEST(no_such_directory)
{
	dev("none");
	begin(verify);
	expect_end(NODE_EXIT_DATA);
	EXPECT_TRUE(access(data, F_OK) != 0);
}
