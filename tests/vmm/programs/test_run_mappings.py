# SPDX-License-Identifier: Apache-2.0
"""What becomes of mappings that are split, moved, replaced, protected, advised, locked and synced.

Each scenario runs twice, on an ordinary file system and on our mount: same answers, same
errors, same addresses, and afterwards the same bytes, on the backing directory.
"""

import os
from pathlib import Path

import pytest
from mapscript import compiled, same_both_ways
from run_host import RunningHost

# For mapscript.c: a file `f` of 4 pages and 100 bytes, whose pages hold a, b, c, d, e; `g` of one page of G;
# `h` is empty.
SCENARIOS = {
    "partial_unmap": """
        open f f rw
        map m f 0 5p rw s
        store m 0 one
        store m 2p three
        unmap m 1p 1p
        load m 1p 1
        load m 2p 6
        load m 0 4
        unmap m 0 1p
        load m 0 1
        store m 3p four
        unmap m 2p 3p
        load m 3p 1
        read f 0 4
        read f 2p 6
        read f 3p 5""",
    "remap_moves": """
        open f f rw
        map m f 0 3p rw s
        store m 1p before
        map o - 0 8p r pa
        remap m 0 3p 3p mf o 0
        load m 1p 7
        store m 2p after
        read f 1p 7
        read f 2p 6
        load m 0 2""",
    "remap_lengthens_what_is_locked": """
        open f f rw
        map m f 0 2p rw s
        lock m 0 2p
        store m 1p locked
        remap m 0 2p 4p m
        load m 2p 2
        store m 3p new
        read f 1p 6
        read f 3p 3
        unlock m 0 4p
        remap m 0 4p 5p m
        load m 4p 1""",
    "remap_grows_where_it_is": """
        open f f rw
        map r - 0 16p - pa
        map m f 0 2p rw sf r 0
        load m 1p 1
        unmap r 2p 14p
        remap m 0 2p 4p -
        load m 2p 2
        store m 3p+1 new
        read f 3p 5
        remap m 0 4p 6p -
        load m 4p 3
        load m 5p 1
        ftrunc f 6p
        store m 5p end
        read f 5p 4""",
    "remap_grows_elsewhere": """
        open f f rw
        map r - 0 16p - pa
        map m f 0 2p rw sf r 0
        store m 1p x
        remap m 0 2p 4p -
        remap m 0 2p 4p m
        load m 1p 2
        load m 3p 2
        store m 2p y
        read f 2p 2""",
    "remap_shrinks": """
        open f f rw
        map m f 0 5p rw s
        store m 4p tail
        remap m 0 5p 2p -
        load m 1p 2
        load m 3p 1
        store m 1p x
        read f 4p 5
        read f 1p 2""",
    "remap_of_a_part": """
        open f f rw
        map m f 0 4p rw s
        map o - 0 4p r pa
        store m 1p x
        remap m 1p 1p 1p mf o 1p
        load m 1p 1
        load o 1p 2
        load m 2p 2
        store o 1p+1 y
        read f 1p 3""",
    "remap_of_nothing_duplicates": """
        open f f rw
        map m f 0 2p rw s
        load m 0 1
        remap m 0 0 2p m - 0 n""",
    "remap_keeps_what_was_there": """
        open f f rw
        map m f 0 2p rw p
        store m 0 mine
        map o - 0 4p r pa
        remap m 0 2p 2p mfd o 0 n
        load n 0 5
        load m 0 5
        load m 1p 2""",
    "protection_changes": """
        open f f rw
        map m f 0 3p rw s
        store m 0 one
        protect m 0 1p r
        load m 0 4
        store m 0 two
        store m 1p two
        protect m 1p 1p -
        load m 1p 1
        load m 2p 1
        protect m 0 3p rw
        store m 0 tri
        load m 1p 4
        read f 0 4
        protect m 0 3p rx
        load m 0 4""",
    "mapped_without_rights_then_opened": """
        open f f rw
        map m f 0 3p - s
        load m 0 1
        protect m 0 3p r
        load m 0 1
        store m 0 x
        protect m 0 3p rw
        store m 0 x
        read f 0 2""",
    "fixed_over_ours": """
        open f f rw
        open g g rw
        map m f 0 4p rw s
        store m 1p under
        map o g 0 1p rw sf m 1p
        load m 1p 3
        load m 2p 3
        store m 1p over
        read f 1p 6
        read g 0 5
        map o - 0 1p rw paf m 2p
        load m 2p 2
        load m 3p 2
        map o f 0 1p r pf m 3p
        load m 3p 2
        map o f 0 1p r sn m 0""",
    "same_file_twice": """
        open f f rw
        map m f 0 3p rw s
        map n f 1p 2p rw s
        store m 1p+1 x
        load n 0 4
        store n 1p y
        load m 2p 3
        unmap m 0 3p
        load n 0 4
        store n 2 z
        read f 1p 4""",
    "descriptor_closed": """
        open f f rw
        map m f 0 3p rw s
        close f
        load m 1p 2
        store m 1p kept
        open f f r
        read f 1p 5""",
    "unlinked": """
        open f f rw
        map m f 0 3p rw s
        unlink f
        store m 1p kept
        load m 1p 5
        read f 1p 5
        close f
        load m 2p 2
        store m 2p on
        open f f r
        load m 0 1""",
    "renamed_over": """
        open f f rw
        map m f 0 3p rw s
        open g g rw
        map n g 0 1p rw s
        rename f g
        store m 0 moved
        store n 0 gone
        load n 0 5
        open g g r
        read g 0 6
        open f f r""",
    "two_open_files": """
        open f f rw
        open e f r
        map m f 0 3p rw s
        map n e 0 3p r s
        store m 0 seen
        load n 0 5
        ftrunc f 1p
        load n 1p+3 1
        load n 0 5""",
    "file_into_its_own_mapping": """
        open f f rw
        map m f 0 5p rw s
        readinto f 0 2p m 2p
        load m 2p 2
        load m 3p 2
        writefrom f 4p 50 m 3p
        read f 4p 60
        writefrom f 1p 1p m 1p
        readinto f 0 100 m 50
        writefrom f 0 3p m 2p
        read f 1p 3
        sendfile f 0 4p""",
    "system_calls_through_the_end": """
        open f f rw
        map m f 0 8p rw s
        ftrunc f 2p
        put m 1p 8000
        put m 2p 1
        get m 1p 8000
        get m 3p 1
        vmread m 1p 8000
        writefrom f 0 2p m 1p
        writefrom f 0 1p m 2p
        readinto f 0 2p m 1p
        readinto f 0 10 m 3p
        size f""",
    "advice": """
        open f f rw
        map m f 0 5p rw s
        store m 0 kept
        advise m 0 5p dontneed
        load m 0 5
        load m 1p 2
        advise m 0 5p willneed
        advise m 0 5p random
        advise m 0 5p sequential
        advise m 0 5p normal
        advise m 0 5p cold
        store m 1p more
        advise m 0 5p dontneed
        load m 1p 5
        read f 0 5
        map p f 0 5p rw p
        store p 2p mine
        load p 2p 5
        advise p 2p 1p dontneed
        load p 2p 5
        advise m 0 5p free""",
    "populated": """
        open f f rw
        map m f 0 5p rw sP
        load m 3p 2
        map n f 0 8p r sP
        load n 4p 2
        advise m 0 5p read
        advise m 0 5p write
        map p f 0 5p rw pP
        store p 0 x
        read f 0 2
        advise n 0 8p read""",
    "locked": """
        open f f rw
        map m f 0 5p rw s
        lock m 0 5p
        load m 4p 2
        unlock m 0 5p
        map n f 0 5p rw sL
        store n 1p x
        unlock n 0 5p
        lockonfault n 0 5p
        load n 1p 2""",
    "locked_past_the_end": """
        open f f rw
        map o f 0 8p rw s
        lock o 0 8p
        load o 0 1""",
    "msync": """
        open f f rw
        map m f 0 5p rw s
        store m 1p stored
        msync m 0 5p s
        read f 1p 7
        msync m 1p 1p a
        msync m 0 5p si
        msync m 0 5p sa
        msync m 1 1p s
        unmap m 3p 1p
        store m 4p x
        msync m 0 5p s
        msync m 3p 1p s
        map p f 0 2p rw p
        store p 0 mine
        msync p 0 2p s
        read f 0 2
        fsync f""",
}


@pytest.fixture(scope="module")
def mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_mapping_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, mapper: Path, tmp_path: Path
) -> None:
    if name == "locked_past_the_end" and os.environ.get("DAXFAULT_SANITIZED"):
        pytest.skip("the sanitizer's runtime makes mlock() do nothing")
    same_both_ways(run_host, mapper, tmp_path, name, SCENARIOS[name])


@pytest.fixture(scope="module")
def static_mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("static"), static=True)


@pytest.mark.parametrize("name", SCENARIOS)
def test_mapping_of_a_static_program_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, static_mapper: Path, tmp_path: Path
) -> None:
    same_both_ways(run_host, static_mapper, tmp_path, f"static_{name}", SCENARIOS[name], traced=True)
