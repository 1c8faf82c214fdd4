#include "node/ca.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "node/base/check.h"

struct ca {
	X509 *cert;
	EVP_PKEY *key;
	char cluster[CA_CLUSTER_HEX + 1];
};

#define NAME_BYTES 64u /* Of a subject's common name. */

static const char scheme[] = "spiffe://";

/* What OpenSSL could not do; its own words behind ours. */
static enum rc ssl_failed(struct detail *why, const char *what)
{
	unsigned long e = ERR_peek_last_error();
	const char *reason = ERR_reason_error_string(e);

	ERR_clear_error();
	return detail_set(why, RC_INTERNAL, NULL, "cannot %s: %s", what,
			  reason != NULL ? reason : "OpenSSL refuses");
}

static enum rc file_failed(struct detail *why, const char *what,
			   const char *path, int e)
{
	enum rc rc = RC_IO;

	if (e == ENOENT)
		rc = RC_NOT_FOUND;
	else if (e == ENOSPC || e == EDQUOT)
		rc = RC_NO_SPACE;
	return detail_set(why, rc, NULL, "cannot %s %.150s: %s", what, path,
			  strerror(e));
}

/* ------------------------------------------------------------------ names ---
 */

static bool is_hex_digit(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

static bool cluster_good(const char *s)
{
	size_t i;

	for (i = 0; i < CA_CLUSTER_HEX; i++)
		if (!is_hex_digit(s[i]))
			return false;
	return s[i] == '\0';
}

/* As the SPIFFE specification allows it: no segment is empty, `.` or `..`. */
static bool path_good(const char *path)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "abcdefghijklmnopqrstuvwxyz"
				      "0123456789._-";

	for (;;) {
		size_t n = strspn(path, letters);

		if (n == 0 || (n <= 2 && strspn(path, ".") >= n))
			return false;
		if (path[n] == '\0')
			return true;
		if (path[n] != '/')
			return false;
		path += n + 1;
	}
}

/* The one URI of a certificate; RC_INVALID unless there is exactly one. */
static enum rc uri_of(X509 *cert, char out[CA_URI_BYTES])
{
	GENERAL_NAMES *names =
		X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	const GENERAL_NAME *name;
	enum rc rc = RC_INVALID;

	if (names == NULL)
		return RC_INVALID;
	name = sk_GENERAL_NAME_value(names, 0);
	if (sk_GENERAL_NAME_num(names) == 1 && name->type == GEN_URI) {
		const ASN1_STRING *s = name->d.uniformResourceIdentifier;
		int n = ASN1_STRING_length(s);

		if (n > 0 && n < (int)CA_URI_BYTES &&
		    memchr(ASN1_STRING_get0_data(s), 0, (size_t)n) == NULL) {
			memcpy(out, ASN1_STRING_get0_data(s), (size_t)n);
			out[n] = '\0';
			rc = RC_OK;
		}
	}
	GENERAL_NAMES_free(names);
	return rc;
}

/* ----------------------------------------------------------- certificates ---
 */

static bool add_text(X509 *cert, X509V3_CTX *ctx, int nid, const char *value)
{
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, ctx, nid, value);
	bool good = ext != NULL && X509_add_ext(cert, ext, -1) == 1;

	X509_EXTENSION_free(ext);
	return good;
}

/* Built, not parsed: no text of a caller is read as OpenSSL's configuration. */
static bool add_uri(X509 *cert, const char *uri)
{
	GENERAL_NAMES *names = GENERAL_NAMES_new();
	GENERAL_NAME *name = GENERAL_NAME_new();
	ASN1_IA5STRING *text = ASN1_IA5STRING_new();
	bool good = names != NULL && name != NULL && text != NULL &&
		    ASN1_STRING_set(text, uri, -1) == 1;

	if (good) {
		GENERAL_NAME_set0_value(name, GEN_URI, text);
		text = NULL;
		good = sk_GENERAL_NAME_push(names, name) > 0;
		if (good)
			name = NULL;
	}
	if (good)
		good = X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0,
					 X509V3_ADD_DEFAULT) == 1;
	ASN1_IA5STRING_free(text);
	GENERAL_NAME_free(name);
	GENERAL_NAMES_free(names);
	return good;
}

/* 159 random bits: positive, and at most 20 bytes as RFC 5280 has it. */
static bool set_serial(X509 *cert)
{
	BIGNUM *n = BN_new();
	bool good = n != NULL &&
		    BN_rand(n, 159, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
		    BN_to_ASN1_INTEGER(n, X509_get_serialNumber(cert)) != NULL;

	BN_free(n);
	return good;
}

/* For people who look at it; nothing is decided by it. */
static bool set_subject(X509 *cert, const char *name)
{
	X509_NAME *subject = X509_get_subject_name(cert);

	return X509_NAME_add_entry_by_txt(subject, "O", MBSTRING_ASC,
					  (const unsigned char *)"Holdfast", -1,
					  -1, 0) == 1 &&
	       X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
					  (const unsigned char *)name, -1, -1,
					  0) == 1;
}

/* Not after the authority's own end. */
static bool set_validity(X509 *cert, const X509 *issuer, uint32_t days)
{
	const ASN1_TIME *last = X509_get0_notAfter(issuer);
	ASN1_TIME *end = X509_getm_notAfter(cert);

	if (X509_gmtime_adj(X509_getm_notBefore(cert), -CA_BEFORE_S) == NULL ||
	    X509_time_adj_ex(end, (int)days, 0, NULL) == NULL)
		return false;
	return cert == issuer || ASN1_TIME_compare(end, last) <= 0 ||
	       X509_set1_notAfter(cert, last) == 1;
}

struct request {
	const char *uri;
	const char *name;
	const char *usage;    /* keyUsage */
	const char *extended; /* NULL: an authority. */
	uint32_t days;
};

static bool cert_fill(X509 *cert, X509 *issuer, EVP_PKEY *key,
		      const struct request *r)
{
	X509V3_CTX ctx;

	if (X509_set_version(cert, X509_VERSION_3) != 1 || !set_serial(cert) ||
	    !set_subject(cert, r->name) ||
	    X509_set_issuer_name(cert, X509_get_subject_name(issuer)) != 1 ||
	    !set_validity(cert, issuer, r->days) ||
	    X509_set_pubkey(cert, key) != 1)
		return false;
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	return add_text(cert, &ctx, NID_basic_constraints,
			r->extended == NULL ? "critical,CA:TRUE,pathlen:0"
					    : "critical,CA:FALSE") &&
	       add_text(cert, &ctx, NID_key_usage, r->usage) &&
	       (r->extended == NULL ||
		add_text(cert, &ctx, NID_ext_key_usage, r->extended)) &&
	       add_text(cert, &ctx, NID_subject_key_identifier, "hash") &&
	       add_text(cert, &ctx, NID_authority_key_identifier,
			"keyid:always") &&
	       add_uri(cert, r->uri);
}

/* NULL: OpenSSL's queue says why. `ca` NULL: signed with the own key. */
static X509 *cert_new(const struct ca *ca, EVP_PKEY *key,
		      const struct request *r)
{
	X509 *cert = X509_new();
	X509 *issuer = ca != NULL ? ca->cert : cert;
	EVP_PKEY *signer = ca != NULL ? ca->key : key;

	if (cert != NULL && cert_fill(cert, issuer, key, r) &&
	    X509_sign(cert, signer, EVP_sha256()) > 0)
		return cert;
	X509_free(cert);
	return NULL;
}

/* ------------------------------------------------------------------ files ---
 */

static bool pem_write(FILE *f, X509 *cert, EVP_PKEY *key)
{
	if (key != NULL)
		return PEM_write_PKCS8PrivateKey(f, key, NULL, NULL, 0, NULL,
						 NULL) == 1;
	return PEM_write_X509(f, cert) == 1;
}

/* Its directory too, so that the name is there after a loss of power. */
static void sync_parent(const char *path)
{
	const char *slash = strrchr(path, '/');
	char dir[PATH_MAX];
	int fd;

	snprintf(dir, sizeof(dir), "%.*s",
		 slash != NULL ? (int)(slash - path) + 1 : 1,
		 slash != NULL ? path : ".");
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return;
	(void)fsync(fd);
	close(fd);
}

/* One of the two; the other is NULL. */
static enum rc file_save(const char *path, X509 *cert, EVP_PKEY *key,
			 struct detail *why)
{
	char name[PATH_MAX];
	bool good;
	FILE *f;
	int fd;
	int e;

	if (snprintf(name, sizeof(name), "%s.new", path) >= (int)sizeof(name))
		return file_failed(why, "write", path, ENAMETOOLONG);
	if (unlink(name) != 0 && errno != ENOENT)
		return file_failed(why, "replace", name, errno);
	fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC,
		  key != NULL ? 0600 : 0644);
	if (fd < 0)
		return file_failed(why, "make", name, errno);
	f = fdopen(fd, "w");
	if (f == NULL) {
		e = errno;
		close(fd);
		goto fail;
	}
	errno = 0;
	good = pem_write(f, cert, key) && fflush(f) == 0 && fsync(fd) == 0;
	e = errno;
	if (fclose(f) != 0 && good) {
		good = false;
		e = errno;
	}
	if (good && rename(name, path) == 0) {
		sync_parent(path);
		return RC_OK;
	}
	if (good)
		e = errno;
fail:
	(void)unlink(name);
	ERR_clear_error();
	return file_failed(why, "write", name, e != 0 ? e : EIO);
}

enum rc ca_save(const struct ca *ca, const char *cert_file,
		const char *key_file, struct detail *why)
{
	enum rc rc = RC_OK;

	if (key_file != NULL)
		rc = file_save(key_file, NULL, ca->key, why);
	if (rc == RC_OK)
		rc = file_save(cert_file, ca->cert, NULL, why);
	return rc;
}

static enum rc file_open(const char *path, FILE **out, struct detail *why)
{
	*out = fopen(path, "re");
	return *out != NULL ? RC_OK : file_failed(why, "read", path, errno);
}

/* Nobody is asked for a password: a daemon's tools do not prompt. */
static int no_password(char *p, int n, int writing, void *arg)
{
	(void)p;
	(void)n;
	(void)writing;
	(void)arg;
	return -1;
}

static enum rc ca_read(struct ca *ca, const char *cert_file,
		       const char *key_file, struct detail *why)
{
	FILE *f;
	enum rc rc = file_open(cert_file, &f, why);

	if (rc != RC_OK)
		return rc;
	ca->cert = PEM_read_X509(f, NULL, no_password, NULL);
	fclose(f);
	if (ca->cert == NULL) {
		ERR_clear_error();
		return detail_set(why, RC_INVALID, NULL,
				  "%.150s is no certificate in PEM", cert_file);
	}
	rc = file_open(key_file, &f, why);
	if (rc != RC_OK)
		return rc;
	ca->key = PEM_read_PrivateKey(f, NULL, no_password, NULL);
	fclose(f);
	if (ca->key == NULL) {
		ERR_clear_error();
		return detail_set(why, RC_INVALID, NULL,
				  "%.150s is no private key in PEM", key_file);
	}
	return RC_OK;
}

static enum rc ca_check(struct ca *ca, const char *cert_file,
			struct detail *why)
{
	char uri[CA_URI_BYTES];

	if (X509_check_ca(ca->cert) != 1 || uri_of(ca->cert, uri) != RC_OK ||
	    strncmp(uri, scheme, sizeof(scheme) - 1) != 0 ||
	    !cluster_good(uri + sizeof(scheme) - 1))
		return detail_set(why, RC_INVALID, NULL,
				  "%.150s is not the certificate of a "
				  "cluster's authority",
				  cert_file);
	snprintf(ca->cluster, sizeof(ca->cluster), "%s",
		 uri + sizeof(scheme) - 1);
	if (X509_check_private_key(ca->cert, ca->key) != 1) {
		ERR_clear_error();
		return detail_set(why, RC_INVALID, NULL,
				  "the key is not that of %.150s", cert_file);
	}
	if (X509_cmp_current_time(X509_get0_notAfter(ca->cert)) <= 0)
		return detail_set(why, RC_INVALID, NULL, "%.150s is expired",
				  cert_file);
	return RC_OK;
}

/* --------------------------------------------------------------- authority ---
 */

enum rc ca_new(const char *cluster, struct ca **out, struct detail *why)
{
	char uri[CA_URI_BYTES];
	struct request r = { .uri = uri,
			     .name = "cluster authority",
			     .usage = "critical,keyCertSign,cRLSign",
			     .days = CA_DAYS };
	struct ca *ca;

	if (!cluster_good(cluster))
		return detail_set(why, RC_INVALID, NULL,
				  "`%.40s` is no cluster id", cluster);
	ca = calloc(1, sizeof(*ca));
	if (ca == NULL)
		return RC_NOMEM;
	snprintf(ca->cluster, sizeof(ca->cluster), "%s", cluster);
	snprintf(uri, sizeof(uri), "%s%s", scheme, cluster);
	ca->key = EVP_EC_gen("P-256");
	if (ca->key != NULL)
		ca->cert = cert_new(NULL, ca->key, &r);
	if (ca->cert == NULL) {
		ca_free(ca);
		return ssl_failed(why, "make the cluster's authority");
	}
	*out = ca;
	return RC_OK;
}

enum rc ca_load(const char *cert_file, const char *key_file, struct ca **out,
		struct detail *why)
{
	struct ca *ca = calloc(1, sizeof(*ca));
	enum rc rc;

	if (ca == NULL)
		return RC_NOMEM;
	rc = ca_read(ca, cert_file, key_file, why);
	if (rc == RC_OK)
		rc = ca_check(ca, cert_file, why);
	if (rc != RC_OK) {
		ca_free(ca);
		return rc;
	}
	*out = ca;
	return RC_OK;
}

void ca_free(struct ca *ca)
{
	if (ca == NULL)
		return;
	X509_free(ca->cert);
	EVP_PKEY_free(ca->key); /* Wipes the private part. */
	free(ca);
}

const char *ca_cluster(const struct ca *ca)
{
	return ca->cluster;
}

enum rc ca_issue(const struct ca *ca, enum ca_use use, const char *path,
		 uint32_t days, const char *cert_file, const char *key_file,
		 struct detail *why)
{
	char uri[CA_URI_BYTES];
	struct request r = { .uri = uri,
			     .name = path,
			     .usage = "critical,digitalSignature",
			     .extended = use == CA_NODE
						 ? "serverAuth,clientAuth"
						 : "clientAuth",
			     .days = days };
	EVP_PKEY *key;
	X509 *cert;
	enum rc rc;

	if (!path_good(path) || snprintf(uri, sizeof(uri), "%s%s/%s", scheme,
					 ca->cluster, path) >= (int)sizeof(uri))
		return detail_set(why, RC_INVALID, NULL,
				  "`%.100s` cannot be in a SPIFFE URI", path);
	if (days < 1 || days > CA_DAYS)
		return detail_set(why, RC_INVALID, NULL,
				  "a certificate is valid for 1 to %u days",
				  CA_DAYS);
	/* X.509 has no room for a longer name; the URI is whole. */
	if (strlen(path) > NAME_BYTES)
		r.name = path + strlen(path) - NAME_BYTES;
	key = EVP_EC_gen("P-256");
	cert = key != NULL ? cert_new(ca, key, &r) : NULL;
	if (cert == NULL) {
		EVP_PKEY_free(key);
		return ssl_failed(why, "make a certificate");
	}
	/* Whoever dies between the two leaves a pair that does not fit, which
	 * the next start says; the other way round it would be the same. */
	rc = file_save(key_file, NULL, key, why);
	if (rc == RC_OK)
		rc = file_save(cert_file, cert, NULL, why);
	X509_free(cert);
	EVP_PKEY_free(key);
	return rc;
}
