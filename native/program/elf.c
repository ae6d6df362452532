/* SPDX-License-Identifier: Apache-2.0
 *
 * elf.c - how an executable file must be started: see elf.h.
 *
 * Follows elf(5), fs/binfmt_elf.c and fs/binfmt_script.c.  Files that the kernel refuses are
 * PROGRAM_OTHER.
 */
#include "elf.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	SCRIPTS_MAX = 5, /* fs/exec.c, exec_binprm(): ELOOP beyond */
	LINE_SIZE = 256, /* BINPRM_BUF_SIZE */
	HEADERS_MAX = 64,
	NOTES_MAX = 1024, /* bytes of notes that are searched */
#if defined(__x86_64__)
	OWN_MACHINE = EM_X86_64,
#elif defined(__aarch64__)
	OWN_MACHINE = EM_AARCH64,
#endif
};

static bool read_at(int fd, void *buf, size_t len, uint64_t at)
{
	return syscall(SYS_pread64, fd, buf, len, at) == (long)len;
}

/* A shared object without an interpreter: a static PIE, or a dynamic loader. */
static enum program_kind loader_or_static(int fd, const Elf64_Phdr *dynamic)
{
	uint64_t at;
	Elf64_Dyn d;

	for (at = 0; at + sizeof(d) <= dynamic->p_filesz; at += sizeof(d)) {
		if (!read_at(fd, &d, sizeof(d), dynamic->p_offset + at) || d.d_tag == DT_NULL)
			break;
		if (d.d_tag == DT_FLAGS_1 && d.d_un.d_val & DF_1_PIE)
			return PROGRAM_RAW;
	}
	return PROGRAM_DYNAMIC;
}

/* Go's run time and its syscall package bypass libc even in a program that is linked with it (cgo).
 * Go's linker always adds a note. */
static bool has_go_note(int fd, const Elf64_Phdr *notes)
{
	uint64_t at = 0, end = notes->p_filesz < NOTES_MAX ? notes->p_filesz : NOTES_MAX;
	Elf64_Nhdr n;
	char name[4];

	while (at + sizeof(n) + sizeof(name) <= end) {
		if (!read_at(fd, &n, sizeof(n), notes->p_offset + at) ||
		    !read_at(fd, name, sizeof(name), notes->p_offset + at + sizeof(n)))
			return false;
		if (n.n_namesz == sizeof(name) && !memcmp(name, "Go\0", sizeof(name)))
			return true;
		at += sizeof(n) + (((uint64_t)n.n_namesz + 3) & ~3ull) +
		      (((uint64_t)n.n_descsz + 3) & ~3ull);
	}
	return false;
}

static enum program_kind elf_kind(int fd, const Elf64_Ehdr *e)
{
	bool interpreted = false, go = false;
	Elf64_Phdr p, dynamic = { .p_filesz = 0 };
	int i;

	if (e->e_ident[EI_CLASS] != ELFCLASS64 || e->e_machine != OWN_MACHINE ||
	    e->e_phentsize != sizeof(p) || e->e_phnum > HEADERS_MAX ||
	    (e->e_type != ET_EXEC && e->e_type != ET_DYN))
		return PROGRAM_OTHER;
	for (i = 0; i < e->e_phnum; i++) {
		if (!read_at(fd, &p, sizeof(p), e->e_phoff + (uint64_t)i * sizeof(p)))
			return PROGRAM_OTHER;
		if (p.p_type == PT_INTERP)
			interpreted = true;
		else if (p.p_type == PT_NOTE && has_go_note(fd, &p))
			go = true;
		else if (p.p_type == PT_DYNAMIC)
			dynamic = p;
	}
	if (go)
		return PROGRAM_RAW;
	if (interpreted)
		return PROGRAM_DYNAMIC;
	if (e->e_type == ET_EXEC || !dynamic.p_filesz)
		return PROGRAM_RAW;
	return loader_or_static(fd, &dynamic);
}

static bool is_privileged(int fd, const struct stat *st)
{
	char caps[64];

	return st->st_mode & S_ISUID || (st->st_mode & (S_ISGID | S_IXGRP)) == (S_ISGID | S_IXGRP) ||
	       syscall(SYS_fgetxattr, fd, "security.capability", caps, sizeof(caps)) >= 0;
}

/* The interpreter of a "#!" line, in place; or NULL. */
static char *script_interpreter(char *line, size_t len)
{
	char *start = line + 2, *end = memchr(line, '\n', len);

	if (!end)
		end = line + len;
	while (start < end && (*start == ' ' || *start == '\t'))
		start++;
	*end = '\0';
	start[strcspn(start, " \t")] = '\0';
	return *start ? start : NULL;
}

/* -> a descriptor, or -1.  Opens regular files only: opening a device may have effects. */
static int open_regular(const char *path, struct stat *st)
{
	if (syscall(SYS_newfstatat, AT_FDCWD, path, st, 0) || !S_ISREG(st->st_mode))
		return -1;
	return (int)syscall(SYS_openat, AT_FDCWD, path,
			    O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0);
}

enum program_kind program_kind(const char *path)
{
	enum program_kind kind = PROGRAM_OTHER;
	union {
		Elf64_Ehdr elf;
		char line[LINE_SIZE + 1];
	} head;
	int depth, error = errno;
	struct stat st;

	for (depth = 0; path && depth <= SCRIPTS_MAX; depth++) {
		int fd = open_regular(path, &st);
		long n;

		if (fd < 0)
			break;
		n = syscall(SYS_pread64, fd, head.line, LINE_SIZE, 0);
		path = NULL;
		if (n > 2 && !memcmp(head.line, "#!", 2)) {
			head.line[n] = '\0';
			path = script_interpreter(head.line, (size_t)n);
		} else if (n >= (long)sizeof(head.elf) && !memcmp(head.line, ELFMAG, SELFMAG) &&
			   !is_privileged(fd, &st)) {
			kind = elf_kind(fd, &head.elf);
		}
		syscall(SYS_close, fd);
	}
	errno = error;
	return kind;
}
