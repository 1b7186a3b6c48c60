"""The layers of the house: imports go down only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LEVELS = {
    0: "schedulers parameterizations grids operators augmentations averages random "
    "errors compilation devices files processes processor provenance",
    1: "denoiser codecs networks",
    2: "samplers guidance objectives generative",
    3: "tasks metrics extractors controls",
    4: "modules callbacks models runs finetune strategies",
    5: "apps __main__ train",
}
LEVEL = {unit: level for level, units in LEVELS.items() for unit in units.split()}
TORCH_ONLY = 2
EXTRAS = {("diffusion.networks.hub", "diffusers"), ("diffusion.extractors.pretrained", "torchvision")}
"""Libraries that may be absent or broken, each with the one module that adapts it, and imports it inside a function."""
LIGHT = ["diffusion.apps.cli", "diffusion.apps.config", "diffusion.apps.tasks", "diffusion.errors"]

Import = tuple[str, str]
"""The module that imports, and the dotted name that it takes: "torch.nn", or "diffusion.errors.UserError"."""


def sources() -> dict[str, str]:
    """The text of every module of the project, by its dotted name."""
    paths = [ROOT / "train.py", *(ROOT / "diffusion").rglob("*.py"), *(ROOT / "datamodules").rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in paths}
    return {name.removesuffix(".__init__"): text for name, text in modules.items()}


def imports(texts: dict[str, str]) -> Iterator[Import]:
    """Every import, also those inside functions and those for type checkers only."""
    for module, text in texts.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                yield from ((module, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((module, "." * node.level + f"{node.module}.{alias.name}") for alias in node.names)


def unit_of(name: str) -> str | None:
    """The package or module of the map that a dotted name belongs to; None outside `diffusion`."""
    head, *rest = name.split(".")
    if head == "train":
        return "train"
    return rest[0] if head == "diffusion" and rest and rest[0] != "__version__" else None


def faults(texts: dict[str, str]) -> list[str]:
    """What breaks the rules, one line each."""
    found, graph = [], {}
    for module in texts:
        unit = unit_of(module)
        if unit is not None and unit not in LEVEL:
            found.append(f"{module}: '{unit}' is not in the map of layers: give it a level in tests/test_layers.py")
    for module, name in imports(texts):
        unit, other, root = unit_of(module), unit_of(name), name.split(".")[0]
        level, above = LEVEL.get(unit, -1), LEVEL.get(other, -1)
        if name.startswith("."):
            found.append(f"{module} imports {name}: write the whole name")
        if root == "torchvision" and (module, root) not in EXTRAS:
            found.append(f"{module} imports torchvision")
        if module.startswith("datamodules") and root in ("diffusion", "train"):
            found.append(f"{module} imports {name}: datamodules know nothing of the models")
        if unit and root == "datamodules" and not f"{name}.".startswith("datamodules.batch."):
            found.append(f"{module} imports {name}: only datamodules.batch is shared")
        known = {*sys.stdlib_module_names, "torch", "diffusion"}
        if 0 <= level <= TORCH_ONLY and root not in known and (module, root) not in EXTRAS:
            found.append(f"{module} imports {root}: levels 0 to {TORCH_ONLY} need torch alone")
        if unit and other and above > level:
            found.append(f"{module} (level {level}) imports {name} (level {above}): imports go down")
        if unit and other and unit != other:
            graph.setdefault(unit, set()).add(other)
    for module, library in EXTRAS:
        outermost = [
            node for node in ast.parse(texts.get(module, "")).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        if any(library in ast.unparse(node) for node in outermost):
            found.append(f"{module} imports {library} at once: do it inside a function, for it is optional")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"packages import each other: {' -> '.join(error.args[1])}")
    return found


def test_imports_go_down_only():
    assert faults(sources()) == []


def test_the_map_names_what_is_there():
    texts = sources()
    assert "train" in texts and "diffusion.denoiser" in texts and "datamodules.batch" in texts
    found = {unit_of(module) for module in texts} - {None}
    assert set(LEVEL) <= found
    assert len(list(imports(texts))) > 300


@pytest.mark.parametrize(
    ("module", "text", "said"),
    [
        ("diffusion.schedulers.new", "from diffusion.denoiser import Denoiser", "imports go down"),
        ("diffusion.samplers.new", "def f():\n    from diffusion import tasks", "imports go down"),
        ("diffusion.grids.new", "import diffusion.runs as r", "imports go down"),
        ("diffusion.networks.new", "import numpy as np", "torch alone"),
        ("diffusion.codecs.new", "def f():\n    import diffusers", "torch alone"),
        ("diffusion.networks.hub", "from diffusers import AutoencoderKL", "inside a function"),
        ("diffusion.generative", "from pytorch_lightning import Trainer", "torch alone"),
        ("diffusion.runs", "from datamodules.npz import Npz", "only datamodules.batch"),
        ("diffusion.apps.new", "from datamodules import digits", "only datamodules.batch"),
        ("datamodules.new", "from diffusion.errors import UserError", "know nothing"),
        ("datamodules.new", "import torchvision.transforms", "torchvision"),
        ("diffusion.tasks.new", "from .sample import sample", "whole name"),
        ("diffusion.novelty", "x = 1", "not in the map"),
        ("diffusion.novelty.deep", "x = 1", "not in the map"),
    ],
)
def test_a_breach_is_found(module, text, said):
    (fault,) = faults({module: text})
    assert module in fault and said in fault


def test_a_cycle_is_found():
    texts = {"diffusion.runs": "import diffusion.callbacks", "diffusion.callbacks.a": "from diffusion import runs"}
    (fault,) = faults(texts)
    assert "each other" in fault and "runs" in fault and "callbacks" in fault


def test_what_is_allowed_is_not_a_fault():
    lower = "import math\nimport torch.nn as nn\nfrom diffusion.errors import UserError\nfrom diffusion import random"
    texts = {"diffusion.denoiser": lower, "diffusion.runs": "from datamodules.batch import DataSpec\nimport numpy"}
    adapter = {"diffusion.networks.hub": "def f():\n    from diffusers import AutoencoderKL"}
    assert faults({**texts, **adapter}) == []


def test_the_entry_point_is_thin():
    assert len((ROOT / "train.py").read_text().splitlines()) <= 40
    theirs = {unit_of(name) for module, name in imports(sources()) if module == "train"} - {None}
    assert theirs == {"apps"}


@pytest.mark.slow
def test_what_every_command_imports_first_is_light():
    code = (
        f"import sys, {', '.join(LIGHT)}\n"
        "print({'torch', 'pytorch_lightning', 'numpy', 'matplotlib', 'wandb', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
