"""What a model of billions of weights needs: the memory planner, master weights, the reference, FSDP.

Skip it on a first reading. Imports the flow up to `model` and `runtime`; `training`, `grpo` and `sft` import it.
"""
