# SPDX-License-Identifier: Apache-2.0
"""The commands of `daxfault`, one file each.

A command's file owns its options and its output.  At its top it imports only typer, `output`
and `names`, so that `daxfault --help` stays quick; the rest is imported when the command runs.
"""
