/* SPDX-License-Identifier: Apache-2.0
 *
 * manpage.c - what the engine is measured against: the handler of the example in
 * userfaultfd(2), one poll(), one read() and one UFFDIO_COPY a fault, for a
 * guest in another process.  Must stay as plain as the example is.
 *
 *	daxfault-bench-manpage PAGES STRIDE SEED [FILE]
 *
 * Touches a byte every STRIDE bytes.  With FILE each page is read from it with pread() first; without, one buffer is
 * copied over and over, as in the manual page.  Prints one JSON object.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "abi/abi.h"
#include "abi/compat.h"
#include "base/laps.h"

static void die(const char *what)
{
	fprintf(stderr, "daxfault-bench-manpage: %s: %s\n", what, strerror(errno));
	exit(2);
}

static void send_fd(int sock, int fd, void *base)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { &base, sizeof(base) };
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&mh);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	if (sendmsg(sock, &mh, 0) < 0)
		die("sendmsg");
}

static int receive_fd(int sock, uint64_t *base)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { base, sizeof(*base) };
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int fd = -1;

	if (recvmsg(sock, &mh, MSG_CMSG_CLOEXEC) != sizeof(*base) || !CMSG_FIRSTHDR(&mh))
		die("the guest did not start");
	memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(fd));
	return fd;
}

static void guest(int sock, uint64_t pages, uint64_t stride, uint64_t seed)
{
	struct uffdio_api api = { .api = UFFD_API };
	uint64_t len = pages * DF_PAGE_SIZE;
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	uint32_t *room = malloc(pages * sizeof(*room));
	struct laps laps;
	char *base, go;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	base = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (uffd < 0 || base == MAP_FAILED || !room)
		die("userfaultfd");
	madvise(base, len, MADV_NOHUGEPAGE);
	reg.range = (struct uffdio_range){ (uintptr_t)base, len };
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		die("UFFDIO_REGISTER");
	send_fd(sock, uffd, base);
	if (read(sock, &go, 1) != 1)
		die("the handler is gone");
	laps_run((volatile uint8_t *)base, len, stride, seed, room, &laps);
	printf("{\"count\":%llu,\"total\":%llu,\"p50\":%llu,\"p99\":%llu,\"most\":%llu}\n",
	       (unsigned long long)laps.count, (unsigned long long)laps.total,
	       (unsigned long long)laps.p50, (unsigned long long)laps.p99,
	       (unsigned long long)laps.most);
	fflush(stdout);
	_exit(0);
}

int main(int argc, char **argv)
{
	static char page[DF_PAGE_SIZE] __attribute__((aligned(DF_PAGE_SIZE)));
	uint64_t pages = argc > 3 ? strtoull(argv[1], NULL, 0) : 0, base = 0;
	uint64_t stride = argc > 3 ? strtoull(argv[2], NULL, 0) : 0;
	int sv[2], uffd, status, file = argc > 4 ? open(argv[4], O_RDONLY) : -1;
	pid_t child;

	if (!pages || stride < DF_PAGE_SIZE || (argc > 4 && file < 0)) {
		fprintf(stderr, "usage: daxfault-bench-manpage PAGES STRIDE SEED [FILE]\n");
		return 2;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sv))
		die("socketpair");
	child = fork();
	if (child < 0)
		die("fork");
	if (!child) {
		close(sv[0]);
		guest(sv[1], pages, stride, strtoull(argv[3], NULL, 0));
	}
	close(sv[1]);
	uffd = receive_fd(sv[0], &base);
	if (write(sv[0], "g", 1) != 1)
		die("write");
	for (;;) {
		struct pollfd fds[] = { { uffd, POLLIN, 0 }, { sv[0], POLLIN, 0 } };
		struct uffd_msg msg;
		struct uffdio_copy copy;

		if (poll(fds, 2, -1) < 0)
			die("poll");
		if (fds[1].revents)
			break; /* the guest has ended */
		if (read(uffd, &msg, sizeof(msg)) != sizeof(msg))
			continue;
		copy = (struct uffdio_copy){
			.dst = msg.arg.pagefault.address & ~(uint64_t)(DF_PAGE_SIZE - 1),
			.src = (uintptr_t)page,
			.len = DF_PAGE_SIZE,
		};
		if (file >= 0 && pread(file, page, DF_PAGE_SIZE, (off_t)(copy.dst - base)) < 0)
			die("pread");
		if (ioctl(uffd, UFFDIO_COPY, &copy) && errno != EEXIST)
			die("UFFDIO_COPY");
	}
	waitpid(child, &status, 0);
	return status ? 1 : 0;
}
