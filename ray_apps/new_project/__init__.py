"""New projects: a table is read, its columns are judged, and a small package is written that trains a model on it.

Knows files, columns and text. Must not know how a model is trained or served; what it writes uses public names only.
"""

from toque.ray_apps.new_project.columns import Summaries
from toque.ray_apps.new_project.draft import Draft, Reading, check_project_name, draft_of
from toque.ray_apps.new_project.errors import InitError
from toque.ray_apps.new_project.findings import Finding
from toque.ray_apps.new_project.outcomes import OUTCOMES
from toque.ray_apps.new_project.pages import code_lines, pages
from toque.ray_apps.new_project.roles import Guess, Wishes
from toque.ray_apps.new_project.source import Source
from toque.ray_apps.new_project.write import check_absent, write_project

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
