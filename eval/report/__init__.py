"""What people look at: tables, plots and pages of benchmarks, and comparisons of them."""

from .bench_report import write_report
from .compare import compare, load_results
from .page import Picture, Section, markdown, page
from .plots import save_figure
from .points import main_quantity, panels_of, points, quantities
from .tables import Table, by_nfe

__all__ = [
    "Picture",
    "Section",
    "Table",
    "by_nfe",
    "compare",
    "load_results",
    "main_quantity",
    "markdown",
    "page",
    "panels_of",
    "points",
    "quantities",
    "save_figure",
    "write_report",
]
