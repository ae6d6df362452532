# SPDX-License-Identifier: Apache-2.0
"""What programs see of their mappings under `daxfault run`, beside what they see without it.

Each scenario runs twice, on an ordinary file system and on our mount: same answers, same
errors, same addresses, and afterwards the same bytes, on the backing directory.
"""

from pathlib import Path

import pytest
from mapper import compiled, contents, plainly, served
from run_host import RunningHost


@pytest.fixture(scope="module")
def mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


# A file `f` of 4 pages and 100 bytes, whose pages are of a, b, c, d, e; `g` of one page of G; `h` is empty.
def make_files(top: Path) -> None:
    top.mkdir()
    (top / "f").write_bytes(b"".join(c * 4096 for c in (b"a", b"b", b"c", b"d")) + b"e" * 100)
    (top / "g").write_bytes(b"G" * 4096)
    (top / "h").touch()


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
        load n 1p 2
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
    "fork": """
        open f f rw
        map m f 0 5p rw s
        map p f 0 5p rw p
        store m 0 parent
        store p 1p mine
        fork
        load m 0 7
        load p 1p 5
        load m 3p 2
        store m 2p child
        store p 3p childs
        map n f 4p 1p rw s
        store n 0 last
        fork
        load m 2p 6
        store m 4p+50 grand
        end
        load m 4p+50 6
        end
        load m 2p 6
        load p 3p 3
        load m 4p 5
        read f 2p 6""",
    "fork_of_untouched": """
        open f f rw
        map m f 0 5p rw s
        map p f 0 5p r p
        close f
        fork
        load m 1p 2
        load p 2p 2
        store m 1p child
        end
        load m 1p 6
        load m 4p 2""",
    "fork_and_truncate": """
        open f f rw
        map m f 0 5p rw s
        load m 3p 1
        fork
        ftrunc f 2p
        load m 3p+9 1
        end
        load m 3p+9 1
        ftrunc f 4p
        fork
        load m 3p 2
        end
        load m 3p 2""",
    "child_unmaps_and_moves": """
        open f f rw
        map m f 0 4p rw s
        load m 0 1
        fork
        unmap m 0 1p
        load m 0 1
        map o - 0 4p r pa
        remap m 1p 2p 2p mf o 0
        load o 0 2
        store o 1p moved
        end
        load m 2p 6
        load m 0 2""",
    "child_dies_by_sigkill": """
        open f f rw
        map m f 0 4p rw s
        fork
        store m 1p lasts
        die
        end
        load m 1p 6
        read f 1p 6""",
    "not_inherited": """
        open f f rw
        map m f 0 4p rw s
        load m 0 1
        advise m 1p 1p dontfork
        fork
        load m 0 1
        load m 1p 1
        load m 2p 1
        end
        load m 1p 1""",
    "threads": """
        open f f rw
        map m f 0 5p rw s
        thread
        load m 1p 2
        store m 1p first
        map n f 2p 1p rw s
        store n 0 second
        ftrunc f 3p
        load m 3p+1 1
        thread
        store m 2p+100 deep
        end
        end
        load m 1p 6
        load m 2p 7
        load n 100 5
        load m 3p+1 1""",
    "spawned": """
        open f f rw
        map m f 0 5p rw s
        store m 0 parent
        spawn open f f rw,map n f 0 6p rw s,load n 0 7,store n 1p spawned,load n 5p 1
        load m 1p 8
        vfork open f f rw,map n f 0 5p rw s,load n 0 7,store n 2p vforked
        load m 2p 8
        fork
        exec open f f rw,map n f 0 5p rw s,store n 3p execed
        end
        load m 3p 7""",
    "executed_in_place": """
        open f f rw
        map m f 0 5p rw s
        store m 0 before
        exec open f f rw,map m f 0 5p rw s,load m 0 7,store m 1p after,read f 1p 6""",
    "all_descriptors_closed": """
        open f f rw
        map m f 0 5p rw s
        store m 0 before
        closeall
        load m 1p 2
        store m 2p after
        msync m 0 5p s
        open g f rw
        map n g 0 5p rw s
        load n 0 7
        store n 3p more
        load m 3p 5
        fork
        closeall
        store m 3p+10 child
        open g f rw
        map o g 0 5p rw s
        load o 3p 5
        end
        read g 3p 16
        load m 4p 2""",
    "high_descriptors_taken": """
        open f f rw
        map m f 0 2p rw s
        dup2 f 1000
        dup2 f 1001
        dup2 f 500
        store m 0 x
        closefd 1000
        map n f 1p 2p rw s
        load n 0 2
        load m 0 2
        msync m 0 2p s""",
    "standard_descriptors_are_files": """
        output 700
        closefd 0
        closefd 1
        closefd 2
        open a f rw
        open b g rw
        open c h rw
        map m a 0 5p rw s
        map n b 0 1p rw s
        append c text
        map o c 0 1p rw s
        load o 0 5
        store m 0 zero
        store n 0 one
        read a 0 5
        read b 0 4
        fork
        store m 1p child
        end
        load m 1p 6""",
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_on_the_mount_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, mapper: Path, tmp_path: Path
) -> None:
    make_files(tmp_path / name)
    make_files(run_host.source / name)
    expected = plainly(mapper, tmp_path / name, SCENARIOS[name])
    assert served(run_host, mapper, name, SCENARIOS[name]) == expected
    run_host.settled()
    assert contents(run_host.source / name) == contents(tmp_path / name)
