/* SPDX-License-Identifier: Apache-2.0
 *
 * thread.h - starting a thread of the host's.  Owns which threads those are.
 */
#ifndef DAXFAULT_THREAD_H
#define DAXFAULT_THREAD_H

#include <pthread.h>
#include <stdbool.h>

/* With every signal blocked: they are the caller's process's.  -> 0 or a negative errno. */
int thread_start(pthread_t *thread, void *(*body)(void *), void *arg, const char *name);
/* The calling thread was started by thread_start(): others wait for it. */
bool thread_is_ours(void);

#endif
