/*
 * negatives - certificates that nobody may take, and a side of TLS that shows
 * them: tls_context_new() would refuse to. Header only.
 */
#ifndef TESTS_LIB_NEGATIVES_H
#define TESTS_LIB_NEGATIVES_H

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>

#include "tests/lib/test_ca.h"

#define NODE1    "spiffe://" TEST_CLUSTER "/node/1"
#define CLIENT_C "spiffe://" TEST_CLUSTER "/tenant/default/env/dev/client/c"

/* A side that checks nothing and shows what it is told to. */
struct raw {
	SSL_CTX *ctx;
	SSL *ssl;
	BIO *in;
	BIO *out;
};

static inline void raw_new(struct raw *r, const char *dir, const char *name,
			   bool server)
{
	char crt[400];
	char key[400];

	r->ctx = SSL_CTX_new(TLS_method());
	SSL_CTX_set_security_level(r->ctx, 0);
	SSL_CTX_set_verify(r->ctx, SSL_VERIFY_NONE, NULL);
	if (name[0] != '\0') {
		snprintf(crt, sizeof(crt), "%s/%s.crt", dir, name);
		snprintf(key, sizeof(key), "%s/%s.key", dir, name);
		EXPECT_INT(SSL_CTX_use_certificate_chain_file(r->ctx, crt), 1);
		EXPECT_INT(SSL_CTX_use_PrivateKey_file(r->ctx, key,
						       SSL_FILETYPE_PEM),
			   1);
	}
	r->ssl = SSL_new(r->ctx);
	r->in = BIO_new(BIO_s_mem());
	r->out = BIO_new(BIO_s_mem());
	SSL_set_bio(r->ssl, r->in, r->out);
	if (server)
		SSL_set_accept_state(r->ssl);
	else
		SSL_set_connect_state(r->ssl);
}

static inline void raw_free(struct raw *r)
{
	SSL_free(r->ssl);
	SSL_CTX_free(r->ctx);
	ERR_clear_error();
}

struct negative {
	const char *what;
	const char *ca; /* NULL: ours. */
	const char *says;
	struct test_leaf leaf;
};

static const struct negative negatives[] = {
	{ "self-signed",
	  NULL,
	  "self-signed",
	  { .uri = NODE1, .self_signed = true } },
	{ "another CA",
	  "other",
	  "unable to get local issuer",
	  { .uri = NODE1 } },
	{ "another CA of the same name",
	  "twin",
	  "signature failure",
	  { .uri = NODE1 } },
	{ "expired",
	  NULL,
	  "expired",
	  { .uri = NODE1, .from_s = -7200, .to_s = -60 } },
	{ "not yet valid",
	  NULL,
	  "not yet valid",
	  { .uri = NODE1, .from_s = 600 } },
	{ "no URI", NULL, "no URI", { .dns = "n1.example" } },
	{ "no SAN", NULL, "no URI", { .uri = NULL } },
	{ "two URIs",
	  NULL,
	  "more than one",
	  { .uri = NODE1, .uri2 = CLIENT_C } },
	{ "no SPIFFE id",
	  NULL,
	  "no SPIFFE id",
	  { .uri = "https://" TEST_CLUSTER "/node/1" } },
	{ "the scheme alone", NULL, "no SPIFFE id", { .uri = "spiffe://" } },
	{ "a space",
	  NULL,
	  "no SPIFFE id",
	  { .uri = "spiffe://" TEST_CLUSTER "/node/1 " } },
	{ "a NUL", NULL, "no SPIFFE id", { .san_malformed = true } },
	{ "no EKU", NULL, "no extendedKeyUsage", { .uri = NODE1, .eku = "" } },
	{ "EKU of mail",
	  NULL,
	  "unsuitable certificate purpose",
	  { .uri = NODE1, .eku = "emailProtection" } },
	{ "a weak key",
	  NULL,
	  "key too weak",
	  { .uri = NODE1, .rsa_bits = 1024 } },
	{ "a CA", NULL, "CA's certificate", { .uri = NODE1, .is_ca = true } },
};

/* The authority that a negative asks for: ours, another, or one that only has
 * the name of ours. */
struct negative_cas {
	struct test_ca *ours;
	struct test_ca *other;
	struct test_ca *twin;
};

static inline void negative_cas_new(struct negative_cas *c, const char *dir,
				    struct test_ca *ours)
{
	char sub[400];

	c->ours = ours;
	c->other = test_ca_new(dir, "other");
	snprintf(sub, sizeof(sub), "%s/twin", dir);
	EXPECT_INT(mkdir(sub, 0700), 0);
	c->twin = test_ca_new(sub, "ca");
}

static inline void negative_cas_free(struct negative_cas *c)
{
	test_ca_free(c->other);
	test_ca_free(c->twin);
}

/* Writes DIR/bad.crt and DIR/bad.key. */
static inline void negative_cert(const struct negative *n,
				 struct negative_cas *c, const char *dir)
{
	struct test_ca *by = c->ours;

	if (n->ca != NULL)
		by = strcmp(n->ca, "twin") == 0 ? c->twin : c->other;
	test_cert(by, dir, "bad", &n->leaf);
}

/* One more step of the handshake; true: it said something to `fd`, or heard
 * something from it. */
static inline bool raw_step(struct raw *r, int fd)
{
	uint8_t buf[16384];
	bool any = false;
	ssize_t got;
	int n;

	got = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
	if (got > 0) {
		BIO_write(r->in, buf, (int)got);
		any = true;
	}
	(void)SSL_do_handshake(r->ssl);
	n = BIO_read(r->out, buf, sizeof(buf));
	if (n > 0 && send(fd, buf, (size_t)n, MSG_NOSIGNAL) == n)
		any = true;
	return any;
}

#endif
