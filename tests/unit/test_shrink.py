"""A base model's config.json, shrunk for a rehearsal."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.module_utils.lora_forge.planning import base_models, memory, rehearsal, shrink
from families import FAMILIES, HEAD


def small(**config):
    return shrink.shrink(config)["config"]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_becomes_small_and_stays_what_it_is(name):
    base = FAMILIES[name].config
    made = shrink.shrink(base)["config"]
    text, before = made.get("text_config", made), base.get("text_config", base)
    assert made["model_type"] == base["model_type"]
    assert len(made["architectures"]) == 1
    assert (text["hidden_size"], text["head_dim"], text["num_attention_heads"]) == (64, 32, 2)
    assert text["num_key_value_heads"] == (1 if before["num_key_value_heads"] < before["num_attention_heads"] else 2)
    assert text["num_hidden_layers"] == 2
    assert "quantization_config" not in json.dumps(made)
    assert ("vision_config" in made) == ("vision_config" in base)


def test_a_hybrid_keeps_one_layer_of_each_kind_in_their_order():
    listed = ["linear_attention"] * 3 + ["full_attention"]
    text = small(model_type="qwen3_5_text", num_hidden_layers=32, layer_types=listed * 8)
    assert text["layer_types"] == ["linear_attention", "full_attention"]
    assert text["linear_num_value_heads"] == 2 * text["linear_num_key_heads"]
    # Its maker may leave them out, and say how often the other one comes.
    told = small(model_type="qwen3_5_text", num_hidden_layers=4, full_attention_interval=2)
    assert told["layer_types"] == ["linear_attention", "full_attention"]
    assert "full_attention_interval" not in told
    assert small(model_type="gemma3_text", num_hidden_layers=6)["layer_types"] == [
        "sliding_attention",
        "full_attention",
    ]
    # A window that no layer has is none.
    assert small(model_type="qwen2", num_hidden_layers=28, sliding_window=4096)["layer_types"] == ["full_attention"] * 2


def test_layers_without_experts_and_without_rope_are_kept_beside_the_others():
    moe = small(model_type="qwen3_moe", num_hidden_layers=9, mlp_only_layers=[0], num_experts=128)
    assert (moe["num_hidden_layers"], moe["mlp_only_layers"], moe["num_experts"]) == (2, [0], 4)
    step = small(model_type="qwen3_moe", num_hidden_layers=4, decoder_sparse_step=2)
    assert (step["mlp_only_layers"], step["decoder_sparse_step"]) == ([0], 1)
    assert small(model_type="smollm3", num_hidden_layers=36)["no_rope_layers"] == [1, 0]
    assert small(model_type="smollm3", num_hidden_layers=2, no_rope_layers=[0, 1])["no_rope_layers"] == [0, 1]


def test_how_positions_are_turned_fits_the_narrow_heads():
    sections = {"mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25, "rope_type": "default"}
    text = small(model_type="qwen3_5_text", num_hidden_layers=4, rope_parameters=sections)
    assert text["rope_parameters"]["mrope_section"] == [2, 1, 1]  # 32 × 0.25 / 2 pairs
    factors = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0 + at for at in range(48)]}
    phi = small(model_type="phi3", num_hidden_layers=4, rope_scaling=factors, partial_rotary_factor=0.75)
    assert [len(phi["rope_scaling"][key]) for key in ("short_factor", "long_factor")] == [12, 12]
    assert phi["rope_scaling"]["long_factor"][1] == 5.0
    llama = {"rope_type": "llama3", "factor": 8.0}
    assert small(model_type="llama", num_hidden_layers=4, rope_scaling=llama)["rope_scaling"] == llama
    both = {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}
    assert small(model_type="gemma3_text", num_hidden_layers=6, rope_parameters=both)["rope_parameters"] == both


def test_weights_that_were_quantised_beforehand_are_random_ones_here():
    assert "quantization_config" not in small(
        model_type="gpt_oss", num_hidden_layers=24, quantization_config={"quant_method": "mxfp4"}
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({}, "which it does not tell"),
        ({"model_type": "mamba2"}, "its kind, mamba2, is none"),
        ({"model_type": "llava", "text_config": {"model_type": "llama"}}, "its kind, llava, is none"),
        ({"model_type": "gemma3", "text_config": {"model_type": "t5"}}, "its kind, gemma3, is none"),
        ({"model_type": ["qwen2"]}, "is none of those"),
        ({"model_type": "qwen2", "num_hidden_layers": "many"}, "it has 'many' layers"),
        ({"model_type": "qwen2", "num_hidden_layers": 10**9}, "it has 1000000000 layers"),
        ({"model_type": "qwen3_5_text", "num_hidden_layers": 4, "full_attention_interval": -1}, "interval is -1"),
        ({"model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": 3}, "makes no sense"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "rope_scaling": {"mrope_section": ["a"]}}, "no sense"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "rope_scaling": {"mrope_section": [0]}}, "no sense"),
        ({"model_type": "phi3", "num_hidden_layers": 4, "rope_scaling": {"short_factor": []}}, "no sense"),
        (
            {"model_type": "phi3", "num_hidden_layers": 4, "partial_rotary_factor": 1e9},
            "partial_rotary_factor is 1000000",
        ),
        (
            {"model_type": "qwen3", "num_hidden_layers": 4, "partial_rotary_factor": 0.01},
            "partial_rotary_factor is 0.01",
        ),
        ({"model_type": "gemma3", "text_config": 7}, "no sense"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "vocab_size": 10**9}, "its vocab_size is 1000000000"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "pad_token_id": "[PAD]"}, "its pad_token_id is '.PAD.'"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "eos_token_id": [1, True]}, "its eos_token_id is a list"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "hidden_act": "evil"}, "its hidden_act is 'evil'"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "rope_theta": 0}, "its rope_theta is 0"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "rope_scaling": {"rope_type": "odd"}}, "rope_type is 'odd'"),
        ({"model_type": "phi3", "num_hidden_layers": 4, "rope_scaling": {"long_factor": ["a"]}}, "list of numbers"),
        ({"model_type": "qwen3", "num_hidden_layers": 4, "layer_types": ["odd"] * 4}, "it has layers of 'odd'"),
        ({"model_type": "qwen3", "num_hidden_layers": 2, "layer_types": ["linear_attention"] * 2}, "linear_attention"),
        (
            {"model_type": "qwen3_moe", "num_hidden_layers": 4, "mlp_only_layers": [0] * 10**6},
            "mlp_only_layers are 1000",
        ),
        ({"model_type": "gemma3", "vision_config": {"num_channels": 10**9}}, "its num_channels is 1000000000"),
        ({"model_type": "gemma3", "vision_config": {"patch_size": 0}}, "its patch_size is 0"),
    ],
)
def test_what_is_not_known_is_named(config, why):
    with pytest.raises(shrink.Unknown, match=why):
        shrink.shrink(config)


def test_nothing_is_taken_over_of_which_nobody_knows_what_it_does():
    strange = {
        "auto_map": {"AutoModel": "evil.py"},
        "_attn_implementation": "me/kernel",
        "id2label": {"0": "x" * 10**6},
    }
    kept = {"vocab_size": 999, "eos_token_id": [1, 2], "rms_norm_eps": 1e-5, "rope_theta": 500_000}
    base = {"model_type": "llama", "num_hidden_layers": 4, **kept}
    assert small(**base, **strange, **{"\ud83d": "\ud83d"}) == small(**base)
    assert small(**base).items() >= kept.items()
    tower = FAMILIES["Gemma 3"].config
    odd = {key: value | strange if isinstance(value, dict) else value for key, value in tower.items()}
    assert small(**odd, **strange) == small(**tower)


def test_figures_are_of_the_type_that_transformers_takes():
    made = small(model_type="gemma2", num_hidden_layers=4, final_logit_softcapping=30)
    assert isinstance(made["final_logit_softcapping"], float)


@pytest.mark.parametrize("key", ["model_type", "num_hidden_layers", "rope_scaling", "layer_types", "vocab_size"])
def test_what_is_strange_is_shown_in_one_short_line(key):
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, {"type": deep}, "x" * 10**6, "\ud83d\x1b[2J", -1):
        with pytest.raises(shrink.Unknown) as error:
            small(**{"model_type": "qwen3", "num_hidden_layers": 4, key: value})
        assert len(str(error.value)) < 250
        assert str(error.value).encode().decode().isprintable()


# --- which base is rehearsed


def test_a_base_that_lies_here_is_shrunk_with_its_own_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["Llama 3"].config | {"vocab_size": 999}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    found, why = rehearsal.rehearse({"base_model": str(tmp_path)})
    assert why == ""
    assert found["of"] == str(tmp_path)
    assert found["config"]["vocab_size"] == 999
    assert set(found["tokenizer"]) == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert found["folder"] == str(tmp_path)
    assert "folder" not in rehearsal.identity(found)
    (tmp_path / "tokenizer.json").unlink()  # half a tokenizer is none
    assert "tokenizer" not in rehearsal.rehearse({"base_model": str(tmp_path)})[0]


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
        ("Qwen/Qwen3.5-9B", "qwen3_5"),
        ("Qwen/Qwen3.5-2B", "qwen3_5"),
        ("google/gemma-3-4b-it", "gemma3"),
        ("openai/gpt-oss-20b", "gpt_oss"),
        ("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "mistral3"),
        ("Qwen/Qwen3-30B-A3B", "qwen3_moe"),
        ("HuggingFaceTB/SmolLM3-3B", "smollm3"),
    ],
)
def test_common_bases_are_known_by_name(model, kind, tmp_path):
    found, why = rehearsal.rehearse({"base_model": model, "model_revision": "a" * 40})
    assert (why, found["config"]["model_type"]) == ("", kind)


def test_a_base_of_which_nothing_is_known_says_so():
    found, why = rehearsal.rehearse({"base_model": "me/mystery", "model_revision": "a" * 40})
    assert found == {}
    assert why.startswith("a tiny Qwen3 is rehearsed in the place of me/mystery, whose config.json is not on this")
    odd = rehearsal.rehearse({"base_model": "me/odd"}, lambda real: ({"model_type": "mamba2"}, None))
    assert odd == ({}, "a tiny Qwen3 is rehearsed in the place of me/odd: its kind, mamba2, is none of those that are "
                       "rehearsed")  # fmt: skip


def test_the_table_of_families_says_nothing_of_memory():
    for name in ("qwen3.5-9b", "gpt-oss-20b", "gemma-3-4b"):
        assert base_models.family(name)
        assert memory.from_config(base_models.family(name)) is None


def test_what_a_cpu_cannot_do_is_taken_out_of_the_recipe():
    keys = {"base_model": "tiny-random-qwen3", "attn_implementation": "sdpa", "sample_packing": True,
            "eval_sample_packing": True}  # fmt: skip
    hybrid, gpt, none = dict(keys), dict(keys), dict(keys)
    rehearsal.adapt(hybrid, {"config": small(model_type="qwen3_5_text", num_hidden_layers=4)})
    assert hybrid == {"base_model": "tiny-random-qwen3_5_text", "attn_implementation": "sdpa", "sample_packing": False}
    rehearsal.adapt(gpt, {"config": small(model_type="gpt_oss", num_hidden_layers=4)})
    assert (gpt["attn_implementation"], gpt["sample_packing"]) == ("eager", False)
    rehearsal.adapt(none, {})
    assert none == keys


@pytest.mark.parametrize("broken", ["version https://git-lfs.github.com/spec/v1", "[" * 10**5, "[]", "\udcff"])
def test_a_tokenizer_that_is_broken_is_not_taken_and_the_plan_says_so(tmp_path, broken):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES["Llama 3"].config))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text(broken, errors="surrogateescape")
    found, why = rehearsal.rehearse({"base_model": str(tmp_path)})
    assert "tokenizer" not in found
    assert found["config"]["model_type"] == "llama"
    assert why.endswith("tokenizer.json is no JSON with keys")


def test_a_large_vocabulary_of_its_own_is_rehearsed_with_less_of_the_data():
    def adapted(vocab, **more):
        keys = {"sequence_len": 1024, "micro_batch_size": 2, "max_steps": 12, "eval_steps": 4, "eval_batch_size": 1}
        base = small(model_type="qwen2", num_hidden_layers=4, vocab_size=vocab)
        rehearsal.adapt(keys, {"config": base, **more})
        return [
            keys.get(key) for key in ("sequence_len", "micro_batch_size", "gradient_accumulation_steps", "eval_steps")
        ]

    own = {"tokenizer": {"tokenizer.json": "0"}}
    assert adapted(152064, **own) == [512, 1, 1, 12]
    assert adapted(32000, **own) == adapted(152064) == [1024, 2, None, 4]


# --- the page that ``make models`` writes


def test_the_page_of_base_models_has_a_row_for_each_family():
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs/base-models.md").read_text(encoding="utf-8")
    rows = page.partition("<!-- begin -->\n")[2].partition("\n<!-- end -->")[0].split("\n")
    assert rows[:2] == list(HEAD)
    shown = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]
    assert [row[:2] for row in shown] == [[name, family.example] for name, family in FAMILIES.items()]
    assert [row[5] for row in shown] == [family.watch or "–" for family in FAMILIES.values()]
    assert all(row[2] == "yes" for row in shown), "not every family was trained: make models"
