"""Command lines without their secrets: what a trace keeps of one, since traces are passed on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

__all__ = ["redact"]

_NAME: Final = (
    r"[\w.-]*(?:pass(?:word|wd|phrase|code)?|pwd|pw|secret|token|key|credential|auth(?:orization)?|bearer"
    r"|cookie|psk|pin)s?"
)
# QEMU writes a comma inside a value as two, and takes options as JSON too.
_QUOTED: Final = r"\"(?:\\.|[^\"\\])*\"|'[^']*'"
_TO_COMMA: Final = rf"(?:{_QUOTED}|(?:,,|[^,;\"'])+)"
_TO_SPACE: Final = rf"(?:{_QUOTED}|(?:,,|[^,;\s\"'])+)"

_RULES: Final = (
    # name=value at the beginning of a word, or after a comma: the value may hold spaces.
    (re.compile(rf"(?i)((?:^|[,;{{])-*[\"']?{_NAME}[\"']?\s*[=:]\s*){_TO_COMMA}"), r"\1***"),
    # The same anywhere else, as in a shell's script or a kernel's command line.
    (re.compile(rf"(?i)(\b{_NAME}[\"']?[=:]\s*){_TO_SPACE}"), r"\1***"),
    (re.compile(rf"(?i)(\s--?{_NAME}\s+){_TO_SPACE}"), r"\1***"),
    # user:password@ of a URL
    (re.compile(r"(://[^/@\s:]*):[^/@\s]*@"), r"\1:***@"),
    # -fw_cfg name=…,string=…: how cloud-init and Ignition get their configuration
    (re.compile(r"(?i)((?:^|,)string=).*"), r"\1***"),
    # -smbios type=11,value=io.systemd.credential:NAME=…
    (re.compile(r"(?i)(io\.systemd\.credential[\w.]*:[^=]*=).*"), r"\1***"),
)
_SECRET_OBJECT: Final = re.compile(rf"(?i)([\"']?\bdata[\"']?\s*[=:]\s*){_TO_COMMA}")
_OPTION: Final = re.compile(rf"(?i)^--?{_NAME}$")


def redact(argv: Sequence[str]) -> list[str]:
    """Return a command line without the values of what looks like a secret; rather too many than too few.

    A secret without a name beside it (`mysql -phunter2`) can't be told from anything else and stays.

    >>> redact(["qemu", "-object", "secret,id=s0,data=hunter2", "--token", "abc", "-m", "1G"])
    ['qemu', '-object', 'secret,id=s0,data=***', '--token', '***', '-m', '1G']
    >>> redact(["-spice", "port=1,password=a,,b c,tls-port=2", "-drive", "file=https://me:pw@host/x"])
    ['-spice', 'port=1,password=***,tls-port=2', '-drive', 'file=https://me:***@host/x']
    """
    out: list[str] = []
    for index, word in enumerate(argv):
        if index and _OPTION.match(argv[index - 1]) and not word.startswith("-"):
            out.append("***")
            continue
        hidden = word
        if "secret" in word.lower():
            hidden = _SECRET_OBJECT.sub(r"\1***", hidden)
        for pattern, instead in _RULES:
            hidden = pattern.sub(instead, hidden)
        out.append(hidden)
    return out
