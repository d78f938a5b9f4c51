"""Which attacks, and how hard they try.

fgsm     one step along the sign of the gradient (Goodfellow et al. 2015)
pgd      many small steps from random starts, uphill on the loss (Madry et al. 2018); what robust training trains on
margin   uphill on the margin between the best wrong class and the right one, with momentum and shrinking steps
         (loss of Carlini & Wagner 2017, momentum of Dong et al. 2018): finds what pgd misses where losses are flat
square   random squares, without gradients (Andriushchenko et al. 2020): finds what all miss where gradients lie
"""

from dataclasses import dataclass
from typing import Literal, get_args

from forwardpass_training.attack import MOMENTUM, Attack, cross_entropy, fgsm, iterative, margin
from forwardpass_training.errors import BadSetting
from forwardpass_training.square import square

AttackName = Literal["fgsm", "pgd", "margin", "square"]
ATTACKS: tuple[AttackName, ...] = get_args(AttackName)


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """How hard to try."""

    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    """The farthest that any element may move, as shares of its range."""
    attacks: tuple[AttackName, ...] = ATTACKS
    """Which."""
    rows: int = 1000
    """Held-out rows, drawn at random."""
    steps: int = 20
    """Of pgd and of margin, from each start."""
    restarts: int = 3
    """Random starts of pgd and of margin."""
    queries: int = 500
    """Of square, a row."""
    seed: int = 0
    """Of rows, starts and squares."""

    def __post_init__(self) -> None:
        if not self.epsilons or not all(0 < epsilon <= 1 for epsilon in self.epsilons):
            raise BadSetting(f"epsilons are {self.epsilons}; they are shares of the input's range, above 0, at most 1")
        if not self.attacks or set(self.attacks) - set(ATTACKS):
            raise BadSetting(f"attacks are {', '.join(self.attacks) or 'none'}; there are {', '.join(ATTACKS)}")
        for name in ("rows", "steps", "restarts", "queries"):
            if getattr(self, name) < 1:
                raise BadSetting(f"{name} is {getattr(self, name)}; it must be at least 1")

    def named(self) -> dict[str, Attack]:
        """The attacks, ready to run."""
        kinds: dict[str, Attack] = {
            "fgsm": fgsm,
            "pgd": iterative(steps=self.steps, restarts=self.restarts, loss=cross_entropy),
            "margin": iterative(
                steps=self.steps, restarts=self.restarts, loss=margin, momentum=MOMENTUM, shrinking=True
            ),
            "square": square(queries=self.queries),
        }
        return {name: kinds[name] for name in self.attacks}
