"""The command `cloister`: every command, and what becomes of an error.

Commands import what they need when they run, so that `--help` and a wrong option answer at once.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence

import typer

from cloister.cli import attack, audit, budget, check, coordinator, demo, runs, simulate, site, sweep, verify
from cloister.vector import crash
from cloister.vector.errors import AddressInUse, CloisterError, StorageFull, UsageError

INTERRUPTED = 130

app = typer.Typer(
    name="cloister",
    help="Federated learning that secures model training: only a share of a sealed sum ever leaves a site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo.demo)
app.command("check")(check.check)
app.command("attack")(attack.attack)
app.add_typer(audit.app, name="audit")
app.command("simulate")(simulate.simulate)
app.command("sweep")(sweep.sweep)
app.add_typer(coordinator.app, name="coordinator")
site.app.command("budget")(budget.budget)
app.add_typer(site.app, name="site")
app.command("submit")(runs.submit)
app.command("status")(runs.status)
app.command("watch")(runs.watch)
app.command("fetch")(runs.fetch)
app.command("verify")(verify.verify)


@app.command("version")
def version() -> None:
    """Print the version."""
    from importlib.metadata import version as installed

    print(f"cloister {installed('cloister')}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 your fault, 1 ours or a peer's, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(run(arguments))


def run(arguments: list[str]) -> int:
    """One command; returns its exit code. An error is one line on standard error, or one JSON object."""
    as_json = "--json" in arguments
    try:
        crash.arm(os.environ.get(crash.VARIABLE, ""))
        code = app(arguments, standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except CloisterError as fault:
        return _report(fault, as_json)
    except typer.TyperException as fault:
        return _report(UsageError(_sentence(fault.format_message()), mend="See --help."), as_json)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at exit
        return 1
    except OSError as fault:
        return _report(_environment(fault), as_json)
    except Exception as fault:
        return _report(_unexpected(fault), as_json)


def _report(fault: CloisterError, as_json: bool) -> int:
    if as_json:
        print(json.dumps(fault.as_json()), file=sys.stderr)
    else:
        print("error: " + " ".join(str(fault).split()), file=sys.stderr)
    return fault.exit_code


def _environment(fault: OSError) -> CloisterError:
    """The operating system's common refusals, in our words."""
    where = f" {fault.filename}" if fault.filename else ""
    if fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(f"the disk is full{where}.", mend="Free some space and run the command again.")
    if fault.errno == errno.EADDRINUSE:
        return AddressInUse("the port is taken.", mend="Choose another with --port, or stop what uses it.")
    if isinstance(fault, FileNotFoundError):
        return UsageError(f"there is no{where or ' such file'}.", mend="Check the path.")
    if isinstance(fault, PermissionError | IsADirectoryError | NotADirectoryError | FileExistsError):
        return UsageError(f"cannot use{where}: {(fault.strerror or 'refused').lower()}.", mend="Check the path.")
    return _unexpected(fault)


def _unexpected(fault: BaseException) -> CloisterError:
    """A fault that no one foresaw: one line, and the whole trace in a file to send with a report."""
    handle, path = tempfile.mkstemp(prefix="cloister-", suffix=".trace")
    with os.fdopen(handle, "w") as file:
        traceback.print_exception(fault, file=file)
    return CloisterError(f"unexpected {type(fault).__name__}.", mend=f"This is our fault; the trace is in {path}.")


def _sentence(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]}."
