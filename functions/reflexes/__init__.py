"""Reflexes of the platform: every ten seconds, open rollouts and champions are judged by what the last minutes show.

Knows live counts, rollouts, alarms and who is told of them. Must not know who counts.
"""

from toque.functions.reflexes.champion import ServiceFinding, judge_champion
from toque.functions.reflexes.reflexes import Reflexes, reflexes_of

__all__ = ["Reflexes", "ServiceFinding", "judge_champion", "reflexes_of"]
