/* SPDX-License-Identifier: Apache-2.0
 *
 * packet.h - one packet of a SOCK_SEQPACKET socket, with the descriptors it carries.
 *
 * Owns SCM_RIGHTS (unix(7)).  Must not know what a packet means.  A preloaded library may use it
 * in a signal handler and after fork(): raw system calls, no allocation, no lock, no
 * cancellation point.  errno may be changed.
 */
#ifndef DAXFAULT_PACKET_H
#define DAXFAULT_PACKET_H

#include <stddef.h>
#include <sys/types.h>

enum {
	PACKET_FDS = 4, /* more than any message carries */
};

/* Send `len` bytes and `nfds` descriptors, at most PACKET_FDS.  -> 0, or a negative errno. */
int packet_send(int sock, const void *data, size_t len, const int *fds, int nfds);
/* Never waits: -EAGAIN when the peer has not received what came before. */
int packet_send_now(int sock, const void *data, size_t len, const int *fds, int nfds);

/* Receive one packet of at most `size` bytes and its descriptors.  They are CLOEXEC; the caller
 * closes them.  fds has room for PACKET_FDS.
 *
 * -> its length, 0 at the end of the connection, or a negative errno; then *nfds is 0 and no
 * descriptor stays open.  -EPROTO: longer than `size`.  -EMFILE: all of it is in `data`, but it
 * carried more descriptors than this process could take (net/core/scm.c, scm_detach_fds()). */
ssize_t packet_receive(int sock, void *data, size_t size, int *fds, int *nfds);

void packet_close(const int *fds, int nfds);

#endif
