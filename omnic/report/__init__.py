"""The report of a bundle: one HTML page that needs nothing else."""

from omnic.report.page import write_report

__all__ = ["write_report"]
