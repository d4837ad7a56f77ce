"""Gin texts are read as data: checked, bound in order, and refused with a place and a hint."""

import inspect
import json
import re
import sys
import textwrap
from typing import Annotated, Any, Literal

import gin
import numpy as np
import pytest

import paths
from selfstudy import configure, registry, values
from selfstudy.configure import Spec
from selfstudy.experiment import rayconfig
from selfstudy.train import optim
from selfstudy.values import convert
from util.errors import UserError, nearest

registry.discover()


@pytest.fixture
def gin_dir(tmp_path, monkeypatch):
    """An empty folder in the place of config/gin."""
    folder = tmp_path / "config" / "gin"
    folder.mkdir(parents=True)
    monkeypatch.setattr(paths, "GIN_DIR", folder)
    return folder


@pytest.fixture
def write(gin_dir):
    """Write config/gin/<name>.gin."""

    def put(name: str, text: str) -> str:
        path = gin_dir / f"{name}.gin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return name

    return put


def load(*names: str, params: tuple[str, ...] = (), overrides: dict | None = None) -> dict:
    configure.load(Spec(names, params), overrides)
    return configure.current_bindings()


def refusal(*names: str, params: tuple[str, ...] = (), overrides: dict | None = None) -> str:
    with pytest.raises(UserError) as error:
        load(*names, params=params, overrides=overrides)
    assert error.value.code == 2
    return error.value.text


# ---- types ----------------------------------------------------------------------------------

FITS = [
    (128, int, 128),
    (1e3, int, 1000),  # written as 1e3
    (5, float, 5.0),
    (1e-5, float, 1e-5),
    (True, bool, True),
    ("Adam", str, "Adam"),
    (None, int | None, None),
    (3, int | None, 3),
    (3.0, int | None, 3),
    (None, list[float] | None, None),
    ((0.8, 0.999), list[float], [0.8, 0.999]),
    ([0, 1], tuple[float, float], [0.0, 1.0]),
    ((1, 2, 3), tuple[float, ...], [1.0, 2.0, 3.0]),
    ([], list[float], []),
    ([5, 1e2], list[int], [5, 100]),
    ([[1], (2, 3)], list[list[int]], [[1], [2, 3]]),
    (["x", 1], list, ["x", 1]),
    ({"nesterov": True}, dict | None, {"nesterov": True}),
    ("lab", Literal["rgb", "lab"], "lab"),
    (0.25, float | str, 0.25),
    ("folder", float | str, "folder"),
    (1, int | float, 1),
    (1.5, int | float, 1.5),
    (object, Any, object),
    ("RotateTask", Annotated[str, registry.Names("task")], "RotateTask"),
    (None, Annotated[str | None, registry.Names("task")], None),
]


@pytest.mark.parametrize(("value", "hint", "expected"), FITS, ids=repr)
def test_a_value_that_fits_is_brought_to_its_type(value, hint, expected):
    result = convert("a.b", value, hint, None, "-p")
    assert result == expected and type(result) is type(expected)
    if isinstance(expected, list):
        assert [type(item) for item in result] == [type(item) for item in expected]


MISFITS = [
    ("128", int, "int"),
    (1.5, int, "int"),
    (True, int, "int"),
    (None, int, "int"),
    (float("inf"), int, "int"),
    (float("inf"), float, "float"),
    (float("nan"), float, "float"),
    (True, float, "float"),
    ("1e-3", float, "float"),
    (1, bool, "bool"),
    ("True", bool, "bool"),
    (3, str, "str"),
    ("3", int | None, "int or None"),
    (5, list[float], "list[float]"),
    ("ab", list[str], "list[str]"),
    ([1, "2"], list[float], "list[float]"),
    ([True], list[float], "list[float]"),
    ([0.9], tuple[float, float], "tuple[float, float]"),
    ([("k", 1)], dict | None, "dict or None"),
    ("hsv", Literal["rgb", "lab"], "one of 'rgb', 'lab'"),
    (True, Literal[1, 2], "one of 1, 2"),
    (3, Annotated[str, registry.Names("task")], "str"),
]


@pytest.mark.parametrize(("value", "hint", "expected"), MISFITS, ids=repr)
def test_a_value_that_does_not_fit_is_named_with_what_is_expected(value, hint, expected):
    with pytest.raises(UserError) as error:
        convert("a.b", value, hint, 7, "here:3")
    shown = f'"{value}"' if isinstance(value, str) else repr(value)
    assert error.value.text == (
        f"here:3: 'a.b' takes {expected}, not {shown} ({type(value).__name__}); "
        "the default is 7"
    )


def test_without_a_default_none_is_mentioned():
    text = refusal(params=("scheduler.milestones = 5",))
    assert text.endswith("takes list[float], not 5 (int)")


def test_a_registered_name_is_checked_with_its_place_and_the_nearest():
    text = refusal(params=("session.task = 'RotatTask'",))
    assert text.startswith("-p 'session.task = 'RotatTask'': no task is called 'RotatTask' - ")
    assert "did you mean 'RotateTask'? (known: AMDIMTask, " in text
    text = refusal(overrides={"Wrapper.model_choice": "rotat"})
    assert text.startswith("ray config: no backbone is called 'rotat' - did you mean 'rotate'?")


# ---- names ----------------------------------------------------------------------------------


def test_nearest_is_found_in_any_case_and_lists_twelve_at_most():
    options = [f"name{number:02d}" for number in range(20)] + ["Batch_size"]
    assert nearest("BATCHSIZE", options).startswith(" - did you mean 'Batch_size'?")
    hint = nearest("zzz", options)
    assert hint.count("name") == 11 and hint.endswith(", ...)")
    assert "did you mean" not in nearest("zzz", options) and nearest("x", []) == ""


UNKNOWN = [
    ("dataloader.batchsize = 3", "'dataloader' has no parameter 'batchsize' - did you mean "
                                 "'batch_size'? (known: batch_size, num_workers, shuffle)"),
    ("Dataloader.batch_size = 3", "nothing is called 'Dataloader' - did you mean 'dataloader'"),
    ("foo.bar = 3", "nothing is called 'foo' (known: "),
    ("foo = 3", "'foo' is not of the form 'component.argument'"),
    ("batch_size = 3", "'batch_size' is not of the form 'component.argument' - did you mean "
                       "'dataloader.batch_size'?"),
    ("dataloader.dataset = 3", "'dataloader' has no parameter 'dataset'"),  # the caller's
    ("BaseDataset.split = 'test'", "'BaseDataset' has no parameter 'split'"),
    ("trian/dataloader.batch_size = 3", "'trian/dataloader' is never used - did you mean "
                                        "'train/dataloader'?"),
    ("train/augment.flip = True", "'train/augment' is never used"),
    ("a.b.c = 3", "nothing is called 'a.b'"),
]  # fmt: skip


@pytest.mark.parametrize(("binding", "expected"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_an_unknown_name_is_answered_with_the_nearest(binding, expected, write):
    assert refusal(params=(binding,)).startswith(f"-p '{binding}': {expected}")
    if "." in binding:  # files may define macros
        text = refusal(write("some/file", f"# a comment\n\n{binding}\n"))
        assert text.startswith(f"config/gin/some/file.gin:3: {expected}")


def test_a_search_over_a_parameter_that_does_not_exist_is_refused():
    text = refusal(overrides={"scheduler.target_lr": [0, 1, 0]})
    assert text.startswith("ray config: 'scheduler' has no parameter 'target_lr' - ")
    assert "did you mean 'target_lrs'?" in text
    assert "is not of the form 'component.argument'" in refusal(overrides={"lr": 3})


def test_no_configurable_hides_names_behind_kwargs():
    """Gin checks no name behind `**kwargs`: a misspelt one would bind without a word."""
    hiding = {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    walked = set()
    for entry in configure._entries():
        given = inspect.signature(configure._function(entry)).parameters.values()
        assert not hiding & {parameter.kind for parameter in given}, entry.name
        walked.add(entry.name)
    assert walked >= {"session", "Wrapper", "optimizer", "CIFARDataset"}


def test_every_argument_has_a_type_that_is_checked():
    """An argument without an annotation would accept anything."""
    for entry in configure._entries():
        for name, (hint, _) in configure.parameters(entry.name).items():
            assert hint is not Any, f"{entry.name}.{name}"


def test_every_default_fits_its_own_type():
    for entry in configure._entries():
        for name, (hint, default) in configure.parameters(entry.name).items():
            if default is not gin.REQUIRED:
                convert(f"{entry.name}.{name}", default, hint, default, "default")


# ---- syntax ---------------------------------------------------------------------------------

SYNTAX = [
    ("optimizer.optim_fn = SGD", "string values need quotes: 'optimizer.optim_fn = \"SGD\"'"),
    ("session.dataset=my-set", "string values need quotes: 'session.dataset = \"my-set\"'"),
    ("augment.flip = true", "write 'augment.flip = True'"),
    ("Wrapper.pretrained = none", "write 'Wrapper.pretrained = None'"),
    ("session.seed = 2+2", "2+2 is no value; expected one number, True, False, None, text in "
                           "quotes, or a list of these"),
    ("session.task = Rotate Task", "Rotate Task is no value; expected one number, "),
    ("session.task = 'Rotate", "cannot be parsed: a bracket or a quote is left open"),
    ("dataloader.batch_size = 3 optimizer.lr = 3", "3 optimizer.lr = 3 is no value; "),
    ("dataloader.batch_size =", "nothing is no value; expected one number, "),
    ("scheduler.milestones = [1,", "cannot be parsed: a bracket or a quote is left open"),
    ("scheduler.milestones = 1]", "cannot be parsed: Expected newline."),
    ("dataloader", "cannot be parsed: Couldn't parse statement, expected ':' or '='."),
    ("session.task = @RotateTask()", "'@RotateTask': references are not supported; name it in "
                                     "quotes"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "expected"), SYNTAX, ids=[row[0] for row in SYNTAX])
def test_a_line_that_does_not_parse_is_answered_with_what_to_type(line, expected, write):
    if "=" in line:
        assert refusal(params=(line,)).startswith(f"-p '{line}': {expected}")
    name = write("file", f"session.seed = 1\n\n# more\n{line}\n")
    assert refusal(name).startswith(f"config/gin/file.gin:4: {expected}")


@pytest.mark.parametrize("line", ["", "=", " = 3", "dataloader.batch_size", "import os",
                                  "import os = 1", "include 'base/r9.gin'", "include 'a=b'",
                                  "from __gin__ import dynamic_registration"])  # fmt: skip
def test_a_param_is_one_binding(line):
    expected = "expected 'name = value', as in 'dataloader.batch_size = 64'"
    assert refusal(params=(line,)) == f"-p '{line}': {expected}"


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_a_param_cannot_smuggle_in_a_second_line(end):
    text = refusal(params=(f"dataloader.batch_size = 3{end}import os",))
    assert text.startswith("-p takes one binding each: ") and text.isprintable()


def test_comments_spaces_and_blocks_are_gins():
    assert load(params=("dataloader.batch_size=3  # small",))["dataloader.batch_size"] == 3
    assert load(params=("  dataloader.batch_size   =   4 ",))["dataloader.batch_size"] == 4


def test_a_block_binds_and_is_checked(write):
    name = write("block", "dataloader:\n  batch_size = 3\n  shuffle = True\n")
    assert load(name) == {"dataloader.batch_size": 3, "dataloader.shuffle": True}
    text = refusal(write("wrong", "dataloader:\n  batch_size = 3\n  shufle = True\n"))
    assert text.startswith("config/gin/wrong.gin:3: 'dataloader' has no parameter 'shufle'")


def test_a_file_that_is_no_text_is_one_line(gin_dir):
    (gin_dir / "bytes.gin").write_bytes(bytes(range(256)))
    assert "\n" not in refusal("bytes")


# ---- files, includes and precedence ---------------------------------------------------------


def test_later_files_win_then_params_then_a_search(write):
    write("base/common", "dataloader.batch_size = 1\nsession.seed = 1\n")
    one = write("one", "include 'base/common.gin'\nsession.seed = 2\noptimizer.lr = 2\n")
    two = write("two", "optimizer.lr = 3\nsession.train_iters = 3\nsession.valid_iters = 3\n")
    bound = load(one, two, params=("session.train_iters = 4", "session.valid_iters = 4"),
                 overrides={"session.valid_iters": 5})  # fmt: skip
    assert bound == {
        "dataloader.batch_size": 1,
        "session.seed": 2,
        "optimizer.lr": 3.0,
        "session.train_iters": 4,
        "session.valid_iters": 5,
    }
    assert load(two, one)["optimizer.lr"] == 2.0
    assert load(params=("session.seed = 8", "session.seed = 9")) == {"session.seed": 9}


def test_nothing_of_an_earlier_configuration_remains(write):
    load(write("one", "session.seed = 2\n"), params=("optimizer.lr = 2",))
    assert load(params=("session.seed = 3",)) == {"session.seed": 3}
    with pytest.raises(RuntimeError, match="locked"):
        gin.bind_parameter("session.seed", 4)


def test_an_ending_may_be_typed(write):
    assert load(write("one", "session.seed = 2\n") + ".gin") == {"session.seed": 2}


def test_a_missing_file_is_answered_with_the_nearest_and_with_who_includes_it(write):
    write("cifar/r9/classify", "session.seed = 1\n")
    write("base/cifar", "session.seed = 1\n")
    assert refusal("cifar/r9/clasify") == (
        "-g: no config/gin/cifar/r9/clasify.gin - did you mean 'cifar/r9/classify'? "
        "(known: cifar/r9/classify)"
    )
    name = write("leaf", "\ninclude 'base/cifr.gin'\n")
    assert refusal(name).startswith("config/gin/leaf.gin:2: no config/gin/base/cifr.gin")


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "base/../../secret", "link"])
def test_files_and_includes_stay_inside_config_gin(target, write, gin_dir):
    (gin_dir / "link.gin").symlink_to(gin_dir.parent / "secret.gin")
    (gin_dir.parent / "secret.gin").write_text("token = 'hunter2'\n")
    text = refusal(target)
    assert text.startswith(f"-g: '{target}.gin' ") and "hunter2" not in text
    name = write("leaf", f"session.seed = 1\ninclude '{target}.gin'\n")
    text = refusal(name)
    assert text.startswith(f"config/gin/leaf.gin:2: '{target}.gin' ") and "hunter2" not in text


def test_files_that_include_each_other_are_refused(write):
    write("a", "include 'b.gin'\n")
    write("b", "session.seed = 1\ninclude 'a.gin'\n")
    assert refusal("a") == "config/gin/b.gin:2: config/gin/a.gin includes itself"
    write("twice", "include 'one.gin'\ninclude 'one.gin'\n")  # no cycle
    write("one", "session.seed = 1\n")
    assert load("twice") == {"session.seed": 1}


# ---- files from strangers (security, row 7) -------------------------------------------------

ATTACKS = {
    "dynamic": ("""\
        session.seed = 1
        from __gin__ import dynamic_registration
        import os
        os.system.command = 'touch {marker}'
        dataloader.batch_size = @os.system()
        """, 2),
    "import": ("import evil_on_import\n", 1),
    "from": ("session.seed = 1\nfrom evil_on_import import x\n", 2),
    "import as": ("import evil_on_import as session\n", 1),
    "call": ("\ndataloader.batch_size = @evil_on_import.run()\n", 2),
    "nested call": ("scheduler.milestones = [1, @session()]\n", 1),
    "reference": ("session.task = @RotateTask\n", 1),
    "macro of a call": ("N = @session()\ndataloader.batch_size = %N\n", 1),
    "singleton": ("session.task = @x/singleton()\nx/singleton.constructor = @session\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_file_runs_no_code(attack, write, tmp_path, monkeypatch):
    marker = tmp_path / "marker"
    (tmp_path / "evil_on_import.py").write_text(f"open({str(marker)!r}, 'w')\nx = run = exit\n")
    monkeypatch.syspath_prepend(tmp_path)
    text, line = ATTACKS[attack]
    text = textwrap.dedent(text).format(marker=marker)
    name = write("shared/attack", text)
    for names in ((name,), (write("leaf", "include 'shared/attack.gin'\n"),)):
        assert refusal(*names).startswith(f"config/gin/shared/attack.gin:{line}: ")
    assert not marker.exists() and "evil_on_import" not in sys.modules
    for one in filter(None, text.splitlines()):  # nor line by line, as -p
        with pytest.raises(UserError):
            configure.load(Spec((), (one, "stop")))
    assert not marker.exists() and "evil_on_import" not in sys.modules


# ---- macros and scopes ----------------------------------------------------------------------


def test_a_macro_is_put_where_it_is_used_and_may_change_later(write):
    name = write("file", """\
        width = 3
        total = %width
        dataloader.batch_size = %total
        scheduler.milestones = [1, %width]
        scheduler.arguments = {'x': %width}
        """)  # fmt: skip
    assert load(name) == {
        "dataloader.batch_size": 3,
        "scheduler.milestones": [1.0, 3.0],
        "scheduler.arguments": {"x": 3},
    }
    assert load(name, params=("width = 5e0",))["dataloader.batch_size"] == 5
    assert isinstance(load(name, params=("width = 5e0",))["dataloader.batch_size"], int)


MACROS = [
    ("dataloader.batch_size = %size", "%size is not defined"),
    ("siez = 3\ndataloader.batch_size = %size", "%size is not defined - did you mean 'siez'?"),
    ("size = '3'\ndataloader.batch_size = %size", "%size: 'dataloader.batch_size' takes int, "),
    ("size = 'a'\nscheduler.milestones = [1, %size]", "%size: 'scheduler.milestones' takes "),
    ("a = %b\nb = [%a]\nscheduler.milestones = %a", "%a refers to itself"),
    ("task = 'Rotate'\nsession.task = %task", "%task: no task is called 'Rotate' - did "),
]


@pytest.mark.parametrize(("text", "expected"), MACROS, ids=[row[1] for row in MACROS])
def test_what_a_macro_holds_is_checked_where_it_is_used(text, expected, write):
    assert refusal(write("file", text)).startswith(expected)


def test_params_change_macros_but_make_none(write):
    name = write("file", "size = 3\ndataloader.batch_size = %size\n")
    text = refusal(name, params=("sise = 4",))
    assert text.startswith("-p 'sise = 4': 'sise' is not of the form 'component.argument'")


def test_a_scope_wins_over_the_plain_binding():
    load(params=("dataloader.batch_size = 8", "valid/dataloader.batch_size = 500"))
    assert configure.value("dataloader", "batch_size") == 8
    assert configure.value("dataloader", "batch_size", "train") == 8
    assert configure.value("dataloader", "batch_size", "valid") == 500
    assert configure.value("dataloader", "shuffle", "valid") is None  # the default


# ---- values of a search ---------------------------------------------------------------------


def test_a_searchs_values_become_plain_ones():
    bound = load(overrides={
        "optimizer.lr": np.float32(0.5),
        "session.seed": np.int64(7),
        "session.compile": np.bool_(True),
        "optimizer.betas": (np.float64(0.8), 0.999),
        "session.task": np.str_("RotateTask"),
        "scheduler.target_lrs": np.float64(1e-3),
        "scheduler.milestones": (np.int32(5), 25),
        "optimizer.arguments": {"amsgrad": np.bool_(True)},
        "valid": {"dataloader.batch_size": np.float64(100.0)},  # as Ray nests at slashes
        "test/dataloader.batch_size": 50,
    })  # fmt: skip
    expected = {
        "optimizer.lr": 0.5,
        "session.seed": 7,
        "session.compile": True,
        "optimizer.betas": [0.8, 0.999],
        "session.task": "RotateTask",
        "scheduler.target_lrs": 1e-3,
        "scheduler.milestones": [5.0, 25.0],
        "optimizer.arguments": {"amsgrad": True},
        "valid/dataloader.batch_size": 100,
        "test/dataloader.batch_size": 50,
    }
    assert bound == expected
    assert json.loads(json.dumps(bound)) == expected  # no numpy left, which JSON refuses
    assert "numpy" not in gin.config_str() and "np." not in gin.config_str()


def test_nesting_is_undone_at_slashes_only():
    nested = {"a": {"b": {"dataloader.x": 1}, "c.d": 2}, "e.f": {"kept": 3}, "g.h": 4}
    assert values.flatten(nested) == {"a/b/dataloader.x": 1, "a/c.d": 2,
                                         "e.f": {"kept": 3}, "g.h": 4}  # fmt: skip


@pytest.mark.parametrize("value", [object(), np.zeros(3), float("nan"), float("inf"), len,
                                   [1, {2, object()}], {"a": object()}],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_a_value_that_has_no_literal_is_refused(value):
    """Gin would drop it from its text, and the trial could not be repeated."""
    with pytest.raises(UserError, match="'optimizer.arguments' is .* no plain Python value"):
        values.literal("optimizer.arguments", value)


# ---- texts that parse back ------------------------------------------------------------------

VALUES = (
    "optimizer.optim_fn = 'Adam'",
    "optimizer.betas = (0.8, 0.999)",
    "optimizer.arguments = {'amsgrad': True}",
    "optimizer.weight_decay = 1e-05",
    "scheduler.milestones = [5, 25]",
    "scheduler.target_lrs = [0, 0.01, 1e-6]",
    "scheduler.metric = 'a\\n\\'b\\' %c @d()'",
)


def test_the_operative_text_parses_back_to_the_same(write):
    import torch

    load(params=VALUES)
    weights = [torch.nn.Parameter(torch.zeros(2))]
    optim.scheduler(optim.optimizer(weights))
    before = configure.operative()
    assert before["optimizer.eps"] is None  # defaults too
    text = configure.operative_text()
    assert load(write("operative", text)) == before
    optim.scheduler(optim.optimizer(weights))
    assert configure.operative_text() == text


def test_the_printed_configuration_parses_back_to_the_same(write):
    load(params=(*VALUES, "valid/dataloader.batch_size = 7"))
    parts = configure.would_build("session")
    load(write("printed", configure.text_of(parts)))
    assert configure.would_build("session") == parts


# ---- what would be built --------------------------------------------------------------------

ALWAYS = {"session", "Wrapper", "init_resnet", "ResNet", "augment", "optimizer", "scheduler",
          "train/dataloader", "valid/dataloader", "test/dataloader", "BaseDataset",
          "monitor"}  # fmt: skip
NEEDED = ("scheduler.milestones = [1, 2]", "scheduler.target_lrs = 0.1")


@pytest.mark.parametrize(("more", "built"), [
    ((), {"DigitsDataset", "ClassifyTask"}),
    (("session.dataset = 'SynDataset'",), {"SynDataset", "ClassifyTask"}),
    (("session.task = 'RotateTask'", "Wrapper.model_choice = 'rotate'"),
     {"DigitsDataset", "RotateTask"}),
])  # fmt: skip
def test_what_would_be_built_follows_the_names_that_are_bound(more, built):
    load(params=(*NEEDED, *more))
    parts = configure.would_build("session")
    assert set(parts) == ALWAYS | built
    assert parts["scheduler"]["milestones"] == [1.0, 2.0]
    assert parts["optimizer"]["optim_fn"] == "SGD"  # a default
    assert not {"device", "info", "params", "split", "in_channels"} & {
        name for arguments in parts.values() for name in arguments
    }


def test_scopes_show_in_what_would_be_built():
    load(params=(*NEEDED, "dataloader.batch_size = 8", "valid/dataloader.batch_size = 500"))
    parts = configure.would_build("session")
    sizes = {name: parts[f"{name}/dataloader"]["batch_size"] for name in ("train", "valid")}
    assert sizes == {"train": 8, "valid": 500}


@pytest.mark.parametrize(("given", "name"), [
    (NEEDED[1:], "scheduler.milestones"),
    (NEEDED[:1], "scheduler.target_lrs"),
    ((*NEEDED, "session.dataset = 'FolderDataset'"), "FolderDataset.folder"),
])  # fmt: skip
def test_an_argument_that_is_required_is_asked_for(given, name):
    load(params=given)
    with pytest.raises(UserError) as error:
        configure.would_build("session")
    assert error.value.text == f"'{name}' has no value; add -p '{name} = ...'"


# ---- elsewhere ------------------------------------------------------------------------------


def test_ray_configs_are_found_inside_their_folder_only():
    assert rayconfig.ray_file("grid_search") == paths.RAY_DIR / "grid_search.py"
    assert rayconfig.ray_file("single_run.py") == paths.RAY_DIR / "single_run.py"
    for name in ("grid_serch", "../../main", "/etc/passwd", ""):
        with pytest.raises(UserError, match=re.escape(f"no ray config is called '{name}'")):
            rayconfig.ray_file(name)


def test_retired_names_answer_with_a_pointer():
    for name, pointer in configure.RETIRED.items():
        text = refusal(params=(f"{name} = True",))
        assert text == f"-p '{name} = True': '{name}' is retired; use {pointer}"


# ---- a configuration inside another ---------------------------------------------------------


def optimizer():
    import torch

    return optim.optimizer([torch.nn.Parameter(torch.zeros(2))])


INNER = "optimizer.optim_fn = 'SGD'\noptimizer.lr = 3.0\nvalid/dataloader.batch_size = 5\n"


def test_an_isolated_configuration_leaves_the_outer_one_as_it_was():
    load(params=("optimizer.optim_fn = 'Adam'", "optimizer.eps = 1e-3"))
    optimizer()
    bound, used = configure.current_bindings(), configure.operative_text()
    with gin.config_scope("train"), configure.isolate(INNER, "inner"):
        assert gin.config_is_locked() and configure.operative() == {}
        assert configure.value("optimizer", "eps") is None, "nothing of the outer one shows"
        assert configure.value("dataloader", "batch_size", "valid") == 5
        found = optimizer()
        assert found.param_groups[0]["lr"] == 3.0 and "SGD" in type(found).__name__
        assert configure.operative()["optimizer.optim_fn"] == "SGD"
    assert gin.config_is_locked()
    assert (configure.current_bindings(), configure.operative_text()) == (bound, used)
    assert optimizer().param_groups[0]["eps"] == 1e-3


def test_files_and_params_win_over_the_isolated_text(write):
    file = write("file", "optimizer.lr = 4.0\nscheduler.target_lrs = 1.0")
    spec = Spec((file,), ("optimizer.lr = 5.0",))
    with configure.isolate(INNER, "inner", spec):
        assert configure.value("optimizer", "lr") == 5.0
        assert configure.value("scheduler", "target_lrs") == 1.0
        assert configure.value("optimizer", "optim_fn") == "SGD"
    assert configure.current_bindings() == {} and not gin.config_is_locked()


def test_isolation_ends_whatever_happens_inside():
    load(params=("optimizer.lr = 2.0",))
    before = configure.current_bindings()
    with pytest.raises(UserError, match=r"^inner:2: 'optimizer' has no parameter 'rate'"):
        with configure.isolate("optimizer.lr = 3.0\noptimizer.rate = 1", "inner"):
            raise AssertionError("not reached")
    assert configure.current_bindings() == before and gin.config_is_locked()
    with pytest.raises(RuntimeError, match="own"), configure.isolate(INNER, "inner"):
        raise RuntimeError("own")
    assert configure.current_bindings() == before and gin.config_is_locked()
    with configure.isolate(INNER, "a"), configure.isolate("optimizer.lr = 9.0", "b"):
        assert configure.current_bindings() == {"optimizer.lr": 9.0}
    assert configure.current_bindings() == before


@pytest.mark.parametrize("text", ["import os", "optimizer.lr = @os.system()",
                                  "include '../../secret'"])  # fmt: skip
def test_an_isolated_text_is_a_strangers(text):
    with pytest.raises(UserError, match="inner:1: "), configure.isolate(text, "inner"):
        raise AssertionError("not reached")
    assert configure.current_bindings() == {}


# ---- files that a search names --------------------------------------------------------------


def test_a_searchs_file_comes_after_g_and_before_p(write):
    write("first", "optimizer.lr = 1\noptimizer.weight_decay = 1\noptimizer.momentum = 0.1")
    write("second", "optimizer.lr = 2\noptimizer.weight_decay = 2")
    write("third", "optimizer.lr = 3")
    found = load("first", params=("optimizer.weight_decay = 5",), overrides={
        "include": ["second", "third"], "optimizer.momentum": 0.9})  # fmt: skip
    assert found == {
        "optimizer.lr": 3.0,
        "optimizer.weight_decay": 5.0,
        "optimizer.momentum": 0.9,
    }
    assert load(overrides={"include": "second"})["optimizer.lr"] == 2


@pytest.mark.parametrize(
    "value, text",
    [("secund", "ray config: no config/gin/secund.gin - did you mean 'second'? "
      "(known: second)"),
     (3, "ray config: 'include' takes names of gin files such as 'digits/r9/simclr', not 3")],
)  # fmt: skip
def test_a_searchs_file_must_be_one(write, value, text):
    write("second", "optimizer.lr = 2")
    assert refusal(overrides={"include": value}) == text
