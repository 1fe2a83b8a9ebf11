"""A run on disk: `Project` writes and reads one; `seconds` and `states` are what it is made of."""

from magi_lite.project.project import Project
from magi_lite.project.record import PICTURE_NAME, PREFIX_NAME, Status
from magi_lite.project.states import SavedState

__all__ = ["PICTURE_NAME", "PREFIX_NAME", "Project", "SavedState", "Status"]
