"""Live answers of language models: scores of a sample, and drift of what is asked and answered.

Knows the prediction log, scorers, judges and the drift of answers. Must not know engines at work or how versions are served.
"""

from toque.functions.monitoring.language.sample import LanguageMonitors

__all__ = ["LanguageMonitors"]
