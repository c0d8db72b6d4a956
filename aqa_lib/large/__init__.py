"""What a model of billions of weights needs: the memory planner, master weights, the reference, FSDP.

Skip it on a first reading. It imports `runtime` and the flow up to `model`; `training`, `grpo` and `sft` import it.
"""
