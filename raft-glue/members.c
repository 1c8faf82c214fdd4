/*
 * The file `members` is 8 KiB: two areas of 4 KiB with the same content (pair.h
 * says in which order they are written). An area is eight sectors of 512 bytes,
 * the first for the whole, one for each member in order of id, the rest zero.
 * Integers little endian. The first:
 *
 *	  0  8  "HFMEMBER"
 *	  8  4  version, 1
 *	 12  4  how many members, 1..5
 *	 16  8  write counter
 *	 24     zero
 *	508  4  CRC-32C of all before
 *
 * Of a member:
 *
 *	  0  8  "HFMEMBER"
 *	  8  4  version, 1
 *	 12  4  its place, from 1
 *	 16  8  write counter, that of the first sector
 *	 24  8  node id
 *	 32 16  incarnation
 *	 48  8  boot that it greeted with last, 0: never
 *	 56 16  nonce of that boot
 *	 72 64  name, NUL-terminated
 *	136     zero
 *	508  4  CRC-32C of all before
 *
 * An area counts when all its sectors are sealed with the same write counter,
 * and the newer of two. While one is written the other is whole.
 */
#include "raft-glue/members.h"

#include <stdlib.h>
#include <string.h>

#include "node/base/check.h"
#include "node/base/mutant.h"
#include "raft-glue/le.h"
#include "raft-glue/pair.h"
#include "raft-glue/transport.h"

#define MEMBERS_VERSION 1u
#define MEMBERS_FILE    "members"
#define FILE_BYTES      (2u * PAIR_BLOCK)
#define MEMBERS_MAGIC   0x6d656d62u

_Static_assert((MEMBERS_MAX + 1) * PAIR_SECTOR <= PAIR_BLOCK,
	       "the members fit an area");

static const uint8_t members_tag[8] = {
	'H', 'F', 'M', 'E', 'M', 'B', 'E', 'R'
};

/* Somebody who waits for a change to be synced. */
struct note {
	void (*done)(void *arg, uint64_t node_id);
	void *arg;
	uint64_t node_id;
	uint64_t needs; /* Write counter that covers it; 0: a free slot. */
};

struct members {
	uint32_t magic;
	struct env *env;
	struct disk_file *file;
	uint8_t cluster_id[ID_BYTES];
	size_t self; /* Its place in the list. */
	size_t n;
	struct member list[MEMBERS_MAX];
	uint64_t changed[MEMBERS_MAX]; /* Counter of its last change. */
	uint64_t counter;
	uint64_t writing; /* What the job is about. */
	uint64_t synced;
	struct note notes[MEMBERS_NOTES_MAX];
	struct env_job job;
	struct env_task task;
	bool running;
	enum rc job_rc;
	uint8_t *image;
	void (*closed)(void *arg);
	void *closed_arg;
};

/* ---- the file ---- */

static void sector_encode(uint8_t *p, uint32_t number, uint64_t counter)
{
	memcpy(p, members_tag, 8);
	le_put32(p + 8, MEMBERS_VERSION);
	le_put32(p + 12, number);
	le_put64(p + 16, counter);
}

static void area_encode(uint8_t *p, const struct member *list, size_t n,
			uint64_t counter)
{
	size_t i;

	memset(p, 0, PAIR_BLOCK);
	sector_encode(p, (uint32_t)n, counter);
	pair_seal(p);
	for (i = 0; i < n; i++) {
		p += PAIR_SECTOR;
		sector_encode(p, (uint32_t)i + 1, counter);
		le_put64(p + 24, list[i].id);
		memcpy(p + 32, list[i].incarnation, ID_BYTES);
		le_put64(p + 48, list[i].boot);
		memcpy(p + 56, list[i].nonce, ID_BYTES);
		memcpy(p + 72, list[i].name, sizeof(list[i].name));
		pair_seal(p);
	}
}

static void image_encode(uint8_t *image, const struct member *list, size_t n,
			 uint64_t counter)
{
	area_encode(image, list, n, counter);
	memcpy(image + PAIR_BLOCK, image, PAIR_BLOCK);
}

/* What an area says. */
struct area {
	size_t n;
	uint64_t counter;
	struct member list[MEMBERS_MAX];
};

static bool sector_good(const uint8_t *p)
{
	return pair_sealed(p) && memcmp(p, members_tag, 8) == 0;
}

static bool member_decode(const uint8_t *p, uint32_t number, struct area *a)
{
	struct member *m = &a->list[number - 1];

	if (!sector_good(p) || le_get32(p + 12) != number ||
	    le_get64(p + 16) != a->counter)
		return false;
	m->id = le_get64(p + 24);
	memcpy(m->incarnation, p + 32, ID_BYTES);
	m->boot = le_get64(p + 48);
	memcpy(m->nonce, p + 56, ID_BYTES);
	memcpy(m->name, p + 72, sizeof(m->name));
	if (m->name[0] == '\0' || m->name[sizeof(m->name) - 1] != '\0')
		return false;
	return m->id > (number > 1 ? m[-1].id : 0);
}

static enum rc area_decode(const uint8_t *p, struct area *a)
{
	uint32_t i;

	if (!sector_good(p))
		return RC_CORRUPT;
	if (le_get32(p + 8) > MEMBERS_VERSION)
		return RC_VERSION;
	a->n = le_get32(p + 12);
	a->counter = le_get64(p + 16);
	if (a->n < 1 || a->n > MEMBERS_MAX || a->counter == 0)
		return RC_CORRUPT;
	for (i = 1; i <= a->n; i++)
		if (!member_decode(p + i * PAIR_SECTOR, i, a))
			return RC_CORRUPT;
	return RC_OK;
}

/* `*second_first`: the first area is the good one, or neither is bad and it is
 * the newer. */
static enum rc image_decode(const uint8_t *image, struct area *out,
			    bool *second_first, struct detail *why)
{
	struct area c[2];
	enum rc a = area_decode(image, &c[0]);
	enum rc b = area_decode(image + PAIR_BLOCK, &c[1]);
	bool second;

	if (a == RC_VERSION || b == RC_VERSION)
		return detail_set(why, RC_VERSION, NULL,
				  "a newer version of Holdfast wrote the file "
				  "%s",
				  MEMBERS_FILE);
	if (a != RC_OK && b != RC_OK)
		return detail_set(why, RC_CORRUPT, NULL,
				  "both copies in the file %s are damaged",
				  MEMBERS_FILE);
	second = b == RC_OK && (a != RC_OK || c[1].counter > c[0].counter);
	*out = c[second];
	*second_first = !second;
	return RC_OK;
}

static enum rc file_failed(enum rc rc, struct detail *why)
{
	return detail_set(why, rc, NULL, "cannot write the file %s",
			  MEMBERS_FILE);
}

enum rc members_format(struct disk *disk, const struct member *list, size_t n,
		       struct detail *why)
{
	uint8_t *image;
	struct disk_file *f;
	enum rc rc;
	size_t i;

	PRE(n >= 1);
	PRE(n <= MEMBERS_MAX);
	for (i = 0; i < n; i++) {
		PRE(list[i].id > (i > 0 ? list[i - 1].id : 0));
		PRE(list[i].name[0] != '\0');
		PRE(list[i].name[sizeof(list[i].name) - 1] == '\0');
	}
	image = pair_image(FILE_BYTES);
	if (image == NULL)
		return RC_NOMEM;
	image_encode(image, list, n, 1);
	rc = disk_open(disk, MEMBERS_FILE, DISK_CREATE, &f, why);
	if (rc == RC_OK) {
		rc = pair_write(f, image, FILE_BYTES, false);
		disk_close(f);
	}
	if (rc == RC_OK)
		rc = disk_sync_dir(disk, "");
	free(image);
	return rc == RC_OK ? RC_OK : file_failed(rc, why);
}

/* ---- opening ---- */

static enum rc load(struct disk *disk, uint8_t *image, struct area *a,
		    bool *second_first, struct detail *why)
{
	enum rc rc = pair_read(disk, MEMBERS_FILE, image, FILE_BYTES, NULL);

	if (rc == RC_NOT_FOUND)
		return detail_set(why, rc, NULL,
				  "the data directory has no file %s",
				  MEMBERS_FILE);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot open the file %s",
				  MEMBERS_FILE);
	return image_decode(image, a, second_first, why);
}

enum rc members_read(struct disk *disk, struct member *list, size_t *n,
		     struct detail *why)
{
	uint8_t *image = pair_image(FILE_BYTES);
	struct area a = { .n = 0 };
	bool second_first;
	enum rc rc;

	if (image == NULL)
		return RC_NOMEM;
	rc = load(disk, image, &a, &second_first, why);
	if (rc == RC_OK) {
		memcpy(list, a.list, a.n * sizeof(*list));
		*n = a.n;
	}
	free(image);
	return rc;
}

static enum rc find_self(const struct area *a, const struct identity *self,
			 size_t *place, struct detail *why)
{
	size_t i;

	for (i = 0; i < a->n; i++) {
		if (a->list[i].id != self->node_id)
			continue;
		*place = i;
		if (memcmp(a->list[i].incarnation, self->incarnation,
			   ID_BYTES) == 0)
			return RC_OK;
		return detail_set(why, RC_FOREIGN, NULL,
				  "the file %s is of another data directory of "
				  "node %llu",
				  MEMBERS_FILE,
				  (unsigned long long)self->node_id);
	}
	return detail_set(why, RC_FOREIGN, NULL,
			  "node %llu is not among the members in the file %s",
			  (unsigned long long)self->node_id, MEMBERS_FILE);
}

/* What was read may never have been synced, and one copy may be bad: it is
 * written again, that one first. */
static enum rc rewrite(struct disk *disk, struct members *m, bool second_first,
		       struct detail *why)
{
	enum rc rc = disk_open(disk, MEMBERS_FILE, 0, &m->file, why);

	if (rc != RC_OK)
		return rc;
	image_encode(m->image, m->list, m->n, m->counter);
	rc = pair_write(m->file, m->image, FILE_BYTES, second_first);
	if (rc == RC_OK)
		return RC_OK;
	disk_close(m->file);
	return file_failed(rc, why);
}

static void job_run(struct env_job *job);
static void job_done(struct env_job *job);
static void members_task(struct env_task *t);

static void members_set(struct members *m, const struct area *a,
			const struct identity *self)
{
	m->n = a->n;
	memcpy(m->list, a->list, sizeof(m->list));
	m->counter = a->counter;
	m->synced = a->counter;
	m->list[m->self].boot = self->boot;
	memcpy(m->list[m->self].nonce, self->nonce, ID_BYTES);
	memcpy(m->cluster_id, self->cluster_id, ID_BYTES);
}

enum rc members_open(struct env *env, struct disk *disk,
		     const struct identity *self, struct members **out,
		     struct detail *why)
{
	struct members *m = calloc(1, sizeof(*m));
	struct area a = { .n = 0 };
	bool second_first = false;
	enum rc rc;

	if (m == NULL)
		return RC_NOMEM;
	m->magic = MEMBERS_MAGIC;
	m->env = env;
	m->job = (struct env_job){ .run = job_run, .done = job_done };
	m->task.cb = members_task;
	m->task.phase = ENV_PHASE_LOG;
	m->image = pair_image(FILE_BYTES);
	if (m->image == NULL) {
		free(m);
		return RC_NOMEM;
	}
	rc = load(disk, m->image, &a, &second_first, why);
	if (rc == RC_OK)
		rc = find_self(&a, self, &m->self, why);
	if (rc == RC_OK) {
		members_set(m, &a, self);
		rc = rewrite(disk, m, second_first, why);
	}
	if (rc != RC_OK) {
		free(m->image);
		free(m);
		return rc;
	}
	*out = m;
	return RC_OK;
}

/* ---- reading ---- */

size_t members_count(const struct members *m)
{
	CHECK_OBJ(m, MEMBERS_MAGIC);
	return m->n;
}

const struct member *members_at(const struct members *m, size_t i)
{
	CHECK_OBJ(m, MEMBERS_MAGIC);
	PRE(i < m->n);
	return &m->list[i];
}

const struct member *members_find(const struct members *m, uint64_t id)
{
	size_t i;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	for (i = 0; i < m->n; i++)
		if (m->list[i].id == id)
			return &m->list[i];
	return NULL;
}

const struct member *members_named(const struct members *m, const char *name)
{
	size_t i;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	for (i = 0; i < m->n; i++)
		if (strcmp(m->list[i].name, name) == 0)
			return &m->list[i];
	return NULL;
}

uint64_t members_self(const struct members *m)
{
	CHECK_OBJ(m, MEMBERS_MAGIC);
	return m->list[m->self].id;
}

void members_greeting(const struct members *m, struct greeting *out)
{
	const struct member *self;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	self = &m->list[m->self];
	*out = (struct greeting){ .protocol = TRANSPORT_PROTOCOL,
				  .node_id = self->id,
				  .boot = self->boot };
	memcpy(out->cluster_id, m->cluster_id, ID_BYTES);
	memcpy(out->incarnation, self->incarnation, ID_BYTES);
	memcpy(out->nonce, self->nonce, ID_BYTES);
}

/* ---- who is believed ---- */

static bool same_id(const uint8_t a[ID_BYTES], const uint8_t b[ID_BYTES])
{
	return memcmp(a, b, ID_BYTES) == 0;
}

/* What has nothing to do with disks. */
static enum rc check_who(const struct members *m, uint64_t node_id,
			 const struct greeting *g, struct detail *why)
{
	unsigned long long id = node_id;

	if (g->protocol != TRANSPORT_PROTOCOL)
		return detail_set(why, RC_VERSION, NULL,
				  "node %llu speaks version %u between nodes, "
				  "this one %u: run the same release of "
				  "holdfastd on both",
				  id, g->protocol, TRANSPORT_PROTOCOL);
	if (!same_id(g->cluster_id, m->cluster_id) && !MUTANT(any_cluster))
		return detail_set(why, RC_FOREIGN, NULL,
				  "node %llu is of another cluster: compare "
				  "`peers` of both configurations, or make its "
				  "directory with `holdfast init`",
				  id);
	if (g->node_id != node_id)
		return detail_set(why, RC_FOREIGN, NULL,
				  "the certificate is that of node %llu, the "
				  "data directory that of node %llu: start "
				  "holdfastd with the `data` and `tls.cert` of "
				  "the same node",
				  id, (unsigned long long)g->node_id);
	if (node_id == members_self(m))
		return detail_set(why, RC_FOREIGN, NULL,
				  "the peer says that it is node %llu, which "
				  "is this one: stop the other, and run "
				  "`holdfast node reset` if it is to stay",
				  id);
	if (members_find(m, node_id) == NULL)
		return detail_set(why, RC_FOREIGN, NULL,
				  "node %llu is no member of this cluster: see "
				  "`holdfast status`",
				  id);
	return RC_OK;
}

#define RESET_IT                                                          \
	"it may have forgotten what it voted for and acknowledged: stop " \
	"it and run `holdfast node reset`"

static enum rc check_disk(const struct member *peer, const struct greeting *g,
			  struct detail *why)
{
	unsigned long long id = peer->id;

	if (!same_id(g->incarnation, peer->incarnation) &&
	    !MUTANT(incarnation_unchecked))
		return detail_set(why, RC_FOREIGN, NULL,
				  "node %llu (%s) came back with another disk; "
				  "%s",
				  id, peer->name, RESET_IT);
	if (MUTANT(boot_unchecked))
		return RC_OK;
	if (g->boot < peer->boot || g->boot == 0)
		return detail_set(why, RC_FOREIGN, NULL,
				  "node %llu (%s) came back with an older data "
				  "directory (boot %llu after %llu); %s",
				  id, peer->name, (unsigned long long)g->boot,
				  (unsigned long long)peer->boot, RESET_IT);
	if (g->boot == peer->boot && !same_id(g->nonce, peer->nonce))
		return detail_set(why, RC_FOREIGN, NULL,
				  "node %llu (%s) has a copied data directory "
				  "(another boot %llu); %s",
				  id, peer->name, (unsigned long long)g->boot,
				  RESET_IT);
	return RC_OK;
}

enum rc members_check(const struct members *m, uint64_t node_id,
		      const struct greeting *g, struct detail *why)
{
	enum rc rc;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	rc = check_who(m, node_id, g, why);
	if (rc != RC_OK)
		return rc;
	return check_disk(members_find(m, node_id), g, why);
}

bool members_current(const struct members *m, const struct greeting *g)
{
	const struct member *peer = members_find(m, g->node_id);

	if (peer == NULL)
		return false;
	if (!same_id(g->incarnation, peer->incarnation) &&
	    !MUTANT(incarnation_unchecked))
		return false;
	return g->boot == peer->boot || MUTANT(boot_unchecked);
}

/* ---- changes ---- */

static void job_run(struct env_job *job)
{
	struct members *m = CONTAINER_OF(job, struct members, job);

	m->job_rc = pair_write(m->file, m->image, FILE_BYTES, false);
}

static void job_begin(struct members *m)
{
	if (m->running || m->counter == m->synced)
		return;
	m->running = true;
	m->writing = m->counter;
	image_encode(m->image, m->list, m->n, m->counter);
	env_work(m->env, ENV_WORKER_STORAGE, &m->job);
}

static struct note *note_ready(struct members *m)
{
	size_t i;

	for (i = 0; i < MEMBERS_NOTES_MAX; i++)
		if (m->notes[i].needs != 0 && m->notes[i].needs <= m->synced)
			return &m->notes[i];
	return NULL;
}

/* From the front each time: a callback may add notes. */
static void notes_tell(struct members *m)
{
	struct note *ready;
	struct note n;

	while ((ready = note_ready(m)) != NULL) {
		n = *ready;
		ready->needs = 0;
		n.done(n.arg, n.node_id);
	}
}

static void job_done(struct env_job *job)
{
	struct members *m = CONTAINER_OF(job, struct members, job);

	CHECK_OBJ(m, MEMBERS_MAGIC);
	CHECK(m->running);
	m->running = false;
	if (m->job_rc != RC_OK) {
		env_fail_stop(m->env, "cannot write the file " MEMBERS_FILE);
		return;
	}
	m->synced = m->writing;
	job_begin(m);
	env_post(m->env, &m->task);
}

static void members_release(struct members *m)
{
	disk_close(m->file);
	m->magic = 0;
	free(m->image);
	free(m);
}

static void members_task(struct env_task *t)
{
	struct members *m = CONTAINER_OF(t, struct members, task);
	void (*closed)(void *arg);
	void *arg;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	notes_tell(m);
	if (m->closed == NULL || m->running || m->task.posted)
		return;
	closed = m->closed;
	arg = m->closed_arg;
	members_release(m);
	closed(arg);
}

static void note_add(struct members *m, size_t place,
		     void (*done)(void *arg, uint64_t node_id), void *arg)
{
	size_t i = 0;

	if (done == NULL)
		return;
	while (i < MEMBERS_NOTES_MAX && m->notes[i].needs != 0)
		i++;
	CHECK(i < MEMBERS_NOTES_MAX);
	m->notes[i] = (struct note){ .done = done,
				     .arg = arg,
				     .node_id = m->list[place].id,
				     .needs = m->changed[place] };
	/* Its change is from before this start: synced by members_open. */
	if (m->notes[i].needs == 0)
		m->notes[i].needs = m->synced;
	if (m->notes[i].needs <= m->synced)
		env_post(m->env, &m->task);
}

static size_t place_of(const struct members *m, uint64_t node_id)
{
	const struct member *peer = members_find(m, node_id);

	CHECK(peer != NULL);
	return (size_t)(peer - m->list);
}

static void changed(struct members *m, size_t place)
{
	m->changed[place] = ++m->counter;
	job_begin(m);
}

void members_note(struct members *m, const struct greeting *g,
		  void (*done)(void *arg, uint64_t node_id), void *arg)
{
	struct member *peer;
	size_t place;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	if (m->closed != NULL)
		return;
	place = place_of(m, g->node_id);
	peer = &m->list[place];
	if (peer->boot != g->boot || !same_id(peer->nonce, g->nonce)) {
		peer->boot = g->boot;
		memcpy(peer->nonce, g->nonce, ID_BYTES);
		changed(m, place);
	}
	note_add(m, place, done, arg);
}

void members_readmit(struct members *m, uint64_t node_id,
		     const uint8_t incarnation[ID_BYTES],
		     void (*done)(void *arg, uint64_t node_id), void *arg)
{
	struct member *peer;
	size_t place;

	CHECK_OBJ(m, MEMBERS_MAGIC);
	if (m->closed != NULL)
		return;
	PRE(node_id != members_self(m));
	place = place_of(m, node_id);
	peer = &m->list[place];
	if (!same_id(peer->incarnation, incarnation)) {
		memcpy(peer->incarnation, incarnation, ID_BYTES);
		peer->boot = 0;
		memset(peer->nonce, 0, ID_BYTES);
		changed(m, place);
	}
	note_add(m, place, done, arg);
}

void members_close(struct members *m, void (*closed)(void *arg), void *arg)
{
	CHECK_OBJ(m, MEMBERS_MAGIC);
	PRE(m->closed == NULL);
	PRE(closed != NULL);
	m->closed = closed;
	m->closed_arg = arg;
	env_post(m->env, &m->task);
}

void members_discard(struct members *m)
{
	CHECK_OBJ(m, MEMBERS_MAGIC);
	members_release(m);
}
