"""The package stays in order: imports point downward, each name has one home, the documents run."""

import ast
import collections
import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import wd_optax as wd

ROOT = Path(__file__).parents[1]
# Each module imports only from those before it.
FLOORS = [
    {"contexts", "dtypes", "hyperparams", "masking.paths", "masking.words", "optional", "tables", "version"},
    {"couplings", "init_checks", "masking.roles", "precision.casts", "precision.random_bits", "precision.upcasting"},
    {"choosing.schedules", "masking.errors", "precision.exact_steps", "state_fields", "step_rates"},
    {"masking.matching", "momentum", "partition", "prox.metrics", "step_derivative"},
    {"leaf_sums", "masking.forms", "masking.slices", "precision.rounding"},
    {
        "decay_groups",
        "masking.masks",
        "precision.master_weights",
        "precision.state",
        "prox.inference",
        "rules.checks",
        "rules.norms",
        "step_sums",
    },
    {"rules.stand_ins", "rules.step"},
    {
        "coupling_rules",
        "measure",
        "penalties",
        "precision.__init__",
        "prox.steps",
        "rules.cautious",
        "rules.constrained",
    },
    {"rules.low_rank", "rules.penalties", "rules.toward", "rules.toward_average", "rules.toward_norm"},
    {"prox.__init__", "prox.checks", "rules.apply", "rules.missed_decay", "watching"},
    {"rules.active_rows"},
    {"core", "projection.radius", "rules.__init__"},
    {"projection.project", "transforms", "wrappers"},
    {"choosing.equilibrium", "choosing.timescales", "migrate", "monitor", "optimizers", "projection.hyperball"},
    {"choosing.describe_decay", "choosing.runs", "porting.calls", "porting.layers", "porting.rates"},
    {"porting.directions", "porting.group_table", "porting.groups"},
    {"porting.cautious_steps", "porting.factories", "porting.live", "porting.plan", "porting.torch_directions"},
    {
        "porting.adabelief",
        "porting.adafactor_big_vision",
        "porting.adam_directions",
        "porting.adan",
        "porting.clipping",
        "porting.keras_base",
        "porting.keras_directions",
        "porting.rmsprop",
        "porting.stable_adamw",
        "porting.torch_optim",
        "porting.trust_ratios",
    },
    {
        "porting.big_vision",
        "porting.bitsandbytes",
        "porting.composer",
        "porting.hugging_face",
        "porting.jax_frameworks",
        "porting.keras",
        "porting.megatron",
        "porting.modded_nanogpt",
        "porting.optimi",
        "porting.tf_addons",
        "porting.timm",
    },
    {"porting.pytorch_optimizer", "porting.timm_layerwise", "porting.timm_muon"},
    {"porting.timm_factory"},
    {"porting.emulate"},
    {"porting.drift", "porting.meaning"},
    {"porting.decay_words", "porting.direction_words", "porting.translation"},
    {"porting.translate"},
    {"porting.torch_convert", "porting.torch_job"},
    {"porting.torch_moments", "porting.torch_names"},
    {"porting.from_torch", "porting.to_torch", "porting.torch_state"},
    {"choosing.published", "choosing.transfer_rules"},
    {"choosing.transfer_table"},
    {"choosing.transfer"},
    {
        "auditing.arguments",
        "auditing.chain_closures",
        "auditing.compiling",
        "auditing.probes",
        "auditing.text",
        "auditing.vectors",
    },
    {"auditing.update_call"},
    {"auditing.harness"},
    {"auditing.clock", "auditing.dataflow"},
    {"auditing.kinds", "auditing.measurements"},
    {"auditing.responses"},
    {"auditing.anchors", "auditing.norms", "auditing.projections", "auditing.trajectory"},
    {"auditing.ablations", "auditing.low_precision", "auditing.stages"},
    {"auditing.rule_effects"},
    {"auditing.verdicts"},
    {"auditing.measuring"},
    {"auditing.report"},
    {"auditing.fixes"},
    {"auditing.findings"},
    {"auditing.audit"},
    {"auditing.explaining"},
    {
        "choosing.sweeping.dataset",
        "choosing.sweeping.memory",
        "choosing.sweeping.multihost",
        "choosing.sweeping.optimum_plot",
        "choosing.sweeping.power_law",
        "choosing.sweeping.values",
    },
    {
        "choosing.sweeping.batching",
        "choosing.sweeping.chunk",
        "choosing.sweeping.fingerprint",
        "choosing.sweeping.grid",
    },
    {
        "choosing.sweeping.devices",
        "choosing.sweeping.heatmap",
        "choosing.sweeping.identity",
        "choosing.sweeping.optimum",
        "choosing.sweeping.separability",
        "choosing.sweeping.trace",
    },
    {
        "choosing.sweeping.execute",
        "choosing.sweeping.metrics",
        "choosing.sweeping.result",
        "choosing.sweeping.store",
    },
    {"choosing.sweeping.training"},
    {"choosing.sweeping.parts"},
    {"choosing.searching.space", "choosing.sweeping.sweep"},
    {"choosing.searching.batches", "choosing.searching.journal", "choosing.searching.workers"},
    {"choosing.searching.halving", "choosing.searching.search_result"},
    {"choosing.searching.search"},
    {"__init__"},
]
PACKAGE = ROOT / "wd_optax"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
}


def imported(tree):
    """The full name of all that a module imports: `from a.b import c` is a.b.c, `import a.b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def module_of(name):
    """The module of ours that an imported name lives in: the longest that begins it."""
    parts = name.split(".")[1:]
    for end in range(len(parts), -1, -1):
        for module in (".".join(parts[:end]), ".".join([*parts[:end], "__init__"])):
            if module in MODULES:
                return module
    raise AssertionError(f"{name} is no module of wd_optax")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("wd_optax", "__init__"),
        ("wd_optax.__version__", "__init__"),
        ("wd_optax.core.decayed", "core"),
        ("wd_optax.precision.rounding", "precision.rounding"),
        ("wd_optax.precision.round_updates", "precision.__init__"),
    ],
)
def test_every_way_to_import_is_seen(name, module):
    assert module_of(name) == module


def test_imports_point_downward():
    floor = {module: i for i, modules in enumerate(FLOORS) for module in modules}
    empty = {module for module, tree in MODULES.items() if module.endswith("__init__") and not list(imported(tree))}
    assert set(floor) == set(MODULES) - empty, "give a new module its floor"
    for module in floor:
        for name in imported(MODULES[module]):
            if name.split(".")[0] == "wd_optax":
                below = module_of(name)
                assert below not in empty, f"{module} imports {name}, a folder: name the module"
                assert floor[below] < floor[module], f"{module} imports {name}"


def test_only_the_runtime_dependencies_are_imported():
    allowed = {"absl", "jax", "numpy", "optax", "wd_optax"} | set(sys.stdlib_module_names)
    for module, tree in MODULES.items():
        assert {name.split(".")[0] for name in imported(tree)} <= allowed, module


def test_public_names_are_listed_documented_and_have_one_address():
    spaces = {"precision", "prox", "rules"}
    public = {name for name, x in inspect.getmembers(wd) if not name.startswith("_") and not inspect.ismodule(x)}
    assert public | spaces | {"__version__"} == set(wd.__all__)
    everything = {name: getattr(wd, name) for name in public - {"scale_by_adam"}}
    everything |= {name: getattr(getattr(wd, space), name) for space in spaces for name in getattr(wd, space).__all__}
    for name, thing in everything.items():
        assert getattr(sys.modules[thing.__module__], name) is thing
        assert thing.__doc__, name
        if callable(thing) and not isinstance(thing, type):
            assert ">>>" in thing.__doc__, f"{name} has no example"


def test_importing_the_package_imports_only_what_a_training_step_needs():
    """Auditing, sweeps and other frameworks' optimizers are two thirds of the package's import."""
    heavy = ["chex", "flax", "matplotlib", "xarray", "rich", "tqdm", "sklearn", "orbax", "torch", "tensorflow"]
    heavy += ["optuna", "sqlalchemy"]
    code = (
        "import sys, optax; before = set(sys.modules); import wd_optax as wd; "
        f"print([m for m in sys.modules if m.split('.')[0] in {heavy!r} and m not in before]); "
        "from wd_optax import adamw; "
        "print([x for x in sys.modules if x.split('.')[1:2] in (['auditing'], ['choosing'], ['porting'])], "
        "set(wd.__all__) - set(dir(wd)), hasattr(wd, 'adamW')); wd.audit, wd.emulate; "
        "print([x for x in ('audit', 'emulate', 'sweep') if x in vars(wd)])"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["[]", "[] set() False", "['audit', 'emulate']"]


def test_files_stay_one_concept_long():
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


# Names that two modules define, each with its reason.
TWICE = {
    "CALLS": "each framework lists its own, wd.emulate all",
    "__all__": "each namespace lists its own",
    "elastic": "a penalty as a proximal step (wd.prox) and by its gradient (wd.rules)",
    "group": "the same",
    "refuse": "of a mask, and of what another framework has and Optax lacks",
}


def defined(tree):
    """The names that a module defines itself."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            yield from (x.id for x in ast.walk(node) if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store))


def test_a_name_is_defined_in_one_module():
    homes = collections.defaultdict(set)
    for module, tree in MODULES.items():
        for name in defined(tree):
            homes[name].add(module)
    assert {name: sorted(modules) for name, modules in homes.items() if len(modules) > 1 and name not in TWICE} == {}
    assert all(len(homes[name]) > 1 for name in TWICE), "no longer needed"


def identifiers(tree):
    for node in ast.walk(tree):
        for field in ("id", "arg", "name", "attr", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


@pytest.mark.parametrize("folder", ["wd_optax", "examples", "benchmarks", "claims"])
def test_identifiers_are_ascii(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert [name for name in identifiers(ast.parse(path.read_text())) if not name.isascii()] == [], path.name


# Words that mean something else to everyone, or nothing.
DIALECT = r"(?i)\b(mend(s|ed|ing)?|behind|lands?|landed|told|side by side|the house|stands(?! for)|dear)\b"


def test_the_words_are_the_fields():
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(DIALECT, line)
    ]
    assert found == []


def blocks(text):
    """Python blocks of a document, each with the output that a text block behind it promises, or None."""
    return [
        (code, out or None) for code, out in re.findall(r"```python\n(.*?)```\n(?:\n?```text\n(.*?)```)?", text, re.S)
    ]


@pytest.mark.slow
@pytest.mark.optax_promotes
@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "WORKSPACE_NOTES.md",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md")),
    ],
)
def test_documents_run_and_print_what_they_say(document, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks((ROOT / document).read_text())
    assert found or document != "README.md"
    names = {}
    for code, promised in found:
        # Readers have JAX's default promotion.
        with contextlib.redirect_stdout(io.StringIO()) as printed, jax.numpy_rank_promotion("allow"):
            exec(compile(code, document, "exec"), names)
        if promised is not None:
            assert printed.getvalue().rstrip() == promised.rstrip()
