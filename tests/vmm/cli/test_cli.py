# SPDX-License-Identifier: Apache-2.0
"""The command line's frame: help, version, and how a command may end."""

import subprocess
import sys
from importlib.metadata import version

import pytest
import trio
import typer
from typer.testing import CliRunner

import daxfault
from daxfault.vmm.cli.main import Commands, app
from daxfault.vmm.errors import DaxfaultError, Unsupported, UsageError


def ending_with(exc: BaseException) -> typer.Typer:
    """A command line like ours, whose only command raises `exc`."""
    ours = typer.Typer(cls=Commands, pretty_exceptions_enable=False)

    @ours.callback()
    def frame() -> None:
        pass

    @ours.command()
    def fail() -> None:
        raise exc

    return ours


@pytest.mark.parametrize(
    ("exc", "code"),
    [
        (DaxfaultError("it broke"), 1),
        (UsageError("it makes no sense"), 2),
        (Unsupported("the machine lacks it"), 3),
        (BaseExceptionGroup("nursery", [Unsupported("the machine lacks it")]), 3),
    ],
    ids=["failed", "usage", "unsupported", "in-a-group"],
)
def test_command_refused_is_one_line_and_a_code(exc: BaseException, code: int) -> None:
    done = CliRunner().invoke(ending_with(exc), ["fail"])
    reason = exc.exceptions[0] if isinstance(exc, BaseExceptionGroup) else exc
    assert done.exit_code == code
    assert done.stderr == f"daxfault: {reason}\n"
    assert done.stdout == ""


@pytest.mark.parametrize(
    "exc",
    [KeyboardInterrupt(), BaseExceptionGroup("nursery", [KeyboardInterrupt(), ValueError()])],
    ids=["alone", "in-a-group"],
)
def test_command_interrupted_ends_with_130(exc: BaseException) -> None:
    assert CliRunner().invoke(ending_with(exc), ["fail"]).exit_code == 130


def test_command_with_a_bug_keeps_its_traceback() -> None:
    done = CliRunner().invoke(ending_with(ZeroDivisionError("a bug")), ["fail"])
    assert isinstance(done.exception, ZeroDivisionError)


def test_command_with_two_failures_keeps_both() -> None:
    group = ExceptionGroup("nursery", [UsageError("one"), trio.BrokenResourceError("two")])
    assert CliRunner().invoke(ending_with(group), ["fail"]).exception is group


def test_help_names_every_command() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    for command in ("doctor", "mount"):
        assert command in done.stdout


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_the_packages(option: str) -> None:
    done = CliRunner().invoke(app, [option])
    assert (done.exit_code, done.stdout) == (0, f"daxfault {version('daxfault')}\n")
    assert daxfault.__version__ == version("daxfault")


def test_import_of_daxfault_loads_no_engine() -> None:
    """So that it stays quick: what a name needs is imported with its first use."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, daxfault; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    loaded = {
        name for name in done.stdout.split() if name.startswith(("daxfault.", "trio", "importlib.metadata"))
    }
    assert not loaded


def test_command_unknown_is_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["no-such-command"]).exit_code == 2


def test_help_imports_nothing_that_only_commands_need() -> None:
    """So that it stays quick, and completion with it."""
    heavy = {"trio", "pyfuse3"} | {
        f"daxfault.{name}" for name in ("native", "fsd", "vmm.doctor.report", "vmm.cli.serve_mount")
    }
    done = subprocess.run(
        [sys.executable, "-c", "import sys, daxfault.vmm.cli.main; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert not heavy & set(done.stdout.split())
