/* SPDX-License-Identifier: Apache-2.0
 *
 * interpreter.h - the guard in a Python process.  cffi reads the text between the markers.
 */
#ifndef DAXFAULT_GUARD_INTERPRETER_H
#define DAXFAULT_GUARD_INTERPRETER_H

/* DF_CDEF_BEGIN */

/* From now on, call `daxfault.guards._fault_noted()` after a guard of the main thread has noted a
 * fault. */
void df_guard_notify_python(void);

/* DF_CDEF_END */

#endif
