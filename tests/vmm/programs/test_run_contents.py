# SPDX-License-Identifier: Apache-2.0
"""What programs read and store through their mappings, and where the file ends.

Each scenario runs twice, on an ordinary file system and on our mount: same answers, same
errors, same addresses, and afterwards the same bytes, on the backing directory.
"""

from pathlib import Path

import pytest
from mapscript import compiled, same_both_ways
from run_host import RunningHost

# For mapscript.c: a file `f` of 4 pages and 100 bytes, whose pages hold a, b, c, d, e; `g` of one page of G;
# `h` is empty.
SCENARIOS = {
    "shared_store_is_read": """
        open f f rw
        map m f 0 5p rw s
        load m 0 10
        store m 5 hello
        load m 0 12
        read f 0 12
        load m 4p 200
        store m 4p+99 xyz
        read f 4p+90 100
        size f""",
    "write_is_seen_in_the_mapping": """
        open f f rw
        map m f 0 5p rw s
        load m 1p 4
        write f 1p+1 new
        load m 1p 6
        store m 1p+2 S
        read f 1p 6
        write f 4p+100 longer
        load m 4p+98 10
        size f""",
    "append_is_seen_in_the_mapping": """
        open f f rw
        open a f wa
        map m f 0 8p rw s
        load m 4p+100 4
        append a tail
        load m 4p+98 8
        load m 5p 1
        ftrunc f 6p
        append a more
        load m 6p 6
        size f""",
    "private_store_is_nobodys": """
        open f f rw
        map m f 0 5p rw p
        map s f 0 5p rw s
        store m 3 mine
        load m 0 9
        load s 0 9
        read f 0 9
        store s 0 its
        load m 0 9
        store s 1p ours
        load m 1p 5
        write f 2p file
        load m 2p 6""",
    "private_of_read_only_file": """
        open f f r
        map m f 0 5p rw p
        store m 0 mine
        load m 0 6
        read f 0 6
        map n f 0 5p rw s""",
    "read_only": """
        open f f r
        map m f 0 5p r s
        load m 2p 3
        store m 2p x
        protect m 0 1p rw
        protect m 0 1p r
        map n f 0 5p r p
        protect n 0 1p rw
        store n 0 mine
        load n 0 5
        load m 0 5""",
    "write_only": """
        open f f w
        map m f 0 1p w s
        map m f 0 1p w p
        open p f P
        map m p 0 1p r s""",
    "what_mmap_refuses": """
        open f f rw
        map m f 0 0 r s
        map m f 100 1p r s
        map m f 0 1p r -
        map m f 0x7ffffffffffff000 2p r s
        map m f 0 1p rw vS
        map m f 0 0xfffffffffffff000 r s
        map m f 0 1p r v
        load m 0 1""",
    "past_the_end": """
        open f f rw
        map m f 0 8p rw s
        load m 4p+99 2
        load m 5p 1
        load m 5p+17 1
        store m 6p+3 x
        put m 5p 10
        put m 4p+4000 200
        get m 4p+4000 200
        vmread m 4p+4000 200
        vmread m 5p 100
        ftrunc f 7p
        load m 5p+17 1
        store m 6p+3 x
        load m 6p 6
        load m 7p 1
        read f 6p 5""",
    "offset_beyond_the_end": """
        open h h rw
        map m h 2p 2p rw s
        load m 0 1
        store m 1p x
        write h 3p+5 now
        load m 1p 9
        load m 0 3
        store m 0 then
        read h 2p 5
        size h""",
    "empty_file_grows": """
        open h h rw
        map m h 0 1p rw s
        load m 0 1
        append h abc
        load m 0 5
        ftrunc h 1
        load m 0 5
        ftrunc h 0
        load m 0 1
        ftrunc h 1p
        load m 0 5""",
    "truncated_and_grown": """
        open f f rw
        map m f 0 5p rw s
        store m 2p+10 stored
        load m 4p 1
        ftrunc f 1p+10
        load m 0 3
        load m 1p+8 4
        load m 2p+10 1
        load m 4p+7 1
        put m 1p 8000
        ftrunc f 4p
        load m 1p+8 4
        load m 2p+8 10
        store m 2p again
        read f 2p 6
        trunc f 0
        load m 0 1
        store m 3p x""",
    "stored_behind_the_end_is_not_in_the_file": """
        open f f rw
        map m f 0 5p rw s
        store m 4p+102 junk
        load m 4p+98 10
        ftrunc f 4p+300
        load m 4p+98 10
        read f 4p+98 10""",
    "truncated_private": """
        open f f rw
        map m f 0 5p rw p
        store m 3p+1 mine
        load m 1p 2
        ftrunc f 1p
        load m 3p 5
        load m 1p 2
        load m 0 1
        ftrunc f 5p
        load m 3p 5
        load m 1p 2""",
}


@pytest.fixture(scope="module")
def mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_content_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, mapper: Path, tmp_path: Path
) -> None:
    same_both_ways(run_host, mapper, tmp_path, name, SCENARIOS[name])
