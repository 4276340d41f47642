"""Tensors and types, task-batched operators, seeding. Needs only torch (and numpy); nothing here knows the rest."""
