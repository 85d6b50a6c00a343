"""Arithmetic without eval: the syntax tree is walked, and every size has a bound.

A model, and through it a stranger, writes the expression. Bounds hold before an operation
runs, so `9**9**9` costs nothing: the bits of a power are estimated from its operands.
"""

import ast
import math
import operator
import unicodedata
from collections.abc import Callable
from typing import Final

from service.errors import ToolError

Number = int | float

MAX_LENGTH: Final = 200
MAX_DEPTH: Final = 40
MAX_BITS: Final = 4_096
"""Largest integer, about 1,233 decimal digits."""
_MAX_FACTORIAL: Final = 500  # 500! has 3,768 bits
_MAX_ARGUMENTS: Final = 20

_AS_WRITTEN: Final = str.maketrans({"×": "*", "÷": "/", "−": "-", "^": "**"})

_BINARY: Final[dict[type[ast.operator], Callable[[Number, Number], Number]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_UNARY: Final[dict[type[ast.unaryop], Callable[[Number], Number]]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}
_CONSTANTS: Final[dict[str, float]] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: Final[dict[str, tuple[Callable[..., Number], int, int]]] = {
    # name: function, fewest and most arguments
    "abs": (abs, 1, 1),
    "round": (round, 1, 2),
    "min": (min, 1, _MAX_ARGUMENTS),
    "max": (max, 1, _MAX_ARGUMENTS),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "sqrt": (math.sqrt, 1, 1),
    "exp": (math.exp, 1, 1),
    "log": (math.log, 1, 2),
    "log2": (math.log2, 1, 1),
    "log10": (math.log10, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
}


def calculate(expression: str) -> Number:
    """The value of an arithmetic expression; ToolError says what is wrong with it.

    Knows + - * / // % ** (also written ^, × and ÷), parentheses, pi, e, tau and the
    functions of a pocket calculator.
    """
    if len(expression) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    if any(unicodedata.decomposition(character).startswith("<super>") for character in expression):
        # normalising would turn 2² into 22
        raise ToolError("write powers as 2**3, not with raised digits")
    text = unicodedata.normalize("NFKC", expression).translate(_AS_WRITTEN)
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as exc:
        raise ToolError(f"{expression!r} is not an arithmetic expression") from exc
    try:
        return _evaluate(tree.body, MAX_DEPTH)
    except ZeroDivisionError as exc:
        raise ToolError("division by zero") from exc
    except (ValueError, OverflowError, TypeError) as exc:
        raise ToolError(f"the expression has no value: {exc}") from exc


def format_number(value: Number) -> str:
    """Integers in full, other numbers to 12 significant digits."""
    return str(value) if isinstance(value, int) else f"{value:.12g}"


def _evaluate(node: ast.expr, depth: int) -> Number:
    if depth == 0:
        raise ToolError(f"the expression is nested deeper than {MAX_DEPTH}")
    match node:
        # bool is an int to Python, but True + 1 is not arithmetic
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return _bounded(value)
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _UNARY:
            return _UNARY[type(op)](_evaluate(operand, depth - 1))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _power(_evaluate(left, depth - 1), _evaluate(right, depth - 1))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _bounded(
                _BINARY[type(op)](_evaluate(left, depth - 1), _evaluate(right, depth - 1))
            )
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return _call(name, [_evaluate(argument, depth - 1) for argument in arguments])
        case _:
            raise ToolError(f"{type(node).__name__} is not arithmetic")


def _call(name: str, arguments: list[Number]) -> Number:
    if name == "factorial":
        return _factorial(arguments)
    if name not in _FUNCTIONS:
        known = ", ".join(sorted([*_FUNCTIONS, "factorial"]))
        raise ToolError(f"there is no function {name!r}; known are {known}")
    function, fewest, most = _FUNCTIONS[name]
    if not fewest <= len(arguments) <= most:
        raise ToolError(f"{name} does not take {len(arguments)} arguments")
    if name == "round" and len(arguments) == most and not _is_digit_count(arguments[1]):
        raise ToolError(f"round takes at most {MAX_LENGTH} digits")
    return _bounded(function(*arguments))


def _is_digit_count(value: Number) -> bool:
    # round(1, -10**9) would first build 10**(10**9)
    return isinstance(value, int) and abs(value) <= MAX_LENGTH


def _factorial(arguments: list[Number]) -> int:
    match arguments:
        case [int(number)] if 0 <= number <= _MAX_FACTORIAL:
            return math.factorial(number)
        case _:
            raise ToolError(f"factorial takes one integer from 0 to {_MAX_FACTORIAL}")


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(base, int) and isinstance(exponent, int) and exponent >= 0:
        # |base| < 2**bits, so the result has at most bits * exponent bits
        if abs(base) > 1 and base.bit_length() * exponent > MAX_BITS:
            raise ToolError(f"the power is larger than 2**{MAX_BITS}")
        return _bounded(base**exponent)
    result = float(base) ** exponent
    if isinstance(result, complex):
        raise ToolError("a root of a negative number is not a real number")
    return _bounded(result)


def _bounded(value: Number) -> Number:
    if isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise ToolError(f"a number is larger than 2**{MAX_BITS}")
    elif not math.isfinite(value):
        raise ToolError("the result is not a finite number")
    return value
