"""One self-contained HTML page of what the runs did and how well they score. Loads no torch."""

from __future__ import annotations

from remask.report.html import write_report

__all__ = ["write_report"]
