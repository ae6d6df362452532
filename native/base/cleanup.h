/* SPDX-License-Identifier: Apache-2.0
 *
 * cleanup.h - release a lock, close a descriptor or free memory when a variable's scope ends, on
 * every path.  As in the kernel's linux/cleanup.h.  Owns no state.
 */
#ifndef DAXFAULT_CLEANUP_H
#define DAXFAULT_CLEANUP_H

#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_free(void *pointer)
{
	free(*(void **)pointer);
}

static inline void cleanup_unlock(pthread_mutex_t *const *lock)
{
	pthread_mutex_unlock(*lock);
}

static inline void cleanup_rwunlock(pthread_rwlock_t *const *lock)
{
	pthread_rwlock_unlock(*lock);
}

/* int fd CLEANUP_CLOSE = open(...); */
#define CLEANUP_CLOSE __attribute__((cleanup(cleanup_close)))
#define CLEANUP_FREE __attribute__((cleanup(cleanup_free)))

#define CLEANUP_NAME_(line) cleanup_##line
#define CLEANUP_NAME(line) CLEANUP_NAME_(line)
#define CLEANUP_GUARD(type, function, lock) \
	type *const CLEANUP_NAME(__LINE__) __attribute__((cleanup(function), unused)) = (lock)

/* Take a lock and hold it to the end of the scope. */
#define GUARD(lock) \
	pthread_mutex_lock(lock); \
	CLEANUP_GUARD(pthread_mutex_t, cleanup_unlock, lock)
#define GUARD_READ(lock) \
	pthread_rwlock_rdlock(lock); \
	CLEANUP_GUARD(pthread_rwlock_t, cleanup_rwunlock, lock)
#define GUARD_WRITE(lock) \
	pthread_rwlock_wrlock(lock); \
	CLEANUP_GUARD(pthread_rwlock_t, cleanup_rwunlock, lock)

#endif
