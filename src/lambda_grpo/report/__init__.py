"""Rollouts → one self-contained HTML page that shows the hidden process reward model, and its JSON twin.

    write_report(["runs/a", "runs/b"], "report.html")

The page opens offline and fetches nothing. HTML, CSS and JavaScript are files of this folder.
"""

from lambda_grpo.report.content import ReportOptions
from lambda_grpo.report.page import Written, write_report

__all__ = ["ReportOptions", "Written", "write_report"]
