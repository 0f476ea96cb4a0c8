"""Cards that a training is planned for: memory, arithmetic and links, as their makers state them."""

from __future__ import annotations

from dataclasses import dataclass

_GB, _TERA = 10**9, 10**12


@dataclass(frozen=True, slots=True)
class Card:
    """Card of a kind, with the memory `memory_bytes`. flops_s: of dense matrices in bfloat16; flops32_s: in float32, TF32 where it has it.

    bytes_s: of its memory; node_bytes_s: of its link to the others of a machine, one way; cards: in a machine.
    """

    memory_bytes: float
    flops_s: float
    flops32_s: float
    bytes_s: float
    node_bytes_s: float
    cards: int = 8


# Source: the makers' data sheets; links one way. A100 and H100: SXM with NVLink 3 and 4; L4, L40S, T4: PCIe.
CARDS = {
    "h200": Card(141 * _GB, 989 * _TERA, 494 * _TERA, 4.8 * _TERA, 450 * _GB),
    "h100": Card(80 * _GB, 989 * _TERA, 494 * _TERA, 3.35 * _TERA, 450 * _GB),
    "a100": Card(80 * _GB, 312 * _TERA, 156 * _TERA, 2.0 * _TERA, 300 * _GB),
    "a100-40": Card(40 * _GB, 312 * _TERA, 156 * _TERA, 1.55 * _TERA, 300 * _GB),
    "l40s": Card(48 * _GB, 362 * _TERA, 183 * _TERA, 0.86 * _TERA, 32 * _GB),
    "l4": Card(24 * _GB, 121 * _TERA, 60 * _TERA, 0.3 * _TERA, 32 * _GB),
    "a10g": Card(24 * _GB, 70 * _TERA, 35 * _TERA, 0.6 * _TERA, 32 * _GB),
    "t4": Card(16 * _GB, 65 * _TERA, 8 * _TERA, 0.32 * _TERA, 16 * _GB, 4),
}
