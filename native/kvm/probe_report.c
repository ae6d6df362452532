/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_report.c - the findings as one JSON object, whose keys docs/kvm.md explains.
 *
 * Owns the keys.  Must not judge.
 */
#include <inttypes.h>

#include "probe.h"

struct writer {
	FILE *out;
	bool first;			/* of its object */
};

static void key(struct writer *w, const char *name)
{
	fprintf(w->out, "%s\"%s\": ", w->first ? "" : ", ", name);
	w->first = false;
}

static void begin(struct writer *w, const char *name)
{
	if (name)
		key(w, name);
	fputc('{', w->out);
	w->first = true;
}

static void end(struct writer *w)
{
	fputc('}', w->out);
	w->first = false;
}

static void quoted(struct writer *w, const char *text)
{
	fputc('"', w->out);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			fprintf(w->out, "\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			fprintf(w->out, "\\u%04x", c);
		else
			fputc(c, w->out);
	}
	fputc('"', w->out);
}

/* "" is null */
static void put_text(struct writer *w, const char *name, const char *text)
{
	key(w, name);
	if (text && *text)
		quoted(w, text);
	else
		fputs("null", w->out);
}

static void put_bool(struct writer *w, const char *name, bool value)
{
	key(w, name);
	fputs(value ? "true" : "false", w->out);
}

static void put_number(struct writer *w, const char *name, uint64_t value)
{
	key(w, name);
	fprintf(w->out, "%" PRIu64, value);
}

static void put_real(struct writer *w, const char *name, double value)
{
	key(w, name);
	fprintf(w->out, "%.3f", value);
}

static void put_null(struct writer *w, const char *name)
{
	put_text(w, name, NULL);
}

static void put_abilities(struct writer *w, const struct probe_host *host)
{
	const struct df_kvm_abilities *can = &host->can;

	begin(w, "abilities");
	put_bool(w, "async_pf", can->async_pf);
	put_bool(w, "immediate_exit", can->immediate_exit);
	put_bool(w, "irqchip", can->irqchip);
	put_bool(w, "long_mode", can->long_mode);
	put_bool(w, "mce", can->mce);
	put_bool(w, "memory_fault", can->memory_fault);
	put_bool(w, "msi", can->msi);
	put_bool(w, "stats", can->stats);
	put_bool(w, "x2apic", can->x2apic);
	end(w);
}

static void put_host(struct writer *w, const struct probe_host *host)
{
	begin(w, "kernel");
	put_text(w, "release", host->system.release);
	put_text(w, "version", host->system.version);
	put_text(w, "machine", host->system.machine);
	end(w);
	begin(w, "cpu");
	put_text(w, "vendor", host->vendor);
	put_text(w, "model", host->model);
	put_text(w, "hypervisor", host->hypervisor);
	end(w);
	begin(w, "kvm");
	put_text(w, "backend", host->backend);
	put_bool(w, "nested", host->nested);
	key(w, "modules");
	fputc('[', w->out);
	for (int i = 0; host->modules[i]; i++) {
		fputs(i ? ", " : "", w->out);
		quoted(w, host->modules[i]);
	}
	fputc(']', w->out);
	put_text(w, "signature", host->signature);
	put_number(w, "features", host->features);
	put_abilities(w, host);
	put_bool(w, "spin", host->spin);
	end(w);
}

static void put_case(struct writer *w, const struct probe_case *what, const struct probe_found *found)
{
	static const char *const outcomes[] = {
		[PROBE_UNTRIED] = "untried", [PROBE_LOOP] = "loop", [PROBE_SILENT] = "silent", [PROBE_EXIT] = "exit",
	};
	bool watched = found->outcome == PROBE_LOOP || found->outcome == PROBE_SILENT;

	begin(w, what->name);
	put_bool(w, "async_pf", what->apf);
	put_bool(w, "interrupts", what->irqs);
	put_bool(w, "irqchip", what->irqchip);
	put_number(w, "ring", what->user ? 3 : 0);
	put_text(w, "outcome", outcomes[found->outcome]);
	put_text(w, "exit", found->exit);
	if (watched) {
		put_number(w, "faults", found->faults);
		put_real(w, "per_second", (double)found->faults / found->seconds);
		put_text(w, "counted_by", found->counted ? "kvm" : "guest");
		put_number(w, "not_present", found->not_present);
		put_number(w, "ready", found->ready);
	} else {
		put_null(w, "faults");
		put_null(w, "per_second");
		put_null(w, "counted_by");
		put_null(w, "not_present");
		put_null(w, "ready");
	}
	put_text(w, "why", found->why);
	end(w);
}

static void put_rescue(struct writer *w, const char *name, const struct probe_rescue *rescue, bool tried)
{
	begin(w, name);
	if (tried)
		put_bool(w, "works", rescue->works);
	else
		put_null(w, "works");
	put_text(w, "exit", rescue->exit);
	put_text(w, "where", rescue->where);
	if (rescue->exit)
		put_real(w, "milliseconds", rescue->milliseconds);
	else
		put_null(w, "milliseconds");
	put_text(w, "why", rescue->why);
	end(w);
}

static void put_findings(struct writer *w, const struct probe *probe)
{
	begin(w, "cases");
	for (int i = 0; i < PROBE_CASES; i++)
		put_case(w, &probe_cases[i], &probe->found[i]);
	end(w);
	put_text(w, "rescued", probe->loop < 0 ? NULL : probe_cases[probe->loop].name);
	begin(w, "rescues");
	for (int i = 0; i < PROBE_RESCUES; i++)
		put_rescue(w, probe_rescues[i], &probe->rescue[i], probe->loop >= 0);
	end(w);
	begin(w, "told");
	put_text(w, "case", probe->told < 0 ? NULL : probe_cases[probe->told].name);
	put_text(w, "rescue", probe->ended_by < 0 ? NULL : probe_rescues[probe->ended_by]);
	end(w);
	begin(w, "injections");
	for (int i = 0; i < PROBE_INJECTIONS; i++) {
		begin(w, probe_injections[i]);
		if (probe->told < 0)
			put_null(w, "works");
		else
			put_bool(w, "works", probe->injection[i].works);
		put_text(w, "why", probe->injection[i].why);
		end(w);
	}
	end(w);
}

void probe_report(const struct probe *probe, FILE *out)
{
	struct writer w = { .out = out };
	bool usable = !probe->unusable[0];

	begin(&w, NULL);
	put_number(&w, "schema", 1);
	put_bool(&w, "usable", usable);
	put_text(&w, "reason", probe->unusable);
	put_host(&w, &probe->host);
	if (usable) {
		put_bool(&w, "loops", probe->loop >= 0);
		put_findings(&w, probe);
	}
	put_real(&w, "seconds", probe->seconds);
	end(&w);
	fputc('\n', out);
}
