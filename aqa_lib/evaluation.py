"""Let a model answer questions, and score its answers.

`rollout -> trainer -> [evaluation] -> inspection`. `predict` writes one JSON line a question; `score` reads
any such file, ours or not, without a model. It deviates from the report on purpose: greedy decoding unless
asked (the report samples, as the checkpoint's generation config says), batches sorted by length, clips
decoded in the background, and three scores side by side: MMAU's official rule, strict equality, and the share
of replies that cannot be read.
"""

import hashlib
import logging
import os
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

import soundfile
import torch
from torch import nn
from tqdm.auto import tqdm

from . import inputs, predictions, prompt, rollout, scale
from .audio import AudioError
from .dataset import Question
from .logps import completion_logps
from .runtime import distributed, faults, files
from .runtime.errors import AqaError

logger = logging.getLogger(__name__)

AHEAD = 2  # batches that are decoded while the model answers another


def predict(
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
    progress: bool = True,
    data: str | Path | None = None,
    labels: Mapping | None = None,
    on_error: str = "raise",
    engine: rollout.RolloutEngine | None = None,
) -> list[dict]:
    """Answer questions and return one row each, in the questions' order; write them to `path` as they come.

    style: prompt 1, 2 or 3. decoding: "greedy", or "generation_config" to sample with the checkpoint's own
    values and `seed`. audio: "heard", or the controls "silent" and "none" (text alone). shuffle_choices: a
    seed that reorders every question's choices. data: the file that the questions came from, for the record.
    labels: what else the record should say, such as `method` and `train_seed`. on_error: "skip" leaves a
    question whose clip cannot be used without a prediction, which counts as wrong. A `path` that exists is
    resumed. Processes that torchrun started answer a share each, and all return all rows.

    Rows: `index, id, task, question, choices, answer, model_output, prediction` (the answer read from it, ""
    where none can be)`, correct` (strict; None where the answer is withheld)`, tokens, ended` and MMAU's
    further keys. Raises AqaError for bad arguments, PredictionsError for a file made with other settings,
    AudioError for a bad clip, RunError where a GPU's memory is full or a clip is never ready.
    """
    if not questions:
        raise AqaError("there are no questions to answer; check the file and the limit.")
    if batch_size < 1 or max_completion_length < 1:
        raise AqaError(f"batch_size {batch_size} and max_completion_length {max_completion_length}: give 1 or more.")
    if audio not in inputs.HEARD:
        raise AqaError(f"audio {audio!r} is unknown; choose {', '.join(inputs.HEARD)}.")
    prompt.text(questions[0], style)  # refuses an unknown style before anything is written
    sampling = sampling_of(model, decoding)
    questions = [shuffled(question, shuffle_choices, i) for i, question in enumerate(questions)]
    blank = [question_row(i, question) for i, question in enumerate(questions)]
    rows: dict[int, dict] = {}
    rank, processes = distributed.rank_and_world_size()
    first, own = rank == 0, path
    if path is not None:
        settings = {
            "weights": weights_sha256(model),
            "data_sha256": files.sha256(data) if data else None,
            "questions": files.fingerprint(blank),
            "style": style,
            "audio": audio,
            "shuffle_choices": shuffle_choices,
            "max_completion_length": max_completion_length,
            "decoding": decoding,
            **sampling,
        }
        if sampling["temperature"]:  # what is sampled depends on the batch as well
            settings |= {"seed": seed, "batch_size": batch_size}
        name = Path(data).name if data else None
        meta = {
            "settings": settings,
            "labels": {"model": model_name(model), "data": name, "batch_size": batch_size, **(labels or {})},
            "counts": {key: Counter(predictions.group(row, key) for row in blank) for key in predictions.GROUPS},
            "environment": files.environment() | {"device": str(model.device), "dtype": str(model.dtype)},
            "scale": scale.get().name,
            "seed": seed,  # of the sampling, where there is any
            "started": files.now(),
        }
        ids = [question.id for question in questions]
        if first and (processes == 1 or Path(path).exists()):
            rows = predictions.resume(path, meta, ids)
    every = batches = list(enumerate(sorted_batches(questions, batch_size)))
    # A batch that a kill cut in two is answered again as a whole, so that resuming changes no answer.
    rows = distributed.gather(rows)[0]  # what the first process found
    batches = [(number, batch) for number, batch in batches if any(i not in rows for i in batch)]
    if processes > 1:
        batches = batches[rank::processes]
        if path is not None:
            own = predictions.share_path(path, rank, processes)
            rows |= predictions.resume(own, meta, ids)
            batches = [(number, batch) for number, batch in batches if any(i not in rows for i in batch)]
    # Where the model is shared out all must ask as many batches: who has fewer asks the first of all again.
    batches = [batch for batch, _ in distributed.lockstep(model, batches, every[0])]
    engine = engine or rollout.RolloutEngine(model, processor)
    work = partial(_load, processor, questions, style, audio, on_error)
    loaded = prefetch([batch for _, batch in batches], work)
    bar = tqdm(total=len(questions), initial=len(rows), unit=" answers", disable=not (progress and first))
    file = open(own, "ab", buffering=0) if own is not None else None  # what is written is there: nothing to flush
    start, cut = time.monotonic(), 0
    try:
        for (number, batch), examples in zip(batches, loaded, strict=True):
            own_seed = seed * 1_000_003 + number  # of this batch
            cut += sum(getattr(example, "cut", False) for example in examples)
            with faults.memory_advice(
                lambda: f"lower the evaluation's batch size from {batch_size} to {max(1, batch_size // 2)}"
            ):
                options = {"max_completion_length": max_completion_length, "seed": own_seed} | sampling
                replies = _reply(engine, processor, [questions[i] for i in batch], examples, model.device, options)
            for i, reply in zip(batch, replies, strict=True):
                if i not in rows:
                    rows[i] = blank[i] | read_reply(reply.pop("model_output"), questions[i]) | reply
                    if file:
                        files.append(file, rows[i])
            bar.update(len(rows) - bar.n)
    finally:
        loaded.close()
        bar.close()
        if file:
            file.close()
    if cut:
        longest = inputs.max_seconds(processor)
        logger.warning("%d of %d clips were cut to the %g s that the model hears.", cut, len(questions), longest)
    for theirs in distributed.gather(rows):
        rows |= theirs
    ordered = [rows[i] for i in range(len(questions))]
    if file and first:
        if processes > 1:
            predictions.resume(path, meta, ids)
        predictions.finish(path, ordered, time.monotonic() - start)
    if file and processes > 1:
        distributed.gather(None)  # the whole is written: the shares may go
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
    """Answer the controls of a run, each into its file beside `path`, where `score` and `report` look for
    them.

    names: of `predictions.CONTROLS`: "silent" (the clip's length in zeros), "shuffled" (choices in another
    order), "text-only" (no clip in the prompt). options: those of the run, for `predict`.
    """
    return {
        name: predict(
            model,
            processor,
            questions,
            predictions.control_path(path, name),
            **options | predictions.CONTROLS[name],
        )
        for name in names
    }


def _load(processor, questions, style: int, audio: str, on_error: str, i: int) -> inputs.Example | AudioError:
    """Prepare one question in a background thread; a bad clip comes back as its error where it may be
    skipped."""
    try:
        return inputs.prepare(processor, questions[i], style, audio)
    except AudioError as error:
        if on_error != "skip":
            raise
        return error


def _reply(engine, processor, questions: list, examples: list, device, sampling: dict) -> list[dict]:
    """Answer one batch: `model_output, tokens, ended` for each example, `error` where its clip was bad."""
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
    """Turn a decoding, "greedy" or "generation_config", into arguments of `rollout.sample`."""
    if decoding == "greedy":
        return {"temperature": 0}
    if decoding != "generation_config":
        raise AqaError(f"decoding {decoding!r} is unknown; choose greedy or generation_config.")
    usual = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}  # transformers' own
    told = {key: getattr(model.generation_config, key, None) for key in usual}
    sampling = {key: usual[key] if told[key] is None else told[key] for key in usual}
    return sampling if model.generation_config.do_sample else sampling | {"temperature": 0}


def shuffled(question: Question, seed: int | None, index: int) -> Question:
    """Reorder a question's choices by a seed and its place; None leaves them."""
    if seed is None:
        return question
    choices = list(question.choices)
    random.Random(f"{seed}/{index}").shuffle(choices)
    return replace(question, choices=tuple(choices))


def sorted_batches(questions: Sequence[Question], batch_size: int) -> list[list[int]]:
    """Cut questions into batches of like length, longest first, so that a lack of memory shows at once."""
    lengths = [25 * seconds(q) + len(prompt.text(q, 2)) / 4 for q in questions]  # about their tokens
    order = sorted(range(len(questions)), key=lambda i: -lengths[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def seconds(question: Question) -> float:
    """Read a clip's length from its header; 0 where there is none (`audio.load` will say what is wrong)."""
    if question.audio is None or (not isinstance(question.audio, bytes) and not Path(question.audio).is_file()):
        return 0.0  # a fifo would be waited on
    try:
        source = BytesIO(question.audio) if isinstance(question.audio, bytes) else str(question.audio)
        return soundfile.info(source).duration
    except (soundfile.SoundFileError, OSError):
        return 0.0


def prefetch(
    batches: Sequence[Sequence[int]], work: Callable, ahead: int = AHEAD, patience: float = faults.PATIENCE
) -> Iterator[list]:
    """Yield `[work(i) for i in batch]` for each batch, worked out in threads while earlier batches are
    used.

    Raises RunError where one is not done after `patience` seconds of waiting. The threads are daemons, which an
    executor's are not: one that hangs must not keep the program from ending.
    """
    jobs: SimpleQueue = SimpleQueue()
    waiting: deque[list[tuple[int, Future]]] = deque()
    threads = [Thread(target=_work_off, args=(jobs, work), daemon=True) for _ in range(min(8, os.cpu_count() or 1))]
    for thread in threads:
        thread.start()

    def results() -> list:
        made = []
        for i, future in waiting.popleft():
            try:
                made.append(future.result(patience))
            except TimeoutError as error:
                raise faults.RunError(
                    f"clip {i + 1} was not ready after {patience:g} s of waiting: its decoding hangs; check the file, "
                    "then run it again, which goes on where this stopped."
                ) from error
        return made

    try:
        for batch in batches:
            waiting.append([(i, Future()) for i in batch])
            for job in waiting[-1]:
                jobs.put(job)
            if len(waiting) > ahead:
                yield results()
        while waiting:
            yield results()
    finally:
        for batch in waiting:
            for _, future in batch:
                future.cancel()
        for _ in threads:
            jobs.put(None)


def _work_off(jobs: SimpleQueue, work: Callable) -> None:
    while (job := jobs.get()) is not None:
        i, future = job
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(work(i))
            except BaseException as error:  # whatever it is, it is raised where the result is wanted
                future.set_exception(error)


def question_row(index: int, question: Question) -> dict:
    """Write a question as the first part of a prediction."""
    kept = {key: question.meta[key] for key in predictions.KEPT if key in question.meta}
    return {
        "index": index,
        "id": question.id,
        "task": question.task,
        "question": question.question,
        "choices": list(question.choices),
        "answer": question.answer,
    } | kept


def read_reply(reply: str | None, question: Question) -> dict:
    """Write a reply as the second part of a prediction; None where there is none."""
    answer = prompt.extract_answer(reply or "")
    correct = prompt.matches(answer, question.answer, question.choices) if question.answer else None
    return {"model_output": reply, "prediction": answer or "", "correct": correct}


def accuracy(rows: Sequence[Mapping]) -> dict[str, float]:
    """Give the strict accuracy by task, and "average" over all questions, from 0 to 1.

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
    """Give each choice's probability of being the reply, `<answer>choice</answer>`; they add up to 1.

    style: prompt 1, 2 or 3. heard: as in `inputs.prepare`. thought: put into the model's mouth before it answers, tags
    and all. The prompt is run once for all choices; a choice's log-probability is the sum over its tokens, so that long
    choices are unlikely for their length alone. Equal choices are one. Raises AudioError where the clip cannot be used.
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
    return dict(zip(choices, logps[0].sum(-1).double().softmax(-1).tolist(), strict=True))


def weights_sha256(model: nn.Module) -> str:
    """Hash up to 2,000 values of every parameter: enough to tell two checkpoints of one name apart, at any
    size."""
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
