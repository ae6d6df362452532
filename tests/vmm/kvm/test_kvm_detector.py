# SPDX-License-Identifier: Apache-2.0
"""The rule by which a loop is suspected: faults that are taken, and none that is fixed."""

from daxfault.vmm.kvm.detector import FAULTS, Detector


def test_faults_of_which_none_is_fixed_are_a_suspicion() -> None:
    detector = Detector(2)
    looks = [detector.look(0.1 * n, 100 + n, 7) for n in range(FAULTS + 1)]
    assert looks[:FAULTS] == [None] * FAULTS
    found = looks[FAULTS]
    assert found is not None
    assert (found.vcpu, found.faults) == (2, FAULTS)
    assert abs(found.seconds - 0.1 * FAULTS) < 1e-9


def test_faults_of_which_one_is_fixed_now_and_then_are_none() -> None:
    detector = Detector(0)
    assert all(detector.look(float(n), 3 * n, n) is None for n in range(100))


def test_faults_before_a_reset_do_not_count() -> None:
    detector = Detector(0)
    assert detector.look(0.0, 0, 0) is None
    assert detector.look(1.0, FAULTS - 1, 0) is None
    detector.reset()
    assert detector.look(2.0, FAULTS, 0) is None
    assert detector.look(3.0, 2 * FAULTS - 1, 0) is None
    assert detector.look(4.0, 2 * FAULTS, 0) is not None


def test_vcpu_that_does_not_fault_is_never_suspected() -> None:
    detector = Detector(0)
    assert all(detector.look(float(n), 5, 5) is None for n in range(100))
