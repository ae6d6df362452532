/* SPDX-License-Identifier: Apache-2.0
 *
 * call.c - calls an ioctl and keeps the name of one that failed; the abilities of this KVM.
 *
 * Owns that name, one per thread, like errno.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "base/cleanup.h"
#include "internal.h"

static _Thread_local const char *refused = "";

const char *df_kvm_call(void)
{
	return refused;
}

int kvm_refused(const char *name)
{
	refused = name;
	return -errno;
}

int kvm_ioctl(int fd, unsigned long request, void *arg, const char *name)
{
	int value = ioctl(fd, request, arg);

	return value < 0 ? kvm_refused(name) : value;
}

struct kvm_cpuid2 *kvm_cpuid(int kvm)
{
	for (uint32_t entries = 128; entries <= 1024; entries *= 2) {
		struct kvm_cpuid2 *cpuid =
			calloc(1, sizeof(*cpuid) + entries * sizeof(cpuid->entries[0]));

		if (!cpuid)
			return NULL;
		cpuid->nent = entries;
		if (!ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid))
			return cpuid;
		free(cpuid);
		if (errno != E2BIG)
			return NULL;
	}
	return NULL;
}

static void look(int kvm, const struct kvm_cpuid2 *cpuid, struct df_kvm_abilities *out)
{
	for (uint32_t i = 0; i < cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];

		switch (entry->function) {
		case 1:
			out->x2apic = entry->ecx >> 21 & 1;
			break;
		case 0x80000001:
			out->long_mode = entry->edx >> 29 & 1;
			break;
		case 0x40000001: /* KVM_CPUID_FEATURES: ASYNC_PF 4, ASYNC_PF_INT 14 */
			out->async_pf = (entry->eax >> 4 & 1) && (entry->eax >> 14 & 1);
			break;
		}
	}
	out->irqchip = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP) > 0;
	out->immediate_exit = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) > 0;
	out->stats = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_BINARY_STATS_FD) > 0;
	out->mce = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MCE) > 0;
	out->msi = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_SIGNAL_MSI) > 0;
	out->memory_fault = ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MEMORY_FAULT_INFO) > 0;
}

int df_kvm_probe(struct df_kvm_abilities *out)
{
	int kvm CLEANUP_CLOSE = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm CLEANUP_CLOSE = -1;
	struct kvm_cpuid2 *cpuid CLEANUP_FREE = NULL;

	memset(out, 0, sizeof(*out));
	if (kvm < 0)
		return kvm_refused("/dev/kvm");
	out->api = ioctl(kvm, KVM_GET_API_VERSION, 0);
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return kvm_refused("KVM_CREATE_VM");
	cpuid = kvm_cpuid(kvm);
	if (!cpuid)
		return kvm_refused("KVM_GET_SUPPORTED_CPUID");
	look(kvm, cpuid, out);
	return 0;
}
