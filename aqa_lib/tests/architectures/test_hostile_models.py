"""Model folders that are broken in every way: each is refused in one sentence that names it, or answers as before."""

import json
import random
import shutil
from pathlib import Path

import pytest

from aqa_lib import evaluation, model, prompt, scale
from aqa_lib.architectures.foreign import ModelError, refuse_missing
from aqa_lib.large import planner

BASE = Path(scale.SCALES["tiny"].model)
VALUES = [..., None, "x", -1, 0, [], {}, 1.5, 1_000]
DRAWN = 20  # of some 600 changes of a value; another seed tries others


def fields(found: dict, above: tuple = ()):
    for key, value in found.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from fields(value, (*above, key))


def changes():
    """List (file, key, value): every field of every JSON file, with every value that may stand in its place."""
    for name in ("config.json", "generation_config.json", "processor_config.json", "tokenizer_config.json"):
        for key in fields(json.loads((BASE / name).read_text())):
            for value in VALUES:
                if not (value == 1_000 and key[-1].endswith("layers")):  # a thousand layers take seconds to build
                    yield name, key, value


FILES = [
    (name, content)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "processor_config.json", "model.safetensors")
    for content in (b"", b"[]", b"\xff\xfe\x00", b"[" * 5_000, "half", "folder")
]
FILES += [("generation_config.json", b"null"), ("chat_template.jinja", b"{{"), ("chat_template.jinja", b"no clip")]


@pytest.fixture
def folder(tmp_path):
    for file in BASE.iterdir():
        shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def refused(folder, questions) -> str | None:
    """Load a model and let it answer; return the sentence that refuses it, None where it answers."""
    try:
        policy, processor = model.load(folder)
        for decoding in ("greedy", "generation_config"):
            options = {"max_completion_length": 2, "decoding": decoding, "progress": False}
            evaluation.predict(policy, processor, questions[:1], **options)
    except ModelError as error:
        said = str(error)
        assert "\n" not in said and len(said) < 600 and said.startswith(str(folder)), said
        return said
    return None


@pytest.mark.parametrize(("name", "content"), FILES, ids=lambda value: str(value)[:20])
def test_a_broken_file_is_named(folder, questions, name, content):
    file = folder / name
    whole = file.read_bytes()
    file.unlink()
    if content == "folder":
        file.mkdir()
    else:
        file.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    said = refused(folder, questions)
    assert said and (name.split(".")[0].split("_")[0] in said or "weights" in said), said


@pytest.mark.parametrize(("name", "key", "value"), random.Random(0).sample([*changes()], DRAWN), ids=str)
def test_any_value_in_a_config_is_refused_in_a_sentence_or_harmless(folder, questions, name, key, value):
    found = json.loads((folder / name).read_text())
    inner = found
    for above in key[:-1]:
        inner = inner[above]
    if value is ...:
        del inner[key[-1]]
    else:
        inner[key[-1]] = value
    (folder / name).write_text(json.dumps(found))
    refused(folder, questions)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("eos_token_id", 1.5, "its generation_config.json says eos_token_id 1.5"),
        ("temperature", "x", "its generation_config.json says temperature 'x'"),
        ("top_k", -1, "its generation_config.json says top_k -1"),
        ("repetition_penalty", 0, "its generation_config.json says repetition_penalty 0"),
    ],
)
def test_a_generation_config_that_cannot_be(folder, questions, key, value, said):
    found = json.loads((folder / "generation_config.json").read_text()) | {"do_sample": True, key: value}
    (folder / "generation_config.json").write_text(json.dumps(found))
    assert said in refused(folder, questions)


def test_other_shapes_are_told_with_a_weight(folder, questions):
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["num_mel_bins"] = 80
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(folder, questions)
    assert "1 weights have other shapes than its config.json says, " in said and "conv1.weight among them" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/my model", "no such folder; check the path"),
        ("runs//x", "no such folder"),
        ("../nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("", "no such folder"),
        (__file__, "is a file; give the folder that contains it"),
    ],
)
def test_what_is_neither_a_folder_nor_a_hub_id(name, said):
    for read in (model.load, refuse_missing, lambda name: planner.skeleton(name, model.PARTS)):
        with pytest.raises(ModelError, match=said):
            read(name)


def test_a_dtype_that_does_not_exist():
    for read in (lambda: model.load(BASE, "x"), lambda: planner.skeleton(str(BASE), model.PARTS, dtype="x")):
        with pytest.raises(ModelError, match="dtype 'x' is unknown; choose from auto, float32, bfloat16, float16"):
            read()


@pytest.mark.parametrize("key", ["feature_size", "n_fft", "sampling_rate", "chunk_length"])
def test_sizes_that_take_minutes_are_refused_before_anything_is_built(folder, questions, monkeypatch, key):
    found = json.loads((folder / "processor_config.json").read_text())
    found["feature_extractor"][key] = 10**6
    (folder / "processor_config.json").write_text(json.dumps(found))
    monkeypatch.setattr(model.AutoConfig, "from_pretrained", lambda *args, **options: pytest.fail("it was built"))
    assert f"processor_config.json: {key} 1e+06 is more than" in refused(folder, questions)


def test_a_chat_template_without_end_is_stopped(folder, questions, monkeypatch):
    loops = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{% endfor %}" + (
        "{% endfor %}{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(loops)
    monkeypatch.setattr(model, "PATIENCE", 0.5)
    said = refused(folder, questions)
    assert "its chat template or processor took more than 0.5 s, as an endless one does" in said


def test_an_adapter_that_peft_saved_alone_has_the_processor_of_its_base(tmp_path, questions):
    """Without one of its own; with one, that is the one."""
    policy, processor = model.load(BASE, lora={"r": 2})
    policy.save_pretrained(tmp_path)
    assert not [name for name in model.PROCESSOR_FILES if (tmp_path / name).is_file()]
    _, read = model.load(tmp_path)
    text = prompt.messages(questions[0], 2)
    assert read.apply_chat_template(text) == processor.apply_chat_template(text)
    assert read.tokenizer.padding_side == "left" and len(read.tokenizer) == len(processor.tokenizer)
    processor.tokenizer.add_tokens(["<own>"])
    processor.save_pretrained(tmp_path)
    assert "<own>" in model.load(tmp_path)[1].tokenizer.get_vocab() and "<own>" not in read.tokenizer.get_vocab()
