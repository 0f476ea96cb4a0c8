"""Plans of a training of a language model before a card is paid for: memory, step time, days and money, computed without torch.

The package knows sizes of networks and of cards. It must not know how a training runs.
"""

from toque.functions.training.planning.cards import CARDS, Card
from toque.functions.training.planning.decoder import Decoder
from toque.functions.training.planning.plan import REACHED, Plan, Setup, plan, proposed

__all__ = ["CARDS", "REACHED", "Card", "Decoder", "Plan", "Setup", "plan", "proposed"]
