"""The floor is what a sheet of paper says of known layers."""

import json
from unittest import mock

import pytest
import torch
from torch import nn

from benchmarks import floor as benchmark
from benchmarks.floor import Counter, Rates, floor

B, N = 8, 32


class Product(nn.Module):
    """One matrix product, of weights N x N."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N, N, bias=False)

    def forward(self, x, noise):
        return self.layer(x).sigmoid()


@pytest.mark.parametrize("rates", [Rates(1e9, 1e15), Rates(1e15, 1e9)], ids=["of operations", "of bytes"])
def test_the_floor_of_a_matrix_product(rates):
    """Forward, and backward to the weights: 2 B N N operations each on B x N, N x N and B x N numbers."""
    seconds, works = floor(Product(), torch.randn(B, N), rates)
    operations, size = 2 * B * N * N, 4 * (2 * B * N + N * N)
    assert [(work.operations, work.bytes) for work in works] == [(operations, size)] * 2
    of_weights = 36 * N * N / rates.bytes
    assert seconds == pytest.approx(2 * max(operations / rates.operations, size / rates.bytes) + of_weights)


def test_a_convolution_costs_twice_as_much_backward():
    layer = nn.Conv2d(4, 6, 3, padding=1)
    with Counter() as counter:
        layer(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    forward, backward = counter.works
    assert forward.operations == 2 * (2 * 6 * 8 * 8) * (4 * 3 * 3)
    assert backward.operations == 2 * forward.operations


def test_attention_is_counted():
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    with Counter() as counter:
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.works[0].operations == 2 * 2 * (2 * 3 * 16 * 16 * 8)
    assert len(counter.works) >= 2


@pytest.mark.slow
def test_a_network_is_measured(tmp_path, capsys):
    words = ["--network", "tiny", "--size", "16", "--batch-size", "8", "--turns", "2"]
    with mock.patch("sys.argv", ["floor.py", *words, "--out", str(tmp_path / "f.json")]):
        benchmark.main()
    found = json.loads((tmp_path / "f.json").read_text())
    assert found["floor_seconds"] < found["step_seconds"]
    assert found["operations"] / found["floor_seconds"] < found["rates"]["operations"]
    assert 5 < len(found["kernels"]) <= 10 and sum(kernel["share"] for kernel in found["kernels"]) <= 1
    assert "times the floor" in capsys.readouterr().out
