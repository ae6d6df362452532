/* SPDX-License-Identifier: Apache-2.0
 *
 * known.h - what is known of the backing file's pages that guests can store to: shared with the keeper,
 * which after the host's death writes back the pages that differ from it.
 *
 * An array of struct known in one shared memory object, which the keeper maps when the host is dead.
 * The host writes them under the lock of the file, and dies at any instant: a hash is there before its
 * page is exposed, and a page is exposed before a guest can store to it.
 */
#ifndef DAXFAULT_KNOWN_H
#define DAXFAULT_KNOWN_H

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <stdint.h>
#include <string.h>

#include "abi/host.h"

#define KNOWN_SIZE ((uint64_t)1 << 30) /* bytes of the file for which one is */
#define KNOWN_PAGES (KNOWN_SIZE / DF_PAGE_SIZE)

#define HASH_UNKNOWN 0 /* the page counts as stored to */

/* Of [index * KNOWN_SIZE, + KNOWN_SIZE) of a file. */
struct known {
	uint64_t file; /* its id; 0: this struct is not used */
	uint64_t index;
	uint64_t size; /* of the file */
	uint64_t slot; /* known.c */
	char pad[DF_PAGE_SIZE - 4 * sizeof(uint64_t)];
	uint64_t exposed[KNOWN_PAGES / 64]; /* a bit a page: a guest can store to it */
	uint64_t hashes[KNOWN_PAGES];	    /* of exposed pages, as the backing file has them */
};

/* Of a page of a file.  Bytes past EOF are no part of the file: they count as zeros. */
static inline uint64_t known_hash(const char *page, uint64_t offset, uint64_t size)
{
	char last[DF_PAGE_SIZE];
	uint64_t hash;

	if (offset + sizeof(last) > size) {
		uint64_t len = size > offset ? size - offset : 0;

		memcpy(last, page, len);
		memset(last + len, 0, sizeof(last) - len);
		page = last;
	}
	hash = XXH3_64bits(page, sizeof(last));
	return hash == HASH_UNKNOWN ? 1 : hash;
}

/* known.c: NULL: no memory */
struct known *known_new(uint64_t file, uint64_t index, uint64_t size);
void known_free(struct known *known);

#endif
