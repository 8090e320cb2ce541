"""Evaluation: the runs that one call of the evaluator takes."""
