/* SPDX-License-Identifier: Apache-2.0
 *
 * campaign.c - a program of scripts/campaign: stamps its own pages of a file, looks at everybody's,
 * and keeps a log of what it stored and of what msync() and fsync() acknowledged.
 *
 * The log is a file that outlives the program and its host; tests/support/campaign_round.py reads it.
 * Owns the log's layout.  Must not know which events come.
 *
 * campaign FILE WILD LOG NUMBER SEED    page p of FILE is stored to by program p % OWNERS; anybody
 *                                       truncates WILD
 *
 * exit status: 0, 1 after a violation, 3 when a file could not be opened.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	PAGE = 4096,
	MIDDLE = 2048,
	PAGES = 60,
	OWNERS = 5, /* the last one writes behind the mount */
	MINE = PAGES / OWNERS,
	TAG_FILE = 0xc5,
	TAG_WILD = 0xc6,
};

struct log {
	_Atomic uint32_t stop, may_fail, violations, loads, stores, acks, errors, buses;
	struct {
		_Atomic uint32_t issued, stored, acked; /* versions */
	} pages[PAGES];
	char what[256]; /* of the last violation */
};

static struct log *record;
static const char *paths[2];
static int fds[2] = { -1, -1 }, number;
static char *maps[2];
static char block[PAGE] __attribute__((aligned(PAGE)));
static uint64_t seed;

static sigjmp_buf landing;
static volatile sig_atomic_t landable;

static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
	(void)info;
	(void)context;
	if (!landable)
		_exit(128 + signal_number);
	siglongjmp(landing, 1);
}

static uint32_t draw(uint32_t n)
{
	seed = seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(seed >> 33) % n;
}

static void violation(unsigned page, const char *what, uint64_t value)
{
	snprintf(record->what, sizeof(record->what),
		 "program %d: page %u: %s (%llx, stored %u, acked %u, issued %u)", number, page,
		 what, (unsigned long long)value, record->pages[page].stored,
		 record->pages[page].acked, record->pages[page].issued);
	atomic_fetch_add(&record->violations, 1);
}

/* A call or an access has failed. */
static void failed(unsigned page, const char *what)
{
	atomic_fetch_add(*what == 'S' ? &record->buses : &record->errors, 1);
	if (!atomic_load(&record->may_fail))
		violation(page, what, (uint64_t)errno);
	usleep(500);
}

static uint64_t stamp(unsigned tag, unsigned page, uint32_t version)
{
	return (uint64_t)tag << 56 | (uint64_t)(page + 1) << 40 | version;
}

/* A word that was read after `stored` was. */
static void check(unsigned page, uint32_t stored, uint64_t value)
{
	uint32_t version = (uint32_t)value;
	bool behind = page % OWNERS == OWNERS - 1;

	if (!value) {
		if (stored)
			violation(page, "zeros", value);
	} else if (value != stamp(TAG_FILE, page, version)) {
		violation(page, "foreign", value);
	} else if (version > atomic_load(&record->pages[page].issued)) {
		violation(page, "from the future", value);
	} else if (version < stored && !behind) {
		violation(page, "stale", value);
	}
}

static uint64_t *word(int which, unsigned page)
{
	return (uint64_t *)(maps[which] + (size_t)page * PAGE);
}

/* ------------------------------------------------------------------ accesses */

static void load(unsigned page)
{
	uint32_t stored = atomic_load(&record->pages[page].stored);
	uint64_t first, middle;

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		failed(page, "SIGBUS");
		return;
	}
	landable = 1;
	middle = *(volatile uint64_t *)(word(0, page) + MIDDLE / 8);
	first = *(volatile uint64_t *)word(0, page);
	landable = 0;
	atomic_fetch_add(&record->loads, 1);
	check(page, stored, first);
	check(page, stored, middle);
}

static void store(unsigned page)
{
	uint32_t version = atomic_fetch_add(&record->pages[page].issued, 1) + 1;

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		failed(page, "SIGBUS of a store");
		return;
	}
	landable = 1;
	*(volatile uint64_t *)word(0, page) = stamp(TAG_FILE, page, version);
	*(volatile uint64_t *)(word(0, page) + MIDDLE / 8) = stamp(TAG_FILE, page, version);
	landable = 0;
	atomic_store(&record->pages[page].stored, version);
	atomic_fetch_add(&record->stores, 1);
}

static void sync_one(unsigned page)
{
	uint32_t stored = atomic_load(&record->pages[page].stored);

	if (msync(word(0, page), PAGE, MS_SYNC)) {
		failed(page, "msync");
		return;
	}
	atomic_store(&record->pages[page].acked, stored);
	atomic_fetch_add(&record->acks, 1);
}

static void sync_all(void)
{
	uint32_t stored[MINE];

	for (unsigned i = 0; i < MINE; i++)
		stored[i] = atomic_load(&record->pages[i * OWNERS + number].stored);
	if (fsync(fds[0])) {
		failed(0, "fsync");
		return;
	}
	for (unsigned i = 0; i < MINE; i++)
		atomic_store(&record->pages[i * OWNERS + number].acked, stored[i]);
	atomic_fetch_add(&record->acks, 1);
}

/* Both O_DIRECT, now and then. */
static void read_by_call(unsigned page)
{
	uint32_t stored = atomic_load(&record->pages[page].stored);
	int direct = draw(3) ? -1 : open(paths[0], O_RDONLY | O_DIRECT | O_CLOEXEC);
	ssize_t n = pread(direct < 0 ? fds[0] : direct, block, PAGE, (off_t)page * PAGE);
	uint64_t words[2];

	if (direct >= 0)
		close(direct);
	if (n != PAGE) {
		failed(page, "pread");
		return;
	}
	memcpy(words, block, 8);
	memcpy(words + 1, block + MIDDLE, 8);
	check(page, stored, words[0]);
	check(page, stored, words[1]);
}

static void write_by_call(unsigned page)
{
	uint32_t version = atomic_fetch_add(&record->pages[page].issued, 1) + 1;
	uint64_t value = stamp(TAG_FILE, page, version);
	int direct = draw(3) ? -1 : open(paths[0], O_WRONLY | O_DIRECT | O_CLOEXEC);
	ssize_t n;

	memset(block, 0, PAGE);
	memcpy(block, &value, 8);
	memcpy(block + MIDDLE, &value, 8);
	n = pwrite(direct < 0 ? fds[0] : direct, block, PAGE, (off_t)page * PAGE);
	if (direct >= 0)
		close(direct);
	if (n != PAGE)
		failed(page, "pwrite");
	else
		atomic_store(&record->pages[page].stored, version);
}

/* A file that others truncate: nothing but another page's bytes is wrong. */
static void go_wild(unsigned page)
{
	volatile uint64_t *at = word(1, page);
	uint64_t value;

	if (sigsetjmp(landing, 1)) {
		landable = 0;
		return;
	}
	landable = 1;
	value = *at;
	if (draw(2))
		*at = stamp(TAG_WILD, page, 1);
	landable = 0;
	if (value && value != stamp(TAG_WILD, page, 1))
		violation(page, "foreign in the wild file", value);
	if (!draw(8) && ftruncate(fds[1], (off_t)draw(PAGES + 1) * PAGE) && !draw(4))
		(void)!ftruncate(fds[1], (off_t)PAGES * PAGE);
}

/* ------------------------------------------------------------------ mappings */

static bool map(int which)
{
	char *at;

	if (fds[which] < 0)
		fds[which] = open(paths[which], O_RDWR | O_CLOEXEC);
	if (fds[which] < 0)
		return false;
	at = mmap(maps[which], (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE,
		  MAP_SHARED | (maps[which] ? MAP_FIXED : 0), fds[which], 0);
	if (at == MAP_FAILED)
		return false;
	maps[which] = at;
	return true;
}

static void change_mapping(void)
{
	int which = (int)draw(2);
	char *at;

	if (draw(2)) {
		at = mremap(maps[which], (size_t)PAGES * PAGE, (size_t)PAGES * PAGE,
			    MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
		if (at != MAP_FAILED) {
			munmap(maps[which], (size_t)PAGES * PAGE);
			maps[which] = at;
		}
	} else if (!map(which)) { /* over itself */
		failed(0, "mmap");
		if (!which)
			_exit(0);
	}
}

static void act(void);

static void fork_once(void)
{
	int pid = fork();

	if (!pid) {
		for (int i = 0; i < 5; i++)
			act();
		_exit(0);
	}
	if (pid < 0)
		failed(0, "fork");
	else
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
}

static void act(void)
{
	unsigned what = draw(100), any = draw(PAGES), own = draw(MINE) * OWNERS + (unsigned)number;

	if (what < 40)
		load(any);
	else if (what < 65)
		store(own);
	else if (what < 75)
		sync_one(own);
	else if (what < 77)
		sync_all();
	else if (what < 82)
		read_by_call(any);
	else if (what < 86)
		write_by_call(own);
	else
		go_wild(any);
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	int fd = argc == 6 ? open(argv[3], O_RDWR | O_CLOEXEC) : -1;

	if (fd < 0)
		return 3;
	record = mmap(NULL, sizeof(*record), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	paths[0] = argv[1];
	paths[1] = argv[2];
	number = atoi(argv[4]);
	seed = strtoull(argv[5], NULL, 10) * 1000003 + (uint64_t)number;
	sigaction(SIGBUS, &action, NULL);
	if (record == MAP_FAILED || !map(0) || !map(1))
		return 3;
	while (!atomic_load(&record->stop)) {
		unsigned what = draw(400);

		if (!what)
			fork_once();
		else if (what < 5)
			change_mapping();
		else
			act();
		if (!draw(50))
			usleep(200);
	}
	return atomic_load(&record->violations) != 0;
}
