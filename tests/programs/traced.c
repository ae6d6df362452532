/* SPDX-License-Identifier: Apache-2.0
 *
 * traced.c - a statically linked program for the tests of the tracer, one act a run:
 *
 *   traced bytes FILE          the first byte of each page, by a shared mapping
 *   traced store FILE N        N to the first byte, msync()
 *   traced threads FILE N      N threads, each maps the file, reads all of it and unmaps it, 20 times
 *   traced leaderless FILE     the same by a thread, after main() has left its own
 *   traced fork FILE           a mapping read by a child that forks, and one of the child's own
 *   traced exec FILE PATH ...  map it, then execute PATH from a thread that is not the first
 *   traced storm FILE N        N queued signals with values and a timer, while it maps
 *   traced touch FILE          map it, cut it to nothing, touch it
 *
 * Owns nothing of daxfault's: what it does is what any program may.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define MOST_ROUNDS 20

static const char *file;
static char **rest;
static volatile int next_value, out_of_order, ticks, wrong_sender;

static void check(int ok, const char *what)
{
	if (!ok) {
		perror(what);
		exit(1);
	}
}

static unsigned char *map_file(size_t *pages)
{
	int fd = open(file, O_RDWR);
	struct stat st;
	unsigned char *at;

	check(fd >= 0, file);
	check(!fstat(fd, &st), "fstat");
	*pages = (size_t)st.st_size / PAGE;
	at = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(at != MAP_FAILED, "mmap");
	close(fd);
	return at;
}

/* Each page is full of its number. */
static void *read_all(void *unused)
{
	size_t pages, i;
	int n;

	for (n = 0; n < MOST_ROUNDS; n++) {
		unsigned char *at = map_file(&pages);

		for (i = 0; i < pages; i++)
			if (at[i * PAGE] != i + 1 || at[i * PAGE + PAGE - 1] != i + 1)
				abort();
		munmap(at, pages * PAGE);
	}
	return unused;
}

/* The first thread is a zombie as soon as it has left. */
static int first_has_left(void)
{
	FILE *f = fopen("/proc/self/stat", "re");
	char state = 0;

	check(f && fscanf(f, "%*d (traced) %c", &state) == 1, "/proc/self/stat");
	fclose(f);
	return state == 'Z';
}

static void *read_last(void *unused)
{
	while (!first_has_left())
		sched_yield();
	read_all(unused);
	puts("read");
	fflush(stdout);
	_exit(7);
}

static void *execute(void *unused)
{
	execv(rest[0], rest);
	perror(rest[0]);
	_exit(127);
	return unused;
}

static void on_value(int signal, siginfo_t *info, void *unused)
{
	(void)signal;
	(void)unused;
	out_of_order |= info->si_value.sival_int != next_value || info->si_code != SI_QUEUE;
	wrong_sender |= info->si_pid != getpid();
	next_value++;
}

static void on_tick(int signal)
{
	(void)signal;
	ticks++;
}

static void storm(int n)
{
	struct sigaction value = { .sa_sigaction = on_value, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct sigaction tick = { .sa_handler = on_tick, .sa_flags = SA_RESTART };
	struct itimerval every = { .it_interval.tv_usec = 1000, .it_value.tv_usec = 1000 };
	pid_t child, parent = getpid();
	int i;

	sigaction(SIGRTMIN, &value, NULL);
	sigaction(SIGALRM, &tick, NULL);
	child = fork();
	if (!child) { /* stops and continues it meanwhile */
		while (getppid() == parent) {
			kill(parent, SIGSTOP);
			usleep(100);
			kill(parent, SIGCONT);
			usleep(2000);
		}
	}
	setitimer(ITIMER_REAL, &every, NULL); /* fork() starts again after every signal */
	for (i = 0; i < n; i++) {
		size_t pages;
		unsigned char *at;

		sigqueue(getpid(), SIGRTMIN, (union sigval){ .sival_int = i });
		at = map_file(&pages);
		if (at[0] != 1)
			abort();
		munmap(at, pages * PAGE);
	}
	memset(&every, 0, sizeof(every));
	setitimer(ITIMER_REAL, &every, NULL);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	printf("%d %d %d %s\n", next_value, out_of_order, wrong_sender, ticks ? "ticks" : "none");
}

static void bytes(const char *who, const unsigned char *at, size_t pages)
{
	size_t i;

	printf("%s", who);
	for (i = 0; i < pages; i++)
		printf(" %d", at[i * PAGE]);
	puts("");
	fflush(stdout);
}

static void forked(void)
{
	size_t pages, more;
	unsigned char *at = map_file(&pages);
	int status;

	if (!fork()) {
		bytes("child", at, pages);
		if (!fork()) {
			bytes("grandchild", at, pages);
			bytes("own", map_file(&more), pages);
			_exit(3);
		}
		wait(&status);
		_exit(WEXITSTATUS(status));
	}
	wait(&status);
	bytes("parent", at, pages);
	exit(WEXITSTATUS(status));
}

int main(int argc, char **argv)
{
	const char *act = argc > 2 ? argv[1] : "";
	pthread_t threads[64];
	int n = argc > 3 ? atoi(argv[3]) : 0, i;
	unsigned char *at;
	size_t pages;

	file = argc > 2 ? argv[2] : "";
	rest = argv + 3;
	if (!strcmp(act, "bytes")) {
		at = map_file(&pages);
		bytes("bytes", at, pages);
	} else if (!strcmp(act, "store")) {
		at = map_file(&pages);
		at[0] = (unsigned char)n;
		check(!msync(at, pages * PAGE, MS_SYNC), "msync");
	} else if (!strcmp(act, "threads")) {
		for (i = 0; i < n && i < 64; i++)
			check(!pthread_create(&threads[i], NULL, read_all, NULL), "pthread_create");
		for (i = 0; i < n && i < 64; i++)
			pthread_join(threads[i], NULL);
	} else if (!strcmp(act, "leaderless")) {
		pthread_create(&threads[0], NULL, read_last, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(act, "fork")) {
		forked();
	} else if (!strcmp(act, "exec")) {
		map_file(&pages);
		pthread_create(&threads[0], NULL, execute, NULL);
		pthread_join(threads[0], NULL);
	} else if (!strcmp(act, "storm")) {
		storm(n);
	} else if (!strcmp(act, "touch")) {
		at = map_file(&pages);
		check(!truncate(argv[3], 0), "truncate");
		printf("%d\n", at[0]);
	} else {
		return 2;
	}
	return 0;
}
