"""From a request to a growing video: `generate` is the one way through, told in `run`."""

from magi_lite.pipeline.run import generate

__all__ = ["generate"]
