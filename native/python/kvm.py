# SPDX-License-Identifier: Apache-2.0
"""The Python binding of the KVM machine: vCPUs, exits, memslots, injection.

Owns the lifetime of the C objects and the fields of an exit.  Must not act on an exit.  Any thread
may call every method; each releases the GIL; OSError names the ioctl.  Addresses and lengths are
in bytes; names say whether an address is a gva, gpa or hva.
"""

from __future__ import annotations

import dataclasses
import enum
import os
from pathlib import Path
from typing import Any

from daxfault.native._daxfault import ffi, lib
from daxfault.native.errors import check
from daxfault.native.programs import program

_MOST_STATS = 128

RAM_LENGTH: int = lib.DF_KVM_RAM_LEN
# The window's memslot, and where ring 0 sees it: guest physical is guest virtual.
WINDOW: int = lib.DF_KVM_WINDOW
WINDOW_LENGTH: int = lib.DF_KVM_WINDOW_LEN
# Where ring 3 sees it.
WINDOW_USER: int = lib.DF_KVM_WINDOW_USER


class Ring(enum.IntEnum):
    """The values that a correct guest writes to its doorbell (enum df_kvm_ring)."""

    READY = lib.DF_KVM_RING_READY
    PANIC = lib.DF_KVM_RING_PANIC


class Via(enum.IntEnum):
    """How an error reaches the guest (enum df_kvm_via)."""

    NONE = lib.DF_KVM_VIA_NONE
    AREA = lib.DF_KVM_VIA_AREA
    PF = lib.DF_KVM_VIA_PF
    MC = lib.DF_KVM_VIA_MC
    EVENT = lib.DF_KVM_VIA_EVENT
    GUEST = lib.DF_KVM_VIA_GUEST


class ExitKind(enum.IntEnum):
    """Why a vCPU stopped (enum df_kvm_exit_kind)."""

    DOORBELL = lib.DF_KVM_EXIT_DOORBELL
    EFAULT = lib.DF_KVM_EXIT_EFAULT
    MMIO = lib.DF_KVM_EXIT_MMIO
    SIGBUS = lib.DF_KVM_EXIT_SIGBUS
    STOPPED = lib.DF_KVM_EXIT_STOPPED
    HALT = lib.DF_KVM_EXIT_HALT
    SHUTDOWN = lib.DF_KVM_EXIT_SHUTDOWN
    INTERNAL = lib.DF_KVM_EXIT_INTERNAL
    FAIL_ENTRY = lib.DF_KVM_EXIT_FAIL_ENTRY
    MEMORY = lib.DF_KVM_EXIT_MEMORY
    PORT = lib.DF_KVM_EXIT_PORT
    OTHER = lib.DF_KVM_EXIT_OTHER


@dataclasses.dataclass(frozen=True, slots=True)
class Exit:
    """One exit of a vCPU; struct df_kvm_exit in kvm/kvm.h says which kinds set which fields."""

    vcpu: int
    kind: ExitKind
    error: int
    exit_reason: int
    time_ns: int
    serial: int
    gpa: int
    hva: int
    value: int
    length: int
    write: bool
    detail: tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Registers:
    """struct df_kvm_registers; `exception`: one is pending, with `vector`."""

    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rsp: int
    rbp: int
    r8: int
    r9: int
    r10: int
    r11: int
    r12: int
    r13: int
    r14: int
    r15: int
    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    efer: int
    cs: int
    ss: int
    cpl: int
    exception: bool
    vector: int

    @property
    def interrupts(self) -> bool:
        """RFLAGS.IF."""
        return bool(self.rflags & 0x200)


@dataclasses.dataclass(frozen=True, slots=True)
class Abilities:
    """The features of this KVM; see struct df_kvm_abilities."""

    api: int
    long_mode: bool
    x2apic: bool
    async_pf: bool
    irqchip: bool
    immediate_exit: bool
    stats: bool
    mce: bool
    msi: bool
    memory_fault: bool


def _fields(kind: type[Any]) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(kind))


_EXIT, _REGISTERS, _ABILITIES = _fields(Exit), _fields(Registers), _fields(Abilities)


def _check(value: int, what: str) -> int:
    """check(), with the name of the ioctl that failed."""
    if value >= 0:
        return value
    return check(value, f"{what}: {ffi.string(lib.df_kvm_call()).decode()}")


def probe() -> Abilities:
    """The abilities of /dev/kvm.  OSError ENOENT or EACCES without it."""
    out = ffi.new("struct df_kvm_abilities *")
    _check(lib.df_kvm_probe(out), "KVM")
    values = {name: getattr(out, name) for name in _ABILITIES}
    return Abilities(**{name: value if name == "api" else bool(value) for name, value in values.items()})


class Kvm:
    """A virtual machine with the guest loaded.  Each vCPU waits for its first resume()."""

    def __init__(self, *, vcpus: int = 1, irqchip: bool = True, spin: bool = False) -> None:
        """`spin`: the guest waits for a page without hlt."""
        options = ffi.new("struct df_kvm_options *")
        options.vcpus, options.irqchip, options.spin = vcpus, irqchip, spin
        out = ffi.new("struct df_kvm **")
        _check(lib.df_kvm_new(options, out), "KVM machine")
        self._kvm: Any = out[0]
        self._records = ffi.new("struct df_kvm_exit[]", lib.DF_KVM_MAX_VCPUS)
        self.vcpus = vcpus
        self.irqchip = irqchip

    def ram(self, gpa: int, length: int) -> memoryview:
        """[gpa, gpa + length) of the guest's memory, which the guest may change at any time; must
        not be used after close()."""
        if not 0 <= gpa <= gpa + length <= RAM_LENGTH:
            raise ValueError(f"gpa {gpa:#x}, {length:#x} bytes: not in the guest's memory")
        start = ffi.cast("char *", lib.df_kvm_ram(self._live())) + gpa
        return memoryview(ffi.buffer(start, length))

    def memslot(self, slot: int, gpa: int, length: int, hva: int) -> None:
        """KVM_SET_USER_MEMORY_REGION, in place of the slot's old region; length 0 removes it.  May block."""
        _check(lib.df_kvm_memslot(self._live(), slot, gpa, length, hva), f"memslot {slot}")

    def exits_fd(self) -> int:
        """A descriptor that is readable when exits() has records."""
        return int(lib.df_kvm_exits_fd(self._live()))

    def exits(self) -> list[Exit]:
        """Exits not returned before, at most one for each vCPU; never blocks."""
        n = lib.df_kvm_exits(self._live(), self._records, len(self._records))
        found = []
        for i in range(n):
            record = self._records[i]
            fields = {name: getattr(record, name) for name in _EXIT}
            fields["kind"] = ExitKind(fields["kind"])
            fields["write"] = bool(fields["write"])
            fields["detail"] = tuple(fields["detail"])
            found.append(Exit(**fields))
        return found

    def resume(self, vcpu: int) -> None:
        """Let the vCPU run.  OSError EBUSY when it runs already, or its exit has not been read."""
        check(lib.df_kvm_resume(self._live(), vcpu), f"vCPU {vcpu}: resume")

    def stop(self, vcpu: int) -> bool:
        """Make the vCPU exit; -> False when it does not run.  The exit is STOPPED, or one that
        happened first."""
        return bool(lib.df_kvm_stop(self._live(), vcpu) == 0)

    def cpu_seconds(self, vcpu: int) -> float:
        """CPU time of the vCPU's thread so far, including KVM's work in it."""
        return check(lib.df_kvm_cpu_ns(self._live(), vcpu), f"vCPU {vcpu}: its clock") / 1e9

    def registers(self, vcpu: int) -> Registers:
        """The registers of a vCPU that has exited; OSError EBUSY when it runs."""
        out = ffi.new("struct df_kvm_registers *")
        _check(lib.df_kvm_registers(self._live(), vcpu, out), f"vCPU {vcpu}")
        fields = {name: getattr(out, name) for name in _REGISTERS}
        fields["exception"] = bool(fields["exception"])
        return Registers(**fields)

    def set_registers(self, vcpu: int, registers: Registers) -> None:
        """Set rax ... rflags; the other fields are ignored."""
        given = ffi.new("struct df_kvm_registers *", dataclasses.asdict(registers))
        _check(lib.df_kvm_set_registers(self._live(), vcpu, given), f"vCPU {vcpu}")

    def exception(self, vcpu: int, vector: int, code: int | None = None, cr2: int | None = None) -> None:
        """Inject an exception, delivered before the next instruction.  OSError EAGAIN when another
        is pending."""
        _check(
            lib.df_kvm_exception(
                self._live(), vcpu, vector, -1 if code is None else code, cr2 is not None, cr2 or 0
            ),
            f"vCPU {vcpu}, exception {vector}",
        )

    def machine_check(
        self, vcpu: int, *, status: int, address: int, misc: int, mcg_status: int, bank: int
    ) -> None:
        """KVM_X86_SET_MCE: fill a bank, and raise #MC when `status` is uncorrected."""
        given = ffi.new("struct df_kvm_mce *")
        given.status, given.address, given.misc = status, address, misc
        given.mcg_status, given.bank = mcg_status, bank
        _check(lib.df_kvm_machine_check(self._live(), vcpu, given), f"vCPU {vcpu}, bank {bank}")

    def report(self, vcpu: int, via: Via, *, gva: int, gpa: int, write: bool, user: bool) -> None:
        """Report to the guest that the access at its rip failed; `via`: AREA, PF, MC or EVENT.
        OSError EAGAIN when another event is pending, or the last report has not been read."""
        failure = ffi.new("struct df_kvm_failure *")
        failure.gva, failure.gpa, failure.write, failure.user = gva, gpa, write, user
        _check(lib.df_kvm_report(self._live(), vcpu, via, failure), f"vCPU {vcpu}, gva {gva:#x}")

    def msi(self, vcpu: int, vector: int) -> None:
        """Send an interrupt as an MSI; needs the irqchip."""
        _check(lib.df_kvm_msi(self._live(), vcpu, vector), f"vCPU {vcpu}, MSI {vector:#x}")

    def translate(self, vcpu: int, gva: int) -> int | None:
        """gva -> gpa by the guest's page tables; None when it is not mapped."""
        out = ffi.new("uint64_t *")
        error = lib.df_kvm_translate(self._live(), vcpu, gva, out)
        if error == -2:  # ENOENT, our own
            return None
        _check(error, f"vCPU {vcpu}, gva {gva:#x}")
        return int(out[0])

    def tsc_khz(self, vcpu: int) -> int:
        """Cycles of the guest's TSC per millisecond; the vCPU must have exited."""
        return _check(lib.df_kvm_tsc_khz(self._live(), vcpu), f"vCPU {vcpu}")

    def stats(self, vcpu: int) -> dict[str, int]:
        """KVM's counters of a vCPU, running or not.  OSError ENOSYS before Linux 5.14."""
        out = ffi.new("struct df_kvm_stat[]", _MOST_STATS)
        n = _check(lib.df_kvm_stats(self._live(), vcpu, out, _MOST_STATS), f"vCPU {vcpu}")
        return {ffi.string(stat.name).decode(): int(stat.value) for stat in out[0:n]}

    def faults(self, vcpu: int) -> tuple[int, int]:
        """Faults taken and fixed, by KVM's counters; cheaper than stats()."""
        out = ffi.new("struct df_kvm_faults *")
        _check(lib.df_kvm_faults(self._live(), vcpu, out), f"vCPU {vcpu}")
        return int(out.taken), int(out.fixed)

    def _live(self) -> Any:
        if self._kvm is None:
            raise ValueError("the machine is closed")
        return self._kvm

    def close(self) -> None:
        """End the vCPUs and the machine.  A vCPU may be waiting for a page: its server must still
        run, because this waits too.  Safe to call twice."""
        kvm, self._kvm = self._kvm, None
        if kvm is not None:
            lib.df_kvm_free(kvm)


class Mapping:
    """The host memory of a memslot.  `hva` is its start; this class never touches it."""

    def __init__(self, hva: int, length: int, *, writable: bool = True) -> None:
        self.hva = hva
        self.length = length
        self._writable = writable

    @classmethod
    def of_file(cls, fd: int, offset: int, length: int, *, writable: bool = True) -> Mapping:
        """MAP_SHARED of a file; it may be on our own mount, because mmap(2) does not wait for it."""
        out = ffi.new("uint64_t *")
        _check(lib.df_window_file(fd, offset, length, writable, out), f"descriptor {fd}, {length:#x} bytes")
        return cls(int(out[0]), length, writable=writable)

    @classmethod
    def anonymous(cls, length: int) -> Mapping:
        out = ffi.new("uint64_t *")
        _check(lib.df_window_anonymous(length, out), f"{length:#x} bytes")
        return cls(int(out[0]), length)

    def unmap_tail(self, start: int) -> None:
        """Replace the mapping from offset `start` on by reserved PROT_NONE memory."""
        self._tail(lib.df_window_vacate, start)

    def forbid_tail(self, start: int) -> None:
        """mprotect() the mapping from offset `start` on to PROT_NONE."""
        self._tail(lib.df_window_forbid, start)

    def poison_tail(self, start: int) -> None:
        """Replace the mapping from offset `start` on by poison.  OSError EINVAL before Linux 6.6."""
        self._tail(lib.df_window_poison, start)

    def map_tail_again(self, fd: int, offset: int, start: int) -> None:
        """Map the file again from offset `start` on; the mapping begins at `offset` of the file."""
        hva, length = self.hva + start, self.length - start
        if length > 0:
            error = lib.df_window_again(fd, offset + start, hva, length, self._writable)
            _check(error, f"hva {hva:#x}, {length:#x} bytes")

    def _tail(self, change: Any, start: int) -> None:
        hva, length = self.hva + start, self.length - start
        if length > 0:
            _check(change(hva, length), f"hva {hva:#x}, {length:#x} bytes")

    def close(self) -> None:
        """Unmap it.  Safe to call twice."""
        length, self.length = self.length, 0
        if length:
            _check(lib.df_window_unmap(self.hva, length), f"hva {self.hva:#x}")


def probe_program() -> Path:
    """daxfault-kvm-probe, which tries how this kernel's KVM handles an access to a removed page."""
    return program("daxfault-kvm-probe")


def level2_program() -> Path:
    """daxfault-level2, the init of a Linux guest that touches a window."""
    return program("daxfault-level2")


def rescue_program() -> Path:
    """daxfault-rescue, which ends a fault loop in another process's virtual machine."""
    return program("daxfault-rescue")


def unsupported() -> str | None:
    """Why the guest cannot run here, or None."""
    try:
        can = probe()
    except OSError as e:
        why = {2: "this machine has no KVM", 13: f"not permitted to uid {os.geteuid()}"}.get(e.errno or 0)
        return f"/dev/kvm: {why or e.strerror}"
    return lacking(can)


def lacking(can: Abilities) -> str | None:
    """The feature that the guest needs and this KVM lacks, or None."""
    if can.api != 12:
        return f"/dev/kvm: API version {can.api}, not 12"
    if not can.long_mode:
        return "/dev/kvm: the guest's CPU would have no long mode"
    return None
