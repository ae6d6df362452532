/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.h - threads for calls on backing files that may hang.  Owns them, and how many a file may
 * occupy.  Must not know what a job does.
 */
#ifndef DAXFAULT_JOBS_H
#define DAXFAULT_JOBS_H

#define JOBS_PER_QUEUE 8 /* calls in flight per file */

struct job {
	struct job *next;
	void (*run)(struct job *job); /* may free it */
};

/* The jobs of one file, in order. */
struct job_queue {
	struct job *first, **last;
	struct job_queue *next; /* in the list of queues that wait for a thread */
	unsigned running;
	void (*release)(struct job_queue *queue); /* called after each job; may free the queue */
};

void jobs_init(struct job_queue *queue, void (*release)(struct job_queue *queue));
/* Set the limit of threads of this process.  A queue without a running job may exceed it by one. */
void jobs_limit(unsigned most);
/* Queue a job.  Never runs it in this thread, and never fails: without a thread it stays queued. */
void jobs_submit(struct job_queue *queue, struct job *job);

#endif
