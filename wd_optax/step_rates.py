"""The decay of a step where it is a number times the parameters: read off the program, without a derivative."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from wd_optax import dtypes

CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")  # of one inner program
EXACT = ("copy", "copy_p", "sharding_constraint")  # what these return is their argument


class NotAMultipleError(Exception):
    """The step isn't linear in the parameters with a number per leaf."""


class Multiple(NamedTuple):
    """A value whose derivative along the parameters is `rate` times a leaf; `OTHER` is any other derivative."""

    leaf: int
    rate: int  # of `Numbers`


OTHER = Multiple(-1, -1)


class Numbers:
    """Scalars of a program, which are evaluated once they are asked for; equal expressions are one."""

    def __init__(self) -> None:
        self._known: dict[Any, int] = {}
        self._expressions: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        self._values: dict[int, Any] = {}

    def add(self, key: Any, function: Callable[..., Any], *arguments: int) -> int:
        """The scalar `function(*arguments)`; `key` says which function it is."""
        if (found := self._known.get((key, arguments))) is None:
            found = self._known[key, arguments] = len(self._expressions)
            self._expressions.append((function, arguments))
        return found

    def value(self, number: int) -> Any:
        """Evaluates it."""
        if number not in self._values:
            function, arguments = self._expressions[number]
            self._values[number] = function(*map(self.value, arguments))
        return self._values[number]


def rates(program: Any, values: Sequence[Any], leaves: Sequence[int | None], outputs: int) -> list[Any] | None:
    """c of each of the first outputs, whose derivative along the parameters is c·p; or None if one has another.

    c is a scalar, and None where the output doesn't depend on the parameters. Sums, products with numbers and choices
    by a number are followed, as decoupled decay has them: for anything else, take the derivative.

    Args:
      program: a closed jaxpr; inputs before the last `values` are of the function's closure.
      values: its inputs.
      leaves: which parameter an input is, as the index of the output with its update; None for other inputs.
      outputs: how many outputs are updates.
    """
    numbers = Numbers()
    one = numbers.add(1, lambda: jnp.float32(1))
    jaxpr = program.jaxpr
    hidden = len(jaxpr.invars) - len(values)
    inputs = [numbers.add(("hidden", i), _refuse) for i in range(hidden)]
    inputs += [numbers.add(("input", i), lambda x=x: x) for i, x in enumerate(values)]
    constants = [numbers.add(("constant", i), lambda x=x: x) for i, x in enumerate(program.consts)]
    given = [None] * hidden + [None if i is None else Multiple(i, one) for i in leaves]
    try:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))
        found = _Frame(numbers, jaxpr, known.__getitem__, given).outputs()[:outputs]
        if any(x is not None and x.leaf != i for i, x in enumerate(found)):
            return None
        return [None if x is None else numbers.value(x.rate) for x in found]
    except NotAMultipleError:
        return None


def _refuse() -> Any:
    raise NotAMultipleError


class _Frame:
    """One jaxpr, its inputs as `Numbers`, and what is known of their derivatives."""

    def __init__(
        self, numbers: Numbers, jaxpr: Any, inputs: Callable[[Any], int], given: list[Multiple | None]
    ) -> None:
        from jax.extend.core import Literal  # it loads Pallas

        self.numbers, self.jaxpr, self._inputs, self._literal = numbers, jaxpr, inputs, Literal
        self._found: dict[Any, Multiple | None] = {
            v: x for v, x in zip(jaxpr.invars, given, strict=True) if x is not None
        }
        self._origins = {v: (equation, i) for equation in jaxpr.eqns for i, v in enumerate(equation.outvars)}

    def outputs(self) -> list[Multiple | None]:
        """What is known of the outputs' derivatives; None where they are 0."""
        for equation in self.jaxpr.eqns:
            found = [self.derivative(v) for v in equation.invars]
            if any(found):
                for v, x in zip(equation.outvars, self._rule(equation, found), strict=True):
                    self._found[v] = x if x is None or v.aval.shape == self._shape(equation, found) else OTHER
        return [self.derivative(v) for v in self.jaxpr.outvars]

    def derivative(self, v: Any) -> Multiple | None:
        """Of a variable, or a literal, which has none."""
        return None if isinstance(v, self._literal) else self._found.get(v)

    def _shape(self, equation: Any, found: list[Multiple | None]) -> tuple[int, ...]:
        return next(v.aval.shape for v, x in zip(equation.invars, found, strict=True) if x is not None)

    def number(self, v: Any) -> int:
        """The value of a variable, which is known to have no derivative, as one of `Numbers`."""
        if isinstance(v, self._literal):
            return self.numbers.add(("literal", str(v.aval), repr(v.val)), lambda: v.val)
        if v not in self._origins:
            return self._inputs(v)
        equation, i = self._origins[v]
        arguments = [self.number(x) for x in equation.invars]
        name, parameters = equation.primitive.name, equation.params
        key: Any = (name, i, str(parameters)) if name not in CALLS else (id(equation), i)

        def bind(*values: Any) -> Any:
            given = equation.primitive.get_bind_params(parameters)
            functions, options = given if isinstance(given, tuple) else ([], given)  # before JAX 0.10, and since
            found = equation.primitive.bind(*functions, *values, **options)
            return found[i] if equation.primitive.multiple_results else found

        return self.numbers.add(key, bind, *arguments)

    def _scalar(self, v: Any) -> Any:
        """The scalar that a variable without derivative is, or is broadcast from; None if it isn't one."""
        if v.aval.shape == ():
            return v
        if isinstance(v, self._literal) or v not in self._origins:
            return None
        equation, _ = self._origins[v]
        return self._scalar(equation.invars[0]) if equation.primitive.name == "broadcast_in_dim" else None

    def _rule(self, equation: Any, found: list[Multiple | None]) -> list[Multiple | None]:
        name = equation.primitive.name
        if name in CALLS and (inner := [x for x in equation.params.values() if hasattr(x, "jaxpr")]):
            return self._call(inner[0], equation.invars, found)
        if len(equation.outvars) != 1 or OTHER in found or len({x.leaf for x in found if x}) != 1:
            return [OTHER] * len(equation.outvars)
        if not jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
            return [OTHER]
        return [self._linear(name, equation.invars, found)]

    def _call(self, inner: Any, variables: list[Any], found: list[Multiple | None]) -> list[Multiple | None]:
        outer = dict(zip(inner.jaxpr.invars, variables, strict=True))
        constants = {id(v): x for v, x in zip(inner.jaxpr.constvars, inner.consts, strict=True)}

        def number(v: Any) -> int:
            if v in outer:
                return self.number(outer[v])
            return self.numbers.add(("constant", id(v)), lambda: constants[id(v)])

        return _Frame(self.numbers, inner.jaxpr, number, found).outputs()

    def _linear(self, name: str, variables: list[Any], found: list[Multiple | None]) -> Multiple:
        first = next(x for x in found if x is not None)
        if name in EXACT or name == "convert_element_type":
            return first
        if name == "neg":
            return first._replace(rate=self.numbers.add("neg", lax.neg, first.rate))
        if name in ("add", "add_any", "sub"):
            rates = [x.rate for x in found if x is not None]
            if name == "sub" and found[1] is not None:
                rates[-1] = self.numbers.add("neg", lax.neg, rates[-1])
            return first._replace(rate=rates[0] if len(rates) == 1 else self._arithmetic(lax.add, *rates))
        others = [self._scalar(v) for v, x in zip(variables, found, strict=True) if x is None]
        if name == "select_n" and found[0] is None and others[0] is not None:
            zero = self.numbers.add(0, lambda: jnp.float32(0))
            cases = [zero if x is None else x.rate for x in found[1:]]
            rate = self.numbers.add(name, lambda i, *x: lax.select_n(i, *_promoted(*x)), self.number(others[0]), *cases)
            return first._replace(rate=rate)
        if len(others) == 1 and others[0] is not None and (name == "mul" or (name == "div" and found[1] is None)):
            operation = lax.mul if name == "mul" else lax.div
            return first._replace(rate=self._arithmetic(operation, first.rate, self.number(others[0])))
        return OTHER

    def _arithmetic(self, operation: Callable[..., Any], *arguments: int) -> int:
        return self.numbers.add(operation.__name__, lambda *x: operation(*_promoted(*x)), *arguments)


def _promoted(*x: Any) -> list[jax.Array]:
    arrays = [jnp.asarray(a) for a in x]
    dtype = dtypes.arithmetic(*(a.dtype for a in arrays))
    return [lax.convert_element_type(a, dtype) for a in arrays]
