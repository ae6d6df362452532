/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.h - what the engine offers to Python; the rooms below it add what is of the whole process
 * (cache.h, space.h, keep.h).
 *
 * Every function that can fail returns a negative errno; an *outcome* of a
 * fault (no page, no answer) is never an error of a call.  All functions may
 * be called from any thread, without the GIL.  The text between the markers is
 * also cffi's (see abi.h).
 */
#ifndef DAXFAULT_ENGINE_H
#define DAXFAULT_ENGINE_H

#include "abi/host.h"

/* DF_CDEF_BEGIN */

struct df_file;
struct df_engine;
struct df_guest;

/* --------------------------------------------------------------------- file */

/* Calls that may hang with the backing file: df_file_new(), _upgrade(), _read() and _write() without
 * `nowait` (-EAGAIN then), _truncate(), _recheck(), _write_back(), _sync(), _cache_fd(), _retire(); for
 * a source that is `local`, of these only _truncate(), and what reads, writes or syncs. */
/* `fd` is taken over, also on failure. */
int df_file_new(int fd, int writable, struct df_file **out);
void df_file_put(struct df_file *file);
int df_file_fd(struct df_file *file);
int df_file_upgrade(struct df_file *file, int fd);
int64_t df_file_read(struct df_file *file, void *buffer, uint64_t offset, uint64_t len, int nowait);
int64_t df_file_write(struct df_file *file, const void *bytes, uint64_t offset, uint64_t len, int nowait);
int df_file_truncate(struct df_file *file, uint64_t size);
int df_file_recheck(struct df_file *file);
/* The file's owner, mode, names or attributes were just changed by us: its new ctime is no news. */
void df_file_attributes_set(struct df_file *file);
int df_file_write_back(struct df_file *file);	/* 1: something was written */
/* *seen: df_file_sync_errors() when the caller opened the file, then as it was left here.  Errors
 * of fsync(2) since, another caller's also, are reported once. */
int df_file_sync(struct df_file *file, int datasync, uint64_t *seen);
uint64_t df_file_sync_errors(struct df_file *file);
uint64_t df_file_unwritten(struct df_file *file);	/* bytes that guests may have stored since */
int df_file_heal(struct df_file *file);
void df_file_state(struct df_file *file, struct df_file_state *out);
/* Make the page source answer the faults of a range with an errno, or late, or with less
 * file than there was, or all of these.  Pages that are there already are not asked for. */
int df_file_inject(struct df_file *file, const struct df_inject_options *options);
/* Remove those with this tag; what they delay goes on at once. */
void df_file_inject_remove(struct df_file *file, uint64_t tag);
/* All of them. */
void df_file_inject_clear(struct df_file *file);
/* A fresh descriptor of the page cache, for a guest to map.  -EBUSY: a guest maps the other
 * kind, sized or not. */
int df_file_cache_fd(struct df_file *file, int flags);
/* Nobody maps the file: write back (1: something was written), then give its page cache up.
 * -EBUSY: somebody does. */
int df_file_retire(struct df_file *file);
/* The service ends: write back for the last time, then take the page cache away, from guests that
 * still map it as well: an access is SIGBUS from then on.  A store that succeeds before that is
 * written, or counted in *lost, in bytes.  Only where the page cache's i_size is the file's. */
int df_file_end(struct df_file *file, uint64_t *lost);

/* With DAXFAULT_VERIFY set: page caches that differed from their backing files when given up. */
uint64_t df_verify_differences(void);

/* ------------------------------------------------------------------- engine */

int df_engine_new(const struct df_engine_options *options, struct df_engine **out);
void df_engine_free(struct df_engine *engine);
int df_engine_failures_fd(struct df_engine *engine);
int df_engine_failures(struct df_engine *engine, struct df_failure *out, int most);
/* `otherwise` is what becomes of a DF_ANSWER_REPORT that cannot be delivered: any other
 * answer.  -> enum df_delivery, or -ENOENT: no such failure, or answered already.  After
 * DF_ANSWER_STOP the vCPU stays in its fault until the file changes or the guest ends. */
int df_engine_answer(struct df_engine *engine, uint64_t id, int answer, int otherwise);
int df_engine_unmapped_fd(struct df_engine *engine);
int df_engine_unmapped(struct df_engine *engine, struct df_unmapped *out, int most);
void df_engine_counters(struct df_engine *engine, struct df_counters *out);
/* Keep the last `capacity` things that happened, at most DF_TRACE_MAX; 0: none. */
int df_engine_trace(struct df_engine *engine, uint64_t capacity);
/* Take the oldest out; -> how many. */
int df_engine_trace_read(struct df_engine *engine, struct df_trace *out, int most);

/* -------------------------------------------------------------------- guest */

/* `uffd` and `area` (the shared area, or -1) are taken over, also on failure. */
int df_guest_new(struct df_engine *engine, int uffd, int area,
		 const struct df_guest_options *options, struct df_guest **out);
/* The guest's end of its doorbell, a descriptor that is the caller's to close. */
int df_guest_doorbell(struct df_guest *guest);
uint64_t df_guest_id(struct df_guest *guest);
int df_guest_map(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
		 uint64_t offset, int writable);
int df_guest_unmap(struct df_guest *guest, uint64_t start, uint64_t len);
/* For a program: register, and serve from now on, what [start, start + len) of the address
 * space of process `pid` shows of page caches.  -> how many mappings, or a negative errno. */
int df_guest_adopt(struct df_guest *guest, int pid, uint64_t start, uint64_t len);
/* Files of which the guest maps something, as far as it is served, at most `most`; -> how many
 * there are. */
int df_guest_files(struct df_guest *guest, uint64_t *ids, int most);
int df_guest_alive(struct df_guest *guest);
/* Ends the service.  What is left registered is poisoned first: a guest that
 * lives on gets SIGBUS, never zeros. */
void df_guest_free(struct df_guest *guest);

/* For a file whose backing file has no bytes yet: somebody brings them, a page at a
 * time and only when a guest asks for it.  fetch() is called in
 * a thread that may block and holds no lock, before [offset, offset + len) of the
 * backing file is read, and returns 0 or a positive errno, which the fault then fails
 * with.  What it brings may be written to the backing file at any time; the file's
 * size must not change.  To be set before a guest maps the file. */
void df_file_fetch(struct df_file *file, int (*fetch)(void *context, uint64_t offset, uint64_t len),
		   void *context);

/* DF_CDEF_END */

#endif
