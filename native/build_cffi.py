# SPDX-License-Identifier: Apache-2.0
"""Emit the cffi extension's C source: build_cffi.py HEADER... OUTPUT.

The contract headers are plain declarations between their DF_CDEF markers, so
the very text the C compiler reads is the text cffi reads: a struct is declared
once and cannot drift.
"""

import re
import sys
from pathlib import Path

import cffi

MARKED = re.compile(r"/\* DF_CDEF_BEGIN \*/(.*?)/\* DF_CDEF_END \*/", re.S)


def main() -> None:
    *headers, output = sys.argv[1:]
    ffi = cffi.FFI()
    for header in headers:
        text = Path(header).read_text()
        for part in MARKED.findall(text):
            ffi.cdef(part)
    includes = "\n".join(f'#include "{Path(header).name}"' for header in headers)
    ffi.set_source("native._daxfault", includes)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
