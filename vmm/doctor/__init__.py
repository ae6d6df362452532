# SPDX-License-Identifier: Apache-2.0
"""The abilities of this machine: devices, settings, userfaultfd features, and the report on them.

Owns inspecting the machine.  Must not change anything on it, nor print.
"""
