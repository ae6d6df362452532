/* SPDX-License-Identifier: Apache-2.0
 *
 * probe.h - kernel behaviour that only an experiment shows.
 * cffi reads the text between the markers (see abi.h).
 */
#ifndef DAXFAULT_PROBE_H
#define DAXFAULT_PROBE_H

/* DF_CDEF_BEGIN */

/* -> the si_code of the SIGBUS that a poisoned page raises: 4, BUS_MCEERR_AR, or 2, BUS_ADRERR,
 * on a kernel without CONFIG_MEMORY_FAILURE; or a negative errno, EINVAL before Linux 6.6, which
 * added UFFDIO_POISON. */
int df_probe_poison(void);

/* DF_CDEF_END */

#endif
