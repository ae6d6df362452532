/* SPDX-License-Identifier: Apache-2.0
 *
 * reserve.h - descriptors that are left for what must not fail.
 *
 * Owns how many those are.  A process that is out of descriptors can answer nobody: it accepts no
 * program, reads no fork event (fs/userfaultfd.c installs the child's descriptor), and looks up no
 * mapping.  So what may be refused stops earlier: files first, then new guests.  The kernel hands out
 * the lowest free number (POSIX, open(2)), so a high number says that few are left.
 */
#ifndef DAXFAULT_RESERVE_H
#define DAXFAULT_RESERVE_H

/* DF_CDEF_BEGIN */

enum df_reserve {
	DF_RESERVE_FILES = 1,  /* files and page caches leave a quarter of the limit, 64 at most */
	DF_RESERVE_GUESTS = 2, /* guests leave half of that */
};

/* What open(2) and the like returned, if that leaves the reserve; else it is closed.  -> `fd`, or
 * -EMFILE. */
int df_reserve(int fd, int kind);

/* DF_CDEF_END */

#endif
