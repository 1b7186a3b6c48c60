import json
from unittest import mock

import pytest

from benchmarks import training_speed


@pytest.mark.slow
def test_our_training_is_timed_as_the_documentation_says(tmp_path, capsys):
    words = ["--tools", "ours", "--sizes", "28", "--batch-size", "4", "--turns", "1", "--seconds", "0.5"]
    with mock.patch("sys.argv", ["training_speed.py", *words, "--out", str(tmp_path / "speed.json")]):
        training_speed.main()
    row = json.loads((tmp_path / "speed.json").read_text())["rows"]["28"]["ours"]
    assert row["over_ours"] == 1 and row["images_per_second"] > 0
    assert row["steps"] >= 2 and row["first_step_seconds"] > 1 and row["peak_memory_bytes"] > 2**28
    assert "28 x 28, batch 4" in capsys.readouterr().out
