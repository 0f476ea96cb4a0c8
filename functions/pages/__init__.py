"""Renderer of HTML for the console's pages and for reports: templates, style sheet and charts.

Knows how values are written and drawn. Must not know what they mean, nor who looks at them.
"""

from toque.functions.pages.charts import Bar, Level, Line, Mark, Node, Point, Series
from toque.functions.pages.rendering import NOTHING, STATIC, make_templates

__all__ = ["NOTHING", "STATIC", "Bar", "Level", "Line", "Mark", "Node", "Point", "Series", "make_templates"]
