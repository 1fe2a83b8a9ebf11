"""Generations in processes of their own, one for each card: what crashes there leaves the app and its queue alone.

`wire` is how they talk, `process` what runs there, `worker` one of them seen from the app, `deaths` what to say of one
that ended, `fleet` all of them.
"""
