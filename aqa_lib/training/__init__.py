"""What GRPO and SFT share: the trainer's base class, batches, the audio cache.

It may import `runtime`, `large` and the flow up to `evaluation`; of the flow, only `grpo` and `sft` import it.
"""
