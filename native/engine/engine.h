/* SPDX-License-Identifier: Apache-2.0
 *
 * engine.h - the engine's functions for Python.  Functions of the whole process are in cache.h,
 * space.h and keep.h.
 *
 * Functions return 0 or a negative errno, unless noted.  The *outcome* of a fault (no page, no
 * answer) is never an error of a call.  Any thread may call them, without the GIL.  cffi reads the
 * text between the markers (see abi.h).
 */
#ifndef DAXFAULT_ENGINE_H
#define DAXFAULT_ENGINE_H

#include "abi/host.h"

/* DF_CDEF_BEGIN */

struct df_file;
struct df_engine;
struct df_guest;

/* --------------------------------------------------------------------- file */

/* Calls that may hang with the backing file: df_file_new(), _upgrade(), _read() and _write()
 * without `nowait` (-EAGAIN then), _truncate(), _recheck(), _write_back(), _sync(), _cache_fd(),
 * _retire(); for a source that is `local`, of these only _truncate(), and what reads, writes or
 * syncs. */
/* `fd` is taken over, also on failure. */
int df_file_new(int fd, int writable, struct df_file **out);
void df_file_put(struct df_file *file);
int df_file_fd(struct df_file *file);
int df_file_upgrade(struct df_file *file, int fd);
int64_t df_file_read(struct df_file *file, void *buffer, uint64_t offset, uint64_t len, int nowait);
int64_t df_file_write(struct df_file *file, const void *bytes, uint64_t offset, uint64_t len,
		      int nowait);
int df_file_truncate(struct df_file *file, uint64_t size);
int df_file_recheck(struct df_file *file);
/* The host has just changed the file's owner, mode, names or attributes: ignore its new ctime. */
void df_file_attributes_set(struct df_file *file);
int df_file_write_back(struct df_file *file); /* 1: something was written */
/* *seen: initially df_file_sync_errors() when the caller opened the file; updated here.  Reports
 * errors of fsync(2) since then, including those of other callers, once. */
int df_file_sync(struct df_file *file, int datasync, uint64_t *seen);
uint64_t df_file_sync_errors(struct df_file *file);
uint64_t df_file_unwritten(struct df_file *file); /* bytes of pages that may be dirty */
int df_file_heal(struct df_file *file);
void df_file_state(struct df_file *file, struct df_file_state *out);
/* Make reads of the page source in a range fail with an errno, be late, truncate the file, or
 * several of these.  Pages that are in the page cache are not read. */
int df_file_inject(struct df_file *file, const struct df_inject_options *options);
/* Remove the injections with this tag; reads that they delay go on at once. */
void df_file_inject_remove(struct df_file *file, uint64_t tag);
/* Remove all injections. */
void df_file_inject_clear(struct df_file *file);
/* -> a new descriptor of the page cache, for a guest to map.  -EBUSY: a guest maps the other kind,
 * sized or not. */
int df_file_cache_fd(struct df_file *file, int flags);
/* Write back (-> 1: something was written), then release the page cache.  -EBUSY: a guest maps the
 * file. */
int df_file_retire(struct df_file *file);
/* The service ends: write back for the last time, then truncate the page cache to 0, so that
 * accesses of guests that still map it raise SIGBUS.  A store that succeeds before that is
 * written, or counted in *lost, in bytes.  Only for a page cache with DF_CACHE_SIZED. */
int df_file_end(struct df_file *file, uint64_t *lost);

/* With DAXFAULT_VERIFY set: the number of page caches that differed from their backing files
 * when they were released. */
uint64_t df_verify_differences(void);

/* ------------------------------------------------------------------- engine */

int df_engine_new(const struct df_engine_options *options, struct df_engine **out);
void df_engine_free(struct df_engine *engine);
int df_engine_failures_fd(struct df_engine *engine);
int df_engine_failures(struct df_engine *engine, struct df_failure *out, int most);
/* `otherwise`: the answer to use if a DF_ANSWER_REPORT cannot be delivered; not DF_ANSWER_REPORT.
 * -> enum df_delivery, or -ENOENT: no such failure, or answered already.  After
 * DF_ANSWER_STOP the vCPU stays in its fault until the file changes or the guest ends. */
int df_engine_answer(struct df_engine *engine, uint64_t id, int answer, int otherwise);
int df_engine_unmapped_fd(struct df_engine *engine);
int df_engine_unmapped(struct df_engine *engine, struct df_unmapped *out, int most);
void df_engine_counters(struct df_engine *engine, struct df_counters *out);
/* Keep the last `capacity` events, at most DF_TRACE_MAX; 0: turn the trace off. */
int df_engine_trace(struct df_engine *engine, uint64_t capacity);
/* Remove the oldest events, at most `most`; -> their number. */
int df_engine_trace_read(struct df_engine *engine, struct df_trace *out, int most);

/* -------------------------------------------------------------------- guest */

/* Takes over `uffd` and `area` (the shared area, or -1), also on failure. */
int df_guest_new(struct df_engine *engine, int uffd, int area,
		 const struct df_guest_options *options, struct df_guest **out);
/* -> the guest's end of its doorbell, a descriptor that the caller closes. */
int df_guest_doorbell(struct df_guest *guest);
uint64_t df_guest_id(struct df_guest *guest);
int df_guest_map(struct df_guest *guest, uint64_t start, uint64_t len, struct df_file *file,
		 uint64_t offset, int writable);
int df_guest_unmap(struct df_guest *guest, uint64_t start, uint64_t len);
/* For a program: register and serve the page caches mapped in [start, start + len) of process
 * `pid`.
 * -> the number of mappings, or a negative errno. */
int df_guest_adopt(struct df_guest *guest, int pid, uint64_t start, uint64_t len);
/* Store the ids, at most `most`, of the served files that the guest maps; -> their number. */
int df_guest_files(struct df_guest *guest, uint64_t *ids, int most);
int df_guest_alive(struct df_guest *guest);
/* End the service.  Registered pages that are absent are poisoned first: a guest that goes on gets
 * SIGBUS, never zeros. */
void df_guest_free(struct df_guest *guest);

/* For a backing file that is filled on demand, one page at a time.  fetch() is called before
 * [offset, offset + len) of the backing file is read, in a thread that may block and holds no
 * lock.  It writes the bytes to the backing file and returns 0, or a positive errno, with which
 * the fault fails.  The bytes may be written at any time; the file's size must not change.  Must
 * be set before a guest maps the file. */
void df_file_fetch(struct df_file *file, int (*fetch)(void *context, uint64_t offset, uint64_t len),
		   void *context);

/* DF_CDEF_END */

#endif
