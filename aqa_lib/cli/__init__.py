"""The commands of `python -m aqa_lib`, one module each, `add_arguments(parser)` and `run(args)`.

It may import everything; only `__main__` imports it. A module imports what is heavy inside `run`, so that `--help`
answers at once; a user's mistake comes out as an AqaError.
"""

COMMANDS = {  # and what each is for; each has a module of the same name
    "demo": "train the scale's model with GRPO, and show it before and after",
    "prepare": "check a question file and its clips, and write a clean one to train on",
    "assemble": "join a Whisper encoder and a language model into an audio-language model",
    "align": "teach an assembled model to say what it hears",
    "train": "train a model with GRPO",
    "sft": "train a model on the right answers: the baseline",
    "learned": "say what a run trained: which parts moved, how far, and whether the clip counts",
    "evaluate": "answer questions with a model, and score the answers",
    "score": "score finished predictions, ours or anybody's, without a model",
    "compare": "put runs side by side, and say which differences are real",
    "report": "gather results into the paper's table, its rows next to ours",
    "ablation": "put prompt 2 and prompt 3 side by side: does thinking aloud help?",
    "plan": "count the memory of a training run, and say whether it fits on a GPU",
    "study": "run the paper's Qwen2-Audio rows, three seeds each; --dose: measure when rewards beat answers",
}
