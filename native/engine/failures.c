/* SPDX-License-Identifier: Apache-2.0
 *
 * failures.c - failed faults on their way to Python and back.  Must not choose their
 * answer, nor how it reaches the guest.
 */
#include <errno.h>

#include "internal.h"

#define PENDING_MAX 4096 /* failed faults that wait for Python's answer */

static void pending_free(struct df_pending *pending)
{
	if (pending->guest)
		guest_put(pending->guest);
	if (pending->file)
		file_put(pending->file);
	free(pending);
}

static void pending_add(struct df_engine *engine, struct df_pending *pending)
{
	pending->next = NULL;
	*engine->last_pending = pending;
	engine->last_pending = &pending->next;
	engine->npending++;
	pthread_cond_signal(&engine->tick);
}

static struct df_pending *pending_take(struct df_engine *engine, struct df_pending **p)
{
	struct df_pending *pending = *p;

	*p = pending->next;
	if (!*p)
		engine->last_pending = p;
	engine->npending--;
	return pending;
}

static void pending_put(struct df_engine *engine, struct df_pending *pending)
{
	GUARD(&engine->lock);
	pending_add(engine, pending);
}

static struct df_failure record_of(const struct df_fault *fault, const struct df_file *file,
				   enum df_reason reason, int error)
{
	uint64_t now = now_ns();

	return (struct df_failure){
		.guest = fault->guest->space.id,
		.file = file ? file->id : 0,
		.address = fault->address,
		.offset = file ? fault->offset : 0,
		.generation = file ? atomic_load(&file->generation) : 0,
		.time_ns = now,
		.wait_ns = now - fault->arrived,
		.tid = fault->tid,
		.error = error,
		.reason = reason,
		.attempts = guest_attempt(fault->guest, PAGE_DOWN(fault->address)),
		.write = fault->write,
		.token = fault->apf.token,
		.wait = fault->apf.wait,
		.vcpu = fault->apf.vcpu,
		.state = fault->apf.state,
	};
}

/* false: PENDING_MAX is reached, or there is no memory. */
static bool hand_over(struct df_fault *fault, struct df_file *file, enum df_reason reason, int error)
{
	struct df_engine *engine = fault->guest->engine;
	struct df_pending *pending = malloc(sizeof(*pending));

	if (!pending)
		return false;
	*pending = (struct df_pending){
		.record = record_of(fault, file, reason, error),
		.guest = fault->guest,
		.file = file,
		.seen = fault->seen,
		.slot = -1,
	};
	pending->deadline = pending->record.time_ns + engine->options.answer_ns;
	GUARD(&engine->lock);
	if (engine->npending >= PENDING_MAX || engine->stopping) {
		free(pending);
		return false;
	}
	guest_get(fault->guest);
	if (file)
		file_get(file);
	fault->apf.token = 0;
	pending->record.id = engine->next_id++;
	pending_add(engine, pending);
	return true;
}

void engine_fail(struct df_fault *fault, struct df_file *file, enum df_reason reason, int error)
{
	struct df_guest *guest = fault->guest;
	struct df_engine *engine = guest->engine;

	if (fault->retry) {
		poison_tried(fault->retry, &guest->space, PAGE_DOWN(fault->address), false);
		return;
	}
	if (guest->apf.options.flags & DF_GUEST_TELL_FAILURES)
		fault_ask(fault);
	if (!fault->asked) {
		fault->apf.vcpu = apf_slot(&guest->apf, fault->tid);
		fault->apf.state = fault->apf.vcpu < 0 ? 0 : apf_state(&guest->apf, fault->apf.vcpu);
	}
	if (!fault->apf.token && apf_left(&guest->apf, fault->apf.vcpu, fault->seen)) {
		space_wake(&guest->space, fault->address);
		return;
	}
	COUNT(engine, failed, 1);
	TRACE(&engine->tracer, .kind = DF_TRACE_FAIL, .guest = guest->space.id,
	      .file = file ? file->id : 0, .address = fault->address,
	      .offset = file ? fault->offset : 0, .token = fault->apf.token, .tid = fault->tid,
	      .vcpu = fault->apf.vcpu, .value = reason, .error = error);
	if (hand_over(fault, file, reason, error)) {
		notify(engine->failures_fd);
	} else {
		COUNT(engine, overflow, 1);
		deliver_poison(guest, file, fault->address);
	}
}

int df_engine_failures_fd(struct df_engine *engine)
{
	return engine->failures_fd;
}

int df_engine_failures(struct df_engine *engine, struct df_failure *out, int most)
{
	int n = 0;

	take_notice(engine->failures_fd);
	GUARD(&engine->lock);
	for (struct df_pending **p = &engine->pending; *p && n < most;) {
		struct df_pending *pending = *p;

		if (!pending->read)
			out[n++] = pending->record;
		pending->read = true;
		if (pending->over)
			free(pending_take(engine, p));
		else
			p = &pending->next;
	}
	return n;
}

/* The fault is taken again, or its token is ready. */
static void let_go(struct df_guest *guest, const struct df_failure *record)
{
	space_wake(&guest->space, record->address);
	if (record->token)
		token_end(guest, record, false);
}

/* Leave the vCPU in its fault.  A thread can be in one fault only: an earlier stop of it is over. */
static void stop(struct df_engine *engine, struct df_pending *pending)
{
	struct df_pending *before = NULL;

	pending->stopped = pending->read = true;
	pending->deadline = UINT64_MAX;
	pthread_mutex_lock(&engine->lock);
	for (struct df_pending **p = &engine->pending; *p; p = &(*p)->next)
		if ((*p)->stopped && (*p)->guest == pending->guest && !(*p)->record.token &&
		    !pending->record.token && (*p)->record.tid == pending->record.tid) {
			before = pending_take(engine, p);
			break;
		}
	pending_add(engine, pending);
	pthread_mutex_unlock(&engine->lock);
	if (before)
		pending_free(before);
}

/* Deliver the answer if the failure is still valid, atomically.  Takes the pending failure. */
static enum df_delivery settle(struct df_engine *engine, struct df_pending *pending,
			       enum df_answer answer, enum df_answer otherwise)
{
	struct df_file *file = pending->file;
	struct df_guest *guest = pending->guest;
	enum df_delivery how = DF_DELIVERED_NONE;

	if (file)
		pthread_mutex_lock(&file->lock);
	if (atomic_load(&guest->space.dead)) {
		/* its pages were poisoned when its service ended */
	} else if (!file && space_shows(&guest->space, pending->record.address)) {
		/* no file was mapped there; now one is */
		let_go(guest, &pending->record);
		how = DF_DELIVERED_HEALED;
	} else if (file && atomic_load(&file->generation) != pending->record.generation) {
		let_go(guest, &pending->record);
		how = DF_DELIVERED_HEALED;
	} else {
		how = deliver(pending, answer, otherwise);
	}
	if (file)
		pthread_mutex_unlock(&file->lock);

	if (how == DF_DELIVERED_EVENT) {
		pending->deadline = now_ns() + engine->options.answer_ns;
		pending->read = true;
		pending_put(engine, pending);
	} else if (how == DF_DELIVERED_STOP) {
		stop(engine, pending);
	} else if (!pending->read) {
		/* Poisoned before Python read the record: Python still gets the record. */
		guest_put(pending->guest);
		if (file)
			file_put(file);
		pending->guest = NULL;
		pending->file = NULL;
		pending->over = true;
		pending_put(engine, pending);
	} else {
		pending_free(pending);
	}
	return how;
}

/* Remove and return the failure that waits for this answer; or NULL. */
static struct df_pending *take_unanswered(struct df_engine *engine, uint64_t id)
{
	GUARD(&engine->lock);
	for (struct df_pending **p = &engine->pending; *p; p = &(*p)->next)
		if ((*p)->record.id == id && (*p)->slot < 0 && !(*p)->over && !(*p)->stopped)
			return pending_take(engine, p);
	return NULL;
}

int df_engine_answer(struct df_engine *engine, uint64_t id, int answer, int otherwise)
{
	struct df_pending *pending;

	if (answer < DF_ANSWER_WAKE || answer > DF_ANSWER_STOP || otherwise < DF_ANSWER_WAKE ||
	    otherwise > DF_ANSWER_STOP)
		return -EINVAL;
	pending = take_unanswered(engine, id);
	return pending ? (int)settle(engine, pending, (enum df_answer)answer,
				     (enum df_answer)otherwise)
		       : -ENOENT;
}

/* Whether a stopped vCPU must go on: to repeat its access, or to end. */
static bool resumes(const struct df_pending *pending)
{
	return pending->stopped && (atomic_load(&pending->guest->space.dead) ||
				    (pending->file && atomic_load(&pending->file->generation) !=
							      pending->record.generation));
}

/* Remove and return the first failure that has ended: overdue, or its event was taken. */
static struct df_pending *take_over(struct df_engine *engine, uint64_t now)
{
	GUARD(&engine->lock);
	for (struct df_pending **p = &engine->pending; *p; p = &(*p)->next) {
		struct df_pending *pending = *p;

		if (pending->over)
			continue;
		if (pending->slot >= 0 && !apf_raised(&pending->guest->apf, &pending->record))
			return pending_take(engine, p);
		if (pending->deadline <= now || resumes(pending))
			return pending_take(engine, p);
	}
	return NULL;
}

void failures_keep(struct df_engine *engine, uint64_t now)
{
	struct df_pending *pending;

	while ((pending = take_over(engine, now))) {
		if (pending->slot >= 0 && !apf_withdraw(&pending->guest->apf, &pending->record)) {
			pending_free(pending); /* taken: all is well */
			continue;
		}
		if (pending->stopped) {
			settle(engine, pending, DF_ANSWER_STOP, DF_ANSWER_STOP);
			continue;
		}
		pending->slot = -1;
		COUNT(engine, late, 1);
		settle(engine, pending, DF_ANSWER_POISON, DF_ANSWER_POISON);
	}
}

static struct df_pending *take_any(struct df_engine *engine)
{
	GUARD(&engine->lock);
	return engine->pending ? pending_take(engine, &engine->pending) : NULL;
}

void failures_free(struct df_engine *engine)
{
	struct df_pending *pending;

	while ((pending = take_any(engine)))
		pending_free(pending);
}
