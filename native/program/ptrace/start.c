/* SPDX-License-Identifier: Apache-2.0
 *
 * start.c - starts the tracer of a program.
 *
 * Owns the steps between main() and the program's execve(2): a grandchild seizes the process, which
 * then installs the filter and sends its listener.  The tracer keeps none of the program's
 * descriptors (it would hold pipes open), nor its working directory, terminal or limits.
 *
 * The child in between ends without a signal (clone(2) without an exit signal): if SIGCHLD is
 * blocked, it would stay pending in the program.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/packet.h"
#include "tracer.h"

enum {
	FAILED = 125, /* as env(1), timeout(1): the tracer failed, not the program */
	OPTIONS = PTRACE_O_EXITKILL | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACEFORK |
		PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
		PTRACE_O_TRACESYSGOOD,
};

/* A message between the two; the program's last one carries the listener. */
struct word {
	int error;
	pid_t pid;	  /* of the tracer */
	const char *what; /* the step that failed; the pointer is valid in both processes */
};

static void fail(const char *what, int error)
{
	fprintf(stderr, "daxfault-tracer: %s: %s\n", what, strerror(error));
	exit(FAILED);
}

static void say(int sock, const char *what, int error)
{
	struct word w = { .pid = getpid(), .what = what, .error = error };

	packet_send(sock, &w, sizeof(w), NULL, 0);
}

/* -> false when the other process is gone; *fd: the descriptor received, or -1 */
static bool receive(int sock, struct word *w, int *fd)
{
	int fds[PACKET_FDS], nfds;
	ssize_t n = packet_receive(sock, w, sizeof(*w), fds, &nfds);

	*fd = nfds ? fds[0] : -1;
	return n == sizeof(*w);
}

/* ------------------------------------------------------------------ the tracer's side */

static void drop_everything(int sock)
{
	static const int limits[] = { RLIMIT_NOFILE, RLIMIT_CPU, RLIMIT_AS, RLIMIT_DATA };
	struct sigaction dfl = { .sa_handler = SIG_DFL };
	struct rlimit limit;
	sigset_t all;
	size_t i;
	int null;

	setsid();
	if (*tracer.socket == '/' && chdir("/"))
		_exit(FAILED);
	sigaction(SIGCHLD, &dfl, NULL); /* if it is ignored, waitpid() does not report tracees */
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	for (i = 0; i < sizeof(limits) / sizeof(*limits); i++) {
		if (!getrlimit(limits[i], &limit)) {
			limit.rlim_cur = limit.rlim_max;
			setrlimit(limits[i], &limit);
		}
	}
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	for (i = 0; i < 3; i++) {
		if (sock != (int)i && (null < 0 || dup2(null, (int)i) < 0))
			close((int)i);
	}
	if (sock > 3)
		syscall(SYS_close_range, 3, sock - 1, 0);
	syscall(SYS_close_range, sock < 3 ? 3 : sock + 1, ~0u, 0);
}

static void seize(int sock, pid_t program)
{
	const char *what = "PTRACE_SEIZE";
	struct word w;
	int none;

	say(sock, NULL, 0);
	if (!receive(sock, &w, &none))
		_exit(FAILED);
	if (!tasks_begin())
		what = "the table of threads";
	else if (!ptrace(PTRACE_SEIZE, program, 0, OPTIONS))
		what = NULL;
	say(sock, what, what ? errno : 0);
	if (what || !receive(sock, &w, &tracer.listener))
		_exit(FAILED);
	what = tracer.listener < 0 ? "taking the filter's listener" : NULL;
	say(sock, what, what ? EMFILE : 0);
	if (what)
		_exit(FAILED);
	close(sock);
}

static void become_tracer(int sock, pid_t program)
{
	drop_everything(sock);
	seize(sock, program);
	wait_loop();
	_exit(0);
}

/* ------------------------------------------------------------------ the program's side */

static void expect(int sock, struct word *w)
{
	int none;

	if (!receive(sock, w, &none))
		fail("the tracer has died", ECHILD);
	if (w->what)
		fail(w->what, w->error);
}

void start_tracing(void)
{
	pid_t program = getpid(), between;
	struct word w;
	int sock[2], listener;

	if (getrandom(&tracer.cookie, sizeof(tracer.cookie), 0) != sizeof(tracer.cookie))
		fail("getrandom", errno);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock))
		fail("socketpair", errno);
	between = (pid_t)syscall(SYS_clone, 0, NULL, NULL, NULL, 0);
	if (between < 0)
		fail("clone", errno);
	if (!between) {
		between = fork();
		if (!between)
			become_tracer(sock[1], program);
		_exit(between < 0 ? errno : 0);
	}
	close(sock[1]);
	waitpid(between, NULL, __WALL);
	expect(sock[0], &w);
	prctl(PR_SET_PTRACER, w.pid, 0, 0, 0); /* EINVAL without Yama */
	say(sock[0], NULL, 0);
	expect(sock[0], &w);
	listener = filter_install(tracer.cookie);
	if (listener < 0)
		fail(errno == EBUSY ? "a seccomp filter with a listener is there already"
				    : "seccomp filter",
		     errno);
	packet_send(sock[0], &w, sizeof(w), &listener, 1);
	expect(sock[0], &w);
	close(listener);
	close(sock[0]);
}
