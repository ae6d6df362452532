/* SPDX-License-Identifier: Apache-2.0
 *
 * life.c - the mutex that the host's main thread holds while it lives (struct keep_life).  Owns its
 * shared memory.  Must not be used by two hosts of one process.
 */
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#include "keep.h"

static struct keep_life *life;
static int memory = -1;

int df_keeper_live(void)
{
	pthread_mutexattr_t kind;
	int error = 0;

	if (gettid() != getpid() || life)
		return -EINVAL;
	memory = memfd_create("daxfault-life", MFD_CLOEXEC);
	if (memory < 0)
		return -errno;
	if (!ftruncate(memory, sizeof(*life)))
		life = mmap(NULL, sizeof(*life), PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
	if (!life || life == MAP_FAILED) {
		error = -errno;
		life = NULL;
		close(memory);
		return error;
	}
	pthread_mutexattr_init(&kind);
	pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&life->alive, &kind);
	pthread_mutexattr_destroy(&kind);
	pthread_mutex_lock(&life->alive);
	keep(DF_KEEP_LIFE, 0, memory);
	return 0;
}

void df_keeper_left(void)
{
	if (!life)
		return;
	keep_nothing(DF_KEEP_LIFE, 0);
	pthread_mutex_unlock(&life->alive);
	munmap(life, sizeof(*life));
	close(memory);
	life = NULL;
}
