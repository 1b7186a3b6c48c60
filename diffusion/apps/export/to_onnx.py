"""The denoiser as one ONNX graph, from noisy image and noise level to the expected image, and a table of its steps."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from diffusion.errors import UserError
from diffusion.grids import Uniform
from diffusion.runs import Run
from diffusion.samplers import ddim
from diffusion.tasks.export import Estimate

MODEL, SCHEDULE = "denoiser.onnx", "schedule.json"
STEPS = 50
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")


class ToOnnx:
    """denoiser.onnx, D(x_t, alpha, sigma[, label, drop]) -> E[x0 | x_t] for any batch size, and schedule.json."""

    library = "onnx"

    def __init__(self, run: Run, config: DictConfig):
        if config.label is not None:
            raise UserError(f"label={config.label}: to={config.to} takes all classes along; leave it out")
        runtime()
        self.run, self.generative = run, run.generative()
        self.denoiser = self.generative.denoiser
        self.shape = self.generative.codec.latent_shape(run.spec.shape)
        self.classes = run.model.classes(run.spec)
        self.grid = Uniform(STEPS)(self.denoiser.scheduler)

    def write(self, out: Path) -> None:
        inputs = self.inputs(torch.randn(2, *self.shape), self.grid[:2])
        # Sizes of 2 ... are any size, those of 0 and 1 would be kept.
        batch = torch.export.Dim("batch")
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                Estimate(self.denoiser).eval(),
                tuple(inputs.values()),
                input_names=list(inputs),
                output_names=["x0"],
                dynamic_shapes=tuple({0: batch} for _ in inputs),
                dynamo=True,
                external_data=False,
            )
            program.save(out / MODEL, external_data=False)
        schedule = {
            "shape": list(self.shape),
            "classes": self.classes,
            "update": "x = r * x + (alpha[i+1] - alpha[i] * r) * D(x, alpha[i], sigma[i]), r = sigma[i+1] / sigma[i]",
            "start": "x = sigma[0] * normal noise",
            **self.levels(),
        }
        (out / SCHEDULE).write_text(json.dumps(schedule, indent=2) + "\n")

    def levels(self) -> dict[str, list[float]]:
        """The times to step along, with alpha and sigma."""
        scheduler, grid = self.denoiser.scheduler, self.grid
        with torch.no_grad():
            return {
                name: values.tolist()
                for name, values in {"t": grid, "alpha": scheduler.alpha(grid), "sigma": scheduler.sigma(grid)}.items()
            }

    def inputs(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> dict[str, Tensor]:
        """What the graph takes, by name, at times t (B,)."""
        with torch.no_grad():
            found = {"x_t": x, "alpha": self.denoiser.scheduler.alpha(t), "sigma": self.denoiser.scheduler.sigma(t)}
        if self.classes is None:
            return found
        if label is None:
            label = torch.arange(len(x)) % self.classes
        if self.run.spec.multi_label:
            label = torch.nn.functional.one_hot(label, self.classes).float()
        return found | {"label": label, "drop": torch.zeros(len(x), dtype=torch.bool)}

    @torch.no_grad()
    def images(self, out: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
        session = runtime().InferenceSession(str(out / MODEL), providers=["CPUExecutionProvider"])
        scheduler, grid = self.denoiser.scheduler, self.grid
        start = torch.randn((n, *self.shape), generator=torch.Generator().manual_seed(seed)) * scheduler.sigma(grid[0])
        x = start = start.float()
        for t, s in pairwise(grid):
            feed = self.inputs(x, t.expand(n))
            mean = torch.from_numpy(session.run(["x0"], {name: value.numpy() for name, value in feed.items()})[0])
            ratio = scheduler.sigma(s) / scheduler.sigma(t)
            x = ratio.float() * x + (scheduler.alpha(s) - scheduler.alpha(t) * ratio).float() * mean
        cond = {name: value for name, value in feed.items() if name in ("label", "drop")}
        here = ddim(self.denoiser, start, grid, cond)
        return self.generative.codec.decode(here), self.generative.codec.decode(x)

    @property
    def usage(self) -> str:
        told = ', "label": labels, "drop": np.zeros(n, bool)' if self.classes is not None else ""
        labels = f"labels = np.arange(n) % {self.classes}\n" if self.classes is not None else ""
        return (
            "import json\n\nimport numpy as np\nimport onnxruntime\n\n"
            f'session, n = onnxruntime.InferenceSession("FOLDER/{MODEL}"), 16\n'
            f'levels = json.load(open("FOLDER/{SCHEDULE}"))\n'
            'alpha, sigma = np.array(levels["alpha"]), np.array(levels["sigma"])\n'
            f"{labels}x = (sigma[0] * np.random.randn(n, {', '.join(map(str, self.shape))})).astype(np.float32)\n"
            "for i in range(len(sigma) - 1):\n"
            f'    feed = {{"x_t": x, "alpha": np.full(n, alpha[i]), "sigma": np.full(n, sigma[i]){told}}}\n'
            '    (x0,) = session.run(["x0"], feed)\n'
            "    ratio = sigma[i + 1] / sigma[i]\n"
            "    x = np.float32(ratio) * x + np.float32(alpha[i + 1] - alpha[i] * ratio) * x0"
        )


def runtime() -> Any:
    """onnxruntime. Raises UserError where what export to ONNX takes is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"to=onnx needs {error.name}: pip install onnx onnxruntime onnxscript") from error
    return onnxruntime


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's own account of itself."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
