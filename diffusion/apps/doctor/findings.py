"""What the doctor says: one table, the findings beneath it, and a verdict."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

SEVERITIES = ("note", "warning", "error")
COLORS = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red", "left out": "dim"}
SHOWN = 10


@dataclass(frozen=True)
class Case:
    """One file, or two, by name."""

    split: str = ""
    file: str = ""
    other_split: str = ""
    other: str = ""
    detail: str = ""

    def __str__(self) -> str:
        pairs = ((self.split, self.file), (self.other_split, self.other))
        # Samples without a name are called by split and row already.
        sides = [name if name.startswith(f"{split} ") else f"{split}: {name}" for split, name in pairs if name]
        return " and ".join(sides) + (f"  ({self.detail})" if self.detail and sides else self.detail)


@dataclass(frozen=True)
class Finding:
    """What was found by one check, the line that says it, and the files that it is about.

    shown: cases that are printed; None for all. The file cases.csv has all in any case.
    """

    kind: str
    severity: str
    text: str
    cases: Sequence[Case] = ()
    shown: int | None = SHOWN


@dataclass
class Report:
    """Rows of the table, kind -> text, in their order; findings; and the same in numbers, for metrics.json."""

    rows: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)

    def find(self, kind: str, severity: str, text: str, cases: Sequence[Case] = (), shown: int | None = SHOWN) -> None:
        self.findings.append(Finding(kind, severity, text, cases, shown))

    def of(self, severity: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    def mark(self, kind: str) -> str:
        """The worst of what a check has found: ok, note, warning, error, or left out."""
        found = [SEVERITIES.index(finding.severity) for finding in self.findings if finding.kind == kind]
        return SEVERITIES[max(found)] if found else "left out" if kind in self.left_out else "ok"

    @property
    def verdict(self) -> str:
        errors, warnings = self.of("error"), self.of("warning")
        if errors:
            return f"not ready: {'; '.join(finding.text for finding in errors)}"
        if warnings:
            return f"ready, with {len(warnings)} warning{'s' if len(warnings) > 1 else ''}"
        return "ready"

    def print(self, title: str) -> None:
        """The table on standard output, then what was found, the worst first, names in full."""
        console = Console(highlight=False, markup=False)
        table = Table(title=title, title_justify="left", show_lines=False)
        table.add_column("check", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("", no_wrap=True)
        for kind, text in self.rows.items():
            mark = self.mark(kind)
            table.add_row(kind, Text(text), Text(mark, style=COLORS[mark]))
        for kind, reason in self.left_out.items():
            if kind not in self.rows:
                table.add_row(kind, Text(reason), Text("left out", style=COLORS["left out"]))
        console.print(table)
        for severity in reversed(SEVERITIES):
            for finding in self.of(severity):
                line = Text(severity, style=COLORS[severity]).append(f"  {finding.kind}: {finding.text}", style="none")
                console.print(line, soft_wrap=True)
                shown = finding.cases if finding.shown is None else finding.cases[: finding.shown]
                for case in shown:
                    console.print(Text(f"    {case}"), soft_wrap=True)
                if len(finding.cases) > len(shown):
                    console.print(Text(f"    and {len(finding.cases) - len(shown)} more in cases.csv"), soft_wrap=True)

    def write_cases(self, path: Path) -> None:
        """One row for each case, or for a finding that is about no file in particular."""
        with path.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["kind", "severity", "split", "file", "other_split", "other_file", "detail"])
            for finding in self.findings:
                for case in finding.cases or [Case()]:
                    detail = case.detail or finding.text
                    places = (case.split, case.file, case.other_split, case.other)
                    rows.writerow([finding.kind, finding.severity, *places, detail])
