/* SPDX-License-Identifier: Apache-2.0
 *
 * standin.h - what the files of the guest stand-in tell each other.
 *
 * Owns no state.  The layouts that cross to the host are in abi.h; nothing
 * here may be sent.
 *
 *	main.c		arguments, start, exit code
 *	wire.c		the connection to the host
 *	window.c	the DAX window and its userfaultfd
 *	takeover.c	who answers faults once the host is gone
 *	console.c	commands in
 *	parse.c		what is in them
 *	files.c		open files and their mappings
 *	json.c		answers out
 *	vcpu.c		vCPU threads, their queues, and which task runs
 *	task.c		tasks: contexts on a vCPU's thread
 *	switch.S	from one stack to another
 *	report.c	what became of an access
 *	access.c	what a task does to the window
 *	laps.c		the same with a stop-watch
 *	fork.c		the same in a forked child
 *	hosting.c	the window as a file for a guest of this guest
 *	exception.c	the guest kernel's exception and interrupt entries
 *	signals.c	when a vCPU's thread takes its signals
 *	async_pf.c	the guest's half of asynchronous page faults
 *	sleepers.c	which task sleeps on which token
 *	guest_kernel.S	guest kernel code and its exception table
 */
#ifndef DAXFAULT_STANDIN_H
#define DAXFAULT_STANDIN_H

#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "abi.h"
#include "laps.h"
#include "sleepers.h"

enum {
	EXIT_DONE = 0,
	EXIT_PANIC = 1,			/* a guest kernel panicked */
	EXIT_USAGE = 2,			/* arguments, script, or this system */
	EXIT_HOST = 3,			/* the host refused or went away */
};

/* ------------------------------------------------------------------ json.c */

enum {
	JSON_LINE_MAX = 1 << 19,	/* `stat` of 63 vCPUs with 96 tasks each */
	JSON_TEXT_MAX = 512,		/* longer texts are cut */
};

struct json {
	size_t len;
	char line[JSON_LINE_MAX];
};

void json_begin(struct json *j, const char *event);
void json_int(struct json *j, const char *key, int64_t value);
void json_uint(struct json *j, const char *key, uint64_t value);
void json_bool(struct json *j, const char *key, bool value);
void json_address(struct json *j, const char *key, uint64_t value);	/* "0x..." */
void json_text(struct json *j, const char *key, const char *text);
void json_bytes(struct json *j, const char *key, const uint8_t *bytes, size_t len);
void json_list_begin(struct json *j, const char *key);
void json_list_end(struct json *j);
void json_object_begin(struct json *j);
void json_object_end(struct json *j);
void json_emit(struct json *j);

/* ------------------------------------------------------------------ wire.c */

/* One outstanding call at a time; all calls come from the main thread. */
int wire_connect(const char *path);
void wire_start(int fd);
int wire_call(struct df_header *msg, size_t len, const int *fds, int nfds, int *reply_fd);
bool wire_lost(void);

/* ------------------------------------------------------------------ window.c */

extern uint64_t window_base;
extern uint64_t window_len;
extern int window_uffd;

int uffd_open(uint64_t features, uint64_t *granted);
int window_open(uint64_t len);
bool window_sees_fork(void);
bool window_has_poison(void);
int window_map(uint64_t moffset, uint64_t len, int fd, uint64_t foffset, bool writable);
int window_unmap(uint64_t moffset, uint64_t len);
int window_remap(uint64_t offset, uint64_t len, uint64_t new_offset);
bool window_registered(uint64_t address);

/* ------------------------------------------------------------------ takeover.c */

void takeover(void) __attribute__((noreturn));

/* ------------------------------------------------------------------ access.c, vcpu.c */

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
	ACCESS_BYTES_MAX = 4096,		/* read, write */
	ACCESS_COPY_MAX = 64 << 20,		/* kcopy, kcopy_bare, kstore */
	ACCESS_WORK_MAX = 600000,		/* ms */
};

struct result;

struct access {
	struct access *next;
	/* of an access that no script asked for: called at its end, in the place of a
	 * printed line.  It has no seq. */
	void (*ended)(const struct access *a, const struct result *r);
	void *context;
	enum op op;
	uint64_t seq;			/* counts from 1 on every vCPU */
	uint64_t offset;
	uint64_t len;
	uint64_t stride;		/* scan, scan_all, laps */
	uint64_t seed;			/* laps: 0 in order */
	uint64_t new_offset;		/* remap */
	uint64_t milliseconds;		/* work */
	uint8_t byte;			/* fill */
	bool irqoff;
	enum sigbus_disposition disposition;
	uint8_t *bytes;			/* write: what; k...: the kernel's buffer; owned */
};

/* Written while the access runs, by the task and by its vCPU's signal handlers,
 * and read after a siglongjmp(): hence in memory, and what counts is volatile. */
struct result {
	volatile enum outcome outcome;
	volatile uint64_t done;		/* bytes */
	volatile uint64_t steps;	/* scan, scan_all: loads that succeeded */
	volatile uint64_t faults;	/* how many failed */
	int error;			/* positive errno of a system call */
	int signal;			/* that killed the forked child */
	struct fault fault;		/* the first */
	uint64_t instruction;		/* of a panic */
	uint32_t events;		/* errors taken from the shared area */
	uint32_t parks;			/* how often it slept on a token */
	struct laps laps;
	uint64_t value;
	bool has_value;
	bool has_bytes;
	uint8_t bytes[ACCESS_BYTES_MAX];	/* read */
};

enum task_state {
	TASK_IDLE,			/* between accesses */
	TASK_READY,
	TASK_RUNNING,
	TASK_PARKED,			/* sleeps until its token is ready */
	TASK_DONE,			/* its access is, and not yet reported */
	TASK_DEAD,
};

/* A context on its vCPU's thread.  Its stack holds the frames of the signals that
 * interrupted it, while other tasks run. */
struct task {
	unsigned int id;
	struct vcpu *vcpu;

	/* under the lock in vcpu.c */
	struct access *first, **last;

	atomic_bool killed;
	_Atomic enum task_state state;	/* the vCPU's, read by the console */
	_Atomic uint32_t token;		/* parked: what it waits for */

	/* the vCPU's own, and its signal handlers' */
	struct access *access;
	uint64_t started;		/* ns */
	struct wakeup wakeup;		/* how the last wait ended */
	volatile sig_atomic_t in_access;
	uint32_t mode;			/* enum df_cpu_state while it runs */
	uint64_t from, to;		/* the addresses the access may touch */
	struct fault pending;		/* taken, its SIGBUS not yet delivered */
	volatile sig_atomic_t has_pending;
	sigjmp_buf escape;		/* where a fault ends the access */
	struct result result;

	uint8_t *stack;
	size_t stack_size;
	void *sp;
	void *fake_stack;		/* AddressSanitizer's */
};

enum vcpu_state {
	VCPU_ABSENT,
	VCPU_IDLE,			/* nothing to run: all done, or all parked */
	VCPU_RUNNING,
	VCPU_DEAD,			/* its kernel panicked */
};

enum vcpu_order {			/* from other threads, told by DF_APF_INTERRUPT */
	ORDER_SCHEDULE = 1,
	ORDER_WAKE_ALL = 2,
};

struct vcpu_counters {			/* written by the thread, read by the console */
	_Atomic uint64_t events;	/* errors taken and acted upon */
	_Atomic uint64_t spurious;	/* signals that found no event */
	_Atomic uint64_t stray;		/* events for a fault that is over: dropped */
	_Atomic uint64_t not_present;	/* "not present", all of them */
	_Atomic uint64_t declined;	/* ... of which nobody could sleep */
	_Atomic uint64_t ready;		/* tokens done, without an error */
	_Atomic uint64_t errors;	/* tokens done, with one */
	_Atomic uint64_t early;		/* ... before their "not present" */
	_Atomic uint64_t wake_all;
	_Atomic uint64_t deferred;	/* interrupts found when they were enabled */
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
	unsigned int unfinished;	/* accesses queued or begun */
	uint64_t next_seq;

	_Atomic uint32_t orders;	/* enum vcpu_order */

	/* the vCPU thread's own, and its signal handlers' */
	struct task *current;
	unsigned int last_task;
	bool reschedule;		/* somebody else may run */
	timer_t tick;
	uint32_t cpu_state;		/* as in the slot, which the host can write */
	bool sigbus_blocked;
	struct fault last_error;
	struct sleepers sleepers;
	void *sp;			/* of the scheduler, while a task runs */
	void *fake_stack;		/* AddressSanitizer's, and the bounds it wants */
	const void *stack;
	size_t stack_size;

	uint64_t outcomes[OUTCOME_COUNT];
	struct vcpu_counters count;
};

static inline void count_one(_Atomic uint64_t *counter)
{
	atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

/* `arguments` has a letter for each: o offset, l length, s stride, r seed, x bytes in
 * hex, b one byte, n new offset, d disposition of SIGBUS, m milliseconds. */
struct op_description {
	const char *name;
	const char *arguments;
	uint64_t len_max;		/* 0: the window */
	void (*run)(struct task *t, struct access *a);
	uint32_t mode;			/* enum df_cpu_state, beside DF_CPU_IF */
	bool preemptible;		/* holds nothing that another task may want */
};

extern const struct op_description ops[OP_COUNT];

enum {
	VCPU_COUNT = DF_VCPU_MAX - 1,
};

extern __thread struct vcpu *this_vcpu;

void access_run(struct task *t, struct access *a);
void access_fork(struct task *t, struct access *a);
void fork_abandon(void);
void access_free(struct access *a);

int vcpu_event_area(void);
int vcpu_queue(int id, unsigned int task, struct access *a);
int vcpu_kill(int id, unsigned int task);
void vcpu_async(bool on);
void vcpu_wait(int id);			/* -1: all of them */
bool vcpu_panicked(void);
void vcpu_host_lost(void);
void vcpu_stat(struct json *j);

/* ------------------------------------------------------------------ report.c */

void report_done(const struct task *t, const struct access *a, uint64_t ns);
void report_dead(int vcpu, unsigned int task, const struct access *a);
void report_stat(struct json *j, const struct vcpu *v);

/* ------------------------------------------------------------------ task.c, switch.S */

struct task *task_new(struct vcpu *v, unsigned int id);
void task_run(struct task *t);
void task_leave(struct task *t, enum task_state state);
void task_switch(void **save, void *to);

/* ------------------------------------------------------------------ async_pf.c */

/* How this guest was built and what it was granted; written before any vCPU runs. */
struct guest {
	enum df_abi abi;
	uint32_t cpuid;			/* granted */
	uint32_t posted;		/* enum df_posted: defects left in */
	bool async;			/* --no-async is not given */
	int doorbell;
};

/* What the host wrote beside its signal. */
struct exception {
	enum {
		EXCEPTION_NONE,
		EXCEPTION_NOT_PRESENT,
		EXCEPTION_TOKEN_DONE,	/* RFC v1: "ready", or an error */
		EXCEPTION_ERROR,	/* at the faulting instruction */
	} kind;
	uint32_t token;
	struct wakeup wakeup;
};

extern struct guest guest;

void async_pf_enable(struct vcpu *v, bool async);
void async_pf_take_exception(struct vcpu *v, struct exception *e);
void async_pf_take_interrupt(struct vcpu *v);
void async_pf_take_orders(struct vcpu *v);
void async_pf_token_done(struct vcpu *v, uint32_t token, const struct wakeup *wakeup);
void async_pf_ring(void);
uint32_t irq_save(struct vcpu *v);
bool irq_restore(struct vcpu *v, uint32_t state);

/* ------------------------------------------------------------------ exception.c */

int exception_install(void);
void exception_enter(struct task *t);
void exception_leave(struct task *t);
int exception_sigbus(struct vcpu *v, enum sigbus_disposition disposition);

/* Guest kernel code (guest_kernel.S): the number of bytes NOT copied. */
size_t guest_copy(void *to, const void *from, size_t len);
size_t guest_copy_bare(void *to, const void *from, size_t len);

/* ------------------------------------------------------------------ signals.c */

int signals_install(int sig, void (*handler)(int, siginfo_t *, void *));
void signals_block(void);
void signals_allow(const struct vcpu *v, bool interrupts);
void signals_wait(void);

/* ------------------------------------------------------------------ parse.c, files.c */

/* The functions that return a text return NULL or what is wrong. */
bool parse_number(const char *word, uint64_t *value);
bool parse_vcpu(const char *word, int *vcpu, unsigned int *task);
const char *check_range(uint64_t offset, uint64_t len);
const char *parse_access(char **words, int n, struct access *a);
const char *file_open(char **words, int n);
const char *file_close(char **words, int n);
const char *file_map(char **words, int n);
const char *file_unmap(char **words, int n);

/* ------------------------------------------------------------------ hosting.c */

const char *hosting_begin(char **words, int n);
const char *hosting_tell(char **words, int n);
void hosting_end(void);

/* ------------------------------------------------------------------ console.c */

bool console_run(void);			/* false when a line was in error */

#endif
