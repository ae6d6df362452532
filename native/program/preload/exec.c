/* SPDX-License-Identifier: Apache-2.0
 *
 * exec.c - the exec functions.
 *
 * Owns finding the file that each of them is about to execute; target_call() does the rest.  An
 * exec that fails changes nothing.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "preload.h"

extern char **environ;

struct exec {
	int dirfd;
	const char *path; /* or `file` of execvpe() */
	int flags;	  /* AT_* */
};

static int start_path(const struct target *target, void *arg)
{
	const struct exec *e = arg;

	return (int)syscall(SYS_execve, target->path ? target->path : e->path, target->argv,
			    target->envp);
}

static int start_at(const struct target *target, void *arg)
{
	const struct exec *e = arg;

	if (target->path)
		return (int)syscall(SYS_execve, target->path, target->argv, target->envp);
	return (int)syscall(SYS_execveat, e->dirfd, e->path, target->argv, target->envp, e->flags);
}

/* libc's execvpe() searches PATH again, and runs a file that is not an executable with a shell. */
static int start_file(const struct target *target, void *arg)
{
	const struct exec *e = arg;

	if (target->path)
		return (int)syscall(SYS_execve, target->path, target->argv, target->envp);
	if (!next()->execvpe) {
		errno = ENOSYS;
		return -1;
	}
	return next()->execvpe(e->path, target->argv, target->envp);
}

static bool is_executable_file(const char *path)
{
	struct stat st;

	return !faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) && !stat(path, &st) &&
	       S_ISREG(st.st_mode);
}

const char *find_in_path(const char *file, char *room)
{
	const char *dirs = getenv("PATH");
	size_t n, len = strlen(file);

	if (strchr(file, '/'))
		return file;
	if (!dirs)
		dirs = "/bin:/usr/bin"; /* confstr(3), _CS_PATH */
	for (;; dirs += n + 1) {
		n = strcspn(dirs, ":");
		if (n + 1 + len < PATH_MAX) {
			snprintf(room, PATH_MAX, "%.*s%s%s", (int)n, dirs, n ? "/" : "", file);
			if (is_executable_file(room))
				return room;
		}
		if (!dirs[n])
			return NULL;
	}
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
	struct exec e = { .path = path };

	return target_call(path, argv, envp, start_path, &e);
}

EXPORT int execv(const char *path, char *const argv[])
{
	return execve(path, argv, environ);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
	struct exec e = { .path = file };
	int error = errno;
	char room[PATH_MAX];
	const char *path = find_in_path(file, room);

	errno = error;
	return target_call(path, argv, envp, start_file, &e);
}

EXPORT int execvp(const char *file, char *const argv[])
{
	return execvpe(file, argv, environ);
}

/* The tracer takes a path, and has none of our descriptors. */
static const char *path_of(int fd, char *room)
{
	struct stat named, open;
	char link[32];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, room, PATH_MAX - 1);
	if (n < 0)
		return NULL;
	room[n] = '\0';
	if (stat(room, &named) || fstat(fd, &open) || named.st_dev != open.st_dev ||
	    named.st_ino != open.st_ino)
		return NULL; /* it has no name any more */
	return room;
}

static const char *path_at(int dirfd, const char *path, int flags, char *room)
{
	const char *found;
	int fd;

	if (*path == '/' || (*path && dirfd == AT_FDCWD))
		return flags & AT_SYMLINK_NOFOLLOW ? NULL : path;
	if (!*path)
		return flags & AT_EMPTY_PATH ? path_of(dirfd, room) : NULL;
	fd = openat(dirfd, path, O_PATH | O_CLOEXEC | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
	if (fd < 0)
		return NULL;
	found = path_of(fd, room);
	close(fd);
	return found;
}

EXPORT int execveat(int dirfd, const char *path, char *const argv[], char *const envp[], int flags)
{
	struct exec e = { .dirfd = dirfd, .path = path, .flags = flags };
	int error = errno;
	char room[PATH_MAX];
	const char *name = path_at(dirfd, path, flags, room);

	errno = error;
	return target_call(name, argv, envp, start_at, &e);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
	if (fd < 0) {
		errno = EINVAL;
		return -1;
	}
	return execveat(fd, "", argv, envp, AT_EMPTY_PATH);
}

/* ---- arguments one by one */

static size_t count_arguments(const char *first, va_list args)
{
	size_t n = 0;

	for (; first; first = va_arg(args, const char *))
		n++;
	return n;
}

static void take_arguments(char **argv, const char *first, va_list args)
{
	for (*argv = (char *)first; *argv; *++argv = va_arg(args, char *))
		;
}

/* Declares `argv` in the calling function, and leaves `args` after the NULL. */
#define TAKE_ARGUMENTS(argv, first, args) \
	va_start(args, first); \
	char *argv[count_arguments(first, args) + 1]; \
	va_end(args); \
	va_start(args, first); \
	take_arguments(argv, first, args)

EXPORT int execl(const char *path, const char *arg, ...)
{
	va_list args;

	TAKE_ARGUMENTS(argv, arg, args);
	va_end(args);
	return execve(path, argv, environ);
}

EXPORT int execlp(const char *file, const char *arg, ...)
{
	va_list args;

	TAKE_ARGUMENTS(argv, arg, args);
	va_end(args);
	return execvpe(file, argv, environ);
}

EXPORT int execle(const char *path, const char *arg, ...)
{
	char *const *envp;
	va_list args;

	TAKE_ARGUMENTS(argv, arg, args);
	envp = va_arg(args, char *const *);
	va_end(args);
	return execve(path, argv, envp);
}
