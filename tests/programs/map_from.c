/* SPDX-License-Identifier: Apache-2.0
 *
 * map_from.c - programs that map a file from where no interpreter can: handlers of signals,
 * children of vfork() and of clone(), threads that are cancelled.
 *
 *   map_from MODE FILE      each page of FILE begins with its number, counted from 1
 *
 * Ends with 0, or says on standard error what it got.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	PAGES = 4,
	ROUNDS = 100
};

static int file;

static unsigned char *map_page(int page)
{
	unsigned char *at = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file,
				 (off_t)page * PAGE);

	return at == MAP_FAILED ? NULL : at;
}

/* -> what is wrong, or NULL. */
static const char *map_and_look(int page)
{
	unsigned char *at = map_page(page);
	bool right;

	if (!at)
		return strerror(errno);
	right = *at == page + 1;
	munmap(at, PAGE);
	return right ? NULL : "wrong bytes";
}

static void need(const char *wrong, const char *where)
{
	if (!wrong)
		return;
	fprintf(stderr, "%s: %s\n", where, wrong);
	_exit(1);
}

static void ended_well(pid_t pid, const char *what)
{
	char how[32];
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		need("there is none", what);
	snprintf(how, sizeof(how), "ended by signal %d", WTERMSIG(status));
	if (status)
		need(WIFSIGNALED(status) ? how : "wrong bytes", what);
}

/* ---- signals: at any instruction of an mmap(), another one */

static atomic_int handled;

static void on_alarm(int number)
{
	int error = errno;

	(void)number;
	need(map_and_look(1), "handler");
	handled++;
	errno = error;
}

static void signals(void)
{
	struct itimerval often = { { 0, 1500 }, { 0, 1500 } };
	struct sigaction act = { .sa_handler = on_alarm, .sa_flags = SA_RESTART };

	sigaction(SIGALRM, &act, NULL);
	setitimer(ITIMER_REAL, &often, NULL);
	while (handled < ROUNDS)
		need(map_and_look(2), "interrupted");
}

/* ---- vfork(): a child in the parent's memory, with descriptors of its own */

static void vforks(void)
{
	unsigned char *volatile theirs;
	unsigned char *mine = map_page(0);
	pid_t pid;
	int i;

	for (i = 0; i < 3; i++) {
		theirs = NULL;
		pid = vfork();
		if (pid == 0) {
			theirs = map_page(3);
			_exit(theirs && *theirs == 4 ? 0 : 1);
		}
		ended_well(pid, "child of vfork()");
		need(theirs[0] == 4 && mine[0] == 1 ? NULL : "wrong bytes", "after vfork()");
		need(map_and_look(1), "after vfork()");
	}
}

/* ---- _Fork(), and a clone() that no library is told of */

static int look_everywhere(unsigned char *inherited)
{
	return inherited[0] != 1 || map_and_look(2) || map_and_look(3);
}

static void forks(bool told)
{
	unsigned char *inherited = map_page(0);
	pid_t pid = told ? _Fork() : (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, 0);

	if (pid == 0)
		_exit(look_everywhere(inherited));
	ended_well(pid, told ? "child of _Fork()" : "child of clone()");
	need(map_and_look(1), "parent");
}

/* ---- threads that are cancelled wherever they may be, while others map */

static void *map_on(void *arg)
{
	(void)arg;
	for (;;) {
		need(map_and_look(1), "thread");
		pthread_testcancel();
	}
	return NULL;
}

static void cancels(void)
{
	int i;

	for (i = 0; i < ROUNDS / 2; i++) {
		pthread_t thread;
		void *end;

		if (pthread_create(&thread, NULL, map_on, NULL))
			need("no thread", "cancel");
		need(map_and_look(2), "canceller");
		pthread_cancel(thread);
		pthread_join(thread, &end);
		need(end == PTHREAD_CANCELED ? NULL : "not cancelled", "thread");
	}
}

/* ---- threads that map and fork at once */

static void *map_and_fork(void *arg)
{
	int round;

	(void)arg;
	for (round = 0; round < ROUNDS / 5; round++) {
		unsigned char *at = map_page(round % PAGES);
		pid_t pid;

		need(at ? NULL : strerror(errno), "thread");
		pid = fork();
		if (pid == 0)
			_exit(*at != round % PAGES + 1 || map_and_look((round + 1) % PAGES));
		need(*at == round % PAGES + 1 ? NULL : "wrong bytes", "thread");
		ended_well(pid, "child");
		munmap(at, PAGE);
	}
	return NULL;
}

static void threads(void)
{
	pthread_t thread[4];
	int i;

	for (i = 0; i < 4; i++)
		pthread_create(&thread[i], NULL, map_and_fork, NULL);
	for (i = 0; i < 4; i++)
		pthread_join(thread[i], NULL);
}

int main(int argc, char **argv)
{
	const char *mode = argc > 2 ? argv[1] : "";

	file = argc > 2 ? open(argv[2], O_RDWR) : -1;
	if (!strcmp(mode, "signals"))
		signals();
	else if (!strcmp(mode, "vfork"))
		vforks();
	else if (!strcmp(mode, "_Fork") || !strcmp(mode, "clone"))
		forks(*mode == '_');
	else if (!strcmp(mode, "cancel"))
		cancels();
	else if (!strcmp(mode, "threads"))
		threads();
	else
		return 2;
	return 0;
}
