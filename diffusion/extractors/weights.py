"""Weights of others: what can be wrong with them, in one line."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from difflib import get_close_matches
from pathlib import Path

import torch
from torch import Tensor

from diffusion.errors import UserError

log = logging.getLogger(__name__)

LONGEST = 160
"""Characters of a reason; what PyTorch says of weights that do not fit names every one of them."""


@contextmanager
def optional(choice: str, library: str, remedy: str) -> Iterator[None]:
    """Within, an optional library is imported. Raises UserError where it is not installed, or is broken."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"extractor={choice} needs the library {library} ({reason(error)}): {remedy}, or choose extractor=domain"
        ) from error


def check_name(choice: str, name: str, known: Sequence[str]) -> None:
    """Raises UserError, with names that are like it, unless `name` is known."""
    if name not in known:
        near = get_close_matches(str(name), known, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "see the library's own list"
        raise UserError(f"extractor.name={name}: extractor={choice} has no such model: {hint}")


@contextmanager
def loading(choice: str, what: str, path: str | None, url: str | None = None) -> Iterator[None]:
    """Within, weights are loaded from the file `path`, or downloaded: in silence, with a fixed random state.

    Raises UserError for whatever goes wrong within.
    """
    if path is not None and not Path(path).is_file():
        raise UserError(f"extractor.path={path}: there is no such file: give the weights of {what}")
    if path is None:
        log.info("loading the weights of %s, which are downloaded the first time", what)
    try:
        # Weights are drawn before those that are loaded take their place.
        with torch.random.fork_rng(devices=[]), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except UserError:
        raise
    # What the libraries and the download raise has no common base.
    except Exception as error:
        if path is not None:
            raise UserError(
                f"extractor.path={path} does not hold the weights of {what} ({reason(error)}): give another file"
            ) from error
        where = f"get {url} elsewhere" if url else "get their file elsewhere"
        raise UserError(
            f"extractor={choice}: the weights of {what} could not be downloaded or read ({reason(error)}): {where} and "
            "give extractor.path=FILE, or choose extractor=domain"
        ) from error


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file that holds nothing else, on the CPU."""
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError("it holds something else")
    return weights


def reason(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
