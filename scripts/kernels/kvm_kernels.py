# SPDX-License-Identifier: Apache-2.0
"""Finds, downloads and unpacks kernels for scripts/kernels/kvm_matrix.py and linux_guest.py.

Owns the cache of packages ($XDG_CACHE_HOME/daxfault) and the initramfs.  Must not boot
anything.  Debian packages are fetched by `apt-get download` and never installed.
"""

from __future__ import annotations

import dataclasses
import gzip
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from daxfault.vmm.cli.cached import cache
from daxfault.vmm.errors import Unsupported

# A package of a fixed version.  "cloud": a third of the size, and kvm_amd is in it.
_PACKAGE = re.compile(r"linux-image-((\d+\.\d+)[\w.+~-]*?)-cloud-amd64")
_MODULE = re.compile(r"(?:^|/)([\w-]+)\.ko(?:\.(?:xz|gz|zst))?$")
_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
# the known dependencies of kvm_amd; a second pass finds others
_LIKELY = {"kvm_amd", "kvm", "irqbypass", "ccp", "rng_core"}

# the beginning of init in every level 1
BEGIN = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /tmp
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t tmpfs none /tmp
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod /lib/$module.ko; done
"""
INIT = (
    BEGIN
    + """\
/bin/probe >/dev/ttyS1
/bin/busybox poweroff -f
"""
)


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A bzImage, and the modules of kvm_amd in the order in which they load."""

    name: str
    image: bytes
    modules: dict[str, bytes]


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def newest(names: Iterable[str]) -> list[str]:
    """The newest package with a fixed version of each series, oldest series first."""
    best: dict[str, tuple[list[int], str]] = {}
    for name in names:
        found = _PACKAGE.fullmatch(name)
        # linux-image-6.12-cloud-amd64 is a metapackage for the newest version
        if found and found[1] != found[2]:
            mine = (_version(found[1]), name)
            best[found[2]] = max(mine, best.get(found[2], mine))
    return [best[series][1] for series in sorted(best, key=_version)]


def _apt(*command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unsupported(f"{command[0]}: not here; name a bzImage instead") from None


def _lists_read(progress: Callable[[str], None]) -> bool:
    """Update APT's lists, which only root may do: a new machine has none, and an old one has outdated
    packages."""
    if os.geteuid() != 0:
        return False
    progress("reading the package lists")
    return _apt("apt-get", "-q", "-o", "DPkg::Lock::Timeout=600", "update").returncode == 0


def offered(progress: Callable[[str], None]) -> list[str]:
    """newest() of the packages that APT knows."""
    search = ("apt-cache", "--names-only", "search", "^linux-image-.*-cloud-amd64$")
    names = newest(line.split()[0] for line in _apt(*search).stdout.splitlines())
    if not names and _lists_read(progress):
        names = newest(line.split()[0] for line in _apt(*search).stdout.splitlines())
    if not names:
        raise Unsupported(
            "APT knows no linux-image-*-cloud-amd64: run `apt-get update`, or name a .deb or a bzImage"
        )
    return names


def _pattern(package: str) -> str | None:
    """The name pattern of the file of APT's candidate version, or None."""
    shown = _apt("apt-cache", "--no-all-versions", "show", package)
    version = re.search(r"^Version: (\S+)", shown.stdout, re.MULTILINE)
    return f"{package}_{version[1].replace(':', '%3a')}_*.deb" if version else None


def fetched(package: str, progress: Callable[[str], None]) -> Path:
    """The package's file, downloaded if it is not in the cache."""
    folder = cache()
    pattern = _pattern(package)
    if pattern is None and _lists_read(progress):
        pattern = _pattern(package)
    if pattern is None:
        raise Unsupported("APT knows no such package; run `apt-get update`")
    found = sorted(folder.glob(pattern))
    if not found:
        progress(f"{package}: downloading")
        done = _apt("apt-get", "download", package, folder=folder)
        if done.returncode and _lists_read(progress):
            pattern = _pattern(package) or pattern
            done = _apt("apt-get", "download", package, folder=folder)
        if done.returncode:
            words = done.stderr.strip().splitlines()
            raise Unsupported(f"apt-get download {package}: {words[-1] if words else done.returncode}")
        found = sorted(folder.glob(pattern))
    if not found:
        raise Unsupported(f"{package}: apt-get did not put it into {folder}")
    return found[-1]


def members(package: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The package's files whose paths `wanted` accepts."""
    found = {}
    try:
        source = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise Unsupported("dpkg-deb: not here; name a bzImage instead") from None
    with source, tarfile.open(fileobj=source.stdout, mode="r|") as archive:
        for member in archive:
            if member.isfile() and wanted(member.name):
                file = archive.extractfile(member)
                found[member.name] = file.read() if file else b""
    return found


def busybox(progress: Callable[[str], None]) -> bytes:
    """A static busybox."""
    here = Path("/bin/busybox")
    if here.exists() and is_static(content := here.read_bytes()):
        return content
    found = members(fetched("busybox-static", progress), lambda path: path.endswith("bin/busybox"))
    if not found:
        raise Unsupported("busybox-static: no busybox in it")
    return next(iter(found.values()))


def is_static(program: bytes) -> bool:
    """An ELF file without an interpreter (PT_INTERP, 3)."""
    start, size, count = (
        int.from_bytes(program[at : at + length], "little") for at, length in ((32, 8), (54, 2), (56, 2))
    )
    kinds = (program[start + size * i : start + size * i + 4] for i in range(count))
    return program[:4] == b"\x7fELF" and b"\3\0\0\0" not in kinds


def _module_name(path: str) -> str | None:
    found = _MODULE.search(path)
    return found[1].replace("-", "_") if found else None


def _unpacked(path: str, content: bytes) -> bytes:
    if path.endswith(".xz"):
        return lzma.decompress(content)
    if path.endswith(".gz"):
        return gzip.decompress(content)
    if path.endswith(".zst"):
        try:
            return subprocess.run(["zstd", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
        except FileNotFoundError:
            raise Unsupported(f"{path}: there is no zstd here to unpack it") from None
    return content


def depends(module: bytes) -> list[str]:
    """The dependencies in a module's .modinfo."""
    found = _DEPENDS.search(module)
    names = found[1].decode().split(",") if found else []
    return [name.replace("-", "_") for name in names if name]


def in_order(modules: dict[str, bytes]) -> dict[str, bytes]:
    """kvm_amd after its dependencies; missing modules are built in."""
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in modules and name not in order:
            for below in depends(modules[name]):
                add(below)
            order[name] = modules[name]

    add("kvm_amd")
    return order


def of_package(package: Path, name: str) -> Kernel:
    """The kernel of a linux-image package."""
    modules: dict[str, bytes] = {}
    image = b""
    looked: set[str] = set()
    wanted = set(_LIKELY)
    while wanted:
        found = members(
            package,
            lambda path, wanted=wanted: "/vmlinuz-" in path or _module_name(path) in wanted,  # type: ignore[misc]
        )
        for path, content in found.items():
            module = _module_name(path)
            if module is None:
                image = content
            else:
                modules[module] = _unpacked(path, content)
        looked |= wanted
        wanted = {below for module in modules.values() for below in depends(module)} - looked
    if not image:
        raise Unsupported(f"{package}: no vmlinuz in it")
    return Kernel(name, image, in_order(modules))


def of_image(image: Path, modules: Path | None) -> Kernel:
    """A bzImage; `modules` is its lib/modules/VERSION, or None when KVM is built in."""
    found = {}
    for path in modules.rglob("*.ko*") if modules else ():
        name = _module_name(path.name)
        if name in _LIKELY:
            found[name] = _unpacked(path.name, path.read_bytes())
    return Kernel(image.name, image.read_bytes(), in_order(found))


def with_libraries(program: str) -> dict[str, tuple[int, bytes]]:
    """A program and the shared libraries that ldd(1) finds for it, as files of an archive."""
    path = shutil.which(program)
    if path is None:
        raise Unsupported(f"{program}: not here")
    listed = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    found = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed, re.MULTILINE)
    files = {f"bin/{program}": (0o755, Path(path).read_bytes())}
    return files | {library.lstrip("/"): (0o755, Path(library).read_bytes()) for library in found}


def modules_of(kernel: Kernel) -> dict[str, tuple[int, bytes]]:
    """A kernel's modules, as files of an archive; BEGIN loads them."""
    files = {f"lib/{name}.ko": (0o644, module) for name, module in kernel.modules.items()}
    return {"modules": (0o644, "".join(f"{name}\n" for name in kernel.modules).encode()), **files}


def archive(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An initramfs of paths, permissions and contents, with their directories and /dev.

    A cpio archive, "newc": Documentation/driver-api/early-userspace/buffer-format.rst.
    """
    folders = {"dev"} | {str(folder) for path in files for folder in list(Path(path).parents)[:-1]}
    entries = [(folder, 0o040755, b"") for folder in sorted(folders)]
    entries += [(path, 0o100000 | mode, content) for path, (mode, content) in files.items()]
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4)
        out += content
        out += bytes(-len(out) % 4)
    return bytes(out)


def initramfs(kernel: Kernel, probe: bytes, shell: bytes) -> bytes:
    """The initramfs that runs the probe on the kernel."""
    return archive(
        {
            "init": (0o755, INIT.encode()),
            "bin/busybox": (0o755, shell),
            "bin/probe": (0o755, probe),
            **modules_of(kernel),
        }
    )
