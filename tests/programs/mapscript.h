/* SPDX-License-Identifier: Apache-2.0
 *
 * mapscript.h - what the parts of mapscript.c share: names of files and mappings, and the answers.
 */
#ifndef MAPPER_H
#define MAPPER_H

#include <stdbool.h>
#include <stddef.h>

#define PAGE 4096L
#define NAMES 16

struct mapping {
	char *at;
	size_t len;
};

extern struct mapping maps[NAMES];
extern int files[NAMES];
extern int output; /* descriptor of the answers */

/* A line of answer. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* What a call returned, or its errno's name; done(): 0 whatever it returned. */
void result(long r);
void done(long r);
/* Runs of one byte: x*4096. */
void say_bytes(const unsigned char *bytes, long n);

/* The words of a script: a sum with "p" for pages; a letter's place; a file's path. */
long number(const char *s);
int slot(const char *name);
const char *path(const char *name);

#define FD(w) files[slot(w)]
#define AT(w, off) (maps[slot(w)].at + number(off))

/* Do what the words say, if it is theirs. */
bool call_on_file(char **w);
bool call_on_memory(char **w);
bool call_on_system(char **w);

/* SIGBUS and SIGSEGV of an access are its answer. */
void guard_accesses(void);

#endif
