"""For whom root records: under sudo the trace and the command belong to the user who called it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping

from tracekit.errors import UsageError

__all__ = ["invoking_user"]


def invoking_user(environment: Mapping[str, str] | None = None) -> tuple[int | None, int | None]:
    """Return the (user, group) ids that called sudo, or (None, None) where nobody did.

    Raises UsageError where the environment names a user that does not exist: root's work is not
    silently done as root instead.

    >>> user = {"SUDO_UID": "1", "SUDO_GID": "1"}
    >>> invoking_user(user) if os.geteuid() == 0 else (1, 1)
    (1, 1)
    """
    given = os.environ if environment is None else environment
    user, group = given.get("SUDO_UID", ""), given.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (user.isdecimal() and group.isdecimal()) or user == "0":
        return None, None
    try:
        pwd.getpwuid(int(user))
    except (KeyError, OverflowError):
        raise UsageError(
            f"SUDO_UID is {user}, and there is no such user", hint="--as-root keeps the trace root's"
        ) from None
    return int(user), int(group)
