"""Checkpoints of a training: the state of all its workers in the store, written beside the steps and committed as one.

Torch plans who saves and reads which part (`torch.distributed.checkpoint`); the bytes lie in the store, and a checkpoint
counts once the journal of the training names it. It must not know networks, tasks or settings.
"""
