/* SPDX-License-Identifier: Apache-2.0
 *
 * guard_private.c - the guard where the CPU has protection keys (pkeys(7)): zeros that stand in
 * for a page are for guarded threads only.
 *
 * A program of its own, without an interpreter, so that it also runs as the only one of a virtual
 * machine.  Exit: 0, 1 with what was wrong on standard error, 77: no such keys here.
 */
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "guard/guard.h"

#define PAGE 4096
#define SKIP 77

#define EXPECT(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
			exit(1); \
		} \
	} while (0)

static volatile char *mapping;
static __thread sigjmp_buf back;
static __thread siginfo_t got;

static void on_signal(int number, siginfo_t *info, void *context)
{
	got = *info;
	siglongjmp(back, 1);
}

/* -> what is read there, or minus the number of the signal */
static int touch(size_t offset)
{
	if (sigsetjmp(back, 1))
		return -got.si_signo;
	return mapping[offset];
}

static void *unguarded(void *arg)
{
	int pipes[2];

	EXPECT(touch(5) == -SIGSEGV);
	EXPECT(got.si_code == SEGV_PKUERR);
	EXPECT(got.si_addr == mapping + 5);
	EXPECT(!pipe(pipes));
	EXPECT(write(pipes[1], (const char *)mapping, 8) == -1 && errno == EFAULT);
	EXPECT(touch(PAGE) == -SIGBUS); /* nothing stands in there */
	return NULL;
}

static void run(void *(*start)(void *))
{
	pthread_t thread;

	EXPECT(!pthread_create(&thread, NULL, start, NULL));
	EXPECT(!pthread_join(thread, NULL));
}

static void *inheriting(void *arg)
{
	EXPECT(touch(0) == 0); /* a limit: the right is inherited, the guard is not */
	return NULL;
}

static sem_t held, seen;

static void *holding(void *arg)
{
	struct df_guard *guard;

	EXPECT(!df_guard_enter(NULL, 0, false, &guard));
	EXPECT(touch(0) == 0);
	EXPECT(!sem_post(&held) && !sem_wait(&seen));
	df_guard_free(guard);
	return NULL;
}

static void *guarded(void *arg)
{
	struct df_guard_fault faults[DF_GUARD_FAULTS];
	struct df_guard *guard;
	pthread_t holder;

	EXPECT(touch(0) == -SIGSEGV);
	EXPECT(!df_guard_enter(NULL, 0, false, &guard));
	EXPECT(touch(0) == 0); /* its own fault: all was put back */
	EXPECT(df_guard_take(guard, faults) == 1);
	EXPECT(touch(0) == 0);
	run(inheriting);
	df_guard_free(guard);

	EXPECT(!pthread_create(&holder, NULL, holding, NULL));
	EXPECT(!sem_wait(&held));
	EXPECT(touch(0) == -SIGSEGV); /* left: the right is gone */
	EXPECT(!sem_post(&seen) && !pthread_join(holder, NULL));
	return NULL;
}

static void *unguarded_of_all(void *arg)
{
	EXPECT(touch(3) == 0);
	return NULL;
}

/* Threads inherit the rights of who starts them: here, of somebody who is not guarded. */
static void *(*next_start)(void *);
static pthread_barrier_t turn;

static void *starter(void *arg)
{
	for (;;) {
		pthread_barrier_wait(&turn);
		if (!next_start)
			return NULL;
		run(next_start);
		pthread_barrier_wait(&turn);
	}
}

static void elsewhere(void *(*start)(void *))
{
	next_start = start;
	pthread_barrier_wait(&turn);
	if (start)
		pthread_barrier_wait(&turn);
}

int main(void)
{
	struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	struct df_guard_fault faults[DF_GUARD_FAULTS];
	int fd = memfd_create("file", 0);
	struct df_guard *guard;
	pthread_t thread;

	EXPECT(!sigaction(SIGBUS, &act, NULL) && !sigaction(SIGSEGV, &act, NULL));
	EXPECT(!pthread_barrier_init(&turn, NULL, 2));
	EXPECT(!sem_init(&held, 0, 0) && !sem_init(&seen, 0, 0));
	EXPECT(!pthread_create(&thread, NULL, starter, NULL));
	EXPECT(!ftruncate(fd, 2 * PAGE));
	mapping = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	EXPECT(mapping != MAP_FAILED);
	EXPECT(!ftruncate(fd, 0));

	EXPECT(!df_guard_enter(NULL, 0, false, &guard));
	if (!df_guard_private())
		return SKIP;
	EXPECT(touch(0) == 0);
	elsewhere(unguarded);
	elsewhere(guarded);
	EXPECT(touch(0) == 0);
	EXPECT(df_guard_take(guard, faults) >= 2); /* its own, and those threads' of the same page */
	df_guard_free(guard);
	EXPECT(touch(0) == -SIGBUS);

	EXPECT(!df_guard_enter(NULL, 0, true, &guard));
	elsewhere(unguarded_of_all);
	EXPECT(df_guard_take(guard, faults) == 1 && faults[0].offset == 3);
	df_guard_free(guard);

	EXPECT(!ftruncate(fd, 2 * PAGE));
	EXPECT(pwrite(fd, "x", 1, 0) == 1);
	EXPECT(touch(0) == 'x');
	elsewhere(NULL);
	EXPECT(!pthread_join(thread, NULL));
	return 0;
}
