/* SPDX-License-Identifier: Apache-2.0
 *
 * abi.h - the protocol between guest and host.
 *
 * Owns every layout and number of the unix socket.  apf.h defines the shared area, host.h the
 * structs that cross from C to Python.  The C compiler reads this file, and cffi reads the text
 * between the DF_CDEF markers.  That text must therefore stay plain C declarations: constants as
 * enums, no macros, no conditionals.
 */
#ifndef DAXFAULT_ABI_H
#define DAXFAULT_ABI_H

#include <stdint.h>

#include "apf.h"

/* DF_CDEF_BEGIN */

enum {
	DF_PAGE_SIZE = 4096,
	DF_RANGE_SIZE = 2097152, /* virtiofs DAX maps in 2 MiB ranges (fs/fuse/dax.c) */
	DF_WIRE_VERSION = 3,
	DF_REMOVE_MAX = 64, /* FUSE_REMOVEMAPPING entries in one message */
};

/* ------------------------------------------------------------------ guest <-> host
 *
 * SOCK_SEQPACKET, one message per packet, native byte order (both ends run on one kernel).
 * Every message starts with struct df_header.  A reply has the request's type plus DF_REPLY and
 * the request's `seq`; its `error` is 0 or a positive errno.  A refusal is the header alone, and
 * so is a reply that adds no fields.  A message of the wrong length, version or type, or with
 * descriptors it should not carry, ends the connection.
 */
enum df_msg_type {
	DF_HELLO = 1, /* + fds: userfaultfd, shared area (memfd) */
	DF_OPEN = 2,  /* + fd: the guest's own open file on the mount */
	DF_RELEASE = 3,
	DF_ATTACH = 16, /* sent by a program's preloaded library or its tracer */
	DF_SERVE = 17,	/* + fd: its userfaultfd, before UFFDIO_API */
	DF_MMAP = 18,	/* + fd: its own open file on the mount */
	DF_MAPPED = 19,
	DF_MSYNC = 20,
	DF_SIGBUS = 21,
	DF_SETUPMAPPING = 48, /* numbers and fields of FUSE (linux/fuse.h, 5.10) */
	DF_REMOVEMAPPING = 49,
	DF_REPLY = 1000,
};

struct df_header {
	uint32_t type; /* enum df_msg_type */
	uint32_t len;  /* of the whole message, header included */
	uint64_t seq;
	int32_t error; /* in replies; 0 in requests */
	uint32_t pad;
};

/* A guest requests CPUID bits of its ABI; the host grants those of them that it offers.  The
 * reply carries the guest's end of the doorbell, a unix socket: the guest sends a byte after it
 * has written to an MSR. */
struct df_hello { /* reply: the same, with what was granted */
	struct df_header h;
	uint32_t version;
	int32_t pid;
	uint64_t window;     /* guest virtual address of the DAX window */
	uint64_t window_len; /* bytes, a multiple of DF_RANGE_SIZE */
	uint32_t abi;	     /* enum df_abi: the guest's kvm_para.h */
	uint32_t cpuid;	     /* enum df_cpuid bits */
};

struct df_open { /* reply: fh and size filled in */
	struct df_header h;
	uint64_t fh;
	uint64_t size; /* bytes, at the time of the reply */
};

struct df_release {
	struct df_header h;
	uint64_t fh;
};

enum df_setupmapping_flag {
	DF_SETUPMAPPING_WRITE = 1,
	DF_SETUPMAPPING_READ = 2,
};

/* The reply carries one descriptor: the file's page cache.  The guest maps `len` bytes of it
 * from `foffset` at window + moffset: MAP_SHARED when it requested WRITE, otherwise MAP_PRIVATE
 * and PROT_READ (the kernel registers no read-only shared mapping: mm/userfaultfd.c requires
 * VM_MAYWRITE).  It then registers the range for MISSING and MINOR faults before it touches it.
 * It registers a writable range for WP faults too when its userfaultfd has WP_UNPOPULATED (6.4),
 * so that the host can track dirty pages.  foffset, len and moffset are multiples of
 * DF_RANGE_SIZE. */
struct df_setupmapping {
	struct df_header h;
	uint64_t fh;
	uint64_t foffset;
	uint64_t len;
	uint64_t flags;
	uint64_t moffset;
};

struct df_removemapping_one {
	uint64_t moffset;
	uint64_t len;
};

struct df_removemapping { /* only `count` entries are sent */
	struct df_header h;
	uint32_t count;
	uint32_t pad;
	struct df_removemapping_one one[64]; /* DF_REMOVE_MAX */
};

/* ---- programs
 *
 * A program has no window: it maps files at any address.  The host reads its mappings from the
 * kernel (/proc/PID/maps), never from the program, and registers them.  Each process has one
 * connection.  An mmap is DF_MMAP and then DF_MAPPED, with no message in between.  A process may
 * close all its descriptors and go on: the host still serves its mappings then.
 */
enum {
	DF_SIGBUS_FRAMES = 32,
};

struct df_attach { /* reply: the same; + fd: an open /dev/userfaultfd, if there is one */
	struct df_header h;
	uint32_t version;
	int32_t pid;
};

enum df_serve_flag {
	DF_SERVE_CHILDREN = 1, /* a forked child's mappings are served too (EVENT_FORK);
					 * otherwise it must attach and send DF_MAPPED for all of them */
};

struct df_serve { /* reply: the same, flags filled in */
	struct df_header h;
	uint32_t flags; /* enum df_serve_flag */
	uint32_t pad;
};

/* The program's mmap(2).  `fd` is a number in the descriptor table of the sending thread, `tid`.
 * The host looks the file up there.  If it received a descriptor instead, it would have to close
 * it, and close(2) on FUSE and NFS sends a request to the file's server.  The reply carries the
 * page cache to map instead, at the same offset, or the errno for mmap() to fail with.  When
 * `private` is set, the sender must map it MAP_PRIVATE: the file was opened read-only, and the
 * kernel registers no shared mapping without VM_MAYWRITE (mm/userfaultfd.c). */
struct df_mmap { /* reply: the same, `private` filled in */
	struct df_header h;
	uint64_t offset;
	uint64_t len;
	uint32_t prot;	/* PROT_* */
	uint32_t flags; /* MAP_* */
	uint32_t private;
	int32_t fd;
	int32_t tid;
	uint32_t pad;
};

/* Serve the page caches that are mapped in [start, start + len).  len 0: the mmap() failed. */
struct df_mapped {
	struct df_header h;
	uint64_t start;
	uint64_t len;
};

/* MS_SYNC of a range; the reply has the result of the write-back. */
struct df_msync {
	struct df_header h;
	uint64_t start;
	uint64_t len;
};

/* A SIGBUS for which the program has no handler.  The host replies after it has read the address
 * space.  A process that is not served yet may send this instead of DF_SERVE. */
struct df_sigbus {
	struct df_header h;
	uint64_t address;
	int32_t tid;
	int32_t code;	  /* si_code */
	uint32_t nframes; /* of its stack, innermost first; 0: not asked for */
	uint32_t pad;
	uint64_t frames[32]; /* DF_SIGBUS_FRAMES */
};

/* DF_CDEF_END */

#endif
