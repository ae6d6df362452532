/* SPDX-License-Identifier: Apache-2.0
 *
 * hosting.c - a stand-in that is itself the host of another one.
 *
 * Owns the file that its guests are shown, a range of this stand-in's own window, and
 * the answers to their failed faults.  The same engine serves them that serves this
 * stand-in, so faults of both levels are decided by the same code.
 *
 * A page is brought by one of this stand-in's vCPUs, in guest kernel mode and with an
 * entry in the exception table: what KVM's get_user_pages() is to a host that is a
 * guest itself.  Whatever the host below makes of that fault, page, error or nothing
 * at all, happens to that vCPU.  Once brought, a page is kept: nobody tells a guest
 * that a file of its host has changed.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "hosting.h"
#include "standin.h"

enum {
	FETCHERS = 4,			/* threads, and vCPUs of their own, the last ones */
	DEADLINE_SECONDS = 2,
	BATCH = 64,
	LATER_MS = 100,			/* accept(2) had no room */
	MEND_MS = 50,			/* as vmm/host/mender.py, first and at most */
	MEND_MOST_MS = 2000,
};

static struct hosting host;
static uint64_t range;			/* offset of the file in the window */
static int memory = -1;			/* what was fetched of it */
static char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
static int listener = -1;

static sem_t poison;			/* posted when a page was poisoned */
static _Atomic uint64_t fetched, fetch_errors;
static _Atomic uint64_t delivered[DF_DELIVERED_STOP + 1];

/* ------------------------------------------------------------------ pages */

struct fetch {
	uint64_t offset;		/* in the file */
	int error;
	sem_t ended;
};

static int keep(const uint8_t *bytes, uint64_t len, uint64_t offset)
{
	while (len) {
		ssize_t n = pwrite(memory, bytes, len, (off_t)offset);

		if (n < 0 && errno != EINTR)
			return errno;
		if (n > 0) {
			bytes += n;
			offset += (uint64_t)n;
			len -= (uint64_t)n;
		}
	}
	return 0;
}

/* On the vCPU, which is out of its access and takes no signals. */
static void access_ended(const struct access *a, const struct result *r)
{
	struct fetch *f = a->context;

	if (r->outcome == OUTCOME_OK)
		f->error = keep(a->bytes, a->len, f->offset);
	else
		f->error = r->outcome == OUTCOME_EFAULT ? EFAULT : EIO;
	sem_post(&f->ended);
}

/* Each thread of the engine has a vCPU of its own: one that does not come back from
 * its host holds up nobody else's page. */
static int own_vcpu(void)
{
	static _Thread_local int own = -1;
	static atomic_int next;

	if (own < 0)
		own = VCPU_COUNT - 1 - atomic_fetch_add(&next, 1) % FETCHERS;
	return own;
}

/* For the engine (engine.h), in a thread that may wait. */
static int fetch(void *unused, uint64_t offset, uint64_t len)
{
	struct fetch f = { .offset = offset };
	struct access *a = calloc(1, sizeof(*a));
	int error;

	(void)unused;
	if (!a)
		return ENOMEM;
	a->op = OP_KCOPY;
	a->offset = range + offset;
	a->len = len;
	a->ended = access_ended;
	a->context = &f;
	sem_init(&f.ended, 0, 0);
	error = vcpu_queue(own_vcpu(), 0, a);
	if (error) {
		access_free(a);
		return error;
	}
	while (sem_wait(&f.ended) < 0)
		;
	atomic_fetch_add(f.error ? &fetch_errors : &fetched, 1);
	return f.error;
}

/* ------------------------------------------------------------------ failures */

static bool poisoned(void)
{
	struct df_file_state state;

	df_file_state(host.file, &state);
	return state.poisoned;
}

/* What was poisoned is asked for again, less and less often: nobody tells a guest when
 * its host has the page after all.  A thread of its own, because an attempt takes as
 * long as the host below likes. */
static void *mend(void *unused)
{
	int pause;

	for (;;) {
		while (sem_wait(&poison) < 0)
			;
		for (pause = MEND_MS; poisoned(); pause = pause < MEND_MOST_MS ? 2 * pause : pause) {
			poll(NULL, 0, pause);
			df_file_heal(host.file);
		}
	}
	return unused;
}

static void *answer_failures(void *unused)
{
	struct pollfd poller = { .fd = df_engine_failures_fd(host.engine), .events = POLLIN };
	struct df_failure failures[BATCH];
	int i, n, how;

	for (;;) {
		n = df_engine_failures(host.engine, failures, BATCH);
		for (i = 0; i < n; i++) {
			uint32_t wait = failures[i].wait;

			how = df_engine_answer(host.engine, failures[i].id,
					       host.design.answers[wait].answer,
					       host.design.answers[wait].otherwise);
			if (how >= 0)
				atomic_fetch_add(&delivered[how], 1);
			if (how == DF_DELIVERED_POISON)
				sem_post(&poison);
		}
		if (!n)
			poll(&poller, 1, -1);
	}
	return unused;
}

/* ------------------------------------------------------------------ guests */

static void told_gone(pid_t pid, const char *why)
{
	struct json j;

	json_begin(&j, "guest_gone");
	json_int(&j, "pid", pid);
	if (why)
		json_text(&j, "message", why);
	json_emit(&j);
}

/* Guests come one after the other. */
static void *adopt_guests(void *unused)
{
	struct ucred peer;
	socklen_t len;
	int sock;

	for (;;) {
		sock = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (sock < 0) {
			poll(NULL, 0, LATER_MS);
			continue;
		}
		len = sizeof(peer);
		if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0) {
			close(sock);
			continue;
		}
		if (peer.uid != 0 && peer.uid != geteuid()) {
			close(sock);
			told_gone(peer.pid, "it runs as another user");
			continue;
		}
		told_gone(peer.pid, hosted_serve(&host, sock, peer.pid));
	}
	return unused;
}

/* ------------------------------------------------------------------ begin and end */

/* A thread that takes no signal: those are the vCPUs'. */
static int start(void *(*body)(void *))
{
	sigset_t all, old;
	pthread_t thread;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	error = pthread_create(&thread, NULL, body, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!error)
		pthread_detach(thread);
	return error;
}

static int start_listening(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	strcpy(address.sun_path, path);
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (listener < 0)
		return errno;
	/* nobody gets in before listen() */
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    chmod(path, 0600) < 0 || listen(listener, 8) < 0) {
		int error = errno;

		close(listener);
		listener = -1;
		return error;
	}
	return 0;
}

static int make_file(void)
{
	int error, fd;

	memory = memfd_create("daxfault-hosted", MFD_CLOEXEC);
	if (memory < 0)
		return errno;
	fd = ftruncate(memory, (off_t)host.len) < 0 ? -1 : dup(memory);
	if (fd < 0)
		return errno;
	error = df_file_new(fd, 0, &host.file);
	if (!error)
		df_file_fetch(host.file, fetch, NULL);
	return -error;
}

static int begin(void)
{
	const struct df_engine_options options = {
		.answer_ns = DEADLINE_SECONDS * UINT64_C(1000000000),
		.source_ns = DEADLINE_SECONDS * UINT64_C(1000000000),
		.fill_threads = FETCHERS,
	};
	int error = make_file();

	if (!error)
		error = -df_engine_new(&options, &host.engine);
	sem_init(&poison, 0, 0);
	if (!error)
		error = start(answer_failures);
	if (!error)
		error = start(mend);
	if (!error)
		error = start_listening();
	if (!error)
		error = start(adopt_guests);
	return error;
}

const char *hosting_begin(char **words, int n)
{
	static char reason[128];
	const char *wrong;
	struct json j;
	int error;

	(void)n;
	if (host.len)
		return "a host already";
	if (strlen(words[1]) >= sizeof(path))
		return "too long a path for a socket";
	wrong = hosting_parse(words, &range, &host);
	if (wrong) {
		host.len = 0;
		return wrong;
	}
	strcpy(path, words[1]);
	error = begin();
	if (error) {
		/* what did begin stays, unused: there is no second try */
		snprintf(reason, sizeof(reason), "%s: %s", path, strerror(error));
		return reason;
	}
	json_begin(&j, "host");
	json_text(&j, "path", path);
	json_emit(&j);
	return NULL;
}

const char *hosting_tell(char **words, int n)
{
	static const char *const names[] = {
		[DF_DELIVERED_NONE] = "delivered_none",
		[DF_DELIVERED_WAKE] = "delivered_wake",
		[DF_DELIVERED_EVENT] = "delivered_event",
		[DF_DELIVERED_POISON] = "delivered_poison",
		[DF_DELIVERED_HEALED] = "delivered_healed",
		[DF_DELIVERED_KILL] = "delivered_kill",
		[DF_DELIVERED_READY] = "delivered_ready",
		[DF_DELIVERED_ERROR] = "delivered_error",
		[DF_DELIVERED_STOP] = "delivered_stop",
	};
	struct df_counters counters;
	struct json j;
	size_t i;

	(void)words;
	(void)n;
	if (listener < 0)
		return "not a host";
	df_engine_counters(host.engine, &counters);
	json_begin(&j, "hosted");
	json_uint(&j, "faults", counters.faults);
	json_uint(&j, "failed", counters.failed);
	json_uint(&j, "late", counters.late);
	json_uint(&j, "fetched", fetched);
	json_uint(&j, "fetch_errors", fetch_errors);
	for (i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		json_uint(&j, names[i], delivered[i]);
	json_emit(&j);
	return NULL;
}

void hosting_end(void)
{
	if (listener >= 0)
		unlink(path);
}
