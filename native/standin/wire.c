/* SPDX-License-Identifier: Apache-2.0
 *
 * wire.c - the connection to the host.
 *
 * Owns the socket and the thread that reads it.  Replies are matched to the one outstanding call by
 * their sequence number.  When the host hangs up, does not answer in time or breaks the protocol,
 * it is lost permanently: the reader's thread then calls the function given to wire_start(). Must
 * not know more of a message than its header and its length.
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/packet.h"
#include "standin.h"

enum {
	CALL_SECONDS = 60, /* a later host is taken for dead */
};

static int host = -1;
static atomic_bool lost;
static void (*on_loss)(const char *why);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static struct {
	struct df_header *msg; /* request, overwritten by the reply */
	size_t len;
	bool wants_fd;
	int fd;
	bool done;
} call;
static uint64_t next_seq = 1;

bool wire_lost(void)
{
	return atomic_load(&lost);
}

int wire_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, path);

	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		int error = -errno;

		close(fd);
		return error;
	}
	return fd;
}

/* -> why a message is not the reply to the call, or NULL.  A reply is as long as its request.  A bare
 * header is enough for a refusal, and for a request whose reply adds no fields. */
static const char *mismatch(const struct df_header *reply, size_t len, int nfds)
{
	bool refused = reply->error != 0;
	bool bare_will_do;

	if (!call.msg)
		return "an unexpected message";
	if (reply->len != len)
		return "a message with a wrong length in its header";
	if (reply->type != call.msg->type + DF_REPLY)
		return "a reply of another type";
	if (reply->seq != call.msg->seq)
		return "a reply to another request";
	if (reply->error < 0)
		return "a negative errno";

	bare_will_do = refused || (call.msg->type != DF_HELLO && call.msg->type != DF_OPEN);
	if (len != call.len && !(bare_will_do && len == sizeof(*reply)))
		return "a reply of the wrong length";
	if (nfds != (call.wants_fd && !refused ? 1 : 0))
		return "a reply with the wrong number of descriptors";
	return NULL;
}

/* Receive one message; -> NULL, or why it failed. */
static const char *receive(void)
{
	union {
		struct df_header h;
		struct df_removemapping longest;
	} in;
	int fds[PACKET_FDS], nfds;
	const char *why;
	ssize_t len = packet_receive(host, &in, sizeof(in), fds, &nfds);

	if (len == -EPROTO || len == -EMFILE)
		return "a message of the wrong length";
	if (len < 0)
		return strerror((int)-len);
	if (len == 0)
		return "the host hung up";
	if ((size_t)len < sizeof(in.h)) {
		packet_close(fds, nfds);
		return "a message of the wrong length";
	}

	GUARD(&lock);
	why = mismatch(&in.h, (size_t)len, nfds);
	if (!why) {
		memcpy(call.msg, &in, (size_t)len);
		call.fd = nfds ? fds[0] : -1;
		call.done = true;
		call.msg = NULL;
		pthread_cond_signal(&answered);
	} else {
		packet_close(fds, nfds);
	}
	return why;
}

static void *reader(void *unused)
{
	const char *why;

	(void)unused;
	do {
		why = receive();
	} while (!why);

	/* Hang up first: a host that is alive but broke the protocol must notice that it no longer
	 * serves this guest. */
	shutdown(host, SHUT_RDWR);
	atomic_store(&lost, true);
	pthread_mutex_lock(&lock);
	pthread_cond_signal(&answered);
	pthread_mutex_unlock(&lock);

	on_loss(why);
	return NULL;
}

void wire_start(int fd, void (*host_lost)(const char *why))
{
	pthread_t thread;

	host = fd;
	on_loss = host_lost;
	if (pthread_create(&thread, NULL, reader, NULL)) {
		fprintf(stderr, "daxfault-standin: no thread for the host's messages\n");
		_exit(EXIT_USAGE);
	}
	pthread_detach(thread);
}

/* Send `msg` and wait for its reply, which overwrites it.  -> 0, the host's positive errno, or
 * -1 when the host is lost.  *reply_fd, unless it is NULL, is set to the reply's descriptor. */
int wire_call(struct df_header *msg, size_t len, const int *fds, int nfds, int *reply_fd)
{
	uint64_t deadline = now_ns() + CALL_SECONDS * (uint64_t)NS_PER_SECOND;

	msg->len = (uint32_t)len;
	msg->error = 0;
	msg->pad = 0;

	GUARD(&lock);
	msg->seq = next_seq++;
	call.msg = msg;
	call.len = len;
	call.wants_fd = reply_fd != NULL;
	call.done = false;

	if (!wire_lost() && !packet_send(host, msg, len, fds, nfds)) {
		/* The hang-up makes the reader thread call host_lost. */
		while (!call.done && !wire_lost() && clock_wait(&answered, &lock, deadline))
			;
		if (!call.done && !wire_lost())
			shutdown(host, SHUT_RDWR);
	}
	call.msg = NULL;
	if (!call.done)
		return -1;
	if (reply_fd)
		*reply_fd = call.fd;
	return msg->error;
}
