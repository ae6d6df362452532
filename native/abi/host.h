/* SPDX-License-Identifier: Apache-2.0
 *
 * host.h - structs and numbers that cross from C to Python and back: records, options, states,
 * counters, answers.  Owns no function.  cffi reads the text between the markers (see abi.h).
 */
#ifndef DAXFAULT_ABI_HOST_H
#define DAXFAULT_ABI_HOST_H

#include <stdint.h>

#include "abi.h"

/* DF_CDEF_BEGIN */

/* why a fault could not be resolved */
enum df_reason {
	DF_REASON_NONE = 0,
	DF_REASON_EOF = 1,	/* the page lies wholly past the end of the file */
	DF_REASON_IO = 2,	/* the page source answered with an errno */
	DF_REASON_NOREGION = 3, /* the guest registered it, but no file is mapped there */
	DF_REASON_TIMEOUT = 4,	/* the page source did not answer before the deadline */
	DF_REASON_INSTALL = 5,	/* the kernel refused the page */
};

/* what to do with a failed fault */
enum df_answer {
	DF_ANSWER_WAKE = 1,   /* say "ready": the fault is taken again */
	DF_ANSWER_REPORT = 2, /* report the error, as the guest's ABI has it */
	DF_ANSWER_POISON = 3, /* UFFDIO_POISON */
	DF_ANSWER_STOP = 4,   /* the vCPU is not resumed: KVM_RUN = -EFAULT */
};

/* how the vCPU of a failed fault waits for its answer, as under KVM
 * (kvm_faultin_pfn(), kvm_arch_async_page_not_present(), arch/x86/kvm) */
enum df_wait {
	DF_WAIT_SYNC = 0,   /* in the fault: interrupts off, queue full, no async faults */
	DF_WAIT_HALTED = 1, /* in the fault: an artificial halt that the guest cannot see */
	DF_WAIT_TOLD = 2,   /* "not present" was sent: the vCPU runs other tasks */
};

/* how the answer reached the guest */
enum df_delivery {
	DF_DELIVERED_NONE = 0, /* the guest is gone, or the fault was withdrawn */
	DF_DELIVERED_WAKE = 1,
	DF_DELIVERED_EVENT = 2, /* an error, at the faulting instruction */
	DF_DELIVERED_POISON = 3,
	DF_DELIVERED_HEALED = 4, /* the file changed meanwhile: the fault was resolved again */
	DF_DELIVERED_KILL = 5,	 /* this kernel cannot poison: the guest was killed */
	DF_DELIVERED_READY = 6,	 /* "page ready" with the token */
	DF_DELIVERED_ERROR = 7,	 /* an error with the token */
	DF_DELIVERED_STOP = 8,	 /* the vCPU stays stopped */
};

struct df_failure {	     /* one per failed fault */
	uint64_t id;	     /* answer with this */
	uint64_t guest;	     /* id of the guest */
	uint64_t file;	     /* id of the file, 0 for NOREGION */
	uint64_t address;    /* exact faulting address in the guest */
	uint64_t offset;     /* of the page in the file, bytes */
	uint64_t generation; /* of the file when the fault failed */
	uint64_t time_ns;    /* CLOCK_MONOTONIC */
	uint64_t wait_ns;    /* from the event's arrival to this record */
	int32_t tid;
	int32_t error;	   /* positive errno */
	uint32_t reason;   /* enum df_reason */
	uint32_t attempts; /* failures of this page in a row, this one included */
	uint32_t write;	   /* 1 for a store */
	uint32_t token;	   /* of the "not present" that was delivered, or 0 */
	uint32_t wait;	   /* enum df_wait */
	int32_t vcpu;	   /* its slot, -1 for a thread that has none */
	uint32_t state;	   /* enum df_cpu_state, when the fault failed */
	uint32_t pad;
};

enum df_trace_kind {
	DF_TRACE_FAULT = 1,	  /* an event of the guest's userfaultfd was read */
	DF_TRACE_FILL_BEGIN = 2,  /* value: bytes */
	DF_TRACE_FILL_END = 3,	  /* value: bytes read; error */
	DF_TRACE_INSTALL = 4,	  /* value: bytes */
	DF_TRACE_FAIL = 5,	  /* value: enum df_reason; error */
	DF_TRACE_NOT_PRESENT = 6, /* delivered, with a token */
	DF_TRACE_HALT = 7,	  /* not delivered; value: enum df_wait */
	DF_TRACE_READY = 8,	  /* "ready" delivered, with its token */
	DF_TRACE_ERROR = 9,	  /* an error delivered, with its token */
	DF_TRACE_EVENT = 10,	  /* an error delivered at the faulting instruction */
	DF_TRACE_ACK = 11,	  /* value: the guest's count */
	DF_TRACE_WAKE = 12,	  /* UFFDIO_WAKE, in answer to a failure */
	DF_TRACE_POISON = 13,
	DF_TRACE_STOP = 14,
	DF_TRACE_WAKE_ALL = 15, /* queued, because async pf was turned on */
	DF_TRACE_CHANGED = 16,	/* the file; offset: its size now */
	DF_TRACE_WITHDRAW = 17, /* an error that was no longer true */
};

enum {
	DF_TRACE_MAX = 1 << 20, /* entries of a ring */
};

struct df_trace {	  /* a field that does not apply is 0; vcpu is -1 then */
	uint64_t time_ns; /* CLOCK_MONOTONIC */
	uint64_t guest;
	uint64_t file;
	uint64_t address;
	uint64_t offset;
	uint32_t token;
	int32_t tid;
	int32_t vcpu;
	uint32_t kind; /* enum df_trace_kind */
	uint32_t value;
	int32_t error; /* positive errno */
};

enum df_change {
	DF_CHANGED_SIZE = 1,
	DF_CHANGED_CONTENT = 2,
};

struct df_file_state {
	uint64_t id;
	uint64_t size;	     /* of the backing file, now; if it is not local, known_size */
	uint64_t local;	     /* fstat(2) of the backing file asks no server */
	uint64_t known_size; /* the size of the last change that was applied */
	uint64_t generation;
	uint64_t resident; /* pages in the page cache */
	uint64_t poisoned; /* poisoned pages of all guests, not yet healed */
	uint64_t retrying; /* of those, being read again now */
	uint64_t mappings; /* regions of guests over this file */
	uint64_t writable_mappings;
	uint64_t child_mappings; /* of forked guests, which have no connection */
	uint64_t fills;		 /* page source reads under way */
	uint64_t waiting;	 /* faults parked on them */
};

enum df_inject {
	DF_INJECT_STORES = 1,	/* only when a store faults */
	DF_INJECT_TRUNCATE = 2, /* the file is truncated just before its page is read */
	DF_INJECT_EVICT = 4,	/* drop the clean pages of the page cache */
};

struct df_inject_options {
	uint64_t start, len; /* bytes of the file, whole pages */
	uint64_t delay_ns;
	uint64_t truncate; /* the size, with DF_INJECT_TRUNCATE */
	uint64_t seed;	   /* of `chance` */
	uint64_t tag;	   /* removes the rule; 0: it is removed only with all others */
	int32_t error;	   /* positive errno, or 0 */
	uint32_t after;	   /* let this many faults through first */
	uint32_t count;	   /* then hit this many; 0: all */
	uint32_t chance;   /* of 2^32 that a fault is hit; 0: every fault is hit */
	uint32_t flags;	   /* enum df_inject */
	uint32_t pad;
};

enum df_cache {
	DF_CACHE_WRITABLE = 1,
	DF_CACHE_SIZED = 2, /* for programs: its i_size is the file's, in whole pages, so
					 * that the kernel itself raises SIGBUS past EOF */
};

struct df_cache_state {
	uint64_t resident; /* bytes of all page caches */
	uint64_t limit;	   /* 0: none */
};

struct df_engine_options {
	uint64_t answer_ns;    /* poison a failed fault that has no answer after this */
	uint64_t source_ns;    /* a read of a page source fails with ETIMEDOUT after this */
	uint64_t spin_ns;      /* poll for the next fault this long before sleeping */
	uint32_t fill_threads; /* of the process, for sources that may block; a file has at most
					 * 8 of them, and its first one even beyond this limit */
	uint32_t pad;
};

enum {
	DF_HISTOGRAM = 40, /* bucket b counts latencies in [2^b, 2^(b+1)) ns */
};

struct df_counters {
	uint64_t faults;    /* page fault events read */
	uint64_t installed; /* pages put into guests */
	uint64_t filled;    /* bytes read from page sources */
	uint64_t retries;   /* fills discarded because the file changed */
	uint64_t parked;    /* faults that waited for a page source */
	uint64_t failed;    /* faults handed to Python */
	uint64_t overflow;  /* failed faults poisoned because the queue to Python was full */
	uint64_t late;	    /* failed faults or events poisoned at their deadline */
	uint64_t healed;    /* poisoned pages made readable again */
	uint64_t events_fork;
	uint64_t events_remap;
	uint64_t events_remove;
	uint64_t events_unmap;
	uint64_t again;	      /* EAGAIN: the guest's address space was changing */
	uint64_t latency[40]; /* event read -> page installed, DF_HISTOGRAM */
};

/* A program no longer maps a file: write the file back and release it. */
struct df_unmapped {
	uint64_t guest;
	uint64_t file;
};

struct df_guest_options {
	uint64_t features; /* UFFD_FEATURE bits the guest enabled */
	int32_t pid;
	uint32_t abi;	   /* enum df_abi */
	uint32_t cpuid;	   /* enum df_cpuid bits it was granted */
	uint32_t flags;	   /* enum df_guest_flag */
	uint32_t posted;   /* enum df_posted */
	uint32_t token_id; /* in each vCPU's first token; 0 in KVM */
};

enum df_guest_flag {
	DF_GUEST_TELL_FAILURES = 1, /* "not present" first, also if the fault fails at once: as KVM */
	DF_GUEST_ERROR_GFNS = 2,    /* remember failed pages per vCPU: their retry is synchronous */
	DF_GUEST_PROGRAM = 4,	    /* its mappings are read from the kernel */
};

/* DF_CDEF_END */

#endif
