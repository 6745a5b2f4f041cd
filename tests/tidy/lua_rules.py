"""Checker of the Redis scripts: a small reader of Lua that follows names through their scopes.

What it enforces is what Redis Cluster and replay need: every key is declared, every name is local, nothing
whose order is undefined decides anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

#: Operations without a key.
KEYLESS = {"TIME"}
#: Sets have no defined order, scans look at undeclared keys, the rest changes the server or the script.
FORBIDDEN = {
    *("SADD", "SREM", "SMEMBERS", "SPOP", "SRANDMEMBER", "SSCAN", "SUNION", "SINTER", "SDIFF", "SMOVE"),
    *("KEYS", "SCAN", "RANDOMKEY", "EVAL", "EVALSHA", "FUNCTION", "FCALL", "SELECT", "CONFIG"),
    *("FLUSHDB", "FLUSHALL"),
}
GLOBALS = {
    *("redis", "cjson", "KEYS", "ARGV", "math", "string", "table"),
    *("tonumber", "tostring", "type", "ipairs", "pairs", "unpack", "error"),
}
KEYWORDS = {
    *("and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil"),
    *("not", "or", "repeat", "return", "then", "true", "until", "while"),
}
TOKEN = re.compile(
    r"""(?P<skip>\s+|--\[\[.*?\]\]|--[^\n]*)
    |(?P<string>\[\[.*?\]\]|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')
    |(?P<number>0[xX][0-9a-fA-F]+|\d+\.?\d*(?:[eE][+-]?\d+)?)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<mark>\.\.\.|\.\.|==|~=|<=|>=|[-+*/%^\#<>=(){}\[\];:,.])
    |(?P<other>.)""",
    re.DOTALL | re.VERBOSE,
)
OPENING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True, slots=True)
class Token:
    """One word of the script: its kind (a group of TOKEN), its text and its line."""

    kind: str
    text: str
    line: int


def tokens_of(text: str) -> list[Token]:
    """Split a script; comments and white space are dropped."""
    found, line = [], 1
    for match in TOKEN.finditer(text):
        kind = match.lastgroup or "other"
        if kind != "skip":
            found.append(Token(kind, match.group(), line))
        line += match.group().count("\n")
    return found


def arguments(tokens: list[Token], opening: int) -> list[list[Token]]:
    """Split the arguments of a call whose parenthesis opens at that index."""
    depth, found = 0, [[]]  # type: tuple[int, list[list[Token]]]
    for token in tokens[opening:]:
        if token.text in OPENING and token.kind == "mark":
            depth += 1
            if depth == 1:
                continue
        elif token.text in OPENING.values() and token.kind == "mark":
            depth -= 1
            if depth == 0:
                break
        if depth == 1 and token.text == ",":
            found.append([])
        else:
            found[-1].append(token)
    return found


def key_length(expression: list[Token]) -> int:
    """How many tokens ``KEYS[…]`` takes at the beginning of an expression, 0 if it does not begin so."""
    if [token.text for token in expression[:2]] != ["KEYS", "["]:
        return 0
    depth = 0
    for index, token in enumerate(expression):
        depth += (token.text == "[") - (token.text == "]")
        if index and depth == 0:
            return index + 1
    return 0


@dataclass(slots=True)
class Reader:
    """One pass over a script. ``scopes`` maps the visible names to whether they hold a declared key."""

    path: str
    tokens: list[Token]
    scopes: list[dict[str, bool]] = field(default_factory=lambda: [{}])
    #: For each function, which of its arguments are keys.
    functions: dict[str, list[int]] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)
    blocks: list[str] = field(default_factory=list)
    brackets: list[str] = field(default_factory=list)
    header: dict[str, bool] = field(default_factory=dict)

    def text(self, index: int) -> str:
        return self.tokens[index].text if 0 <= index < len(self.tokens) else ""

    def report(self, index: int, text: str) -> None:
        self.found.append(f"{self.path}:{self.tokens[index].line}: {text}")

    def visible(self, name: str) -> bool:
        return any(name in scope for scope in self.scopes)

    def is_key(self, expression: list[Token]) -> bool:
        """Whether an expression is ``KEYS[…]``, or a name ending in ``_key`` that was assigned from it."""
        words = [token.text for token in expression]
        if len(words) == 1:
            return next((scope[words[0]] for scope in reversed(self.scopes) if words[0] in scope), False)
        return key_length(expression) == len(words)

    def open(self, kind: str, names: dict[str, bool]) -> None:
        self.blocks.append(kind)
        self.scopes.append(names)

    def close(self) -> None:
        if self.blocks and self.blocks.pop() == "function":
            self.brackets.pop()
        if len(self.scopes) > 1:
            self.scopes.pop()

    def names(self, index: int) -> tuple[list[str], int]:
        """A list of names from that index, and the index after it."""
        found = []
        while self.tokens[index].kind == "name":
            found.append(self.text(index))
            index += 1
            if self.text(index) != ",":
                break
            index += 1
        return found, index

    def read(self) -> Reader:
        index = 0
        while index < len(self.tokens):
            token = self.tokens[index]
            if token.kind == "name" and token.text in KEYWORDS:
                index = self.keyword(index)
                continue
            if token.kind == "name":
                self.name(index)
            elif token.kind == "mark":
                self.mark(index)
            elif token.kind == "other":
                self.report(index, f"unreadable {token.text!r}")
            index += 1
        if self.blocks:
            self.found.append(f"{self.path}:1: {len(self.blocks)} blocks are not closed")
        return self

    def keyword(self, index: int) -> int:
        """Follow the blocks; returns the index to go on from."""
        word = self.text(index)
        if word == "local":
            return self.local(index)
        if word == "function":
            return self.function(index)
        if word == "for":
            names, index = self.names(index + 1)
            self.header = dict.fromkeys(names, False)
            return index + 1
        if word in {"end", "until", "elseif", "else"}:
            self.close()
        if word in {"do", "then", "else", "repeat"}:
            self.open("block", self.header)
            self.header = {}
        return index + 1

    def local(self, index: int) -> int:
        if self.text(index + 1) == "function":
            self.scopes[-1][self.text(index + 2)] = False
            return self.function(index + 1)
        names, after = self.names(index + 1)
        values: list[list[Token]] = []
        if self.text(after) == "=":
            # As if the values were arguments: read up to the end of as many expressions as there are names.
            rest = [Token("mark", "(", 0), *self.tokens[after + 1 :]]
            values = arguments(rest, 0)
            after += 1
        for position, name in enumerate(names):
            value = values[position] if position < len(values) else []
            length = key_length(value)
            # The last value runs into the next statement, which begins with a name; an operator would go on.
            ends = length == len(value) or (
                value[length].kind == "name" and value[length].text not in {"and", "or"}
            )
            declared = name.endswith("_key") and length > 0 and ends
            self.scopes[-1][name] = declared
        return after

    def function(self, index: int) -> int:
        """Declare a function and its parameters; each caller must give a key to one named ``…_key``."""
        name = ""
        opening = index + 1
        if self.tokens[opening].kind == "name":
            name = self.text(opening)
            if self.text(index - 1) != "local":
                self.report(index, f"function {name} is global")
            opening += 1
        names, closing = self.names(opening + 1) if self.text(opening + 1) != ")" else ([], opening + 1)
        self.functions[name] = [at for at, parameter in enumerate(names) if parameter.endswith("_key")]
        self.open("function", {parameter: parameter.endswith("_key") for parameter in names})
        self.brackets.append("function")
        return closing + 1

    def name(self, index: int) -> None:
        name, before, after = self.text(index), self.text(index - 1), self.text(index + 1)
        in_table = bool(self.brackets) and self.brackets[-1] == "{"
        if before in {".", ":"} or (in_table and before in {"{", ",", ";"} and after == "="):
            return
        if not self.visible(name) and name not in GLOBALS:
            self.report(index, f"{name} is not declared")
        if name == "redis":
            self.operation(index)
        if name == "math" and self.text(index + 2) in {"random", "randomseed"}:
            self.report(index, "draws a random number")
        if after == "(":
            given = arguments(self.tokens, index + 1)
            for position in self.functions.get(name, []):
                if position >= len(given) or not self.is_key(given[position]):
                    self.report(index, f"argument {position + 1} of {name} is not a declared key")

    def operation(self, index: int) -> None:
        """``redis.call('COMMAND', key, …)`` and nothing else."""
        if [self.text(index + 1), self.text(index + 2), self.text(index + 3)] != [".", "call", "("]:
            self.report(index, "only redis.call( is used")
            return
        given = arguments(self.tokens, index + 3)
        if len(given[0]) != 1 or given[0][0].kind != "string":
            self.report(index, "the command is not written out")
            return
        command = given[0][0].text[1:-1].upper()
        if command in FORBIDDEN:
            self.report(index, f"{command} is not allowed")
        elif command not in KEYLESS and (len(given) < 2 or not self.is_key(given[1])):
            self.report(index, f"the key of {command} is not declared in KEYS")

    def mark(self, index: int) -> None:
        text = self.text(index)
        if text in OPENING:
            self.brackets.append(text)
        elif text in OPENING.values():
            if not self.brackets or OPENING.get(self.brackets.pop()) != text:
                self.report(index, f"{text} closes nothing")
        elif text == "=" and not (self.brackets and self.brackets[-1] == "{"):
            for target in self.targets(index):
                self.assigned(target)

    def assigned(self, index: int) -> None:
        name = self.text(index)
        if not self.visible(name):
            self.report(index, f"assigns to the global {name}")
        elif name.endswith("_key") and self.text(index + 1) in {"=", ","}:
            self.report(index, f"{name} is assigned again")

    def targets(self, index: int) -> list[int]:
        """Indexes of the base names on the left of an assignment: ``a`` and ``b`` of ``a.x, b[1] = …``."""
        found = []
        while True:
            index -= 1
            while self.text(index) in {"]", ")"} or self.text(index - 1) in {".", ":"}:
                index = self.matching(index) - 1 if self.text(index) in {"]", ")"} else index - 2
            found.append(index)
            if self.text(index - 1) != ",":
                return found
            index -= 1

    def matching(self, index: int) -> int:
        """The bracket that the one at that index closes."""
        depth = 0
        while index > 0:
            depth += (self.text(index) in {"]", ")"}) - (self.text(index) in {"[", "("})
            if depth == 0:
                break
            index -= 1
        return index


def script(path: str, text: str, shared: str = "") -> list[str]:
    """Violations of one script; ``shared`` is the text that is put before each script when it is loaded."""
    prelude = Reader("shared", tokens_of(shared)).read()
    reader = Reader(path, tokens_of(text), [dict(prelude.scopes[0])], dict(prelude.functions))
    return reader.read().found


def head(path: str, text: str) -> list[str]:
    """A script begins by saying what it does, which keys and arguments it takes, and what it returns."""
    comment = "\n".join(line for line in text.split("\n\n")[0].splitlines() if line.startswith("--"))
    name = path.rsplit("/", 1)[-1].removesuffix(".lua")
    wanted = [f"-- {name}: ", "\n-- KEYS: ", "\n-- Returns"]
    return [f"{path}:1: no {part.strip()!r} in its head" for part in wanted if part not in comment]
