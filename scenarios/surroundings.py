"""Surroundings of the main job: processors, proxies, users, locales, variables, a full disk."""

from dataclasses import dataclass, field

from local_azureml.process_environment import PROXIES

PLAIN = 'exec "$@"'
DEAD = "http://127.0.0.1:9"  # nobody listens there


@dataclass(frozen=True)
class Surrounding:
    """Where the main job runs, and what it has to come to there."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)  # {folder} stands for the row's own folder
    shell: str = PLAIN  # with the project as working directory; "$@" is the job
    mounts: bool = False  # the shell lines mount something
    project: str = "project"  # the name of the folder
    git: bool = True
    columns: int = 0  # of the terminal; 0 for no terminal
    interrupt: str = ""  # Ctrl-C when this pattern is printed
    refuses: str = ""  # the job can't succeed; a pattern of the sentence that it ends with
    seconds: float = 60  # at most


def without_bf16(flags: str) -> str:
    """Return the shell lines that give the processor other flags."""
    show = f"sed -E '/^flags/s/ (avx512|avx|amx)_bf16//g; /^flags/s/$/{flags}/' /proc/cpuinfo"
    return f'{show} > cpuinfo; mount --bind cpuinfo /proc/cpuinfo; exec "$@"'


ONE_CORE = """\
first=$(sed -nE 's/^Cpus_allowed_list:[^0-9]*([0-9]+).*/\\1/p' /proc/self/status)
exec taskset --cpu-list "$first" "$@"
"""
LITTLE_MEMORY = """\
parent=$(sed -n 's|^[0-9]*:memory:|/sys/fs/cgroup/memory|p' /proc/self/cgroup)
if [ -z "$parent" ]; then
    exec systemd-run --quiet --scope --property MemoryMax=3G --property MemorySwapMax=0 "$@"
fi
group=$parent/elsewhere-$$
mkdir "$group"
echo 3G > "$group/memory.limit_in_bytes"
echo $$ > "$group/cgroup.procs"
status=0
"$@" || status=$?
echo $$ > "$parent/cgroup.procs"
for _ in {1..50}; do rmdir "$group" 2> /dev/null && break; sleep 0.1; done  # its last process is still ending
exit $status
"""
NOBODY = """\
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
base=$(.venv/bin/python -c 'import sys; print(sys.base_prefix)')
if ! as_nobody test -x "$base/bin"; then  # Python lies in a folder of root's: show nothing else of that
    closed=$base
    while [ "$(dirname "$closed")" != / ]; do closed=$(dirname "$closed"); done
    mkdir ../base
    mount --bind "$base" ../base
    mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$base"
    mount --bind ../base "$base"
fi
chown -R 65534:65534 .
umask 077
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""
ANOTHER_PYTHON = """\
mkdir ../python
echo 'raise ImportError("of another Python")' |
    tee ../python/{psutil,yaml,pandas,azure}.py > /dev/null
exec "$@"
"""
FULL_DISK = """\
mkdir -p runs after
mount -t tmpfs -o size=24m tmpfs runs
mkdir runs/tmp
status=0
TMPDIR=$PWD/runs/tmp "$@" || status=$?
cp -r runs/. after
umount runs
mv after/* runs
exit $status
"""
SURROUNDINGS = [
    Surrounding("nothing changed, no terminal"),
    Surrounding("a processor without bf16", shell=without_bf16(""), mounts=True),
    Surrounding("a processor with bf16", shell=without_bf16(" avx512_bf16"), mounts=True),
    Surrounding("one core", shell=ONE_CORE, seconds=120),
    Surrounding("3 GB of memory", shell=LITTLE_MEMORY),
    Surrounding(
        "dead proxies",
        {name: DEAD for proxy in PROXIES for name in (proxy, proxy.upper())}
        | {"no_proxy": "", "NO_PROXY": ""},
    ),
    Surrounding("LC_ALL=C, PYTHONUTF8=0", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    Surrounding("a folder with a space and an umlaut", project="Grüne Wiese"),
    Surrounding(
        "another user than root, umask 077, HOME can't be written", {"HOME": "/"}, shell=NOBODY, mounts=True
    ),
    Surrounding(
        "another TMPDIR",
        {"TMPDIR": "{folder}/a place for temporary files with a long name, für später"},
        shell='mkdir "$TMPDIR"; exec "$@"',
    ),
    Surrounding("a far time zone", {"TZ": "Pacific/Kiritimati"}),
    Surrounding("a terminal of 80 columns", columns=80),
    Surrounding("a clone without .git", git=False),
    Surrounding(
        "variables of another Azure login",
        {
            "AZURE_CLIENT_ID": "11111111-1111-1111-1111-111111111111",
            "AZURE_TENANT_ID": "22222222-2222-2222-2222-222222222222",
            "AZURE_CLIENT_SECRET": "not-a-secret",
            "AZURE_USERNAME": "somebody",
            "AZURE_PASSWORD": "not-a-secret",
            "AZURE_AUTHORITY_HOST": "https://login.invalid",
            "AZURE_FEDERATED_TOKEN_FILE": "/nonexistent/token",
            "AZURE_TOKEN_CREDENTIALS": "AzureCliCredential",
            "AZURE_POD_IDENTITY_AUTHORITY_HOST": "http://127.0.0.1:9",
            "AZUREML_CURRENT_CLOUD": "AzureChinaCloud",
            "AZUREML_ARM_SUBSCRIPTION": "33333333-3333-3333-3333-333333333333",
            "AZUREML_ARM_RESOURCEGROUP": "theirs",
            "AZUREML_ARM_WORKSPACE_NAME": "theirs",
            "IDENTITY_ENDPOINT": "http://127.0.0.1:9",
            "IDENTITY_HEADER": "theirs",
            "IDENTITY_SERVER_THUMBPRINT": "theirs",
            "IMDS_ENDPOINT": "http://127.0.0.1:9",
            "MSI_ENDPOINT": "http://127.0.0.1:9",
            "MSI_SECRET": "theirs",
        },
    ),
    Surrounding(
        "variables of another MLflow server",
        {
            "MLFLOW_TRACKING_URI": DEAD,
            "MLFLOW_REGISTRY_URI": DEAD,
            "MLFLOW_ARTIFACTS_DESTINATION": "/nonexistent",
            "MLFLOW_TRACKING_USERNAME": "somebody",
            "MLFLOW_TRACKING_PASSWORD": "not-a-secret",
            "MLFLOW_TRACKING_TOKEN": "not-a-token",
            "MLFLOW_TRACKING_SERVER_CERT_PATH": "/nonexistent",
            "MLFLOW_EXPERIMENT_NAME": "theirs",
            "MLFLOW_EXPERIMENT_ID": "17",
            "MLFLOW_RUN_ID": "0123456789abcdef0123456789abcdef",
        },
    ),
    Surrounding(
        "variables of an offline hub",
        {
            "HF_ENDPOINT": DEAD,
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "HF_HOME": "/nonexistent",
            "HF_HUB_CACHE": "/nonexistent",
            "HF_DATASETS_CACHE": "/nonexistent",
            "HF_TOKEN": "not-a-token",
        },
    ),
    Surrounding(
        "variables of another Python",
        {
            "PYTHONPATH": "{folder}/python",
            "PYTHONSTARTUP": "{folder}/python/yaml.py",
            "CONDA_PREFIX": "/nonexistent",
            "CONDA_DEFAULT_ENV": "theirs",
            "CONDA_PYTHON_EXE": "/nonexistent/bin/python",
            "VIRTUAL_ENV": "/nonexistent",
        },
        shell=ANOTHER_PYTHON,
    ),
    Surrounding("a full disk", shell=FULL_DISK, mounts=True, refuses="No space left on device|disk is full"),
    Surrounding("Ctrl-C at the terminal", columns=80, interrupt="step 20/", refuses="was interrupted"),
]
