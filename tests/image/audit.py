"""`make audit`: what the CPU server's image holds, as a bill of materials, and which of it is known to be vulnerable.

The environment is built as the Dockerfile builds it: the same extras, the same constraints. The tools live in another
one, so that they are not part of what they look at. Exit status: 0 nothing known of any of it, 1 something is,
2 some of it could not be asked about, which pip-audit itself would call a success.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
WORK = SOURCE / "build" / "audit"
EXTRAS = "server,tracing,cpu"
TOOLS = ("pip-audit", "cyclonedx-bom")
OURS = "forwardpass"


def main() -> int:
    """Build both environments, write the bill, ask; the exit status."""
    image, tools = WORK / "image", WORK / "tools"
    for folder in (image, tools):
        venv.EnvBuilder(with_pip=folder == tools, clear=folder == image).create(folder)
    pip = [str(tools / "bin" / "python"), "-m", "pip"]
    quiet = ["install", "--quiet", "--disable-pip-version-check", "-c", str(SOURCE / "constraints.txt")]
    _run([*pip, *quiet, *TOOLS])
    _run([*pip, "--python", str(image / "bin" / "python"), *quiet, f"{SOURCE}[{EXTRAS}]"])

    bill = WORK / "sbom.cdx.json"
    pyproject = str(SOURCE / "pyproject.toml")
    cyclonedx = [str(tools / "bin" / "cyclonedx-py"), "environment", str(image / "bin" / "python")]
    _run([*cyclonedx, "--pyproject", pyproject, "--mc-type", "application", "--output-file", str(bill)])
    sys.stdout.write(f"bill of materials (CycloneDX): {bill.relative_to(SOURCE)}\n")

    (packages,) = (image / "lib").glob("python*/site-packages")
    command = [str(tools / "bin" / "pip-audit"), f"--path={packages}", "--progress-spinner=off", "--format=json"]
    asked = subprocess.run(command, capture_output=True, text=True)
    try:
        answers = json.loads(asked.stdout)["dependencies"]
    except ValueError:
        sys.stderr.write(f"NOT CHECKED for vulnerabilities: {asked.stderr.strip().splitlines()[-1]}\n")
        return 2
    known = [f"{each['name']} {each['version']}: {found['id']}" for each in answers for found in each.get("vulns", [])]
    skipped = {each["name"]: each["skip_reason"] for each in answers if "skip_reason" in each and each["name"] != OURS}
    for line in known:
        sys.stdout.write(f"VULNERABLE: {line}\n")
    for name, reason in skipped.items():
        sys.stdout.write(f"NOT CHECKED: {name}: {reason}\n")
    asked_about = len(answers) - len(skipped) - 1
    sys.stdout.write(f"{asked_about} packages checked, {len(skipped)} not, {len(known)} vulnerabilities known\n")
    return 1 if known else 2 if skipped else 0


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, cwd=SOURCE)


if __name__ == "__main__":
    sys.exit(main())
