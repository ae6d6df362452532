/* SPDX-License-Identifier: Apache-2.0
 *
 * thread.h - starting the threads of the host.  Owns the mark of those threads.
 */
#ifndef DAXFAULT_THREAD_H
#define DAXFAULT_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* Start a thread with every signal blocked: the process's own threads take them.  -> 0 or a
 * negative errno. */
int thread_start(pthread_t *thread, void *(*body)(void *), void *arg, const char *name);
/* thread_start() started the calling thread. */
bool thread_is_ours(void);

#endif
