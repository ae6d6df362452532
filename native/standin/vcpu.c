/* SPDX-License-Identifier: Apache-2.0
 *
 * vcpu.c - vCPU threads and their queues.
 *
 * Owns the threads, what waits for them, their slots of the event area, and the
 * line that is printed when an access ends.  One lock guards all queues: it is
 * taken twice an access and never held while the window is touched.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "standin.h"

__thread struct vcpu *this_vcpu;

static struct vcpu vcpus[VCPU_COUNT];
static struct df_slot *slots;
static uint32_t enabled;
static bool panicked;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work[VCPU_COUNT];
static pthread_cond_t finished = PTHREAD_COND_INITIALIZER;

/* The event area: its descriptor is for the host.  Sealed, so that neither side
 * can shrink it under the other's feet. */
int vcpu_event_area(void)
{
	int fd = memfd_create("daxfault-events", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	unsigned int i;
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
	for (i = 0; i < VCPU_COUNT; i++)
		pthread_cond_init(&work[i], NULL);
	return fd;
fail:
	close(fd);
	return -1;
}

void vcpu_enable(uint32_t enable)
{
	enabled = enable;
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static const char *outcome_name(enum outcome outcome)
{
	static const char *const names[OUTCOME_COUNT] = {
		[OUTCOME_OK] = "ok",
		[OUTCOME_SIGBUS] = "sigbus",
		[OUTCOME_SIGSEGV] = "sigsegv",
		[OUTCOME_EFAULT] = "efault",
		[OUTCOME_SHORT] = "short",
		[OUTCOME_PANIC] = "panic",
		[OUTCOME_ERROR] = "error",
	};

	return names[outcome];
}

static bool is_scan(enum op op)
{
	return op == OP_SCAN || op == OP_SCAN_ALL;
}

static void report_value(struct json *j, const struct access *a, const struct result *r)
{
	char hash[17];

	if (r->has_bytes)
		json_bytes(j, "value", r->bytes, r->done);
	if (!r->has_value)
		return;
	if (a->op == OP_TOUCH || a->op == OP_FORK) {
		json_uint(j, "value", r->value);
		return;
	}
	/* 64 bits do not survive every JSON reader as a number. */
	snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)r->value);
	json_text(j, "value", hash);
}

static void report(int id, const struct access *a, const struct result *r, uint64_t ns)
{
	struct json j;

	json_begin(&j, "done");
	json_int(&j, "vcpu", id);
	json_uint(&j, "seq", a->seq);
	json_text(&j, "op", ops[a->op].name);
	json_uint(&j, "offset", a->offset);
	json_text(&j, "outcome", outcome_name(r->outcome));
	if (r->faults) {
		json_address(&j, "address", r->fault.address);
		json_int(&j, "si_code", r->fault.si_code);
	}
	json_int(&j, "error", r->error ? r->error : r->fault.error);
	json_uint(&j, "reason", r->fault.reason);
	json_uint(&j, "attempts", r->fault.attempts);
	json_uint(&j, "done", r->done);
	if (is_scan(a->op)) {
		json_uint(&j, "steps", r->steps);
		json_uint(&j, "faults", r->faults);
	}
	if (a->op == OP_LAPS) {
		json_uint(&j, "count", r->laps.count);
		json_uint(&j, "total", r->laps.total);
		json_uint(&j, "p50", r->laps.p50);
		json_uint(&j, "p99", r->laps.p99);
		json_uint(&j, "most", r->laps.most);
	}
	if (r->outcome == OUTCOME_PANIC)
		json_address(&j, "instruction", r->instruction);
	if (r->signal)
		json_int(&j, "signal", r->signal);
	report_value(&j, a, r);
	json_uint(&j, "events", r->events);
	json_uint(&j, "ns", ns);
	json_emit(&j);
}

/* A dead vCPU answers too: ESRCH. */
static void report_dead(int id, const struct access *a)
{
	static const struct result dead = { .outcome = OUTCOME_ERROR, .error = ESRCH };

	report(id, a, &dead, 0);
}

static struct access *take(struct vcpu *v)
{
	struct access *a = v->first;

	if (a) {
		v->first = a->next;
		v->queued--;
		if (!v->first)
			v->last = &v->first;
	}
	return a;
}

static void run_one(struct vcpu *v, struct access *a)
{
	uint64_t start = now_ns();

	access_run(v, a);
	report(v->id, a, &v->result, now_ns() - start);
	access_free(a);
}

/* The host must not signal a thread that is no more. */
static void leave_slot(struct vcpu *v)
{
	__atomic_store_n(&v->slot->msr_en, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&v->slot->tid, 0, __ATOMIC_RELEASE);
}

static void die(struct vcpu *v)
{
	struct access *a;

	leave_slot(v);
	v->state = VCPU_DEAD;
	panicked = true;
	while ((a = take(v))) {
		report_dead(v->id, a);
		access_free(a);
	}
	pthread_cond_broadcast(&finished);
}

static void *vcpu_thread(void *arg)
{
	struct vcpu *v = arg;
	struct access *a;

	this_vcpu = v;
	pthread_mutex_lock(&lock);
	v->tid = gettid();
	v->slot->tid = (uint32_t)v->tid;
	__atomic_store_n(&v->slot->msr_en, enabled, __ATOMIC_RELEASE);
	while (v->state != VCPU_DEAD) {
		while (!(a = take(v)))
			pthread_cond_wait(&work[v->id], &lock);
		v->state = VCPU_RUNNING;
		pthread_mutex_unlock(&lock);

		run_one(v, a);

		pthread_mutex_lock(&lock);
		v->outcomes[v->result.outcome]++;
		v->state = VCPU_IDLE;
		if (v->result.outcome == OUTCOME_PANIC)
			die(v);
		else if (!v->first)
			pthread_cond_broadcast(&finished);
	}
	pthread_mutex_unlock(&lock);

	this_vcpu = NULL;
	exception_thread_end();
	return NULL;
}

static void *vcpu_entry(void *arg)
{
	/* Without its stack the first exception would be the last one. */
	if (exception_thread_start() < 0)
		abort();
	return vcpu_thread(arg);
}

static int power_on(struct vcpu *v, int id)
{
	pthread_t thread;
	int error;

	v->id = id;
	v->slot = &slots[id];
	v->last = &v->first;
	v->next_seq = 1;
	v->state = VCPU_IDLE;
	error = pthread_create(&thread, NULL, vcpu_entry, v);
	if (error) {
		v->state = VCPU_ABSENT;
		return error;
	}
	pthread_detach(thread);
	return 0;
}

/* Takes ownership of `a`, unless it returns an errno. */
int vcpu_queue(int id, struct access *a)
{
	struct vcpu *v = &vcpus[id];
	int error = 0;
	bool dead;

	pthread_mutex_lock(&lock);
	if (v->state == VCPU_ABSENT)
		error = power_on(v, id);
	dead = v->state == VCPU_DEAD;
	if (!error) {
		a->seq = v->next_seq++;
		a->next = NULL;
	}
	if (!error && !dead) {
		*v->last = a;
		v->last = &a->next;
		v->queued++;
		pthread_cond_signal(&work[id]);
	}
	pthread_mutex_unlock(&lock);

	if (!error && dead) {
		report_dead(id, a);
		access_free(a);
	}
	return error;
}

static bool busy(int id)
{
	return vcpus[id].first || vcpus[id].state == VCPU_RUNNING;
}

static bool any_busy(int id)
{
	int i;

	if (id >= 0)
		return busy(id);
	for (i = 0; i < VCPU_COUNT; i++) {
		if (busy(i))
			return true;
	}
	return false;
}

void vcpu_wait(int id)
{
	pthread_mutex_lock(&lock);
	while (any_busy(id))
		pthread_cond_wait(&finished, &lock);
	pthread_mutex_unlock(&lock);
}

bool vcpu_panicked(void)
{
	bool yes;

	pthread_mutex_lock(&lock);
	yes = panicked;
	pthread_mutex_unlock(&lock);
	return yes;
}

static void stat_one(struct json *j, struct vcpu *v)
{
	static const char *const states[] = {
		[VCPU_ABSENT] = "absent",
		[VCPU_IDLE] = "idle",
		[VCPU_RUNNING] = "running",
		[VCPU_DEAD] = "dead",
	};
	int i;

	json_object_begin(j);
	json_int(j, "vcpu", v->id);
	json_int(j, "tid", v->tid);
	json_text(j, "state", states[v->state]);
	json_uint(j, "queued", v->queued);
	for (i = 0; i < OUTCOME_COUNT; i++)
		json_uint(j, outcome_name((enum outcome)i), v->outcomes[i]);
	json_uint(j, "events", v->events);
	json_uint(j, "spurious", v->spurious);
	json_uint(j, "stray", v->stray);
	json_object_end(j);
}

void vcpu_stat(struct json *j)
{
	int i;

	json_list_begin(j, "vcpus");
	pthread_mutex_lock(&lock);
	for (i = 0; i < VCPU_COUNT; i++) {
		if (vcpus[i].state != VCPU_ABSENT)
			stat_one(j, &vcpus[i]);
	}
	pthread_mutex_unlock(&lock);
	json_list_end(j);
}
