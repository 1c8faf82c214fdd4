#include "raft-glue/pair.h"

#include "node/base/check.h"
#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define FILE_BYTES (2 * PAIR_BLOCK)

static struct world *w;
static struct disk *disk;
static uint8_t *image;

static void begin(void)
{
	w = world_new(1);
	disk = world_disk(w, 0);
	image = pair_image(FILE_BYTES);
	EXPECT_NOT_NULL(image);
}

static void end(void)
{
	free(image);
	world_free(w);
}

static struct disk_file *open_file(unsigned flags)
{
	struct disk_file *f = NULL;

	EXPECT_RC(disk_open(disk, "p", flags, &f, NULL), RC_OK);
	return f;
}

TEST(seal_covers_the_whole_sector)
{
	unsigned i;

	begin();
	memset(image, 0x11, PAIR_SECTOR);
	pair_seal(image);
	EXPECT_TRUE(pair_sealed(image));
	for (i = 0; i < PAIR_SECTOR * 8; i++) {
		image[i / 8] ^= (uint8_t)(1u << i % 8);
		EXPECT_FALSE(pair_sealed(image));
		image[i / 8] ^= (uint8_t)(1u << i % 8);
	}
	end();
}

TEST(absent_file_is_not_found)
{
	begin();
	EXPECT_RC(pair_read(disk, "p", image, FILE_BYTES, NULL), RC_NOT_FOUND);
	end();
}

TEST(what_is_missing_or_unreadable_fits_no_seal)
{
	struct world_fault f = { .kind = WORLD_EIO,
				 .op = WORLD_READ,
				 .nth = 2 };
	struct disk_file *file;

	begin();
	memset(image, 0x22, FILE_BYTES);
	pair_seal(image);
	pair_seal(image + PAIR_BLOCK);
	file = open_file(DISK_CREATE);
	EXPECT_RC(disk_write(file, image, PAIR_BLOCK + 100, 0), RC_OK);
	memset(image, 0, FILE_BYTES);
	EXPECT_RC(pair_read(disk, "p", image, FILE_BYTES, NULL), RC_OK);
	EXPECT_TRUE(pair_sealed(image));
	EXPECT_FALSE(pair_sealed(image + PAIR_BLOCK));
	memcpy(image + PAIR_BLOCK, image, PAIR_BLOCK);
	EXPECT_RC(disk_write(file, image, FILE_BYTES, 0), RC_OK);
	world_fault(w, 0, &f);
	EXPECT_RC(pair_read(disk, "p", image, FILE_BYTES, NULL), RC_OK);
	EXPECT_TRUE(pair_sealed(image));
	EXPECT_FALSE(pair_sealed(image + PAIR_BLOCK));
	EXPECT_RC(pair_read(disk, "p", image, FILE_BYTES, NULL), RC_OK);
	EXPECT_TRUE(pair_sealed(image + PAIR_BLOCK));
	disk_close(file);
	end();
}

/* A power cut at any of its operations leaves one area whole: the old content
 * or the new one. */
TEST(one_area_is_whole_at_every_moment)
{
	struct world_fault f = { .kind = WORLD_CRASH_AFTER,
				 .op = WORLD_CHANGE };
	struct disk_file *file;
	unsigned good;
	uint64_t n;
	bool second;

	for (n = 1; n <= 10; n++) {
		runner_context("operation %llu", (unsigned long long)n);
		second = n > 5;
		begin();
		memset(image, 1, FILE_BYTES);
		pair_seal(image);
		pair_seal(image + PAIR_BLOCK);
		file = open_file(DISK_CREATE);
		EXPECT_RC(pair_write(file, image, FILE_BYTES, second), RC_OK);
		EXPECT_RC(disk_sync_dir(disk, ""), RC_OK);
		memset(image, 2, FILE_BYTES);
		pair_seal(image);
		pair_seal(image + PAIR_BLOCK);
		f.nth = (n - 1) % 5 + 1;
		world_fault(w, 0, &f);
		(void)pair_write(file, image, FILE_BYTES, second);
		world_power_cut(w, 0);
		EXPECT_RC(pair_read(disk, "p", image, FILE_BYTES, NULL), RC_OK);
		good = 0;
		good += pair_sealed(image);
		good += pair_sealed(image + PAIR_BLOCK);
		EXPECT_UINT(good, 2);
		/* Synced is synced. */
		if (f.nth >= 2)
			EXPECT_UINT(image[second ? PAIR_BLOCK : 0], 2);
		if (f.nth >= 4)
			EXPECT_UINT(image[second ? 0 : PAIR_BLOCK], 2);
		end();
	}
}

TEST(failures_are_told)
{
	static const enum world_op ops[] = { WORLD_WRITE, WORLD_SYNC };
	struct world_fault f = { .kind = WORLD_EIO };
	struct disk_file *file;
	size_t i;

	for (i = 0; i < 4; i++) {
		begin();
		file = open_file(DISK_CREATE);
		f.op = ops[i % 2];
		f.nth = i / 2 + 1;
		world_fault(w, 0, &f);
		EXPECT_RC(pair_write(file, image, FILE_BYTES, false), RC_IO);
		end();
	}
}
