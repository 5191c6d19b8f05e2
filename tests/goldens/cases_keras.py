"""The recorded calls of Keras."""

from problem import Case

SGD, ADAM, ADAMW, RMSPROP, LION, LAMB, ADAFACTOR = (
    f"keras.optimizers.{name}" for name in ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Lamb", "Adafactor")
)
KERAS = {
    "sgd": Case(SGD),
    "sgd_momentum": Case(SGD, {"momentum": 0.9}),
    "sgd_nesterov": Case(SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd_clipnorm": Case(SGD, {"clipnorm": 1.5}, "halves"),
    "sgd_clipvalue": Case(SGD, {"momentum": 0.9, "clipvalue": 0.5}, "halves"),
    "sgd_global_clipnorm": Case(SGD, {"global_clipnorm": 1.5}, "halves"),
    "sgd_excluded": Case(SGD, {"momentum": 0.9, "exclude_from_weight_decay": ["bias"]}, "halves"),
    "adam": Case(ADAM),
    "adam_amsgrad": Case(ADAM, {"amsgrad": True}),
    "adam_options": Case(ADAM, {"beta_1": 0.8, "beta_2": 0.5, "epsilon": 1e-2, "amsgrad": True}),
    "adamw": Case(ADAMW),
    "adamw_amsgrad": Case(ADAMW, {"amsgrad": True, "beta_2": 0.5}),
    "adamw_global_clipnorm": Case(
        ADAMW, {"global_clipnorm": 1.0, "epsilon": 1e-2, "exclude_from_weight_decay": ["bias"]}, "halves"
    ),
    "rmsprop": Case(RMSPROP),
    "rmsprop_momentum": Case(RMSPROP, {"momentum": 0.9, "centered": True}),
    "rmsprop_options": Case(RMSPROP, {"rho": 0.8, "momentum": 0.5, "epsilon": 1e-2}),
    "lion": Case(LION),
    "lion_options": Case(LION, {"beta_1": 0.5, "beta_2": 0.8}),
    "lamb": Case(LAMB),
    "lamb_options": Case(LAMB, {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-2}, "halves"),
    "adafactor": Case(ADAFACTOR),
    "adafactor_vector": Case(ADAFACTOR, {"relative_step": False}, "vector"),
    "adafactor_options": Case(
        ADAFACTOR, {"beta_2_decay": -0.5, "epsilon_1": 1e-2, "epsilon_2": 1.6, "clip_threshold": 0.5}, "halves"
    ),
}
