/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_client.c - native/program/client.c and base/packet.c receive any reply, with any number of
 * descriptors: nothing of a bad one may be used or stay open.
 *
 * The first byte is the call, the second the descriptors with the reply, and whether its header is
 * made to fit.
 */
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/packet.h"
#include "program/client.h"

static const uint32_t types[] = { DF_SERVE, DF_MMAP, DF_MAPPED, DF_MSYNC, DF_SIGBUS };

static int make(struct client *c, unsigned int which, int *cache)
{
	uint64_t frames[2] = { 1, 2 };
	uint32_t flags;
	bool private;

	switch (which) {
	case 0:
		return client_serve(c, 0, &flags);
	case 1:
		return client_map(c, 0, 0, 4096, 3, 1, cache, &private);
	case 2:
		return client_mapped(c, 0, 4096);
	case 3:
		return client_msync(c, 0, 4096);
	default:
		return client_sigbus(c, 4096, 1, 2, frames, 2);
	}
}

/* Which of the first descriptors are open. */
static uint64_t open_fds(void)
{
	uint64_t found = 0;

	for (int fd = 0; fd < 64; fd++)
		found |= (uint64_t)(fcntl(fd, F_GETFD) >= 0) << fd;
	return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static const struct timeval soon = { .tv_usec = 1 };
	int ends[2], fds[PACKET_FDS] = { 0 }, cache = -1;
	struct client c = { .seq = 6 };
	uint8_t reply[256];
	uint64_t before = open_fds();
	unsigned int which;

	if (size < 2 || size - 2 > sizeof(reply) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends))
		return 0;
	which = data[0] % 5;
	memcpy(reply, data + 2, size - 2);
	if (data[1] & 8 && size - 2 >= sizeof(struct df_header)) {
		struct df_header *h = (struct df_header *)reply;

		h->type = types[which] + DF_REPLY;
		h->len = (uint32_t)(size - 2);
		h->seq = 7;
	}
	c.fd = ends[0];
	setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &soon, sizeof(soon));
	packet_send(ends[1], reply, size - 2, fds, data[1] % (PACKET_FDS + 1));
	shutdown(ends[1], SHUT_WR); /* a second answer is the end */
	if (make(&c, which, &cache) != 0 && cache >= 0)
		abort(); /* of a refusal nothing is handed on */
	if (cache >= 0)
		close(cache);
	client_close(&c);
	close(ends[1]);
	if (open_fds() != before)
		abort(); /* a descriptor stayed open */
	return 0;
}
