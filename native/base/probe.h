/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.h - questions about the kernel that only an experiment answers.
 * The text between the markers is also cffi's (see abi.h).
 */
#ifndef DAXFAULT_PROBE_H
#define DAXFAULT_PROBE_H

/* DF_CDEF_BEGIN */

/* The si_code of the SIGBUS that a poisoned page raises: 4, BUS_MCEERR_AR, or
 * 2, BUS_ADRERR, from a kernel without CONFIG_MEMORY_FAILURE; or a negative
 * errno, EINVAL where UFFDIO_POISON is not known (before Linux 6.6). */
int df_probe_poison(void);

/* DF_CDEF_END */

#endif
