"""Which texts take part in the next step, and how long that step is. Pure: plain values, no clock, no thread.

Fairness: texts take turns, first come first served, one step a turn, however long they are or are going to be. With n
texts that want to go on and s slots, each has a turn at least once in every ⌈n / s⌉ steps; with no more texts than
slots all have one in every step, and who comes joins at the next. So a long text delays a short one by no more than its
own share of one step a round. A reader who is behind is parked, and costs the others nothing; it comes back at the end
of the line.
"""

from collections.abc import Collection, Sequence
from itertools import islice

from forwardpass_server.scheduling.text import Text

FIRST_STEPS = 8
"""Steps of a run after which half of its texts have their first piece: so short that it comes soon, and long enough
that most of the speed is there (2xLSTM(128), one row: 26.7k tokens a second at 8 steps, 28.8k at 50, 17.1k at 1)."""
STEP_S = 0.05
"""How long one run may take, in seconds, as far as its length can be chosen: so long may a newcomer, or a slot that was
left, have to wait."""


class Turns:
    """Who is where: waiting for a turn, riding in the step, or parked. Not for several threads at once.

    Args:
        slots: texts that may ride in one step.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # Ordered sets: who was least recently in a step, or came first, stands first.
        self._waiting: dict[Text, None] = {}
        self._riding: dict[Text, None] = {}
        self._parked: dict[Text, None] = {}

    def __contains__(self, text: Text) -> bool:
        return text in self._riding or text in self._waiting or text in self._parked

    def __len__(self) -> int:
        return len(self._waiting) + len(self._riding) + len(self._parked)

    @property
    def wanting(self) -> int:
        """Texts that want a turn."""
        return len(self._waiting) + len(self._riding)

    @property
    def parked(self) -> Collection[Text]:
        """Texts whose readers are behind."""
        return self._parked.keys()

    @property
    def everybody(self) -> list[Text]:
        """All of them, parked ones first."""
        return [*self._parked, *self._waiting, *self._riding]

    def join(self, text: Text) -> None:
        """A new text."""
        assert text not in self, "a text joins once"
        self._waiting[text] = None

    def park(self, text: Text) -> None:
        """Leave one out until `resume`."""
        self.remove(text)
        self._parked[text] = None

    def resume(self, text: Text) -> None:
        """Let a parked one go on; one that is not parked is left as it is."""
        if text in self._parked:
            del self._parked[text]
            self._waiting[text] = None

    def remove(self, text: Text) -> None:
        """It is over, or its reader has left; one that is not there is no mistake."""
        for place in (self._riding, self._waiting, self._parked):
            place.pop(text, None)

    def next(self) -> list[Text]:
        """Who rides in the next step, at most `slots`: those who waited, then those who rode in the last one."""
        if self._waiting:
            line = [*self._waiting, *self._riding]
            self._riding = dict.fromkeys(islice(line, self.slots))
            self._waiting = dict.fromkeys(islice(line, self.slots, None))
        return [*self._riding]


def steps_of(texts: Sequence[Text], steps_max: int, token_s: float) -> int:
    """How many tokens each text advances by in the next step.

    As many as may be, since each piece costs as much to send as several tokens to make; few, while at least half of
    those who ride wait for their first piece; never more than any of them can use.

    Args:
        texts: who ride in it.
        steps_max: the most that the model can.
        token_s: the expected time of one token of all of them, in seconds; 0 when unknown.
    """
    steps = min(steps_max, max(1, int(STEP_S / token_s))) if token_s else steps_max
    due = sum(not text.spoke_ns and text.unread < FIRST_STEPS for text in texts)
    if 2 * due >= len(texts):
        steps = min(steps, FIRST_STEPS)
    return min(steps, max(text.needs for text in texts))
