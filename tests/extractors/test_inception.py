"""Inception-v3: torch-fidelity's own features, from a file of random weights."""

import sys
from urllib.error import URLError

import pytest
import torch

from diffusion.extractors import Inception, extract
from tests.extractors.toy import data, images, refusal

torch_fidelity = pytest.importorskip("torch_fidelity")
MODULE = "torch_fidelity.feature_extractor_inceptionv3"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    network_of = torch_fidelity.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(f"{MODULE}.load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network_of, "load_state_dict", lambda *_: None)
        network = network_of("random", ["2048"])
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.02, 0.1)  # without which nothing is left after some layers
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("features", [64, 2048])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_those_of_torch_fidelity(path, capfd, features, channels):
    pictures = images(3, channels, 28, 20)
    before = torch.get_rng_state()
    extractor = Inception(data(channels, 28, 20), None, features=features, path=path)
    assert torch.equal(torch.get_rng_state(), before)
    found = extract(extractor, pictures)
    assert capfd.readouterr() == ("", "")
    theirs = torch_fidelity.FeatureExtractorInceptionV3("theirs", [str(features), "logits_unbiased"], path)
    values, logits = theirs(pictures.expand(-1, 3, -1, -1))
    assert found.values.shape == (3, features) and found.values.std(0).max() > 0
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.probabilities, logits.softmax(1))
    one = extract(extractor, pictures, batch_size=1)
    torch.testing.assert_close(one.values, found.values, rtol=1e-3, atol=1e-4)
    receipt = extractor.receipt()
    assert receipt["resize"] == "bilinear, TF1-compatible, 28 x 20 -> 299 x 299"
    assert (receipt["name"], receipt["features"], receipt["classes"]) == ("inception", features, 1008)
    assert len(receipt["weights"]) == 16


@pytest.mark.slow
def test_a_volume_of_one_tone_is_any_of_its_slices(path):
    flat = images(2, 1, 1, 1, 1).expand(-1, -1, 9, 9, 9)
    solid, plane = (Inception(data(*shape), None, features=64, path=path) for shape in ((1, 9, 9, 9), (1, 9, 9)))
    torch.testing.assert_close(extract(solid, flat).values, extract(plane, flat[:, :, 0]).values)


def test_it_refuses_another_layer_and_other_channels():
    assert "choose one of 64, 192, 768, 2048" in refusal(Inception, data(1, 8, 8), None, features=128)
    assert "one or three channels" in refusal(Inception, data(2, 8, 8), None)


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    said = refusal(Inception, data(1, 8, 8), None)
    assert 'pip install -e ".[inception]"' in said and "extractor=domain" in said


def test_without_the_download(monkeypatch, capfd):
    def offline(*_, **__):
        print("Downloading")
        raise URLError("no internet")

    monkeypatch.setattr(f"{MODULE}.load_state_dict_from_url", offline)
    said = refusal(Inception, data(1, 8, 8), None)
    assert "no internet" in said and "6726825d.pth" in said and "extractor.path=FILE" in said
    assert "Downloading" not in "".join(capfd.readouterr())


class Trap:
    def __reduce__(self):
        return print, ("a file has run",)


def test_files_that_hold_something_else(tmp_path, capfd):
    assert "there is no such file" in refusal(Inception, data(1, 8, 8), None, path=str(tmp_path / "none.pth"))
    for name, content in {"other.pth": {"x": torch.zeros(2)}, "list.pth": [1], "trap.pth": {"x": Trap()}}.items():
        torch.save(content, tmp_path / name)
        said = refusal(Inception, data(1, 8, 8), None, path=str(tmp_path / name))
        assert name in said and "does not hold the weights of Inception-v3" in said
    (tmp_path / "text.pth").write_text("weights")
    assert "text.pth does not hold" in refusal(Inception, data(1, 8, 8), None, path=str(tmp_path / "text.pth"))
    assert "a file has run" not in "".join(capfd.readouterr())
