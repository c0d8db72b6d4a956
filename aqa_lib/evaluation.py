"""Let a model answer questions, and write down what it says.

`rollout -> [evaluation] -> results`. `predict` writes one JSON line per question; `results.scoring` reads any such
file, ours or not, without a model. It deviates from the paper on purpose: greedy decoding unless asked otherwise (the
paper samples, as the checkpoint's generation config says), batches sorted by length, clips decoded in the background.
"""

import hashlib
import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from . import inputs, predictions, prompt, rollout, scale
from .architectures.foreign import ModelError
from .audio import MAX_SECONDS, AudioError, length
from .dataset import Question
from .logps import completion_logps
from .model import context
from .reading import tables
from .runtime import distributed, faults, files
from .runtime.errors import AqaError
from .runtime.escape import show
from .runtime.prefetch import prefetch

logger = logging.getLogger(__name__)
DECODINGS = ("greedy", "sample", "generation_config")


def predict(  # noqa: PLR0913 (TRL's and transformers' options by name)
    model: nn.Module,
    processor,
    questions: Sequence[Question],
    path: str | Path | None = None,
    style: int = 2,
    batch_size: int = 32,
    max_completion_length: int = 256,
    decoding: str = "greedy",
    seed: int = 0,
    audio: str = "heard",
    shuffle_choices: int | None = None,
    wording: int = 0,
    progress: bool = True,
    data: str | Path | None = None,
    labels: Mapping | None = None,
    on_error: str = "raise",
    engine: rollout.RolloutEngine | None = None,
) -> list[dict]:
    """Answer questions and return one row each, in the questions' order; write them to `path` as they come.

    style: prompt 1, 2 or 3. decoding: "greedy"; with `seed`, "sample" as GRPO does (temperature 1), or
    "generation_config" with the checkpoint's own values. audio: "heard", or the controls "silent" and "none" (text
    only). shuffle_choices: a seed that reorders every question's choices. wording: of the instruction, 0 the paper's
    (`prompt.REWORDED`). data: the file that the questions came from, for the record. labels: what else the record
    should say, such as `method` and `train_seed`. on_error: with "skip", a question whose clip cannot be used gets no
    prediction, which counts as wrong. engine: what samples the answers; ours if not given. An existing `path` is
    resumed. Processes started by torchrun each answer some of the batches, and all of them return all rows.

    Fields of a row:
    - `index, id, task, question, choices, answer`, and MMAU's further keys: the question's;
    - `model_output`: the reply; `tokens`: its length; `ended`: whether the model ended it;
    - `prediction`: the answer read from the reply, "" if none can be;
    - `correct`: whether it is strictly right; None if the right answer is withheld;
    - `error`: why the clip could not be used, if it could not.

    Raises AqaError for bad arguments, PredictionsError for a file made with other settings, AudioError for a bad clip,
    RunError if a GPU's memory is full or a clip is never ready.
    """
    if not questions:
        raise AqaError("there are no questions to answer; check the file and the limit.")
    if batch_size < 1 or max_completion_length < 1:
        raise AqaError(f"batch_size {batch_size} and max_completion_length {max_completion_length}: give 1 or more.")
    if not 0 <= seed < 2**32:
        raise AqaError(f"seed {seed}: give a whole number from 0 to {2**32 - 1}.")
    if audio not in inputs.HEARD:
        raise AqaError(f"audio {audio!r} is unknown; choose {', '.join(inputs.HEARD)}.")
    prompt.text(questions[0], style, wording)  # refuses unknown ones before anything is written
    sampling = sampling_of(model, decoding)
    questions = [shuffled(question, shuffle_choices, i) for i, question in enumerate(questions)]
    blank = [predictions.question_row(i, question) for i, question in enumerate(questions)]
    settings = {
        "style": style,
        "audio": audio,
        "shuffle_choices": shuffle_choices,
        "max_completion_length": max_completion_length,
        "decoding": decoding,
        **sampling,
        **({"wording": wording} if wording else {}),
    }
    if sampling["temperature"]:  # what is sampled depends on the batch as well
        settings |= {"seed": seed, "batch_size": batch_size}
    labels = {"batch_size": batch_size} | dict(labels or {})
    file = _Rows(path, [q.id for q in questions], partial(_record, model, blank, data, settings, labels, seed))
    batches = file.left(sorted_batches(questions, batch_size))
    # Under FSDP every rank must run the same number of batches; one with fewer repeats its filler and drops the result.
    batches = [batch for batch, _ in distributed.lockstep(model, batches, file.filler)]
    engine = engine or rollout.RolloutEngine(model, processor)
    room = context(model)
    asking = {"style": style, "heard": audio, "wording": wording}
    load = partial(_load, processor, questions, asking, on_error, room and room - max_completion_length)
    loaded = prefetch([batch for _, batch in batches], load)
    progress = progress and distributed.rank_and_world_size()[0] == 0
    bar = tqdm(total=len(questions), initial=len(file.rows), unit=" answers", disable=not progress)
    start, cut = time.monotonic(), 0
    fewer = f"lower the evaluation's batch size from {batch_size} to {max(1, batch_size // 2)}"
    try:
        for (number, batch), examples in zip(batches, loaded, strict=True):
            cut += sum(getattr(example, "cut", False) for example in examples)
            options = sampling | {"max_completion_length": max_completion_length, "seed": seed * 1_000_003 + number}
            with faults.memory_advice(lambda: fewer):
                replies = _reply(engine, processor, [questions[i] for i in batch], examples, model.device, options)
            for i, reply in zip(batch, replies, strict=True):
                if i not in file.rows:
                    file.add(blank[i] | read_reply(reply.pop("model_output"), questions[i]) | reply)
            bar.update(len(file.rows) - bar.n)
    finally:
        loaded.close()
        bar.close()
        file.close()
    if cut:
        longest = inputs.max_seconds(processor)
        logger.warning("%d of %d clips were cut to the %g s that the model hears.", cut, len(questions), longest)
    return file.finish(time.monotonic() - start)


def _record(model: nn.Module, blank: list[dict], data, settings: dict, labels: dict, seed: int) -> dict:
    """Return how a file of predictions is made. settings: what its answers depend on; labels: what else to say."""
    made_from = {
        "weights": weights_sha256(model),
        "data_sha256": files.sha256(file) if data and (file := tables.on_disk(data)) else None,
        "questions": files.fingerprint(blank),
    }
    return {
        "settings": made_from | settings,
        "labels": {"model": model_name(model), "data": Path(data).name if data else None} | labels,
        "counts": {key: Counter(predictions.group(row, key) for row in blank) for key in predictions.GROUPS},
        "environment": files.environment() | {"device": str(model.device), "dtype": str(model.dtype)},
        "scale": scale.get().name,
        "seed": seed,  # of the sampling, if there is any
        "started": files.now(),
    }


class _Rows:
    """The rows of a run, and the file that they are appended to; under torchrun each rank has a file of its own.

    rows: those already known, by index. Without a path nothing is written. record: returns the file's record.
    """

    def __init__(self, path: str | Path | None, ids: list[str], record: Callable[[], dict]):
        self.path, self.ids, self.rows, self.file = path, ids, {}, None
        self.rank, self.world_size = distributed.rank_and_world_size()
        if path is not None:
            self.meta = record()
            if self.rank == 0 and (self.world_size == 1 or Path(path).exists()):
                self.rows = predictions.resume(path, self.meta, ids)
        self.rows = distributed.gather(self.rows)[0]  # what rank 0 found

    def left(self, batches: list[list[int]]) -> list[tuple[int, list[int]]]:
        """Return this rank's batches that are not answered yet, with their numbers, and open its file.

        A batch that a kill cut in two is answered again as a whole, so that resuming changes no answer.
        """
        numbered = [*enumerate(batches)]
        self.filler = numbered[0]
        numbered = self._unanswered(numbered)[self.rank :: self.world_size]
        own = self.path
        if self.path is not None and self.world_size > 1:
            own = predictions.share_path(self.path, self.rank, self.world_size)
            self.rows |= predictions.resume(own, self.meta, self.ids)
        self.file = None if own is None else open(own, "ab", buffering=0)  # unbuffered: nothing to flush
        return self._unanswered(numbered)

    def _unanswered(self, batches: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
        return [(number, batch) for number, batch in batches if any(i not in self.rows for i in batch)]

    def add(self, row: dict) -> None:
        self.rows[row["index"]] = row
        if self.file:
            files.append(self.file, row)

    def close(self) -> None:
        if self.file:
            self.file.close()

    def finish(self, seconds: float) -> list[dict]:
        """Gather all ranks' rows, write the whole file, and return them in the questions' order."""
        for theirs in distributed.gather(self.rows):
            self.rows |= theirs
        ordered = [self.rows[i] for i in range(len(self.ids))]
        if self.file and self.rank == 0:
            if self.world_size > 1:
                predictions.resume(self.path, self.meta, self.ids)
            predictions.finish(self.path, ordered, seconds)
        if self.file and self.world_size > 1:
            distributed.gather(None)  # the whole file is written: the ranks' own files may go
            own = Path(self.file.name)
            own.unlink()
            predictions.meta_path(own).unlink()
        return ordered


def predict_controls(
    model,
    processor,
    questions,
    path: str | Path,
    names: Sequence[str] = tuple(predictions.CONTROLS),
    **options,
) -> dict[str, list[dict]]:
    """Answer the controls of a run, each into its file next to `path`, where `score` and `report` look for them.

    names: some of `predictions.CONTROLS`: "silent" (the clip's length in zeros), "shuffled" (choices in another
    order), "text-only" (no clip in the prompt); or of `predictions.ORDERS` and `WORDINGS`. options: the run's own, for
    `predict`.
    """
    return {
        name: predict(
            model,
            processor,
            questions,
            predictions.control_path(path, name),
            **options | (predictions.CONTROLS | predictions.ORDERS | predictions.WORDINGS)[name],
        )
        for name in names
    }


def _load(processor, questions, asking: dict, on_error: str, room: int | None, i: int) -> inputs.Example | AudioError:
    """Prepare one question in a background thread; a bad clip comes back as its error if it may be skipped."""
    try:
        example = inputs.prepare(processor, questions[i], **asking)
        inputs.refuse_long(example, questions[i], room)
        return example
    except AudioError as error:
        if on_error != "skip":
            raise
        return error


def _reply(engine, processor, questions: list, examples: list, device, sampling: dict) -> list[dict]:
    """Answer one batch: `model_output, tokens, ended` for each example, and `error` if its clip was bad."""
    usable = [pair for pair in zip(questions, examples, strict=True) if not isinstance(pair[1], AudioError)]
    answered = iter(())
    if usable:
        asked, ready = zip(*usable, strict=True)
        prompts = inputs.collate(processor, ready).to(device)
        answers = engine.generate(prompts, num_generations=1, questions=asked, **sampling)
        texts, tokens = rollout.decode(processor, answers), answers.mask.sum(-1)  # (B, 1) both
        answered = iter(zip(texts, tokens.tolist(), answers.ended.tolist(), strict=True))
    replies = []
    for example in examples:
        if isinstance(example, AudioError):
            replies.append({"model_output": None, "tokens": 0, "ended": False, "error": str(example)})
        else:
            (text,), (count,), (ended,) = next(answered)
            replies.append({"model_output": text, "tokens": count, "ended": ended})
    return replies


def sampling_of(model: nn.Module, decoding: str) -> dict:
    """Turn a decoding, one of `DECODINGS`, into sampling arguments of `RolloutEngine.generate`."""
    if decoding not in DECODINGS:
        raise AqaError(f"decoding {decoding!r} is unknown; choose {', '.join(DECODINGS)}.")
    if decoding == "greedy":
        return {"temperature": 0}
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}  # transformers' own
    if decoding == "sample":
        return usual
    told = {key: getattr(model.generation_config, key, None) for key in usual}
    sampling = {key: usual[key] if told[key] is None else told[key] for key in usual}
    for key, value in sampling.items():
        number = type(value) in (int, float) and 0 <= value < math.inf and (value or key in ("temperature", "top_k"))
        if not number or (key == "top_k" and type(value) is not int):
            raise ModelError(f"{model.name_or_path}: its generation_config.json says {key} {show(value)}; correct it.")
    return sampling if model.generation_config.do_sample else sampling | {"temperature": 0}


def shuffled(question: Question, seed: int | None, index: int) -> Question:
    """Reorder a question's choices by a seed and its index; None leaves them."""
    if seed is None:
        return question
    choices = list(question.choices)
    random.Random(f"{seed}/{index}").shuffle(choices)
    return replace(question, choices=tuple(choices))


def sorted_batches(questions: Sequence[Question], batch_size: int) -> list[list[int]]:
    """Cut questions into batches of similar length, longest first, so that a lack of memory shows at once."""
    heard = [min(seconds(q), MAX_SECONDS * max(1, len(q.clips))) for q in questions]
    lengths = [25 * sound + len(prompt.text(q, 2)) / 4 for sound, q in zip(heard, questions, strict=True)]  # in tokens
    order = sorted(range(len(questions)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def seconds(question: Question) -> float:
    """Return the clips' length; 0 for one that is not there (`audio.load` will say so; a fifo would block)."""
    return sum(length(clip) for clip in question.clips if isinstance(clip, bytes) or os.path.isfile(clip)) or 0.0


def read_reply(reply: str | None, question: Question) -> dict:
    """Return a reply as the second part of a prediction. reply: None if there is none."""
    answer = prompt.extract_answer(reply or "")
    correct = prompt.matches(answer, question.answer, question.choices) if question.answer else None
    return {"model_output": reply, "prediction": answer or "", "correct": correct}


def accuracy(rows: Sequence[Mapping]) -> dict[str, float]:
    """Return the strict accuracy by task, and "average" over all questions, from 0 to 1.

    >>> accuracy([{"task": "sound", "correct": True}, {"task": "music", "correct": False}])
    {'music': 0.0, 'sound': 1.0, 'average': 0.5}
    """
    tasks = sorted({predictions.group(row, "task") for row in rows} - {""})
    by = {task: [bool(row["correct"]) for row in rows if predictions.group(row, "task") == task] for task in tasks}
    by["average"] = [bool(row["correct"]) for row in rows]
    return {task: sum(right) / len(right) for task, right in by.items()}


@torch.no_grad()
def choice_probabilities(
    model: nn.Module, processor, question: Question, style: int = 2, heard: str = "heard", thought: str = ""
) -> dict[str, float]:
    """Compute each choice's probability of being the reply, `<answer>choice</answer>`; they add up to 1.

    style: prompt 1, 2 or 3. heard: as in `inputs.prepare`. thought: put into the model's mouth before it answers, tags
    and all. The prompt is run once for all choices; a choice's log-probability is the sum over its tokens, so long
    choices are unlikely for their length alone. Equal choices count as one. Raises AudioError if the clip cannot be
    used.
    """
    choices = list(dict.fromkeys(question.choices))
    replies = [thought + prompt.target(replace(question, answer=choice)) for choice in choices]
    tokens = processor.tokenizer(replies, add_special_tokens=False).input_ids
    width = max(map(len, tokens))
    ids = torch.tensor([[[*reply, *[0] * (width - len(reply))] for reply in tokens]])  # (1, G, C)
    mask = torch.arange(width) < torch.tensor([len(reply) for reply in tokens])[:, None]
    prompts = inputs.collate(processor, [inputs.prepare(processor, question, style, heard)])
    device, training = model.device, model.training
    model.eval()
    taught = inputs.Rollouts(prompts.to(device), ids.to(device), mask[None].to(device), mask.any(1)[None].to(device))
    logps, _ = completion_logps(model, taught)
    model.train(training)
    scores = logps[0].sum(-1).cpu().numpy().astype(np.float64)  # there, as Apple's GPUs have no float64
    odds = np.exp(scores - scores.max())
    return dict(zip(choices, (odds / odds.sum()).tolist(), strict=True))


def weights_sha256(model: nn.Module) -> str:
    """Hash up to 2,000 values of every parameter: enough to tell two checkpoints of one name apart, at any size."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().reshape(-1)
        values = flat[:: max(1, flat.numel() // 1024)].contiguous().cpu()
        digest.update(name.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def model_name(model: nn.Module) -> str:
    """Name a model by its hub id, or by the last two parts of its folder."""
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    return "/".join(Path(name).parts[-2:])
