/* SPDX-License-Identifier: Apache-2.0
 *
 * mapfsx_files.c - calls on files and names, and what a descriptor's file is in the end.  Must not
 * touch a mapping.
 */
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mapfsx.h"

const char *name_of(int i)
{
	static const char *const all[NAMES] = { "a", "b", "c" };

	return all[i];
}

static void know_size(int fd, int object)
{
	struct stat st;

	if (fd >= 0 && object >= 0 && !fstat(fd, &st))
		sizes[object] = st.st_size;
}

void file_call(void)
{
	static char bytes[2 * PAGE_BYTES];
	unsigned i = pick(FDS), what = pick(8);
	size_t n = 1 + pick(sizeof(bytes) - 1);
	off_t at = pick(MOST - sizeof(bytes));
	int fd = fds[i].fd;

	if (pick(2))
		at &= ~(off_t)(PAGE_BYTES - 1);
	memset(bytes, (int)(1 + pick(255)), n);
	switch (what) {
	case 0:
	case 1:
		know_size(fd, fds[i].object);
		if (fd >= 0 && fcntl(fd, F_GETFL) & O_APPEND && sizes[fds[i].object] > MOST)
			break;
		result("pwrite", pwrite(fd, bytes, n, at));
		break;
	case 2:
		know_size(fd, fds[i].object);
		if (lseek(fd, 0, SEEK_END) + (off_t)n > MOST)
			break;
		result("append", write(fd, bytes, n));
		break;
	case 3:
		result("ftruncate", ftruncate(fd, pick(4) ? at : (off_t)pick(2) * MOST));
		break;
	case 4:
		i = pick(NAMES);
		result("truncate", truncate(name_of((int)i), at));
		for (unsigned f = 0; f < FDS; f++)
			know_size(fds[f].fd, fds[f].object);
		if (names[i] >= 0) {
			struct stat st;

			if (!stat(name_of((int)i), &st))
				sizes[names[i]] = st.st_size;
		}
		return;
	case 5:
		result("fsync", fsync(fd));
		break;
	case 6:
		result("fdatasync", fdatasync(fd));
		break;
	default: {
		ssize_t r = pread(fd, bytes, n, at);

		LOG("%lx ", r > 0 ? (unsigned long)hash(bytes, (size_t)r) : 0);
		result("pread", r);
	}
	}
	know_size(fd, fds[i].object);
}

void open_again(unsigned i)
{
	static const int ways[] = { O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_RDWR | O_APPEND, O_WRONLY };
	int flags = ways[pick(sizeof(ways) / sizeof(*ways))], name = (int)pick(NAMES);

	if (pick(2))
		flags |= O_CREAT;
	if (pick(8) == 0)
		flags |= O_TRUNC;
	if (fds[i].fd >= 0)
		result("close", close(fds[i].fd));
	fds[i].fd = open(name_of(name), flags | O_CLOEXEC, 0600);
	result("open", fds[i].fd < 0 ? -1 : 0);
	fds[i].object = -1;
	if (fds[i].fd < 0)
		return;
	if (names[name] < 0)
		names[name] = nobjects++;
	fds[i].object = names[name];
	know_size(fds[i].fd, fds[i].object);
}

void name_call(void)
{
	int a = (int)pick(NAMES), b = (int)pick(NAMES);
	long r;

	if (pick(3)) {
		open_again(pick(FDS));
	} else if (pick(2)) {
		r = unlink(name_of(a));
		result("unlink", r);
		if (!r)
			names[a] = -1;
	} else {
		r = rename(name_of(a), name_of(b));
		result("rename", r);
		if (!r && a != b) {
			names[b] = names[a];
			names[a] = -1;
		}
	}
}

void look_at_file(unsigned i)
{
	static char bytes[2 * MOST];
	struct stat st = { .st_size = -1 };
	ssize_t n = pread(fds[i].fd, bytes, sizeof(bytes), 0);

	fstat(fds[i].fd, &st);
	LOG("fd %u: size %ld, %zd bytes %lx\n", i, (long)st.st_size, n,
	    n > 0 ? (unsigned long)hash(bytes, (size_t)n) : 0);
}
