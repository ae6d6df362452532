/* SPDX-License-Identifier: Apache-2.0
 *
 * preload.h - between the parts of the preloaded library, lowest first: each may call those before
 * it.
 *
 * libdaxfault.so runs inside unmodified programs.  It must preserve errno, print nothing (except
 * one message before it kills a process), and take no memory from the program's allocator.  It must
 * check a descriptor before each use, because the program may close or replace it.  It does nothing
 * unless DAXFAULT_SOCKET and DAXFAULT_DEVICE are set.
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

/* ---- settings.c: the settings from the environment, and the functions behind the interposed ones */

struct settings {
	bool on;	     /* if false, nothing else is set */
	bool stacks;	     /* DAXFAULT_STACKS=1 */
	dev_t device;	     /* DAXFAULT_DEVICE: st_dev of the mount, decimal */
	const char *socket;  /* DAXFAULT_SOCKET */
	const char *tracer;  /* DAXFAULT_TRACER, or NULL */
	const char *library; /* this one's path */
	/* "NAME=value" of each DAXFAULT_* that was set, then NULL */
	const char *environment[6];
	int (*backtrace)(void **, int); /* if `stacks`, and libc has it; or NULL */
};

struct next {		     /* libc's, or those of another library that interposes */
	pid_t (*fork)(void); /* _Fork(), glibc 2.34, or NULL */
	int (*execvpe)(const char *, char *const[], char *const[]);
	int (*posix_spawn)(pid_t *, const char *, const posix_spawn_file_actions_t *,
			   const posix_spawnattr_t *, char *const[], char *const[]);
	int (*posix_spawnp)(pid_t *, const char *, const posix_spawn_file_actions_t *,
			    const posix_spawnattr_t *, char *const[], char *const[]);
	int (*system)(const char *);
	FILE *(*popen)(const char *, const char *);
};

/* Called once, first of all. */
const struct settings *settings_read(void);
/* settings() returns them from now on; before, `on` is false. */
void settings_publish(void);

const struct settings *settings(void);
const struct next *next(void);

/* ---- wire.c: the connection of this process, and its lock */

struct conversation {
	struct client *client; /* the connection to use */
	struct client own;     /* for a process that must not use the owner's */
	uint64_t mask;	       /* signals blocked before */
	bool owner;	       /* it holds the lock */
	bool fresh;	       /* connected in this conversation */
};

extern struct caller here; /* of the calling process */

/* Block signals, take the lock, connect, and have the process served.  -> 0, or the errno for the
 * program's call; wire_end() must follow in either case. */
int wire_begin(struct conversation *c);
/* The connection has failed: connect again, unless it was made in this conversation.  -> as
 * wire_begin(). */
int wire_again(struct conversation *c);
void wire_end(struct conversation *c);

/* For the handler of a synchronous signal, also while any thread holds the lock. */
void wire_sigbus(uint64_t address, pid_t tid, int code, const uint64_t *frames, size_t n);

/* This process, or one that it was forked from, has mapped a page cache. */
bool wire_mapped(void);
void wire_set_mapped(void);
/* The kernel does not report forks of this process to the host. */
bool wire_unfollowed(void);
/* Close the connection.  -> whether there was one. */
bool wire_drop(void);

/* Make the calling process the owner of the kept connection. */
void wire_own(void);

/* Around a fork(): wire_hold() takes the lock if this process is its owner, wire_release()
 * releases it in the parent; the child starts without a connection. */
bool wire_hold(void);
void wire_release(void);
void wire_forked(void);

uint64_t signals_block(void);
void signals_restore(uint64_t mask);

/* ---- demoted.c: demoted mappings, MAP_PRIVATE in place of MAP_SHARED */

bool demoted_any(void);
/* Record a new mapping of [start, end). */
void demoted_set(uint64_t start, uint64_t end, bool demoted);
/* -> where the first demoted mapping in [start, end) that still exists begins, or `end`. */
uint64_t demoted_first(uint64_t start, uint64_t end);
/* mremap(2); moves the record too.  -> its result or -errno */
long demoted_remap(uint64_t from, uint64_t old_len, uint64_t new_len, int flags, uint64_t to);
void demoted_hold(void);
void demoted_release(void);

/* ---- map.c: mmap() and msync() of page caches */

/* -> the address, or -errno */
long map_file(const struct map_request *q);
/* After the kernel's own msync().  -> errno */
int map_sync(uint64_t start, uint64_t len);

/* ---- wrappers.c: calls of the program, decided; -> the result in libc's form, and errno on failure */

long wrap(long number, uint64_t a, uint64_t b, uint64_t d, uint64_t e, uint64_t f, uint64_t g);
long wrap_remap(uint64_t from, uint64_t old_len, uint64_t new_len, int flags, uint64_t to);

/* ---- fork.c, sigbus.c */

void fork_install(void);
pid_t fork_without_handlers(void); /* _Fork() */
void sigbus_install(void);

/* ---- begin.c: called by the constructor and by each interposed function */

void begin(void);

/* ---- target.c: the program that an exec or a spawn starts */

struct target {
	const char *path; /* the tracer's, or NULL: the path that the program gave */
	char *const *argv, *const *envp;
};

/* Executes a target.  -> the result of the program's call, if it returns. */
typedef int (*target_start)(const struct target *target, void *arg);

/* Call `start` with the program's `argv` and `envp`, changed so that the new program is served
 * as this one is.  `path` is its file, or NULL if unknown. */
int target_call(const char *path, char *const *argv, char *const *envp, target_start start,
		void *arg);

/* -> true: `path` is in LD_PRELOAD's list, which is separated by colons or spaces (ld.so(8)). */
bool preload_lists(const char *paths, const char *path);

/* ---- exec.c */

/* -> the path that execvp(3) finds for `file`, in `room` of PATH_MAX bytes, or NULL. */
const char *find_in_path(const char *file, char *room);

#endif
