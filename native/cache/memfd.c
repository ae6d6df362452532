/* SPDX-License-Identifier: Apache-2.0
 *
 * memfd.c - the memfd that is a file's page cache: makes it, duplicates its descriptor, finds it by
 * its inode, and releases it.  Must not read or write its pages (pages.c), nor decide when a file's
 * size changes.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/reserve.h"
#include "cache.h"
#include "keeper/keep.h"

/* Files with a page cache, to find the file of a program's mapping by the memfd's inode. */
static pthread_mutex_t active_lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static struct df_file *active;

/* A file may be found here while its last reference goes. */
static bool get_unless_gone(struct df_file *file)
{
	int refs = atomic_load(&file->refs);

	while (refs && !atomic_compare_exchange_weak(&file->refs, &refs, refs + 1))
		;
	return refs;
}

struct df_file *file_other_locked(const struct df_file *than)
{
	struct df_file *oldest = NULL;

	GUARD(&active_lock);
	for (struct df_file *file = active; file; file = file->next_active)
		if (file != than && (!oldest || atomic_load(&file->used) < atomic_load(&oldest->used)))
			oldest = file;
	/* busy: the next caller that needs room tries again */
	if (oldest &&
	    (atomic_load(&oldest->used) == NOTHING_CLEAN || pthread_mutex_trylock(&oldest->lock)))
		oldest = NULL;
	if (oldest && !get_unless_gone(oldest)) {
		pthread_mutex_unlock(&oldest->lock);
		oldest = NULL;
	}
	return oldest;
}

void file_deactivate(struct df_file *file)
{
	if (file->cache < 0)
		return;
	pthread_mutex_lock(&active_lock);
	*file->before_active = file->next_active;
	if (file->next_active)
		file->next_active->before_active = file->before_active;
	pthread_mutex_unlock(&active_lock);
	/* A program that goes on without its host gets SIGBUS, because its stores would be lost. */
	if (file->sized && ftruncate(file->cache, 0)) {
		/* there is nothing left to try */
	}
	if (file->sized) {
		keep_nothing(DF_KEEP_SOURCE, file->id);
		keep_nothing(DF_KEEP_CACHE, file->id);
	}
	close(file->cache);
	file->cache = -1;
}

struct df_file *file_of_cache(dev_t device, uint64_t inode)
{
	GUARD(&active_lock);
	for (struct df_file *file = active; file; file = file->next_active)
		if (file->cache_inode == inode && file->cache_device == device &&
		    get_unless_gone(file))
			return file;
	return NULL;
}

static uint64_t cache_size(const struct df_file *file)
{
	return !file->sized || file->size > CACHE_SIZE ? CACHE_SIZE : file_end(file);
}

void file_fit(struct df_file *file)
{
	struct stat st;

	if (!file->sized || fstat(file->cache, &st) || (uint64_t)st.st_size == cache_size(file))
		return;
	if (ftruncate(file->cache, (off_t)cache_size(file))) {
		/* no memory to split a page: what is past EOF stays until the next try */
	}
}

/* Make the memfd.  If the host decides faults past EOF, its i_size is huge and sealed, so that
 * accesses past EOF always fault, and no guest can change it.  For programs (`sized`) it is the
 * file's size in whole pages, and the kernel handles truncation and accesses past EOF.  That
 * memfd must forbid seals, because a program's F_SEAL_SHRINK would make truncations fail. */
int file_activate(struct df_file *file, bool sized)
{
	unsigned int sealing = sized ? 0 : MFD_ALLOW_SEALING;
	struct stat st;
	char name[64];
	int fd;

	if (file->ended)
		return -ENODEV;
	if (file->cache >= 0)
		return file->sized == sized ? 0 : -EBUSY;
	snprintf(name, sizeof(name), "daxfault:%llu", (unsigned long long)file->id);
	fd = memfd_create(name, MFD_CLOEXEC | sealing);
	if (fd < 0)
		return -errno;
	fd = df_reserve(fd, DF_RESERVE_FILES);
	if (fd < 0)
		return fd;
	file->sized = sized;
	/* mode 0600: a descriptor handed out read-only cannot be reopened for
	 * writing through /proc by another user */
	if (fchmod(fd, 0600) || ftruncate(fd, (off_t)cache_size(file)) || fstat(fd, &st) ||
	    (!sized && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))) {
		int error = -errno;

		close(fd);
		return error;
	}
	file->cache = fd;
	if (sized)
		keep(DF_KEEP_CACHE, file->id, fd);
	if (file->source.writable)
		file_keep_source(file);
	GUARD(&active_lock);
	file->cache_device = st.st_dev;
	file->cache_inode = st.st_ino;
	file->next_active = active;
	file->before_active = &active;
	if (active)
		active->before_active = &file->next_active;
	active = file;
	return 0;
}

void file_keep_source(struct df_file *file)
{
	if (file->cache < 0 || !file->sized)
		return;
	keep_nothing(DF_KEEP_SOURCE, file->id); /* open for reading only */
	keep(DF_KEEP_SOURCE, file->id, file->source.fd);
}

int file_cache_fd(struct df_file *file, bool writable)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", file->cache);
	fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}
