"""Text of code without what no run depends on: comments, docstrings, blank lines and the layout of lines."""

from __future__ import annotations

import ast


def code_text(source: str) -> str:
    """Write code anew, so that it is the same text however the source is commented, documented and laid out.

    source: of a module, or of one function or class, also an indented one. What cannot be parsed alone, such as a lambda within
    a call, stays as it is.
    """
    indented = source[:1].isspace()
    try:
        tree = ast.parse(f"if True:\n{source}" if indented else source)
    except (SyntaxError, ValueError):
        return source
    return tree_text(tree)


def tree_text(tree: ast.Module) -> str:
    """Write parsed code anew, as `code_text`; the docstrings stay where the code reads them."""
    nodes = list(ast.walk(tree))
    if not any(isinstance(node, ast.Attribute | ast.Name) and _name(node) == "__doc__" for node in nodes):
        for node in nodes:
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                _remove_docstring(node)
    return ast.unparse(tree)


def _name(node: ast.Attribute | ast.Name) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id


def _remove_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    first = node.body[0] if node.body else None
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        node.body[:1] = [] if len(node.body) > 1 or isinstance(node, ast.Module) else [ast.Pass()]
