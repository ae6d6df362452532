# SPDX-License-Identifier: Apache-2.0
"""descriptors.py N FORK: make and map N files in the current directory, which is more than the host can have.

Prints how many it mapped, the errnos of those it could not, and whether what it mapped is right, in a
forked child, too, with FORK 1.
"""

import errno
import mmap
import os
import sys

count, fork = int(sys.argv[1]), int(sys.argv[2])
maps: list[tuple[int, mmap.mmap]] = []
refused = set()
for i in range(count):
    try:
        fd = os.open(f"e{i}", os.O_RDWR | os.O_CREAT)
    except OSError as e:
        refused.add(errno.errorcode[e.errno or 0])
        continue
    os.ftruncate(fd, 8192)
    os.pwrite(fd, bytes([i % 250 + 1]), 0)
    try:
        maps.append((i, mmap.mmap(fd, 8192)))
    except OSError as e:
        refused.add(errno.errorcode[e.errno or 0])
    os.close(fd)
child = 0
if fork and maps:
    pid = os.fork()
    if pid == 0:
        maps[0][1][4097] = 9
        os._exit(maps[-1][1][0] != maps[-1][0] % 250 + 1)
    child = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
for i, m in maps:
    m[4096] = i % 250 + 1
right = all(m[0] == m[4096] == i % 250 + 1 for i, m in maps) and (not fork or maps[0][1][4097] == 9)
print(len(maps) > 0, sorted(refused), child, right)
