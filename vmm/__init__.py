# SPDX-License-Identifier: Apache-2.0
"""vmm: the host. Guests, what becomes of their failed faults, and the command line.

Owns policy. Must not do per-page work on the success path: that is native's.
"""
