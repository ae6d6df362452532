/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.h - the host's side of the keeper protocol (keeper.h).
 */
#ifndef DAXFAULT_KEEP_H
#define DAXFAULT_KEEP_H

#include <stdint.h>

#include "keeper.h"

/* DF_CDEF_BEGIN */

/* The keeper serves the whole process, because page caches have no engine. */

/* Use a new keeper behind this socket: send it everything that is kept, and later changes.  -1: no
 * keeper.  The caller closes the socket.  -> as df_keeper_send(). */
int df_keeper(int socket);
/* Send queued messages as far as the socket has room; never waits.  -> the number of messages
 * that are still queued, or a negative errno: this keeper is lost. */
int df_keeper_send(void);
/* Send a message without a meaning.  -> as df_keeper_send(). */
int df_keeper_ping(void);
/* Announce that the host ends in good order.  -> as df_keeper_send(). */
int df_keeper_end(void);
/* -> an eventfd, readable when df_keeper_send() must be called, or a negative errno. */
int df_keeper_fd(void);
/* Have the keeper notice the death of the calling thread, which must be the process's first, until
 * df_keeper_left().  -> 0 or a negative errno. */
int df_keeper_live(void);
void df_keeper_left(void);
/* Keep a socket, so that the keeper can close it and no program waits for a dead host.
 * df_keep_no_socket() must be called before the host closes it. */
void df_keep_socket(int fd);
void df_keep_no_socket(int fd);

/* DF_CDEF_END */

/* Keep a descriptor of kind `what`.  The caller must leave it open until keep_nothing().
 * Neither waits: messages that do not fit into the socket are sent later. */
void keep(enum keep_kind what, uint64_t id, int fd);
void keep_nothing(enum keep_kind what, uint64_t id);

#endif
