"""Real data sets that need no download: scikit-learn's digits and Python's own source code."""

import gzip
import importlib.util
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Split = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
MNIST = {
    "x_train": "train-images-idx3-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}


def digits(seed: int = 0, *, size: int = 8, flat: bool = True, test_size: float = 0.25) -> Split:
    """Scikit-learn's 1797 handwritten digits: x_train, x_test in [0, 1], then y_train, y_test; stratified by class.

    An image is (size·size,) float32, or (size, size, 1) unless `flat`; sizes other than 8 are interpolated.
    With test_size=0 all images are training images, in their original order.
    """
    from sklearn.datasets import load_digits  # takes longer to import than JAX, and text needs none of it
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1), labels.astype(np.int32)
    if size != 8:
        x = np.asarray(jax.image.resize(x, (len(x), size, size, 1), "linear"))
    if flat:
        x = x.reshape(len(x), -1)
    train = np.arange(len(x))
    test = train[:0]
    if test_size:
        train, test = train_test_split(train, test_size=test_size, stratify=labels, random_state=seed)
    return _parts(x, y, train, test)


def _parts(x: np.ndarray, y: np.ndarray, train: Any, test: Any) -> Split:
    """These rows as JAX arrays; NumPy cuts them, because JAX compiles a program for each shape."""
    return jnp.asarray(x[train]), jnp.asarray(x[test]), jnp.asarray(y[train]), jnp.asarray(y[test])


def mnist(directory: str, *, flat: bool = True) -> Split:
    """Reads MNIST's four files from a folder, gzipped or not; returns 28×28 images in the format of `digits`."""
    sets = {key: read_idx(pathlib.Path(directory), name) for key, name in MNIST.items()}
    for part in ("train", "test"):
        images, labels = (len(sets[f"{kind}_{part}"]) for kind in "xy")
        if images != labels:
            raise ValueError(f"{directory} has {images} {part} images but {labels} labels; download it again")
    x_train, x_test = (jnp.asarray(sets[key] / 255, jnp.float32)[..., None] for key in ("x_train", "x_test"))
    if flat:
        x_train, x_test = (x.reshape(len(x), -1) for x in (x_train, x_test))
    return x_train, x_test, jnp.asarray(sets["y_train"], jnp.int32), jnp.asarray(sets["y_test"], jnp.int32)


def read_idx(directory: pathlib.Path, name: str) -> np.ndarray:
    """Reads a file of the idx format: 0, 0, 8 for uint8, rank; each length as 4 big-endian bytes; data."""
    plain, zipped = directory / name, directory / f"{name}.gz"
    path = plain if plain.exists() else zipped
    if not path.exists():
        raise FileNotFoundError(f"neither {plain} nor {zipped} exists; MNIST is {', '.join(MNIST.values())}")
    try:
        content = gzip.decompress(path.read_bytes()) if path == zipped else path.read_bytes()
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); download it again") from error
    rank = int(name[-7])  # …-idx3-ubyte
    start = 4 + 4 * rank
    if content[:4] != bytes([0, 0, 8, rank]) or len(content) < start:
        raise ValueError(f"{path} begins with {content[:4].hex() or 'nothing'}, but idx{rank} with 0000080{rank}")
    lengths = np.frombuffer(content, ">i4", rank, 4)
    if len(content) != start + math.prod(lengths.tolist()):
        raise ValueError(f"{path} has {len(content) - start} bytes for the shape {tuple(lengths.tolist())} it declares")
    return np.frombuffer(content, np.uint8, offset=start).reshape(lengths)


def text(name: str = "argparse", max_bytes: int | None = None, *, length: int, test_size: float = 0.1) -> Split:
    """Python's own source of a module as characters: x_train, x_test, y_train, y_test, each (n, length) int32 < 128.

    y is x shifted by one character. The test text is the end of the source, which no training window overlaps.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not str(spec.origin).endswith(".py"):
        raise ValueError(f"name: {name!r} is not a module with Python source; try 'argparse'")
    source = np.frombuffer(pathlib.Path(str(spec.origin)).read_bytes()[:max_bytes], np.uint8)
    x, y = windows(source[source < 128], length)
    split = len(x) - math.ceil(test_size * len(x))
    return _parts(x, y, slice(split), slice(split, None))


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts ids (n,) into rows of length + 1; returns inputs (without the last) and targets (without the first)."""
    if len(ids) <= length:
        raise ValueError(f"length: {length} + 1 characters don't fit in a text of {len(ids)}")
    rows = ids[: len(ids) // (length + 1) * (length + 1)].reshape(-1, length + 1).astype(np.int32)
    return rows[:, :-1], rows[:, 1:]


def batches(rows: int, batch_size: int, *, epochs: int, seed: int | jax.Array) -> jax.Array:
    """Row indices (epochs, steps, batch_size): a new permutation per epoch; an incomplete last batch is dropped.

    seed: a number, or a `jax.random.key`.
    """
    if not 0 < batch_size <= rows:
        raise ValueError(f"batch_size: {batch_size} is not between 1 and the number of rows, {rows}")
    keys = jax.random.split(jax.random.key(seed) if isinstance(seed, int) else seed, epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, rows)[: rows // batch_size * batch_size])(keys)
    return orders.reshape(epochs, -1, batch_size)
