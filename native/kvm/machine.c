/* SPDX-License-Identifier: Apache-2.0
 *
 * machine.c - creates a VM with its memory and vCPUs, and frees it.
 *
 * Owns struct df_kvm.  Must not act on an exit.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "internal.h"

static int load(struct df_kvm *machine)
{
	machine->ram = mmap(NULL, DF_KVM_RAM_LEN, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (machine->ram == MAP_FAILED) {
		machine->ram = NULL;
		return kvm_refused("mmap of the guest's memory");
	}
	/* a forked child must not share the machine */
	madvise(machine->ram, DF_KVM_RAM_LEN, MADV_DONTFORK);
	memcpy(machine->ram + DF_KVM_IMAGE, kvm_image, kvm_image_len);
	return df_kvm_memslot(machine, 0, 0, DF_KVM_RAM_LEN, (uintptr_t)machine->ram);
}

static int add_vcpu(struct df_kvm *machine, struct vcpu *vcpu, uint32_t number,
		    struct kvm_cpuid2 *cpuid)
{
	int fd = ioctl(machine->vm, KVM_CREATE_VCPU, (unsigned long)number);

	if (fd < 0)
		return kvm_refused("KVM_CREATE_VCPU");
	vcpu->machine = machine;
	vcpu->number = number;
	vcpu->fd = fd;
	vcpu->stats_fd = stats_open(fd);
	pthread_cond_init(&vcpu->changed, NULL);
	machine->vcpus = number + 1;
	vcpu->run = mmap(NULL, machine->run_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vcpu->run == MAP_FAILED) {
		vcpu->run = NULL;
		return kvm_refused("mmap of a vCPU");
	}
	return vcpu_setup(vcpu, cpuid);
}

static int add_vcpus(struct df_kvm *machine, uint32_t vcpus)
{
	struct kvm_cpuid2 *cpuid CLEANUP_FREE = kvm_cpuid(machine->kvm);
	int error = cpuid ? 0 : kvm_refused("KVM_GET_SUPPORTED_CPUID");

	for (uint32_t i = 0; i < vcpus && !error; i++)
		error = add_vcpu(machine, &machine->vcpu[i], i, cpuid);
	for (uint32_t i = 0; i < vcpus && !error; i++)
		error = vcpu_start(&machine->vcpu[i]);
	return error;
}

static int open_vm(struct df_kvm *machine, bool irqchip)
{
	int len;

	machine->kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (machine->kvm < 0)
		return kvm_refused("/dev/kvm");
	len = kvm_ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
	if (len < 0)
		return len;
	machine->run_len = (size_t)len;
	machine->vm = kvm_ioctl(machine->kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
	if (machine->vm < 0)
		return machine->vm;
	machine->exits_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (machine->exits_fd < 0)
		return kvm_refused("eventfd");
	machine->irqchip = irqchip;
	return irqchip ? kvm_ioctl(machine->vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP") : 0;
}

int df_kvm_new(const struct df_kvm_options *options, struct df_kvm **out)
{
	struct df_kvm *machine;
	int error;

	if (!options->vcpus || options->vcpus > DF_KVM_MAX_VCPUS) {
		errno = EINVAL;
		return kvm_refused("the number of vCPUs");
	}
	machine = calloc(1, sizeof(*machine));
	if (!machine)
		return kvm_refused("calloc");
	machine->kvm = machine->vm = machine->exits_fd = -1;
	machine->spin = options->spin;
	pthread_mutex_init(&machine->lock, NULL);
	pthread_cond_init(&machine->left, NULL);
	error = open_vm(machine, options->irqchip);
	if (!error)
		error = load(machine);
	if (!error)
		error = add_vcpus(machine, options->vcpus);
	if (error) {
		df_kvm_free(machine);
		return error;
	}
	*out = machine;
	return 0;
}

void df_kvm_free(struct df_kvm *machine)
{
	for (uint32_t i = 0; i < machine->vcpus; i++)
		vcpu_end(&machine->vcpu[i]);
	for (uint32_t i = 0; i < machine->vcpus; i++) {
		struct vcpu *vcpu = &machine->vcpu[i];

		if (vcpu->run)
			munmap(vcpu->run, machine->run_len);
		cleanup_close(&vcpu->stats_fd);
		cleanup_close(&vcpu->fd);
		pthread_cond_destroy(&vcpu->changed);
	}
	cleanup_close(&machine->vm);
	cleanup_close(&machine->kvm);
	cleanup_close(&machine->exits_fd);
	if (machine->ram)
		munmap(machine->ram, DF_KVM_RAM_LEN);
	pthread_cond_destroy(&machine->left);
	pthread_mutex_destroy(&machine->lock);
	free(machine);
}

void *df_kvm_ram(struct df_kvm *machine)
{
	return machine->ram;
}

int df_kvm_exits_fd(struct df_kvm *machine)
{
	return machine->exits_fd;
}

static int put_memslot(struct df_kvm *machine, uint32_t slot, uint64_t gpa, uint64_t len, uint64_t hva)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = hva,
	};

	return kvm_ioctl(machine->vm, KVM_SET_USER_MEMORY_REGION, &region,
			 "KVM_SET_USER_MEMORY_REGION");
}

int df_kvm_memslot(struct df_kvm *machine, uint32_t slot, uint64_t gpa, uint64_t len, uint64_t hva)
{
	int error;

	/* KVM waits for the vCPUs that may use the old slots (synchronize_srcu_expedited() in
	 * kvm_swap_active_memslots()); with a vCPU in a fault loop that took 4 to 20 ms, three
	 * times */
	vcpus_hold(machine);
	error = put_memslot(machine, slot, gpa, 0, hva);
	if (len && (!error || error == -EINVAL)) /* there was none */
		error = put_memslot(machine, slot, gpa, len, hva);
	vcpus_release(machine);
	return error;
}

int df_kvm_msi(struct df_kvm *machine, uint32_t vcpu, uint32_t vector)
{
	struct kvm_msi msi = { .address_lo = 0xfee00000 | vcpu << 12, .data = vector };

	return kvm_ioctl(machine->vm, KVM_SIGNAL_MSI, &msi, "KVM_SIGNAL_MSI");
}
