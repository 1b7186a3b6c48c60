"""How a command ends: a user's mistake is one line and status 2, a stop by a signal 75, Ctrl-C 130.

A failed gate, and a process that the others of its run have left alone, is one line and status 1.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion.errors import Abandoned, GateFailed, Stopped, UserError

EXIT_FAILED, EXIT_USER_ERROR, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 75, 130


def run(body: Callable[[], object]) -> None:
    """Run a command's body and exit. HYDRA_FULL_ERROR=1 shows the traceback of a user's mistake too."""
    full = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing and ending with status 1
    try:
        error = _outcome(body)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if error is None:
        return
    if isinstance(error, Stopped):
        if str(error):
            print(error, file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if isinstance(error, GateFailed | Abandoned):
        print(error, file=sys.stderr)
        sys.exit(EXIT_FAILED)
    line = explain(error)
    if full or line is None:
        raise error
    print(f"error: {line}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


def _outcome(body: Callable[[], object]) -> Exception | None:
    try:
        body()
    except Passing as passing:
        return passing.__cause__
    except Exception as error:
        return error
    return None


class Passing(BaseException):
    """Carries an exception, its cause, through Hydra, which catches every Exception and prints lines of its own."""


@contextmanager
def deferred() -> Iterator[None]:
    """Inside Hydra: keep it from reporting what `run` is to report."""
    try:
        yield
    except Exception as error:
        raise Passing from error


def explain(error: BaseException) -> str | None:
    """One line for a mistake of the user, or None for an error of the program."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, UserError) or type(cause).__name__ == "DataError":
            return str(cause)
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            return f"{cause.filename or 'a file'}: {cause.strerror}; mend that and give the same command again"
        if isinstance(cause, MissingConfigException):
            return _missing_choice(str(cause))
        if isinstance(cause, OverrideParseException):
            return f"{cause.override}: cannot be read as key=value; quote special characters: 'key=\"value\"'"
        if type(cause).__name__ == "MisconfigurationException":  # Lightning's, on devices and precisions
            return f"{_one_line(str(cause))}; see accelerator= and trainer."
        if isinstance(cause, ValueError) and str(cause).startswith("Config group override"):
            return f"{_one_line(str(cause))}: a group takes the name of a choice"
    for cause in chain:
        if isinstance(cause, InstantiationException):
            return _instantiation_error(str(cause))
        if isinstance(cause, OmegaConfBaseException):
            return _config_error(cause, error)
    return _one_line(str(error)) if isinstance(error, (HydraException, ConfigCompositionException)) else None


def suggest(name: str, names: Iterable[str]) -> str:
    """A clause that names the nearest of `names`, or all of them when none is near."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(names)}"


def suggest_key(key: str, config: DictConfig) -> str:
    """A clause that names the keys that may be meant: near ones beside `key`, or its namesakes elsewhere."""
    names = [name for name in keys_of(config) if "._" not in name and not name.startswith("hydra")]
    parent, _, leaf = key.rpartition(".")
    beside = [name for name in names if name.rpartition(".")[0] == parent]
    namesakes = [name for name in names if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(leaf, [name.rpartition(".")[2] for name in beside], n=3)
    near = [f"{parent}.{name}".lstrip(".") for name in close] or namesakes
    if near:
        return f"did you mean {' or '.join(near)}?"
    if beside:
        return f"there are: {', '.join(beside)}"
    return (
        f"{parent} has no keys as it is: choose another {parent}=" if parent in names else suggest_key(parent, config)
    )


def keys_of(config: object, prefix: str = "") -> Iterator[str]:
    """All dotted keys of a config, without resolving it."""
    if isinstance(config, DictConfig) and not config._is_none() and not config._is_missing():
        for key in config:
            yield f"{prefix}{key}"
            yield from keys_of(config._get_node(key), f"{prefix}{key}.")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _missing_choice(message: str) -> str:
    found = re.search(
        r"Could not find '(.+)/([^/']+)'\s+Available options in '.*?':\s+(.*?)(?:Config search path|$)",
        message,
        re.DOTALL,
    )
    if not found:
        return _one_line(message)
    group, name, options = found.groups()
    if group == "hydra/launcher" and name in ("joblib", "submitit_local", "submitit_slurm"):
        return f'{group}={name} is not installed: pip install -e ".[sweeps]"'
    return f"{group}={name}: there is no such choice; {suggest(name, options.split())}"


def _instantiation_error(message: str) -> str:
    *said, last = message.replace(", set env var HYDRA_FULL_ERROR=1 to see chained exception.", "").splitlines()
    key = last.removeprefix("full_key: ")
    return _one_line("\n".join(said) if key != last else message) + (f" (at {key})" if key != last else "")


WANTED = {
    "converted to Integer": "give a whole number",
    "converted to Float": "give a number",
    "converted to Boolean": "give true or false",
    "is not Optional": "it cannot be null",
    "is not a subclass of": "set its keys one by one",
}


def _config_error(cause: OmegaConfBaseException, error: BaseException) -> str:
    full_key = getattr(cause, "full_key", None)
    if not full_key:
        return _one_line(str(error))
    message = str(cause.msg or cause).splitlines()[0]
    if "is not in struct" in message or "not in '" in message:
        root = cause.parent_node
        while root._get_parent() is not None:
            root = root._get_parent()
        return f"{full_key}: there is no such key; {suggest_key(full_key, root)}"
    wanted = next((clause for part, clause in WANTED.items() if part in message), message)
    return f"{full_key}={cause.value}: {wanted}" if wanted is not message else f"{full_key}: {message}"


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())
