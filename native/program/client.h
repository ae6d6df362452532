/* SPDX-License-Identifier: Apache-2.0
 *
 * client.h - a program's side of the protocol (abi.h, "programs").
 *
 * Owns the messages to the host, their order, and the checks of replies.  Must not know whether it
 * acts for its own process (the preloaded library) or for another (the tracer); must not map.
 * struct client is its only state.  The caller serializes the calls, and checks that the descriptor
 * is still the connection.
 *
 * All functions may be called from a signal handler and after fork(): raw system calls, no
 * cancellation point, no malloc, no lock, less than 2 KiB of stack.  errno may be changed.  Every
 * descriptor made here is CLOEXEC.
 *
 * Results:
 *      0  done
 *    > 0  errno: the host refuses.  The connection stays usable.
 *    < 0  -errno: there is no connection, or it has failed: client_close() it.
 *         -ECONNRESET, -EPIPE: the host is gone; -ETIMEDOUT: no answer in time; -EPROTO.
 */
#ifndef DAXFAULT_PROGRAM_CLIENT_H
#define DAXFAULT_PROGRAM_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi/abi.h"

enum {
	CLIENT_PATIENCE_S = 60, /* for every reply except an msync's, which waits for writes */
};

struct client {
	int fd;	      /* -1: not connected */
	uint64_t seq; /* of the last request */
};

/* Connect to the host's socket and attach process `pid`.
 *
 * device: set to the open /dev/userfaultfd that the host sends, which the caller closes, or to
 * -1 if it sends none.  On a result other than 0 nothing stays open, and c->fd is -1.  -ENOENT,
 * -ECONNREFUSED and -EACCES are those of connect(2). */
int client_attach(struct client *c, const char *path, pid_t pid, int *device);

/* -> the errno for the program's mmap(), from a result other than 0. */
int client_errno(int result);

/* Hand over a userfaultfd.  flags: set to enum df_serve_flag.  The caller closes its own. */
int client_serve(struct client *c, int uffd, uint32_t *flags);

/* Request the page cache to map instead of `fd`, an open file on the mount; the other arguments are
 * the program's to mmap(2).
 *
 * -> 0: map `cache` at `offset`, then close it; MAP_PRIVATE in place of MAP_SHARED or
 * MAP_SHARED_VALIDATE if `private` is set.  The next call on this connection must be
 * client_mapped(), also if the mapping fails. > 0: the errno for mmap(); client_mapped() must
 * not follow.  EMFILE: no descriptor was left. */
int client_map(struct client *c, int fd, uint64_t offset, uint64_t len, int prot, int flags,
	       int *cache, bool *private);

/* Report the mapping: whole pages, or len 0 when the mmap() failed.  [0, 1 << 47), without a
 * client_map() before it: all mappings that a forked child inherits.  > 0: the range is not
 * served, and the caller must unmap it before any thread touches it. */
int client_mapped(struct client *c, uint64_t start, uint64_t len);

/* MS_SYNC of a range, after the kernel's own msync().  No timeout. */
int client_msync(struct client *c, uint64_t start, uint64_t len);

/* Report a SIGBUS that will kill the process, so that the host can read its address space
 * first.  May come instead of client_serve().  frames: innermost first, at most DF_SIGBUS_FRAMES
 * are sent; NULL is allowed if n is 0. */
int client_sigbus(struct client *c, uint64_t address, pid_t tid, int code, const uint64_t *frames,
		  size_t n);

/* Close the connection, if there is one. */
void client_close(struct client *c);

#endif
