"""Terrain, second half: the nine kinds of land that people made."""

from __future__ import annotations

import numpy as np

from archipelago.pipeline.streams.atlas.canvas import (
    CANVAS,
    TURN,
    Dice,
    blend,
    noise,
    polar,
    turned,
)
from archipelago.pipeline.streams.atlas.land import box, crowns, ground, meadow, pen, sea

EARTH, ASPHALT, CONCRETE, PAINT = (138, 112, 82), (84, 85, 88), (168, 166, 160), (235, 235, 228)
ROOFS = ((160, 82, 62), (128, 70, 58), (150, 146, 142), (104, 100, 100), (186, 130, 96))
CARS = (
    (200, 30, 35),
    (235, 235, 235),
    (40, 60, 110),
    (30, 30, 34),
    (150, 155, 160),
    (220, 180, 60),
)
MIDDLE = CANVAS // 2


def farmland(dice: Dice) -> np.ndarray:
    u, v = turned(dice.below(TURN))
    wide, tall = dice.between(28, 52) * 16, dice.between(24, 44) * 16
    u, v = u + 8192 + dice.below(2048), v + 8192 + dice.below(2048)
    u = u + dice.bytes(64)[v // tall % 64].astype(np.int32) * 3
    field = u // wide * 7 + v // tall * 13
    crops = [
        (122, 142, 66),
        (168, 150, 82),
        (96, 122, 58),
        (142, 112, 76),
        (190, 172, 96),
        (82, 108, 60),
    ]
    kinds = np.asarray([dice.near(dice.pick(crops), 12) for _ in range(64)], np.int32)[field % 64]
    along = np.where(field % 3 == 0, u, v)
    furrow = (along % (dice.between(4, 6) * 16) < 32) * 20
    kinds = np.clip(kinds - furrow[..., None] + noise(dice, 6)[..., None] // 12 - 10, 0, 255)
    track = (u % wide < 36) | (v % tall < 36)
    return blend(kinds.astype(np.uint8), dice.near((176, 162, 130), 16), track)


def football(dice: Dice) -> np.ndarray:
    picture, draw = pen(ground(dice, dice.near(dice.pick((CONCRETE, (96, 112, 70))), 14), 14))
    around = dice.near((170, 84, 66), 18) if dice.chance(50) else (88, 118, 62)
    box(draw, MIDDLE, MIDDLE, 108, 76, around)
    green = dice.near((72, 142, 60), 14)
    for k in range(10):
        stripe = tuple(c + (10 if k % 2 else -6) for c in green)
        draw.rectangle((14 + 10 * k, 32, 23 + 10 * k, 96), fill=stripe)
    for corners in ((17, 35, 110, 93), (17, 48, 31, 80), (96, 48, 110, 80)):
        draw.rectangle(corners, outline=PAINT, width=2)
    draw.line((64, 35, 64, 93), fill=PAINT, width=2)
    draw.ellipse((52, 52, 76, 76), outline=PAINT, width=2)
    return np.asarray(picture)


def harbour(dice: Dice) -> np.ndarray:
    picture, draw = pen(sea(dice))
    draw.rectangle((0, 0, CANVAS, dice.between(14, 24)), fill=dice.near(CONCRETE, 14))
    step = dice.between(30, 40)
    for x in range(dice.between(6, 16), CANVAS, step):
        length = dice.between(84, 112)
        draw.rectangle((x, 10, x + 4, length), fill=dice.near((178, 164, 140), 12))
        for y in range(32, length - 4, dice.between(10, 13)):
            for side in (-1, 1):
                if dice.chance(80):
                    tip, tail = x + 2 + side * dice.between(13, 16), x + 2 + side * 4
                    hull = [
                        (tail, y - 3),
                        (tip - side * 4, y - 3),
                        (tip, y),
                        (tip - side * 4, y + 3),
                        (tail, y + 3),
                    ]
                    draw.polygon(
                        hull, fill=dice.pick((PAINT, PAINT, (210, 214, 220), (60, 84, 130)))
                    )
    return np.asarray(picture)


def parking(dice: Dice) -> np.ndarray:
    picture, draw = pen(ground(dice, dice.near(ASPHALT, 16), 8, 8))
    pitch, lane = dice.between(9, 12), dice.between(40, 50)
    for top in range(dice.between(-10, 6), CANVAS, lane):
        for x in range(dice.between(-6, 0), CANVAS, pitch):
            draw.line((x, top, x, top + 28), fill=PAINT)
            for y in (top + 7, top + 21):
                if dice.chance(72):
                    box(draw, x + pitch // 2, y, pitch - 4, 10, dice.near(dice.pick(CARS), 12))
                    box(draw, x + pitch // 2, y - 1, pitch - 6, 3, (50, 56, 64))
        draw.line((0, top + 14, CANVAS, top + 14), fill=PAINT)
    return np.asarray(picture)


def railway(dice: Dice) -> np.ndarray:
    picture, draw = pen(meadow(dice))
    crowns(dice, draw, dice.between(20, 50))
    tracks, gap = dice.between(2, 5), dice.between(16, 19)
    left = MIDDLE - tracks * gap // 2
    draw.rectangle(
        (left - 4, 0, left + tracks * gap + 3, CANVAS), fill=dice.near((132, 122, 114), 14)
    )
    for k in range(tracks):
        x = left + k * gap + gap // 2
        for y in range(0, CANVAS, 5):
            draw.line((x - 6, y, x + 6, y), fill=(84, 70, 60), width=2)
        for rail in (x - 4, x + 4):
            draw.line((rail, 0, rail, CANVAS), fill=(196, 198, 204), width=2)
    return np.asarray(picture)


def residential(dice: Dice) -> np.ndarray:
    picture, draw = pen(meadow(dice))
    street, wide = dice.between(46, 56), dice.between(17, 22)
    first = dice.between(-8, 16)
    crowns(dice, draw, 60)
    for top in range(first, CANVAS, street):
        draw.rectangle((0, top, CANVAS, top + 7), fill=dice.near(ASPHALT, 14))
        for x in range(dice.between(2, 12), CANVAS, wide):
            for y in (top - 12, top + 19):
                roof = dice.near(dice.pick(ROOFS), 14)
                deep = dice.between(10, 13)
                box(draw, x + 2, y + 2, 13, deep, (52, 58, 46))
                box(draw, x, y, 13, deep, roof)
                lit = (min(255, roof[0] + 24), min(255, roof[1] + 24), min(255, roof[2] + 24))
                box(draw, x, y - deep // 4, 13, deep // 2, lit)
    cross = dice.between(20, 108)
    draw.rectangle((cross, 0, cross + 7, CANVAS), fill=dice.near(ASPHALT, 14))
    return np.asarray(picture)


def roundabout(dice: Dice) -> np.ndarray:
    picture, draw = pen(meadow(dice))
    crowns(dice, draw, dice.between(15, 50))
    grey, radius, road = dice.near(ASPHALT, 16), dice.between(28, 36), dice.between(12, 15)
    first = dice.below(TURN)
    arms = dice.between(3, 4)
    for k in range(arms):
        x, y = polar(120, first + k * TURN // arms + dice.between(-40, 40))
        draw.line((MIDDLE, MIDDLE, MIDDLE + x, MIDDLE + y), fill=grey, width=road)
        draw.line((MIDDLE, MIDDLE, MIDDLE + x, MIDDLE + y), fill=PAINT)
    box = (MIDDLE - radius, MIDDLE - radius, MIDDLE + radius, MIDDLE + radius)
    draw.ellipse(box, fill=grey, outline=PAINT)
    inner = radius - road
    box = (MIDDLE - inner, MIDDLE - inner, MIDDLE + inner, MIDDLE + inner)
    draw.ellipse(box, fill=dice.near((92, 130, 66), 12), outline=PAINT, width=2)
    return np.asarray(picture)


def runway(dice: Dice) -> np.ndarray:
    picture, draw = pen(meadow(dice))
    half, x = dice.between(12, 18), MIDDLE + dice.between(-8, 8)
    draw.rectangle((x - half, 0, x + half, CANVAS), fill=dice.near((96, 96, 100), 14))
    for side in (x - half + 2, x + half - 2):
        draw.line((side, 0, side, CANVAS), fill=PAINT)
    for y in range(dice.between(-8, 0), CANVAS, 16):
        draw.line((x, y, x, y + 9), fill=PAINT, width=2)
    if dice.chance(60):  # threshold
        top = dice.between(4, 40)
        for k in range(-half + 4, half - 2, 4):
            draw.line((x + k, top, x + k, top + 18), fill=PAINT, width=2)
    exit_at = dice.between(30, 100)
    draw.line((x, exit_at, 140, exit_at + dice.between(-50, 50)), fill=(110, 110, 112), width=9)
    return np.asarray(picture)


def tanks(dice: Dice) -> np.ndarray:
    picture, draw = pen(
        ground(dice, dice.near(dice.pick((CONCRETE, EARTH, (150, 150, 120))), 16), 14)
    )
    step = dice.between(34, 48)
    radius = step * dice.between(34, 42) // 100
    start = dice.between(4, 20)
    for x in range(start, CANVAS + 20, step):
        for y in range(start, CANVAS + 20, step):
            if dice.chance(88):
                draw.ellipse(
                    (x - radius, y - radius, x + radius + 6, y + radius + 5), fill=(70, 68, 62)
                )
                white = dice.near((226, 226, 222), 14)
                draw.ellipse(
                    (x - radius, y - radius, x + radius, y + radius),
                    fill=white,
                    outline=(150, 150, 150),
                )
                draw.line((x, y, x + radius - 2, y), fill=(150, 150, 150), width=2)
    return np.asarray(picture)
