"""The house stays in order: imports point downward, the API has one address each, the documents run."""

import ast
import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

import wd_optax as wd

ROOT = Path(__file__).parents[1]
# Each module imports only from those before it.
FLOORS = [
    {"casts", "dtypes", "hyperparams", "paths", "random_bits", "tables", "words"},
    {"roles"},
    {"anchors", "mask_errors", "partition", "precision", "rates", "schedules", "state_fields", "step_sums"},
    {"mask_forms"},
    {"low_precision_state", "masks", "master_weights"},
    {"penalties", "pull"},
    {"decay", "wrap"},
    {"equilibrium", "migrate", "monitor", "optimizers", "timescales"},
    {"published"},
    {"auditing.arguments", "auditing.probes", "auditing.text"},
    {"auditing.bench"},
    {"auditing.clock", "auditing.dataflow"},
    {"auditing.facts", "auditing.kinds"},
    {"auditing.course", "auditing.stages"},
    {"auditing.experiments", "auditing.rounding"},
    {"auditing.verdicts"},
    {"auditing.report"},
    {"auditing.fixes"},
    {"auditing.findings"},
    {"auditing.audit"},
    {"explaining"},
    {"sweeping.axes", "sweeping.extras", "sweeping.hosts", "sweeping.memory", "sweeping.values"},
    {"sweeping.chunk", "sweeping.fingerprint", "sweeping.grid", "sweeping.plan"},
    {"sweeping.heatmap", "sweeping.identity", "sweeping.separability", "sweeping.traced"},
    {"sweeping.execute", "sweeping.gathered", "sweeping.result", "sweeping.store"},
    {"sweeping.training"},
    {"sweeping.sweep"},
]
PACKAGE = ROOT / "wd_optax"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
}


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_point_downward():
    floor = {module: i for i, modules in enumerate(FLOORS) for module in modules}
    packages = {"auditing", "sweeping"}
    assert set(floor) | {"__init__", *(f"{p}.__init__" for p in packages)} == set(MODULES), (
        "give a new module its floor"
    )
    for module in floor:
        for name in imported(MODULES[module]):
            parts = name.split(".")[1:]
            if name.startswith("wd_optax.") and not packages & {*parts[-1:]}:
                below = ".".join(parts[:2]) if parts[0] in packages else parts[0]
                assert floor[below] < floor[module], f"{module} imports {name}"


def test_only_the_runtime_dependencies_are_imported():
    allowed = {"absl", "jax", "numpy", "optax", "wd_optax"} | set(sys.stdlib_module_names)
    for module, tree in MODULES.items():
        assert {name.split(".")[0] for name in imported(tree)} <= allowed, module


def test_public_names_are_listed_documented_and_have_one_address():
    public = {name for name, x in vars(wd).items() if not name.startswith("_") and not inspect.ismodule(x)}
    assert public == set(wd.__all__)
    for name in public - {"scale_by_adam"}:
        thing = getattr(wd, name)
        assert getattr(sys.modules[thing.__module__], name) is thing
        assert thing.__doc__, name
        if callable(thing) and not isinstance(thing, type):
            assert ">>>" in thing.__doc__, f"{name} has no example"


def test_files_stay_one_concept_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


def blocks(text):
    """Python blocks of a document, each with the output that a text block behind it promises, or None."""
    return [
        (code, out or None) for code, out in re.findall(r"```python\n(.*?)```\n(?:\n?```text\n(.*?)```)?", text, re.S)
    ]


@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    "document", ["README.md", "WORKSPACE_NOTES.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
)
def test_documents_run_and_print_what_they_say(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / document).read_text())
    assert found or document != "README.md"
    names = {}
    for code, promised in found:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(code, document, "exec"), names)
        if promised is not None:
            assert printed.getvalue().rstrip() == promised.rstrip()


def test_importing_loads_nothing_heavy():
    heavy = ["chex", "flax", "matplotlib", "xarray", "rich", "tqdm", "sklearn", "orbax", "torch", "tensorflow"]
    code = (
        "import sys, optax; before = set(sys.modules); import wd_optax;"
        f"print([m for m in sys.modules if m.split('.')[0] in {heavy!r} and m not in before])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
