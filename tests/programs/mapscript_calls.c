/* SPDX-License-Identifier: Apache-2.0
 *
 * mapscript_calls.c - the calls of mapscript.c: on files, on mappings, and the accesses themselves.
 *
 * Owns what each answers.  Must not know scripts or processes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "mapscript.h"

static _Thread_local sigjmp_buf back;
static _Thread_local volatile sig_atomic_t guarded;
static _Thread_local siginfo_t caught;

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!guarded) {
		signal(number, SIG_DFL);
		return;
	}
	caught = *info;
	siglongjmp(back, 1);
}

void guard_accesses(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

static int prot(const char *s)
{
	return (strchr(s, 'r') ? PROT_READ : 0) | (strchr(s, 'w') ? PROT_WRITE : 0) |
	       (strchr(s, 'x') ? PROT_EXEC : 0);
}

static int map_flags(const char *s)
{
	static const struct {
		char letter;
		int flag;
	} all[] = {
		{ 's', MAP_SHARED },	      { 'p', MAP_PRIVATE },
		{ 'v', MAP_SHARED_VALIDATE }, { 'f', MAP_FIXED },
		{ 'n', MAP_FIXED_NOREPLACE }, { 'P', MAP_POPULATE },
		{ 'L', MAP_LOCKED },	      { 'S', MAP_SYNC },
		{ 'N', MAP_NORESERVE },	      { 'a', MAP_ANONYMOUS },
	};
	int flags = 0;

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (strchr(s, all[i].letter))
			flags |= all[i].flag;
	return flags;
}

static int open_flags(const char *s)
{
	int flags = strchr(s, 'w') ? strchr(s, 'r') ? O_RDWR : O_WRONLY : O_RDONLY;

	return flags | (strchr(s, 'c') ? O_CREAT : 0) | (strchr(s, 't') ? O_TRUNC : 0) |
	       (strchr(s, 'a') ? O_APPEND : 0) | (strchr(s, 'P') ? O_PATH : 0) |
	       (strchr(s, 'D') ? O_DIRECT : 0);
}

static int advice(const char *s)
{
	static const struct {
		const char *name;
		int advice;
	} all[] = {
		{ "normal", MADV_NORMAL },	   { "random", MADV_RANDOM },
		{ "sequential", MADV_SEQUENTIAL }, { "willneed", MADV_WILLNEED },
		{ "dontneed", MADV_DONTNEED },	   { "free", MADV_FREE },
		{ "remove", MADV_REMOVE },	   { "dontfork", MADV_DONTFORK },
		{ "dofork", MADV_DOFORK },	   { "cold", MADV_COLD },
		{ "pageout", MADV_PAGEOUT },	   { "hugepage", MADV_HUGEPAGE },
		{ "read", MADV_POPULATE_READ },	   { "write", MADV_POPULATE_WRITE },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (!strcmp(s, all[i].name))
			return all[i].advice;
	exit(8);
}

static void say_fault(const char *base)
{
	say("%s code %d at +%ld", caught.si_signo == SIGBUS ? "SIGBUS" : "SIGSEGV", caught.si_code,
	    (long)((char *)caught.si_addr - base));
}

static void load(const char *base, const char *from, long n, bool quiet)
{
	unsigned char bytes[n + 1];

	if (sigsetjmp(back, 1)) {
		guarded = 0;
		say_fault(base);
		return;
	}
	guarded = 1;
	for (long i = 0; i < n; i++)
		bytes[i] = ((const volatile unsigned char *)from)[i];
	guarded = 0;
	if (!quiet)
		say_bytes(bytes, n);
}

static void store(const char *base, char *to, const char *text, long n, int fill)
{
	if (sigsetjmp(back, 1)) {
		guarded = 0;
		say_fault(base);
		return;
	}
	guarded = 1;
	for (long i = 0; i < n; i++)
		((volatile char *)to)[i] = text ? text[i] : (char)fill;
	guarded = 0;
	say("%ld", n);
}

/* Until the byte is `wanted`, or "!": a SIGBUS.  For what happens behind. */
static void await(const char *from, const char *wanted)
{
	volatile int same = 0;

	for (volatile int i = 0; i < 5000 && !same; i++) {
		struct timespec pause = { 0, 1000000 };

		if (sigsetjmp(back, 1)) {
			same = *wanted == '!';
		} else {
			guarded = 1;
			same = *(const volatile char *)from == (*wanted == '0' ? 0 : *wanted);
		}
		guarded = 0;
		nanosleep(&pause, NULL);
	}
	say("%s", same ? wanted : "not in 5 s");
}

/* A system call that reads or writes the program's memory. */
static void through_pipe(char *at, long n, bool into)
{
	static char bytes[1 << 16];
	int ends[2];
	long r;

	if (pipe(ends))
		exit(7);
	memset(bytes, 'R', sizeof(bytes));
	if (into && write(ends[1], bytes, (size_t)n) != n)
		exit(7);
	r = into ? read(ends[0], at, (size_t)n) : write(ends[1], at, (size_t)n);
	result(r);
	close(ends[0]);
	close(ends[1]);
}

static void vm_read(char *at, long n)
{
	char bytes[n];
	struct iovec to = { bytes, (size_t)n }, from = { at, (size_t)n };

	result(process_vm_readv(getpid(), &to, 1, &from, 1, 0));
}

static void send_file(int fd, off_t offset, long n)
{
	int ends[2];

	if (pipe(ends))
		exit(7);
	result(sendfile(ends[1], fd, &offset, (size_t)n));
	close(ends[0]);
	close(ends[1]);
}

static void map(char **w)
{
	size_t len = (size_t)number(w[4]);
	void *hint = w[7] ? AT(w[7], w[8]) : NULL;
	int flags = map_flags(w[6]);
	void *at = mmap(hint, len, prot(w[5]), flags, *w[2] == '-' ? -1 : FD(w[2]), number(w[3]));

	if (at == MAP_FAILED) {
		result(-1);
		return;
	}
	maps[slot(w[1])].at = at;
	maps[slot(w[1])].len = len;
	say("mapped%s", flags & (MAP_FIXED | MAP_FIXED_NOREPLACE) && at != hint ? " elsewhere" : "");
}

static void remap(char **w)
{
	int flags = (strchr(w[5], 'm') ? MREMAP_MAYMOVE : 0) |
		    (strchr(w[5], 'f') ? MREMAP_FIXED : 0) |
		    (strchr(w[5], 'd') ? MREMAP_DONTUNMAP : 0);
	void *at = mremap(AT(w[1], w[2]), (size_t)number(w[3]), (size_t)number(w[4]), flags,
			  w[6] ? AT(w[6], w[7]) : NULL);

	if (at == MAP_FAILED) {
		result(-1);
		return;
	}
	if (!number(w[2]) && !(flags & MREMAP_DONTUNMAP))
		maps[slot(w[1])].at = at;
	if (w[8])
		maps[slot(w[8])].at = at;
	say("remapped");
}

bool call_on_file(char **w)
{
	const char *op = w[0];
	struct stat st;

	if (!strcmp(op, "open"))
		done(FD(w[1]) = open(path(w[2]), open_flags(w[3]) | O_CLOEXEC, 0644));
	else if (!strcmp(op, "close"))
		done(close(FD(w[1])));
	else if (!strcmp(op, "read")) {
		char bytes[number(w[3]) + 1];
		ssize_t n = pread(FD(w[1]), bytes, (size_t)number(w[3]), number(w[2]));

		n < 0 ? result(n) : say_bytes((unsigned char *)bytes, n);
	} else if (!strcmp(op, "write"))
		result(pwrite(FD(w[1]), w[3], strlen(w[3]), number(w[2])));
	else if (!strcmp(op, "append"))
		result(write(FD(w[1]), w[2], strlen(w[2])));
	else if (!strcmp(op, "readinto"))
		result(pread(FD(w[1]), AT(w[4], w[5]), (size_t)number(w[3]), number(w[2])));
	else if (!strcmp(op, "writefrom"))
		result(pwrite(FD(w[1]), AT(w[4], w[5]), (size_t)number(w[3]), number(w[2])));
	else if (!strcmp(op, "sendfile"))
		send_file(FD(w[1]), number(w[2]), number(w[3]));
	else if (!strcmp(op, "size"))
		result(fstat(FD(w[1]), &st) ? -1 : st.st_size);
	else if (!strcmp(op, "ftrunc"))
		done(ftruncate(FD(w[1]), number(w[2])));
	else if (!strcmp(op, "trunc"))
		done(truncate(path(w[1]), number(w[2])));
	else if (!strcmp(op, "fsync"))
		done(fsync(FD(w[1])));
	else if (!strcmp(op, "rename"))
		done(rename(path(w[1]), path(w[2])));
	else if (!strcmp(op, "unlink"))
		done(unlink(path(w[1])));
	else if (!strcmp(op, "closeall"))
		done(close_range(3, ~0u, 0));
	else if (!strcmp(op, "dup2"))
		done(dup2(FD(w[1]), (int)number(w[2])));
	else if (!strcmp(op, "closefd"))
		done(close((int)number(w[1])));
	else if (!strcmp(op, "output"))
		done(output = dup2(output, (int)number(w[1])));
	else
		return false;
	return true;
}

bool call_on_memory(char **w)
{
	const char *op = w[0];
	char *base = w[1] ? maps[slot(w[1])].at : NULL;

	if (!strcmp(op, "map"))
		map(w);
	else if (!strcmp(op, "remap"))
		remap(w);
	else if (!strcmp(op, "unmap"))
		done(munmap(AT(w[1], w[2]), (size_t)number(w[3])));
	else if (!strcmp(op, "protect"))
		done(mprotect(AT(w[1], w[2]), (size_t)number(w[3]), prot(w[4])));
	else if (!strcmp(op, "load"))
		load(base, AT(w[1], w[2]), number(w[3]), false);
	else if (!strcmp(op, "store"))
		store(base, AT(w[1], w[2]), w[3], (long)strlen(w[3]), 0);
	else if (!strcmp(op, "fill"))
		store(base, AT(w[1], w[2]), NULL, number(w[3]), *w[4]);
	else if (!strcmp(op, "await"))
		await(AT(w[1], w[2]), w[3]);
	else if (!strcmp(op, "put"))
		through_pipe(AT(w[1], w[2]), number(w[3]), false);
	else if (!strcmp(op, "get"))
		through_pipe(AT(w[1], w[2]), number(w[3]), true);
	else if (!strcmp(op, "vmread"))
		vm_read(AT(w[1], w[2]), number(w[3]));
	else if (!strcmp(op, "msync"))
		done(msync(AT(w[1], w[2]), (size_t)number(w[3]),
			   (strchr(w[4], 's') ? MS_SYNC : 0) | (strchr(w[4], 'a') ? MS_ASYNC : 0) |
				   (strchr(w[4], 'i') ? MS_INVALIDATE : 0)));
	else if (!strcmp(op, "advise"))
		done(madvise(AT(w[1], w[2]), (size_t)number(w[3]), advice(w[4])));
	else if (!strcmp(op, "lock"))
		done(mlock(AT(w[1], w[2]), (size_t)number(w[3])));
	else if (!strcmp(op, "lockonfault"))
		done(mlock2(AT(w[1], w[2]), (size_t)number(w[3]), MLOCK_ONFAULT));
	else if (!strcmp(op, "unlock"))
		done(munlock(AT(w[1], w[2]), (size_t)number(w[3])));
	else if (!strcmp(op, "touch")) /* no answer, no guard: it may die of it */
		(void)*(volatile char *)AT(w[1], w[2]);
	else
		return false;
	return true;
}
