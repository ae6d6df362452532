/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_case.c - tries the outcome of an access to a removed page on this kernel.
 *
 * Owns the rule that distinguishes a loop from a slow vCPU.  Ends a loop only by freeing its
 * machine.
 */
#include <string.h>

#include "probe.h"

/* as vmm/kvm/detector.py */
#define LOOP_FAULTS 8
#define MOST_STATS 256

const struct probe_case probe_cases[PROBE_CASES] = {
	{ .name = "async_pf", .apf = true, .irqs = true, .irqchip = true, .user = true },
	{ .name = "irqs_on", .irqs = true, .irqchip = true, .user = true },
	{ .name = "irqs_off", .irqchip = true, .user = true },
	{ .name = "no_irqchip", .irqs = true, .user = true },
	{ .name = "kernel", .irqs = true, .irqchip = true },
};

struct counts {
	bool counted;
	uint64_t taken;
	uint64_t fixed;
	uint64_t not_present;
	uint64_t ready;
	double at;
};

static uint64_t more(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static struct counts count(const struct trial *trial)
{
	const volatile struct df_kvm_mailbox *mailbox = trial_mailbox(trial);
	struct counts now = { .not_present = mailbox->not_present,
			      .ready = mailbox->ready,
			      .at = trial_now() };
	struct df_kvm_stat stats[MOST_STATS];
	int n = df_kvm_stats(trial->machine, 0, stats, MOST_STATS);

	for (int i = 0; i < n; i++) {
		if (!strcmp(stats[i].name, "pf_taken") || !strcmp(stats[i].name, "pf_guest"))
			now.taken = more(now.taken, stats[i].value);
		if (strcmp(stats[i].name, "pf_fixed"))
			continue;
		now.fixed = stats[i].value;
		now.counted = true;
	}
	return now;
}

static void judge(const struct counts *a, const struct counts *b, struct probe_found *found)
{
	uint64_t not_present = b->not_present - a->not_present;

	found->not_present = not_present;
	found->ready = b->ready - a->ready;
	found->seconds = b->at - a->at;
	/* pf_taken exists since Linux 5.14, but some kinds of KVM never count it */
	found->counted = b->counted && b->taken > a->taken;
	found->faults = found->counted ? b->taken - a->taken : not_present;
	found->outcome = PROBE_SILENT;
	if (found->faults >= LOOP_FAULTS && (!found->counted || b->fixed == a->fixed))
		found->outcome = PROBE_LOOP;
}

static void watch(struct trial *trial, double seconds, struct probe_found *found)
{
	struct counts before, after;
	bool exits;

	/* first come ordinary faults: code, stack */
	exits = trial_exits(trial, seconds / 4);
	if (!exits) {
		before = count(trial);
		exits = trial_exits(trial, seconds);
		after = count(trial);
	}
	if (!exits) {
		judge(&before, &after, found);
		return;
	}
	found->outcome = PROBE_EXIT;
	found->exit = trial_exit_name(&trial->exit);
}

static void one(const struct probe *probe, const struct probe_case *what, struct probe_found *found)
{
	struct trial trial;

	if (what->apf && !probe->host.can.async_pf) {
		snprintf(found->why, sizeof(found->why),
			 "KVM offers no async page faults by interrupt");
		return;
	}
	if (what->irqchip && !probe->host.can.irqchip) {
		snprintf(found->why, sizeof(found->why), "KVM has no irqchip");
		return;
	}
	if (trial_begin(&trial, probe, what) && trial_touch(&trial))
		watch(&trial, probe->watch, found);
	else
		memcpy(found->why, trial.why, sizeof(found->why));
	trial_end(&trial);
}

void probe_faults(struct probe *probe)
{
	bool any = false;

	probe->loop = -1;
	for (int i = 0; i < PROBE_CASES; i++) {
		one(probe, &probe_cases[i], &probe->found[i]);
		any |= probe->found[i].outcome != PROBE_UNTRIED;
		if (probe->loop < 0 && probe->found[i].outcome == PROBE_LOOP)
			probe->loop = i;
	}
	if (!any)
		memcpy(probe->unusable, probe->found[PROBE_CASES - 1].why, sizeof(probe->unusable));
}
