/* SPDX-License-Identifier: Apache-2.0
 *
 * tracer.h - the parts of daxfault-tracer.
 *
 *   trace.c          options and environment
 *   trace_start.c    how a program comes to be traced, and the filter that stops it
 *   trace_loop.c     the wait loop: what each stop is, and how it goes on
 *   trace_inject.c   system calls made by a tracee on our behalf
 *   trace_tasks.c    threads and processes: what is known of each
 *   trace_serve.c    a process's conversation with the host
 *   trace_map.c      mmap()
 *   trace_sync.c     msync() and SIGBUS
 *   trace_protect.c  mprotect()
 *
 * The tracer is no ancestor of the program: the process that is started becomes the program,
 * and the tracer a grandchild of it that seizes it.  Process id, parent, process group,
 * terminal, job control and the way it ends are the program's own.
 *
 * Not possible, and what is then:
 *   - without CAP_SYS_ADMIN the filter takes no_new_privs: a set-user-ID program that is executed
 *     runs without the rights it would give;
 *   - a process has one tracer: debuggers and strace find it taken (EPERM), and a child made
 *     with CLONE_UNTRACED has no tracer to ask: its mmap() of any file is ENOSYS;
 *   - one seccomp listener: a program that installs its own is told EBUSY, and beneath one the
 *     tracer does not start;
 *   - a program whose own filter forbids what is injected (ioctl, userfaultfd, mmap, mremap,
 *     mprotect, madvise) ends as the filter says;
 *   - a program that may not be inspected (its file cannot be read, or it has other rights than
 *     its tracer) has its mmap() fail with ENODEV, or, when not even /proc tells its descriptors,
 *     left to the kernel;
 *   - system calls of i386 and x32 are left to the kernel;
 *   - while the host does not answer an mmap(), for at most CLIENT_PATIENCE_S, other tracees that
 *     stop wait as well.
 *
 * One thread, which waits for its tracees.  Where it would wait for the host as long as a disk
 * takes (an msync, populating), it does not: other tracees go on.
 */
#ifndef DAXFAULT_PROGRAM_TRACE_H
#define DAXFAULT_PROGRAM_TRACE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "program/cache_maps.h"
#include "program/client.h"
#include "program/mapping.h"

#ifndef __x86_64__
#error daxfault-tracer knows the system calls of x86-64 only
#endif

struct process {
	pid_t tgid;
	struct client client;
	bool mapped;			/* it may have mappings of page caches */
	bool demoted;			/* some of them are private only because we made them so */
	pid_t worker;			/* speaks to the host in its behalf, 0: nobody */
	struct thread *threads;		/* those that are known to be its own */
	struct process *next_dead;
};

enum thread_state {
	THREAD_RUNS,			/* or is in a stop that is being looked at */
	THREAD_IN_MSYNC,		/* the kernel's own; its exit is awaited */
	THREAD_WAITS,			/* stopped, for the worker to end */
	THREAD_QUEUED,			/* stopped, its system call not looked at: the worker is another's */
	THREAD_RETURNED,		/* stopped at the exit of its msync(), likewise */
	THREAD_POPULATES,		/* in an injected system call, the last one */
	THREAD_WORKER,			/* no tracee, but a child of ours */
};

struct thread {
	pid_t tid;
	enum thread_state state;
	struct process *process;	/* NULL: not known yet */
	struct thread *next, **link;	/* in process->threads */

	/* of an injection: trace_inject.c */
	struct user_regs_struct regs;
	uint64_t mask;
	bool inside;			/* in a system call: the next stop of one is its exit */
	bool gone;			/* it died, or became another program */
	bool stop_held;			/* a SIGSTOP to be sent again */
	bool group_stopped;

	pid_t requester;		/* whose worker it is */
};

struct tracer {
	const char *socket;
	dev_t device;
	int listener;			/* of the seccomp filter */
	uint64_t cookie;		/* what a close() that wants a descriptor says */
	bool served;			/* any process maps, or has mapped, a page cache */
	bool demoted;			/* likewise */
	bool unfollowed;		/* forked children must be served anew */
};

extern struct tracer tracer;

/* trace_start.c.  Returns in the process that is to become the program, traced by now,
 * or not at all. */
void start_tracing(void);

/* trace_loop.c.  Until there is no tracee left. */
void trace_loop(void);
void handle_stop(struct thread *t, int status);		/* of a waitpid(2) that is WIFSTOPPED */
void handle_end(struct thread *t);
void handle_syscall(struct thread *t);			/* at its seccomp stop */
void resume(struct thread *t, int signal);

/* trace_tasks.c */
bool tasks_begin(void);
void tasks_bury(void);
struct thread *thread_find(pid_t tid);			/* NULL: unknown */
struct thread *thread_add(pid_t tid);
void thread_remove(struct thread *t);
struct process *process_of(struct thread *t);		/* NULL: it is gone */
void process_executed(struct thread *t, pid_t former);
bool process_inherits(struct thread *t);
uint64_t status_field(pid_t tid, const char *name, int base);

/* trace_inject.c.  Between inject_begin() and inject_end() signals are held back. */
bool is_stop_signal(int signal);
enum { INJECT_GOES_ON, INJECT_DONE, INJECT_GONE };

bool inject_begin(struct thread *t);
int inject_step(struct thread *t, int status);		/* what a stop amid a system call means */
bool inject_finish_call(struct thread *t, long *result);	/* the one that it is in */
bool inject_skip(struct thread *t);			/* the one that it is about to make */
bool inject_start(struct thread *t, long number, const uint64_t args[6]);
long inject(struct thread *t, long number, const uint64_t args[6]);	/* -> its result */
long inject_fd(struct thread *t, int fd);		/* -> the descriptor that it has now, or -errno */
void inject_end(struct thread *t, long result);		/* the thread goes on, its own call having this result */
int take_fd(struct thread *t, int fd);			/* -> our copy of its descriptor, or -errno */

/* trace_serve.c.  All but serve_tell() inside an injection. */
int serve_begin(struct thread *t);			/* -> 0, or the errno for mmap(); the client is connected */
int serve_errno(int result);				/* of a client call */
void serve_adopt(struct thread *t, bool stopped);	/* a forked child, before it runs */

/* trace_map.c, trace_sync.c, trace_protect.c: at a seccomp stop; the thread goes on, or will. */
void handle_mmap(struct thread *t);
void populated(struct thread *t);
void handle_msync(struct thread *t);
void msync_returned(struct thread *t);
void worker_ended(struct thread *worker, int status);
void tell_sigbus(struct thread *t);
void handle_mprotect(struct thread *t);
void handle_mlock(struct thread *t);

#endif
