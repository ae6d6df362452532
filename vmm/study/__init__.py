# SPDX-License-Identifier: Apache-2.0
"""The study of the loop: runs of a guest, for `repro`, `compare` and `trace`.

Owns the stories and the measurements.  Must not print.

    standin      the stand-in guest's process and console
    repro        the truncate loop and its end, on the stand-in; repro_kvm on a KVM guest
    compare      every design on the same accesses; page draws the result
    trace        one run, recorded; timeline writes it as a Trace Event file
"""
