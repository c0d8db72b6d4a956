"""What GRPO and SFT share: the trainer's base class, batches, the audio cache.

May import the flow up to `evaluation`, `runtime` and `large`; only `grpo` and `sft` come in from the left.
"""
