"""The rows of docs/openai.md, as the declarations of the request bodies have them."""

from collections.abc import Iterator

from pydantic import BaseModel

from llava_gateway.api.schema import RequestBody


def rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} says nothing"
        says = field.description
        do = "ignored" if says.startswith("ignored: ") else "honoured"
        yield f"| `{field.alias or name}` | {do} | {says.removeprefix('ignored: ')} |"
    if issubclass(model, RequestBody):
        for name, why in model.ignored.items():
            yield f"| `{name}` | ignored | {why} |"
        for name, refused in model.refused.items():
            yield f"| `{name}` | refused | {refused.reason} |"
