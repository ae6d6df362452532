# SPDX-License-Identifier: Apache-2.0
"""daxfault: an exception instead of a dead interpreter when a mapping fails.

    import daxfault

    with daxfault.guard():
        total = array.sum()  # raises daxfault.MappingError if a page of it could not be had

Installed as the top-level package `daxfault`, and works for any mapping, with a host or without.
Owns the names that programs use; docs/guard.md says what it can and cannot do.
"""

from .faults import Fault, MappingError
from .guards import Guard, guard

__all__ = ["Fault", "Guard", "MappingError", "guard"]
