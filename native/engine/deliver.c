/* SPDX-License-Identifier: Apache-2.0
 *
 * deliver.c - delivers an answer to a guest: a wake-up, an error of its ABI, poison, or nothing.
 * Must not choose between them: the answer includes the alternative for an error that cannot be
 * delivered.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "internal.h"

#define LEFT_TRIES 3 /* failures in a row of a thread that seems to have left its fault */

static int read_proc(int pid, int tid, const char *name, char *text, size_t size)
{
	int fd CLEANUP_CLOSE = -1;
	char path[64];
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	if (n < 0)
		return -errno;
	text[n] = 0;
	return 0;
}

/* Can the thread take our signal at the faulting instruction?  0, or why not:
 * -EBUSY in a system call, -EAGAIN not blocked at all, -EPERM signal blocked. */
static int can_take_signal(int pid, int tid)
{
	unsigned long long blocked;
	char text[4096], *line;
	int error = read_proc(pid, tid, "syscall", text, sizeof(text));

	if (error)
		return error;
	/* proc(5): "running", or "-1 SP PC" when blocked outside a system call:
	 * in a fault taken from user mode. */
	if (!strncmp(text, "running", 7))
		return -EAGAIN;
	if (strncmp(text, "-1 ", 3))
		return -EBUSY;
	error = read_proc(pid, tid, "status", text, sizeof(text));
	if (error)
		return error;
	line = strstr(text, "\nSigBlk:");
	if (!line || sscanf(line, "\nSigBlk: %llx", &blocked) != 1)
		return -EPERM;
	return blocked >> (DF_APF_EXCEPTION - 1) & 1 ? -EPERM : 0;
}

/* Raise an error by the guest's ABI; the thread must be able to take an exception at its access. */
static int raise_event(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;
	int error;

	if (apf_state(&guest->apf, record->vcpu) & DF_CPU_SYSCALL)
		return -EBUSY;
	/* The slot's state may be wrong: in a system call our signal would make the thread spin
	 * in the kernel, with endless faults.  More likely it has left the fault, and its vCPU
	 * is idle. */
	error = can_take_signal(guest->apf.options.pid, record->tid);
	if (error == -EBUSY && record->attempts < LEFT_TRIES)
		error = -EAGAIN;
	if (!error)
		error = apf_raise(&guest->apf, record);
	if (!error)
		pending->slot = record->vcpu;
	return error;
}

enum df_delivery deliver_poison(struct df_guest *guest, struct df_file *file, uint64_t address)
{
	switch (poison_page(&guest->space, file, address)) {
	case POISON_DONE:
		return DF_DELIVERED_POISON;
	case POISON_GONE:
		return DF_DELIVERED_NONE;
	case POISON_WOKEN:
		return DF_DELIVERED_WAKE;
	case POISON_UNKNOWN:
		break;
	}
	/* No UFFDIO_POISON before Linux 6.6.  Nothing else ends a fault inside a system call,
	 * and a dead guest is better than wrong data.  The pid may be reused, so check first. */
	if (guest->apf.options.pid && space_alive(&guest->space))
		kill(guest->apf.options.pid, SIGKILL);
	return DF_DELIVERED_KILL;
}

/* Report the error by the guest's ABI; -> 0 or a negative errno. */
static int report(struct df_pending *pending, enum df_delivery *how)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;
	uint32_t abi = guest->apf.options.abi;

	if (!apf_takes_errors(&guest->apf, record->vcpu))
		return -ENOENT;
	if (record->token && abi != DF_ABI_RETRY) {
		*how = token_end(guest, record, true) ? DF_DELIVERED_ERROR : DF_DELIVERED_NONE;
		return 0;
	}
	if (record->token || (abi != DF_ABI_RETRY && abi != DF_ABI_REPORT))
		return -ENOENT;
	*how = DF_DELIVERED_EVENT;
	return raise_event(pending);
}

static enum df_delivery wake(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;

	apf_remember(&guest->apf, record->vcpu, record->address);
	if (record->token)
		return token_end(guest, record, false) ? DF_DELIVERED_READY : DF_DELIVERED_NONE;
	if (space_wake(&guest->space, record->address) == -ESRCH)
		return DF_DELIVERED_NONE;
	return DF_DELIVERED_WAKE;
}

static enum df_delivery poison(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	enum df_delivery how = deliver_poison(guest, pending->file, pending->record.address);

	if (pending->record.token)
		token_end(guest, &pending->record, false);
	return how;
}

static void traced(const struct df_pending *pending, enum df_trace_kind kind)
{
	const struct df_failure *record = &pending->record;

	TRACE(&pending->guest->engine->tracer, .kind = kind, .guest = record->guest,
	      .file = record->file, .address = record->address, .offset = record->offset,
	      .token = record->token, .tid = record->tid, .vcpu = record->vcpu,
	      .error = record->error);
}

enum df_delivery deliver(struct df_pending *pending, enum df_answer answer, enum df_answer otherwise)
{
	const struct df_failure *record = &pending->record;
	enum df_delivery how;

	/* The thread has taken a signal since: it repeats the access if it still needs the page. */
	if (!record->token && !pending->stopped && answer != DF_ANSWER_POISON &&
	    apf_left(&pending->guest->apf, record->vcpu, pending->seen))
		answer = DF_ANSWER_WAKE;
	if (answer == DF_ANSWER_REPORT) {
		int error = report(pending, &how);

		if (!error) {
			if (how == DF_DELIVERED_EVENT)
				traced(pending, DF_TRACE_EVENT);
			return how;
		}
		answer = error == -EAGAIN ? DF_ANSWER_WAKE : otherwise;
	}
	switch (answer) {
	case DF_ANSWER_WAKE:
		traced(pending, DF_TRACE_WAKE);
		return wake(pending);
	case DF_ANSWER_STOP:
		traced(pending, DF_TRACE_STOP);
		return DF_DELIVERED_STOP;
	default:
		traced(pending, DF_TRACE_POISON);
		return poison(pending);
	}
}
