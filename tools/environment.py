"""Make the checkout's `.venv`, which borrows its dependencies from one shared environment.

The dependencies take about 6 GB, CUDA libraries included, so all checkouts that need the same
versions share one environment, `env-<key>` under the user's cache. A checkout's own `.venv` holds a
`.pth` file that points there, and this package, installed editable: clones never overwrite
each other's. `PFEDMMA_ENV=/path` names another shared environment.

Needs nothing but Python 3.11 and its standard library; `make` runs it. POSIX only.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEEDED_BYTES = 8 * 10**9
"""Free space that an installation needs: the environment and what pip unpacks on the way."""
STATE = ".pfedmma-state"
"""File inside a shared environment: `building`, or `complete <key>`; absent in anybody else's."""


class SetupError(Exception):
    """Something that the user can mend; printed without a traceback."""


def requirements(root: Path) -> list[str]:
    """What pyproject.toml asks for, `dev` included, with its build backend."""
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    wanted = [*project["dependencies"], *extra(project, "dev")]
    return list(dict.fromkeys([*wanted, *pyproject["build-system"]["requires"]]))


def extra(project: Mapping[str, Any], name: str) -> Iterator[str]:
    """What an extra brings; extras of the package itself within it are looked up."""
    own = f"{project['name']}["
    for requirement in project["optional-dependencies"][name]:
        if requirement.startswith(own):
            for inner in requirement.removeprefix(own).removesuffix("]").split(","):
                yield from extra(project, inner)
        else:
            yield requirement


def environment_key(root: Path) -> str:
    """Twelve hexadecimal digits that change with the interpreter, the machine or a dependency."""
    parts = [sys.implementation.name, "{}.{}".format(*sys.version_info), sys.platform]
    parts += [platform.machine(), *requirements(root)]
    parts.append((root / "constraints.txt").read_text(encoding="utf-8"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def shared_path(key: str) -> Path:
    """Where the shared environment with `key` belongs."""
    if chosen := os.environ.get("PFEDMMA_ENV"):
        return Path(chosen).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).absolute() / "pfedmma" / f"env-{key}"


def is_usable(shared: Path, key: str) -> bool:
    """Whether `shared` is whole and its interpreter runs; an environment made by hand counts."""
    state = shared / STATE
    if state.exists():
        found = state.read_text().strip()
        if found == "building":
            return False
        if found != f"complete {key}":
            say(f"note: {shared} was made for other versions; remove it to have it made anew")
    return runs(shared / "bin" / "python")


def runs(python: Path) -> bool:
    """Whether the interpreter exists and starts."""
    if not python.exists():
        return False
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def ensure_shared(shared: Path, key: str, install: Callable[[Path], None]) -> None:
    """Have `install` fill `shared`, unless it is whole already; call with the lock held.

    A first step marks the environment as unfinished, the last one as complete, so one that was
    interrupted anywhere between is emptied and made anew.
    """
    if is_usable(shared, key):
        return
    if shared.exists() and not (shared / STATE).exists() and any(shared.iterdir()):
        raise SetupError(f"{shared} holds files but no environment (no working bin/python)")
    shared.mkdir(parents=True, exist_ok=True)
    write_atomically(shared / STATE, "building\n")
    for entry in shared.iterdir():
        if entry.name != STATE:
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    install(shared)
    write_atomically(shared / STATE, f"complete {key}\n")


def install_dependencies(shared: Path) -> None:
    """Create the environment and install everything that pyproject.toml asks for."""
    free = shutil.disk_usage(shared).free
    if free < NEEDED_BYTES:
        raise SetupError(
            f"{shared} needs about {NEEDED_BYTES / 1e9:.0f} GB, {free / 1e9:.1f} GB are free; "
            "make room, or set XDG_CACHE_HOME or PFEDMMA_ENV to a folder on a larger disk"
        )
    say(f"installing the dependencies once into {shared} (about 6 GB; some minutes)")
    call([sys.executable, "-m", "venv", str(shared)], "creating the environment")
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("\n".join(requirements(ROOT)), encoding="utf-8")
        pip = [str(shared / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        pins = str(ROOT / "constraints.txt")
        call([*pip, "install", "-r", str(wanted), "-c", pins], "installing the dependencies")


def ensure_checkout(root: Path, shared: Path) -> None:
    """Make `root/.venv`, unless it is there and was made from the same files for this place."""
    own = root / ".venv"
    stamp = own / STATE
    content = checkout_stamp(root, shared)
    python = own / "bin" / "python"
    if stamp.exists() and stamp.read_text() == content and runs(python):
        return
    say("making .venv")
    if own.exists():
        shutil.rmtree(own)
    base = str(shared / "bin" / "python")
    call([base, "-m", "venv", "--without-pip", str(own)], "creating .venv")
    borrowed = site_packages(Path(base))
    link = next(iter(site_packages(python))) / "pfedmma-shared-environment.pth"
    link.write_text("".join(f"{folder}\n" for folder in borrowed), encoding="utf-8")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
    call(
        [*pip, "--no-deps", "--no-build-isolation", "-e", str(root)],
        "installing this package into .venv",
    )
    write_atomically(stamp, content)


def checkout_stamp(root: Path, shared: Path) -> str:
    """What `.venv` depends on: both places and the package's own metadata."""
    metadata = (root / "pyproject.toml").read_bytes()
    return f"{root}\n{shared}\n{hashlib.sha256(metadata).hexdigest()}\n"


def site_packages(python: Path) -> list[Path]:
    """The folders that packages of this interpreter lie in, without repeats."""
    code = "import sysconfig; print(*map(sysconfig.get_path, ('purelib', 'platlib')), sep='\\n')"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout
    return [Path(line) for line in dict.fromkeys(found.splitlines())]


def call(command: list[str], what: str) -> None:
    """Run a step; its output goes to stderr, its failure becomes a `SetupError`."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "PIP_USER", "PIP_TARGET", "PIP_PREFIX"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        command, stdout=sys.stderr, env=environment | {"PIP_USER": "0"}, check=False
    )
    if done.returncode:
        raise SetupError(f"{what} failed; the lines above say why. Run the same command again.")


def write_atomically(path: Path, content: str) -> None:
    """Replace `path` in one step."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    temporary.write_text(content)
    temporary.replace(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path` as a lock; it ends with the process, whatever way that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another make that prepares the same environment")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """One line for the person who waits."""
    print(f"pfedmma: {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Prepare both environments; the exit code."""
    try:
        import ensurepip  # noqa: F401  # Debian splits it from Python
    except ImportError:
        version = "{}.{}".format(*sys.version_info)
        say(f"this Python has no venv and pip; on Debian: apt install python{version}-venv")
        return 1
    try:
        key = environment_key(ROOT)
        shared = shared_path(key)
        # One that is whole may belong to somebody else: nothing is written beside it.
        if not is_usable(shared, key):
            with locked(shared.with_name(f"{shared.name}.lock")):
                ensure_shared(shared, key, install_dependencies)
        with locked(ROOT / ".venv.lock"):
            ensure_checkout(ROOT, shared)
    except SetupError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}")
        say("PFEDMMA_ENV=/path chooses another place for the environment")
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next make starts this step again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
