/* SPDX-License-Identifier: Apache-2.0
 *
 * pinned.c - pinned FILE BACKING HOW: registers a page of a mapping of FILE with io_uring, so that it
 * stays pinned, has it written back, and then has the kernel read "late" into it from a pipe, which
 * takes no fault.  HOW "msync" has it written back again; "exit" leaves that to the end.
 *
 * Owns its ring.  Prints what BACKING has, or "no io_uring".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define AT (5 * PAGE)
#define CHECK(condition) \
	do { \
		if (!(condition)) { \
			perror(#condition); \
			return 1; \
		} \
	} while (0)

static void *ring(int fd, size_t len, off_t offset)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
}

/* Read 4 bytes from `from` into the registered buffer, and wait until that is done. */
static int read_fixed(int uring, const struct io_uring_params *p, int from, char *to)
{
	struct io_uring_sqe *sqes = ring(uring, p->sq_entries * sizeof(*sqes), IORING_OFF_SQES);
	char *sq = ring(uring, p->sq_off.array + p->sq_entries * sizeof(unsigned),
			IORING_OFF_SQ_RING);
	char *cq = ring(uring, p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe),
			IORING_OFF_CQ_RING);
	const struct io_uring_cqe *cqes = (const void *)(cq + p->cq_off.cqes);

	*sqes = (struct io_uring_sqe){
		.opcode = IORING_OP_READ_FIXED,
		.fd = from,
		.addr = (__u64)(unsigned long)to,
		.len = 4,
	};
	*(unsigned *)(sq + p->sq_off.array) = 0;
	__atomic_store_n((unsigned *)(sq + p->sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, uring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -1;
	return cqes[0].res;
}

int main(int argc, char **argv)
{
	struct io_uring_params params = { 0 };
	struct iovec buffer;
	char got[5] = "", *map;
	int file, backing, uring, ends[2];

	CHECK(argc == 4);
	uring = (int)syscall(SYS_io_uring_setup, 4, &params);
	if (uring < 0) {
		puts("no io_uring");
		return 0;
	}
	file = open(argv[1], O_RDWR);
	backing = open(argv[2], O_RDONLY);
	CHECK(file >= 0 && backing >= 0);
	map = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	CHECK(map != MAP_FAILED);
	buffer = (struct iovec){ map + AT, PAGE };
	CHECK(!syscall(SYS_io_uring_register, uring, IORING_REGISTER_BUFFERS, &buffer, 1));
	memcpy(map + AT, "soon", 4);
	CHECK(!msync(map, 16 * PAGE, MS_SYNC));
	CHECK(pread(backing, got, 4, AT) == 4 && !strcmp(got, "soon"));
	CHECK(!pipe(ends) && write(ends[1], "late", 4) == 4);
	CHECK(read_fixed(uring, &params, ends[0], map + AT) == 4);
	if (!strcmp(argv[3], "msync"))
		CHECK(!msync(map, 16 * PAGE, MS_SYNC));
	CHECK(pread(backing, got, 4, AT) == 4);
	puts(got);
	return 0;
}
