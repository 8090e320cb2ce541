"""Multiple choice made of the documentation that every Python has."""

import pydoc_data.topics
import random
from dataclasses import dataclass

CHOICES = 4
WORDS, ENDING = 24, 5
"""Of a passage, and of what it may end with."""
POOL = 64
"""Items that examples are drawn from."""

Request = tuple[str, str]
"""A context, and one of its answers."""


@dataclass(frozen=True)
class Item:
    """A passage, and four endings."""

    passage: str
    endings: tuple[str, ...]
    right: int
    """Which of them it has."""

    def context(self, task: str) -> str:
        """What stands before the answer."""
        if task == "texts":
            return self.passage
        lines = [f"{letter}. {end}" for letter, end in zip("ABCD", self.endings, strict=True)]
        return "\n".join([self.passage, *lines, "Answer:"])

    def answers(self, task: str) -> list[str]:
        """What may stand behind the context."""
        return [f" {answer}" for answer in (self.endings if task == "texts" else "ABCD")]

    def example(self, task: str) -> str:
        """The item with its right answer."""
        return self.context(task) + self.answers(task)[self.right]


TASKS = ("letters", "texts")


def items(count: int, seed: int = 0) -> list[Item]:
    """Items whose endings are all taken from different places."""
    draw = random.Random(seed)
    words = [word for text in pydoc_data.topics.topics.values() for word in text.split()]
    length = WORDS + ENDING
    places = draw.sample(range(0, len(words) - length, length), CHOICES * count)
    found = []
    for number in range(count):
        start, *others = places[CHOICES * number : CHOICES * (number + 1)]
        endings = [" ".join(words[at + WORDS : at + length]) for at in (start, *others)]
        right = draw.randrange(CHOICES)
        endings[0], endings[right] = endings[right], endings[0]
        found.append(Item(" ".join(words[start : start + WORDS]), tuple(endings), right))
    return found


def requests(task: str, count: int, shots: int, *, same_examples: bool = False) -> list[Request]:
    """The answers to all items, one item after the other, each behind its examples."""
    draw = random.Random(1)
    pool, asked = items(POOL + count)[:POOL], items(POOL + count)[POOL:]
    found = []
    for item in asked:
        examples = pool[:shots] if same_examples else draw.sample(pool, shots)
        parts = [*(example.example(task) for example in examples), item.context(task)]
        found += [("\n\n".join(parts), answer) for answer in item.answers(task)]
    return found
