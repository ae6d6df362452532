/* SPDX-License-Identifier: Apache-2.0
 *
 * twin.c - random operations on files and their mappings, every outcome written down: run
 * with the same seed on two file systems it must write the same twice.  After fsx, but with
 * addresses of its own choice, so that they can be compared, too.
 *
 * twin DIRECTORY LOG SEED SEQUENCES STEPS
 *
 * What is left out, since file systems differ: stores past EOF in a file's last page.  What the
 * kernel refuses because of the userfaultfd: an mremap() of more than one mapping at a time
 * (Linux 6.17).  And what daxfault cannot do: to double (mremap() of a length of 0) a mapping of a
 * file that was opened read-only.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stress.h"

enum {
	NAMES = 3,
	FDS = 4,
	OBJECTS = 4096,			/* files that a sequence makes, at most */
	SLOTS = 3,
	SLOT_PAGES = 24,
	SHOWN = 8,			/* pages of a file that are mapped */
	MOST = 6 * PAGE_BYTES + 1000,	/* of a file's bytes */
};

#define SLOT(s) ((char *)0x100000000000 + (uint64_t)(s) * 0x40000000)

/* What an address shows: bounds stores, and nothing else depends on it. */
struct page {
	int object;			/* -1: nothing */
	int index;			/* in the file */
	bool shared;
	bool readonly;			/* the descriptor that it was mapped with */
	int area;			/* those of one value are one mapping for the kernel */
};

static struct page pages[SLOTS][SLOT_PAGES];
static int names[NAMES];		/* object, or -1 */
static struct {
	int fd, object;
} fds[FDS];
static off_t sizes[OBJECTS];
static int nobjects, nareas, sink;
static FILE *out;
static uint64_t seed;
static sigjmp_buf landing;
static volatile sig_atomic_t landable;
static volatile uint64_t fault_address;
static volatile int fault_signal, fault_code;

static unsigned pick(unsigned n)
{
	return next_random(&seed) % n;
}

static uint64_t hash(const void *bytes, size_t n)
{
	uint64_t h = 1469598103934665603u;

	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
	return h;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
	(void)context;
	if (!landable)
		_exit(99);
	fault_signal = number;
	fault_address = (uint64_t)info->si_addr;
	fault_code = info->si_code;
	siglongjmp(landing, 1);
}

static const char *name_of(int i)
{
	static const char *const all[NAMES] = { "a", "b", "c" };

	return all[i];
}

#define LOG(...) fprintf(out, __VA_ARGS__)

static void result(const char *what, long r)
{
	LOG("%s %ld %s\n", what, r < 0 ? -1 : r, r < 0 ? strerrorname_np(errno) : "");
}

static void know_size(int fd, int object)
{
	struct stat st;

	if (fd >= 0 && object >= 0 && !fstat(fd, &st))
		sizes[object] = st.st_size;
}

/* ------------------------------------------------------------------ accesses */

/* A load or store, as the program's own instruction; `copy` is what comes or goes. */
static void access_memory(char *at, char *copy, size_t n, bool store)
{
	if (sigsetjmp(landing, 1)) {
		landable = 0;
		LOG("%s %p: signal %d code %d at %lx\n", store ? "store" : "load", at, fault_signal,
		    fault_code, (unsigned long)fault_address);
		return;
	}
	landable = 1;
	for (size_t i = 0; i < n; i++) {
		volatile char *byte = at + i;

		if (store)
			*byte = copy[i];
		else
			copy[i] = *byte;
	}
	landable = 0;
	LOG("%s %p: %zu bytes %lx\n", store ? "store" : "load", at, n, (unsigned long)hash(copy, n));
}

static char *somewhere(unsigned *slot, unsigned *page)
{
	*slot = pick(SLOTS);
	*page = pick(SLOT_PAGES);
	for (int tries = 0; tries < 8 && pages[*slot][*page].object < 0; tries++)
		*page = pick(SLOT_PAGES);
	return SLOT(*slot) + *page * PAGE_BYTES;
}

/* Bytes that may be stored there from `within` the page on, without leaving the file. */
static size_t room(unsigned slot, unsigned page, unsigned within)
{
	const struct page *p = &pages[slot][page];
	off_t left;

	if (p->object < 0 || !p->shared)
		return PAGE_BYTES - within;
	left = sizes[p->object] - ((off_t)p->index * PAGE_BYTES + within);
	/* wholly past EOF: that is a SIGBUS, and may be tried */
	if (p->index >= (sizes[p->object] + PAGE_BYTES - 1) / PAGE_BYTES || left > PAGE_BYTES - within)
		return PAGE_BYTES - within;
	return left > 0 ? (size_t)left : 0;
}

static void load_or_store(void)
{
	char copy[PAGE_BYTES];
	unsigned slot, page, within = pick(PAGE_BYTES);
	char *at = somewhere(&slot, &page) + within;
	size_t n = 1 + pick(PAGE_BYTES - within);
	bool store = pick(2), call = pick(4) == 0;
	ssize_t r;

	if (store && n > room(slot, page, within))
		n = room(slot, page, within);
	if (!n)
		return;
	memset(copy, (int)(1 + pick(255)), n);
	if (!call) {
		access_memory(at, copy, n, store);
	} else if (store) {
		if (pwrite(sink, copy, n, 0) != (ssize_t)n)
			exit(3);
		r = pread(sink, at, n, 0);
		LOG("%p: ", at);
		result("store by the kernel", r);
	} else {
		n += pick(2) * PAGE_BYTES;
		r = pwrite(sink, at, n, 0);
		LOG("%p: ", at);
		result("load by the kernel", r);
	}
}

static void look_at_all(void)
{
	for (unsigned s = 0; s < SLOTS; s++)
		for (unsigned p = 0; p < SLOT_PAGES; p++) {
			char copy[PAGE_BYTES];

			access_memory(SLOT(s) + p * PAGE_BYTES, copy, sizeof(copy), false);
		}
}

static void fork_once(void)
{
	uint64_t after = seed + 1;
	int status = 0;
	pid_t pid;

	fflush(out);
	pid = fork();
	if (!pid) {
		LOG("child\n");
		for (int i = 0; i < 6; i++)
			load_or_store();
		fflush(out);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		exit(3);
	LOG("child's end %d\n", status);
	seed = after;
}

/* ------------------------------------------------------------------ files */

static void file_call(void)
{
	static char bytes[2 * PAGE_BYTES];
	unsigned i = pick(FDS), what = pick(8);
	size_t n = 1 + pick(sizeof(bytes) - 1);
	off_t at = pick(MOST - sizeof(bytes));
	int fd = fds[i].fd;

	if (pick(2))
		at &= ~(off_t)(PAGE_BYTES - 1);
	memset(bytes, (int)(1 + pick(255)), n);
	switch (what) {
	case 0:
	case 1:
		know_size(fd, fds[i].object);
		if (fd >= 0 && fcntl(fd, F_GETFL) & O_APPEND && sizes[fds[i].object] > MOST)
			break;
		result("pwrite", pwrite(fd, bytes, n, at));
		break;
	case 2:
		know_size(fd, fds[i].object);
		if (lseek(fd, 0, SEEK_END) + (off_t)n > MOST)
			break;
		result("append", write(fd, bytes, n));
		break;
	case 3:
		result("ftruncate", ftruncate(fd, pick(4) ? at : (off_t)pick(2) * MOST));
		break;
	case 4:
		i = pick(NAMES);
		result("truncate", truncate(name_of((int)i), at));
		for (unsigned f = 0; f < FDS; f++)
			know_size(fds[f].fd, fds[f].object);
		if (names[i] >= 0) {
			struct stat st;

			if (!stat(name_of((int)i), &st))
				sizes[names[i]] = st.st_size;
		}
		return;
	case 5:
		result("fsync", fsync(fd));
		break;
	case 6:
		result("fdatasync", fdatasync(fd));
		break;
	default: {
		ssize_t r = pread(fd, bytes, n, at);

		LOG("%lx ", r > 0 ? (unsigned long)hash(bytes, (size_t)r) : 0);
		result("pread", r);
	}
	}
	know_size(fd, fds[i].object);
}

static void open_again(unsigned i)
{
	static const int ways[] = { O_RDWR, O_RDWR, O_RDWR, O_RDONLY, O_RDWR | O_APPEND, O_WRONLY };
	int flags = ways[pick(sizeof(ways) / sizeof(*ways))], name = (int)pick(NAMES);

	if (pick(2))
		flags |= O_CREAT;
	if (pick(8) == 0)
		flags |= O_TRUNC;
	if (fds[i].fd >= 0)
		result("close", close(fds[i].fd));
	fds[i].fd = open(name_of(name), flags | O_CLOEXEC, 0600);
	result("open", fds[i].fd < 0 ? -1 : 0);
	fds[i].object = -1;
	if (fds[i].fd < 0)
		return;
	if (names[name] < 0)
		names[name] = nobjects++;
	fds[i].object = names[name];
	know_size(fds[i].fd, fds[i].object);
}

static void name_call(void)
{
	int a = (int)pick(NAMES), b = (int)pick(NAMES);
	long r;

	if (pick(3)) {
		open_again(pick(FDS));
	} else if (pick(2)) {
		r = unlink(name_of(a));
		result("unlink", r);
		if (!r)
			names[a] = -1;
	} else {
		r = rename(name_of(a), name_of(b));
		result("rename", r);
		if (!r && a != b) {
			names[b] = names[a];
			names[a] = -1;
		}
	}
}

/* ------------------------------------------------------------------ mappings */

static void shows(char *at, unsigned n, struct page first)
{
	nareas++;
	for (unsigned i = 0; i < n; i++)
		for (unsigned s = 0; s < SLOTS; s++) {
			unsigned long p = (unsigned long)(at + i * PAGE_BYTES - SLOT(s)) / PAGE_BYTES;

			if (p < SLOT_PAGES)
				pages[s][p] = (struct page){
					first.object, first.index + (int)i, first.shared,
					first.readonly, nareas,
				};
		}
}

static struct page *page_at(char *at)
{
	for (unsigned s = 0; s < SLOTS; s++) {
		unsigned long p = (unsigned long)(at - SLOT(s)) / PAGE_BYTES;

		if (p < SLOT_PAGES)
			return &pages[s][p];
	}
	return NULL;
}

static void map(void)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE,
				     PROT_WRITE, PROT_NONE };
	static const int types[] = { MAP_SHARED, MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE };
	static const int extras[] = { MAP_FIXED, MAP_FIXED, MAP_FIXED_NOREPLACE, MAP_FIXED | MAP_POPULATE,
				      MAP_FIXED | MAP_LOCKED, MAP_FIXED | MAP_NORESERVE };
	unsigned f = pick(FDS), n = 1 + pick(6), slot = pick(SLOTS), page = pick(SLOT_PAGES - 6);
	int prot = prots[pick(5)], type = types[pick(4)], extra = extras[pick(6)];
	int first = (int)pick(SHOWN - 4);
	size_t len = n * PAGE_BYTES - (pick(4) ? 0 : pick(PAGE_BYTES));
	char *want = SLOT(slot) + page * PAGE_BYTES;
	char *got;

	if (type == MAP_PRIVATE)	/* when it copies what nobody has stored to is anybody's choice */
		extra &= ~MAP_LOCKED;
	got = mmap(want, len, prot, type | extra, fds[f].fd, (off_t)first * PAGE_BYTES);
	LOG("fd %u prot %d flags %x pages %d+%u -> %p ", f, prot, type | extra, first, n, got);
	result("mmap", got == MAP_FAILED ? -1 : 0);
	if (got == MAP_FAILED)
		return;
	if (got != want)		/* the kernel is older than MAP_FIXED_NOREPLACE */
		munmap(got, len);
	else
		shows(got, n, (struct page){
			.object = fds[f].object,
			.index = first,
			.shared = type != MAP_PRIVATE,
			.readonly = (fcntl(fds[f].fd, F_GETFL) & O_ACCMODE) == O_RDONLY,
		});
}

/* [at, at + n pages) may have become mappings of their own. */
static void part(char *at, unsigned n)
{
	int before = -1;

	for (unsigned i = 0; i < n; i++) {
		struct page *p = page_at(at + i * PAGE_BYTES);

		if (!p)
			break;
		if (p->area != before)
			nareas++;
		before = p->area;
		p->area = nareas;
	}
}

static void remap(void)
{
	unsigned slot, page, n = 1 + pick(4), more = 1 + pick(6), way = pick(6);
	char *from = somewhere(&slot, &page), *to, *got;
	struct page first = pages[slot][page];
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	for (unsigned i = 1; i < n; i++)
		if (page + i >= SLOT_PAGES || pages[slot][page + i].area != first.area)
			n = i;
	if (page + more > SLOT_PAGES)
		more = SLOT_PAGES - page;
	to = SLOT(pick(SLOTS)) + pick(SLOT_PAGES - 6) * PAGE_BYTES;
	if (way < 2) {			/* where it is */
		to = from;
		flags = 0;
	} else if (way == 4) {		/* twice */
		if (first.readonly)
			return;
		n = 0;
	} else if (way == 5) {
		flags |= MREMAP_DONTUNMAP;
		more = n;
	}
	got = mremap(from, n * PAGE_BYTES, more * PAGE_BYTES, flags, to);
	LOG("way %u %p %u -> %u pages %p -> %p ", way, from, n, more, to, got);
	result("mremap", got == MAP_FAILED ? -1 : 0);
	if (got == MAP_FAILED)
		return;
	if (way != 5)
		shows(from, n, (struct page){ .object = -1 });
	else
		part(from, n);
	shows(got, more, first);
}

static void change_map(void)
{
	static const int prots[] = { PROT_READ, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_NONE };
	static const int syncs[] = { MS_SYNC, MS_ASYNC, MS_SYNC | MS_INVALIDATE };
	unsigned slot, page, n = 1 + pick(5);
	char *at = somewhere(&slot, &page);

	LOG("%p %u pages ", at, n);
	switch (pick(6)) {
	case 0:
		result("munmap", munmap(at, n * PAGE_BYTES));
		shows(at, n, (struct page){ .object = -1 });
		break;
	case 1:
	case 2:
		result("mprotect", mprotect(at, n * PAGE_BYTES, prots[pick(4)]));
		part(at, n);
		break;
	case 3:
		result("madvise", madvise(at, n * PAGE_BYTES, MADV_DONTNEED));
		break;
	default:
		result("msync", msync(at, n * PAGE_BYTES, syncs[pick(3)]));
	}
}

/* ------------------------------------------------------------------ sequences */

static void look_at_file(unsigned i)
{
	static char bytes[2 * MOST];
	struct stat st = { .st_size = -1 };
	ssize_t n = pread(fds[i].fd, bytes, sizeof(bytes), 0);

	fstat(fds[i].fd, &st);
	LOG("fd %u: size %ld, %zd bytes %lx\n", i, (long)st.st_size, n,
	    n > 0 ? (unsigned long)hash(bytes, (size_t)n) : 0);
}

static void step(void)
{
	unsigned what = pick(100);

	if (what < 20)
		file_call();
	else if (what < 30)
		name_call();
	else if (what < 45)
		map();
	else if (what < 53)
		remap();
	else if (what < 65)
		change_map();
	else if (what < 67)
		fork_once();
	else
		load_or_store();
	look_at_file(pick(FDS));
}

static void sequence(uint64_t number, unsigned steps)
{
	seed = number * 1000003 + 7;
	nobjects = 0;
	for (unsigned s = 0; s < SLOTS; s++)
		for (unsigned p = 0; p < SLOT_PAGES; p++)
			pages[s][p] = (struct page){ .object = -1 };
	for (int i = 0; i < NAMES; i++)
		names[i] = -1;
	LOG("== sequence %lu\n", (unsigned long)number);
	for (unsigned i = 0; i < FDS; i++)
		fds[i].fd = -1;
	for (unsigned i = 0; i < FDS; i++)
		open_again(i);
	for (unsigned i = 0; i < steps; i++) {
		LOG("step %u: ", i);
		step();
	}
	look_at_all();
	for (unsigned i = 0; i < FDS; i++)
		look_at_file(i);
	for (unsigned s = 0; s < SLOTS; s++)
		munmap(SLOT(s), SLOT_PAGES * PAGE_BYTES);
	for (unsigned i = 0; i < FDS; i++)
		if (fds[i].fd >= 0)
			close(fds[i].fd);
	for (int i = 0; i < NAMES; i++)
		unlink(name_of(i));
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };
	uint64_t first;

	if (argc != 6)
		return 2;
	out = fopen(argv[2], "we");
	sink = memfd_create("sink", MFD_CLOEXEC);
	if (!out || sink < 0 || chdir(argv[1]))
		return 2;
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	first = strtoull(argv[3], NULL, 10);
	for (uint64_t i = 0; i < strtoull(argv[4], NULL, 10); i++)
		sequence(first + i, (unsigned)atoi(argv[5]));
	return fclose(out) ? 2 : 0;
}
