/*
 * test_ca - throw-away certificate authorities, and certificates of every kind
 * of wrong.
 *
 *	struct test_ca *ca = test_ca_new(dir, "ca");
 *	test_cert(ca, dir, "n1", &(struct test_leaf){ .uri = "spiffe://..." });
 *
 * writes DIR/ca.crt, and DIR/n1.crt with DIR/n1.key (mode 0600), as PEM. Keys
 * are P-256 unless asked otherwise. Header only.
 */
#ifndef TESTS_LIB_TEST_CA_H
#define TESTS_LIB_TEST_CA_H

#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>
#include <time.h>

#include "tests/lib/runner.h"

#define TEST_CLUSTER "00112233445566778899aabbccddeeff"

struct test_ca {
	EVP_PKEY *key;
	X509 *cert;
};

/* Zeros: valid from an hour ago for a day, for clients and servers. */
struct test_leaf {
	const char *uri;  /* NULL: none. */
	const char *uri2; /* A second one. */
	const char *dns;
	const char *eku; /* NULL: both; "": no extension. */
	long from_s;     /* Relative to now. */
	long to_s;
	int rsa_bits; /* 0: P-256. */
	bool self_signed;
	bool is_ca;
	bool san_malformed; /* The URI has a NUL in it. */
	EVP_PKEY *key;      /* Its own, else a new one. */
	bool mode_open;     /* The key file is open to the group. */
};

static inline EVP_PKEY *test_key(int rsa_bits)
{
	EVP_PKEY *key = rsa_bits > 0 ? EVP_RSA_gen((size_t)rsa_bits)
				     : EVP_EC_gen("P-256");

	EXPECT_NOT_NULL(key);
	return key;
}

static inline void test_ext(X509 *x, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509_EXTENSION *e;

	X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
	e = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	EXPECT_NOT_NULL(e);
	EXPECT_INT(X509_add_ext(x, e, -1), 1);
	X509_EXTENSION_free(e);
}

static inline void test_san_add(GENERAL_NAMES *names, int type,
				const char *text, size_t n)
{
	GENERAL_NAME *g = GENERAL_NAME_new();
	ASN1_IA5STRING *s = ASN1_IA5STRING_new();

	EXPECT_INT(ASN1_STRING_set(s, text, (int)n), 1);
	GENERAL_NAME_set0_value(g, type, s);
	sk_GENERAL_NAME_push(names, g);
}

static inline void test_san(X509 *x, const struct test_leaf *l)
{
	static const char nul[] = "spiffe://" TEST_CLUSTER "/node/1\0evil";
	GENERAL_NAMES *names;

	if (l->uri == NULL && l->uri2 == NULL && l->dns == NULL &&
	    !l->san_malformed)
		return;
	names = GENERAL_NAMES_new();
	if (l->dns != NULL)
		test_san_add(names, GEN_DNS, l->dns, strlen(l->dns));
	if (l->uri != NULL)
		test_san_add(names, GEN_URI, l->uri, strlen(l->uri));
	if (l->uri2 != NULL)
		test_san_add(names, GEN_URI, l->uri2, strlen(l->uri2));
	if (l->san_malformed)
		test_san_add(names, GEN_URI, nul, sizeof(nul) - 1);
	EXPECT_INT(X509_add1_ext_i2d(x, NID_subject_alt_name, names, 0, 0), 1);
	GENERAL_NAMES_free(names);
}

static inline X509 *test_x509(const char *cn, EVP_PKEY *key, long from_s,
			      long to_s)
{
	X509 *x = X509_new();
	time_t now = time(NULL);
	static long serial;
	X509_NAME *name;

	EXPECT_NOT_NULL(x);
	X509_set_version(x, X509_VERSION_3);
	ASN1_INTEGER_set(X509_get_serialNumber(x), ++serial);
	X509_time_adj_ex(X509_getm_notBefore(x), 0, from_s, &now);
	X509_time_adj_ex(X509_getm_notAfter(x), 0, to_s, &now);
	name = X509_get_subject_name(x);
	X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
				   (const unsigned char *)cn, -1, -1, 0);
	EXPECT_INT(X509_set_pubkey(x, key), 1);
	return x;
}

static inline void test_pem(const char *dir, const char *name, const char *end,
			    mode_t mode, X509 *x, EVP_PKEY *key)
{
	char path[512];
	FILE *f;
	int fd;

	snprintf(path, sizeof(path), "%s/%s.%s", dir, name, end);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	EXPECT_TRUE(fd >= 0);
	EXPECT_INT(fchmod(fd, mode), 0);
	f = fdopen(fd, "w");
	EXPECT_NOT_NULL(f);
	if (x != NULL)
		EXPECT_INT(PEM_write_X509(f, x), 1);
	if (key != NULL)
		EXPECT_INT(
			PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL),
			1);
	EXPECT_INT(fclose(f), 0);
}

static inline struct test_ca *test_ca_new(const char *dir, const char *name)
{
	struct test_ca *ca = calloc(1, sizeof(*ca));

	EXPECT_NOT_NULL(ca);
	ca->key = test_key(0);
	ca->cert = test_x509(name, ca->key, -3600, 86400);
	X509_set_issuer_name(ca->cert, X509_get_subject_name(ca->cert));
	test_ext(ca->cert, ca->cert, NID_basic_constraints, "critical,CA:TRUE");
	test_ext(ca->cert, ca->cert, NID_key_usage,
		 "critical,keyCertSign,cRLSign");
	test_ext(ca->cert, ca->cert, NID_subject_key_identifier, "hash");
	EXPECT_TRUE(X509_sign(ca->cert, ca->key, EVP_sha256()) > 0);
	test_pem(dir, name, "crt", 0644, ca->cert, NULL);
	return ca;
}

static inline void test_ca_free(struct test_ca *ca)
{
	EVP_PKEY_free(ca->key);
	X509_free(ca->cert);
	free(ca);
}

/* Writes DIR/NAME.crt and DIR/NAME.key. */
static inline void test_cert(struct test_ca *ca, const char *dir,
			     const char *name, const struct test_leaf *l)
{
	EVP_PKEY *key = l->key != NULL ? l->key : test_key(l->rsa_bits);
	X509 *x = test_x509(name, key, l->from_s != 0 ? l->from_s : -3600,
			    l->to_s != 0 ? l->to_s : 86400);
	X509 *issuer = l->self_signed ? x : ca->cert;

	X509_set_issuer_name(x, X509_get_subject_name(issuer));
	test_ext(x, issuer, NID_basic_constraints,
		 l->is_ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
	test_ext(x, issuer, NID_key_usage,
		 l->is_ca ? "critical,digitalSignature,keyCertSign"
			  : "critical,digitalSignature");
	if (l->eku == NULL)
		test_ext(x, issuer, NID_ext_key_usage, "clientAuth,serverAuth");
	else if (l->eku[0] != '\0')
		test_ext(x, issuer, NID_ext_key_usage, l->eku);
	test_san(x, l);
	EXPECT_TRUE(X509_sign(x, l->self_signed ? key : ca->key, EVP_sha256()) >
		    0);
	test_pem(dir, name, "crt", 0644, x, NULL);
	test_pem(dir, name, "key", l->mode_open ? 0640 : 0600, NULL, key);
	X509_free(x);
	if (l->key == NULL)
		EVP_PKEY_free(key);
}

#endif
