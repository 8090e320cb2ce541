"""Whole numbers that are known, or stand for any: one formula is evaluated and proved.

A formula in `+`, `-`, `*`, `//`, `%` and comparisons takes Python's integers as well as terms of
the solver. Products and quotients of unknowns are where solvers lose their way, so here a product
is a number of its own, of which is known only how it grows with its first factor::

    a > a'  implies  a b >= a' b + b            (b >= 1)

`growth_is_true` proves that of the real product. Whatever follows from so little holds for it.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import z3

Number = Any
"""An `int` or a `Term`."""
Truth = Any
"""A `bool` or a formula of the solver."""


class Facts:
    """What is known about the products and quotients of the terms that were made with it."""

    def __init__(self) -> None:
        self._products: dict[tuple[str, str], tuple[Term, Term, Term]] = {}
        self._quotients: dict[tuple[str, str], tuple[Term, Term]] = {}
        self._known: list[z3.BoolRef] = []
        self._names = 0

    def unknown(self, name: str) -> Term:
        """A number of which nothing is known."""
        self._names += 1
        return Term(z3.Int(f"{name}.{self._names}"), self)

    def product(self, first: Term, second: Term) -> Term:
        """`first * second`."""
        key = _name(first), _name(second)
        if key not in self._products:
            self._products[key] = first, second, self.unknown("product")
        return self._products[key][2]

    def quotient(self, dividend: Term, divisor: Term) -> tuple[Term, Term]:
        """Quotient and rest; the divisor is at least 1."""
        key = _name(dividend), _name(divisor)
        if key not in self._quotients:
            quotient, rest = self.unknown("quotient"), self.unknown("rest")
            self._quotients[key] = quotient, rest
            whole = self.product(quotient, divisor)
            self._known += [dividend == whole + rest, rest >= 0, rest < divisor]
        return self._quotients[key]

    def all(self) -> list[z3.BoolRef]:
        """All that is known."""
        found = list(self._known)
        by_second: dict[str, list[tuple[Number, Number, Term]]] = {}
        for (_, key), (first, second, product) in self._products.items():
            few = [(times, times * second, second) for times in (0, 1, 2)]
            by_second.setdefault(key, few).append((first, product, second))
        for products in by_second.values():
            for (a, whole, b), (other, smaller, _) in combinations(products, 2):
                if isinstance(a, Term) or isinstance(other, Term):
                    found += [
                        z3.Implies(other > a, smaller >= whole + b),
                        z3.Implies(a > other, whole >= smaller + b),
                        z3.Implies(a == other, whole == smaller),
                    ]
        return found


class Term:
    """A whole number that may be any."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, value: z3.ArithRef, facts: Facts) -> None:
        self.value, self.facts = value, facts

    def __add__(self, other: Number) -> Term:
        return Term(self.value + _value(other), self.facts)

    __radd__ = __add__

    def __sub__(self, other: Number) -> Term:
        return Term(self.value - _value(other), self.facts)

    def __rsub__(self, other: Number) -> Term:
        return Term(_value(other) - self.value, self.facts)

    def __mul__(self, other: Number) -> Term:
        if isinstance(other, Term):
            return self.facts.product(self, other)
        return Term(self.value * other, self.facts)

    __rmul__ = __mul__

    def __floordiv__(self, other: Number) -> Term:
        if isinstance(other, Term):
            return self.facts.quotient(self, other)[0]
        return Term(self.value / other, self.facts)

    def __mod__(self, other: Number) -> Term:
        if isinstance(other, Term):
            return self.facts.quotient(self, other)[1]
        return Term(self.value % other, self.facts)

    def __lt__(self, other: Number) -> z3.BoolRef:
        return self.value < _value(other)

    def __le__(self, other: Number) -> z3.BoolRef:
        return self.value <= _value(other)

    def __gt__(self, other: Number) -> z3.BoolRef:
        return self.value > _value(other)

    def __ge__(self, other: Number) -> z3.BoolRef:
        return self.value >= _value(other)

    def __eq__(self, other: Number) -> z3.BoolRef:  # type: ignore[override]
        return self.value == _value(other)

    def __ne__(self, other: Number) -> z3.BoolRef:  # type: ignore[override]
        return self.value != _value(other)


def _name(term: Term) -> str:
    """The same for terms that are the same for a reason as simple as `s + 1 - 1 = s`."""
    return str(z3.simplify(term.value).sexpr())


def _value(number: Number) -> Any:
    return number.value if isinstance(number, Term) else number


def where(condition: Truth, then: Number, otherwise: Number) -> Number:
    """`then` where the condition holds, else `otherwise`."""
    if isinstance(condition, bool):
        return then if condition else otherwise
    facts = next(n.facts for n in (then, otherwise, condition) if hasattr(n, "facts"))
    return Term(z3.If(condition, _value(then), _value(otherwise)), facts)


def all_of(*conditions: Truth) -> Truth:
    """Whether all hold."""
    if any(condition is False for condition in conditions):
        return False
    unknown = [condition for condition in conditions if condition is not True]
    return z3.And(unknown) if unknown else True


def any_of(*conditions: Truth) -> Truth:
    """Whether one holds."""
    if any(condition is True for condition in conditions):
        return True
    unknown = [condition for condition in conditions if condition is not False]
    return z3.Or(unknown) if unknown else False


def negated(condition: Truth) -> Truth:
    """Whether it does not hold."""
    return not condition if isinstance(condition, bool) else z3.Not(condition)


def growth_is_true() -> bool:
    """Whether real products grow as products do here."""
    a, smaller, b = z3.Ints("a smaller b")
    solver = z3.Solver()
    solver.set("timeout", 20_000)
    solver.add(b >= 1, a > smaller, a * b < smaller * b + b)
    return bool(solver.check() == z3.unsat)
