/* SPDX-License-Identifier: Apache-2.0
 *
 * fuzz_maps.c - native/base/maps.c reads any text as /proc/PID/smaps: names in it are anybody's.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/maps.h"

static bool look(const struct maps_area *area, void *arg)
{
	if (strnlen(area->name, sizeof(area->name)) == sizeof(area->name))
		abort(); /* a name always ends */
	return area->start == *(uint64_t *)arg;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static int fd = -1;
	struct maps_area found;
	uint64_t wanted = size;

	if (fd < 0)
		fd = memfd_create("maps", 0);
	if (ftruncate(fd, 0) || pwrite(fd, data, size, 0) != (ssize_t)size)
		return 0;
	maps_each(fd, look, &wanted);
	maps_find(fd, wanted << 12, &found); /* without PROCMAP_QUERY here: in the text */
	return 0;
}
