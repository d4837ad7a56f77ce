"""Names are checked, and help is given, before anything large is imported."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import main
from selfstudy import configure, registry
from selfstudy.experiment import names

ROOT = Path(__file__).resolve().parents[1]
LARGE = ("torch", "ray", "pandas", "h5py", "sklearn")
RUN = """
import sys
try:
    import main
    main.main()
except SystemExit as end:
    code = end.code
print([name for name in {large} if name in sys.modules], code)
"""


def loaded(code: str, *flags: str) -> tuple[str, str]:
    """The last line that `code` prints, and its errors."""
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, check=True,
                          capture_output=True, text=True)  # fmt: skip
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize(("flags", "code", "message"), [
    (["--help"], "0", ""),
    (["-g", "digits/r9/clasify"], "2", "no config/gin/digits/r9/clasify.gin - did you mean"),
    (["-r", "grid_serch"], "2", "no ray config is called 'grid_serch' - did you mean"),
    (["-p", "sesion.task='RotateTask'"], "2", "nothing is called 'sesion' - did you mean"),
    (["-p", "session.tsk='x'"], "2", "'session' has no parameter 'tsk' - did you mean"),
    (["-p", "session.task='RotatTask'"], "2", "no task is called 'RotatTask' - did you mean"),
    (["--set", "num_sample=2"], "2", "no entry 'num_sample' - did you mean"),
    (["--grn", "x"], "2", "unrecognized arguments"),
])  # fmt: skip
def test_help_and_misspelt_names_import_nothing_large(flags, code, message):
    output, errors = loaded(RUN.format(large=LARGE), *flags)
    assert output == f"[] {code}" and message in errors


def test_results_are_read_without_torch_and_ray():
    code = "import sys, selfstudy.analysis.results\nprint({'torch', 'ray'} & set(sys.modules))"
    assert loaded(code)[0] == "set()"


def test_the_index_of_the_sources_is_what_is_registered():
    registry.discover()
    index = names.scan()
    ours = [entry for entry in configure._entries()
            if entry.wrapped.__module__.startswith("selfstudy.")]  # fmt: skip
    assert {entry.name for entry in ours} == set(index.arguments)
    for entry in ours:
        known = index.arguments[entry.name]
        if known is not None:
            found = set(inspect.signature(configure._function(entry)).parameters) - {"self"}
            assert set(known) == found, entry.name
            assert index.denied[entry.name] == set(entry.denylist or ()), entry.name
    complete = {kind: known for kind, known in index.names.items() if known is not None}
    assert {"task", "job", "dataset"} <= set(complete)
    for kind, known in complete.items():
        assert set(registry.names(kind)) == known, kind


@pytest.mark.parametrize("binding", [
    "sesion.seed = 1", "session.sed = 1", "session.task = 'RotatTask'", "projction.out = 3",
])  # fmt: skip
def test_a_misspelt_name_is_answered_as_by_the_real_check(binding):
    registry.discover()
    spec = configure.Spec(("digits/r9/classify",), (binding,))
    with pytest.raises(names.UserError) as early:
        names.check(spec)
    with pytest.raises(names.UserError) as real:
        configure.load(spec)
    assert early.value.text == real.value.text


def test_every_file_passes_the_early_check():
    for name in configure.gin_files():
        names.check(configure.Spec((name,)))


def test_extra_folders_leave_all_names_to_the_real_check(monkeypatch, tmp_path):
    monkeypatch.setattr(names.paths, "EXTRA_DIRS", (tmp_path,))
    names.check(configure.Spec(params=("MyOwn.size = 3",)))


def test_what_takes_long_is_announced_to_who_watches(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["main.py", "--set", "num_sample=2"])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err.startswith("checking single_run ...\nerror: --set")
