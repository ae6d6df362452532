# SPDX-License-Identifier: Apache-2.0
"""Ordinary programs as guests: their connections, their files, their faults.

Owns everything between a program's connection and the engine.  Must not know how a program is made to
connect (native/program).
"""
