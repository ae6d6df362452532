# SPDX-License-Identifier: Apache-2.0
"""The KVM guest's host: its machine, its window, and the answers to faults that fail.

    window       the memory under the window's memslot, and the rescues that make a dead tail fail
    uffd_memory  memory for it whose faults this process serves
    decode       the memory operands of an instruction
    fault        the access that caused an exit, and the evidence for it
    inject       reports to the guest
    detector     detects a vCPU in a fault loop, by KVM's statistics
    machine      all of them together
    probe        runs daxfault-kvm-probe, and names its answers

Scripts for the guest are in native (kvm_script); fault does not use them to find the access.
"""
