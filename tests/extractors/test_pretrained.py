"""timm and torchvision: their own features, from files of random weights."""

import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diffusion.extractors import Timm, Torchvision, extract
from tests.extractors.toy import data, images, refusal

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")
RESNET, VIT = "test_resnet.r160_in1k", "test_vit.r160_in1k"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A function from a model's name to a file of random weights for it."""
    folder = tmp_path_factory.mktemp("weights")

    def path(name: str) -> str:
        file = folder / f"{name}.{'safetensors' if name == VIT else 'pth'}"
        if not file.exists():
            model = torchvision.models.get_model(name) if name == "resnet18" else timm.create_model(name)
            (save_file if name == VIT else torch.save)(model.state_dict(), file)
        return str(file)

    return path


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_features_are_those_of_timm(weights, name):
    path, before = weights(name), torch.get_rng_state()
    extractor = Timm(data(3, 160, 160), None, name=name, path=path)
    assert torch.equal(torch.get_rng_state(), before)
    overlay = {"file": path}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0).eval()
    about = timm.data.resolve_model_data_config(theirs)
    pictures = images(3, 3, 160, 160)
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        wanted = theirs((pictures / 255 - mean) / std)
    found = extract(extractor, pictures)
    assert found.values.shape == (3, extractor.features) and found.probabilities is None
    torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)
    receipt = extractor.receipt()
    assert (receipt["name"], receipt["model"], receipt["features"]) == ("timm", name, wanted.shape[1])
    assert receipt["resize"] == f"{about['interpolation']}, antialiased, 160 x 160 -> 160 x 160"


@pytest.mark.parametrize("name", [RESNET, VIT])
def test_another_size_and_grey_images(weights, name):
    grey = images(5, 1, 28, 28)
    extractor = Timm(data(1, 28, 28), None, name=name, path=weights(name), size=64)
    colour = Timm(data(3, 28, 28), None, name=name, path=weights(name), size=64)
    found = extract(extractor, grey)
    assert torch.equal(found.values, extract(colour, grey.expand(-1, 3, -1, -1)).values)
    torch.testing.assert_close(extract(extractor, grey, batch_size=2).values, found.values, rtol=1e-4, atol=1e-5)
    assert extractor.receipt()["resize"].endswith("28 x 28 -> 64 x 64") and found.values.std(0).max() > 0


@pytest.mark.slow
def test_features_are_those_of_torchvision(weights):
    theirs = torchvision.models.resnet18()
    theirs.load_state_dict(torch.load(weights("resnet18"), weights_only=True))
    theirs.fc = nn.Identity()
    pictures = images(2, 3, 224, 224)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    with torch.no_grad():
        wanted = theirs.eval()((pictures / 255 - mean) / std)
    extractor = Torchvision(data(3, 224, 224), None, name="resnet18", path=weights("resnet18"))
    found = extract(extractor, pictures)
    torch.testing.assert_close(found.values, wanted, rtol=1e-4, atol=1e-5)
    assert found.probabilities is None and extractor.features == 512
    receipt = extractor.receipt()
    assert (receipt["name"], receipt["model"]) == ("torchvision", "resnet18")
    assert receipt["resize"] == "bilinear, antialiased, 224 x 224 -> 224 x 224"
    solid = Torchvision(data(1, 5, 6, 7), None, name="resnet18", path=weights("resnet18"))
    assert extract(solid, images(1, 1, 5, 6, 7)).values.shape == (1, 512)


@pytest.mark.parametrize(
    ("choice", "name", "near"),
    [
        (Timm, "resnet5O", "resnet50"),
        (Timm, "resnet50.a1_in1", "resnet50.a1_in1k"),
        (Torchvision, "resnet81", "resnet18"),
    ],
)
def test_a_name_that_is_not_known(choice, name, near):
    said = refusal(choice, data(1, 8, 8), None, name=name)
    assert f"extractor.name={name}" in said and "did you mean" in said and near in said
    assert "own list" in refusal(choice, data(1, 8, 8), None, name="?")


@pytest.mark.parametrize(("choice", "library"), [(Timm, "timm"), (Torchvision, "torchvision")])
def test_without_the_library(monkeypatch, choice, library):
    monkeypatch.setitem(sys.modules, library, None)
    said = refusal(choice, data(1, 8, 8), None)
    assert f"extractor={library} needs the library {library}" in said and "pip install" in said


@pytest.mark.parametrize(
    ("choice", "name", "download"),
    [
        (Timm, RESNET, "timm.models._builder.load_state_dict_from_hf"),
        (Torchvision, "resnet18", "torchvision.models._api.load_state_dict_from_url"),
    ],
)
def test_without_the_download(monkeypatch, capfd, choice, name, download):
    def offline(*_, **__):
        print("Downloading")
        raise OSError("no\ninternet")

    monkeypatch.setattr(download, offline)
    said = refusal(choice, data(1, 8, 8), None, name=name)
    assert f"the weights of {name} could not be downloaded" in said and "no internet" in said
    assert "extractor.path=FILE" in said and "Downloading" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(("choice", "name", "other"), [(Timm, VIT, RESNET), (Torchvision, "resnet18", RESNET)])
def test_files_that_hold_something_else(weights, tmp_path, choice, name, other):
    assert "there is no such file" in refusal(choice, data(1, 8, 8), None, name=name, path=str(tmp_path / "none"))
    (tmp_path / "text.safetensors").write_text("weights")
    for path in (weights(other), str(tmp_path / "text.safetensors")):
        said = refusal(choice, data(1, 8, 8), None, name=name, path=path)
        assert f"extractor.path={path} does not hold the weights of {name}" in said


def test_what_a_model_does_not_take(weights):
    vit = {"name": VIT, "path": weights(VIT)}
    assert "does not take images of 50 x 50" in refusal(Timm, data(1, 8, 8), None, size=50, **vit)
    assert "extractor.size=0" in refusal(Timm, data(1, 8, 8), None, size=0, **vit)
    for choice in (Timm, Torchvision):
        assert "one or three channels" in refusal(choice, data(4, 8, 8), None)


def test_a_model_without_a_linear_layer(tmp_path):
    torch.save(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "weights.pth")
    options = {"name": "squeezenet1_1", "path": str(tmp_path / "weights.pth")}
    assert "no linear layer" in refusal(Torchvision, data(1, 8, 8), None, **options)
