"""What a pair costs.

An objective is a callable (scores, target, generator) -> [T, N]: the loss of every pair, 0 where the pair does not count
(target <= 0). How pairs become the loss of a task is not its business (`metarec.tasks`).
"""
