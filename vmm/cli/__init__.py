# SPDX-License-Identifier: Apache-2.0
"""The commands of `daxfault`, one file each.

A command's file owns its options and what it prints.  It imports nothing but
typer at its top, so that `daxfault --help` stays quick: the rest is imported
when the command runs.
"""
