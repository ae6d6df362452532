/* SPDX-License-Identifier: Apache-2.0
 *
 * uffd.h - userfaultfd(2) as functions: each is one ioctl and returns 0 or a negative errno.
 * Owns no state.  cffi reads the text between the markers (see abi.h).  Addresses and lengths
 * are in bytes, of whole pages of the registered address space.
 */
#ifndef DAXFAULT_UFFD_H
#define DAXFAULT_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi/abi.h"
#include "abi/compat.h"

/* DF_CDEF_BEGIN */

int df_uffd_open(int user_mode_only);
int df_uffd_api(int uffd, uint64_t features);
int64_t df_uffd_probe(int user_mode_only); /* -> the kernel's features, or a negative errno */

enum df_uffd_mode { /* UFFDIO_REGISTER_MODE_* */
	DF_UFFD_MISSING = 1,
	DF_UFFD_WP = 2,
	DF_UFFD_MINOR = 4,
};

enum df_uffd_event_kind { /* UFFD_EVENT_* */
	DF_UFFD_PAGEFAULT = 0x12,
	DF_UFFD_FORK = 0x13,
	DF_UFFD_REMAP = 0x14,
	DF_UFFD_REMOVE = 0x15,
	DF_UFFD_UNMAP = 0x16,
};

struct df_uffd_event {
	uint32_t kind;
	int32_t tid;	  /* PAGEFAULT, with THREAD_ID */
	int32_t fd;	  /* FORK: the child's userfaultfd; the reader closes it */
	uint32_t flags;	  /* PAGEFAULT: 1 write, 2 write-protected, 4 minor */
	uint64_t address; /* PAGEFAULT; or the start of the range */
	uint64_t len;	  /* REMAP, REMOVE, UNMAP */
	uint64_t to;	  /* REMAP: the new start */
};

/* *ioctls: a bit for each ioctl number that works on the range. */
int uffd_register(int uffd, uint64_t start, uint64_t len, int modes, uint64_t *ioctls);
int uffd_unregister(int uffd, uint64_t start, uint64_t len);
/* Copy `len` bytes from `from`, an address of this process; *done is how many were copied. */
int uffd_copy(int uffd, uint64_t start, const void *from, uint64_t len, bool protect, uint64_t *done);
int uffd_zeropage(int uffd, uint64_t start, uint64_t len, uint64_t *done);
/* -> events read (0 when there are none), or a negative errno. */
int uffd_events(int uffd, struct df_uffd_event *out, int most);
/* Map `len` bytes that are in the page cache, write-protected if `protect`; *done is how many
 * were mapped. */
int uffd_continue(int uffd, uint64_t start, uint64_t len, bool protect, uint64_t *done);
/* Write-protect the present pages, or make them writable and wake their waiters. */
int uffd_protect(int uffd, uint64_t start, uint64_t len, bool protect);
/* Poison; *done is the number of bytes poisoned.  -EEXIST: the first page is present, or has
 * left a write-protect marker: see uffd_unmark(). */
int uffd_poison(int uffd, uint64_t start, uint64_t len, uint64_t *done);
/* Remove write-protect markers, without a wake-up.  Makes present pages writable, so it must not
 * be used on pages whose stores are tracked. */
int uffd_unmark(int uffd, uint64_t start, uint64_t len);
/* Poison every page of the range that is not present.  Ends tracking in it. */
int uffd_poison_absent(int uffd, uint64_t start, uint64_t len);
int uffd_wake(int uffd, uint64_t start, uint64_t len);
/* The address space behind the descriptor is still alive. */
int uffd_alive(int uffd);
bool uffd_changing(int uffd); /* events of the address space are unread */

/* DF_CDEF_END */

/* uffd_events() in the kernel's layout. */
int uffd_read(int uffd, struct uffd_msg *msgs, size_t most);

/* Poison new anonymous memory through a new userfaultfd: API handshake, registration, poison. */
int uffd_poison_fresh(int uffd, uint64_t start, uint64_t len);

#endif
