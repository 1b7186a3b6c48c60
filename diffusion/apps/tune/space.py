"""What a search chooses among: keys of train.py, each with a sweep in Hydra's grammar.

interval(a,b) is every number between, int(interval(a,b)) every whole one, range(a,b[,step]) as Hydra counts, without b,
and choice(a,b,...), or a,b,..., what it names; tag(log, ...) searches on a logarithmic scale.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer

from diffusion.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Params = Mapping[str, Any]
"""key -> value, of one trial."""


def distributions(space: Mapping[str, str]) -> dict[str, BaseDistribution]:
    """key -> Optuna's distribution. Raises UserError for what is no sweep, or an empty one."""
    return {key: distribution(f"{key}={sweep}") for key, sweep in space.items()}


def distribution(word: str) -> BaseDistribution:
    """Of one word, key=SWEEP."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    (override,) = OverridesParser.create().parse_overrides([word])
    if not override.is_sweep_override():
        raise UserError(f"{word}: give interval(a,b), range(a,b), choice(a,b), or tag(log,interval(a,b))")
    sweep, log = override.value(), _is_log(override)
    try:
        if isinstance(sweep, IntervalSweep):
            whole = isinstance(sweep.start, int) and isinstance(sweep.end, int)
            return (IntDistribution if whole else FloatDistribution)(sweep.start, sweep.end, log=log)
        if isinstance(sweep, RangeSweep):
            values = sorted(sweep.range())
            whole, step = isinstance(values[0], int), abs(sweep.step)
            kind = IntDistribution if whole else FloatDistribution
            return kind(values[0], values[-1], step=1 if log and whole else None if log else step, log=log)
        if log:
            raise UserError(f"{word}: a choice has no scale; leave tag(log, ...) out")
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_iterator(Transformer.encode))))
    except (ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        why = "a logarithmic scale begins above 0" if log else "it holds nothing"
        raise UserError(f"{word}: {why}") from error
    except Exception as error:
        raise UserError(f"{word}: {' '.join(str(error).split())}") from error


def _is_log(override: Override) -> bool:
    tags = getattr(override.value(), "tags", set())
    if tags - {"log"}:
        raise UserError(f"{override.input_line}: the one tag there is, is log")
    return bool(tags)


def size(space: Mapping[str, BaseDistribution]) -> float:
    """The number of different trials that there can be; infinite where a key has a continuous range."""
    return math.prod(_size(each) for each in space.values())


def _size(found: BaseDistribution) -> float:
    if hasattr(found, "choices"):
        return len(found.choices)
    if found.single():
        return 1
    return math.inf if found.step is None else round((found.high - found.low) / found.step) + 1


def ends(space: Mapping[str, BaseDistribution]) -> list[str]:
    """Every choice, and both ends of every range, as the word that sets it."""
    values = {key: getattr(each, "choices", None) or {each.low, each.high} for key, each in space.items()}
    return [word_of(key, value) for key, some in values.items() for value in some]


def rounded(params: Params, space: Mapping[str, BaseDistribution], digits: int = 4) -> dict[str, Any]:
    """The values with numbers of so many digits, which read well and are as good, within the ranges."""

    def of(value: Any, found: BaseDistribution) -> Any:
        if not isinstance(value, float) or hasattr(found, "choices"):
            return value
        return min(max(float(f"{value:.{digits if found.step is None else 12}g}"), found.low), found.high)

    return {key: of(value, space[key]) for key, value in params.items()}


def word_of(key: str, value: Any) -> str:
    """key=value, as the command line takes it."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def words_of(params: Params) -> list[str]:
    return [word_of(key, value) for key, value in params.items()]
