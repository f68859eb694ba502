"""The tables, their version, and how a database of an older version is brought up to date."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stores.records import StoreError

VERSION = 2


def install(execute: Callable[[str], Any], version: int, numbering: str, bytewise: str = "") -> None:
    """Create or upgrade the tables through `execute`, in a transaction of the caller's.

    `version` is what the database has, 0 where it has none of the tables; `numbering` is its identity column,
    `bytewise` what sorts a text by its bytes. Raises StoreError for a version that is newer than this release.
    """
    if version > VERSION:
        raise StoreError(f"made by a newer release (version {version}, this one has {VERSION}): use that release")
    if version == VERSION:
        return
    names = [f"upgrade_{older}.sql" for older in range(version, VERSION)] if version else ["schema.sql"]
    for name in names:
        text = re.sub(r"--.*", "", Path(__file__).with_name(name).read_text())
        for statement in filter(str.strip, text.replace("{id}", numbering).replace("{bytewise}", bytewise).split(";")):
            execute(statement)
