"""The recorded calls of bitsandbytes."""

from problem import Case

ADAM, ADAMW, LION = (f"bitsandbytes.optim.{name}" for name in ("Adam", "AdamW", "Lion"))
BITSANDBYTES = {
    "adam": Case(ADAM),
    "adam_groups": Case(ADAM, {"amsgrad": True}, "groups"),
    "adamw": Case(ADAMW),
    "adamw_options": Case(ADAMW, {"betas": (0.8, 0.95), "eps": 1e-3, "is_paged": False}),
    "lion": Case(LION),
    "lion_options": Case(LION, {"betas": (0.5, 0.8)}),
}
