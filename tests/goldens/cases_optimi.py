"""The recorded calls of optimī."""

from problem import PEAK, Case

SGD, ADAM, ADAMW, RADAM, LION, ADAN, STABLE = (
    f"optimi.{name}" for name in ("SGD", "Adam", "AdamW", "RAdam", "Lion", "Adan", "StableAdamW")
)
WD, LR = {"decouple_wd": True}, {"decouple_lr": True}
OPTIMI = {
    "sgd": Case(SGD),
    "sgd_momentum": Case(SGD, {"momentum": 0.9}),
    "sgd_dampening": Case(SGD, {"momentum": 0.9, "dampening": True}),
    "sgd_torch_init": Case(SGD, {"momentum": 0.9, "dampening": True, "torch_init": True}),
    "sgd_decouple_wd": Case(SGD, {"momentum": 0.9} | WD),
    "sgd_decouple_lr": Case(SGD, {"momentum": 0.9, "max_lr": PEAK} | LR),
    "sgd_groups": Case(SGD, {"momentum": 0.9} | LR, "groups"),
    "adam": Case(ADAM),
    "adam_decouple_wd": Case(ADAM, WD),
    "adam_decouple_lr": Case(ADAM, LR),
    "adamw": Case(ADAMW),
    "adamw_decouple_lr": Case(ADAMW, {"max_lr": PEAK} | LR),
    "adamw_max_lr": Case(ADAMW, {"max_lr": 2 * PEAK, "betas": (0.8, 0.95), "eps": 1e-2} | LR),
    "radam": Case(RADAM),
    "radam_decouple_wd": Case(RADAM, {"betas": (0.8, 0.9), "eps": 1e-2} | WD),
    "radam_decouple_lr": Case(RADAM, LR),
    "lion": Case(LION),
    "lion_decouple_lr": Case(LION, {"betas": (0.5, 0.8)} | LR),
    "adan": Case(ADAN),
    "adan_decouple_lr": Case(ADAN, LR),
    "adan_adam_wd": Case(ADAN, {"adam_wd": True, "betas": (0.9, 0.8, 0.95), "eps": 1e-2}),
    "adan_adam_wd_decouple_lr": Case(ADAN, {"adam_wd": True} | LR),
    "stableadamw": Case(STABLE, {"betas": (0.9, 0.5)}, "halves"),
    "stableadamw_decouple_lr": Case(STABLE, {"betas": (0.9, 0.5), "eps": 1e-2} | LR),
}
