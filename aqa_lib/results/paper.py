"""The paper's own figures, typed here once and nowhere else: R1-AQA, arXiv 2503.11197, and its repository.

`[paper] -> report`. Percent right on MMAU Test-mini of March 2025, 333 sound, 334 music and 333 speech
questions. An average that is not the mean of its tasks (Llama-3: 51.6, but 52.1 in print) is given as
printed.
"""

from dataclasses import dataclass

THEIR_N = 1000  # questions behind each of their averages


@dataclass(frozen=True)
class Theirs:
    """One row of the paper's table 2 or its repository, in percent on MMAU Test-mini 2025-03-25.

    method, style: what our metadata says of a run that reproduces it; this package cannot make a row without a method.
    """

    name: str
    sound: float
    music: float
    speech: float
    average: float
    method: str | None = None
    style: int | None = None  # None: any prompt, and prompt 1 where we train it

    @property
    def key(self) -> str:
        """The row's short name here: its method and its prompt, as in `grpo-2`."""
        return f"{self.method}-{self.style or 1}"


THEIRS = (
    Theirs("human", 86.31, 78.22, 82.17, 82.23),
    Theirs("Gemini 2.0 Flash", 56.46, 58.68, 51.65, 55.60),
    Theirs("Audio Flamingo 2", 61.56, 73.95, 30.93, 55.48),
    Theirs("GPT-4o + strong caption", 57.35, 49.70, 64.86, 57.30),
    Theirs("Llama-3-8B-Instruct + strong caption", 50.75, 48.93, 55.25, 52.10),
    Theirs("Gemini 1.5 Pro", 56.75, 49.40, 58.55, 54.90),
    Theirs("Qwen2-Audio, Audio-Reasoner (CoTA)", 60.06, 64.30, 60.70, 61.71),
    Theirs("Qwen2-Audio, direct", 54.95, 50.98, 42.04, 49.20, "base", 2),
    Theirs("Qwen2-Audio, zero-shot CoT", 61.86, 56.29, 55.26, 57.80, "base", 3),
    Theirs("Qwen2-Audio, SFT full + prompt 1", 60.96, 49.19, 45.35, 51.80, "sft"),
    Theirs("Qwen2-Audio, SFT LoRA + prompt 1", 58.26, 58.08, 52.58, 56.40, "sft-lora"),
    Theirs("Qwen2-Audio, GRPO + prompt 2", 69.37, 66.77, 57.36, 64.50, "grpo", 2),
    Theirs("Qwen2-Audio, GRPO + prompt 2, second run", 68.77, 64.37, 63.66, 65.60),
    Theirs("Qwen2-Audio, GRPO + prompt 3 (think)", 66.67, 62.87, 53.75, 61.10, "grpo", 3),
)
OURS = {theirs.key: theirs for theirs in THEIRS if theirs.method}  # the rows that this package makes
BASE, SFT, SFT_LORA, GRPO, THINK = (
    "Qwen2-Audio, direct",
    "Qwen2-Audio, SFT full + prompt 1",
    "Qwen2-Audio, SFT LoRA + prompt 1",
    "Qwen2-Audio, GRPO + prompt 2",
    "Qwen2-Audio, GRPO + prompt 3 (think)",
)
FINDINGS = (  # what the paper says, the two rows whose difference says it, and the sign it needs
    ("GRPO makes the base better", GRPO, BASE, 1),
    ("GRPO beats SFT of all weights", GRPO, SFT, 1),
    ("GRPO beats SFT with LoRA", GRPO, SFT_LORA, 1),
    ("Thinking aloud does not help", THINK, GRPO, -1),
)
