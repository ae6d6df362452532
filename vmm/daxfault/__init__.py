# SPDX-License-Identifier: Apache-2.0
"""daxfault: an exception instead of a dead interpreter when a mapping fails.

    import daxfault

    with daxfault.guard():
        total = array.sum()  # raises daxfault.MappingError if a page of it could not be read

Installed as the top-level package `daxfault`.  Works for any mapping, with or without a host.
Owns the names that programs use; docs/guard.md has the limits.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .faults import Fault, MappingError
    from .guards import Guard, guard

__all__ = ["Fault", "Guard", "MappingError", "__version__", "guard"]

__version__: str
_HOME = {"Fault": "faults", "MappingError": "faults", "Guard": "guards", "guard": "guards"}


def __getattr__(name: str) -> Any:
    """Import the module of a name at its first use: the command line needs none of them."""
    import importlib

    value: object
    if name == "__version__":
        value = importlib.import_module("importlib.metadata").version("daxfault")
    elif name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
