/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.c - asking the kernel what a process has mapped: PROCMAP_QUERY where there is
 * one (Linux 6.11), else the text of proc_pid_maps(5).  Must not know guests or files.
 *
 * The kernel is asked, not the process: it cannot lie, and need not tell us of every
 * mremap() and mprotect().
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "abi/compat.h"
#include "maps.h"

int maps_open(int task)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/maps", task);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static int query(int maps, uint64_t address, struct maps_area *out)
{
	struct procmap_query q = {
		.size = sizeof(q),
		.query_flags = PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
		.query_addr = address,
	};

	if (ioctl(maps, PROCMAP_QUERY, &q))
		return -errno;
	*out = (struct maps_area){
		.start = q.vma_start,
		.end = q.vma_end,
		.offset = q.vma_offset,
		.inode = q.inode,
		.device = makedev(q.dev_major, q.dev_minor),
		.prot = (int)q.vma_flags & (PROT_READ | PROT_WRITE | PROT_EXEC),	/* the same bits */
		.shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED,
	};
	return 0;
}

static bool parse(const char *line, struct maps_area *out)
{
	unsigned long long start, end, offset, inode;
	unsigned int major, minor;
	char rights[5];

	if (sscanf(line, "%llx-%llx %4s %llx %x:%x %llu", &start, &end, rights, &offset, &major,
		   &minor, &inode) != 7)
		return false;
	*out = (struct maps_area){
		.start = start,
		.end = end,
		.offset = offset,
		.inode = inode,
		.device = makedev(major, minor),
		.prot = (rights[0] == 'r' ? PROT_READ : 0) | (rights[1] == 'w' ? PROT_WRITE : 0) |
			(rights[2] == 'x' ? PROT_EXEC : 0),
		.shared = rights[3] == 's',
	};
	return true;
}

/* Before 6.11: line by line.  A read returns whole lines (fs/seq_file.c). */
static int scan(int maps, uint64_t address, struct maps_area *out)
{
	char text[8192];
	ssize_t n;

	if (lseek(maps, 0, SEEK_SET) < 0)
		return -errno;
	while ((n = read(maps, text, sizeof(text) - 1)) > 0) {
		text[n] = 0;
		for (char *line = text, *next; *line; line = next) {
			next = strchr(line, '\n');
			if (!next)
				return -EIO;
			*next++ = 0;
			if (parse(line, out) && out->end > address)
				return 0;
		}
	}
	return n < 0 ? -errno : -ENOENT;
}

int maps_find(int maps, uint64_t address, struct maps_area *out)
{
	int error = query(maps, address, out);

	return error == -ENOTTY ? scan(maps, address, out) : error;
}

static bool shows_anything(int maps)
{
	struct maps_area area;

	return maps >= 0 && !maps_find(maps, 0, &area);
}

int maps_of_process(int process)
{
	int maps = maps_open(process);
	struct dirent *entry;
	char path[32];
	DIR *tasks;

	/* Its first thread may have ended before the others, and has no memory then. */
	if (maps < 0 || shows_anything(maps))
		return maps;
	snprintf(path, sizeof(path), "/proc/%d/task", process);
	tasks = opendir(path);
	while (tasks && !shows_anything(maps) && (entry = readdir(tasks))) {
		if (maps >= 0)
			close(maps);
		maps = maps_open(atoi(entry->d_name));
	}
	if (tasks)
		closedir(tasks);
	return maps;
}
