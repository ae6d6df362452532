/* SPDX-License-Identifier: Apache-2.0
 *
 * mapper.c - a program that maps files as its script says, and tells what it saw.
 *
 * Owns one call a line and one line of answer, with no address in it, so that the answers of
 * two runs can be compared.  Must not know where its files lie: names are relative to
 * argv[1], those with "@" to argv[2], which is the same directory seen from behind.
 *
 * Numbers are sums, "p" is a page: 2p+100.  The script comes on standard input, one line at a
 * time, or as argv[3] with ";" between lines, for the children it starts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define NAMES 16
#define WORDS 12

extern char **environ;

static struct { char *at; size_t len; } maps[NAMES];
static int files[NAMES];
static const char *top, *behind;
static bool scripted;
static char *script;		/* what is left of argv[3] */
static int output = 1;
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

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
	char line[8192];
	va_list args;
	int n;

	va_start(args, format);
	n = vsnprintf(line, sizeof(line) - 1, format, args);
	va_end(args);
	line[n++] = '\n';
	if (write(output, line, (size_t)n) != n)
		_exit(9);
}

static void result(long r)
{
	if (r < 0)
		say("%s", strerrorname_np(errno));
	else
		say("%ld", r);
}

static void done(long r)
{
	result(r < 0 ? r : 0);
}

static long number(const char *s)
{
	long sum = 0;
	char *end;

	for (; s && *s; s = *end == '+' ? end + 1 : end) {
		long n = strtol(s, &end, 0);

		if (*end == 'p') {
			n *= PAGE;
			end++;
		}
		if (end == s || (*end && *end != '+'))
			exit(8);
		sum += n;
	}
	return sum;
}

static int slot(const char *name)
{
	return name[0] >= 'A' && name[0] < 'A' + NAMES ? name[0] - 'A' : name[0] - 'a';
}

#define FD(w) files[slot(w)]
#define AT(w, off) (maps[slot(w)].at + number(off))

static const char *path(const char *name)
{
	static _Thread_local char room[2][4096];
	static _Thread_local int turn;
	char *to = room[turn ^= 1];

	snprintf(to, sizeof(room[0]), "%s/%s", *name == '@' ? behind : top, name + (*name == '@'));
	return to;
}

static int prot(const char *s)
{
	return (strchr(s, 'r') ? PROT_READ : 0) | (strchr(s, 'w') ? PROT_WRITE : 0) |
	       (strchr(s, 'x') ? PROT_EXEC : 0);
}

static int map_flags(const char *s)
{
	static const struct { char letter; int flag; } all[] = {
		{ 's', MAP_SHARED }, { 'p', MAP_PRIVATE }, { 'v', MAP_SHARED_VALIDATE }, { 'f', MAP_FIXED },
		{ 'n', MAP_FIXED_NOREPLACE }, { 'P', MAP_POPULATE }, { 'L', MAP_LOCKED }, { 'S', MAP_SYNC },
		{ 'N', MAP_NORESERVE }, { 'a', MAP_ANONYMOUS },
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
	       (strchr(s, 'a') ? O_APPEND : 0) | (strchr(s, 'P') ? O_PATH : 0);
}

static int advice(const char *s)
{
	static const struct { const char *name; int advice; } all[] = {
		{ "normal", MADV_NORMAL }, { "random", MADV_RANDOM }, { "sequential", MADV_SEQUENTIAL },
		{ "willneed", MADV_WILLNEED }, { "dontneed", MADV_DONTNEED }, { "free", MADV_FREE },
		{ "remove", MADV_REMOVE }, { "dontfork", MADV_DONTFORK }, { "dofork", MADV_DOFORK },
		{ "cold", MADV_COLD }, { "pageout", MADV_PAGEOUT }, { "hugepage", MADV_HUGEPAGE },
		{ "read", MADV_POPULATE_READ }, { "write", MADV_POPULATE_WRITE },
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		if (!strcmp(s, all[i].name))
			return all[i].advice;
	exit(8);
}

/* Runs of one byte: x*4096. */
static void say_bytes(const unsigned char *bytes, long n)
{
	char line[4096];
	size_t len = 0;

	line[0] = '\0';
	for (long i = 0, j; i < n && len < sizeof(line) - 32; i = j) {
		for (j = i; j < n && bytes[j] == bytes[i]; j++)
			;
		len += (size_t)sprintf(line + len, bytes[i] > 32 && bytes[i] < 127 ? "%c" : "\\%d", bytes[i]);
		if (j - i > 1)
			len += (size_t)sprintf(line + len, "*%ld ", j - i);
	}
	say("[%s]", line);
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

static char *next_line(void)
{
	static char *line;
	static size_t room;
	ssize_t n;

	if (scripted)
		return strsep(&script, ";");
	/* unbuffered: a forked child goes on where its parent is */
	if (!line)
		line = malloc(room = 8192);
	for (n = 0; n < (ssize_t)room - 1 && read(0, line + n, 1) == 1 && line[n] != '\n'; n++)
		;
	line[n] = '\0';
	return n || line[0] ? line : NULL;
}

static void child_ended(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid)
		exit(7);
	if (WIFSIGNALED(status))
		say("child: %s", sigabbrev_np(WTERMSIG(status)));
	else
		say("child: %d", WEXITSTATUS(status));
}

static void start_self(char how, char *lines)
{
	char self[] = "/proc/self/exe", *argv[] = { self, (char *)top, (char *)behind, lines, NULL };
	pid_t pid = 0;
	volatile int error = 0;

	if (how == 's')
		error = posix_spawn(&pid, self, NULL, NULL, argv, environ);
	else if (how == 'v')
		pid = vfork();
	if (!pid && how != 's') {
		execve(self, argv, environ);
		_exit(6);
	}
	if (error)
		exit(7);
	child_ended(pid);
}

static bool run(void);

static void *run_thread(void *unused)
{
	(void)unused;
	while (run())
		;
	return NULL;
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
	int flags = (strchr(w[5], 'm') ? MREMAP_MAYMOVE : 0) | (strchr(w[5], 'f') ? MREMAP_FIXED : 0) |
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

static bool files_and_names(char **w)
{
	const char *op = w[0];
	struct stat st;

	if (!strcmp(op, "open"))
		done(FD(w[1]) = open(path(w[2]), open_flags(w[3]) | O_CLOEXEC, 0644));
	else if (!strcmp(op, "close"))
		done(close(FD(w[1])));
	else if (!strcmp(op, "read"))  {
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

static bool memory(char **w)
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
	else if (!strcmp(op, "touch"))		/* no answer, no guard: it may die of it */
		(void)*(volatile char *)AT(w[1], w[2]);
	else
		return false;
	return true;
}

/* "fork" and "thread" do what follows, up to "end", in a child. */
static bool run(void)
{
	char *line = next_line(), *words[WORDS] = { NULL };
	pthread_t thread;
	pid_t pid;
	int n = 0;

	if (!line)
		return false;
	if (!strncmp(line, "spawn ", 6) || !strncmp(line, "vfork ", 6) || !strncmp(line, "exec ", 5)) {
		char *lines = strdup(strchr(line, ' ') + 1);

		for (char *c = lines; *c; c++)
			*c = *c == ',' ? ';' : *c;
		start_self(*line, lines);
		free(lines);
		return true;
	}
	for (char *word; n < WORDS - 1 && (word = strsep(&line, " "));)
		if (*word)
			words[n++] = word;
	if (!n || *words[0] == '#')
		return true;
	if (!strcmp(words[0], "end"))
		return false;
	if (!strcmp(words[0], "die"))
		kill(getpid(), SIGKILL);
	if (!strcmp(words[0], "fork")) {
		pid = fork();
		if (!pid) {
			while (run())
				;
			_exit(0);
		}
		child_ended(pid);
		if (scripted)	/* else the child has read them */
			while ((line = next_line()) && strcmp(line, "end"))
				;
	} else if (!strcmp(words[0], "thread")) {
		if (pthread_create(&thread, NULL, run_thread, NULL) || pthread_join(thread, NULL))
			exit(7);
		say("joined");
	} else if (!files_and_names(words) && !memory(words)) {
		say("%s: what is that?", words[0]);
		exit(8);
	}
	return true;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	if (argc < 3)
		return 8;
	top = argv[1];
	behind = argv[2];
	script = argc > 3 ? argv[3] : NULL;
	scripted = script;
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	while (run())
		;
	return 0;
}
