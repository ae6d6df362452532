/* SPDX-License-Identifier: Apache-2.0
 *
 * stress_host.h - what the two halves of the stress's host know of each other.
 */
#ifndef DAXFAULT_STRESS_HOST_H
#define DAXFAULT_STRESS_HOST_H

#include "engine/engine.h"
#include "stress.h"

extern struct shared *shared;
extern struct df_file *files[FILES];
extern bool programs; /* the guests are ordinary programs */
extern bool notices;  /* mtime is fine enough to tell every change behind the host */

void violation(unsigned file, unsigned page, const char *what, uint64_t value);
void check(int64_t value, const char *what); /* a negative errno is a violation */
void make_file(const char *directory, unsigned file);
void *file_body(void *file);   /* a thread that changes it until the end */
void check_end(unsigned file); /* nobody maps it any more: the last word */

#endif
