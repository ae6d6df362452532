/* SPDX-License-Identifier: Apache-2.0
 *
 * stress.c - the engine under everything at once, without Python: guests that
 * fault, move, unmap and fork (stress_guest.c) while files are written, truncated,
 * written back and changed behind the host.  Every word read is checked against a
 * model (stress.h), nothing may stand still, and at the end nothing may be left.
 *
 * stress GUEST_PROGRAM DIRECTORY SECONDS SEED [programs]
 *     programs: the guests are ordinary programs, with sized page caches that are too small
 * exit status: 0, 1 after a violation, 77 when the kernel lacks something
 */
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "keeper/known.h"
#include "cache/cache.h"
#include "engine/engine.h"
#include "keeper/keep.h"
#include "base/uffd.h"
#include "stress_host.h"

#define WANTED \
	(UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS | UFFD_FEATURE_MISSING_SHMEM | \
	 UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP | \
	 UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP)
#define TRACKING \
	(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_WP_UNPOPULATED)
#define STUCK_SECONDS 20

#define CACHE_BYTES (40 * PAGE_BYTES) /* of all files together, with `programs` */

struct shared *shared;
struct df_file *files[FILES];
bool programs;
static struct df_engine *engine;
static struct guest {
	int pid, sock;
	struct df_guest *handle;
	pthread_t thread;
} guests[GUESTS];

/* ----------------------------------------------------------------- the guests */

/* What was mapped; now and then whatever there is, as for a forked child. */
static int adopt(struct guest *guest, uint64_t start)
{
	bool all = start / PAGE_BYTES % 4 == 0;
	uint64_t ids[FILES];
	int found = df_guest_adopt(guest->handle, guest->pid, all ? 0 : start,
				   all ? (uint64_t)1 << 47 : (uint64_t)PAGES * PAGE_BYTES);

	if (found < 0)
		return -found;
	return df_guest_files(guest->handle, ids, FILES) && found ? 0 : ENOENT;
}

static int answer_request(struct guest *guest, const struct request *request, uint64_t features)
{
	struct df_guest_options options = {
		.features = features,
		.pid = guest->pid,
		.abi = DF_ABI_REPORT,
		.cpuid = DF_CPUID_ASYNC_PF | DF_CPUID_ASYNC_PF_INT | DF_CPUID_ERROR,
	};
	int pidfd, uffd, area;

	options.flags = programs	      ? DF_GUEST_PROGRAM
			: guest == &guests[0] ? DF_GUEST_TELL_FAILURES
					      : 0;
	if (request->uffd < 0 && programs)
		return adopt(guest, request->start);
	if (request->uffd < 0)
		return -df_guest_map(guest->handle, request->start, (uint64_t)PAGES * PAGE_BYTES,
				     files[request->file], 0, request->file != FILE_BEHIND);
	pidfd = (int)syscall(SYS_pidfd_open, guest->pid, 0);
	uffd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, request->uffd, 0);
	area = uffd < 0 || programs ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, request->area, 0);
	close(pidfd);
	if (uffd < 0 || (area < 0 && !programs))
		return errno;
	return -df_guest_new(engine, uffd, area, &options, &guest->handle);
}

/* The answer to the hello carries the doorbell. */
static bool answer(struct guest *guest, const struct request *request)
{
	int error = answer_request(guest, request, request->features);
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control = { .header = { CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS } };
	struct iovec iov = { &error, sizeof(error) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	int bell = -1;
	ssize_t sent;

	if (!error && request->uffd >= 0 && !programs) {
		bell = df_guest_doorbell(guest->handle);
		memcpy(CMSG_DATA(&control.header), &bell, sizeof(bell));
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
	}
	sent = sendmsg(guest->sock, &msg, MSG_NOSIGNAL);
	if (bell >= 0)
		close(bell);
	return sent == sizeof(error);
}

static void *guest_body(void *arg)
{
	struct guest *guest = arg;
	struct request request;

	while (read(guest->sock, &request, sizeof(request)) == sizeof(request))
		if (!answer(guest, &request))
			break;
	return NULL;
}

static void start_guest(unsigned i, const char *program, uint64_t features)
{
	char number[16], hex[32];
	char *argv[] = { "stress_guest", number, hex, programs ? "program" : NULL, NULL },
	     *env[] = { NULL };
	posix_spawn_file_actions_t actions;
	int caches[FILES], pair[2], shared_fd = open("/proc/self/fd/10", O_RDWR | O_CLOEXEC);

	snprintf(number, sizeof(number), "%u", i);
	snprintf(hex, sizeof(hex), "%llx", (unsigned long long)features);
	if (shared_fd < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
		exit(2);
	posix_spawn_file_actions_init(&actions);
	posix_spawn_file_actions_adddup2(&actions, shared_fd, FD_SHARED);
	posix_spawn_file_actions_adddup2(&actions, pair[1], FD_SOCKET);
	for (int f = 0; f < FILES; f++) {
		caches[f] = df_file_cache_fd(files[f], (f != FILE_BEHIND ? DF_CACHE_WRITABLE : 0) |
							       (programs ? DF_CACHE_SIZED : 0));
		posix_spawn_file_actions_adddup2(&actions, caches[f], FD_CACHE + f);
	}
	errno = posix_spawn(&guests[i].pid, program, &actions, NULL, argv, env);
	if (errno) {
		perror(program);
		exit(2);
	}
	posix_spawn_file_actions_destroy(&actions);
	close(pair[1]);
	close(shared_fd);
	for (int f = 0; f < FILES; f++)
		close(caches[f]);
	guests[i].sock = pair[0];
	pthread_create(&guests[i].thread, NULL, guest_body, &guests[i]);
}

static void *answers_body(void *arg)
{
	struct pollfd fd = { .fd = df_engine_failures_fd(engine), .events = POLLIN };
	struct df_failure failures[16];
	uint64_t seed = shared->seed;
	int n;

	while (!*(_Atomic bool *)arg) {
		poll(&fd, 1, 20);
		while ((n = df_engine_failures(engine, failures, 16)) > 0)
			for (int i = 0; i < n; i++) {
				uint32_t r = next_random(&seed) % 16;

				if (failures[i].reason != DF_REASON_EOF || programs)
					violation(0, 0, "a failure that is no EOF",
						  failures[i].reason);
				if (r) /* one in 16 is left to its deadline */
					df_engine_answer(engine, failures[i].id,
							 r < 3	  ? DF_ANSWER_WAKE
							 : r < 10 ? DF_ANSWER_REPORT
								  : DF_ANSWER_POISON,
							 DF_ANSWER_POISON);
			}
	}
	return NULL;
}

/* Who has to let files go, and a keeper that keeps nothing. */
static void *unmapped_body(void *arg)
{
	struct pollfd fd = { .fd = df_engine_unmapped_fd(engine), .events = POLLIN };
	struct df_unmapped unmapped[16];
	int n;

	while (!*(_Atomic bool *)arg) {
		poll(&fd, 1, 20);
		while ((n = df_engine_unmapped(engine, unmapped, 16)) > 0)
			atomic_fetch_add(&shared->let_go, n);
	}
	return NULL;
}

static void *keeper_body(void *arg)
{
	int sock = (int)(intptr_t)arg, fd;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr header;
	} control;
	struct keep message;
	struct iovec iov = { &message, sizeof(message) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control };

	for (;;) {
		msg.msg_controllen = sizeof(control);
		if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) != sizeof(message))
			break;
		if (!CMSG_FIRSTHDR(&msg))
			continue;
		memcpy(&fd, CMSG_DATA(&control.header), sizeof(fd));
		close(fd);
		atomic_fetch_add(&shared->kept, 1);
	}
	close(sock);
	return NULL;
}

/* ------------------------------------------------------------------- the run */

static int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Wait until `until`, or until nobody is left when it is 0; somebody who stands
 * still for STUCK_SECONDS is a hang. */
static void watch(double until, bool (*over)(void))
{
	uint64_t last[WRITERS] = { 0 };
	double since[WRITERS], t = now();

	for (int i = 0; i < WRITERS; i++)
		since[i] = t;
	for (; over ? !over() : t < until; t = now()) {
		for (int i = 0; i < WRITERS; i++) {
			uint64_t progress = atomic_load(&shared->progress[i]);

			if (progress != last[i])
				since[i] = t;
			last[i] = progress;
			if (t - since[i] < STUCK_SECONDS)
				continue;
			fprintf(stderr, "writer %d stands still at %llu, %u children left\n", i,
				(unsigned long long)progress, atomic_load(&shared->orphans));
			for (int g = 0; g < GUESTS; g++)
				kill(guests[g].pid, SIGKILL);
			abort();
		}
		usleep(20000);
	}
}

static bool guests_over(void)
{
	siginfo_t state;
	int left = 0;

	for (int g = 0; g < GUESTS; g++) {
		state.si_pid = 0;
		waitid(P_PID, (id_t)guests[g].pid, &state, WEXITED | WNOHANG | WNOWAIT);
		left += !state.si_pid;
	}
	return !left && !atomic_load(&shared->orphans);
}

static void report(const struct df_counters *c)
{
	printf("reads %llu stores %llu sigbus %llu forks %llu moves %llu unmaps %llu drops %llu "
	       "punches %llu\n",
	       (unsigned long long)shared->reads, (unsigned long long)shared->stores,
	       (unsigned long long)shared->buses, (unsigned long long)shared->forks,
	       (unsigned long long)shared->moves, (unsigned long long)shared->unmaps,
	       (unsigned long long)shared->drops, (unsigned long long)shared->punches);
	printf("let go %llu kept %llu\n", (unsigned long long)shared->let_go,
	       (unsigned long long)shared->kept);
	printf("told %llu ready %llu errors %llu\n", (unsigned long long)shared->told,
	       (unsigned long long)shared->ready, (unsigned long long)shared->errors);
	printf("faults %llu failed %llu late %llu overflow %llu healed %llu retries %llu again %llu "
	       "violations %u behind %d\n",
	       (unsigned long long)c->faults, (unsigned long long)c->failed,
	       (unsigned long long)c->late, (unsigned long long)c->overflow,
	       (unsigned long long)c->healed, (unsigned long long)c->retries,
	       (unsigned long long)c->again, atomic_load(&shared->violations), notices);
}

int main(int argc, char **argv)
{
	struct df_engine_options options = {
		.answer_ns = 50000000,
		.source_ns = 10000000000,
		.fill_threads = 4,
	};
	int64_t offered = df_uffd_probe(0);
	uint64_t features = WANTED | ((uint64_t)offered & UFFD_FEATURE_POISON);
	_Atomic bool answered = false;
	pthread_t answers, unmapped, keeper, writers[FILES];
	struct df_counters counters;
	struct df_file *first;
	int fd, fds, status, pair[2];

	if (argc != 5 && argc != 6)
		return 2;
	programs = argc == 6;
	if (offered < 0 || (features & ~(uint64_t)offered)) {
		fprintf(stderr, "no userfaultfd, or too old a one\n");
		return 77;
	}
	if (((uint64_t)offered & TRACKING) == TRACKING)
		features |= TRACKING;
	signal(SIGPIPE, SIG_IGN);
	fd = memfd_create("stress", 0);
	if (fd < 0 || ftruncate(fd, sizeof(*shared)) || dup2(fd, FD_SHARED) < 0)
		return 2;
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	shared->seed = strtoull(argv[4], NULL, 10);
	/* what opens descriptors that are never closed */
	if (programs)
		df_cache_limit(CACHE_BYTES);
	check(df_file_new(dup(fd), true, &first), "df_file_new");
	df_file_put(first);
	known_free(known_new(0, 0, 0));
	fds = open_fds();
	if (programs) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
			return 2;
		pthread_create(&keeper, NULL, keeper_body, (void *)(intptr_t)pair[1]);
		df_keeper(pair[0]);
	}
	check(df_engine_new(&options, &engine), "df_engine_new");
	check(df_engine_trace(engine, 4096), "df_engine_trace");
	for (unsigned f = 0; f < FILES; f++)
		make_file(argv[2], f);
	for (unsigned g = 0; g < GUESTS; g++)
		start_guest(g, argv[1], features);
	pthread_create(&answers, NULL, answers_body, &answered);
	if (programs)
		pthread_create(&unmapped, NULL, unmapped_body, &answered);
	for (unsigned f = 0; f < FILES; f++)
		pthread_create(&writers[f], NULL, file_body, (void *)(uintptr_t)f);

	watch(now() + atof(argv[3]), NULL);
	atomic_store(&shared->stop, 1);
	for (unsigned f = 0; f < FILES; f++)
		pthread_join(writers[f], NULL);
	watch(0, guests_over);
	for (unsigned g = 0; g < GUESTS; g++) {
		waitpid(guests[g].pid, &status, 0);
		if (status)
			violation(0, g, "a guest did not end well", (uint64_t)status);
		pthread_join(guests[g].thread, NULL);
		close(guests[g].sock);
		df_guest_free(guests[g].handle);
	}
	if (programs && !shared->kept)
		violation(0, 0, "the keeper was given nothing", 0);
	if (!programs && (!shared->told || shared->ready < shared->told / 2 || !shared->errors))
		violation(0, 0, "guests were hardly told anything", shared->told);
	df_engine_counters(engine, &counters);
	atomic_store(&answered, true);
	pthread_join(answers, NULL);
	if (programs)
		pthread_join(unmapped, NULL);
	df_engine_free(engine);
	for (unsigned f = 0; f < FILES; f++)
		check_end(f);
	if (programs) {
		df_keeper(-1);
		close(pair[0]);
		pthread_join(keeper, NULL);
	}
	if (open_fds() != fds)
		violation(0, 0, "descriptors left open", (uint64_t)(open_fds() - fds));
	report(&counters);
	return atomic_load(&shared->violations) != 0;
}
