/* SPDX-License-Identifier: Apache-2.0
 *
 * maps.h - what an address of another process shows, as the kernel has it.
 */
#ifndef DAXFAULT_MAPS_H
#define DAXFAULT_MAPS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A mapping (one line of proc_pid_maps(5)). */
struct maps_area {
	uint64_t start, end;
	uint64_t offset;		/* in the file, of `start` */
	uint64_t inode;			/* 0: no file */
	dev_t device;
	int prot;			/* PROT_READ, PROT_WRITE, PROT_EXEC */
	bool shared;
};

/* -> a descriptor for maps_find(), or a negative errno.  `task` is one that lives: a thread,
 * or a process whose first thread does. */
int maps_open(int task);
int maps_of_process(int process);	/* whichever of its threads live */
/* The mapping that holds `address`, or the first one after it.  0, -ENOENT: there is none,
 * -ESRCH: the process has no address space any more, or another negative errno. */
int maps_find(int maps, uint64_t address, struct maps_area *out);

#endif
