"""What can be changed in a source: one operator, constant or statement at a time.

The sources are formatted by clang-format, so an operator with white space on both sides is binary:
those of pointers, references and templates have it on one side at most.

Left out is what only decides how fast a kernel is: launch bounds, and what a comment `// tuning`
marks, behind a line or on its own before it: the statement or declaration that begins there, as a
whole; where none does, the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

_TOKEN = re.compile(
    r"""
      (?P<comment>//[^\n]*|/\*.*?\*/)
    | (?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    | (?P<preprocessor>^[ \t]*\#(?:[^\n]*\\\n)*[^\n]*)
    | (?P<number>\.?\d(?:[eEpP][+-]|[\w.])*)
    | (?P<word>[A-Za-z_]\w*)
    | (?P<operator><<=|>>=|<<|>>|<=|>=|==|!=|&&|\|\||\+\+|--|->|::|[-+*/%&|^]=|\S)
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
_BINARY = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "&&": "||",
    "||": "&&",
    "+": "-",
    "-": "+",
    "*": "/",
    "/": "*",
    "%": "/",
    "<<": ">>",
    ">>": "<<",
    "&": "|",
    "|": "&",
    "^": "&",
    "+=": "-=",
    "-=": "+=",
    "*=": "/=",
    "/=": "*=",
    "%=": "/=",
    "<<=": ">>=",
    ">>=": "<<=",
    "&=": "|=",
    "|=": "&=",
    "^=": "&=",
}
_WORDS = {
    "min": "max",
    "max": "min",
    "atomic_min": "atomic_max",
    "atomic_max": "atomic_min",
    "true": "false",
    "false": "true",
}
# Statements that may be missing.
_STATEMENTS = ("barrier", "warp_sync", "continue", "break", "return")
# What stands in their parentheses means nothing to a host, or is checked by the compiler.
_SKIPPED_CALLS = ("__launch_bounds__", "static_assert", "alignas")
_INTEGER = re.compile(r"(0x[\da-fA-F]+|\d+)([uUlL]*)")
_OPEN, _CLOSE = "([{", ")]}"


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True)
class Mutant:
    """One change of one source.

    Attributes:
        file: relative to csrc.
        line: its number, from one.
        start: of what is replaced, in characters from the beginning of the file.
        before: what is replaced.
        after: what by.
        source: the line, stripped.
        mutated: the line after the change, stripped.
    """

    file: str
    line: int
    start: int
    before: str
    after: str
    source: str
    mutated: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.after + text[self.start + len(self.before) :]


def tokens_of(text: str) -> list[Token]:
    return [
        Token(match.lastgroup or "", match[0], match.start()) for match in _TOKEN.finditer(text)
    ]


class Source:
    """A file of csrc and its mutants."""

    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        everything = tokens_of(text)
        self._comments = [token for token in everything if token.kind == "comment"]
        self._tokens = [t for t in everything if t.kind in ("number", "word", "operator")]
        # Of a preprocessor's line or a string nothing changes, but what stands beside it must know
        # that something is there.
        self._matching = _matching(self._tokens)

    def mutants(self) -> list[Mutant]:
        """In the order of the text, but for what only decides how fast a kernel is."""
        left_out = self._left_out
        return [
            self._mutant(start, before, after)
            for start, before, after in self._changes()
            if not any(span.start <= start < span.stop for span in left_out)
        ]

    @cached_property
    def _left_out(self) -> list[range]:
        spans = []
        for comment in self._comments:
            if comment.text.strip() == "// tuning":
                spans.append(self._marked(self.text.rfind("\n", 0, comment.start) + 1))
        for i, token in enumerate(self._tokens[:-1]):
            if token.text in _SKIPPED_CALLS and self._tokens[i + 1].text == "(":
                spans.append(range(token.start, self._tokens[self._matching[i + 1]].end))
        return spans

    def _marked(self, start: int) -> range:
        """From a line's start to the end of the statement that it begins, or else of the line."""
        i = next(i for i, token in enumerate(self._tokens) if token.start >= start)
        first = self._tokens[i]
        behind = self._tokens[i - 1].text if i else ";"
        if first.kind == "operator" or behind not in (";", "{", "}", ")", ":", ">"):
            return range(start, self.text.find("\n", first.start))
        while i < len(self._tokens):
            token = self._tokens[i]
            if token.text == ";" or token.text in _CLOSE:
                return range(start, token.end)
            if token.text in _OPEN:
                i = self._matching[i]
                if token.text == "{" and not self._goes_on(i):
                    return range(start, self._tokens[i].end)
            i += 1
        return range(start, len(self.text))

    def _goes_on(self, closing: int) -> bool:
        """Whether a statement goes on behind its closing brace."""
        following = self._tokens[closing + 1 : closing + 2]
        return bool(following) and following[0].text in (";", ",", ")", ".", "(")

    def _changes(self) -> Iterator[tuple[int, str, str]]:
        """Where, what and what by."""
        tokens = self._tokens
        for i, token in enumerate(tokens):
            before = tokens[i - 1].text if i else ""
            after = tokens[i + 1].text if i + 1 < len(tokens) else ""
            if token.kind == "operator":
                if token.text in _BINARY and self._is_apart(token) and before != "operator":
                    yield token.start, token.text, _BINARY[token.text]
                    if token.text in "+-" and after == "1":
                        yield token.start, self.text[token.start : tokens[i + 1].end], ""
                elif token.text in ("-", "!") and self._is_unary(i):
                    yield token.start, token.text, ""
                elif token.text in ("++", "--") and after != ")":  # not a loop's
                    yield token.start, token.text, "--" if token.text == "++" else "++"
            elif token.kind == "word":
                if token.text in _WORDS and after != "=":
                    yield token.start, token.text, _WORDS[token.text]
                if token.text in _STATEMENTS and before in ("", ";", "{", "}", ")", ":", "else"):
                    yield from self._missing_statement(i)
            elif token.text != "1" or before not in ("+", "-"):  # which may be missing as a whole
                yield token.start, token.text, _other_number(token.text)

    def _missing_statement(self, i: int) -> Iterator[tuple[int, str, str]]:
        """A call without arguments, or a keyword alone."""
        tokens, end = self._tokens, i + 1
        is_call = self._tokens[i].text in ("barrier", "warp_sync")
        if is_call and [token.text for token in tokens[end : end + 2]] != ["(", ")"]:
            return
        end += 2 if is_call else 0
        if end < len(tokens) and tokens[end].text == ";":
            start = tokens[i].start
            yield start, self.text[start : tokens[end].start], ""

    def _is_apart(self, token: Token) -> bool:
        """White space on both sides."""
        return self.text[token.start - 1].isspace() and self.text[token.end].isspace()

    def _is_unary(self, i: int) -> bool:
        """Right before an operand, behind nothing that could be one."""
        token = self._tokens[i]
        if self.text[token.end].isspace() or i == 0:
            return False
        before = self._tokens[i - 1]
        return before.text == "return" or (
            before.kind == "operator" and before.text not in (")", "]", "}")
        )

    def _mutant(self, start: int, before: str, after: str) -> Mutant:
        begin = self.text.rfind("\n", 0, start) + 1
        end = self.text.find("\n", start + len(before))
        line = self.text[begin:end]
        mutated = line[: start - begin] + after + line[start - begin + len(before) :]
        number = self.text.count("\n", 0, start) + 1
        return Mutant(
            self.file,
            number,
            start,
            before,
            after,
            " ".join(line.split()),
            " ".join(mutated.split()),
        )


def _matching(tokens: list[Token]) -> dict[int, int]:
    """The index of the closing bracket by that of the opening one."""
    matching, opened = {}, []
    for i, token in enumerate(tokens):
        if token.text in _OPEN:
            opened.append(i)
        elif token.text in _CLOSE:
            matching[opened.pop()] = i
    return matching


def _other_number(text: str) -> str:
    """0 and 1 become each other, any other integer its successor, any other number its double."""
    integer = _INTEGER.fullmatch(text)
    if not integer:
        return f"(2 * {text})" if text.strip("0.f") else text.replace("0", "1", 1)
    value = int(integer[1], 0 if integer[1].startswith("0x") else 10)
    if text.startswith("0x"):
        return f"{value + 1:#x}{integer[2]}"
    return f"{1 - value if value in (0, 1) else value + 1}{integer[2]}"
