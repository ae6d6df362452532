# SPDX-License-Identifier: Apache-2.0
"""The comparison on a real guest: the mechanisms of a stock kernel, on the same accesses.

    mechanisms  the counterpart of a design: memory, rescue, injection
    trial       a KVM guest under one of them, and how its accesses end
    behaviour   the access of each column
    cost        the cost of an error
    events      the messages between host, KVM and guest
    differ      the differences between model and KVM, with reasons

Only `differ` knows the expected behaviour of a mechanism.
"""
