# SPDX-License-Identifier: Apache-2.0
"""The KVM guest's host: its machine, its window, and what becomes of a fault in it that fails.

    script       what the guest is to do, and what it says it did
    window       the memory under the window's memslot, and the ways to make a dead tail fail
    uffd_memory  such memory whose faults come to us
    decode       which memory an instruction touches
    fault        what an exit says of the access that failed, and by what it is known
    inject       the ways to tell the guest
    detector     a vCPU that faults without end, told from KVM's statistics
    machine      all of them together
    repro        the story of `daxfault repro --guest kvm`

Nothing here knows what the guest was asked to do when it decides what has failed.
"""
