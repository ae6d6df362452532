/* SPDX-License-Identifier: Apache-2.0
 *
 * hosting.h - what the files of the stand-in that is a host itself tell each other.
 *
 * Owns no state.
 *
 *	hosting.c	the file, how its pages are fetched, what failed faults get
 *	hosting_parse.c	the command that begins it
 *	hosted.c	one guest's connection
 *	hosted_wire.c	its messages
 */
#ifndef DAXFAULT_HOSTING_H
#define DAXFAULT_HOSTING_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "engine/engine.h"

/* A design of vmm/designs, whose decisions depend on nothing but how the vCPU waits:
 * what guests are offered, and what their failed faults get. */
struct hosting_design {
	enum df_abi abi;
	uint32_t cpuid;
	uint32_t flags;			/* enum df_guest_flag */
	struct hosting_answer {
		enum df_answer answer, otherwise;
	} answers[DF_WAIT_TOLD + 1];
};

/* What all guests of this host are shown. */
struct hosting {
	struct hosting_design design;
	struct df_engine *engine;
	struct df_file *file;
	uint64_t len;
};

/* Commands of the console (standin.h). */
const char *hosting_begin(char **words, int n);
const char *hosting_tell(char **words, int n);
void hosting_end(void);

/* The words of the command: NULL, or what is wrong. */
const char *hosting_parse(char **words, uint64_t *moffset, struct hosting *host);

/* Serves the guest behind `sock` until it is gone; takes the socket.  NULL, or why
 * its connection was closed. */
const char *hosted_serve(const struct hosting *host, int sock, pid_t pid);

/* ------------------------------------------------------------------ hosted_wire.c */

enum {
	HOSTED_FDS_MAX = 2,
};

struct hosted_message {
	union {
		struct df_header h;
		struct df_hello hello;
		struct df_open open;
		struct df_release release;
		struct df_setupmapping setup;
		struct df_removemapping remove;
	};
	int fds[HOSTED_FDS_MAX];	/* the caller's to close */
	int nfds;
};

extern const char hosted_hung_up[];

/* The next message, every field of it sane: NULL, hosted_hung_up, or what is wrong. */
const char *hosted_receive(int sock, struct hosted_message *m);
void hosted_close_fds(struct hosted_message *m);
/* `error` 0 with the message's own fields, if `whole`, or the header alone. */
int hosted_reply(int sock, struct hosted_message *m, int error, bool whole, int fd);

#endif
