"""Which labels a model never gives, however often it is asked."""

import json

import pytest

from aqa_lib.__main__ import main
from aqa_lib.predictions import PredictionsError, read
from aqa_lib.results import unheard

RELATIONS = ("Sound", "Sound", "View", "View", "Both")


def tries(folder, *answers, seeds=(0, 1, 2), relations=RELATIONS):
    """Write one file a try; answers: for each try the choice given to each question; "dog" is right."""
    paths = []
    for given, seed in zip(answers, seeds, strict=False):
        rows = [
            {
                "index": i, "id": str(i), "task": "sound", "question": "?", "choices": ["dog", "cat"], "answer": "dog",
                "question_relation": relation, "model_output": text, "prediction": text, "correct": text == "dog",
            }
            for i, (relation, text) in enumerate(zip(relations, given, strict=True))
        ]  # fmt: skip
        paths.append(folder / f"try-{len(paths)}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {"questions": "same", "data_sha256": "same", "decoding": "sample", "seed": seed}
        record = {"settings": settings, "labels": {}, "counts": {"task": {"sound": len(rows)}}, "finished": "today"}
        paths[-1].with_name(f"{paths[-1].name}.meta.json").write_text(json.dumps(record))
    return paths


def test_only_what_every_try_gets_wrong_is_counted(tmp_path, capsys):
    files = tries(tmp_path, "dog cat cat cat cat".split(), "cat dog cat dog cat".split())
    found = unheard.tries([read(file) for file in files])
    counted = {name: (made.never.right, made.never.n) for name, made in found.items()}
    assert counted == {"Both": (1, 1), "Sound": (0, 2), "View": (1, 2), "all": (2, 5)}
    assert {name: made.right[0] for name, made in found.items()} == {"Both": 0, "Sound": 50, "View": 25, "all": 30}
    assert main(["score", *map(str, files), "--tries", "question_relation"]) == 0
    assert "| View | 2 | 50.0 [" in capsys.readouterr().out
    assert main(["score", *map(str, files), "--tries", "question_relation", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["groups"]["all"]["wrong_in_all"]["right"] == 2


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"seeds": (3,)}, "question_relation", "one file is one try"),
        ({"seeds": (3, 3)}, "question_relation", "the files' sampling seeds are 3, 3: make each with"),
        ({"seeds": (None, 3)}, "question_relation", "the same answers twice are one try"),
        ({"relations": [""] * 5}, "question_relation", "no row has 'question_relation'"),
        ({}, "colour", "no row has 'colour'; name a field"),
    ],
)
def test_what_is_not_several_tries_is_refused(tmp_path, options, key, message):
    with pytest.raises(PredictionsError, match=message):
        unheard.tries([read(file) for file in tries(tmp_path, ["cat"] * 5, ["cat"] * 5, **options)], key)
