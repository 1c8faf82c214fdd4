#include "node/core/reserve.h"

#include <stdlib.h>

#include "node/base/check.h"

#define RESERVE_FILE  "reserve"
#define RESERVE_CHUNK (1u << 20)

/* Made again only when it does not bring the node back to its edge. */
#define RESERVE_ROOM 4u

static enum rc fill(struct disk_file *f, uint64_t bytes)
{
	uint8_t *zeros = calloc(1, RESERVE_CHUNK);
	uint64_t at = 0;
	enum rc rc = zeros == NULL ? RC_NOMEM : RC_OK;

	while (rc == RC_OK && at < bytes) {
		size_t n = bytes - at < RESERVE_CHUNK ? (size_t)(bytes - at)
						      : RESERVE_CHUNK;

		rc = disk_write(f, zeros, n, at);
		at += n;
	}
	if (rc == RC_OK)
		rc = disk_sync(f);
	free(zeros);
	return rc;
}

static void drop(struct reserve *r)
{
	if (disk_unlink(r->disk, RESERVE_FILE) == RC_OK)
		(void)disk_sync_dir(r->disk, "");
	r->held = false;
}

/* Nobody depends on the file: where it cannot be made there is none. */
static void make(struct reserve *r)
{
	struct disk_file *f;
	enum rc rc = disk_open(r->disk, RESERVE_FILE, DISK_CREATE, &f, NULL);

	if (rc != RC_OK)
		return;
	rc = fill(f, r->bytes);
	disk_close(f);
	if (rc == RC_OK)
		r->held = true;
	else
		drop(r);
}

static void find(void *arg, const char *name)
{
	struct reserve *r = arg;
	const char *want = RESERVE_FILE;

	while (*want != '\0' && *want == *name) {
		want++;
		name++;
	}
	if (*want == '\0' && *name == '\0')
		r->held = true;
}

bool reserve_low(const struct reserve *r)
{
	return r->space.bytes_free < r->bytes;
}

enum rc reserve_open(struct reserve *r, struct disk *disk, uint64_t bytes)
{
	enum rc rc;

	*r = (struct reserve){ .disk = disk, .bytes = bytes };
	rc = disk_list(disk, "", find, r);
	if (rc == RC_OK)
		rc = disk_space(disk, &r->space);
	if (rc == RC_OK && r->held && (reserve_low(r) || bytes == 0)) {
		drop(r);
		rc = disk_space(disk, &r->space);
	}
	return rc;
}

enum rc reserve_look(struct reserve *r)
{
	enum rc rc = disk_space(r->disk, &r->space);

	if (rc == RC_OK && !r->held && r->bytes > 0 &&
	    r->space.bytes_free / RESERVE_ROOM > r->bytes)
		make(r);
	return rc;
}
