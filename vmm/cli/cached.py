# SPDX-License-Identifier: Apache-2.0
"""The directory for downloads that are used again: kernels, sources.

Owns its path.  Must not download anything.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache() -> Path:
    """$XDG_CACHE_HOME/daxfault, which exists when this returns."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "daxfault"
    path.mkdir(parents=True, exist_ok=True)
    return path
