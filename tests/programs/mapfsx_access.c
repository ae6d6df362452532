/* SPDX-License-Identifier: Apache-2.0
 *
 * mapfsx_access.c - loads and stores, by the program's own instructions and by the kernel: bytes, or
 * the signal and where it was.  Must not make a mapping.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mapfsx.h"

static int sink;
static sigjmp_buf landing;
static volatile sig_atomic_t landable;
static volatile uint64_t fault_address;
static volatile int fault_signal, fault_code;

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

bool access_setup(void)
{
	struct sigaction action = { .sa_sigaction = on_fault, .sa_flags = SA_SIGINFO };

	sink = memfd_create("sink", MFD_CLOEXEC);
	return sink >= 0 && !sigaction(SIGBUS, &action, NULL) && !sigaction(SIGSEGV, &action, NULL);
}

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

char *somewhere(unsigned *slot, unsigned *page)
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

void load_or_store(void)
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

void look_at_all(void)
{
	for (unsigned s = 0; s < SLOTS; s++)
		for (unsigned p = 0; p < SLOT_PAGES; p++) {
			char copy[PAGE_BYTES];

			access_memory(SLOT(s) + p * PAGE_BYTES, copy, sizeof(copy), false);
		}
}

void fork_and_access(void)
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
