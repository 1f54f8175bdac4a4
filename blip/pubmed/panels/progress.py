"""A file of lines that is written over several runs: each continues after the last figure that is finished.

OUT.partial             the lines so far
OUT.partial.progress    JSON: a line with the settings, then a line for each finished figure: the length of OUT.partial
                        behind it, and its counts

After a kill the last lines of either file may be missing or incomplete. The next run removes what follows the last
figure that both files have.
"""

import json
import os
from pathlib import Path
from typing import Any

from blip.files import json_text, partial_path, rename_whole

Line = dict[str, Any]


class Progress:
    """Opens the files of a run, or those that an earlier run with the same settings left.

    Args:
        out: name of the complete file.
        settings: JSON; what the lines depend on. The files of a run with other settings are replaced.

    Attributes:
        finished: the counts of each figure that an earlier run finished.
    """

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self.out, self.partial = out, partial_path(out)
        self.record = self.partial.with_name(f"{self.partial.name}.progress")
        header = json.dumps(settings).encode() + b"\n"
        self.finished: list[dict[str, Any]] = []
        ends = self._read_record(header) if self.partial.exists() and self.record.exists() else []
        if ends:
            os.truncate(self.partial, ends[-1][0])
            os.truncate(self.record, ends[-1][1])
        else:
            self.partial.write_bytes(b"")
            self.record.write_bytes(header)
        self.lines = open(self.partial, "ab")  # noqa: SIM115 (closed by `close`)
        self.counts = open(self.record, "ab")  # noqa: SIM115

    def _read_record(self, header: bytes) -> list[tuple[int, int]]:
        """Lengths of both files behind each finished figure; empty where the settings differ. Fills `finished`."""
        length, ends = self.partial.stat().st_size, []
        with open(self.record, "rb") as file:
            if file.readline() != header:
                return []
            place = len(header)
            for raw in file:
                place += len(raw)
                if not raw.endswith(b"\n") or (entry := json.loads(raw))["length"] > length:
                    break
                ends.append((entry["length"], place))
                self.finished.append(entry["counts"])
        return ends

    def add(self, lines: list[Line], counts: dict[str, Any]) -> None:
        """Writes the lines and the counts of one figure."""
        self.lines.write("".join(json_text(line, None) for line in lines).encode())
        self.lines.flush()  # before the record, which gives the length of what is there
        entry = {"length": self.lines.tell(), "counts": counts}
        self.counts.write(json.dumps(entry).encode() + b"\n")
        self.counts.flush()

    def complete(self) -> None:
        """Gives the file its name."""
        self.close()
        rename_whole(self.partial, self.out)
        self.record.unlink()

    def discard(self) -> None:
        """Removes the files, so that the next run starts from the beginning."""
        self.close()
        self.partial.unlink()
        self.record.unlink()

    def close(self) -> None:
        self.lines.close()
        self.counts.close()
