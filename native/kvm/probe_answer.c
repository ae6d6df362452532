/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_answer.c - tries which rescues end the loop on this kernel, and which reports of the failed
 * access reach the guest.
 *
 * Owns no state; each trial has a new guest.  The gva of the access is known, so no instruction is
 * decoded.
 */
#include <errno.h>
#include <string.h>

#include "abi/abi.h"
#include "probe.h"

#define RESCUE_SECONDS 5
#define SPIN_SECONDS 0.05 /* in the loop, before it is ended */
#define ATTEMPTS 8

const char *const probe_rescues[PROBE_RESCUES] = { "unmap", "forbid", "shrink", "poison" };
const char *const probe_injections[PROBE_INJECTIONS] = { "area", "pf", "mc", "event" };

static int end_loop(struct trial *trial, int how)
{
	uint64_t tail = trial->hva + TRIAL_LIVE, len = DF_KVM_WINDOW_LEN - TRIAL_LIVE;

	switch (how) {
	case 0:
		return df_window_vacate(tail, len);
	case 1:
		return df_window_forbid(tail, len);
	case 2:
		return df_kvm_memslot(trial->machine, 1, DF_KVM_WINDOW, TRIAL_LIVE, trial->hva);
	default:
		return df_window_poison(tail, len);
	}
}

static const char *where(const struct trial *trial)
{
	const struct df_kvm_exit *exit = &trial->exit;

	switch (exit->kind) {
	case DF_KVM_EXIT_MMIO:
		return exit->gpa == DF_KVM_WINDOW + TRIAL_OFFSET ? "gpa" : "wrong";
	case DF_KVM_EXIT_MEMORY:
	case DF_KVM_EXIT_SIGBUS: {
		uint64_t offset = exit->kind == DF_KVM_EXIT_SIGBUS ? exit->hva - trial->hva
								   : exit->gpa - DF_KVM_WINDOW;

		return offset / DF_PAGE_SIZE == TRIAL_CUT ? "page" : "wrong";
	}
	default:
		return "nowhere";
	}
}

static bool failed_openly(uint32_t kind)
{
	return kind == DF_KVM_EXIT_EFAULT || kind == DF_KVM_EXIT_MMIO ||
	       kind == DF_KVM_EXIT_SIGBUS || kind == DF_KVM_EXIT_MEMORY;
}

/* Rescue a vCPU that spins.  -> whether it exited with the failed access. */
static bool rescued(struct trial *trial, int how, struct probe_rescue *rescue)
{
	double began = trial_now();
	int error = end_loop(trial, how);

	if (error) {
		snprintf(rescue->why, sizeof(rescue->why), "%s: %s", df_kvm_call(), strerror(-error));
		return false;
	}
	if (!trial_exits(trial, RESCUE_SECONDS)) {
		snprintf(rescue->why, sizeof(rescue->why), "the loop goes on");
		return false;
	}
	rescue->milliseconds = (trial_now() - began) * 1000;
	rescue->exit = trial_exit_name(&trial->exit);
	rescue->where = where(trial);
	rescue->works = failed_openly(trial->exit.kind) && strcmp(rescue->where, "wrong");
	if (!rescue->works)
		snprintf(rescue->why, sizeof(rescue->why), "KVM_RUN returned with something else");
	return rescue->works;
}

/* -> whether the vCPU stopped at the access.  `how` < 0: no rescue is needed. */
static bool stopped(struct trial *trial, const struct probe *probe, int what, int how,
		    struct probe_rescue *rescue)
{
	if (!trial_begin(trial, probe, &probe_cases[what]) || !trial_touch(trial)) {
		memcpy(rescue->why, trial->why, sizeof(rescue->why));
		return false;
	}
	if (how < 0)
		return trial_exits(trial, RESCUE_SECONDS) && failed_openly(trial->exit.kind);
	if (trial_exits(trial, SPIN_SECONDS)) {
		snprintf(rescue->why, sizeof(rescue->why), "it did not loop this time: %s",
			 trial_exit_name(&trial->exit));
		return false;
	}
	return rescued(trial, how, rescue);
}

/* -> whether the vCPU is at the access, and not in a trap handler. */
static bool at_access(const struct trial *trial)
{
	uint64_t gva = (trial->what->user ? DF_KVM_WINDOW_USER : DF_KVM_WINDOW) + TRIAL_OFFSET;
	struct df_kvm_registers now;

	return !df_kvm_registers(trial->machine, 0, &now) && now.rdi == gva &&
	       now.cpl == (trial->what->user ? 3 : 0);
}

/* -> -EAGAIN: the vCPU is not at the access, or cannot take the report now. */
static int report(struct trial *trial, uint32_t via)
{
	const struct df_kvm_failure failure = {
		.gva = (trial->what->user ? DF_KVM_WINDOW_USER : DF_KVM_WINDOW) + TRIAL_OFFSET,
		.gpa = DF_KVM_WINDOW + TRIAL_OFFSET,
		.user = trial->what->user,
	};

	return at_access(trial) ? df_kvm_report(trial->machine, 0, via, &failure) : -EAGAIN;
}

static void judge(const struct trial *trial, uint32_t via, struct probe_injection *injection)
{
	const struct df_kvm_mailbox *mailbox = trial_mailbox(trial);
	const struct df_kvm_result *result = &mailbox->results[0];
	bool user = trial->what->user;
	uint64_t gva = (user ? DF_KVM_WINDOW_USER : DF_KVM_WINDOW) + TRIAL_OFFSET;

	if (trial->exit.value == DF_KVM_RING_PANIC) {
		snprintf(injection->why, sizeof(injection->why), "the guest panicked at vector %llu",
			 (unsigned long long)mailbox->panic.vector);
		return;
	}
	injection->works = result->outcome == (user ? DF_KVM_SIGBUS : DF_KVM_FIXUP) &&
			   result->via == via && result->address == gva;
	if (!injection->works)
		snprintf(injection->why, sizeof(injection->why),
			 "outcome %u, via %u, gva %#llx of %#llx", result->outcome, result->via,
			 (unsigned long long)result->address, (unsigned long long)gva);
}

static void inject(struct trial *trial, uint32_t via, struct probe_injection *injection)
{
	for (int i = 0; i < ATTEMPTS; i++) {
		int error = report(trial, via);

		if (error && error != -EAGAIN) {
			snprintf(injection->why, sizeof(injection->why), "%s: %s", df_kvm_call(),
				 strerror(-error));
			return;
		}
		if (!trial_resume(trial) || !trial_exits(trial, RESCUE_SECONDS)) {
			snprintf(injection->why, sizeof(injection->why),
				 "the guest does not answer any more");
			return;
		}
		if (trial->exit.kind == DF_KVM_EXIT_DOORBELL) {
			judge(trial, via, injection);
			return;
		}
		if (!failed_openly(trial->exit.kind))
			break;
	}
	snprintf(injection->why, sizeof(injection->why), "not delivered; the last exit is %s",
		 trial_exit_name(&trial->exit));
}

static void try_rescues(struct probe *probe)
{
	probe->ended_by = -1;
	for (int i = 0; i < PROBE_RESCUES; i++) {
		struct probe_rescue *rescue = &probe->rescue[i];
		struct trial trial;

		if (probe->loop < 0) {
			snprintf(rescue->why, sizeof(rescue->why), "nothing loops here");
			continue;
		}
		if (stopped(&trial, probe, probe->loop, i, rescue) && probe->ended_by < 0)
			probe->ended_by = i;
		trial_end(&trial);
	}
}

static bool openly(const struct probe_found *found)
{
	return found->outcome == PROBE_EXIT && strcmp(found->exit, "DOORBELL");
}

static void try_injections(struct probe *probe)
{
	probe->injected = probe->ended_by < 0 ? -1 : probe->loop;
	for (int i = 0; i < PROBE_CASES && probe->injected < 0; i++)
		if (openly(&probe->found[i]))
			probe->injected = i;
	for (int i = 0; i < PROBE_INJECTIONS; i++) {
		struct probe_injection *injection = &probe->injection[i];
		struct probe_rescue ignored = { .why = "the access did not fail this time" };
		struct trial trial;

		if (probe->injected < 0) {
			snprintf(injection->why, sizeof(injection->why),
				 "no access can be had to fail openly");
			continue;
		}
		/* enum df_kvm_via is in the order of probe_injections */
		if (stopped(&trial, probe, probe->injected, probe->ended_by, &ignored))
			inject(&trial, DF_KVM_VIA_AREA + (uint32_t)i, injection);
		else
			memcpy(injection->why, ignored.why, sizeof(injection->why));
		trial_end(&trial);
	}
}

void probe_answers(struct probe *probe)
{
	try_rescues(probe);
	try_injections(probe);
}
