"""Generations on disk: `Project` writes and reads one, `listing` shows all, `lock` keeps a second writer out."""

from magi_lite.project.project import PREFIX_NAME, Project, SavedState

__all__ = ["PREFIX_NAME", "Project", "SavedState"]
