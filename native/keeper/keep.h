/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.h - the host's end of its keeper (keeper.h).
 */
#ifndef DAXFAULT_KEEP_H
#define DAXFAULT_KEEP_H

#include <stdint.h>

#include "keeper.h"

/* DF_CDEF_BEGIN */

/* A keeper's socket, the caller's to close; -1: there is none any more.  Of the whole process:
 * page caches have no engine. */
void df_keeper(int socket);

/* DF_CDEF_END */

/* `what` is DF_KEEP_CACHE or DF_KEEP_UFFD. */
void keep(enum keep_kind what, uint64_t id, int fd);
void keep_nothing(enum keep_kind what, uint64_t id);

#endif
