/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.h - threads for what may wait for a backing file.
 */
#ifndef DAXFAULT_JOBS_H
#define DAXFAULT_JOBS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct job;

struct job_pool {
	pthread_mutex_t lock;		/* the rest; a leaf */
	pthread_cond_t work, end;
	struct job *first, **last;
	unsigned most, threads, idle, queued;
	bool stopping;
};

void jobs_init(struct job_pool *pool, unsigned most);
/* run(arg), in a thread of the pool; or here, when there is no memory and no thread for it. */
void jobs_submit(struct job_pool *pool, void (*run)(void *arg), void *arg);
/* false: a thread is still in its job, and the pool must stay. */
bool jobs_stop(struct job_pool *pool);

#endif
