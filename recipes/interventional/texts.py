"""What is said: sentences of 6 to 15 words from a small grammar, and single words."""

from __future__ import annotations

import random

SUBJECTS = (
    "the old teacher, my younger sister, a tall stranger, the village doctor, our new "
    "neighbour, his best friend, the tired driver, a small child, the hungry dog, her "
    "grandmother, the quiet student, an angry customer, the school choir, a lucky winner, the "
    "baker's wife, two brave sailors, the other team, every good farmer, the king's daughter, "
    "a famous singer, those noisy birds, the night watchman, my father, the judge, an early "
    "visitor, the young poet, a grey horse, the whole family, the captain, some curious "
    "people"
).split(", ")
VERBS = (
    "opened, carried, found, painted, forgot, watched, bought, washed, lost, followed, "
    "described, hid, borrowed, measured, admired, dropped, repaired, counted, chose, noticed, "
    "threw, served, wrapped, finished, reached, destroyed, pulled, sold, covered, discovered"
).split(", ")
OBJECTS = (
    "a wooden box, the broken window, seven green apples, an enormous fish, the yellow "
    "bicycle, a letter from home, the first chapter, three pairs of shoes, a cup of coffee, "
    "the silver bridge, a piece of chalk, the heavy suitcase, fresh bread and cheese, an "
    "unusual picture, the garden gate, a bottle of water, the church tower, twelve white "
    "roses, a thin blanket, the musical instrument, half of the money, a useful map, the "
    "wrong answer, an orange jacket, the joyful song, a narrow path, the kitchen table, a "
    "huge shadow, the village square, a pocket watch"
).split(", ")
ENDINGS = (
    "before the rain began, in the middle of july, without saying a word, near the old mill, "
    "because it was late, during the long winter, with great pleasure, on the way to school, "
    "after the show was over, for no good reason, under the apple tree, at eight o'clock, as "
    "fast as possible, beyond the river, while we were asleep, just in time, behind the "
    "railway station, every other thursday, to everyone's surprise, from the top of the hill, "
    "across the frozen lake, by mistake, together with his cousin, in a loud voice, over the "
    "weekend, against all advice, through the thick fog, until the very end, once again, for "
    "the second time"
).split(", ")

WORDS = (
    "yes no up down left right on off stop go zero one two three four five six seven eight "
    "nine bed bird cat dog happy house marvin sheila tree wow backward forward follow learn "
    "visual"
).split()
"""The words of Speech Commands, version 2."""


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different ones, the same for the same seed."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        parts = [rng.choice(words) for words in (SUBJECTS, VERBS, OBJECTS, ENDINGS)]
        text = " ".join(parts)
        found[f"{text[0].upper()}{text[1:]}."] = None
    return list(found)
