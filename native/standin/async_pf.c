/* SPDX-License-Identifier: Apache-2.0
 *
 * async_pf.c - the guest side of asynchronous page faults.
 *
 * Owns the shared area and a vCPU's slot in it: the layout of each ABI, the MSRs, the state word,
 * and the handling of "page ready": wake the sleeper, free the token, acknowledge, as
 * arch/x86/kernel/kvm.c does.  Runs with the vCPU's signals blocked, mostly in its handlers: no
 * allocation, no output.  The host may be hostile and change any word at any time, so each is read
 * once.
 */
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "standin.h"

enum {
	CALLBACK_VECTOR = 0xf3, /* HYPERVISOR_CALLBACK_VECTOR */
	ENTRY_PAUSES = 1000,	/* some 100 ms */
};

struct guest guest = { .doorbell = -1 };

static struct df_slot *slots;

/* -> a descriptor of the shared area for the host.  Sealed, so that neither side can shrink it. */
int async_pf_area(void)
{
	int fd = memfd_create("daxfault-events", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	void *p;

	if (fd < 0)
		return -1;
	if (ftruncate(fd, DF_AREA_SIZE) < 0 ||
	    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		goto fail;
	p = mmap(NULL, DF_AREA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		goto fail;
	slots = p;
	return fd;
fail:
	close(fd);
	return -1;
}

struct df_slot *async_pf_slot(int vcpu)
{
	return &slots[vcpu];
}

/* ------------------------------------------------------------------ MSRs */

static bool sends_always(void)
{
	return guest.abi == DF_ABI_RFC_V1 || guest.abi == DF_ABI_GONE || guest.abi == DF_ABI_REPORT;
}

/* The error bit of MSR_EN, if it was granted. */
static uint64_t wants_errors(void)
{
	switch (guest.abi) {
	case DF_ABI_RFC_V1:
		return guest.cpuid & DF_CPUID_ERROR_RFC_V1 ? DF_MSR_SEND_ERROR_RFC_V1 : 0;
	case DF_ABI_JUNE_2020:
		return guest.cpuid & DF_CPUID_ERROR_JUNE_2020 ? DF_MSR_SEND_ERROR : 0;
	case DF_ABI_GONE:
	case DF_ABI_RETRY:
	case DF_ABI_REPORT:
		return guest.cpuid & DF_CPUID_ERROR ? DF_MSR_SEND_ERROR : 0;
	default:
		return 0;
	}
}

/* Notify the host of a write to an MSR.  If the doorbell is full, the host is already notified. */
void async_pf_ring(void)
{
	int saved = errno;

	send(guest.doorbell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	errno = saved;
}

void async_pf_enable(struct vcpu *v, bool async)
{
	uint64_t msr = (uint64_t)v->id * sizeof(struct df_slot) | wants_errors();

	if (async && guest.async && guest.cpuid & DF_CPUID_ASYNC_PF) {
		msr |= DF_MSR_ENABLED;
		if (sends_always())
			msr |= DF_MSR_SEND_ALWAYS;
		if (guest.abi != DF_ABI_RFC_V1)
			msr |= DF_MSR_DELIVERY_AS_INT;
	}
	__atomic_store_n(&v->slot->msr_int, CALLBACK_VECTOR, __ATOMIC_RELAXED);
	__atomic_store_n(&v->slot->msr_en, msr, __ATOMIC_SEQ_CST);
	async_pf_ring();
}

/* On KVM a WRMSR that enables async pf exits, and the wake-all comes with the next entry.  Here the
 * host puts it into irr after the doorbell, because interrupts are off.  Bounded wait: the host may
 * not answer. */
void async_pf_entered(const struct vcpu *v)
{
	struct timespec pause = { .tv_nsec = 20000 };
	uint64_t msr = __atomic_load_n(&v->slot->msr_en, __ATOMIC_RELAXED);
	int i;

	for (i = 0; i < ENTRY_PAUSES && msr & DF_MSR_ENABLED; i++) {
		if (__atomic_load_n(&v->slot->irr, __ATOMIC_ACQUIRE))
			return;
		nanosleep(&pause, NULL);
	}
}

/* ------------------------------------------------------------------ the state word */

static void set_state(struct vcpu *v, uint32_t state)
{
	v->cpu_state = state;
	__atomic_store_n(&v->slot->state, state, __ATOMIC_SEQ_CST);
}

uint32_t irq_save(struct vcpu *v)
{
	uint32_t before = v->cpu_state;

	set_state(v, DF_CPU_KERNEL);
	return before;
}

/* -> true: an interrupt was pending in irr and was taken.  The state is not restored then, so that the
 * caller can decide again. */
bool irq_restore(struct vcpu *v, uint32_t state)
{
	set_state(v, state);
	if (!(state & DF_CPU_IF) || !__atomic_load_n(&v->slot->irr, __ATOMIC_SEQ_CST))
		return false;
	if (guest.abi == DF_ABI_RFC_V1) {
		/* An exception is pending.  The host delivers it only while interrupts are on, so
		 * leave them on. */
		__atomic_store_n(&v->slot->irr, 0, __ATOMIC_SEQ_CST);
		count_one(&v->count.deferred);
		trace(v, -1, TRACE_DEFERRED, 0, 0);
		async_pf_ring();
		return false;
	}
	set_state(v, DF_CPU_KERNEL);
	count_one(&v->count.deferred);
	trace(v, -1, TRACE_DEFERRED, 0, 0);
	async_pf_take_interrupt(v);
	return true;
}

/* ------------------------------------------------------------------ tokens */

static void wake(struct vcpu *v, unsigned int id, const struct wakeup *wakeup)
{
	struct task *t = v->tasks[id];

	trace_task(t, TRACE_WAKE, t->token, 0);
	t->wakeup = *wakeup;
	t->token = 0;
	t->state = TASK_READY;
	v->reschedule = true;
}

/* As posted, is_err is on the sleeper's stack, and only kvm_async_pf_task_wake() sets it: after a
 * wake-all it is uninitialised. */
static void wake_all(struct vcpu *v)
{
	struct wakeup wakeup = {
		.error = guest.posted & DF_POSTED_WAKE_ALL_UNINIT,
		.fault = v->last_error,
	};
	uint8_t tasks[TASK_COUNT];
	unsigned int n = sleepers_wake_all(&v->sleepers, tasks), i;

	for (i = 0; i < n; i++)
		wake(v, tasks[i], &wakeup);
}

void async_pf_token_done(struct vcpu *v, uint32_t token, const struct wakeup *wakeup)
{
	int task;

	if (token == DF_TOKEN_ALL) {
		count_one(&v->count.wake_all);
		trace(v, -1, TRACE_WAKE_ALL, token, 0);
		wake_all(v);
		return;
	}
	count_one(wakeup->error ? &v->count.errors : &v->count.ready);
	trace(v, -1, wakeup->error ? TRACE_ERROR : TRACE_READY, token, wakeup->fault.address);
	task = sleepers_wake(&v->sleepers, token, wakeup);
	if (task >= 0)
		wake(v, (unsigned int)task, wakeup);
	if (task == SLEEPERS_DUMMY) {
		count_one(&v->count.early);
		trace(v, -1, TRACE_EARLY, token, 0);
	}
}

/* ------------------------------------------------------------------ the shared area */

/* BUS_ADRERR needs an address; without one the June patches sent SEND_SIG_PRIV.  RFC v1 took 0
 * for an address. */
static int bus_code(uint64_t address)
{
	if (guest.abi == DF_ABI_JUNE_2020 || guest.abi == DF_ABI_GONE)
		return SI_KERNEL;
	if (guest.abi == DF_ABI_RFC_V1 && !address && !(guest.posted & DF_POSTED_NO_GVA_FLAG))
		return SI_KERNEL;
	return BUS_ADRERR;
}

static void take_rfc_v1(struct vcpu *v, struct exception *e)
{
	struct df_apf_rfc_v1 *apf = &v->slot->apf.rfc_v1;
	uint32_t reason = __atomic_load_n(&apf->reason, __ATOMIC_ACQUIRE);
	uint64_t gva = __atomic_load_n(&apf->faulting_gva, __ATOMIC_RELAXED);

	e->token = (uint32_t)__atomic_load_n(&v->slot->cr2, __ATOMIC_RELAXED);
	e->fault = __atomic_load_n(&v->slot->fault, __ATOMIC_RELAXED);
	if (__atomic_exchange_n(&apf->reason, 0, __ATOMIC_ACQ_REL) != reason)
		return;
	switch (reason) {
	case DF_APF_REASON_NOT_PRESENT:
		e->kind = EXCEPTION_NOT_PRESENT;
		break;
	case DF_APF_REASON_ERROR:
		e->wakeup.error = true;
		e->wakeup.fault = (struct fault){ .address = gva, .si_code = bus_code(gva) };
		e->kind = EXCEPTION_TOKEN_DONE;
		break;
	case DF_APF_REASON_READY:
		e->kind = EXCEPTION_TOKEN_DONE;
		break;
	}
}

static void read_error(const struct vcpu *v, struct fault *f)
{
	const struct df_apf_report *report = &v->slot->apf.report;

	f->si_code = BUS_ADRERR;
	if (guest.abi == DF_ABI_RETRY) {
		f->address = __atomic_load_n(&v->slot->cr2, __ATOMIC_RELAXED);
		f->error = __atomic_load_n(&v->slot->apf.retry.error, __ATOMIC_RELAXED);
		return;
	}
	f->address = __atomic_load_n(&report->gva, __ATOMIC_RELAXED);
	f->error = __atomic_load_n(&report->error, __ATOMIC_RELAXED);
	f->reason = __atomic_load_n(&report->reason, __ATOMIC_RELAXED);
	f->attempts = __atomic_load_n(&report->attempts, __ATOMIC_RELAXED);
}

/* Reads the host's words before it takes `flags`, because the host may write the next event after
 * that.  The host may withdraw a PAGE_ERROR at any time. */
void async_pf_take_exception(struct vcpu *v, struct exception *e)
{
	uint32_t *at = &v->slot->apf.mainline.flags;
	uint32_t flags;

	*e = (struct exception){ .kind = EXCEPTION_NONE };
	if (guest.abi == DF_ABI_RFC_V1) {
		take_rfc_v1(v, e);
		async_pf_ring(); /* the host can deliver the next token */
		return;
	}
	flags = __atomic_load_n(at, __ATOMIC_ACQUIRE);
	e->token = (uint32_t)__atomic_load_n(&v->slot->cr2, __ATOMIC_RELAXED);
	e->fault = __atomic_load_n(&v->slot->fault, __ATOMIC_RELAXED);
	read_error(v, &e->wakeup.fault);
	if (__atomic_exchange_n(at, 0, __ATOMIC_ACQ_REL) != flags)
		return;
	if (flags & DF_APF_NOT_PRESENT)
		e->kind = EXCEPTION_NOT_PRESENT;
	else if (flags & DF_APF_PAGE_ERROR &&
		 (guest.abi == DF_ABI_RETRY || guest.abi == DF_ABI_REPORT))
		e->kind = EXCEPTION_ERROR;
}

static void read_ready(const struct vcpu *v, struct wakeup *wakeup)
{
	const struct df_apf_report *apf = &v->slot->apf.report; /* june_2020 begins alike */
	struct fault *f = &wakeup->fault;

	if (guest.abi != DF_ABI_JUNE_2020 && guest.abi != DF_ABI_GONE && guest.abi != DF_ABI_REPORT)
		return;
	if (!(__atomic_load_n(&apf->ready_flags, __ATOMIC_RELAXED) & DF_APF_READY_ERROR))
		return;
	wakeup->error = true;
	if (guest.abi == DF_ABI_REPORT) {
		f->address = __atomic_load_n(&apf->ready_gva, __ATOMIC_RELAXED);
		f->error = __atomic_load_n(&apf->ready_error, __ATOMIC_RELAXED);
		f->reason = __atomic_load_n(&apf->ready_reason, __ATOMIC_RELAXED);
		f->attempts = __atomic_load_n(&apf->ready_attempts, __ATOMIC_RELAXED);
	}
	f->si_code = bus_code(f->address);
}

/* sysvec_kvm_asyncpf_interrupt(): wake, free the slot, acknowledge, in this order. */
void async_pf_take_interrupt(struct vcpu *v)
{
	uint32_t *slot = &v->slot->apf.mainline.token;
	bool was_left = __atomic_exchange_n(&v->slot->irr, 0, __ATOMIC_SEQ_CST);
	struct wakeup wakeup = { 0 };
	uint32_t token;

	async_pf_take_orders(v);
	if (guest.abi == DF_ABI_RFC_V1) {
		if (was_left)
			async_pf_ring(); /* the host can deliver the exception now */
		return;
	}
	token = __atomic_load_n(slot, __ATOMIC_ACQUIRE);
	if (!token)
		return;
	trace(v, -1, TRACE_IRQ, token, 0);
	read_ready(v, &wakeup);
	async_pf_token_done(v, token, &wakeup);
	__atomic_store_n(slot, 0, __ATOMIC_RELEASE);
	__atomic_add_fetch(&v->slot->acks, 1, __ATOMIC_RELEASE);
	count_one(&v->count.acks);
	trace(v, -1, TRACE_ACK, token, 0);
	async_pf_ring();
}

/* Take orders from other threads of this process. */
void async_pf_take_orders(struct vcpu *v)
{
	uint32_t orders = atomic_exchange(&v->orders, 0);

	if (orders)
		v->reschedule = true;
	if (orders & ORDER_WAKE_ALL)
		wake_all(v);
}
