/* SPDX-License-Identifier: Apache-2.0
 *
 * session.c - begins and ends the service of a guest, and maps files in it.  Must not resolve
 * faults.
 */
#include <errno.h>

#include "internal.h"

int df_guest_new(struct df_engine *engine, int uffd, int area,
		 const struct df_guest_options *options, struct df_guest **out)
{
	struct df_guest *guest = NULL;
	int error = guest_alloc(engine, uffd, options->features & UFFD_FEATURE_WP_UNPOPULATED,
				options->flags & DF_GUEST_PROGRAM, &guest);

	*out = NULL;
	if (error) {
		close(uffd);
	} else {
		error = apf_share(&guest->apf, area, options);
		if (!error)
			error = reader_start(guest);
		if (error)
			guest_put(guest);
		else
			*out = guest;
	}
	if (area >= 0)
		close(area);
	return error;
}

int df_guest_doorbell(struct df_guest *guest)
{
	int fd = guest->apf.doorbell_guest;

	guest->apf.doorbell_guest = -1;
	return fd >= 0 ? fd : -EBADF;
}

uint64_t df_guest_id(struct df_guest *guest)
{
	return guest->space.id;
}

int df_guest_alive(struct df_guest *guest)
{
	return space_alive(&guest->space);
}

int df_guest_map(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
		 uint64_t offset, int writable)
{
	int error;

	pthread_mutex_lock(&file->lock);
	error = file_activate(file, false);
	if (!error && writable && !file->source.writable)
		error = -EACCES;
	pthread_mutex_unlock(&file->lock);
	return error ? error : space_map(&guest->space, start, len, file, offset, writable);
}

int df_guest_unmap(struct df_guest *guest, uint64_t start, uint64_t len)
{
	struct df_region *removed = NULL;

	if ((start | len) % PAGE || start + len < start)
		return -EINVAL;
	space_unmap(&guest->space, start, start + len, &removed);
	regions_removed(removed);
	return 0;
}

int df_guest_adopt(struct df_guest *guest, int pid, uint64_t start, uint64_t len)
{
	struct df_region *removed = NULL;
	int found = space_adopt(&guest->space, pid, start, len, &removed);

	regions_removed(removed);
	return found;
}

int df_guest_files(struct df_guest *guest, uint64_t *ids, int most)
{
	return space_files(&guest->space, ids, most);
}

void df_guest_free(struct df_guest *guest)
{
	struct df_engine *engine = guest->engine;
	struct df_region *removed = NULL;

	pthread_mutex_lock(&engine->lock);
	for (struct df_guest **p = &engine->guests; *p; p = &(*p)->next)
		if (*p == guest) {
			*p = guest->next;
			break;
		}
	pthread_mutex_unlock(&engine->lock);

	/* No install from here on.  The reader ends first, and poisons: a child whose fork it
	 * has read still needs its parent's regions, and the last moves must be applied before
	 * the poison. */
	atomic_store(&guest->apf.ended, true);
	pthread_rwlock_wrlock(&guest->space.lock);
	atomic_store(&guest->space.dead, true);
	pthread_rwlock_unlock(&guest->space.lock);
	reader_end(guest);
	pthread_rwlock_wrlock(&guest->space.lock);
	region_remove(&guest->space, 0, UINT64_MAX, &removed);
	pthread_rwlock_unlock(&guest->space.lock);
	regions_removed(removed);
	faults_run(faults_take_again(guest));
	guest_put(guest);
}
