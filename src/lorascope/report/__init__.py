"""A report of measurements and runs: one HTML file that needs no network."""

from __future__ import annotations

from lorascope.report.findings import Finding
from lorascope.report.summary import Summary, summarise
from lorascope.report.write import render_report, write_report

__all__ = ["Finding", "Summary", "render_report", "summarise", "write_report"]
