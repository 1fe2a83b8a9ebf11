"""The flat world that the model in presets/demo was trained on, and the evaluation of that model.

Kept for the shipped model's figures and tests, until a model of `training.shipped.world` takes its place.
"""
