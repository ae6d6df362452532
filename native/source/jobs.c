/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.c - the threads that wait for slow page sources, so that the reader of a
 * guest never does.  They come when there is work and nobody idle, up to
 * options.fill_threads.  Must not know why a job is slow.
 */
#include <stdlib.h>

#include "engine/internal.h"

#define STOP_NS 2000000000u		/* how long a stuck page source holds up the end */

static void run_job(struct df_fill *fill, struct df_fault *faults)
{
	bool wait;

	if (fill)
		faults = fill_run(fill, true, &wait);
	faults_run(faults, true);
}

static void *worker(void *arg)
{
	struct df_engine *engine = arg;

	pthread_mutex_lock(&engine->lock);
	for (;;) {
		struct df_job *job = engine->jobs;

		if (!job && engine->stopping)
			break;
		if (!job) {
			engine->idle++;
			pthread_cond_wait(&engine->work, &engine->lock);
			engine->idle--;
			continue;
		}
		engine->queued--;
		engine->jobs = job->next;
		if (!engine->jobs)
			engine->last_job = &engine->jobs;
		pthread_mutex_unlock(&engine->lock);
		run_job(job->fill, job->faults);
		free(job);
		pthread_mutex_lock(&engine->lock);
	}
	engine->threads--;
	pthread_cond_broadcast(&engine->tick);
	pthread_mutex_unlock(&engine->lock);
	return NULL;
}

/* false: there is no thread for it. */
static bool enqueue(struct df_engine *engine, struct df_job *job)
{
	pthread_t thread;
	bool taken;

	pthread_mutex_lock(&engine->lock);
	/* A job may hold its thread for as long as a source likes: each has one of
	 * its own, as far as they go, and an idle one counts once. */
	if (engine->queued >= engine->idle && engine->threads < engine->options.fill_threads &&
	    !thread_start(&thread, worker, engine, "df-fill")) {
		pthread_detach(thread);
		engine->threads++;
	}
	taken = engine->threads;
	if (taken) {
		*engine->last_job = job;
		engine->last_job = &job->next;
		engine->queued++;
		pthread_cond_signal(&engine->work);
	}
	pthread_mutex_unlock(&engine->lock);
	return taken;
}

static void submit(struct df_engine *engine, struct df_fill *fill, struct df_fault *faults)
{
	struct df_job *job = calloc(1, sizeof(*job));

	if (job) {
		job->fill = fill;
		job->faults = faults;
		if (enqueue(engine, job))
			return;
		free(job);
	}
	run_job(fill, faults);		/* no memory, or no thread: do it here */
}

void engine_submit_fill(struct df_engine *engine, struct df_fill *fill)
{
	submit(engine, fill, NULL);
}

void engine_submit_faults(struct df_engine *engine, struct df_fault *faults)
{
	submit(engine, NULL, faults);
}

bool jobs_stop(struct df_engine *engine)
{
	uint64_t until = now_ns() + STOP_NS;
	bool all;

	pthread_mutex_lock(&engine->lock);
	engine->stopping = true;
	pthread_cond_broadcast(&engine->work);
	while (engine->threads && clock_wait(&engine->tick, &engine->lock, until))
		;
	all = !engine->threads;
	pthread_mutex_unlock(&engine->lock);
	return all;
}
