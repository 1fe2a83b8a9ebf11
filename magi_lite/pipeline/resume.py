"""Where a run goes on: at a saved state, at the beginning, or behind its finished seconds.

A state gives the same bits as an unbroken run. Where none fits (an endless run forgets its oldest ones, files can be
lost) and the finished seconds are few and were asked for as they would be now, all is made again, to the same bits.
Otherwise the finished seconds are the prefix, as a clip's would be. Starting over with the present request instead
would continue from seconds that were never kept.

All of this is about the shot that the next second belongs to: what is finished of others needs no state.
"""

from __future__ import annotations

from dataclasses import dataclass

from magi_lite.project import Project, SavedState
from magi_lite.sampling.results import SamplerState
from magi_lite.sampling.sampler import Sampler
from magi_lite.timeline import Shot


@dataclass(frozen=True, eq=False)
class ResumePoint:
    """`state` to restore, or `behind` finished seconds of the shot to follow, or (None and 0) its beginning."""

    shot: Shot
    state: SavedState | None = None
    behind: int = 0

    @property
    def notice(self) -> str:
        """What the user should know of it; empty where the run goes on to the very same bits."""
        if not self.behind:
            return ""
        return (
            f"No saved state leads to second {self.shot.start + self.behind} any more; it is made as the continuation "
            "of the finished seconds, which stay as they are, and not to the bits that the unbroken run would have "
            "given it."
        )

    def place(self, sampler: Sampler, project: Project) -> None:
        """Put a new sampler there.

        Raises:
            InputError: the state or the latents do not fit the request.
        """
        if self.state is not None:
            sampler.restore(SamplerState(self.state.position, self.state.tensors))
        elif self.behind:
            settings = sampler.settings
            reach = self.behind if settings.sees_everything else settings.prefix_reach
            last = range(max(0, self.behind - reach), self.behind)
            sampler.follow(self.behind, [project.read_latents(self.shot.start + second) for second in last])


def find_resume_point(project: Project) -> ResumePoint:
    """The newest state that fits; for a video or a shot made longer, the last one before its old end."""
    state, shot = project.latest_state(), project.shot
    if state is not None:
        made_for, wanted = state.end, shot.end
        if made_for is not None and state.stage >= made_for and (wanted is None or wanted > made_for):
            state = project.state_before(made_for)
            state = state if state and state.shot == shot.start else None
    fresh = state is not None or project.restarts
    return ResumePoint(shot, state, 0 if fresh else project.chunks - shot.start)
