"""Plausible wrong answers to the exercises of notebook 01, with what the check must say."""

from tests.notebooks import wrong_01_crossformer, wrong_01_crossvit

WRONG = {**wrong_01_crossvit.WRONG, **wrong_01_crossformer.WRONG}
