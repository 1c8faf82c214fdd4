#include "node/notify.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "tests/lib/runner.h"

static struct detail why;

/* A supervisor's socket; the name as the variable has it. */
static int listen_on(const char *name)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	size_t n = strlen(name);
	int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	EXPECT_TRUE(fd >= 0);
	memcpy(at.sun_path, name, n);
	if (name[0] == '@')
		at.sun_path[0] = '\0';
	EXPECT_INT(bind(fd, (struct sockaddr *)&at,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + n +
				    (name[0] == '/'))),
		   0);
	EXPECT_INT(setenv("NOTIFY_SOCKET", name, 1), 0);
	why = (struct detail){ { 0 }, { 0 } };
	return fd;
}

static void expect_said(int fd, const char *text)
{
	char got[128] = "";

	EXPECT_INT(recv(fd, got, sizeof(got) - 1, MSG_DONTWAIT),
		   (int)strlen(text));
	EXPECT_STR(got, text);
	close(fd);
}

TEST(nobody_asks)
{
	EXPECT_INT(unsetenv("NOTIFY_SOCKET"), 0);
	EXPECT_RC(notify_send("READY=1", NULL), RC_OK);
	EXPECT_INT(setenv("NOTIFY_SOCKET", "", 1), 0);
	EXPECT_RC(notify_send("READY=1", NULL), RC_OK);
}

TEST(a_path)
{
	char path[100];
	int fd;

	snprintf(path, sizeof(path), "%s/notify", runner_dir());
	fd = listen_on(path);
	EXPECT_RC(notify_send("READY=1", &why), RC_OK);
	expect_said(fd, "READY=1");
	/* The socket file is still there, nobody listens. */
	EXPECT_RC(notify_send("STOPPING=1", &why), RC_IO);
	EXPECT_STR(why.field, "NOTIFY_SOCKET");
	EXPECT_INT(unlink(path), 0);
	EXPECT_RC(notify_send("STOPPING=1", NULL), RC_IO);
}

TEST(an_abstract_name)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "@holdfast-test-%ld", (long)getpid());
	fd = listen_on(name);
	EXPECT_RC(notify_send("READY=1", &why), RC_OK);
	expect_said(fd, "READY=1");
}

TEST(names_up_to_the_last_byte)
{
	struct sockaddr_un at;
	char name[sizeof(at.sun_path) + 1];
	int fd;

	memset(name, 'n', sizeof(name));
	name[0] = '@';
	snprintf(name + 1, 32, "%020ld", (long)getpid());
	name[21] = 'n';
	name[sizeof(at.sun_path) - 1] = '\0';
	fd = listen_on(name);
	EXPECT_RC(notify_send("READY=1", &why), RC_OK);
	expect_said(fd, "READY=1");
	name[sizeof(at.sun_path) - 1] = 'n';
	name[sizeof(at.sun_path)] = '\0';
	EXPECT_INT(setenv("NOTIFY_SOCKET", name, 1), 0);
	EXPECT_RC(notify_send("READY=1", &why), RC_INVALID);
	EXPECT_HAS(why.text, "no socket");
}

TEST(what_is_no_name)
{
	EXPECT_INT(setenv("NOTIFY_SOCKET", "vsock:2:1234", 1), 0);
	EXPECT_RC(notify_send("READY=1", &why), RC_INVALID);
	EXPECT_INT(setenv("NOTIFY_SOCKET", "relative", 1), 0);
	EXPECT_RC(notify_send("READY=1", NULL), RC_INVALID);
}
