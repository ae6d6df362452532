/* SPDX-License-Identifier: Apache-2.0
 *
 * access.c - what a vCPU does to the window.
 *
 * Owns the accesses: user mode as plain loads and stores, guest kernel mode
 * through guest_kernel.S, and real system calls on window memory.  Each counts
 * the bytes it has done in v->result as it goes, because any of them can end at
 * any byte by siglongjmp() from a signal handler.  For the same reason none may
 * hold a lock or own memory while it touches the window.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "standin.h"

static volatile uint8_t *at(uint64_t offset)
{
	return (volatile uint8_t *)(uintptr_t)(window_base + offset);
}

static uint64_t fnv1a(uint64_t hash, uint8_t byte)
{
	return (hash ^ byte) * UINT64_C(0x100000001b3);
}

static const uint64_t FNV1A_START = UINT64_C(0xcbf29ce484222325);

static uint64_t fnv1a_of(const uint8_t *bytes, uint64_t len)
{
	uint64_t hash = FNV1A_START;
	uint64_t i;

	for (i = 0; i < len; i++)
		hash = fnv1a(hash, bytes[i]);
	return hash;
}

static void set_value(struct result *r, uint64_t value)
{
	r->value = value;
	r->has_value = true;
}

/* ------------------------------------------------------------------ user mode */

static void user_touch(struct vcpu *v, struct access *a)
{
	uint8_t byte = *at(a->offset);

	v->result.done = 1;
	set_value(&v->result, byte);
}

static void user_read(struct vcpu *v, struct access *a)
{
	struct result *r = &v->result;

	r->has_bytes = true;
	for (; r->done < a->len; r->done++)
		r->bytes[r->done] = *at(a->offset + r->done);
}

static void user_sum(struct vcpu *v, struct access *a)
{
	uint64_t hash = FNV1A_START;

	for (; v->result.done < a->len; v->result.done++)
		hash = fnv1a(hash, *at(a->offset + v->result.done));
	set_value(&v->result, hash);
}

static void user_write(struct vcpu *v, struct access *a)
{
	for (; v->result.done < a->len; v->result.done++)
		*at(a->offset + v->result.done) = a->bytes[v->result.done];
}

static void user_fill(struct vcpu *v, struct access *a)
{
	for (; v->result.done < a->len; v->result.done++)
		*at(a->offset + v->result.done) = a->byte;
}

/* Also goes on after a fault: see access_run(). */
static void user_scan(struct vcpu *v, struct access *a)
{
	struct result *r = &v->result;

	for (; r->done < a->len; r->done += a->stride) {
		(void)*at(a->offset + r->done);
		r->steps++;
	}
}

static void user_laps(struct vcpu *v, struct access *a)
{
	laps_run(at(a->offset), a->len, a->stride, a->seed, (uint32_t *)(void *)a->bytes,
		 &v->result.laps);
	v->result.done = a->len;
}

/* ------------------------------------------------------------------ guest kernel mode */

static void kernel_copied(struct vcpu *v, struct access *a, size_t left)
{
	v->result.done = a->len - left;
	if (left)
		v->result.outcome = OUTCOME_EFAULT;
}

static void kernel_copy(struct vcpu *v, struct access *a)
{
	const void *from = (const void *)at(a->offset);

	kernel_copied(v, a, guest_copy(a->bytes, from, a->len));
	set_value(&v->result, fnv1a_of(a->bytes, v->result.done));
}

static void kernel_copy_bare(struct vcpu *v, struct access *a)
{
	const void *from = (const void *)at(a->offset);

	kernel_copied(v, a, guest_copy_bare(a->bytes, from, a->len));
	set_value(&v->result, fnv1a_of(a->bytes, v->result.done));
}

/* Stores the low byte of every byte's own window offset. */
static void kernel_store(struct vcpu *v, struct access *a)
{
	uint64_t i;

	for (i = 0; i < a->len; i++)
		a->bytes[i] = (uint8_t)(a->offset + i);
	kernel_copied(v, a, guest_copy((void *)at(a->offset), a->bytes, a->len));
}

/* ------------------------------------------------------------------ system calls */

static void system_call_returned(struct vcpu *v, struct access *a, ssize_t n, int error)
{
	struct result *r = &v->result;

	if (n < 0) {
		r->outcome = error == EFAULT ? OUTCOME_EFAULT : OUTCOME_ERROR;
		r->error = error;
		return;
	}
	r->done = (uint64_t)n;
	if (r->done < a->len)
		r->outcome = OUTCOME_SHORT;
}

static void failed(struct vcpu *v, int error)
{
	v->result.outcome = OUTCOME_ERROR;
	v->result.error = error;
}

static uint64_t fnv1a_of_file(int fd, uint64_t len)
{
	uint8_t chunk[4096];
	uint64_t hash = FNV1A_START;
	uint64_t offset = 0;
	ssize_t n, i;

	while (offset < len && (n = pread(fd, chunk, sizeof(chunk), (off_t)offset)) > 0) {
		for (i = 0; i < n; i++)
			hash = fnv1a(hash, chunk[i]);
		offset += (uint64_t)n;
	}
	return hash;
}

/* To a memfd, because /dev/null never looks at the buffer; the value is of what
 * arrived there. */
static void system_write(struct vcpu *v, struct access *a)
{
	int fd = memfd_create("daxfault-sys-write", MFD_CLOEXEC);
	ssize_t n;
	int error;

	if (fd < 0) {
		failed(v, errno);
		return;
	}
	v->in_syscall = 1;
	n = write(fd, (const void *)at(a->offset), a->len);
	error = errno;
	v->in_syscall = 0;
	system_call_returned(v, a, n, error);
	set_value(&v->result, fnv1a_of_file(fd, v->result.done));
	close(fd);
}

static void system_read(struct vcpu *v, struct access *a)
{
	int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ssize_t n;
	int error;

	if (fd < 0) {
		failed(v, errno);
		return;
	}
	v->in_syscall = 1;
	n = read(fd, (void *)at(a->offset), a->len);
	error = errno;
	v->in_syscall = 0;
	system_call_returned(v, a, n, error);
	close(fd);
}

static void system_dontneed(struct vcpu *v, struct access *a)
{
	if (madvise((void *)at(a->offset), a->len, MADV_DONTNEED) < 0)
		failed(v, errno);
	else
		v->result.done = a->len;
}

static void system_remap(struct vcpu *v, struct access *a)
{
	if (window_remap(a->offset, a->len, a->new_offset) < 0)
		failed(v, errno);
	else
		v->result.done = a->len;
}

static void system_sigbus(struct vcpu *v, struct access *a)
{
	if (exception_sigbus(a->disposition) < 0)
		failed(v, errno);
}

/* ------------------------------------------------------------------ */

const struct op_description ops[OP_COUNT] = {
	[OP_TOUCH] = { "touch", "o", 0, user_touch },
	[OP_READ] = { "read", "ol", ACCESS_BYTES_MAX, user_read },
	[OP_SUM] = { "sum", "ol", 0, user_sum },
	[OP_WRITE] = { "write", "ox", ACCESS_BYTES_MAX, user_write },
	[OP_FILL] = { "fill", "olb", 0, user_fill },
	[OP_SCAN] = { "scan", "ols", 0, user_scan },
	[OP_SCAN_ALL] = { "scan_all", "ols", 0, user_scan },
	[OP_LAPS] = { "laps", "olsr", 0, user_laps },
	[OP_KCOPY] = { "kcopy", "ol", ACCESS_COPY_MAX, kernel_copy },
	[OP_KCOPY_BARE] = { "kcopy_bare", "ol", ACCESS_COPY_MAX, kernel_copy_bare },
	[OP_KSTORE] = { "kstore", "ol", ACCESS_COPY_MAX, kernel_store },
	[OP_SYS_WRITE] = { "sys_write", "ol", 0, system_write },
	[OP_SYS_READ] = { "sys_read", "ol", 0, system_read },
	[OP_FORK] = { "fork", "o", 0, access_fork },
	[OP_DONTNEED] = { "dontneed", "ol", 0, system_dontneed },
	[OP_REMAP] = { "remap", "oln", 0, system_remap },
	[OP_SIGBUS] = { "sigbus", "d", 0, system_sigbus },
};

/* The others work on the address space, not on what is in it. */
static bool touches_window(enum op op)
{
	return op != OP_FORK && op != OP_DONTNEED && op != OP_REMAP && op != OP_SIGBUS;
}

/* Bytes the access needs beside the window. */
static size_t buffer_size(const struct access *a)
{
	if (a->op == OP_KCOPY || a->op == OP_KCOPY_BARE || a->op == OP_KSTORE)
		return a->len;
	if (a->op == OP_LAPS)
		return ((a->len - 1) / a->stride + 1) * sizeof(uint32_t);
	return 0;
}

/* Runs one access to its end, whichever that is, and leaves it in v->result. */
void access_run(struct vcpu *v, struct access *a)
{
	memset(&v->result, 0, offsetof(struct result, bytes));
	v->pending = (struct fault){ 0 };
	v->from = window_base + a->offset;
	v->to = touches_window(a->op) ? v->from + a->len : v->from;

	if (buffer_size(a)) {
		a->bytes = calloc(1, buffer_size(a));
		if (!a->bytes) {
			failed(v, ENOMEM);
			return;
		}
	}

	v->in_access = 1;
	for (;;) {
		if (sigsetjmp(v->escape, 1) == 0) {
			ops[a->op].run(v, a);
			break;
		}
		if (a->op != OP_SCAN_ALL)
			break;
		v->result.done += a->stride;
	}
	v->in_access = 0;

	/* The last stride may reach beyond the range. */
	if (v->result.done > a->len)
		v->result.done = a->len;
}

void access_free(struct access *a)
{
	free(a->bytes);
	free(a);
}
