/* SPDX-License-Identifier: Apache-2.0
 *
 * fork.c - prepares a forked child before program code runs in it.
 *
 * Owns the mappings that it inherits.  If the kernel notifies the host of forks (EVENT_FORK, which
 * requires CAP_SYS_PTRACE), they are served already.  Otherwise they are plain mappings of a memfd
 * whose missing pages would read as zeros, so the child has them served again.  If that fails,
 * every access to them raises SIGBUS, or fails with EFAULT, as past the end of a file; the child
 * can still exec.
 *
 * A clone(2) without CLONE_VM is not interposed.  So if the kernel does not notify the host,
 * mappings are MADV_DONTFORK except during fork() and _Fork().  A child of clone(2) does not have
 * them: it gets SIGSEGV where it would have read zeros.
 */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "preload.h"

static struct {
	bool held;
	uint64_t mask;
} forking; /* of the thread that forks, from before() to after_in_*() */

static bool advise(const struct maps_area *m, void *advice)
{
	syscall(SYS_madvise, m->start, m->end - m->start, *(int *)advice);
	return false;
}

/* `held`: the connection may be closed, to free its descriptor if no other is left. */
static void share_with_children(bool share, bool held)
{
	int advice = share ? MADV_DOFORK : MADV_DONTFORK;

	if (!wire_mapped() || !wire_unfollowed())
		return;
	if (cache_maps_each(MAPS_SELF, 0, USER_END, advise, &advice) == -EMFILE && held && wire_drop())
		cache_maps_each(MAPS_SELF, 0, USER_END, advise, &advice);
}

static bool make_unreadable(const struct maps_area *m, void *empty)
{
	int fd = *(int *)empty;
	long r;

	r = syscall(SYS_mmap, m->start, m->end - m->start,
		    fd < 0 ? PROT_NONE : PROT_READ | PROT_WRITE,
		    MAP_FIXED | (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED), fd, 0);
	return r == -1;
}

static void die(void)
{
	static const char why[] =
		"daxfault: a forked child's mappings can neither be served nor removed\n";

	syscall(SYS_write, STDERR_FILENO, why, sizeof(why) - 1);
	syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
}

/* Replaces the mappings by an empty file, or else by PROT_NONE: SIGSEGV, but never zeros. */
static void withdraw(void)
{
	int empty = (int)syscall(SYS_memfd_create, "daxfault-withdrawn", MFD_CLOEXEC);

	if (cache_maps_each(MAPS_SELF, 0, USER_END, make_unreadable, &empty))
		die();
	if (empty >= 0)
		syscall(SYS_close, empty);
}

static void adopt(void)
{
	struct rlimit limit, most;
	struct conversation c;
	int r;

	/* the child has only this thread: no other can use the raised limit */
	getrlimit(RLIMIT_NOFILE, &limit);
	most = limit;
	most.rlim_cur = most.rlim_max;
	setrlimit(RLIMIT_NOFILE, &most);
	r = wire_begin(&c);
	if (!r)
		r = client_mapped(c.client, 0, USER_END);
	if (r) {
		client_close(c.client);
		withdraw();
	}
	wire_end(&c);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void forked(void)
{
	demoted_release();
	wire_forked();
	if (wire_mapped() && wire_unfollowed())
		adopt();
	share_with_children(false, true);
}

static void before(void)
{
	uint64_t mask = signals_block();
	bool held = wire_hold();

	share_with_children(true, held);
	demoted_hold();
	forking.held = held;
	forking.mask = mask;
}

static void after_in_parent(void)
{
	uint64_t mask = forking.mask;
	bool held = forking.held;

	demoted_release();
	share_with_children(false, held);
	if (held)
		wire_release();
	signals_restore(mask);
}

static void after_in_child(void)
{
	uint64_t mask = forking.mask;

	forked();
	signals_restore(mask);
}

void fork_install(void)
{
	wire_own();
	pthread_atfork(before, after_in_parent, after_in_child);
}

pid_t fork_without_handlers(void)
{
	uint64_t mask;
	pid_t pid;
	int error;

	if (!next()->fork) {
		errno = ENOSYS;
		return -1;
	}
	if (!settings()->on)
		return next()->fork();
	mask = signals_block();
	share_with_children(true, false);
	pid = next()->fork();
	error = errno;
	if (pid == 0)
		forked();
	else
		share_with_children(false, false);
	signals_restore(mask);
	errno = error;
	return pid;
}
