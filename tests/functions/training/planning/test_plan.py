"""Plans of trainings, beside what others have published of theirs and what hand calculations give."""

import json
from dataclasses import replace

import pytest

from toque.functions.training.planning import CARDS, Decoder, Setup, plan, proposed

LLAMA_8B = Decoder(32, 4096, 32, 8, 128, 14_336, 128_256)
LLAMA2_7B = Decoder(32, 4096, 32, 32, 128, 11_008, 32_000)
GPT2 = Decoder(12, 768, 12, 12, 64, 3_072, 50_257, gated=False, tied=True, positions=1_024)
SMOLLM2 = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "tie_word_embeddings": True, "vocab_size": 49_152,
}  # fmt: skip
GIB = 2**30


def test_sizes_are_read_and_weights_are_counted_as_published():
    assert LLAMA_8B.parameters == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA2_7B.parameters == pytest.approx(6.74e9, rel=1e-3)
    assert GPT2.parameters == pytest.approx(124.4e6, rel=1e-3)
    assert Decoder.of(SMOLLM2).parameters == pytest.approx(134.5e6, rel=1e-3)


def test_a_published_run_with_full_recomputation_holds_as_much_as_was_published():
    # Source: torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, table 2: FSDP 8, 32,768 tokens, one row, 83.9 GiB
    found = plan(LLAMA_8B, Setup(8, 8, 32_768, recompute=True), CARDS["h100"])
    assert found.memory_bytes / GIB == pytest.approx(83.9, rel=0.1)


@pytest.mark.parametrize(
    ("model", "setup", "card", "tokens", "hours"),
    [
        # Source: torchtitan, the same page, table 1: 5,762 tokens/s a card; selective recomputation lies between none and all
        (LLAMA_8B, Setup(8, 16, 8_192, recompute=True), "h100", 5_762 * 3_600.0, 1.0),
        # Source: Touvron et al., Llama 2, 2023, table 2: 184,320 A100 hours for two trillion tokens
        (LLAMA2_7B, Setup(512, 1_024, 4_096), "a100", 2e12, 184_320.0),
        # Source: nanoGPT's README and config/train_gpt2.py: 600,000 steps of 480 rows, about 4 days on eight A100 of 40 GB
        (GPT2, Setup(8, 480, 1_024, "replicate", accumulate=5), "a100-40", 6e5 * 480 * 1_024, 8 * 96.0),
    ],
)  # fmt: skip
def test_published_runs_took_what_a_plan_says_within_a_quarter(model, setup, card, tokens, hours):
    assert plan(model, setup, CARDS[card]).card_hours(tokens) == pytest.approx(hours, rel=0.25)


def test_state_is_sixteen_bytes_a_weight_and_is_shared_by_shards():
    small = Decoder(2, 64, 4, 4, 16, 256, 1_000)
    one = plan(small, Setup(1, 4, 8, "replicate", accumulate=2), CARDS["h100"]).memory
    assert one["weights and moments"] == 12 * small.parameters
    assert one["gradients"] == 4 * small.parameters
    four = plan(small, Setup(4, 8, 8, accumulate=2), CARDS["h100"]).memory
    assert four["weights and moments"] == 3 * small.parameters
    assert four["gathered weights"] > 0 == one["gathered weights"]


def test_adapters_hold_moments_for_themselves_only_and_save_a_third_of_the_arithmetic():
    whole, adapted = (
        plan(LLAMA_8B, Setup(1, 1, 512, "replicate", lora=rank), CARDS["h100"]) for rank in (0, 16)
    )
    assert adapted.memory["weights and moments"] < 0.36 * whole.memory["weights and moments"]
    assert adapted.step["arithmetic"] == pytest.approx(whole.step["arithmetic"] * 2 / 3)


@pytest.mark.parametrize(("half", "frozen"), [(True, 2), (False, 4)])
@pytest.mark.parametrize("cards", [1, 4])
def test_frozen_weights_are_planned_in_the_precision_and_learnt_ones_with_moments(half, frozen, cards):
    setup = Setup(cards, 4, 512, "shard", half=half, lora=16)
    learnt = LLAMA_8B.adapters(16)
    found = plan(LLAMA_8B, setup, CARDS["h100"]).memory["weights and moments"]
    assert found == pytest.approx((frozen * LLAMA_8B.parameters + 12 * learnt) / cards)
    whole = plan(LLAMA_8B, replace(setup, lora=0), CARDS["h100"]).memory["weights and moments"]
    assert whole == pytest.approx(12 * LLAMA_8B.parameters / cards)


def test_the_proposal_fits_and_takes_more_cards_only_where_none_fits():
    found = proposed(LLAMA_8B, Setup(1, 64, 8_192), CARDS["h100"])
    assert found is not None
    assert found.fits
    assert found.setup.cards == 4
    fits_one = proposed(GPT2, Setup(1, 64, 1_024), CARDS["l4"])
    assert fits_one is not None
    assert (fits_one.setup.cards, fits_one.setup.recompute) == (1, False)
    assert proposed(LLAMA_8B, Setup(1, 2, 8_192), CARDS["t4"]) is None


def test_layers_are_split_where_none_fits_otherwise():
    wide = Decoder(8, 16_384, 128, 8, 128, 53_248, 32_000)  # two gathered blocks are 13 GB, of 14.7 usable
    asked = Setup(1, 64, 512)
    found = proposed(wide, asked, CARDS["t4"])
    assert found is not None
    assert found.fits
    assert (found.setup.tensor, found.setup.sharding) == (4, "shard")
    assert "tensor=4" in found.setup.words
    for tensor in (1, 2):
        assert not plan(wide, replace(found.setup, tensor=tensor, accumulate=1), CARDS["t4"]).fits
    for model, batch in ((LLAMA_8B, 64), (GPT2, 64)):
        fits = proposed(model, Setup(1, batch, 1_024), CARDS["h100"])
        assert fits is not None
        assert fits.setup.tensor == 1


def test_cards_that_split_layers_share_a_block_and_what_it_keeps_and_take_the_same_rows():
    one, four = (plan(LLAMA_8B, Setup(8, 16, 1_024, tensor=each), CARDS["h100"]) for each in (1, 4))
    outer, block = LLAMA_8B.outer_parameters, LLAMA_8B.block_parameters
    assert four.setup.tokens == 4 * one.setup.tokens
    assert four.memory["weights and moments"] == one.memory["weights and moments"]
    assert four.memory["gathered weights"] == 2 * (outer + 2 * block / 4)
    # of a token two bytes a number: 6 x 4096 of the norms, and a quarter of 32 x 128 x 3 + 8 x 128 x 2 + 4 x 14336
    assert four.memory["activations"] == 32 * four.setup.tokens * 2 * (
        6 * 4_096 + (12_288 + 2_048 + 57_344) / 4
    )
    # sums of 8192 tokens x 4096 x 2 bytes, 4 of each of 32 blocks, 3/4 of each sent twice over 450 GB/s
    waits = 4 * 32 * 8_192 * 4_096 * 2 * 1.5 / 450e9
    assert four.step["communication"] >= waits
    assert waits == pytest.approx(0.0286, rel=0.01)


def test_a_mesh_that_cannot_be_is_refused_with_what_it_has_to_divide():
    for tensor in (3, 16):
        with pytest.raises(
            ValueError,
            match=rf"tensor={tensor} of 16 cards: it divides the cards, and the model's heads \(32\)",
        ):
            plan(LLAMA_8B, Setup(16, 16, 512, tensor=tensor), CARDS["h100"])
    with pytest.raises(ValueError, match="without adapters"):
        plan(LLAMA_8B, Setup(16, 16, 512, tensor=2, lora=8), CARDS["h100"])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (SMOLLM2 | {"hidden_size": "576"}, "hidden_size or n_embd is '576'; want a whole number"),
        (SMOLLM2 | {"num_local_experts": 8}, "has experts: only dense decoders"),
    ],
)
def test_what_is_no_dense_decoder_is_refused_by_field(config, says):
    with pytest.raises(ValueError, match=says):
        Decoder.of(config)


def test_a_step_needs_a_row_for_each_piece(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    with pytest.raises(ValueError, match="batch=4 rows for 2 cards with accumulate=4"):
        plan(Decoder.read(tmp_path), Setup(2, 4, 8, accumulate=4), CARDS["l4"])
    with pytest.raises(ValueError, match=r"no such file; give a Hugging Face folder"):
        Decoder.read(tmp_path / "none")


@pytest.mark.parametrize(("lora", "passes"), [(0, 3), (16, 2)])
def test_validation_is_a_forward_pass_over_the_rows_held_out(lora, passes):
    setup = Setup(1, 8, 512, "replicate", accumulate=4, lora=lora)
    without, scored = (plan(LLAMA_8B, replace(setup, valid=share), CARDS["h100"]) for share in (0.0, 0.2))
    # of five rows four are learnt from, in so many passes, and one is read once
    assert scored.step["validation"] == pytest.approx(scored.step["arithmetic"] / passes / 4)
    assert scored.step_s == pytest.approx(without.step_s + scored.step["validation"])
    assert scored.memory == without.memory
    with pytest.raises(ValueError, match=r"valid=1\.0: the share"):
        plan(LLAMA_8B, replace(setup, valid=1.0), CARDS["h100"])
