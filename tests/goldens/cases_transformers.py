"""The recorded calls of Transformers."""

from problem import Case

TRAINER = "transformers.Trainer"
TRANSFORMERS = {
    "trainer": Case(TRAINER, {"lr_scheduler_type": "constant"}, "model"),
    "trainer_linear": Case(TRAINER, {"max_steps": 10, "warmup_steps": 3}, "model"),
    "trainer_cosine": Case(
        TRAINER, {"max_steps": 12, "warmup_steps": 0.2, "lr_scheduler_type": "cosine", "max_grad_norm": 1.5}, "model"
    ),
    "trainer_options": Case(
        TRAINER,
        {
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 4,
            "adam_beta1": 0.8,
            "adam_beta2": 0.95,
            "adam_epsilon": 1e-3,
            "max_grad_norm": 0.0,
            "optim": "adamw_torch",
        },
        "model",
    ),
}
