/* SPDX-License-Identifier: Apache-2.0
 *
 * source.c - the calls on a backing descriptor.  Must not decide what a short read, a size or an
 * errno means.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/thread.h"
#include "base/cleanup.h"
#include "source.h"

/* Local file systems: inodes are in the kernel's memory, and reads support RWF_NOWAIT.  Not
 * those with a server (FUSE, NFS, 9p), nor overlayfs, which may be over one. */
static bool is_local(const struct statfs *fs)
{
	switch ((unsigned long)fs->f_type) {
	case TMPFS_MAGIC:
	case RAMFS_MAGIC:
	case EXT4_SUPER_MAGIC: /* of ext2 and ext3, too */
	case XFS_SUPER_MAGIC:
	case BTRFS_SUPER_MAGIC:
	case F2FS_SUPER_MAGIC:
		return true;
	default:
		return false;
	}
}

int source_open(struct df_source *source, int fd, bool writable, struct stat *st)
{
	struct statfs fs;
	int error = 0;

	if (fstat(fd, st))
		error = -errno;
	else if (!S_ISREG(st->st_mode))
		error = -EINVAL;
	if (error) {
		close(fd);
		return error;
	}
	if (fstatfs(fd, &fs))
		fs.f_type = 0;
	*source = (struct df_source){
		.fd = fd,
		.writable = writable,
		.local = is_local(&fs),
		.blocks = !is_local(&fs),
		.memory = fs.f_type == TMPFS_MAGIC,
	};
	pthread_mutex_init(&source->lock, NULL);
	if (source->local) /* others may hang, with a lock that all files share */
		source_watch(source);
	return fstat(fd, st) ? -errno : 0; /* as it was when we began to watch it */
}

static void *closer(void *fd)
{
	close((int)(intptr_t)fd);
	return NULL;
}

/* In a thread: close(2) sends a request to the server and waits for it (fs/fuse/file.c,
 * fuse_flush()). */
static void close_apart(int fd)
{
	pthread_t thread;

	if (thread_start(&thread, closer, (void *)(intptr_t)fd, "df-close"))
		close(fd);
	else
		pthread_detach(thread);
}

void source_close(struct df_source *source)
{
	source_inject_remove(source, true, 0);
	source_unwatch(source);
	pthread_mutex_destroy(&source->lock);
	if (source->local)
		close(source->fd);
	else
		close_apart(source->fd);
}

int source_upgrade(const struct df_source *source, int fd)
{
	/* dup3() replaces the open file under the same number atomically: reads under way keep
	 * the old one. */
	int error = dup3(fd, source->fd, O_CLOEXEC) < 0 ? -errno : 0;

	close(fd);
	return error;
}

int source_look(const struct df_source *source, struct stat *st)
{
	return fstat(source->fd, st) ? -errno : 0;
}

static uint64_t read_all(int fd, char *to, uint64_t offset, uint64_t len, int flags, int *error)
{
	uint64_t done = 0;

	*error = 0;
	while (done < len) {
		struct iovec iov = { to + done, len - done };
		ssize_t n = flags ? preadv2(fd, &iov, 1, (off_t)(offset + done), flags)
				  : pread(fd, iov.iov_base, iov.iov_len, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			*error = errno;
		if (n <= 0)
			break;
		done += (uint64_t)n;
	}
	return done;
}

uint64_t source_peek(struct df_source *source, char *to, uint64_t offset, uint64_t len, int *error)
{
	uint64_t got;

	*error = EAGAIN;
	if (source->memory)
		return read_all(source->fd, to, offset, len, 0, error);
	if (source->blocks)
		return 0;
	got = read_all(source->fd, to, offset, len, RWF_NOWAIT, error);
	if (*error == EOPNOTSUPP) {
		source->blocks = true;
		*error = EAGAIN;
	}
	return got;
}

uint64_t source_bring(const struct df_source *source, char *to, uint64_t offset, uint64_t len,
		      int *error)
{
	*error = source->fetch ? source->fetch(source->fetch_context, offset, len) : 0;
	return *error ? 0 : read_all(source->fd, to, offset, len, 0, error);
}

int64_t source_read(struct df_source *source, void *to, uint64_t offset, uint64_t len, bool nowait)
{
	uint64_t got;
	int error;

	if (source->fetch)
		return -EOPNOTSUPP; /* parts that were not fetched are holes: zeros */
	got = nowait ? source_peek(source, to, offset, len, &error)
		     : read_all(source->fd, to, offset, len, 0, &error);
	return error ? -error : (int64_t)got;
}

int64_t source_write(const struct df_source *source, const void *from, uint64_t offset, uint64_t len)
{
	ssize_t n = pwrite(source->fd, from, len, (off_t)offset);

	return n < 0 ? -errno : n;
}

int source_truncate(const struct df_source *source, uint64_t size)
{
	int opened CLEANUP_CLOSE = -1, fd = source->fd;
	char path[64];

	/* A rule also truncates files that are not open for writing. */
	if (!source->writable) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		fd = opened = open(path, O_WRONLY | O_CLOEXEC);
	}
	return fd < 0 || ftruncate(fd, (off_t)size) ? -errno : 0;
}

int source_sync(const struct df_source *source, bool datasync)
{
	return (datasync ? fdatasync(source->fd) : fsync(source->fd)) ? -errno : 0;
}

int source_gup_error(const struct df_source *source, uint64_t offset)
{
	char byte;
	char *map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, source->fd, (off_t)offset);
	struct iovec to = { &byte, 1 }, from = { map, 1 };
	int error;

	if (map == MAP_FAILED)
		return EFAULT; /* cannot be mapped at all: direct I/O files */
	error = process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 ? 0 : errno;
	munmap(map, PAGE);
	return error;
}
