#include "node/ca.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include "tests/lib/runner.h"

#define CLUSTER "00112233445566778899aabbccddeeff"

static struct detail why;

/* OpenSSL's allocations, from the first one on. The one that brings the count
 * to zero fails. */
static long allocations_left = -1;

static bool refused(void)
{
	return allocations_left > 0 && --allocations_left == 0;
}

static void *counted_malloc(size_t n, const char *place, int line)
{
	(void)place;
	(void)line;
	return n == 0 || refused() ? NULL : malloc(n);
}

static void *counted_realloc(void *p, size_t n, const char *place, int line)
{
	(void)place;
	(void)line;
	if (n == 0) {
		free(p);
		return NULL;
	}
	return refused() ? NULL : realloc(p, n);
}

static void counted_free(void *p, const char *place, int line)
{
	(void)place;
	(void)line;
	free(p);
}

__attribute__((constructor)) static void count_allocations(void)
{
	(void)CRYPTO_set_mem_functions(counted_malloc, counted_realloc,
				       counted_free);
}

/* A path of this test; a few at a time. */
static const char *file(const char *name)
{
	static char paths[6][512];
	static unsigned next;
	char *p = paths[next++ % 6];

	snprintf(p, sizeof(paths[0]), "%s/%s", runner_dir(), name);
	return p;
}

static X509 *cert_read(const char *name)
{
	FILE *f = fopen(file(name), "r");
	X509 *x;

	EXPECT_NOT_NULL(f);
	x = PEM_read_X509(f, NULL, NULL, NULL);
	fclose(f);
	EXPECT_NOT_NULL(x);
	return x;
}

static EVP_PKEY *key_read(const char *name)
{
	FILE *f = fopen(file(name), "r");
	EVP_PKEY *k;

	EXPECT_NOT_NULL(f);
	k = PEM_read_PrivateKey(f, NULL, NULL, NULL);
	fclose(f);
	EXPECT_NOT_NULL(k);
	return k;
}

/* X509_V_OK, or why not, at `at`. */
static int verify(X509 *root, X509 *leaf, int purpose, time_t at)
{
	X509_STORE *store = X509_STORE_new();
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	int e;

	X509_STORE_add_cert(store, root);
	X509_STORE_CTX_init(ctx, store, leaf, NULL);
	X509_STORE_CTX_set_purpose(ctx, purpose);
	X509_STORE_CTX_set_flags(ctx, X509_V_FLAG_X509_STRICT);
	X509_STORE_CTX_set_time(ctx, 0, at);
	X509_VERIFY_PARAM_set_auth_level(X509_STORE_CTX_get0_param(ctx), 2);
	(void)X509_verify_cert(ctx);
	e = X509_STORE_CTX_get_error(ctx);
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(store);
	return e;
}

static void expect_uri(X509 *x, const char *want)
{
	GENERAL_NAMES *names =
		X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
	const GENERAL_NAME *n;

	EXPECT_NOT_NULL(names);
	EXPECT_INT(sk_GENERAL_NAME_num(names), 1);
	n = sk_GENERAL_NAME_value(names, 0);
	EXPECT_INT(n->type, GEN_URI);
	EXPECT_STR((const char *)ASN1_STRING_get0_data(
			   n->d.uniformResourceIdentifier),
		   want);
	GENERAL_NAMES_free(names);
}

static void expect_mode(const char *name, mode_t mode)
{
	struct stat st;

	EXPECT_INT(stat(file(name), &st), 0);
	EXPECT_UINT(st.st_mode & 0777, mode);
}

static struct ca *made(void)
{
	struct ca *ca = NULL;

	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(ca_new(CLUSTER, &ca, &why), RC_OK);
	EXPECT_RC(ca_save(ca, file("ca.pem"), file("ca.key"), &why), RC_OK);
	return ca;
}

static enum rc issue(const struct ca *ca, enum ca_use use, const char *path)
{
	why = (struct detail){ { 0 }, { 0 } };
	return ca_issue(ca, use, path, CA_LEAF_DAYS, file("leaf.pem"),
			file("leaf.key"), &why);
}

TEST(an_authority)
{
	struct ca *ca = made();
	X509 *x = cert_read("ca.pem");
	EVP_PKEY *k = key_read("ca.key");
	time_t now = time(NULL);

	EXPECT_STR(ca_cluster(ca), CLUSTER);
	expect_uri(x, "spiffe://" CLUSTER);
	expect_mode("ca.key", 0600);
	EXPECT_INT(X509_check_ca(x), 1);
	EXPECT_INT(X509_get_pathlen(x), 0);
	EXPECT_UINT(X509_get_key_usage(x), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
	EXPECT_INT(X509_check_private_key(x, k), 1);
	EXPECT_INT(EVP_PKEY_get_bits(k), 256);
	EXPECT_INT(verify(x, x, X509_PURPOSE_ANY, now), X509_V_OK);
	EXPECT_INT(verify(x, x, X509_PURPOSE_ANY, now - 7200),
		   X509_V_ERR_CERT_NOT_YET_VALID);
	EXPECT_INT(verify(x, x, X509_PURPOSE_ANY, now + 3649 * 86400l),
		   X509_V_OK);
	EXPECT_INT(verify(x, x, X509_PURPOSE_ANY, now + 3651 * 86400l),
		   X509_V_ERR_CERT_HAS_EXPIRED);
	EVP_PKEY_free(k);
	X509_free(x);
	ca_free(ca);
}

TEST(a_node)
{
	struct ca *ca = made();
	X509 *root = cert_read("ca.pem");
	time_t now = time(NULL);
	EVP_PKEY *k;
	X509 *x;

	EXPECT_RC(issue(ca, CA_NODE, "node/2"), RC_OK);
	x = cert_read("leaf.pem");
	k = key_read("leaf.key");
	expect_uri(x, "spiffe://" CLUSTER "/node/2");
	expect_mode("leaf.key", 0600);
	EXPECT_INT(X509_check_ca(x), 0);
	EXPECT_UINT(X509_get_key_usage(x), KU_DIGITAL_SIGNATURE);
	EXPECT_INT(X509_check_private_key(x, k), 1);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_SERVER, now), X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now), X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now - 3000),
		   X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now - 7200),
		   X509_V_ERR_CERT_NOT_YET_VALID);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now + 364 * 86400l),
		   X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now + 366 * 86400l),
		   X509_V_ERR_CERT_HAS_EXPIRED);
	EVP_PKEY_free(k);
	X509_free(x);
	X509_free(root);
	ca_free(ca);
}

TEST(a_client_serves_nobody)
{
	struct ca *ca = made();
	X509 *root = cert_read("ca.pem");
	time_t now = time(NULL);
	X509 *x;

	EXPECT_RC(issue(ca, CA_CLIENT, "tenant/default/env/dev/client/admin"),
		  RC_OK);
	x = cert_read("leaf.pem");
	expect_uri(x,
		   "spiffe://" CLUSTER "/tenant/default/env/dev/client/admin");
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now), X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_SERVER, now),
		   X509_V_ERR_INVALID_PURPOSE);
	X509_free(x);
	X509_free(root);
	ca_free(ca);
}

TEST(another_authority_of_the_same_name_vouches_for_nothing)
{
	struct ca *ca = made();
	struct ca *other = NULL;
	X509 *root = cert_read("ca.pem");
	X509 *x;

	EXPECT_RC(ca_new(CLUSTER, &other, NULL), RC_OK);
	EXPECT_RC(issue(other, CA_NODE, "node/1"), RC_OK);
	x = cert_read("leaf.pem");
	EXPECT_TRUE(verify(root, x, X509_PURPOSE_SSL_CLIENT, time(NULL)) !=
		    X509_V_OK);
	X509_free(x);
	X509_free(root);
	ca_free(other);
	ca_free(ca);
}

TEST(serials_and_keys_differ)
{
	struct ca *ca = made();
	X509 *a;
	X509 *b;

	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	a = cert_read("leaf.pem");
	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	b = cert_read("leaf.pem");
	EXPECT_TRUE(ASN1_INTEGER_cmp(X509_get0_serialNumber(a),
				     X509_get0_serialNumber(b)) != 0);
	EXPECT_TRUE(ASN1_STRING_length(X509_get0_serialNumber(a)) <= 20);
	EXPECT_TRUE(ASN1_STRING_length(X509_get0_serialNumber(a)) > 8);
	EXPECT_INT(EVP_PKEY_eq(X509_get0_pubkey(a), X509_get0_pubkey(b)), 0);
	X509_free(a);
	X509_free(b);
	ca_free(ca);
}

TEST(days)
{
	struct ca *ca = made();
	X509 *root = cert_read("ca.pem");
	time_t now = time(NULL);
	X509 *x;

	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", 0, file("leaf.pem"),
			   file("leaf.key"), &why),
		  RC_INVALID);
	EXPECT_HAS(why.text, "1 to 3650 days");
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", CA_DAYS + 1, file("leaf.pem"),
			   file("leaf.key"), NULL),
		  RC_INVALID);
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", 1, file("leaf.pem"),
			   file("leaf.key"), &why),
		  RC_OK);
	x = cert_read("leaf.pem");
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now + 80000),
		   X509_V_OK);
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_CLIENT, now + 90000),
		   X509_V_ERR_CERT_HAS_EXPIRED);
	X509_free(x);
	/* Never longer than the authority: made in the same second or later. */
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", CA_DAYS, file("leaf.pem"),
			   file("leaf.key"), &why),
		  RC_OK);
	x = cert_read("leaf.pem");
	EXPECT_TRUE(ASN1_TIME_compare(X509_get0_notAfter(x),
				      X509_get0_notAfter(root)) <= 0);
	X509_free(x);
	X509_free(root);
	ca_free(ca);
}

TEST(names)
{
	static const char *const bad[] = {
		"",        "/",      "node/",       "/node",  "node//1",
		"node/.",  "./node", "node/..",     "n o",    "node,1",
		"node\n1", "node:1", "caf\xc3\xa9", "a/../b", "node%31",
	};
	static const char *const bad_clusters[] = {
		"",
		"00112233445566778899aabbccddeef",
		"00112233445566778899aabbccddeeff0",
		"00112233445566778899AABBCCDDEEFF",
		"00112233445566778899aabbccddeef/",
	};
	struct ca *ca = made();
	struct ca *none = NULL;
	char path[400];
	X509 *x;
	size_t i;

	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		runner_context("path %s", bad[i]);
		EXPECT_RC(issue(ca, CA_NODE, bad[i]), RC_INVALID);
		EXPECT_HAS(why.text, "SPIFFE");
	}
	for (i = 0; i < sizeof(bad_clusters) / sizeof(bad_clusters[0]); i++) {
		runner_context("cluster %s", bad_clusters[i]);
		EXPECT_RC(ca_new(bad_clusters[i], &none, &why), RC_INVALID);
	}
	runner_context("%s", "");
	EXPECT_RC(issue(ca, CA_CLIENT, "a/...b/_c-D.9"), RC_OK);
	/* Longer than a subject may be, and as long as a URI may be. */
	memset(path, 'p', sizeof(path));
	path[CA_URI_BYTES - 1 - strlen("spiffe://" CLUSTER "/")] = '\0';
	EXPECT_RC(issue(ca, CA_CLIENT, path), RC_OK);
	x = cert_read("leaf.pem");
	X509_free(x);
	path[strlen(path)] = 'p';
	path[CA_URI_BYTES - strlen("spiffe://" CLUSTER "/")] = '\0';
	EXPECT_RC(issue(ca, CA_CLIENT, path), RC_INVALID);
	ca_free(ca);
}

TEST(what_was_saved_signs_again)
{
	struct ca *ca = made();
	X509 *root = cert_read("ca.pem");
	struct ca *again = NULL;
	X509 *x;

	ca_free(ca);
	EXPECT_RC(ca_load(file("ca.pem"), file("ca.key"), &again, &why), RC_OK);
	EXPECT_STR(ca_cluster(again), CLUSTER);
	EXPECT_RC(issue(again, CA_NODE, "node/5"), RC_OK);
	x = cert_read("leaf.pem");
	EXPECT_INT(verify(root, x, X509_PURPOSE_SSL_SERVER, time(NULL)),
		   X509_V_OK);
	X509_free(x);
	X509_free(root);
	ca_free(again);
}

static void put(const char *name, const char *text)
{
	FILE *f = fopen(file(name), "w");

	EXPECT_NOT_NULL(f);
	EXPECT_TRUE(fputs(text, f) >= 0);
	EXPECT_INT(fclose(f), 0);
}

static void expect_load(const char *cert, const char *key, enum rc rc,
			const char *part)
{
	struct ca *ca = NULL;

	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(ca_load(file(cert), file(key), &ca, &why), rc);
	EXPECT_HAS(why.text, part);
	EXPECT_NULL(ca);
}

TEST(what_is_no_authority)
{
	struct ca *ca = made();
	struct ca *other = NULL;

	expect_load("absent", "ca.key", RC_NOT_FOUND, "absent");
	expect_load("ca.pem", "absent", RC_NOT_FOUND, "absent");
	put("text", "no PEM\n");
	expect_load("text", "ca.key", RC_INVALID, "no certificate");
	expect_load("ca.pem", "text", RC_INVALID, "no private key");
	expect_load("ca.key", "ca.key", RC_INVALID, "no certificate");
	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	expect_load("leaf.pem", "leaf.key", RC_INVALID, "authority");
	EXPECT_RC(ca_new(CLUSTER, &other, NULL), RC_OK);
	EXPECT_RC(ca_save(other, file("other.pem"), file("other.key"), NULL),
		  RC_OK);
	expect_load("ca.pem", "other.key", RC_INVALID, "not that of");
	EXPECT_UINT(ERR_peek_error(), 0);
	ca_free(other);
	ca_free(ca);
}

TEST(an_encrypted_key_asks_nobody)
{
	struct ca *ca = made();
	EVP_PKEY *k = key_read("ca.key");
	FILE *f = fopen(file("locked.key"), "w");

	EXPECT_NOT_NULL(f);
	EXPECT_INT(PEM_write_PKCS8PrivateKey(f, k, EVP_aes_128_cbc(), "secret",
					     6, NULL, NULL),
		   1);
	fclose(f);
	expect_load("ca.pem", "locked.key", RC_INVALID, "no private key");
	EVP_PKEY_free(k);
	ca_free(ca);
}

TEST(files_that_cannot_be_written)
{
	struct ca *ca = made();
	char path[6000];

	why = (struct detail){ { 0 }, { 0 } };
	EXPECT_RC(ca_save(ca, file("no/ca.pem"), NULL, &why), RC_NOT_FOUND);
	EXPECT_HAS(why.text, "no/ca.pem.new");
	EXPECT_INT(mkdir(file("dir"), 0700), 0);
	EXPECT_RC(ca_save(ca, file("dir"), NULL, &why), RC_IO);
	EXPECT_INT(access(file("dir.new"), F_OK), -1);
	EXPECT_INT(mkdir(file("held.new"), 0700), 0);
	EXPECT_RC(ca_save(ca, file("held"), NULL, &why), RC_IO);
	memset(path, 'p', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	EXPECT_RC(ca_save(ca, path, NULL, &why), RC_IO);
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", 1, file("leaf.pem"),
			   file("no/leaf.key"), &why),
		  RC_NOT_FOUND);
	EXPECT_INT(access(file("leaf.pem"), F_OK), -1);
	EXPECT_RC(ca_issue(ca, CA_NODE, "node/1", 1, file("no/leaf.pem"),
			   file("leaf.key"), &why),
		  RC_NOT_FOUND);
	ca_free(ca);
}

TEST(a_link_in_the_way_is_not_written_through)
{
	struct ca *ca = made();

	put("other", "other\n");
	EXPECT_INT(symlink(file("other"), file("new.pem.new")), 0);
	EXPECT_RC(ca_save(ca, file("new.pem"), NULL, &why), RC_OK);
	EXPECT_INT(access(file("new.pem"), R_OK), 0);
	expect_load("other", "ca.key", RC_INVALID, "no certificate");
	ca_free(ca);
}

TEST(a_file_is_replaced_whole)
{
	struct ca *ca = made();
	char before[8192];
	char after[8192];
	FILE *f;
	size_t n;

	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	EXPECT_INT(chmod(file("leaf.key"), 0644), 0);
	f = fopen(file("leaf.key"), "r");
	n = fread(before, 1, sizeof(before), f);
	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	/* Whoever has the old one open still reads the old one. */
	rewind(f);
	EXPECT_UINT(fread(after, 1, sizeof(after), f), n);
	EXPECT_MEM(after, before, n);
	fclose(f);
	expect_mode("leaf.key", 0600);
	EXPECT_INT(access(file("leaf.key.new"), F_OK), -1);
	ca_free(ca);
}

/* Whatever runs out of memory is told, leaves nothing, and can be done again.
 */
TEST(memory_runs_out)
{
	struct ca *ca = made();
	struct ca *other;
	unsigned failed = 0;
	bool fired;
	long n;
	enum rc rc;

	for (n = 1;; n++) {
		other = NULL;
		allocations_left = n;
		rc = ca_new(CLUSTER, &other, &why);
		if (rc == RC_OK)
			rc = issue(other, CA_NODE, "node/1");
		ca_free(other);
		fired = allocations_left == 0;
		allocations_left = -1;
		ERR_clear_error();
		if (!fired)
			break;
		failed += rc != RC_OK;
	}
	EXPECT_RC(rc, RC_OK);
	EXPECT_TRUE(failed > 100);
	EXPECT_RC(issue(ca, CA_NODE, "node/1"), RC_OK);
	ca_free(ca);
}
