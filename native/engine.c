/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.c - what all guests share: the failed faults on their way to Python and
 * back, and the warden that keeps every deadline.  Must not install pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "internal.h"

#define PENDING_MAX 4096		/* failed faults in Python's hands at once */
#define TICK_NS 20000000u		/* how late a deadline may be kept */
#define CHILD_NS 500000000u		/* how often forked guests are looked after */

/* --------------------------------------------------------------- failures */

static void pending_free(struct df_pending *pending)
{
	if (pending->guest)
		guest_put(pending->guest);
	if (pending->file)
		df_file_put(pending->file);
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

void engine_fail(const struct df_fault *fault, struct df_file *file, enum df_reason reason,
		 int error)
{
	struct df_guest *guest = fault->guest;
	struct df_engine *engine = guest->engine;
	uint64_t now = now_ns(), one = 1;
	struct df_pending *pending;

	if (fault->mends) {
		poison_tried(fault->mends, guest, fault->address, false);
		return;
	}
	COUNT(engine, failed, 1);
	pending = calloc(1, sizeof(*pending));
	if (pending) {
		pending->guest = guest;
		pending->file = file;
		pending->slot = -1;
		pending->deadline = now + engine->options.answer_ns;
		pending->record = (struct df_failure){
			.guest = guest->id,
			.file = file ? file->id : 0,
			.address = fault->address,
			.offset = file ? fault->offset : 0,
			.generation = file ? atomic_load(&file->generation) : 0,
			.time_ns = now,
			.wait_ns = now - fault->arrived,
			.tid = fault->tid,
			.error = error,
			.reason = reason,
			.attempts = guest_attempt(guest, PAGE_DOWN(fault->address)),
			.write = fault->write,
			.vcpu = -1,
		};
		pthread_mutex_lock(&engine->lock);
		if (engine->npending < PENDING_MAX && !engine->stopping) {
			guest_get(guest);
			if (file)
				file_get(file);
			pending->record.id = engine->next_id++;
			pending_add(engine, pending);
			pthread_mutex_unlock(&engine->lock);
			if (write(engine->failures_fd, &one, sizeof(one)) < 0) {
				/* the counter is full: its reader is awake */
			}
			return;
		}
		pthread_mutex_unlock(&engine->lock);
		free(pending);
	}
	COUNT(engine, overflow, 1);
	deliver_poison(guest, file, fault->address);
}

int df_engine_failures_fd(struct df_engine *engine)
{
	return engine->failures_fd;
}

int df_engine_failures(struct df_engine *engine, struct df_failure *out, int most)
{
	uint64_t value;
	int n = 0;

	if (read(engine->failures_fd, &value, sizeof(value)) < 0) {
		/* nothing new since the last call; there may be some left over */
	}
	pthread_mutex_lock(&engine->lock);
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
	pthread_mutex_unlock(&engine->lock);
	return n;
}

/* Deliver, in one step with "is it still true?".  Takes the pending failure. */
static enum df_delivery settle(struct df_engine *engine, struct df_pending *pending,
			       enum df_answer answer, enum df_answer otherwise)
{
	struct df_file *file = pending->file;
	struct df_guest *guest = pending->guest;
	enum df_delivery how = DF_DELIVERED_NONE;

	if (file)
		file_lock(file);
	if (atomic_load(&guest->dead)) {
		/* its pages were poisoned when it went */
	} else if (!file && guest_shows(guest, pending->record.address)) {
		/* nobody's address then, a file's by now */
		uffd_wake(guest->uffd, PAGE_DOWN(pending->record.address), PAGE);
		how = DF_DELIVERED_HEALED;
	} else if (file && atomic_load(&file->generation) != pending->record.generation) {
		uffd_wake(guest->uffd, PAGE_DOWN(pending->record.address), PAGE);
		how = DF_DELIVERED_HEALED;
	} else {
		how = deliver(pending, answer, otherwise);
	}
	if (file)
		file_unlock(file);

	if (how == DF_DELIVERED_EVENT) {
		pthread_mutex_lock(&engine->lock);
		pending->deadline = now_ns() + engine->options.answer_ns;
		pending->read = true;
		pending_add(engine, pending);
		pthread_mutex_unlock(&engine->lock);
	} else if (!pending->read) {
		/* Poisoned before anybody asked: what failed is told all the same. */
		guest_put(pending->guest);
		if (file)
			df_file_put(file);
		pending->guest = NULL;
		pending->file = NULL;
		pending->over = true;
		pthread_mutex_lock(&engine->lock);
		pending_add(engine, pending);
		pthread_mutex_unlock(&engine->lock);
	} else {
		pending_free(pending);
	}
	return how;
}

int df_engine_answer(struct df_engine *engine, uint64_t id, int answer, int otherwise)
{
	struct df_pending *pending = NULL;

	if (answer < DF_ANSWER_WAKE || answer > DF_ANSWER_POISON ||
	    otherwise < DF_ANSWER_WAKE || otherwise > DF_ANSWER_POISON)
		return -EINVAL;
	pthread_mutex_lock(&engine->lock);
	for (struct df_pending **p = &engine->pending; *p; p = &(*p)->next)
		if ((*p)->record.id == id && (*p)->slot < 0 && !(*p)->over) {
			pending = pending_take(engine, p);
			break;
		}
	pthread_mutex_unlock(&engine->lock);
	return pending ? (int)settle(engine, pending, (enum df_answer)answer,
				     (enum df_answer)otherwise) : -ENOENT;
}

/* ----------------------------------------------------------------- warden */

/* The first failure that is over: overdue, or an event that was taken. */
static struct df_pending *next_over(struct df_engine *engine, uint64_t now)
{
	for (struct df_pending **p = &engine->pending; *p; p = &(*p)->next) {
		struct df_pending *pending = *p;

		if (pending->over)
			continue;
		if (pending->slot >= 0 && !deliver_untaken(pending))
			return pending_take(engine, p);
		if (pending->deadline <= now)
			return pending_take(engine, p);
	}
	return NULL;
}

static void keep_answers(struct df_engine *engine, uint64_t now)
{
	struct df_pending *pending;

	for (;;) {
		pthread_mutex_lock(&engine->lock);
		pending = next_over(engine, now);
		pthread_mutex_unlock(&engine->lock);
		if (!pending)
			return;
		if (pending->slot >= 0 && !deliver_overdue(pending)) {
			pending_free(pending);		/* taken: all is well */
			continue;
		}
		pending->slot = -1;
		COUNT(engine, late, 1);
		settle(engine, pending, DF_ANSWER_POISON, DF_ANSWER_POISON);
	}
}

/* A file with a read under way that this round has not looked at; counted. */
static struct df_file *next_reading(struct df_engine *engine, uint64_t now)
{
	struct df_file *file = NULL;

	pthread_mutex_lock(&engine->lock);
	for (struct df_fill *fill = engine->fills; fill; fill = fill->next_all) {
		if (fill->looked == now || (file && fill->file != file))
			continue;
		if (!file)
			file_get(fill->file);
		file = fill->file;
		fill->looked = now;
	}
	pthread_mutex_unlock(&engine->lock);
	return file;
}

static void keep_sources(struct df_engine *engine, uint64_t now)
{
	struct df_file *file;

	if (!atomic_load(&engine->parked))
		return;
	while ((file = next_reading(engine, now))) {
		fill_expire(engine, file, now);
		df_file_put(file);
	}
}

/* The newest forked guest older than this one; counted. */
static struct df_guest *next_child(struct df_engine *engine, uint64_t id)
{
	struct df_guest *guest;

	pthread_mutex_lock(&engine->lock);
	for (guest = engine->guests; guest; guest = guest->next)
		if (guest->child && guest->id < id)
			break;
	if (guest)
		guest_get(guest);
	pthread_mutex_unlock(&engine->lock);
	return guest;
}

/* Nobody tells when a forked guest ends.  Asking may take as long as its address
 * space is locked: not under our own. */
static void keep_children(struct df_engine *engine)
{
	uint64_t id = UINT64_MAX;
	struct df_guest *child;

	while ((child = next_child(engine, id))) {
		id = child->id;
		if (!uffd_alive(child->uffd))
			df_guest_free(child);
		guest_put(child);
	}
}

static void *warden(void *arg)
{
	struct df_engine *engine = arg;
	uint64_t looked = 0;

	engine_thread = true;
	pthread_mutex_lock(&engine->lock);
	while (!engine->stopping) {
		bool busy = engine->npending || atomic_load(&engine->parked);
		uint64_t now = now_ns(), until = now + (busy ? TICK_NS : CHILD_NS);
		struct timespec t = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };

		pthread_cond_timedwait(&engine->tick, &engine->lock, &t);
		pthread_mutex_unlock(&engine->lock);
		now = now_ns();
		keep_answers(engine, now);
		keep_sources(engine, now);
		if (now - looked > CHILD_NS) {
			looked = now;
			keep_children(engine);
		}
		pthread_mutex_lock(&engine->lock);
	}
	pthread_mutex_unlock(&engine->lock);
	return NULL;
}

/* ------------------------------------------------------------- life and death */

int df_engine_new(const struct df_engine_options *options, struct df_engine **out)
{
	struct df_engine *engine = calloc(1, sizeof(*engine));
	pthread_condattr_t monotonic;
	int error;

	*out = NULL;
	if (!engine)
		return -ENOMEM;
	engine->options = *options;
	if (!engine->options.fill_threads)
		engine->options.fill_threads = 1;
	engine->last_job = &engine->jobs;
	engine->last_pending = &engine->pending;
	engine->next_id = 1;
	pthread_mutex_init(&engine->lock, NULL);
	pthread_cond_init(&engine->work, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&engine->tick, &monotonic);
	pthread_condattr_destroy(&monotonic);
	engine->failures_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	error = engine->failures_fd < 0 ? -errno : 0;
	if (!error)
		error = start_thread(&engine->warden, warden, engine, "df-warden");
	if (error) {
		if (engine->failures_fd >= 0)
			close(engine->failures_fd);
		free(engine);
		return error;
	}
	*out = engine;
	return 0;
}

void df_engine_free(struct df_engine *engine)
{
	/* Deadlines first: the warden ends forked guests by itself. */
	pthread_mutex_lock(&engine->lock);
	engine->stopping = true;
	pthread_cond_broadcast(&engine->tick);
	pthread_mutex_unlock(&engine->lock);
	pthread_join(engine->warden, NULL);

	pthread_mutex_lock(&engine->lock);
	while (engine->guests) {
		struct df_guest *guest = engine->guests;

		pthread_mutex_unlock(&engine->lock);
		df_guest_free(guest);
		pthread_mutex_lock(&engine->lock);
	}
	while (engine->pending)
		pending_free(pending_take(engine, &engine->pending));
	pthread_mutex_unlock(&engine->lock);

	if (!jobs_stop(engine))
		return;		/* a page source that never answers still holds a thread */
	close(engine->failures_fd);
	free(engine);
}

void df_engine_counters(struct df_engine *engine, struct df_counters *out)
{
	const uint64_t *from = (const uint64_t *)&engine->counters;
	uint64_t *to = (uint64_t *)out;

	for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
}
