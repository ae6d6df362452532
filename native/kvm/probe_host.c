/* SPDX-License-Identifier: Apache-2.0
 *
 * probe_host.c - the kernel, the CPU and the kind of KVM.
 *
 * Owns nothing.  Must not run a vCPU.
 */
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "probe.h"

#define HYPERVISOR (1U << 31) /* CPUID 1, %ecx */
#define VMX (1U << 5)
#define SVM (1U << 2) /* CPUID 0x80000001, %ecx */

static void text(char *to, const uint32_t *registers, int n)
{
	memcpy(to, registers, (size_t)n * 4);
	to[n * 4] = 0;
}

static void look_at_cpu(struct probe_host *host, bool *vmx, bool *svm)
{
	uint32_t a = 0, b = 0, c = 0, d = 0, model[12] = { 0 };

	if (__get_cpuid(0, &a, &b, &c, &d))
		text(host->vendor, (uint32_t[]){ b, d, c }, 3);
	for (uint32_t i = 0; i < 3; i++)
		__get_cpuid(0x80000002 + i, &model[4 * i], &model[4 * i + 1], &model[4 * i + 2],
			    &model[4 * i + 3]);
	text(host->model, model, 12);
	__get_cpuid(1, &a, &b, &c, &d);
	*vmx = c & VMX;
	host->nested = c & HYPERVISOR;
	*svm = __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & SVM);
	if (!host->nested)
		return;
	__cpuid(0x40000000, a, b, c, d);
	text(host->hypervisor, (uint32_t[]){ b, c, d }, 3);
}

static bool has_module(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/sys/module/%s", name);
	return !access(path, F_OK);
}

static void look_at_modules(struct probe_host *host, bool vmx, bool svm)
{
	static const char *const names[PROBE_MODULES] = { "kvm", "kvm_intel", "kvm_amd", "kvm_pvm" };
	int n = 0;

	for (int i = 0; i < PROBE_MODULES; i++)
		if (has_module(names[i]))
			host->modules[n++] = names[i];
	/* a built-in module is listed on any CPU; only the one for this CPU is in use */
	if (vmx && has_module("kvm_intel"))
		host->backend = "vmx";
	else if (svm && has_module("kvm_amd"))
		host->backend = "svm";
	else if (has_module("kvm_pvm"))
		host->backend = "pvm";
	else
		host->backend = "unknown";
}

static void look_at_signature(struct probe_host *host)
{
	int kvm CLEANUP_CLOSE = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	struct kvm_cpuid2 *cpuid CLEANUP_FREE = kvm < 0 ? NULL : kvm_cpuid(kvm);

	for (uint32_t i = 0; cpuid && i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		if (entry->function == 0x40000000)
			text(host->signature, (uint32_t[]){ entry->ebx, entry->ecx, entry->edx }, 3);
		if (entry->function == 0x40000001)
			host->features = entry->eax;
	}
}

static void explain(int error, char *to, size_t room)
{
	switch (error) {
	case -ENOENT:
	case -ENODEV:
	case -ENXIO:
		snprintf(to, room, "%s: this machine has no KVM", df_kvm_call());
		break;
	case -EACCES:
	case -EPERM:
		snprintf(to, room, "%s: not permitted to uid %u", df_kvm_call(), geteuid());
		break;
	default:
		snprintf(to, room, "%s: %s", df_kvm_call(), strerror(-error));
	}
}

void probe_host(struct probe *probe)
{
	struct probe_host *host = &probe->host;
	bool vmx, svm;
	int error;

	uname(&host->system);
	look_at_cpu(host, &vmx, &svm);
	look_at_modules(host, vmx, svm);
	/* under TCG, "sti; hlt" of a nested guest was seen to stall */
	host->spin = !strcmp(host->hypervisor, "TCGTCGTCGTCG");
	error = df_kvm_probe(&host->can);
	if (error) {
		explain(error, probe->unusable, sizeof(probe->unusable));
		return;
	}
	look_at_signature(host);
	if (host->can.api != KVM_API_VERSION)
		snprintf(probe->unusable, sizeof(probe->unusable),
			 "/dev/kvm: API version %d, not %d", host->can.api, KVM_API_VERSION);
	else if (!host->can.long_mode)
		snprintf(probe->unusable, sizeof(probe->unusable),
			 "/dev/kvm: the guest's CPU has no long mode");
}
