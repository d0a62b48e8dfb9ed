"""The command line: flags made of settings, and errors in one line."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import dae3d
from dae3d.cli import main
from dae3d.commands import load_command
from dae3d.settings import Positional


def printed_settings(capsys, *words):
    """What `dae3d pretrain ... --print-settings` prints."""
    assert main(["pretrain", "--data", "store", "--out", "run", *words, "--print-settings"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


# Flags


@pytest.mark.parametrize("name", dae3d.COMMANDS)
def test_help_explains_every_field(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    shown = capsys.readouterr().out
    assert dae3d.COMMANDS[name] in shown
    lines = [line.strip() for line in shown.splitlines()]
    for field, info in load_command(name).settings.model_fields.items():
        positional = any(isinstance(mark, Positional) for mark in info.metadata)
        flag = field.upper() if positional else f"--{field.rstrip('_').replace('_', '-')}"
        place = next(i for i, line in enumerate(lines) if line.split()[:1] in ([flag], [f"{flag},"]))
        entry = " ".join(lines[place : place + 2])  # the explanation of a long flag is on the next line
        assert info.description in entry
        if type(info.default) in (int, float, str):
            assert f"(default: {info.default})" in entry


def test_the_configs_that_are_shipped_are_named_in_help(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit):
        main(["pretrain", "--help"])
    line = next(line for line in capsys.readouterr().out.splitlines() if "--config" in line)
    assert "reference-all" in line
    assert "small-cpu" in line


@pytest.mark.parametrize(
    "words",
    [
        ["--max-steps", "40", "--mask-per", "x"],
        ["--batch-siz", "3"],
        ["--learning-rate", "3"],
        ["stray"],
    ],
)
def test_an_unknown_flag_is_refused_and_none_is_guessed(words, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["pretrain", "--data", "store", "--out", "run", *words])
    assert exit_.value.code == 2
    assert "unknown setting" in capsys.readouterr().err


def test_hyphens_and_underscores_are_the_same(capsys):
    with_hyphens = printed_settings(
        capsys, "--max-steps", "40", "--min-lr=1e-7", "--no-restore-intensity", "--save-every", "1 epoch"
    )
    with_underscores = printed_settings(
        capsys, "--max_steps", "40", "--min_lr=1e-7", "--no-restore_intensity", "--save_every=1 epoch"
    )
    assert with_hyphens == with_underscores
    assert (with_hyphens["max_steps"], with_hyphens["min_lr"]) == (40, 1e-7)
    assert with_hyphens["restore_intensity"] is False


def test_underscores_in_values_stay(capsys):
    shown = printed_settings(capsys, "--disruption=local_mask", "--datasets", "a_b", "c_d")
    assert (shown["disruption"], shown["datasets"]) == ("local_mask", ["a_b", "c_d"])


def test_flags_that_are_on_can_be_turned_off(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("checkpoint_activations: true\n")
    on = printed_settings(capsys, "--config", str(config))
    off = printed_settings(capsys, "--config", str(config), "--no-checkpoint-activations")
    assert (on["checkpoint_activations"], off["checkpoint_activations"]) == (True, False)


def test_flags_override_the_config_and_nothing_else_does(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("lr: 0.5\nbatch_size: 6\nheads: [1, 2, 4, 8]\nembed_dim: 24\n")
    shown = printed_settings(capsys, "--config", str(config), "--lr", "0.25")
    assert (shown["lr"], shown["batch_size"], shown["heads"]) == (0.25, 6, [1, 2, 4, 8])
    assert shown["weight_decay"] == 0.05


def test_none_takes_a_limit_away(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("ema_decay: 0.9\ndatasets: [x]\nmodality_weights: {ct: 1}\n")
    words = ("--clip-grad", "--ema-decay", "--datasets", "--modality-weights")
    given = [word for flag in words for word in (flag, "none")]
    shown = printed_settings(capsys, "--config", str(config), *given)
    assert [shown[word.strip("-").replace("-", "_")] for word in words] == [None] * 4


def test_key_value_words_make_a_table_also_in_several_flags(capsys):
    together = printed_settings(capsys, "--modality-weights", "ct=1", "t1=2.5")
    apart = printed_settings(capsys, "--modality-weights", "ct=1", "--modality-weights", "t1=2.5")
    assert together["modality_weights"] == apart["modality_weights"] == {"ct": 1.0, "t1": 2.5}


def test_a_word_without_equals_sign_is_named(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["pretrain", "--modality-weights", "ct=1", "t1"])
    assert exit_.value.code == 2
    assert "--modality-weights: 't1' is not KEY=VALUE" in capsys.readouterr().err


def test_lists_gather_over_several_flags(capsys):
    shown = printed_settings(capsys, "--datasets", "a", "b", "--datasets", "c")
    assert shown["datasets"] == ["a", "b", "c"]


def test_printed_settings_make_the_same_settings(tmp_path, capsys):
    first = printed_settings(capsys, "--config", "reference-all", "--seed", "3")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first))
    assert printed_settings(capsys, "--config", str(tmp_path / "again.yaml")) == first
    assert not Path("run").exists()


# Errors


def test_an_error_is_one_line_and_status_1(tmp_path, capsys):
    missing = tmp_path / "no store"
    assert main(["pretrain", "--data", str(missing), "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"dae3d: error: {missing}: not a store")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "0"], "batch_size: Input should be greater than or equal to 1 (got '0')"),
        (["--batch-size", "many"], "batch_size: "),
        (["--roi", "50"], "roi: sides must be multiples of 32, not 50 x 50 x 50"),
        (["--config", "smal-cpu"], "neither a file nor a shipped config"),
    ],
)
def test_a_bad_setting_is_named(words, said, capsys):
    assert main(["pretrain", "--data", "store", "--out", "run", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dae3d: error: ")
    assert said in error
    assert error.count("\n") == 1


def test_an_unknown_verb_lists_those_there_are(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["trian"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "'trian'" in error
    for command in dae3d.COMMANDS:
        assert command in error


def test_without_a_verb_it_says_what_is_missing(capsys):
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert exit_.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_ctrl_c_is_status_130_and_says_how_to_go_on(capsys, monkeypatch):
    def interrupted(**fields):
        raise KeyboardInterrupt

    interrupted.settings = load_command("index").settings
    monkeypatch.setattr("dae3d.cli.load_command", lambda name: interrupted)
    assert main(["index", "folder"]) == 130
    assert "run the same command again" in capsys.readouterr().err


# As a program


def run(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=600, check=False, env=os.environ
    )


def test_as_a_program_an_error_has_no_traceback(tmp_path):
    done = run("-m", "dae3d.cli", "index", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"dae3d: error: {tmp_path / 'nowhere'}: no such folder or file\n"


def test_version(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"dae3d {version('dae3d')}\n"
    assert dae3d.__version__ == version("dae3d")


def test_help_lists_the_commands(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # so that no word is broken
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for command, summary in dae3d.COMMANDS.items():
        assert f"{command} {summary}" in shown


def test_importing_and_indexing_do_not_wait_for_pytorch():
    script = (
        "import sys, dae3d, dae3d.cli\n"
        "dae3d.index\n"
        "try: dae3d.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'monai', 'lightning') if name in sys.modules])"
    )
    done = run("-c", script)
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "[]"


def test_ctrl_c_while_a_verb_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dae3d.cli.load_command", interrupted)
    assert main(["index", "somewhere"]) == 130
    assert capsys.readouterr().err == "\ndae3d: interrupted; run the same command again to continue\n"


def test_a_misspelt_setting_is_named_with_what_may_be_meant(capsys):
    with pytest.raises(SystemExit):
        main(["index", "folder", "--modalty", "ct"])
    assert "unknown setting: --modalty; did you mean --modality?" in capsys.readouterr().err
