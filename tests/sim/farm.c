#include "tests/sim/farm.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "node/base/check.h"

#define CHILDREN_MAX 16u
#define REPORT_BYTES (4u << 20)
/* For its last words. */
#define LATE_SECONDS 5u

struct child {
	pid_t pid; /* 0: none. */
	int output;
	struct task task;
	struct finding *out;
};

static struct child children[CHILDREN_MAX];
static unsigned children_max = 1;
static unsigned seconds = 60;

void farm_init(unsigned n, unsigned seconds_max)
{
	unsigned i;

	PRE(n >= 1);
	PRE(n <= CHILDREN_MAX);
	children_max = n;
	seconds = seconds_max;
	for (i = 0; i < CHILDREN_MAX; i++) {
		children[i].pid = 0;
		if (children[i].out != NULL)
			continue;
		children[i].out = mmap(NULL, sizeof(struct finding),
				       PROT_READ | PROT_WRITE,
				       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		CHECK(children[i].out != MAP_FAILED);
	}
}

static void breach(struct finding *out, const char *invariant, const char *text)
{
	if (out->broken)
		return;
	out->broken = true;
	(void)snprintf(out->breach.invariant, sizeof(out->breach.invariant),
		       "%s", invariant);
	(void)snprintf(out->breach.text, sizeof(out->breach.text), "%s", text);
}

/* The line that says why a process ended itself. */
static const char *last_words(const char *report, char *line, size_t n)
{
	static const char *const signs[] = { "holdfast: ", "ERROR: ",
					     "runtime error: " };
	const char *at = NULL;
	size_t i;

	for (i = 0; i < ARRAY_LEN(signs) && at == NULL; i++)
		at = strstr(report, signs[i]);
	if (at == NULL)
		return "it said nothing";
	(void)snprintf(line, n, "%.*s", (int)strcspn(at, "\n"), at);
	return line;
}

/* The soft limit first, if it is heard. */
static bool is_late(int signal)
{
	return signal == SIGXCPU || signal == SIGKILL;
}

static void judge_status(int status, const char *report, struct finding *out)
{
	char line[400];
	const char *why = last_words(report, line, sizeof(line));

	if (WIFSIGNALED(status) && is_late(WTERMSIG(status)))
		breach(out, "ends", "it took too long");
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT)
		breach(out, "no-panic", why);
	else if (WIFSIGNALED(status))
		breach(out, "no-crash", strsignal(WTERMSIG(status)));
	else if (WEXITSTATUS(status) != 0)
		breach(out, "no-leak", why);
}

static char *report_read(int fd)
{
	char *report = calloc(1, REPORT_BYTES);
	size_t n = 0;
	ssize_t got;

	CHECK(report != NULL);
	(void)lseek(fd, 0, SEEK_SET);
	while (n < REPORT_BYTES - 1 &&
	       (got = read(fd, report + n, REPORT_BYTES - 1 - n)) > 0)
		n += (size_t)got;
	(void)close(fd);
	return report;
}

static void child_ended(struct child *c, int status)
{
	struct finding out = *c->out;
	struct task task = c->task;
	char *report = report_read(c->output);

	c->pid = 0;
	judge_status(status, report, &out);
	task.done(&task, &out, report);
	free(report);
}

/* False: there is no child. */
static bool wait_for_one(void)
{
	int status;
	pid_t pid;
	unsigned i;

	do
		pid = waitpid(-1, &status, 0);
	while (pid < 0 && errno == EINTR);
	for (i = 0; pid > 0 && i < CHILDREN_MAX; i++)
		if (children[i].pid == pid) {
			child_ended(&children[i], status);
			return true;
		}
	return pid > 0;
}

static struct child *free_child(void)
{
	unsigned i;

	for (;;) {
		for (i = 0; i < children_max; i++)
			if (children[i].pid == 0)
				return &children[i];
		(void)wait_for_one();
	}
}

bool farm_split(const struct task *t, struct finding **out)
{
	const struct rlimit limit = { seconds, seconds + LATE_SECONDS };
	struct child *c = free_child();
	pid_t pid;

	c->task = *t;
	memset(c->out, 0, sizeof(*c->out));
	c->output = memfd_create("sim", 0);
	CHECK(c->output >= 0);
	(void)fflush(NULL);
	pid = fork();
	CHECK(pid >= 0);
	if (pid > 0) {
		c->pid = pid;
		return false;
	}
	(void)dup2(c->output, STDERR_FILENO);
	(void)dup2(c->output, STDOUT_FILENO);
	*out = c->out;
	/* Of CPU time: a machine that is busy is no fault of the trial's. */
	(void)setrlimit(RLIMIT_CPU, &limit);
	/* What it starts itself is its own. */
	memset(children, 0, sizeof(children));
	return true;
}

_Noreturn void farm_leave(void)
{
	(void)fflush(NULL);
	exit(0);
}

void farm_start(const struct task *t)
{
	struct finding *out;

	if (!farm_split(t, &out))
		return;
	t->body(t, out);
	farm_leave();
}

void farm_wait(void)
{
	unsigned i;
	bool any;

	do {
		any = false;
		for (i = 0; i < CHILDREN_MAX; i++)
			any = any || children[i].pid != 0;
	} while (any && wait_for_one());
}
