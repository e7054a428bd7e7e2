"""Makes strings from a trace inert: what a tenant put in argv or comm must not drive a terminal or a page."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["plain"]

_LONGEST: Final = 400

# A terminal acts on C0/C1 controls and what follows ESC; a reader is misled by invisible direction
# marks. All become visible escapes, so nothing is hidden and nothing acts.
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def plain(text: object, *, longest: int = _LONGEST) -> str:
    r"""Return `text` on one line with every control or direction character written as an escape.

    Longer than `longest` characters is cut, and says so. HTML is escaped by the page's templates.

    >>> plain("qemu\x1b[31m -name a\nb")
    'qemu\\x1b[31m -name a\\x0ab'
    """
    clean = _UNSAFE.sub(lambda found: _escape(found.group()), str(text))
    clean = "".join(c if unicodedata.category(c) != "Cs" else _escape(c) for c in clean)
    return clean if len(clean) <= longest else f"{clean[:longest]}... ({len(clean)} characters)"


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
