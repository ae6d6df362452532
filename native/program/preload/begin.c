/* SPDX-License-Identifier: Apache-2.0
 *
 * begin.c - initialises the preloaded library in a process.
 *
 * Owns the order: settings, fork handlers, the SIGBUS handler, then publishing the settings.
 * Constructors of other libraries may run, and map files, before ours, so every interposed function
 * calls begin() first.
 */
#include <errno.h>
#include <stdatomic.h>

#include "preload.h"

/* A thread that calls begin() while another one runs it finds the library off.  That happens
 * only if a constructor starts threads. */
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
