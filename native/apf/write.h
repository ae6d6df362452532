/* SPDX-License-Identifier: Apache-2.0
 *
 * write.h - the host's writes to a vCPU's slot, for each ABI.  Must not know the engine.
 * Callers serialize their writes to a slot.  Concurrent writes by the guest harm only the guest.
 */
#ifndef DAXFAULT_APF_WRITE_H
#define DAXFAULT_APF_WRITE_H

#include <stdbool.h>
#include <stdint.h>

#include "abi/apf.h"

/* The end of a wait, or an error at the faulting instruction. */
struct df_word {
	uint32_t token;
	bool bad;	 /* an error; else "page ready" */
	int32_t error;	 /* positive errno */
	uint32_t reason; /* enum df_reason */
	uint32_t attempts;
	uint32_t event; /* number of the event */
	uint64_t gva;
};

/* "Not present".  false: the guest has not taken the last exception yet. */
bool df_slot_not_present(struct df_slot *slot, uint32_t abi, uint32_t token, uint64_t fault);
/* The guest has not taken this "not present" yet. */
bool df_slot_pending(const struct df_slot *slot, uint32_t abi, uint32_t token);
/* The slot is free for "page ready". */
bool df_slot_room(const struct df_slot *slot, uint32_t abi);
/* "Page ready", or an error with a token.  RFC_V1 delivers it by exception, the others by
 * interrupt. */
void df_slot_end(struct df_slot *slot, uint32_t abi, const struct df_word *word);
/* An error without a token, RETRY and REPORT only.  false: as df_slot_not_present(). */
bool df_slot_raise(struct df_slot *slot, uint32_t abi, const struct df_word *word);
/* The guest has not taken that error yet.  Withdraw it; false: the guest has taken it. */
bool df_slot_raised(const struct df_slot *slot, uint32_t abi, const struct df_word *word);
bool df_slot_withdraw(struct df_slot *slot);

/* The bits that grant and enable errors; 0: the ABI has no errors. */
uint32_t df_abi_cpuid_error(uint32_t abi);
uint64_t df_abi_msr_error(uint32_t abi);
/* Async pf is on: granted, and enabled with the bits that the ABI requires. */
bool df_abi_enabled(uint32_t abi, uint32_t cpuid, uint64_t msr_en);

#endif
