/* SPDX-License-Identifier: Apache-2.0
 *
 * vcpu.c - vCPU threads, the queues of their tasks, and the scheduler.
 *
 * Owns the threads and the queues.  One lock protects all queues.  It is taken twice per access,
 * and must not be held while the window is touched or the vCPU's signals are open.
 */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "standin.h"

enum {
	SLICE_NS = 4000000, /* a tick at HZ=250 */
};

static struct vcpu vcpus[VCPU_COUNT];
static bool async = true;
static bool panicked;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;

/* ------------------------------------------------------------------ under the lock */

static struct access *take(struct task *t)
{
	struct access *a = t->first;

	if (a) {
		t->first = a->next;
		t->vcpu->queued--;
		if (!t->first)
			t->last = &t->first;
	}
	return a;
}

static void account(struct vcpu *v)
{
	if (--v->unfinished)
		return;
	if (v->state == VCPU_RUNNING)
		v->state = VCPU_IDLE; /* before the wake-up: a waiter checks at once */
	pthread_cond_broadcast(&finished);
}

static void bury(struct task *t)
{
	struct vcpu *v = t->vcpu;
	struct access *a = t->access;

	t->state = TASK_DEAD;
	t->access = NULL;
	if (!a)
		a = take(t);
	for (; a; a = take(t)) {
		report_dead(v->id, t->id, a);
		access_free(a);
		account(v);
	}
}

/* The host must not signal a thread that has ended. */
static void die(struct vcpu *v)
{
	int i;

	__atomic_store_n(&v->slot->msr_en, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&v->slot->tid, 0, __ATOMIC_RELEASE);
	async_pf_ring();
	v->state = VCPU_DEAD;
	panicked = true;
	for (i = 0; i < TASK_COUNT; i++) {
		if (v->tasks[i])
			bury(v->tasks[i]);
	}
}

/* Interrupts a vCPU that computes, wakes one that idles.  In a system call it checks at its end. */
static void order(struct vcpu *v, enum vcpu_order what)
{
	atomic_fetch_or(&v->orders, what);
	if (v->tid && v->state != VCPU_DEAD)
		syscall(SYS_tgkill, getpid(), v->tid, DF_APF_INTERRUPT);
}

/* ------------------------------------------------------------------ the scheduler */

static bool can_run(struct task *t)
{
	if (t->state == TASK_IDLE && t->killed)
		bury(t);
	if (t->state == TASK_IDLE && t->first) {
		t->access = take(t);
		t->started = now_ns();
		trace_task(t, TRACE_BEGIN, 0, window_base + t->access->offset);
		t->state = TASK_READY;
	}
	return t->state == TASK_READY;
}

/* The next runnable task, round robin; NULL when all are done or asleep. */
static struct task *pick(struct vcpu *v, bool *others)
{
	struct task *next = NULL;
	unsigned int i;

	v->reschedule = false;
	for (i = 1; i <= TASK_COUNT && !*others; i++) {
		struct task *t = v->tasks[(v->last_task + i) % TASK_COUNT];

		if (!t || !can_run(t))
			continue;
		if (next)
			*others = true;
		else
			next = t;
	}
	if (next)
		v->last_task = next->id;
	return next;
}

static struct task *next_task(struct vcpu *v)
{
	static const struct itimerspec slice = { .it_value.tv_nsec = SLICE_NS };
	bool others = false;
	struct task *t;

	pthread_mutex_lock(&lock);
	t = pick(v, &others);
	v->state = t ? VCPU_RUNNING : VCPU_IDLE;
	pthread_mutex_unlock(&lock);
	if (others)
		timer_settime(v->tick, 0, &slice, NULL);
	return t;
}

/* Reports under the lock, so that a `stat` after `done` agrees with it. */
static void finish(struct task *t)
{
	struct vcpu *v = t->vcpu;
	struct access *a = t->access;
	uint64_t ns = now_ns() - t->started;

	if (t->result.outcome == OUTCOME_KILLED)
		trace_task(t, TRACE_KILLED, 0, 0);
	trace_task(t, TRACE_END, 0, window_base + a->offset);
	GUARD(&lock);
	t->access = NULL;
	t->state = TASK_IDLE;
	v->outcomes[t->result.outcome]++;
	report_done(t, a, ns);
	access_free(a);
	if (t->result.outcome == OUTCOME_PANIC)
		die(v);
	else if (t->result.outcome == OUTCOME_KILLED)
		bury(t);
	account(v);
}

/* `sti; hlt`: a signal since the last check is pending, and ends the wait. */
static void idle(struct vcpu *v)
{
	if (!irq_restore(v, DF_CPU_IF | DF_CPU_KERNEL) && !v->orders) {
		trace(v, -1, TRACE_IDLE, 0, 0);
		signals_wait();
	}
	irq_save(v);
}

/* The guest's timer interrupt, while another task can run. */
static int make_tick(struct vcpu *v)
{
	struct sigevent event = {
		.sigev_notify = SIGEV_THREAD_ID,
		.sigev_signo = DF_APF_INTERRUPT,
		._sigev_un._tid = gettid(), /* the name POSIX has none for */
	};

	return timer_create(CLOCK_MONOTONIC, &event, &v->tick);
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct task *t;

	signals_block();
	this_vcpu = v;
	if (make_tick(v) < 0)
		abort();
	irq_save(v);
	pthread_mutex_lock(&lock);
	v->tid = gettid();
	__atomic_store_n(&v->slot->tid, (uint32_t)v->tid, __ATOMIC_RELEASE);
	async_pf_enable(v, async);
	pthread_mutex_unlock(&lock);
	async_pf_entered(v);

	while (v->state != VCPU_DEAD) {
		async_pf_take_orders(v);
		t = next_task(v);
		if (!t) {
			idle(v);
			continue;
		}
		task_run(t);
		if (t->state == TASK_DONE)
			finish(t);
	}
	timer_delete(v->tick);
	this_vcpu = NULL;
	return NULL;
}

/* ------------------------------------------------------------------ for the console */

static int power_on(struct vcpu *v, int id)
{
	pthread_t thread;
	int error;

	v->id = id;
	v->slot = async_pf_slot(id);
	v->next_seq = 1;
	v->last_task = TASK_COUNT - 1;
	v->state = VCPU_IDLE;
	error = pthread_create(&thread, NULL, vcpu_thread, v);
	if (error) {
		v->state = VCPU_ABSENT;
		return error;
	}
	pthread_detach(thread);
	return 0;
}

static int queue(struct vcpu *v, int id, unsigned int task, struct access *a)
{
	struct task *t;
	int error;

	if (v->state == VCPU_ABSENT) {
		error = power_on(v, id);
		if (error)
			return error;
	}
	if (!v->tasks[task])
		v->tasks[task] = task_new(v, task, access_run);
	t = v->tasks[task];
	if (!t)
		return ENOMEM;
	a->seq = v->next_seq++;
	a->next = NULL;
	if (v->state == VCPU_DEAD || t->state == TASK_DEAD) {
		report_dead(id, task, a);
		access_free(a);
		return 0;
	}
	*t->last = a;
	t->last = &a->next;
	v->queued++;
	v->unfinished++;
	order(v, ORDER_SCHEDULE);
	return 0;
}

/* Takes ownership of `a`, unless it returns an errno. */
int vcpu_queue(int id, unsigned int task, struct access *a)
{
	GUARD(&lock);
	return queue(&vcpus[id], id, task, a);
}

int vcpu_kill(int id, unsigned int task)
{
	struct vcpu *v = &vcpus[id];

	GUARD(&lock);
	if (!v->tasks[task])
		return ESRCH;
	v->tasks[task]->killed = true;
	order(v, ORDER_SCHEDULE);
	return 0;
}

/* Writes MSR_EN of every vCPU.  When it is turned off, the guest wakes its sleepers itself, as
 * kvm_guest_cpu_offline() does, because the host drops the tokens. */
void vcpu_async(bool on)
{
	int i;

	GUARD(&lock);
	async = on;
	for (i = 0; i < VCPU_COUNT; i++) {
		if (!vcpus[i].tid || vcpus[i].state == VCPU_DEAD)
			continue;
		async_pf_enable(&vcpus[i], on);
		if (!on)
			order(&vcpus[i], ORDER_WAKE_ALL);
	}
}

/* No "page ready" comes any more: let every sleeper repeat its access. */
void vcpu_host_lost(void)
{
	int i;

	GUARD(&lock);
	for (i = 0; i < VCPU_COUNT; i++)
		order(&vcpus[i], ORDER_WAKE_ALL);
}

static bool any_busy(int id)
{
	int i;

	if (id >= 0)
		return vcpus[id].unfinished;
	for (i = 0; i < VCPU_COUNT; i++) {
		if (vcpus[i].unfinished)
			return true;
	}
	return false;
}

void vcpu_wait(int id)
{
	GUARD(&lock);
	while (any_busy(id))
		pthread_cond_wait(&finished, &lock);
}

bool vcpu_panicked(void)
{
	GUARD(&lock);
	return panicked;
}

void vcpu_stat(struct json *j)
{
	int i;

	GUARD(&lock);
	json_list_begin(j, "vcpus");
	for (i = 0; i < VCPU_COUNT; i++) {
		if (vcpus[i].state != VCPU_ABSENT)
			report_stat(j, &vcpus[i]);
	}
	json_list_end(j);
}
