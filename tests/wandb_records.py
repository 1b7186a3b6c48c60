"""What W&B has written of a run, read back from its own log."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def records_of(path: Path) -> list:
    """The records of a .wandb file: LevelDB's log format, blocks of 32 KiB, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, place, pieces, records = path.read_bytes(), 7, b"", []
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", raw[place : place + 7])
        pieces += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(Record.FromString(pieces))
            pieces = b""
    return records


def logs_of(run: Path) -> list[list]:
    """The records of each process that has written to the page of a run, the first one first."""
    return [records_of(path) for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"))]


def of_kind(records: list, kind: str) -> Iterator[Any]:
    """What the records of one kind hold: "run", "artifact", "exit", ..."""
    return (getattr(record, kind) for record in records if record.HasField(kind))


def values(items: Any) -> dict[str, Any]:
    """The keys and values of a row of the history, or of the summary; W&B splits nested ones."""
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def history(records: list) -> list[dict[str, Any]]:
    """The rows that were logged."""
    return [values(row.item) for row in of_kind(records, "history")]


def summary(records: list) -> dict[str, Any]:
    """The summary, as the last updates have left it."""
    found: dict[str, Any] = {}
    for update in of_kind(records, "summary"):
        found |= values(update.update)
    return found


def artifacts(records: list) -> dict[str, dict[str, Path]]:
    """The last version of each artifact, by its kind: name -> the file that waits to be uploaded."""
    return {
        artifact.type: {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        for artifact in of_kind(records, "artifact")
    }
