/* SPDX-License-Identifier: Apache-2.0
 *
 * settings.c - the settings from the environment, and the functions behind the interposed ones.
 *
 * Owns copies, because a program may clear its environment.
 */
#include "preload.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(long) == 8, "mmap() and mmap64() are the same");

static struct settings set;
static struct next behind;

static char socket_copy[sizeof("DAXFAULT_SOCKET=") + PATH_MAX];
static char device_copy[64];
static char mount_copy[sizeof("DAXFAULT_MOUNT=") + PATH_MAX];
static char stacks_copy[] = "DAXFAULT_STACKS=1";
static char tracer_copy[sizeof("DAXFAULT_TRACER=") + PATH_MAX];
static char library_copy[PATH_MAX];

/* Keep "name=value" in `room`.  -> the value, or NULL if it is unset or empty.  A value that is too
 * long is cut, so that every mmap() fails; without an error, mappings would silently not be served. */
static const char *keep(const char *name, char *room, size_t size)
{
	const char *value = getenv(name);

	if (!value || !*value)
		return NULL;
	snprintf(room, size, "%s=%s", name, value);
	return room + strlen(name) + 1;
}

static bool device_number(const char *text, dev_t *out)
{
	char *end;

	*out = strtoull(text, &end, 10);
	return *text >= '0' && *text <= '9' && !*end;
}

static void read_environment(void)
{
	const char *device = keep("DAXFAULT_DEVICE", device_copy, sizeof(device_copy));
	const char *stacks = getenv("DAXFAULT_STACKS");
	Dl_info here;
	int n = 0;

	set.socket = keep("DAXFAULT_SOCKET", socket_copy, sizeof(socket_copy));
	if (!set.socket || !device || !device_number(device, &set.device))
		return;
	/* LD_PRELOAD may contain a path relative to the working directory at the start */
	if (!dladdr(&set, &here) || !here.dli_fname || !realpath(here.dli_fname, library_copy))
		return;
	set.library = library_copy;
	set.environment[n++] = socket_copy;
	set.environment[n++] = device_copy;
	if (keep("DAXFAULT_MOUNT", mount_copy, sizeof(mount_copy)))
		set.environment[n++] = mount_copy;
	set.tracer = keep("DAXFAULT_TRACER", tracer_copy, sizeof(tracer_copy));
	if (set.tracer)
		set.environment[n++] = tracer_copy;
	set.stacks = stacks && !strcmp(stacks, "1");
	if (set.stacks)
		set.environment[n++] = stacks_copy;
	set.on = true;
}

static void find_next(void)
{
	*(void **)&behind.fork = dlsym(RTLD_NEXT, "_Fork");
	*(void **)&behind.execvpe = dlsym(RTLD_NEXT, "execvpe");
	*(void **)&behind.posix_spawn = dlsym(RTLD_NEXT, "posix_spawn");
	*(void **)&behind.system = dlsym(RTLD_NEXT, "system");
	*(void **)&behind.popen = dlsym(RTLD_NEXT, "popen");
	*(void **)&behind.posix_spawnp = dlsym(RTLD_NEXT, "posix_spawnp");
}

/* The first backtrace() loads the unwinder, which is not possible in a signal handler. */
static void warm_stacks(void)
{
	void *frame;

	*(void **)&set.backtrace = dlsym(RTLD_DEFAULT, "backtrace");
	if (set.backtrace)
		set.backtrace(&frame, 1);
}

static atomic_bool published;

const struct settings *settings_read(void)
{
	find_next();
	read_environment();
	if (set.stacks)
		warm_stacks();
	return &set;
}

void settings_publish(void)
{
	atomic_store_explicit(&published, true, memory_order_release);
}

const struct settings *settings(void)
{
	static const struct settings off;

	return atomic_load_explicit(&published, memory_order_acquire) ? &set : &off;
}

const struct next *next(void)
{
	return &behind;
}
