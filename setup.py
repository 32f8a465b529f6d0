"""Where the folders of the checkout go when they are installed: all of them below `archipelago`.

What the image's first layer lacks (it installs the dependencies before the code) is left out.
"""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("pipeline", "actors", "jobs")
ROOT = Path(__file__).parent

code = find_packages(str(ROOT), include=[part for name in FOLDERS for part in (name, f"{name}.*")])
conf = ["conf", *(f"conf.{folder.name}" for folder in ROOT.glob("conf/*/"))]
inside = [name for name in [*code, *conf] if (ROOT / name.replace(".", "/")).is_dir()]
own = ["archipelago"] if (ROOT / "archipelago").is_dir() else []

setup(
    packages=[*own, *(f"archipelago.{name}" for name in inside)],
    package_dir={f"archipelago.{name}": name.replace(".", "/") for name in inside},
)
