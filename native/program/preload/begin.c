/* SPDX-License-Identifier: Apache-2.0
 *
 * begin.c - the beginning of the preloaded library in a process.
 *
 * Owns the order: settings, fork handlers, the SIGBUS handler, and then settings() has them.
 * Other libraries' constructors may run, and map files, before ours: each function that we
 * interpose begins here.
 */
#include <errno.h>
#include <stdatomic.h>

#include "preload.h"

/* A thread that comes while another one is beginning finds nothing on.  There is one only where a
 * constructor starts threads. */
static atomic_bool begun;

void begin(void)
{
	int error = errno;

	if (atomic_load_explicit(&begun, memory_order_relaxed) || atomic_exchange(&begun, true))
		return;
	if (settings_read()->on) {
		fork_install();
		sigbus_install();
	}
	settings_publish();
	errno = error;
}

__attribute__((constructor)) static void construct(void)
{
	begin();
}
