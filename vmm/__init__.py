# SPDX-License-Identifier: Apache-2.0
"""vmm: the host, its guests, the answers to failed faults, and the command line.

Owns policy. Must not do per-page work on the success path: that is native's.
"""
