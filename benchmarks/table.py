"""Write the latest results into docs/performance.md, between its two markers.

python -m benchmarks.table
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from benchmarks.harness import LATEST, Report

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- figures: written by benchmarks/table.py -->", "<!-- end of figures -->"


def figure(value: float) -> str:
    """Write three digits, as people write them."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def section(report: Report) -> Iterator[str]:
    """Yield one script's lines: its question, its caveats, then its rows."""
    yield f"### {report.question}\n"
    yield f"`python -m benchmarks.{report.script}`; {report.machine}; {report.taken_at[:10]}.\n"
    yield from (f"- {caveat}" for caveat in report.caveats)
    yield "\n| case | ours | beside | | ratio | to reach |\n|---|---:|---:|---|---:|---:|"
    for row in report.rows:
        short = row.reach is not None and row.ratio < row.reach
        reach = "" if row.reach is None else figure(row.reach) + (" (short of it)" if short else "")
        ours, other = (f"{figure(value)} {row.unit}".rstrip() for value in (row.ours, row.other))
        yield f"| {row.what} | {ours} | {other} | {row.beside} | {figure(row.ratio)} | {reach} |"
    yield ""


def written(text: str, reports: dict[str, Report]) -> str:
    """Return the document with the figures of `reports` in place of those it has."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document lacks {BEGIN} or {END}")
    lines = [line for _, report in sorted(reports.items()) for line in section(report)]
    return "\n".join([before + BEGIN, "", *lines]) + END + after


def main() -> None:
    reports = msgspec.json.decode(LATEST.read_bytes(), type=dict[str, Report])
    DOCUMENT.write_text(written(DOCUMENT.read_text(), reports))


if __name__ == "__main__":
    main()
