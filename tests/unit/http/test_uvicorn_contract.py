"""The names of uvicorn that our protocols use are still there, and are listed in the docstrings of the modules that use them.

uvicorn does not document these names. This test reads the source of uvicorn and of our modules; it starts no server.
"""

import ast
import inspect
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import llava_gateway

HTTP = "uvicorn.protocols.http.httptools_impl"
FLOW = "uvicorn.protocols.http.flow_control"
WEBSOCKET = "uvicorn.protocols.websockets.websockets_sansio_impl"
OURS = Path(llava_gateway.__file__).parent / "http"
HTTP_FILE, WEBSOCKET_FILE = "uvicorn_protocol.py", "websocket_protocol.py"
READ_IN = "uvicorn 0.54.0"

METHODS = {
    (HTTP, "HttpToolsProtocol"): (
        *("connection_made", "connection_lost", "data_received", "eof_received", "on_message_begin", "on_header"),
        *("on_headers_complete", "on_body", "on_message_complete", "_start_asgi_task"),
        *("_unset_keepalive_if_required", "handle_websocket_upgrade"),
    ),
    (WEBSOCKET, "WebSocketsSansIOProtocol"): (
        *("connection_made", "connection_lost", "pause_writing", "resume_writing", "data_received", "handle_events", "handle_text"),
        *("handle_bytes", "handle_cont", "handle_ping", "handle_parser_exception", "send", "receive", "on_task_complete"),
    ),
    ("websockets.protocol", "Protocol"): ("fail", "data_to_send"),
}
ATTRIBUTES = {
    (HTTP, "HttpToolsProtocol"): ("connections", "cycle", "headers", "loop", "parser", "scope", "transport", "url"),
    (HTTP, "RequestResponseCycle"): (
        *("chunked_encoding", "disconnected", "expected_content_length", "flow", "keep_alive", "more_body", "response_complete"),
        *("response_started", "scope", "transport"),
    ),
    (FLOW, "FlowControl"): ("write_paused",),
    (WEBSOCKET, "WebSocketsSansIOProtocol"): (
        *("close_sent", "close_timeout", "close_timer", "conn", "disconnected", "handshake_complete", "handshake_initiated", "loop"),
        *("queue", "read_paused", "transport", "writable"),
    ),
    ("websockets.protocol", "Protocol"): ("events", "reader", "current_size", "close_sent"),
    ("websockets.streams", "StreamReader"): ("buffer",),
}
TYPES = {
    HTTP_FILE: ("ASGI3Application", "ASGIReceiveCallable", "ASGISendCallable", "ASGISendEvent", "Scope"),
    WEBSOCKET_FILE: ("ASGIReceiveEvent", "ASGISendEvent"),
}
BEHAVIOUR = {
    (HTTP, "HttpToolsProtocol"): {
        "self._start_asgi_task(self.cycle, app)": "uvicorn no longer starts the app in _start_asgi_task, so HTTP/1.0 would get chunks",
        "if existing_cycle is None or existing_cycle.response_complete:": "uvicorn treats pipelined requests differently",
        "self._unset_keepalive_if_required()": "uvicorn ends its keep-alive timer in another way",
        'method = self.scope["method"].encode()': "uvicorn hands a WebSocket's request over without the method in the scope",
        "self.transport.set_protocol(protocol)": "uvicorn gives a WebSocket's connection to its protocol in another way",
    },
    (HTTP, "RequestResponseCycle"): {
        'content = [b"%x\\r\\n" % len(body), body, b"\\r\\n"]': "uvicorn frames chunks differently than our _BodyWriter",
        "if self.chunked_encoding is None and": "uvicorn chooses chunks in another way than by chunked_encoding",
        "if num_bytes > self.expected_content_length:": "uvicorn checks a body's length by another name than expected_content_length",
        "if not self.keep_alive:": "uvicorn no longer closes a connection because keep_alive is False",
        'return {"type": "http.disconnect"}': "uvicorn reports a disconnect in another way",
    },
    (WEBSOCKET, "WebSocketsSansIOProtocol"): {
        "self.conn.receive_data(data)": "uvicorn feeds the WebSocket's parser in another way",
        "for event in self.conn.events_received():": "uvicorn reads the WebSocket's frames in another way",
        'self.queue.put_nowait({"type": "websocket.receive", "bytes": data})': "uvicorn queues messages for the app in another way",
        "self.handle_cont(event)": "uvicorn handles fragments under another name than handle_cont",
        "if self.read_paused and self.queue.empty():": "uvicorn resumes reading under another condition",
        "task.add_done_callback(self.on_task_complete)": "uvicorn no longer calls on_task_complete when the app has ended",
        "self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)": "uvicorn ends a closing WebSocket otherwise",
    },
}


def described(module: str, name: str) -> str:
    return f"{module}.{name} has changed since {READ_IN}"


def class_of(module: str, name: str) -> type[Any]:
    assert find_spec(module), f"{module} is gone; it was there in {READ_IN}. Adapt llava_gateway/http."
    found = getattr(import_module(module), name, None)
    assert found, f"{module} no longer has the class {name}, which it had in {READ_IN}. Adapt llava_gateway/http."
    assert isinstance(found, type)
    return found


def source_of(file: str) -> ast.Module:
    return ast.parse((OURS / file).read_text())


def class_in(file: str, name: str) -> ast.ClassDef:
    (found,) = (node for node in source_of(file).body if isinstance(node, ast.ClassDef) and node.name == name)
    return found


@pytest.mark.parametrize(("module", "name"), METHODS)
def test_method_that_we_override_or_call_exists(module: str, name: str) -> None:
    missing = [method for method in METHODS[module, name] if not callable(getattr(class_of(module, name), method, None))]
    assert not missing, f"{described(module, name)}: it no longer has the methods {', '.join(missing)}. Adapt llava_gateway/http."


@pytest.mark.parametrize(("module", "name"), ATTRIBUTES)
def test_attribute_that_we_read_or_set_exists(module: str, name: str) -> None:
    source = inspect.getsource(class_of(module, name))
    missing = [each for each in ATTRIBUTES[module, name] if not re.search(rf"self\.{each}\b.*=|def {each}\(", source)]
    assert not missing, f"{described(module, name)}: it no longer sets {', '.join(missing)}. Adapt llava_gateway/http."


@pytest.mark.parametrize(("module", "name"), BEHAVIOUR)
def test_code_that_we_rely_on_is_unchanged(module: str, name: str) -> None:
    source = inspect.getsource(class_of(module, name))
    changed = [why for text, why in BEHAVIOUR[module, name].items() if text not in source]
    assert not changed, f"{described(module, name)}: {'; '.join(changed)}. Read it again and adapt llava_gateway/http."


def test_parameters_of_overridden_methods_are_unchanged() -> None:
    parameters = list(inspect.signature(class_of(HTTP, "HttpToolsProtocol")._start_asgi_task).parameters)
    assert parameters == ["self", "cycle", "app"], f"uvicorn's _start_asgi_task now takes {parameters}. Adapt uvicorn_protocol.py."
    for method in ("handle_text", "handle_bytes", "handle_cont"):
        parameters = list(inspect.signature(getattr(class_of(WEBSOCKET, "WebSocketsSansIOProtocol"), method)).parameters)
        assert parameters == ["self", "event"], f"uvicorn's {method} now takes {parameters}. Adapt websocket_protocol.py."


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in TYPES.items() for name in names])
def test_type_that_we_import_exists(file: str, name: str) -> None:
    assert find_spec("uvicorn._types"), f"uvicorn._types is gone; it was there in {READ_IN}. Adapt {file}."
    assert hasattr(import_module("uvicorn._types"), name), f"uvicorn._types no longer has {name}. Adapt {file}."


PROTOCOLS = [
    (HTTP_FILE, "HttpProtocol", HTTP, "HttpToolsProtocol"),
    (WEBSOCKET_FILE, "WebSocketProtocol", WEBSOCKET, "WebSocketsSansIOProtocol"),
]


@pytest.mark.parametrize(("file", "ours", "module", "base"), PROTOCOLS)
def test_our_own_names_do_not_override_uvicorns_by_accident(file: str, ours: str, module: str, base: str) -> None:
    """A newer uvicorn may add a method or an attribute whose name our class already uses for something else."""
    uvicorns = class_of(module, base)
    set_by_uvicorn = {*vars(uvicorns), *re.findall(r"self\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(uvicorns))}
    tree = class_in(file, ours)
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    defined |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    intended = {*METHODS[module, base], *ATTRIBUTES[module, base]}
    taken = sorted((defined & set_by_uvicorn) - intended - {*ATTRIBUTES[HTTP, "RequestResponseCycle"]})
    assert not taken, f"uvicorn's {base} has {', '.join(taken)}, too. Rename ours in {file}, or list them in this test."


@pytest.mark.parametrize(("file", "ours", "module", "base"), PROTOCOLS)
def test_every_inherited_name_that_we_use_is_listed_here(file: str, ours: str, module: str, base: str) -> None:
    tree = class_in(file, ours)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    own |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}
    own |= {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
    }
    set_by_us = {name for name in used if name.startswith("_") and not hasattr(class_of(module, base), name)}
    unlisted = sorted(used - own - set_by_us - {*METHODS[module, base], *ATTRIBUTES[module, base]})
    assert not unlisted, f"{file} uses {', '.join(unlisted)} of uvicorn. List them in its docstring and in this test."


@pytest.mark.parametrize(
    ("file", "keys"),
    [
        (HTTP_FILE, [(HTTP, "HttpToolsProtocol"), (HTTP, "RequestResponseCycle"), (FLOW, "FlowControl")]),
        (WEBSOCKET_FILE, [(WEBSOCKET, "WebSocketsSansIOProtocol")]),
    ],
)
def test_docstring_lists_every_name(file: str, keys: list[tuple[str, str]]) -> None:
    docstring = ast.get_docstring(source_of(file)) or ""
    assert READ_IN in docstring, f"The docstring of {file} names another version than {READ_IN}"
    names = {*TYPES[file], *(name for key in keys for name in (*METHODS.get(key, ()), *ATTRIBUTES.get(key, ())))}
    listed = {word for quoted in re.findall(r"`([^`]+)`", docstring) for word in quoted.split(".")}
    assert names <= listed, f"The docstring of {file} does not list {', '.join(sorted(names - listed))}"
