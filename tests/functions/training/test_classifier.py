"""Classifiers of texts: from a Hugging Face folder to one, judged, served and swept as any other model."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.functions.training.test_llm import SMALL, WORDS, base
from toque.functions.evaluation import Gate
from toque.functions.evaluation.offline_gate import evaluate_gate
from toque.functions.model_formats.sandbox import Sandbox, SandboxLimits
from toque.functions.project import ModelDefinition
from toque.functions.training import (
    ArtifactRefused,
    Lora,
    RecipeParams,
    TextClassifier,
    TrainingDataError,
    load,
)
from toque.functions.training.llm.classifier_job import ClassifierTask, LabelledTexts, classifier_task
from toque.functions.training.llm.network import Pretrained, new_classifier
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.functions.training.model import train_declared
from toque.registry import Signature, Table, TensorSpec

transformers = pytest.importorskip("transformers")

__all__ = ["base"]  # a fixture
PARAMS = RecipeParams(lr=5e-3, epochs=3, batch_size=16, weight_decay=0.0)
FRUIT, TOOL, BOTH = WORDS[-9:-6], WORDS[-6:-3], WORDS[4:9]


def classifier(lora=None):
    return TextClassifier(base="enc@1", length=16, params=PARAMS, lora=lora)


@pytest.fixture(scope="module")
def encoder(base, tmp_path_factory):
    """A Hugging Face folder of a BERT with random weights, as a masked language model is saved, and the same tokenizer."""
    folder = tmp_path_factory.mktemp("encoder")
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=64, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    return folder


def texts(count=400, seed=0):
    """Rows whose class is that of the one word of its list, anywhere in the text."""
    draw = np.random.default_rng(seed)
    kinds = draw.integers(0, 2, count)
    rows = []
    for kind in kinds:
        words = [*draw.choice(BOTH, draw.integers(2, 7)), draw.choice([FRUIT, TOOL][kind])]
        rows.append(" ".join(draw.permutation(words)))
    return rows, kinds


def table(outcome):
    rows, kinds = texts()
    labels = {
        "binary": kinds.astype(float),
        "multiclass": np.array(["fruit", "tool"])[kinds],
        "multilabel": [["fruit"] if kind == 0 else ["tool", "long"] for kind in kinds],
    }
    return pa.table({"text": rows, "kind": pa.array(list(labels[outcome]))})


def definition(outcome, trainer):
    given = {"name": "kinds", "entities": "kinds/rows", "label": "kind", "categorical": ("text",)}
    return ModelDefinition(outcome=outcome, trainer=trainer, **given)


def trained(context, folder, outcome, trainer):
    registry = context.registry()
    registry.create_model("enc")
    registry.create_version("enc", folder, signature=SMALL)
    snapshot = Table(context.store, "training/kinds").overwrite(table(outcome))
    found = train_declared(
        definition(outcome, trainer),
        snapshot,
        parameters={},
        features={},
        datasets=[],
        parent=None,
        tags={},
    )
    return registry, found


@pytest.mark.parametrize(
    ("outcome", "lora"), [("binary", None), ("multiclass", Lora(rank=4, alpha=8.0)), ("multilabel", None)]
)
def test_a_classifier_is_learnt_measured_and_opened_by_transformers(
    context, encoder, tmp_path, outcome, lora
):
    registry, found = trained(context, encoder, outcome, classifier(lora=lora))
    assert found.metrics["log_loss"] < 0.5
    curve = [point.value for point in registry.get_run(found.run_id).series("valid_loss")]
    assert min(curve) == pytest.approx(found.metrics["log_loss"], abs=1e-4)  # as it is served
    folder = registry.download("kinds", found.version, to=tmp_path / "got")
    net = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 16
    rows, _ = texts(40, seed=1)
    version = registry.get_version("kinds", found.version)
    served = load(folder, signature=version.signature).predict({"categorical": np.array([rows]).T})
    ((name, answers),) = served.items()
    with torch.inference_mode():
        logits = net.eval()(**tokenizer(rows, padding=True, return_tensors="pt")).logits
    wanted = logits.sigmoid() if outcome == "multilabel" else logits.softmax(-1)
    wanted = wanted[:, 1:] if outcome == "binary" else wanted
    np.testing.assert_allclose(answers, wanted.numpy(), atol=1e-5)
    assert name == version.signature.outputs[0].name
    if outcome != "binary":
        assert [net.config.id2label[n] for n in range(net.config.num_labels)] == version.signature.outputs[
            0
        ].columns
    assert list(context.store.list("checkpoints/")) == []


def test_a_causal_language_model_becomes_a_classifier_that_its_gate_judges(context, base):
    _, found = trained(context, base, "multiclass", classifier())
    held = Table(context.store, "gate/kinds").overwrite(table("multiclass"))
    judged = evaluate_gate(
        "kinds",
        found.version,
        held,
        label="kind",
        gate=Gate(max_log_loss_ratio={"constant": 0.9}, max_ece=0.3),
    )
    assert judged.passed, judged
    assert judged.metrics["accuracy"] > 0.8


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_process_that_loads_models_first_reads_a_classifier(encoder, tmp_path):
    folder = tmp_path / "classifier"
    transformers.AutoModelForSequenceClassification.from_pretrained(encoder).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    signature = Signature(
        inputs=[TensorSpec(name="text", datatype="BYTES", shape=[-1, 1])],
        outputs=[TensorSpec(name="probability", datatype="FP32", shape=[-1, 1])],
        example={"text": [["one two"], ["what is the sum"]]},
    )
    limits = SandboxLimits(wall_s=600.0)
    sandbox = Sandbox(limits, verdicts=tmp_path / "verdicts", environment={"PATH": "/usr/bin:/bin"})
    try:
        sandbox.check(folder, signature)
    finally:
        sandbox.close()


def test_the_loss_curve_is_that_of_transformers_alone(encoder):
    outcome = table("binary")
    spec = classifier()
    labelled = LabelledTexts(None, ("text",), "kind", "binary", ("0", "1"))
    net, head = new_classifier(encoder, None, ("0", "1"), several=False)
    task: ClassifierTask = classifier_task(spec, encoder, labelled, outcome, head.fields)
    assert [*task.train.fields] == ["input_ids", "attention_mask"]
    ours = Trainer(net, task, PARAMS, SingleProcess(), Pretrained(encoder, 0, head))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    for name, value in theirs.base_model.named_parameters():
        if "pooler" not in name:  # which the masked model has none of
            torch.testing.assert_close(value, dict(ours.net.base_model.named_parameters())[name])
    theirs.load_state_dict(ours.net.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=PARAMS.lr, weight_decay=0.0)
    cycle = torch.optim.lr_scheduler.LambdaLR(optimizer, ours._updates._rate)
    total, steps = 0.0, task.train_rows // 16
    order = torch.randperm(task.train_rows, generator=torch.Generator().manual_seed(0))
    for step in range(steps):
        *fields, labels = task.train_batch(order[step * 16 : step * 16 + 16])
        loss = theirs(**dict(zip(task.train.fields, fields, strict=True)), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        cycle.step()
        optimizer.zero_grad()
        total += float(loss.detach())
    assert ours.run_epoch().train_loss == pytest.approx(total / steps, abs=1e-4)


def test_settings_are_parameters_that_sweeps_vary():
    changed = classifier().with_parameters({"lr": 1e-3, "length": 32, "lora": {"rank": 2}})
    assert (changed.params.lr, changed.params.epochs, changed.length) == (1e-3, 3, 32)
    assert changed.lora.rank == 2
    assert changed.with_parameters(changed.parameters) == changed
    with pytest.raises(TrainingDataError, match="do not fit 'text_classifier'"):
        classifier().with_parameters({"rate": 1.0})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outcome": "number"}, "learns binary, multiclass, multilabel, not 'number'"),
        ({"numeric": ("length",)}, r"reads one column of texts, or two, not .* beside \['length'\]"),
        ({"categorical": ("a", "b", "c")}, "one column of texts, or two"),
    ],
)
def test_what_a_classifier_cannot_read_is_refused_when_it_is_declared(changes, says):
    given = {"name": "kinds", "entities": "kinds/rows", "label": "kind", "categorical": ("text",)}
    with pytest.raises(ValueError, match=says):
        ModelDefinition(**{"outcome": "binary", **given, **changes}, trainer=classifier())


def test_a_language_model_is_no_classifier(context, base):
    with pytest.raises(ArtifactRefused, match="language models are registered for engines"):
        load(base, signature=SMALL)
