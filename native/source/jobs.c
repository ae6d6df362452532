/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.c - the threads that wait for slow page sources, so that the reader of a guest never does.
 * They start when there is work and no idle thread, up to a limit.  Must not know what a job does.
 */
#include <stdlib.h>

#include "base/clock.h"
#include "base/thread.h"
#include "jobs.h"

#define STOP_NS 2000000000u		/* how long a stuck page source holds up the end */

struct job {
	struct job *next;
	void (*run)(void *arg);
	void *arg;
};

void jobs_init(struct job_pool *pool, unsigned most)
{
	*pool = (struct job_pool){ .most = most };
	pool->last = &pool->first;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_cond_init(&pool->end, NULL);
}

static void *worker(void *arg)
{
	struct job_pool *pool = arg;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct job *job = pool->first;

		if (!job && pool->stopping)
			break;
		if (!job) {
			pool->idle++;
			pthread_cond_wait(&pool->work, &pool->lock);
			pool->idle--;
			continue;
		}
		pool->queued--;
		pool->first = job->next;
		if (!pool->first)
			pool->last = &pool->first;
		pthread_mutex_unlock(&pool->lock);
		job->run(job->arg);
		free(job);
		pthread_mutex_lock(&pool->lock);
	}
	pool->threads--;
	pthread_cond_broadcast(&pool->end);
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* false: there is no thread for it. */
static bool enqueue(struct job_pool *pool, struct job *job)
{
	pthread_t thread;
	bool taken;

	pthread_mutex_lock(&pool->lock);
	/* A job may hold its thread for as long as a source likes: each has one of its own, as far
	 * as they go, and an idle one counts once. */
	if (pool->queued >= pool->idle && pool->threads < pool->most &&
	    !thread_start(&thread, worker, pool, "df-fill")) {
		pthread_detach(thread);
		pool->threads++;
	}
	taken = pool->threads;
	if (taken) {
		*pool->last = job;
		pool->last = &job->next;
		pool->queued++;
		pthread_cond_signal(&pool->work);
	}
	pthread_mutex_unlock(&pool->lock);
	return taken;
}

void jobs_submit(struct job_pool *pool, void (*run)(void *arg), void *arg)
{
	struct job *job = malloc(sizeof(*job));

	if (job) {
		*job = (struct job){ .run = run, .arg = arg };
		if (enqueue(pool, job))
			return;
		free(job);
	}
	run(arg);
}

bool jobs_stop(struct job_pool *pool)
{
	uint64_t until = now_ns() + STOP_NS;
	bool all;

	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->work);
	while (pool->threads && clock_wait(&pool->end, &pool->lock, until))
		;
	all = !pool->threads;
	pthread_mutex_unlock(&pool->lock);
	return all;
}
