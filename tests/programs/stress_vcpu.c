/* SPDX-License-Identifier: Apache-2.0
 *
 * stress_vcpu.c - slots of the shared area, and signal handlers that take what the host
 * puts there.  A guest kernel that never sleeps: told "not present" it repeats the
 * access, so that its faults and their tokens overtake each other.  An error is
 * believed when it is of the page that is being touched, and was still true when it
 * was taken: the page's own model then finds it right or wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "abi/apf.h"
#include "stress_vcpu.h"

static struct df_slot *slots;
static int bell = -1;
static struct shared *counts;
static _Thread_local struct df_slot *mine;

_Thread_local struct access access_now;

static void ring(void)
{
	send(bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void on_exception(int number, siginfo_t *info, void *context)
{
	struct df_apf_report *apf = &mine->apf.report;
	uint64_t gva = __atomic_load_n(&apf->gva, __ATOMIC_RELAXED);
	int saved = errno;
	uint32_t flags = __atomic_exchange_n(&apf->flags, 0, __ATOMIC_ACQ_REL);

	(void)number;
	(void)info;
	(void)context;
	if (flags == DF_APF_NOT_PRESENT)
		atomic_fetch_add(&counts->told, 1);
	errno = saved;
	if (flags == DF_APF_PAGE_ERROR && access_now.landable && gva - access_now.page < PAGE_BYTES) {
		atomic_fetch_add(&counts->errors, 1);
		siglongjmp(access_now.landing, 1);
	}
}

static void on_interrupt(int number, siginfo_t *info, void *context)
{
	struct df_apf_report *apf = &mine->apf.report;
	int saved = errno;

	(void)number;
	(void)info;
	(void)context;
	__atomic_store_n(&mine->irr, 0, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&apf->token, __ATOMIC_ACQUIRE)) {
		atomic_fetch_add(&counts->ready, 1);
		__atomic_store_n(&apf->token, 0, __ATOMIC_RELEASE);
		__atomic_add_fetch(&mine->acks, 1, __ATOMIC_RELEASE);
		ring();
	}
	errno = saved;
}

int vcpu_area(void)
{
	int fd = memfd_create("area", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (fd < 0 || ftruncate(fd, DF_AREA_SIZE) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -1;
	slots = mmap(NULL, DF_AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return slots == MAP_FAILED ? -1 : fd;
}

void vcpu_host(int doorbell, struct shared *shared)
{
	struct sigaction action = { .sa_flags = SA_SIGINFO | SA_RESTART };

	bell = doorbell;
	counts = shared;
	sigemptyset(&action.sa_mask);
	sigaddset(&action.sa_mask, DF_APF_EXCEPTION);
	sigaddset(&action.sa_mask, DF_APF_INTERRUPT);
	action.sa_sigaction = on_exception;
	sigaction(DF_APF_EXCEPTION, &action, NULL);
	action.sa_sigaction = on_interrupt;
	sigaction(DF_APF_INTERRUPT, &action, NULL);
}

static void write_msr(struct df_slot *slot, uint64_t msr)
{
	__atomic_store_n(&slot->msr_en, msr, __ATOMIC_SEQ_CST);
	ring();
}

void vcpu_enable(unsigned slot)
{
	mine = &slots[slot];
	__atomic_store_n(&mine->state, DF_CPU_IF, __ATOMIC_SEQ_CST);
	__atomic_store_n(&mine->tid, (uint32_t)gettid(), __ATOMIC_RELEASE);
	write_msr(mine, DF_MSR_ENABLED | DF_MSR_DELIVERY_AS_INT | DF_MSR_SEND_ERROR);
}

void vcpu_toggle(unsigned slot)
{
	uint64_t msr = __atomic_load_n(&slots[slot].msr_en, __ATOMIC_RELAXED);

	write_msr(&slots[slot], DF_MSR_SEND_ERROR);
	write_msr(&slots[slot], msr);
}

void vcpu_leave(unsigned slot)
{
	write_msr(&slots[slot], 0);
	__atomic_store_n(&slots[slot].tid, 0, __ATOMIC_RELEASE);
}
