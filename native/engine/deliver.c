/* SPDX-License-Identifier: Apache-2.0
 *
 * deliver.c - how an answer reaches a guest: woken, told as its ABI has it, poisoned,
 * or not at all.  Must not choose between them: where telling is not possible, the
 * answer says what then.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "internal.h"

#define LEFT_MOST 3	/* failures in a row of a thread that seems to have left */

static int read_proc(int pid, int tid, const char *name, char *text, size_t size)
{
	char path[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/%s", pid, tid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, text, size - 1);
	close(fd);
	if (n < 0)
		return -errno;
	text[n] = 0;
	return 0;
}

/* Can the thread take our signal at the faulting instruction?  0, or why not:
 * -EBUSY in a system call, -EAGAIN not blocked at all, -EPERM signal blocked. */
static int can_be_told(int pid, int tid)
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

/* The error bit of its ABI, and a thread that can take an exception where it stands. */
static int raise_event(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;
	int error;

	if (apf_state(guest, record->vcpu) & DF_CPU_SYSCALL)
		return -EBUSY;
	/* A guest that says it is not in a system call may lie: our signal would have it
	 * spin in the kernel, and us read its faults.  More likely it has left the fault,
	 * and its vCPU is idle. */
	error = can_be_told(guest->pid, record->tid);
	if (error == -EBUSY && record->attempts < LEFT_MOST)
		error = -EAGAIN;
	if (!error)
		error = apf_raise(guest, record);
	if (!error)
		pending->slot = record->vcpu;
	return error;
}

/* The file changed: an error told but not yet heard is no longer true.  The guest
 * finds an empty slot, returns and repeats the access. */
void deliver_withdraw(struct df_file *file)
{
	for (struct df_region *region = file->mappings; region; region = region->next)
		apf_heal(region->guest, region->start, region->len);
}

/* The event of this failure stands in its slot, and nobody has taken it: a later
 * one may stand there when the thread was quick. */
bool deliver_untaken(const struct df_pending *pending)
{
	return apf_raised(pending->guest, &pending->record);
}

/* An event was sent and never taken. */
bool deliver_overdue(struct df_pending *pending)
{
	return apf_withdraw(pending->guest, &pending->record);
}

enum df_delivery deliver_poison(struct df_guest *guest, struct df_file *file, uint64_t address)
{
	uint64_t page = PAGE_DOWN(address), done;
	struct df_region *region = file ? file->mappings : NULL;
	int error;

	while (region && (region->guest != guest || page - region->start >= region->len))
		region = region->next;
	/* By now the address may show something else, which is sound. */
	if (file && !region) {
		uffd_wake(guest->uffd, page, PAGE);
		return DF_DELIVERED_WAKE;
	}
	error = uffd_poison(guest->uffd, page, PAGE, &done);
	/* Nothing can have installed the page since the decision: with a file its
	 * lock is held.  So it is a marker that stands in the way, or poison. */
	if (error == -EEXIST && guest->tracks && !uffd_unmark(guest->uffd, page, PAGE))
		error = uffd_poison(guest->uffd, page, PAGE, &done);
	switch (error) {
	case 0:
		break;
	case -ESRCH:
		return DF_DELIVERED_NONE;
	case -EINVAL:
		/* No UFFDIO_POISON before Linux 6.6.  Nothing else ends a fault
		 * inside a system call: dead rather than wrong.  Its number may be
		 * another's by now. */
		if (guest->pid && uffd_alive(guest->uffd))
			kill(guest->pid, SIGKILL);
		return DF_DELIVERED_KILL;
	default:
		/* EEXIST: present or poisoned already.  EAGAIN, ENOENT: the address
		 * space is changing.  The access repeats and is decided anew. */
		uffd_wake(guest->uffd, page, PAGE);
		return DF_DELIVERED_WAKE;
	}
	if (region)
		poison_add(region, page);
	return DF_DELIVERED_POISON;
}

/* Tell the error as the guest's ABI has it: 0 or why not. */
static int report(struct df_pending *pending, enum df_delivery *how)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;
	uint32_t abi = guest->options.abi;

	if (!apf_tells_errors(guest, record->vcpu))
		return -ENOENT;
	if (record->token && abi != DF_ABI_RETRY) {
		*how = apf_end(guest, record, true) ? DF_DELIVERED_ERROR : DF_DELIVERED_NONE;
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

	apf_remember(guest, record->vcpu, record->address);
	if (record->token)
		return apf_end(guest, record, false) ? DF_DELIVERED_READY : DF_DELIVERED_NONE;
	if (uffd_wake(guest->uffd, PAGE_DOWN(record->address), PAGE) == -ESRCH)
		return DF_DELIVERED_NONE;
	return DF_DELIVERED_WAKE;
}

static enum df_delivery poison(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	enum df_delivery how = deliver_poison(guest, pending->file, pending->record.address);

	if (pending->record.token)
		apf_end(guest, &pending->record, false);
	return how;
}

static void traced(const struct df_pending *pending, enum df_trace_kind kind)
{
	const struct df_failure *record = &pending->record;

	TRACE(&pending->guest->engine->tracer, .kind = kind, .guest = record->guest, .file = record->file,
	      .address = record->address, .offset = record->offset, .token = record->token,
	      .tid = record->tid, .vcpu = record->vcpu, .error = record->error);
}

enum df_delivery deliver(struct df_pending *pending, enum df_answer answer,
			 enum df_answer otherwise)
{
	const struct df_failure *record = &pending->record;
	enum df_delivery how;

	/* It has taken an interrupt since: what is still wanted is asked for again. */
	if (!record->token && !pending->stopped && answer != DF_ANSWER_POISON &&
	    apf_left(pending->guest, record->vcpu, pending->seen))
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
