/* SPDX-License-Identifier: Apache-2.0
 *
 * mapfsx.c - random operations on files and their mappings, every outcome written down: run
 * with the same seed on two file systems it must write the same twice.  After fsx, but with
 * addresses of its own choice, so that they can be compared, too.
 *
 * mapfsx DIRECTORY LOG SEED SEQUENCES STEPS
 *
 * What is left out, since file systems differ: stores past EOF in a file's last page.  What the
 * kernel refuses because of the userfaultfd: an mremap() of more than one mapping at a time
 * (Linux 6.17).  And what daxfault cannot do: to double (mremap() of a length of 0) a mapping of a
 * file that was opened read-only.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mapfsx.h"

struct page pages[SLOTS][SLOT_PAGES];
int names[NAMES];
struct descriptor fds[FDS];
off_t sizes[OBJECTS];
int nobjects;
FILE *out;
uint64_t seed;

uint64_t hash(const void *bytes, size_t n)
{
	uint64_t h = 1469598103934665603u;

	for (size_t i = 0; i < n; i++)
		h = (h ^ ((const unsigned char *)bytes)[i]) * 1099511628211u;
	return h;
}

void result(const char *what, long r)
{
	LOG("%s %ld %s\n", what, r < 0 ? -1 : r, r < 0 ? strerrorname_np(errno) : "");
}

static void step(void)
{
	unsigned what = pick(100);

	if (what < 20)
		file_call();
	else if (what < 30)
		name_call();
	else if (what < 45)
		map();
	else if (what < 53)
		remap();
	else if (what < 65)
		change_map();
	else if (what < 67)
		fork_and_access();
	else
		load_or_store();
	look_at_file(pick(FDS));
}

static void sequence(uint64_t number, unsigned steps)
{
	seed = number * 1000003 + 7;
	nobjects = 0;
	for (unsigned s = 0; s < SLOTS; s++)
		for (unsigned p = 0; p < SLOT_PAGES; p++)
			pages[s][p] = (struct page){ .object = -1 };
	for (int i = 0; i < NAMES; i++)
		names[i] = -1;
	LOG("== sequence %lu\n", (unsigned long)number);
	for (unsigned i = 0; i < FDS; i++)
		fds[i].fd = -1;
	for (unsigned i = 0; i < FDS; i++)
		open_again(i);
	for (unsigned i = 0; i < steps; i++) {
		LOG("step %u: ", i);
		step();
	}
	look_at_all();
	for (unsigned i = 0; i < FDS; i++)
		look_at_file(i);
	for (unsigned s = 0; s < SLOTS; s++)
		munmap(SLOT(s), SLOT_PAGES * PAGE_BYTES);
	for (unsigned i = 0; i < FDS; i++)
		if (fds[i].fd >= 0)
			close(fds[i].fd);
	for (int i = 0; i < NAMES; i++)
		unlink(name_of(i));
}

int main(int argc, char **argv)
{
	uint64_t first;

	if (argc != 6)
		return 2;
	out = fopen(argv[2], "we");
	if (!out || !access_setup() || chdir(argv[1]))
		return 2;
	first = strtoull(argv[3], NULL, 10);
	for (uint64_t i = 0; i < strtoull(argv[4], NULL, 10); i++)
		sequence(first + i, (unsigned)atoi(argv[5]));
	return fclose(out) ? 2 : 0;
}
