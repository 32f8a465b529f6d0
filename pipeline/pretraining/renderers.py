"""Pictures that no corpus has: strokes, pictograms, cut-outs, banners, land, patterns, pages ...

Each renderer draws one picture, uint8 (SIZE, SIZE, 3), from nothing but its dice: no font, no
template, no list of classes. They cover kinds of pictures, not things.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

SIZE = 64
BIG = 192  # canvas, reduced to SIZE at the end
Dice = np.random.Generator
Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


def _colour(dice: Dice, vivid: float = 0.6) -> Colour:
    value, saturation = dice.uniform(20, 250), dice.uniform(0, 1) * vivid
    tone = dice.uniform(0, 1, 3)
    tone = (tone - tone.min()) / max(1e-6, float(np.ptp(tone)))
    mixed = value * (1 - saturation * (1 - tone))
    return int(mixed[0]), int(mixed[1]), int(mixed[2])


def _luma(colour: Colour) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def _apart(dice: Dice, other: Colour, gap: float = 70.0, vivid: float = 0.9) -> Colour:
    for _ in range(30):
        colour = _colour(dice, vivid)
        if abs(_luma(colour) - _luma(other)) >= gap:
            return colour
    return (245, 245, 240) if _luma(other) < 128 else (15, 15, 20)


def smooth(dice: Dice, cells: int, octaves: int = 3) -> np.ndarray:
    """Random bumps 0..1, (BIG, BIG), `cells` along an edge in the coarsest octave."""
    total = np.zeros((BIG, BIG))
    for octave in range(octaves):
        edge = max(2, min(BIG, cells * 2**octave))
        patch = Image.fromarray((dice.random((edge, edge)) * 255).astype(np.uint8))
        total += np.asarray(patch.resize((BIG, BIG), Image.Resampling.BICUBIC)) / 2.0**octave
    return (total - total.min()) / max(1e-6, float(np.ptp(total)))


def _blend(low: Colour, high: Colour, share: np.ndarray) -> np.ndarray:
    a, b = np.array(low, float), np.array(high, float)
    return np.clip(a + (b - a) * share[..., None], 0, 255)


def _ground(dice: Dice, colour: Colour, unrest: float) -> Image.Image:
    spread = dice.uniform(0, unrest)
    shift = (smooth(dice, int(dice.integers(2, 6))) - 0.5) * spread
    return Image.fromarray(np.clip(np.array(colour) + shift[..., None], 0, 255).astype(np.uint8))


def _finish(dice: Dice, image: Image.Image, grain: float = 8.0) -> np.ndarray:
    small = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX), float)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / SIZE - 0.5
    light = 1 + dice.uniform(-0.2, 0.2) * x + dice.uniform(-0.2, 0.2) * y
    noise = dice.normal(0, dice.uniform(0, grain), small.shape)
    return np.clip(small * light[..., None] + noise, 0, 255).astype(np.uint8)


def _curve(dice: Dice, reach: float, knots: int) -> Points:
    at = dice.uniform(BIG / 2 - reach, BIG / 2 + reach, (knots, 2))
    where = np.linspace(0, knots - 1, 14 * knots)
    eased = [np.interp(where, np.arange(knots), at[:, axis]) for axis in range(2)]
    kernel = np.hanning(15) / np.hanning(15).sum()
    lines = [np.convolve(np.pad(line, 7, mode="edge"), kernel, "valid") for line in eased]
    return [(float(x), float(y)) for x, y in zip(*lines, strict=True)]


def _pen(draw: ImageDraw.ImageDraw, points: Points, colour: Colour | int, width: float) -> None:
    draw.line(points, fill=colour, width=max(1, int(width)), joint="curve")
    for x, y in (points[0], points[-1]):
        r = width / 2
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def strokes(dice: Dice) -> np.ndarray:
    """Something written by hand: a few thick curves of pen, brush or chalk in the middle."""
    paper = _colour(dice, 0.35)
    if dice.random() < 0.6:
        tone = int(dice.choice([dice.integers(0, 60), dice.integers(225, 256)]))
        paper = (tone, tone, min(255, tone + int(dice.integers(0, 12))))
    ink = _apart(dice, paper, 110, 0.4)
    sheet = Image.new("L", (BIG, BIG))
    draw = ImageDraw.Draw(sheet)
    width, reach = dice.uniform(7, 26), dice.uniform(40, 75)
    for _ in range(int(dice.integers(1, 4))):
        _pen(draw, _curve(dice, reach, int(dice.integers(3, 6))), 255, width)
    sheet = sheet.filter(ImageFilter.GaussianBlur(dice.uniform(0, 4)))
    image = _ground(dice, paper, 25)
    image.paste(Image.new("RGB", (BIG, BIG), ink), mask=sheet)
    return _finish(dice, image)


def _ring(dice: Dice, x: float, y: float, radius: float) -> Points:
    """A closed outline: polygon, star, blob or lobes."""
    count = int(dice.integers(3, 13))
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False) + dice.uniform(0, 7)
    way = dice.integers(0, 4)
    if way == 0:
        angle, r = angle[:: max(1, 96 // count)], np.full(96, radius)[:: max(1, 96 // count)]
    elif way == 1:
        angle = np.linspace(0, 2 * np.pi, 2 * count, endpoint=False) + dice.uniform(0, 7)
        r = np.where(np.arange(2 * count) % 2, radius, radius * dice.uniform(0.3, 0.7))
    elif way == 2:
        r = radius * (1 + dice.uniform(0.1, 0.5) * np.sin(count * angle)) / 1.2
    else:
        r = radius * (1 + 0.3 * np.sin(2 * angle + dice.uniform(0, 7)) * dice.uniform(0, 1))
    squash = dice.uniform(0.5, 1.0)
    return [
        (float(x + a * np.cos(t)), float(y + a * np.sin(t) * squash))
        for t, a in zip(angle, r, strict=True)
    ]


def pictogram(dice: Dice) -> np.ndarray:
    """A printed symbol in one colour: outlines, bars, holes and dots, upright or turned."""
    paper = _colour(dice, 0.7)
    ink = _apart(dice, paper, 60)
    sheet = Image.new("L", (BIG, BIG))
    draw = ImageDraw.Draw(sheet)
    middle, width = BIG / 2, dice.uniform(4, 14)
    solid = dice.random() < 0.55
    radius = dice.uniform(38, 70)
    outline = _ring(dice, middle, middle, radius)
    if solid:
        draw.polygon(outline, fill=255)
    else:
        _pen(draw, [*outline, outline[0], outline[1]], 255, width)
    for _ in range(int(dice.integers(1, 6))):
        fill = 0 if solid and dice.random() < 0.7 else 255
        x, y = dice.uniform(middle - radius, middle + radius, 2)
        size = dice.uniform(5, radius * 0.45)
        way = dice.integers(0, 4)
        if way == 0:
            draw.ellipse((x - size, y - size, x + size, y + size), fill=fill)
        elif way == 1:
            draw.rectangle((x - size, y - width / 2, x + size, y + width / 2), fill=fill)
        elif way == 2:
            draw.polygon(_ring(dice, x, y, size), fill=fill)
        else:
            _pen(draw, [(x, y), (2 * middle - x, y)], fill, width)
    if dice.random() < 0.6:  # many symbols are mirrored
        left = sheet.crop((0, 0, BIG // 2, BIG))
        sheet.paste(left.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (BIG // 2, 0))
    sheet = sheet.rotate(dice.uniform(-25, 25), Image.Resampling.BILINEAR)
    image = _ground(dice, paper, 40)
    image.paste(Image.new("RGB", (BIG, BIG), ink), mask=sheet)
    return _finish(dice, image, 14)


def cutout(dice: Dice) -> np.ndarray:
    """One flat shape, mostly with a shadow, over a ground with scraps of other colours."""
    paper = _colour(dice, 0.6)
    image = _ground(dice, paper, 60)
    draw = ImageDraw.Draw(image)
    for _ in range(int(dice.integers(0, 14))):
        near = tuple(int(np.clip(c + dice.normal(0, 35), 0, 255)) for c in paper)
        x, y = dice.uniform(0, BIG, 2)
        if dice.random() < 0.5:
            draw.polygon(_ring(dice, x, y, dice.uniform(4, 18)), fill=near)
        else:
            end = dice.normal(0, 35, 2)
            draw.line((x, y, x + end[0], y + end[1]), fill=near, width=int(dice.integers(2, 6)))
    x, y = dice.uniform(BIG * 0.42, BIG * 0.58, 2)
    outline = _ring(dice, x, y, dice.uniform(36, 78))
    if dice.random() < 0.7:
        shift = dice.uniform(3, 9)
        shadow = tuple(int(c * 0.55) for c in paper)
        draw.polygon([(x + shift, y + shift) for x, y in outline], fill=shadow)
    ink = _apart(dice, paper, 45)
    draw.polygon(outline, fill=ink)
    if dice.random() < 0.3:
        x, y = np.mean(outline, axis=0)
        r = dice.uniform(8, 24)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=paper)
    return _finish(dice, image, 12)


def banner(dice: Dice) -> np.ndarray:
    """A cloth or board with a few flat areas of strong colour before sky, wall or trees."""
    design = Image.new("RGB", (120, 80), _colour(dice, 1.0))
    draw = ImageDraw.Draw(design)
    way, parts = dice.integers(0, 4), int(dice.integers(2, 8))
    for part in range(parts):
        colour = _colour(dice, 1.0)
        if way == 0:
            draw.rectangle((0, 80 * part // parts, 120, 80 * (part + 1) // parts), fill=colour)
        elif way == 1:
            draw.rectangle((120 * part // parts, 0, 120 * (part + 1) // parts, 80), fill=colour)
        elif way == 2:
            x = 200 * part // parts - 50
            draw.polygon([(x, 0), (x + 30, 0), (x - 20, 80), (x - 50, 80)], fill=colour)
        else:
            left, top = dice.uniform(10, 80, 2)
            draw.polygon(_ring(dice, left, top, dice.uniform(6, 30)), fill=colour)
    if dice.random() < 0.5:
        draw.polygon(_ring(dice, 60, 40, dice.uniform(10, 26)), fill=_colour(dice, 1.0))
    y, x = np.mgrid[0:BIG, 0:BIG].astype(float)
    sky = _blend(_colour(dice, 0.6), _colour(dice, 0.4), y / BIG)
    cloud = smooth(dice, 3)[..., None] ** 2 * dice.uniform(0, 120)
    back = np.clip(sky + cloud, 0, 255)
    if dice.random() < 0.4:
        line = BIG * dice.uniform(0.6, 0.9) + (smooth(dice, 4)[0] - 0.5) * 40
        back[y > line] = _colour(dice, 0.5)
    wide, tall = dice.uniform(85, 160), dice.uniform(60, 120)
    left, top = (BIG - wide) / 2 + dice.normal(0, 8), (BIG - tall) / 2 + dice.normal(0, 10)
    wave = np.sin(x / dice.uniform(8, 30) + dice.uniform(0, 7)) * (dice.random() < 0.75)
    u, v = (x - left) / wide, (y - top + wave * dice.uniform(1, 6)) / tall
    inside = (u >= 0) & (u < 1) & (v >= 0) & (v < 1)
    cloth = np.asarray(design, float)[
        np.clip(v * 80, 0, 79).astype(int), np.clip(u * 120, 0, 119).astype(int)
    ]
    back[inside] = (cloth * (1 + 0.15 * wave[..., None]))[inside]
    if dice.random() < 0.6:
        pole = (np.abs(u + 0.02) < 0.02) & (v > -0.05)
        back[pole] = _colour(dice, 0.2)
    image = Image.fromarray(np.clip(back, 0, 255).astype(np.uint8))
    image = image.rotate(dice.uniform(-9, 9), Image.Resampling.BILINEAR)
    edge = BIG * 0.08
    return _finish(dice, image.crop((edge, edge, BIG - edge, BIG - edge)), 10)


def overhead(dice: Dice) -> np.ndarray:
    """A drawn piece of land from straight above: ground, water, roads, blocks, crowns, rows."""
    earth = [(70, 100, 50), (150, 130, 90), (100, 95, 85), (45, 75, 40), (190, 165, 115)]
    base = np.array(earth[int(dice.integers(len(earth)))]) + dice.normal(0, 15, 3)
    other = base * dice.uniform(0.6, 1.35)
    shade = smooth(dice, int(dice.integers(3, 14)), 4)
    land = np.clip(base + (other - base) * shade[..., None], 0, 255)
    if dice.random() < 0.35:
        water = smooth(dice, 2, 2) > dice.uniform(0.45, 0.75)
        land[water] = np.array([40, 85, 120]) + dice.normal(0, 15, 3)
    image = Image.fromarray(land.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(dice.integers(0, 4))):
        tone = int(dice.integers(70, 190))
        ends = dice.uniform(-40, BIG + 40, (2, 2))
        line = [(float(a), float(b)) for a, b in ends]
        draw.line(line, fill=(tone, tone, tone - 8), width=int(dice.integers(4, 22)))
    way, step = dice.integers(0, 4), int(dice.integers(14, 40))
    roof, size = _colour(dice, 0.5), dice.uniform(0.2, 0.45) * step
    for x in range(step // 2, BIG, step):
        for y in range(step // 2, BIG, step):
            if dice.random() < 0.25 or way == 0:
                continue
            a, b = x + dice.normal(0, 3), y + dice.normal(0, 3)
            near = tuple(int(np.clip(c + dice.normal(0, 14), 0, 255)) for c in roof)
            if way == 1:
                draw.rectangle((a - size, b - size * 0.7, a + size, b + size * 0.7), fill=near)
            elif way == 2:
                tree = (int(35 + size), int(70 + dice.integers(0, 35)), 35)
                draw.ellipse((a - size, b - size, a + size, b + size), fill=tree)
            else:
                draw.line((x, 0, x + 10, BIG), fill=near, width=max(1, int(size / 3)))
    image = image.rotate(dice.uniform(-40, 40), Image.Resampling.BILINEAR)
    image = image.crop((30, 30, BIG - 30, BIG - 30)).resize((BIG, BIG))
    return _finish(dice, image, 12)


def pattern(dice: Dice) -> np.ndarray:
    """A surface that looks the same all over: waves, cells, warped bands, speckles, weave."""
    y, x = np.mgrid[0:BIG, 0:BIG].astype(float)
    turn, period = dice.uniform(0, np.pi), dice.uniform(12, 60)
    u = (x * np.cos(turn) + y * np.sin(turn)) * 2 * np.pi / period
    v = (y * np.cos(turn) - x * np.sin(turn)) * 2 * np.pi / period * dice.uniform(0.5, 1.5)
    warp = (smooth(dice, int(dice.integers(2, 7))) - 0.5) * dice.uniform(0, 12)
    way = dice.integers(0, 6)
    if way == 0:
        field = 0.5 + 0.5 * np.sin(u + warp)
    elif way == 1:
        field = 0.5 + 0.25 * (np.sin(u + warp) + np.sin(v + warp))
    elif way == 2:
        field = 0.5 + 0.5 * np.sin(u) * np.sin(v + warp)
    elif way == 3:
        seeds = dice.uniform(0, BIG, (int(dice.integers(12, 70)), 2))
        far = np.hypot(x[::3, ::3, None] - seeds[:, 0], y[::3, ::3, None] - seeds[:, 1])
        two = np.partition(far, 1, axis=2)[..., :2]
        cell = two[..., 1] - two[..., 0] if dice.random() < 0.6 else two[..., 0]
        field = np.kron(np.clip(cell / 16, 0, 1), np.ones((3, 3)))[:BIG, :BIG]
    elif way == 4:
        field = smooth(dice, int(dice.integers(8, 40)), int(dice.integers(1, 4)))
    else:
        field = smooth(dice, int(dice.integers(3, 9)), 4)
        field = np.abs(np.sin(field * dice.uniform(6, 20)))
    if dice.random() < 0.5:
        field = np.clip((field - dice.uniform(0.35, 0.65)) * dice.uniform(2, 12) + 0.5, 0, 1)
    low = _colour(dice, 0.9)
    image = _blend(low, _apart(dice, low, 30), field)
    return _finish(dice, Image.fromarray(image.astype(np.uint8)), 12)


def solid(dice: Dice) -> np.ndarray:
    """Balls and blocks with light and shadow on a table: a computer's still life."""
    back, table = _colour(dice, 0.4), _colour(dice, 0.5)
    horizon = dice.uniform(0.3, 0.7) * BIG
    y, x = np.mgrid[0:BIG, 0:BIG].astype(float)
    image = _blend(back, table, np.clip((y - horizon) / dice.uniform(1, 60), 0, 1))
    for _ in range(int(dice.integers(1, 5))):
        a, b = dice.uniform(30, BIG - 30), dice.uniform(60, BIG - 30)
        r, colour = dice.uniform(16, 48), np.array(_colour(dice, 0.9), float)
        under = np.hypot((x - a - r * 0.4) / (r * 1.3), (y - b - r * 0.8) / (r * 0.35)) < 1
        image[under] *= 0.6
        u, v = (x - a) / r, (y - b) / r
        if dice.random() < 0.6:
            inside, height = np.hypot(u, v) < 1, np.sqrt(np.clip(1 - u**2 - v**2, 0, 1))
            light = np.clip(0.25 + 0.75 * (-0.5 * u - 0.6 * v + 0.6 * height), 0.1, 1.2)
        else:
            inside = (np.abs(u) < 0.9) & (np.abs(v) < 0.9)
            light = np.where(u > 0.35, 0.5, np.where(v < -0.45, 1.15, 0.8))
        image[inside] = (colour * light[..., None])[inside]
    return _finish(dice, Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), 8)


def diagram(dice: Dice) -> np.ndarray:
    """A page: bars, a graph, a table or lines of something like print, on paper or screen."""
    paper = (250, 250, 248) if dice.random() < 0.6 else _colour(dice, 0.3)
    image = Image.new("RGB", (BIG, BIG), paper)
    draw = ImageDraw.Draw(image)
    ink, way = _apart(dice, paper, 110, 0.4), dice.integers(0, 4)
    step = int(dice.integers(9, 26))
    if way == 0:
        for y in range(step, BIG - step, step):
            x = 16.0
            while x < BIG - 24:
                wide = dice.uniform(6, 34)
                draw.rectangle((x, y, min(x + wide, BIG - 14), y + step * 0.4), fill=ink)
                x += wide + 7
    elif way == 1:
        for x in range(24, BIG - 16, 2 * step):
            colour = _apart(dice, paper, 40)
            draw.rectangle((x, dice.uniform(20, 150), x + 1.4 * step, BIG - 24), fill=colour)
    elif way == 2:
        for _ in range(int(dice.integers(1, 4))):
            line = [(float(x), float(dice.uniform(20, 160))) for x in range(20, BIG, step)]
            draw.line(line, fill=_apart(dice, paper, 60), width=int(dice.integers(2, 7)))
    else:
        for at in range(12, BIG, 2 * step):
            draw.line((at, 12, at, BIG - 12), fill=ink, width=2)
            draw.line((12, at, BIG - 12, at), fill=ink, width=2)
    if way in (1, 2):
        draw.line([(18, 10), (18, BIG - 22), (BIG - 8, BIG - 22)], fill=ink, width=3)
    return _finish(dice, image, 6)


def lights(dice: Dice) -> np.ndarray:
    """Soft spots or streaks of light in the dark: a night sky, lamps, sparks."""
    y, x = np.mgrid[0:BIG, 0:BIG].astype(float)
    low = tuple(int(c * 0.15) for c in _colour(dice, 0.8))
    image = _blend((low[0], low[1], low[2]), (5, 5, 12), y / BIG)
    for _ in range(int(dice.integers(3, 40))):
        a, b = dice.uniform(0, BIG, 2)
        r, long = dice.uniform(2, 16), dice.uniform(1, 4) if dice.random() < 0.3 else 1.0
        glow = np.exp(-(((x - a) / (r * long)) ** 2 + ((y - b) / r) ** 2))
        image += glow[..., None] * np.array(_colour(dice, 0.7)) * dice.uniform(0.4, 1.4)
    return _finish(dice, Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)), 10)


# Names of kinds, each with its renderer; `captions` has the words for them.
RENDERERS: dict[str, Callable[[Dice], np.ndarray]] = {
    "strokes": strokes,
    "pictogram": pictogram,
    "cutout": cutout,
    "banner": banner,
    "overhead": overhead,
    "surface": pattern,
    "solid": solid,
    "diagram": diagram,
    "lights": lights,
}
