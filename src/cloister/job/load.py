"""Job files: Python files with a `job` at the top level.

A job file is code. `load_job` runs it on its author's own machine; `run_source` runs the source that a job
ships, in a site's worker process and nowhere else.
"""

from __future__ import annotations

import dataclasses
import linecache
import sys
import traceback
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from cloister.job.job import Job
from cloister.job.manifest import MAX_SOURCE_BYTES
from cloister.job.nets import Code
from cloister.vector.errors import JobError

MODULE = "cloister_job"  # the one name under which a job file is imported, everywhere
FILE = "<job file>"  # what tracebacks of it say: the same on every machine


def load_job(path: str | Path) -> Job:
    """The job of a file, with the file's source if it names code.

    Raises: JobError: no such file, it raises, or it has no `job`; names the line where there is one.
    """
    path = Path(path)
    try:
        source = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    except OSError as fault:
        raise JobError(f"the job file {path} cannot be read: {fault.strerror}.", mend="Check the path.") from None
    except UnicodeDecodeError:
        raise JobError(f"the job file {path} is no UTF-8 text.") from None
    try:
        job = getattr(run_source(source), "job", None)
    except JobError as fault:
        cause = fault.__cause__  # the author may read what their own code says
        said = f"{fault.message.replace(FILE, path.name)}: {cause}" if cause else str(fault)
        raise JobError(said) from cause
    if not isinstance(job, Job):
        raise JobError(f"{path.name} has no `job`.", mend="End it with `job = cl.Job(...)`.")
    for code in job.task.codes:
        if getattr(sys.modules[MODULE], code.name, None) is not code.function:
            raise JobError(
                f"{path.name} has no {code.name!r} of its own, so no site could find it.",
                mend=f"Define it in {path.name}, at the top level.",
            )
    return dataclasses.replace(job, source=source if job.ships_code else None)


def run_source(source: str) -> ModuleType:
    """Runs a job file's source as module `cloister_job`.

    Raises: JobError: it raises; says only the exception's type and the line, for it may have seen data.
    """
    if len(source) > MAX_SOURCE_BYTES:
        raise JobError(f"the job file is over {MAX_SOURCE_BYTES} bytes.")
    module = ModuleType(MODULE)
    module.__file__ = FILE
    sys.modules[MODULE] = module  # dataclasses and pickling look it up
    linecache.cache[FILE] = (len(source), None, source.splitlines(keepends=True), FILE)
    try:
        exec(compile(source, FILE, "exec"), module.__dict__)
    except SyntaxError as fault:
        raise JobError(f"{FILE}, line {fault.lineno}: {fault.msg}.") from None
    except (Exception, SystemExit) as fault:
        raise JobError(f"{FILE}{line_of(fault)} raises {type(fault).__name__}") from fault
    return module


def line_of(fault: BaseException, files: Collection[str] = (FILE,)) -> str:
    """Where in the job file it went wrong: ", line 12" of the innermost frame there; "" if there is none."""
    lines = [frame.lineno for frame in traceback.extract_tb(fault.__traceback__) if frame.filename in files]
    return f", line {lines[-1]}" if lines else ""


def resolve(job: Job, code: Code) -> Any:
    """The object that a job's code names: the analyst's own, or from the source. Raises JobError: it is not there."""
    if code.function is not None:
        return code.function
    module = sys.modules.get(MODULE)
    if module is None or getattr(module, "__cloister_source__", None) != job.source:
        module = run_source(job.source or "")
        module.__dict__["__cloister_source__"] = job.source
    try:
        return getattr(module, code.name)
    except AttributeError:
        raise JobError(f"the job file has no {code.name!r} at its top level.") from None


def files_of(job: Job) -> set[str]:
    """The file names that tracebacks give the job's code in this process."""
    modules = [sys.modules.get(code.function.__module__) for code in job.task.codes if code.function]
    return {FILE} | {module.__file__ for module in modules if module and module.__file__}
