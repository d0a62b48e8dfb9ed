import base64
import csv
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imsave

from dae3d import cli
from dae3d.commands.report import report
from dae3d.errors import Dae3dError
from dae3d.reporting.curves import BOTTOM, LEFT, RIGHT, TOP, chart
from dae3d.reporting.run_folder import Series
from dae3d.words import duration, listing, plural, quantity, size

STEPS = range(0, 310, 10)

# PSNR and SSIM of the disrupted crops, of the baselines, and of the network's at its last validation.
QUALITY = {
    "ct-phantom": {
        "disrupted": (10.111, 0.1011),
        "trilinear": (15.222, 0.3022),
        "gaussian": (16.333, 0.2033),
        "trilinear+gaussian": (18.444, 0.4044),
        "repaired": (20.555, 0.3055),
    },
    "t1": {
        "disrupted": (11.0, 0.2),
        "trilinear": (12.0, 0.3),
        "gaussian": (13.0, 0.4),
        "trilinear+gaussian": (14.0, 0.5),
        "repaired": (13.5, 0.6),
    },
}

RECORD = {
    "dae3d": "0.1.0",
    "versions": {"python": "3.11.9", "torch": "2.13.0"},
    "device": "a CPU, 2 cores",
    "precision": "32-true",
    "world_size": 1,
    "parameters": 3894775,
    "disruption": "all",
    "step": 300,
    "max_steps": 300,
    "finished": True,
    "seconds": 400.0,
    "samples_per_second": 3.2,
    "peak_memory_bytes": 2100000000,
    "peak_memory_of": "process",
    "data": {
        "store": "scans.store",
        "rows": [
            {"modality": "ct-phantom", "dataset": "demo", "train": 3, "val": 1, "voxels": 1000},
            {"modality": "t1", "dataset": "mni", "train": 7, "val": 0, "voxels": 123456789},
        ],
    },
    "validation": {
        "ct-phantom": {"crops": 4, "split": "val", "scans": ["phantom-3"]},
        "t1": {"crops": 4, "split": "train", "scans": ["brain-1", "brain-2"]},
    },
}


def write_metrics(folder: Path, rows: list[tuple[int, str, float]], end: str = "") -> None:
    with (folder / "metrics.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("step", "metric", "value"), *sorted(rows)])
        file.write(end)


def metric_rows() -> list[tuple[int, str, float]]:
    rows: list[tuple[int, str, float]] = []
    for modality, quality in QUALITY.items():
        for name, values in quality.items():
            for measure, value in zip(("psnr", "ssim"), values, strict=True):
                if name == "repaired":
                    rows += [
                        (step, f"val/{measure}/{modality}", value * (step + 300) / 600) for step in STEPS
                    ]
                else:
                    rows.append((0, f"baseline/{measure}/{name}/{modality}", value))
        rows += [(step, f"train/l1/{modality}", 1 / step) for step in STEPS if step]
        rows += [(step, f"val/l1/{modality}", 1 / (step + 5)) for step in STEPS]
    for name in ("loss", "l1", "contrastive"):
        rows += [(step, f"train/{name}", 1 / step) for step in STEPS if step]
        rows += [(step, f"val/{name}", 1 / (step + 5)) for step in STEPS]
    for name in ("lr", "grad_norm", "samples_per_second"):
        rows += [(step, f"train/{name}", step / 1000) for step in STEPS if step]
    return rows


def write_pictures(folder: Path, modality: str, steps: Any) -> None:
    (folder / "pictures" / modality).mkdir(parents=True)
    for step in steps:
        # Of its own colour, so that every step's picture is another.
        imsave(folder / f"pictures/{modality}/{step:08d}.png", np.full((4, 6, 3), step % 256, np.uint8))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "a-run"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "settings.yaml").write_text("disruption: all\nout: <script>alert(1)</script>\n")
    write_metrics(folder, metric_rows())
    write_pictures(folder, "ct-phantom", STEPS)
    write_pictures(folder, "t1", [0, 150, 300])
    return folder


class Page(HTMLParser):
    """What the tests look at: text, images and sliders by modality, tables as rows of cells."""

    void = ("meta", "img", "input", "br", "path", "circle")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.images: dict[str, list[dict[str, str | None]]] = {}
        self.sliders: dict[str, dict[str, str | None]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.best: dict[str, list[str]] = {}
        self.loaded: list[str | None] = []
        self.charts: list[str | None] = []
        self._figure = self._table = ""
        self._best = False
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag not in self.void:
            self.open.append(tag)
        self.loaded += [given[name] for name in ("src", "href", "srcset", "data") if name in given]
        match tag:
            case "figure":
                self._figure = given.get("data-subject") or ""
            case "img":
                self.images.setdefault(self._figure, []).append(given)
            case "input":
                self.sliders[self._figure] = given
            case "svg":
                self.charts.append(given["aria-label"])
            case "table":
                self._table = given.get("data-modality") or given["class"] or ""
                self.tables[self._table], self.best[self._table] = [], []
            case "tr":
                self.tables[self._table].append([])
            case "th" | "td":
                self.tables[self._table][-1].append("")
                self._best = "best" in (given.get("class") or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)
        if self._table and self.open[-1] in ("th", "td"):
            self.tables[self._table][-1][-1] += data.replace("\u00a0", " ").strip()
            if self._best:
                self.best[self._table].append(data.strip())


def made(folder: Path) -> Page:
    return Page(report(run=folder))


def test_the_table_holds_the_numbers_of_the_metrics(run: Path) -> None:
    page = made(run)
    for modality, quality in QUALITY.items():
        header, *rows = page.tables[modality]
        assert header == ["image", "PSNR, dB", "gain", "SSIM", "gain"]
        shown = {row[0].replace(" ", ""): [cell.replace("★ ", "") for cell in row[1:]] for row in rows}
        assert list(shown) == list(quality)
        psnr, ssim = quality["repaired"]
        for name, values in quality.items():
            gains = (
                ("", "") if name == "repaired" else (f"{psnr - values[0]:+.2f}", f"{ssim - values[1]:+.3f}")
            )
            assert shown[name] == [f"{values[0]:.2f}", gains[0], f"{values[1]:.3f}", gains[1]]
    assert page.best["ct-phantom"] == ["★ 0.404", "★ 20.55"]
    assert page.best["t1"] == ["★ 14.00", "★ 0.600"]


def test_the_summary_counts_the_wins(run: Path) -> None:
    text = made(run).text
    assert "3.89 million parameters" in text
    assert "10 scans of 2 modalities (ct-phantom, t1), for 300 of 300 steps in 6 min 40 s" in text
    assert (
        "better than the disrupted ones in PSNR on 2 of 2 modalities and in SSIM on 2 of 2 modalities" in text
    )
    assert (
        "better than all baselines in PSNR on 1 of 2 modalities (ct-phantom) "
        "and in SSIM on 1 of 2 modalities (t1)" in text
    )
    assert "Missing" not in text


def test_everything_is_in_the_page(run: Path) -> None:
    page = made(run)
    assert len(page.loaded) == 12 + 3
    assert all(source is not None and source.startswith("data:image/png;base64,") for source in page.loaded)
    for address in ("http://", "https://", "url(", "@import", "<link"):
        assert address not in page.source


def test_the_sliders_go_through_the_pictures(run: Path) -> None:
    page = made(run)
    for modality, count in (("ct-phantom", 12), ("t1", 3)):
        images = page.images[modality]
        steps = [int(image["data-step"] or "") for image in images]
        assert len(steps) == count
        assert (steps[0], steps[-1]) == (0, 300)
        assert sorted(set(steps)) == steps
        assert (page.sliders[modality]["type"], page.sliders[modality]["min"]) == ("range", "0")
        assert page.sliders[modality]["max"] == page.sliders[modality]["value"] == str(count - 1)
        assert [step for image, step in zip(images, steps, strict=True) if "hidden" not in image] == [300]
        for image, step in zip(images, steps, strict=True):
            content = base64.b64decode((image["src"] or "").partition(",")[2])
            assert content == (run / f"pictures/{modality}/{step:08d}.png").read_bytes()
            psnr, ssim = (value * (step + 300) / 600 for value in QUALITY[modality]["repaired"])
            assert f"PSNR {psnr:.2f}, SSIM {ssim:.3f}" in (image["data-measured"] or "")
    gaps = np.diff([int(image["data-step"] or "") for image in page.images["ct-phantom"]])
    assert gaps.min() >= 20
    assert gaps.max() <= 30


def test_data_machine_and_settings(run: Path) -> None:
    page = made(run)
    assert page.tables["data"][1:] == [
        ["ct-phantom", "demo", "3", "1", "1,000"],
        ["t1", "mni", "7", "0", "123 million"],
        ["all", "", "10", "1", "123 million"],
    ]
    facts = dict(page.tables["facts"])
    assert facts["throughput, median"] == "3.2 samples/s"
    assert facts["peak memory of the process"] == "2.1 GB"
    assert facts["torch"] == "2.13.0"
    assert "No validation scans: t1" in page.text
    assert "t1: 4 crops of 2 training scans (no validation scans) brain-1, brain-2" in page.text
    assert "disruption: all out: <script>alert(1)</script>" in page.text  # shown, not run


def test_every_curve_is_there_in_words_too(run: Path) -> None:
    charts = [words or "" for words in made(run).charts]
    assert len(charts) == 3 + 2 + 2 + 3
    assert any("training from 0.1 at step 10 to 0.003333 at step 300" in words for words in charts)
    for title in (
        "Total training loss",
        "L1, ct-phantom",
        "Contrastive loss",
        "Learning rate",
        "PSNR, dB",
    ):
        assert any(words.startswith(title) for words in charts), title


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    text = made(tmp_path).text
    assert "Missing" in text
    assert "no step has been recorded yet" in text
    assert "no training rows" in text
    assert "settings.yaml is missing" in text


def test_a_run_that_was_killed(run: Path) -> None:
    (run / "run.json").write_text(json.dumps(RECORD | {"step": 120, "finished": False}))
    rows = [row for row in metric_rows() if row[0] <= 120 and not row[1].endswith("psnr/t1")]
    write_metrics(run, [row for row in rows if "/t1" not in row[1]], end="130,train/lo")
    page = made(run)
    assert "The run is not finished: 120 of 300 steps." in page.text
    assert "1 row of metrics.csv could not be read." in page.text
    assert "No validation results for t1." in page.text
    assert "ct-phantom" in page.tables
    assert "t1" not in page.tables
    shown = page.tables["ct-phantom"][-1]
    assert shown[1] == f"{20.555 * 420 / 600:.2f}"


def test_a_repeated_step_counts_once_and_the_later_row_wins(run: Path) -> None:
    with (run / "metrics.csv").open("a") as file:
        file.write("300,val/psnr/t1,19.75\n")
    page = made(run)
    assert page.tables["t1"][-1][1] == "★ 19.75"


def test_without_pictures_or_with_one(run: Path) -> None:
    for picture in (run / "pictures").rglob("*.png"):
        if picture.name != "00000000.png" or picture.parent.name != "t1":
            picture.unlink()
    page = made(run)
    assert "No pictures of ct-phantom." in page.text
    assert len(page.images["t1"]) == 1
    assert page.sliders == {}


def test_a_disruption_that_leaves_the_voxels_alone(run: Path) -> None:
    rows = [row for row in metric_rows() if "baseline/psnr/disrupted" not in row[1]]
    rows += [(0, f"baseline/psnr/disrupted/{modality}", math.inf) for modality in QUALITY]
    write_metrics(run, rows)
    page = made(run)
    assert "The disruption does not change the voxels" in page.text
    assert page.tables["t1"][1][1:3] == ["★ ∞", "n/a"]


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(Dae3dError, match=r"nowhere: no such run.*written by .dae3d pretrain. or .finetune."):
        report(run=tmp_path / "nowhere")
    with pytest.raises(Dae3dError, match=r"no run\.json.*written by .dae3d pretrain. or .finetune."):
        report(run=tmp_path)
    for content in ("", "[]", '{"step": "many"}', "\x00"):
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(Dae3dError, match=r"run\.json: not a valid run record"):
            report(run=tmp_path)


def test_command_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "elsewhere" / "page.html"
    assert cli.main(["report", str(run), "--out", str(out)]) == 0
    assert "Pre-training run “a-run”" in Page(out).text
    assert not (run / "report.html").exists()
    assert cli.main(["report", str(run), "--out", str(tmp_path)]) == 1
    assert "is a folder" in capsys.readouterr().err


def test_chart_geometry() -> None:
    series = Series(np.array([0, 50, 100]), np.array([0.0, 5.0, 10.0]))
    drawn = chart("ramp", {"a": series, "b": None})
    assert drawn is not None
    (line,) = drawn.lines
    assert [x for x, _ in line.dots] == [LEFT, (LEFT + RIGHT) / 2, RIGHT]
    heights = [y for _, y in line.dots]
    assert heights[0] == BOTTOM
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
    assert TOP < heights[2] < heights[1]
    ticks = {label: position for position, label in drawn.y_ticks}
    assert ticks["10"] == pytest.approx(heights[2])


def test_a_long_noisy_curve_is_smoothed_within_bounds() -> None:
    rng = np.random.default_rng(0)
    values = 1 + rng.normal(size=5000) * 0.3
    values[[10, 20]] = np.nan, np.inf
    drawn = chart("noise", {"training": Series(np.arange(5000), values)})
    assert drawn is not None
    points = np.array([p.split(",") for p in drawn.lines[0].path[1:].split("L")], float)
    faint = np.array([p.split(",") for p in drawn.lines[0].faint[1:].split("L")], float)
    assert np.isfinite(points).all()
    assert len(points) <= 400
    assert np.abs(np.diff(points[:, 1])).mean() < 0.5 * np.abs(np.diff(faint[:, 1])).mean()
    assert faint[:, 1].min() >= TOP
    assert faint[:, 1].max() <= BOTTOM
    assert chart("nothing", {"a": Series(np.array([1]), np.array([np.nan]))}) is None


def test_logarithmic_where_values_span_much() -> None:
    drawn = chart("loss", {"a": Series(np.array([0, 1, 2]), np.array([1.0, 0.1, 0.01]))}, log=True)
    assert drawn is not None
    heights = [y for _, y in drawn.lines[0].dots]
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)
    assert {"1", "0.1", "0.01"} <= {label for _, label in drawn.y_ticks}


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=100),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_whatever_is_measured_can_be_drawn(values: list[float], first: int, log: bool) -> None:
    drawn = chart("x", {"a": Series(first + np.arange(len(values)), np.array(values))}, log=log)
    if drawn is None:
        assert not np.isfinite(values).any()
        return
    line = drawn.lines[0]
    points = [p.split(",") for p in f"{line.path[1:]}L{line.faint[1:] or line.path[1:]}".split("L")]
    x, y = np.array(points, float).T
    assert ((x >= LEFT) & (x <= RIGHT) & (y >= TOP) & (y <= BOTTOM)).all()
    assert all(TOP <= position <= BOTTOM for position, _ in drawn.y_ticks)


def test_words() -> None:
    assert [duration(s) for s in (0, 59.6, 400, 3600, 90061)] == [
        "0 s",
        "1 min",
        "6 min 40 s",
        "1 h",
        "1 d 1 h",
    ]
    assert [quantity(n) for n in (999, 12345, 3894775, 2.5e9)] == [
        "999",
        "12,345",
        "3.89 million",
        "2.5 billion",
    ]
    assert [size(n) for n in (512, 2048, 3.5e6, 2.1e9)] == ["512 bytes", "2.05 kB", "3.5 MB", "2.1 GB"]
    assert listing(["ct"]) == "ct"
    assert listing(["ct", "t1", "t2"]) == "ct, t1 and t2"
    assert [plural(1, "scan"), plural(2, "scan"), plural(0, "modality")] == [
        "1 scan",
        "2 scans",
        "0 modalities",
    ]
