/* SPDX-License-Identifier: Apache-2.0
 *
 * layout.c - checks at compile time that the layouts in apf.h match the ABIs.
 * Owns no code.
 */
#include <stddef.h>

#include "apf.h"

#define AT(type, field, offset) \
	_Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)

/* arch/x86/include/uapi/asm/kvm_para.h, struct kvm_vcpu_pv_apf_data: 68 bytes; the host writes
 * the first 64 */
AT(df_apf_mainline, flags, 0);
AT(df_apf_mainline, token, 4);
AT(df_apf_mainline, enabled, 64);
SIZE(df_apf_mainline, 68);

AT(df_apf_rfc_v1, reason, 0);
AT(df_apf_rfc_v1, faulting_gva, 8);
AT(df_apf_rfc_v1, enabled, 64);
SIZE(df_apf_rfc_v1, 72);

AT(df_apf_june_2020, flags, 0);
AT(df_apf_june_2020, token, 4);
AT(df_apf_june_2020, ready_flags, 8);
AT(df_apf_june_2020, enabled, 64);
SIZE(df_apf_june_2020, 68);

AT(df_apf_retry, error, 8);
AT(df_apf_retry, enabled, 64);
SIZE(df_apf_retry, 68);

AT(df_apf_report, flags, 0);
AT(df_apf_report, token, 4);
AT(df_apf_report, ready_flags, 8);
AT(df_apf_report, ready_gva, 16);
AT(df_apf_report, gva, 32);
AT(df_apf_report, enabled, 64);
SIZE(df_apf_report, 72);

AT(df_slot, tid, 72);
AT(df_slot, msr_en, 80);
AT(df_slot, cr2, 96);
AT(df_slot, irr, 104);
AT(df_slot, fault, 112);
SIZE(df_slot, 128);
_Static_assert(sizeof(struct df_slot) * DF_VCPU_MAX == DF_AREA_SIZE, "the area holds every slot");

typedef int df_not_empty; /* ISO C requires a declaration in every file */
