"""`python -m tests.parity FOLDER`: run every golden in a folder of the layout of the published goldens."""
