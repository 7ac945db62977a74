"""Try the wheel in dist/ as somebody who has just installed it, and write down what it depends on.

python scripts/check_dist.py          makes an empty environment in build/empty (torch's CPU build, as `make` takes it)

It installs the wheel there, then runs `remask --help`, `remask tour --quick`, a server that answers once, and the
README's Python. dist/sbom.json is a CycloneDX list of all that was installed, dist/licences.md their licences.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from pathlib import Path

HOME = Path(__file__).parents[1]
EMPTY, DIST = HOME / "build" / "empty", HOME / "dist"
TORCH = "torch==2.13.0"
SECONDS = 120
"""How long a server may take to begin."""


def main() -> None:
    wheels = sorted(DIST.glob("remask-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"dist/ holds {len(wheels)} wheels of remask, expected one: make dist")
    shutil.rmtree(EMPTY, ignore_errors=True)
    venv.create(EMPTY, with_pip=True)
    constraints = ["-c", str(HOME / "constraints.txt")]
    run("python", "-m", "pip", "install", "-q", TORCH)
    run("python", "-m", "pip", "install", "-q", *constraints, f"{wheels[0]}[serve,gym]")
    work = EMPTY / "work"
    work.mkdir()
    run("remask", "--help", cwd=work, quiet=True)
    run("remask", "tour", "--quick", cwd=work)
    run("python", "-c", readme_python(), cwd=work)
    serve(work)
    run("python", "-m", "pip", "check")
    listed()
    print(f"{wheels[0].name}: installed into an empty environment, tour, Python and server work")


def run(*words: str, cwd: Path = HOME, quiet: bool = False) -> None:
    """Run a program of the empty environment, without this one's settings."""
    print("> " + " ".join(words)[:120].replace("\n", " "), flush=True)
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(
        [EMPTY / "bin" / words[0], *words[1:]],
        cwd=cwd,
        env=settings,
        check=True,
        stdout=subprocess.DEVNULL if quiet else None,
    )


def readme_python() -> str:
    found = re.search(r"```python\n(.*?)```", (HOME / "README.md").read_text(), re.DOTALL)
    if found is None:
        raise SystemExit("README.md has no Python to run")
    return found[1]


def serve(work: Path) -> None:
    """Start a server, ask it once, and stop it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/v1/chat/completions"
    asked = {"model": "tiny-direct", "messages": [{"role": "user", "content": "sudoku 2031 0002 0013 3004"}]}
    server = subprocess.Popen(
        [EMPTY / "bin" / "remask", "serve", "--model", "tiny-direct", "--port", str(port)], cwd=work
    )
    try:
        for _ in range(SECONDS):
            if server.poll() is not None:
                raise SystemExit(f"remask serve ended with {server.returncode}")
            try:
                request = urllib.request.Request(
                    address, json.dumps(asked).encode(), {"Content-Type": "application/json"}
                )
                with urllib.request.urlopen(request, timeout=60) as answer:
                    print("server:", json.load(answer)["choices"][0]["message"]["content"], flush=True)
                return
            except urllib.error.HTTPError as error:
                raise SystemExit(f"remask serve answered {error.code}: {error.read().decode()}") from error
            except urllib.error.URLError:
                time.sleep(1)
        raise SystemExit(f"remask serve did not answer within {SECONDS} seconds")
    finally:
        server.terminate()
        server.wait(timeout=30)


def listed() -> None:
    """Write the software bill of materials and the table of licences of the empty environment."""
    python = str(EMPTY / "bin" / "python")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "cyclonedx_py",
            "environment",
            python,
            "--output-format",
            "JSON",
            "-o",
            DIST / "sbom.json",
        ],
        check=True,
    )
    table = subprocess.run(
        [sys.executable, "-m", "piplicenses", "--python", python, "--format", "markdown", "--order", "license"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    (DIST / "licences.md").write_text(table)
    print(f"dist/sbom.json, dist/licences.md: {table.count(chr(10)) - 2} packages", flush=True)


if __name__ == "__main__":
    main()
