# SPDX-License-Identifier: Apache-2.0
"""Emit an executable's loaded bytes as C: embed.py ELF OUTPUT.

The guest becomes part of the extension, so that no separate file is installed.
Owns the flat form of the image: from the first loaded byte to the last.
"""

import struct
import sys
from pathlib import Path

PT_LOAD = 1


def flat(elf: bytes) -> bytes:
    """The loaded segments as one flat image."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise SystemExit("not a little-endian ELF64 file")
    (table,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    loads = []
    for i in range(count):
        kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", elf, table + i * size)
        if kind == PT_LOAD and length:
            loads.append((address, elf[offset : offset + length]))
    first = min(address for address, _ in loads)
    image = bytearray(max(address + len(data) for address, data in loads) - first)
    for address, data in loads:
        image[address - first : address - first + len(data)] = data
    return bytes(image)


def main() -> None:
    elf, output = (Path(argument) for argument in sys.argv[1:])
    image = flat(elf.read_bytes())
    rows = ",\n".join(",".join(map(str, image[i : i + 32])) for i in range(0, len(image), 32))
    output.write_text(
        f'#include "kvm/internal.h"\n\nconst unsigned char kvm_image[] = {{\n{rows}\n}};\n'
        "const unsigned long kvm_image_len = sizeof(kvm_image);\n"
    )


if __name__ == "__main__":
    main()
