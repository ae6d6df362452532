/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.c - threads that wait for page sources, so that the reader of a guest never does.
 *
 * They are counted per file: a file with a hung source occupies at most JOBS_PER_QUEUE of them.  A
 * file without a running job gets a thread even beyond the limit.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/clock.h"
#include "base/thread.h"
#include "jobs.h"

#define IDLE_NS 1000000000u /* how long a thread waits for more work */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* all of it; a leaf */
static pthread_cond_t work = PTHREAD_COND_INITIALIZER;
static struct job_queue *ready, **last_ready = &ready;
static unsigned most = JOBS_PER_QUEUE, threads, idle, nready;

void jobs_init(struct job_queue *queue, void (*release)(struct job_queue *queue))
{
	*queue = (struct job_queue){ .release = release };
	queue->last = &queue->first;
}

void jobs_limit(unsigned wanted)
{
	pthread_mutex_lock(&lock);
	if (wanted > most)
		most = wanted;
	pthread_mutex_unlock(&lock);
}

/* A queue is listed once, for its first job. */
static bool listed(const struct job_queue *queue)
{
	const struct job_queue *other = ready;

	while (other && other != queue)
		other = other->next;
	return other;
}

static void list(struct job_queue *queue)
{
	if (!queue->first || queue->running >= JOBS_PER_QUEUE || listed(queue))
		return;
	if (queue->running || !ready) {
		queue->next = NULL;
		*last_ready = queue;
		last_ready = &queue->next;
	} else { /* a queue without a running job comes first */
		queue->next = ready;
		ready = queue;
	}
	nready++;
}

/* The next job, of the first queue. */
static struct job *take(struct job_queue **from)
{
	struct job_queue *queue = ready;
	struct job *job;

	if (!queue)
		return NULL;
	ready = queue->next;
	if (!ready)
		last_ready = &ready;
	nready--;
	job = queue->first;
	queue->first = job->next;
	if (!queue->first)
		queue->last = &queue->first;
	queue->running++;
	list(queue);
	*from = queue;
	return job;
}

static void start_threads(void);

static void *worker(void *arg)
{
	struct job_queue *queue;
	bool more = true;

	pthread_mutex_lock(&lock);
	while (more) {
		struct job *job = take(&queue);

		if (!job) {
			idle++;
			more = clock_wait(&work, &lock, now_ns() + IDLE_NS) || ready;
			idle--;
			continue;
		}
		start_threads();
		pthread_mutex_unlock(&lock);
		job->run(job);
		pthread_mutex_lock(&lock);
		queue->running--;
		list(queue);
		pthread_mutex_unlock(&lock);
		queue->release(queue);
		pthread_mutex_lock(&lock);
	}
	threads--;
	pthread_mutex_unlock(&lock);
	return arg;
}

/* Whether a queue without a running job waits for a thread. */
static bool starves(void)
{
	const struct job_queue *queue = ready;

	while (queue && queue->running)
		queue = queue->next;
	return queue;
}

static void start_threads(void)
{
	pthread_t thread;

	if (nready <= idle || (threads >= most && !starves()) ||
	    thread_start(&thread, worker, NULL, "df-fill"))
		return;
	pthread_detach(thread);
	threads++;
}

void jobs_submit(struct job_queue *queue, struct job *job)
{
	pthread_mutex_lock(&lock);
	job->next = NULL;
	*queue->last = job;
	queue->last = &job->next;
	list(queue);
	start_threads();
	if (idle)
		pthread_cond_signal(&work);
	pthread_mutex_unlock(&lock);
}
