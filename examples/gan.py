"""Takes ~30 s on a laptop CPU and prints what decay in the discriminator does to a small GAN.

Generator and discriminator are Flax MLPs, trained against each other on half of scikit-learn's handwritten digits.
Only the discriminator decays, at several λ, 0 among them. The more it memorises its digits, the larger the gap between
its logits on training digits and on the other half. Samples are judged by the Fréchet distance of their pixels to the
held-out digits; the distance of the training digits is given for comparison.

    python examples/gan.py                         # a table, and samples in out/gan.png
    python examples/gan.py --weight_decay=1        # 0 and this λ; --help lists the knobs
"""

import math
from typing import Any

import console
import data
import flax.linen as nn
import intervals
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app, flags

import wd_optax as wd

_STEPS = flags.DEFINE_integer("steps", 4000, "Steps of both networks.", lower_bound=10)
_SEEDS = flags.DEFINE_integer(
    "seeds", 4, "Runs of each λ; the seed determines weights, batches and noise.", lower_bound=2
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "η of both networks.")
_WEIGHT_DECAY = flags.DEFINE_multi_float("weight_decay", [1.0, 30.0], "λ, in addition to 0; may be repeated.")
_OUT = flags.DEFINE_string("out", "out", "Folder for gan.png; created if missing.")

NOISE, BATCH, MEASURED, SHOWN = 16, 64, 10, 36  # inputs of G; batch size; measurements per run; samples in the picture


class MLP(nn.Module):
    """(n, k) → two hidden layers → (n, outputs)."""

    width: int
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits: of pixels (generator) or of being real (discriminator)."""
        for _ in range(2):
            x = nn.leaky_relu(nn.Dense(self.width)(x), 0.2)
        return nn.Dense(self.outputs)(x)


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW with the usual b1 of GANs."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, b1=0.5)  # S9: a GAN


def frechet(a: jax.Array, b: jax.Array) -> jax.Array:
    """‖μ − μ'‖² + tr(C + C' − 2·(C·C')^½) of the Gaussians with the moments of a and b, (n, k) and (m, k)."""
    (mean, cov), (mean2, cov2) = ((x.mean(axis=0), jnp.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = jnp.linalg.eigh(cov)
    root = (vectors * jnp.sqrt(values.clip(0))[None]) @ vectors.T
    cross = jnp.sqrt(jnp.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return jnp.sum((mean - mean2) ** 2) + jnp.trace(cov) + jnp.trace(cov2) - 2 * cross


def train(
    x: jax.Array, x_out: jax.Array, steps: int, seeds: int, learning_rate: float, weight_decays: jax.Array, width: int
) -> dict[str, np.ndarray]:
    """Trains all seeds at all λ in one program; x: training digits, x_out: held out. Returns arrays (λ, seeds, ...)."""
    generator, discriminator = MLP(width, x.shape[1]), MLP(width, 1)
    cross_entropy = lambda logits, real: optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, real)).mean()

    def generate(params: Any, z: jax.Array) -> jax.Array:
        logits: Any = generator.apply({"params": params}, z)
        return jax.nn.sigmoid(logits)

    def judge(params: Any, images: jax.Array) -> Any:
        return discriminator.apply({"params": params}, images)

    def one(seed: jax.Array, weight_decay: jax.Array) -> dict[str, jax.Array]:
        keys = jax.random.split(jax.random.key(seed), 4)
        g = generator.init(keys[0], jnp.zeros((1, NOISE)))["params"]
        d = discriminator.init(keys[1], x[:1])["params"]
        g_tx, d_tx = optimizer(learning_rate, 0.0), optimizer(learning_rate, weight_decay)

        def step(carry: Any, key: jax.Array) -> Any:
            g, g_state, d, d_state = carry
            pick, now = jax.random.split(key)
            real, z = x[jax.random.randint(pick, (BATCH,), 0, len(x))], jax.random.normal(now, (BATCH, NOISE))
            grads = jax.grad(lambda d: cross_entropy(judge(d, real), 1) + cross_entropy(judge(d, generate(g, z)), 0))(d)
            updates, d_state = d_tx.update(grads, d_state, d)
            d = optax.apply_updates(d, updates)
            grads = jax.grad(lambda g: cross_entropy(judge(d, generate(g, z)), 1))(g)
            updates, g_state = g_tx.update(grads, g_state, g)
            return (optax.apply_updates(g, updates), g_state, d, d_state), None

        def measure(carry: Any, keys_now: jax.Array) -> Any:
            carry, _ = jax.lax.scan(step, carry, keys_now)
            samples = generate(carry[0], jax.random.normal(keys[3], (len(x_out), NOISE)))
            about = {"gap": judge(carry[2], x).mean() - judge(carry[2], x_out).mean()}
            return carry, about | {"distance": frechet(samples, x_out)}

        start = (g, g_tx.init(g), d, d_tx.init(d))
        (g, _, d, _), curves = jax.lax.scan(measure, start, jax.random.split(keys[2], (MEASURED, steps // MEASURED)))
        norm = wd.weight_norm(d)
        return curves | {"‖w‖": norm, "samples": generate(g, jax.random.normal(keys[3], (SHOWN, NOISE)))}

    found = jax.jit(jax.vmap(jax.vmap(one, (0, None)), (None, 0)))(jnp.arange(seeds), weight_decays)
    return {key: np.asarray(a) for key, a in found.items()}


def run(
    *, steps: int, seeds: int, learning_rate: float, weight_decays: list[float], width: int = 128
) -> dict[str, Any]:
    """Returns per λ "gap" and "distance" (seeds, 10) over the steps, ‖w‖ of D (seeds,), "samples" (seeds, 36, 64)."""
    x, x_out, _, _ = data.digits(0, test_size=0.5)
    found = train(x, x_out, steps, seeds, learning_rate, jnp.array(weight_decays), width)
    runs = {weight_decay: {key: v[i] for key, v in found.items()} for i, weight_decay in enumerate(weight_decays)}
    at = np.arange(1, MEASURED + 1) * (steps // MEASURED)
    return {"runs": runs, "steps": at, "real": np.asarray(x_out[:SHOWN]), "floor": float(frechet(x, x_out))}


def report(results: dict[str, Any]) -> str:
    """Formats a line per λ, then its differences from λ = 0."""
    lines = [f"{'λ of D':9}{'‖w‖ of D':17}{'logits, train − held out':27}Fréchet distance of samples"]
    for weight_decay, r in results["runs"].items():
        columns = [intervals.mean(a) for a in (r["‖w‖"], r["gap"][:, -1], r["distance"][:, -1])]
        lines.append(f"{weight_decay:<9g}{columns[0]:17}{columns[1]:27}{columns[2]}")
    lines += [f"The training digits are at a distance of {results['floor']:.2f} from the held-out ones.", ""]
    none = results["runs"][0.0]
    for weight_decay, r in list(results["runs"].items())[1:]:
        lines.append(f"λ = {weight_decay:g} compared with λ = 0, on the same seeds:")
        for key, what in (("gap", "gap of the logits"), ("distance", "Fréchet distance")):
            change = r[key][:, -1] - none[key][:, -1]
            lines.append(f"  {what} {intervals.change(change)}")
    return "\n".join(lines)


def plot(results: dict[str, Any], folder: str) -> Any:
    """Plots digits, the first seed's samples at each λ, and both measures over the steps."""
    from matplotlib import colormaps

    tiles = {"digits held out": results["real"]}
    tiles |= {f"samples, λ = {weight_decay:g}": r["samples"][0] for weight_decay, r in results["runs"].items()}
    figure, panels = plots.figure(math.ceil((len(tiles) + 2) / 2), 2)
    side = math.isqrt(SHOWN)
    for axes, (name, images) in zip(panels, tiles.items(), strict=False):
        framed = np.pad(images.reshape(side, side, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        axes.imshow(
            framed.swapaxes(1, 2).reshape(10 * side, 10 * side),
            cmap=colormaps["gray_r"].resampled(9),
            interpolation="nearest",
        )
        axes.set(title=name, xticks=[], yticks=[])
    gap, distance = panels[-2:]
    for axes in panels[len(tiles) : -2]:
        axes.set_axis_off()
    for i, (weight_decay, r) in enumerate(results["runs"].items()):
        for axes, key in ((gap, "gap"), (distance, "distance")):
            plots.bars(axes, results["steps"], r[key], plots.line(i), label=f"λ = {weight_decay:g}", marker="")
    gap.set(xlabel="step", title="D's logits on digits: training − held out")
    distance.set(xlabel="step", title="Fréchet distance of samples", yscale="log")
    distance.axhline(results["floor"], color="grey", label="training digits")
    distance.legend(title="bars: 95 % intervals")
    return plots.save(figure, folder, "gan.png")


def main(argv: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    del argv
    console.plain()
    learning_rate, rates = _LEARNING_RATE.value, [0.0, *_WEIGHT_DECAY.value]
    params = jax.eval_shape(lambda: MLP(128, 1).init(jax.random.key(0), jnp.zeros((1, 64)))["params"])
    print(wd.audit(optimizer(learning_rate, rates[-1]), params), end="\n\n", flush=True)
    results = run(steps=_STEPS.value, seeds=_SEEDS.value, learning_rate=learning_rate, weight_decays=rates)
    print(report(results))
    print(f"{_SEEDS.value} seeds ({intervals.MEANING}), η = {learning_rate:g}. Picture: {plot(results, _OUT.value)}")


if __name__ == "__main__":
    app.run(main)
