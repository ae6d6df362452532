/* SPDX-License-Identifier: Apache-2.0
 *
 * task.c - finds the mappings of the address space that an event came from.  Must not change
 * regions.
 *
 * An event names the thread by its id in the thread's own pid namespace (task_pid_vnr(),
 * fs/userfaultfd.c).  In ours that id may belong to another process.  So the mappings of a task are
 * used only if they match the known regions of this address space.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/maps.h"
#include "space.h"

/* Whether these mappings match the regions.  Some regions may have been unmapped just now. */
static bool agree(struct df_space *space, int maps)
{
	bool agrees = !space->nregions;

	GUARD_READ(&space->lock);
	for (size_t i = 0; !agrees && i < space->nregions; i++) {
		const struct df_region *region = space->regions[i];
		struct maps_area area;

		agrees = !maps_find(maps, region->start, &area) && area.start <= region->start &&
			 area.inode == region->file->cache_inode &&
			 area.device == region->file->cache_device &&
			 area.offset + (region->start - area.start) == region->offset;
	}
	return agrees;
}

/* The id of a thread in its innermost pid namespace, or 0 (proc_pid_status(5), NSpid). */
static int inner_number(int thread)
{
	char line[256], path[64], *last;
	FILE *status;
	int found = 0;

	snprintf(path, sizeof(path), "/proc/%d/status", thread);
	status = fopen(path, "re");
	while (status && fgets(line, sizeof(line), status)) {
		if (strncmp(line, "NSpid:", 6))
			continue;
		line[strcspn(line, "\n")] = '\0';
		last = strrchr(line, '\t');
		if (last && last != strchr(line, '\t'))
			found = atoi(last + 1);
		break;
	}
	if (status)
		fclose(status);
	return found;
}

/* The mappings of `process`, if one of its threads has this inner id and they match; or -1. */
static int maps_of_inner(struct df_space *space, int process, int tid)
{
	struct dirent *entry;
	char path[64];
	int maps = -1;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", process);
	tasks = opendir(path);
	while (tasks && maps < 0 && (entry = readdir(tasks))) {
		int thread = atoi(entry->d_name);

		if (thread <= 0 || inner_number(thread) != tid)
			continue;
		maps = maps_open(thread);
		if (maps >= 0 && !agree(space, maps)) {
			close(maps);
			maps = -1;
		}
	}
	if (tasks)
		closedir(tasks);
	return maps;
}

int space_maps(struct df_space *space, int tid)
{
	int maps = maps_open(tid);
	struct dirent *entry;
	DIR *all;

	if (maps >= 0 && agree(space, maps))
		return maps;
	if (maps >= 0)
		close(maps);
	maps = -1;
	all = opendir("/proc");
	while (all && maps < 0 && (entry = readdir(all)))
		if (atoi(entry->d_name) > 0)
			maps = maps_of_inner(space, atoi(entry->d_name), tid);
	if (all)
		closedir(all);
	return maps;
}
