/* SPDX-License-Identifier: Apache-2.0
 *
 * change.c - what follows from a change of a file for those who wait for it or map it.  All of it
 * under file->lock, which the change was made under: in one step with it.  Must not decide a fault.
 */
#include <errno.h>
#include <limits.h>

#include "internal.h"

void change_apply(struct df_file *file)
{
	struct change change = file_take_change(file);
	struct df_poison *retry = NULL;

	if (!change.any)
		return;
	fill_release(file, change.start, change.end);
	if (file->mappings->first)
		TRACE(&guest_of(file->mappings->first->space)->engine->tracer, .kind = DF_TRACE_CHANGED,
		      .file = file->id, .offset = file->size, .vcpu = -1);
	/* An error raised but not yet taken is no longer true.  The guest finds an empty
	 * slot, returns and repeats the access. */
	for (struct df_region *region = file->mappings->first; region; region = region->next)
		apf_heal(&guest_of(region->space)->apf, region->start, region->len);
	file->waits->retried |= poison_retry(file, &retry);
	faults_retry(retry, false);
}

int change_notice(struct df_file *file)
{
	int bits = file_notice(file);

	change_apply(file);
	return bits;
}

int change_truncate(struct df_file *file, uint64_t size)
{
	int error;

	if (size > (uint64_t)LLONG_MAX)
		return -EFBIG;
	file_notice(file);	/* our stamp must not hide a stranger's change */
	error = source_truncate(&file->source, size);
	if (!error) {
		file_stamp(file);
		file_changed(file, size, false);
	}
	change_apply(file);
	return error;
}

struct df_fault *change_unlock(struct df_file *file, bool *retried)
{
	struct file_waits *waits = file->waits;
	struct df_fault *released;

	change_apply(file);
	released = waits->released;
	*retried = waits->retried;
	waits->released = NULL;
	waits->retried = false;
	pthread_mutex_unlock(&file->lock);
	return released;
}
