#include "tests/lib/fault.h"

#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>

/* What the linker's --wrap makes of the three. */
void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t each);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t each);
void *__wrap_realloc(void *p, size_t n);

static atomic_bool armed;
static atomic_bool for_good;
static atomic_bool fired;
static atomic_uint_fast64_t at;
static atomic_uint_fast64_t count;
static _Thread_local unsigned held;

static void arm(uint64_t nth, bool all_after)
{
	atomic_store(&armed, false);
	atomic_store(&at, nth);
	atomic_store(&count, 0);
	atomic_store(&for_good, all_after);
	atomic_store(&fired, false);
	atomic_store(&armed, nth > 0);
}

void fault_alloc(uint64_t nth)
{
	arm(nth, false);
}

void fault_alloc_from(uint64_t nth)
{
	arm(nth, true);
}

bool fault_off(void)
{
	atomic_store(&armed, false);
	return atomic_load(&fired);
}

bool fault_fired(void)
{
	return atomic_load(&fired);
}

uint64_t fault_count(void)
{
	return atomic_load(&count);
}

void fault_hold(void)
{
	held++;
}

void fault_release(void)
{
	held--;
}

bool fault_next(void)
{
	uint64_t n;

	if (!atomic_load(&armed) || held > 0)
		return false;
	n = atomic_fetch_add(&count, 1) + 1;
	if (n < atomic_load(&at))
		return false;
	if (n > atomic_load(&at) && !atomic_load(&for_good))
		return false;
	atomic_store(&fired, true);
	errno = ENOMEM;
	return true;
}

void *__wrap_malloc(size_t n)
{
	return fault_next() ? NULL : __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t each)
{
	return fault_next() ? NULL : __real_calloc(n, each);
}

void *__wrap_realloc(void *p, size_t n)
{
	return fault_next() ? NULL : __real_realloc(p, n);
}
