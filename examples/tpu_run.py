"""Trains a decoder-only transformer on a mesh of TPU chips, GPUs or CPU devices, and logs the effect of decay.

Parameters and optimizer state are sharded over `data` (FSDP) and `model`; AdamW decays the matrices alone. The text is
the source of some modules of Python's standard library; the defaults take ~60 s on a laptop CPU. After a crash the same
command resumes from the newest intact checkpoint in --out, on any mesh. Flags of the schedule, λ, clipping, logging and
saving may change between starts; those of model, batches and precision may not.

    python examples/tpu_run.py                                     # all local devices on the data axis
    python examples/tpu_run.py --mesh=4x2 --precision=stochastic   # bfloat16 without a float32 copy
    python examples/tpu_run.py --distributed                       # the same command on every host of a slice
    python examples/tpu_run.py --compile_only --topology=v5e:2x4   # for TPUs, without one: needs only libtpu

Resuming restores parameters, optimizer state and the stream of batches bit for bit, on any number of devices. On the
same mesh and devices the final bits equal those of an uninterrupted run; on another mesh sums are formed in another
order, and they agree up to rounding.
"""

import functools
import hashlib
import math
import pathlib
import time
from collections.abc import Callable
from typing import Any

import data
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
import tensorboardX
import tpu_compile
import tpu_folder
import tpu_model
from absl import app, flags, logging
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tpu_folder import State
from tpu_model import Size

import wd_optax as wd

_MESH = flags.DEFINE_string("mesh", None, "DATAxMODEL, such as 4x2; by default all devices x1.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Call jax.distributed.initialize(), for many hosts.")
_COMPILE_ONLY = flags.DEFINE_bool("compile_only", False, "Compile for --topology, print memory and collectives, stop.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "TPU slice for --compile_only, such as v5p:8x8x8.")
_PRECISION = flags.DEFINE_enum("precision", "master", ["master", "stochastic", "float32"], "See `optimizer`.")
_LAYERS = flags.DEFINE_integer("layers", 4, "Blocks of the transformer.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 128, "Width of the residual stream.", lower_bound=1)
_HEADS = flags.DEFINE_integer("heads", 4, "Attention heads.", lower_bound=1)
_CONTEXT = flags.DEFINE_integer("context", 128, "Characters per example.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Examples per step, on all devices together.", lower_bound=1)
_ACCUMULATE = flags.DEFINE_integer("accumulate", 2, "Microbatches per step.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 200, "Length of the run and of the schedule.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "η after warm-up.")
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.1, "λ.")
_CLIP = flags.DEFINE_float("clip", 1.0, "Largest norm of the gradient.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights, batches and rounding.", lower_bound=0)
_LOG_EVERY = flags.DEFINE_integer("log_every", 20, "Steps between two lines of log.", lower_bound=1)
_SAVE_EVERY = flags.DEFINE_integer("save_every", 50, "Steps between two checkpoints.", lower_bound=1)
_KEEP = flags.DEFINE_integer("keep", 2, "How many of the newest checkpoints to retain.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "out/tpu_run", "Folder of checkpoints, TensorBoard's scalars and tpu_run.png.")

MODULES = ("argparse", "ast", "inspect", "pydoc", "subprocess", "tarfile", "threading", "typing")
RULES = [("embedding", 0), (".*", "weights")]  # rare characters' rows would decay in every step but learn in few
# Dense bfloat16 FLOP/s per JAX device. Sources: Google Cloud's page on each TPU version (a TPU7x chip is
# two devices), NVIDIA's data sheets.
PEAK = {"TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v6 lite": 918e12, "TPU7x": 2307e12 / 2}
PEAK |= {"NVIDIA A100-SXM4-80GB": 312e12, "NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
SETTINGS = ("precision", "seed", "steps", "learning_rate", "weight_decay", "clip", "log_every", "save_every", "keep")
PARTS = ("clip", "monitor", "optimizer", "adamw")  # scopes, see `optimizer`
PANELS = {"loss": "cross-entropy (nats)", "decay_share": "decay's share of the step", "angle": "turned per step (rad)"}


def optimizer(precision: str, rate: Any, weight_decay: float, *, clip: float, seed: int, bare: bool = False) -> Any:
    """AdamW after clipping, monitored, in one of three precisions; `bare` omits clipping and monitor.

    "master": bfloat16 parameters and a float32 copy; "stochastic": bfloat16 alone, rounded stochastically; "float32".
    The monitor is inside the rounding: it sees the step before rounding noise, and the float32 copy.
    """
    adamw = wd.adamw(rate, weight_decay=weight_decay, b2=0.95, mask=RULES)
    watched = adamw if bare else named("monitor", wd.monitor_decay(named("adamw", adamw)))
    rounded = {
        "master": wd.precision.with_master_weights(watched),
        "stochastic": optax.chain(wd.precision.in_float32(watched), wd.precision.round_updates("stochastic", key=seed)),
        "float32": watched,
    }[precision]
    return rounded if bare else optax.chain(named("clip", optax.clip_by_global_norm(clip)), named("optimizer", rounded))


def named(name: str, tx: Any) -> Any:
    """`tx` within a named scope, so that its operations can be found in the compiled program."""
    return optax.GradientTransformationExtraArgs(tx.init, jax.named_scope(name)(tx.update))


def shapes(params: Any, size: Size, tx: Any) -> tuple[State, Any]:
    """Shapes of the state, and of the inputs and labels of one step (microbatch, example, character)."""
    rows = NamedSharding(params["norm"]["scale"].sharding.mesh, P(None, "data"))
    cut = (size.accumulate, size.batch_size // size.accumulate, size.context)
    ids = jax.ShapeDtypeStruct(cut, jnp.int32, sharding=rows)
    return State(params, tpu_model.sharded(jax.eval_shape(tx.init, params), params)), (ids, ids)


def update(tx: Any, state: State, grads: Any) -> tuple[State, dict[str, jax.Array]]:
    """The optimizer's part of a training step."""
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return State(optax.apply_updates(state.params, updates), opt_state), {}


def train_step(tx: Any, state: State, batch: Any) -> tuple[State, dict[str, jax.Array]]:
    """Accumulates the microbatches' gradients in float32, then makes one update, with one decay."""

    def microbatch(total: Any, xy: Any) -> Any:
        loss, grads = jax.value_and_grad(tpu_model.loss_fn)(state.params, *xy)
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32) / len(batch[0]), total, grads), loss

    grads, losses = jax.lax.scan(microbatch, optax.tree.zeros_like(state.params, dtype=jnp.float32), batch)
    state, _ = update(tx, state, grads)
    seen = {"loss": losses.mean(), "learning_rate": optax.tree.get(state.opt_state, "learning_rate")}
    seen |= {"gradient_norm": optax.tree.norm(grads), **wd.read_decay(state.opt_state)["weight"]._asdict()}
    return state, seen


def lower(step: Callable[..., Any], state: State, rest: Any) -> Any:
    """Lowers the step for these shapes and shardings; the state is donated and keeps its sharding."""
    shardings = jax.tree.map(lambda s: s.sharding, state)
    with jax.set_mesh(state.params["norm"]["scale"].sharding.mesh):
        return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, rest)


def batch_at(step: int, text: Any, ids: Any, seed: int) -> Any:
    """The batch of a step depends on seed and step alone; each host makes only the rows of its devices."""
    rows = np.random.default_rng((seed, step)).integers(len(text[0]), size=ids.shape[:2])
    put = lambda a: jax.make_array_from_callback(ids.shape, ids.sharding, lambda cut: a[rows][cut])
    return put(text[0]), put(text[1])


def speed(size: Size, params: Any, steps_per_second: float) -> dict[str, float]:
    """Steps and tokens per second and model FLOPs utilisation: NaN for a chip that PEAK doesn't know.

    FLOPs per token: 6 per kernel entry, 12·layers·width·context in attention (arXiv 2204.02311, appendix B).
    """
    kernels = sum(math.prod(p.shape) for path, p in jax.tree.leaves_with_path(params) if path[-1].key == "kernel")
    mesh = params["norm"]["scale"].sharding.mesh
    peak = mesh.size * PEAK.get(mesh.devices.flat[0].device_kind, math.nan)
    tokens = steps_per_second * size.batch_size * size.context
    mfu = tokens * (6 * kernels + 12 * size.layers * size.width * size.context) / peak
    return {"steps_per_second": steps_per_second, "tokens_per_second": tokens, "mfu": mfu}


def record(writer: Any, step: int, f: dict[str, float]) -> None:
    """Logs a line and the same figures to TensorBoard, on process 0 only."""
    mfu = "MFU unknown for this chip" if math.isnan(f["mfu"]) else f"MFU {f['mfu']:.1%}"
    tpu_folder.say(
        f"step {step}: loss {f['loss']:.4f}, ‖g‖ {f['gradient_norm']:.3g}, η {f['learning_rate']:.3g}; weights: ‖w‖ "
        f"{f['weight_norm']:.2f}, turn {f['angle']:.2g} rad, decay is {f['decay_share']:.1%} of the step; "
        f"{f['steps_per_second']:.2f} steps/s, {f['tokens_per_second']:,.0f} tokens/s, {mfu}"
    )
    for name, value in f.items():
        if not math.isnan(value):
            writer.add_scalar(name, value, step)
    writer.flush()


def run(size: Size, params: Any, tx: Any, settings: dict[str, Any], out: str) -> dict[str, Any]:
    """Trains from the newest intact checkpoint in `out`; returns the last state and the logged figures by step.

    `settings` has steps, seed, log_every, save_every, keep and weight_decay, and any other settings to be compared with
    those of the last start in `out`.
    """
    figures: dict[int, dict[str, float]] = {}
    steps, folder = settings["steps"], pathlib.Path(out).resolve()
    x, _, y, _ = zip(*(data.text(name, length=size.context) for name in MODULES), strict=True)
    text = np.concatenate(x), np.concatenate(y)
    settings = settings | size._asdict() | {"text": hashlib.sha256(text[0].tobytes()).hexdigest()[:12]}
    with (
        tpu_folder.locked(folder),
        tpu_folder.manager(folder, settings["keep"]) as checkpoints,
        tensorboardX.SummaryWriter(out, write_to_disk=jax.process_index() == 0) as writer,
    ):
        tpu_folder.say(tpu_folder.settled(folder, settings | {"jax": jax.__version__}))
        like, (ids, _) = shapes(params, size, tx)
        step_fn = lower(functools.partial(train_step, tx), like, (ids, ids)).compile()
        start, state = tpu_folder.begin(checkpoints, like, tx, settings["seed"])
        state = tpu_folder.with_weight_decay(state, settings["weight_decay"])
        last, since = start, time.perf_counter()
        for step in range(start + 1, steps + 1):  # the devices compute a step while the host makes the next batch
            state, seen = step_fn(state, batch_at(step - 1, text, ids, settings["seed"]))
            if step % settings["log_every"] == 0 or step == steps:
                seen = {name: float(x) for name, x in jax.device_get(seen).items()}  # waits for the step
                rate, last, since = (step - last) / (time.perf_counter() - since), step, time.perf_counter()
                figures[step] = seen | speed(size, params, rate)
                record(writer, step, figures[step])
            if step % settings["save_every"] == 0 or step == steps:
                tpu_folder.save(checkpoints, step, state)
        checkpoints.wait_until_finished()
        return {"start": start, "state": state, "figures": figures, "kept": checkpoints.all_steps()}


def compile_only(size: Size, params: Any, tx: Any, bare: Any) -> dict[str, Any]:
    """Memory and collectives per chip of a training step, and of the bare optimizer compiled alone."""
    lowered = lower(functools.partial(train_step, tx), *shapes(params, size, tx))
    step = lowered.compile()
    text, how = tpu_compile.text_of(lowered, step)
    state, _ = shapes(params, size, bare)
    grads = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32, sharding=p.sharding), params)
    alone = lower(functools.partial(update, bare), state, grads).compile().as_text()
    found = {name: tpu_compile.collectives(program, PARTS) for name, program in (("step", text), ("alone", alone))}
    return {"memory": step.memory_analysis(), "how": how, **found}


def report(results: dict[str, Any], out: str) -> str:
    """Formats the measured effect of decay."""
    figures, start = results["figures"], results["start"]
    if not figures:
        return f"The run in {out} is already finished at step {start}: use another --out, or more --steps."
    first, last = min(figures), max(figures)
    return (
        f"Steps {start + 1} to {last}: loss {figures[first]['loss']:.3f} at step {first}, {figures[last]['loss']:.3f} "
        f"at the end, where decay was {figures[last]['decay_share']:.1%} of the step.\n"
        f"Checkpoints: steps {', '.join(map(str, results['kept']))}. All figures: tensorboard --logdir={out}"
    )


def plot(figures: dict[int, dict[str, float]], out: str) -> pathlib.Path:
    """Plots loss, decay share and angular update over the steps since the start."""
    figure, panels = plots.figure(3)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        axes.plot(list(figures), [f[name] for f in figures.values()], **plots.line(0))
        axes.set(xlabel="step", ylabel=label)
    return plots.save(figure, out, "tpu_run.png")


def main(_: list[str]) -> None:
    """Prints which parameters decay, then trains and reports, or compiles and prints memory and collectives."""
    jax.config.update("jax_logging_level", "WARNING")
    logging.set_verbosity(logging.WARNING)  # Orbax logs dozens of lines per checkpoint
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    size = Size(*(flags.FLAGS.get_flag_value(name, 0) for name in Size._fields))
    devices = tpu_compile.devices(_TOPOLOGY.value) if _COMPILE_ONLY.value else jax.devices()
    mesh, steps, seed = tpu_model.make_mesh(_MESH.value, devices, size), _STEPS.value, _SEED.value
    params = tpu_model.parameters(size, jnp.float32 if _PRECISION.value == "float32" else jnp.bfloat16, mesh)
    schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE.value, steps // 10, steps)
    make = functools.partial(optimizer, _PRECISION.value, schedule, _WEIGHT_DECAY.value, clip=_CLIP.value, seed=seed)
    tpu_folder.say(
        f"{wd.explain(RULES, params)}\n{wd.timescale(_WEIGHT_DECAY.value, learning_rate=schedule, steps=steps)}"
    )
    tpu_folder.say(f"{mesh.size} × {devices[0].device_kind}, {_PRECISION.value}, {dict(mesh.shape)}")
    if _COMPILE_ONLY.value:
        print(tpu_compile.report(**compile_only(size, params, make(), make(bare=True))))
        return
    settings = {name: flags.FLAGS.get_flag_value(name, None) for name in SETTINGS}
    results = run(size, params, make(), settings | {"mesh": "x".join(map(str, mesh.devices.shape))}, _OUT.value)
    tpu_folder.say(report(results, _OUT.value))
    if results["figures"] and jax.process_index() == 0:
        print(f"Picture: {plot(results['figures'], _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
