"""Picture files that tests write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def save(path: Path, array: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def noise(seed: int, shape: tuple[int, ...] = (20, 24, 3), dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def class_folders(folder: Path, n: int = 12, classes: tuple[str, ...] = ("a", "b"), suffix: str = "png") -> Path:
    """Pictures of noise, in turn of each class: folder/CLASS/NUMBER.SUFFIX."""
    for i in range(n):
        save(folder / classes[i % len(classes)] / f"{i}.{suffix}", noise(i))
    return folder


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG file, made by hand; rows are unpacked, each with its filter byte."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png16(array: np.ndarray) -> bytes:
    """uint16 (H, W, 3 or 4) as PNG."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return png(array.shape[1], array.shape[0], 16, {3: 2, 4: 6}[array.shape[-1]], rows)
