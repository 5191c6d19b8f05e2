"""The recorded calls of pytorch-optimizer."""

from problem import Case

SGDW, LION, ADAN, BELIEF, STABLE = (
    f"pytorch_optimizer.{name}" for name in ("SGDW", "Lion", "Adan", "AdaBelief", "StableAdamW")
)
L2, FIXED = {"weight_decouple": False}, {"fixed_decay": True}
PYTORCH_OPTIMIZER = {
    "sgdw": Case(SGDW),
    "sgdw_dampening": Case(SGDW, {"momentum": 0.9, "dampening": 0.3}),
    "sgdw_nesterov": Case(SGDW, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    "sgdw_l2": Case(SGDW, {"momentum": 0.9} | L2),
    "lion": Case(LION, {}, "groups"),
    "lion_fixed": Case(LION, {"betas": (0.5, 0.8)} | FIXED),
    "adan": Case(ADAN),
    "adan_decoupled": Case(ADAN, {"betas": (0.9, 0.8, 0.95), "eps": 1e-3, "weight_decouple": True}),
    "adabelief": Case(BELIEF),
    "adabelief_rectify": Case(BELIEF, {"rectify": True, "betas": (0.9, 0.9)}),
    "adabelief_ams_bound": Case(BELIEF, {"ams_bound": True, "betas": (0.8, 0.5), "eps": 1e-3}),
    "adabelief_fixed": Case(BELIEF, FIXED),
    "adabelief_l2": Case(BELIEF, L2),
    "stableadamw": Case(STABLE, {"betas": (0.9, 0.5)}, "halves"),
    "stableadamw_maximize": Case(STABLE, {"betas": (0.8, 0.5), "eps": 1e-2, "maximize": True}),
}
