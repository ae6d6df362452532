# SPDX-License-Identifier: Apache-2.0
"""What children, threads and programs that close what they have see of their mappings.

Each scenario runs twice, on an ordinary file system and on our mount: same answers, same
errors, same addresses, and afterwards the same bytes, on the backing directory.
"""

from pathlib import Path

import pytest
from mapscript import compiled, same_both_ways
from run_host import Place, RunningHost

# For mapscript.c: a file `f` of 4 pages and 100 bytes, whose pages hold a, b, c, d, e; `g` of one page of G;
# `h` is empty.
SCENARIOS = {
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


@pytest.fixture(scope="module")
def mapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("mapper"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_process_is_as_on_an_ordinary_file_system(
    name: str, run_host: RunningHost, mapper: Path, tmp_path: Path
) -> None:
    same_both_ways(run_host, mapper, tmp_path, name, SCENARIOS[name])


def test_failed_page_of_a_forked_child_heals_by_itself(place: Place) -> None:
    """The child has no connection of its own."""
    (place.source / "file").write_bytes(b"x" * 256 * 4096)
    script = """
import mmap, os, time
with open("file", "r+b") as file:
    m = mmap.mmap(file.fileno(), 0)
m[0]
if os.fork():
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
pipe = os.pipe()[1]
page = memoryview(m)[200 * 4096 : 201 * 4096]
def readable():
    try:
        return os.write(pipe, page[:1]) == 1
    except OSError:
        return False
print(readable())
begin = time.monotonic()
while not readable() and time.monotonic() < begin + 30:
    time.sleep(0.01)
print(readable(), flush=True)
"""
    ran = place.python(script, options=["--fault", "EIO,count=1,offset=800K"])
    assert (ran.code, ran.out) == (0, "False\nTrue\n"), ran.err
