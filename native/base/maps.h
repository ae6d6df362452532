/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.h - the mappings of a process: proc_pid_maps(5), proc_pid_smaps(5).
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
	MAPS_SELF = 0, /* as `task`: the calling process */
	MAPS_NAME = 32,
};

enum maps_flag {	   /* VmFlags, of smaps only */
	MAPS_UFFD = 1,	   /* registered with a userfaultfd: um, uw, ui */
	MAPS_HUGETLB = 2,  /* ht */
	MAPS_DONTDUMP = 4, /* dd */
	MAPS_LOCKED = 8,   /* lo */
};

struct maps_area {
	uint64_t start, end;
	uint64_t offset; /* in the file, of `start` */
	uint64_t inode;	 /* 0: no file */
	dev_t device;
	int prot; /* PROT_READ, PROT_WRITE, PROT_EXEC */
	bool shared;
	/* not set by maps_find(): */
	unsigned int flags;   /* enum maps_flag */
	char name[MAPS_NAME]; /* the beginning of its path or [name] */
};

/* -> a descriptor for maps_find() and maps_each(), or a negative errno.  `task` is the id of a
 * live thread. */
int maps_open(int task);
/* The same with the flags, for maps_each() only.  The kernel walks all page tables for it. */
int maps_open_flags(int task);
/* The same for any live thread of the process. */
int maps_of_process(int process);

/* Find the mapping that contains `address`, or the first one after it.  -> 0, -ENOENT: there is
 * none, -ESRCH: the process has no address space any more, or another negative errno. */
int maps_find(int maps, uint64_t address, struct maps_area *out);

/* Call `visit` for every mapping, in ascending order, until it returns true.  It may change the
 * mapping it is called for.  -> 1 when it returned true, 0 at the end, or a negative errno. */
int maps_each(int maps, bool (*visit)(const struct maps_area *, void *), void *arg);

#endif
