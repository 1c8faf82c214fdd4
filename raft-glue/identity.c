/*
 * The file `identity` is 8 KiB: two blocks, each of which begins with the same
 * sector of 512 bytes; the rest is zero. Integers little endian:
 *
 *	  0  8  "HFIDENTY"
 *	  8  4  version, 1
 *	 12  4  shards
 *	 16  8  boot: boots so far, the write counter of the pair
 *	 24 16  nonce of this boot
 *	 40 16  cluster id
 *	 56 16  incarnation
 *	 72 16  hash key
 *	 88  8  node id
 *	 96  4  segment bytes of the log
 *	100  4  zero
 *	104  8  inode of the data directory
 *	112  8  its birth time in ns, 0: not told
 *	120 64  node name, NUL-terminated
 *	184     zero
 *	508  4  CRC-32C of all before
 *
 * It is made under another name and renamed, so it is whole or not there.
 */
#include "raft-glue/identity.h"

#include "node/base/check.h"
#include "node/base/limits.h"
#include "raft-glue/le.h"
#include "raft-glue/pair.h"

#define IDENTITY_VERSION 1u
#define IDENTITY_FILE    "identity"
#define IDENTITY_NEW     "identity.new"
#define FILE_BYTES       (2u * PAIR_BLOCK)

static const uint8_t identity_tag[8] = {
	'H', 'F', 'I', 'D', 'E', 'N', 'T', 'Y'
};

static void copy_encode(uint8_t *p, const struct identity *id)
{
	memset(p, 0, PAIR_SECTOR);
	memcpy(p, identity_tag, 8);
	le_put32(p + 8, IDENTITY_VERSION);
	le_put32(p + 12, id->shards);
	le_put64(p + 16, id->boot);
	memcpy(p + 24, id->nonce, ID_BYTES);
	memcpy(p + 40, id->cluster_id, ID_BYTES);
	memcpy(p + 56, id->incarnation, ID_BYTES);
	memcpy(p + 72, id->hash_key, ID_BYTES);
	le_put64(p + 88, id->node_id);
	le_put32(p + 96, id->segment_bytes);
	le_put64(p + 104, id->birth.inode);
	le_put64(p + 112, id->birth.birth_ns);
	memcpy(p + 120, id->node_name, sizeof(id->node_name));
	pair_seal(p);
}

static enum rc copy_decode(const uint8_t *p, struct identity *id)
{
	if (!pair_sealed(p) || memcmp(p, identity_tag, 8) != 0)
		return RC_CORRUPT;
	if (le_get32(p + 8) > IDENTITY_VERSION)
		return RC_VERSION;
	id->shards = le_get32(p + 12);
	id->boot = le_get64(p + 16);
	memcpy(id->nonce, p + 24, ID_BYTES);
	memcpy(id->cluster_id, p + 40, ID_BYTES);
	memcpy(id->incarnation, p + 56, ID_BYTES);
	memcpy(id->hash_key, p + 72, ID_BYTES);
	id->node_id = le_get64(p + 88);
	id->segment_bytes = le_get32(p + 96);
	id->birth.inode = le_get64(p + 104);
	id->birth.birth_ns = le_get64(p + 112);
	memcpy(id->node_name, p + 120, sizeof(id->node_name));
	if (id->shards < 1 || id->shards > SHARDS_MAX || id->node_id == 0 ||
	    id->node_name[sizeof(id->node_name) - 1] != '\0')
		return RC_CORRUPT;
	return RC_OK;
}

/* Both blocks of the image. */
static void image_encode(uint8_t *image, const struct identity *id)
{
	memset(image, 0, FILE_BYTES);
	copy_encode(image, id);
	copy_encode(image + PAIR_BLOCK, id);
}

static enum rc image_decode(const uint8_t *image, struct identity *out,
			    struct detail *why)
{
	struct identity c[2];
	enum rc a = copy_decode(image, &c[0]);
	enum rc b = copy_decode(image + PAIR_BLOCK, &c[1]);

	if (a == RC_VERSION || b == RC_VERSION)
		return detail_set(why, RC_VERSION, NULL,
				  "a newer version of Holdfast wrote this data "
				  "directory");
	if (a != RC_OK && b != RC_OK)
		return detail_set(why, RC_CORRUPT, NULL,
				  "both copies in the file %s are damaged",
				  IDENTITY_FILE);
	*out = c[b == RC_OK && (a != RC_OK || c[1].boot > c[0].boot)];
	return RC_OK;
}

static enum rc create_new(struct disk *disk, const uint8_t *image,
			  struct detail *why)
{
	struct disk_file *f;
	enum rc rc;

	rc = disk_open(disk, IDENTITY_NEW, DISK_CREATE, &f, why);
	if (rc != RC_OK)
		return rc;
	rc = pair_write(f, image, FILE_BYTES, false);
	disk_close(f);
	if (rc == RC_OK)
		rc = disk->ops->rename(disk, IDENTITY_NEW, IDENTITY_FILE);
	if (rc == RC_OK)
		rc = disk_sync_dir(disk, "");
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot write the file %s",
				  IDENTITY_FILE);
	return RC_OK;
}

static enum rc refuse_existing(struct disk *disk, struct detail *why)
{
	struct disk_file *f;
	enum rc rc;

	rc = disk_open(disk, IDENTITY_FILE, DISK_READONLY, &f, NULL);
	if (rc == RC_NOT_FOUND)
		return RC_OK;
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot open the file %s",
				  IDENTITY_FILE);
	disk_close(f);
	return detail_set(why, RC_EXISTS, NULL,
			  "it is a data directory already");
}

static void draw_if_zero(struct env *env, uint8_t id[ID_BYTES])
{
	static const uint8_t zero[ID_BYTES];

	if (memcmp(id, zero, ID_BYTES) == 0)
		env_random(env, id, ID_BYTES);
}

enum rc identity_format(struct disk *disk, struct env *env, struct identity *id,
			struct detail *why)
{
	uint8_t *image;
	enum rc rc;

	PRE(id->shards >= 1);
	PRE(id->shards <= SHARDS_MAX);
	PRE(id->node_id != 0);
	PRE(id->node_name[sizeof(id->node_name) - 1] == '\0');
	rc = refuse_existing(disk, why);
	if (rc != RC_OK)
		return rc;
	rc = disk->ops->birth(disk, &id->birth);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "cannot read the inode of the "
				  "data directory");
	id->boot = 0;
	memset(id->nonce, 0, sizeof(id->nonce));
	draw_if_zero(env, id->incarnation);
	draw_if_zero(env, id->cluster_id);
	draw_if_zero(env, id->hash_key);
	image = pair_image(FILE_BYTES);
	if (image == NULL)
		return RC_NOMEM;
	image_encode(image, id);
	rc = create_new(disk, image, why);
	free(image);
	return rc;
}

static enum rc check_birth(struct disk *disk, const struct identity *id,
			   struct detail *why)
{
	struct disk_birth now;
	enum rc rc;

	rc = disk->ops->birth(disk, &now);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL,
				  "cannot read the inode of the "
				  "data directory");
	/* A file system that does not tell the time says zero at both ends;
	 * where only one of the two does, the inode has to do. */
	if (now.inode == id->birth.inode &&
	    (now.birth_ns == id->birth.birth_ns || now.birth_ns == 0 ||
	     id->birth.birth_ns == 0))
		return RC_OK;
	return detail_set(why, RC_FOREIGN, NULL,
			  "this data directory is a copy, or was restored: a "
			  "node that comes back with an older state can lose "
			  "what others count on (if it was moved on purpose: "
			  "holdfast node adopt)");
}

static enum rc load(struct disk *disk, uint8_t *image, struct identity *out,
		    struct detail *why)
{
	enum rc rc;

	rc = pair_read(disk, IDENTITY_FILE, image, FILE_BYTES, NULL);
	if (rc == RC_NOT_FOUND)
		return detail_set(why, rc, NULL,
				  "not a data directory: it has "
				  "no file %s",
				  IDENTITY_FILE);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot open the file %s",
				  IDENTITY_FILE);
	return image_decode(image, out, why);
}

/* Durable in both copies when it returns RC_OK. */
static enum rc store(struct disk *disk, uint8_t *image,
		     const struct identity *id, struct detail *why)
{
	struct disk_file *f;
	enum rc rc;

	image_encode(image, id);
	rc = disk_open(disk, IDENTITY_FILE, 0, &f, why);
	if (rc != RC_OK)
		return rc;
	rc = pair_write(f, image, FILE_BYTES, false);
	disk_close(f);
	if (rc != RC_OK)
		return detail_set(why, rc, NULL, "cannot write the file %s",
				  IDENTITY_FILE);
	return RC_OK;
}

enum rc identity_open(struct disk *disk, struct env *env, struct identity *out,
		      struct detail *why)
{
	uint8_t *image = pair_image(FILE_BYTES);
	enum rc rc;

	if (image == NULL)
		return RC_NOMEM;
	rc = load(disk, image, out, why);
	if (rc == RC_OK)
		rc = check_birth(disk, out, why);
	if (rc == RC_OK) {
		out->boot++;
		env_random(env, out->nonce, sizeof(out->nonce));
		rc = store(disk, image, out, why);
	}
	free(image);
	return rc;
}

enum rc identity_adopt(struct disk *disk, struct identity *out,
		       struct detail *why)
{
	uint8_t *image = pair_image(FILE_BYTES);
	enum rc rc;

	if (image == NULL)
		return RC_NOMEM;
	rc = load(disk, image, out, why);
	if (rc == RC_OK && disk->ops->birth(disk, &out->birth) != RC_OK)
		rc = detail_set(why, RC_IO, NULL,
				"cannot read the inode of the data directory");
	if (rc == RC_OK)
		rc = store(disk, image, out, why);
	free(image);
	return rc;
}

enum rc identity_read(struct disk *disk, struct identity *out,
		      struct detail *why)
{
	uint8_t *image = pair_image(FILE_BYTES);
	enum rc rc;

	if (image == NULL)
		return RC_NOMEM;
	rc = load(disk, image, out, why);
	free(image);
	return rc;
}
