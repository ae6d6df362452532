/* SPDX-License-Identifier: Apache-2.0
 *
 * mapscript_system.c - system calls of mapscript.c by name: through the libc, through its
 * syscall(), and by an instruction of our own.
 *
 * Owns the table of them, and the ways to make a process.  Must not know what a call does.
 *
 * call WAY NAME[>m] ARGUMENT...    WAY is libc, syscall or raw; the result becomes mapping m
 * child WAY NAME                   a child loads page 1 of m and stores to page 2 of it
 * say WORD
 * ring NAME m OFFSET LENGTH VALUE  the same call by io_uring
 *
 * An argument is a number; a mapping and a sum (m+1p+8); fd:f; vec:m+1p:2p, a struct iovec of it;
 * buffer; pid; pidfd.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/io_uring.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mapscript.h"

enum {
	ARGUMENTS = 6,
	BUFFER = 64 << 10
};

typedef long function();

#define BOTH(name, ...) \
	{ #name, SYS_##name, (function *)(void *)name, sizeof(name(__VA_ARGS__)) == 8 }
#define ONLY(name, number) { name, number, NULL, true }

/* A call without a libc function is made by syscall() there. */
static const struct system_call {
	const char *name;
	long number;
	function *libc;
	bool wide; /* the function returns 64 bits */
} table[] = {
	BOTH(mmap, 0, 0, 0, 0, 0, 0),
	BOTH(munmap, 0, 0),
	BOTH(mremap, 0, 0, 0, 0),
	BOTH(mprotect, 0, 0, 0),
	BOTH(pkey_mprotect, 0, 0, 0, 0),
	BOTH(msync, 0, 0, 0),
	BOTH(madvise, 0, 0, 0),
	BOTH(mlock, 0, 0),
	BOTH(mlock2, 0, 0, 0),
	BOTH(munlock, 0, 0),
	BOTH(mlockall, 0),
	BOTH(munlockall),
	BOTH(mincore, 0, 0, 0),
	BOTH(remap_file_pages, 0, 0, 0, 0, 0),
	BOTH(process_madvise, 0, 0, 0, 0, 0),
	BOTH(process_vm_readv, 0, 0, 0, 0, 0, 0),
	BOTH(process_vm_writev, 0, 0, 0, 0, 0, 0),
	BOTH(shmat, 0, 0, 0),
	BOTH(shmdt, 0),
	BOTH(shmget, 0, 0, 0),
	BOTH(readv, 0, 0, 0),
	BOTH(writev, 0, 0, 0),
	ONLY("pread", SYS_pread64),
	ONLY("pwrite", SYS_pwrite64),
	ONLY("preadv2", SYS_preadv2),
	ONLY("pwritev2", SYS_pwritev2),
	ONLY("ftruncate", SYS_ftruncate),
	ONLY("fsync", SYS_fsync),
	ONLY("fdatasync", SYS_fdatasync),
	ONLY("sync_file_range", SYS_sync_file_range),
	ONLY("fallocate", SYS_fallocate),
	ONLY("mbind", SYS_mbind),
	ONLY("move_pages", SYS_move_pages),
	ONLY("migrate_pages", SYS_migrate_pages),
	ONLY("brk", SYS_brk),
	ONLY("set_mempolicy_home_node", 450),
	ONLY("mseal", 462),
	ONLY("cachestat", 451),
	ONLY("memfd_secret", SYS_memfd_secret),
	ONLY("process_mrelease", SYS_process_mrelease),
	ONLY("userfaultfd", SYS_userfaultfd),
	ONLY("getrandom", SYS_getrandom),
	ONLY("close_range", SYS_close_range),
	ONLY("readahead", SYS_readahead),
};

static const struct system_call *find(const char *name)
{
	for (size_t i = 0; i < sizeof(table) / sizeof(*table); i++)
		if (!strcmp(table[i].name, name))
			return &table[i];
	exit(8);
}

static long by_instruction(long n, const long *a)
{
	register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
	long r;

	__asm__ volatile("syscall"
			 : "=a"(r)
			 : "a"(n), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (r < 0 && r >= -4095) {
		errno = (int)-r;
		return -1;
	}
	return r;
}

static long make(const char *way, const struct system_call *c, const long *a)
{
	long r;

	if (!strcmp(way, "raw"))
		return by_instruction(c->number, a);
	if (strcmp(way, "libc") || !c->libc)
		return syscall(c->number, a[0], a[1], a[2], a[3], a[4], a[5]);
	r = c->libc(a[0], a[1], a[2], a[3], a[4], a[5]);
	return c->wide ? r : (int)r;
}

static char buffer[BUFFER] __attribute__((aligned(4096)));

static long argument(const char *word)
{
	static struct iovec vectors[ARGUMENTS];
	static int used;
	char part[64];

	if (!strncmp(word, "vec:", 4)) {
		struct iovec *vector = &vectors[used++ % ARGUMENTS];
		size_t length = strcspn(word + 4, ":");

		snprintf(part, sizeof(part), "%.*s", (int)length, word + 4);
		*vector = (struct iovec){ (void *)argument(part), (size_t)number(word + 5 + length) };
		return (long)vector;
	}
	if (!strncmp(word, "fd:", 3))
		return files[slot(word + 3)];
	if (!strcmp(word, "buffer"))
		return (long)buffer;
	if (!strcmp(word, "pid"))
		return getpid();
	if (!strcmp(word, "pidfd"))
		return syscall(SYS_pidfd_open, getpid(), 0);
	if (*word >= 'a' && *word <= 'p')
		return (long)maps[slot(word)].at + (word[1] ? number(word + 2) : 0);
	return number(word);
}

static void call(char **w)
{
	char *into = strchr(w[2], '>');
	long arguments[ARGUMENTS] = { 0 }, r;
	const struct system_call *c;

	if (into)
		*into++ = '\0';
	c = find(w[2]);
	for (int i = 0; i < ARGUMENTS && w[3 + i]; i++)
		arguments[i] = argument(w[3 + i]);
	r = make(w[1], c, arguments);
	if (r == -1 || !into) {
		result(r);
		return;
	}
	maps[slot(into)].at = (char *)r;
	say("mapped%s", r == arguments[0] ? " there" : "");
}

/* ------------------------------------------------------------------ children */

static void be_child(void)
{
	char *m = maps[slot("m")].at;

	say("a child loads %d", m[PAGE]);
	m[2 * PAGE] = '!';
	_exit(0);
}

static int be_clone(void *unused)
{
	(void)unused;
	be_child();
	return 0;
}

static pid_t start_child(const char *way, const char *name)
{
	static char stack[256 << 10] __attribute__((aligned(16)));
	struct clone_args more = { .exit_signal = SIGCHLD };
	long fork_arguments[ARGUMENTS] = { 0 }, clone_arguments[ARGUMENTS] = { SIGCHLD };
	long clone3_arguments[ARGUMENTS] = { (long)&more, sizeof(more) };
	bool libc = !strcmp(way, "libc");

	if (!strcmp(name, "fork"))
		return libc ? fork()
			    : (pid_t)make(way, &(struct system_call){ .number = SYS_fork },
					  fork_arguments);
	if (!strcmp(name, "_Fork"))
		return _Fork();
	if (!strcmp(name, "clone"))
		return libc ? clone(be_clone, stack + sizeof(stack), SIGCHLD, NULL)
			    : (pid_t)make(way, &(struct system_call){ .number = SYS_clone },
					  clone_arguments);
	if (!strcmp(name, "clone3"))
		return (pid_t)make(libc ? "syscall" : way,
				   &(struct system_call){ .number = SYS_clone3 }, clone3_arguments);
	if (!strcmp(name, "clone_vm")) /* shares the address space, and is another process */
		return clone(be_clone, stack + sizeof(stack), SIGCHLD | CLONE_VM, NULL);
	exit(8);
}

static void child(char **w)
{
	pid_t pid = start_child(w[1], w[2]);
	int status;

	if (!pid)
		be_child();
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		result(-1);
	else
		say("it ended: %x", (unsigned int)status);
}

/* A child that is traced, and whose page 1 is read and page 2 written: with `touched`, pages that it has
 * touched itself. */
static void peek(char **w)
{
	char *m = maps[slot("m")].at;
	bool touched = !strcmp(w[1], "touched");
	pid_t pid = fork();
	int status;
	long word;

	if (!pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL))
			_exit(1);
		if (touched)
			m[2 * PAGE] = m[PAGE];
		raise(SIGSTOP);
		_exit(m[2 * PAGE]);
	}
	if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) {
		say("untraced");
		return;
	}
	errno = 0;
	word = ptrace(PTRACE_PEEKDATA, pid, m + PAGE, NULL);
	say("%s %lx", errno ? strerrorname_np(errno) : "peeked", errno ? 0 : word & 0xff);
	result(ptrace(PTRACE_POKEDATA, pid, m + 2 * PAGE, (void *)'@'));
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	waitpid(pid, &status, 0);
	say("it saw %d", WEXITSTATUS(status));
}

/* ------------------------------------------------------------------ io_uring */

static void submit(struct io_uring_sqe wanted)
{
	struct io_uring_params p = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 4, &p);
	char *queue, *done;
	struct io_uring_sqe *entries;
	struct io_uring_cqe *completions;

	if (ring < 0) {
		result(-1);
		return;
	}
	queue = mmap(NULL, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED,
		     ring, IORING_OFF_SQ_RING);
	done = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*completions),
		    PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	entries = mmap(NULL, p.sq_entries * sizeof(*entries), PROT_READ | PROT_WRITE, MAP_SHARED,
		       ring, IORING_OFF_SQES);
	if (queue == MAP_FAILED || done == MAP_FAILED || entries == MAP_FAILED)
		exit(7);
	completions = (void *)(done + p.cq_off.cqes);
	entries[0] = wanted;
	((uint32_t *)(queue + p.sq_off.array))[0] = 0;
	atomic_store((_Atomic uint32_t *)(queue + p.sq_off.tail), 1);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1) {
		result(-1);
	} else {
		errno = completions[0].res < 0 ? -completions[0].res : 0;
		result(errno ? -1 : completions[0].res);
	}
	close(ring);
}

static void ring(char **w)
{
	struct io_uring_sqe s = { .addr = (uint64_t)AT(w[2], w[3]), .len = (uint32_t)number(w[4]) };
	const char *name = w[1];

	if (!strcmp(name, "madvise")) {
		s.opcode = IORING_OP_MADVISE;
		s.fadvise_advice = (uint32_t)number(w[5]);
	} else {
		s.opcode = !strcmp(name, "read") ? IORING_OP_READ : IORING_OP_WRITE;
		s.fd = FD(w[5]);
		s.off = (uint64_t)number(w[6]);
	}
	submit(s);
}

/* The mapping as a fixed buffer of a ring, which pins its pages. */
static void ring_buffer(char **w)
{
	struct io_uring_params p = { 0 };
	int ring = (int)syscall(SYS_io_uring_setup, 4, &p);
	struct iovec part = { AT(w[1], w[2]), (size_t)number(w[3]) };

	result(ring < 0 ? -1
			: syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &part, 1));
	close(ring);
}

bool call_on_system(char **w)
{
	if (!strcmp(w[0], "call"))
		call(w);
	else if (!strcmp(w[0], "say"))
		say("%s", w[1]);
	else if (!strcmp(w[0], "child"))
		child(w);
	else if (!strcmp(w[0], "peek"))
		peek(w);
	else if (!strcmp(w[0], "ring"))
		ring(w);
	else if (!strcmp(w[0], "ringbuffer"))
		ring_buffer(w);
	else
		return false;
	return true;
}
