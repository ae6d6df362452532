/* SPDX-License-Identifier: Apache-2.0
 *
 * tasks.c - the tracees: threads and their processes.
 *
 * Owns the table, which has an entry for every possible thread id: no search, and only the pages in
 * use take memory.  A thread is in it from its first stop on; its process is looked up in /proc on
 * demand. A process lasts as long as its first thread; the kernel reports the end of that thread
 * last (kernel/exit.c, wait_task_zombie(), delay_group_leader()).
 *
 * Removed entries are freed only at the start of the wait loop, because a thread may end during an
 * injection.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracer.h"

enum {
	TIDS = 4 * 1024 * 1024 + 1, /* include/linux/threads.h, PID_MAX_LIMIT */
};

struct tracer tracer;

static struct thread **threads;
static struct thread *dead_threads;
static struct process *dead_processes;

bool tasks_begin(void)
{
	threads = mmap(NULL, TIDS * sizeof(*threads), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	return threads != MAP_FAILED;
}

void tasks_bury(void)
{
	while (dead_threads) {
		struct thread *t = dead_threads;

		dead_threads = t->next;
		free(t);
	}
	while (dead_processes) {
		struct process *p = dead_processes;

		dead_processes = p->next_dead;
		free(p);
	}
}

struct thread *thread_find(pid_t tid)
{
	return tid > 0 && tid < TIDS ? threads[tid] : NULL;
}

struct thread *thread_add(pid_t tid)
{
	struct thread *t = tid > 0 && tid < TIDS ? calloc(1, sizeof(*t)) : NULL;

	if (!t)
		return NULL;
	t->tid = tid;
	threads[tid] = t;
	return t;
}

static void leave_process(struct thread *t)
{
	if (t->process) {
		*t->link = t->next;
		if (t->next)
			t->next->link = t->link;
	}
	t->process = NULL;
}

static void process_end(struct process *p)
{
	while (p->threads)
		leave_process(p->threads);
	client_close(&p->client);
	p->next_dead = dead_processes;
	dead_processes = p;
}

void thread_remove(struct thread *t)
{
	struct process *p = t->process;

	t->gone = true;
	threads[t->tid] = NULL;
	leave_process(t);
	if (p && p->tgid == t->tid)
		process_end(p);
	t->next = dead_threads;
	dead_threads = t;
}

uint64_t status_field(pid_t tid, const char *name, int base)
{
	char path[32], line[256];
	uint64_t value = 0;
	size_t n = strlen(name);
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", tid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	while (fgets(line, sizeof(line), f)) {
		if (!strncmp(line, name, n)) {
			value = strtoull(line + n, NULL, base);
			break;
		}
	}
	fclose(f);
	return value;
}

static struct process *join(struct thread *t, struct process *p)
{
	t->process = p;
	t->next = p->threads;
	t->link = &p->threads;
	if (t->next)
		t->next->link = &t->next;
	p->threads = t;
	return p;
}

struct process *process_of(struct thread *t)
{
	struct process *p;
	struct thread *first;
	pid_t tgid;

	if (t->process)
		return t->process;
	tgid = (pid_t)status_field(t->tid, "Tgid:", 10);
	first = thread_find(tgid);
	if (!first)
		return NULL;
	if (!first->process) {
		p = calloc(1, sizeof(*p));
		if (!p)
			return NULL;
		p->tgid = tgid;
		p->client.fd = -1;
		join(first, p);
	}
	return t == first ? first->process : join(t, first->process);
}

/* execve(2) has removed the old program: its address space, its other threads, and the call of
 * its first thread.  `former` is the old id of the calling thread; it has the first thread's id
 * now, and the end of `former` is not reported. */
void process_executed(struct thread *t, pid_t former)
{
	struct thread *caller = former != t->tid ? thread_find(former) : NULL;
	struct process *p = t->process;

	if (caller)
		thread_remove(caller);
	t->state = THREAD_RUNS;
	t->inside = false;
	if (!p)
		return;
	client_close(&p->client);
	p->mapped = p->demoted = false;
	p->worker = 0;
}

static bool same_memory(pid_t a, pid_t b)
{
	return syscall(SYS_kcmp, a, b, KCMP_VM, 0, 0) == 0;
}

/* For a thread at its first stop: whether it inherited mappings that must be served again. */
bool process_inherits(struct thread *t)
{
	struct process *p;

	if (!tracer.served)
		return false;
	p = process_of(t);
	if (!p || p->tgid != t->tid || cache_maps_any(t->tid, 0, USER_END) <= 0)
		return false;
	p->mapped = true;
	p->demoted = tracer.demoted;
	return tracer.unfollowed && !same_memory(t->tid, (pid_t)status_field(t->tid, "PPid:", 10));
}
