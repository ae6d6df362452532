/* SPDX-License-Identifier: Apache-2.0
 *
 * interpreter.h - the guard in a Python process.  The text between the markers is also cffi's (see abi.h).
 */
#ifndef DAXFAULT_GUARD_INTERPRETER_H
#define DAXFAULT_GUARD_INTERPRETER_H

/* DF_CDEF_BEGIN */

/* From now on faults that the main thread's guards have noted are told to `daxfault.guards._fault_noted()`. */
void df_guard_tell_python(void);

/* DF_CDEF_END */

#endif
