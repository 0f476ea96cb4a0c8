"""Cards of a cluster: nodes that have them, slices and fractions of a card, and what the driver of a machine tells.

It knows nothing of the queue, nor of what runs on a card.
"""
