"""A report of measurements and runs: one HTML file that needs no network."""

from __future__ import annotations

from lorascope.report.findings import Finding
from lorascope.report.page import Section, Table, render_page, write_page
from lorascope.report.plan import plan_headline, plan_sections
from lorascope.report.summary import Summary, summarise
from lorascope.report.write import render_report, write_report

__all__ = [
    "Finding",
    "Section",
    "Summary",
    "Table",
    "plan_headline",
    "plan_sections",
    "render_page",
    "render_report",
    "summarise",
    "write_page",
    "write_report",
]
