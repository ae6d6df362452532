/* SPDX-License-Identifier: Apache-2.0
 *
 * deliver.c - how an answer reaches a guest: woken, told by an event, or poisoned.
 * Must not choose between them; only falls back to poison, the end that needs
 * nothing of the guest, where telling is not possible.
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

static int find_slot(const struct df_guest *guest, int tid)
{
	for (int i = 0; guest->slots && i < DF_VCPU_MAX; i++) {
		const struct df_slot *slot = &guest->slots[i];

		if (__atomic_load_n(&slot->tid, __ATOMIC_RELAXED) == (uint32_t)tid)
			return i;
	}
	return -1;
}

static int deliver_event(struct df_pending *pending)
{
	struct df_guest *guest = pending->guest;
	const struct df_failure *record = &pending->record;
	int i = find_slot(guest, record->tid), error;
	struct df_apf_report *slot;

	if (i < 0 || !guest->pid || guest->options.abi != DF_ABI_REPORT ||
	    !(guest->options.cpuid & DF_CPUID_ERROR) ||
	    !(__atomic_load_n(&guest->slots[i].msr_en, __ATOMIC_RELAXED) & DF_MSR_SEND_ERROR))
		return -ENOENT;
	slot = &guest->slots[i].apf.report;
	if (__atomic_load_n(&slot->flags, __ATOMIC_ACQUIRE))
		return -EBUSY;		/* it has not taken the last one */
	error = can_be_told(guest->pid, record->tid);
	if (error)
		return error;
	__atomic_store_n(&slot->event, (uint32_t)record->id, __ATOMIC_RELAXED);
	__atomic_store_n(&slot->gva, record->address, __ATOMIC_RELAXED);
	slot->error = record->error;
	slot->reason = record->reason;
	slot->attempts = record->attempts;
	__atomic_store_n(&slot->flags, DF_APF_PAGE_ERROR, __ATOMIC_RELEASE);
	if (syscall(SYS_tgkill, guest->pid, record->tid, DF_APF_EXCEPTION)) {
		error = -errno;
		__atomic_store_n(&slot->flags, 0, __ATOMIC_RELEASE);
		return error;
	}
	pending->slot = i;
	return 0;
}

static bool withdraw(struct df_apf_report *slot)
{
	uint32_t expected = DF_APF_PAGE_ERROR;

	return __atomic_compare_exchange_n(&slot->flags, &expected, 0, false, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

/* The file changed: an error told but not yet heard is no longer true.  The guest
 * finds an empty slot, returns and repeats the access. */
void deliver_withdraw(struct df_file *file)
{
	for (struct df_region *region = file->mappings; region; region = region->next) {
		struct df_guest *guest = region->guest;

		for (int i = 0; guest->slots && guest->options.abi == DF_ABI_REPORT && i < DF_VCPU_MAX; i++) {
			struct df_apf_report *slot = &guest->slots[i].apf.report;
			uint64_t gva = __atomic_load_n(&slot->gva, __ATOMIC_RELAXED);

			if (gva - region->start < region->len)
				withdraw(slot);
		}
	}
}

/* The event of this failure stands in its slot, and nobody has taken it: a later
 * one may stand there when the thread was quick. */
bool deliver_untaken(const struct df_pending *pending)
{
	const struct df_apf_report *slot = &pending->guest->slots[pending->slot].apf.report;

	return __atomic_load_n(&slot->flags, __ATOMIC_ACQUIRE) &&
	       __atomic_load_n(&slot->event, __ATOMIC_RELAXED) == (uint32_t)pending->record.id;
}

/* An event was sent and never taken. */
bool deliver_overdue(struct df_pending *pending)
{
	return deliver_untaken(pending) && withdraw(&pending->guest->slots[pending->slot].apf.report);
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

enum df_delivery deliver(struct df_pending *pending, enum df_answer answer,
			 enum df_answer otherwise)
{
	struct df_guest *guest = pending->guest;
	uint64_t address = pending->record.address;

	if (answer == DF_ANSWER_REPORT) {
		int error = deliver_event(pending);

		if (!error)
			return DF_DELIVERED_EVENT;
		answer = error == -EAGAIN ? DF_ANSWER_WAKE : otherwise;
	}
	if (answer == DF_ANSWER_WAKE) {
		if (uffd_wake(guest->uffd, PAGE_DOWN(address), PAGE) == -ESRCH)
			return DF_DELIVERED_NONE;
		return DF_DELIVERED_WAKE;
	}
	return deliver_poison(guest, pending->file, address);
}
