"""Published rules that carry a weight decay or a learning rate from one run to another, one record each.

A rule for λ holds a quantity that is computed from the rates c_t (the fraction removed in step t):

    strength · factor(run) = the same in both runs,   strength = max c_t, or −Σ ln(1 − c_t) over the run

so there and back is the identity, and two transfers in a row are one. A rule for η multiplies the learning rate by a
ratio of the two runs. Rules state what the paper says and where it was validated; none of them is a law.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from wd_optax.choosing.runs import Run

HoldName = Literal[
    "angle",
    "norm",
    "timescale_epochs",
    "timescale_run",
    "tokens_per_parameter",
    "normalised",
    "mup_angle",
    "mup_sqrt_width",
    "same_decay",
]
LearningRateRuleName = Literal["batch_linear", "batch_sqrt", "mup"]


class LearningRateRule(NamedTuple):
    """How η follows from one run to another: η' = η·ratio(source, target)."""

    name: str
    formula: str
    ratio: Callable[[Run, Run], float]
    needs: tuple[str, ...]  # fields of both runs
    optimizers: tuple[str, ...]
    source: str
    validated: str


class DecayRule(NamedTuple):
    """How λ follows from one run to another: strength·factor(run) is held."""

    name: str
    holds: str
    formula: str
    strength: Literal["peak", "total"]  # max c_t, or −Σ ln(1 − c_t)
    factor: Callable[[Run], float]  # of a run whose fields in `needs` are known
    needs: tuple[str, ...]
    optimizers: tuple[str, ...] | None  # None: of any
    learning_rate: str | None  # the rule for η that belongs to it
    source: str
    validated: str


def _known(value: float | None) -> float:
    """A field that `needs` lists, so that it is known."""
    return math.nan if value is None else value


def _momentum(run: Run) -> float:
    """μ, where updates are the sum of gradients that it carries on: η/(1 − μ) is then the learning rate in the end."""
    return run.momentum or 0.0 if run.optimizer in ("sgdw", "sgd_l2") else 0.0


def _turning(run: Run) -> float:
    """(1 − μ)/(1 + μ), the share of c in the squared angle of a step; the betas of Adam are taken to be equal."""
    return (1 - _momentum(run)) / (1 + _momentum(run))


LEARNING_RATE_RULES = {
    rule.name: rule
    for rule in (
        LearningRateRule(
            name="batch_linear",
            formula="η·batch'/batch",
            ratio=lambda a, b: b.batch / a.batch,
            needs=(),
            optimizers=("sgdw", "sgd_l2"),
            source="Goyal et al. 2017, arXiv 1706.02677",
            validated="ResNet-50 on ImageNet, SGD, batches up to 8,192, with a warm-up of 5 epochs",
        ),
        LearningRateRule(
            name="batch_sqrt",
            formula="η·√(batch'/batch), with 1 − β ∝ batch and ε ∝ 1/√batch",
            ratio=lambda a, b: math.sqrt(b.batch / a.batch),
            needs=(),
            optimizers=("adamw",),
            source="Malladi et al. 2022, arXiv 2205.10287",
            validated="Adam and RMSprop, vision and language; says nothing of λ",
        ),
        LearningRateRule(
            name="mup",
            formula="η·width/width' for hidden weights",
            ratio=lambda a, b: _known(a.width) / _known(b.width),
            needs=("width",),
            optimizers=("adamw",),
            source="Yang et al. 2022, arXiv 2203.03466",
            validated="transformers up to GPT-3 6.7B and ResNets, in muP; says nothing of λ",
        ),
    )
}

DECAY_RULES = {
    rule.name: rule
    for rule in (
        DecayRule(
            name="angle",
            holds="ηλ at the peak: the angle per step of normalised weights",
            formula="√(2c(1 − β)/(1 + β))",
            strength="peak",
            factor=_turning,
            needs=(),
            optimizers=None,
            learning_rate=None,
            source="Kosson et al. 2023, arXiv 2305.17212",
            validated="a formula, measured on ResNet-50 and GPT-2 124M; the paper doesn't transfer λ by it",
        ),
        DecayRule(
            name="norm",
            holds="η²/c: the rms entry of normalised weights",
            formula="‖w‖ = √(η²C/(2c)) under AdamW, and ‖w‖⁴ ∝ (η/(1 − μ))²/c under SGD with equal gradients",
            strength="peak",
            factor=lambda run: ((1 - _momentum(run)) / _known(run.learning_rate)) ** 2,
            needs=(),
            optimizers=("adamw", "sgdw", "sgd_l2"),
            learning_rate=None,
            source="Kosson et al. 2023, arXiv 2305.17212",
            validated="a formula, measured on ResNet-50 and GPT-2 124M; the paper doesn't transfer λ by it",
        ),
        DecayRule(
            name="timescale_epochs",
            holds="Π(1 − c) per epoch: the timescale in epochs",
            formula="τ = 1/(ηλ·steps per epoch)",
            strength="total",
            factor=lambda run: 1 / _known(run.epochs),
            needs=("examples",),
            optimizers=None,
            learning_rate=None,
            source="Wang & Aitchison 2024, arXiv 2405.13698",
            validated="AdamW: ResNet-18 and ViT on CIFAR-10 and ImageNet, NanoGPT on OpenWebText",
        ),
        DecayRule(
            name="timescale_run",
            holds="Π(1 − c) over the run: the timescale as a share of the run",
            formula="τ = 1/(ηλ·steps)",
            strength="total",
            factor=lambda run: 1.0,
            needs=(),
            optimizers=None,
            learning_rate=None,
            source="Bergsma et al. 2025, arXiv 2505.13738",
            validated="AdamW, GPT-2-like 111M to 3.3B: λ ∝ batch at one model and one number of tokens",
        ),
        DecayRule(
            name="tokens_per_parameter",
            holds="the share of the run times (tokens/parameters)^0.527",
            formula="τ = 1/(ηλ·steps) ∝ (batch·steps/parameters)^−0.527",
            strength="total",
            factor=lambda run: (run.batch * run.steps / _known(run.parameters)) ** -0.527,
            needs=("parameters",),
            optimizers=None,
            learning_rate=None,
            source="Bergsma et al. 2025, arXiv 2505.13738",
            validated="AdamW in muP, GPT-2-like 111M to 3.3B on SlimPajama, one pass",
        ),
        DecayRule(
            name="normalised",
            holds="λ·√steps, with λ the rate at the peak (the paper's λ isn't multiplied by η)",
            formula="c = λ_norm·√(batch/(examples·epochs))",
            strength="peak",
            factor=lambda run: math.sqrt(run.steps),
            needs=(),
            optimizers=None,
            learning_rate=None,
            source="Loshchilov & Hutter 2019, arXiv 1711.05101",
            validated="ResNets on CIFAR-10 and ImageNet32x32, runs of different lengths",
        ),
        DecayRule(
            name="mup_angle",
            holds="ηλ at the peak, with η ∝ 1/width: λ ∝ width",
            formula="λ·width'/width",
            strength="peak",
            factor=lambda run: 1.0,
            needs=("width",),
            optimizers=("adamw",),
            learning_rate="mup",
            source="Wang & Aitchison 2024, arXiv 2405.13698; Kosson et al. 2025, arXiv 2510.19093",
            validated="AdamW in muP: the models of timescale_epochs; large language models (there called independent)",
        ),
        DecayRule(
            name="mup_sqrt_width",
            holds="√(η/λ)·width^¾, with η ∝ 1/width: λ ∝ √width",
            formula="λ·√(width'/width), the top singular value of hidden weights",
            strength="peak",
            factor=lambda run: 1 / (_known(run.learning_rate) ** 2 * _known(run.width) ** 1.5),
            needs=("width",),
            optimizers=("adamw",),
            learning_rate="mup",
            source="Fan et al. 2025, arXiv 2510.15262",
            validated="AdamW in muP: LLaMA-like transformers and a synthetic task",
        ),
        DecayRule(
            name="same_decay",
            holds="λ itself, with η ∝ batch",
            formula="λ' = λ, also at another momentum",
            strength="peak",
            factor=lambda run: 1 / (_known(run.learning_rate) * run.amplification),
            needs=(),
            optimizers=("sgdw", "sgd_l2"),
            learning_rate="batch_linear",
            source="Goyal et al. 2017, arXiv 1706.02677",
            validated="ResNet-50 on ImageNet, SGD with L2, at equal epochs",
        ),
    )
}
