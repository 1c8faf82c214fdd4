/*
 * The arena: one private mapping, locked and outside of core dumps.
 *
 *	guard page | page | page | ... | page | guard page
 *
 * A secret has a page of its own and stands at its end, so that reading beyond
 * it meets the next page, which is inaccessible unless that one is open too.
 * Page protection is the switch of secret_begin() and secret_end(): a stray
 * pointer faults instead of reading a key. What we need to know about a page
 * (owner, length) is kept outside, where it can be read without opening it.
 */
#include "node/base/secret.h"

#include <errno.h>
#include <sodium.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "node/base/check.h"

#define SECRET_MAGIC 0x5ec2e701u
#define ALIGN        16u

struct secret {
	uint32_t magic; /* 0: free. */
	uint16_t n;
	bool open;
	struct secret *next; /* In the free list. */
};

static struct {
	uint8_t *map; /* NULL: no arena. */
	size_t map_bytes;
	uint8_t *pages; /* After the first guard page. */
	size_t page_bytes;
	size_t pages_n;
	struct secret *slots;
	struct secret *free_list;
} arena;

static uint8_t *page_of(const struct secret *s)
{
	return arena.pages + (size_t)(s - arena.slots) * arena.page_bytes;
}

static uint8_t *bytes_of(const struct secret *s)
{
	size_t room = (s->n + ALIGN - 1u) / ALIGN * ALIGN;

	return page_of(s) + arena.page_bytes - room;
}

static void protect(void *p, size_t n, int prot)
{
	CHECK(mprotect(p, n, prot) == 0);
}

/* RC_DENIED: a limit holds the lock back. */
static enum rc lock_pages(size_t bytes, struct detail *why)
{
	struct rlimit limit = { 0, 0 };

	/* mlock2, because sanitizers make mlock a function that does
	 * nothing and says that it did. */
	if (mlock2(arena.pages, bytes, 0) == 0)
		return RC_OK;
	(void)getrlimit(RLIMIT_MEMLOCK, &limit);
	return detail_set(why, RC_DENIED, "limits.secret_bytes",
			  "cannot lock %zu bytes for secrets (errno %d); "
			  "RLIMIT_MEMLOCK is %llu: raise it (ulimit -l, "
			  "LimitMEMLOCK=) or make the arena smaller",
			  bytes, errno, (unsigned long long)limit.rlim_cur);
}

static enum rc arena_map(size_t bytes, struct detail *why)
{
	uint8_t *map;
	enum rc rc;

	arena.page_bytes = (size_t)sysconf(_SC_PAGESIZE);
	PRE(arena.page_bytes >= SECRET_BYTES_MAX);
	arena.pages_n = bytes / arena.page_bytes;
	PRE(arena.pages_n > 0);
	bytes = arena.pages_n * arena.page_bytes;
	arena.map_bytes = bytes + 2 * arena.page_bytes;
	map = mmap(NULL, arena.map_bytes, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return detail_set(why, RC_NOMEM, NULL,
				  "cannot map %zu bytes for secrets",
				  arena.map_bytes);
	arena.map = map;
	arena.pages = map + arena.page_bytes;
	protect(map, arena.page_bytes, PROT_NONE);
	protect(arena.pages + bytes, arena.page_bytes, PROT_NONE);
	if (madvise(arena.pages, bytes, MADV_DONTDUMP) != 0 ||
	    madvise(arena.pages, bytes, MADV_WIPEONFORK) != 0) {
		rc = detail_set(why, RC_DENIED, NULL,
				"this kernel cannot keep the memory of "
				"secrets out of core dumps and children");
		goto unmap;
	}
	/* While it is accessible: locking touches every page. */
	rc = lock_pages(bytes, why);
	if (rc != RC_OK)
		goto unmap;
	protect(arena.pages, bytes, PROT_NONE);
	return RC_OK;

unmap:
	CHECK(munmap(map, arena.map_bytes) == 0);
	arena.map = NULL;
	return rc;
}

static enum rc harden_process(struct detail *why)
{
	static const struct rlimit none = { 0, 0 };

	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 ||
	    setrlimit(RLIMIT_CORE, &none) != 0)
		return detail_set(why, RC_DENIED, NULL,
				  "cannot switch core dumps off");
	return RC_OK;
}

enum rc secret_arena_open(size_t bytes, bool harden, struct detail *why)
{
	enum rc rc;
	size_t i;

	PRE(arena.map == NULL);
	if (harden) {
		rc = harden_process(why);
		if (rc != RC_OK)
			return rc;
	}
	rc = arena_map(bytes, why);
	if (rc != RC_OK)
		return rc;
	arena.slots = calloc(arena.pages_n, sizeof(*arena.slots));
	if (arena.slots == NULL) {
		secret_arena_close();
		return detail_set(why, RC_NOMEM, NULL,
				  "no memory for the table of secrets");
	}
	for (i = arena.pages_n; i-- > 0;) {
		arena.slots[i].next = arena.free_list;
		arena.free_list = &arena.slots[i];
	}
	return RC_OK;
}

void secret_arena_close(void)
{
	size_t bytes = arena.pages_n * arena.page_bytes;

	if (arena.map == NULL)
		return;
	protect(arena.pages, bytes, PROT_READ | PROT_WRITE);
	sodium_memzero(arena.pages, bytes);
	CHECK(munmap(arena.map, arena.map_bytes) == 0);
	free(arena.slots);
	memset(&arena, 0, sizeof(arena));
}

enum rc secret_new(const uint8_t *p, size_t n, struct secret **out)
{
	struct secret *s = arena.free_list;

	PRE(arena.map != NULL);
	PRE(n > 0);
	PRE(n <= SECRET_BYTES_MAX);
	if (s == NULL)
		return RC_OVERLOADED;
	arena.free_list = s->next;
	s->next = NULL;
	s->magic = SECRET_MAGIC;
	s->n = (uint16_t)n;
	protect(page_of(s), arena.page_bytes, PROT_READ | PROT_WRITE);
	memcpy(bytes_of(s), p, n);
	protect(page_of(s), arena.page_bytes, PROT_NONE);
	*out = s;
	return RC_OK;
}

void secret_free(struct secret *s)
{
	if (s == NULL)
		return;
	CHECK_OBJ(s, SECRET_MAGIC);
	PRE(!s->open);
	protect(page_of(s), arena.page_bytes, PROT_READ | PROT_WRITE);
	sodium_memzero(bytes_of(s), s->n);
	protect(page_of(s), arena.page_bytes, PROT_NONE);
	s->magic = 0;
	s->next = arena.free_list;
	arena.free_list = s;
}

size_t secret_bytes(const struct secret *s)
{
	CHECK_OBJ(s, SECRET_MAGIC);
	return s->n;
}

const uint8_t *secret_begin(struct secret *s)
{
	CHECK_OBJ(s, SECRET_MAGIC);
	PRE(!s->open);
	s->open = true;
	protect(page_of(s), arena.page_bytes, PROT_READ);
	return bytes_of(s);
}

void secret_end(struct secret *s)
{
	CHECK_OBJ(s, SECRET_MAGIC);
	PRE(s->open);
	protect(page_of(s), arena.page_bytes, PROT_NONE);
	s->open = false;
}
