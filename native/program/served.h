/* SPDX-License-Identifier: Apache-2.0
 *
 * served.h - connects a program to the host: its userfaultfd, and its mappings of page caches.
 *
 * Owns the order of messages to the host (client.h) and system calls in the program's address space
 * (mapping.h).  Must not know whether that is this process or a tracee.  May be called from a
 * signal handler and after fork().
 */
#ifndef DAXFAULT_PROGRAM_SERVED_H
#define DAXFAULT_PROGRAM_SERVED_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "client.h"
#include "mapping.h"

/* Connect to the host, attach process `pid`, and send a userfaultfd made in it.
 * -> 0, or the errno for its mmap(); then c is not connected. */
int served_begin(struct client *c, const char *socket, pid_t pid, struct caller *there,
		 uint32_t *flags);

/* Map the page cache of q->fd, a descriptor of the calling process.  *demoted: it is MAP_PRIVATE in
 * place of MAP_SHARED, and marked MADV_DONTDUMP, a mark that survives mremap(), fork() and partial
 * unmapping.  -> 0, or the errno for mmap(); *dead: the connection failed, and is closed. */
int served_map(struct client *c, const struct map_request *q, struct caller *there,
	       struct mapping *m, bool *demoted, bool *dead);

#endif
