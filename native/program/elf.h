/* SPDX-License-Identifier: Apache-2.0
 *
 * elf.h - whether LD_PRELOAD works for an executable file.
 *
 * Owns the reading of ELF headers and of "#!" lines.  May be called after vfork().  Must not map,
 * nor start programs.
 */
#ifndef DAXFAULT_PROGRAM_ELF_H
#define DAXFAULT_PROGRAM_ELF_H

enum program_kind {
	/* Left to the kernel: unreadable, not executable, of another machine, not ELF, or with file
	 * privileges (set-user-ID, set-group-ID, capabilities). */
	PROGRAM_OTHER,
	PROGRAM_DYNAMIC, /* linked with libc dynamically: LD_PRELOAD works */
	PROGRAM_RAW,	 /* bypasses libc: linked statically, or by Go */
};

/* -> the kind of the file, or of the interpreter that its "#!" line leads to. */
enum program_kind program_kind(const char *path);

#endif
