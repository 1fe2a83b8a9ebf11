"""Which linears of a model may be quantized, decided by name alone.

Quantizing embedders, modulation, caption keys/values, norms or the first and last block clearly hurts, and together
they are few weights: they stay in high precision. The defaults fit diffusion and language transformers alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from quant.errors import QuantError

KEEP = r"embed|norm|ada_|adaln|kv_xattn|final|lm_head|shared|pos_|time_|modulat|router|(^|\.)(head|wte|wpe|rope)(\.|$)"
"""Names that stay in high precision unless a selection says otherwise."""
BLOCK = r"(^|\.)(layers|blocks|block|h)\.(\d+)\."
"""Where a block's number stands in a name."""


@dataclass(frozen=True)
class Selection:
    """A predicate over layer names: included, not excluded, and not in the first or last block.

    `include` and `exclude` are regular expressions searched in the layer's full name (without ".weight").
    """

    include: str = r""
    exclude: str = KEEP
    keep_first_and_last: bool = True

    def choose(self, names: Iterable[str]) -> frozenset[str]:
        """The chosen ones among all layer names of ONE model (all are needed to know which block is the last).

        Raises:
            QuantError: a pattern is no regular expression.
        """
        try:
            include, exclude = re.compile(self.include), re.compile(self.exclude) if self.exclude else None
        except re.error as error:
            raise QuantError(f"The include or exclude pattern is not a regular expression: {error}.") from error
        names = list(names)
        last: dict[str, int] = {}
        for name in names:
            for stack, number in _blocks(name):
                last[stack] = max(last.get(stack, 0), number)

        def outer(name: str) -> bool:
            return any(number in (0, last[stack]) for stack, number in _blocks(name)[:1])

        return frozenset(
            name
            for name in names
            if include.search(name)
            and not (exclude and exclude.search(name))
            and not (self.keep_first_and_last and outer(name))
        )


def _blocks(name: str) -> list[tuple[str, int]]:
    """(path of the stack, block number) for every numbered stack in a name, outermost first."""
    return [(name[: found.start(3)], int(found.group(3))) for found in re.finditer(BLOCK, name)]
