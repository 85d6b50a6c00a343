"""Arithmetic in running text: `12.5% of 840`, `2 的 10 次方`, `17 times 23`, as expressions.

Expressions come out in the notation calculators and Python share: `+ - * / % ** ( )`.
"""

import ast
import re
from typing import Final

from service.llm.language import normalise

_NUMBER: Final = r"\d+(?:\.\d+)?"

# Applied in order to normalised text; each rewrites one way of speaking into operators.
_REWRITES: Final = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"(?<=\d),(?=\d{3}(?!\d))", ""),
        (r"×|·|✕", " * "),
        (r"÷|∶", " / "),
        (r"−|–(?=\s*\d)", "-"),
        (r"(?<=[\d)])\s*\^\s*(?=[\d(+-])", " ** "),
        (r"(?<=\d)\s*[xX]\s*(?=\d)", " * "),
        (rf"百分之\s*({_NUMBER})", r"\1%"),
        (rf"({_NUMBER})\s*(?:%|percent)\s*of\s*({_NUMBER})", r"(\1 / 100 * \2)"),
        (rf"({_NUMBER})\s*的\s*({_NUMBER})\s*%", r"(\1 * \2 / 100)"),
        (rf"({_NUMBER})\s*%(?!\s*[\d(])", r"(\1 / 100)"),
        (rf"({_NUMBER})\s*percent\b", r"(\1 / 100)"),
        (rf"({_NUMBER})\s*的\s*({_NUMBER})\s*次(?:方|幂)", r"(\1 ** \2)"),
        (rf"({_NUMBER})\s*的平方根", r"(\1 ** 0.5)"),
        (rf"({_NUMBER})\s*的?平方", r"(\1 ** 2)"),
        (rf"({_NUMBER})\s*的?立方", r"(\1 ** 3)"),
        (rf"(?:the\s+)?square root of\s*({_NUMBER})", r"(\1 ** 0.5)"),
        (rf"\bsqrt\s*\(\s*({_NUMBER})\s*\)", r"(\1 ** 0.5)"),
        (rf"({_NUMBER})\s*squared\b", r"(\1 ** 2)"),
        (rf"({_NUMBER})\s*cubed\b", r"(\1 ** 3)"),
        (r"(?<=[\d)])\s*(?:raised\s+)?to the power(?: of)?\s*(?=[\d(+-])", " ** "),
        (r"(?<=[\d)])\s*(?:times|multiplied by|乘以|乘)\s*(?=[\d(+-])", " * "),
        (r"(?<=[\d)])\s*(?:divided by|over|除以)\s*(?=[\d(+-])", " / "),
        (r"(?<=[\d)])\s*(?:plus|加上|加)\s*(?=[\d(+-])", " + "),
        (r"(?<=[\d)])\s*(?:minus|减去|减)\s*(?=[\d(+-])", " - "),
        (r"(?<=[\d)])\s*(?:modulo|mod)\s*(?=[\d(+-])", " % "),
    )
)
# Dates, clock times, versions and identifiers hold digits and signs but ask for no sum.
_NOT_ARITHMETIC: Final = re.compile(
    r"\b\d{4}-\d{1,2}-\d{1,2}\b|\b\d{1,4}/\d{1,2}/\d{1,4}\b|\b\d+(?:\.\d+){2,}\b|\d{1,2}:\d{2}"
    r"|\b24/7\b|\[\d+\]|[A-Za-z_]+[-_]\d[\w.-]*|\b\d+(?:-\d+){2,}\b|\w*[A-Za-z_]\d[\w.-]*"
)
_RUN: Final = re.compile(r"[-+(\s]*\d[\d.()+\-*/%\s]*")
_OPERATOR_BETWEEN: Final = re.compile(r"[\d)]\s*(?:\*\*|[-+*/%])\s*[-+(]*\s*\d")
# `3-5`, `7/8`: a range or a ratio unless the text asks for a result.
_BARE_RANGE: Final = re.compile(r"\d+(?:\.\d+)?[-/]\d+(?:\.\d+)?")
_ASKS_FOR_RESULT: Final = re.compile(
    r"\b(?:calculate|compute|evaluate|what(?:'s| is| are)|how much|equals?|result|sum|work out)\b"
    r"|=|计算|算|等于|是多少|得多少|是几|结果",
    re.IGNORECASE,
)
_ALLOWED: Final = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.Constant,
    ast.operator,
    ast.unaryop,
)
_MAX_LENGTH: Final = 200


def expressions(text: str) -> list[str]:
    """Every arithmetic expression `text` holds, in order, each once.

    >>> expressions("What is 12.5% of 840?")
    ['12.5 / 100 * 840']
    """
    plain = _NOT_ARITHMETIC.sub(" , ", normalise(text))
    for pattern, replacement in _REWRITES:
        plain = pattern.sub(replacement, plain)
    asks = _ASKS_FOR_RESULT.search(text) is not None
    found: list[str] = []
    for run in _RUN.finditer(plain):
        expression = _tidy(run.group())
        if expression is None or (_BARE_RANGE.fullmatch(expression) and not asks):
            continue
        if expression not in found:
            found.append(expression)
    return found


def _tidy(run: str) -> str | None:
    """`run` without loose ends, if what is left is an expression with an operator in it."""
    expression = " ".join(run.split()).rstrip("+-*/%(. ").strip()
    if len(expression) > _MAX_LENGTH:
        return None
    while expression and not _parses(expression):
        if expression.count("(") > expression.count(")"):
            expression = expression.replace("(", "", 1).strip()
        elif expression.count(")") > expression.count("("):
            head, _, tail = expression.rpartition(")")
            expression = (head + tail).strip()
        else:
            return None
    if not _OPERATOR_BETWEEN.search(expression):
        return None
    return _without_outer_brackets(expression)


def _parses(expression: str) -> bool:
    try:
        tree = ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    return all(isinstance(node, _ALLOWED) for node in ast.walk(tree))


def _without_outer_brackets(expression: str) -> str:
    inner = expression[1:-1]
    if expression.startswith("(") and expression.endswith(")") and _parses(inner):
        return _without_outer_brackets(inner.strip())
    return expression
