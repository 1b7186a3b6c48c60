"""Distillation against Gaussian data, whose denoiser and probability flow have closed forms."""

from functools import partial

import pytest
import torch
from torch import Tensor

from diffusion.denoiser import NetworkDenoiser, Prediction
from diffusion.errors import UserError
from diffusion.grids import Angle, Karras, LogSNR, Uniform
from diffusion.objectives import EDM, Distillation, MinSNR
from diffusion.parameterizations import EDM as EDMParameterization
from diffusion.samplers import ddim
from diffusion.schedulers import EDM as VarianceExploding
from diffusion.schedulers import Cosine, Flow
from tests.analytic import EVERY_SCHEDULER, GaussianDenoiser, times

GRIDS = {
    "angle": Angle(4),
    "one": Angle(1),
    "karras": Karras(3, 0.5, 10.0),
    "log-SNR": LogSNR(4, -4, 2),
    "even": Uniform(5),
}
every_scheduler = pytest.mark.parametrize("scheduler", EVERY_SCHEDULER.values(), ids=EVERY_SCHEDULER.keys())
every_grid = pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS.keys())
N = 64


class Student(NetworkDenoiser):
    """Answers what `answer` does, plus a parameter that is 0."""

    def __init__(self, scheduler, answer):
        super().__init__(scheduler, EDMParameterization(0.5), torch.nn.Dropout(0.5))
        self.answer, self.shift, self.asked = answer, torch.nn.Parameter(torch.zeros(3, dtype=torch.float64)), []

    def predict(self, x_t: Tensor, t: Tensor, cond=None) -> Prediction:
        self.asked.append((t, self.training, torch.is_grad_enabled()))
        return Prediction(self.answer(x_t, t) + self.shift)


def below(grid, scheduler, t: Tensor) -> Tensor:
    """The lower end of each time's segment."""
    ends = grid(scheduler)
    return torch.stack([ends[ends < each].max() for each in t])


def exact(teacher: GaussianDenoiser, grid, x_t: Tensor, t: Tensor) -> Tensor:
    """The x0 with which one step of DDIM arrives where the probability flow does at the segment's end."""
    scheduler, e = teacher.scheduler, below(grid, teacher.scheduler, t)
    ratio = scheduler.sigma(e) / scheduler.sigma(t)
    of_x0 = scheduler.alpha(e) - scheduler.alpha(t) * ratio
    return (teacher.flow(x_t, t, e) - ratio[:, None] * x_t) / of_x0[:, None]


def drawn(objective: Distillation, scheduler) -> tuple[Tensor, Tensor, Tensor]:
    """x0, noise and times of a batch, over all parts of the time."""
    g = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, N, 3, generator=g, dtype=torch.float64)
    return (
        GaussianDenoiser(scheduler).noised(x0, times(0)[0]),
        noise,
        objective.time((torch.arange(N) + 0.5) / N, scheduler),
    )


@every_scheduler
@every_grid
@pytest.mark.parametrize("substeps", [1, 3, 16])
def test_the_parts_divide_the_segments(scheduler, grid, substeps):
    """Equal angles within each, and the grid's own times to the bit: there the student will be asked."""
    parts, ends = Distillation(None, grid, EDM(), substeps).parts(scheduler), grid(scheduler).flip(0)
    assert parts.shape == (grid.steps * substeps + 1,) and parts.dtype == torch.float64
    assert torch.equal(parts[::substeps], ends) and (parts.diff() > 0).all()
    angles = torch.atan2(scheduler.sigma(parts), scheduler.alpha(parts))
    widths = angles.diff().reshape(grid.steps, substeps)
    torch.testing.assert_close(widths, widths.mean(1, keepdim=True).expand_as(widths), rtol=1e-5, atol=1e-9)


def test_each_part_is_drawn_alike_and_its_upper_end_stands_for_it():
    objective = Distillation(None, Angle(3), EDM(), substeps=4)
    u = torch.cat([(torch.arange(1200) + 0.5) / 1200, times(0, 1 - 2**-53)]).double()
    found, counts = objective.time(u, Cosine()).unique(return_counts=True)
    assert torch.equal(found, objective.parts(Cosine())[1:]) and found[-1] == 1
    assert counts.tolist() == [101, *[100] * 10, 101]


@pytest.mark.parametrize("scheduler", [Cosine(), Flow(), VarianceExploding()], ids=["cosine", "flow", "edm"])
@every_grid
def test_the_student_that_follows_the_flow_is_right_as_the_substeps_grow(scheduler, grid):
    """Of order 1, as DDIM; and what it draws on the grid is what the flow makes of the noise."""
    teacher = GaussianDenoiser(scheduler)
    student = Student(scheduler, partial(exact, teacher, grid))
    rms = []
    for substeps in (8, 32, 128):
        objective = Distillation(teacher, grid, MinSNR(1e9), substeps)
        x0, noise, t = drawn(objective, scheduler)
        # Of x_t's noise: where there is much of it, a wrong x0 counts less.
        x_t = scheduler.alpha(t)[:, None] * x0 + scheduler.sigma(t)[:, None] * noise
        rms.append((objective.target(student, x_t, t, None) - student(x_t, t)).square().mean().sqrt().item())
    assert rms[1] < rms[0] / 3 and rms[2] < rms[1] / 3 and rms[2] < 2e-3
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = grid(scheduler)
    x = teacher.noised(z, ends[0])

    class Whole(Student):
        def predict(self, x_t, t, cond=None):
            return super().predict(x_t, t.expand(len(x_t)), cond)

    found = ddim(Whole(scheduler, partial(exact, teacher, grid)), x, ends)
    torch.testing.assert_close(found, teacher.flow(x, ends[0], ends[-1]), rtol=0, atol=1e-5)


@every_grid
def test_the_target_is_where_the_two_steps_lead(grid):
    """Of any student: one step with D* from t arrives where the teacher's to s and the student's from there do."""
    scheduler, substeps = Cosine(), 4
    teacher, other = GaussianDenoiser(scheduler), GaussianDenoiser(scheduler, mean=(0.1, 0.9, -0.4))
    objective = Distillation(teacher, grid, EDM(), substeps)
    x0, noise, t = drawn(objective, scheduler)
    x_t = scheduler.alpha(t)[:, None] * x0 + scheduler.sigma(t)[:, None] * noise
    target = objective.target(Student(scheduler, other), x_t, t, None)
    parts = objective.parts(scheduler)
    for i, (x, time) in enumerate(zip(x_t, t, strict=True)):
        s, e = parts[parts < time].max(), below(grid, scheduler, time[None])[0]
        x_s = ddim(teacher, x[None], torch.stack([time, s]))
        x_e = ddim(other, x_s, torch.stack([s, e])) if s > e else x_s

        class To(GaussianDenoiser):
            def predict(self, x_t, t, cond=None, i=i):
                return Prediction(target[i : i + 1])

        torch.testing.assert_close(ddim(To(scheduler), x[None], torch.stack([time, e])), x_e, rtol=0, atol=1e-5)


@every_scheduler
def test_with_one_substep_the_teacher_is_the_student(scheduler):
    objective = Distillation(GaussianDenoiser(scheduler), Angle(16), EDM(), substeps=1)
    student = Student(scheduler, GaussianDenoiser(scheduler))
    batch = drawn(objective, scheduler)
    assert (objective.loss(student, *batch, None) == 0).all()
    assert len(student.asked) == 1  # of the loss: for the target it is not needed
    other = Distillation(GaussianDenoiser(scheduler, mean=(0.0, 0.0, 0.0)), Angle(16), EDM(), substeps=1)
    assert (other.loss(student, *batch, None) > 0).any()


def test_the_loss_is_the_weighted_error_and_its_gradient_that_of_one_answer():
    """With a target that stands still: d/d shift of mean w (D - D*)^2 is 2 w (D - D*), and the teacher gets none."""
    scheduler = VarianceExploding()
    teacher, other = GaussianDenoiser(scheduler), GaussianDenoiser(scheduler, mean=(0.1, 0.9, -0.4))
    teacher.mean.requires_grad_()
    student = Student(scheduler, other).train()
    objective = Distillation(teacher, Angle(2), EDM(), substeps=4)
    x0, noise, t = drawn(objective, scheduler)
    objective.loss(student, x0, noise, t, None).mean().backward()
    (of_target, target_mode, target_grad), (asked, mode, grad) = student.asked
    assert (target_mode, target_grad) == (False, False) and (mode, grad) == (True, True) and student.training
    assert torch.equal(asked, t) and (of_target <= t).all() and (of_target > 0).all()
    x_t = x0 + scheduler.sigma(t)[:, None] * noise
    error = other(x_t, t) - objective.target(student, x_t, t, None)
    weight = 1 / scheduler.sigma(t) ** 2 + 4
    torch.testing.assert_close(student.shift.grad, (2 * weight[:, None] * error / 3).mean(0), rtol=1e-5, atol=1e-5)
    assert teacher.mean.grad is None


def test_both_are_told_the_condition():
    told = []

    class Told(GaussianDenoiser):
        def predict(self, x_t, t, cond=None):
            told.append(cond)
            return super().predict(x_t, t, cond)

    objective = Distillation(Told(Cosine()), Angle(1), EDM(), substeps=2)
    cond = {"label": torch.arange(N)}
    student = Student(Cosine(), GaussianDenoiser(Cosine()))
    student.predict = lambda x_t, t, cond=None: Told(Cosine()).predict(x_t, t, cond)
    objective.loss(student, *drawn(objective, Cosine()), cond)
    assert len(told) == 3 and all(each is cond for each in told)


def test_no_substeps_are_refused():
    with pytest.raises(UserError, match=r"model\.substeps=0"):
        Distillation(None, Angle(2), EDM(), 0)
