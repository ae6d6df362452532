# SPDX-License-Identifier: Apache-2.0
"""What this machine can do: devices, settings, userfaultfd features, and the report on them.

Owns the questions to the machine.  Must not change anything on it, and prints nothing.
"""
