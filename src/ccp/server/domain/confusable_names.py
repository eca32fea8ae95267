"""Confusable names: mixed scripts, mixed digits, and invisible characters.

Follows UTS 39 (Unicode Security Mechanisms): a name is "highly restrictive" if its letters are of one script, or of
Latin together with those of Chinese, Japanese or Korean. Python has no table of scripts, but a letter's Unicode name
begins with its script. A name that imitates another one in a single script ("ЕОН" in Cyrillic for "EOH") is not
detected.
"""

from __future__ import annotations

import unicodedata
from typing import Final

from ccp.server.runtime.terminal_text import is_visible

_HAN: Final = "HAN"
_ALLOWED_COMBINATIONS: Final = (
    frozenset({"LATIN", _HAN, "HIRAGANA", "KATAKANA"}),
    frozenset({"LATIN", _HAN, "BOPOMOFO"}),
    frozenset({"LATIN", _HAN, "HANGUL"}),
)
"""UTS 39 clause 5.2, Highly Restrictive."""
_COMMON: Final = frozenset({"COMBINING", "MODIFIER", "DIGIT", "KATAKANA-HIRAGANA", "MICRO"})
"""First words of the Unicode names of letters, marks and digits that are common to all scripts."""
_SCRIPTS: Final = {"CJK": _HAN, "IDEOGRAPHIC": _HAN, "ARABIC-INDIC": "ARABIC", "EXTENDED": "ARABIC"}


def confusable_reason(text: str) -> str | None:
    """Why a text can be confused with another one, as the end of a sentence; None if it cannot."""
    if hidden := [character for character in text if not is_visible(character)]:
        return f"has a character that is not visible (U+{ord(hidden[0]):04X})"
    if len(zeros := {zero for character in text if (zero := _zero(character)) is not None}) > 1:
        return "mixes digits of several scripts"
    scripts = scripts_of(text) | {script for zero in zeros if (script := _script(chr(zero))) is not None}
    if len(scripts) > 1 and not any(scripts <= allowed for allowed in _ALLOWED_COMBINATIONS):
        return f"mixes letters of several scripts ({', '.join(sorted(map(str.capitalize, scripts)))})"
    return None


def scripts_of(text: str) -> set[str]:
    """The scripts of a text's letters and marks, by the first word of their Unicode names.

    Compatibility characters (fullwidth, mathematical) count as their compatibility decomposition.
    """
    found: set[str] = set()
    for character in text:
        if _is_letter(character):
            plain = character if _first_word(character) in _COMMON else unicodedata.normalize("NFKC", character)
            found |= {script for part in plain if _is_letter(part) and (script := _script(part)) is not None}
    return found


def _is_letter(character: str) -> bool:
    """A letter or a mark."""
    return unicodedata.category(character)[0] in "LM"


def _script(character: str) -> str | None:
    """The script of a letter; None for one that is common to all scripts."""
    word = _first_word(character)
    return None if word in _COMMON else _SCRIPTS.get(word, word)


def _first_word(character: str) -> str:
    return unicodedata.name(character, "UNKNOWN").partition(" ")[0]


def _zero(character: str) -> int | None:
    """The code point of the zero that a decimal digit counts from."""
    plain = unicodedata.normalize("NFKC", character)
    return None if len(plain) != 1 or (value := unicodedata.decimal(plain, None)) is None else ord(plain) - int(value)
