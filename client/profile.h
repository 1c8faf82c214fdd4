/*
 * profile - client.yaml: where a cluster is, and who we are to it.
 *
 * Any thread. `holdfast init --nodes N` writes such a file; the library and the
 * program read it. It is a small part of YAML, read strictly, so that the
 * library needs no YAML parser:
 *
 *	# a comment
 *	endpoints:
 *	  - name: node1
 *	    rpc: 127.0.0.1:7101
 *	  - {name: node2, rpc: "127.0.0.1:7102"}
 *	tls:
 *	  ca: ca.pem
 *	  cert: client.pem
 *	  key: client.key
 *
 * Block and one-line maps, plain and quoted scalars, comments; no anchors,
 *tags, documents or folded text. `rpc` is host:port, [address]:port, or the
 *path of a Unix socket; `name` may be left out. Paths that are not absolute
 *begin where the file lies. A key that is not known, or comes twice, is an
 *error.
 */
#ifndef HOLDFAST_CLIENT_PROFILE_H
#define HOLDFAST_CLIENT_PROFILE_H

#include "client/proto/rc.h"

#include <stddef.h>

#define PROFILE_ENDPOINTS_MAX  8u
#define PROFILE_NAME_BYTES_MAX 64u
#define PROFILE_TEXT_BYTES_MAX 1024u /* A path, an address; with its end. */
#define PROFILE_FILE_BYTES_MAX 65536u

struct profile_endpoint {
	char name[PROFILE_NAME_BYTES_MAX + 1]; /* "": not said. */
	char rpc[PROFILE_TEXT_BYTES_MAX];
};

struct profile {
	struct profile_endpoint endpoints[PROFILE_ENDPOINTS_MAX];
	size_t endpoints_n;
	/* "": no TLS. All three or none. */
	char ca[PROFILE_TEXT_BYTES_MAX];
	char cert[PROFILE_TEXT_BYTES_MAX];
	char key[PROFILE_TEXT_BYTES_MAX];
};

/* RC_OK, RC_NOT_FOUND (no such file), RC_IO, or RC_INVALID; `why` names the
 * file, and the line. */
enum rc profile_read(const char *path, struct profile *out, struct detail *why);
/* The same for text that came from `path`. */
enum rc profile_parse(const char *text, size_t n, const char *path,
		      struct profile *out, struct detail *why);

/*
 * "host:port" or "[address]:port" in parts, `host` of `host_bytes`. RC_INVALID.
 * A text with a `/` is the path of a Unix socket and none of these.
 */
enum rc profile_host_port(const char *text, char *host, size_t host_bytes,
			  char port[6]);

#endif
