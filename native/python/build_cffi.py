# SPDX-License-Identifier: Apache-2.0
"""Emit the cffi extension's C source: build_cffi.py ROOT HEADER... OUTPUT.

Headers are included by their path below ROOT.

cffi reads the text between the DF_CDEF markers, which is plain declarations, from the headers
that the C compiler reads.  So each struct is declared once.
"""

import re
import sys
from pathlib import Path

import cffi

# C calls these functions, which native/python/file.py defines.
FROM_C = 'extern "Python" int daxfault_fetch(void *context, uint64_t offset, uint64_t len);'
MARKED = re.compile(r"/\* DF_CDEF_BEGIN \*/(.*?)/\* DF_CDEF_END \*/", re.S)


def main() -> None:
    root, *headers, output = sys.argv[1:]
    ffi = cffi.FFI()
    for header in headers:
        text = Path(header).read_text()
        for part in MARKED.findall(text):
            ffi.cdef(part)
    ffi.cdef(FROM_C)
    includes = "\n".join(f'#include "{Path(header).resolve().relative_to(root)}"' for header in headers)
    ffi.set_source("daxfault.native._daxfault", includes)
    ffi.emit_c_code(output)


if __name__ == "__main__":
    main()
