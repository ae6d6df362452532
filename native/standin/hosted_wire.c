/* SPDX-License-Identifier: Apache-2.0
 *
 * hosted_wire.c - messages of a guest to the stand-in that hosts it.
 *
 * Owns the protocol of abi.h as a host sees it, with the checks of vmm/host/wire.py: what
 * passes here is sane field by field.  Must not know what a message means.
 */
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hosting.h"

enum {
	FDS_ROOM = 8,			/* more than any message carries */
};

static const uint64_t OFFSET_MAX = UINT64_C(1) << 62;
static const uint64_t USER_SPACE = UINT64_C(1) << 47;

const char hosted_hung_up[] = "it hung up";

static bool aligned(uint64_t value)
{
	return value % DF_RANGE_SIZE == 0 && value < OFFSET_MAX;
}

static const char *check_hello(const struct df_hello *m)
{
	if (m->version != DF_WIRE_VERSION)
		return "a hello of another version";
	if (!aligned(m->window_len) || !m->window_len || m->window_len >= USER_SPACE ||
	    m->window % DF_PAGE_SIZE || m->window >= USER_SPACE - m->window_len)
		return "a window that is not in user address space";
	if (m->abi >= DF_ABI_COUNT)
		return "an ABI there is not";
	return NULL;
}

static const char *check_setup(const struct df_setupmapping *m)
{
	if (!m->flags || m->flags & ~(uint64_t)(DF_SETUPMAPPING_READ | DF_SETUPMAPPING_WRITE))
		return "a mapping with unknown flags";
	if (!aligned(m->foffset) || !aligned(m->moffset) || !aligned(m->len) || !m->len)
		return "a mapping that is not made of ranges";
	return NULL;
}

static const char *check_remove(const struct df_removemapping *m)
{
	uint32_t i;

	if (m->h.len < offsetof(struct df_removemapping, one) || !m->count ||
	    m->count > DF_REMOVE_MAX ||
	    m->h.len != offsetof(struct df_removemapping, one) + m->count * sizeof(m->one[0]))
		return "a message of the wrong length";
	for (i = 0; i < m->count; i++) {
		if (!aligned(m->one[i].moffset) || !aligned(m->one[i].len))
			return "a mapping that is not made of ranges";
	}
	return NULL;
}

/* The length is the sender's word for as long as nothing else is known. */
static const char *check(const struct hosted_message *m)
{
	static const struct {
		uint32_t type;
		size_t len;
		int fds;
	} kinds[] = {
		{ DF_HELLO, sizeof(m->hello), 2 },
		{ DF_OPEN, sizeof(m->open), 1 },
		{ DF_RELEASE, sizeof(m->release), 0 },
		{ DF_SETUPMAPPING, sizeof(m->setup), 0 },
		{ DF_REMOVEMAPPING, 0, 0 },
	};
	size_t i;

	for (i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && kinds[i].type != m->h.type; i++)
		;
	if (i == sizeof(kinds) / sizeof(kinds[0]))
		return "a message of unknown type";
	if (kinds[i].len && m->h.len != kinds[i].len)
		return "a message of the wrong length";
	if (m->nfds != kinds[i].fds)
		return "a message with the wrong number of descriptors";
	if (m->h.type == DF_HELLO)
		return check_hello(&m->hello);
	if (m->h.type == DF_SETUPMAPPING)
		return check_setup(&m->setup);
	if (m->h.type == DF_REMOVEMAPPING)
		return check_remove(&m->remove);
	return NULL;
}

void hosted_close_fds(struct hosted_message *m)
{
	while (m->nfds)
		close(m->fds[--m->nfds]);
}

/* Keeps as many as any message has; `too_many` when there were more. */
static void take_fds(struct msghdr *mh, struct hosted_message *m, bool *too_many)
{
	struct cmsghdr *c;

	*too_many = mh->msg_flags & MSG_CTRUNC;
	for (c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR(mh, c)) {
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int), i;
		int fd;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		for (i = 0; i < n; i++) {
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
			if (m->nfds < HOSTED_FDS_MAX) {
				m->fds[m->nfds++] = fd;
			} else {
				close(fd);
				*too_many = true;
			}
		}
	}
}

const char *hosted_receive(int sock, struct hosted_message *m)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(FDS_ROOM * sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = m, .iov_len = sizeof(m->remove) };
	struct msghdr mh = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	const char *wrong;
	bool too_many;
	ssize_t len;

	memset(m, 0, sizeof(*m));
	do {
		len = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	} while (len < 0 && errno == EINTR);
	if (len < 0)
		return errno == ECONNRESET ? hosted_hung_up : strerrordesc_np(errno);
	take_fds(&mh, m, &too_many);
	if (len == 0 && !m->nfds && !too_many)
		return hosted_hung_up;

	if (mh.msg_flags & MSG_TRUNC || (size_t)len < sizeof(m->h) || m->h.len != (size_t)len)
		wrong = "a message of the wrong length";
	else if (too_many)
		wrong = "a message with the wrong number of descriptors";
	else
		wrong = check(m);
	if (wrong)
		hosted_close_fds(m);
	return wrong;
}

int hosted_reply(int sock, struct hosted_message *m, int error, bool whole, int fd)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int))];
	} control;
	size_t len = whole && !error ? m->h.len : sizeof(m->h);
	struct iovec iov = { .iov_base = m, .iov_len = len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	m->h.type += DF_REPLY;
	m->h.len = (uint32_t)len;
	m->h.error = error;
	m->h.pad = 0;
	if (fd >= 0) {
		memset(&control, 0, sizeof(control));
		mh.msg_control = &control;
		mh.msg_controllen = sizeof(control);
		control.align.cmsg_level = SOL_SOCKET;
		control.align.cmsg_type = SCM_RIGHTS;
		control.align.cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(&control.align), &fd, sizeof(fd));
	}
	return sendmsg(sock, &mh, MSG_NOSIGNAL) < 0 ? -errno : 0;
}
