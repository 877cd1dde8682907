"""Plausible wrong answers to the exercises of notebook 07b, with what the check must say."""

from tests.notebooks import wrong_07b_catanet, wrong_07b_uplift

WRONG = {**wrong_07b_catanet.WRONG, **wrong_07b_uplift.WRONG}
