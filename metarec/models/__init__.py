"""Sequence models as pure functions over named weights. A model never hears of adaptation."""
