/* SPDX-License-Identifier: Apache-2.0
 *
 * target.c - changes an exec or a spawn so that the new program is served.
 *
 * Owns two changes.  It adds LD_PRELOAD and DAXFAULT_* to an environment that lacks them, and keeps
 * existing ones, which may belong to a nested host.  And it starts a program for which LD_PRELOAD
 * does not work (elf.h) through the tracer, as `TRACER --argv0 NAME PATH ARGUMENT...`.  It does not
 * if this process is traced already: that tracer, ours or a debugger, also traces the child, and
 * there can be only one.
 *
 * It may run between vfork() and exec, so its memory is the stack or, for large arguments, a
 * mapping that stays in the parent.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/elf.h"
#include "preload.h"

#define PRELOAD "LD_PRELOAD="

enum {
	ON_STACK = 4096,       /* threads may have as little as PTHREAD_STACK_MIN */
	TRACER_WORDS = 4,      /* TRACER --argv0 NAME PATH */
	ENVIRONMENT_WORDS = 7, /* our variables, and NULL */
};

struct plan {
	char *const *argv, *const *envp; /* never NULL */
	size_t argc, envc;
	char *const *preload; /* the environment's LD_PRELOAD, or NULL */
	bool preloaded;	      /* this library is in it */
	bool missing;	      /* one of our variables is not in it */
	bool traced;
	size_t room; /* bytes that carry_out() needs */
};

static size_t count(char *const *list)
{
	size_t n = 0;

	while (list[n])
		n++;
	return n;
}

static bool same_name(const char *a, const char *b)
{
	size_t n = strcspn(a, "=");

	return strcspn(b, "=") == n && !strncmp(a, b, n);
}

static char *const *find(char *const *envp, const char *entry)
{
	for (; *envp; envp++) {
		if (same_name(*envp, entry))
			return envp;
	}
	return NULL;
}

bool preload_lists(const char *paths, const char *path)
{
	size_t len = strlen(path), n;

	for (; *paths; paths += n + (paths[n] != '\0')) {
		n = strcspn(paths, ": ");
		if (n == len && !strncmp(paths, path, n))
			return true;
	}
	return false;
}

static bool is_traced(void)
{
	static const char field[] = "TracerPid:\t";
	char buf[2048], *at;
	long fd = syscall(SYS_openat, AT_FDCWD, "/proc/self/status", O_RDONLY | O_CLOEXEC, 0);
	long n;

	if (fd < 0)
		return false;
	n = syscall(SYS_read, fd, buf, sizeof(buf) - 1);
	syscall(SYS_close, fd);
	if (n <= 0)
		return false;
	buf[n] = '\0';
	at = strstr(buf, field);
	return at && at[sizeof(field) - 1] != '0';
}

static bool wants_tracer(const char *path)
{
	const char *tracer = settings()->tracer;

	return tracer && path && program_kind(path) == PROGRAM_RAW &&
	       !faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) && !is_traced() &&
	       !faccessat(AT_FDCWD, tracer, X_OK, AT_EACCESS);
}

static void make_plan(struct plan *plan, const char *path, char *const *argv, char *const *envp)
{
	static char *const none[] = { NULL };
	const char *const *ours;

	*plan = (struct plan){ .argv = argv ? argv : none, .envp = envp ? envp : none };
	plan->argc = count(plan->argv);
	plan->envc = count(plan->envp);
	plan->preload = find(plan->envp, PRELOAD);
	plan->preloaded = plan->preload &&
			  preload_lists(*plan->preload + strlen(PRELOAD), settings()->library);
	plan->missing = !plan->preloaded;
	for (ours = settings()->environment; *ours && !plan->missing; ours++)
		plan->missing = !find(plan->envp, *ours);
	plan->traced = wants_tracer(path);
	if (plan->traced)
		plan->room += (plan->argc + TRACER_WORDS + 1) * sizeof(char *);
	if (plan->missing)
		plan->room += (plan->envc + ENVIRONMENT_WORDS) * sizeof(char *) + sizeof(PRELOAD) +
			      strlen(settings()->library) + 1 +
			      (plan->preload ? strlen(*plan->preload) : 0);
}

static char **fill_arguments(const struct plan *plan, const char *path, char **out)
{
	char **argv = out;
	size_t i;

	*out++ = (char *)settings()->tracer;
	*out++ = "--argv0";
	*out++ = plan->argc ? plan->argv[0] : "";
	*out++ = (char *)path;
	for (i = 1; i < plan->argc; i++)
		*out++ = plan->argv[i];
	*out++ = NULL;
	return argv;
}

static char **fill_environment(const struct plan *plan, char **out)
{
	const char *library = settings()->library;
	char **envp = out, *text = (char *)(out + plan->envc + ENVIRONMENT_WORDS);
	const char *const *ours;
	size_t i;

	for (i = 0; i < plan->envc; i++) {
		if (plan->preloaded || &plan->envp[i] != plan->preload)
			*out++ = plan->envp[i];
	}
	for (ours = settings()->environment; *ours; ours++) {
		if (!find(plan->envp, *ours))
			*out++ = (char *)*ours;
	}
	if (plan->preloaded) {
		*out = NULL;
		return envp;
	}
	*out++ = text;
	text = stpcpy(stpcpy(text, PRELOAD), library);
	if (plan->preload && (*plan->preload)[strlen(PRELOAD)])
		stpcpy(stpcpy(text, ":"), *plan->preload + strlen(PRELOAD));
	*out = NULL;
	return envp;
}

static int carry_out(const struct plan *plan, const char *path, char **room, target_start start,
		     void *arg)
{
	struct target target = { .argv = plan->argv, .envp = plan->envp };

	if (plan->traced) {
		target.path = settings()->tracer;
		target.argv = fill_arguments(plan, path, room);
		room += plan->argc + TRACER_WORDS + 1;
	}
	if (plan->missing)
		target.envp = fill_environment(plan, room);
	return start(&target, arg);
}

static int on_stack(const struct plan *plan, const char *path, target_start start, void *arg)
{
	char *room[plan->room / sizeof(char *) + 1];

	return carry_out(plan, path, room, start, arg);
}

static int in_mapping(const struct plan *plan, const char *path, target_start start, void *arg)
{
	long at = syscall(SYS_mmap, NULL, plan->room, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int r, error;

	if (at == -1)
		return -1;
	r = carry_out(plan, path, (char **)at, start, arg);
	error = errno;
	syscall(SYS_munmap, at, plan->room);
	errno = error;
	return r;
}

int target_call(const char *path, char *const *argv, char *const *envp, target_start start, void *arg)
{
	struct target as_asked = { .argv = argv, .envp = envp };
	int error = errno;
	struct plan plan;

	begin();
	if (!settings()->on)
		return start(&as_asked, arg);
	make_plan(&plan, path, argv, envp);
	errno = error;
	if (!plan.room)
		return start(&as_asked, arg);
	if (plan.room <= ON_STACK)
		return on_stack(&plan, path, start, arg);
	return in_mapping(&plan, path, start, arg);
}
