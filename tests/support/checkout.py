# SPDX-License-Identifier: Apache-2.0
"""Where things are in the checkout that the tests belong to."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
DOCS = ROOT / "docs"
SCRIPTS = ROOT / "scripts"
TESTS = ROOT / "tests"
SUPPORT = TESTS / "support"
PROGRAMS = TESTS / "programs"  # the C under test
