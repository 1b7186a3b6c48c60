import pytest

from benchmarks.quality import faults


def row(distance: float, seconds: float, evaluations: int = 1000, floor: float = 0.5) -> dict:
    return {"fid": {"value": distance, "floor": floor}, "sampling_seconds": seconds, "evaluations": evaluations}


@pytest.mark.parametrize(
    ("mine", "others", "said"),
    [
        (row(1, 2), {"a": row(2, 100), "b": row(9, 1, 250)}, []),
        (row(1, 2), {"a": row(1.9, 100)}, ["our distance is 0.53 of that of a"]),
        (row(2.1, 2), {"a": row(9, 100)}, ["our distance is 4.2 times the floor"]),
        (row(2.1, 2, floor=0), {"a": row(9, 100, floor=0)}, ["so few images have no floor: give a larger --n"]),
        (row(1, 2), {"a": row(2, 98)}, ["our sampling is 49 times as fast as that of a"]),
        (row(2, 2), {"a": row(1, 98)}, ["our distance is 2.00 of that of a"]),
    ],
    ids=["met", "share", "floor", "no floor", "speed", "speed counts at equal quality"],
)
def test_what_falls_short_is_told(mine, others, said):
    assert faults({"ours": mine, **others}) == said
