# SPDX-License-Identifier: Apache-2.0
"""Faults on purpose, `--fault` and `daxfault inject`: what a program gets, and when.

The program is mapscript.c, which tells what each access came to.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import environment
from hypothesis import given
from hypothesis import strategies as st
from mapscript import Mapper, compiled
from patience import PATIENCE, looks
from run_host import RunningHost

from daxfault.vmm.programs.faults import EVERYTHING, NEVER, BadRule, Rule, parse

PAGES = 32
_CODE = 4 if Path("/proc/sys/vm/memory_failure_recovery").exists() else 2


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.fixture
def mapper(run_host: RunningHost, program: Path) -> Iterator[Mapper]:
    """With the file `f` open as f: page n is of the letter a + n."""
    for name in ("f", "data.db", "other"):
        (run_host.mount / name).write_bytes(b"".join(bytes([97 + n % 26]) * 4096 for n in range(PAGES)))
    mapper = Mapper(run_host, program)
    assert mapper("open f f rw") == "0"
    yield mapper
    mapper.close()
    run_host.ask("remove")
    run_host.settled()


def sigbus(offset: int) -> str:
    """How a program is told of a page that failed: BUS_ADRERR, or BUS_MCEERR_AR where the kernel is one that
    knows of bad memory."""
    return f"SIGBUS code {_CODE} at +{offset}"


def page(n: int) -> str:
    return f"[{chr(97 + n % 26)}]"


def parked(host: RunningHost) -> int:
    """How many faults have ever had to wait."""
    return int(host.ask("status")["counters"]["parked"])


def loads(mapper: Mapper, *pages: int) -> list[bool]:
    """Whether each could be read."""
    answers = {n: mapper(f"load m {n}p 1") for n in pages}
    assert all(got in (page(n), sigbus(n * 4096)) for n, got in answers.items())
    return [got == page(n) for n, got in answers.items()]


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EACCES"])
def test_error_is_sigbus_with_the_address_and_efault_and_heals(
    run_host: RunningHost, mapper: Mapper, error: str
) -> None:
    with run_host.failing(f"{error},file=f,offset=8K-16K"):
        mapper("map m f 0 8p rw s")
        assert mapper("load m 1p 1") == "[b]"
        assert mapper("load m 2p+17 1") == sigbus(8192 + 17)
        assert mapper("store m 3p+5 x") == sigbus(3 * 4096 + 5)
        assert mapper("put m 1p 8000") == "4096"
        assert mapper("put m 2p 1") == "EFAULT"
        assert mapper("get m 2p 1") == "EFAULT"
        assert mapper("vmread m 1p+4000 200") in ("96", "EFAULT")
        assert mapper("load m 4p 1") == "[e]"
        # read(2) is not a mapping's access
        assert mapper("read f 2p 1") == "[c]"
        records = run_host.ask("records")
        assert {r["errno"] for r in records if r["pid"] == mapper.pid} == {error}
    assert mapper("load m 2p+17 1") == "[c]"
    assert mapper("store m 3p+5 x") == "1"
    assert mapper("put m 1p 8000") == "8000"


def test_rule_added_while_pages_are_mapped_takes_those_nobody_stored_to(
    run_host: RunningHost, mapper: Mapper
) -> None:
    mapper("map m f 0 8p rw s")
    assert loads(mapper, *range(8)) == [True] * 8
    assert mapper("store m 3p mine") == "4"
    with run_host.failing("EIO,file=f"):
        assert mapper("load m 3p 4") == "[mine]"
        assert loads(mapper, 0, 1, 2, 4, 5, 6, 7) == [False] * 7
    assert loads(mapper, 0, 1, 2, 4, 5, 6, 7) == [True] * 7
    assert mapper("load m 3p 4") == "[mine]"


def test_rule_is_about_the_files_its_pattern_names(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("EIO,file=*.db")
    mapper("map m f 0 1p r s")
    assert mapper("load m 0 1") == "[a]"
    mapper("open d data.db rw")
    mapper("map m d 0 1p r s")
    assert mapper("load m 0 1") == sigbus(0)
    mapper("rename data.db other")
    assert mapper("load m 0 1") == sigbus(0)


def test_count_and_nth_fail_those_accesses_alone(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("EIO,file=f,nth=3,count=2")
    mapper("map m f 0 32p r s")
    assert loads(mapper, 0, 9, 4, 20, 30, 7) == [True, True, False, False, True, True]
    # and then it is as if the disk had recovered
    assert mapper("await m 4p e") == "e"
    assert mapper("await m 20p u") == "u"


def test_probability_with_a_seed_fails_the_same_pages_each_time(
    run_host: RunningHost, mapper: Mapper
) -> None:
    seen = []
    for seed in (7, 7, 8):
        (id,) = run_host.inject(f"EIO,file=f,probability=0.5,seed={seed}")
        mapper(f"map m f 0 {PAGES}p r s")
        seen.append(loads(mapper, *range(PAGES)))
        mapper(f"unmap m 0 {PAGES}p")
        run_host.ask("remove", id=id)
    assert seen[0] == seen[1]
    assert seen[0] != seen[2]
    assert 4 < sum(seen[0]) < PAGES - 4


def test_stores_rule_lets_loads_through(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("ENOSPC,file=f,stores")
    mapper("map m f 0 8p rw s")
    assert loads(mapper, 0, 1, 2) == [True] * 3
    assert mapper("store m 5p+3 x") == sigbus(5 * 4096 + 3)
    assert mapper("get m 6p 1") == "EFAULT"


def test_truncate_rule_is_a_truncation_at_that_moment(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("truncate=8K,file=f,nth=3,count=1")
    mapper("map m f 0 8p rw s")
    assert loads(mapper, 7, 6) == [True, True]
    assert mapper("size f") == str(PAGES * 4096)
    assert mapper("load m 5p+9 1") == f"SIGBUS code 2 at +{5 * 4096 + 9}"
    assert mapper("size f") == "8192"
    assert mapper("load m 7p 1") == f"SIGBUS code 2 at +{7 * 4096}"
    assert mapper("load m 1p 1") == "[b]"
    assert mapper("ftrunc f 8p") == "0"
    assert mapper("load m 7p 1") == "[\\0]"
    assert (run_host.source / "f").stat().st_size == 8 * 4096


@pytest.mark.parametrize("mode", ["O_RDONLY", "O_RDWR"])
@pytest.mark.parametrize("kind", ["MAP_SHARED", "MAP_PRIVATE"])
def test_truncate_rule_truncates_for_readers_too_and_the_size_is_soon_the_new_one(
    run_host: RunningHost, mode: str, kind: str
) -> None:
    (run_host.source / "r").write_bytes(b"r" * 65536)
    run_host.inject("truncate=8K,file=r,nth=3,count=1")
    script = f"""if True:
        import daxfault, mmap, os, time
        fd = os.open("r", os.{mode})
        m = mmap.mmap(fd, 65536, flags=mmap.{kind}, prot=mmap.PROT_READ)
        failed = []
        for at in range(0, 65536, 4096):
            try:
                with daxfault.guard():
                    m[at]
            except daxfault.MappingError:
                failed.append(at)
        began = time.monotonic()
        while os.fstat(fd).st_size != 8192:  # it was a second: attr_timeout
            assert time.monotonic() - began < 0.5
        print(failed[0], len(failed))
        """
    assert run_host.python(script) == "8192 14\n"
    run_host.ask("remove")
    assert (run_host.source / "r").stat().st_size == 8192


def test_delay_holds_an_access_up_and_then_gives_the_page(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("delay=0.4,file=f,offset=4K-8K")
    mapper("map m f 0 8p r s")
    assert mapper("load m 0 1") == "[a]"
    began = time.monotonic()
    assert mapper("load m 1p 1") == "[b]"
    assert time.monotonic() - began >= 0.4


def test_page_that_never_comes_comes_when_the_rule_is_taken_back(
    run_host: RunningHost, mapper: Mapper
) -> None:
    (id,) = run_host.inject("never,file=f,offset=4K-8K")
    mapper("map m f 0 8p r s")
    before = parked(run_host)
    mapper.send("load m 1p 1")
    for _ in looks():
        if parked(run_host) > before:
            break
    run_host.ask("remove", id=id)
    assert mapper.answer() == "[b]"


def test_delay_with_an_error_is_the_error_afterwards(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("delay=0.2,EIO,file=f,offset=4K-8K")
    mapper("map m f 0 8p r s")
    began = time.monotonic()
    assert mapper("load m 1p 1") == sigbus(4096)
    assert time.monotonic() - began >= 0.2


def test_trigger_file_turns_a_rule_on_and_off(run_host: RunningHost, mapper: Mapper, tmp_path: Path) -> None:
    trigger = tmp_path / "go"
    run_host.inject(f"EIO,file=f,when={trigger}")
    mapper("map m f 0 8p r s")
    assert loads(mapper, 0, 1) == [True, True]
    trigger.touch()
    assert mapper("await m 2p !") == "!"
    assert loads(mapper, 0, 1, 5) == [False] * 3
    trigger.unlink()
    assert mapper("await m 2p c") == "c"
    assert loads(mapper, 0, 1, 5) == [True] * 3


def test_trigger_file_on_the_mount_itself_is_seen(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject(f"EIO,file=f,when={run_host.mount}/go")
    mapper("map m f 0 8p r s")
    assert loads(mapper, 0) == [True]
    mapper("open g go rwc")
    assert mapper("await m 0 !") == "!"
    mapper("unlink go")
    assert mapper("await m 0 a") == "a"


def test_private_mapping_gets_the_error_too_and_keeps_its_copies(
    run_host: RunningHost, mapper: Mapper
) -> None:
    mapper("map m f 0 8p rw p")
    assert mapper("store m 2p mine") == "4"
    run_host.inject("EIO,file=f")
    assert mapper("load m 2p 5") == "[minec]"
    assert mapper("load m 3p 1") == sigbus(3 * 4096)
    assert mapper("store m 4p x") == sigbus(4 * 4096)


def test_forked_child_gets_the_error_of_its_parents_mapping(run_host: RunningHost, mapper: Mapper) -> None:
    run_host.inject("EIO,file=f,offset=4K-8K")
    mapper("map m f 0 8p r s")
    assert mapper("load m 1p 1") == sigbus(4096)
    mapper.send("fork")
    mapper.send("load m 1p 1")
    assert mapper.answer() == sigbus(4096)
    mapper.send("load m 2p 1")
    assert mapper.answer() == "[c]"
    mapper.send("end")
    assert mapper.answer() == "child: 0"


# ---- daxfault inject


def injected(host: RunningHost, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "daxfault", "inject", str(host.mount), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
        env=environment(host.top),
    )


def test_inject_lists_removes_and_clears(run_host: RunningHost, mapper: Mapper) -> None:
    mapper("map m f 0 8p r s")
    done = injected(run_host, "EIO,file=f,offset=0-4K", "EIO,file=f,offset=4K-8K", "--json")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["rule"], first["on"]) == ("EIO,offset=0-4096,file=f", True)
    assert loads(mapper, 0, 1, 2) == [False, False, True]
    done = injected(run_host, "--remove", str(first["id"]))
    assert done.returncode == 0
    assert "offset=4096-8192" in done.stdout
    assert "offset=0-4096" not in done.stdout
    assert loads(mapper, 0, 1, 2) == [True, False, True]
    assert injected(run_host, "--clear").stdout == "no rules\n"
    assert loads(mapper, 0, 1, 2) == [True] * 3
    assert injected(run_host, "--remove", str(second["id"])).returncode == 2


def test_inject_refuses_a_bad_rule_with_2(run_host: RunningHost) -> None:
    done = injected(run_host, "EIO,file=*", "EFOO")
    assert done.returncode == 2
    assert "EFOO" in done.stderr
    assert "Traceback" not in done.stderr
    run_host.ask("remove")


@pytest.mark.parametrize(
    "rule",
    [
        *("", "file=x", "EIO,offset=8K-4K", "EIO,offset=-1", "delay=-1", "delay=nan", "EIO,nth=0", "EIO,EIO"),
        *(
            "EIO,count=0",
            "EIO,probability=2",
            "truncate=1E",
            "truncate=",
            "never,delay=1",
            "stores",
            "EIO,x=1",
        ),
    ],
)
def test_rule_that_makes_no_sense_is_refused(rule: str) -> None:
    with pytest.raises(BadRule):
        parse(rule)


def test_inject_where_no_host_is_ends_with_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "daxfault", "inject", str(tmp_path), "EIO"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 2
    assert "daxfault run" in done.stderr


# ---- the words of a rule

words = st.text("abcXYZ0189_*?[]./-", min_size=1, max_size=12)
numbers = st.integers(0, (1 << 32) - 1)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    start = draw(st.integers(0, EVERYTHING - 1))
    end = draw(st.one_of(st.just(EVERYTHING), st.integers(start + 1, EVERYTHING)))
    rule = Rule(
        file=draw(words),
        error=draw(st.sampled_from([0, 5, 13, 28, 110])),
        delay=draw(st.one_of(st.just(0.0), st.just(NEVER), st.floats(1e-9, NEVER))),
        truncate=draw(st.one_of(st.none(), st.integers(0, EVERYTHING))),
        start=start,
        end=end,
        nth=draw(st.integers(1, (1 << 32) - 1)),
        count=draw(numbers),
        probability=draw(st.floats(1e-12, 1.0)),
        seed=draw(numbers),
        stores=draw(st.booleans()),
        when=draw(st.one_of(st.none(), words.map(lambda name: f"/{name.replace('/', '_').strip('.')}x"))),
    )
    return rule if rule.error or rule.delay or rule.truncate is not None else Rule(error=5)


@given(rules())
def test_rule_in_words_parses_to_itself(rule: Rule) -> None:
    assert parse(str(rule)) == rule


@given(st.text(max_size=40))
def test_rule_of_any_text_is_a_bad_rule_or_parses_from_its_words(text: str) -> None:
    rule = None
    with contextlib.suppress(BadRule):
        rule = parse(text)
    assert rule is None or parse(str(rule)) == rule
