/* SPDX-License-Identifier: Apache-2.0
 *
 * client.c - a program's side of the protocol: see client.h.
 *
 * Owns the framing and the checks of every reply.  A reply that breaks the protocol is discarded,
 * and its descriptors are closed.
 */
#include "client.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/packet.h"

enum {
	ERRNO_MAX = 4095, /* include/linux/err.h */
};

union reply {
	struct df_header h;
	struct df_attach attach;
	struct df_serve serve;
	struct df_mmap mmap;
};

/* Unlike libc's wrappers of these calls, syscall(2) is not a cancellation point. */
static long raw(long number, long a, long b, long c, long d)
{
	long r = syscall(number, a, b, c, d);

	return r < 0 ? -errno : r;
}

static void close_raw(int fd)
{
	raw(SYS_close, fd, 0, 0, 0);
}

/* Sends `fd` with it, unless that is -1. */
static int send_request(struct client *c, struct df_header *h, size_t len, int fd)
{
	int n;

	h->len = (uint32_t)len;
	h->seq = ++c->seq;
	n = packet_send(c->fd, h, len, &fd, fd >= 0);
	return n == -EAGAIN ? -ETIMEDOUT : n;
}

/* -> its length, or -errno. */
static ssize_t receive(const struct client *c, union reply *in, int *fds, int *nfds, bool patient)
{
	ssize_t len;

	do {
		len = packet_receive(c->fd, in, sizeof(*in), fds, nfds);
	} while (len == -EAGAIN && patient);
	if (len == -EAGAIN)
		return -ETIMEDOUT;
	return len ? len : -ECONNRESET;
}

struct expected {
	size_t len;	 /* of the reply, unless it is a refusal */
	bool bare;	 /* the header alone is valid too */
	int least, most; /* descriptors with it, unless it is a refusal */
};

static bool is_reply(const struct df_header *h, size_t len, int nfds,
		     const struct df_header *request, const struct expected *e)
{
	if (len < sizeof(*h) || h->len != len || h->type != request->type + DF_REPLY ||
	    h->seq != request->seq || h->error < 0 || h->error > ERRNO_MAX)
		return false;
	if (h->error)
		return nfds == 0 && (len == sizeof(*h) || len == e->len);
	return nfds >= e->least && nfds <= e->most &&
	       (len == e->len || (e->bare && len == sizeof(*h)));
}

/* One request, with `fd` if that is not -1, and its reply.  *got: the reply's descriptor, or -1. */
static int call(struct client *c, struct df_header *h, size_t len, int fd, const struct expected *e,
		union reply *in, int *got)
{
	int fds[PACKET_FDS], nfds, r;
	ssize_t n;

	*got = -1;
	r = send_request(c, h, len, fd);
	if (r)
		return r;
	n = receive(c, in, fds, &nfds, h->type == DF_MSYNC);
	if (n > 0 && is_reply(&in->h, (size_t)n, nfds, h, e)) {
		if (nfds)
			*got = fds[0];
		return in->h.error;
	}
	packet_close(fds, nfds);
	return n < 0 ? (int)n : -EPROTO;
}

static int connect_to(const char *path)
{
	static const struct timeval patience = { .tv_sec = CLIENT_PATIENCE_S };
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	long fd, r;

	if (len >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, len + 1);
	fd = raw(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0);
	if (fd < 0)
		return (int)fd;
	/* the send timeout also bounds connect(), which waits if the backlog is full */
	setsockopt((int)fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt((int)fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	do {
		r = raw(SYS_connect, fd, (long)&address, sizeof(address), 0);
	} while (r == -EINTR);
	if (r < 0) {
		close_raw((int)fd);
		return r == -EAGAIN ? -ETIMEDOUT : (int)r;
	}
	return (int)fd;
}

int client_errno(int result)
{
	switch (result) {
	case -EMFILE:
	case -ENFILE:
	case -ENOMEM:
		return -result;
	default: /* as mmap(2) on a file system without mmap() */
		return result > 0 ? result : ENODEV;
	}
}

int client_attach(struct client *c, const char *path, pid_t pid, int *device)
{
	static const struct expected e = { .len = sizeof(struct df_attach), .most = 1 };
	struct df_attach m = { .h.type = DF_ATTACH, .version = DF_WIRE_VERSION, .pid = pid };
	union reply in;
	int r;

	*device = -1;
	c->seq = 0;
	c->fd = connect_to(path);
	if (c->fd < 0) {
		r = c->fd;
		c->fd = -1;
		return r;
	}
	r = call(c, &m.h, sizeof(m), -1, &e, &in, device);
	if (r == 0 && in.attach.version != DF_WIRE_VERSION) {
		if (*device >= 0)
			close_raw(*device);
		*device = -1;
		r = -EPROTO;
	}
	if (r)
		client_close(c);
	return r;
}

int client_serve(struct client *c, int uffd, uint32_t *flags)
{
	static const struct expected e = { .len = sizeof(struct df_serve) };
	struct df_serve m = { .h.type = DF_SERVE };
	union reply in;
	int none;
	int r = call(c, &m.h, sizeof(m), uffd, &e, &in, &none);

	*flags = r ? 0 : in.serve.flags;
	return r;
}

int client_map(struct client *c, int fd, uint64_t offset, uint64_t len, int prot, int flags,
	       int *cache, bool *private)
{
	static const struct expected e = { .len = sizeof(struct df_mmap), .least = 1, .most = 1 };
	struct df_mmap m = {
		.h.type = DF_MMAP,
		.offset = offset,
		.len = len,
		.prot = (uint32_t)prot,
		.flags = (uint32_t)flags,
		.fd = fd,
		.tid = (int32_t)raw(SYS_gettid, 0, 0, 0, 0),
	};
	union reply in;
	int r = call(c, &m.h, sizeof(m), -1, &e, &in, cache);

	if (r == -EMFILE) { /* the host expects client_mapped() */
		r = client_mapped(c, 0, 0);
		return r < 0 ? r : EMFILE;
	}
	*private = r == 0 && in.mmap.private != 0;
	return r;
}

int client_mapped(struct client *c, uint64_t start, uint64_t len)
{
	static const struct expected e = { .len = sizeof(struct df_mapped), .bare = true };
	struct df_mapped m = { .h.type = DF_MAPPED, .start = start, .len = len };
	union reply in;
	int none;

	return call(c, &m.h, sizeof(m), -1, &e, &in, &none);
}

int client_msync(struct client *c, uint64_t start, uint64_t len)
{
	static const struct expected e = { .len = sizeof(struct df_msync), .bare = true };
	struct df_msync m = { .h.type = DF_MSYNC, .start = start, .len = len };
	union reply in;
	int none;

	return call(c, &m.h, sizeof(m), -1, &e, &in, &none);
}

int client_sigbus(struct client *c, uint64_t address, pid_t tid, int code, const uint64_t *frames,
		  size_t n)
{
	static const struct expected e = { .len = sizeof(struct df_sigbus), .bare = true };
	struct df_sigbus m = { .h.type = DF_SIGBUS, .address = address, .tid = tid, .code = code };
	union reply in;
	int none;

	if (n > DF_SIGBUS_FRAMES)
		n = DF_SIGBUS_FRAMES;
	if (n)
		memcpy(m.frames, frames, n * sizeof(*frames));
	m.nframes = (uint32_t)n;
	return call(c, &m.h, sizeof(m), -1, &e, &in, &none);
}

void client_close(struct client *c)
{
	if (c->fd >= 0)
		close_raw(c->fd);
	c->fd = -1;
}
