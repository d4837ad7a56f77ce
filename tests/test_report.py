"""The report: what it tells is what experiments hold, and nothing in them gets further."""

import base64
import io
import json
import os
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
from PIL import Image

import paths
from selfstudy.analysis import compare, report, results
from selfstudy.analysis.report import page

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
BEGUN = 1_700_000_000.0
HOSTILE = (
    "</td><script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{7*7}} $x_$ \0\u202e&lt;"
)
ALLOWED = set(
    "html head meta title style body header h1 h2 h3 p ul li b dl dt dd div nav a main section "
    "table thead tbody tr th td figure figcaption img span footer svg g path defs use text "
    "clippath rect image tspan lineargradient stop".split()
)


class Tree(HTMLParser):
    """The elements of a page: names, attributes, and the texts of its chapters."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.chapter = ""
        self.texts = {"": ""}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self.chapter = dict(attrs)["id"]
            self.texts[self.chapter] = ""
        elif tag in ("td", "th", "p", "li", "dd", "text"):
            self.texts[self.chapter] += "|"

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] != "style":
            self.texts[self.chapter] += data

    def all(self, name: str) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == name]


def line(number: int, rounds: int, **more) -> dict:
    return {"round": number, "training_iteration": number, "rounds": rounds,
            "total_s": 60.0 * number, "time": BEGUN + 60 * number, "train_loss": 1 / number,
            "is_finished": number == rounds, "done": number == rounds} | more  # fmt: skip


def make(folder, trials, metric="valid_accuracy", events=True, **more):
    """An experiment: `trials` are (overrides, values of the metric a round, status)."""
    folder.mkdir(parents=True)
    rows, journal = [], [{"time": BEGUN, "event": "begin", "pid": 0, "host": "h",
                          "command": "python main.py -e x --resume"}]  # fmt: skip
    for number, (overrides, values, status) in enumerate(trials):
        name = f"e_{number:04d}"
        rows.append({"name": name, "overrides": overrides})
        if status == "planned":
            continue
        (folder / name).mkdir()
        (folder / name / "params.json").write_text(json.dumps(overrides))
        config = "".join(f"{key} = {value!r}\n" for key, value in overrides.items())
        (folder / name / "config.gin").write_text(f"{config}common.x = 1\n")
        rounds = len(values) if status == "done" else 9
        lines = [line(at, rounds, **{metric: value}, diverged=status == "diverged")
                 for at, value in enumerate(values, 1)]  # fmt: skip
        (folder / name / "result.json").write_text("".join(json.dumps(o) + "\n" for o in lines))
        at = BEGUN + 100 * number
        why = f"ValueError: {name} broke" if status == "failed" else None
        event = {"event": "trial", "name": name}
        journal += [event | {"time": at, "status": "started"},
                    event | {"time": at + 90, "status": status, "why": why}]  # fmt: skip
    journal.append({"time": BEGUN + 100 * len(trials), "event": "end", "code": 0})
    if events:
        text = "".join(json.dumps(one) + "\n" for one in journal)
        (folder / "journal.jsonl").write_text(text)
    plan = {"schema": 1, "exp_id": folder.name, "ray": "grid_search", "rows": rows,
            "command": "python main.py -e x", "digest": "abcdef0123456789",
            "exp_args": {"metric": metric, "mode": "max"},
            "spec": {"gin": ["digits/r9/classify"], "params": ["a.b = 1"]}}  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan | more))
    told = {"versions": {"python": "3.11.7", "torch": "2.14.1"},
            "git": {"commit": "6dab8d5b8692ca89", "changed": True},
            "machine": {"system": "Linux", "machine": "x86_64", "cpus": 2, "devices": ["A100"]},
            "data": {"digits/data_16.h5": "d9a0b1737498f2a71f5d1b0d"}}  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(told))
    return folder


def sweep(folder, **more):
    """Three learning rates x two widths x three seeds, the first three unlucky."""
    dice = random.Random(3)
    trials = []
    for lr in (0.01, 0.1, 1.0):
        for width in (1, 2):
            for seed in range(3):
                base = {0.01: 0.6, 0.1: 0.8, 1.0: 0.7}[lr] + 0.02 * width
                values = [round(base + 0.01 * dice.random() - 0.1 / at, 4) for at in (1, 2, 3)]
                given = {"optimizer.lr": lr, "ResNet.width": width, "session.seed": seed}
                trials.append((given, values, "done"))
    trials[0] = (trials[0][0], [], "failed")
    trials[1] = (trials[1][0], [0.5, None], "diverged")
    trials[2] = (trials[2][0], [0.4], "stopped")
    return make(folder, trials, **more)


def study(folder):
    """Two pretrained methods and scratch, at three numbers of labels, three seeds each."""
    made = {"rotate": 0.06, "simclr": 0.1}
    pretrain = [({"include": f"digits/r9/{name}"}, [0.3, 0.5], "done") for name in made]
    make(folder / "pretrain", pretrain)
    finetune = []
    for name, gain in {None: 0.0, **made}.items():
        for labels in (100, 400, 1600):
            for seed in range(3):
                value = 0.4 + 0.1 * np.log10(labels) + gain / (labels / 100) + 0.01 * seed
                start = f"{folder.name}/pretrain/{name}" if name else None
                given = {"Wrapper.pretrained": start, "BaseDataset.semisupervised": labels,
                         "session.seed": seed}  # fmt: skip
                finetune.append((given, [0.2, round(float(value), 4)], "done"))
    make(folder / "finetune", finetune, "test_accuracy")
    (folder / "study.json").write_text(json.dumps({
        "question": "Does utility fall as labels grow?", "chosen": {"preset": "smoke"},
        "command": "python main.py -e u1 -r studies/utility",
        "stages": ["pretrain", "finetune"],
    }))  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A function that makes an experiment and its page once: (folder, text, tree)."""
    root = tmp_path_factory.mktemp("exp")
    known = {}

    def get(build, name):
        if name not in known:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(paths, "EXP_DIR", root)
                build(root / name)
                text = report.make([name])
            known[name] = root / name, text, Tree(text)
        return known[name]

    return get


def harmless(text: str, tree: Tree) -> None:
    """What holds of every page: it loads nothing, runs nothing, and fits together."""
    assert {tag for tag, _ in tree.tags} <= ALLOWED
    names = {name for _, attrs in tree.tags for name in attrs}
    assert not {name for name in names if name.startswith("on")}
    assert not re.search(r"https?:", text)
    metas = [one for one in tree.all("meta") if one.get("http-equiv")]
    assert metas[0] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    ids = [attrs["id"] for _, attrs in tree.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [attrs[name] for _, attrs in tree.tags for name in ("href", "xlink:href", "src")
             if name in attrs]  # fmt: skip
    assert all(link.startswith(("#", "data:image/png;", "data:text/csv;")) for link in links)
    used = {link[1:] for link in links if link.startswith("#")}
    used |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert used <= set(ids)
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e]", text)
    text.encode()
    assert all(one["role"] == "img" and one["aria-label"] for one in tree.all("svg"))


# ---- a study --------------------------------------------------------------------------------


def test_a_study_is_told_by_its_question_its_sentences_and_its_curves(pages):
    _, text, tree = pages(study, "u1")
    harmless(text, tree)
    assert "<h1>Does utility fall as labels grow?</h1>" in text
    assert "python main.py -e u1 -r studies/utility" in tree.texts[""]
    assert "Preset smoke." in tree.texts[""]
    assert "29 trials in 2 experiments" in tree.texts[""]
    assert "As labels grow, utility falls for 2 of 2 methods" in tree.texts["answer"]
    assert "simclr with 100 labels is as good as scratch with" in tree.texts["answer"]
    labels = [one["aria-label"] for one in tree.all("svg")]
    assert labels[:2] == [
        "test accuracy against the number of labels",
        "Utility: how many more labels training from scratch would have needed",
    ]
    assert "sweep" not in tree.texts and "leaderboard" in tree.texts


def test_the_table_of_a_study_has_mean_spread_and_repeats(pages):
    _, text, tree = pages(study, "u1")
    values = [0.4 + 0.2 + 0.01 * seed for seed in range(3)]
    cell = f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f} (3)"
    assert cell == "0.610 ± 0.010 (3)"
    assert f"|scratch|{cell}|" in tree.texts["answer"]
    assert '<td class="number best">0.710 ± 0.010 (3)</td>' in text  # simclr at 100 labels
    utility = tree.texts["answer"].partition("Utility over scratch")[2]
    assert "|rotate|" in utility and "|scratch|" not in utility  # over itself it is 0


def test_a_method_is_compared_with_the_others_and_stages_each_alone(pages):
    told = pages(study, "u1")[2].texts["configurations"]
    assert (
        "|parameter|rotate|scratch|simclr" in told or "|parameter|scratch|rotate|simclr" in told
    )
    assert "'u1/pretrain/rotate'" in told
    assert "include = digits/r9/rotate" in told  # columns of the first stage
    assert "session.seed" not in told and "common.x" not in told


def test_downloads_hold_the_numbers(pages):
    folder, _, tree = pages(study, "u1")
    files = {one["download"]: one["href"] for one in tree.all("a") if "download" in one}
    frames = {name: pandas.read_csv(io.BytesIO(base64.b64decode(link.partition(",")[2])))
              for name, link in files.items()}  # fmt: skip
    assert {name: len(frame) for name, frame in frames.items()} == {
        "trials.csv": 29, "rounds.csv": 58, "table.csv": 9,
    }  # fmt: skip
    assert frames["trials.csv"]["test_accuracy"].count() == 27
    highest = 0.4 + 0.1 * np.log10(1600) + 0.1 / 16 + 0.01
    assert frames["table.csv"].accuracy.max() == pytest.approx(highest, abs=2e-4)


def test_a_study_stands_for_its_stages(pages, monkeypatch, results_command, tmp_path):
    folder, _, _ = pages(study, "u1")
    monkeypatch.setattr(paths, "EXP_DIR", folder.parent)
    assert results.expand(["u1", "u1/finetune", "nothing"]) == [
        "u1/pretrain", "u1/finetune", "u1/finetune", "nothing",
    ]  # fmt: skip
    assert results.expand([folder]) == ["u1/pretrain", "u1/finetune"]
    frame = results.trials("u1")
    assert frame.exp.tolist() == ["u1/pretrain"] * 2 + ["u1/finetune"] * 27
    assert len(results.rounds("u1")) == 58
    told = json.loads(results_command("ls", "u1", "--json")[1])["trials"]
    assert len(told) == 29 and told[0]["exp"] == "u1/pretrain"
    ranked = json.loads(results_command("best", "u1", "--metric", "test_accuracy", "--json")[1])
    assert {one["exp"] for one in ranked["trials"]} == {"u1/finetune"}
    assert results_command("export", "u1", "--csv", tmp_path / "x.csv")[0] == 0
    assert len(pandas.read_csv(tmp_path / "x.csv")) == 29


@pytest.mark.parametrize("content", ["{", "[]", '{"stages": 3, "question": []}', "null",
                                     '{"stages": ["../..", null, "b"]}'])  # fmt: skip
def test_a_damaged_study_is_read_by_name(exp_dir, content):
    for name in "cba":
        make(exp_dir / "s" / name, [({}, [0.1], "done")])
    (exp_dir / "s" / "study.json").write_text(content)
    first = ["s/b"] if '"b"' in content else []
    rest = [f"s/{name}" for name in "abc" if f"s/{name}" not in first]
    assert results.expand(["s"]) == first + rest
    assert "question" not in results.study(exp_dir / "s")


# ---- a search -------------------------------------------------------------------------------


def test_a_search_is_told_by_its_best_trial_and_its_mean_over_seeds(pages):
    folder, text, tree = pages(sweep, "grid")
    harmless(text, tree)
    assert "<h1>grid</h1>" in text
    lines = [json.loads((folder / f"e_{n:04d}" / "result.json").read_text().splitlines()[-1])
             for n in range(3, 18)]  # fmt: skip
    scores = [one["valid_accuracy"] for one in lines]
    best = 3 + int(np.argmax(scores))
    told = tree.texts["answer"]
    assert (
        f"The largest valid_accuracy is {max(scores):.4f}: e_{best:04d} with lr = 0.1" in told
    )
    same = scores[6:9]  # lr 0.1, width 2
    assert f"Over 3 seeds the mean is {np.mean(same):.4f} [" in told


def test_the_leaderboard_groups_seeds_and_counts_what_failed(pages):
    folder, _, tree = pages(sweep, "grid")
    rows = tree.texts["leaderboard"]
    heads = "||lr|width|valid_accuracy|95 % interval|n|rounds|trials"
    assert re.sub(r"\s*\n\s*", "", rows).startswith(f"Leaderboard{heads}|1|0.1|2|0.8")
    assert "|1|0 to 2|1 stopped, 1 diverged, 1 failed" in rows  # one of three has a value
    places = [compare.groups(results.read(folder).trials, "valid_accuracy", mode)[0].values
              for mode in ("max", "min")]  # fmt: skip
    assert places == [{"optimizer.lr": 0.1, "ResNet.width": 2},
                      {"optimizer.lr": 0.01, "ResNet.width": 1}]  # fmt: skip


def test_the_header_says_what_ran_where_and_how_it_ended(pages):
    told = pages(sweep, "grid")[2].texts[""]
    for part in ("15 done", "1 stopped", "1 diverged", "1 failed", "python main.py -e x",
                 "6dab8d5b8692, with changes", "Linux x86_64, 2 CPUs, A100",
                 "python 3.11.7, torch 2.14.1", "30:00", "0.80 hours",
                 "|failed|1|ValueError: e_0000 broke"):  # fmt: skip
        assert part in re.sub(r"\s*\n\s*", " ", told), part


def test_a_search_has_its_figures_failures_and_provenance(pages):
    _, _, tree = pages(sweep, "grid")
    labels = [one["aria-label"] for one in tree.all("svg")]
    assert labels == [
        "valid accuracy over rounds",
        "Each line is a trial, from its parameters to its result",
        "The result against each parameter alone", "How much each parameter matters",
        "The result for two parameters", "When which trial ran, and the best result so far",
        "What early stopping saved",
    ]  # fmt: skip
    assert "|grid/e_0000|failed|0|ValueError: e_0000 broke" in tree.texts["failures"]
    assert "|grid/e_0001|diverged|2|the loss was not finite" in tree.texts["failures"]
    for part in (
        "grid_search (digest abcdef012345)", "digits/r9/classify", "a.b = 1",
        "python main.py -e x --resume", "digits/data_16.h5: d9a0b1737498f2a7",
    ):  # fmt: skip
        assert part in tree.texts["provenance"], part


def test_a_loss_is_best_when_small(pages):
    def build(folder):
        trials = [({"optimizer.lr": lr}, [0.9, lr], "done") for lr in (0.3, 0.2, 0.4)]
        make(folder, trials, "valid_loss", exp_args={"metric": "valid_loss", "mode": "min"})

    tree = pages(build, "loss")[2]
    assert "The smallest valid_loss is 0.2000: e_0001 with lr = 0.2" in tree.texts["answer"]
    assert "|1|0.2|0.2000|1|2|1 done|2|0.3|" in tree.texts["leaderboard"].replace("\n", "")


def test_a_single_seed_has_no_interval(pages):
    def build(folder):
        make(folder, [({"optimizer.lr": lr}, [lr], "done") for lr in (0.1, 0.2)])

    _, text, tree = pages(build, "single")
    assert "interval" not in tree.texts["leaderboard"].partition("Last round")[0]
    assert "[" not in tree.texts["answer"] and not re.search(r"\bnan\b", text.lower())


# ---- odd experiments ------------------------------------------------------------------------


ODD = {
    "nothing": [],
    "one": [({}, [0.1, 0.2], "done")],
    "waiting": [({"a.b": n}, [], "planned") for n in range(5)],
    "failed": [({"a.b": n}, [], "failed") for n in range(60)],
    "nan": [({"a.b": n, "a.c": -n}, [None, None], "diverged") for n in range(9)],
    "thousand": [({"optimizer.lr": n / 1000}, [n / 1000], "done")
                 for n in range(1000)],
}  # fmt: skip
TOLD = {
    "nothing": ("0 trials in 1 experiment", "provenance"),
    "one": ("The largest valid_accuracy is 0.2000: e_0000, round 2.", "answer"),
    "waiting": ("No trial has a value of valid_accuracy yet.", "answer"),
    "failed": ("10 more are left out.", "failures"),
    "nan": ("No trial has a value of valid_accuracy.|The smallest train_loss is", "answer"),
    "thousand": ("950 more are left out.", "leaderboard"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_experiment_has_a_page(pages, name):
    # A thousand bars of a journal take seconds to draw.
    _, text, tree = pages(
        lambda folder: make(folder, ODD[name], events=name != "thousand"), name
    )
    harmless(text, tree)
    expected, chapter = TOLD[name]
    assert expected in tree.texts["" if name == "nothing" else chapter].replace("\n", "")
    assert chapter in tree.texts
    assert len(text.encode()) < 3e6
    if not ODD[name]:
        assert not tree.all("svg")


def test_hostile_names_do_nothing(pages):
    def build(folder):
        trials = [({f"a.{HOSTILE}": n, f"b.{HOSTILE}": f"{n}{HOSTILE}", "session.seed": n},
                   [0.1, 0.1 * n], "done") for n in range(9)]  # fmt: skip
        make(folder, trials, HOSTILE, ray=HOSTILE, command=HOSTILE,
             spec={"gin": [HOSTILE], "params": [HOSTILE]})  # fmt: skip
        name = folder / "e_0000"
        (name / "error.txt").write_text(f"{HOSTILE}\n")
        (folder / "<script>alert(3)<").mkdir()
        (folder / "<script>alert(3)<" / "params.json").write_text("{}")
        journal = (folder / "journal.jsonl").read_text().splitlines()
        for at, status in ((2, "failed"), (4, "stopped"), (6, "diverged")):
            event = json.loads(journal[at]) | {"why": HOSTILE, "status": status}
            journal[at] = json.dumps(event)
            lines = folder / event["name"] / "result.json"
            lines.write_text(lines.read_text().replace('"done": true', '"done": false'))
        (folder / "journal.jsonl").write_text("\n".join(journal[:-1]) + "\n")
        told = {HOSTILE: HOSTILE}
        text = json.dumps({"versions": told, "git": {"commit": HOSTILE, "changed": HOSTILE},
                           "machine": {"system": HOSTILE, "cpus": HOSTILE, "devices": [[]]},
                           "data": told})  # fmt: skip
        (folder / "environment.json").write_text(text)
        (folder / "study.json").write_text(
            json.dumps({"question": HOSTILE, "chosen": {"preset": HOSTILE}})
        )
        pictures = folder / "e_0000" / "pictures"
        pictures.mkdir()
        Image.new("RGB", (4, 4)).save(pictures / '"><img onerror=x>.png')
        (pictures / "predictions.csv").write_text(f"truth,predicted\n<b>,{HOSTILE[:20]}\n")

    _, text, tree = pages(build, "hostile")
    harmless(text, tree)
    assert "49" not in tree.texts["answer"] and "{{7*7}}" in tree.texts["answer"]
    assert "<script>alert(1)" in tree.texts["failures"]  # as text
    assert len(tree.all("img")) == 1 and len(tree.all("svg")) >= 6


def test_odd_values_of_a_stranger_are_survived(exp_dir):
    folder = sweep(exp_dir / "x")
    odd = [{"time": 1e999, "event": "begin"}, {"time": -1e300, "event": "end"},
           {"time": 1e300, "event": "trial", "name": "e_0005", "status": "failed", "why": [1]},
           {"time": 1.0, "event": "begin", "command": ["a"]}]  # fmt: skip
    with open(folder / "journal.jsonl", "a") as file:
        text = "".join(json.dumps(one) + "\n" for one in odd)
        file.write(text.replace("Infinity", "1e999") + "{torn")
    rows = [line(1, 3, valid_accuracy=1e308), line(2, 3, total_s=1e300, valid_accuracy=-1e308)]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "e_0004" / "result.json").write_text(text)
    (folder / "environment.json").write_text('{"machine": 3, "git": [], "versions": null}')
    text = report.make(["x"])
    harmless(text, Tree(text))
    assert "1 damaged line left out" in text


# ---- pictures -------------------------------------------------------------------------------


def test_pictures_are_small_few_and_plain_files(exp_dir, tmp_path):
    folder = make(exp_dir / "p", [({"a.b": n}, [0.1 * n], "done") for n in (1, 2)])
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    inside = folder / "e_0000" / "pictures"
    inside.mkdir()
    for number in range(14):
        Image.fromarray(noise[:8, : 8 + number]).save(inside / f"view_{number:02d}.png")
    Image.fromarray(noise).save(inside / "a_large.png")
    (inside / "b_text.png").write_text("<svg onload=alert(1)>")
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    (inside / "c_link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(inside / "d_pipe.png")
    (folder / "e_0001" / "pictures").symlink_to(inside)
    text = report.make(["p"])
    tree = Tree(text)
    harmless(text, tree)
    shown = tree.all("img")
    assert [one["alt"] for one in shown] == [f"view {n:02d}: p/e_0000" for n in range(12)]
    assert "6 more in the trials' folders." in tree.texts["pictures"]
    content = base64.b64decode(shown[1]["src"].partition(",")[2])
    assert Image.open(io.BytesIO(content)).size == (9, 8)


def test_confusions_are_of_the_best_trials_test_split(exp_dir):
    folder = make(exp_dir / "p", [({"a.b": n}, [0.1 * n], "done") for n in (1, 2)])
    for name, label in (("e_0000", "7"), ("e_0001", "3")):
        (folder / name / "pictures").mkdir()
        rows = ["row,truth,predicted,confidence,split", f"1,{label},{label},0.9,test",
                f"2,{label},4,0.9,test", "3,5,5,0.9,valid", "4,,,,test"]  # fmt: skip
        (folder / name / "pictures" / "predictions.csv").write_text("\n".join(rows))
    tree = Tree(report.make(["p"]))
    assert tree.all("svg")[-1]["aria-label"] == "Predictions of p/e_0001"
    told = tree.texts["pictures"]
    assert "50.0% of 2 are right" in told and "|3" in told and "|7" not in told


# ---- the command ----------------------------------------------------------------------------


def test_the_command_writes_the_page(exp_dir, tmp_path, results_command):
    make(exp_dir / "grid", [({"a.b": n}, [0.1 * n], "done") for n in range(3)])
    code, out, err = results_command("report", "grid", "-o", tmp_path / "r.html")
    assert (code, out) == (0, "") and "3 trials in" in err
    assert Tree((tmp_path / "r.html").read_text()).texts["answer"]
    assert 'http-equiv="refresh"' not in (tmp_path / "r.html").read_text()


def test_a_mistake_is_one_line_and_leaves_nothing(exp_dir, tmp_path, results_command):
    make(exp_dir / "grid", [({}, [0.1], "done")])
    (tmp_path / "old.html").write_text("old")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for words, told in {
        ("gird", "-o", tmp_path / "old.html"): "did you mean 'grid'",
        ("grid", "-o", tmp_path / "no" / "r.html"): "there is no folder",
        ("grid", "-o", tmp_path): "is a folder",
        ("grid", "-o", tmp_path / "a\0b.html"): "no file",
        ("grid", "-o", tmp_path / ("x" * 300)): "cannot write",
        ("grid", "-o", tmp_path / "r.html", "--watch", "0"): "1 or more",
        ("grid", "-o", tmp_path / "r.html", "--watch", "nan"): "1 or more",
    }.items():
        code, out, err = results_command("report", *words)
        assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ")
        assert told in err
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert (tmp_path / "old.html").read_text() == "old"


def test_watching_writes_on_news_and_ends_with_the_last_trial(exp_dir, tmp_path):
    folder = make(exp_dir / "w", [({}, [0.1], "stopped")], events=False)
    lines, output, said, seen = folder / "e_0000" / "result.json", tmp_path / "r.html", [], []

    def sleep(seconds):
        assert seconds == 7
        text = output.read_text()
        seen.append((len(said), Tree(text).all("meta")[-1].get("content")))
        if len(seen) >= 2:
            whole = len(seen) == 3
            with open(lines, "a") as file:
                file.write(
                    json.dumps(line(len(seen), 3, valid_accuracy=0.2, done=whole)) + "\n"
                )

    report.watch(["w"], output, 7, said.append, sleep)
    assert seen == [(1, "7"), (1, "7"), (2, "7")]  # nothing was new at the second look
    assert said == [f"{output}: 0 of 1 trials have ended"] * 2 + [
        f"{output}: 1 of 1 trials have ended"]  # fmt: skip
    text = output.read_text()
    assert "refresh" not in text.partition("<style>")[0] and "0.2000" in text


def test_watching_waits_for_stages_to_come(exp_dir, tmp_path):
    make(exp_dir / "s" / "first", [({}, [0.1], "done")])
    (exp_dir / "s" / "study.json").write_text('{"stages": ["first", "second"]}')
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            make(exp_dir / "s" / "second", [({}, [0.1], "done")])

    report.watch(["s"], tmp_path / "r.html", 1, lambda text: None, sleep)
    assert len(looks) == 2


def test_ctrl_c_ends_watching_well(exp_dir, tmp_path, results_command, monkeypatch):
    make(exp_dir / "w", [({}, [], "planned")])

    def sleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(report.watch, "__defaults__", (sleep,))
    code, out, _ = results_command("report", "w", "-o", tmp_path / "r.html", "--watch", "5")
    assert (code, out) == (0, "")
    assert '<meta http-equiv="refresh" content="5">' in (tmp_path / "r.html").read_text()


# ---- figures in the page --------------------------------------------------------------------


def test_a_figure_takes_the_pages_colour_and_keeps_its_texts():
    from selfstudy.analysis.figures import canvas

    picture, (ax,) = canvas.grid(1)
    ax.plot([0, 1], [0, 1.23456789], color=canvas.BLACK)
    ax.set_title("a <b> & 1.23456789")
    first, second = (page.inline(picture, 'so "it" is', number) for number in (1, 2))
    assert "#000000" not in first and "stroke: currentColor" in first
    assert "a &lt;b&gt; &amp; 1.23456789" in first  # only coordinates lose digits
    assert 'aria-label="so &#34;it&#34; is"' in first and "<style" not in first
    names = [set(re.findall(r'id="([^"]+)"', one)) for one in (first, second)]
    assert names[0] and not names[0] & names[1]
    assert page.inline(picture, 'so "it" is', 1) == first


# ---- in a browser ---------------------------------------------------------------------------


def browse(path, picture, *flags):
    """What a page says to Chromium's console while it is shown and its picture is taken."""
    flags = (f"--screenshot={picture}", *flags)
    words = [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu",
             "--enable-logging=stderr", "--v=0", *flags, path.as_uri()]  # fmt: skip
    told = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stderr
    return [line for line in told.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(not shutil.which("chromium"), reason="Chromium is not installed")
def test_a_browser_shows_the_page_and_finds_no_fault(pages, tmp_path):
    faulty = tmp_path / "faulty.html"
    faulty.write_text(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
                      "<script>1</script>")  # fmt: skip
    path, picture = tmp_path / "page.html", tmp_path / "page.png"
    assert "Content Security Policy" in browse(faulty, picture)[0]
    for name, scheme, back in (("grid", 1, (255, 255, 255)), ("hostile", 0, (20, 23, 27))):
        build = sweep if name == "grid" else None
        path.write_text(pages(build, name)[1])
        flags = ["--window-size=900,1600", "--hide-scrollbars",
                 f"--blink-settings=preferredColorScheme={scheme}"]  # fmt: skip
        assert browse(path, picture, *flags) == []
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert pixels.shape == (1600, 900, 3) and tuple(pixels[2, 2]) == back
        away = np.abs(pixels.astype(int) - back).sum(axis=2) > 200
        assert 0.01 < away.mean() < 0.5  # letters and lines
