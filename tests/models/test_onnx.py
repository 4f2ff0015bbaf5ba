"""An exported model gives the answers of the run, for questions and batches of any size."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from vqa_repro import export
from vqa_repro.data.vocabulary import MAX_QUESTION_LENGTH, Vocabulary
from vqa_repro.models.network import build, load_model, save_weights
from vqa_repro.recipe import load_recipe
from vqa_repro.run import Run, create_run, open_run
from vqa_repro.utils.errors import UserError

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

WORDS = Vocabulary(
    ("<pad>", "<unk>", *(f"word{i}" for i in range(40))), tuple(f"answer {i}" for i in range(12))
)
SAN = {"model.hidden": 24, "model.embedding": 16, "model.attention": 20}
CNN = {"model.filters": [8, 8, 8], "model.embedding": 16, "model.attention": 20}
HIECOATT = {"model.hidden": 24, "model.last_hidden": 20}
BASELINE = {"model.hidden": 24, "model.embedding": 16}
CASES = {
    "SAN, LSTM": ("san-2-lstm-coco-qa", SAN),
    "SAN, CNN": ("san-2-cnn-coco-qa", CNN),
    "SAN, LSTM of the authors' code": (
        "san-1-lstm-coco-qa",
        {**SAN, "model.fidelity": "released"},
    ),
    "SAN with a CNN of its own": ("easy-vqa", {**SAN, "data.picture_size": 32}),
    "HieCoAtt, parallel": ("hiecoatt-parallel-coco-qa", HIECOATT),
    "HieCoAtt, alternating": ("hiecoatt-alternating-coco-qa", HIECOATT),
    "question only": ("question-only-daquar", BASELINE),
    "deeper LSTM": ("deeper-lstm-daquar", BASELINE),
    "bag of words": ("bag-of-words-daquar", {"model.embedding": 16}),
    "Show, Ask, Attend": ("show-ask-attend-daquar", BASELINE),
}


def make_run(folder: Path, recipe_name: str, changes: dict[str, object]) -> Run:
    """Write a run with random weights, large enough for its answers to differ."""
    recipe = load_recipe(recipe_name, changes)
    cnn = recipe.data.features == "cnn"
    no_image = recipe.data.features == "none"
    made_by = {"backbone": "none" if cnn else "no picture" if no_image else "vgg19", "size": 32}
    channels = 3 if cnn else 1 if no_image else 10
    run = Run(folder, recipe, WORDS, {"channels": channels, "scale": 0.5, "made_by": made_by})
    create_run(run, {})
    torch.manual_seed(0)
    network = build(run)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
    save_weights(network, folder / "model.safetensors")
    return run


def questions(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.randint(1, MAX_QUESTION_LENGTH + 1, (count,))
    lengths[0], lengths[-1] = MAX_QUESTION_LENGTH, 1
    tokens = torch.randint(1, len(WORDS.words), (count, MAX_QUESTION_LENGTH))
    return tokens * (torch.arange(MAX_QUESTION_LENGTH) < lengths[:, None]), lengths


UNROLLED = ("SAN, LSTM of the authors' code", "question only", "deeper LSTM", "Show, Ask, Attend")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=[pytest.mark.slow] * (case in UNROLLED)) for case in CASES],
)
def test_onnxruntime_gives_the_answers_of_torch(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", *CASES[case])
    out = tmp_path / "models" / "model.onnx"
    assert export.main([str(run.folder), "--onnx", str(out)]) == 0
    shown = capfd.readouterr()
    assert shown.out.count("\n") == 1 and not shown.err
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    network = load_model(open_run(run.folder), torch.device("cpu"))
    outputs = [output.name for output in session.get_outputs()]
    for count in (1, 7):
        tokens, lengths = questions(count)
        features = torch.rand(count, 49, run.features["channels"])
        if run.recipe.data.features == "cnn":
            features = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8)
        with torch.inference_mode():
            expected = network(features, tokens, lengths)
        values = (features.numpy(), tokens.numpy(), lengths.numpy())
        inputs = dict(zip([i.name for i in session.get_inputs()], values, strict=True))
        assert list(inputs) == ["images" if features.ndim == 4 else "features", "tokens", "lengths"]
        found = dict(zip(outputs, session.run(None, inputs), strict=True))
        logits = found.pop("logits")
        assert expected.logits.std() > 0.1, "random weights too small to tell answers apart"
        np.testing.assert_allclose(logits, expected.logits, atol=1e-4)
        assert (logits.argmax(1) == expected.logits.argmax(1).numpy()).all()
        assert list(found) == [re.sub("[ /]", "_", name) for name in expected.attention]
        for weights, name in zip(found.values(), expected.attention, strict=True):
            np.testing.assert_allclose(weights, expected.attention[name], atol=1e-4)


def test_the_model_holds_words_and_answers(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CASES["bag of words"])
    export.main([str(run.folder), "--onnx", str(tmp_path / "model.onnx")])
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["words"]) == list(WORDS.words)
    assert json.loads(metadata["answers"]) == list(WORDS.answers)


def test_an_existing_file_and_an_unfinished_run_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", *CASES["bag of words"])
    out = tmp_path / "model.onnx"
    out.write_text("mine")
    with pytest.raises(UserError, match="exists"):
        export.main([str(run.folder), "--onnx", str(out)])
    assert out.read_text() == "mine"
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="unfinished"):
        export.main([str(run.folder), "--onnx", str(tmp_path / "other.onnx")])
    assert {path.name for path in tmp_path.iterdir()} == {"run", "model.onnx"}
