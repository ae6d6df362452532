/* SPDX-License-Identifier: Apache-2.0
 *
 * change.c - what follows from a change of a file for those who wait for it or map it.  All of it
 * under file->lock, in one step with the change of what is known of the file; the call that changed
 * the backing file comes before, without the lock.  Must not decide a fault.
 */
#include <errno.h>
#include <limits.h>

#include "internal.h"

#define SLICE ((uint64_t)1 << 20)

/* The backing file's contents have changed, and the page cache has dropped its clean pages.
 * Exposed pages are write-protected and compared, and the clean ones are dropped before their
 * next store.  That is not possible in a guest's reader, while it applies the guest's events:
 * then the next other caller does it. */
static void drop_unstored(struct df_file *file)
{
	uint64_t at = 0, end;

	file->unsettled = thread_is_ours();
	while (!file->unsettled && pages_next(file, &at, &end, SLICE, PAGE_DIRTY)) {
		if (space_protect(file, at, end)) {
			pages_mark(file, at, end, PAGE_DIRTY, false);
			exposed_drop_clean(file, &at, end, UINT64_MAX);
		} else {
			file->unsettled = true;
		}
		at = end;
	}
}

void change_apply(struct df_file *file)
{
	struct change change = file_take_change(file);
	struct df_poison *retry = NULL;

	if (change.content || (file->unsettled && !thread_is_ours()))
		drop_unstored(file);
	if (!change.any)
		return;
	fill_release(file, change.start, change.end);
	if (file->mappings->first)
		TRACE(&guest_of(file->mappings->first->space)->engine->tracer,
		      .kind = DF_TRACE_CHANGED, .file = file->id, .offset = file->size, .vcpu = -1);
	/* Withdraw errors that the guest has not taken yet.  It finds an empty slot, returns and
	 * repeats the access. */
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

int change_saw(struct df_file *file, const struct file_look *look)
{
	int bits = file_saw(file, look);

	change_apply(file);
	return bits;
}

static int begin(struct df_file *file, enum file_call call)
{
	struct file_look look;

	file_look(file, &look);
	pthread_mutex_lock(&file->lock);
	change_saw(file, &look); /* our stamp must not hide another process's change */
	file_call_begin(file, call);
	return look.error;
}

int change_begin(struct df_file *file, enum file_call call)
{
	pthread_mutex_lock(&file->changing);
	return begin(file, call);
}

bool change_try(struct df_file *file, enum file_call call)
{
	if (!file->source.local || pthread_mutex_trylock(&file->changing))
		return false;
	begin(file, call);
	return true;
}

void change_end(struct df_file *file)
{
	pthread_mutex_unlock(&file->changing);
	file_unlock(file);
}

int change_truncate(struct df_file *file, uint64_t size)
{
	struct file_look after;
	int error;

	if (size > (uint64_t)LLONG_MAX)
		return -EFBIG;
	change_begin(file, CALL_TRUNCATE);
	pthread_mutex_unlock(&file->lock);
	error = source_truncate(&file->source, size);
	file_look(file, &after);
	pthread_mutex_lock(&file->lock);
	after.error = error ? error : after.error;
	file_call_end(file, &after);
	if (!error)
		file_changed(file, size, false);
	change_end(file);
	return error;
}

void file_unlock(struct df_file *file)
{
	struct file_waits *waits = file->waits;
	struct df_fault *released, *next;
	bool retried;

	change_apply(file);
	released = waits->released;
	retried = waits->retried;
	waits->released = NULL;
	waits->retried = false;
	pthread_mutex_unlock(&file->lock);
	for (; released; released = next) {
		next = released->next;
		fault_again(released);
	}
	/* A caller that made the file longer may rely on that when the call returns.  The wait is
	 * bounded, and the engine's own threads do not wait. */
	if (retried && !thread_is_ours())
		faults_wait_retries(file);
}
