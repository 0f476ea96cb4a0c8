"""Reflexes of the platform: every ten seconds, open rollouts and champions are judged by what the last minutes show.

Knows live counts, rollouts and alarms. Must not know who counts, nor how people are reached.
"""

from functions.reflexes.champion import ServiceFinding, judge_champion
from functions.reflexes.reflexes import Reflexes, reflexes_of

__all__ = ["Reflexes", "ServiceFinding", "judge_champion", "reflexes_of"]
