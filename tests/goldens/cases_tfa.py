"""The recorded calls of TensorFlow Addons."""

from problem import Case

SGDW, ADAMW, LAMB = (f"tfa.optimizers.{name}" for name in ("SGDW", "AdamW", "LAMB"))
EXCLUDED = {"exclude_from_weight_decay": ["bias"]}
TFA = {
    "sgdw": Case(SGDW),
    "sgdw_momentum": Case(SGDW, {"momentum": 0.9}),
    "sgdw_nesterov": Case(SGDW, {"momentum": 0.9, "nesterov": True}),
    "sgdw_decay": Case(SGDW, {"momentum": 0.9, "decay": 0.1}),
    "sgdw_clips": Case(SGDW, {"clipvalue": 0.7, "clipnorm": 1.0}, "halves"),
    "sgdw_global_clipnorm": Case(SGDW, {"global_clipnorm": 1.5}, "halves"),
    "sgdw_excluded": Case(SGDW, {"momentum": 0.9} | EXCLUDED, "halves"),
    "adamw": Case(ADAMW),
    "adamw_amsgrad": Case(ADAMW, {"amsgrad": True, "beta_2": 0.5}),
    "adamw_options": Case(ADAMW, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-2} | EXCLUDED, "halves"),
    "lamb": Case(LAMB),
    "lamb_excluded": Case(LAMB, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-2} | EXCLUDED, "halves"),
    "lamb_not_adapted": Case(LAMB, {"exclude_from_layer_adaptation": ["kernel"]} | EXCLUDED, "halves"),
}
# λ as a schedule of the caller's, λ·η_t/η_max
TFA_SCHEDULED = {
    "sgdw_scheduled": Case(SGDW, {"momentum": 0.9}),
    "adamw_scheduled": Case(ADAMW),
}
