/*
 * TLS by libssl over a BIO of our own: what was received is read from the
 * caller's bytes in place, what is to be sent grows one buffer. All checks of
 * a certificate that libssl does not make are in accept_leaf().
 */
#include "client/tls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <openssl/bio.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include "client/check.h"

#define TLS_MAGIC         0x746c7331u
#define TLS_CONTEXT_MAGIC 0x746c7378u

#define PEM_BYTES_MAX     (256u << 10)
#define CHAIN_BYTES_MAX   (16u << 10) /* What the other side may show. */
#define RECORD_BYTES_MAX  (16u << 10) /* Plain bytes of one record. */
#define BUFFER_KEEP_BYTES (128u << 10)
/* Far below what AES-GCM allows for one key (RFC 8446, 5.5). */
#define REKEY_RECORDS (1u << 16)

static const char ciphers[] = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"
			      "TLS_CHACHA20_POLY1305_SHA256";

struct buffer {
	uint8_t *p;
	size_t at; /* at..n is what is in it. */
	size_t n;
	size_t cap;
};

struct tls_context {
	uint32_t magic;
	SSL_CTX *ssl;
	uint64_t expires_ms;
	char uri[TLS_URI_BYTES_MAX + 1];
};

struct tls {
	uint32_t magic;
	bool ready;
	bool ended;
	enum rc broken; /* RC_OK: not. */
	SSL *ssl;
	const uint8_t *in; /* Inside tls_input only. */
	size_t in_n;
	struct buffer out;
	struct buffer plain;
	uint64_t records; /* Sealed since the last change of keys. */
	uint64_t expires_ms;
	struct detail refusal; /* Of the other side's certificate. */
	char uri[TLS_URI_BYTES_MAX + 1];
};

/* -------------------------------------------------------------- buffers ---
 */

static size_t buffer_left(const struct buffer *b)
{
	return b->n - b->at;
}

/* Room for `n` more. */
static bool buffer_reserve(struct buffer *b, size_t n)
{
	size_t left = buffer_left(b);
	size_t cap = b->cap;
	uint8_t *p;

	if (b->cap - b->n >= n)
		return true;
	/* What was taken makes room, if moving the rest is worth it. */
	if (b->at >= left && b->cap - left >= n) {
		if (left > 0)
			memcpy(b->p, b->p + b->at, left);
		b->at = 0;
		b->n = left;
		return true;
	}
	if (n > SIZE_MAX / 4 - b->n)
		return false;
	while (cap < b->n + n)
		cap = cap == 0 ? 4096 : cap * 2;
	p = realloc(b->p, cap);
	if (p == NULL)
		return false;
	b->p = p;
	b->cap = cap;
	return true;
}

static void buffer_take(struct buffer *b, size_t n)
{
	PRE(n <= buffer_left(b));
	b->at += n;
	if (b->at < b->n)
		return;
	b->at = 0;
	b->n = 0;
	if (b->cap > BUFFER_KEEP_BYTES) {
		free(b->p);
		b->p = NULL;
		b->cap = 0;
	}
}

/* What a closed connection received is nobody's business any more. */
static void buffer_release(struct buffer *b, bool wipe)
{
	if (wipe && b->p != NULL)
		OPENSSL_cleanse(b->p, b->cap);
	free(b->p);
	*b = (struct buffer){ 0 };
}

/* ------------------------------------------------------------------ BIO ---
 */

static int bio_read(BIO *bio, char *p, size_t max, size_t *n)
{
	struct tls *t = BIO_get_data(bio);

	CHECK_OBJ(t, TLS_MAGIC);
	BIO_clear_retry_flags(bio);
	*n = max < t->in_n ? max : t->in_n;
	if (*n == 0) {
		BIO_set_retry_read(bio);
		return 0;
	}
	memcpy(p, t->in, *n);
	t->in += *n;
	t->in_n -= *n;
	return 1;
}

static int bio_write(BIO *bio, const char *p, size_t len, size_t *n)
{
	struct tls *t = BIO_get_data(bio);

	CHECK_OBJ(t, TLS_MAGIC);
	BIO_clear_retry_flags(bio);
	*n = 0;
	if (!buffer_reserve(&t->out, len)) {
		t->broken = RC_NOMEM;
		return 0;
	}
	memcpy(t->out.p + t->out.n, p, len);
	t->out.n += len;
	*n = len;
	return 1;
}

static long bio_ctrl(BIO *bio, int cmd, long num, void *ptr)
{
	(void)bio;
	(void)num;
	(void)ptr;
	return cmd == BIO_CTRL_FLUSH ? 1 : 0;
}

static BIO_METHOD *bio_method;
static pthread_once_t bio_once = PTHREAD_ONCE_INIT;

/* For the life of the process: libcrypto has a hundred kinds to give. */
static void bio_method_make(void)
{
	int index = BIO_get_new_index();
	BIO_METHOD *m;

	if (index < 0)
		return;
	m = BIO_meth_new(index | BIO_TYPE_SOURCE_SINK, "holdfast");
	if (m == NULL)
		return;
	if (BIO_meth_set_read_ex(m, bio_read) == 1 &&
	    BIO_meth_set_write_ex(m, bio_write) == 1 &&
	    BIO_meth_set_ctrl(m, bio_ctrl) == 1)
		bio_method = m;
	else
		BIO_meth_free(m);
}

static BIO *bio_new(struct tls *t)
{
	BIO *bio;

	(void)pthread_once(&bio_once, bio_method_make);
	if (bio_method == NULL)
		return NULL;
	bio = BIO_new(bio_method);
	if (bio == NULL)
		return NULL;
	BIO_set_data(bio, t);
	BIO_set_init(bio, 1);
	return bio;
}

/* --------------------------------------------------------- certificates ---
 */

static uint64_t time_ms(const ASN1_TIME *t)
{
	struct tm tm;
	time_t s;

	if (t == NULL || ASN1_TIME_to_tm(t, &tm) != 1)
		return 0;
	s = timegm(&tm);
	return s > 0 ? (uint64_t)s * 1000u : 0;
}

static bool uri_bytes_ok(const uint8_t *p, size_t n)
{
	static const char scheme[] = "spiffe://";
	size_t i;

	if (n <= sizeof(scheme) - 1 || n > TLS_URI_BYTES_MAX)
		return false;
	if (memcmp(p, scheme, sizeof(scheme) - 1) != 0)
		return false;
	for (i = 0; i < n; i++)
		if (p[i] <= 0x20 || p[i] >= 0x7f)
			return false;
	return true;
}

/* A name is the one URI of the subjectAltName, or there is none. */
static const char *leaf_uri(X509 *leaf, char out[TLS_URI_BYTES_MAX + 1])
{
	GENERAL_NAMES *names =
		X509_get_ext_d2i(leaf, NID_subject_alt_name, NULL, NULL);
	const char *bad = NULL;
	unsigned uris = 0;
	int i;

	out[0] = '\0';
	for (i = 0; i < sk_GENERAL_NAME_num(names); i++) {
		const GENERAL_NAME *g = sk_GENERAL_NAME_value(names, i);
		const uint8_t *p;
		size_t n;

		if (g->type != GEN_URI)
			continue;
		p = ASN1_STRING_get0_data(g->d.uniformResourceIdentifier);
		n = (size_t)ASN1_STRING_length(g->d.uniformResourceIdentifier);
		if (++uris > 1)
			break;
		if (!uri_bytes_ok(p, n)) {
			bad = "the certificate's URI is no SPIFFE id";
			continue;
		}
		memcpy(out, p, n);
		out[n] = '\0';
	}
	GENERAL_NAMES_free(names);
	if (uris == 0)
		bad = "the certificate has no URI as subjectAltName";
	if (uris > 1)
		bad = "the certificate has more than one URI";
	if (bad != NULL)
		out[0] = '\0';
	return bad;
}

/* What makes a certificate the leaf of a member or client, besides a good
 * signature and dates. NULL, or the sentence why not. `side`: XKU_SSL_CLIENT,
 * XKU_SSL_SERVER, 0 for one's own. */
static const char *accept_leaf(X509 *leaf, uint32_t side,
			       char uri[TLS_URI_BYTES_MAX + 1])
{
	uint32_t flags = X509_get_extension_flags(leaf);
	uint32_t use = X509_get_extended_key_usage(leaf);

	uri[0] = '\0';
	if ((flags & EXFLAG_INVALID) != 0)
		return "the certificate's extensions are malformed";
	if ((flags & EXFLAG_CA) != 0)
		return "a CA's certificate is nobody's name";
	if ((flags & EXFLAG_XKUSAGE) == 0)
		return "the certificate has no extendedKeyUsage";
	if ((use & side) != side)
		return side == XKU_SSL_CLIENT
			       ? "the certificate is not for clients"
			       : "the certificate is not for servers";
	return leaf_uri(leaf, uri);
}

static int verify(int good, X509_STORE_CTX *ctx)
{
	int index = SSL_get_ex_data_X509_STORE_CTX_idx();
	SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, index);
	struct tls *t = SSL_get_app_data(ssl);
	X509 *leaf = X509_STORE_CTX_get_current_cert(ctx);
	const char *bad;
	int e;

	CHECK_OBJ(t, TLS_MAGIC);
	if (!good) {
		e = X509_STORE_CTX_get_error(ctx);
		detail_set(&t->refusal, RC_DENIED, "certificate",
			   "the certificate is refused: %s",
			   X509_verify_cert_error_string(e));
		return 0;
	}
	if (X509_STORE_CTX_get_error_depth(ctx) > 0)
		return 1;
	bad = accept_leaf(leaf,
			  SSL_is_server(ssl) ? XKU_SSL_CLIENT : XKU_SSL_SERVER,
			  t->uri);
	if (bad != NULL) {
		detail_set(&t->refusal, RC_DENIED, "certificate", "%s", bad);
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_INVALID_PURPOSE);
		return 0;
	}
	t->expires_ms = time_ms(X509_get0_notAfter(leaf));
	return 1;
}

/* --------------------------------------------------------------- context ---
 */

/* What libcrypto says of the last failure: reasons, never data. */
static const char *reason(void)
{
	const char *text = ERR_reason_error_string(ERR_peek_last_error());

	return text != NULL ? text : "no reason given";
}

/* Nobody is asked for a password: a key that has one is refused. */
static int no_password(char *buf, int n, int writing, void *arg)
{
	(void)buf;
	(void)n;
	(void)writing;
	(void)arg;
	return -1;
}

static enum rc file_open(const char *path, const char *field, bool secret,
			 int *out, struct detail *why)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);

	if (fd < 0)
		return detail_set(why, RC_INVALID, field, "cannot open %s: %s",
				  path, strerror(errno));
	if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return detail_set(why, RC_INVALID, field, "%s is no file",
				  path);
	}
	if (secret && (st.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
		close(fd);
		return detail_set(why, RC_INVALID, field,
				  "%s is open to others than its owner "
				  "(mode %04o, must be 0600)",
				  path, (unsigned)st.st_mode & 07777u);
	}
	*out = fd;
	return RC_OK;
}

/* `*out` has `*n` bytes and is the caller's, to be cleansed. */
static enum rc file_read(const char *path, const char *field, bool secret,
			 char **out, size_t *n, struct detail *why)
{
	char *p;
	ssize_t got = 0;
	size_t at = 0;
	enum rc rc;
	int fd = -1;
	int e;

	rc = file_open(path, field, secret, &fd, why);
	if (rc != RC_OK)
		return rc;
	p = malloc(PEM_BYTES_MAX);
	if (p == NULL) {
		close(fd);
		return RC_NOMEM;
	}
	while (at < PEM_BYTES_MAX) {
		got = read(fd, p + at, PEM_BYTES_MAX - at);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		at += (size_t)got;
	}
	e = got < 0 ? errno : 0;
	close(fd);
	if (e != 0 || at == PEM_BYTES_MAX) {
		OPENSSL_cleanse(p, at);
		free(p);
		return detail_set(why, RC_INVALID, field, "cannot read %s: %s",
				  path, e != 0 ? strerror(e) : "too large");
	}
	*out = p;
	*n = at;
	return RC_OK;
}

static enum rc pem_open(const char *path, const char *field, bool secret,
			BIO **bio, char **p, size_t *n, struct detail *why)
{
	enum rc rc = file_read(path, field, secret, p, n, why);

	if (rc != RC_OK)
		return rc;
	CHECK(*p != NULL);
	*bio = BIO_new_mem_buf(*p, (int)*n);
	if (*bio != NULL)
		return RC_OK;
	OPENSSL_cleanse(*p, *n);
	free(*p);
	return RC_NOMEM;
}

static void pem_close(BIO *bio, char *p, size_t n)
{
	BIO_free(bio);
	OPENSSL_cleanse(p, n);
	free(p);
}

/* All certificates of the file: while a CA is replaced there are two. */
static enum rc load_ca(SSL_CTX *ssl, const char *path, struct detail *why)
{
	X509_STORE *store = SSL_CTX_get_cert_store(ssl);
	unsigned count = 0;
	enum rc rc;
	char *p = NULL;
	size_t n = 0;
	X509 *x;
	BIO *bio;

	rc = pem_open(path, "ca", false, &bio, &p, &n, why);
	if (rc != RC_OK)
		return rc;
	while (rc == RC_OK &&
	       (x = PEM_read_bio_X509(bio, NULL, no_password, NULL)) != NULL) {
		if (X509_check_ca(x) != 1)
			rc = detail_set(why, RC_INVALID, "ca",
					"%s has a certificate of no CA", path);
		else if (X509_STORE_add_cert(store, x) != 1)
			rc = RC_NOMEM;
		X509_free(x);
		count++;
	}
	pem_close(bio, p, n);
	if (rc == RC_OK && count == 0)
		rc = detail_set(why, RC_INVALID, "ca",
				"%s has no certificate: %s", path, reason());
	return rc;
}

static enum rc load_cert(SSL_CTX *ssl, const char *path, struct detail *why)
{
	enum rc rc;
	char *p = NULL;
	size_t n = 0;
	X509 *x;
	BIO *bio;

	rc = pem_open(path, "cert", false, &bio, &p, &n, why);
	if (rc != RC_OK)
		return rc;
	x = PEM_read_bio_X509(bio, NULL, no_password, NULL);
	if (x == NULL || SSL_CTX_use_certificate(ssl, x) != 1)
		rc = detail_set(why, RC_INVALID, "cert",
				"%s has no certificate to use: %s", path,
				reason());
	X509_free(x);
	pem_close(bio, p, n);
	return rc;
}

static enum rc load_key(SSL_CTX *ssl, const char *path, struct detail *why)
{
	EVP_PKEY *key;
	enum rc rc;
	char *p = NULL;
	size_t n = 0;
	BIO *bio;

	rc = pem_open(path, "key", true, &bio, &p, &n, why);
	if (rc != RC_OK)
		return rc;
	key = PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
	if (key == NULL)
		rc = detail_set(why, RC_INVALID, "key",
				"%s has no private key without a password",
				path);
	else if (SSL_CTX_use_PrivateKey(ssl, key) != 1 ||
		 SSL_CTX_check_private_key(ssl) != 1)
		rc = detail_set(why, RC_INVALID, "key",
				"%s does not fit the certificate: %s", path,
				reason());
	EVP_PKEY_free(key);
	pem_close(bio, p, n);
	return rc;
}

/* One's own certificate as the others will see it: said at start rather than
 * by every one of them. */
static enum rc check_own(struct tls_context *c, const char *path,
			 struct detail *why)
{
	X509 *own = SSL_CTX_get0_certificate(c->ssl);
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	const char *bad = NULL;
	enum rc rc = RC_OK;

	if (ctx == NULL)
		return RC_NOMEM;
	if (X509_STORE_CTX_init(ctx, SSL_CTX_get_cert_store(c->ssl), own,
				NULL) != 1) {
		X509_STORE_CTX_free(ctx);
		return RC_NOMEM;
	}
	X509_STORE_CTX_set_depth(ctx, 0);
	X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(ctx), 2);
	if (X509_verify_cert(ctx) != 1)
		bad = X509_verify_cert_error_string(
			X509_STORE_CTX_get_error(ctx));
	else
		bad = accept_leaf(own, 0, c->uri);
	if (bad != NULL)
		rc = detail_set(why, RC_INVALID, "cert", "%s: %s", path, bad);
	X509_STORE_CTX_free(ctx);
	c->expires_ms = time_ms(X509_get0_notAfter(own));
	return rc;
}

static bool configure(SSL_CTX *ssl)
{
	SSL_CTX_set_security_level(ssl, 2);
	/* No way around a new handshake with certificates. */
	SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION |
					 SSL_OP_NO_COMPRESSION |
					 SSL_OP_CIPHER_SERVER_PREFERENCE);
	SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_mode(ssl, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_read_ahead(ssl, 1);
	SSL_CTX_set_max_cert_list(ssl, (long)CHAIN_BYTES_MAX);
	SSL_CTX_set_verify(
		ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, verify);
	/* A leaf is signed by the cluster's CA itself. */
	SSL_CTX_set_verify_depth(ssl, 0);
	return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 &&
	       SSL_CTX_set_max_proto_version(ssl, TLS1_3_VERSION) == 1 &&
	       SSL_CTX_set_ciphersuites(ssl, ciphers) == 1 &&
	       SSL_CTX_set1_groups_list(ssl, "X25519:P-256") == 1 &&
	       SSL_CTX_set_num_tickets(ssl, 0) == 1 &&
	       SSL_CTX_set_max_early_data(ssl, 0) == 1 &&
	       SSL_CTX_set_session_id_context(
		       ssl, (const unsigned char *)"holdfast", 8) == 1;
}

enum rc tls_context_new(const char *ca_file, const char *cert_file,
			const char *key_file, struct tls_context **out,
			struct detail *why)
{
	struct tls_context *c = calloc(1, sizeof(*c));
	enum rc rc;

	if (c == NULL)
		return RC_NOMEM;
	ERR_clear_error();
	c->magic = TLS_CONTEXT_MAGIC;
	c->ssl = SSL_CTX_new(TLS_method());
	rc = c->ssl != NULL ? RC_OK : RC_NOMEM;
	if (rc == RC_OK && !configure(c->ssl))
		rc = detail_set(why, RC_INVALID, NULL,
				"libssl cannot do TLS 1.3: %s", reason());
	if (rc == RC_OK)
		rc = load_ca(c->ssl, ca_file, why);
	if (rc == RC_OK)
		rc = load_cert(c->ssl, cert_file, why);
	if (rc == RC_OK)
		rc = load_key(c->ssl, key_file, why);
	if (rc == RC_OK)
		rc = check_own(c, cert_file, why);
	ERR_clear_error();
	if (rc != RC_OK) {
		tls_context_free(c);
		return rc;
	}
	*out = c;
	return RC_OK;
}

void tls_context_free(struct tls_context *c)
{
	if (c == NULL)
		return;
	CHECK_OBJ(c, TLS_CONTEXT_MAGIC);
	SSL_CTX_free(c->ssl); /* Connections hold it by count. */
	c->magic = 0;
	free(c);
}

uint64_t tls_context_expires_ms(const struct tls_context *c)
{
	CHECK_OBJ(c, TLS_CONTEXT_MAGIC);
	return c->expires_ms;
}

const char *tls_context_uri(const struct tls_context *c)
{
	CHECK_OBJ(c, TLS_CONTEXT_MAGIC);
	return c->uri;
}

/* ------------------------------------------------------------ connection ---
 */

enum {
	ALERT = SSL_AD_REASON_OFFSET, /* Reasons that are alerts, from here. */
};

/* The other side has looked at our certificate. */
static bool alert_refuses(int why)
{
	switch (why - ALERT) {
	case SSL_AD_BAD_CERTIFICATE:
	case SSL_AD_UNSUPPORTED_CERTIFICATE:
	case SSL_AD_CERTIFICATE_REVOKED:
	case SSL_AD_CERTIFICATE_EXPIRED:
	case SSL_AD_CERTIFICATE_UNKNOWN:
	case SSL_AD_UNKNOWN_CA:
	case SSL_AD_ACCESS_DENIED:
	case TLS13_AD_CERTIFICATE_REQUIRED:
		return true;
	default:
		return false;
	}
}

/* The connection is over: why, from libssl's queue. */
static enum rc fail(struct tls *t, struct detail *why)
{
	unsigned long e = ERR_peek_error();
	int r = ERR_GET_REASON(e);

	if (t->broken == RC_NOMEM || r == ERR_R_MALLOC_FAILURE) {
		t->broken = RC_NOMEM;
	} else if (t->refusal.text[0] != '\0') {
		t->broken = detail_set(why, RC_DENIED, t->refusal.field, "%s",
				       t->refusal.text);
	} else if (r == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
		t->broken = detail_set(why, RC_DENIED, "certificate",
				       "it showed no certificate");
	} else if (alert_refuses(r)) {
		t->broken =
			detail_set(why, RC_DENIED, "certificate",
				   "the other side refuses our certificate: %s",
				   ERR_reason_error_string(e));
	} else {
		t->broken = detail_set(why, RC_INVALID, NULL, "TLS: %s",
				       e != 0 ? ERR_reason_error_string(e)
					      : "the connection broke");
	}
	ERR_clear_error();
	return t->broken;
}

/* RC_OK also while it waits for the other side. */
static enum rc handshake(struct tls *t, struct detail *why)
{
	int e;

	ERR_clear_error();
	e = SSL_do_handshake(t->ssl);
	if (e == 1) {
		t->ready = true;
		return RC_OK;
	}
	e = SSL_get_error(t->ssl, e);
	if (e == SSL_ERROR_WANT_READ)
		return RC_OK;
	return fail(t, why);
}

enum rc tls_new(struct tls_context *c, bool server, struct tls **out)
{
	struct tls *t = calloc(1, sizeof(*t));
	BIO *bio;
	enum rc rc;

	CHECK_OBJ(c, TLS_CONTEXT_MAGIC);
	if (t == NULL)
		return RC_NOMEM;
	t->magic = TLS_MAGIC;
	ERR_clear_error();
	t->ssl = SSL_new(c->ssl);
	bio = t->ssl != NULL ? bio_new(t) : NULL;
	if (bio == NULL || SSL_set_app_data(t->ssl, t) != 1) {
		BIO_free(bio);
		tls_free(t);
		ERR_clear_error();
		return RC_NOMEM;
	}
	SSL_set_bio(t->ssl, bio, bio); /* One reference for both. */
	if (server) {
		SSL_set_accept_state(t->ssl);
	} else {
		SSL_set_connect_state(t->ssl);
		rc = handshake(t, NULL);
		if (rc != RC_OK) {
			tls_free(t);
			return RC_NOMEM; /* Nobody else had a say yet. */
		}
	}
	*out = t;
	return RC_OK;
}

void tls_free(struct tls *t)
{
	if (t == NULL)
		return;
	CHECK_OBJ(t, TLS_MAGIC);
	SSL_free(t->ssl);
	buffer_release(&t->out, false);
	buffer_release(&t->plain, true);
	t->magic = 0;
	free(t);
}

void tls_keep(struct tls *t)
{
	CHECK_OBJ(t, TLS_MAGIC);
	(void)SSL_clear_mode(t->ssl, SSL_MODE_RELEASE_BUFFERS);
}

/* SSL_get_error() wants an empty queue. To clear one that is empty walks all of
 * its places, with each record. */
static void errors_clear(void)
{
	if (ERR_peek_error() != 0)
		ERR_clear_error();
}

/* Everything that is whole, into `plain`. */
static enum rc open_records(struct tls *t, struct detail *why)
{
	size_t n;
	int e;

	while (!t->ended) {
		if (!buffer_reserve(&t->plain, RECORD_BYTES_MAX)) {
			t->broken = RC_NOMEM;
			return RC_NOMEM;
		}
		errors_clear();
		e = SSL_read_ex(t->ssl, t->plain.p + t->plain.n,
				t->plain.cap - t->plain.n, &n);
		if (e == 1) {
			t->plain.n += n;
			/* Spares the call that would only say so. */
			if (t->in_n == 0 && !SSL_has_pending(t->ssl))
				return RC_OK;
			continue;
		}
		e = SSL_get_error(t->ssl, e);
		if (e == SSL_ERROR_WANT_READ)
			return RC_OK;
		if (e != SSL_ERROR_ZERO_RETURN)
			return fail(t, why);
		t->ended = true;
	}
	return RC_OK;
}

enum rc tls_input(struct tls *t, const void *p, size_t n, struct detail *why)
{
	enum rc rc = RC_OK;

	CHECK_OBJ(t, TLS_MAGIC);
	if (t->broken != RC_OK)
		return t->broken;
	if (t->ended)
		return RC_OK;
	t->in = p;
	t->in_n = n;
	if (!t->ready)
		rc = handshake(t, why);
	if (rc == RC_OK && t->ready)
		rc = open_records(t, why);
	t->in = NULL;
	t->in_n = 0;
	return rc;
}

void tls_output(struct tls *t, const uint8_t **p, size_t *n)
{
	CHECK_OBJ(t, TLS_MAGIC);
	*n = buffer_left(&t->out);
	*p = *n > 0 ? t->out.p + t->out.at : NULL;
}

void tls_sent(struct tls *t, size_t n)
{
	CHECK_OBJ(t, TLS_MAGIC);
	buffer_take(&t->out, n);
}

bool tls_ready(const struct tls *t)
{
	CHECK_OBJ(t, TLS_MAGIC);
	return t->ready;
}

const char *tls_uri(const struct tls *t)
{
	PRE(tls_ready(t));
	return t->uri;
}

uint64_t tls_peer_expires_ms(const struct tls *t)
{
	PRE(tls_ready(t));
	return t->expires_ms;
}

void tls_plain(const struct tls *t, const uint8_t **p, size_t *n)
{
	CHECK_OBJ(t, TLS_MAGIC);
	*n = buffer_left(&t->plain);
	*p = *n > 0 ? t->plain.p + t->plain.at : NULL;
}

void tls_took(struct tls *t, size_t n)
{
	CHECK_OBJ(t, TLS_MAGIC);
	buffer_take(&t->plain, n);
}

size_t tls_read(struct tls *t, void *p, size_t n)
{
	const uint8_t *from;
	size_t left;

	tls_plain(t, &from, &left);
	if (left < n)
		n = left;
	if (n == 0)
		return 0;
	memcpy(p, from, n);
	tls_took(t, n);
	return n;
}

bool tls_ended(const struct tls *t)
{
	CHECK_OBJ(t, TLS_MAGIC);
	return t->ended;
}

/* A key seals so much and no more. */
static bool rekey(struct tls *t, size_t n)
{
	t->records += 1 + n / RECORD_BYTES_MAX;
	if (t->records < REKEY_RECORDS)
		return true;
	t->records = 0;
	return SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED) == 1;
}

enum rc tls_write(struct tls *t, const void *p, size_t n)
{
	size_t done;

	PRE(tls_ready(t));
	if (t->broken != RC_OK)
		return t->broken;
	if (n == 0)
		return RC_OK;
	errors_clear();
	/* Nothing can be in the way: the BIO takes all there is. */
	if (!rekey(t, n) || SSL_write_ex(t->ssl, p, n, &done) != 1) {
		ERR_clear_error();
		t->broken = RC_NOMEM;
		return RC_NOMEM;
	}
	CHECK(done == n);
	return RC_OK;
}

void tls_shutdown(struct tls *t)
{
	CHECK_OBJ(t, TLS_MAGIC);
	if (!t->ready || t->broken != RC_OK)
		return;
	ERR_clear_error();
	(void)SSL_shutdown(t->ssl);
	ERR_clear_error();
}
