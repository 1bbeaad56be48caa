"""What the tests of the hand-written sets share: reading them, and looking at their words."""

import json
import re
from pathlib import Path

DATA = Path(__file__).parents[1] / "data"

Row = dict[str, str]


def read_rows(name: str) -> list[Row]:
    """The rows of one JSON Lines file, in file order."""
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    """The words of a text; an apostrophe, hyphen or point inside a word or a number belongs to it."""
    return re.findall(r"\w+(?:['’.-]\w+)*", text)


def masked(text: str) -> list[str]:
    """Words in lower case, with numbers as N and capitalised words that do not open a sentence as X."""
    tokens, opens = [], True
    for token in re.findall(r"\w+(?:['’.-]\w+)*|[.!?:\"“”]", text):
        if not token[0].isalnum():
            opens = True
            continue
        if token[0].isdigit():
            tokens.append("N")
        elif token[0].isupper() and not opens:
            tokens.append("X")
        else:
            tokens.append(token.lower())
        opens = False
    return tokens


def four_grams(text: str) -> set[tuple[str, ...]]:
    """All 4-word sequences of a text, masked."""
    tokens = masked(text)
    return {tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3)}
