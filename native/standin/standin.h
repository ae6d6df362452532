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
 *	vcpu.c		vCPU threads and their queues
 *	access.c	what a vCPU does to the window
 *	laps.c		the same with a stop-watch
 *	fork.c		the same in a forked child
 *	exception.c	the guest kernel's exception entry
 *	guest_kernel.S	guest kernel code and its exception table
 */
#ifndef DAXFAULT_STANDIN_H
#define DAXFAULT_STANDIN_H

#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "abi.h"
#include "laps.h"

enum {
	EXIT_DONE = 0,
	EXIT_PANIC = 1,			/* a guest kernel panicked */
	EXIT_USAGE = 2,			/* arguments, script, or this system */
	EXIT_HOST = 3,			/* the host refused or went away */
};

/* ------------------------------------------------------------------ json.c */

enum {
	JSON_LINE_MAX = 32768,		/* `stat` of 63 vCPUs */
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
};

struct access {
	struct access *next;
	enum op op;
	uint64_t seq;			/* counts from 1 on every vCPU */
	uint64_t offset;
	uint64_t len;
	uint64_t stride;		/* scan, scan_all, laps */
	uint64_t seed;			/* laps: 0 in order */
	uint64_t new_offset;		/* remap */
	uint8_t byte;			/* fill */
	enum sigbus_disposition disposition;
	uint8_t *bytes;			/* write: what; k...: the kernel's buffer; owned */
};

/* An exception as the guest kernel saw it: from the event area, or, for a
 * poisoned page, from the processor, with no more than an address. */
struct fault {
	uint64_t address;
	int si_code;
	int32_t error;
	uint32_t reason;
	uint32_t attempts;
};

/* Written while the access runs, by the vCPU and by its signal handlers, and
 * read after a siglongjmp(): hence in memory, and what counts is volatile. */
struct result {
	enum outcome outcome;
	volatile uint64_t done;		/* bytes */
	volatile uint64_t steps;	/* scan, scan_all: loads that succeeded */
	volatile uint64_t faults;	/* how many failed */
	int error;			/* positive errno of a system call */
	int signal;			/* that killed the forked child */
	struct fault fault;		/* the first */
	uint64_t instruction;		/* of a panic */
	uint32_t events;		/* taken from the event area */
	struct laps laps;
	uint64_t value;
	bool has_value;
	bool has_bytes;
	uint8_t bytes[ACCESS_BYTES_MAX];	/* read */
};

enum vcpu_state {
	VCPU_ABSENT,
	VCPU_IDLE,
	VCPU_RUNNING,
	VCPU_DEAD,			/* its kernel panicked */
};

struct vcpu {
	int id;
	pid_t tid;
	struct df_slot *slot;

	/* under the lock in vcpu.c */
	enum vcpu_state state;
	struct access *first, **last;
	unsigned int queued;
	uint64_t next_seq;

	/* the vCPU thread's own, and its signal handlers' */
	volatile sig_atomic_t in_access;
	volatile sig_atomic_t in_syscall;
	uint64_t from, to;		/* the addresses the access may touch */
	struct fault pending;		/* taken, its SIGBUS not yet delivered */
	sigjmp_buf escape;		/* where a fault ends the access */
	struct result result;

	/* counters for `stat`: written by the thread, read by the console */
	uint64_t outcomes[OUTCOME_COUNT];
	_Atomic uint64_t events;	/* taken and acted upon */
	_Atomic uint64_t spurious;	/* signals that found no event */
	_Atomic uint64_t stray;		/* events for a fault that is over: dropped */
};

/* `arguments` has a letter for each: o offset, l length, s stride, r seed, x bytes in
 * hex, b one byte, n new offset, d disposition of SIGBUS. */
struct op_description {
	const char *name;
	const char *arguments;
	uint64_t len_max;		/* 0: the window */
	void (*run)(struct vcpu *v, struct access *a);
};

extern const struct op_description ops[OP_COUNT];

enum {
	VCPU_COUNT = DF_VCPU_MAX - 1,
};

extern __thread struct vcpu *this_vcpu;

void access_run(struct vcpu *v, struct access *a);
void access_fork(struct vcpu *v, struct access *a);
void fork_abandon(void);
void access_free(struct access *a);

int vcpu_event_area(void);
void vcpu_enable(uint32_t enable);
int vcpu_queue(int id, struct access *a);
void vcpu_wait(int id);			/* -1: all of them */
bool vcpu_panicked(void);
void vcpu_stat(struct json *j);

/* ------------------------------------------------------------------ exception.c */

int exception_install(void);
int exception_thread_start(void);
void exception_thread_end(void);
int exception_sigbus(enum sigbus_disposition disposition);

/* Guest kernel code (guest_kernel.S): the number of bytes NOT copied. */
size_t guest_copy(void *to, const void *from, size_t len);
size_t guest_copy_bare(void *to, const void *from, size_t len);

/* ------------------------------------------------------------------ parse.c, files.c */

/* The functions that return a text return NULL or what is wrong. */
bool parse_number(const char *word, uint64_t *value);
const char *check_range(uint64_t offset, uint64_t len);
const char *parse_access(char **words, int n, struct access *a);
const char *file_open(char **words, int n);
const char *file_close(char **words, int n);
const char *file_map(char **words, int n);
const char *file_unmap(char **words, int n);

/* ------------------------------------------------------------------ console.c */

bool console_run(void);			/* false when a line was in error */

#endif
