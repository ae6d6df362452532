/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap() and msync() of files on the mount.
 *
 * Owns the lock of the connection, and the second try with a new one; served.h does the rest.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "preload.h"

/* -> 0, or the errno for mmap(); *dead: the connection failed. */
static int map_cache(struct client *client, const struct map_request *q, struct mapping *m, bool *dead)
{
	bool demoted;
	int error = served_map(client, q, &here, m, &demoted, dead);

	if (error)
		return error;
	if (wire_unfollowed())
		syscall(SYS_madvise, m->at, m->len, MADV_DONTFORK);
	demoted_set(m->at, m->at + m->len, demoted);
	wire_set_mapped();
	return 0;
}

static void populate(const struct mapping *m, const struct map_request *q)
{
	uint64_t args[6];
	long number = mapping_populates(m, q, args);

	if (number >= 0)
		syscall(number, args[0], args[1], args[2]);
}

long map_file(const struct map_request *q)
{
	struct conversation c;
	struct mapping m;
	bool dead;
	int error = wire_begin(&c);

	if (!error) {
		error = map_cache(c.client, q, &m, &dead);
		if (dead) {
			error = wire_again(&c);
			if (!error)
				error = map_cache(c.client, q, &m, &dead);
		}
	}
	wire_end(&c);
	if (error)
		return -error;
	populate(&m, q);
	return (long)m.at;
}

int map_sync(uint64_t start, uint64_t len)
{
	struct conversation c;
	int r = -ENODEV;

	if (start >= USER_END)
		return 0;
	if (len > USER_END - start)
		len = USER_END - start;
	if (!wire_begin(&c)) {
		r = client_msync(c.client, start, len);
		if (r < 0 && !wire_again(&c))
			r = client_msync(c.client, start, len);
		if (r < 0)
			client_close(c.client);
	}
	wire_end(&c);
	if (r >= 0)
		return r;
	/* The stores are not in the file.  msync() of other files must not fail because of the
	 * host. */
	return cache_maps_any(MAPS_SELF, start, start + len) ? EIO : 0;
}
