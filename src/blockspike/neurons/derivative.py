"""Text of a model's step and its derivative, made from the step itself, for kernels to compile.

`derived` runs the step once on expressions instead of numbers, differentiates the expressions in
reverse, and writes both as Python functions of a few operations, which Numba, Triton, NumPy or
PyTorch then run. `given_spikes` does so for neurons whose spikes are known beforehand, and
`slope_text` for a surrogate.
"""

import hashlib
import linecache
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from blockspike.neurons.model import NeuronModel, exp, maximum, where

_OPERATORS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "and": "&", "or": "|",
    "gt": ">", "lt": "<", "ge": ">=", "le": "<=", "eq": "==", "ne": "!=",
}  # fmt: skip
_CONDITIONS = {"&", "|", ">", "<", ">=", "<=", "==", "!="}
_REVERSE = (
    "drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state"
)


@dataclass(frozen=True, eq=False)
class Derived:
    """A model's functions as text, for one number of constants.

    Attributes:
        model: the model.
        step: text of `step(drive, parameters, constants, state)` → spike, membrane, threshold,
            margin, states.
        reverse: text of `reverse_step`, with the arguments of `NeuronModel.reverse_step`.
        reverse_all: the same with gradients `grad_membrane` and `grad_threshold` as further
            arguments; empty for a model with its own `reverse_step`.
    """

    model: NeuronModel
    step: str
    reverse: str
    reverse_all: str

    @property
    def digest(self) -> str:
        """Hash of all that kernels depend on."""
        names = (self.model.parameters, self.model.states, self.model.counters)
        content = repr((names, self.model.accumulators, self.step, self.reverse, self.reverse_all))
        return hashlib.sha256(content.encode()).hexdigest()[:32]


@cache
def derived(model: NeuronModel, n_constants: int) -> Derived:
    """The functions of a model whose step gets `n_constants` constants, with 0 and 1.

    Raises:
        ValueError: the step does something that a `NeuronModel` may not; names it.
    """
    run = _run(model, n_constants, "drive", _fired)
    return Derived(model, _step_text(run), *_reverse_texts(run, model, n_constants))


@cache
def given_spikes(model: NeuronModel, n_constants: int) -> Derived:
    """The functions of neurons that are reset by given spikes and fire none of their own.

    The `drive` is then a pair, of the drive and of the spike, 1 or 0. In the reverse step,
    slope · grad_spike is the gradient of the margin.

    Args:
        model, n_constants: see `derived`.

    Raises:
        ValueError: see `derived`.
    """
    given = Expression("text", "drive[1]")
    run = _run(model, n_constants, "drive[0]", lambda _: (given, ONE - given))
    return Derived(model, _step_text(run), *_reverse_texts(run, model, n_constants))


@cache
def slope_text(formula: Callable[..., Any], n_constants: int) -> str:
    """Text of `slope(margin, constants)`, a surrogate's formula.

    Raises:
        ValueError: see `derived`.
    """
    with _naming(formula):
        constants = _inputs("constants", n_constants, "text")
        value = _expression(formula(Expression("input", "margin"), constants))
    lines, (slope,) = _written([[value]])
    return f"def slope(margin, constants):\n{lines}    return {slope}\n"


@cache
def compiled(text: str, **names: Any) -> Any:
    """The Python function of a text; `names` are its `where`, `maximum`, `exp` and `abs`."""
    place = f"<{text[4 : text.index('(')]} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[place] = (len(text), None, text.splitlines(True), place)  # Triton reads it
    space = {"__name__": __name__, **names}
    exec(compile(text, place, "exec"), space)
    return space[text[4 : text.index("(")]]


def on_tensors(step_text: str) -> Any:
    """The step of a text as a function of tensors."""
    return compiled(step_text, where=where, maximum=maximum, exp=exp)


class Expression:
    """Value in a step: an operation and what it is applied to."""

    __array_ufunc__ = None  # NumPy must not take it for an element

    def __init__(self, operation: str, *arguments: Any):
        self.operation, self.arguments = operation, arguments
        self.has_grad = operation in ("input", "spike", "not_spiked")
        if operation in {"+", "-", "*", "/", "negative", "abs", "maximum", "exp"}:
            self.has_grad = any(x.has_grad for x in arguments)
        elif operation == "where":
            self.has_grad = any(x.has_grad for x in arguments[1:])

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        """Functions of PyTorch that are called with an expression: the method of that name."""
        return getattr(cls, function.__name__)(*args, **(kwargs or {}))

    def __bool__(self) -> bool:
        raise TypeError("`if`, `and`, `or` or `not` (write torch.where, & or |)")

    def __neg__(self) -> "Expression":
        return Expression("negative", self)

    def __abs__(self) -> "Expression":
        return Expression("abs", self)

    abs = __abs__

    def __pow__(self, n: Any) -> "Expression":
        if n not in (2, 3):
            return NotImplemented  # PyTorch rounds other powers differently
        square = Expression("*", self, self)
        return square if n == 2 else Expression("*", square, self)

    def exp(self) -> "Expression":
        """Exponential."""
        return Expression("exp", self)

    @staticmethod
    def where(condition: Any, x: Any, y: Any) -> "Expression":
        """Select x where the condition holds, else y."""
        if not isinstance(x, Expression) and not isinstance(y, Expression):
            raise TypeError("torch.where of two numbers, which has PyTorch's default dtype")
        return Expression("where", *map(_expression, (condition, x, y)))

    @staticmethod
    def maximum(x: Any, y: Any) -> "Expression":
        """The larger of both."""
        return Expression("maximum", _expression(x), _expression(y))

    def clamp(self, min: Any = None, max: Any = None) -> "Expression":
        """The value within bounds."""
        x = self if min is None else Expression.maximum(self, min)
        return x if max is None else -Expression.maximum(-x, -_expression(max))

    __hash__ = object.__hash__


def _operator(sign: str, is_swapped: bool = False) -> Any:
    def operate(x: Any, y: Any) -> Expression:
        pair = map(_expression, (y, x) if is_swapped else (x, y))
        if sign in "+-*/":  # a condition counts as 1 or 0
            pair = (
                Expression.where(x, ONE, ZERO) if x.operation in _CONDITIONS else x for x in pair
            )
        return Expression(sign, *pair)

    return operate


for _name, _sign in _OPERATORS.items():
    setattr(Expression, f"__{_name}__", _operator(_sign))
    if _sign in "+-*/&|":  # Python itself swaps comparisons
        setattr(Expression, f"__r{_name}__", _operator(_sign, is_swapped=True))


def _expression(x: Any) -> Expression:
    if isinstance(x, Expression):
        return x
    if isinstance(x, int | float) and math.isfinite(x):
        return Expression("text", repr(int(x) if isinstance(x, int) else float(x)))
    raise TypeError(f"{x!r} among the numbers")


def _inputs(name: str, count: int, kind: str = "input") -> tuple[Expression, ...]:
    return tuple(Expression(kind, f"{name}[{i}]") for i in range(count))


def _texts(*names: str) -> tuple[Any, ...]:
    return tuple(Expression("text", name) for name in names)


ZERO, ONE = _texts("constants[0]", "constants[1]")


class _Run(NamedTuple):
    """A step on expressions: its inputs and results."""

    drive: Expression
    parameters: tuple[Expression, ...]
    states: tuple[Expression, ...]
    spike: Expression
    membrane: Expression
    threshold: Expression
    margin: Expression
    after: list[Expression]


def _fired(margin: Expression) -> tuple[Expression, Expression]:
    return Expression("spike", margin), Expression("not_spiked", margin)


def _run(
    model: NeuronModel, n_constants: int, drive_name: str, spikes_of: Callable[[Expression], Any]
) -> _Run:
    """Run the step with the spike, and 1 − spike, that `spikes_of` returns for its margin."""
    drive = Expression("input", drive_name)
    parameters = _inputs("parameters", len(model.parameters))
    states, n = _inputs("state", len(model.states)), len(model.all_states)
    counters = _inputs("state", n, "text")[len(states) :]
    constants = _inputs("constants", n_constants, "text")
    fired: list[list[Expression]] = []

    def fire(membrane: Any, threshold: Any) -> Any:
        membrane, threshold = _expression(membrane), _expression(threshold)
        margin = membrane - threshold
        spike, not_spiked = spikes_of(margin)
        fired.append([spike, membrane, threshold, margin])
        return spike, not_spiked

    with _naming(model.step):
        *level, after = model.step(drive, parameters, constants, (*states, *counters), fire)
        level, after = ([*map(_expression, x)] for x in (level, after))
        first = 1 if model.reverse_step else 0  # the spike may then be another one
        same = [_written([x[first:3]]) for x in (level, *fired)]
        if len(after) != n or len(same) != 2 or same[0] != same[1]:
            raise TypeError(
                f"{len(fired)} calls of fire and {len(after)} states after the step (1 and {n} "
                "are expected), or other values than the spike, membrane and threshold of `fire`"
            )
    _, membrane, threshold, margin = fired[0]
    return _Run(drive, parameters, states, level[0], membrane, threshold, margin, after)


@contextmanager
def _naming(function: Callable[..., Any]) -> Iterator[None]:
    """Name the function that does something which kernels cannot run."""
    try:
        yield
    except (TypeError, AttributeError, IndexError) as error:
        cause, *_ = str(error).splitlines()
        raise ValueError(
            f"{getattr(function, '__qualname__', function)}: expected a function of + - * /, "
            "** with 2 or 3, comparisons, & |, abs, torch.where, clamp and exp, which kernels can "
            f"run, got {cause}; method='standard' runs any"
        ) from None


def _differentiate(run: _Run, *of_level: Expression) -> list[list[Expression]]:
    """Gradients of the drive, of the parameters and of the states.

    `of_level` are gradients of membrane and threshold, or missing.
    """
    grads: dict[Expression, Any] = {}
    after = run.after[: len(run.states)]

    def add(x: Expression, grad: Any) -> None:
        if x.has_grad:
            grads[x] = grads[x] + grad if x in grads else grad

    for x, grad in zip(after, _inputs("grad_state", len(after), "text"), strict=True):
        add(x, grad)
    of_spike, slope, reset_has_grad = _texts("grad_spike", "slope", "reset_has_grad")
    spikes = [x for x in _in_order(after) if x.operation in ("spike", "not_spiked")]
    # First back to the spike, which collects what comes from all that depends on it …
    before = set(_in_order([run.margin]))
    for x in reversed([x for x in _in_order([*after, run.margin]) if x not in before]):
        if x in grads:
            _propagate(x, grads[x], add)
    for x in spikes:
        if x in grads:
            is_spike = x.operation == "spike"
            of_spike = of_spike + grads[x] if is_spike else of_spike - reset_has_grad * grads[x]
    # … then through the surrogate to the margin, and on to the inputs.
    add(run.margin, slope * of_spike)
    for x, grad in zip((run.membrane, run.threshold), of_level, strict=False):
        add(x, grad)
    for x in reversed(_in_order([run.margin])):
        if x in grads:
            _propagate(x, grads[x], add)
    return [[grads.get(x, ZERO) for x in of] for of in ([run.drive], run.parameters, run.states)]


def _propagate(node: Expression, grad: Any, add: Any) -> None:
    """Add to the gradients of a node's arguments what comes from the node."""
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
        case "exp", (x,):
            add(x, grad * node)
        case "abs", (x,):
            add(x, Expression.where(x > ZERO, grad, Expression.where(x < ZERO, -grad, ZERO)))
        case "maximum", (x, least):
            add(x, Expression.where(x >= least, grad, ZERO))
            add(least, Expression.where(x >= least, ZERO, grad))
        case "where", (condition, x, y):
            add(x, Expression.where(condition, grad, ZERO))
            add(y, Expression.where(condition, ZERO, grad))


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


def _step_text(run: _Run) -> str:
    groups = [[x] for x in (run.spike, run.membrane, run.threshold, run.margin)]
    lines, (*results, after) = _written([*groups, run.after])
    return (
        "def step(drive, parameters, constants, state):\n"
        f"{lines}    return {', '.join(results)}, ({after},)\n"
    )


def _reverse_texts(run: _Run, model: NeuronModel, n_constants: int) -> tuple[str, str]:
    """Texts of the reverse step, without and with gradients of membrane and threshold."""
    if model.reverse_step is None:
        of_level, named = _texts("grad_membrane", "grad_threshold"), {run.margin: "margin"}
        plain = _reverse_text(_differentiate(run), named)
        more = ", grad_membrane, grad_threshold"
        return plain, _reverse_text(_differentiate(run, *of_level), named, more)
    constants = _inputs("constants", n_constants, "text")
    state = _inputs("state", len(model.all_states), "text")
    carried = _inputs("grad_state", len(model.states) + len(model.accumulators), "text")
    given = _texts("margin", "slope", "grad_spike", "reset_has_grad")
    to_drive, *groups = model.reverse_step(
        run.drive, run.parameters, constants, state, *given, carried
    )
    return _reverse_text([[_expression(x) for x in of] for of in ([to_drive], *groups)]), ""


def _reverse_text(
    groups: list[list[Expression]], named: dict[Expression, str] | None = None, more: str = ""
) -> str:
    lines, (to_drive, *others) = _written(groups, named)
    returned = ", ".join([to_drive, *(f"({group},)" for group in others)])
    return f"def reverse_step({_REVERSE}{more}):\n{lines}    return {returned}\n"


def _written(
    groups: list[list[Expression]], named: dict[Expression, str] | None = None
) -> tuple[str, list[str]]:
    """Lines that compute all expressions, and each group as text; some are `named` already."""
    names = dict(named or {})
    known: dict[str, str] = {}  # text → name: equal expressions are computed once
    lines: list[str] = []
    for x in _in_order([y for group in groups for y in group], names):
        if x in names:
            continue
        names[x] = text = _text(x, names)
        if x.operation in ("text", "input"):
            continue
        if text not in known:
            known[text] = f"x{len(known)}"
            lines.append(f"    {known[text]} = {text}\n")
        names[x] = known[text]
    return "".join(lines), [", ".join(names[x] for x in group) for group in groups]


def _text(x: Expression, names: dict[Expression, str]) -> str:
    if x.operation in ("text", "input"):
        return x.arguments[0]
    own = [names[y] for y in x.arguments]
    if x.operation in _OPERATORS.values():
        return f"{own[0]} {x.operation} {own[1]}"
    if x.operation == "negative":
        return f"-{own[0]}"
    if x.operation == "spike":
        return f"where({own[0]} > constants[0], constants[1], constants[0])"
    if x.operation == "not_spiked":  # a choice and not 1 − spike: the reset waits for less
        return f"where({own[0]} > constants[0], constants[0], constants[1])"
    return f"{x.operation}({', '.join(own)})"
