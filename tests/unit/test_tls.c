/*
 * One end of TLS, against the other: certificates of every kind of wrong,
 * streams cut anywhere, and what the wire must not offer.
 */
#include "client/tls.h"

#include "tests/lib/fault.h"
#include "tests/lib/negatives.h"
#include "tests/lib/test_ca.h"

#define CLIENT CLIENT_C

static struct test_ca *ca;

static const char *path(const char *name, const char *end)
{
	static char texts[4][400];
	static unsigned next;
	char *text = texts[next++ % 4];

	snprintf(text, 400, "%s/%s.%s", runner_dir(), name, end);
	return text;
}

static struct tls_context *context_of(const char *ca_name, const char *name)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c = NULL;

	if (tls_context_new(path(ca_name, "crt"), path(name, "crt"),
			    path(name, "key"), &c, &why) != RC_OK)
		FAIL("%s: %s: %s", name, why.field, why.text);
	return c;
}

static struct tls_context *context(const char *name)
{
	return context_of("ca", name);
}

/* What `from` has to say reaches `to`, `piece` bytes at a time. */
static enum rc carry(struct tls *from, struct tls *to, size_t piece,
		     struct detail *why)
{
	const uint8_t *p;
	uint8_t *copy;
	size_t n;
	size_t at;
	enum rc rc = RC_OK;

	tls_output(from, &p, &n);
	if (n == 0)
		return RC_OK;
	fault_hold();
	copy = malloc(n);
	fault_release();
	memcpy(copy, p, n);
	tls_sent(from, n);
	for (at = 0; at < n && rc == RC_OK; at += piece)
		rc = tls_input(to, copy + at, n - at < piece ? n - at : piece,
			       why);
	free(copy);
	return rc;
}

struct pair {
	struct tls *client;
	struct tls *server;
	enum rc client_rc;
	enum rc server_rc;
	struct detail client_why;
	struct detail server_why;
};

static void pair_new(struct pair *p, struct tls_context *client,
		     struct tls_context *server)
{
	*p = (struct pair){ 0 };
	EXPECT_RC(tls_new(client, false, &p->client), RC_OK);
	EXPECT_RC(tls_new(server, true, &p->server), RC_OK);
}

static void pair_shake(struct pair *p, size_t piece)
{
	unsigned i;

	for (i = 0; i < 4; i++) {
		if (p->server_rc == RC_OK)
			p->server_rc = carry(p->client, p->server, piece,
					     &p->server_why);
		if (p->client_rc == RC_OK)
			p->client_rc = carry(p->server, p->client, piece,
					     &p->client_why);
	}
}

static void pair_free(struct pair *p)
{
	tls_free(p->client);
	tls_free(p->server);
}

static void begin(void)
{
	const char *dir = runner_dir();

	ca = test_ca_new(dir, "ca");
	test_cert(ca, dir, "node1", &(struct test_leaf){ .uri = NODE1 });
	test_cert(ca, dir, "client",
		  &(struct test_leaf){ .uri = CLIENT, .eku = "clientAuth" });
}

static void end(void)
{
	test_ca_free(ca);
	ca = NULL;
}

TEST(both_know_each_other)
{
	struct tls_context *cc;
	struct tls_context *sc;
	struct pair p;
	char buf[64];

	begin();
	cc = context("client");
	sc = context("node1");
	EXPECT_STR(tls_context_uri(cc), CLIENT);
	EXPECT_STR(tls_context_uri(sc), NODE1);
	EXPECT_TRUE(tls_context_expires_ms(cc) / 1000 >
		    (uint64_t)time(NULL) + 86000);
	EXPECT_TRUE(tls_context_expires_ms(cc) / 1000 <
		    (uint64_t)time(NULL) + 86500);
	pair_new(&p, cc, sc);
	EXPECT_FALSE(tls_ready(p.client));
	pair_shake(&p, 65536);
	EXPECT_RC(p.client_rc, RC_OK);
	EXPECT_RC(p.server_rc, RC_OK);
	EXPECT_TRUE(tls_ready(p.client) && tls_ready(p.server));
	EXPECT_STR(tls_uri(p.server), CLIENT);
	EXPECT_STR(tls_uri(p.client), NODE1);
	EXPECT_UINT(tls_peer_expires_ms(p.server), tls_context_expires_ms(cc));
	EXPECT_UINT(tls_peer_expires_ms(p.client), tls_context_expires_ms(sc));
	EXPECT_UINT(tls_read(p.server, buf, sizeof(buf)), 0);
	EXPECT_RC(tls_write(p.client, "hello", 5), RC_OK);
	EXPECT_RC(tls_write(p.client, "", 0), RC_OK);
	EXPECT_RC(carry(p.client, p.server, 65536, NULL), RC_OK);
	EXPECT_UINT(tls_read(p.server, buf, 2), 2);
	EXPECT_UINT(tls_read(p.server, buf + 2, sizeof(buf)), 3);
	EXPECT_MEM(buf, "hello", 5);
	EXPECT_FALSE(tls_ended(p.server));
	tls_shutdown(p.client);
	EXPECT_RC(carry(p.client, p.server, 65536, NULL), RC_OK);
	EXPECT_TRUE(tls_ended(p.server));
	/* It may still be told things. */
	EXPECT_RC(tls_write(p.server, "bye", 3), RC_OK);
	EXPECT_RC(carry(p.server, p.client, 65536, NULL), RC_OK);
	EXPECT_UINT(tls_read(p.client, buf, sizeof(buf)), 3);
	/* Contexts may go before their connections. */
	tls_context_free(cc);
	tls_context_free(sc);
	EXPECT_RC(tls_write(p.server, "more", 4), RC_OK);
	pair_free(&p);
	tls_context_free(NULL);
	tls_free(NULL);
	end();
}

/* However the bytes are cut, the same comes out. */
TEST(a_stream_in_pieces)
{
	static const size_t pieces[] = { 1, 2, 7, 1000, 16384, 70000 };
	struct tls_context *cc;
	struct tls_context *sc;
	uint8_t *sent = malloc(300000);
	uint8_t *got = malloc(300000);
	size_t i;
	size_t k;

	begin();
	cc = context("client");
	sc = context("node1");
	for (i = 0; i < 300000; i++)
		sent[i] = (uint8_t)(i * 31 + i / 256);
	for (k = 0; k < sizeof(pieces) / sizeof(pieces[0]); k++) {
		struct pair p;
		size_t at = 0;
		size_t n;
		const uint8_t *view;

		runner_context("pieces of %zu", pieces[k]);
		pair_new(&p, cc, sc);
		pair_shake(&p, pieces[k]);
		EXPECT_TRUE(tls_ready(p.server));
		if (k % 2 == 1) {
			tls_keep(p.client);
			tls_keep(p.server);
		}
		for (n = 1; at < 300000; n = n * 3 + 1) {
			if (n > 300000 - at)
				n = 300000 - at;
			EXPECT_RC(tls_write(p.client, sent + at, n), RC_OK);
			at += n;
		}
		EXPECT_RC(carry(p.client, p.server, pieces[k], NULL), RC_OK);
		tls_plain(p.server, &view, &n);
		EXPECT_UINT(n, 300000);
		EXPECT_MEM(view, sent, 300000);
		tls_took(p.server, 17);
		tls_plain(p.server, &view, &n);
		EXPECT_UINT(n, 300000 - 17);
		at = 17;
		while ((n = tls_read(p.server, got + at, 4093)) > 0)
			at += n;
		EXPECT_UINT(at, 300000);
		EXPECT_MEM(got + 17, sent + 17, 300000 - 17);
		pair_free(&p);
	}
	runner_context("%s", "");
	free(sent);
	free(got);
	tls_context_free(cc);
	tls_context_free(sc);
	end();
}

/* ---- who is refused ---- */

/* Until nobody has anything to say; what our side made of it. */
static enum rc raw_shake(struct raw *r, struct tls *t, struct detail *why)
{
	enum rc rc = RC_OK;
	unsigned i;

	for (i = 0; i < 6; i++) {
		const uint8_t *p;
		uint8_t buf[65536];
		size_t n;
		int got;

		(void)SSL_do_handshake(r->ssl);
		got = BIO_read(r->out, buf, sizeof(buf));
		if (got > 0 && rc == RC_OK)
			rc = tls_input(t, buf, (size_t)got, why);
		tls_output(t, &p, &n);
		if (n > 0)
			BIO_write(r->in, p, (int)n);
		tls_sent(t, n);
	}
	return rc;
}

static void expect_refused(const struct negative *n, const char *name,
			   bool server)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c = context(server ? "node1" : "client");
	struct tls *t;
	struct raw r;

	runner_context("%s, as %s", n->what, server ? "client" : "server");
	EXPECT_RC(tls_new(c, server, &t), RC_OK);
	raw_new(&r, runner_dir(), name, !server);
	EXPECT_RC(raw_shake(&r, t, &why), RC_DENIED);
	EXPECT_STR(why.field, "certificate");
	EXPECT_HAS(why.text, n->says);
	EXPECT_FALSE(tls_ready(t));
	/* It stays so, and nothing was read. */
	EXPECT_RC(tls_input(t, "x", 1, NULL), RC_DENIED);
	EXPECT_UINT(tls_read(t, &r, 1), 0);
	raw_free(&r);
	tls_free(t);
	tls_context_free(c);
	runner_context("%s", "");
}

TEST(certificates_that_are_refused)
{
	struct negative_cas cas;
	const char *dir = runner_dir();
	size_t i;
	struct negative side;

	begin();
	negative_cas_new(&cas, dir, ca);
	for (i = 0; i < sizeof(negatives) / sizeof(negatives[0]); i++) {
		const struct negative *n = &negatives[i];

		negative_cert(n, &cas, dir);
		expect_refused(n, "bad", true);
		expect_refused(n, "bad", false);
	}
	/* For the other side only. */
	side = (struct negative){ .what = "a server's",
				  .says = "unsuitable certificate purpose" };
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){ .uri = NODE1, .eku = "serverAuth" });
	expect_refused(&side, "bad", true);
	side.what = "a client's";
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){ .uri = NODE1, .eku = "clientAuth" });
	expect_refused(&side, "bad", false);
	/* None. */
	side = (struct negative){ .what = "none",
				  .says = "showed no certificate" };
	expect_refused(&side, "", true);
	negative_cas_free(&cas);
	end();
}

/* A CA that our CA made may be somebody's; here it is nobody's. */
TEST(chains_are_refused)
{
	const char *dir = runner_dir();
	struct test_ca *middle;
	struct negative n = { .what = "a chain",
			      .says = "certificate chain too long" };
	struct test_leaf leaf = { .uri = NODE1 };
	FILE *f;

	begin();
	middle = test_ca_new(dir, "middle");
	/* Signed by ours instead of itself. */
	X509_set_issuer_name(middle->cert, X509_get_subject_name(ca->cert));
	EXPECT_TRUE(X509_sign(middle->cert, ca->key, EVP_sha256()) > 0);
	test_cert(middle, dir, "bad", &leaf);
	f = fopen(path("bad", "crt"), "a");
	EXPECT_INT(PEM_write_X509(f, middle->cert), 1);
	fclose(f);
	expect_refused(&n, "bad", true);
	expect_refused(&n, "bad", false);
	test_ca_free(middle);
	end();
}

/* A certificate list that is longer than anybody's. */
TEST(a_chain_of_200)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c;
	struct tls *t;
	struct raw r;
	FILE *f;
	unsigned i;

	begin();
	test_cert(ca, runner_dir(), "bad", &(struct test_leaf){ .uri = NODE1 });
	f = fopen(path("bad", "crt"), "a");
	for (i = 0; i < 200; i++)
		EXPECT_INT(PEM_write_X509(f, ca->cert), 1);
	fclose(f);
	c = context("node1");
	EXPECT_RC(tls_new(c, true, &t), RC_OK);
	raw_new(&r, runner_dir(), "bad", false);
	EXPECT_RC(raw_shake(&r, t, &why), RC_INVALID);
	EXPECT_HAS(why.text, "excessive message size");
	raw_free(&r);
	tls_free(t);
	tls_context_free(c);
	end();
}

/* The client hears that the server did not take its certificate. */
TEST(who_is_refused_is_told)
{
	struct test_ca *other;
	struct tls_context *cc;
	struct tls_context *sc;
	struct pair p;
	FILE *from;
	FILE *to;
	int ch;

	begin();
	other = test_ca_new(runner_dir(), "other");
	test_cert(other, runner_dir(), "stranger",
		  &(struct test_leaf){ .uri = CLIENT });
	/* It trusts both, so that only the server refuses. */
	to = fopen(path("other", "crt"), "a");
	from = fopen(path("ca", "crt"), "r");
	while ((ch = fgetc(from)) != EOF)
		fputc(ch, to);
	fclose(from);
	fclose(to);
	cc = context_of("other", "stranger");
	sc = context("node1");
	pair_new(&p, cc, sc);
	pair_shake(&p, 65536);
	EXPECT_RC(p.server_rc, RC_DENIED);
	EXPECT_RC(p.client_rc, RC_DENIED);
	EXPECT_HAS(p.client_why.text, "refuses our certificate");
	pair_free(&p);
	tls_context_free(cc);
	tls_context_free(sc);
	test_ca_free(other);
	end();
}

/* ---- what the wire must not offer ---- */

TEST(nothing_but_tls_1_3)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c;
	struct tls *t;
	struct raw r;

	begin();
	c = context("node1");
	EXPECT_RC(tls_new(c, true, &t), RC_OK);
	raw_new(&r, runner_dir(), "client", false);
	SSL_set_max_proto_version(r.ssl, TLS1_2_VERSION);
	EXPECT_RC(raw_shake(&r, t, &why), RC_INVALID);
	EXPECT_HAS(why.text, "unsupported protocol");
	raw_free(&r);
	tls_free(t);
	tls_context_free(c);
	end();
}

TEST(nothing_to_resume_with)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c;
	SSL_SESSION *session;
	struct tls *t;
	struct raw r;
	uint8_t buf[100];

	begin();
	c = context("node1");
	EXPECT_RC(tls_new(c, true, &t), RC_OK);
	raw_new(&r, runner_dir(), "client", false);
	/* The name that a client asks for makes no difference. */
	SSL_set_tlsext_host_name(r.ssl, "other.tenant.example");
	EXPECT_RC(raw_shake(&r, t, &why), RC_OK);
	EXPECT_TRUE(tls_ready(t));
	EXPECT_RC(tls_write(t, "x", 1), RC_OK);
	EXPECT_RC(raw_shake(&r, t, &why), RC_OK);
	EXPECT_INT(SSL_read(r.ssl, buf, sizeof(buf)), 1);
	session = SSL_get1_session(r.ssl);
	EXPECT_FALSE(SSL_SESSION_is_resumable(session));
	EXPECT_FALSE(SSL_SESSION_has_ticket(session));
	SSL_SESSION_free(session);
	raw_free(&r);
	tls_free(t);
	tls_context_free(c);
	end();
}

TEST(bytes_that_are_no_tls)
{
	static const char texts[][20] = {
		"GET / HTTP/1.1\r\n\r\n",
		"\x94\x01\x02\x03\x04\x05\x06",
		"\x16\x03\x01\xff\xff\x01\x00\x00\x00\x00",
		"\x17\x03\x03\x01\x01zzzzzzzzzzzz",
	};
	struct tls_context *c;
	size_t i;
	bool server = false;

	begin();
	c = context("node1");
	do {
		server = !server;
		for (i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
			struct detail why = { { 0 }, { 0 } };
			uint8_t text[400] = { 0 };
			struct tls *t;

			memcpy(text, texts[i], sizeof(texts[i]));
			EXPECT_RC(tls_new(c, server, &t), RC_OK);
			EXPECT_RC(tls_input(t, text, sizeof(text), &why),
				  RC_INVALID);
			EXPECT_HAS(why.text, "TLS: ");
			EXPECT_RC(tls_input(t, text, sizeof(text), &why),
				  RC_INVALID);
			tls_free(t);
		}
	} while (server);
	tls_context_free(c);
	end();
}

/* Each bit of a record counts. */
TEST(a_flipped_bit)
{
	struct tls_context *cc;
	struct tls_context *sc;
	size_t bit;
	size_t bits = 8;

	begin();
	cc = context("client");
	sc = context("node1");
	for (bit = 0; bit < bits; bit += 5) {
		struct detail why = { { 0 }, { 0 } };
		struct pair p;
		const uint8_t *view;
		uint8_t copy[256];
		size_t n;
		enum rc rc;

		pair_new(&p, cc, sc);
		pair_shake(&p, 65536);
		EXPECT_RC(tls_write(p.client, "0123456789", 10), RC_OK);
		tls_output(p.client, &view, &n);
		EXPECT_TRUE(n < sizeof(copy));
		bits = n * 8;
		memcpy(copy, view, n);
		copy[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		rc = tls_input(p.server, copy, n, &why);
		/* A longer length waits for more. */
		if (rc != RC_OK || bit / 8 < 3 || bit / 8 > 4)
			EXPECT_RC(rc, RC_INVALID);
		EXPECT_UINT(tls_read(p.server, copy, sizeof(copy)), 0);
		pair_free(&p);
	}
	tls_context_free(cc);
	tls_context_free(sc);
	end();
}

/* A key that has sealed 2^16 records is replaced. */
TEST(keys_are_renewed)
{
	struct tls_context *cc;
	struct tls_context *sc;
	struct pair p;
	unsigned i;
	unsigned longer = 0;
	char c;

	begin();
	cc = context("client");
	sc = context("node1");
	pair_new(&p, cc, sc);
	pair_shake(&p, 65536);
	for (i = 0; i < 2u << 16; i++) {
		const uint8_t *view;
		size_t n;

		EXPECT_RC(tls_write(p.client, "x", 1), RC_OK);
		tls_output(p.client, &view, &n);
		if (n > 23)
			longer++;
		EXPECT_RC(carry(p.client, p.server, 65536, NULL), RC_OK);
		EXPECT_UINT(tls_read(p.server, &c, 1), 1);
	}
	EXPECT_UINT(longer, 2);
	pair_free(&p);
	tls_context_free(cc);
	tls_context_free(sc);
	end();
}

/* ---- files ---- */

static void expect_no_context(const char *ca_name, const char *cert,
			      const char *key, const char *field,
			      const char *says)
{
	struct detail why = { { 0 }, { 0 } };
	struct tls_context *c = NULL;

	runner_context("%s", says);
	EXPECT_RC(tls_context_new(path(ca_name, "crt"), path(cert, "crt"),
				  path(key, "key"), &c, &why),
		  RC_INVALID);
	EXPECT_NULL(c);
	EXPECT_STR(why.field, field);
	EXPECT_HAS(why.text, says);
	runner_context("%s", "");
}

static void write_file(const char *name, const char *ending, const char *text)
{
	FILE *f = fopen(path(name, ending), "w");

	EXPECT_NOT_NULL(f);
	fputs(text, f);
	fclose(f);
	EXPECT_INT(chmod(path(name, ending), 0600), 0);
}

TEST(files_that_do_not_do)
{
	const char *dir = runner_dir();
	struct test_ca *other;
	EVP_PKEY *key;
	FILE *f;

	begin();
	other = test_ca_new(dir, "other");
	expect_no_context("none", "node1", "node1", "ca", "cannot open");
	expect_no_context("ca", "none", "node1", "cert", "cannot open");
	expect_no_context("ca", "node1", "none", "key", "cannot open");
	write_file("empty", "crt", "");
	write_file("empty", "key", "");
	expect_no_context("empty", "node1", "node1", "ca", "no certificate");
	expect_no_context("ca", "empty", "node1", "cert", "no certificate");
	expect_no_context("ca", "node1", "empty", "key", "no private key");
	write_file("junk", "crt", "-----BEGIN CERTIFICATE-----\nMIIB\n");
	write_file("junk", "key", "-----BEGIN PRIVATE KEY-----\nMIIB\n");
	expect_no_context("junk", "node1", "node1", "ca", "no certificate");
	expect_no_context("ca", "junk", "node1", "cert", "no certificate");
	expect_no_context("ca", "node1", "junk", "key", "no private key");
	EXPECT_INT(mkdir(path("dir", "key"), 0700), 0);
	expect_no_context("ca", "node1", "dir", "key", "is no file");
	/* Of others. */
	expect_no_context("node1", "node1", "node1", "ca", "of no CA");
	expect_no_context("ca", "node1", "client", "key", "does not fit");
	expect_no_context("other", "node1", "node1", "cert", "local issuer");
	/* Open to others; with a password. */
	test_cert(ca, dir, "open",
		  &(struct test_leaf){ .uri = NODE1, .mode_open = true });
	expect_no_context("ca", "open", "open", "key", "mode 0640");
	EXPECT_INT(chmod(path("open", "key"), 0604), 0);
	expect_no_context("ca", "open", "open", "key", "mode 0604");
	EXPECT_INT(chmod(path("open", "key"), 0400), 0);
	tls_context_free(context("open"));
	key = test_key(0);
	test_cert(ca, dir, "locked",
		  &(struct test_leaf){ .uri = NODE1, .key = key });
	f = fopen(path("locked", "key"), "w");
	EXPECT_INT(PEM_write_PKCS8PrivateKey(f, key, EVP_aes_256_cbc(), "pass",
					     4, NULL, NULL),
		   1);
	fclose(f);
	expect_no_context("ca", "locked", "locked", "key",
			  "without a password");
	EVP_PKEY_free(key);
	/* What the others would refuse. */
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){
			  .uri = NODE1, .from_s = -7200, .to_s = -60 });
	expect_no_context("ca", "bad", "bad", "cert", "expired");
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){ .uri = NODE1, .from_s = 600 });
	expect_no_context("ca", "bad", "bad", "cert", "not yet valid");
	test_cert(ca, dir, "bad", &(struct test_leaf){ .uri = NULL });
	expect_no_context("ca", "bad", "bad", "cert", "no URI");
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){ .uri = NODE1, .uri2 = CLIENT });
	expect_no_context("ca", "bad", "bad", "cert", "more than one");
	test_cert(ca, dir, "bad",
		  &(struct test_leaf){ .uri = NODE1, .rsa_bits = 1024 });
	expect_no_context("ca", "bad", "bad", "cert", "key too small");
	test_ca_free(other);
	end();
}

/* The n-th allocation of ours fails: an error, nothing leaks. */
TEST(no_memory)
{
	struct tls_context *cc;
	struct tls_context *sc;
	uint64_t n;
	bool fired;

	begin();
	for (n = 1;; n++) {
		struct tls_context *c = NULL;
		enum rc rc;
		const char *ca_path = path("ca", "crt");
		const char *crt_path = path("node1", "crt");
		const char *key_path = path("node1", "key");

		fault_alloc(n);
		rc = tls_context_new(ca_path, crt_path, key_path, &c, NULL);
		fired = fault_off();
		EXPECT_RC(rc, fired ? RC_NOMEM : RC_OK);
		tls_context_free(c);
		if (!fired)
			break;
	}
	EXPECT_TRUE(n > 3);
	cc = context("client");
	sc = context("node1");
	for (n = 1;; n++) {
		static uint8_t text[100000];
		struct pair p = { 0 };
		enum rc rc;

		fault_alloc(n);
		rc = tls_new(cc, false, &p.client);
		if (rc == RC_OK)
			rc = tls_new(sc, true, &p.server);
		if (rc == RC_OK) {
			pair_shake(&p, 65536);
			rc = p.client_rc != RC_OK ? p.client_rc : p.server_rc;
		}
		if (rc == RC_OK && tls_ready(p.server))
			rc = tls_write(p.server, text, sizeof(text));
		if (rc == RC_OK)
			rc = carry(p.server, p.client, 65536, NULL);
		fired = fault_off();
		EXPECT_RC(rc, fired ? RC_NOMEM : RC_OK);
		if (rc != RC_OK && p.server != NULL)
			tls_shutdown(p.server);
		pair_free(&p);
		if (!fired)
			break;
	}
	EXPECT_TRUE(n > 5);
	tls_context_free(cc);
	tls_context_free(sc);
	end();
}
