/* SPDX-License-Identifier: Apache-2.0
 *
 * preload.h - what the parts of the preloaded library know of each other, lowest part first: each
 * may call those before it.
 *
 * libdaxfault.so is mapped into programs that know nothing of it.  So all of it keeps
 * errno, prints nothing (but for one message before a process is killed), takes no memory
 * from the program's allocator, relies on no descriptor staying what it was, and does
 * nothing at all where DAXFAULT_SOCKET and DAXFAULT_DEVICE are not set.
 */
#ifndef DAXFAULT_PROGRAM_PRELOAD_H
#define DAXFAULT_PROGRAM_PRELOAD_H

#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "program/client.h"
#include "program/mapping.h"
#include "program/served.h"

#define EXPORT __attribute__((visibility("default")))

/* ---- settings.c: what the environment said, and the functions behind those that we interpose */

struct settings {
	bool on;			/* otherwise nothing else is set */
	bool stacks;			/* DAXFAULT_STACKS=1 */
	dev_t device;			/* DAXFAULT_DEVICE: st_dev of the mount, decimal */
	const char *socket;		/* DAXFAULT_SOCKET */
	const char *tracer;		/* DAXFAULT_TRACER, or NULL */
	const char *library;		/* this one's path */
	/* "NAME=value" of each DAXFAULT_* that was set, then NULL */
	const char *environment[6];
	int (*backtrace)(void **, int);	/* with `stacks`, where there is one */
};

struct next {				/* the libc's, or of another library that interposes */
	pid_t (*fork)(void);		/* _Fork(), glibc 2.34, or NULL */
	int (*execvpe)(const char *, char *const[], char *const[]);
	int (*posix_spawn)(pid_t *, const char *, const posix_spawn_file_actions_t *, const posix_spawnattr_t *,
			   char *const[], char *const[]);
	int (*posix_spawnp)(pid_t *, const char *, const posix_spawn_file_actions_t *,
			    const posix_spawnattr_t *, char *const[], char *const[]);
	int (*system)(const char *);
	FILE *(*popen)(const char *, const char *);
};

/* Once, before all else. */
const struct settings *settings_read(void);
/* From now on settings() has them; before, nothing is on. */
void settings_publish(void);

const struct settings *settings(void);
const struct next *next(void);

/* ---- wire.c: the connection of this process, and whose turn it is */

struct conversation {
	struct client *client;		/* to speak with */
	struct client own;		/* of a process that must not touch the owner's */
	uint64_t mask;			/* signals blocked before */
	bool owner;			/* it holds the lock */
	bool fresh;			/* connected in this conversation */
};

extern struct caller here;		/* of the calling process */

/* Signals blocked, the lock held, connected and served.  -> 0, or what the program's
 * call fails with; wire_end() is due in either case. */
int wire_begin(struct conversation *c);
/* The connection turned out to be dead: another one, unless it is as fresh as can be. */
int wire_again(struct conversation *c);
void wire_end(struct conversation *c);

/* From a handler of a synchronous signal, whichever thread holds the lock. */
void wire_sigbus(uint64_t address, pid_t tid, int code, const uint64_t *frames, size_t n);

/* Has this process, or one that it was forked from, ever mapped a page cache? */
bool wire_mapped(void);
void wire_set_mapped(void);
/* Are forked children of this process unknown to the kernel's events? */
bool wire_unfollowed(void);
/* Give up the connection's descriptor.  -> whether there was one. */
bool wire_drop(void);

/* The calling process is the one that may keep a connection. */
void wire_own(void);

/* Around a fork(): hold, if it is this process's to hold, then release in the parent; the child begins again. */
bool wire_hold(void);
void wire_release(void);
void wire_forked(void);

uint64_t signals_block(void);
void signals_restore(uint64_t mask);

/* ---- demoted.c: mappings that are private only because we made them so */

bool demoted_any(void);
/* [start, end) was mapped: `demoted` if MAP_SHARED, of a file that was opened read-only. */
void demoted_set(uint64_t start, uint64_t end, bool demoted);
/* Where in [start, end) the first one begins that is still there, or `end`. */
uint64_t demoted_first(uint64_t start, uint64_t end);
/* mremap(2), and the record of it.  -> its result or -errno */
long demoted_remap(uint64_t from, uint64_t old_len, uint64_t new_len, int flags, uint64_t to);
void demoted_hold(void);
void demoted_release(void);

/* ---- map.c: mmap() and msync() of page caches */

/* -> the address, or -errno */
long map_file(const struct map_request *q);
/* After the kernel's own msync().  -> errno */
int map_sync(uint64_t start, uint64_t len);

/* ---- fork.c, sigbus.c */

void fork_install(void);
pid_t fork_without_handlers(void);	/* _Fork() */
void sigbus_install(void);

/* ---- begin.c: the first call of any of ours, or the constructor */

void begin(void);

/* ---- target.c: the program that an exec or a spawn starts */

struct target {
	const char *path;		/* the tracer's, or NULL: the one that the program gave */
	char *const *argv, *const *envp;
};

/* What executes a target.  -> as the program's own call does when it returns. */
typedef int (*target_start)(const struct target *target, void *arg);

/* Call `start` with the program's `argv` and `envp`, made such that the new program is
 * followed as this one is; `path` is its file, or NULL: not known. */
int target_call(const char *path, char *const *argv, char *const *envp, target_start start, void *arg);

/* Does LD_PRELOAD's list, parted by colons or spaces (ld.so(8)), have `path`? */
bool preload_lists(const char *paths, const char *path);

/* ---- exec.c */

/* What execvp(3) finds for `file`, in `room` of PATH_MAX bytes, or NULL. */
const char *find_in_path(const char *file, char *room);

#endif
