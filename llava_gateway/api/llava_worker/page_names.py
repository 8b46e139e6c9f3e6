"""Names under which LLaVA's web page writes the prompts that a model needs.

The page writes prompts itself, and takes the form of a prompt from the name of the model (`http_bot` in llava/serve/gradio_web_server.py).
Under its own name, `llava-demo` would get the prompts of LLaVA-v0, and its answers would be wrong. It is listed as `llava-demo-v1`.
"""

from llava_gateway.errors import GatewayError
from llava_gateway.serving.model_registry import ModelRegistry
from llava_gateway.types import Message, Text

V0, VICUNA, CHATML, LLAMA_2, MISTRAL = "v0", "vicuna", "chatml", "llama-2", "mistral"
"""The forms of prompts. Two templates of one form differ only in their system messages and white space."""
NO_FORM = ""
"""The page has no template, or one with tags around images, which no served model needs."""

LLAVA_RULES = (
    (("llama-2",), LLAMA_2),
    (("mistral", "orca"), NO_FORM),
    (("mixtral", "orca"), NO_FORM),
    (("mistral", "hermes"), CHATML),
    (("mixtral", "hermes"), CHATML),
    (("mistral",), MISTRAL),
    (("mixtral",), MISTRAL),
    (("llava-v1.6-34b",), CHATML),
    (("v1", "mmtag"), NO_FORM),
    (("v1", "plain", "finetune"), VICUNA),
    (("v1", "plain"), NO_FORM),
    (("v1",), VICUNA),
    (("mpt",), CHATML),
    (("mmtag",), NO_FORM),
    (("plain", "finetune"), V0),
    (("plain",), NO_FORM),
    ((), V0),
)
"""The page's rules for names with `llava`. The first rule counts whose words are all in the name."""
OTHER_RULES = ((("mpt",), NO_FORM), (("llama-2",), LLAMA_2), ((), VICUNA))
"""The page's rules for other names."""

MARKS = (
    ("<|im_start|>", CHATML, "-mpt"),
    ("<<SYS>>", LLAMA_2, "-llama-2"),
    ("[/INST]", MISTRAL, "-mistral"),
    ("###", V0, "-v0"),
    ("ASSISTANT:", VICUNA, "-v1"),
)
"""The text that tells the form of a model's prompts, the form, and the end of a name that gets this form. The first mark counts."""


def page_names(models: ModelRegistry) -> list[str]:
    """Return a name for the page for each name that this request's API key may use."""
    return list(dict.fromkeys(_page_name(models, name) for name in models.names()))


def served_name(models: ModelRegistry, name: str) -> str:
    """Return the name that the gateway serves for a name of `page_names`. Other names are returned unchanged."""
    if name in models:
        return name
    return next((served for served in models.names() if _page_name(models, served) == name), name)


def page_form(name: str) -> str:
    """Return the form of the prompts that the page writes for a model of this name."""
    rules, name = (LLAVA_RULES, name.lower()) if "llava" in name.lower() else (OTHER_RULES, name)
    return next(form for words, form in rules if all(word in name for word in words))


def fitting_name(name: str, prompt: str) -> str:
    """Return the name itself, or a longer one for which the page writes prompts of the form of `prompt`.

    The name itself is also returned if the page has no template of that form.
    """
    for mark, form, ending in MARKS:
        if mark in prompt:
            names = (name, f"{name}{ending}", f"llava-{name}{ending}")
            return next((fitting for fitting in names if page_form(fitting) == form), name)
    return name


def _page_name(models: ModelRegistry, name: str) -> str:
    """Return the name for the page. While the model loads, this is its own name."""
    served_model = models.get(name)
    if served_model.context_length is None:
        return name
    try:
        prompt = served_model.prompts.chat((Message("user", (Text("Hello"),)),), models.template(name)).text
    except GatewayError:  # the template refuses the message
        return name
    return fitting_name(name, prompt)
