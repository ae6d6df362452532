/* SPDX-License-Identifier: Apache-2.0
 *
 * standin.h - shared by the files of the guest stand-in.
 *
 * Owns no state.  The layouts that cross to the host are in abi.h; nothing
 * here may be sent.
 *
 *	main.c		arguments, start, exit code
 *	wire.c		the connection to the host
 *	window.c	the DAX window and its userfaultfd
 *	takeover.c	answers faults after the host is gone
 *	console.c	reads commands
 *	parse.c		parses their words
 *	files.c		open files and their mappings
 *	answer.c	writes answers
 *	vcpu.c		vCPU threads, their queues, and which task runs
 *	task.c		tasks: contexts on a vCPU's thread
 *	switch.S	switches stacks
 *	report.c	the result of an access
 *	access.c	the accesses to the window
 *	fork.c		an access in a forked child
 *	exception.c	the guest kernel's exception and interrupt entries
 *	signals.c	the signal mask of a vCPU's thread
 *	async_pf.c	the guest side of asynchronous page faults
 *	sleepers.c	which task sleeps on which token
 *	trace.c		the events of the guest kernel
 *	guest_kernel.S	guest kernel code and its exception table
 */
#ifndef DAXFAULT_STANDIN_H
#define DAXFAULT_STANDIN_H

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi/abi.h"
#include "base/json.h"
#include "tasks.h"

enum {
	EXIT_DONE = 0,
	EXIT_PANIC = 1, /* a guest kernel panicked */
	EXIT_USAGE = 2, /* arguments, script, or this system */
	EXIT_HOST = 3,	/* the host refused or ended */
};

/* ------------------------------------------------------------------ answer.c */

enum {
	ANSWER_MAX = 1 << 19, /* `stat` of 63 vCPUs with 96 tasks each */
};

struct answer {
	struct json json;
	char line[ANSWER_MAX];
};

struct json *answer_begin(struct answer *a, const char *event);
void answer_end(struct answer *a);

/* ------------------------------------------------------------------ wire.c */

/* One outstanding call at a time; all calls come from the main thread. */
int wire_connect(const char *path); /* -> a socket, or a negative errno */
/* `host_lost` runs once, in the wire's own thread, and may stay there. */
void wire_start(int fd, void (*host_lost)(const char *why));
int wire_call(struct df_header *msg, size_t len, const int *fds, int nfds, int *reply_fd);
bool wire_lost(void);

/* ------------------------------------------------------------------ window.c */

extern uint64_t window_base;
extern uint64_t window_len;
extern int window_uffd;

/* These return a negative errno. */
int window_open(uint64_t len);
int window_map(uint64_t moffset, uint64_t len, int fd, uint64_t foffset, bool writable);
int window_unmap(uint64_t moffset, uint64_t len);
int window_remap(uint64_t offset, uint64_t len, uint64_t new_offset);

bool window_sees_fork(void);
bool window_has_poison(void);
bool window_registered(uint64_t address);

/* ------------------------------------------------------------------ takeover.c */

void takeover(void) __attribute__((noreturn));

/* ------------------------------------------------------------------ access.c, vcpu.c */

/* `arguments` has a letter for each: o offset, l length, s stride, r seed, x bytes in
 * hex, b one byte, n new offset, d disposition of SIGBUS, m milliseconds. */
struct op_description {
	const char *name;
	const char *arguments;
	uint64_t len_max; /* 0: the window */
	void (*run)(struct task *t, struct access *a);
	uint32_t mode;	  /* enum df_cpu_state, without DF_CPU_IF */
	bool preemptible; /* holds no resource that another task may need */
};

extern const struct op_description ops[OP_COUNT];

enum {
	VCPU_COUNT = DF_VCPU_MAX - 1,
};

void access_run(struct task *t);
void access_fork(struct task *t, struct access *a);
void fork_abandon(void);
void access_free(struct access *a);

int vcpu_queue(int id, unsigned int task, struct access *a);
int vcpu_kill(int id, unsigned int task);
void vcpu_async(bool on);
void vcpu_wait(int id); /* -1: all of them */
bool vcpu_panicked(void);
void vcpu_host_lost(void);
void vcpu_stat(struct json *j);

/* ------------------------------------------------------------------ report.c */

void report_done(const struct task *t, const struct access *a, uint64_t ns);
void report_dead(int vcpu, unsigned int task, const struct access *a);
void report_stat(struct json *j, const struct vcpu *v);

/* ------------------------------------------------------------------ task.c, switch.S */

extern __thread struct vcpu *this_vcpu;

/* `body` runs an access to its end. */
struct task *task_new(struct vcpu *v, unsigned int id, void (*body)(struct task *t));
void task_run(struct task *t);
void task_leave(struct task *t, enum task_state state);
void task_switch(void **save, void *to);

/* ------------------------------------------------------------------ async_pf.c */

/* The configuration of this guest; written before any vCPU runs. */
struct guest {
	enum df_abi abi;
	uint32_t cpuid;	 /* granted */
	uint32_t posted; /* enum df_posted: defects to keep */
	bool async;	 /* --no-async is not given */
	int doorbell;
};

/* An event that the host wrote to the shared area. */
struct exception {
	enum {
		EXCEPTION_NONE,
		EXCEPTION_NOT_PRESENT,
		EXCEPTION_TOKEN_DONE, /* RFC v1: "ready", or an error */
		EXCEPTION_ERROR,      /* at the faulting instruction */
	} kind;
	uint32_t token;
	uint64_t fault; /* NOT_PRESENT: its address, or 0 */
	struct wakeup wakeup;
};

extern struct guest guest;

int async_pf_area(void);
struct df_slot *async_pf_slot(int vcpu);
void async_pf_enable(struct vcpu *v, bool async);
void async_pf_entered(const struct vcpu *v);
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

/* ------------------------------------------------------------------ trace.c */

enum trace_what {
	TRACE_NOT_PRESENT,
	TRACE_DECLINED,
	TRACE_PARK,
	TRACE_READY,
	TRACE_WAKE,
	TRACE_EARLY,
	TRACE_ERROR,
	TRACE_SIGBUS,
	TRACE_FIXUP,
	TRACE_PANIC,
	TRACE_SWITCH,
	TRACE_IDLE,
	TRACE_ACK,
	TRACE_IRQ,
	TRACE_DEFERRED,
	TRACE_WAKE_ALL,
	TRACE_BEGIN,
	TRACE_END,
	TRACE_KILLED,
	TRACE_POISON,
	TRACE_COUNT,
};

void trace_set(bool wanted);
void trace(const struct vcpu *v, int task, enum trace_what what, uint32_t token, uint64_t gva);
void trace_task(const struct task *t, enum trace_what what, uint32_t token, uint64_t gva);
void trace_dump(void);

/* ------------------------------------------------------------------ signals.c */

int signals_install(int sig, void (*handler)(int, siginfo_t *, void *));
void signals_block(void);
void signals_allow(const struct vcpu *v, bool interrupts);
void signals_wait(void);

/* ------------------------------------------------------------------ parse.c, files.c */

/* Functions that return a string return NULL or the error. */
bool parse_number(const char *word, uint64_t *value);
bool parse_vcpu(const char *word, int *vcpu, unsigned int *task);
const char *check_range(uint64_t offset, uint64_t len);
const char *parse_access(char **words, int n, struct access *a);
const char *file_open(char **words, int n);
const char *file_close(char **words, int n);
const char *file_map(char **words, int n);
const char *file_unmap(char **words, int n);

/* ------------------------------------------------------------------ console.c */

bool console_run(void); /* false when a line had an error */

#endif
