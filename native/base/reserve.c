/* SPDX-License-Identifier: Apache-2.0
 *
 * reserve.c - descriptors that are left for what must not fail: see reserve.h.
 */
#include "reserve.h"

#include <errno.h>
#include <sys/resource.h>
#include <unistd.h>

#define RESERVE_MOST 64

int df_reserve(int fd, int kind)
{
	struct rlimit limit;
	rlim_t left;

	if (fd < 0 || getrlimit(RLIMIT_NOFILE, &limit))
		return fd;
	left = limit.rlim_cur / 4 < RESERVE_MOST ? limit.rlim_cur / 4 : RESERVE_MOST;
	if (kind == DF_RESERVE_GUESTS)
		left /= 2;
	if ((rlim_t)fd < limit.rlim_cur - left)
		return fd;
	close(fd);
	return -EMFILE;
}
