/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_report.c - writes the findings as one JSON object; docs/kvm.md explains its keys.
 *
 * Owns the keys.  Must not judge.
 */
#include "base/json.h"
#include "probe.h"

enum {
	REPORT_MAX = 1 << 16, /* eight times the usual size */
};

/* "" is null */
static void put_text(struct json *j, const char *key, const char *text)
{
	if (text && *text)
		json_text(j, key, text);
	else
		json_null(j, key);
}

static void put_abilities(struct json *j, const struct probe_host *host)
{
	const struct df_kvm_abilities *can = &host->can;

	json_object_begin(j, "abilities");
	json_bool(j, "async_pf", can->async_pf);
	json_bool(j, "immediate_exit", can->immediate_exit);
	json_bool(j, "irqchip", can->irqchip);
	json_bool(j, "long_mode", can->long_mode);
	json_bool(j, "mce", can->mce);
	json_bool(j, "memory_fault", can->memory_fault);
	json_bool(j, "msi", can->msi);
	json_bool(j, "stats", can->stats);
	json_bool(j, "x2apic", can->x2apic);
	json_object_end(j);
}

static void put_host(struct json *j, const struct probe_host *host)
{
	json_object_begin(j, "kernel");
	put_text(j, "release", host->system.release);
	put_text(j, "version", host->system.version);
	put_text(j, "machine", host->system.machine);
	json_object_end(j);
	json_object_begin(j, "cpu");
	put_text(j, "vendor", host->vendor);
	put_text(j, "model", host->model);
	put_text(j, "hypervisor", host->hypervisor);
	json_object_end(j);
	json_object_begin(j, "kvm");
	put_text(j, "backend", host->backend);
	json_bool(j, "nested", host->nested);
	json_list_begin(j, "modules");
	for (int i = 0; host->modules[i]; i++)
		json_text(j, NULL, host->modules[i]);
	json_list_end(j);
	put_text(j, "signature", host->signature);
	json_uint(j, "features", host->features);
	put_abilities(j, host);
	json_bool(j, "spin", host->spin);
	json_object_end(j);
}

static void put_case(struct json *j, const struct probe_case *what, const struct probe_found *found)
{
	static const char *const outcomes[] = {
		[PROBE_UNTRIED] = "untried",
		[PROBE_LOOP] = "loop",
		[PROBE_SILENT] = "silent",
		[PROBE_EXIT] = "exit",
	};
	bool watched = found->outcome == PROBE_LOOP || found->outcome == PROBE_SILENT;

	json_object_begin(j, what->name);
	json_bool(j, "async_pf", what->apf);
	json_bool(j, "interrupts", what->irqs);
	json_bool(j, "irqchip", what->irqchip);
	json_uint(j, "ring", what->user ? 3 : 0);
	put_text(j, "outcome", outcomes[found->outcome]);
	put_text(j, "exit", found->exit);
	if (watched) {
		json_uint(j, "faults", found->faults);
		json_real(j, "per_second", (double)found->faults / found->seconds);
		put_text(j, "counted_by", found->counted ? "kvm" : "guest");
		json_uint(j, "not_present", found->not_present);
		json_uint(j, "ready", found->ready);
	} else {
		json_null(j, "faults");
		json_null(j, "per_second");
		json_null(j, "counted_by");
		json_null(j, "not_present");
		json_null(j, "ready");
	}
	put_text(j, "why", found->why);
	json_object_end(j);
}

static void put_rescue(struct json *j, const char *name, const struct probe_rescue *rescue, bool tried)
{
	json_object_begin(j, name);
	if (tried)
		json_bool(j, "works", rescue->works);
	else
		json_null(j, "works");
	put_text(j, "exit", rescue->exit);
	put_text(j, "where", rescue->where);
	if (rescue->exit)
		json_real(j, "milliseconds", rescue->milliseconds);
	else
		json_null(j, "milliseconds");
	put_text(j, "why", rescue->why);
	json_object_end(j);
}

static void put_findings(struct json *j, const struct probe *probe)
{
	json_object_begin(j, "cases");
	for (int i = 0; i < PROBE_CASES; i++)
		put_case(j, &probe_cases[i], &probe->found[i]);
	json_object_end(j);
	put_text(j, "rescued", probe->loop < 0 ? NULL : probe_cases[probe->loop].name);
	json_object_begin(j, "rescues");
	for (int i = 0; i < PROBE_RESCUES; i++)
		put_rescue(j, probe_rescues[i], &probe->rescue[i], probe->loop >= 0);
	json_object_end(j);
	json_object_begin(j, "told");
	put_text(j, "case", probe->injected < 0 ? NULL : probe_cases[probe->injected].name);
	put_text(j, "rescue", probe->ended_by < 0 ? NULL : probe_rescues[probe->ended_by]);
	json_object_end(j);
	json_object_begin(j, "injections");
	for (int i = 0; i < PROBE_INJECTIONS; i++) {
		json_object_begin(j, probe_injections[i]);
		if (probe->injected < 0)
			json_null(j, "works");
		else
			json_bool(j, "works", probe->injection[i].works);
		put_text(j, "why", probe->injection[i].why);
		json_object_end(j);
	}
	json_object_end(j);
}

void probe_report(const struct probe *probe, FILE *out)
{
	static char text[REPORT_MAX];
	bool usable = !probe->unusable[0];
	struct json json, *j = &json;

	json_begin(j, text, sizeof(text) - 1);
	json_object_begin(j, NULL);
	json_uint(j, "schema", 1);
	json_bool(j, "usable", usable);
	put_text(j, "reason", probe->unusable);
	put_host(j, &probe->host);
	if (usable) {
		json_bool(j, "loops", probe->loop >= 0);
		put_findings(j, probe);
	}
	json_real(j, "seconds", probe->seconds);
	json_object_end(j);
	text[j->len] = '\n';
	fwrite(text, 1, j->len + 1, out);
}
