/* SPDX-License-Identifier: Apache-2.0
 *
 * stress_guest.c - a guest of the stress: threads that read, store, drop, move,
 * unmap and fork, and check every word they see.  Started by stress.c, never
 * built with a sanitizer, whose own mappings it would disturb.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/engine.h"
#include "base/uffd.h"
#include "stress.h"
#include "stress_vcpu.h"

#define LENGTH ((size_t)PAGES * PAGE_BYTES)

struct window {
	char *at, *spare; /* both reserved; `at` shows the file */
};

static struct shared *shared;
static int uffd, guest_number, doorbell = -1;
static bool tracks, program;	/* program: an ordinary one, without vCPUs */
static pthread_barrier_t begun; /* no stack may land where a window has just been */
static pthread_mutex_t socket_lock = PTHREAD_MUTEX_INITIALIZER;

static void on_sigbus(int signal, siginfo_t *event, void *context)
{
	(void)event;
	(void)context;
	if (!access_now.landable)
		_exit(128 + signal);
	siglongjmp(access_now.landing, 1);
}

static void violation(unsigned file, unsigned page, const char *what, uint64_t value)
{
	atomic_fetch_add(&shared->violations, 1);
	fprintf(stderr, "guest %d: file %u page %u: %s (%llx, cut %u, issued %u)\n", guest_number,
		file, page, what, (unsigned long long)value,
		atomic_load(&shared->pages[file][page].cut),
		atomic_load(&shared->pages[file][page].issued));
}

static int ask(struct request request)
{
	int error = EIO;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = { 0 };
	struct iovec iov = { &error, sizeof(error) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};

	pthread_mutex_lock(&socket_lock);
	if (write(FD_SOCKET, &request, sizeof(request)) != sizeof(request) ||
	    recvmsg(FD_SOCKET, &msg, MSG_CMSG_CLOEXEC) != sizeof(error))
		error = EIO;
	pthread_mutex_unlock(&socket_lock);
	if (!error && msg.msg_controllen)
		memcpy(&doorbell, CMSG_DATA(&control.header), sizeof(doorbell));
	return error;
}

static char *reserve(char *at)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0);
	char *got = mmap(at, LENGTH, PROT_NONE, flags, -1, 0);

	if (got == MAP_FAILED) {
		perror("mmap");
		exit(2);
	}
	return got;
}

/* Nobody touches it before the host has registered it. */
static void show_as_program(struct window *w, unsigned file)
{
	int prot = PROT_READ | (file != FILE_BEHIND ? PROT_WRITE : 0), error;
	char *at = mmap(w->at, LENGTH, PROT_NONE,
			(file != FILE_BEHIND ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED,
			FD_CACHE + (int)file, 0);

	error = at == w->at
			? ask((struct request){ .start = (uintptr_t)at, .file = file, .uffd = -1 })
			: errno;
	if (error || mprotect(at, LENGTH, prot)) {
		fprintf(stderr, "program %d: mapping file %u: %s\n", guest_number, file,
			strerror(error ? error : errno));
		exit(2);
	}
}

/* Shorter, and as long again where it is, which no event tells of. */
static void grow_in_place(struct window *w, unsigned file, uint64_t *seed)
{
	size_t less = (size_t)(1 + next_random(seed) % (PAGES - 1)) * PAGE_BYTES;

	if (mremap(w->at, LENGTH, less, 0) == MAP_FAILED) {
		perror("mremap");
		exit(2);
	}
	if (mremap(w->at, less, LENGTH, 0) == MAP_FAILED) { /* somebody else took the place */
		munmap(w->at, less);
		w->at = reserve(NULL);
		show_as_program(w, file);
	}
	atomic_fetch_add(&shared->moves, 1);
}

static void show(struct window *w, unsigned file)
{
	bool writable = file != FILE_BEHIND;
	struct uffdio_register reg = {
		.range = { (uintptr_t)w->at, LENGTH },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR |
			(writable && tracks ? UFFDIO_REGISTER_MODE_WP : 0),
	};
	int error;

	if (program) {
		show_as_program(w, file);
		return;
	}
	error = ask((struct request){ .start = (uintptr_t)w->at, .file = file, .uffd = -1 });
	if (error ||
	    mmap(w->at, LENGTH, PROT_READ | (writable ? PROT_WRITE : 0),
		 (writable ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED, FD_CACHE + (int)file, 0) != w->at ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg)) {
		fprintf(stderr, "guest %d: mapping file %u: %s\n", guest_number, file,
			strerror(error ? error : errno));
		exit(2);
	}
}

static void look(struct window *w, unsigned file, unsigned page)
{
	struct page_model *m = &shared->pages[file][page];
	struct page_look before = page_look(m);
	volatile uint64_t *first = (volatile uint64_t *)(w->at + (size_t)page * PAGE_BYTES);
	uint64_t values[3];
	const char *wrong;

	if (sigsetjmp(access_now.landing, 1)) {
		access_now.landable = 0;
		atomic_fetch_add(&shared->buses, 1);
		if (page_quiet(m, before) && file != FILE_WILD)
			violation(file, page, "SIGBUS", 0);
		return;
	}
	access_now.page = (uintptr_t)first;
	access_now.landable = 1;
	values[0] = first[0];
	values[1] = first[MIDDLE / 8];
	values[2] = first[PAGE_BYTES / 8 - 1];
	access_now.landable = 0;
	atomic_fetch_add(&shared->reads, 1);
	for (int i = 0; i < 2; i++) {
		wrong = page_check(shared, file, page, before, values[i]);
		if (wrong)
			violation(file, page, wrong, values[i]);
	}
	if (values[2])
		violation(file, page, "something where nobody stored", values[2]);
}

static void store(struct window *w, unsigned file, unsigned page)
{
	struct page_model *m = &shared->pages[file][page];
	uint32_t version = atomic_fetch_add(&m->issued, 1) + 1;
	struct page_look before = page_look(m);
	volatile uint64_t *first = (volatile uint64_t *)(w->at + (size_t)page * PAGE_BYTES);

	if (sigsetjmp(access_now.landing, 1)) {
		access_now.landable = 0;
		atomic_fetch_add(&shared->buses, 1);
		if (page_quiet(m, before) && file != FILE_WILD)
			violation(file, page, "SIGBUS of a store", 0);
		return;
	}
	access_now.page = (uintptr_t)first;
	access_now.landable = 1;
	first[0] = page_value(file, page, version);
	first[MIDDLE / 8] = page_value(file, page, version);
	access_now.landable = 0;
	atomic_fetch_add(&shared->stores, 1);
	page_stored(m, before, version);
}

static void touch(void *all, unsigned writer, uint64_t *seed)
{
	struct window *windows = all;
	unsigned file = next_random(seed) % FILES, page = next_random(seed) % PAGES;

	if (next_random(seed) % 3 || file == FILE_BEHIND) {
		look(&windows[file], file, page);
		return;
	}
	page = page / WRITERS * WRITERS + writer;
	if (page < PAGES)
		store(&windows[file], file, page);
}

static void read_any(void *all, unsigned writer, uint64_t *seed)
{
	unsigned file = next_random(seed) % FILES;
	struct window *windows = all;

	(void)writer;
	look(&windows[file], file, next_random(seed) % PAGES);
}

static void *body(void *arg)
{
	unsigned writer = (unsigned)(uintptr_t)arg;
	uint64_t seed = shared->seed * 1000003 + writer * 7919 + 17;
	struct window windows[FILES];

	for (unsigned f = 0; f < FILES; f++) {
		windows[f].at = reserve(NULL);
		windows[f].spare = reserve(NULL);
		show(&windows[f], f);
	}
	pthread_barrier_wait(&begun);
	if (!program)
		vcpu_enable(writer % THREADS);
	while (!atomic_load(&shared->stop)) {
		unsigned f = next_random(&seed) % FILES, what = next_random(&seed) % 1000;
		struct window *w = &windows[f];

		atomic_fetch_add(&shared->progress[writer], 1);
		if (what == 999 && !program) {
			vcpu_toggle(writer % THREADS);
		} else if (what >= 990 && program) {
			grow_in_place(w, f, &seed);
		} else if (what < 5) {
			fork_once(shared, windows, writer, &seed, touch, read_any);
		} else if (what < 15) {
			char *old = w->at;

			if (mremap(old, LENGTH, LENGTH, MREMAP_MAYMOVE | MREMAP_FIXED, w->spare) ==
			    MAP_FAILED) {
				perror("mremap");
				exit(2);
			}
			w->at = w->spare;
			w->spare = reserve(old);
			atomic_fetch_add(&shared->moves, 1);
		} else if (what < 20) {
			size_t part = (size_t)(next_random(&seed) % PAGES) * PAGE_BYTES;

			munmap(w->at + part, LENGTH - part); /* a part first, then all */
			reserve(w->at);
			show(w, f);
			atomic_fetch_add(&shared->unmaps, 1);
		} else if (what < 40) {
			size_t part = (size_t)(next_random(&seed) % PAGES) * PAGE_BYTES;

			madvise(w->at + part, LENGTH - part, MADV_DONTNEED);
			atomic_fetch_add(&shared->drops, 1);
		} else if (what < 50) {
			fallocate(FD_CACHE + FILE_WILD, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				  (off_t)(next_random(&seed) % PAGES) * PAGE_BYTES, PAGE_BYTES * 3);
			atomic_fetch_add(&shared->punches, 1);
		} else {
			touch(windows, writer, &seed);
		}
	}
	if (!program)
		vcpu_leave(writer % THREADS);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	uint64_t features = argc > 2 ? strtoull(argv[2], NULL, 16) : 0;
	pthread_t threads[THREADS];

	if (argc < 3)
		return 2;
	guest_number = atoi(argv[1]);
	program = argc > 3;
	tracks = features & UFFD_FEATURE_WP_UNPOPULATED;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, FD_SHARED, 0);
	sigaction(SIGBUS, &action, NULL);
	/* One is made blocking, as its children's then are, whatever the host sets. */
	uffd = guest_number == 1 ? (int)syscall(SYS_userfaultfd, O_CLOEXEC) : df_uffd_open(0);
	if (shared == MAP_FAILED || uffd < 0 || df_uffd_api(uffd, features))
		return 2;
	if (ask((struct request){
		    .uffd = uffd, .area = program ? -1 : vcpu_area(), .features = features }))
		return 2;
	if (!program)
		vcpu_host(doorbell, shared);
	pthread_barrier_init(&begun, NULL, THREADS);
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, body,
			       (void *)(uintptr_t)(guest_number * THREADS + i));
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	return 0;
}
