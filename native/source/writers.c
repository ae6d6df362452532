/* SPDX-License-Identifier: Apache-2.0
 *
 * writers.c - notices writes of other processes to backing files, by fanotify(7).  Must not decide
 * what such a write means.
 *
 * The times of a file do not distinguish our own write from a simultaneous one of another process.
 * The event of a write does, because it has the writer's pid; for an unprivileged group the pid is
 * 0 unless it is ours.  Stores through a mapping raise no event, and file systems without file
 * handles have none: those changes are noticed by the times only.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "source.h"

#define SLOTS 1024
#define EVENTS 4096
#define HANDLE_MOST 128 /* MAX_HANDLE_SZ */

/* The identity of an inode in an event. */
struct inode_key {
	fsid_t fs;
	int type;
	unsigned len;
	unsigned char handle[HANDLE_MOST];
};

struct source_watch {
	struct source_watch *next;
	struct inode_key key;
	unsigned users;
	atomic_uint_fast64_t writes; /* events of other processes */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* a leaf */
static struct source_watch *slots[SLOTS];
static int group = -1;
static bool tried;

static struct source_watch **find(const struct inode_key *key)
{
	uint32_t hash = 2166136261u; /* FNV-1a */
	struct source_watch **p;

	for (unsigned i = 0; i < key->len; i++)
		hash = (hash ^ key->handle[i]) * 16777619u;
	p = &slots[hash % SLOTS];
	while (*p && ((*p)->key.type != key->type || (*p)->key.len != key->len ||
		      memcmp(&(*p)->key.fs, &key->fs, sizeof(key->fs)) ||
		      memcmp((*p)->key.handle, key->handle, key->len)))
		p = &(*p)->next;
	return p;
}

static bool key_of(int fd, struct inode_key *key)
{
	union {
		struct file_handle handle;
		char room[sizeof(struct file_handle) + HANDLE_MOST];
	} found = { .handle.handle_bytes = HANDLE_MOST };
	struct statfs fs;
	int mount;

	if (fstatfs(fd, &fs) || name_to_handle_at(fd, "", &found.handle, &mount, AT_EMPTY_PATH))
		return false;
	memcpy(&key->fs, &fs.f_fsid, sizeof(key->fs));
	key->type = found.handle.handle_type;
	key->len = found.handle.handle_bytes;
	memcpy(key->handle, found.handle.f_handle, key->len);
	return true;
}

static int mark(int fd, unsigned what)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	return fanotify_mark(group, what, FAN_MODIFY, AT_FDCWD, path);
}

/* Count an event of another process for its inode, or for all inodes if events were lost. */
static void count(const struct fanotify_event_metadata *event,
		  const struct fanotify_event_info_fid *info)
{
	const struct file_handle *handle = (const void *)info->handle;
	struct source_watch *watch;
	struct inode_key key;

	if (event->mask & FAN_Q_OVERFLOW) {
		for (size_t i = 0; i < SLOTS; i++)
			for (watch = slots[i]; watch; watch = watch->next)
				watch->writes++;
		return;
	}
	if (event->event_len <= FAN_EVENT_METADATA_LEN ||
	    info->hdr.info_type != FAN_EVENT_INFO_TYPE_FID || handle->handle_bytes > HANDLE_MOST)
		return;
	memcpy(&key.fs, &info->fsid, sizeof(key.fs));
	key.type = handle->handle_type;
	key.len = handle->handle_bytes;
	memcpy(key.handle, handle->f_handle, key.len);
	watch = *find(&key);
	if (watch)
		watch->writes++;
}

static void read_events(void)
{
	char events[EVENTS] __attribute__((aligned(8)));
	ssize_t n;
	pid_t us = getpid();

	while ((n = read(group, events, sizeof(events))) > 0) {
		struct fanotify_event_metadata event;
		char *at = events;

		/* an event's length is a multiple of 4: the next one may not be aligned */
		for (; n >= (ssize_t)sizeof(event); at += event.event_len, n -= event.event_len) {
			memcpy(&event, at, sizeof(event));
			if (event.event_len < sizeof(event) || event.event_len > n)
				break;
			if (event.pid != us)
				count(&event, (const void *)(at + sizeof(event)));
		}
	}
}

void source_watch(struct df_source *source)
{
	struct source_watch **p, *watch;
	struct inode_key key;

	GUARD(&lock);
	if (!tried)
		group = fanotify_init(FAN_CLASS_NOTIF | FAN_REPORT_FID | FAN_NONBLOCK | FAN_CLOEXEC,
				      O_RDONLY);
	tried = true;
	if (group < 0 || !key_of(source->fd, &key))
		return;
	p = find(&key);
	watch = *p;
	if (!watch) {
		watch = calloc(1, sizeof(*watch));
		if (!watch)
			return;
		if (mark(source->fd, FAN_MARK_ADD)) {
			free(watch);
			return;
		}
		watch->key = key;
		*p = watch;
	}
	watch->users++;
	source->watch = watch;
	source->writes = watch->writes;
}

void source_unwatch(struct df_source *source)
{
	struct source_watch *watch = source->watch;

	GUARD(&lock);
	if (!watch || --watch->users)
		return;
	mark(source->fd, FAN_MARK_REMOVE);
	*find(&watch->key) = watch->next;
	free(watch);
}

bool source_written_by_others(struct df_source *source)
{
	uint64_t before = source->writes;

	if (!source->watch)
		return false;
	GUARD(&lock);
	read_events();
	source->writes = source->watch->writes;
	return source->writes != before;
}
