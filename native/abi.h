/* SPDX-License-Identifier: Apache-2.0
 *
 * abi.h - the one contract of daxfault.
 *
 * Owns every layout and number that crosses a boundary: guest <-> host (the
 * unix socket and the shared event area) and C <-> Python (records, counters,
 * answers).  Two readers: the C compiler, and cffi, which is handed the text
 * between the DF_CDEF markers.  That text must therefore stay plain C
 * declarations: constants as enums, no macros, no conditionals.
 */
#ifndef DAXFAULT_ABI_H
#define DAXFAULT_ABI_H

#include <stdint.h>

/* DF_CDEF_BEGIN */

enum {
	DF_PAGE_SIZE = 4096,
	DF_RANGE_SIZE = 2097152,	/* virtiofs DAX maps in 2 MiB ranges (fs/fuse/dax.c) */
	DF_WIRE_VERSION = 1,
	DF_VCPU_MAX = 64,		/* slots in the shared event area: one 4 KiB page */
	DF_APF_SIGNAL = 42,		/* the stand-in's "exception line": a real-time signal */
	DF_REMOVE_MAX = 64,		/* FUSE_REMOVEMAPPING entries in one message */
};

/* ------------------------------------------------------------------ guest <-> host
 *
 * SOCK_SEQPACKET, one message a packet, native byte order (both ends run on one
 * kernel).  Every message starts with struct df_header; a request's `seq` is
 * copied into its reply.  A reply has the request's type plus DF_REPLY, and
 * `error` is 0 or a positive errno; a refusal, and a reply that has nothing to
 * tell, is the header alone.  A message of the wrong length, version or type, or
 * with descriptors it should not carry, ends the connection.
 */
enum df_msg_type {
	DF_HELLO = 1,			/* + fds: userfaultfd, event-area memfd */
	DF_OPEN = 2,			/* + fd: the guest's own open file on the mount */
	DF_RELEASE = 3,
	DF_SETUPMAPPING = 48,		/* numbers and fields of FUSE (linux/fuse.h, 5.10) */
	DF_REMOVEMAPPING = 49,
	DF_REPLY = 1000,
};

struct df_header {
	uint32_t type;			/* enum df_msg_type */
	uint32_t len;			/* of the whole message, header included */
	uint64_t seq;
	int32_t error;			/* in replies; 0 in requests */
	uint32_t pad;
};

/* features a guest may ask for and the host may grant */
enum df_feature {
	DF_FEATURE_SEND_ERROR = 1,	/* page errors in the event area, signalled */
};

struct df_hello {			/* reply: the same, with what was granted */
	struct df_header h;
	uint32_t version;
	int32_t pid;
	uint64_t window;		/* guest virtual address of the DAX window */
	uint64_t window_len;		/* bytes, a multiple of DF_RANGE_SIZE */
	uint64_t features;		/* enum df_feature bits */
};

struct df_open {			/* reply: fh and size filled in */
	struct df_header h;
	uint64_t fh;
	uint64_t size;			/* bytes, at the time of the reply */
};

struct df_release {
	struct df_header h;
	uint64_t fh;
};

enum df_setupmapping_flag {
	DF_SETUPMAPPING_WRITE = 1,
	DF_SETUPMAPPING_READ = 2,
};

/* The reply carries one descriptor: the file's page cache.  The guest maps
 * `len` bytes of it from `foffset` at window + moffset, MAP_SHARED when WRITE
 * was asked for, MAP_PRIVATE and PROT_READ otherwise (the kernel registers no
 * read-only shared mapping: mm/userfaultfd.c wants VM_MAYWRITE), then registers
 * the range for MISSING and MINOR faults before it touches it, and a writable one
 * for WP faults too when its userfaultfd has WP_UNPOPULATED (6.4): the host then
 * knows which pages were stored to.  foffset, len and moffset are multiples of
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

struct df_removemapping {		/* only `count` entries are sent */
	struct df_header h;
	uint32_t count;
	uint32_t pad;
	struct df_removemapping_one one[64];	/* DF_REMOVE_MAX */
};

/* One slot per vCPU in the shared event area, an array of DF_VCPU_MAX.
 *
 * The guest owns `tid` and `enabled`; the host writes the event and then sets
 * `flags` with release order and sends DF_APF_SIGNAL to the thread.  The guest
 * takes the event by exchanging `flags` with 0.  The host withdraws an event
 * that nobody has taken yet the same way, when the page heals first: a guest
 * that finds 0 simply returns and repeats the access. */
enum df_apf_flag {
	DF_APF_PAGE_ERROR = 4,		/* beside kvm_para.h's NOT_PRESENT 1, READY 2 */
};

enum df_apf_enable {
	DF_APF_ENABLED = 1,
	DF_APF_SEND_ERROR = 2,
};

struct df_apf_slot {			/* 64 bytes */
	uint32_t flags;
	uint32_t token;
	uint64_t gva;			/* exact faulting address */
	int32_t error;			/* positive errno */
	uint32_t reason;		/* enum df_reason */
	uint32_t attempts;		/* failures of this page so far, this one included */
	uint32_t tid;
	uint32_t enabled;
	uint8_t pad[28];
};

/* ------------------------------------------------------------------ C <-> Python */

/* why a fault could not be resolved */
enum df_reason {
	DF_REASON_NONE = 0,
	DF_REASON_EOF = 1,		/* the page lies wholly past the end of the file */
	DF_REASON_IO = 2,		/* the page source answered with an errno */
	DF_REASON_NOREGION = 3,		/* registered by the guest, mapped by nobody */
	DF_REASON_TIMEOUT = 4,		/* the page source did not answer before the deadline */
	DF_REASON_INSTALL = 5,		/* the kernel refused the page */
};

/* what to do with a failed fault */
enum df_answer {
	DF_ANSWER_WAKE = 1,		/* say "ready": the fault is taken again */
	DF_ANSWER_REPORT = 2,		/* tell the thread; poison where it cannot be told */
	DF_ANSWER_POISON = 3,		/* UFFDIO_POISON */
};

/* how the answer reached the guest */
enum df_delivery {
	DF_DELIVERED_NONE = 0,		/* the guest is gone, or the fault was withdrawn */
	DF_DELIVERED_WAKE = 1,
	DF_DELIVERED_EVENT = 2,		/* event area and signal */
	DF_DELIVERED_POISON = 3,
	DF_DELIVERED_HEALED = 4,	/* the file changed meanwhile: decided anew */
	DF_DELIVERED_KILL = 5,		/* no poison in this kernel: the guest was ended */
};

struct df_failure {			/* one per failed fault */
	uint64_t id;			/* answer with this */
	uint64_t guest;			/* id of the guest */
	uint64_t file;			/* id of the file, 0 for NOREGION */
	uint64_t address;		/* exact faulting address in the guest */
	uint64_t offset;		/* of the page in the file, bytes */
	uint64_t generation;		/* of the file when it was decided */
	uint64_t time_ns;		/* CLOCK_MONOTONIC */
	uint64_t wait_ns;		/* from the event's arrival to this record */
	int32_t tid;
	int32_t error;			/* positive errno */
	uint32_t reason;		/* enum df_reason */
	uint32_t attempts;		/* failures of this page in a row, this one included */
	uint32_t write;			/* 1 for a store */
	uint32_t pad;
};

/* DF_CDEF_END */

#endif
