"""What deploy/ promises: Slurm's script is run with stubs, the other files are read."""

import functools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

import main
import paths
from selfstudy import configure, registry
from selfstudy.experiment import interrupts, rayconfig
from util import files

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SCRIPT = DEPLOY / "slurm.sbatch"

# Each stub writes what it was called with to $LOG/<its name>, a line each.
STUBS = {
    "srun": """
while [[ "$1" == --* ]]; do shift; done
exec "$@"
""",
    # `start` stays like `ray start --block`; `status` shows a node for each start.
    "ray": """
case "$1" in
  start) [ -z "${NO_HEAD:-}" ] || exit 1
         echo "$RAY_AUTH_MODE" >> "$LOG/nodes"; exec /bin/sleep 30 ;;
  status) echo "Active:"; sed 's/.*/ 1 node_abc/' "$LOG/nodes" ;;
  get-auth-token) mkdir -p "$HOME/.ray"; echo a5c3 | tee "$HOME/.ray/auth_token" ;;
esac
""",
    # The driver: ends at once with the next code of $CODES, or saves a round at a signal.
    "python": """
codes=(${CODES:-}); count=$(wc -l < "$LOG/python")
[ "${#codes[@]}" -lt "$count" ] || exit "${codes[$count - 1]}"
end() { echo "$1" >> "$LOG/signals"; /bin/sleep 0.2
        [ -z "${GAIN-yes}" ] || echo '{"round": 1}' >> "$SELFSTUDY_EXP/s1/e_0000/result.json"
        exit 143; }
trap 'end USR1' USR1; trap 'end TERM' TERM
mkdir -p "$SELFSTUDY_EXP/s1/e_0000"
echo $$ > "$LOG/pid"; touch "$LOG/ready"
while :; do /bin/sleep 0.02; done
""",
    "scontrol": "",
    "sleep": "exec /bin/sleep 0.02",
}


class Job:
    """A Slurm job of two nodes in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "log"
        (folder / "bin").mkdir()
        self.log.mkdir()
        (folder / "main.py").touch()
        for name, body in STUBS.items():
            stub = folder / "bin" / name
            stub.write_text(f'#!/bin/bash\necho "$*" >> "$LOG/{name}"\n{body}')
            stub.chmod(0o755)
        self.env = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin", "HOME": str(folder),
            "LOG": str(self.log), "SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "77",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_PER_TASK": "3", "SLURMD_NODENAME": "n1",
        }  # fmt: skip

    def start(self, *args: str, **env: str) -> subprocess.Popen:
        return subprocess.Popen(
            ["/bin/bash", str(SCRIPT), *args], env=self.env | env, text=True, cwd="/",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *args: str, **env: str) -> tuple[int, str]:
        """Exit code and stderr of a job whose driver ends by itself."""
        process = self.start(*args, **env)
        _, err = process.communicate(timeout=600)
        return process.returncode, err

    def driving(self, **env: str) -> subprocess.Popen:
        """A job whose driver is at work."""
        process, end = self.start("-e", "s1", **env), time.monotonic() + 30
        while not (self.log / "ready").exists() and time.monotonic() < end:
            time.sleep(0.02)
        return process

    def warned(self, **env: str) -> tuple[int, str]:
        """Exit code and stderr of a job that Slurm warns while its driver runs."""
        process = self.driving(**env)
        os.kill(process.pid, signal.SIGUSR1)
        _, err = process.communicate(timeout=600)
        return process.returncode, err

    def calls(self, name: str) -> list[str]:
        """The argument lines with which a stub was called, or what it wrote."""
        file = self.log / name
        return file.read_text().splitlines() if file.exists() else []

    def drivers(self) -> list:
        """What main.py made of each driver's arguments."""
        words = [line.split() for line in self.calls("python")]
        assert all(line[0] == "main.py" for line in words)
        return [main.parser().parse_args(line[1:]) for line in words]

    def planned(self) -> None:
        """As if the experiment had begun before."""
        (self.folder / "exp" / "s1").mkdir(parents=True)
        (self.folder / "exp" / "s1" / "plan.json").touch()


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_the_script_is_sound():
    assert subprocess.run(["bash", "-n", SCRIPT]).returncode == 0
    if shellcheck := shutil.which("shellcheck"):
        done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_slurm_warns_the_shell_and_may_queue_the_job_again():
    options = re.findall(r"^#SBATCH (\S+)", SCRIPT.read_text(encoding="utf-8"), re.M)
    assert {"--signal=B:USR1@120", "--requeue", "--open-mode=append"} <= set(options)


def test_a_job_starts_the_cluster_then_the_driver_and_ends_with_its_code(job):
    code, err = job.run("-e", "s1", "-r", "grid_search", "-g", "digits/r9/classify", CODES="0")
    assert (code, err) == (0, "")
    head, worker = (line for line in job.calls("ray") if line.startswith("start"))
    assert "--head" in head and "--include-dashboard=false" in head and "--num-cpus=3" in head
    (args,) = job.drivers()
    assert f"--address={args.address}" in worker and args.address.endswith(":20077")
    assert (args.exp_id, args.ray_config, args.resume) == ("s1", "grid_search", False)
    on_head, on_others = job.calls("srun")
    assert "--nodelist=n1" in on_head and "--exclude=n1" in on_others
    assert job.calls("scontrol") == []


def test_every_node_gets_token_authentication_and_the_token_is_private(job):
    job.run("-e", "s1", CODES="0")
    assert job.calls("nodes") == ["token", "token"]
    assert (job.folder / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
    assert (job.folder / ".ray").stat().st_mode & 0o777 == 0o700


def test_a_token_that_is_there_is_kept_and_protected(job):
    (job.folder / ".ray").mkdir()
    token = job.folder / ".ray" / "auth_token"
    token.write_text("mine")
    token.chmod(0o644)
    job.run("-e", "s1", CODES="0")
    assert token.read_text() == "mine" and token.stat().st_mode & 0o777 == 0o600


def test_the_token_is_never_printed(job):
    process = job.start("-e", "s1", CODES="0")
    out, err = process.communicate(timeout=600)
    assert "a5c3" not in out + err


def test_slurms_warning_reaches_the_driver_and_queues_the_job_once(job):
    code, _ = job.warned()
    assert code == 143
    assert job.calls("signals") == ["USR1"]
    assert job.calls("scontrol") == ["requeue 77"]


def test_a_job_that_gained_no_round_is_not_queued_again(job):
    code, err = job.warned(GAIN="")
    assert code == 143 and job.calls("signals") == ["USR1"]
    assert job.calls("scontrol") == []
    assert "no round was finished" in err and "--time" in err


def test_scancel_is_waited_for_but_neither_doubled_nor_queued_again(job):
    """Slurm itself sends TERM to the driver; a second one would end it without saving."""
    process = job.driving()
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None and job.calls("signals") == []
    os.kill(int(*job.calls("pid")), signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 143 and job.calls("signals") == ["TERM"]
    assert job.calls("scontrol") == []


@pytest.mark.parametrize("code", [1, 2, 3, 4, 130, 143])
def test_an_end_without_warning_is_passed_on(job, code):
    assert job.run("-e", "s1", CODES=str(code))[0] == code
    assert job.calls("scontrol") == [] and len(job.calls("python")) == 1


def test_an_experiment_that_exists_is_resumed_with_the_flags_given(job):
    job.planned()
    job.run("-e", "s1", "-g", "digits/r9/classify", CODES="0")
    (args,) = job.drivers()
    assert args.resume and args.gin_config == ["digits/r9/classify"]


def test_a_requeued_job_resumes_without_other_flags(job):
    job.planned()
    job.run("-e", "s1", "-g", "digits/r9/classify", CODES="0", SLURM_RESTART_COUNT="1")
    (args,) = job.drivers()
    assert args.resume and args.exp_id == "s1" and args.gin_config == []


def test_a_requeued_job_that_had_planned_nothing_starts_anew(job):
    job.run("-e", "s1", "-g", "digits/r9/classify", CODES="0", SLURM_RESTART_COUNT="1")
    (args,) = job.drivers()
    assert not args.resume and args.gin_config == ["digits/r9/classify"]


def test_a_requeued_job_waits_until_the_dead_driver_counts_as_gone(job):
    job.planned()
    assert job.run("-e", "s1", CODES="4 4 0", SLURM_RESTART_COUNT="1")[0] == 0
    assert len(job.drivers()) == 3


@pytest.mark.parametrize("words", ["-e s1", "--exp_id s1", "--exp_id=s1", "-es1"])
def test_the_experiment_is_found_in_every_spelling(job, words):
    job.planned()
    job.run(*words.split(), CODES="0")
    (args,) = job.drivers()
    assert args.exp_id == "s1" and args.resume


@pytest.mark.parametrize(
    "words, said",
    [
        ("-r grid_search", "-e NAME"),
        ("-e s1 -a host:6379", "leave -a out"),
        ("-e s1 --address=auto", "leave --address=auto out"),
        ("-e s1 -l", "leave -l out"),
    ],
)
def test_flags_that_cannot_work_are_answered_before_anything_starts(job, words, said):
    code, err = job.run(*words.split())
    assert code == 2 and err.startswith("error: ") and said in err and err.count("\n") == 1
    assert job.calls("srun") == [] and job.calls("python") == []


def test_a_wrong_folder_is_said(job):
    (job.folder / "main.py").unlink()
    code, err = job.run("-e", "s1")
    assert code == 2 and "no main.py" in err


def test_a_cluster_that_does_not_come_up_ends_the_job(job):
    code, err = job.run("-e", "s1", NO_HEAD="1")
    assert code == 1 and "did not come up" in err
    assert job.calls("python") == []


# --- the how-to pages ---

PAGES = ("cluster", "disk", "fractional-gpu", "kubernetes", "resume", "search", "slurm")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_the_pages_are_ones_that_main_takes(page):
    """Also those behind `sbatch`, `docker run` and `ray job submit`."""
    text = (ROOT / "docs" / "how-to" / f"{page}.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```console\n(.*?)```", text, re.DOTALL)).splitlines()
    found = [re.split(r"main\.py |slurm\.sbatch ", line, maxsplit=1) for line in lines]
    commands = [shlex.split(parts[1]) for parts in found if len(parts) == 2]
    assert commands
    for words in commands:
        args = main.parser().parse_args(words)
        if not args.resume:
            rayconfig.exp_args(args.ray_config, args.settings)
        for name in args.gin_config:
            assert (ROOT / "config" / "gin" / f"{name}.gin").exists()


def test_the_search_of_your_own_is_a_ray_config_whose_parameters_exist(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "how-to" / "search.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "mine.py").write_text(example)
    monkeypatch.setattr(paths, "RAY_DIR", tmp_path)
    config = rayconfig.exp_args("mine").config
    registry.discover()
    assert config
    for name, space in config.items():
        configure.load(configure.Spec(), {name: space.sample()})


# --- files ---

DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
# What the image sets; the paths are the container's own, so PATH stays this machine's here.
ENVIRONMENT = {
    name: value
    for line in re.findall(r"^ENV (.*)", DOCKERFILE.replace("\\\n", " "), re.M)
    for name, value in (word.split("=", 1) for word in line.split())
    if name != "PATH"
}
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


# --- ray up ---


@functools.cache
def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text(encoding="utf-8")))


def test_ray_up_accepts_the_cluster():
    """Ray's own schema, read without importing Ray."""
    (cluster,) = documents("cluster.yaml")
    package = Path(find_spec("ray").submodule_search_locations[0])
    schema = json.loads((package / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)


@pytest.fixture
def machine(tmp_path):
    """A function that runs commands of cluster.yaml as a new machine would, with a stub of ray.

    It gives the calls of ray: its arguments and the environment that it saw.
    """
    folder = tmp_path / "shared" / "selfstudy"
    stub = folder / ".venv" / "bin" / "ray"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"with open({str(tmp_path / 'calls')!r}, 'a') as file:\n"
        "    print(json.dumps({'words': sys.argv[1:], 'seen': dict(os.environ)}), file=file)\n"
    )
    stub.chmod(0o755)

    def run(lines):
        given = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "RAY_HEAD_IP": "192.0.2.10"}
        for line in lines:
            line = line.replace("/shared/selfstudy", str(folder))
            subprocess.run(["bash", "-c", line], env=given, check=True)
        calls = tmp_path / "calls"
        return files.read_lines(calls) if calls.exists() else []

    return run


@pytest.mark.parametrize(("kind", "flag"), [
    ("head", "--head"), ("worker", "--address=192.0.2.10:6379")])  # fmt: skip
def test_ray_up_starts_a_node_with_the_token(machine, kind, flag):
    (cluster,) = documents("cluster.yaml")
    stopped, started = machine(cluster[f"{kind}_start_ray_commands"])
    assert stopped["words"] == ["stop"]
    assert started["words"][0] == "start" and flag in started["words"]
    seen = started["seen"]
    assert seen["RAY_AUTH_MODE"] == "token"
    if kind == "head":  # where drivers run
        assert int(seen["RAY_JOB_STOP_WAIT_TIME_S"]) > interrupts.GRACE


def test_ray_up_brings_your_token_and_closes_it_to_others(machine, tmp_path):
    (cluster,) = documents("cluster.yaml")
    ((there, here),) = cluster["file_mounts"].items()
    assert here == there
    token = Path(there.replace("~", str(tmp_path)))
    token.parent.mkdir()
    token.touch(0o644)
    machine(cluster["setup_commands"])
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700


def test_the_commands_of_ray_up_are_sound_bash_and_their_targets_exist():
    (cluster,) = documents("cluster.yaml")
    lines = [line for key, some in cluster.items() if key.endswith("commands") for line in some]
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0, line
    targets = [name for line in lines for name in re.findall(r"make -C \S+ (\S+)", line)]
    assert targets
    for target in targets:
        done = subprocess.run(
            ["make", "-n", "-C", ROOT, target], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


# --- KubeRay ---


def kube(kind: str) -> dict:
    (found,) = [item for item in documents("raycluster.yaml") if item["kind"] == kind]
    return found


def pods() -> list[dict]:
    spec = kube("RayCluster")["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_kuberays_ray_is_one_that_the_requirements_allow():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    (wanted,) = [Requirement(line) for line in lines if line.startswith("ray[")]
    assert wanted.specifier.contains(kube("RayCluster")["spec"]["rayVersion"])


def test_all_pods_run_as_the_images_user_and_share_its_folders():
    claim = kube("PersistentVolumeClaim")["metadata"]["name"]
    uid = int(re.search(r"useradd --uid (\d+)", DOCKERFILE)[1])
    for pod in pods():
        volumes = {item["name"]: item for item in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {item["mountPath"]: item["name"] for item in container["volumeMounts"]}
        for folder in (ENVIRONMENT["SELFSTUDY_DATA"], ENVIRONMENT["SELFSTUDY_EXP"]):
            (name,) = [
                mounts[str(part)] for part in Path(folder).parents if str(part) in mounts
            ]
            assert volumes[name]["persistentVolumeClaim"]["claimName"] == claim
        rights = pod["securityContext"]
        assert rights["runAsUser"] == rights["fsGroup"] == uid


def test_the_head_gives_a_stopped_job_time_to_save():
    env = {item["name"]: item["value"] for item in pods()[0]["containers"][0]["env"]}
    assert int(env["RAY_JOB_STOP_WAIT_TIME_S"]) > interrupts.GRACE


def admits(policy: dict, labels: dict[str, str], port: int) -> bool:
    """Whether a NetworkPolicy lets a pod with these labels reach a port."""
    for rule in policy["ingress"]:
        peers = [
            peer.get("podSelector", {}).get("matchLabels", {})
            for peer in rule.get("from", [{}])
        ]
        ports = [item["port"] for item in rule.get("ports", [])]
        if any(wanted.items() <= labels.items() for wanted in peers):
            if not ports or port in ports:
                return True
    return False


def test_other_pods_cannot_reach_rays_ports():
    policy, name = kube("NetworkPolicy")["spec"], kube("RayCluster")["metadata"]["name"]
    own = {"ray.io/cluster": name}  # which the operator gives to the cluster's pods
    assert policy["podSelector"]["matchLabels"].items() <= own.items()
    operator, stranger = {"app.kubernetes.io/name": "kuberay-operator"}, {"app": "shop"}
    rays = [item["containerPort"] for item in pods()[0]["containers"][0]["ports"]]
    assert len(rays) == 2
    for port in [*rays, 10001]:
        assert admits(policy, own, port) and not admits(policy, stranger, port)
        assert admits(policy, operator, port) == (port == 8265)


# --- Docker ---


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file through; the last rule that fits counts."""
    kept = True
    for rule in IGNORED:
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        fits = any(fnmatch("/".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
        if "**/" in rule:
            fits = any(fnmatch(part, pattern) for part in parts)
        if fits and not rule.startswith("#"):
            kept = rule.startswith("!")
    return kept


def test_what_the_dockerfile_copies_exists_and_is_in_the_context():
    sources = [word for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.M)
               for word in line.split()[:-1] if word != "."]  # fmt: skip
    assert sources == ["requirements.txt"]
    assert all((ROOT / name).exists() and in_context(name) for name in sources)


def test_the_image_gets_all_of_the_program_and_nothing_private():
    parts = [path for part in ("config", "misc", "selfstudy", "util")
             for path in (ROOT / part).rglob("*.*")]  # fmt: skip
    program = [str(path.relative_to(ROOT)) for path in parts if path.suffix in (".py", ".gin")]
    wanted = [*program, "main.py", "paths.py", "pyproject.toml", "README.md", "LICENSE"]
    assert [name for name in wanted if not in_context(name)] == []
    private = ["data/digits/x.h5", "exp/s1/plan.json", ".git/config", ".ray/auth_token", ".env",
               ".venv/bin/python", "tests/test_main.py", "util/__pycache__/x.pyc"]  # fmt: skip
    assert [name for name in private if in_context(name)] == []


def test_the_image_starts_main_and_knows_its_token_from_nowhere():
    command = json.loads(re.findall(r"^CMD (.*)", DOCKERFILE, re.M)[-1])
    done = subprocess.run([sys.executable, *command[1:], "--help"], cwd=ROOT, text=True,
                          env=os.environ | ENVIRONMENT, capture_output=True)  # fmt: skip
    assert command[0] == "python" and done.returncode == 0, done.stderr
    assert ENVIRONMENT["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN" not in ENVIRONMENT
    assert re.findall(r"^USER (.*)", DOCKERFILE, re.M)[-1] in re.findall(
        r"useradd .* (\w+)", DOCKERFILE
    )


def test_the_dockerfiles_own_example_passes_arguments_that_it_takes():
    comment = DOCKERFILE.partition("ARG")[0]
    given = set(re.findall(r"--build-arg (\w+)=", comment))
    assert given == set(re.findall(r"^ARG (\w+)=", DOCKERFILE, re.M)) == {"BASE", "TORCH_INDEX"}


def test_the_dockerfiles_shell_lines_are_sound():
    lines = re.findall(r"^RUN (.*)", DOCKERFILE.replace("\\\n", " "), re.M)
    assert len(lines) > 1
    for line in lines:
        assert subprocess.run(["bash", "-n", "-c", line]).returncode == 0, line


def test_torch_alone_is_what_the_dockerfile_takes_from_torchs_index():
    (command,) = re.findall(r"\$\((grep [^)]*)\)", DOCKERFILE)
    found = subprocess.run(shlex.split(command), cwd=ROOT, capture_output=True, text=True)
    names = {Requirement(line).name for line in found.stdout.split()}
    assert names == {"torch", "torchvision"}
