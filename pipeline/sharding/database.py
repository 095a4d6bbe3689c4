"""DuckDB, for what is sorted or grouped out of memory."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_MEMORY_LIMIT = "2GB"


@contextmanager
def database(scratch: Path, name: str) -> Iterator[Any]:
    """A DuckDB connection in memory that spills into a directory below `scratch`, which goes at the end."""
    import duckdb

    spill = scratch / f"{name}.spill"
    # Nothing is fetched or installed, whatever a query says.
    options = {"memory_limit": _MEMORY_LIMIT, "temp_directory": str(spill), "autoinstall_known_extensions": "false"}
    connection = duckdb.connect(":memory:", config=options)
    try:
        yield connection
    finally:
        connection.close()
        shutil.rmtree(spill, ignore_errors=True)
