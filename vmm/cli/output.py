# SPDX-License-Identifier: Apache-2.0
"""How scripts that take minutes show how far they are.  Owns stderr meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console


class Teller:
    """Progress on stderr: a line that changes on a terminal, otherwise a line each."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("starting")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        with self._status if self._console.is_terminal else contextlib.nullcontext():
            yield

    def __call__(self, what: str) -> None:
        if self._console.is_terminal:
            self._status.update(what)
        else:
            print(what, file=sys.stderr, flush=True)
