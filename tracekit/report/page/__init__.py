"""The pages: one self-contained HTML file each."""

from tracekit.report.page.of_comparison import render_comparison
from tracekit.report.page.of_study import render

__all__ = ["render", "render_comparison"]
