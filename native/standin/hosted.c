/* SPDX-License-Identifier: Apache-2.0
 *
 * hosted.c - one guest of a stand-in that is a host: its connection, from hello to
 * its end, as vmm/host/session.py has it.
 *
 * Owns what the guest may reach: the one file, read-only, in ranges of its window it
 * asked for.  A guest that breaks the protocol loses its connection.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi/compat.h"
#include "hosting.h"

enum {
	HELLO_MS = 10000,
	OPEN_MAX_HOSTED = 64,		/* open files of a guest */
};

static const uint64_t WINDOW_MAX = UINT64_C(1) << 40;

struct hosted {
	const struct hosting *host;
	int sock;
	pid_t pid;
	struct df_guest *guest;
	uint64_t window, window_len;
	uint64_t open;			/* a bit for each file handle */
	uint8_t *shows;			/* for each range of the window: file handle + 1, or 0 */
};

/* ------------------------------------------------------------------ requests */

/* There is one file, and this stand-in has no mount a guest could open it on: any
 * descriptor stands for it.  It is closed unread. */
static int answer_open(struct hosted *g, struct hosted_message *m)
{
	uint64_t fh = 0;

	while (fh < OPEN_MAX_HOSTED && g->open >> fh & 1)
		fh++;
	if (fh == OPEN_MAX_HOSTED)
		return hosted_reply(g->sock, m, EMFILE, false, -1);
	g->open |= UINT64_C(1) << fh;
	m->open.fh = fh;
	m->open.size = g->host->len;
	return hosted_reply(g->sock, m, 0, true, -1);
}

static bool is_open(const struct hosted *g, uint64_t fh)
{
	return fh < OPEN_MAX_HOSTED && g->open >> fh & 1;
}

static bool in_window(const struct hosted *g, uint64_t moffset, uint64_t len)
{
	return len <= g->window_len && moffset <= g->window_len - len;
}

static void set_shows(struct hosted *g, uint64_t moffset, uint64_t len, uint8_t what)
{
	memset(g->shows + moffset / DF_RANGE_SIZE, what, len / DF_RANGE_SIZE);
}

static int answer_release(struct hosted *g, struct hosted_message *m)
{
	uint64_t fh = m->release.fh;

	if (!is_open(g, fh))
		return hosted_reply(g->sock, m, EBADF, false, -1);
	if (memchr(g->shows, (int)fh + 1, g->window_len / DF_RANGE_SIZE))
		return hosted_reply(g->sock, m, EBUSY, false, -1);
	g->open &= ~(UINT64_C(1) << fh);
	return hosted_reply(g->sock, m, 0, false, -1);
}

/* -> the page cache's descriptor, or a negative errno. */
static int set_up(struct hosted *g, const struct df_setupmapping *s)
{
	uint64_t start = g->window + s->moffset;
	int error, fd;

	if (!is_open(g, s->fh))
		return -EBADF;
	if (s->flags & DF_SETUPMAPPING_WRITE)
		return -EACCES;		/* nobody would carry the stores further down */
	if (!in_window(g, s->moffset, s->len))
		return -EINVAL;
	error = df_guest_map(g->guest, start, s->len, g->host->file, s->foffset, 0);
	if (error)
		return error;
	fd = df_file_cache_fd(g->host->file, 0);
	if (fd < 0)
		df_guest_unmap(g->guest, start, s->len);
	else
		set_shows(g, s->moffset, s->len, (uint8_t)(s->fh + 1));
	return fd;
}

static int answer_setup(struct hosted *g, struct hosted_message *m)
{
	int fd = set_up(g, &m->setup);
	int error;

	if (fd < 0)
		return hosted_reply(g->sock, m, -fd, false, -1);
	error = hosted_reply(g->sock, m, 0, false, fd);
	close(fd);
	return error;
}

static int answer_remove(struct hosted *g, struct hosted_message *m)
{
	const struct df_removemapping *r = &m->remove;
	uint32_t i;
	int error;

	for (i = 0; i < r->count; i++) {
		if (!in_window(g, r->one[i].moffset, r->one[i].len))
			return hosted_reply(g->sock, m, EINVAL, false, -1);
	}
	for (i = 0; i < r->count; i++) {
		error = df_guest_unmap(g->guest, g->window + r->one[i].moffset, r->one[i].len);
		if (error)
			return hosted_reply(g->sock, m, -error, false, -1);
		set_shows(g, r->one[i].moffset, r->one[i].len, 0);
	}
	return hosted_reply(g->sock, m, 0, false, -1);
}

static int answer(struct hosted *g, struct hosted_message *m)
{
	switch (m->h.type) {
	case DF_OPEN:
		return answer_open(g, m);
	case DF_RELEASE:
		return answer_release(g, m);
	case DF_SETUPMAPPING:
		return answer_setup(g, m);
	default:
		return answer_remove(g, m);
	}
}

/* ------------------------------------------------------------------ hello */

/* fdinfo's feature bits (fs/userfaultfd.c, userfaultfd_show_fdinfo()): without the
 * thread id nobody can be told, without the exact address nobody is told exactly. */
static const char *check_uffd(int fd, uint64_t *features)
{
	static const uint64_t wanted = UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_EXACT_ADDRESS;
	unsigned long long api, set, all;
	char path[64], text[128] = "";
	bool found = false;
	FILE *lines;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (readlink(path, text, sizeof(text) - 1) < 0 ||
	    strcmp(text, "anon_inode:[userfaultfd]"))
		return "the descriptor in its hello is not a userfaultfd";
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	lines = fopen(path, "re");
	if (!lines)
		return "no fdinfo";
	while (!found && fgets(text, sizeof(text), lines))
		found = sscanf(text, "API: %llx:%llx:%llx", &api, &set, &all) == 3;
	fclose(lines);
	if (!found || (set & wanted) != wanted)
		return "its userfaultfd tells neither thread nor exact address";
	*features = set;
	return NULL;
}

/* As vmm/designs/design.py, grants(). */
static uint32_t grants(const struct hosting_design *design, uint32_t abi, uint32_t cpuid)
{
	if (abi == design->abi)
		return cpuid & design->cpuid;
	if (abi == DF_ABI_RFC_V1 || design->abi == DF_ABI_RFC_V1)
		return 0;
	return cpuid & design->cpuid & (DF_CPUID_ASYNC_PF | DF_CPUID_ASYNC_PF_INT);
}

static const char *adopt(struct hosted *g, struct hosted_message *m)
{
	struct df_guest_options options = { .pid = g->pid, .abi = m->hello.abi };
	const char *wrong;
	int error, doorbell;

	if (m->h.type != DF_HELLO)
		return "a hello comes first, and once";
	if (m->hello.pid != g->pid)
		return "it says it is another process";
	if (m->hello.window_len > WINDOW_MAX)
		return "its window is too large";
	wrong = check_uffd(m->fds[0], &options.features);
	if (wrong)
		return wrong;
	g->window = m->hello.window;
	g->window_len = m->hello.window_len;
	g->shows = calloc(1, g->window_len / DF_RANGE_SIZE);
	if (!g->shows)
		return "no memory";

	options.cpuid = grants(&g->host->design, m->hello.abi, m->hello.cpuid);
	options.flags = g->host->design.flags;
	m->nfds = 0;			/* taken over, also on failure */
	error = df_guest_new(g->host->engine, m->fds[0], m->fds[1], &options, &g->guest);
	if (error)
		return strerrordesc_np(-error);
	doorbell = df_guest_doorbell(g->guest);
	if (doorbell < 0)
		return "no doorbell";
	m->hello.cpuid = options.cpuid;
	m->hello.pid = getpid();
	error = hosted_reply(g->sock, m, 0, true, doorbell);
	close(doorbell);
	return error ? strerrordesc_np(-error) : NULL;
}

/* ------------------------------------------------------------------ life */

/* Until there is a message: false when the guest is gone, or did not speak in time.
 * Its death counts, not only its end of the socket: a child may hold that too. */
static bool wait_for_message(int sock, int pidfd, int ms)
{
	struct pollfd fds[] = {
		{ .fd = sock, .events = POLLIN },
		{ .fd = pidfd, .events = POLLIN },
	};
	int n;

	do {
		n = poll(fds, 2, ms);
	} while (n < 0 && errno == EINTR);
	return n > 0 && !fds[1].revents;
}

static const char *serve(struct hosted *g, int pidfd)
{
	struct hosted_message m;
	const char *wrong;

	while (wait_for_message(g->sock, pidfd, g->guest ? -1 : HELLO_MS)) {
		wrong = hosted_receive(g->sock, &m);
		if (wrong == hosted_hung_up)
			return NULL;
		if (wrong)
			return wrong;
		if (!g->guest)
			wrong = adopt(g, &m);
		else if (m.h.type == DF_HELLO)
			wrong = "a hello comes first, and once";
		else if (answer(g, &m))
			wrong = hosted_hung_up;
		hosted_close_fds(&m);
		if (wrong)
			return wrong == hosted_hung_up ? NULL : wrong;
	}
	return g->guest ? NULL : "it said no hello";
}

const char *hosted_serve(const struct hosting *host, int sock, pid_t pid)
{
	struct hosted g = { .host = host, .sock = sock, .pid = pid };
	int pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	const char *wrong = pidfd < 0 ? "it is gone" : serve(&g, pidfd);

	/* The connection first: the guest then answers its own faults, with poison. */
	close(sock);
	if (g.guest)
		df_guest_free(g.guest);
	free(g.shows);
	if (pidfd >= 0)
		close(pidfd);
	return wrong;
}
