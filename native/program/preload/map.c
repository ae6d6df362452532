/* SPDX-License-Identifier: Apache-2.0
 *
 * map.c - mmap() and msync() of files on the mount.
 *
 * Owns their conversation with the host; mapping.h has what is then done in the address space.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "program/cache_maps.h"
#include "preload.h"

static long call_here(struct caller *c, long number, const uint64_t a[6])
{
	long r = syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);

	(void)c;
	return r == -1 ? -errno : r;
}

static struct caller here = { .call = call_here };

/* -> 0, or what mmap() fails with; *dead when it is for the connection. */
static int map_cache(struct client *client, const struct map_request *q, struct mapping *m, bool *dead)
{
	bool private;
	int cache, error, r;

	r = client_map(client, q->fd, (uint64_t)q->offset, q->len, q->prot, q->flags, &cache, &private);
	*dead = r < 0;
	if (r)
		return client_errno(r);
	error = mapping_make(m, q, cache, private, &here);
	syscall(SYS_close, cache);
	r = client_mapped(client, error ? 0 : m->at, error ? 0 : m->len);
	if (r < 0)
		client_close(client);
	if (error)
		return error;
	if (r) {
		syscall(SYS_munmap, m->at, m->len);
		return r > 0 ? r : ENODEV;
	}
	error = mapping_finish(m, q, &here);
	if (error)
		return error;
	if (wire_unfollowed())
		syscall(SYS_madvise, m->at, m->len, MADV_DONTFORK);
	demoted_set(m->at, m->at + m->len, private && request_is_shared(q));
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
			if (dead)
				client_close(c.client);
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
	/* What was stored there is not safe.  But other files must not fail with our host. */
	return cache_maps_any(MAPS_SELF, start, start + len) ? EIO : 0;
}
