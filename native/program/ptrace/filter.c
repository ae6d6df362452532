/* SPDX-License-Identifier: Apache-2.0
 *
 * filter.c - generates the seccomp filter that stops a tracee.
 *
 * The filter stops a call that passes the tests of a row in the table of calls.h, and no other.  It
 * never stops system calls of i386 and x32.  It also notifies the listener of the close() by which
 * a tracee requests a descriptor (inject.c).
 */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tracer.h"

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define LOAD_ARG(n) \
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, \
		 (uint32_t)(offsetof(struct seccomp_data, args) + 8 * (n)))
#define IF(how, value, yes, no) BPF_JUMP(BPF_JMP | (how) | BPF_K, (value), (yes), (no))
#define RETURN(what) BPF_STMT(BPF_RET | BPF_K, (what))

enum {
	CODE_MAX = 256,
};

struct filter {
	struct sock_filter code[CODE_MAX];
	unsigned short len;
	bool full;
};

static void add(struct filter *f, struct sock_filter instruction)
{
	if (f->len == CODE_MAX)
		f->full = true;
	else
		f->code[f->len++] = instruction;
}

/* A test that fails skips the `left` remaining instructions of its row. */
static void add_test(struct filter *f, const struct call_test *t, uint8_t left)
{
	bool any = t->kind == TEST_ANY || t->kind == TEST_NONE;
	bool must = t->kind == TEST_IS || t->kind == TEST_ANY;

	add(f, (struct sock_filter)LOAD_ARG(t->arg));
	add(f, (struct sock_filter)IF(any ? BPF_JSET : BPF_JEQ, t->value, must ? 0 : left,
				      must ? left : 0));
}

static void add_row(struct filter *f, const struct call_row *row)
{
	uint8_t tests = 0, i;

	while (tests < CALL_TESTS && row->tests[tests].kind != TEST_END)
		tests++;
	add(f, (struct sock_filter)LOAD(nr));
	add(f, (struct sock_filter)IF(BPF_JEQ, (uint32_t)row->number, 0, (uint8_t)(2 * tests + 1)));
	for (i = 0; i < tests; i++)
		add_test(f, &row->tests[i], (uint8_t)(2 * (tests - i - 1) + 1));
	add(f, (struct sock_filter)RETURN(SECCOMP_RET_TRACE));
}

static void make(struct filter *f, uint64_t cookie)
{
	size_t i;

	add(f, (struct sock_filter)LOAD(arch));
	add(f, (struct sock_filter)IF(BPF_JEQ, AUDIT_ARCH_X86_64, 1, 0));
	add(f, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
	for (i = 0; i < calls_rows; i++)
		if (calls_table[i].decide)
			add_row(f, &calls_table[i]);
	add(f, (struct sock_filter)LOAD(nr));
	add(f, (struct sock_filter)IF(BPF_JEQ, SYS_close, 0, 5));
	add_test(f, &(struct call_test){ TEST_IS, 4, (uint32_t)cookie }, 3);
	add_test(f, &(struct call_test){ TEST_IS, 5, (uint32_t)(cookie >> 32) }, 1);
	add(f, (struct sock_filter)RETURN(SECCOMP_RET_USER_NOTIF));
	add(f, (struct sock_filter)RETURN(SECCOMP_RET_ALLOW));
}

int filter_install(uint64_t cookie)
{
	struct filter f = { .len = 0 };
	struct sock_fprog program;
	unsigned int flags = SECCOMP_FILTER_FLAG_NEW_LISTENER;
	int fd;

	make(&f, cookie);
	if (f.full) {
		errno = E2BIG;
		return -1;
	}
	program = (struct sock_fprog){ .len = f.len, .filter = f.code };
	/* Without CAP_SYS_ADMIN it requires no_new_privs: set-user-ID programs run without the
	 * privileges of their owner. */
	fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	if (fd < 0 && errno == EACCES && !prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
	return fd;
}
