"""Pictures that examples and benchmarks write: their size, and how much of a colour they have."""

import pathlib

from PIL import Image, ImageColor


def read_picture(path: pathlib.Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def count_pixels(picture: Image.Image, colour: str, *, within: int = 1) -> int:
    """The pixels whose channels are each less than `within` from those of a colour such as "#0072B2"."""
    wanted, found = ImageColor.getrgb(colour), picture.getcolors(2**16)
    return sum(n for n, rgb in found if all(abs(a - b) < within for a, b in zip(rgb, wanted, strict=True)))
