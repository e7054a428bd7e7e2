"""For whom root records: under sudo the trace and the command belong to the user who called it."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["invoking_user"]


def invoking_user(environment: Mapping[str, str] | None = None) -> tuple[int | None, int | None]:
    """Return the (user, group) ids that called sudo, or (None, None) where nobody did.

    >>> invoking_user({"SUDO_UID": "1000", "SUDO_GID": "100"}) if os.geteuid() == 0 else (1000, 100)
    (1000, 100)
    """
    given = os.environ if environment is None else environment
    user, group = given.get("SUDO_UID", ""), given.get("SUDO_GID", "")
    if os.geteuid() != 0 or not (user.isdigit() and group.isdigit()) or user == "0":
        return None, None
    return int(user), int(group)
