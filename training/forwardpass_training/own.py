"""What the user names by `module:name`: a recipe on the command line, a config's class in `config.json`."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from forwardpass_training.errors import BadSetting


def load(name: str) -> Any:
    """What `module:name` is, imported from the installed packages or from the folder where we are.

    Raises:
        BadSetting: no such module, or nothing of that name in it; what the module itself raises comes as it is.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise BadSetting(f"{name!r} names no module and something in it; write my_package.my_recipe:config")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as `python -m` does, and a console script does not
    try:
        found: Any = import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module}.".startswith(f"{exc.name}."):
            raise  # the module is there, and lacks one that it imports
        raise BadSetting(
            f"{name}: there is no module {exc.name!r} here or among the installed packages; go to the folder that "
            "holds it, or install it"
        ) from exc
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise BadSetting(f"{name}: the module {module!r} ({found.__name__}) has no {part!r}")
        found = getattr(found, part)
    return found
