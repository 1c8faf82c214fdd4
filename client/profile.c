#include "client/profile.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum section {
	SECTION_NONE,
	SECTION_ENDPOINTS,
	SECTION_TLS,
};

struct parser {
	const char *path;
	size_t dir_bytes; /* Of `path`, its last slash included. */
	unsigned line;
	const char *at; /* In the line, */
	const char *end;
	enum section section;
	bool seen[SECTION_TLS + 1];
	size_t indent; /* Of the keys of the present map; 0: none yet. */
	struct profile *out;
	struct detail *why;
};

__attribute__((format(printf, 2, 3))) static bool wrong(struct parser *p,
							const char *format, ...)
{
	char text[160];
	va_list ap;

	va_start(ap, format);
	(void)vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	detail_set(p->why, RC_INVALID, NULL, "%s:%u: %s", p->path, p->line,
		   text);
	return false;
}

static void skip_spaces(struct parser *p)
{
	while (p->at < p->end && *p->at == ' ')
		p->at++;
}

/* The end of the line, but for a comment. */
static bool at_end(struct parser *p)
{
	bool spaced = p->at == p->end || p->at[-1] == ' ';

	skip_spaces(p);
	return p->at == p->end ||
	       (*p->at == '#' && (spaced || p->at[-1] == ' '));
}

/* ---------------------------------------------------------------- scalars ---
 */

/* The next character between quotes, in `*c`. False: the quote ends here, or
 * the line does. */
static bool quoted_next(struct parser *p, char quote, char *c, bool *closed)
{
	if (p->at == p->end)
		return false;
	*c = *p->at++;
	if (*c == quote &&
	    (quote == '"' || p->at == p->end || *p->at != quote)) {
		*closed = true;
		return false;
	}
	if (*c == quote)
		p->at++; /* Two in single quotes are one. */
	else if (quote == '"' && *c == '\\')
		*c = p->at < p->end && (*p->at == '"' || *p->at == '\\')
			     ? *p->at++
			     : '\0';
	return *c != '\0';
}

static bool quoted(struct parser *p, char *out, size_t cap)
{
	char quote = *p->at++;
	bool closed = false;
	char c = quote;
	size_t n = 0;

	while (quoted_next(p, quote, &c, &closed)) {
		if (n + 1 < cap)
			out[n] = c;
		n++;
	}
	if (c == '\0')
		return wrong(p, "only \\\" and \\\\ are known in quotes");
	if (!closed)
		return wrong(p, "a quote is not closed");
	if (n >= cap)
		return wrong(p, "a value has more than %zu bytes", cap - 1);
	out[n] = '\0';
	return true;
}

static bool plain(struct parser *p, bool flow, char *out, size_t cap)
{
	const char *from = p->at;
	const char *to = from;

	if (strchr("&*!|>%@`{}[],?-", *from) != NULL &&
	    !(*from == '-' && from + 1 < p->end && from[1] != ' '))
		return wrong(p, "a value does not begin with `%c' here", *from);
	for (; p->at < p->end; p->at++) {
		if (flow && (*p->at == ',' || *p->at == '}'))
			break;
		if (*p->at == '#' && p->at[-1] == ' ')
			break;
		if (*p->at == ':' && (p->at + 1 == p->end || p->at[1] == ' '))
			return wrong(p, "a value is not a map here");
		if (*p->at != ' ')
			to = p->at + 1;
	}
	if ((size_t)(to - from) >= cap)
		return wrong(p, "a value has more than %zu bytes", cap - 1);
	memcpy(out, from, (size_t)(to - from));
	out[to - from] = '\0';
	return true;
}

static bool scalar(struct parser *p, bool flow, char *out, size_t cap)
{
	if (at_end(p))
		return wrong(p, "a value is missing");
	if (*p->at == '"' || *p->at == '\'')
		return quoted(p, out, cap);
	return plain(p, flow, out, cap);
}

/* `key:` and what is behind up to the value. */
static bool key(struct parser *p, char *out, size_t cap)
{
	const char *from = p->at;

	while (p->at < p->end && ((*p->at >= 'a' && *p->at <= 'z') ||
				  *p->at == '_' || *p->at == '.'))
		p->at++;
	if (p->at == from || p->at == p->end || *p->at != ':' ||
	    (size_t)(p->at - from) >= cap ||
	    (p->at + 1 < p->end && p->at[1] != ' '))
		return wrong(p, "a key and a colon are expected");
	memcpy(out, from, (size_t)(p->at - from));
	out[p->at - from] = '\0';
	p->at++;
	return true;
}

/* ------------------------------------------------------------------ pairs ---
 */

/* A path as one that holds wherever we are. */
static bool path_join(struct parser *p, const char *path, char *out)
{
	size_t dir = path[0] == '/' ? 0 : p->dir_bytes;

	if (dir + strlen(path) >= PROFILE_TEXT_BYTES_MAX)
		return wrong(p, "a path has at most %u bytes",
			     PROFILE_TEXT_BYTES_MAX - 1);
	memcpy(out, p->path, dir);
	memcpy(out + dir, path, strlen(path) + 1);
	return true;
}

static bool rpc_set(struct parser *p, const char *text, char *out)
{
	char host[256];
	char port[6];

	if (strchr(text, '/') != NULL)
		return path_join(p, text, out);
	if (profile_host_port(text, host, sizeof(host), port) != RC_OK)
		return wrong(p, "rpc is host:port, or the path of a socket");
	memcpy(out, text, strlen(text) + 1);
	return true;
}

static bool endpoint_pair(struct parser *p, const char *name, const char *text)
{
	struct profile_endpoint *e =
		&p->out->endpoints[p->out->endpoints_n - 1];

	if (strcmp(name, "name") == 0 && e->name[0] == '\0') {
		if (strlen(text) > PROFILE_NAME_BYTES_MAX || text[0] == '\0')
			return wrong(p, "a name has 1 to %u bytes",
				     PROFILE_NAME_BYTES_MAX);
		memcpy(e->name, text, strlen(text) + 1);
		return true;
	}
	if (strcmp(name, "rpc") == 0 && e->rpc[0] == '\0')
		return rpc_set(p, text, e->rpc);
	return wrong(p, "an endpoint has name and rpc, each once; not `%s'",
		     name);
}

static bool tls_pair(struct parser *p, const char *name, const char *text)
{
	char *to = NULL;

	if (strcmp(name, "ca") == 0)
		to = p->out->ca;
	else if (strcmp(name, "cert") == 0)
		to = p->out->cert;
	else if (strcmp(name, "key") == 0)
		to = p->out->key;
	if (to == NULL || to[0] != '\0')
		return wrong(p, "tls has ca, cert and key, each once; not `%s'",
			     name);
	if (text[0] == '\0')
		return wrong(p, "tls.%s is empty", name);
	return path_join(p, text, to);
}

static bool pair(struct parser *p, bool flow)
{
	char text[PROFILE_TEXT_BYTES_MAX];
	char name[32];

	if (!key(p, name, sizeof(name)) || !scalar(p, flow, text, sizeof(text)))
		return false;
	return p->section == SECTION_ENDPOINTS ? endpoint_pair(p, name, text)
					       : tls_pair(p, name, text);
}

/* {name: a, rpc: b} */
static bool flow_map(struct parser *p)
{
	p->at++;
	for (;;) {
		skip_spaces(p);
		if (!pair(p, true))
			return false;
		skip_spaces(p);
		if (p->at == p->end || (*p->at != ',' && *p->at != '}'))
			return wrong(p, "`,' or `}' is expected");
		if (*p->at++ == '}')
			break;
	}
	return at_end(p) || wrong(p, "there is something behind `}'");
}

/* ------------------------------------------------------------------ lines ---
 */

static bool top_line(struct parser *p)
{
	char name[32];

	if (!key(p, name, sizeof(name)))
		return false;
	if (strcmp(name, "endpoints") == 0)
		p->section = SECTION_ENDPOINTS;
	else if (strcmp(name, "tls") == 0)
		p->section = SECTION_TLS;
	else
		return wrong(p, "there are endpoints and tls, no `%s'", name);
	if (p->seen[p->section])
		return wrong(p, "`%s' comes twice", name);
	p->seen[p->section] = true;
	p->indent = 0;
	if (at_end(p))
		return true;
	if (*p->at == '{' && p->section == SECTION_TLS)
		return flow_map(p);
	return wrong(p, "what `%s' has stands below it", name);
}

static bool item_line(struct parser *p, size_t indent)
{
	if (p->section != SECTION_ENDPOINTS)
		return wrong(p, "only endpoints is a list");
	if (p->out->endpoints_n == PROFILE_ENDPOINTS_MAX)
		return wrong(p, "there are at most %u endpoints",
			     PROFILE_ENDPOINTS_MAX);
	p->out->endpoints_n++;
	p->at++;
	p->indent = indent + 1;
	while (p->at < p->end && *p->at == ' ') {
		p->at++;
		p->indent++;
	}
	if (p->at < p->end && *p->at == '{')
		return flow_map(p);
	return pair(p, false) &&
	       (at_end(p) || wrong(p, "there is something behind the value"));
}

static bool pair_line(struct parser *p, size_t indent)
{
	if (p->section == SECTION_NONE ||
	    (p->section == SECTION_ENDPOINTS && p->out->endpoints_n == 0))
		return wrong(p, "this belongs to nothing");
	if (p->indent == 0)
		p->indent = indent;
	if (indent != p->indent)
		return wrong(p, "it is indented unlike the keys beside it");
	return pair(p, false) &&
	       (at_end(p) || wrong(p, "there is something behind the value"));
}

static bool parse_line(struct parser *p)
{
	const char *from = p->at;
	const char *c;
	size_t indent;

	for (c = from; c < p->end; c++)
		if (*c == '\t')
			return wrong(p, "there is a tab");
	skip_spaces(p);
	indent = (size_t)(p->at - from);
	if (p->at == p->end || *p->at == '#')
		return true;
	if (indent == 0 && p->section == SECTION_NONE && p->end - p->at == 3 &&
	    memcmp(p->at, "---", 3) == 0)
		return true;
	if (*p->at == '-' && p->at + 1 < p->end && p->at[1] == ' ')
		return item_line(p, indent);
	return indent == 0 ? top_line(p) : pair_line(p, indent);
}

static enum rc profile_whole(const struct profile *out, const char *path,
			     struct detail *why)
{
	bool tls = out->ca[0] != '\0' || out->cert[0] != '\0' ||
		   out->key[0] != '\0';
	size_t i;

	if (out->endpoints_n == 0)
		return detail_set(why, RC_INVALID, NULL,
				  "%s names no endpoints", path);
	if (tls &&
	    (out->ca[0] == '\0' || out->cert[0] == '\0' || out->key[0] == '\0'))
		return detail_set(why, RC_INVALID, NULL,
				  "%s: tls needs ca, cert and key", path);
	for (i = 0; i < out->endpoints_n; i++) {
		if (out->endpoints[i].rpc[0] == '\0')
			return detail_set(why, RC_INVALID, NULL,
					  "%s: an endpoint has no rpc", path);
		if (!tls && strchr(out->endpoints[i].rpc, '/') == NULL)
			return detail_set(why, RC_INVALID, NULL,
					  "%s: %s needs tls", path,
					  out->endpoints[i].rpc);
	}
	return RC_OK;
}

enum rc profile_parse(const char *text, size_t n, const char *path,
		      struct profile *out, struct detail *why)
{
	const char *slash = strrchr(path, '/');
	struct parser p = { .path = path, .out = out, .why = why };
	const char *at = text;
	const char *end = text + n;

	memset(out, 0, sizeof(*out));
	p.dir_bytes = slash != NULL ? (size_t)(slash + 1 - path) : 0;
	if (memchr(text, 0, n) != NULL)
		return detail_set(why, RC_INVALID, NULL, "%s is no text", path);
	while (at < end) {
		p.line++;
		p.at = at;
		p.end = memchr(at, '\n', (size_t)(end - at));
		if (p.end == NULL)
			p.end = end;
		at = p.end < end ? p.end + 1 : end;
		if (p.end > p.at && p.end[-1] == '\r')
			p.end--;
		if (!parse_line(&p))
			return RC_INVALID;
	}
	return profile_whole(out, path, why);
}

enum rc profile_read(const char *path, struct profile *out, struct detail *why)
{
	FILE *f = fopen(path, "re");
	char *text;
	size_t n;
	enum rc rc;

	if (f == NULL)
		return detail_set(why, errno == ENOENT ? RC_NOT_FOUND : RC_IO,
				  "config", "cannot read %s: %s", path,
				  strerror(errno));
	text = malloc(PROFILE_FILE_BYTES_MAX + 1);
	if (text == NULL) {
		(void)fclose(f);
		return RC_NOMEM;
	}
	n = fread(text, 1, PROFILE_FILE_BYTES_MAX + 1, f);
	if (ferror(f) != 0)
		rc = detail_set(why, RC_IO, "config", "cannot read %s: %s",
				path, strerror(errno));
	else if (n > PROFILE_FILE_BYTES_MAX)
		rc = detail_set(why, RC_INVALID, "config",
				"%s has more than %u bytes", path,
				PROFILE_FILE_BYTES_MAX);
	else
		rc = profile_parse(text, n, path, out, why);
	(void)fclose(f);
	free(text);
	return rc;
}

enum rc profile_host_port(const char *text, char *host, size_t host_bytes,
			  char port[6])
{
	const char *colon = strrchr(text, ':');
	const char *from = text;
	size_t n;
	long v;

	if (colon == NULL || colon == text || strchr(text, '/') != NULL)
		return RC_INVALID;
	n = (size_t)(colon - text);
	if (*from == '[') {
		if (n < 3 || colon[-1] != ']')
			return RC_INVALID;
		from++;
		n -= 2;
	} else if (memchr(text, ':', n) != NULL) {
		return RC_INVALID;
	}
	if (n >= host_bytes || strlen(colon + 1) > 5 ||
	    strspn(colon + 1, "0123456789") != strlen(colon + 1))
		return RC_INVALID;
	v = strtol(colon + 1, NULL, 10);
	if (v < 1 || v > 65535)
		return RC_INVALID;
	memcpy(host, from, n);
	host[n] = '\0';
	memcpy(port, colon + 1, strlen(colon + 1) + 1);
	return RC_OK;
}
