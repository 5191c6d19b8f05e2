"""Other people's parameter trees, as names and shapes, and for each leaf whether an expert lets it decay.

`tests/trees/*.json`: the source, and per leaf its path and shape under "decays" or "spared". Weights, embedding and
position tables decay; biases, norms, scales, single vectors, and the dynamics of state spaces don't. Layers and widths
are few, and some trees are as `scan` stacks them.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import nested, shape

import wd_optax as wd

TREES = {path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "trees").glob("*.json"))}


def flat(leaves: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """Keys as `flax.traverse_util.flatten_dict` makes them."""
    return {tuple(path.split("/")): leaf for path, leaf in leaves.items()}


def shapes(tree: dict[str, Any]) -> dict[str, Any]:
    return {path: shape(*sizes) for path, sizes in (tree["decays"] | tree["spared"]).items()}


def normalised(path: str) -> str:
    return path.replace(".", "/")


def wrong(tree: dict[str, Any], make: Any) -> dict[str, str]:
    expected = {normalised(path): 1.0 for path in tree["decays"]} | {normalised(path): 0.0 for path in tree["spared"]}
    rows = wd.explain("weights", make(shapes(tree))).rows
    assert {row.path for row in rows} == set(expected)
    return {row.path: f"{row.role}, {row.reason}" for row in rows if row.multiplier != expected[row.path]}


@pytest.mark.parametrize("name", TREES)
def test_every_leaf_is_decided_as_the_expert_does(name: str) -> None:
    assert TREES[name]["source"].startswith("https://github.com/")
    assert wrong(TREES[name], nested) == {}
    assert wrong(TREES[name], flat) == {}


def test_the_share_decided_rightly_is_all(capsys: pytest.CaptureFixture[str]) -> None:
    leaves = sum(len(tree["decays"]) + len(tree["spared"]) for tree in TREES.values())
    right = leaves - sum(len(wrong(tree, nested)) for tree in TREES.values())
    with capsys.disabled():
        print(f"\nroles: {right} of {leaves} leaves of {len(TREES)} trees decided as the expert does")
    assert len(TREES) >= 40
    assert right == leaves


@pytest.mark.parametrize("name", TREES)
def test_few_leaves_are_unsure(name: str) -> None:
    """What `explain` ends with is a list that a person reads."""
    rows = wd.explain("weights", nested(shapes(TREES[name])))
    unsure = str(rows).partition("least sure of, by rank alone:\n")[2].splitlines()
    assert len(unsure) <= 11
