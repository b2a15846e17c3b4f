"""The things the embedded model can draw: names, other names, code points.

A hand-made table. The first name is the canonical one; a name already holding an article or a
plural noun is written as it is said. No people, flags, brands or symbols.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

STYLES = ("noto", "3d")

# name -> sRGB. White is special: it is the background of a third of the training pictures.
BACKGROUNDS = {
    "white": (255, 255, 255),
    "black": (20, 20, 24),
    "gray": (140, 144, 150),
    "red": (214, 48, 49),
    "orange": (245, 140, 40),
    "yellow": (250, 215, 70),
    "lime": (165, 220, 70),
    "green": (40, 150, 75),
    "teal": (20, 140, 140),
    "sky blue": (130, 205, 245),
    "blue": (45, 105, 220),
    "navy": (25, 40, 95),
    "purple": (125, 65, 180),
    "pink": (250, 160, 195),
    "brown": (125, 80, 50),
    "beige": (240, 225, 195),
}

_TABLE = """
fox, red fox | 1f98a
cat, kitten, kitty, cat face | 1f431
dog, puppy, dog face | 1f436
rabbit, bunny, hare | 1f430
bear, brown bear | 1f43b
panda, panda bear | 1f43c
koala, koala bear | 1f428
tiger | 1f42f
lion | 1f981
pig, piglet | 1f437
frog, green frog, toad | 1f438
monkey, monkey face, ape | 1f435
mouse, mouse face | 1f42d
unicorn, unicorn head | 1f984
horse, brown horse, pony | 1f40e
elephant | 1f418
giraffe | 1f992
penguin | 1f427
owl | 1f989
bird, blue bird, songbird | 1f426
flamingo, pink flamingo | 1f9a9
duck, mallard | 1f986
chick, baby chick, yellow chick | 1f424
fish | 1f41f
tropical fish, clownfish | 1f420
shark | 1f988
whale, blue whale | 1f433
dolphin | 1f42c
octopus | 1f419
crab, red crab | 1f980
turtle, tortoise | 1f422
snake, serpent | 1f40d
dinosaur, t-rex, tyrannosaurus | 1f996
dragon, green dragon | 1f409
butterfly | 1f98b
bee, honeybee, bumblebee | 1f41d
ladybug, ladybird, beetle | 1f41e
spider | 1f577
tree, green tree, oak | 1f333
pine tree, fir, evergreen tree | 1f332
palm tree, palm | 1f334
christmas tree | 1f384
cactus | 1f335
sunflower | 1f33b
rose, red rose | 1f339
flower, blossom, hibiscus | 1f33a
mushroom, red mushroom, toadstool | 1f344
apple, red apple | 1f34e
pear | 1f350
orange, tangerine, mandarin | 1f34a
lemon | 1f34b
banana, bananas | 1f34c
watermelon, slice of watermelon | 1f349
grapes, bunch of grapes | 1f347
strawberry | 1f353
cherries, cherry | 1f352
pineapple | 1f34d
tomato | 1f345
avocado | 1f951
carrot | 1f955
chili pepper, hot pepper, red pepper | 1f336
bread, loaf of bread | 1f35e
hamburger, burger, cheeseburger | 1f354
fries, french fries, chips | 1f35f
pizza, slice of pizza | 1f355
egg, fried egg | 1f373
ice cream, ice cream cone | 1f366
donut, doughnut | 1f369
cake, birthday cake | 1f382
cupcake, muffin | 1f9c1
coffee, cup of coffee, cup of tea | 2615
house, home, cottage | 1f3e0
castle | 1f3f0
tent | 26fa
city skyline, city, cityscape, skyline, futuristic city, city at sunset, city skyline at sunset, \
futuristic city skyline, futuristic city skyline at sunset | 1f306
mountain, snowy mountain, mountains | 1f3d4
volcano | 1f30b
rainbow | 1f308
car, red car, automobile | 1f697
taxi, yellow taxi, cab | 1f695
bus | 1f68c
fire truck, fire engine | 1f692
truck, lorry, delivery truck | 1f69a
bicycle, bike | 1f6b2
train, steam train, locomotive | 1f682
airplane, plane, aeroplane | 2708
helicopter | 1f681
rocket, space rocket, spaceship | 1f680
ufo, flying saucer | 1f6f8
sailboat, sailing boat, boat | 26f5
sun, smiling sun | 1f31e
moon, crescent moon | 1f319
star, yellow star | 2b50
planet, saturn, ringed planet | 1fa90
earth, globe, world | 1f30d
cloud | 2601
lightning, lightning bolt, thunderbolt | 26a1
snowflake | 2744
snowman | 26c4
fire, flame | 1f525
water drop, droplet, drop of water | 1f4a7
umbrella | 2602
heart, red heart, love | 2764
blue heart | 1f499
balloon, red balloon | 1f388
gift, present, wrapped gift | 1f381
soccer ball, football | 26bd
basketball | 1f3c0
guitar | 1f3b8
diamond, gem, jewel | 1f48e
key, golden key | 1f511
light bulb, lamp, bulb | 1f4a1
camera | 1f4f7
book, red book | 1f4d5
bell, golden bell | 1f514
robot, robot head | 1f916
ghost | 1f47b
alien | 1f47d
pumpkin, jack o lantern, halloween pumpkin | 1f383
skull | 1f480
teddy bear, toy bear | 1f9f8
smiley, smiley face, smile, happy face | 1f600
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One drawable thing: canonical name, every name it answers to, code points in hex."""

    name: str
    names: tuple[str, ...]
    code: str


def _read(table: str) -> tuple[Thing, ...]:
    things = []
    for line in table.replace("\\\n", "").strip().splitlines():
        names, _, code = line.partition("|")
        spoken = tuple(n.strip() for n in names.split(","))
        things.append(Thing(name=spoken[0], names=spoken, code=code.strip()))
    return tuple(things)


THINGS = _read(_TABLE)


def is_style_held_out(thing: int, style: int) -> bool:
    """Whether this thing is never trained in this style (about 5 %, never both styles)."""
    draw = _hash(f"style {THINGS[thing].name}")
    return draw % 100 < 10 and (draw // 100) % 2 == style


def is_background_held_out(thing: int, background: str) -> bool:
    """Whether this thing is never trained on this background (purple, teal: a quarter)."""
    if background not in ("purple", "teal"):
        return False
    return _hash(f"background {THINGS[thing].name}") % 4 == 0


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
