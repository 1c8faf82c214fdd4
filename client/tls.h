/*
 * tls - one end of a TLS 1.3 connection, without I/O.
 *
 * One thread at a time. Ciphertext goes in and out through memory, plain bytes
 * on the other side; the sockets are the caller's. Both sides show certificates
 * (DESIGN D10) of the cluster's own CA; who the other one is stands in its
 * certificate as a SPIFFE URI in the subjectAltName, nowhere else. No older
 * version, no session tickets, no resumption, no early data, no renegotiation.
 * Used by client.c, and by node/ for peers and clients alike.
 */
#ifndef HOLDFAST_CLIENT_TLS_H
#define HOLDFAST_CLIENT_TLS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/proto/rc.h"

#define TLS_URI_BYTES_MAX 256u

struct tls_context; /* Certificate, key, CA: shared by connections. */
struct tls;         /* One connection. */

/*
 * From PEM files. RC_INVALID: one is missing, unreadable, does not fit the
 * others, is expired, or the key file is open to others than its owner; `why`
 * has field (`ca`, `cert`, `key`) and sentence, never key material. RC_NOMEM.
 */
enum rc tls_context_new(const char *ca_file, const char *cert_file,
			const char *key_file, struct tls_context **out,
			struct detail *why);
/* Connections keep what they began with. */
void tls_context_free(struct tls_context *c);
/* The end of the own certificate's validity, ms since 1970. */
uint64_t tls_context_expires_ms(const struct tls_context *c);
/* The SPIFFE URI of the own certificate. */
const char *tls_context_uri(const struct tls_context *c);

/* RC_NOMEM. `server`: which side of the handshake. */
enum rc tls_new(struct tls_context *c, bool server, struct tls **out);
/* A busy one: it keeps its 34 KiB of buffers from now on, instead of allocating
 * them anew for each record. */
void tls_keep(struct tls *t);
void tls_free(struct tls *t);

/* Ciphertext that was received; takes all of it. RC_OK; RC_DENIED: the other
 * side's certificate, or its lack, is refused; RC_INVALID: that is no TLS; the
 * connection is over, after what tls_output still has (an alert) was sent. */
enum rc tls_input(struct tls *t, const void *p, size_t n, struct detail *why);
/* Ciphertext to be sent: a view, valid until the next call. */
void tls_output(struct tls *t, const uint8_t **p, size_t *n);
void tls_sent(struct tls *t, size_t n);

/* The handshake is over, the other side is who tls_uri says. */
bool tls_ready(const struct tls *t);
const char *tls_uri(const struct tls *t);
/* The end of its certificate's validity, ms since 1970. */
uint64_t tls_peer_expires_ms(const struct tls *t);

/* Plain bytes that came: at most `n` into `p`; 0: no more now. */
size_t tls_read(struct tls *t, void *p, size_t n);
/* The same bytes in place: a view of all of them, valid until the next call but
 * tls_output, tls_sent and tls_write; and how many of them are done with. */
void tls_plain(const struct tls *t, const uint8_t **p, size_t *n);
void tls_took(struct tls *t, size_t n);
/* The other side has closed in order. */
bool tls_ended(const struct tls *t);
/* Plain bytes to be sent, all of them, once ready: grows tls_output. RC_NOMEM.
 */
enum rc tls_write(struct tls *t, const void *p, size_t n);
/* Says goodbye. */
void tls_shutdown(struct tls *t);

#endif
