/* SPDX-License-Identifier: Apache-2.0
 *
 * main.c - daxfault-tracer [--argv0 NAME] PATH [ARGUMENT...]
 *
 * Runs any program, including statically linked ones, so that its mappings of files on the mount
 * are served.  Owns the command line and the program's environment.  Removes the host's socket and
 * the preloaded library from it: only one of library and tracer may act.
 *
 *   DAXFAULT_SOCKET   the host's socket
 *   DAXFAULT_DEVICE   st_dev of the mount, decimal
 *
 * Exit status: the program's, because this process becomes the program; 125 if tracing fails, 126
 * if PATH cannot be executed, 127 if it does not exist.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracer.h"

#define LIBRARY "libdaxfault.so"

enum {
	FAILED = 125,
	NOT_EXECUTABLE = 126,
	NOT_FOUND = 127,
};

static void usage(void)
{
	fprintf(stderr, "usage: daxfault-tracer [--argv0 NAME] PATH [ARGUMENT...]\n");
	exit(FAILED);
}

static void read_environment(void)
{
	const char *device = getenv("DAXFAULT_DEVICE");
	char *end = NULL;

	tracer.socket = getenv("DAXFAULT_SOCKET");
	if (!tracer.socket || !*tracer.socket) {
		fprintf(stderr, "daxfault-tracer: DAXFAULT_SOCKET is not set\n");
		exit(FAILED);
	}
	if (device && *device >= '0' && *device <= '9')
		tracer.device = strtoull(device, &end, 10);
	if (!end || *end) {
		fprintf(stderr, "daxfault-tracer: DAXFAULT_DEVICE is not a decimal number: %s\n",
			device ? device : "(not set)");
		exit(FAILED);
	}
	tracer.socket = strdup(tracer.socket);
	if (!tracer.socket) {
		fprintf(stderr, "daxfault-tracer: out of memory\n");
		exit(FAILED);
	}
}

static bool is_library(const char *path, size_t len)
{
	size_t n = sizeof(LIBRARY) - 1;

	return len >= n && !memcmp(path + len - n, LIBRARY, n) &&
	       (len == n || path[len - n - 1] == '/');
}

/* Other libraries stay in LD_PRELOAD, in order. */
static void clean_environment(void)
{
	const char *old = getenv("LD_PRELOAD");
	char *kept, *out;
	size_t n;

	unsetenv("DAXFAULT_SOCKET");
	if (!old)
		return;
	kept = out = calloc(strlen(old) + 1, 1);
	for (; kept && *old; old += n + (old[n] != '\0')) {
		n = strcspn(old, ": ");
		if (!n || is_library(old, n))
			continue;
		if (out != kept)
			*out++ = ':';
		out = mempcpy(out, old, n);
	}
	if (kept && *kept)
		setenv("LD_PRELOAD", kept, 1);
	else
		unsetenv("LD_PRELOAD");
	free(kept);
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "argv0", required_argument, NULL, '0' },
		{ 0 },
	};
	const char *name = NULL, *path;
	int option;

	while ((option = getopt_long(argc, argv, "+", options, NULL)) != -1) {
		if (option != '0')
			usage();
		name = optarg;
	}
	if (optind == argc)
		usage();
	path = argv[optind];
	read_environment();
	clean_environment();
	start_tracing();
	if (name)
		argv[optind] = (char *)name;
	/* a library preloaded into this process may interpose execve() */
	syscall(SYS_execve, path, argv + optind, environ);
	fprintf(stderr, "daxfault-tracer: %s: %s\n", path, strerror(errno));
	return errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
}
