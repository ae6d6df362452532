# SPDX-License-Identifier: Apache-2.0
"""The feature bits of userfaultfd: names, Linux versions, and daxfault's use of them.

Owns the table.  Must not query the kernel, nor import the compiled part: `daxfault doctor` works
without it.  Names and numbers are those of include/uapi/linux/userfaultfd.h, without UFFD_FEATURE_;
versions are the first release with the bit.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Feature:
    """One bit of struct uffdio_api.features (ioctl_userfaultfd(2), UFFDIO_API)."""

    bit: int
    name: str
    since: str  # Linux version
    use: str  # daxfault's purpose; empty if it does not use it
    needed: bool  # without it, no guest can be served


FEATURES = (
    Feature(0, "PAGEFAULT_FLAG_WP", "5.7", "", False),
    Feature(1, "EVENT_FORK", "4.11", "serve the children of a guest that forks", False),
    Feature(2, "EVENT_REMAP", "4.11", "follow a mapping that a guest moves", True),
    Feature(3, "EVENT_REMOVE", "4.11", "notice pages that a guest gives back", True),
    Feature(4, "MISSING_HUGETLBFS", "4.11", "", False),
    Feature(5, "MISSING_SHMEM", "4.11", "see faults on pages that the page cache lacks", True),
    Feature(6, "EVENT_UNMAP", "4.11", "notice mappings that a guest drops", True),
    Feature(7, "SIGBUS", "4.14", "", False),
    Feature(8, "THREAD_ID", "4.14", "notify the thread that touched the page", True),
    Feature(9, "MINOR_HUGETLBFS", "5.13", "", False),
    Feature(10, "MINOR_SHMEM", "5.14", "map a page of the page cache without a copy", True),
    Feature(11, "EXACT_ADDRESS", "5.18", "report the byte that was touched, not its page", True),
    Feature(12, "WP_HUGETLBFS_SHMEM", "5.19", "", False),
    Feature(13, "WP_UNPOPULATED", "6.4", "", False),
    Feature(14, "POISON", "6.6", "fail accesses made inside system calls", False),
    Feature(15, "WP_ASYNC", "6.7", "", False),
    Feature(16, "MOVE", "6.8", "", False),
)


_BITS = {feature.name: feature.bit for feature in FEATURES}


def bits(*names: str) -> int:
    """The bits of the features with these names; KeyError for a name not in FEATURES."""
    return sum(1 << _BITS[name] for name in names)


def has(offered: int, name: str) -> bool:
    """Whether `offered` has the feature called `name`; KeyError for a name not in FEATURES."""
    return bool(offered & bits(name))


def needed_but_missing(offered: int) -> list[Feature]:
    """The features in FEATURES that daxfault requires and `offered` lacks."""
    return [feature for feature in FEATURES if feature.needed and not has(offered, feature.name)]
