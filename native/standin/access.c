/* SPDX-License-Identifier: Apache-2.0
 *
 * access.c - the accesses of a task to the window.
 *
 * Owns the accesses: plain loads and stores in user mode, guest_kernel.S in guest kernel mode, and
 * real system calls on window memory.  An access may end at any byte, by siglongjmp() from a signal
 * handler.  So each counts its bytes in t->result as it goes, and must not hold a lock or own
 * memory while it touches the window.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "standin.h"

enum {
	WORK_UNIT = 4096, /* hash steps: some microseconds */
};

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

static void user_touch(struct task *t, struct access *a)
{
	uint8_t byte = *at(a->offset);

	t->result.done = 1;
	set_value(&t->result, byte);
}

static void user_read(struct task *t, struct access *a)
{
	struct result *r = &t->result;

	r->has_bytes = true;
	for (; r->done < a->len; r->done++)
		r->bytes[r->done] = *at(a->offset + r->done);
}

static void user_sum(struct task *t, struct access *a)
{
	uint64_t hash = FNV1A_START;

	for (; t->result.done < a->len; t->result.done++)
		hash = fnv1a(hash, *at(a->offset + t->result.done));
	set_value(&t->result, hash);
}

static void user_write(struct task *t, struct access *a)
{
	for (; t->result.done < a->len; t->result.done++)
		*at(a->offset + t->result.done) = a->bytes[t->result.done];
}

static void user_fill(struct task *t, struct access *a)
{
	for (; t->result.done < a->len; t->result.done++)
		*at(a->offset + t->result.done) = a->byte;
}

/* May continue after a fault: see access_run(). */
static void user_scan(struct task *t, struct access *a)
{
	struct result *r = &t->result;

	for (; r->done < a->len; r->done += a->stride) {
		(void)*at(a->offset + r->done);
		r->steps++;
	}
}

static void user_laps(struct task *t, struct access *a)
{
	laps_run(at(a->offset), a->len, a->stride, a->seed, (uint32_t *)(void *)a->bytes,
		 &t->result.laps);
	t->result.done = a->len;
}

/* The value is the work done in the given time, so it shows the task's share of the vCPU. */
static void user_work(struct task *t, struct access *a)
{
	uint64_t end = now_ns() + a->milliseconds * 1000000;
	uint64_t hash = FNV1A_START;
	uint64_t units = 0;
	unsigned int i;

	do {
		for (i = 0; i < WORK_UNIT; i++)
			hash = fnv1a(hash, (uint8_t)i);
		/* keep the compiler from removing it */
		__asm__ volatile("" : "+r"(hash));
		units++;
	} while (now_ns() < end);
	set_value(&t->result, units);
}

/* ------------------------------------------------------------------ guest kernel mode */

static void kernel_copied(struct task *t, struct access *a, size_t left)
{
	t->result.done = a->len - left;
	if (left)
		t->result.outcome = OUTCOME_EFAULT;
}

static void kernel_copy(struct task *t, struct access *a)
{
	const void *from = (const void *)at(a->offset);

	kernel_copied(t, a, guest_copy(a->bytes, from, a->len));
	set_value(&t->result, fnv1a_of(a->bytes, t->result.done));
}

static void kernel_read(struct task *t, struct access *a)
{
	const void *from = (const void *)at(a->offset);

	kernel_copied(t, a, guest_copy(t->result.bytes, from, a->len));
	t->result.has_bytes = true;
}

static void kernel_copy_bare(struct task *t, struct access *a)
{
	const void *from = (const void *)at(a->offset);

	kernel_copied(t, a, guest_copy_bare(a->bytes, from, a->len));
	set_value(&t->result, fnv1a_of(a->bytes, t->result.done));
}

/* Stores the low byte of every byte's own window offset. */
static void kernel_store(struct task *t, struct access *a)
{
	uint64_t i;

	for (i = 0; i < a->len; i++)
		a->bytes[i] = (uint8_t)(a->offset + i);
	kernel_copied(t, a, guest_copy((void *)at(a->offset), a->bytes, a->len));
}

/* ------------------------------------------------------------------ system calls */

/* Uses errno of the call. */
static void system_call_returned(struct task *t, const struct access *a, ssize_t n)
{
	struct result *r = &t->result;

	if (n < 0) {
		r->outcome = errno == EFAULT ? OUTCOME_EFAULT : OUTCOME_ERROR;
		r->error = errno;
		return;
	}
	r->done = (uint64_t)n;
	if (r->done < a->len)
		r->outcome = OUTCOME_SHORT;
}

static void failed(struct task *t, int error)
{
	t->result.outcome = OUTCOME_ERROR;
	t->result.error = error;
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

/* Writes to a memfd, because /dev/null never reads the buffer.  The value is the hash of the
 * bytes in the memfd. */
static void system_write(struct task *t, struct access *a)
{
	int fd CLEANUP_CLOSE = memfd_create("daxfault-sys-write", MFD_CLOEXEC);

	if (fd < 0) {
		failed(t, errno);
		return;
	}
	system_call_returned(t, a, write(fd, (const void *)at(a->offset), a->len));
	set_value(&t->result, fnv1a_of_file(fd, t->result.done));
}

static void system_read(struct task *t, struct access *a)
{
	int fd CLEANUP_CLOSE = open("/dev/zero", O_RDONLY | O_CLOEXEC);

	if (fd < 0) {
		failed(t, errno);
		return;
	}
	system_call_returned(t, a, read(fd, (void *)at(a->offset), a->len));
}

static void system_dontneed(struct task *t, struct access *a)
{
	if (madvise((void *)at(a->offset), a->len, MADV_DONTNEED) < 0)
		failed(t, errno);
	else
		t->result.done = a->len;
}

static void system_remap(struct task *t, struct access *a)
{
	int error = window_remap(a->offset, a->len, a->new_offset);

	if (error)
		failed(t, -error);
	else
		t->result.done = a->len;
}

static void system_sigbus(struct task *t, struct access *a)
{
	if (exception_sigbus(t->vcpu, a->disposition) < 0)
		failed(t, errno);
}

/* ------------------------------------------------------------------ */

const struct op_description ops[OP_COUNT] = {
	[OP_TOUCH] = { "touch", "o", 0, user_touch, 0, true },
	[OP_READ] = { "read", "ol", ACCESS_BYTES_MAX, user_read, 0, true },
	[OP_SUM] = { "sum", "ol", 0, user_sum, 0, true },
	[OP_WRITE] = { "write", "ox", ACCESS_BYTES_MAX, user_write, 0, true },
	[OP_FILL] = { "fill", "olb", 0, user_fill, 0, true },
	[OP_SCAN] = { "scan", "ols", 0, user_scan, 0, true },
	[OP_SCAN_ALL] = { "scan_all", "ols", 0, user_scan, 0, true },
	[OP_LAPS] = { "laps", "olsr", 0, user_laps, 0, false }, /* qsort() allocates */
	[OP_WORK] = { "work", "m", 0, user_work, 0, true },
	[OP_KCOPY] = { "kcopy", "ol", ACCESS_COPY_MAX, kernel_copy, DF_CPU_KERNEL, false },
	[OP_KREAD] = { "kread", "ol", ACCESS_BYTES_MAX, kernel_read, DF_CPU_KERNEL, false },
	[OP_KCOPY_BARE] = { "kcopy_bare", "ol", ACCESS_COPY_MAX, kernel_copy_bare, DF_CPU_KERNEL,
			    false },
	[OP_KSTORE] = { "kstore", "ol", ACCESS_COPY_MAX, kernel_store, DF_CPU_KERNEL, false },
	[OP_SYS_WRITE] = { "sys_write", "ol", 0, system_write, DF_CPU_SYSCALL, false },
	[OP_SYS_READ] = { "sys_read", "ol", 0, system_read, DF_CPU_SYSCALL, false },
	[OP_FORK] = { "fork", "o", 0, access_fork, DF_CPU_SYSCALL, false },
	[OP_DONTNEED] = { "dontneed", "ol", 0, system_dontneed, DF_CPU_SYSCALL, false },
	[OP_REMAP] = { "remap", "oln", 0, system_remap, DF_CPU_SYSCALL, false },
	[OP_SIGBUS] = { "sigbus", "d", 0, system_sigbus, DF_CPU_SYSCALL, false },
};

/* The other accesses work on the address space, not on its pages. */
static bool touches_window(enum op op)
{
	return op != OP_FORK && op != OP_DONTNEED && op != OP_REMAP && op != OP_SIGBUS &&
	       op != OP_WORK;
}

/* Bytes of buffer that the access needs. */
static size_t buffer_size(const struct access *a)
{
	if (a->op == OP_KCOPY || a->op == OP_KCOPY_BARE || a->op == OP_KSTORE)
		return a->len;
	if (a->op == OP_LAPS)
		return ((a->len - 1) / a->stride + 1) * sizeof(uint32_t);
	return 0;
}

static void run(struct task *t, struct access *a)
{
	while (!t->killed) {
		if (sigsetjmp(t->escape, 0) == 0) {
			exception_enter(t);
			ops[a->op].run(t, a);
			break;
		}
		if (a->op != OP_SCAN_ALL || t->result.outcome == OUTCOME_KILLED)
			break;
		exception_leave(t);
		t->result.done += a->stride;
	}
	exception_leave(t);
}

/* Run one access until it ends or fails; the result is in t->result. */
void access_run(struct task *t)
{
	struct access *a = t->access;

	memset(&t->result, 0, offsetof(struct result, bytes));
	t->has_pending = 0;
	t->preemptible = ops[a->op].preemptible;
	t->mode = ops[a->op].mode | (a->irqoff ? 0 : DF_CPU_IF);
	t->from = window_base + a->offset;
	t->to = touches_window(a->op) ? t->from + a->len : t->from;

	if (buffer_size(a)) {
		a->bytes = calloc(1, buffer_size(a));
		if (!a->bytes) {
			failed(t, ENOMEM);
			return;
		}
	}
	run(t, a);
	if (t->killed && t->result.outcome != OUTCOME_PANIC)
		t->result.outcome = OUTCOME_KILLED;

	/* The last stride may reach beyond the range. */
	if (t->result.done > a->len)
		t->result.done = a->len;
}

void access_free(struct access *a)
{
	free(a->bytes);
	free(a);
}
