"""Scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels, 10 classes, in the package itself."""

from __future__ import annotations

import numpy as np
import torch

from datamodules.arrays.split import Split
from datamodules.base import ImageDataModule


class Digits(ImageDataModule):
    """Half of the digits for training and half for testing; a tenth of the training half validates.

    Images are uint8 (N, 1, 8, 8); the 17 grey levels 0 .. 16 are spread over 0 .. 255. The splits do not
    depend on the seed.
    """

    source = "digits"
    class_names = tuple("0123456789")

    def load(self) -> dict[str, Split]:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        images = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8).unsqueeze(1)
        labels = torch.from_numpy(digits.target).long()
        half, test = train_test_split(np.arange(len(labels)), test_size=0.5, random_state=0, stratify=digits.target)
        train, val = train_test_split(half, test_size=0.1, random_state=0, stratify=digits.target[half])
        whole = Split(images, labels)
        rows = {"train": train, "val": val, "test": test}
        return {name: whole.take(torch.from_numpy(places)) for name, places in rows.items()}
