#include "node/core/reserve.h"

#include "tests/lib/runner.h"
#include "tests/sim/world.h"

#define KEPT (256u << 10)

static struct world *world;
static struct disk *disk;
static struct reserve r;

static void begin(uint64_t capacity)
{
	world = world_new(7);
	disk = world_disk(world, 0);
	world_capacity(world, 0, capacity);
}

static bool there(const char *name)
{
	struct disk_file *f;

	if (disk_open(disk, name, DISK_READONLY, &f, NULL) != RC_OK)
		return false;
	disk_close(f);
	return true;
}

static enum rc occupy(uint64_t bytes)
{
	static uint8_t block[4096];
	struct disk_file *f;
	uint64_t at;
	enum rc rc;

	EXPECT_RC(disk_open(disk, "data", DISK_CREATE, &f, NULL), RC_OK);
	for (at = 0, rc = RC_OK; rc == RC_OK && at < bytes; at += 4096)
		rc = disk_write(f, block, sizeof(block), at);
	disk_close(f);
	return rc;
}

TEST(it_is_made_where_there_is_room)
{
	begin(8u * KEPT);
	EXPECT_RC(reserve_open(&r, disk, KEPT), RC_OK);
	EXPECT_FALSE(there("reserve"));
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_TRUE(there("reserve"));
	EXPECT_FALSE(reserve_low(&r));
	world_free(world);
}

TEST(it_is_not_made_where_it_would_take_the_room)
{
	begin(3u * KEPT);
	EXPECT_RC(reserve_open(&r, disk, KEPT), RC_OK);
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_FALSE(there("reserve"));
	world_free(world);
}

TEST(a_full_disk_is_told_and_a_start_gives_the_file_back)
{
	struct reserve again;

	begin(8u * KEPT);
	EXPECT_RC(reserve_open(&r, disk, KEPT), RC_OK);
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_RC(occupy(8u * KEPT), RC_NO_SPACE);
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_TRUE(reserve_low(&r));
	EXPECT_TRUE(there("reserve"));
	EXPECT_RC(reserve_open(&again, disk, KEPT), RC_OK);
	EXPECT_FALSE(there("reserve"));
	EXPECT_TRUE(again.space.bytes_free >= KEPT);
	EXPECT_FALSE(reserve_low(&again));
	/* Not taken again at once: that would be the same edge. */
	EXPECT_RC(reserve_look(&again), RC_OK);
	EXPECT_FALSE(there("reserve"));
	world_free(world);
}

TEST(none_is_kept_when_none_is_wanted)
{
	begin(8u * KEPT);
	EXPECT_RC(reserve_open(&r, disk, KEPT), RC_OK);
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_TRUE(there("reserve"));
	EXPECT_RC(reserve_open(&r, disk, 0), RC_OK);
	EXPECT_RC(reserve_look(&r), RC_OK);
	EXPECT_FALSE(there("reserve"));
	EXPECT_FALSE(reserve_low(&r));
	world_free(world);
}
