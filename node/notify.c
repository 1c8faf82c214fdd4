#include "node/notify.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "node/base/check.h"

enum rc notify_send(const char *state, struct detail *why)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	size_t n;
	ssize_t sent;
	int e;
	int fd;

	if (path == NULL || path[0] == '\0')
		return RC_OK;
	n = strlen(path);
	if ((path[0] != '/' && path[0] != '@') || n >= sizeof(at.sun_path))
		return detail_set(why, RC_INVALID, "NOTIFY_SOCKET",
				  "`%.100s` is no socket", path);
	memcpy(at.sun_path, path, n);
	/* An abstract name: no file, and not ended by a zero. */
	if (path[0] == '@')
		at.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return detail_set(why, RC_IO, "NOTIFY_SOCKET", "%s",
				  strerror(errno));
	sent = sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
		      (const struct sockaddr *)&at,
		      (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n +
				  (path[0] == '/')));
	e = errno;
	close(fd);
	if (sent < 0)
		return detail_set(why, RC_IO, "NOTIFY_SOCKET", "%.100s: %s",
				  path, strerror(e));
	return RC_OK;
}
