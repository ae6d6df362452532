/* SPDX-License-Identifier: Apache-2.0
 *
 * client.h - a program's end of the wire (abi.h, "programs").
 *
 * Owns the conversation with the host: the messages, their order, and the checks of
 * replies.  Must not know for which process it speaks (the preloaded library for its
 * own, the tracer for another), must not map, and holds no state but struct client.
 * Its caller decides which thread may speak, and checks that a descriptor is still
 * the one it was.
 *
 * All of it may be called from a signal handler and after fork(): raw system calls,
 * no cancellation point, no malloc, no lock, less than 2 KiB of stack.  errno may be
 * changed.  Every descriptor made here is CLOEXEC.
 *
 * Results:
 *      0  done
 *    > 0  errno: the host's refusal.  The connection goes on.
 *    < 0  -errno: no connection, or one that is of no use any more (the host is gone,
 *         did not answer in time, or broke the protocol): client_close() it.
 *         -ECONNRESET, -EPIPE: the host is gone; -ETIMEDOUT; -EPROTO.
 */
#ifndef DAXFAULT_PROGRAM_CLIENT_H
#define DAXFAULT_PROGRAM_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi/abi.h"

enum {
	CLIENT_PATIENCE_S = 60,		/* for every reply but that of an msync, which writes */
};

struct client {
	int fd;				/* -1: not connected */
	uint64_t seq;			/* of the last request */
};

/* Connect to the host's socket and attach process `pid`.
 *
 * device: set to an open /dev/userfaultfd that the host hands over, the caller's to
 * close, or to -1 when it hands over none.
 * On a result other than 0 nothing stays open, and c->fd is -1.  -ENOENT,
 * -ECONNREFUSED, -EACCES as connect(2) has them: there is no host for us. */
int client_attach(struct client *c, const char *path, pid_t pid, int *device);

/* What mmap() of the program fails with, of a result other than 0. */
int client_errno(int result);

/* Hand over a userfaultfd.  flags: set to enum df_serve_flag.  The caller closes its own. */
int client_serve(struct client *c, int uffd, uint32_t *flags);

/* What to map instead of `fd`, an open file on the mount, for mmap(2)'s arguments as the
 * program gave them.
 *
 * 0: `cache` is to be mapped at `offset`, the caller's to close; MAP_PRIVATE in place
 * of MAP_SHARED or MAP_SHARED_VALIDATE when `private` is set.  The next call must be
 * client_mapped(), whatever becomes of the mapping, and no other thread's in between.
 * > 0: what mmap() fails with; nothing else is to be said.  EMFILE: there was no
 * descriptor left for the cache. */
int client_map(struct client *c, int fd, uint64_t offset, uint64_t len, int prot, int flags,
	       int *cache, bool *private);

/* What was mapped: whole pages, or len 0 when the mmap() failed.  [0, 1 << 47), without
 * a client_map() before it: all that a forked child has.  > 0: it is not served, and
 * must be unmapped before anybody touches it. */
int client_mapped(struct client *c, uint64_t start, uint64_t len);

/* MS_SYNC of a range, after the kernel's own msync(); waits as long as it takes. */
int client_msync(struct client *c, uint64_t start, uint64_t len);

/* Report a SIGBUS that will not be caught, before the process dies of it: the host looks
 * at its address space.  May come instead of client_serve().  frames: innermost first, at
 * most DF_SIGBUS_FRAMES are sent; with n 0 it may be NULL. */
int client_sigbus(struct client *c, uint64_t address, pid_t tid, int code, const uint64_t *frames,
		  size_t n);

/* Close the connection, if there is one. */
void client_close(struct client *c);

#endif
