"""Everything that can go wrong while training, as one small tree. The command line prints the text and exits 1.

    TrainingError
    ├── UnknownRecipe        no recipe of that name; says the nearest
    ├── BadSetting           a setting, or a pair of them, that cannot work
    ├── DataError            data could not be had, or is not what it must be
    │   ├── DownloadFailed     no mirror gave the file
    │   └── HashMismatch       a file is not the file that was asked for; it is never used
    ├── RunError             something about a run and its folder
    │   ├── RunFolderError     missing, unwritable, or not a run
    │   ├── CheckpointError    damaged, or of another run
    │   ├── Diverged           the loss is not a number any more
    │   └── Interrupted        Ctrl-C; says how to resume
    └── ShipError            between a trained network and a served version
        ├── ExportFailed       the network could not be written as ONNX
        ├── ParityFailed       the ONNX file and the network disagree; nothing is published
        ├── AttackFailed       the artefact under attack cannot be asked
        ├── ChildFailed        work in a child process crashed, raised, or took too long
        └── PublishFailed      the version could not be put into the repository

This module imports nothing.
"""


class TrainingError(Exception):
    """Base of all. `str(error)` says what happened, with the values, and the way out."""


class UnknownRecipe(TrainingError):
    """No recipe of that name."""


class BadSetting(TrainingError):
    """A setting, or a pair of them, that cannot work."""


class DataError(TrainingError):
    """Data could not be had, or is not what it must be."""


class DownloadFailed(DataError):
    """No mirror gave the file."""


class HashMismatch(DataError):
    """A file is not the file that was asked for; it is never used."""


class RunError(TrainingError):
    """Something about a run and its folder."""


class RunFolderError(RunError):
    """The run folder is missing, unwritable, or holds no run."""


class CheckpointError(RunError):
    """The checkpoint is damaged, or belongs to another run."""


class Diverged(RunError):
    """The loss is not a number any more."""


class Interrupted(RunError):
    """The user stopped the run; the text says how to resume it."""


class ShipError(TrainingError):
    """Between a trained network and a served version."""


class ExportFailed(ShipError):
    """The network could not be written as ONNX."""


class ParityFailed(ShipError):
    """The ONNX file and the network disagree; nothing is published."""


class AttackFailed(ShipError):
    """The artefact under attack cannot be asked."""


class ChildFailed(ShipError):
    """Work in a child process crashed, raised, or took too long."""


class PublishFailed(ShipError):
    """The version could not be put into the repository."""
