"""`convlens bench serve`: servers of the same network are asked and compared."""

import json

from convlens.cli._app import run_command_line


def test_servers_are_compared(tmp_path, capsys):
    arguments = ["bench", "serve", "lenet5", "--rounds", "1", "--seconds", "0.3", "--warm", "0.2"]
    assert run_command_line([*arguments, "--connections", "4", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "serving.json").read_text())["lenet5"]["servers"]
    assert {"convlens", "convlens, base64", "fastapi"} <= set(found)
    for server, row in found.items():
        assert row["requests_per_s"]["median"] > 0, server
        assert row["not_200"] == row["lost"] == 0, server
    assert found["convlens"]["ratio_to_best_peer"]["n"] == 1
    assert "fastapi" in capsys.readouterr().out


def test_an_unknown_network_is_named(capsys):
    assert run_command_line(["bench", "serve", "lenet6"]) == 2
    assert "lenet5" in capsys.readouterr().err
