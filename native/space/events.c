/* SPDX-License-Identifier: Apache-2.0
 *
 * events.c - reads the events of an address space, and applies them to its regions.  Must not
 * resolve faults.
 */
#include "space.h"

int space_events_begin(struct df_space *space, struct uffd_msg *msgs, int most)
{
	int n, old;

	/* Odd while events may have been read but not applied yet. */
	atomic_fetch_add(&space->turn, 1);
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &old); /* the guest may make read(2) block */
	n = uffd_read(space->uffd, msgs, (size_t)most);
	pthread_setcancelstate(old, NULL);
	return n;
}

void space_events_end(struct df_space *space)
{
	atomic_fetch_add(&space->turn, 1);
}

void space_event(struct df_space *space, const struct uffd_msg *msg, struct space_event *out)
{
	*out = (struct space_event){ .kind = SPACE_OTHER, .what = msg->event, .uffd = -1 };
	switch (msg->event) {
	case UFFD_EVENT_PAGEFAULT:
		out->kind = SPACE_FAULT;
		out->address = msg->arg.pagefault.address;
		out->tid = (int)msg->arg.pagefault.feat.ptid;
		out->write = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE;
		out->stored = msg->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP;
		break;
	case UFFD_EVENT_FORK:
		out->kind = SPACE_FORK;
		out->uffd = (int)msg->arg.fork.ufd;
		break;
	case UFFD_EVENT_REMAP:
		region_move(space, msg->arg.remap.from, msg->arg.remap.to, msg->arg.remap.len,
			    &out->removed, &out->retry);
		break;
	case UFFD_EVENT_UNMAP:
		region_remove(space, msg->arg.remove.start, msg->arg.remove.end, &out->removed);
		break;
	default:
		/* UFFD_EVENT_REMOVE: MADV_DONTNEED took the guest's page table entries, not the
		 * page cache; the next touch is a fault like any other. */
		break;
	}
}
