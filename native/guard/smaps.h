/* SPDX-License-Identifier: Apache-2.0
 *
 * smaps.h - what only /proc/self/smaps says of a mapping.
 */
#ifndef DAXFAULT_GUARD_SMAPS_H
#define DAXFAULT_GUARD_SMAPS_H

#include <stdbool.h>
#include <stdint.h>

struct smaps_flags {
	bool registered;		/* with a userfaultfd: VmFlags um, uw or ui */
	bool huge;			/* hugetlb pages: ht */
};

/* Of the mapping that begins at `start`; none where the kernel does not say (CONFIG_PROC_PAGE_MONITOR).
 * Not for two threads at a time. */
void smaps_find(uint64_t start, struct smaps_flags *out);

#endif
