"""Sequence models as pure functions over named weights. A model never hears of adaptation.

One model, one file, which brings `Config` and `build(config, n_items)` (`metarec.parts`; docs/new_model.md).
"""
