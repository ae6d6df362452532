# SPDX-License-Identifier: Apache-2.0
"""The cache directory for downloads: kernels, sources.

Owns its path.  Must not download anything.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """Make $XDG_CACHE_HOME/daxfault if needed; -> its path."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "daxfault"
    path.mkdir(parents=True, exist_ok=True)
    return path
