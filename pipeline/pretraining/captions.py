"""What is said about a picture: what kind it is, in words that combine, and how it looks.

`kind_caption` says medium, subject and view of the kind, then what was measured in the pixels.
`name_caption` also names what is shown. `short_caption` is an option of a multiple choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Dice = np.random.Generator

# What is said of any picture, in this order; the prevailing hue only where a thing is named: it
# changes from picture to picture within a kind.
SAID = (
    "ground",
    "layout",
    "colour",
    "brightness",
    "contrast",
    "flatness",
    "sharpness",
    "grain",
)
TONES = ("white", "light grey", "grey", "dark grey", "black")

# Per kind: ways to say the medium, ways to say the subject. A medium is shared by few kinds: it is
# said first, and one that fits everything would always win.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "object": (
        ("a photo", "a colour photo", "a snapshot"),
        ("an everyday object or an animal", "one object or animal in its surroundings"),
    ),
    "people": (
        ("a photo", "a snapshot", "an outdoor photo"),
        ("people or dogs doing something", "people in an everyday scene", "a scene with people"),
    ),
    "clothes": (
        ("a photo", "an indoor photo", "an amateur photo"),
        ("clothing laid out or hanging", "a single piece of clothing"),
    ),
    "product": (
        ("a product photo", "a studio photo", "a catalogue photo"),
        ("something to wear or carry", "clothing, shoes or accessories, cut out"),
    ),
    "grocery": (
        ("a photo", "a close-up photo", "an indoor photo"),
        ("fruit, vegetables or packages in a shop", "food on a shelf"),
    ),
    "flower": (
        ("a close-up photo", "a photo", "an outdoor photo"),
        ("a flower with leaves around it", "flowers in a garden", "plants in bloom"),
    ),
    "scene": (
        ("a photo", "an outdoor photo", "a wide photo"),
        ("a landscape or a street", "mountains, sea, forest or buildings", "a view into the open"),
    ),
    "aerial": (
        ("an aerial photo", "a satellite photo", "a photo from straight above"),
        ("land seen from above", "fields, houses, roads or water seen from above"),
    ),
    "painting": (
        ("a painting", "a work of art", "a painted picture"),
        ("a person, an animal or a thing in visible brush strokes", "a painted subject"),
    ),
    "cartoon": (
        ("a cartoon", "a comic picture"),
        ("a person, an animal or a thing with outlines and flat colours", "a drawn figure"),
    ),
    "sketch": (
        ("a line drawing", "a quick sketch"),
        ("a thing in thin black lines on white", "a simple outline drawn by hand"),
    ),
    "icon": (
        ("an icon", "an emoji"),
        ("a smooth coloured symbol or figure", "a face, a thing or a sign in flat colours"),
    ),
    "clipart": (
        ("a clip-art picture", "a cut-out picture"),
        ("a thing cut out on white", "a single object without surroundings"),
    ),
    "sign": (
        ("a photo of a traffic sign", "a road sign"),
        ("a round or three-cornered board with a symbol", "a sign at the road"),
    ),
    "character": (
        ("a printed character", "a picture of writing"),
        ("a single digit or letter", "one large number or letter"),
    ),
    "shape": (
        ("a geometric figure",),
        ("one geometric shape in one colour", "a plain shape"),
    ),
    "pattern": (
        ("a texture", "a computer-made pattern"),
        ("a pattern that fills the picture", "stripes, checks, waves or noise"),
    ),
    "strokes": (
        ("handwriting", "a picture of writing"),
        ("something written by hand with a thick pen or chalk", "a few thick strokes"),
    ),
    "pictogram": (
        ("a pictogram", "a printed symbol"),
        ("a symbol in one colour", "a one-coloured sign with lines and holes"),
    ),
    "cutout": (
        ("a paper cut-out",),
        ("one flat shape with a shadow", "a shape in one colour over scraps of other colours"),
    ),
    "banner": (
        ("a picture of a flag",),
        ("a flag or board with areas of flat colour", "coloured cloth in front of sky or wall"),
    ),
    "overhead": (
        ("an aerial picture", "a drawn map"),
        ("land seen from above", "ground with roads, blocks, trees or water, from above"),
    ),
    "surface": (
        ("a texture", "a picture of a surface"),
        ("a surface that looks the same all over", "cells, bands, spots or weave"),
    ),
    "solid": (
        ("a rendered picture",),
        ("balls or blocks with light and shadow", "a still life of simple solids"),
    ),
    "diagram": (
        ("a diagram", "a page"),
        ("bars, lines, a table or rows of print", "something to read or look up"),
    ),
    "lights": (
        ("a dark picture", "a night photo"),
        ("spots of light in the dark", "soft lights"),
    ),
}

# Per measure and level: ways to say it.
SAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "colour": {
        "none": ("no colour", "black, white and grey"),
        "pale": ("pale colours", "little colour"),
        "medium": ("natural colours", "some colour"),
        "strong": ("strong colours", "vivid colours"),
    },
    "brightness": {
        "dark": ("dark", "mostly dark"),
        "medium": ("neither dark nor bright", "medium bright"),
        "bright": ("bright", "mostly bright"),
    },
    "contrast": {
        "low": ("low contrast",),
        "medium": ("medium contrast",),
        "high": ("high contrast", "strong light and dark"),
    },
    "layout": {
        "centred": ("one thing in the middle", "the subject alone in the middle"),
        "even": ("the same all over", "detail fills the picture evenly"),
        "lit above": ("brighter above than below",),
        "lit below": ("brighter below than above",),
    },
    "flatness": {
        "detail": ("full of fine detail", "no flat areas"),
        "some": ("some flat areas",),
        "flat": ("large flat areas", "mostly flat areas"),
    },
    "sharpness": {
        "blurred": ("blurred", "no sharp edges, low resolution"),
        "soft": ("soft edges",),
        "sharp": ("sharp edges", "hard edges"),
    },
    "grain": {
        "clean": ("no grain", "clean"),
        "some": ("slight grain",),
        "grainy": ("grainy", "strong grain"),
    },
}


def _pick(dice: Dice, options: Sequence[str]) -> str:
    return options[int(dice.integers(len(options)))]


def clause(dice: Dice, measure: str, level: str) -> str:
    """One measured level in words."""
    if measure == "hue":
        return "many colours" if level == "many" else f"mostly {level}"
    if measure == "ground":
        plain, _, colour = level.partition(" ")
        if plain == "plain":
            return f"plain {colour if colour in TONES else 'coloured'} background"
        ways = {
            "busy": ("busy background", "something everywhere up to the frame"),
            "shaded": ("shaded background", "uneven background"),
        }
        return _pick(dice, ways[level])
    return _pick(dice, SAYS[measure][level])


def clauses(dice: Dice, measured: dict[str, str], keep: float, hue: float = 0.0) -> list[str]:
    """A random part of what was measured, in words; `hue` is the chance to mention the hue."""
    said = [clause(dice, n, measured[n]) for n in SAID if n in measured and dice.random() < keep]
    if "hue" in measured and dice.random() < hue:
        said.append(clause(dice, "hue", measured["hue"]))
    return said


def head(dice: Dice, kind: str) -> str:
    """Medium and subject of a kind."""
    media, subjects = KINDS[kind]
    joint = _pick(dice, (": ", ", showing "))
    return _pick(dice, media) + joint + _pick(dice, subjects)


def kind_caption(dice: Dice, kind: str, measured: dict[str, str]) -> str:
    """One or two sentences that would fit other pictures of the kind as well."""
    said = clauses(dice, measured, dice.uniform(0.6, 1.0))
    text = head(dice, kind)
    return f"{text}. {', '.join(said)}." if said else f"{text}."


def name_caption(dice: Dice, kind: str, names: Sequence[str], measured: dict[str, str]) -> str:
    """What is shown, then a word or two on how."""
    said = clauses(dice, measured, 0.15, hue=0.3)
    text = f"{_pick(dice, KINDS[kind][0])}: {_pick(dice, names)}" if names else head(dice, kind)
    return f"{text}. {', '.join(said)}." if said else f"{text}."


def short_caption(dice: Dice, kind: str, measured: dict[str, str]) -> str:
    """A short description of the kind: an option of a multiple choice."""
    said = clauses(dice, measured, dice.uniform(0.1, 0.5))[:3]
    media, subjects = KINDS[kind]
    way = dice.integers(0, 3)
    text = (head(dice, kind), _pick(dice, subjects), _pick(dice, media))[int(way)]
    return ", ".join([text, *said])
