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

import compare
import data
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plots
from absl import app

import wd_optax as wd


def optimizer(learning_rate: float, weight_decay: Any) -> optax.GradientTransformation:
    """AdamW with the usual b1 of GANs."""
    return wd.adamw(learning_rate, weight_decay=weight_decay, b1=0.5)  # S9: a GAN


SETTING = compare.Setting(
    "gan", seeds=4, steps=(4000, "Steps."), learning_rate=(1e-3, "η."), weight_decay=([1.0, 30.0], "λ beside 0.")
)
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


def frechet(a: jax.Array, b: jax.Array) -> jax.Array:
    """‖μ − μ'‖² + tr(C + C' − 2·(C·C')^½) of the Gaussians with the moments of a and b, (n, k) and (m, k)."""
    (mean, cov), (mean2, cov2) = ((x.mean(axis=0), jnp.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = jnp.linalg.eigh(cov)
    root = (vectors * jnp.sqrt(values.clip(0))[None]) @ vectors.T
    cross = jnp.sqrt(jnp.linalg.eigvalsh(root @ cov2 @ root).clip(0)).sum()
    return jnp.sum((mean - mean2) ** 2) + jnp.trace(cov) + jnp.trace(cov2) - 2 * cross


def cross_entropy(logits: Any, real: int) -> jax.Array:
    """Mean loss of the discriminator's logits if the images are real, 1, or not, 0."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, real)).mean()


def run(*, steps: int, seeds: int, learning_rate: float, weight_decay: list[float], width: int = 128) -> Any:
    """The gap of logits and the distance of samples over the steps, ‖w‖ of D, and samples, for every λ of D."""
    x, x_out, _, _ = data.digits(0, test_size=0.5)
    each = max(1, steps // MEASURED)  # steps between measurements
    generator, discriminator = MLP(width, x.shape[1]), MLP(width, 1)
    judge: Any = lambda d, images: discriminator.apply({"params": d}, images)
    generate = lambda g, z: jax.nn.sigmoid(jnp.asarray(generator.apply({"params": g}, z)))

    def train(hparams: dict[str, Any], key: jax.Array) -> dict[str, jax.Array]:
        g_key, d_key, step_key, sample_key = jax.random.split(key, 4)
        g, d = generator.init(g_key, jnp.zeros((1, NOISE)))["params"], discriminator.init(d_key, x[:1])["params"]
        g_tx, d_tx = optimizer(learning_rate, 0.0), optimizer(learning_rate, hparams["weight_decay"])

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

        def point(carry: Any, keys: jax.Array) -> Any:
            (g, g_state, d, d_state), _ = jax.lax.scan(step, carry, keys)
            samples = generate(g, jax.random.normal(sample_key, (len(x_out), NOISE)))
            found = {"gap": judge(d, x).mean() - judge(d, x_out).mean(), "distance": frechet(samples, x_out)}
            return (g, g_state, d, d_state), found

        keys = jax.random.split(step_key, (MEASURED, each))
        (g, _, d, _), curves = jax.lax.scan(point, (g, g_tx.init(g), d, d_tx.init(d)), keys)
        samples = generate(g, jax.random.normal(sample_key, (SHOWN, NOISE)))
        return curves | {"‖w‖": wd.weight_norm(d), "samples": samples}

    found = compare.sweep(train, seeds, weight_decay=[0.0, *weight_decay])
    return found.assign_coords(point=each * np.arange(1, MEASURED + 1)).assign_attrs(
        real=x_out[:SHOWN], floor=float(frechet(x, x_out))
    )


def report(results: Any) -> str:
    """A line per λ, then its differences from λ = 0."""
    end = compare.last(results)
    lines = [compare.table(end, **{"‖w‖": ".2f", "gap": ".2f", "distance": ".2f"}), ""]
    lines.append(f"The training digits are at a distance of {results.attrs['floor']:.2f} from the held-out ones.")
    for weight_decay in results["weight_decay"].values[1:]:
        gap, distance = (compare.change(end[key], "+.2f", weight_decay=weight_decay) for key in ("gap", "distance"))
        lines.append(f"λ = {weight_decay:g} changes the gap by {gap}, and the Fréchet distance by {distance}.")
    return "\n".join(lines)


def plot(results: Any) -> Any:
    """Digits, the first seed's samples at each λ, and both measures over the steps."""
    from matplotlib import colormaps

    tiles, side = {"digits held out": np.asarray(results.attrs["real"])}, math.isqrt(SHOWN)
    kinds = compare.kinds(results["samples"])
    tiles |= {f"samples, {text}": r.isel(seed=0).values for _, text, r in kinds}
    figure, panels = plots.figure(math.ceil((len(tiles) + 2) / 2), 2)
    for axes, (name, images) in zip(panels, tiles.items(), strict=False):
        framed = np.pad(images.reshape(side, side, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
        framed = framed.swapaxes(1, 2).reshape(10 * side, 10 * side)
        axes.imshow(framed, cmap=colormaps["gray_r"].resampled(9), interpolation="nearest")
        axes.set(title=name, xticks=[], yticks=[])
    for axes in panels[len(tiles) : -2]:
        axes.set_axis_off()
    gap, distance = panels[-2:]
    for axes, key, title in (
        (gap, "gap", "D's logits: training − held out"),
        (distance, "distance", "Fréchet distance"),
    ):
        compare.draw(axes, results[key])
        axes.set(xlabel="step", title=title)
    distance.set_yscale("log")
    distance.axhline(results.attrs["floor"], color="grey", label="training digits")
    distance.legend(title="bands: 95 % intervals")
    return figure


def main(_: list[str]) -> None:
    """Audits the optimizer, trains, then prints and plots the results."""
    start = lambda: MLP(128, 1).init(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    tx = optimizer(SETTING.values()["learning_rate"], SETTING.values()["weight_decay"][-1])
    SETTING.show(lambda: wd.audit(tx, jax.eval_shape(start)), run, report, plot)


if __name__ == "__main__":
    app.run(main)
