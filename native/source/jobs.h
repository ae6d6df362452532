/* SPDX-License-Identifier: Apache-2.0
 *
 * jobs.h - threads for calls on backing files that may hang.  Owns them, and how many a file may
 * occupy.  Must not know what a job does.
 */
#ifndef DAXFAULT_JOBS_H
#define DAXFAULT_JOBS_H

#define JOBS_PER_QUEUE 8	/* calls in flight a file */

struct job {
	struct job *next;
	void (*run)(struct job *job);	/* may free it */
};

/* The jobs of one file, in their order. */
struct job_queue {
	struct job *first, **last;
	struct job_queue *next;		/* of those whose first job waits for a thread */
	unsigned running;
	void (*release)(struct job_queue *queue);	/* after each job: the queue may go */
};

void jobs_init(struct job_queue *queue, void (*release)(struct job_queue *queue));
/* Threads of this process, at most.  A queue of which nothing runs gets one all the same. */
void jobs_limit(unsigned most);
/* Never runs it here, and never fails: without a thread the job stays in the queue. */
void jobs_submit(struct job_queue *queue, struct job *job);

#endif
