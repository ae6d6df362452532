/* SPDX-License-Identifier: Apache-2.0
 *
 * tasks.h - a vCPU, its tasks, their accesses, and the owner of each field.
 *
 * Owns no state.  Read through standin.h.
 */
#ifndef DAXFAULT_TASKS_H
#define DAXFAULT_TASKS_H

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "abi/abi.h"
#include "base/laps.h"
#include "sleepers.h"

enum op {
	OP_TOUCH,
	OP_READ,
	OP_SUM,
	OP_WRITE,
	OP_FILL,
	OP_SCAN,
	OP_SCAN_ALL,
	OP_LAPS,
	OP_WORK,
	OP_KCOPY,
	OP_KREAD,
	OP_KCOPY_BARE,
	OP_KSTORE,
	OP_SYS_WRITE,
	OP_SYS_READ,
	OP_FORK,
	OP_DONTNEED,
	OP_REMAP,
	OP_SIGBUS,
	OP_COUNT,
};

enum outcome {
	OUTCOME_OK,
	OUTCOME_SIGBUS,
	OUTCOME_SIGSEGV,
	OUTCOME_EFAULT,
	OUTCOME_SHORT,
	OUTCOME_PANIC,
	OUTCOME_ERROR,
	OUTCOME_KILLED,
	OUTCOME_COUNT,
};

enum sigbus_disposition {
	SIGBUS_HANDLE,
	SIGBUS_DEFAULT,
	SIGBUS_IGNORE,
	SIGBUS_BLOCK,
};

enum {
	ACCESS_BYTES_MAX = 4096,    /* read, write */
	ACCESS_COPY_MAX = 64 << 20, /* kcopy, kcopy_bare, kstore */
	ACCESS_WORK_MAX = 600000,   /* ms */
};

struct access {
	struct access *next;
	enum op op;
	uint64_t seq; /* counts from 1 on every vCPU */
	uint64_t offset;
	uint64_t len;
	uint64_t stride;       /* scan, scan_all, laps */
	uint64_t seed;	       /* laps: 0 in order */
	uint64_t new_offset;   /* remap */
	uint64_t milliseconds; /* work */
	uint8_t byte;	       /* fill */
	bool irqoff;
	enum sigbus_disposition disposition;
	uint8_t *bytes; /* write: the source; k...: the kernel's buffer; owned */
};

/* The task and its vCPU's signal handlers write it while the access runs, and it is read after a
 * siglongjmp().  So the counts are volatile. */
struct result {
	volatile enum outcome outcome;
	volatile uint64_t done;	  /* bytes */
	volatile uint64_t steps;  /* scan, scan_all: loads that succeeded */
	volatile uint64_t faults; /* accesses that failed */
	int error;		  /* positive errno of a system call */
	int signal;		  /* the signal that killed the forked child */
	struct fault fault;	  /* the first */
	uint64_t instruction;	  /* of a panic */
	uint32_t events;	  /* errors taken from the shared area */
	uint32_t parks;		  /* how often it slept on a token */
	struct laps laps;
	uint64_t value;
	bool has_value;
	bool has_bytes;
	uint8_t bytes[ACCESS_BYTES_MAX]; /* read, kread */
};

enum task_state {
	TASK_IDLE, /* between accesses */
	TASK_READY,
	TASK_RUNNING,
	TASK_PARKED, /* sleeps until its token is ready */
	TASK_DONE,   /* its access has ended, but is not reported yet */
	TASK_DEAD,
};

/* A context on its vCPU's thread.  Its stack holds the frames of the signals that
 * interrupted it, while other tasks run. */
struct task {
	unsigned int id;
	struct vcpu *vcpu;
	void (*body)(struct task *t);

	/* under the lock in vcpu.c */
	struct access *first, **last;

	atomic_bool killed;
	_Atomic enum task_state state; /* the vCPU's, read by the console */
	_Atomic uint32_t token;	       /* parked: its token */

	/* the vCPU's own, and its signal handlers' */
	struct access *access;
	uint64_t started;     /* ns */
	struct wakeup wakeup; /* how the last wait ended */
	volatile sig_atomic_t in_access;
	uint32_t mode;	      /* enum df_cpu_state while it runs */
	bool preemptible;     /* holds nothing that another task may want */
	uint64_t from, to;    /* the addresses the access may touch */
	struct fault pending; /* taken, its SIGBUS not yet delivered */
	volatile sig_atomic_t has_pending;
	sigjmp_buf escape; /* where a fault ends the access */
	struct result result;

	uint8_t *stack;
	size_t stack_size;
	void *sp;
	void *fake_stack; /* AddressSanitizer's */
};

enum vcpu_state {
	VCPU_ABSENT,
	VCPU_IDLE, /* no task can run: all done or parked */
	VCPU_RUNNING,
	VCPU_DEAD, /* its kernel panicked */
};

enum vcpu_order { /* from other threads, signalled by DF_APF_INTERRUPT */
	ORDER_SCHEDULE = 1,
	ORDER_WAKE_ALL = 2,
};

struct vcpu_counters {		      /* written by the thread, read by the console */
	_Atomic uint64_t events;      /* errors taken and acted upon */
	_Atomic uint64_t spurious;    /* signals that found no event */
	_Atomic uint64_t stray;	      /* events for a fault that has ended: dropped */
	_Atomic uint64_t not_present; /* all "not present" */
	_Atomic uint64_t declined;    /* ... on which no task could sleep */
	_Atomic uint64_t ready;	      /* tokens ended without an error */
	_Atomic uint64_t errors;      /* tokens ended with an error */
	_Atomic uint64_t early;	      /* ... before their "not present" */
	_Atomic uint64_t wake_all;
	_Atomic uint64_t deferred; /* interrupts found when they were enabled */
	_Atomic uint64_t acks;
	_Atomic uint64_t switches;
};

struct vcpu {
	int id;
	pid_t tid;
	struct df_slot *slot;

	/* under the lock in vcpu.c */
	enum vcpu_state state;
	struct task *tasks[TASK_COUNT];
	unsigned int queued;
	unsigned int unfinished; /* accesses queued or begun */
	uint64_t next_seq;

	_Atomic uint32_t orders; /* enum vcpu_order */

	/* the vCPU thread's own, and its signal handlers' */
	struct task *current;
	unsigned int last_task;
	bool reschedule; /* another task may run */
	timer_t tick;
	uint32_t cpu_state; /* copy of the slot's, which the host could change */
	bool sigbus_blocked;
	struct fault last_error;
	struct sleepers sleepers;
	void *sp;	  /* of the scheduler, while a task runs */
	void *fake_stack; /* AddressSanitizer's, and the bounds it needs */
	const void *stack;
	size_t stack_size;

	uint64_t outcomes[OUTCOME_COUNT];
	struct vcpu_counters count;
};

static inline void count_one(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

#endif
