"""text-generation-webui's API: prompts, token counts and the model, over HTTP."""

from typing import Any

import httpx
from helpers.documentation import run_example
from helpers.server import Server
from helpers.text_generation_webui import API, ASK, FIRST, GRID, HELLO, OTHER, generate, prompt_about, refused, tag

from llava_gateway.demo.images import data_uri, describe, draw, encode

ANSWER = " I see no image. I am a small demo model: send me an image and ask me to describe it."


def tokens(plain_http: httpx.Client, prompt: str, **fields: Any) -> int:
    return int(plain_http.post(f"{API}/token-count", json={"prompt": prompt} | fields).json()["results"][0]["tokens"])


def test_prompt_is_used_unchanged(plain_http: httpx.Client) -> None:
    assert generate(plain_http, HELLO) == ANSWER  # with its leading space: nothing is added to the prompt or removed


def test_image_in_a_prompt_is_described(plain_http: httpx.Client) -> None:
    assert generate(plain_http, prompt_about(tag(GRID))).strip() == describe([GRID])


def test_default_sampling_describes_the_image(plain_http: httpx.Client) -> None:
    answer = plain_http.post(f"{API}/generate", json={"prompt": prompt_about(tag(GRID))})
    assert answer.json()["results"][0]["text"].strip() == describe([GRID])


def test_only_the_last_image_is_used_by_default(plain_http: httpx.Client) -> None:
    two = prompt_about(tag(GRID), tag(OTHER))
    assert generate(plain_http, two).strip() == describe([OTHER])
    both = prompt_about(tag(GRID), tag(OTHER), text="Describe these images.")
    assert generate(plain_http, both, add_all_images_to_prompt=True).strip() == describe([GRID, OTHER])
    assert tokens(plain_http, two, add_all_images_to_prompt=True) == tokens(plain_http, two) + 576


def test_token_count_agrees_with_the_other_apis(plain_http: httpx.Client) -> None:
    count = plain_http.post("/tokenize", json={"prompt": prompt_about("<image>"), "images": [data_uri(encode(draw(GRID)))]}).json()["count"]
    assert tokens(plain_http, prompt_about(tag(GRID))) == count
    assert tokens(plain_http, HELLO) == 9
    assert tokens(plain_http, HELLO, add_bos_token=False) == 8
    assert tokens(plain_http, "") == 1
    assert tokens(plain_http, prompt_about('<img src="data:image/png;base64,nonsense">')) == count  # none is open_stream


def test_model_path_tells_the_model_and_refuses_to_load_another(plain_http: httpx.Client) -> None:
    assert plain_http.get(f"{API}/model").json() == {"result": "llava-demo"}
    assert plain_http.post(f"{API}/model", json={}).json() == {"result": "llava-demo"}
    assert plain_http.post(f"{API}/model", json={"action": "list"}).json() == {"result": ["llava-demo"]}
    info = plain_http.post(f"{API}/model", json={"action": "info"}).json()["result"]
    assert (info["model_name"], info["lora_names"], info["shared.settings"]["truncation_length"]) == ("llava-demo", [], 4096)
    for action in ("load", "unload", "x" * 1_000_000):
        assert len(refused(plain_http.post(f"{API}/model", json={"action": action, "model_name": "x"}), 400, "action")) < 200


def test_sampling_fields_reach_the_engine(plain_http: httpx.Client) -> None:
    assert generate(plain_http, HELLO, stopping_strings=["demo", "small"]) == ANSWER.partition("small")[0]
    assert generate(plain_http, HELLO, grammar_string='root ::= "yes" | "no"') in ("yes", "no")
    first = plain_http.post("/tokenize", json={"prompt": HELLO + ANSWER}).json()["tokens"][tokens(plain_http, HELLO)]
    assert not generate(plain_http, HELLO, custom_token_bans=f"1, {first}").startswith(" I ")
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30}
    assert generate(plain_http, HELLO, seed=7, **sampled) == generate(plain_http, HELLO, seed=7, **sampled)
    assert len({generate(plain_http, HELLO, seed=seed, **sampled) for seed in (-1, -1, -1, 1, 2, 3)}) > 1
    long = generate(plain_http, HELLO, ban_eos_token=True, max_new_tokens=100)
    assert long.startswith(ANSWER)
    assert len(long) > len(ANSWER)


def test_unused_earlier_image_is_not_decoded(plain_http: httpx.Client) -> None:
    assert generate(plain_http, prompt_about('<img src="data:image/png;base64,!!!!">', tag(GRID))).strip() == describe([GRID])


def test_missing_image_takes_no_place_in_the_prompt(plain_http: httpx.Client) -> None:
    for prompt in (prompt_about(), prompt_about("<img>"), prompt_about('<img src="">'), prompt_about('<img src="/etc/passwd">')):
        assert tokens(plain_http, prompt) < 100  # an image has 576
        assert generate(plain_http, prompt, max_new_tokens=5)


def test_documented_and_unknown_fields_are_accepted(plain_http: httpx.Client) -> None:
    """These are the fields of the documentation's examples, and an unknown one."""
    generation = {
        "auto_max_new_tokens": False,
        "max_tokens_second": 0,
        "preset": "None",
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.1,
    }
    generation |= {"typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "tfs": 1, "top_a": 0, "repetition_penalty": 1.18, "top_k": 40}
    generation |= {
        "repetition_penalty_range": 0,
        "min_length": 0,
        "no_repeat_ngram_size": 0,
        "num_beams": 1,
        "penalty_alpha": 0,
        "seed": -1,
    }
    generation |= {
        "length_penalty": 1,
        "early_stopping": False,
        "mirostat_mode": 0,
        "mirostat_tau": 5,
        "mirostat_eta": 0.1,
        "stopping_strings": [],
    }
    generation |= {"grammar_string": "", "guidance_scale": 1, "negative_prompt": "", "add_bos_token": True, "truncation_length": 2048}
    generation |= {
        "ban_eos_token": False,
        "custom_token_bans": "",
        "skip_special_tokens": True,
        "max_new_tokens": 250,
        "brand_new": {"a": 1},
    }
    persons = {"character": "Example", "your_name": "You", "regenerate": False, "_continue": False, "chat_instruct_command": "Continue."}
    asked = {"user_input": tag(GRID) + ASK, "history": {"internal": [], "visible": []}, "mode": "instruct"} | generation | persons
    answer = plain_http.post(f"{API}/chat", json=asked | {"instruction_template": "Vicuna-v1.1"})
    assert answer.json()["results"][0]["history"]["visible"][0][1] == describe([GRID])
    answer = plain_http.post(f"{API}/generate", json={"prompt": prompt_about(tag(GRID))} | generation)
    assert answer.json()["results"][0]["text"].strip() == describe([GRID])


def test_webui_example_runs(server: Server) -> None:
    truth = describe([FIRST])
    assert run_example(server, "webui.py") == ["model: llava-demo", "tokens: 587", f"generate: {truth}", f"chat: {truth}", "chat: Red."]
