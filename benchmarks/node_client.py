"""OpenAI's Node client against `r1ranker serve`, by hand: it needs Node and a package of npm.

    npm install --prefix /somewhere openai
    PYTHONPATH=tests python benchmarks/node_client.py /somewhere

In: the folder where npm put the client. Out: a line for each check of `node_client.mjs`, and the versions.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from test_serving_route import running


def main(modules: Path) -> int:
    script = shutil.copy(Path(__file__).with_suffix(".mjs"), modules)  # Node looks for packages beside a script
    version = json.loads((modules / "node_modules/openai/package.json").read_text())["version"]
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as proxy:
        done = subprocess.run(["node", script], env={"BASE_URL": proxy.url, "PATH": "/usr/bin:/usr/local/bin"})
    node = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout.strip()
    print(f"openai (Node) {version}, Node {node}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
