# SPDX-License-Identifier: Apache-2.0
"""Public programs for scripts/suites/fs_suites.py that are packaged only as source: fetched and built.

Owns what is below $XDG_CACHE_HOME/daxfault/sources: source packages as APT has them, and what was
built from them.  Nothing of it is ours, is installed, or is committed.

    passthrough_hp   from fuse3, libfuse's example
    fsx, fsstress    from diod, which carries them as its own tests
    fstest           from diod too: pjd's POSIX file system test suite
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

from daxfault.vmm.cli.cached import cache
from daxfault.vmm.errors import Unsupported

Progress = Callable[[str], None]

_KEYRINGS = {
    "Debian": Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    "Ubuntu": Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"),
}


def _run(command: list[str | Path], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    except FileNotFoundError:
        raise Unsupported(f"{command[0]}: not here") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Unsupported(f"{shlex.join(map(str, command[:3]))} ...: {said[-1] if said else done.returncode}")
    return done.stdout


def _repositories() -> str:
    """deb-src lines for the distribution's repositories that APT has deb lines of."""
    shown = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)"
    found = _run(["apt-get", "indextargets", "--format", shown, "Created-By: Packages"], Path("/"))
    lines = set()
    for line in found.splitlines():
        origin, uri, release, component = line.split("|")
        if origin in _KEYRINGS and component in ("main", "universe"):
            key = f"[signed-by={_KEYRINGS[origin]}] " if _KEYRINGS[origin].exists() else ""
            lines.add(f"deb-src {key}{uri} {release} {component}\n")
    if not lines:
        raise Unsupported("APT knows no repository of Debian or Ubuntu: run `apt-get update`")
    return "".join(sorted(lines))


def source(package: str, progress: Progress) -> Path:
    """The unpacked sources of a source package, fetched unless they were before."""
    base = cache() / "sources"
    unpacked = base / package
    if unpacked.exists():
        return unpacked
    progress(f"{package}: fetching its source")
    (base / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (base / "sources.list").write_text(_repositories())
    # lists of its own: the machine's are left as they are, and often know no sources
    apt: list[str | Path] = ["apt-get", "-q", "-o", f"Dir::Etc::SourceList={base}/sources.list",
           "-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={base}/lists",
           "-o", "APT::Sandbox::User=root"]  # fmt: skip
    _run([*apt, "update"], base)
    _run([*apt, "source", "--download-only", "--tar-only", package], base)
    archives = sorted(path for path in base.glob(f"{package}_*.orig.tar.*") if path.suffix != ".asc")
    if not archives:
        raise Unsupported(f"{package}: its source is not an .orig.tar")
    half = base / f"{package}.part"
    half.mkdir(exist_ok=True)
    _run(["tar", "-xf", archives[-1], "-C", half, "--strip-components=1"], base)
    half.rename(unpacked)
    return unpacked


def _built(program: Path, command: list[str | Path], cwd: Path, progress: Progress) -> Path:
    if not program.exists():
        progress(f"{program.name}: compiling")
        part = program.with_suffix(".part")
        _run([*command, "-o", part], cwd)
        part.rename(program)
    return program


def passthrough_hp(progress: Progress) -> Path:
    """libfuse's example, as its build makes it, but that other users are let in, as the cases need."""
    root = source("fuse3", progress)
    text = (root / "example" / "passthrough_hp.cc").read_text()
    before, after = '"default_permissions,fsname', '"default_permissions,allow_other,fsname'
    if before not in text:
        raise Unsupported("fuse3: its passthrough_hp.cc is another one than expected")
    (root / "example" / "hp_allow_other.cc").write_text(text.replace(before, after))
    flags = shlex.split(_run(["pkg-config", "--cflags", "--libs", "fuse3"], root))
    has = ["-DHAVE_UTIMENSAT", "-DHAVE_POSIX_FALLOCATE", "-DHAVE_SETXATTR"]  # what its meson.build finds
    compile_: list[str | Path] = ["g++", "-O2", "-w", "-std=c++17", *has, "-I.", "hp_allow_other.cc"]
    return _built(root / "passthrough_hp", [*compile_, *flags, "-pthread"], root / "example", progress)


def _of_diod(name: str, defines: list[str], progress: Progress) -> Path:
    folder = source("diod", progress) / "tests" / "kern" / name
    (folder / "config.h").touch()  # all that it would hold is given here
    command: list[str | Path] = ["gcc", "-O2", "-w", "-I.", "-D_GNU_SOURCE", *defines, f"{name}.c"]
    return _built(folder / name, command, folder, progress)


def fsx(progress: Progress) -> Path:
    """The file system exerciser of NeXT, Apple and the Linux Test Project."""
    return _of_diod("fsx", [], progress)  # fallocate(2) is not in it: neither FUSE server has its flags


def fsstress(progress: Progress) -> Path:
    """SGI's stress test, as the Linux Test Project has it."""
    return _of_diod("fsstress", ["-DNO_XFS", "-D_LARGEFILE64_SOURCE"], progress)


def fstest(progress: Progress) -> Path:
    """The program behind the cases, which are in tests/**/*.t beside it."""
    return _of_diod("fstest", [], progress)
