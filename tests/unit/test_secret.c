#include "node/base/secret.h"

#include <signal.h>
#include <sys/prctl.h>

#include "tests/lib/runner.h"

#define PAGE ((size_t)sysconf(_SC_PAGESIZE))

static struct secret *secret_of(const char *text)
{
	struct secret *s = NULL;

	EXPECT_RC(secret_new((const uint8_t *)text, strlen(text), &s), RC_OK);
	return s;
}

static void expect_secret(struct secret *s, const char *text)
{
	EXPECT_UINT(secret_bytes(s), strlen(text));
	EXPECT_MEM(secret_begin(s), text, strlen(text));
	secret_end(s);
}

TEST(gives_back_what_it_got)
{
	struct secret *a;
	struct secret *b;

	EXPECT_RC(secret_arena_open(8 * PAGE, false, NULL), RC_OK);
	a = secret_of("correct horse battery staple");
	b = secret_of("x");
	expect_secret(b, "x");
	expect_secret(a, "correct horse battery staple");
	secret_free(a);
	a = secret_of("another");
	expect_secret(a, "another");
	expect_secret(b, "x");
	secret_free(a);
	secret_free(b);
	secret_free(NULL);
	secret_arena_close();
}

TEST(holds_as_many_as_pages_then_says_overloaded)
{
	uint8_t big[SECRET_BYTES_MAX];
	struct secret *s[8];
	struct secret *more;
	unsigned i;

	EXPECT_RC(secret_arena_open(8 * PAGE, false, NULL), RC_OK);
	for (i = 0; i < 8; i++) {
		memset(big, (int)i + 1, sizeof(big));
		EXPECT_RC(secret_new(big, sizeof(big), &s[i]), RC_OK);
	}
	EXPECT_RC(secret_new(big, 1, &more), RC_OVERLOADED);
	secret_free(s[3]);
	EXPECT_RC(secret_new(big, 1, &s[3]), RC_OK);
	for (i = 0; i < 8; i++) {
		EXPECT_UINT(secret_begin(s[i])[0], i == 3 ? 8 : i + 1);
		secret_end(s[i]);
	}
	secret_arena_close();
	secret_arena_close();
}

/* The address of `s`, not to be used: reading it must fault. */
static const volatile uint8_t *address_of(struct secret *s)
{
	const volatile uint8_t *p = secret_begin(s);

	secret_end(s);
	return p;
}

static void expect_fault(const volatile uint8_t *p)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		(void)signal(SIGSEGV, SIG_DFL);
		(void)*p;
		_exit(0);
	}
	status = runner_reap(pid);
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_INT(WTERMSIG(status), SIGSEGV);
}

TEST(closed_free_and_outside_bytes_are_inaccessible)
{
	struct secret *a;
	struct secret *b;
	const volatile uint8_t *p;

	EXPECT_RC(secret_arena_open(2 * PAGE, false, NULL), RC_OK);
	a = secret_of("0123456789abcdef");
	b = secret_of("0123456789abcdef");
	p = address_of(a);
	expect_fault(p);
	/* Open: the bytes after it belong to the next, closed page. */
	p = secret_begin(a);
	EXPECT_UINT(*p, '0');
	expect_fault(p + 16);
	secret_end(a);
	/* After the last one there is a guard. */
	p = secret_begin(b);
	expect_fault(p + 16);
	secret_end(b);
	secret_free(a);
	expect_fault(address_of(b) - PAGE);
	secret_free(b);
	secret_arena_close();
}

TEST(a_child_finds_zeros)
{
	struct secret *s;
	pid_t pid;
	int status;

	EXPECT_RC(secret_arena_open(PAGE, false, NULL), RC_OK);
	s = secret_of("not for children");
	pid = fork();
	if (pid == 0) {
		const uint8_t *p = secret_begin(s);
		unsigned i;

		for (i = 0; i < 16; i++)
			if (p[i] != 0)
				_exit(1);
		_exit(0);
	}
	status = runner_reap(pid);
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_INT(WEXITSTATUS(status), 0);
	expect_secret(s, "not for children");
	secret_arena_close();
}

/* Found in the kernel's list: the pages are locked and not dumped. */
static bool smaps_has(const volatile uint8_t *p, const char *flags[2])
{
	char line[512];
	bool here = false;
	bool found = false;
	unsigned long from;
	unsigned long to;
	FILE *f = fopen("/proc/self/smaps", "r");

	EXPECT_NOT_NULL(f);
	while (fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = (uintptr_t)p >= from && (uintptr_t)p < to;
		else if (here && strncmp(line, "VmFlags:", 8) == 0)
			found = strstr(line, flags[0]) != NULL &&
				strstr(line, flags[1]) != NULL;
	}
	(void)fclose(f);
	return found;
}

TEST(pages_are_locked_and_not_dumped)
{
	const char *flags[2] = { " lo", " dd" };
	struct secret *s;

	EXPECT_RC(secret_arena_open(SECRET_ARENA_BYTES_DEFAULT, false, NULL),
		  RC_OK);
	s = secret_of("k");
	EXPECT_TRUE(smaps_has(address_of(s), flags));
	secret_arena_close();
}

/* In a child: limits and dumpability do not come back. Root is not bound by
 * RLIMIT_MEMLOCK, so it becomes nobody first. */
static void open_without_memlock(void)
{
	static const struct rlimit none = { 0, 0 };
	struct detail why = { 0 };

	if (setrlimit(RLIMIT_MEMLOCK, &none) != 0)
		_exit(1);
	if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
		_exit(2);
	if (secret_arena_open(4 * PAGE, false, &why) != RC_DENIED)
		_exit(3);
	if (strstr(why.text, "RLIMIT_MEMLOCK is 0") == NULL)
		_exit(4);
	/* A refusal leaves nothing behind: it may be tried again. */
	if (secret_arena_open(4 * PAGE, false, NULL) != RC_DENIED)
		_exit(5);
	_exit(77);
}

TEST(start_is_refused_when_it_cannot_be_locked)
{
	EXPECT_EXIT(open_without_memlock(), 77);
}

static void harden(void)
{
	struct rlimit core;

	if (secret_arena_open(4 * PAGE, true, NULL) != RC_OK)
		_exit(1);
	if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0)
		_exit(2);
	if (getrlimit(RLIMIT_CORE, &core) != 0 || core.rlim_max != 0)
		_exit(3);
	_exit(77);
}

TEST(hardening_switches_core_dumps_off)
{
	EXPECT_EXIT(harden(), 77);
}

static void begin_twice(struct secret *s)
{
	(void)secret_begin(s);
	(void)secret_begin(s);
}

static void use_after_free(struct secret *s)
{
	secret_free(s);
	(void)secret_begin(s);
}

static void free_open(struct secret *s)
{
	(void)secret_begin(s);
	secret_free(s);
}

TEST(mistakes_are_held_back)
{
	uint8_t big[SECRET_BYTES_MAX + 1] = { 0 };
	struct secret *s;
	struct secret *t;

	EXPECT_ABORT(secret_new(big, 1, &t));
	EXPECT_RC(secret_arena_open(2 * PAGE, false, NULL), RC_OK);
	s = secret_of("k");
	EXPECT_ABORT(begin_twice(s));
	EXPECT_ABORT(use_after_free(s));
	EXPECT_ABORT(free_open(s));
	EXPECT_ABORT(secret_end(s));
	EXPECT_ABORT(secret_new(big, 0, &t));
	EXPECT_ABORT(secret_new(big, sizeof(big), &t));
	EXPECT_ABORT(secret_arena_open(PAGE, false, NULL));
	secret_arena_close();
}
