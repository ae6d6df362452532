# SPDX-License-Identifier: Apache-2.0
"""Commands that run with mounts of their own, so that a device can be hidden from them."""

# "$0" is the script, "$@" the command.  In a chroot / may be no mount point: its propagation cannot be
# changed, and a mount would show outside.  Then a private copy of all mounts becomes the root.
_PREPARE = """
if ! mount --make-rprivate / 2>/dev/null; then
    mount --make-rprivate /dev && mount --rbind / /dev/shm && mount --make-rprivate /dev/shm || exit 125
    exec chroot /dev/shm sh -c "$0" sh "$@"
fi
exec sh -c "$0" sh "$@"
"""


def private_mounts(script: str) -> tuple[str, ...]:
    """A command prefix.  `script` changes the mounts, and ends with exec "$@"."""
    return ("unshare", "--mount", "--propagation", "unchanged", "sh", "-c", _PREPARE, script)


def without(device: str) -> tuple[str, ...]:
    """A command prefix: /dev/`device` is something else."""
    return private_mounts(f'mount --bind /dev/null /dev/{device} && exec "$@"')
