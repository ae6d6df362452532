/* SPDX-License-Identifier: Apache-2.0
 *
 * calls.c - the table of system calls, and the decision about each: see calls.h.
 */
#include "calls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "abi/compat.h"
#include "cache_maps.h"

static uint64_t page_up(uint64_t address)
{
	return (address + IN_PAGE) & ~IN_PAGE;
}

static void refuse(struct call_decision *d, int error)
{
	d->action = CALL_REFUSE;
	d->error = error;
}

/* The kernel changes mapping after mapping, and keeps the changes made before an error.  So the
 * call is made for the part before `end`, and then fails. */
static void make_until(const struct call *c, uint64_t end, int error, struct call_decision *d)
{
	if (end == c->args[0]) {
		refuse(d, error);
		return;
	}
	d->action = CALL_MAKE;
	d->make = *c;
	d->make.args[1] = end - c->args[0];
	d->after = AFTER_FAIL;
	d->error = error;
}

struct map_request calls_map_request(const struct call *c)
{
	return (struct map_request){
		.addr = c->args[0],
		.len = c->args[1],
		.prot = (int)c->args[2],
		.flags = (int)c->args[3],
		.fd = (int)c->args[4],
		.offset = (int64_t)c->args[5],
	};
}

/* Calls that the kernel refuses on any file system are left to it, for the right errno. */
static void decide_mmap(const struct call *c, struct call_view *v, struct call_decision *d)
{
	struct map_request q = calls_map_request(c);
	int access = v->file(v, q.fd);

	/* ext4 supports MAP_SYNC; without DAX it refuses it after all other checks
	 * (fs/ext4/file.c).  FUSE does not support it, and the kernel checks that first. */
	q.flags &= ~MAP_SYNC;
	if (access < 0 || (request_is_refused(&q, access) && !(c->args[3] & MAP_SYNC)))
		return;
	if (request_is_refused(&q, access)) {
		d->action = CALL_MAKE;
		d->make = *c;
		d->make.args[3] &= ~(uint64_t)MAP_SYNC;
	} else if (c->args[3] & MAP_SYNC) {
		refuse(d, EOPNOTSUPP);
	} else {
		d->action = CALL_MAP;
	}
}

/* If a file was opened read-only, a MAP_SHARED mapping of it is MAP_PRIVATE of its page cache
 * (abi.h, struct df_mmap).  The kernel would let it become writable, and every store would be
 * lost. */
static void decide_protect(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t start = c->args[0], end = page_up(start + c->args[1]), first;

	if (!v->demoted || end <= start || start & IN_PAGE)
		return;
	first = v->first_demoted(v, start, end);
	if (first < end)
		make_until(c, first, EACCES, d);
}

/* Demoted mappings are marked MADV_DONTDUMP (served.c), and the mark must stay.  MADV_NORMAL has
 * the same errors, and clean pages of a private mapping are in no core dump in any case. */
static void decide_dodump(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t start = c->args[0], end = page_up(start + c->args[1]);

	if (!v->demoted || end <= start || start & IN_PAGE || v->first_demoted(v, start, end) == end)
		return;
	d->action = CALL_MAKE;
	d->make = *c;
	d->make.args[2] = MADV_NORMAL;
}

/* MADV_REMOVE would drop pages, with their stores, from the page cache but not from the file.
 * The mount has no fallocate(); for such a file system madvise(2) fails with EOPNOTSUPP.  EINVAL
 * comes first if the mapping is locked, and the kernel's EACCES if it is private (mm/madvise.c). */
static void decide_remove(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t start = c->args[0], end = page_up(start + c->args[1]);
	struct maps_area first;
	int r;

	if (!v->mapped || end <= start || start & IN_PAGE)
		return;
	r = cache_maps_first(v->task, start, end, &first);
	if (r < 0)
		refuse(d, EOPNOTSUPP);
	else if (r && first.shared)
		make_until(c, first.start > start ? first.start : start,
			   first.flags & MAPS_LOCKED ? EINVAL : EOPNOTSUPP, d);
}

/* The host installs pages before they are touched, and the kernel lets it overwrite guard markers
 * (mm/userfaultfd.c, mfill_atomic_install_pte(): pte_none_mostly()).  EINVAL: as before 6.13. */
static void decide_guard(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t start = c->args[0], end = page_up(start + c->args[1]);
	struct maps_area first;
	int r;

	if (!v->mapped || end <= start || start & IN_PAGE)
		return;
	r = cache_maps_first(v->task, start, end, &first);
	if (r)
		make_until(c, r > 0 && first.start > start ? first.start : start, EINVAL, d);
}

/* The same for the ranges of its vector, which may change after it was read.  EINVAL: as for
 * such advice before 6.13, and for another process. */
static void decide_process_advice(const struct call *c, struct call_view *v, struct call_decision *d)
{
	(void)c;
	if (v->mapped)
		refuse(d, EINVAL);
}

/* It makes a mapping of the same page cache without a userfaultfd, and raises no event (mm/mmap.c):
 * missing pages would read as zeros. */
static void decide_remap_file_pages(const struct call *c, struct call_view *v,
				    struct call_decision *d)
{
	uint64_t start = c->args[0] & ~IN_PAGE, end = start + (c->args[1] & ~IN_PAGE);

	if (v->mapped && end > start && cache_maps_any(v->task, start, end))
		refuse(d, EINVAL);
}

static void decide_msync(const struct call *c, struct call_view *v, struct call_decision *d)
{
	if (!v->mapped || !c->args[1])
		return;
	d->action = CALL_MAKE;
	d->make = *c;
	d->after = AFTER_SYNC;
	d->start = c->args[0];
	d->len = page_up(c->args[1]);
}

/* On a FUSE mount these write back the kernel's own pages only: the kernel sends FUSE_SYNCFS to
 * no server but virtiofs's (fs/fuse/inode.c, fuse_sync_fs()).  syncfs() reports an error of ours
 * even when its descriptor is on another file system: no lost store may pass for safe. */
static void decide_sync(const struct call *c, struct call_view *v, struct call_decision *d)
{
	if (!v->mapped)
		return;
	d->action = CALL_MAKE;
	d->make = *c;
	d->after = AFTER_SYNC;
	d->start = 0;
	d->len = USER_END;
}

/* An mremap() that grows a locked mapping waits for its new pages before it raises its event,
 * and until the event is read the kernel accepts no page from the host (mm/mremap.c,
 * do_mremap(): mm_populate() comes before mremap_userfaultfd_complete()): a deadlock.
 * MLOCK_ONFAULT locks the same pages and does not wait there; MADV_POPULATE_READ then brings the
 * existing range in. */
static void decide_mlock(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t start = c->args[0] & ~IN_PAGE, end = page_up(c->args[0] + c->args[1]);

	if (!v->mapped || (end > start && !cache_maps_any(v->task, start, end)))
		return;
	d->action = CALL_MAKE;
	d->make = (struct call){ SYS_mlock2, { c->args[0], c->args[1], MLOCK_ONFAULT } };
	if (end <= start)
		return;
	d->after = AFTER_CALL;
	d->then = (struct call){ SYS_madvise, { start, end - start, MADV_POPULATE_READ } };
}

/* Also if no page cache is mapped yet: MCL_FUTURE applies to later mappings. */
static void decide_mlockall(const struct call *c, struct call_view *v, struct call_decision *d)
{
	uint64_t flags = (uint32_t)c->args[0];

	(void)v;
	if (!flags || flags & ~(uint64_t)(MCL_CURRENT | MCL_FUTURE))
		return;
	d->action = CALL_MAKE;
	d->make = *c;
	d->after = AFTER_CALL;
	d->then = (struct call){ SYS_mlockall, { flags | MCL_ONFAULT } };
}

/* mm/mlock.c, __mlock_posix_error_return().  EINVAL: PROT_NONE, where mlock() gets EFAULT. */
int calls_error_after(const struct call_decision *d, int error)
{
	if (d->make.number != SYS_mlock2)
		return 0;
	switch (error) {
	case EINVAL:
	case EFAULT:
		return ENOMEM;
	case ENOMEM:
		return EAGAIN;
	default:
		return error;
	}
}

/* They read by the kernel's page cache of the file even where it is open for direct I/O (fs/fuse/file.c,
 * fuse_splice_read()), and nobody drops that after a store: what they bring must not be there already. */
static void drop_first(int fd, struct call_view *v)
{
	if (v->file(v, fd) >= 0)
		v->drop(v, fd);
}

static void decide_splice(const struct call *c, struct call_view *v, struct call_decision *d)
{
	(void)d;
	drop_first((int)c->args[0], v);
}

static void decide_sendfile(const struct call *c, struct call_view *v, struct call_decision *d)
{
	(void)d;
	drop_first((int)c->args[1], v);
}

#define ROW(call) #call, SYS_##call
#define LEFT(call, why) \
	{ \
		ROW(call), why, NULL, \
		{ { 0 } } \
	}

const struct call_row calls_table[] = {
	{ ROW(mmap),
	  "a private one with PROT_EXEC is left to the kernel",
	  decide_mmap,
	  { { TEST_IS_NOT, 4, UINT32_MAX },
	    { TEST_NONE, 3, MAP_ANONYMOUS },
	    { TEST_NONE, 2, PROT_EXEC } } },
	{ ROW(mmap),
	  "the kernel has no shared mappings of the mount",
	  decide_mmap,
	  { { TEST_IS_NOT, 4, UINT32_MAX },
	    { TEST_NONE, 3, MAP_ANONYMOUS },
	    { TEST_ANY, 3, MAP_SHARED } } },
	{ ROW(mprotect), "demoted mappings", decide_protect, { { TEST_ANY, 2, PROT_WRITE } } },
	{ ROW(pkey_mprotect), "demoted mappings", decide_protect, { { TEST_ANY, 2, PROT_WRITE } } },
	{ ROW(msync), "MS_ASYNC does nothing (mm/msync.c)", decide_msync, { { TEST_ANY, 2, MS_SYNC } } },
	{ ROW(sync), "the kernel does not ask the host", decide_sync, { { 0 } } },
	{ ROW(syncfs), "the kernel does not ask the host", decide_sync, { { 0 } } },
	{ ROW(sync_file_range),
	  "the kernel does not ask the host",
	  decide_sync,
	  { { TEST_ANY, 3, SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER } } },
	{ ROW(mlock), "a growing mremap() would hang", decide_mlock, { { 0 } } },
	{ ROW(mlock2), "with MLOCK_ONFAULT it is left", decide_mlock, { { TEST_IS, 2, 0 } } },
	{ ROW(mlockall), "a growing mremap() would hang", decide_mlockall, { { 0 } } },
	{ ROW(madvise), "loses stores", decide_remove, { { TEST_IS, 2, MADV_REMOVE } } },
	{ ROW(madvise), "marks of demoted mappings", decide_dodump, { { TEST_IS, 2, MADV_DODUMP } } },
	{ ROW(madvise), "guards are overwritten", decide_guard, { { TEST_IS, 2, MADV_GUARD_INSTALL } } },
	{ ROW(process_madvise), "loses stores", decide_process_advice, { { TEST_IS, 3, MADV_REMOVE } } },
	{ ROW(process_madvise),
	  "guards are overwritten",
	  decide_process_advice,
	  { { TEST_IS, 3, MADV_GUARD_INSTALL } } },
	{ ROW(remap_file_pages), "zeros", decide_remap_file_pages, { { 0 } } },

	{ ROW(splice), "the kernel's cache is dropped first", decide_splice, { { 0 } } },
	{ ROW(copy_file_range), "as splice", decide_splice, { { 0 } } },
	{ ROW(sendfile), "as splice", decide_sendfile, { { 0 } } },

	LEFT(munmap, "UFFD_EVENT_UNMAP"),
	LEFT(mremap, "UFFD_EVENT_REMAP; the library's own record of demoted mappings follows it"),
	LEFT(brk, "the heap is never over a mapping"),
	LEFT(shmat, "with SHM_REMAP as mmap() with MAP_FIXED over a mapping: UFFD_EVENT_UNMAP"),
	LEFT(shmdt, "takes away what shmat() made only"),
	LEFT(munlock, "changes flags only"),
	LEFT(munlockall, "changes flags only"),
	LEFT(mincore, "reports the page cache's pages"),
	LEFT(mbind, "pages stay the same where they move"),
	LEFT(set_mempolicy_home_node, "pages stay the same where they move"),
	LEFT(move_pages, "pages stay the same where they move"),
	LEFT(migrate_pages, "pages stay the same where they move"),
	LEFT(mseal, "restricts the program's own calls, and the host makes none of them"),
	LEFT(map_shadow_stack, "anonymous memory"),
	LEFT(memfd_secret, "a file of its own"),
	LEFT(userfaultfd, "registering our mapping is EBUSY (fs/userfaultfd.c)"),
	LEFT(io_uring_register, "pins pages by faults that are served"),
	LEFT(process_vm_readv, "faults that are served"),
	LEFT(process_vm_writev, "faults that are served"),
	LEFT(process_mrelease, "of a process that is killed"),
	LEFT(ptrace, "of another process, by faults that are served"),
	LEFT(close_range, "the connection is checked before each use, and made again"),
	LEFT(clone, "a child is served again: UFFD_EVENT_FORK, or fork.c and the tracer's first stop"),
	LEFT(clone3, "as clone"),
	LEFT(execve, "the address space ends; the new program is followed by target.c or the tracer"),
	LEFT(execveat, "as execve"),
	LEFT(exit_group, "the address space ends, which the host sees at its descriptors"),
#ifdef SYS_fork
	LEFT(fork, "as clone"),
	LEFT(vfork, "as clone"),
#endif
};
const size_t calls_rows = sizeof(calls_table) / sizeof(*calls_table);

static bool passes(const struct call_test *t, const struct call *c)
{
	uint32_t value = (uint32_t)c->args[t->arg];

	switch (t->kind) {
	case TEST_IS:
		return value == t->value;
	case TEST_IS_NOT:
		return value != t->value;
	case TEST_ANY:
		return value & t->value;
	case TEST_NONE:
		return !(value & t->value);
	default:
		return true;
	}
}

static bool is_about(const struct call_row *row, const struct call *c)
{
	int i;

	if (row->number != c->number || !row->decide)
		return false;
	for (i = 0; i < CALL_TESTS; i++)
		if (!passes(&row->tests[i], c))
			return false;
	return true;
}

struct call_decision calls_decide(const struct call *c, struct call_view *v)
{
	struct call_decision d = { .action = CALL_LEAVE };
	size_t i;

	for (i = 0; i < calls_rows; i++) {
		if (is_about(&calls_table[i], c)) {
			calls_table[i].decide(c, v, &d);
			break;
		}
	}
	return d;
}
