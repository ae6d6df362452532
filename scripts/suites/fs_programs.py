# SPDX-License-Identifier: Apache-2.0
"""The suites of scripts/suites/fs_suites.py: other people's, and those of tests/.

Owns how each is run in a place, and how its cases are told apart.  Must not judge: it is the
comparison of places that says what a failure means.  Each suite is given a place, an empty
directory in it, whether to be quick, and how to tell of progress.
"""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import fs_sources
from fs_case import FAILED, SKIPPED, Result, Results, last, result, run
from fs_places import BACKING, Place

from daxfault.vmm.errors import Unsupported

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
LONG = 1800.0  # seconds; what takes longer hangs

Suite = Callable[[Place, Path, bool, fs_sources.Progress], Results]

CPYTHON_QUICK = ["mmap", "tempfile", "shutil"]
CPYTHON = [
    *CPYTHON_QUICK, "os", "posix", "largefile", "fileio", "bufio", "io", "zipfile", "tarfile", "dbm",
    "sqlite3",
    "pathlib", "glob", "posixpath", "genericpath", "stat", "mailbox", "fileinput", "filecmp", "gzip", "bz2",
    "lzma", "shelve", "compileall", "zipimport", "unicode_file", "unicode_file_functions", "logging",
    "importlib", "venv",
]  # fmt: skip


def cpython_tests() -> Path:
    """The Python that this environment was made from, if it has its own tests."""
    python = Path(sys._base_executable)  # type: ignore[attr-defined]
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('test.test_mmap') is None)"
    if subprocess.run([python, "-c", code], capture_output=True).returncode:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Unsupported(f"{python} has no test.test_mmap: apt-get install libpython{version}-testsuite")
    return python


def cpython(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    python = cpython_tests()
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="daxfault-") as elsewhere:
        report = Path(elsewhere) / "report.xml"
        for module in CPYTHON_QUICK if quick else CPYTHON:
            progress(f"{place.name}: CPython's test_{module}")
            report.unlink(missing_ok=True)
            command: list[str | Path] = [python, "-m", "test", "-u", "largefile", "--tempdir", at]
            # some tests are of the bytecode that they have written
            env = {"TMPDIR": str(at), "PYTHONDONTWRITEBYTECODE": ""}
            status, said = run([*command, "--junit-xml", report, f"test_{module}"], at, LONG, env)
            found = _junit(report) if report.exists() else {}
            if not found:
                skipped = status == 0 or "test skipped" in said
                found[f"test_{module}"] = Result(SKIPPED if skipped else FAILED, last(said, 3))
            results |= found
    return results


def _junit(report: Path) -> Results:
    results: Results = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "").removeprefix("test.")
        bad = [part for part in case if part.tag in ("failure", "error")]
        if bad:
            results[name] = Result(FAILED, last(bad[0].text or bad[0].get("message") or ""))
        elif case.find("skipped") is not None:
            results[name] = Result(SKIPPED, (case.findtext("skipped") or "").strip())
        else:
            results.setdefault(name, result(True, ""))
    return results


def posix(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    progress(f"{place.name}: what POSIX says of each call")
    status, said = run([sys.executable, SUPPORT / "posix_cases.py", at], at, LONG)
    if status:
        return {"all": Result(FAILED, last(said))}
    told: dict[str, tuple[object, object]] = json.loads(said)
    return {
        name: result(answer == expected, f"{answer!r}, not {expected!r}")
        for name, (answer, expected) in told.items()
    }


def fstest(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    program = fs_sources.fstest(progress)
    scripts = sorted((program.parent / "tests").rglob("*.t"))
    if quick:
        scripts = [script for script in scripts if script.parent.name in ("open", "truncate")]
    results: Results = {}

    def case(script: Path) -> None:
        name = str(script.relative_to(program.parent / "tests").with_suffix(""))
        own = at / name.replace("/", "-")
        own.mkdir()
        status, said = run(["sh", script], own, LONG)
        planned = re.search(r"^1\.\.(\d+)$", said, re.MULTILINE)
        if planned is None:
            results[name] = Result(FAILED, last(said))
            return
        words = {number: word for word, number in re.findall(r"^((?:not )?ok) (\d+)", said, re.MULTILINE)}
        for number in range(1, int(planned[1]) + 1):
            word = words.get(str(number), f"not reached, exit status {status}")
            results[f"{name} {number}"] = result(word == "ok", word)

    progress(f"{place.name}: pjd's fstest")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # they mostly sleep
        list(pool.map(case, scripts))
    return results


# options, and how many operations: in all 1,000,000
FSX = {
    "": 320_000, "-c 20": 150_000, "-f": 50_000, "-l 2000000 -o 200000": 25_000, "-y": 5_000, "-W": 100_000,
    "-R": 100_000, "-R -W": 100_000, "-t 4096 -w 4096": 100_000, "-Z -R -W -r 4096 -w 4096": 50_000,
}  # fmt: skip


def fsx(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    program = fs_sources.fsx(progress)
    results: Results = {}
    with tempfile.TemporaryDirectory(prefix="daxfault-") as elsewhere:
        for seed, (options, count) in enumerate(FSX.items(), 1):
            count //= 100 if quick else 1
            name = f"fsx {options} -S {seed}".replace("  ", " ")
            progress(f"{place.name}: {name}, {count:,} operations")
            command: list[str | Path] = [program, "-q", *options.split(), "-S", str(seed), "-N", str(count)]
            status, said = run([*command, "-P", f"{elsewhere}/", f"f{seed}"], at, LONG)
            results[name] = result(status == 0, last(said, 3))
    return results


def exerciser(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    results: Results = {}
    for seed in range(11, 12 if quick else 15):
        count = 2000 if quick else 50_000
        progress(f"{place.name}: our exerciser, seed {seed}, {count:,} operations")
        command: list[str | Path] = [sys.executable, SUPPORT / "exerciser.py", at / f"f{seed}"]
        status, said = run([*command, "--seed", str(seed), "--count", str(count)], at, LONG)
        results[f"exerciser --seed {seed}"] = result(status == 0, said.partition("\n")[0])
    return results


def _compared(place: Place, at: Path) -> str:
    """What differs between a directory and what is behind the mount; "" if nothing does."""
    behind = place.source / at.relative_to(place.path)
    status, said = run([sys.executable, SUPPORT / "compared_calls.py", at, behind], at, LONG)
    return "" if status == 0 else f"not what is behind the mount: {last(said)}"


def fsstress(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    program = fs_sources.fsstress(progress)
    results: Results = {}
    for seed in range(1, 2 if quick else 6):
        count = 100 if quick else 2000
        progress(f"{place.name}: fsstress, seed {seed}, 4 x {count:,} operations")
        own = at / str(seed)
        own.mkdir()
        command: list[str | Path] = [program, "-c", "-d", own, "-p", "4", "-n", str(count), "-s", str(seed)]
        status, said = run(command, at, LONG)
        why = last(said) if status else _compared(place, own)
        results[f"fsstress -p 4 -s {seed}"] = result(not why and status == 0, why)
    return results


def random_calls(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    results: Results = {}
    for seed in range(21, 22 if quick else 26):
        count = 2000 if quick else 20_000
        progress(f"{place.name}: our random calls, seed {seed}, {count:,} calls of 4 processes")
        (at / str(seed)).mkdir()
        with tempfile.TemporaryDirectory(prefix="daxfault-") as twin:
            command: list[str | Path] = [sys.executable, SUPPORT / "random_calls.py", at / str(seed), twin]
            if place.name != BACKING:
                command += ["--behind", place.source / at.relative_to(place.path) / str(seed)]
            command += ["--seed", str(seed), "--count", str(count), "--processes", "4"]
            status, said = run(command, at, LONG)
        results[f"random_calls --seed {seed}"] = result(status == 0, last(said))
    return results


# each with what keeps it small
STRESSORS = [
    "access", "chdir", "chmod", "chown", "copy-file", "dentry", "dir", "dirdeep", "dirmany", "fcntl",
    "filename", "flock", "fpunch", "fsize", "fstat", "getdent", "inotify", "link", "locka", "lockf",
    "lockofd", "mknod", "open", "rename", "symlink", "touch", "utime", "xattr",
    "fallocate --fallocate-bytes 16m", "hdd --hdd-bytes 16m", "iomix --iomix-bytes 16m",
    "mmap --mmap-bytes 16m --mmap-file", "msync --msync-bytes 16m", "readahead --readahead-bytes 16m",
    "seek --seek-size 16m", "sendfile --sendfile-size 1m", "sync-file --sync-file-bytes 16m",
]  # fmt: skip


def stress_ng(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    program = _needed("stress-ng")
    results: Results = {}
    for stressor in STRESSORS[::8] if quick else STRESSORS:
        name, *small = stressor.split()
        progress(f"{place.name}: stress-ng --{name}")
        options = [f"--{name}", "2", *small, "--timeout", "2s", "--verify", "--temp-path", str(at)]
        status, said = run([program, *options], at, 120)
        if status in (3, 4) or (status == 0 and "skip" in said):  # 3: no resource, 4: not implemented
            results[name] = Result(SKIPPED, _line(said, "skip"))
        else:
            results[name] = result(status == 0, _line(said, "fail"))
    return results


def _line(said: str, word: str) -> str:
    found = [line for line in said.splitlines() if word in line]
    return found[0].strip() if found else last(said)


FIO = {
    "psync": "--ioengine=psync --bs=4k --rw=randrw",
    "psync, odd blocks": "--ioengine=psync --bs=3001 --rw=write",
    "pvsync2": "--ioengine=pvsync2 --bs=16k --rw=randwrite",
    "mmap": "--ioengine=mmap --bs=4k --rw=randwrite",
    "mmap, sequential": "--ioengine=mmap --bs=64k --rw=write",
    "libaio, O_DIRECT": "--ioengine=libaio --direct=1 --iodepth=16 --bs=8k --rw=randwrite",
    "sync, fsync each 16": "--ioengine=sync --fsync=16 --bs=4k --rw=randwrite",
    "posixaio": "--ioengine=posixaio --iodepth=8 --bs=4k --rw=randwrite",
    "two jobs": "--ioengine=psync --numjobs=2 --bs=512-64k --bs_unaligned=1 --rw=randwrite",
}


def fio(place: Place, at: Path, quick: bool, progress: fs_sources.Progress) -> Results:
    program = _needed("fio")
    results: Results = {}
    for name, options in FIO.items():
        progress(f"{place.name}: fio, {name}")
        size = "1m" if quick else "16m"
        common = f"--name=x --size={size} --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed=7"
        status, said = run([program, *common.split(), *options.split(), f"--directory={at}"], at, 300)
        results[name] = result(status == 0, _line(said, "verify"))
        for file in at.iterdir():
            file.unlink()
    return results


def _needed(program: str) -> str:
    if (found := shutil.which(program)) is None:
        raise Unsupported(f"{program}: not here; apt-get install {program}")
    return found


SUITES: dict[str, Suite] = {
    "cpython": cpython,
    "posix": posix,
    "fstest": fstest,
    "fsx": fsx,
    "exerciser": exerciser,
    "fsstress": fsstress,
    "random_calls": random_calls,
    "stress-ng": stress_ng,
    "fio": fio,
}
