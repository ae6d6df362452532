/* SPDX-License-Identifier: Apache-2.0
 *
 * tracer.h - the parts of daxfault-tracer, lowest part first: each may call those before it.
 *
 * The tracer is no ancestor of the program: the process that is started becomes the program,
 * and the tracer a grandchild of it that seizes it.  Process id, parent, process group,
 * terminal, job control and the way it ends are the program's own.
 *
 * Limits:
 *   - without CAP_SYS_ADMIN the filter takes no_new_privs: a set-user-ID program that is executed
 *     runs without the rights it would give;
 *   - a process has one tracer: debuggers and strace get EPERM, and a child made with
 *     CLONE_UNTRACED has no tracer to ask: a call of it at which the filter stops is ENOSYS;
 *   - one seccomp listener: a program that installs its own gets EBUSY, and beneath one the
 *     tracer does not start;
 *   - a program whose own filter forbids what is injected (ioctl, userfaultfd, mmap, mremap,
 *     mprotect, madvise) ends as the filter says;
 *   - a program that may not be inspected (its file cannot be read, or it has other rights than
 *     its tracer) has its mmap() fail with ENODEV, or, when not even its /proc/PID/fd can be read,
 *     left to the kernel;
 *   - system calls of i386 and x32 are left to the kernel;
 *   - while the host does not answer an mmap(), for at most CLIENT_PATIENCE_S, other tracees that
 *     stop wait as well.
 *
 * One thread, which waits for its tracees.  Where it would wait for the host as long as a disk
 * takes (an msync, populating), it does not: other tracees go on.
 *
 * Nothing but the loop lets a tracee run again at a stop of its own: what looks at a stop
 * returns what is to be done next.
 */
#ifndef DAXFAULT_PROGRAM_TRACER_H
#define DAXFAULT_PROGRAM_TRACER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/user.h>

#include "program/cache_maps.h"
#include "program/calls.h"
#include "program/client.h"
#include "program/mapping.h"
#include "program/served.h"

#ifndef __x86_64__
#error daxfault-tracer knows the system calls of x86-64 only
#endif

enum {
	SYSCALL_STOP = 5 | 0x80,	/* SIGTRAP, PTRACE_O_TRACESYSGOOD */
};

struct process {
	pid_t tgid;
	struct client client;
	bool mapped;			/* it may have mappings of page caches */
	bool demoted;			/* some of them are private only because we made them so */
	pid_t worker;			/* speaks to the host on its behalf, 0: none */
	struct thread *threads;		/* those that are known to be its own */
	struct process *next_dead;
};

enum thread_state {
	THREAD_RUNS,			/* or is in a stop that is being looked at */
	THREAD_IN_CALL,			/* of its own, as decided; its exit is awaited */
	THREAD_WAITS,			/* stopped, for the worker to end */
	THREAD_QUEUED,			/* stopped at a system call: the worker is another thread's */
	THREAD_RETURNED,		/* stopped at the exit of its msync(), likewise */
	THREAD_INJECTED,		/* in an injected system call, the last one */
	THREAD_WORKER,			/* no tracee, but a child of ours */
};

struct thread {
	pid_t tid;
	enum thread_state state;
	struct process *process;	/* NULL: not known yet */
	struct thread *next, **link;	/* in process->threads */
	struct call_decision decision;	/* THREAD_IN_CALL, THREAD_INJECTED */

	/* of an injection: inject.c */
	struct user_regs_struct regs;	/* the program's; also of THREAD_IN_CALL, at its entry */
	uint64_t mask;
	bool inside;			/* in a system call: the next stop of one is its exit */
	bool gone;			/* it died, or became another program */
	bool executed;			/* it became another program, which the loop must still see to */
	bool stop_held;			/* a SIGSTOP to be sent again */
	bool group_stopped;

	pid_t requester;		/* whose worker it is */
};

/* What is to be done with a thread that has been looked at. */
enum next {
	NEXT_RUN,			/* let it run */
	NEXT_WAIT,			/* nothing: it is gone, stays stopped, or runs already */
};

struct tracer {
	const char *socket;
	dev_t device;
	int listener;			/* of the seccomp filter */
	uint64_t cookie;		/* of a close() that asks for a descriptor */
	bool served;			/* any process maps, or has mapped, a page cache */
	bool demoted;			/* likewise */
	bool unfollowed;		/* forked children must be served again */
};

extern struct tracer tracer;

/* ---- tasks.c: threads and processes */

bool tasks_begin(void);
void tasks_bury(void);
struct thread *thread_find(pid_t tid);			/* NULL: unknown */
struct thread *thread_add(pid_t tid);
void thread_remove(struct thread *t);
struct process *process_of(struct thread *t);		/* NULL: it is gone */
void process_executed(struct thread *t, pid_t former);
bool process_inherits(struct thread *t);
uint64_t status_field(pid_t tid, const char *name, int base);

/* ---- inject.c: system calls made by a tracee on our behalf.  Signals are held back between
 * inject_begin() and inject_end(). */

bool is_stop_signal(int signal);

enum { INJECT_GOES_ON, INJECT_DONE, INJECT_GONE };

bool inject_begin(struct thread *t);
int inject_step(struct thread *t, int status);		/* a stop amid a system call */
bool inject_skip(struct thread *t);			/* the call that it is about to make */
bool inject_start(struct thread *t, long number, const uint64_t args[6]);
long inject(struct thread *t, long number, const uint64_t args[6]);	/* -> its result */
long inject_fd(struct thread *t, int fd);		/* -> the descriptor that it has now, or -errno */
enum next inject_end(struct thread *t, long result);	/* `result` is its own call's */
int take_fd(struct thread *t, int fd);			/* -> our copy of its descriptor, or -errno */

/* ---- serve.c: a process's conversation with the host.  Inside an injection. */

struct tracee {
	struct caller caller;
	struct thread *t;
};

struct tracee tracee(struct thread *t);
int serve_begin(struct thread *t);			/* -> 0, or the errno for mmap(); the client is connected */
enum next serve_adopt(struct thread *t, bool stopped);	/* a forked child, before it runs */

/* ---- map.c, sync.c, sigbus.c */

enum next map_file(struct thread *t, struct process *p, const struct map_request *q);
enum next sync_begin(struct thread *t, struct process *p);	/* at the exit of an msync() that succeeded */
enum next sync_end(struct thread *t, struct process *p, int status);	/* `status` of the worker */
void report_sigbus(struct thread *t);			/* which is about to be delivered */

/* ---- stop.c: a system call at which the filter stops */

enum next call_stopped(struct thread *t);
enum next call_returned(struct thread *t);		/* THREAD_IN_CALL or THREAD_RETURNED */
enum next call_injected(struct thread *t);		/* THREAD_INJECTED */

/* ---- loop.c.  Until there is no tracee left. */

void wait_loop(void);

/* ---- filter.c: -> the listener, or -1 and errno */

int filter_install(uint64_t cookie);

/* ---- start.c.  Returns in the process that is to become the program, traced by now,
 * or not at all. */

void start_tracing(void);

#endif
