/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.c - experiments on the running kernel: see probe.h.
 *
 * Owns the child process that runs them, so that their signals never reach the caller.
 * Must not know the engine or the guests.
 */
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "probe.h"
#include "uffd.h"

/* The child's exit status: a si_code below 128, otherwise an errno plus 128.
 * Every errno of these calls is below 128. */
#define FAILED(error) (128 + (error))

static void on_sigbus(int signal, siginfo_t *event, void *context)
{
	(void)signal;
	(void)context;
	_exit(event->si_code > 0 && event->si_code < 128 ? event->si_code : FAILED(EPROTO));
}

/* Runs in a child of a process that may have threads: system calls only. */
static _Noreturn void touch_poison(void)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	uint64_t done;
	sigset_t none;
	char *page;
	int uffd;
	int error;

	sigemptyset(&none);
	if (sigaction(SIGBUS, &action, NULL) || sigprocmask(SIG_SETMASK, &none, NULL))
		_exit(FAILED(errno));
	/* the faults of this experiment are user-mode ones: ask for no more */
	uffd = df_uffd_open(1);
	if (uffd < 0)
		uffd = df_uffd_open(0);
	if (uffd < 0)
		_exit(FAILED(-uffd));
	error = df_uffd_api(uffd, UFFD_FEATURE_POISON);
	if (error)
		_exit(FAILED(-error));
	page = mmap(NULL, DF_PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED)
		_exit(FAILED(errno));
	reg.range.start = (uintptr_t)page;
	reg.range.len = DF_PAGE_SIZE;
	if (ioctl(uffd, UFFDIO_REGISTER, &reg))
		_exit(FAILED(errno));
	error = uffd_poison(uffd, reg.range.start, DF_PAGE_SIZE, &done);
	if (error)
		_exit(FAILED(-error));
	(void)*(volatile char *)page;
	_exit(FAILED(ENODATA)); /* it was read as if nothing were wrong */
}

int df_probe_poison(void)
{
	int status;
	pid_t child = fork();

	if (child < 0)
		return -errno;
	if (!child)
		touch_poison();
	while (waitpid(child, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	if (!WIFEXITED(status))
		return -EPROTO;
	return WEXITSTATUS(status) < 128 ? WEXITSTATUS(status) : 128 - WEXITSTATUS(status);
}
