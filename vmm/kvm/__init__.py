# SPDX-License-Identifier: Apache-2.0
"""The KVM guest's host: its machine, its window, and the answers to faults that fail.

    window       the memory under the window's memslot, and the rescues that make a dead tail fail
    uffd_memory  memory for it whose faults this process serves
    decode       which memory an instruction touches
    fault        which access an exit is about, and the evidence for it
    inject       reports to the guest
    detector     a vCPU that faults without end, by KVM's statistics
    machine      all of them together
    probe        daxfault-kvm-probe, and its answers in words

Scripts for the guest are native's (kvm_script).  The decision which access failed uses nothing of them.
"""
