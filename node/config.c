#include "node/config.h"

#include <cyaml/cyaml.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "node/base/check.h"
#include "node/base/limits.h"

/* What the file says, as text. */

struct raw_grant {
	char *principal;
	char *tenant;
	char *env;
	char *cls;
	char *prefix;
	char **rights;
	unsigned rights_count;
};

struct raw_node {
	char *name;
	char *id;
};

struct raw_listen {
	char *socket;
	char *rpc;
	char *peer;
};

struct raw_advertise {
	char *rpc;
	char *peer;
};

struct raw_tls {
	char *ca;
	char *cert;
	char *key;
};

struct raw_peer {
	char *id;
	char *name;
	char *peer;
	char *rpc;
};

struct raw_log {
	char *level;
};

struct raw_limits {
	char *connections;
	char *calls;
	char *objects;
	char *objects_bytes;
	char *object_idle;
	char *tenant_objects;
	char *tenant_bytes;
	char *secret_bytes;
};

struct raw_storage {
	char *shards;
	char *segment_bytes;
	char *log_bytes;
	char *reserve_bytes;
	char *window;
	char *window_bytes;
};

struct raw_raft {
	char *election;
	char *heartbeat;
	char *spread;
};

struct raw {
	char *data;
	char *pid_file;
	struct raw_node node;
	struct raw_listen listen;
	struct raw_advertise advertise;
	struct raw_tls tls;
	struct raw_peer *peers;
	unsigned peers_count;
	struct raw_log log;
	struct raw_limits limits;
	struct raw_storage storage;
	struct raw_raft raft;
	struct raw_grant *grants;
	unsigned grants_count;
};

#define TEXT(key, type, member)                                               \
	CYAML_FIELD_STRING_PTR(key, CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, \
			       type, member, 0, CYAML_UNLIMITED)
#define PART(key, member, fields)                                         \
	CYAML_FIELD_MAPPING(key, CYAML_FLAG_OPTIONAL, struct raw, member, \
			    fields)

static const cyaml_schema_value_t right_schema = { CYAML_VALUE_STRING(
	CYAML_FLAG_POINTER, char *, 0, CYAML_UNLIMITED) };

static const cyaml_schema_field_t grant_fields[] = {
	TEXT("principal", struct raw_grant, principal),
	TEXT("tenant", struct raw_grant, tenant),
	TEXT("env", struct raw_grant, env),
	TEXT("class", struct raw_grant, cls),
	TEXT("prefix", struct raw_grant, prefix),
	CYAML_FIELD_SEQUENCE("rights", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
			     struct raw_grant, rights, &right_schema, 0, 8),
	CYAML_FIELD_END,
};

static const cyaml_schema_value_t grant_schema = { CYAML_VALUE_MAPPING(
	CYAML_FLAG_DEFAULT, struct raw_grant, grant_fields) };

static const cyaml_schema_field_t node_fields[] = {
	TEXT("name", struct raw_node, name),
	TEXT("id", struct raw_node, id),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t listen_fields[] = {
	TEXT("socket", struct raw_listen, socket),
	TEXT("rpc", struct raw_listen, rpc),
	TEXT("peer", struct raw_listen, peer),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t advertise_fields[] = {
	TEXT("rpc", struct raw_advertise, rpc),
	TEXT("peer", struct raw_advertise, peer),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t tls_fields[] = {
	TEXT("ca", struct raw_tls, ca),
	TEXT("cert", struct raw_tls, cert),
	TEXT("key", struct raw_tls, key),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t peer_fields[] = {
	TEXT("id", struct raw_peer, id),
	TEXT("name", struct raw_peer, name),
	TEXT("peer", struct raw_peer, peer),
	TEXT("rpc", struct raw_peer, rpc),
	CYAML_FIELD_END,
};

static const cyaml_schema_value_t peer_schema = { CYAML_VALUE_MAPPING(
	CYAML_FLAG_DEFAULT, struct raw_peer, peer_fields) };

static const cyaml_schema_field_t log_fields[] = {
	TEXT("level", struct raw_log, level),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t limits_fields[] = {
	TEXT("connections", struct raw_limits, connections),
	TEXT("calls", struct raw_limits, calls),
	TEXT("objects", struct raw_limits, objects),
	TEXT("objects_bytes", struct raw_limits, objects_bytes),
	TEXT("object_idle", struct raw_limits, object_idle),
	TEXT("tenant_objects", struct raw_limits, tenant_objects),
	TEXT("tenant_bytes", struct raw_limits, tenant_bytes),
	TEXT("secret_bytes", struct raw_limits, secret_bytes),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t storage_fields[] = {
	TEXT("shards", struct raw_storage, shards),
	TEXT("segment_bytes", struct raw_storage, segment_bytes),
	TEXT("log_bytes", struct raw_storage, log_bytes),
	TEXT("reserve_bytes", struct raw_storage, reserve_bytes),
	TEXT("window", struct raw_storage, window),
	TEXT("window_bytes", struct raw_storage, window_bytes),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t raft_fields[] = {
	TEXT("election", struct raw_raft, election),
	TEXT("heartbeat", struct raw_raft, heartbeat),
	TEXT("spread", struct raw_raft, spread),
	CYAML_FIELD_END,
};

static const cyaml_schema_field_t top_fields[] = {
	TEXT("data", struct raw, data),
	TEXT("pid_file", struct raw, pid_file),
	PART("node", node, node_fields),
	PART("listen", listen, listen_fields),
	PART("advertise", advertise, advertise_fields),
	PART("tls", tls, tls_fields),
	CYAML_FIELD_SEQUENCE("peers", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
			     struct raw, peers, &peer_schema, 0,
			     MEMBERS_MAX - 1),
	PART("log", log, log_fields),
	PART("limits", limits, limits_fields),
	PART("storage", storage, storage_fields),
	PART("raft", raft, raft_fields),
	CYAML_FIELD_SEQUENCE("grants", CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
			     struct raw, grants, &grant_schema, 0, GRANTS_MAX),
	CYAML_FIELD_END,
};

static const cyaml_schema_value_t top_schema = { CYAML_VALUE_MAPPING(
	CYAML_FLAG_POINTER, struct raw, top_fields) };

/* Typed scalars. Each error names the field as the file spells it. */

enum unit { UNIT_NONE, UNIT_BYTES, UNIT_MS };

struct scale {
	const char *suffix;
	uint64_t factor;
};

static const struct scale byte_scales[] = {
	{ "", 1 },
	{ "B", 1 },
	{ "KiB", 1ull << 10 },
	{ "MiB", 1ull << 20 },
	{ "GiB", 1ull << 30 },
	{ "TiB", 1ull << 40 },
};

static const struct scale ms_scales[] = {
	{ "", 1 },        { "ms", 1 },      { "s", 1000 },
	{ "min", 60000 }, { "h", 3600000 },
};

static bool scale_find(enum unit unit, const char *suffix, uint64_t *factor)
{
	const struct scale *s = unit == UNIT_MS ? ms_scales : byte_scales;
	size_t n =
		unit == UNIT_MS ? ARRAY_LEN(ms_scales) : ARRAY_LEN(byte_scales);
	size_t i;

	if (unit == UNIT_NONE)
		n = 1;
	for (i = 0; i < n; i++)
		if (strcmp(suffix, s[i].suffix) == 0) {
			*factor = s[i].factor;
			return true;
		}
	return false;
}

static const char *unit_text(enum unit unit)
{
	switch (unit) {
	case UNIT_BYTES:
		return "a whole number of bytes, or with KiB, MiB, GiB, TiB";
	case UNIT_MS:
		return "a whole number of milliseconds, or with ms, s, min, h";
	case UNIT_NONE:
		break;
	}
	return "a whole decimal number";
}

/* Decimal digits without a leading zero, then a unit. */
static enum rc number_parse(const char *text, enum unit unit, uint64_t *out)
{
	uint64_t factor;
	uint64_t v = 0;
	const char *p = text;

	if (*p < '0' || *p > '9' || (*p == '0' && p[1] >= '0' && p[1] <= '9'))
		return RC_INVALID;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(v, 10u, &v) ||
		    __builtin_add_overflow(v, (uint64_t)(*p - '0'), &v))
			return RC_INVALID;
	if (!scale_find(unit, p, &factor) ||
	    __builtin_mul_overflow(v, factor, out))
		return RC_INVALID;
	return RC_OK;
}

static enum rc number(const char *field, const char *text, enum unit unit,
		      uint64_t min, uint64_t max, uint64_t *out,
		      struct detail *why)
{
	uint64_t v;

	if (text == NULL)
		return RC_OK;
	if (number_parse(text, unit, &v) != RC_OK)
		return detail_set(why, RC_INVALID, field, "`%.40s` is not %s",
				  text, unit_text(unit));
	if (v < min || v > max)
		return detail_set(why, RC_INVALID, field,
				  "%" PRIu64 " is not between %" PRIu64
				  " and %" PRIu64,
				  v, min, max);
	*out = v;
	return RC_OK;
}

static enum rc number32(const char *field, const char *text, enum unit unit,
			uint32_t min, uint32_t max, uint32_t *out,
			struct detail *why)
{
	uint64_t v = *out;
	enum rc rc = number(field, text, unit, min, max, &v, why);

	*out = (uint32_t)v;
	return rc;
}

static enum rc copy_text(const char *field, const char *text, char *out,
			 size_t n, struct detail *why)
{
	size_t len;

	if (text == NULL)
		return RC_OK;
	len = strlen(text);
	if (len == 0)
		return detail_set(why, RC_INVALID, field, "is empty");
	if (len >= n)
		return detail_set(why, RC_INVALID, field,
				  "has more than %zu bytes", n - 1);
	memcpy(out, text, len + 1);
	return RC_OK;
}

/* A relative path is relative to the file that says it. */
static enum rc copy_path(const char *field, const char *text, const char *file,
			 char *out, size_t n, struct detail *why)
{
	const char *slash = strrchr(file, '/');
	int len;

	if (text == NULL)
		return RC_OK;
	if (text[0] == '/' || slash == NULL)
		return copy_text(field, text, out, n, why);
	if (text[0] == '\0')
		return detail_set(why, RC_INVALID, field, "is empty");
	len = snprintf(out, n, "%.*s/%s", (int)(slash - file), file, text);
	if (len < 0 || (size_t)len >= n)
		return detail_set(why, RC_INVALID, field,
				  "has more than %zu bytes", n - 1);
	return RC_OK;
}

static enum rc label(const char *field, const char *text, char *out, size_t n,
		     struct detail *why)
{
	const char *p = text;
	enum rc rc = copy_text(field, text, out, n, why);

	if (rc != RC_OK || text == NULL)
		return rc;
	for (; *p != '\0'; p++)
		if (!((*p >= 'a' && *p <= 'z') ||
		      (p > text &&
		       ((*p >= '0' && *p <= '9') || *p == '-' || *p == '_'))))
			return detail_set(why, RC_INVALID, field,
					  "is made of a-z, 0-9, _ and -, and "
					  "begins with a letter");
	return RC_OK;
}

static enum rc boolean(const char *field, const char *text, bool *out,
		       struct detail *why)
{
	if (text == NULL)
		return RC_OK;
	if (strcmp(text, "true") != 0 && strcmp(text, "false") != 0)
		return detail_set(why, RC_INVALID, field,
				  "`%.40s` is not true or false", text);
	*out = text[0] == 't';
	return RC_OK;
}

/* A name, an IPv4 address, or an IPv6 address with its zone. */
static bool host_good(const char *host, size_t n, bool bracketed)
{
	size_t i;

	for (i = 0; i < n; i++) {
		char c = host[i];

		if (!((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
		      (c >= '0' && c <= '9') || strchr(".-_", c) != NULL ||
		      (bracketed && (c == ':' || c == '%'))))
			return false;
	}
	return n > 0;
}

enum rc config_address_parse(const char *text, struct config_address *out)
{
	const char *colon = strrchr(text, ':');
	bool bracketed = text[0] == '[';
	const char *host = text + bracketed;
	uint64_t port;
	size_t n;

	if (colon == NULL || (bracketed && (colon == host || colon[-1] != ']')))
		return RC_INVALID;
	n = (size_t)(colon - host) - bracketed;
	if (n >= sizeof(out->host) || !host_good(host, n, bracketed) ||
	    number_parse(colon + 1, UNIT_NONE, &port) != RC_OK || port < 1 ||
	    port > UINT16_MAX)
		return RC_INVALID;
	memset(out, 0, sizeof(*out));
	memcpy(out->host, host, n);
	out->port = (uint16_t)port;
	return RC_OK;
}

static enum rc address(const char *field, const char *text,
		       struct config_address *out, struct detail *why)
{
	if (text == NULL)
		return RC_OK;
	if (config_address_parse(text, out) != RC_OK)
		return detail_set(why, RC_INVALID, field,
				  "`%.60s` is not HOST:PORT, nor "
				  "[ADDRESS]:PORT with a port from 1 to 65535",
				  text);
	return RC_OK;
}

static const char *const level_names[] = { "debug", "info", "warn", "error" };

static enum rc level(const char *text, enum log_level *out, struct detail *why)
{
	size_t i;

	if (text == NULL)
		return RC_OK;
	for (i = 0; i < ARRAY_LEN(level_names); i++)
		if (strcmp(text, level_names[i]) == 0) {
			*out = (enum log_level)i;
			return RC_OK;
		}
	return detail_set(why, RC_INVALID, "log.level",
			  "`%.40s` is not debug, info, warn or error", text);
}

/* Grants. */

static enum rc grant_rights(const struct raw_grant *raw, const char *field,
			    uint32_t *out, struct detail *why)
{
	unsigned i;

	*out = 0;
	for (i = 0; i < raw->rights_count; i++) {
		enum method_right right;
		const char *name = raw->rights[i];

		if (method_right_parse(name, strlen(name), &right) != RC_OK)
			return detail_set(why, RC_INVALID, field,
					  "`%.40s` is no right (read, write, "
					  "admin)",
					  name);
		*out |= (uint32_t)right;
	}
	if (*out == 0)
		return detail_set(why, RC_INVALID, field,
				  "a grant gives at least one right");
	return RC_OK;
}

static enum rc grant_parse(const struct raw_grant *raw, unsigned i,
			   struct grant *g, struct detail *why)
{
	char field[64];
	enum rc rc;

	*g = (struct grant){ .tenant = "default", .env = "dev" };
	snprintf(field, sizeof(field), "grants[%u].principal", i);
	if (raw->principal == NULL)
		return detail_set(why, RC_INVALID, field, "is missing");
	rc = copy_text(field, raw->principal, g->principal,
		       sizeof(g->principal), why);
	snprintf(field, sizeof(field), "grants[%u].tenant", i);
	if (rc == RC_OK)
		rc = label(field, raw->tenant, g->tenant, sizeof(g->tenant),
			   why);
	snprintf(field, sizeof(field), "grants[%u].env", i);
	if (rc == RC_OK)
		rc = label(field, raw->env, g->env, sizeof(g->env), why);
	snprintf(field, sizeof(field), "grants[%u].class", i);
	if (rc == RC_OK && raw->cls == NULL)
		return detail_set(why, RC_INVALID, field,
				  "is missing (\"*\" is every class)");
	if (rc == RC_OK && strcmp(raw->cls, "*") != 0 &&
	    !method_class_known(raw->cls, strlen(raw->cls)))
		return detail_set(why, RC_INVALID, field,
				  "there is no class `%.40s`", raw->cls);
	if (rc == RC_OK)
		rc = copy_text(field, raw->cls, g->cls, sizeof(g->cls), why);
	snprintf(field, sizeof(field), "grants[%u].prefix", i);
	if (rc == RC_OK && raw->prefix != NULL && raw->prefix[0] != '\0')
		rc = copy_text(field, raw->prefix, g->prefix, sizeof(g->prefix),
			       why);
	snprintf(field, sizeof(field), "grants[%u].rights", i);
	if (rc == RC_OK)
		rc = grant_rights(raw, field, &g->rights, why);
	return rc;
}

static enum rc grants_parse(const struct raw *raw, struct config *cfg,
			    struct detail *why)
{
	unsigned i;
	enum rc rc = RC_OK;

	if (raw->grants_count == 0)
		return RC_OK;
	cfg->grants = calloc(raw->grants_count, sizeof(*cfg->grants));
	if (cfg->grants == NULL)
		return RC_NOMEM;
	for (i = 0; i < raw->grants_count && rc == RC_OK; i++)
		rc = grant_parse(&raw->grants[i], i, &cfg->grants[i], why);
	cfg->grants_n = raw->grants_count;
	return rc;
}

/* Sections. */

static enum rc limits_parse(const struct raw_limits *r, struct config *cfg,
			    struct detail *why)
{
	struct core_config *c = &cfg->core;
	enum rc rc;

	rc = number32("limits.connections", r->connections, UNIT_NONE, 1,
		      CONNECTIONS_MAX, &cfg->connections_max, why);
	if (rc == RC_OK)
		rc = number32("limits.calls", r->calls, UNIT_NONE, 64,
			      CALLS_MAX, &c->calls_max, why);
	if (rc == RC_OK)
		rc = number32("limits.objects", r->objects, UNIT_NONE, 16,
			      16u * OBJECTS_RESIDENT_MAX, &c->objects_max, why);
	if (rc == RC_OK)
		rc = number("limits.objects_bytes", r->objects_bytes,
			    UNIT_BYTES, 1u << 20, 1ull << 40,
			    &c->objects_bytes_max, why);
	if (rc == RC_OK)
		rc = number32("limits.object_idle", r->object_idle, UNIT_MS, 10,
			      86400000, &c->object_idle_ms, why);
	if (rc == RC_OK)
		rc = number("limits.tenant_objects", r->tenant_objects,
			    UNIT_NONE, 1, INT64_MAX, &c->tenant_objects_max,
			    why);
	if (rc == RC_OK)
		rc = number("limits.tenant_bytes", r->tenant_bytes, UNIT_BYTES,
			    1, INT64_MAX, &c->tenant_bytes_max, why);
	if (rc == RC_OK)
		rc = number("limits.secret_bytes", r->secret_bytes, UNIT_BYTES,
			    65536, 64u << 20, &cfg->secret_bytes, why);
	return rc;
}

static enum rc storage_parse(const struct raw_storage *r, struct config *cfg,
			     struct detail *why)
{
	struct core_config *c = &cfg->core;
	enum rc rc;

	rc = number32("storage.shards", r->shards, UNIT_NONE, 1, SHARDS_MAX,
		      &cfg->shards, why);
	if (rc == RC_OK)
		rc = number32("storage.segment_bytes", r->segment_bytes,
			      UNIT_BYTES, SEGMENT_BYTES_MIN, 256u << 20,
			      &cfg->segment_bytes, why);
	if (rc == RC_OK && (cfg->segment_bytes & (cfg->segment_bytes - 1)) != 0)
		return detail_set(why, RC_INVALID, "storage.segment_bytes",
				  "is a power of two");
	if (rc == RC_OK)
		rc = number("storage.log_bytes", r->log_bytes, UNIT_BYTES,
			    4ull * cfg->segment_bytes, 1ull << 44,
			    &c->log_bytes_max, why);
	if (rc == RC_OK && c->log_bytes_max < 4ull * cfg->segment_bytes)
		return detail_set(why, RC_INVALID, "storage.log_bytes",
				  "is at least four segments");
	if (rc == RC_OK)
		rc = number("storage.reserve_bytes", r->reserve_bytes,
			    UNIT_BYTES, 0, 1ull << 44, &c->reserve_bytes, why);
	if (rc == RC_OK)
		rc = number32("storage.window", r->window, UNIT_MS, 0, 10000,
			      &c->window_ms, why);
	if (rc == RC_OK)
		rc = number32("storage.window_bytes", r->window_bytes,
			      UNIT_BYTES, 65536, 1u << 30, &c->window_bytes,
			      why);
	return rc;
}

static enum rc raft_parse(const struct raw_raft *r, struct config *cfg,
			  struct detail *why)
{
	struct core_config *c = &cfg->core;
	enum rc rc;

	rc = number32("raft.election", r->election, UNIT_MS, 50, 60000,
		      &c->election_ms, why);
	if (rc == RC_OK)
		rc = number32("raft.heartbeat", r->heartbeat, UNIT_MS, 5, 20000,
			      &c->heartbeat_ms, why);
	if (rc == RC_OK)
		rc = boolean("raft.spread", r->spread, &c->spread, why);
	if (rc == RC_OK && c->heartbeat_ms * 3 > c->election_ms)
		return detail_set(why, RC_INVALID, "raft.heartbeat",
				  "is at most a third of raft.election");
	return rc;
}

/* What listens on every address is none that others can connect to. */
static bool is_wildcard(const struct config_address *a)
{
	return strcmp(a->host, "0.0.0.0") == 0 || strcmp(a->host, "::") == 0;
}

static enum rc advertise_parse(const char *field, const char *listen_field,
			       const char *text,
			       const struct config_address *listen,
			       struct config_address *out, struct detail *why)
{
	enum rc rc = address(field, text, out, why);

	if (rc != RC_OK)
		return rc;
	if (text != NULL && listen->port == 0)
		return detail_set(why, RC_INVALID, field,
				  "is said, but %s is not", listen_field);
	if (text != NULL && is_wildcard(out))
		return detail_set(why, RC_INVALID, field,
				  "nobody can connect to %s", out->host);
	if (text != NULL)
		return RC_OK;
	if (is_wildcard(listen))
		return detail_set(why, RC_INVALID, listen_field,
				  "nobody can connect to %s: %s says what "
				  "others reach this node by",
				  listen->host, field);
	*out = *listen;
	return RC_OK;
}

static enum rc addresses_parse(const struct raw *raw, struct config *cfg,
			       struct detail *why)
{
	enum rc rc;

	rc = address("listen.rpc", raw->listen.rpc, &cfg->listen_rpc, why);
	if (rc == RC_OK)
		rc = address("listen.peer", raw->listen.peer, &cfg->listen_peer,
			     why);
	if (rc == RC_OK)
		rc = advertise_parse("advertise.rpc", "listen.rpc",
				     raw->advertise.rpc, &cfg->listen_rpc,
				     &cfg->advertise_rpc, why);
	if (rc == RC_OK)
		rc = advertise_parse("advertise.peer", "listen.peer",
				     raw->advertise.peer, &cfg->listen_peer,
				     &cfg->advertise_peer, why);
	return rc;
}

static enum rc tls_parse(const struct raw_tls *r, const char *file,
			 struct config *cfg, struct detail *why)
{
	const struct {
		const char *field;
		const char *text;
		char *out;
	} rows[] = {
		{ "tls.ca", r->ca, cfg->tls_ca },
		{ "tls.cert", r->cert, cfg->tls_cert },
		{ "tls.key", r->key, cfg->tls_key },
	};
	bool needed = cfg->listen_rpc.port != 0 || cfg->listen_peer.port != 0;
	enum rc rc = RC_OK;
	size_t i;

	for (i = 0; i < ARRAY_LEN(rows); i++)
		needed = needed || rows[i].text != NULL;
	for (i = 0; i < ARRAY_LEN(rows) && rc == RC_OK; i++) {
		if (needed && rows[i].text == NULL)
			return detail_set(why, RC_INVALID, rows[i].field,
					  "is missing: a PEM file, for "
					  "connections over TCP");
		rc = copy_path(rows[i].field, rows[i].text, file, rows[i].out,
			       CONFIG_PATH_MAX, why);
	}
	return rc;
}

/* Neither this node nor one that was named before. */
static enum rc peer_distinct(const struct config *cfg, unsigned i,
			     struct detail *why)
{
	const struct config_peer *p = &cfg->peers[i];
	char field[64];
	unsigned k;

	snprintf(field, sizeof(field), "peers[%u]", i);
	if (p->id == cfg->node_id || strcmp(p->name, cfg->node_name) == 0)
		return detail_set(why, RC_INVALID, field,
				  "is this node itself: peers are the others");
	for (k = 0; k < i; k++)
		if (cfg->peers[k].id == p->id ||
		    strcmp(cfg->peers[k].name, p->name) == 0)
			return detail_set(why, RC_INVALID, field,
					  "has the id or the name of peers[%u]",
					  k);
	return RC_OK;
}

static enum rc peer_parse(const struct raw_peer *raw, unsigned i,
			  struct config *cfg, struct detail *why)
{
	struct config_peer *p = &cfg->peers[i];
	char field[64];
	enum rc rc = RC_OK;

	snprintf(field, sizeof(field), "peers[%u].id", i);
	if (raw->id == NULL)
		return detail_set(why, RC_INVALID, field, "is missing");
	rc = number(field, raw->id, UNIT_NONE, 1, INT64_MAX, &p->id, why);
	snprintf(field, sizeof(field), "peers[%u].name", i);
	if (rc == RC_OK && raw->name == NULL)
		return detail_set(why, RC_INVALID, field, "is missing");
	if (rc == RC_OK)
		rc = label(field, raw->name, p->name, sizeof(p->name), why);
	snprintf(field, sizeof(field), "peers[%u].peer", i);
	if (rc == RC_OK && raw->peer == NULL)
		return detail_set(why, RC_INVALID, field,
				  "is missing: where that node takes its "
				  "peers, HOST:PORT");
	if (rc == RC_OK)
		rc = address(field, raw->peer, &p->peer, why);
	snprintf(field, sizeof(field), "peers[%u].rpc", i);
	if (rc == RC_OK)
		rc = address(field, raw->rpc, &p->rpc, why);
	if (rc == RC_OK)
		rc = peer_distinct(cfg, i, why);
	return rc;
}

/* A member says who it is: certificates, grants and the others name it. */
static enum rc peers_parse(const struct raw *raw, struct config *cfg,
			   struct detail *why)
{
	enum rc rc = RC_OK;
	unsigned i;

	if (raw->peers_count == 0)
		return cfg->listen_peer.port == 0
			       ? RC_OK
			       : detail_set(why, RC_INVALID, "peers",
					    "is missing: listen.peer is said, "
					    "and nobody to talk to");
	if (raw->peers_count % 2 != 0)
		return detail_set(why, RC_INVALID, "peers",
				  "has %u: a cluster has three or five "
				  "members, this node among them",
				  raw->peers_count);
	if (cfg->listen_peer.port == 0)
		return detail_set(why, RC_INVALID, "listen.peer",
				  "is missing: the peers connect to it");
	if (!cfg->named || !cfg->numbered)
		return detail_set(why, RC_INVALID,
				  cfg->named ? "node.id" : "node.name",
				  "is missing: a node with peers says both");
	for (i = 0; i < raw->peers_count && rc == RC_OK; i++)
		rc = peer_parse(&raw->peers[i], i, cfg, why);
	cfg->peers_n = raw->peers_count;
	return rc;
}

static enum rc raw_parse(const struct raw *raw, const char *path,
			 struct config *cfg, struct detail *why)
{
	enum rc rc;

	rc = label("node.name", raw->node.name, cfg->node_name,
		   sizeof(cfg->node_name), why);
	cfg->named = raw->node.name != NULL;
	cfg->numbered = raw->node.id != NULL;
	if (rc == RC_OK)
		rc = number("node.id", raw->node.id, UNIT_NONE, 1, INT64_MAX,
			    &cfg->node_id, why);
	if (rc == RC_OK && raw->data == NULL)
		rc = detail_set(why, RC_INVALID, "data",
				"is missing: where the data directory is");
	if (rc == RC_OK)
		rc = copy_path("data", raw->data, path, cfg->data,
			       sizeof(cfg->data), why);
	if (rc == RC_OK)
		rc = copy_path("listen.socket", raw->listen.socket, path,
			       cfg->socket, sizeof(cfg->socket), why);
	if (rc == RC_OK)
		rc = copy_path("pid_file", raw->pid_file, path, cfg->pid_file,
			       sizeof(cfg->pid_file), why);
	if (rc == RC_OK)
		rc = addresses_parse(raw, cfg, why);
	if (rc == RC_OK)
		rc = tls_parse(&raw->tls, path, cfg, why);
	if (rc == RC_OK)
		rc = peers_parse(raw, cfg, why);
	if (rc == RC_OK)
		rc = level(raw->log.level, &cfg->log_level, why);
	if (rc == RC_OK)
		rc = limits_parse(&raw->limits, cfg, why);
	if (rc == RC_OK)
		rc = storage_parse(&raw->storage, cfg, why);
	if (rc == RC_OK)
		rc = raft_parse(&raw->raft, cfg, why);
	if (rc == RC_OK)
		rc = grants_parse(raw, cfg, why);
	return rc;
}

/*
 * libcyaml says what is wrong only in its log: one line about the mistake, then
 * where it was, innermost first:
 *
 *	Load: Unexpected key: call
 *	Load: Backtrace:
 *	  in mapping (line: 3, column: 10)
 *	  in mapping field 'limits' (line: 3, column: 3)
 *	  in sequence entry '1' (line: 2, column: 3)
 *
 * The lines are those of what was read last, which is what it could not use, or
 * what stands before it.
 */
struct complaint {
	char text[160];
	char field[64];
	unsigned line;
};

static void field_before(struct complaint *c, const char *part, size_t n)
{
	char rest[sizeof(c->field)];
	const char *dot = c->field[0] == '\0' || c->field[0] == '[' ? "" : ".";

	memcpy(rest, c->field, sizeof(rest));
	snprintf(c->field, sizeof(c->field), "%.*s%s%.*s", (int)n, part, dot,
		 (int)(sizeof(rest) / 2), rest);
}

static void complaint_place(struct complaint *c, const char *line)
{
	static const char entry[] = "in sequence entry '";
	static const char field[] = "in mapping field '";
	const char *at;
	char index[24];

	at = strstr(line, "(line: ");
	if (at != NULL && c->line == 0)
		c->line = (unsigned)strtoul(at + 7, NULL, 10);
	at = strstr(line, field);
	if (at != NULL) {
		at += sizeof(field) - 1;
		field_before(c, at, strcspn(at, "'"));
		return;
	}
	at = strstr(line, entry);
	if (at == NULL)
		return;
	at += sizeof(entry) - 1;
	snprintf(index, sizeof(index), "[%lu]", strtoul(at, NULL, 10) - 1);
	field_before(c, index, strlen(index));
}

static void complain(cyaml_log_t lvl, void *arg, const char *fmt, va_list args)
{
	static const char head[] = "Load: ";
	struct complaint *c = arg;
	char line[256];
	const char *said = line;

	if (lvl < CYAML_LOG_ERROR)
		return;
	vsnprintf(line, sizeof(line), fmt, args);
	line[strcspn(line, "\n")] = '\0';
	if (strncmp(line, head, sizeof(head) - 1) != 0) {
		complaint_place(c, line);
		return;
	}
	said += sizeof(head) - 1;
	if (c->text[0] == '\0' && strcmp(said, "Backtrace:") != 0)
		snprintf(c->text, sizeof(c->text), "%.150s", said);
}

static enum rc file_read(const char *path, char **out, size_t *n,
			 struct detail *why)
{
	FILE *f = fopen(path, "re");
	char *p;

	if (f == NULL)
		return detail_set(why, RC_NOT_FOUND, NULL, "%.150s: %s", path,
				  strerror(errno));
	p = malloc(CONFIG_BYTES_MAX + 2);
	if (p == NULL) {
		fclose(f);
		return RC_NOMEM;
	}
	*n = fread(p, 1, CONFIG_BYTES_MAX + 1, f);
	if (ferror(f) || *n > CONFIG_BYTES_MAX) {
		bool large = *n > CONFIG_BYTES_MAX;

		fclose(f);
		free(p);
		return detail_set(why, RC_INVALID, NULL, "%.150s: %s", path,
				  large ? "larger than 1 MiB"
					: strerror(errno));
	}
	fclose(f);
	p[*n] = '\0';
	if (strlen(p) != *n) {
		free(p);
		return detail_set(why, RC_INVALID, NULL,
				  "%.150s: has a byte of zero", path);
	}
	*out = p;
	return RC_OK;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* The end of a quoted text that begins at `i`. */
static size_t quoted_end(const char *data, size_t n, size_t i)
{
	char quote = data[i];

	for (i++; i < n && data[i] != quote; i++)
		if (quote == '"' && data[i] == '\\')
			i++;
	return i;
}

/* A part of the file: the bytes [from, to). */
struct range {
	size_t from;
	size_t to;
};

static size_t next_line(const char *data, size_t n, size_t i)
{
	i += strcspn(data + i, "\n");
	return i < n ? i + 1 : n;
}

/* From the line of a key of the top level to the next of its kind: what is
 * indented, a comment, or an entry of a list belongs to it. */
static struct range section_of(const char *data, size_t n, const char *key,
			       size_t key_n)
{
	struct range all = { 0, n };
	struct range r;

	for (r.from = 0; r.from < n; r.from = next_line(data, n, r.from))
		if (n - r.from > key_n && data[r.from + key_n] == ':' &&
		    memcmp(data + r.from, key, key_n) == 0)
			break;
	if (r.from == n)
		return all;
	for (r.to = next_line(data, n, r.from); r.to < n;
	     r.to = next_line(data, n, r.to))
		if (strchr(" \t\r\n#-", data[r.to]) == NULL)
			break;
	return r;
}

/* The entry `index` of a list whose entries begin with dashes; else all. */
static struct range entry_of(const char *data, struct range all,
			     unsigned long index)
{
	struct range r = all;
	size_t column = SIZE_MAX;
	size_t i;

	for (i = next_line(data, all.to, all.from); i < all.to;
	     i = next_line(data, all.to, i)) {
		size_t in = strspn(data + i, " ");

		if (data[i + in] != '-' || (column != SIZE_MAX && in != column))
			continue;
		column = in;
		if (index-- == 0)
			r.from = i;
		else if (r.from != all.from)
			return (struct range){ r.from, i };
	}
	return r;
}

static struct range range_of(const char *data, size_t n, const char *field)
{
	size_t key_n = strcspn(field, ".[");
	struct range r = { 0, n };

	if (field[key_n] == '\0')
		return r;
	r = section_of(data, n, field, key_n);
	if (field[key_n] == '[')
		r = entry_of(data, r, strtoul(field + key_n + 1, NULL, 10));
	return r;
}

/*
 * The line on which a key stands, when the file has it exactly `times` in the
 * part that its field names: our own parser knows fields, not places. Of
 * `grants[2].class` it looks for the last part, in the third entry.
 */
static unsigned line_of(const char *data, size_t n, const char *field,
			unsigned times)
{
	struct range part = range_of(data, n, field);
	const char *dot = strrchr(field, '.');
	const char *key = dot != NULL ? dot + 1 : field;
	size_t key_n = strcspn(key, "[");
	unsigned found = 0;
	unsigned last = 0;
	unsigned line = 1;
	bool first = true; /* A word may begin here. */
	size_t i;

	for (i = 0; i < n; i++) {
		size_t end = i;

		if (first && (data[i] == '"' || data[i] == '\''))
			end = quoted_end(data, n, i);
		else if (first && data[i] == '#')
			end = i + strcspn(data + i, "\n") - 1;
		else if (first && i >= part.from && i < part.to &&
			 n - i > key_n && data[i + key_n] == ':' &&
			 memcmp(data + i, key, key_n) == 0 &&
			 (i + key_n + 1 == n ||
			  is_space(data[i + key_n + 1]))) {
			found++;
			last = line;
		}
		for (; i < end && i < n; i++)
			line += data[i] == '\n';
		if (i == n)
			break;
		line += data[i] == '\n';
		first = is_space(data[i]) || strchr("{[,", data[i]) != NULL;
	}
	return key_n > 0 && found == times ? last : 0;
}

/* The same for a whole entry, `peers[1]`. */
static unsigned line_of_field(const char *data, size_t n, const char *field)
{
	unsigned line = 1;
	struct range r;
	size_t i;

	if (field[0] == '\0' || field[strlen(field) - 1] != ']')
		return line_of(data, n, field, 1);
	r = range_of(data, n, field);
	for (i = 0; i < r.from; i++)
		line += data[i] == '\n';
	return line;
}

/* A second document would be passed over in silence; libcyaml reads one. */
static unsigned second_document(const char *data, size_t n)
{
	bool content = false;
	unsigned line = 1;
	size_t i = 0;

	while (i < n) {
		size_t len = strcspn(data + i, "\n");
		const char *p = data + i;

		if (len >= 3 && memcmp(p, "---", 3) == 0 &&
		    (len == 3 || is_space(p[3]))) {
			if (content)
				return line;
			content = len > 3;
		} else if (len > 0 && p[0] != '#' && p[0] != '%') {
			content = true;
		}
		i += len + 1;
		line++;
	}
	return 0;
}

static void detail_place(struct detail *why, const char *path, unsigned line)
{
	char text[DETAIL_BYTES_MAX];

	if (why == NULL)
		return;
	memcpy(text, why->text, sizeof(text));
	if (line != 0)
		snprintf(why->text, sizeof(why->text), "%.90s:%u: %.130s", path,
			 line, text);
	else
		snprintf(why->text, sizeof(why->text), "%.90s: %.140s", path,
			 text);
}

static const char unexpected[] = "Unexpected key: ";
static const char doubled[] = "Mapping field already seen: ";

/* In the words of the operator. */
static enum rc complaint_tell(const struct complaint *c, const char *data,
			      size_t n, const char *path, struct detail *why)
{
	struct complaint said = *c;
	unsigned line = c->line;

	if (strncmp(c->text, unexpected, sizeof(unexpected) - 1) == 0) {
		const char *key = c->text + sizeof(unexpected) - 1;
		const char *dot = c->field[0] != '\0' ? "." : "";

		snprintf(said.field, sizeof(said.field), "%.30s%s%.30s",
			 c->field, dot, key);
		line = line_of(data, n, said.field, 1);
		detail_set(why, RC_INVALID, said.field,
			   "there is no key `%.40s` here", key);
	} else if (strncmp(c->text, doubled, sizeof(doubled) - 1) == 0) {
		line = line_of(data, n, c->field, 2);
		detail_set(why, RC_INVALID, c->field, "stands here twice");
	} else if (strncmp(c->text, "libyaml: ", 9) == 0) {
		/* The parser was told no place: this is where it had come. */
		detail_set(why, RC_INVALID, NULL,
			   "this is not YAML (behind line %u): %.100s", c->line,
			   c->text + 9);
		line = 0;
	} else {
		detail_set(why, RC_INVALID, c->field, "%s", c->text);
	}
	detail_place(why, path, line);
	return RC_INVALID;
}

static enum rc yaml_load(const char *data, size_t n, const char *path,
			 struct raw **raw, struct detail *why)
{
	struct complaint c = { { 0 }, { 0 }, 0 };
	const cyaml_config_t yaml = { .log_fn = complain,
				      .log_ctx = &c,
				      .log_level = CYAML_LOG_ERROR,
				      .mem_fn = cyaml_mem };
	unsigned second = second_document(data, n);
	cyaml_err_t e;

	if (second != 0) {
		detail_set(why, RC_INVALID, NULL,
			   "a configuration is one document");
		detail_place(why, path, second);
		return RC_INVALID;
	}
	e = cyaml_load_data((const uint8_t *)data, n, &yaml, &top_schema,
			    (cyaml_data_t **)raw, NULL);
	if (e == CYAML_OK)
		return RC_OK;
	if (e == CYAML_ERR_OOM)
		return RC_NOMEM;
	if (c.text[0] == '\0')
		snprintf(c.text, sizeof(c.text), "%s", cyaml_strerror(e));
	return complaint_tell(&c, data, n, path, why);
}

enum rc config_load(struct config *cfg, const char *path, struct detail *why)
{
	const cyaml_config_t yaml = { .mem_fn = cyaml_mem };
	struct raw *raw = NULL;
	char *data = NULL;
	size_t n = 0;
	enum rc rc = file_read(path, &data, &n, why);

	if (rc != RC_OK)
		return rc;
	CHECK(data != NULL);
	rc = yaml_load(data, n, path, &raw, why);
	if (rc == RC_OK && raw == NULL) {
		rc = RC_INVALID;
		detail_set(why, rc, NULL, "%.150s: is empty", path);
	}
	if (rc == RC_OK) {
		rc = raw_parse(raw, path, cfg, why);
		if (rc != RC_OK && why != NULL)
			detail_place(why, path,
				     line_of_field(data, n, why->field));
	}
	if (raw != NULL)
		cyaml_free(&yaml, &top_schema, raw, 0);
	free(data);
	return rc;
}

/* Defaults. */

void config_default(struct config *cfg)
{
	memset(cfg, 0, sizeof(*cfg));
	snprintf(cfg->node_name, sizeof(cfg->node_name), "node1");
	cfg->node_id = 1;
	cfg->log_level = LOG_INFO_LEVEL;
	cfg->shards = SHARDS_DEFAULT;
	cfg->segment_bytes = SEGMENT_BYTES_DEFAULT;
	cfg->connections_max = CONNECTIONS_MAX;
	cfg->secret_bytes = 2u << 20;
	core_config_default(&cfg->core);
}

void config_release(struct config *cfg)
{
	free(cfg->grants);
	cfg->grants = NULL;
	cfg->grants_n = 0;
}

static enum rc path_join(const char *dir, const char *name, char *out, size_t n,
			 struct detail *why)
{
	int len = snprintf(out, n, "%s/%s", dir, name);

	if (len < 0 || (size_t)len >= n)
		return detail_set(why, RC_INVALID, "data",
				  "the path is too long");
	return RC_OK;
}

enum rc config_place(struct config *cfg, const char *data, struct detail *why)
{
	enum rc rc = copy_text("data", data, cfg->data, sizeof(cfg->data), why);

	if (rc == RC_OK)
		rc = path_join(data, "holdfast.sock", cfg->socket,
			       sizeof(cfg->socket), why);
	if (rc == RC_OK)
		rc = path_join(data, "holdfastd.pid", cfg->pid_file,
			       sizeof(cfg->pid_file), why);
	return rc;
}

enum rc config_dev(struct config *cfg, const char *data, struct detail *why)
{
	struct grant *g;
	enum rc rc = config_place(cfg, data, why);

	if (rc != RC_OK)
		return rc;
	g = calloc(1, sizeof(*g));
	if (g == NULL)
		return RC_NOMEM;
	*g = (struct grant){ .tenant = "default",
			     .env = "dev",
			     .cls = "*",
			     .rights = RIGHT_READ | RIGHT_WRITE | RIGHT_ADMIN };
	snprintf(g->principal, sizeof(g->principal), "unix:%s:%u",
		 cfg->node_name, (unsigned)geteuid());
	cfg->grants = g;
	cfg->grants_n = 1;
	return RC_OK;
}

enum rc config_state_dir(char *out, size_t n)
{
	const char *state = getenv("XDG_STATE_HOME");
	const char *home = getenv("HOME");
	int len;

	if (state != NULL && state[0] == '/')
		len = snprintf(out, n, "%s/holdfast", state);
	else if (home != NULL && home[0] == '/')
		len = snprintf(out, n, "%s/.local/state/holdfast", home);
	else
		return RC_NOT_FOUND;
	return len > 0 && (size_t)len < n ? RC_OK : RC_INVALID;
}

/* Printing. */

static void print_text(FILE *out, const char *s)
{
	putc('"', out);
	for (; *s != '\0'; s++) {
		unsigned char ch = (unsigned char)*s;

		if (ch == '"' || ch == '\\')
			fprintf(out, "\\%c", ch);
		else if (ch < 0x20)
			fprintf(out, "\\x%02x", ch);
		else
			putc(ch, out);
	}
	putc('"', out);
}

static void print_field(FILE *out, const char *key, const char *value)
{
	fprintf(out, "%s: ", key);
	print_text(out, value);
	putc('\n', out);
}

static void print_number(FILE *out, const char *key, uint64_t v)
{
	fprintf(out, "  %s: %" PRIu64 "\n", key, v);
}

static void print_address(FILE *out, const char *key,
			  const struct config_address *a)
{
	bool colons = strchr(a->host, ':') != NULL;

	if (a->port != 0)
		fprintf(out, "%s: \"%s%s%s:%u\"\n", key, colons ? "[" : "",
			a->host, colons ? "]" : "", (unsigned)a->port);
}

static void print_places(FILE *out, const struct config *cfg)
{
	if (cfg->socket[0] != '\0' || cfg->listen_rpc.port != 0 ||
	    cfg->listen_peer.port != 0)
		fprintf(out, "listen:\n");
	if (cfg->socket[0] != '\0')
		print_field(out, "  socket", cfg->socket);
	print_address(out, "  rpc", &cfg->listen_rpc);
	print_address(out, "  peer", &cfg->listen_peer);
	if (cfg->advertise_rpc.port != 0 || cfg->advertise_peer.port != 0)
		fprintf(out, "advertise:\n");
	print_address(out, "  rpc", &cfg->advertise_rpc);
	print_address(out, "  peer", &cfg->advertise_peer);
	if (cfg->tls_ca[0] == '\0')
		return;
	fprintf(out, "tls:\n");
	print_field(out, "  ca", cfg->tls_ca);
	print_field(out, "  cert", cfg->tls_cert);
	print_field(out, "  key", cfg->tls_key);
}

static void print_peer(FILE *out, const struct config_peer *p)
{
	fprintf(out, "  - id: %" PRIu64 "\n", p->id);
	print_field(out, "    name", p->name);
	print_address(out, "    peer", &p->peer);
	print_address(out, "    rpc", &p->rpc);
}

static void print_grant(FILE *out, const struct grant *g)
{
	static const enum method_right all[] = { RIGHT_READ, RIGHT_WRITE,
						 RIGHT_ADMIN };
	const char *comma = "";
	size_t i;

	print_field(out, "  - principal", g->principal);
	print_field(out, "    tenant", g->tenant);
	print_field(out, "    env", g->env);
	print_field(out, "    class", g->cls);
	print_field(out, "    prefix", g->prefix);
	fprintf(out, "    rights: [");
	for (i = 0; i < ARRAY_LEN(all); i++)
		if ((g->rights & (uint32_t)all[i]) != 0) {
			fprintf(out, "%s%s", comma, method_right_name(all[i]));
			comma = ", ";
		}
	fprintf(out, "]\n");
}

void config_print(const struct config *cfg, FILE *out)
{
	const struct core_config *c = &cfg->core;
	size_t i;

	fprintf(out, "node:\n");
	print_field(out, "  name", cfg->node_name);
	print_number(out, "id", cfg->node_id);
	print_field(out, "data", cfg->data);
	if (cfg->pid_file[0] != '\0')
		print_field(out, "pid_file", cfg->pid_file);
	print_places(out, cfg);
	if (cfg->peers_n > 0)
		fprintf(out, "peers:\n");
	for (i = 0; i < cfg->peers_n; i++)
		print_peer(out, &cfg->peers[i]);
	fprintf(out, "log:\n  level: %s\n", level_names[cfg->log_level]);
	fprintf(out, "limits:\n");
	print_number(out, "connections", cfg->connections_max);
	print_number(out, "calls", c->calls_max);
	print_number(out, "objects", c->objects_max);
	print_number(out, "objects_bytes", c->objects_bytes_max);
	print_number(out, "object_idle", c->object_idle_ms);
	print_number(out, "tenant_objects", c->tenant_objects_max);
	print_number(out, "tenant_bytes", c->tenant_bytes_max);
	print_number(out, "secret_bytes", cfg->secret_bytes);
	fprintf(out, "storage:\n");
	print_number(out, "shards", cfg->shards);
	print_number(out, "segment_bytes", cfg->segment_bytes);
	print_number(out, "log_bytes", c->log_bytes_max);
	print_number(out, "reserve_bytes", c->reserve_bytes);
	print_number(out, "window", c->window_ms);
	print_number(out, "window_bytes", c->window_bytes);
	fprintf(out, "raft:\n");
	print_number(out, "election", c->election_ms);
	print_number(out, "heartbeat", c->heartbeat_ms);
	fprintf(out, "  spread: %s\n", c->spread ? "true" : "false");
	if (cfg->grants_n > 0)
		fprintf(out, "grants:\n");
	for (i = 0; i < cfg->grants_n; i++)
		print_grant(out, &cfg->grants[i]);
}
