/*
 * notify - tells a supervisor (systemd's sd_notify protocol) how it goes.
 *
 * Any thread, does not block: one datagram to the socket that the environment
 * variable NOTIFY_SOCKET names. Without it nobody asked, and nothing happens.
 */
#ifndef HOLDFAST_NODE_NOTIFY_H
#define HOLDFAST_NODE_NOTIFY_H

#include "client/proto/rc.h"

/* `state` as sd_notify(3) has it: "READY=1", "STOPPING=1". RC_INVALID: the
 * variable names no socket that can be; RC_IO: it was not taken. */
enum rc notify_send(const char *state, struct detail *why);

#endif
