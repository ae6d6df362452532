/* SPDX-License-Identifier: Apache-2.0
 *
 * packet.c - sending and receiving packets with descriptors: see packet.h.
 */
#include "packet.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

union control {
	struct cmsghdr align;
	char room[CMSG_SPACE(PACKET_FDS * sizeof(int))];
};

/* -> the result, or a negative errno.  Unlike libc's sendmsg() and recvmsg(), syscall(2) is not
 * a cancellation point. */
static long transfer(long number, int sock, struct msghdr *packet, int flags)
{
	long n;

	do {
		n = syscall(number, sock, packet, flags);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static int send_packet(int sock, const void *data, size_t len, const int *fds, int nfds, int flags)
{
	struct iovec iov = { (void *)data, len };
	struct msghdr packet = { .msg_iov = &iov, .msg_iovlen = 1 };
	union control control;
	long n;

	if (nfds < 0 || nfds > PACKET_FDS)
		return -EINVAL;
	if (nfds) {
		size_t size = (size_t)nfds * sizeof(*fds);

		memset(&control, 0, sizeof(control));
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(size);
		memcpy(CMSG_DATA(&control.align), fds, size);
		packet.msg_control = &control;
		packet.msg_controllen = CMSG_SPACE(size);
	}
	n = transfer(SYS_sendmsg, sock, &packet, MSG_NOSIGNAL | flags);
	return n < 0 ? (int)n : 0;
}

int packet_send(int sock, const void *data, size_t len, const int *fds, int nfds)
{
	return send_packet(sock, data, len, fds, nfds, 0);
}

int packet_send_now(int sock, const void *data, size_t len, const int *fds, int nfds)
{
	return send_packet(sock, data, len, fds, nfds, MSG_DONTWAIT);
}

static int received_fds(struct msghdr *packet, int *fds)
{
	struct cmsghdr *c;
	int n = 0;

	for (c = CMSG_FIRSTHDR(packet); c; c = CMSG_NXTHDR(packet, c)) {
		size_t size = c->cmsg_len - CMSG_LEN(0);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		memcpy(fds + n, CMSG_DATA(c), size);
		n += (int)(size / sizeof(*fds));
	}
	return n;
}

ssize_t packet_receive(int sock, void *data, size_t size, int *fds, int *nfds)
{
	union control control;
	struct iovec iov = { data, size };
	struct msghdr packet = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	long n = transfer(SYS_recvmsg, sock, &packet, MSG_CMSG_CLOEXEC);

	*nfds = n < 0 ? 0 : received_fds(&packet, fds);
	if (n > 0 && !(packet.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return n;
	packet_close(fds, *nfds);
	*nfds = 0;
	if (n <= 0)
		return n;
	return packet.msg_flags & MSG_TRUNC ? -EPROTO : -EMFILE;
}

void packet_close(const int *fds, int nfds)
{
	int i;

	for (i = 0; i < nfds; i++)
		syscall(SYS_close, fds[i]);
}
