/* SPDX-License-Identifier: Apache-2.0
 *
 * elf.h - how an executable file must be started to be followed.
 *
 * Owns the reading of ELF headers and of "#!" lines.  May be called after vfork(); must
 * not map, and starts nothing.
 */
#ifndef DAXFAULT_PROGRAM_ELF_H
#define DAXFAULT_PROGRAM_ELF_H

enum program_kind {
	/* Left to the kernel: unreadable, not executable, of another machine, no ELF, or with
	 * privileges of its own (set-user-ID, set-group-ID, capabilities). */
	PROGRAM_OTHER,
	PROGRAM_DYNAMIC,	/* the libc is another object: LD_PRELOAD works */
	PROGRAM_RAW,		/* makes its system calls itself: linked statically, or by Go */
};

/* Of the file itself, or of the interpreter that its "#!" line leads to. */
enum program_kind program_kind(const char *path);

#endif
