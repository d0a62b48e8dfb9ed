"""From pre-training to other people's code: the lines of docs/fine-tuning.md, run as they stand."""

import re
from pathlib import Path

import torch

import dae3d

PAGE = Path(__file__).resolve().parents[1] / "docs" / "fine-tuning.md"
SIZES = {"embed_dim": 12, "heads": (1, 2, 4, 8), "depths": (2, 2, 2, 2), "window": 4, "patch_embed": "linear"}


def test_pretrain_finetune_export_and_load_give_the_same_logits(
    tiny_store, tiny_settings, tiny_finetune, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    dae3d.pretrain(**tiny_settings | SIZES | {"data": tiny_store, "out": "pretrained", "max_steps": 1})
    settings = {name: value for name, value in tiny_finetune.items() if name not in SIZES}
    dae3d.finetune(**settings | {"init": "pretrained", "out": "run", "max_steps": 2})
    dae3d.export(weights="run", format="monai", out="monai.pt")

    ours, theirs = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    plain: dict = {}
    exec(ours, plain)
    assert plain["logits"].shape == (1, 3, 64, 64, 64)
    monai: dict = {}
    exec(theirs, monai)
    with torch.inference_mode():
        logits = monai["network"](plain["image"])
    torch.testing.assert_close(logits, plain["logits"], atol=1e-5, rtol=0)
    # The weights are those of the fine-tuned network, begun with the pre-trained one's.
    pretrained = dae3d.load("pretrained", show=False).state_dict()
    fine_tuned = dae3d.load("run", show=False).state_dict()
    name = "encoder.patch_embed.weight"
    assert 0 < (fine_tuned[name] - pretrained[name]).abs().max() < 0.05
