"""Whether a written solution ends in the right mathematical answer.

Answers are hostile text, so nothing is handed to a parser that evaluates code. A small grammar reads LaTeX and plain
formulas and computes their value to `DIGITS` digits; two answers are the same expression when their values agree with
random numbers in place of the variables. Length, depth, exponents and arguments are bounded, so that no answer can take
long: the verdict needs no time-out and does not depend on how fast the machine is.
"""

import re
from collections.abc import Callable
from itertools import permutations
from typing import Any, NamedTuple

import mpmath

from prefloop.records import content_id

RIGHT, WRONG_BUT_BOXED, WRONG = 1.0, -0.5, -1.0
"""The rule score of RLHFlow's Online-DPO-R1."""
DIGITS = 400
TOLERANCE = mpmath.mpf(10) ** -350
MAX_LENGTH = 300
"""Characters; no final answer is longer."""
MAX_DEPTH = 30
MAX_PARTS = 6
"""Members of a list without order that are tried in every order."""
MAX_EXPONENT = 10_000
MAX_ARGUMENT = 1_000_000
MAX_FACTORIAL = 200
POINTS = ("first", "second")
"""Expressions with variables are compared at this many random points."""

Number = Any
"""A real or complex number of mpmath, which has no types."""

MARKED = re.compile(r"(?:####|^A:|\banswer(?: is|:)+)[ \t]*:?(.+)", re.IGNORECASE | re.MULTILINE)
LEADING_NUMBER = re.compile(r"[ \t]*(-?\$?[0-9][0-9,]*(?:\.[0-9]+)?)")
TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
INVISIBLE = re.compile(
    r"\\(?:left|right|displaystyle|quad|qquad|limits)(?![A-Za-z])|\\[!,;: ]|~|\\?\$|\\[()\[\]]"
)
SPACE_IN_NUMBER = re.compile(r"(?<=[0-9,])\\[!,;:](?=[0-9])")
DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?|°|\\degree(?![A-Za-z])")
THOUSANDS = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
NAMED = re.compile(r"[A-Za-z](?:\([A-Za-z]\))?\s*=\s*([^=]+)")
SPELLINGS = {
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\cdot": "*", "\\times": "*", "\\div": "/",
    "\\%": "%", "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "π": "\\pi ", "√": "\\sqrt ",
}  # fmt: skip

INTEGER_OR_DECIMAL = re.compile(r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+")
MIXED = re.compile(
    r"([0-9]+)(?:\s*\\frac\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))\s*(?:\{\s*([0-9]+)\s*\}|([0-9]))"
    r"|\s+([0-9]+)\s*/\s*([0-9]+))"
)
"""A whole number and a fraction, such as 1\\frac{1}{2} or 1 1/2."""
BARE_DIGIT = re.compile(r"[0-9](?=[0-9{\\])")
WORD = re.compile(r"\\?([A-Za-z]+)")
SUBSCRIPT = re.compile(r"_(?:([A-Za-z0-9])|\{([A-Za-z0-9]+)\})")
GREEK = frozenset({
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "mu",
    "nu", "xi", "rho", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "infty",
})  # fmt: skip
FUNCTIONS: dict[str, Callable[[Number], Number]] = {
    "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan, "cot": mpmath.cot, "sec": mpmath.sec, "csc": mpmath.csc,
    "arcsin": mpmath.asin, "arccos": mpmath.acos, "arctan": mpmath.atan, "asin": mpmath.asin, "acos": mpmath.acos,
    "atan": mpmath.atan, "ln": mpmath.log, "log": mpmath.log10, "abs": abs,
}  # fmt: skip


class UnreadableError(Exception):
    """The text is not a formula of the grammar, or has no finite value."""


class FinalAnswer(NamedTuple):
    """What a solution gives as its result."""

    text: str
    is_boxed: bool


def grade(completion: str, reference: str) -> float:
    """1 for the right answer, -0.5 for a wrong one in a box, -1 otherwise."""
    given, wanted = final_answer(completion), final_answer(reference)
    if same_answer(given.text, wanted.text):
        return RIGHT
    return WRONG_BUT_BOXED if given.is_boxed else WRONG


def final_answer(solution: str) -> FinalAnswer:
    r"""The last `\boxed{}`, else what follows the last `####`, `A:` or "answer is", else the whole text."""
    boxed = _last_boxed(solution)
    if boxed is not None:
        return FinalAnswer(boxed, is_boxed=True)
    marked = MARKED.findall(solution)
    return FinalAnswer(marked[-1] if marked else solution, is_boxed=False)


def same_answer(given: str, wanted: str) -> bool:
    """Whether two answers are equal as text, as numbers, as expressions, or part by part."""
    given, wanted = _tidy(given), _tidy(wanted)
    if not given or len(given) > MAX_LENGTH or len(wanted) > MAX_LENGTH:
        return False
    if _letters(given) == _letters(wanted):
        return True
    ours, theirs = _parts(given), _parts(wanted)
    if ours is not None or theirs is not None:
        return ours is not None and theirs is not None and _same_parts(ours, theirs)
    if _same_value(given, wanted):
        return True
    # "18 dollars a day": the words after a number are its unit
    leading = LEADING_NUMBER.match(given)
    words = given[leading.end() :] if leading else ""
    return (
        leading is not None
        and words[:1] == " "
        and words.replace(" ", "").isalpha()
        and (_same_value(_tidy(leading[1]), wanted))
    )


def _last_boxed(solution: str) -> str | None:
    start = max(solution.rfind("\\boxed"), solution.rfind("\\fbox"))
    opening = solution.find("{", start) if start >= 0 else -1
    if opening < 0:
        return None
    depth = 0
    for position in range(opening, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[position], 0)
        if depth == 0:
            return solution[opening + 1 : position]
    return None


def _tidy(text: str) -> str:
    """The text without what carries no value: dollar signs, spacing commands, units in text mode, degrees."""
    if len(text) > 2 * MAX_LENGTH:
        return text
    whole = TEXT_COMMAND.fullmatch(text.strip())
    text = whole[1] if whole else TEXT_COMMAND.sub(" ", text)
    text = text.replace("\\{", "{{").replace("\\}", "}}")
    text = DEGREES.sub("", INVISIBLE.sub(" ", SPACE_IN_NUMBER.sub("", text)))
    for spelling, ours in SPELLINGS.items():
        text = text.replace(spelling, ours)
    text = " ".join(text.split()).rstrip(". ")
    text = THOUSANDS.sub(lambda match: match[0].replace(",", ""), text) if text[:1] not in "([{" else text
    named = NAMED.fullmatch(text)
    return named[1].strip() if named else text


def _letters(text: str) -> str:
    return text.replace(" ", "").casefold()


# --- lists, points, intervals and sets -------------------------------------------------------------------------------


class Parts(NamedTuple):
    """The members of a list, and the brackets around it."""

    brackets: str
    members: tuple[str, ...]


def _parts(text: str) -> Parts | None:
    """The members of (a, b), [a, b), {a, b} or a, b; None for a single value."""
    brackets = ""
    if text.startswith("{{") and text.endswith("}}"):
        brackets, text = "{}", text[2:-2]
    elif text[:1] in "([" and text[-1:] in ")]" and _splits(text[1:-1]):
        brackets, text = text[0] + text[-1], text[1:-1]
    members = _splits(text)
    if not members:
        return None if brackets != "{}" else Parts(brackets, (text.strip(),))
    return Parts(brackets, members)


def _splits(text: str) -> tuple[str, ...]:
    """The text cut at the commas outside of brackets; nothing where there are none or brackets do not close."""
    depth, start, members = 0, 0, []
    for position, sign in enumerate(text):
        depth += 1 if sign in "([{" else -1 if sign in ")]}" else 0
        if depth < 0:
            return ()
        if sign == "," and depth == 0:
            members.append(text[start:position].strip())
            start = position + 1
    return (*members, text[start:].strip()) if members and depth == 0 else ()


def _same_parts(ours: Parts, theirs: Parts) -> bool:
    if ours.brackets != theirs.brackets or len(ours.members) != len(theirs.members):
        return False
    is_ordered = ours.brackets not in ("", "{}") or len(ours.members) > MAX_PARTS
    orders = [ours.members] if is_ordered else permutations(ours.members)
    same = {
        (one, other): _letters(one) == _letters(other) or _same_value(one, other)
        for one in ours.members
        for other in theirs.members
    }
    return any(all(same[pair] for pair in zip(order, theirs.members, strict=True)) for order in orders)


# --- values ----------------------------------------------------------------------------------------------------------


def _same_value(given: str, wanted: str) -> bool:
    """Whether two formulas have the same value at every point. 50% is 0.5, and also 50 where only one has the sign."""
    ours, theirs = given.removesuffix("%"), wanted.removesuffix("%")
    factors = (1,) if (ours == given) == (theirs == wanted) else (1, 100)
    try:
        with mpmath.workdps(DIGITS):
            values = [(_value(ours, point), _value(theirs, point)) for point in POINTS]
            if ours == given:
                values = [(theirs_value, ours_value) for ours_value, theirs_value in values]
            return any(all(_close(a, b * factor) for a, b in values) for factor in factors)
    except (UnreadableError, ArithmeticError, ValueError, TypeError):
        return False


def _close(a: Number, b: Number) -> bool:
    return abs(a - b) <= TOLERANCE * max(1, abs(a), abs(b))


def _value(text: str, point: str) -> Number:
    reader = _Reader(text, point)
    value = reader.sum()
    if reader.position != len(text) or not mpmath.isfinite(value):
        raise UnreadableError(text)
    return value


class _Reader:
    """Reads a formula from left to right and computes as it goes; `point` chooses the values of the variables."""

    def __init__(self, text: str, point: str) -> None:
        self.text = text
        self.point = point
        self.position = 0
        self.depth = 0

    def sum(self) -> Number:
        """`a + b - c`, with an optional sign in front."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError(self.text)
        value = self._product()
        while sign := self._take("+", "-"):
            value = value + self._product() if sign == "+" else value - self._product()
        self.depth -= 1
        return value

    def _product(self) -> Number:
        value = self._signed()
        while True:
            if self._take("**"):
                raise UnreadableError(self.text)
            if self._take("*"):
                value = value * self._signed()
            elif self._take("/"):
                value = value / self._signed()
            elif re.match(r"[A-Za-z\\({]", self._rest()):  # 2x, 3(a + b)
                value = value * self._power()
            else:
                return value

    def _signed(self) -> Number:
        negative = False
        while sign := self._take("+", "-"):
            negative ^= sign == "-"
        return -self._power() if negative else self._power()

    def _power(self) -> Number:
        value = self._atom()
        while self._take("!"):
            value = _factorial(value)
        if self._take("**", "^"):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise UnreadableError(self.text)
            value = _power(value, self._signed())
            self.depth -= 1
        return value

    def _atom(self) -> Number:
        for opening, closing in (("(", ")"), ("[", "]"), ("{", "}")):
            if self._take(opening):
                return self._until(closing)
        if self._take("|"):
            return abs(self._until("|"))
        if found := self._match(MIXED):
            whole, *fraction = [int(digits) for digits in found.groups() if digits]
            return whole + mpmath.mpf(fraction[0]) / fraction[1]
        if found := self._match(INTEGER_OR_DECIMAL):
            return mpmath.mpf(found[0])
        if found := self._match(WORD):
            return self._named(found[1], is_command=found[0][0] == "\\")
        raise UnreadableError(self.text)

    def _named(self, name: str, *, is_command: bool) -> Number:
        if name == "frac" and is_command:
            return self._argument() / self._argument()
        if name == "sqrt":
            degree = self._until("]") if self._take("[") else 2
            return _root(self._argument(), degree)
        if name == "exp":
            return _power(mpmath.e, self._argument())
        if name in FUNCTIONS:
            return self._function(name)
        if name == "pi":
            return +mpmath.pi
        if name not in GREEK if is_command else len(name) > 2:
            raise UnreadableError(self.text)  # a word, not a formula
        if is_command:
            return self._variable(name)
        self.position -= len(name) - 1  # xy is x times y: the y is read next
        return self._variable(name[0])

    def _variable(self, name: str) -> Number:
        if found := self._match(SUBSCRIPT):
            name = f"{name}_{found[1] or found[2]}"
        if name == "e":
            return +mpmath.e
        if name == "i":
            return mpmath.mpc(0, 1)
        # between 0.5 and 2.5, so that roots and logarithms of a variable are real
        return mpmath.mpf(int(content_id(name, self.point), 16)) / 2**63 + 0.5

    def _function(self, name: str) -> Number:
        base = self._argument() if name == "log" and self._take("_") else None
        exponent = self._argument() if self._take("^") else None
        argument = self._argument()
        if abs(argument) > MAX_ARGUMENT:
            raise UnreadableError(self.text)
        value = mpmath.log(argument) / mpmath.log(base) if base is not None else FUNCTIONS[name](argument)
        return value if exponent is None else _power(value, exponent)

    def _argument(self) -> Number:
        r"""What a command takes: a group, one digit (`\frac12`), or what stands next."""
        if found := self._match(BARE_DIGIT):
            return mpmath.mpf(found[0])
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError(self.text)
        value = self._atom()
        self.depth -= 1
        return value

    def _until(self, closing: str) -> Number:
        value = self.sum()
        if not self._take(closing):
            raise UnreadableError(self.text)
        return value

    def _rest(self) -> str:
        while self.text[self.position : self.position + 1] == " ":
            self.position += 1
        return self.text[self.position :]

    def _take(self, *signs: str) -> str:
        rest = self._rest()
        for sign in signs:
            if rest.startswith(sign):
                self.position += len(sign)
                return sign
        return ""

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._rest())
        if found:
            self.position += found.end()
        return found


def _power(base: Number, exponent: Number) -> Number:
    if abs(exponent) > MAX_EXPONENT:
        raise UnreadableError("exponent out of bounds")
    return mpmath.power(base, exponent)


def _root(value: Number, degree: Number) -> Number:
    if (
        mpmath.im(degree) != 0 or not 0 < degree <= MAX_EXPONENT
    ):  # before int(), which would write out every digit
        raise UnreadableError("degree of a root out of bounds")
    if int(degree) == degree and int(degree) % 2 == 1 and mpmath.im(value) == 0 and value < 0:
        return -mpmath.power(-value, mpmath.mpf(1) / degree)
    return mpmath.power(value, mpmath.mpf(1) / degree)


def _factorial(value: Number) -> Number:
    if mpmath.im(value) != 0 or not 0 <= value <= MAX_FACTORIAL or value != int(value):
        raise UnreadableError("factorial out of bounds")
    return mpmath.factorial(value)
