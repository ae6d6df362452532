/* SPDX-License-Identifier: Apache-2.0
 *
 * rescue.c - daxfault-rescue: ends a fault loop in the virtual machine of another process.
 *
 * 	daxfault-rescue PID FILE unmap|forbid|poison
 *
 * Unmaps the process's mappings of FILE beyond FILE's end, makes them PROT_NONE, or replaces them
 * by poisoned memory.  Stops the process's first thread by ptrace(2) and has it make the system
 * calls; the vCPUs go on.  Must not touch the mapping before FILE's end.
 *
 * Prints the range.  Exit status: 0 done, 1 refused by the kernel, 2 invalid arguments, 3 FILE is
 * not mapped beyond its end.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "base/uffd.h"

#define PAGE ((uint64_t)4096)
#define MOST_TAILS 16

struct tail {
	uint64_t start, len;
};

/* The thread that makes the system calls. */
struct lent {
	pid_t pid;
	uint64_t gate;		      /* the address of a `syscall` instruction */
	struct user_regs_struct regs; /* to restore */
};

static int failed(const char *what)
{
	fprintf(stderr, "daxfault-rescue: %s: %s\n", what, strerror(errno));
	return 1;
}

struct search {
	const struct stat *file;
	uint64_t eof;
	struct tail *tails;
	int count;
};

static bool add_tail(const struct maps_area *area, void *arg)
{
	struct search *s = arg;
	uint64_t start = area->start;

	if (!area->shared || area->inode != s->file->st_ino || area->device != s->file->st_dev)
		return false;
	if (area->offset < s->eof)
		start += s->eof - area->offset;
	if (start < area->end)
		s->tails[s->count++] = (struct tail){ start, area->end - start };
	return s->count == MOST_TAILS;
}

/* -> -1 and errno when the mappings cannot be read */
static int each_mapping(pid_t pid, bool (*visit)(const struct maps_area *, void *), void *arg)
{
	int maps CLEANUP_CLOSE = maps_open(pid);
	int error = maps < 0 ? maps : maps_each(maps, visit, arg);

	if (error < 0)
		errno = -error;
	return error < 0 ? -1 : 0;
}

/* -> the number of tails, or -1 */
static int find_tails(pid_t pid, const char *path, struct tail *tails)
{
	struct stat file;
	struct search s = { .file = &file, .tails = tails };

	if (stat(path, &file))
		return -1;
	s.eof = ((uint64_t)file.st_size + PAGE - 1) & ~(PAGE - 1);
	return each_mapping(pid, add_tail, &s) ? -1 : s.count;
}

static bool is_vdso(const struct maps_area *area, void *vdso)
{
	if (strcmp(area->name, "[vdso]") != 0)
		return false;
	*(struct maps_area *)vdso = *area;
	return true;
}

/* The vdso of every process has the instruction, at a fixed address. */
static uint64_t find_gate(pid_t pid)
{
	struct maps_area vdso = { 0 };
	uint8_t code[4 * PAGE];
	struct iovec here, there;
	uint64_t gate = 0;
	ssize_t got;

	if (each_mapping(pid, is_vdso, &vdso))
		return 0;
	here = (struct iovec){ code, vdso.end - vdso.start < sizeof(code) ? vdso.end - vdso.start
									  : sizeof(code) };
	there = (struct iovec){ (void *)vdso.start, here.iov_len };
	got = process_vm_readv(pid, &here, 1, &there, 1, 0);
	for (ssize_t i = 0; !gate && i + 1 < got; i++)
		if (code[i] == 0x0f && code[i + 1] == 0x05)
			gate = vdso.start + (uint64_t)i;
	if (!gate)
		errno = ENOEXEC;
	return gate;
}

static int waited(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, __WALL) < 0)
		return -1;
	if (WIFSTOPPED(status))
		return WSTOPSIG(status);
	errno = ESRCH;
	return -1;
}

static int borrow(pid_t pid, struct lent *thread)
{
	*thread = (struct lent){ .pid = pid, .gate = find_gate(pid) };
	if (!thread->gate)
		return failed("no system call instruction in its vdso");
	if (ptrace(PTRACE_SEIZE, pid, 0, 0))
		return failed("PTRACE_SEIZE");
	if (ptrace(PTRACE_INTERRUPT, pid, 0, 0) || waited(pid) < 0)
		return failed("PTRACE_INTERRUPT");
	if (ptrace(PTRACE_GETREGS, pid, 0, &thread->regs))
		return failed("PTRACE_GETREGS");
	return 0;
}

/* Restores rax and orig_rax, so that the kernel restarts an interrupted system call
 * (arch/x86/kernel/signal.c, arch_do_signal_or_restart()). */
static void give_back(struct lent *thread)
{
	ptrace(PTRACE_SETREGS, thread->pid, 0, &thread->regs);
	ptrace(PTRACE_DETACH, thread->pid, 0, 0);
}

/* -> its result, or -errno */
static int64_t make(struct lent *thread, long number, const uint64_t arguments[6])
{
	struct user_regs_struct regs = thread->regs;
	int signal;

	regs.rip = thread->gate;
	regs.rax = (uint64_t)number;
	regs.orig_rax = (uint64_t)-1; /* no system call to restart */
	regs.rdi = arguments[0];
	regs.rsi = arguments[1];
	regs.rdx = arguments[2];
	regs.r10 = arguments[3];
	regs.r8 = arguments[4];
	regs.r9 = arguments[5];
	if (ptrace(PTRACE_SETREGS, thread->pid, 0, &regs))
		return -errno;
	if (ptrace(PTRACE_SINGLESTEP, thread->pid, 0, 0))
		return -errno;
	signal = waited(thread->pid);
	if (signal < 0)
		return -errno;
	if (ptrace(PTRACE_GETREGS, thread->pid, 0, &regs))
		return -errno;
	/* another signal came before the step: it is lost, and the call was not made */
	return signal == SIGTRAP && regs.rip == thread->gate + 2 ? (int64_t)regs.rax : -EINTR;
}

#define MAKE(thread, number, ...) make(thread, number, (const uint64_t[6]){ __VA_ARGS__ })

/* A userfaultfd belongs to the address space that made it, in any process.  So theirs is
 * duplicated, used here, and closed there. */
static int64_t poison_aside(struct lent *thread, uint64_t aside, uint64_t len)
{
	int64_t theirs = MAKE(thread, SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	int pidfd CLEANUP_CLOSE = -1, ours CLEANUP_CLOSE = -1;
	int64_t error;

	if (theirs < 0)
		return theirs;
	pidfd = (int)syscall(SYS_pidfd_open, thread->pid, 0);
	if (pidfd >= 0)
		ours = (int)syscall(SYS_pidfd_getfd, pidfd, (int)theirs, 0);
	error = ours < 0 ? -errno : uffd_poison_fresh(ours, aside, len);
	MAKE(thread, SYS_close, (uint64_t)theirs);
	return error;
}

static int64_t poison(struct lent *thread, struct tail tail)
{
	int64_t aside = MAKE(thread, SYS_mmap, 0, tail.len, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, (uint64_t)-1, 0);
	int64_t error;

	if (aside < 0 && aside >= -4095)
		return aside;
	error = poison_aside(thread, (uint64_t)aside, tail.len);
	if (!error)
		error = MAKE(thread, SYS_mremap, (uint64_t)aside, tail.len, tail.len,
			     MREMAP_MAYMOVE | MREMAP_FIXED, tail.start);
	if (error < 0 && error >= -4095) {
		MAKE(thread, SYS_munmap, (uint64_t)aside, tail.len);
		return error;
	}
	return 0;
}

static int64_t act(struct lent *thread, const char *how, struct tail tail)
{
	if (!strcmp(how, "unmap"))
		return MAKE(thread, SYS_munmap, tail.start, tail.len);
	if (!strcmp(how, "forbid"))
		return MAKE(thread, SYS_mprotect, tail.start, tail.len, PROT_NONE);
	return poison(thread, tail);
}

int main(int argc, char **argv)
{
	struct tail tails[MOST_TAILS];
	struct lent thread;
	int64_t error = 0;
	char *end;
	long pid;
	int count;

	if (argc != 4 || (pid = strtol(argv[1], &end, 10)) <= 0 || *end || pid > INT32_MAX ||
	    (strcmp(argv[3], "unmap") && strcmp(argv[3], "forbid") && strcmp(argv[3], "poison"))) {
		fputs("usage: daxfault-rescue PID FILE unmap|forbid|poison\n", stderr);
		return 2;
	}
	count = find_tails((pid_t)pid, argv[2], tails);
	if (count < 0)
		return failed(argv[2]);
	if (!count) {
		fprintf(stderr, "daxfault-rescue: process %ld maps nothing of %s beyond its end\n",
			pid, argv[2]);
		return 3;
	}
	if (borrow((pid_t)pid, &thread))
		return 1;
	for (int i = 0; i < count && !error; i++) {
		error = act(&thread, argv[3], tails[i]);
		if (!error)
			printf("%s 0x%" PRIx64 "-0x%" PRIx64 "\n", argv[3], tails[i].start,
			       tails[i].start + tails[i].len);
	}
	give_back(&thread);
	errno = (int)-error;
	return error ? failed(argv[3]) : 0;
}
