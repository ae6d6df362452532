/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.c - reads the mappings of a process from the kernel: see maps.h.
 *
 * Looks one mapping up by PROCMAP_QUERY (Linux 6.11), on older kernels in the text.
 */
#include "maps.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "abi/compat.h"

enum {
	LINE_KEPT = 160, /* enough for the fields and the beginning of the name, or VmFlags */
};

static int open_file(int task, const char *file)
{
	char path[32];
	long fd;

	if (task)
		snprintf(path, sizeof(path), "/proc/%d/%s", task, file);
	else
		snprintf(path, sizeof(path), "/proc/self/%s", file);
	fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	return fd < 0 ? -errno : (int)fd;
}

int maps_open(int task)
{
	return open_file(task, "maps");
}

int maps_open_flags(int task)
{
	return open_file(task, "smaps");
}

static uint64_t number(const char **text, int base)
{
	uint64_t value = 0;

	for (;; (*text)++) {
		char c = **text;

		if (c >= '0' && c <= '9')
			value = value * (uint64_t)base + (uint64_t)(c - '0');
		else if (base == 16 && c >= 'a' && c <= 'f')
			value = value * 16 + (uint64_t)(c - 'a' + 10);
		else
			return value;
	}
}

static bool skip(const char **text, char c)
{
	if (**text != c)
		return false;
	(*text)++;
	return true;
}

/* "start-end perms offset major:minor inode   name".  The other lines of smaps begin with a
 * capital letter. */
static bool parse(const char *line, struct maps_area *out)
{
	unsigned int major;

	*out = (struct maps_area){ .start = number(&line, 16) };
	if (!skip(&line, '-'))
		return false;
	out->end = number(&line, 16);
	if (!skip(&line, ' ') || strnlen(line, 5) < 5)
		return false;
	out->prot = (line[0] == 'r' ? PROT_READ : 0) | (line[1] == 'w' ? PROT_WRITE : 0) |
		    (line[2] == 'x' ? PROT_EXEC : 0);
	out->shared = line[3] == 's';
	line += 5;
	out->offset = number(&line, 16);
	if (!skip(&line, ' '))
		return false;
	major = (unsigned int)number(&line, 16);
	if (!skip(&line, ':'))
		return false;
	out->device = makedev(major, (unsigned int)number(&line, 16));
	if (!skip(&line, ' '))
		return false;
	out->inode = number(&line, 10);
	while (skip(&line, ' '))
		;
	memcpy(out->name, line, strnlen(line, MAPS_NAME - 1));
	return true;
}

static unsigned int flags_of(const char *line)
{
	static const struct {
		char name[4];
		enum maps_flag flag;
	} known[] = {
		{ " um", MAPS_UFFD },	 { " uw", MAPS_UFFD },	   { " ui", MAPS_UFFD },
		{ " ht", MAPS_HUGETLB }, { " dd", MAPS_DONTDUMP }, { " lo", MAPS_LOCKED },
	};
	unsigned int flags = 0;
	size_t i;

	for (i = 0; i < sizeof(known) / sizeof(*known); i++)
		if (strstr(line, known[i].name))
			flags |= known[i].flag;
	return flags;
}

struct walk {
	bool (*visit)(const struct maps_area *, void *);
	void *arg;
	struct maps_area area; /* not passed to `visit` yet: its flags are in a later line */
	bool pending;
};

static bool show(struct walk *w)
{
	bool pending = w->pending;

	w->pending = false;
	return pending && w->visit(&w->area, w->arg);
}

static bool read_line(struct walk *w, const char *line)
{
	static const char flags[] = "VmFlags:";

	if (*line < 'A' || *line > 'Z') {
		if (show(w))
			return true;
		w->pending = parse(line, &w->area);
	} else if (!strncmp(line, flags, sizeof(flags) - 1)) {
		w->area.flags = flags_of(line);
	}
	return false;
}

int maps_each(int maps, bool (*visit)(const struct maps_area *, void *), void *arg)
{
	struct walk w = { .visit = visit, .arg = arg };
	char text[1024], line[LINE_KEPT];
	size_t kept = 0;
	long n, i;

	if (syscall(SYS_lseek, maps, 0, SEEK_SET) < 0)
		return -errno;
	while ((n = syscall(SYS_read, maps, text, sizeof(text)))) {
		if (n < 0 && errno != EINTR)
			return -errno;
		for (i = 0; i < n; i++) {
			if (text[i] != '\n') {
				if (kept < sizeof(line) - 1)
					line[kept++] = text[i];
				continue;
			}
			line[kept] = '\0';
			kept = 0;
			if (read_line(&w, line))
				return 1;
		}
	}
	return show(&w);
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
		.prot = (int)q.vma_flags & (PROT_READ | PROT_WRITE | PROT_EXEC), /* the same bits */
		.shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED,
	};
	return 0;
}

struct wanted {
	uint64_t address;
	struct maps_area *out;
};

static bool ends_after(const struct maps_area *area, void *arg)
{
	const struct wanted *w = arg;

	if (area->end <= w->address)
		return false;
	*w->out = *area;
	return true;
}

int maps_find(int maps, uint64_t address, struct maps_area *out)
{
	struct wanted w = { address, out };
	int r = query(maps, address, out);

	if (r != -ENOTTY)
		return r;
	r = maps_each(maps, ends_after, &w);
	return r > 0 ? 0 : r ? r : -ENOENT;
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

	/* The first thread may have ended before the others; it has no address space then. */
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
