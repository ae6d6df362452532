/* SPDX-License-Identifier: Apache-2.0
 *
 * fork.c - a touch by a forked child.
 *
 * Owns the child from fork() to wait.  The child's memory is registered with a userfaultfd that the
 * kernel gives only to the reader of EVENT_FORK, the host.  The child is not a vCPU: it has no
 * slot, so poison is the only way to report an error to it.  Between fork() and _exit() it may call
 * only async-signal-safe functions, because locks of the other vCPUs may be held.
 *
 * When the host is lost, nothing serves the existing children.  If the host died, they read zeros,
 * which the child notices (window_registered()).  If it only hung up, they stay blocked, so they
 * are killed.  takeover() serves children forked later.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "standin.h"

enum {
	/* The result of a child; a byte is 0..255, and so is an exit status. */
	GOT_BYTE = 1,
	GOT_SIGNAL = 2,
	GOT_ZEROS = 3, /* a page that no host served */
};

struct got {
	uint32_t what;
	int si_code;
	uint64_t address;
	uint8_t byte;
};

static int pipe_out = -1; /* the child's end */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t children[VCPU_COUNT]; /* not yet waited for */

/* Returns to the faulting instruction, which then kills the child. */
static void child_signal(int sig, siginfo_t *si, void *context)
{
	struct got got = {
		.what = GOT_SIGNAL,
		.si_code = si->si_code,
		.address = (uint64_t)(uintptr_t)si->si_addr,
	};

	(void)context;
	if (write(pipe_out, &got, sizeof(got)) < 0)
		_exit(0);
	signal(sig, SIG_DFL);
}

__attribute__((noreturn)) static void child(uint64_t address)
{
	struct sigaction sa = {
		.sa_sigaction = child_signal,
		.sa_flags = SA_SIGINFO,
	};
	struct got got = { .what = GOT_BYTE };

	/* The slot in the shared area stays the parent's. */
	signals_allow(this_vcpu, false);
	this_vcpu = NULL;
	sigemptyset(&sa.sa_mask);
	sigaddset(&sa.sa_mask, DF_APF_EXCEPTION);
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);

	got.byte = *(volatile uint8_t *)(uintptr_t)address;
	if (!window_registered(address))
		got.what = GOT_ZEROS;
	if (write(pipe_out, &got, sizeof(got)) < 0)
		_exit(0);
	_exit(got.byte);
}

static void failed(struct task *t, int error)
{
	t->result.outcome = OUTCOME_ERROR;
	t->result.error = error;
}

/* Only a child in the table may be killed: after wait(), its pid may be reused. */
static void set_child(int id, pid_t pid)
{
	GUARD(&lock);
	children[id] = pid;
}

void fork_abandon(void)
{
	int i;

	GUARD(&lock);
	for (i = 0; i < VCPU_COUNT; i++) {
		if (children[i])
			kill(children[i], SIGKILL);
	}
}

static void parent(struct task *t, pid_t pid, int pipe_in)
{
	struct result *r = &t->result;
	struct got got;
	int status = 0;
	ssize_t n;

	n = read(pipe_in, &got, sizeof(got));
	set_child(t->vcpu->id, 0);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFSIGNALED(status))
		r->signal = WTERMSIG(status);

	if (n != (ssize_t)sizeof(got)) {
		failed(t, wire_lost() ? EOWNERDEAD : EPIPE);
	} else if (got.what == GOT_BYTE) {
		r->done = 1;
		r->value = got.byte;
		r->has_value = true;
	} else if (got.what == GOT_SIGNAL) {
		r->outcome = r->signal == SIGSEGV ? OUTCOME_SIGSEGV : OUTCOME_SIGBUS;
		r->faults = 1;
		r->fault.address = got.address;
		r->fault.si_code = got.si_code;
	} else {
		failed(t, EOWNERDEAD);
	}
}

void access_fork(struct task *t, struct access *a)
{
	uint64_t address = window_base + a->offset;
	bool was_lost;
	int error;
	int fds[2];
	pid_t pid;

	/* Without EVENT_FORK the child would silently read zeros. */
	if (!window_sees_fork()) {
		failed(t, EPERM);
		return;
	}
	if (pipe2(fds, O_CLOEXEC) < 0) {
		failed(t, errno);
		return;
	}

	was_lost = wire_lost();
	pid = fork();
	error = errno;
	if (pid == 0) {
		pipe_out = fds[1];
		child(address);
	}
	close(fds[1]);
	if (pid < 0) {
		failed(t, error);
	} else {
		set_child(t->vcpu->id, pid);
		/* If the host was lost during the fork, fork_abandon() may have missed the child,
		 * and the reader of its EVENT_FORK is unknown. */
		if (!was_lost && wire_lost())
			fork_abandon();
		parent(t, pid, fds[0]);
	}
	close(fds[0]);
}
