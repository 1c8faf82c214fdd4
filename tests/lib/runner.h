/*
 * runner - the test runner: one header, no library.
 *
 *	#include "tests/lib/runner.h"
 *
 *	TEST(pool_refuses_when_empty)
 *	{
 *		EXPECT_NULL(pool_take(&pool));
 *	}
 *
 * That is a whole program: main() is in here, and every TEST() registers
 * itself before main() runs. A check that fails says where, prints both values
 * and ends its test; the next test goes on. Tests run in the order of the file.
 *
 *	test_pool               runs all, exits 1 when one failed
 *	test_pool NAME...       runs those
 *	test_pool --list        names them
 *
 * The last line is `# test_pool: 12 passed, 0 failed`; ./check adds those up.
 * In testing builds HOLDFAST_MUTANT=NAME switches a fault of mutant.tbl on.
 *
 * The checks take what came first and what was wanted second, evaluate each
 * argument once, and are called from the thread that runs the test: on another
 * thread a failing check ends the program, because there is no way back.
 *
 * A helper in a second .c file may include this too: the state and main() are
 * weak symbols, so that all of them share one.
 */
#ifndef TESTS_LIB_RUNNER_H
#define TESTS_LIB_RUNNER_H

#include <errno.h>
#include <fts.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef HOLDFAST_TESTING
#include "node/base/mutant.h"
/* Linked where the modules under test have faults. */
#pragma weak mutant_now
#pragma weak mutant_parse
#endif

#define RUNNER_WEAK           __attribute__((weak))
#define RUNNER_SAYS_BYTES_MAX 65536

struct runner_test {
	const char *name;
	void (*run)(void);
	struct runner_test *next;
};

struct runner {
	struct runner_test *first;
	struct runner_test **end;
	const struct runner_test *now; /* NULL between tests. */
	const char *program;           /* Without its directory. */
	pthread_t thread;              /* The one that may jump. */
	sigjmp_buf back;
	bool failed; /* The test that runs now. */
	char context[256];
	char dir[256]; /* Of this test; empty: it asked for none. */
};

extern struct runner runner_state;
RUNNER_WEAK struct runner runner_state;

static inline void runner_add(struct runner_test *t)
{
	if (runner_state.end == NULL)
		runner_state.end = &runner_state.first;
	*runner_state.end = t;
	runner_state.end = &t->next;
}

/* One test. `name` is a C identifier and unique in its program. */
#define TEST(name_)                                                       \
	static void test_##name_(void);                                   \
	static struct runner_test runner_test_##name_ = { #name_,         \
							  test_##name_,   \
							  NULL };         \
	__attribute__((constructor)) static void runner_add_##name_(void) \
	{                                                                 \
		runner_add(&runner_test_##name_);                         \
	}                                                                 \
	static void test_##name_(void)

/*
 * Says with the next failure in which round of a loop it happened:
 * runner_context("write %d fails", n). An empty text takes it back; it ends
 * with the test.
 */
__attribute__((format(printf, 1, 2))) static inline void runner_context(
	const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	(void)vsnprintf(runner_state.context, sizeof(runner_state.context),
			format, ap);
	va_end(ap);
}

/* Fails the test that runs now, with a sentence, and does not return. */
__attribute__((noreturn, format(printf, 3, 4))) static inline void runner_fail(
	const char *file, int line, const char *format, ...)
{
	va_list ap;

	flockfile(stdout);
	printf("%s:%d: %s: ", file, line,
	       runner_state.now != NULL ? runner_state.now->name : "?");
	va_start(ap, format);
	(void)vprintf(format, ap);
	va_end(ap);
	if (runner_state.context[0] != '\0')
		printf(" (%s)", runner_state.context);
	printf("\n");
	funlockfile(stdout);
	(void)fflush(stdout);
	if (runner_state.now == NULL ||
	    !pthread_equal(pthread_self(), runner_state.thread))
		_exit(1);
	runner_state.failed = true;
	siglongjmp(runner_state.back, 1);
}

static inline void runner_expect_int(const char *file, int line,
				     const char *text, int64_t got,
				     int64_t want)
{
	if (got != want)
		runner_fail(file, line, "%s is %" PRId64 ", expected %" PRId64,
			    text, got, want);
}

static inline void runner_expect_uint(const char *file, int line,
				      const char *text, uint64_t got,
				      uint64_t want)
{
	if (got != want)
		runner_fail(file, line,
			    "%s is %" PRIu64 " (0x%" PRIx64
			    "), expected %" PRIu64 " (0x%" PRIx64 ")",
			    text, got, got, want, want);
}

static inline void runner_expect_str(const char *file, int line,
				     const char *text, const char *got,
				     const char *want)
{
	if (got == want)
		return;
	if (got == NULL || want == NULL || strcmp(got, want) != 0)
		runner_fail(file, line, "%s is \"%s\", expected \"%s\"", text,
			    got != NULL ? got : "(null)",
			    want != NULL ? want : "(null)");
}

static inline void runner_expect_has(const char *file, int line,
				     const char *text, const char *got,
				     const char *part)
{
	if (got == NULL || strstr(got, part) == NULL)
		runner_fail(file, line, "%s is \"%s\", expected \"%s\" in it",
			    text, got != NULL ? got : "(null)", part);
}

/* At most 32 bytes from `at` on, as hex, for a message. */
static inline const char *runner_hex(const void *bytes, size_t n, size_t at,
				     char out[80])
{
	const uint8_t *p = bytes;
	size_t i;
	char *to = out;

	for (i = at; i < n && i < at + 32; i++)
		to += snprintf(to, 3, "%02x", p[i]);
	if (i < n)
		to += snprintf(to, 4, "...");
	*to = '\0';
	return out;
}

static inline void runner_expect_mem(const char *file, int line,
				     const char *text, const void *got,
				     const void *want, size_t n)
{
	const uint8_t *a = got;
	const uint8_t *b = want;
	char ga[80];
	char wa[80];
	size_t i;

	for (i = 0; i < n && a[i] == b[i]; i++)
		;
	if (i < n)
		runner_fail(file, line,
			    "%s differs from byte %zu of %zu: %s, expected %s",
			    text, i, n, runner_hex(a, n, i, ga),
			    runner_hex(b, n, i, wa));
}

static inline void runner_expect_null(const char *file, int line,
				      const char *text, const void *got)
{
	if (got != NULL)
		runner_fail(file, line, "%s is %p, expected NULL", text, got);
}

static inline void runner_expect_true(const char *file, int line,
				      const char *text, bool got, bool want)
{
	if (got != want)
		runner_fail(file, line, "%s is %s", text,
			    got ? "true" : "false");
}

#define EXPECT_TRUE(got) \
	runner_expect_true(__FILE__, __LINE__, #got, !!(got), true)
#define EXPECT_FALSE(got) \
	runner_expect_true(__FILE__, __LINE__, #got, !!(got), false)
#define EXPECT_INT(got, want)                                       \
	runner_expect_int(__FILE__, __LINE__, #got, (int64_t)(got), \
			  (int64_t)(want))
#define EXPECT_UINT(got, want)                                        \
	runner_expect_uint(__FILE__, __LINE__, #got, (uint64_t)(got), \
			   (uint64_t)(want))
#define EXPECT_STR(got, want) \
	runner_expect_str(__FILE__, __LINE__, #got, (got), (want))
/* `part` stands somewhere in the string `got`. */
#define EXPECT_HAS(got, part) \
	runner_expect_has(__FILE__, __LINE__, #got, (got), (part))
#define EXPECT_MEM(got, want, n) \
	runner_expect_mem(__FILE__, __LINE__, #got, (got), (want), (n))
#define EXPECT_NULL(got) runner_expect_null(__FILE__, __LINE__, #got, (got))
#define EXPECT_NOT_NULL(got)                                                   \
	runner_expect_true(__FILE__, __LINE__, #got " != NULL", (got) != NULL, \
			   true)

/* Result codes by name; the test includes client/proto/rc.h for it. */
#define EXPECT_RC(got, want)                                       \
	do {                                                       \
		enum rc runner_got = (got);                        \
		enum rc runner_want = (want);                      \
                                                                   \
		if (runner_got != runner_want)                     \
			runner_fail(__FILE__, __LINE__,            \
				    "%s is %s, expected %s", #got, \
				    rc_name(runner_got),           \
				    rc_name(runner_want));         \
	} while (0)

/* Ends the test as failed, with a sentence. */
#define FAIL(...) runner_fail(__FILE__, __LINE__, __VA_ARGS__)

/*
 * The child of runner_fork() runs the statement with stderr in `says` and no
 * core file; runner_reap() tells how it ended. Used by the macros below.
 */
static inline pid_t runner_fork(FILE *says)
{
	static const struct rlimit none = { 0, 0 };
	pid_t pid;

	(void)fflush(NULL);
	pid = fork();
	if (pid == 0) {
		(void)setrlimit(RLIMIT_CORE, &none);
		(void)signal(SIGABRT, SIG_DFL);
		(void)dup2(fileno(says), STDERR_FILENO);
		/* A check that fails in the child must not run the rest of
		 * the tests a second time: it exits instead. */
		runner_state.now = NULL;
	}
	return pid;
}

static inline int runner_reap(pid_t pid)
{
	int status = 0;

	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return status;
}

static inline void runner_expect_end(const char *file, int line,
				     const char *text, int status, int want,
				     bool by_signal, FILE *says,
				     const char *part)
{
	static char said[RUNNER_SAYS_BYTES_MAX];
	size_t n;

	rewind(says);
	n = fread(said, 1, sizeof(said) - 1, says);
	said[n] = '\0';
	(void)fclose(says);
	if (by_signal && !(WIFSIGNALED(status) && WTERMSIG(status) == want))
		runner_fail(file, line,
			    "%s did not die by signal %d (wait status 0x%x): "
			    "%s",
			    text, want, (unsigned)status, said);
	if (!by_signal && !(WIFEXITED(status) && WEXITSTATUS(status) == want))
		runner_fail(file, line,
			    "%s did not exit with %d (wait status 0x%x): %s",
			    text, want, (unsigned)status, said);
	if (part != NULL && strstr(said, part) == NULL)
		runner_fail(file, line, "%s said \"%s\", expected \"%s\" in it",
			    text, said, part);
}

#define RUNNER_FORKED(stmt, want, by_signal, part)                            \
	do {                                                                  \
		FILE *runner_says = tmpfile();                                \
		pid_t runner_pid;                                             \
                                                                              \
		if (runner_says == NULL)                                      \
			runner_fail(__FILE__, __LINE__, "no temporary file"); \
		runner_pid = runner_fork(runner_says);                        \
		if (runner_pid == 0) {                                        \
			stmt;                                                 \
			_exit(0);                                             \
		}                                                             \
		runner_expect_end(__FILE__, __LINE__, #stmt,                  \
				  runner_reap(runner_pid), (want),            \
				  (by_signal), runner_says, (part));          \
	} while (0)

/* The statement, run in a child, aborts: an assertion holds it back. */
#define EXPECT_ABORT(stmt) RUNNER_FORKED(stmt, SIGABRT, true, NULL)
/* The same, and stderr has `part` in it: it was the right assertion. */
#define EXPECT_ABORT_SAYS(stmt, part) RUNNER_FORKED(stmt, SIGABRT, true, part)
/* The statement, run in a child, exits with `code`: fail-stop. */
#define EXPECT_EXIT(stmt, code) RUNNER_FORKED(stmt, code, false, NULL)

/*
 * A fresh empty directory for this test, 0700, the same at each call; it and
 * all in it are removed when the test ends, failed or not.
 */
static inline const char *runner_dir(void)
{
	const char *base = getenv("TMPDIR");

	if (runner_state.dir[0] == '\0') {
		(void)snprintf(runner_state.dir, sizeof(runner_state.dir),
			       "%s/holdfast-test-XXXXXX",
			       base != NULL ? base : "/tmp");
		if (mkdtemp(runner_state.dir) == NULL) {
			runner_state.dir[0] = '\0';
			FAIL("mkdtemp: %s", strerror(errno));
		}
	}
	return runner_state.dir;
}

static inline void runner_dir_remove(void)
{
	char *roots[] = { runner_state.dir, NULL };
	FTS *fts;
	FTSENT *e;

	if (runner_state.dir[0] == '\0')
		return;
	fts = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	while (fts != NULL && (e = fts_read(fts)) != NULL)
		if (e->fts_info != FTS_D)
			(void)remove(e->fts_accpath);
	if (fts != NULL)
		(void)fts_close(fts);
	runner_state.dir[0] = '\0';
}

static inline void runner_timed_out(int sig)
{
	static const char text[] = ": timed out\n";
	const struct runner_test *t = runner_state.now;

	(void)sig;
	if (t != NULL && write(STDOUT_FILENO, t->name, strlen(t->name)) >= 0)
		(void)!write(STDOUT_FILENO, text, sizeof(text) - 1);
	_exit(1);
}

#ifdef __SANITIZE_THREAD__
/* libuv closes descriptors behind the back of the thread sanitizer, which then
 * takes two users of one number for a race. */
__attribute__((visibility("default"))) const char *__tsan_default_suppressions(
	void);
const char *__tsan_default_suppressions(void)
{
	return "race:libuv.so\n";
}
#endif

/* No test may hang: 120 s each, RUNNER_TIMEOUT_S for slower machines. */
static inline void runner_watch(bool on)
{
	const char *s = getenv("RUNNER_TIMEOUT_S");
	unsigned seconds = s != NULL ? (unsigned)strtoul(s, NULL, 10) : 120;

	(void)signal(SIGALRM, runner_timed_out);
	(void)alarm(on ? seconds : 0);
}

static inline bool runner_run_one(const struct runner_test *t)
{
	struct timespec a;
	struct timespec b;
	int64_t ms;

	runner_state.now = t;
	runner_state.failed = false;
	runner_state.context[0] = '\0';
	(void)clock_gettime(CLOCK_MONOTONIC, &a);
	runner_watch(true);
	if (sigsetjmp(runner_state.back, 1) == 0)
		t->run();
	runner_watch(false);
	(void)clock_gettime(CLOCK_MONOTONIC, &b);
	runner_dir_remove();
	runner_state.now = NULL;
	ms = (b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000;
	printf("%s %s", runner_state.failed ? "FAIL" : "ok  ", t->name);
	if (ms >= 100)
		printf(" (%" PRId64 " ms)", ms);
	printf("\n");
	(void)fflush(stdout);
	return !runner_state.failed;
}

static inline bool runner_wanted(const struct runner_test *t, int argc,
				 char **argv)
{
	int i;

	for (i = 1; i < argc; i++)
		if (strcmp(argv[i], t->name) == 0)
			return true;
	return argc == 1;
}

/* A name on the command line that no test has is a mistake, not a success. */
static inline const char *runner_unknown(int argc, char **argv)
{
	const struct runner_test *t;
	int i;

	for (i = 1; i < argc; i++) {
		for (t = runner_state.first; t != NULL; t = t->next)
			if (strcmp(argv[i], t->name) == 0)
				break;
		if (t == NULL)
			return argv[i];
	}
	return NULL;
}

/* False: there is no such fault here. */
static inline bool runner_mutate(void)
{
	const char *name = getenv("HOLDFAST_MUTANT");

#ifdef HOLDFAST_TESTING
	/* What a test that failed had switched on. */
	if (name == NULL && &mutant_now != NULL)
		mutant_now = MUTANT_none;
#endif
	if (name == NULL)
		return true;
#ifdef HOLDFAST_TESTING
	if (&mutant_now != NULL && mutant_parse(name) != MUTANTS) {
		mutant_now = mutant_parse(name);
		return true;
	}
#endif
	return false;
}

static inline int runner_main(int argc, char **argv)
{
	const struct runner_test *t;
	const char *slash = strrchr(argv[0], '/');
	unsigned passed = 0;
	unsigned failed = 0;

	runner_state.program = slash != NULL ? slash + 1 : argv[0];
	runner_state.thread = pthread_self();
	if (argc == 2 && strcmp(argv[1], "--list") == 0) {
		for (t = runner_state.first; t != NULL; t = t->next)
			printf("%s\n", t->name);
		return 0;
	}
	if (runner_unknown(argc, argv) != NULL) {
		(void)fprintf(stderr, "%s: no test is called %s\n",
			      runner_state.program, runner_unknown(argc, argv));
		return 2;
	}
	if (!runner_mutate()) {
		(void)fprintf(stderr, "%s: no fault is called %s here\n",
			      runner_state.program, getenv("HOLDFAST_MUTANT"));
		return 2;
	}
	for (t = runner_state.first; t != NULL; t = t->next) {
		if (!runner_wanted(t, argc, argv))
			continue;
		(void)runner_mutate();
		if (runner_run_one(t))
			passed++;
		else
			failed++;
	}
	printf("# %s: %u passed, %u failed\n", runner_state.program, passed,
	       failed);
	return failed == 0 && passed > 0 ? 0 : 1;
}

RUNNER_WEAK int main(int argc, char **argv)
{
	return runner_main(argc, argv);
}

#endif
