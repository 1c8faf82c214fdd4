#include "node/base/check.h"

#include <stdatomic.h>

#define HOOKS_MAX 4

static struct {
	void (*hook)(void *arg);
	void *arg;
} hooks[HOOKS_MAX];
static unsigned hooks_n;

/* Only the first fault tells; one inside a hook, or on another thread
 * meanwhile, must not hide it. */
static atomic_flag panicking = ATOMIC_FLAG_INIT;

void panic_hook(void (*hook)(void *arg), void *arg)
{
	PRE(hook != NULL);
	PRE(hooks_n < HOOKS_MAX);
	hooks[hooks_n].hook = hook;
	hooks[hooks_n].arg = arg;
	hooks_n++;
}

_Noreturn void panic_at(const char *file, int line, const char *kind,
			const char *condition)
{
	unsigned i;

	(void)fprintf(stderr, "holdfast: %s:%d: %s failed: %s\n", file, line,
		      kind, condition);
	if (!atomic_flag_test_and_set(&panicking))
		for (i = 0; i < hooks_n; i++)
			hooks[i].hook(hooks[i].arg);
	(void)fflush(stderr);
	abort();
}
