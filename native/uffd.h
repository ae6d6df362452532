/* SPDX-License-Identifier: Apache-2.0
 *
 * uffd.h - userfaultfd(2) as functions: each is one ioctl, returns 0 or a
 * negative errno, and hides nothing.  Owns no state.
 */
#ifndef DAXFAULT_UFFD_H
#define DAXFAULT_UFFD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "compat.h"

/* Make `len` bytes of page cache present, write-protected if asked; *done is the bytes that were. */
int uffd_continue(int uffd, uint64_t start, uint64_t len, bool protect, uint64_t *done);
/* Write-protect what is present, or open it for writing and wake who waits. */
int uffd_protect(int uffd, uint64_t start, uint64_t len, bool protect);
/* Poison; *done is the bytes that were.  -EEXIST: the first page is present, or a
 * write-protect marker is left where it was: see uffd_unmark(). */
int uffd_poison(int uffd, uint64_t start, uint64_t len, uint64_t *done);
/* Take write-protect markers away, without waking anyone.  A page that is present
 * becomes writable: not for pages that are tracked. */
int uffd_unmark(int uffd, uint64_t start, uint64_t len);
/* Poison every page of the range that is not present.  Ends tracking in it. */
int uffd_poison_absent(int uffd, uint64_t start, uint64_t len);
int uffd_wake(int uffd, uint64_t start, uint64_t len);
/* Is the address space behind the descriptor still alive? */
int uffd_alive(int uffd);
/* -> messages read (0 when there are none), or a negative errno. */
int uffd_read(int uffd, struct uffd_msg *msgs, size_t most);

#endif
