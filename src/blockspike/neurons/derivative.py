"""The derivative of a model's step, derived from the step itself.

`derived` runs the step once on expressions instead of numbers, differentiates the expressions in
reverse, and writes the result as a Python function of the same few operations. So the kernels
compile it as they compile one written by hand. `given_spikes` does so for a neuron whose spikes are
known beforehand.
"""

import hashlib
import linecache
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

from blockspike.neurons.model import NeuronModel, maximum, translated, where

_ARGUMENTS = (
    "drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state"
)
_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "and": "&", "or": "|",
    "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip


@cache
def derived(model: NeuronModel, n_constants: int) -> NeuronModel:
    """The model with a `reverse_step` that is derived from its step.

    Args:
        model: has no `reverse_step`.
        n_constants: number of constants that the step gets, with 0 and 1.

    Raises:
        ValueError: the step does something else than a `NeuronModel` may; names it.
    """
    run = _run(model, n_constants, Expression("with gradient", "drive"), _fired)
    return replace(model, reverse_step=_compiled(model, _reverse_source(run), "reverse_step"))


@cache
def given_spikes(model: NeuronModel, n_constants: int) -> NeuronModel:
    """The model of neurons that are reset by given spikes and fire none of their own.

    The `drive` of its step is a pair, of the drive and of the spike, 1 or 0; `fire` is not called.
    In its reverse_step, slope · grad_spike is the gradient of the margin.

    Args:
        model, n_constants: see `derived`.

    Raises:
        ValueError: see `derived`.
    """
    given = Expression("text", "drive[1]")
    run = _run(
        model, n_constants, Expression("with gradient", "drive[0]"), lambda _: (given, ONE - given)
    )
    own = {
        "step": _compiled(model, _step_source(run), "step"),
        "reverse_step": _compiled(model, _reverse_source(run), "reverse_step"),
    }
    return replace(model, name=f"{model.name}, spikes given", **own)


def _compiled(model: NeuronModel, source: str, name: str) -> FunctionType:
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    place = f"<{name} derived from {model.step.__module__}.{model.step.__qualname__}, {digest}>"
    linecache.cache[place] = (len(source), None, source.splitlines(True), place)  # for Triton
    names = {"where": where, "maximum": maximum, "__name__": model.step.__module__}
    exec(compile(source, place, "exec"), names)
    return names[name]


class Expression:
    """Value in a step: an operation and what it is applied to."""

    __array_ufunc__ = None  # NumPy must not take it for an element

    def __init__(self, operation: str, *arguments: Any):
        self.operation, self.arguments = operation, arguments
        self.has_grad = operation in ("with gradient", "spike", "not_spiked")
        if operation in {"+", "-", "*", "/", "negative", "abs", "maximum"}:
            self.has_grad = any(x.has_grad for x in arguments)
        elif operation == "where":
            self.has_grad = any(x.has_grad for x in arguments[1:])

    def __bool__(self) -> bool:
        raise TypeError("`if`, `and`, `or` or `not` (write where, & or |)")

    def __neg__(self) -> "Expression":
        return Expression("negative", self)

    def __abs__(self) -> "Expression":
        return Expression("abs", self)

    __hash__ = object.__hash__


def _operator(sign: str, is_swapped: bool = False) -> Any:
    def operate(x: Any, y: Any) -> Expression:
        pair = (y, x) if is_swapped else (x, y)
        return Expression(sign, *map(_expression, pair))

    return operate


for _name, _sign in _OPERATORS.items():
    setattr(Expression, f"__{_name}__", _operator(_sign))
    if _sign in "+-*/&|":  # comparisons are swapped by Python
        setattr(Expression, f"__r{_name}__", _operator(_sign, is_swapped=True))


def _expression(x: Any) -> Expression:
    if isinstance(x, Expression):
        return x
    if isinstance(x, int | float) and math.isfinite(x):
        return Expression("text", repr(int(x) if isinstance(x, int) else float(x)))
    raise TypeError(f"{x!r} among the numbers")


def _where(condition: Any, x: Any, y: Any) -> Expression:
    return Expression("where", *map(_expression, (condition, x, y)))


def _maximum(x: Any, least: Any) -> Expression:
    return Expression("maximum", _expression(x), _expression(least))


def _on_expressions(function: FunctionType) -> FunctionType:
    return {where: _where, maximum: _maximum}.get(function) or translated(function, _on_expressions)


def _texts(*names: str) -> tuple[Any, ...]:
    return tuple(Expression("text", name) for name in names)


ZERO, ONE = _texts("constants[0]", "constants[1]")


def _inputs(name: str, count: int, kind: str = "with gradient") -> tuple[Expression, ...]:
    return tuple(Expression(kind, f"{name}[{i}]") for i in range(count))


class _Run(NamedTuple):
    """A step on expressions: what it was given, its margin and the states after it."""

    drive: Expression
    parameters: tuple[Expression, ...]
    states: tuple[Expression, ...]
    spike: Expression
    margin: Expression
    after: list[Expression]


def _fired(margin: Expression) -> tuple[Expression, Expression]:
    return Expression("spike", margin), Expression("not_spiked", margin)


def _run(
    model: NeuronModel, n_constants: int, drive: Expression, spikes_of: Callable[[Expression], Any]
) -> _Run:
    """Run the step with the spike, and 1 − spike, that `spikes_of` returns for its margin."""
    parameters = _inputs("parameters", len(model.parameters))
    states = _inputs("state", len(model.states))
    counters = _inputs("state", len(model.states) + len(model.counters), "text")
    constants = (ZERO, ONE, *_inputs("constants", n_constants, "text")[2:])
    fired: list[tuple[Expression, Any]] = []

    def fire(margin: Any) -> Any:
        fired.append((_expression(margin), spikes_of(_expression(margin))))
        return fired[0][1]

    run = translated(model.step, _on_expressions)
    try:
        spike, margin, after = run(
            drive, parameters, constants, (*states, *counters[len(states) :]), fire
        )
        if len(fired) != 1 or len(after) != len(counters):
            raise TypeError(f"fire called {len(fired)} times, and {len(after)} states returned")
        own, (own_spike, _) = fired[0]
        if not (_is_same(_expression(spike), own_spike) and _is_same(margin, own)):
            raise TypeError("other values than the spike of `fire` and the margin given to it")
        found = _Run(drive, parameters, states, own_spike, own, [_expression(x) for x in after])
        _differentiate(found)
        return found
    except (TypeError, AttributeError, ValueError, IndexError) as error:
        raise ValueError(
            f"{model.step.__qualname__}: expected a step of + - * /, comparisons, & |, abs, where "
            f"and maximum, from which its derivative can be derived, got {error}; write "
            "reverse_step, or use method='standard'"
        ) from None


def _is_same(x: Any, y: Any) -> bool:
    """Whether two expressions do the same to the same inputs."""
    if x is y or not (isinstance(x, Expression) and isinstance(y, Expression)):
        return x is y or (isinstance(x, str) and x == y)
    alike = x.operation == y.operation and len(x.arguments) == len(y.arguments)
    return alike and all(map(_is_same, x.arguments, y.arguments))


def _differentiate(run: _Run) -> dict[Expression, Any]:
    """Gradient of each expression that the margin and the states after the step are made of."""
    grads: dict[Expression, Any] = {}
    margin, after = run.margin, run.after[: len(run.states)]

    def add(x: Expression, grad: Any) -> None:
        if x.has_grad:
            grads[x] = grads[x] + grad if x in grads else grad

    for x, grad in zip(after, _inputs("grad_state", len(after), "text"), strict=True):
        add(x, grad)
    of_spike, slope, reset_has_grad = _texts("grad_spike", "slope", "reset_has_grad")
    spikes = [x for x in _in_order(after) if x.operation in ("spike", "not_spiked")]
    order = _in_order([*after, margin])
    before = set(_in_order([margin]))
    for x in reversed([x for x in order if x not in before]):
        if x in grads:
            _propagate(x, grads[x], add)
    for x in spikes:
        if x in grads:
            is_spike = x.operation == "spike"
            of_spike = of_spike + grads[x] if is_spike else of_spike - reset_has_grad * grads[x]
    add(margin, slope * of_spike)
    for x in reversed(_in_order([margin])):
        if x in grads:
            _propagate(x, grads[x], add)
    return grads


def _propagate(node: Expression, grad: Any, add: Any) -> None:
    """Add to the gradients of a node's arguments what comes from the node's own."""
    match node.operation, node.arguments:
        case "+", (x, y):
            add(x, grad)
            add(y, grad)
        case "-", (x, y):
            add(x, grad)
            add(y, -grad)
        case "*", (x, y):
            add(x, grad * y)
            add(y, grad * x)
        case "/", (x, y):
            add(x, grad / y)
            add(y, -(grad * node) / y)
        case "negative", (x,):
            add(x, -grad)
        case "abs", (x,):
            add(x, _where(x > ZERO, grad, _where(x < ZERO, -grad, ZERO)))
        case "maximum", (x, least):
            add(x, _where(x >= least, grad, ZERO))
            add(least, _where(x >= least, ZERO, grad))
        case "where", (condition, x, y):
            add(x, _where(condition, grad, ZERO))
            add(y, _where(condition, ZERO, grad))


def _in_order(ends: Iterable[Expression], known: Iterable[Expression] = ()) -> list[Expression]:
    """All that the expressions consist of, arguments first; parts of `known` ones are left out."""
    order: dict[Expression, None] = dict.fromkeys(known)
    stack = [(x, False) for x in ends]
    while stack:
        x, is_done = stack.pop()
        if x in order:
            continue
        if is_done:
            order[x] = None
            continue
        stack.append((x, True))
        stack += [(y, False) for y in x.arguments if isinstance(y, Expression)]
    return list(order)


def _step_source(run: _Run) -> str:
    """Text of `step`."""
    lines, (spike, margin, after) = _written([[run.spike], [run.margin], run.after], {})
    header = "def step(drive, parameters, constants, state, fire):\n"
    return f"{header}{lines}    return {spike}, {margin}, ({after},)\n"


def _reverse_source(run: _Run) -> str:
    """Text of `reverse_step`: the gradients of drive, parameters and states."""
    grads = _differentiate(run)
    groups = [[grads.get(x, ZERO) for x in of] for of in ([run.drive], run.parameters, run.states)]
    lines, (to_drive, *others) = _written(groups, {run.margin: "margin"})
    returned = ", ".join([to_drive, *(f"({group},)" for group in others)])
    return f"def reverse_step({_ARGUMENTS}):\n{lines}    return {returned}\n"


def _written(groups: list[list[Expression]], names: dict[Expression, str]) -> tuple[str, list[str]]:
    """Lines that compute all expressions, and each group as text; some have `names` already."""
    known: dict[str, str] = {}  # text → name: equal expressions are computed once
    lines: list[str] = []
    for x in _in_order([y for group in groups for y in group], names):
        if x in names:
            continue
        text = _text(x, names)
        if x.operation in ("text", "with gradient"):
            names[x] = text
            continue
        if text not in known:
            known[text] = f"x{len(known)}"
            lines.append(f"    {known[text]} = {text}\n")
        names[x] = known[text]
    return "".join(lines), [", ".join(names[x] for x in group) for group in groups]


def _text(x: Expression, names: dict[Expression, str]) -> str:
    if x.operation in ("text", "with gradient"):
        return x.arguments[0]
    own = [names[y] for y in x.arguments]
    if x.operation in _OPERATORS.values():
        return f"{own[0]} {x.operation} {own[1]}"
    if x.operation == "negative":
        return f"-{own[0]}"
    if x.operation == "spike":
        return f"where({own[0]} > constants[0], constants[1], constants[0])"
    if x.operation == "not_spiked":
        return f"where({own[0]} > constants[0], constants[0], constants[1])"
    return f"{x.operation}({', '.join(own)})"
