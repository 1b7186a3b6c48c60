"""How every command ends: a user's mistake is one line and status 2, a stop by a signal is status 75."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion.errors import Stopped, UserError

USER_ERROR, STOPPED = 2, 75


def run(body: Callable[[], object]) -> None:
    """Run a command's body and exit. HYDRA_FULL_ERROR=1 shows the traceback of a user's mistake too."""
    full = os.environ.get("HYDRA_FULL_ERROR", "0") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, instead of printing and ending with status 1
    try:
        body()
        if _deferred:
            raise _deferred[0]
    except Exception as error:
        if isinstance(error, Stopped):
            sys.exit(STOPPED)
        line = explain(error)
        if full or line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(USER_ERROR)


_deferred: list[Exception] = []


@contextmanager
def deferred() -> Iterator[None]:
    """Hold an exception back until Hydra has returned, for it would print lines of its own."""
    try:
        yield
    except Exception as error:
        _deferred.append(error)


def explain(error: BaseException) -> str | None:
    """One line for a mistake of the user, or None for an error of the program."""
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, UserError) or type(cause).__name__ == "DataError":
            return str(cause)
    for cause in chain:
        if isinstance(cause, MissingConfigException):
            return _missing_choice(str(cause))
    for cause in chain:
        if isinstance(cause, InstantiationException):
            return _one_line(str(error))
        if isinstance(cause, OmegaConfBaseException):
            return _config_error(cause, error)
    return _one_line(str(error)) if isinstance(error, (HydraException, ConfigCompositionException)) else None


def suggest(name: str, names: Iterable[str]) -> str:
    """A clause that names the nearest of `names`, or all of them when none is near."""
    names = list(names)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    top = [candidate for candidate in names if "." not in candidate]
    return f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(top)}"


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
    return f"{group}={name}: there is no such choice; {suggest(name, options.split())}"


def _config_error(cause: OmegaConfBaseException, error: BaseException) -> str:
    full_key = getattr(cause, "full_key", None)
    message = str(cause.msg if hasattr(cause, "msg") and cause.msg else cause).splitlines()[0]
    if "is not in struct" in message or "not in 'Config'" in message or "not in '" in message:
        root = cause.parent_node
        while root is not None and root._get_parent() is not None:
            root = root._get_parent()
        names = [name for name in keys_of(root) if not name.startswith("hydra")]
        return f"{full_key}: there is no such key; {suggest(str(full_key), names)}"
    return f"{full_key}: {message}" if full_key else _one_line(str(error))


def _one_line(message: str) -> str:
    return " ".join(line.strip() for line in message.splitlines() if line.strip())
