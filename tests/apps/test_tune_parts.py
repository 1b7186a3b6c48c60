"""The parts of a search: the grammar, the journal that processes share, and what a trial's process is told."""

import multiprocessing
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from diffusion.apps.tune.attempt import environment_of
from diffusion.apps.tune.search import JOURNAL, Search, Taken
from diffusion.apps.tune.space import distribution, distributions, ends, rounded, size, word_of
from diffusion.errors import UserError

SPACE = {"optimizer.lr": "tag(log,interval(1e-4,1e-2))", "network.channels": "choice(16,32)"}


@pytest.mark.parametrize(
    ("sweep", "wanted"),
    [
        ("interval(0,1)", FloatDistribution(0.0, 1.0)),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("int(interval(1,5))", IntDistribution(1, 5)),
        ("tag(log,int(interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("range(1,5)", IntDistribution(1, 4)),
        ("range(1,8,3)", IntDistribution(1, 7, step=3)),
        ("range(8,1,-3)", IntDistribution(2, 8, step=3)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("choice(edm,cosine)", CategoricalDistribution(["edm", "cosine"])),
        ("32,48,64", CategoricalDistribution([32, 48, 64])),
        ("choice(true,[1,2],1)", CategoricalDistribution([True, "[1,2]"])),
    ],
)
def test_the_grammar_of_hydra_means_a_distribution(sweep, wanted):
    assert distribution(f"key={sweep}") == wanted


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("3", "interval"),
        ("[1,2]", "interval"),
        ("interval(2,1)", "holds nothing"),
        ("range(3,3)", "holds nothing"),
        ("tag(log,interval(0,1))", "above 0"),
        ("tag(linear,interval(0,1))", "tag"),
        ("tag(log,choice(1,2))", "scale"),
    ],
)
def test_what_is_no_range_is_refused(sweep, said):
    with pytest.raises(UserError, match=said) as refused:
        distribution(f"key={sweep}")
    assert str(refused.value).startswith(f"key={sweep}")


def test_a_space_is_counted_and_its_ends_are_words():
    space = distributions({"a": "range(1,8,3)", "b": "choice(x,true)", "c": "range(0.1,0.5,0.1)", "d": "interval(2,2)"})
    assert size(space) == 3 * 2 * 4 * 1
    assert size(distributions(SPACE)) == float("inf")
    assert sorted(ends(space)) == ["a=1", "a=7", "b=true", "b=x", "c=0.1", "c=0.4", "d=2.0"]


def test_values_are_rounded_within_their_range():
    space = distributions({"a": "interval(0.123456,0.5)", "b": "range(0.1,0.5,0.1)", "c": "choice(0.123456,1)"})
    found = rounded({"a": 0.12345999, "b": 0.1 + 0.2, "c": 0.123456}, space)
    assert found == {"a": 0.1235, "b": 0.3, "c": 0.123456}
    assert rounded({"a": 0.123456}, space) == {"a": 0.1235} and word_of("a", 1e-5) == "a=1e-05"
    assert rounded({"a": 0.49999999}, space) == {"a": 0.5} and word_of("b", True) == "b=true"


def settings(space: dict[str, str] | None = None, **changed: object) -> DictConfig:
    defaults = {"words": [], "metric": "val/loss", "direction": "minimize", "pruning": True, "warmup": 0, "seed": 0}
    return OmegaConf.create({**defaults, "space": space or SPACE, **changed})


def value_of(trial: Taken) -> float:
    return abs(trial.params["optimizer.lr"] - 1e-3) * trial.params["network.channels"]


def finish(search: Search, trial: Taken) -> None:
    search.finish(trial, TrialState.COMPLETE, value_of(trial), run="a/b")


def params_of(search: Search) -> list[dict[str, object]]:
    return [trial.params for trial in search.trials]


def test_the_same_seed_gives_the_same_trials_also_over_a_restart(tmp_path):
    """Beyond the first ten, which are drawn blindly, too; and another seed others."""
    straight, cut = Search(tmp_path / "straight", settings()), Search(tmp_path / "cut", settings())
    while trial := straight.take(14):
        finish(straight, trial)
    for number in range(14):
        trial = cut.take(14)
        if number in (3, 12):  # its process dies
            trial.lock.close()
            cut = Search(tmp_path / "cut", settings())
            again = cut.take(14)
            assert (again.number, again.params) == (number, trial.params)
            trial = again
        finish(cut, trial)
    assert cut.take(14) is None
    assert params_of(cut) == params_of(straight) and len(params_of(cut)) == 14
    other = Search(tmp_path / "other", settings(seed=1))
    assert other.take(1).params != params_of(straight)[0]
    best = straight.ranked()
    assert best[0].value == min(trial.value for trial in straight.trials)


def test_a_trial_is_in_one_hand_and_there_are_no_more_than_asked_for(tmp_path):
    here, there = Search(tmp_path / "study", settings()), Search(tmp_path / "study", settings())
    first, second = here.take(3), there.take(3)
    assert (first.number, second.number) == (0, 1) and first.params != second.params
    finish(here, first)
    second.lock.close()
    third = here.take(3)
    assert third.number == 1 and third.params == second.params
    assert there.take(3).number == 2 and there.take(3) is None and here.take(3) is None


def _work(folder: Path, total: int) -> None:
    search = Search(folder, settings())
    while trial := search.take(total):
        with (folder / f"did_{trial.number}").open("x"):
            finish(search, trial)


@pytest.mark.slow
def test_processes_that_share_a_study_do_each_trial_once(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_work, args=(tmp_path / "study", 24)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    search = Search(tmp_path / "study", settings())
    assert [trial.state for trial in search.trials] == [TrialState.COMPLETE] * 24
    assert len(list((tmp_path / "study").glob("did_*"))) == 24


def test_no_trial_is_drawn_twice(tmp_path):
    space = {"scheduler": "choice(edm,cosine,flow)", "network.blocks": "range(1,3)"}
    search = Search(tmp_path / "study", settings(space))
    while trial := search.take(6):
        search.finish(trial, TrialState.COMPLETE, 1.0)
    assert len({tuple(sorted(params.items())) for params in params_of(search)}) == 6


def test_a_trial_is_stopped_where_it_is_worse_than_the_median(tmp_path):
    search = Search(tmp_path / "study", settings(warmup=100))
    for value in (1.0, 2.0, 3.0, 4.0, 5.0):
        trial = search.take(9)
        assert not search.report(trial.number, {50: value, 100: value})  # there is nothing to compare with yet
        search.finish(trial, TrialState.COMPLETE, value)
    early, worse, better = (search.take(9) for _ in range(3))
    assert not search.report(early.number, {50: 9.0})
    assert search.report(worse.number, {50: 9.0, 100: 3.1})
    assert not search.report(better.number, {50: 9.0, 100: 2.9})
    never = Search(tmp_path / "never", settings(pruning=False))
    for value in (1.0, 2.0, 3.0, 4.0, 5.0, 9.0):
        trial = never.take(9)
        assert not never.report(trial.number, {100: value})
        never.finish(trial, TrialState.COMPLETE, value)


def test_a_journal_with_half_a_line_goes_on(tmp_path):
    """As a machine leaves it that loses its power while it writes."""
    search = Search(tmp_path / "study", settings())
    finish(search, search.take(3))
    with (search.folder / JOURNAL).open("a") as file:
        file.write('{"op_code":4,"wor')
    search = Search(tmp_path / "study", settings())
    finish(search, search.take(3))
    assert len(Search(tmp_path / "study", settings()).ranked()) == 2


def test_a_study_keeps_its_settings(tmp_path):
    Search(tmp_path / "study", settings())
    with pytest.raises(UserError, match=r"metric: val/loss, now eval/kid.*study="):
        Search(tmp_path / "study", settings(metric="eval/kid"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="runs_dir"):
        Search(tmp_path / "file" / "study", settings())


def test_trials_at_the_same_time_share_the_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,5,7,8")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    alone = environment_of(0, 1, 1, tmp_path)
    assert alone == {"MED_DIFFUSION_SWEEP": str(tmp_path)}
    told = [environment_of(slot, 3, 2, tmp_path) for slot in range(3)]
    assert [each["CUDA_VISIBLE_DEVICES"] for each in told] == ["0,1", "5,7", "0,1"]
    assert {each["OMP_NUM_THREADS"] for each in told} == {"2"}
    assert environment_of(4, 6, 1, tmp_path)["CUDA_VISIBLE_DEVICES"] == "8"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environment_of(1, 2, 1, tmp_path) == alone
