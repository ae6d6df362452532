# SPDX-License-Identifier: Apache-2.0
"""What a test needs of the system it runs on.

Owns skipping.  DAXFAULT_REQUIRE=1, set in CI, makes a missing feature fail.
"""

import os

import pytest


def require(condition: object, what: str) -> None:
    """Go on if `condition` is true; otherwise skip, naming `what` is missing."""
    if condition:
        return
    if os.environ.get("DAXFAULT_REQUIRE") == "1":
        pytest.fail(f"missing: {what} (DAXFAULT_REQUIRE=1)", pytrace=False)
    pytest.skip(f"missing: {what}")


def require_root() -> None:
    require(os.geteuid() == 0, "root")


def require_fuse() -> None:
    require(os.access("/dev/fuse", os.R_OK | os.W_OK), "/dev/fuse, readable and writable")
