/* SPDX-License-Identifier: Apache-2.0
 *
 * tracer.h - the parts of daxfault-tracer, lowest part first: each may call those before it.
 *
 * The tracer is not an ancestor of the program: the started process becomes the program, and a
 * grandchild of it, the tracer, seizes it.  So the program keeps its process id, parent, process
 * group, terminal, job control and exit status.
 *
 * Limits:
 *   - without CAP_SYS_ADMIN the filter requires no_new_privs: a set-user-ID program runs without the
 *     privileges of its owner;
 *   - a process has one tracer: debuggers and strace get EPERM.  A child made with CLONE_UNTRACED has
 *     none: calls at which the filter stops fail with ENOSYS;
 *   - there is one seccomp listener: a program that installs its own gets EBUSY, and the tracer does not
 *     start if there is one already;
 *   - a program whose own filter forbids an injected call (ioctl, userfaultfd, mmap, mremap, mprotect,
 *     madvise) ends as that filter decides;
 *   - mmap() fails with ENODEV in a program that the tracer may not inspect (its file is unreadable, or
 *     its credentials differ); if even its /proc/PID/fd is unreadable, mmap() is left to the kernel;
 *   - system calls of i386 and x32 are left to the kernel;
 *   - while the host does not answer an mmap(), for at most CLIENT_PATIENCE_S, other stopped tracees
 *     wait too.
 *
 * The tracer has one thread.  It must not wait for disk I/O of the host (an msync, populating), so
 * that other tracees go on.
 *
 * Only the loop resumes a tracee from its own stop: functions that handle a stop return the next
 * step.
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
	SYSCALL_STOP = 5 | 0x80, /* SIGTRAP, PTRACE_O_TRACESYSGOOD */
};

struct process {
	pid_t tgid;
	struct client client;
	bool mapped;		/* it may have mappings of page caches */
	bool demoted;		/* some may be MAP_PRIVATE in place of MAP_SHARED */
	pid_t worker;		/* sends an msync to the host on its behalf, 0: none */
	struct thread *threads; /* its known threads */
	struct process *next_dead;
};

enum thread_state {
	THREAD_RUNS,	 /* or is in a stop that is being handled */
	THREAD_IN_CALL,	 /* in a system call, as decided; waiting for its exit */
	THREAD_WAITS,	 /* stopped until the worker ends */
	THREAD_QUEUED,	 /* stopped at a system call: another thread has the worker */
	THREAD_RETURNED, /* stopped at the exit of its msync(), for the same reason */
	THREAD_INJECTED, /* in the last injected system call */
	THREAD_WORKER,	 /* not a tracee: a child of the tracer */
};

struct thread {
	pid_t tid;
	enum thread_state state;
	struct process *process;       /* NULL: not known yet */
	struct thread *next, **link;   /* in process->threads */
	struct call_decision decision; /* THREAD_IN_CALL, THREAD_INJECTED */

	/* of an injection: inject.c */
	struct user_regs_struct regs; /* the program's; also of THREAD_IN_CALL, at its entry */
	uint64_t mask;
	bool inside;	/* in a system call: the next system call stop is its exit */
	bool gone;	/* it died, or executed another program */
	bool executed;	/* it executed another program; the loop must still handle that */
	bool stop_held; /* a SIGSTOP to send again */
	bool group_stopped;

	pid_t requester; /* THREAD_WORKER: the thread that waits for it */
};

/* What to do with a thread after its stop was handled. */
enum next {
	NEXT_RUN,  /* let it run */
	NEXT_WAIT, /* nothing: it is gone, stays stopped, or already runs */
};

struct tracer {
	const char *socket;
	dev_t device;
	int listener;	 /* of the seccomp filter */
	uint64_t cookie; /* of a close() that requests a descriptor */
	bool served;	 /* a process maps, or has mapped, a page cache */
	bool demoted;	 /* a process has, or has had, a demoted mapping */
	bool unfollowed; /* forked children must be served again */
};

extern struct tracer tracer;

/* ---- tasks.c: threads and processes */

bool tasks_begin(void);
void tasks_bury(void);
struct thread *thread_find(pid_t tid); /* NULL: unknown */
struct thread *thread_add(pid_t tid);
void thread_remove(struct thread *t);
struct process *process_of(struct thread *t); /* NULL: it is gone */
void process_executed(struct thread *t, pid_t former);
bool process_inherits(struct thread *t);
uint64_t status_field(pid_t tid, const char *name, int base);

/* ---- inject.c: system calls made by a tracee on our behalf.  Signals are blocked between
 * inject_begin() and inject_end(). */

bool is_stop_signal(int signal);

enum {
	INJECT_GOES_ON,
	INJECT_DONE,
	INJECT_GONE
};

bool inject_begin(struct thread *t);
int inject_step(struct thread *t, int status); /* a stop during a system call */
bool inject_skip(struct thread *t);	       /* skip the call that it is about to make */
bool inject_start(struct thread *t, long number, const uint64_t args[6]);
long inject(struct thread *t, long number, const uint64_t args[6]); /* -> its result */
long inject_fd(struct thread *t, int fd);	     /* -> its new descriptor, or -errno */
enum next inject_end(struct thread *t, long result); /* `result` of the program's call */
int take_fd(struct thread *t, int fd);		     /* -> our copy of its descriptor, or -errno */

/* ---- serve.c: a process's connection to the host.  Called during an injection. */

struct tracee {
	struct caller caller;
	struct thread *t;
};

struct tracee tracee(struct thread *t);
int serve_begin(struct thread *t); /* -> 0, or the errno for mmap(); the client is connected */
enum next serve_adopt(struct thread *t, bool stopped); /* a forked child, before it runs */

/* ---- map.c, sync.c, sigbus.c */

enum next map_file(struct thread *t, struct process *p, const struct map_request *q);
enum next sync_begin(struct thread *t, struct process *p); /* at the exit of an msync() that succeeded */
enum next sync_end(struct thread *t, struct process *p, int status); /* `status` of the worker */
void report_sigbus(struct thread *t); /* one that is about to be delivered */

/* ---- stop.c: a system call at which the filter stops */

enum next call_stopped(struct thread *t);
enum next call_returned(struct thread *t); /* THREAD_IN_CALL or THREAD_RETURNED */
enum next call_injected(struct thread *t); /* THREAD_INJECTED */

/* ---- loop.c: runs until no tracee is left */

void wait_loop(void);

/* ---- filter.c: -> the listener, or -1 and errno */

int filter_install(uint64_t cookie);

/* ---- start.c: returns in the process that becomes the program, already traced, or exits */

void start_tracing(void);

#endif
