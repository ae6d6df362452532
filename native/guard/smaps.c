/* SPDX-License-Identifier: Apache-2.0
 *
 * smaps.c - reading /proc/self/smaps (proc_pid_smaps(5)), in a signal handler if need be.
 *
 * The kernel walks page tables for it: it is asked once for each mapping that fails, and by
 * system calls alone.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "smaps.h"

enum {
	LINE = 256,			/* of longer ones, which have a path in them, the beginning */
};

static bool has(const char *flags, const char *flag)
{
	for (const char *at = flags; (at = strstr(at, flag)); at += 2)
		if (at > flags && at[-1] == ' ' && (at[2] == ' ' || !at[2]))
			return true;
	return false;
}

/* -> whether that was the last line of interest */
static bool line_read(const char *line, uint64_t start, bool *here, struct smaps_flags *out)
{
	static const char flags[] = "VmFlags:";
	char *end;
	uint64_t address;

	if (*here && !strncmp(line, flags, sizeof(flags) - 1)) {
		out->registered = has(line, "um") || has(line, "uw") || has(line, "ui");
		out->huge = has(line, "ht");
		return true;
	}
	address = strtoull(line, &end, 16);
	if (end > line && *end == '-')
		*here = address == start;
	return false;
}

void smaps_find(uint64_t start, struct smaps_flags *out)
{
	static char text[4096], line[LINE];
	bool here = false, done = false;
	size_t used = 0;
	ssize_t n;
	int fd;

	*out = (struct smaps_flags){ 0 };
	fd = open("/proc/self/smaps", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	while (!done && (n = read(fd, text, sizeof(text))) > 0) {
		for (ssize_t i = 0; i < n && !done; i++) {
			if (text[i] != '\n') {
				if (used < LINE - 1)
					line[used++] = text[i];
				continue;
			}
			line[used] = 0;
			used = 0;
			done = line_read(line, start, &here, out);
		}
	}
	close(fd);
}
