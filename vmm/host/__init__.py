# SPDX-License-Identifier: Apache-2.0
"""The host of guests: their connections, their failed faults, and the policy for those.

Owns the engine's Python side.  Must not know ordinary programs (vmm/programs) or the command line.

    peer         the packets and descriptors that carry messages (native.wire)
    session      one guest's connection: its files, its window, its end
    host         the engine, its guests, and the policy thread
    watchdog     a guest that makes no progress
    healer       retries poisoned pages
    records      the record of each failed fault
    plain_files  guests whose files need no file server
    scratch      temporary files and mounts that are removed however the process ends
"""
