/* SPDX-License-Identifier: Apache-2.0
 *
 * thread.c - starting the threads of the host (thread.h).
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>

#include "thread.h"

struct start {
	void *(*body)(void *);
	void *arg;
};

static _Thread_local bool ours;

bool thread_is_ours(void)
{
	return ours;
}

static void *begin(void *arg)
{
	struct start start = *(struct start *)arg;

	free(arg);
	ours = true;
	return start.body(start.arg);
}

int thread_start(pthread_t *thread, void *(*body)(void *), void *arg, const char *name)
{
	struct start *start = malloc(sizeof(*start));
	sigset_t all, old;
	int error;

	if (!start)
		return -ENOMEM;
	*start = (struct start){ body, arg };
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(thread, NULL, begin, start);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (error)
		free(start);
	else
		pthread_setname_np(*thread, name);
	return -error;
}
