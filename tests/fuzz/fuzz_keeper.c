/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_keeper.c - native/keeper/kept.c receives any packets with any descriptors, and the end.
 *
 * Each message is 17 bytes: how many descriptors, and struct keep.
 */
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#include "keeper/kept.c"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int ends[2], died[2], memory = memfd_create("cache", 0);
	int fds[1] = { memory };

	if (memory < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) || pipe(died) || pipe(dead))
		return 0;
	for (; size; data += 17, size = size > 17 ? size - 17 : 0) {
		struct keep message = { 0 };
		size_t n = size > 1 ? size - 1 : 0;

		memcpy(&message, data + 1, n < sizeof(message) ? n : sizeof(message));
		message.kind %= 20;
		if (message.kind == DF_KEEP_LIFE) /* a thread that waits for the host */
			message.kind = DF_KEEP_CACHE;
		if (packet_send_now(ends[0], &message, n < sizeof(message) ? n : sizeof(message),
				    fds, data[0] % 2))
			break;
	}
	close(ends[0]);
	receive_all(ends[1], died[1]);
	end_all();
	nkept = 0;
	/* what a bad message carried stays open until the keeper ends, which is soon */
	close_range((unsigned int)memory, ~0u, 0);
	return 0;
}
