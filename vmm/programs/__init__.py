# SPDX-License-Identifier: Apache-2.0
"""Ordinary programs as guests: their connections, their files, what became of their faults.

Owns everything between a program's wire and the engine.  Must not know how a program is
made to speak that wire (native/program).
"""
