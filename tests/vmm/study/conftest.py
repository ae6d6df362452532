# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the commands that show and compare."""

from pathlib import Path

import pytest
from command_line import place_of_its_own
from needs import require_fuse


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory for temporary files; empty and unmounted again when the test has passed."""
    require_fuse()
    return place_of_its_own(tmp_path)
