"""New projects: a table is read, its columns are judged, and a small package is written that trains a model on it.

Knows files, columns and text. Must not know how a model is trained or served; what it writes uses public names only.
"""

from toque.ray_apps.new_project.columns import Summaries
from toque.ray_apps.new_project.draft import Draft, Reading, check_project_name, draft_of
from toque.ray_apps.new_project.pages import check_absent, code_lines, pages, write_project
from toque.ray_apps.new_project.roles import OUTCOMES, Guess, Wishes
from toque.ray_apps.new_project.source import Finding, InitError, Source

__all__ = [
    "OUTCOMES",
    "Draft",
    "Finding",
    "Guess",
    "InitError",
    "Reading",
    "Source",
    "Summaries",
    "Wishes",
    "check_absent",
    "check_project_name",
    "code_lines",
    "draft_of",
    "pages",
    "write_project",
]
