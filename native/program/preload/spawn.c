/* SPDX-License-Identifier: Apache-2.0
 *
 * spawn.c - posix_spawn(), system() and popen().
 *
 * Has spawned programs served, as exec.c does executed ones.  Reads the file before the child is
 * made; a relative path would be another file if the file actions change the child's directory.
 */
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "preload.h"

extern char **environ;

struct spawn {
	pid_t *pid;
	const char *path; /* or `file` of posix_spawnp() */
	const posix_spawn_file_actions_t *actions;
	const posix_spawnattr_t *attributes;
};

static int start_path(const struct target *target, void *arg)
{
	const struct spawn *s = arg;

	if (!next()->posix_spawn)
		return ENOSYS;
	return next()->posix_spawn(s->pid, target->path ? target->path : s->path, s->actions,
				   s->attributes, target->argv, target->envp);
}

static int start_file(const struct target *target, void *arg)
{
	const struct spawn *s = arg;

	if (target->path)
		return start_path(target, arg);
	if (!next()->posix_spawnp)
		return ENOSYS;
	return next()->posix_spawnp(s->pid, s->path, s->actions, s->attributes, target->argv,
				    target->envp);
}

EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
		       const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	struct spawn s = { pid, path, actions, attributes };

	return target_call(path, argv, envp, start_path, &s);
}

EXPORT int posix_spawnp(pid_t *pid, const char *file, const posix_spawn_file_actions_t *actions,
			const posix_spawnattr_t *attributes, char *const argv[], char *const envp[])
{
	struct spawn s = { pid, file, actions, attributes };
	int error = errno;
	char room[PATH_MAX];
	const char *path = find_in_path(file, room);

	errno = error;
	return target_call(path, argv, envp, start_file, &s);
}

/* system() and popen() start a shell with `environ`, by internal calls of libc.  Restores our
 * variables in it; as thread-safe as libc's own use of it. */
static void restore_environ(void)
{
	const char *library = settings()->library;
	const char *const *ours;
	const char *preload;

	if (!settings()->on)
		return;
	for (ours = settings()->environment; *ours; ours++) {
		size_t name = strcspn(*ours, "=");
		char copy[name + 1];

		memcpy(copy, *ours, name);
		copy[name] = '\0';
		if (!getenv(copy))
			putenv((char *)*ours);
	}
	preload = getenv("LD_PRELOAD");
	if (!preload || !*preload) {
		setenv("LD_PRELOAD", library, 1);
	} else if (!preload_lists(preload, library)) {
		char both[strlen(library) + strlen(preload) + 2];

		snprintf(both, sizeof(both), "%s:%s", library, preload);
		setenv("LD_PRELOAD", both, 1);
	}
}

EXPORT int system(const char *command)
{
	int error = errno;

	begin();
	if (!next()->system) {
		errno = ENOSYS;
		return -1;
	}
	if (command)
		restore_environ();
	errno = error;
	return next()->system(command);
}

EXPORT FILE *popen(const char *command, const char *mode)
{
	int error = errno;

	begin();
	if (!next()->popen) {
		errno = ENOSYS;
		return NULL;
	}
	restore_environ();
	errno = error;
	return next()->popen(command, mode);
}
