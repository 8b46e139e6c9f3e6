"""`llava-gateway doctor`: its output, its exit status, and the settings and the port that it checks."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from helpers.server import free_port

from llava_gateway.cli import doctor
from llava_gateway.cli.main import main
from llava_gateway.doctor.finding import Finding
from llava_gateway.doctor.repair import RepairError


@pytest.fixture(autouse=True)
def _working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def findings(monkeypatch: pytest.MonkeyPatch, *given: Finding) -> None:
    monkeypatch.setattr(doctor, "_check", lambda: iter(given))


def settings_findings() -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.check_settings()}


def test_a_fault_decides_the_exit_status_and_a_note_does_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings(monkeypatch, Finding("hub", "note", "it cannot be reached"), Finding("memory", "ok", "16 GB"))
    assert doctor.main([]) == 0
    assert "A server can start." in capsys.readouterr().out
    findings(monkeypatch, Finding("vLLM", "fault", "it is not installed", "install llava-gateway[cpu]"), Finding("memory", "ok", "16 GB"))
    assert doctor.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["fault  vLLM    it is not installed", "               -> install llava-gateway[cpu]", "ok     memory  16 GB"]


def test_json_has_every_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    findings(monkeypatch, Finding("vLLM", "fault", "it is not installed", "install it"))
    assert doctor.main(["--json"]) == 1
    expected = {"name": "vLLM", "level": "fault", "text": "it is not installed", "remedy": "install it"}
    assert json.loads(capsys.readouterr().out) == {"can_start": False, "findings": [expected]}


def test_nothing_is_repaired_without_the_flag(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def repair() -> Any:
        raise RepairError("the site cannot be written")

    monkeypatch.setattr(doctor, "repair", repair)
    findings(monkeypatch, Finding("memory", "ok", "16 GB"))
    assert doctor.main([]) == 0
    assert doctor.main(["--repair"]) == 1
    assert "the site cannot be written" in capsys.readouterr().err


def test_taken_port_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("LLAVA_PORT", str(port))
        taken = settings_findings()
    assert (taken["address"].level, taken["settings"].level) == ("fault", "ok")
    assert str(port) in taken["address"].text
    assert "LLAVA_PORT" in taken["settings"].text
    assert settings_findings()["address"].level == "ok"


def test_socket_of_a_running_server_is_not_taken_away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLAVA_UDS", "server.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("server.sock")
        assert settings_findings()["address"].level == "ok"
        assert Path("server.sock").is_socket()


def test_settings_file_is_named_and_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("llava-gateway.toml").write_text(f"port = {free_port()}\n")
    monkeypatch.setenv("LLAVA_API_KEYS", "sk-secret")
    text = settings_findings()["settings"].text
    assert str(tmp_path / "llava-gateway.toml") in text
    assert "LLAVA_API_KEYS" in text
    assert "sk-secret" not in text


@pytest.mark.parametrize(("content", "named"), [("port = 70000\n", "port"), ("prot = 1\n", "prot"), ("port = \n", "llava-gateway.toml")])
def test_wrong_setting_is_a_fault_that_names_it(content: str, named: str) -> None:
    Path("llava-gateway.toml").write_text(content)
    (fault,) = doctor.check_settings()
    assert fault.level == "fault"
    assert named in fault.text


def test_open_address_without_keys_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAVA_HOST", "0.0.0.0")
    address = settings_findings()["address"]
    assert address.level == "fault"
    assert "no API keys are set" in address.text


def test_doctor_is_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["llava-gateway", "doctor", "--help"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 0
    assert "--repair" in capsys.readouterr().out
