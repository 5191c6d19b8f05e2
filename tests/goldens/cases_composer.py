"""The recorded calls of Composer."""

from problem import Case

SGDW, ADAMW = "composer.optim.DecoupledSGDW", "composer.optim.DecoupledAdamW"
COMPOSER = {
    "sgdw": Case(SGDW),
    "sgdw_momentum": Case(SGDW, {"momentum": 0.9, "dampening": 0.3}),
    "sgdw_nesterov": Case(SGDW, {"momentum": 0.9, "nesterov": True}),
    "sgdw_groups": Case(SGDW, {"momentum": 0.9}, "groups"),
    "adamw": Case(ADAMW),
    "adamw_amsgrad": Case(ADAMW, {"amsgrad": True, "betas": (0.8, 0.5)}),
    "adamw_options": Case(ADAMW, {"betas": (0.8, 0.95), "eps": 1e-3}),
    "adamw_groups": Case(ADAMW, {}, "groups"),
}
