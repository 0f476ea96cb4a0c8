"""Fine-tunes of a small language model, beside transformers and peft alone."""

import json

import pyarrow as pa
import pytest
import torch
from safetensors import safe_open

from tests.functions.training.peft_alone import learn_alone
from toque.functions.training import RecipeParams, TrainingDataError
from toque.functions.training.llm import FineTune, Lora, fine_tune
from toque.functions.training.llm.job import text_task, write_folder
from toque.functions.training.llm.network import Pretrained, adapted, new_network
from toque.functions.training.llm.texts import IGNORED, Tokens, packed, tokens_of_chat
from toque.functions.training.loop.process_group import SingleProcess
from toque.functions.training.loop.training_loop import Trainer
from toque.registry import Signature, Table, TensorSpec

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

TEMPLATE = "{% for m in messages %}<{{ m.role }}> {{ m.content }} </s> {% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
WORDS = [
    "<pad>",
    "</s>",
    "<user>",
    "<assistant>",
    *[
        "what",
        "is",
        "the",
        "sum",
        "of",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
    ],
]
PARAMS = RecipeParams(lr=5e-3, epochs=2, batch_size=4, weight_decay=0.0)
NUMBERS = WORDS[-9:]
SPEC = FineTune(base="tiny@1", length=32, lora=Lora(rank=4, alpha=8.0), params=PARAMS)
SMALL = Signature(
    inputs=[TensorSpec.model_validate({"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]})],
    outputs=[TensorSpec.model_validate({"name": "text", "datatype": "BYTES", "shape": [-1, 1]})],
)


def conversation(number: int) -> str:
    one, two = number % 4, number % 5
    question = f"what is the sum of {NUMBERS[one]} {NUMBERS[two]}"
    return json.dumps(
        [
            {"role": "user", "content": question},
            {"role": "assistant", "content": NUMBERS[min(8, one + two + 1)]},
        ]
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A Hugging Face folder of a Llama with random weights and a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    return pa.table({"messages": [conversation(number) for number in range(60)]})


def test_answers_alone_are_learnt(base):
    tokens = tokens_of_chat(transformers.AutoTokenizer.from_pretrained(base), conversation(0))
    learnt = [WORDS[label] for label in tokens.labels if label != IGNORED]
    assert learnt == ["two", "</s>"]
    assert [WORDS[token] for token in tokens.ids][:2] == ["<user>", "what"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("{}", "want a list"),
        ('[{"role": "user", "content": "is"}]', "without an answer"),
    ],
)
def test_a_conversation_that_cannot_be_learnt_is_refused(base, text, says):
    with pytest.raises(TrainingDataError, match=says):
        tokens_of_chat(transformers.AutoTokenizer.from_pretrained(base), text)


def test_packed_texts_do_not_see_each_other(base):
    texts = [Tokens([4, 5, 6, 7], [4, 5, 6, 7]), Tokens([9, 10, 11], [9, 10, 11])]
    together, alone = packed(texts, 8), [packed([text], 8) for text in texts]
    assert len(together) == 1
    assert together.positions.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert together.labels.tolist() == [[IGNORED, 5, 6, 7, IGNORED, 10, 11, IGNORED]]
    net = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    with torch.no_grad():
        both, *single = (
            net(input_ids=each.ids, position_ids=each.positions, use_cache=False).logits
            for each in (together, *alone)
        )
    torch.testing.assert_close(both[0, :4], single[0][0, :4])
    torch.testing.assert_close(both[0, 4:7], single[1][0, :3])


@pytest.mark.parametrize("lora", [SPEC.lora, None])
def test_the_loss_curve_is_that_of_peft_and_transformers_alone(base, rows, lora):
    spec = SPEC.model_copy(update={"lora": lora})
    task = text_task(spec, base, rows)
    ours = Trainer(new_network(base, lora), task, PARAMS, SingleProcess(), Pretrained(base, PARAMS.seed))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    theirs = adapted(theirs, lora) if lora else theirs
    alone = learn_alone(theirs, ours.learnt(), task, PARAMS)
    wanted = [sum(loss * tokens for loss, tokens in epoch) / sum(n for _, n in epoch) for epoch in alone]
    assert [ours.run_epoch().train_loss for _ in alone] == pytest.approx(wanted, abs=1e-4)


def test_a_fine_tune_ends_as_a_folder_that_transformers_opens(context, base, rows, tmp_path):
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    snapshot = Table(context.store, "training/sums").overwrite(rows)
    before, trained = PARAMS.model_copy(update={"lr": 1e-9, "epochs": 1}), PARAMS
    none = fine_tune("sums", "tiny@1", snapshot, length=32, params=before, register=False)
    tuned = fine_tune("sums", "tiny@1", snapshot, length=32, lora=SPEC.lora, params=trained)
    assert tuned.metrics["valid_loss"] < none.metrics["valid_loss"]
    registry.download("sums", tuned.version, to=tmp_path / "got")
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "got")
    assert not [name for name, _ in net.named_parameters() if "lora" in name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "got")
    assert tokenizer.chat_template == TEMPLATE
    with safe_open(tmp_path / "got" / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        assert all(".lora_" in name for name in file.keys())  # noqa: SIM118 - it is no mapping
    alone = transformers.AutoModelForCausalLM.from_pretrained(base)
    beside = peft.PeftModel.from_pretrained(alone, tmp_path / "got" / "adapter").eval()
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(beside(tokens).logits, net.eval()(tokens).logits, rtol=1e-4, atol=1e-4)
    record = registry.get_run(tuned.run_id).record()
    assert record.tags["base"] == "tiny@1"
    assert list(context.store.list("checkpoints/")) == []


def test_a_run_counts_answers_beyond_the_length(context, base, rows, caplog):
    registry = context.registry()
    registry.create_model("tiny")
    registry.create_version("tiny", base, signature=SMALL)
    long = json.loads(conversation(0)) * 5
    table = pa.table({"messages": [*rows["messages"].to_pylist()[:20], json.dumps(long), json.dumps(long)]})
    snapshot = Table(context.store, "training/sums").overwrite(table)
    params = PARAMS.model_copy(update={"epochs": 1})
    tuned = fine_tune("sums", "tiny@1", snapshot, length=32, params=params, register=False)
    tokens = tokens_of_chat(transformers.AutoTokenizer.from_pretrained(base), json.dumps(long))
    beyond = 2 * sum(
        place >= 32 and WORDS[token] == "</s>" and tokens.labels[place] != IGNORED
        for place, token in enumerate(tokens.ids)
    )
    assert beyond > 0
    assert registry.get_run(tuned.run_id).record().metrics["answers_beyond_length"] == beyond
    assert f"{beyond} answers do not end within length=32" in caplog.text


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lora", [SPEC.lora, None])
def test_the_result_has_the_number_format_of_its_base(base, tmp_path, stored, lora):
    begin, out, spec = tmp_path / "base", tmp_path / "out", SPEC.model_copy(update={"lora": lora})
    transformers.AutoModelForCausalLM.from_pretrained(base, dtype=stored).save_pretrained(begin)
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(begin)
    net = SingleProcess().place(new_network(begin, lora), Pretrained(begin, 0), half=False)
    learnt = {name: value for name, value in net.state_dict().items() if lora is None or ".lora_" in name}
    write_folder(begin, out, spec, learnt)
    assert json.loads((out / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    with (
        safe_open(begin / "model.safetensors", framework="pt") as before,
        safe_open(out / "model.safetensors", framework="pt") as after,
    ):
        for name in before.keys():  # noqa: SIM118 - it is no mapping
            assert torch.equal(before.get_tensor(name), after.get_tensor(name))  # nothing was learnt
