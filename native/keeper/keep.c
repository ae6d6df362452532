/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.c - the host's end of its keeper (keeper.h).  Owns the socket; must not wait for
 * anything but room in it.
 */
#include <stdatomic.h>

#include "base/packet.h"
#include "keep.h"

static atomic_int keeper = -1;

void df_keeper(int socket)
{
	atomic_store(&keeper, socket);
}

static void say(const struct keep *message, int fd)
{
	int to = atomic_load(&keeper);

	if (to >= 0)
		packet_send(to, message, sizeof(*message), &fd, fd >= 0);
}

void keep(enum keep_kind what, uint64_t id, int fd)
{
	say(&(struct keep){ .kind = what, .id = id }, fd);
}

void keep_nothing(enum keep_kind what, uint64_t id)
{
	say(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = what, .id = id }, -1);
}
