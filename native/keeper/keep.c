/* SPDX-License-Identifier: Apache-2.0
 *
 * keep.c - the host's end of its keeper (keeper.h).  Owns the socket; must not wait for
 * anything but room in it.
 */
#include <stdatomic.h>

#include "base/packet.h"
#include "engine/internal.h"
#include "keeper/keeper.h"

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

void keep_cache(const struct df_file *file)
{
	say(&(struct keep){ .kind = DF_KEEP_CACHE, .id = file->id }, file->cache);
}

void keep_uffd(const struct df_guest *guest)
{
	say(&(struct keep){ .kind = DF_KEEP_UFFD, .id = guest->id }, guest->uffd);
}

void keep_nothing_of_file(const struct df_file *file)
{
	say(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = DF_KEEP_CACHE, .id = file->id }, -1);
}

void keep_nothing_of_guest(const struct df_guest *guest)
{
	say(&(struct keep){ .kind = DF_KEEP_NOTHING, .what = DF_KEEP_UFFD, .id = guest->id }, -1);
}
