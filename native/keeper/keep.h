/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.h - the host's end of its keeper (keeper.h).
 */
#ifndef DAXFAULT_KEEP_H
#define DAXFAULT_KEEP_H

#include <stdint.h>

#include "keeper.h"

/* DF_CDEF_BEGIN */

/* Of the whole process: page caches have no engine. */

/* Send all that is to be kept to a new keeper behind this socket, the caller's to close, and from now on
 * what comes; -1: there is none.  As df_keeper_send(). */
int df_keeper(int socket);
/* Send what is waiting, and never wait for room.  -> how many messages still wait, or a negative errno:
 * this keeper is lost. */
int df_keeper_send(void);
/* Send a message that asks for nothing.  As df_keeper_send(). */
int df_keeper_ping(void);
/* The host ends in good order.  As df_keeper_send(). */
int df_keeper_end(void);
/* An eventfd, readable when df_keeper_send() is to be called. */
int df_keeper_fd(void);
/* Tell the keeper of the death of the calling thread, which must be the process's first; df_keeper_left()
 * ends that.  -> 0 or a negative errno. */
int df_keeper_live(void);
void df_keeper_left(void);
/* Keep a socket, so that nobody waits for an answer of a dead host; df_keep_no_socket() before it is closed. */
void df_keep_socket(int fd);
void df_keep_no_socket(int fd);

/* DF_CDEF_END */

/* Keep a descriptor, `what` being one of those kinds; it stays the caller's, open until keep_nothing().
 * Neither waits: what the socket has no room for is sent later. */
void keep(enum keep_kind what, uint64_t id, int fd);
void keep_nothing(enum keep_kind what, uint64_t id);

#endif
