# SPDX-License-Identifier: Apache-2.0
"""The comparison on a real guest: what can be done on a stock kernel, on the same accesses.

    mechanisms       what stands in for a design: the memory, the rescue, the injection
    trial      a KVM guest under one of them, and how its accesses end
    behaviour  what is done in each column
    cost       what an error costs
    events     who said what to whom
    differ     where model and reality differ, and why

Nothing here knows what a mechanism is supposed to do, but `differ`.
"""
