/* SPDX-License-Identifier: Apache-2.0
 *
 * cache_maps.c - which of a process's mappings show page caches: see cache_maps.h.
 *
 * A page cache is a memfd of the host's, known by its name (native/cache/file.c).  A program
 * that gives a memfd of its own such a name is served the worse for it, and nobody else.
 */
#include "cache_maps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define CACHE_NAME "/memfd:daxfault:"

enum {
	LINE_KEPT = 160,		/* enough for the fields and the beginning of the name */
};

/* "start-end perms offset major:minor inode   name" (proc_pid_maps(5)) */
static const char *hex(const char *p, uint64_t *out)
{
	uint64_t v = 0;

	for (;; p++) {
		if (*p >= '0' && *p <= '9')
			v = v << 4 | (uint64_t)(*p - '0');
		else if (*p >= 'a' && *p <= 'f')
			v = v << 4 | (uint64_t)(*p - 'a' + 10);
		else
			break;
	}
	*out = v;
	return p;
}

static bool parse(const char *line, struct cache_mapping *m)
{
	const char *p = hex(line, &m->start);
	int field;

	if (*p != '-')
		return false;
	p = hex(p + 1, &m->end);
	if (*p != ' ' || strnlen(p, 5) < 5)
		return false;
	m->private = p[4] == 'p';
	for (field = 0; field < 4; field++) {
		p = strchr(p + 1, ' ');
		if (!p)
			return false;
	}
	while (*p == ' ')
		p++;
	return !strncmp(p, CACHE_NAME, sizeof(CACHE_NAME) - 1);
}

int maps_each_cache(const char *maps, uint64_t start, uint64_t end,
		    bool (*visit)(const struct cache_mapping *, void *), void *arg)
{
	char buf[1024], line[LINE_KEPT];
	long fd = syscall(SYS_openat, AT_FDCWD, maps, O_RDONLY | O_CLOEXEC, 0);
	struct cache_mapping m;
	size_t kept = 0;
	int result = 0;
	long n, i;

	if (fd < 0)
		return -errno;
	while (!result && (n = syscall(SYS_read, fd, buf, sizeof(buf)))) {
		if (n < 0) {
			if (errno == EINTR)
				continue;
			result = -errno;
			break;
		}
		for (i = 0; i < n && !result; i++) {
			if (buf[i] != '\n') {
				if (kept < sizeof(line) - 1)
					line[kept++] = buf[i];
				continue;
			}
			line[kept] = '\0';
			kept = 0;
			if (parse(line, &m) && m.start < end && start < m.end && visit(&m, arg))
				result = 1;
		}
	}
	syscall(SYS_close, fd);
	return result;
}
