/* SPDX-License-Identifier: Apache-2.0
 *
 * inject.c - system calls made by a tracee on our behalf.
 *
 * Owns its registers and its signal mask during an injection.  Never touches its memory: the memory
 * below the stack pointer of a goroutine may belong to another one.
 *
 * All signals are blocked during an injection and stay pending.  SIGSTOP cannot be blocked: it is
 * suppressed, and sent again at the end unless a SIGCONT came after it.  A group stop is passed
 * through, and entered at the end.  SIGKILL may come at any time: every later step fails then, and
 * the thread is removed.
 *
 * A tracee receives a descriptor through the seccomp listener (SECCOMP_ADDFD_FLAG_SEND, 5.14): it
 * calls close() with our cookie, the filter notifies us, and we answer with the descriptor.  This
 * does not depend on /proc, chroot(2), namespaces or user ids.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tracer.h"

#ifndef PIDFD_THREAD
#define PIDFD_THREAD O_EXCL /* Linux 6.9 */
#endif

enum {
	SYSCALL_LEN = 2,   /* of the instruction: 0f 05 */
	ERESTARTSYS = 512, /* include/linux/errno.h */
	ERESTART_RESTARTBLOCK = 516,
	FD_TRIES = 16,
	LOOK_MS = 10, /* poll: the end of a tracee does not wake a wait for the listener */
};

bool is_stop_signal(int signal)
{
	return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

bool inject_begin(struct thread *t)
{
	uint64_t all = ~0ull;

	t->gone = t->stop_held = t->group_stopped = false;
	if (ptrace(PTRACE_GETREGS, t->tid, 0, &t->regs) ||
	    ptrace(PTRACE_GETSIGMASK, t->tid, sizeof(t->mask), &t->mask) ||
	    ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(all), &all))
		t->gone = true;
	return !t->gone;
}

int inject_step(struct thread *t, int status)
{
	int event = status >> 16, signal = WSTOPSIG(status), deliver = 0;

	if (!WIFSTOPPED(status)) {
		thread_remove(t);
		return INJECT_GONE;
	}
	if (event == PTRACE_EVENT_EXEC) { /* of another thread, which has this one's id now */
		t->gone = t->executed = true;
		return INJECT_GONE;
	}
	if (event == PTRACE_EVENT_STOP) {
		t->group_stopped |= is_stop_signal(signal);
	} else if (!event && signal == SYSCALL_STOP) {
		t->inside = !t->inside;
		if (!t->inside)
			return INJECT_DONE;
	} else if (!event && signal == SIGSTOP) {
		t->stop_held = true;
	} else if (!event) {
		deliver = signal; /* forced, by the program's own filter: SIGSYS */
	}
	if (ptrace(PTRACE_SYSCALL, t->tid, 0, deliver)) {
		t->gone = true;
		return INJECT_GONE;
	}
	return INJECT_GOES_ON;
}

/* Wait until the current system call has returned. */
static bool wait_exit(struct thread *t)
{
	pid_t tid = t->tid;
	int status, step = INJECT_GOES_ON;

	while (step == INJECT_GOES_ON) {
		if (waitpid(tid, &status, __WALL) == tid)
			step = inject_step(t, status);
		else if (errno != EINTR)
			step = INJECT_GONE;
	}
	return step == INJECT_DONE;
}

bool inject_skip(struct thread *t)
{
	struct user_regs_struct none = t->regs;

	none.orig_rax = (unsigned long long)-1;
	t->inside = true;
	if (t->gone || ptrace(PTRACE_SETREGS, t->tid, 0, &none) ||
	    ptrace(PTRACE_SYSCALL, t->tid, 0, 0) || !wait_exit(t))
		t->gone = true;
	return !t->gone;
}

bool inject_start(struct thread *t, long number, const uint64_t args[6])
{
	struct user_regs_struct r = t->regs;

	r.rip -= SYSCALL_LEN;
	r.rax = (unsigned long long)number;
	r.orig_rax = (unsigned long long)-1; /* nothing to restart */
	r.rdi = args[0];
	r.rsi = args[1];
	r.rdx = args[2];
	r.r10 = args[3];
	r.r8 = args[4];
	r.r9 = args[5];
	t->inside = false;
	if (t->gone || ptrace(PTRACE_SETREGS, t->tid, 0, &r) || ptrace(PTRACE_SYSCALL, t->tid, 0, 0))
		t->gone = true;
	return !t->gone;
}

static long result_of(struct thread *t)
{
	struct user_regs_struct now;

	if (!wait_exit(t) || ptrace(PTRACE_GETREGS, t->tid, 0, &now)) {
		t->gone = true;
		return -ESRCH;
	}
	return (long)now.rax;
}

long inject(struct thread *t, long number, const uint64_t args[6])
{
	return inject_start(t, number, args) ? result_of(t) : -ESRCH;
}

/* Answer the tracee's request for a descriptor.  -> whether there was a request. */
static bool grant(const struct thread *t, int fd)
{
	struct seccomp_notif request = { 0 };
	struct seccomp_notif_addfd add = {
		.flags = SECCOMP_ADDFD_FLAG_SEND,
		.srcfd = (uint32_t)fd,
		.newfd_flags = O_CLOEXEC,
	};
	struct seccomp_notif_resp no = { .error = -EBADF };

	if (ioctl(tracer.listener, SECCOMP_IOCTL_NOTIF_RECV, &request))
		return false;
	no.id = add.id = request.id;
	if (request.pid == (uint32_t)t->tid) {
		if (ioctl(tracer.listener, SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0)
			return true;
		no.error = -errno;
	}
	ioctl(tracer.listener, SECCOMP_IOCTL_NOTIF_SEND, &no);
	return request.pid == (uint32_t)t->tid;
}

static long ask_fd(struct thread *t, int fd)
{
	const uint64_t args[6] = { ~0ull, 0, 0, 0, tracer.cookie & UINT32_MAX, tracer.cookie >> 32 };
	struct pollfd p = { .fd = tracer.listener, .events = POLLIN };
	struct user_regs_struct now;
	bool granted = false;
	pid_t tid = t->tid;
	int status, step = INJECT_GOES_ON;

	if (!inject_start(t, SYS_close, args))
		return -ESRCH;
	while (step == INJECT_GOES_ON) {
		pid_t got = waitpid(tid, &status, __WALL | (t->inside && !granted ? WNOHANG : 0));

		if (got == tid)
			step = inject_step(t, status);
		else if (got < 0 && errno != EINTR)
			step = INJECT_GONE;
		else if (!got && poll(&p, 1, LOOK_MS) > 0)
			granted = grant(t, fd);
	}
	if (step == INJECT_GONE || ptrace(PTRACE_GETREGS, tid, 0, &now)) {
		t->gone = true;
		return -ESRCH;
	}
	return (long)now.rax;
}

long inject_fd(struct thread *t, int fd)
{
	long r = -ESRCH;
	int n;

	/* a SIGSTOP ends the request: try again */
	for (n = 0; n < FD_TRIES; n++) {
		r = ask_fd(t, fd);
		if (r > -ERESTARTSYS || r < -ERESTART_RESTARTBLOCK)
			return r;
	}
	return -EINTR;
}

static bool continue_pending(pid_t tid)
{
	uint64_t pending = status_field(tid, "SigPnd:", 16) | status_field(tid, "ShdPnd:", 16);

	return pending & 1ull << (SIGCONT - 1);
}

enum next inject_end(struct thread *t, long result)
{
	struct user_regs_struct r = t->regs;

	if (t->gone)
		return NEXT_WAIT;
	r.rax = (unsigned long long)result;
	r.orig_rax = (unsigned long long)-1;
	if (ptrace(PTRACE_SETREGS, t->tid, 0, &r) ||
	    ptrace(PTRACE_SETSIGMASK, t->tid, sizeof(t->mask), &t->mask))
		return NEXT_WAIT;
	if (t->stop_held && !continue_pending(t->tid))
		syscall(SYS_tgkill, process_of(t)->tgid, t->tid, SIGSTOP);
	if (t->group_stopped)
		ptrace(PTRACE_INTERRUPT, t->tid, 0, 0);
	return NEXT_RUN;
}

int take_fd(struct thread *t, int fd)
{
	int pidfd, copy;

	/* a thread may have its own descriptor table (unshare(2)), and may outlive the first thread */
	pidfd = (int)syscall(SYS_pidfd_open, t->tid, PIDFD_THREAD);
	if (pidfd < 0 && errno == EINVAL)
		pidfd = (int)syscall(SYS_pidfd_open, process_of(t) ? process_of(t)->tgid : t->tid, 0);
	if (pidfd < 0)
		return -errno;
	copy = (int)syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	if (copy < 0)
		copy = -errno;
	close(pidfd);
	return copy;
}
