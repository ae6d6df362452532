/* SPDX-License-Identifier: Apache-2.0
 *
 * stats.c - KVM's own counters of a vCPU (KVM_GET_STATS_FD, Linux 5.14).
 *
 * Owns no state: struct vcpu has the descriptor.  The vCPU may run while it is read.
 * Layout: Documentation/virt/kvm/api.rst, 4.134.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

#define MOST_BYTES 65536
#define MOST_STATS 128

int stats_open(int fd)
{
	return ioctl(fd, KVM_GET_STATS_FD, NULL);
}

static int parse(const char *from, size_t len, struct df_kvm_stat *out, int most)
{
	const struct kvm_stats_header *header = (const void *)from;
	size_t each;
	int n = 0;

	if (len < sizeof(*header))
		return -EIO;
	each = sizeof(struct kvm_stats_desc) + header->name_size;
	for (uint32_t i = 0; i < header->num_desc && n < most; i++) {
		const struct kvm_stats_desc *desc =
			(const void *)(from + header->desc_offset + i * each);
		size_t at = header->data_offset;

		if ((size_t)header->desc_offset + (i + 1) * each > len)
			return -EIO;
		at += desc->offset;
		if (desc->size != 1 || at + 8 > len)
			continue; /* a histogram */
		strncpy(out[n].name, desc->name, sizeof(out[n].name) - 1);
		out[n].name[sizeof(out[n].name) - 1] = 0;
		memcpy(&out[n].value, from + at, 8);
		n++;
	}
	return n;
}

int df_kvm_stats(struct df_kvm *machine, uint32_t vcpu, struct df_kvm_stat *out, int most)
{
	char *buffer CLEANUP_FREE = NULL;
	ssize_t n;

	if (vcpu >= machine->vcpus)
		return -EINVAL;
	if (machine->vcpu[vcpu].stats_fd < 0) {
		errno = ENOSYS;
		return kvm_refused("KVM_GET_STATS_FD");
	}
	buffer = malloc(MOST_BYTES);
	if (!buffer)
		return kvm_refused("malloc");
	n = pread(machine->vcpu[vcpu].stats_fd, buffer, MOST_BYTES, 0);
	return n < 0 ? kvm_refused("reading the statistics") : parse(buffer, (size_t)n, out, most);
}

int df_kvm_faults(struct df_kvm *machine, uint32_t vcpu, struct df_kvm_faults *out)
{
	struct df_kvm_stat stats[MOST_STATS];
	int n = df_kvm_stats(machine, vcpu, stats, MOST_STATS);

	memset(out, 0, sizeof(*out));
	for (int i = 0; i < n; i++) {
		if (!strcmp(stats[i].name, "pf_fixed"))
			out->fixed = stats[i].value;
		else if (!strcmp(stats[i].name, "pf_taken") || !strcmp(stats[i].name, "pf_guest"))
			out->taken = stats[i].value > out->taken ? stats[i].value : out->taken;
	}
	return n < 0 ? n : 0;
}
