/* SPDX-License-Identifier: Apache-2.0
 *
 * parked.c - faults that wait: their copies, how their vCPUs wait, and the queue of those that the
 * guest's reader decides.  Must not decide a fault.
 */
#include "internal.h"

#define RETRY_NS 1000000000u /* how long a caller waits for poisoned pages to be read again */

/* Pending retries of all files; they are rare, so they share this. */
static pthread_mutex_t retries_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t retries_ended = PTHREAD_COND_INITIALIZER;

struct df_fault *fault_copy(struct df_fault *fault)
{
	struct df_fault *copy = malloc(sizeof(*copy));

	if (copy) {
		*copy = *fault;
		copy->next = NULL;
		copy->waited = true;
		fault->apf.token = 0;
		guest_get(copy->guest);
		if (copy->retry) {
			file_get(copy->retry);
			atomic_fetch_add(&copy->retry->waits->retries, 1);
		}
	}
	return copy;
}

static void retry_ended(struct df_file *file)
{
	if (atomic_fetch_sub(&file->waits->retries, 1) == 1) {
		GUARD(&retries_lock);
		pthread_cond_broadcast(&retries_ended);
	}
	file_put(file);
}

void fault_free(struct df_fault *fault)
{
	struct df_file *retry = fault->retry;

	fault_ready(fault);
	guest_put(fault->guest);
	free(fault);
	if (retry)
		retry_ended(retry);
}

void faults_wait_retries(struct df_file *file)
{
	uint64_t until = now_ns() + RETRY_NS;

	GUARD(&retries_lock);
	while (atomic_load(&file->waits->retries) && clock_wait(&retries_ended, &retries_lock, until))
		;
}

void faults_append(struct df_fault **list, struct df_fault *more)
{
	while (*list)
		list = &(*list)->next;
	*list = more;
}

void fault_ask(struct df_fault *fault)
{
	struct apf_fault ask = {
		.address = fault->address,
		.offset = fault->offset,
		.seen = fault->seen,
		.tid = fault->tid,
		.readonly = fault->readonly,
	};

	if (fault->asked || fault->retry)
		return;
	fault->asked = true;
	fault->apf = apf_ask(&fault->guest->apf, &ask);
}

bool token_end(struct df_guest *guest, const struct df_failure *record, bool bad)
{
	enum apf_end ended = apf_end(&guest->apf, record, bad);

	if (ended == APF_ENDED_WAKE)
		space_wake(&guest->space, record->address);
	return ended != APF_DROPPED;
}

void fault_ready(struct df_fault *fault)
{
	struct df_failure record = {
		.address = fault->address,
		.token = fault->apf.token,
		.vcpu = fault->apf.vcpu,
		.state = fault->apf.state,
	};

	if (fault->apf.token)
		token_end(fault->guest, &record, false);
	fault->apf.token = 0;
}

void fault_again(struct df_fault *fault)
{
	struct df_guest *guest = fault->guest;
	bool dead;

	/* `dead` is set before the last fault is taken from the list.  A fault that was added later
	 * would never be removed, and would keep its guest. */
	pthread_mutex_lock(&guest->small);
	dead = atomic_load(&guest->space.dead);
	if (!dead) {
		fault->next = guest->again;
		guest->again = fault;
	}
	pthread_mutex_unlock(&guest->small);
	if (dead)
		fault_free(fault);
	else
		guest_kick(guest);
}

struct df_fault *faults_take_again(struct df_guest *guest)
{
	struct df_fault *again;

	GUARD(&guest->small);
	again = guest->again;
	guest->again = NULL;
	return again;
}

/* Queue it for the guest's reader, so that no fork or move comes in between. */
static bool retry(struct df_poison *poison)
{
	struct df_fault fault = {
		.guest = guest_of(poison->space),
		.address = poison->page,
		.arrived = now_ns(),
		.retry = poison->file,
	};
	struct df_fault *copy = fault_copy(&fault);

	if (copy)
		fault_again(copy);
	return copy;
}

void faults_retry(struct df_poison *list, bool moved)
{
	for (struct df_poison *poison = list, *next; poison; poison = next) {
		next = poison->next_retry;
		if (retry(poison))
			continue;
		if (moved)
			pthread_mutex_lock(&poison->file->lock);
		poison->trying = false;
		if (moved)
			pthread_mutex_unlock(&poison->file->lock);
	}
}
