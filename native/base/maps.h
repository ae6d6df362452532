/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.h - a process's mappings, as the kernel has them: proc_pid_maps(5), proc_pid_smaps(5).
 *
 * Owns the reading of those files.  Must not know guests or page caches.  All but
 * maps_of_process() may be called from a signal handler and after fork(): no allocation, no lock,
 * no cancellation point, less than 2 KiB of stack.  errno may be changed.
 */
#ifndef DAXFAULT_MAPS_H
#define DAXFAULT_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

enum {
	MAPS_SELF = 0,			/* a task: the calling process */
	MAPS_NAME = 32,
};

enum maps_flag {			/* VmFlags, of smaps only */
	MAPS_UFFD = 1,			/* registered with a userfaultfd: um, uw, ui */
	MAPS_HUGETLB = 2,		/* ht */
	MAPS_DONTDUMP = 4,		/* dd */
	MAPS_LOCKED = 8,		/* lo */
};

struct maps_area {
	uint64_t start, end;
	uint64_t offset;		/* in the file, of `start` */
	uint64_t inode;			/* 0: no file */
	dev_t device;
	int prot;			/* PROT_READ, PROT_WRITE, PROT_EXEC */
	bool shared;
	/* not of maps_find(): */
	unsigned int flags;		/* enum maps_flag */
	char name[MAPS_NAME];		/* the beginning of its path or [name] */
};

/* -> a descriptor for maps_find() and maps_each(), or a negative errno.  `task` is a live thread,
 * or a process whose first thread is live. */
int maps_open(int task);
/* The same with the flags, for maps_each() alone.  The kernel walks every page table for it. */
int maps_open_flags(int task);
/* The mappings of whichever thread of the process is live. */
int maps_of_process(int process);

/* The mapping that holds `address`, or the first one after it.  0, -ENOENT: there is none,
 * -ESRCH: the process has no address space any more, or another negative errno. */
int maps_find(int maps, uint64_t address, struct maps_area *out);

/* Show `visit` every mapping, in ascending order, until it returns true.  It may change those
 * that it has been shown.  -> 1 when it returned true, 0 when it never did, or a negative errno. */
int maps_each(int maps, bool (*visit)(const struct maps_area *, void *), void *arg);

#endif
