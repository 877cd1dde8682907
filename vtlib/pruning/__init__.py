"""Token pruning and merging for vision-language models: one file a paper, one interface (score, select, apply).

`vtlib.pruning.registry.METHODS` lists all of them, baselines included, behind one call for TinyVLM.
"""
